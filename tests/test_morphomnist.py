"""The package on the covariates of Morpho-MNIST, whose structural causal model is known.

The table holds values sampled from the model of "Deep structural causal models for tractable
counterfactual inference", https://arxiv.org/abs/2006.06485, section 4:
t = 0.5 + Gamma(10, 5) and i = 64 + 191 sigmoid(0.5 u + 2 t - 5) with standard normal u.
"""

from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints, transforms
from pyro.infer import Trace_ELBO
from scipy import stats
from torch import Tensor

from pyro_causal import CounterfactualPredictive, fit
from pyro_causal.mechanisms import ConditionalAffine
from pyro_causal.noise import abduct

LOG_DENSITY = {"t": -0.9268, "i": -4.1955}  # of the true model, per row of the test table


def thickness() -> dist.TransformedDistribution:
    return dist.TransformedDistribution(
        dist.Gamma(torch.tensor(10.0), 5.0), [transforms.AffineTransform(0.5, 1.0)]
    )


def intensity(t: Tensor) -> dist.TransformedDistribution:
    to_grey = [transforms.SigmoidTransform(), transforms.AffineTransform(64.0, 191.0)]
    return dist.TransformedDistribution(dist.Normal(2 * t - 5, 0.5), to_grey)


def model(rows: int) -> None:
    with pyro.plate("rows", rows):
        t = pyro.sample("t", thickness())
        pyro.sample("i", intensity(t))


def read(path: Path) -> dict[str, Tensor]:
    lines = path.read_text().splitlines()[1:]
    table = torch.tensor([[float(x) for x in line.split(",")] for line in lines])
    return {"t": table[:, 1].double(), "i": table[:, 2].double()}


@pytest.fixture
def digits(data_path: Callable[[str], Path]) -> dict[str, Tensor]:
    torch.set_default_dtype(torch.float64)
    return read(data_path("morphomnist/t10k-morpho.csv"))


def test_the_table_has_the_density_of_the_model(digits: dict[str, Tensor]) -> None:
    trace = poutine.trace(poutine.condition(model, digits)).get_trace(len(digits["t"]))
    trace.compute_log_prob()
    for name, expected in LOG_DENSITY.items():
        found = trace.nodes[name]["log_prob"].mean().item()
        assert found == pytest.approx(expected, abs=5e-4)


def test_abducted_noise_has_its_law_and_ignores_the_parent(digits: dict[str, Tensor]) -> None:
    noise = abduct(intensity(digits["t"]), digits["i"])
    assert stats.kstest(noise.numpy(), "norm").pvalue > 0.01
    assert abs(stats.pearsonr(noise.numpy(), digits["t"].numpy()).statistic) < 0.03


def test_thicker_strokes_are_as_bright_as_the_formula_says(digits: dict[str, Tensor]) -> None:
    observed = poutine.condition(model, digits)
    worlds = CounterfactualPredictive(observed, [{"t": lambda t: t + 0.5}])(len(digits["t"]))
    expected = 64 + 191 * (((digits["i"] - 64) / 191).logit() + 1).sigmoid()
    torch.testing.assert_close(worlds["i"][0, 1], expected)


def test_a_mechanism_learns_the_intensity(
    digits: dict[str, Tensor], data_path: Callable[[str], Path]
) -> None:
    train = {k: v[:8000] for k, v in read(data_path("morphomnist/train-morpho.csv")).items()}
    mechanism = ConditionalAffine(1, support=constraints.interval(64.0, 255.0), hidden=()).double()
    mechanism.set_normalisation(train["i"], train["t"])

    def learner(t: Tensor, i: Tensor) -> None:
        pyro.module("mechanism", mechanism)
        with pyro.plate("rows", len(t)):
            pyro.sample("i", mechanism(t), obs=i)

    fit(learner, lambda t, i: None, loss=Trace_ELBO(), data=train, epochs=300, lr=0.05)
    found = mechanism(digits["t"]).log_prob(digits["i"]).mean().item()
    assert found == pytest.approx(LOG_DENSITY["i"], abs=5e-3)
