"""Regimes of a mixture when the graph is given, and how well they predict rows held out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_causal.infer._components import Components
from pyro_causal.infer._gaussian_start import responsibilities
from pyro_causal.infer._regime_laws import RegimeLaws

__all__ = ["FEWEST", "Fit", "GivenGraph"]

FEWEST = 20  # rows of a component
TOLERANCE = 1e-3  # nats for a row
WORST = -50.0  # the log-density of a value at least, so that single rows decide nothing


class Fit(NamedTuple):
    """Components under a graph, the targets of each and which are cut, and the score of all that.

    **Shapes**: ``targets [K, d]`` and ``cut [K, d]``, booleans.
    """

    components: Components
    targets: Tensor
    cut: Tensor
    score: float


class GivenGraph:
    r"""Laws and responsibilities in turn, and the score of what they come to.

    .. math:: S = \frac{N}{|H|} \sum_{n \in H}
        \log \sum_k w_k \prod_j p_{kj}(x_{nj} \mid x_{n, \mathrm{pa}(j)})
        - \text{prices of the edges and the targets}

    Laws and weights are fitted to the rows outside of H alone. The sum over regimes makes S a
    number by which graphs compare whatever their regimes are, which are free to differ.

    **Arguments**

    - ``laws``: under the graph.
    - ``held``: rows H, booleans ``[N]``.
    - ``edges``: the price of the graph's; ``target``: of one target.
    """

    def __init__(self, laws: RegimeLaws, *, held: Tensor, edges: float, target: float) -> None:
        self.laws, self.held, self.edges, self.target = laws, held, edges, target
        self.may_die = laws.assumed.targets is None

    def knowing(self, targets: Tensor) -> GivenGraph:
        """The same with known targets ``[K, d]``."""
        laws = self.laws.knowing(targets)
        return GivenGraph(laws, held=self.held, edges=self.edges, target=self.target)

    def log_likelihood(self, components: Components) -> tuple[Tensor, Tensor]:
        """The log-density of each row in each component ``[N, K]``, and targets ``[K, d]``."""
        return self.laws.log_likelihood(components.q)

    def step(self, components: Components) -> tuple[Components, float]:
        """Fit laws and explain rows by them; with the evidence of a row, on average.

        Components that are the most probable of few rows are left out, but for the largest, unless
        targets are known: what they have of other rows would be in laws without a say in targets.
        """
        q, allowed, named = components
        q, evidence = responsibilities(self.log_likelihood(components)[0], q.sum(0), allowed)
        components = Components(q, allowed, named)
        if self.may_die:
            rows = torch.bincount(q.argmax(1), minlength=q.shape[1])
            components = components.keep((rows > FEWEST) | (rows == rows.max()))
        return components, float(evidence.mean())

    def settle(self, components: Components, *, steps: int) -> Components:
        """Step until the evidence stays."""
        before = -torch.inf
        for _ in range(steps):
            components, evidence = self.step(components)
            if abs(evidence - before) < TOLERANCE:
                break
            before = evidence
        return components

    def score(self, components: Components) -> Fit:
        """Predict the rows held out."""
        q, allowed, _ = components
        known = self.laws.assumed.targets
        targets = self.log_likelihood(components)[1] if known is None else known
        # Rows held out are a regime of their own in all laws, so that others do not learn of them.
        held = self.held.unsqueeze(-1)
        apart = torch.cat([q * ~held, held.to(q)], 1)
        everywhere = torch.ones_like(targets[:1])
        laws = self.laws.knowing(torch.cat([targets, everywhere]))
        density, _ = laws.log_likelihood(apart)
        weights = (q[~self.held].sum(0) + 1e-6) / (~self.held).sum()
        logits = (density[:, :-1] + weights.log()).masked_fill(~allowed, -torch.inf)
        evidence = logits[self.held].logsumexp(1).clamp(min=WORST * targets.shape[1])
        prices = self.edges + self.target * float(targets.sum())
        score = float(evidence.mean()) * len(q) - prices
        return Fit(components, targets, targets & laws.cut(apart)[:-1], score)
