"""What a mixture of interventions tells once it is trained: graph, targets, programs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_causal.graph import ADMG
from pyro_causal.infer._saving import Saved
from pyro_causal.infer.acyclicity import threshold_to_dag
from pyro_causal.infer.guides import DPMixtureGuide
from pyro_causal.infer.priors import BernoulliGraph
from pyro_causal.mechanisms import StructuralModel
from pyro_causal.mechanisms.sem import StructuralEquations
from pyro_causal.mechanisms.sem_mixture import IntervenedRows
from pyro_causal.methods._interventions_input import require_labels, require_rows

__all__ = ["FoundInterventions"]


class FoundInterventions(Saved, PyroModule):
    """The findings of a guide with factors `graph`, `targets`, `contexts` and perhaps `cut`."""

    guide: DPMixtureGuide
    names: tuple[str, ...]
    truncation: int
    intervention: str
    known_targets: Tensor | None
    prior_logits: Tensor
    edge_log_odds: Tensor

    @property
    def edge_probability(self) -> Tensor:
        """The probability of each edge i -> j, ``[d, d]``.

        Of a pair of variables that training left as a search has found it, the search tells: how
        probable it is given the regimes and all other edges, by how well regressions predict rows
        held out, and hence never beyond 0.9975. So where a direction is open, it is near 1/2 both
        ways (at least 0.525 for an edge in the graph, at most 0.475 for others), but where turning
        one edge would take turning another along, it is near 1 although both graphs may fit alike.
        Of other pairs, of edges that the prior decides, and without a search, it is that of the
        guide.
        """
        graph, odds = self.guide.factor("graph"), self.edge_log_odds
        decided = BernoulliGraph(logits=self.prior_logits).certain
        same = ((graph.logits > 0) == (odds > 0)) & (odds != 0)
        told = same & same.mT & ~decided
        return torch.where(told, odds.sigmoid(), graph.probs.detach())

    @property
    def adjacency(self) -> Tensor:
        """The edges more likely than not that make no cycle, ``[d, d]`` zeros and ones.

        Of a cycle the least likely edge is left out, as by
        :func:`~pyro_causal.infer.acyclicity.threshold_to_dag`.
        """
        return threshold_to_dag(self.guide.factor("graph").probs).long()

    @property
    def targets(self) -> Tensor:
        """The targets of each component, ``[K, d]`` booleans."""
        if self.known_targets is not None:
            return self.known_targets
        found: Tensor = self.guide.factor("targets").mean.detach() > 0.5
        return found

    @property
    def admg(self) -> ADMG:
        """The graph found, by name."""
        edges = [(self.names[i], self.names[j]) for i, j in self.adjacency.nonzero().tolist()]
        return ADMG(directed=edges, nodes=self.names)

    @torch.no_grad()
    def responsibilities(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The probability of each component for each row, ``[N, K]``.

        Graph, targets and mechanisms are those found, so that nothing is drawn, as it is by
        ``guide.responsibilities``. Labels are taken for certain.

        **Shapes**: ``x [N, d]``; ``z [N]`` integers with -1 for unknown ones.

        **Raises**: ``ValueError`` for labels out of range, and for rows or labels of another shape
        or kind.
        """
        require_labels(z, len(x), self.truncation)
        logits = self.guide.sticks.expected_log_weights + self._found(x)
        if z is not None:
            others = torch.arange(self.truncation, device=z.device) != z.unsqueeze(1)
            logits = logits.masked_fill((z >= 0).unsqueeze(1) & others, -torch.inf)
        return logits.softmax(1)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor) -> Tensor:
        """The log-density of rows under the graph, targets and mechanisms found, ``[N]``.

        On rows that took no part in the training it tells which of several runs is best.

        **Raises**: ``ValueError`` for rows of another shape or precision, NaN and infinity.
        """
        result: Tensor = (self.guide.weights.log() + self._found(x)).logsumexp(1)
        return result

    def program(self, component: int | None = None) -> StructuralModel:
        """The fitted program of the base regime, or of a component, for `query`, `do` and `worlds`.

        It samples each variable by its name, given its parents. In that of a component the targets
        have their own mechanisms, and no parents if they are cut from them.

        **Raises**: ``ValueError`` for a component that does not exist.
        """
        equations = copy.deepcopy(self._equations).requires_grad_(False)
        with torch.no_grad():
            equations.context.copy_(self.guide.factor("contexts").mean)
        graph = self.adjacency
        if component is None:
            return StructuralModel(equations, graph, names=self.names)
        if not 0 <= component < self.truncation:
            raise ValueError(
                f"{type(self).__name__}: expected a component from 0 to {self.truncation - 1}, or "
                f"None for the base regime, got {component}. Give one of them."
            )
        targets = self.targets[component]
        graph = graph.masked_fill(targets & (self._cut[component] >= 0.5), 0)
        regime = (targets * (component + 1)).tolist()
        return StructuralModel(equations, graph, names=self.names, regime=regime)

    def _found(self, x: Tensor) -> Tensor:
        """The log-density of rows in all components under what was found, ``[N, K]``."""
        require_rows(x, len(self.names), self.prior_logits.dtype)
        return self._by_component(
            x,
            self.adjacency,
            context=self.guide.factor("contexts").mean,
            targets=self.targets.to(x),
            cut=(self._cut >= 0.5).to(x) if self.intervention == "imperfect" else None,
        )

    def _by_component(self, x: Tensor, graph: Tensor, **laws: Any) -> Tensor:
        """The log-density of rows in all components under a graph, ``[N, K]``."""
        z = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return IntervenedRows(self._equations, graph, z=z, **laws).by_component(x)

    @property
    def _equations(self) -> StructuralEquations:
        """Without telling Pyro again, which takes a while."""
        equations = self._modules["equations"]
        assert isinstance(equations, StructuralEquations)
        return equations

    @property
    def _factors(self) -> Any:
        return self.guide.factors

    @property
    def _cut(self) -> Tensor:
        """The probability that interventions cut parents, ``[K, d]``."""
        if self.intervention == "stochastic":
            return torch.ones(self.truncation, len(self.names)).to(self.prior_logits)
        cut: Tensor = self.guide.factor("cut").mean
        return cut
