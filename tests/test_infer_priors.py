"""Priors of structure: sticks and edges against closed forms, sampling and enumeration."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_causal.infer import priors
from pyro_causal.infer.elbo import MeanFieldELBO
from pyro_causal.infer.priors import BernoulliGraph, StickBreaking, SticksToWeights, graph_prior
from pyro_causal.noise import abduct, predict

DRAWS = 200_000
inf = math.inf


@pytest.fixture
def posterior() -> StickBreaking:
    return StickBreaking(torch.tensor([2.0, 0.7, 3.0]), torch.tensor([1.5, 2.0, 0.6]))


def test_every_public_name_is_tested() -> None:
    here = {BernoulliGraph, StickBreaking, SticksToWeights, graph_prior}
    assert {getattr(priors, name) for name in priors.__all__} == here


# --- sticks ---------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    weights = SticksToWeights()(torch.tensor([0.2, 0.5, 0.75]))
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.4, 0.3, 0.1]))


def test_the_transform_is_one() -> None:
    transform = SticksToWeights()
    v = 0.05 + 0.9 * torch.rand(4, 5, dtype=torch.float64)
    w = transform(v)
    torch.testing.assert_close(transform.inv(w), v)
    torch.testing.assert_close(transform.log_weights(v).exp(), w)
    torch.testing.assert_close(w.sum(-1), torch.ones(4, dtype=torch.float64))
    jacobian = torch.autograd.functional.jacobian(lambda x: transform(x)[:-1], v[0])
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(v, w)[0], expected)
    assert transform.forward_shape((3, 5)) == (3, 6)
    assert transform.inverse_shape((3, 6)) == (3, 5)
    assert transform == SticksToWeights() and hash(transform) == hash(SticksToWeights())
    assert transform != torch.distributions.StickBreakingTransform()


def test_weights_that_are_too_small_for_a_number() -> None:
    transform = SticksToWeights()
    v = torch.full((60,), 1 - 1e-6).requires_grad_()
    logs = transform.log_weights(v)
    assert logs[-1].item() == pytest.approx(60 * math.log(1e-6), rel=0.01)
    assert logs.isfinite().all()
    w = transform(v)
    assert w[-1] == 0
    assert transform.inv(w).isfinite().all()
    for edge in (torch.zeros(3), torch.ones(3)):
        assert transform.log_weights(edge).isfinite().all()
    w.square().sum().backward()
    assert v.grad.isfinite().all()


def test_the_density_integrates_to_one(posterior) -> None:
    """By importance sampling from a uniform distribution on the simplex."""
    uniform = dist.Dirichlet(torch.ones(4))
    w = uniform.sample((DRAWS,))
    ratio = (posterior.log_prob(w) - uniform.log_prob(w)).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=0.03)


def test_a_dirichlet_is_broken_in_this_way() -> None:
    """Beta(a_k, sum of the later ones) are the sticks of a Dirichlet."""
    a = torch.tensor([0.5, 2.0, 1.0, 3.0])
    later = a.flip(0).cumsum(0).flip(0)[1:]
    w = dist.Dirichlet(a).sample((5,))
    found = StickBreaking(a[:-1], later)
    torch.testing.assert_close(found.log_prob(w), dist.Dirichlet(a).log_prob(w))
    torch.testing.assert_close(found.mean, dist.Dirichlet(a).mean)


def test_expectations_are_those_of_draws(posterior) -> None:
    w = posterior.sample((DRAWS,))
    assert w.shape == (DRAWS, 4)
    torch.testing.assert_close(w.mean(0), posterior.mean, atol=0.004, rtol=0)
    v = posterior.sticks.sample((DRAWS,))
    logs = SticksToWeights().log_weights(v).mean(0)
    torch.testing.assert_close(logs, posterior.expected_log_weights, atol=0.03, rtol=0)
    assert posterior.expected_log_weights.exp().sum() < 1


def test_expected_log_weights_as_in_the_paper() -> None:
    """Appendix A, with a = rho w and b = (1 - rho) w, and the last stick one."""
    rho, total = torch.tensor([0.3, 0.6, 0.2]), torch.tensor([4.0, 2.0, 7.0])
    found = StickBreaking(rho * total, (1 - rho) * total).expected_log_weights
    psi = torch.digamma
    for k in range(4):
        expected = psi((1 - rho) * total)[:k].sum() - psi(total)[: k + 1].sum()
        if k < 3:
            expected = expected + psi(rho * total)[k]
        assert found[k].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_divergence_is_from_the_posterior(posterior) -> None:
    prior = StickBreaking.gem(1.7, truncation=4)
    found = kl_divergence(posterior, prior)
    w = posterior.sample((DRAWS,))
    sampled = posterior.log_prob(w) - prior.log_prob(w)
    assert found.item() == pytest.approx(sampled.mean().item(), abs=0.02)
    a, b, alpha, psi = posterior.concentration1, posterior.concentration0, 1.7, torch.digamma
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    closed = -math.log(alpha) - log_beta + (a - 1) * psi(a) + (b - alpha) * psi(b)
    closed = closed + (1 + alpha - a - b) * psi(a + b)
    assert found.item() == pytest.approx(closed.sum().item(), rel=1e-5)
    assert kl_divergence(prior, posterior).item() != pytest.approx(found.item(), rel=0.1)
    assert kl_divergence(prior, prior) == 0


def test_the_posterior_is_conjugate() -> None:
    """Prior times likelihood over posterior is the same number for all weights."""
    prior = StickBreaking(torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.5, 0.8, 3.0]))
    counts = torch.tensor([3.2, 0.0, 5.1, 1.4])
    w = dist.Dirichlet(torch.ones(4)).sample((6,))
    ratio = prior.log_prob(w) + (counts * w.log()).sum(-1) - prior.updated(counts).log_prob(w)
    torch.testing.assert_close(ratio, ratio[:1].expand(6), atol=1e-4, rtol=0)


def test_the_posterior_is_the_optimum_of_the_bound() -> None:
    prior = StickBreaking.gem(2.0, truncation=4)
    counts = torch.tensor([10.0, 3.0, 0.5, 2.0])

    def bound(a: Tensor, b: Tensor) -> Tensor:
        q = StickBreaking(a, b)
        return (counts * q.expected_log_weights).sum() - kl_divergence(q, prior)

    best = prior.updated(counts)
    a, b = (x.clone().requires_grad_() for x in (best.concentration1, best.concentration0))
    bound(a, b).backward()
    for slope in (a.grad, b.grad):
        torch.testing.assert_close(slope, torch.zeros(3), atol=1e-5, rtol=0)


def test_the_prior_of_a_dirichlet_process() -> None:
    prior = StickBreaking.gem(2.0, truncation=50)
    expected = 1 / 3 * (2 / 3) ** torch.arange(49)
    torch.testing.assert_close(prior.mean[:-1], expected)
    batched = StickBreaking.gem(torch.tensor([[1.0], [5.0]]), truncation=4)
    assert batched.batch_shape == (2, 1) and batched.event_shape == (4,)
    assert StickBreaking.gem(3, truncation=4).sample().dtype == torch.float32
    for alpha, truncation in ((2.0, 50), (0.01, 30), (50.0, 300)):
        draws = StickBreaking.gem(alpha, truncation=truncation).sample((2000,))
        assert prior.support.check(draws).all()


def test_batches_and_expansion(posterior) -> None:
    wide = posterior.expand((2, 3))
    assert wide.batch_shape == (2, 3) and wide.event_shape == (4,)
    w = wide.sample((5,))
    assert w.shape == (5, 2, 3, 4)
    torch.testing.assert_close(wide.log_prob(w), posterior.log_prob(w))
    torch.testing.assert_close(
        kl_divergence(wide, StickBreaking.gem(1.0, truncation=4)),
        kl_divergence(posterior, StickBreaking.gem(1.0, truncation=4)).expand(2, 3),
    )
    counts = torch.rand(2, 1, 4)
    assert wide.updated(counts).batch_shape == (2, 3)


def test_gradients_reach_the_parameters() -> None:
    a, b = (x.requires_grad_() for x in (torch.rand(3) + 0.5, torch.rand(3) + 0.5))
    d = StickBreaking(a, b)
    (d.rsample()[0] + d.expected_log_weights[1] + d.mean[2]).backward()
    assert a.grad.all() and b.grad.all()


def test_weights_in_a_program() -> None:
    """A prior, closed divergence in both bounds, an automatic guide, and its noise."""

    def model() -> None:
        pyro.sample("w", StickBreaking.gem(2.0, truncation=4))

    def guide() -> None:
        a = pyro.param("a", torch.tensor([2.0, 1.0, 3.0]), constraint=dist.constraints.positive)
        pyro.sample("w", StickBreaking(a, torch.ones(3)))

    expected = kl_divergence(
        StickBreaking(torch.tensor([2.0, 1.0, 3.0]), torch.ones(3)),
        StickBreaking.gem(2.0, truncation=4),
    )
    for bound in (MeanFieldELBO(), TraceMeanField_ELBO()):
        assert bound.loss(model, guide) == pytest.approx(expected.item(), rel=1e-5)

    automatic = AutoNormal(model)
    automatic()
    drawn = Predictive(model, guide=automatic, num_samples=3)()["w"]
    assert torch.distributions.constraints.simplex.check(drawn).all()
    d = StickBreaking.gem(2.0, truncation=4)
    w = d.sample((5,))
    torch.testing.assert_close(predict(d, abduct(d, w)), w, atol=1e-4, rtol=1e-3)


def test_wrong_sticks(posterior) -> None:
    with pytest.raises(ValueError, match="expected a truncation from 2, got 1. Give more"):
        StickBreaking.gem(1.0, truncation=1)
    for empty in (torch.ones(0), torch.ones(())):
        with pytest.raises(ValueError, match="expected one stick or more, .* got shape"):
            StickBreaking(empty, empty)
    with pytest.raises(ValueError, match="expected counts of 4 components, got shape"):
        posterior.updated(torch.ones(3))
    with pytest.raises(ValueError, match="concentration"):
        StickBreaking(torch.tensor([-1.0]), torch.tensor([1.0]))


# --- edges ----------------------------------------------------------------------------------------


def all_graphs(d: int) -> Tensor:
    cells = torch.tensor([*itertools.product([0.0, 1.0], repeat=d * (d - 1))])
    graphs = torch.zeros(len(cells), d, d)
    graphs[:, ~torch.eye(d, dtype=torch.bool)] = cells
    return graphs


def test_probabilities_of_all_graphs() -> None:
    d = BernoulliGraph(torch.rand(3, 3))
    graphs = all_graphs(3)
    p = d.log_prob(graphs).exp()
    assert p.sum().item() == pytest.approx(1)
    torch.testing.assert_close((p[:, None, None] * graphs).sum(0), d.mean)
    entry = d.probs[0, 1] * d.probs[2, 0] * (1 - d.probs[0, 2]) * (1 - d.probs[1, 0])
    entry = entry * (1 - d.probs[1, 2]) * (1 - d.probs[2, 1])
    graph = torch.zeros(3, 3)
    graph[0, 1] = graph[2, 0] = 1
    torch.testing.assert_close(d.log_prob(graph), entry.log())
    loop = graph + torch.eye(3)
    assert d.log_prob(loop) == -inf


def test_draws_of_graphs() -> None:
    d = BernoulliGraph(torch.rand(2, 4, 4))
    graphs = d.sample((20_000,))
    assert graphs.shape == (20_000, 2, 4, 4)
    torch.testing.assert_close(graphs.mean(0), d.probs, atol=0.02, rtol=0)
    assert not graphs.diagonal(0, -2, -1).any()
    assert d.log_prob(graphs).shape == (20_000, 2)


def test_the_divergence_of_graphs_by_enumeration() -> None:
    q, p = BernoulliGraph(torch.rand(3, 3)), BernoulliGraph(logits=torch.randn(3, 3))
    graphs = all_graphs(3)
    terms = q.log_prob(graphs).exp() * (q.log_prob(graphs) - p.log_prob(graphs))
    torch.testing.assert_close(kl_divergence(q, p), terms.sum())
    assert kl_divergence(q, q) == 0
    pair = dist.Bernoulli(q.probs[0, 1]), dist.Bernoulli(p.probs[0, 1])
    only = torch.full((3, 3), 0.5)
    one, two = only.clone(), only.clone()
    one[0, 1], two[0, 1] = q.probs[0, 1], p.probs[0, 1]
    found = kl_divergence(BernoulliGraph(one), BernoulliGraph(two))
    torch.testing.assert_close(found, kl_divergence(*pair))


def test_logits_and_probabilities_are_one() -> None:
    logits = torch.randn(4, 4)
    one, two = BernoulliGraph(logits=logits), BernoulliGraph(logits.sigmoid())
    graphs = one.sample((5,))
    torch.testing.assert_close(one.log_prob(graphs), two.log_prob(graphs))
    torch.testing.assert_close(one.probs, two.probs)


def test_gradients_at_probabilities_that_round_to_one() -> None:
    prior = graph_prior(3, probability=0.2)
    for size in (0.0, 20.0, 60.0):
        logits = torch.full((3, 3), size).requires_grad_()
        kl_divergence(BernoulliGraph(logits=logits), prior).backward()
        assert logits.grad.isfinite().all()
        assert not logits.grad.diagonal().any()


def test_certain_edges() -> None:
    prior = graph_prior(3, probability=0.2, required=[(0, 1)], forbidden=[(1, 2)])
    assert prior.certain.sum() == 3 + 3  # the diagonal, and 1 -> 0, too
    assert (prior.sample((500,))[:, 0, 1] == 1).all()
    graph = torch.zeros(3, 3)
    assert prior.log_prob(graph) == -inf
    graph[0, 1] = 1
    assert prior.log_prob(graph).item() == pytest.approx(3 * math.log(0.8))
    graph[1, 2] = 1
    assert prior.log_prob(graph) == -inf

    logits = torch.zeros(2, 3, 3).requires_grad_()
    free = BernoulliGraph(logits=logits)
    assert (kl_divergence(free, prior) == inf).all()
    kept = prior.constrained(free)
    assert kept.batch_shape == (2,)
    assert torch.equal(kept.probs[:, 0, 1], torch.ones(2))
    kl = kl_divergence(kept, prior)
    expected = 3 * kl_divergence(dist.Bernoulli(0.5), dist.Bernoulli(0.2))
    torch.testing.assert_close(kl, expected.expand(2))
    kl.sum().backward()
    assert torch.equal(logits.grad != 0, ~prior.certain.expand(2, 3, 3))
    # A posterior may be certain where the prior is not.
    sure = torch.zeros(3, 3)
    sure[0, 1] = sure[2, 1] = 1
    expected = -math.log(0.2) - 2 * math.log(0.8)
    assert kl_divergence(BernoulliGraph(sure), prior).item() == pytest.approx(expected)
    reversed_ = sure.T.contiguous()
    assert kl_divergence(BernoulliGraph(reversed_), prior) == inf


def test_graphs_in_a_program() -> None:
    prior = graph_prior(["a", "b", "c"], probability=0.3)

    def model() -> None:
        with pyro.plate("graphs", 2):
            pyro.sample("g", prior)

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(3, 3))
        with pyro.plate("graphs", 2):
            pyro.sample("g", BernoulliGraph(logits=logits))

    assert pyro.poutine.trace(model).get_trace().nodes["g"]["value"].shape == (2, 3, 3)
    expected = 2 * kl_divergence(BernoulliGraph(torch.full((3, 3), 0.5)), prior)
    assert MeanFieldELBO().loss(model, guide) == pytest.approx(expected.item(), rel=1e-5)


def test_knowledge_of_edges() -> None:
    prior = graph_prior(
        ["a", "b", "c", "d"],
        probability=0.25,
        required=[("a", "b"), (1, 2)],
        forbidden=[("d", "a")],
        likely={("d", "c"): 0.9, (0, 3): 0.1},
    )
    expected = torch.tensor(
        [
            [0.0, 1.0, 0.25, 0.1],
            [0.0, 0.0, 1.0, 0.25],
            [0.0, 0.0, 0.0, 0.25],  # c -> a and c -> b would close a cycle
            [0.0, 0.25, 0.9, 0.0],
        ]
    )
    torch.testing.assert_close(prior.probs, expected)
    assert graph_prior(4).probs.sum() == 6
    again = graph_prior(3, probability=graph_prior(3, probability=0.2).probs)  # whose diagonal is 0
    torch.testing.assert_close(again.probs, graph_prior(3, probability=0.2).probs)
    assert graph_prior(3, required=[(np.int64(0), np.int64(1))]).probs[0, 1] == 1
    matrix = torch.rand(2, 2, dtype=torch.float64)
    found = graph_prior(2, probability=matrix).probs
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, matrix * (1 - torch.eye(2)))
    graph_prior(3, required=[(0, 1), (0, 1)], forbidden=[(1, 0), (1, 0)])  # said twice is fine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"required": [("a", "b"), ("b", "c"), ("c", "a")]},
            "the required edges form a cycle, a -> b -> c -> a: expected an acyclic graph. Drop",
        ),
        ({"required": [("a", "x")]}, r"required edge \('a', 'x'\) has an unknown end 'x': expect"),
        ({"forbidden": [("a", 3)]}, "has an unknown end 3: .* a, b, c. Give a name or an index"),
        ({"forbidden": [(-1, 0)]}, "has an unknown end -1"),
        ({"likely": {("aa", "b"): 0.5}}, "unknown end 'aa': .* Did you mean 'a'"),
        ({"required": [("b", 1)]}, r"the required edge \('b', 1\) is a loop: expected two"),
        (
            {"required": [("a", "b")], "forbidden": [("a", "b")]},
            "the edge a -> b is required and forbidden, .* Drop the other",
        ),
        ({"required": [("a", "b")], "likely": {(0, 1): 0.9}}, "a -> b is required and likely"),
        ({"likely": {(0, 1): 0.9}, "forbidden": [(0, 1)]}, "a -> b is likely and forbidden"),
        (
            {"required": [("a", "b"), ("b", "c")], "likely": {("c", "a"): 0.9}},
            "c -> a is likely and forbidden, perhaps by what is required",
        ),
        ({"likely": {(0, 1): 1.0}}, "expected probabilities between 0 and 1, got 0.5 to 1. Name"),
        (
            {"probability": torch.full((2, 2), 0.3)},
            r"or \[3, 3\], got shape \(2, 2\). Give one for",
        ),
        ({"probability": 0.0}, "expected probabilities between 0 and 1, got 0 to 0"),
    ],
    ids=str,
)
def test_wrong_knowledge(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        graph_prior(["a", "b", "c"], **options)


def test_wrong_graphs() -> None:
    with pytest.raises(ValueError, match="expected probs or logits, got none. Give one"):
        BernoulliGraph()
    with pytest.raises(ValueError, match="expected probs or logits, got both"):
        BernoulliGraph(torch.zeros(2, 2), logits=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"expected a square matrix .* got shape \(2, 3\)"):
        BernoulliGraph(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="probs"):
        BernoulliGraph(torch.full((2, 2), 1.5))
    with pytest.raises(ValueError, match="value argument"):
        BernoulliGraph(torch.zeros(2, 2)).log_prob(torch.full((2, 2), 0.5))


@pytest.mark.gpu
def test_they_follow_their_inputs() -> None:
    prior = StickBreaking.gem(torch.tensor(2.0, device="cuda"), truncation=4)
    assert prior.sample().is_cuda and prior.updated(torch.ones(4, device="cuda")).mean.is_cuda
    graph = graph_prior(3, probability=torch.tensor(0.2, device="cuda"), required=[(0, 1)])
    assert graph.sample().is_cuda and graph.log_prob(graph.sample()).is_cuda
