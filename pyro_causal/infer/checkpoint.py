"""Checkpoints: files that are safe to read, and the state of the random generators.

A checkpoint holds tensors and plain Python values only. It is read with
``torch.load(..., weights_only=True)``, which never executes code from the file.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["check_layout", "load", "rng_scope", "rng_state", "save", "set_rng_state"]

FORMAT = 1


def save(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write plain content to a file, all of it or nothing.

    The content is written beside ``path``, read back under ``weights_only``, and renamed into
    place, so that an interruption, a full disk or an unreadable value leaves the old file in place.

    **Arguments**

    - ``path``: the file; its folder must exist.
    - ``content``: tensors, numbers, strings, ``None``, and lists, tuples and dicts of them.

    **Raises**: ``ValueError`` if ``content`` holds anything else.

    **Example**::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/x.pt", {"weight": torch.ones(2)})
        ...     load(f"{folder}/x.pt")
        {'weight': tensor([1., 1.])}
    """
    path = Path(path)
    draft = path.with_name(f"{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        torch.load(draft, map_location="cpu", weights_only=True, mmap=True)
        draft.replace(path)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise ValueError(
            f"Checkpoint '{path}' was not written: expected tensors and plain Python values, got "
            f"something else ({_reason(error)}). Keep such objects out of the state of the "
            "optimiser and its scheduler."
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU, without executing anything from the file.

    **Raises**: ``ValueError`` if the file is missing, truncated, damaged, holds other than tensors
    and plain values, or was not written by `save`.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (so that its errors are told from torch's)
    except OSError as error:
        raise ValueError(
            f"Checkpoint '{path}' cannot be opened: {error.strerror}. Check the path."
        ) from error
    try:
        with file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Torch's own message advises to switch the protection off: it is not passed on.
        raise ValueError(
            f"Checkpoint '{path}' cannot be read: expected tensors and plain Python values, got a "
            f"file that is damaged or holds other objects ({_reason(error)}); nothing in it was "
            "executed. Delete it and train again, or restore a copy."
        ) from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(
            f"Checkpoint '{path}' is of another kind: expected format {FORMAT} of this package. "
            "Give a file that this version wrote, or another path."
        )
    return content


def _reason(error: Exception) -> str:
    """Shorten an error to its type, and to the name of the refused object where there is one."""
    words = str(error).split()
    names = [after for word, after in itertools.pairwise(words) if word == "GLOBAL"]
    return " ".join([type(error).__name__, *names[:1]])


def check_layout(
    content: Mapping[str, Any], layout: Mapping[str, type], *, path: str | os.PathLike[str]
) -> None:
    """Raise ``ValueError`` unless the content of a file has these keys with these types."""
    faults = [key for key, kind in layout.items() if not isinstance(content.get(key), kind)]
    if faults:
        raise ValueError(
            f"Checkpoint '{path}' does not hold a training run: {', '.join(faults)} missing or "
            "damaged. Give a file that training wrote, or another path."
        )


def rng_state(*, host: bool = True, generators: Sequence[torch.Generator] = ()) -> dict[str, Any]:
    """Copy the state of torch's generators; with ``host``, of Python's and NumPy's too."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "generators": [generator.get_state() for generator in generators],
    }
    if host:
        name, keys, *rest = np.random.get_state(legacy=True)
        state["python"] = random.getstate()
        state["numpy"] = (str(name), torch.from_numpy(np.asarray(keys, np.int64)), *rest)
    return state


def set_rng_state(state: Mapping[str, Any], *, generators: Sequence[torch.Generator] = ()) -> None:
    """Put back what `rng_state` copied."""
    torch.set_rng_state(state["torch"])
    for device in range(min(len(state["cuda"]), torch.cuda.device_count())):
        torch.cuda.set_rng_state(state["cuda"][device], device)
    for generator, own in zip(generators, state["generators"], strict=False):
        generator.set_state(own)
    if "python" in state:
        random.setstate(state["python"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


@contextmanager
def rng_scope(state: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Run from a random state, or the present one, and come back to the present one."""
    before = rng_state()
    try:
        if state is not None:
            set_rng_state(state)
        yield
    finally:
        set_rng_state(before)
