"""Local scores of a search for graphs, and what is known of edges beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyro_causal.infer.acyclicity import is_dag
from pyro_causal.infer.priors import BernoulliGraph

__all__ = ["EdgeRules", "LocalScores", "Parents", "Score", "edge_rules", "every_set"]

Parents: TypeAlias = tuple[int, ...]
Score: TypeAlias = Callable[[Parents, tuple[int, ...]], Tensor]


class EdgeRules(NamedTuple):
    """Which edges graphs must have and may have, and the log odds of the others."""

    odds: Tensor  # [d, d], zero for certain edges
    required: Tensor  # [d, d]
    forbidden: Tensor  # [d, d]
    max_parents: int

    def excluded(self, member: Tensor) -> Tensor:
        """Which nodes may not have which sets of parents, both as booleans ``[S, d]``."""
        some = member.double()
        excluded = member | (some @ self.forbidden.double() > 0)
        excluded |= (1 - some) @ self.required.double() > 0
        return excluded | (member.sum(1, keepdim=True) > self.max_parents)

    def families(self) -> list[tuple[Parents, tuple[int, ...]]]:
        """All sets of parents that some nodes may have, with those nodes."""
        nodes = len(self.odds)
        member = every_set(nodes)
        pairs = zip(member.tolist(), (~self.excluded(member)).tolist(), strict=True)
        both = ((tuple(compress(range(nodes), which)) for which in pair) for pair in pairs)
        return [(parents, having) for parents, having in both if having]


def every_set(nodes: int) -> Tensor:
    """All sets of nodes, as booleans ``[2^d, d]``."""
    return (torch.arange(2**nodes)[:, None] >> torch.arange(nodes)) & 1 == 1


def edge_rules(
    name: str, nodes: int, prior: BernoulliGraph | None, max_parents: int | None
) -> EdgeRules:
    """Read a prior, for the function of this name."""
    if nodes < 1:
        raise ValueError(f"{name}: expected one node or more, got {nodes}. Give their number.")
    most = nodes - 1 if max_parents is None else max_parents
    if most < 0:
        raise ValueError(f"{name}: expected max_parents from 0, got {most}. Give a larger number.")
    logits = torch.zeros(nodes, nodes) if prior is None else prior.logits.detach().cpu()
    if logits.shape != (nodes, nodes):
        raise ValueError(
            f"{name}: expected a prior of graphs of {nodes} nodes, got shape "
            f"{tuple(logits.shape)}. Build it with graph_prior({nodes})."
        )
    loops = torch.eye(nodes, dtype=torch.bool)
    certain = loops if prior is None else prior.certain.cpu() | loops
    required = certain & (logits > 0)
    if not is_dag(required):
        raise ValueError(
            f"{name}: the edges that the prior requires form a cycle: expected an acyclic graph. "
            "Drop one of them; graph_prior names them."
        )
    if required.sum(0).max() > most:
        raise ValueError(
            f"{name}: expected at most max_parents={most} required edges into a node, got "
            f"{required.sum(0).max()}. Allow more parents."
        )
    return EdgeRules(logits.double().masked_fill(certain, 0.0), required, certain & ~required, most)


class LocalScores:
    """Local scores as doubles on the CPU, each asked for once, with the log odds of the edges.

    **Arguments**: the ``score``, its log ``odds`` ``[d, d]`` and the ``name`` for errors.
    """

    def __init__(self, score: Score, odds: Tensor, name: str) -> None:
        self.score = score
        self.odds = odds
        self.name = name
        self.device = torch.device("cpu")
        self.known: dict[tuple[Parents, int], float] = {}

    def ask(self, parents: Parents, nodes: tuple[int, ...]) -> Tensor:
        """Ask for several nodes with the same parents, without a memory and without the odds."""
        values = self.score(parents, nodes)
        if values.shape != (len(nodes),):
            raise ValueError(
                f"{self.name}: expected local scores [{len(nodes)}] of the nodes {nodes}, got "
                f"shape {tuple(values.shape)}. Return one for each node."
            )
        self.device = values.device
        values = values.detach().to("cpu", torch.float64)
        if not values.isfinite().all():
            raise ValueError(
                f"{self.name}: expected finite local scores, got {values.tolist()} for the nodes "
                f"{nodes} with parents {parents}. Forbid edges by the prior instead."
            )
        return values

    def __call__(self, families: Sequence[tuple[Parents, int]]) -> Tensor:
        """The scores of families, each the parents of a node and the node: ``[len(families)]``."""
        groups: dict[Parents, list[int]] = {}
        for parents, node in dict.fromkeys(families):
            if (parents, node) not in self.known:
                groups.setdefault(parents, []).append(node)
        for parents, group in groups.items():
            values = self.ask(parents, tuple(group)) + self.odds[list(parents)][:, group].sum(0)
            self.known |= {(parents, j): v for j, v in zip(group, values.tolist(), strict=True)}
        return torch.tensor([self.known[family] for family in families], dtype=torch.float64)
