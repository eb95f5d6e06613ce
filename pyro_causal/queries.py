"""Ask a Pyro program what is, what would be if, and what would have been."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_causal import handlers
from pyro_causal._actions import Action, check_actions, draws_afresh, is_hard, require_sites, soft
from pyro_causal._evidence import (
    abduce,
    check_draws,
    doubtful_sites,
    is_evidence,
    observe_once,
    open_sites,
    weights_at,
)
from pyro_causal._identified import Question, is_discrete, judge
from pyro_causal._particles import Model, Particles, Site, Sites, open_values, trace_once
from pyro_causal._predictive import (
    CounterfactualPredictive,
    Values,
    check_sources,
    check_targets,
    draw_worlds,
    variables,
    warn_of_prior,
)
from pyro_causal._result import QueryResult
from pyro_causal._statements import undisturbed
from pyro_causal.graph import ADMG

__all__ = ["CounterfactualPredictive", "QueryResult", "counterfactual_function", "query"]

ENOUGH = 100  # draws; a smaller effective sample size warns if less than a tenth is left of them


def query(
    model: Model,
    of: str,
    *,
    do: Mapping[str, Action] | None = None,
    given: Mapping[str, float | Tensor] | None = None,
    guide: Model | None = None,
    posterior_samples: Values | None = None,
    num_samples: int = 1000,
    parallel: bool = True,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    graph: ADMG | Literal["program"] | None = None,
    allow_unidentified: bool = False,
) -> QueryResult:
    r"""Ask about one site: what is, what would be if, or what would have been.

    ==============  =======================  =========================================
    rung            asked by                 answer
    ==============  =======================  =========================================
    association     neither, or ``given``    :math:`p(y \mid e)`
    intervention    ``do``                   :math:`p(y \mid do(x))`
    counterfactual  ``do`` and ``given``     :math:`p(y_x \mid e)`: abduction, action, prediction
    ==============  =======================  =========================================

    Evidence always speaks of the factual world, so it may well name the target of ``do`` (the
    effect on the treated). What the program observes itself, by ``obs=``, is evidence too. To
    condition on what an intervention brings about, hand over the intervened program:
    ``query(pyro_causal.do(model, {"x": 1.0}), "y", given={"z": 0.0})``.

    Sites that the evidence leaves open come from ``guide`` or ``posterior_samples``, which are
    taken at their word; else prior draws are weighed by the evidence, each unit of a plate apart
    where the program lets it. If nothing is left open, neither site nor noise, one draw is exact.

    With a ``graph``, the answer has to follow from the distribution of what is recorded, whatever
    the mechanisms and hidden causes. Every combination of recorded values is taken to occur.

    - ``"program"``: what the program observes is recorded, or all sites if it observes none. A
      conditioned program tells one unit's evidence, and the data is taken to record what is asked:
      other open sites that the query names count, too. But auxiliary sites, and those that a guide
      or posterior samples stand for, stay hidden even if they are named.
    - An ADMG is taken at its word: its nodes are recorded, and its edges are not compared with the
      program, nor are factors.
    - What the program computes (`pyro.deterministic`, Delta) has no noise of its own. It is passed
      over unless it is named; if ``do`` sets it, its causes count as hidden.
    - A :class:`pyro_causal.soft` target must not have hidden causes (of its own, either; with an
      ADMG, any hidden site before it may be one), nor, given evidence on it or its descendants, be
      discrete or a vector.

    **Arguments**

    - ``of``: the name of a site.
    - ``do``: a joint intervention, as in :func:`pyro_causal.do`.
    - ``given``: values of sites, that broadcast over their plates.
    - ``guide``, ``posterior_samples``, ``num_samples``, ``parallel``: as in
      :class:`CounterfactualPredictive`.
    - ``args``, ``kwargs``: the arguments of the model and the guide. A guide that serves any
      evidence takes it here; what the program then observes need not be in ``given``.
    - ``graph``: check first whether the data can tell: an ADMG of what is recorded, or
      ``"program"``, which reads it off by :func:`pyro_causal.causal_graph`.
    - ``allow_unidentified``: answer all the same, by the program's mechanisms, and label the
      result.

    **Raises** :class:`~pyro_causal.graph.Unidentifiable`: the graph does not allow the answer; it
    names the hidden path. ``ValueError``, ``TypeError``, before any long work: a name that no site
    bears; a graph with a node that is no site, or without a site of the query, or a program
    intervened on in its place; a factor that selects units by what is recorded;
    evidence or an action of the wrong shape, dtype or device, NaN or outside of the support;
    evidence on a site that the program computes, or sets by a ``do`` around it (evidence that
    contradicts a ``do``), or observes otherwise; evidence that no draw makes possible.

    **Warns** ``UserWarning``: few effective draws are left; a guide leaves sites to the prior; a
    guide draws evidence, since it was not told: it takes it as its argument, see ``args``.

    **References** Pearl 2009, Causality, sections 1.4 and 7.1.

    **Example** What would this unit's y have been at h = 2?

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> from pyro_causal.queries import query
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     h = pyro.sample("h", dist.Normal(0.5 * x, 1.0))
    ...     return pyro.sample("y", dist.Normal(0.7 * x + 0.4 * h, 1.0))
    >>> answer = query(model, "y", do={"h": 2.0}, given={"x": 0.5, "h": 1.0, "y": 1.5})
    >>> print(f"{float(answer):.2f}", answer.rung)
    1.90 counterfactual
    """
    check_sources(guide, posterior_samples, num_samples)
    action = check_actions(do or {})
    sites, evidence = observe_once(model, given or {}, args, kwargs)
    require_sites([of], variables(sites), "the query")
    check_targets(action, sites)
    number = check_draws(posterior_samples or {}, sites) or num_samples
    particles = Particles(number, parallel, args, kwargs)
    question = Question(of, action, list(evidence), sites)
    drawn = partial(_drawn, sites, particles, guide, posterior_samples)
    verdict = judge(graph, question, model, particles, drawn, lenient=allow_unidentified)
    program = poutine.condition(model, evidence) if evidence else model
    source, latents, weights = _abduct(program, sites, of, particles, guide, posterior_samples)
    rung, draws, exact, conventions = _predict(program, question, particles, guide, latents)
    result = QueryResult(
        of=of,
        rung=rung,
        do=action,
        given=evidence,
        draws=draws,
        weights=_weights(weights, draws, sites[of]),
        source="exact" if exact else source,
        conventions=conventions,
        seed=torch.initial_seed(),
        versions=_versions(),
        **verdict._asdict(),
    )
    _warn_of_few(result)
    return result


def counterfactual_function(
    model: Model,
    *,
    guide: Model | None = None,
    arguments: Callable[[Values], Sequence[Any]] = lambda evidence: (),
) -> Callable[[Values, Mapping[str, Action]], dict[str, Tensor]]:
    """A model as a function of evidence and action, which is what metrics take.

    Each call abducts anew, with one draw of what the evidence leaves open.

    **Shapes** The function maps evidence ``{site: [*plates, *event]}`` and an action, as in
    :func:`pyro_causal.do`, to the values of all sites in the counterfactual world, in these shapes.

    **Arguments** ``guide``: draws open sites, as in :class:`CounterfactualPredictive`;
    ``arguments``: maps the evidence to the positional arguments of model and guide, for a guide
    that takes it: ``lambda evidence: (evidence,)``.

    **Warns** ``UserWarning``, of the function: a guide draws evidence, since it was not told.

    **Example**

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_causal.metrics import composition
    >>> from pyro_causal.queries import counterfactual_function
    >>> def model(units):
    ...     with pyro.plate("units", units):
    ...         x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...         return pyro.sample("y", dist.Normal(2 * x, 1.0))
    >>> sound = counterfactual_function(model, arguments=lambda evidence: (len(evidence["x"]),))
    >>> evidence = {"x": torch.zeros(2), "y": torch.tensor([1.0, 2.0])}
    >>> sound(evidence, {"x": 1.0})["y"]
    tensor([3., 4.])
    >>> composition(sound, evidence, targets=["x"])["y"]
    tensor([[0., 0.]])
    """

    def counterfactual(evidence: Values, action: Mapping[str, Action]) -> dict[str, Tensor]:
        observed = poutine.condition(model, dict(evidence))
        draws = CounterfactualPredictive(observed, [action], guide=guide)(*arguments(evidence))
        return {name: value[0, 1] for name, value in draws.items()}

    return counterfactual


def _drawn(
    sites: Sites, particles: Particles, guide: Model | None, latents: Values | None
) -> set[str]:
    """The sites that a guide or posterior samples stand for."""
    if guide is None:
        return set(latents or {})
    with undisturbed(guide):  # so that a graph does not change the draws
        return set(open_values(trace_once(guide, particles.args, particles.kwargs), sites))


def _abduct(
    program: Model,
    sites: Sites,
    of: str,
    particles: Particles,
    guide: Model | None,
    latents: Values | None,
) -> tuple[str, Values | None, Tensor | None]:
    """Where open sites come from, their draws unless a guide makes them, unequal weights if any."""
    if guide is not None or latents is not None:
        warn_of_prior(sites, particles, guide, latents)
        return "from the guide" if latents is None else "from posterior_samples", latents, None
    if doubtful_sites(sites):
        return "from the prior, weighed by the evidence", *abduce(program, sites, of, particles)
    if open_sites(sites):
        return "from the program", None, None
    return "of the noise, given the evidence", None, None


def _predict(
    program: Model,
    question: Question,
    particles: Particles,
    guide: Model | None,
    latents: Values | None,
) -> tuple[str, Tensor, bool, dict[str, str]]:
    """The rung, the draws there, whether they are one exact value, and what conventions they use.

    If nothing is left open, one draw is enough, unless the noise of discrete sites is drawn.
    """
    action, sites = question.do, question.sites
    known = any(map(is_evidence, sites.values()))
    rung = "association" if not action else "counterfactual" if known else "intervention"
    if rung == "intervention":
        program = handlers.do(program, action)
    actions = [action] if rung == "counterfactual" else []
    draw = partial(
        draw_worlds, program, actions, sites, [question.of], guide=guide, latents=latents
    )
    settled = not open_sites(sites) and all(map(_is_fixed, action.values()))
    values, reached = draw(replace(particles, number=1) if settled else particles)
    conventions = _conventions(reached, sites, action)
    if settled and conventions:
        values, _ = draw(particles)
    draws = values[question.of][:, -1]
    return rung, draws, settled and len(draws) == 1, conventions


def _warn_of_few(result: QueryResult) -> None:
    number = len(result.draws)
    if result.ess < min(ENOUGH, number / 10):
        warnings.warn(
            f"Only {result.ess:.1f} of {number} draws from the prior are effective under the "
            "evidence: the answer is unreliable. Pass a guide, or raise num_samples.",
            stacklevel=3,
        )


def _is_fixed(action: Action) -> bool:
    """Whether an action cannot draw anything (a function might)."""
    return is_hard(action) or isinstance(action, soft | Mapping)


def _weights(weights: Tensor | None, draws: Tensor, site: Site) -> Tensor:
    """Weights that broadcast against the draws, of their dtype if they are real."""
    dtype = draws.dtype if draws.is_floating_point() else torch.get_default_dtype()
    if weights is None:
        shape = (len(draws),) + (1,) * (draws.dim() - 1)
        return torch.full(shape, 1 / len(draws), dtype=dtype, device=draws.device)
    return weights_at(weights, site).to(dtype)


def _conventions(
    reached: Collection[str], sites: Sites, action: Mapping[str, Action]
) -> dict[str, str]:
    """How the noise of each discrete site that an action reaches is drawn given its value."""
    mechanisms = {
        n: sites[n]["fn"] for n in sites if n in reached and not draws_afresh(action.get(n))
    }
    return {name: _convention(fn) for name, fn in mechanisms.items() if is_discrete(fn)}


def _convention(fn: Any) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    classes = dist.Bernoulli, dist.Categorical, dist.OneHotCategorical
    if isinstance(fn, classes) and not isinstance(fn, dist.OrderedLogistic):
        return "Gumbel-max"
    return "uniform within the step of the distribution function"


def _versions() -> dict[str, str]:
    package = sys.modules[__package__]  # an import would be a cycle
    return {
        "pyro_causal": package.__version__,
        "pyro": pyro.__version__,
        "torch": torch.__version__,
    }
