"""Evidence lower bounds: Pyro's, with what methods need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.util import MultiFrameTensor, torch_item
from pyro.util import warn_if_nan
from torch import Tensor, nn
from torch.distributions import kl_divergence

__all__ = ["MeanFieldELBO"]


class MeanFieldELBO(Trace_ELBO):
    r"""The evidence lower bound with the divergence of latent sites weighed by a factor.

    .. math:: E_q \log p(x \mid z) - \beta \, \mathrm{KL}(q(z) \,\|\, p(z))

    The divergence of a site is in closed form where torch knows one and the guide draws all latent
    sites before it that the model has before it, as in a mean field; else it is estimated from the
    draws. Discrete latent sites are fine, too: their gradients are those of ``Trace_ELBO``.

    A larger :math:`\beta` makes latents dearer, so that they leave to the parents of a variable
    what the parents can tell. As a module, ``loss(model, guide)`` holds the parameters of the
    modules that a bound ``model`` and ``guide`` belong to, for torch optimisers and distributed
    training.

    **Arguments**: ``beta``, in training; a loss that is only evaluated (``loss.loss(...)``) is the
    bound itself. Others as ``Trace_ELBO``.

    **Raises**: ``ValueError`` if ``beta`` is not positive.

    **References**: *beta-VAE: learning basic visual concepts with a constrained variational
    framework*, https://openreview.net/forum?id=Sy2fzU9gl, equation 4; for the closed form, *Auto-
    encoding variational Bayes*, https://arxiv.org/abs/1312.6114, equation 7.
    """

    def __init__(self, *, beta: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if not beta > 0:
            raise ValueError(
                f"MeanFieldELBO: expected a positive beta, got {beta}. Give 1 or more."
            )
        self.beta = beta

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> ELBOModule:
        """Bind the loss to a model and a guide."""
        module = super().__call__(model, guide)  # type: ignore[arg-type]
        owners = {id(fn.__self__): fn.__self__ for fn in (model, guide) if hasattr(fn, "__self__")}
        for name, owner in zip(("method", "guide_method"), owners.values(), strict=False):
            if isinstance(owner, nn.Module):
                module.add_module(name, owner)
        return module

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Estimate the negative bound, whatever beta is."""
        loss = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            particle, _ = _losses(model_trace, guide_trace, beta=1.0)
            loss += particle / self.num_particles
        warn_if_nan(loss, "loss")  # type: ignore[call-overload]  # floats are fine
        return loss

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        return _losses(model_trace, guide_trace, beta=self.beta)


def _losses(model_trace: Any, guide_trace: Any, *, beta: float) -> tuple[float, Any]:
    """The loss, and what has its gradient."""
    order = {name: k for k, name in enumerate(guide_trace.nodes)}
    terms = []
    latest = 0
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample":
            continue
        term = site["log_prob"]
        if not site["is_observed"]:
            closed = order[name] > latest
            latest = max(latest, order[name])
            guide_site = guide_trace.nodes[name]
            term = -beta * _divergence(guide_site, site, closed=closed)
            site = guide_site
        terms.append((site["cond_indep_stack"], term))
    drawn = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
    for site in drawn:
        if site["name"] not in model_trace.nodes:  # auxiliary
            terms.append((site["cond_indep_stack"], -beta * _log_density(site)))
    bound = surrogate = sum(term.sum() for _, term in terms)
    for site in drawn:
        score = site["score_parts"].score_function
        if not is_identically_zero(score):
            gains = MultiFrameTensor(*((frames, term.detach()) for frames, term in terms))
            surrogate = surrogate + (gains.sum_to(site["cond_indep_stack"]) * score).sum()
    return -torch_item(bound), -surrogate


def _divergence(guide_site: Any, model_site: Any, *, closed: bool) -> Tensor:
    """The divergence of a latent site, in closed form or at the draw, for each row."""
    if closed:
        try:
            kl = kl_divergence(guide_site["fn"], model_site["fn"])
        except NotImplementedError:
            pass
        else:
            kl = scale_and_mask(kl, guide_site["scale"], guide_site["mask"])
            return torch.as_tensor(kl).expand(guide_site["fn"].batch_shape)
    density: Tensor = _log_density(guide_site) - model_site["log_prob"]
    return density


def _log_density(guide_site: Any) -> Tensor:
    """That of a draw of the guide, without a gradient where its expectation is zero."""
    density: Tensor = guide_site["log_prob"]
    reparametrised = not is_identically_zero(guide_site["score_parts"].entropy_term)
    return density if reparametrised else density.detach()
