"""`fit`, the training loop that all methods share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from pyro_causal.infer._batches import make_batches
from pyro_causal.infer._loop import History, Loop, TrainingInterrupted
from pyro_causal.infer._program import Program
from pyro_causal.infer._steps import Optim, Scheduler, Step, SVIStep, TorchStep
from pyro_causal.infer.checkpoint import check_layout, load, rng_scope

__all__ = ["History", "TrainingInterrupted", "fit", "restore"]


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    loss: ELBO | Callable[..., Any],
    epochs: int,
    data: Any = None,
    batch_size: int | None = None,
    optim: Optim | None = None,
    lr: float | None = None,
    scheduler: Scheduler | None = None,
    clip_norm: float | None = None,
    validation: Any = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=1),
    resume: bool = False,
    progress: bool | None = None,
) -> History:
    """Train a model and a guide by stochastic variational inference.

    With a Pyro optimiser each step is `SVI.step`; with a torch optimiser it is a step on the
    ``ELBOModule`` form ``loss(model, guide)``. Both train the parameters of ``pyro.param`` and
    ``pyro.module`` sites, those of a ``PyroModule`` included. A torch optimiser also trains
    those of modules that are the model or guide (or lie behind a bound method, a handler or a
    partial). Nothing is seeded here: call ``pyro.set_rng_seed`` before, if you want to.

    **Arguments**

    - ``model``, ``guide``: callables with the same arguments: modules, functions, handled or not.
    - ``loss``: an ELBO, or a function ``(model, guide, *args, **kwargs)`` to a scalar tensor. One
      with an attribute ``converged`` ends the training after the epoch in which that is true.
    - ``epochs``: how many passes in total, those before a resume included.
    - ``data``: a tensor or a tuple of tensors (arguments by position) or a dict of tensors (by
      keyword), each ``[N, ...]``; a keyword argument may itself be a dict of tensors, as in
      ``{"data": {"x": x, "y": y}}``; or a ``Dataset``, ``DataLoader`` or other iterable of
      batches in these forms; ``None`` calls model and guide without arguments, one step an epoch.
    - ``batch_size``: rows per step, in a new random order each epoch; by default all. Scaling is
      the model's affair: ``pyro.plate("n", N, subsample_size=len(x))``.
    - ``optim``: an optimiser of ``pyro.optim``; or a torch optimiser, or a function from the list
      of parameters to one, which also works when parameters come to exist only in the first run.
      By default Adam.
    - ``lr``: the learning rate of the default optimiser (0.001).
    - ``scheduler``: a function from the torch optimiser to its scheduler, which steps once an
      epoch; for a Pyro optimiser take a scheduler of ``pyro.optim``.
    - ``clip_norm``: largest norm of the gradient of all parameters together.
    - ``validation``: data like ``data``. After each epoch its loss is computed in eval mode, with
      the same noise every time and without effect on training. At the end the parameters are those
      of the best epoch.
    - ``patience``: stop after so many epochs without a better validation loss.
    - ``checkpoint``: a file that keeps the whole state, replaced in one piece.
    - ``checkpoint_every``: epochs (``int``) or wall time (``timedelta``) between writes. The file
      is also written at the end and at an interruption.
    - ``resume``: go on from the checkpoint, if the file exists, exactly as if never stopped. State
      outside parameters, buffers, optimiser and random generators is not carried over.
    - ``progress``: show a progress bar; by default where the output is a terminal.

    **Returns**: the `History` of losses.

    **Raises**

    - ``ValueError``, ``TypeError`` before training: for bad data, a damaged checkpoint or one of
      another program, or arguments that contradict each other.
    - ``ValueError`` in training: if the loss is not finite, with the first site that went bad;
      parameters are then those before the step.
    - `TrainingInterrupted`, a ``KeyboardInterrupt`` with the history so far: at Ctrl-C. The step
      is completed and the checkpoint written first; a second Ctrl-C stops at once. SIGTERM does the
      same and then what it did before.

    **Example**::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("n", 4, subsample_size=len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> fit(model, lambda x: None, loss=Trace_ELBO(), data=x, epochs=100, lr=0.1)
        History: 100 epochs, loss 18.6758 -> 6.17576
    """
    _check_counts(epochs=epochs, patience=patience)
    _check_positive(lr=lr, clip_norm=clip_norm)
    if isinstance(checkpoint_every, timedelta):
        _check_positive(checkpoint_every=checkpoint_every.total_seconds())
    else:
        _check_counts(checkpoint_every=checkpoint_every)
    batches = make_batches(data, batch_size=batch_size)
    held_out = _held_out(validation, batch_size, batches=batches, patience=patience)
    path = _checked_path(checkpoint, resume=resume)
    loop = Loop(
        step=_make_step(
            model, guide, loss, optim=optim, lr=lr, scheduler=scheduler, clip_norm=clip_norm
        ),
        data=batches,
        validation=held_out,
        patience=patience,
        path=path,
        every=checkpoint_every,
    )
    if path is not None and path.exists():
        loop.resume()
    return loop.run(epochs, progress=progress)


def restore(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    path: str | os.PathLike[str],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Put the trained parameters of a checkpoint into a program, for use without training.

    The program runs once on ``args`` and ``kwargs``, so that parameters of ``pyro.param`` and of
    automatic guides exist with their own constraints; then their values, and buffers, are copied
    in: those of the best epoch where validation chose one, else the last. The random state is kept.

    **Raises**: ``ValueError`` if the file cannot be read safely, or is of another program.
    """
    content = load(path)
    check_layout(content, {"tensors": dict, "best": dict}, path=path)
    arguments = kwargs or {}
    program = Program(model=model, guide=guide)
    with rng_scope(), torch.no_grad(), program.evaluating(), program.capture():
        trace = poutine.trace(guide).get_trace(*args, **arguments)
        poutine.replay(model, trace=trace)(*args, **arguments)
    program.load_state(content["best"] or content["tensors"], path=path, strict=False)


def _make_step(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    loss: ELBO | Callable[..., Any],
    *,
    optim: Optim | None,
    lr: float | None,
    scheduler: Scheduler | None,
    clip_norm: float | None,
) -> Step:
    """Choose the kind of step by the optimiser."""
    if optim is not None and lr is not None:
        raise ValueError(f"lr={lr} beside optim: expected one of them. Set the rate in optim.")
    common: dict[str, Any] = {
        "model": model,
        "guide": guide,
        "loss": loss,
        "program": Program(model=model, guide=guide, loss=loss),
        "clip_norm": clip_norm,
    }
    if isinstance(optim, PyroOptim):
        if scheduler is not None:
            raise ValueError(
                "scheduler beside a Pyro optimiser: expected None, got a function for torch "
                "optimisers. Give a scheduler of pyro.optim as optim."
            )
        return SVIStep(optim=optim, **common)
    default = functools.partial(torch.optim.Adam, lr=1e-3 if lr is None else lr)
    return TorchStep(optim=optim or default, scheduler=scheduler, **common)


def _held_out(
    validation: Any, batch_size: int | None, *, batches: Iterable[object], patience: int | None
) -> Iterable[object] | None:
    """Make the validation batches, alike in form to those of training."""
    if validation is None:
        if patience is not None:
            raise ValueError(
                f"patience={patience} without validation: expected data to judge by. Give "
                "validation."
            )
        return None
    held_out = make_batches(validation, batch_size=batch_size, training=False, name="validation")
    expected, got = (getattr(b, "signature", None) for b in (batches, held_out))
    if expected and got and expected != got:
        raise ValueError(
            f"validation differs from data: expected {expected}, got {got}. Give the same tensors "
            "with other rows."
        )
    return held_out


def _checked_path(checkpoint: str | os.PathLike[str] | None, *, resume: bool) -> Path | None:
    """Check before training that the checkpoint can be written, and that none is lost."""
    if checkpoint is None:
        if resume:
            raise ValueError("resume=True without checkpoint: expected a path. Give checkpoint.")
        return None
    path = Path(checkpoint)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"Checkpoint '{path}' cannot be written: expected a folder '{path.parent}' that exists "
            "and is writable. Make it, or give another path."
        )
    if path.exists() and not resume:
        raise ValueError(
            f"Checkpoint '{path}' exists: expected a new path, or resume=True. Resume to go on "
            "from it, or delete it."
        )
    return path


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name}={count!r}: expected a whole number from 1. Give one.")


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value!r}: expected more than zero. Give a positive value.")
