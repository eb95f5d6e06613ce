"""Graphs with regimes of their own, compared by how well they predict rows held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_causal.infer._births import add_components
from pyro_causal.infer._components import Components
from pyro_causal.infer._given_graph import Fit, GivenGraph
from pyro_causal.infer._local_scores import EdgeRules, edge_rules
from pyro_causal.infer._merging import drop_targets, join_idle, merge_components
from pyro_causal.infer._node_scores import NodeScores
from pyro_causal.infer._regime_laws import RegimeLaws, VaryingLaws
from pyro_causal.infer._regressions import Assumptions, RandomFeatures
from pyro_causal.infer.acyclicity import is_dag
from pyro_causal.infer.dag_search import climb_dag, exact_dag
from pyro_causal.infer.priors import BernoulliGraph

__all__ = ["StructureProblem", "find_structure"]

EXACT = 11  # nodes, up to which all graphs are compared
PATIENCE = 8  # of a climb where spreads vary
REVERSALS = 2  # of edges, tried from one graph
HOPELESS = 0.05  # nats for a row, that fewer or more components do not win back
BIRTHS = 2  # times that there are more
STRICTER = 3  # times the price of targets in searches where spreads vary


@dataclass(frozen=True)
class StructureProblem:
    """Rows, and what is asked of a graph for them; arguments as those of structural EM.

    ``few`` are the features for scores of nodes, ``many`` those for laws; ``steps`` is the number
    of steps between laws and responsibilities, and ``truncation`` that of components at most.
    """

    x: Tensor
    held: Tensor
    few: RandomFeatures
    many: RandomFeatures
    assumed: Assumptions
    edge: float
    steps: int
    truncation: int
    prior: BernoulliGraph | None = None
    max_parents: int | None = None

    def scores(self, components: Components) -> NodeScores:
        """Those of nodes, when each row belongs to its most probable component.

        Components are not pure, and those that are mixed speak for targets; where spreads vary,
        these cost more for that reason than they do under a given graph.
        """
        assumed = self.assumed
        if assumed.varying:
            assumed = assumed._replace(target=STRICTER * assumed.target)
        return NodeScores(
            self.x,
            components.q.argmax(1),
            regimes=components.q.shape[1],
            features=self.few,
            held=self.held,
            assumed=assumed,
            edge=self.edge,
        )

    def search(self, scores: NodeScores, last: Tensor | None = None) -> Tensor:
        """The best graph ``[d, d]``; where spreads vary, by a climb from the last one.

        Their scores take longer, and a climb asks for few. Without a last graph it climbs from no
        edges, and from those that a climb by fixed spreads finds.
        """
        nodes = self.x.shape[1]
        rules: Any = {"prior": self.prior, "max_parents": self.max_parents}
        if not self.assumed.varying:
            search = exact_dag if nodes <= EXACT else climb_dag
            return search(scores, nodes, **rules).adjacency
        climb: Any = partial(climb_dag, nodes=nodes, patience=PATIENCE, restarts=0, **rules)
        starts = (
            (last,) if last is not None else (None, climb(scores.with_fixed_spread()).adjacency)
        )
        found = (climb(scores, start=start) for start in starts)
        return max(found, key=lambda graph: graph.score).adjacency

    @property
    def rules(self) -> EdgeRules:
        """Which edges may be, and the log odds of the others."""
        return edge_rules("structural_em", self.x.shape[1], self.prior, self.max_parents)

    def total(self, scores: NodeScores, graph: Tensor, nodes: Iterable[int]) -> float:
        """The scores of nodes with their parents in a graph, and the odds of those edges."""
        total, odds = 0.0, self.rules.odds
        for node in nodes:
            parents = graph[:, node].nonzero().flatten().tolist()
            total += float(scores(tuple(parents), (node,)).sum() + odds[parents, node].sum())
        return total

    def given(self, graph: Tensor) -> GivenGraph:
        """Regimes under a graph."""
        kind, features = RegimeLaws, self.many
        if self.assumed.varying:
            kind, features = VaryingLaws, self.few
        laws = kind(self.x, graph, features=features, assumed=self.assumed)
        size, edges = len(self.x), float(graph.sum())
        odds = self.rules.odds
        return GivenGraph(
            laws,
            held=self.held,
            edges=self.edge * size * edges - float(odds[graph.cpu() != 0].sum()),
            target=self.assumed.target * size,
        )

    def fit(self, graph: Tensor, starts: Sequence[Components], *, rival: float = -torch.inf) -> Fit:
        """As many components as predict rows well under a graph, from the best of the starts.

        What is far below a rival's score before components merge is left at that.
        """
        given, fits = self.given(graph), []
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
) -> tuple[Tensor, Fit]:
    """The graph and the regimes of the highest score, from the best graph for the first start on.

    Next come the best graph for the regimes that were found, and graphs with one edge reversed.
    Each has regimes of its own, from those and from the same starts: what was found under another
    graph may be wrong, and speak for it.
    """
    graph = problem.search(problem.scores(starts[0]))
    best, tried = problem.fit(graph, starts), [graph]
    for _ in range(rounds):
        for other in _others(problem, graph, best.components):
            if any(torch.equal(other, one) for one in tried):
                continue
            tried.append(other)
            fit = problem.fit(other, [best.components, *starts], rival=best.score)
            if fit.score > best.score:
                graph, best = other, fit
                break
        else:
            break
    return graph, best


def _others(problem: StructureProblem, graph: Tensor, components: Components) -> Iterator[Tensor]:
    """The best graph for given regimes, then those with an edge reversed that lose least.

    Where spreads vary, it is climbed to from this one, and from no edges as well.
    """
    scores = problem.scores(components)
    yield problem.search(scores, graph)
    if problem.assumed.varying:
        yield problem.search(scores)
    rules = problem.rules
    reversals: list[tuple[float, Tensor]] = []
    for i, j in graph.nonzero().tolist():
        other = graph.clone()
        other[i, j], other[j, i] = 0, 1
        certain = rules.required[i, j] or rules.forbidden[j, i]
        if certain or other[:, i].sum() > rules.max_parents or not is_dag(other):
            continue
        loss = problem.total(scores, graph, (i, j)) - problem.total(scores, other, (i, j))
        reversals.append((loss, other))
    reversals.sort(key=lambda pair: pair[0])
    yield from (other for _, other in reversals[:REVERSALS])
