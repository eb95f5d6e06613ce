"""Evidence lower bounds: Pyro's, with what methods need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn
from torch.distributions import kl_divergence

__all__ = ["MeanFieldELBO"]


class MeanFieldELBO(TraceMeanField_ELBO):
    r"""The evidence lower bound with the divergence of latent sites weighed by a factor.

    .. math:: E_q \log p(x \mid z) - \beta \, \mathrm{KL}(q(z) \,\|\, p(z))

    The divergence is in closed form where torch knows one. With :math:`\beta = 1` this is
    ``TraceMeanField_ELBO``; a larger :math:`\beta` makes latents dearer, so that they leave to
    the parents of a variable what the parents can tell. As a module, ``loss(model, guide)`` holds
    the parameters of the modules that a bound ``model`` and ``guide`` belong to, for torch
    optimisers and distributed training.

    **Arguments**: ``beta``, in training; a loss that is only evaluated is the bound itself. Others
    as ``TraceMeanField_ELBO``.

    **References**: *beta-VAE: learning basic visual concepts with a constrained variational
    framework*, https://openreview.net/forum?id=Sy2fzU9gl, equation 4.
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

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        if self.beta != 1:
            excess = (self.beta - 1) * _divergence(model_trace, guide_trace)
            loss, surrogate = loss + excess.item(), surrogate + excess
        return loss, surrogate


def _divergence(model_trace: Any, guide_trace: Any) -> Tensor:
    """The divergence of all latent sites, with their scales and masks."""
    total = torch.zeros(())
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or name not in guide_trace.nodes:
            continue
        guide_site = guide_trace.nodes[name]
        try:
            kl = kl_divergence(guide_site["fn"], site["fn"])
        except NotImplementedError:
            total = total + guide_site["log_prob_sum"] - site["log_prob_sum"]
        else:
            total = total + scale_and_mask(kl, guide_site["scale"], guide_site["mask"]).sum()
    return total
