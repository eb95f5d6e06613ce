"""Where a computation stopped being finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_causal.infer.checkpoint import rng_scope

__all__ = ["count_bad", "first_bad_site"]


def first_bad_site(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rng: Mapping[str, Any],
    particles: int = 1,
) -> str | None:
    """Repeat a step from its random state, and describe the first site that is not finite.

    Guide, then model, in program order; validation is off, so that a distribution with bad
    parameters becomes a site too. ``None`` if all sites are finite.
    """
    with rng_scope(rng), torch.no_grad(), pyro.validation_enabled(False):
        for _ in range(particles):
            guide_trace = _trace(guide, args, kwargs)
            model_trace = _trace(poutine.replay(model, trace=guide_trace), args, kwargs)
            for trace in (guide_trace, model_trace):
                for name, site in trace.nodes.items():
                    if fault := _fault(trace, name, site):
                        return f"At site '{name}', {fault}"
    return None


def _trace(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace a program as far as it runs."""
    with poutine.trace() as tracer, contextlib.suppress(Exception):
        fn(*args, **kwargs)
    return tracer.trace


def _fault(trace: Any, name: str, site: Any) -> str | None:
    """Describe what is not finite at a site."""
    if site["type"] == "param":
        return _count(
            "the parameter",
            site["value"],
            "An earlier gradient was not finite: look for a root, logarithm or division at zero.",
        )
    if site["type"] != "sample" or not isinstance(site["value"], Tensor):
        return None
    with contextlib.suppress(Exception):
        trace.compute_log_prob(site_filter=lambda other, _: other == name)
    density = _count(
        "the log-density",
        site.get("log_prob", site["value"]),
        "Check that its values lie in the support and that its scale is bounded away from zero; "
        "lower the learning rate or set clip_norm.",
    )
    delta = getattr(site["fn"], "base_dist", site["fn"])
    if density or isinstance(delta, dist.Delta):
        value = _count(
            "the value",
            site["value"],
            "Check the data and what this site is computed from; lower the learning rate or set "
            "clip_norm.",
        )
        return value or density
    return None


def _count(what: str, tensor: Tensor, remedy: str) -> str | None:
    bad = count_bad(tensor)
    return bad and f"{what} is not finite: expected numbers, got {bad}. {remedy}"


def count_bad(tensor: Tensor) -> str | None:
    """Say which value that is no finite number a tensor holds, and how often."""
    bad = tensor[~tensor.isfinite()]
    if not bad.numel():
        return None
    return f"{float(bad[0])} (in {bad.numel()} of {tensor.numel()} entries)"
