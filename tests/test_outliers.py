"""Parents of a node by rows of all regimes together: laws with outliers, and what these start."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal

from pyro_causal.infer import _outliers, _structure_search
from pyro_causal.infer._components import Components
from pyro_causal.infer._given_graph import Fit
from pyro_causal.infer._node_scores import FittedScores
from pyro_causal.infer._outliers import OutlierScores, outlier_components
from pyro_causal.infer._regressions import Assumptions, RandomFeatures
from pyro_causal.infer._structure_search import StructureProblem, find_structure
from pyro_causal.infer.structural_em import structural_em
from pyro_causal.metrics import adjusted_rand_index

FORWARD = torch.tensor([[0, 1], [0, 0]])


def curve(size=3000, *, share=0.0):
    """x1 is a curve of x0 but in a share of the rows, where it has another law; which these are."""
    x0 = torch.randn(size).double()
    other = torch.rand(size) < share
    x1 = torch.where(other, -2 * x0 + torch.randn(size), (2 * x0).sin() + 0.05 * torch.randn(size))
    return torch.stack([x0, x1], 1), other


def held_rows(x):
    return torch.arange(len(x)) % 5 == 0


def scores_of(x, *, units=40, edge=0.0):
    features = RandomFeatures(x, units=units)
    return OutlierScores(x, features, held=held_rows(x), edge=edge)


def test_without_outliers_it_is_a_regression():
    x = torch.randn(3000, 2).double()
    x[:, 1] += 0.7 * x[:, 0]
    held, rest = x[held_rows(x)], x[~held_rows(x)]
    a = torch.stack([torch.ones(len(rest)), rest[:, 0]], 1).double()
    weights = torch.linalg.lstsq(a, rest[:, 1:]).solution.squeeze(1)
    law = Normal(weights[0] + weights[1] * held[:, 0], (rest[:, 1] - a @ weights).std(correction=0))
    expected = law.log_prob(held[:, 1]).mean() * len(x)
    torch.testing.assert_close(scores_of(x, units=0)((0,), (1,))[0], expected, rtol=0.01, atol=0)


def test_outliers_do_not_drag_the_law_away():
    x, other = curve(share=0.3)
    scores = scores_of(x)
    score = scores((0,), (1,))[0]
    found = ~scores.ordinary((0,), 1)
    truth = other[~held_rows(x)]
    near = (x[:, 1] - (2 * x[:, 0]).sin()).abs()[~held_rows(x)] < 0.2  # which nothing tells apart
    assert (found == truth)[~near].all() and found[truth & near].float().mean() < 0.5
    odds = scores.outliers(x, FORWARD, lambda parents, _: RandomFeatures(x, units=40)(parents))
    assert odds.shape == x.shape
    far = (x[:, 1] - (2 * x[:, 0]).sin()).abs() > 0.2
    assert torch.equal((odds[:, 1] > 0)[far], other[far])
    expected = Normal((2 * x[:, 0]).sin(), 0.05).log_prob(x[:, 1])[~other & held_rows(x)].mean()
    assert score / len(x) > 0.7 * expected - 0.3 * 2.5 - 0.65  # entropy of the share, and a misfit


def test_curves_have_a_direction():
    x, _ = curve(share=0.2)
    scores = scores_of((x - x.mean(0)) / x.std(0))
    forward = scores((), (0,)) + scores((0,), (1,))
    backward = scores((), (1,)) + scores((1,), (0,))
    assert forward > backward + 0.3 * len(x)


def test_nodes_are_scored_alike_alone_and_together():
    x = torch.randn(400, 4).double()
    x[:, 2] += x[:, 0].abs()
    together, alone = scores_of(x), scores_of(x)
    alone.features = together.features
    both = together((0,), (1, 2, 3))
    each = torch.cat([alone((0,), (node,)) for node in (1, 2, 3)])
    torch.testing.assert_close(each, both)
    assert torch.equal(together((0,), (2,)), both[1:2])


def law_of(x):
    """Of the second node given the first, in rows that are not standardised."""
    scores = scores_of(x, units=0)
    a, y = scores.features((0,))[: len(scores.x)], scores.x[:, [1]].mT
    return scores._fit(a, y), scores


def test_a_law_and_its_outliers_are_recovered():
    x0, other = torch.randn(5000).double(), torch.rand(5000) < 0.2
    x1 = torch.where(other, 4 + 0.5 * torch.randn(5000), 0.7 * x0 + 0.01 * torch.randn(5000))
    (weights, variance, share, mean, wide), scores = law_of(torch.stack([x0, x1], 1))
    fitted = scores.features((0,))[: len(scores.x)] @ weights.mT
    torch.testing.assert_close(fitted, 0.7 * scores.x[:, :1], atol=0.01, rtol=0)
    for found, true, error in (
        (variance, 1e-4, 1e-5),
        (share, 0.2, 0.02),
        (mean, 4.0, 0.06),
        (wide, 0.25, 0.03),
    ):
        assert found.shape == (1, 1) and abs(found.item() - true) < error


def test_of_outliers_there_are_some_but_not_most(monkeypatch):
    """And they are never all in one place, which a held-out row would have to hit."""
    x0 = torch.randn(2000).double()
    x = torch.stack([x0, 0.7 * x0 + 0.1 * torch.randn(2000)], 1)
    assert law_of(x)[0].share.item() == pytest.approx(0.01)
    x[torch.arange(2000) % 5 < 2, 1] = 3.0
    assert law_of(x)[0].wide.item() == 1e-3
    monkeypatch.setattr(_outliers, "STEPS", 40)
    few = torch.arange(2000) % 20 < 8
    x[:, 1] = torch.where(few, 0.7 * x0, torch.randn(2000))
    assert law_of(x)[0].share.item() == 0.5


def test_it_starts_from_least_absolute_residuals(monkeypatch):
    """Which many rows far off on one side do not move, as they do least squares."""
    monkeypatch.setattr(_outliers, "STEPS", 1)
    x0, far = torch.rand(4000).double(), torch.arange(4000) % 20 >= 14
    x1 = torch.where(far, 3 + 0.2 * torch.randn(4000), x0 + 0.05 * torch.randn(4000))
    x = torch.stack([x0, x1], 1)
    (weights, *_), scores = law_of(x)
    fitted = scores.features((0,))[: len(scores.x)] @ weights.mT
    assert (fitted - scores.x[:, :1]).abs().max() < 0.25  # squares: 0.75 on average
    monkeypatch.setattr(_outliers, "ABSOLUTE", 0)
    (weights, *_), scores = law_of(x)
    fitted = scores.features((0,))[: len(scores.x)] @ weights.mT
    assert (fitted - scores.x[:, :1]).min() > 0.4


@pytest.mark.parametrize("seed", range(3))
def test_a_single_row_decides_nothing(seed):
    """Far from all others and held out, which is why no law is drawn to it."""
    torch.manual_seed(seed)
    x0 = torch.randn(1000).double()
    x = torch.stack([x0, 1.5 * x0.tanh() + 0.02 * torch.randn(1000)], 1)
    clean = scores_of(x)((0,), (1,))
    x[int(held_rows(x).nonzero()[7]), 1] = 15.0
    scores = scores_of(x)
    assert scores((0,), (1,)) > clean - 0.6 * len(x)
    forward = scores((), (0,)) + scores((0,), (1,))
    assert forward > scores((), (1,)) + scores((1,), (0,)) + 0.3 * len(x)


def test_an_edge_has_its_price(monkeypatch):
    x, _ = curve(500)
    free, priced = scores_of(x, edge=0.0), scores_of(x, edge=0.1)
    priced.features = free.features
    torch.testing.assert_close(free((0,), (1,)) - priced((0,), (1,)), torch.tensor([50.0]).double())
    assert torch.equal(free((), (1,)), priced((), (1,)))
    monkeypatch.setattr(_outliers, "ROWS", 100)
    monkeypatch.setattr(_outliers, "HELD", 50)
    few = scores_of(x)
    assert few.x.shape == (100, 2) and few.held.shape == (50, 2)
    assert few((0,), (1,)).abs() > 50  # of all rows still


def test_units_are_fitted_to_ordinary_rows():
    x, _ = curve(share=0.3)
    rough = scores_of(x, units=8)
    fitted = FittedScores(rough)
    assert fitted((0,), (1,)) > rough((0,), (1,)) + 0.1 * len(x)
    assert torch.equal(fitted((), (0,)), rough((), (0,)))


def test_components_of_outliers():
    odds = torch.tensor([[-1, -2], [-1, -3], [-2, -1], [3, 1], [2, 1], [-1, 0.2]]).double()
    found = outlier_components(odds, most=5)
    assert found.q.argmax(1).tolist() == [0, 0, 0, 1, 1, 2]
    torch.testing.assert_close(found.q.sum(1), torch.ones(6).double())
    assert found.allowed.all() and found.allowed.shape == (6, 3) and not found.named.any()
    fewer = outlier_components(odds, most=2).q  # the row of the third may be in any
    assert fewer.argmax(1)[:5].tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(fewer[5], torch.full((2,), 0.5).double())


def problem(x, **options):
    options = {"truncation": 6, "edge": 0.003, "steps": 15} | options
    varying = options.pop("varying", False)
    units = options.pop("units", 40)
    assumed = Assumptions(imperfect=True, varying=varying, target=0.003)
    return StructureProblem(
        x, held_rows(x), RandomFeatures(x, units=units), assumed=assumed, **options
    )


def test_a_graph_comes_before_regimes():
    """And only graphs nearby are tried after it, from the regimes that it has."""
    x, other = curve(share=0.3)
    x = (x - x.mean(0)) / x.std(0)
    free = Components(torch.ones_like(x), torch.ones(x.shape).bool(), torch.zeros(2).bool())
    graph, fit, start = problem(x).without_regimes(free)
    assert torch.equal(graph, FORWARD) and start.q.shape[1] == 3
    assert adjusted_rand_index(fit.components.q.argmax(1), other.long()) > 0.85
    assert fit.targets[:, 1].any()
    free.allowed[0, 0] = False
    assert problem(x).without_regimes(free)[2] is free  # it knows something of regimes


@pytest.mark.parametrize(
    ("units", "known", "score", "went"),
    [
        (40, False, 5.0, [("pooled", 0, True)]),
        (40, False, 3.0, [("first", 2, False)]),
        (0, False, 5.0, [("first", 2, False)]),
        (40, True, 5.0, [("first", 2, False), ("second", 2, False), ("third", 2, False)]),
    ],
)
def test_the_graph_without_regimes_is_one_of_the_first(monkeypatch, units, known, score, went):
    """If it is the best, it goes on to others nearby."""
    x, seen = curve(600)[0], []
    q = torch.nn.functional.one_hot(torch.arange(600) % 2).double()
    start = Components(q, q > 0 if known else q > -1, torch.zeros(2).bool())
    graphs = {
        name: k + 0 * FORWARD for k, name in enumerate(["first", "second", "third", "pooled"])
    }
    fits = [Fit(start, FORWARD > 2, FORWARD > 2, s) for s in (4.0, 2.0, 9.0 if known else 1.0)]

    def improve(problem, graph, fit, starts, tried, rounds, *, near):
        (name,) = (name for name, other in graphs.items() if torch.equal(other, graph))
        seen.append((name, len(starts), near))
        return graph, fit

    def first(self, starts):
        for graph, fit in zip(graphs.values(), fits, strict=False):
            yield graph, fit, starts[0]

    monkeypatch.setattr(_structure_search, "_improve", improve)
    monkeypatch.setattr(StructureProblem, "first", first)
    monkeypatch.setattr(
        StructureProblem,
        "without_regimes",
        lambda self, start: (graphs["pooled"], fits[0]._replace(score=score), start),
    )
    found, *_ = find_structure(problem(x, units=units), [start] * 2, rounds=2)
    assert seen == went
    assert torch.equal(found, graphs["third" if known else went[0][0]])


def test_one_nearby_graph_is_tried_at_a_time(monkeypatch):
    x, _ = curve(600)
    one, asked = problem(x), []
    fit = one.fit(
        FORWARD,
        [Components(torch.ones(600, 1).double(), torch.ones(600, 1).bool(), torch.zeros(1).bool())],
    )

    def others(*arguments, **options):
        for graph in (FORWARD.mT, 0 * FORWARD):
            asked.append(graph)
            yield graph

    monkeypatch.setattr(_structure_search, "_others", others)
    graph, *_ = _structure_search._improve(one, FORWARD, fit, [], [FORWARD], 3, near=True)
    assert torch.equal(graph, FORWARD) and len(asked) == 1
    _structure_search._improve(one, FORWARD, fit, [], [FORWARD], 3, near=False)
    assert len(asked) == 3


def test_curves_are_found_however_regimes_mix():
    """Where gaussians are far from what rows of a regime look like."""
    torch.manual_seed(3)
    z = torch.arange(3000) % 4
    x0 = torch.where(z == 1, 3 + 0.5 * torch.randn(3000), torch.randn(3000))
    x1 = torch.where(z == 2, -1.5 * x0, (2 * x0).sin()) + 0.1 * torch.randn(3000)
    x2 = torch.where(z == 3, x1.square() - 3, x1.square() + x0) + 0.1 * torch.randn(3000)
    found = structural_em(
        torch.stack([x2, x0, x1], 1), units=40, imperfect=True, edge=0.01, target=0.01
    )
    assert found.adjacency.tolist() == [[0, 0, 0], [1, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("more", [-1, 0, 2])
def test_known_targets_are_not_named_by_outliers(more):
    """Of which there may be fewer or more than one for each node."""
    torch.manual_seed(5)
    x, z = torch.randn(1200, 2).double(), torch.arange(1200) % (2 if more < 0 else 3)
    x[:, 0] = torch.where(z == 1, 3 + 0.5 * x[:, 0], x[:, 0])
    x[:, 1] = torch.where(z == 2, 0.4 * x[:, 1] - 4, (2 * x[:, 0]).sin() + 0.1 * x[:, 1])
    targets = torch.tensor([[1, 0], [0, 0], [0, 1], [1, 1], [1, 1]])[: 3 + more]
    found = structural_em(x, units=30, targets=targets, starts=2, rounds=1)
    assert torch.equal(found.targets.long(), targets)
    assert torch.equal(found.adjacency.long(), FORWARD)
    truth = torch.tensor([1, 0, 2])[z]
    assert (found.responsibilities.argmax(1) == truth).double().mean() > 0.9


def test_known_targets_have_names_in_the_graph_without_regimes(monkeypatch):
    x, given = curve(600)[0], []
    q = torch.nn.functional.one_hot(torch.arange(600) % 2).double()
    mixed, named = (Components(p, p > -1, torch.ones(2).bool()) for p in (q.flip(1), q))
    one = problem(x)
    one = replace(one, assumed=one.assumed._replace(targets=torch.tensor([[0, 0], [0, 1]]).bool()))
    own = StructureProblem.without_regimes

    def without_regimes(self, start):
        given.append(start)
        head = own(self, start)
        assert head[2] is start  # outliers have no names
        return head

    monkeypatch.setattr(StructureProblem, "without_regimes", without_regimes)
    find_structure(one, [mixed, named], rounds=1)
    assert len(given) == 1 and given[0] is named
