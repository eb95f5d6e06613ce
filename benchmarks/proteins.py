"""How well GES and GIES find the graph of the proteins of Sachs et al. 2005, beside no edges.

GES sees all cells together, GIES the nine conditions and their targets; both score by BIC with
linear Gaussian laws. What they leave undirected is counted as in the mean of all graphs of their
class. Cells are logarithms, standardised over all.

    python benchmarks/proteins.py [--data folder-with-sachs] [--out proteins.json]

Needs the package gies (``pip install pyro-causal[bench]``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import gies
import numpy as np
import torch
from timing import show

from pyro_causal.datasets import load_sachs
from pyro_causal.metrics import edge_counts, hamming_distance, structural_hamming_distance

Reversals = Literal["inside", "apart"]
Results = dict[str, dict[str, float]]


def score(graphs: Sequence[np.ndarray], truth: torch.Tensor) -> dict[str, float]:
    """Means over graphs; ``apart``, where a reversed edge is no missing and no superfluous one."""
    found = torch.as_tensor(np.stack(graphs)).long()
    inside, apart = (edge_counts(found, truth, reversals=way) for way in get_args(Reversals))
    scores = {
        "HD": hamming_distance(found, truth),
        "SHD": structural_hamming_distance(found, truth),
        **inside._asdict(),
        "F1": inside.f1,
        "fn apart": apart.fn,
        "fp apart": apart.fp,
        "F1 apart": apart.f1,
    }
    return {name: value.double().mean().item() for name, value in scores.items()}


def main(args: argparse.Namespace) -> Results:
    """Search, score and show."""
    cells = load_sachs(log_standardised=True, path=args.data)
    x, z, truth = cells["x"].double().numpy(), cells["z"].numpy(), cells["adjacency"]
    every = [row.nonzero().flatten().tolist() for row in cells["targets"]]
    blocks = [x[z == k] for k in range(len(every))]
    results = {"without edges": score([np.zeros(truth.shape)], truth)}
    for name, tables, targets in (("GES", [x], [[]]), ("GIES", blocks, every)):
        graph, _ = gies.fit_bic(tables, targets)
        results[name] = score(list(gies.utils.pdag_to_all_dags(graph)), truth)
    show(results)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with sachs/; default: as of load_sachs")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
