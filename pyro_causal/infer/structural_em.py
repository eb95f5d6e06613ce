r"""Structure from a mixture of interventions: graph, regimes and targets in turn.

Rows come from several regimes, each of which changes the laws of some nodes, its targets, of one
graph. Given the regimes, the best graph is found by search; given the graph, regimes follow from
how well their laws explain a row. Taken in turn, each makes the other better.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_causal.infer._gaussian_start import fit_gaussians, responsibilities
from pyro_causal.infer._node_scores import NodeScores
from pyro_causal.infer._regime_laws import RegimeLaws
from pyro_causal.infer._regressions import Assumptions, RandomFeatures
from pyro_causal.infer.dag_search import FoundGraph, climb_dag, exact_dag
from pyro_causal.infer.priors import BernoulliGraph

__all__ = ["FoundStructure", "structural_em"]

HELD = 0.2  # of the rows, for scores
FEWEST = 20.0  # rows of a component
TOLERANCE = 1e-3  # nats for a row
EXACT = 11  # nodes, up to which all graphs are compared
PATIENCE = 8  # of a climb where spreads vary, whose scores take longer


class FoundStructure(NamedTuple):
    """What was found, with K components left.

    **Shapes**: ``adjacency [d, d]``, ``responsibilities [N, K]``, ``targets [K, d]`` booleans,
    ``score`` a number: the log-likelihood of held-out rows, scaled to all rows, less the prices.
    """

    adjacency: Tensor
    responsibilities: Tensor
    targets: Tensor
    score: float


def structural_em(
    x: Tensor,
    *,
    truncation: int = 16,
    units: int = 0,
    imperfect: bool = False,
    varying: bool = False,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    prior: BernoulliGraph | None = None,
    edge: float = 0.003,
    target: float = 0.003,
    max_parents: int | None = None,
    rounds: int = 4,
    steps: int = 15,
    starts: int = 3,
) -> FoundStructure:
    r"""Find graph, regimes and targets.

    .. math:: x_n \mid z_n = k \;\sim\; \prod_j
        p_j(x_j \mid x_{\mathrm{pa}(j)})^{1 - r_{kj}} \,
        p_{kj}(x_j \mid x_{\mathrm{pa}(j)})^{r_{kj}},
        \qquad z_n \sim w \sim \mathrm{GEM}(1)

    It starts from a mixture of Gaussians without structure. Then, in turn: each row belongs to its
    most probable regime, and the best graph is found; in it, laws are fitted to responsibilities,
    and these to laws, until neither moves. It ends when the graph stays. In a search a set of
    parents is as good as its prediction of a fifth of the rows, under regressions by least squares
    whose residuals are Gaussian. On which regimes a node is a target is chosen for every such set:
    those that gain by a law of their own, which is a Gaussian without parents, or, if interventions
    may be imperfect and it predicts better, a regression of their own.

    Regimes need not be right for the graph to be: what matters is that none mixes rows in which a
    law holds with rows in which it does not. Components are often more than there are regimes.

    **Arguments**

    - ``x``: rows; each variable is standardised.
    - ``truncation``: the number K of components to start with.
    - ``units``: random features of the regressions on parents; 0 makes them linear, 100 are good
      for functions of a few parents of any shape.
    - ``imperfect``: whether interventions may leave parents in place.
    - ``varying``: whether the spread and the shape of residuals depend on the parents, as where
      noise enters a function of any shape. Graphs are found by climbing then. In between, laws
      have fixed spreads all the same: the others explain rows of interventions, too, and regimes
      are lost.
    - ``labels``: the component of each row, where known, else -1.
    - ``targets``: of each component, where known.
    - ``prior``: of edges.
    - ``edge``, ``target``: what an edge and a target cost, in nats for each row of all. That is
      more than what chance gives, since families are never quite right; functions of any shape are
      less so than linear ones. Try 0.01 of both for them.
    - ``max_parents``: of a node.
    - ``rounds``, ``steps``: at most so many searches, and steps between them.
    - ``starts``: of the mixture of Gaussians, from which the most likely is taken.

    **Shapes**: ``x [N, d]``, ``labels [N]`` integers, ``targets [K, d]`` zeros and ones. Graphs of
    up to 11 nodes are found by exact search, unless spreads vary, else by climbing.

    **Raises**: ``ValueError`` for NaN or infinity, variables that do not vary, fewer rows than
    variables, labels out of range, targets of another shape.

    **References**: *The Bayesian structural EM algorithm*,
    https://arxiv.org/abs/1301.7373, there for missing values of any kind; *Permutation-based causal
    inference algorithms with interventions*, https://arxiv.org/abs/1705.10220 (one law in all
    regimes but targets, regimes known); *Random features for large-scale kernel machines*
    (Rahimi & Recht 2007); *Differentiable causal discovery under latent interventions*,
    https://arxiv.org/abs/2203.02336, the model, there by gradients.

    **Example**::

        >>> dose = torch.cat([torch.randn(3000), 5 + 0.2 * torch.randn(900), torch.randn(900)])
        >>> response = dose + 0.5 * torch.randn(4800)
        >>> response[3900:] = -4 + 0.2 * torch.randn(900)  # set, as the dose was in rows before
        >>> found = structural_em(torch.stack([response, dose], 1), truncation=6)
        >>> found.adjacency
        tensor([[0, 0],
                [1, 0]])
    """
    _check(x, labels, targets)
    dtype, x = x.dtype, x.double()  # moments of rows that are nearly on a line need the digits
    x = (x - x.mean(0)) / x.std(0)
    if targets is not None:
        truncation, targets = len(targets), targets.bool()
    elif labels is not None and (labels >= 0).all():
        truncation = 1
    allowed = _allowed(x, labels, truncation)
    few, many = (RandomFeatures(x, units=n) for n in (units, 2 * units))
    held = torch.randperm(len(x), device=x.device) < max(1, HELD * len(x))
    q = fit_gaussians(x, allowed, starts=starts)
    named = labels is not None or targets is not None  # so that components keep their numbers
    assumed = Assumptions(imperfect, varying, target, targets)
    found = last = None
    for _ in range(rounds):
        scores = NodeScores(
            x,
            q.argmax(1),
            regimes=q.shape[1],
            features=few,
            held=held,
            assumed=assumed,
            edge=edge,
        )
        found = _search(scores, x.shape[1], prior, max_parents, last)
        chosen = scores.targets(found.adjacency)
        if last is not None and torch.equal(found.adjacency, last):
            break
        last = found.adjacency
        laws = RegimeLaws(x, last, features=many, assumed=assumed)
        q, allowed = _settle(laws, q, allowed, steps=steps, fixed=named)
    assert found is not None
    return FoundStructure(found.adjacency, q.to(dtype), chosen, found.score)


def _settle(
    laws: RegimeLaws, q: Tensor, allowed: Tensor, *, steps: int, fixed: bool
) -> tuple[Tensor, Tensor]:
    """Alternate laws and responsibilities, and leave out components that die out."""
    before = -torch.inf
    for _ in range(steps):
        q, evidence = responsibilities(laws.log_likelihood(q)[0], q.sum(0), allowed)
        keep = (q.sum(0) > FEWEST) | fixed
        if not keep.all():
            q, allowed = q[:, keep], allowed[:, keep]
            q = q / q.sum(1, keepdim=True).clamp(min=1e-12)
        mean = float(evidence.mean())
        if abs(mean - before) < TOLERANCE:
            break
        before = mean
    return q, allowed


def _search(
    scores: NodeScores,
    nodes: int,
    prior: BernoulliGraph | None,
    max_parents: int | None,
    last: Tensor | None,
) -> FoundGraph:
    """The best graph; where spreads vary, by climbs from no edges and from the last one, if any."""
    if not scores.assumed.varying:
        search = exact_dag if nodes <= EXACT else climb_dag
        return search(scores, nodes, prior=prior, max_parents=max_parents)

    def climb(scores: NodeScores, start: Tensor | None) -> FoundGraph:
        return climb_dag(
            scores,
            nodes,
            prior=prior,
            max_parents=max_parents,
            start=start,
            patience=PATIENCE,
            restarts=0,
        )

    if last is None:
        last = climb(scores.with_fixed_spread(), None).adjacency
    return max((climb(scores, start) for start in (None, last)), key=lambda found: found.score)


def _check(x: Tensor, labels: Tensor | None, targets: Tensor | None) -> None:
    if x.dim() != 2 or len(x) <= x.shape[-1]:
        raise ValueError(
            f"structural_em: expected rows [N, d] with N > d, got shape {tuple(x.shape)}. Give "
            "more rows than variables, or transpose."
        )
    varies = x.isfinite().all(0) & (x.amax(0) > x.amin(0))
    if not varies.all():
        raise ValueError(
            "structural_em: expected finite values that vary, got NaN, infinity or one value only "
            f"in the columns {(~varies).nonzero().flatten().tolist()}. Drop such rows, or columns."
        )
    if labels is not None and (labels.shape != x.shape[:1] or labels.is_floating_point()):
        raise ValueError(
            f"structural_em: expected labels [{len(x)}] of integers, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Give one for each row, -1 where it is unknown."
        )
    if labels is not None and labels.min() < -1:
        raise ValueError(
            f"structural_em: expected labels from -1, unknown, got {int(labels.min())}. Count "
            "components from 0."
        )
    if targets is not None and (targets.dim() != 2 or targets.shape[1] != x.shape[1]):
        raise ValueError(
            f"structural_em: expected targets [K, {x.shape[1]}], got shape {tuple(targets.shape)}. "
            "Give a row for each component and a column for each variable."
        )
    if labels is not None and targets is not None and labels.max() >= len(targets):
        raise ValueError(
            f"structural_em: expected labels below {len(targets)}, the number of rows of targets, "
            f"got {int(labels.max())}. Give the targets of every component."
        )


def _allowed(x: Tensor, labels: Tensor | None, truncation: int) -> Tensor:
    """The components which each row may have, ``[N, K]`` with K at least the truncation."""
    if labels is None:
        return torch.ones(len(x), truncation, dtype=torch.bool, device=x.device)
    known = labels >= 0
    components = torch.arange(max(int(labels.max()) + 1, truncation), device=x.device)
    return (labels.unsqueeze(-1) == components) | ~known.unsqueeze(-1)
