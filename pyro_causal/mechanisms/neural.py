r"""Amortised mechanisms: images and other large variables, by networks that are passed in.

The exogenous noise of such a variable has two parts: a latent :math:`z`, a site of its own that an
encoder abducts, and what :math:`z` does not tell. Sample :math:`z` first and hand it over::

    z = pyro.sample("z", image.prior())                  # in the guide: image.posterior(x, t, i)
    x = pyro.sample("x", image(z, t, i), obs=image.dequantise(x))

**References** *Deep structural causal models for tractable counterfactual inference*,
https://arxiv.org/abs/2006.06485, section 3.1: amortised explicit and amortised implicit mechanisms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import Transform, biject_to
from torch.distributions.transforms import (
    ComposeTransform,
    IndependentTransform,
    ReshapeTransform,
)

from pyro_causal.mechanisms.base import Mechanism
from pyro_causal.mechanisms.low_level import SpreadTransform

__all__ = ["AmortisedExplicit", "AmortisedImplicit", "AmortisedMechanism"]

MIN_SCALE = 1e-3  # of the posterior, and of pixels unless told otherwise


class AmortisedMechanism(Mechanism):
    r"""What both amortised mechanisms share: the latent part of the noise, and networks.

    .. math:: z \sim p(z), \text{ by default } N(0, I), \qquad
        q(z \mid x, \mathrm{pa}) = N(\mu_e, \mathrm{diag} \, \sigma_e^2)

    **Arguments**

    - ``encoder``: a network from values ``[B, *event]`` and parents ``[B, features]`` to
      ``[B, 2 * latent]``, the location and the raw scale of :math:`z`.
    - ``decoder``: a network from :math:`z` ``[B, latent]`` and parents ``[B, features]`` to the
      value.
    - ``latent``: the size of :math:`z`.
    - ``event_shape``: shape of a value, such as ``(1, 28, 28)``.
    - ``parents``, ``parent_supports``: as for :class:`Mechanism`.
    - ``latent_prior``: a module without inputs that returns the distribution of :math:`z`, which
      must not depend on the parents. By default it is standard normal.

    **Shapes**: :math:`z` ``(*batch, latent)``, parents ``(*batch, *event)``; their batches
    broadcast, and the networks see them flattened to one axis ``B``.

    **Raises**: ``ValueError`` for a network that returns another shape than it should, and as
    :class:`Mechanism`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent: int,
        event_shape: Sequence[int],
        parents: int | Sequence[Sequence[int]] = 0,
        parent_supports: Sequence[constraints.Constraint] | None = None,
        latent_prior: nn.Module | None = None,
    ) -> None:
        super().__init__(parents, parent_supports=parent_supports)
        self.encoder = encoder
        self.decoder = decoder
        self.latent_prior = latent_prior
        self.latent = latent
        self.event_shape = torch.Size(event_shape)

    def extra_repr(self) -> str:
        """Show the parents and the sizes."""
        event = tuple(self.event_shape)
        return f"{super().extra_repr()}, latent={self.latent}, event_shape={event}"

    def prior(self) -> TorchDistribution:
        """The distribution of :math:`z` among the units, of batch shape ``()``."""
        if self.latent_prior is not None:
            return self.latent_prior()
        return dist.Normal(self.context_loc.new_zeros(self.latent), 1.0).to_event(1)

    def posterior(self, x: Tensor, *parents: Tensor) -> TorchDistribution:
        """The encoder's distribution of :math:`z` given a value and its parents.

        **Shapes**: x ``(*batch, *event)``, parents ``(*batch, *event)``; batch shape their
        broadcast, event shape ``(latent,)``.
        """
        context = self.context(*parents)
        y = self._encoded(x, context)
        out = self._run(self.encoder, (2 * self.latent,), (y, len(self.event_shape)), (context, 1))
        loc, scale = out.chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale) + MIN_SCALE).to_event(1)

    def dequantise(self, x: Tensor | None) -> Tensor | None:
        """The value to observe: in a step of training, whole grey levels become intervals."""
        return x

    def _encoded(self, x: Tensor, context: Tensor) -> Tensor:
        """The value as the encoder sees it."""
        return x

    def _run(self, network: Any, shape: Sequence[int], *inputs: tuple[Tensor, int]) -> Tensor:
        """Call a network with the batches of its inputs broadcast and flattened to one axis."""
        shapes = [(x.shape[: x.dim() - n], x.shape[x.dim() - n :]) for x, n in inputs]
        batch = torch.Size(torch.broadcast_shapes(*(shape for shape, _ in shapes)))
        rows = [
            x.expand(*batch, *event).reshape(batch.numel(), *event)
            for (x, _), (_, event) in zip(inputs, shapes, strict=True)
        ]
        out: Tensor = network(*rows)
        expected = (len(rows[0]), *shape)
        if out.shape != expected:
            raise self._error(
                ValueError,
                f"{type(network).__name__} returns {tuple(out.shape)}: expected {expected}",
                "Let it map a batch of rows to one output per row",
            )
        return out.reshape(*batch, *shape)


class AmortisedExplicit(AmortisedMechanism):
    r"""A variational autoencoder as a mechanism: a latent, a decoder, an invertible part on top.

    .. math:: x = h_{\mathrm{pa}}\bigl(\mu(z, \mathrm{pa}) + \Sigma^{1/2} u\bigr), \qquad
        u \sim N(0, I)

    The value is :math:`h_{\mathrm{pa}}` of what the decoder predicts plus a residual; given
    :math:`z`, the residual :math:`u` is abducted exactly, so a counterfactual keeps the detail that
    the decoder misses. :math:`h^{-1}` maps the ``support`` to the reals, then applies
    ``low_level``, which may depend on the parents. With :math:`z` from :meth:`posterior`, the
    evidence lower bound has the divergence of :math:`z` in closed form, see
    :class:`~pyro_causal.infer.elbo.MeanFieldELBO`.

    **Arguments** beside those of :class:`AmortisedMechanism`:

    - ``decoder`` returns ``[B, outputs * C, ...]`` for an event ``(C, ...)``: along the first axis
      of the event, the location, then the raw scale if ``scale="network"``, then ``rank`` columns
      of a factor. :attr:`outputs` is their number.
    - ``scale``: of the residual; a number, or ``"shared"`` (one learnt for each element of the
      event), or ``"network"`` (the decoder's softplus). Counterfactuals multiply residuals by the
      quotient of two scales, so the first two carry them over as they are.
    - ``min_scale``: added to a scale that is learnt.
    - ``rank``: adds ``rank`` columns of a factor, :math:`\Sigma = W W^T + \mathrm{diag} \,
      \sigma^2`, so that residuals are correlated. Abduction then takes a Cholesky factor of the
      event's whole covariance.
    - ``support``: of single elements, which are mapped to the reals first, by the logarithm or
      the logit.
    - ``low_level``: a module from parents ``[*batch, features]`` to a transform of elements, such
      as :class:`~pyro_causal.mechanisms.low_level.ConditionalScale`. It may be one of your own,
      whose parameters broadcast with values ``[*batch, *event]``: torch's ``AffineTransform``, or
      zuko's ``MonotonicRQSTransform``. If it has a method ``set_normalisation(values)``, for
      constants, the mechanism's own calls it.
    - ``geometry``: a module that places what the decoder draws as the parents say, such as
      :class:`~pyro_causal.mechanisms.geometry.ConditionalWarp`, and with ``undo`` the other way
      round for the encoder. So the networks see and draw images of one size, whatever their
      parents; the residual stays where it is. Its ``fineness``, if it has one, is how many times
      as many rows and columns the decoder draws.
    - ``quantum``: width of a grey level. In training mode, with gradients enabled,
      :meth:`dequantise` spreads a value evenly over its level; else it leaves it alone.

    **Shapes**: z ``(*batch, latent)``, parents ``(*batch, *event)``; batch shape their broadcast,
    event shape ``event_shape``. The encoder gets :math:`h^{-1}(x)`.

    **Raises**: as :class:`AmortisedMechanism`; ``ValueError`` for a scale that is none of these, or
    a discrete support.

    **References**: *Deep structural causal models for tractable counterfactual inference*,
    https://arxiv.org/abs/2006.06485, section 3.1. There the decoder's scale is fixed, pixels are
    mapped to the reals by a logit, which is ``support=interval(...)`` here, and there is no
    ``low_level``.

    **Example**::

        >>> from pyro_causal.mechanisms import ConvDecoder, ConvEncoder
        >>> encoder, decoder = ConvEncoder(4, 1), ConvDecoder(4, 1)
        >>> image = AmortisedExplicit(
        ...     encoder, decoder, latent=4, event_shape=(1, 28, 28), parents=1
        ... )
        >>> thickness = torch.tensor([1.5, 2.5, 3.5])
        >>> z = image.prior().sample((3,))
        >>> image(z, thickness).event_shape
        torch.Size([1, 28, 28])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent: int,
        event_shape: Sequence[int],
        parents: int | Sequence[Sequence[int]] = 0,
        parent_supports: Sequence[constraints.Constraint] | None = None,
        latent_prior: nn.Module | None = None,
        scale: float | Literal["shared", "network"] = "shared",
        min_scale: float = MIN_SCALE,
        rank: int = 0,
        support: constraints.Constraint = constraints.real,
        low_level: nn.Module | None = None,
        geometry: nn.Module | None = None,
        quantum: float = 0.0,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            latent=latent,
            event_shape=event_shape,
            parents=parents,
            parent_supports=parent_supports,
            latent_prior=latent_prior,
        )
        self.scale = scale
        self.min_scale = min_scale
        self.rank = rank
        self.support = support
        self.low_level = low_level
        self.geometry = geometry
        self.quantum = quantum
        if scale == "shared":
            self.log_scale = nn.Parameter(torch.full(self.event_shape, -2.0))
        elif scale != "network" and not (type(scale) in (int, float) and scale > 0):
            fact = f"wrong scale: expected a positive number, 'shared' or 'network', got {scale!r}"
            raise self._error(ValueError, fact, "Give one of these")
        if support.is_discrete:
            fact = f"wrong support: expected a continuous one, got {support}"
            raise self._error(ValueError, fact, "Give constraints.real or interval(a, b)")
        if not self.event_shape:
            fact = "wrong event: expected an event_shape of one axis or more, got ()"
            raise self._error(ValueError, fact, "Give (1,), or another mechanism to a scalar")

    @property
    def outputs(self) -> int:
        """How many numbers for each element of the event the decoder returns."""
        return 1 + (self.scale == "network") + self.rank

    def forward(  # type: ignore[override]
        self, z: Tensor, *parents: Tensor
    ) -> dist.TransformedDistribution:
        """Give the distribution of the value for this latent and these parents."""
        context = self.context(*parents)
        event = self.event_shape
        shape = (self.outputs * event[0], *event[1:])
        finer: int = getattr(self.geometry, "fineness", 1)
        canvas = (shape[0], *(finer * n for n in event[1:]))
        out = self._run(self.decoder, canvas, (z, 1), (context, 1))
        if self.geometry is not None:
            out = self._run(self.geometry, shape, (out, len(event)), (context, 1))
        loc, *rest = out.chunk(self.outputs, -len(event))
        scale = self._scale(loc, rest)
        transforms: list[Transform] = []
        if self.rank:
            columns = torch.stack(rest[-self.rank :], -1).flatten(-len(event) - 1, -2)
            base: TorchDistribution = dist.LowRankMultivariateNormal(
                loc.flatten(-len(event)), columns, scale.expand_as(loc).flatten(-len(event)) ** 2
            )
            transforms.append(ReshapeTransform(torch.Size([event.numel()]), event))
        else:
            base = dist.Normal(loc, scale).to_event(len(event))
        return dist.TransformedDistribution(base, [*transforms, self._chart(context).inv])

    def dequantise(self, x: Tensor | None) -> Tensor | None:
        """The value to observe: in a step of training, spread evenly over its grey level."""
        if x is None or not (self.quantum and self.training and torch.is_grad_enabled()):
            return x
        return x + self.quantum * torch.rand_like(x)

    def _scale(self, loc: Tensor, rest: Sequence[Tensor]) -> Tensor:
        if self.scale == "shared":
            return self.min_scale + self.log_scale.exp()
        if self.scale == "network":
            return self.min_scale + F.softplus(rest[0])
        return torch.full_like(loc, float(self.scale))

    def _chart(self, context: Tensor) -> Transform:
        """The map from value to the decoder's scale, for these parents."""
        batch, event = context.shape[:-1], self.event_shape
        steps = [SpreadTransform([*batch, *(1 for _ in event)]), biject_to(self.support).inv]
        if self.low_level is not None:
            steps.append(self.low_level(context))
        return IndependentTransform(ComposeTransform(steps), len(event))

    def _encoded(self, x: Tensor, context: Tensor) -> Tensor:
        y: Tensor = self._chart(context)(x)
        if self.geometry is None:
            return y
        undo: Any = self.geometry.undo
        return self._run(undo, self.event_shape, (y, len(self.event_shape)), (context, 1))

    def _set_value_constants(self, data: Tensor) -> None:
        self._require_support(data, self.support, "Give wider bounds")
        low_level: Any = self.low_level
        if hasattr(low_level, "set_normalisation"):
            low_level.set_normalisation(biject_to(self.support).inv(data))


class AmortisedImplicit(AmortisedMechanism):
    r"""A generator as a mechanism, without a density; its encoder abducts :math:`z`.

    .. math:: x = g(z, \mathrm{pa}), \qquad z \sim N(0, I)

    Nothing but :math:`z` is noise: a counterfactual is :math:`g(z, \mathrm{pa}')` with :math:`z`
    from :meth:`posterior`, and its detail is only as good as the pair of networks, which is trained
    adversarially. An observation adds nothing to the log-density of a program, whatever its value.

    **Arguments**: those of :class:`AmortisedMechanism`; ``decoder`` returns ``[B, *event]``.

    **Shapes**: z ``(*batch, latent)``, parents ``(*batch, *event)``; batch shape their broadcast,
    event shape ``event_shape``.

    **Raises**: as :class:`AmortisedMechanism`.

    **References**: *Deep structural causal models for tractable counterfactual inference*,
    https://arxiv.org/abs/2006.06485, section 3.1; *Adversarially learned inference*,
    https://arxiv.org/abs/1606.00704, section 2.

    **Example**::

        >>> from pyro_causal.mechanisms import ConvDecoder, ConvEncoder
        >>> encoder, decoder = ConvEncoder(4, 0), ConvDecoder(4, 0)
        >>> image = AmortisedImplicit(encoder, decoder, latent=4, event_shape=(1, 28, 28))
        >>> x = image(image.prior().sample((3,))).sample()
        >>> image.posterior(x).batch_shape
        torch.Size([3])
    """

    def forward(  # type: ignore[override]
        self, z: Tensor, *parents: Tensor
    ) -> TorchDistribution:
        """Give the value for this latent and these parents, as a distribution without density."""
        context = self.context(*parents)
        value = self._run(self.decoder, self.event_shape, (z, 1), (context, 1))
        return dist.Delta(value, event_dim=len(self.event_shape)).mask(False)

    def _set_value_constants(self, data: Tensor) -> None:
        """Nothing to set: the networks see the values as they are."""
