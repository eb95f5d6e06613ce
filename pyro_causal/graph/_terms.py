"""The parts of probability expressions, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

__all__ = [
    "ONE",
    "ZERO",
    "Dataset",
    "Expression",
    "Fraction",
    "Probability",
    "Product",
    "Sum",
    "Var",
    "Variables",
    "datasets_of",
]


SPECIAL = re.compile(r"[\\^~_#$%&{}]")  # to LaTeX


class Dataset(NamedTuple):
    """Where a probability comes from: an experiment on `intervened` that records `observed`."""

    intervened: frozenset[str] = frozenset()
    observed: frozenset[str] | None = None  # None: everything that is not intervened on


EVERYTHING = Dataset()


class Var(NamedTuple):
    """A variable of an expression: a symbol, told apart by primes, or a fixed level of it."""

    name: str
    primes: int = 0
    level: int | str | None = None

    def __str__(self) -> str:
        name = self.name if re.fullmatch(r"[\w .'-]+", self.name) else repr(self.name)
        symbol = name + "'" * self.primes
        return symbol if self.level is None else f"{symbol}={self.level}"

    def latex(self) -> str:
        """The symbol in LaTeX: digits at the end of a name become its index."""
        match = re.fullmatch(r"([^\W\d_]+)_?(\d*)", self.name)
        if match is None:
            symbol = rf"\text{{{re.sub(SPECIAL, _escape, self.name)}}}"
        else:
            stem, index = match.groups()
            symbol = stem if len(stem) == 1 else rf"\mathrm{{{stem}}}"
            symbol += f"_{{{index}}}" if index else ""
        symbol += "'" * self.primes
        return symbol if self.level is None else f"{symbol}={self.level}"


def _escape(match: re.Match[str]) -> str:
    sign = match.group()
    words = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return words.get(sign, "\\" + sign)


Variables: TypeAlias = frozenset[Var]


@dataclass(frozen=True, eq=False)
class Expression:
    """Base of the four kinds of expressions.

    A sum binds its variables as a quantifier does. ``str()`` and ``latex()`` tell a bound variable
    from others of its name by primes; ``text`` does not. Expressions are equal if their parts are.
    """

    @cached_property
    def free(self) -> Variables:
        """The variables that the value depends on."""
        raise NotImplementedError

    @cached_property
    def text(self) -> str:
        """The expression in plain text, variables as they are."""
        return Writer(PLAIN).write(self)

    def latex(self) -> str:
        """The expression in LaTeX, without delimiters."""
        return Writer(LATEX, {}, frozenset(map(Var.latex, self.free))).write(self)

    def __str__(self) -> str:
        return Writer(PLAIN, {}, frozenset(map(str, self.free))).write(self)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return type(self), *(getattr(self, part.name) for part in fields(self))

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expression) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, eq=False)
class Probability(Expression):
    """A conditional probability in one of the datasets: ``P_{do}(of | given)``."""

    of: Variables
    given: Variables = frozenset()
    do: Variables = frozenset()
    dataset: Dataset = EVERYTHING

    @cached_property
    def free(self) -> Variables:
        """The variables that the value depends on."""
        return frozenset(v for v in self.of | self.given | self.do if v.level is None)


@dataclass(frozen=True, eq=False)
class Product(Expression):
    """A product; that of no factors is one."""

    factors: tuple[Expression, ...]

    @cached_property
    def free(self) -> Variables:
        """The variables that the value depends on."""
        return frozenset().union(*(factor.free for factor in self.factors))


@dataclass(frozen=True, eq=False)
class Sum(Expression):
    """A sum over all values of the variables `over`; each of which the term depends on."""

    over: Variables
    term: Expression

    @cached_property
    def free(self) -> Variables:
        """The variables that the value depends on."""
        return self.term.free - self.over


@dataclass(frozen=True, eq=False)
class Fraction(Expression):
    """A quotient."""

    numerator: Expression
    denominator: Expression

    @cached_property
    def free(self) -> Variables:
        """The variables that the value depends on."""
        return self.numerator.free | self.denominator.free


ONE = Product(())


@dataclass(frozen=True, eq=False)
class _Zero(Expression):
    """What is impossible."""

    @cached_property
    def free(self) -> Variables:
        """None."""
        return frozenset()


ZERO = _Zero()


def datasets_of(expression: Expression) -> Iterator[Dataset]:
    """The datasets that an expression uses, with repetitions."""
    if isinstance(expression, Probability):
        yield expression.dataset
    elif isinstance(expression, Product):
        for factor in expression.factors:
            yield from datasets_of(factor)
    elif isinstance(expression, Sum):
        yield from datasets_of(expression.term)
    elif isinstance(expression, Fraction):
        yield from datasets_of(expression.numerator)
        yield from datasets_of(expression.denominator)


# --- writing --------------------------------------------------------------------------------------


class Script(NamedTuple):
    """How the parts of an expression are written."""

    variable: Callable[[Var], str]
    bar: str
    sum: str
    product: str
    fraction: str
    inline: bool  # a fraction is written in one line, and needs brackets


PLAIN = Script(str, " | ", "Σ_{{{}}} {}", " ", "{} / {}", True)
LATEX = Script(Var.latex, r" \mid ", r"\sum_{{{}}} {}", r" \, ", r"\frac{{{}}}{{{}}}", False)


class Writer(NamedTuple):
    """Writes an expression.

    Bound variables are not written like what is `taken`, or as they are if that is None.
    """

    script: Script
    names: Mapping[Var, Var] = MappingProxyType({})
    taken: frozenset[str] | None = None

    def write(self, expression: Expression) -> str:
        """The whole of it."""
        script = self.script
        if isinstance(expression, Probability):
            do = f"_{{{self._list(expression.do)}}}" if expression.do else ""
            given = script.bar + self._list(expression.given) if expression.given else ""
            return f"P{do}({self._list(expression.of)}{given})"
        if isinstance(expression, Product):
            parts = [self._part(f, isinstance(f, Sum)) for f in expression.factors[:-1]]
            parts += [self._part(f) for f in expression.factors[-1:]]
            return script.product.join(parts) or "1"
        if isinstance(expression, Sum):
            inner = self._inside(expression.over)
            term = inner._part(expression.term)
            return script.sum.format(inner._list(expression.over), term)
        if isinstance(expression, Fraction):
            above, below = expression.numerator, expression.denominator
            plain = isinstance(above, Product) and all(
                isinstance(factor, Probability) for factor in above.factors
            )
            return script.fraction.format(
                self._part(above, script.inline and not (plain or isinstance(above, Probability))),
                self._part(below, script.inline and not isinstance(below, Probability)),
            )
        return "0"

    def _part(self, part: Expression, brackets: bool = False) -> str:
        """A part of something, in brackets if it would be misread without."""
        text = part.text if self.taken is None else self.write(part)
        quotient = self.script.inline and isinstance(part, Fraction)
        return f"[{text}]" if brackets or quotient else text

    def _list(self, variables: Variables) -> str:
        named = sorted((self.names.get(v, v) for v in variables), key=_natural)
        return ", ".join(map(self.script.variable, named))

    def _inside(self, over: Variables) -> Writer:
        """The writer of what is inside of a sum."""
        if self.taken is None:
            return self
        names = {v: self.names[v] for v in self.names if v not in over}
        taken = self.taken
        for v in sorted(over, key=_natural):
            name = Var(v.name)
            while self.script.variable(name) in taken:
                name = Var(v.name, name.primes + 1)
            names[v] = name
            taken |= {self.script.variable(name)}
        return Writer(self.script, names, taken)


def _natural(v: Var) -> tuple[list[tuple[int, str]], int, str]:
    """Sort x2 before x10."""
    parts = re.findall(r"\d+|\D+", v.name)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts], v.primes, str(v.level)
