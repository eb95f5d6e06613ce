"""One contract over the amortised mechanisms, then densities, worlds and noise of each."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform, biject_to

from pyro_causal import CounterfactualPredictive, query, world, worlds
from pyro_causal._pyro import zuko
from pyro_causal.mechanisms import (
    AmortisedExplicit,
    AmortisedImplicit,
    AmortisedMechanism,
    ConditionalScale,
    Recorded,
    SoftLogitTransform,
)
from pyro_causal.noise import abduct, predict

EVENT = (2, 3, 4)
SIZE, LATENT = 24, 5
TWO = [(), (3,)]
GREY = constraints.interval(-1.0, 256.0)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
batches = pytest.mark.parametrize("batch", [(), (5,), (3, 5), (4, 1, 5)])


class Counted(Recorded):
    """A linear layer behind batch normalisation, which counts calls and rows."""

    def __init__(self, size: int, features: int, shape: Sequence[int], *, norm: bool = False):
        super().__init__()
        self.shape = torch.Size(shape)
        self.layer = nn.Linear(size + features, self.shape.numel())
        self.norm = nn.BatchNorm1d(size + features) if norm else nn.Identity()
        self.seen: list[int] = []

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        assert x.dim() > 1 and context.dim() == 2
        self.seen.append(len(x))
        rows = self.norm(torch.cat([x.flatten(1), context], 1))
        return 0.5 * self.layer(rows).reshape(len(x), *self.shape)


def build(
    kind: type[AmortisedMechanism] = AmortisedExplicit,
    parents: int | list[tuple[int, ...]] = 0,
    *,
    event: Sequence[int] = EVENT,
    norm: bool = False,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    shapes = [()] * parents if isinstance(parents, int) else parents
    features = sum(torch.Size(shape).numel() for shape in shapes)
    outputs = 1 + (options.get("scale") == "network") + options.get("rank", 0)
    encoder = Counted(torch.Size(event).numel(), features, [2 * LATENT], norm=norm)
    decoder = Counted(LATENT, features, [outputs * event[0], *event[1:]], norm=norm)
    mechanism = kind(
        encoder, decoder, latent=LATENT, event_shape=event, parents=parents, **options
    ).to(dtype)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return mechanism


def low_level(softness: float | None = None, features: int = 4) -> ConditionalScale:
    network = nn.Sequential(nn.Linear(features, 1), nn.Tanh())
    return ConditionalScale(features, event_dim=3, hidden=network, softness=softness)


CASES: dict[str, Callable[..., Any]] = {
    "shared scale": lambda **o: build(AmortisedExplicit, TWO, **o),
    "fixed scale": lambda **o: build(AmortisedExplicit, TWO, scale=0.3, **o),
    "network scale": lambda **o: build(AmortisedExplicit, TWO, scale="network", **o),
    "bounded": lambda **o: build(AmortisedExplicit, TWO, support=GREY, **o),
    "positive": lambda **o: build(AmortisedExplicit, TWO, support=constraints.positive, **o),
    "divided": lambda **o: build(AmortisedExplicit, TWO, low_level=low_level(), **o),
    "divided, soft": lambda **o: build(AmortisedExplicit, TWO, low_level=low_level(0.2), **o),
    "low rank": lambda **o: build(AmortisedExplicit, TWO, rank=2, **o),
    "everything": lambda **o: build(
        AmortisedExplicit, TWO, rank=1, scale="network", support=GREY, low_level=low_level(0.3), **o
    ),
    "implicit": lambda **o: build(AmortisedImplicit, TWO, **o),
}
EXPLICIT = [name for name in CASES if name != "implicit"]
every_case = pytest.mark.parametrize("name", CASES)
every_explicit_case = pytest.mark.parametrize("name", EXPLICIT)


def parents_of(batch: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A scalar parent with the whole batch shape and a vector parent with the last plate's only."""
    return [torch.randn(batch, dtype=dtype), torch.randn(*batch[-1:], 3, dtype=dtype)]


# --- the contract ---------------------------------------------------------------------------------


@every_case
@batches
def test_shapes(name: str, batch: tuple[int, ...]) -> None:
    mechanism, parents = CASES[name](), parents_of(batch)
    z = mechanism.prior().sample(batch)
    assert z.shape == (*batch, LATENT)
    d = mechanism(z, *parents)
    assert (d.batch_shape, d.event_shape) == (batch, EVENT)
    x = d.sample()
    assert x.shape == (*batch, *EVENT)
    assert d.log_prob(x).shape == batch
    assert d.expand((2, *batch)).sample().shape == (2, *batch, *EVENT)
    q = mechanism.posterior(x, *parents)
    assert (q.batch_shape, q.event_shape) == (batch, (LATENT,))
    assert q.rsample((7,)).shape == (7, *batch, LATENT)
    assert mechanism.prior().batch_shape == ()


@every_case
@pytest.mark.parametrize(
    ("of_z", "of_scalar", "of_vector"),
    [((5,), (3, 5), (5,)), ((7, 1, 5), (5,), ()), ((7, 1, 1), (3, 5), ()), ((), (3, 1), (5,))],
)
def test_batches_broadcast(
    name: str, of_z: tuple[int, ...], of_scalar: tuple[int, ...], of_vector: tuple[int, ...]
) -> None:
    mechanism = CASES[name]()
    z, scalar = torch.randn(*of_z, LATENT), torch.randn(of_scalar)
    vector = torch.randn(*of_vector, 3)
    batch = torch.broadcast_shapes(of_z, of_scalar, of_vector)
    d = mechanism(z, scalar, vector)
    assert d.batch_shape == batch
    x = d.sample()
    full = mechanism(z.expand(*batch, -1), scalar.expand(batch), vector.expand(*batch, -1))
    torch.testing.assert_close(d.log_prob(x), full.log_prob(x))
    y = x[(0,) * (len(batch) - 1)]  # observed once, for all worlds and particles
    torch.testing.assert_close(d.log_prob(y), full.log_prob(y.expand(x.shape)))
    q = mechanism.posterior(y, scalar, vector)
    shape = torch.broadcast_shapes(y.shape[:1], of_scalar, of_vector)
    assert q.batch_shape == shape
    whole = mechanism.posterior(
        y.expand(*shape, *EVENT), scalar.expand(shape), vector.expand(*shape, -1)
    )
    torch.testing.assert_close(q.mean, whole.mean)


@every_case
def test_rows_depend_on_their_own_parents_only(name: str) -> None:
    mechanism = CASES[name]()
    scalar, vector = parents_of((3, 5))
    z = torch.randn(5, LATENT)
    x = mechanism(z, scalar, vector).sample()
    whole, means = mechanism(z, scalar, vector).log_prob(x), mechanism.posterior(x, scalar, vector)
    for i in range(3):
        for j in range(5):
            one = mechanism(z[j], scalar[i, j], vector[j]).log_prob(x[i, j])
            torch.testing.assert_close(whole[i, j], one, rtol=1e-4, atol=1e-4)
            one = mechanism.posterior(x[i, j], scalar[i, j], vector[j]).mean
            torch.testing.assert_close(means.mean[i, j], one, rtol=1e-4, atol=1e-4)


@every_case
@batches
def test_networks_are_called_once(name: str, batch: tuple[int, ...]) -> None:
    """Worlds and particles are rows, so a batch normalisation updates its statistics once."""
    mechanism, parents = CASES[name](norm=True), parents_of(batch)
    mechanism.train(mode=batch != ())  # one row has no variance
    d = mechanism(torch.randn(batch[-1:] + (LATENT,)), *parents)
    x = d.sample()
    d.log_prob(x)
    mechanism.posterior(x, *parents)
    for network in (mechanism.encoder, mechanism.decoder):
        assert network.seen == [torch.Size(batch).numel()]
        assert network.norm.num_batches_tracked == (batch != ())


@every_case
def test_every_parameter_gets_a_gradient(name: str) -> None:
    mechanism, parents = CASES[name](norm=True), parents_of((6,))
    x = mechanism(torch.randn(6, LATENT), *parents).sample()
    z = mechanism.posterior(x, *parents).rsample()
    d = mechanism(z, *parents)
    (d.rsample().square().sum() if name == "implicit" else d.log_prob(x).sum()).backward()
    for label, parameter in mechanism.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().sum() > 0, label


@every_case
def test_a_root(name: str) -> None:
    kind = AmortisedImplicit if name == "implicit" else AmortisedExplicit
    mechanism = build(kind)
    with pyro.plate("rows", 4):
        z = pyro.sample("z", mechanism.prior())
        x = pyro.sample("x", mechanism(z))
    assert x.shape == (4, *EVENT)
    assert mechanism(z[0]).batch_shape == ()
    assert mechanism.posterior(x).batch_shape == (4,)


@every_case
def test_deepcopy_and_state(name: str) -> None:
    mechanism, parents = CASES[name](), parents_of((5,))
    z = torch.randn(5, LATENT)
    other = copy.deepcopy(mechanism)
    third = CASES[name]()
    third.load_state_dict(mechanism.state_dict())
    x = mechanism(z, *parents).sample()
    expected = mechanism.posterior(x, *parents).mean.detach(), mechanism(z, *parents).log_prob(x)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter += 1
    for same in (other, third):
        found = same.posterior(x, *parents).mean, same(z, *parents).log_prob(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every_case
def test_double_precision(name: str) -> None:
    mechanism, parents = CASES[name](dtype=torch.float64), parents_of((5,), torch.float64)
    z = mechanism.prior().sample((5,))
    x = mechanism(z, *parents).sample()
    assert z.dtype == x.dtype == mechanism.posterior(x, *parents).mean.dtype == torch.float64
    with pytest.raises(TypeError, match=r"wrong dtype of parent 0: expected torch.float64"):
        mechanism(z, *parents_of((5,)))


@every_case
def test_repr(name: str) -> None:
    text = repr(CASES[name]())
    assert f"parents=[(), (3,)], latent={LATENT}, event_shape={EVENT}" in text


def test_the_base_has_no_forward() -> None:
    with pytest.raises(NotImplementedError):
        build(AmortisedMechanism)(torch.zeros(LATENT))


# --- parents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AmortisedExplicit, AmortisedImplicit])
def test_parents_enter_on_the_real_line_and_standardised(kind: type[AmortisedMechanism]) -> None:
    mechanism = build(kind, 3, parent_supports=[constraints.positive, GREY, constraints.real])
    t, i, v = 3 * torch.rand(200) + 1, 255 * torch.rand(200), 7 + 2 * torch.randn(200)
    mechanism.set_normalisation(torch.randn(200, *EVENT), t, i, v)
    expected = torch.stack([t.log(), biject_to(GREY).inv(i), v], -1)
    expected = (expected - expected.mean(0)) / expected.std(0, correction=0)
    torch.testing.assert_close(mechanism.context(t, i, v), expected, atol=1e-4, rtol=1e-4)


def test_discrete_parents_enter_as_they_are() -> None:
    supports = [constraints.boolean, constraints.integer_interval(0, 9), constraints.one_hot]
    mechanism = build(AmortisedExplicit, [(), (), (3,)], parent_supports=supports)
    s, k, c = torch.tensor([0.0, 1.0]), torch.tensor([4.0, 7.0]), torch.eye(3)[:2]
    expected = torch.cat([s[:, None], k[:, None], c], -1)
    assert torch.equal(mechanism.context(s, k, c), expected)
    assert mechanism(mechanism.prior().sample((2,)), s, k, c).batch_shape == (2,)


def test_a_discrete_support_is_refused() -> None:
    with pytest.raises(ValueError, match="wrong support: expected a continuous one, got Integer"):
        build(support=constraints.integer_interval(0, 255))


def test_wrong_supports_of_parents() -> None:
    for supports in ([], [constraints.real]):
        message = f"wrong number of parent_supports: expected 2, got {len(supports)}. Give one"
        with pytest.raises(ValueError, match=message):
            build(AmortisedExplicit, 2, parent_supports=supports)


@pytest.mark.parametrize("kind", [AmortisedExplicit, AmortisedImplicit])
def test_wrong_parents(kind: type[AmortisedMechanism]) -> None:
    mechanism = build(kind, TWO)
    z, x = torch.zeros(LATENT), torch.zeros(EVENT)
    for call in (lambda *p: mechanism(z, *p), lambda *p: mechanism.posterior(x, *p)):
        with pytest.raises(ValueError, match="wrong number of parents: expected 2, got 1"):
            call(torch.zeros(()))
        with pytest.raises(ValueError, match="wrong event shape of parent 1"):
            call(torch.zeros(()), torch.zeros(2))
        with pytest.raises(TypeError, match="wrong dtype of parent 0.*one_hot"):
            call(torch.tensor(1), torch.zeros(3))


def test_wrong_networks() -> None:
    mechanism = build(AmortisedExplicit, 0)
    mechanism.encoder = Counted(SIZE, 0, [2 * LATENT + 1])
    with pytest.raises(
        ValueError, match=r"AmortisedExplicit: Counted returns \(5, 11\): expected \(5, 10\). Let"
    ):
        mechanism.posterior(torch.zeros(5, *EVENT))
    mechanism = build(AmortisedExplicit, 0, scale="network")
    mechanism.decoder = Counted(LATENT, 0, EVENT)
    with pytest.raises(ValueError, match=r"returns \(15, 2, 3, 4\): expected \(15, 4, 3, 4\)"):
        mechanism(torch.zeros(3, 5, LATENT))


@pytest.mark.parametrize("scale", [0.0, -1.0, "none", True, None])
def test_wrong_scale(scale: object) -> None:
    with pytest.raises(ValueError, match="expected a positive number, 'shared' or 'network', got"):
        build(scale=scale)


def test_a_whole_number_is_a_scale() -> None:
    assert build(scale=2)(torch.zeros(LATENT)).base_dist.base_dist.scale.unique() == 2.0


def test_an_event_needs_an_axis() -> None:
    with pytest.raises(ValueError, match=r"expected an event_shape of one axis or more, got \(\)"):
        AmortisedExplicit(nn.Identity(), nn.Identity(), latent=1, event_shape=())


def test_outputs() -> None:
    counts = {name: CASES[name]().outputs for name in EXPLICIT}
    assert counts.pop("everything") == counts.pop("low rank") == 3
    assert counts.pop("network scale") == 2
    assert set(counts.values()) == {1}


# --- densities ------------------------------------------------------------------------------------


def pieces(mechanism: Any, z: Tensor, *parents: Tensor) -> list[Tensor]:
    """What the decoder returns, cut along the first axis of the event."""
    context = mechanism.context(*parents)
    z = z.expand(*context.shape[:-1], -1)
    return list(mechanism.decoder(z, context).split(EVENT[0], 1))


def chart(mechanism: Any, x: Tensor, context: Tensor) -> Tensor:
    """The map from value to the decoder's scale, written out."""
    if mechanism.support is GREY:
        x = ((x + 1) / 257).logit()
    elif mechanism.support is constraints.positive:
        x = x.log()
    if mechanism.low_level is not None:
        network = mechanism.low_level.network.net
        x = x / network(context).exp()[..., None, None]
        if mechanism.low_level.softness is not None:
            x = SoftLogitTransform(mechanism.low_level.softness)(x)
    return x


@every_explicit_case
def test_density(name: str) -> None:
    """A Gaussian with the full covariance, times the Jacobian that autograd finds."""
    mechanism, parents = CASES[name](dtype=torch.float64), parents_of((5,), torch.float64)
    z = mechanism.prior().sample((5,))
    x = mechanism(z, *parents).sample().requires_grad_()
    loc, *rest = pieces(mechanism, z, *parents)
    y = chart(mechanism, x, mechanism.context(*parents))
    (slope,) = torch.autograd.grad(y.sum(), x)
    if mechanism.scale == "network":
        scale = mechanism.min_scale + nn.functional.softplus(rest.pop(0))
    elif mechanism.scale == "shared":
        scale = (mechanism.min_scale + mechanism.log_scale.exp()).expand_as(loc)
    else:
        scale = torch.full_like(loc, 0.3)
    covariance = torch.diag_embed(scale.flatten(1) ** 2)
    assert len(rest) == mechanism.rank
    for column in rest:
        covariance = covariance + column.flatten(1)[:, :, None] * column.flatten(1)[:, None, :]
    base = torch.distributions.MultivariateNormal(loc.flatten(1), covariance)
    expected = base.log_prob(y.flatten(1)) + slope.log().flatten(1).sum(1)
    torch.testing.assert_close(mechanism(z, *parents).log_prob(x), expected)


def test_samples_are_correlated_by_the_factor() -> None:
    mechanism = build(rank=2, dtype=torch.float64)
    z = torch.randn(LATENT, dtype=torch.float64)
    _, *columns = mechanism.decoder(z[None], torch.zeros(1, 0, dtype=torch.float64)).split(2, 1)
    x = mechanism(z).sample((20_000,)).flatten(1)
    columns = torch.stack([c.flatten() for c in columns], -1)
    scale = mechanism.min_scale + mechanism.log_scale.exp().flatten()
    expected = columns @ columns.T + torch.diag(scale**2)
    torch.testing.assert_close(x.T.cov(), expected.detach(), atol=0.1, rtol=0)


@pytest.mark.parametrize("support", [GREY, constraints.positive])
def test_samples_lie_in_the_support(support: constraints.Constraint) -> None:
    x = build(support=support)(torch.randn(50, LATENT)).sample()
    assert support.check(x).all()


def test_the_posterior_sees_what_the_decoder_predicts() -> None:
    """The encoder gets the value on the decoder's scale: what only a scale changes, it misses."""
    mechanism = build(AmortisedExplicit, TWO, low_level=low_level())
    a, b = parents_of((5,)), parents_of((5,))
    x = torch.rand(5, *EVENT)
    seen = []
    mechanism.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    scales = [mechanism.low_level(mechanism.context(*p)).inv(torch.ones(5, *EVENT)) for p in (a, b)]
    mechanism.posterior(x, *a)
    mechanism.posterior(x * scales[1] / scales[0], *b)
    torch.testing.assert_close(seen[0], seen[1])


def test_a_prior_of_your_own() -> None:
    class Prior(Recorded):
        def forward(self) -> dist.TorchDistribution:
            return dist.Laplace(torch.zeros(LATENT), 2.0).to_event(1)

    prior = build(latent_prior=Prior()).prior()
    assert isinstance(prior.base_dist, dist.Laplace)
    assert "latent_prior" in dict(build(latent_prior=Prior()).named_modules())


# --- a low level of your own ---


class Affine(nn.Module):
    """A shift and a scale that depend on the parents, without constants."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, context: Tensor) -> Transform:
        shift, log_scale = self.layer(context)[..., None, None, None].unbind(-4)
        return AffineTransform(shift, log_scale.exp())


class Spline(nn.Module):
    """A monotone spline of each element."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3 * 5 - 1)

    def forward(self, context: Tensor) -> Transform:
        widths, heights, slopes = self.layer(context)[..., None, None, None, :].split([5, 5, 4], -1)
        return zuko.transforms.MonotonicRQSTransform(widths, heights, slopes)


@pytest.mark.parametrize("own", [Affine, Spline])
@pytest.mark.parametrize("shared", [False, True])
def test_a_low_level_of_your_own(own: type[nn.Module], shared: bool) -> None:
    """Its density, its noise and its gradients; where particles share the value, too."""
    mechanism = build(AmortisedExplicit, TWO, low_level=own(), dtype=torch.float64)
    mechanism.set_normalisation(torch.randn(50, *EVENT).double(), *parents_of((50,), torch.float64))
    parents = parents_of((3, 5), torch.float64)
    z = mechanism.prior().sample((3, 5))
    d = mechanism(z, *parents)
    x = d.sample()[0] if shared else d.sample()
    u = abduct(d, x)
    assert u.shape == (3, 5, *EVENT)
    torch.testing.assert_close(predict(d, u), x.expand(u.shape), rtol=1e-9, atol=1e-9)

    x = x.expand(u.shape).requires_grad_()
    context = mechanism.context(*parents)
    y = mechanism.low_level(context)(x)
    (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    loc = mechanism.decoder(z.flatten(0, 1), context.flatten(0, 1)).unflatten(0, (3, 5))
    base = torch.distributions.Normal(loc, mechanism.min_scale + mechanism.log_scale.exp())
    expected = (base.log_prob(y) + slope.log()).flatten(2).sum(-1)
    found = d.log_prob(x[0] if shared else x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert mechanism.low_level.layer.weight.grad.abs().sum() > 0


# --- noise ----------------------------------------------------------------------------------------


@every_explicit_case
@both_dtypes
@pytest.mark.parametrize("batch", [(), (3, 5)])
def test_noise_round_trip(name: str, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    mechanism, parents = CASES[name](dtype=dtype), parents_of(batch, dtype)
    d = mechanism(mechanism.prior().sample(batch), *parents)
    x = d.sample()
    u = abduct(d, x)
    spread = 257.0 if mechanism.support is GREY else 1.0
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(predict(d, u), x, rtol=tolerance, atol=tolerance * spread)


@every_explicit_case
def test_noise_is_standard_normal(name: str) -> None:
    mechanism, parents = CASES[name](dtype=torch.float64), parents_of((), torch.float64)
    d = mechanism(mechanism.prior().sample(), *parents)
    u = abduct(d, d.sample((3000,))).flatten(1)
    torch.testing.assert_close(u.mean(0), torch.zeros_like(u[0]), atol=0.09, rtol=0)
    torch.testing.assert_close(u.T.cov(), torch.eye(SIZE).to(u), atol=0.12, rtol=0)


class Program:
    """One image below two parents, with its guide."""

    def __init__(self, mechanism: Any) -> None:
        self.mechanism = mechanism

    def model(self, x: Tensor, vector: Tensor) -> Tensor:
        with pyro.plate("rows", len(x)):
            t = pyro.sample("t", dist.Normal(0.0, 1.0), obs=torch.linspace(-1, 1, len(x)).to(x))
            z = pyro.sample("z", self.mechanism.prior())
            obs = self.mechanism.dequantise(x)
            return pyro.sample("x", self.mechanism(z, t, vector), obs=obs)

    def guide(self, x: Tensor, vector: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            t = torch.linspace(-1, 1, len(x)).to(x)
            pyro.sample("z", self.mechanism.posterior(x, t, vector))


@every_explicit_case
@both_dtypes
def test_the_null_intervention_reproduces_the_image(name: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    mechanism = CASES[name](dtype=dtype)
    t, vector = torch.linspace(-1, 1, 5, dtype=dtype), torch.randn(3, dtype=dtype)
    x = mechanism(mechanism.prior().sample((5,)), t, vector).sample()
    program = Program(mechanism)
    actions = [{"t": t}, {}, {"t": 0.5}, {"t": t}]
    for parallel in (True, False):
        predictive = CounterfactualPredictive(
            program.model, actions, guide=program.guide, num_samples=3, parallel=parallel
        )
        found = predictive(x, vector)["x"]
        assert found.shape == (3, 5, 5, *EVENT)
        spread = 257.0 if mechanism.support is GREY else 1.0
        tolerance = {torch.float32: 3e-5, torch.float64: 1e-11}[dtype]
        for k in (0, 1, 2, 4):
            torch.testing.assert_close(
                found[:, k],
                x.expand(3, *x.shape),
                rtol=tolerance,
                atol=0.0 if k == 0 else tolerance * spread,
            )
        assert (found[:, 3] - x).abs().amax() > 1e-3


def test_only_the_low_level_moves_what_only_it_depends_on() -> None:
    """A decoder that ignores the parents: do(i) multiplies the image by the ratio of scales."""

    class Ignorant(Counted):
        def forward(self, z: Tensor, context: Tensor) -> Tensor:
            return super().forward(z, context[:, :0])

    class Exponent(nn.Module):
        def forward(self, context: Tensor) -> Tensor:
            return 0.7 * context[..., :1] - 0.2 * context[..., 1:2]

    mechanism = AmortisedExplicit(
        Counted(SIZE, 4, [2 * LATENT]),
        Ignorant(LATENT, 0, EVENT),
        latent=LATENT,
        event_shape=EVENT,
        parents=TWO,
        low_level=ConditionalScale(4, event_dim=3, hidden=Exponent(), softness=None),
    )
    x, vector, t = torch.rand(5, *EVENT), torch.randn(3), torch.linspace(-1, 1, 5)
    program = Program(mechanism)
    found = CounterfactualPredictive(
        program.model, [{"t": 1.5}, {"t": lambda t: t + 1}], guide=program.guide, num_samples=2
    )(x, vector)["x"]
    for k, change in ((1, 1.5 - t), (2, torch.ones(5))):
        expected = x * (0.7 * change).exp()[:, None, None, None]
        torch.testing.assert_close(found[:, k], expected.expand(2, *x.shape))


def test_residuals_scale_with_the_network_scale_only() -> None:
    x, vector = torch.rand(5, *EVENT), torch.randn(3)
    for scale in ("shared", "network"):
        mechanism = build(AmortisedExplicit, TWO, scale=scale)
        program = Program(mechanism)
        trace = poutine.trace(
            worlds(poutine.condition(program.model, {"z": torch.zeros(5, LATENT)}), [{"t": 2.0}])
        ).get_trace(x, vector)
        d = trace.nodes["x"]["fn"].base.base_dist.base_dist
        residuals = world(trace, 1).nodes["x"]["value"] - d.loc[1]
        factual = x - d.loc[0]
        expected = factual * (d.scale[1] / d.scale[0] if scale == "network" else 1)
        torch.testing.assert_close(residuals, expected)


# --- grey levels ----------------------------------------------------------------------------------


def test_grey_levels_become_intervals_in_training() -> None:
    mechanism = build(quantum=2.0)
    x = torch.randint(5, (50, *EVENT)).float()
    draws = torch.stack([mechanism.dequantise(x) for _ in range(20)]) - x
    assert (draws >= 0).all() and (draws <= 2).all()
    assert draws.mean().item() == pytest.approx(1, abs=0.03)
    assert draws.std().item() == pytest.approx(2 / 12**0.5, abs=0.02)
    assert draws[0].unique().numel() > 1000  # each element its own


def test_there_is_no_noise_in_queries() -> None:
    mechanism, x = build(AmortisedExplicit, TWO, quantum=1.0), torch.zeros(5, *EVENT)
    assert mechanism.training
    with torch.no_grad():
        assert mechanism.dequantise(x) is x
    program = Program(mechanism)
    predictive = CounterfactualPredictive(program.model, [{"t": 0.0}], guide=program.guide)
    assert torch.equal(predictive(x, torch.zeros(3))["x"][0, 0], x)
    result = query(program.model, "x", guide=program.guide, num_samples=2, args=(x, torch.zeros(3)))
    assert torch.equal(result.samples, x.expand(result.samples.shape))
    mechanism.eval()
    assert mechanism.dequantise(x) is x
    mechanism.train()
    assert not torch.equal(mechanism.dequantise(x), x)


@pytest.mark.parametrize("kind", [AmortisedExplicit, AmortisedImplicit])
def test_nothing_to_spread(kind: type[AmortisedMechanism]) -> None:
    x = torch.zeros(5, *EVENT)
    assert build(kind).dequantise(x) is x
    assert build(kind).dequantise(None) is None
    assert build(quantum=1.0).dequantise(None) is None


# --- constants ------------------------------------------------------------------------------------


def test_normalisation() -> None:
    mechanism = build(AmortisedExplicit, TWO, low_level=low_level(), support=constraints.positive)
    data, parents = 1 + torch.rand(200, *EVENT), parents_of((200,))
    assert mechanism.set_normalisation(data, *parents) is mechanism
    context = mechanism.context(*parents)
    torch.testing.assert_close(context.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(context.std(0, correction=0), torch.ones(4))
    peak = data.log().flatten(1).amax(1).mean()
    torch.testing.assert_close(mechanism.low_level.log_scale.exp(), peak)
    for label in ("context_loc", "low_level.log_scale"):
        assert label in mechanism.state_dict()


def test_data_outside_of_the_support() -> None:
    mechanism = build(support=constraints.interval(0.0, 255.0))
    with pytest.raises(ValueError, match=r"24 of 48 values outside.*on its bounds.*Give wider"):
        mechanism.set_normalisation(torch.stack([torch.zeros(EVENT), torch.ones(EVENT)]))
    with pytest.raises(ValueError, match="NaN or infinity in the data"):
        build().set_normalisation(torch.full((3, *EVENT), float("nan")))


# --- the implicit mechanism -----------------------------------------------------------------------


def test_an_implicit_mechanism_has_no_density() -> None:
    mechanism, parents = build(AmortisedImplicit, TWO), parents_of((5,))
    d = mechanism(torch.randn(5, LATENT), *parents)
    for x in (d.sample(), torch.randn(5, *EVENT)):
        assert torch.equal(d.log_prob(x), torch.zeros(5))
    program = Program(mechanism)
    x, vector = torch.rand(5, *EVENT), torch.randn(3)
    trace = poutine.trace(program.model).get_trace(x, vector)
    total = trace.log_prob_sum()
    latents = trace.nodes["z"]["fn"].log_prob(trace.nodes["z"]["value"]).sum()
    scalars = trace.nodes["t"]["fn"].log_prob(trace.nodes["t"]["value"]).sum()
    torch.testing.assert_close(total, latents + scalars)


def test_implicit_counterfactuals_are_generated() -> None:
    """The factual world keeps the observation, another one is the decoder's g(z, pa')."""
    mechanism = build(AmortisedImplicit, TWO).eval()
    program, x, vector = Program(mechanism), torch.rand(5, *EVENT), torch.randn(3)
    found = CounterfactualPredictive(
        program.model, [{"t": 0.5}, {}], guide=program.guide, num_samples=4
    )(x, vector)
    assert torch.equal(found["x"][:, 0], x.expand(4, *x.shape))
    assert found["z"][:, 0].unique(dim=0).shape[0] == 4  # draws of the encoder
    generated = mechanism(found["z"][:, 1], torch.tensor(0.5), vector).sample()
    torch.testing.assert_close(found["x"][:, 1], generated)
    assert (found["x"][:, 1] - found["x"][:, 0]).abs().amax() > 0.1


def test_implicit_noise_is_the_encoders() -> None:
    mechanism = build(AmortisedImplicit, TWO)
    x, parents = torch.rand(2000, *EVENT), parents_of((2000,))
    q = mechanism.posterior(x, *parents)
    out = mechanism.encoder(x, mechanism.context(*parents))
    torch.testing.assert_close(q.mean, out[:, :LATENT])
    torch.testing.assert_close(q.stddev, nn.functional.softplus(out[:, LATENT:]) + 1e-3)
