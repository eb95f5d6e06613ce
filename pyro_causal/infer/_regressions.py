"""Regressions of many nodes in many regimes at once, from moments of shared features."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "FLOOR",
    "OWN",
    "OWN_RIDGE",
    "RIDGE",
    "Assumptions",
    "Moments",
    "RandomFeatures",
    "Shared",
    "choose_targets",
    "exchange",
    "fit_own",
    "fit_shared",
    "gaussian",
    "parameter_price",
    "ridge",
    "ridge_factor",
    "take",
    "unlike_one",
]

FLOOR = 1e-10  # of variances, where variables have variance one
RIDGE = 1e-9  # of each feature's second moment
OWN = 24  # random features of a regression in one regime, which has fewer rows
OWN_RIDGE = 1e-7


class Assumptions(NamedTuple):
    """What is assumed of laws and targets.

    **Arguments**

    - ``imperfect``: whether targets may keep their parents.
    - ``varying``: whether the spread of residuals depends on the parents.
    - ``target``: what a target costs, in nats for each row of the data.
    - ``targets``: known ones ``[K, d]``, booleans.
    - ``observational``: whether regime 0 is known to have none, though others are unknown.
    """

    imperfect: bool = False
    varying: bool = False
    target: float = 0.0
    targets: Tensor | None = None
    observational: bool = False


class RandomFeatures:
    r"""A constant, some of the variables, and rectified sums of them in random directions.

    .. math:: \phi_P(x) = \bigl(1, x_P, \max(0, (v_m^\top x_P - c_m) / s_m)\bigr)

    Regressions on them are linear without any units, and else of any shape. The directions are
    drawn once, so that sets of variables that share some share what is drawn, too; kinks are at
    values of rows.

    **Arguments**: ``x``, rows of all variables ``[N, d]``; ``units``, of them.
    """

    def __init__(self, x: Tensor, *, units: int) -> None:
        self.columns, self.units = x.mT.contiguous(), units
        self.directions = torch.randn(x.shape[1], units, dtype=x.dtype, device=x.device)
        self.kinks = x[torch.randint(len(x), (units,), device=x.device)].mT
        self.covariance = torch.atleast_2d(self.columns.cov())

    def parts(self, units: int) -> list[RandomFeatures]:
        """So many of the units, the next ones, and so on; one part where there are not as many."""
        parts = []
        for first in range(0, max(1, self.units - units + 1), units):
            other, some = copy.copy(self), slice(first, first + units)
            other.directions, other.kinks = self.directions[:, some], self.kinks[:, some]
            other.units = other.directions.shape[1]
            parts.append(other)
        return parts

    def of(self, rows: Tensor) -> RandomFeatures:
        """The same functions of some rows, by their index."""
        other = copy.copy(self)
        other.columns = self.columns[:, rows]
        return other

    def __call__(self, parents: Sequence[int], node: int | None = None) -> Tensor:
        """The features of a set of variables, ``[N, 1 + len(parents) + units]``; without, a 1.

        They are the same for every node whose parents these are.

        Columns are next to each other in memory, which is what products of them are fast for.
        """
        x, number = self.columns[list(parents)], 1 + len(parents)
        units = self.units if parents else 0
        features = x.new_empty(number + units, x.shape[1])
        features[0], features[1:number] = 1, x
        if units:
            v, covariance = self.directions[list(parents)], self.covariance[list(parents)]
            scale = (v * (covariance[:, list(parents)] @ v)).sum(0, keepdim=True).sqrt()
            kinks = (v * self.kinks[list(parents)]).sum(0, keepdim=True)
            torch.addmm((-kinks / scale).mT, (v / scale).mT, x, out=features[number:]).clamp_(min=0)
        return features.mT


def take(features: Tensor, rows: Tensor) -> Tensor:
    """Some rows of features, in the same layout."""
    return features.mT.index_select(1, rows).mT


class Moments(NamedTuple):
    """What least squares needs of the rows of each regime, perhaps for a batch of features.

    **Shapes**: ``counts [K]``, ``gram [*, K, m, m]`` of the features, ``cross [*, K, m, J]`` of
    features and responses, ``square [*, K, J]`` of responses.
    """

    counts: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def of(cls, features: Tensor, responses: Tensor, sizes: Sequence[int]) -> Moments:
        """Those of rows which are sorted by regime, of which there are so many each."""
        a, y = features.split(list(sizes)), responses.split(list(sizes))
        return cls(
            torch.tensor(sizes, dtype=features.dtype, device=features.device),
            torch.stack([part.mT @ part for part in a]),
            torch.stack([part.mT @ rows for part, rows in zip(a, y, strict=True)]),
            torch.stack([rows.square().sum(0) for rows in y]),
        )

    @classmethod
    def stack(cls, parts: Sequence[Moments]) -> Moments:
        """A batch of those of different features, of the same rows."""
        _, *others = (torch.stack(part) for part in zip(*parts, strict=True))
        return cls(parts[0].counts, *others)

    def at(self, index: int | Tensor) -> Moments:
        """Some, or one, of a batch."""
        return Moments(self.counts, self.gram[index], self.cross[index], self.square[index])

    def responses(self, index: Sequence[int] | Tensor) -> Moments:
        """Those of some of the responses."""
        return Moments(self.counts, self.gram, self.cross[..., index], self.square[..., index])

    def features(self, number: int) -> Moments:
        """Those of the first so many features."""
        gram, cross = self.gram[..., :number, :number], self.cross[..., :number, :]
        return Moments(self.counts, gram, cross, self.square)

    def regimes(self, which: Tensor) -> Moments:
        """Those of some of the regimes ``[K]``, booleans."""
        gram, cross = self.gram[..., which, :, :], self.cross[..., which, :, :]
        return Moments(self.counts[which], gram, cross, self.square[..., which, :])


class Shared(NamedTuple):
    """Regressions of J responses, each on the rows of the regimes which are not its targets.

    **Shapes**: ``targets [*, J, K]``, ``weights [*, J, m]``, ``variance [*, J]``, ``base
    [*, J, K]`` the log-likelihood of the rows of each regime, and ``total [*, J]`` that of all
    rows, where those of targets have a law of their own.
    """

    targets: Tensor
    weights: Tensor
    variance: Tensor
    base: Tensor
    total: Tensor

    def at(self, index: Tensor) -> Shared:
        """Some of a batch."""
        return Shared(*(part[index] for part in self))

    def put(self, index: Tensor, other: Shared) -> None:
        """Take over some of a batch, in place."""
        for mine, new in zip(self, other, strict=True):
            mine[index] = new

    def where(self, which: Tensor, other: Shared) -> Shared:
        """These responses where a condition ``[*, J]`` holds, others elsewhere."""
        wide = which.unsqueeze(-1)
        return Shared(
            *(
                torch.where(which if mine.dim() == which.dim() else wide, mine, new)
                for mine, new in zip(self, other, strict=True)
            )
        )


def fit_shared(moments: Moments, own: Tensor, targets: Tensor) -> Shared:
    """Fit what all regimes but the targets share.

    **Shapes**: ``own [*, J, K]`` the log-likelihood of each regime's rows under its own law,
    ``targets [*, J, K]``, booleans.
    """
    counts, gram, cross, _ = moments
    use = (~targets).to(gram)
    weights = ridge(
        (use @ gram.flatten(-2)).unflatten(-1, gram.shape[-2:]),
        torch.einsum("...jk,...kmj->...jm", use, cross).unsqueeze(-1),
    ).squeeze(-1)
    squares = _squares(moments, weights.mT.unsqueeze(-3)).mT
    variance = ((squares * use).sum(-1) / (use @ counts).clamp(min=1)).clamp(min=FLOOR)
    base = gaussian(squares, variance.unsqueeze(-1), counts)
    return Shared(targets, weights, variance, base, torch.where(targets, own, base).sum(-1))


def fit_own(moments: Moments, *, price: float) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a regression in each regime by itself, where it has the rows for it.

    Returns weights ``[*, K, m, J]``, variances ``[*, K, J]`` and the log-likelihood ``[*, J, K]``,
    less the price of each parameter; minus infinity with fewer than two rows for each.
    """
    counts, gram, cross, _ = moments
    size = gram.shape[-1]
    weights = ridge(gram, cross, strength=OWN_RIDGE)
    squares = _squares(moments, weights)
    variance = (squares / counts.clamp(min=1).unsqueeze(-1)).clamp(min=FLOOR)
    total = gaussian(squares, variance, counts.unsqueeze(-1)) - price * (size + 1)
    return weights, variance, total.mT.masked_fill(counts < 2 * size, -torch.inf)


def _squares(moments: Moments, weights: Tensor) -> Tensor:
    """The sums of squared residuals ``[*, K, J]``, under weights ``[*, K or 1, m, J]``."""
    return moments.square + (weights * (moments.gram @ weights - 2 * moments.cross)).sum(-2)


def choose_targets(moments: Moments, own: Tensor) -> Shared:
    """Choose, for each response, the regimes with a law of their own: those that gain by it.

    Regimes change sides one at a time, the one that gains most first, as long as the total gains;
    all at once, regimes that drag the shared regression off would push out others. The better of
    two starts counts: no targets, and all regimes which the law of one of them does not explain.
    The rest keeps at least two rows for each feature.

    **Shapes**: ``own [B, J, K]``, the log-likelihood of each regime's rows under its own law, less
    the price of a target, with moments of a batch of B.
    """
    size = own.shape[1]
    each = torch.arange(size, device=own.device)
    starts = torch.cat([torch.zeros_like(own, dtype=torch.bool), unlike_one(moments, own)], 1)
    both = exchange(moments.responses(each.repeat(2)), own.repeat(1, 2, 1), starts)
    first, second = (
        Shared(*parts) for parts in zip(*(x.split(size, 1) for x in both), strict=True)
    )
    return second.where(second.total > first.total, first)


def exchange(moments: Moments, own: Tensor, targets: Tensor) -> Shared:
    """Let regimes change sides one at a time, for each response by itself.

    **Shapes**: ``own`` and ``targets``, those to start from, ``[B, J, K]``, with moments of a batch
    of B.
    """
    found = now = fit_shared(moments, own, targets.clone())
    counts, least = moments.counts, 2 * moments.gram.shape[-1]
    barred = (counts == 0).expand_as(own)
    live = torch.arange(len(own), device=own.device)
    while True:
        gains = torch.where(now.targets, -1, 1) * (own - now.base)
        rest = (~now.targets).to(own) @ counts
        few = ~now.targets & (rest.unsqueeze(-1) - counts < least)
        gain, regime = gains.masked_fill(few | barred, -torch.inf).max(-1)
        moves = gain > 0
        some = moves.any(1)
        if not some.all():
            found.put(live[~some], now.at(~some))
            if not some.any():
                return found
            moments, now = moments.at(some), now.at(some)
            own, barred, live = own[some], barred[some], live[some]
            regime, moves = regime[some], moves[some]
        move = moves.unsqueeze(-1) & torch.nn.functional.one_hot(regime, len(counts)).bool()
        new = fit_shared(moments, own, now.targets ^ move)
        better = moves & (new.total > now.total + 1e-6)
        # One that was better may not go straight back, and makes others possible again.
        barred = (barred & ~better.unsqueeze(-1)) | move | (counts == 0)
        now = new.where(better, now)


def unlike_one(moments: Moments, own: Tensor) -> Tensor:
    """The regimes which the regression of one of them explains less well than their own laws.

    Of all that have the rows for a regression the best is taken, for each response.

    **Shapes**: ``own [*, J, K]``; targets ``[*, J, K]``, booleans.
    """
    counts, gram, cross, square = moments
    usable = counts >= 2 * gram.shape[-1]
    if not usable.any():
        return torch.zeros_like(own, dtype=torch.bool)
    weights, variances, _ = fit_own(moments.regimes(usable), price=0.0)
    across = weights.movedim(-2, -3)  # [*, m, one, J]
    products = (gram.flatten(-3, -2) @ across.flatten(-2)).unflatten(-1, across.shape[-2:])
    products = products.unflatten(-3, gram.shape[-3:-1])  # [*, K, m, one, J]
    fitted = (products * across.unsqueeze(-4)).sum(-3)
    explained = torch.einsum("...kmj,...omj->...koj", cross, weights)
    squares = square.unsqueeze(-2) - 2 * explained + fitted
    base = gaussian(squares, variances.unsqueeze(-3), counts[:, None, None])  # [*, K, one, J]
    gains = own.mT.unsqueeze(-2) - base
    one = gains.clamp(min=0).add(base).sum(-3).argmax(-2)[..., None, None, :]  # [*, 1, 1, J]
    every = one.expand(*gains.shape[:-2], 1, -1)
    targets = gains.gt(0).gather(-2, every).squeeze(-2).mT
    few = (~targets).to(own) @ counts < 2 * gram.shape[-1]
    return targets & ~few.unsqueeze(-1) & (counts > 0)


def ridge(gram: Tensor, cross: Tensor, *, strength: float = RIDGE) -> Tensor:
    """Solve least squares, ``[*, m, m]`` and ``[*, m, J]``, a little shrunk towards zero."""
    return torch.cholesky_solve(cross, ridge_factor(gram, strength=strength))


def ridge_factor(gram: Tensor, *, strength: float) -> Tensor:
    """The Cholesky factor of second moments with a ridge, ``[*, m, m]``."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    return torch.linalg.cholesky(gram + torch.diag_embed(strength * diagonal + 1e-9))


def parameter_price(rows: int) -> float:
    """What a parameter costs in nats, by BIC."""
    return 0.5 * math.log(rows)


def gaussian(squares: Tensor, variance: Tensor, counts: Tensor | float = 1.0) -> Tensor:
    """The log-density of Gaussian residuals, from the sums of the squares of so many of them."""
    return -0.5 * (counts * (2 * math.pi * variance).log() + squares / variance)
