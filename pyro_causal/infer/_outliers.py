"""How well some parents explain a node in all rows at once, of which some are outliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_causal.infer._components import Components
from pyro_causal.infer._regressions import OWN_RIDGE, RandomFeatures, gaussian, ridge

__all__ = ["OutlierScores", "outlier_components"]

ROWS, HELD = 4000, 2000  # about, to fit and to score
ABSOLUTE, STEPS = 5, 5  # of least absolute residuals, and of the mixture
TINY = 0.1  # of the median residual, below which rows count alike
NORMAL = 0.455  # the median of the square of a standard normal
START, FEWEST, MOST = 0.3, 0.01, 0.5  # the share of outliers: at first, at least and at most
SMALLEST, NARROWEST = 1e-8, 1e-3  # variances at least: of residuals and of outliers
WORST = -50.0  # the log-density of a value at least, so that single rows decide nothing


class _Law(NamedTuple):
    """That of J nodes, for m features of the same parents.

    **Shapes**: ``weights [J, m]``; all others ``[J, 1]``.
    """

    weights: Tensor
    variance: Tensor
    share: Tensor
    mean: Tensor
    wide: Tensor

    def log_densities(self, features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Those of values ``[J, N]`` to be ordinary, and outliers, with their shares."""
        squares = (y - self.weights @ features.mT).square()
        ordinary = gaussian(squares, self.variance) + (-self.share).log1p()
        return ordinary, gaussian((y - self.mean).square(), self.wide) + self.share.log()


class OutlierScores:
    r"""Held-out log-likelihoods of nodes given parents, for a search without regimes.

    .. math:: p_j(x_j \mid x_{\mathrm{pa}(j)}) = (1 - \epsilon_j) \,
        N(x_j; w_j^\top \phi(x_{\mathrm{pa}(j)}), s_j^2) + \epsilon_j N(x_j; m_j, v_j)

    Most interventions leave a node alone. Rows in which it is a target are outliers of the one law
    of all the others. That needs no regimes, which are hard to tell without a graph; and where laws
    are curves with little noise, it tells directions, too. It fails where a node is a target in
    nearly half of the rows.

    **References**: *Mixture models, outliers, and the EM algorithm* (Aitkin & Wilson 1980);
    *Robust regression using iteratively reweighted least-squares* (Holland & Welsch 1977);
    *Nonlinear causal discovery with additive noise models* (Hoyer, Janzing, Mooij, Peters &
    Schölkopf 2008).

    **Arguments**

    - ``x``: rows ``[N, d]``, standardised; ``held``: which of them are held out, booleans ``[N]``.
    - ``features``: of these rows.
    - ``edge``: what it costs, in nats for each row of the data.
    """

    def __init__(self, x: Tensor, features: RandomFeatures, *, held: Tensor, edge: float) -> None:
        fitted, rest = (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)
        fitted = fitted[:: max(1, len(fitted) // ROWS)]
        rest = rest[:: max(1, len(rest) // HELD)]
        self.features = features.of(torch.cat([fitted, rest]))
        self.x, self.held = x[fitted], x[rest]
        self.edge, self.size = edge * len(x), len(x)
        self.found = dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]]()

    def __call__(self, parents: tuple[int, ...], nodes: tuple[int, ...]) -> Tensor:
        """The scores ``[len(nodes)]`` of nodes that all have these parents."""
        new = [node for node in nodes if (node, parents) not in self.found]
        if new:
            scores, ordinary = self._score(self.features(parents), parents, new)
            for node, score, rows in zip(new, scores, ordinary, strict=True):
                self.found[node, parents] = score, rows
        return torch.stack([self.found[node, parents][0] for node in nodes])

    def ordinary(self, parents: tuple[int, ...], node: int) -> Tensor:
        """Which of the rows are no outliers, booleans; for families with scores."""
        return self.found[node, parents][1]

    def score_with(self, features: Tensor, parents: tuple[int, ...], node: int) -> Tensor:
        """The score of a node by other features of its parents."""
        return self._score(features, parents, [node])[0][0]

    def outliers(
        self, x: Tensor, graph: Tensor, features: Callable[[Sequence[int], int], Tensor]
    ) -> Tensor:
        """The log odds of all values ``[N, d]`` to be outliers in a graph."""
        odds = []
        for node, column in enumerate(graph.mT):
            a, y = features(column.nonzero().flatten().tolist(), node), x[:, [node]].mT
            ordinary, outlier = self._fit(a, y).log_densities(a, y)
            odds.append((outlier - ordinary).squeeze(0))
        return torch.stack(odds, 1)

    def _score(
        self, features: Tensor, parents: tuple[int, ...], nodes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        a, y = features[: len(self.x)], self.x[:, nodes].mT
        law = self._fit(a, y)
        ordinary, outlier = law.log_densities(a, y)
        held = torch.logaddexp(*law.log_densities(features[len(self.x) :], self.held[:, nodes].mT))
        held = held.clamp(min=WORST)
        return held.mean(1) * self.size - self.edge * len(parents), ordinary > outlier

    def _fit(self, features: Tensor, y: Tensor) -> _Law:
        """Weighted least squares and weights in turn.

        At first these are such that absolute residuals are least, from which many outliers do not
        drag a law away, as they do from least squares; the median tells of the spread then.
        """
        rows, law = torch.ones_like(y), None
        for step in range(ABSOLUTE + STEPS):
            gram = (features.mT * rows.unsqueeze(1)) @ features
            cross = ((rows * y) @ features).unsqueeze(-1)
            weights = ridge(gram, cross, strength=OWN_RIDGE).squeeze(-1)
            squares = (y - weights @ features.mT).square()
            if step < ABSOLUTE:
                middle = squares.median(1, keepdim=True).values.clamp(min=SMALLEST)
                rows = (squares / middle).sqrt().clamp(min=TINY).reciprocal()
                continue
            if law is None:
                variance = squares.median(1, keepdim=True).values / NORMAL
                share, mean = torch.full_like(variance, START), torch.zeros_like(variance)
                wide = torch.ones_like(variance)
            else:
                variance = _mean(squares, rows)
                share = (1 - rows).mean(1, keepdim=True).clamp(FEWEST, MOST)
                mean = _mean(y, 1 - rows)
                wide = _mean((y - mean).square(), 1 - rows)
            law = _Law(
                weights, variance.clamp(min=SMALLEST), share, mean, wide.clamp(min=NARROWEST)
            )
            ordinary, outlier = law.log_densities(features, y)
            rows = (ordinary - outlier).sigmoid()
        assert law is not None
        return law


def outlier_components(odds: Tensor, *, most: int) -> Components:
    """Rows that are ordinary, and those that are outliers first of all of one node, for each.

    **Arguments**: log odds ``[N, d]`` of values to be outliers; of how many components ``most``,
    the largest are kept.
    """
    largest, node = odds.max(1)
    labels = torch.where(largest > 0, 1 + node, 0)
    q = torch.nn.functional.one_hot(labels, 1 + odds.shape[1]).to(odds)
    q = q[:, q.sum(0).argsort(descending=True, stable=True)[:most].sort().values] + 1e-6
    free = torch.ones_like(q, dtype=torch.bool)
    return Components(q / q.sum(1, keepdim=True), free, free[0] & False)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (weights * values).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1e-3)
