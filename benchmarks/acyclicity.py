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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timing
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


def differentiate(constraint: Callable[[Tensor], Tensor], matrix: Tensor) -> None:
    """A value and its gradient, `CALLS` times."""
    for _ in range(CALLS):
        matrix.grad = None
        constraint(matrix).backward()


def main(args: argparse.Namespace) -> Results:
    """Time all constraints at all sizes."""
    torch.set_num_threads(1)
    results: Results = {"microseconds": {}, f"ratios to {USUAL}": {}}
    for nodes in args.nodes:
        matrix = torch.rand(nodes, nodes, dtype=torch.float64).fill_diagonal_(0.0)
        matrix.requires_grad_()
        variants = {name: partial(differentiate, h, matrix) for name, h in CONSTRAINTS.items()}
        medians = timing.medians(variants, args.rounds)
        for name, median in medians.items():
            results["microseconds"][f"{name}, {nodes} nodes"] = 1e6 * median / CALLS
            results[f"ratios to {USUAL}"][f"{name}, {nodes} nodes"] = median / medians[USUAL]
    timing.show(results)
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
