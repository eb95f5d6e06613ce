"""Rows of a mixture of interventions: densities, draws, shapes, and what they are as programs."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_causal.mechanisms import (
    FlowSEM,
    IntervenedRows,
    LinearSEM,
    NonlinearSEM,
    StructuralEquations,
    StructuralModel,
)

N, D, K = 7, 4, 3
# x3 -> x0 -> x2 -> x1, and x3 -> x2
GRAPH = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]])
TARGETS = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]])
CUT = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]])
Z = torch.tensor([0, 1, 2, 2, 1, 0, 1])
FAMILIES = [LinearSEM, NonlinearSEM, FlowSEM]
every_family = pytest.mark.parametrize("family", FAMILIES)
cut_or_not = pytest.mark.parametrize("cut", [None, CUT], ids=["stochastic", "imperfect"])
Family = Callable[..., StructuralEquations]


def make(family: Family, *, by: float = 0.3) -> StructuralEquations:
    equations = family(D, regimes=1 + K).double()
    equations.set_normalisation(torch.tensor([1.0, -1.0, 5.0, 0.0]) + 2 * torch.randn(50, D))
    with torch.no_grad():
        for parameter in equations.parameters():
            parameter += by * torch.randn_like(parameter)
    return equations


def rows_of(
    equations: StructuralEquations, z: Tensor = Z, *, cut: Tensor | None = None, **options: Tensor
) -> IntervenedRows:
    given = {"context": equations.context, "targets": TARGETS} | options
    return IntervenedRows(equations, given.pop("adjacency", GRAPH), z=z, cut=cut, **given)


def program(equations: StructuralEquations, k: int, cut: Tensor | None) -> StructuralModel:
    """A component as a program: targets without the parents from which they are cut."""
    kept = torch.ones(D, dtype=torch.long) if cut is None else cut[k]
    graph = GRAPH * (1 - TARGETS[k] * kept)
    return StructuralModel(equations, graph, regime=(TARGETS[k] * (k + 1)).tolist())


def density(model: StructuralModel, x: Tensor) -> Tensor:
    """That of each row."""
    trace = poutine.trace(model).get_trace({f"x{j}": x[:, j] for j in range(D)})
    trace.compute_log_prob()
    return torch.stack([trace.nodes[f"x{j}"]["log_prob"] for j in range(D)]).sum(0)


# --- densities ------------------------------------------------------------------------------------


@every_family
@cut_or_not
def test_each_component_is_a_program(family: Family, cut: Tensor | None) -> None:
    equations, x = make(family), torch.randn(N, D).double()
    rows = rows_of(equations, cut=cut)
    found = rows.by_component(x)
    assert found.shape == (N, K)
    for k in range(K):
        torch.testing.assert_close(found[:, k], density(program(equations, k, cut), x))
    assert torch.equal(rows.log_prob(x), found[torch.arange(N), Z])
    assert rows.log_prob(x).requires_grad


def test_a_component_without_targets_is_the_base() -> None:
    equations, x = make(LinearSEM), torch.randn(N, D).double()
    base = StructuralModel(equations, GRAPH)
    torch.testing.assert_close(rows_of(equations).by_component(x)[:, 0], density(base, x))


@every_family
def test_probabilities_in_place_of_targets_and_cuts(family: Family) -> None:
    """Mean-field: the density is affine in both, so that it is the expectation over draws."""
    equations, x = make(family), torch.randn(N, D).double()
    p, q = torch.rand(2, K, D).double()
    found = rows_of(equations, targets=p, cut=q).by_component(x)
    base, own = rows_of(equations, cut=torch.ones(K, D)).log_laws(x)
    kept = rows_of(equations, cut=torch.zeros(K, D)).log_laws(x)[1]
    p, q = p[:, None], q[:, None]
    expected = (p * (q * own + (1 - q) * kept) + (1 - p) * base).sum(-1).T
    torch.testing.assert_close(found, expected)
    assert (kept - own).abs().max() > 0.1  # what is cut matters


@every_family
@cut_or_not
def test_targets_that_are_certain_take_less(family: Family, cut: Tensor | None) -> None:
    """Only the laws of targets are computed then; densities and gradients are the same."""
    equations, x = make(family), torch.randn(N, D).double()
    parts = cut if cut is None else cut.double().lerp(torch.full(cut.shape, 0.5).double(), 0.3)
    known, learnt = TARGETS.double(), TARGETS.double().requires_grad_()
    every, some = (
        rows_of(equations, targets=targets, cut=parts).by_component(x)
        for targets in (learnt, known)
    )
    torch.testing.assert_close(some, every)
    parameters = list(equations.parameters())
    weight = torch.rand_like(every)
    for one, other in zip(
        *(torch.autograd.grad((weight * terms).sum(), parameters) for terms in (every, some)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_only_laws_of_targets_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    equations, x = make(NonlinearSEM), torch.randn(N, D).double()
    asked: list[torch.Size] = []
    own = equations.log_prob_at

    def log_prob_at(x: Tensor, adjacency: Tensor, pairs: Tensor, **options: Tensor) -> Tensor:
        asked.append(pairs.shape)
        return own(x, adjacency, pairs, **options)

    monkeypatch.setattr(equations, "log_prob_at", log_prob_at)
    rows_of(equations, cut=CUT).by_component(x)
    rows_of(equations, targets=TARGETS * 0.9).by_component(x)
    assert asked == [(4, 2), (4, 2)]  # with parents and without


def test_gradients_reach_graph_contexts_and_targets() -> None:
    equations = make(NonlinearSEM)
    inputs = [GRAPH.double(), equations.context.detach().clone(), TARGETS.double(), CUT.double()]
    adjacency, context, targets, cut = (value.requires_grad_() for value in inputs)
    rows = rows_of(equations, adjacency=adjacency, context=context, targets=targets, cut=cut)
    gradients = torch.autograd.grad(rows.log_prob(torch.randn(N, D).double()).sum(), inputs)
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("family", [LinearSEM, NonlinearSEM])
@pytest.mark.parametrize("of", ["adjacency", "targets"])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_derivatives_forward_are_those_backward(family: Family, of: str) -> None:
    """Though graph and targets are zeros and ones, of which some laws could be left out."""
    equations, x = make(family), torch.randn(N, D).double()
    value = {"adjacency": GRAPH, "targets": TARGETS}[of].double()
    along = torch.randn_like(value)

    def density(value: Tensor) -> Tensor:
        return rows_of(equations, cut=CUT, **{of: value}).log_prob(x).sum()

    _, forward = torch.func.jvp(density, (value,), (along,))
    backward = torch.autograd.grad(density(value.requires_grad_()), value)[0]
    torch.testing.assert_close(forward, (backward * along).sum())


@pytest.mark.parametrize("targets", [TARGETS, 0 * TARGETS], ids=["some", "none"])
def test_rows_of_single_precision(targets: Tensor) -> None:
    equations, x = make(LinearSEM), torch.randn(N, D)
    found = rows_of(equations, targets=targets).by_component(x)
    torch.testing.assert_close(found, rows_of(equations, targets=targets).by_component(x.double()))


@every_family
def test_roots_for_less(family: Family) -> None:
    equations, x = make(family), torch.randn(2, 1100, D).double()
    none, context = torch.zeros(D, D), torch.randn_like(equations.context[:2])
    found = equations.root_log_prob(x, context=context)
    torch.testing.assert_close(found, equations.log_prob(x, none, context=context))
    torch.testing.assert_close(equations.root_log_prob(x[0]), equations.log_prob(x[0], none))
    with pytest.raises(ValueError, match=r"expected values \[\*, B, d\] with d = 4"):
        equations.root_log_prob(x[..., :3])


# --- shapes ---------------------------------------------------------------------------------------


def test_shapes() -> None:
    rows = rows_of(make(LinearSEM))
    assert (rows.batch_shape, rows.event_shape) == ((N,), (D,))
    assert rows.expand((5, N)).batch_shape == (5, N)
    assert rows.sample().shape == (N, D) and rows.sample().dtype == torch.float64
    assert rows.sample((5,)).shape == rows.expand((5, N)).sample().shape == (5, N, D)


@pytest.mark.parametrize("family", [LinearSEM, FlowSEM])
@cut_or_not
@pytest.mark.parametrize("number", [K, 5])  # as many as components, and not
def test_batches_of_tables(family: Family, cut: Tensor | None, number: int) -> None:
    rows = rows_of(make(family), cut=cut)
    x = rows.sample((number,))
    expected = torch.stack([rows.log_prob(table) for table in x])
    torch.testing.assert_close(rows.log_prob(x), expected)
    torch.testing.assert_close(rows.expand((number, N)).log_prob(x), expected)
    torch.testing.assert_close(rows.log_prob(x[0, 0]), rows.by_component(x[0, :1])[0, Z])


def test_all_components_of_each_row() -> None:
    """As Pyro's enumeration lays out assignments."""
    equations, x = make(LinearSEM), torch.randn(N, D).double()
    found = rows_of(equations, torch.arange(K)[:, None]).log_prob(x)
    torch.testing.assert_close(found, rows_of(equations).by_component(x).T)
    w = torch.tensor([0.5, 0.2, 0.3]).double()

    @config_enumerate
    def model() -> None:
        with pyro.plate("rows", N):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", rows_of(equations, z), obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
    assert loss == pytest.approx(-(found.T + w.log()).logsumexp(1).sum().item())


# --- draws ----------------------------------------------------------------------------------------


@every_family
@cut_or_not
def test_draws_are_those_of_the_programs(family: Family, cut: Tensor | None) -> None:
    equations = make(family, by=0.1)
    z = torch.arange(K).repeat_interleave(1500)
    x = rows_of(equations, z, cut=cut).sample()
    for k in range(K):
        own, other = x[z == k], torch.stack([*program(equations, k, cut)(size=1500).values()], 1)
        other = other.detach()
        scale = other.std(0)
        assert ((own.mean(0) - other.mean(0)) / scale).abs().max() < 0.15, k
        assert (own.std(0) / scale).log().abs().max() < 0.15, k
        assert (torch.corrcoef(own.T) - torch.corrcoef(other.T)).abs().max() < 0.15, k


def test_moments_of_a_linear_chain() -> None:
    """x0 -> x1: the base, x1 cut from x0, and x1 with another weight."""
    sem = LinearSEM(2, regimes=4)
    with torch.no_grad():
        sem.weight[0, 0, 1], sem.weight[3, 0, 1] = 2.0, -1.0
        sem.weight[2, 0, 1] = 9.0  # of no avail, since it is cut
        sem.bias[2, 1], sem.log_scale[2, 1] = 3.0, -1.0
    rows = IntervenedRows(
        sem,
        torch.tensor([[0, 1], [0, 0]]),
        context=sem.context,
        targets=torch.tensor([[0, 0], [0, 1], [0, 1]]),
        cut=torch.tensor([[0, 0], [1, 1], [0, 0]]),
        z=torch.arange(3).repeat_interleave(20_000),
    )
    base, cut, kept = rows.sample().reshape(3, -1, 2)
    for x, mean, variance, slope in ((base, 0, 5, 2), (cut, 3, 0.1353, 0), (kept, 0, 2, -1)):
        assert x[:, 0].var().item() == pytest.approx(1, abs=0.04)
        assert x[:, 1].mean().item() == pytest.approx(mean, abs=0.06)
        assert x[:, 1].var().item() == pytest.approx(variance, rel=0.04)
        assert x.T.cov()[0, 1].item() == pytest.approx(slope, abs=0.08)


def test_draws_have_no_gradient_and_need_none() -> None:
    graph = GRAPH.double().requires_grad_()  # as a guide draws it
    rows = rows_of(make(LinearSEM), adjacency=graph)
    assert not rows.has_rsample
    assert not rows.sample().requires_grad


def test_no_draws_from_a_graph_with_a_cycle() -> None:
    rows = rows_of(make(LinearSEM), adjacency=GRAPH + GRAPH.T)
    assert rows.log_prob(torch.randn(N, D).double()).isfinite().all()
    with pytest.raises(ValueError, match=r"graph of a draw has a cycle.*pyro.condition\(model, {"):
        rows.sample()
