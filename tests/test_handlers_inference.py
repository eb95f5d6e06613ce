"""Inference under `worlds` is inference without: same losses, gradients, estimates, posteriors."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    autoguide,
    config_enumerate,
)
from pyro.infer.autoguide.initialization import init_to_sample
from torch.testing import assert_close

from pyro_causal.handlers import do, worlds

N = 5
Y = torch.linspace(-1.0, 2.0, N)
ACTIONS = [{"x": 1.0}, {"x": torch.arange(float(N)), "h": 2.0}]


def model(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N):
        x = pyro.sample("x", dist.Normal(loc, 1.0))
        h = pyro.sample("h", dist.LogNormal(0.5 * x, 1.0))
        return pyro.sample("y", dist.Normal(x + h, 1.0), obs=y)


def in_worlds(y):
    return worlds(model, ACTIONS)(y)


def mean_field_guide(y):
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    shift = pyro.param("shift", torch.zeros(N))
    pyro.sample("loc", dist.Normal(0.0, scale))
    with pyro.plate("rows", N):
        pyro.sample("x", dist.Normal(shift, scale))
        pyro.sample("h", dist.LogNormal(shift, scale))


def score_function_guide(y):
    q = pyro.param("q", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
    with pyro.plate("rows", N):
        pyro.sample("b", dist.Bernoulli(q))


def discrete_model(y):
    with pyro.plate("rows", N):
        x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=Y)
        b = pyro.sample("b", dist.Bernoulli(logits=torch.tensor(0.5)))
        return pyro.sample("y", dist.Normal(x + b, 1.0), obs=y)


def loss_and_gradients(elbo, program, guide):
    pyro.clear_param_store()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; nothing to enumerate
        guide(Y)  # creates the parameters
        pyro.set_rng_seed(0)
        loss = elbo.loss_and_grads(program, guide, Y)
    store = pyro.get_param_store()
    return loss, {name: store[name].unconstrained().grad for name in sorted(store)}


def assert_same_gradients(make_elbo, program, guide):
    loss, gradients = loss_and_gradients(make_elbo(), program, guide)
    for causal in (worlds(program, ACTIONS[:1]), worlds(program, ACTIONS[:1] * 2)):
        other_loss, other_gradients = loss_and_gradients(make_elbo(), causal, guide)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            assert_close(other_gradients[name], gradient, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


ELBOS = {
    "trace": Trace_ELBO,
    "trace, particles": lambda: Trace_ELBO(num_particles=7, vectorize_particles=True),
    "trace, sequential particles": lambda: Trace_ELBO(num_particles=3),
    "enum": TraceEnum_ELBO,
    "enum, particles": lambda: TraceEnum_ELBO(num_particles=7, vectorize_particles=True),
    "mean field": TraceMeanField_ELBO,
    "mean field, particles": lambda: TraceMeanField_ELBO(7, vectorize_particles=True),
    "graph": TraceGraph_ELBO,
    "renyi": lambda: RenyiELBO(alpha=0.5, num_particles=5, vectorize_particles=True),
    "jit": lambda: JitTrace_ELBO(ignore_jit_warnings=True),
    "jit, particles": lambda: JitTrace_ELBO(
        num_particles=7, vectorize_particles=True, ignore_jit_warnings=True
    ),
    "jit enum": lambda: JitTraceEnum_ELBO(ignore_jit_warnings=True),
    "jit mean field": lambda: JitTraceMeanField_ELBO(ignore_jit_warnings=True),
}


@pytest.mark.parametrize("name", ELBOS)
def test_loss_and_gradients_of_every_elbo(name):
    assert_same_gradients(ELBOS[name], model, mean_field_guide)


@pytest.mark.parametrize("name", ["trace", "trace, particles", "enum", "graph"])
def test_score_function_gradients(name):
    assert_same_gradients(ELBOS[name], discrete_model, score_function_guide)


@pytest.mark.parametrize(
    "elbo",  # told the nesting: a run to guess it would draw noise of `b`, and shift the others'
    [Trace_ELBO, TraceGraph_ELBO, lambda: Trace_ELBO(7, 2, vectorize_particles=True)],
)
def test_score_function_gradients_of_a_reached_site(elbo):
    def program(y):
        with pyro.plate("rows", N):
            x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=Y)
            b = pyro.sample("b", dist.Bernoulli(logits=x))
            return pyro.sample("y", dist.Normal(x + b, 1.0), obs=y)

    assert_same_gradients(elbo, program, score_function_guide)


@pytest.mark.parametrize("side", ["guide", "model"])
def test_enumeration(side):
    enumerated = config_enumerate(default="parallel")
    if side == "guide":
        assert_same_gradients(TraceEnum_ELBO, discrete_model, enumerated(score_function_guide))
    else:
        program = enumerated(discrete_model)
        plain = TraceEnum_ELBO().loss(program, lambda y: None, Y)
        got = TraceEnum_ELBO().loss(worlds(program, ACTIONS[:1]), lambda y: None, Y)
        assert got == pytest.approx(plain, rel=1e-6)


def test_particles_with_a_given_nesting():
    def elbo(nesting):
        return lambda: Trace_ELBO(7, max_plate_nesting=nesting, vectorize_particles=True)

    assert_same_gradients(elbo(2), model, mean_field_guide)
    with pytest.raises(ValueError, match="Try increasing max_plate_nesting"):
        loss_and_gradients(elbo(1)(), in_worlds, mean_field_guide)


GUIDES = {
    "delta": autoguide.AutoDelta,
    "normal": autoguide.AutoNormal,
    "diagonal": autoguide.AutoDiagonalNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "low rank": autoguide.AutoLowRankMultivariateNormal,
    "structured": autoguide.AutoStructured,
}


@pytest.mark.parametrize("name", GUIDES)
def test_automatic_guides_laid_out_under_worlds(name):
    """A guide made for the program under `worlds` is the guide of the program."""
    shapes, losses = [], []
    for program in (model, in_worlds):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = GUIDES[name](program, init_loc_fn=init_to_sample)
        guide(Y)
        shapes.append({k: tuple(v.shape) for k, v in guide.named_parameters()})
        pyro.set_rng_seed(1)
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.fill_(0.1)
        losses.append(Trace_ELBO().loss(program, guide, Y))
    assert shapes[0] == shapes[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_maximum_likelihood_estimates():
    torch.manual_seed(0)
    x = torch.randn(200)
    y = 1.5 * x + 0.5 + 0.3 * torch.randn(200)

    def regression():
        a = pyro.param("a", torch.zeros(()))
        b = pyro.param("b", torch.zeros(()))
        s = pyro.param("s", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("rows", 200):
            t = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.sample("y", dist.Normal(a * t + b, s), obs=y)

    estimates = []
    for program in (regression, worlds(regression, [{"x": 3.0}, {"x": lambda x: -x}])):
        pyro.clear_param_store()
        svi = SVI(program, lambda: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(300):
            svi.step()
        estimates.append(torch.stack([pyro.param(p).detach() for p in "abs"]))
    assert_close(estimates[0], estimates[1], rtol=0, atol=1e-6)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert_close(estimates[1][0], slope, atol=1e-3, rtol=0)


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
def test_predictive(parallel):
    program = worlds(poutine.uncondition(model), ACTIONS)
    prior = Predictive(program, num_samples=4, parallel=parallel)(Y)
    assert prior["y"].shape == prior["h"].shape == (4, 3, N)
    assert (prior["x"][:, 1] == 1).all()
    posterior = {"loc": torch.randn(4), "x": torch.randn(4, N), "h": torch.rand(4, N)}
    draws = Predictive(in_worlds, posterior, parallel=parallel, return_sites=["x", "h", "y"])(Y)
    assert draws["h"].shape == draws["y"].shape == (4, 3, N)
    assert_close(draws["x"][:, 0], posterior["x"])
    assert_close(draws["y"][:, 0], Y.expand(4, N))
    e_h = posterior["h"].log() - 0.5 * posterior["x"]
    assert_close(draws["h"][:, 1], (0.5 + e_h).exp())


def test_predictive_with_a_guide():
    mean_field_guide(Y)
    draws = Predictive(in_worlds, guide=mean_field_guide, num_samples=4, parallel=True)(Y)
    assert draws["y"].shape == (4, 3, N)
    assert_close(draws["y"][:, 0], Y.expand(4, N))


def test_nuts_finds_the_posterior_of_the_program():
    y = torch.tensor([0.5, 1.5, 1.0])

    def conjugate():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        m = pyro.sample("m", dist.Normal(mu, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    program = worlds(conjugate, [{"mu": 5.0}, {"m": -1.0}])
    mcmc = MCMC(NUTS(program), num_samples=600, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    assert samples["mu"].shape == samples["m"].shape == (600,)
    # the prior covariance of (mu, m) is [[1, 1], [1, 2]]; three observations of m with variance 1
    precision = torch.tensor([[2.0, -1.0], [-1.0, 1.0]]) + torch.diag(torch.tensor([0.0, 3.0]))
    mean = torch.linalg.solve(precision, torch.tensor([0.0, 3.0]))
    draws = torch.stack([samples["mu"], samples["m"]])
    assert_close(draws.mean(1), mean, atol=0.12, rtol=0)
    assert_close(draws.cov(), precision.inverse(), atol=0.15, rtol=0)


def test_do_trains_an_interventional_model():
    """Stochastic `do` replaces a prior: the ELBO of the new model, at its exact posterior."""

    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))

    def posterior():
        pyro.sample("x", dist.Normal(6.0, 0.5**0.5))

    loss = Trace_ELBO().loss(do(program, {"x": dist.Normal(10.0, 1.0)}), posterior)
    evidence = dist.Normal(10.0, 2**0.5).log_prob(torch.tensor(2.0)).item()
    assert loss == pytest.approx(-evidence, rel=1e-5)


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu():
    traces = {}
    for device in ("cpu", "cuda"):

        def program(device=device):
            x = torch.arange(float(N), device=device)
            with pyro.plate("rows", N):
                x = pyro.sample("x", dist.Normal(x, 1.0), obs=x + 1)
                h = pyro.sample("h", dist.Gamma(x.exp(), 2.0), obs=x)
                pyro.sample("y", dist.Normal(x + h, 1.0), obs=x)

        traces[device] = poutine.trace(worlds(program, {"x": 2.0})).get_trace()
    for name in ("x", "h", "y"):
        cpu, gpu = (traces[d].nodes[name]["value"] for d in ("cpu", "cuda"))
        assert gpu.is_cuda
        assert_close(gpu.cpu(), cpu, rtol=1e-4, atol=1e-4)
    assert_close(traces["cuda"].log_prob_sum().cpu(), traces["cpu"].log_prob_sum())
