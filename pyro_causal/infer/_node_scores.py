"""How well some parents explain a node in all regimes, on rows that took no part in the fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_causal.infer._regressions import (
    OWN,
    Moments,
    RandomFeatures,
    Shared,
    choose_targets,
    fit_own,
    fit_shared,
    gaussian,
    parameter_price,
)

__all__ = ["NodeScores"]

WORST = -50.0  # the log-density of a row at least, so that single rows decide nothing


class NodeScores:
    """Held-out log-likelihoods of nodes given parents, for a search over graphs.

    A node has one law in all regimes but its targets, which are chosen for each set of parents, or
    are known. On those it has its own: a Gaussian without parents (stochastic), or, if
    interventions may be imperfect and it fits better, a regression of its own.

    **Arguments**

    - ``x``: rows ``[N, d]``, standardised; ``labels``: the regime of each, ``[N]`` below
      ``regimes``; ``held``: which of them are held out, booleans ``[N]``.
    - ``features``: of these rows.
    - ``imperfect``: whether targets may keep their parents.
    - ``edge``, ``target``: what each costs, in nats for each row of the data.
    - ``targets``: known ones ``[K, d]``, booleans.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        *,
        regimes: int,
        features: RandomFeatures,
        held: Tensor,
        imperfect: bool,
        edge: float,
        target: float,
        targets: Tensor | None = None,
    ) -> None:
        self.regimes, self.features, self.imperfect = regimes, features, imperfect
        self.edge, self.target, self.known = edge * len(x), target * len(x), targets
        self.penalty = parameter_price(len(x))
        order = labels.argsort(stable=True)
        self.fit_rows, self.held_rows = order[~held[order]], order[held[order]]
        self.x, self.held = x[self.fit_rows], x[self.held_rows]
        self.labels, self.held_labels = labels[self.fit_rows], labels[self.held_rows]
        self.sizes = torch.bincount(self.labels, minlength=regimes).tolist()
        self.weight = len(x) / len(self.held)
        alone = Moments.of(self.x.new_ones(len(self.x), 1), self.x, self.sizes)
        self.means, self.variances, self.alone = fit_own(alone, price=self.penalty)
        self.found: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def __call__(self, parents: tuple[int, ...], nodes: tuple[int, ...]) -> Tensor:
        """The scores ``[len(nodes)]`` of nodes that all have these parents."""
        index = list(nodes)
        every = self.features(parents)
        fitted, held = every[self.fit_rows], every[self.held_rows]
        moments = Moments.of(fitted, self.x[:, index], self.sizes)
        own, density = self._own(moments, held, index, parents)
        shared = self._shared(moments, own, index)
        for node, targets in zip(nodes, shared.targets, strict=True):
            self.found[node, parents] = targets
        base = gaussian((self.held[:, index] - held @ shared.weights.mT) ** 2, shared.variance)
        density = torch.where(shared.targets.mT[self.held_labels], density, base)
        total = density.clamp(min=WORST).sum(0) * self.weight
        return total - self.edge * len(parents) - self.target * shared.targets.sum(1)

    def targets(self, adjacency: Tensor) -> Tensor:
        """Those found with the parents of a graph, ``[K, d]``."""
        parents = [tuple(column.nonzero().flatten().tolist()) for column in adjacency.mT]
        for node, which in enumerate(parents):
            if (node, which) not in self.found:
                self(which, (node,))
        return torch.stack([self.found[node, which] for node, which in enumerate(parents)], 1)

    def _shared(self, moments: Moments, own: Tensor, index: list[int]) -> Shared:
        if self.known is not None:
            return fit_shared(moments, own, self.known[:, index].mT)
        return choose_targets(moments, own)

    def _own(
        self, moments: Moments, held: Tensor, index: list[int], parents: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """What regimes gain by laws of their own ``[J, K]``, and log-densities of held rows."""
        own, z = self.alone[index] - self.target, self.held_labels
        means = self.means[:, 0, index]
        density = gaussian((self.held[:, index] - means[z]) ** 2, self.variances[:, index][z])
        if not (self.imperfect and parents):
            return own, density
        size = 1 + len(parents) + min(OWN, self.features.units)
        weights, variances, totals = fit_own(moments.features(size), price=self.penalty)
        sizes = torch.bincount(z, minlength=self.regimes).tolist()
        rows = held[:, :size].split(sizes)
        predicted = torch.cat([part @ w for part, w in zip(rows, weights, strict=True)])
        keeps = totals - self.target > own
        regression = gaussian((self.held[:, index] - predicted) ** 2, variances[z])
        density = torch.where(keeps.mT[z], regression, density)
        return torch.maximum(own, totals - self.target), density
