"""Random linear-Gaussian models of a causal graph, in which a formula has a value at any size.

Tables of 50 variables fit nowhere, but every part of a formula in such a model is the exponential
of a quadratic form: factors add forms, a quotient subtracts them, a sum integrates variables out.
The truth follows from the structural equations alone. A formula that holds in every model of the
graph holds in these; one that does not fails in a model with random weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.expression import (
    Dataset,
    Expression,
    Fraction,
    Probability,
    Product,
    Sum,
    Var,
)

TOLERANCE = 1e-6  # rounding stays below 1e-12, and coefficients are of the order of one


class Form(NamedTuple):
    """The function ``exp(-v @ matrix @ v / 2)`` of variables, up to a constant factor."""

    variables: tuple[Var, ...]
    matrix: NDArray[np.float64]


class Model:
    r"""A model :math:`v = B v + e` with random weights B.

    A bidirected edge is a hidden cause with variance one, which enters both of its ends with weight
    one or minus one, so that the noise e has a dense covariance within districts.
    """

    def __init__(self, g: ADMG, seed: int) -> None:
        random = np.random.default_rng(seed)
        size = len(g.nodes)
        self.index = {name: i for i, name in enumerate(g.nodes)}
        weights = np.zeros((size, size))
        for cause, effect in g.directed:
            sign = random.choice([-1.0, 1.0])
            weights[self.index[effect], self.index[cause]] = sign * random.uniform(0.5, 1.0)
        weights /= np.sqrt(np.maximum(1.0, np.abs(weights).sum(axis=1, keepdims=True)))
        self.noise = np.eye(size)
        for edge in g.bidirected:
            loading = np.zeros(size)
            loading[[self.index[end] for end in edge]] = 1.0, random.choice([-1.0, 1.0])
            self.noise += np.outer(loading, loading)
        self.equations = np.eye(size) - weights  # times v they give the noise
        mixing = np.linalg.inv(self.equations)
        self.covariance = mixing @ self.noise @ mixing.T

    def truth(self, outcome: Iterable[str], do: Iterable[str]) -> Form:
        """P(outcome | do), from the equations that the intervention leaves."""
        outcome, do = set(outcome), set(do)
        names = list(self.index)
        rows = [i for i, name in enumerate(names) if name not in do]
        left = self.equations[rows]
        matrix = left.T @ np.linalg.solve(self.noise[np.ix_(rows, rows)], left)
        others = {Var(name) for name in names if name not in outcome | do}
        return integrate(Form(tuple(map(Var, names)), matrix), others)

    def value(self, expression: Expression) -> Form:
        """A formula's value. **Raises** ``ValueError``: it uses more than observational data."""
        if isinstance(expression, Probability):
            if expression.do or expression.dataset != Dataset():
                raise ValueError(f"Not a term of observational data: {expression}.")
            whole, given = expression.of | expression.given, expression.given
            return add([(1.0, self._marginal(whole)), (-1.0, self._marginal(given))])
        if isinstance(expression, Product):
            return add((1.0, self.value(factor)) for factor in expression.factors)
        if isinstance(expression, Fraction):
            above, below = self.value(expression.numerator), self.value(expression.denominator)
            return add([(1.0, above), (-1.0, below)])
        if isinstance(expression, Sum):
            return integrate(self.value(expression.term), expression.over)
        raise ValueError(f"Not a formula that is ever right: {expression}.")

    def _marginal(self, variables: Iterable[Var]) -> Form:
        variables = tuple(variables)
        rows = [self.index[v.name] for v in variables]
        return Form(variables, np.linalg.inv(self.covariance[np.ix_(rows, rows)]))

    def agrees(self, expression: Expression, outcome: Iterable[str], do: Iterable[str]) -> bool:
        """Whether a formula is P(outcome | do) here."""
        try:
            value = self.value(expression)
        except np.linalg.LinAlgError:  # an integral that is infinite
            return False
        gap = add([(1.0, value), (-1.0, self.truth(outcome, do))])
        return bool((np.abs(gap.matrix) < TOLERANCE).all())


def add(terms: Iterable[tuple[float, Form]]) -> Form:
    """The weighted sum of forms, each of which is constant in the variables that it lacks."""
    terms = list(terms)
    variables = tuple(sorted({v for _, form in terms for v in form.variables}))
    at = {v: i for i, v in enumerate(variables)}
    matrix = np.zeros((len(variables), len(variables)))
    for weight, form in terms:
        rows = [at[v] for v in form.variables]
        matrix[np.ix_(rows, rows)] += weight * form.matrix
    return Form(variables, matrix)


def integrate(form: Form, over: Iterable[Var]) -> Form:
    """Integrate variables out. **Raises** ``LinAlgError``: the integral is infinite."""
    over = set(over)
    if not over <= set(form.variables):
        raise np.linalg.LinAlgError("constant in a variable of the integral")
    out = [i for i, v in enumerate(form.variables) if v in over]
    rest = [i for i, v in enumerate(form.variables) if v not in over]
    cross = form.matrix[np.ix_(out, rest)]
    explained = cross.T @ np.linalg.solve(form.matrix[np.ix_(out, out)], cross)
    kept = tuple(form.variables[i] for i in rest)
    return Form(kept, form.matrix[np.ix_(rest, rest)] - explained)
