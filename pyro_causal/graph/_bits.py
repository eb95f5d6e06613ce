"""Acyclic directed mixed graphs on bit masks: the arithmetic below the names.

A node is an index, a set of nodes an integer with these bits set. Everything that a search repeats
is here, free of checks; :class:`pyro_causal.graph.ADMG` puts names and errors around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Bits", "elements", "mask_of"]


def elements(mask: int) -> Iterator[int]:
    """The indices in a mask, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def mask_of(indices: Iterable[int]) -> int:
    """The mask with these bits."""
    mask = 0
    for index in indices:
        mask |= 1 << index
    return mask


def _closure(start: int, steps: Sequence[int], within: int) -> int:
    """What one can reach from `start` by `steps` without leaving `within`, the start included."""
    found = todo = start & within
    while todo:
        low = todo & -todo
        new = steps[low.bit_length() - 1] & within & ~found
        found |= new
        todo = (todo ^ low) | new
    return found


class Bits:
    """Parents, children and siblings (ends of bidirected edges) of every node, as masks.

    `within` restricts a question to the subgraph of a mask; -1 is everything. `order` puts parents
    first, else it is that of the numbers; it leaves out nodes on or behind a cycle.
    """

    __slots__ = ("all", "children", "order", "parents", "siblings")

    def __init__(
        self,
        parents: Sequence[int],
        siblings: Sequence[int],
        order: tuple[int, ...] | None = None,
        children: Sequence[int] | None = None,
    ) -> None:
        if children is None:
            children = [0] * len(parents)
            for node, mask in enumerate(parents):
                for parent in elements(mask):
                    children[parent] |= 1 << node
        self.parents = tuple(parents)
        self.children = tuple(children)
        self.siblings = tuple(siblings)
        self.all = (1 << len(parents)) - 1
        self.order = tuple(self._topological()) if order is None else order

    def _topological(self) -> Iterator[int]:
        """Parents first, else as the nodes are numbered; nodes on or behind a cycle are missing."""
        done, waiting = 0, list(range(len(self.parents)))
        while True:
            ready = next((node for node in waiting if not self.parents[node] & ~done), None)
            if ready is None:
                return
            waiting.remove(ready)
            done |= 1 << ready
            yield ready

    def ancestors(self, nodes: int, within: int = -1) -> int:
        """The nodes and all their ancestors."""
        return _closure(nodes, self.parents, within)

    def descendants(self, nodes: int, within: int = -1) -> int:
        """The nodes and all their descendants."""
        return _closure(nodes, self.children, within)

    def district(self, nodes: int, within: int = -1) -> int:
        """The districts that the nodes lie in."""
        return _closure(nodes, self.siblings, within)

    def districts(self, within: int = -1) -> list[int]:
        """All districts, by their first member."""
        rest, found = within & self.all, []
        while rest:
            found.append(self.district(rest & -rest, within))
            rest &= ~found[-1]
        return found

    def parents_of(self, nodes: int) -> int:
        """All parents of the nodes; some may be among them."""
        union = 0
        for node in elements(nodes):
            union |= self.parents[node]
        return union

    def siblings_of(self, nodes: int) -> int:
        """All siblings of the nodes; some may be among them."""
        union = 0
        for node in elements(nodes):
            union |= self.siblings[node]
        return union

    def cut(self, incoming: int = 0, outgoing: int = 0) -> Bits:
        """Without the edges that have an arrowhead at `incoming` or a tail at `outgoing`."""
        parents = [
            0 if incoming >> node & 1 else mask & ~outgoing
            for node, mask in enumerate(self.parents)
        ]
        siblings = [
            0 if incoming >> node & 1 else mask & ~incoming
            for node, mask in enumerate(self.siblings)
        ]
        return Bits(parents, siblings, self.order)

    def project(self, hidden: int) -> Bits:
        """Hide nodes one by one, with the edges that stand for the paths through them.

        The hidden nodes keep their numbers and lose their edges.
        """
        parents, children = list(self.parents), list(self.children)
        siblings = list(self.siblings)
        for h in elements(hidden):
            bit = 1 << h
            for child in elements(children[h]):
                parents[child] = (parents[child] | parents[h]) & ~bit
                siblings[child] |= (siblings[h] | children[h]) & ~(1 << child)
            for parent in elements(parents[h]):
                children[parent] = (children[parent] | children[h]) & ~bit
            for sibling in elements(siblings[h]):
                siblings[sibling] = (siblings[sibling] | children[h]) & ~bit & ~(1 << sibling)
            parents[h] = children[h] = siblings[h] = 0
        return Bits(parents, siblings, self.order, children)

    def connected(self, start: int, given: int) -> int:
        """The nodes that some path m-connects to `start`, which is disjoint from `given`.

        The search is for walks, which may pass a node more than once: they go on through a collider
        in `given`, and through any other node that is not. Where a path has a collider above
        `given`, a walk goes down to that and comes back (Richardson 2003).
        """
        parents, children, siblings = self.parents, self.children, self.siblings
        by_tail, by_head = start, 0  # how the paths found so far arrive
        new_tail, new_head = start, 0
        while new_tail or new_head:
            tails = heads = 0
            for node in elements(new_tail & ~given):
                tails |= parents[node]
                heads |= children[node] | siblings[node]
            for node in elements(new_head & ~given):
                heads |= children[node]
            for node in elements(new_head & given):
                tails |= parents[node]
                heads |= siblings[node]
            new_tail, new_head = tails & ~by_tail, heads & ~by_head
            by_tail |= new_tail
            by_head |= new_head
        return (by_tail | by_head) & ~given
