"""The truth about causal graphs, written from the definitions and without the package's algorithms.

Of the package, this module uses the nodes and the edges of an ADMG and nothing else. A
:class:`DiscreteModel` is a random semi-Markovian model with explicit latents, whose distributions
are sums over all that is hidden. Whether a query is identifiable is decided in three ways, which
must agree: hedges by a search over sets of nodes, Tian's reduction, and the rank of a Jacobian.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor

from pyro_causal.graph.admg import ADMG

__all__ = [
    "DiscreteModel",
    "RankVerdict",
    "brute_identifiable",
    "exchanged",
    "has_hedge",
    "is_hedge",
    "m_separated_by_paths",
    "random_admg",
    "random_query",
    "rank_test",
    "tian_identifiable",
]

Names = str | Iterable[str]
Nodes = frozenset[str]
Edge = tuple[str, str]
Member = Iterable[str] | tuple[Iterable[str], Iterable[str]]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def random_admg(
    rng: random.Random, n: int, *, directed: float = 0.4, bidirected: float = 0.3
) -> ADMG:
    """A graph in which neither the names nor the order of the nodes are topological."""
    order = rng.sample(LETTERS[:n], n)
    pairs = list(itertools.combinations(order, 2))
    arrows = [pair for pair in pairs if rng.random() < directed]
    arcs = [pair for pair in pairs if rng.random() < bidirected]
    return ADMG(arrows, arcs, nodes=rng.sample(order, n))


def random_query(
    rng: random.Random, g: ADMG, *, most: int = 2, conditional: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Disjoint outcome, do and given, in random order."""
    sizes = [rng.randint(1, most), rng.randint(1, most), rng.randint(1, most) if conditional else 0]
    nodes = rng.sample(g.nodes, min(sum(sizes), len(g.nodes)))
    outcome, rest = nodes[: sizes[0]], nodes[sizes[0] :]
    return tuple(outcome), tuple(rest[: sizes[1]]), tuple(rest[sizes[1] :])


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiscreteModel:
    """A model with one latent for each bidirected edge.

    ``latents`` has the probabilities of each latent's states. ``tables`` has the probabilities of
    each node; their axes are the parents in the order of ``g.nodes``, the node's latents in the
    order of ``g.bidirected``, and the node itself.
    """

    g: ADMG
    levels: Mapping[str, int]
    latents: Mapping[Edge, Tensor]
    tables: Mapping[str, Tensor]

    @classmethod
    def random(
        cls,
        g: ADMG,
        rng: random.Random,
        *,
        levels: int | Mapping[str, int] = 2,
        latent_states: int = 2,
        floor: float = 0.2,
    ) -> DiscreteModel:
        """Every probability is at least `floor` times that of a uniform distribution."""
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        sizes = dict.fromkeys(g.nodes, levels) if isinstance(levels, int) else dict(levels)

        def draw(*shape: int) -> Tensor:
            weights = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
            return floor / shape[-1] + (1 - floor) * weights / weights.sum(-1, keepdim=True)

        latents = {edge: draw(latent_states) for edge in g.bidirected}
        tables = {
            name: draw(
                *(sizes[parent] for parent in _parents(g, name)),
                *(latent_states for edge in g.bidirected if name in edge),
                sizes[name],
            )
            for name in g.nodes
        }
        return cls(g, sizes, latents, tables)

    def joint(self, do: Names = ()) -> Tensor:
        """P_do(v): the intervened names in sorted order, then the other nodes as in ``g.nodes``."""
        done = frozenset(_names(do))
        return self._sum(done, [name for name in self.g.nodes if name not in done])

    def marginal(self, do: Names, observed: Names) -> Tensor:
        """The same for some of the other nodes only."""
        kept = frozenset(_names(observed))
        return self._sum(frozenset(_names(do)), [name for name in self.g.nodes if name in kept])

    def table(self, member: Member) -> Tensor:
        """The table of a member of `available`."""
        if isinstance(member, tuple):
            return self.marginal(*member)
        return self.joint(member)

    def effect(self, outcome: Names, do: Names = (), given: Names = ()) -> Tensor:
        """P(outcome | do, given) at all levels; the axes are outcome, do and given, as listed."""
        y, x, w = _names(outcome), _names(do), _names(given)
        joint = self._sum(frozenset(x), [*y, *w])
        axes = [*sorted(x), *y, *w]
        joint = joint.permute([axes.index(name) for name in (*y, *x, *w)])
        if not w:
            return joint
        below = joint.sum(tuple(range(len(y))), keepdim=True) if y else joint  # no axes sum all
        return joint / below

    def _sum(self, do: Nodes, kept: Sequence[str]) -> Tensor:
        """The distribution of some nodes, `[*sorted(do), *kept]`, by elimination of the others."""
        factors: list[tuple[Tensor, tuple[object, ...]]] = [
            (torch.ones(self.levels[name], dtype=torch.float64), (name,)) for name in do
        ]
        for name in self.g.nodes:
            if name not in do:
                latents = [edge for edge in self.g.bidirected if name in edge]
                factors.append((self.tables[name], (*_parents(self.g, name), *latents, name)))
        factors += [(weights, (edge,)) for edge, weights in self.latents.items()]
        hidden = {*self.latents, *self.g.nodes} - set(do) - set(kept)
        size = {**self.levels, **{edge: len(weights) for edge, weights in self.latents.items()}}
        while hidden:
            scopes = {
                v: {axis for _, axes in factors if v in axes for axis in axes} for v in hidden
            }
            v = min(sorted(hidden, key=str), key=lambda v: math.prod(size[a] for a in scopes[v]))
            touched = [factor for factor in factors if v in factor[1]]
            out = tuple(sorted(scopes[v] - {v}, key=str))
            factors = [factor for factor in factors if v not in factor[1]]
            factors.append((_einsum(touched, out), out))
            hidden.remove(v)
        return _einsum(factors, (*sorted(do), *kept))

    def logits(self) -> Tensor:
        """All free parameters in a row."""
        return torch.cat([part.log().flatten() for part in self._parts()])

    def at(self, logits: Tensor) -> DiscreteModel:
        """The model with these parameters."""
        sizes = [part.numel() for part in self._parts()]
        new = [
            torch.softmax(flat.reshape(part.shape), -1)
            for flat, part in zip(logits.split(sizes), self._parts(), strict=True)
        ]
        latents = dict(zip(self.latents, new, strict=False))
        tables = dict(zip(self.tables, new[len(latents) :], strict=True))
        return DiscreteModel(self.g, self.levels, latents, tables)

    def _parts(self) -> list[Tensor]:
        return [*self.latents.values(), *self.tables.values()]


def _parents(g: ADMG, name: str) -> list[str]:
    return [parent for parent in g.nodes if (parent, name) in g.directed]


def _einsum(
    factors: Sequence[tuple[Tensor, tuple[object, ...]]], out: tuple[object, ...]
) -> Tensor:
    number: dict[object, int] = {}
    for _, axes in factors:
        for axis in axes:
            number.setdefault(axis, len(number))
    operands = [part for value, axes in factors for part in (value, [number[a] for a in axes])]
    return torch.einsum(*operands, [number[axis] for axis in out])


# --- the rank of a Jacobian -----------------------------------------------------------------------


@dataclass(frozen=True)
class RankVerdict:
    """Whether a query is a function of the data near random models; true if it is.

    ``residuals``: the share of the query's gradient outside of the data's, at each model; rounding
    alone leaves about 1e-12. ``gaps``: the least singular value that counts over the next.
    """

    residuals: tuple[float, ...]
    gaps: tuple[float, ...]
    tolerance: float = 1e-7

    def __bool__(self) -> bool:
        return max(self.residuals) < self.tolerance

    @property
    def clear(self) -> bool:
        """Whether neither rank nor residual is near its threshold."""
        far = all(r < self.tolerance / 30 or r > 30 * self.tolerance for r in self.residuals)
        return far and min(self.gaps) > 100


def rank_test(
    g: ADMG,
    query: Callable[[DiscreteModel], Tensor],
    datasets: Iterable[Member],
    *,
    rng: random.Random,
    levels: int | Mapping[str, int] = 2,
    latent_states: int = 5,
    models: int = 2,
) -> RankVerdict:
    """Whether the query's gradient lies in the span of the gradients of the data.

    A query that moves while the data stay is not identifiable, so that a negative verdict is a
    proof, up to rounding. A positive one says so near these models and for these numbers of states.
    """
    members = list(datasets)
    verdicts = [
        _rank(
            DiscreteModel.random(g, rng, levels=levels, latent_states=latent_states), query, members
        )
        for _ in range(models)
    ]
    return RankVerdict(*zip(*verdicts, strict=True))


def _rank(
    model: DiscreteModel, query: Callable[[DiscreteModel], Tensor], members: Sequence[Member]
) -> tuple[float, float]:
    def data(logits: Tensor) -> Tensor:
        here = model.at(logits)
        return torch.cat([here.table(member).flatten() for member in members])

    def asked(logits: Tensor) -> Tensor:
        return query(model.at(logits)).flatten()

    jacobian = torch.func.jacrev(data, chunk_size=32)(model.logits())
    gradient = torch.func.jacrev(asked, chunk_size=32)(model.logits())
    _, values, rows = torch.linalg.svd(jacobian, full_matrices=False)
    rank = int((values > 1e-10 * values[0]).sum())
    below = values[rank] if rank < len(values) else values[0] * 1e-17
    span = rows[:rank]
    outside = gradient - (gradient @ span.T) @ span
    outside = outside - (outside @ span.T) @ span  # once more, against rounding
    size = gradient.norm()
    residual = float(outside.norm() / size) if size > 1e-13 else 0.0
    return residual, float(values[rank - 1] / below)


# --- separation -----------------------------------------------------------------------------------


def _closure(start: Iterable[str], steps: Iterable[Edge], within: Nodes) -> Nodes:
    """What one can reach from `start` along `steps`, inside of `within`."""
    graph = nx.DiGraph(steps)
    graph.add_nodes_from(within)
    inside = graph.subgraph(within)
    found = set(start) & within
    return frozenset(found.union(*(nx.descendants(inside, node) for node in found)))


def _ancestors(g: ADMG, nodes: Iterable[str], within: Nodes) -> Nodes:
    return _closure(nodes, ((b, a) for a, b in g.directed), within)


def _district(g: ADMG, nodes: Iterable[str], within: Nodes) -> Nodes:
    arcs = g.bidirected
    return _closure(nodes, itertools.chain(arcs, ((b, a) for a, b in arcs)), within)


def _mutilated(g: ADMG, *, incoming: Nodes = frozenset(), outgoing: Nodes = frozenset()) -> ADMG:
    """The graph without the arrowheads at some nodes and the tails at others."""
    arrows = [(a, b) for a, b in g.directed if a not in outgoing and b not in incoming]
    arcs = [(a, b) for a, b in g.bidirected if a not in incoming and b not in incoming]
    return ADMG(arrows, arcs, nodes=g.nodes)


def m_separated_by_paths(
    g: ADMG, a: Names, b: Names, given: Names = (), *, backdoor: bool = False
) -> bool:
    """Whether no simple path is open, by going along all of them.

    With `backdoor`, only paths count that start with an arrowhead at `a`.
    """
    known, goal = frozenset(_names(given)), frozenset(_names(b))
    opened = _ancestors(g, known, frozenset(g.nodes))
    steps: dict[str, list[tuple[str, bool, bool]]] = {name: [] for name in g.nodes}
    for first, second in g.directed:  # (neighbour, arrowhead here, arrowhead there)
        steps[first].append((second, False, True))
        steps[second].append((first, True, False))
    for first, second in g.bidirected:
        steps[first].append((second, True, True))
        steps[second].append((first, True, True))

    def connects(path: tuple[str, ...], arrived_at_head: bool) -> bool:
        node = path[-1]
        if node in goal:
            return True
        for other, here, there in steps[node]:
            if other in path:
                continue
            if len(path) == 1:
                if backdoor and not here:
                    continue
            else:
                collider = arrived_at_head and here
                if (node not in opened) if collider else (node in known):
                    continue
            if connects((*path, other), there):
                return True
        return False

    return not any(connects((name,), False) for name in _names(a))


# --- identification -------------------------------------------------------------------------------


def _subsets(nodes: Iterable[str]) -> Iterator[Nodes]:
    pool = sorted(nodes)
    for size in range(1, len(pool) + 1):
        yield from map(frozenset, itertools.combinations(pool, size))


def has_hedge(g: ADMG, outcome: Names, do: Names) -> bool:
    """Whether two sets of nodes carry a hedge for P(outcome | do).

    Shpitser & Pearl 2006, Identification of joint interventional distributions, definitions 5 and
    6: C-forests F' within F with the same roots R among the ancestors of the outcome in the graph
    under the intervention, where `do` meets F and not F'. A set carries a C-forest with roots R if
    bidirected edges connect it and each of its nodes has a directed path to R inside of it. The
    larger R, the weaker the second condition, so R is all of F' that may be a root. (Corollary 3
    there lets `do` and the outcome shrink as well, which makes it false, see Shpitser 2023, When
    does the ID algorithm fail?)
    """
    y, x, everything = frozenset(_names(outcome)), frozenset(_names(do)), frozenset(g.nodes)
    possible = _ancestors(_mutilated(g, incoming=x), y, everything)
    connected = [s for s in _subsets(everything) if _district(g, [min(s)], s) == s]
    small = []
    for inner in connected:
        roots = inner & possible
        if not inner & x and roots and _ancestors(g, roots, inner) == inner:
            small.append((inner, roots))
    return any(
        outer & x and inner < outer and _ancestors(g, roots, outer) == outer
        for inner, roots in small
        for outer in connected
    )


def exchanged(g: ADMG, outcome: Names, do: Names, given: Names) -> tuple[Nodes, Nodes]:
    """The unconditional query, (outcome, do), that decides a conditional one.

    Shpitser & Pearl 2006, Identification of conditional interventional distributions: as long as
    rule 2 of the do-calculus allows it, what is given becomes what is done.
    """
    y, x, w = (frozenset(_names(names)) for names in (outcome, do, given))
    for z in sorted(w):
        cut = _mutilated(g, incoming=x, outgoing=frozenset({z}))
        if m_separated_by_paths(cut, y, z, x | w - {z}):
            return exchanged(g, y, x | {z}, w - {z})
    return y | w, x


def brute_identifiable(
    g: ADMG,
    outcome: Names,
    do: Names = (),
    given: Names = (),
    available: Iterable[Iterable[str]] = (frozenset(),),
) -> bool:
    """Whether the query has no hedge; with experiments, each of its factors without one somewhere.

    For experiments: Lee, Correa & Bareinboim 2019, General identifiability with arbitrary surrogate
    experiments, theorem 1 by way of the factors: each district of what causes the outcome is the
    answer to a query of its own, in the graph that an experiment leaves.
    """
    y, x = exchanged(g, outcome, do, given)
    experiments = [frozenset(member) for member in available]
    if experiments == [frozenset()]:
        return not has_hedge(g, y, x)
    everything = frozenset(g.nodes)
    causes = _ancestors(g, y, everything - x)
    factors = {_district(g, [name], causes) for name in causes}

    def answers(done: Nodes, factor: Nodes) -> bool:
        rest = everything - done
        return not factor & done and not has_hedge(_restricted(g, rest), factor, rest - factor)

    return all(any(answers(done, factor) for done in experiments) for factor in factors)


def _restricted(g: ADMG, nodes: Nodes) -> ADMG:
    arrows = [(a, b) for a, b in g.directed if a in nodes and b in nodes]
    arcs = [(a, b) for a, b in g.bidirected if a in nodes and b in nodes]
    return ADMG(arrows, arcs, nodes=sorted(nodes))


def tian_identifiable(g: ADMG, outcome: Names, do: Names = (), given: Names = ()) -> bool:
    """Whether Tian's reduction ends well.

    Tian & Pearl 2002, A general identification condition for causal effects, and Tian 2002, Studies
    in causal reasoning and learning, figure 5.8: the factor of a district follows from that of a
    district around it if summing out non-ancestors and splitting into districts leads there.
    """
    y, x = exchanged(g, outcome, do, given)

    def leads(wanted: Nodes, around: Nodes) -> bool:
        ancestors = _ancestors(g, wanted, around)
        if ancestors == wanted:
            return True
        return ancestors != around and leads(wanted, _district(g, wanted, ancestors))

    everything = frozenset(g.nodes)
    causes = _ancestors(g, y, everything - x)
    factors = {_district(g, [name], causes) for name in causes}
    return all(leads(factor, _district(g, factor, everything)) for factor in factors)


def is_hedge(
    g: ADMG, forest: ADMG, subforest: ADMG, roots: Iterable[str], outcome: Names, do: Names
) -> bool:
    """Whether two graphs are a hedge for P(outcome | do), clause by clause of the definition."""
    x, ends = frozenset(_names(do)), frozenset(roots)
    possible = _ancestors(_mutilated(g, incoming=x), _names(outcome), frozenset(g.nodes))

    def within(small: ADMG, large: ADMG) -> bool:
        arcs = {frozenset(arc) for arc in large.bidirected}
        return (
            set(small.nodes) <= set(large.nodes)
            and set(small.directed) <= set(large.directed)
            and {frozenset(arc) for arc in small.bidirected} <= arcs
        )

    def is_forest(graph: ADMG) -> bool:
        children = [a for a, _ in graph.directed]
        nodes = frozenset(graph.nodes)
        return (
            len(children) == len(set(children))
            and nodes - set(children) == ends
            and _district(graph, [min(nodes)], nodes) == nodes
        )

    return (
        within(subforest, forest)
        and within(forest, g)
        and is_forest(forest)
        and is_forest(subforest)
        and bool(x & set(forest.nodes))
        and not x & set(subforest.nodes)
        and ends <= possible
    )
