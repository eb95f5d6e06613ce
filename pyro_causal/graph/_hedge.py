"""Why a query cannot be identified: hedges, and the error that carries them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyro_causal.graph._bits import Bits, elements, mask_of
from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.expression import Dataset

__all__ = ["Hedge", "Unidentifiable", "find_hedge"]


@dataclass(frozen=True)
class Hedge:
    r"""Two forests that make an effect unidentifiable.

    In each, bidirected edges join all nodes and each node has at most one child; both end in the
    same ``roots``, the second lies within the first, and what the query intervenes on meets the
    first alone. Two models can then agree on the data and differ in the effect on the roots.

    **Attributes** ``forest``, ``subforest``: the two as :class:`ADMG`; ``roots``: where they end.

    **References** Shpitser & Pearl 2006, Identification of joint interventional distributions in
    recursive semi-Markovian causal models.

    **Example**

    >>> from pyro_causal.graph import ADMG, Unidentifiable, identify
    >>> try:
    ...     identify(ADMG([("x", "y")], [("x", "y")]), "y", do="x")
    ... except Unidentifiable as why:
    ...     print(why.hedge)
    forest x -> y; x <-> y around y
    """

    forest: ADMG
    subforest: ADMG
    roots: frozenset[str]

    def __str__(self) -> str:
        inner = repr(self.subforest)[6:-2]
        return f"forest {repr(self.forest)[6:-2]} around {inner}"

    @property
    def hidden(self) -> tuple[str, ...]:
        """The bidirected edges that leave the smaller forest, written out."""
        inside = set(self.subforest.nodes)
        return tuple(f"{a} <-> {b}" for a, b in self.forest.bidirected if not {a, b} <= inside)


class Unidentifiable(ValueError):  # noqa: N818 (the domain's word for it)
    """The data cannot answer: models of the graph agree on it and differ in the query.

    (Where datasets record different nodes it may mean that no formula was found; the message says.)

    **Attributes**

    - ``query``: what was asked.
    - ``hedges``: for each dataset, why it does not give what is needed, if a hedge is the reason
      (it may also replace mechanisms, or not record enough); ``hedge``: the first of them or None.
    """

    def __init__(
        self,
        message: str,
        *,
        query: str = "",
        hedge: Hedge | None = None,
        hedges: Mapping[Dataset, Hedge] | None = None,
    ) -> None:
        super().__init__(message)
        self.query = query
        self.hedge = hedge
        self.hedges = dict(hedges or {})


def find_hedge(g: ADMG, bits: Bits, outer: int, inner: int) -> Hedge:
    """The hedge of a district `inner` and a district around it, of which all nodes cause it."""
    children: dict[int, int] = {}
    reached = todo = inner
    while todo:  # each node takes the child on a shortest way to the roots
        new = 0
        for node in elements(todo):
            for parent in elements(bits.parents[node] & outer & ~reached):
                children[parent] = node
                new |= 1 << parent
        reached |= new
        todo = new
    tree = _spanning_tree(bits, inner, inner & -inner)
    arcs = tree + _spanning_tree(bits, outer, inner)
    arrows = [(g.nodes[a], g.nodes[b]) for a, b in sorted(children.items())]
    forest = ADMG(arrows, [(g.nodes[a], g.nodes[b]) for a, b in arcs], g.names(outer))
    subforest = ADMG([], [(g.nodes[a], g.nodes[b]) for a, b in tree], g.names(inner))
    return Hedge(forest, subforest, frozenset(g.names(inner)))


def _spanning_tree(bits: Bits, within: int, start: int) -> list[tuple[int, int]]:
    """Bidirected edges that tie the rest of a district to its part `start`."""
    edges, reached, todo = [], start, list(elements(start))
    for node in todo:
        new = bits.siblings[node] & within & ~reached
        edges += [(node, other) for other in elements(new)]
        todo += elements(new)
        reached |= new
    assert reached == within | start, f"{mask_of(todo)} is no district"
    return edges
