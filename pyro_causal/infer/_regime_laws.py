"""How well the laws of each regime explain each row, given a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_causal.infer._regressions import (
    FLOOR,
    OWN,
    OWN_RIDGE,
    Assumptions,
    Moments,
    choose_targets,
    gaussian,
    parameter_price,
    ridge,
    take,
)
from pyro_causal.infer._varying_scale import FEWEST, LIGHTEST, fit_varying, grow_targets

__all__ = ["RegimeLaws", "VaryingLaws", "weighted_moments"]

LATELY = 3  # responsibilities: of a fit, of a change of it, and their rows that are not held out
KNOWN = 500  # densities of all rows that are kept
DIGITS = 1e4  # weights that are the same up to these give the same law
LEFT_OUT = 0.1  # of the weight of all rows, at most
AT_ONCE = 1000  # rows


class _Seen:
    """What was computed for responsibilities that were asked for lately, by these tensors."""

    def __init__(self) -> None:
        self.last: list[tuple[Tensor, dict[Any, Any]]] = []

    def of(self, q: Tensor) -> dict[Any, Any]:
        """A place for it, new if need be."""
        found = next((pair for pair in self.last if pair[0] is q), (q, {}))
        self.last = [found, *(pair for pair in self.last if pair[0] is not q)][:LATELY]
        return found[1]


class RegimeLaws:
    """The laws of all nodes given a graph, refitted to any responsibilities.

    Their residuals are Gaussian, of the same spread for all parents.

    **Arguments**: ``x`` and ``assumed`` as for
    :class:`~pyro_causal.infer._node_scores.NodeScores`; ``adjacency`` ``[d, d]``; ``features`` of
    the parents of a node, for that node.
    """

    def __init__(
        self,
        x: Tensor,
        adjacency: Tensor,
        *,
        features: Callable[[Sequence[int], int], Tensor],
        assumed: Assumptions,
    ) -> None:
        self.x, self.assumed = x, assumed
        self.target = assumed.target * len(x)
        self.penalty = parameter_price(len(x))
        self.parents = [column.nonzero().flatten().tolist() for column in adjacency.mT]
        self.features = [features(parents, node) for node, parents in enumerate(self.parents)]
        self.seen = _Seen()

    def knowing(self, targets: Tensor) -> RegimeLaws:
        """The same with known targets."""
        other = copy.copy(self)
        other.assumed = self.assumed._replace(targets=targets)
        return other

    def log_likelihood(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density of each row in each regime ``[N, K]``, and targets ``[K, d]``."""
        total, targets = torch.zeros_like(q), []
        for node in range(len(self.parents)):
            own, base, chosen = self._node(node, q)
            total += torch.where(chosen, own, base.unsqueeze(-1))
            targets.append(chosen)
        return total, torch.stack(targets, 1)

    def base(self, q: Tensor) -> Tensor:
        """The log-density of each value under the law of all regimes but targets, ``[N, d]``."""
        return torch.stack([self._node(node, q)[1] for node in range(len(self.parents))], 1)

    def gains(self, q: Tensor) -> Tensor:
        """How much better than the law of all others own laws explain rows, ``[K, d]``."""
        laws = [self._node(node, q) for node in range(len(self.parents))]
        return torch.stack([(q * (own - base.unsqueeze(1))).sum(0) for own, base, _ in laws], 1)

    def cut(self, q: Tensor) -> Tensor:
        """Whether own laws are best without the parents, or there are none, ``[K, d]``."""
        nodes = range(len(self.parents))
        return torch.stack([self._node_own(node, q)[2] for node in nodes], 1)

    def _node_own(self, node: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self.seen.of(q)
        if node not in seen:
            seen[node] = self._own(node, q)
        found: tuple[Tensor, Tensor, Tensor] = seen[node]
        return found

    def _node(self, node: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-densities under own laws ``[N, K]`` and that of the others ``[N]``, and targets."""
        own, price, _ = self._node_own(node, q)
        known, seen = self.assumed.targets, self.seen.of(q)
        key = node, None if known is None else tuple(known[:, node].tolist())
        if key not in seen:
            seen[key] = self._base(node, q, own, price)
        return own, *seen[key]

    def _base(self, node: int, q: Tensor, own: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities ``[N]`` under the law of all regimes but the targets, and those ``[K]``."""
        a, y, labels = self.features[node], self.x[:, node], q.argmax(1)
        if self.assumed.targets is None:
            gain = own.gather(1, labels.unsqueeze(1)).squeeze(1)
            gains = torch.zeros_like(price).index_add(0, labels, gain) - price
            order = labels.argsort(stable=True)
            sizes = torch.bincount(labels, minlength=q.shape[1]).tolist()
            half = (a.shape[1] + 1 + len(self.parents[node])) // 2  # of the units, which is enough
            moments = Moments.of(take(a[:, :half], order), y[order, None], sizes)
            chosen = choose_targets(Moments.stack([moments]), gains[None, None]).targets[0, 0]
        else:
            chosen = self.assumed.targets[:, node]
        return _regress(a, y, q[:, ~chosen].sum(1)[None])[0], chosen

    def _own(self, node: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-densities ``[N, K]`` under laws of each regime's own, prices, and whether cut."""
        y, counts = self.x[:, node, None], q.sum(0).clamp(min=1e-6)
        means = (q * y).sum(0) / counts
        squares = (y - means).square()
        own = gaussian(squares, ((q * squares).sum(0) / counts).clamp(min=FLOOR))
        price = torch.full_like(counts, 2 * self.penalty + self.target)
        if self.assumed.observational:
            price[0] = torch.inf
        cut = torch.ones_like(counts, dtype=torch.bool)
        parents, every = self.parents[node], self.features[node]
        size = min(1 + len(parents) + OWN, every.shape[1])
        if not (self.assumed.imperfect and parents):
            return own, price, cut
        some = (counts >= 2 * size).nonzero().squeeze(1)
        weights = q.mT[some].contiguous()
        density = _regress(every[:, :size], y[:, 0], weights, strength=OWN_RIDGE)
        more = self.penalty * (size - 1)
        better = (weights * (density - own.mT[some])).sum(1) > more
        own[:, some[better]] = density[better].mT
        price[some[better]] += more
        cut[some[better]] = False
        return own, price, cut


class VaryingLaws(RegimeLaws):
    """Laws whose spread and shape depend on the parents, but for those of targets."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.known: dict[tuple[int, bytes], Tensor] = {}

    def _base(self, node: int, q: Tensor, own: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
        chosen = self.assumed.targets
        if chosen is None:
            targets = grow_targets(
                (q * own).sum(0) - price,
                lambda targets: self._density(node, q, targets) @ q,
                counts=q.sum(0),
                least=FEWEST * self.features[node].shape[1],
            )
        else:
            targets = chosen[:, node]
        return self._density(node, q, targets), targets

    def _density(self, node: int, q: Tensor, targets: Tensor) -> Tensor:
        """The log-density of each row under the law of all regimes but targets, ``[N]``."""
        a, y, weights = self.features[node], self.x[:, node], q[:, ~targets].sum(1)
        key = node, (weights * DIGITS).round().short().cpu().numpy().tobytes()
        if key not in self.known:
            if len(self.known) == KNOWN:
                self.known.clear()
            law = fit_varying(a, y, weights, parents=len(self.parents[node]))
            self.known[key] = law.log_density(a, y)
        return self.known[key]


def _regress(features: Tensor, y: Tensor, weights: Tensor, **options: float) -> Tensor:
    """The log-densities of rows under regressions, one for each row of weights: ``[K, N]``."""
    gram, cross = weighted_moments(features, y, weights)
    coefficients = ridge(gram, cross.unsqueeze(-1), **options).squeeze(-1)
    squares = (y - coefficients @ features.mT).square()
    variance = (weights * squares).sum(1) / weights.sum(1).clamp(min=1)
    return gaussian(squares, variance.clamp(min=FLOOR).unsqueeze(1))


def weighted_moments(features: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Second moments ``[K, m, m]`` and those with the response ``[K, m]``, some rows at a time.

    All rows at once would not stay in the cache of a processor. Most rows are nearly nothing in
    most regimes, and left out there, unless these are all that a regime has.

    **Shapes**: ``features [N, m]``, ``y [N]``, ``weights [K, N]``.
    """
    size, regimes = features.shape[1], len(weights)
    gram = features.new_zeros(regimes, size, size)
    cross = features.new_zeros(regimes, size)
    for k, weight in enumerate(weights):
        least = (LEFT_OUT * weight.mean()).clamp(max=LIGHTEST)
        for rows in (weight > least).nonzero().squeeze(1).split(AT_ONCE):
            a = features[rows]
            weighted = (a * weight[rows].unsqueeze(1)).mT
            gram[k].addmm_(weighted, a)
            cross[k].addmv_(weighted, y[rows])
    return gram, cross
