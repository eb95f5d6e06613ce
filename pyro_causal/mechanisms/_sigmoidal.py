"""The layer of a sigmoidal flow: a mixture of sigmoids, between two logits."""

from __future__ import annotations

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
        >>> layer(torch.tensor([-50.0, 0.0])), layer.inv(layer(torch.tensor(3.0)))
        (tensor([-49.5662,   0.0000]), tensor(3.))
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, log_weight: Tensor, centre: Tensor, width: Tensor) -> None:
        super().__init__()
        self.log_weight = log_weight - log_weight.logsumexp(-1, keepdim=True)
        self.centre = centre
        self.width = width

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and the logarithm of the slope."""
        z = (x.unsqueeze(-1) - self.centre) / self.width
        below = F.logsigmoid(z)
        lower = self.log_weight + below
        upper = lower - z  # below - z is the logarithm of the sigmoid of -z
        left, right = lower.logsumexp(-1), upper.logsumexp(-1)
        slope = (upper + below - self.width.log()).logsumexp(-1)
        return left - right, slope - left - right

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
