"""Bounds on probabilities of causation against linear programs over response types."""

import itertools
from collections.abc import Callable

import numpy
import pytest
import torch
from graph_counterfactuals import Functional
from scipy.optimize import linprog
from torch import Tensor

from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.bounds import Bounds, probability_bounds
from pyro_causal.graph.counterfactual import Event
from pyro_causal.graph.estimand import PositivityError

BOW = ADMG([("x", "y")], [("x", "y")])
OBSERVED, RANDOMISED = frozenset[str](), frozenset({"x"})
DATASETS = {
    "observational": [OBSERVED],
    "experimental": [RANDOMISED],
    "both": [OBSERVED, RANDOMISED],
}
QUANTITIES = ("PN", "PS", "PNS")
Tables = tuple[Tensor, Tensor]


def bounds(g: ADMG, quantity: str, **settings: object) -> Bounds:
    return probability_bounds(g, quantity, treatment="x", outcome="y", **settings)


def functional(g: ADMG, seed: int, **levels: int) -> Functional:
    rng = torch.Generator().manual_seed(seed)
    return Functional.random(g, {name: levels.get(name, 2) for name in g.nodes}, 3, rng)


def probability(model: Functional, quantity: str, treated: int, control: int, value: int) -> Tensor:
    """The truth, by enumeration: what happens else is a sum over the other levels."""
    rest = [level for level in range(model.levels["y"]) if level != value]
    y1 = Event("y", value, {"x": treated})
    if quantity == "PNS":
        return sum(model.probability([y1, Event("y", n, {"x": control})]) for n in rest)
    if quantity == "PN":
        seen = [Event("x", treated), Event("y", value)]
        both = [model.probability([*seen, Event("y", n, {"x": control})]) for n in rest]
        return sum(both) / model.probability(seen)
    seen = [[Event("x", control), Event("y", n)] for n in rest]
    both = [model.probability([*each, y1]) for each in seen]
    return sum(both) / sum(model.probability(each) for each in seen)


def random_tables(
    seed: int, x_levels: int, setting: tuple[int, int, int], monotone: bool
) -> Tables:
    """P(x, y) and P_x(y) of a random joint law of x and of the responses to its levels.

    The law is uneven, so that every term counts somewhere.
    """
    treated, control, value = setting
    rng = numpy.random.default_rng(seed)
    kinds = list(itertools.product(range(x_levels), itertools.product(range(3), repeat=x_levels)))
    if monotone:
        kinds = [(x, y) for x, y in kinds if y[control] != value or y[treated] == value]
    law = rng.dirichlet(numpy.full(len(kinds), rng.choice([0.03, 0.3])))
    law = (1e-4 + law) / (1e-4 + law).sum()
    joint, effect = torch.zeros((2, x_levels, 3), dtype=torch.float64)
    for p, (x, y) in zip(law, kinds, strict=True):
        joint[x, y[x]] += p
        for level in range(x_levels):
            effect[level, y[level]] += p
    return joint, effect


def linear_program(
    tables: Tables, quantity: str, data: str, monotone: bool, setting: tuple[int, int, int]
) -> tuple[float, float]:
    """The extremes over all joint laws of x and of the responses to treatment and control.

    The response to any third level of x adds no constraint, and is left out.
    """
    treated, control, value = setting
    joint, effect = tables
    types = list(itertools.product(range(len(joint)), (True, False), (True, False)))
    rows, targets = [[1.0] * len(types)], [1.0]

    def constrain(holds: Callable[[int, bool, bool], bool], target: float) -> None:
        rows.append([float(holds(*kind)) for kind in types])
        targets.append(target)

    if data != "experimental":
        for level in range(len(joint)):
            constrain(lambda x, a, b, at=level: x == at, float(joint[level].sum()))
        constrain(lambda x, a, b: x == treated and a, float(joint[treated, value]))
        constrain(lambda x, a, b: x == control and b, float(joint[control, value]))
    if data != "observational":
        constrain(lambda x, a, b: a, float(effect[treated, value]))
        constrain(lambda x, a, b: b, float(effect[control, value]))
    if monotone:
        constrain(lambda x, a, b: b and not a, 0.0)
    among = {"PN": treated, "PS": control}.get(quantity)
    objective = [float(a and not b and among in (None, x)) for x, a, b in types]
    ends = [
        sign * linprog([sign * c for c in objective], A_eq=rows, b_eq=targets).fun
        for sign in (1, -1)
    ]
    if among is None:
        return ends[0], ends[1]
    right = float(joint[among, value])
    condition = right if quantity == "PN" else float(joint[among].sum()) - right
    return ends[0] / condition, ends[1] / condition


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("x_levels", [2, 3])
@pytest.mark.parametrize(
    ("quantity", "data"),
    [(quantity, data) for quantity in QUANTITIES for data in ("observational", "both")]
    + [("PNS", "experimental")],
)
def test_sharp(quantity: str, data: str, x_levels: int, monotone: bool) -> None:
    """The bounds are attained, and nothing beyond them is possible."""
    found = bounds(
        BOW, quantity, treated=0, control=1, value=1, monotone=monotone, available=DATASETS[data]
    )
    open_intervals = 0
    for seed in range(40):
        tables = random_tables(seed, x_levels, (0, 1, 1), monotone)
        expected = linear_program(tables, quantity, data, monotone, (0, 1, 1))
        ends = torch.stack(found.evaluate(dict(zip(DATASETS["both"], tables, strict=True))))
        torch.testing.assert_close(ends, torch.tensor(expected).double(), rtol=0, atol=1e-7)
        open_intervals += expected[1] - expected[0] > 1e-3
    identified = monotone and data != "observational" and (quantity == "PNS" or x_levels == 2)
    assert open_intervals == 0 if identified else open_intervals > 10


GRAPHS = {
    "back door": ADMG([("z", "x"), ("z", "y"), ("x", "y")]),
    "front door": ADMG([("x", "m"), ("m", "y")], [("x", "y")]),
    "no confounding": ADMG([("x", "y")]),
    "bow": BOW,
    "instrument": ADMG([("z", "x"), ("x", "y")], [("x", "y")]),
}


@pytest.mark.parametrize("x_levels", [2, 3])
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("g", GRAPHS.values(), ids=GRAPHS)
def test_valid_from_observational_data(g: ADMG, quantity: str, x_levels: int) -> None:
    found = bounds(g, quantity, value=0)
    widths = []
    for seed in range(20):
        model = functional(g, seed, x=x_levels, y=2)
        low, high = found.evaluate(model.table())
        assert 0 <= low <= high <= 1
        assert low - 1e-9 <= probability(model, quantity, 1, 0, 0) <= high + 1e-9
        widths.append(float(high - low))
    if found.effect is None and quantity != "PNS":
        assert min(widths) == 1
    elif x_levels == 2:
        assert min(widths) < 0.9


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("quantity", ["PN", "PS"])
def test_experiments_alone_say_nothing_under_a_condition(quantity: str, monotone: bool) -> None:
    found = bounds(BOW, quantity, monotone=monotone, available=[RANDOMISED])
    ends = found.evaluate({RANDOMISED: functional(BOW, 0).table(RANDOMISED)})
    assert ends == (0, 1)


def test_experiment_narrows_the_bounds() -> None:
    for quantity in QUANTITIES:
        model = functional(BOW, 1)
        tables = {OBSERVED: model.table(), RANDOMISED: model.table(RANDOMISED)}
        alone = bounds(BOW, quantity).evaluate(model.table())
        both = bounds(BOW, quantity, available=DATASETS["both"]).evaluate(tables)
        assert alone[0] <= both[0] <= both[1] <= alone[1]
        assert both[1] - both[0] < alone[1] - alone[0]


def test_legal_responsibility() -> None:
    """Pearl 2009, Causality, table 9.2: the drug was necessary, for sure.

    Of those who were made to take the drug, or not to, 16 and 14 in 1000 died; of those who chose
    for themselves, 2 in 1000 who took it and 28 in 1000 who did not.
    """
    observed = torch.tensor([[0.486, 0.014], [0.499, 0.001]], dtype=torch.float64)
    randomised = torch.tensor([[0.986, 0.014], [0.984, 0.016]], dtype=torch.float64)
    found = bounds(BOW, "PN", available=DATASETS["both"])
    ends = found.evaluate({OBSERVED: observed, RANDOMISED: randomised})
    torch.testing.assert_close(torch.stack(ends), torch.ones(2, dtype=torch.float64))


def test_written_with_its_estimands() -> None:
    found = bounds(GRAPHS["back door"], "PN", treated=2, value=3)
    assert (
        str(found)
        == repr(found)
        == (
            "max(0, [P(x=2, y=3) + P(x=0, y=3) - P_{x=0}(y=3)] / P(x=2, y=3)) ≤ PN ≤ "
            "min(1, [P_{x=0}(y≠3) - P(x=0, y≠3)] / P(x=2, y=3))\n"
            "where P_{x}(y) = Σ_{z} P(y | x, z) P(z)"
        )
    )
    assert found.latex() == (
        r"\max\left\{0, \frac{P(x=2, y=3) + P(x=0, y=3) - P_{x=0}(y=3)}{P(x=2, y=3)}\right\} \le "
        r"\mathrm{PN} \le "
        r"\min\left\{1, \frac{P_{x=0}(y \neq 3) - P(x=0, y \neq 3)}{P(x=2, y=3)}\right\}"
    )


def test_written_with_what_is_missing() -> None:
    assert str(bounds(BOW, "PNS")) == (
        "0 ≤ PNS ≤ 1 - P(x=1, y≠1) - P(x=0, y=1)\n"
        "without P_{x}(y), which the data at hand do not identify"
    )
    assert str(bounds(BOW, "PS", available=[RANDOMISED])) == (
        "0 ≤ PS ≤ 1\nwithout P(x, y), which the data at hand do not identify"
    )
    monotone = bounds(BOW, "PNS", monotone=True, available=DATASETS["both"])
    assert str(monotone) == "PNS = P_{x=1}(y=1) - P_{x=0}(y=1)"
    assert str(bounds(BOW, "PNS", monotone=True)) == str(bounds(BOW, "PNS"))


def test_dtype_is_that_of_the_table() -> None:
    table = functional(BOW, 0).table()
    for dtype in (torch.float32, torch.float64):
        assert {end.dtype for end in bounds(BOW, "PNS").evaluate(table.to(dtype))} == {dtype}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda: bounds(BOW, "pn"), "`quantity`: expected one of PN, PS, PNS, got 'pn'"),
        (lambda: bounds(BOW, "PN", treated=0), "At node 'x': expected two different levels"),
        (lambda: bounds(ADMG([("y", "x")]), "PN"), "At node 'x', in `treatment`: .*PN is zero"),
        (lambda: bounds(ADMG(nodes=["x", "z"]), "PN"), "At node 'y', in `outcome`"),
        (
            lambda: bounds(BOW, "PNS", value=2).evaluate(functional(BOW, 0).table()),
            "At node 'y': expected a level from 0 to 1, got 2",
        ),
        (
            lambda: bounds(BOW, "PNS", control=-1).evaluate(functional(BOW, 0).table()),
            "At node 'x': expected a level from 0 to 1, got -1",
        ),
    ],
)
def test_errors(question: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        question()


@pytest.mark.parametrize(("quantity", "event"), [("PN", "y=1"), ("PS", "y≠1")])
def test_what_never_happens_has_no_cause(quantity: str, event: str) -> None:
    certain = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    with pytest.raises(PositivityError, match=rf"{quantity} is undefined, as P\(x=., {event}\)"):
        bounds(BOW, quantity).evaluate(certain)
