"""A site while causal handlers settle it, and the layout of a program without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import Delta, Independent, MaskedDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.util import ignore_jit_warnings
from torch import Tensor

from pyro_causal import noise

__all__ = ["Layout", "Site", "as_delta", "at_site"]


@dataclass(frozen=True)
class Layout:
    """What a plain run of a program tells: the shapes that worlds must leave alone.

    **Arguments**

    - ``nesting``: the number of batch dims, right of which the worlds have no business.
    - ``shapes``: batch and event shape of each site that is not deterministic.
    - ``lengths``: how many dims the value of each deterministic site has.
    """

    nesting: int = 0
    shapes: Mapping[str, tuple[torch.Size, torch.Size]] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)

    def check(self, name: str, fn: Any, size: int) -> None:
        """Raise a `ValueError` if the axis of the worlds lies where none of them should be."""
        batch, event = self.shapes.get(name, (None, None))
        if batch is None or event is None:
            return
        if fn.batch_shape[-len(batch) :] == batch and fn.event_shape == event:
            return  # nothing but a new axis on the left: the usual case, and the quick one
        plain = (1,) * (self.nesting - len(batch)) + tuple(batch)
        now = (1,) * (self.nesting - len(fn.batch_shape)) + tuple(fn.batch_shape)
        own = now[len(now) - self.nesting :]  # without the dims of worlds and of plates outside
        astray = any(a == size != 1 == b for a, b in zip(own, plain, strict=True))
        if astray or (fn.event_shape != event and size in fn.event_shape):
            raise ValueError(
                f"At site '{name}', the axis of the {size} worlds has gone astray: expected batch "
                f"{tuple(batch)} and event {tuple(event)} right of it, got {tuple(fn.batch_shape)} "
                f"and {tuple(fn.event_shape)}. Reduce with keepdim=True, name the dims of products "
                "(torch.einsum, unsqueeze), and count event dims: .to_event(n)."
            )


class Site:
    """A site whose factual value is known: where else its mechanism differs, and its noise.

    **Arguments**

    - ``factual``: the value in the factual world, ones at the dims of the worlds.
    - ``dims``: the dims of the worlds between which the mechanism `fn` differs.
    - ``frames``: the plates that the site is in.
    - ``natural``: the value in all worlds, interventions aside, as far as it is known.
    """

    def __init__(
        self,
        name: str,
        fn: Any,
        factual: Tensor,
        dims: tuple[int, ...],
        frames: Sequence[CondIndepStackFrame],
        natural: Tensor,
    ) -> None:
        self.name = name
        self.fn = fn
        self.factual = factual
        self.dims = dims
        self.frames = frames
        self.natural = natural
        self.event_dim: int = getattr(fn, "event_dim", 0)

    @cached_property
    def noise(self) -> Tensor:
        """The noise of the factual world, abducted once: that of discrete values is a draw."""
        try:
            u = noise.abduct(self.fn, self.factual)
        except TypeError as error:
            raise at_site(self.name, error) from error
        batch = max(len(self.fn.batch_shape), self.factual.dim() - self.event_dim)
        if self.dims and u.requires_grad:
            u = self._without_impossible(u, batch)
        for dim in self.dims:
            u = u.narrow(batch + dim, 0, 1)
        return u

    @ignore_jit_warnings()
    def _without_impossible(self, u: Tensor, batch: int) -> Tensor:
        """Keep the gradient clear of worlds in which the factual value cannot occur.

        They are not asked for, but zero times infinity is not a number.
        """
        finite = u.detach().isfinite()
        if bool(finite.all()):
            return u
        possible = finite.flatten(batch).all(-1) if u.dim() > batch else finite
        possible = possible.reshape(possible.shape + (1,) * self.event_dim)
        stand_in = self.fn.sample().to(self.factual.dtype)
        return noise.abduct(self.fn, torch.where(possible, self.factual, stand_in))

    def in_all_worlds(self, needed: Callable[[], bool]) -> Tensor:
        """Push the noise through the mechanisms of all worlds; the factual value stays as it is.

        Where it is not `needed`, as actions set all other worlds, a family without noise will do.
        """
        try:
            natural = noise.predict(self.fn, self.noise).to(self.factual.dtype)
        except TypeError:
            if needed():
                raise
            natural = self.factual.expand(self.fn.shape())
        shape = list(natural.shape)
        for dim in self.dims:
            shape[dim - self.event_dim] = 1
        factual = self.factual.expand(shape)
        if len(self.dims) == 1:
            axis = self.dims[0] - self.event_dim
            others = natural.narrow(axis, 1, natural.shape[axis] - 1)
            return torch.cat([factual, others], axis)
        joined = corner = natural.clone()
        for dim in self.dims:
            corner = corner.narrow(dim - self.event_dim, 0, 1)
        corner.copy_(factual)
        return joined


WRAPPERS = (Independent, MaskedDistribution)


def as_delta(fn: object) -> Delta | None:
    """The point mass inside `fn`, if it is one: a deterministic site's distribution."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn if isinstance(fn, Delta) else None


def at_site(name: str, error: TypeError) -> TypeError:
    """The same error, with the site in front."""
    return TypeError(f"At site '{name}': {error}")
