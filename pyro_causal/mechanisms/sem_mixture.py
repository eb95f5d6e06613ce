"""Rows of a mixture of interventions on structural equations, as one distribution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import networkx as nx
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_causal.mechanisms.sem import StructuralEquations, is_learnt

__all__ = ["IntervenedRows"]


class IntervenedRows(TorchDistribution):
    r"""Rows whose targets follow the mechanisms of their component.

    .. math:: p(x_n \mid z_n = k) = \prod_j p_j(x_{nj} \mid x_{n, \mathrm{pa}(j)}; \theta_0)^{1 -
        r_{kj}} \, p_j(x_{nj} \mid x_{n, \mathrm{pa}_k(j)}; \theta_{k + 1})^{r_{kj}}

    where :math:`\mathrm{pa}_k(j)` are the parents, or none if the intervention cuts them.

    **Arguments**

    - ``equations``: mechanisms; regime 0 is the base, the others those of the components.
    - ``adjacency``: entry (i, j) = 1 for an edge i -> j; for densities also in between.
    - ``context``: of the 1 + K regimes.
    - ``targets``: :math:`r`; ``cut``: whether interventions cut parents, by default all do.
    - ``z``: the component of each row.

    **Shapes**: ``adjacency [d, d]``, ``context [1 + K, *]``, ``targets`` and ``cut`` ``[K, d]``,
    ``z [*batch, N]``; batch shape that of z, event shape ``[d]``.

    **Raises**: ``ValueError`` for a draw from a graph with a cycle.

    **References**: *Differentiable causal discovery under latent interventions*,
    https://arxiv.org/abs/2203.02336, equation 8, for imperfect interventions only.

    **Example**: the second component moves the cause.

    >>> from pyro_causal.mechanisms import LinearSEM
    >>> sem, graph = LinearSEM(2, regimes=3), torch.tensor([[0, 1], [0, 0]])
    >>> with torch.no_grad():
    ...     sem.weight[0, 0, 1], sem.bias[2, 0] = 1.0, 4.0
    >>> rows = IntervenedRows(
    ...     sem, graph, context=sem.context, targets=torch.tensor([[0, 0], [1, 0]]),
    ...     z=torch.tensor([0, 1]),
    ... )
    >>> rows.log_prob(torch.tensor([[0.0, 0.0], [4.0, 4.0]])).detach()
    tensor([-1.8379, -1.8379])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        equations: StructuralEquations,
        adjacency: Tensor,
        *,
        context: Tensor,
        targets: Tensor,
        z: Tensor,
        cut: Tensor | None = None,
    ) -> None:
        self.equations, self.adjacency, self.context = equations, adjacency, context
        self.targets, self.cut, self.z = targets.to(context), cut, z
        super().__init__(z.shape, targets.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> IntervenedRows:
        """Another batch shape."""
        return IntervenedRows(
            self.equations,
            self.adjacency,
            context=self.context,
            targets=self.targets,
            cut=self.cut,
            z=self.z.expand(batch_shape),
        )

    def log_laws(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities of all coordinates under the base ``[N, d]``, and as targets ``[K, N, d]``.

        Where ``cut`` is between 0 and 1, the latter are the weighted mean of both.
        """
        base, own = self._base(x), self.equations.root_log_prob(x, context=self.context[1:])
        if self.cut is None:
            return base, own
        kept = self.equations.log_prob(x, self.adjacency, context=self.context[1:])
        return base, torch.lerp(kept, own, self.cut.to(own).unsqueeze(-2))

    def by_component(self, x: Tensor) -> Tensor:
        """The log-density of rows in all components, ``[N, K]``; mean-field, if targets are.

        Where targets are certain, laws of other nodes and components are left out.
        """
        if self._certain(x):
            base, pairs = self._base(x), self.targets.nonzero()
            own = base.new_zeros(len(self.targets), len(x)).index_add(
                0, pairs[:, 0], self._own_at(x, pairs)
            )
            return own.mT + base @ (1 - self.targets).mT
        base, own = self.log_laws(x)
        terms = (self.targets.unsqueeze(-2) @ own.mT).squeeze(-2).mT
        return terms + base @ (1 - self.targets).mT

    def _base(self, x: Tensor) -> Tensor:
        laws = self.equations.log_prob(x, self.adjacency, context=self.context[:1])
        return laws.squeeze(-3)

    def _own_at(self, x: Tensor, pairs: Tensor) -> Tensor:
        """The log-density of a node as a target of a component, for some pairs ``[P, N]``."""
        laws: Any = partial(self.equations.log_prob_at, x, pairs=pairs, context=self.context[1:])
        own: Tensor = laws(adjacency=torch.zeros_like(self.adjacency))
        if self.cut is None:
            return own
        cut = self.cut.to(own)[pairs[:, 0], pairs[:, 1]].unsqueeze(1)
        return torch.lerp(laws(adjacency=self.adjacency), own, cut)

    def _certain(self, x: Tensor) -> bool:
        """Whether targets are zeros and ones of which nothing is learnt, in one mixture."""
        targets = self.targets
        if is_learnt(targets) or torch.jit.is_tracing():
            return False
        one = self.context.dim() == self.equations.context.dim()
        one = one and all(part.dim() == 2 for part in (x, self.adjacency, targets))
        return one and bool(((targets == 0) | (targets == 1)).all())

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of rows, each in its component."""
        terms = self.by_component(torch.atleast_2d(x))
        shape = torch.broadcast_shapes(terms.shape[:-1], self.z.shape)
        index = self.z.expand(shape).unsqueeze(-1)
        return terms.expand(*shape, -1).gather(-1, index).squeeze(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw rows, parents before children."""
        graph = nx.from_numpy_array(self.adjacency.cpu().numpy() > 0, create_using=nx.DiGraph)
        if not nx.is_directed_acyclic_graph(graph):
            raise ValueError(
                "IntervenedRows: the graph of a draw has a cycle: expected an acyclic one. "
                "Condition on a graph first, as pyro.condition(model, {'graph': adjacency})."
            )
        shape = torch.Size([*sample_shape, *self.batch_shape])
        z = self.z.expand(shape).flatten()
        x = self.context.new_zeros(len(z), *self.event_shape)
        for node in nx.topological_sort(graph):
            parents = sorted(graph.predecessors(node))
            for k in z.unique().tolist():
                rows = (z == k).nonzero().flatten()
                x[rows, node] = self._draw(node, k, {i: x[rows, i] for i in parents}, len(rows))
        return x.reshape(*shape, *self.event_shape)

    def _draw(self, node: int, k: int, parents: dict[int, Tensor], size: int) -> Tensor:
        """The values of a node in the rows of a component, given those of its parents."""
        own = bool(self.targets[k, node] > 0)
        if own and (self.cut is None or self.cut[k, node] > 0):
            parents = {}
        regime = k + 1 if own else 0
        law = self.equations.conditional(node, parents, regime=regime, context=self.context)
        return law.expand((size,)).sample()
