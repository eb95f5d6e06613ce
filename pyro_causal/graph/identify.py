"""Identification: which causal effects the data at hand determine, and by which formula."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice
from typing import NamedTuple

from pyro_causal.graph._bits import Bits, elements
from pyro_causal.graph._hedge import Hedge, Unidentifiable, find_hedge
from pyro_causal.graph._views import Descent, View, descend
from pyro_causal.graph.admg import ADMG, Names
from pyro_causal.graph.estimand import Estimand, Member, as_datasets, show_dataset
from pyro_causal.graph.expression import Dataset, Expression, Var, fraction, product, total

__all__ = ["Hedge", "Search", "Unidentifiable", "c_factor", "identify", "is_identifiable"]

MOST_TRIALS = 4096  # sets of nodes to average over, tried for datasets that hide some nodes


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
      the axes of ``evaluate``.
    - ``available``: the datasets. A set of names is an experiment on them that records all other
      nodes, and the empty set is observational data; a pair ``(intervened, observed)`` is an
      experiment that records some nodes only.

    **Raises** ``Unidentifiable``: no formula exists; its ``hedge`` is the proof. Where some dataset
    records some nodes only, no complete criterion is known, and the message says so.
    ``ValueError``: unknown nodes, sets that overlap, no outcome, no dataset.

    **References**

    - Shpitser & Pearl 2006, Identification of conditional interventional distributions, theorem 6.
    - Lee, Correa & Bareinboim 2019, General identifiability with arbitrary surrogate experiments,
      theorem 3.
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
    search, query = _search(g, outcome, do, given, available)
    found = search.run()
    if found is None:
        raise search.failure(str(query))
    datasets = tuple(view.dataset for view in search.views)
    return Estimand(str(query), query.outcome, query.do, query.given, found, g, datasets)


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
    return _search(g, outcome, do, given, available)[0].decide() is not None


class Query(NamedTuple):
    """A conditional interventional distribution."""

    outcome: tuple[str, ...]
    do: tuple[str, ...]
    given: tuple[str, ...]

    def __str__(self) -> str:
        action, condition = ", ".join(self.do), ", ".join(self.given)
        bar = f" | {condition}" if condition else ""
        return f"P{f'_{{{action}}}' if action else ''}({', '.join(self.outcome)}{bar})"


def _search(
    g: ADMG, outcome: Names, do: Names, given: Names, available: Iterable[Member]
) -> tuple[Search, Query]:
    """Check a question, and prepare the search for its answer."""
    outcome = (outcome,) if isinstance(outcome, str) else tuple(outcome)
    y, x, w = g.masks(outcome=outcome, do=do, given=given)
    if not y:
        raise ValueError("`outcome`: expected at least one node, got none. Do name one.")
    views = [View(g, dataset) for dataset in as_datasets(g, available)]
    return Search(g, y, *exchange(g.bits, y, x, w), views), Query(outcome, g.names(x), g.names(w))


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
    mask = g.mask(district, "`district`")
    outside = g.names(g.bits.parents_of(mask) & ~mask)
    return identify(g, district, do=outside, available=available)


def exchange(bits: Bits, y: int, x: int, w: int) -> tuple[int, int]:
    """Move what is given to what is set where rule 2 allows it, and drop what then has no effect.

    After that, a hedge for P(y, w | do(x)) is one for P(y | do(x), w), too (IDC, theorem 6). The
    verdict itself does not need it, since factors that only condition are left out anyway.
    """
    progress = True
    while progress:
        progress = False
        for node in elements(w):
            bit = 1 << node
            if not bits.cut(x, bit).connected(bit, x | (w & ~bit)) & y:
                x, w, progress = x | bit, w & ~bit, True
    return x & bits.cut(x).ancestors(y | w), w


class Factor(NamedTuple):
    """One :math:`Q[D]` that the query needs, and how a dataset gives it, if one does."""

    wanted: int
    view: View | None
    descent: Descent | None


class Search:
    """The search for an estimand of P(y | do(x), w), in which no w can be exchanged for an action.

    The nodes in `hidden` are averaged over beforehand, in the query and in the datasets alike.
    """

    def __init__(self, g: ADMG, y: int, x: int, w: int, views: list[View]) -> None:
        self.g, self.y, self.x, self.w, self.views = g, y, x, w, views
        self.projections: dict[int, Bits] = {0: g.bits}

    def run(self) -> Expression | None:
        """The shortest of a few formulas, if there is one."""
        first = self.decide()
        if first is None:
            return None
        order = self.g.bits.order
        sets = (self._least(first, order[::-1]), self._least(first, order), first)
        found = [self._express(hidden) for hidden in dict.fromkeys(sets)]
        return min(found, key=lambda expression: len(expression.text))

    def decide(self) -> int | None:
        """Nodes that may be hidden for the query to be identifiable, if it is: mostly none."""
        return next((h for h in self._trials() if self._settled(self.factors(h))), None)

    def _trials(self) -> Iterator[int]:
        """Sets of nodes to hide, small ones first; none if all datasets show everything."""
        yield 0
        if any(view.hidden for view in self.views):
            free = [1 << node for node in elements(self._causes())]
            sets = (sum(some) for k in range(1, len(free) + 1) for some in combinations(free, k))
            yield from islice(sets, MOST_TRIALS)

    def _causes(self) -> int:
        """The nodes that a formula might do without."""
        fixed = self.y | self.x | self.w
        return self.g.bits.ancestors(fixed) & ~fixed

    def _least(self, hidden: int, order: Sequence[int]) -> int:
        """Hide one node after the other, as long as the query stays identifiable."""
        for node in order:
            bit = 1 << node
            if bit & self._causes() & ~hidden and self._settled(self.factors(hidden | bit)):
                hidden |= bit
        return hidden

    def _project(self, hidden: int) -> Bits:
        if hidden not in self.projections:
            known = max((h for h in self.projections if not h & ~hidden), key=int.bit_count)
            self.projections[hidden] = self.projections[known].project(hidden & ~known)
        return self.projections[hidden]

    @staticmethod
    def _settled(factors: list[Factor]) -> bool:
        return all(factor.view for factor in factors)

    def factors(self, hidden: int) -> list[Factor]:
        """What the query needs: the districts of what causes y and w, others than x."""
        bits = self._project(hidden)
        inside = bits.ancestors(self.y | self.w, bits.all & ~hidden & ~self.x)
        return [self._factor(hidden, d) for d in self._relevant(bits, bits.districts(inside))]

    def _relevant(self, bits: Bits, districts: list[int]) -> list[int]:
        """The districts that a chain of shared variables, not given or set, ties to the outcome."""
        scopes = [(d | bits.parents_of(d)) & ~self.w & ~self.x for d in districts]
        reached = self.y
        progress = True
        while progress:
            progress = False
            for scope in scopes:
                if scope & reached and scope & ~reached:
                    reached, progress = reached | scope, True
        return [d for d, scope in zip(districts, scopes, strict=True) if scope & reached]

    def _factor(self, hidden: int, wanted: int) -> Factor:
        for view in self.views:
            if view.offers(wanted, hidden):
                descent = self.descent(view, hidden, wanted)
                if descent.found:
                    return Factor(wanted, view, descent)
        return Factor(wanted, None, None)

    def descent(self, view: View, hidden: int, wanted: int) -> Descent:
        """The way to a factor in a dataset."""
        return descend(self._bits(view, hidden), wanted, view.observed & ~hidden)

    def _bits(self, view: View, hidden: int) -> Bits:
        return self._project(view.hidden | (hidden & ~view.intervened))

    def _express(self, hidden: int) -> Expression:
        """Multiply the factors, sum over what is neither asked nor known, and condition."""
        kernels: list[Expression] = []
        everything = 0
        found: dict[View, dict[int, Descent]] = {}
        for wanted, view, descent in self.factors(hidden):
            everything |= wanted
            if view is not None and descent is not None:
                found.setdefault(view, {})[wanted] = descent
        for view, descents in found.items():
            shown = self._bits(view, hidden)
            kernels += view.express(shown, view.observed & ~hidden, descents)
        joint = total(self._vars(everything & ~self.y & ~self.w), product(kernels))
        if not everything & self.w:
            return joint
        return fraction(joint, total(self._vars(self.y), joint))

    def failure(self, query: str) -> Unidentifiable:
        """Why there is no formula: what blocks the first factor that no dataset gives."""
        wanted = next(factor.wanted for factor in self.factors(0) if not factor.view)
        hedges: dict[Dataset, Hedge] = {}
        reasons = []
        for view in self.views:
            label = show_dataset(view.dataset)
            if view.offers(wanted, 0):
                stuck = self.descent(view, 0, wanted).stuck
                hedge = find_hedge(self.g, self._bits(view, 0), stuck, wanted)
                hedges[view.dataset] = hedge
                reasons.append(
                    f"in {label}, hidden causes {', '.join(hedge.hidden)} blur how "
                    f"{_list(self.g, stuck & ~wanted)} act on {_list(self.g, wanted)} (a hedge)"
                )
            elif wanted & view.intervened:
                replaced = _list(self.g, wanted & view.intervened)
                reasons.append(f"{label} replaces the mechanism of {replaced}")
            else:
                reasons.append(f"{label} does not record all that it takes")
        partial = any(view.hidden for view in self.views)
        doubt = (
            " Some datasets record a part of the nodes only, for which no complete criterion is "
            "known: no formula was found, which is no proof that there is none."
        )
        parents = _list(self.g, self.g.bits.parents_of(wanted) & ~wanted)
        experiment = (
            f"sets {parents} and leaves {_list(self.g, wanted)} alone"
            if parents
            else (f"leaves {_list(self.g, wanted)} alone")
        )
        return Unidentifiable(
            f"{query} cannot be identified: {'; '.join(reasons)}.{doubt if partial else ''} Do "
            f"observe a hidden cause, or pass data that {experiment} by available=[...].",
            query=query,
            hedge=next(iter(hedges.values()), None),
            hedges=hedges,
        )

    def _vars(self, mask: int) -> list[Var]:
        return [Var(name) for name in self.g.names(mask)]


def _list(g: ADMG, mask: int) -> str:
    return ", ".join(g.names(mask))
