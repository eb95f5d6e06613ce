"""The loop behind `fit`: epochs, validation, checkpoints, and stopping between steps."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_causal.infer._batches import TensorBatches, arguments, describe, generators
from pyro_causal.infer._faults import count_bad, first_bad_site
from pyro_causal.infer._signals import Signals
from pyro_causal.infer._steps import Step
from pyro_causal.infer.checkpoint import (
    check_layout,
    load,
    rng_scope,
    rng_state,
    save,
    set_rng_state,
)

__all__ = ["History", "Loop", "TrainingInterrupted"]

logger = logging.getLogger(__name__)

LAYOUT: dict[str, type] = {
    **dict.fromkeys(["tensors", "best", "optimiser", "data", "history"], dict),
    **dict.fromkeys(["rng", "validation_rng"], dict),
    "epoch_losses": list,
    "kind": str,
}
END = object()


@dataclass(repr=False)
class History:
    """What a training run did, epoch by epoch; epochs count from one.

    **Attributes**

    - ``losses``: mean loss over the batches of each epoch, in the units of the loss.
    - ``validation_losses``: the same over the validation data after each epoch, if there is any.
    - ``best_epoch``: the epoch with the lowest validation loss, or ``None``.

    **Example**::

        >>> History([3.0, 2.0], [3.1, 2.5], best_epoch=2)
        History: 2 epochs, loss 3 -> 2, validation loss 2.5 at best (epoch 2)
    """

    losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    best_epoch: int | None = None

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.losses)

    @property
    def best_validation_loss(self) -> float:
        """The lowest validation loss; infinity if there is none."""
        return self.validation_losses[self.best_epoch - 1] if self.best_epoch else math.inf

    def __repr__(self) -> str:
        text = f"History: {self.epochs} epochs"
        if self.losses:
            text += f", loss {self.losses[0]:.6g} -> {self.losses[-1]:.6g}"
        if self.best_epoch:
            text += (
                f", validation loss {self.best_validation_loss:.6g} at best"
                f" (epoch {self.best_epoch})"
            )
        return text


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped from outside; `history` is what it did until then."""

    def __init__(self, message: str, *, history: History) -> None:
        super().__init__(message)
        self.history = history


@dataclass(kw_only=True, eq=False)
class Loop:
    """One training run; everything that `save` and `resume` must carry over is an attribute."""

    step: Step
    data: Iterable[object]
    validation: Iterable[object] | None
    patience: int | None
    path: Path | None
    every: int | timedelta
    history: History = field(default_factory=History, init=False)

    def __post_init__(self) -> None:
        self.program = self.step.program
        self._epoch_losses: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._generators = generators(self.data)
        # Reading the data may draw from any generator; its order may, from torch's, at the start.
        self._draws = not isinstance(self.data, TensorBatches | list)
        self._orders = self._draws or (isinstance(self.data, TensorBatches) and not self.data.whole)
        self._timed = self.path is not None and isinstance(self.every, timedelta)
        self._rng: dict[str, Any] = {}  # where the state was last whole, unless that is now
        self._epoch_rng: dict[str, Any] | None = None  # from which the epoch drew its order
        self._validation_rng = rng_state()
        self._saved_at = time.monotonic()

    def run(self, epochs: int, *, progress: bool | None) -> History:
        """Train until so many epochs are done, or validation or the loss says that it is enough."""
        signals = Signals()
        try:
            with signals, self.program.training(), self._bar(epochs, progress) as bar:
                if not self._finished(epochs):
                    while not self._finished(epochs):
                        self._epoch(signals, bar)
                    self._check_parameters()
                    self._save()
                    signals.check()
        except KeyboardInterrupt as stop:
            message = self._save_interrupted()
            if signals.received == signal.SIGTERM:
                signal.raise_signal(signal.SIGTERM)
            raise TrainingInterrupted(message, history=self.history) from stop
        finally:
            self.step.clear()
        if self._best:
            self.program.load_state(self._best, path=self.path or "")
        return self.history

    @property
    def _begun(self) -> bool:
        return bool(self.history.epochs or self._epoch_losses)

    def _finished(self, epochs: int) -> bool:
        done = self.history.epochs
        waited = done - (self.history.best_epoch or 0)
        patient = self.patience is None or waited < self.patience
        return done >= epochs or not patient or bool(getattr(self.step.loss, "converged", False))

    def _bar(self, epochs: int, progress: bool | None) -> Any:
        steps = length_hint(self.data, 0)
        return tqdm(
            desc="Training",
            unit="step",
            total=steps * epochs or None,
            initial=steps * self.history.epochs + len(self._epoch_losses),
            disable=None if progress is None else not progress,
        )

    def _epoch(self, signals: Signals, bar: Any) -> None:
        batches = self._batches()
        while True:
            self._rng, self.step.updating = {}, False
            signals.check()
            if self._timed:
                self._save_in_time()
            if self._draws:
                self._mark()
            if (batch := next(batches, END)) is END:
                break
            if not self._draws:
                self._mark()
            loss = self._advance(batch)
            self._epoch_losses.append(loss)
            bar.update()
        self._end_epoch()
        if not bar.disable:
            shown = {"epoch": self.history.epochs, "loss": f"{self.history.losses[-1]:.6g}"}
            if self.validation is not None:
                shown["validation"] = f"{self.history.validation_losses[-1]:.6g}"
            bar.set_postfix(shown, refresh=False)

    def _batches(self) -> Any:
        """Begin an epoch, or go back into one: its order follows from the random state."""
        if self._epoch_rng is None:
            if self._orders:
                self._mark()
            batches = iter(self.data)
            self._epoch_rng = self._rng
            return batches
        self.step.updating = True
        here = rng_state(generators=self._generators)
        if self._orders:
            set_rng_state(self._epoch_rng, generators=self._generators)
        batches = iter(self.data)
        for _ in islice(batches, len(self._epoch_losses)):
            pass
        set_rng_state(here, generators=self._generators)
        return batches

    def _mark(self) -> None:
        """Keep the random state that belongs to the parameters, in case that a step is left."""
        self._rng = rng_state(host=self._draws, generators=self._generators)

    def _advance(self, batch: object) -> float:
        args, kwargs = arguments(batch)
        first = not self.program.tensors
        try:
            loss = self.step(args, kwargs)
        # With warnings as errors, Pyro's own warning of NaN comes first.
        except (ValueError, UserWarning, torch.linalg.LinAlgError) as error:
            place = f"epoch {self.history.epochs + 1}, step {len(self._epoch_losses) + 1}"
            fault = first_bad_site(
                self.step.model,
                self.step.guide,
                args=args,
                kwargs=kwargs,
                rng=self._rng,
                particles=getattr(self.step.loss, "num_particles", 1),
            )
            if fault is None:
                error.add_note(f"Training stopped in {place}.")
                raise
            raise ValueError(f"{fault} Training stopped in {place}.") from error
        if first:
            self.step.warn_of_untrained()
        return loss

    def _end_epoch(self) -> None:
        if not self._epoch_losses:
            raise ValueError(
                f"data yielded nothing in epoch {self.history.epochs + 1}: expected at least one "
                "batch. Give an iterable that can be read once per epoch."
            )
        validation = None if self.validation is None else self._validate(self.validation)
        self.step.updating = True
        history = self.history
        history.losses.append(sum(self._epoch_losses) / len(self._epoch_losses))
        if validation is not None:
            improved = validation < history.best_validation_loss
            history.validation_losses.append(validation)
            if improved:
                history.best_epoch = history.epochs
                self._best = self.program.state()
        self.step.end_epoch(history.losses[-1] if validation is None else validation)
        self._epoch_losses, self._epoch_rng = [], None
        self._rng, self.step.updating = {}, False
        if isinstance(self.every, int) and history.epochs % self.every == 0:
            self._save()

    def _validate(self, batches: Iterable[object]) -> float:
        """Compute the validation loss, always with the same noise and away from training's."""
        with rng_scope(self._validation_rng), self.program.evaluating():
            losses = [self.step.evaluate(*arguments(batch)) for batch in batches]
        if not losses:
            raise ValueError(
                "validation yielded nothing: expected at least one batch. Give an iterable that "
                "can be read once per epoch."
            )
        if not math.isfinite(loss := sum(losses) / len(losses)):
            logger.warning("The validation loss of epoch %d is %s", self.history.epochs + 1, loss)
        return loss

    def _check_parameters(self) -> None:
        for name, param in self.program.params.items():
            if fault := count_bad(param.detach()):
                raise ValueError(
                    f"At site '{name}', the parameter is not finite: expected numbers, got {fault}."
                    " A gradient was not finite: look for a root, logarithm or division at zero. "
                    f"Training stopped after {self.history.epochs} epochs; a checkpoint keeps its "
                    "earlier state."
                )

    def _save_in_time(self) -> None:
        assert isinstance(self.every, timedelta)
        if time.monotonic() - self._saved_at >= self.every.total_seconds():
            self._save()

    def _save(self) -> None:
        if self.path is None or not self._begun:
            return
        self._check_parameters()
        content = {
            "tensors": self.program.state(),
            "best": self._best,
            "optimiser": self.step.state(),
            "kind": self.step.kind,
            "data": self._form(),
            "history": asdict(self.history),
            "epoch_losses": self._epoch_losses,
            "rng": rng_state(generators=self._generators) | self._rng,
            "epoch_rng": self._epoch_rng,
            "validation_rng": self._validation_rng,
        }
        save(self.path, content)
        self._saved_at = time.monotonic()
        logger.info("Checkpoint written to %s", self.path)

    def _save_interrupted(self) -> str:
        """Save after an interruption, and say where that leaves the user."""
        place = f"epoch {self.history.epochs + 1} after step {len(self._epoch_losses)}"
        if self.path is None or not self._begun:
            return f"Training was interrupted in {place}; the parameters stay as they are."
        if self.step.updating:
            return (
                f"Training was interrupted in {place}, within an update: '{self.path}' was not "
                "written anew. Call fit with resume=True to go on from it, if it exists."
            )
        self._save()
        return (
            f"Training was interrupted in {place}, and '{self.path}' holds all of it. "
            "Call fit with resume=True to go on."
        )

    def resume(self) -> None:
        """Take over the state that `_save` wrote."""
        assert self.path is not None
        content = load(self.path)
        check_layout(content, LAYOUT, path=self.path)
        self._same("data", content["data"], self._form())
        with self.program.training():
            for batch in self.data:
                self.step.warm_up(*arguments(batch))
                break
        self._same("optimiser", content["kind"], self.step.kind)
        self.program.load_state(content["tensors"], path=self.path)
        self.step.load_state(content["optimiser"])
        self.step.clear()
        self.history = History(**content["history"])
        self._best = content["best"]
        self._epoch_losses = content["epoch_losses"]
        self._epoch_rng = content["epoch_rng"]
        self._validation_rng = content["validation_rng"]
        set_rng_state(content["rng"], generators=self._generators)

    def _form(self) -> dict[str, Any]:
        """Describe the data as far as it decides what a resumed run does."""
        return {"data": describe(self.data), "validation": describe(self.validation)}

    def _same(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise ValueError(
                f"Checkpoint '{self.path}' was written with another {what}: expected {expected}, "
                f"got {found}. Give what the first call gave, or another path."
            )
