"""Training data as a sequence of calls of the model, checked before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from operator import length_hint
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

__all__ = ["TensorBatches", "arguments", "describe", "generators", "make_batches"]


def arguments(batch: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn a batch into arguments: a mapping by keyword, a tuple or list by position."""
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch,), {}


class TensorBatches:
    """Tensors with one common axis of rows, cut into batches.

    **Arguments**

    - ``data``: what `arguments` takes, all of it tensors of shape ``[N, ...]``, or dicts of such
      as keyword arguments.
    - ``batch_size``: rows in a batch (the last one may have fewer); ``None`` for all at once.
    - ``training``: draw a new order for each pass, from torch's global generator; if not, keep the
      order, and take ``batch_size`` as a limit.
    - ``name``: what error messages call the data.
    """

    def __init__(
        self, data: object, *, batch_size: int | None, training: bool = True, name: str = "data"
    ) -> None:
        self.args, self.kwargs = arguments(data)
        labels = {f"{name}[{i}]": tensor for i, tensor in enumerate(self.args)}
        if isinstance(data, Tensor):
            labels = {name: data}
        for key, value in self.kwargs.items():
            if isinstance(value, Mapping) and value:
                labels |= {f"{name}['{key}']['{inner}']": x for inner, x in value.items()}
            else:
                labels[f"{name}['{key}']"] = value
        self.rows = _checked_rows(labels)
        self.size = _checked_size(batch_size, self.rows, training, name)
        self.whole = batch_size is None
        self.training = training
        self.signature = {
            label.removeprefix(name): f"{tensor.dtype} [N, {', '.join(map(str, tensor.shape[1:]))}]"
            for label, tensor in labels.items()
        }

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def __iter__(self) -> Iterator[object]:
        if self.whole:
            return iter([self.kwargs or self.args])
        order = torch.randperm(self.rows) if self.training else torch.arange(self.rows)
        return map(self._rows, order.split(self.size))

    def _rows(self, index: Tensor) -> object:
        if self.kwargs:
            return {key: _take(value, index) for key, value in self.kwargs.items()}
        return tuple(_take(x, index) for x in self.args)


def _take(value: Any, index: Tensor) -> Any:
    """Rows of a tensor, or of each tensor of a dict."""
    if isinstance(value, Mapping):
        return {key: _take(x, index) for key, x in value.items()}
    return value[index.to(value.device)]


def _checked_rows(labels: Mapping[str, object]) -> int:
    """Count the rows of named tensors, after all checks that need no model."""
    rows: dict[str, int] = {}
    for label, tensor in labels.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{label} is no tensor: expected a tensor with one row per unit, got "
                f"{type(tensor).__name__}. Convert it with torch.as_tensor, or bind a constant to "
                "the model and guide with functools.partial."
            )
        if tensor.ndim == 0 or len(tensor) == 0:
            raise ValueError(
                f"{label} has no rows: expected shape [N, ...], got {tuple(tensor.shape)}. Give at "
                "least one row, or bind a constant with functools.partial."
            )
        rows[label] = len(tensor)
        if not (finite := tensor.isfinite()).all():
            first = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"{label} is not finite: expected numbers, got {(~finite).sum()} NaN or infinite "
                f"entries, the first at {first}. Remove these rows, or fill them and mask the site."
            )
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{label} has {n}" for label, n in rows.items())
        raise ValueError(
            f"Rows do not match: expected equally many, but {counts}. Align them, or bind what is "
            "not per row with functools.partial."
        )
    return next(iter(rows.values()))


def make_batches(
    data: object, *, batch_size: int | None, training: bool = True, name: str = "data"
) -> Iterable[object]:
    """Make something that yields the batches of one pass, each time it is iterated.

    Tensors, and tuples, lists and dicts of tensors, are cut by `TensorBatches`; a ``Dataset`` goes
    through a ``DataLoader``; any other iterable, say a ``DataLoader``, already yields batches; and
    ``None`` stands for one call without arguments. Batches for training are shuffled; for others
    ``batch_size`` is only a limit.

    **Raises**: ``TypeError`` or ``ValueError`` for data that cannot be trained on.
    """
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        size = _checked_size(
            batch_size, len(data) if isinstance(data, Sized) else 0, training, name
        )
        return DataLoader(data, batch_size=size, shuffle=training and batch_size is not None)
    if _is_whole(data):
        return TensorBatches(data, batch_size=batch_size, training=training, name=name)
    if batch_size is not None and training:
        raise ValueError(
            f"batch_size={batch_size} does not fit {name}: expected tensors or a Dataset to cut, "
            f"got {type(data).__name__}. Leave batch_size out, or give tensors."
        )
    if data is None:
        return [()]
    if (
        not isinstance(data, Iterable)
        or isinstance(data, Iterator | IterableDataset | str)
        or hasattr(data, "__array__")
    ):
        raise TypeError(
            f"{name} does not yield batches in every epoch: expected tensors, a Dataset, a "
            f"DataLoader or a list of batches, got {type(data).__name__}. Convert arrays with "
            "torch.as_tensor, wrap an IterableDataset in a DataLoader, make a list of an iterator."
        )
    if length_hint(data, 1) == 0:
        raise ValueError(f"{name} is empty: expected at least one batch. Check how it was loaded.")
    return data


def _checked_size(batch_size: int | None, rows: int, training: bool, name: str) -> int:
    """Settle how many rows a batch has."""
    if batch_size is not None and not training:
        batch_size = min(batch_size, rows)
    if rows and batch_size is None:
        return rows
    if batch_size is None or not 1 <= batch_size <= rows:
        raise ValueError(
            f"batch_size={batch_size} does not fit {name}: expected 1 to {rows} (its rows). Choose "
            "a size in this range, or None for all rows at once."
        )
    return batch_size


def _is_whole(data: object) -> bool:
    """Tell data as such (to be cut) from an iterable of batches."""
    if isinstance(data, tuple | list):
        return len(data) > 0 and not all(isinstance(x, tuple | list | Mapping) for x in data)
    return isinstance(data, Tensor) or (isinstance(data, Mapping) and len(data) > 0)


def describe(data: object) -> dict[str, Any] | None:
    """Describe data as far as it decides what a resumed run does."""
    if isinstance(data, TensorBatches):
        return {"rows": data.rows, "batch_size": data.size, **data.signature}
    return None if data is None else {"batches": length_hint(data, 0)}


def generators(data: object) -> list[torch.Generator]:
    """Find the random generators that a loader draws its order from, other than the global one."""
    owners = (data, getattr(data, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
