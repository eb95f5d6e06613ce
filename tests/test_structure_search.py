"""Regimes under a graph, their score, mergers, and moves between graphs."""

import numpy as np
import pytest
import torch
from torch.distributions import MixtureSameFamily, Normal

from pyro_causal.infer import _structure_search
from pyro_causal.infer._births import _set_value, add_components
from pyro_causal.infer._components import Components
from pyro_causal.infer._given_graph import Fit
from pyro_causal.infer._merging import drop_targets, join_idle, merge_components
from pyro_causal.infer._node_scores import FittedScores
from pyro_causal.infer._regressions import Assumptions, RandomFeatures
from pyro_causal.infer._structure_search import (
    StructureProblem,
    edge_log_odds,
    find_structure,
)
from pyro_causal.infer.dag_search import FoundGraph, exact_dag
from pyro_causal.infer.priors import graph_prior
from pyro_causal.metrics import adjusted_rand_index

FORWARD = torch.tensor([[0, 1], [0, 0]])
NONE = torch.zeros(3, 2, dtype=torch.bool)
PRICE = 0.003


def pair(size=3000, *, imperfect=False):
    """x0 -> x1 in three regimes: nothing done, x0 set, x1 set (or another slope)."""
    z = torch.arange(size) % 3
    x0 = torch.where(z == 1, 4 + 0.5 * torch.randn(size), torch.randn(size))
    other = 3 - 2 * x0 + torch.randn(size) if imperfect else -6 + 0.5 * torch.randn(size)
    x1 = torch.where(z == 2, other, 0.9 * x0 + 0.3 * torch.randn(size))
    x = torch.stack([x0, x1], 1).double()
    return (x - x.mean(0)) / x.std(0), z


def problem(
    x,
    *,
    imperfect=False,
    varying=False,
    target=PRICE,
    targets=None,
    prior=None,
    truncation=6,
    units=0,
):
    held = torch.arange(len(x)) % 5 == 0
    assumed = Assumptions(imperfect, varying, target, targets)
    return StructureProblem(
        x,
        held,
        RandomFeatures(x, units=units),
        assumed=assumed,
        edge=PRICE,
        steps=15,
        truncation=truncation,
        prior=prior,
    )


def components(z, number, *, named=0):
    q = torch.nn.functional.one_hot(z, number).double()
    return Components(q, torch.ones_like(q).bool(), torch.arange(number) < named)


# ---- the score --------------------------------------------------------------------------------


def test_the_score_is_the_likelihood_of_rows_held_out():
    torch.manual_seed(0)
    z = torch.arange(2000) % 4 // 3  # weights 3/4 and 1/4
    x = torch.stack([torch.randn(2000) + 5 * z, torch.randn(2000)], 1).double()
    given = problem(x, target=0.1).given(torch.zeros(2, 2).long())
    fit = given.score(components(z, 2))
    assert fit.targets.sum() == 1
    held = torch.arange(2000) % 5 == 0

    def gaussian(rows, node):
        value = x[rows & ~held, node]
        return value.mean(), value.std(correction=0)

    first = torch.stack([torch.stack(gaussian(z == k, 0)) for k in range(2)])
    weights = torch.bincount(z[~held]).double()
    law = MixtureSameFamily(torch.distributions.Categorical(weights), Normal(*first.mT))
    rest = Normal(*gaussian(z >= 0, 1))
    expected = (law.log_prob(x[held, 0]) + rest.log_prob(x[held, 1])).sum() * 5 - 0.1 * 2000
    assert fit.score == pytest.approx(expected.item(), abs=0.05)


def test_rows_held_out_teach_nothing():
    x, z = pair()
    one = problem(x, targets=torch.tensor([[0, 0], [1, 0], [0, 1]]).bool())
    wrong = torch.where(one.held, (z + 1) % 3, z)
    given = one.given(FORWARD)
    right = given.score(components(z, 3)).score
    assert given.score(components(wrong, 3)).score == pytest.approx(right, rel=1e-9)


def test_only_the_true_direction_predicts_effects_that_are_set():
    torch.manual_seed(1)
    x, z = pair()
    one, true = problem(x), components(z, 3)
    there, back = (one.given(graph).score(true) for graph in (FORWARD, FORWARD.mT))
    assert there.targets.tolist() == [[False, False], [True, False], [False, True]]
    assert there.score > back.score + 0.05 * len(x)


def test_both_directions_predict_alike_and_backwards_more_laws_change():
    torch.manual_seed(1)
    x, z = pair(9000, imperfect=True)
    one, true = problem(x, imperfect=True), components(z, 3)
    there, back = (one.given(graph).score(true) for graph in (FORWARD, FORWARD.mT))
    assert (there.targets.sum(), back.targets.sum()) == (2, 4)
    assert there.score - back.score == pytest.approx(2 * PRICE * len(x), abs=0.001 * len(x))


def test_likely_edges_score_higher():
    x, z = pair(600)
    prior = graph_prior(2, likely={(0, 1): 0.9})
    given = problem(x, prior=prior).given(FORWARD)
    plain = problem(x).given(FORWARD).score(components(z, 3)).score
    odds = torch.tensor(9.0).log().item()
    assert given.score(components(z, 3)).score == pytest.approx(plain + odds, rel=1e-6)


# ---- fewer components and targets --------------------------------------------------------------


@pytest.mark.parametrize("imperfect", [False, True])
def test_components_merge_until_there_is_one_for_each_regime(imperfect):
    torch.manual_seed(2)
    x, z = pair(imperfect=imperfect)
    parts = z * 4 + torch.randint(4, z.shape)  # each regime in four, which differ by chance
    start = components(parts, 12)
    fit = merge_components(problem(x, imperfect=imperfect).given(FORWARD), start)
    assert fit.components.q.shape == (len(x), 3)
    assert adjusted_rand_index(fit.components.q.argmax(1), z) > 0.85
    assert fit.targets.sum() == 2


def test_components_with_a_name_never_merge():
    x, z = pair()
    parts = torch.where(z == 0, torch.randint(4, z.shape), z + 3)
    fit = merge_components(problem(x).given(FORWARD), components(parts, 6, named=2))
    assert fit.components.q.shape[1] == 4
    assert fit.components.named.tolist() == [True, True, False, False]


def test_targets_that_gain_nothing_are_dropped():
    torch.manual_seed(3)
    x, z = pair()
    given = problem(x).given(FORWARD)
    best = given.score(components(z, 3))
    more = best.targets | torch.tensor([[True, False], [False, False], [False, False]])
    worse = given.knowing(more).score(best.components)
    assert worse.score < best.score
    fit = drop_targets(given, worse)
    assert isinstance(fit, Fit)
    assert torch.equal(fit.targets, best.targets)
    assert fit.score > worse.score + 0.5 * PRICE * len(x)


def test_targets_that_gain_least_are_tried_first(monkeypatch):
    monkeypatch.setattr("pyro_causal.infer._merging.TRIES", 1)
    torch.manual_seed(3)
    x, z = pair()
    given = problem(x).given(FORWARD)
    best = given.score(components(z, 3))
    assert best.targets.nonzero().tolist() == [[1, 0], [2, 1]]
    more = best.targets | torch.tensor([[False, False], [False, False], [True, False]])
    fit = drop_targets(given, given.knowing(more).score(best.components))
    assert torch.equal(fit.targets, best.targets)  # in the order of components it ends before


def test_components_without_targets_are_one():
    x, z = pair()
    given = problem(x).given(FORWARD)
    parts = torch.where(z == 0, 3 * torch.randint(2, z.shape), z)
    targets = torch.tensor([[0, 0], [1, 0], [0, 1], [0, 0]]).bool()
    fit = join_idle(given, given.knowing(targets).score(components(parts, 4)))
    assert torch.equal(fit.targets, targets[:3])
    assert torch.equal(fit.components.q, components(z, 3).q)


# ---- graphs ------------------------------------------------------------------------------------


def test_components_are_added_where_rows_are_explained_badly():
    torch.manual_seed(4)
    x, z = pair()
    everything = components(0 * z, 1)
    fit = problem(x).fit(FORWARD, [everything])
    assert fit.targets.tolist() == [[False, False], [False, True], [True, False]]
    assert adjusted_rand_index(fit.components.q.argmax(1), z) > 0.98
    assert len(problem(x, truncation=2).fit(FORWARD, [everything]).targets) == 2


def test_added_components_set_one_node_each():
    torch.manual_seed(4)
    x, z = pair()
    given = problem(x).given(FORWARD)
    _, _, named = everything = components(0 * z, 1, named=1)
    more = add_components(given, everything, room=5)
    assert more.q.shape == more.allowed.shape == (len(x), 3)
    assert more.named.tolist() == [True, False, False] and torch.equal(named, more.named[:1])
    torch.testing.assert_close(more.q.sum(1), torch.ones(len(x)).double())
    for k in (1, 2):  # the surer of the two is first, which is x1
        assert more.q[z == 3 - k, k].mean() > 0.5 > 5 * more.q[z != 3 - k, k].mean()
    assert add_components(given, components(z, 3), room=5) is None  # as all are there
    assert add_components(given, everything, room=0) is None
    one = add_components(given, everything, room=1)
    torch.testing.assert_close(one.q[z == 2, 1], more.q[z == 2, 1], atol=0.01, rtol=0)


def test_what_does_not_pay_is_not_added():
    torch.manual_seed(4)
    x, z = pair()
    everything = components(0 * z, 1)
    for target, pays in ((0.01, True), (0.2, False)):
        given = problem(x, target=target).given(FORWARD)
        assert (add_components(given, everything, room=5) is not None) == pays


@pytest.mark.parametrize("rows", [15, 40])
def test_a_few_rows_far_out_are_no_component(rows):
    torch.manual_seed(0)
    x = torch.randn(400).double()
    x[:rows] = 8.0
    gain, (share, mean, _) = _set_value(x, -Normal(0, 1).log_prob(x), least=20 / len(x))
    if rows < 20:
        assert gain < 10  # while they would gain 25 nats each
    else:
        assert gain > 20 * rows
        assert share.item() == pytest.approx(rows / len(x), rel=0.1)
        assert mean.item() == pytest.approx(8, abs=0.05)


def test_rows_of_known_components_keep_them():
    torch.manual_seed(4)
    x, z = pair()
    q, allowed, named = components(0 * z, 1, named=1)
    q, allowed = q.repeat(1, 2) / 2, allowed.repeat(1, 2)
    named = torch.tensor([True, False])
    known = torch.arange(len(x)) % 2 == 0
    allowed[known, 1] = False
    given = problem(x).given(FORWARD)
    more = add_components(given, Components(q, allowed, named), room=5)
    assert not more.allowed[known, 2:].any() and (more.q[known, 2:] == 0).all()
    assert more.allowed[~known, 2:].all() and more.q[~known, 2:].max() > 0.9
    assert add_components(given, Components(q, allowed & ~allowed[:, :1], named), room=5) is None


def test_the_better_start_is_taken():
    torch.manual_seed(4)
    x, z = pair()
    one = problem(x, truncation=1)
    poor, good = components(0 * z, 3), components(z, 3)
    scores = [one.fit(FORWARD, starts).score for starts in ([poor], [good], [poor, good])]
    assert scores[1] > scores[0] + 0.1 * len(x)
    assert scores[2] == scores[1]
    assert torch.equal(find_structure(one, [poor, good], rounds=4)[0], FORWARD)


@pytest.mark.parametrize("prior", [None, graph_prior(2, required=[(1, 0)])])
def test_a_reversed_edge_turns_round_unless_it_is_required(monkeypatch, prior):
    torch.manual_seed(5)
    x, z = pair(imperfect=True)
    monkeypatch.setattr(StructureProblem, "search", lambda *_: FORWARD.mT)
    start = components(z * 4 + torch.randint(4, z.shape), 12)
    one = problem(x, imperfect=True, prior=prior)
    graph, fit, _ = find_structure(one, [start], rounds=4)
    assert torch.equal(graph, FORWARD if prior is None else FORWARD.mT)
    assert fit.targets.sum() == (2 if prior is None else 4)


def test_the_reversals_that_lose_least_are_tried_after_the_search(monkeypatch):
    x, z = pair()
    chain = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    x = torch.cat([x, x[:, 1:] + 0.1 * torch.randn(len(x), 1)], 1)  # which says nothing of 1 -> 2
    monkeypatch.setattr(_structure_search, "REVERSALS", 1)
    one = problem(x)
    true = components(z, 3)
    best, other = _structure_search._others(one, chain, true, one.scores(true))
    scores = one.scores(true)
    assert torch.equal(best, one.search(true))

    def total(graph):
        parents = [tuple(column.nonzero().flatten().tolist()) for column in graph.mT]
        return sum(scores(which, (node,)).item() for node, which in enumerate(parents))

    first = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 0, 0]])
    second = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 0]])
    assert torch.equal(other, max(first, second, key=total))


def test_where_spreads_vary_climbs_start_from_the_best_graph_by_fixed_ones(monkeypatch):
    x, z = pair()
    starts = []

    def climb(self, scores, start, **_):
        assert scores.assumed.varying
        starts.append(start)
        return FoundGraph(FORWARD.mT, 0.0)

    monkeypatch.setattr(StructureProblem, "climb", climb)
    assert torch.equal(problem(x, varying=True).search(components(z, 3)), FORWARD.mT)
    assert len(starts) == 1 and torch.equal(starts[0], FORWARD)


def test_another_graph_starts_from_the_best_regimes_as_well(monkeypatch):
    x, z = pair()
    start, regimes, seen = components(0 * z, 1), components(z, 3), []

    def fit(self, graph, starts, scores, *, rival=-torch.inf):
        seen.append(starts)
        return Fit(regimes, NONE, NONE, 0.0)

    graphs = iter([FORWARD, FORWARD.T])
    monkeypatch.setattr(StructureProblem, "search", lambda *_: next(graphs))
    monkeypatch.setattr(StructureProblem, "fit", fit)
    monkeypatch.setattr(_structure_search, "REVERSALS", 0)
    find_structure(problem(x), [start], rounds=1)
    assert len(seen) == 2 and seen[0][0] is start and len(seen[0]) == 1
    assert seen[1][0] is regimes and seen[1][1] is start


def test_added_components_stay_only_if_they_predict(monkeypatch):
    torch.manual_seed(4)
    x, z = pair()
    one, start = problem(x), components(z, 3)
    better = one.fit(FORWARD, [start])
    torch.manual_seed(1)
    noise = torch.rand(len(x)) < 0.3  # rows of no regime of their own

    def add(graph, found, *, room):
        q = torch.cat([found.q * ~noise[:, None], noise[:, None].double()], 1)
        return components(q.argmax(1), q.shape[1], named=q.shape[1])  # which never merge

    monkeypatch.setattr(_structure_search, "add_components", add)
    assert one.fit(FORWARD, [start]).score == pytest.approx(better.score)


@pytest.mark.parametrize("varying", [False, True])
def test_with_units_climbs_start_from_the_graph_and_from_a_search(monkeypatch, varying):
    torch.manual_seed(5)
    x, z = pair()
    one, true = problem(x, varying=varying, units=40), components(z, 3)
    starts, climb = [], StructureProblem.climb

    def spy(self, scores, start, **options):
        if isinstance(scores, FittedScores):
            starts.append(start.tolist())
        return climb(self, scores, start, **options)

    monkeypatch.setattr(StructureProblem, "climb", spy)
    monkeypatch.setattr(_structure_search, "REVERSALS", 0)
    found = [*_structure_search._others(one, FORWARD.T, true, one.scores(true))]
    assert starts == [FORWARD.T.tolist(), FORWARD.tolist()]
    assert torch.equal(found[1], FORWARD)


def test_searches_are_by_few_features_and_laws_by_all(monkeypatch):
    x, z = pair()
    one, true, seen = problem(x, units=40), components(z, 3), []

    def exact(scores, nodes, **limits):
        seen.append(scores.features.units)
        return exact_dag(scores, nodes, **limits)

    monkeypatch.setattr(_structure_search, "exact_dag", exact)
    one.search(true)
    assert seen == [_structure_search.FEW]
    assert one.given(FORWARD).laws.features[1].shape[1] == 1 + 1 + 40


def test_each_start_and_each_part_of_the_features_has_a_first_graph(monkeypatch):
    torch.manual_seed(5)
    x, z = pair()
    one, true, poor, asked = problem(x, units=60), components(z, 3), components(0 * z, 1), []

    def search(self, components, part=0):
        asked.append((components, part))
        return [FORWARD.mT, FORWARD, torch.zeros(2, 2).long()][part]

    monkeypatch.setattr(StructureProblem, "search", search)
    found = [(graph.tolist(), start) for graph, _, start in one.first([true, poor, true])]
    assert asked == [(true, 0), (poor, 1), (true, 2)]
    assert found == [(FORWARD.mT.tolist(), true), (FORWARD.tolist(), poor), ([[0, 0]] * 2, true)]
    asked.clear()
    assert len([*one.first([true])]) == 2 and asked == [(true, 0), (true, 1)]
    assert len([*problem(x).first([true])]) == 1


@pytest.mark.parametrize("nodes", [2, 6])
def test_the_best_of_the_first_graphs_goes_on(monkeypatch, nodes):
    x = torch.randn(300, nodes).double()
    starts = [components(torch.arange(300) % k, k) for k in (2, 3, 4)]
    graphs, seen = [torch.zeros(nodes, nodes).long() for _ in range(3)], []
    graphs[1][1, 0] = 1

    def first(self, starts):
        for graph, start, score in zip(graphs, starts, (1.0, 4.0, 2.0), strict=True):
            yield graph, Fit(start, NONE, NONE, score), start

    def fit(self, graph, starts, scores, *, rival):
        seen.append([len(start.q[0]) for start in starts])
        return Fit(starts[0], NONE, NONE, 0.0)

    monkeypatch.setattr(StructureProblem, "first", first)
    monkeypatch.setattr(StructureProblem, "fit", fit)
    monkeypatch.setattr(StructureProblem, "search", lambda *_: (1 - torch.eye(nodes)).triu().long())
    graph, best, _ = find_structure(problem(x), starts, rounds=1)
    assert torch.equal(graph, graphs[1]) and best.score == 4.0
    assert seen[0] == ([3, 2, 3, 4] if nodes == 2 else [3, 3])  # regimes found, and starts


@pytest.mark.parametrize("known", [False, True])
def test_where_regimes_are_known_every_first_graph_goes_on(monkeypatch, known):
    """And the best of what they end in is taken, wherever it came from."""
    x = torch.randn(300, 6).double()
    q = components(torch.arange(300) % 2, 2)
    start = q._replace(allowed=q.q > 0) if known else q
    graphs = [torch.zeros(6, 6).long() for _ in range(3)]
    for k, graph in enumerate(graphs):
        graph[k, 5] = 1
    none = torch.zeros(2, 6).bool()
    fits = [Fit(start, none, none, score) for score in (3.0, 2.0, 1.0)]
    ends = {3.0: 4.0, 2.0: 6.0, 1.0: 5.0}
    firsts = [(graph, fit, start) for graph, fit in zip(graphs, fits, strict=True)]
    monkeypatch.setattr(StructureProblem, "first", lambda *_: iter(firsts))
    went, seen = [], []

    def improve(_, graph, fit, starts, tried, rounds, *, near):
        assert rounds == 4 and not near
        went.append(fit.score)
        seen.append(len(tried))
        return graph, fit._replace(score=ends[fit.score])

    monkeypatch.setattr(_structure_search, "_improve", improve)
    one = problem(x, imperfect=True, units=10 * known)  # no graph comes before regimes if known
    graph, fit, _ = find_structure(one, [start], rounds=4)
    assert went == ([3.0, 2.0, 1.0] if known else [3.0]) and set(seen) == {3}
    assert fit.score == (6.0 if known else 4.0)
    assert torch.equal(graph, graphs[1 if known else 0])


def test_what_depends_on_regimes_is_made_again_where_they_change(monkeypatch):
    searched = []

    def exact(*args, **options):
        searched.append(args)
        return exact_dag(*args, **options)

    monkeypatch.setattr(_structure_search, "exact_dag", exact)
    x, z = pair(600)
    asked = problem(x, units=60)  # two parts of 30
    first = components(z, 3)
    softer = first._replace(q=0.8 * first.q + 0.2 / 3)
    scores, graph = asked.scores(first), asked.search(first)
    assert asked.scores(softer) is scores and asked.search(softer, 2) is graph
    assert len(searched) == 1
    asked.search(first, 1)
    assert len(searched) == 2 and asked.search(first) is graph
    more, moved = components(z, 4), components((z + 1) % 3, 4)
    for k, other in enumerate((more, moved)):
        old, new = scores, asked.scores(other)
        assert new is not old and new.rough.regimes == 4
        scores = new
        asked.search(other)
        assert len(searched) == 3 + k
    assert problem(x, units=60).scores(moved) is not new  # nor do problems share anything


def test_a_graph_is_scored_again_with_the_units_for_new_regimes(monkeypatch):
    torch.manual_seed(8)
    x, z = pair()
    one, true = problem(x, units=40), components(z, 3)
    true = true._replace(allowed=true.q > 0)  # known, or their graph would come first
    values = iter([1.0, 5.0, 3.0, 3.0])  # at first, again, and of others

    def fit(self, graph, starts, scores, *, rival=-torch.inf):
        return Fit(true, NONE, NONE, next(values))

    monkeypatch.setattr(StructureProblem, "fit", fit)
    monkeypatch.setattr(StructureProblem, "search", lambda *_: torch.zeros(2, 2).long())
    graph, best, _ = find_structure(one, [true], rounds=3)
    assert best.score == 5.0 and not graph.any()
    assert next(values) == 3.0  # there was one other graph at least


def test_laws_have_the_units_that_scores_fit():
    torch.manual_seed(6)
    x, z = pair()
    x[:, 1] = (2 * x[:, 0]).sin() + 0.1 * torch.randn(len(x))
    one, true = problem(x, units=5), components(0 * z, 1)
    laws, without = one.given(FORWARD, one.scores(true)).laws, one.given(FORWARD).laws
    assert laws.features[1].shape[1] == without.features[1].shape[1] + 5
    assert laws.features[0].shape == without.features[0].shape


@pytest.mark.parametrize(("varying", "times"), [(False, 1), (True, 3)])
def test_targets_cost_more_in_searches_where_spreads_vary(varying, times):
    x, z = pair(300)
    one = problem(x, varying=varying, target=0.1)
    assert one.scores(components(z, 3)).target == pytest.approx(times * 0.1 * 300)
    assert one.given(FORWARD).target == pytest.approx(0.1 * 300)


def test_what_is_hopeless_is_not_merged(monkeypatch):
    x, z = pair()
    one, start = problem(x), components(z, 3)
    best = one.fit(FORWARD, [start]).score
    monkeypatch.setattr(_structure_search, "merge_components", None)  # and so cannot be called
    assert one.fit(FORWARD.mT, [start], rival=best + len(x)).score < best
    with pytest.raises(TypeError):
        one.fit(FORWARD, [start], rival=best + 1)


# ---- edges in doubt ---------------------------------------------------------------------------


def test_odds_of_edges_are_those_of_the_scores_of_their_pair():
    x, z = pair(300)
    one, true = problem(x), components(z, 3)
    scores = one.scores(true)
    there, back, none = (
        sum(float(scores(parents, (j,))) for j, parents in enumerate(families))
        for families in [((), (0,)), ((1,), ()), ((), ())]
    )
    odds = edge_log_odds(one, FORWARD, scores)
    assert odds[0, 1].item() == pytest.approx(there - np.logaddexp(back, none), abs=1e-6)
    assert odds[1, 0].item() == pytest.approx(back - np.logaddexp(there, none), abs=1e-6)
    assert odds.diagonal().isneginf().all()


def test_gaussians_of_one_regime_have_no_direction():
    torch.manual_seed(7)
    cause = torch.randn(2000).double()
    x = torch.stack([cause, 0.8 * cause + torch.randn(2000)], 1)
    one = problem((x - x.mean(0)) / x.std(0))
    scores = one.scores(components(torch.zeros(2000).long(), 1))
    odds = edge_log_odds(one, FORWARD, scores)
    assert odds[0, 1].sigmoid().item() == pytest.approx(0.5, abs=0.01)
    assert odds[1, 0].sigmoid().item() == pytest.approx(0.5, abs=0.01)


def test_what_rules_or_cycles_exclude_has_no_odds():
    x, z = pair()
    x = torch.cat([x, x[:, 1:] + 0.1 * torch.randn(len(x), 1)], 1)
    chain = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    true = components(z, 3)
    one = problem(x)
    odds = edge_log_odds(one, chain, one.scores(true))
    assert odds[2, 0].isneginf() and odds[0, 2].isfinite()
    one = problem(x, prior=graph_prior(3, required=[(0, 1)], forbidden=[(2, 1), (0, 2)]))
    odds = edge_log_odds(one, chain, one.scores(true))
    assert odds[0, 1].isposinf() and odds[1, 0].isneginf() and odds[2, 1].isneginf()
    assert odds[0, 2].isneginf()
    assert odds[1, 2] > 10
