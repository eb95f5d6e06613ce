"""What is refused before `LatentInterventions` starts to work, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_causal.infer.acyclicity import is_dag
from pyro_causal.infer.priors import BernoulliGraph

__all__ = [
    "require_labels",
    "require_names",
    "require_numbers",
    "require_one_of",
    "require_options",
    "require_precision",
    "require_rows",
    "require_shapes",
    "require_variation",
]

SMALLEST, LARGEST = 1e-15, 1e15  # standard deviations of which single precision has the squares
CONVERT = "Convert it, torch.as_tensor(...)"

GIVEN = {  # to the search, by arguments of the method
    "density": ("units", "varying"),
    "intervention": ("imperfect",),
    "truncation": ("truncation",),
    "targets": ("targets", "observational"),
    "edges": ("prior",),
    "edge": ("edge",),
    "target": ("target",),
}


def require_one_of(name: str, value: str, options: Sequence[str]) -> None:
    """Whether an argument is one of its options."""
    if value not in options:
        raise ValueError(
            f"LatentInterventions: expected {name} to be one of {', '.join(options)}, got "
            f"{value!r}. Choose one."
        )


def require_names(names: tuple[str, ...], nodes: int) -> None:
    """Whether names are different, and one for each variable."""
    if len(names) != nodes or len({*names} - {"rows"}) != nodes:
        raise ValueError(
            f"LatentInterventions: expected {nodes} different names other than 'rows', the plate, "
            f"got {list(names)}. Name each variable once."
        )


def require_numbers(
    nodes: int, truncation: int, edge: float, target: float, concentration: float
) -> None:
    """Whether numbers are in range."""
    for name, value, fits, remedy in (
        ("1 variable or more", nodes, nodes > 0, "Give the number of columns"),
        ("2 components or more", truncation, truncation > 1, "Add one that has no rows"),
        ("a price of edges from 0", edge, 0 <= edge < math.inf, "Give nats for each row"),
        ("a price of targets from 0", target, 0 <= target < math.inf, "Give nats for each row"),
        ("a positive concentration", concentration, concentration > 0, "Give 1, say"),
    ):
        if not fits:
            raise ValueError(f"LatentInterventions: expected {name}, got {value}. {remedy}.")


def require_shapes(nodes: int, targets: Tensor | None, edges: Tensor | None) -> None:
    """Whether targets and prior probabilities of edges have their shapes and ranges."""
    for name, given in (("targets", targets), ("edges", edges)):
        if given is not None:
            remedy = "Take its probs" if isinstance(given, BernoulliGraph) else CONVERT
            _require_tensor(name, given, remedy)
    if targets is not None and not (
        targets.shape[1:] == (nodes,) and ((targets == 0) | (targets == 1)).all()
    ):
        raise ValueError(
            f"LatentInterventions: expected targets [K, {nodes}] of zeros and ones, got shape "
            f"{tuple(targets.shape)} with the values {targets.unique().tolist()[:4]}. Give a row "
            "for each component and a column for each variable."
        )
    if edges is None:
        return
    if edges.shape != (nodes, nodes) or not ((edges >= 0) & (edges <= 1)).all():
        raise ValueError(
            f"LatentInterventions: expected edges [{nodes}, {nodes}] between 0 and 1, got shape "
            f"{tuple(edges.shape)} with values from {edges.min():g} to {edges.max():g}. Give the "
            "probability of the edge i -> j in row i and column j."
        )
    if not is_dag((edges == 1).fill_diagonal_(False)):
        raise ValueError(
            "LatentInterventions: the edges of probability one form a cycle: expected an acyclic "
            "graph. Take one of them away; graph_prior tells which."
        )


def require_labels(z: Tensor | None, rows: int, truncation: int) -> None:
    """Whether labels are those of components, or -1, one for each row."""
    if z is None:
        return
    _require_tensor("labels", z)
    if z.shape != (rows,) or z.is_floating_point():
        raise ValueError(
            f"LatentInterventions: expected labels [{rows}] of integers, got {z.dtype} of shape "
            f"{tuple(z.shape)}. Give a number for each row, -1 if unknown."
        )
    for wrong, expected, remedy in (
        (
            z >= truncation,
            f"below {truncation}, the number of components",
            "or give a larger truncation",
        ),
        (z < -1, "from -1, unknown", "and give -1 for those"),
    ):
        if wrong.any():
            raise ValueError(
                f"LatentInterventions: expected labels {expected}, got {int(z[wrong][0])}. Count "
                f"components from 0, {remedy}."
            )


def require_options(search: Iterable[str]) -> None:
    """Whether options of a search are not given by the method."""
    for own, others in GIVEN.items():
        for wrong in set(others) & set(search):
            raise ValueError(
                f"LatentInterventions: expected no {wrong} in initialise, since {own} of the "
                f"method decides it. Give {own} to the constructor."
            )


def require_rows(x: Tensor, nodes: int, wanted: torch.dtype) -> None:
    """Whether rows have a finite number for each variable, in the precision of the parameters."""
    _require_tensor("rows", x)
    if x.dim() != 2 or x.shape[1] != nodes or not len(x):
        raise ValueError(
            f"LatentInterventions: expected rows [N, {nodes}], got shape {tuple(x.shape)}. Give a "
            "column for each variable, and a row at least."
        )
    require_precision(x, wanted)
    if not x.isfinite().all():
        columns = (~x.isfinite()).any(0).nonzero().flatten().tolist()
        raise ValueError(
            f"LatentInterventions: expected numbers, got NaN or infinity in the columns {columns}. "
            "Drop such rows, or fill the gaps first."
        )


def require_variation(x: Tensor) -> None:
    """Whether variables vary, in units that numbers have the digits for."""
    scale = x.double().std(0, correction=0)
    fits = (scale >= SMALLEST) & (scale <= LARGEST)
    constant = x.amax(0) == x.amin(0)
    for wrong, expected, got, remedy in (
        (constant, "variables that vary", "one value only", "Drop the columns"),
        (
            ~fits,
            f"standard deviations from {SMALLEST:g} to {LARGEST:g}",
            f"{scale[~fits].tolist()[:4]}",
            "Take other units",
        ),
    ):
        if wrong.any():
            raise ValueError(
                f"LatentInterventions: expected {expected}, got {got} in the columns "
                f"{wrong.nonzero().flatten().tolist()}. {remedy}."
            )


def _require_tensor(name: str, value: Any, remedy: str = CONVERT) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"LatentInterventions: expected {name} as a tensor, got {type(value).__name__}. "
            f"{remedy}."
        )


def require_precision(x: Tensor | None, wanted: torch.dtype) -> None:
    """Whether rows have the precision of the parameters."""
    if x is not None and x.dtype != wanted:
        name, got = (str(dtype).removeprefix("torch.") for dtype in (wanted, x.dtype))
        raise ValueError(
            f"LatentInterventions: expected rows of {name}, as the method is, got {got}. Convert "
            f"them, x.to(torch.{name}), or the method, say method.double()."
        )
