"""Structural equations and an acyclic graph as a program: a simulator with counterfactuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx as nx
import pyro
from pyro.nn import PyroModule
from torch import Tensor

from pyro_causal._pyro import register
from pyro_causal._recipe import Recorded
from pyro_causal.mechanisms.sem import StructuralEquations

__all__ = ["StructuralModel"]


class StructuralModel(Recorded, PyroModule):
    r"""A program that samples each coordinate as a site of its own, parents before children.

    .. math:: \log p(x) = \sum_j \log p(x_j \mid x_{\mathrm{pa}(j)}; \theta_{k_j})

    just as the equations' own :meth:`~pyro_causal.mechanisms.sem.StructuralEquations.log_prob` adds
    up. ``do``, ``soft``, ``worlds``, ``query`` and ``causal_graph`` apply to it; noise is abducted
    exactly.

    **Arguments**

    - ``equations``: shared with this program, not copied.
    - ``adjacency``: entry (i, j) = 1 for an edge i -> j, else 0.
    - ``names``: of the sites; by default x0, x1 and so on.
    - ``regime``: the regime whose mechanisms act, or one for each node: what an intervention does
      not target stays in the base regime.

    **Shapes**: the program takes values ``[N]`` by name, of some or all coordinates, as evidence in
    a plate `rows`; without any it draws ``size`` rows. It returns all of them by name, ``[N]``.

    **Raises**: ``ValueError`` for an adjacency of another shape, with other entries or with a
    cycle; for names that are not d different ones, or the plate's; for a regime that does not
    exist; for evidence of unknown names, or that is no column of N values.

    **References**: *Causality* (Pearl 2009), section 7.1.

    **Example**: a chain.

    >>> import torch
    >>> from pyro_causal import query
    >>> from pyro_causal.mechanisms import LinearSEM
    >>> sem = LinearSEM(2)
    >>> with torch.no_grad():
    ...     sem.weight[0, 0, 1] = 2.0
    >>> model = StructuralModel(sem, torch.tensor([[0, 1], [0, 0]]), names=["dose", "response"])
    >>> unit = {"dose": torch.tensor([1.0]), "response": torch.tensor([2.5])}
    >>> query(model, "response", do={"dose": 3.0}, args=(unit,)).mean.detach()
    tensor([6.5000])
    """

    def __init__(
        self,
        equations: StructuralEquations,
        adjacency: Tensor,
        *,
        names: Sequence[str] | None = None,
        regime: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        nodes = range(equations.nodes)
        self.equations = equations
        self.names = tuple(f"x{i}" for i in nodes) if names is None else tuple(names)
        self._check_names()
        self.regime = (regime,) * len(nodes) if isinstance(regime, int) else tuple(regime)
        self._check_regime()
        self.graph = _graph(adjacency, self.names)
        self.order = tuple(nx.lexicographical_topological_sort(self.graph))

    def forward(
        self, data: Mapping[str, Tensor] | None = None, *, size: int = 1
    ) -> dict[str, Tensor]:
        """Sample every coordinate given its parents; return the values by name."""
        register(self, "equations")
        equations = self._modules["equations"]
        assert isinstance(equations, StructuralEquations)
        observed = self._observed(data or {})
        size = next((len(value) for value in observed.values()), size)
        values: dict[int, Tensor] = {}
        with pyro.plate("rows", size, dim=-1):
            for node in self.order:
                parents = {i: values[i] for i in sorted(self.graph.predecessors(node))}
                law = equations.conditional(node, parents, regime=self.regime[node])
                name = self.names[node]
                values[node] = pyro.sample(name, law, obs=observed.get(name))
        return {name: values[node] for node, name in enumerate(self.names)}

    def _observed(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, value in data.items():
            if name not in self.names:
                raise ValueError(
                    f"At site '{name}', there is no such variable: expected some of "
                    f"{list(self.names)}. Check the spelling, or leave it out."
                )
            if value.dim() != 1 or len({len(column) for column in data.values()}) != 1:
                raise ValueError(
                    f"At site '{name}', wrong shape: expected [N] with one N for all, got "
                    f"{tuple(value.shape)}. Give columns, such as dict(zip(names, x.unbind(-1)))."
                )
        return dict(data)

    def _check_names(self) -> None:
        nodes = self.equations.nodes
        if len({*self.names} - {"rows"}) != nodes or len(self.names) != nodes:
            raise ValueError(
                f"StructuralModel: expected {nodes} different names other than 'rows', the plate, "
                f"got {list(self.names)}. Name each coordinate once."
            )

    def _check_regime(self) -> None:
        regimes, nodes = len(self.equations.context), self.equations.nodes
        if len(self.regime) != nodes or not all(0 <= k < regimes for k in self.regime):
            raise ValueError(
                f"StructuralModel: expected a regime from 0 to {regimes - 1}, or one for each of "
                f"{nodes} nodes, got {self.regime}. Equations with more have regimes=..."
            )


def _graph(adjacency: Tensor, names: Sequence[str]) -> nx.DiGraph:
    """The graph of indices, checked."""
    nodes = len(names)
    if adjacency.shape != (nodes, nodes) or not ((adjacency == 0) | (adjacency == 1)).all():
        raise ValueError(
            f"StructuralModel: expected an adjacency [{nodes}, {nodes}] of zeros and ones, got "
            f"{tuple(adjacency.shape)} from {adjacency.min():g} to {adjacency.max():g}. Round "
            "probabilities first: probs > 0.5."
        )
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(adjacency.nonzero().tolist())
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [names[i] for i, _ in nx.find_cycle(graph)]
        raise ValueError(
            f"StructuralModel: the adjacency has the cycle {' -> '.join(cycle)} -> {cycle[0]}: "
            "expected an acyclic graph. Take away one of these edges."
        )
    return graph
