"""Many draws of a program: all at once under a plate left of everything, or one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_causal._actions import require_sites

__all__ = [
    "Model",
    "Particles",
    "Site",
    "Sites",
    "align",
    "deterministic",
    "event_dim",
    "open_values",
    "plate_nesting",
    "sample_sites",
    "trace_once",
]

Model: TypeAlias = Callable[..., Any]
Site: TypeAlias = Any  # a node of a pyro.poutine.Trace
Sites: TypeAlias = dict[str, Site]


def trace_once(model: Model, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sites:
    """The sample sites of one plain run, hidden from handlers around the call."""
    with torch.no_grad(), poutine.block():
        return sample_sites(poutine.trace(model).get_trace(*args, **kwargs))


def sample_sites(trace: Trace) -> Sites:
    """The sample sites of a trace, those that subsample a plate left out."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def plate_nesting(sites: Sites) -> int:
    """How many batch dims a program uses."""
    used = [0]
    for site in sites.values():
        used.append(len(getattr(site["fn"], "batch_shape", ())))
        used += [-frame.dim for frame in site["cond_indep_stack"] if frame.dim is not None]
    return max(used)


def deterministic(site: Site) -> bool:
    """Whether the program computes the site: `pyro.deterministic`, or the target of a hard `do`."""
    return bool(site["infer"].get("_deterministic"))


def event_dim(site: Site) -> int:
    """The event dims of a site of a plain run."""
    length: int = site["value"].dim()
    declared: int = site["fn"].event_dim
    if deterministic(site) and declared == length:  # the default, whatever the plates
        plates = [-frame.dim for frame in site["cond_indep_stack"] if frame.dim is not None]
        return max(0, length - max(plates, default=0))
    return declared


def align(value: Tensor, site: Site, sizes: tuple[int, ...], nesting: int) -> Tensor:
    """Expand the value of a run with extra axes to the shape `[*sizes, *plates, *event]`.

    **Shapes** value: as in the plain run of `site`, or with all axes of `sizes` left of the
    `nesting` plates, or with all but the first.
    """
    shape = site["value"].shape
    if value.dim() > len(shape):
        if deterministic(site):
            lacks_first = value.shape[0] not in (1, sizes[0])
        else:
            lacks_first = value.dim() - site["fn"].event_dim < nesting + len(sizes)
        if lacks_first:
            value = value.unsqueeze(0)
        padding = value.dim() - len(sizes) - len(shape)
        value = value.expand(*sizes, *(1,) * padding, *shape)
        return value.reshape(*sizes, *shape)
    return value.expand(*sizes, *shape)


@dataclass(frozen=True)
class Particles:
    """How to draw: the number of draws, at once or one by one, and the arguments of the program."""

    number: int
    parallel: bool
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def size(self) -> int:
        """The number of draws in one trace."""
        return self.number if self.parallel else 1

    def traces(
        self,
        program: Model,
        sites: Sites,
        *,
        dim: int,
        guide: Model | None = None,
        latents: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Trace]:
        """Yield one trace of all draws, their axis at the batch dim `dim`, or else one per draw.

        **Arguments** `sites`: those of a plain run of the program; `latents`: draws of open sites,
        each `[number, *plates, *event]`; `guide`: draws them in the same run.
        """
        for i in range(1 if self.parallel else self.number):
            data = {
                name: _left_of_plates(draws, sites[name], dim) if self.parallel else draws[i]
                for name, draws in (latents or {}).items()
            }
            if guide is not None:
                data |= open_values(sample_sites(self._trace(guide, dim)), sites)
            yield self._trace(poutine.condition(program, data) if data else program, dim)

    def _trace(self, program: Model, dim: int) -> Trace:
        with torch.no_grad(), poutine.block(), poutine.trace() as tracer:
            if not self.parallel:
                program(*self.args, **self.kwargs)
                return tracer.trace
            try:
                with _ExpandEvidence(self.number, dim), pyro.plate("_draws", self.number, dim=dim):
                    program(*self.args, **self.kwargs)
            except Exception as error:
                error.add_note(
                    f"This run made {self.number} draws at once, along the batch dim {dim}. "
                    "If the program cannot broadcast over one more dim, pass parallel=False."
                )
                raise
        return tracer.trace


class _ExpandEvidence(Messenger):
    """Give observed values the axis of draws: what an action makes of them may differ by draw."""

    def __init__(self, number: int, dim: int) -> None:
        super().__init__()
        self.number = number
        self.dim = dim

    def _pyro_sample(self, msg: Site) -> None:
        value = msg["value"]
        if not msg["is_observed"] or value is None or deterministic(msg) or site_is_factor(msg):
            return
        padding = msg["fn"].event_dim - self.dim - 1 - value.dim()
        if padding >= 0:
            msg["value"] = value.expand(self.number, *(1,) * padding, *value.shape)


def _left_of_plates(value: Tensor, site: Site, dim: int) -> Tensor:
    """Move the axis of draws of `[number, *plates, *event]` to the batch dim `dim`."""
    plates = value.dim() - 1 - event_dim(site)
    return value.reshape(value.shape[:1] + (1,) * (-dim - 1 - plates) + value.shape[1:])


def open_values(guide: Sites, sites: Sites) -> dict[str, Tensor]:
    """What a guide says about the sites that a program leaves open.

    **Raises** ``ValueError``: the guide draws a site that the program does not have.

    **Warns** ``UserWarning``: the guide draws evidence, so it was not told of it.
    """
    named = {n: s for n, s in guide.items() if not s["infer"].get("is_auxiliary")}
    require_sites([n for n, s in named.items() if not deterministic(s)], sites, "the guide")
    shared = [n for n in named if n in sites]
    untold = [
        name
        for name in shared
        if sites[name]["is_observed"]
        and not named[name]["is_observed"]
        and not deterministic(sites[name])
    ]
    if untold:
        warnings.warn(
            f"At site '{untold[0]}', a guide that draws the evidence: expected one that draws what "
            f"the evidence leaves open, got one that was not told of {untold}. These draws are "
            "dropped, and its others may not be those of the posterior. Do hand the evidence to "
            "model and guide as their argument, such as query(..., args=(given,)), or take a "
            "guide without these sites.",
            stacklevel=2,
        )
    return {name: named[name]["value"] for name in shared if not sites[name]["is_observed"]}
