"""Scores of parents, laws of regimes, and structure found from a mixture of interventions."""

import pytest
import torch
from torch.distributions import Normal

from pyro_causal.datasets import draw_interventional_scm, sample_interventional_table
from pyro_causal.infer import _node_scores
from pyro_causal.infer._gaussian_start import fit_gaussians, responsibilities
from pyro_causal.infer._given_graph import Fit
from pyro_causal.infer._local_scores import edge_rules
from pyro_causal.infer._node_scores import NodeScores
from pyro_causal.infer._regime_laws import RegimeLaws, weighted_moments
from pyro_causal.infer._regressions import Assumptions, RandomFeatures
from pyro_causal.infer.priors import graph_prior
from pyro_causal.infer.structural_em import structural_em
from pyro_causal.metrics import adjusted_rand_index, hamming_distance

CLOSE = {"rtol": 0.02, "atol": 0.02}


def chain(size=4000, *, bend=False, imperfect=False):
    """x0 -> x1 -> x2 in three regimes: nothing done, x0 set, x1 set (or its weight changed)."""
    z = torch.arange(size) % 3
    x0 = torch.where(z == 1, 5 + 0.2 * torch.randn(size), torch.randn(size))
    cause = x0.abs() if bend else x0
    x1 = 0.9 * cause + 0.4 * torch.randn(size)
    other = -2.0 * x0 + torch.randn(size) if imperfect else -6 + 0.2 * torch.randn(size)
    x1 = torch.where(z == 2, other, x1)
    x2 = (x1.sin() if bend else -0.8 * x1) + 0.4 * torch.randn(size)
    x = torch.stack([x0, x1, x2], 1).double()
    return x, z


CHAIN = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
TARGETS = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0]])


def scores_of(x, z, *, units=0, edge=0.003, **options):
    x = (x - x.mean(0)) / x.std(0)
    features = RandomFeatures(x, units=units)
    held = torch.arange(len(x)) % 5 == 0
    assumed = Assumptions(**options)
    return NodeScores(x, z, regimes=3, features=features, held=held, assumed=assumed, edge=edge)


def targets_of(scores):
    """Those of the chain, by component."""
    for node, parents in enumerate([(), (0,), (1,)]):
        scores(parents, (node,))
    found = [scores.found[node, parents][1] for node, parents in enumerate([(), (0,), (1,)])]
    return torch.stack(found, 1)


# ---- scores -----------------------------------------------------------------------------------


def test_scores_are_of_held_out_rows():
    x, z = chain()
    scores = scores_of(x, z, edge=0.0)
    held, rest = scores.held, scores.x
    fit_z, held_z = scores.labels, scores.held_labels
    assert torch.equal(fit_z, z[torch.arange(len(x)) % 5 > 0].sort().values)
    assert torch.equal(held_z, z[::5].sort().values)
    use = fit_z != 1  # x0 has a law of its own in regime 1
    base = Normal(rest[use, 0].mean(), rest[use, 0].std(correction=0))
    own = Normal(rest[~use, 0].mean(), rest[~use, 0].std(correction=0))
    value = held[:, 0]
    density = torch.where(held_z == 1, own.log_prob(value), base.log_prob(value))
    expected = density.clamp(min=-50).sum() * len(x) / len(held)
    torch.testing.assert_close(scores((), (0,))[0], expected, rtol=1e-4, atol=0.1)


def test_scores_know_a_parent_from_a_bystander():
    x, z = chain()
    scores = scores_of(x, z)
    none, parent, both = (scores(p, (1,)).item() for p in ((), (0,), (0, 2)))
    assert parent > none + 1000
    assert both > none
    assert scores((1,), (2,)) > scores((0, 1), (2,)) > scores((0,), (2,))


def test_an_edge_and_a_target_have_their_prices():
    x, z = chain()
    free, dear = scores_of(x, z, edge=0.0), scores_of(x, z, edge=0.1, target=0.2)
    difference = (free((0,), (1,)) - dear((0,), (1,))).item()
    assert difference == pytest.approx((0.1 + 0.2) * len(x), rel=1e-6)


def test_targets_of_a_graph():
    x, z = chain()
    scores = scores_of(x, z)
    assert torch.equal(targets_of(scores).long(), TARGETS)


@pytest.mark.parametrize("imperfect", [False, True])
def test_an_observational_regime_is_no_target(imperfect):
    x, z = chain()
    z = torch.tensor([1, 0, 2])[z]  # that in which x0 is set has number 0
    assert targets_of(scores_of(x, z, imperfect=imperfect))[0, 0]
    found = targets_of(scores_of(x, z, imperfect=imperfect, observational=True))
    assert not found[0].any() and found[1, 0]


def test_known_targets_are_kept():
    x, z = chain()
    known = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()
    scores = scores_of(x, z, targets=known)
    assert torch.equal(targets_of(scores), known)
    assert scores((0,), (1,)) > scores_of(x, z, targets=~known)((0,), (1,))


def test_an_imperfect_law_of_its_own_is_chosen_where_it_predicts():
    x, z = chain(imperfect=True)
    perfect, imperfect = scores_of(x, z), scores_of(x, z, imperfect=True)
    assert torch.equal(targets_of(imperfect).long(), TARGETS)
    assert imperfect((0,), (1,)) > perfect((0,), (1,)) + 500
    torch.testing.assert_close(imperfect((), (1,)), perfect((), (1,)), rtol=0.05, atol=0.0)


def test_a_regression_of_its_own_is_left_out_where_it_does_not_pay():
    x, z = chain()
    perfect, imperfect = scores_of(x, z), scores_of(x, z, imperfect=True)
    assert imperfect((0,), (1,)) == perfect((0,), (1,))


KNOWN = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()


@pytest.mark.parametrize(
    ("units", "options"),
    [(0, {}), (40, {"imperfect": True}), (40, {"targets": KNOWN}), (40, {"varying": True})],
)
def test_all_sets_at_once_have_the_scores_that_each_has(units, options):
    x, z = chain(imperfect=True, bend=True)
    torch.manual_seed(0)
    together = scores_of(x, z, units=units, **options)
    torch.manual_seed(0)
    alone = scores_of(x, z, units=units, **options)
    families = edge_rules("", 3, None, None).families()
    together.ask_all(families)
    assert together.found.keys() == {(j, p) for p, nodes in families for j in nodes}
    for (node, parents), (score, targets) in together.found.items():
        torch.testing.assert_close(score, alone(parents, (node,))[0], rtol=1e-9, atol=1e-4)
        assert targets.sum() == alone.found[node, parents][1].sum()  # of ties one or the other


@pytest.mark.parametrize(("numbers", "most"), [(10_000_000, 16), (100_000, 8), (1, 1)])
def test_many_sets_are_scored_in_parts_that_memory_allows(numbers, most, monkeypatch):
    x, z = chain()
    x = torch.cat([x, torch.randn(len(x), 4)], 1)
    monkeypatch.setattr(_node_scores, "NUMBERS", numbers)
    scores, asked = scores_of(x, z), []
    once = scores.score_by
    scores.score_by = lambda every, families: asked.append(families) or once(every, families)
    families = edge_rules(
        "", 7, graph_prior(7, required=[(0, 1)], forbidden=[(5, 6)]), 5
    ).families()
    scores.ask_all(families)
    assert sorted(family for part in asked for family in part) == sorted(families)
    assert max(len(part) for part in asked) == most


# ---- laws -------------------------------------------------------------------------------------


def test_laws_explain_rows_as_the_truth_does():
    x, z = chain(9000)
    laws = RegimeLaws(x, CHAIN, features=RandomFeatures(x, units=0), assumed=Assumptions())
    density, targets = laws.log_likelihood(torch.nn.functional.one_hot(z, 3).double())
    assert torch.equal(targets.long(), TARGETS)
    last = Normal(-0.8 * x[:, 1], 0.4).log_prob(x[:, 2])
    free = Normal(0.0, 1.0).log_prob(x[:, 0]), Normal(0.9 * x[:, 0], 0.4).log_prob(x[:, 1])
    done = Normal(5.0, 0.2).log_prob(x[:, 0]), Normal(-6.0, 0.2).log_prob(x[:, 1])
    truth = (
        torch.stack([free[0] + free[1], done[0] + free[1], free[0] + done[1]], 1) + last[:, None]
    )
    own = torch.arange(9000), z
    torch.testing.assert_close(density[own].mean(), truth[own].mean(), rtol=0.0, atol=0.01)
    assert (density.argmax(1) == truth.argmax(1)).double().mean() > 0.999


def test_laws_are_computed_once_for_the_same_responsibilities(monkeypatch):
    x, z = chain(imperfect=True)
    q, calls = torch.nn.functional.one_hot(z, 4).double(), []
    own = RegimeLaws._own
    monkeypatch.setattr(RegimeLaws, "_own", lambda *given: calls.append(given) or own(*given))
    linear, assumed = RandomFeatures(x, units=0), Assumptions(imperfect=True, target=0.01)
    laws = RegimeLaws(x, CHAIN, features=linear, assumed=assumed)
    first, targets = laws.log_likelihood(q)
    none = laws.knowing(torch.zeros_like(targets))
    assert not torch.equal(none.log_likelihood(q)[0], first)
    assert torch.equal(laws.log_likelihood(q)[0], first)
    assert len(calls) == len(CHAIN)
    other = q.roll(1, 0)
    assert not torch.equal(laws.log_likelihood(other)[0], first)
    for _ in range(3):
        laws.log_likelihood(q.clone())
    assert torch.equal(laws.log_likelihood(q)[0], first)
    assert len(calls) == 6 * len(CHAIN)  # that of long ago is forgotten


def test_laws_of_imperfect_interventions():
    x, z = chain(9000, imperfect=True)
    q = torch.nn.functional.one_hot(z, 3).double()
    laws = RegimeLaws(
        x, CHAIN, features=RandomFeatures(x, units=0), assumed=Assumptions(imperfect=True)
    )
    density, _ = laws.log_likelihood(q)
    truth = Normal(-2.0 * x[:, 0], 1.0).log_prob(x[:, 1])
    rest = Normal(0.0, 1.0).log_prob(x[:, 0]) + Normal(-0.8 * x[:, 1], 0.4).log_prob(x[:, 2])
    rows = z == 2
    torch.testing.assert_close(
        density[rows, 2].mean(), (truth + rest)[rows].mean(), rtol=0.0, atol=0.02
    )


def test_each_parameter_of_an_own_regression_is_paid_for():
    x, z = chain(9000, imperfect=True)
    q = torch.nn.functional.one_hot(z, 4).double()  # nobody is in the last
    assumed = Assumptions(imperfect=True, target=0.01)
    laws = RegimeLaws(x, CHAIN, features=RandomFeatures(x, units=0), assumed=assumed)
    roots, effects = laws._own(0, q)[1], laws._own(1, q)[1]
    assert roots.tolist() == pytest.approx([2 * laws.penalty + laws.target] * 4)
    assert (effects - roots).tolist() == pytest.approx([laws.penalty] * 3 + [0])


def test_rows_count_in_regressions_by_their_weights():
    torch.manual_seed(0)
    x = torch.randn(5000, 4).double()
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double() + torch.randn(5000).double()
    weights = torch.rand(4, 5000).double() ** torch.tensor([[1], [8], [3], [3]])
    weights[2:] *= torch.tensor([[0.01], [1e-6]])  # a little of every row is all that is there
    gram, cross = weighted_moments(x, y, weights)
    scale = weights.sum(1)
    gram, cross = gram / scale[:, None, None], cross / scale[:, None]
    means = weights / scale[:, None]
    torch.testing.assert_close(gram, torch.einsum("kn,ni,nj->kij", means, x, x), **CLOSE)
    torch.testing.assert_close(cross, torch.einsum("kn,ni,n->ki", means, x, y), **CLOSE)


def test_rows_that_are_nearly_nothing_are_left_out_of_regressions():
    x, y = torch.randn(1000, 2).double(), torch.randn(1000).double()
    weights = torch.full((1, 1000), 9e-5).double()
    weights[:, :300] = 0.5
    gram, cross = weighted_moments(x, y, weights)
    torch.testing.assert_close(gram[0], 0.5 * x[:300].mT @ x[:300])
    torch.testing.assert_close(cross[0], 0.5 * x[:300].mT @ y[:300])


# ---- the start --------------------------------------------------------------------------------


def test_gaussians_recover_clusters():
    z = torch.arange(1500) % 3
    x = torch.randn(1500, 2).double() * torch.tensor([1.0, 0.1]) + 8 * torch.eye(3)[z, :2]
    q = fit_gaussians(x, torch.ones(1500, 3, dtype=torch.bool), starts=3)[0]
    assert adjusted_rand_index(q.argmax(1), z) > 0.99


def test_known_labels_are_kept():
    x, z = chain()
    allowed = torch.ones(len(x), 5, dtype=torch.bool)
    allowed[:300] = torch.nn.functional.one_hot(z[:300], 5).bool()
    (q,) = fit_gaussians(x, allowed, starts=1)
    assert torch.equal(q[:300].argmax(1), z[:300])
    assert q[300:].max(1).values.min() < 1


def test_larger_components_come_first_in_the_prior():
    q, evidence = responsibilities(
        torch.zeros(4, 3).double(),
        torch.tensor([1.0, 50.0, 10.0]).double(),
        torch.ones(4, 3).bool(),
    )
    assert q[0, 1] > q[0, 2] > q[0, 0]
    torch.testing.assert_close(q.sum(1), torch.ones(4).double())
    assert evidence.shape == (4,)


# ---- the whole --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_graph_regimes_and_targets_of_linear_equations(seed):
    torch.manual_seed(seed)
    scm = draw_interventional_scm(5, density="linear", edges_per_node=1.0, dtype=torch.float64)
    table = sample_interventional_table(scm, 3000)
    found = structural_em(table["x"], truncation=8)
    assert hamming_distance(found.adjacency, table["adjacency"]) <= 1
    assert adjusted_rand_index(found.responsibilities.argmax(1), table["z"]) > 0.8
    assert found.targets.shape == (found.responsibilities.shape[1], 5)


def test_curves_need_units():
    x, _ = chain(bend=True)
    found = structural_em(x, truncation=4, units=60, edge=0.01)
    assert torch.equal(found.adjacency, CHAIN)
    straight = structural_em(x, truncation=4)
    assert found.score > straight.score


@pytest.mark.parametrize("cause", [0, 1])
def test_a_spread_that_varies_shows_the_direction(cause):
    x = torch.randn(3000).double()
    y = 0.5 * x + (0.7 * x - 1).exp() * torch.randn(3000).double()
    table = torch.stack([x, y] if cause == 0 else [y, x], 1)
    one = torch.zeros(3000, dtype=torch.long)
    found = structural_em(table, labels=one, units=40, edge=0.01, varying=True)
    assert found.adjacency[cause, 1 - cause] == 1
    assert found.score > structural_em(table, labels=one, units=40, edge=0.01).score + 500


def test_regimes_where_spreads_vary():
    z = torch.arange(3000) % 3
    x = torch.where(z == 1, 3 + 0.2 * torch.randn(3000), torch.randn(3000)).double()
    y = x.sin() + (0.5 * x - 1).exp() * torch.randn(3000).double()
    y = torch.where(z == 2, -6 + 0.2 * torch.randn(3000).double(), y)
    table = torch.stack([y, x], 1)
    found = structural_em(
        table, truncation=4, units=40, imperfect=True, edge=0.01, target=0.01, varying=True
    )
    assert found.adjacency.tolist() == [[0, 0], [1, 0]]
    assert adjusted_rand_index(found.responsibilities.argmax(1), z) > 0.85


def test_known_targets_where_spreads_vary():
    x, z = chain()
    known = TARGETS | torch.tensor([0, 0, 1])
    found = structural_em(x, labels=z, targets=known, units=20, edge=0.01, varying=True)
    assert torch.equal(found.targets.long(), known)
    assert not found.adjacency[:, 2].any()


def test_imperfect_interventions():
    x, z = chain(imperfect=True)
    found = structural_em(x, truncation=4, imperfect=True)
    assert torch.equal(found.adjacency, CHAIN)
    own = [int(found.responsibilities[z == k].sum(0).argmax()) for k in range(3)]
    assert torch.equal(found.targets[own].long(), TARGETS)
    assert torch.equal(found.cut[own].long(), TARGETS * torch.tensor([1, 0, 1]))  # x1 keeps x0
    assert found.cut.sum() <= found.targets.sum() - 1
    perfect = structural_em(x, truncation=4)
    assert torch.equal(perfect.cut, perfect.targets)


def test_labels_and_targets_may_be_known():
    x, z = chain()
    found = structural_em(x, labels=z, targets=TARGETS)
    assert torch.equal(found.adjacency, CHAIN)
    assert torch.equal(found.targets.long(), TARGETS)
    assert torch.equal(found.responsibilities.argmax(1), z)


def test_known_targets_name_the_components():
    """Whatever the order in which mixtures are drawn, and though no label is known."""
    for seed in range(4):
        torch.manual_seed(seed)
        x, z = chain(900)
        order = torch.randperm(3)
        truth = order.argsort()[z]
        for labelled in (None, 1, 2):  # of one component, the last one or another
            labels = None
            if labelled:
                labels = torch.where((truth == labelled) & (torch.rand(900) < 0.1), truth, -1)
            found = structural_em(x, labels=labels, targets=TARGETS[order])
            assert torch.equal(found.adjacency, CHAIN)
            assert torch.equal(found.responsibilities.argmax(1), truth)


@pytest.mark.parametrize("options", [{}, {"imperfect": True}, {"varying": True}])
def test_a_component_may_be_observational(options):
    """Which costs a target more here; it would be the others that are as they are."""
    x = torch.randn(1500, 2).double()
    z = (torch.arange(1500) >= 500).long()
    x[:500, 0] += 4
    x[1000:, 1] += 9
    z[1000:] = 2
    free = structural_em(x, labels=z, **options)
    assert free.targets.tolist() == [[True, False], [False, False], [False, True]]
    found = structural_em(x, labels=z, observational=True, **options)
    assert found.targets.tolist() == [[False, False], [True, False], [True, True]]
    seen = torch.where(torch.rand(1500) < 0.1, z, -1)
    found = structural_em(x, labels=seen, observational=True, truncation=5, **options)
    assert not found.targets[0].any()


def test_chance_has_its_price():
    """In few rows it gains more than the price of each row comes to."""
    edges = 0.0
    for _ in range(12):
        x = torch.randn(300, 4).double()
        edges += structural_em(x, labels=torch.zeros(300).long()).adjacency.sum()
    assert edges <= 1


def test_some_labels_name_the_components():
    x, z = chain()
    labels = torch.where(torch.rand(len(z)) < 0.2, z, -1)
    found = structural_em(x, labels=labels, truncation=6)
    known = labels >= 0
    assert torch.equal(found.responsibilities.argmax(1)[known], z[known])
    assert torch.equal(found.adjacency, CHAIN)


def test_components_keep_their_numbers():
    x, z = chain()
    labels = torch.where(z == 2, 4, z)  # 2 and 3 have no rows, and 5 in the second has few
    found = structural_em(x, labels=labels)
    assert torch.equal(found.responsibilities.argmax(1), labels)
    labels[:9] = 5
    assert torch.equal(structural_em(x, labels=labels).responsibilities.argmax(1), labels)
    more = torch.cat([TARGETS, torch.eye(3).long()])
    found = structural_em(x, labels=z, targets=more)
    assert torch.equal(found.targets.long(), more)
    assert torch.equal(found.adjacency, CHAIN)


def test_a_node_may_be_a_target_everywhere():
    x, z = chain()
    found = structural_em(x, labels=z, targets=TARGETS | torch.tensor([0, 0, 1]))
    assert not found.adjacency[:, 2].any()  # its parents never act, and an edge has its price
    assert found.adjacency[0, 1] == 1
    assert found.responsibilities.isfinite().all()


def searches(monkeypatch):
    """What structural EM asks of the search, which here finds no edges: problem and starts."""
    asked = []

    def search(problem, starts, *, rounds):
        asked.append((problem, starts))
        graph = torch.zeros(2 * problem.x.shape[1:])
        none = torch.zeros(starts[0].q.shape[1], len(graph)).bool()
        return graph, Fit(starts[0], none, none, 0.0), problem.scores(starts[0])

    monkeypatch.setattr("pyro_causal.infer.structural_em.find_structure", search)
    return asked


@pytest.mark.parametrize(
    ("options", "noise"),
    [({}, 0.0), ({"varying": True}, 0.05), ({"varying": True, "resolution": 0.0}, 0.0)]
    + [({"resolution": 0.3}, 0.3)],
)
def test_rows_are_blurred_to_the_resolution(monkeypatch, options, noise):
    torch.manual_seed(0)
    x, asked = 3 + 2 * torch.randn(4000, 2), searches(monkeypatch)
    structural_em(x, truncation=2, **options)
    added = asked[0][0].x - (x.double() - x.double().mean(0)) / x.double().std(0)
    torch.testing.assert_close(added.std(0), torch.full_like(added[0], noise), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("nodes", "options", "runs"),
    [(5, {}, 3), (6, {}, 1), (6, {"runs": 2}, 2), (5, {"starts": 2}, 2)]
    + [(5, {"labels": torch.arange(200) % 2}, 1), (6, {"units": 5}, 1), (5, {"units": 5}, 3)]
    + [(6, {"units": 5, "varying": True}, 3)],
)
def test_how_many_mixtures_are_searched_from(monkeypatch, nodes, options, runs):
    torch.manual_seed(0)
    asked = searches(monkeypatch)
    structural_em(torch.randn(200, nodes), truncation=2, **options)
    assert [len(starts) for _, starts in asked] == [runs]


@pytest.mark.gpu
def test_the_device_is_followed():
    x, z = chain()
    options = {"units": 20, "imperfect": True, "edge": 0.01, "target": 0.01}
    found = structural_em(x.cuda(), labels=z.cuda(), **options)
    assert found.adjacency.is_cuda and found.responsibilities.is_cuda and found.targets.is_cuda
    here = structural_em(x, labels=z, **options)
    assert torch.equal(found.adjacency.cpu(), here.adjacency)
    assert torch.equal(found.targets.cpu(), here.targets)
    assert torch.equal(here.adjacency, CHAIN)


def test_one_regime_alone():
    x, _ = chain()
    found = structural_em(x[::3], labels=torch.zeros(len(x[::3]), dtype=torch.long))
    assert found.responsibilities.shape[1] == 1
    assert not found.targets.any()
    skeleton = found.adjacency + found.adjacency.mT
    assert torch.equal(skeleton, CHAIN + CHAIN.mT)


@pytest.mark.parametrize("rows", [15, 60])
@pytest.mark.parametrize("units", [0, 10])
def test_of_few_rows_the_largest_component_stays(rows, units):
    torch.manual_seed(0)
    x, _ = chain(rows)
    found = structural_em(x, units=units)
    assert found.responsibilities.shape[1] >= 1
    torch.testing.assert_close(found.responsibilities.sum(1), torch.ones(rows).double())


def test_prior_and_parents_are_heeded():
    x, _ = chain()
    prior = graph_prior(3, forbidden=[(0, 1)], required=[(0, 2)])
    found = structural_em(x, truncation=4, prior=prior, max_parents=1)
    assert found.adjacency[0, 2] == 1
    assert found.adjacency[0, 1] == 0
    assert found.adjacency.sum(0).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(3, 3)}, r"rows \[N, d\] with N > d, got shape \(3, 3\)"),
        ({"x": torch.randn(20)}, r"got shape \(20,\)"),
        ({"x": torch.full((9, 2), torch.nan)}, r"NaN, infinity or one value only in .* \[0, 1\]"),
        ({"x": torch.eye(9)[:, :3] * 0}, r"columns \[0, 1, 2\]"),
        ({"labels": torch.zeros(4).long()}, r"labels \[30\] of integers, got .* shape \(4,\)"),
        ({"labels": torch.zeros(30)}, "of integers, got torch.float32"),
        ({"labels": torch.full((30,), -2)}, "labels from -1, unknown, got -2"),
        ({"resolution": -0.1}, "resolution from 0, got -0.1"),
        ({"resolution": torch.nan}, "resolution from 0, got nan"),
        ({"x": torch.ones(9, 2).long()}, "rows of floating-point numbers, got torch.int64"),
        ({"truncation": 0}, "truncation from 1, got 0"),
        ({"units": -3}, "units from 0, got -3"),
        ({"edge": -1.0}, "edge from 0, got -1.0"),
        ({"target": torch.nan}, "target from 0, got nan"),
        ({"rounds": -1}, "rounds from 0, got -1"),
        ({"steps": 0}, "steps from 1, got 0"),
        ({"starts": 0}, "starts from 1, got 0"),
        ({"runs": 0}, "runs from 1, got 0"),
        ({"targets": torch.zeros(0, 3)}, r"targets \[K, 3\], got shape \(0, 3\)"),
        ({"targets": torch.full((2, 3), 0.5)}, "targets of zeros and ones, got other numbers"),
        ({"targets": torch.zeros(2, 4)}, r"targets \[K, 3\], got shape \(2, 4\)"),
        ({"observational": True}, "rows of component 0, .* got no such label. Label rows, or"),
        ({"observational": True, "labels": torch.ones(30).long()}, "got no such label"),
        (
            {
                "observational": True,
                "labels": torch.zeros(30).long(),
                "targets": torch.zeros(2, 3),
            },
            "unknown targets, got the targets of all",
        ),
        (
            {"labels": torch.arange(30), "targets": torch.zeros(2, 3)},
            "labels below 2, .* got 29",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"x": torch.randn(30, 3)} | change
    with pytest.raises(ValueError, match=message):
        structural_em(arguments.pop("x"), **arguments)
