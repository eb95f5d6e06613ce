"""Mechanisms for discrete variables, with Gumbel noise."""

from __future__ import annotations

from collections.abc import Sequence

from pyro.distributions import Bernoulli, Categorical, constraints
from torch import Tensor, nn

from pyro_causal.mechanisms.base import ContextNetwork, Mechanism

__all__ = ["ConditionalBernoulli", "ConditionalCategorical"]


class ConditionalCategorical(Mechanism):
    r"""A choice among :math:`K` categories.

    .. math:: x = \arg\max_k \, (\log p_k(\mathrm{pa}) + g_k), \qquad g_k \sim \mathrm{Gumbel}(0, 1)

    The noise is what counterfactuals share. It is drawn from its posterior given :math:`x`, since
    a category does not determine it; that the noise is Gumbel is a convention that no data can
    test. It starts uniform.

    **Arguments**

    - ``categories``: their number :math:`K`.
    - ``parents``: the number of scalar parents, or the event shape of each.
    - ``parent_supports``: as for :class:`~pyro_causal.mechanisms.base.Mechanism`.
    - ``hidden``: widths of the hidden layers of the network from the parents to the logits, ``()``
      for logits affine in the parents, or a module of your own from ``(*batch, features)`` to
      ``(*batch, K)``. Roots have no network.

    **Shapes**: parents ``(*batch, *event)``; batch shape their broadcast, event shape ``()``,
    values ``0, ..., K - 1`` of integer dtype.

    **Raises**: ``ValueError`` for fewer than two categories; as
    :class:`~pyro_causal.mechanisms.base.Mechanism`.

    **References**: *Counterfactual off-policy evaluation with Gumbel-max structural causal models*,
    https://arxiv.org/abs/1905.05824, section 3.

    **Example**::

        >>> import torch
        >>> ConditionalCategorical(4, 1)(torch.zeros(3)).probs[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        categories: int,
        parents: int | Sequence[Sequence[int]] = 0,
        *,
        parent_supports: Sequence[constraints.Constraint] | None = None,
        hidden: Sequence[int] | nn.Module = (16,),
    ) -> None:
        super().__init__(parents, parent_supports=parent_supports)
        if categories < 2:
            fact = f"expected at least two categories, got {categories}"
            raise self._error(ValueError, fact, "Use a constant instead of a mechanism")
        self.categories = categories
        self.network = ContextNetwork(len(self.context_loc), categories, hidden=hidden)

    def extra_repr(self) -> str:
        """Show the number of categories as well."""
        return f"categories={self.categories}, {super().extra_repr()}"

    def forward(self, *parents: Tensor) -> Categorical:
        """Give the categorical distribution for these values of the parents."""
        return Categorical(logits=self.network(self.context(*parents)))

    def _set_value_constants(self, data: Tensor) -> None:
        support = constraints.integer_interval(0, self.categories - 1)
        self._require_support(data, support, "Number the categories from 0")


class ConditionalBernoulli(Mechanism):
    r"""A yes or no, one or zero.

    .. math:: x = [\, \mathrm{logit}\, p(\mathrm{pa}) + g_1 - g_0 > 0 \,], \qquad
        g_k \sim \mathrm{Gumbel}(0, 1)

    This is :class:`ConditionalCategorical` with two categories, with values ``0.0`` and ``1.0`` as
    Pyro's ``Bernoulli`` has them, which can be parents as they are. It starts at one half.

    **Arguments**

    - ``parents``: the number of scalar parents, or the event shape of each.
    - ``parent_supports``: as for :class:`~pyro_causal.mechanisms.base.Mechanism`.
    - ``hidden``: as for :class:`ConditionalCategorical`, with one output.

    **Shapes**: parents ``(*batch, *event)``; batch shape their broadcast, event shape ``()``.

    **Raises**: as :class:`~pyro_causal.mechanisms.base.Mechanism`.

    **References**: *Counterfactual off-policy evaluation with Gumbel-max structural causal models*,
    https://arxiv.org/abs/1905.05824, section 3.

    **Example**::

        >>> import torch
        >>> ConditionalBernoulli(1)(torch.zeros(3)).probs
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<SigmoidBackward0>)
    """

    def __init__(
        self,
        parents: int | Sequence[Sequence[int]] = 0,
        *,
        parent_supports: Sequence[constraints.Constraint] | None = None,
        hidden: Sequence[int] | nn.Module = (16,),
    ) -> None:
        super().__init__(parents, parent_supports=parent_supports)
        self.network = ContextNetwork(len(self.context_loc), 1, hidden=hidden)

    def forward(self, *parents: Tensor) -> Bernoulli:
        """Give the Bernoulli distribution for these values of the parents."""
        return Bernoulli(logits=self.network(self.context(*parents)).squeeze(-1))

    def _set_value_constants(self, data: Tensor) -> None:
        self._require_support(data, constraints.boolean, "Recode the values as 0 and 1")
