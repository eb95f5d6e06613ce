"""Draws of all sites in all worlds: the engine below queries and effects."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pyro.poutine.util import site_is_factor
from torch import Tensor

from pyro_causal import handlers
from pyro_causal._actions import Action, apply_action, check_actions, require_sites, soft
from pyro_causal._evidence import check_draws, doubtful_sites
from pyro_causal._factual import Factual
from pyro_causal._particles import (
    Model,
    Particles,
    Sites,
    align,
    open_values,
    plate_nesting,
    sample_sites,
    trace_once,
)

__all__ = [
    "CounterfactualPredictive",
    "Values",
    "check_sources",
    "check_targets",
    "draw_worlds",
    "variables",
    "warn_of_prior",
]

Values: TypeAlias = Mapping[str, Tensor]


class CounterfactualPredictive(torch.nn.Module):
    """Draw all sites in the factual world and in the world of each action, after `Predictive`.

    One draw is one state of affairs: its open sites and the noise of its observed sites are the
    same in all worlds. Observed sites have their observed values in the factual world.

    **Arguments**

    - ``model``: a Pyro program; evidence comes from its ``obs=`` or from ``poutine.condition``.
    - ``actions``: a list of joint interventions, each as in :func:`pyro_causal.do`.
    - ``guide``: a program that draws open sites, called with the arguments of the model.
    - ``posterior_samples``: or draws of them, each ``[num_samples, *plates, *event]``. Open sites
      that nothing covers come from the prior, with a warning if there is evidence after them.
    - ``num_samples``: the number of draws, unless ``posterior_samples`` tell it.
    - ``return_sites``: names of the sites to return; by default all.
    - ``parallel``: make all draws in one run, under a plate left of all others, so that the program
      must broadcast as under vectorised particles; or else one run per draw.

    **Shapes** Called with the arguments of the model, it returns ``{site: [num_samples,
    1 + len(actions), *plates, *event]}``, world 0 factual, also for sites that no action reaches.

    Draws carry no gradients.

    **Raises** ``ValueError``, ``TypeError``: names, actions or samples that do not fit the program.

    **Warns** ``UserWarning``: a guide draws what the program observes, since it was not told.

    **References** Pearl 2009, Causality, theorem 7.1.7.

    **Example** Two units, and two doses for each.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_causal.queries import CounterfactualPredictive
    >>> def model():
    ...     with pyro.plate("units", 2):
    ...         x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...         return pyro.sample("y", dist.Normal(2 * x, 1.0))
    >>> unit = {"x": torch.zeros(2), "y": torch.tensor([1.0, 2.0])}
    >>> observed = pyro.poutine.condition(model, unit)
    >>> CounterfactualPredictive(observed, [{"x": 1.0}, {"x": 3.0}])()["y"]
    tensor([[[1., 2.],
             [3., 4.],
             [7., 8.]]])
    """

    def __init__(
        self,
        model: Model,
        actions: Sequence[Mapping[str, Action]],
        *,
        guide: Model | None = None,
        posterior_samples: Values | None = None,
        num_samples: int = 1,
        return_sites: Sequence[str] | None = None,
        parallel: bool = True,
    ) -> None:
        super().__init__()
        check_sources(guide, posterior_samples, num_samples)
        self.model = model
        self.actions = [check_actions(action) for action in actions]
        self.guide = guide
        self.posterior_samples = posterior_samples
        self.num_samples = num_samples
        self.return_sites = return_sites
        self.parallel = parallel

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw, with the arguments of the model."""
        sites = trace_once(self.model, args, kwargs)
        names = variables(sites) if self.return_sites is None else list(self.return_sites)
        require_sites(names, variables(sites), "return_sites")
        for action in self.actions:
            check_targets(action, sites)
        number = check_draws(self.posterior_samples or {}, sites) or self.num_samples
        particles = Particles(number, self.parallel, args, kwargs)
        guide, latents = self.guide, self.posterior_samples
        warn_of_prior(sites, particles, guide, latents)
        values, _ = draw_worlds(
            self.model, self.actions, sites, names, particles, guide=guide, latents=latents
        )
        return values


def draw_worlds(
    program: Model,
    actions: Sequence[Mapping[str, Action]],
    sites: Sites,
    names: Collection[str],
    particles: Particles,
    *,
    guide: Model | None,
    latents: Values | None,
) -> tuple[dict[str, Tensor], set[str]]:
    """Values `[number, 1 + len(actions), *plates, *event]`, and the sites that differ by world."""
    nesting = plate_nesting(sites)
    in_worlds = handlers.worlds(program, list(actions)) if actions else program
    columns: dict[str, list[Tensor]] = {name: [] for name in names}
    reached: set[str] = set()
    for trace in particles.traces(in_worlds, sites, dim=-2 - nesting, guide=guide, latents=latents):
        nodes = sample_sites(trace)
        for name, column in columns.items():
            sizes = (particles.size, 1 + len(actions))
            column.append(align(nodes[name]["value"], sites[name], sizes, nesting))
        reached |= {n for n, s in nodes.items() if isinstance(s["fn"], Factual) and s["fn"].dims}
    return {
        name: torch.cat(column) if len(column) > 1 else column[0]
        for name, column in columns.items()
    }, reached


def variables(sites: Sites) -> list[str]:
    """The sites that have a value worth asking about."""
    return [name for name, site in sites.items() if not site_is_factor(site)]


def check_sources(guide: Model | None, posterior_samples: Values | None, number: int) -> None:
    """Refuse two sources of open sites, and no draws.

    **Raises** ``ValueError``.
    """
    if guide is not None and posterior_samples is not None:
        raise ValueError(
            "Open sites have two sources: expected a guide or posterior_samples, got both. Do pass "
            "one of them."
        )
    if number < 1:
        raise ValueError(f"`num_samples`: expected at least 1, got {number}.")


def check_targets(action: Mapping[str, Action], sites: Sites) -> None:
    """Try an action on the values of a plain run, unless it is a function: it may have effects."""
    require_sites(action, sites, "an intervention")
    for name, value in action.items():
        if not (callable(value) or isinstance(value, soft)):
            apply_action(value, name, sites[name]["fn"], sites[name]["value"])


def warn_of_prior(
    sites: Sites, particles: Particles, guide: Model | None, latents: Values | None
) -> None:
    """Warn of open sites that neither guide nor samples cover, though there is evidence on them."""
    covered = set(latents or {})
    if guide is not None:  # a first plain run also sets autoguides up
        covered |= set(open_values(trace_once(guide, particles.args, particles.kwargs), sites))
    if loose := doubtful_sites(sites, covered):
        warnings.warn(
            f"At site '{loose[0]}', no posterior: {', '.join(map(repr, loose))} come from the "
            "prior, as if the evidence said nothing about them. Pass a guide or posterior_samples "
            "that cover them, or ask query() with neither, which weighs prior draws.",
            stacklevel=4,
        )
