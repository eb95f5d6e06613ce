"""Distances of graphs and agreement of regimes, by hand and against independent oracles."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.testing import assert_close

from pyro_causal.graph import ADMG
from pyro_causal.metrics import (
    adjusted_rand_index,
    edge_counts,
    hamming_distance,
    match_regimes,
    structural_hamming_distance,
    structural_intervention_distance,
    target_f1,
)

DISTANCES = [hamming_distance, structural_hamming_distance, structural_intervention_distance]


def graph(d: int, *edges: str) -> Tensor:
    """The adjacency matrix of edges such as "01", which is 0 -> 1."""
    matrix = torch.zeros(d, d, dtype=torch.long)
    for a, b in edges:
        matrix[int(a), int(b)] = 1
    return matrix


def random_dags(number: int, d: int, probability: float = 0.4) -> Tensor:
    forward = (torch.rand(number, d, d) < probability).triu(1).long()
    orders = torch.rand(number, d).argsort(-1)
    rows = torch.arange(number)[:, None, None]
    return forward[rows, orders[:, :, None], orders[:, None, :]]


def all_dags(d: int) -> list[Tensor]:
    pairs = [(i, j) for i in range(d) for j in range(d) if i != j]
    found = []
    for bits in itertools.product((0, 1), repeat=len(pairs)):
        matrix = torch.zeros(d, d, dtype=torch.long)
        for (i, j), bit in zip(pairs, bits, strict=True):
            matrix[i, j] = bit
        if nx.is_directed_acyclic_graph(nx.DiGraph(matrix.numpy())):
            found.append(matrix)
    return found


# --- Hamming distances and counts -----------------------------------------------------------------

TRUE = graph(4, "01", "12", "23", "03")
FOUND = graph(4, "01", "21", "02")  # right, the wrong way round, superfluous; 23 and 03 are missing


def test_a_reversed_edge_costs_two_or_one() -> None:
    assert hamming_distance(FOUND, TRUE) == 5
    assert structural_hamming_distance(FOUND, TRUE) == 4


def test_both_conventions_by_hand() -> None:
    inside = edge_counts(FOUND, TRUE)
    assert [int(n) for n in inside] == [1, 3, 2, 1]
    assert_close(inside.precision, torch.tensor(1 / 3))
    assert_close(inside.recall, torch.tensor(1 / 4))
    assert_close(inside.f1, torch.tensor(2 / 7))
    apart = edge_counts(FOUND, TRUE, reversals="apart")
    assert [int(n) for n in apart] == [1, 2, 1, 1]
    assert_close(apart.precision, torch.tensor(1 / 2))
    assert_close(apart.recall, torch.tensor(1 / 3))
    assert_close(apart.f1, torch.tensor(2 / 5))


def test_counts_add_up_to_the_distances() -> None:
    found, true = random_dags(200, 6), random_dags(200, 6)
    inside, apart = edge_counts(found, true), edge_counts(found, true, reversals="apart")
    assert torch.equal(inside.fn + inside.fp, hamming_distance(found, true))
    shd = structural_hamming_distance(found, true)
    assert torch.equal(apart.fn + apart.fp + apart.rev, shd)
    assert torch.equal(inside.tp + inside.fn, true.sum((-2, -1)))
    assert torch.equal(inside.tp + inside.fp, found.sum((-2, -1)))
    assert (shd < hamming_distance(found, true)).any()


def test_a_two_cycle_is_one_wrong_pair_and_no_reversal() -> None:
    both, one = graph(2, "01", "10"), graph(2, "01")
    assert structural_hamming_distance(both, graph(2)) == 1
    assert hamming_distance(both, graph(2)) == 2
    assert [int(n) for n in edge_counts(both, one)] == [1, 0, 1, 0]
    assert [int(n) for n in edge_counts(one, both)] == [1, 1, 0, 0]


def test_ratios_without_edges_are_one() -> None:
    nothing = edge_counts(graph(3), graph(3, "01"))
    assert (nothing.precision, nothing.recall, nothing.f1) == (1, 0, 0)
    assert edge_counts(graph(3), graph(3)).f1 == 1
    assert edge_counts(graph(3, "01"), graph(3)).recall == 1


@pytest.mark.parametrize("distance", DISTANCES)
def test_batches_broadcast_and_arrays_will_do(distance: object) -> None:
    found, true = random_dags(6, 4).reshape(2, 3, 4, 4), random_dags(3, 4)
    batch = distance(found.numpy(), true.bool().numpy())
    assert batch.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        assert batch[i, j] == distance(found[i, j].double(), true[j])
    assert (distance(found, found) == 0).all()


# --- the structural intervention distance ---------------------------------------------------------


def test_the_example_of_the_paper() -> None:
    effects = [f"{x}{y}" for x in "01" for y in "234"]
    true = graph(5, "01", *effects)
    assert structural_intervention_distance(graph(5, "01", "23", *effects), true) == 0
    assert structural_intervention_distance(graph(5, "10", *effects), true) == 8


def sid_by_separation(found: Tensor, true: Tensor) -> int:
    """The adjustment criterion with the package's graphs, one pair of nodes after the other."""
    names = [str(i) for i in range(len(true))]
    edges = [(names[a], names[b]) for a, b in true.nonzero().tolist()]
    g, wrong = ADMG(edges, nodes=names), 0
    for i, j in itertools.permutations(range(len(true)), 2):
        x, y = names[i], names[j]
        z = {names[k] for k in found[:, i].nonzero()[:, 0].tolist()}
        causal = (g.descendants(x) & g.ancestors(y)) - {x}
        if y in z:
            wrong += y in g.descendants(x)
            continue
        first = [(a, b) for a, b in edges if not (a == x and b in causal)]
        open_path = not ADMG(first, nodes=names).m_separated(x, y, given=z)
        spoiled = any(g.descendants(node) & z for node in causal)
        wrong += open_path or spoiled
    return wrong


def sid_by_regression(found: Tensor, true: Tensor) -> int:
    """Regression coefficients against total effects in a linear Gaussian model of the graph."""
    d = len(true)
    weights = true * (0.5 + torch.rand(d, d, dtype=torch.float64))
    effects = torch.linalg.inv(torch.eye(d, dtype=torch.float64) - weights)  # (i, j): of i on j
    covariance = effects.T @ torch.diag(0.5 + torch.rand(d, dtype=torch.float64)) @ effects
    wrong = 0
    for i, j in itertools.permutations(range(d), 2):
        z = found[:, i].nonzero()[:, 0].tolist()
        estimate = 0.0
        if j not in z:
            inputs = [i, *z]
            estimate = torch.linalg.solve(covariance[inputs][:, inputs], covariance[inputs, j])[0]
        wrong += bool(abs(estimate - effects[i, j]) > 1e-7)
    return wrong


def test_the_intervention_distance_of_all_graphs_of_three_nodes() -> None:
    dags = torch.stack(all_dags(3))
    assert len(dags) == 25
    batch = structural_intervention_distance(dags[:, None], dags)
    for (i, found), (j, true) in itertools.product(enumerate(dags), repeat=2):
        assert batch[i, j] == sid_by_separation(found, true) == sid_by_regression(found, true)


@pytest.mark.parametrize(("d", "probability"), [(4, 0.5), (5, 0.3), (6, 0.5), (7, 0.7)])
def test_the_intervention_distance_of_random_graphs(d: int, probability: float) -> None:
    found, true = random_dags(25, d, probability), random_dags(25, d, probability)
    batch = structural_intervention_distance(found, true)
    assert batch.tolist() == [sid_by_separation(*pair) for pair in zip(found, true, strict=True)]
    assert batch.tolist() == [sid_by_regression(*pair) for pair in zip(found, true, strict=True)]
    assert (batch > 0).any() and (batch <= d * (d - 1)).all()


def test_a_graph_that_holds_the_true_one_makes_no_error() -> None:
    more = random_dags(100, 8, 0.6)
    fewer = more * (torch.rand(100, 8, 8) < 0.5)
    assert (structural_intervention_distance(more, fewer) == 0).all()
    assert (structural_intervention_distance(fewer, more) > 0).any()


def test_the_intervention_distance_needs_acyclic_graphs() -> None:
    cycle, chain = graph(3, "01", "12", "20"), graph(3, "01")
    for pair, name in (((cycle, chain), "found"), ((chain, cycle), "true")):
        with pytest.raises(ValueError, match=f"acyclic graphs, got a {name} one with a cycle"):
            structural_intervention_distance(*pair)


# --- regimes and targets --------------------------------------------------------------------------


def test_the_rand_index_agrees_with_scikit_learn() -> None:
    for labels in (2, 5, 40):
        found = torch.randint(labels, (50,))
        true = torch.where(torch.rand(50) < 0.5, found, torch.randint(3, (50,)))
        expected = adjusted_rand_score(true.numpy(), found.numpy())
        assert_close(adjusted_rand_index(found.numpy(), true), torch.tensor(expected).float())


def test_the_rand_index_of_trivial_partitions() -> None:
    one, each = torch.zeros(5, dtype=torch.long), torch.arange(5)
    assert adjusted_rand_index(one, one) == adjusted_rand_index(each, each) == 1
    assert adjusted_rand_index(one, each) == 0
    assert adjusted_rand_index(torch.tensor([0, 0, 1]), torch.tensor([-7, -7, 9])) == 1


def test_regimes_are_matched_jointly() -> None:
    """Regime 0 is most like 1 and yet gets 0, since 1 has no other."""
    found = torch.tensor([0] * 4 + [1] * 5 + [1] * 9 + [3])
    true = torch.tensor([0] * 9 + [2] * 9 + [1])
    assert match_regimes(found, true) == {0: 0, 1: 3, 2: 1}
    assert match_regimes(found.numpy(), true.numpy()) == {0: 0, 1: 3, 2: 1}


def test_regimes_that_share_no_row_are_no_partners() -> None:
    found, true = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 0, 0])
    assert match_regimes(found, true) == {0: 0}


def test_target_f1_by_hand() -> None:
    true = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]])
    z = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    assert target_f1(true, true, found_regime=z, true_regime=z) == 1
    # Regime 2 merged into 0: one of three targets is missing. Empty regimes do not count.
    merged, empty = np.where(z == 2, 0, z), np.vstack([true, np.ones((3, 4), int)])
    value = target_f1(empty, true, found_regime=merged, true_regime=z)
    assert_close(value, torch.tensor(2 * 2 / (2 + 3)))
    # Regime 1 split: its second half claims two targets that are wrong.
    split, more = z.copy(), np.vstack([true, true[1:2]])
    split[3] = 3
    value = target_f1(more, true, found_regime=split, true_regime=z)
    assert_close(value, torch.tensor(2 * 3 / (5 + 3)))


def test_target_f1_does_not_depend_on_names() -> None:
    true, z = torch.eye(4, 6, dtype=torch.long), torch.arange(4).repeat(3)
    names = torch.randperm(4)
    shuffled = torch.zeros_like(true)
    shuffled[names] = true
    assert target_f1(shuffled, true, found_regime=names[z], true_regime=z) == 1
    assert target_f1(true, true, found_regime=(z + 1) % 4, true_regime=z) == 0


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*DISTANCES, edge_counts])
@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.zeros(2, 3), r"found graph: expected a square .* got shapes \[2, 3\]"),
        (torch.zeros(4, 4), r"got shapes \[4, 4\] \(found\) and \[3, 3\] \(true\)"),
        (torch.zeros(3), r"found graph: expected a square .* got shapes \[3\]"),
        (torch.full((3, 3), 0.4), r"zeros and ones, got values from 0\.4 to 0\.4\. Do threshold"),
        (torch.eye(3), r"found graph: expected no edge from a variable to itself"),
    ],
)
def test_what_is_no_graph_is_an_error(metric: object, found: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(found, graph(3, "01"))


def test_another_convention_is_an_error() -> None:
    with pytest.raises(ValueError, match="'inside' or 'apart', got 'once'"):
        edge_counts(graph(2), graph(2), reversals="once")


@pytest.mark.parametrize(
    ("found", "true"),
    [([0, 1, 1], [0, 1]), ([0.0, 1.0], [0.0, 1.0]), ([[0, 1]], [[0, 1]]), ([0], [0])],
)
def test_labels_that_do_not_fit_are_an_error(found: list[int], true: list[int]) -> None:
    with pytest.raises(ValueError, match=r"adjusted_rand_index: expected integer labels \[n\]"):
        adjusted_rand_index(torch.tensor(found), torch.tensor(true))


def test_unknown_regimes_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected true regimes from 0, got -1. Do leave out"):
        match_regimes(torch.tensor([0, 1]), torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match="match_regimes: expected integer labels .* two or more"):
        match_regimes(torch.zeros(0).long(), torch.zeros(0).long())


def test_targets_that_do_not_fit_are_an_error() -> None:
    z, targets = torch.tensor([0, 1, 2]), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"found targets: .* up to 2, got shape \[2, 4\]"):
        target_f1(targets[1:], targets, found_regime=z, true_regime=z)
    with pytest.raises(ValueError, match="among the same variables, got 3 and 4"):
        target_f1(targets[:, 1:], targets, found_regime=z, true_regime=z)
    with pytest.raises(ValueError, match="targets: expected zeros and ones, got values from 2"):
        target_f1(targets + 2, targets, found_regime=z, true_regime=z)
