"""What acyclicity constraints cost: a value and its gradient, next to PyTorch's own exponential.

Each constraint is timed on matrices of probabilities around one half, in double precision, and so
is the trace of `torch.matrix_exp`, which is how the exponential constraint is usually written. The
ratios are to that. Times are seconds of the processor on one thread, which hardly change when
other work shares the machine. Rounds go through all variants in turn, and medians are compared.

    python benchmarks/acyclicity.py [--nodes 10 20 50] [--rounds 9] [--out bench.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_causal.infer import acyclicity

USUAL = "torch.matrix_exp"
CALLS = 20  # a round
Results = dict[str, Any]


def usual(matrix: Tensor) -> Tensor:
    """The exponential constraint in one line."""
    return torch.matrix_exp(matrix).diagonal(dim1=-2, dim2=-1).sum(-1) - matrix.shape[-1]


CONSTRAINTS: dict[str, Callable[[Tensor], Tensor]] = {
    USUAL: usual,
    "trace_exponential": acyclicity.trace_exponential,
    "power_series": acyclicity.power_series,
    "log_determinant": acyclicity.log_determinant,
    "spectral_radius": acyclicity.spectral_radius,
}


def seconds(constraint: Callable[[Tensor], Tensor], matrix: Tensor) -> float:
    """Processor time of a value and gradient."""
    start = time.process_time()
    for _ in range(CALLS):
        matrix.grad = None
        constraint(matrix).backward()
    return (time.process_time() - start) / CALLS


def main(args: argparse.Namespace) -> Results:
    """Time all constraints at all sizes."""
    torch.set_num_threads(1)
    results: Results = {"microseconds": {}, f"ratios to {USUAL}": {}}
    for nodes in args.nodes:
        matrix = torch.rand(nodes, nodes, dtype=torch.float64).fill_diagonal_(0.0)
        matrix.requires_grad_()
        times: dict[str, list[float]] = {name: [] for name in CONSTRAINTS}
        for _ in range(args.rounds + 1):
            for name, constraint in CONSTRAINTS.items():
                times[name].append(seconds(constraint, matrix))
        medians = {name: statistics.median(found[1:]) for name, found in times.items()}
        for name, median in medians.items():
            results["microseconds"][f"{name}, {nodes} nodes"] = 1e6 * median
            results[f"ratios to {USUAL}"][f"{name}, {nodes} nodes"] = median / medians[USUAL]
    for title, table in results.items():
        print(f"\n{title}")
        for name, value in table.items():
            print(f"  {name:32} {value:10.2f}")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
