"""A mixture of Gaussians with full covariances, as a start of richer mixtures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_causal.infer.priors import StickBreaking

__all__ = ["fit_gaussians", "responsibilities"]

FLOOR = 1e-3  # added to variances, where variables have variance one
STEPS = 60
ROWS = 4000  # of those whose component is unknown, for all but the last steps


def fit_gaussians(x: Tensor, allowed: Tensor, *, starts: int) -> list[Tensor]:
    """The responsibilities ``[N, K]`` of several fits, the most likely first.

    Each starts from rows that lie far apart, drawn with torch's global generator, and from the
    rows whose component is known.

    **Arguments**: ``x [N, d]``, standardised; ``allowed [N, K]``, booleans: components which a row
    may have.
    """
    fits = [_fit(x, allowed) for _ in range(starts)]
    return [q for q, _ in sorted(fits, key=lambda fit: -fit[1])]


def responsibilities(
    log_likelihood: Tensor, counts: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """Those of components ``[N, K]``, and the evidence of each row ``[N]``.

    Weights have their best factor under the prior of a Dirichlet process, in whose order larger
    components come first.
    """
    order = counts.argsort(descending=True, stable=True)
    weights = torch.zeros_like(counts)
    if len(counts) > 1:
        prior = StickBreaking.gem(counts.new_tensor(1.0), truncation=len(counts))
        weights[order] = prior.updated(counts[order]).expected_log_weights
    logits = (log_likelihood + weights).masked_fill(~allowed, -torch.inf)
    return logits.softmax(1), logits.logsumexp(1)


def _fit(x: Tensor, allowed: Tensor) -> tuple[Tensor, float]:
    known = allowed.sum(1) == 1
    some = (torch.rand(len(x), device=x.device) < ROWS / len(x)) | known
    q = _start(x[some], allowed[some])
    for _ in range(STEPS):
        q, _ = _step(x[some], q, x[some], allowed[some])
    q, _ = _step(x[some], q, x, allowed)
    q, evidence = _step(x, q, x, allowed)
    return q, float(evidence.mean())


def _step(x: Tensor, q: Tensor, rows: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Fit Gaussians to some rows, and explain the same or others."""
    counts = q.sum(0)
    safe = counts.clamp(min=1e-6)
    means = q.mT @ x / safe.unsqueeze(-1)
    second = (q.mT.unsqueeze(-2) * x.mT) @ x / safe[:, None, None]
    spread = second - means.unsqueeze(-1) * means.unsqueeze(-2)
    spread = spread + FLOOR * torch.eye(x.shape[1]).to(x)
    laws = MultivariateNormal(means, spread, validate_args=False)
    return responsibilities(laws.log_prob(rows.unsqueeze(1)), counts, allowed)


def _start(x: Tensor, allowed: Tensor) -> Tensor:
    """Every row to the nearest of centres that lie apart, among its components."""
    known = allowed.sum(1) == 1
    centres = torch.zeros(allowed.shape[1], x.shape[1]).to(x)
    distance = torch.full_like(x[:, 0], torch.inf)
    for k in range(len(centres)):
        rows = known & allowed[:, k]
        if rows.any():
            centres[k] = x[rows].mean(0)
        else:
            weight = torch.ones_like(distance) if distance.isinf().all() else distance
            centres[k] = x[int(torch.multinomial(weight.clamp(min=1e-12), 1))]
        distance = torch.minimum(distance, (x - centres[k]).square().sum(1))
    nearest = torch.cdist(x, centres).masked_fill(~allowed, torch.inf).argmin(1)
    return torch.nn.functional.one_hot(nearest, len(centres)).to(x)
