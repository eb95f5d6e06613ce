"""The method of multipliers: closed forms, both ways of training, stopping, and exact resume."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_causal import fit
from pyro_causal.infer.acyclicity import (
    is_dag,
    log_determinant,
    power_series,
    trace_exponential,
)
from pyro_causal.infer.elbo import AugmentedLagrangianELBO, MeanFieldELBO

STEPS = 100


def nothing(*args: object) -> None:
    """A guide of no latent sites."""


class Quadratic(PyroModule):
    """A loss of (a - 1)^2 + (b - 0.8)^2, where a and b are the edges between two nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.tensor([0.5, 0.5]).log())

    @pyro_method
    def model(self) -> None:
        cost = (self.logs.exp() - torch.tensor([1.0, 0.8])).square().sum()
        pyro.factor("cost", -cost)

    def matrix(self) -> Tensor:
        a, b = self.logs.exp()
        zero = torch.zeros(())
        return torch.stack([torch.stack([zero, a]), torch.stack([b, zero])])


class Line(PyroModule):
    """A loss of x^2 + 2 y^2; on x + y = 1 it is least at (2/3, 1/3), with a multiplier of -4/3."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(2))

    @pyro_method
    def model(self) -> None:
        pyro.factor("cost", -(torch.tensor([1.0, 2.0]) * self.point.square()).sum())

    def matrix(self) -> Tensor:
        return self.point.diag()

    @staticmethod
    def constraint(matrix: Tensor) -> Tensor:
        return matrix.sum() - 1


WEIGHTS = torch.zeros(5, 5)
for cause, effect, weight in [(3, 0, 1.2), (3, 4, -0.8), (0, 2, 1.0), (4, 2, 0.9), (2, 1, -1.5)]:
    WEIGHTS[cause, effect] = weight


class LinearGaussian(PyroModule):
    """Linear equations with unit noise, which tells the directions."""

    def __init__(self, d: int = 5) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d, d))
        self.register_buffer("others", 1 - torch.eye(d))

    @pyro_method
    def model(self, x: Tensor) -> None:
        w = self.w * self.others
        with poutine.scale(scale=1 / len(x)), pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(x @ w, 1.0).to_event(1), obs=x)
        pyro.factor("sparse", -0.02 * w.abs().sum())

    def guide(self, x: Tensor) -> None:
        """Nothing is latent."""

    def squares(self) -> Tensor:
        return self.w.square()

    def loss(self, constraint=trace_exponential, **options) -> AugmentedLagrangianELBO:
        options = {"steps": STEPS, "threshold": 0.09, **options}
        return AugmentedLagrangianELBO(Trace_ELBO(), constraint, matrix=self.squares, **options)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(500, 5) @ torch.linalg.inv(torch.eye(5) - WEIGHTS)


def train(program, loss, steps: int, *, lr: float = 0.02) -> None:
    svi = SVI(program.model, nothing, pyro.optim.Adam({"lr": lr}), loss)
    for _ in range(steps):
        svi.step()


# --- what is minimised ----------------------------------------------------------------------------


def test_value_and_gradient_in_closed_form() -> None:
    program = Quadratic()
    loss = AugmentedLagrangianELBO(
        Trace_ELBO(), trace_exponential, matrix=program.matrix, penalty=0.3
    )
    loss.multiplier.fill_(0.7)

    def objective(logs: Tensor) -> Tensor:
        a, b = logs.exp()
        h = 2 * (a * b).sqrt().cosh() - 2
        return (a - 1) ** 2 + (b - 0.8) ** 2 + 0.7 * h + 0.15 * h**2

    logs = program.logs.detach().clone().requires_grad_()
    expected = objective(logs)
    expected.backward()
    loss.differentiable_loss(program.model, nothing).backward()
    torch.testing.assert_close(program.logs.grad, logs.grad)
    program.logs.grad = None
    assert loss.loss_and_grads(program.model, nothing) == pytest.approx(expected.item())
    torch.testing.assert_close(program.logs.grad, logs.grad)
    assert loss.differentiable_loss(program.model, nothing).item() == pytest.approx(expected.item())


def test_what_is_only_evaluated_is_the_bound() -> None:
    program = Quadratic()
    loss = AugmentedLagrangianELBO(
        Trace_ELBO(), trace_exponential, matrix=program.matrix, steps=1, penalty=5.0
    )
    assert loss.loss(program.model, nothing) == pytest.approx(0.25 + 0.09)
    svi = SVI(program.model, nothing, pyro.optim.SGD({"lr": 0.0}), loss)
    assert svi.evaluate_loss() == pytest.approx(0.25 + 0.09)
    with torch.no_grad():
        for _ in range(3):
            assert loss(program.model, nothing)() > 0.34  # the price included, but no step
    assert loss.done == 0 and loss.penalty == 5.0


def test_the_constrained_optimum_of_two_nodes() -> None:
    """Without the constraint it is (1, 0.8); with it the weaker edge goes, for 1.6 or more."""
    free = Quadratic()
    train(free, Trace_ELBO(), 300)
    torch.testing.assert_close(free.logs.exp(), torch.tensor([1.0, 0.8]), atol=1e-3, rtol=0)
    pyro.clear_param_store()
    bound = Quadratic()
    loss = AugmentedLagrangianELBO(
        Trace_ELBO(), trace_exponential, matrix=bound.matrix, steps=STEPS
    )
    train(bound, loss, 1500)
    assert loss.converged
    a, b = bound.logs.exp().tolist()
    assert a == pytest.approx(1, abs=0.01)
    assert b < 0.001
    assert loss.graph.tolist() == [[False, True], [False, False]]
    h = trace_exponential(bound.matrix()).item()
    assert loss.multiplier + loss.penalty * h > 1.6
    assert loss.penalty <= 1e3


def test_the_multiplier_of_an_equality() -> None:
    """Any constraint will do, one with a sign as well."""
    program = Line()
    loss = AugmentedLagrangianELBO(
        Trace_ELBO(), program.constraint, matrix=program.matrix, steps=200, growth=3.0
    )
    train(program, loss, 4000, lr=0.01)
    torch.testing.assert_close(program.point.data, torch.tensor([2 / 3, 1 / 3]), atol=1e-3, rtol=0)
    assert loss.multiplier.item() == pytest.approx(-4 / 3, abs=0.02)
    assert loss.penalty < 100


# --- rounds ---------------------------------------------------------------------------------------


def test_multiplier_and_penalty_follow_the_rule() -> None:
    h = torch.tensor(0.0)
    loss = AugmentedLagrangianELBO(
        Trace_ELBO(),
        lambda matrix: h,
        matrix=lambda: torch.ones(2, 2),
        penalty=0.5,
        growth=4.0,
        max_penalty=30.0,
        reduction=0.5,
        tolerance=0.1,
    )
    multiplier = 0.0
    for value, penalty in [
        (8.0, 0.5),  # the first round has nothing to compare with
        (3.0, 0.5),  # fell enough
        (-2.0, 2.0),  # fell too little, by its size
        (2.0, 8.0),
        (5.0, 30.0),  # as far as it goes
        (4.0, 30.0),
        (0.09, 30.0),
        (0.08, 30.0),  # fell too little, but is small
    ]:
        multiplier += loss.penalty.item() * value
        h.fill_(value)
        loss.update()
        assert loss.penalty.item() == penalty
        assert loss.multiplier.item() == pytest.approx(multiplier)
        assert loss.violation.item() == pytest.approx(abs(value))


def test_a_stable_graph_ends_the_rounds() -> None:
    one, other, both = torch.zeros(3, 2, 2)
    one[0, 1] = other[1, 0] = both[0, 1] = both[1, 0] = 0.9
    matrix = torch.zeros(2, 2, requires_grad=True)
    loss = AugmentedLagrangianELBO(Trace_ELBO(), trace_exponential, matrix=lambda: matrix, rounds=3)
    seen = []
    for current in (one, one, both, one, one, other, other, 0.5 * both, other, other, other):
        matrix.data.copy_(current)
        assert loss.update() is loss.converged
        seen.append(loss.agreed.item())
        assert torch.equal(loss.graph, matrix > 0.5)
    # Half of both has no edge above the threshold, and yet a cycle that matters.
    assert seen == [1, 2, 0, 1, 2, 1, 2, 0, 1, 2, 3]
    assert loss.converged
    matrix.requires_grad_(False)  # it is held, and has not settled
    assert not loss.update()


def test_the_diagonal_is_no_edge() -> None:
    loss = AugmentedLagrangianELBO(
        Trace_ELBO(), trace_exponential, matrix=torch.eye(3).requires_grad_().clone, rounds=1
    )
    assert loss.update()
    assert not loss.graph.any()


def test_steps_are_counted_and_rounds_ended() -> None:
    program = Quadratic()
    loss = AugmentedLagrangianELBO(Trace_ELBO(), trace_exponential, matrix=program.matrix, steps=3)
    module = loss(program.model, nothing)
    updates = []
    for _ in range(8):
        module().backward()
        updates.append((loss.done.item(), loss.multiplier.item() > 0))
    assert updates == [(1, False), (2, False), (3, False), *((k, True) for k in (1, 2, 3, 1, 2))]
    loss = AugmentedLagrangianELBO(Trace_ELBO(), trace_exponential, matrix=program.matrix)
    for _ in range(8):
        loss.loss_and_grads(program.model, nothing)
    assert loss.done == 0 and loss.multiplier == 0


def test_a_round_may_end_between_two_losses_of_one_gradient() -> None:
    program = Quadratic()
    loss = AugmentedLagrangianELBO(Trace_ELBO(), trace_exponential, matrix=program.matrix, steps=1)
    module = loss(program.model, nothing)
    (module() + module()).backward()
    assert program.logs.grad.isfinite().all()


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("constraint", [trace_exponential, power_series, log_determinant])
def test_a_graph_is_found_by_a_torch_optimiser(constraint, rows) -> None:
    program = LinearGaussian()
    loss = program.loss(constraint)
    module = loss(program.model, program.guide)
    assert isinstance(module, ELBOModule)
    optimiser = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(1500):
        optimiser.zero_grad()
        module(rows).backward()
        optimiser.step()
        if loss.converged:
            break
    assert loss.converged
    assert torch.equal(loss.graph, WEIGHTS != 0)
    torch.testing.assert_close(program.w.detach(), WEIGHTS, atol=0.15, rtol=0)
    assert loss.penalty <= 1e4


def test_a_graph_is_found_by_svi(rows) -> None:
    program = LinearGaussian()
    loss = program.loss()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.02}), loss)
    steps = 0
    while not loss.converged and steps < 1500:
        svi.step(rows)
        steps += 1
    assert loss.converged
    assert torch.equal(loss.graph, WEIGHTS != 0)


@pytest.mark.parametrize("kind", ["pyro", "torch"])
def test_fit_stops_at_the_graph(kind, rows) -> None:
    program = LinearGaussian()
    loss = program.loss()
    optim = pyro.optim.Adam({"lr": 0.02}) if kind == "pyro" else partial(torch.optim.Adam, lr=0.02)
    history = fit(program.model, program.guide, loss=loss, data=rows, epochs=1500, optim=optim)
    assert loss.converged
    assert history.epochs % STEPS == 1  # the update is at the start of the next round
    assert 3 * STEPS < history.epochs < 1500
    assert torch.equal(loss.graph, WEIGHTS != 0)
    again = fit(program.model, program.guide, loss=loss, data=rows, epochs=5, optim=optim)
    assert again.epochs == 0


def test_without_a_constraint_there_are_cycles(rows) -> None:
    """So that it is not the model that finds the graph."""
    program = LinearGaussian()
    fit(program.model, program.guide, loss=Trace_ELBO(), data=rows, epochs=400, lr=0.02)
    edges = program.squares().detach().fill_diagonal_(0.0) > 0.09
    assert not is_dag(edges)


@pytest.mark.parametrize("kind", ["pyro", "torch"])
@pytest.mark.parametrize("stop", [4, 10, 17])
def test_a_resumed_run_is_the_same_run(kind, stop, rows, tmp_path) -> None:
    def run(epochs: int, path, resume: bool = False):
        pyro.clear_param_store()
        program = LinearGaussian()
        loss = program.loss(steps=7, rounds=9)
        torch_optim = partial(torch.optim.Adam, lr=0.02)
        optim = pyro.optim.Adam({"lr": 0.02}) if kind == "pyro" else torch_optim
        fit(
            program.model,
            program.guide,
            loss=loss,
            data=rows,
            epochs=epochs,
            optim=optim,
            checkpoint=path,
            resume=resume,
        )
        return program, loss

    program, loss = run(30, tmp_path / "whole.pt")
    run(stop, tmp_path / "part.pt")
    resumed, other = run(30, tmp_path / "part.pt", resume=True)
    assert torch.equal(program.w, resumed.w)
    assert loss.state_dict().keys() == other.state_dict().keys()
    for name, value in loss.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert loss.done == 2 and loss.multiplier > 0 and loss.graph.any()


def test_the_state_of_the_module_is_the_whole_state(rows) -> None:
    def make():
        program = LinearGaussian()
        loss = program.loss(steps=7)
        module = loss(program.model, program.guide)
        return loss, module, torch.optim.Adam(module.parameters(), 0.02)

    def steps(module, optimiser, number: int) -> None:
        for _ in range(number):
            optimiser.zero_grad()
            module(rows).backward()
            optimiser.step()

    loss, module, optimiser = make()
    steps(module, optimiser, 10)
    saved = {name: value.clone() for name, value in module.state_dict().items()}
    assert {"elbo.multiplier", "elbo.graph", "method.w"} <= saved.keys()
    steps(module, optimiser, 10)
    _, fresh, own = make()
    steps(fresh, own, 10)  # for the moments of the optimiser
    fresh.load_state_dict(saved)
    steps(fresh, own, 10)
    for name, value in module.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    unused, _, _ = make()
    unused.load_state_dict(loss.state_dict())
    assert torch.equal(unused.graph, loss.graph)
    assert loss.multiplier == unused.multiplier > 0


# --- with other bounds, guides and owners ---------------------------------------------------------


def test_parameters_of_owners_are_held_once() -> None:
    program = LinearGaussian()
    module = program.loss()(program.model, program.guide)
    assert [p is program.w for p in module.parameters()] == [True]
    assert [name for name in module.state_dict() if name.endswith("w")] == ["method.w"]
    graph = nn.Linear(3, 3, bias=False)
    loss = AugmentedLagrangianELBO(
        MeanFieldELBO(), trace_exponential, matrix=lambda: graph.weight.square()
    )
    assert {id(p) for p in loss(program.model, program.guide).parameters()} == {id(program.w)}

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(3, 3))

        def forward(self) -> Tensor:
            return self.logits.sigmoid()

    matrix = Graph()
    for fn in (matrix, matrix.forward):
        loss = AugmentedLagrangianELBO(MeanFieldELBO(), trace_exponential, matrix=fn)
        assert not [*loss.parameters()]
        held = {id(p) for p in loss(program.model, program.guide).parameters()}
        assert held == {id(program.w), id(matrix.logits)}


@pytest.mark.parametrize("registered", [True, False])
def test_a_module_of_edges_is_trained_wherever_it_is(registered) -> None:
    """Also if only a closure knows it, and registers it."""
    graph = nn.Sequential(nn.Linear(1, 4), nn.Sigmoid())

    def model() -> None:
        pyro.module("graph", graph)
        pyro.factor("cost", -(edges() - 1).square().sum())

    def edges() -> Tensor:
        return graph(torch.ones(1)).reshape(2, 2)

    class Edges(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = graph

        def forward(self) -> Tensor:
            return edges()

    loss = AugmentedLagrangianELBO(
        Trace_ELBO(), trace_exponential, matrix=Edges() if registered else edges, penalty=1.0
    )
    before = graph[0].weight.detach().clone()
    fit(model, nothing, loss=loss, epochs=5, lr=0.1)
    assert (graph[0].weight != before).all()


def test_parameters_of_the_store() -> None:
    def matrix() -> Tensor:
        return pyro.param("logits", torch.zeros(3, 3)).sigmoid()

    def model() -> None:
        pyro.factor("cost", (matrix() - 1).square().sum().neg())

    loss = AugmentedLagrangianELBO(
        Trace_ELBO(), trace_exponential, matrix=matrix, steps=20, penalty=0.1
    )
    svi = SVI(model, nothing, pyro.optim.Adam({"lr": 0.1}), loss)
    for _ in range(100):
        svi.step()
    assert pyro.param("logits").unbind()[0].isfinite().all()
    assert loss.multiplier > 0
    p = matrix()
    assert trace_exponential(p) < 0.5 * trace_exponential(torch.full((3, 3), 0.5))


@pytest.mark.parametrize("kind", [TraceGraph_ELBO, TraceEnum_ELBO, MeanFieldELBO])
def test_any_bound(kind) -> None:
    """The gradient is that of the bound and that of the price, added."""
    logit = nn.Parameter(torch.tensor(0.3))
    edges = nn.Parameter(torch.full((2, 2), 0.6))

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.8))

    def guide() -> None:
        probs = pyro.param("logit", logit).sigmoid()
        kinds = {"enumerate": "parallel"} if kind is TraceEnum_ELBO else {}
        pyro.sample("z", dist.Bernoulli(probs), infer=kinds)

    inner = kind(max_plate_nesting=0, strict_enumeration_warning=False)
    loss = AugmentedLagrangianELBO(inner, trace_exponential, matrix=lambda: edges, penalty=2.0)
    pyro.set_rng_seed(0)
    total = loss.loss_and_grads(model, guide)
    slopes = logit.grad.clone(), edges.grad.clone()
    logit.grad = edges.grad = None
    pyro.set_rng_seed(0)
    h = 2 * math.cosh(0.6) - 2
    assert total == pytest.approx(inner.loss_and_grads(model, guide) + h**2, rel=1e-5)
    torch.testing.assert_close(logit.grad, slopes[0])
    assert slopes[1][0, 1].item() == pytest.approx(2 * h * math.sinh(0.6), rel=1e-4)


def test_two_constraints_at_once() -> None:
    program = Line()
    first = AugmentedLagrangianELBO(
        Trace_ELBO(), program.constraint, matrix=program.matrix, penalty=0.3
    )
    both = AugmentedLagrangianELBO(first, torch.trace, matrix=program.matrix, penalty=0.1)
    with torch.no_grad():
        program.point.copy_(torch.tensor([2.0, 1.0]))
    module = both(program.model, nothing)
    assert module().item() == pytest.approx(6 + 0.15 * 4 + 0.05 * 9)
    assert {"elbo.multiplier", "elbo.elbo.multiplier"} <= module.state_dict().keys()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "expected steps to be None or a number from 1, got 0"),
        ({"penalty": 0.0}, "expected penalty to be more than 0, max_penalty at most, got 0.0"),
        ({"penalty": 5.0, "max_penalty": 1.0}, "expected penalty to be more than 0"),
        ({"growth": 1.0}, "expected growth to be more than 1, got 1.0"),
        ({"reduction": 1.0}, "expected reduction to be a fraction between 0 and 1, got 1.0"),
        ({"rounds": 0}, "expected rounds to be a number from 1, got 0"),
    ],
    ids=str,
)
def test_wrong_arguments(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentedLagrangianELBO(
            Trace_ELBO(), trace_exponential, matrix=lambda: torch.zeros(2, 2), **options
        )


def test_a_constraint_that_is_no_scalar() -> None:
    loss = AugmentedLagrangianELBO(
        Trace_ELBO(), trace_exponential, matrix=lambda: torch.zeros(3, 2, 2)
    )
    with pytest.raises(ValueError, match=r"expected a constraint that is a scalar, got shape \(3,"):
        loss.update()


def test_a_bound_without_a_differentiable_form() -> None:
    program = Line()
    loss = AugmentedLagrangianELBO(TraceGraph_ELBO(), program.constraint, matrix=program.matrix)
    message = "TraceGraph_ELBO has no differentiable form: .* Wrap another, or give an optimiser"
    with pytest.raises(ValueError, match=message):
        loss(program.model, nothing)
    with pytest.raises(ValueError, match=message):
        fit(program.model, nothing, loss=loss, epochs=1)
    fit(program.model, nothing, loss=loss, epochs=1, optim=pyro.optim.Adam({"lr": 0.1}))


@pytest.mark.gpu
def test_a_graph_is_found_on_a_gpu(rows) -> None:
    program = LinearGaussian().cuda()
    loss = program.loss()
    fit(program.model, program.guide, loss=loss, data=rows.cuda(), epochs=1500, lr=0.02)
    assert loss.graph.is_cuda
    assert torch.equal(loss.graph.cpu(), WEIGHTS != 0)
