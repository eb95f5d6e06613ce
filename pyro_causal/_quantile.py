"""Normal scores of one-dimensional laws, and their inverses.

Noise of a family without a parameter-free residual is the standard normal score of its distribution
function, computed from whichever tail is smaller: so it resolves both tails alike, far beyond what
a uniform in ``[0, 1]`` can. Everything here is in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.special import log_ndtr, ndtri

from pyro_causal._tails import LogTails, log1mexp

__all__ = ["Law", "count_quantile", "count_score", "normal_score", "quantile"]

LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


class Law(NamedTuple):
    """A one-dimensional distribution function and the parameters that gradients flow to.

    - ``tails(x, *parameters)``: its log tails.
    - ``parameters``: float64 tensors that broadcast against ``x``.
    - ``chart(t, *parameters)``: an increasing map from the real line onto the support; None for
      counts.
    - ``dtype``: of the values, as the distribution samples them.
    """

    tails: Callable[..., LogTails]
    parameters: tuple[Tensor, ...]
    chart: Callable[..., Tensor] | None
    dtype: torch.dtype

    def score(self, x: Tensor) -> Tensor:
        """The standard normal score of `x`."""
        return normal_score(*self.tails(x.double(), *self.parameters))

    def detach(self) -> Law:
        """The same law without gradients to its parameters."""
        return self._replace(parameters=tuple(p.detach() for p in self.parameters))


def normal_score(log_cdf: Tensor, log_sf: Tensor) -> Tensor:
    r""":math:`\Phi^{-1}(F)` from :math:`\log F` and :math:`\log (1 - F)`."""
    lower = log_cdf < log_sf
    smaller = torch.where(lower, log_cdf, log_sf)
    score: Tensor = _LogNormalQuantile.apply(smaller)  # type: ignore[no-untyped-call]
    return torch.where(lower, score, -score)


class _LogNormalQuantile(torch.autograd.Function):
    r""":math:`\Phi^{-1}(e^p)` for :math:`p \le \log 1/2`, however far below."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor) -> Tensor:
        score: Tensor = ndtri(log_p.clamp(min=-600.0).exp())
        if (log_p < -600.0).any():
            far = -(-2 * log_p.clamp(max=-600.0)).sqrt()
            for _ in range(4):  # Newton from below on a concave function
                log_cdf = log_ndtr(far)
                far = far - (log_cdf - log_p) * (0.5 * far * far + LOG_ROOT_TAU + log_cdf).exp()
            score = torch.where(log_p < -600.0, far.where(log_p > -math.inf, log_p), score)
        ctx.save_for_backward(log_p, score)
        return score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        log_p, score = ctx.saved_tensors
        slope: Tensor = (log_p + 0.5 * score * score + LOG_ROOT_TAU).exp()
        return grad * slope


@torch.no_grad()
def count_score(law: Law, x: Tensor) -> Tensor:
    """The standard normal score of a uniform draw within the step of the law at a count.

    A millionth of the step is left free at both ends, so that rounding cannot cross them. A count
    that the law excludes has the score of the end of the support that it lies beyond.

    **Shapes** `x` broadcasts against the parameters.
    """
    x = x.double()
    (last_cdf, last_sf), (cdf, sf) = (law.tails(k, *law.parameters) for k in (x - 1, x))
    lower = cdf < last_sf  # seen from the nearer tail, the step is [last_cdf, cdf] or [sf, last_sf]
    large, small = torch.where(lower, cdf, last_sf), torch.where(lower, last_cdf, sf)
    ratio = torch.where(large > -math.inf, (small - large).exp(), 0.0)
    place = 1e-6 + (1 - 2e-6) * torch.rand_like(ratio)
    log_p = large + (ratio + (1 - ratio) * place).log()
    other = log1mexp(log_p)
    return torch.where(lower, normal_score(log_p, other), normal_score(other, log_p))


def quantile(law: Law, u: Tensor) -> Tensor:
    """The value at the standard normal score `u`, with gradients to `u` and to the parameters.

    The root of ``score(x) = u`` is bracketed and refined (:func:`_root`) without gradients; those
    follow from the implicit function theorem, ``dx = (du - d score) / score'(x)``.

    **Shapes** `u` broadcasts against the parameters.
    """
    u, fixed, chart = u.double(), law.detach(), law.chart
    assert chart is not None, "a count has count_quantile"

    def score_at(t: Tensor) -> Tensor:
        return fixed.score(chart(t, *fixed.parameters))

    with torch.no_grad():
        goal = u.expand(score_at(u).shape)
        t = _root(lambda t: score_at(t) - goal, torch.zeros_like(goal))
        x = chart(torch.where(goal.isnan(), goal, t), *fixed.parameters)
    if torch.is_grad_enabled() and any(p.requires_grad for p in (u, *law.parameters)):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(fixed.score(x).sum(), x)
        x = x.detach()
        drift = u - law.score(x)
        x = x + (drift - drift.detach()) / slope.where(slope > 0, math.inf)
    return x.to(law.dtype)


def _root(f: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The root of an increasing function of each element, to about the precision of float64.

    **References** Chandrupatla 1997, "A new hybrid quadratic/bisection algorithm for finding the
    zero of a nonlinear function without using derivatives", Advances in Engineering Software 28.
    """
    a, fa, b, fb = _bracket(f, start)
    c, fc, step = b, fb, torch.full_like(a, 0.5)
    active = step > 0
    for _ in range(200):
        x, last, f_last = a + step * (b - a), a, fa
        fx = f(x)
        same = fx.sign() == fa.sign()
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx
        best = torch.where(fa.abs() < fb.abs(), a, b)
        precision = 2e-15 * (best.abs() + 1e-3)
        limit = 0.5 * precision / (b - a).abs()
        secant_step = (fx * (x - last) / (fx - f_last)).abs()
        found = (fa == 0) | ((fa.abs() < 1e-11) & (secant_step < precision))
        active = active & (limit < 0.5) & ~found
        if not active.any():
            break
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        safe = (phi * phi < xi) & ((1 - phi).square() < 1 - xi)
        inverse_quadratic = fa / (fb - fa) * fc / (fb - fc)
        inverse_quadratic += (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        step = torch.where(safe, inverse_quadratic, 0.5).clamp(limit, 1 - limit)
        step = torch.where(active, step, 0.0)
    return best


def _bracket(f: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points on both sides of the root, with values; out of reach, the farthest that were tried."""
    a, fa = start, f(start)
    stride = -fa.sign()
    b = a + stride
    for _ in range(12):  # as far as a chart of float64 goes
        fb = f(b)
        short = fb.sign() * stride < 0
        if not short.any():
            break
        a, fa = torch.where(short, b, a), torch.where(short, fb, fa)
        stride = 2 * stride
        b = torch.where(short, b + stride, b)
    return a, fa, b, fb


@torch.no_grad()
def count_quantile(law: Law, u: Tensor) -> Tensor:
    """The least count whose distribution function reaches the standard normal score `u`.

    **Shapes** `u` broadcasts against the parameters.
    """
    log_cdf, log_sf = log_ndtr(u), log_ndtr(-u)

    def reached(k: Tensor) -> Tensor:
        below, above = law.tails(k, *law.parameters)
        return torch.where(u <= 0, below >= log_cdf, above <= log_sf)

    high = torch.zeros_like(u)
    high = high.expand(reached(high).shape)
    low = high - 1.0
    for _ in range(52):  # the integers of float64
        done = reached(high)
        if done.all():
            break
        low, high = torch.where(done, low, high), torch.where(done, high, 2 * high + 1)
    while (high - low > 1).any():
        middle = ((low + high) / 2).floor()
        done = reached(middle)
        low, high = torch.where(done, low, middle), torch.where(done, middle, high)
    return torch.where(u.isnan(), u, high).to(law.dtype)
