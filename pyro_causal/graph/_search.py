"""The search for a formula: which factors a query needs, and which datasets give them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import combinations, islice
from operator import and_
from typing import NamedTuple

from pyro_causal.graph._bits import Bits, elements
from pyro_causal.graph._hedge import Hedge, Unidentifiable, find_hedge
from pyro_causal.graph._views import Descent, View, descend
from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.estimand import show_dataset
from pyro_causal.graph.expression import Expression, Var, fraction, product, total

__all__ = ["Search", "exchange"]

MOST_TRIALS = 4096  # sets of nodes to average over, tried for datasets that hide some nodes


def exchange(bits: Bits, y: int, x: int, w: int) -> tuple[int, int]:
    """Move what is given to what is set where rule 2 allows it, and drop what then has no effect.

    After that, P(y | do(x), w) is identifiable iff P(y, w | do(x)) is (IDC).
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
        self.unseen = reduce(and_, (view.hidden for view in views)) & ~(y | x | w)
        self.partial = any(view.hidden & ~self.unseen for view in views)
        self.projections: dict[int, Bits] = {0: g.bits}

    def run(self) -> Expression | None:
        """A formula with as few nodes as possible, if there is one."""
        first = self.decide()
        return None if first is None else self._express(self._least(first))

    def decide(self) -> int | None:
        """Nodes that may be hidden for the query to be identifiable, if it is."""
        return next((hidden for hidden in self._trials() if self._settles(hidden)), None)

    def _trials(self) -> Iterator[int]:
        """What no dataset records; and if they record different nodes, more of them, few first."""
        yield self.unseen
        if self.partial:
            free = [1 << node for node in elements(self._causes() & ~self.unseen)]
            sets = (sum(some) for k in range(1, len(free) + 1) for some in combinations(free, k))
            yield from (self.unseen | some for some in islice(sets, MOST_TRIALS))

    def _causes(self) -> int:
        """The nodes that a formula might do without."""
        fixed = self.y | self.x | self.w
        return self.g.bits.ancestors(fixed) & ~fixed

    def _least(self, hidden: int) -> int:
        """Hide one node after the other, effects first, while the query stays identifiable."""
        causes = self._causes() & ~hidden
        return self._hide(hidden, [1 << n for n in reversed(self.g.bits.order) if causes >> n & 1])

    def _hide(self, hidden: int, some: list[int]) -> int:
        """The same by halves: if all can be hidden, then each after the other."""
        if not some or self._settles(hidden | sum(some)):
            return hidden | sum(some)
        if len(some) == 1:
            return hidden
        half = len(some) // 2
        return self._hide(self._hide(hidden, some[:half]), some[half:])

    def _project(self, hidden: int) -> Bits:
        if hidden not in self.projections:
            known = max((h for h in self.projections if not h & ~hidden), key=int.bit_count)
            self.projections[hidden] = self.projections[known].project(hidden & ~known)
        return self.projections[hidden]

    def _settles(self, hidden: int) -> bool:
        return all(factor.view for factor in self.factors(hidden))

    def factors(self, hidden: int) -> Iterator[Factor]:
        """What the query needs: the districts of what causes y and w, others than x."""
        bits = self._project(hidden)
        inside = bits.ancestors(self.y | self.w, bits.all & ~hidden & ~self.x)
        for district in bits.districts(inside):
            yield self._factor(hidden, district)

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
        wanted = next(factor.wanted for factor in self.factors(self.unseen) if not factor.view)
        found = {view.dataset: self._hedge(view, wanted) for view in self.views}
        hedges = {dataset: hedge for dataset, hedge in found.items() if hedge}
        reasons = [self._reason(view, wanted, found[view.dataset]) for view in self.views]
        doubt = (
            " The datasets record different nodes, for which no complete criterion is known: no "
            f"formula was found in {MOST_TRIALS} trials at most, which is no proof that there is "
            "none."
        )
        parents = _list(self.g, self._project(self.unseen).parents_of(wanted) & ~wanted)
        leaving = f"leaves {_list(self.g, wanted)} alone"
        experiment = f"sets {parents} and {leaving}" if parents else leaving
        return Unidentifiable(
            f"{query} cannot be identified: {'; '.join(reasons)}.{doubt * self.partial} Do observe "
            f"a hidden cause, or pass data that {experiment} by available=[...].",
            query=query,
            hedge=next(iter(hedges.values()), None),
            hedges=hedges,
        )

    def _hedge(self, view: View, wanted: int) -> Hedge | None:
        """The hedge around a factor in a dataset that shows its mechanisms."""
        if not view.offers(wanted, self.unseen):
            return None
        stuck = self.descent(view, self.unseen, wanted).stuck
        return find_hedge(self.g, self._bits(view, self.unseen), stuck, wanted)

    def _reason(self, view: View, wanted: int, hedge: Hedge | None) -> str:
        """Why a dataset does not give a factor."""
        label, names = show_dataset(view.dataset), _list(self.g, wanted)
        if hedge:
            causes = ", ".join(name for name in hedge.forest.nodes if name not in hedge.roots)
            effect = f"the effect of {causes} on {names} (a hedge)"
            return f"in {label}, hidden causes {', '.join(hedge.hidden)} blur {effect}"
        if wanted & view.intervened:
            return f"{label} replaces the mechanism of {_list(self.g, wanted & view.intervened)}"
        return f"{label} does not record all that it takes"

    def _vars(self, mask: int) -> list[Var]:
        return [Var(name) for name in self.g.names(mask)]


def _list(g: ADMG, mask: int) -> str:
    return ", ".join(g.names(mask))
