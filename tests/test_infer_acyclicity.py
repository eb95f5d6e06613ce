"""Acyclicity constraints against enumeration, each other, closed forms and finite differences."""

import itertools
import math
from functools import partial

import networkx as nx
import pytest
import torch
from torch import Tensor

from pyro_causal.infer import acyclicity
from pyro_causal.infer.acyclicity import (
    is_dag,
    log_determinant,
    power_series,
    spectral_radius,
    threshold_to_dag,
    trace_exponential,
)

CONSTRAINTS = [trace_exponential, power_series, log_determinant, spectral_radius]
constraint = pytest.mark.parametrize("h", CONSTRAINTS, ids=lambda h: h.__name__)
double = partial(torch.tensor, dtype=torch.float64)


def dags(number: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights of random graphs without cycles, in no order of their nodes."""
    weights = torch.rand(number, d, d, dtype=dtype).triu(1) * (torch.rand(number, d, d) < 0.5)
    orders = torch.stack([torch.randperm(d) for _ in range(number)])
    row = torch.arange(number)[:, None, None]
    return weights[row, orders[:, :, None], orders[:, None, :]]


def cycle(length: int, d: int, weight: float = 1.0) -> Tensor:
    edges = torch.zeros(d, d, dtype=torch.float64)
    nodes = torch.randperm(d)[:length]
    edges[nodes, nodes.roll(-1)] = weight
    return edges


def all_graphs(d: int) -> Tensor:
    pairs = [(i, j) for i in range(d) for j in range(d) if i != j]
    graphs = torch.zeros(2 ** len(pairs), d, d)
    for k, present in enumerate(itertools.product([0.0, 1.0], repeat=len(pairs))):
        for pair, value in zip(pairs, present, strict=True):
            graphs[(k, *pair)] = value
    return graphs


def test_every_constraint_is_tested() -> None:
    public = {getattr(acyclicity, name) for name in acyclicity.__all__}
    assert {*CONSTRAINTS, is_dag, threshold_to_dag} == public


# --- zero where there is no cycle -----------------------------------------------------------------


@constraint
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 10, 50])
def test_zero_without_cycles(h, dtype, d) -> None:
    """Zero itself, and not a number near it; weights above one included."""
    assert (h(dags(30, d, dtype)) == 0).all()
    large = {"s": 100.0} if h is log_determinant else {}
    assert (h(8 * dags(30, d, dtype), **large) == 0).all()


@constraint
def test_positive_exactly_on_the_graphs_with_cycles(h) -> None:
    graphs = all_graphs(4)
    acyclic = torch.tensor([nx.is_directed_acyclic_graph(nx.DiGraph(g.numpy())) for g in graphs])
    assert acyclic.sum() == 543  # the number of labelled graphs without cycles on four nodes
    assert torch.equal(h(graphs) == 0, acyclic)
    assert (h(graphs) >= 0).all()
    assert torch.equal(is_dag(graphs), acyclic)


@constraint
@pytest.mark.parametrize("length", [2, 3, 7, 12])
def test_one_cycle_of_any_length(h, length) -> None:
    options = {"s": 1.0} if h is log_determinant else {}
    assert h(cycle(length, 12, 0.5), **options) > 0


def test_the_longest_cycle_that_a_series_sees() -> None:
    values = [power_series(cycle(length, 12), order=5).item() for length in range(2, 9)]
    assert [value > 0 for value in values] == [True] * 4 + [False] * 3
    assert trace_exponential(cycle(28, 30)) > 0


def test_the_spectral_radius_sees_cycles_that_the_others_cannot() -> None:
    long = cycle(40, 40, 0.5)
    assert spectral_radius(long).item() == pytest.approx(0.5)
    assert max(h(long).item() for h in CONSTRAINTS[:3]) < 1e-60
    assert log_determinant(long, s=1.0).item() == pytest.approx(0.5**40)


# --- values ---------------------------------------------------------------------------------------


def test_values_are_those_of_the_series() -> None:
    a = torch.rand(5, 6, 6, dtype=torch.float64)
    a = a * (1 - torch.eye(6))
    traces = [torch.linalg.matrix_power(a, k).diagonal(0, 1, 2).sum(-1) for k in range(60)]
    n, s = 6, 7.0
    exponential = sum(traces[k] / float(math.factorial(k)) for k in range(1, 60))
    binomial = sum(traces[k] * math.comb(n, k) / n**k for k in range(1, n + 1))
    logarithm = sum(traces[k] / (k * s ** (k - 2)) for k in range(1, 60))
    torch.testing.assert_close(trace_exponential(a), exponential)
    torch.testing.assert_close(power_series(a), binomial)
    torch.testing.assert_close(log_determinant(a, s=s), logarithm, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(spectral_radius(a), torch.linalg.eigvals(a).abs().amax(-1))
    usual = torch.matrix_exp(a).diagonal(0, 1, 2).sum(-1) - n
    torch.testing.assert_close(trace_exponential(a), usual)


@pytest.mark.parametrize("order", [2, 3, 4, 7, 11])
def test_orders_that_are_no_power_of_two(order) -> None:
    a = torch.rand(4, 4, dtype=torch.float64)
    a = a * (1 - torch.eye(4))
    power = torch.linalg.matrix_power(torch.eye(4) + a / order, order)
    torch.testing.assert_close(power_series(a, order=order), power.trace() - 4)


@pytest.mark.parametrize("h", [trace_exponential, power_series, log_determinant])
def test_two_edges_count_alike(h) -> None:
    value = h(cycle(2, 8, 0.01)).item()
    assert value == pytest.approx(1e-4, rel=0.13)


def test_small_values_are_not_lost_beside_the_identity() -> None:
    tiny = cycle(2, 10, 1e-5).float()
    assert trace_exponential(tiny).item() == pytest.approx(1e-10, rel=1e-5)
    assert power_series(tiny).item() == pytest.approx(0.9e-10, rel=1e-5)


@pytest.mark.parametrize("weak", [1e-2, 1e-5, 1e-8])
def test_the_spectral_radius_near_a_graph_without_cycles(weak) -> None:
    """There power iterations converge slowest."""
    a = torch.rand(10, 20, 20, dtype=torch.float64)
    a = a.triu(1) + weak * a.tril(-1)
    radius = torch.linalg.eigvals(a).abs().amax(-1)
    torch.testing.assert_close(spectral_radius(a), radius, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(spectral_radius(a.float()), radius.float())


# --- gradients ------------------------------------------------------------------------------------


def gradient(h, matrix: Tensor) -> Tensor:
    matrix = matrix.clone().requires_grad_()
    h(matrix).sum().backward()
    return matrix.grad


@constraint
def test_gradients_are_finite_differences(h) -> None:
    a = torch.rand(3, 5, 5, dtype=torch.float64)
    found = gradient(h, a)
    for i, j in itertools.product(range(5), repeat=2):
        step = torch.zeros(5, 5, dtype=torch.float64)
        step[i, j] = 1e-6
        slope = (h(a + step) - h(a - step)) / 2e-6
        torch.testing.assert_close(found[:, i, j], slope, rtol=1e-5, atol=1e-7)


def test_gradients_agree_in_sign() -> None:
    """Positive at edges on a cycle, zero at all others; the radius sees the strongest ones."""
    for _ in range(20):
        a = torch.rand(7, 7, dtype=torch.float64) * (torch.rand(7, 7) < 0.3)
        graph = nx.DiGraph((a * (1 - torch.eye(7))).numpy())
        paths = [*graph.nodes]
        on_cycle = torch.zeros(7, 7, dtype=torch.bool)
        for i, j in itertools.permutations(paths, 2):
            on_cycle[i, j] = nx.has_path(graph, j, i)  # also for an edge that is not there yet
        for h in CONSTRAINTS[:3]:
            assert torch.equal(gradient(h, a) > 0, on_cycle)
            assert (gradient(h, a) >= 0).all()
        radius = gradient(spectral_radius, a)
        assert (radius >= 0).all()
        assert not (radius > 0)[~on_cycle].any()
        assert spectral_radius(a) == 0 or (radius * a).sum() > 0


def test_the_strongest_group_of_cycles() -> None:
    a = torch.zeros(5, 5, dtype=torch.float64)
    a[0, 1], a[1, 0], a[1, 2], a[2, 3], a[3, 2] = 0.9, 0.4, 1.0, 0.5, 0.5
    found = gradient(spectral_radius, a)
    assert found[0, 1].item() == pytest.approx(0.5 * math.sqrt(0.4 / 0.9))
    assert found.count_nonzero() == 2
    a[2, 3] = a[3, 2] = 0.6  # of one strength, and joined by an edge: a kink, but no nonsense
    found = gradient(spectral_radius, a)
    assert found.isfinite().all()
    assert (found[0, 1] > 0) & (found[2, 3] > 0) & (found[1, 2] == 0)
    assert not gradient(spectral_radius, dags(1, 6)).any()


# --- shapes and inputs ----------------------------------------------------------------------------


@constraint
def test_batches_and_diagonal(h) -> None:
    a = 3 * torch.rand(2, 3, 4, 4, dtype=torch.float64) ** 6
    values = h(a)
    assert values.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(h(a[i, j]), values[i, j])
    loops = a.masked_fill(torch.eye(4, dtype=torch.bool), torch.nan)
    torch.testing.assert_close(h(loops), values)
    assert not gradient(h, a).diagonal(0, -2, -1).any()
    assert h(a.float()).dtype == torch.float32


@constraint
def test_large_weights(h) -> None:
    """Many squarings, a wide range of entries."""
    a = double([[0.0, 400.0], [1.0, 0.0]])
    eigenvalue = 20.0
    expected = {
        trace_exponential: 2 * math.cosh(eigenvalue) - 2,
        power_series: 2 * eigenvalue**2 / 4,
        log_determinant: 30.0**2 * (2 * math.log(30) - math.log(30**2 - 400)),
        spectral_radius: eigenvalue,
    }[h]
    options = {"s": 30.0} if h is log_determinant else {}
    assert h(a, **options).item() == pytest.approx(expected)


@pytest.mark.parametrize("h", [*CONSTRAINTS, threshold_to_dag], ids=lambda h: h.__name__)
def test_wrong_matrices(h) -> None:
    name = h.__name__
    for shape in ((3,), (2, 3)):
        with pytest.raises(ValueError, match=f"{name}: expected a square matrix .* got shape"):
            h(torch.zeros(shape))
    for bad in (-0.5, torch.nan, torch.inf):
        with pytest.raises(ValueError, match=f"{name}: expected finite numbers from 0, got"):
            h(torch.tensor([[0.0, bad], [0.2, 0.0]]))
    with pytest.raises(ValueError, match="is_dag: expected a square matrix"):
        is_dag(torch.zeros(2, 3))


def test_the_domain_of_the_logarithm() -> None:
    """Two cycles beyond s have a positive determinant; so the sign alone would not tell."""
    a = torch.block_diag(*(2 * [double([[0.0, 2.0], [2.0, 0.0]])]))
    assert torch.linalg.det(torch.eye(4) - a) > 0
    message = "expected a matrix of spectral radius below s=1, got 2. Give a larger s"
    with pytest.raises(ValueError, match=message):
        log_determinant(a, s=1.0)
    with pytest.raises(ValueError, match="spectral radius below s=2, got 2"):
        log_determinant(a, s=2.0)
    assert log_determinant(a, s=2.01) > 0
    for _ in range(50):
        a = 2 * torch.rand(6, 6, dtype=torch.float64) ** 3
        a.fill_diagonal_(0.0)
        radius = torch.linalg.eigvals(a).abs().max().item()
        assert log_determinant(a, s=1.001 * radius) > 0
        with pytest.raises(ValueError, match="spectral radius below"):
            log_determinant(a, s=0.999 * radius)
    assert log_determinant(torch.ones(50, 50)).isfinite()


def test_wrong_order() -> None:
    with pytest.raises(ValueError, match="expected an order from 2, got 1. Take more"):
        power_series(torch.zeros(3, 3), order=1)


# --- graphs ---------------------------------------------------------------------------------------


def test_a_loop_is_a_cycle() -> None:
    assert is_dag(torch.zeros(3, 3))
    assert not is_dag(torch.eye(3, dtype=torch.bool))
    assert not is_dag(cycle(30, 30))
    assert is_dag(dags(1, 30) > 0).item()


def test_a_graph_without_cycles_stays_as_it_is() -> None:
    probabilities = 0.4 + 0.6 * dags(5, 8)
    assert torch.equal(threshold_to_dag(probabilities), probabilities > 0.5)


def test_edges_enter_by_strength() -> None:
    """Against networkx: the greedy graph, which no other edge above the threshold could join."""
    batch = torch.rand(2, 10, 6, 6)
    found = threshold_to_dag(batch, threshold=0.3)
    assert is_dag(found).all()
    for probabilities, kept in zip(batch.flatten(0, 1), found.flatten(0, 1), strict=True):
        graph = nx.empty_graph(6, create_using=nx.DiGraph)
        order = probabilities.flatten().argsort(descending=True)
        for i, j in ((k.item() // 6, k.item() % 6) for k in order):
            if i != j and probabilities[i, j] > 0.3 and not nx.has_path(graph, j, i):
                graph.add_edge(i, j)
        assert {*graph.edges} == {tuple(edge) for edge in kept.nonzero().tolist()}


def test_weak_edges_on_no_cycle_are_kept() -> None:
    """One threshold for all would have to be 0.8, and lose the last edge."""
    edges = torch.tensor([[0.0, 0.9, 0.0], [0.8, 0.0, 0.6], [0.0, 0.0, 0.0]])
    assert threshold_to_dag(edges).nonzero().tolist() == [[0, 1], [1, 2]]
    ties = torch.full((3, 3), 0.7)
    assert torch.equal(threshold_to_dag(ties), torch.ones(3, 3).triu(1).bool())


def test_it_takes_parameters() -> None:
    logits = torch.nn.Parameter(torch.randn(4, 4))
    assert threshold_to_dag(logits.sigmoid()).dtype == torch.bool


@pytest.mark.gpu
@constraint
def test_on_a_gpu(h) -> None:
    a = torch.rand(3, 20, 20, dtype=torch.float64)
    torch.testing.assert_close(h(a.cuda()).cpu(), h(a))
    torch.testing.assert_close(gradient(h, a.cuda()).cpu(), gradient(h, a))
    assert torch.equal(threshold_to_dag(a.cuda()).cpu(), threshold_to_dag(a))
