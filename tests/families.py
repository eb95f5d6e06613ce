"""One case per distribution family with exogenous noise; tests of every layer run over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import transforms

from pyro_causal._pyro import FlowDistribution, zuko

__all__ = [
    "BY_NAME",
    "CONTINUOUS",
    "COUNTS",
    "DEGENERATE",
    "DISCRETE",
    "FAMILIES",
    "Case",
    "draw",
    "grid",
]

Make = Callable[[tuple[int, ...], torch.dtype], dist.TorchDistribution]


@dataclass(frozen=True)
class Case:
    """A family under test.

    `make(batch_shape, dtype)` builds a distribution whose parameters differ along the batch.
    `kind` is `continuous`, `discrete` (unordered), `count` (ordered) or `degenerate`. `law` is the
    law of each coordinate of the noise, whatever the parameters, as `scipy.stats` names it.
    """

    name: str
    make: Make
    kind: str = "continuous"
    law: str = "norm"

    def __call__(
        self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
    ) -> dist.TorchDistribution:
        return self.make(batch_shape, dtype)


def draw(d: dist.TorchDistribution, shape: tuple[int, ...] = ()) -> Tensor:
    """Sample from `d`; `ZukoToPyro` has no `sample`."""
    return d(shape) if isinstance(d, ZukoToPyro) else d.sample(shape)


def grid(batch_shape: tuple[int, ...], low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Parameters from `low` towards `high` along the batch, without randomness."""
    size = math.prod(batch_shape)
    return torch.linspace(low, high, size + 1, dtype=dtype)[:size].reshape(batch_shape)


def _scale_tril(s: tuple[int, ...], t: torch.dtype) -> Tensor:
    tril = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.7, 0.0], [-0.3, 0.2, 1.5]], dtype=t)
    return tril * grid(s, 1.0, 2.0, t)[..., None, None]


def _low_rank(s: tuple[int, ...], t: torch.dtype) -> dist.TorchDistribution:
    factor = torch.tensor([[1.0], [-0.5], [0.25]], dtype=t) * grid(s, 1.0, 2.0, t)[..., None, None]
    return dist.LowRankMultivariateNormal(_vector(s, t), factor, _vector(s, t).exp())


def _vector(s: tuple[int, ...], t: torch.dtype, size: int = 3) -> Tensor:
    return grid(s, -1.0, 1.0, t)[..., None] + torch.linspace(-0.5, 0.5, size, dtype=t)


def _normal_mixture(s: tuple[int, ...], t: torch.dtype) -> dist.TorchDistribution:
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=t).expand(*s, 3)
    loc = _vector(s, t) * 2.0
    scale = torch.tensor([0.5, 1.0, 0.7], dtype=t).expand(*s, 3)
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale))


def _gamma_mixture(s: tuple[int, ...], t: torch.dtype) -> dist.TorchDistribution:
    logits = _vector(s, t, 2)
    return dist.MixtureSameFamily(
        dist.Categorical(logits=logits), dist.Gamma(logits.exp() + 1.0, logits.exp())
    )


def _lognormal_mixture(s: tuple[int, ...], t: torch.dtype) -> dist.TorchDistribution:
    loc = _vector(s, t, 2)
    return dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros_like(loc)), dist.LogNormal(loc, loc.exp().sqrt())
    )


def _poisson_mixture(s: tuple[int, ...], t: torch.dtype) -> dist.TorchDistribution:
    logits = _vector(s, t, 2)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Poisson(logits.exp() * 5))


def _stick_breaking(s: tuple[int, ...], t: torch.dtype) -> dist.TorchDistribution:
    affine = transforms.AffineTransform(
        grid(s, -1.0, 1.0, t)[..., None], grid(s, 0.5, 1.5, t)[..., None], event_dim=1
    )
    base = dist.Normal(torch.zeros((*s, 3), dtype=t), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [affine, transforms.StickBreakingTransform()])


def _flow(
    s: tuple[int, ...], t: torch.dtype, features: int = 3
) -> zuko.distributions.NormalizingFlow:
    """By zuko's convention the transform maps a value to its noise."""
    shift, scale = _vector(s, t, features), _vector(s, t, features).exp()
    affine = zuko.transforms.MonotonicAffineTransform(shift, scale.log())
    to_noise = zuko.transforms.ComposedTransform(transforms.ExpTransform().inv, affine)
    base = zuko.distributions.DiagNormal(torch.zeros_like(shift), torch.ones_like(shift))
    return zuko.distributions.NormalizingFlow(zuko.transforms.DependentTransform(to_noise, 1), base)


def _mask(s: tuple[int, ...], t: torch.dtype) -> dist.TorchDistribution:
    mask = torch.arange(math.prod(s)).reshape(s) % 2 == 0
    return dist.Normal(grid(s, -1.0, 1.0, t), grid(s, 0.5, 2.0, t)).mask(mask)


def _shifted_logit_normal(s: tuple[int, ...], t: torch.dtype) -> dist.TorchDistribution:
    return dist.TransformedDistribution(
        dist.Normal(grid(s, -1.0, 1.0, t), grid(s, 0.5, 1.5, t)),
        [transforms.SigmoidTransform(), transforms.AffineTransform(-1.0, 3.0)],
    )


def _location_scale(family: Callable[..., dist.TorchDistribution]) -> Make:
    return lambda s, t: family(grid(s, -1.0, 3.0, t), grid(s, 0.5, 2.0, t))


def _positive(family: Callable[..., dist.TorchDistribution], parameters: int = 2) -> Make:
    return lambda s, t: family(*(grid(s, 0.7 + i, 3.0 + i, t) for i in range(parameters)))


CONTINUOUS = [
    Case("normal", _location_scale(dist.Normal)),
    Case("torch_normal", _location_scale(torch.distributions.Normal)),
    Case("nan_masked_normal", _location_scale(dist.NanMaskedNormal)),
    Case("laplace", _location_scale(dist.Laplace), law="laplace"),
    Case("cauchy", _location_scale(dist.Cauchy), law="cauchy"),
    Case("logistic", _location_scale(dist.Logistic), law="logistic"),
    Case("soft_laplace", _location_scale(dist.SoftLaplace), law="hypsecant"),
    Case("gumbel", _location_scale(dist.Gumbel), law="gumbel_r"),
    Case("half_normal", _positive(dist.HalfNormal, 1), law="halfnorm"),
    Case("half_cauchy", _positive(dist.HalfCauchy, 1), law="halfcauchy"),
    Case("exponential", _positive(dist.Exponential, 1), law="expon"),
    Case(
        "uniform",
        lambda s, t: dist.Uniform(grid(s, -2.0, 0.0, t), grid(s, 1.0, 3.0, t)),
        law="uniform",
    ),
    Case("weibull", _positive(dist.Weibull), law="gumbel_l"),
    Case("pareto", _positive(dist.Pareto), law="expon"),
    Case("log_normal", _location_scale(dist.LogNormal)),
    Case("gamma", _positive(dist.Gamma)),
    Case("chi2", _positive(dist.Chi2, 1)),
    Case("inverse_gamma", _positive(dist.InverseGamma)),
    Case("beta", _positive(dist.Beta)),
    Case(
        "affine_beta",
        lambda s, t: dist.AffineBeta(
            grid(s, 0.7, 3.0, t), grid(s, 1.7, 4.0, t), grid(s, -1.0, 1.0, t), grid(s, 1.0, 2.0, t)
        ),
    ),
    Case("kumaraswamy", _positive(dist.Kumaraswamy)),
    Case("fisher_snedecor", _positive(dist.FisherSnedecor)),
    Case(
        "student_t",
        lambda s, t: dist.StudentT(
            grid(s, 1.5, 5.0, t), grid(s, -1.0, 1.0, t), grid(s, 0.5, 2.0, t)
        ),
    ),
    Case("von_mises", lambda s, t: dist.VonMises(grid(s, -2.0, 2.0, t), grid(s, 0.3, 4.0, t))),
    Case(
        "asymmetric_laplace",
        lambda s, t: dist.AsymmetricLaplace(
            grid(s, -1.0, 1.0, t), grid(s, 0.5, 2.0, t), grid(s, 0.6, 1.8, t)
        ),
    ),
    Case(
        "soft_asymmetric_laplace",
        lambda s, t: dist.SoftAsymmetricLaplace(
            grid(s, -1.0, 1.0, t),
            grid(s, 0.5, 2.0, t),
            grid(s, 0.6, 1.8, t),
            grid(s, 0.4, 1.5, t),
        ),
    ),
    Case(
        "skew_logistic",
        lambda s, t: dist.SkewLogistic(
            grid(s, -1.0, 1.0, t), grid(s, 0.5, 2.0, t), grid(s, 0.6, 1.8, t)
        ),
    ),
    Case(
        "continuous_bernoulli",
        lambda s, t: dist.ContinuousBernoulli(logits=grid(s, -2.0, 2.0, t)),
    ),
    Case(
        "relaxed_bernoulli",
        lambda s, t: dist.RelaxedBernoulli(torch.tensor(0.7, dtype=t), logits=grid(s, -1, 1, t)),
        law="logistic",
    ),
    Case(
        "relaxed_one_hot_categorical",
        lambda s, t: dist.RelaxedOneHotCategorical(
            torch.tensor(0.7, dtype=t), logits=_vector(s, t)
        ),
        law="gumbel_r",
    ),
    Case(
        "folded_laplace",
        lambda s, t: dist.FoldedDistribution(
            dist.Laplace(grid(s, -1.0, 1.0, t), grid(s, 0.5, 2.0, t))
        ),
    ),
    Case("normal_mixture", _normal_mixture),
    Case("gamma_mixture", _gamma_mixture),
    Case("log_normal_mixture", _lognormal_mixture),
    Case(
        "multivariate_normal",
        lambda s, t: dist.MultivariateNormal(_vector(s, t), scale_tril=_scale_tril(s, t)),
    ),
    Case("low_rank_multivariate_normal", _low_rank),
    Case("logistic_normal", lambda s, t: dist.LogisticNormal(_vector(s, t), _vector(s, t).exp())),
    Case("transformed_scalar", _shifted_logit_normal),
    Case("transformed_vector", _stick_breaking),
    Case("zuko_flow", _flow),
    Case("zuko_to_pyro", lambda s, t: ZukoToPyro(_flow(s, t))),
    Case("flow_distribution", lambda s, t: FlowDistribution(_flow(s, t))),
    Case(
        "scalar_flow_distribution",
        lambda s, t: FlowDistribution(_flow(s, t, 1), scalar=True),
    ),
    Case(
        "independent_normal",
        lambda s, t: dist.Normal(_vector(s, t), _vector(s, t).exp()).to_event(1),
    ),
    Case(
        "independent_matrix",
        lambda s, t: dist.Laplace(_vector((*s, 2), t), _vector((*s, 2), t).exp()).to_event(2),
        law="laplace",
    ),
    Case(
        "independent_gamma",
        lambda s, t: dist.Gamma(_vector(s, t).exp(), _vector(s, t).exp()).to_event(1),
    ),
    Case(
        "expanded_normal",
        lambda s, t: ExpandedDistribution(
            dist.Normal(torch.tensor(0.5, dtype=t), torch.tensor(2.0, dtype=t)), s
        ),
    ),
    Case("masked_normal", _mask),
]

if hasattr(torch.distributions, "GeneralizedPareto"):  # of recent releases of torch
    CONTINUOUS.append(
        Case(
            "generalized_pareto",
            lambda s, t: dist.GeneralizedPareto(
                grid(s, -1.0, 1.0, t), grid(s, 0.5, 2.0, t), grid(s, -0.4, 0.5, t)
            ),
            law="expon",
        )
    )

DISCRETE = [
    Case(
        "bernoulli",
        lambda s, t: dist.Bernoulli(grid(s, 0.2, 0.9, t)),
        kind="discrete",
        law="logistic",
    ),
    Case(
        "categorical",
        lambda s, t: dist.Categorical(logits=_vector(s, t)),
        kind="discrete",
        law="gumbel_r",
    ),
    Case(
        "categorical_zero",
        lambda s, t: dist.Categorical(torch.tensor([0.6, 0.0, 0.4], dtype=t).expand(*s, 3)),
        kind="discrete",
        law="gumbel_r",
    ),
    Case(
        "one_hot_categorical",
        lambda s, t: dist.OneHotCategorical(logits=_vector(s, t)),
        kind="discrete",
        law="gumbel_r",
    ),
    Case(
        "one_hot_straight_through",
        lambda s, t: dist.OneHotCategoricalStraightThrough(logits=_vector(s, t)),
        kind="discrete",
        law="gumbel_r",
    ),
    Case(
        "independent_bernoulli",
        lambda s, t: dist.Bernoulli(logits=_vector(s, t)).to_event(1),
        kind="discrete",
        law="logistic",
    ),
    Case(
        "independent_categorical",
        lambda s, t: dist.Categorical(logits=_vector((*s, 2), t)).to_event(1),
        kind="discrete",
        law="gumbel_r",
    ),
    Case(
        "expanded_categorical",
        lambda s, t: ExpandedDistribution(dist.Categorical(logits=_vector((), t)), s),
        kind="discrete",
        law="gumbel_r",
    ),
]

COUNTS = [
    Case("poisson", lambda s, t: dist.Poisson(grid(s, 0.5, 20.0, t)), kind="count"),
    Case(
        "binomial",
        lambda s, t: dist.Binomial(torch.tensor(10.0, dtype=t), grid(s, 0.2, 0.9, t)),
        kind="count",
    ),
    Case("geometric", lambda s, t: dist.Geometric(grid(s, 0.1, 0.9, t)), kind="count"),
    Case(
        "negative_binomial",
        lambda s, t: dist.NegativeBinomial(
            torch.tensor(4.0, dtype=t), logits=grid(s, -1.0, 1.0, t)
        ),
        kind="count",
    ),
    Case("gamma_poisson", _positive(dist.GammaPoisson), kind="count"),
    Case(
        "zero_inflated_poisson",
        lambda s, t: dist.ZeroInflatedPoisson(grid(s, 0.5, 20.0, t), gate=grid(s, 0.1, 0.5, t)),
        kind="count",
    ),
    Case(
        "zero_inflated_negative_binomial",
        lambda s, t: dist.ZeroInflatedNegativeBinomial(
            torch.tensor(4.0, dtype=t),
            logits=grid(s, -1.0, 1.0, t),
            gate_logits=grid(s, -2.0, 0.0, t),
        ),
        kind="count",
    ),
    Case(
        "ordered_logistic",
        lambda s, t: dist.OrderedLogistic(
            grid(s, -1.0, 1.0, t), torch.tensor([-1.0, 0.3, 1.5], dtype=t)
        ),
        kind="count",
    ),
    Case("poisson_mixture", _poisson_mixture, kind="count"),
    Case(
        "independent_poisson",
        lambda s, t: dist.Poisson(_vector(s, t).exp()).to_event(1),
        kind="count",
    ),
]

DEGENERATE = [
    Case("delta", lambda s, t: dist.Delta(grid(s, -1.0, 1.0, t)), kind="degenerate"),
    Case("delta_vector", lambda s, t: dist.Delta(_vector(s, t), event_dim=1), kind="degenerate"),
    Case("unit", lambda s, t: dist.Unit(grid(s, -1.0, 1.0, t)), kind="degenerate"),
]

FAMILIES = CONTINUOUS + DISCRETE + COUNTS + DEGENERATE
BY_NAME = {case.name: case for case in FAMILIES}
