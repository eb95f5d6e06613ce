"""Rectified units fitted to one variable: a few do what takes many random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyro_causal.infer._regressions import RIDGE, RandomFeatures

__all__ = ["Family", "FittedFeatures", "Units", "first_units", "fit_units"]

Family: TypeAlias = tuple[int, tuple[int, ...]]  # a node and its parents

UNITS = 24
ROWS = 3000  # about, that they are fitted to
STEPS = 20
ENOUGH = 5e-3  # of the mean square; two steps in a row that gain less are the last
TRIES = 5  # dampings, before it ends
DAMPING, MORE, LESS = 1e-2, 5.0, 3.0  # at first; by what it rises after a step that fails, or falls
LEAST = 1e-10  # of the largest variance of the parents, in any direction
FLAT = 1e-6  # of the mean curvature, in directions without any


class Units(NamedTuple):
    r"""Functions :math:`\max(0, v_m^\top x - c_m)`; shapes ``[p, M]`` and ``[M]``."""

    directions: Tensor
    kinks: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Of rows ``[N, p]``, ``[N, M]``."""
        return torch.addmm(-self.kinks, x, self.directions).clamp(min=0)


def first_units(x: Tensor, directions: Tensor, places: Tensor) -> Units:
    """Units to start from, whatever the scales and correlations of rows.

    **Shapes**: rows ``x [N, p]``; ``directions [p, M]`` of rows without correlations; ``places
    [p, M]``, rows on whose values units bend.
    """
    directions = _Whitening(x).back(directions)
    return Units(directions, (places * directions).sum(0))


def fit_units(x: Tensor, y: Tensor, start: Units) -> Units:
    r"""Fit directions and kinks by least squares, together with what else a regression has.

    .. math:: y \approx a^\top \bigl(1, x, \max(0, v_m^\top x - c_m)\bigr)

    Steps are those of Gauss and Newton, damped (Levenberg-Marquardt), on parents without
    correlations; after each, the weights a are those of least squares for the units there are. They
    often come near a function of several variables that bends at few places, where noise is small,
    for which gradient descent takes too long. They end in a local optimum.

    **Shapes**: ``x [N, p]``, ``y [N]``; ``start``, units of p variables.

    **References**: *A method for the solution of certain non-linear problems in least squares*
    (Levenberg 1944); *The differentiation of pseudo-inverses and nonlinear least squares problems
    whose variables separate* (Golub & Pereyra 1973).
    """
    white = _Whitening(x)
    units = Units(white.there(start.directions), start.kinks - white.mean @ start.directions)
    x, y = white(x), (y - y.mean()) / y.std().clamp(min=1e-12)
    outer, error = _least_squares(x, y, units)
    damping, idle = DAMPING, 0
    for _ in range(STEPS):
        jacobian = _jacobian(x, units, outer)
        curvature, slope = jacobian @ jacobian.mT, jacobian @ error
        before = error.square().mean()
        for _ in range(TRIES):
            trial = _step(curvature, slope, damping, units)
            weights, after = _least_squares(x, y, trial)
            if after.square().mean() < before:
                break
            damping *= MORE
        else:
            break
        units, outer, error = trial, weights, after
        damping = max(damping / LESS, 1e-9)
        idle = idle + 1 if error.square().mean() > (1 - ENOUGH) * before else 0
        if idle == 2:
            break
    directions = white.back(units.directions)
    return Units(directions, units.kinks + white.mean @ directions)


class _Whitening:
    """Rows without correlations, and what directions are for them."""

    def __init__(self, x: Tensor) -> None:
        variances, self.axes = torch.linalg.eigh(torch.atleast_2d(x.mT.cov()))
        self.scales = variances.clamp(min=LEAST * float(variances[-1]) + 1e-30).sqrt()
        self.mean = x.mean(0)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ (self.axes / self.scales)

    def there(self, directions: Tensor) -> Tensor:
        return self.scales.unsqueeze(1) * (self.axes.mT @ directions)

    def back(self, directions: Tensor) -> Tensor:
        return self.axes @ (directions / self.scales.unsqueeze(1))


def _base(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[:, :1]), x], 1)


def _least_squares(x: Tensor, y: Tensor, units: Units) -> tuple[Tensor, Tensor]:
    """The weights of a constant, of x and of units, ``[1 + p + M]``, and what is left of y."""
    a = torch.cat([_base(x), units(x)], 1)
    gram = a.mT @ a
    diagonal = gram.diagonal()
    gram = gram + torch.diag(RIDGE * (diagonal + diagonal.mean()))
    weights = torch.linalg.solve_ex(gram, a.mT @ y)[0]
    return weights, y - a @ weights


def _jacobian(x: Tensor, units: Units, outer: Tensor) -> Tensor:
    """Derivatives of all rows ``[P, N]``: by directions, kinks, and the outer weights."""
    h = units(x).mT
    bends = outer[1 + x.shape[1] :].unsqueeze(1) * (h > 0)
    along = x.mT.unsqueeze(1) * bends
    return torch.cat([along.flatten(0, 1), -bends, _base(x).mT, h])


def _step(curvature: Tensor, slope: Tensor, damping: float, units: Units) -> Units:
    diagonal = curvature.diagonal()
    damped = curvature + torch.diag(damping * (diagonal + FLAT * diagonal.mean()))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        return units
    change = torch.cholesky_solve(slope.unsqueeze(1), factor).squeeze(1)
    size, number = units.directions.numel(), len(units.kinks)
    directions, kinks = change[: size + number].split([size, number])
    return Units(units.directions + directions.view_as(units.directions), units.kinks + kinks)


class FittedFeatures:
    """Random features, before which are units fitted to a node, where there are such.

    **Arguments**: ``random``; ``units``, by node and parents.
    """

    def __init__(self, random: RandomFeatures, units: Mapping[Family, Units]) -> None:
        self.random, self.units = random, units

    def __call__(self, parents: Sequence[int], node: int) -> Tensor:
        """A constant, the parents, fitted units and random ones."""
        random, units = self.random(parents), self.units.get((node, tuple(parents)))
        if units is None:
            return random
        x, number = self.random.columns[list(parents)], 1 + len(parents)
        fitted = units(x.mT).mT
        return torch.cat([random.mT[:number], fitted, random.mT[number:]]).mT
