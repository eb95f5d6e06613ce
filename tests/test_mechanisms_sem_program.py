"""Structural equations as a program: `do`, `soft` and `worlds` on its coordinates."""

import io
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_causal import CounterfactualPredictive, causal_graph, do, query, soft, worlds
from pyro_causal._recipe import build, describe
from pyro_causal.mechanisms import (
    FlowSEM,
    LinearSEM,
    NonlinearSEM,
    StructuralEquations,
    StructuralModel,
)
from pyro_causal.noise import abduct, predict

# x3 -> x0 -> x2 -> x1, and x3 -> x2: the order of the names is not that of the graph
GRAPH = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]])
FAMILIES = [LinearSEM, NonlinearSEM, FlowSEM]
every_family = pytest.mark.parametrize("family", FAMILIES)
Family = Callable[..., StructuralEquations]


def make(family: Family, *, regime: int | list[int] = 0) -> StructuralModel:
    equations = family(4, regimes=3).double()
    equations.set_normalisation(torch.tensor([1.0, -1.0, 5.0, 0.0]) + 2 * torch.randn(50, 4))
    with torch.no_grad():
        for parameter in equations.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return StructuralModel(equations, GRAPH, regime=regime)


def columns(x: Tensor) -> dict[str, Tensor]:
    return {f"x{i}": x[:, i] for i in range(4)}


@every_family
@pytest.mark.parametrize("regime", [0, 2, [0, 2, 1, 0]])
def test_sites_add_up_to_the_batched_density(family: Family, regime: int | list[int]) -> None:
    model, x = make(family, regime=regime), torch.randn(6, 4).double()
    trace = poutine.trace(model).get_trace(columns(x))
    trace.compute_log_prob()
    density = model.equations.log_prob(x, GRAPH)
    chosen = [regime] * 4 if isinstance(regime, int) else regime
    for j, k in enumerate(chosen):
        torch.testing.assert_close(trace.nodes[f"x{j}"]["log_prob"], density[k, :, j])


@every_family
def test_the_graph_of_the_program_is_the_adjacency(family: Family) -> None:
    model = make(family)
    edges = {("x0", "x2"), ("x2", "x1"), ("x3", "x0"), ("x3", "x2")}
    assert set(causal_graph(model).directed) == edges
    assert set(causal_graph(do(model, {"x2": 1.0})).directed) == {
        ("x2", "x1"),
        ("x3", "x0"),
    }


@every_family
def test_samples_have_the_shape_of_the_plate(family: Family) -> None:
    model = make(family)
    draws = model(size=7)
    assert list(draws) == ["x0", "x1", "x2", "x3"]
    assert all(value.shape == (7,) for value in draws.values())
    assert len(draws["x3"].unique()) == 7  # which has no parents
    assert model()["x0"].shape == (1,)


@every_family
def test_to_set_a_coordinate_to_what_it_was_changes_nothing(family: Family) -> None:
    model = make(family, regime=1)
    unit = model(size=5)
    for name in unit:
        found = CounterfactualPredictive(model, [{name: unit[name]}])(unit)
        for other, value in found.items():
            factual = unit[other].expand(value.shape)
            torch.testing.assert_close(value, factual, atol=1e-8, rtol=1e-8)


@every_family
def test_noise_is_shared_between_worlds(family: Family) -> None:
    model = make(family)
    unit = model(size=5)
    found = worlds(model, [{"x0": 2.0}, {"x2": 0.5}])(unit)
    assert [found[name].shape for name in unit] == [(3, 5), (3, 5), (3, 5), (5,)]
    equations = model.equations
    before = equations.conditional(2, {0: unit["x0"], 3: unit["x3"]})
    after = equations.conditional(2, {0: torch.full((5,), 2.0), 3: unit["x3"]})
    expected = predict(after, abduct(before, unit["x2"]))
    torch.testing.assert_close(found["x2"][1], expected)
    torch.testing.assert_close(found["x2"][2], torch.full((5,), 0.5).double())
    before = equations.conditional(1, {2: unit["x2"]})
    expected = predict(equations.conditional(1, {2: expected}), abduct(before, unit["x1"]))
    torch.testing.assert_close(found["x1"][1], expected)


def linear() -> tuple[StructuralModel, Tensor, Tensor]:
    """A linear model, and its weights [i, j] and intercepts in the units of the data."""
    model = make(LinearSEM)
    equations = model.equations
    scale, weight = equations.scale, equations.weight[0].detach() * GRAPH
    weight = weight / scale[:, None] * scale
    return (
        model,
        weight,
        equations.loc + scale * equations.bias[0].detach() - equations.loc @ weight,
    )


def test_an_intervention_in_closed_form() -> None:
    model, weight, bias = linear()
    sigma = (model.equations.log_scale[0].exp() * model.equations.scale).detach()
    cut = weight.clone()
    cut[:, 2] = 0
    bias[2], sigma[2] = 4.0, 0.0
    spread = torch.linalg.inv(torch.eye(4) - cut)
    with torch.no_grad():
        draws = do(model, {"x2": 4.0})(size=40000)
    x = torch.stack([*draws.values()], -1)
    torch.testing.assert_close(x.mean(0), bias @ spread, atol=0.06, rtol=0)
    covariance = spread.T @ sigma.square().diag() @ spread
    torch.testing.assert_close(x.T.cov(), covariance, atol=0.2, rtol=0.03)


def test_a_counterfactual_in_closed_form() -> None:
    model, weight, _ = linear()
    unit = model(size=5)
    found = worlds(model, [{"x0": -3.0}, {"x2": lambda x: x + 1}])(unit)
    gain = (-3 - unit["x0"]) * weight[0, 2]
    torch.testing.assert_close(found["x2"][1], unit["x2"] + gain)
    torch.testing.assert_close(found["x1"][1], unit["x1"] + gain * weight[2, 1])
    torch.testing.assert_close(found["x1"][2], unit["x1"] + weight[2, 1])


def test_a_soft_intervention_in_closed_form() -> None:
    model, weight, _ = linear()
    unit = model(size=5)
    action = soft(lambda d: dist.Normal(d.loc + 1, 2 * d.scale))
    found = worlds(model, {"x0": action})(unit)
    loc = model.equations.conditional(0, {3: unit["x3"]}).loc
    gain = 1 + unit["x0"] - loc
    torch.testing.assert_close(found["x0"][1], unit["x0"] + gain)
    torch.testing.assert_close(found["x2"][1], unit["x2"] + gain * weight[0, 2])


def test_a_stochastic_intervention_cuts_the_parents() -> None:
    model, _, _ = linear()
    with torch.no_grad():
        draws = do(model, {"x2": dist.Normal(9.0, 0.1)})(size=2000)
    torch.testing.assert_close(draws["x2"].mean().item(), 9.0, atol=0.02, rtol=0)
    assert torch.stack([draws["x2"], draws["x3"]]).corrcoef()[0, 1].abs() < 0.1


def test_missing_children_follow_their_mechanism() -> None:
    model = make(NonlinearSEM)
    evidence = {name: model(size=3)[name] for name in ("x3", "x0")}
    answer = query(model, "x1", do={"x2": 1.0}, args=(evidence,), num_samples=50)
    assert answer.mean.shape == (3,)


@every_family
def test_training_of_the_program(family: Family) -> None:
    model, x = make(family), torch.randn(50, 4).double()
    with torch.no_grad():
        before = -model.equations.log_prob(x, GRAPH)[0].sum().item()
    svi = SVI(model, lambda data: None, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(columns(x)) for _ in range(30)]
    assert losses[0] == pytest.approx(before)
    after = -model.equations.log_prob(x, GRAPH)[0].sum().item()
    assert after < losses[0] - 5


@every_family
def test_save_and_load(family: Family) -> None:
    model, x = make(family, regime=[0, 1, 2, 0]), torch.randn(6, 4).double()
    file = io.BytesIO()
    torch.save({"recipe": describe(model), "state": model.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    other = build(content["recipe"])
    other.load_state_dict(content["state"], assign=True)
    densities = [
        poutine.trace(m).get_trace(columns(x)).log_prob_sum() for m in (model, other.double())
    ]
    torch.testing.assert_close(*densities)
    assert other.regime == model.regime


def test_names() -> None:
    model = StructuralModel(LinearSEM(2), torch.eye(2).flip(0).tril(), names=["b", "a"])
    assert list(model()) == ["b", "a"]
    assert list(causal_graph(model).directed) == [("a", "b")]
    for names in (["a"], ["a", "a"], ["a", "rows"]):
        with pytest.raises(ValueError, match=r"expected 2 different names other than 'rows'"):
            StructuralModel(LinearSEM(2), torch.zeros(2, 2), names=names)


@pytest.mark.parametrize(
    ("adjacency", "message"),
    [
        (torch.zeros(3, 2), r"an adjacency \[3, 3\] of zeros and ones, got \(3, 2\)"),
        (torch.full((3, 3), 0.5), r"from 0\.5 to 0\.5\. Round"),
        (torch.eye(3).roll(1, 1), "the cycle x0 -> x1 -> x2 -> x0: expected an acyclic"),
        (torch.eye(3), "the cycle x0 -> x0"),
    ],
)
def test_wrong_graphs(adjacency: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StructuralModel(LinearSEM(3), adjacency)


@pytest.mark.parametrize("regime", [2, -1, [0, 1], [0, 1, 2]])
def test_wrong_regimes(regime: int | list[int]) -> None:
    with pytest.raises(ValueError, match=r"a regime from 0 to 1, or one for each of 3 nodes"):
        StructuralModel(LinearSEM(3, regimes=2), torch.zeros(3, 3), regime=regime)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x7": torch.zeros(3)}, "'x7', there is no such variable: expected some of"),
        ({"x0": torch.zeros(3, 1)}, r"'x0', wrong shape: expected \[N\].* got \(3, 1\)"),
        ({"x0": torch.zeros(3), "x1": torch.zeros(2)}, r"one N for all.*Give columns"),
    ],
)
def test_wrong_evidence(data: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(LinearSEM)(data)
