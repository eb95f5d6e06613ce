"""Regressions in many regimes, and the choice of those with laws of their own."""

import itertools

import pytest
import torch
from torch.distributions import Normal

from pyro_causal.infer._regressions import (
    Moments,
    RandomFeatures,
    Shared,
    choose_targets,
    exchange,
    fit_own,
    fit_shared,
    take,
    unlike_one,
)

SIZES = [300, 200, 250, 150]
BATCH = [((), 0.3), ((1, 2), 0.3), ((3,), 2.0), ((0,), 0.3), ((0, 1, 3), 2.0)]  # shifted, and noise


def mixture(*, shifted=(2,), noise=0.3):
    """Features and two responses in four regimes, some of which shift and blur the first one."""
    a = torch.cat([torch.ones(900, 1), torch.randn(900, 2)], 1).double()
    y = a @ torch.tensor([[0.5, -1.0], [1.0, 0.0], [-0.7, 2.0]]).double()
    y = y + noise * torch.randn(900, 2).double()
    parts = list(y.split(SIZES))
    for k in shifted:
        parts[k] = parts[k] + torch.stack([4 + torch.randn(SIZES[k]), torch.zeros(SIZES[k])], 1)
    return a, torch.cat(parts)


def alone(y):
    moments = Moments.of(y.new_ones(len(y), 1), y, SIZES)
    return fit_own(moments, price=3.0)[2]


def test_features_without_units_are_the_variables():
    x = torch.randn(50, 4)
    features = RandomFeatures(x, units=0)
    assert torch.equal(features([1, 3]), torch.cat([torch.ones(50, 1), x[:, [1, 3]]], 1))
    assert torch.equal(features([]), torch.ones(50, 1))


def test_features_fit_a_function_of_any_shape():
    x = torch.randn(2000, 3).double()
    y = (x[:, 0].abs() - (2 * x[:, 1]).sin()).unsqueeze(-1)
    features = RandomFeatures(x, units=100)
    assert features([0, 1]).shape == (2000, 103)
    residual = y - features([0, 1]) @ torch.linalg.lstsq(features([0, 1]), y).solution
    straight = y - features([0, 1])[:, :3] @ torch.linalg.lstsq(features([0, 1])[:, :3], y).solution
    assert residual.square().mean() < 0.02 * straight.square().mean()


def test_features_keep_their_scale_for_one_variable_or_many():
    features = RandomFeatures(torch.randn(3000, 6), units=200)
    for parents in ([0], [0, 1, 2, 3, 4, 5]):
        assert features(parents)[:, 1 + len(parents) :].max() < 12
        assert features(parents).isfinite().all()


def test_features_are_rectified_sums_with_kinks_at_rows():
    x = torch.randn(200, 4).double()
    found = RandomFeatures(x, units=30)
    features, (v, chosen) = found([1, 3]), (found.directions[[1, 3]], found.kinks[[1, 3]].mT)
    sums = x[:, [1, 3]] @ v
    expected = ((sums - (chosen * v.mT).sum(1)) / sums.std(0)).clamp(min=0)
    torch.testing.assert_close(features[:, 3:], expected)
    assert (x.unsqueeze(1) == found.kinks.mT).all(-1).any(0).all()  # each is a row


def test_features_of_some_rows_are_the_same_functions():
    found = RandomFeatures(torch.randn(50, 4), units=10)
    rows = torch.tensor([7, 3, 3, 49])
    for parents in ([], [2], [0, 3]):
        torch.testing.assert_close(found.of(rows)(parents), found(parents)[rows])
        assert torch.equal(take(found(parents), rows), found(parents)[rows])


@pytest.mark.parametrize(("units", "sizes"), [(3, [3, 3, 3]), (5, [5, 5]), (10, [10]), (30, [10])])
def test_parts_of_random_features_are_the_same_functions(units, sizes):
    torch.manual_seed(0)
    found = RandomFeatures(torch.randn(50, 4), units=10)
    parts = [part([0, 2]) for part in found.parts(units)]
    assert [part.shape[1] - 3 for part in parts] == sizes
    together = torch.cat([parts[0][:, :3], *(part[:, 3:] for part in parts)], 1)
    torch.testing.assert_close(together, found([0, 2])[:, : together.shape[1]])


def test_no_random_features_have_one_part():
    found = RandomFeatures(torch.randn(50, 4), units=0)
    (part,) = found.parts(30)
    assert torch.equal(part([1]), found([1]))


def test_shared_regression_is_least_squares_on_the_other_regimes():
    a, y = mixture()
    targets = torch.tensor([[False, False, True, False], [False, False, False, False]])
    own = alone(y)
    found = fit_shared(Moments.of(a, y, SIZES), own, targets)
    regime = torch.arange(4).repeat_interleave(torch.tensor(SIZES))
    for j in range(2):
        rows = ~targets[j, regime]
        solution = torch.linalg.lstsq(a[rows], y[rows, j, None]).solution[:, 0]
        torch.testing.assert_close(found.weights[j], solution, atol=1e-5, rtol=1e-5)
        residual = y[:, j] - a @ solution
        scale = residual[rows].square().mean().sqrt()
        density = Normal(0.0, scale).log_prob(residual)
        expected = torch.zeros(4).double().index_add(0, regime, density)
        torch.testing.assert_close(found.base[j], expected, rtol=1e-4, atol=1e-2)
        total = torch.where(targets[j], own[j], expected).sum()
        torch.testing.assert_close(found.total[j], total, rtol=1e-4, atol=1e-2)


def chosen(moments, own):
    """Of one set of features."""
    found = choose_targets(Moments.stack([moments]), own.unsqueeze(0))
    return Shared(*(part.squeeze(0) for part in found))


def test_a_batch_is_what_each_set_of_features_is_alone():
    torch.manual_seed(0)
    a, _ = mixture()
    ys = [mixture(shifted=shifted, noise=noise)[1] for shifted, noise in BATCH]
    moments = [Moments.of(torch.randn_like(a) if k == 3 else a, y, SIZES) for k, y in enumerate(ys)]
    own = [alone(y) for y in ys]
    found = choose_targets(Moments.stack(moments), torch.stack(own))
    assert len({str(targets.tolist()) for targets in found.targets}) > 2
    for k in range(len(ys)):
        for part, expected in zip(found, chosen(moments[k], own[k]), strict=True):
            torch.testing.assert_close(part[k], expected)


def one_at_a_time(moments, own, targets):
    """The exchange of one response, step by step."""
    least, empty = 2 * moments.gram.shape[-1], {*(moments.counts == 0).nonzero().flatten().tolist()}
    barred, steps = set(empty), []

    def fit(targets):
        return fit_shared(moments, own[None], targets[None])

    while True:
        gains = {}
        for k in range(len(own)):
            rest = moments.counts[~targets].sum()
            few = not targets[k] and rest - moments.counts[k] < least
            gain = (own[k] - fit(targets).base[0, k]).item() * (-1 if targets[k] else 1)
            if gain > 0 and k not in barred and not few:
                gains[k] = gain
        if not gains:
            return targets, steps
        regime = max(gains, key=gains.__getitem__)
        trial = targets.clone()
        trial[regime] ^= True
        better = fit(trial).total > fit(targets).total + 1e-6
        steps.append(regime)
        if better:
            targets, barred = trial, empty | {regime}
        else:
            barred.add(regime)


@pytest.mark.parametrize("seed", range(6))
def test_regimes_change_sides_one_at_a_time(seed):
    torch.manual_seed(seed)
    sizes = [300, 4, 250, 2, 0, 344]
    sets = []
    for _ in range(3):
        a, y = mixture(shifted=(), noise=1.0)
        moments = Moments.of(a, y + torch.randn(900, 1) * torch.rand(()), sizes)
        base = fit_shared(moments, torch.zeros(2, 6).double(), torch.zeros(2, 6).bool()).base
        own = base + 30 * torch.randn(2, 6)  # as if laws of their own were good or bad at random
        sets.append((moments, own, (torch.rand(2, 6) < 0.4) & (moments.counts < 300)))
    many = Moments.stack([moments for moments, _, _ in sets])
    found = exchange(many, *(torch.stack(part) for part in list(zip(*sets, strict=True))[1:]))
    ways = []
    for k, (moments, own, start) in enumerate(sets):
        for j in range(2):
            expected, steps = one_at_a_time(moments.responses([j]), own[j], start[j])
            ways.append(steps)
            assert torch.equal(found.targets[k, j], expected)
            fit = fit_shared(moments.responses([j]), own[j, None], expected[None])
            torch.testing.assert_close(found.total[k, j], fit.total[0])
    assert len({len(steps) for steps in ways}) > 2  # some end before others


def test_the_better_of_two_starts_counts():
    torch.manual_seed(0)
    winners = set()
    for _ in range(80):
        a, y = mixture(shifted=(), noise=1.0)
        moments = Moments.stack([Moments.of(a, y, SIZES)])
        none = torch.zeros(1, 2, 4).bool()
        own = fit_shared(moments, none.double(), none).base + 20 * torch.randn(1, 2, 4)
        first, second = (exchange(moments, own, s).total for s in (none, unlike_one(moments, own)))
        winners |= {*(first - second).round(decimals=3).sign().flatten().tolist()}
        torch.testing.assert_close(choose_targets(moments, own).total, torch.maximum(first, second))
        assert not none.any()  # as it was
    assert winners == {-1, 0, 1}


@pytest.mark.parametrize("seed", range(4))
def test_regimes_unlike_one_are_those_that_its_regression_does_not_explain(seed):
    torch.manual_seed(seed)
    sizes = [300, 5, 250, 345]  # the second has no regression
    a, y = mixture(shifted=(), noise=1.0)
    for rows, response in zip(y.split(sizes), torch.randn(4, 2), strict=True):
        rows += response
    moments = Moments.of(a, y, sizes)
    own = fit_own(Moments.of(y.new_ones(900, 1), y, sizes), price=3.0)[2] + 80
    found = unlike_one(moments, own)
    for j in range(2):
        best = -torch.inf
        for one in (0, 2, 3):
            its, value = a.split(sizes)[one], y.split(sizes)[one][:, j, None]
            weights = torch.linalg.lstsq(its, value).solution
            scale = (value - its @ weights).square().mean().sqrt()
            density = Normal(0.0, scale).log_prob(y[:, j, None] - a @ weights)
            base = torch.stack([rows.sum() for rows in density.split(sizes)])
            total = torch.maximum(own[j], base).sum()
            if total > best:
                best, expected = total, own[j] > base
        assert torch.equal(found[j], expected)


def test_targets_are_the_regimes_that_differ():
    torch.manual_seed(0)
    a, y = mixture(shifted=(1, 2))
    found = chosen(Moments.of(a, y, SIZES), alone(y))
    assert found.targets.tolist() == [[False, True, True, False], [False] * 4]


@pytest.mark.parametrize("seed", range(8))
def test_no_change_of_one_regime_gains(seed):
    torch.manual_seed(seed)
    shifted = [k for k in range(4) if torch.rand(()) < 0.5]
    a, y = mixture(shifted=shifted, noise=2.0)  # so that little tells regimes apart
    moments, own = Moments.of(a, y, SIZES), alone(y)
    found = chosen(moments, own)
    for k in range(4):
        other = found.targets.clone()
        other[:, k] ^= True
        other[other.all(1)] = found.targets[other.all(1)]
        assert (fit_shared(moments, own, other).total <= found.total + 1e-5).all()


@pytest.mark.parametrize("seed", range(8))
def test_targets_are_the_best_of_all_sets(seed):
    torch.manual_seed(seed)
    shifted = [k for k in range(3) if torch.rand(()) < 0.5]
    a, y = mixture(shifted=shifted)
    moments, own = Moments.of(a, y, SIZES), alone(y)
    sets = [torch.tensor(s) for s in itertools.product([False, True], repeat=4) if not all(s)]
    best = torch.stack([fit_shared(moments, own, s.expand(2, 4)).total for s in sets]).amax(0)
    torch.testing.assert_close(chosen(moments, own).total, best)


def test_empty_regimes_are_no_targets():
    a, y = mixture()
    moments = Moments.of(a, y, [300, 200, 400, 0])
    own = fit_own(Moments.of(y.new_ones(900, 1), y, [300, 200, 400, 0]), price=3.0)[2]
    assert not chosen(moments, own).targets[:, 3].any()


def test_regressions_of_one_regime_need_rows():
    a, y = mixture()
    _, _, totals = fit_own(Moments.of(a[:305], y[:305], [300, 5]), price=0.0)
    assert totals[:, 0].isfinite().all()
    assert (totals[:, 1] == -torch.inf).all()
