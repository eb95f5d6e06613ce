r"""Flow mechanisms for one continuous variable, real, positive or bounded.

Both are built as in appendix A of *Deep structural causal models for tractable counterfactual
inference* (https://arxiv.org/abs/2006.06485): a fixed map :math:`c` from the support to the reals,
a fixed affine standardisation set from data, and a flow that is learnt,

.. math:: y = \frac{c(x) - m}{s}, \qquad u = f_{\mathrm{pa}}(y) \sim N(0, 1)

Here the parents go through a network (the paper uses one linear layer) and a support is given
rather than taken from the smallest and largest value, which the logit would send to infinity.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from pyro.distributions import Normal, constraints, is_validation_enabled
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform, biject_to

from pyro_causal._pyro import FlowDistribution, NormalizingFlow, zuko
from pyro_causal.mechanisms.base import ContextNetwork, ContinuousMechanism

__all__ = ["ConditionalAffine", "ConditionalSpline", "interval_around"]

# The least slope that zuko lets a spline have. Its own default, 1e-3, allows splines so flat that
# their inverse is NaN in float32.
_SLOPE = 1e-2


def interval_around(data: Tensor, *, margin: float = 0.05) -> constraints.Constraint:
    """The interval that holds the data, widened on either side by ``margin`` times its range.

    The logit sends the ends of an interval to infinity, so bounds at the smallest and the largest
    value of the data would let two rows dominate the fit. Give the physical bounds where you know
    them.

    **Raises**: ``ValueError`` if the data does not vary or ``margin`` is not positive.

    **Example**::

        >>> interval_around(torch.tensor([0.0, 4.0, 10.0]), margin=0.1)
        Interval(lower_bound=-1.0, upper_bound=11.0)
    """
    low, high = data.min().item(), data.max().item()
    if not (low < high and margin > 0):
        raise ValueError(
            f"interval_around: the data spans [{low:.6g}, {high:.6g}], the margin is {margin}: "
            "expected two different values and a positive margin. Give the bounds yourself."
        )
    space = margin * (high - low)
    return constraints.interval(low - space, high + space)


class _Flow(ContinuousMechanism):
    """A mechanism whose standardised value becomes noise by the transforms of a subclass."""

    def __init__(
        self,
        parents: int | Sequence[Sequence[int]],
        outputs: int,
        *,
        parent_supports: Sequence[constraints.Constraint] | None,
        support: constraints.Constraint,
        hidden: Sequence[int] | nn.Module,
    ) -> None:
        super().__init__(parents, parent_supports=parent_supports, support=support)
        self.network = ContextNetwork(len(self.context_loc), outputs, hidden=hidden)

    def forward(self, *parents: Tensor) -> FlowDistribution:
        """Give the flow for these values of the parents."""
        parameters = self.network(self.context(*parents))
        transform = zuko.transforms.ComposedTransform(
            biject_to(self.support).inv,
            AffineTransform(self.loc, self.scale).inv,
            *self._learnt(parameters),
        )
        base = Normal(torch.zeros_like(self.loc), 1.0).expand(parameters.shape[:-1])
        return FlowDistribution(NormalizingFlow(transform, base), support=self.support)

    def _learnt(self, parameters: Tensor) -> tuple[Transform, ...]:
        """The transforms from the standardised value to the noise."""
        raise NotImplementedError


class ConditionalAffine(_Flow):
    r"""A location and a scale that depend on the parents.

    .. math:: c(x) = m + s \, (\mu(\mathrm{pa}) + \sigma(\mathrm{pa}) \, u), \qquad u \sim N(0, 1)

    On the reals this is a Gaussian, on the positive numbers a log-normal, on an interval a
    logit-normal. It starts at :math:`\mu = 0, \sigma = 1`: the data's own mean and spread.

    **Arguments**

    - ``parents``: the number of scalar parents, or the event shape of each.
    - ``parent_supports``: as for :class:`~pyro_causal.mechanisms.base.Mechanism`.
    - ``support``: ``constraints.real``, ``positive`` or ``interval(a, b)``.
    - ``hidden``: widths of the hidden layers of the network from the parents to :math:`\mu` and
      :math:`\log \sigma`, ``()`` for affine functions of the parents, or a module of your own from
      ``(*batch, features)`` to ``(*batch, 2)``. Roots have no network.

    **Shapes**: parents ``(*batch, *event)``; batch shape their broadcast, event shape ``()``.

    **Raises**: as :class:`~pyro_causal.mechanisms.base.Mechanism`.

    **References**: *Deep structural causal models for tractable counterfactual inference*,
    https://arxiv.org/abs/2006.06485, appendix A.2.

    **Example**::

        >>> from pyro.distributions import constraints
        >>> intensity = ConditionalAffine(1, support=constraints.interval(64.0, 255.0))
        >>> thickness = torch.tensor([1.5, 2.5, 3.5])
        >>> intensity = intensity.set_normalisation(torch.tensor([90.0, 120.0, 200.0]), thickness)
        >>> intensity(thickness)
        FlowDistribution(batch_shape=(3,), event_shape=(), support=Interval(lower_bound=64.0,
        upper_bound=255.0))
    """

    def __init__(
        self,
        parents: int | Sequence[Sequence[int]] = 0,
        *,
        parent_supports: Sequence[constraints.Constraint] | None = None,
        support: constraints.Constraint = constraints.real,
        hidden: Sequence[int] | nn.Module = (16,),
    ) -> None:
        super().__init__(
            parents, 2, parent_supports=parent_supports, support=support, hidden=hidden
        )

    def _learnt(self, parameters: Tensor) -> tuple[Transform, ...]:
        return (zuko.transforms.MonotonicAffineTransform(*parameters.unbind(-1)).inv,)


class ConditionalSpline(_Flow):
    r"""A location and a scale that depend on the parents, and noise of a shape that does.

    .. math:: u = g_{\mathrm{pa}}\left(\frac{y - \mu(\mathrm{pa})}{\sigma(\mathrm{pa})}\right)

    with a monotone rational-quadratic spline :math:`g` whose knots depend on the parents, too. Its
    inverse is exact. It starts at the identity: the data's own mean and spread, Gaussian.

    **Warning**: the spline acts within ``bound`` standard deviations :math:`\sigma(\mathrm{pa})` of
    the location :math:`\mu(\mathrm{pa})`; further out it is the identity, so the tails are
    Gaussian. Abducting the noise of a value out there warns, unless Pyro's validation is off.
    Without
    :meth:`~pyro_causal.mechanisms.base.Mechanism.set_normalisation` most data lies out there.

    **Arguments**

    - ``parents``: the number of scalar parents, or the event shape of each.
    - ``parent_supports``: as for :class:`~pyro_causal.mechanisms.base.Mechanism`.
    - ``support``: ``constraints.real``, ``positive`` or ``interval(a, b)``.
    - ``bins``: number :math:`K` of pieces of the spline.
    - ``bound``: half the width of the spline's domain.
    - ``hidden``: as for :class:`ConditionalAffine`, with :math:`3 K + 1` outputs.

    **Shapes**: parents ``(*batch, *event)``; batch shape their broadcast, event shape ``()``.

    **Raises**: as :class:`~pyro_causal.mechanisms.base.Mechanism`.

    **References**: *Neural spline flows*, https://arxiv.org/abs/1906.04032, section 3.1; *Deep
    structural causal models for tractable counterfactual inference*,
    https://arxiv.org/abs/2006.06485, appendix A.1 (whose splines do not depend on parents).

    **Example**::

        >>> from pyro.distributions import constraints
        >>> thickness = ConditionalSpline(support=constraints.positive)
        >>> thickness = thickness.set_normalisation(torch.tensor([1.0, 2.0, 4.0]))
        >>> d = thickness()
        >>> d.transform(torch.tensor([1.0, 2.0, 4.0])).detach()
        tensor([-1.2247,  0.0000,  1.2247])
        >>> d.expand((100,)).sample().shape
        torch.Size([100])
    """

    def __init__(
        self,
        parents: int | Sequence[Sequence[int]] = 0,
        *,
        parent_supports: Sequence[constraints.Constraint] | None = None,
        support: constraints.Constraint = constraints.real,
        bins: int = 8,
        bound: float = 5.0,
        hidden: Sequence[int] | nn.Module = (32,),
    ) -> None:
        super().__init__(
            parents,
            3 * bins + 1,
            parent_supports=parent_supports,
            support=support,
            hidden=hidden,
        )
        self.bins = bins
        self.bound = bound

    def extra_repr(self) -> str:
        """Show the size of the spline as well."""
        return f"{super().extra_repr()}, bins={self.bins}, bound={self.bound}"

    def _learnt(self, parameters: Tensor) -> tuple[Transform, ...]:
        sizes = [1, 1, self.bins, self.bins, self.bins - 1]
        loc, log_scale, *knots = parameters.split(sizes, -1)
        affine = zuko.transforms.MonotonicAffineTransform(loc.squeeze(-1), log_scale.squeeze(-1))
        spline = zuko.transforms.MonotonicRQSTransform(*knots, bound=self.bound, slope=_SLOPE)
        return _DomainCheck(affine, self.bound), affine.inv, spline


class _DomainCheck(zuko.transforms.IdentityTransform):
    """Warns when noise is abducted from values that the spline does not reach.

    A density is evaluated through ``call_and_ladj``, and a prediction through the inverse; only
    abduction calls the transform itself.
    """

    def __init__(self, affine: Transform, bound: float) -> None:
        super().__init__()
        self.affine = affine
        self.bound = bound

    def __call__(self, y: Tensor) -> Tensor:
        if not is_validation_enabled() or torch.jit.is_tracing():
            return y
        low, high = (_first(self.affine(y.new_tensor(end)), y) for end in (-self.bound, self.bound))
        outside = (y < low) | (y > high)
        if outside.any():
            warnings.warn(
                f"ConditionalSpline: {int(outside.sum())} of {outside.numel()} values outside of "
                f"the spline's domain, {self.bound} standard deviations on either side of the "
                "location: expected values like the training data; their noise is that of a "
                "Gaussian tail. Check these values, call set_normalisation with data that cover "
                "them, or give a larger bound.",
                stacklevel=2,
            )
        return y

    def call_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Without the check."""
        return y, torch.zeros_like(y)


def _first(end: Tensor, y: Tensor) -> Tensor:
    """Take the first context where one value meets several: the factual one, if they are worlds."""
    for dim in range(-end.dim(), 0):
        if y.dim() < -dim or y.shape[dim] == 1:
            end = end.narrow(dim, 0, 1)
    return end
