r"""The invertible part between pixels and a decoder: what intensity and contrast do to an image.

What acts on every element alike is learnt here with a handful of parameters, and exactly inverted,
so the decoder need not learn it from :math:`z`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, Transform

from pyro_causal.mechanisms.base import ContextNetwork, Recorded

__all__ = ["ConditionalScale", "SoftLogitTransform", "SpreadTransform"]


class SoftLogitTransform(Transform):
    r"""A logit that is defined, and increases, on all reals.

    .. math:: w = \frac{\operatorname{asinh}(y / k) - \operatorname{asinh}((1 - y) / k)}
        {\operatorname{asinh}(1 / k)}, \qquad
        y = k \sinh\bigl(v + \operatorname{asinh}\tfrac{1}{2 k \cosh v}\bigr), \quad
        v = \tfrac{w}{2} \operatorname{asinh} \tfrac{1}{k}

    It takes 0 to -1 and 1 to 1. As :math:`k \to 0`, its shape on (0, 1) becomes that of the logit;
    outside it is logarithmic. In an image it spreads out the levels near black and near full ink,
    where most pixels are, and shrinks a residual of ink that is added to ink.

    **Arguments**: ``softness`` :math:`k > 0`.

    **Raises**: ``ValueError`` if the softness is not positive.

    **Example**::

        >>> SoftLogitTransform(0.03)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-1.,  0.,  1.])
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, softness: float, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        if not softness > 0:
            raise ValueError(
                f"SoftLogitTransform: expected a positive softness, got {softness}. Give a part of "
                "the range, such as 0.03."
            )
        self.softness = softness
        self._half_range = math.asinh(1 / softness)

    def with_cache(self, cache_size: int = 1) -> SoftLogitTransform:
        """The same transform with another cache."""
        return SoftLogitTransform(self.softness, cache_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SoftLogitTransform) and other.softness == self.softness

    def __hash__(self) -> int:
        return hash(self.softness)

    def _call(self, y: Tensor) -> Tensor:
        k = self.softness
        return (torch.asinh(y / k) - torch.asinh((1 - y) / k)) / self._half_range

    def _inverse(self, w: Tensor) -> Tensor:
        v = w * (self._half_range / 2)
        return self.softness * torch.sinh(v + torch.asinh(1 / (2 * self.softness * torch.cosh(v))))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm of the slope at each element."""
        k = self.softness
        root = x.new_tensor(k)
        slope = 1 / torch.hypot(x, root) + 1 / torch.hypot(1 - x, root)  # squares would overflow
        return slope.log() - math.log(self._half_range)


class SpreadTransform(Transform):
    """The identity, on a value that is expanded to the batch axes of what comes after it.

    Torch's transforms do not expect that parameters have more of them than the value.

    **Arguments**: ``shape``, batch and event (of ones, where the value may have any size).

    **Example**::

        >>> SpreadTransform((5, 1))(torch.zeros(3)).shape
        torch.Size([5, 3])
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, shape: Sequence[int], cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.shape = torch.Size(shape)

    def with_cache(self, cache_size: int = 1) -> SpreadTransform:
        """The same transform with another cache."""
        return SpreadTransform(self.shape, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        return x.expand(torch.broadcast_shapes(x.shape, self.shape))

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero at each element."""
        return torch.zeros_like(y)


class ConditionalScale(Recorded):
    r"""Scales all elements of a value by one factor, which depends on the parents.

    .. math:: w = c\bigl(x / s(\mathrm{pa})\bigr)

    with :math:`c` a :class:`SoftLogitTransform` or the identity. An intervention that dims or
    brightens an image is then undone before the encoder sees it, and the decoder need not draw it.

    **Arguments**

    - ``features``: size of the context, the number of the parents' features.
    - ``event_dim``: number of axes of a value.
    - ``hidden``: as for :class:`~pyro_causal.mechanisms.base.ContextNetwork`, with one output,
      :math:`\log s` up to a constant that :meth:`set_normalisation` sets.
    - ``softness``: that of :math:`c`; ``None`` for the identity.

    **Shapes**: context ``(*batch, features)``; a transform whose parameters have the shape
    ``(*batch, 1, ..., 1)``.

    **Example**::

        >>> low_level = ConditionalScale(2, event_dim=3, softness=None)
        >>> low_level(torch.zeros(5, 2))(torch.ones(5, 1, 28, 28)).shape
        torch.Size([5, 1, 28, 28])
    """

    log_scale: Tensor

    def __init__(
        self,
        features: int,
        *,
        event_dim: int,
        hidden: Sequence[int] | nn.Module = (32,),
        softness: float | None = 0.03,
    ) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.softness = softness
        self.network = ContextNetwork(features, 1, hidden=hidden)
        self.register_buffer("log_scale", torch.zeros(()))

    def forward(self, context: Tensor) -> Transform:
        """Give the transform for these parents."""
        log_scale = self.log_scale + self.network(context)
        scale = log_scale.exp().reshape(*log_scale.shape[:-1], *[1] * self.event_dim)
        steps = [SpreadTransform(scale.shape), AffineTransform(torch.zeros_like(scale), 1 / scale)]
        if self.softness is not None:
            steps.append(SoftLogitTransform(self.softness))
        return ComposeTransform(steps)

    def set_normalisation(self, data: Tensor) -> Self:
        """Start at the mean of the largest absolute elements of data ``(*batch, *event)``.

        **Raises**: ``ValueError`` if there is nothing but zeros.
        """
        scale = data.abs().flatten(-self.event_dim).amax(-1).mean()
        if not scale > 0:
            raise ValueError(
                "ConditionalScale: all data are zero: expected values with a scale. Give other "
                "data, or leave low_level out."
            )
        self.log_scale.copy_(scale.log())
        return self
