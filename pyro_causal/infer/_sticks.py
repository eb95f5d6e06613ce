"""The weights of a Dirichlet process, by breaking a stick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions import Transform, kl_divergence, register_kl
from torch.distributions.constraints import Constraint
from torch.distributions.utils import clamp_probs

__all__ = ["StickBreaking", "SticksToWeights"]


class SticksToWeights(Transform):
    r"""Breaks a stick of length one: each fraction is of what the ones before it have left.

    .. math:: w_k = v_k \prod_{l < k} (1 - v_l), \quad k < K, \qquad
        w_K = \prod_{l < K} (1 - v_l)

    **Shapes**: fractions ``[*batch, K - 1]`` to weights ``[*batch, K]``, which sum to one.

    **Example**::

        >>> SticksToWeights()(torch.tensor([0.5, 0.5, 0.5]))
        tensor([0.5000, 0.2500, 0.1250, 0.1250])
    """

    domain = constraints.independent(constraints.unit_interval, 1)
    codomain = constraints.simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        """Whether it is the same transformation."""
        return isinstance(other, SticksToWeights)

    def __hash__(self) -> int:
        return hash(SticksToWeights)

    def log_weights(self, sticks: Tensor) -> Tensor:
        """The logarithm of the weights, which may be too small for a number themselves."""
        v = clamp_probs(sticks)
        return _along(v.log(), (-v).log1p())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """That of the map to all weights but the last."""
        left: Tensor = (-clamp_probs(x)).log1p().cumsum(-1)[..., :-1].sum(-1)
        return left

    def forward_shape(self, shape: Size) -> Size:
        """One more."""
        return Size([*shape[:-1], shape[-1] + 1])

    def inverse_shape(self, shape: Size) -> Size:
        """One less."""
        return Size([*shape[:-1], shape[-1] - 1])

    def _call(self, x: Tensor) -> Tensor:
        return self.log_weights(x).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        left = y.flip(-1).cumsum(-1).flip(-1).clamp(min=torch.finfo(y.dtype).tiny)
        return clamp_probs((y / left)[..., :-1])


class StickBreaking(dist.TransformedDistribution):
    r"""Weights of K components from K - 1 independent Beta sticks; the last takes what is left.

    .. math:: w = \mathrm{break}(v), \qquad v_k \sim \mathrm{Beta}(a_k, b_k)

    With :meth:`gem` it is the prior of a Dirichlet process, cut at K components; with other
    parameters it is the posterior. The divergence between two of them is in closed form.

    **Arguments**: ``concentration1``, ``concentration0``, the :math:`a_k` and :math:`b_k`.

    **Shapes**: ``[*batch, K - 1]``; values ``[*batch, K]``.

    **References**: *Variational inference for Dirichlet process mixtures*,
    https://doi.org/10.1214/06-BA104, section 3 (there the last stick is one, too). *Differentiable
    causal discovery under latent interventions*, https://arxiv.org/abs/2203.02336, appendix A, for
    which a = rho w and b = (1 - rho) w: there the divergence is printed in the other direction,
    and it is not said that the last stick is one.

    **Example**::

        >>> prior = StickBreaking.gem(2.0, truncation=4)
        >>> prior.sample().shape
        torch.Size([4])
        >>> prior.updated(torch.tensor([8.0, 1.0, 0.0, 0.0])).mean
        tensor([0.7500, 0.1250, 0.0417, 0.0833])
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "concentration1": constraints.independent(constraints.positive, 1),
        "concentration0": constraints.independent(constraints.positive, 1),
    }

    def __init__(
        self, concentration1: Tensor, concentration0: Tensor, *, validate_args: bool | None = None
    ) -> None:
        a, b = torch.broadcast_tensors(concentration1, concentration0)
        if not a.dim() or not a.shape[-1]:
            raise ValueError(
                f"StickBreaking: expected one stick or more, [*batch, K - 1], got shape "
                f"{tuple(a.shape)}. Give one less than components, of which there are two or more."
            )
        sticks = dist.Beta(a, b, validate_args=validate_args).to_event(1)
        super().__init__(sticks, [SticksToWeights()], validate_args=validate_args)

    @classmethod
    def gem(cls, concentration: Tensor | float, *, truncation: int) -> Self:
        r"""The prior of a Dirichlet process, :math:`v_k \sim \mathrm{Beta}(1, \alpha)`.

        Of n draws about :math:`\alpha \log(1 + n / \alpha)` components are seen.

        **Arguments**: ``concentration``, :math:`\alpha`; ``truncation``, K.

        **Shapes**: ``concentration`` ``[*batch]``.

        **Raises**: ``ValueError`` for fewer than two components.
        """
        if truncation < 2:
            raise ValueError(
                f"StickBreaking: expected a truncation from 2, got {truncation}. Give more "
                "components than are likely."
            )
        b = (1.0 * torch.as_tensor(concentration)).unsqueeze(-1)
        b = b.expand(*b.shape[:-1], truncation - 1)
        return cls(torch.ones_like(b), b)

    @property
    def concentration1(self) -> Tensor:
        """The weight of each stick's own component, as a count."""
        a: Tensor = self.sticks.concentration1
        return a

    @property
    def concentration0(self) -> Tensor:
        """The weight of the components after it, as a count."""
        b: Tensor = self.sticks.concentration0
        return b

    @property
    def sticks(self) -> Any:
        """The distribution of each stick, a ``Beta`` of batch shape ``[*batch, K - 1]``."""
        return self.base_dist.base_dist

    @property
    def mean(self) -> Tensor:
        """The expected weights, ``[*batch, K]``."""
        weights: Tensor = SticksToWeights()(self.sticks.mean)
        return weights

    @property
    def expected_log_weights(self) -> Tensor:
        r"""The expectation of the logarithm of the weights, ``[*batch, K]``.

        .. math:: E \log w_k = \psi(a_k) - \psi(a_k + b_k)
            + \sum_{l < k} \bigl(\psi(b_l) - \psi(a_l + b_l)\bigr)

        where the first two terms are left out for k = K.
        """
        a, b = self.concentration1, self.concentration0
        total = torch.digamma(a + b)
        return _along(torch.digamma(a) - total, torch.digamma(b) - total)

    def updated(self, counts: Tensor) -> StickBreaking:
        r"""The sticks after so many draws of each component, if this is the prior.

        .. math:: a_k + N_k, \qquad b_k + \sum_{l > k} N_l

        With the sums of responsibilities as counts it is the optimal factor of a mean field.

        **Shapes**: ``counts`` ``[*batch, K]``.

        **Raises**: ``ValueError`` for another number of components.
        """
        if counts.shape[-1:] != self.event_shape:
            raise ValueError(
                f"StickBreaking: expected counts of {self.event_shape[0]} components, got shape "
                f"{tuple(counts.shape)}. Sum the responsibilities over the rows."
            )
        later = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return StickBreaking(self.concentration1 + counts[..., :-1], self.concentration0 + later)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> StickBreaking:
        """Another batch shape."""
        shape = (*batch_shape, *self.concentration1.shape[-1:])
        return StickBreaking(
            self.concentration1.expand(shape),
            self.concentration0.expand(shape),
            validate_args=False,
        )


def _along(taken: Tensor, left: Tensor) -> Tensor:
    """Logarithms of weights from those of what each stick takes and leaves."""
    before = F.pad(left.cumsum(-1), (1, 0))
    return F.pad(taken, (0, 1)) + before


@register_kl(StickBreaking, StickBreaking)
def _(p: StickBreaking, q: StickBreaking) -> Tensor:
    sticks: Tensor = kl_divergence(p.sticks, q.sticks)
    return sticks.sum(-1)
