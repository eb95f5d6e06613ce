"""One step of training, through `SVI` or through the `ELBOModule` form, and what stops it."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyro
import torch
from pyro.infer import ELBO, SVI
from pyro.infer.util import torch_item
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_causal.infer._program import Program

__all__ = ["Optim", "SVIStep", "Scheduler", "Step", "TorchStep"]

Optim: TypeAlias = PyroOptim | Optimizer | Callable[[list[Tensor]], Optimizer]
Scheduler: TypeAlias = Callable[[Optimizer], LRScheduler]


def number(loss: Any) -> float:
    """Read a loss as a number; several values, as of ReweightedWakeSleep, as their sum."""
    return float(sum(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss))


@dataclass(kw_only=True, eq=False)
class Step(ABC):
    """A callable that does one update of a program's parameters and returns the loss before it.

    Nothing is updated when the loss is not finite: this raises ``ValueError``. A step sets
    `updating` before it changes anything, and who calls it clears that with the books in order.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: Any
    program: Program
    clip_norm: float | None
    updating: bool = field(default=False, init=False)
    _guarded: bool = field(default=True, init=False)

    @abstractmethod
    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Do one update on a batch."""

    @abstractmethod
    def end_epoch(self, metric: float) -> None:
        """Advance the scheduler; ``metric`` is for schedulers that watch a plateau."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Copy the state of optimiser and scheduler, as plain content."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` copied, after `warm_up`."""

    @abstractmethod
    def trained(self) -> set[Tensor]:
        """Collect the tensors that the optimiser updates."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name the optimiser, to tell checkpoints apart."""

    def warm_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Do a step for its side effects only, before all state is loaded.

        It makes everything that the first step makes: lazy parameters, the optimiser's moments,
        the plate nesting that an ELBO guesses, compiled code. The parameters may be bad as yet.
        """
        self._guarded = False
        try:
            with pyro.validation_enabled(False):
                self(args, kwargs)
        finally:
            self._guarded = True

    def evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Compute the loss without gradients."""
        with torch.no_grad():
            return number(self._value(self.model, self.guide, *args, **kwargs))

    def clear(self) -> None:
        """Drop the gradients, so that a failed step leaves none behind."""
        for param in self.program.params.values():
            param.grad = None

    @property
    def _value(self) -> Callable[..., Any]:
        return self.loss.loss if isinstance(self.loss, ELBO) else self.loss  # type: ignore[attr-defined]

    def _learning(self) -> contextlib.AbstractContextManager[None]:
        """Learn the program's parameters when it runs for the first time."""
        return contextlib.nullcontext() if self.program.tensors else self.program.capture()

    def _check(self, loss: Any) -> None:
        if self._guarded and not math.isfinite(value := number(loss)):
            raise ValueError(
                f"The loss is not finite: expected a number, got {value}. No single site shows it; "
                f"check what {type(self.loss).__name__} adds, and lower the learning rate."
            )

    def _clip(self) -> None:
        if self.clip_norm is not None:
            clip_grad_norm_(self.program.params.values(), self.clip_norm)

    def warn_of_untrained(self) -> None:
        """Warn where gradients and the optimiser do not meet."""
        held = self.trained()
        idle = [
            f"'{name}'"
            for name, tensor in self.program.tensors.items()
            if tensor.requires_grad and tensor.grad is not None and tensor not in held
        ]
        if idle:
            text = (
                f"Parameters {', '.join(idle)} receive gradients but are not trained: expected "
                "each at a pyro.param or pyro.module site, under a name that is new to the store, "
                "or in the optimiser. Register them, call pyro.clear_param_store() before the "
                "first run, or requires_grad_(False) on those that are meant to stay fixed."
            )
        elif all(param.grad is None for param in held):
            text = (
                "No parameter receives a gradient, so nothing is trained: expected pyro.param or "
                "pyro.module sites, or modules with parameters, behind the loss. Register them."
            )
        else:
            return
        warnings.warn(text, UserWarning, stacklevel=6)


@dataclass(kw_only=True, eq=False)
class SVIStep(Step):
    """A step of Pyro's `SVI`, for an optimiser of ``pyro.optim``."""

    optim: PyroOptim

    def __post_init__(self) -> None:
        if pyro.settings.get("module_local_params"):
            raise ValueError(
                "A Pyro optimiser finds parameters in the global store: expected the setting "
                "module_local_params=False, got True. Give a torch optimiser."
            )
        self._svi = SVI(
            self.model,
            self.guide,
            self.optim,
            loss=self._value,
            loss_and_grads=self._loss_and_grads,  # SVI updates the parameters when this returns
        )

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        loss = self._svi.step(*args, **kwargs)
        self.program.follow()
        return number(loss)

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        with self._learning():
            if isinstance(self.loss, ELBO):
                loss = self.loss.loss_and_grads(*args, **kwargs)  # type: ignore[attr-defined]
            else:
                loss = self.loss(*args, **kwargs)
                if loss.requires_grad:
                    loss.backward()
        self._check(loss)
        self._clip()
        self.updating = True
        return loss

    def end_epoch(self, metric: float) -> None:
        if isinstance(self.optim, PyroLRScheduler):
            plateau = self.optim.pt_scheduler_constructor is ReduceLROnPlateau
            self.optim.step(*([metric] if plateau else []))

    def state(self) -> dict[str, Any]:
        return {
            name: _state(self.optim.optim_objs[param])
            for name, param in self.program.params.items()
            if param in self.optim.optim_objs
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, own in state.items():
            _load_state(self.optim.optim_objs[self.program.params[name]], own)

    def trained(self) -> set[Tensor]:
        return set(self.optim.optim_objs)

    @property
    def kind(self) -> str:
        return f"pyro.optim {_names(next(iter(self.optim.optim_objs.values()), None))}"


@dataclass(kw_only=True, eq=False)
class TorchStep(Step):
    """A step of a torch optimiser on the `ELBOModule` form ``loss(model, guide)``."""

    optim: Optimizer | Callable[[list[Tensor]], Optimizer]
    scheduler: Scheduler | None

    def __post_init__(self) -> None:
        if isinstance(self.loss, ELBO) and not hasattr(self.loss, "differentiable_loss"):
            raise ValueError(
                f"{type(self.loss).__name__} has no differentiable form: expected a loss with "
                "differentiable_loss for a torch optimiser. Give one of pyro.optim."
            )
        self._optimizer: Optimizer | None = None
        self._schedule: LRScheduler | None = None
        self._objective: Callable[..., Tensor] = (
            self.loss(self.model, self.guide)  # type: ignore[arg-type]  # plain callables do too
            if isinstance(self.loss, ELBO)
            else functools.partial(self.loss, self.model, self.guide)
        )

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        with self._learning():
            loss = self._objective(*args, **kwargs)
        self._check(loss)
        optimizer = self._ready_optimizer()
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        self._clip()
        self.updating = True
        optimizer.step()
        return number(loss)

    def _ready_optimizer(self) -> Optimizer:
        """Make the optimiser for the first step; later, add the parameters that have joined."""
        joined = self.program.follow()
        if self._optimizer is None:
            params = list(self.program.params.values())
            made = self.optim if isinstance(self.optim, Optimizer) else self.optim(params)
            self._optimizer = made
            self._schedule = self.scheduler(made) if self.scheduler else None
        elif joined:
            self._optimizer.add_param_group({"params": joined})
        return self._optimizer

    def end_epoch(self, metric: float) -> None:
        if isinstance(self._schedule, ReduceLROnPlateau):
            self._schedule.step(metric)
        elif self._schedule is not None:
            self._schedule.step()

    def state(self) -> dict[str, Any]:
        return {"order": self._order(), **_state(self._schedule or self._optimizer)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state["order"] != (order := self._order()):  # torch tells parameters by their place
            raise ValueError(
                f"The checkpoint has another order of parameters: expected {order}, got "
                f"{state['order']}. Give them to the optimiser as in the first call."
            )
        _load_state(self._schedule or self._optimizer, state)

    def trained(self) -> set[Tensor]:
        assert self._optimizer is not None
        return {param for group in self._optimizer.param_groups for param in group["params"]}

    def _order(self) -> list[list[str | None]]:
        assert self._optimizer is not None
        names = {id(tensor): name for name, tensor in self.program.tensors.items()}
        groups = self._optimizer.param_groups
        return [[names.get(id(param)) for param in group["params"]] for group in groups]

    @property
    def kind(self) -> str:
        return f"torch.optim {_names(self._schedule or self._optimizer)}"


def _layers(made: Any) -> list[Any]:
    """List a scheduler and its optimiser, or an optimiser alone."""
    return [made, made.optimizer] if hasattr(made, "optimizer") else [made]


def _names(made: Any) -> str:
    return " of ".join(type(part).__name__ for part in _layers(made))


def _state(made: Any) -> dict[str, Any]:
    return {type(part).__name__: part.state_dict() for part in _layers(made)}


def _load_state(made: Any, state: Mapping[str, Any]) -> None:
    for part in _layers(made):
        part.load_state_dict(state[type(part).__name__])
