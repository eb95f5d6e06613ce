"""Structural equations by networks, one for each node: Gaussians and sigmoidal flows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import AffineTransform

from pyro_causal._pyro import FlowDistribution, NormalizingFlow, zuko
from pyro_causal.mechanisms._sigmoidal import SigmoidalTransform
from pyro_causal.mechanisms.sem import Index, StructuralEquations, floored_scale

__all__ = ["FlowSEM", "NonlinearSEM"]


class _Networked(StructuralEquations):
    """Equations whose parameters come from networks."""

    networks: Any

    def _outputs(self, *arguments: Any) -> Tensor:
        result: Tensor = self.networks(*arguments)
        return result


class NonlinearSEM(_Networked):
    r"""A network for each node, from its parents and the regime's context to a Gaussian.

    .. math:: x_j \sim N\left(\mu_j, \sigma_j^2\right), \qquad
        (\mu_j, \log \sigma_j) = \mathrm{MLP}_j\left(W_j (A_{\cdot j} \circ x) + V_j \theta_k\right)

    The first layer sees each row once, and each regime once; only sums of the two go through the
    rest. It starts at standard normals.

    **Arguments**

    - ``nodes``, ``regimes``, ``min_scale``: as for :class:`StructuralEquations`.
    - ``context``: number of features of a regime.
    - ``hidden``: widths of the hidden layers, one or more, with SiLU.

    **Shapes**: context ``[*, R, context]``.

    **Raises**: ``ValueError`` without a hidden layer.

    **References**: *Differentiable causal discovery under latent interventions*,
    https://arxiv.org/abs/2203.02336, equation 8.

    **Example**::

        >>> sem = NonlinearSEM(3, regimes=4, hidden=(8, 8))
        >>> sem.log_prob(torch.zeros(5, 3), torch.full((2, 3, 3), 0.5)).shape
        torch.Size([2, 4, 5, 3])
    """

    def __init__(
        self,
        nodes: int,
        *,
        regimes: int = 1,
        context: int = 8,
        hidden: Sequence[int] = (16,),
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(nodes, (context,), regimes=regimes, min_scale=min_scale)
        self.networks = _Networks(nodes, context, [*hidden, 2])


class FlowSEM(_Networked):
    r"""A network for each node, from its parents and the regime's context to a sigmoidal flow.

    .. math:: p(x_j) = N(\tau_j(x_j); 0, 1) \, |\tau_j'(x_j)|

    with :math:`\tau_j` a location and a scale, then layers of
    :math:`y = \mathrm{logit} \sum_m w_m \, \sigma((x - c_m) / s_m)`. All parameters of both depend
    on parents and regime. It starts near standard normals.

    **Arguments**

    - ``nodes``, ``regimes``, ``context``, ``hidden``: as for :class:`NonlinearSEM`.
    - ``units``: number of sigmoids in each layer of the flow; ``(8, 8)`` is a deep one.
    - ``min_scale``: floor of the scale, and of the widths of sigmoids.

    **Shapes**: context ``[*, R, context]``.

    **Raises**: ``ValueError`` without a hidden layer.

    **References**: *Neural autoregressive flows*, https://arxiv.org/abs/1804.00779, section 3.1;
    *Differentiable causal discovery under latent interventions*, https://arxiv.org/abs/2203.02336,
    whose flow is said to give a mean and a scale: it is a density only with the slope of the flow.

    **Example**::

        >>> sem = FlowSEM(3, regimes=4, units=(4, 4))
        >>> sem.log_prob(torch.zeros(5, 3), torch.zeros(3, 3)).shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        nodes: int,
        *,
        regimes: int = 1,
        context: int = 8,
        hidden: Sequence[int] = (16,),
        units: Sequence[int] = (4,),
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(nodes, (context,), regimes=regimes, min_scale=min_scale)
        self.units = tuple(units)
        self.networks = _Networks(nodes, context, [*hidden, 2 + 3 * sum(units)])

    def _law(
        self, parameters: Tensor, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None
    ) -> TorchDistribution:
        units = [n for n in self.units for _ in range(3)]
        mean, log_scale, *raw = _split(parameters, [1, 1, *units])
        shift = loc + scale * mean.squeeze(-1)
        width = scale * floored_scale(log_scale.squeeze(-1), self.min_scale)
        layers = [self._layer(*raw[i : i + 3]) for i in range(0, len(raw), 3)]
        transform = zuko.transforms.ComposedTransform(AffineTransform(shift, width).inv, *layers)
        base = Normal(torch.zeros_like(shift), 1.0, validate_args=validate_args)
        return FlowDistribution(NormalizingFlow(transform, base), validate_args=validate_args)

    def _layer(self, log_weight: Tensor, centre: Tensor, log_width: Tensor) -> SigmoidalTransform:
        """Make a layer from numbers ``[*batch, units]``; zeros give about the identity.

        The units' centres lie apart, since units that are alike would stay so.
        """
        units = centre.shape[-1]
        start = 0.5 * ((torch.arange(units).to(centre) + 0.5) / units).logit()
        width = (1 - start.square().mean() * 3 / math.pi**2).sqrt()  # the variance is a logistic's
        width = floored_scale(log_width + width.log(), self.min_scale)
        return SigmoidalTransform(log_weight, start + centre, width)


class _Networks(nn.Module):
    """For each node a network of the same shape, all evaluated together.

    Rows come last within, since sums over features and parameters are then sums of long columns.
    """

    def __init__(self, nodes: int, context: int, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(
                "hidden=(): expected one hidden layer or more, got none. Give widths such as "
                "hidden=(16,), or take LinearSEM."
            )
        self.inputs = nn.Parameter(_uniform(nodes, widths[0], nodes))
        self.context = nn.Parameter(_uniform(nodes, widths[0], context))
        sizes = pairwise(widths)
        self.weights = nn.ParameterList([_uniform(nodes, new, old) for old, new in sizes])
        self.biases = nn.ParameterList([torch.zeros(nodes, width, 1) for width in widths])
        nn.init.zeros_(self.weights[-1])

    def forward(
        self, x: Tensor, mask: Tensor, context: Tensor, rows: Index, columns: Index
    ) -> Tensor:
        """Compute the outputs ``[*, R, B, columns, outputs]``."""
        first, *biases = (bias[columns] for bias in self.biases)
        inputs = self.inputs[columns][..., rows] * mask.mT.unsqueeze(-2)
        of_rows = inputs @ x.mT.unsqueeze(-3)  # [*, columns, hidden, B]
        of_regimes = self.context[columns] @ context.mT.unsqueeze(-3) + first
        result = (of_rows.unsqueeze(-2) + of_regimes.unsqueeze(-1)).flatten(-2)
        for weight, bias in zip(self.weights, biases, strict=True):
            result = weight[columns] @ F.silu(result) + bias
        result = result.unflatten(-1, (context.shape[-2], x.shape[-2]))
        return result.movedim((-4, -3), (-2, -1))


def _split(parameters: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Split the last axis, with a gradient whose rows are next to each other, as networks' are."""
    if parameters.dim() < 4:
        return parameters.split(sizes, -1)
    parts = parameters.movedim((-2, -1), (-4, -3)).split(sizes, -3)
    return [part.movedim((-4, -3), (-2, -1)) for part in parts]


def _uniform(*shape: int) -> Tensor:
    return torch.empty(shape).uniform_(-1, 1) / max(shape[-1], 1) ** 0.5
