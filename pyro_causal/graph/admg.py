"""Acyclic directed mixed graphs: causes, hidden common causes, and what separates what."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence, Set, Sized
from typing import TypeAlias

from pyro_causal.graph._bits import Bits, elements, mask_of

__all__ = ["ADMG", "Names", "do_calculus"]

Names: TypeAlias = str | Iterable[str]  # one name, or several


class ADMG:
    r"""An acyclic directed mixed graph.

    An edge :math:`a \to b` says that a is a direct cause of b, and :math:`a \leftrightarrow b` that
    a hidden variable is a cause of both. Immutable and hashable. Sets of nodes are given as one
    name or several, and come back as frozensets.

    **Arguments**

    - ``directed``: pairs (cause, effect).
    - ``bidirected``: pairs that share a hidden cause, in either order.
    - ``nodes``: names, for nodes without edges and for the order of ``g.nodes``. Nodes that only
      edges mention follow in the order of the edges.

    **Raises** ``ValueError``: a directed cycle, which is printed; an edge from a node to itself; an
    edge or a node given twice. ``TypeError``: a name that is no string, an edge that is no pair.

    **References** Richardson 2003, Markov properties for acyclic directed mixed graphs.

    **Example** A front door: x acts on y through m alone, and a hidden cause acts on x and y.

    >>> from pyro_causal.graph import ADMG
    >>> g = ADMG(directed=[("x", "m"), ("m", "y")], bidirected=[("x", "y")])
    >>> g
    ADMG('x -> m; m -> y; x <-> y')
    >>> sorted(g.ancestors("y")), g.m_separated("x", "y", given="m")
    (['m', 'x', 'y'], False)
    """

    __slots__ = ("_index", "bits", "nodes")

    nodes: tuple[str, ...]
    bits: Bits
    _index: dict[str, int]

    def __init__(
        self,
        directed: Iterable[tuple[str, str]] = (),
        bidirected: Iterable[tuple[str, str]] = (),
        nodes: Names = (),
    ) -> None:
        arrows = [_pair(edge, "directed", "->") for edge in directed]
        arcs = [_pair(edge, "bidirected", "<->") for edge in bidirected]
        named = [_name(node) for node in ([nodes] if isinstance(nodes, str) else nodes)]
        index: dict[str, int] = {}
        for node in [*named, *(end for edge in (*arrows, *arcs) for end in edge)]:
            index.setdefault(node, len(index))
        _no_duplicates(named, arrows, arcs)
        parents, siblings = [0] * len(index), [0] * len(index)
        for a, b in arrows:
            parents[index[b]] |= 1 << index[a]
        for a, b in arcs:
            siblings[index[a]] |= 1 << index[b]
            siblings[index[b]] |= 1 << index[a]
        self._set(tuple(index), Bits(parents, siblings))
        if len(self.bits.order) < len(index):
            raise ValueError(
                f"The directed edges form a cycle, {self._cycle()}: expected an acyclic graph. "
                "Do drop one of its edges, or give the variables an index of time."
            )

    def _set(self, nodes: tuple[str, ...], bits: Bits) -> None:
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "_index", {name: i for i, name in enumerate(nodes)})

    @classmethod
    def _of(cls, nodes: tuple[str, ...], bits: Bits) -> ADMG:
        """A graph from masks that are known to be sound."""
        graph = cls.__new__(cls)
        graph._set(nodes, bits)
        return graph

    def _cycle(self) -> str:
        """A directed cycle, written out."""
        stuck = self.bits.all & ~mask_of(self.bits.order)
        path = [next(elements(stuck))]
        while path.count(path[-1]) < 2:  # against the arrows, among nodes that all have a parent
            path.append(next(elements(self.bits.parents[path[-1]] & stuck)))
        return " -> ".join(self.nodes[i] for i in reversed(path[path.index(path[-1]) :]))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"An ADMG cannot be changed: expected no assignment to '{name}'. Do build a new one."
        )

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[object, ...]:
        return ADMG, (self.directed, self.bidirected, self.nodes)

    def __eq__(self, other: object) -> bool:
        """Whether nodes and edges are the same, in whatever order."""
        return isinstance(other, ADMG) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[frozenset[object], ...]:
        return (
            frozenset(self.nodes),
            frozenset(self.directed),
            frozenset(map(frozenset, self.bidirected)),
        )

    def __repr__(self) -> str:
        lone = [
            name
            for i, name in enumerate(self.nodes)
            if not self.bits.parents[i] | self.bits.children[i] | self.bits.siblings[i]
        ]
        edges = [f"{a} -> {b}" for a, b in self.directed]
        edges += [f"{a} <-> {b}" for a, b in self.bidirected]
        return f"ADMG('{'; '.join([*edges, *lone])}')"

    @property
    def directed(self) -> tuple[tuple[str, str], ...]:
        """The directed edges (cause, effect), by cause."""
        return tuple(
            (name, self.nodes[child])
            for i, name in enumerate(self.nodes)
            for child in elements(self.bits.children[i])
        )

    @property
    def bidirected(self) -> tuple[tuple[str, str], ...]:
        """The bidirected edges, each once."""
        return tuple(
            (name, self.nodes[other])
            for i, name in enumerate(self.nodes)
            for other in elements(self.bits.siblings[i] >> i << i)
        )

    def mask(self, names: Names, role: str = "a set of nodes") -> int:
        """The names as a bit mask.

        **Raises** ``ValueError``: a name that is not in the graph, or twice in the set.
        ``TypeError``: no names at all.
        """
        mask = 0
        if not isinstance(names, Iterable):
            raise TypeError(
                f"In {role}: expected a name, or several, got {names!r}. Do write ('a', 'b')."
            )
        for name in [names] if isinstance(names, str) else names:
            if not isinstance(name, str) or name not in self._index:
                close = difflib.get_close_matches(str(name), self.nodes, 1)
                remedy = f"Did you mean '{close[0]}'?" if close else "Do add it to the graph."
                raise ValueError(
                    f"At node '{name}', in {role}: expected one of the nodes "
                    f"{', '.join(self.nodes) or '(there are none)'}. {remedy}"
                )
            bit = 1 << self._index[name]
            if mask & bit:
                raise ValueError(
                    f"At node '{name}', in {role}: expected it once, got it twice. Do drop one."
                )
            mask |= bit
        return mask

    def masks(self, **sets: Names) -> tuple[int, ...]:
        """Several sets as bit masks, which must not overlap; the keywords name them in errors.

        **Raises** ``ValueError``: as :meth:`mask`; a node in two of the sets.
        """
        masks = {role: self.mask(names, f"`{role}`") for role, names in sets.items()}
        seen: dict[str, str] = {}
        for role, mask in masks.items():
            for name in self.names(mask):
                if name in seen:
                    raise ValueError(
                        f"At node '{name}', in `{role}`: expected disjoint sets, but it is in "
                        f"`{seen[name]}`, too. Do drop it from one of them."
                    )
                seen[name] = role
        return tuple(masks.values())

    def names(self, mask: int) -> tuple[str, ...]:
        """The names of a bit mask, in the order of ``g.nodes``."""
        return tuple(self.nodes[i] for i in elements(mask))

    def parents(self, x: Names) -> frozenset[str]:
        """The direct causes of the nodes."""
        return frozenset(self.names(self.bits.parents_of(self.mask(x))))

    def children(self, x: Names) -> frozenset[str]:
        """The direct effects of the nodes."""
        children = (self.bits.children[i] for i in elements(self.mask(x)))
        return frozenset(name for mask in children for name in self.names(mask))

    def siblings(self, x: Names) -> frozenset[str]:
        """The nodes that share a hidden cause with one of the nodes."""
        return frozenset(self.names(self.bits.siblings_of(self.mask(x))))

    def ancestors(self, x: Names) -> frozenset[str]:
        """The nodes and all their direct and indirect causes."""
        return frozenset(self.names(self.bits.ancestors(self.mask(x))))

    def descendants(self, x: Names) -> frozenset[str]:
        """The nodes and all their direct and indirect effects."""
        return frozenset(self.names(self.bits.descendants(self.mask(x))))

    def district(self, x: Names) -> frozenset[str]:
        """The districts (c-components) of the nodes."""
        return frozenset(self.names(self.bits.district(self.mask(x))))

    def districts(self) -> tuple[frozenset[str], ...]:
        """All districts (c-components): the sets that bidirected edges connect."""
        return tuple(frozenset(self.names(mask)) for mask in self.bits.districts())

    def topological_order(self) -> tuple[str, ...]:
        """The nodes, causes first; else in the order of ``g.nodes``."""
        return tuple(self.nodes[i] for i in self.bits.order)

    def intervene(self, x: Names) -> ADMG:
        r"""The graph under :math:`do(x)`: every edge into the nodes is cut."""
        return ADMG._of(self.nodes, self.bits.cut(incoming=self.mask(x)))

    def subgraph(self, x: Names) -> ADMG:
        """The nodes and the edges among them."""
        return self._renumbered(self.bits, self.mask(x))

    def latent_projection(self, hidden: Names) -> ADMG:
        """The graph of the other nodes, when these are not observed.

        Directed paths through hidden nodes become directed edges, and whatever a hidden node makes
        two nodes share becomes a bidirected edge. Separation among the other nodes stays as it is,
        and so does every effect of theirs.

        **References** Verma & Pearl 1990, Equivalence and synthesis of causal models.
        """
        mask = self.mask(hidden, "`hidden`")
        return self._renumbered(self.bits.project(mask), self.bits.all & ~mask)

    def _renumbered(self, bits: Bits, keep: int) -> ADMG:
        """The subgraph of `keep`, its nodes numbered from zero."""
        kept = tuple(elements(keep))
        place = {node: i for i, node in enumerate(kept)}

        def renumber(mask: int) -> int:
            return mask_of(place[node] for node in elements(mask & keep))

        parents = [renumber(bits.parents[node]) for node in kept]
        siblings = [renumber(bits.siblings[node]) for node in kept]
        return ADMG._of(self.names(keep), Bits(parents, siblings))

    def m_separated(self, a: Names, b: Names, given: Names = ()) -> bool:
        """Whether every path between `a` and `b` is blocked by `given`.

        On a path, a node with two arrowheads is a collider. It blocks unless it is an ancestor of
        `given`; any other node blocks if it is in `given`.

        **Raises** ``ValueError``: unknown nodes, sets that overlap.
        """
        left, right, known = self.masks(a=a, b=b, given=given)
        return not self.bits.connected(left, known) & right


def do_calculus(g: ADMG, rule: int, y: Names, x: Names = (), z: Names = (), w: Names = ()) -> bool:
    r"""Whether a rule of the do-calculus applies.

    - Rule 1: :math:`P(y \mid do(x), z, w) = P(y \mid do(x), w)`, by :math:`G_{\bar x}`.
    - Rule 2: :math:`P(y \mid do(x), do(z), w) = P(y \mid do(x), z, w)`, by
      :math:`G_{\bar x \underline z}`.
    - Rule 3: :math:`P(y \mid do(x), do(z), w) = P(y \mid do(x), w)`, by
      :math:`G_{\bar x \bar{z(w)}}`.

    Each holds if x and w together m-separate y and z in the graph that it goes by: without the
    edges into x, those out of z (rule 2), or those into :math:`z(w)` (rule 3),
    the nodes of z that are no ancestors of w in :math:`G_{\bar x}`.

    **Raises** ``ValueError``: no such rule, unknown nodes, sets that overlap.

    **References** Pearl 2009, Causality, theorem 3.4.1.

    **Example**

    >>> from pyro_causal.graph import ADMG, do_calculus
    >>> bow = ADMG(directed=[("x", "y")], bidirected=[("x", "y")])
    >>> do_calculus(bow, 2, y="y", z="x"), do_calculus(bow, 3, y="x", z="y")
    (False, True)
    """
    outcome, fixed, changed, known = g.masks(y=y, x=x, z=z, w=w)
    if rule not in (1, 2, 3):
        raise ValueError(f"`rule`: expected 1, 2 or 3, got {rule!r}. Do pick one of the three.")
    bits = g.bits.cut(incoming=fixed, outgoing=changed if rule == 2 else 0)
    if rule == 3:
        bits = bits.cut(incoming=changed & ~bits.ancestors(known))
    return not bits.connected(changed, fixed | known) & outcome


def _name(node: object) -> str:
    if not isinstance(node, str):
        raise TypeError(
            f"At node {node!r}: expected a name, got {type(node).__name__}. Do write a string."
        )
    return node


def _pair(edge: object, kind: str, arrow: str) -> tuple[str, str]:
    """The two ends of an edge, checked; of a bidirected one, as a set, too."""
    pair = isinstance(edge, tuple | list) or (kind == "bidirected" and isinstance(edge, Set))
    if not (pair and isinstance(edge, Sized) and isinstance(edge, Iterable) and len(edge) == 2):
        raise TypeError(
            f"At the {kind} edge {edge!r}: expected a pair of names. Do write ('a', 'b')."
        )
    a, b = map(_name, edge)
    if a == b:
        raise ValueError(
            f"At node '{a}', the edge {a} {arrow} {b}: expected two different nodes. Do drop it."
        )
    return a, b


def _no_duplicates(
    nodes: Sequence[str], arrows: Sequence[tuple[str, str]], arcs: Sequence[tuple[str, str]]
) -> None:
    groups: list[tuple[str, list[tuple[str, ...]]]] = [
        ("node {}", [(node,) for node in nodes]),
        ("edge {} -> {}", list(arrows)),
        ("edge {} <-> {}", [tuple(sorted(arc)) for arc in arcs]),
    ]
    for text, things in groups:
        for thing, number in Counter(things).items():
            if number > 1:
                raise ValueError(
                    f"The {text.format(*thing)} is given twice: expected it once. Do drop one."
                )
