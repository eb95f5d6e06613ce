"""Noise of categories, binary values and counts: draws from its exact posterior."""

import math

import pyro.distributions as dist
import pytest
import torch
from families import COUNTS, DISCRETE, Case, draw
from scipy import stats

from pyro_causal.noise import abduct, predict

N = 20_000
LOGITS = torch.tensor([0.3, -1.0, 0.8, -0.2])
OTHER = torch.tensor([-0.9, 0.4, 0.5, -1.5])


def frequencies(x, size):
    return torch.bincount(x.long(), minlength=size)[:size] / len(x)


def fits(x, probs):
    """Chi-square test of counts against probabilities; rare values and what is left make a cell."""
    probs = torch.as_tensor(probs, dtype=torch.float64)
    common = probs > 1e-3
    observed = torch.bincount(x.long(), minlength=len(probs))[: len(probs)][common].double()
    expected = len(x) * probs[common]
    rest = 1 - probs[common].sum()
    if rest > 1e-6:
        observed = torch.cat([observed, len(x) - observed.sum(0, keepdim=True)])
        expected = torch.cat([expected, len(x) * rest[None]])
    expected *= observed.sum() / expected.sum()
    return stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3


# --- categories -----------------------------------------------------------------------------------


def test_counterfactual_categories_follow_the_other_mechanism():
    d, other = dist.Categorical(logits=LOGITS), dist.Categorical(logits=OTHER)
    x = d.sample((N,))
    y = predict(other, abduct(d, x))
    assert fits(y, other.probs)
    assert (x == y).float().mean() > (d.probs * other.probs).sum() + 0.1  # shared, not fresh


def test_a_class_whose_odds_do_not_fall_never_loses():
    """Counterfactual stability: Oberst & Sontag 2019, definition 2 and theorem 1."""
    d, other = dist.Categorical(logits=LOGITS), dist.Categorical(logits=OTHER)
    x = d.sample((N,))
    y = predict(other, abduct(d, x))
    rise = OTHER - LOGITS
    moved = x != y
    assert moved.any()
    assert (rise[y[moved]] > rise[x[moved]]).all()


def test_one_class_raised_takes_from_all_and_others_stay():
    d, other = dist.Categorical(logits=LOGITS), dist.Categorical(logits=LOGITS + torch.eye(4)[1])
    x = d.sample((N,))
    y = predict(other, abduct(d, x))
    assert set(y[x != y].tolist()) == {1}


def test_class_labels_mean_nothing():
    order = torch.tensor([2, 0, 3, 1])
    d, other = dist.Categorical(logits=LOGITS), dist.Categorical(logits=OTHER)
    x = d.sample((N,))
    u = abduct(d, x)
    y = predict(other, u)
    z = predict(dist.Categorical(logits=OTHER[order]), u[:, order])
    assert torch.equal(order[z], y)
    shuffled = dist.Categorical(logits=LOGITS[order])
    again = predict(dist.Categorical(logits=OTHER[order]), abduct(shuffled, order.argsort()[x]))
    moves, again = (frequencies(4 * x + v, 16) for v in (y, order[again]))
    torch.testing.assert_close(moves, again, atol=0.02, rtol=0.0)


def test_one_hot_is_a_category_in_another_dress():
    d, other = dist.OneHotCategorical(logits=LOGITS), dist.OneHotCategorical(logits=OTHER)
    u = abduct(d, d.sample((50,)))
    y = predict(other, u)
    assert torch.equal(y.argmax(-1), predict(dist.Categorical(logits=OTHER), u))
    assert y.sum(-1).eq(1).all()


def test_straight_through_keeps_its_gradient():
    logits = LOGITS.clone().requires_grad_()
    d = dist.OneHotCategoricalStraightThrough(logits=logits)
    x = predict(d, abduct(d, torch.eye(4)[2]))
    assert x.tolist() == [0.0, 0.0, 1.0, 0.0]
    (gradient,) = torch.autograd.grad(x[2], logits, retain_graph=True)
    (expected,) = torch.autograd.grad(d.probs[2], logits)
    torch.testing.assert_close(gradient, expected)


def test_discrete_noise_carries_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    rate = torch.tensor(3.0, requires_grad=True)
    for d in [dist.Categorical(logits=logits), dist.Bernoulli(logits=logits), dist.Poisson(rate)]:
        u = abduct(d, torch.tensor(1.0))
        assert not u.requires_grad
        assert not predict(d, u).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1.0, 1e2, 1e5])
def test_rounding_never_changes_the_winner(dtype, spread):
    logits = spread * torch.randn(2000, 50, dtype=dtype)
    for shift in (0.0, 1e4):
        d = dist.Categorical(logits=logits + shift)
        x = torch.randint(50, (2000,))
        assert torch.equal(predict(d, abduct(d, x)), x)
    one = dist.Bernoulli(logits=logits)
    x = torch.randint(2, logits.shape).to(dtype)
    assert torch.equal(predict(one, abduct(one, x)), x)


def test_a_single_class():
    d = dist.Categorical(torch.ones(3, 1))
    x = torch.zeros(3, dtype=torch.long)
    u = abduct(d, x)
    assert u.isfinite().all()
    assert torch.equal(predict(d, u), x)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: dist.Categorical(p),
        lambda p: dist.Categorical(logits=p.log()),
        lambda p: dist.OneHotCategorical(p),
    ],
    ids=["probs", "logits", "one_hot"],
)
def test_zero_probability_classes_never_come_up(make):
    d = make(torch.tensor([0.5, 0.0, 0.5]))
    x = draw(d, (N,))
    u = abduct(d, x)
    assert u.isfinite().all()
    assert stats.kstest(u[:, 1].numpy(), stats.gumbel_r.cdf).pvalue > 1e-3  # nothing is learnt
    other = dist.Categorical(torch.tensor([0.0, 0.3, 0.7]))
    y = predict(other, u)
    assert not (y == 0).any()
    assert fits(y[y > 0] - 1, torch.tensor([0.3, 0.7]))


def test_no_noise_reaches_a_class_of_probability_zero():
    u = torch.tensor([0.0, 1e9, 0.0])
    assert predict(dist.Categorical(torch.tensor([0.5, 0.0, 0.5])), u) != 1
    assert predict(dist.OneHotCategorical(torch.tensor([0.5, 0.0, 0.5])), u)[1] == 0.0
    never, always = torch.tensor([0.0, 1.0])
    assert predict(dist.Bernoulli(never), u[1]) == 0.0
    assert predict(dist.Bernoulli(always), -u[1]) == 1.0
    assert predict(dist.Binomial(5, never), torch.tensor(30.0)) == 0.0
    assert predict(dist.Binomial(5, always), torch.tensor(-30.0)) == 5.0


def test_an_impossible_class_is_kept_in_every_world():
    d = dist.Categorical(torch.tensor([[0.5, 0.0, 0.5], [0.2, 0.6, 0.2]]))
    u = abduct(d, torch.tensor(1))
    assert not u.isnan().any()
    assert u[1].isfinite().all()  # where it is possible all is well
    assert predict(d, u[:1]).tolist() == [1, 1]
    d = dist.Bernoulli(torch.tensor([0.0, 1.0, 0.5]))
    u = abduct(d, torch.tensor([1.0, 0.0, 1.0]))
    assert predict(d, u).tolist() == [1.0, 0.0, 1.0]
    assert predict(dist.Bernoulli(0.5), u).tolist() == [1.0, 0.0, 1.0]


# --- binary values --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1e-6, 0.2, 0.5, 1 - 1e-6])
def test_binary_values_are_monotone_in_their_logit(p):
    d, up, down = (dist.Bernoulli(torch.tensor(p).logit().add(v).sigmoid()) for v in (0, 1, -1))
    x = torch.arange(N).remainder(2).float()
    u = abduct(d, x)
    assert torch.equal(predict(d, u), x)
    assert (predict(up, u) >= x).all()
    assert (predict(down, u) <= x).all()


def test_counterfactual_binary_values_follow_the_other_mechanism():
    d, other = dist.Bernoulli(torch.tensor(0.3)), dist.Bernoulli(torch.tensor(0.6))
    x = d.sample((N,))
    y = predict(other, abduct(d, x))
    assert fits(y, torch.tensor([0.4, 0.6]))
    assert fits(y[x == 0], torch.tensor([4.0, 3.0]) / 7)  # 0.4 of the 0.7 stay at zero


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", COUNTS, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_come_back_exactly(case: Case, dtype):
    d = case((4,), dtype)
    x = draw(d, (500,))
    u = abduct(d, x)
    assert u.dtype == torch.float64
    y = predict(d, u)
    assert y.dtype == x.dtype
    assert torch.equal(y, x)


@pytest.mark.parametrize(
    "case", [c for c in COUNTS if not c().event_shape], ids=lambda case: case.name
)
def test_counterfactual_counts_follow_the_other_mechanism(case: Case):
    d = case((2,), torch.float64)
    x = draw(d, (N,))
    y = predict(d, abduct(d, x).flip(-1))
    size = {"binomial": 11, "ordered_logistic": 4}.get(case.name, 60)
    values = torch.arange(size, dtype=x.dtype)
    probs = d.log_prob(values.unsqueeze(-1)).exp()
    assert all(fits(y[:, i], probs[:, i]) for i in range(2))


def test_counts_are_monotone_in_their_rate():
    rate = torch.tensor([2.0, 5.0, 5.0, 9.0])
    d = dist.Poisson(rate)
    y = predict(d, abduct(d, dist.Poisson(rate[1]).sample((N, 1)))[:, 1:2])
    assert (y[:, 0] <= y[:, 1]).all()
    assert torch.equal(y[:, 1], y[:, 2])
    assert (y[:, 2] <= y[:, 3]).all()


@pytest.mark.parametrize(
    ("d", "x"),
    [
        (dist.Poisson(1e6), [990_000.0, 1e6, 1_010_000.0]),
        (dist.Poisson(1e-6), [0.0, 1.0, 5.0]),
        (dist.Geometric(1e-6), [0.0, 3.0, 1e5, 1e7]),
        (dist.Binomial(1_000_000, 1e-6), [0.0, 1.0, 9.0]),
        (dist.Binomial(7, 1.0), [7.0]),
        (dist.NegativeBinomial(0.1, 0.999), [0.0, 40.0, 5000.0]),
        (dist.ZeroInflatedPoisson(torch.tensor(1e4), gate=torch.tensor(0.5)), [0.0, 9900.0]),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, dist.Distribution) else str(len(v)),
)
def test_counts_under_extreme_parameters(d, x):
    x = torch.tensor(x)
    for _ in range(20):
        assert torch.equal(predict(d, abduct(d, x)), x)


def test_abduction_leaves_the_distribution_as_it_was():
    gate_logits = torch.zeros(3)
    d = dist.ZeroInflatedPoisson(torch.ones(3), gate_logits=gate_logits)
    predict(d, abduct(d, torch.ones(3)))
    assert d.expand((2, 3)).batch_shape == (2, 3)


def test_an_impossible_count_abducts_to_the_nearest_possible_one():
    d = dist.Binomial(torch.tensor([3.0, 8.0]), 0.5)
    u = abduct(d, torch.tensor([5.0, 5.0]))
    assert u.tolist()[0] == math.inf
    assert predict(d, u).tolist() == [3.0, 5.0]
    assert predict(dist.Poisson(2.0), abduct(dist.Poisson(2.0), torch.tensor(-1.0))) == 0.0


@pytest.mark.parametrize("case", DISCRETE + COUNTS, ids=lambda case: case.name)
def test_noise_is_drawn_afresh_for_each_batch_entry(case: Case):
    d = case((2,), torch.float64)
    u = abduct(d, draw(d)[:1].expand(1000, 2, *d.event_shape))
    assert u.shape[:2] == (1000, 2)
    assert (u[:, 0].reshape(1000, -1).std(0) > 1e-3).all()
