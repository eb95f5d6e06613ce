"""Graphs with regimes of their own, compared by how well they predict rows held out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from pyro_causal.infer._births import add_components
from pyro_causal.infer._components import Components
from pyro_causal.infer._fitted_units import FittedFeatures
from pyro_causal.infer._given_graph import Fit, GivenGraph
from pyro_causal.infer._local_scores import EdgeRules, Score, edge_rules
from pyro_causal.infer._merging import drop_targets, join_idle, merge_components
from pyro_causal.infer._node_scores import FittedScores, NodeScores
from pyro_causal.infer._outliers import OutlierScores, outlier_components
from pyro_causal.infer._regime_laws import RegimeLaws, VaryingLaws
from pyro_causal.infer._regressions import Assumptions, RandomFeatures
from pyro_causal.infer.acyclicity import is_dag
from pyro_causal.infer.dag_search import FoundGraph, climb_dag, exact_dag
from pyro_causal.infer.priors import BernoulliGraph

__all__ = ["SMALL", "StructureProblem", "edge_log_odds", "find_structure"]

Scores: TypeAlias = NodeScores | FittedScores
Head: TypeAlias = tuple[Tensor, Fit, Components]  # a graph, its regimes, and where these started
Made = TypeVar("Made")

EXACT = 11  # nodes, up to which all graphs are compared
PATIENCE = 8  # of a climb where spreads vary
FITTED_PATIENCE = 2  # of one by fitted units
FEW = 30  # random features in a search through all graphs
RESTARTS = 10  # of a climb without regimes
REVERSALS = 2  # of edges, tried from one graph
HOPELESS = 0.05  # nats for a row, that fewer or more components do not win back
BIRTHS = 2  # times that there are more
SMALL = 5  # variables, which tell less of regimes
STRICTER = 3  # times the price of targets in searches where spreads vary


@dataclass(frozen=True)
class StructureProblem:
    """Rows, and what is asked of a graph for them; arguments as those of structural EM.

    ``features`` are those of regressions; ``steps`` is the number of steps between laws and
    responsibilities, and ``truncation`` that of components at most. What depends on the regimes of
    rows alone is ``kept`` as long as these stay.
    """

    x: Tensor
    held: Tensor
    features: RandomFeatures
    assumed: Assumptions
    edge: float
    steps: int
    truncation: int
    prior: BernoulliGraph | None = None
    max_parents: int | None = None
    kept: dict[Hashable, tuple[int, Tensor, Any]] = field(default_factory=dict, repr=False)

    def scores(self, components: Components) -> Scores:
        """Those of nodes, when each row belongs to its most probable component.

        Components are not pure, and those that are mixed speak for targets; where spreads vary,
        these cost more for that reason than they do under a given graph.
        """

        def make() -> Scores:
            rough = self._rough(components, self.features)
            return FittedScores(rough) if self.features.units else rough

        return self._once("scores", components, make)

    def _rough(self, components: Components, features: RandomFeatures) -> NodeScores:
        assumed = self.assumed
        if assumed.varying:
            assumed = assumed._replace(target=STRICTER * assumed.target)
        return NodeScores(
            self.x,
            components.q.argmax(1),
            regimes=components.q.shape[1],
            features=features,
            held=self.held,
            assumed=assumed,
            edge=self.edge,
        )

    @property
    def pooled(self) -> bool:
        """Whether a graph can be told from rows of all regimes together."""
        return self.features.units > 0 and not self.assumed.varying

    def without_regimes(self, start: Components) -> Head:
        """The best graph by outliers in place of regimes, its regimes, and where these started.

        It is climbed to by few random features, from there by all of them, and from there by fitted
        units. Regimes start from outliers, or from a given start if some regime or target is known.
        """
        few, many = (
            OutlierScores(self.x, features, held=self.held, edge=self.edge)
            for features in (self.features.parts(FEW)[0], self.features)
        )
        fitted = FittedScores(many)
        graph = self.climb(few, None, restarts=RESTARTS).adjacency
        graph = self.climb(many, graph, patience=PATIENCE // 2).adjacency
        graph = self.climb(fitted, graph, patience=FITTED_PATIENCE).adjacency
        if start.allowed.all() and self.assumed.targets is None:
            features = FittedFeatures(self.features, fitted.of(graph))
            start = outlier_components(many.outliers(self.x, graph, features), most=self.truncation)
        return graph, self.fit(graph, [start], self.scores(start)), start

    def first(self, starts: Sequence[Components]) -> Iterator[Head]:
        """A graph for each start and each part of the features, its regimes, and the start."""
        parts = len(self.features.parts(FEW))
        for k in range(max(len(starts), parts)):
            start = starts[k % len(starts)]
            graph = self.search(start, k)
            yield graph, self.fit(graph, [start], self.scores(start)), start

    def search(self, components: Components, part: int = 0) -> Tensor:
        """The best graph ``[d, d]`` by few random features, which is fast: by one part of all.

        Where spreads vary it is climbed to from the best by fixed ones: climbs from no edges end in
        graphs that are far worse. Where there are many nodes all is climbed to.
        """
        nodes, parts = self.x.shape[1], self.features.parts(FEW)
        search: Any = exact_dag if nodes <= EXACT else climb_dag
        part %= len(parts)

        def make() -> Tensor:
            scores = self._rough(components, parts[part])
            fixed = scores.with_fixed_spread()
            if nodes <= EXACT:
                fixed.ask_all(self.rules.families())
            graph: Tensor = search(fixed, nodes, **self.limits).adjacency
            return self.climb(scores, graph).adjacency if self.assumed.varying else graph

        return self._once(part, components, make)

    def _once(self, what: Hashable, components: Components, make: Callable[[], Made]) -> Made:
        """What depends on the regimes of rows alone, made again only where these have changed."""
        size, labels = components.q.shape[1], components.q.argmax(1)
        kept = self.kept.get(what)
        if kept is not None and kept[0] == size and torch.equal(kept[1], labels):
            found: Made = kept[2]
            return found
        made = make()
        self.kept[what] = size, labels, made
        return made

    def climb(
        self,
        scores: Score,
        start: Tensor | None,
        *,
        patience: int = PATIENCE,
        restarts: int = 0,
    ) -> FoundGraph:
        """The best graph on walks from another, or from no edges."""
        options: Any = {"patience": patience, "restarts": restarts, **self.limits}
        return climb_dag(scores, self.x.shape[1], start=start, **options)

    @property
    def limits(self) -> dict[str, Any]:
        """What a search for graphs has to keep to."""
        return {"prior": self.prior, "max_parents": self.max_parents}

    @property
    def rules(self) -> EdgeRules:
        """Which edges may be, and the log odds of the others."""
        return edge_rules("structural_em", self.x.shape[1], self.prior, self.max_parents)

    def total(self, scores: Score, graph: Tensor, nodes: Iterable[int]) -> float:
        """The scores of nodes with their parents in a graph, and the odds of those edges."""
        total, odds = 0.0, self.rules.odds
        for node in nodes:
            parents = graph[:, node].nonzero().flatten().tolist()
            total += float(scores(tuple(parents), (node,)).sum() + odds[parents, node].sum())
        return total

    def with_pair(
        self, graph: Tensor, pair: tuple[int, int], edges: tuple[int, int]
    ) -> Tensor | None:
        """A graph with other edges between two nodes, there and back, if that may be."""
        (i, j), rules, other = pair, self.rules, graph.clone()
        other[i, j], other[j, i] = edges
        there, back = edges
        allowed = (
            there >= int(rules.required[i, j])
            and back >= int(rules.required[j, i])
            and there <= 1 - int(rules.forbidden[i, j])
            and back <= 1 - int(rules.forbidden[j, i])
            and int(other[:, [i, j]].sum(0).max()) <= rules.max_parents
        )
        return other if allowed and is_dag(other) else None

    def given(self, graph: Tensor, scores: Scores | None = None) -> GivenGraph:
        """Regimes under a graph, with the units that scores fit for it."""
        units = {}
        if isinstance(scores, FittedScores):
            units = scores.of(graph)
        features = FittedFeatures(self.features, units)
        kind = VaryingLaws if self.assumed.varying else RegimeLaws
        laws = kind(self.x, graph, features=features, assumed=self.assumed)
        size, edges = len(self.x), float(graph.sum())
        odds = self.rules.odds
        return GivenGraph(
            laws,
            held=self.held,
            edges=self.edge * size * edges - float(odds[graph.cpu() != 0].sum()),
            target=self.assumed.target * size,
        )

    def fit(
        self,
        graph: Tensor,
        starts: Sequence[Components],
        scores: Scores | None = None,
        *,
        rival: float = -torch.inf,
    ) -> Fit:
        """As many components as predict rows well under a graph, from the best of the starts.

        Laws have the units of the scores, if there are any. What is far below a rival's score
        before components merge is left at that.
        """
        given, fits = self.given(graph, scores), []
        for start in starts:
            fit = given.score(given.settle(start, steps=self.steps))
            if fit.score > rival - HOPELESS * len(self.x):
                fit = self._merge(given, fit)
                if self.assumed.targets is None:
                    fit = join_idle(given, drop_targets(given, self._add(given, fit)))
            fits.append(fit)
            rival = max(rival, fit.score)
        return max(fits, key=lambda fit: fit.score)

    def _merge(self, given: GivenGraph, fit: Fit) -> Fit:
        fit = merge_components(given, fit.components)
        return given.score(given.settle(fit.components, steps=self.steps))

    def _add(self, given: GivenGraph, fit: Fit) -> Fit:
        for _ in range(BIRTHS):
            room = self.truncation - len(fit.targets)
            more = add_components(given, fit.components, room=room)
            if more is None:
                break
            trial = given.score(given.settle(more, steps=self.steps))
            trial = self._merge(given, trial)
            if trial.score <= fit.score:
                break
            fit = trial
        return fit


def find_structure(
    problem: StructureProblem, starts: Sequence[Components], *, rounds: int
) -> tuple[Tensor, Fit, Scores]:
    """The graph and the regimes of the highest score, from the best graphs for all starts on.

    Graphs found for poor regimes and regimes found under poor graphs speak for each other, hence
    several starts. Of theirs the best goes on, or all where the regimes are known, which is fast.
    Next come the best graph for the regimes that were found, and graphs with one edge reversed.
    Each has regimes of its own, from those and from the best start, with few variables from all.
    The scores returned are those of the regimes found.

    Where a graph can come before regimes, it is one of the first, and there is one for each start.
    If it is the best of them, it goes on to others nearby, from its own regimes.
    """
    known = all((start.allowed.sum(1) == 1).all() for start in starts)
    pooled = problem.pooled and not known
    heads = [*itertools.islice(problem.first(starts), len(starts) if pooled else None)]
    if pooled:
        named = problem.assumed.targets is not None  # the last start has their names
        heads.append(problem.without_regimes(starts[-1 if named else 0]))
    tried = [graph for graph, *_ in heads]
    best = max(heads, key=lambda head: head[1].score)
    near, found = pooled and best is heads[-1], []
    for graph, fit, start in heads if known else [best]:
        again = [] if near else starts if len(graph) <= SMALL else [start]
        found.append(_improve(problem, graph, fit, again, tried, rounds, near=near))
    graph, fit = max(found, key=lambda one: one[1].score)
    return graph, fit, problem.scores(fit.components)


def _improve(
    problem: StructureProblem,
    graph: Tensor,
    best: Fit,
    starts: Sequence[Components],
    tried: list[Tensor],
    rounds: int,
    *,
    near: bool,
) -> tuple[Tensor, Fit]:
    """Go on from a graph to better ones, of those that were not tried, so many times at most."""
    for k in range(rounds):
        scores = problem.scores(best.components)
        if isinstance(scores, FittedScores) and not near:  # this graph may do better by them, too
            again = problem.fit(graph, [best.components], scores)
            best = max(best, again, key=lambda fit: fit.score)
        others = _others(problem, graph, best.components, scores, part=1 + k)
        for other in itertools.islice(others, 1 if near else None):
            if any(torch.equal(other, one) for one in tried):
                continue
            tried.append(other)
            fit = problem.fit(other, [best.components, *starts], scores, rival=best.score)
            if fit.score > best.score:
                graph, best = other, fit
                break
        else:
            break
    return graph, best


def _others(
    problem: StructureProblem,
    graph: Tensor,
    components: Components,
    scores: Scores,
    *,
    part: int = 0,
) -> Iterator[Tensor]:
    """The best graph by scores, then those with an edge reversed that lose least.

    Fitted scores take long; by them it is climbed to from this graph, and from the best by others.
    """
    if isinstance(scores, FittedScores):
        yield problem.climb(scores, graph, patience=FITTED_PATIENCE).adjacency
        start = problem.search(components, part)
        yield problem.climb(scores, start, patience=FITTED_PATIENCE).adjacency
    else:
        yield problem.search(components)
    reversals: list[tuple[float, Tensor]] = []
    for i, j in graph.nonzero().tolist():
        other = problem.with_pair(graph, (i, j), (0, 1))
        if other is None:
            continue
        loss = problem.total(scores, graph, (i, j)) - problem.total(scores, other, (i, j))
        reversals.append((loss, other))
    reversals.sort(key=lambda pair: pair[0])
    yield from (other for _, other in reversals[:REVERSALS])


def edge_log_odds(problem: StructureProblem, graph: Tensor, scores: Scores) -> Tensor:
    r"""The log odds of each edge against the two other states of its pair, ``[d, d]``.

    Given the regimes and all other edges of the graph, a pair has an edge there, one back or none;
    their odds are those of the scores, in nats of all rows. What the rules or a cycle exclude has
    odds zero.
    """
    states, size = ((1, 0), (0, 1), (0, 0)), len(graph)
    odds = torch.full(graph.shape, -torch.inf, dtype=problem.x.dtype)
    for i, j in itertools.combinations(range(size), 2):
        others = [problem.with_pair(graph, (i, j), state) for state in states]
        there, back, none = (
            problem.x.new_tensor(
                -torch.inf if other is None else problem.total(scores, other, (i, j))
            )
            for other in others
        )
        odds[i, j] = there - torch.logaddexp(back, none)
        odds[j, i] = back - torch.logaddexp(there, none)
    return odds.nan_to_num(nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf).to(problem.x.device)
