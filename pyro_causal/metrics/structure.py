"""How far a found graph is from the true one, and found regimes and targets from the true ones.

Graphs are adjacency matrices of zeros and ones, tensors or arrays ``[*batch, d, d]``, where (i, j)
is one for an edge i -> j; batches broadcast. The first argument is what was found, the second the
truth.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_causal._reachability import reached

__all__ = [
    "EdgeCounts",
    "adjusted_rand_index",
    "edge_counts",
    "hamming_distance",
    "match_regimes",
    "structural_hamming_distance",
    "structural_intervention_distance",
    "target_f1",
]

Array = Tensor | NDArray[Any]


class EdgeCounts(NamedTuple):
    """How many edges are right and wrong, ``[*batch]`` each; see :func:`edge_counts`."""

    tp: Tensor
    """Found and true."""
    fn: Tensor
    """True, not found."""
    fp: Tensor
    """Found, not true."""
    rev: Tensor
    """Found the wrong way round."""

    @property
    def precision(self) -> Tensor:
        """The share of what was found that is true; one if nothing was found."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> Tensor:
        """The share of what is true that was found; one if nothing is true."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> Tensor:
        """The harmonic mean of precision and recall; one if nothing was found, and nothing true."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fn + self.fp)


def hamming_distance(found: Array, true: Array) -> Tensor:
    """The number of entries that differ: an edge the wrong way round costs two.

    **Shapes** ``[*batch, d, d]``; result ``[*batch]``.

    **Raises** ``ValueError``: matrices that are not square or not of one size, entries besides
    zero and one, an edge from a node to itself.

    **References** Faria, Martins & Figueiredo 2022, *Differentiable causal discovery under latent
    interventions*, https://arxiv.org/abs/2203.02336: table 1, and the authors' own rows of table 2,
    where it goes by the name of SHD.

    **Example**

    >>> hamming_distance(torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0, 0], [1, 0]]))
    tensor(2)
    """
    a, b = _graphs(found, true)
    return (a != b).sum((-2, -1))


def structural_hamming_distance(found: Array, true: Array) -> Tensor:
    """The number of pairs of nodes that differ (SHD): an edge the wrong way round costs one.

    **Shapes** and **Raises** as :func:`hamming_distance`.

    **References** Tsamardinos, Brown & Aliferis 2006, The max-min hill-climbing Bayesian network
    structure learning algorithm; for directed graphs.

    **Example**

    >>> structural_hamming_distance(torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0, 0], [1, 0]]))
    tensor(1)
    """
    a, b = _graphs(found, true)
    wrong = a != b
    return (wrong | wrong.mT).triu(1).sum((-2, -1))


def edge_counts(
    found: Array, true: Array, *, reversals: Literal["inside", "apart"] = "inside"
) -> EdgeCounts:
    """Count edges that are right, missing, superfluous and the wrong way round.

    **Shapes** and **Raises** as :func:`hamming_distance`.

    **Arguments** ``reversals``: ``"inside"`` if an edge the wrong way round is a missing one and a
    superfluous one as well, so that ``fn + fp`` is the Hamming distance; ``"apart"`` if it
    is neither, and does not count in precision, recall and F1: then ``fn + fp + rev`` is the
    structural Hamming distance of graphs without two-cycles.

    **References** Faria, Martins & Figueiredo 2022, https://arxiv.org/abs/2203.02336, table 2, has
    its own rows the first way. The rows that it quotes from Brouillard et al. 2020, *Differentiable
    causal discovery from interventional data*, https://arxiv.org/abs/2007.01754, are the second
    way, so F1 does not compare between them.

    **Example** One edge right, one the wrong way round, one missing.

    >>> true = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    >>> found = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 0]])
    >>> [int(n) for n in edge_counts(found, true)], edge_counts(found, true).f1
    ([1, 2, 1, 1], tensor(0.4000))
    >>> [int(n) for n in edge_counts(found, true, reversals="apart")]
    [1, 1, 0, 1]
    """
    if reversals not in ("inside", "apart"):
        raise ValueError(
            f"edge_counts: expected reversals to be 'inside' or 'apart', got {reversals!r}. "
            "Do pick one of them."
        )
    a, b = _graphs(found, true)
    backward = a & ~b & b.mT & ~a.mT
    tp, fn, fp, rev = (edges.sum((-2, -1)) for edges in (a & b, b & ~a, a & ~b, backward))
    if reversals == "apart":
        fn, fp = fn - rev, fp - rev
    return EdgeCounts(tp, fn, fp, rev)


def structural_intervention_distance(found: Array, true: Array) -> Tensor:
    r"""The number of effects that the found graph gets wrong (SID).

    An effect of i on j is wrong if adjusting for the parents of i in the found graph does not give
    :math:`p(x_j \mid do(x_i))` of the true one; where j is one of these parents, if i does act on
    j. It is not symmetric, is at most :math:`d (d - 1)`, and is zero for any graph that holds the
    true one. Both must be acyclic; no bounds for equivalence classes are given.

    **Shapes** as :func:`hamming_distance`; memory grows with :math:`d^3` for each graph.

    **Raises** ``ValueError``: as :func:`hamming_distance`; a graph with a cycle.

    **References** Peters & Bühlmann 2015, *Structural intervention distance for evaluating causal
    graphs*, https://arxiv.org/abs/1306.1043, proposition 6. Its condition on paths is checked by
    reachability in a graph of arrivals, for all pairs at once.

    **Example** A superfluous edge misleads no adjustment. One the wrong way round does.

    >>> true = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    >>> more = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    >>> turned = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 0, 0]])
    >>> structural_intervention_distance(torch.stack([more, turned]), true)
    tensor([0, 3])
    """
    h, g = torch.broadcast_tensors(*_graphs(found, true))
    below, loops = reached(g), torch.eye(g.shape[-1], dtype=torch.bool, device=g.device)
    for name, paths in (("found", reached(h)), ("true", below)):
        if (paths & loops).any():
            raise ValueError(
                f"structural_intervention_distance: expected acyclic graphs, got a {name} one with "
                "a cycle, whose effects adjustment does not give. Do take a Hamming distance."
            )
    z, reach = h.mT, below | loops  # z[i] marks what is adjusted for
    spoiled = below & _any(z, reach.mT)  # w behind i, with an adjusted node behind it
    wrong = torch.where(z, reach, _any(spoiled, reach) | _open_paths(g, z, reach))
    return (wrong & ~loops).sum((-2, -1))


def _open_paths(g: Tensor, z: Tensor, reach: Tensor) -> Tensor:
    """Whether z[i] leaves a path from i to j open that is not directed, ``[*batch, d, d]``.

    One arrives at a node from a child or from a parent, and goes on to parents and children, or, if
    the node is adjusted for, from parent to parent. Paths never come back to i. Those that start at
    a child count unless it reaches j: then they are directed, or else spoiled by a collider.
    """
    d = g.shape[-1]
    steps = g.unsqueeze(-3).expand(*g.shape[:-2], d, d, d)  # for each i, over nodes
    free, onto = ~z.unsqueeze(-1), ~torch.eye(d, dtype=torch.bool, device=g.device).unsqueeze(-2)
    up, down = steps.mT & onto, steps & onto
    from_child = torch.cat([up & free, down & free], -1)
    from_parent = torch.cat([up & ~free, down & free], -1)
    walks = reached(torch.cat([from_child, from_parent], -2))
    walks = walks | torch.eye(2 * d, dtype=torch.bool, device=g.device)  # of no step, too
    ends = walks[..., :d] | walks[..., d:]  # in whatever way one arrives at j
    above = (g.mT.unsqueeze(-1) & ends[..., :d, :]).any(-2)
    below = (g.unsqueeze(-1) & ends[..., d:, :] & ~reach.unsqueeze(-3)).any(-2)
    return above | below


def adjusted_rand_index(found: Array, true: Array) -> Tensor:
    """How well two partitions of rows agree: one if they are the same, about zero by chance.

    **Shapes** labels ``[n]``, integers; result ``[]``.

    **Raises** ``ValueError``: labels that are not one dimension of at least two rows each.

    **References** Hubert & Arabie 1985, Comparing partitions, equation 5.

    **Example** Names do not count.

    >>> adjusted_rand_index(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    tensor(1.)
    """
    table = _overlap(found, true, "adjusted_rand_index").double()

    def pairs(counts: Tensor) -> Tensor:
        return (counts * (counts - 1) / 2).sum()

    together, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = rows * columns / pairs(table.sum())
    return _ratio(together - chance, (rows + columns) / 2 - chance)


def match_regimes(found: Array, true: Array) -> dict[int, int]:
    """Match found regimes to true ones, one to one, so that they share as many rows as possible.

    Regimes can be found up to their names only.

    **Shapes** regimes ``[n]`` of the rows.

    **Returns** the found regime of each true one that has a partner.

    **Raises** ``ValueError``: as :func:`adjusted_rand_index`; labels below zero.

    **Example**

    >>> match_regimes(torch.tensor([2, 2, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 1]))
    {0: 2, 1: 0}
    """
    table = _overlap(found, true, "match_regimes").cpu()
    for name, labels in (("found", found), ("true", true)):
        if (lowest := torch.as_tensor(labels).min()) < 0:
            raise ValueError(
                f"match_regimes: expected {name} regimes from 0, got {lowest}. Do leave out rows "
                "without a regime."
            )
    names_found, names_true = (torch.as_tensor(labels).unique() for labels in (found, true))
    partners = zip(*linear_sum_assignment(table.numpy(), maximize=True), strict=True)
    matched = {int(names_true[k]): int(names_found[j]) for j, k in partners if table[j, k]}
    return dict(sorted(matched.items()))


def target_f1(
    found_targets: Array, true_targets: Array, *, found_regime: Array, true_regime: Array
) -> Tensor:
    """F1 of the targets of interventions, regimes being matched by their rows.

    Targets of a true regime without a partner are missing, those of a found one superfluous. A
    found regime without rows does not count, so that a truncation may be as large as one likes.

    **Shapes** targets ``[K + 1, d]`` of zeros and ones, each with a K of its own; regimes ``[n]``;
    result ``[]``.

    **Raises** ``ValueError``: as :func:`match_regimes`; targets that are not such matrices of one
    width; a regime beyond them.

    **Example** The found regimes 0 and 1 are the true 1 and 0. One of two targets is right.

    >>> z = torch.tensor([0, 0, 1, 1, 2, 2])
    >>> true = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    >>> found = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    >>> swapped = torch.tensor([1, 1, 0, 0, 2, 2])
    >>> target_f1(found, true, found_regime=swapped, true_regime=z)
    tensor(0.5000)
    """
    a, b = (
        _targets("found", found_targets, found_regime),
        _targets("true", true_targets, true_regime),
    )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"target_f1: expected targets among the same variables, got {a.shape[1]} and "
            f"{b.shape[1]}. Do give matrices [K + 1, d] of one d."
        )
    b = b.to(a.device)
    partner = match_regimes(found_regime, true_regime)
    right = torch.stack([(a[j] & b[k]).sum() for k, j in partner.items()]).sum()
    inhabited = [torch.as_tensor(z).unique().to(a.device) for z in (found_regime, true_regime)]
    return _ratio(2 * right, a[inhabited[0]].sum() + b[inhabited[1]].sum())


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Part over whole, one where there is nothing."""
    return torch.where(whole == 0, 1.0, part / whole).to(torch.get_default_dtype())


def _any(a: Tensor, b: Tensor) -> Tensor:
    """The boolean product of matrices."""
    return a.float() @ b.float() > 0


def _graphs(found: Array, true: Array) -> tuple[Tensor, Tensor]:
    """Both graphs as booleans, checked."""
    a, b = (_zeros_and_ones(name, graph) for name, graph in (("found", found), ("true", true)))
    for name, graph in (("found", a), ("true", b)):
        if graph.dim() < 2 or graph.shape[-2:] != (b.shape[-1],) * 2:
            raise ValueError(
                f"The {name} graph: expected a square matrix [*batch, d, d] for the same variables "
                f"as the other, got shapes {list(a.shape)} (found) and {list(b.shape)} (true). "
                "Do give one row and one column for each variable."
            )
        if graph.diagonal(dim1=-2, dim2=-1).any():
            raise ValueError(
                f"The {name} graph: expected no edge from a variable to itself, got one. "
                "Do clear the diagonal."
            )
    return a, b.to(a.device)


def _zeros_and_ones(name: str, values: Array) -> Tensor:
    """The values as booleans."""
    result = torch.as_tensor(values)
    if not ((result == 0) | (result == 1)).all():
        raise ValueError(
            f"The {name} graph or targets: expected zeros and ones, got values from "
            f"{result.min():g} to {result.max():g}. Do threshold probabilities first."
        )
    return result.bool()


def _targets(name: str, targets: Array, regime: Array) -> Tensor:
    """Targets as booleans, checked."""
    result, most = _zeros_and_ones(name, targets), int(torch.as_tensor(regime).max())
    if result.dim() != 2 or len(result) <= most:
        raise ValueError(
            f"The {name} targets: expected a matrix [K + 1, d] with a row for each regime up to "
            f"{most}, got shape {list(result.shape)}. Do add a row of zeros for regime 0."
        )
    return result


def _overlap(found: Array, true: Array, metric: str) -> Tensor:
    """How many rows each found label shares with each true one, both in ascending order."""
    a, b = (torch.as_tensor(labels) for labels in (found, true))
    if a.dim() != 1 or a.shape != b.shape or len(a) < 2 or a.is_floating_point():
        raise ValueError(
            f"{metric}: expected integer labels [n] of the same rows, two or more, got "
            f"shapes {list(a.shape)} (found) and {list(b.shape)} (true), {a.dtype}. Do give a "
            "label for each row."
        )
    (names_a, a), (names_b, b) = (x.unique(return_inverse=True) for x in (a, b.to(a.device)))
    counts = torch.bincount(a * len(names_b) + b, minlength=len(names_a) * len(names_b))
    return counts.reshape(len(names_a), len(names_b))
