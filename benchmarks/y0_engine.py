"""What y0 (https://github.com/y0-causal-inference/y0) answers, in terms that ours compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from linear_gaussian import Model

from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.expression import ONE, Expression, Fraction, Probability, Product, Sum, Var

FAULTS = {"crash": "crashes", "verdict": "other verdicts", "formula": "wrong formulas"}


def engine(g: ADMG, outcome: Iterable[str], do: Iterable[str]) -> Callable[[], Any]:
    """A function that asks for P(outcome | do), with graph and names already in y0's form."""
    from y0.algorithm.identify import identify_outcomes
    from y0.dsl import Variable
    from y0.graph import NxMixedGraph

    graph = NxMixedGraph.from_str_edges(nodes=g.nodes, directed=g.directed, undirected=g.bidirected)
    treatments, outcomes = set(map(Variable, do)), set(map(Variable, outcome))
    return lambda: identify_outcomes(graph, treatments, outcomes)


def translated(formula: Any) -> Expression:
    """A formula of y0 as one of ours, not simplified."""
    from y0 import dsl

    def variables(these: Iterable[Any]) -> frozenset[Var]:
        return frozenset(Var(v.name) for v in these)

    if isinstance(formula, dsl.Probability):
        return Probability(variables(formula.children), variables(formula.parents))
    if isinstance(formula, dsl.Product):
        return Product(tuple(map(translated, formula.expressions)))
    if isinstance(formula, dsl.Fraction):
        return Fraction(translated(formula.numerator), translated(formula.denominator))
    if isinstance(formula, dsl.Sum):
        return Sum(variables(formula.ranges), translated(formula.expression))
    if isinstance(formula, dsl.One):
        return ONE
    raise TypeError(f"Not a part of a formula that is known: {formula!r}.")


class Reply(NamedTuple):
    """How y0 fails at a query, one of `FAULTS`, if it does; and the length of its formula."""

    fault: str | None
    characters: int = 0


def reply(
    g: ADMG, outcome: Iterable[str], do: Iterable[str], *, identifiable: bool, model: Model
) -> Reply:
    """Ask for P(outcome | do), and judge the answer."""
    try:
        found = engine(g, outcome, do)()
    except Exception:  # whatever y0 raises
        return Reply("crash")
    if (found is not None) != identifiable:
        return Reply("verdict")
    if found is None:
        return Reply(None)
    right = model.agrees(translated(found), outcome, do)
    return Reply(None if right else "formula", len(str(found)))
