"""The bound of a mixture against sums over all assignments: value, gradient, batches, handlers."""

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from pyro_causal.infer import DPMixtureELBO, DPMixtureGuide
from pyro_causal.infer.acyclicity import trace_exponential
from pyro_causal.infer.elbo import AugmentedLagrangianELBO
from pyro_causal.infer.priors import StickBreaking

K, ALPHA, NOISE, WIDTH = 3, 1.5, 0.8, 2.0
PRIOR = dist.Normal(torch.zeros(K).double(), WIDTH).to_event(1)
LOCS = torch.tensor([-1.0, 0.3, 1.2]).double()
X = torch.tensor([-1.3, 0.1, 0.6, 2.0]).double()


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def known(x: Tensor, z: Tensor | None = None, rows: int | None = None) -> None:
    """Components that are known."""
    w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
    with pyro.plate("rows", rows or len(x), subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(w), obs=z)
        pyro.sample("x", dist.Normal(Vindex(LOCS)[z], NOISE), obs=x)


def unknown(x: Tensor, z: Tensor | None = None, rows: int | None = None) -> None:
    """Components with means that are latent."""
    w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
    loc = pyro.sample("loc", PRIOR)
    with pyro.plate("rows", rows or len(x), subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(w), obs=z)
        pyro.sample("x", dist.Normal(Vindex(loc)[..., z], NOISE), obs=x)


def expected(factor: Callable[[str], Any], x: Tensor, *_: Any) -> Tensor:
    """The expectation of the log-density of each row in each component of `unknown`."""
    q = factor("loc")
    return dist.Normal(q.mean, NOISE).log_prob(x[:, None]) - q.variance / (2 * NOISE**2)


def guide_of(model: Callable[..., Any], *args: Any, **options: Any) -> DPMixtureGuide:
    """A guide in a state that is nothing special."""
    guide = DPMixtureGuide(model, **options)
    guide(X, *args)
    guide.counts.copy_(torch.tensor([1.2, 0.4, 2.1]))
    for factor in guide.factors.values():
        with torch.no_grad():
            factor.loc.copy_(torch.tensor([-0.9, 0.5, 1.0]))
            factor.log_scale.copy_(torch.tensor([-1.0, -0.5, -2.0]))
    return guide


def log_prior(z: tuple[int, ...]) -> float:
    """The probability of assignments, with the weights integrated out."""
    counts = torch.bincount(torch.tensor(z), minlength=K).double()
    total = 0.0
    for k in range(K - 1):
        after = dist.Beta(1 + counts[k], ALPHA + counts[k + 1 :].sum())
        before = dist.Beta(torch.tensor(1.0), torch.tensor(ALPHA))
        total += (log_beta(after) - log_beta(before)).item()
    return total


def log_beta(d: Any) -> Tensor:
    a, b = d.concentration1, d.concentration0
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def log_evidence(latent: bool, fixed: dict[int, int] | None = None) -> float:
    """By the sum over all assignments that agree with the fixed ones."""
    terms = []
    for z in itertools.product(range(K), repeat=len(X)):
        if any(z[n] != k for n, k in (fixed or {}).items()):
            continue
        fit = 0.0
        for k in range(K):
            x = X[torch.tensor(z) == k]
            if latent and len(x):
                cov = WIDTH**2 * torch.ones(len(x), len(x)) + NOISE**2 * torch.eye(len(x))
                fit += dist.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(x).item()
            elif len(x):
                fit += dist.Normal(LOCS[k], NOISE).log_prob(x).sum().item()
        terms.append(log_prior(z) + fit)
    return torch.tensor(terms).logsumexp(0).item()


def brute_force(guide: DPMixtureGuide, ell: Tensor, r: Tensor) -> float:
    """The bound as it is defined, by a sum over all assignments."""
    bound = 0.0
    log_w = guide.sticks.expected_log_weights
    for z in itertools.product(range(K), repeat=len(X)):
        q = math.prod(r[n, k].item() for n, k in enumerate(z))
        for n, k in enumerate(z):
            bound += q * (ell[n, k] + log_w[k] - r[n, k].log()).item()
    sticks = StickBreaking.gem(ALPHA, truncation=K).sticks
    bound -= torch.distributions.kl_divergence(guide.sticks.sticks, sticks).sum().item()
    if "loc" in guide.factors:
        bound -= torch.distributions.kl_divergence(guide.factor("loc"), PRIOR).item()
    return bound


# --- against sums over all assignments ------------------------------------------------------------


def test_the_bound_is_its_definition() -> None:
    ell = dist.Normal(LOCS, NOISE).log_prob(X[:, None])
    guide = guide_of(known)
    r = (ell + guide.sticks.expected_log_weights).softmax(-1)
    bound = -DPMixtureELBO().loss(known, guide, X)
    assert bound == pytest.approx(brute_force(guide, ell, r))
    assert bound > brute_force(guide, ell, (ell / 2).softmax(-1)) + 1e-3  # r is the best
    torch.testing.assert_close(DPMixtureELBO().responsibilities(known, guide, X), r)

    guide = guide_of(unknown, expected=expected)
    ell = expected(guide.factor, X)
    r = (ell + guide.sticks.expected_log_weights).softmax(-1)
    assert -DPMixtureELBO().loss(unknown, guide, X) == pytest.approx(brute_force(guide, ell, r))


def test_it_is_below_the_evidence_and_rises_with_the_counts() -> None:
    guide, loss = guide_of(known), DPMixtureELBO()
    bounds = [-loss.differentiable_loss(known, guide, X).item() for _ in range(30)]
    assert all(after > before - 1e-12 for before, after in itertools.pairwise(bounds))
    assert bounds[0] + 1e-3 < bounds[-1] < log_evidence(latent=False)
    assert bounds[-1] == pytest.approx(log_evidence(latent=False), abs=0.6)
    r = guide.responsibilities(X)
    torch.testing.assert_close(guide.counts, r.sum(0))  # a fixed point


def test_it_is_the_evidence_where_all_rows_have_labels() -> None:
    z = torch.tensor([0, 0, 2, 1])
    fixed = dict(enumerate(z.tolist()))
    guide, loss = guide_of(known), DPMixtureELBO()
    loss.differentiable_loss(known, guide, X, z)
    assert -loss.loss(known, guide, X, z) == pytest.approx(log_evidence(latent=False, fixed=fixed))

    guide = guide_of(unknown, z, expected=expected)
    counts = torch.bincount(z, minlength=K)
    precision = 1 / WIDTH**2 + counts / NOISE**2
    with torch.no_grad():
        guide.factors["loc"].log_scale.copy_(-precision.log() / 2)
        sums = torch.zeros(K).index_add(0, z, X)
        guide.factors["loc"].loc.copy_(sums / NOISE**2 / precision)
    loss.differentiable_loss(unknown, guide, X, z)
    bound = -loss.loss(unknown, guide, X, z)
    assert bound == pytest.approx(log_evidence(latent=True, fixed=fixed))


def test_some_labels() -> None:
    z = torch.tensor([-1, 2, -1, 0])
    guide, loss = guide_of(known), DPMixtureELBO()
    for _ in range(50):
        loss.differentiable_loss(known, guide, X, z)
    evidence = log_evidence(latent=False, fixed={1: 2, 3: 0})
    assert evidence - 0.3 < -loss.loss(known, guide, X, z) < evidence
    r = guide.responsibilities(X, z)
    assert torch.equal(r[1], torch.tensor([0.0, 0.0, 1.0]))
    assert torch.equal(r[3], torch.tensor([1.0, 0.0, 0.0]))
    free = guide.responsibilities(X)
    torch.testing.assert_close(r[[0, 2]], free[[0, 2]])


def test_probabilities_as_labels_are_the_responsibilities() -> None:
    guide, loss = guide_of(known), DPMixtureELBO()
    r = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.1, 0.1, 0.8]])
    torch.testing.assert_close(guide.responsibilities(X, r), r)
    ell = dist.Normal(LOCS, NOISE).log_prob(X[:, None]) + guide.sticks.expected_log_weights
    best = loss.loss(known, guide, X)
    q = ell.softmax(-1)
    kl = (torch.xlogy(r, r) - r * q.log()).sum().item()
    assert loss.loss(known, guide, X, r) == pytest.approx(best + kl)
    hard = nn.functional.one_hot(torch.tensor([2, 0, 1, 1]), K).double()
    assert loss.loss(known, guide, X, hard) == pytest.approx(
        loss.loss(known, guide, X, hard.argmax(-1))
    )
    loss.differentiable_loss(known, guide, X, r)
    torch.testing.assert_close(guide.counts, r.sum(0))


# --- gradients and particles ----------------------------------------------------------------------


def test_the_gradient_is_that_at_fixed_responsibilities() -> None:
    guide = guide_of(unknown, expected=expected)
    r = guide.responsibilities(X)
    parameters = [*guide.factors["loc"].parameters()]
    kl = torch.distributions.kl_divergence(guide.factor("loc"), PRIOR)
    objective = kl - (r * expected(guide.factor, X)).sum()
    slopes = torch.autograd.grad(objective, parameters)
    DPMixtureELBO().loss_and_grads(unknown, guide, X)
    for parameter, slope in zip(parameters, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope)


def test_particles_approach_the_closed_form() -> None:
    guide = guide_of(unknown)
    exact = DPMixtureELBO().loss(unknown, guide_of(unknown, expected=expected), X)
    means = []
    for number in (1, 4, 400):
        loss = DPMixtureELBO(num_particles=number, vectorize_particles=True, max_plate_nesting=1)
        means.append(sum(loss.loss(unknown, guide, X) for _ in range(400)) / 400)
    assert means[0] < means[1] - 0.02 < means[2] - 0.03
    assert means[2] == pytest.approx(exact, abs=0.01)
    assert -means[0] < log_evidence(latent=True)


def test_particles_beside_a_closed_form() -> None:
    def model(x: Tensor) -> None:
        unknown(x)
        with pyro.plate("again", len(x)):  # of the components alike
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x)

    guide = guide_of(unknown, expected=expected)
    extra = -dist.Normal(0.0, 1.0).log_prob(X).sum().item()
    one = DPMixtureELBO().loss(unknown, guide, X)
    for options in ({}, {"vectorize_particles": True}):
        loss = DPMixtureELBO(num_particles=3, **options)
        assert loss.loss(unknown, guide, X) == pytest.approx(one)
        assert loss.loss(model, guide, X) == pytest.approx(one + extra)


@pytest.mark.parametrize("vectorised", [False, True])
def test_a_draw_in_place_of_a_closed_form_is_one_for_each_particle(vectorised: bool) -> None:
    draws: list[Tensor] = []

    def drawn(factor: Callable[[str], Any], x: Tensor, *_: Any) -> Tensor:
        draws.append(dist.Normal(factor("loc").rsample(), NOISE).log_prob(x[:, None]))
        return draws[-1]

    guide = guide_of(unknown, expected=drawn)
    loss = DPMixtureELBO(num_particles=3, vectorize_particles=vectorised, max_plate_nesting=1)
    r = loss.responsibilities(unknown, guide, X)
    assert len(draws) == 3
    logits = guide.sticks.expected_log_weights + sum(draws) / 3
    torch.testing.assert_close(r, logits.softmax(1).detach())


def test_one_particle_is_the_bound_whose_assignments_know_the_others() -> None:
    guide = guide_of(unknown)
    log_w = guide.sticks.expected_log_weights
    loc = guide.factor("loc").sample((20_000,))
    rows = (dist.Normal(loc[:, None], NOISE).log_prob(X[:, None]) + log_w).logsumexp(-1).sum(-1)
    kl = torch.distributions.kl_divergence
    prior = StickBreaking.gem(ALPHA, truncation=K)
    fixed = kl(guide.sticks, prior) + kl(guide.factor("loc"), PRIOR)
    losses = torch.tensor(
        [DPMixtureELBO(max_plate_nesting=1).loss(unknown, guide, X) for _ in range(1000)]
    )
    assert losses.mean().item() == pytest.approx((fixed - rows.mean()).item(), abs=0.06)


def test_particles_at_once_are_particles_one_by_one() -> None:
    guide = guide_of(unknown)
    options = {"num_particles": 3, "max_plate_nesting": 1}
    both = [
        torch.tensor([loss.loss(unknown, guide, X) for _ in range(500)])
        for loss in (DPMixtureELBO(**options), DPMixtureELBO(vectorize_particles=True, **options))
    ]
    error = math.sqrt(sum(losses.var().item() for losses in both) / 500)
    assert abs(both[0].mean() - both[1].mean()) < 4 * error
    assert (both[0].std() / both[1].std()).item() == pytest.approx(1, abs=0.15)
    with torch.no_grad():
        guide.factors["loc"].log_scale.fill_(-40.0)  # without noise they agree exactly
    for vectorize in (False, True):
        loss = DPMixtureELBO(vectorize_particles=vectorize, num_particles=3)
        one = DPMixtureELBO().loss(unknown, guide, X)
        assert loss.loss(unknown, guide, X) == pytest.approx(one)
        assert loss.responsibilities(unknown, guide, X).shape == (4, K)
        loss.differentiable_loss(unknown, guide, X)
        torch.testing.assert_close(guide.counts, guide.responsibilities(X).sum(0), atol=1, rtol=0)
        guide.counts.copy_(torch.tensor([1.2, 0.4, 2.1]))


def test_particles_share_the_rows_that_a_model_draws() -> None:
    """Else the mean over particles would mix rows."""
    far = torch.tensor([-50.0, 50.0])

    def model() -> None:
        w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=2))
        with pyro.plate("rows", 2, subsample_size=1) as index:
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(far[z], 1.0), obs=far[index])

    guide, loss = DPMixtureGuide(model), DPMixtureELBO(num_particles=30)
    for _ in range(5):
        assert loss.responsibilities(model, guide).max() > 0.999
        assert loss.loss(model, guide) < 10


# --- scale, mask, block, batches ------------------------------------------------------------------


def test_batches_are_unbiased() -> None:
    guide = guide_of(unknown, None, 4, expected=expected)
    loss = DPMixtureELBO()
    whole = loss.loss(unknown, guide, X, None, 4)
    batches = [loss.loss(unknown, guide, x, None, 4) for x in X.split([2, 2])]
    assert sum(batches) / 2 == pytest.approx(whole)
    assert abs(batches[0] - batches[1]) > 0.01


def test_counts_are_scaled_and_averaged() -> None:
    guide = guide_of(known, None, 4)
    before, r = guide.counts.clone(), guide.responsibilities(X[:1], None, 4)
    DPMixtureELBO().differentiable_loss(known, guide, X[:1], None, 4)
    torch.testing.assert_close(guide.counts, 0.75 * before + 0.25 * 4 * r[0])
    guide = guide_of(known, None, 4, memory=2.0)
    DPMixtureELBO().differentiable_loss(known, guide, X, None, 4)
    torch.testing.assert_close(
        guide.counts, (before + guide_of(known).responsibilities(X).sum(0)) / 2
    )


@pytest.mark.parametrize("by", ["handler", "per_row"])
def test_division_by_the_number_of_rows(by: str) -> None:
    guide = guide_of(unknown, expected=expected)
    whole = DPMixtureELBO().loss(unknown, guide, X)
    loss = DPMixtureELBO(per_row=by == "per_row")
    scale = 1.0 if by == "per_row" else 1 / len(X)
    model, scaled = poutine.scale(unknown, scale), poutine.scale(guide, scale)
    assert loss.loss(model, scaled, X) == pytest.approx(whole / len(X))
    torch.testing.assert_close(loss.responsibilities(model, scaled, X), guide.responsibilities(X))
    loss.differentiable_loss(model, scaled, X)
    other = guide_of(unknown, expected=expected)
    DPMixtureELBO().differentiable_loss(unknown, other, X)
    torch.testing.assert_close(guide.counts, other.counts)


def test_rows_with_weights() -> None:
    """A row of weight two is two rows."""
    guide = guide_of(known)
    rows = torch.tensor([2.0, 1.0, 1.0, 1.0])

    def weighted(x: Tensor) -> None:
        w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
        with pyro.plate("rows", len(x)), poutine.scale(scale=rows):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(LOCS[z], NOISE), obs=x)

    expanded = X[[0, 0, 1, 2, 3]]
    loss = DPMixtureELBO()
    assert loss.loss(weighted, guide, X) == pytest.approx(loss.loss(known, guide, expanded))
    loss.differentiable_loss(weighted, guide, X)
    other = guide_of(known)
    loss.differentiable_loss(known, other, expanded)
    torch.testing.assert_close(guide.counts, other.counts)


def test_a_site_of_another_scale_is_tempered() -> None:
    def tempered(x: Tensor) -> None:
        w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            with poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(LOCS[z], NOISE), obs=x)

    guide = guide_of(known)
    log_w = guide.sticks.expected_log_weights
    logits = log_w + 0.5 * dist.Normal(LOCS, NOISE).log_prob(X[:, None])
    r = DPMixtureELBO().responsibilities(tempered, guide, X)
    torch.testing.assert_close(r, logits.softmax(-1))


def test_masks() -> None:
    keep = torch.tensor([True, False, True, True])

    def masked(x: Tensor, whole: bool) -> None:
        w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
        with pyro.plate("rows", len(x)):
            with poutine.mask(mask=keep if whole else torch.tensor(True)):
                z = pyro.sample("z", dist.Categorical(w))
            with poutine.mask(mask=keep):
                pyro.sample("x", dist.Normal(LOCS[z], NOISE), obs=x.masked_fill(~keep, 7.0))

    guide, loss = guide_of(known), DPMixtureELBO()
    three = loss.loss(known, guide, X[keep])
    assert loss.loss(masked, guide, X, True) == pytest.approx(three)
    log_w = guide.sticks.expected_log_weights
    assert loss.loss(masked, guide, X, False) == pytest.approx(three - log_w.logsumexp(0).item())
    loss.differentiable_loss(masked, guide, X, True)
    other = guide_of(known)
    loss.differentiable_loss(known, other, X[keep])
    torch.testing.assert_close(guide.counts, other.counts)


def two(x: Tensor, y: Tensor) -> None:
    """Features in a plate of their own, some of them missing, and another site."""
    w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(LOCS[z], NOISE), obs=x)
        with pyro.plate("features", len(y), dim=-2), poutine.mask(mask=y.isfinite()):
            pyro.sample("y", dist.Normal(LOCS[z], 1.0), obs=y.nan_to_num())


def test_plates_within_rows_and_block() -> None:
    y = torch.randn(2, 4)
    y[1, 2] = math.nan
    guide, loss = guide_of(known), DPMixtureELBO()
    log_p = dist.Normal(LOCS, 1.0).log_prob(y.nan_to_num()[..., None])
    ell = dist.Normal(LOCS, NOISE).log_prob(X[:, None]) + log_p.masked_fill(
        y.isnan()[..., None], 0.0
    ).sum(0)
    r = (ell + guide.sticks.expected_log_weights).softmax(-1)
    torch.testing.assert_close(loss.responsibilities(two, guide, X, y), r)
    assert -loss.loss(two, guide, X, y) == pytest.approx(brute_force(guide, ell, r))
    blocked = poutine.block(two, hide=["y"])
    alone = DPMixtureELBO(max_plate_nesting=2).loss(blocked, guide, X, y)
    assert alone == pytest.approx(DPMixtureELBO().loss(known, guide, X))


def test_what_does_not_depend_on_the_assignment_counts_once() -> None:
    def more(x: Tensor) -> None:
        known(x)
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("total", dist.Normal(shift, 1.0), obs=x.sum())

    guide = DPMixtureGuide(more)
    guide(X)
    with torch.no_grad():
        guide.factors["shift"].log_scale.fill_(-0.5)
    plain = DPMixtureGuide(known)
    plain(X)
    extra = torch.tensor(
        [DPMixtureELBO(max_plate_nesting=1).loss(more, guide, X) for _ in range(1500)]
    )
    q = guide.factor("shift")
    kl = torch.distributions.kl_divergence(q, dist.Normal(torch.tensor(0.0), 1.0))
    fit = dist.Normal(q.mean, 1.0).log_prob(X.sum()) - q.variance / 2
    difference = extra.mean().item() - DPMixtureELBO().loss(known, plain, X)
    assert difference == pytest.approx((kl - fit).item(), abs=0.08)


def test_a_latent_of_each_row_from_the_rest() -> None:
    """Its divergence enters the responsibilities, since its prior depends on the component."""

    def model(x: Tensor) -> None:
        w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            h = pyro.sample("h", dist.Normal(LOCS[z], 0.5))
            pyro.sample("x", dist.Normal(h, 0.3), obs=x)

    def local(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("h", dist.Normal(0.8 * x, 0.2))

    guide = DPMixtureGuide(model, rest=local)
    q, prior = dist.Normal(0.8 * X[:, None], 0.2), dist.Normal(LOCS, 0.5)
    logits = -torch.distributions.kl_divergence(q, prior)
    r = DPMixtureELBO().responsibilities(model, guide, X)
    log_w = guide.sticks.expected_log_weights
    torch.testing.assert_close(r, (logits + log_w).softmax(-1))


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_what_a_label_counts_for(kappa: float) -> None:
    z = torch.tensor([-1, 2, -1, 0])
    guide, other = guide_of(known, z), guide_of(known, z)
    ell = dist.Normal(LOCS, NOISE).log_prob(X[:, None]) + guide.sticks.expected_log_weights
    kl = torch.distributions.kl_divergence(guide.sticks, StickBreaking.gem(ALPHA, truncation=K))
    r = ell.softmax(-1)
    expected = ell.logsumexp(-1).sum() + kappa * (r[1, 2].log() + r[3, 0].log()) - kl
    loss = DPMixtureELBO(label_weight=kappa)
    assert loss.loss(known, guide, X, z) == DPMixtureELBO().loss(known, guide, X, z)  # the bound
    value = loss.differentiable_loss(known, guide, X, z)
    assert value.item() == pytest.approx(-expected.item())
    r[[1, 3]] *= 1 - kappa
    r[1, 2] += kappa
    r[3, 0] += kappa
    torch.testing.assert_close(guide.counts, r.sum(0))
    given = nn.functional.one_hot(z.clamp(min=0), K).double()  # which count in full
    value = loss.differentiable_loss(known, other, X, given)
    assert value.item() == pytest.approx((kl - (given * ell).sum()).item())


@pytest.mark.parametrize("kappa", [-0.1, 1.1, math.nan])
def test_a_wrong_weight_of_labels(kappa: float) -> None:
    with pytest.raises(ValueError, match=f"expected a label_weight from 0 to 1, got {kappa}. Give"):
        DPMixtureELBO(label_weight=kappa)


def test_what_the_closed_form_replaces_is_not_computed() -> None:
    class Dear(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            raise AssertionError

    def model(x: Tensor) -> None:
        w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
        pyro.sample("loc", PRIOR)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", Dear(torch.zeros(len(x)), 1.0), obs=x)

    guide = guide_of(model, expected=expected)
    loss = DPMixtureELBO(max_plate_nesting=1)
    assert loss.loss(model, guide, X) == loss.loss(unknown, guide, X)


# --- temperature, amortised assignments, other guides, forms --------------------------------------


def test_temperature() -> None:
    guide = guide_of(known)
    ell = dist.Normal(LOCS, NOISE).log_prob(X[:, None])
    r = (ell / 4 + guide.sticks.expected_log_weights).softmax(-1)
    plain, tempered = DPMixtureELBO(), DPMixtureELBO(temperature=4.0)
    assert tempered.loss(known, guide, X) == plain.loss(known, guide, X)
    logits = ell / 4 + guide.sticks.expected_log_weights
    kl = torch.distributions.kl_divergence(guide.sticks, StickBreaking.gem(ALPHA, truncation=K))
    value = tempered.differentiable_loss(known, guide, X).item()
    assert value == pytest.approx((kl - logits.logsumexp(-1).sum()).item())
    torch.testing.assert_close(guide.counts, r.sum(0))


def test_temperature_by_steps_is_state() -> None:
    seen: list[int] = []

    def schedule(step: int) -> float:
        seen.append(step)
        return max(1.0, 3.0 - step)

    guide = guide_of(known)
    loss = DPMixtureELBO(temperature=schedule)
    loss.loss(known, guide, X)
    with torch.no_grad():
        loss.differentiable_loss(known, guide, X)
    for _ in range(3):
        loss.loss_and_grads(known, guide, X)
    assert seen[1:] == [0, 0, 1, 2]
    other = DPMixtureELBO(temperature=schedule)
    other.load_state_dict(loss.state_dict())
    other.differentiable_loss(known, guide, X)
    assert seen[-1] == 3


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_wrong_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"a temperature above zero, got {temperature} at step 0"):
        DPMixtureELBO(temperature=temperature)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, K))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.net(x[:, None])


def test_amortised_assignments_learn_the_responsibilities() -> None:
    z = torch.tensor([-1, 2, -1, 0])
    guide = guide_of(unknown, z, network=Network(), expected=expected)
    loss = DPMixtureELBO()
    bound = loss.loss(unknown, guide, X, z)
    r, q = guide.responsibilities(X, z), guide.network(X).softmax(-1)
    gap = (torch.xlogy(r, r) - r * q.log()).sum()
    value = loss.differentiable_loss(unknown, guide, X, z)
    assert value.item() == pytest.approx(bound + gap.item())
    value.backward()
    without = guide_of(unknown, z, expected=expected)
    DPMixtureELBO().loss_and_grads(unknown, without, X, z)
    for name, parameter in without.factors.named_parameters():  # the network teaches nobody
        torch.testing.assert_close(guide.factors.get_parameter(name).grad, parameter.grad)
    optimiser = torch.optim.Adam(guide.network.parameters(), 0.02)
    for _ in range(500):
        optimiser.zero_grad()
        loss.differentiable_loss(unknown, guide, X, z).backward()
        optimiser.step()
    r = guide.responsibilities(X, z)
    torch.testing.assert_close(guide.network(X).softmax(-1), r, atol=0.03, rtol=0)


def test_amortised_assignments_of_other_rows() -> None:
    class Short(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(2, K)

    guide = DPMixtureGuide(known, network=Short())
    message = r"At site 'z', the guide's assignments: expected shape \(4, 3\) as in .*got \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        DPMixtureELBO(max_plate_nesting=1).differentiable_loss(known, guide, X)


def test_any_guide_of_sticks_is_trained_by_its_gradient() -> None:
    a, b = (nn.Parameter(torch.zeros(K - 1)) for _ in range(2))

    def own(x: Tensor) -> None:
        pyro.sample("weights", StickBreaking(a.exp(), b.exp()))

    guide, loss = guide_of(known), DPMixtureELBO()
    optimiser = torch.optim.Adam([a, b], 0.05)
    for _ in range(600):
        loss.differentiable_loss(known, guide, X)
        optimiser.zero_grad()
        loss.loss_and_grads(known, own, X)
        optimiser.step()
    best = loss.loss(known, guide, X)
    assert best - 1e-9 < loss.loss(known, own, X) < best + 1e-5
    torch.testing.assert_close(b.exp(), guide.sticks.concentration0.clone(), atol=0.02, rtol=0)


def positive(x: Tensor) -> None:
    w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
    noise = pyro.sample("noise", dist.Gamma(3.0, 2.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(LOCS[z], noise), obs=x)


def test_automatic_guides_of_the_rest() -> None:
    """What they draw is weighed by their whole density, the change of variables included."""
    rest = AutoNormal(poutine.block(positive, expose=["noise"]), init_scale=0.3)
    own, listed = DPMixtureGuide(positive, init_scale=0.3), DPMixtureGuide(positive, rest=rest)
    own(X), listed(X)
    with torch.no_grad():
        own.factors["noise"].loc.copy_(rest.locs.noise)
    losses = [
        torch.tensor([DPMixtureELBO(max_plate_nesting=1).loss(positive, g, X) for _ in range(1500)])
        for g in (own, listed)
    ]
    assert losses[0].mean().item() == pytest.approx(losses[1].mean().item(), abs=0.05)
    point = DPMixtureGuide(positive, rest=AutoDelta(poutine.block(positive, expose=["noise"])))
    assert math.isfinite(DPMixtureELBO().loss(positive, point, X))


def test_the_weights_have_no_noise_whatever_the_order() -> None:
    def model(x: Tensor) -> None:
        alpha = pyro.sample("alpha", dist.Gamma(2.0, 1.0))
        w = pyro.sample("weights", StickBreaking.gem(alpha, truncation=K))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(LOCS[z], NOISE), obs=x)

    guide = DPMixtureGuide(model, rest=AutoDelta(poutine.block(model, expose=["alpha"])))
    losses = {DPMixtureELBO(max_plate_nesting=1).loss(model, guide, X) for _ in range(5)}
    assert max(losses) - min(losses) < 1e-12

    def own(x: Tensor) -> None:  # it might draw alpha from the weights, for all we know
        pyro.sample("weights", StickBreaking(torch.full((2,), 1.5), torch.ones(2)))
        pyro.sample("alpha", dist.Delta(guide.rest.alpha.detach()))

    noisy = torch.tensor(
        [DPMixtureELBO(max_plate_nesting=1).loss(model, own, X) for _ in range(999)]
    )
    prior = StickBreaking.gem(guide.rest.alpha.detach(), truncation=K)
    q = poutine.trace(own).get_trace(X).nodes["weights"]["fn"]
    kl = torch.distributions.kl_divergence(q, prior).item()
    ell = dist.Normal(LOCS, NOISE).log_prob(X[:, None]) + q.expected_log_weights
    alone = kl - ell.logsumexp(-1).sum() - dist.Gamma(2.0, 1.0).log_prob(guide.rest.alpha)
    assert noisy.mean().item() == pytest.approx(alone.item(), abs=0.1)


def test_forms() -> None:
    guide = guide_of(unknown, expected=expected)
    module = DPMixtureELBO()(unknown, guide)
    assert {id(p) for p in module.parameters()} == {id(p) for p in guide.parameters()}
    assert "guide.counts" in module.state_dict()
    value = module(X)
    guide.counts.copy_(torch.tensor([1.2, 0.4, 2.1]))
    assert DPMixtureELBO().loss_and_grads(unknown, guide, X) == pytest.approx(value.item())
    guide.counts.copy_(torch.tensor([1.2, 0.4, 2.1]))
    svi = SVI(unknown, guide, pyro.optim.SGD({"lr": 0.0}), DPMixtureELBO())
    assert svi.evaluate_loss(X) == pytest.approx(value.item())
    assert svi.step(X) == pytest.approx(value.item())
    assert svi.evaluate_loss(X) < value.item()  # the counts have moved


def test_it_takes_a_constraint() -> None:
    logits = nn.Parameter(torch.zeros(2, 2))
    guide = guide_of(unknown, expected=expected)
    bound = DPMixtureELBO().loss(unknown, guide, X)
    loss = AugmentedLagrangianELBO(
        DPMixtureELBO(), trace_exponential, matrix=lambda: logits.sigmoid(), penalty=2.0
    )
    h = trace_exponential(logits.sigmoid()).item()
    assert "elbo.steps" in loss.state_dict()
    assert loss(unknown, guide)(X).item() == pytest.approx(bound + h**2)
    guide.counts.copy_(torch.tensor([1.2, 0.4, 2.1]))
    assert loss.loss_and_grads(unknown, guide, X) == pytest.approx(bound + h**2)
    assert loss.loss(unknown, guide, X) < bound


# --- errors ---------------------------------------------------------------------------------------


def test_missing_sites() -> None:
    def renamed(x: Tensor) -> None:
        w = pyro.sample("weight", StickBreaking.gem(ALPHA, truncation=K))
        with pyro.plate("rows", len(x)):
            pyro.sample("c", dist.Categorical(w))

    with pytest.raises(ValueError, match="No site 'weights' for the weights.*mean 'weight'"):
        DPMixtureGuide(renamed)(X)
    with pytest.raises(
        ValueError, match="No site 'z' for the assignment.*weight, c. Name that of the model"
    ):
        DPMixtureGuide(renamed, weights="weight")(X)
    guide = DPMixtureGuide(renamed, weights="weight", assignment="c")
    with pytest.raises(ValueError, match="No site 'weights' for the weights.*mean 'weight'"):
        DPMixtureELBO().loss(renamed, guide, X)
    with pytest.raises(ValueError, match="No site 'z' for the assignment"):
        DPMixtureELBO(weights="weight").loss(renamed, guide, X)
    loss = DPMixtureELBO(weights="weight", assignment="c")
    assert loss.responsibilities(renamed, guide, X).shape == (4, K)


def test_what_is_no_mixture() -> None:
    def build(
        weights: Any = None, assignment: Any = None, grouped: bool = False
    ) -> Callable[..., Any]:
        def model(x: Tensor) -> None:
            with pyro.plate("groups", 1, dim=-2) if grouped else nullcontext():
                w = pyro.sample("weights", weights or StickBreaking.gem(1.0, truncation=K))
            with pyro.plate("rows", len(x)):
                pyro.sample("z", assignment(w) if assignment else dist.Categorical(w))

        return model

    good = DPMixtureGuide(known)
    for model, message in (
        (
            build(dist.Dirichlet(torch.ones(K))),
            "At site 'weights', the weights in the model: expected a StickBreaking, got Dirichlet",
        ),
        (
            build(assignment=lambda w: dist.OneHotCategorical(w)),
            "At site 'z', the assignment: expected Categorical.weights., got OneHotCategorical",
        ),
        (
            build(assignment=lambda w: dist.Categorical(w.flip(-1))),
            "At site 'z', the assignment: expected Categorical.weights. with the value of",
        ),
        (
            build(grouped=True),
            "At site 'weights', the weights are in the plate 'groups': expected one set",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            DPMixtureELBO(max_plate_nesting=2).loss(model, good, X)
    with pytest.raises(ValueError, match="the weights: expected a StickBreaking, got Dirichlet"):
        DPMixtureGuide(build(dist.Dirichlet(torch.ones(K))))(X)


def test_sites_that_do_not_match() -> None:
    guide = guide_of(unknown)
    loss = DPMixtureELBO(max_plate_nesting=1)
    with pytest.raises(
        ValueError, match="At site 'loc', the guide has no such site: expected a fa"
    ):
        loss.loss(unknown, poutine.block(guide, hide=["loc"]), X)
    with pytest.raises(ValueError, match="At site 'loc', the guide draws what is no latent of the"):
        loss.loss(poutine.block(unknown, hide=["loc"]), guide, X)

    def coarse(x: Tensor) -> None:
        pyro.sample("weights", StickBreaking.gem(1.0, truncation=K))
        pyro.sample("noise", dist.Gamma(3.0, 2.0).mask(True))

    def discrete(x: Tensor) -> None:
        pyro.sample("weights", StickBreaking.gem(1.0, truncation=K))
        pyro.sample("noise", dist.Poisson(30.0))

    loss.loss(positive, coarse, X)
    with pytest.raises(
        ValueError, match="At site 'noise', a draw of Poisson in the guide has no g"
    ):
        loss.loss(positive, discrete, X)


def test_what_is_observed_has_no_factor_in_the_closed_form() -> None:
    guide = guide_of(unknown, expected=expected)
    fixed = poutine.condition(unknown, {"loc": LOCS})
    message = "At site 'loc', the model observes what the guide's closed form takes from a factor"
    for hidden in ([], ["loc"]):
        with pytest.raises(ValueError, match=message):
            DPMixtureELBO(max_plate_nesting=1).loss(fixed, poutine.block(guide, hide=hidden), X)


def test_a_site_outside_of_the_rows() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(LOCS[z].mean(-1, keepdim=True), 1.0), obs=x[:1])

    guide = DPMixtureGuide(model)
    guide(X)
    with pytest.raises(ValueError, match="At site 'x', it depends on 'z' outside of its plate"):
        DPMixtureELBO(max_plate_nesting=1).loss(model, guide, X)


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 1, 3, -1]),
        torch.tensor([0, 1, -2, -1]),
        torch.tensor([0, 1, 2]),
        torch.tensor([0.0, 1.0, 2.0, 0.0]),
        torch.full((4, K + 1), 0.25),
        torch.full((4, K), 1.1),
    ],
)
def test_wrong_labels(labels: Tensor) -> None:
    guide = DPMixtureGuide(known)
    guide(X)
    message = r"At site 'z', the labels: expected whole numbers from -1 \(unknown\) to 2.*got torch"
    with pytest.raises(ValueError, match=message):
        DPMixtureELBO(max_plate_nesting=1).loss(known, guide, X, labels)


def test_obs_mask_is_told_of() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("weights", StickBreaking.gem(ALPHA, truncation=K))
        with pyro.plate("rows", len(x)):
            given = torch.tensor([True, False, True, False])
            pyro.sample("z", dist.Categorical(w), obs=torch.zeros(4).long(), obs_mask=given)

    with pytest.raises(ValueError, match="give labels as obs, -1 where unknown, and no obs_mask"):
        DPMixtureGuide(model)(X)


def test_labels_do_not_disturb_other_losses() -> None:
    z = torch.tensor([0, 1, 2, 2])
    guide = guide_of(known, z)
    assert math.isfinite(Trace_ELBO().loss(known, guide, X, z))
