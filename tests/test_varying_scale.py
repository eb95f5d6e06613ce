"""Laws whose residuals have a spread, and a shape, that depend on the parents."""

import pytest
import torch
from torch.distributions import Normal

from pyro_causal.infer import _regime_laws, _varying_scale
from pyro_causal.infer._regime_laws import VaryingLaws
from pyro_causal.infer._regressions import Assumptions, RandomFeatures
from pyro_causal.infer._varying_scale import fit_varying, grow_targets


def fan(size=6000):
    """A cause, and an effect whose spread grows with it."""
    x = torch.randn(size).double()
    y = 0.5 * x.sin() + (0.6 * x - 1).exp() * torch.randn(size).double()
    return x, y


def features_of(x, *, units=60):
    return RandomFeatures(x.unsqueeze(1), units=units)([0])


def truth(x, y):
    return Normal(0.5 * x.sin(), (0.6 * x - 1).exp()).log_prob(y)


def test_a_weighted_fit_recovers_the_spread():
    x, y = fan()
    weights = (torch.rand(6000) < 0.7).double()
    wrong = torch.where(weights > 0, y, 3 * torch.randn(6000).double())
    a = features_of(x)
    law = fit_varying(a, wrong, weights, parents=1)
    inner = x.abs() < 1.5
    found = a[:, : len(law.spread)] @ law.spread
    scale = law.shape[0].exp() @ law.shape[2] + law.shape[0].exp() @ law.shape[1].square()
    error = (found + scale.log() - 2 * (0.6 * x - 1))[inner]
    assert error.abs().mean() < 0.15
    assert (a @ law.mean - 0.5 * x.sin())[inner].abs().mean() < 0.04


def test_held_out_rows_are_as_likely_as_under_the_truth():
    x, y = fan(9000)
    a = features_of(x)
    law = fit_varying(a[:6000], y[:6000], torch.ones(6000).double(), parents=1)
    gap = truth(x, y)[6000:].mean() - law.log_density(a[6000:], y[6000:]).mean()
    assert -0.01 < gap < 0.04
    constant = Normal(y.mean(), y.std()).log_prob(y)[6000:].mean()
    assert truth(x, y)[6000:].mean() > constant + 0.15


def test_a_tilt_follows_a_shape_that_turns_with_the_parent():
    x = torch.randn(9000).double()
    skewed = torch.distributions.Gamma(1.0, 1.0).sample((9000,)).double() - 1
    y = torch.where(x > 0, skewed, -skewed)  # of the same mean and variance on both sides
    a = features_of(x)
    law = fit_varying(a[:6000], y[:6000], torch.ones(6000).double(), parents=1)
    flat = law._replace(tilt=torch.zeros_like(law.tilt))
    gain = law.log_density(a[6000:], y[6000:]) - flat.log_density(a[6000:], y[6000:])
    assert gain.mean() > 0.12


def test_chance_has_no_tilt():
    x = torch.randn(6000).double()
    y = torch.randn(6000).double()
    law = fit_varying(features_of(x), y, torch.ones(6000).double(), parents=1)
    assert law.tilt.abs().max() < 0.15
    assert law.log_density(features_of(x), y).mean() < Normal(0.0, 1.0).log_prob(y).mean() + 0.01


def test_densities_integrate_to_one():
    x, y = fan()
    y = torch.where(x > 0, y.abs(), y)
    a = features_of(x)
    law = fit_varying(a, y, torch.ones(6000).double(), parents=1)
    assert law.tilt.any()
    law = law._replace(tilt=3 * law.tilt)  # so that it is cut off from below
    line = torch.linspace(-25, 25, 200_001).double()
    for row in a[:5]:
        density = law.log_density(row.expand(len(line), -1), line).exp()
        assert torch.trapezoid(density, line).item() == pytest.approx(1.0, abs=0.01)


def test_without_parents_a_law_is_gaussian_but_for_strays():
    y = 2 + 0.3 * torch.randn(4000).double()
    law = fit_varying(torch.ones(4000, 1).double(), y, torch.ones(4000).double(), parents=0)
    density = law.log_density(torch.ones(3, 1).double(), torch.tensor([2.0, 2.3, 9.0]).double())
    gaussian = Normal(y.mean(), y.std()).log_prob(torch.tensor([2.0, 2.3]).double())
    torch.testing.assert_close(density[:2], gaussian, rtol=0.0, atol=0.02)
    assert density[2] > -20  # and not -270


def regimes(size=6000):
    """The fan in four regimes, the last of which sets the effect; and what each gains by itself."""
    x, y = fan(size)
    z = torch.arange(size) % 4
    y = torch.where(z == 3, 3 + 0.1 * torch.randn(size).double(), y)
    parts = [y[z == k] for k in range(4)]
    own = torch.stack([Normal(part.mean(), part.std()).log_prob(part).sum() for part in parts])
    return x, y, z, own


def test_targets_grow_by_the_law_that_varies():
    x, y, z, own = regimes()
    a, asked = features_of(x), []

    def base(targets):
        asked.append(targets.tolist())
        law = fit_varying(a, y, (~targets).double()[z], parents=1)
        return torch.zeros_like(own).index_add(0, z, law.log_density(a, y))

    counts = torch.full_like(own, 1500.0)
    targets = grow_targets(own, base, counts=counts, least=300.0)
    assert targets.tolist() == [False, False, False, True]
    assert asked[0] == [False] * 4
    assert not grow_targets(own, base, counts=counts, least=4501.0).any()
    assert grow_targets(own + 1e6, base, counts=counts, least=1500.0).sum() == 3


def test_targets_turn_back(monkeypatch):
    """The second gains most, but only while the first has no law of its own."""
    monkeypatch.setattr(_varying_scale, "TRIES", 1)  # so that it matters which is next
    own = torch.tensor([0.0, 0.0, 0.0])
    totals = {
        (0, 0, 0): [-9.0, -10.0, 1.0],
        (0, 1, 0): [-9.0, 0.0, 1.0],
        (1, 1, 0): [0.0, 5.0, 1.0],
    }
    asked = []

    def base(targets):
        asked.append(tuple(targets.long().tolist()))
        return torch.tensor(totals.get(asked[-1], [0.0, 5.0, 1.0]))

    targets = grow_targets(own, base, counts=torch.ones(3), least=0.0)
    assert targets.tolist() == [True, False, False]
    assert asked[:3] == [(0, 0, 0), (0, 1, 0), (1, 1, 0)]


def test_large_tables_are_fitted_to_some_of_their_rows(monkeypatch):
    x, y = fan(9000)
    a, weights = features_of(x), torch.ones(9000).double()
    weights[::2] = 0
    law = fit_varying(a, y, weights, parents=1)
    monkeypatch.setattr(_varying_scale, "ROWS", 1500)
    few = fit_varying(a, y, weights, parents=1)
    again = fit_varying(a[1::6], y[1::6], weights[1::6], parents=1)
    torch.testing.assert_close(few.mean, again.mean)
    assert not torch.allclose(few.mean, law.mean)


def test_laws_of_no_rows_are_finite():
    x, y = fan(500)
    law = fit_varying(features_of(x), y, torch.zeros(500).double(), parents=1)
    assert law.log_density(features_of(x), y).isfinite().all()


def test_laws_of_regimes_vary_and_are_kept():
    x, y, z, _ = regimes()
    table, q = torch.stack([x, y], 1), torch.nn.functional.one_hot(z, 4).double()
    laws = VaryingLaws(
        table,
        torch.tensor([[0, 1], [0, 0]]),
        features=RandomFeatures(table, units=60),
        assumed=Assumptions(varying=True, target=0.01),
    )
    found, targets = laws.log_likelihood(q)
    assert targets.long().tolist() == [[0, 0], [0, 0], [0, 0], [0, 1]]
    marginal = Normal(x.mean(), x.std()).log_prob(x)
    gap = truth(x, y)[z != 3] + marginal[z != 3] - found[z != 3, 0]
    assert gap.mean().abs() < 0.05
    count = len(laws.known)
    joined = torch.stack([q[:, 0] + q[:, 1], q[:, 2], q[:, 3]], 1)
    laws.knowing(torch.tensor([[0, 0], [0, 0], [0, 1]]).bool()).log_likelihood(joined)
    assert len(laws.known) == count  # the same rows share them


def test_not_too_many_laws_are_kept(monkeypatch):
    monkeypatch.setattr(_regime_laws, "KNOWN", 3)
    x, y, z, _ = regimes(2000)
    table, assumed = torch.stack([x, y], 1), Assumptions(varying=True, target=0.01)
    features = RandomFeatures(table, units=20)
    laws = VaryingLaws(table, torch.zeros(2, 2), features=features, assumed=assumed)
    for k in range(1, 4):
        laws.log_likelihood(torch.nn.functional.one_hot(z % k, 4).double())
    assert 0 < len(laws.known) <= 3
