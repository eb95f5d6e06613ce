"""A walk through directed acyclic graphs, by changes of one edge."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pyro_causal._reachability import reached
from pyro_causal.infer._local_scores import EdgeRules, LocalScores, Parents

__all__ = ["Climber"]

TENURE = 5  # moves for which the last change of an edge stands


class Climber:
    """A graph [d, d], the local scores of its nodes, and what a change of each edge would gain."""

    def __init__(self, scores: LocalScores, rules: EdgeRules, graph: Tensor) -> None:
        self.scores = scores
        self.rules = rules
        self.graph = graph
        self.local = scores([(_parents(graph, j), j) for j in range(len(graph))])
        self.change = torch.full(graph.shape, torch.nan, dtype=torch.float64)  # nan: not asked yet

    def move_to(self, graph: Tensor) -> None:
        """Take another graph, and forget the changes of nodes whose parents are others."""
        nodes = (graph != self.graph).any(0).nonzero()[:, 0]
        self.local[nodes] = self.scores([(_parents(graph, j), j) for j in nodes.tolist()])
        self.change[:, nodes] = torch.nan
        self.graph = graph

    def moves(self) -> Tensor:
        """Which edges i -> j may be added, deleted, reversed: [3, d, d]."""
        graph, rules = self.graph, self.rules
        paths = reached(graph)
        room = graph.sum(0) < rules.max_parents
        added = ~graph & ~rules.forbidden & ~paths.mT & room
        deleted = graph & ~rules.required
        detour = graph.float() @ paths.float() > 0
        turned = deleted & ~rules.forbidden.mT & ~detour & room[:, None]
        return torch.stack([added, deleted, turned])

    def gains(self, moves: Tensor) -> Tensor:
        """What moves gain, -inf where they are not allowed: [3, d, d]."""
        added, deleted, turned = moves
        unknown = ((added | deleted | turned.mT) & self.change.isnan()).nonzero()
        now = [{*_parents(self.graph, j)} for j in range(len(self.graph))]
        families = [(tuple(sorted(now[j] ^ {i})), j) for i, j in unknown.tolist()]
        i, j = unknown.unbind(1)
        self.change[i, j] = self.scores(families) - self.local[j]
        change = self.change
        return torch.stack([change, change, change + change.mT]).masked_fill(~moves, -torch.inf)

    def climb(self, patience: int) -> tuple[Tensor, float]:
        """The best graph on a walk, and its score."""
        best, total = self.graph, self.local.sum().item()
        free = torch.zeros(self.graph.shape, dtype=torch.long)  # the step from which edges may move
        idle = 0
        for step in itertools.count():
            gains = self.gains(self.moves())
            better = self.local.sum() + gains > total
            gains = gains.masked_fill((free > step) & ~better, -torch.inf)
            if idle == patience or gains.max() == -torch.inf:
                break
            i, j = self.make(int(gains.argmax()))
            free[i, j] = free[j, i] = step + 1 + TENURE
            idle += 1
            if (now := self.local.sum().item()) > total:
                best, total, idle = self.graph, now, 0
        return best, total

    def move_at_random(self) -> None:
        """Add, delete or reverse an edge, each kind as likely as the others."""
        moves = self.moves().double()
        weights = moves / moves.sum((1, 2), keepdim=True).clamp(min=1)
        if weights.any():
            self.make(int(torch.multinomial(weights.flatten(), 1)))

    def make(self, move: int) -> tuple[int, int]:
        """Make a move, counted through [3, d, d], and give the edge it was about."""
        d = len(self.graph)
        kind, i, j = move // d**2, move // d % d, move % d
        graph = self.graph.clone()
        graph[i, j] = kind == 0
        graph[j, i] = kind == 2
        self.move_to(graph)
        return i, j


def _parents(graph: Tensor, node: int) -> Parents:
    return tuple(graph[:, node].nonzero()[:, 0].tolist())
