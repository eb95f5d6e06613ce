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
from pyro_causal.mechanisms import StructuralModel
from pyro_causal.mechanisms.sem import StructuralEquations
from pyro_causal.mechanisms.sem_mixture import IntervenedRows

__all__ = ["FoundInterventions"]


class FoundInterventions(Saved, PyroModule):
    """The findings of a guide with factors `graph`, `targets`, `contexts` and perhaps `cut`."""

    guide: DPMixtureGuide
    names: tuple[str, ...]
    truncation: int
    intervention: str
    known_targets: Tensor | None
    prior_logits: Tensor

    @property
    def edge_probability(self) -> Tensor:
        """The probability of each edge i -> j in the guide, ``[d, d]``.

        After a search and training it is that of an edge given regimes and other edges.
        """
        probs: Tensor = self.guide.factor("graph").probs.detach()
        return probs

    @property
    def adjacency(self) -> Tensor:
        """The most probable acyclic graph, ``[d, d]`` zeros and ones."""
        return threshold_to_dag(self.edge_probability).long()

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

    def responsibilities(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The probability of each component for each row, ``[N, K]``."""
        return self.guide.responsibilities(x, z)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor) -> Tensor:
        """The log-density of rows under the graph, targets and mechanisms found, ``[N]``.

        On rows that took no part in the training it tells which of several runs is best.
        """
        laws = IntervenedRows(
            self._equations,
            self.adjacency,
            context=self.guide.factor("contexts").mean,
            targets=self.targets.to(x),
            cut=(self._cut >= 0.5).to(x),
            z=torch.zeros(len(x), dtype=torch.long, device=x.device),
        )
        result: Tensor = (self.guide.weights.log() + laws.by_component(x)).logsumexp(1)
        return result

    def program(self, component: int | None = None) -> StructuralModel:
        """The fitted program of the base regime, or of a component, for `query`, `do` and `worlds`.

        It samples each variable by its name, given its parents. In that of a component the targets
        have their own mechanisms, and no parents if they are cut from them.

        **Raises**: ``ValueError`` for a component that does not exist.
        """
        equations = copy.deepcopy(self._equations)
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
