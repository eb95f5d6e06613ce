"""Random models under mixtures of interventions: their laws, their moments and their worlds."""

import itertools
import math
from typing import Any, get_args

import networkx as nx
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.testing import assert_close

from pyro_causal import causal_graph, do, soft, world, worlds
from pyro_causal.datasets import (
    InterventionalSCM,
    draw_interventional_scm,
    sample_interventional_table,
)
from pyro_causal.datasets.interventions import Density, Intervention

DENSITIES, INTERVENTIONS = get_args(Density), get_args(Intervention)
EVERY = pytest.mark.parametrize(
    ("density", "intervention"), [*itertools.product(DENSITIES, INTERVENTIONS)]
)


def draw(d: int = 6, **options: Any) -> InterventionalSCM:
    """A model in double precision, with parents to speak of."""
    return draw_interventional_scm(d, **{"edges_per_node": 1.5, "dtype": torch.float64} | options)


def run(program: Any, z: Tensor) -> dict[str, Tensor]:
    """The values of all sites."""
    nodes = poutine.trace(program).get_trace(z).nodes
    return {n: site["value"] for n, site in nodes.items() if site["type"] == "sample"}


def evidence(scm: InterventionalSCM, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """What fixes the noise of all rows: the noise itself, or the variables if they abduct it."""
    noise = {name: value for name, value in seen.items() if name.endswith("_noise")}
    return noise or {name: value for name, value in seen.items() if name[0] == "x"}


def variables(values: dict[str, Tensor], d: int) -> Tensor:
    return torch.stack([values[f"x{j}"] for j in range(d)], -1)


# --- graphs and targets ---------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "e", "expected"), [(10, 1.0, 10.0), (10, 4.0, 40.0), (20, 1.0, 20)])
def test_the_expected_number_of_edges(d: int, e: float, expected: float) -> None:
    number = [float(draw(d, edges_per_node=e).adjacency.sum()) for _ in range(200)]
    probability = 2 * e / (d - 1)
    error = math.sqrt(d * (d - 1) / 2 * probability * (1 - probability) / 200)
    assert abs(sum(number) / 200 - expected) < 4 * error


def test_graphs_are_acyclic_in_a_random_order() -> None:
    first = []
    for _ in range(50):
        scm = draw(5)
        position = torch.tensor(scm.order).argsort()
        cause, effect = scm.adjacency.nonzero().T
        assert (position[cause] < position[effect]).all()
        first.append(scm.order[0])
    assert {*first} == {0, 1, 2, 3, 4}


def test_two_variables_are_cause_and_effect_in_either_order() -> None:
    pairs = [draw(2, edges_per_node=1.0).adjacency for _ in range(40)]
    assert all(int(pair.sum()) == 1 for pair in pairs)
    assert 5 < sum(int(pair[0, 1]) for pair in pairs) < 35


def test_more_edges_than_there_are_make_a_full_graph() -> None:
    graph = nx.DiGraph(draw(6, edges_per_node=50.0).adjacency.numpy())
    assert graph.number_of_edges() == 15
    assert nx.is_directed_acyclic_graph(graph)


@pytest.mark.parametrize(
    ("d", "regimes", "size"), [(6, 6, 1), (6, 3, 1), (6, 14, 1), (7, 5, 3), (50, 10, 4), (4, 2, 4)]
)
def test_targets_are_dealt_evenly(d: int, regimes: int, size: int) -> None:
    targets = draw(d, regimes=regimes, targets_per_regime=size).targets
    assert targets.shape == (regimes + 1, d)
    assert targets.sum(1).tolist() == [0] + [size] * regimes
    for first in range(1, regimes + 1, d // size):  # a shuffle of all variables
        assert (targets[first : first + d // size].sum(0) <= 1).all()


def test_targets_are_shuffled_anew_in_each_deal() -> None:
    one, two = draw(9, regimes=18).targets[1:].reshape(2, 9, 9).argmax(-1)
    assert one.tolist() != [*range(9)] and one.tolist() != two.tolist()


def test_regimes_default_to_one_for_each_variable() -> None:
    assert torch.equal(draw(6).targets[1:].sum(0), torch.ones(6, dtype=torch.long))


def test_without_regimes_all_is_observational() -> None:
    table = sample_interventional_table(draw(5, regimes=0), 40)
    assert table["targets"].tolist() == [[0] * 5]
    assert (table["z"] == 0).all()


# --- mechanisms -----------------------------------------------------------------------------------


@EVERY
def test_a_regime_changes_the_mechanisms_of_its_targets_only(
    density: Density, intervention: Intervention
) -> None:
    scm = draw(8, density=density, intervention=intervention, targets_per_regime=2)
    hit = scm.targets.bool()
    for parameter in (scm.location, scm.scale, scm.driven, scm.weight):
        changed = (parameter != parameter[:1]).reshape(*hit.shape, -1).any(-1)
        assert not (changed & ~hit).any()
    assert ((scm.location != scm.location[:1]) == hit)[:, ~scm.driven[0]].all()


@EVERY
def test_a_regime_is_an_intervention_on_its_targets(
    density: Density, intervention: Intervention
) -> None:
    """Setting the targets to their values in the regime makes rows of regime 0 the same."""
    scm = draw(7, density=density, intervention=intervention, targets_per_regime=2, regimes=3)
    z = torch.arange(40) % 3 + 1
    seen = run(scm, z)
    known = poutine.condition(worlds(scm, [{"z": 0}]), evidence(scm, seen))
    own, moved = known(z)
    assert_close(own, variables(seen, 7))
    assert not torch.allclose(moved, own)
    for k in (1, 2, 3):
        values = {f"x{j}": seen[f"x{j}"] for j in scm.targets[k].nonzero()[:, 0].tolist()}
        known = poutine.condition(worlds(scm, [{"z": 0, **values}]), evidence(scm, seen))
        own, same = known(z)
        assert_close(same[z == k], own[z == k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("intervention", ["stochastic", "atomic"])
def test_perfect_interventions_cut_the_parents(
    density: Density, intervention: Intervention
) -> None:
    scm = draw(6, density=density, intervention=intervention)
    z = torch.arange(70) % 7
    known = evidence(scm, run(scm, z))
    changes = [{f"x{i}": lambda x: x + 10.0} for i in range(6)]
    values = poutine.condition(worlds(scm, changes), known)(z)
    for i, j in itertools.permutations(range(6), 2):
        moved = (values[1 + i, :, j] - values[0, :, j]).abs() > 1e-9
        assert not moved[scm.targets[z][:, j] == 1].any()
        if density == "linear" and scm.adjacency[i, j] == 1:
            assert moved[z == 0].all()


def test_atomic_interventions_are_those_of_do() -> None:
    scm = draw(6, density="flow", intervention="atomic")
    z = torch.arange(70) % 7
    seen = run(scm, z)
    x = variables(seen, 6)
    for k in range(1, 7):
        j = int(scm.targets[k].argmax())
        constant = float(scm.location[k, j])
        assert 4 <= abs(constant) <= 8
        assert (x[z == k, j] == constant).all()
        fixed = poutine.condition(do(scm, {f"x{j}": constant}), evidence(scm, seen))
        assert_close(fixed(torch.zeros_like(z))[z == k], x[z == k])


def test_stochastic_interventions_are_far_from_zero() -> None:
    scm = draw(60, intervention="stochastic")
    k, j = scm.targets.nonzero().T
    magnitude = scm.location[k, j].abs()
    assert (magnitude >= 4).all() and (magnitude <= 8).all()
    assert magnitude.min() < 4.5 and magnitude.max() > 7.5
    assert 15 < (scm.location[k, j] > 0).sum() < 45
    assert (scm.scale[k, j] == 0.2).all()


@pytest.mark.parametrize("density", DENSITIES)
def test_imperfect_interventions_change_one_weight_and_the_noise(density: Density) -> None:
    scm = draw(100, density=density, intervention="imperfect")
    k, j = scm.targets.nonzero().T
    roots = ~scm.driven[0, j]
    assert (scm.scale[k, j][roots] == 0.2).all()
    assert (scm.location[k, j][roots].abs() >= 4).all()
    k, j = k[~roots], j[~roots]
    assert scm.driven[k, j].all()
    changed = scm.weight[k, j] != scm.weight[0, j]
    assert (changed.sum(-1) == 1).all()
    if density == "linear":
        assert scm.adjacency.T[j][changed].all()
    weight = scm.weight[k, j][changed]
    positive, negative = weight[weight > 0], weight[weight < 0]
    for part, low, high in ((positive, 0.625, 3.125), (-negative, 2.5, 12.5)):
        assert 20 < len(part) < 70
        assert low <= part.min() < low + (high - low) / 5
        assert high - (high - low) / 5 < part.max() <= high
    damping = 1.0 if density == "flow" else 0.2
    spread = scm.scale[k, j] / (damping * 0.4)
    assert 2.5 <= spread.min() < 3 and 5.5 < spread.max() <= 6
    assert_close(spread.mean().item(), 4.25, atol=0.5, rtol=0)
    assert_close((scm.location[k, j] / damping).std().item(), 0.75, atol=0.2, rtol=0)


@pytest.mark.parametrize("density", DENSITIES)
def test_the_noise_of_regime_zero(density: Density) -> None:
    scm = draw(400, density=density, regimes=0, edges_per_node=1.0)
    damping = torch.where(scm.driven[0] & torch.tensor(density != "flow"), 0.2, 1.0)
    assert_close(scm.driven[0], scm.adjacency.any(0))
    spread = scm.scale[0] / damping / 0.4
    assert 1 <= spread.min() < 1.02 and 2.38 < spread.max() <= 2.4
    assert_close((scm.location[0] / damping).std().item(), 0.3, atol=0.04, rtol=0)
    assert abs(float((scm.location[0] / damping).mean())) < 0.06


def test_linear_weights_are_those_of_parents() -> None:
    scm = draw(60, edges_per_node=4.0)
    assert torch.equal(scm.weight[0] != 0, scm.adjacency.T.bool())
    weight = scm.weight[0][scm.adjacency.T.bool()]
    assert 0.25 <= weight.abs().min() < 0.3 and 1.2 < weight.abs().max() <= 1.25
    assert 0.35 < (weight > 0).double().mean() < 0.65


def test_networks_have_standard_normal_weights_and_biases_apart_from_zero() -> None:
    scm = draw(40, density="nonlinear")
    (first, bias), (second, other) = scm.layers
    assert first.shape == (40, 8, 41) and second.shape == (40, 8, 8)
    for weight in (first, second):
        assert_close(weight.std().item(), 1.0, atol=0.05, rtol=0)
        assert abs(float(weight.mean())) < 0.05
    for part in (bias, other):
        assert 0.05 <= part.abs().min() < 0.1 and 1.5 < part.abs().max() <= 1.55
        assert 0.35 < (part > 0).double().mean() < 0.65
    assert 0.25 <= scm.weight[0].abs().min() < 0.3 and 1.2 < scm.weight[0].abs().max() <= 1.25


@pytest.mark.parametrize("density", ["nonlinear", "flow"])
def test_networks_by_the_formula(density: Density) -> None:
    scm = draw(4, density=density, intervention="imperfect", edges_per_node=9.0)
    z = torch.arange(30) % 5
    conditioned = {f"x{j}": torch.randn(30, dtype=torch.float64) for j in scm.order[:-1]}
    last, parents = scm.order[-1], sorted(scm.order[:-1])
    trace = poutine.trace(do(scm, conditioned)).get_trace(z)
    for row in range(30):
        k = int(z[row])
        inputs = [float(conditioned[f"x{i}"][row]) for i in parents]
        columns = [*parents]
        if density == "flow":
            u = float(trace.nodes[f"x{last}_noise"]["value"][row])
            inputs.append(float(scm.location[k, last] + scm.scale[k, last] * u))
            columns.append(4)
        (w1, b1), (w2, b2) = scm.layers
        h = [
            max(
                0.0,
                sum(float(w1[last, m, c]) * v for c, v in zip(columns, inputs, strict=True))
                + float(b1[last, m]),
            )
            for m in range(8)
        ]
        h = [
            max(0.0, sum(float(w2[last, m, c]) * v for c, v in enumerate(h)) + float(b2[last, m]))
            for m in range(8)
        ]
        effect = sum(float(scm.weight[k, last, m]) * v for m, v in enumerate(h))
        if density == "flow":
            value = trace.nodes[f"x{last}"]["value"][row]
        else:
            value = trace.nodes[f"x{last}"]["fn"].mean[row] - scm.location[k, last]
        assert_close(float(value), effect)


# --- distributions --------------------------------------------------------------------------------


def joint(scm: InterventionalSCM, k: int) -> dist.MultivariateNormal:
    """The distribution of a regime of a linear model."""
    weight = scm.weight[k] * scm.driven[k][:, None]
    effect = torch.linalg.inv(torch.eye(len(weight), dtype=torch.float64) - weight)
    covariance = effect @ torch.diag(scm.scale[k] ** 2) @ effect.T
    return dist.MultivariateNormal(effect @ scm.location[k], covariance)


@pytest.mark.parametrize("intervention", ["stochastic", "imperfect"])
def test_moments_of_linear_regimes(intervention: Intervention) -> None:
    scm = draw(4, intervention=intervention)
    for k in range(5):
        x, law = scm(torch.full((20_000,), k)), joint(scm, k)
        error = law.variance.sqrt() / math.sqrt(20_000)
        assert ((x.mean(0) - law.mean).abs() < 4.5 * error).all()
        scale = law.variance.sqrt()
        difference = (x.T.cov() - law.covariance_matrix) / scale / scale[:, None]
        assert difference.abs().max() < 0.05


@pytest.mark.parametrize("intervention", ["stochastic", "imperfect"])
def test_the_density_of_linear_regimes(intervention: Intervention) -> None:
    scm = draw(5, intervention=intervention)
    z = torch.arange(60) % 6
    x = scm(z)
    rows = {f"x{j}": x[:, j] for j in range(5)}
    trace = poutine.trace(poutine.condition(scm, rows)).get_trace(z)
    expected = sum(joint(scm, k).log_prob(x[z == k]).sum() for k in range(6))
    assert_close(trace.log_prob_sum(), expected)


@EVERY
def test_tables_are_standardised_over_all_regimes(
    density: Density, intervention: Intervention
) -> None:
    scm = draw(5, density=density, intervention=intervention)
    table = sample_interventional_table(scm, 603)
    assert_close(table["x"].mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)
    assert_close(table["x"].var(0, correction=0), torch.ones(5, dtype=torch.float64))
    assert sorted(table["z"].bincount().tolist()) == [100] * 3 + [101] * 3
    assert not torch.equal(table["z"].diff() % 6, torch.ones(602, dtype=torch.long))
    assert table["z"][:50].unique().numel() > 1
    assert torch.equal(table["targets"], scm.targets)
    assert torch.equal(table["adjacency"], scm.adjacency)
    raw = table["x"] * table["std"] + table["mean"]
    k, j = scm.targets.nonzero().T
    if intervention == "atomic":
        for regime, node in zip(k.tolist(), j.tolist(), strict=True):
            rows = raw[table["z"] == regime, node]
            assert_close(rows, scm.location[regime, node].expand_as(rows))


def test_seeds_of_the_caller_reproduce_tables() -> None:
    def table(seed: int) -> dict[str, Tensor]:
        pyro.set_rng_seed(seed)
        scm = draw_interventional_scm(5, density="flow", intervention="imperfect")
        return sample_interventional_table(scm, 30)

    one, two, other = table(1), table(1), table(2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["x"], other["x"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY
def test_values_have_the_dtype_of_the_model(
    density: Density, intervention: Intervention, dtype: torch.dtype
) -> None:
    scm = draw_interventional_scm(4, density=density, intervention=intervention, dtype=dtype)
    table = sample_interventional_table(scm, 20)
    assert {name: value.dtype for name, value in table.items()} == {
        **dict.fromkeys(("x", "mean", "std"), dtype),
        **dict.fromkeys(("z", "targets", "adjacency"), torch.long),
    }


# --- worlds ---------------------------------------------------------------------------------------


@EVERY
def test_worlds_keep_the_noise(density: Density, intervention: Intervention) -> None:
    """The null action changes nothing; what is no descendant does not gain the axis."""
    scm = draw(5, density=density, intervention=intervention)
    z = torch.arange(12) % 6
    seen = run(scm, z)
    j = scm.order[2]
    program = poutine.condition(
        worlds(scm, [{f"x{j}": seen[f"x{j}"]}, {f"x{j}": lambda x: x + 1.0}]), evidence(scm, seen)
    )
    trace = poutine.trace(program).get_trace(z)
    descendants = nx.descendants(nx.DiGraph(scm.adjacency.numpy()), j)
    for i in range(5):
        value = trace.nodes[f"x{i}"]["value"]
        if i != j and i not in descendants:
            assert value.shape == (12,)
        else:
            assert_close(value[0], seen[f"x{i}"])
            assert_close(value[1], seen[f"x{i}"])
    assert_close(world(trace.nodes[f"x{j}"]["value"], 2), seen[f"x{j}"] + 1)
    assert_close(
        trace.log_prob_sum(),
        poutine.trace(poutine.condition(scm, evidence(scm, seen))).get_trace(z).log_prob_sum(),
    )


def test_counterfactuals_of_a_linear_model_in_closed_form() -> None:
    scm = draw(6)
    z = torch.zeros(9, dtype=torch.long)
    x = scm(z)
    j = scm.order[0]
    known = {f"x{i}": x[:, i] for i in range(6)}
    values = poutine.condition(worlds(scm, [{f"x{j}": lambda v: v + 2.0}]), known)(z)
    effect = torch.linalg.inv(torch.eye(6, dtype=torch.float64) - scm.weight[0])[:, j]
    assert_close(values[1], x + 2 * effect)


def test_soft_interventions_share_the_noise() -> None:
    scm = draw(4)
    z = torch.arange(10) % 5
    x = scm(z)
    known = {f"x{i}": x[:, i] for i in range(4)}
    wider = soft(lambda d: dist.Normal(d.mean, 3 * d.stddev))
    j = scm.order[-1]
    trace = poutine.trace(poutine.condition(worlds(scm, [{f"x{j}": wider}]), known)).get_trace(z)
    mean = poutine.trace(poutine.condition(scm, known)).get_trace(z).nodes[f"x{j}"]["fn"].mean
    assert_close(trace.nodes[f"x{j}"]["value"][1], mean + 3 * (x[:, j] - mean))


def test_noise_is_a_site_where_there_is_no_density() -> None:
    scm = draw(4, density="flow")
    z = torch.arange(10) % 5
    louder = soft(lambda d: dist.Normal(d.mean + 1.0, d.stddev))
    root = next(j for j in scm.order if not scm.driven[0, j])
    values = worlds(scm, [{f"x{root}_noise": louder}])(z)
    assert_close(values[1, :, root] - values[0, :, root], scm.scale[z, root])


@pytest.mark.parametrize("density", DENSITIES)
def test_the_program_has_the_graph_of_the_model(density: Density) -> None:
    scm = draw(5, density=density)
    graph = causal_graph(scm, torch.arange(12) % 6, keep_deterministic=True)
    edges = {(f"x{i}", f"x{j}") for i, j in scm.adjacency.nonzero().tolist()}
    found = {(a, b) for a, b in graph.directed if a[0] == b[0] == "x" and "_" not in a}
    assert found == edges


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d": 1}, "two variables or more, got d=1"),
        ({"density": "normal"}, "density to be one of linear, nonlinear, flow, got 'normal'"),
        ({"intervention": "hard"}, "intervention to be one of stochastic, imperfect, atomic, got"),
        ({"edges_per_node": -1}, "edges_per_node from 0 to inf, got -1"),
        ({"regimes": -1}, "regimes from 0 to inf, got -1"),
        ({"targets_per_regime": 0}, "targets_per_regime from 1 to 5, got 0"),
        ({"targets_per_regime": 6}, "targets_per_regime from 1 to 5, got 6"),
    ],
)
def test_options_out_of_range_are_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"draw_interventional_scm: expected {message}"):
        draw_interventional_scm(**{"d": 5} | options)


def test_too_few_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"at least 12 rows for 6 regimes, got n=11\. Do ask"):
        sample_interventional_table(draw(5), 11)


def test_values_out_of_range_are_an_error() -> None:
    scm = draw_interventional_scm(3)
    scm.location[:, 1] = float("inf")
    with pytest.raises(ValueError, match=r"finite standard deviations, got .*x1: nan.* Do draw"):
        sample_interventional_table(scm, 40)
