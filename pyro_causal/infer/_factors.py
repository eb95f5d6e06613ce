"""Factors of a mean field whose draws have gradients, by the support of a site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import biject_to, register_kl
from torch.distributions.constraints import Constraint

from pyro_causal.infer._terms import binary_divergence
from pyro_causal.infer.priors import BernoulliGraph

__all__ = ["BinaryFactor", "GraphFactor", "RealFactor", "factor_of"]


class RealFactor(nn.Module):
    r"""An independent normal for each element, or what a change of variables makes of it.

    .. math:: \theta = f(m + s \epsilon), \qquad \epsilon \sim N(0, 1)

    with the standard :math:`f` from real numbers to the support, exp for positive numbers. The
    divergence from a normal prior, and from a log-normal one, is in closed form.

    **Arguments**: the ``value`` to start at, its ``support`` and ``event_dim``, and the ``scale``
    :math:`s` to start at, of the real numbers.

    **Example**::

        >>> factor = RealFactor(torch.ones(3), support=constraints.positive, event_dim=1, scale=0.1)
        >>> factor().support.check(factor().sample())
        tensor(True)
    """

    def __init__(self, value: Tensor, *, support: Constraint, event_dim: int, scale: float) -> None:
        super().__init__()
        base, self.transform = _base(support), None
        self.family: Any = dist.Normal
        loc = value
        if base in (constraints.positive, constraints.nonnegative):
            self.family, loc = dist.LogNormal, value.log()
        elif base is not constraints.real:
            self.transform = biject_to(support)
            loc = self.transform.inv(value)
        self.event_dim = event_dim + loc.dim() - value.dim()
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(scale)))

    def forward(self) -> dist.TorchDistribution:
        """The distribution."""
        factor = self.family(self.loc, self.log_scale.exp()).to_event(self.event_dim)
        if self.transform is None:
            return factor
        return dist.TransformedDistribution(factor, [self.transform])


class BinaryFactor(nn.Module):
    r"""An independent Bernoulli for each element, whose draws have a gradient.

    .. math:: \frac{\partial \theta}{\partial \pi} = 1, \qquad \theta \sim \mathrm{Bern}(\pi)

    For a log-density that is affine in each element, such as
    :math:`\theta \log g_1 + (1 - \theta) \log g_0`, the gradient of its expectation is unbiased.
    Else it is biased, and it is zero if the model turns the draw into a boolean or an index.

    **Arguments**: a ``value``, for its shape (probabilities start at 1/2), and its ``event_dim``.

    **Example**::

        >>> BinaryFactor(torch.zeros(3, 4), event_dim=1)().event_shape
        torch.Size([4])
    """

    def __init__(self, value: Tensor, *, event_dim: int) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.logits = nn.Parameter(torch.zeros_like(value))

    def forward(self) -> dist.TorchDistribution:
        """The distribution."""
        return _StraightThrough(logits=self.logits).to_event(self.event_dim)


class GraphFactor(nn.Module):
    """A graph with independent edges, whose draws have the gradient of those of `BinaryFactor`.

    **Arguments**: the ``prior``, whose certain edges it shares; probabilities of all others start
    at 1/2.

    **Example**::

        >>> GraphFactor(BernoulliGraph(torch.full((3, 3), 0.1)))().probs[0]
        tensor([0.0000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    prior: Tensor

    def __init__(self, prior: BernoulliGraph) -> None:
        super().__init__()
        self.register_buffer("prior", prior.logits.detach().clone())
        self.logits = nn.Parameter(torch.zeros_like(self.prior))

    def forward(self) -> dist.TorchDistribution:
        """The distribution."""
        free = BernoulliGraph(logits=self.logits)
        return _Edges(logits=BernoulliGraph(logits=self.prior).constrained(free).logits)


class _StraightThrough(dist.Bernoulli):
    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return _draw(self.probs.expand(self._extended_shape(sample_shape)))


class _Edges(BernoulliGraph):
    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return _draw(self.probs.expand(*sample_shape, *self.probs.shape))


@register_kl(_StraightThrough, dist.Bernoulli)
def _(p: _StraightThrough, q: dist.Bernoulli) -> Tensor:
    """Torch's is infinite where a probability rounds to 0 or 1, however finite the logit."""
    exact = ((q.probs == 0) | (q.probs == 1)) & (q.logits.abs() < 50)  # given as such, not rounded
    return torch.where(exact, torch.inf, binary_divergence(p.logits, q.logits))


def _draw(probs: Tensor) -> Tensor:
    return torch.bernoulli(probs.detach()) + (probs - probs.detach())


def factor_of(name: str, site: Any, *, scale: float) -> nn.Module:
    """A factor of a site of a trace.

    **Raises**: ``ValueError`` for a site that is neither real nor binary.
    """
    fn, value = site["fn"], site["value"]
    if isinstance(fn, BernoulliGraph):
        return GraphFactor(fn)
    base = _base(fn.support)
    if base is constraints.boolean:
        return BinaryFactor(value, event_dim=fn.event_dim)
    if base.is_discrete:
        raise ValueError(
            f"At site '{name}', a {type(fn).__name__} is neither real nor binary: expected one of "
            "them. Sum it out, or give a guide of this site as rest."
        )
    return RealFactor(value, support=fn.support, event_dim=fn.event_dim, scale=scale)


def _base(support: Any) -> Any:
    """The constraint of single elements."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
