"""Laws whose residuals have a spread that depends on the parents, and any shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_causal.infer._regressions import FLOOR, gaussian, ridge, ridge_factor, take

__all__ = ["FEWEST", "LIGHTEST", "VaryingLaw", "fit_varying", "grow_targets"]

FEWEST = 3  # rows for each feature
UNITS = 30  # random features of the log-variance, and of the tilt
SHRINKAGE = 1e-5  # of the mean; held-out rows like it better than the smaller one of searches
DAMPING = 1e-3  # of steps to the log-variance
STEPS = 6
ROWS = 4000  # about, that a law is fitted to
LIGHTEST = 1e-4  # weight of rows that count
TRIES = 3  # regimes, before it ends
PARTS = 4  # of the mixture that is the shape of residuals
SHAPE_STEPS = 15
NARROWEST = 1e-4  # the least variance of a part, where residuals have variance one
WAVES = 12  # of the tilt
LEAST = 0.05  # the tilt at least
GRID = 50
STRAY, STRAY_VARIANCE = 0.01, 4.0  # of rows that follow no law; variables have variance one
LARGEST = 3.0  # log-variance


class VaryingLaw(NamedTuple):
    r"""A law of a variable given features of its parents.

    .. math:: p(y \mid \phi) &= (1 - \varepsilon) \, \tfrac{1}{\sigma} f(u) \, t(F(u) \mid \phi)
        + \varepsilon N(y; 0, 4), \qquad u = (y - a^\top \phi) / \sigma, \quad
        \log \sigma^2 = b^\top \phi \\
        f(u) &= \textstyle\sum_c w_c N(u; m_c, s_c^2), \qquad
        t(v \mid \phi) \propto \max\bigl(0.05, 1 + \sum_k C_k^\top \phi \,
        \sqrt 2 \cos(\pi k v)\bigr)

    A mixture f, with distribution function F, is the shape that residuals have on the whole; the
    tilt t is how it depends on the parents.

    The tilt is a density on (0, 1) in an orthogonal series, whose coefficients are regressions.

    **References**: *Converting high-dimensional regression to high-dimensional conditional density
    estimation*, https://arxiv.org/abs/1704.08095, of the values themselves there, and of their
    ranks among residuals here, so that few terms are enough.

    **Shapes**: ``mean [m]`` the weights a, ``spread [s]`` the weights b of the first s features,
    ``shape`` the logarithms of w, the centres and the variances of the parts, ``[3, C]``, ``tilt``
    ``[s, B]`` the weights C.
    """

    mean: Tensor
    spread: Tensor
    shape: Tensor
    tilt: Tensor

    def log_density(self, features: Tensor, y: Tensor) -> Tensor:
        """Of rows of features ``[N, m]`` and values ``[N]``."""
        log_variance = _log_variance(features, self.spread)
        u = (y - features @ self.mean) * (-0.5 * log_variance).exp()
        law = _parts(u, self.shape).logsumexp(0) - 0.5 * log_variance
        if self.tilt.any():
            law = law + self._log_tilt(features[:, : len(self.tilt)], u)
        stray = gaussian(y.square(), y.new_tensor(STRAY_VARIANCE)) + math.log(STRAY)
        return torch.logaddexp(law + math.log(1 - STRAY), stray)

    def _log_tilt(self, features: Tensor, u: Tensor) -> Tensor:
        heights = features @ self.tilt
        middles = (torch.arange(GRID).to(u) + 0.5) / GRID
        whole = (1 + heights @ _waves(middles).mT).clamp(min=LEAST).mean(1)
        here = (1 + (heights * _waves(_rank(u, self.shape))).sum(1)).clamp(min=LEAST)
        return (here / whole).log()


def fit_varying(
    features: Tensor, y: Tensor, weights: Tensor, *, parents: int, mean: Tensor | None = None
) -> VaryingLaw:
    """Fit a law to weighted rows: mean and log-variance in turn, then shape and tilt.

    Without parents it is Gaussian. Of many rows some are enough, at regular distances.

    **Shapes**: ``features [N, m]``, of which the first is 1 and the next are the parents, ``y [N]``
    and ``weights [N]``; ``mean [m]`` to start from, by default least squares.
    """
    some = (weights > LIGHTEST).nonzero().squeeze(-1)
    if len(some):
        some = some[:: max(1, len(some) // ROWS)]
        features, y, weights = take(features, some), y[some], weights[some]
    total = weights.sum().clamp(min=1)
    if mean is None or not parents:
        mean = _least_squares(features, y, weights)
    squares = (y - features @ mean).square()
    spread = torch.zeros_like(mean[: 1 + parents + UNITS])
    spread[0] = ((weights * squares).sum() / total + FLOOR).log()
    tilt = spread.new_zeros(len(spread), WAVES)
    if not parents:
        return VaryingLaw(mean, spread, mean.new_tensor([[0.0], [0.0], [1.0]]), tilt)
    few = features[:, : len(spread)]
    on_few = _Regression.of(few, weights)
    spread = on_few.solve((squares + FLOOR).log() + 1.27)  # less the mean of logs of chi-squares
    spread = _fit_spread(on_few, squares, spread)
    precise = weights * (-_log_variance(few, spread)).exp()
    mean = _least_squares(features, y, precise / precise.mean().clamp(min=1e-12))
    residuals = y - features @ mean
    spread = _fit_spread(on_few, residuals.square(), spread)
    u = residuals * (-0.5 * _log_variance(few, spread)).exp()
    shape = _fit_shape(u, weights)
    return VaryingLaw(mean, spread, shape, _fit_tilt(on_few, _rank(u, shape), weights))


def grow_targets(
    own: Tensor, base: Callable[[Tensor], Tensor], *, counts: Tensor, least: float
) -> Tensor:
    """Choose the regimes with a law of their own one at a time, from none: booleans ``[K]``.

    The one that gains most is next, as long as the total rises; targets turn back as well. A law
    that fits most regimes has to come first: fitted to few of them, it would be wrong elsewhere,
    and speak for a law of their own there.

    **Arguments**: ``own [K]``, the log-likelihood of the rows of each regime under its own law,
    less the price of a target; ``base`` gives it ``[K]`` under the law of all regimes but targets;
    ``counts [K]`` rows of a regime, of which the others keep at ``least`` so many.
    """
    targets = torch.zeros_like(own, dtype=torch.bool)
    found = base(targets)
    while True:
        gains = torch.where(targets, found - own, own - found)
        for k in gains.argsort(descending=True)[:TRIES].tolist():
            trial = targets.clone()
            trial[k] ^= True
            if (gains[k] <= 0 and not targets[k]) or counts[~trial].sum() < least:
                continue
            new = base(trial)
            if _total(trial, own, new) > _total(targets, own, found) + 1e-6:
                targets, found = trial, new
                break
        else:
            return targets


def _total(targets: Tensor, own: Tensor, base: Tensor) -> float:
    return float(torch.where(targets, own, base).sum())


def _log_variance(features: Tensor, spread: Tensor) -> Tensor:
    return (features[:, : len(spread)] @ spread).clamp(math.log(FLOOR), LARGEST)


def _parts(u: Tensor, shape: Tensor) -> Tensor:
    """The log of the density of each part, weighted ``[C, N]``."""
    logits, centres, variances = shape.unsqueeze(-1)
    return logits + gaussian((u - centres).square(), variances)


def _rank(u: Tensor, shape: Tensor) -> Tensor:
    logits, centres, variances = shape.unsqueeze(-1)
    return (torch.special.ndtr((u - centres) / variances.sqrt()) * logits.exp()).sum(0)


def _waves(v: Tensor) -> Tensor:
    return math.sqrt(2) * (math.pi * v.unsqueeze(-1) * torch.arange(1, WAVES + 1).to(v)).cos()


class _Regression(NamedTuple):
    """Of anything on features, weighted and damped."""

    features: Tensor
    weighted: Tensor
    factor: Tensor

    @classmethod
    def of(cls, features: Tensor, weights: Tensor) -> _Regression:
        weighted = features.mT * weights
        return cls(features, weighted, ridge_factor(weighted @ features, strength=DAMPING))

    def solve(self, y: Tensor) -> Tensor:
        """The weights ``[m]`` or ``[m, J]`` of features, for values ``[N]`` or ``[N, J]``."""
        cross = (self.weighted @ y).view(len(self.factor), -1)
        return torch.cholesky_solve(cross, self.factor).view(-1, *y.shape[1:])


def _least_squares(features: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    weighted = features.mT * weights
    cross = (weighted @ y).unsqueeze(-1)
    return ridge(weighted @ features, cross, strength=SHRINKAGE).squeeze(-1)


def _fit_spread(few: _Regression, squares: Tensor, spread: Tensor) -> Tensor:
    """Fisher scoring of a log-variance linear in features."""
    for _ in range(STEPS):
        ratio = squares * (-_log_variance(few.features, spread)).exp()
        spread = spread + few.solve(ratio.clamp(max=10) - 1).clamp(-2, 2)
    return spread


def _fit_tilt(few: _Regression, rank: Tensor, weights: Tensor) -> Tensor:
    """The mean of each wave given features, shrunk by as much of it as chance explains."""
    tilt = few.solve(_waves(rank))
    explained = weights @ (few.features @ tilt).square()
    return tilt * (1 - len(tilt) / explained.clamp(min=1e-9)).clamp(min=0)


def _fit_shape(u: Tensor, weights: Tensor) -> Tensor:
    """A mixture of Gaussians of standardised residuals, by EM."""
    u = u.clamp(-8, 8)
    order = u[weights >= 0.5 * weights.max()].sort().values
    places = torch.linspace(0, 1, 2 * PARTS + 1)[1::2].to(u)
    centres = order[(places * (len(order) - 1)).long()]
    variances = torch.full_like(centres, float(order.var(correction=0)) / 4 + NARROWEST)
    shape = torch.stack([torch.full_like(centres, -math.log(PARTS)), centres, variances])
    for _ in range(SHAPE_STEPS):
        r = _parts(u, shape).softmax(0) * weights
        counts = r.sum(1) + 1e-6
        centres = r @ u / counts
        variances = (r * (u - centres.unsqueeze(-1)).square()).sum(1) / counts
        shape = torch.stack(
            [(counts / counts.sum()).log(), centres, variances.clamp(min=NARROWEST)]
        )
    return shape
