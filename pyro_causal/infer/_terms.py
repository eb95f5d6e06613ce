"""What the bounds share: divergences in closed form, and the modules behind a model and a guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn
from torch.distributions import kl_divergence

__all__ = ["binary_divergence", "closed_divergence", "with_owners"]


def binary_divergence(p: Tensor, q: Tensor) -> Tensor:
    """That of yes-no variables, from their logits, also where a probability rounds to 0 or 1."""
    present = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q))
    return present + (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))


def closed_divergence(guide_site: Any, model_site: Any) -> Tensor | None:
    """The divergence of a latent site, scaled and masked, where torch or Pyro know its formula.

    Not that of a ``Delta``: Pyro's leaves out its ``log_density``, by which automatic guides
    account for a change of variables.
    """
    if isinstance(guide_site["fn"], Delta):
        return None
    try:
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return None
    kl = torch.as_tensor(scale_and_mask(kl, guide_site["scale"], guide_site["mask"]))
    return kl.expand(torch.broadcast_shapes(kl.shape, guide_site["fn"].batch_shape))


def with_owners(module: ELBOModule, **methods: Callable[..., Any]) -> ELBOModule:
    """Add the modules that callables are, or are bound to, where they are no part yet."""
    for name, method in methods.items():
        owner = getattr(method, "__self__", method)
        if isinstance(owner, nn.Module) and owner not in [*module.modules()]:
            module.add_module(name, owner)
    return module
