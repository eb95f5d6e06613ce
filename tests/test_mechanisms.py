"""One contract over every public mechanism, then what is particular to each."""

import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_causal import mechanisms
from pyro_causal.mechanisms import (
    AmortisedExplicit,
    AmortisedImplicit,
    AmortisedMechanism,
    ConditionalAffine,
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalGaussian,
    ConditionalSpline,
    ContextNetwork,
    Mechanism,
    interval_around,
)
from pyro_causal.noise import abduct, predict

AMORTISED = {AmortisedExplicit, AmortisedImplicit, AmortisedMechanism}
GREY = constraints.interval(64.0, 255.0)
Make = Callable[..., Mechanism]

CASES: dict[str, tuple[Make, constraints.Constraint]] = {
    "linear Gaussian": (ConditionalGaussian, constraints.real),
    "neural Gaussian": (
        partial(ConditionalGaussian, hidden=(8,), heteroscedastic=True),
        constraints.real,
    ),
    "affine, real": (ConditionalAffine, constraints.real),
    "affine, positive": (
        partial(ConditionalAffine, support=constraints.positive, hidden=()),
        constraints.positive,
    ),
    "affine, bounded": (partial(ConditionalAffine, support=GREY), GREY),
    "spline, real": (partial(ConditionalSpline, bins=4), constraints.real),
    "spline, positive": (
        partial(ConditionalSpline, support=constraints.positive),
        constraints.positive,
    ),
    "spline, bounded": (partial(ConditionalSpline, support=GREY, hidden=(8, 8)), GREY),
    "categorical": (partial(ConditionalCategorical, 4), constraints.integer_interval(0, 3)),
    "Bernoulli": (ConditionalBernoulli, constraints.boolean),
}
CONTINUOUS = [name for name, (_, support) in CASES.items() if not support.is_discrete]
FLOWS = [name for name in CONTINUOUS if "Gaussian" not in name]

every_case = pytest.mark.parametrize("name", CASES)
every_continuous_case = pytest.mark.parametrize("name", CONTINUOUS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def values(name: str, size: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw data for a case from its support."""
    support = CASES[name][1]
    if support.is_discrete:
        data = torch.arange(size) % (4 if name == "categorical" else 2)
        return data if name == "categorical" else data.to(dtype)
    return biject_to(support)(0.3 + 0.7 * torch.randn(size, dtype=dtype))


def build(
    name: str,
    parents: int | list[tuple[int, ...]] = 0,
    *,
    dtype: torch.dtype = torch.float32,
    perturb: float = 0.2,
) -> Mechanism:
    """Make a mechanism with its normalisation set and its parameters away from their start."""
    mechanism = CASES[name][0](parents=parents).to(dtype)
    data = [torch.randn(200, *shape, dtype=dtype) for shape in mechanism.parent_shapes]
    mechanism.set_normalisation(values(name, dtype=dtype), *data)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter += perturb * torch.randn_like(parameter)
    return mechanism


def parents_of(batch: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A scalar parent with the whole batch shape and a vector parent with the last plate's only."""
    return [torch.randn(batch, dtype=dtype), torch.randn(*batch[-1:], 3, dtype=dtype)]


TWO = [(), (3,)]


def test_the_contract_covers_every_public_mechanism() -> None:
    public = [getattr(mechanisms, name) for name in mechanisms.__all__]
    classes = {m for m in public if isinstance(m, type) and issubclass(m, Mechanism)}
    classes -= {Mechanism, *AMORTISED}  # which test_mechanisms_neural.py covers
    covered = {type(make()) for make, _ in CASES.values()}
    assert covered == classes


@every_case
@pytest.mark.parametrize("batch", [(), (5,), (3, 5), (4, 1, 5)])
def test_shapes(name: str, batch: tuple[int, ...]) -> None:
    d = build(name, TWO)(*parents_of(batch))
    assert (d.batch_shape, d.event_shape) == (batch, ())
    x = d.sample((7,))
    assert x.shape == (7, *batch)
    assert d.log_prob(x).shape == (7, *batch)
    assert d.expand((2, *batch)).sample().shape == (2, *batch)


@every_case
def test_roots_have_no_batch_of_their_own(name: str) -> None:
    d = build(name)()
    assert (d.batch_shape, d.event_shape) == ((), ())
    with pyro.plate("data", 50):
        x = pyro.sample("x", d)
    assert x.shape == (50,)
    assert len(x.unique()) > 1


@every_case
def test_rows_depend_on_their_own_parents_only(name: str) -> None:
    mechanism = build(name, TWO)
    scalar, vector = parents_of((3, 5))
    x = mechanism(scalar, vector).sample()
    whole = mechanism(scalar, vector).log_prob(x)
    for i in range(3):
        for j in range(5):
            one = mechanism(scalar[i, j], vector[j]).log_prob(x[i, j])
            torch.testing.assert_close(whole[i, j], one, rtol=1e-4, atol=1e-5)


@every_case
def test_parents_enter_on_the_scale_of_their_support(name: str) -> None:
    kinds = [constraints.positive, GREY, constraints.boolean]
    there, plain = CASES[name][0](parents=3, parent_supports=kinds), build(name, 3)
    parents = [torch.rand(200) + 0.1, 70 + 180 * torch.rand(200), torch.rand(200).round()]
    mapped = [parents[0].log(), ((parents[1] - 64) / (255 - parents[1])).log(), parents[2]]
    x = values(name)
    plain.set_normalisation(x, *mapped)
    there.load_state_dict(plain.state_dict())
    there.set_normalisation(x, *parents)
    torch.testing.assert_close(there(*parents).log_prob(x), plain(*mapped).log_prob(x))
    with pytest.raises(ValueError, match="wrong number of parent_supports: expected 2, got 3"):
        CASES[name][0](parents=2, parent_supports=kinds)


@every_case
@pytest.mark.parametrize("parents", [0, TWO], ids=["root", "child"])
def test_every_parameter_gets_a_gradient(name: str, parents: list[tuple[int, ...]] | int) -> None:
    mechanism = build(name, parents)
    arguments = [torch.randn(200, *shape) for shape in mechanism.parent_shapes]
    (-mechanism(*arguments).log_prob(values(name))).mean().backward()
    for label, parameter in mechanism.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().sum() > 0, label


@every_case
def test_the_start_is_the_base_measure(name: str) -> None:
    mechanism = build(name, TWO, perturb=0.0)
    first, second = mechanism(*parents_of((2,))), mechanism(*parents_of((2,)))
    x = values(name)[:2]
    torch.testing.assert_close(first.log_prob(x), second.log_prob(x))
    if name in CONTINUOUS:
        data = values(name)
        mechanism = CASES[name][0]().set_normalisation(data)
        u = abduct(mechanism(), data)
        torch.testing.assert_close(u.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(u.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    else:
        assert first.probs.unique().numel() == 1


@every_case
@both_dtypes
@pytest.mark.parametrize("batch", [(), (5,), (3, 5)])
def test_noise_round_trip(name: str, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    d = build(name, TWO, dtype=dtype)(*parents_of(batch, dtype))
    x = d.sample((100,))
    again = predict(d, abduct(d, x))
    spread = 1.0 if CASES[name][1] is not GREY else 191.0
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype] * spread
    torch.testing.assert_close(again, x, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["spline, real", "spline, bounded"])
@both_dtypes
def test_noise_round_trip_at_the_edge_of_a_spline(name: str, dtype: torch.dtype) -> None:
    d = build(name, dtype=dtype)()
    edge = torch.tensor([-5.0, 5.0], dtype=dtype)
    u = torch.cat([edge, edge * (1 - 1e-6), edge * (1 + 1e-6)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half of the values lie outside
        again = d.transform(d.transform.inv(u))
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(again, u, atol=tolerance, rtol=0)


@every_case
def test_density_sums_to_one(name: str) -> None:
    d = build(name, TWO, dtype=torch.float64)(*parents_of((3,), torch.float64))
    if name in CONTINUOUS:
        x = grid(d)
        total = torch.trapezoid(d.log_prob(x).exp(), x, dim=0)
    else:
        total = d.log_prob(d.enumerate_support()).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)


def grid(d: dist.TorchDistribution) -> Tensor:
    """Increasing points over the support, dense where the mass is, found without the density."""
    u = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    return predict(d, u.reshape(-1, *[1] * len(d.batch_shape)))


@every_continuous_case
def test_samples_follow_the_density(name: str) -> None:
    d = build(name, TWO, dtype=torch.float64)(*parents_of((), torch.float64))
    x, sample = grid(d), d.sample((2000,)).sort().values
    assert CASES[name][1].check(sample).all()
    assert str(d.support) == str(CASES[name][1])
    cdf = torch.cumulative_trapezoid(d.log_prob(x).exp(), x)
    expected = cdf[torch.searchsorted(x, sample).clamp(1, len(cdf)) - 1]
    distance = (expected - (torch.arange(2000) + 0.5) / 2000).abs().max()
    assert distance < 1.63 / 2000**0.5  # Kolmogorov-Smirnov, level 0.01


@pytest.mark.parametrize("name", ["categorical", "Bernoulli"])
def test_discrete_samples_follow_the_density(name: str) -> None:
    d = build(name, TWO)(*parents_of(()))
    support = d.enumerate_support()
    sample = d.sample((4000,))
    observed = (sample[:, None] == support).float().mean(0)
    torch.testing.assert_close(observed, d.log_prob(support).exp(), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", FLOWS)
def test_jacobian(name: str) -> None:
    d = build(name, TWO, dtype=torch.float64)(*parents_of((50,), torch.float64))
    x = d.sample().requires_grad_()
    u = d.transform(x)
    (slope,) = torch.autograd.grad(u.sum(), x)
    assert (slope > 0).all()
    torch.testing.assert_close(d.log_prob(x), d.base.log_prob(u) + slope.log())


@every_case
def test_save_and_load(name: str) -> None:
    mechanism = build(name, TWO)
    file = io.BytesIO()
    torch.save(mechanism.state_dict(), file)
    file.seek(0)
    other = CASES[name][0](parents=TWO)
    other.load_state_dict(torch.load(file, weights_only=True))
    arguments = parents_of((5,))
    x = values(name)[:5]
    torch.testing.assert_close(
        other(*arguments).log_prob(x), mechanism(*arguments).log_prob(x), rtol=0, atol=0
    )


@every_case
def test_deepcopy(name: str) -> None:
    mechanism = build(name, TWO)
    other = copy.deepcopy(mechanism)
    arguments, x = parents_of((5,)), values(name)[:5]
    expected = mechanism(*arguments).log_prob(x)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter += 1
    torch.testing.assert_close(other(*arguments).log_prob(x), expected, rtol=0, atol=0)


@every_case
def test_dtype(name: str) -> None:
    mechanism = build(name, TWO).to(torch.float64)
    d = mechanism(*parents_of((5,), torch.float64))
    assert d.log_prob(d.sample()).dtype == torch.float64
    if name in CONTINUOUS:
        assert d.sample().dtype == torch.float64


@every_case
def test_repr(name: str) -> None:
    mechanism = CASES[name][0](parents=TWO)
    text = repr(mechanism)
    assert text.startswith(f"{type(mechanism).__name__}(")
    assert "parents=[(), (3,)]" in text
    if name in CONTINUOUS:
        assert f"support={CASES[name][1]}" in text


class LogProb(nn.Module):
    def __init__(self, mechanism: Mechanism) -> None:
        super().__init__()
        self.mechanism = mechanism

    def forward(self, x: Tensor, *parents: Tensor) -> Tensor:
        return self.mechanism(*parents).log_prob(x)


@every_case
@pytest.mark.filterwarnings("ignore:.torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_jit(name: str) -> None:
    log_prob, x = LogProb(build(name, TWO)), values(name)
    example, other = parents_of((5,)), parents_of((5,))
    traced = torch.jit.trace(log_prob, (x[:5], *example))
    torch.testing.assert_close(traced(x[5:10], *other), log_prob(x[5:10], *other))


@every_case
def test_as_a_site_of_a_program(name: str) -> None:
    mechanism, data = build(name, 1), values(name)
    parent = torch.randn(200)

    def model() -> None:
        pyro.module("mechanism", mechanism)
        with pyro.plate("data", 200):
            pyro.sample("x", mechanism(parent), obs=data)

    expected = -mechanism(parent).log_prob(data).sum().item()
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step() for _ in range(20)]
    assert losses[0] == pytest.approx(expected)
    assert losses[-1] < losses[0]


@every_case
def test_inside_a_pyro_module(name: str) -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.mechanism = build(name, 1)

        def forward(self, parent: Tensor) -> Tensor:
            with pyro.plate("data", len(parent)):
                return pyro.sample("x", self.mechanism(parent))

    model = Model()
    trace = poutine.trace(model).get_trace(torch.randn(5))
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (5,)
    registered = {name for name, node in trace.nodes.items() if node["type"] == "param"}
    assert len(registered) == len(list(model.parameters()))


def train(mechanism: Mechanism, x: Tensor, *parents: Tensor, steps: int = 300) -> None:
    """Maximum likelihood on all rows at once."""
    optimiser = torch.optim.Adam(mechanism.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -mechanism(*parents).log_prob(x).mean()
        loss.backward()
        optimiser.step()


def linear_gaussian(size: int) -> tuple[Tensor, Tensor, Tensor]:
    t, v = torch.randn(size), 10 + 3 * torch.randn(size)
    return 2.0 + 1.5 * t - 0.7 * v + 0.5 * torch.randn(size), t, v


def test_linear_gaussian_is_least_squares() -> None:
    x, t, v = linear_gaussian(500)
    mechanism = ConditionalGaussian(2).set_normalisation(x, t, v)
    train(mechanism, x, t, v, steps=600)
    design = torch.stack([torch.ones(500), t, v], -1)
    solution = torch.linalg.lstsq(design, x[:, None]).solution
    d = mechanism(t, v)
    torch.testing.assert_close(d.loc, (design @ solution)[:, 0], atol=1e-3, rtol=0)
    residual = x - (design @ solution)[:, 0]
    torch.testing.assert_close(d.scale[0], residual.std(correction=0), atol=1e-3, rtol=0)


def test_affine_recovers_a_linear_gaussian() -> None:
    x, t, v = linear_gaussian(2000)
    mechanism = ConditionalAffine(2, hidden=()).set_normalisation(x, t, v)
    train(mechanism, x, t, v)
    at = torch.tensor([[0.0, 10.0], [1.0, 10.0], [0.0, 11.0]])
    inverse = mechanism(*at.unbind(-1)).transform.inv
    location, one_up = inverse(torch.zeros(3)), inverse(torch.ones(3))
    truth = torch.tensor([-5.0, -3.5, -5.7])
    torch.testing.assert_close(location, truth, atol=0.05, rtol=0)
    torch.testing.assert_close(one_up - location, torch.full((3,), 0.5), atol=0.03, rtol=0)


def bimodal(size: int) -> tuple[Tensor, Tensor]:
    """Draw from a mixture of two Gaussians; also give the density of each draw."""
    modes = dist.Normal(torch.tensor([-1.0, 1.0]), 0.5)
    law = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6])), modes)
    x = law.sample((size,))
    return x, law.log_prob(x)


def test_spline_learns_a_bimodal_density() -> None:
    x, _ = bimodal(5000)
    mechanism = ConditionalSpline().set_normalisation(x)
    train(mechanism, x)
    held_out, truth = bimodal(20000)
    assert (truth - mechanism().log_prob(held_out)).mean().abs() < 0.02


def test_spline_learns_noise_that_depends_on_the_parent() -> None:
    def sample(size: int) -> tuple[Tensor, Tensor, Tensor]:
        e, log_prob = bimodal(size)
        t = torch.randn(size)
        return t, 3 * t + e * (0.5 * t).exp(), log_prob - 0.5 * t

    t, x, _ = sample(5000)
    mechanism = ConditionalSpline(1).set_normalisation(x, t)
    train(mechanism, x, t)
    t, x, truth = sample(20000)
    assert (truth - mechanism(t).log_prob(x)).mean().abs() < 0.04


@pytest.mark.slow
def test_thickness_and_intensity_of_real_digits(data_path: Callable[[str], Path]) -> None:
    """The deep SCM paper's scalars against their true law (nats per digit)."""

    def load(name: str) -> tuple[Tensor, Tensor]:
        lines = data_path(f"morphomnist/{name}-morpho.csv").read_text().splitlines()[1:]
        table = torch.tensor([[float(field) for field in line.split(",")[1:]] for line in lines])
        return table[:, 0], table[:, 1]

    (t, i), (test_t, test_i) = load("train"), load("t10k")
    thickness = ConditionalSpline(support=constraints.positive).set_normalisation(t)
    intensity = ConditionalAffine(1, support=GREY).set_normalisation(i, t)
    train(thickness, t[:20000], steps=200)
    train(intensity, i[:20000], t[:20000])
    assert thickness().log_prob(test_t).mean() > -0.9268 - 0.02
    assert intensity(test_t).log_prob(test_i).mean() > -4.1955 - 0.02


def test_normalisation_is_fixed_and_saved() -> None:
    data, parent = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([0.0, 2.0, 4.0])
    mechanism = ConditionalAffine(1, support=constraints.positive)
    assert mechanism.set_normalisation(data, parent) is mechanism
    logs = data.log()
    state = mechanism.state_dict()
    torch.testing.assert_close(state["loc"], logs.mean())
    torch.testing.assert_close(state["scale"], logs.std(correction=0))
    torch.testing.assert_close(state["context_loc"], torch.tensor([2.0]))
    torch.testing.assert_close(state["context_scale"], parent.std(correction=0)[None])
    assert (
        not {"loc", "scale", "context_loc", "context_scale"}
        & dict(mechanism.named_parameters()).keys()
    )
    context = mechanism.context(parent)
    torch.testing.assert_close(context.mean(), torch.tensor(0.0))
    torch.testing.assert_close(context.std(correction=0), torch.tensor(1.0))


def test_a_category_that_never_occurs_keeps_its_scale() -> None:
    label = 0.1 + nn.functional.one_hot(torch.tensor([0, 1, 0]), 3)
    mechanism = ConditionalGaussian([(3,)]).set_normalisation(torch.randn(3), label)
    assert mechanism.context(label).isfinite().all()
    assert mechanism.context_scale[2] == 1


def test_parents_of_different_batch_shapes_join_in_order() -> None:
    mechanism = ConditionalGaussian([(), (2,), (2, 2)])
    assert mechanism.context_loc.shape == (7,)
    factual, world = torch.tensor([1.0, 2.0]), torch.full((3, 1, 2), 5.0)
    context = mechanism.context(factual, world, torch.arange(4.0).reshape(2, 2))
    assert context.shape == (3, 2, 7)
    assert context[2, 1].tolist() == [2, 5, 5, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            [0.0],
            ValueError,
            r"wrong number of parents: expected 2, got 1\. Pass one tensor for each",
        ),
        ([0.0, [1.0, 2.0]], ValueError, r"wrong event shape of parent 1: expected \(\*batch, 3\)"),
        (
            [0.0, 0.0],
            ValueError,
            r"parent 1: expected \(\*batch, 3\), got \(\)\. Declare the event",
        ),
        ([1, [1.0] * 3], TypeError, r"parent 0: expected torch.float32, got torch.int64.*one_hot"),
        ([True, [1.0] * 3], TypeError, r"parent 0: expected torch.float32, got torch.bool"),
    ],
)
def test_wrong_parents(arguments: list, kind: type[Exception], message: str) -> None:
    mechanism = ConditionalSpline(TWO)
    tensors = [torch.tensor(argument) for argument in arguments]
    with pytest.raises(kind, match=f"ConditionalSpline: .*{message}"):
        mechanism(*tensors)
    with pytest.raises(kind, match=message):
        mechanism.set_normalisation(torch.rand(3), *tensors)


def test_parents_of_another_precision() -> None:
    with pytest.raises(TypeError, match=r"got torch.float64\. Convert the mechanism with \.to"):
        ConditionalGaussian(1)(torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (
            partial(ConditionalAffine, support=GREY),
            [64.0, 100.0],
            "1 of 2 values outside of the support or on its bounds",
        ),
        (
            partial(ConditionalAffine, support=GREY),
            [100.0, 255.0],
            r"got \[100, 255\]\. Give wider",
        ),
        (partial(ConditionalSpline, support=GREY), [100.0, 300.0], "interval_around"),
        (
            partial(ConditionalAffine, support=constraints.positive),
            [0.0, 1.0],
            "1 of 2 values outs",
        ),
        (partial(ConditionalAffine, support=constraints.nonnegative), [0.0, 1.0], "1 of 2 values"),
        (ConditionalGaussian, [1.0, float("nan")], "NaN or infinity in the data.*Drop such rows"),
        (ConditionalGaussian, [0.1] * 3, "does not vary: expected several values, got 0.1 only"),
        (partial(ConditionalCategorical, 3), [0, 3], r"expected values within .*, got \[0, 3\]"),
        (ConditionalBernoulli, [0.0, 2.0], "Recode the values as 0 and 1"),
    ],
)
def test_wrong_data(make: Make, data: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().set_normalisation(torch.tensor(data))


def test_wrong_data_of_a_parent() -> None:
    with pytest.raises(ValueError, match="NaN or infinity in the parents"):
        ConditionalGaussian(1).set_normalisation(torch.rand(2), torch.tensor([1.0, float("inf")]))


@pytest.mark.parametrize("support", [constraints.real_vector, constraints.boolean])
def test_wrong_support(support: constraints.Constraint) -> None:
    with pytest.raises(ValueError, match="expected a continuous one of scalars"):
        ConditionalAffine(support=support)


def test_one_category_is_a_constant() -> None:
    with pytest.raises(ValueError, match="expected at least two categories, got 1"):
        ConditionalCategorical(1)


def test_interval_around() -> None:
    interval = interval_around(torch.tensor([0.0, 10.0]))
    assert (interval.lower_bound, interval.upper_bound) == (-0.5, 10.5)
    ConditionalAffine(support=interval).set_normalisation(torch.tensor([0.0, 10.0]))
    for data, margin in (([1.0, 1.0], 0.1), ([0.0, 1.0], 0.0), ([0.0, float("nan")], 0.1)):
        with pytest.raises(ValueError, match="expected two different values and a positive margin"):
            interval_around(torch.tensor(data), margin=margin)


def test_a_network_of_your_own() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    mechanism = ConditionalAffine(TWO, hidden=network)
    assert mechanism.network.net is network
    assert mechanism(*parents_of((3, 5))).batch_shape == (3, 5)
    with pytest.raises(ValueError, match=r"Linear maps \(5, 4\) to \(5, 3\): expected \(5, 2\)"):
        ConditionalAffine(TWO, hidden=nn.Linear(4, 3))(*parents_of((5,)))


def test_context_network_is_affine_without_hidden_layers() -> None:
    network = ContextNetwork(3, 2)
    assert [type(layer) for layer in network.net] == [nn.Linear]
    assert len(list(ContextNetwork(3, 2, hidden=(4, 5)).net)) == 5


def steep_spline() -> ConditionalSpline:
    """A spline whose location is ten times its parent."""
    network = nn.Linear(1, 25)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    with torch.no_grad():
        network.weight[0] = 10.0
    return ConditionalSpline(1, hidden=network)


def test_abduction_outside_of_the_domain_warns_once() -> None:
    d = steep_spline()(torch.zeros(4))
    with pytest.warns(UserWarning, match=r"2 of 4 values outside.*set_normalisation") as record:
        abduct(d, torch.tensor([-5.1, -4.9, 4.9, 5.1]))
    assert len(record) == 1


def test_no_warning_where_there_is_nothing_to_warn_of() -> None:
    d, far = steep_spline()(torch.zeros(4)), torch.full((4,), 9.0)
    abduct(d, torch.linspace(-5, 5, 4))
    d.log_prob(far)
    predict(d, far)
    abduct(steep_spline()(torch.full((4,), 0.9)), far)
    with pyro.validation_enabled(False):
        abduct(d, far)


def test_worlds_other_than_the_factual_one_do_not_warn() -> None:
    d = steep_spline()(torch.tensor([[0.0], [7.0]]).expand(2, 4))
    for x in (torch.ones(4), torch.ones(1, 4)):
        assert abduct(d, x).shape == (2, 4)
        with pytest.warns(UserWarning, match="4 of 4 values"):
            abduct(d, x + 9)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_abduction_can_be_traced() -> None:
    class Abduct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spline = steep_spline()

        def forward(self, x: Tensor) -> Tensor:
            return abduct(self.spline(torch.zeros(4)), x)

    far = torch.full((4,), 9.0)  # would warn, were it not traced
    traced = torch.jit.trace(Abduct(), far, check_trace=False)
    torch.testing.assert_close(traced(far + 1), far + 1)
