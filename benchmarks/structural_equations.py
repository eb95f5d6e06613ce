"""What the densities of all nodes in all regimes cost: one call, next to a loop over networks.

A step is a sample of the adjacency, the log-density of every row under the mechanism of every node
in every regime, and the gradient of their sum. The loop evaluates the networks of `NonlinearSEM`
one by one, on the parents' values and the regime's context side by side. Times are seconds of the
processor on one thread, which hardly change when other work shares the machine. Rounds go through
all variants in turn, and medians are compared.

    python benchmarks/structural_equations.py [--nodes 10] [--regimes 11] [--rows 8000] [--rounds 5]
        [--out bench.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F
from pyro.distributions import Normal
from torch import Tensor

from pyro_causal.mechanisms import FlowSEM, LinearSEM, NonlinearSEM, sample_adjacency

LOOP = "nonlinear, a loop"
Density = Callable[[Tensor, Tensor], Tensor]
Results = dict[str, Any]


def loop(equations: NonlinearSEM, x: Tensor, adjacency: Tensor) -> Tensor:
    """The same densities, network by network."""
    net = equations.networks
    first, *biases = (bias.squeeze(-1) for bias in net.biases)
    mask = adjacency * equations.off_diagonal
    weights = torch.cat([net.inputs, net.context], -1)
    regimes = []
    for context in equations.context:
        nodes = []
        for j in range(equations.nodes):
            inputs = torch.cat([x * mask[:, j], context.expand(len(x), -1)], -1)
            hidden = F.linear(inputs, weights[j], first[j])
            for weight, bias in zip(net.weights, biases, strict=True):
                hidden = F.linear(F.silu(hidden), weight[j], bias[j])
            scale = (hidden[:, 1].exp() ** 2 + equations.min_scale**2).sqrt()
            nodes.append(Normal(hidden[:, 0], scale, validate_args=False).log_prob(x[:, j]))
        regimes.append(torch.stack(nodes, -1))
    return torch.stack(regimes)


def variants(nodes: int, regimes: int) -> dict[str, Density]:
    """The densities, with parameters away from their start."""
    nonlinear = NonlinearSEM(nodes, regimes=regimes)
    families = {
        "linear": LinearSEM(nodes, regimes=regimes),
        "nonlinear": nonlinear,
        "flow": FlowSEM(nodes, regimes=regimes),
    }
    for equations in families.values():
        for parameter in equations.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    found: dict[str, Density] = {name: family.log_prob for name, family in families.items()}
    found[LOOP] = lambda x, adjacency: loop(nonlinear, x, adjacency)
    return found


def step(density: Density, x: Tensor, logits: Tensor) -> None:
    """What is timed of each."""
    density(x, sample_adjacency(logits)).sum().backward()


def main(args: argparse.Namespace) -> Results:
    """Time all families at all sizes."""
    torch.set_num_threads(1)
    results: Results = {"seconds": {}, f"ratios to {LOOP}": {}}
    for nodes in args.nodes:
        for regimes in args.regimes:
            x, logits = torch.randn(args.rows, nodes), torch.zeros(nodes, nodes, requires_grad=True)
            densities = variants(nodes, regimes)
            steps = {name: partial(step, density, x, logits) for name, density in densities.items()}
            medians = timing.medians(steps, args.rounds)
            for name, median in medians.items():
                label = f"{name}, {nodes} nodes, {regimes} regimes"
                results["seconds"][label] = median
                results[f"ratios to {LOOP}"][label] = median / medians[LOOP]
    timing.show(results)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10])
    parser.add_argument("--regimes", type=int, nargs="+", default=[11])
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
