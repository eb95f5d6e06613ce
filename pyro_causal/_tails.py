"""Log tails of standard one-dimensional families, for values inside of their supports.

Log tails are the pair ``log P(Z <= z), log P(Z > z)``, in float64, so that neither rounds to zero
or one. Shape parameters broadcast against `z`; gradients flow to both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid
from torch.special import log_ndtr

__all__ = [
    "LogTails",
    "asymmetric_laplace_tails",
    "beta_tails",
    "continuous_bernoulli_tails",
    "expm1_ratio",
    "exponential_tails",
    "gamma_tails",
    "gumbel_tails",
    "kumaraswamy_tails",
    "log1mexp",
    "log1p_ratio",
    "log_angle",
    "skew_logistic_tails",
    "soft_asymmetric_laplace_tails",
    "soft_laplace_tails",
    "student_tails",
    "von_mises_tails",
]

LogTails: TypeAlias = tuple[Tensor, Tensor]
Array: TypeAlias = Any  # a numpy array of float64


def log1mexp(t: Tensor) -> Tensor:
    r""":math:`\log(1 - e^t)` for :math:`t < 0`; each branch is kept where its slope is finite."""
    near = (-t.clamp(-1.0, -1e-300).expm1()).log()
    return torch.where(t > -0.7, near, (-t.clamp(max=-0.5).exp()).log1p())


class _Tails(torch.autograd.Function):
    """Log tails by scipy, differentiated by the density and, in the shapes, by central differences.

    The derivative of an incomplete gamma or beta function in its shapes has no closed form. With
    the step below central differences of the log tails are good to about nine digits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tails: Callable[..., tuple[Array, Array]],
        log_density: Callable[..., Array],
        *inputs: Tensor,
    ) -> LogTails:
        ctx.tails, ctx.log_density = tails, log_density
        ctx.arrays = [i.detach().cpu().numpy() for i in inputs]
        ctx.shapes = [i.shape for i in inputs]
        log_cdf, log_sf = (_as_tensor(t, inputs[0]) for t in _quiet(tails, ctx.arrays))
        ctx.save_for_backward(log_cdf, log_sf)
        return log_cdf, log_sf

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_cdf: Tensor, grad_sf: Tensor) -> tuple[Tensor | None, ...]:
        def grad(i: int) -> Tensor:
            d_cdf, d_sf = _slopes(ctx, i)
            return (grad_cdf * d_cdf + grad_sf * d_sf).sum_to_size(ctx.shapes[i])

        needed = ctx.needs_input_grad[2:]
        return None, None, *(grad(i) if need else None for i, need in enumerate(needed))


def _slopes(ctx: Any, i: int) -> LogTails:
    """The derivatives of both log tails in the value (i = 0) or in a shape."""
    log_cdf, log_sf = ctx.saved_tensors
    if i == 0:
        log_p = _as_tensor(_quiet(ctx.log_density, ctx.arrays), log_cdf)
        return (log_p - log_cdf).exp(), -(log_p - log_sf).exp()
    step = 1e-5 * ctx.arrays[i]
    before, after = (
        _quiet(ctx.tails, [*ctx.arrays[:i], ctx.arrays[i] + h, *ctx.arrays[i + 1 :]])
        for h in (-step, step)
    )
    d_cdf, d_sf = (
        _as_tensor((y - x) / (2 * step), log_cdf) for x, y in zip(before, after, strict=True)
    )
    return d_cdf, d_sf


def _tails(
    tails: Callable[..., tuple[Array, Array]], log_density: Callable[..., Array], *inputs: Tensor
) -> LogTails:
    log_tails: LogTails = _Tails.apply(tails, log_density, *inputs)  # type: ignore[no-untyped-call]
    return log_tails


def _quiet(function: Callable[..., Any], arrays: list[Array]) -> Any:
    """Call a numpy function whose discarded branches may overflow."""
    with np.errstate(all="ignore"):
        return function(*arrays)


def _as_tensor(array: Array, like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(array), dtype=torch.float64, device=like.device)


def _logs(cdf: Array, sf: Array, far: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
    """Log tails, both from the smaller one; `far` stands in for tails that underflow."""
    lower = cdf < sf
    small: Array = np.where(lower, cdf, sf)
    log_small = np.log(small)
    if (small < 1e-290).any():
        log_small = np.where(small < 1e-290, np.where(lower, *far()), log_small)
    log_large = np.log1p(-small)
    return np.where(lower, log_small, log_large), np.where(lower, log_large, log_small)


def gamma_tails(z: Tensor, shape: Tensor) -> LogTails:
    """Log tails of the standard gamma distribution, for z > 0."""
    return _tails(_gamma_tails, _gamma_log_density, z, shape)


def _gamma_log_density(z: Array, a: Array) -> Array:
    return (a - 1) * np.log(z) - z - special.gammaln(a)


def _gamma_tails(z: Array, a: Array) -> tuple[Array, Array]:
    def far() -> tuple[Array, Array]:
        log_p = _gamma_log_density(z, a)
        return log_p + np.log(z / a) - np.log1p(-z / (a + 1)), log_p - np.log1p(-(a - 1) / z)

    return _logs(special.gammainc(a, z), special.gammaincc(a, z), far)


def beta_tails(odds: Tensor, a: Tensor, b: Tensor) -> LogTails:
    """Log tails of Beta(a, b) at ``odds = x / (1 - x) > 0``, which resolve both ends alike."""
    return _tails(_beta_tails, _beta_log_density, odds, a, b)


def _beta_log_density(odds: Array, a: Array, b: Array) -> Array:
    return (a - 1) * np.log(odds) - (a + b) * np.log1p(odds) - special.betaln(a, b)


def _beta_tails(odds: Array, a: Array, b: Array) -> tuple[Array, Array]:
    x, y = odds / (1 + odds), 1 / (1 + odds)

    def far() -> tuple[Array, Array]:
        log_p = _beta_log_density(odds, a, b) + np.log(odds)
        lower, upper = x * (a + b) / (a + 1), y * (a + b) / (b + 1)
        return log_p - np.log(a) - np.log1p(-lower), log_p - np.log(b) - np.log1p(-upper)

    return _logs(special.betainc(a, b, x), special.betainc(b, a, y), far)


def student_tails(z: Tensor, df: Tensor) -> LogTails:
    """Log tails of the standard Student's t distribution."""
    return _tails(_student_tails, _student_log_density, z, df)


def _student_log_density(z: Array, df: Array) -> Array:
    return -0.5 * ((df + 1) * np.log1p(z * z / df) + np.log(df)) - special.betaln(0.5, 0.5 * df)


def _student_tails(z: Array, df: Array) -> tuple[Array, Array]:
    _, log_outside = _beta_tails(z * z / df, 0.5, 0.5 * df)  # P(|Z| > z)
    small = log_outside - math.log(2)
    large = np.log1p(-np.exp(small))
    return np.where(z < 0, small, large), np.where(z < 0, large, small)


@cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return torch.as_tensor((1 + nodes) / 2), torch.as_tensor(weights / 2)


def von_mises_tails(z: Tensor, concentration: Tensor) -> LogTails:
    r"""Log tails of the von Mises distribution around zero, on :math:`(-\pi, \pi)`.

    The smaller tail is integrated by 64 Gauss-Legendre nodes up to where the density has fallen by
    a factor of :math:`e^{-40}`, so its relative error stays near rounding in the tails too.
    """
    nodes, weights = (t.to(z.device) for t in _gauss_legendre())
    start = torch.where(z < 0, -z, z)
    end = (start.cos() - 40 / concentration).clamp(min=-1.0).acos().detach()
    width = (end - start).unsqueeze(-1)
    fall = (start.unsqueeze(-1) + 0.5 * width * nodes).sin() * (0.5 * width * nodes).sin()
    mass = (width * weights * (-2 * concentration.unsqueeze(-1) * fall).exp()).sum(-1)
    peak = -2 * concentration * (start / 2).sin().square() - torch.special.i0e(concentration).log()
    small = (mass.log() + peak - math.log(2 * math.pi)).clamp(max=-math.log(2))
    large = log1mexp(small)
    return torch.where(z < 0, small, large), torch.where(z < 0, large, small)


def exponential_tails(e: Tensor) -> LogTails:
    """Log tails of the unit exponential at `e`."""
    return log1mexp(-e), -e


def gumbel_tails(z: Tensor) -> LogTails:
    """Log tails of the standard Gumbel distribution."""
    log_cdf = -(-z.clamp(min=-600.0)).exp()
    return log_cdf, log1mexp(log_cdf)


def log_angle(z: Tensor) -> Tensor:
    """Log of the part of a half turn that lies above `z` on the line at distance one."""
    return (torch.ones_like(z).atan2(z) / math.pi).log()


def soft_laplace_tails(z: Tensor) -> LogTails:
    """Log tails of the hyperbolic secant distribution."""
    z = z.clamp(-600.0, 600.0)
    return log_angle((-z).exp()) + math.log(2), log_angle(z.exp()) + math.log(2)


def asymmetric_laplace_tails(z: Tensor, asymmetry: Tensor) -> LogTails:
    """Log tails of an exponential on each side, of scales asymmetry and 1 / asymmetry."""
    square = asymmetry.square()
    lower = (square / (1 + square)).log() + z.clamp(max=0.0) / asymmetry
    upper = -(1 + square).log() - z.clamp(min=0.0) * asymmetry
    left = z < 0
    return torch.where(left, lower, log1mexp(upper)), torch.where(left, log1mexp(lower), upper)


def soft_asymmetric_laplace_tails(z: Tensor, asymmetry: Tensor, softness: Tensor) -> LogTails:
    """A normal plus, by the sign of the asymmetric Laplace part, plus or minus an exponential."""

    def log_convolution(z: Tensor, scale: Tensor) -> Tensor:
        ratio = softness / scale
        log_p: Tensor = 0.5 * ratio * ratio - z / scale + log_ndtr(z / softness - ratio)
        return log_p

    right, left = log_convolution(z, 1 / asymmetry), log_convolution(-z, asymmetry)
    p_right = 1 / (1 + asymmetry * asymmetry)
    p_left = 1 - p_right
    below, above = log_ndtr(z / softness), log_ndtr(-z / softness)
    rest_below = (-p_right * (right - below).clamp(max=0.0).exp()).log1p()
    rest_above = (-p_left * (left - above).clamp(max=0.0).exp()).log1p()
    return (
        torch.logaddexp(p_left.log() + left, below + rest_below),
        torch.logaddexp(p_right.log() + right, above + rest_above),
    )


def skew_logistic_tails(z: Tensor, asymmetry: Tensor) -> LogTails:
    """Log tails of a power of the logistic distribution function."""
    log_cdf = asymmetry * logsigmoid(z)
    return log_cdf, log1mexp(log_cdf)


def kumaraswamy_tails(z: Tensor, a: Tensor, b: Tensor) -> LogTails:
    """Log tails of ``1 - (1 - z**a) ** b``."""
    log_sf = b * log1mexp(a * z.log())
    return log1mexp(log_sf), log_sf


def log1p_ratio(y: Tensor) -> Tensor:
    """``log1p(y) / y``, also at zero; y at or below -1 counts as next to it."""
    y = y.clamp(min=torch.finfo(y.dtype).eps - 1)
    small = y.abs() < 1e-4
    wide = torch.where(small, 1.0, y)
    return torch.where(small, 1 - y / 2 + y * y / 3 - y**3 / 4, wide.log1p() / wide)


def expm1_ratio(y: Tensor) -> Tensor:
    """``expm1(y) / y``, also at zero."""
    small = y.abs() < 1e-4
    wide = torch.where(small, 1.0, y)
    return torch.where(small, 1 + y / 2 + y * y / 6 + y**3 / 24, wide.expm1() / wide)


def continuous_bernoulli_tails(z: Tensor, logits: Tensor) -> LogTails:
    """Log tails of the density ``exp(logits * z)``, by a series where it is nearly flat."""

    def log_sinhc(w: Tensor) -> Tensor:
        small = w.abs() < 0.02
        wide = torch.where(small, 1.0, w.abs())
        exact = wide + log1mexp(-2 * wide) - (2 * wide).log()
        return torch.where(small, w * w / 6 - w**4 / 180, exact)

    def log_cdf(z: Tensor, logits: Tensor) -> Tensor:
        slack = 0.5 * logits * (z - 1)
        return z.log() + slack + log_sinhc(0.5 * logits * z) - log_sinhc(0.5 * logits)

    return log_cdf(z, logits), log_cdf(1 - z, -logits)
