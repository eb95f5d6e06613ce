r"""Exogenous noise: what makes a distribution a mechanism.

A site's distribution `d` with parameters computed from its parents is a structural equation
:math:`x = f(\theta, u)` as soon as one says what the noise :math:`u` is, which has a law that the
parameters do not change. ``abduct(d, x)`` recovers the noise of a value, ``predict(d, u)`` is the
equation, and ``predict(d, abduct(d, x)) == x``.

.. csv-table:: The convention of each family
   :header: Families, Noise, Its law

   "Normal, NanMaskedNormal, Laplace, Cauchy, Logistic, SoftLaplace,
   Gumbel", "residual :math:`(x - \text{loc}) / \text{scale}`", "standard law of the family"
   "Exponential, Uniform, HalfNormal,
   HalfCauchy", ":math:`(x - \text{lower end}) / \text{scale}`", "standard law of the family"
   "Weibull", ":math:`k \log (x / \text{scale})`", "log of a unit exponential"
   "GeneralizedPareto", ":math:`\log (1 + c z) / c`, :math:`z` the residual", "unit exponential"
   "Gamma, Chi2, Beta, StudentT, FisherSnedecor, VonMises, Kumaraswamy, ContinuousBernoulli,
   AsymmetricLaplace, SoftAsymmetricLaplace, SkewLogistic; FoldedDistribution and
   MixtureSameFamily of scalars", "score :math:`\Phi^{-1}(F(x))`, in float64", "standard normal"
   "MultivariateNormal, LowRankMultivariateNormal and
   heirs", ":math:`L^{-1} (x - \text{loc})`, :math:`L` the Cholesky factor", "standard normal"
   "TransformedDistribution (LogNormal, LogisticNormal, InverseGamma, AffineBeta, Pareto, ...),
   zuko flows", "noise of the base at the inverse transform", "that of the base"
   "RelaxedBernoulli", "residual of the logit", "logistic"
   "RelaxedOneHotCategorical", "a Gumbel for each class, drawn given their differences", "Gumbel"
   "Categorical, OneHotCategorical", "a Gumbel for each class, drawn given which won", "Gumbel"
   "Bernoulli", "a logistic, drawn given the side of :math:`-\text{logit}`", "logistic"
   "Poisson, Binomial, Geometric, NegativeBinomial, GammaPoisson, OrderedLogistic; zero-inflated
   and mixed counts", "score of a uniform draw in the step of :math:`F` at x, in
   float64", "standard normal"
   "Delta, Unit", "zero", "none"
   "Independent, expanded and masked distributions, ZukoToPyro", "that of the inside", "likewise"

Noise of a discrete value is a draw from its exact posterior and carries no gradient. In Gumbel-max
noise a class whose odds do not fall relative to another never loses to it. An impossible value,
of probability zero, is kept in every world if it is a category, and becomes the nearest possible
one if it is a count. Noise found by iteration (the scores) works on the values themselves:
``torch.jit.trace`` cannot record it and says so.

**Extending** Register both functions for a class; its subclasses inherit them::

    @abduct.register(MyDistribution)
    def _(d, x): ...

    @predict.register(MyDistribution)
    def _(d, u): ...

**References** Gumbel-max structural causal models: Oberst & Sontag 2019, "Counterfactual off-policy
evaluation with Gumbel-max structural causal models", https://arxiv.org/abs/1905.05824, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch import distributions as td
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.nn.functional import one_hot

from pyro_causal._cdf import (
    COUNTS,
    RESIDUAL,
    SCORED,
    Parameters,
    cdf,
    log_odds,
    log_probs,
    von_mises_law,
)
from pyro_causal._coordinates import intervene
from pyro_causal._gumbel import (
    gumbels_given_ratios,
    gumbels_given_winner,
    logistic_given_side,
    side,
    winner,
)
from pyro_causal._pyro import FlowDistribution, zuko
from pyro_causal._quantile import Law, count_quantile, count_score, quantile
from pyro_causal._tails import expm1_ratio, log1p_ratio

__all__ = ["abduct", "intervene", "law", "predict", "supports"]


@singledispatch
def abduct(d: td.Distribution, x: Tensor) -> Tensor:
    """The noise that gives `x` under `d`: for discrete values, a draw from its posterior.

    **Shapes** With B the broadcast of ``d.batch_shape`` and the batch of `x`: `x` is batch + event;
    the result is B + the event shape of the noise, which is that of `x` but for Categorical
    (one Gumbel for each class), Delta and Unit (none).

    **Raises** ``TypeError`` if no noise is defined for the family of `d`.

    **Example**

    >>> d = dist.Normal(torch.tensor([1.0, 2.0]), 2.0)
    >>> abduct(d, torch.tensor(3.0))
    tensor([1.0000, 0.5000])
    """
    _refuse(d)


@singledispatch
def predict(d: td.Distribution, u: Tensor) -> Tensor:
    """The value that the noise `u` gives under `d`, with gradients to both where it is continuous.

    **Shapes** With B the broadcast of ``d.batch_shape`` and the batch of `u`: `u` is batch + event
    shape of the noise; the result is B + ``d.event_shape``.

    **Raises** ``TypeError`` if no noise is defined for the family of `d`.

    **Example** Noise found under one mechanism, predicted under another.

    >>> u = abduct(dist.Gamma(2.0, 1.0), torch.tensor(1.5))
    >>> predict(dist.Gamma(2.0, 0.5), u)
    tensor(3.)
    """
    _refuse(d)


def supports(d: td.Distribution) -> bool:
    """Whether noise is defined for `d`, and for what it wraps or mixes.

    **Example**

    >>> supports(dist.Normal(0.0, 1.0)), supports(dist.Dirichlet(torch.ones(3)))
    (True, False)
    """
    handler = abduct.dispatch(type(d))
    if handler in _INNER:
        return _injective(d) and supports(getattr(d, _INNER[handler]))
    if handler is _abduct_score:
        try:
            cdf(d)
        except TypeError:
            return False
    return handler not in (_refuse, abduct.dispatch(object))


def law(d: td.Distribution) -> object:
    """A key that two distributions share if their noise has the same law.

    >>> law(dist.LogNormal(0.0, 1.0)) == law(dist.Gamma(2.0, 1.0)) != law(dist.Laplace(0.0, 1.0))
    True
    """
    handler = abduct.dispatch(type(d))
    if handler in _INNER:
        return law(getattr(d, _INNER[handler]))
    return _LAWS.get(handler, handler)


def _refuse(d: td.Distribution, _: Tensor | None = None, *, reason: object = "") -> NoReturn:
    family = type(d).__name__
    raise TypeError(
        f"No noise is defined for the distribution family '{family}': expected one of the "
        f"supported families. {reason}Register it: "
        f"`pyro_causal.noise.abduct.register({family})` and `predict.register({family})`."
    )


Handler = Callable[[Any, Tensor], Tensor]


def _register(*families: type, abduct_by: Handler, predict_by: Handler) -> None:
    for family in families:
        abduct.register(family)(abduct_by)
        predict.register(family)(predict_by)


def _register_residual(family: type, parameters: Parameters) -> None:
    def abduct_residual(d: Any, x: Tensor) -> Tensor:
        loc, scale = parameters(d)
        residual: Tensor = (x - loc) / scale
        return residual

    def predict_residual(d: Any, u: Tensor) -> Tensor:
        loc, scale = parameters(d)
        value: Tensor = loc + scale * u
        return value

    _register(family, abduct_by=abduct_residual, predict_by=predict_residual)


for _type, _family in RESIDUAL.items():
    _register_residual(_type, _family.parameters)

_register(
    td.Weibull,
    abduct_by=lambda d, x: d.concentration * (x / d.scale).log(),
    predict_by=lambda d, u: d.scale * (u / d.concentration).exp(),
)


def _abduct_generalized_pareto(d: Any, x: Tensor) -> Tensor:
    z: Tensor = (x - d.loc) / d.scale
    return z * log1p_ratio(d.concentration * z)


if hasattr(td, "GeneralizedPareto"):  # of recent releases of torch
    _register(
        td.GeneralizedPareto,
        abduct_by=_abduct_generalized_pareto,
        predict_by=lambda d, u: d.loc + d.scale * u * expm1_ratio(d.concentration * u),
    )


def _law(d: td.Distribution) -> Law:
    family = type(d).__name__
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        raise NotImplementedError(
            f"Noise of the distribution family '{family}' is found by iteration, which "
            "torch.jit.trace cannot record: expected a family in closed form. Run without JIT."
        )
    if isinstance(d, td.VonMises):
        return von_mises_law(d)
    try:
        return cdf(d)
    except TypeError as error:
        _refuse(d, reason=f"{error} ")


def _abduct_score(d: td.Distribution, x: Tensor) -> Tensor:
    law = _law(d)
    return count_score(law, x) if law.chart is None else law.score(x)


def _predict_score(d: td.Distribution, u: Tensor) -> Tensor:
    law = _law(d)
    return count_quantile(law, u) if law.chart is None else quantile(law, u)


_register(
    *SCORED,
    *COUNTS,
    td.MixtureSameFamily,
    dist.FoldedDistribution,
    abduct_by=_abduct_score,
    predict_by=_predict_score,
)


def _wrap(angle: Tensor) -> Tensor:
    return (angle + math.pi).remainder(2 * math.pi) - math.pi


_register(
    td.VonMises,
    abduct_by=lambda d, x: _law(d).score(_wrap(x.double() - d.loc)),
    predict_by=lambda d, u: _wrap(quantile(_law(d), u) + d.loc),
)


def _abduct_multivariate(d: Any, x: Tensor) -> Tensor:
    residual = (x - d.loc).unsqueeze(-1)
    u: Tensor = torch.linalg.solve_triangular(d.scale_tril, residual, upper=False)
    return u.squeeze(-1)


_register(
    td.MultivariateNormal,
    td.LowRankMultivariateNormal,
    abduct_by=_abduct_multivariate,
    predict_by=lambda d, u: d.loc + (d.scale_tril @ u.unsqueeze(-1)).squeeze(-1),
)
_register(
    ExpRelaxedCategorical,
    abduct_by=lambda d, x: gumbels_given_ratios(d.temperature * x, d.logits),
    predict_by=lambda d, u: ((d.logits + u) / d.temperature).log_softmax(-1),
)


_register(
    td.Categorical,
    abduct_by=lambda d, x: gumbels_given_winner(log_probs(d), x),
    predict_by=lambda d, u: winner(log_probs(d), u),
)


def _predict_one_hot(d: Any, u: Tensor) -> Tensor:
    return one_hot(winner(log_probs(d), u), d.event_shape[0]).to(d.probs.dtype)


_register(
    td.OneHotCategorical,
    abduct_by=lambda d, x: gumbels_given_winner(log_probs(d), x.argmax(-1)),
    predict_by=_predict_one_hot,
)
predict.register(td.OneHotCategoricalStraightThrough)(
    lambda d, u: _predict_one_hot(d, u) + (d.probs - d.probs.detach())
)
_register(
    td.Bernoulli,
    abduct_by=lambda d, x: logistic_given_side(log_odds(d), x),
    predict_by=lambda d, u: side(log_odds(d), u),
)


def _batch(d: td.Distribution, x: Tensor, event_dim: int) -> torch.Size:
    return torch.Size(torch.broadcast_shapes(d.batch_shape, x.shape[: x.dim() - event_dim]))


def _abduct_nothing(d: td.Distribution, x: Tensor) -> Tensor:
    return torch.zeros(_batch(d, x, len(d.event_shape)), dtype=x.dtype, device=x.device)


_register(
    dist.Delta,
    abduct_by=_abduct_nothing,
    predict_by=lambda d, u: d.v.expand(_batch(d, u, 0) + d.event_shape),
)
_register(
    dist.Unit,
    abduct_by=_abduct_nothing,
    predict_by=lambda d, u: d.log_factor.new_empty(_batch(d, u, 0) + d.event_shape),
)


_INNER: dict[Handler, str] = {}  # where a wrapper's handler finds what it wraps


def _register_wrapper(
    *families: type,
    inner: str,
    unwrap: Handler = lambda d, x: x,
    wrap: Handler = lambda d, x: x,
) -> None:
    def abduct_inner(d: Any, x: Tensor) -> Tensor:
        return abduct(getattr(d, inner), unwrap(d, x))

    def predict_inner(d: Any, u: Tensor) -> Tensor:
        return wrap(d, predict(getattr(d, inner), u))

    _INNER[abduct_inner] = inner
    _register(*families, abduct_by=abduct_inner, predict_by=predict_inner)


def _injective(d: td.Distribution) -> bool:
    return all(t.bijective for t in getattr(d, "transforms", ()))


def _untransform(d: Any, x: Tensor) -> Tensor:
    if not _injective(d):
        _refuse(d)
    for transform in reversed(d.transforms):
        x = transform.inv(x)
    return x


def _transform(d: Any, x: Tensor) -> Tensor:
    if not _injective(d):
        _refuse(d)
    for transform in d.transforms:
        x = transform(x)
    return x


def _expand(d: td.Distribution, x: Tensor) -> Tensor:
    return x.expand(_batch(d, x, len(d.event_shape)) + d.event_shape)


_register_wrapper(td.Independent, dist.MaskedDistribution, inner="base_dist")
_register_wrapper(ExpandedDistribution, inner="base_dist", unwrap=_expand, wrap=_expand)
_register_wrapper(
    td.TransformedDistribution, inner="base_dist", unwrap=_untransform, wrap=_transform
)
_register_wrapper(
    zuko.distributions.NormalizingFlow,
    FlowDistribution,
    inner="base",
    unwrap=lambda d, x: d.transform(x),
    wrap=lambda d, x: d.transform.inv(x),
)
_register_wrapper(ZukoToPyro, inner="dist")

_LAWS = {  # those that several handlers share; other handlers have their own
    **{abduct.dispatch(f): "normal" for f in (td.Normal, td.MultivariateNormal, td.Gamma)},
    **{abduct.dispatch(f): "logistic" for f in (dist.Logistic, td.Bernoulli)},
}

# Subclasses of supported classes whose values do not tell the noise as their parent's do.
_register(
    dist.NanMaskedMultivariateNormal,
    dist.RelaxedBernoulliStraightThrough,
    dist.RelaxedOneHotCategoricalStraightThrough,
    abduct_by=_refuse,
    predict_by=_refuse,
)
