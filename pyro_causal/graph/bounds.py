"""Bounds on the probabilities of causation, which no data identify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from pyro_causal.graph._hedge import Unidentifiable
from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.estimand import Estimand, Member, PositivityError
from pyro_causal.graph.expression import Var
from pyro_causal.graph.identify import identify

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Bounds", "probability_bounds"]

Quantity = Literal["PN", "PS", "PNS"]
Term: TypeAlias = "tuple[tuple[int, str], ...]"  # a signed sum of symbols

# The greatest of the first terms is the lower bound, the least of the second ones the upper bound.
# In the symbols, y stands for the outcome and n for any other, t for treatment and c for control:
# ty is P(x=t, y), and y_t is P_{x=t}(y). With y and n, t and c swapped, PN becomes PS.
TERMS: dict[Quantity, tuple[str, str]] = {
    "PN": ("0; ty + cy - y_c", "ty; n_c - cn"),
    "PS": ("0; tn + cn - n_t", "cn; y_t - ty"),
    "PNS": (
        "0; y_t - y_c; ty + cy - y_c; tn + cn - n_t",
        "y_t; n_c; 1 - tn - cy; 1 + y_t - y_c - ty - cn",
    ),
}
# A monotone effect adds to what is known of P_x(y), and nothing without.
MONOTONE_TERMS: dict[Quantity, tuple[str, str]] = {
    "PN": ("0; ty + cy - y_c", "ty; n_c - tn - cn; y_t - y_c"),
    "PS": ("0; tn + cn - n_t", "cn; y_t - ty - cy; y_t - y_c"),
    "PNS": ("y_t - y_c", "y_t - y_c"),
}
CONDITIONS: dict[Quantity, str] = {"PN": "ty", "PS": "cn", "PNS": "1"}
JOINT, EFFECT = ("ty", "tn", "cy", "cn"), ("y_t", "n_t", "y_c", "n_c")


def probability_bounds(
    g: ADMG,
    quantity: Quantity,
    *,
    treatment: str,
    outcome: str,
    treated: int = 1,
    control: int = 0,
    value: int = 1,
    monotone: bool = False,
    available: Iterable[Member] = (frozenset(),),
) -> Bounds:
    r"""Bound a probability of causation by the data at hand.

    ========  ===========================================  =======================================
    quantity  what it is                                   would the treatment
    ========  ===========================================  =======================================
    PN        :math:`P(Y_{x_0} \ne y \mid x_1, y)`         have been necessary for the outcome?
    PS        :math:`P(Y_{x_1} = y \mid x_0, Y \ne y)`     have been sufficient for it?
    PNS       :math:`P(Y_{x_1} = y, Y_{x_0} \ne y)`        be both, for somebody drawn at random?
    ========  ===========================================  =======================================

    The bounds are made of :math:`P(x, y)` and :math:`P_x(y)`, each as far as the data identify it.
    They are the best that these two allow, for any number of levels; where :math:`P_x(y)` rests on
    covariates or mediators, these may allow narrower ones.

    **Arguments**

    - ``treated``, ``control``: the levels :math:`x_1` and :math:`x_0` of the treatment; ``value``:
      the level y of the outcome.
    - ``monotone``: whether nobody has the outcome under control only. With :math:`P_x(y)` this
      identifies PNS; PN and PS as well, if the treatment has two levels.
    - ``available``: the datasets at hand, as for :func:`pyro_causal.graph.identify`.

    **Raises** ``ValueError``: no such quantity; unknown nodes; equal levels; a treatment that is no
    cause of the outcome.

    **References** Tian & Pearl 2000, Probabilities of causation: bounds and identification,
    https://arxiv.org/abs/1301.3898, for two levels of treatment. Our terms equal theirs there, as
    :math:`P(x_1, y) + P(x_0, y)` is :math:`P(y)`. With more levels they are what remains when the
    responses of units at a third level are eliminated from the linear program.

    **Example**

    >>> from pyro_causal.graph import ADMG, probability_bounds
    >>> g = ADMG([("z", "x"), ("z", "y"), ("x", "y")])
    >>> probability_bounds(g, "PNS", treatment="x", outcome="y", monotone=True)
    PNS = P_{x=1}(y=1) - P_{x=0}(y=1)
    where P_{x}(y) = Σ_{z} P(y | x, z) P(z)
    """
    _check(g, quantity, treatment, outcome, treated, control)
    available = tuple(available)
    joint = _try_to_identify(g, (treatment, outcome), (), available)
    effect = _try_to_identify(g, (outcome,), (treatment,), available)
    known = {"0", "1", *(JOINT if joint else ()), *(EFFECT if effect else ())}
    if CONDITIONS[quantity] not in known:
        known = {"0", "1"}  # what is conditioned on may be rare, and then anything is possible
    lower, upper = (MONOTONE_TERMS if monotone and effect else TERMS)[quantity]
    return Bounds(
        quantity=quantity,
        levels=Levels(treatment, outcome, treated, control, value),
        lower=_terms(lower, known) or _terms("0", known),
        upper=_terms(upper, known) or _terms("1", known),
        condition=CONDITIONS[quantity] if CONDITIONS[quantity] in known else "1",
        joint=joint,
        effect=effect,
    )


def _check(
    g: ADMG, quantity: str, treatment: str, outcome: str, treated: int, control: int
) -> None:
    if quantity not in TERMS:
        raise ValueError(
            f"`quantity`: expected one of {', '.join(TERMS)}, got {quantity!r}. Do pick one."
        )
    g.masks(treatment=treatment, outcome=outcome)
    if treated == control:
        raise ValueError(
            f"At node '{treatment}': expected two different levels, got treated={treated} and "
            f"control={control}. Do change one of them."
        )
    if treatment not in g.ancestors(outcome):
        raise ValueError(
            f"At node '{treatment}', in `treatment`: expected a cause of '{outcome}', got a node "
            f"without a directed path to it, so that {quantity} is zero. Do check the arrows."
        )


def _try_to_identify(
    g: ADMG, outcome: tuple[str, ...], do: tuple[str, ...], available: tuple[Member, ...]
) -> Estimand | None:
    try:
        return identify(g, outcome, do=do, available=available)
    except Unidentifiable:
        return None


def _terms(text: str, known: set[str]) -> tuple[Term, ...]:
    """The terms that need nothing unknown."""
    terms = []
    for part in text.split("; "):
        words = ("+ " + part).split()
        signs = [1 if word == "+" else -1 for word in words[::2]]
        if known.issuperset(words[1::2]):
            terms.append(tuple(zip(signs, words[1::2], strict=True)))
    return tuple(terms)


class Levels(NamedTuple):
    """The levels that a probability of causation is about."""

    treatment: str
    outcome: str
    treated: int
    control: int
    value: int

    def variables(self, symbol: str) -> tuple[Var, Var]:
        """Treatment and outcome in a quantity."""
        level = self.treated if "t" in symbol else self.control
        return Var(self.treatment, 0, level), Var(self.outcome, 0, self.value)


class Script(NamedTuple):
    """How bounds are written."""

    variable: Callable[[Var], str]
    unequal: str
    extreme: str
    between: str
    name: str
    quotient: str
    brackets: str


PLAIN = Script(str, "≠", "{}({})", "{} ≤ {} ≤ {}", "{}", "{} / {}", "[{}]")
LATEX = Script(
    Var.latex,
    r" \neq ",
    r"\{}\left\{{{}\right\}}",
    r"{} \le {} \le {}",
    r"\mathrm{{{}}}",
    r"\frac{{{}}}{{{}}}",
    "{}",
)


@dataclass(frozen=True, repr=False)
class Bounds:
    """What the data say about a probability of causation.

    ``str(b)`` writes the bounds and the estimands that they are made of, ``b.latex()`` the bounds.

    **Attributes**

    - ``quantity``: PN, PS or PNS; ``levels``: what it is about.
    - ``lower``, ``upper``: the terms of which the greatest and the least count, in symbols such as
      ``ty`` for P(x=treated, y) and ``n_c`` for P_{x=control}(not y); ``condition``: what they are
      divided by.
    - ``joint``: the estimand of :math:`P(x, y)`, ``effect``: that of :math:`P_x(y)`; None where the
      data do not identify it.

    **Example** See :func:`probability_bounds`.
    """

    quantity: Quantity
    levels: Levels
    lower: tuple[Term, ...]
    upper: tuple[Term, ...]
    condition: str
    joint: Estimand | None
    effect: Estimand | None

    def __str__(self) -> str:
        x, y = self.levels.treatment, self.levels.outcome
        lines = [self._write(PLAIN)]
        for query, estimand in ((f"P({x}, {y})", self.joint), (f"P_{{{x}}}({y})", self.effect)):
            if estimand is None:
                lines.append(f"without {query}, which the data at hand do not identify")
            elif str(estimand) not in (query, f"P({y}, {x})"):
                lines.append(f"where {estimand!r}")
        return "\n".join(lines)

    __repr__ = __str__

    def latex(self) -> str:
        """The bounds in LaTeX, without delimiters."""
        return self._write(LATEX)

    def _write(self, script: Script) -> str:
        name = script.name.format(self.quantity)
        sides = []
        for extreme, terms in (("max", self.lower), ("min", self.upper)):
            texts = [self._term(term, script) for term in terms]
            several = script.extreme.format(extreme, ", ".join(texts))
            sides.append(several if texts[1:] else texts[0])
        if self.lower == self.upper:
            return f"{name} = {sides[0]}"
        return script.between.format(sides[0], name, sides[1])

    def _term(self, term: Term, script: Script) -> str:
        """A sum, over what is conditioned on."""
        if term == ((1, self.condition),):
            return "1"
        text = "".join(
            (" - " if sign < 0 else " + ") + self._symbol(symbol, script) for sign, symbol in term
        ).removeprefix(" + ")
        if self.condition == "1" or text == "0":
            return text
        above = script.brackets.format(text) if term[1:] else text
        return script.quotient.format(above, self._symbol(self.condition, script))

    def _symbol(self, symbol: str, script: Script) -> str:
        if symbol in "01":
            return symbol
        x, y = map(script.variable, self.levels.variables(symbol))
        y = script.unequal.join(y.rsplit("=", 1)) if "n" in symbol else y
        return f"P_{{{x}}}({y})" if "_" in symbol else f"P({x}, {y})"

    def evaluate(
        self, tables: Tensor | Mapping[Any, Tensor] | Callable[[Any], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The lower and the upper bound on discrete distributions.

        A lower bound above the upper one tells that the tables contradict each other, or that the
        effect is not monotone.

        **Shapes** Two scalars.

        **Arguments** ``tables``: as for :meth:`pyro_causal.graph.estimand.Estimand.evaluate`.

        **Raises** ``ValueError``: as there, and for levels beyond those of the tables.
        ``PositivityError`` (a ``ValueError``): PN or PS conditions on what never happens.

        **Example**

        >>> import torch
        >>> from pyro_causal.graph import ADMG, probability_bounds
        >>> bounds = probability_bounds(ADMG([("x", "y")]), "PN", treatment="x", outcome="y")
        >>> bounds.evaluate(torch.tensor([[0.4, 0.1], [0.2, 0.3]]))  # P(x, y)
        (tensor(0.6667), tensor(1.))
        """
        import torch

        values = self._values(tables)
        one = next(iter(values.values())).new_ones(()) if values else torch.ones(())
        values |= {"0": 0 * one, "1": one}
        condition = values[self.condition]
        if not condition > 0:
            raise PositivityError(
                f"{self.quantity} is undefined, as {self._symbol(self.condition, PLAIN)} is zero: "
                "expected a positive probability. Do ask for PNS, or about other levels."
            )
        lower, upper = (
            torch.stack([sum((sign * values[v] for sign, v in term), 0 * one) for term in terms])
            for terms in (self.lower, self.upper)
        )
        return lower.max() / condition, upper.min() / condition

    def _values(
        self, tables: Tensor | Mapping[Any, Tensor] | Callable[[Any], Tensor]
    ) -> dict[str, Tensor]:
        """The symbols that the data give."""
        found: dict[str, Tensor] = {}
        x, y, treated, control, value = self.levels
        joint = self.joint.evaluate(tables) if self.joint else None
        for side, level in (("t", treated), ("c", control)):
            if joint is not None:
                row = _at(joint, x, level)
                found[f"{side}y"] = _at(row, y, value)
                found[f"{side}n"] = row.sum() - found[f"{side}y"]
            if self.effect:
                row = self.effect.evaluate(tables, do={x: level})
                found[f"y_{side}"] = _at(row, y, value)
                found[f"n_{side}"] = row.sum() - found[f"y_{side}"]
        return found


def _at(table: Tensor, name: str, level: int) -> Tensor:
    """The table at a level of its first variable."""
    if not 0 <= level < len(table):
        raise ValueError(
            f"At node '{name}': expected a level from 0 to {len(table) - 1}, got {level}. Do "
            "number the levels from zero."
        )
    return table[level]
