"""Laws of exogenous noise, over every family; what only discrete noise has is tested beside."""

import math
from itertools import product

import pyro.distributions as dist
import pytest
import torch
from families import BY_NAME, CONTINUOUS, FAMILIES, Case, draw
from pyro.distributions.torch_distribution import ExpandedDistribution
from scipy import stats
from torch import distributions as td
from torch.autograd import gradcheck

from pyro_causal import noise
from pyro_causal.noise import abduct, intervene, predict, supports

DTYPES = [torch.float32, torch.float64]
BATCHES = [(), (3,), (2, 1, 3)]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}

every_family = pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
continuous = pytest.mark.parametrize("case", CONTINUOUS, ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def parameter(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def assert_same(actual, expected):
    """Equal to the precision that the contract gives, relative to values larger than one."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if not expected.is_floating_point():
        assert torch.equal(actual, expected)
        return
    error = (actual - expected).abs() / expected.abs().clamp(min=1.0)
    assert error.numel() == 0 or error.max() < TOLERANCE[expected.dtype]


# --- round trip and shapes ------------------------------------------------------------------------


@every_family
@each_dtype
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_noise_gives_the_value_back(case: Case, dtype, batch):
    d = case(batch, dtype)
    x = draw(d)
    u = abduct(d, x)
    assert u.shape[: len(batch)] == batch
    assert_same(predict(d, u), x)


@every_family
def test_values_broadcast_against_the_batch(case: Case):
    one = case((), torch.float64)
    value, event = draw(one), tuple(one.event_shape)
    try:
        d = one.expand((2, 1, 3))
    except (NotImplementedError, ValueError):  # Pyro's SoftAsymmetricLaplace, ZeroInflated...
        d = ExpandedDistribution(one, (2, 1, 3))
    for shape in [(), (3,), (4, 1, 5, 1), (4, 2, 5, 3)]:
        x = value.expand(shape + event)
        batch = torch.broadcast_shapes(shape, (2, 1, 3))
        u = abduct(d, x)
        assert u.shape[: len(batch)] == batch
        assert_same(predict(d, u), x.expand(batch + event))


@every_family
def test_noise_of_one_world_is_pushed_through_all(case: Case):
    d = case((3, 2), torch.float64)
    x = draw(d)[:1]
    u = abduct(d, x)
    y = predict(d, u[:1])
    assert y.shape == (3, 2, *d.event_shape)
    assert_same(y[:1], x)


@continuous
def test_noise_shared_between_mechanisms_is_the_same_noise(case: Case):
    if case.name in ("relaxed_one_hot_categorical", "expanded_normal"):
        pytest.skip("the value fixes the Gumbels but for a shift; the parameters do not vary")
    d = case((2,), torch.float64)
    u = abduct(d, draw(d))
    one, other = predict(d, u), predict(d, u.flip(0))
    assert (one - other).abs().max() > 1e-6
    again = abduct(d, other)
    torch.testing.assert_close(again, u.flip(0), rtol=1e-7, atol=1e-7)


# --- the law of the noise -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [c for c in FAMILIES if c.kind != "degenerate"], ids=lambda c: c.name
)
def test_abducted_noise_follows_its_law_whatever_the_parameters(case: Case):
    d = case((3,), torch.float64)
    u = abduct(d, draw(d, (1000,)))
    columns = u.reshape(3000, -1).unbind(-1)
    law = getattr(stats, case.law)
    for column in columns:
        assert stats.kstest(column.numpy(), law.cdf).pvalue > 1e-3 / len(columns)
    if len(columns) > 1:
        ranks = stats.spearmanr(torch.stack(columns, -1).numpy())
        assert abs(ranks.statistic).min() < 0.07


# --- tails and extreme parameters -----------------------------------------------------------------


@continuous
@each_dtype
@pytest.mark.parametrize("p", [1e-6, 1 - 1e-6])
def test_tails(case: Case, dtype, p):
    d = case((3,), dtype)
    u = torch.full_like(abduct(d, draw(d)), getattr(stats, case.law).ppf(p))
    x = predict(d, u)
    assert x.isfinite().all()
    assert_same(predict(d, abduct(d, x)), x)


EXTREME = {
    "gamma": (dist.Gamma, [1e-2, 1e-1, 1e3, 1e6], [1.0, 1e-6]),
    "beta": (dist.Beta, [1e-2, 0.5, 1e4], [2e-2, 3.0, 1e3]),
    "student_t": (lambda df: dist.StudentT(df, 1.0, 2.0), [0.3, 1.0, 1e3, 1e6]),
    "fisher_snedecor": (dist.FisherSnedecor, [0.3, 40.0], [0.5, 1e3]),
    "von_mises": (lambda k: dist.VonMises(3.0, k), [1e-6, 1.0, 1e5]),
    "kumaraswamy": (dist.Kumaraswamy, [0.05, 20.0], [0.3, 1e3]),
    "continuous_bernoulli": (
        lambda v: dist.ContinuousBernoulli(logits=v),
        [-50.0, -1e-9, 0.0, 1e-3, 50.0],
    ),
    "asymmetric_laplace": (lambda k: dist.AsymmetricLaplace(0.0, 1.0, k), [0.01, 1.0, 30.0]),
    "soft_asymmetric_laplace": (
        lambda k, s: dist.SoftAsymmetricLaplace(0.0, 1.0, k, s),
        [0.05, 1.0, 20.0],
        [1e-3, 1.0, 10.0],
    ),
    "skew_logistic": (lambda a: dist.SkewLogistic(0.0, 1.0, a), [0.1, 1.0, 30.0]),
    "weibull": (dist.Weibull, [1e-6, 1.0, 1e6], [0.1, 50.0]),
    "normal": (dist.Normal, [-1e6, 0.0], [1e-6, 1e6]),
}


if "generalized_pareto" in BY_NAME:
    EXTREME["generalized_pareto"] = (
        lambda c: dist.GeneralizedPareto(1.0, 2.0, c),
        [-2.0, -0.5, 0.0, 1e-9, 3.0],
    )


@pytest.mark.parametrize("name", EXTREME)
@each_dtype
def test_extreme_parameters(name, dtype):
    make, *values = EXTREME[name]
    parameters = [torch.tensor(v, dtype=dtype) for v in zip(*product(*values), strict=True)]
    d = make(*parameters)
    tiny = 1e-6 if name == "von_mises" else 0.0  # the angles at the seam are the same
    u = abduct(d, draw(d))
    for p in [0.3, 1e-6, 1 - 1e-6] + [1e-12, 1 - 1e-12] * (dtype == torch.float64):
        score = torch.full_like(u, getattr(stats, BY_NAME[name].law).ppf(p))
        x = predict(d, score) - tiny * score.sign().to(dtype)
        assert x.isfinite().all()
        assert_same(predict(d, abduct(d, x)), x)


def test_values_beyond_the_tails_that_float64_can_hold():
    one = torch.tensor(1.0, dtype=torch.float64)
    for d, x in [
        (dist.Gamma(3 * one, one), 900.0),
        (dist.Gamma(1e4 * one, one), 3000.0),
        (dist.Beta(1e4 * one, 1e4 * one), 0.05),
        (dist.StudentT(1e4 * one), -60.0),
        (
            dist.MixtureSameFamily(
                dist.Categorical(one.expand(2)), dist.Normal(0.0, one.expand(2))
            ),
            99.0,
        ),
        (dist.Poisson(one), 500.0),
        (dist.Binomial(10_000, 1e-3 * one), 9000.0),
        (dist.NegativeBinomial(2 * one, logits=-3 * one), 700.0),
        (dist.Geometric(0.9 * one), 1000.0),
    ]:
        x = torch.as_tensor(x, dtype=torch.float64)
        u = abduct(d, x)
        assert u.isfinite().all()
        assert abs(u) > 35
        assert_same(predict(d, u), x)


def test_values_on_the_boundary_count_as_next_to_it():
    half = torch.tensor(0.5)
    for d, x in [(dist.Beta(half, half), 1.0), (dist.Kumaraswamy(half, half), 0.0)]:
        u = abduct(d, torch.tensor(x))
        assert u.isfinite()
        assert predict(d, u) == pytest.approx(x, abs=1e-6)
    assert predict(dist.Gamma(half, half), abduct(dist.Gamma(half, half), torch.tensor(0.0))) < 1e-6


def test_missing_values_stay_missing():
    x = torch.tensor([1.0, math.nan], dtype=torch.float64)
    for d in [dist.NanMaskedNormal(x[0], 1.0), dist.Gamma(x[0], x[0]), dist.Poisson(x[0])]:
        y = predict(d, abduct(d, x))
        assert y[0] == 1.0
        assert y[1].isnan()


# --- gradients ------------------------------------------------------------------------------------

LOC, SCALE, SHAPE = parameter(0.4, -1.0), parameter(0.7, 2.0), parameter(1.3, 6.0)
DIFFERENTIABLE = {
    "normal": (dist.Normal, LOC, SCALE),
    "half_cauchy": (dist.HalfCauchy, SCALE),
    "exponential": (dist.Exponential, SCALE),
    "uniform": (lambda low, width: dist.Uniform(low, low + width), LOC, SCALE),
    "weibull": (dist.Weibull, SCALE, SHAPE),
    "pareto": (dist.Pareto, SCALE, SHAPE),
    "log_normal": (dist.LogNormal, LOC, SCALE),
    "gamma": (dist.Gamma, SCALE, SHAPE),
    "chi2": (dist.Chi2, SHAPE),
    "inverse_gamma": (dist.InverseGamma, SHAPE, SCALE),
    "beta": (dist.Beta, SCALE, SHAPE),
    "affine_beta": (dist.AffineBeta, SCALE, SHAPE, LOC, SCALE),
    "kumaraswamy": (dist.Kumaraswamy, SCALE, SHAPE),
    "fisher_snedecor": (dist.FisherSnedecor, SCALE, SHAPE),
    "student_t": (dist.StudentT, SHAPE, LOC, SCALE),
    "von_mises": (dist.VonMises, LOC, SHAPE),
    "asymmetric_laplace": (dist.AsymmetricLaplace, LOC, SCALE, SHAPE),
    "soft_asymmetric_laplace": (dist.SoftAsymmetricLaplace, LOC, SCALE, SHAPE, SCALE),
    "skew_logistic": (dist.SkewLogistic, LOC, SCALE, SHAPE),
    "continuous_bernoulli": (
        lambda v: dist.ContinuousBernoulli(logits=v),
        parameter(0.0, -2.0),
    ),
    "relaxed_bernoulli": (lambda t, v: dist.RelaxedBernoulli(t, logits=v), SHAPE, LOC),
    "folded": (lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)), LOC, SCALE),
    "normal_mixture": (
        lambda w, m, s: dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Normal(m, s)),
        *(LOC, SHAPE, SCALE),
    ),
    "gamma_mixture": (
        lambda w, a, b: dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Gamma(a, b)),
        *(LOC, SHAPE, SCALE),
    ),
    "multivariate_normal": (
        lambda m, s: dist.MultivariateNormal(m, scale_tril=torch.tril(s)),
        LOC,
        parameter([1.0, 0.0], [0.5, 0.7]),
    ),
    "low_rank": (
        lambda m, w, v: dist.LowRankMultivariateNormal(m, w.unsqueeze(-1), v),
        *(LOC, LOC, SCALE),
    ),
}


if "generalized_pareto" in BY_NAME:
    shapes = parameter(-0.3, 0.0)
    DIFFERENTIABLE["generalized_pareto"] = (dist.GeneralizedPareto, LOC, SCALE, shapes)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_through_abduct_and_predict(name):
    make, *parameters = DIFFERENTIABLE[name]
    d = make(*parameters)
    x = draw(d).detach().requires_grad_()
    u = abduct(d, x).detach().requires_grad_()
    check = {"atol": 1e-6, "rtol": 1e-5}
    assert gradcheck(lambda x, *p: abduct(make(*p), x), (x, *parameters), **check)
    assert gradcheck(lambda u, *p: predict(make(*p), u), (u, *parameters), **check)


def test_relaxed_categories_move_with_their_logits():
    logits = parameter(0.1, 0.5, -0.4)
    d = dist.RelaxedOneHotCategorical(torch.tensor(0.7, dtype=torch.float64), logits=logits)
    u = abduct(d, draw(d)).detach()
    assert gradcheck(
        lambda v: predict(dist.RelaxedOneHotCategorical(d.temperature, logits=v), u), logits
    )


def test_the_centre_of_a_symmetric_family_has_a_slope():
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for d in [dist.StudentT(x.detach() + 3), dist.VonMises(0.0, x.detach() + 2)]:
        (slope,) = torch.autograd.grad(abduct(d, x), x)
        density = d.log_prob(x.detach()).exp()
        torch.testing.assert_close(slope, density * math.sqrt(2 * math.pi))


def test_worlds_that_are_left_out_do_not_spoil_gradients():
    """Only world 0 of the noise is kept: values impossible elsewhere must not turn it to NaN."""
    shift = torch.tensor([0.0, 50.0], dtype=torch.float64, requires_grad=True)
    for d, x in [
        (dist.Uniform(shift, shift + 1), 0.3),
        (dist.Pareto(1 + shift, 2.0 + shift), 1.3),
        (dist.Weibull(torch.exp(-shift), 20.0 + shift), 0.9),
        (dist.Gamma(1 + shift, torch.exp(3 * shift)), 2.0),
        (dist.StudentT(1 + shift, 0.0, torch.exp(-2 * shift)), 1.0),
        (
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2, 2)), dist.Normal(shift[:, None] * torch.ones(2), 0.1)
            ),
            0.1,
        ),
    ]:
        u = abduct(d, torch.tensor(x, dtype=torch.float64))[:1]
        y = predict(d, u)
        assert y[0].item() == pytest.approx(x)
        (gradient,) = torch.autograd.grad(y[0] + u[0], shift)
        assert gradient.isfinite().all()


# --- wrappers, refusals and extensions ------------------------------------------------------------


@pytest.mark.parametrize(
    "d",
    [
        dist.OMTMultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.5, 2.0]])),
        dist.AVFMultivariateNormal(torch.zeros(2), torch.eye(2), torch.ones(2, 1, 2)),
        dist.ZeroInflatedDistribution(dist.Geometric(torch.ones(3) / 2), gate=torch.ones(3) / 2),
        dist.ExtendedBinomial(5, torch.tensor(0.3)),
        dist.Normal(torch.zeros(4, 2), 1.0).to_event(1).mask(torch.tensor(True)).to_event(1),
        dist.Gamma(torch.ones(2), 1.0).expand((3, 2)).to_event(1).expand((5, 3)),
        td.Independent(td.Beta(torch.ones(2), torch.ones(2)), 1),
        td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.LogNormal(torch.zeros(2), 1.0)),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Weibull(torch.ones(2), 2.0)),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Pareto(torch.ones(2), 2.0)),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.InverseGamma(torch.ones(2), 2.0)
        ),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Uniform(torch.ones(2), 2.0)),
        dist.FoldedDistribution(dist.StudentT(torch.tensor(3.0), 1.0)),
    ],
    ids=lambda d: f"{type(d).__name__}",
)
def test_heirs_and_nested_wrappers(d):
    assert supports(d)
    x = draw(d)
    assert_same(predict(d, abduct(d, x)), x)


def test_folded_base_of_a_transformation_is_refused():
    folded = dist.TransformedDistribution(dist.Normal(0.0, 1.0), td.AbsTransform())
    assert not supports(folded)
    for function in (abduct, predict):
        with pytest.raises(TypeError, match="family 'TransformedDistribution'"):
            function(folded, torch.tensor(1.0))


ONES = torch.ones(2)
WEIGHTS = dist.Categorical(ONES)
UNSUPPORTED_PARTS = {
    "Independent": dist.Dirichlet(ONES.expand(3, 2)).to_event(1),
    "MixtureSameFamily": dist.MixtureSameFamily(
        WEIGHTS, dist.Normal(torch.eye(2), 1.0).to_event(1)
    ),
    "FoldedDistribution": dist.FoldedDistribution(dist.VonMises(0.0, 1.0)),
    "MixtureOfAngles": dist.MixtureSameFamily(WEIGHTS, dist.VonMises(ONES, ONES)),
    "ZeroInflatedDistribution": dist.ZeroInflatedDistribution(dist.Gamma(1.0, 1.0), gate=ONES / 2),
    "LKJ": dist.LKJ(3, 1.0),
}


@pytest.mark.parametrize("name", UNSUPPORTED_PARTS)
def test_what_cannot_be_inverted_inside_is_refused(name):
    d = UNSUPPORTED_PARTS[name]
    assert not supports(d)
    for function in (abduct, predict):
        with pytest.raises(TypeError, match="No noise is defined for the distribution family"):
            function(d, d.sample())


def test_an_unsupported_family_tells_how_to_register_it():
    d = dist.Wishart(torch.tensor(3.0), torch.eye(2))
    message = (
        r"No noise is defined for the distribution family 'Wishart': expected one of the supported "
        r"families\. Register it: `pyro_causal\.noise\.abduct\.register\(Wishart\)` and "
        r"`predict\.register\(Wishart\)`\."
    )
    for function in (abduct, predict):
        with pytest.raises(TypeError, match=message):
            function(d, torch.eye(2))


def test_a_mixture_names_the_part_without_a_distribution_function():
    with pytest.raises(TypeError, match="'MixtureSameFamily'.*known for 'Independent'"):
        abduct(UNSUPPORTED_PARTS["MixtureSameFamily"], ONES)


class Triangular(dist.TorchDistribution):
    """A user's family: the sum of two uniforms, of which the noise keeps the rank."""

    arg_constraints = {"width": td.constraints.positive}
    support = td.constraints.positive

    def __init__(self, width):
        self.width = torch.as_tensor(width)
        super().__init__(self.width.shape)


class Narrow(Triangular):
    pass


def test_a_family_of_the_users_own(monkeypatch):
    d = Narrow(torch.tensor([1.0, 2.0]))
    assert not supports(d)
    for function in (abduct, predict):
        registry = dict(function.registry)
        monkeypatch.setattr(function, "registry", registry, raising=False)
    abduct.register(Triangular)(lambda d, x: x / d.width)
    predict.register(Triangular)(lambda d, u: u * d.width)
    assert supports(d)
    assert supports(d.mask(True).to_event(1))
    x = torch.tensor([0.5, 0.5])
    assert predict(d.to_event(1), abduct(d.to_event(1), x)).tolist() == x.tolist()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
def test_tracing():
    d = dist.LogNormal(0.5, 2.0).expand((3,)).to_event(1)

    def counterfactual(x):
        return predict(d, abduct(d, x) + 1.0)

    traced = torch.jit.trace(counterfactual, torch.ones(3))
    x = torch.tensor([0.3, 1.0, 2.0])
    torch.testing.assert_close(traced(x), counterfactual(x))
    for family in (dist.Gamma(2.0, 1.0), BY_NAME["normal_mixture"]()):
        with pytest.raises(NotImplementedError, match=r"trace cannot record: .*without JIT"):
            torch.jit.trace(lambda u, d=family: predict(d, u), torch.zeros(3))


def test_inference_mode():
    with torch.inference_mode():
        d = dist.Gamma(torch.tensor(2.0), 1.0)
        assert_same(predict(d, abduct(d, torch.tensor(3.0))), torch.tensor(3.0))


def test_no_family_is_forgotten():
    """Every class of Pyro and torch has noise, or is listed here as having none."""
    covered = {BY_NAME[c.name]((2,)).__class__.__name__ for c in FAMILIES} | {
        "AVFMultivariateNormal",  # tested as heirs
        "ExtendedBinomial",
        "OMTMultivariateNormal",
        "ZeroInflatedDistribution",
    }
    inside = {"Independent", "MaskedDistribution", "ExpandedDistribution", "FoldedDistribution"}
    for module in (dist, td):
        for name in module.__all__:
            cls = getattr(module, name)
            if not isinstance(cls, type) or not issubclass(cls, td.Distribution):
                continue
            if name in covered:
                assert name not in NO_NOISE | ABSTRACT
                assert abduct.dispatch(cls) not in REFUSALS
            elif name not in ABSTRACT:
                assert name in NO_NOISE, f"{name} is neither supported nor refused"
                if name != "LKJ":  # a transformation of LKJCholesky
                    assert abduct.dispatch(cls) in REFUSALS
                    assert predict.dispatch(cls) in REFUSALS
    assert inside <= covered


REFUSALS = {abduct.dispatch(object), predict.dispatch(object), noise._refuse}
ABSTRACT = {"Distribution", "ExponentialFamily", "TorchDistribution"}
NO_NOISE = {
    "BetaBinomial",
    "CoalescentTimes",
    "CoalescentTimesWithRate",
    "Dirichlet",
    "DirichletMultinomial",
    "DiscreteHMM",
    "Empirical",
    "ExtendedBetaBinomial",
    "GammaGaussianHMM",
    "GaussianHMM",
    "GaussianMRF",
    "GaussianScaleMixture",
    "GroupedNormalNormal",
    "ImproperUniform",
    "IndependentHMM",
    "LKJ",
    "LKJCholesky",
    "LKJCorrCholesky",
    "LinearHMM",
    "LogNormalNegativeBinomial",
    "MaskedMixture",
    "MixtureOfDiagNormals",
    "MixtureOfDiagNormalsSharedCovariance",
    "Multinomial",
    "MultivariateStudentT",
    "NanMaskedMultivariateNormal",
    "OneOneMatching",
    "OneTwoMatching",
    "ProjectedNormal",
    "Rejector",
    "RelaxedBernoulliStraightThrough",
    "RelaxedOneHotCategoricalStraightThrough",
    "SineBivariateVonMises",
    "SineSkewed",
    "SpanningTree",
    "Stable",
    "StableWithLogProb",
    "TruncatedPolyaGamma",
    "VonMises3D",
    "Wishart",
}


# --- interventions on coordinates -----------------------------------------------------------------


def test_a_clamped_coordinate_leaves_the_others_alone():
    x = torch.arange(6.0).reshape(2, 3)
    for d in [
        dist.Normal(torch.zeros(2, 3), 1.0).to_event(1),
        dist.Gamma(torch.ones(2, 3), 1.0).to_event(2),
        dist.Normal(torch.zeros(2, 3), 1.0).to_event(1).mask(False),
        BY_NAME["expanded_normal"]((2, 3)).to_event(1),
        dist.Delta(x, event_dim=1),
    ]:
        y = intervene(d, x, {0: torch.tensor(9.0), -1: torch.tensor([7, 8])})
        assert y.tolist() == [[9.0, 1.0, 7.0], [9.0, 4.0, 8.0]]
        assert y.dtype == x.dtype


def test_a_clamped_coordinate_may_differ_between_worlds():
    d = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
    y = intervene(d, torch.zeros(2, 3), {1: torch.ones(4, 2)})
    assert y.shape == (4, 2, 3)
    assert y.sum(-1).tolist() == torch.ones(4, 2).tolist()


@pytest.mark.parametrize("i", [3, -4])
def test_no_such_coordinate(i):
    d = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    with pytest.raises(ValueError, match=f"no coordinate {i}: expected one of 3 coordinates"):
        intervene(d, torch.zeros(3), {i: torch.tensor(1.0)})


@pytest.mark.parametrize(
    "d",
    [
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3)).to_event(1),
        dist.OneHotCategorical(torch.ones(3)).mask(True),
        dist.Normal(torch.zeros(3), 1.0),
        dist.Delta(torch.zeros(3)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_dependent_coordinates_are_refused(d):
    with pytest.raises(TypeError, match=r"cannot be set.*intervene\.register\("):
        intervene(d, torch.zeros(d.shape()), {0: torch.tensor(1.0)})
