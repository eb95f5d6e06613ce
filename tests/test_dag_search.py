"""Search for graphs against enumeration of all graphs, against each other, and on data."""

import math
from collections import Counter

import pytest
import torch

from pyro_causal.infer import dag_search
from pyro_causal.infer._climber import Climber
from pyro_causal.infer._local_scores import LocalScores, edge_rules
from pyro_causal.infer.acyclicity import is_dag
from pyro_causal.infer.dag_search import climb_dag, exact_dag
from pyro_causal.infer.priors import BernoulliGraph, graph_prior

SEARCHES = [exact_dag, climb_dag]


class RandomScore:
    """Unrelated normal scores, less a penalty for each parent; counts what it is asked for."""

    def __init__(self, nodes, seed, penalty=0.3):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(2**nodes, nodes, generator=generator, dtype=torch.float64)
        self.penalty = penalty
        self.asked = Counter()
        self.calls = []

    def __call__(self, parents, nodes):
        assert parents == tuple(sorted({*parents} - {*nodes})) and nodes
        self.asked.update((parents, j) for j in nodes)
        self.calls.append(parents)
        row = self.table[sum(1 << i for i in parents)]
        return row[list(nodes)] - self.penalty * len(parents)

    def total(self, adjacency):
        """The score of one graph."""
        parents = (adjacency * 2 ** torch.arange(len(adjacency))[:, None]).sum(0)
        scores = self.table[parents, torch.arange(len(adjacency))]
        return (scores.sum() - self.penalty * int(adjacency.sum())).item()


class RegressionScore:
    """BIC of linear regressions, each set of parents fitted once for several nodes."""

    def __init__(self, x):
        self.x = x - x.mean(0)
        self.asked = Counter()

    def __call__(self, parents, nodes):
        self.asked.update((parents, j) for j in nodes)
        x, y = self.x[:, list(parents)], self.x[:, list(nodes)]
        if parents:
            y = y - x @ torch.linalg.lstsq(x, y).solution
        n = len(y)
        return -n / 2 * y.square().mean(0).log() - math.log(n) / 2 * len(parents)


def linear_data(adjacency, rows):
    """Draw rows of a linear Gaussian model with weights of 0.5 to 1 and either sign."""
    d = len(adjacency)
    sign = torch.randint(2, (d, d)) * 2 - 1
    weights = (adjacency * sign * (0.5 + 0.5 * torch.rand(d, d))).double()
    noise = torch.randn(rows, d, dtype=torch.float64)
    return noise @ torch.linalg.inv(torch.eye(d, dtype=torch.float64) - weights)


def random_dag(nodes, edges_per_node):
    order = torch.randperm(nodes)
    chance = min(1.0, 2 * edges_per_node / (nodes - 1))
    upper = torch.bernoulli(torch.full((nodes, nodes), chance)).triu(1).long()
    return upper[order][:, order]


def independences(adjacency):
    """Adjacent pairs and colliders without an edge between the causes: an equivalence class."""
    linked = (adjacency + adjacency.T) > 0
    colliders = adjacency.T.bool()[:, :, None] & adjacency.T.bool()[:, None, :] & ~linked
    colliders &= ~torch.eye(len(adjacency), dtype=torch.bool)
    return linked.tolist(), colliders.tolist()


def all_dags(nodes):
    pairs = [(i, j) for i in range(nodes) for j in range(nodes) if i != j]
    graphs = torch.zeros(2 ** len(pairs), nodes, nodes, dtype=torch.long)
    for k, (i, j) in enumerate(pairs):
        graphs[:, i, j] = (torch.arange(len(graphs)) >> k) & 1
    return graphs[is_dag(graphs)]


def some_prior():
    return graph_prior(
        4, probability=0.3, required=[(2, 0)], forbidden=[(1, 3)], likely={(3, 1): 0.9}
    )


@pytest.fixture(scope="module")
def dags():
    graphs = all_dags(4)
    assert len(graphs) == 543
    return graphs


@pytest.mark.parametrize("max_parents", [None, 1, 2])
@pytest.mark.parametrize("prior", [None, some_prior()], ids=["no prior", "prior"])
@pytest.mark.parametrize("seed", range(5))
def test_exact_is_the_best_of_all_graphs(dags, seed, prior, max_parents):
    score = RandomScore(4, seed)
    totals = torch.tensor([score.total(graph) for graph in dags], dtype=torch.float64)
    if prior is not None:
        free = BernoulliGraph(logits=prior.logits.masked_fill(prior.certain, 0.0).double())
        none = torch.zeros(4, 4, dtype=torch.float64)
        totals += free.expand(dags.shape[:1]).log_prob(dags.double()) - free.log_prob(none)
        totals[prior.log_prob(dags.float()) == -torch.inf] = -torch.inf
    totals[dags.sum(1).max(1).values > (3 if max_parents is None else max_parents)] = -torch.inf
    best = totals.argmax()
    found = exact_dag(score, 4, prior=prior, max_parents=max_parents)
    assert found.adjacency.dtype == torch.long
    assert torch.equal(found.adjacency, dags[best])
    assert found.score == pytest.approx(totals[best].item(), abs=1e-6)
    climbed = climb_dag(score, 4, prior=prior, max_parents=max_parents)
    assert climbed.score == pytest.approx(found.score, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_exact_recovers_an_equivalence_class(seed):
    torch.manual_seed(seed)
    truth = random_dag(7, 1.0)
    found = exact_dag(RegressionScore(linear_data(truth, 5000)), 7)
    assert truth.any()
    assert independences(found.adjacency) == independences(truth)


def test_climb_finds_the_best_graph_nearly_always():
    found = []
    for seed in range(20):
        torch.manual_seed(seed)
        score = RandomScore(5, seed)
        best, climbed = exact_dag(score, 5), climb_dag(score, 5)
        assert is_dag(climbed.adjacency)
        assert climbed.score == pytest.approx(score.total(climbed.adjacency), abs=1e-9)
        assert climbed.score < best.score + 1e-9
        found.append(climbed.score > best.score - 1e-9)
    assert sum(found) >= 17  # 18 when measured


def test_climb_finds_the_best_graph_of_data_nearly_always():
    found = []
    for seed in range(10):
        torch.manual_seed(seed)
        score = RegressionScore(linear_data(random_dag(6, 1.0), 500))
        best, climbed = exact_dag(score, 6), climb_dag(score, 6)
        assert climbed.score < best.score + 1e-9
        found.append(climbed.score > best.score - 1e-6)
    assert sum(found) >= 9  # 10 when measured


def test_exact_asks_for_each_set_of_parents_once():
    score = RandomScore(5, 0)
    exact_dag(score, 5)
    assert len(score.calls) == len({*score.calls}) == 2**5 - 1  # there is none outside of all
    assert score.asked.total() == len(score.asked) == 5 * 2**4


def test_exact_asks_only_for_what_is_allowed():
    score = RandomScore(4, 0)
    exact_dag(score, 4, prior=some_prior(), max_parents=2)
    assert len(score.calls) == len({*score.calls})
    sets = {node: [parents for parents, j in score.asked if j == node] for node in range(4)}
    assert all(len(parents) <= 2 for parents, _ in score.asked)
    assert sorted(sets[0]) == [(1, 2), (2,), (2, 3)]
    assert sorted(sets[3]) == [(), (0,), (0, 2), (2,)]
    assert len(sets[1]) == 7  # all but the set of three
    assert len(sets[2]) == 4  # 0 -> 2 would close a cycle with what is required


def test_climb_asks_for_each_local_score_once_and_by_groups():
    score = RandomScore(6, 0)
    climb_dag(score, 6, restarts=10)
    assert score.asked.total() == len(score.asked)
    assert score.calls[:7] == [(), *((i,) for i in range(6))]  # for the first move
    assert [score.asked[(i,), j] for i in range(6) for j in range(6) if i != j] == [1] * 30


def test_climb_asks_only_for_what_moves_need():
    score = RandomScore(4, 0, penalty=100.0)
    start = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    prior = graph_prior(4, required=[(0, 1), (1, 2), (2, 3)])
    found = climb_dag(score, 4, prior=prior, start=start, restarts=0, patience=1)
    assert torch.equal(found.adjacency, start)
    first = {((), 0), ((0,), 1), ((1,), 2), ((2,), 3)}
    assert {*score.asked} - first == {((0, 1), 2), ((0, 2), 3), ((1, 2), 3), ((0, 1, 2), 3)}


@pytest.mark.parametrize("search", SEARCHES)
def test_certain_edges(search):
    prior = graph_prior(4, required=[(3, 0), (0, 1)], forbidden=[(2, 0), (0, 2), (2, 1)])
    for seed in range(5):
        found = search(RandomScore(4, seed, penalty=-10.0), 4, prior=prior).adjacency
        assert found[3, 0] == 1 and found[0, 1] == 1
        assert found[2, 0] == found[0, 2] == found[2, 1] == 0
        assert found.sum() == 5  # all others, of which 1 and 2, 2 and 3 are joined one way


@pytest.mark.parametrize("search", SEARCHES)
def test_log_odds_weigh_against_scores(search):
    def score(parents, nodes):
        return torch.full((len(nodes),), 1.0 * len(parents))

    logits = torch.tensor([[0.0, -0.9, -3.0], [-1.1, 0.0, -3.0], [-3.0, 5.0, 0.0]])
    found = search(score, 3, prior=BernoulliGraph(logits=logits))
    assert found.adjacency.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert found.score == pytest.approx(0.1 + 6.0, abs=1e-6)


@pytest.mark.parametrize("search", SEARCHES)
def test_equal_scores_give_the_graph_without_edges(search):
    found = search(lambda parents, nodes: torch.zeros(len(nodes)), 4)
    assert not found.adjacency.any() and found.score == 0.0


@pytest.mark.parametrize("search", SEARCHES)
def test_one_node(search):
    found = search(lambda parents, nodes: torch.tensor([2.5], requires_grad=True), 1)
    assert found.adjacency.tolist() == [[0]] and found.score == 2.5


@pytest.mark.parametrize("search", SEARCHES)
def test_no_parents_allowed(search):
    assert not search(RandomScore(4, 0, penalty=-5.0), 4, max_parents=0).adjacency.any()


def test_climb_leaves_a_local_optimum():
    """Of two parents that count only together, no first edge is for the better."""

    def score(parents, nodes):
        both = {0, 1} <= {*parents}
        return torch.tensor([5.0 if both and j == 2 else -0.1 * len(parents) for j in nodes])

    found = climb_dag(score, 4, restarts=0)
    assert found.adjacency.nonzero().tolist() == [[0, 2], [1, 2]]


def test_climb_from_a_start_is_no_worse():
    score = RandomScore(6, 1)
    start = random_dag(6, 1.5)
    found = climb_dag(score, 6, start=start, restarts=0, patience=1)
    assert found.score >= score.total(start)
    best = exact_dag(score, 6)
    again = climb_dag(score, 6, start=best.adjacency, restarts=0)
    assert torch.equal(again.adjacency, best.adjacency)


def test_patience_begins_anew_with_each_better_graph():
    def score(parents, nodes):
        return torch.tensor([1.0 * sum(i < j for i in parents) for j in nodes])

    found = climb_dag(score, 4, restarts=0, patience=1)
    assert torch.equal(found.adjacency, torch.ones(4, 4).triu(1).long())


def test_restarts_are_from_the_best_graph(monkeypatch):
    score, begun = RandomScore(6, 0), []
    monkeypatch.setattr(Climber, "move_at_random", lambda climber: begun.append(climber.graph))
    best = climb_dag(score, 6, restarts=2).adjacency
    assert len(begun) == 2 * dag_search.KICKS
    assert all(torch.equal(graph, best.bool()) for graph in begun)


def test_random_moves_are_of_each_kind_alike():
    rules = edge_rules("test", 4, None, None)
    graph = torch.zeros(4, 4, dtype=torch.bool)
    graph[0, 1] = True
    climber = Climber(LocalScores(RandomScore(4, 0), rules.odds, "test"), rules, graph)
    kinds = Counter()
    for _ in range(600):
        climber.move_to(graph)
        climber.move_at_random()
        kinds[int(climber.graph.sum()) + int(climber.graph[1, 0]) * 10] += 1
    assert {*kinds} == {2, 0, 11}  # added, deleted, reversed
    assert all(150 < count < 250 for count in kinds.values())


def test_restarts_follow_the_seed_and_never_lose():
    scores = [RandomScore(6, seed) for seed in range(5)]
    once = [climb_dag(score, 6, restarts=0, patience=1).score for score in scores]
    often = []
    for _ in range(2):
        torch.manual_seed(0)
        often.append([climb_dag(score, 6, restarts=5, patience=1).score for score in scores])
    assert often[0] == often[1]
    assert all(a >= b for a, b in zip(often[0], once, strict=True))
    assert sum(often[0]) > sum(once)


def test_climb_scales_to_thirty_nodes():
    truth = random_dag(30, 0.7)
    score = RegressionScore(linear_data(truth, 1000))
    found = climb_dag(score, 30, restarts=2)
    assert is_dag(found.adjacency)
    assert score.asked.total() == len(score.asked) < 4000
    parents = [tuple(truth[:, j].nonzero()[:, 0].tolist()) for j in range(30)]
    true_score = sum(score(parents[j], (j,)).item() for j in range(30))
    empty_score = score((), tuple(range(30))).sum().item()
    assert found.score - empty_score > 0.95 * (true_score - empty_score)


@pytest.mark.gpu
@pytest.mark.parametrize("search", SEARCHES)
def test_device_of_the_scores(search):
    def score(parents, nodes):
        return torch.ones(len(nodes), device="cuda") * len(parents)

    prior = BernoulliGraph(torch.full((3, 3), 0.6, device="cuda"))
    assert search(score, 3, prior=prior).adjacency.device.type == "cuda"


def test_errors_of_size():
    with pytest.raises(ValueError, match=r"exact_dag: expected at most 15 nodes.*Use climb_dag"):
        exact_dag(RandomScore(2, 0), 16)


@pytest.mark.parametrize("search", SEARCHES)
def test_errors_of_both(search):
    name, score = search.__name__, RandomScore(3, 0)
    with pytest.raises(ValueError, match=f"{name}: expected one node or more, got 0"):
        search(score, 0)
    with pytest.raises(ValueError, match=f"{name}: expected max_parents from 0, got -1"):
        search(score, 3, max_parents=-1)
    with pytest.raises(ValueError, match=rf"{name}: expected a prior of .* 3 nodes.*graph_prior"):
        search(score, 3, prior=graph_prior(4))
    cycle = BernoulliGraph(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match=f"{name}: the edges that the prior requires form a cyc"):
        search(score, 2, prior=cycle)
    prior = graph_prior(3, required=[(0, 2), (1, 2)])
    with pytest.raises(ValueError, match=rf"{name}: .* max_parents=1 required edges .* got 2"):
        search(score, 3, prior=prior, max_parents=1)
    with pytest.raises(ValueError, match=rf"{name}: expected local scores \[3\].*one for each"):
        search(lambda parents, nodes: torch.zeros(()), 3)
    with pytest.raises(ValueError, match=rf"{name}: expected finite local scores.*Forbid edges"):
        search(lambda parents, nodes: torch.full((len(nodes),), torch.nan), 3)


@pytest.mark.parametrize(
    ("start", "rules", "fact"),
    [
        (torch.zeros(2, 2), {}, r"shape \(2, 2\)"),
        (torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]), {}, "one with a cycle"),
        (torch.zeros(3, 3), {"prior": graph_prior(3, required=[(0, 1)])}, "without required ones"),
        (torch.ones(3, 3).triu(1), {"prior": graph_prior(3, forbidden=[(0, 1)])}, "with forbidden"),
        (torch.ones(3, 3).triu(1), {"max_parents": 1}, "a node with 2 parents"),
    ],
)
def test_errors_of_the_start(start, rules, fact):
    with pytest.raises(ValueError, match=rf"climb_dag: expected a start \[3, 3\].*{fact}"):
        climb_dag(RandomScore(3, 0), 3, start=start, **rules)


def test_errors_of_the_climb():
    with pytest.raises(ValueError, match="climb_dag: expected patience from 1 .* got 0 and 2"):
        climb_dag(RandomScore(3, 0), 3, patience=0, restarts=2)
    with pytest.raises(ValueError, match="climb_dag: expected patience from 1 .* got 3 and -1"):
        climb_dag(RandomScore(3, 0), 3, patience=3, restarts=-1)
