"""How well some parents explain a node in all regimes, on rows that took no part in the fit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_causal.infer._fitted_units import (
    ROWS,
    UNITS,
    Family,
    FittedFeatures,
    Units,
    first_units,
    fit_units,
)
from pyro_causal.infer._local_scores import Parents
from pyro_causal.infer._outliers import OutlierScores
from pyro_causal.infer._regressions import (
    OWN,
    Assumptions,
    Moments,
    RandomFeatures,
    choose_targets,
    fit_own,
    fit_shared,
    gaussian,
    parameter_price,
    ridge,
)
from pyro_causal.infer._varying_scale import (
    FEWEST,
    SHRINKAGE,
    VaryingLaw,
    fit_varying,
    grow_targets,
)

__all__ = ["FittedScores", "NodeScores"]

WORST = -50.0  # the log-density of a row at least, so that single rows decide nothing
MOST = 16  # sets of parents at once
NUMBERS = 10_000_000  # kept for them, about

Asked: TypeAlias = tuple[Parents, tuple[int, ...]]  # parents, and nodes


class NodeScores:
    """Held-out log-likelihoods of nodes given parents, for a search over graphs.

    A node has one law in all regimes but its targets, which are chosen for each set of parents, or
    are known. On those it has its own: a Gaussian without parents (stochastic), or, if
    interventions may be imperfect and it fits better, a regression of its own.

    **Arguments**

    - ``x``: rows ``[N, d]``, standardised; ``labels``: the regime of each, ``[N]`` below
      ``regimes``; ``held``: which of them are held out, booleans ``[N]``.
    - ``features``: of these rows.
    - ``assumed``: of laws and targets.
    - ``edge``: what it costs, in nats for each row of the data.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        *,
        regimes: int,
        features: RandomFeatures,
        held: Tensor,
        assumed: Assumptions,
        edge: float,
    ) -> None:
        self.regimes, self.assumed = regimes, assumed
        self.edge, self.target = edge * len(x), assumed.target * len(x)
        self.penalty = parameter_price(len(x))
        order = labels.argsort(stable=True)
        fit_rows, held_rows = order[~held[order]], order[held[order]]
        self.features = features.of(torch.cat([fit_rows, held_rows]))
        self.x, self.held = x[fit_rows], x[held_rows]
        self.labels, self.held_labels = labels[fit_rows], labels[held_rows]
        self.sizes = torch.bincount(self.labels, minlength=regimes).tolist()
        self.weight = len(x) / len(self.held)
        alone = Moments.of(self.x.new_ones(len(self.x), 1), self.x, self.sizes)
        self.means, self.variances, self.alone = fit_own(alone, price=self.penalty)
        self.found: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def __call__(self, parents: tuple[int, ...], nodes: tuple[int, ...]) -> Tensor:
        """The scores ``[len(nodes)]`` of nodes that all have these parents."""
        new = [node for node in nodes if (node, parents) not in self.found]
        if new:
            self._find([(parents, tuple(new))])
        return torch.stack([self.found[node, parents][0] for node in nodes])

    def with_fixed_spread(self) -> NodeScores:
        """The same scores for laws whose spread does not depend on the parents, which are fast."""
        other = copy.copy(self)
        other.assumed, other.found = self.assumed._replace(varying=False), {}
        return other

    def ask_all(self, families: Sequence[Asked]) -> None:
        """Find the scores of many sets of parents, as many at once as memory allows."""
        alike: dict[tuple[int, int], list[Asked]] = {}
        for parents, nodes in families:
            alike.setdefault((len(parents), len(nodes)), []).append((parents, nodes))
        rows, regimes = self.features.columns.shape[1], self.regimes
        for (parents_each, nodes_each), group in alike.items():
            features = 1 + parents_each + self.features.units
            numbers = features * (rows + regimes**2 * nodes_each)
            many = min(max(1, NUMBERS // numbers), MOST)
            for first in range(0, len(group), many):
                self._find(group[first : first + many])

    def ordinary(self, parents: tuple[int, ...], node: int) -> Tensor:
        """In which of the rows a node is no target, booleans; for families with scores."""
        return ~self.found[node, parents][1][self.labels]

    def score_with(self, features: Tensor, parents: tuple[int, ...], node: int) -> Tensor:
        """The score of a node by other features of its parents, with the same targets."""
        chosen = self.found[node, parents][1]
        return self.score_by([features], [(parents, (node,))], chosen=chosen)[0][0, 0]

    def _find(self, families: Sequence[Asked]) -> None:
        """Score sets of parents and nodes, of the same numbers each."""
        every = [self.features(parents) for parents, _ in families]
        scores, targets = self.score_by(every, families)
        for (parents, nodes), row, which in zip(families, scores, targets, strict=True):
            for node, score, one in zip(nodes, row, which, strict=True):
                self.found[node, parents] = score, one

    def score_by(
        self,
        every: Sequence[Tensor],
        families: Sequence[Asked],
        *,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores ``[B, J]`` and targets ``[B, J, K]`` of B sets of parents and J nodes of each.

        All sets have the same size, and features ``[N, m]`` of all rows each; where spreads vary,
        targets ``[K]`` may be given.
        """
        index = torch.tensor([nodes for _, nodes in families], device=self.x.device)
        fitted = [features[: len(self.x)] for features in every]
        held = torch.stack([features[len(self.x) :] for features in every])
        moments = Moments.stack(
            [
                Moments.of(a, self.x[:, nodes], self.sizes)
                for a, nodes in zip(fitted, index, strict=True)
            ]
        )
        size = len(families[0][0])
        own, density = self._own(moments, held, index, size)
        if self.assumed.observational:
            own[..., 0] = -torch.inf
        if self.assumed.varying:
            parts = [
                self._varying(
                    moments.at(b).responses([j]), a, held[b], own[b, j], int(node), size, chosen
                )
                for b, a in enumerate(fitted)
                for j, node in enumerate(index[b])
            ]
            base = torch.stack([part for part, _ in parts]).view(*index.shape, -1)
            targets = torch.stack([which for _, which in parts]).view_as(own)
        else:
            base, targets = self._fixed(moments, held, own, index)
        density = torch.where(targets[..., self.held_labels], density, base)
        total = density.clamp(min=WORST).sum(-1) * self.weight
        return total - self.edge * size - self.target * targets.sum(-1), targets

    def _fixed(
        self, moments: Moments, held: Tensor, own: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-densities of held rows ``[B, J, H]`` under regressions, and targets ``[B, J, K]``."""
        if self.assumed.targets is None:
            shared = choose_targets(moments, own)
        else:
            shared = fit_shared(moments, own, self.assumed.targets.mT[index])
        squares = (self.held.mT[index] - shared.weights @ held.mT).square()
        return gaussian(squares, shared.variance.unsqueeze(-1)), shared.targets

    def _varying(
        self,
        moments: Moments,
        fitted: Tensor,
        held: Tensor,
        own: Tensor,
        node: int,
        parents: int,
        chosen: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The same of one node under a law of varying spread, ``[H]`` and ``[K]``."""
        y = self.x[:, node]
        laws: dict[tuple[bool, ...], VaryingLaw] = {}

        def law(targets: Tensor) -> VaryingLaw:
            key, use = tuple(targets.tolist()), ~targets
            if key not in laws:
                gram, cross = moments.gram[use].sum(0), moments.cross[use].sum(0)
                mean = ridge(gram, cross, strength=SHRINKAGE).squeeze(-1)
                rows = use.to(y)[self.labels]
                laws[key] = fit_varying(fitted, y, rows, parents=parents, mean=mean)
            return laws[key]

        def base(targets: Tensor) -> Tensor:
            density = law(targets).log_density(fitted, y)
            return torch.zeros_like(moments.counts).index_add(0, self.labels, density)

        if self.assumed.targets is not None:
            chosen = self.assumed.targets[:, node]
        elif chosen is None:
            least = FEWEST * fitted.shape[1]
            chosen = grow_targets(own, base, counts=moments.counts, least=least)
        return law(chosen).log_density(held, self.held[:, node]), chosen

    def _own(
        self, moments: Moments, held: Tensor, index: Tensor, parents: int
    ) -> tuple[Tensor, Tensor]:
        """What regimes gain by laws of their own ``[B, J, K]``, and held rows' log-densities."""
        own, z = self.alone[index] - self.target, self.held_labels
        values, means, variances = self.held.mT[index], self.means[:, 0].mT, self.variances.mT
        density = gaussian((values - means[index][..., z]).square(), variances[index][..., z])
        if not (self.assumed.imperfect and parents):
            return own, density
        size = 1 + parents + min(OWN, self.features.units)
        weights, variances, totals = fit_own(moments.features(size), price=self.penalty)
        rows = held[..., :size].split(torch.bincount(z, minlength=self.regimes).tolist(), 1)
        fits = zip(rows, weights.unbind(1), strict=True)
        predicted = torch.cat([part @ w for part, w in fits], 1).mT
        keeps = totals - self.target > own
        regression = gaussian((values - predicted).square(), variances.mT[..., z])
        density = torch.where(keeps[..., z], regression, density)
        return torch.maximum(own, totals - self.target), density


class FittedScores:
    """The same scores with units fitted to each node and its parents, where they predict better.

    They are fitted to the rows in which it is no target, or no outlier, by the scores without them;
    so are laws whose spread varies, for which it takes long to choose targets. All fits start from
    the same random features, so that scores differ by what parents explain rather than by where a
    fit starts; still they end in different optima, and scores are not as exact as without units.

    **Arguments**: ``rough``, the scores without units.
    """

    def __init__(self, rough: NodeScores | OutlierScores) -> None:
        self.rough = rough
        self.units = dict[Family, Units]()  # those that predict better
        self.found = dict[Family, Tensor]()

    def __call__(self, parents: tuple[int, ...], nodes: tuple[int, ...]) -> Tensor:
        """The scores ``[len(nodes)]`` of nodes that all have these parents."""
        rough = self.rough(parents, nodes)
        for node, score in zip(nodes, rough, strict=True):
            if (node, parents) not in self.found:
                self.found[node, parents] = self._fit(parents, node, score) if parents else score
        return torch.stack([self.found[node, parents] for node in nodes])

    def of(self, graph: Tensor) -> dict[Family, Units]:
        """The units of each node with its parents in a graph, where they predict better."""
        families = [(j, tuple(col.nonzero().flatten().tolist())) for j, col in enumerate(graph.mT)]
        for node, parents in families:
            self(parents, (node,))
        return {family: self.units[family] for family in families if family in self.units}

    def _fit(self, parents: tuple[int, ...], node: int, least: Tensor) -> Tensor:
        """Keep units that score more than the least."""
        rough, family = self.rough, (node, parents)
        free = rough.ordinary(parents, node)
        if free.sum() < ROWS / 10:  # too few; units may be good for all regimes
            free = torch.ones_like(free)
        rows = free.nonzero().squeeze(1)
        rows = rows[:: max(1, len(rows) // ROWS)]
        x = rough.x[rows][:, list(parents)]
        directions, kinks = rough.features.directions, rough.features.kinks
        start = first_units(x, directions[list(parents), :UNITS], kinks[list(parents), :UNITS])
        units = fit_units(x, rough.x[rows, node], start)
        every = FittedFeatures(rough.features, {family: units})(parents, node)
        score = rough.score_with(every, parents, node)
        if score > least:
            self.units[family] = units
        return torch.maximum(score, least)
