"""Estimands: formulas in the distributions at hand that equal a causal quantity."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from pyro_causal.graph._evaluate import PositivityError, evaluate
from pyro_causal.graph.admg import ADMG, Names
from pyro_causal.graph.expression import Dataset, Expression, Var

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Estimand", "Member", "PositivityError", "as_dataset", "as_datasets", "show_dataset"]

Member: TypeAlias = "Names | tuple[Names, Names]"  # intervened names, or with the observed ones
Key: TypeAlias = "frozenset[str] | tuple[frozenset[str], frozenset[str]]"


@dataclass(frozen=True)
class Estimand:
    r"""A formula that equals a causal quantity in every positive model of a graph.

    ``str(e)`` and ``e.latex()`` write the formula, ``repr(e)`` with the quantity it stands for.

    **Attributes**

    - ``query``: the quantity; ``outcome``, ``do``, ``given``: its variables; ``relevant``: those of
      ``do`` and ``given`` that it depends on.
    - ``expression``: the formula, see :mod:`pyro_causal.graph.expression`.
    - ``graph``: the graph that it holds in; ``available``: the datasets that it may use.

    **Example** The effect of x on y through a front door.

    >>> from pyro_causal.graph import ADMG, identify
    >>> g = ADMG(directed=[("x", "m"), ("m", "y")], bidirected=[("x", "y")])
    >>> identify(g, "y", do="x")
    P_{x}(y) = Σ_{m} P(m | x) Σ_{x'} P(x') P(y | m, x')
    """

    query: str
    outcome: tuple[str, ...]
    do: tuple[str, ...]
    given: tuple[str, ...]
    relevant: frozenset[str]
    expression: Expression
    graph: ADMG
    available: tuple[Dataset, ...]

    def __str__(self) -> str:
        return str(self.expression)

    def __repr__(self) -> str:
        return f"{self.query} = {self.expression}"

    def latex(self) -> str:
        """The formula in LaTeX, without delimiters."""
        return self.expression.latex()

    def evaluate(
        self,
        tables: Tensor | Mapping[Any, Tensor] | Callable[[Any], Tensor],
        do: Mapping[str, int] = MappingProxyType({}),
        given: Mapping[str, int] = MappingProxyType({}),
    ) -> Tensor:
        """The value on discrete distributions, exactly.

        **Shapes** The result has one axis for each name of ``outcome``, in that order.

        **Arguments**

        - ``tables``: the joint :math:`P(v)` with one axis per node in the order of ``g.nodes``; or,
          for experiments, a mapping or a function from each member of ``available`` to a table.
          Its axes are the intervened names in sorted order, then the observed nodes in the order of
          ``g.nodes``, and it sums to one over the latter.
        - ``do``, ``given``: a level for each name that is ``relevant``.

        **Raises** ``ValueError``: unknown, missing or impossible levels; missing tables, and tables
        of a wrong shape or that are no distributions. ``PositivityError`` (a ``ValueError``): the
        answer rests on a conditional probability given something that never happens.

        **Example**

        >>> import torch
        >>> from pyro_causal.graph import ADMG, identify
        >>> joint = torch.tensor([[0.4, 0.1], [0.2, 0.3]])  # P(x, y)
        >>> identify(ADMG([("x", "y")]), "y", do="x").evaluate(joint, do={"x": 1})
        tensor([0.4000, 0.6000])
        """
        import torch

        read: dict[Dataset, tuple[Tensor, list[str]]] = {}
        sizes: dict[str, int] = {}
        lookup = _lookup(self, tables)

        def table(dataset: Dataset) -> tuple[Tensor, list[str]]:
            if dataset not in read:
                names = _axes(self.graph, dataset)
                values = torch.as_tensor(lookup(dataset))
                _check_table(values, names, dataset)
                _check_sizes(values, names, dataset, sizes)
                read[dataset] = values, names
            return read[dataset]

        outcome = tuple(Var(name) for name in self.outcome)
        found = evaluate(self.expression, table, _levels(self, do, given), outcome)
        dtypes = [values.dtype for values, _ in read.values() if values.is_floating_point()]
        return found.to(dtypes[0]) if dtypes else found


def as_dataset(g: ADMG, member: Member) -> Dataset:
    """One of the datasets at hand: intervened names, or a pair of intervened and observed names.

    **Raises** ``ValueError``: unknown names; a variable that is both intervened on and observed.
    """
    if isinstance(member, tuple) and len(member) == 2 and not all(map(_is_name, member)):
        intervened, observed = g.masks(intervened=member[0], observed=member[1])
        rest = g.bits.all & ~intervened
        if observed != rest:
            return Dataset(frozenset(g.names(intervened)), frozenset(g.names(observed)))
        return Dataset(frozenset(g.names(intervened)))
    names: Any = member  # no pair
    return Dataset(frozenset(g.names(g.mask(names, "the datasets"))))


def _is_name(thing: object) -> bool:
    return isinstance(thing, str)


def as_datasets(g: ADMG, available: Iterable[Member]) -> tuple[Dataset, ...]:
    """All datasets at hand, each once.

    **Raises** ``ValueError``: as :func:`as_dataset`; no dataset.
    """
    if isinstance(available, str) or not isinstance(available, Iterable):
        raise ValueError(
            f"`available`: expected a collection of datasets, got {available!r}. Do write "
            "[frozenset(), {'x'}] for observational data and an experiment on x."
        )
    datasets = tuple(dict.fromkeys(as_dataset(g, member) for member in available))
    if not datasets:
        raise ValueError(
            "`available`: expected at least one dataset, got none. Do pass [frozenset()] for "
            "observational data."
        )
    return datasets


def show_dataset(dataset: Dataset) -> str:
    """A dataset in the notation of probabilities."""
    do = f"_{{{', '.join(sorted(dataset.intervened))}}}" if dataset.intervened else ""
    return f"P{do}({'v' if dataset.observed is None else ', '.join(sorted(dataset.observed))})"


def _key(dataset: Dataset) -> Key:
    """A dataset as the user names it."""
    if dataset.observed is None:
        return dataset.intervened
    return dataset.intervened, dataset.observed


def _axes(g: ADMG, dataset: Dataset) -> list[str]:
    """The axes of a dataset's table."""
    observed: Collection[str] = g.nodes if dataset.observed is None else dataset.observed
    return sorted(dataset.intervened) + [
        name for name in g.nodes if name in observed and name not in dataset.intervened
    ]


def _lookup(estimand: Estimand, tables: Any) -> Callable[[Dataset], Any]:
    """How to find the table of a dataset."""
    if isinstance(tables, Mapping):
        known = {as_dataset(estimand.graph, member): table for member, table in tables.items()}

        def lookup(dataset: Dataset) -> Any:
            if dataset not in known:
                raise ValueError(
                    f"`tables`: expected a table for {show_dataset(dataset)}, got tables for "
                    f"{', '.join(map(show_dataset, known)) or 'nothing'}. Do add it."
                )
            return known[dataset]

        return lookup
    if callable(tables):
        return lambda dataset: tables(_key(dataset))

    if tables is None or isinstance(tables, str):
        raise TypeError(
            f"`tables`: expected a tensor, a mapping or a function, got {tables!r}. Do pass P(v)."
        )

    def only(dataset: Dataset) -> Any:
        if dataset != Dataset() and estimand.available != (dataset,):
            raise ValueError(
                f"`tables`: expected a mapping with a table for {show_dataset(dataset)}, got a "
                "single table, which is taken for P(v). Do pass {frozenset({...}): table, ...}."
            )
        return tables

    return only


def _check_table(table: Tensor, names: list[str], dataset: Dataset) -> None:
    intervened, label = len(dataset.intervened), show_dataset(dataset)
    if table.dim() != len(names) or not table.numel() or table.is_complex():
        raise ValueError(
            f"The table of {label}: expected {len(names)} axes, for {', '.join(names)}, got "
            f"{table.dtype} of shape {tuple(table.shape)}. Do order them so, intervened variables "
            "first."
        )
    sums = table.double().flatten(intervened).sum(-1) if len(names) > intervened else table
    if not bool((table >= 0).all()) or not bool(((sums - 1).abs() < 1e-4).all()):
        raise ValueError(
            f"The table of {label}: expected probabilities that sum to one over "
            f"{', '.join(names[intervened:])}, got sums from {float(sums.min()):g} to "
            f"{float(sums.max()):g} and a least entry of {float(table.min()):g}. Do normalise it."
        )


def _check_sizes(table: Tensor, names: list[str], dataset: Dataset, sizes: dict[str, int]) -> None:
    for name, size in zip(names, table.shape, strict=True):
        if sizes.setdefault(name, size) != size:
            raise ValueError(
                f"At node '{name}', in the table of {show_dataset(dataset)}: expected "
                f"{sizes[name]} levels, as in the tables before, got {size}. Do use the same "
                "levels everywhere."
            )


def _levels(estimand: Estimand, do: Mapping[str, int], given: Mapping[str, int]) -> dict[Var, int]:
    """The variables that the caller has fixed, checked."""
    fixed: dict[Var, int] = {}
    for role, levels in (("do", do), ("given", given)):
        if not isinstance(levels, Mapping):
            raise TypeError(
                f"`{role}`: expected levels by name, got {levels!r}. Do write {{'x': 1}}."
            )
    for role, names, levels in (("do", estimand.do, do), ("given", estimand.given, given)):
        for name in levels:
            if name not in names:
                raise ValueError(
                    f"At node '{name}', in `{role}`: expected levels of "
                    f"{', '.join(names) or 'nothing'}, as in {estimand.query}. Do drop it."
                )
        for name in estimand.relevant.intersection(names):
            if name in levels:
                fixed[Var(name)] = _level(name, role, levels[name])
            elif Var(name) in estimand.expression.free:
                raise ValueError(
                    f"At node '{name}', in `{role}`: expected a level, since {estimand.query} "
                    f"depends on it, got none. Do pass {role}={{'{name}': 0}}."
                )
    return fixed


def _level(name: str, role: str, level: object) -> int:
    try:
        return operator.index(level)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"At node '{name}', in `{role}`: expected an integer level, got {level!r}. Do number "
            "the levels from zero."
        ) from None
