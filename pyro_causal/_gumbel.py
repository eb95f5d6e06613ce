"""Exact posterior draws of the noise behind categories and binary values.

A category is the largest of ``logits + gumbels``, a binary value the side of ``logit + logistic``.

**References** Maddison, Tarlow & Minka 2014, "A* sampling", https://arxiv.org/abs/1411.0030,
section 3 (top-down construction).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from pyro_causal._tails import log1mexp

__all__ = [
    "gumbels_given_ratios",
    "gumbels_given_winner",
    "logistic_given_side",
    "side",
    "winner",
]


@torch.no_grad()
def gumbels_given_winner(logits: Tensor, won: Tensor) -> Tensor:
    """Standard Gumbels, one for each class, given which class wins.

    From the top down: the largest sum is a Gumbel itself, the others are Gumbels cut off there. An
    impossible class wins by an infinite Gumbel.

    **Shapes** `logits` [..., K] of log probabilities; `won` [...] of classes; result B + [K].
    """
    shape = torch.broadcast_shapes(logits.shape[:-1], won.shape) + logits.shape[-1:]
    logits, is_winner = logits.expand(shape), one_hot(won.long(), shape[-1]).bool()
    gumbels = -torch.empty_like(logits).exponential_().log()
    top = torch.where(is_winner, gumbels, 0.0).sum(-1, keepdim=True)
    u = torch.where(is_winner, top - logits, -torch.logaddexp(-gumbels, logits - top))
    # Rounding in logits + u may let a rival draw level: lift the winner above it by a few ulps.
    info = torch.finfo(u.dtype)
    rival = (logits + u).masked_fill(is_winner, -math.inf).amax(-1, keepdim=True)
    rival = rival.clamp(min=info.min / 4)
    margin = 4 * info.eps * (1 + rival.abs() + logits.abs())
    return torch.where(is_winner, torch.maximum(u, rival - logits + margin), u)


def winner(logits: Tensor, u: Tensor) -> Tensor:
    """The class that wins: **shapes** [..., K] and [..., K] to [...].

    An infinite Gumbel wins even where its logit is minus infinity, for argmax ranks NaN highest.
    """
    return (logits + u).argmax(-1)


@torch.no_grad()
def logistic_given_side(logits: Tensor, x: Tensor) -> Tensor:
    """Standard logistic noise given the side of ``-logits`` it is on (x = 1: above).

    **Shapes** `logits` and `x` broadcast.
    """
    sign = torch.where(x > 0.5, 1.0, -1.0).to(logits.dtype)
    odds = sign * logits  # of the side that came up
    info = torch.finfo(odds.dtype)
    log_uniform = -torch.empty_like(odds).exponential_().clamp(min=info.tiny)
    log_sf = log_uniform + logsigmoid(odds)
    margin = (4 * info.eps * odds.abs()).clamp(max=1.0) + info.tiny
    return sign * torch.maximum(log1mexp(log_sf) - log_sf, margin - odds)


def side(logits: Tensor, u: Tensor) -> Tensor:
    """One where ``logits + u`` is positive, else zero, in the dtype of `logits`."""
    return (torch.where(u.isinf(), u, logits + u) > 0).to(logits.dtype)


def gumbels_given_ratios(scores: Tensor, logits: Tensor) -> Tensor:
    """Standard Gumbels for which ``logits + gumbels`` is `scores` up to a common shift.

    With :math:`S = \\sum_k e^{-(\\text{score}_k - \\text{logit}_k)}`, the posterior of the shift is
    that of :math:`\\log S - \\log \\Gamma_K`, with a gamma variable of shape K.

    **Shapes** `scores` [..., K] and `logits` [..., K] broadcast.
    """
    gumbels = (scores - logits).clamp(min=-1e4)
    exponentials = torch.empty_like(gumbels).exponential_()
    total = (-gumbels).logsumexp(-1, keepdim=True)
    shift = total - exponentials.sum(-1, keepdim=True).log()
    return gumbels + shift.detach()
