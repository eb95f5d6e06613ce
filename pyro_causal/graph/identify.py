"""Identification: which causal effects the data at hand determine, and by which formula."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import NamedTuple

from pyro_causal.graph._hedge import Hedge, Unidentifiable
from pyro_causal.graph._search import Search, exchange
from pyro_causal.graph._views import View
from pyro_causal.graph.admg import ADMG, Names
from pyro_causal.graph.estimand import Estimand, Member, as_datasets

__all__ = ["Hedge", "Unidentifiable", "c_factor", "identify", "is_identifiable"]


def identify(
    g: ADMG,
    outcome: Names,
    do: Names = (),
    given: Names = (),
    available: Iterable[Member] = (frozenset(),),
) -> Estimand:
    r"""Express :math:`P(outcome \mid do(x), given)` in the distributions at hand.

    With observational data alone this decides as ID and IDC do, with experiments as gID; both are
    complete. Nodes that the formula can do without are averaged over first, which keeps it short.

    **Arguments**

    - ``outcome``, ``do``, ``given``: disjoint sets of nodes; the order of ``outcome`` is that of
      the axes of ``evaluate`` (of a set, that of ``g.nodes``).
    - ``available``: the datasets. A set of names is an experiment on them that records all other
      nodes, and the empty set is observational data; a pair ``(intervened, observed)`` of sets is
      an experiment that records some nodes only. (Two bare names are an experiment on both.)

    **Raises** ``Unidentifiable``: no formula exists. For observational data its ``hedge`` is the
    proof, else its ``hedges`` and its message together tell why no dataset will do. Where datasets
    record different nodes, no complete criterion is known, and the message says so.
    ``ValueError``: unknown nodes, sets that overlap, no outcome, no dataset.

    **References**

    - Shpitser & Pearl 2006, Identification of conditional interventional distributions.
    - Lee, Correa & Bareinboim 2019, General identifiability with arbitrary surrogate experiments.
    - Kivva, Mokhtarian, Etesami & Kiyavash 2022, Revisiting the general identifiability problem.
    - Kivva, Etesami & Kiyavash 2023, On identifiability of conditional causal effects.
    - Lee & Bareinboim 2020, Causal effect identifiability under partial-observability.

    **Example** A back door, and an experiment in place of it.

    >>> from pyro_causal.graph import ADMG, identify
    >>> g = ADMG([("z", "x"), ("z", "y"), ("x", "y")])
    >>> print(identify(g, "y", do="x"))
    Σ_{z} P(y | x, z) P(z)
    >>> print(identify(g, "y", do="x", available=[{"x"}]))
    P_{x}(y)
    """
    search, query = _prepare(g, outcome, do, given, available)
    found = search.run()
    if found is None:
        raise search.failure(str(query))
    datasets = tuple(view.dataset for view in search.views)
    relevant = frozenset(g.names(search.x | search.w))
    return Estimand(str(query), *query, relevant, found, g, datasets)


def is_identifiable(
    g: ADMG,
    outcome: Names,
    do: Names = (),
    given: Names = (),
    available: Iterable[Member] = (frozenset(),),
) -> bool:
    """Whether :func:`identify` finds a formula; quicker, as none is written.

    **Raises** ``ValueError``: as :func:`identify`.

    **Example**

    >>> from pyro_causal.graph import ADMG, is_identifiable
    >>> bow = ADMG([("x", "y")], [("x", "y")])
    >>> is_identifiable(bow, "y", do="x"), is_identifiable(bow, "y", do="x", available=[{"x"}])
    (False, True)
    """
    return _prepare(g, outcome, do, given, available)[0].decide() is not None


class _Query(NamedTuple):
    """A conditional interventional distribution."""

    outcome: tuple[str, ...]
    do: tuple[str, ...]
    given: tuple[str, ...]

    def __str__(self) -> str:
        action, condition = ", ".join(self.do), ", ".join(self.given)
        bar = f" | {condition}" if condition else ""
        return f"P{f'_{{{action}}}' if action else ''}({', '.join(self.outcome)}{bar})"


def _prepare(
    g: ADMG, outcome: Names, do: Names, given: Names, available: Iterable[Member]
) -> tuple[Search, _Query]:
    """Check a question, and prepare the search for its answer."""
    if isinstance(outcome, str | Set):
        outcome = g.names(g.mask(outcome, "`outcome`"))
    outcome = tuple(outcome) if isinstance(outcome, Iterable) else outcome
    y, x, w = g.masks(outcome=outcome, do=do, given=given)
    if not y:
        raise ValueError("`outcome`: expected at least one node, got none. Do name one.")
    views = [View(g, dataset) for dataset in as_datasets(g, available)]
    return Search(g, y, *exchange(g.bits, y, x, w), views), _Query(outcome, g.names(x), g.names(w))


def c_factor(g: ADMG, district: Names, available: Iterable[Member] = (frozenset(),)) -> Estimand:
    r"""Express the c-factor :math:`Q[D] = P(d \mid do(v \setminus d))` of a set of nodes.

    For a district (c-component) of the graph it always exists. It depends on the parents of the
    nodes, which are the ``do`` of the estimand.

    **Raises** as :func:`identify`.

    **References** Tian & Pearl 2002, A general identification condition for causal effects.

    **Example**

    >>> from pyro_causal.graph import ADMG, c_factor
    >>> verma = ADMG([("a", "b"), ("b", "c"), ("c", "d")], [("b", "d")])
    >>> c_factor(verma, ["b", "d"])
    P_{a, c}(b, d) = P(b | a) P(d | a, b, c)
    """
    district = district if isinstance(district, str | Set) else tuple(district)
    mask = g.mask(district, "`district`")
    outside = g.names(g.bits.parents_of(mask) & ~mask)
    return identify(g, district, do=outside, available=available)
