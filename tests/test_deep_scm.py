"""DeepSCM: its sites, every pattern of missing values, closed forms, training, files, errors."""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_causal import (
    CounterfactualPredictive,
    causal_graph,
    counterfactual_function,
    fit,
    query,
    worlds,
)
from pyro_causal.infer import checkpoint
from pyro_causal.infer.guides import Completion
from pyro_causal.mechanisms import (
    AmortisedExplicit,
    AmortisedImplicit,
    ConditionalAffine,
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalGaussian,
    ConditionalScale,
    ConvDecoder,
    ConvEncoder,
    ConvPrior,
    Recorded,
)
from pyro_causal.methods import DeepSCM

EVENT = (1, 2, 3)
N = 4


class Rows(Recorded):
    """A linear network on rows of everything it gets."""

    def __init__(self, inputs: int, outputs: Sequence[int], *, norm: bool = False) -> None:
        super().__init__()
        self.outputs = torch.Size(outputs)
        self.norm = nn.BatchNorm1d(inputs) if norm else nn.Identity()
        self.layer = nn.Linear(inputs, self.outputs.numel())
        self.calls = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        rows = torch.cat([x.flatten(1) for x in inputs], 1)
        return 0.3 * self.layer(self.norm(rows)).unflatten(1, self.outputs)


class Picture(Recorded):
    """A head for images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 6)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.layer(features).unflatten(-1, EVENT), 0.5).to_event(3)

    def set_normalisation(self, data: Tensor, features: Tensor) -> "Picture":
        return self


CLASSES = [Rows, Picture]
SIZES = {"c": 3, "s": 1, "t": 1, "v": 2, "x": 2, "y": 1}


def width(name: str) -> list[tuple[int, ...]]:
    return [(Completion.width(name, SIZES),)]


def perturbed(module: Any, by: float = 0.2) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * torch.randn_like(parameter)
    return module


def build(*, completion: bool = True, norm: bool = False) -> DeepSCM:
    """s -> c, t; t, c -> x; t, c, x -> y; x -> v.  x and v are amortised, x is not a leaf."""
    x = AmortisedExplicit(
        Rows(6 + 4, [4], norm=norm),
        Rows(2 + 4, EVENT, norm=norm),
        latent=2,
        event_shape=EVENT,
        parents=[(), (3,)],
        parent_supports=[constraints.positive, constraints.real],
        low_level=ConditionalScale(4, event_dim=3, softness=None),
        quantum=0.1,
    )
    v = AmortisedImplicit(
        Rows(2 + 6, [6]), Rows(3 + 6, [2]), latent=3, event_shape=(2,), parents=[EVENT]
    )
    heads = {
        "s": ConditionalBernoulli(width("s")),
        "c": ConditionalCategorical(3, width("c")),
        "t": ConditionalAffine(width("t"), support=constraints.positive),
        "x": Picture(Completion.width("x", SIZES)),
    }
    networks = {
        "x": (nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), EVENT),
        "v": (nn.Identity(), (2,)),
    }
    scm = DeepSCM(
        mechanisms={
            "y": (ConditionalGaussian([(), (3,), EVENT]), ("t", "c", "x")),
            "x": (x, ("t", "c")),
            "v": (v, ["x"]),
            "t": (ConditionalAffine(1, support=constraints.positive), ("s",)),
            "c": (ConditionalCategorical(3, 1), ("s",)),
            "s": (ConditionalBernoulli(), ()),
        },
        completion=Completion(heads, sizes=SIZES, networks=networks) if completion else None,
    )
    return perturbed(scm)


def rows(n: int = N) -> dict[str, Tensor]:
    return {
        "s": torch.arange(n).remainder(2).float(),
        "c": torch.arange(n).remainder(3),
        "t": torch.rand(n) + 1,
        "x": torch.randn(n, *EVENT),
        "v": torch.randn(n, 2),
        "y": torch.randn(n),
    }


LATENTS = {"x": "z_x", "v": "z_v"}
SUBSETS = [set(p) for k in range(7) for p in combinations(sorted(SIZES), k)]


def sites(trace: Any) -> list[str]:
    return [n for n, s in trace.nodes.items() if s["type"] == "sample" and n != "rows"]


# --- the program ----------------------------------------------------------------------------------


def test_order_and_names() -> None:
    scm = build()
    assert scm.order == ("s", "c", "t", "x", "v", "y")
    assert scm.latents == {"x": "z_x", "v": "z_v"}
    assert scm.parents["y"] == ("t", "c", "x")
    assert sites(poutine.trace(scm.model).get_trace()) == [
        "s", "c", "t", "z_x", "x", "z_v", "v", "y",
    ]  # fmt: skip
    values = scm.model()
    assert {n: tuple(x.shape) for n, x in values.items()} == {
        n: (1, *x.shape[1:]) for n, x in rows().items()
    }


def test_one_latent_is_called_z() -> None:
    mechanism = AmortisedImplicit(Rows(2, [4]), Rows(2, [2]), latent=2, event_shape=(2,))
    scm = DeepSCM(mechanisms={"x": (mechanism, ())})
    assert sites(poutine.trace(scm.model).get_trace()) == ["z", "x"]
    assert sites(poutine.trace(scm.guide).get_trace({"x": torch.zeros(3, 2)})) == ["z"]


def test_parents_are_handed_over_as_declared() -> None:
    scm, data = build().eval(), rows()
    seen = {}
    for name, mechanism in scm.mechanisms.items():
        mechanism.register_forward_pre_hook(
            lambda m, inputs, name=name: seen.__setitem__(name, inputs)
        )
    scm.model(data)
    one_hot = nn.functional.one_hot(data["c"], 3).float()
    t, c, x = seen["y"]
    assert torch.equal(t, data["t"]) and torch.equal(c, one_hot)
    assert torch.equal(x, data["x"])
    z, t, c = seen["x"]
    assert z.shape == (N, 2)
    assert torch.equal(t, data["t"]) and torch.equal(c, one_hot)
    assert seen["s"] == ()


def test_the_density_is_the_sum_over_mechanisms() -> None:
    scm, data = build().eval(), rows()
    z = {"z_x": torch.randn(N, 2), "z_v": torch.randn(N, 3)}
    trace = poutine.trace(poutine.condition(scm.model, z)).get_trace(data)
    c = nn.functional.one_hot(data["c"], 3).float()
    m = scm.mechanisms
    expected = (
        m["s"]().log_prob(data["s"]).sum()
        + m["c"](data["s"]).log_prob(data["c"]).sum()
        + m["t"](data["s"]).log_prob(data["t"]).sum()
        + m["x"](z["z_x"], data["t"], c).log_prob(data["x"]).sum()
        + m["y"](data["t"], c, data["x"]).log_prob(data["y"]).sum()
        + dist.Normal(0.0, 1.0).log_prob(torch.cat([*z.values()], -1)).sum()
    )
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_the_graph_of_the_program() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = causal_graph(build().model)
    found = {(a, b) for a, b in graph.directed if not {a, b} & {"z_x", "z_v"}}
    assert found == {(a, b) for b, above in build().parents.items() for a in above}


# --- every pattern of missing values --------------------------------------------------------------


@pytest.mark.parametrize("observed", SUBSETS, ids=lambda names: "".join(sorted(names)) or "none")
def test_every_pattern(observed: set[str]) -> None:
    """Guide and model meet; the bound is finite and trains; counterfactuals keep the evidence."""
    scm = build()
    data = {name: value for name, value in rows().items() if name in observed}
    rows_there = N if data else 1
    guide_trace = poutine.trace(scm.guide).get_trace(data)
    assert {*sites(guide_trace)} == ({*SIZES} - observed) | {*LATENTS.values()}
    model_trace = poutine.trace(poutine.replay(scm.model, guide_trace)).get_trace(data)
    for name, value in data.items():
        assert model_trace.nodes[name]["is_observed"]
        torch.testing.assert_close(model_trace.nodes[name]["value"], value, atol=0.11, rtol=0)
    for number in (1, 3):
        loss = scm.loss(num_particles=number)(scm.model, scm.guide)(data)
        loss.backward()
        assert loss.isfinite()
        gradients = [p.grad for p in scm.parameters() if p.grad is not None]
        assert gradients or observed <= {"v"}
        assert all(g.isfinite().all() for g in gradients)
    t = data.get("t", torch.ones(rows_there))
    for parallel in (True, False):
        predictive = CounterfactualPredictive(
            scm.model, [{"t": t}, {"s": 1.0, "c": 2}], guide=scm.guide, num_samples=2,
            parallel=parallel,
        )  # fmt: skip
        found = predictive(data)
        for name, value in rows().items():
            assert found[name].shape == (2, 3, rows_there, *value.shape[1:]), name
            if name in data:
                assert torch.equal(found[name][:, 0], data[name].expand(found[name][:, 0].shape))
                if "t" in data and name != "v":  # null intervention; an implicit value is remade
                    torch.testing.assert_close(
                        found[name][:, 1], found[name][:, 0], rtol=1e-4, atol=1e-4
                    )


@pytest.mark.parametrize("observed", ["s", "st", "stc", ""])
def test_the_loss_of_leaves_is_zero(observed: str) -> None:
    """Missing variables that follow their own mechanisms cost nothing and have no noise."""
    scm = build().eval()
    data = {name: value for name, value in rows().items() if name in observed}
    m = scm.mechanisms
    parts = {
        "s": lambda: m["s"]().log_prob(data["s"]),
        "t": lambda: m["t"](data["s"]).log_prob(data["t"]),
        "c": lambda: m["c"](data["s"]).log_prob(data["c"]),
    }
    expected = -sum(parts[name]().sum().item() for name in observed)
    for number in (1, 5):
        loss = scm.loss(num_particles=number).loss(scm.model, scm.guide, data)
        assert loss == pytest.approx(expected, abs=1e-4)


def test_missing_may_be_none() -> None:
    scm, data = build(), rows()
    trace = poutine.trace(scm.guide).get_trace({**data, "t": None, "y": None})
    assert {*sites(trace)} == {"t", "y", "z_x", "z_v"}
    assert scm.model({**data, "t": None})["t"].shape == (N,)


def test_completions_see_what_was_drawn_before_them() -> None:
    scm, seen = build(), []
    data = {"v": rows()["v"]}
    forward = scm.completion.forward
    scm.completion.forward = lambda name, known: (
        seen.append((name, {*known})) or forward(name, known)
    )
    scm.guide(data)
    assert seen == [
        ("s", {"v"}),
        ("c", {"v", "s"}),
        ("t", {"v", "s", "c"}),
        ("x", {"v", "s", "c", "t"}),
    ]


def test_networks_run_once_for_all_particles() -> None:
    scm, data = build(norm=True), rows()
    scm.loss(num_particles=5).differentiable_loss(scm.model, scm.guide, data)
    for network in (scm.mechanisms["x"].encoder, scm.mechanisms["x"].decoder):
        assert network.calls == network.norm.num_batches_tracked == 1


@pytest.mark.parametrize("missing", [(), ("t",)], ids=str)
def test_a_latent_prior_of_two_levels(missing: tuple[str, ...]) -> None:
    """Its divergence takes a draw for each row, whether particles share the encoder or not."""
    shape = {"event_shape": (1, 4, 4), "local": 1, "channels": 4, "stages": 1}
    encoder = ConvEncoder(2, 1, **shape)
    image = AmortisedExplicit(
        encoder,
        ConvDecoder(2, 1, whole=False, **shape),
        latent=encoder.size,
        event_shape=(1, 4, 4),
        parents=1,
        latent_prior=ConvPrior(2, **shape),
    )
    sizes = {"t": 1, "x": 2}
    scm = DeepSCM(
        mechanisms={"t": (ConditionalGaussian(), ()), "x": (image, ("t",))},
        completion=Completion(
            {"t": ConditionalGaussian([(3,)])},
            sizes=sizes,
            networks={"x": (Rows(16, [2]), (1, 4, 4))},
        ),
    )
    perturbed(scm, 0.1)
    data = {"t": torch.randn(N), "x": torch.randn(N, 1, 4, 4)}
    data = {name: value for name, value in data.items() if name not in missing}
    means = []
    for number, repeats in ((1, 100), (20, 5)):
        loss = scm.loss(num_particles=number)
        losses = [loss.loss(scm.model, scm.guide, data) for _ in range(repeats)]
        means.append(sum(losses) / repeats)
        loss.differentiable_loss(scm.model, scm.guide, data).backward()
    assert means[0] == pytest.approx(means[1], rel=0.02)
    gradients = [p.grad for p in image.latent_prior.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


# --- closed forms: a linear-Gaussian model --------------------------------------------------------

# a -> b, a -> c, b -> c
MEAN_A, SD_A = 1.0, 1.5
AB, B0, SD_B = 0.8, -0.5, 0.7
AC, BC, C0, SD_C = -0.6, 1.2, 0.3, 0.9
NAMES = ("a", "b", "c")


def joint() -> tuple[Tensor, Tensor]:
    """Mean and covariance of (a, b, c)."""
    weights = torch.tensor([[0, 0, 0], [AB, 0, 0], [AC, BC, 0]]).double()
    inverse = torch.linalg.inv(torch.eye(3).double() - weights)
    noise = torch.tensor([SD_A, SD_B, SD_C]).double()
    return inverse @ torch.tensor([MEAN_A, B0, C0]).double(), inverse @ torch.diag(
        noise**2
    ) @ inverse.T


def conditional(target: Sequence[str], given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean ``[N, targets]`` and covariance of some variables given others ``[N]``."""
    mean, covariance = joint()
    t = [NAMES.index(name) for name in target]
    g = [NAMES.index(name) for name in given]
    values = torch.stack([*given.values()], -1).double()
    gain = covariance[t][:, g] @ torch.linalg.inv(covariance[g][:, g])
    return mean[t] + (values - mean[g]) @ gain.T, covariance[t][:, t] - gain @ covariance[g][:, t]


def linear(intercept: float, scale: float, *weights: float) -> ConditionalGaussian:
    mechanism = ConditionalGaussian(len(weights))
    with torch.no_grad():
        mechanism.log_sigma.fill_(math.log(scale))
        if weights:
            mechanism.network.net[0].weight.copy_(torch.tensor([weights]))
            mechanism.network.net[0].bias.fill_(intercept)
        else:
            mechanism.network.bias.fill_(intercept)
    return mechanism


def linear_scm() -> DeepSCM:
    sizes = dict.fromkeys(NAMES, 1)
    head = {"hidden": (48,), "heteroscedastic": True}
    heads = {
        name: ConditionalGaussian([(Completion.width(name, sizes),)], **head) for name in ("a", "b")
    }
    return DeepSCM(
        mechanisms={
            "a": (linear(MEAN_A, SD_A), ()),
            "b": (linear(B0, SD_B, AB), ("a",)),
            "c": (linear(C0, SD_C, AC, BC), ("a", "b")),
        },
        completion=Completion(heads, sizes=sizes),
    )


@pytest.fixture(scope="module")
def trained() -> DeepSCM:
    """The true model, with a completion that `fit` has trained on draws of it."""
    torch.manual_seed(7)
    pyro.clear_param_store()
    scm = linear_scm()
    mean, covariance = joint()
    data = dict(
        zip(NAMES, dist.MultivariateNormal(mean, covariance).sample((8192,)).T.float(), strict=True)
    )
    scm.completion.set_normalisation(data)
    fit(
        scm.completion.model,
        scm.completion.guide,
        loss=Trace_ELBO(),
        data={"data": data},
        epochs=60,
        batch_size=512,
        optim=lambda params: torch.optim.Adam(params, lr=0.01),
        scheduler=lambda optim: torch.optim.lr_scheduler.CosineAnnealingLR(optim, 60),
    )
    return scm.eval()


def some(n: int, *names: str) -> dict[str, Tensor]:
    """Rows of the joint distribution."""
    mean, covariance = joint()
    draws = dist.MultivariateNormal(mean, covariance).sample((n,)).float()
    return {name: draws[:, NAMES.index(name)] for name in names}


PATTERNS = [("a", g) for g in (("b",), ("c",), ("b", "c"))]
PATTERNS += [("b", g) for g in (("a",), ("c",), ("a", "c"))]


@pytest.mark.parametrize(("target", "given"), PATTERNS, ids=str)
def test_the_completion_is_the_exact_conditional(
    trained: DeepSCM, target: str, given: tuple[str, ...]
) -> None:
    known = some(500, *given)
    d = trained.completion(target, known)
    mean, covariance = conditional([target], known)
    scale = covariance[0, 0].sqrt()
    error = (d.mean.double() - mean[:, 0]) / scale
    assert error.square().mean().sqrt() < 0.08
    assert (d.stddev.double() / scale).log().square().mean().sqrt() < 0.06


MISSING = [("b", "c"), ("a", "c"), ("a", "b"), ("c",), ("b",), ("a",), ()]


@pytest.mark.parametrize("given", MISSING, ids=str)
def test_the_guide_draws_from_the_exact_conditional(
    trained: DeepSCM, given: tuple[str, ...]
) -> None:
    """Jointly, whether a value is completed or follows its own mechanism."""
    one = some(1, *given)
    data = {name: value.expand(20_000) for name, value in one.items()}
    if not given:
        data = None
    with (
        torch.no_grad(),
        pyro.plate("draws", 20_000, dim=-2) if data is None else warnings.catch_warnings(),
    ):
        values = trained.guide(data)
    target = [name for name in NAMES if name not in given]
    draws = torch.stack([values[name].flatten() for name in target], -1).double()
    if given:
        mean, covariance = conditional(target, one)
        mean = mean[0]
    else:
        mean, covariance = joint()
    scale = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean) / scale).abs().max() < 0.1
    found = draws.T.cov().reshape(covariance.shape) / (scale[:, None] * scale)
    torch.testing.assert_close(found, covariance / (scale[:, None] * scale), atol=0.1, rtol=0)


@pytest.mark.parametrize("given", [("a",), ("a", "b")], ids=str)
def test_what_nothing_observed_depends_on_follows_its_mechanism_exactly(
    given: tuple[str, ...],
) -> None:
    """Without any completion, within the error of the draws."""
    scm = linear_scm()
    scm.completion = None
    one = some(1, *given)
    with torch.no_grad():
        values = scm.guide({name: value.expand(50_000) for name, value in one.items()})
    target = [name for name in NAMES if name not in given]
    draws = torch.stack([values[name] for name in target], -1).double()
    mean, covariance = conditional(target, one)
    error = (covariance.diagonal() / 50_000).sqrt()
    assert ((draws.mean(0) - mean[0]) / error).abs().max() < 4
    torch.testing.assert_close(
        draws.T.cov().reshape(covariance.shape), covariance, atol=0.05, rtol=0
    )


COUNTERFACTUALS = [
    # given, action, and what c becomes: c + weights . (a, b) + constant
    (("b", "c"), {"a": 2.5}, (-(AC + BC * AB), 0.0), (AC + BC * AB) * 2.5),
    (("c",), {"a": 2.5}, (-(AC + BC * AB), 0.0), (AC + BC * AB) * 2.5),
    (("a", "c"), {"b": -1.0}, (0.0, -BC), -BC),
    (("c",), {"b": -1.0}, (0.0, -BC), -BC),
    (("c",), {"a": 0.0, "b": 1.0}, (-AC, -BC), BC),
]


@pytest.mark.parametrize(("given", "action", "weights", "constant"), COUNTERFACTUALS, ids=str)
def test_counterfactuals_with_a_missing_variable(
    trained: DeepSCM,
    given: tuple[str, ...],
    action: dict[str, float],
    weights: tuple[float, float],
    constant: float,
) -> None:
    """Their distribution is that of the missing variables given the evidence, in closed form."""
    one = some(3, *given)
    found = CounterfactualPredictive(
        trained.model, [action], guide=trained.guide, num_samples=20_000, return_sites=["c"]
    )(one)["c"][:, 1]
    open_names = [name for name in ("a", "b") if name not in given]
    mean, covariance = conditional(open_names, one)
    w = torch.tensor([weights[NAMES.index(name)] for name in open_names]).double()
    expected = one["c"].double() + constant + mean @ w
    for k, name in enumerate(("a", "b")):
        if name in given:
            expected = expected + weights[k] * one[name].double()
    scale = (w @ covariance @ w).sqrt()
    assert ((found.double().mean(0) - expected).abs() < 0.12 * scale + 1e-3).all()
    torch.testing.assert_close(found.double().std(0), scale.expand(3), rtol=0.1, atol=1e-3)


def test_a_missing_effect_is_interventional(trained: DeepSCM) -> None:
    given = {"a": torch.tensor([0.5]), "b": torch.tensor([2.0])}
    found = CounterfactualPredictive(
        trained.model, [{"b": 0.0}], guide=trained.guide, num_samples=20_000
    )(given)["c"][..., 0]
    expected = torch.tensor([C0 + AC * 0.5 + BC * 2.0, C0 + AC * 0.5])
    torch.testing.assert_close(found.mean(0), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(found.std(0), torch.full((2,), SD_C), atol=0.03, rtol=0)
    torch.testing.assert_close(found[:, 0] - found[:, 1], torch.full((20_000,), BC * 2.0))


def test_queries_from_all_three_rungs(trained: DeepSCM) -> None:
    model, guide = trained.model, trained.guide
    mean, _ = joint()
    one = {"b": torch.tensor([1.0]), "c": torch.tensor([2.0])}
    found = query(model, "c", num_samples=4000)
    assert float(found) == pytest.approx(mean[2].item(), abs=0.15)
    found = query(model, "c", do={"b": 1.0}, num_samples=4000)
    assert float(found) == pytest.approx(C0 + AC * MEAN_A + BC, abs=0.1)
    found = query(model, "a", guide=guide, args=(one,), num_samples=4000)
    expected, covariance = conditional(["a"], one)
    assert float(found) == pytest.approx(expected.item(), abs=0.15 * covariance.sqrt().item())
    found = query(model, "c", do={"a": 2.5}, guide=guide, args=(one,), num_samples=4000)
    effect = AC + BC * AB
    assert float(found) == pytest.approx(2.0 + effect * (2.5 - expected.item()), abs=0.06)
    weighed = query(model, "c", do={"a": 2.5}, args=(one,), num_samples=40_000)
    assert float(weighed) == pytest.approx(float(found), abs=0.08)


def test_a_guide_that_was_not_told_of_the_evidence() -> None:
    """It would draw z from the prior instead of the encoder."""
    scm, data = build().eval(), rows(1)
    for evidence in (data, {"x": data["x"]}, {"z_x": torch.zeros(1, 2)}):
        with pytest.warns(UserWarning, match=r"a guide that draws the evidence.*args=\(given,\)"):
            query(scm.model, "y", do={"t": 2.0}, given=evidence, guide=scm.guide, num_samples=2)
    with pytest.warns(UserWarning, match="At site 's', a guide that draws the evidence"):
        counterfactual_function(scm.model, guide=scm.guide)(data, {"t": 2.0})
    answers = []
    for evidence in ({}, data):
        pyro.set_rng_seed(0)
        options = {"given": evidence, "guide": scm.guide, "args": (data,), "num_samples": 3}
        answers.append(query(scm.model, "y", do={"t": 2.0}, **options))
        assert answers[-1].rung == "counterfactual"
    torch.testing.assert_close(answers[0].draws, answers[1].draws)


def test_the_bound_with_missing_values_is_the_evidence(trained: DeepSCM) -> None:
    """The guide is close to exact, so the bound is close to log p(evidence)."""
    mean, covariance = joint()
    for given in (("c",), ("b", "c"), ("a", "c"), ("a", "b"), ("b",)):
        data = some(50, *given)
        k = [NAMES.index(name) for name in given]
        law = dist.MultivariateNormal(mean[k], covariance[k][:, k])
        evidence = law.log_prob(torch.stack([*data.values()], -1).double()).mean().item()
        bound = -trained.loss(num_particles=200).loss(trained.model, trained.guide, data) / 50
        assert bound == pytest.approx(evidence, abs=0.03), given


# --- training -------------------------------------------------------------------------------------


def test_both_ways_to_train(tmp_path: Path) -> None:
    data = rows(40)
    moved = []
    for how in ("svi", "module"):
        torch.manual_seed(1)
        pyro.clear_param_store()
        scm = build().set_normalisation(data)
        loss = scm.loss(num_particles=3, beta=2.0)
        before = {n: p.detach().clone() for n, p in scm.named_parameters()}
        if how == "svi":
            svi = SVI(scm.model, scm.guide, pyro.optim.Adam({"lr": 0.01}), loss)
            losses = [svi.step(data) for _ in range(60)]
        else:
            module = loss(scm.model, scm.guide)
            assert {id(p) for p in module.parameters()} == {id(p) for p in scm.parameters()}
            optimiser = torch.optim.Adam(module.parameters(), 0.01)
            losses = []
            for _ in range(60):
                optimiser.zero_grad()
                value = module(data)
                value.backward()
                optimiser.step()
                losses.append(value.item())
        assert sum(losses[-5:]) < sum(losses[:5])
        moved.append({n for n, p in scm.named_parameters() if (p != before[n]).any()})
    assert moved[0] == moved[1]
    complete = {n for n in before if not n.startswith(("completion", "mechanisms.v.decoder"))}
    assert moved[0] == complete


def test_models_train_in_turn() -> None:
    """They have the same names in the store; each goes on where it was."""
    data = some(40, *NAMES)
    del data["b"]  # so that the completion is trained, too

    def start() -> tuple[DeepSCM, SVI]:
        torch.manual_seed(0)
        scm = linear_scm()
        return scm, SVI(scm.model, scm.guide, pyro.optim.Adam({"lr": 0.01}), scm.loss())

    def steps(scm: DeepSCM, svi: SVI, seed: int) -> dict[str, Tensor]:
        pyro.set_rng_seed(seed)
        for _ in range(5):
            svi.step(data)
        return {n: x.clone() for n, x in scm.state_dict().items()}

    one, two = start(), start()
    expected = [steps(*one, seed) for seed in (1, 2)]
    pyro.clear_param_store()
    one = start()
    found = [steps(*one, 1)]
    assert str(steps(*two, 1)) == str(expected[0])
    found.append(steps(*one, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    moved = {n for n, x in expected[1].items() if not torch.equal(x, expected[0][n])}
    assert {n.split(".")[1] for n in moved if n.startswith("mechanisms")} == {*NAMES}
    assert any(n.startswith("completion.heads.b") for n in moved)


@pytest.mark.parametrize("optim", [pyro.optim.Adam({"lr": 0.01}), None], ids=["pyro", "torch"])
def test_fit_trains_a_second_model(optim: Any) -> None:
    data = some(40, *NAMES)
    for _ in range(2):
        scm = linear_scm()
        before = {n: p.detach().clone() for n, p in scm.mechanisms.named_parameters()}
        fit(scm.model, scm.guide, loss=scm.loss(), data={"data": data}, epochs=3, optim=optim)
        for name, parameter in scm.mechanisms.named_parameters():
            assert (parameter != before[name]).any(), name


def test_training_under_worlds_is_training() -> None:
    data, results = rows(), []
    scm = build().eval()  # no noise within grey levels, which would be drawn after that of `c`
    for model in (scm.model, worlds(scm.model, [{"t": 2.0}, {"c": 1, "s": 0.0}])):
        for number in (1, 3):
            pyro.set_rng_seed(3)
            scm.zero_grad()
            loss = scm.loss(num_particles=number, beta=2.0).loss_and_grads(model, scm.guide, data)
            found = {n: p.grad.clone() for n, p in scm.named_parameters() if p.grad is not None}
            results.append((loss, found))
    for plain, in_worlds in ((0, 2), (1, 3)):
        assert results[plain][1]
        torch.testing.assert_close(results[in_worlds], results[plain], rtol=1e-4, atol=1e-4)


def test_fit_with_checkpoint_and_resume(tmp_path: Path) -> None:
    data, held_out, path = rows(20), rows(8), tmp_path / "run.pt"

    def run(epochs: int, seed: int, **options: Any) -> tuple[list[float], dict[str, Tensor]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        scm = build(norm=True).set_normalisation(data)
        pyro.set_rng_seed(seed)
        history = fit(
            scm.model, scm.guide, loss=scm.loss(num_particles=2), data={"data": data},
            validation={"data": held_out}, batch_size=8, epochs=epochs, lr=0.01, **options,
        )  # fmt: skip
        return history, {n: x.clone() for n, x in scm.state_dict().items()}

    whole = run(4, 1)
    run(2, 1, checkpoint=path)
    resumed = run(4, 5, checkpoint=path, resume=True)
    assert resumed[0] == whole[0]
    torch.testing.assert_close(resumed[1], whole[1], rtol=0, atol=0)
    assert whole[1]["mechanisms.x.encoder.norm.num_batches_tracked"] == 4 * 3


def test_three_kinds_of_model_are_three_mappings() -> None:
    """Independent, conditional and full: what the paper compares differs in the parents alone."""
    n = 60
    data = {"t": torch.rand(n) + 1, "i": 100 * torch.rand(n) + 90, "x": torch.randn(n, *EVENT)}
    grey = constraints.interval(64.0, 255.0)
    supports = {"t": constraints.positive, "i": grey}
    for of_i, of_x in (((), ()), ((), ("t", "i")), (("t",), ("t", "i"))):
        image = AmortisedExplicit(
            Rows(6 + len(of_x), [4]),
            Rows(2 + len(of_x), EVENT),
            latent=2,
            event_shape=EVENT,
            parents=len(of_x),
            parent_supports=[supports[p] for p in of_x],
        )
        scm = DeepSCM(
            mechanisms={
                "t": (ConditionalAffine(support=constraints.positive), ()),
                "i": (ConditionalAffine(len(of_i), support=grey), of_i),
                "x": (image, of_x),
            }
        ).set_normalisation(data)
        perturbed(scm)
        found = CounterfactualPredictive(scm.model, [{"t": 3.0}, {"i": 80.0}], guide=scm.guide)(
            data
        )
        moved = {
            (name, k): bool((found[name][:, k] - found[name][:, 0]).abs().max() > 1e-4)
            for name in ("i", "x")
            for k in (1, 2)
        }
        assert moved == {
            ("i", 1): bool(of_i), ("i", 2): True, ("x", 1): bool(of_x), ("x", 2): bool(of_x),
        }  # fmt: skip


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load(dtype: torch.dtype, tmp_path: Path) -> None:
    scm = build(norm=True).set_normalisation(rows(50)).to(dtype)
    data = {n: x.to(dtype) if x.is_floating_point() else x for n, x in rows().items()}
    scm.model(data)  # moves the statistics of batch normalisation
    scm.save(tmp_path / "scm.pt")
    raw = torch.load(tmp_path / "scm.pt", weights_only=True)
    assert {"recipe", "state"} <= raw.keys()
    state = torch.get_rng_state()
    other = DeepSCM.load(tmp_path / "scm.pt", classes=CLASSES)
    assert not any(module.training for module in other.modules())
    assert other.order == scm.order and other.latents == scm.latents
    assert repr(other) == repr(scm)
    torch.testing.assert_close(other.state_dict(), scm.state_dict(), rtol=0, atol=0)
    assert {p.dtype for p in other.parameters()} == {dtype}
    assert all(p.requires_grad for p in other.parameters())
    scm.eval()
    for given in (data, {"x": data["x"]}, {"v": data["v"], "y": data["y"]}):
        results = []
        for model in (scm, other):
            torch.set_rng_state(state)
            results.append(
                (
                    model.loss().loss(model.model, model.guide, given),
                    CounterfactualPredictive(model.model, [{"t": 2.0}], guide=model.guide)(given),
                )
            )
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_a_loaded_model_trains_on_and_saves_again(tmp_path: Path) -> None:
    build().save(tmp_path / "scm.pt")
    scm = DeepSCM.load(tmp_path / "scm.pt", classes=CLASSES).train()
    svi = SVI(scm.model, scm.guide, pyro.optim.Adam({"lr": 0.01}), scm.loss())
    svi.step(rows())
    scm.save(tmp_path / "again.pt")
    again = DeepSCM.load(tmp_path / "again.pt", classes=CLASSES)
    torch.testing.assert_close(again.state_dict(), scm.state_dict(), rtol=0, atol=0)


def test_without_a_completion_and_of_a_class_of_your_own(tmp_path: Path) -> None:
    class Model(DeepSCM):
        def __init__(self, slope: float) -> None:
            super().__init__(
                mechanisms={"a": (linear(0.0, 1.0), ()), "b": (linear(0.0, 1.0, slope), ("a",))}
            )

    Model(2.0).save(tmp_path / "scm.pt")
    model = Model.load(tmp_path / "scm.pt")
    assert isinstance(model, Model) and model.completion is None
    assert model.mechanisms["b"](torch.ones(())).mean == 2.0
    with pytest.raises(ValueError, match=r"holds an object of the class '.*Model'.*hand over"):
        DeepSCM.load(tmp_path / "scm.pt")
    assert isinstance(DeepSCM.load(tmp_path / "scm.pt", classes=[Model]), Model)


def test_parts_that_were_replaced_cannot_be_saved(tmp_path: Path) -> None:
    """A file tells what the constructor was given: what was put in later would not come back."""
    path, message = tmp_path / "scm.pt", "DeepSCM: parts have been replaced since it was made"
    late = DeepSCM(mechanisms={"a": (linear(0.0, 1.0), ())})
    late.completion = Completion({"a": ConditionalGaussian([(0,)])}, sizes={"a": 1})
    without = build()
    without.completion = None
    wide, other = build(), build()
    wide.mechanisms["x"].decoder = Rows(2 + 4, (1, 2, 4))
    other.mechanisms["x"].encoder.norm = nn.Tanh()
    for scm, fault in (
        (late, "completion.loc"),
        (without, "completion.loc"),
        (wide, r"size mismatch for mechanisms\.x\.decoder\.layer"),
        (other, r"mechanisms\.x\.encoder\.norm"),
    ):
        with pytest.raises(ValueError, match=rf"(?s){message}.*{fault}.*Make a model with the new"):
            scm.save(path)
        assert not path.exists()
    remade = DeepSCM(
        mechanisms={"a": (linear(0.0, 1.0), ())},
        completion=Completion({"a": ConditionalGaussian([(0,)])}, sizes={"a": 1}),
    )
    remade.load_state_dict(late.state_dict())
    remade.save(path)
    torch.testing.assert_close(DeepSCM.load(path).state_dict(), late.state_dict())


def test_to_save_changes_nothing(tmp_path: Path) -> None:
    scm = build()
    before, state = torch.get_rng_state(), copy.deepcopy(scm.state_dict())
    scm.save(tmp_path / "scm.pt")
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(scm.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["type", "values", "keys", "train", "forward", "x y", "mechanisms"]
)
def test_variables_called_like_attributes(name: str, tmp_path: Path) -> None:
    sizes = {name: 1, "y": 1}
    scm = DeepSCM(
        mechanisms={name: (GAUSSIAN(), ()), "y": (GAUSSIAN(1), (name,))},
        completion=Completion({name: GAUSSIAN([(2,)])}, sizes=sizes),
    )
    data = {name: torch.randn(20), "y": torch.randn(20)}
    perturbed(scm.set_normalisation(data))
    svi = SVI(scm.model, scm.guide, pyro.optim.Adam({"lr": 0.01}), scm.loss())
    svi.step(data)
    svi.step({"y": data["y"]})
    scm.save(tmp_path / "scm.pt")
    other = DeepSCM.load(tmp_path / "scm.pt")
    torch.testing.assert_close(other.state_dict(), scm.state_dict(), rtol=0, atol=0)
    found = CounterfactualPredictive(other.model, [{name: 1.0}], guide=other.guide)(data)
    assert (found[name][:, 1] == 1).all()


def test_deepcopy() -> None:
    scm, data = build().eval(), rows()
    other = copy.deepcopy(scm)
    pyro.set_rng_seed(0)
    expected = scm.loss().loss(scm.model, scm.guide, data)
    perturbed(scm, 1.0)
    pyro.set_rng_seed(0)
    assert other.loss().loss(other.model, other.guide, data) == expected


def test_a_copy_can_be_saved(tmp_path: Path) -> None:
    scm = copy.deepcopy(build())
    perturbed(scm)
    scm.save(tmp_path / "scm.pt")
    other = DeepSCM.load(tmp_path / "scm.pt", classes=CLASSES)
    torch.testing.assert_close(other.state_dict(), scm.state_dict(), rtol=0, atol=0)


def test_files_of_unknown_classes(tmp_path: Path) -> None:
    path = tmp_path / "scm.pt"
    build().save(path)
    with pytest.raises(ValueError, match=rf"'{__name__}:Rows': expected one of torch.*classes="):
        DeepSCM.load(path)
    with pytest.raises(ValueError, match=rf"'{__name__}:Picture'.*or of \["):
        DeepSCM.load(path, classes=[Rows])


@pytest.mark.parametrize("name", ["os:system", "torch.nn:../x", "builtins:eval", "torch.hub:load"])
def test_malicious_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "scm.pt"
    linear_scm().save(path)
    content = checkpoint.load(path)
    flag = tmp_path / "called"
    mappings = content["recipe"]["kwargs"]["mapping"][0][1]["mapping"]
    mappings[0][1] = (
        {"class": name, "args": [f"touch {flag}"], "kwargs": {"mapping": []}},
        (),
    )
    checkpoint.save(path, content)
    with pytest.raises(ValueError, match=f"class '{name}'"):
        DeepSCM.load(path)
    assert not flag.exists()


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "scm.pt"
    checkpoint.save(path, {"weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"holds no DeepSCM: expected a file.*got \['weight'\]"):
        DeepSCM.load(path)
    scm = linear_scm()
    scm.save(path)
    content = checkpoint.load(path)
    recipe = {"class": "torch.nn.modules.linear:Linear", "args": [1, 1], "kwargs": {"mapping": []}}
    checkpoint.save(path, {**content, "recipe": recipe})
    with pytest.raises(ValueError, match="holds no DeepSCM: expected a file.*got a Linear"):
        DeepSCM.load(path)
    state = {n: x for n, x in content["state"].items() if n != "completion.loc"}
    for wrong in ({**content, "state": state}, {"recipe": content["recipe"]}):
        checkpoint.save(path, wrong)
        with pytest.raises(ValueError, match="holds a state that does not fit its model"):
            DeepSCM.load(path)
    path.write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match="cannot be read"):
        DeepSCM.load(path)


def test_networks_that_cannot_be_saved(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = nn.Linear(size, 4)

    mechanism = AmortisedImplicit(Plain(2), Rows(2, [2]), latent=2, event_shape=(2,))
    scm = DeepSCM(mechanisms={"x": (mechanism, ())})
    with pytest.raises(ValueError, match="A Plain cannot be saved.*Derive its class from"):
        scm.save(tmp_path / "scm.pt")
    assert not (tmp_path / "scm.pt").exists()


# --- error messages -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["model", "guide"])
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"thickness": torch.zeros(N)},
            ValueError,
            r"At site 'thickness', there is no such variable: expected some of \['c', 's', 't'",
        ),
        (
            {"x": torch.zeros(N, 2, 3)},
            ValueError,
            r"'x', wrong shape: expected \[N, 1, 2, 3\], got",
        ),
        ({"t": torch.tensor(1.0)}, ValueError, r"At site 't', wrong shape: expected \[N\], got"),
        ({"t": torch.ones(N, 1)}, ValueError, r"'t', wrong shape.*Give one row per unit"),
        ({"t": torch.ones(3)}, ValueError, r"Rows do not match: .*'t' has 3.*Align them"),
        ({"t": [1.0] * N}, TypeError, r"At site 't', the value is no tensor.*got list. Convert"),
        (
            {"c": torch.tensor([0, 1, 2, 3])},
            ValueError,
            r"At site 'c', no category: expected whole numbers from 0 to 2, got values from 0 to 3",
        ),
        ({"c": torch.tensor([0, -1, 2, 2])}, ValueError, r"'c', no category.*from -1 to 2. Number"),
        ({"c": torch.tensor([0.0, 1, 0.5, 2])}, ValueError, r"At site 'c', no category"),
        (
            {"x": torch.zeros(N, *EVENT, dtype=torch.uint8)},
            TypeError,
            r"At site 'x', wrong dtype: expected torch.float32, got torch.uint8. Convert the",
        ),
        ({"v": torch.zeros(N, 2).double()}, TypeError, r"At site 'v', wrong dtype.*torch.float64"),
        (
            {name: value[:0] for name, value in rows().items()},
            ValueError,
            r"At site 's', no rows: expected one or more, got none. Leave a variable out if",
        ),
    ],
)
def test_wrong_data(call: str, change: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        getattr(build(), call)({**rows(), **change})


def test_a_missing_completion() -> None:
    scm = build(completion=False)
    data = rows()
    del data["t"]
    message = (
        r"At site 't', the value is missing and \['v', 'x', 'y'\] are observed, which depend on "
        r"it: expected a completion for 't'. Observe it, or give"
    )
    with pytest.raises(ValueError, match=message):
        scm.guide(data)
    scm.completion = Completion({}, sizes=SIZES)
    with pytest.raises(ValueError, match="expected a completion for 't'"):
        scm.guide(data)


def test_incomplete_data_for_the_constants() -> None:
    data = rows()
    del data["x"], data["v"]
    with pytest.raises(ValueError, match=r"At site 'v', no data.*\['v', 'x'\] are missing. Give"):
        build().set_normalisation(data)


GAUSSIAN = ConditionalGaussian


@pytest.mark.parametrize(
    ("mechanisms", "message"),
    [
        (
            {"a": (GAUSSIAN(1), ("b",))},
            r"At site 'a', there is no mechanism for the parent 'b': expected some of \['a'\]. Add",
        ),
        (
            {"a": (GAUSSIAN(1), ("b",)), "b": (GAUSSIAN(1), ("a",))},
            r"The variables \['a', 'b'\] are each other's ancestors: expected no cycle. Take away",
        ),
        ({"a": (GAUSSIAN(1), ("a",))}, r"The variables \['a'\] are each other's ancestors"),
        (
            {"a": (GAUSSIAN(), ()), "b": (GAUSSIAN(2), ("a",))},
            r"At site 'b', the mechanism declares parents of event shapes \[\(\), \(\)\]: expected",
        ),
        (
            {"a": (ConditionalCategorical(3), ()), "b": (GAUSSIAN(1), ("a",))},
            r"At site 'b'.*expected those of \('a',\), \[\(3,\)\]. Declare them with parents=",
        ),
        ({"a.b": (GAUSSIAN(), ())}, r"At site 'a.b', the name of the variable: .* without a dot"),
        ({"": (GAUSSIAN(), ())}, r"At site '', the name of the variable: .*Rename"),
        ({"rows": (GAUSSIAN(), ())}, r"At site 'rows', two things of that name.*Rename"),
        (
            {
                "x": (
                    AmortisedImplicit(Rows(2, [4]), Rows(2, [2]), latent=2, event_shape=(2,)),
                    (),
                ),
                "z": (GAUSSIAN([(2,)]), ("x",)),
            },
            r"At site 'z', two things of that name: expected no variables \['rows', 'z'\]",
        ),
    ],
)
def test_wrong_mechanisms(mechanisms: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepSCM(mechanisms=mechanisms)


def test_a_completion_for_other_variables() -> None:
    head = ConditionalGaussian([(0,)])
    with pytest.raises(
        ValueError, match=r"completion has sizes for \['a'\]: expected \['a', 'b'\]"
    ):
        DeepSCM(
            mechanisms={"a": (GAUSSIAN(), ()), "b": (GAUSSIAN(1), ("a",))},
            completion=Completion({"a": head}, sizes={"a": 1}),
        )


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu() -> None:
    scm, data = build().eval(), rows()
    sites = poutine.trace(scm.guide).get_trace(data).nodes
    data |= {name: sites[name]["value"] for name in scm.latents.values()}
    found = []
    for device in ("cpu", "cuda"):
        there = {name: value.to(device) for name, value in data.items()}
        latents = {name: there.pop(name) for name in scm.latents.values()}
        seen = poutine.condition(copy.deepcopy(scm).to(device).model, latents)
        trace = poutine.trace(worlds(seen, [{"t": 2.0}])).get_trace(there)
        found.append((trace.log_prob_sum().cpu(), trace.nodes["x"]["value"].cpu()))
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-4, atol=1e-4)
