"""Probability expressions that simplify as they are built, so that estimands stay short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pyro_causal.graph._terms import (
    ONE,
    ZERO,
    Dataset,
    Expression,
    Fraction,
    Probability,
    Product,
    Sum,
    Var,
    Variables,
)

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
    "canonical",
    "fraction",
    "product",
    "substitute",
    "total",
]


# --- building -------------------------------------------------------------------------------------


def product(factors: Iterable[Expression]) -> Expression:
    """Multiply: nested products and fractions are joined, chains of conditionals become one.

    .. math:: P(a \\mid c) \\, P(b \\mid a, c) = P(a, b \\mid c)
    """
    above, below = _split(factors)
    return _quotient(above, below)


def fraction(numerator: Expression, denominator: Expression) -> Expression:
    """Divide, with common factors cancelled.

    .. math:: P(a, b \\mid c) / P(a \\mid c) = P(b \\mid a, c)
    """
    above, below = _split([numerator])
    more_below, more_above = _split([denominator])
    return _quotient(above + more_above, below + more_below)


def total(over: Iterable[Var], term: Expression) -> Expression:
    """Sum over variables, each of which the term must depend on, with what sums to one dropped.

    .. math:: \\textstyle\\sum_a P(a, b \\mid c) \\, f(c) = f(c) \\, P(b \\mid c)
    """
    over = rest = frozenset(over)
    if term is ZERO or not rest:
        return term
    assert rest <= term.free, f"{set(rest - term.free)} do not occur in {term.text}"
    above, below = _split([term])
    progress = True
    while progress:
        progress = False
        bound = Product(tuple(below)).free
        for v in sorted(rest - bound):
            holders = [i for i, factor in enumerate(above) if v in factor.free]
            if len(holders) == 1 and (summed := _sum_out(v, above[holders[0]])) is not None:
                above[holders[0]] = summed
                above, extra = _split(above)
                below, rest, progress = below + extra, rest - {v}, True
                break
        above, below = _cancel(_chain(above), below)
    inside = [[f for f in side if f.free & rest] for side in (above, below)]
    outside = [[f for f in side if not f.free & rest] for side in (above, below)]
    if not rest:
        return _quotient(*outside)
    inner = _quotient(*inside)
    if not rest <= inner.free:  # it counts their levels
        return Sum(over, term)
    if isinstance(inner, Sum) and not inner.over & rest:
        return _quotient([*outside[0], Sum(inner.over | rest, inner.term)], outside[1])
    return _quotient([*outside[0], Sum(rest, inner)], outside[1])


def _split(factors: Iterable[Expression]) -> tuple[list[Expression], list[Expression]]:
    """The factors above and below one common bar."""
    above: list[Expression] = []
    below: list[Expression] = []
    for factor in factors:
        if isinstance(factor, Product):
            above += factor.factors
        elif isinstance(factor, Fraction):
            up, down = _split([factor.numerator]), _split([factor.denominator])
            above += up[0] + down[1]
            below += up[1] + down[0]
        else:
            above.append(factor)
    return above, below


def _sum_out(v: Var, factor: Expression) -> Expression | None:
    """The sum of one factor over `v`, if it has a simpler form than a sum."""
    if isinstance(factor, Probability):
        if v not in factor.of:
            return None
        rest = factor.of - {v}
        return Probability(rest, factor.given, factor.do, factor.dataset) if rest else ONE
    if isinstance(factor, Sum) and v not in factor.over:
        return total(factor.over | {v}, factor.term)
    return None


def _chain(factors: list[Expression]) -> list[Expression]:
    """Join conditionals of which one conditions on just what the other is about."""
    found = list(factors)
    merged = True
    while merged:
        merged = False
        heads = {
            (p.given, p.do, p.dataset): i for i, p in enumerate(found) if isinstance(p, Probability)
        }
        for i, p in enumerate(found):
            if not isinstance(p, Probability):
                continue
            j = heads.get((p.of | p.given, p.do, p.dataset))
            tail = found[j] if j is not None else None
            if isinstance(tail, Probability) and j != i:
                found[i] = Probability(p.of | tail.of, p.given, p.do, p.dataset)
                del found[j]  # type: ignore[arg-type]
                merged = True
                break
    return found


def _cancel(
    above: list[Expression], below: list[Expression]
) -> tuple[list[Expression], list[Expression]]:
    """Drop what stands above and below the bar, and divide joint by marginal probabilities."""
    common = Counter(above) & Counter(below)
    above = list((Counter(above) - common).elements())
    below = list((Counter(below) - common).elements())
    for j, q in enumerate(below):
        for i, p in enumerate(above):
            if (ratio := _absorb(p, q)) is not None:
                up, down = _split([ratio])
                rest = below[:j] + below[j + 1 :]
                return _cancel([*above[:i], *up, *above[i + 1 :]], [*down, *rest])
    return above, below


def _absorb(p: Expression, q: Expression) -> Expression | None:
    """The quotient of two factors, if it is a conditional or a sum with one."""
    if not isinstance(q, Probability):
        return None
    if isinstance(p, Sum) and not q.free & p.over:
        above, below = _split([p.term])
        for i, factor in enumerate(above):
            if (ratio := _absorb(factor, q)) is not None:
                term = _quotient([*above[:i], ratio, *above[i + 1 :]], below)
                return total(p.over, term) if p.over <= term.free else None
    if not isinstance(p, Probability) or not q.of <= p.of:
        return None
    if (p.given, p.do, p.dataset) != (q.given, q.do, q.dataset):
        return None
    if p.of == q.of:
        return ONE
    return Probability(p.of - q.of, p.given | q.of, p.do, p.dataset)


def _quotient(above: list[Expression], below: list[Expression]) -> Expression:
    """A sorted product over another."""
    if any(factor is ZERO for factor in above):
        return ZERO
    above, below = _cancel(_chain(above), _chain(below))
    numerator, denominator = _product(_chain(above)), _product(below)
    return numerator if denominator is ONE else Fraction(numerator, denominator)


def _product(factors: list[Expression]) -> Expression:
    if len(factors) == 1:
        return factors[0]
    ordered = sorted(factors, key=lambda f: (not isinstance(f, Probability), f.text))
    return Product(tuple(ordered)) if ordered else ONE


# --- renaming -------------------------------------------------------------------------------------


def substitute(expression: Expression, values: Mapping[Var, Var]) -> Expression:
    """Put other variables, or fixed levels, in the place of free variables.

    Bound variables that would capture a new one are renamed.
    """
    return _rename(expression, values, frozenset(values.values()) | expression.free, keep=True)


def canonical(expression: Expression) -> Expression:
    """The same expression, each bound variable with the fewest primes that tell it apart.

    Expressions that differ in the names of bound variables only become equal.
    """
    return _rename(expression, {}, expression.free, keep=False)


def _rename(
    expression: Expression, values: Mapping[Var, Var], taken: Variables, *, keep: bool
) -> Expression:
    """Rename free variables, and bound ones that are `taken` (all of them unless `keep`)."""

    def again(part: Expression) -> Expression:
        return _rename(part, values, taken, keep=keep)

    if isinstance(expression, Probability):
        of, given, do = (
            frozenset(values.get(v, v) for v in part)
            for part in (expression.of, expression.given, expression.do)
        )
        return Probability(of, given, do, expression.dataset)
    if isinstance(expression, Product):
        return _product(list(map(again, expression.factors)))
    if isinstance(expression, Fraction):
        return Fraction(again(expression.numerator), again(expression.denominator))
    if isinstance(expression, Sum):
        names: dict[Var, Var] = {}
        for v in sorted(expression.over):
            name = v if keep else Var(v.name)
            while name in taken:
                name = Var(name.name, name.primes + 1)
            taken |= {name}
            names[v] = name
        term = _rename(expression.term, {**values, **names}, taken, keep=keep)
        return Sum(frozenset(names.values()), term)
    return expression
