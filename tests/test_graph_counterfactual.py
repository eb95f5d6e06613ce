"""Counterfactual identification against enumeration, a rank test, and the literature.

Verdicts: "experiments" and "observational" say from which of the two regimes a query is identified.
Each one below was checked by the rank test, and is checked again here.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from graph_counterfactuals import (
    Functional,
    identified,
    levels_of,
    random_event,
    random_graph,
    truth,
)

from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.counterfactual import (
    Event,
    identify_counterfactual,
    path_specific,
    recanting_witnesses,
)
from pyro_causal.graph.estimand import Estimand, PositivityError
from pyro_causal.graph.identify import Unidentifiable

REGIMES = ("experiments", "observational")


def graph(text: str) -> ADMG:
    parts = [part.split() for part in text.split("; ")]
    return ADMG(
        [(a, b) for a, arrow, b in parts if arrow == "->"],
        [(a, b) for a, arrow, b in parts if arrow == "<->"],
    )


@dataclass(frozen=True)
class Case:
    """A query and where it is identified from: "both", "experiments" or "nothing"."""

    graph: str
    event: Sequence[Event]
    given: Sequence[Event]
    source: str

    def has(self, regime: str) -> bool:
        return self.source in ("both", regime)


X0, X1 = Event("x", 0), Event("x", 1)
Y0, Y1 = Event("y", 1, {"x": 0}), Event("y", 1, {"x": 1})
FAILS0 = Event("y", 0, {"x": 0})
M0, M1 = Event("m", None, {"x": 0}), Event("m", None, {"x": 1})
DIRECT, INDIRECT = Event("y", 1, {"x": 1, "m": M0}), Event("y", 1, {"x": 0, "m": M1})
BOW, CHAIN = "x -> y; x <-> y", "x -> z; z -> y"
FRONT = "x -> m; m -> y; x <-> y"
MEDIATION = "x -> m; m -> y; x -> y"
FAIRNESS = "x -> m; m -> y; x -> y; z -> m; z -> y; x <-> z"
KITE = "x -> w; w -> y; w -> m; m -> y"
NAPKIN = "w -> z; z -> x; x -> y; w <-> x; w <-> y"
DRUG = "x -> w; w -> y; d -> z; z -> y; x <-> y"
INSTRUMENT = "z -> x; x -> y; x <-> y"

CASES = {
    # Effect of treatment on the treated: Shpitser & Pearl 2009, Effects of treatment on the
    # treated: identification and generalization. On the bow arc it takes a third level of x.
    "treated, bow": Case(BOW, [Y0], [X1], "nothing"),
    "treated, no confounding": Case("x -> y", [Y0], [X1], "both"),
    "treated, back door": Case("z -> x; z -> y; x -> y", [Y0], [X1], "both"),
    "treated, front door": Case(FRONT, [Y0], [X1], "both"),
    "treated, confounded child": Case("x -> m; m -> y; x <-> m", [Y0], [X1], "nothing"),
    "treated, covariate": Case("z -> y; x -> y; x <-> z", [Y0], [X1], "both"),
    "treated, instrument": Case(INSTRUMENT, [Y0], [X1], "nothing"),
    "treated, napkin": Case(NAPKIN, [Y0], [X1], "nothing"),
    # The graph of the counterfactual query in the code published with Modular-DCM, and its variant.
    "treated twice, one after the other": Case(
        "x -> v; x -> w; v -> w; w -> y; v <-> y",
        [Event("y", 1, {"x": 0, "v": 0})],
        [X1, Event("v", 1)],
        "both",
    ),
    "treated twice, confounded": Case(
        "x -> v; x -> w; v -> w; w -> y; v <-> y; x <-> v",
        [Event("y", 1, {"x": 0, "v": 0})],
        [X1, Event("v", 1)],
        "both",
    ),
    "everybody, napkin": Case(NAPKIN, [Y0], [], "both"),
    "treated, later confounding": Case("x -> y; y -> w; x <-> w", [Y0], [X1], "both"),
    "treated, collider": Case("x -> y; x <-> w; w <-> y", [Y0], [X1], "both"),
    "treated, open collider": Case(
        "x -> y; x <-> w; w <-> y", [Y0], [X1, Event("w", 1)], "nothing"
    ),
    # Consistency: what happened is what would have happened under what happened.
    "consistency": Case(BOW, [Y1], [X1], "both"),
    "consistency, joint": Case(BOW, [X1, Y1], [], "both"),
    "cause of a counterfactual": Case(BOW, [X1], [Y1], "experiments"),
    "other cause of a counterfactual": Case(BOW, [X1], [Y0], "nothing"),
    "partly known": Case(BOW + "; z -> w", [X1, Event("z", 0)], [X1, Y0, Event("w", 1)], "both"),
    # Probabilities of causation: Tian & Pearl 2000; never without monotonicity.
    "necessity": Case("x -> y", [FAILS0], [X1, Event("y", 1)], "nothing"),
    "sufficiency": Case("x -> y", [Y1], [X0, Event("y", 0)], "nothing"),
    "necessity and sufficiency": Case("x -> y", [Y1, FAILS0], [], "nothing"),
    "necessity and sufficiency, bow": Case(BOW, [Y1, FAILS0], [], "nothing"),
    "both worlds alike": Case("x -> y", [Y1, Y0], [], "nothing"),
    "necessity, front door": Case(FRONT, [Y0], [Event("y", 0)], "nothing"),
    # Mediation: Pearl 2001, Direct and indirect effects.
    "direct": Case(MEDIATION, [DIRECT], [], "both"),
    "indirect": Case(MEDIATION, [INDIRECT], [], "both"),
    "direct, treated": Case(MEDIATION, [DIRECT], [X0], "both"),
    "direct, m <-> y": Case(MEDIATION + "; m <-> y", [DIRECT], [], "nothing"),
    "direct, x <-> m": Case(MEDIATION + "; x <-> m", [DIRECT], [], "experiments"),
    "direct, x <-> y": Case(MEDIATION + "; x <-> y", [DIRECT], [], "experiments"),
    "direct, covariate": Case(MEDIATION + "; w -> m; w -> y", [DIRECT], [], "both"),
    "direct, later covariate": Case(
        MEDIATION + "; x -> w; w -> m; w -> y", [DIRECT], [], "nothing"
    ),
    # Zhang & Bareinboim 2018, Fairness in decision-making: the causal explanation formula.
    "fairness, direct": Case(FAIRNESS, [DIRECT], [X0], "both"),
    "fairness, indirect": Case(FAIRNESS, [INDIRECT], [X0], "both"),
    "fairness, spurious": Case(FAIRNESS, [Y0], [X1], "both"),
    # Paths: Avin, Shpitser & Pearl 2005, Identifiability of path-specific effects.
    "recanting witness": Case(
        KITE, [Event("y", 1, {"w": Event("w", None, {"x": 1}), "m": M0})], [], "nothing"
    ),
    "recanting witness, another world": Case(KITE, [DIRECT], [], "nothing"),
    "path without a witness": Case(
        "x -> w; w -> m; x -> m; m -> y; w -> y",
        [
            Event(
                "y",
                1,
                {
                    "w": Event("w", None, {"x": 0}),
                    "m": Event("m", None, {"x": 1, "w": Event("w", None, {"x": 0})}),
                },
            )
        ],
        [],
        "both",
    ),
    # Shpitser & Pearl 2007, What counterfactuals can be tested, the query of their section 1.
    "drugs": Case(DRUG, [Y0], [X1, Event("z", 1, {"d": 0}), Event("d", 0)], "both"),
    "drugs, other d": Case(DRUG, [Y0], [X1, Event("z", 1, {"d": 0}), Event("d", 1)], "nothing"),
    "drugs, mediator seen": Case(DRUG, [Y0], [X1, Event("w", 1)], "nothing"),
    # Subgroups that the treatment may have changed.
    "post-treatment": Case(CHAIN + "; x -> y", [Y0], [X1, Event("z", 1)], "nothing"),
    "post-treatment, bystander": Case("x -> z; x -> y", [Y0], [X1, Event("z", 1)], "both"),
    "post-treatment, held": Case(
        CHAIN + "; x -> y", [Event("y", 1, {"x": 0, "z": 0})], [X1, Event("z", 1)], "both"
    ),
    "post-treatment, front door": Case(FRONT, [Y0], [X1, Event("m", 1)], "nothing"),
    "mediator held, front door": Case(
        FRONT, [Event("y", 1, {"m": 0})], [X1, Event("m", 1)], "both"
    ),
    "pre-treatment": Case("z -> x; z -> y; x -> y", [Y0], [Event("z", 1)], "both"),
    # Two worlds at once.
    "two outcomes": Case("x -> y; x -> z", [Y0, Event("z", 1, {"x": 1})], [], "both"),
    "two outcomes, y <-> z": Case(
        "x -> y; x -> z; y <-> z", [Y0, Event("z", 1, {"x": 1})], [], "nothing"
    ),
    "two outcomes, one world": Case(
        "x -> y; x -> z; y <-> z", [Y0, Event("z", 1, {"x": 0})], [], "both"
    ),
    "chain across worlds": Case(CHAIN, [Y0, Event("z", 1, {"x": 1})], [], "nothing"),
    "compliers": Case(
        INSTRUMENT, [Event("x", 1, {"z": 1}), Event("x", 0, {"z": 0})], [], "nothing"
    ),
}


def functional(g: ADMG, events: Sequence[Event], seed: int) -> Functional:
    return Functional.random(g, levels_of(g, events), 2, torch.Generator().manual_seed(seed))


def try_to_identify(
    g: ADMG, event: Sequence[Event], given: Sequence[Event], regime: str
) -> Estimand | None:
    try:
        return identify_counterfactual(g, event, given, regime)
    except Unidentifiable:
        return None


def assert_true(estimand: Estimand, model: Functional, expected: torch.Tensor, regime: str) -> None:
    value = estimand.evaluate(model.table() if regime == "observational" else model.table)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-9, msg=repr(estimand))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_literature(case: Case, regime: str) -> None:
    g, events = graph(case.graph), [*case.event, *case.given]
    estimand = try_to_identify(g, case.event, case.given, regime)
    assert case.has(regime) == identified(g, case.event, case.given, regime=regime)
    assert case.has(regime) == (estimand is not None)
    for seed in range(3 if estimand else 0):
        model = functional(g, events, seed)
        assert_true(estimand, model, truth(model, case.event, case.given), regime)


def check_random_query(seed: int, nodes: int) -> set[tuple[str, bool]]:
    """Compare a query's verdicts and values; the verdicts, if it is not trivial."""
    rng = random.Random(seed)
    g = random_graph(rng, nodes, arcs=3 if nodes < 5 else 2)
    event = [random_event(rng, g) for _ in range(rng.randint(1, 3))]
    given = [random_event(rng, g, factual=0.5) for _ in range(rng.randint(0, 2))]
    models = [functional(g, [*event, *given], seed) for seed in range(3)]
    if not all(model.probability(given) > 0 for model in models):
        return set()
    verdicts = set()
    for regime in REGIMES:
        estimand = try_to_identify(g, event, given, regime)
        for model in models if estimand else []:
            assert_true(estimand, model, truth(model, event, given), regime)
        if not estimand:
            where = (g, event, given, regime)
            assert not identified(g, event, given, regime=regime, latent_states=4), where
        if any(model.probability([*event, *given]) > 0 for model in models):
            verdicts.add((regime, estimand is not None))
    return verdicts


@pytest.mark.parametrize(("nodes", "number"), [(2, 50), (3, 100), (4, 60), (5, 6)])
def test_random_queries(nodes: int, number: int) -> None:
    """A formula that is true in random models is right; a rank that is short rules one out."""
    found = [check_random_query(1000 * nodes + i, nodes) for i in range(number)]
    for verdict in [(regime, answer) for regime in REGIMES for answer in (True, False)]:
        assert sum(verdict in verdicts for verdicts in found) > number / 20


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "number"), [(3, 400), (4, 100)])
def test_more_random_queries(nodes: int, number: int) -> None:
    found = [check_random_query(100_000 + i, nodes) for i in range(number)]
    assert sum(map(bool, found)) > number / 2


def test_mediation_formula() -> None:
    """Pearl 2001, Direct and indirect effects: the direct effect without confounding."""
    g = graph(MEDIATION)
    model = functional(g, [DIRECT], 0)
    p = model.table().permute([g.nodes.index(name) for name in "xmy"])
    m_given_x, y_given_xm = p.sum(2) / p.sum((1, 2))[:, None], p / p.sum(2, keepdim=True)
    expected = (m_given_x[0] * y_given_xm[1, :, 1]).sum()
    estimand = identify_counterfactual(g, DIRECT, (), "observational")
    assert_true(estimand, model, expected, "observational")


def test_drug_formula() -> None:
    """Shpitser & Pearl 2007: P(y_x | x', z_d, d) is Σ_w P_x(w) P_{w, z}(y, x') / P_{w, z}(x')."""
    case = CASES["drugs"]
    g = graph(case.graph)
    model = functional(g, [*case.event, *case.given], 0)
    w_do_x = model.kernel(["w"], ["x"])[0]
    xy_do_wz = model.kernel(["x", "y"], ["w", "z"])[:, 1, 1]
    expected = (w_do_x * xy_do_wz[:, 1] / xy_do_wz.sum(1)).sum()
    for regime in REGIMES:
        estimand = identify_counterfactual(g, case.event, case.given, regime)
        assert_true(estimand, model, expected, regime)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    ("event", "given", "value"),
    [
        ([Event("x", 1, {"x": 1})], [], 1.0),
        ([Event("x", 1, {"x": 0})], [], 0.0),
        ([X0, X1], [], 0.0),
        ([X0], [X1], 0.0),
        ([X1], [X1, Y0], 1.0),
        ([X1, Event("y", 0), Y1], [], 0.0),
        ([Event("y", 0, {"x": 1, "z": 1})], [X1, Event("y", 1)], 0.0),
        ([Event("y", 1, {"x": Event("x")})], [Event("y", 1)], 1.0),
        ([Event("x", 1, {"y": 0, "z": 0})], [X1], 1.0),
    ],
)
def test_certain_and_impossible_events(
    event: Sequence[Event], given: Sequence[Event], value: float, regime: str
) -> None:
    """Effectiveness, consistency and irrelevance, on an arc where little else is identified."""
    g = ADMG([("x", "y")], [("x", "y")], nodes=["z"])
    model = functional(g, [*event, *given], 0)
    expected = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(truth(model, event, given), expected)
    assert_true(identify_counterfactual(g, event, given, regime), model, expected, regime)


def random_paths(seed: int) -> tuple[ADMG, str, str, list[tuple[str, str]]]:
    """A graph without hidden causes, a treatment and an outcome of it, and some of the edges."""
    rng = random.Random(seed)
    while True:
        g = random_graph(rng, 4, arcs=0)
        order = g.topological_order()
        x, y = order[0], order[-1]
        if len(g.ancestors(y) & g.descendants(x)) > 2:
            return g, x, y, [edge for edge in g.directed if rng.random() < 0.6]


def test_path_specific_events() -> None:
    """An edge off the active paths passes on what its tail would be at the baseline."""
    for seed in range(40):
        g, x, y, edges = random_paths(seed)
        event = path_specific(g, x, y, edges, active=2, baseline=1, value=0)
        model = functional(g, [event, Event(x, 0)], seed)
        states = model.states(list(model.noise))
        active = {x: torch.tensor(2).expand(len(states[(x,)]))}
        for name in g.topological_order()[1:]:
            index = [states[key] for key in model.keys([name])]
            for parent in model.parents(name):
                on = (parent, name) in edges
                index.append(active[parent] if on else model.solve(parent, {x: 1}, states))
            active[name] = model.functions[name][tuple(index)]
        expected = (model.weights(states) * (active[y] == 0)).sum()
        torch.testing.assert_close(truth(model, [event]), expected)


def test_recanting_witnesses_decide() -> None:
    """Avin, Shpitser & Pearl 2005, theorem 5: without hidden causes nothing else is in the way."""
    verdicts = []
    for seed in range(200):
        g, x, y, edges = random_paths(seed)
        event = path_specific(g, x, y, edges)
        verdicts.append(try_to_identify(g, [event], [], "observational") is not None)
        assert verdicts[-1] == (not recanting_witnesses(g, x, y, edges)), (g, x, y, edges)
    assert 10 < sum(verdicts) < 190


def test_symbols_are_read_not_evaluated() -> None:
    g = graph(BOW)
    estimand = identify_counterfactual(g, Event("y", "y", {"x": "x"}))
    assert str(estimand) == "P_{x=x}(y=y)"
    with pytest.raises(ValueError, match="expected an integer level .*, got the symbol"):
        estimand.evaluate(functional(g, [Y0], 0).table)


def test_failure_names_the_worlds() -> None:
    with pytest.raises(Unidentifiable, match=r"joint distribution of .*hidden causes of x, y"):
        identify_counterfactual(graph(BOW), Y0, X1)
    with pytest.raises(Unidentifiable, match=r"cannot be identified from P\(v\)") as caught:
        identify_counterfactual(graph(BOW), Y0, (), "observational")
    assert caught.value.hedge is not None


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda g: identify_counterfactual(g, []), "`event`: expected at least one Event"),
        (lambda g: identify_counterfactual(g, Event("y")), "At node 'y', in `event`: .*a value"),
        (lambda g: identify_counterfactual(g, Y0, Event("x")), "At node 'x', in `given`"),
        (lambda g: identify_counterfactual(g, Event("w", 1)), "At node 'w', in an event"),
        (
            lambda g: identify_counterfactual(g, Event("y", 1, {"w": 1})),
            "At node 'w', in the world of y_{w=1}=1",
        ),
        (
            lambda g: identify_counterfactual(g, Event("y", 1, {"x": Event("y")})),
            "At node 'x', in the world of .*an Event of 'x' without one",
        ),
        (
            lambda g: identify_counterfactual(g, Event("y", 1, {"x": Event("x", 1)})),
            "At node 'x', in the world of .*without one",
        ),
        (lambda g: identify_counterfactual(g, Y0, [X0, X1]), "`given`: .*cannot happen"),
        (
            lambda g: identify_counterfactual(g, Y0, [X1, Event("y", 1), Event("y", 0, {"x": 1})]),
            "`given`: .*cannot happen",
        ),
        (lambda g: identify_counterfactual(g, Y0, (), "all"), "`regime`: expected 'experiments'"),
        (lambda g: path_specific(g, "x", "y", [("y", "x")]), "`edges`: expected directed edges"),
        (lambda g: recanting_witnesses(g, "x", "x", []), "At node 'x', in `outcome`"),
    ],
)
def test_errors(question: Callable[[ADMG], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        question(graph(BOW))


def test_what_one_intervention_brings_about_is_one_probability():
    g = ADMG([("x", "y")])
    assert str(identify_counterfactual(g, [Event("x", 1), Event("y", 1)])) == "P(x=1, y=1)"


# --- what once went wrong -------------------------------------------------------------------------


def test_undefined_conditionals_without_axes():
    estimand = identify_counterfactual(
        ADMG([("x", "y")]), Event("y", 1, {"x": 1}), regime="observational"
    )
    never = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    with pytest.raises(PositivityError, match=r"P\(y=1 \| x=1\) is undefined at x=1"):
        estimand.evaluate(never)


def test_a_variable_set_to_what_it_would_have_been():
    g = ADMG([("b", "a")], nodes=["c"])
    asked = Event("c", 1, {"c": Event("c")})
    assert str(identify_counterfactual(g, asked, Event("a", 1))) == "P(c=1)"
    nested = Event("a", 1, {"a": Event("a", do={"b": 1})})
    assert str(identify_counterfactual(g, nested)) == "P_{b=1}(a=1)"


def test_worlds_within_worlds_do_not_multiply():
    """A ladder has 2 ** 40 paths; its events are 40."""
    rungs = [("x", "a0"), ("x", "b0")]
    for i in range(19):
        rungs += [(f"{s}{i}", f"{t}{i + 1}") for s in "ab" for t in "ab"]
    g = ADMG([*rungs, ("a19", "y"), ("b19", "y")])
    event = path_specific(g, "x", "y", (edge for edge in g.directed))
    assert str(identify_counterfactual(g, event)) == "P_{x=1}(y=1)"
    assert len(repr(event)) < 1000
    assert recanting_witnesses(g, "x", "y", (e for e in g.directed)) == frozenset()
    few = [edge for edge in g.directed if edge != ("a0", "b1")]
    assert "a0" in recanting_witnesses(g, "x", "y", (edge for edge in few))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("y", 1, {"x": None}), "At node 'x', in an Event: expected an integer level .* got None"),
        (("y", 1.0), "At node 'y', in an Event: expected an integer level or a symbol, got 1.0"),
        (("y", 1, "x"), "At node 'y', in an Event: expected `do` to map names to values, got 'x'"),
    ],
)
def test_levels_of_events_are_checked(arguments, message):
    with pytest.raises(TypeError, match=message):
        Event(*arguments)
    with pytest.raises(TypeError, match=r"`event`: expected Events, got 'y'. Do write Event"):
        identify_counterfactual(ADMG([("x", "y")]), ["y"])
    assert repr(Event("y", True, {"x": torch.tensor(0)})) == "y_{x=0}=1"
