"""Effects against closed forms and against enumeration of the exogenous variables."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_causal.effects import (
    average_effect,
    conditional_average_effect,
    effect_on_treated,
    mediation_actions,
    natural_direct_effect,
    natural_indirect_effect,
    probability_of_necessity,
    probability_of_necessity_and_sufficiency,
    probability_of_sufficiency,
)
from pyro_causal.queries import CounterfactualPredictive

NUMBER = 40_000
STANDARD_ERRORS = 4.0

# A binary program z -> x -> l -> m -> y in which every variable also has other parents. The
# probability of one given the variables before; each is 1 where its uniform noise lies below.
BINARY: dict[str, Callable[[Mapping[str, float]], float]] = {
    "z": lambda v: 0.4,
    "x": lambda v: 0.2 + 0.5 * v["z"],
    "l": lambda v: 0.7 - 0.4 * v["x"],
    "m": lambda v: 0.1 + 0.5 * v["x"] + 0.3 * v["l"],
    "y": lambda v: 0.05 + 0.3 * v["x"] + 0.35 * v["m"] - 0.2 * v["l"] * v["x"] + 0.2 * v["z"],
}


def cells(name: str) -> list[tuple[float, float]]:
    """Middle and length of the intervals of noise within which a variable responds alike."""
    names = list(BINARY)[: list(BINARY).index(name)]
    settings = [
        dict(zip(names, v, strict=True)) for v in itertools.product((0, 1), repeat=len(names))
    ]
    cuts = sorted({0.0, 1.0, *(round(BINARY[name](v), 9) for v in settings)})
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(cuts)]


def solve(noise: Mapping[str, float], action: Mapping[str, float]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, probability in BINARY.items():
        values[name] = action.get(name, float(noise[name] < probability(values)))
    return values


def units() -> Iterator[tuple[float, dict[str, dict[str, float]]]]:
    """Every kind of unit, with its share: what it does as it is, under x = 0, 1 and nested."""
    for kind in itertools.product(*(cells(name) for name in BINARY)):
        noise = {name: middle for name, (middle, _) in zip(BINARY, kind, strict=True)}
        low, high = solve(noise, {"x": 0}), solve(noise, {"x": 1})
        yield (
            math.prod(length for _, length in kind),
            {
                "factual": solve(noise, {}),
                "low": low,
                "high": high,
                "direct": solve(noise, {"x": 1, "m": low["m"]}),
                "indirect": solve(noise, {"x": 0, "m": high["m"]}),
            },
        )


UNITS = list(units())
World = Mapping[str, Mapping[str, float]]


def truth(
    value: Callable[[World], float], where: Callable[[World], bool] = lambda w: True
) -> float:
    share = sum(p for p, w in UNITS if where(w))
    return sum(p * value(w) for p, w in UNITS if where(w)) / share


def bernoulli_model() -> None:
    """The noise is that of the Bernoulli sites, by the convention of the library."""
    values: dict[str, Tensor] = {}
    for name, probability in BINARY.items():
        p = torch.as_tensor(probability(values))
        values[name] = pyro.sample(name, dist.Bernoulli(p))


def structural_model() -> None:
    """The noise is written out, so that no convention matters."""
    values: dict[str, Tensor] = {}
    for name, probability in BINARY.items():
        middles, lengths = torch.tensor(cells(name)).unbind(-1)
        kind = pyro.sample(f"{name}_noise", dist.Categorical(lengths))
        below = (middles[kind] < probability(values)).float()
        values[name] = pyro.deterministic(name, below, event_dim=0)


@pytest.fixture(scope="module", params=[bernoulli_model, structural_model])
def samples(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    pyro.set_rng_seed(1)
    actions = mediation_actions("x", ["m"])
    return CounterfactualPredictive(request.param, actions, num_samples=NUMBER)()


def assert_close(
    estimate: Tensor, expected: float, spread: float = 1.0, share: float = 1.0
) -> None:
    """Within a few standard errors of a mean over `share` of the draws."""
    error = abs(float(estimate) - expected)
    assert error < STANDARD_ERRORS * spread / math.sqrt(share * NUMBER), (estimate, expected)


def test_average_effect(samples: dict[str, Tensor]) -> None:
    expected = truth(lambda w: w["high"]["y"] - w["low"]["y"])
    assert_close(average_effect(samples, "y"), expected, 0.7)
    assert_close(average_effect(samples, "y", treated=1, control=2), -expected, 0.7)


def test_conditional_average_effect(samples: dict[str, Tensor]) -> None:
    def effect(w: World) -> float:
        return w["high"]["y"] - w["low"]["y"]

    expected = truth(effect, lambda w: w["factual"]["z"] == 1 and w["factual"]["y"] == 0)
    assert abs(expected - truth(effect)) > 0.05
    estimate = conditional_average_effect(
        samples, "y", where=lambda world: (world["z"] == 1) & (world["y"] == 0)
    )
    assert_close(estimate, expected, 0.7, 0.15)


@pytest.mark.parametrize("value", [0, 1])
def test_effect_on_treated(samples: dict[str, Tensor], value: int) -> None:
    expected = truth(lambda w: w["high"]["y"] - w["low"]["y"], lambda w: w["factual"]["x"] == value)
    estimate = effect_on_treated(samples, "y", treatment="x", value=value)
    assert_close(estimate, expected, 0.7, 0.4)


def test_natural_effects(samples: dict[str, Tensor]) -> None:
    direct = truth(lambda w: w["direct"]["y"] - w["low"]["y"])
    indirect = truth(lambda w: w["indirect"]["y"] - w["low"]["y"])
    assert_close(natural_direct_effect(samples, "y"), direct, 0.6)
    assert_close(natural_indirect_effect(samples, "y"), indirect, 0.6)
    reverse = natural_indirect_effect(samples, "y", nested=3, control=2)
    total = average_effect(samples, "y")
    torch.testing.assert_close(natural_direct_effect(samples, "y") - reverse, total)


def test_nested_worlds_share_the_noise_of_every_unit(samples: dict[str, Tensor]) -> None:
    m, other = samples["m"], samples["l"]
    assert torch.equal(m[:, 3], m[:, 1])
    assert torch.equal(m[:, 4], m[:, 2])
    # What the mediator does not cause is as in the world without nesting.
    assert torch.equal(other[:, 3], other[:, 2])
    assert torch.equal(other[:, 4], other[:, 1])
    joint = truth(lambda w: w["direct"]["y"] * w["high"]["y"] * w["low"]["y"])
    y = samples["y"]
    assert_close((y[:, 3] * y[:, 2] * y[:, 1]).mean(), joint, 0.5)


def test_probabilities_of_causation(samples: dict[str, Tensor]) -> None:
    necessity = truth(
        lambda w: 1 - w["low"]["y"], lambda w: w["factual"]["x"] == w["factual"]["y"] == 1
    )
    sufficiency = truth(
        lambda w: w["high"]["y"], lambda w: w["factual"]["x"] == w["factual"]["y"] == 0
    )
    both = truth(lambda w: w["high"]["y"] * (1 - w["low"]["y"]))
    assert_close(probability_of_necessity(samples, "y", treatment="x"), necessity, 0.5, 0.2)
    assert_close(probability_of_sufficiency(samples, "y", treatment="x"), sufficiency, 0.5, 0.4)
    assert_close(probability_of_necessity_and_sufficiency(samples, "y"), both, 0.5)


def test_identity_of_the_probabilities_of_causation(samples: dict[str, Tensor]) -> None:
    """Tian & Pearl 2000, lemma 1: PNS = P(x, y) PN + P(x', y') PS."""
    x, y = samples["x"][:, 0], samples["y"][:, 0]
    necessity = probability_of_necessity(samples, "y", treatment="x")
    sufficiency = probability_of_sufficiency(samples, "y", treatment="x")
    both = probability_of_necessity_and_sufficiency(samples, "y")
    mixed = (x * y).mean() * necessity + ((1 - x) * (1 - y)).mean() * sufficiency
    torch.testing.assert_close(mixed, both)


def test_categorical_noise_is_gumbel_max() -> None:
    """PNS of three classes under Gumbel-max, from the closed form of the joint law."""
    logits = torch.tensor([[0.3, -0.2, 0.5], [1.0, -0.8, 0.1]])

    def model() -> None:
        x = pyro.sample("x", dist.Bernoulli(0.5))
        y = pyro.sample("y", dist.Categorical(logits=logits[x.long()]))
        pyro.deterministic("won", (y == 0).float(), event_dim=0)

    samples = CounterfactualPredictive(model, [{"x": 0.0}, {"x": 1.0}], num_samples=NUMBER)()
    # Class i wins at x = 0 and 0 at x = 1, iff the Gumbels satisfy both sets of inequalities: with
    # d = g_0 - g_i and the third class integrated out by quadrature.
    g = torch.linspace(-4, 14, 1500, dtype=torch.float64)
    density = torch.exp(-g - torch.exp(-g)) * (g[1] - g[0])
    a, b = (row.tolist() for row in logits.double())
    loses = torch.zeros((), dtype=torch.float64)
    for i, j in ((1, 2), (2, 1)):
        g0, gi = g[:, None], g[None, :]
        wins = (gi + a[i] > g0 + a[0]) & (g0 + b[0] > gi + b[i])
        bound = torch.minimum(gi + a[i] - a[j], g0 + b[0] - b[j])
        third = torch.exp(-torch.exp(-bound))
        loses += (density[:, None] * density[None, :] * third * wins).sum()
    estimate = probability_of_necessity_and_sufficiency(samples, "won")
    assert_close(estimate, float(loses), 0.5)


def test_gaussian_effects() -> None:
    """A probit treatment whose effect varies with a confounder."""
    beta, gamma = 1.5, 2.0

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Bernoulli(torch.special.ndtr(z)))
        pyro.sample("y", dist.Normal(z + beta * x + gamma * x * z, 0.5))

    samples = CounterfactualPredictive(model, [{"x": 0}, {"x": 1}], num_samples=NUMBER)()
    half_normal = math.sqrt(2 / math.pi)
    assert_close(average_effect(samples, "y"), beta, gamma)
    older = conditional_average_effect(samples, "y", where=lambda world: world["z"] > 0)
    assert_close(older, beta + gamma * half_normal, gamma, 0.5)
    treated = effect_on_treated(samples, "y", treatment="x")
    assert_close(treated, beta + gamma * half_normal / math.sqrt(2), gamma, 0.5)


def test_gaussian_mediation() -> None:
    """With an interaction of treatment and mediator, y = m + 3x + mx and m = 1 + 2x."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        m = pyro.sample("m", dist.Normal(1 + 2 * x, 1.0))
        pyro.sample("y", dist.Normal(m + 3 * x + m * x, 1.0))

    actions = mediation_actions("x", ["m"], treated=2.0, control=1.0)
    samples = CounterfactualPredictive(model, actions, num_samples=NUMBER)()
    # E[M_1] = 3 and E[M_2] = 5; the noise of y cancels, that of m does not.
    assert_close(natural_direct_effect(samples, "y"), 3 + 3, 1.0)
    torch.testing.assert_close(natural_indirect_effect(samples, "y"), torch.tensor(4.0))
    assert_close(average_effect(samples, "y"), 3 + 3 + 4 + 2, 1.0)


def test_several_mediators_and_vector_outcomes_of_many_units() -> None:
    def model() -> None:
        with pyro.plate("units", 3):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            m = pyro.sample("m", dist.Normal(2 * x, 1.0))
            n = pyro.sample("n", dist.Normal(m - x, 1.0))
            loc = torch.stack(torch.broadcast_tensors(m + n, x), -1)
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(1))

    unit = {"x": torch.zeros(3), "m": torch.zeros(3), "n": torch.zeros(3), "y": torch.zeros(3, 2)}
    observed = poutine.condition(model, unit)
    samples = CounterfactualPredictive(observed, mediation_actions("x", ["m", "n"]))()
    direct = natural_direct_effect(samples, "y", event_dim=1)
    indirect = natural_indirect_effect(samples, "y", event_dim=1)
    torch.testing.assert_close(direct, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(indirect, torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(average_effect(samples, "y"), torch.tensor(2.0))


def test_draws_of_all_units_count_once() -> None:
    samples = {"x": torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 0]]]), "y": torch.zeros(2, 2, 2)}
    samples["y"][:, 1] = torch.tensor([[1.0, 10.0], [3.0, 5.0]])
    effect = effect_on_treated(samples, "y", treatment="x", treated=1, control=0)
    torch.testing.assert_close(effect, torch.tensor(3.0))  # units (0, 0), (1, 0) and (1, 1)


TINY = {"x": torch.tensor([[0.0, 0.0, 1.0]]), "y": torch.tensor([[0.5, 0.0, 1.0]])}


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (lambda: average_effect(TINY, "Y"), "No site is named 'Y'.*Did you mean 'y'"),
        (lambda: average_effect(TINY, "y", treated=3), "At site 'y', world 3: .*0 to 2"),
        (lambda: average_effect(TINY, "y", control=-1), "At site 'y', world -1"),
        (lambda: effect_on_treated(TINY, "y", treatment="x"), "No draw belongs to the subgroup"),
        (
            lambda: probability_of_necessity(TINY, "y", treatment="x"),
            "At site 'y', a probability of causation: expected the values 0 and 1",
        ),
        (
            lambda: conditional_average_effect(TINY, "y", where=lambda w: w["x"]),
            r"truth values of shape \(1,\).*got torch.float32 of shape \(1,\)",
        ),
        (
            lambda: conditional_average_effect(TINY, "y", where=lambda w: w["x"][:, None] > 0),
            r"truth values of shape \(1,\).*got torch.bool of shape \(1, 1\)",
        ),
    ],
)
def test_errors(effect: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effect()
