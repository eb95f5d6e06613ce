"""What identification and training plans cost on causal graphs of 50 nodes, next to y0.

Ten random graphs with seeds 0 to 9 from each of two families, both with a hidden common cause for
every three nodes (a bidirected edge between two random nodes): *sparse* has 1.5 arcs a node,
*dense* has n / 3 arcs a node, two thirds of all that are possible. A *single* query asks for the
effect of one random ancestor of a node on it, a *joint* query for that of three on two.

- **verdict**: `is_identifiable`. Ten queries a graph, whatever the answer.
- **estimand**: `identify`, and `str` of what it returns, whose length is counted in characters for
  all of these queries; the time is that of the first identifiable one in each graph. y0 gets the
  same graphs and queries in the same run, and is compared where its formula is right.
- **plan**: `training_plan` for observational data.
- **modules**: the number of nodes in the largest module, and in the largest set that a step matches
  (a module with its ancestors), from 15 nodes to 50. The Modular-DCM paper
  (https://arxiv.org/abs/2401.01426, figure 4) shows the first of these for dense graphs.

Times are milliseconds of the processor on one thread (`time.process_time`): the median of a few
calls after one that is not counted, of which the median over graphs is printed.

Nothing is timed before it is checked. Every formula is evaluated in a random linear-Gaussian model
of its graph, where it must be the effect that the structural equations give, from observational
terms alone; `is_identifiable` and `identify` must agree. For y0 it is counted how often it fails.

    python benchmarks/graphs.py [--rounds 5] [--out graphs.json] [--plot modules.png]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import platform
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import y0_engine
from linear_gaussian import Model

from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.expression import Expression
from pyro_causal.graph.hgraph import training_plan
from pyro_causal.graph.identify import Unidentifiable, identify, is_identifiable

FAMILIES: dict[str, Callable[[int], float]] = {  # arcs a node
    "sparse": lambda nodes: 1.5,
    "dense": lambda nodes: nodes // 3,
}
TITLES = {"sparse": "1.5 arcs a node", "dense": "n / 3 arcs a node"}
KINDS = {"single": (1, 1), "joint": (2, 3)}  # how many outcomes and causes
QUERIES = 10  # of each kind, for each graph
TARGETS = {"verdict": 5.0, "estimand": 50.0, "plan": 20.0}  # at most, in milliseconds
SHORTER = 5.0  # at least: y0's length in units of ours
SIZES = (15, 20, 30, 40, 50)
WHAT = {
    "module": ("largest module", "#0072B2"),
    "matched": ("largest set that a step matches", "#E69F00"),
}
# Dense graphs, largest module: means that another implementation found on ten other random graphs.
EXPECTED = {15: 6.4, 20: 6.7, 30: 13.2, 40: 17.2, 50: 23.8}
Results = dict[str, Any]


# --- graphs and questions -------------------------------------------------------------------------


class Query(NamedTuple):
    """P(outcome | do) in a graph."""

    graph: ADMG
    outcome: tuple[str, ...]
    do: tuple[str, ...]


def random_graph(family: str, nodes: int, seed: int) -> ADMG:
    """A graph in which neither the names nor their order tell causes from effects."""
    rng = random.Random(seed)
    names = [f"v{i}" for i in range(nodes)]
    pairs = list(itertools.combinations(rng.sample(names, nodes), 2))
    arcs = int(FAMILIES[family](nodes) * nodes)
    return ADMG(rng.sample(pairs, arcs), rng.sample(pairs, nodes // 3), nodes=names)


def random_queries(g: ADMG, kind: str, seed: int) -> list[Query]:
    """Causes are ancestors of an outcome, and no outcomes."""
    rng = random.Random(f"{kind} {seed}")  # apart from the stream that the graph comes from
    outcomes, causes = KINDS[kind]
    queries: list[Query] = []
    while len(queries) < QUERIES:
        outcome = rng.sample(g.nodes, outcomes)
        ancestors = sorted(g.ancestors(outcome) - set(outcome))
        if len(ancestors) >= causes:
            queries.append(Query(g, tuple(outcome), tuple(rng.sample(ancestors, causes))))
    return queries


def checked(query: Query, model: Model) -> Expression | None:
    """Our formula, if there is one. **Raises** ``RuntimeError``: it is wrong, or the verdict is."""
    try:
        formula = identify(*query).expression
    except Unidentifiable:
        formula = None
    if is_identifiable(*query) != (formula is not None):
        raise RuntimeError(f"is_identifiable and identify differ on {query}.")
    if formula is not None and not model.agrees(formula, query.outcome, query.do):
        raise RuntimeError(f"{formula} is not the answer to {query}.")
    return formula


# --- the measures ---------------------------------------------------------------------------------


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(1 + rounds):
        start = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[1:])


class Answers(NamedTuple):
    """What came of the queries to one graph; all times are in milliseconds."""

    verdicts: list[float]
    lengths: list[int | None]  # of our formulas, where there is one
    replies: list[y0_engine.Reply]
    ours: float | None  # the time for the first formula
    y0: float | None  # y0's time for it, where it is right


def answers(queries: Sequence[Query], seed: int, rounds: int) -> Answers:
    """Ask both engines about one graph. **Raises** ``RuntimeError``: an answer of ours is wrong."""
    model = Model(queries[0].graph, seed)
    formulas = [checked(query, model) for query in queries]
    lengths = [None if formula is None else len(str(formula)) for formula in formulas]
    verdicts = [milliseconds(partial(is_identifiable, *query), rounds) for query in queries]
    replies = []
    if importlib.util.find_spec("y0"):
        replies = [
            y0_engine.reply(*query, identifiable=length is not None, model=model)
            for query, length in zip(queries, lengths, strict=True)
        ]
    first = next((i for i, length in enumerate(lengths) if length), None)
    mine = theirs = None
    if first is not None:
        mine = milliseconds(lambda: str(identify(*queries[first])), rounds)
        if replies and replies[first].fault is None:
            ask = y0_engine.engine(*queries[first])
            theirs = milliseconds(lambda: str(ask()), rounds)
    return Answers(verdicts, lengths, replies, mine, theirs)


def effects(family: str, kind: str, args: argparse.Namespace) -> Results:
    """Verdicts, estimands and the comparison for one kind of query in one family of graphs."""
    graphs = [random_graph(family, args.nodes, seed) for seed in range(args.graphs)]
    found = [answers(random_queries(g, kind, i), i, args.rounds) for i, g in enumerate(graphs)]
    lengths = [length for a in found for length in a.lengths if length]
    results: Results = {
        "verdict": spread([statistics.median(a.verdicts) for a in found])
        | {"identifiable": len(lengths), "queries": QUERIES * len(found)},
        "estimand": spread([a.ours for a in found if a.ours])
        | {"characters": statistics.median(lengths), "longest": max(lengths)},
    }
    times = [(a.ours, a.y0) for a in found if a.ours and a.y0]
    if times:
        faults = Counter(reply.fault for a in found for reply in a.replies)
        results["y0"] = {
            "lengths": compared(found),
            "ours": statistics.median(ours for ours, _ in times),
            "y0": statistics.median(theirs for _, theirs in times),
            "faults": {name: faults[name] for name in y0_engine.FAULTS},
        }
    return results


def compared(found: Sequence[Answers]) -> Results:
    """Lengths of our formulas and of y0's where they are right, and how much longer these are."""
    pairs = [
        (length, reply.characters)
        for a in found
        for length, reply in zip(a.lengths, a.replies, strict=True)
        if length and reply.fault is None
    ]
    ours, y0 = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "queries": len(pairs),
        "ours": ours,
        "y0": y0,
        "ratio of medians": y0 / ours,
        "median of ratios": statistics.median(longer / length for length, longer in pairs),
    }


def spread(times: Sequence[float]) -> Results:
    """Median and maximum over graphs."""
    return {"milliseconds": statistics.median(times), "slowest": max(times)}


def modules(family: str, nodes: int, graphs: int) -> Results:
    """The largest modules of random graphs, and the largest sets that a step matches."""
    plans = [training_plan(random_graph(family, nodes, seed)) for seed in range(graphs)]
    found = {
        "module": [max(len(step.module) for step in plan) for plan in plans],
        "matched": [max(len(step.matched) for step in plan) for plan in plans],
    }
    return {name: {"mean": statistics.mean(sizes), "all": sizes} for name, sizes in found.items()}


def measure(args: argparse.Namespace) -> Results:
    """Time and count everything, y0 if it is installed."""
    cells = {f"{f}, {k}": effects(f, k, args) for f in FAMILIES for k in KINDS}
    plans = {}
    for family in FAMILIES:
        graphs = [random_graph(family, args.nodes, seed) for seed in range(args.graphs)]
        plans[family] = spread(
            [milliseconds(partial(training_plan, g), args.rounds) for g in graphs]
        )
    sizes = [*(n for n in SIZES if n < args.nodes), args.nodes]
    return {
        part: {name: cell[part] for name, cell in cells.items() if part in cell}
        for part in ("verdict", "estimand", "y0")
    } | {
        "plan": plans,
        "modules": {f: {n: modules(f, n, args.graphs) for n in sizes} for f in FAMILIES},
    }


# --- the report -----------------------------------------------------------------------------------


def show(results: Results) -> None:
    """Print the tables."""
    for part, target in TARGETS.items():
        print(f"{part + ', CPU milliseconds':<28}{'median':>9}{'slowest':>9}{'target':>9}")
        for name, row in results[part].items():
            line = f"  {name:<26}{row['milliseconds']:9.2f}{row['slowest']:9.2f}{target:9.2f}"
            if "queries" in row:
                line += f"   {row['identifiable']} of {row['queries']} identifiable"
            if "characters" in row:
                line += f"   {row['characters']:g} characters, at most {row['longest']}"
            print(line)
        print()
    if results["y0"]:
        show_y0(results)
    show_modules(results["modules"])


def show_y0(results: Results) -> None:
    """Print the comparison of formulas, and what y0 gets wrong."""
    print(f"{'where y0 is right':<28}{'characters':>18}{'ratio of':>12}{'median':>12}", end="")
    print(f"{'':<9}{'CPU milliseconds':>18}\n{'':<20}{'queries':>8}{'ours':>9}{'y0':>9}", end="")
    print(f"{'medians':>12}{'of ratios':>12}{'target':>9}{'ours':>9}{'y0':>9}")
    for name, row in results["y0"].items():
        lengths = row["lengths"]
        print(
            f"  {name:<18}{lengths['queries']:8}{lengths['ours']:9g}{lengths['y0']:9g}"
            f"{lengths['ratio of medians']:12.1f}{lengths['median of ratios']:12.1f}"
            f"{SHORTER:9.1f}{row['ours']:9.2f}{row['y0']:9.2f}"
        )
    print("\nqueries that y0 fails at")
    for name, row in results["y0"].items():
        faults = ", ".join(f"{row['faults'][key]} {text}" for key, text in y0_engine.FAULTS.items())
        print(f"  {name:<18}of {results['verdict'][name]['queries']}: {faults}")
    print()


def show_modules(curves: Results) -> None:
    """Print the curves."""
    columns = [(family, what) for family in FAMILIES for what in WHAT]
    print("mean size of the largest module, and of the largest set that a step matches")
    print(f"  {'nodes':<8}" + "".join(f"{', '.join(column):>18}" for column in columns), end="")
    print(f"{'expected':>11}")
    for nodes in curves["dense"]:
        means = (curves[family][nodes][what]["mean"] for family, what in columns)
        expected = f"{EXPECTED[nodes]:11.1f}" if nodes in EXPECTED else ""
        print(f"  {nodes:<8}" + "".join(f"{mean:18.1f}" for mean in means) + expected)


def plot(curves: Results, path: Path) -> None:
    """Draw the sizes of modules: means over graphs, and shaded the range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (family, curve) in zip(panels, curves.items(), strict=True):
        axes.plot(list(curve), list(curve), color="0.5", linestyle=":", label="all nodes")
        for what, (label, colour) in reversed(WHAT.items()):
            rows = [row[what] for row in curve.values()]
            low, high = zip(*((min(row["all"]), max(row["all"])) for row in rows), strict=True)
            axes.fill_between(list(curve), low, high, color=colour, alpha=0.15, linewidth=0)
            means = [row["mean"] for row in rows]
            axes.plot(list(curve), means, color=colour, marker="o", label=label)
        axes.set(xlabel="nodes of the graph", title=TITLES[family], ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("nodes in the set")
    panels[0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


def main(args: argparse.Namespace) -> Results:
    """Run the benchmark, print its tables, and write what the arguments ask for."""
    packages = ["networkx", "numpy"] + ["y0"] * bool(importlib.util.find_spec("y0"))
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    print(f"{args.graphs} graphs of {args.nodes} nodes, 1 thread, medians of {args.rounds} rounds")
    print(", ".join(f"{name} {number}" for name, number in versions.items()) + "\n")
    results = measure(args)
    show(results)
    if args.out:
        sizes = {name: getattr(args, name) for name in ("nodes", "graphs", "rounds")}
        record = {"versions": versions} | sizes | results
        args.out.write_text(json.dumps(record, indent=2) + "\n")
    if args.plot:
        plot(results["modules"], args.plot)
    return results


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=50, help="at least 10")
    parser.add_argument("--graphs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    parser.add_argument("--plot", type=Path, help="file for a picture of the modules")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
