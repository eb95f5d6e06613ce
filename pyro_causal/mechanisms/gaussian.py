"""The Gaussian mechanism, linear or neural."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Normal, constraints
from torch import Tensor, nn

from pyro_causal.mechanisms.base import ContextNetwork, ContinuousMechanism

__all__ = ["ConditionalGaussian"]


class ConditionalGaussian(ContinuousMechanism):
    r"""Gaussian noise around a function of the parents: linear, or a network.

    .. math:: x = m + s \, (\mu(\mathrm{pa}) + \sigma \, u), \qquad u \sim N(0, 1)

    A plain ``Normal``, so whatever Pyro knows of it (analytic divergences, means) applies.

    **Arguments**

    - ``parents``: the number of scalar parents, or the event shape of each.
    - ``parent_supports``: as for :class:`~pyro_causal.mechanisms.base.Mechanism`.
    - ``hidden``: ``()`` for a linear mechanism, widths of the hidden layers of the network for
      :math:`\mu`, or a module of your own from ``(*batch, features)`` to ``(*batch, 1)``.
    - ``heteroscedastic``: let :math:`\log \sigma` depend on the parents, too; the network then has
      two outputs.

    **Shapes**: parents ``(*batch, *event)``; batch shape their broadcast, event shape ``()``.

    **Raises**: as :class:`~pyro_causal.mechanisms.base.Mechanism`.

    **References**: *Causality* (Pearl 2009), section 1.4, linear structural equations; for the
    heteroscedastic form, *Estimating the mean and variance of the target probability distribution*
    (Nix & Weigend 1994), https://doi.org/10.1109/ICNN.1994.374138.

    **Example**::

        >>> height, age = torch.tensor([150.0, 160.0, 170.0]), torch.tensor([10.0, 20.0, 30.0])
        >>> mechanism = ConditionalGaussian(1).set_normalisation(height, age)
        >>> mechanism(age).loc
        tensor([160., 160., 160.], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        parents: int | Sequence[Sequence[int]] = 0,
        *,
        parent_supports: Sequence[constraints.Constraint] | None = None,
        hidden: Sequence[int] | nn.Module = (),
        heteroscedastic: bool = False,
    ) -> None:
        super().__init__(parents, parent_supports=parent_supports)
        self.heteroscedastic = heteroscedastic
        outputs = 2 if heteroscedastic else 1
        self.network = ContextNetwork(len(self.context_loc), outputs, hidden=hidden)
        if not heteroscedastic:
            self.log_sigma = nn.Parameter(torch.zeros(()))

    def forward(self, *parents: Tensor) -> Normal:
        """Give the Gaussian for these values of the parents."""
        parameters = self.network(self.context(*parents))
        log_sigma = parameters[..., 1] if self.heteroscedastic else self.log_sigma
        mu = parameters[..., 0]
        return Normal(self.loc + self.scale * mu, self.scale * log_sigma.exp())
