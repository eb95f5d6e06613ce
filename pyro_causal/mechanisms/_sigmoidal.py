"""The layer of a sigmoidal flow: a mixture of sigmoids, between two logits."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

__all__ = ["SigmoidalTransform"]


class SigmoidalTransform(Transform):
    r"""A monotone map of the reals, as flexible as a mixture of logistic laws.

    .. math:: y = \mathrm{logit} \sum_m w_m \, \sigma\left(\frac{x - c_m}{s_m}\right)

    All of it is computed from logarithms, so that neither tail saturates. A value lies between the
    inverses of the single sigmoids; the inverse bisects this interval down to the precision of
    the numbers, and its gradient is that of the implicit function.

    **Arguments**: ``log_weight`` up to a constant, ``centre`` and positive ``width`` of the units,
    ``[*batch, units]``. Sums over units are fastest where another axis varies fastest in memory.

    **References**: *Neural autoregressive flows*, https://arxiv.org/abs/1804.00779, section 3.1
    (with centres and widths for its slopes and shifts, and real numbers in place of (0, 1)).

    **Example**::

        >>> layer = SigmoidalTransform(torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.ones(2))
        >>> layer(torch.tensor([-50.0, 0.0])), layer.inv(layer(torch.tensor(3.0))).round(decimals=4)
        (tensor([-49.5662,   0.0000]), tensor(3.))
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, log_weight: Tensor, centre: Tensor, width: Tensor) -> None:
        super().__init__()
        self.log_weight = log_weight
        self.centre = centre
        self.width = width

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and the logarithm of the slope."""
        parameters = (self.log_weight, self.centre, self.width)
        dim = max(x.dim() + 1, *(p.dim() for p in parameters))
        aligned = (p[(None,) * (dim - p.dim())].movedim(-1, 0) for p in parameters)
        y, log_slope, *_ = _Layer.apply(x, *aligned)
        return y, log_slope

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm of the slope."""
        return self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            low, high = (self.centre + self.width * y.unsqueeze(-1)).aminmax(dim=-1)
            for _ in range(torch.finfo(y.dtype).bits):
                middle = (low + high) / 2
                beyond = self._call(middle) > y
                low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        found, log_slope = self.call_and_ladj(middle)
        gap = y - found
        return middle + (gap - gap.detach()) * torch.exp(-log_slope.detach())


class _Layer(torch.autograd.Function):
    """Value and log-slope of a layer, of which the axis of units comes first.

    What has an axis of units is computed again for the gradient, which takes no longer than to
    store it, and less memory.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, log_weight: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, ...]:
        *_, terms, factors = _terms(x, log_weight, centre, width)
        left, right, slope = map(_log_of_sum, terms, factors)
        y = left - right  # weights sum to exp(left) + exp(right)
        return y, slope - right + F.softplus(-y), left, right, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs, *output[2:])

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, of_slope: Tensor, *_: Any) -> tuple[Tensor, ...]:
        *inputs, left, right, slope = ctx.saved_tensors
        z, inverse, terms, factors = _terms(*inputs)
        if torch.is_grad_enabled():  # for second derivatives
            left, right, slope = map(_log_of_sum, terms, factors)
        y = left - right
        # of the three sums; weights, which need not sum to one, enter the slope once more
        of_sums = of_y - of_slope * (-y).sigmoid(), of_y + of_slope * y.sigmoid(), of_slope
        p, q, r = (
            _exp_(term.sub_(total)) * factor * of_sum
            for term, total, factor, of_sum in zip(
                terms, (left, right, slope), factors, of_sums, strict=True
            )
        )
        of_weight = (p - q).add_(r)
        of_centre = (z.sigmoid() * (of_weight + r)).sub_(p).sub_(r).mul_(inverse)
        of_width = (of_centre * z).sub_(r.mul_(inverse))
        found = -reduce(torch.add, of_centre.unbind()), of_weight, of_centre, of_width
        return tuple(g.sum_to_size(i.shape) for g, i in zip(found, inputs, strict=True))


def _terms(
    x: Tensor, log_weight: Tensor, centre: Tensor, width: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Standardised values, inverse widths, and what is summed: logarithms, and tame factors."""
    inverse = width.reciprocal()
    z = (x - centre) * inverse
    larger = z.abs().sigmoid_()  # of the sigmoids of z and -z; the other has the factor exp(-|z|)
    negative = z.clamp_max(0)
    lower = log_weight + negative
    upper = lower - z
    factors = larger, larger, larger.square().mul_(inverse)
    return z, inverse, (lower, upper, upper + negative), factors


def _log_of_sum(logarithm: Tensor, factor: Tensor) -> Tensor:
    """Over the first axis, which is short: faster than a reduction."""
    top = reduce(torch.maximum, logarithm.detach().unbind())
    return top + reduce(torch.add, (_exp_(logarithm - top) * factor).unbind()).log()


def _exp_(x: Tensor) -> Tensor:
    """In place, and on processors at half the price of the function of this name."""
    return x.mul_(1 / math.log(2)).exp2_()
