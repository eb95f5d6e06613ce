"""The value of a probability expression on exact tables."""

from __future__ import annotations

import zlib
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

GOLDEN = (5**0.5 - 1) / 2  # multiples of it are far from equal, modulo one

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
    # The value is defined where what is put in the place of undefined quotients does not matter.
    filled, _ = value(lambda text: 1.0)
    sound = torch.isclose(zeros, filled, rtol=1e-9, atol=1e-12).reshape(len(zeros), -1).all(1)
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
    """One pass through an expression; `fill` tells with how much undefined quotients are filled."""

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
            up, down = _align(above, axes), _align(below, axes)
            name = str(expression)
            ratio, nothing = self._divide(up, down.expand_as(up + down), name, name)
            self._note(name, nothing, axes, sorted(expression.denominator.free))
            return ratio, axes
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
        variables = [v for part in (p.of, p.given, p.do) for v in sorted(part, key=_name)]
        wanted = [names.index(v.name) for v in variables]
        found = self.einsum(values.double(), list(range(values.dim())), wanted)
        axes = tuple(v for v in variables if self._level(v) is None)
        if p.given:
            marginal = found.sum(tuple(range(len(p.of))), keepdim=True).expand_as(found)
            key = str((p.dataset, [sorted(map(_name, part)) for part in (p.of, p.given)]))
            found, nothing = self._divide(found, marginal, p.text, key)
            self._note(p.text, self._at(nothing, variables), axes, [*p.given, *p.do])
        return self._at(found, variables), axes

    def _level(self, v: Var) -> int | None:
        if isinstance(v.level, str):
            raise ValueError(
                f"At node '{v.name}': expected an integer level to evaluate at, got the symbol "
                f"'{v.level}'. Do state the event with integers."
            )
        return self.fixed.get(v) if v.level is None else v.level

    def _at(self, table: Tensor, variables: Sequence[Var]) -> Tensor:
        """The table at the levels that are fixed."""
        for i in reversed(range(len(variables))):
            level = self._level(variables[i])
            if level is None:
                continue
            if not 0 <= level < table.shape[i]:
                raise ValueError(
                    f"At node '{variables[i].name}': expected a level from 0 to "
                    f"{table.shape[i] - 1}, got {level}. Do number the levels from zero."
                )
            table = table.select(i, level)
        return table

    def _divide(self, above: Tensor, below: Tensor, name: str, key: str) -> tuple[Tensor, Tensor]:
        """A quotient, and where it is undefined and filled.

        The values filled in are all different, lest they cancel, and the same for the same cell of
        the same conditional (`key`).
        """
        nothing = below == 0
        ratio = above / below.masked_fill(nothing, 1.0)
        share = self.fill(name) if bool(nothing.any()) else 0.0
        if share:
            cells = nothing.double().add(1.0).sign().flatten().cumsum(0).reshape(nothing.shape)
            some = (cells * GOLDEN + zlib.crc32(key.encode()) / 2**32) % 1.0
            ratio = ratio + share * nothing * some
        return ratio, nothing

    def _note(self, name: str, nothing: Tensor, axes: Axes, conditions: Sequence[Var]) -> None:
        """Note an undefined quotient, and the first conditions at which it is."""
        if bool(nothing.any()):
            first = dict(zip(axes, nothing.nonzero()[0].tolist(), strict=True))
            levels = {v: first.get(v, self._level(v)) for v in conditions}
            where = ", ".join(sorted(f"{v.name}={level}" for v, level in levels.items()))
            self.undefined.setdefault(name, where)


def _name(v: Var) -> str:
    return v.name


def _align(value: Value, axes: Axes) -> Tensor:
    """Move and add axes, so that the value broadcasts."""
    tensor, own = value
    tensor = tensor.permute([own.index(v) for v in axes if v in own])
    for i, v in enumerate(axes):
        if v not in own:
            tensor = tensor.unsqueeze(i)
    return tensor
