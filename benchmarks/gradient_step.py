"""What a gradient step of `LatentInterventions` costs, by family and intervention, and by size.

A step is the loss on a batch of rows and its gradient: from the start of training, where graph and
targets are learnt, and after a search, which finds one target for each component. Times are
seconds of the processor on one thread, which hardly change when other work shares the machine.
Rounds go through all variants in turn, and medians are compared: families and interventions to
linear mechanisms under stochastic ones, sizes to the smallest of their family.

    python benchmarks/gradient_step.py [--nodes 10 20 50] [--components 16 5 11 20 50]
        [--rows 8000] [--rounds 5] [--out bench.json]

The first number of nodes and the first of components are those of families, and of the other curve.
The paper has 10 nodes and 11 components.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import get_args

import timing
import torch

from pyro_causal.methods import LatentInterventions
from pyro_causal.methods.latent_interventions import Density, Intervention

Results = dict[str, dict[str, float]]


def step(
    rows: int,
    nodes: int,
    components: int,
    density: Density,
    intervention: Intervention,
    *,
    found: bool = False,
) -> Callable[[], None]:
    """What is timed; whether graph and targets are held, as found."""
    x = torch.randn(rows, nodes)
    method = LatentInterventions(
        nodes=nodes, truncation=components, density=density, intervention=intervention
    )
    method.set_normalisation(x)
    if found:
        each = torch.arange(components)
        graph = torch.ones(nodes, nodes).triu(1)
        targets = torch.nn.functional.one_hot(each % nodes, nodes)
        for name, value in (("graph", graph), ("targets", targets)):
            method.guide.get_parameter(f"factors.{name}.logits").data.copy_(12 * value - 6)
        method.learn_structure_(False)
    loss = method.loss(constraint=None) if found else method.loss()

    def run() -> None:
        method.zero_grad()
        loss.differentiable_loss(method.model, method.guide, x).backward()

    return run


def families(rows: int, nodes: int, components: int) -> dict[str, Callable[[], None]]:
    """Steps of all families under all interventions."""
    cases = product(get_args(Density), get_args(Intervention), (False, True))
    return {
        f"{d}, {i}{', after a search' * found}": step(rows, nodes, components, d, i, found=found)
        for d, i, found in cases
    }


def curve(
    rows: int, nodes: Sequence[int], components: Sequence[int], density: Density
) -> dict[str, Callable[[], None]]:
    """Steps of one family under imperfect interventions at several sizes, from the smallest."""
    sizes = {(d, components[0]) for d in nodes} | {(nodes[0], k) for k in components}
    return {
        f"{density}, imperfect, {d} nodes, {k} components": step(rows, d, k, density, "imperfect")
        for d, k in sorted(sizes)
    }


def main(args: argparse.Namespace) -> Results:
    """Time families, then sizes."""
    torch.set_num_threads(1)
    results: Results = {"seconds": {}, "ratios": {}}
    kinds: tuple[Density, ...] = ("linear", "flow")
    tables = [families(args.rows, args.nodes[0], args.components[0])]
    tables += [curve(args.rows, args.nodes, args.components, kind) for kind in kinds]
    for table in tables:
        medians = timing.medians(table, args.rounds)
        first = next(iter(medians.values()))
        results["seconds"] |= medians
        results["ratios"] |= {name: median / first for name, median in medians.items()}
    timing.show(results)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--components", type=int, nargs="+", default=[16, 5, 11, 20, 50])
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
