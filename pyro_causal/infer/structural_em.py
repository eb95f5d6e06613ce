r"""Structure from a mixture of interventions: graph, regimes and targets in turn.

Rows come from several regimes, each of which changes the laws of some nodes, its targets, of one
graph. Given the regimes, the best graph is found by search; given the graph, regimes follow from
how well their laws explain a row. Taken in turn, each makes the other better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_causal.infer._components import Components
from pyro_causal.infer._gaussian_start import fit_gaussians
from pyro_causal.infer._regressions import Assumptions, RandomFeatures
from pyro_causal.infer._structure_search import (
    SMALL,
    StructureProblem,
    edge_log_odds,
    find_structure,
)
from pyro_causal.infer.priors import BernoulliGraph

__all__ = ["FoundStructure", "structural_em"]

HELD = 0.2  # of the rows, for scores
RESOLUTION = 0.05  # of rows, where spreads vary
CHANCE = 7.0  # nats of all rows: the gain by chance on rows held out, -0.6, and three times its 2.5


class FoundStructure(NamedTuple):
    r"""What was found, with K components left.

    .. math:: \text{score} = \frac{N}{|H|} \sum_{n \in H}
        \log \sum_k w_k \prod_j p_{kj}(x_{nj} \mid x_{n, \mathrm{pa}(j)})
        - \text{prices of edges and targets}

    H are rows held out of the laws and weights, a fifth of all. Whatever the number of components,
    scores of one table (and one H: seed torch alike) compare.

    Log odds of an edge i -> j are against j -> i and no edge, given regimes and all other edges:
    about zero or below for both directions where rows do not tell them apart, infinite where
    nothing else is allowed. Regimes and other edges are in doubt as well; the odds leave that out.

    **Shapes**: ``adjacency [d, d]``, ``responsibilities [N, K]``, booleans ``targets [K, d]`` and
    ``cut [K, d]``, those targets whose parents are cut, ``score`` a number,
    ``edge_log_odds [d, d]``.
    """

    adjacency: Tensor
    responsibilities: Tensor
    targets: Tensor
    cut: Tensor
    score: float
    edge_log_odds: Tensor


def structural_em(
    x: Tensor,
    *,
    truncation: int = 16,
    units: int = 0,
    imperfect: bool = False,
    varying: bool = False,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    observational: bool = False,
    prior: BernoulliGraph | None = None,
    edge: float = 0.003,
    target: float = 0.003,
    max_parents: int | None = None,
    rounds: int = 6,
    steps: int | None = None,
    starts: int = 3,
    runs: int | None = None,
    resolution: float | None = None,
) -> FoundStructure:
    r"""Find graph, regimes and targets.

    .. math:: x_n \mid z_n = k \;\sim\; \prod_j
        p_j(x_j \mid x_{\mathrm{pa}(j)})^{1 - r_{kj}} \,
        p_{kj}(x_j \mid x_{\mathrm{pa}(j)})^{r_{kj}},
        \qquad z_n \sim w \sim \mathrm{GEM}(1)

    It starts from mixtures of Gaussians without structure. Then, in turn: each row belongs to its
    most probable regime, and the best graph is found; in it, laws are fitted to responsibilities,
    and these to laws, until neither moves; components become one, others are added where rows are
    explained badly, and targets are left out, while the score rises. Reversals of the edges that
    are most in doubt are tried as well. It ends when none of these graphs has a higher score.

    Mixtures of Gaussians tell little of regimes where laws are curves. So with units and fixed
    spreads one more graph is among the first, found without regimes: each node has one law in all
    rows but outliers. The outliers of each node start a component, unless labels or targets tell of
    regimes. If it is the best of them, graphs climbed to from it are all that is tried after it.

    In a search a set of parents is as good as its prediction of a fifth of the rows, under
    regressions by least squares whose residuals are Gaussian. On which regimes a node is a target
    is chosen for every such set: those that gain by a law of their own, which is a Gaussian without
    parents, or, if interventions may be imperfect and it predicts better, a regression of their
    own.

    Where noise is small, graphs are told apart by how precise the regressions are. With random
    features they compare quickly, and all of them; from the best, a climb goes on with units that
    are fitted to each node and its parents, and the laws of regimes have these as well.

    What tells the direction of an edge? Where interventions cut parents off, only the true
    direction predicts well: in the other one, a variable that was set would still depend on its
    effect. Where they keep parents, linear Gaussian laws predict equally well in both directions.
    But an intervention that changes one law of the true graph changes two laws of the reversed one,
    which then needs more targets; as each has its penalty, the true graph scores higher. With one
    regime and linear Gaussian laws, nothing tells the direction.

    **Arguments**

    - ``x``: rows; each variable is standardised.
    - ``truncation``: the number K of components to start with, and at most, unless labels name
      more.
    - ``units``: random features of the regressions on parents, beside which come 24 that are
      fitted; 0 makes them linear, 100 are good for functions of any shape.
    - ``imperfect``: whether interventions may leave parents in place.
    - ``varying``: whether the spread and the shape of residuals depend on the parents
      (heteroscedasticity), as where noise enters a function of any shape. Graphs are climbed to
      then, and targets grow one at a time from none: laws fitted to few regimes are wrong in
      others.
    - ``labels``: the component of each row, where known, else -1.
    - ``targets``: of each component, where known. If no row of some of them is, what is found
      without gets the names whose targets are closest.
    - ``observational``: whether component 0 of the labels has no targets; others are unknown.
    - ``prior``: of edges.
    - ``edge``, ``target``: penalties on each edge and each target, in nats for each of all rows,
      since families of laws are never quite right, and many rows show it. For functions of any
      shape, which fit less closely than linear ones, try 0.01. In few rows chance alone would gain
      more, so that each costs 7 nats of all rows at least.
    - ``max_parents``: of a node.
    - ``rounds``, ``steps``: at most so many moves to a better graph, and steps in each, by default
      15, or 8 where spreads vary.
    - ``starts``, ``runs``: so many mixtures of Gaussians are fitted, and so many of the most likely
      have a first graph each, of which the best by score goes on, or all if labels name the
      component of every row. By default 3 are, and one of them has if variables are many (6 or
      more) and spreads fixed, else all.
    - ``resolution``: the standard deviation of noise that is added to the rows, where variables
      have variance one. Some variables follow their parents almost without noise, or not at all;
      then a misfit that is small beside any other noise decides between graphs. All results are
      of such rows. By default 0.05 where spreads vary, else 0.

    **Shapes**: ``x [N, d]``, ``labels [N]`` integers, ``targets [K, d]`` zeros and ones. Graphs of
    up to 11 nodes are found by exact search, else by climbing, and by climbing from there with
    units and where spreads vary.

    **Raises**: ``ValueError`` for NaN or infinity, variables that do not vary, fewer rows than
    variables, rows of integers, labels out of range, targets of another shape or with other numbers
    than 0 and 1, and numbers out of range.

    **References**: *The Bayesian structural EM algorithm*,
    https://arxiv.org/abs/1301.7373, there for missing values of any kind; *Permutation-based causal
    inference algorithms with interventions*, https://arxiv.org/abs/1705.10220 (one law in all
    regimes but targets, regimes known); *Random features for large-scale kernel machines*
    (Rahimi & Recht 2007); *A method for the solution of certain non-linear problems in least
    squares* (Levenberg 1944) and *The differentiation of pseudo-inverses and nonlinear least
    squares problems whose variables separate* (Golub & Pereyra 1973), by which units are fitted;
    *Differentiable causal discovery under latent interventions*, https://arxiv.org/abs/2203.02336,
    the model, there by gradients; *Mixture models, outliers, and the EM algorithm* (Aitkin &
    Wilson 1980), for the graph without regimes; *Noise regularization for conditional density
    estimation*, https://arxiv.org/abs/1907.08982 (resolution).

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
    _check_observational(observational, labels, targets)
    _check_numbers(
        truncation=(truncation, 1),
        units=(units, 0),
        edge=(edge, 0),
        target=(target, 0),
        rounds=(rounds, 0),
        steps=(steps, 1),
        starts=(starts, 1),
        runs=(runs, 1),
        resolution=(resolution, 0),
    )
    dtype, x = x.dtype, x.double()  # moments of rows that are nearly on a line need the digits
    x = (x - x.mean(0)) / x.std(0)
    edge, target = (max(price, CHANCE / len(x)) for price in (edge, target))
    if resolution is None:
        resolution = RESOLUTION * varying
    x = x + resolution * torch.randn_like(x)
    if targets is not None:
        truncation, targets = len(targets), targets.bool()
    elif labels is not None and (labels >= 0).all():
        truncation = 1
    problem = StructureProblem(
        x,
        torch.randperm(len(x), device=x.device) < max(1, HELD * len(x)),
        features=RandomFeatures(x, units=units),
        assumed=Assumptions(imperfect, varying, target, targets, observational),
        edge=edge,
        steps=(8 if varying else 15) if steps is None else steps,
        truncation=truncation,
        prior=prior,
        max_parents=max_parents,
    )
    allowed = _allowed(x, labels, truncation)
    names = len(targets) if targets is not None else 0 if labels is None else int(labels.max()) + 1
    named = torch.arange(allowed.shape[1], device=x.device) < names
    if (allowed.sum(1) == 1).all():
        starts = 1  # as nothing is to be found
    first = [Components(q, allowed, named) for q in fit_gaussians(x, allowed, starts=starts)]
    if runs is None:
        runs = starts if x.shape[1] <= SMALL or varying else 1
    first = first[:runs]
    labelled = allowed[allowed.sum(1) == 1].any(0)
    if targets is not None and not labelled.all():
        q = _as_named(targets, labelled, problem, first, rounds)
        first.append(Components(q, allowed, named))
    graph, fit, scores = find_structure(problem, first, rounds=rounds)
    odds = edge_log_odds(problem, graph, scores).to(dtype)
    q = fit.components.q.to(dtype)
    return FoundStructure(graph, q, fit.targets, fit.cut, fit.score, odds)


def _as_named(
    targets: Tensor,
    labelled: Tensor,
    problem: StructureProblem,
    starts: Sequence[Components],
    rounds: int,
) -> Tensor:
    """Responsibilities ``[N, K]`` where targets are known, but of some components no row is.

    A mixture knows nothing of names, and laws and rows in turn do not come from one to another. So
    they are found as if targets were unknown, and get the names whose targets are theirs or close.

    **Shapes**: ``targets [K, d]``; ``labelled [K]``, of which components rows are known.
    """
    order, count = labelled.long().argsort(descending=True, stable=True), int(labelled.sum())
    free = replace(problem, assumed=problem.assumed._replace(targets=None), kept={})
    unnamed = [
        Components(start.q[:, order], start.allowed[:, order], labelled[order]) for start in starts
    ]
    _, fit, _ = find_structure(free, unnamed, rounds=rounds)
    differ = (fit.targets[count:].unsqueeze(1) != targets[order[count:]]).sum(-1)
    found, names = (torch.as_tensor(k) for k in linear_sum_assignment(differ.cpu().numpy()))
    q = problem.x.new_zeros(len(problem.x), len(targets))
    q[:, order[:count]] = fit.components.q[:, :count]
    q[:, order[count + names]] = fit.components.q[:, count + found]
    return q / q.sum(1, keepdim=True)


def _check_numbers(**numbers: tuple[float | None, int]) -> None:
    for name, (value, least) in numbers.items():
        if value is not None and not least <= value < torch.inf:
            raise ValueError(
                f"structural_em: expected {name} from {least}, got {value}. Give a finite number "
                "from there, or leave it out."
            )


def _check(x: Tensor, labels: Tensor | None, targets: Tensor | None) -> None:
    if not x.is_floating_point():
        raise ValueError(
            f"structural_em: expected rows of floating-point numbers, got {x.dtype}. Convert them, "
            "x.double()."
        )
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
    if targets is not None and (
        targets.dim() != 2 or len(targets) == 0 or targets.shape[1] != x.shape[1]
    ):
        raise ValueError(
            f"structural_em: expected targets [K, {x.shape[1]}], got shape {tuple(targets.shape)}. "
            "Give a row for each component and a column for each variable."
        )
    if targets is not None and not ((targets == 0) | (targets == 1)).all():
        raise ValueError(
            "structural_em: expected targets of zeros and ones, got other numbers. Give 1 for each "
            "variable that a component sets or changes."
        )
    if labels is not None and targets is not None and labels.max() >= len(targets):
        raise ValueError(
            f"structural_em: expected labels below {len(targets)}, the number of rows of targets, "
            f"got {int(labels.max())}. Give the targets of every component."
        )


def _check_observational(
    observational: bool, labels: Tensor | None, targets: Tensor | None
) -> None:
    if observational and (labels is None or not (labels == 0).any() or targets is not None):
        got = "the targets of all" if targets is not None else "no such label"
        raise ValueError(
            "structural_em: expected rows of component 0, which is said to be observational, and "
            f"unknown targets, got {got}. Label rows, or leave observational out."
        )


def _allowed(x: Tensor, labels: Tensor | None, truncation: int) -> Tensor:
    """The components which each row may have, ``[N, K]`` with K at least the truncation."""
    if labels is None:
        return torch.ones(len(x), truncation, dtype=torch.bool, device=x.device)
    known = labels >= 0
    components = torch.arange(max(int(labels.max()) + 1, truncation), device=x.device)
    return (labels.unsqueeze(-1) == components) | ~known.unsqueeze(-1)
