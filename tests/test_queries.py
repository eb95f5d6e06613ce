"""Queries against closed forms, on all three rungs, and what they refuse."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import SVI, Predictive, Trace_ELBO, autoguide
from pyro.optim import Adam
from torch import Tensor, tensor

from pyro_causal.handlers import do, soft
from pyro_causal.metrics import composition
from pyro_causal.queries import (
    CounterfactualPredictive,
    QueryResult,
    counterfactual_function,
    query,
)

NUMBER = 20_000
B, C, R = 0.8, 1.5, 0.5  # y = B x + C u + noise of scale R


def confounded() -> None:
    """A hidden u moves x and y."""
    u = pyro.sample("u", dist.Normal(0.0, 1.0))
    x = pyro.sample("x", dist.Normal(u, 1.0))
    pyro.sample("y", dist.Normal(B * x + C * u, R))


def textbook() -> Tensor:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    h = pyro.sample("h", dist.Normal(0.5 * x, 1.0))
    return pyro.sample("y", dist.Normal(0.7 * x + 0.4 * h, 1.0))


UNIT = {"x": 0.5, "h": 1.0, "y": 1.5}


def assert_mean(result: QueryResult, expected: Any, std: float | None = None) -> None:
    """The mean, and the standard deviation, within four standard errors."""
    expected = torch.as_tensor(expected, dtype=result.mean.dtype)
    assert result.mean.shape == expected.shape
    error = (result.mean - expected).abs()
    assert bool((error <= 4 * result.std / math.sqrt(result.ess) + 1e-6).all()), (result, expected)
    if std is not None:
        torch.testing.assert_close(
            result.std, torch.full_like(expected, std), rtol=6 / math.sqrt(result.ess), atol=1e-6
        )


# The three rungs


def test_association() -> None:
    """E[u | x] = x / 2, with variance 1 / 2."""
    result = query(confounded, "y", given={"x": 1.2}, num_samples=NUMBER)
    assert result.rung == "association"
    assert_mean(result, B * 1.2 + C * 0.6, math.sqrt(C**2 / 2 + R**2))
    prior = query(confounded, "y", num_samples=NUMBER)
    assert prior.rung == "association"
    assert_mean(prior, 0.0, math.sqrt((B + C) ** 2 + B**2 + R**2))


def test_intervention() -> None:
    result = query(confounded, "y", do={"x": 1.2}, num_samples=NUMBER)
    assert result.rung == "intervention"
    assert_mean(result, B * 1.2, math.sqrt(C**2 + R**2))


def test_counterfactual_of_the_treated() -> None:
    """Evidence on the target of the action is evidence about u."""
    result = query(confounded, "y", do={"x": 3.0}, given={"x": 1.2}, num_samples=NUMBER)
    assert result.rung == "counterfactual"
    assert_mean(result, B * 3.0 + C * 0.6, math.sqrt(C**2 / 2 + R**2))


def test_counterfactual_is_additive_whatever_the_confounder() -> None:
    result = query(confounded, "y", do={"x": 3.0}, given={"x": 1.2, "y": 2.0})
    torch.testing.assert_close(result.mean, tensor(2.0 + B * 1.8))
    assert float(result.std) < 1e-5


def test_counterfactual_of_an_unobserved_site() -> None:
    """The posterior of u given y, and u does not respond to x."""
    gain = (B + C) / ((B + C) ** 2 + B**2 + R**2)
    result = query(confounded, "u", do={"x": 3.0}, given={"y": 1.0}, num_samples=NUMBER)
    assert_mean(result, gain, math.sqrt(1 - gain * (B + C)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_textbook_counterfactual_is_exact(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    result = query(textbook, "y", do={"h": 2.0}, given=UNIT)
    assert abs(float(result) - 1.9) < (1e-6 if dtype == torch.float32 else 1e-14)
    assert result.mean.dtype == dtype
    assert (result.source, len(result.draws), float(result.std)) == ("exact", 1, 0.0)
    shifted = query(
        textbook, "y", do={"h": soft(lambda d: dist.Normal(d.loc + 1, 2.0))}, given=UNIT
    )
    assert abs(float(shifted) - (1.5 + 0.4 * (1.25 + 1.5 - 1.0))) < 1e-6
    assert shifted.source == "exact"


def test_an_action_that_draws_is_not_exact() -> None:
    result = query(textbook, "y", do={"h": dist.Normal(2.0, 1.0)}, given=UNIT, num_samples=NUMBER)
    assert_mean(result, 1.9, 0.4)


def test_evidence_of_the_program_is_evidence() -> None:
    def observing(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=tensor(0.5))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    result = query(observing, "y", do={"x": 1.0}, args=(tensor(2.0),))
    assert (result.rung, float(result)) == ("counterfactual", 2.5)
    assert float(query(observing, "y", do={"x": 1.0}, kwargs={"y": tensor(3.0)})) == 3.5


def test_condition_on_what_an_intervention_brings_about() -> None:
    """P(u | do(x), y) comes from the intervened program."""
    intervened = do(confounded, {"x": 2.0})
    result = query(intervened, "u", given={"y": 1.0}, num_samples=NUMBER)
    gain = C / (C**2 + R**2)
    assert_mean(result, gain * (1.0 - B * 2.0), math.sqrt(1 - gain * C))


def test_factors_weigh() -> None:
    def tilted() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("tilt", x)

    assert_mean(query(tilted, "x", num_samples=NUMBER), 1.0, 1.0)


# Discrete sites


def binary() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.4))
    x = pyro.sample("x", dist.Bernoulli(0.2 + 0.5 * z))
    pyro.sample("y", dist.Bernoulli(0.1 + 0.3 * x + 0.4 * z))


def test_discrete_counterfactual_by_enumeration() -> None:
    """With one logistic noise per site, y stays one at x = 0 with probability p_0 / p_1."""
    share, kept = [], []
    for z, prior in ((0, 0.6), (1, 0.4)):
        share.append(prior * (0.2 + 0.5 * z) * (0.4 + 0.4 * z))
        kept.append((0.1 + 0.4 * z) / (0.4 + 0.4 * z))
    expected = sum(s * k for s, k in zip(share, kept, strict=True)) / sum(share)
    result = query(binary, "y", do={"x": 0}, given={"x": 1, "y": 1}, num_samples=NUMBER)
    assert_mean(result, expected)
    assert result.conventions == {"y": "Gumbel-max"}
    assert_mean(
        query(binary, "z", given={"x": 1, "y": 1}, num_samples=NUMBER), share[1] / sum(share)
    )


def test_noise_of_a_discrete_site_is_drawn_though_all_is_observed() -> None:
    result = query(binary, "y", do={"x": 0}, given={"z": 0, "x": 1, "y": 1}, num_samples=NUMBER)
    assert len(result.draws) == NUMBER
    assert result.source == "of the noise, given the evidence"
    assert_mean(result, 0.25)
    unmoved = query(binary, "y", do={"x": 1}, given={"z": 0, "x": 0, "y": 1})
    assert float(unmoved) == 1.0
    assert float(query(binary, "x", do={"y": 0}, given={"z": 0, "x": 1, "y": 1})) == 1.0


def test_counts_have_another_convention() -> None:
    def counts() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("n", dist.Poisson(x.exp()))

    result = query(counts, "n", do={"x": 1.0}, given={"x": 0.0, "n": 2})
    assert result.conventions == {"n": "uniform within the step of the distribution function"}
    assert bool((result.draws >= 2).all())


def test_vectors_of_discrete_sites_have_a_convention() -> None:
    def votes() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("v", dist.Bernoulli(logits=x[..., None].expand(*x.shape, 3)).to_event(1))

    result = query(votes, "v", do={"x": 9.0}, given={"x": 0.0, "v": tensor([0.0, 1.0, 1.0])})
    assert result.conventions == {"v": "Gumbel-max"}
    assert result.samples.shape == (1000, 3)
    assert bool((result.samples[:, 1:] == 1).all())


def test_a_distribution_without_support_is_taken_as_it_is() -> None:
    """And one that cannot be expanded over draws, all the same."""

    def wrapped() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", ZukoToPyro(torch.distributions.Normal(2 * x, 1.0)))

    unit = {"x": 1.0, "y": 5.0}
    assert float(query(wrapped, "y", do={"x": 3.0}, given=unit, parallel=False)) == 9.0


# Units of a plate


def rows(n: int) -> None:
    with pyro.plate("rows", n):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(u, 1.0))
        y = pyro.sample("y", dist.Normal(B * x + C * u, R))
        double = pyro.deterministic("double", 2 * y)
    pyro.deterministic("total", double.sum(-1))


def test_units_are_weighed_apart() -> None:
    x = tensor([1.2, -0.3, 0.0])
    options = {"do": {"x": 3.0}, "given": {"x": x}, "num_samples": NUMBER, "args": (3,)}
    result = query(rows, "y", **options)
    assert result.weights.shape == (NUMBER, 3)
    assert_mean(result, B * 3.0 + C * x / 2, math.sqrt(C**2 / 2 + R**2))
    assert result.ess > NUMBER / 3
    doubled = query(rows, "double", **options)
    assert doubled.weights.shape == (NUMBER, 3)
    assert_mean(doubled, 2 * (B * 3.0 + C * x / 2))


def test_a_site_of_many_units_weighs_them_together() -> None:
    x = tensor([1.2, -0.3, 0.0])
    result = query(rows, "total", do={"x": 3.0}, given={"x": x}, num_samples=NUMBER, args=(3,))
    assert result.weights.shape == (NUMBER,)
    assert_mean(result, 2 * (3 * B * 3.0 + C * x.sum() / 2), 2 * math.sqrt(3 * (C**2 / 2 + R**2)))


def test_a_shared_latent_site_weighs_units_together() -> None:
    def shared() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(mean, 1.0))

    y = tensor([0.5, 1.5, 1.0, 2.0])
    assert_mean(query(shared, "mean", given={"y": y}, num_samples=NUMBER), 1.0, math.sqrt(1 / 5))


def test_units_that_share_a_latent_site_are_weighed_together() -> None:
    """Though both the question and the evidence stand in the plate."""

    def shared() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(mean, 1.0))
            pyro.sample("new", dist.Normal(mean, 0.1))

    y = tensor([0.5, 1.5, 1.0, 2.0])
    result = query(shared, "new", given={"y": y}, num_samples=NUMBER)
    assert_mean(result, torch.ones(4), math.sqrt(1 / 5 + 0.01))


def test_evidence_that_does_not_tell_draws_apart_leaves_units_apart() -> None:
    """The shared `mean` is observed, so that nothing ties the rows together."""

    def shared() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            u = pyro.sample("u", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(u, 1.0))

    y = tensor([0.5, 1.5, 1.0, 2.0])
    result = query(shared, "u", given={"mean": 1.0, "y": y}, num_samples=NUMBER)
    assert result.weights.shape == (NUMBER, 4)
    assert_mean(result, (1.0 + y) / 2, math.sqrt(0.5))


def test_nested_plates_and_events() -> None:
    """Units of the outer plate are weighed apart, those of the inner together."""

    def nested() -> None:
        with pyro.plate("outer", 2, dim=-2):
            a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("inner", 4, dim=-1):
                pyro.sample("y", dist.Normal(a, 1.0).to_event(1))

    y = torch.arange(24.0).reshape(2, 4, 3) / 20 - 0.6
    result = query(nested, "a", given={"y": y}, num_samples=NUMBER)
    assert result.weights.shape == (NUMBER, 2, 1, 1)
    assert_mean(result, y.sum(1, keepdim=True) / 5, math.sqrt(1 / 5))
    moved = query(nested, "y", do={"a": lambda a: a + 1}, given={"y": y}, num_samples=500)
    torch.testing.assert_close(moved.mean, y + 1, atol=1e-4, rtol=0)


def test_a_subsampled_plate_is_weighed_as_a_whole() -> None:
    def subsampled() -> None:
        with pyro.plate("rows", 4, subsample_size=2):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(u, 1.0))

    result = query(subsampled, "u", given={"y": tensor([0.1, 0.2])})
    assert result.weights.shape == (1000, 1)


def test_evidence_before_all_open_sites_costs_nothing() -> None:
    result = query(textbook, "y", given={"x": 1.0})
    assert (result.source, result.ess) == ("from the program", pytest.approx(1000))


def test_draws_that_the_evidence_excludes() -> None:
    """With y = z v, uniform z and v, the moments of z given y are known; draws have z < y too."""

    def bounded() -> None:
        with pyro.plate("rows", 2):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            y = pyro.sample("y", dist.Uniform(0.0, z))
            pyro.deterministic("root", (z - y).sqrt())

    y = tensor([0.2, 0.6])
    result = query(bounded, "y", do={"z": 0.5}, given={"y": y}, num_samples=NUMBER)
    assert_mean(result, 0.5 * y * (1 / y - 1) / (1 / y).log())
    assert bool((result.weights == 0).any())
    angle = (1 / y - 1).sqrt().atan()
    root = query(bounded, "root", given={"y": y}, num_samples=NUMBER)
    assert_mean(root, 2 * ((1 - y).sqrt() - y.sqrt() * angle) / (1 / y).log())


def test_evidence_on_what_the_program_shifts_is_natural() -> None:
    """Even if the shift leaves the support. E[z | y] is known."""

    def bounded() -> None:
        z = pyro.sample("z", dist.Uniform(0.0, 1.0))
        pyro.sample("y", dist.Uniform(0.0, z))

    shifted = do(bounded, {"y": lambda y: y + 5})
    assert_mean(query(shifted, "z", given={"y": 0.4}, num_samples=NUMBER), 0.6 / math.log(2.5))
    assert float(query(shifted, "y", given={"y": 0.4})) == pytest.approx(5.4)


def test_masked_evidence_says_nothing() -> None:
    def masked() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2), poutine.mask(mask=tensor([True, False])):
            pyro.sample("y", dist.Normal(u, 1.0))

    result = query(masked, "u", given={"y": tensor([1.0, 50.0])}, num_samples=NUMBER)
    assert_mean(result, 0.5, math.sqrt(0.5))


# Where open sites come from


def exact_guide() -> None:
    """The posterior of u given x = 1.2."""
    pyro.sample("u", dist.Normal(0.6, math.sqrt(0.5)))


def test_guide() -> None:
    options = {"do": {"x": 3.0}, "given": {"x": 1.2}, "num_samples": NUMBER}
    result = query(confounded, "y", guide=exact_guide, **options)
    assert result.source == "from the guide"
    assert result.ess == pytest.approx(NUMBER)
    assert_mean(result, B * 3.0 + C * 0.6, math.sqrt(C**2 / 2 + R**2))


def test_posterior_samples() -> None:
    u = 0.6 + math.sqrt(0.5) * torch.randn(500)
    result = query(confounded, "u", given={"x": 1.2}, posterior_samples={"u": u})
    assert result.source == "from posterior_samples"
    torch.testing.assert_close(result.draws, u)
    draws = CounterfactualPredictive(confounded, [{"x": 3.0}], posterior_samples={"u": u})()
    assert torch.equal(draws["u"], u[:, None].expand(-1, 2))
    assert draws["y"].shape == (500, 2)


def test_an_interventional_query_with_a_guide() -> None:
    result = query(confounded, "y", do={"x": 3.0}, guide=exact_guide, num_samples=NUMBER)
    assert result.rung == "intervention"
    assert_mean(result, B * 3.0 + C * 0.6)


def untold_guide(evidence: Mapping[str, Tensor] | None = None) -> None:
    """The posterior of u given x, which has to be told; else the prior of both."""
    x = (evidence or {}).get("x")
    u = pyro.sample("u", dist.Normal(0.0 if x is None else x / 2, math.sqrt(0.5)))
    if x is None:
        pyro.sample("x", dist.Normal(u, 1.0))


def told(evidence: Mapping[str, Tensor] | None = None) -> None:
    confounded()


def test_a_guide_that_draws_the_evidence_was_not_told() -> None:
    """It would draw u as if x were unknown, and its x would be thrown away."""
    given, message = {"x": tensor(1.2)}, r"At site 'x', a guide that draws the evidence: expected"
    for graph in (None, "program"):
        with pytest.warns(UserWarning, match=message + r".*args=\(given,\)"):
            query(told, "u", given=given, guide=untold_guide, graph=graph, allow_unidentified=True)
    observed = poutine.condition(told, given)
    with pytest.warns(UserWarning, match=message):
        query(observed, "u", guide=untold_guide)
    for parallel in (True, False):
        options = {"guide": untold_guide, "parallel": parallel}
        with pytest.warns(UserWarning, match=message):
            CounterfactualPredictive(observed, [{"x": 0.0}], **options)()
    with pytest.warns(UserWarning, match=message):
        counterfactual_function(told, guide=untold_guide)(given, {"x": 0.0})


def test_a_guide_that_takes_the_evidence() -> None:
    given = {"x": tensor(1.2)}
    result = query(told, "u", given=given, guide=untold_guide, args=(given,), num_samples=NUMBER)
    assert_mean(result, 0.6, math.sqrt(0.5))
    observed = poutine.condition(untold_guide, given)
    for guide in (observed, do(untold_guide, given)):  # which do not draw it
        assert float(query(told, "x", given=given, guide=guide, num_samples=5)) == tensor(1.2)
    sound = counterfactual_function(told, guide=untold_guide, arguments=lambda e: (e,))
    assert sound(given, {"x": 0.0})["x"] == 0.0


def test_a_guide_may_draw_what_an_intervention_sets() -> None:
    result = query(do(told, {"x": 3.0}), "y", guide=untold_guide, num_samples=NUMBER)
    assert_mean(result, B * 3.0, math.sqrt(C**2 / 2 + R**2))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    "family",
    [
        autoguide.AutoDelta,
        autoguide.AutoNormal,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
    ],
)
def test_automatic_guides(family: Callable[[Any], Any], parallel: bool) -> None:
    evidence = {"x": tensor([1.2, -0.3, 0.0]), "y": torch.zeros(3)}
    observed = poutine.condition(rows, evidence)
    draws = CounterfactualPredictive(
        observed, [{"x": 1.0}], guide=family(observed), num_samples=4, parallel=parallel
    )(3)
    assert {name: value.shape[:2] for name, value in draws.items()} == dict.fromkeys(draws, (4, 2))
    expected = (B * (1.0 - evidence["x"])).expand(4, 3)
    torch.testing.assert_close(draws["y"][:, 1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(draws["total"][:, 1], 2 * expected.sum(-1), atol=1e-5, rtol=0)


def test_a_trained_guide() -> None:
    evidence = {"x": tensor([1.2, -0.3]), "y": tensor([2.0, 0.5])}
    observed = poutine.condition(rows, evidence)
    guide = autoguide.AutoNormal(observed)
    svi = SVI(observed, guide, Adam({"lr": 0.05}), Trace_ELBO(num_particles=4))
    for _ in range(200):
        svi.step(2)
    result = query(rows, "u", given=evidence, guide=guide, num_samples=4000, args=(2,))
    precision = 1 + 1 + C**2 / R**2
    expected = (evidence["x"] + C * (evidence["y"] - B * evidence["x"]) / R**2) / precision
    torch.testing.assert_close(result.mean, expected, atol=0.1, rtol=0)


def test_sites_left_to_the_prior_warn() -> None:
    def partial_guide() -> None:
        pass

    with pytest.warns(UserWarning, match="At site 'u', no posterior: 'u' come from the prior"):
        query(confounded, "y", given={"x": 1.2}, guide=partial_guide)
    observed = poutine.condition(confounded, {"y": tensor(1.0)})
    with pytest.warns(UserWarning, match="At site 'u', no posterior: 'u', 'x' come from"):
        CounterfactualPredictive(observed, [{"x": 1.0}])()
    after = poutine.condition(confounded, {"u": tensor(1.0)})
    CounterfactualPredictive(after, [{"x": 1.0}])()  # x and y come after the evidence


def test_few_effective_draws_warn() -> None:
    def sharp() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(u, 1e-3))

    with pytest.warns(UserWarning, match=r"Only \d\.\d of 500 draws .* Pass a guide"):
        query(sharp, "u", given={"y": 2.0}, num_samples=500)


@pytest.mark.filterwarnings("ignore:Only .* draws from the prior")
def test_one_by_one_equals_all_at_once() -> None:
    x = tensor([1.2, -0.3, 0.0])
    options = {"do": {"x": 3.0}, "given": {"x": x, "y": torch.ones(3)}, "args": (3,)}
    for of in ("y", "double", "total"):
        once = query(rows, of, num_samples=300, **options)
        each = query(rows, of, num_samples=300, parallel=False, **options)
        assert once.draws.shape == each.draws.shape
        assert once.weights.shape == each.weights.shape
        torch.testing.assert_close(once.mean, each.mean, atol=1e-4, rtol=0)
    each = query(confounded, "y", given={"x": 1.2}, num_samples=1500, parallel=False)
    assert_mean(each, B * 1.2 + C * 0.6, math.sqrt(C**2 / 2 + R**2))


def test_a_program_that_cannot_broadcast() -> None:
    def branching() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(1.0 if u > 0 else -1.0, 0.1))

    with pytest.raises(RuntimeError) as caught:
        query(branching, "y")
    assert any("pass parallel=False" in note for note in caught.value.__notes__)
    result = query(branching, "u", given={"y": 1.0}, num_samples=500, parallel=False)
    assert_mean(result, math.sqrt(2 / math.pi))


# CounterfactualPredictive


@pytest.mark.parametrize("parallel", [True, False])
def test_every_site_has_draws_and_worlds(parallel: bool) -> None:
    def mixed(n: int) -> None:
        pyro.factor("nothing", torch.zeros(()))
        dose = pyro.deterministic("dose", tensor(2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * level)
        with pyro.plate("rows", n):
            x = pyro.sample("x", dist.Normal(level, 1.0))
            z = pyro.sample("z", dist.Normal(dose, scale[..., 0]))
            event = torch.stack(torch.broadcast_tensors(x, z), -1)
            y = pyro.sample("y", dist.Normal(event, 1.0).to_event(1))
        pyro.deterministic("mean", y.mean(-2))
        pyro.deterministic("spread", y.std((-1, -2)))
        pyro.deterministic("sizes", tensor([1.0, 2.0, 3.0]))

    shapes = {
        "dose": (), "scale": (2,), "level": (), "twice": (), "x": (5,), "z": (5,), "y": (5, 2),
        "mean": (2,), "spread": (), "sizes": (3,),
    }  # fmt: skip
    actions = [{"level": 0.0, "dose": 1.0}, {"x": 1.0, "z": 2.0}]
    draws = CounterfactualPredictive(mixed, actions, num_samples=7, parallel=parallel)(5)
    assert {name: value.shape for name, value in draws.items()} == {
        name: (7, 3, *shape) for name, shape in shapes.items()
    }
    assert torch.equal(draws["dose"], tensor([2.0, 1.0, 2.0]).expand(7, 3))
    assert torch.equal(draws["twice"], 2 * draws["level"])
    assert bool((draws["level"][:, 1] == 0.0).all())
    assert bool((draws["x"][:, 2] == 1.0).all())
    torch.testing.assert_close(draws["z"][:, 0] - 1, draws["z"][:, 1])
    assert torch.equal(draws["scale"][:, 0], draws["scale"][:, 2])
    assert torch.equal(draws["y"].mean(-2), draws["mean"])
    torch.testing.assert_close(draws["y"].std((-1, -2)), draws["spread"])
    assert len(draws["level"][:, 0].unique()) == 7


def test_deterministic_sites_find_their_axes() -> None:
    """Without event_dim, in and outside of plates, with as many draws as worlds."""

    def model() -> None:
        with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.deterministic("pair", torch.stack([x, -x], -1))
            y = pyro.deterministic("y", 2 * x)
        pyro.deterministic("sums", y.sum((-1, -2)))

    draws = CounterfactualPredictive(model, [{"x": 1.0}], num_samples=2)()
    x = draws["x"]
    assert torch.equal(draws["y"], 2 * x)
    assert torch.equal(draws["pair"], torch.stack([x, -x], -1))
    torch.testing.assert_close(draws["sums"], 2 * x.sum((-1, -2)))


def test_null_intervention_reproduces_the_evidence() -> None:
    evidence = {"x": torch.randn(3), "y": torch.randn(3)}
    observed = poutine.condition(rows, evidence)
    guide = autoguide.AutoNormal(observed)
    draws = CounterfactualPredictive(observed, [{"x": evidence["x"]}], guide=guide, num_samples=9)(
        3
    )
    for name, value in evidence.items():
        torch.testing.assert_close(draws[name], value.expand(9, 2, 3))
    assert torch.equal(draws["x"][:, 0], evidence["x"].expand(9, 3))


def test_factual_world_is_distributed_as_the_program() -> None:
    draws = CounterfactualPredictive(confounded, [{"x": 1.0}], num_samples=NUMBER)()["y"][:, 0]
    plain = Predictive(confounded, num_samples=2000)()["y"]
    assert draws.std().item() == pytest.approx(plain.std().item(), rel=0.1)
    assert abs(draws.mean().item()) < 4 * draws.std().item() / math.sqrt(NUMBER)


def test_return_sites_and_repeated_calls() -> None:
    predictive = CounterfactualPredictive(rows, [{"x": 1.0}], return_sites=["y"], num_samples=2)
    assert {name: v.shape for name, v in predictive(3).items()} == {"y": (2, 2, 3)}
    assert predictive(4)["y"].shape == (2, 2, 4)


def test_a_module_with_parameters_is_found() -> None:
    class Line(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self) -> None:
            x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.layer(x), 1.0).to_event(1))

    model = Line()
    predictive = CounterfactualPredictive(model, [{"x": 2.0}])
    assert len(list(predictive.parameters())) == 2
    assert not predictive()["y"].requires_grad
    given = {"x": torch.zeros(1), "y": torch.zeros(1)}
    result = query(model, "y", do={"x": 2.0}, given=given)
    torch.testing.assert_close(result.mean, 2 * model.layer.weight[0].detach())


def test_handlers_around_a_query_see_nothing() -> None:
    with poutine.trace() as tracer:
        query(confounded, "y", do={"x": 1.0}, given={"x": 0.0}, num_samples=5, guide=exact_guide)
    assert not tracer.trace.nodes


def test_counterfactual_function_feeds_the_metrics() -> None:
    def guide(n: int) -> None:
        with pyro.plate("rows", n):
            pyro.sample("u", dist.Normal(0.0, 1.0))

    sound = counterfactual_function(rows, guide=guide, arguments=lambda evidence: (3,))
    evidence = {"x": torch.randn(3), "y": torch.randn(3)}
    moved = sound(evidence, {"x": 1.0})
    torch.testing.assert_close(moved["y"], evidence["y"] + B * (1.0 - evidence["x"]))
    assert float(composition(sound, evidence, targets=["x"])["y"].max()) < 1e-5


# The result


def weighted() -> QueryResult:
    """Draws 1 to 4 for two units; the first unit weighs them .1 to .4, the second equally."""
    draws = torch.arange(1.0, 5.0)[:, None].expand(4, 2)
    weights = tensor([[0.1, 0.25], [0.2, 0.25], [0.3, 0.25], [0.4, 0.25]])
    return QueryResult("y", "association", {}, {}, draws, weights, "made up", {}, 0, {})


def test_statistics_use_the_weights() -> None:
    result = weighted()
    torch.testing.assert_close(result.mean, tensor([3.0, 2.5]))
    torch.testing.assert_close(result.std, tensor([1.0, math.sqrt(1.25)]))
    torch.testing.assert_close(result.prob(lambda y: y > 2.5), tensor([0.7, 0.5]))
    low, high = result.interval(0.5)  # quartiles
    assert low.tolist() == [2.0, 1.0]
    assert high.tolist() == [4.0, 3.0]
    assert result.ess == pytest.approx(1 / 0.3)


def test_samples_have_equal_weight() -> None:
    result = weighted()
    assert result.samples[:, 0].tolist() == [2.0, 3.0, 4.0, 4.0]
    assert result.samples[:, 1].tolist() == [1.0, 2.0, 3.0, 4.0]
    even = replace(result, weights=tensor([0.2, 0.3, 0.3, 0.2])[:, None])
    assert even.samples.tolist() == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]
    equal = query(confounded, "u")
    assert equal.samples is equal.draws
    many = query(confounded, "u", given={"x": 1.2}, num_samples=NUMBER)
    assert many.samples.mean().item() == pytest.approx(float(many), abs=0.01)
    assert many.samples.std().item() == pytest.approx(float(many.std), rel=1e-2)


def test_probability_of_an_event_over_vectors() -> None:
    def model() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.Categorical(tensor([0.2, 0.3, 0.5])))
        pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    share = query(model, "y", num_samples=NUMBER).prob(lambda y: y == 2)
    torch.testing.assert_close(share, tensor([0.5, 0.5]), atol=0.02, rtol=0)
    radius = query(model, "v", num_samples=NUMBER).prob(lambda v: v.square().sum(-1) < 2.366)
    torch.testing.assert_close(radius, tensor(0.5), atol=0.02, rtol=0)


def test_a_site_of_truth_values_answers_with_a_probability() -> None:
    def model() -> None:
        y = pyro.sample("y", dist.Normal(0.0, 1.0))
        pyro.deterministic("high", y > 0, event_dim=0)

    result = query(model, "high", num_samples=NUMBER)
    assert_mean(result, 0.5, 0.5)
    assert float(result.prob(lambda high: high)) == pytest.approx(float(result))
    assert "90% in 0 to 1" in repr(result)


def test_result_reads_well() -> None:
    pyro.set_rng_seed(17)
    text = repr(query(binary, "y", do={"x": 0}, given={"x": 1, "y": 1}))
    assert re.fullmatch(
        r"""y \(counterfactual\)
  do        x=0
  given     x=1, y=1
  value     mean 0\.\d+ ± 0\.\d+, 90% in 0 to 1
  draws     1000 \(from the prior, weighed by the evidence\), \d+ effective
  noise     y: Gumbel-max
  seed      17
  versions  pyro_causal \S+, pyro \S+, torch \S+""",
        text,
    )
    exact = str(query(textbook, "y", do={"h": 2.0}, given=UNIT))
    assert "  value     1.9\n  draws     1 (exact)\n" in exact
    units = str(query(rows, "y", given={"x": torch.zeros(6)}, args=(6,)))
    assert re.search(
        r"given     x=\[0, 0, 0, 0, \.\.\.\] \(6,\)\n  value     mean \[.*\] \(6,\)", units
    )
    assert "do   " not in units


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    query(confounded, "y", given={"x": 1.2}).plot(tmp_path / "y.png")
    assert (tmp_path / "y.png").stat().st_size > 0


def test_to_arviz() -> None:
    result = query(rows, "y", do={"x": 1.0}, given={"x": torch.zeros(3)}, args=(3,))
    data = result.to_arviz()
    assert data.posterior["y"].shape == (1, 1000, 3)
    assert data.posterior["y"].values[0, 5] == pytest.approx(result.samples[5].numpy())
    assert data.observed_data["x"].shape == (3,)


def test_draws_follow_the_seed() -> None:
    def draw() -> QueryResult:
        pyro.set_rng_seed(5)
        return query(confounded, "y", given={"x": 1.2})

    first, second = draw(), draw()
    assert torch.equal(first.draws, second.draws)
    assert first.seed == 5


# What is refused


def vectors() -> None:
    with pyro.plate("rows", 6):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        pyro.sample("y", dist.Normal(x + k + v.sum(-1) + p, 1.0))
        pyro.deterministic("twice", 2 * x)


BAD: list[tuple[Mapping[str, Any], type[Exception], str]] = [
    ({"of": "Y"}, ValueError, "No site is named 'Y'.*'x', 'k', 'v', 'p', 'y'.*Did you mean 'y'"),
    ({"given": {"xx": 1.0}}, ValueError, "'xx' in the program, but the evidence.*mean 'x'"),
    ({"do": {"z": 1.0}}, ValueError, "'z' in the program, but an intervention names it"),
    (
        {"given": {"x": torch.zeros(6, 1)}},
        ValueError,
        r"'x', shape of the evidence: expected \(6,\), .*batch \(6,\) and event \(\), got \(6, 1\)",
    ),
    ({"given": {"x": torch.zeros(5)}}, ValueError, r"'x', shape .* got \(5,\)"),
    ({"given": {"v": torch.zeros(6)}}, ValueError, r"'v', shape .* event \(2,\), got \(6,\)"),
    ({"given": {"v": 1.0}}, ValueError, r"'v', shape .* got \(\)"),
    ({"given": {"v": torch.zeros(6, 1)}}, ValueError, r"'v', shape .* got \(6, 1\)"),
    (
        {"given": {"x": torch.zeros(6, dtype=torch.float64)}},
        TypeError,
        "'x', dtype of the evidence: expected torch.float32, got torch.float64",
    ),
    ({"given": {"k": 1.5}}, TypeError, "'k', dtype .* expected torch.int64, got torch.float32"),
    ({"given": {"x": [0.0] * 6}}, TypeError, "'x', type of the evidence: .* got list"),
    ({"given": {"x": torch.zeros(6, device="meta")}}, ValueError, "'x', device .* got meta"),
    ({"given": {"x": math.nan}}, ValueError, "'x', evidence: expected numbers, got NaN"),
    ({"given": {"p": 1.5}}, ValueError, "'p', evidence outside the support: .* got 1.5"),
    ({"given": {"k": 3}}, ValueError, "'k', evidence outside the support"),
    ({"given": {"twice": 1.0}}, ValueError, "'twice', evidence .* but the program computes it"),
    ({"do": {"x": torch.zeros(6, 1)}}, ValueError, r"'x', the action has shape \(6, 1\)"),
    ({"do": {"x": math.nan}}, ValueError, "'x', the action is NaN"),
    ({"do": {"k": 0.5}}, TypeError, "'k', the action has dtype torch.float32"),
    ({"do": {"p": 1.5}}, ValueError, "'p', the action has a value outside the support"),
    ({"do": {"p": "high"}}, TypeError, "'p', an action of type str"),
    ({"do": [1]}, TypeError, "An intervention is a mapping"),
    ({"num_samples": 0}, ValueError, "`num_samples`: expected at least 1, got 0"),
    (
        {"guide": exact_guide, "posterior_samples": {}},
        ValueError,
        "expected a guide or posterior_samples, got both",
    ),
    ({"guide": exact_guide}, ValueError, "No site is named 'u' in the program, but the guide"),
    ({"posterior_samples": {"X": torch.zeros(5, 6)}}, ValueError, "'X' .*posterior_samples names"),
    (
        {"posterior_samples": {"x": torch.zeros(6)}},
        ValueError,
        r"'x', shape of posterior_samples: expected \(6, 6\), .* got \(6,\)",
    ),
    (
        {"posterior_samples": {"x": torch.zeros(5, 6), "p": torch.zeros(4, 6)}},
        ValueError,
        r"'p', shape of posterior_samples: expected \(5, 6\), .* got \(4, 6\)",
    ),
    (
        {"posterior_samples": {"x": torch.zeros(5, 6)}, "given": {"x": 1.0}},
        ValueError,
        "'x', posterior_samples: expected draws of open sites",
    ),
    (
        {"posterior_samples": {"twice": torch.zeros(5, 6)}},
        ValueError,
        "'twice', posterior_samples: expected draws of open sites",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_refused_before_sampling(
    options: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    runs = []

    def counted() -> None:
        runs.append(1)
        vectors()

    with pytest.raises(error, match=message):
        query(counted, **{"of": "y", "num_samples": 10, **options})
    assert len(runs) <= 2


def test_evidence_fits_every_site() -> None:
    """Numbers, bools and sizes one broadcast over the plates."""
    given = {"x": 1, "k": tensor([0, 1, 2, 0, 1, 2]), "v": torch.zeros(2), "p": tensor([0.5])}
    result = query(vectors, "y", given=given, num_samples=NUMBER)
    assert_mean(result, 1.5 + given["k"].float(), 1.0)
    assert {name: value.shape for name, value in result.given.items()} == {
        "x": (6,), "k": (6,), "v": (6, 2), "p": (6,)
    }  # fmt: skip
    assert query(binary, "y", given={"x": True}).given["x"].dtype == torch.float32


def test_evidence_that_contradicts_a_do() -> None:
    with pytest.raises(ValueError, match="At site 'x', evidence that contradicts the program.* do"):
        query(do(confounded, {"x": 1.0}), "y", given={"x": 0.0})


def test_evidence_that_contradicts_an_observation() -> None:
    observed = poutine.condition(confounded, {"x": tensor(1.0)})
    with pytest.raises(ValueError, match="At site 'x', evidence that contradicts the program"):
        query(observed, "y", given={"x": 0.0})


@pytest.mark.parametrize("action", [{}, {"x": 3.0}, {"y": 1.0}], ids=str)
def test_evidence_that_the_program_observes_anyway(action: Mapping[str, float]) -> None:
    given = {"x": tensor([1.2, -0.3, 0.5]), "y": tensor([2.0, 0.5, -1.0])}
    observed = poutine.condition(rows, given)
    answers = []
    for evidence in ({}, given, {"x": given["x"]}):
        pyro.set_rng_seed(0)
        answers.append(query(observed, "y", do=action, given=evidence, args=(3,), num_samples=50))
        assert answers[-1].given.keys() == evidence.keys()
    for answer in answers[1:]:
        assert (answer.rung, answer.source) == (answers[0].rung, answers[0].source)
        torch.testing.assert_close(answer.draws, answers[0].draws)
    almost = {"x": given["x"] + tensor([0.0, 0.0, 1e-6])}
    with pytest.raises(ValueError, match=r"'x', evidence that contradicts.*observes another value"):
        query(observed, "y", do=action, given=almost, args=(3,))


def test_evidence_on_what_a_do_sets_contradicts_it_even_if_it_agrees() -> None:
    for program in (confounded, poutine.condition(confounded, {"x": tensor(1.0)})):
        with pytest.raises(ValueError, match="At site 'x', evidence that contradicts the program"):
            query(do(program, {"x": 1.0}), "y", given={"x": 1.0})
    with pytest.raises(ValueError, match="At site 'total', evidence.*the program computes it"):
        query(rows, "y", given={"total": tensor(1.0)}, args=(3,))


def test_impossible_evidence() -> None:
    def impossible() -> None:
        z = pyro.sample("z", dist.Uniform(0.0, 1.0))
        pyro.sample("y", dist.Uniform(0.0, z))

    with pytest.raises(ValueError, match="evidence has probability zero in all of 1000 draws"):
        query(impossible, "z", given={"y": 2.0})


def test_undefined_density() -> None:
    def undefined() -> None:
        z = pyro.sample("z", dist.Uniform(0.0, 1.0))
        pyro.sample("y", dist.Gamma(1.0, z.log(), validate_args=False))

    with pytest.raises(ValueError, match="At site 'y', log-density of the evidence.*got NaN"):
        query(undefined, "y", given={"y": 1.0})


def test_predictive_refuses_the_same() -> None:
    with pytest.raises(ValueError, match="'yy' in the program, but return_sites names it"):
        CounterfactualPredictive(textbook, [{"x": 1.0}], return_sites=["yy"])()
    with pytest.raises(ValueError, match="'w' in the program, but an intervention names it"):
        CounterfactualPredictive(textbook, [{"x": 1.0}, {"w": 1.0}])()
    with pytest.raises(ValueError, match="expected a guide or posterior_samples, got both"):
        CounterfactualPredictive(textbook, [], guide=exact_guide, posterior_samples={})
    observed = poutine.condition(textbook, {"x": tensor(1.0)})
    predictive = CounterfactualPredictive(observed, [], posterior_samples={"x": torch.zeros(3)})
    with pytest.raises(ValueError, match="expected draws of open sites"):
        predictive()


def test_result_refuses() -> None:
    units = query(rows, "y", args=(3,), num_samples=4)
    with pytest.raises(TypeError, match=r"At site 'y', the answer has shape \(3,\).*Do use .mean"):
        float(units)
    with pytest.raises(ValueError, match="`level`: expected a probability"):
        units.interval(90)
    with pytest.raises(ValueError, match=r"event: expected a truth value for each draw .* bool"):
        units.prob(lambda y: bool(y.sum() > 0))
    with pytest.raises(ValueError, match=r"event: expected a truth value .*got \(3,\)"):
        units.prob(lambda y: (y > 0).all(0))
    with pytest.raises(ValueError, match=r"event: expected a truth value .*got \(4,\)"):
        weighted().prob(lambda y: (y > 0).all(1))
