"""The guide of a mixture: clusters recovered, batches, labels, checkpoints, any components."""

import copy
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from pyro.infer.autoguide import init_to_value
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from pyro_causal.infer import DPMixtureELBO, DPMixtureGuide, fit
from pyro_causal.infer.guides import BinaryFactor, GraphFactor, RealFactor
from pyro_causal.infer.priors import BernoulliGraph, StickBreaking, graph_prior

K, ROWS, CLUSTERS = 16, 400, 5


def gaussians(x: Tensor, z: Tensor | None = None, rows: int | None = None) -> None:
    """A plain mixture of an unknown number of Gaussians."""
    w = pyro.sample("weights", StickBreaking.gem(1.0, truncation=K))
    with pyro.plate("components", K):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("rows", rows or len(x), subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(w), obs=z)
        pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)


def clusters(seed: int) -> tuple[Tensor, Tensor]:
    """Points around five centres at least four deviations apart."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        centres = 6 * torch.randn(CLUSTERS, 2, generator=generator)
        if torch.pdist(centres).min() > 4:
            break
    z = torch.randint(CLUSTERS, (ROWS,), generator=generator)
    return centres[z] + torch.randn(ROWS, 2, generator=generator), z


def started(x: Tensor, number: int = K, **options: Any) -> DPMixtureGuide:
    """A guide that starts at clusters of k-means."""
    means = KMeans(number, n_init=1, random_state=0).fit(x.numpy())
    r = nn.functional.one_hot(torch.tensor(means.labels_).long(), number)
    centres = torch.tensor(means.cluster_centers_)[r.sum(0).argsort(descending=True, stable=True)]
    spare = 10 * torch.randn(K - number, 2)
    start = init_to_value(values={"loc": torch.cat([centres, spare])})
    guide = DPMixtureGuide(gaussians, init_loc_fn=start, **options)
    guide(x)
    guide.set_responsibilities(r)
    return guide


def annealed(step: int) -> float:
    return max(1.0, 10 ** (1 - step / 300))


def bound(guide: DPMixtureGuide, x: Tensor) -> float:
    loss = DPMixtureELBO(num_particles=100, max_plate_nesting=1)
    return -loss.loss(gaussians, guide, x)


# --- clusters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_an_unknown_number_of_clusters_is_found(seed: int) -> None:
    x, truth = clusters(seed)
    guide = started(x)
    loss = DPMixtureELBO(per_row=True, temperature=annealed)
    fit(gaussians, guide, loss=loss, data=x, epochs=450, lr=0.05)
    assert guide.used() == CLUSTERS
    assert adjusted_rand_score(truth, guide.assign(x)) > 0.93
    sizes = truth.bincount().sort(descending=True).values / ROWS
    found = guide.weights.sort(descending=True).values[:CLUSTERS]
    torch.testing.assert_close(found, sizes, atol=0.02, rtol=0)
    assert guide.weights.sum().item() == pytest.approx(1)


def test_batches_come_to_the_optimum_of_the_whole() -> None:
    x, _ = clusters(1)
    whole, batches = started(x, CLUSTERS), started(x, CLUSTERS)

    def model(x: Tensor) -> None:
        gaussians(x, rows=ROWS)

    for lr, epochs in ((0.05, 400), (0.01, 200)):
        loss = DPMixtureELBO(per_row=True)
        fit(model, whole, loss=loss, data=x, epochs=epochs, lr=lr)
        fit(model, batches, loss=loss, data=x, batch_size=100, epochs=epochs // 4, lr=lr)
    assert batches.used() == whole.used() == CLUSTERS
    assert bound(batches, x) == pytest.approx(bound(whole, x), abs=4)
    order = [guide.counts.argsort(descending=True)[:CLUSTERS] for guide in (whole, batches)]
    torch.testing.assert_close(whole.counts[order[0]], batches.counts[order[1]], atol=3, rtol=0)
    locs = [g.factor("loc").mean[o] for g, o in zip((whole, batches), order, strict=True)]
    torch.testing.assert_close(*locs, atol=0.1, rtol=0)
    assert adjusted_rand_score(whole.assign(x), batches.assign(x)) > 0.97


def test_labels_of_some_rows_name_the_components() -> None:
    x, truth = clusters(2)
    labels = torch.where(torch.arange(ROWS) < 40, truth, -1)
    guide = DPMixtureGuide(gaussians)
    loss = DPMixtureELBO(per_row=True)
    known = labels >= 0
    fit(gaussians, guide, loss=loss, data={"x": x[known], "z": labels[known]}, epochs=200, lr=0.1)
    fit(gaussians, guide, loss=loss, data={"x": x, "z": labels}, epochs=100, lr=0.05)
    assert (guide.assign(x, labels)[known] == truth[known]).all()
    assert (guide.assign(x) == truth).float().mean() > 0.97  # the same names, no permutation


def test_new_rows() -> None:
    x, truth = clusters(0)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, K))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x / 6)

    guide = started(x, network=Network())
    loss = DPMixtureELBO(per_row=True, temperature=annealed)
    fit(gaussians, guide, loss=loss, data={"x": x[100:]}, epochs=450, lr=0.05)
    exact, amortised = guide.assign(x[:100]), guide.network(x[:100]).argmax(-1)
    assert adjusted_rand_score(truth[:100], exact) > 0.93
    assert (exact == amortised).float().mean() > 0.95
    draws = Predictive(gaussians, guide=guide, num_samples=3)(x[:100])
    assert (draws["z"].squeeze() == amortised).float().mean() > 0.9
    torch.testing.assert_close(draws["loc"].mean(0), guide.factor("loc").mean, atol=20, rtol=0)


# --- anybody's components -------------------------------------------------------------------------


def test_a_poisson_mixture() -> None:
    truth = torch.arange(300) % 3
    x = dist.Poisson(torch.tensor([1.0, 12.0, 50.0])[truth]).sample()

    def model(x: Tensor) -> None:
        w = pyro.sample("pi", StickBreaking.gem(1.0, truncation=8))
        with pyro.plate("components", 8):
            rate = pyro.sample("rate", dist.LogNormal(2.0, 2.0))
        with pyro.plate("rows", len(x)):
            c = pyro.sample("c", dist.Categorical(w))
            pyro.sample("x", dist.Poisson(rate[c]), obs=x)

    guide = DPMixtureGuide(model, weights="pi", assignment="c")
    loss = DPMixtureELBO(weights="pi", assignment="c", per_row=True, temperature=annealed)
    fit(model, guide, loss=loss, data=x, epochs=450, lr=0.05)
    assert adjusted_rand_score(truth, guide.assign(x)) > 0.95
    assert guide.used(share=0.05) == 3
    q = guide.factor("rate")
    found = q.loc.exp()[guide.counts > 15].sort().values
    torch.testing.assert_close(found, torch.tensor([1.0, 12.0, 50.0]), rtol=0.1, atol=0.2)


def test_a_mixture_of_categories() -> None:
    truth = torch.arange(400) % 2
    probs = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
    x = torch.stack([dist.Categorical(probs[truth]).sample() for _ in range(8)], -1)

    def model(x: Tensor) -> None:
        w = pyro.sample("weights", StickBreaking.gem(1.0, truncation=6))
        with pyro.plate("components", 6):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Categorical(p[z].unsqueeze(-2)).to_event(1), obs=x)

    guide = DPMixtureGuide(model)
    loss = DPMixtureELBO(per_row=True)
    fit(model, guide, loss=loss, data=x, epochs=400, lr=0.05)
    assert adjusted_rand_score(truth, guide.assign(x)) > 0.9
    assert guide.factor("p").sample().shape == (6, 3)


def test_binary_targets_are_found() -> None:
    """Which coordinates a component moves: affine in the target, so that draws are unbiased."""
    targets = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0]])
    truth = torch.arange(300) % 3
    x = targets[truth] * 5 + torch.randn(300, 4)

    def model(x: Tensor, z: Tensor | None = None) -> None:
        w = pyro.sample("weights", StickBreaking.gem(1.0, truncation=3))
        with pyro.plate("components", 3):
            r = pyro.sample("r", dist.Bernoulli(torch.full((4,), 0.2)).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w), obs=z)
            moved, still = (dist.Normal(loc, 1.0).log_prob(x) for loc in (5.0, 0.0))
            pyro.factor("x", (r[z] * moved + (1 - r[z]) * still).sum(-1))

    guide = DPMixtureGuide(model)
    loss = DPMixtureELBO(per_row=True)
    fit(model, guide, loss=loss, data={"x": x, "z": truth}, epochs=150, lr=0.1)
    fit(model, guide, loss=loss, data={"x": x}, epochs=50, lr=0.1)
    assert torch.equal(guide.factor("r").mean.round(), targets)
    assert adjusted_rand_score(truth, guide.assign(x)) > 0.95


def test_a_concentration_that_is_latent() -> None:
    def model(x: Tensor) -> None:
        alpha = pyro.sample("alpha", dist.Gamma(2.0, 1.0))
        w = pyro.sample("weights", StickBreaking.gem(alpha, truncation=K))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(10.0 * z, 1.0), obs=x)

    guide = DPMixtureGuide(model, memory=20.0)
    x = torch.cat([torch.randn(50), 10 + torch.randn(50)])
    fit(model, guide, loss=DPMixtureELBO(), data=x, epochs=600, lr=0.02)
    q = guide.factor("alpha")
    alpha = q.sample((1000,)).mean()
    assert alpha < 1.0  # two components of sixteen
    torch.testing.assert_close(guide.prior0.mean(), alpha, atol=0.2, rtol=0)
    assert torch.equal(guide.prior1, torch.ones(K - 1))


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pyro", "torch"])
def test_resume_is_exact(kind: str, tmp_path: Path) -> None:
    x, _ = clusters(3)

    def model(x: Tensor) -> None:
        gaussians(x, rows=ROWS)

    def run(epochs: int, path: Path, resume: bool) -> DPMixtureGuide:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = DPMixtureGuide(model)
        fit(
            model,
            guide,
            loss=DPMixtureELBO(temperature=annealed),
            data=x,
            batch_size=128,
            epochs=epochs,
            checkpoint=path,
            resume=resume,
            optim=pyro.optim.Adam({"lr": 0.05}) if kind == "pyro" else None,
        )
        return guide

    straight = run(6, tmp_path / "a.pt", False)
    run(3, tmp_path / "b.pt", False)
    resumed = run(6, tmp_path / "b.pt", True)
    states = straight.state_dict(), resumed.state_dict()
    assert {"counts", "prior1", "prior0", "factors.loc.loc", "factors.loc.log_scale"} == {
        *states[0]
    }
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert straight.counts.sum().item() > 300


def test_a_state_can_be_copied() -> None:
    x, _ = clusters(0)
    guide, other = started(x), DPMixtureGuide(gaussians)
    other(x)
    other.load_state_dict(guide.state_dict())
    assert bound(other, x) == pytest.approx(bound(guide, x), rel=0.02)
    assert torch.equal(copy.deepcopy(guide).counts, guide.counts)


def test_plain_svi() -> None:
    x, truth = clusters(4)
    guide = started(x)
    svi = SVI(gaussians, guide, pyro.optim.Adam({"lr": 0.05}), DPMixtureELBO())
    losses = [svi.step(x) for _ in range(150)]
    assert losses[-1] < losses[0] - 10
    assert adjusted_rand_score(truth, guide.assign(x)) > 0.85
    assert "factors$$$loc.loc" in pyro.get_param_store()


def test_counts_move_in_training_only() -> None:
    x, _ = clusters(0)
    guide, loss = started(x), DPMixtureELBO(max_plate_nesting=1)
    before = guide.counts.clone()
    loss.loss(gaussians, guide, x)
    guide.responsibilities(x)
    with torch.no_grad():
        loss.differentiable_loss(gaussians, guide, x)
    guide.eval()
    loss.loss_and_grads(gaussians, guide, x)
    assert torch.equal(guide.counts, before)
    guide.train()
    with pytest.warns(UserWarning, match="Encountered NaN"), pyro.validation_enabled(False):
        loss.loss_and_grads(gaussians, guide, x.clone().fill_(math.nan))
    assert torch.equal(guide.counts, before)
    loss.loss_and_grads(gaussians, guide, x)
    assert not torch.equal(guide.counts, before)


def test_initial_responsibilities() -> None:
    x, _ = clusters(0)
    guide = DPMixtureGuide(gaussians)
    guide(x)
    r = torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.4, 0.6]])
    given = guide.set_responsibilities(r)
    torch.testing.assert_close(given[:, :3], r[:, [2, 1, 0]])
    assert torch.equal(given[:, 3:], torch.zeros(2, K - 3))
    torch.testing.assert_close(guide.counts, given.sum(0))
    assert guide.used() == 3 and guide.used(share=0.2) == 2
    kept = guide.set_responsibilities(r, sort=False)
    torch.testing.assert_close(kept, nn.functional.pad(r, (0, K - 3)))
    torch.testing.assert_close(guide.counts, kept.sum(0))
    for wrong in (torch.ones(2), r[:, :2], torch.full((4, K + 1), 1 / (K + 1)), 2 * r - r.flip(-1)):
        with pytest.raises(
            ValueError, match=r"responsibilities \[N, k\] of up to 16 components whi"
        ):
            guide.set_responsibilities(wrong)


# --- factors --------------------------------------------------------------------------------------


def test_factors_by_support() -> None:
    def model() -> None:
        w = pyro.sample("weights", StickBreaking.gem(1.0, truncation=3))
        with pyro.plate("components", 3, dim=-2), pyro.plate("features", 4, dim=-1):
            pyro.sample("real", dist.Normal(0.0, 1.0))
            pyro.sample("vector", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
            pyro.sample("net.weight", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
            pyro.sample("positive", dist.LogNormal(0.0, 1.0))
            pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
            pyro.sample("binary", dist.Bernoulli(torch.full((5,), 0.3)).to_event(1))
        with pyro.plate("rows", 7):
            pyro.sample("z", dist.Categorical(w))

    guide = DPMixtureGuide(model)
    trace = poutine.trace(guide).get_trace()
    prior = poutine.trace(model).get_trace()
    for name in ("real", "vector", "net.weight", "positive", "simplex", "binary"):
        ours, theirs = trace.nodes[name]["fn"], prior.nodes[name]["fn"]
        assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
        assert theirs.support.check(trace.nodes[name]["value"]).all()
        assert trace.nodes[name]["value"].requires_grad, name
        if name != "simplex":
            kl = torch.distributions.kl_divergence(ours, theirs)
            assert kl.shape == (3, 4) and (kl > 0).all()
    losses = {DPMixtureELBO(max_plate_nesting=2).loss(model, guide) for _ in range(3)}
    assert max(losses) - min(losses) < 50  # only the simplex has noise
    assert isinstance(guide.factors["net/weight"], RealFactor)


def test_binary_draws_have_an_unbiased_gradient() -> None:
    factor = BinaryFactor(torch.zeros(2), event_dim=1)
    with torch.no_grad():
        factor.logits.copy_(torch.tensor([0.3, -1.0]))
    draws = factor().rsample((20_000,))
    assert {*draws.detach().flatten().tolist()} == {0.0, 1.0}
    f = 2 * draws[:, 0] + 3 * draws[:, 1] - 4 * draws.prod(-1)
    (slope,) = torch.autograd.grad(f.mean(), [factor.logits])
    p = factor.logits.sigmoid()
    exact = 2 * p[0] + 3 * p[1] - 4 * p.prod()
    (expected,) = torch.autograd.grad(exact, [factor.logits])
    torch.testing.assert_close(slope, expected, atol=0.01, rtol=0)


def test_graph_draws_have_an_unbiased_gradient() -> None:
    factor = GraphFactor(BernoulliGraph(torch.full((3, 3), 0.2)))
    with torch.no_grad():
        factor.logits.copy_(torch.tensor([[9.0, 0.3, -1.0], [0.5, 9.0, -2.0], [0.0, 1.0, 9.0]]))
    draws = factor().rsample((20_000,))
    assert {*draws.detach().flatten().tolist()} == {0.0, 1.0}
    assert not draws.diagonal(dim1=1, dim2=2).any()  # no loops
    torch.testing.assert_close(draws.mean(0), factor().probs, atol=0.02, rtol=0)
    f = 2 * draws[:, 0, 1] - 3 * draws[:, 0, 1] * draws[:, 2, 1]
    (slope,) = torch.autograd.grad(f.mean(), [factor.logits])
    p = factor.logits.sigmoid()
    exact = 2 * p[0, 1] - 3 * p[0, 1] * p[2, 1]
    (expected,) = torch.autograd.grad(exact, [factor.logits])
    torch.testing.assert_close(slope, expected, atol=0.01, rtol=0)


def test_certain_edges_have_neither_noise_nor_gradient() -> None:
    prior = graph_prior(3, probability=0.1, required=[(0, 1)], forbidden=[(1, 2)])
    factor = GraphFactor(prior)
    q = factor()
    assert q.probs[0, 1] == 1 and q.probs[1, 2] == 0 and q.probs[2, 0] == 0.5
    assert isinstance(q, BernoulliGraph) and q.has_rsample
    wide = q.expand((5,))
    assert wide.has_rsample and wide.rsample().shape == (5, 3, 3)
    draw = wide.rsample((7,))
    assert draw.shape == (7, 5, 3, 3)
    assert (draw[..., 0, 1] == 1).all() and (draw[..., 1, 2] == 0).all()
    kl = torch.distributions.kl_divergence(q, prior)
    free = 0.5 * math.log(0.5 / 0.1) + 0.5 * math.log(0.5 / 0.9)
    assert kl.item() == pytest.approx(3 * free)  # 0 -> 2, 2 -> 0, 2 -> 1
    (slope,) = torch.autograd.grad(kl + draw.sum(), [factor.logits])
    assert (slope != 0).int().tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0]]


def test_a_graph_gets_such_a_factor() -> None:
    prior = graph_prior(3, required=[(0, 1)])

    def model(x: Tensor) -> None:
        w = pyro.sample("weights", StickBreaking.gem(1.0, truncation=3))
        graph = pyro.sample("graph", prior)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(3 * graph[..., 2, 0, None], 1.0), obs=x)

    guide = DPMixtureGuide(model)
    x = 3 + torch.randn(50)
    fit(model, guide, loss=DPMixtureELBO(per_row=True), data=x, epochs=100, lr=0.1)
    assert isinstance(guide.factors["graph"], GraphFactor)
    assert guide.factor("graph").probs[2, 0] > 0.9 and guide.factor("graph").probs[0, 1] == 1


def test_frozen_parts_are_frozen_on_purpose() -> None:
    """No warning, whatever is trained beside them."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    x, _ = clusters(0)
    guide = DPMixtureGuide(gaussians, network=Network())
    guide(x)
    for parameter in (guide.factors["loc"].loc, guide.network.net.weight):
        parameter.requires_grad_(False)
    pyro.clear_param_store()
    before = copy.deepcopy(dict(guide.named_parameters()))
    svi = SVI(gaussians, guide, pyro.optim.Adam({"lr": 0.05}), DPMixtureELBO())
    svi.step(x)
    assert {*pyro.get_param_store()} == {"factors$$$loc.log_scale", "network$$$net.bias"}
    changed = {n for n, p in guide.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"factors.loc.log_scale", "network.net.bias"}


def test_it_can_be_set_up_without_a_draw() -> None:
    x, _ = clusters(0)
    guide = DPMixtureGuide(gaussians, network=nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, K)))
    guide.set_up(x[:1])  # a network might not take one row
    assert "loc" in guide.factors and guide.counts.shape == (K,)
    factor = guide.factors["loc"]
    guide(x)
    assert guide.factors["loc"] is factor


# --- errors ---------------------------------------------------------------------------------------


def test_it_has_to_be_called_first() -> None:
    guide = DPMixtureGuide(gaussians)
    message = "DPMixtureGuide: it has not seen the model yet.*Call it with the model's arguments"
    for ask in (
        lambda: guide.sticks,
        lambda: guide.weights,
        guide.used,
        lambda: guide.factor("loc"),
        lambda: guide.set_responsibilities(torch.ones(2, 1)),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize("name", ["memory", "init_scale"])
def test_wrong_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"DPMixtureGuide: expected a positive {name}, got 0.0"):
        DPMixtureGuide(gaussians, **{name: 0.0})


def test_sites_without_a_factor() -> None:
    def model(kind: str) -> None:
        w = pyro.sample("weights", StickBreaking.gem(1.0, truncation=3))
        if kind == "count":
            pyro.sample("count", dist.Poisson(3.0))
        with pyro.plate("rows", 7):
            pyro.sample("z", dist.Categorical(w))
            if kind == "local":
                pyro.sample("h", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="At site 'count', a Poisson is neither real nor binary"):
        DPMixtureGuide(model)("count")
    with pytest.raises(
        ValueError, match="At site 'h', a latent for each of 'rows': expected latents"
    ):
        DPMixtureGuide(model)("local")
    guide = DPMixtureGuide(model)
    guide("plain")
    with pytest.raises(ValueError, match="No factor of 'loc': expected one of weights. Ask for"):
        guide.factor("loc")


@pytest.mark.parametrize("shape", [(ROWS, K - 1), (K,)])
def test_a_network_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(shape)

    with pytest.raises(
        ValueError, match=r"At site 'z', the network returns shape .*expected logit"
    ):
        DPMixtureGuide(gaussians, network=Wrong())(clusters(0)[0])


def test_factors_may_be_frozen() -> None:
    x, _ = clusters(0)
    guide = started(x, CLUSTERS)
    guide.factors.requires_grad_(False)
    assert not guide(x)["loc"].requires_grad  # and no warning


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_divergence_of_binary_factors(dtype: torch.dtype) -> None:
    """As torch's, but finite for odds whose probability rounds to zero or one."""
    factor = BinaryFactor(torch.zeros(4, dtype=dtype), event_dim=1)
    with torch.no_grad():
        factor.logits.copy_(torch.tensor([-2.0, 0.5, 3.0, 0.0]))
    prior = torch.tensor([-1.0, 0.0, 2.0, 0.3], dtype=dtype)
    p = factor()

    def divergence(**parameters: Tensor) -> Tensor:
        return torch.distributions.kl_divergence(p, dist.Bernoulli(**parameters).to_event(1))

    plain = dist.Bernoulli(logits=factor.logits)
    expected = torch.distributions.kl_divergence(plain, dist.Bernoulli(logits=prior)).sum()
    torch.testing.assert_close(divergence(logits=prior), expected)
    torch.testing.assert_close(divergence(probs=prior.sigmoid()), expected)
    far = torch.full((4,), -3000.0, dtype=dtype)
    cost = (3000 * p.mean - dist.Bernoulli(logits=factor.logits).entropy()).sum()
    torch.testing.assert_close(divergence(logits=far), cost)
    torch.testing.assert_close(divergence(logits=-far), cost + 3000 * (1 - 2 * p.mean).sum())
    for certain in (0.0, 1.0):
        assert divergence(probs=torch.full((4,), certain, dtype=dtype)) == torch.inf
