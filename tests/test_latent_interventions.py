"""LatentInterventions: closed forms, what is observed, training, findings, files, errors."""

import copy
import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from torch import Tensor, nn

from pyro_causal import CounterfactualPredictive, causal_graph, do, fit, query
from pyro_causal.datasets import draw_interventional_scm, sample_interventional_table
from pyro_causal.infer.acyclicity import is_dag
from pyro_causal.infer.elbo import AugmentedLagrangianELBO
from pyro_causal.infer.priors import graph_prior
from pyro_causal.infer.structural_em import structural_em
from pyro_causal.mechanisms import Recorded
from pyro_causal.methods import DeepSCM, LatentInterventions
from pyro_causal.metrics import adjusted_rand_index

N, D, K = 60, 3, 4
EDGES = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])  # a chain, x0 -> x1 -> x2
TARGETS = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]])
LABELS = torch.arange(N) % (K + 1) - 1  # some unknown
KINDS = ["stochastic", "imperfect"]
DENSITIES = ["linear", "nonlinear", "flow"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_density = pytest.mark.parametrize("density", DENSITIES)
Options = Mapping[str, Any]


class Network(Recorded):
    """Logits of the components, from rows and what is known of labels."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, hidden), nn.Tanh(), nn.Linear(hidden, K))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return self.net(x)


def rows(size: int = N) -> Tensor:
    mixed = torch.tensor([[1, 0.9, 0], [0, 1, -0.8], [0, 0, 1]]).double()
    return 2 * torch.randn(size, D).double() @ mixed + torch.tensor([1.0, -3.0, 0.5])


def make(kind: str = "stochastic", *, x: Tensor | None = None, **options: Any) -> Any:
    """A method in a state that is nothing special, but for draws that are nearly certain."""
    method = LatentInterventions(nodes=D, intervention=kind, truncation=K, **options).double()
    method.set_normalisation(rows() if x is None else x)
    factors = method.guide.factors
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
        factors["graph"].logits.copy_(60.0 * EDGES - 30)
        factors["contexts"].log_scale.fill_(math.log(1e-8))
        method.guide.counts.copy_(torch.tensor([20.0, 5.0, 30.0, 1.0]))
    return method


def bound(method: Any, *args: Any, **options: Any) -> float:
    loss = method.loss(constraint=None, **options)
    return loss.loss(method.model, method.guide, *args)


# --- closed forms ---------------------------------------------------------------------------------


def bernoulli_divergence(p: Tensor, q: Tensor) -> Tensor:
    return p * (p.log() - q.log()) + (1 - p) * ((-p).log1p() - (-q).log1p())


def laws(method: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-densities of a linear method: base [N, d], targets that are cut and not [K, N, d]."""
    theta, graph = method.guide.factor("contexts").mean.detach(), EDGES.double()
    scale, loc = torch.std_mean(x, 0, correction=0)
    u = (x - loc) / scale

    def density(k: int, adjacency: Tensor) -> Tensor:
        mean = u @ (adjacency * theta[k, :D]) + theta[k, D]
        deviation = ((2 * theta[k, D + 1]).exp() + 1e-6).sqrt()
        return dist.Normal(mean, deviation).log_prob(u) - scale.log()

    own = torch.stack([density(k, 0 * graph) for k in range(1, 1 + K)])
    kept = torch.stack([density(k, graph) for k in range(1, 1 + K)])
    return density(0, graph), own, kept


def loss_by_hand(method: Any, x: Tensor, z: Tensor | None, alpha: float = 1.0) -> float:
    """The loss of a linear method, with a draw that is certain of graph and contexts."""
    factors, guide = method.guide.factors, method.guide
    base, own, kept = laws(method, x)
    r = method.targets.double()
    divergence = torch.tensor(0.0).double()
    odds = torch.tensor(-method.target * len(x)).double().sigmoid()
    if "targets" in factors:
        r = factors["targets"].logits.detach().sigmoid()
        divergence += bernoulli_divergence(r, odds).sum()
    else:  # its prior is that of an observation
        divergence -= (r * odds.log() + (1 - r) * (-odds).log1p()).sum()
    if method.intervention == "imperfect":
        cut = factors["cut"].logits.detach().sigmoid()
        divergence += bernoulli_divergence(cut, torch.tensor(0.5)).sum()
        own = cut[:, None] * own + (1 - cut[:, None]) * kept
    p = torch.sigmoid(60.0 * EDGES.double() - 30)
    price = torch.tensor(-method.edge * len(x)).double().sigmoid()
    divergence += bernoulli_divergence(p, price)[~torch.eye(D).bool()].sum()
    m, log_s = (p.detach() for p in (factors["contexts"].loc, factors["contexts"].log_scale))
    divergence += (((2 * log_s).exp() + m**2 - 1) / 2 - log_s).sum()
    a = 1 + guide.counts[:-1]
    b = alpha + guide.counts.flip(0).cumsum(0).flip(0)[1:]
    one, full = torch.ones(K - 1).double(), torch.full((K - 1,), alpha).double()
    normaliser = torch.lgamma(one) + torch.lgamma(full) - torch.lgamma(one + full)
    normaliser -= torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    slopes = (a - 1) * a.digamma() + (b - full) * b.digamma()
    divergence += (normaliser + slopes + (1 + full - a - b) * (a + b).digamma()).sum()
    left = torch.cat([torch.zeros(1), (b.digamma() - (a + b).digamma()).cumsum(0)])
    log_w = left + torch.cat([a.digamma() - (a + b).digamma(), torch.zeros(1)])
    ell = log_w + (base @ (1 - r).T) + torch.einsum("knd,kd->nk", own, r)
    fit = ell.logsumexp(1)
    if z is not None:
        fit = torch.where(z >= 0, ell.gather(1, z.clamp(min=0)[:, None]).squeeze(1), fit)
    return ((divergence - fit.sum()) / len(x)).item()


@every_kind
@pytest.mark.parametrize("known", [None, TARGETS], ids=["latent", "known"])
@pytest.mark.parametrize(
    "z", [None, LABELS, LABELS.clamp(min=0), 0 * LABELS], ids=["none", "some", "all", "base"]
)
def test_the_loss_is_its_formula(kind: str, known: Tensor | None, z: Tensor | None) -> None:
    """Of the mixture of rows, and each divergence once: weights, graph, targets, cuts, contexts."""
    x = rows()
    method = make(kind, x=x, targets=known, edge=0.02, target=0.05)
    assert bound(method, x, z) == pytest.approx(loss_by_hand(method, x, z), rel=1e-6)
    method.edge, method.target = 0.0, 0.01
    assert bound(method, x, z) == pytest.approx(loss_by_hand(method, x, z), rel=1e-6)


def test_the_concentration() -> None:
    x = rows()
    method = LatentInterventions(nodes=D, truncation=K, concentration=2.5).double()
    method.set_normalisation(x)
    with torch.no_grad():
        method.guide.factors["graph"].logits.copy_(60.0 * EDGES - 30)
        method.guide.factors["contexts"].log_scale.fill_(math.log(1e-8))
    assert bound(method, x) == pytest.approx(loss_by_hand(method, x, None, 2.5), rel=1e-6)


@every_kind
def test_the_density_of_rows_is_its_formula(kind: str) -> None:
    """At the means of weights and contexts, and the most probable graph, targets and cuts."""
    x = rows()
    method = make(kind, x=x)
    base, own, kept = laws(method, x)
    if kind == "imperfect":
        cut = method.guide.factors["cut"].logits > 0
        assert cut.any() and not cut.all()
        own = torch.where(cut[:, None], own, kept)
    r = (method.guide.factors["targets"].logits > 0).double()
    assert torch.equal(method.targets, r.bool()) and 0 < r.mean() < 1
    terms = base @ (1 - r).T + torch.einsum("knd,kd->nk", own, r)
    a, b = 1 + method.guide.counts[:-1], 1 + method.guide.counts.flip(0).cumsum(0).flip(0)[1:]
    v = torch.cat([a / (a + b), torch.ones(1)])
    w = v * torch.cat([torch.ones(1), (1 - v[:-1]).cumprod(0)])
    found = method.log_likelihood(x)
    torch.testing.assert_close(found, (w.log() + terms).logsumexp(1))
    assert not found.requires_grad
    new = rows(7)
    torch.testing.assert_close(method.log_likelihood(torch.cat([x, new]))[:N], found)


@every_kind
def test_responsibilities(kind: str) -> None:
    x = rows()
    method = make(kind, x=x)
    r = method.responsibilities(x)
    assert r.shape == (N, K)
    torch.testing.assert_close(r.sum(1), torch.ones(N).double())
    labelled = method.responsibilities(x, LABELS)
    known = LABELS >= 0
    assert torch.equal(labelled[known].argmax(1), LABELS[known])
    assert torch.equal(labelled[known].amax(1), torch.ones(int(known.sum())).double())
    torch.testing.assert_close(labelled[~known], r[~known], atol=1e-5, rtol=0)
    assert method.responsibilities(rows(5)).shape == (5, K)
    assert method.responsibilities(rows(100)).shape == (100, K)  # more than were seen


@every_kind
def test_responsibilities_are_those_of_what_was_found(kind: str) -> None:
    """However uncertain the guide, nothing is drawn."""
    method = make(kind)
    with torch.no_grad():
        method.guide.factors["graph"].logits.copy_(EDGES - 0.5)
        method.guide.factors["contexts"].log_scale.fill_(0.0)
    x = rows()
    r = method.responsibilities(x)
    equations, cut = method.program().equations, torch.ones_like(TARGETS, dtype=torch.bool)
    if kind == "imperfect":
        cut = method.guide.factor("cut").mean >= 0.5
    kept, none = (equations.log_prob(x, g).detach() for g in (method.adjacency, 0 * EDGES))
    terms = [
        kept[0].where(~method.targets[k], none[k + 1].where(cut[k], kept[k + 1])).sum(1)
        for k in range(K)
    ]
    logits = method.guide.sticks.expected_log_weights + torch.stack(terms, 1)
    torch.testing.assert_close(r, logits.softmax(1).detach())
    assert torch.equal(method.responsibilities(x), r)
    with pytest.raises(ValueError, match="expected labels below 4, the number of components, got"):
        method.responsibilities(x, LABELS + 1)
    with pytest.raises(ValueError, match="expected labels from -1, unknown, got -2. Count"):
        method.responsibilities(x, LABELS - 1)


def test_prices_are_nats_for_each_row() -> None:
    x = rows(1000)
    free = make(x=x, edge=0.1, target=0.1)
    with torch.no_grad():
        free.guide.factors["targets"].logits.copy_(60.0 * TARGETS - 30)
    before = bound(free, x)
    free.edge = 0.15
    assert bound(free, x) - before == pytest.approx(0.05 * EDGES.sum().item(), rel=1e-4)
    free.edge, free.target = 0.1, 0.13
    assert bound(free, x) - before == pytest.approx(0.03 * TARGETS.sum().item(), rel=1e-4)
    certain = make(x=x, edges=EDGES, edge=0.0)  # which cost nothing
    before, certain.edge = bound(certain, x), 10.0
    assert bound(certain, x) == pytest.approx(before, rel=1e-6)


def test_prices_of_many_rows_are_finite() -> None:
    """Odds of exp(-3e5), which single precision rounds to zero."""
    x = rows()
    method = make(x=x, edge=0.01, target=0.03)
    method.rows.fill_(10_000_000)
    expected = bound(method, x)
    one = bound(method.float(), x.float())
    assert math.isfinite(one)
    assert one == pytest.approx(expected, rel=1e-3)


@every_density
@every_kind
def test_batches_are_unbiased(density: str, kind: str) -> None:
    x = rows()
    method = make(kind, x=x, density=density)
    for z in (None, LABELS):
        whole = bound(method, x, z)
        parts = [bound(method, x[i::3], z if z is None else z[i::3]) for i in range(3)]
        assert sum(parts) / 3 == pytest.approx(whole, rel=1e-6)
        assert max(parts) - min(parts) > 1e-4


def test_kappa() -> None:
    """What a label counts for in training: 0, nothing, to 1, all."""
    x = rows()
    method = make(x=x).eval()  # counts stay
    values = {}
    for kappa in (0.0, 0.25, 1.0):
        loss = method.loss(constraint=None, kappa=kappa)
        values[kappa] = loss.differentiable_loss(method.model, method.guide, x, LABELS).item()
        assert loss.loss(method.model, method.guide, x, LABELS) == pytest.approx(
            bound(method, x, LABELS), rel=1e-6
        )  # the bound itself
    assert values[0.0] == pytest.approx(bound(method, x), rel=1e-6)
    assert values[0.25] == pytest.approx(0.75 * values[0.0] + 0.25 * values[1.0], rel=1e-6)
    assert values[1.0] > values[0.0] + 0.1
    with pytest.raises(ValueError, match="expected a label_weight from 0 to 1, got 1.5"):
        method.loss(kappa=1.5)


# --- the program ----------------------------------------------------------------------------------


def sites(trace: Any) -> dict[str, tuple[torch.Size, torch.Size]]:
    return {
        name: (site["fn"].batch_shape, site["fn"].event_shape)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and name != "rows"
    }


@every_density
@every_kind
def test_sites_and_shapes(density: str, kind: str) -> None:
    x = rows()
    method = LatentInterventions(nodes=D, density=density, intervention=kind, truncation=K).double()
    none = torch.Size()
    context = (1 + K, D + 2, D) if density == "linear" else (1 + K, 8)
    latent = {
        "weights": (none, (K,)),
        "graph": (none, (D, D)),
        "targets": (none, (K, D)),
        **({"cut": (none, (K, D))} if kind == "imperfect" else {}),
        "contexts": (none, context),
    }
    assert sites(poutine.trace(method.guide).get_trace(x)) == latent
    found = sites(poutine.trace(method.model).get_trace(x, LABELS.clamp(min=0)))
    assert found == {**latent, "z": ((N,), none), "x": ((N,), (D,))}


def test_known_targets_are_observed() -> None:
    method = LatentInterventions(nodes=D, targets=TARGETS)
    assert "targets" not in sites(poutine.trace(method.guide).get_trace(rows()))
    site = poutine.trace(method.model).get_trace(rows().float()).nodes["targets"]
    assert site["is_observed"] and torch.equal(site["value"], TARGETS.float())
    assert torch.equal(method.targets, TARGETS.bool()) and method.truncation == K


def test_where_regimes_start() -> None:
    """Linear ones at standard normals; contexts of networks apart from each other."""
    linear, network = (LatentInterventions(nodes=D, density=name) for name in DENSITIES[:2])
    assert not linear.guide.factors["contexts"].loc.any()
    assert torch.pdist(network.guide.factors["contexts"].loc.detach()).min() > 0.1


def test_rows_of_a_batch_stand_for_all() -> None:
    method = make()
    trace = poutine.trace(method.model).get_trace(rows()[:20])
    assert trace.nodes["x"]["scale"] == 3.0
    method.rows.zero_()
    assert poutine.trace(method.model).get_trace(rows()).nodes["x"]["scale"] == 1.0


@every_kind
def test_the_model_draws_rows_from_its_graph(kind: str) -> None:
    method = make(kind)
    given = {
        "graph": EDGES.double(),
        "targets": TARGETS.double(),
        "contexts": method.guide.factor("contexts").mean,
    }
    model = poutine.condition(method.model, given)
    assert model().shape == (1, D) and model(size=5).shape == (5, D)
    z = torch.arange(K).repeat_interleave(2000)
    draws = model(z=z)
    assert draws.shape == (len(z), D) and not draws.requires_grad
    if kind == "stochastic":
        for k in range(K):
            expected = torch.stack([*component(method, k)(size=2000).values()], 1).detach()
            difference = (draws[z == k].mean(0) - expected.mean(0)) / expected.std(0)
            assert difference.abs().max() < 0.15, k
    with pytest.raises(ValueError, match="graph of a draw has a cycle"):
        poutine.condition(method.model, {"graph": (EDGES + EDGES.T).double()})(size=5)


def component(method: Any, k: int | None) -> Any:
    """A program with the targets of the tests."""
    with torch.no_grad():
        method.guide.factors["targets"].logits.copy_(60.0 * TARGETS - 30)
    return method.program(k)


def test_posterior_predictive_draws() -> None:
    method = make()
    draws = Predictive(method.model, guide=method.guide, num_samples=3)(size=11)
    assert draws["x"].shape == (3, 11, D)
    assert torch.equal(draws["graph"].reshape(3, D, D), EDGES.double().expand(3, D, D))


def test_handlers_apply() -> None:
    x = rows()
    method = make(x=x)
    loss, whole = method.loss(constraint=None), bound(method, x)
    scaled = [poutine.scale(program, scale=3.0) for program in (method.model, method.guide)]
    assert loss.loss(*scaled, x) == pytest.approx(whole, rel=1e-6)  # for each row, as it is
    trace = poutine.trace(method.guide).get_trace(x)
    replayed = poutine.trace(poutine.replay(method.model, trace=trace)).get_trace(x, 0 * LABELS)
    for name in ("weights", "graph", "targets", "contexts"):
        assert torch.equal(replayed.nodes[name]["value"], trace.nodes[name]["value"])
    assert replayed.log_prob_sum().isfinite()
    fixed = poutine.condition(method.model, {"graph": EDGES.double()})
    with pytest.raises(
        ValueError, match="At site 'graph', the model observes what the guide's clo"
    ):
        loss.loss(fixed, poutine.block(method.guide, hide=["graph"]), x)
    masked = poutine.trace(poutine.mask(method.model, mask=False)).get_trace(x)
    assert masked.log_prob_sum() == 0
    hidden = poutine.trace(poutine.block(method.model, hide=["x"])).get_trace(x)
    assert "x" not in hidden.nodes and "z" in hidden.nodes


# --- training -------------------------------------------------------------------------------------


def state(method: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """The parts whose values have changed."""
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    return {name.removeprefix("guide.").removeprefix("factors.").split(".")[0] for name in changed}


@every_density
@every_kind
def test_both_ways_to_train_are_one(density: str, kind: str) -> None:
    x = rows()
    first = LatentInterventions(nodes=D, density=density, intervention=kind, truncation=K).double()
    first.set_normalisation(x)
    second = copy.deepcopy(first)

    torch.manual_seed(1)
    svi = SVI(first.model, first.guide, pyro.optim.SGD({"lr": 0.1}), first.loss())
    losses = [svi.step(x) for _ in range(3)]
    assert {*pyro.get_param_store().values()} == {*first.parameters()}

    torch.manual_seed(1)
    module = second.loss()(second.model, second.guide)
    assert {*module.parameters()} == {*second.parameters()}
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    for expected in losses:
        optimiser.zero_grad()
        loss = module(x)
        loss.backward()
        optimiser.step()
        assert loss.item() == pytest.approx(expected)
    for name, value in state(first).items():
        torch.testing.assert_close(value, state(second)[name], msg=name)
    parts = {"graph", "targets", "contexts", "counts"} | ({"cut"} if kind == "imperfect" else set())
    parts |= {"equations"} if density != "linear" else set()
    assert moved(state(make(kind, x=x, density=density)), state(first)) >= parts


@every_density
def test_training_lowers_the_loss(density: str) -> None:
    x = rows()
    method = LatentInterventions(nodes=D, density=density, intervention="imperfect", truncation=K)
    method.double().set_normalisation(x)
    before = sum(bound(method, x) for _ in range(5)) / 5
    fit(method.model, method.guide, loss=method.loss(), data={"x": x}, epochs=60, lr=0.03)
    after = sum(bound(method, x) for _ in range(5)) / 5
    assert after < before - 0.1


def test_temperature() -> None:
    method, x = make().eval(), rows()
    hot, plain = (method.loss(constraint=None, temperature=t) for t in (4.0, 1.0))
    at = [loss.differentiable_loss(method.model, method.guide, x).item() for loss in (hot, plain)]
    logits = method.guide.sticks.expected_log_weights, method._expected(method.guide.factor, x)
    rise = (logits[0] + logits[1] / 4).logsumexp(1) - (logits[0] + logits[1]).logsumexp(1)
    assert at[0] == pytest.approx(at[1] - rise.mean().item(), rel=1e-3)


@pytest.mark.parametrize("optim", ["pyro", "torch"])
def test_structure_can_be_held_fast(optim: str) -> None:
    """To the bit, before and after it was trained, and without a warning."""
    x = rows()
    method = LatentInterventions(nodes=D, density="nonlinear", truncation=K).double()
    method.set_normalisation(x)
    loss = method.loss()
    if optim == "pyro":
        svi = SVI(method.model, method.guide, pyro.optim.Adam({"lr": 0.1}), loss)

        def step() -> None:
            svi.step(x)
    else:
        module = loss(method.model, method.guide)
        optimiser = torch.optim.Adam(module.parameters(), 0.1)

        def step() -> None:
            optimiser.zero_grad()
            module(x).backward()
            optimiser.step()

    structure, mechanisms = {"graph", "targets"}, {"equations", "contexts", "counts"}
    for learn in (False, True, False, True):
        method.learn_structure_(learn)
        before = state(method)
        step(), step()
        assert moved(before, state(method)) == mechanisms | (structure if learn else set())


@every_kind
def test_mechanisms_are_trained_under_the_structure_that_is_held_fast(kind: str) -> None:
    method, x = make(kind), rows()
    with torch.no_grad():
        method.guide.factors["graph"].logits.copy_(EDGES - 0.5)
        method.guide.factors["targets"].logits.copy_(TARGETS - 0.5)

    def density() -> Tensor:
        return method._expected(method.guide.factor, x).detach()

    drawn = torch.stack([density() for _ in range(30)])
    assert (drawn - drawn[0]).abs().amax() > 0.1
    method.learn_structure_(False)
    held = density()
    with torch.no_grad():
        method.guide.factors["graph"].logits.copy_(80.0 * EDGES - 40)
        method.guide.factors["targets"].logits.copy_(80.0 * TARGETS - 40)
    torch.testing.assert_close(density(), held)
    method.learn_structure_(True)
    torch.testing.assert_close(density(), held)


def test_structure_that_is_held_fast_needs_no_targets() -> None:
    method = LatentInterventions(nodes=D, targets=TARGETS)
    method.learn_structure_(False)
    assert not method.guide.factors["graph"].logits.requires_grad
    assert method.guide.factors["contexts"].loc.requires_grad


def test_certain_edges_stay() -> None:
    """Against data that say otherwise, and in the search for a start."""
    x = chain("stochastic", 600)[0]
    prior = graph_prior(D, required=[(2, 0)], forbidden=[(0, 1)], likely={(1, 2): 0.9})
    method = LatentInterventions(nodes=D, truncation=K, edges=prior.probs)
    method.set_normalisation(x)

    def check() -> None:
        p = method.edge_probability
        assert p[2, 0] == 1 and p[0, 1] == 0 and torch.equal(p.diagonal(), torch.zeros(D))
        assert method.adjacency[2, 0] == 1 and method.adjacency[0, 1] == 0

    check()
    fit(method.model, method.guide, loss=method.loss(), data={"x": x}, epochs=20, lr=0.3)
    check()
    assert (method.edge_probability - 0.5).abs()[0, 2] > 0.1
    method.initialise(x)
    check()
    assert method.guide.factors["graph"].logits[2, 0] > 0  # the search knew of it


def test_an_amortised_network_learns_the_responsibilities() -> None:
    x, z = chain("stochastic", 300)
    method = LatentInterventions(nodes=D, truncation=K, network=Network())
    given = method.initialise(x)
    for data, epochs in (({"x": x, "z": given}, 100), ({"x": x}, 100)):
        loss = method.loss(constraint=None)
        fit(method.model, method.guide, loss=loss, data=data, epochs=epochs, lr=0.03)
    exact, amortised = method.responsibilities(x), method.guide.network(x).softmax(1)
    assert (exact - amortised).abs().mean() < 0.05
    assert adjusted_rand_index(z, amortised.argmax(1)) > 0.8


# --- from data to findings ------------------------------------------------------------------------


def chain(kind: str, size: int) -> tuple[Tensor, Tensor]:
    """Rows of x0 -> x1 -> x2 in three regimes: most as they are, x0 set, x1 set or other weight."""
    z = torch.tensor([0, 0, 1, 2]).repeat(size)[:size]
    x0 = torch.where(z == 1, 5 + 0.2 * torch.randn(size), torch.randn(size))
    other = (
        5 - 2.0 * x0 + torch.randn(size) if kind == "imperfect" else -6 + 0.2 * torch.randn(size)
    )
    x1 = torch.where(z == 2, other, 0.9 * x0 + 0.4 * torch.randn(size))
    x2 = -0.8 * x1 + 0.4 * torch.randn(size)
    return torch.stack([x0, x1, x2], 1), z


@every_kind
def test_a_chain_is_found(kind: str) -> None:
    x, truth = chain(kind, 1600)
    method = LatentInterventions(
        nodes=D, intervention=kind, truncation=3, names="abc", edge=0.01, target=0.01
    )
    q = method.initialise(x)
    assert q.shape == (len(x), 3)
    torch.testing.assert_close(q.sum(1), torch.ones(len(x)))
    assert (q.sum(0).diff() <= 0).all()  # larger components first
    torch.testing.assert_close(method.guide.counts, q.sum(0))
    assert torch.equal(method.adjacency, EDGES)
    if kind == "imperfect":  # the search tells what is cut, of targets
        true = method.targets
        kept = method._cut[:, 1][true[:, 1]]
        assert kept.numel() and (kept < 0.01).all()
        assert (method._cut[:, 0][true[:, 0]] > 0.99).all()
        assert (method._cut[~true] == 0.5).all()
    before, targets = state(method), method.targets
    loss = method.loss(constraint=None)
    fit(method.model, method.guide, loss=loss, data={"x": x, "z": q}, epochs=150, lr=0.05)
    fit(method.model, method.guide, loss=loss, data={"x": x}, epochs=30, lr=0.02)
    assert not moved(before, state(method)) & {"graph", "targets"}  # these are held
    assert torch.equal(method.targets, targets) and torch.equal(method.adjacency, EDGES)
    assert (method.edge_probability - EDGES).abs().max() < 0.1
    found = method.responsibilities(x).argmax(1)
    assert adjusted_rand_index(truth, found) > 0.9
    for k, expected in enumerate(TARGETS[:3]):
        own = found[truth == k].mode().values
        assert torch.equal(method.targets[own].long(), expected)
        if kind == "imperfect" and k == 2:
            assert not (method._cut[own, 1] >= 0.5)
    assert {*method.admg.directed} == {("a", "b"), ("b", "c")}
    new = chain(kind, 400)[0]
    entropy = dist.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(new).mean()
    assert method.log_likelihood(new).mean() > entropy + 0.3
    slope = query(method.program(), "b", do={"a": 1.0}, num_samples=4000).mean.item()
    slope -= query(method.program(), "b", do={"a": 0.0}, num_samples=4000).mean.item()
    assert slope == pytest.approx(0.9, abs=0.1)


def test_gradients_find_a_graph_without_a_search() -> None:
    """Where regimes and targets are known; every edge starts as likely as not."""
    x, z = chain("stochastic", 1600)
    method = LatentInterventions(nodes=D, targets=TARGETS[:3], edge=0.01)
    method.set_normalisation(x)
    assert not torch.equal(method.adjacency, EDGES)
    data, loss = {"x": x, "z": z}, method.loss()
    fit(method.model, method.guide, loss=loss, data=data, batch_size=400, epochs=200, lr=0.05)
    assert torch.equal(method.adjacency, EDGES)
    assert (method.edge_probability[EDGES == 1] > 0.95).all()
    assert torch.equal(method.guide.factor("graph").probs > 0.5, EDGES == 1)  # without a cut


def test_the_loss_keeps_graphs_acyclic_as_it_is() -> None:
    """Where nothing tells directions, so that both would be taken."""
    x = rows(300)
    method = LatentInterventions(nodes=D, truncation=2).double()
    method.set_normalisation(x)
    loss = method.loss()
    fit(method.model, method.guide, loss=loss, data=x, epochs=1500, lr=0.05)
    assert isinstance(loss, AugmentedLagrangianELBO) and loss.converged
    found = method.guide.factor("graph").probs > 0.5
    assert is_dag(found) and found.any()


def test_training_does_not_end_because_a_graph_is_held() -> None:
    x, z = chain("stochastic", 300)
    method = LatentInterventions(nodes=D, truncation=3)
    method.initialise(x, z)
    loss = method.loss(steps=1)
    history = fit(method.model, method.guide, loss=loss, data={"x": x, "z": z}, epochs=20)
    assert len(history.losses) == 20 and not loss.converged


def test_label_0_is_the_observational_regime() -> None:
    """Even where it would pay to take it for a target, and whatever else is in doubt."""
    x = torch.randn(1500, D)
    z = (torch.arange(1500) >= 500).long()
    x[:500, 0] += 4
    seen = torch.where(torch.arange(1500) % 10 == 0, z, -1)
    for density in ("linear", "flow"):
        for kind in KINDS:
            for labels in (z, seen) if density == "linear" else (z,):
                method = LatentInterventions(
                    nodes=D, truncation=2, density=density, intervention=kind
                )
                method.initialise(x, labels)
                assert method.targets.tolist() == [[False] * D, [True, False, False]]
    method = LatentInterventions(nodes=D, truncation=3)
    method.initialise(x, z + 1)  # the larger regime is the base then
    assert method.targets[1].any() and not method.targets[2].any()


def test_a_floor_of_spreads() -> None:
    x = rows()
    method = LatentInterventions(nodes=D, truncation=2, min_scale=0.25).double()
    method.set_normalisation(x)
    with torch.no_grad():
        method.guide.factors["contexts"].loc[:, -1] = -50.0
    trace = poutine.trace(method.program()).get_trace()
    scales = torch.stack([trace.nodes[name]["fn"].scale.squeeze() for name in method.names])
    torch.testing.assert_close(scales, 0.25 * x.std(0, correction=0))
    assert not scales.requires_grad


def test_particles() -> None:
    x, method = rows(), make()
    with torch.no_grad():
        method.guide.factors["contexts"].log_scale.fill_(0.0)
    several = [method.loss(num_particles=20).loss(method.model, method.guide, x) for _ in range(9)]
    alone = [method.loss().loss(method.model, method.guide, x) for _ in range(9)]
    spread, other = (torch.tensor(losses).std() for losses in (several, alone))
    assert 0 < spread < other


@pytest.mark.gpu
def test_on_a_gpu_as_on_a_cpu() -> None:
    x, _ = chain("imperfect", 1600)
    found = []
    for device in ("cpu", "cuda"):
        pyro.set_rng_seed(0)
        method = LatentInterventions(nodes=D, intervention="imperfect", truncation=3).to(device)
        data = {"x": x.to(device)}
        q = method.initialise(data["x"])
        loss = method.loss(constraint=None)
        for rows in (data | {"z": q}, data):
            fit(method.model, method.guide, loss=loss, data=rows, epochs=100, lr=0.05)
        results = method.adjacency, method.responsibilities(data["x"]), method.edge_probability
        found.append([result.cpu() for result in results])
    assert torch.equal(found[0][0], found[1][0])
    for at in (1, 2):
        torch.testing.assert_close(found[1][at], found[0][at], atol=0.05, rtol=0)


def test_an_edge_whose_direction_nothing_tells_is_as_likely_as_not() -> None:
    """And it is still there after training, with the noise that least squares leave."""
    cause = torch.randn(1500)
    x = torch.stack([cause, 0.8 * cause + 0.3 * torch.randn(1500)], 1)
    z = torch.zeros(1500, dtype=torch.long)
    method = LatentInterventions(nodes=2, truncation=2)
    rows = {"x": x, "z": method.initialise(x, z)}
    found = method.adjacency
    assert found.sum() == 1
    train = partial(fit, method.model, method.guide, data=rows, batch_size=500)
    probability = method.edge_probability
    off = sorted([probability[0, 1].item(), probability[1, 0].item()])
    assert 0.4 < off[0] < 0.476 and 0.524 < off[1] < 0.6  # and the one found is the likelier
    for learn, loss, epochs in (
        (False, method.loss(constraint=None), 100),
        (True, method.loss(steps=50), 60),
        (False, method.loss(constraint=None), 30),
    ):
        method.learn_structure_(learn)
        train(loss=loss, epochs=epochs, lr=0.01)
    assert torch.equal(method.adjacency, found)
    assert torch.equal(method.edge_probability, probability)
    parent, child = found.nonzero()[0].tolist()
    law = method.program().equations.conditional(child, {parent: x[:, parent]})
    line = torch.linalg.lstsq(torch.stack([x[:, parent], torch.ones(1500)], 1), x[:, [child]])
    noise = x[:, child] - torch.stack([x[:, parent], torch.ones(1500)], 1) @ line.solution[:, 0]
    assert law.scale.mean().item() == pytest.approx(noise.std().item(), rel=0.05)


def test_the_guide_tells_of_pairs_that_training_has_changed() -> None:
    x, _ = chain("stochastic", 1600)
    method = LatentInterventions(nodes=D, truncation=3)
    method.initialise(x)
    method.edge_log_odds[1, 0] = -2.0
    before = method.edge_probability
    assert before[1, 0].item() == pytest.approx(1 / (1 + math.exp(2.0)))
    with torch.no_grad():
        method._factors["graph"].logits[0, 1] = -1.5
    after = method.edge_probability
    changed = torch.zeros(D, D, dtype=torch.bool)
    changed[0, 1] = changed[1, 0] = True
    assert torch.equal(after[~changed], before[~changed])
    probs = method.guide.factor("graph").probs
    assert torch.equal(after[changed], probs[changed])
    assert after[0, 1].item() == pytest.approx(1 / (1 + math.exp(1.5)))


@pytest.mark.parametrize("forbidden", [False, True])
def test_the_search_tells_how_open_an_edge_is(forbidden: bool) -> None:
    """Whether or not the prior knows its direction; far logits are as good as near ones."""
    cause = torch.randn(400)
    x = torch.stack([cause, 0.8 * cause + torch.randn(400)], 1)
    prior = graph_prior(2, forbidden=[(1, 0)] if forbidden else [])
    method = LatentInterventions(nodes=2, truncation=2, edges=prior.probs)
    method.initialise(x, torch.zeros(400, dtype=torch.long))
    odds = method.edge_log_odds
    assert method.adjacency.sum() == 1 and torch.equal(odds > 0, method.adjacency == 1)
    odds.copy_(odds.sign() * torch.tensor([[3.0, 1.3], [0.3, 3.0]]))
    expected = odds.sigmoid().masked_fill(prior.certain, 0.0)
    torch.testing.assert_close(method.edge_probability, expected)
    with torch.no_grad():
        method._factors["graph"].logits.mul_(100)
    torch.testing.assert_close(method.edge_probability, expected)


def test_no_edge_is_told_as_surer_than_a_regression_can_be() -> None:
    method = LatentInterventions(nodes=D, truncation=3)
    method.initialise(chain("stochastic", 1600)[0])
    p = method.edge_probability
    assert p.amax().item() == pytest.approx(1 / (1 + math.exp(-6)))
    assert p[~torch.eye(D).bool()].amin() == pytest.approx(1 / (1 + math.exp(6)))


def test_a_second_search_leaves_nothing_of_the_first() -> None:
    x, z = chain("imperfect", 900)
    method = LatentInterventions(nodes=D, intervention="imperfect", truncation=K)
    first = LatentInterventions(nodes=D, intervention="imperfect", truncation=K)
    with torch.no_grad():
        for name in ("graph", "targets", "cut"):
            method._factors[name].logits.fill_(5.0)
    for each in (method, first):
        each.initialise(x, z)
    for name in ("graph", "targets", "cut"):
        torch.testing.assert_close(method._factors[name].logits, first._factors[name].logits)


def test_one_variable() -> None:
    x = torch.cat([torch.randn(300, 1), 8 + torch.randn(200, 1)])
    method = LatentInterventions(nodes=1, truncation=2)
    q = method.initialise(x)
    assert adjusted_rand_index(q.argmax(1), torch.arange(500) // 300) > 0.9
    assert not method.adjacency.any() and method.targets.any()


def test_without_a_search_the_guide_tells_of_edges() -> None:
    method = make()
    with torch.no_grad():
        method._factors["graph"].logits.fill_(-2.0)
    assert torch.equal(method.edge_probability, method.guide.factor("graph").probs)


def test_graphs_that_were_found_are_seldom_drawn_wrong() -> None:
    scm = draw_interventional_scm(12, regimes=3)
    x = sample_interventional_table(scm, 600)["x"]
    method = LatentInterventions(nodes=12, truncation=4)
    method.initialise(x, starts=1, rounds=0)
    probs = method.guide.factor("graph").probs.detach()
    wrong = (probs - method.adjacency).abs()
    assert wrong.sum() <= 0.201
    assert wrong.amax() > 0  # training may still change it


@pytest.mark.parametrize(
    ("density", "kind", "expected"),
    [
        ("linear", "stochastic", {"units": 0, "imperfect": False, "varying": False}),
        ("nonlinear", "imperfect", {"units": 100, "imperfect": True, "varying": False}),
        ("flow", "stochastic", {"units": 100, "imperfect": False, "varying": True}),
    ],
)
def test_what_is_searched_for(
    density: str, kind: str, expected: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Options] = []
    name = "pyro_causal.methods.latent_interventions.structural_em"

    def search(x: Tensor, **options: Any) -> Any:
        asked.append(options)
        return structural_em(x, **options | {"units": 0, "varying": False, "rounds": 0})

    monkeypatch.setattr(name, search)
    x, _ = chain("stochastic", 400)
    method = LatentInterventions(
        nodes=D, density=density, intervention=kind, truncation=3, edge=0.02, target=0.03
    )
    method.initialise(x, starts=2)
    others = {"truncation": 3, "edge": 0.02, "target": 0.03, "starts": 2}
    assert {n: asked[0][n] for n in (*expected, *others)} == {**expected, **others}


@pytest.mark.parametrize("cause", [0, 1])
def test_the_noise_of_a_flow_shows_the_direction(cause: int) -> None:
    """One regime, whose spread grows with the cause: laws of fixed spread find the other way."""
    x = torch.randn(3000)
    y = 0.5 * x + (0.7 * x - 1).exp() * torch.randn(3000)
    table = torch.stack([x, y] if cause == 0 else [y, x], 1)
    method = LatentInterventions(nodes=2, density="flow", truncation=2)
    method.initialise(table, torch.zeros(3000, dtype=torch.long))
    assert method.adjacency.tolist() == [[0, 1 - cause], [cause, 0]]


@pytest.mark.parametrize("size", [3, 5])
def test_labels_name_the_components(size: int) -> None:
    x, z = chain("stochastic", 900)
    some = torch.where(torch.arange(900) % 3 > 0, z, -1)
    method = LatentInterventions(nodes=D, truncation=size)
    q = method.initialise(x, some)
    known = some >= 0
    assert torch.equal(q[known].argmax(1), z[known])
    assert torch.equal(method.targets[:3].long(), TARGETS[:3])
    assert torch.equal(method.initialise(x, z).argmax(1), z)
    targets = torch.cat([TARGETS[:3], torch.zeros(size - 3, D)])
    known_targets = LatentInterventions(nodes=D, targets=targets)
    assert torch.equal(known_targets.initialise(x, z).argmax(1), z)


def test_rows_of_one_regime() -> None:
    """The observational variant: all labels are 0, and nothing is a target."""
    x = chain("stochastic", 1200)[0][::4]
    method = LatentInterventions(nodes=D, truncation=2)
    z = torch.zeros(len(x), dtype=torch.long)
    assert torch.equal(method.initialise(x, z)[:, 0], torch.ones(len(x)))
    assert not method.targets.any()
    fit(method.model, method.guide, loss=method.loss(), data={"x": x, "z": z}, epochs=20, lr=0.02)
    assert torch.equal(method.responsibilities(x, z)[:, 0], torch.ones(len(x)))
    assert not method.targets.any()


def test_findings_are_named() -> None:
    method = make(names=["dose", "response", "side effect"])
    assert method.admg.nodes == ("dose", "response", "side effect")
    assert {*method.admg.directed} == {("dose", "response"), ("response", "side effect")}
    assert {*method.program()(size=2)} == {*method.admg.nodes}
    assert method.edge_probability.shape == (D, D) and not method.edge_probability.requires_grad
    assert method.adjacency.dtype == torch.long and torch.equal(method.adjacency, EDGES)


def test_a_cycle_loses_its_weakest_edge() -> None:
    method = make()
    with torch.no_grad():
        method.guide.factors["graph"].logits[2, 0] = 3.0
    assert method.edge_probability[2, 0] > 0.9
    assert torch.equal(method.adjacency, EDGES)


# --- programs of components -----------------------------------------------------------------------


def columns(x: Tensor) -> dict[str, Tensor]:
    return {f"x{j}": x[:, j] for j in range(D)}


@every_density
def test_a_component_is_an_intervention_on_the_base(density: str) -> None:
    """A stochastic one: `do` gives targets draws of their own laws, and leaves all else."""
    x = rows()
    method = make(x=x, density=density)
    found, base = log_densities(component(method, 3), x), component(method, None)
    laws = {f"x{j}": base.equations.conditional(j, {}, regime=4) for j in (1, 2)}
    changed = do(base, laws)
    torch.testing.assert_close(found[:, 0], log_densities(base, x)[:, 0])
    for j in (1, 2):
        torch.testing.assert_close(found[:, j], laws[f"x{j}"].log_prob(x[:, j]))
    assert {*causal_graph(method.program(3)).directed} == {*causal_graph(changed).directed} == set()
    assert {*causal_graph(method.program(2)).directed} == {("x1", "x2")}
    draws = [
        torch.stack([*p(size=3000).values()], 1).detach() for p in (changed, method.program(3))
    ]
    difference = (draws[0].mean(0) - draws[1].mean(0)) / draws[0].std(0)
    assert difference.abs().max() < 0.1
    assert (draws[1][:50, 1].unique()).numel() == 50  # each row has a draw of its own


@every_density
@every_kind
def test_programs_have_the_densities_of_the_mixture(density: str, kind: str) -> None:
    """With some targets cut from their parents, and some not."""
    x = rows()
    method = make(kind, x=x, density=density)
    component(method, None)
    if kind == "imperfect":
        with torch.no_grad():
            method.guide.factors["cut"].logits.copy_(60 * torch.tensor([1, 0, 0, 1])[:, None] - 30)
            method.guide.factors["cut"].logits[3, 1] = -30.0
    terms = [log_densities(method.program(k), x).sum(1) for k in range(K)]
    expected = (method.guide.weights.log() + torch.stack(terms, 1)).logsumexp(1)
    torch.testing.assert_close(method.log_likelihood(x), expected)
    torch.testing.assert_close(terms[0], log_densities(method.program(), x).sum(1))
    graph = {*causal_graph(method.program(3)).directed}
    assert graph == ({("x0", "x1")} if kind == "imperfect" else set())


def test_counterfactuals_of_a_unit() -> None:
    """By abduction of its noise, under the mechanisms of its component."""
    x = rows()
    method = make(x=x)
    scale = x.std(0, correction=0)
    theta = method.guide.factor("contexts").mean.detach()
    slopes = [theta[0, i, i + 1] * scale[i + 1] / scale[i] for i in range(2)]
    unit = {name: value[:1] for name, value in columns(x).items()}
    base, set_by_nature = component(method, None), component(method, 2)  # which sets x1
    for program, by_first in ((base, slopes[0] * slopes[1]), (set_by_nature, 0.0)):
        answer = query(program, "x2", do={"x0": unit["x0"] + 1.5}, args=(unit,))
        assert answer.rung == "counterfactual"
        torch.testing.assert_close(answer.mean.detach(), unit["x2"] + 1.5 * by_first)
        answer = query(program, "x2", do={"x1": unit["x1"] - 2.0}, args=(unit,))
        torch.testing.assert_close(answer.mean.detach(), unit["x2"] - 2.0 * slopes[1])
    law = base.equations.conditional(1, {}, regime=3)
    worlds = CounterfactualPredictive(base, [{"x1": law}, {"x0": 0.0}], num_samples=2)(unit)
    assert worlds["x2"].shape == (2, 3, 1)
    torch.testing.assert_close(worlds["x2"][:, 0].detach(), unit["x2"].expand(2, 1))
    moved_by = (worlds["x1"][:, 1] - unit["x1"]) * slopes[1]
    torch.testing.assert_close(worlds["x2"][:, 1], unit["x2"] + moved_by)


def test_programs_are_copies() -> None:
    method = make(density="nonlinear")
    before, program = state(method), method.program(1)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.zero_()
    program.equations.context.zero_()
    assert not moved(before, state(method))


def log_densities(program: Callable[..., Any], x: Tensor) -> Tensor:
    """Of each variable in each row, ``[N, d]``."""
    trace = poutine.trace(program).get_trace(columns(x))
    trace.compute_log_prob()
    return torch.stack([trace.nodes[f"x{j}"]["log_prob"] for j in range(D)], 1).detach()


def test_the_layers_of_a_flow() -> None:
    sizes = [
        LatentInterventions(nodes=D, density="flow", truncation=K, units=units)
        .equations.networks.weights[-1]
        .shape[1]
        for units in ((4,), (3, 2))
    ]
    assert sizes == [2 + 3 * 4, 2 + 3 * 5]  # location and scale; weight, centre and width of units


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {"edges": graph_prior(D, required=[(0, 1)]).probs, "names": ["a", "b", "c"]},
        {"targets": TARGETS, "intervention": "imperfect", "density": "flow", "edge": 0.1},
        {"network": Network(5), "density": "nonlinear", "hidden": (4, 4), "context": 3},
        {"density": "flow", "units": (3, 2), "hidden": (5,)},
    ],
    ids=["edges", "targets", "network", "deep"],
)
def test_save_and_load(options: Options, dtype: torch.dtype, tmp_path: Path) -> None:
    x = rows().to(dtype)
    method = LatentInterventions(nodes=D, truncation=K, **options).to(dtype)
    method.set_normalisation(x)
    fit(method.model, method.guide, loss=method.loss(), data={"x": x}, epochs=3, lr=0.1)
    found = (method._factors["graph"].logits > 0).to(x)  # as if a search had found this
    method.edge_log_odds.copy_(0.3 * found - 0.2)
    generator = torch.get_rng_state()
    method.save(tmp_path / "method.pt")
    assert torch.equal(torch.get_rng_state(), generator)
    torch.load(tmp_path / "method.pt", weights_only=True)
    other = LatentInterventions.load(tmp_path / "method.pt", classes=[Network])
    assert not other.training and state(other).keys() == state(method).keys()
    for name, value in state(method).items():
        assert torch.equal(value, state(other)[name]) and value.dtype == state(other)[name].dtype
    assert other.edge_probability.dtype == other.log_likelihood(x).dtype == dtype
    assert torch.equal(other.log_likelihood(x), method.log_likelihood(x))
    assert torch.equal(other.targets, method.targets) and other.names == method.names
    assert torch.equal(other.edge_probability, method.edge_probability)
    assert not torch.equal(other.edge_probability, other.guide.factor("graph").probs)
    losses = []
    for each in (method, other):
        torch.manual_seed(0)
        losses.append(bound(each, x, LABELS))
    assert losses[0] == losses[1]
    fit(other.train().model, other.guide, loss=other.loss(), data={"x": x}, epochs=1, lr=0.1)
    assert {"graph", "contexts", "counts"} <= moved(state(method), state(other))
    other.save(tmp_path / "again.pt")


@pytest.mark.parametrize("learn", [False, True])
def test_files_tell_whether_structure_is_held(learn: bool, tmp_path: Path) -> None:
    x, method = rows(), make()
    method.learn_structure_(learn)
    method.save(tmp_path / "method.pt")
    loaded = LatentInterventions.load(tmp_path / "method.pt").train()
    other = LatentInterventions(nodes=D, truncation=K).double()
    other.learn_structure_(not learn)
    other.load_state_dict(method.state_dict())
    twin = copy.deepcopy(other)
    other.learn_structure_(not learn)
    twin.load_state_dict(twin.state_dict())
    for each in (loaded, twin):
        before = state(each)
        fit(each.model, each.guide, loss=each.loss(), data={"x": x}, epochs=1, lr=0.1)
        assert moved(before, state(each)) >= {"contexts"}
        assert bool(moved(before, state(each)) & {"graph", "targets"}) == learn


def test_files_of_other_methods(tmp_path: Path) -> None:
    make().save(tmp_path / "method.pt")
    with pytest.raises(
        ValueError, match="holds no DeepSCM: expected a file that its save wrote, g"
    ):
        DeepSCM.load(tmp_path / "method.pt")


def test_the_state_alone() -> None:
    x = rows()
    method, other = make(x=x), LatentInterventions(nodes=D, truncation=K).double()
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert bound(other, x) == pytest.approx(bound(method, x), rel=1e-6)
    assert int(other.rows) == N


def test_deepcopy() -> None:
    x = rows()
    method = make(x=x)
    other = copy.deepcopy(method)
    assert other.guide.model.__self__ is other and other.guide.expected.__self__ is other
    before = state(method)
    fit(other.model, other.guide, loss=other.loss(), data={"x": x}, epochs=3, lr=0.1)
    assert not moved(before, state(method))
    assert moved(before, state(other)) == {"graph", "targets", "contexts", "counts"}


def test_to_make_one_disturbs_nothing() -> None:
    pyro.param("mine", torch.ones(1))
    with poutine.trace() as tracer:
        LatentInterventions(nodes=D, density="nonlinear")
    assert not tracer.trace.nodes and [*pyro.get_param_store()] == ["mine"]


def test_edges_in_any_precision() -> None:
    for edges in (graph_prior(D).probs.double(), EDGES, EDGES.bool()):
        method = LatentInterventions(nodes=D, edges=edges)
        assert math.isfinite(bound(method, rows().float()))
        assert {p.dtype for p in method.parameters()} == {torch.float32}


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "cubic"}, "density to be one of linear, nonlinear, flow, got 'cubic'. Choose"),
        ({"intervention": "hard"}, "intervention to be one of stochastic, imperfect, got 'hard'"),
        (
            {"names": ["a", "b"]},
            r"3 different names other than 'rows', the plate, got \['a', 'b'\]",
        ),
        ({"names": ["a", "b", "a"]}, "3 different names other.*Name each variable once"),
        ({"names": ["a", "b", "rows"]}, "3 different names other than 'rows'"),
        ({"nodes": 0}, "1 variable or more, got 0. Give the number of columns"),
        ({"truncation": 1}, "2 components or more, got 1. Add one that has no rows"),
        ({"targets": TARGETS[:1]}, "2 components or more, got 1"),
        ({"edge": math.inf}, "a price of edges from 0, got inf"),
        ({"edge": -0.1}, "a price of edges from 0, got -0.1. Give nats for each row"),
        ({"target": math.nan}, "a price of targets from 0, got nan. Give nats for each row"),
        ({"concentration": 0.0}, "a positive concentration, got 0.0. Give 1, say"),
        ({"targets": TARGETS.T}, r"targets \[K, 3\] of zeros and ones, got shape \(3, 4\)"),
        ({"targets": TARGETS[0]}, r"targets \[K, 3\] of zeros and ones, got shape \(3,\)"),
        ({"targets": TARGETS / 2}, r"with the values \[0.0, 0.5\]. Give a row for each component"),
        ({"edges": torch.rand(3, 4)}, r"edges \[3, 3\] between 0 and 1, got shape \(3, 4\)"),
        ({"edges": 2.0 * EDGES}, "values from 0 to 2. Give the probability of the edge i -> j in"),
        ({"edges": EDGES * math.nan}, "between 0 and 1, got shape .* with values from nan to nan"),
        ({"edges": EDGES + EDGES.T}, "edges of probability one form a cycle.*graph_prior tells"),
    ],
)
def test_wrong_arguments(options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=f"LatentInterventions: .*{message}"):
        LatentInterventions(**{"nodes": D} | options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"x": x.index_fill(1, torch.tensor(2), math.inf)}, r"infinity in the columns"),
        (lambda x: {"x": x.clone().index_fill_(1, torch.tensor(1), 4.0)}, r"the columns \[1\]"),
        (lambda x: {"x": x[:3]}, "Give more rows than variables, or transpose"),
        (lambda x: {"x": x.T}, r"rows \[N, \d\], got shape \(\d, 60\)"),
        (lambda x: {"x": x[:, :2]}, r"rows \[N, \d\], got shape \(60, 2\). Give a column for each"),
        (lambda x: {"x": x, "z": LABELS + 1}, "labels below 4, the number of components, got 4"),
        (lambda x: {"x": x, "z": LABELS - 1}, "labels from -1, unknown, got -2. Count components"),
        (lambda x: {"x": x, "z": LABELS[1:]}, r"labels \[60\] of integers, got torch.int64"),
        (lambda x: {"x": x, "z": torch.ones(N, K) / K}, r"labels \[60\] of integers, got"),
        (lambda x: {"x": x.float()}, r"float64, as the method is, got float32. Convert"),
        (lambda x: {"x": x, "units": 9}, "no units in initialise, since density of the method dec"),
        (lambda x: {"x": x, "prior": 1}, "no prior in initialise, .* Give edges to the con"),
    ],
)  # fmt: skip
def test_wrong_data(change: Callable[[Tensor], Options], message: str) -> None:
    method = make()
    before = state(method)
    with pytest.raises(ValueError, match=message):
        method.initialise(**change(rows()))
    assert not moved(before, state(method))  # it is left as it was


@pytest.mark.parametrize("asked", ["responsibilities", "log_likelihood"])
def test_wrong_rows_of_findings(asked: str) -> None:
    x, method = rows(), make()
    tell = getattr(method, asked)
    for wrong, message in (
        (x[:, :2], r"rows \[N, 3\], got shape \(60, 2\). Give a column for each variable"),
        (x.float(), "rows of float64, as the method is, got float32. Convert them"),
        (x.index_fill(1, torch.tensor(1), math.nan), r"infinity in the columns \[1\]. Drop such"),
    ):
        with pytest.raises(ValueError, match=f"LatentInterventions: expected .*{message}"):
            tell(wrong)


def test_wrong_data_in_training() -> None:
    x, method = rows(), make()
    with pytest.raises(ValueError, match=r"expected values \[\*, B, d\] with d = 3, got .*\(2,\)"):
        bound(method, x[:, :2])
    with pytest.raises(ValueError, match="the labels: expected whole numbers from -1 .* to 3, or"):
        bound(method, x, LABELS + 1)
    with pytest.raises(ValueError, match="expected rows of float64, as the method is, got float32"):
        bound(method, x.float())
    for wrong, message in (
        (x * math.nan, r"numbers, got NaN or infinity in the columns \[0, 1, 2\]"),
        (x[:, :2], r"rows \[N, 3\], got shape \(60, 2\)"),
        (x[:0], r"got shape \(0, 3\). Give a column for each variable, and a row at least"),
        (x.long(), "rows of float64, as the method is, got int64"),
        (x * torch.tensor([1.0, 0, 1]), r"vary, got one value only in the columns \[1\]. Drop"),
        (x * torch.tensor([1, 1, 1e-20]).double(), r"from 1e-15 to 1e\+15, got .* \[2\]. Take oth"),
        (x * torch.tensor([1e20, 1, 1]).double(), r"got .*in the columns \[0\]. Take other units"),
    ):
        with pytest.raises(ValueError, match=f"LatentInterventions: expected .*{message}"):
            method.set_normalisation(wrong)


def test_what_is_no_tensor() -> None:
    method, x = make(), rows()
    for ask, message in (
        (lambda: method.initialise(x.numpy()), "rows as a tensor, got ndarray. Convert it"),
        (lambda: method.initialise(x, [0] * N), "labels as a tensor, got list. Convert it"),
        (lambda: LatentInterventions(nodes=3, targets=[[0, 0, 0]] * 2), "targets as a .*got list"),
        (lambda: LatentInterventions(nodes=3, edges=graph_prior(3)), "BernoulliGraph. Take its pr"),
    ):
        with pytest.raises(TypeError, match=f"LatentInterventions: expected .*{message}"):
            ask()


def test_wrong_options_of_the_loss() -> None:
    with pytest.raises(
        ValueError, match="expected no penalty, steps without a constraint.*leave t"
    ):
        make().loss(constraint=None, penalty=1.0, steps=3)


@pytest.mark.parametrize("k", [-1, K])
def test_a_component_that_does_not_exist(k: int) -> None:
    message = f"expected a component from 0 to 3, or None for the base regime, got {k}. Give one"
    with pytest.raises(ValueError, match=message):
        make().program(k)
