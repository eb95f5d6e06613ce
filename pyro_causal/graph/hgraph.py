r"""H-graphs: which mechanisms of a model can be trained apart, in which order and on which data.

A *module* is a set of mechanisms that are trained together, while those of earlier modules are
frozen. Write :math:`Q[S] = P(S \mid do(pa(S)))`, where :math:`pa(S)` are the parents outside of S.
A training step of a module H on a dataset takes a set S that holds what the dataset shows of H and
that adds as little as possible so that :math:`Q[S] = P(S \mid pa(S))` by rule 2 of the do-calculus.
It then makes the model agree with the right-hand side, which is data, by running the mechanisms
behind S on the parents' values in the data.

**Why this pins down every dataset.** A dataset is the product of the factors :math:`Q[C]` of its
districts C. If a step matches :math:`Q[S]`, it matches those of the districts within S, for they
are ratios of marginals of :math:`Q[S]` (Tian & Pearl 2002), and each district lies in the step
of some module. A module can meet its steps whatever minimum the earlier ones have found: if theirs
agree with the truth and later mechanisms are the true ones, then true mechanisms in H make all
datasets agree, hence by rule 2 also :math:`Q[S]`, of which no later mechanism is a part.

**Experiments** cut the edges into what they intervene on; districts, parents and descendants are
those of the graph that is left. So a bidirected edge joins modules if some dataset leaves it uncut.

**Datasets that hide variables** show districts of the latent projection. The factor of such a
district C averages over hidden variables; behind it are the mechanisms :math:`C^+` of C and of
the hidden nodes that have a directed path into C through hidden nodes. Those of them belong to
one module that lie in a district of the subgraph of :math:`C^+` whose factor is not identified by
one that some dataset shows with nothing averaged out. If there are none, C adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, reduce
from operator import or_
from typing import NamedTuple, TypeAlias

import networkx

from pyro_causal.graph._bits import Bits, elements
from pyro_causal.graph._views import View, descend
from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.estimand import Key, Member, as_dataset

__all__ = ["TrainingStep", "h_graph", "training_plan"]

Factor: TypeAlias = tuple[int, int]  # a district C that a dataset shows, the mechanisms behind it


class TrainingStep(NamedTuple):
    r"""Train a module on a dataset, with the mechanisms of its ancestors frozen.

    Run the mechanisms of ``module`` and ``ancestors`` with ``parents`` set to their values in the
    dataset (those under intervention included), and make the joint distribution of ``matched``
    and ``parents`` that of the dataset. ``str(step)`` writes what to match.

    **Attributes**

    - ``module``: the variables whose mechanisms are trained. Steps of a plan with the same module
      follow each other, and are to be trained jointly: their losses add up.
    - ``ancestors``: the variables of earlier modules that take part.
    - ``parents``: the other direct causes of ``matched``, to condition on. They may belong to the
      module if the dataset intervenes on them.
    - ``dataset``: the member of the plan's ``datasets``, in frozensets: the intervened names, or,
      if some nodes are hidden, a pair of intervened and observed names.
    """

    module: frozenset[str]
    ancestors: frozenset[str]
    parents: frozenset[str]
    dataset: Key

    @property
    def matched(self) -> frozenset[str]:
        """The variables to match: those of module and ancestors that the dataset shows."""
        produced = self.module | self.ancestors
        if isinstance(self.dataset, tuple):
            return produced & self.dataset[1]
        return produced - self.dataset

    def __str__(self) -> str:
        intervened = self.dataset[0] if isinstance(self.dataset, tuple) else self.dataset
        do = f"_{_braces(intervened)}" if intervened else ""
        given = ", ".join(sorted(self.parents - intervened))
        matched = ", ".join(sorted(self.matched))
        return f"{_braces(self.module)}: P{do}({matched}{f' | {given}' if given else ''})"


def training_plan(g: ADMG, datasets: Iterable[Member] = (frozenset(),)) -> tuple[TrainingStep, ...]:
    r"""The steps that train the mechanisms of a graph, module by module.

    A step matches :math:`P(H \cup A \mid pa(H \cup A))` for a module H, with A the smallest set
    that makes this an interventional distribution. It exists and is unique: start with S = H, and
    while some parent outside of S is a descendant of S or of a node that shares a hidden cause
    with S, add it. The plan is an order of :func:`h_graph`. After it, a model agrees with every
    dataset, and so with whatever :func:`pyro_causal.graph.identify` can express in them. (Values of
    parents that never occur in a dataset leave the mechanisms undetermined there.)

    Each district needs one step: where several datasets show its factor, the one with the fewest
    ancestors is taken, then that with the fewest parents, then the first.

    **Arguments** ``datasets``: as ``available`` in :func:`pyro_causal.graph.identify`. A set of
    names is an experiment on them, with values of their whole range, that records all other nodes,
    and the empty set is observational data; a pair ``(intervened, observed)`` records some nodes
    only. What every dataset intervenes on needs no mechanism and has no step.

    **Raises** ``ValueError``: unknown names; a variable both intervened on and observed; no
    dataset; a variable with a mechanism that no dataset shows.

    **References** Rahman & Kocaoglu 2024, Modular learning of deep causal generative models for
    high-dimensional causal inference, https://arxiv.org/abs/2401.01426, algorithms 1, 2, 6 and 7.
    We differ where the paper does not hold:

    - Definition 4.3 and algorithm 1 test only the parents of :math:`H_t` that lie in :math:`H_s`.
      That misses what the joint condition demands: with :math:`x \to a \to b \to y` and
      :math:`x \leftrightarrow y`, not only b but a, too, comes before x and y. And it demands what
      the joint condition does not: a parent that shares a cause with H only through other parents
      of H may wait. We have an edge if A of :math:`H_t` meets :math:`H_s`.
    - Modules on a cycle are merged until none is left: a merged module can have more ancestors
      than its parts.
    - Line 7 of algorithm 2 must add to the set, and only parents that violate rule 2; as an
      assignment it need not end.
    - The closure above replaces the search over subsets in algorithm 7.

    **Example** Two mediators between x and y, which share a hidden cause; then with an experiment.

    >>> from pyro_causal.graph import ADMG, training_plan
    >>> g = ADMG([("x", "a"), ("a", "b"), ("b", "y"), ("x", "y")], [("x", "y")])
    >>> for step in training_plan(g):
    ...     print(step)
    {a}: P(a | x)
    {b}: P(b | a)
    {x, y}: P(a, b, x, y)
    >>> for step in training_plan(g, [set(), {"x"}]):
    ...     print(step)
    {a}: P(a | x)
    {b}: P(b | a)
    {x, y}: P_{x}(y | b)
    {x, y}: P(a, b, x, y)
    """
    graph, drafts = _arranged(g, _sources(g, datasets))
    order = networkx.lexicographical_topological_sort(graph, key=list(graph).index)
    return tuple(draft.named(g, module) for module in order for draft in drafts[module])


def h_graph(
    g: ADMG, datasets: Iterable[Member] = (frozenset(),)
) -> networkx.DiGraph[frozenset[str]]:
    r"""The modules of a graph, and which of them must be trained before which.

    The nodes are sets of names. An edge :math:`H_s \to H_t` says that mechanisms of :math:`H_s`
    are among the ancestors in a training step of :math:`H_t`. On observational data, the modules
    are unions of districts. For any one dataset they are the smallest ones that leave no cycle:
    every partition without cycles is a coarsening of them.

    **Arguments**, **Raises**, **References**: as :func:`training_plan`.

    **Example**

    >>> from pyro_causal.graph import ADMG, h_graph
    >>> g = ADMG([("x", "m"), ("m", "y")], [("x", "y")])
    >>> [(sorted(before), sorted(after)) for before, after in h_graph(g).edges]
    [(['m'], ['x', 'y'])]
    """
    graph, _ = _arranged(g, _sources(g, datasets))
    names = {mask: frozenset(g.names(mask)) for mask in graph}
    named: networkx.DiGraph[frozenset[str]] = networkx.DiGraph()
    named.add_nodes_from(names.values())
    named.add_edges_from((names[before], names[after]) for before, after in graph.edges)
    return named


class _Source(View):
    """A dataset: which factors it shows, and how to learn from it."""

    @cached_property
    def cut(self) -> Bits:
        """The graph that the experiment leaves."""
        return self.g.bits.cut(incoming=self.intervened)

    @cached_property
    def shown(self) -> Bits:
        """Its latent projection onto what is recorded."""
        return self.cut.project(self.hidden)

    def behind(self, nodes: int) -> int:
        """The mechanisms that act on recorded nodes other than through recorded ones."""
        return self.cut.ancestors(nodes, nodes | self.hidden)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The districts among what is recorded, with the mechanisms behind them."""
        return tuple((c, self.behind(c)) for c in self.shown.districts(self.observed))

    def draft(self, module: int, factors: Iterable[Factor]) -> _Draft:
        """The step that learns factors from all that is recorded of a module."""
        start = reduce(or_, (c for c, _ in factors), module & self.observed)
        matched = _closed(self.shown, start)
        parents = self.shown.parents_of(matched) & ~matched
        return _Draft(self, self.behind(matched) & ~module, parents)


class _Draft(NamedTuple):
    """A training step of a given module, in masks."""

    source: _Source
    ancestors: int
    parents: int

    @property
    def cost(self) -> tuple[int, int]:
        return self.ancestors.bit_count(), self.parents.bit_count()

    def named(self, g: ADMG, module: int) -> TrainingStep:
        intervened, observed = self.source.dataset
        return TrainingStep(
            module=frozenset(g.names(module)),
            ancestors=frozenset(g.names(self.ancestors)),
            parents=frozenset(g.names(self.parents)),
            dataset=intervened if observed is None else (intervened, observed),
        )


def _closed(bits: Bits, nodes: int) -> int:
    r"""The smallest superset S of the nodes with :math:`P(S \mid do(pa(S))) = P(S \mid pa(S))`.

    No path into a parent p may stay open when the edges out of the parents are cut. Nothing is
    given, so an open path joins p to S by a common cause; as S then has no ancestors but its own
    nodes, this is one of them or a hidden cause of one, which makes p a descendant of S or of a
    sibling. Such a p can only go into S. (Nodes under intervention descend from no one else.)
    """
    while True:
        reach = bits.descendants(nodes | bits.siblings_of(nodes))
        violating = bits.parents_of(nodes) & ~nodes & reach
        if not violating:
            return nodes
        nodes |= violating


def _sources(g: ADMG, datasets: Iterable[Member]) -> list[_Source]:
    """The datasets, checked."""
    members = [] if isinstance(datasets, str) else list(datasets)
    if not members:
        raise ValueError(
            f"`datasets`: expected a collection of at least one dataset, got {datasets!r}. Do pass "
            "[frozenset()] for observational data, [{'x'}] for an experiment on x."
        )
    sources = [_Source(g, as_dataset(g, member)) for member in members]
    trained = reduce(or_, (behind for source in sources for _, behind in source.factors), 0)
    given = reduce(int.__and__, (source.intervened for source in sources))
    for name in g.names(g.bits.all & ~trained & ~given):
        raise ValueError(
            f"At node '{name}', in `datasets`: expected a dataset that shows its mechanism, but "
            "each one intervenes on it, or hides it and all that it acts on. Do add one that "
            f"observes it, or drop it by g.latent_projection('{name}')."
        )
    return sources


def _wanted(bits: Bits, sources: Sequence[_Source]) -> dict[Factor, int]:
    """The factors to train for, with the mechanisms that need them.

    An average over hidden nodes is there for the districts that no whole factor identifies.
    """
    factors = dict.fromkeys(factor for source in sources for factor in source.factors)
    whole = [c for c, behind in factors if c == behind]

    def known(district: int) -> bool:
        return any(not district & ~c and descend(bits, district, c).found for c in whole)

    wanted: dict[Factor, int] = {}
    for c, behind in factors:
        parts = [c] if c == behind else [d for d in bits.districts(behind) if not known(d)]
        if parts:
            wanted[c, behind] = reduce(or_, parts)
    return wanted


def _drafts(sources: Sequence[_Source], wanted: dict[Factor, int], module: int) -> list[_Draft]:
    """The steps of a module: the cheapest dataset for each factor."""
    options = []
    for source in sources:
        factors = {f for f in source.factors if f in wanted and not wanted[f] & ~module}
        if factors:
            options.append((source.draft(module, factors), factors))
    chosen: list[_Draft] = []
    trained: set[Factor] = set()
    for draft, factors in sorted(options, key=lambda option: option[0].cost):
        if not factors <= trained:
            chosen.append(draft)
            trained |= factors
    return chosen


def _arranged(
    g: ADMG, sources: Sequence[_Source]
) -> tuple[networkx.DiGraph[int], dict[int, list[_Draft]]]:
    """The H-graph on masks, causes first where it is free, and the steps of each module."""
    rank = {node: i for i, node in enumerate(g.bits.order)}
    wanted = _wanted(g.bits, sources)
    modules = _merged(wanted.values())
    drafts: dict[int, list[_Draft]] = {}
    while True:
        modules.sort(key=lambda module: min(rank[node] for node in elements(module)))
        graph: networkx.DiGraph[int] = networkx.DiGraph()
        graph.add_nodes_from(modules)
        for module in modules:
            if module not in drafts:
                drafts[module] = _drafts(sources, wanted, module)
            before = reduce(or_, (draft.ancestors for draft in drafts[module]))
            graph.add_edges_from((other, module) for other in modules if other & before)
        cycles = list(networkx.strongly_connected_components(graph))
        if len(cycles) == len(modules):
            return graph, drafts
        modules = [reduce(or_, cycle) for cycle in cycles]


def _merged(masks: Iterable[int]) -> list[int]:
    """The masks, with those that overlap made one."""
    parts: list[int] = []
    for mask in masks:
        apart = [part for part in parts if not part & mask]
        parts = [*apart, reduce(or_, (part for part in parts if part & mask), mask)]
    return parts


def _braces(names: Iterable[str]) -> str:
    return f"{{{', '.join(sorted(names))}}}"
