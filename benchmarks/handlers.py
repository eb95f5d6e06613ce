"""What the causal handlers cost: ratios to plain Pyro, and to ChiRho where it is installed.

The program is a linear-Gaussian structural causal model: 100 sites, each with the three sites
before it as parents, over 1,000 rows, everything observed. Interventions hit the first sites, so
that every other site follows. Each program is run in two ways: for its values alone, and for a
trace with its log-density, which is what a step of inference pays and what the targets speak of.

Times are seconds of the processor on one thread (`time.process_time`). The programs only compute,
so that is what they cost, and it hardly changes when other work shares the machine: on a busy one
its quartiles lay within 4 % of the median, those of the wall clock up to 18 % away. Rounds go
through all programs in turn, so that a drift of the machine's speed hits them alike, and medians
over rounds are compared. Two rounds come before that, in which `worlds` finds its dim. Memory is
what a trace with its log-density keeps alive beyond the observed data.

ChiRho shares noise where a site is a transformed distribution, observed with its own `condition`,
so the program is written that way for it, and ours is also timed on that program. Before it is
timed, its counterfactual values must be ours. It scores the shared noise of a site once in every
world, so log-densities are not compared.

    python benchmarks/handlers.py [--rounds 20] [--out bench.json]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import timing
import torch
from pyro import poutine
from torch import Tensor

from pyro_causal.handlers import do, world, worlds

WEIGHTS = (0.5, -0.3, 0.2)  # of the three parents, the nearest first
WARM_UP = 2
Values = dict[str, Tensor]
Program = Callable[[], Values]
Mechanism = Callable[[Tensor], dist.TorchDistribution]
Results = dict[str, Any]


# --- the program and the questions ----------------------------------------------------------------


def gaussian(loc: Tensor) -> dist.TorchDistribution:
    """The mechanism of a site, as one writes it."""
    return dist.Normal(loc, 1.0)


def transformed(loc: Tensor) -> dist.TorchDistribution:
    """The same mechanism, as ChiRho needs it to share noise."""
    shift = dist.transforms.AffineTransform(loc, 1.0)
    return dist.TransformedDistribution(dist.Normal(0.0, 1.0), [shift])


def linear_gaussian(sites: int, rows: int, mechanism: Mechanism = gaussian) -> Program:
    """The program. **Shapes** each value `[rows]`, with axes of worlds in front under handlers."""

    def program() -> Values:
        values: Values = {}
        parents: list[Tensor] = []
        with pyro.plate("rows", rows):
            for i in range(sites):
                loc = torch.zeros(())
                for weight, parent in zip(WEIGHTS, parents, strict=False):
                    loc = loc + weight * parent
                value = values[f"x{i}"] = pyro.sample(f"x{i}", mechanism(loc))
                parents = [value, *parents[:2]]
        return values

    return program


def doses(program: Program, count: int) -> Program:
    """The first site set to `count` values, each in a world of its own."""
    return worlds(program, [{"x0": float(k)} for k in range(count)])


def one_by_one(program: Program, count: int) -> Program:
    """The first `count` sites set to one, each in a world of its own."""
    return worlds(program, [{f"x{i}": 1.0} for i in range(count)])


def subsets(sites: int, rows: int, data: Values, count: int) -> Program:
    """ChiRho: the first `count` sites set to one, in a world for every subset of them.

    With one site that is the twin world, for which ChiRho has a handler of the same cost.
    """
    from chirho.counterfactual.handlers import MultiWorldCounterfactual
    from chirho.interventional.handlers import do as chirho_do
    from chirho.observational.handlers import condition

    observed = condition(linear_gaussian(sites, rows, transformed), data)
    intervened = chirho_do(observed, {f"x{i}": torch.tensor(1.0) for i in range(count)})

    def program() -> Values:
        with MultiWorldCounterfactual(-2):  # the dim of the first axis, left of the rows
            return intervened()

    return program


def difference(ours: Values, theirs: Values, count: int) -> float:
    """The largest difference between `one_by_one` and `subsets` in the worlds that both have.

    **Shapes** ours `[1 + count, rows]`; theirs an axis of size two for each intervened site, the
    first one right-most: `[2, ..., 2, rows]`. Either may lack axes along which it is constant.
    """
    gaps = []
    for name, values in ours.items():
        rows = values.shape[-1]
        values = values.expand(1 + count, rows)
        grid = theirs[name].expand(*[2] * count, rows)
        for k in range(1 + count):
            subset = tuple(int(k == i) for i in range(count, 0, -1))
            gaps.append((world(values, k) - grid[subset]).abs().max())
    return torch.stack(gaps).max().item()  # NaN, too


def check(ours: Program, theirs: Program, count: int) -> None:
    """Let only equals be timed. **Raises** ``RuntimeError``: the counterfactuals differ."""
    gap = difference(ours(), theirs(), count)
    if not gap < 1e-4:
        raise RuntimeError(f"ChiRho's counterfactual values differ from ours by up to {gap:g}.")


# --- the measures ---------------------------------------------------------------------------------


def run_values(program: Program) -> object:
    """Run for the values alone."""
    return program()


def run_density(program: Program) -> object:
    """Run for a trace and its log-density."""
    return poutine.trace(program).get_trace().log_prob_sum()


WAYS: dict[str, Callable[[Program], object]] = {"values": run_values, "density": run_density}


def medians(programs: Mapping[str, Program], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each program, run in each way."""
    runs = {
        (n, w): partial(run, program) for n, program in programs.items() for w, run in WAYS.items()
    }
    times = timing.medians(runs, rounds, warm_up=WARM_UP)
    return {n: {w: 1e3 * times[n, w] for w in WAYS} for n in programs}


def megabytes(program: Program) -> float:
    """Size of the tensors that a trace with its log-density keeps alive."""
    program()  # what it keeps from run to run is not the trace's
    gc.collect()
    before = _storages()
    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    gc.collect()
    return sum(size for at, size in _storages().items() if at not in before) / 1e6


def _storages() -> dict[int, int]:
    """Address and bytes of what is behind all living tensors, shared storages once."""
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def ratios(times: Mapping[str, Mapping[str, float]], pairs: Sequence[tuple[str, str]]) -> Results:
    """The time of the first of each pair in units of the second's."""
    return {f"{a} / {b}": {way: times[a][way] / times[b][way] for way in WAYS} for a, b in pairs}


# --- the benchmark --------------------------------------------------------------------------------

TARGETS = {
    ("do", "plain Pyro"): 1.1,
    ("twin world", "plain Pyro"): 2.0,
    ("ten interventions on one site", "twin world"): 2.0,
    ("ten interventions, a site each", "twin world"): 2.0,
}
CHIRHO = [
    ("twin world, transformed", "plain Pyro, transformed"),
    ("ChiRho", "plain Pyro, transformed"),
    ("ChiRho", "twin world, transformed"),
    ("ChiRho", "plain Pyro"),
    ("ChiRho", "twin world"),
]


def measure(sites: int, rows: int, rounds: int) -> Results:
    """Time and weigh everything, ChiRho if it is installed."""
    data = linear_gaussian(sites, rows)()
    plain = poutine.condition(linear_gaussian(sites, rows), data)
    programs = {
        "plain Pyro": plain,
        "do": do(plain, {"x0": 1.0}),
        "twin world": one_by_one(plain, 1),
        "ten interventions on one site": doses(plain, 10),
        "ten interventions, a site each": one_by_one(plain, 10),
    }
    pairs, doubling = list(TARGETS), {}
    if importlib.util.find_spec("chirho"):
        longer = poutine.condition(linear_gaussian(sites, rows, transformed), data)
        programs["plain Pyro, transformed"] = longer
        programs["twin world, transformed"] = one_by_one(longer, 1)
        programs["ChiRho"] = subsets(sites, rows, data, 1)
        check(programs["twin world, transformed"], programs["ChiRho"], 1)
        pairs += CHIRHO
        for count in (1, 2, 3, 4):
            both = {
                "ours": one_by_one(plain, count),
                "ChiRho": subsets(sites, rows, data, count),
            }
            check(both["ours"], both["ChiRho"], count)
            doubling[count] = {
                "milliseconds": medians(both, rounds),
                "megabytes": {name: megabytes(program) for name, program in both.items()},
            }
    times = medians(programs, rounds)
    return {
        "milliseconds": times,
        "ratios": ratios(times, pairs),
        "megabytes": {0: megabytes(plain)} | {k: megabytes(doses(plain, k)) for k in (1, 10, 20)},
        "doubling": doubling,
    }


def show(results: Results) -> None:
    """Print the tables."""
    targets = {f"{a} / {b}": target for (a, b), target in TARGETS.items()}
    print(f"{'CPU milliseconds':<52}{'values':>9}{'density':>9}")
    for name, row in results["milliseconds"].items():
        print(f"  {name:<50}{row['values']:9.2f}{row['density']:9.2f}")
    print(f"\n{'ratio':<52}{'values':>9}{'density':>9}{'target':>9}")
    for name, row in results["ratios"].items():
        target = f"{targets[name]:9.2f}" if name in targets else ""
        print(f"  {name:<50}{row['values']:9.2f}{row['density']:9.2f}{target}")
    print(f"\n{'interventions':<16}{'MB of a trace':>16}{'MB more a world':>18}")
    before, least = 0, results["megabytes"][0]
    for count, size in results["megabytes"].items():
        more = f"{(size - least) / (count - before):18.3f}" if count else ""
        print(f"  {count:<14}{size:16.2f}{more}")
        before, least = count, size
    if results["doubling"]:
        print(f"\n{'sites set to one':<27}{'worlds':>9}{'values':>9}{'density':>9}{'MB':>9}")
    for count, row in results["doubling"].items():
        for name, number in (("ours", 1 + count), ("ChiRho", 2**count)):
            times, size = row["milliseconds"][name], row["megabytes"][name]
            print(
                f"  {count:<9}{name:<16}{number:9}"
                f"{times['values']:9.2f}{times['density']:9.2f}{size:9.2f}"
            )


def main(args: argparse.Namespace) -> Results:
    """Run the benchmark, print its tables, and write them to ``args.out`` if that is given."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    packages = ["torch", "pyro-ppl"] + ["chirho"] * bool(importlib.util.find_spec("chirho"))
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    print(f"{args.sites} sites, {args.rows} rows, 1 thread, medians of {args.rounds} rounds")
    print(", ".join(f"{name} {number}" for name, number in versions.items()) + "\n")
    results = measure(args.sites, args.rows, args.rounds)
    show(results)
    if args.out:
        record = {"versions": versions, **{k: v for k, v in vars(args).items() if k != "out"}}
        args.out.write_text(json.dumps(record | results, indent=2) + "\n")
    return results


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sites", type=int, default=100, help="at least 10")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
