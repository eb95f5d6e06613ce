"""A mixture run in all its components at once, and what its sites say of each row."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Size, Tensor

from pyro_causal.infer._sticks import StickBreaking
from pyro_causal.infer._terms import closed_divergence

__all__ = ["PARTICLES", "Branches", "Particle", "site_of"]

PARTICLES = "num_particles_vectorized"  # Pyro's name for the plate of vectorised particles


class Branches(Messenger):
    """Gives the assignment of a mixture all its values at once, along one more axis.

    What was observed there is kept as ``labels``, and the site becomes a latent one. Without
    ``dim`` every row goes to the first component, for runs that only look at the sites.

    **Arguments**: ``assignment``, the name of the site; ``dim``, a batch dim left of all plates.

    **Raises**: ``ValueError`` if the site is not a ``Categorical``.
    """

    def __init__(self, assignment: str, *, dim: int | None = None) -> None:
        super().__init__()
        self.assignment = assignment
        self.dim = dim
        self.labels: Tensor | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.assignment:
            return
        fn = msg["fn"]
        if not isinstance(fn, torch.distributions.Categorical):
            raise ValueError(
                f"At site '{self.assignment}', the assignment: expected Categorical(weights), got "
                f"{type(fn).__name__}. Draw the component's index; give labels as obs, -1 where "
                "unknown, and no obs_mask."
            )
        self.labels = msg["value"] if msg["is_observed"] else None
        index = fn.enumerate_support(expand=False).flatten()
        if self.dim is None:
            msg["value"] = index[0].expand(fn.batch_shape)
        else:
            msg["value"] = index.reshape(-1, *[1] * (-1 - self.dim))
        msg["is_observed"], msg["done"] = False, True


def site_of(trace: Any, name: str, role: str) -> Any:
    """A site of a trace by its name.

    **Raises**: ``ValueError`` which lists the sites, and the nearest name.
    """
    if name not in trace.nodes:
        names = [n for n, site in trace.nodes.items() if site["type"] == "sample"]
        close = difflib.get_close_matches(name, names, 1)
        remedy = f"Did you mean '{close[0]}'?" if close else "Name that of the model."
        raise ValueError(
            f"No site '{name}' for the {role}: expected one of {', '.join(names)}. {remedy}"
        )
    return trace.nodes[name]


class Particle:
    """One joint run of guide and model, in all components.

    **Arguments**

    - ``model``, ``guide``: as they are called, with plates around them for vectorised particles.
    - ``nesting``: how many batch dims they use; that of the components is left of them.
    - ``kept``: a trace whose draws of rows are repeated.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        weights: str,
        assignment: str,
        nesting: int,
        kept: Any,
    ) -> None:
        self.weights, self.assignment, self.nesting = weights, assignment, nesting
        self.guide = poutine.trace(poutine.replay(guide, trace=kept)).get_trace(*args, **kwargs)
        drawn = site_of(self.guide, weights, "weights")
        self.mixture = drawn["infer"].get("mixture")
        closed = self.mixture is not None and self.mixture.expected is not None
        branches = Branches(assignment, dim=None if closed else -1 - nesting)
        replayed = poutine.replay(poutine.replay(model, trace=self.guide), trace=kept)
        self.model = poutine.trace(branches(replayed)).get_trace(*args, **kwargs)
        self.labels = branches.labels
        self.prior = site_of(self.model, weights, "weights")
        self.z = site_of(self.model, assignment, "assignment")
        self.posterior = drawn["fn"]
        self.closed = closed
        self._require_a_mixture(drawn)
        self._require_the_same_sites()
        if self.labels is not None:
            self._require_labels(self.labels)

    def subsamples(self) -> Any:
        """The draws of rows, as a trace."""
        kept = poutine.Trace()
        for name, site in self.model.nodes.items():
            if site_is_subsample(site):
                kept.add_node(name, **site)
        return kept

    def terms(self) -> tuple[list[Tensor], list[Tensor]]:
        """The terms of the bound, scaled and masked: those that vary over components, and others.

        The former have the shape of all plates after that of the components. Where the guide has a
        closed form of the former, what is observed in the rows is left out.
        """
        skipped = {self.weights, self.assignment}
        if self.closed:
            skipped |= {name for name, site in _drawn(self.model) if self._in_rows(site)}
        self.guide.compute_log_prob(site_filter=lambda name, _: name not in skipped)
        self.model.compute_log_prob(site_filter=lambda name, _: name not in skipped)
        order = {name: k for k, name in enumerate(self.guide.nodes)}
        branched: list[Tensor] = []
        others: list[Tensor] = []
        latest = 0
        for name, site in _drawn(self.model):
            if name in skipped - {self.weights}:
                continue
            if site["is_observed"]:
                term = site["log_prob"]
            else:
                # What the mixture's guide draws itself is independent of all other draws.
                own = "mixture" in (self.guide.nodes[name]["infer"] or {})
                term = self._minus_divergence(name, site, closed=own or order[name] > latest)
                latest = latest if own else max(latest, order[name])
            if is_validation_enabled() and "log_prob" in site:
                check_site_shape(site, self.nesting)
            varies = term.dim() > self.nesting
            (branched if varies else others).append(self._by_row(name, term) if varies else term)
        for name, site in _drawn(self.guide):
            if name not in self.model.nodes:  # auxiliary
                others.append(-site["log_prob"])
        return branched, others

    def expected(self, *args: Any, **kwargs: Any) -> Tensor:
        """The guide's closed form of the terms that vary over components, scaled."""
        values = self.aligned(self.mixture.expected(self.mixture.factor, *args, **kwargs))
        scaled: Tensor = values * self.z["scale"]
        return scaled

    def aligned(self, rows: Tensor) -> Tensor:
        """Values for each row and component, with the axis of components left of all plates.

        **Shapes**: ``[*rows, K]`` to ``[K, *plates]``.
        """
        return rows.movedim(-1, 0).reshape(
            rows.shape[-1], *[1] * (self.nesting - rows.dim() + 1), *rows.shape[:-1]
        )

    def _minus_divergence(self, name: str, site: Any, *, closed: bool) -> Tensor:
        """That of a latent site; at the draw, if it has no formula."""
        if closed and (kl := closed_divergence(self.guide.nodes[name], site)) is not None:
            return -kl
        for trace in (self.model, self.guide):
            trace.compute_log_prob(site_filter=lambda other, _: other == name)
        density: Tensor = site["log_prob"] - self.guide.nodes[name]["log_prob"]
        return density

    def _in_rows(self, site: Any) -> bool:
        return site["is_observed"] and {*self.z["cond_indep_stack"]} <= {*site["cond_indep_stack"]}

    def _by_row(self, name: str, term: Tensor) -> Tensor:
        """Sum a term over the plates within a row."""
        frames, inner = self.z["cond_indep_stack"], self.model.nodes[name]["cond_indep_stack"]
        if outside := {f.name for f in frames} - {f.name for f in inner}:
            raise ValueError(
                f"At site '{name}', it depends on '{self.assignment}' outside of its plate "
                f"'{min(outside)}': expected each row to depend on its own assignment. Put it into "
                "the plate."
            )
        dims = {*range(-self.nesting, 0)} - {f.dim for f in frames}
        return term.sum([*dims], keepdim=True) if dims else term

    def _require_a_mixture(self, drawn: Any) -> None:
        for owner, site in (("model", self.prior), ("guide", drawn)):
            if not isinstance(site["fn"], StickBreaking):
                raise ValueError(
                    f"At site '{self.weights}', the weights in the {owner}: expected a "
                    f"StickBreaking, got {type(site['fn']).__name__}. Give "
                    "StickBreaking.gem(concentration, truncation=K), and a guide of that class."
                )
        if plates := {f.name for f in self.prior["cond_indep_stack"]} - {PARTICLES}:
            raise ValueError(
                f"At site '{self.weights}', the weights are in the plate '{min(plates)}': expected "
                "one set of weights for all rows. Take it out of the plate."
            )
        if is_validation_enabled():
            w, probs = self.prior["value"], self.z["fn"].probs
            if probs.shape[-1] != w.shape[-1] or not torch.allclose(probs, w.to(probs), atol=1e-4):
                raise ValueError(
                    f"At site '{self.assignment}', the assignment: expected Categorical(weights) "
                    f"with the value of '{self.weights}', got other probabilities. Other weights "
                    "have no closed form here."
                )

    def _require_labels(self, labels: Tensor) -> None:
        """Whether labels are whole numbers [*rows] from -1, or probabilities [*rows, K]."""
        fn, K = self.z["fn"], self.prior["value"].shape[-1]
        soft = labels.is_floating_point()
        bounds = (0, 1) if soft else (-1, K - 1)
        rows = labels.shape[:-1] if soft else labels.shape
        fits = (labels.shape[-1:] == (K,) if soft else True) and _broadcasts(rows, fn.batch_shape)
        if not (fits and ((labels >= bounds[0]) & (labels <= bounds[1])).all()):
            raise ValueError(
                f"At site '{self.assignment}', the labels: expected whole numbers from -1 (unknown)"
                f" to {K - 1}, or probabilities, for rows {tuple(fn.batch_shape)}, got "
                f"{labels.dtype} of shape {tuple(labels.shape)} from {labels.min():g} to "
                f"{labels.max():g}. Number the components from 0, in integers."
            )

    def _require_the_same_sites(self) -> None:
        """Whether guide and model draw the same, and the guide with gradients."""
        latent = {name for name, site in _drawn(self.model) if not site["is_observed"]}
        if missing := sorted(latent - {*self.guide.nodes, self.assignment}):
            raise ValueError(
                f"At site '{missing[0]}', the guide has no such site: expected a factor of every "
                "latent. Add it to the guide, or observe it."
            )
        factors = {*self.mixture.frames} if self.closed else set()
        if fixed := sorted((factors - latent) & {*self.model.nodes}):
            raise ValueError(
                f"At site '{fixed[0]}', the model observes what the guide's closed form takes from "
                "a factor: expected a latent. Set the factor instead, or make the guide for the "
                "model as it is observed."
            )
        for name, site in _drawn(self.guide):
            if name == self.assignment:
                continue
            if name not in latent and not site["infer"].get("is_auxiliary"):
                raise ValueError(
                    f"At site '{name}', the guide draws what is no latent of the model: expected "
                    "the same sites. Block it in the guide too, or mark it is_auxiliary."
                )
            if not (site["fn"].has_rsample or isinstance(site["fn"], Delta)):
                raise ValueError(
                    f"At site '{name}', a draw of {type(site['fn']).__name__} in the guide has no "
                    "gradient: expected one with rsample. Take a DPMixtureGuide, or sum it out."
                )


def _broadcasts(shape: Size, to: Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False


def _drawn(trace: Any) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site
