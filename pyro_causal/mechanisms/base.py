"""What every mechanism shares: how parents are declared, checked, standardised and joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.util import ignore_jit_warnings
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_causal._recipe import Recorded

__all__ = ["ContextNetwork", "ContinuousMechanism", "Mechanism", "Recorded"]


class Mechanism(Recorded):
    r"""A conditional distribution :math:`p(x \mid \mathrm{pa})` as a module: parents in, site out.

    Use it in a program as ``x = pyro.sample("x", mechanism(pa1, pa2))``. A root is a mechanism
    without parents; its batch shape is ``()`` and plates expand it.

    Parents are declared once, by count or by event shape, and checked at each call. They may have
    different batch shapes, which broadcast: a parent ``[W, N]`` that differs between worlds goes
    with a parent ``[N]`` that does not. A subclass implements :meth:`forward`, usually from
    :meth:`context`.

    **Arguments**

    - ``parents``: the number of scalar parents, or one event shape for each parent: ``2`` means
      ``[(), ()]``.
    - ``parent_supports``: for each parent a constraint on its single elements; what is positive
      enters as its logarithm, what is bounded as its logit, before it is standardised. What is
      discrete enters as it is, like a real. By default all are reals.

    **Shapes**: a parent ``(*batch, *event)``, with one declared event shape each.

    **Raises**: ``ValueError`` for another number of supports than parents.

    **Example**::

        >>> import pyro.distributions as dist
        >>> class Drift(Mechanism):
        ...     def forward(self, *parents):
        ...         return dist.Normal(self.context(*parents).sum(-1), 1.0)
        >>> drift = Drift([(), (3,)])
        >>> drift(torch.zeros(2, 1), torch.ones(5, 3)).loc.shape
        torch.Size([2, 5])
    """

    context_loc: Tensor
    context_scale: Tensor

    def __init__(
        self,
        parents: int | Sequence[Sequence[int]] = 0,
        *,
        parent_supports: Sequence[constraints.Constraint] | None = None,
    ) -> None:
        super().__init__()
        shapes = [()] * parents if isinstance(parents, int) else parents
        self.parent_shapes = tuple(torch.Size(shape) for shape in shapes)
        if parent_supports is None:
            parent_supports = [constraints.real] * len(self.parent_shapes)
        self.parent_supports = tuple(
            constraints.real if support.is_discrete else support for support in parent_supports
        )
        if len(self.parent_supports) != len(self.parent_shapes):
            raise self._error(
                ValueError,
                f"wrong number of parent_supports: expected {len(self.parent_shapes)}, got "
                f"{len(self.parent_supports)}",
                "Give one constraint for each parent, constraints.real where there is none",
            )
        features = sum(shape.numel() for shape in self.parent_shapes)
        self.register_buffer("context_loc", torch.zeros(features))
        self.register_buffer("context_scale", torch.ones(features))

    def extra_repr(self) -> str:
        """Show the event shapes of the parents."""
        return f"parents={[tuple(shape) for shape in self.parent_shapes]}"

    def forward(self, *parents: Tensor) -> TorchDistribution:
        """Give the distribution of the site for these values of its parents."""
        raise NotImplementedError

    def context(self, *parents: Tensor) -> Tensor:
        r"""Join the parents to standardised features, :math:`(c(\mathrm{pa}) - m) / s`.

        :math:`c` is the map from a parent's support to the reals.

        **Shapes**: parents ``(*batch, *event)``; result ``(*batch, features)`` with the broadcast
        of all batches. A root has the context ``(0,)``.

        **Raises**: ``ValueError`` for a wrong number of parents or a wrong event shape,
        ``TypeError`` for a dtype other than the mechanism's. Categories do not pass as numbers.
        """
        return (self._join(parents) - self.context_loc) / self.context_scale

    def set_normalisation(self, data: Tensor, *parents: Tensor) -> Self:
        """Fix the constants by which values and parents are standardised, from data.

        Call it once, before training. The constants are buffers: saved with the mechanism, moved
        with it, and never trained. A parent's feature that does not vary keeps the scale one.

        **Shapes**: data ``(*batch,)``; parents ``(*batch, *event)``.

        **Raises**: ``ValueError`` if the data or a parent holds NaN or infinity, or the data leaves
        the support; whatever :meth:`context` raises.
        """
        features = torch.atleast_2d(self._join(parents)).flatten(0, -2)
        for name, tensor in {"data": data, "parents": features}.items():
            if not torch.isfinite(tensor).all():
                fact = f"NaN or infinity in the {name}: expected finite values"
                raise self._error(ValueError, fact, "Drop such rows")
        self._set_value_constants(data)
        if self.parent_shapes:
            scale, loc = torch.std_mean(features, 0, correction=0)
            varies = features.amax(0) > features.amin(0)
            self.context_loc.copy_(loc)
            self.context_scale.copy_(torch.where(varies, scale, 1.0))
        return self

    def _set_value_constants(self, data: Tensor) -> None:
        """Check the data and set the constants for the value itself, where there are any."""

    def _require_support(self, data: Tensor, support: constraints.Constraint, remedy: str) -> None:
        """Raise unless all data lies within the support, off its bounds where it is continuous."""
        inside, where = support.check(data), "outside of the support"
        if not support.is_discrete:
            where += " or on its bounds"
            for bound in ("lower_bound", "upper_bound"):
                inside = inside & (data != getattr(support, bound, math.nan))
        if not inside.all():
            raise self._error(
                ValueError,
                f"{int((~inside).sum())} of {data.numel()} values {where}: expected values within "
                f"{support}, got [{data.min():.6g}, {data.max():.6g}]",
                remedy,
            )

    def _join(self, parents: Sequence[Tensor]) -> Tensor:
        """Check, broadcast, flatten and concatenate."""
        self._check(parents)
        if not parents:
            return self.context_loc
        declared = zip(parents, self.parent_shapes, self.parent_supports, strict=True)
        columns = [
            biject_to(support)
            .inv(parent)
            .reshape(*parent.shape[: parent.dim() - len(shape)], shape.numel())
            for parent, shape, support in declared
        ]
        batch = torch.broadcast_shapes(*(column.shape[:-1] for column in columns))
        return torch.cat([column.expand(*batch, -1) for column in columns], -1)

    @ignore_jit_warnings()  # shapes are constants of a trace
    def _check(self, parents: Sequence[Tensor]) -> None:
        expected, dtype = len(self.parent_shapes), self.context_loc.dtype
        if len(parents) != expected:
            raise self._error(
                ValueError,
                f"wrong number of parents: expected {expected}, got {len(parents)}",
                "Pass one tensor for each parent declared by parents=..., in that order",
            )
        for i, (parent, shape) in enumerate(zip(parents, self.parent_shapes, strict=True)):
            if parent.shape[max(parent.dim() - len(shape), 0) :] != shape:
                raise self._error(
                    ValueError,
                    f"wrong event shape of parent {i}: expected (*batch, "
                    f"{', '.join(map(str, shape))}), got {tuple(parent.shape)}",
                    "Declare the event shapes of all parents, such as parents=[(), (3,)]",
                )
            if parent.dtype != dtype:
                raise self._error(
                    TypeError,
                    f"wrong dtype of parent {i}: expected {dtype}, got {parent.dtype}",
                    "Convert the mechanism with .to(parent.dtype)"
                    if parent.is_floating_point()
                    else f"Convert a quantity with .to({dtype}); encode categories with "
                    f"torch.nn.functional.one_hot(x, K).to({dtype}) and declare the shape (K,)",
                )

    def _error(self, kind: type[Exception], fact: str, remedy: str) -> Exception:
        return kind(f"{type(self).__name__}: {fact}. {remedy}.")


class ContinuousMechanism(Mechanism):
    r"""A mechanism for a scalar with a continuous support, standardised by fixed constants.

    .. math:: y = \frac{c(x) - m}{s}

    with the map :math:`c` from the support to the reals: the identity, the logarithm (positive
    values) or the logit (an interval). A subclass models :math:`y`.

    **Arguments**

    - ``parents``, ``parent_supports``: as for :class:`Mechanism`.
    - ``support``: ``constraints.real``, ``positive``, ``interval(a, b)`` or any other constraint on
      scalars that ``biject_to`` knows, with numbers for bounds.

    **Raises**: ``ValueError`` if the support is discrete or not one of scalars.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        parents: int | Sequence[Sequence[int]] = 0,
        *,
        parent_supports: Sequence[constraints.Constraint] | None = None,
        support: constraints.Constraint = constraints.real,
    ) -> None:
        super().__init__(parents, parent_supports=parent_supports)
        if support.event_dim or support.is_discrete:
            raise self._error(
                ValueError,
                f"wrong support: expected a continuous one of scalars, got {support}",
                "Give constraints.real, constraints.positive or constraints.interval(a, b)",
            )
        self.support = support
        self.register_buffer("loc", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def extra_repr(self) -> str:
        """Show the parents and the support."""
        return f"{super().extra_repr()}, support={self.support}"

    def _set_value_constants(self, data: Tensor) -> None:
        data = data.to(self.loc)
        remedy = "Give wider bounds, or take them from data with interval_around(data)"
        self._require_support(data, self.support, remedy)
        if not data.max() > data.min():
            fact = f"the data does not vary: expected several values, got {data.max():.6g} only"
            raise self._error(ValueError, fact, "Use a constant instead of a mechanism")
        scale, loc = torch.std_mean(biject_to(self.support).inv(data), correction=0)
        self.loc.copy_(loc)
        self.scale.copy_(scale)


class ContextNetwork(Recorded):
    """The parameters of a distribution as a function of the context.

    It starts at zero whatever the context, so that a mechanism starts at its base measure. Without
    features (a root) the parameters are learnt directly.

    **Arguments**

    - ``features``: size of the context.
    - ``outputs``: number of parameters.
    - ``hidden``: widths of the hidden layers, with SiLU between them; ``()`` makes the parameters
      affine in the context. Or a module of your own from ``(*batch, features)`` to
      ``(*batch, outputs)``, which is used as it is.

    **Shapes**: context ``(*batch, features)``; result ``(*batch, outputs)``.

    **Raises**: ``ValueError`` if a module of your own returns another number of outputs.

    **Example**::

        >>> ContextNetwork(3, 2, hidden=(16,))(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, features: int, outputs: int, *, hidden: Sequence[int] | nn.Module = ()
    ) -> None:
        super().__init__()
        self.features = features
        self.outputs = outputs
        if not features:
            self.bias = nn.Parameter(torch.zeros(outputs))
        elif isinstance(hidden, nn.Module):
            self.net = hidden
        else:
            self.net = _mlp(features, outputs, hidden)

    def forward(self, context: Tensor) -> Tensor:
        """Compute the parameters."""
        if not self.features:
            return self.bias
        result = self.net(context)
        self._check(context, result)
        return result

    @ignore_jit_warnings()  # shapes are constants of a trace
    def _check(self, context: Tensor, result: Tensor) -> None:
        expected = (*context.shape[:-1], self.outputs)
        if result.shape != expected:
            raise ValueError(
                f"ContextNetwork: {type(self.net).__name__} maps {tuple(context.shape)} to "
                f"{tuple(result.shape)}: expected {expected}. Give its last layer {self.outputs} "
                "outputs and let it act on the last dim."
            )


def _mlp(features: int, outputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Stack linear layers with SiLU between them, the last of them zero."""
    widths = [features, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    last = nn.Linear(widths[-1], outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
