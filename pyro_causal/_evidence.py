"""Evidence: what is said about the factual world, checked, and what it says about open sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_causal._actions import require_sites
from pyro_causal._factual import Factual
from pyro_causal._particles import (
    Model,
    Particles,
    Site,
    Sites,
    align,
    deterministic,
    event_dim,
    plate_nesting,
    sample_sites,
    trace_once,
)

__all__ = [
    "Abduction",
    "abduce",
    "check_draws",
    "doubtful_sites",
    "is_evidence",
    "observe_once",
    "open_sites",
    "weights_at",
]


def is_evidence(site: Site) -> bool:
    """Whether a site of a plain run weighs the draws: observations and `pyro.factor`."""
    return bool(site["is_observed"]) and not deterministic(site)


def open_sites(sites: Sites) -> list[str]:
    """The sites that evidence leaves to be drawn."""
    return [name for name, site in sites.items() if not site["is_observed"]]


def observe_once(
    model: Model, given: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sites, dict[str, Tensor]]:
    """A plain run under evidence: its sites, and the evidence in their shapes and dtypes.

    **Raises** ``ValueError``, ``TypeError``: evidence that does not fit its site.
    """
    observer = _Observer(given)
    sites = trace_once(observer(model), args, kwargs)
    require_sites(given, sites, "the evidence")
    for name in observer.outside:
        support = sites[name]["fn"].support
        again = trace_once(_Observer(given)(model), args, kwargs)[name]["fn"].support
        if repr(support) == repr(again):  # else it depends on open sites: a draw may contain it
            raise ValueError(
                f"At site '{name}', evidence outside the support: expected values in {support}, "
                f"got {_show(given[name])}. Do check the units of the evidence."
            )
    return sites, observer.values


class _Observer(Messenger):
    """Condition a program, and check each piece of evidence against the site that it is about."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.given = given
        self.values: dict[str, Tensor] = {}
        self.outside: list[str] = []

    def _pyro_sample(self, msg: Site) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.given:
            return
        if deterministic(msg) or msg.get("_fixed"):
            raise _contradiction(name, "computes it, or sets it by a do around it")
        like = fn()
        value = _fit(self.given[name], name, like, fn.event_dim)
        if msg["is_observed"] and not bool((value == msg["value"]).all()):
            raise _contradiction(name, "observes another value")
        if not bool(_inside(fn, value).all()):
            self.outside.append(name)
        msg["value"], msg["is_observed"] = value, True
        self.values[name] = value


def _contradiction(name: str, how: str) -> ValueError:
    return ValueError(
        f"At site '{name}', evidence that contradicts the program: expected a site that is left "
        f"open, but the program {how}. Do drop one of the two, or hand the action over as do=, "
        "since evidence speaks of the factual world."
    )


def _fit(value: Any, name: str, like: Tensor, events: int) -> Tensor:
    """Evidence as a tensor of the shape, dtype and device of the site's value `like`."""
    if not isinstance(value, Tensor | Number):
        raise TypeError(
            f"At site '{name}', type of the evidence: expected a number or a tensor, got "
            f"{type(value).__name__}. Do wrap it in torch.as_tensor."
        )
    if isinstance(value, Tensor) or not torch.can_cast(torch.as_tensor(value).dtype, like.dtype):
        tensor = torch.as_tensor(value)
    else:
        tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"At site '{name}', dtype of the evidence: expected {like.dtype}, got {tensor.dtype}. "
            f"Do convert it with .to({like.dtype})."
        )
    if tensor.device != like.device:
        raise ValueError(
            f"At site '{name}', device of the evidence: expected {like.device}, got "
            f"{tensor.device}. Do move it with .to('{like.device}')."
        )
    if not _broadcasts(tensor.shape, like.shape, events):
        raise ValueError(
            f"At site '{name}', shape of the evidence: expected {tuple(like.shape)}, that is batch "
            f"{tuple(like.shape[: like.dim() - events])} and event "
            f"{tuple(like.shape[like.dim() - events :])}, got {tuple(tensor.shape)}. "
            "Do reshape it, or give the program a plate of its size."
        )
    if bool(tensor.isnan().any()):
        raise ValueError(
            f"At site '{name}', evidence: expected numbers, got NaN. Do drop the affected rows, "
            "or leave the site out of the evidence."
        )
    return tensor.expand(like.shape)


def _broadcasts(shape: torch.Size, target: torch.Size, events: int) -> bool:
    """Whether a value broadcasts over the batch of a site, without enlarging batch or event."""
    if len(shape) > len(target) or shape[len(shape) - events :] != target[len(target) - events :]:
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def _inside(fn: Any, value: Tensor) -> Tensor:
    """Where a value lies in the support, `[*batch]`; everywhere if the support is unknown."""
    try:
        inside: Tensor = fn.support.check(value)
    except NotImplementedError:
        return value.new_ones((), dtype=torch.bool)
    return inside


def _show(value: Any) -> str:
    value = torch.as_tensor(value)
    return f"{value.item():g}" if value.numel() == 1 else f"a tensor of shape {tuple(value.shape)}"


def check_draws(draws: Mapping[str, Tensor], sites: Sites) -> int | None:
    """Check posterior samples against the open sites of a program; return how many they are.

    **Raises** ``ValueError``: unknown or observed sites, unequal numbers or wrong shapes.
    """
    require_sites(draws, sites, "posterior_samples")
    number: int | None = None
    for name, value in draws.items():
        site = sites[name]
        if site["is_observed"]:
            raise ValueError(
                f"At site '{name}', posterior_samples: expected draws of open sites, got draws of "
                "one that the program observes or computes. Do drop it from posterior_samples."
            )
        expected = (len(value) if number is None and value.dim() else number, *site["value"].shape)
        if tuple(value.shape) != expected:
            raise ValueError(
                f"At site '{name}', shape of posterior_samples: expected {expected}, that is "
                f"[num_samples, *plates, *event], got {tuple(value.shape)}. Do stack one draw of "
                "every site per sample."
            )
        number = len(value)
    return number


def doubtful_sites(sites: Sites, covered: Collection[str] = ()) -> list[str]:
    """The open sites before the last piece of evidence, which may tell something about them."""
    names = list(sites)
    last = max((i for i, name in enumerate(names) if is_evidence(sites[name])), default=0)
    return [name for name in open_sites(sites) if name in names[:last] and name not in covered]


class Abduction(NamedTuple):
    """Weighted draws of the open sites given the evidence.

    **Shapes** every draw `[number, *plates, *event]`; `weights` `[number, *plates]`, with one axis
    per plate dim of the program, of size one where units are weighed together.
    """

    draws: dict[str, Tensor]
    weights: Tensor


def abduce(program: Model, sites: Sites, of: str, particles: Particles) -> Abduction:
    r"""Weigh prior draws of the open sites by the evidence.

    .. math:: w_s \propto \prod_{e} p(x_e \mid \mathrm{parents}_s)

    Units of a plate are weighed apart where the program lets it: where all open sites, all
    evidence that tells draws apart, and the site `of` stand in the plate.

    **Raises** ``ValueError``: evidence that no draw makes possible.
    """
    nesting, size = plate_nesting(sites), particles.size
    draws: dict[str, list[Tensor]] = {name: [] for name in open_sites(sites)}
    scores: dict[str, list[Tensor]] = {n: [] for n, site in sites.items() if is_evidence(site)}
    for trace in particles.traces(program, sites, dim=-1 - nesting):
        nodes = sample_sites(trace)
        for name, column in draws.items():
            column.append(align(nodes[name]["value"], sites[name], (size,), nesting))
        for name, column in scores.items():
            score = _score(nodes[name])
            column.append(score.reshape((1,) * (nesting + 1 - score.dim()) + score.shape))
    log_weights = _pool({name: torch.cat(s) for name, s in scores.items()}, sites, of)
    if bool(log_weights.amax(0).isneginf().any()):
        raise ValueError(
            f"The evidence has probability zero in all of {particles.number} draws: expected one "
            "that makes it possible. Do check the evidence, raise num_samples, or pass a guide."
        )
    weights = log_weights.softmax(0)
    return Abduction(
        {name: _revive(torch.cat(d), weights, sites[name]) for name, d in draws.items()},
        weights,
    )


def _score(site: Site) -> Tensor:
    """Log-density of the evidence at a site, minus infinity outside of the support."""
    fn, value = site["fn"], site["value"]
    if isinstance(fn, Factual) and fn.natural is not None:
        value = fn.natural
    inside = _inside(fn, value)
    if bool(inside.all()):
        score: Tensor = fn.log_prob(value)
    else:  # torch refuses to score these
        somewhere = inside.reshape(inside.shape + (1,) * fn.event_dim)
        score = fn.log_prob(torch.where(somewhere, value, fn()))
        score = score.masked_fill(~inside, -torch.inf)
    return cast(Tensor, scale_and_mask(score, site["scale"], site["mask"]))


def _pool(scores: Mapping[str, Tensor], sites: Sites, of: str) -> Tensor:
    """Sum the scores of all evidence, over all dims but the draws and the plates weighed apart."""
    telling = [name for name, score in scores.items() if bool((score != score[:1]).any())]
    apart = set.intersection(*(_plates(sites[name]) for name in [of, *telling, *open_sites(sites)]))
    total = torch.zeros(())
    for name, score in scores.items():
        if bool(score.isnan().any()):
            raise ValueError(
                f"At site '{name}', log-density of the evidence: expected numbers, got NaN. Do "
                "check the parameters of its distribution."
            )
        merged = [d for d in range(1, score.dim()) if d - score.dim() not in dict(apart).values()]
        total = total.to(score) + (score.sum(merged, keepdim=True) if merged else score)
    return total


def _plates(site: Site) -> set[tuple[str, int]]:
    """Name and dim of the plates, not subsampled, that the value of a site has an axis for."""
    shape = site["value"].shape
    batch = shape[: len(shape) - event_dim(site)]
    return {
        (frame.name, frame.dim)
        for frame in site["cond_indep_stack"]
        if frame.dim is not None
        and len(batch) >= -frame.dim
        and batch[frame.dim] == frame.size
        and frame.full_size in (None, frame.size)
    }


def weights_at(weights: Tensor, site: Site) -> Tensor:
    """View weights `[number, *plates]` so that they multiply draws `[number, *plates, *event]`."""
    events = event_dim(site)
    plates = site["value"].dim() - events
    return weights.reshape(-1, *weights.shape[weights.dim() - plates :], *(1,) * events)


def _revive(draws: Tensor, weights: Tensor, site: Site) -> Tensor:
    """Put the likeliest draw in place of those that the evidence excludes; the weight stays zero.

    What the program computes from an excluded draw need not be a number.
    """
    share = weights_at(weights, site)
    return torch.where(share > 0, draws, draws.take_along_dim(share.argmax(0, keepdim=True), 0))
