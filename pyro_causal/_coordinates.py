"""Interventions on single coordinates of a vector-valued site."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch import distributions as td

__all__ = ["intervene"]


@singledispatch
def intervene(d: td.Distribution, x: Tensor, coordinates: Mapping[int, Tensor]) -> Tensor:
    """The value that takes the place of `x` when coordinates of its last event dim are clamped.

    Where the coordinates are independent given the parents, the others keep their values.

    **Shapes** `x` is batch + event; each value broadcasts against ``x[..., i]``; the result is
    the broadcast of both.

    **Raises** ``TypeError`` if the coordinates of `d` depend on one another in a way that its
    family does not tell; ``ValueError`` if there is no such coordinate.

    **Example**

    >>> d = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    >>> intervene(d, torch.tensor([1.0, 2.0, 3.0]), {1: torch.tensor(5.0)})
    tensor([1., 5., 3.])
    """
    _refuse(d)


def _refuse(d: td.Distribution) -> NoReturn:
    family = type(d).__name__
    raise TypeError(
        f"Single coordinates of the distribution family '{family}' cannot be set: expected "
        "independent coordinates, as of dist.Normal(...).to_event(1). Set the whole value, or tell "
        f"what a clamped coordinate does to the others: "
        f"`pyro_causal.noise.intervene.register({family})`."
    )


@intervene.register(td.Independent)
def _(d: Any, x: Tensor, coordinates: Mapping[int, Tensor]) -> Tensor:
    if d.base_dist.event_shape:
        return intervene(d.base_dist, x, coordinates)
    return _replace(x, coordinates)


@intervene.register(dist.Delta)
def _(d: Any, x: Tensor, coordinates: Mapping[int, Tensor]) -> Tensor:
    if not d.event_shape:
        _refuse(d)
    return _replace(x, coordinates)


@intervene.register(dist.MaskedDistribution)
@intervene.register(ExpandedDistribution)
def _(d: Any, x: Tensor, coordinates: Mapping[int, Tensor]) -> Tensor:
    return intervene(d.base_dist, x, coordinates)


def _replace(x: Tensor, coordinates: Mapping[int, Tensor]) -> Tensor:
    columns = list(x.unbind(-1))
    for i, value in coordinates.items():
        if not -len(columns) <= i < len(columns):
            raise ValueError(
                f"There is no coordinate {i}: expected one of {len(columns)} coordinates, "
                f"0 to {len(columns) - 1}. Count along the last event dim."
            )
        columns[i] = value.to(x.dtype)
    return torch.stack(torch.broadcast_tensors(*columns), -1)
