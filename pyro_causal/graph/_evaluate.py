"""The value of a probability expression on exact tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from pyro_causal.graph.expression import (
    Dataset,
    Expression,
    Fraction,
    Probability,
    Product,
    Sum,
    Var,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PositivityError", "evaluate"]

Axes: TypeAlias = "tuple[Var, ...]"
Value: TypeAlias = "tuple[Tensor, Axes]"
Tables: TypeAlias = "Callable[[Dataset], tuple[Tensor, Sequence[str]]]"


class PositivityError(ValueError):
    """An estimand needs a conditional probability given something that never happens."""


def evaluate(
    expression: Expression, tables: Tables, fixed: Mapping[Var, int], outcome: Axes
) -> Tensor:
    """Evaluate an expression with some of its variables fixed.

    **Shapes** ``tables`` gives a tensor and the names of its axes. The result has the axes
    ``outcome``; the value does not depend on other free variables, so any level of theirs at which
    it is defined will do.

    **Raises** ``PositivityError``: the value rests on a conditional that is undefined.
    """
    import torch

    one = torch.ones((), dtype=torch.float64)

    def value(fill: Callable[[str], float]) -> tuple[Tensor, Evaluation]:
        run = Evaluation(torch.einsum, one, tables, fixed, fill)
        found, axes = run.of(expression)
        others = tuple(v for v in axes if v not in outcome)
        found = found.permute([axes.index(v) for v in (*others, *outcome)])
        return found.flatten(0, len(others) - 1) if others else found[None], run

    zeros, run = value(lambda text: 0.0)
    if not run.undefined:
        return zeros[0]
    # The value is defined where what is put in the place of undefined conditionals does not matter.
    ones, _ = value(lambda text: 1.0)
    sound = torch.isclose(zeros, ones, rtol=1e-9, atol=1e-12).reshape(len(zeros), -1).all(1)
    if bool(sound.any()):
        return zeros[int(sound.int().argmax())]
    for name, where in run.undefined.items():
        blamed, _ = value(partial(_is_text, name))
        if not torch.allclose(zeros, blamed, rtol=1e-9, atol=1e-12):
            raise PositivityError(_complaint(name, where))
    raise PositivityError(_complaint(*next(iter(run.undefined.items()))))


def _is_text(name: str, text: str) -> float:
    return float(text == name)


def _complaint(name: str, where: str) -> str:
    return (
        f"{name} is undefined at {where}, which has probability zero in the table, and the answer "
        "depends on it: expected positive probabilities there. Do merge rare levels, smooth the "
        "table, or look for an estimand that does not condition on it."
    )


@dataclass(frozen=True)
class Evaluation:
    """One pass through an expression; `fill` stands in for undefined conditionals, by name."""

    einsum: Callable[..., Tensor]
    one: Tensor
    tables: Tables
    fixed: Mapping[Var, int]
    fill: Callable[[str], float]
    undefined: dict[str, str] = field(default_factory=dict)

    def of(self, expression: Expression) -> Value:
        """The value, and the variables of its axes."""
        if isinstance(expression, Probability):
            return self._probability(expression)
        if isinstance(expression, Fraction):
            above, below = self.of(expression.numerator), self.of(expression.denominator)
            axes = tuple(dict.fromkeys((*above[1], *below[1])))
            conditions = sorted(expression.denominator.free)
            up, down = _align(above, axes), _align(below, axes)
            down = down.expand_as(up + down)
            return self._divide(up, down, str(expression), axes, conditions), axes
        if isinstance(expression, Product):
            return self._contract(expression.factors, frozenset())
        if isinstance(expression, Sum):
            free = {v: level for v, level in self.fixed.items() if v not in expression.over}
            inside = replace(self, fixed=free)
            term = expression.term
            factors = term.factors if isinstance(term, Product) else (term,)
            return inside._contract(factors, expression.over)
        return 0 * self.one, ()

    def _contract(self, factors: Sequence[Expression], over: frozenset[Var]) -> Value:
        """Multiply, and sum over some of the variables, first where the least is left."""
        values = [self.of(factor) for factor in factors]
        rest = sorted(over)
        while rest:
            v = min(rest, key=lambda v: len({w for _, axes in values if v in axes for w in axes}))
            touched = [value for value in values if v in value[1]]
            values = [value for value in values if v not in value[1]]
            values.append(self._multiply(touched, v))
            rest.remove(v)
        return self._multiply(values)

    def _multiply(self, values: Sequence[Value], summed: Var | None = None) -> Value:
        if not values:
            return self.one, ()
        number: dict[Var, int] = {}
        for _, axes in values:
            for v in axes:
                number.setdefault(v, len(number))
        kept = tuple(v for v in number if v != summed)
        operands = [part for value, axes in values for part in (value, [number[v] for v in axes])]
        return self.einsum(*operands, [number[v] for v in kept]), kept

    def _probability(self, p: Probability) -> Value:
        """A conditional, from the joint of all that it speaks of."""
        values, names = self.tables(p.dataset)
        table = values.double()
        variables = (*p.of, *p.given, *p.do)
        wanted = [names.index(v.name) for v in variables]
        joint = self.einsum(table, list(range(table.dim())), wanted)
        if p.given:
            marginal = joint.sum(tuple(range(len(p.of))), keepdim=True)
            joint, marginal = self._at(joint, variables), self._at(marginal, variables, len(p.of))
        else:
            joint = self._at(joint, variables)
        axes = tuple(v for v in variables if self._level(v) is None)
        if p.given:
            below = marginal.expand_as(joint)
            joint = self._divide(joint, below, p.text, axes, [*p.given, *p.do])
        return joint, axes

    def _level(self, v: Var) -> int | None:
        if isinstance(v.level, str):
            raise ValueError(
                f"At node '{v.name}': expected an integer level to evaluate at, got the symbol "
                f"'{v.level}'. Do state the event with integers."
            )
        return self.fixed.get(v) if v.level is None else v.level

    def _at(self, table: Tensor, variables: Axes, marginal: int = 0) -> Tensor:
        """The table at the levels that are fixed; the first axes may have been summed."""
        for i in reversed(range(len(variables))):
            level = self._level(variables[i])
            if level is None:
                continue
            if i >= marginal and not 0 <= level < table.shape[i]:
                raise ValueError(
                    f"At node '{variables[i].name}': expected a level from 0 to "
                    f"{table.shape[i] - 1}, got {level}. Do number the levels from zero."
                )
            table = table.select(i, 0 if i < marginal else level)
        return table

    def _divide(
        self, above: Tensor, below: Tensor, name: str, axes: Axes, conditions: Sequence[Var]
    ) -> Tensor:
        """A quotient, with undefined values filled, and the conditions of the first one noted."""
        nothing = below == 0
        if not bool(nothing.any()):
            return above / below
        first = dict(zip(axes, nothing.nonzero()[0].tolist(), strict=True))
        levels = {v: first.get(v, self._level(v)) for v in conditions}
        where = ", ".join(sorted(f"{v.name}={level}" for v, level in levels.items()))
        self.undefined.setdefault(name, where)
        ratio = above / below.masked_fill(nothing, 1.0)
        return ratio.masked_fill(nothing, self.fill(name))


def _align(value: Value, axes: Axes) -> Tensor:
    """Move and add axes, so that the value broadcasts."""
    tensor, own = value
    tensor = tensor.permute([own.index(v) for v in axes if v in own])
    for i, v in enumerate(axes):
        if v not in own:
            tensor = tensor.unsqueeze(i)
    return tensor
