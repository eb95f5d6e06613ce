"""The distribution of a site in the factual world, seen through all worlds at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from pyro.distributions import Delta, TorchDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.distributions import Distribution, constraints, kl_divergence, register_kl

__all__ = ["Factual", "is_world_frame", "narrow", "spans", "strip", "world_frame"]

Shape: TypeAlias = torch.Size | list[int] | tuple[int, ...]


def spans(shape: Sequence[int], dim: int) -> bool:
    """Whether a batch of `shape` differs between the worlds at `dim` (negative)."""
    return len(shape) >= -dim and shape[dim] != 1


@cache
def world_frame(dim: int) -> CondIndepStackFrame:
    """The plate of the worlds at `dim`, as it is scored: of size one."""
    return CondIndepStackFrame(f"_worlds{dim}", dim, 1, 0)


def is_world_frame(frame: CondIndepStackFrame) -> bool:
    """Whether the plate is one of worlds."""
    return frame.name.startswith("_worlds")


def narrow(tensor: Tensor, dim: int, event_dim: int = 0) -> Tensor:
    """Keep world 0 of a tensor, as an axis of size one; a tensor without the axis is left alone."""
    axis = dim - event_dim
    return tensor.narrow(axis, 0, 1) if spans(tensor.shape, axis) else tensor


def strip(tensor: Tensor, frames: Iterable[CondIndepStackFrame], event_dim: int) -> Tensor:
    """Drop the axes of size one that stand left of the plates."""
    length = max((-f.dim for f in frames if f.dim), default=0) + event_dim
    while tensor.dim() > length and tensor.shape[0] == 1:
        tensor = tensor.squeeze(0)
    return tensor


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two values are the same, as a replayed or detached one is."""
    if a is b:
        return True
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


class Factual(TorchDistribution):
    """World 0 of a distribution over worlds: what a trace under ``worlds`` records and scores.

    The batch has size one at each dim of the worlds, so guides, plates and enumeration see the
    site that they would see without them.

    **Arguments**

    - ``base``: the site's distribution, which may differ between worlds.
    - ``dims``: the batch dims (negative) of the worlds.
    - ``recorded``: the value in the trace, interventions included, for which
    - ``natural``, the value without them, is scored.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as in torch)

    def __init__(
        self,
        base: TorchDistribution,
        dims: tuple[int, ...],
        *,
        natural: Tensor | None = None,
        recorded: Tensor | None = None,
    ) -> None:
        self.base = base
        self.dims = dims
        self.natural = natural
        self.recorded = recorded
        shape = list(base.batch_shape)
        for dim in dims:
            shape = [1] * (-dim - len(shape)) + shape
            shape[dim] = 1
        super().__init__(torch.Size(shape), base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """As the base."""
        return bool(self.base.has_rsample)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """As the base."""
        return bool(self.base.has_enumerate_support)

    @property
    def support(self) -> Any:
        """That of the base in world 0."""
        return self._narrow_support(self.base.support)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of world 0. **Shapes** value: over worlds or factual; result: batch."""
        if self.natural is not None and same(value, self.recorded):
            value = self.natural
        for dim in self.dims:
            if not spans(self.base.batch_shape, dim):
                value = narrow(value, dim, self.event_dim)
            elif self.natural is not None and not spans(value.shape, dim - self.event_dim):
                value = self._complete(value, dim - self.event_dim)
        density = self._narrow(self.base.log_prob(value))
        missing = len(self.batch_shape) - density.dim()
        return density.reshape((1,) * missing + density.shape) if missing else density

    def _complete(self, value: Tensor, axis: int) -> Tensor:
        """A factual value with possible values of the other worlds beside it."""
        assert self.natural is not None
        if not spans(self.natural.shape, axis):
            return value
        others = self.natural.narrow(axis, 1, self.natural.shape[axis] - 1)
        shape = list(torch.broadcast_shapes(value.shape, others.narrow(axis, 0, 1).shape))
        others = others.expand(*shape[:axis], others.shape[axis], *shape[len(shape) + axis + 1 :])
        return torch.cat([value.expand(shape), others], axis)

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """World 0 of a sample of the base."""
        return self._narrow(self.base.sample(sample_shape), self.event_dim)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:
        """World 0 of a sample of the base, with gradients."""
        return self._narrow(self.base.rsample(sample_shape), self.event_dim)

    def _narrow(self, tensor: Tensor, event_dim: int = 0) -> Tensor:
        for dim in self.dims:
            tensor = narrow(tensor, dim, event_dim)
        return tensor

    def _narrow_support(self, constraint: constraints.Constraint | None) -> Any:
        """A constraint whose bounds, if they differ between worlds, are those of world 0."""
        narrowed = copy.copy(constraint)
        for name, bound in vars(constraint).items():
            if isinstance(bound, constraints.Constraint):
                setattr(narrowed, name, self._narrow_support(bound))
            elif isinstance(bound, Tensor):
                setattr(narrowed, name, strip(self._narrow(bound, self.event_dim), (), 0))
        return narrowed


@register_kl(Distribution, Factual)  # type: ignore[untyped-decorator]
def _kl_factual(p: Distribution, q: Factual) -> Tensor:
    return _of_batch(p, q._narrow(kl_divergence(p, q.base)))


@register_kl(Delta, Factual)  # type: ignore[untyped-decorator]
def _kl_delta_factual(p: Delta, q: Factual) -> Tensor:
    return _of_batch(p, -q.log_prob(p.v))


def _of_batch(p: Distribution, divergence: Tensor) -> Tensor:
    """Drop axes of size one that the guide's distribution does not have."""
    whole = divergence.numel() == p.batch_shape.numel()
    return divergence.reshape(p.batch_shape) if whole else divergence
