"""What a deep structural causal model costs: particles in one batch, and worlds in one run.

The model is the one of `examples/deep_scm.py` for digits at its cpu size, with weights as they
start; images are noise, since no time depends on them. Two ratios:

- A training step (loss, gradient and Adam) at batch 256 with four particles, to one with a single
  particle. Vectorised, the encoder and the divergence run once for all particles, so a ratio
  well below four is possible; particles one after the other are timed beside them.
- Counterfactual images per second: eight actions in one run of `worlds`, to eight runs of one
  action each.

Times are seconds of the processor on one thread, which hardly change when other work shares the
machine. Rounds go through all variants in turn, and medians are compared.

    python benchmarks/counterfactual_images.py [--rounds 9] [--out bench.json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import timing
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from pyro_causal import CounterfactualPredictive

TARGET = 2.0  # four particles to one
EXAMPLE = Path(__file__).parents[1] / "examples" / "deep_scm.py"
Results = dict[str, Any]


def example() -> Any:
    """The example script as a module."""
    spec = importlib.util.spec_from_file_location("example_deep_scm", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows(size: int) -> dict[str, Tensor]:
    """Digits as far as time goes."""
    t, i = 1.0 + 3.0 * torch.rand(size), 80.0 + 160.0 * torch.rand(size)
    return {"t": t, "i": i, "x": torch.randint(0, 256, (size, 1, 28, 28)).float()}


def steps(scm: Any, data: Mapping[str, Tensor]) -> dict[str, Callable[[], object]]:
    """Training steps with one and with four particles."""
    losses = {
        "1 particle": scm.loss(),
        "4 particles": scm.loss(num_particles=4),
        "4 particles, one after the other": TraceMeanField_ELBO(num_particles=4),
    }
    optimiser = torch.optim.Adam(scm.parameters(), lr=1e-5)

    def step(loss: Any) -> None:
        optimiser.zero_grad()
        loss.differentiable_loss(scm.model, scm.guide, data).backward()
        optimiser.step()

    return {name: partial(step, loss) for name, loss in losses.items()}


def questions(scm: Any, data: Mapping[str, Tensor]) -> dict[str, Callable[[], object]]:
    """Eight counterfactual images of each row, with all worlds in one run and with one each."""
    actions = [{"t": 1.0 + k / 2} for k in range(4)] + [{"i": 80.0 + 40 * k} for k in range(4)]

    def ask(*joint: Mapping[str, float]) -> None:
        CounterfactualPredictive(scm.model, list(joint), guide=scm.guide)(data)

    def one_by_one() -> None:
        for action in actions:
            ask(action)

    return {
        "eight worlds together": partial(ask, *actions),
        "eight worlds one by one": one_by_one,
    }


def measure(batch: int, units: int, preset: str, rounds: int) -> Results:
    """Time everything."""
    script = example()
    data = rows(max(batch, units))
    scm = script.MorphoMNIST().build("full", script.PRESETS[preset], data)
    training = timing.medians(steps(scm, {n: v[:batch] for n, v in data.items()}), rounds)
    scm.eval()
    asking = timing.medians(questions(scm, {n: v[:units] for n, v in data.items()}), rounds)
    one = training["1 particle"]
    return {
        "seconds of a step": training,
        "steps to one particle": {name: value / one for name, value in training.items()},
        "images per second": {name: 8 * units / value for name, value in asking.items()},
    }


def main(args: argparse.Namespace) -> Results:
    """Run the benchmark, print its tables, and write them to ``args.out`` if that is given."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    print(f"batch {args.batch}, 1 thread, medians of {args.rounds} rounds")
    results = measure(args.batch, args.units, args.preset, args.rounds)
    timing.show(results)
    print(f"\ntarget of 4 particles to one: at most {TARGET}")
    if args.out:
        args.out.write_text(json.dumps(vars(args) | {"out": str(args.out)} | results) + "\n")
    return results


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--preset", default="cpu", help="of the example, for the networks' size")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
