r"""Structural equations of a vector under a graph that may itself be learnt, all in one call.

.. math:: x_j = f_j(A_{1j} x_1, \ldots, A_{dj} x_d, u_j; \theta_k), \qquad A_{ij} = 1 \iff i \to j

The adjacency :math:`A` is an argument: a known graph, a sample of one with a straight-through
gradient (:func:`sample_adjacency`), or probabilities. Every node has its mechanism in each of
several regimes, which a context :math:`\theta_k` tells apart.
:class:`~pyro_causal.mechanisms.sem_program.StructuralModel` turns equations and an acyclic
graph into a program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pyro.distributions import Normal, TorchDistribution
from pyro.util import ignore_jit_warnings
from torch import Tensor, nn
from torch.autograd import forward_ad

from pyro_causal.mechanisms.base import Recorded

__all__ = ["LinearSEM", "StructuralEquations", "floored_scale", "is_learnt", "sample_adjacency"]

Index = slice | list[int]
ALL = slice(None)
CEILING = 40.0  # of a log-scale, far beyond any data; numbers of single precision end at 88
NUMBERS = 160_000  # at a time: what a processor's cache, and its allocator, can reuse


def sample_adjacency(
    logits: Tensor, *, temperature: float = 1.0, sample_shape: Sequence[int] = ()
) -> Tensor:
    r"""Draw graphs edge by edge, with the gradient of a relaxed draw.

    .. math:: A_{ij} = 1[\Lambda_{ij} + L_{ij} > 0], \qquad
        \nabla A_{ij} := \nabla \sigma\left(\frac{\Lambda_{ij} + L_{ij}}{T}\right)

    with :math:`L` logistic, so that an edge is there with the probability
    :math:`\sigma(\Lambda_{ij})` at any temperature. There are no edges from a node to itself.

    **Arguments**: ``logits`` of the edges i -> j, the diagonal ignored; ``temperature`` T.

    **Shapes**: ``[*batch, d, d]``; result ``[*sample_shape, *batch, d, d]``.

    **Raises**: ``ValueError`` for logits that are not square, or no positive temperature.

    **References**: *Categorical reparameterization with Gumbel-softmax*,
    https://arxiv.org/abs/1611.01144, section 2.2 (the straight-through estimator, for two classes).

    **Example**::

        >>> sample_adjacency(torch.tensor([[0.0, 1e3], [-1e3, 0.0]]))
        tensor([[0., 1.],
                [0., 0.]])
    """
    if logits.dim() < 2 or logits.shape[-1] != logits.shape[-2] or not temperature > 0:
        raise ValueError(
            "sample_adjacency: expected a square matrix [*batch, d, d] and a positive temperature, "
            f"got {tuple(logits.shape)} and {temperature}. Give one row and column for each node."
        )
    shape = (2, *sample_shape, *logits.shape)
    first, second = torch.empty(shape, dtype=logits.dtype, device=logits.device).exponential_()
    noisy = logits + first.log() - second.log()
    soft = (noisy / temperature).sigmoid()
    hard = (noisy > 0).to(soft.dtype)
    loops = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    return (hard + (soft - soft.detach())).masked_fill(loops, 0.0)


class StructuralEquations(Recorded):
    r"""The mechanisms of all nodes of a graph, in all regimes.

    Called, it gives the conditional distribution of each coordinate given the values of the others
    that the adjacency lets through. What a node does to itself is masked. Values are standardised
    by constants, as set by :meth:`set_normalisation`, and distributions are those of values in
    their own units.

    A subclass implements ``_outputs``.

    **Arguments**

    - ``nodes``: the number of coordinates d.
    - ``shape``: of the context of one regime.
    - ``regimes``: the number R of regimes.
    - ``min_scale``: floor of the standard deviation, in units of standardised values.

    **Raises**: ``ValueError`` for values, adjacency or context of another shape.
    """

    loc: Tensor
    scale: Tensor
    off_diagonal: Tensor

    def __init__(
        self, nodes: int, shape: Sequence[int], *, regimes: int = 1, min_scale: float = 1e-3
    ) -> None:
        super().__init__()
        self.nodes = nodes
        self.min_scale = min_scale
        self.context = nn.Parameter(torch.zeros(regimes, *shape))
        self.register_buffer("loc", torch.zeros(nodes))
        self.register_buffer("scale", torch.ones(nodes))
        self.register_buffer("off_diagonal", 1 - torch.eye(nodes), persistent=False)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"nodes={self.nodes}, regimes={len(self.context)}, min_scale={self.min_scale}"

    def forward(
        self, x: Tensor, adjacency: Tensor, *, context: Tensor | None = None
    ) -> TorchDistribution:
        """Give the distributions of all coordinates, in all regimes, given their parents' values.

        **Arguments**

        - ``x``: values of all coordinates.
        - ``adjacency``: entry (i, j) lets i act on j: zeros and ones, or numbers in between.
        - ``context``: of the regimes, in place of the module's own.

        **Shapes**: x ``[*, B, d]``, adjacency ``[*, d, d]``, context ``[*, R, *shape]``, where all
        ``*`` broadcast; batch shape ``[*, R, B, d]``.
        """
        context = self.context if context is None else context
        self._check(x, adjacency, context)
        return self._laws(x, adjacency, context)

    def log_prob(self, x: Tensor, adjacency: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Give the log-density of each coordinate given its parents, ``[*, R, B, d]``.

        Arguments are those of :meth:`forward`. Values are not validated.
        """
        context = self.context if context is None else context
        self._check(x, adjacency, context)
        found = [
            self._laws(rows, adjacency, context, validate_args=False).log_prob(rows.unsqueeze(-3))
            for rows in self._parts(x, context)
        ]
        return torch.cat([rows.mT for rows in found], -1).mT

    def root_log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Give the log-density of each coordinate without its parents, ``[*, R, B, d]``.

        It is that of :meth:`log_prob` under a graph without edges, for less.
        """
        context = self.context if context is None else context
        empty = torch.zeros_like(self.off_diagonal)
        self._check(x, empty, context)
        law = self._laws(x[..., :1, :].detach(), empty, context, validate_args=False)
        found = [law.log_prob(rows.unsqueeze(-3)) for rows in self._parts(x, context)]
        return torch.cat([rows.mT for rows in found], -1).mT

    def log_prob_at(
        self, x: Tensor, adjacency: Tensor, pairs: Tensor, *, context: Tensor | None = None
    ) -> Tensor:
        """Give the log-density of single coordinates, each in one regime.

        It is that of :meth:`log_prob`, for less where pairs are few.

        **Shapes**: x ``[B, d]``, adjacency ``[d, d]``, pairs of a regime and a coordinate
        ``[P, 2]``, context ``[R, *shape]``; result ``[P, B]``.
        """
        context = self.context if context is None else context
        self._check(x, adjacency, context)
        if pairs.dim() != 2 or pairs.shape[1] != 2:
            raise ValueError(
                f"{type(self).__name__}: expected pairs of a regime and a coordinate [P, 2], got "
                f"shape {tuple(pairs.shape)}. Stack them as rows."
            )
        mask, standard = adjacency * self.off_diagonal, (x - self.loc) / self.scale
        parts, order = [standard.new_empty(0, len(x))], []
        for node in pairs[:, 1].unique().tolist():
            here = (pairs[:, 1] == node).nonzero().squeeze(1)
            root = not (is_learnt(mask) or mask[:, node].any())
            rows = standard[:1].detach() if root else standard  # of roots, any
            given = rows, mask[:, [node]], context[pairs[here, 0]]
            parameters = self._outputs(*given, ALL, [node]).squeeze(-2)
            law = self._law(parameters, self.loc[node], self.scale[node], validate_args=False)
            parts.append(law.log_prob(x[:, node]))
            order.append(here)
        return torch.cat(parts)[torch.cat(order).argsort()] if order else parts[0]

    def conditional(
        self,
        node: int,
        parents: Mapping[int, Tensor],
        *,
        regime: int = 0,
        context: Tensor | None = None,
    ) -> TorchDistribution:
        """Give the distribution of one coordinate in one regime, given its parents by index.

        **Shapes**: values ``[*batch]``, which broadcast; so is the batch shape. Without parents it
        is ``()``. Context, in place of the module's own, ``[R, *shape]``.
        """
        context = self.context if context is None else context
        values = torch.broadcast_tensors(*parents.values())
        x = torch.stack(values, -1) if values else self.loc.new_empty(0)
        batch, rows = x.shape[:-1], list(parents)
        x = (x.reshape(batch.numel(), len(rows)) - self.loc[rows]) / self.scale[rows]
        mask = self.off_diagonal.new_ones(len(rows), 1)
        parameters = self._outputs(x, mask, context[[regime]], rows, [node])
        parameters = parameters.reshape(*batch, parameters.shape[-1])
        return self._law(parameters, self.loc[node], self.scale[node])

    def set_normalisation(self, data: Tensor) -> Self:
        """Fix the constants by which values are standardised, from data ``[N, d]``.

        **Raises**: ``ValueError`` for NaN or infinity, and for a coordinate that does not vary.
        """
        scale, loc = torch.std_mean(data, 0, correction=0)
        varies = scale.isfinite() & (data.amax(0) > data.amin(0))
        if data.shape[1:] != self.loc.shape or not varies.all():
            raise ValueError(
                f"{type(self).__name__}: the data have the shape {tuple(data.shape)}, and NaN, "
                f"infinity or one value only at the coordinates {(~varies).nonzero().tolist()}: "
                f"expected [N, {self.nodes}], finite and varying. Drop such rows, or coordinates."
            )
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        return self

    def _laws(
        self, x: Tensor, adjacency: Tensor, context: Tensor, *, validate_args: bool | None = None
    ) -> TorchDistribution:
        mask, x = adjacency * self.off_diagonal, (x - self.loc) / self.scale
        parameters = self._outputs(x, mask, context, ALL, ALL)
        return self._law(parameters, self.loc, self.scale, validate_args=validate_args)

    def _parts(self, x: Tensor, context: Tensor) -> Sequence[Tensor]:
        """Split rows, which come to lie next to each other in memory: networks have them so."""
        x = x.mT.contiguous().mT
        numbers = context.shape[-self.context.dim()] * self.nodes
        return [x] if torch.jit.is_tracing() else x.split(max(NUMBERS // numbers, 1), -2)

    def _outputs(
        self, x: Tensor, mask: Tensor, context: Tensor, rows: Index, columns: Index
    ) -> Tensor:
        """Compute the parameters of the nodes `columns` from values of the nodes `rows`.

        **Shapes**: x ``[*, B, rows]``, mask ``[*, rows, columns]``, context ``[*, R, *shape]``;
        result ``[*, R, B, columns, parameters]``.
        """
        raise NotImplementedError

    def _law(
        self, parameters: Tensor, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None
    ) -> TorchDistribution:
        """Make Gaussians from location and logarithm of the scale, ``[*batch, 2]``."""
        mean, log_scale = parameters.unbind(-1)
        deviation = floored_scale(log_scale, self.min_scale)
        return Normal(loc + scale * mean, scale * deviation, validate_args=validate_args)

    @ignore_jit_warnings()  # shapes are constants of a trace
    def _check(self, x: Tensor, adjacency: Tensor, context: Tensor) -> None:
        shape = tuple(self.context.shape[1:])
        found = {
            "values [*, B, d]": (x.shape[-1:], (self.nodes,), x.dim() > 1),
            "an adjacency [*, d, d]": (adjacency.shape[-2:], (self.nodes, self.nodes), True),
            f"a context [*, R, {', '.join(map(str, shape))}]": (
                context.shape[context.dim() - len(shape) :],
                shape,
                context.dim() > len(shape),
            ),
        }
        for what, (got, expected, enough) in found.items():
            if tuple(got) != expected or not enough:
                raise ValueError(
                    f"{type(self).__name__}: wrong shape: expected {what} with d = {self.nodes}, "
                    f"got one that ends in {tuple(got)}. Transpose or reshape it."
                )


class LinearSEM(StructuralEquations):
    r"""Linear equations with Gaussian noise, in each regime its own.

    .. math:: x_j = b_{kj} + \sum_i A_{ij} W_{kij} x_i + \sigma_{kj} u_j, \qquad u_j \sim N(0, 1)

    on standardised values. The context of a regime is all its parameters, one below the other:
    :attr:`weight`, :attr:`bias` and :attr:`log_scale` are views of it. It starts at zero: standard
    normals.

    **Arguments**: ``nodes``, ``regimes`` and ``min_scale`` as for :class:`StructuralEquations`.

    **Shapes**: context ``[*, R, d + 2, d]``.

    **References**: *Causality* (Pearl 2009), section 1.4.

    **Example**::

        >>> sem = LinearSEM(2, regimes=3)
        >>> with torch.no_grad():
        ...     sem.weight[0, 0, 1] = 2.0
        >>> d = sem(torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 1], [0, 0]]))
        >>> d.batch_shape, d.loc[:, 0, 1].detach()
        (torch.Size([3, 1, 2]), tensor([2., 0., 0.]))
    """

    def __init__(self, nodes: int, *, regimes: int = 1, min_scale: float = 1e-3) -> None:
        super().__init__(nodes, (nodes + 2, nodes), regimes=regimes, min_scale=min_scale)

    @property
    def weight(self) -> Tensor:
        """Weights ``[R, d, d]``, of the edges i -> j."""
        return self.context[..., :-2, :]

    @property
    def bias(self) -> Tensor:
        """Intercepts ``[R, d]``."""
        return self.context[..., -2, :]

    @property
    def log_scale(self) -> Tensor:
        """Logarithms of the standard deviations ``[R, d]``, before the floor."""
        return self.context[..., -1, :]

    def _outputs(
        self, x: Tensor, mask: Tensor, context: Tensor, rows: Index, columns: Index
    ) -> Tensor:
        weight, bias, log_scale = context[..., columns].split([self.nodes, 1, 1], -2)
        mean = x.unsqueeze(-3) @ (mask.unsqueeze(-3) * weight[..., rows, :]) + bias
        return torch.stack([mean, log_scale.expand_as(mean)]).movedim(0, -1)


def is_learnt(x: Tensor) -> bool:
    """Whether derivatives with respect to a tensor are asked for, in either direction."""
    return x.requires_grad or forward_ad.unpack_dual(x).tangent is not None


def floored_scale(log_scale: Tensor, floor: float) -> Tensor:
    """A standard deviation whose variance has a floor, without a kink.

    Nothing holds a network back at rows that certainly do not follow its law. There log-scales
    grow, and once their exponential overflows, gradients are no numbers; so they have a ceiling.
    """
    return torch.hypot(log_scale.clamp(max=CEILING).exp(), log_scale.new_tensor(floor))
