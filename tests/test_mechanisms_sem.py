"""Structural equations of a vector: one contract over three families, then each by itself."""

import copy
import io
import math
from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_causal import mechanisms
from pyro_causal._recipe import build, describe
from pyro_causal.mechanisms import (
    FlowSEM,
    LinearSEM,
    NonlinearSEM,
    StructuralEquations,
    sample_adjacency,
)
from pyro_causal.mechanisms._sigmoidal import SigmoidalTransform
from pyro_causal.mechanisms.sem import floored_scale
from pyro_causal.noise import abduct, predict

NODES, REGIMES, ROWS = 4, 3, 6
CASES: dict[str, Callable[..., StructuralEquations]] = {
    "linear": LinearSEM,
    "nonlinear": partial(NonlinearSEM, context=2, hidden=(5,)),
    "nonlinear, two layers": partial(NonlinearSEM, context=2, hidden=(5, 3)),
    "flow": partial(FlowSEM, context=2, hidden=(5,)),
    "flow, two layers": partial(FlowSEM, context=2, hidden=(5,), units=(3, 2)),
}
FLOWS = [name for name in CASES if "flow" in name]
every_case = pytest.mark.parametrize("name", CASES)
every_flow = pytest.mark.parametrize("name", FLOWS)

GRAPH = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])


def make(
    name: str, *, dtype: torch.dtype = torch.float64, perturb: float = 0.4, regimes: int = REGIMES
) -> StructuralEquations:
    """Make equations in units of their own, with parameters away from their start."""
    equations = CASES[name](NODES, regimes=regimes).to(dtype)
    data = torch.tensor([1.0, -2.0, 0.0, 3.0]) + torch.tensor([0.5, 2.0, 1.0, 3.0]) * rows(50)
    equations.set_normalisation(data.to(dtype))
    with torch.no_grad():
        for parameter in equations.parameters():
            parameter += perturb * torch.randn_like(parameter)
    return equations


def rows(count: int = ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, NODES, dtype=dtype)


def test_the_contract_covers_every_family() -> None:
    public = [getattr(mechanisms, name) for name in mechanisms.__all__]
    families = {m for m in public if isinstance(m, type) and issubclass(m, StructuralEquations)}
    assert {type(make(name)) for name in CASES} == families - {StructuralEquations}


@every_case
@pytest.mark.parametrize("samples", [(), (2,), (2, 3)])
def test_shapes(name: str, samples: tuple[int, ...]) -> None:
    equations, adjacency = make(name), torch.rand(*samples, NODES, NODES)
    shape = (*samples, REGIMES, ROWS, NODES)
    assert equations.log_prob(rows(), adjacency).shape == shape
    law = equations(rows(), adjacency)
    assert (law.batch_shape, law.event_shape) == (shape, ())
    assert law.sample((7,)).shape == (7, *shape)


@every_case
def test_samples_of_graphs_are_separate(name: str) -> None:
    equations, x = make(name), rows()
    graphs = torch.rand(3, NODES, NODES)
    together = equations.log_prob(x, graphs)
    for one, graph in zip(together, graphs, strict=True):
        torch.testing.assert_close(one, equations.log_prob(x, graph))
    torch.testing.assert_close(torch.vmap(equations.log_prob, (None, 0))(x, graphs), together)
    batches = rows(3 * ROWS).reshape(3, ROWS, NODES)
    for i, one in enumerate(equations.log_prob(batches, graphs)):
        torch.testing.assert_close(one, equations.log_prob(batches[i], graphs[i]))


def reference(equations: StructuralEquations, x: Tensor, adjacency: Tensor, k: int, j: int):
    """The log-density of one number under one mechanism, from the equations as they are written."""
    y = (x - equations.loc) / equations.scale
    inputs = torch.stack([adjacency[i, j] * y[i] if i != j else 0 * y[i] for i in range(NODES)])
    if isinstance(equations, LinearSEM):
        loc = equations.bias[k, j] + equations.weight[k, :, j] @ inputs
        raw = torch.stack([loc, equations.log_scale[k, j]])
    else:
        net = equations.networks
        hidden = net.inputs[j] @ inputs + net.context[j] @ equations.context[k]
        hidden = hidden + net.biases[0][j, :, 0]
        for weight, bias in zip(net.weights, list(net.biases)[1:], strict=True):
            hidden = weight[j] @ (hidden * hidden.sigmoid()) + bias[j, :, 0]
        raw = hidden
    scale = (raw[1].exp() ** 2 + equations.min_scale**2).sqrt()
    u = (y[j] - raw[0]) / scale
    log_slope = -scale.log() - equations.scale[j].log()
    raw = raw[2:]
    for units in getattr(equations, "units", ()):
        weight, shift, width = raw[: 3 * units].reshape(3, units)
        raw = raw[3 * units :]
        start = 0.5 * torch.logit((torch.arange(units) + 0.5) / units).to(x)
        unit_width = (1 - (start**2).mean() / (math.pi**2 / 3)).sqrt() * width.exp()
        z = (u - start - shift) / (unit_width**2 + equations.min_scale**2).sqrt()
        mixture = weight.softmax(0) @ z.sigmoid()
        slope = weight.softmax(0) @ (
            z.sigmoid() * (1 - z.sigmoid()) / (unit_width**2 + equations.min_scale**2).sqrt()
        )
        log_slope = log_slope + (slope / mixture / (1 - mixture)).log()
        u = mixture.logit()
    return dist.Normal(0.0, 1.0).log_prob(u) + log_slope


@every_case
def test_the_batch_is_a_loop_over_nodes_and_regimes(name: str) -> None:
    equations, x, adjacency = make(name), rows(), torch.rand(NODES, NODES).double()
    found = equations.log_prob(x, adjacency)
    for k in range(REGIMES):
        for i in range(ROWS):
            for j in range(NODES):
                expected = reference(equations, x[i], adjacency, k, j)
                torch.testing.assert_close(found[k, i, j], expected)
    torch.testing.assert_close(equations(x, adjacency).log_prob(x[None]), found)


@every_case
@pytest.mark.parametrize("j", range(NODES))
def test_densities_sum_to_one(name: str, j: int) -> None:
    equations, x = make(name), rows(1)
    law = equations.conditional(j, {i: x[0, i] for i in range(NODES) if i != j}, regime=1)
    grid = predict(law, torch.linspace(-9, 9, 8001).double())
    x = x.expand(len(grid), NODES).clone()
    x[:, j] = grid
    density = equations.log_prob(x, torch.ones(NODES, NODES))[1, :, j].exp()
    total = torch.trapezoid(density, grid)
    torch.testing.assert_close(total.item(), 1.0, atol=1e-5, rtol=0)


@every_case
def test_parts_of_a_batch_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    equations, x, graphs = make(name), rows(7), torch.rand(2, NODES, NODES)
    expected = equations.log_prob(x, graphs)
    monkeypatch.setattr("pyro_causal.mechanisms.sem.NUMBERS", 3 * REGIMES * NODES)
    torch.testing.assert_close(equations.log_prob(x, graphs), expected)
    assert equations.log_prob(x[:0], graphs).shape == (2, REGIMES, 0, NODES)


@every_case
def test_some_coordinates_in_some_regimes(name: str) -> None:
    equations, x = make(name), rows()
    pairs = torch.tensor([[2, 3], [0, 1], [1, 0], [0, 3], [2, 1]])  # roots and others
    expected = equations.log_prob(x, GRAPH)[pairs[:, 0], :, pairs[:, 1]]
    found = equations.log_prob_at(x, GRAPH, pairs)
    torch.testing.assert_close(found, expected)
    parameters = list(equations.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
    )
    learnt = GRAPH.double().requires_grad_()  # of a node without parents in this draw, too
    every, some = equations.log_prob(x, learnt), equations.log_prob_at(x, learnt, pairs)
    torch.testing.assert_close(
        torch.autograd.grad(some.sum(), learnt),
        torch.autograd.grad(every[pairs[:, 0], :, pairs[:, 1]].sum(), learnt),
    )
    alone = equations.log_prob_at(x, torch.zeros_like(GRAPH), pairs, context=equations.context)
    torch.testing.assert_close(alone, equations.root_log_prob(x)[pairs[:, 0], :, pairs[:, 1]])
    assert equations.log_prob_at(x, GRAPH, pairs[:0]).shape == (0, ROWS)
    with pytest.raises(ValueError, match=r"pairs .* \[P, 2\], got shape \(2, 5\). Stack them"):
        equations.log_prob_at(x, GRAPH, pairs.T)


@every_case
def test_gradient_of_the_adjacency(name: str) -> None:
    equations, x = make(name), rows()
    adjacency = torch.rand(NODES, NODES).double().requires_grad_()
    (slope,) = torch.autograd.grad(equations.log_prob(x, adjacency).sum(), adjacency)
    loops = torch.eye(NODES, dtype=torch.bool)
    assert (slope[loops] == 0).all()
    assert (slope[~loops] != 0).all()
    weight = torch.randn(REGIMES, ROWS, NODES).double()
    assert torch.autograd.gradcheck(
        lambda a: (equations.log_prob(x, a) * weight).sum(), adjacency, atol=1e-4
    )


@every_case
def test_nothing_leaks_past_the_graph(name: str) -> None:
    equations, x = make(name), rows(1)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: equations.log_prob(x, GRAPH)[:, 0].sum(0), x
    )[:, 0]
    expected = (GRAPH.T + torch.eye(NODES)) > 0  # [effect, cause]
    assert ((jacobian != 0) == expected).all()


@every_case
def test_regimes_are_told_apart_by_their_context(name: str) -> None:
    equations, x = make(name), rows()
    own = equations.log_prob(x, GRAPH)
    assert not torch.allclose(own[0], own[1])
    order = [2, 0]
    other = equations.log_prob(x, GRAPH, context=equations.context[order])
    torch.testing.assert_close(other, own[order])
    samples = torch.randn(2, *equations.context.shape).double()
    together = equations.log_prob(x, torch.stack([GRAPH, GRAPH.T]), context=samples)
    one = equations.log_prob(x, GRAPH.T, context=samples[1])
    torch.testing.assert_close(together[1], one)


@every_case
def test_one_coordinate_is_a_column_of_all(name: str) -> None:
    equations, x = make(name), rows()
    found = equations.log_prob(x, GRAPH)
    for k in range(REGIMES):
        for j in range(NODES):
            parents = {i: x[:, i] for i in GRAPH[:, j].nonzero().flatten().tolist()}
            law = equations.conditional(j, parents, regime=k)
            assert law.batch_shape == ((ROWS,) if parents else ())
            torch.testing.assert_close(law.log_prob(x[:, j]), found[k, :, j])


@every_case
def test_parents_broadcast(name: str) -> None:
    equations = make(name)
    law = equations.conditional(3, {2: torch.randn(5, 1).double(), 0: torch.randn(6).double()})
    assert law.batch_shape == (5, 6)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_round_trip(name: str, dtype: torch.dtype) -> None:
    equations = make(name, dtype=dtype)
    law = equations(rows(dtype=dtype), GRAPH.to(dtype))
    x = law.sample((50,))
    u = abduct(law, x)
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(predict(law, u), x, atol=tolerance, rtol=tolerance)
    if name in FLOWS:
        torch.testing.assert_close(abduct(law, predict(law, 2 * u)), 2 * u, atol=0.01, rtol=0.01)


@every_case
def test_every_parameter_gets_a_gradient(name: str) -> None:
    equations = make(name)
    equations.log_prob(rows(), torch.ones(NODES, NODES)).sum().backward()
    for label, parameter in equations.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().sum() > 0, label


@every_case
def test_the_start_is_standard_normal(name: str) -> None:
    data = 3 + 2 * rows(200)
    equations = CASES[name](NODES, regimes=2).double().set_normalisation(data)
    found = equations.log_prob(data, torch.ones(NODES, NODES))
    expected = dist.Normal(data.mean(0), data.std(0, correction=0)).log_prob(data)
    difference = found - expected
    assert difference.abs().max() < (0.35 if name in FLOWS else 1e-5)
    assert difference.mean().abs() < (0.01 if name in FLOWS else 1e-5)


@every_case
def test_scales_have_a_floor(name: str) -> None:
    equations = CASES[name](NODES, min_scale=0.1)
    with torch.no_grad():
        if isinstance(equations, LinearSEM):
            equations.log_scale.fill_(-50)
        else:
            last = equations.networks.biases[-1]
            last[:, 1] = last[:, -1] = -50  # the scale, and the width of a unit
    density = equations.log_prob(torch.zeros(1, NODES), GRAPH).exp()
    assert density.isfinite().all()
    if name not in FLOWS:
        expected = torch.full_like(density, 10 / (2 * math.pi) ** 0.5)
        torch.testing.assert_close(density, expected)


@every_case
def test_far_values_have_a_density_and_gradients(name: str) -> None:
    equations = make(name, dtype=torch.float32, perturb=0.1)
    x = torch.tensor([[-1e3] * NODES, [1e3] * NODES], requires_grad=True)
    adjacency = torch.full((NODES, NODES), 0.01)
    found = equations.log_prob(x, adjacency)
    found.sum().backward()
    assert found.isfinite().all()
    assert x.grad.isfinite().all()
    assert (found < -300).all()


@every_case
def test_save_and_load(name: str) -> None:
    equations, x = make(name), rows()
    file = io.BytesIO()
    torch.save({"recipe": describe(equations), "state": equations.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    other = build(content["recipe"])
    other.load_state_dict(content["state"], assign=True)
    assert type(other) is type(equations)
    expected = equations.log_prob(x, GRAPH)
    torch.testing.assert_close(other.double().log_prob(x, GRAPH), expected, rtol=0, atol=0)
    again = copy.deepcopy(equations)
    torch.testing.assert_close(again.log_prob(x, GRAPH), expected, rtol=0, atol=0)


@every_case
@pytest.mark.filterwarnings("ignore:.torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_jit(name: str) -> None:
    class LogProb(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.equations = make(name)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            return self.equations.log_prob(x, adjacency)

    module, adjacency = LogProb(), torch.rand(NODES, NODES)
    traced = torch.jit.trace(module, (rows(), adjacency))
    x = rows()
    torch.testing.assert_close(traced(x, 1 - adjacency), module(x, 1 - adjacency))


@every_case
def test_repr(name: str) -> None:
    assert f"nodes={NODES}, regimes={REGIMES}, min_scale=0.001" in repr(make(name))


def test_linear_parameters_are_views_of_the_context() -> None:
    equations = LinearSEM(3, regimes=2)
    with torch.no_grad():
        equations.weight[1, 0, 2] = 4.0
        equations.bias[1, 2] = -1.0
        equations.log_scale[1, 2] = math.log(0.5)
    law = equations.conditional(2, {0: torch.tensor([1.0, 2.0])}, regime=1)
    assert law.loc.tolist() == [3.0, 7.0]
    torch.testing.assert_close(law.scale, torch.full((2,), 0.5))
    assert law.loc.requires_grad


def fit(equations: StructuralEquations, x: Tensor, graph: Tensor, steps: int) -> None:
    optimiser = torch.optim.Adam(equations.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -equations.log_prob(x, graph).sum(-1).mean()
        loss.backward()
        optimiser.step()


def test_linear_equations_are_least_squares() -> None:
    cause = torch.randn(500, 2)
    effect = 1 + cause @ torch.tensor([1.5, -0.7]) + 0.05 * torch.randn(500)
    x = torch.stack([cause[:, 0], effect, cause[:, 1]], -1)
    graph = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 0]])
    equations = LinearSEM(3).set_normalisation(x)
    fit(equations, x, graph, 800)
    design = torch.cat([torch.ones(500, 1), cause], -1)
    residual = effect - design @ torch.linalg.lstsq(design, effect[:, None]).solution[:, 0]
    law = equations.conditional(1, {0: cause[:, 0], 2: cause[:, 1]})
    torch.testing.assert_close(law.loc, effect - residual, atol=2e-3, rtol=0)
    torch.testing.assert_close(law.scale[0], residual.std(correction=0), atol=2e-3, rtol=0)


def bimodal(count: int) -> tuple[Tensor, Tensor]:
    """A cause, and its effect with noise of two modes; and the density of the effect."""
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.4, 0.6])), dist.Normal(torch.tensor([-1.0, 1.0]), 0.3)
    )
    cause, noise = torch.randn(count), law.sample((count,))
    return torch.stack([cause, cause.square() + noise], -1), law.log_prob(noise)


@pytest.mark.parametrize(
    ("family", "least", "most"),
    [(LinearSEM, 0.9, 1.3), (NonlinearSEM, 0.45, 0.7), (FlowSEM, -0.02, 0.04)],
)
def test_families_differ_in_what_they_learn(
    family: Callable[..., StructuralEquations], least: float, most: float
) -> None:
    x, _ = bimodal(2000)
    graph = torch.tensor([[0, 1], [0, 0]])
    equations = family(2).set_normalisation(x)
    fit(equations, x, graph, 300)
    held_out, truth = bimodal(5000)
    lost = (truth - equations.log_prob(held_out, graph)[0, :, 1]).mean()
    assert least < lost < most


class TestSigmoidalTransform:
    def layer(self, dtype: torch.dtype = torch.float64) -> SigmoidalTransform:
        log_weight, centre, width = torch.randn(3, 6, 4, dtype=dtype)
        return SigmoidalTransform(log_weight, 3 * centre, width.exp())

    def test_slope(self) -> None:
        x = torch.randn(6).double().requires_grad_()
        y, log_slope = self.layer().call_and_ladj(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(log_slope, slope.log())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_inverse_to_the_precision_of_numbers(self, dtype: torch.dtype) -> None:
        layer = self.layer(dtype)
        y = torch.tensor([-1e4, -30.0, -1.0, 0.0, 5.0, 1e4], dtype=dtype)
        torch.testing.assert_close(layer(layer.inv(y)), y)

    def test_gradient_of_the_inverse(self) -> None:
        log_weight, centre, raw = torch.randn(3, 3).double()
        arguments = [log_weight, centre, raw.exp(), torch.randn(5, 1).double()]
        for argument in arguments:
            argument.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda w, c, s, y: SigmoidalTransform(w, c, s).inv(y), arguments
        )

    @staticmethod
    def plain(x: Tensor, log_weight: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, ...]:
        """Value and log-slope, from the logarithms as they are written."""
        log_weight = log_weight - log_weight.logsumexp(-1, keepdim=True)
        z = (x.unsqueeze(-1) - centre) / width
        below, above = nn.functional.logsigmoid(z), nn.functional.logsigmoid(-z)
        left, right = (log_weight + below).logsumexp(-1), (log_weight + above).logsumexp(-1)
        slope = (log_weight + below + above - width.log()).logsumexp(-1)
        return left - right, slope - left - right

    @staticmethod
    def fast(x: Tensor, log_weight: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, ...]:
        return SigmoidalTransform(log_weight, centre, width).call_and_ladj(x)

    @staticmethod
    def arguments(dtype: torch.dtype = torch.float64, units: int = 4) -> list[Tensor]:
        """Values and parameters that differ in which axes they have."""
        log_weight, centre, raw = (torch.randn(*size, units) for size in ((3, 1), (2, 1, 6), (6,)))
        values = [5 * torch.randn(3, 6), 3 * log_weight, 4 * centre, raw.exp()]
        return [value.to(dtype).requires_grad_() for value in values]

    @pytest.mark.parametrize("units", [1, 2, 4])
    def test_gradient(self, units: int) -> None:
        arguments = self.arguments(units=units)
        assert torch.autograd.gradcheck(self.fast, arguments)
        with torch.no_grad():
            arguments[0] *= 10
        weights = torch.randn(2, 2, 3, 6).double()
        results = []
        for function in (self.fast, self.plain):
            found = torch.stack(function(*arguments))
            results.append([found, *torch.autograd.grad((weights * found).sum(), arguments)])
        torch.testing.assert_close(*results)

    def test_tails(self) -> None:
        """Units so narrow, light and far that single exponentials vanish."""
        x = torch.linspace(-300, 300, 25)
        log_weight = torch.tensor([[0.0, 0.0], [0.0, -150.0]]).unsqueeze(1)
        values = [x, log_weight, torch.tensor([-20.0, 20.0]), torch.tensor([1e-2, 2e-2])]
        results = []
        for function, dtype in ((self.fast, torch.float32), (self.plain, torch.float64)):
            arguments = [value.to(dtype).requires_grad_() for value in values]
            found = function(*arguments)
            total = found[0].sum() / 100 + found[1].sum()
            gradients = torch.autograd.grad(total, arguments)
            results.append([value.float() for value in (*found, *gradients)])
        assert all(value.isfinite().all() for value in results[0])
        torch.testing.assert_close(*(found[:2] for found in results), rtol=1e-6, atol=0.02)
        torch.testing.assert_close(*(found[2:] for found in results), rtol=0.03, atol=0.02)

    def test_gradients_over_batches(self) -> None:
        arguments = self.arguments()
        expected = torch.autograd.functional.jacobian(self.fast, tuple(arguments))
        torch.testing.assert_close(torch.func.jacrev(self.fast, (0, 1, 2, 3))(*arguments), expected)
        for i in range(4):  # one argument has copies, the others have none
            axes = [0 if i == j else None for j in range(4)]
            copies = [torch.stack([a, a + 0.5]) if i == j else a for j, a in enumerate(arguments)]
            found = torch.vmap(self.fast, tuple(axes))(*copies)
            for k in range(2):
                one = self.fast(*(c[k] if i == j else c for j, c in enumerate(copies)))
                torch.testing.assert_close([f[k] for f in found], [*one])

    @pytest.mark.parametrize("units", [1, 3])
    def test_second_gradient(self, units: int) -> None:
        arguments = [value.detach().requires_grad_() for value in self.arguments(units=units)]
        assert torch.autograd.gradgradcheck(self.fast, arguments)

    def test_one_sigmoid_is_affine(self) -> None:
        layer = SigmoidalTransform(torch.zeros(1), torch.ones(1), torch.full((1,), 2.0))
        torch.testing.assert_close(layer(torch.tensor([-200.0, 5.0])), torch.tensor([-100.5, 2.0]))


class TestSampleAdjacency:
    def test_shapes_and_loops(self) -> None:
        found = sample_adjacency(torch.full((2, 5, 5), 9.0), sample_shape=(7, 3))
        assert found.shape == (7, 3, 2, 5, 5)
        assert ((found == 0) | (found == 1)).all()
        assert (found.diagonal(dim1=-2, dim2=-1) == 0).all()
        assert found.sum() > 0

    @pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
    def test_probabilities_at_any_temperature(self, temperature: float) -> None:
        logits = torch.tensor([[0.0, 1.0], [-2.0, 0.0]])
        found = sample_adjacency(logits, temperature=temperature, sample_shape=(20000,)).mean(0)
        expected = logits.sigmoid() * (1 - torch.eye(2))
        torch.testing.assert_close(found, expected, atol=0.015, rtol=0)

    def test_certain_edges(self) -> None:
        logits = torch.tensor([[0.0, 1e3], [-1e3, 0.0]]).requires_grad_()
        found = sample_adjacency(logits, sample_shape=(1000,))
        assert (found == torch.tensor([[0.0, 1.0], [0.0, 0.0]])).all()
        found.sum().backward()
        assert logits.grad.isfinite().all()

    def test_gradient_is_that_of_the_relaxed_draw(self) -> None:
        logits = torch.randn(4, 4, requires_grad=True)
        state = torch.get_rng_state()
        (slope,) = torch.autograd.grad(sample_adjacency(logits, temperature=0.5).sum(), logits)
        torch.set_rng_state(state)
        first, second = torch.empty(2, 4, 4).exponential_().log()
        soft = (2 * (logits + first - second)).sigmoid()
        expected = 2 * soft * (1 - soft) * (1 - torch.eye(4))
        torch.testing.assert_close(slope, expected)

    def test_descent_finds_the_edge(self) -> None:
        x = torch.randn(500, 2)
        x[:, 1] = x[:, 0] + 0.5 * x[:, 1]
        equations, logits = LinearSEM(2), torch.zeros(2, 2, requires_grad=True)
        with torch.no_grad():
            equations.weight[0, 0, 1] = 1.0
        optimiser = torch.optim.Adam([logits], lr=0.1)
        for _ in range(100):
            optimiser.zero_grad()
            (-equations.log_prob(x, sample_adjacency(logits)).sum(-1).mean()).backward()
            optimiser.step()
        assert logits[0, 1] > 2
        assert logits[1, 0] == 0  # whose weight is zero

    @pytest.mark.parametrize(
        ("shape", "temperature", "message"),
        [((3,), 1.0, r"got \(3,\)"), ((2, 3), 1.0, "a square"), ((2, 2), 0.0, "0.0. Give one")],
    )
    def test_wrong_arguments(self, shape: tuple[int], temperature: float, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            sample_adjacency(torch.zeros(shape), temperature=temperature)


@pytest.mark.parametrize(
    ("x", "adjacency", "context", "message"),
    [
        ((5, 3), (4, 4), (2, 2), r"expected values \[\*, B, d\] with d = 4, got .* \(3,\)"),
        ((4,), (4, 4), (2, 2), r"expected values \[\*, B, d\]"),
        ((5, 4), (4, 3), (2, 2), r"an adjacency \[\*, d, d\] with d = 4, got .* \(4, 3\)"),
        ((5, 4), (4,), (2, 2), "an adjacency"),
        ((5, 4), (4, 4), (2, 3), r"a context \[\*, R, 2\] .* \(3,\)\. Transpose or reshape"),
        ((5, 4), (4, 4), (2,), "a context"),
    ],
)
def test_wrong_shapes(x: tuple, adjacency: tuple, context: tuple, message: str) -> None:
    equations = NonlinearSEM(4, context=2)
    with pytest.raises(ValueError, match=f"NonlinearSEM: wrong shape: .*{message}"):
        equations.log_prob(torch.zeros(x), torch.zeros(adjacency), context=torch.zeros(context))


def test_wrong_data() -> None:
    data = torch.randn(5, 3)
    data[:, 1] = 0.1
    data[2, 2] = math.nan
    with pytest.raises(ValueError, match=r"LinearSEM: .* coordinates \[\[1\], \[2\]\]: .* Drop"):
        LinearSEM(3).set_normalisation(data)
    with pytest.raises(ValueError, match=r"the shape \(5, 2\).*expected \[N, 3\]"):
        LinearSEM(3).set_normalisation(torch.randn(5, 2))


def test_networks_need_a_hidden_layer() -> None:
    for family in (NonlinearSEM, FlowSEM):
        with pytest.raises(ValueError, match="expected one hidden layer or more.*take LinearSEM"):
            family(3, hidden=())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_have_a_floor_and_a_ceiling(dtype):
    log_scale = torch.tensor([-60.0, 0.0, 30.0, 1e3], dtype=dtype, requires_grad=True)
    scale = floored_scale(log_scale, 0.1)
    expected = torch.tensor([0.1, 1.01**0.5, math.exp(30), math.exp(40)], dtype=dtype)
    torch.testing.assert_close(scale, expected, rtol=1e-4, atol=0.0)
    scale.sum().backward()
    slope = torch.tensor([0.0, 1 / 1.01**0.5, math.exp(30), 0.0], dtype=dtype)
    torch.testing.assert_close(log_scale.grad, slope, rtol=1e-4, atol=1e-9)


@every_case
@pytest.mark.parametrize("start", [44.0, 90.0])
def test_gradients_are_finite_however_large_a_scale(name, start):
    sem = CASES[name](NODES)
    with torch.no_grad():
        if isinstance(sem, LinearSEM):
            sem.context[..., -1, :] = start
        else:
            sem.networks.biases[-1][:, 1] = start
    sem.log_prob(torch.randn(ROWS, NODES), torch.full((NODES, NODES), 0.5)).sum().backward()
    gradients = [p.grad for p in sem.parameters() if p.grad is not None]
    assert any(g.any() for g in gradients)
    assert all(g.isfinite().all() for g in gradients)
