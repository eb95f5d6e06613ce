"""Zuko behind Pyro's back: argument validation, and flows as full distributions."""

import subprocess
import sys
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.nn import PyroModule, pyro_method
from torch import nn

from pyro_causal._pyro import FlowDistribution, NormalizingFlow, register, zuko


def flag_after(code: str) -> bool:
    """Run code in a fresh process and see whether torch validates arguments afterwards."""
    code += "\nimport torch; print(bool(torch.distributions.Distribution._validate_args))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout == "True\n"


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("import torch", True),
        ("import zuko", True),
        ("import pyro, zuko", True),
        ("import pyro; pyro.enable_validation(False)", False),
        ("import pyro, zuko; pyro.enable_validation(False)", False),
        (
            "import pyro, torch; torch.distributions.Distribution.set_default_validate_args(0)",
            False,
        ),
    ],
)
def test_importing_leaves_validation_as_the_user_has_it(before: str, expected: bool) -> None:
    assert flag_after(f"{before}\nimport pyro_causal._pyro") is expected


def test_importing_zuko_does_switch_validation_off() -> None:
    """Should zuko ever stop, then the lines that restore the flag can go."""
    assert flag_after("import zuko") is False


def flow(features: int = 3, batch: tuple[int, ...] = (), context: int = 2) -> NormalizingFlow:
    lazy = zuko.flows.NSF(features=features, context=context, transforms=2, hidden_features=[8])
    return lazy(torch.randn(*batch, context))


@pytest.mark.parametrize("batch", [(), (5,), (4, 1), (2, 3, 5)])
def test_shapes_follow_the_context(batch: tuple[int, ...]) -> None:
    d = FlowDistribution(flow(3, batch))
    assert (d.batch_shape, d.event_shape, d.event_dim) == (batch, (3,), 1)
    x = d.rsample((7,))
    assert x.shape == (7, *batch, 3)
    assert d.log_prob(x).shape == (7, *batch)
    assert d.base.batch_shape == batch


def test_density_is_the_change_of_variables() -> None:
    d = FlowDistribution(flow(3, (5,)))
    x = torch.randn(5, 3)
    z = d.transform(x)
    jacobian = torch.autograd.functional.jacobian(d.transform, x)
    ladj = torch.stack([jacobian[i, :, i].slogdet().logabsdet for i in range(5)])
    torch.testing.assert_close(d.log_prob(x), d.base.log_prob(z) + ladj)
    torch.testing.assert_close(d.transform.inv(z), x, atol=1e-5, rtol=0)


def test_expand_shares_the_transform() -> None:
    d = FlowDistribution(flow(3, (4, 1)))
    e = d.expand((2, 4, 6))
    assert (e.batch_shape, e.event_shape) == ((2, 4, 6), (3,))
    x = e.sample()
    torch.testing.assert_close(e.log_prob(x), d.log_prob(x))
    assert e.transform is d.transform
    assert e.support is d.support
    assert e.expand_by((9,)).sample().shape == (9, 2, 4, 6, 3)


def test_expand_keeps_validation() -> None:
    negative = -torch.ones(3, 2)
    for validate in (None, True):
        d = FlowDistribution(flow(2), support=constraints.positive, validate_args=validate)
        with pytest.raises(ValueError, match="within the support"):
            d.expand((3,)).log_prob(negative)
    d = FlowDistribution(flow(2), support=constraints.positive, validate_args=False)
    assert d.expand((3,)).log_prob(negative).isfinite().all()


def test_samples_are_independent_over_an_expanded_batch() -> None:
    x = FlowDistribution(flow(3)).expand((50,)).sample()
    assert len(x.unique(dim=0)) == 50


def test_scalar_flows() -> None:
    lazy = zuko.flows.NSF(features=1, context=2, transforms=2, hidden_features=[8])
    context = torch.randn(5, 2)
    vector, scalar = FlowDistribution(lazy(context)), FlowDistribution(lazy(context), scalar=True)
    assert (scalar.batch_shape, scalar.event_shape) == ((5,), ())
    assert scalar.support is constraints.real
    x = scalar.expand((3, 5)).sample()
    assert x.shape == (3, 5)
    torch.testing.assert_close(scalar.log_prob(x), vector.log_prob(x[..., None]))
    u = scalar.transform(x)
    assert u.shape == (3, 5)
    assert scalar.base.expand((3, 5)).log_prob(u).shape == (3, 5)
    torch.testing.assert_close(scalar.transform.inv(u), x, atol=1e-5, rtol=0)


def test_gradients_and_their_absence() -> None:
    d = FlowDistribution(flow(3, (5,)))
    assert d.has_rsample
    assert d.rsample().requires_grad
    assert not d.sample().requires_grad
    discrete = NormalizingFlow(zuko.transforms.IdentityTransform(), dist.Poisson(3.0))
    assert not FlowDistribution(discrete).has_rsample


@pytest.mark.parametrize(
    ("support", "event_dim", "inside", "outside"),
    [
        (None, 1, [-3.0, 3.0], [float("nan"), 0.0]),
        (constraints.positive, 1, [1.0, 3.0], [1.0, -3.0]),
        (constraints.independent(constraints.interval(0.0, 1.0), 1), 1, [0.5, 0.5], [0.5, 1.5]),
    ],
)
def test_support(
    support: constraints.Constraint | None, event_dim: int, inside: list, outside: list
) -> None:
    d = FlowDistribution(flow(2), support=support)
    assert d.support.event_dim == event_dim
    assert d.expand((3,)).support.check(torch.tensor(inside))
    assert not d.support.check(torch.tensor(outside))
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(torch.tensor(outside))
    unchecked = FlowDistribution(flow(2), support=constraints.positive, validate_args=False)
    assert unchecked.log_prob(torch.tensor([1.0, -3.0])).isfinite()


def test_validation_of_shapes() -> None:
    d = FlowDistribution(flow(3, (5,)))
    with pytest.raises(ValueError, match="right-most size of value must match event_shape"):
        d.log_prob(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="not broadcastable"):
        d.log_prob(torch.zeros(4, 3))


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"got NSF\. Call a lazy flow with its context first"):
        FlowDistribution(zuko.flows.NSF(features=2))
    with pytest.raises(ValueError, match=r"events of shape \(1,\), got \(2,\)\. Use a flow with"):
        FlowDistribution(flow(2), scalar=True)


def test_repr() -> None:
    text = repr(FlowDistribution(flow(3, (5,)), support=constraints.positive))
    assert text.startswith("FlowDistribution(batch_shape=(5,), event_shape=(3,), support=Indep")


class Model(nn.Module):
    """Flows at a vector site, at a positive scalar site, and in a plate with a latent context."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = zuko.flows.MAF(features=2, transforms=1, hidden_features=[4])
        self.scalar = zuko.flows.NSF(features=1, transforms=1, bins=4)
        self.local = zuko.flows.NSF(features=1, context=3, transforms=1, bins=4)

    def forward(self, data: torch.Tensor | None = None) -> torch.Tensor:
        pyro.module("model", self)
        v = pyro.sample("v", FlowDistribution(self.vector()))
        p = pyro.sample("p", positive(self.scalar()))
        with pyro.plate("data", 6):
            context = torch.cat([v, p[..., None]], -1)
            z = pyro.sample("z", FlowDistribution(self.local(context), scalar=True))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=data)


def positive(real: NormalizingFlow) -> FlowDistribution:
    logarithm = torch.distributions.ExpTransform().inv
    transform = zuko.transforms.ComposedTransform(logarithm, real.transform)
    return FlowDistribution(
        NormalizingFlow(transform, real.base), support=constraints.positive, scalar=True
    )


@pytest.mark.parametrize(
    "autoguide",
    [
        AutoDelta,
        AutoNormal,
        AutoDiagonalNormal,
        AutoMultivariateNormal,
        AutoLowRankMultivariateNormal,
        AutoIAFNormal,
        AutoLaplaceApproximation,
        AutoStructured,
        AutoGaussian,
        AutoNormalMessenger,
    ],
)
def test_automatic_guides(autoguide: Callable) -> None:
    model = Model()
    guide = autoguide(model)
    check_training(model, guide, Trace_ELBO())
    assert poutine.trace(guide).get_trace(torch.randn(6)).nodes["p"]["value"] > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("elbo", [JitTrace_ELBO(ignore_jit_warnings=True), TraceGraph_ELBO()])
def test_losses(elbo: Trace_ELBO) -> None:
    model = Model()
    check_training(model, AutoNormal(model), elbo)


def check_training(model: Model, guide: Callable, elbo: Trace_ELBO) -> None:
    data = torch.randn(6)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        assert torch.tensor(svi.step(data)).isfinite()
    for old, new in zip(before, model.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_svi_approaches_the_evidence() -> None:
    """The flow is the prior, so the evidence has a closed form to compare with."""
    transform = torch.distributions.AffineTransform(1.0, 2.0).inv
    prior = NormalizingFlow(transform, dist.Normal(0.0, 1.0))

    def model() -> None:
        z = pyro.sample("z", FlowDistribution(prior))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    guide = AutoNormal(model)
    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(150):
        svi.step()
    evidence = dist.Normal(1.0, 5**0.5).log_prob(torch.tensor(2.0)).item()
    loss = Trace_ELBO(num_particles=500, vectorize_particles=True).loss(model, guide)
    assert loss == pytest.approx(-evidence, abs=0.02)
    median = guide.median()["z"].item()
    assert median == pytest.approx(1 + 4 / 5 * (2 - 1), abs=0.1)


@pytest.mark.parametrize("parallel", [False, True])
def test_prior_predictive(parallel: bool) -> None:
    samples = Predictive(Model(), num_samples=8, parallel=parallel)()
    assert samples["x"].shape == (8, 6)
    assert samples["z"].shape == (8, 6)
    assert samples["v"].reshape(8, 2).unique(dim=0).shape == (8, 2)
    assert (samples["p"] > 0).all()


def test_enumeration_of_a_parent_is_exact() -> None:
    lazy = zuko.flows.NSF(features=1, context=3, transforms=1, bins=4)
    x = torch.tensor([0.3, -0.7])

    @config_enumerate
    def model() -> None:
        with pyro.plate("data", 2):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            context = nn.functional.one_hot(k, 3).float()
            pyro.sample("x", FlowDistribution(lazy(context), scalar=True), obs=x)

    loss = TraceEnum_ELBO().loss(model, lambda: None)
    by_hand = FlowDistribution(lazy(torch.eye(3)[:, None]).expand((3, 2)), scalar=True).log_prob(x)
    expected = (torch.tensor([0.2, 0.3, 0.5]).log()[:, None] + by_hand).logsumexp(0).sum()
    assert loss == pytest.approx(-expected.item(), abs=1e-5)


def test_worlds_broadcast() -> None:
    """A context with a world axis: factual rows keep their density."""
    lazy = zuko.flows.NSF(features=1, context=2, transforms=1, bins=4)
    context = torch.randn(4, 5, 2)
    d = FlowDistribution(lazy(context), scalar=True)
    assert d.batch_shape == (4, 5)
    x = torch.randn(5)
    factual = FlowDistribution(lazy(context[0]), scalar=True)
    torch.testing.assert_close(d.log_prob(x)[0], factual.log_prob(x))
    torch.testing.assert_close(d.transform(x)[0], factual.transform(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    d = FlowDistribution(zuko.flows.NSF(features=2).to(dtype)())
    assert d.sample().dtype == d.log_prob(d.sample()).dtype == dtype


class Slope(PyroModule):
    """Registers its layers, which may lie in memory in any order."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    @pyro_method
    def model(self, x: torch.Tensor) -> None:
        register(self, "layers")
        with pyro.plate("rows", len(x)):
            loc = self._modules["layers"][0](x).flatten(1).sum(-1)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.ones(len(x)))

    def guide(self, x: torch.Tensor) -> None:
        """Nothing is latent."""


def steps(slope: Slope, svi: SVI, number: int) -> torch.Tensor:
    x = torch.arange(8.0).reshape(2, 4, 1, 1) / 8
    for _ in range(number):
        svi.step(x)
    return torch.cat([p.detach().flatten() for p in slope.parameters()])


def slope_and_svi() -> tuple[Slope, SVI]:
    torch.manual_seed(0)
    slope = Slope(nn.Conv2d(4, 2, 1))
    return slope, SVI(slope.model, slope.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def test_two_modules_of_a_class_train_in_turn() -> None:
    one, svi_of_one = slope_and_svi()
    expected = [steps(one, svi_of_one, n) for n in (0, 5, 5)]
    pyro.clear_param_store()
    one, svi_of_one = slope_and_svi()
    two, svi_of_two = slope_and_svi()
    found = [steps(one, svi_of_one, n) for n in (0, 5)]
    assert torch.equal(steps(two, svi_of_two, 5), expected[1])
    found.append(steps(one, svi_of_one, 5))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.equal(steps(two, svi_of_two, 0), expected[1])
    store = pyro.get_param_store()
    assert len(store) == 2
    assert [store.param_name(p) for p in two.parameters()] == [None, None]  # not kept alive


def test_parameters_of_any_memory_format_train() -> None:
    slope = Slope(nn.Conv2d(4, 2, 2, padding=1).to(memory_format=torch.channels_last))
    assert not slope.layers[0].weight.is_contiguous()
    svi = SVI(slope.model, slope.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    before = steps(slope, svi, 0)
    assert (steps(slope, svi, 1) != before).all()


def test_frozen_parameters_stay_out_of_the_store() -> None:
    slope, svi = slope_and_svi()
    slope.layers[0].bias.requires_grad_(False)
    steps(slope.eval(), svi, 1)
    assert [*pyro.get_param_store()] == ["layers$$$0.weight"]


def test_what_is_frozen_while_it_trains_is_frozen_on_purpose() -> None:
    """Training mode is when Pyro would warn; other warnings pass."""
    slope, svi = slope_and_svi()
    steps(slope, svi, 1)
    slope.layers[0].bias.requires_grad_(False)
    bias, weight = (p.detach().clone() for p in (slope.layers[0].bias, slope.layers[0].weight))
    steps(slope.train(), svi, 2)
    assert torch.equal(slope.layers[0].bias, bias)
    assert not torch.equal(slope.layers[0].weight, weight)
    slope.layers[0].bias.requires_grad_(True)
    steps(slope, svi, 1)
    assert not torch.equal(slope.layers[0].bias, bias)

    class Warns(PyroModule):
        @property
        def layers(self) -> None:
            warnings.warn("something else", UserWarning, stacklevel=2)

    with pytest.warns(UserWarning, match="something else"):
        register(Warns(), "layers")


def test_modules_may_keep_their_parameters_to_themselves() -> None:
    with pyro.settings.context(module_local_params=True):
        slope, _ = slope_and_svi()
        elbo = Trace_ELBO()(slope.model, slope.guide)
        elbo(torch.ones(2, 4, 1, 1)).backward()
    assert not pyro.get_param_store() and not slope._pyro_context.param_state["params"]
    assert all(p.grad is not None for p in slope.parameters())
