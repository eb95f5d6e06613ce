"""Units fitted to one variable, and features and scores with them."""

import pytest
import torch

from pyro_causal.infer import _fitted_units
from pyro_causal.infer._fitted_units import FittedFeatures, Units, first_units, fit_units
from pyro_causal.infer._node_scores import FittedScores, NodeScores
from pyro_causal.infer._regressions import Assumptions, RandomFeatures, ridge

NOISE = 0.01


def bent(x):
    """A function of three variables that bends along six planes."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(3, 6, generator=draw, dtype=torch.double)
    outer = torch.randn(6, generator=draw, dtype=torch.double)
    return (x @ directions - 0.3).clamp(min=0) @ outer


def sample(rows=4000, *, noise=NOISE):
    x = torch.randn(rows, 3, dtype=torch.double)
    return x, bent(x) + noise * torch.randn(rows, dtype=torch.double)


def start(x, units=24):
    places = x[torch.randint(len(x), (units,))].mT
    return first_units(x, torch.randn(x.shape[1], units, dtype=torch.double), places)


def left(of, x, y):
    """The standard deviation of what regressions on functions leave of rows they have not seen."""
    a, half = torch.cat([torch.ones_like(x[:, :1]), x, of(x)], 1), len(x) // 2
    fit, new = a[:half], a[half:]
    weights = ridge(fit.mT @ fit, fit.mT @ y[:half].unsqueeze(1)).squeeze(1)
    return (y[half:] - new @ weights).square().mean().sqrt().item()


# ---- units -----------------------------------------------------------------------------------


def test_a_function_with_few_bends_is_found_nearly_to_its_noise():
    fitted, rough = [], []
    for seed in range(7):
        torch.manual_seed(seed)
        x, y = sample()
        random = RandomFeatures(x, units=100)
        fitted.append(left(fit_units(x[:2000], y[:2000], start(x)), x, y))
        rough.append(left(lambda x, random=random: random(range(3))[:, 4:], x, y))
    assert sorted(fitted)[3] < 1.5 * NOISE  # fits end in local optima, now and then
    assert sorted(rough)[3] > 10 * NOISE
    assert max(fitted) < max(rough)


def test_at_every_step_the_weights_are_those_of_least_squares(monkeypatch):
    torch.manual_seed(0)
    x, y = sample(500)
    once, seen = _fitted_units._jacobian, []

    def jacobian(x, units, outer):
        a = torch.cat([torch.ones_like(x[:, :1]), x, units(x)], 1)
        seen.append((a, outer))
        return once(x, units, outer)

    monkeypatch.setattr(_fitted_units, "_jacobian", jacobian)
    fit_units(x, y, start(x))
    assert len(seen) > 5
    response = ((y - y.mean()) / y.std()).unsqueeze(1)
    for a, outer in seen:
        best = torch.linalg.lstsq(a, response).solution.squeeze(1)
        assert (response[:, 0] - a @ outer).norm() < 1.001 * (response[:, 0] - a @ best).norm()


def test_a_fit_from_the_same_start_is_the_same():
    torch.manual_seed(0)
    x, y = sample()
    first = start(x)
    assert all(
        torch.equal(a, b)
        for a, b in zip(fit_units(x, y, first), fit_units(x, y, first), strict=True)
    )


def test_units_start_at_places_in_rows_of_any_scale():
    torch.manual_seed(0)
    x, _ = sample()
    directions, places = torch.randn(3, 5).double(), x[:5].mT
    first, scaled = first_units(x, directions, places), first_units(4 * x, directions, 4 * places)
    torch.testing.assert_close(scaled(4 * x), first(x))
    on = (places.mT @ first.directions).diagonal()
    torch.testing.assert_close(on, first.kinks)


def test_units_are_rectified_sums():
    units = Units(torch.tensor([[1.0, -1.0], [2.0, 0.0]]), torch.tensor([0.5, 1.0]))
    assert units(torch.tensor([[1.0, 1.0], [-3.0, 0.0]])).tolist() == [[2.5, 0.0], [0.0, 2.0]]


def test_scales_and_correlations_of_parents_do_not_matter():
    torch.manual_seed(1)
    x, y = sample()
    mixed = x @ torch.tensor([[1e3, 1e3, 0.0], [1.0, 1.01, 0.0], [0.0, 0.0, 1e-3]]).double() + 5
    random = RandomFeatures(mixed, units=100)
    units = fit_units(mixed[:2000], y[:2000], start(mixed))
    assert left(units, mixed, y) < 0.5 * left(lambda x: random(range(3))[:, 4:], mixed, y)


@pytest.mark.parametrize("parents", [1, 3])
def test_noise_is_left_as_it_is(parents):
    torch.manual_seed(2)
    x, y = torch.randn(4000, parents).double(), torch.randn(4000).double()
    units = fit_units(x[:2000], y[:2000], start(x))
    assert left(units, x, y) < 1.1


@pytest.mark.parametrize("fault", ["a copy", "a constant", "no noise", "few rows"])
def test_degenerate_rows_give_finite_units(fault):
    torch.manual_seed(3)
    x, y = sample(noise=0.0)
    if fault == "a copy":
        x[:, 1] = x[:, 0]
    elif fault == "a constant":
        y = torch.ones_like(y)
    elif fault == "no noise":
        y = x[:, 0].clone()
    else:
        x, y = x[:10], y[:10]
    half = len(x) // 2
    units = fit_units(x[:half], y[:half], start(x[:half]))
    assert units.directions.isfinite().all() and units.kinks.isfinite().all()
    if fault != "few rows":
        assert left(units, x, y) < 0.3 * float(y.std()) + 1e-4


# ---- features and scores ---------------------------------------------------------------------


def test_fitted_units_come_between_parents_and_random_ones():
    x = torch.randn(50, 4).double()
    random = RandomFeatures(x, units=10)
    units = start(x[:, [0, 2]], units=3)
    features = FittedFeatures(random, {(3, (0, 2)): units})
    found, without = features((0, 2), 3), random((0, 2))
    assert torch.equal(found[:, :3], without[:, :3])
    torch.testing.assert_close(found[:, 3:6], units(x[:, [0, 2]]))
    assert torch.equal(found[:, 6:], without[:, 3:])
    assert torch.equal(features((0, 2), 1), without)
    assert torch.equal(features((), 3), random(()))


def scores_in_regimes():
    """Three causes and their effect, which is set in the last of three regimes."""
    x, y = sample(6000)
    z = torch.arange(6000) % 3
    y = torch.where(z == 2, 6 + 0.2 * torch.randn(6000).double(), y)
    x = torch.cat([x, y.unsqueeze(1)], 1)
    x = (x - x.mean(0)) / x.std(0)
    held = torch.arange(6000) % 5 == 0
    features = RandomFeatures(x, units=60)
    assumed = Assumptions(target=0.01)
    return NodeScores(x, z, regimes=3, features=features, held=held, assumed=assumed, edge=0.01)


def test_scores_rise_where_units_explain_more():
    torch.manual_seed(4)
    rough = scores_in_regimes()
    scores = FittedScores(rough)
    gain = scores((0, 1, 2), (3,)) - rough((0, 1, 2), (3,))
    assert gain > 0.5 * 6000
    assert torch.equal(scores((), (0, 3)), rough((), (0, 3)))
    assert torch.equal(
        scores((0, 1), (3, 2)), torch.stack([scores((0, 1), (j,))[0] for j in (3, 2)])
    )


def test_units_stay_only_where_they_predict_better():
    torch.manual_seed(6)
    rough = scores_in_regimes()
    scores, kept = FittedScores(rough), set()
    for parents, node in [
        ((0,), 1),
        ((1,), 0),
        ((2,), 0),
        ((1, 2), 0),
        ((0, 1), 3),
        ((0, 1, 2), 3),
    ]:
        gain = (scores(parents, (node,)) - rough(parents, (node,))).item()
        assert gain >= 0
        assert ((node, parents) in scores.units) == (gain > 0)
        kept.add(gain > 0)
    assert kept == {False, True}


def test_units_are_fitted_once_and_to_rows_of_no_target(monkeypatch):
    torch.manual_seed(5)
    scores, seen = FittedScores(scores_in_regimes()), []

    def fit(x, y, start):
        seen.append(y)
        return fit_units(x, y, start)

    monkeypatch.setattr("pyro_causal.infer._node_scores.fit_units", fit)
    first = scores((0, 1, 2), (3,))
    assert torch.equal(scores((0, 1, 2), (3,)), first)
    (values,) = seen
    rough = scores.rough
    assert rough.found[3, (0, 1, 2)][1].tolist() == [False, False, True]
    assert values.max() < rough.x[rough.labels == 2, 3].min()
    assert len(values) == len(rough.x[rough.labels < 2])
