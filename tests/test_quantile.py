"""Distribution functions and their inverses, against densities and arbitrary precision."""

import itertools
import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from families import CONTINUOUS
from scipy import stats

from pyro_causal._cdf import RESIDUAL, SCORED, TRANSFORMED, cdf, von_mises_law
from pyro_causal._quantile import Law, count_quantile, normal_score, quantile
from pyro_causal._tails import beta_tails, gamma_tails, log1mexp, student_tails, von_mises_tails

F64 = torch.float64
QUANTILES = [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6]


def tensor(value):
    return torch.tensor(value, dtype=F64)


def assert_log_tails(actual, cdf_value, sf_value):
    """Compare with arbitrary precision, both tails relatively."""
    for log_p, p in zip(actual, (cdf_value, sf_value), strict=True):
        assert log_p.item() == pytest.approx(float(mpmath.log(p)), rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("a", [0.05, 0.7, 3.0, 1e4])
def test_gamma_tails(a):
    with mpmath.workdps(50):
        for q in QUANTILES:
            z = float(stats.gamma.ppf(q, a))
            below = mpmath.gammainc(a, 0, z, regularized=True)
            above = mpmath.gammainc(a, z, mpmath.inf, regularized=True)
            assert_log_tails(gamma_tails(tensor(z), tensor(a)), below, above)


@pytest.mark.parametrize(("a", "b"), list(itertools.product([0.3, 3.0, 1e3], repeat=2)))
def test_beta_tails(a, b):
    with mpmath.workdps(50):
        for q in QUANTILES:
            odds = float(stats.betaprime.ppf(q, a, b))
            x, y = (mpmath.mpf(v) / (1 + mpmath.mpf(odds)) for v in (odds, 1))
            below = mpmath.betainc(a, b, 0, x, regularized=True)
            above = mpmath.betainc(b, a, 0, y, regularized=True)
            assert_log_tails(beta_tails(tensor(odds), tensor(a), tensor(b)), below, above)


@pytest.mark.parametrize("df", [0.3, 1.0, 30.0, 1e4])
def test_student_tails(df):
    with mpmath.workdps(50):
        for z in [-50.0, -1.0, -1e-9, 0.0, 1e-5, 0.3, 4.0]:
            outside = df / (df + mpmath.mpf(z) ** 2)
            tail = mpmath.betainc(mpmath.mpf(df) / 2, 0.5, 0, outside, regularized=True) / 2
            below, above = (tail, 1 - tail) if z < 0 else (1 - tail, tail)
            tails = student_tails(tensor(z), tensor(df))
            for log_p, p in zip(tails, (below, above), strict=True):
                assert log_p.item() == pytest.approx(float(mpmath.log(p)), rel=1e-9)


@pytest.mark.parametrize("concentration", [1e-3, 0.5, 100.0, 1e6])
def test_von_mises_tails(concentration):
    for deviations in [0.0, 0.1, 1.0, 3.0]:
        z = min(deviations / math.sqrt(concentration), 3.1)
        ends = [z + 10.0**e for e in range(-5, 1) if z + 10.0**e < 3.14]
        with mpmath.workdps(30):
            above = mpmath.quad(
                lambda t: mpmath.exp(concentration * mpmath.cos(t)), [z, *ends, mpmath.pi]
            )
            above /= 2 * mpmath.pi * mpmath.besseli(0, concentration)
            tails = von_mises_tails(tensor(z), tensor(concentration))
            assert_log_tails(tails, 1 - above, above)
        mirrored = von_mises_tails(tensor(-z), tensor(concentration))
        torch.testing.assert_close(mirrored[0], tails[1])


def test_log1mexp():
    for t in [-1e-250, -1e-9, -0.3, -0.69, -0.71, -5.0, -700.0]:
        with mpmath.workdps(300):
            expected = float(mpmath.log(1 - mpmath.exp(t)))
        assert log1mexp(tensor(t)).item() == pytest.approx(expected, rel=1e-14)


def test_scores_of_tails_that_underflow():
    for log_p in [math.log(0.5), -1.0, -599.0, -601.0, -1e4, -1e8]:
        score = normal_score(tensor(log_p), log1mexp(tensor(log_p)))
        assert torch.special.log_ndtr(score).item() == pytest.approx(log_p, rel=1e-13)
        assert normal_score(log1mexp(tensor(log_p)), tensor(log_p)).item() == pytest.approx(-score)
    assert normal_score(tensor(-math.inf), tensor(0.0)) == -math.inf


def known(name):
    d = next(case for case in CONTINUOUS if case.name == name)((3,), F64)
    return (von_mises_law if name == "von_mises" else cdf)(d), d


TABULATED = [
    case.name
    for case in CONTINUOUS
    if not case().event_shape
    and (isinstance(case(), tuple(RESIDUAL | SCORED | TRANSFORMED)) or "mixture" in case.name)
] + ["folded_laplace", "von_mises"]


@pytest.mark.parametrize("name", TABULATED)
def test_distribution_functions_integrate_the_density(name):
    torch.set_default_dtype(F64)  # torch's GeneralizedPareto cannot score float64 otherwise
    law, d = known(name)
    x = d.sample((200,))
    if name == "von_mises":
        x, d = x - 0.5 * d.loc, dist.VonMises(0.0, d.concentration)  # angles from the location
        x = (x + math.pi).remainder(2 * math.pi) - math.pi
    x.requires_grad_()
    log_cdf, log_sf = law.tails(x, *law.parameters)
    torch.testing.assert_close(log_cdf.exp() + log_sf.exp(), torch.ones_like(x))
    small = log_cdf < log_sf
    tail = torch.where(small, log_cdf.exp(), -log_sf.exp())
    (density,) = torch.autograd.grad(tail.sum(), x)
    torch.testing.assert_close(density, d.log_prob(x).exp().detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.skipif("generalized_pareto" not in TABULATED, reason="needs a later torch")
@pytest.mark.parametrize("concentration", [-2.0, -0.5, 1e-9, 3.0])
def test_quantiles_near_an_end_of_the_support(concentration):
    part = dist.GeneralizedPareto(tensor([1.0, 1.0]), tensor(2.0), tensor(concentration))
    d = dist.MixtureSameFamily(dist.Categorical(torch.ones(2, dtype=F64)), part)
    p = tensor([1e-12, 1e-6, 0.3, 0.9, 1 - 1e-6, 1 - 1e-12])
    x = 1 + 2 * (-concentration * (-p).log1p()).expm1() / concentration
    y = quantile(cdf(d), torch.special.ndtri(p))
    torch.testing.assert_close(y, x, rtol=1e-3 if concentration == 3.0 else 1e-12, atol=0.0)
    torch.testing.assert_close(quantile(cdf(d), cdf(d).score(x)), x, rtol=1e-10, atol=0.0)


def test_every_tabulated_family_is_tested():
    tested = tuple(type(known(name)[1]) for name in TABULATED)
    for family in [*RESIDUAL, *SCORED, *TRANSFORMED]:
        if family.__name__ != "LogitRelaxedBernoulli":
            assert any(issubclass(t, family) for t in tested), family


def cube_law(shift):
    """A law whose score is the real cube root of x - shift: flat and steep by turns."""

    def tails(x, shift):
        u = (x - shift).sign() * (x - shift).abs() ** (1 / 3)
        return torch.special.log_ndtr(u), torch.special.log_ndtr(-u)

    return Law(tails, (shift,), lambda t, _: t, F64)


def test_roots_are_found_at_any_distance():
    u = torch.linspace(-6.0, 6.0, 41, dtype=F64)
    for shift in [0.0, 1e-9, -700.0]:
        x = quantile(cube_law(tensor(shift)), u)
        torch.testing.assert_close(x, u**3 + shift, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TABULATED)
def test_the_score_of_a_quantile_is_where_it_started(name):
    law, _ = known(name)
    u = torch.linspace(-6.0, 6.0, 1201, dtype=F64).unsqueeze(-1)
    x = quantile(law, u).requires_grad_()
    score = law.score(x)
    (slope,) = torch.autograd.grad(score.sum(), x)
    rounding = 1e-15 * (x.abs() + 3) * slope  # of x and of its location
    assert ((score - u).abs() <= 1e-13 + rounding).all()


@pytest.mark.parametrize("name", TABULATED)
def test_distribution_functions_have_no_gaps(name):
    law, _ = known(name)
    far = 10 ** torch.linspace(0.0, 150.0, 1001, dtype=F64)
    x = torch.cat([-far.flip(0), far]).unsqueeze(-1)
    log_cdf, log_sf = law.tails(x, *law.parameters)
    if name != "folded_laplace":  # reads its base on both sides
        assert (log_cdf.diff(dim=0) >= 0).all()
        assert (log_sf.diff(dim=0) <= 0).all()
    assert not (log_cdf.isnan() | log_sf.isnan()).any()


@pytest.mark.parametrize("p", [1e-12, 1e-6, 0.3, 0.5, 0.9, 1 - 1e-6, 1 - 1e-12])
def test_quantiles(p):
    score = tensor(stats.norm.ppf(p))
    for d, law in [
        (dist.Gamma(tensor(0.3), tensor(1.0)), stats.gamma(0.3)),
        (dist.Beta(tensor(2.0), tensor(5.0)), stats.beta(2.0, 5.0)),
        (dist.StudentT(tensor(3.0)), stats.t(3.0)),
        (dist.FisherSnedecor(tensor(3.0), tensor(2.0)), stats.f(3.0, 2.0)),
        (
            dist.AsymmetricLaplace(tensor(0.0), tensor(1.0), tensor(2.0)),
            stats.laplace_asymmetric(2.0),
        ),
        (dist.Kumaraswamy(tensor(1.0), tensor(5.0)), stats.beta(1.0, 5.0)),
        (dist.SkewLogistic(tensor(0.0), tensor(1.0), tensor(3.0)), stats.genlogistic(3.0)),
    ]:
        assert quantile(cdf(d), score).item() == pytest.approx(law.ppf(p), rel=1e-9, abs=1e-12)


def test_a_score_out_of_reach_is_the_end_of_the_support():
    law = cdf(dist.Beta(tensor(0.5), tensor(0.05)))  # most of it lies nearer to 1 than float64 goes
    assert quantile(law, tensor(5.0)) == 1.0
    assert quantile(law, tensor(math.nan)).isnan()
    uniform = dist.Uniform(tensor([2.0, 1.0]), tensor([5.0, 4.0]))
    halves = dist.Categorical(torch.ones(2, dtype=F64))
    ends = quantile(cdf(dist.MixtureSameFamily(halves, uniform)), tensor([-50.0, 50.0]))
    assert ends.tolist() == pytest.approx([1.0, 5.0])
    folded = dist.FoldedDistribution(dist.Uniform(tensor(-4.0), tensor(1.0)))
    assert quantile(cdf(folded), tensor([-50.0, 50.0])).tolist() == pytest.approx([0.0, 4.0])


def test_counts_are_found_at_any_distance():
    for rate in [1e-3, 10.0, 1e9]:
        u = torch.tensor([-3.0, 0.0, 3.0], dtype=F64)
        k = count_quantile(cdf(dist.Poisson(tensor(rate))), u)
        expected = stats.poisson.ppf(stats.norm.cdf(u.numpy()), rate)
        assert k.tolist() == expected.tolist()
    assert count_quantile(cdf(dist.Poisson(tensor(3.0))), tensor(math.nan)).isnan()
