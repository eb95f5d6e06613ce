"""The tensors behind a model, a guide and a loss."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["Program"]


class Program:
    """The tensors that make up the state of a model, a guide and a loss, each with a name.

    Parameters are found in modules (also behind bound methods, handlers and partials) and at the
    ``pyro.param`` and ``pyro.module`` sites of a run. Modules that only a closure knows are found
    when they are called: their buffers and fixed parameters are state, and their parameters are
    trained if ``pyro.module`` registers them.

    **Arguments**: ``parts``, the callables by role, such as ``model=..., guide=...``.
    """

    def __init__(self, **parts: object) -> None:
        self.params: dict[str, Tensor] = {}  # what can be trained, unconstrained
        self.tensors: dict[str, Tensor] = {}  # what a checkpoint holds: these, and buffers
        self.roots = {role: list(_modules(part)) for role, part in parts.items()}
        self._known: set[int] = set()
        self._called: dict[nn.Module, None] = {}  # an ordered set
        self._stored: set[str] = set()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Learn the tensors from a run of the program inside this context."""
        called: list[nn.Module] = []
        hook = register_module_forward_pre_hook(lambda module, _: called.append(module))
        try:
            with poutine.trace(param_only=True) as tracer:
                yield
        finally:
            hook.remove()
        self._called |= dict.fromkeys(called)
        for role, modules in self.roots.items():
            for module in modules:
                self._add(role, module, trained=role != "loss")
        for name, site in tracer.trace.nodes.items():
            if site["type"] == "param":
                value: Any = site["value"]
                self._put(name, value.unconstrained() if hasattr(value, "unconstrained") else value)
        for module in self._called:
            self._add(type(module).__name__, module, trained=False)
        self._stored = set(pyro.get_param_store().keys())

    def follow(self) -> list[Tensor]:
        """Take in, and return, the parameters that joined the store after the captured run."""
        store = pyro.get_param_store()
        if len(store) == len(self._stored):
            return []
        new = {name: p for name, p in store.named_parameters() if name not in self._stored}
        for name, param in new.items():
            self._put(name, param)
        self._stored = set(store.keys())
        return list(new.values())

    def _add(self, prefix: str, module: nn.Module, *, trained: bool) -> None:
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):
                self._put(f"{prefix}.{name}", tensor, trained=trained)

    def _put(self, name: str, tensor: Tensor, *, trained: bool = True) -> None:
        if id(tensor) in self._known:
            return
        self._known.add(id(tensor))
        unique = name
        while unique in self.tensors:  # modules of one class are told apart by their first call
            unique += "'"
        self.tensors[unique] = tensor
        if trained and tensor.requires_grad:
            self.params[unique] = tensor

    def state(self) -> dict[str, Tensor]:
        """Copy all tensors."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load_state(
        self, state: Mapping[str, Tensor], *, path: str | os.PathLike[str], strict: bool = True
    ) -> None:
        """Copy a state into the tensors, in place; without ``strict``, more names are fine.

        **Raises**: ``ValueError`` which lists what is missing, unexpected, or of another shape.
        """
        faults = [f"'{name}' is missing" for name in self.tensors if name not in state]
        faults += [
            f"'{name}' is unexpected" for name in state if strict and name not in self.tensors
        ]
        for name in self.tensors.keys() & state.keys():
            expected, found = (_form(x) for x in (self.tensors[name], state[name]))
            if expected != found:
                faults.append(f"'{name}' is {found} and not {expected}")
        if faults:
            raise ValueError(
                f"Checkpoint '{path}' is of another program: {'; '.join(sorted(faults))}. Give the "
                "model and guide that wrote it (they must create every parameter in their first "
                "run), or another path."
            )
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[name])

    @contextmanager
    def training(self) -> Iterator[None]:
        """Put the program into training mode; parts in eval mode below a training root stay so."""
        roots = [module for modules in self.roots.values() for module in modules]
        with _restored_modes(roots):
            for module in roots:
                if not module.training:
                    module.train()
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put all modules of the program into eval mode."""
        modules = [*(m for modules in self.roots.values() for m in modules), *self._called]
        with _restored_modes(modules):
            for module in modules:
                module.eval()
            yield


def _modules(part: object) -> Iterator[nn.Module]:
    """Find the modules behind a callable."""
    if isinstance(part, nn.Module):
        yield part
    elif inspect.ismethod(part):
        yield from _modules(part.__self__)
    elif isinstance(part, functools.partial):  # a Pyro handler around a function is one
        for inner in (part.func, *part.args, *part.keywords.values()):
            yield from _modules(inner)


@contextmanager
def _restored_modes(modules: Sequence[nn.Module]) -> Iterator[None]:
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _form(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
