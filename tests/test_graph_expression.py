"""Probability expressions: simplification keeps the value, and writing keeps variables apart."""

import itertools
import random

import pytest
import torch

from pyro_causal.graph._evaluate import evaluate
from pyro_causal.graph.expression import (
    ONE,
    ZERO,
    Dataset,
    Expression,
    Fraction,
    Probability,
    Product,
    Sum,
    Var,
    canonical,
    fraction,
    product,
    substitute,
    total,
)

EXPERIMENT = Dataset(frozenset("x"))


def v(*names):
    return frozenset(map(Var, names))


def p(of, given="", do="", dataset=None):
    dataset = dataset or Dataset(frozenset(do))
    return Probability(v(*of), v(*given), v(*do), dataset)


LATER = Sum(v("e"), product([p("de", "ac"), p("b", "e")]))  # without b: P(d | a, c)

# --- simplification -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("built", "text"),
    [
        (product([]), "1"),
        (product([p("a", "c"), p("b", "ac")]), "P(a, b | c)"),
        (product([p("c", "ab"), p("a"), p("b", "a")]), "P(a, b, c)"),
        (product([p("b", "ac"), p("a")]), "P(a) P(b | a, c)"),
        (product([p("a", do="x"), p("b", "a")]), "P(b | a) P_{x}(a)"),
        (product([product([p("b"), p("a", "b")]), ONE]), "P(a, b)"),
        (product([ZERO, p("a")]), "0"),
        (total(v("a"), p("ab", "c")), "P(b | c)"),
        (total(v("a", "b"), p("ab", "c")), "1"),
        (total([], p("a")), "P(a)"),
        (total(v("a"), ZERO), "0"),
        (total(v("a"), product([p("a", "c"), p("b", "a")])), "Σ_{a} P(a | c) P(b | a)"),
        (total(v("a"), product([p("a"), p("b", "a"), p("d", "c")])), "P(b) P(d | c)"),
        (total(v("a"), product([p("b", "a"), p("a"), p("c", "ab")])), "P(b, c)"),
        (total(v("b"), total(v("a"), product([p("a"), p("bc", "ad")]))), "Σ_{a} P(a) P(c | a, d)"),
        (total(v("b"), product([p("b"), total(v("a"), product([p("a"), p("c", "abd")]))])),
         "Σ_{b} P(b) Σ_{a} P(a) P(c | a, b, d)"),
        (total(v("a", "b"), product([p("a", "c"), LATER])), "P(d | c)"),
        (fraction(Sum(v("a"), product([p("a"), p("b", "d")])), p("a")),
         "[Σ_{a'} P(a') P(b | d)] / P(a)"),
        (fraction(p("ab", "c"), p("a", "c")), "P(b | a, c)"),
        (fraction(p("a"), p("a")), "1"),
        (fraction(p("a"), ONE), "P(a)"),
        (fraction(p("a"), p("b")), "P(a) / P(b)"),
        (fraction(product([p("a"), p("b", "c")]), p("a")), "P(b | c)"),
        (product([fraction(p("a"), p("b")), p("bc")]), "P(a) P(c | b)"),
        (fraction(p("a"), fraction(p("b"), p("c"))), "P(a) P(c) / P(b)"),
        (fraction(total(v("a"), product([p("ab"), p("c", "ad")])), p("b")),
         "Σ_{a} P(a | b) P(c | a, d)"),
        (fraction(total(v("b"), product([p("ab"), p("c", "bd")])), p("b")),
         "[Σ_{b'} P(a, b') P(c | b', d)] / P(b)"),
        (total(v("c"), fraction(product([p("c", "a"), p("a")]), p("b"))), "P(a) / P(b)"),
        (total(v("b"), fraction(p("a", "b"), p("b", "c"))), "Σ_{b} [P(a | b) / P(b | c)]"),
    ],
)  # fmt: skip
def test_what_is_built_is_short(built, text):
    assert str(built) == text


def test_different_datasets_do_not_mix():
    marginal = Dataset(frozenset(), frozenset("ab"))
    mixed = product([p("a", dataset=marginal), p("b", "a")])
    assert isinstance(mixed, Product)
    assert isinstance(fraction(p("ab"), p("a", dataset=marginal)), Fraction)


def test_a_sum_over_what_does_not_occur_is_a_mistake():
    with pytest.raises(AssertionError, match="do not occur"):
        total(v("z"), p("a"))


NAMES = "abcd"


def tables(seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand([2, 3, 2, 3], generator=generator, dtype=torch.float64)
    return table / table.sum()


def literal(expression: Expression, joint, fixed) -> float:
    """The value by the definition, a loop over all levels."""
    sizes = dict(zip(NAMES, joint.shape, strict=True))

    def marginal(variables):
        index = [slice(None)] * 4
        for variable in variables:
            index[NAMES.index(variable.name)] = fixed[variable]
        return joint[tuple(index)].sum()

    if isinstance(expression, Probability):
        return marginal(expression.of | expression.given) / marginal(expression.given)
    if isinstance(expression, Product):
        values = [literal(factor, joint, fixed) for factor in expression.factors]
        return torch.tensor(values, dtype=torch.float64).prod()
    if isinstance(expression, Fraction):
        above, below = (
            literal(part, joint, fixed) for part in (expression.numerator, expression.denominator)
        )
        return above / below
    over = sorted(expression.over)
    return sum(
        literal(expression.term, joint, {**fixed, **dict(zip(over, levels, strict=True))})
        for levels in itertools.product(*(range(sizes[variable.name]) for variable in over))
    )


def random_expression(rng, depth):
    """A pair: built by the functions that simplify, and by the bare classes."""
    kind = rng.choice(["probability", "product", "fraction", "sum"]) if depth else "probability"
    if kind == "probability":
        names = rng.sample(NAMES, rng.randint(1, 3))
        cut = rng.randint(1, len(names))
        return (p(names[:cut], names[cut:]),) * 2
    pairs = [random_expression(rng, depth - 1) for _ in range(2)]
    (a, bare_a), (b, bare_b) = pairs
    if kind == "product":
        return product([a, b]), Product((bare_a, bare_b))
    if kind == "fraction":
        return fraction(a, b), Fraction(bare_a, bare_b)
    free = sorted(a.free & bare_a.free)
    over = frozenset(rng.sample(free, min(len(free), rng.randint(1, 2))))
    return total(over, a), Sum(over, bare_a)


def test_simplification_keeps_the_value():
    shorter = 0
    for seed in range(400):
        rng = random.Random(seed)
        built, bare = random_expression(rng, 3)
        joint = tables(seed)
        for levels in rng.sample(list(itertools.product(range(2), repeat=4)), 2):
            fixed = dict(zip(map(Var, NAMES), levels, strict=True))
            expected = literal(bare, joint, fixed)
            for same in (built, canonical(built)):
                found = evaluate(same, lambda dataset, joint=joint: (joint, list(NAMES)), fixed, ())
                torch.testing.assert_close(found, torch.as_tensor(expected), msg=f"{bare}, {same}")
        shorter += len(built.text) < len(bare.text)
    assert shorter > 200


# --- names ----------------------------------------------------------------------------------------


def test_bound_variables_are_told_apart():
    inner = Sum(v("x"), product([p("x"), p("y", "xm")]))
    assert str(product([p("m", "x"), inner])) == "P(m | x) Σ_{x'} P(x') P(y | m, x')"
    assert str(inner) == "Σ_{x} P(x) P(y | m, x)"
    twice = product([p("m", "x"), Sum(v("x"), product([p("x"), p("m", "xy"), inner]))])
    assert str(twice) == "P(m | x) Σ_{x'} P(m | x', y) P(x') Σ_{x''} P(x'') P(y | m, x'')"


def test_canonical_forms_are_equal_where_only_bound_names_differ():
    one = Sum(frozenset({Var("x", 3)}), Probability(v("y"), frozenset({Var("x", 3)})))
    other = Sum(v("x"), p("y", "x"))
    assert one != other
    assert canonical(one) == canonical(other)
    assert hash(canonical(one)) == hash(canonical(other))
    assert canonical(one) != canonical(Sum(v("z"), p("y", "z")))
    assert str(one) == str(other)


def test_substitution_does_not_capture():
    inner = Sum(v("x"), product([p("x"), p("y", "xm")]))
    moved = substitute(inner, {Var("m"): Var("x")})
    assert str(moved) == "Σ_{x'} P(x') P(y | x, x')"
    assert moved.free == v("x", "y")
    fixed = substitute(inner, {Var("y"): Var("y", 0, 1), Var("x"): Var("x", 0, 0)})
    assert str(fixed) == "Σ_{x} P(x) P(y=1 | m, x)"
    assert fixed.free == v("m")


def test_names_sort_as_people_count():
    assert str(p(["x10", "x2", "a"])) == "P(a, x2, x10)"


@pytest.mark.parametrize(
    ("expression", "latex"),
    [
        (p("y", "x"), r"P(y \mid x)"),
        (p("y", do="x"), r"P_{x}(y)"),
        (p(["x1"], ["smoke", "bmi_2"]), r"P(x_{1} \mid \mathrm{bmi}_{2}, \mathrm{smoke})"),
        (p(["a_b"]), r"P(\text{a\_b})"),
        (p(["50% ^x_"], ["1"]), r"P(\text{50\% \textasciicircum{}x\_} \mid \text{1})"),
        (fraction(p("a"), p("b")), r"\frac{P(a)}{P(b)}"),
        (product([p("b", "x"), Sum(v("x"), p("y", "x"))]),
         r"P(b \mid x) \, \sum_{x'} P(y \mid x')"),
        (product([Sum(v("a"), p("y", "a")), Sum(v("a"), p("z", "a"))]),
         r"[\sum_{a} P(y \mid a)] \, \sum_{a} P(z \mid a)"),
        (Probability(frozenset({Var("y", 0, 1)}), frozenset({Var("x", 2)})), "P(y=1 \\mid x'')"),
        (ZERO, "0"),
        (ONE, "1"),
    ],
)  # fmt: skip
def test_latex(expression, latex):
    assert expression.latex() == latex
