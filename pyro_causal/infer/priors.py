"""Priors of structure: the weights of a Dirichlet process, and graphs with knowledge of edges."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

import networkx as nx
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import register_kl
from torch.distributions.constraints import Constraint
from torch.distributions.utils import probs_to_logits

from pyro_causal.infer._sticks import StickBreaking, SticksToWeights
from pyro_causal.infer._terms import binary_divergence

__all__ = ["BernoulliGraph", "StickBreaking", "SticksToWeights", "graph_prior"]

Node = int | str
Edge = tuple[Node, Node]

CERTAIN = 1e6  # a logit of this size or more, beyond any price; its sigmoid is 0 or 1 exactly


class BernoulliGraph(dist.TorchDistribution):
    r"""Directed graphs whose edges are independent; there is none from a node to itself.

    .. math:: p(G) = \prod_{i \ne j} p_{ij}^{G_{ij}} (1 - p_{ij})^{1 - G_{ij}}

    As a prior it says which edges are likely, and as a posterior which are found; the divergence
    between two of them is in closed form. A graph may have cycles: leave those to a constraint.

    **Arguments**: ``probs`` or ``logits`` of the edges i -> j; the diagonal is ignored. Take logits
    for what is trained, since their divergence has a gradient at probabilities that round to one.

    **Shapes**: ``[*batch, d, d]``; so are values, of zeros and ones.

    **Raises**: ``ValueError`` for a matrix that is not square, and both or none of the arguments.

    **Example**::

        >>> prior = graph_prior(3, probability=0.1, required=[(0, 1)])
        >>> posterior = BernoulliGraph(torch.full((3, 3), 0.5))
        >>> torch.distributions.kl_divergence(prior.constrained(posterior), prior)
        tensor(2.0433)
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "probs": constraints.independent(constraints.unit_interval, 2)
    }
    support = constraints.independent(constraints.boolean, 2)

    def __init__(
        self,
        probs: Tensor | None = None,
        *,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError(
                "BernoulliGraph: expected probs or logits, got "
                f"{'none' if probs is None else 'both'}. Give one of them."
            )
        if logits is None:
            assert probs is not None
            logits = probs_to_logits(probs, is_binary=True)
            logits = torch.where(probs == 0, -CERTAIN, torch.where(probs == 1, CERTAIN, logits))
        if logits.dim() < 2 or logits.shape[-1] != logits.shape[-2]:
            raise ValueError(
                f"BernoulliGraph: expected a square matrix [*batch, d, d], got shape "
                f"{tuple(logits.shape)}. Give one row and one column for each variable."
            )
        loops = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        self.logits = logits.masked_fill(loops, -CERTAIN)
        self.probs = self.logits.sigmoid() if probs is None else probs.masked_fill(loops, 0.0)
        super().__init__(logits.shape[:-2], logits.shape[-2:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The probabilities of the edges."""
        return self.probs

    @property
    def certain(self) -> Tensor:
        """Which edges are certain, or certainly absent: booleans ``[*batch, d, d]``."""
        return self.logits.abs() >= CERTAIN

    def constrained(self, posterior: BernoulliGraph) -> BernoulliGraph:
        """Give a posterior the certain edges of this prior, so that the divergence is finite.

        **Shapes**: batches broadcast.
        """
        return BernoulliGraph(logits=torch.where(self.certain, self.logits, posterior.logits))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw graphs, ``[*sample_shape, *batch, d, d]``."""
        with torch.no_grad():
            return torch.bernoulli(self.probs.expand(*sample_shape, *self.probs.shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the probability of graphs ``[*batch, d, d]``."""
        if self._validate_args:
            self._validate_sample(value)
        signed = torch.where(value > 0, self.logits, -self.logits)
        terms = F.logsigmoid(signed)
        terms = torch.where(self.certain, torch.where(signed > 0, 0.0, -torch.inf), terms)
        return terms.sum((-2, -1))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> BernoulliGraph:
        """Another batch shape."""
        logits = self.logits.expand(*batch_shape, *self.event_shape)
        return type(self)(logits=logits, validate_args=False)


def graph_prior(
    nodes: int | Sequence[str],
    *,
    probability: Tensor | float = 0.5,
    required: Iterable[Edge] = (),
    forbidden: Iterable[Edge] = (),
    likely: Mapping[Edge, float] | None = None,
) -> BernoulliGraph:
    """A prior of the edges between variables, with what is known of some of them.

    An edge that would close a cycle of required ones is forbidden, too.

    **Arguments**

    - ``nodes``: the names of the variables, in their order, or how many there are.
    - ``probability``: of all other edges, a number or ``[d, d]``, whose diagonal does not count.
      With m edges expected, take ``m / (d * (d - 1))``; 1/2 prefers none to any. The result
      follows its device.
    - ``required``, ``forbidden``: edges ``(cause, effect)``, by name or by index.
    - ``likely``: the probability of single edges; below 1/2 they are unlikely.

    **Raises**: ``ValueError`` for required edges with a cycle, edges between other variables or
    from one to itself, statements that contradict each other, and probabilities that are not
    between 0 and 1.

    **Example**::

        >>> prior = graph_prior(
        ...     ["dose", "response", "age"],
        ...     probability=0.2,
        ...     required=[("dose", "response")],
        ...     forbidden=[("dose", "age")],
        ...     likely={("age", "dose"): 0.8},
        ... )
        >>> prior.probs
        tensor([[0.0000, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.2000],
                [0.8000, 0.2000, 0.0000]])
    """
    names = list(range(nodes)) if isinstance(nodes, int) else list(nodes)
    needed = [_indices(edge, names, "required") for edge in required]
    absent = [_indices(edge, names, "forbidden") for edge in forbidden]
    probable = {_indices(edge, names, "likely"): p for edge, p in (likely or {}).items()}
    given = torch.as_tensor(probability)
    if given.shape not in ((), (len(names), len(names))):
        raise ValueError(
            f"graph_prior: expected a probability, or [{len(names)}, {len(names)}], got shape "
            f"{tuple(given.shape)}. Give one for all edges, or a row and column for each variable."
        )
    probs = given.expand(len(names), len(names)).clone().fill_diagonal_(0.5)
    for edge, p in probable.items():
        probs[edge] = p
    if not ((probs > 0) & (probs < 1)).all():
        raise ValueError(
            f"graph_prior: expected probabilities between 0 and 1, got {probs.min():g} to "
            f"{probs.max():g}. Name certain edges as required or forbidden."
        )
    _require_acyclic(needed, names)
    absent += [(b, a) for a, b in nx.transitive_closure(nx.DiGraph(needed)).edges]
    _require_disjoint(names, required=needed, likely=probable, forbidden=absent)
    for edge in needed:
        probs[edge] = 1.0
    for edge in absent:
        probs[edge] = 0.0
    return BernoulliGraph(probs)


def _require_acyclic(edges: Sequence[tuple[int, int]], names: Sequence[Node]) -> None:
    graph = nx.DiGraph(edges)
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [names[a] for a, _ in nx.find_cycle(graph)]
        raise ValueError(
            f"graph_prior: the required edges form a cycle, {' -> '.join(map(str, cycle))} -> "
            f"{cycle[0]}: expected an acyclic graph. Drop one of them."
        )


def _require_disjoint(names: Sequence[Node], **roles: Iterable[tuple[int, int]]) -> None:
    seen: dict[tuple[int, int], str] = {}
    for role, edges in roles.items():
        for a, b in {*edges}:
            if (a, b) in seen:
                raise ValueError(
                    f"graph_prior: the edge {names[a]} -> {names[b]} is {seen[a, b]} and {role}, "
                    "perhaps by what is required: expected one of them. Drop the other."
                )
            seen[a, b] = role


def _indices(edge: Edge, names: Sequence[Node], role: str) -> tuple[int, int]:
    """The places of cause and effect."""
    found = []
    for node in edge:
        if isinstance(node, str) and node in names:
            found.append(names.index(node))
        elif isinstance(node, Integral) and 0 <= node < len(names):
            found.append(int(node))
        else:
            close = difflib.get_close_matches(str(node), map(str, names), 1)
            remedy = f"Did you mean '{close[0]}'?" if close else "Give a name or an index from 0."
            raise ValueError(
                f"graph_prior: the {role} edge {edge!r} has an unknown end {node!r}: expected one "
                f"of {', '.join(map(str, names))}. {remedy}"
            )
    a, b = found
    if a == b:
        raise ValueError(
            f"graph_prior: the {role} edge {edge!r} is a loop: expected two variables. Drop it."
        )
    return a, b


@register_kl(BernoulliGraph, BernoulliGraph)
def _(p: BernoulliGraph, q: BernoulliGraph) -> Tensor:
    same = p.certain & (p.logits * q.logits > 0)
    terms = binary_divergence(p.logits, q.logits)
    return torch.where(q.certain, torch.where(same, 0.0, torch.inf), terms).sum((-2, -1))
