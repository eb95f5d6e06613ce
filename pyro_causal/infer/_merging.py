"""Fewer components and targets, as long as rows held out are predicted as well for the price."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_causal.infer._components import Components
from pyro_causal.infer._given_graph import Fit, GivenGraph

__all__ = ["drop_targets", "join_idle", "merge_components"]

TRIES = 8  # pairs, or targets in a row, before it ends
HOPELESS = 0.02  # nats for a row, that further steps do not win back


def merge_components(graph: GivenGraph, components: Components) -> Fit:
    """Make two components one, again and again, while the score under a graph rises.

    Components without targets have the same law, and become one at once. Pairs with the same
    targets are tried first, and of those the ones whose rows the law of one explains best.
    """
    best = graph.score(components)
    while True:
        likelihood, targets = graph.log_likelihood(best.components)
        same = _idle(targets, best.components)
        if len(same):
            best = graph.score(best.components.join(*same[0].tolist()))
            continue
        least = graph.step(best.components)[1] - HOPELESS
        for one, other in _candidates(likelihood, targets, best.components)[:TRIES].tolist():
            trial = _try(graph, best.components.join(one, other), least)
            if trial is not None and trial.score > best.score:
                best = trial
                break
        else:
            return best


def drop_targets(graph: GivenGraph, fit: Fit) -> Fit:
    """Leave out targets one by one while the score rises, first those whose own laws gain least.

    Which regimes a node is a target in was chosen for rows that each have one regime. Where
    regimes overlap, that is too many.
    """
    least = graph.step(fit.components)[1] - HOPELESS
    gains = graph.knowing(fit.targets).laws.gains(fit.components.q)
    places, tries = fit.targets.nonzero(), TRIES
    for component, node in places[gains[fit.targets].argsort()].tolist():
        fewer = fit.targets.clone()
        fewer[component, node] = False
        trial = _try(graph.knowing(fewer), fit.components, least)
        if trial is not None and trial.score > fit.score:
            fit, tries = trial, TRIES
        elif (tries := tries - 1) == 0:
            break
    return fit


def join_idle(graph: GivenGraph, fit: Fit) -> Fit:
    """Make those without targets one, and leave the targets of others as they are."""
    while len(pairs := _idle(fit.targets, fit.components)):
        one, other = pairs[0].tolist()
        targets = torch.cat([fit.targets[:other], fit.targets[other + 1 :]])
        fit = graph.knowing(targets).score(fit.components.join(one, other))
    return fit


def _try(graph: GivenGraph, components: Components, least: float) -> Fit | None:
    """The score after a step, unless that leaves too little evidence."""
    components, evidence = graph.step(components)
    return None if evidence < least else graph.score(components)


def _idle(targets: Tensor, components: Components) -> Tensor:
    """Pairs without targets, ``[P, 2]``."""
    idle = ~targets.any(1)
    return _pairs(idle & idle.unsqueeze(1), components.named)


def _pairs(which: Tensor, named: Tensor) -> Tensor:
    """Those of a matrix ``[K, K]`` above its diagonal, without pairs of names: ``[P, 2]``."""
    return (which & ~(named & named.unsqueeze(1))).triu(1).nonzero()


def _candidates(likelihood: Tensor, targets: Tensor, components: Components) -> Tensor:
    """Pairs ``[P, 2]``, the best first."""
    same = (targets.unsqueeze(1) == targets).all(-1)
    pairs = _pairs(torch.ones_like(same), components.named)
    cross = components.q.mT @ likelihood  # rows of one under the law of another
    loss = cross.diagonal().unsqueeze(1) - cross
    loss = torch.minimum(loss, loss.mT)
    first = loss[pairs[:, 0], pairs[:, 1]].argsort()
    last = (~same)[pairs[:, 0], pairs[:, 1]][first].long().argsort(stable=True)
    return pairs[first[last]]
