"""What a dataset says about the mechanisms behind a set of variables.

Throughout, :math:`Q[D]` is the distribution of D when everything else is set: the product of the
mechanisms of D, averaged over the hidden causes (Tian & Pearl 2002, A general identification
condition for causal effects).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from pyro_causal.graph._bits import Bits
from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.expression import (
    ONE,
    Dataset,
    Expression,
    Probability,
    Var,
    fraction,
    product,
    total,
)

__all__ = ["Descent", "View", "descend"]


class Descent(NamedTuple):
    """The way down to :math:`Q[D]`: ancestral sets and districts in turn, each within the last.

    It ends in `D` if the dataset identifies it, and else in a district of which all nodes cause it.
    """

    steps: tuple[tuple[int, int], ...]  # (ancestral set, district in it)
    found: bool

    @property
    def stuck(self) -> int:
        """The last district."""
        return self.steps[-1][1]


def descend(bits: Bits, wanted: int, within: int) -> Descent:
    """Find the way to a district, in the subgraph of `within`.

    Tian & Pearl 2003, On the identification of causal effects, function Identify: sum out what does
    not cause it, keep its district, and so on. Complete by Huang & Valtorta 2006.
    """
    if bits.district(wanted, within) == wanted:
        return Descent(((within, wanted),), found=True)
    steps: list[tuple[int, int]] = []
    while within != wanted:
        ancestors = bits.ancestors(wanted, within)
        if steps and ancestors == within:
            return Descent(tuple(steps), found=False)
        within = bits.district(wanted, ancestors)
        steps.append((ancestors, within))
    return Descent(tuple(steps), found=True)


class View:
    """A dataset: which nodes it sets, which it shows, and the graph of those that it shows."""

    def __init__(self, g: ADMG, dataset: Dataset) -> None:
        self.g = g
        self.dataset = dataset
        self.intervened = g.mask(dataset.intervened)
        rest = g.bits.all & ~self.intervened
        self.observed = rest if dataset.observed is None else g.mask(dataset.observed)
        self.hidden = rest & ~self.observed

    @cached_property
    def _do(self) -> frozenset[Var]:
        return frozenset(map(Var, self.dataset.intervened))

    def offers(self, wanted: int, hidden: int) -> bool:
        """Whether it shows the mechanisms of `wanted`, with `hidden` nodes averaged over.

        It must neither replace one of these mechanisms nor hide a node that the query sets.
        """
        behind = self.g.bits.ancestors(wanted, wanted | hidden | self.hidden)
        return (
            not wanted & ~self.observed
            and not behind & self.intervened
            and not behind & ~wanted & ~hidden
        )

    def express(self, bits: Bits, within: int, descents: Mapping[int, Descent]) -> list[Expression]:
        """:math:`Q[D]` at the ends of some descents in `within`, in terms of the dataset."""
        plain = [wanted for wanted, descent in descents.items() if len(descent.steps) == 1]
        together = bits.ancestors(sum(plain), within)
        joined = [wanted for wanted in plain if bits.district(wanted, together) == wanted]
        factors = self._conditionals(bits, together, sum(joined))
        for wanted, descent in descents.items():
            if wanted not in joined:
                factors.append(self._descend(bits, descent))
        return factors

    def _descend(self, bits: Bits, descent: Descent) -> Expression:
        ancestors, within = descent.steps[0]
        kernel = product(self._conditionals(bits, ancestors, within))
        for ancestors, district in descent.steps[1:]:
            kernel = total(self._vars(within & ~ancestors), kernel)
            if district != ancestors:
                kernel = self._district(bits, ancestors, district, kernel)
            within = district
        return kernel

    def _vars(self, mask: int) -> frozenset[Var]:
        return frozenset(map(Var, self.g.names(mask)))

    def _conditionals(self, bits: Bits, ancestors: int, nodes: int) -> list[Expression]:
        """The chain of conditionals of some districts of an ancestral set.

        Each node needs no more than its Markov pillow as a condition, and may have any more of the
        nodes before it. So it joins an earlier group that contains its pillow.
        """
        groups: list[tuple[int, int]] = []  # of nodes, and what they are conditioned on
        before = 0
        for node in bits.order:
            bit = 1 << node
            before |= bit & ancestors
            if bit & nodes:
                near = bits.district(bit, before)
                pillow = (near | bits.parents_of(near)) & before & ~bit
                home = next((i for i, group in enumerate(groups) if not pillow & ~sum(group)), None)
                if home is None:
                    groups.append((bit, pillow))
                else:
                    groups[home] = (groups[home][0] | bit, groups[home][1])
        return [
            Probability(self._vars(of), self._vars(given), self._do, self.dataset)
            for of, given in groups
        ]

    def _district(self, bits: Bits, within: int, district: int, kernel: Expression) -> Expression:
        """One district's factor of a kernel over `within`, of which all other nodes are summed.

        The conditionals of consecutive nodes multiply to one fraction, so the order takes the
        nodes of the district in as few runs as it can.
        """
        factors = []
        before, rest = 0, within
        while rest & district:
            for part in (rest & ~district, rest & district):
                run = self._run(bits, rest, part)
                if run and part & district:
                    upto = total(self._vars(rest & ~run), kernel)
                    below = total(self._vars(rest), kernel) if before else ONE
                    factors.append(fraction(upto, below))
                before |= run
                rest &= ~run
        return product(factors)

    @staticmethod
    def _run(bits: Bits, rest: int, part: int) -> int:
        """The nodes of `part` that can come next in a topological order, one after the other."""
        run = 0
        for node in bits.order:
            bit = 1 << node
            if part & bit and not bits.parents[node] & rest & ~run:
                run |= bit
        return run
