"""Distribution functions of the one-dimensional families, continuous and counting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial, singledispatch
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.nn.functional import logsigmoid
from torch.special import log_ndtr

from pyro_causal._quantile import Law
from pyro_causal._tails import (
    LogTails,
    asymmetric_laplace_tails,
    beta_tails,
    continuous_bernoulli_tails,
    exponential_tails,
    gamma_tails,
    gumbel_tails,
    kumaraswamy_tails,
    log1mexp,
    log1p_ratio,
    log_angle,
    skew_logistic_tails,
    soft_asymmetric_laplace_tails,
    soft_laplace_tails,
    student_tails,
    von_mises_tails,
)

__all__ = [
    "COUNTS",
    "RESIDUAL",
    "SCORED",
    "TRANSFORMED",
    "Family",
    "Parameters",
    "cdf",
    "log_odds",
    "log_probs",
    "von_mises_law",
]

Parameters = Callable[[Any], tuple[Any, ...]]


class Family(NamedTuple):
    """A location-scale family with shape parameters.

    - ``parameters(d)``: the location, the scale, then the shapes.
    - ``tails(z, *shapes)``: the log tails of ``z = (x - loc) / scale``.
    - ``support``: of ``z``, a key of `CHARTS`.
    """

    parameters: Parameters
    tails: Callable[..., LogTails]
    support: str = "real"


CHARTS: Mapping[str, Callable[[Tensor], Tensor]] = {  # from the real line, tails to scale
    "real": lambda t: t.clamp(-690.0, 690.0).sinh(),
    "positive": lambda t: t.clamp(-690.0, 690.0).exp(),
    "unit": torch.sigmoid,
    "circle": lambda t: 2 * t.clamp(-690.0, 690.0).sinh().atan(),
}
BOUNDS: Mapping[str, tuple[float, float]] = {  # values on the boundary count as next to it
    "real": (-1e150, 1e150),
    "positive": (1e-300, 1e300),
    "unit": (1e-300, 1 - 2**-53),
    "circle": (-math.pi * (1 - 2**-52), math.pi * (1 - 2**-52)),
}


def _flip(tails: LogTails) -> LogTails:
    return tails[1], tails[0]


def _loc_scale(d: Any) -> tuple[Any, ...]:
    return d.loc, d.scale


# The standardised residual follows the standard law of the family, which is parameter-free.
RESIDUAL: Mapping[type[td.Distribution], Family] = {
    td.Normal: Family(_loc_scale, lambda z: (log_ndtr(z), log_ndtr(-z))),
    td.Laplace: Family(_loc_scale, lambda z: asymmetric_laplace_tails(z, torch.ones_like(z))),
    td.Cauchy: Family(_loc_scale, lambda z: (log_angle(-z), log_angle(z))),
    td.Gumbel: Family(_loc_scale, gumbel_tails),
    td.HalfNormal: Family(
        lambda d: (0.0, d.scale),
        lambda z: ((z / math.sqrt(2)).erf().log(), log_ndtr(-z) + math.log(2)),
        "positive",
    ),
    td.HalfCauchy: Family(
        lambda d: (0.0, d.scale),
        lambda z: (log_angle(1 / z) + math.log(2), log_angle(z) + math.log(2)),
        "positive",
    ),
    td.Exponential: Family(lambda d: (0.0, d.rate.reciprocal()), exponential_tails, "positive"),
    td.Uniform: Family(
        lambda d: (d.low, d.high - d.low), lambda z: (z.log(), (-z).log1p()), "unit"
    ),
    LogitRelaxedBernoulli: Family(
        lambda d: (d.logits / d.temperature, d.temperature.reciprocal()),
        lambda z: (logsigmoid(z), logsigmoid(-z)),
    ),
    dist.Logistic: Family(_loc_scale, lambda z: (logsigmoid(z), logsigmoid(-z))),
    dist.SoftLaplace: Family(_loc_scale, soft_laplace_tails),
}

# The law of the residual depends on shape parameters: the noise is its standard normal score.
SCORED: Mapping[type[td.Distribution], Family] = {
    td.Gamma: Family(
        lambda d: (0.0, d.rate.reciprocal(), d.concentration), gamma_tails, "positive"
    ),
    td.Beta: Family(
        lambda d: (0.0, 1.0, d.concentration1, d.concentration0),
        lambda z, a, b: beta_tails(z / (1 - z), a, b),
        "unit",
    ),
    td.FisherSnedecor: Family(
        lambda d: (0.0, d.df2 / d.df1, d.df1 / 2, d.df2 / 2), beta_tails, "positive"
    ),
    td.StudentT: Family(lambda d: (d.loc, d.scale, d.df), student_tails),
    td.Kumaraswamy: Family(
        lambda d: (0.0, 1.0, d.concentration1, d.concentration0), kumaraswamy_tails, "unit"
    ),
    td.ContinuousBernoulli: Family(
        lambda d: (0.0, 1.0, d.logits), continuous_bernoulli_tails, "unit"
    ),
    dist.AsymmetricLaplace: Family(
        lambda d: (d.loc, d.scale, d.asymmetry), asymmetric_laplace_tails
    ),
    dist.SoftAsymmetricLaplace: Family(
        lambda d: (d.loc, d.scale, d.asymmetry, d.softness), soft_asymmetric_laplace_tails
    ),
    dist.SkewLogistic: Family(lambda d: (d.loc, d.scale, d.asymmetry), skew_logistic_tails),
}

# Families whose noise has another closed form; as parts of mixtures they need these.
TRANSFORMED: dict[type[td.Distribution], Family] = {
    td.LogNormal: Family(
        lambda d: (0.0, d.loc.exp(), d.scale),
        lambda z, scale: (log_ndtr(z.log() / scale), log_ndtr(-z.log() / scale)),
        "positive",
    ),
    td.Weibull: Family(
        lambda d: (0.0, d.scale, d.concentration),
        lambda z, k: exponential_tails((k * z.log()).clamp(-600.0, 600.0).exp()),
        "positive",
    ),
    td.Pareto: Family(
        lambda d: (0.0, d.scale, d.alpha),
        lambda z, alpha: exponential_tails(alpha * z.clamp(min=1.0).log()),
        "positive",
    ),
    td.InverseGamma: Family(
        lambda d: (0.0, d.rate, d.concentration),
        lambda z, a: _flip(gamma_tails(1 / z, a)),
        "positive",
    ),
}
if hasattr(td, "GeneralizedPareto"):  # of recent releases of torch
    TRANSFORMED[td.GeneralizedPareto] = Family(
        lambda d: (d.loc, d.scale, d.concentration),
        lambda z, c: exponential_tails(z * log1p_ratio(c * z)),
        "positive",
    )

COUNTS: tuple[type[td.Distribution], ...] = (
    td.Poisson,
    td.Binomial,
    td.NegativeBinomial,
    td.Geometric,
    dist.GammaPoisson,
    dist.OrderedLogistic,
    dist.ZeroInflatedDistribution,
)


@singledispatch
def cdf(d: td.Distribution) -> Law:
    """The distribution function of a one-dimensional `d`; a count's ``Law`` has no chart."""
    raise TypeError(f"No distribution function is known for '{type(d).__name__}'.")


def _family_law(family: Family, d: td.Distribution) -> Law:
    values = family.parameters(d)

    def tails(x: Tensor, loc: Tensor, scale: Tensor, *shapes: Tensor) -> LogTails:
        z = (x - loc) / scale
        return family.tails(z.clamp(*BOUNDS[family.support]), *shapes)

    def chart(t: Tensor, loc: Tensor, scale: Tensor, *shapes: Tensor) -> Tensor:
        return loc + scale * CHARTS[family.support](t)

    parameters = tuple(torch.as_tensor(v).double() for v in values)
    return Law(tails, parameters, chart, values[-1].dtype)


def von_mises_law(d: Any) -> Law:
    """The law of the angle from ``d.loc``; it ends opposite, so mixtures of such laws have none."""
    family = Family(lambda d: (0.0, 1.0, d.concentration), von_mises_tails, "circle")
    return _family_law(family, d)


for _table in (RESIDUAL, SCORED, TRANSFORMED):
    for _type, _family in _table.items():
        cdf.register(_type)(partial(_family_law, _family))


def _ends(support: Any) -> tuple[Tensor, Tensor]:
    """The ends of a support, where values beyond the reach of float64 come to lie."""
    ends = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    low, high = (torch.as_tensor(end, dtype=torch.float64).detach() for end in ends)
    return low, high


@cdf.register(dist.FoldedDistribution)
def _(d: Any) -> Law:
    base = cdf(d.base_dist)
    end = torch.maximum(*(end.abs() for end in _ends(d.base_dist.support)))

    def tails(x: Tensor, *parameters: Tensor) -> LogTails:
        (right_cdf, right_sf), (left_cdf, _) = (base.tails(v, *parameters) for v in (x, -x))
        log_cdf = right_cdf + log1mexp((left_cdf - right_cdf).clamp(max=-1e-300))
        return log_cdf, torch.logaddexp(right_sf, left_cdf)

    return base._replace(tails=tails, chart=lambda t, *_: CHARTS["positive"](t).minimum(end))


@cdf.register(td.MixtureSameFamily)
def _(d: Any) -> Law:
    parts = cdf(d.component_distribution)
    weights = d.mixture_distribution.logits.double()
    low, high = _ends(d.component_distribution.support)

    def tails(x: Tensor, weights: Tensor, *parameters: Tensor) -> LogTails:
        log_cdf, log_sf = parts.tails(x.unsqueeze(-1), *parameters)
        return (weights + log_cdf).logsumexp(-1), (weights + log_sf).logsumexp(-1)

    def chart(t: Tensor, *_: Tensor) -> Tensor:
        x = CHARTS["real"](t).unsqueeze(-1).maximum(low).amin(-1)
        return x.unsqueeze(-1).minimum(high).amax(-1)

    parameters = (weights, *parts.parameters)
    return Law(tails, parameters, None if parts.chart is None else chart, parts.dtype)


def log_probs(d: Any) -> Tensor:
    """Log probabilities of a categorical `d`; ``d.logits`` knows no class of probability zero."""
    d = getattr(d, "_categorical", d)
    logits: Tensor = d.logits if _has_logits(d) else d.probs.log()
    return logits


def log_odds(d: Any) -> Tensor:
    """Log odds of a Bernoulli or Binomial `d`; infinite for probabilities zero and one."""
    logits: Tensor = d.logits if _has_logits(d) else d.probs.logit()
    return logits


def _has_logits(d: Any) -> bool:
    return vars(d).get("logits") is d._param


def _count_law(
    tails: Callable[..., LogTails], parameters: tuple[Tensor, ...], dtype: torch.dtype
) -> Law:
    def above_zero(k: Tensor, *parameters: Tensor) -> LogTails:
        log_cdf, log_sf = tails(k.clamp(min=0.0), *parameters)
        return torch.where(k < 0, -math.inf, log_cdf), torch.where(k < 0, 0.0, log_sf)

    return Law(above_zero, tuple(p.double() for p in parameters), None, dtype)


@cdf.register(td.Poisson)
def _(d: Any) -> Law:
    def tails(k: Tensor, rate: Tensor) -> LogTails:
        return _flip(gamma_tails(rate.clamp(min=1e-300), k + 1))

    return _count_law(tails, (d.rate,), d.rate.dtype)


def _failure_odds(log_odds: Tensor) -> Tensor:
    return (-log_odds).exp().clamp(1e-300, 1e300)


@cdf.register(td.Binomial)
def _(d: Any) -> Law:
    def tails(k: Tensor, n: Tensor, log_odds: Tensor) -> LogTails:
        below, above = beta_tails(_failure_odds(log_odds), (n - k).clamp(min=1.0), k + 1)
        return torch.where(k < n, below, 0.0), torch.where(k < n, above, -math.inf)

    logits = log_odds(d)
    return _count_law(tails, (d.total_count, logits), logits.dtype)


@cdf.register(td.NegativeBinomial)
def _(d: Any) -> Law:
    def tails(k: Tensor, r: Tensor, log_odds: Tensor) -> LogTails:
        return beta_tails(_failure_odds(log_odds), r.clamp(min=1e-12), k + 1)

    return _count_law(tails, (d.total_count, d.logits), d.logits.dtype)


@cdf.register(dist.GammaPoisson)
def _(d: Any) -> Law:
    def tails(k: Tensor, concentration: Tensor, rate: Tensor) -> LogTails:
        return beta_tails(rate, concentration, k + 1)

    return _count_law(tails, (d.concentration, d.rate), d.rate.dtype)


@cdf.register(td.Geometric)
def _(d: Any) -> Law:
    def tails(k: Tensor, logits: Tensor) -> LogTails:
        return exponential_tails((k + 1) * -logsigmoid(-logits))

    return _count_law(tails, (d.logits,), d.logits.dtype)


@cdf.register(dist.OrderedLogistic)
def _(d: Any) -> Law:
    def tails(k: Tensor, predictor: Tensor, cutpoints: Tensor) -> LogTails:
        shape = torch.broadcast_shapes(k.shape, predictor.shape)
        cuts = torch.nn.functional.pad(cutpoints, (0, 1), value=math.inf)
        index = k.long().clamp(max=cuts.shape[-1] - 1).expand(shape).unsqueeze(-1)
        cut = cuts.expand((*shape, -1)).gather(-1, index).squeeze(-1)
        return logsigmoid(cut - predictor), logsigmoid(predictor - cut)

    return _count_law(tails, (d.predictor, d.cutpoints), torch.int64)


@cdf.register(dist.ZeroInflatedDistribution)
def _(d: Any) -> Law:
    base = cdf(d.base_dist)
    if base.chart is not None:
        raise TypeError(f"Zero inflation of '{type(d.base_dist).__name__}' leaves no counts.")

    def tails(k: Tensor, gate: Tensor, *parameters: Tensor) -> LogTails:
        log_cdf, log_sf = base.tails(k, *parameters)
        stay = (-gate).log1p()
        return torch.logaddexp(gate.log(), stay + log_cdf), stay + log_sf

    # Reading the gate of a distribution given by its gate_logits would break its `expand`.
    gate = d.gate if "gate" in vars(d) else d.gate_logits.sigmoid()
    return _count_law(tails, (gate, *base.parameters), base.dtype)
