r"""A latent in two levels, so that draws of many local numbers add up to one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Independent, kl_divergence, register_kl

__all__ = ["HierarchicalNormal"]

Network = Callable[[Tensor], tuple[Tensor, Tensor]]


class HierarchicalNormal(TorchDistribution):
    r"""A vector whose first part is standard normal, and whose rest is normal given the first.

    .. math:: p(z) = N(z_1; 0, I) \, N(z_2; m(z_1), \mathrm{diag} \, s(z_1)^2)

    The divergence from a diagonal Gaussian, as an encoder gives, is in closed form for :math:`z_1`
    and, given a draw of it, for :math:`z_2`: ``kl_divergence`` takes one draw for each row, with
    gradients. (Particles, copies of a row, share it.)

    **Arguments**

    - ``network``: maps :math:`z_1` ``[B, first]`` to :math:`m` and :math:`s`, each ``[B, rest]``.
    - ``first``: size of :math:`z_1`.
    - ``size``: size of :math:`z`.
    - ``like``: a tensor of the dtype and on the device of draws.

    **Shapes**: batch shape ``()``, event shape ``(size,)``.

    **References**: *Ladder variational autoencoders*, https://arxiv.org/abs/1602.02282 (its
    generative model; the encoder here is a plain diagonal Gaussian).

    **Example**::

        >>> d = HierarchicalNormal(lambda first: (first, torch.ones_like(first)), first=2, size=4)
        >>> d.sample((3,)).shape, d.log_prob(torch.zeros(4))
        (torch.Size([3, 4]), tensor(-3.6758))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as in torch)
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        network: Network,
        *,
        first: int,
        size: int,
        like: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.network = network
        self.first = first
        self._like = torch.empty(()) if like is None else like
        super().__init__(torch.Size(), torch.Size([size]), validate_args=validate_args)

    def expand(
        self, batch_shape: Sequence[int], _instance: HierarchicalNormal | None = None
    ) -> HierarchicalNormal:
        """Broadcast to another batch shape, sharing the network."""
        new = self._get_checked_instance(HierarchicalNormal, _instance)
        new.network, new.first, new._like = self.network, self.first, self._like
        batch = torch.Size(batch_shape)
        TorchDistribution.__init__(new, batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rest(self, first: Tensor) -> Normal:
        """The distribution of the rest given the first part ``(*batch, first)``."""
        batch = first.shape[:-1]
        loc, scale = self.network(first.reshape(batch.numel(), self.first))
        return Normal(loc.reshape(*batch, -1), scale.reshape(*batch, -1))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw the first part, then the rest."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        first = torch.randn(*shape, self.first, dtype=self._like.dtype, device=self._like.device)
        return torch.cat([first, self.rest(first).rsample()], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The density of both parts."""
        if self._validate_args:
            self._validate_sample(value)
        first, rest = value[..., : self.first], value[..., self.first :]
        density = Normal(torch.zeros_like(first), 1.0).log_prob(first).sum(-1)
        return (density + self.rest(first).log_prob(rest).sum(-1)).expand(
            torch.broadcast_shapes(density.shape, self.batch_shape)
        )


@register_kl(Independent, HierarchicalNormal)
def _divergence(q: Independent, p: HierarchicalNormal) -> Tensor:
    """Closed form, but for one draw of the first part."""
    base = q.base_dist
    if not isinstance(base, torch.distributions.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    loc, scale = (_distinct(parameter) for parameter in (base.loc, base.scale))
    sizes = [p.first, p.event_shape[0] - p.first]
    parts = zip(loc.split(sizes, -1), scale.split(sizes, -1), strict=True)
    first, rest = (Normal(*part) for part in parts)
    standard = Normal(torch.zeros_like(first.loc), 1.0)
    kl = kl_divergence(first, standard).sum(-1)
    kl = kl + kl_divergence(rest, p.rest(first.rsample())).sum(-1)
    return kl.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


def _distinct(parameter: Tensor) -> Tensor:
    """Without the copies that expanding made, which particles are: they share the draw."""
    for dim in range(parameter.dim() - 1):
        if parameter.stride(dim) == 0:
            parameter = parameter.narrow(dim, 0, 1)
    return parameter
