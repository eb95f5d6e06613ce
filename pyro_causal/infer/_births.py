"""More components, for rows that those of a mixture explain badly."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_causal.infer._components import Components
from pyro_causal.infer._gaussian_start import responsibilities
from pyro_causal.infer._given_graph import FEWEST, GivenGraph
from pyro_causal.infer._regressions import gaussian

__all__ = ["add_components"]

PLACES = 30  # of a value, from which the search for those that it is set to starts
WIDTH, SHARE = 0.15, 0.05  # standard deviation and rows there, where variables have variance one
NARROWEST = 0.01  # standard deviation
LARGEST = 0.5  # share of all rows
STEPS = 12
ROWS = 4000  # about, that are looked at


def add_components(graph: GivenGraph, components: Components, *, room: int) -> Components | None:
    """Those there and new ones, in each of which one node is set, or nothing if none pays.

    A component that sets node j to about c has the density of all laws but that of j, times
    ``N(x_j; c, s^2)``. Its share, c and s are found by EM beside the mixture as it is, from many
    places at once; the best is as good as it raises the evidence, has to be worth its price, and
    to explain more than a few rows. There is at most one new component for each node. Rows whose
    component is known keep it.

    **References**: *SMEM algorithm for mixture models* (Ueda, Nakano, Ghahramani & Hinton 2000),
    where components are split for the same reason.

    **Arguments**: ``room``, for so many more.
    """
    q, allowed, named = components
    free = allowed.all(1)
    rows = free.nonzero().squeeze(1)
    if room < 1 or not len(rows):
        return None
    rows = rows[:: max(1, len(rows) // ROWS)]
    x, base = graph.laws.x, graph.laws.base(q)
    q, evidence = responsibilities(graph.log_likelihood(components)[0], q.sum(0), allowed)
    others = base.sum(1, keepdim=True) - base - evidence.unsqueeze(1)
    price = (graph.target + 3 * graph.laws.penalty) * len(rows) / len(x)
    found = []
    for node, (value, ratio) in enumerate(zip(x[rows].mT, others[rows].mT, strict=True)):
        gain, law = _set_value(value, ratio, least=FEWEST / len(x))
        if gain > price:
            found.append((float(gain), node, law))
    if not found:
        return None
    found = sorted(found, key=lambda one: -one[0])[:room]
    odds = [_log_odds(x[:, node], others[:, node], *law) for _, node, law in found]
    new = torch.stack(odds, 1).masked_fill(~free.unsqueeze(1), -torch.inf)
    return Components(
        torch.cat([q.log(), new], 1).softmax(1),
        torch.cat([allowed, free.unsqueeze(1).expand_as(new)], 1),
        torch.cat([named, named.new_zeros(len(found))]),
    )


def _set_value(
    x: Tensor, ratio: Tensor, *, least: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The gain in evidence of a component that sets a value; share, mean and variance of it.

    Its share is more than the least, as single rows that nothing explains would gain by one, too.
    """
    mean = x.quantile((torch.arange(PLACES).to(x) + 0.5) / PLACES).unsqueeze(-1)
    share, variance = torch.full_like(mean, SHARE), torch.full_like(mean, WIDTH**2)
    for _ in range(STEPS):
        weight = _log_odds(x, ratio, share, mean, variance).sigmoid()
        count = weight.sum(1, keepdim=True) + 1e-6
        share = (count / len(x)).clamp(max=LARGEST)
        mean = (weight @ x).unsqueeze(-1) / count
        spread = (weight * (x - mean).square()).sum(1, keepdim=True)
        variance = (spread / count).clamp(min=NARROWEST**2)
    odds = _log_odds(x, ratio, share, mean, variance)
    gains = (torch.nn.functional.softplus(odds) + (-share).log1p()).sum(1)
    gains = gains.where(share.squeeze(1) > least, 0.0)
    best = gains.argmax()
    return gains[best], (share[best], mean[best], variance[best])


def _log_odds(x: Tensor, ratio: Tensor, share: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of such a component beside the mixture; ``ratio`` is that of the other laws to it."""
    return ratio + gaussian((x - mean).square(), variance) + share.logit()
