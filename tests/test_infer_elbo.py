"""The bound against closed forms: value, gradient, particles, worlds, order and kind of sites."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.infer.elbo import ELBOModule
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_causal import worlds
from pyro_causal.infer.elbo import MeanFieldELBO

ROWS, NOISE = 6, 0.6
BETAS = [0.5, 1.0, 3.0]


class LinearVAE(PyroModule):
    """z in R^2, x in R^3: x = W z + b + noise; the columns of W are orthogonal."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[1.0, 0.4], [0.5, -0.8], [0.0, 1.2]]).double())
        self.b = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]).double())
        self.A = nn.Parameter(0.2 * torch.ones(2, 3).double())
        self.log_s = nn.Parameter(torch.tensor([-0.5, -0.2]).double())

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T + self.b, NOISE).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", ROWS):
            pyro.sample("z", dist.Normal(x @ self.A.T, self.log_s.exp()).to_event(1))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E_q log p(x | z) and the divergence, in closed form."""
        m, v = x @ self.A.T, (2 * self.log_s).exp()
        error = (x - m @ self.W.T - self.b).square().sum() + ROWS * ((self.W**2).sum(0) * v).sum()
        fit = -error / (2 * NOISE**2) - ROWS * 3 * math.log(NOISE * math.sqrt(2 * math.pi))
        kl = 0.5 * (m.square().sum() + ROWS * (v - 1 - v.log()).sum())
        return fit, kl

    def evidence(self, x: Tensor) -> Tensor:
        covariance = self.W @ self.W.T + NOISE**2 * torch.eye(3).double()
        return dist.MultivariateNormal(self.b, covariance).log_prob(x).sum()

    def make_exact(self) -> None:
        """Set the guide to the posterior, which is diagonal for these columns."""
        with torch.no_grad():
            self.W[:, 1] -= (
                self.W[:, 0] * (self.W[:, 0] @ self.W[:, 1]) / self.W[:, 0].square().sum()
            )
            self.b.zero_()
            v = 1 / (1 + self.W.square().sum(0) / NOISE**2)
            self.A.copy_(v[:, None] * self.W.T / NOISE**2)
            self.log_s.copy_(v.log() / 2)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(ROWS, 3, dtype=torch.float64)


def particles(beta: float = 1.0, number: int = 20_000) -> MeanFieldELBO:
    return MeanFieldELBO(
        beta=beta, num_particles=number, vectorize_particles=True, max_plate_nesting=1
    )


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.parametrize("beta", BETAS)
def test_the_value(beta: float, x: Tensor) -> None:
    vae = LinearVAE()
    fit, kl = vae.parts(x)
    loss = particles(beta).differentiable_loss(vae.model, vae.guide, x)
    assert loss.item() == pytest.approx((-fit + beta * kl).item(), abs=0.15)
    loss = particles(beta).loss_and_grads(vae.model, vae.guide, x)
    assert loss == pytest.approx((-fit + beta * kl).item(), abs=0.15)


@pytest.mark.parametrize("beta", BETAS)
def test_what_is_only_evaluated_is_the_bound(beta: float, x: Tensor) -> None:
    vae = LinearVAE()
    fit, kl = vae.parts(x)
    assert particles(beta).loss(vae.model, vae.guide, x) == pytest.approx(
        (-fit + kl).item(), abs=0.15
    )
    svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.0}), particles(beta))
    assert svi.evaluate_loss(x) == pytest.approx((-fit + kl).item(), abs=0.15)
    assert svi.step(x) == pytest.approx((-fit + beta * kl).item(), abs=0.15)


def test_the_bound_is_one_and_is_met_at_the_posterior(x: Tensor) -> None:
    vae = LinearVAE()
    fit, kl = vae.parts(x)
    bound = -particles().loss(vae.model, vae.guide, x)
    assert bound == pytest.approx((fit - kl).item(), abs=0.15)
    assert bound < vae.evidence(x).item() - 1
    vae.make_exact()
    bound = -particles().loss(vae.model, vae.guide, x)
    assert bound == pytest.approx(vae.evidence(x).item(), abs=0.1)


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_are_finite_differences_of_the_closed_form(beta: float, x: Tensor) -> None:
    vae = LinearVAE()
    particles(beta).loss_and_grads(vae.model, vae.guide, x)
    found = gradients(vae)

    def objective() -> float:
        fit, kl = vae.parts(x)
        return (-fit + beta * kl).item()

    for name, parameter in vae.named_parameters():
        for index in range(parameter.numel()):
            with torch.no_grad():
                flat = parameter.view(-1)
                flat[index] += 1e-4
                above = objective()
                flat[index] -= 2e-4
                below = objective()
                flat[index] += 1e-4
            slope = found[name].view(-1)[index].item()
            assert slope == pytest.approx((above - below) / 2e-4, abs=0.3), (name, index)


def test_the_divergence_has_no_noise(x: Tensor) -> None:
    """What varies between two evaluations is the fit alone."""
    vae = LinearVAE()
    with torch.no_grad():
        vae.W.zero_()
    losses = {MeanFieldELBO().loss(vae.model, vae.guide, x) for _ in range(5)}
    assert max(losses) - min(losses) < 1e-12
    assert Trace_ELBO().loss(vae.model, vae.guide, x) not in losses


def test_particles_at_once_are_particles_one_by_one(x: Tensor) -> None:
    vae = LinearVAE()
    one = MeanFieldELBO(beta=2.0, num_particles=3)
    both = [
        torch.tensor([loss.differentiable_loss(vae.model, vae.guide, x).item() for _ in range(600)])
        for loss in (one, particles(2.0, 3))
    ]
    error = math.sqrt(sum(losses.var().item() for losses in both) / 600)
    assert abs(both[0].mean() - both[1].mean()) < 4 * error
    assert both[0].std() / both[1].std() == pytest.approx(1, abs=0.15)
    with torch.no_grad():
        vae.W.zero_()  # without noise they agree exactly
    first, second = (
        loss.differentiable_loss(vae.model, vae.guide, x) for loss in (one, particles(2.0))
    )
    torch.testing.assert_close(first, second)


def test_it_is_pyros_where_pyros_holds(x: Tensor) -> None:
    for options in ({}, {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}):
        vae = LinearVAE()
        results = []
        for kind in (MeanFieldELBO, TraceMeanField_ELBO):
            pyro.set_rng_seed(1)
            results.append(
                (kind(**options).loss_and_grads(vae.model, vae.guide, x), gradients(vae))
            )
        torch.testing.assert_close(*results)


def test_automatic_guides_of_positive_sites() -> None:
    """They change variables, which their density knows and Pyro's formula for them does not."""

    def model() -> None:
        scale = pyro.sample("scale", dist.Gamma(3.0, 2.0))
        pyro.sample("x", dist.Normal(0.0, scale), obs=torch.tensor(1.3))

    start = init_to_value(values={"scale": torch.tensor(3.0)})
    guide = AutoNormal(model, init_scale=0.4, init_loc_fn=start)
    options = {"num_particles": 50_000, "vectorize_particles": True, "max_plate_nesting": 0}
    ours = MeanFieldELBO(**options).loss(model, guide)
    assert ours == pytest.approx(Trace_ELBO(**options).loss(model, guide), abs=0.01)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_wrong_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=f"expected a positive beta, got {beta}. Give 1 or more"):
        MeanFieldELBO(beta=beta)


# --- modules --------------------------------------------------------------------------------------


def test_the_module_form_holds_all_parameters_and_trains(x: Tensor) -> None:
    vae = LinearVAE()
    module = particles(number=20)(vae.model, vae.guide)
    assert isinstance(module, ELBOModule)
    assert {id(p) for p in module.parameters()} == {id(p) for p in vae.parameters()}
    assert len(list(module.parameters())) == 4
    before = [p.detach().clone() for p in vae.parameters()]
    optimiser, losses = torch.optim.Adam(module.parameters(), 0.03), []
    for _ in range(200):
        optimiser.zero_grad()
        loss = module(x)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < sum(losses[:20]) - 20
    assert all((a != b).any() for a, b in zip(before, vae.parameters(), strict=True))
    module.eval()
    assert not vae.training


def test_a_pyro_optimiser_trains_the_same_ones(x: Tensor) -> None:
    vae = LinearVAE()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.03}), particles(number=20))
    before = [p.detach().clone() for p in vae.parameters()]
    losses = [svi.step(x) for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20]) - 20
    assert all((a != b).any() for a, b in zip(before, vae.parameters(), strict=True))


def test_models_and_guides_that_are_modules_or_belong_to_two(x: Tensor) -> None:
    one, two = LinearVAE(), LinearVAE()
    module = MeanFieldELBO()(one.model, two.guide)
    assert len(list(module.parameters())) == 8
    assert module(x).requires_grad

    class Owner:
        def guide(self, x: Tensor) -> None:
            two.guide(x)

    assert len(list(MeanFieldELBO()(one.model, Owner().guide).parameters())) == 4
    assert not list(MeanFieldELBO()(lambda x: one.model(x), Owner().guide).parameters())


# --- under handlers -------------------------------------------------------------------------------


class Confounded(PyroModule):
    """A latent z, a treatment t and an outcome y that follows both."""

    def __init__(self) -> None:
        super().__init__()
        self.effect = nn.Parameter(torch.tensor(0.7))
        self.slope = nn.Parameter(torch.tensor(0.3))
        self.guess = nn.Parameter(torch.tensor(0.5))

    @pyro_method
    def model(self, t: Tensor, y: Tensor) -> None:
        with pyro.plate("rows", len(t)):
            t = pyro.sample("t", dist.Normal(0.0, 1.0), obs=t)
            z = pyro.sample("z", dist.Normal(self.slope * t, 1.0))
            pyro.sample("y", dist.Normal(self.effect * t + z, 0.5), obs=y)

    @pyro_method
    def guide(self, t: Tensor, y: Tensor) -> None:
        with pyro.plate("rows", len(t)):
            pyro.sample("z", dist.Normal(self.guess * (y - t), 0.6))


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize(
    "actions", [[{"t": 1.0}], [{"t": 0.0}, {"z": 2.0, "t": -1.0}], [{"y": 0.0}]], ids=str
)
def test_a_step_under_worlds_is_the_same_step(number: int, actions: list[Any]) -> None:
    program, t, y = Confounded(), torch.randn(5), torch.randn(5)
    results = []
    for model in (program.model, worlds(program.model, actions)):
        pyro.set_rng_seed(3)
        loss = MeanFieldELBO(
            beta=2.0, num_particles=number, vectorize_particles=number > 1, max_plate_nesting=2
        ).loss_and_grads(model, program.guide, t, y)
        results.append((loss, gradients(program)))
        assert len(results[-1][1]) == 3
    torch.testing.assert_close(*results)


def test_scales_and_masks_reach_the_divergence(x: Tensor) -> None:
    vae = LinearVAE()
    with torch.no_grad():
        vae.W.zero_()
    fit, kl = vae.parts(x)
    scaled = [poutine.scale(fn, 0.25) for fn in (vae.model, vae.guide)]
    loss = MeanFieldELBO(beta=2.0).differentiable_loss(*scaled, x)
    assert loss.item() == pytest.approx(0.25 * (-fit + 2 * kl).item())
    mask = torch.arange(ROWS) < 2
    masked = [poutine.mask(fn, mask) for fn in (vae.model, vae.guide)]
    kept = x.clone()
    kept[2:] = 0
    loss = MeanFieldELBO(beta=2.0).differentiable_loss(*masked, x)
    rows = [poutine.mask(fn, mask) for fn in (vae.model, vae.guide)]
    assert loss.item() == pytest.approx(
        MeanFieldELBO(beta=2.0).differentiable_loss(*rows, kept).item()
    )
    assert loss.item() < (-fit + 2 * kl).item()


# --- order of sites -------------------------------------------------------------------------------


class Backwards(PyroModule):
    """A guide that draws first what the model draws last, and the other given it."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.4))
        self.log_scale = nn.Parameter(torch.tensor(0.7).log())
        self.slope = nn.Parameter(torch.tensor(0.8))
        self.spread = nn.Parameter(torch.tensor(0.8))

    @pyro_method
    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        a = pyro.sample("a", dist.Normal(z, self.spread))
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(self.loc, self.log_scale.exp()))
        pyro.sample("z", dist.Normal(self.slope * a - 0.1, 0.5))

    def bound(self, x: Tensor) -> Tensor:
        """By integration over a grid."""
        points = torch.linspace(-6, 6, 801)
        a, z = torch.meshgrid(points, points, indexing="ij")
        log_q = dist.Normal(self.loc, self.log_scale.exp()).log_prob(a)
        log_q = log_q + dist.Normal(self.slope * a - 0.1, 0.5).log_prob(z)
        log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, self.spread).log_prob(a)
        log_p = log_p + dist.Normal(a, 1.0).log_prob(x)
        return ((log_p - log_q) * log_q.exp()).sum() * (points[1] - points[0]) ** 2


def test_no_closed_form_where_it_would_be_wrong() -> None:
    """Given `z`, which the guide draws after `a`, the divergence of `a` is not the one at hand."""
    program, x = Backwards(), torch.tensor(1.5)
    bound = program.bound(x)
    (-bound).backward()
    expected = gradients(program)
    loss = particles(number=200_000).loss_and_grads(program.model, program.guide, x)
    assert loss == pytest.approx(-bound.item(), abs=0.01)
    torch.testing.assert_close(gradients(program), expected, atol=0.03, rtol=0)


def test_the_other_site_keeps_its_closed_form() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    def guide() -> None:
        a = pyro.sample("a", dist.Normal(0.3, 0.5))
        pyro.sample("b", dist.Normal(a + 0.2, 0.5))

    kl = dist.Normal(0.2, 0.5), dist.Normal(0.0, 1.0)
    expected = sum(
        torch.distributions.kl_divergence(q, kl[1]) for q in (kl[0], dist.Normal(0.3, 0.5))
    )
    assert MeanFieldELBO().loss(model, guide) == pytest.approx(expected.item())


def test_a_site_that_the_guide_alone_has() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("e", dist.Normal(0.0, 2.0), infer={"is_auxiliary": True})

    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)) + dist.Normal(0.0, 2.0).entropy()
    found = particles(number=50_000).loss(model, guide)
    assert found == pytest.approx(-expected.item(), abs=0.02)


# --- discrete latent sites ------------------------------------------------------------------------

CENTRES = torch.tensor([-1.0, 0.5, 2.0])


class Mixture(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.4, -0.3, 0.1]))
        self.shift = nn.Parameter(torch.tensor(0.2))
        self.prior = nn.Parameter(torch.tensor([0.0, 0.5, -0.5]))

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.prior))
            z = pyro.sample("z", dist.Normal(CENTRES[c], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits + x[:, None] * CENTRES))
            pyro.sample("z", dist.Normal(self.shift + 0.5 * (x + CENTRES[c]), 0.7))

    def objective(self, x: Tensor, beta: float) -> Tensor:
        """Summed over the categories, with the closed form of the rest."""
        q = torch.log_softmax(self.logits + x[:, None] * CENTRES, -1)
        m = self.shift + 0.5 * (x[:, None] + CENTRES)
        fit = -((x[:, None] - m) ** 2 + 0.49) / 2 - 0.5 * math.log(2 * math.pi)
        kl = 0.5 * ((m - CENTRES) ** 2 + 0.49 - 1) - math.log(0.7)
        kl = kl + q - torch.log_softmax(self.prior, -1)
        return -(q.exp() * (fit - beta * kl)).sum()


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_gradients_of_discrete_sites(beta: float) -> None:
    program, x = Mixture(), torch.tensor([-0.5, 0.3, 1.5, 0.8])
    objective = program.objective(x, beta)
    objective.backward()
    expected = gradients(program)
    loss = particles(beta, 40_000).loss_and_grads(program.model, program.guide, x)
    assert loss == pytest.approx(objective.item(), abs=0.1)
    torch.testing.assert_close(gradients(program), expected, atol=0.06, rtol=0)
    evaluated = particles(beta, 40_000).loss(program.model, program.guide, x)
    assert evaluated == pytest.approx(program.objective(x, 1.0).item(), abs=0.1)


def test_discrete_sites_under_worlds() -> None:
    program, x, results = Mixture(), torch.tensor([-0.5, 0.3]), []
    for model in (program.model, worlds(program.model, [{"z": 1.0}])):
        pyro.set_rng_seed(2)
        loss = MeanFieldELBO(beta=2.0).loss_and_grads(model, program.guide, x)
        results.append((loss, gradients(program)))
    torch.testing.assert_close(*results)


def test_rows_do_not_pay_for_each_other() -> None:
    """The score of a row is weighed by the gain of that row: more rows, no more noise in it."""
    spreads = []
    for x in (torch.tensor([0.3]), torch.cat([torch.tensor([0.3]), 8 * torch.randn(50)])):
        program = Mixture()
        samples = []
        for _ in range(200):
            logits = torch.zeros(len(x), 3, requires_grad=True)

            def guide(x: Tensor, logits: Tensor = logits) -> None:
                with pyro.plate("rows", len(x)):
                    c = pyro.sample("c", dist.Categorical(logits=logits))
                    pyro.sample("z", dist.Normal(0.5 * (x + CENTRES[c]), 0.7))

            MeanFieldELBO().differentiable_loss(program.model, guide, x).backward()
            samples.append(logits.grad[0, 0])
        spreads.append(torch.stack(samples).std().item())
    assert spreads[1] == pytest.approx(spreads[0], rel=0.3)
