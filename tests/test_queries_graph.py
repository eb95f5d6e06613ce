"""Queries that ask the graph first whether the data can answer."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from torch import Tensor, tensor

from pyro_causal import do, soft
from pyro_causal.graph import ADMG, Unidentifiable
from pyro_causal.queries import query

HIDDEN = {"is_auxiliary": True}
NUMBER = 20_000

BOW = ADMG([("x", "y")], [("x", "y")])
FRONT = ADMG([("x", "m"), ("m", "y")], [("x", "y")])
BACK = ADMG([("z", "x"), ("z", "y"), ("x", "y")])
CHAIN = ADMG([("x", "m"), ("m", "y")])
NAPKIN = ADMG([("w", "z"), ("z", "x"), ("x", "y")], [("w", "x"), ("w", "y")])
MEDIATED_BOW = ADMG([("x", "m"), ("x", "y"), ("m", "y")], [("x", "y")])


def normal(name: str, loc: Any = 0.0, scale: float = 1.0, **options: Any) -> Tensor:
    return pyro.sample(name, dist.Normal(loc, scale), **options)


def program_of(graph: ADMG) -> Callable[[], None]:
    """A linear program of a graph, with a hidden site for each bidirected edge."""

    def program() -> None:
        values: dict[str, Any] = dict.fromkeys(graph.nodes, 0.0)
        for i, edge in enumerate(graph.bidirected):
            u = normal(f"u{i}", infer=HIDDEN)
            for name in edge:
                values[name] = values[name] + u
        for name in graph.topological_order():
            values[name] = normal(name, values[name] + sum(values[p] for p in graph.parents(name)))

    return program


SHIFT: dict[str, Any] = {"x": lambda x: x + 1}
DRAW: dict[str, Any] = {"x": dist.Normal(0.0, 1.0)}
SOFT: dict[str, Any] = {"x": soft(lambda d: dist.Normal(d.loc + 1, 2.0))}
SET: dict[str, Any] = {"x": 1.0}

IDENTIFIED: list[tuple[ADMG, str, Mapping[str, Any], Mapping[str, float], str]] = [
    (BOW, "y", {}, {}, "P(x, y)"),
    (BOW, "y", {}, {"x": 1.0}, "P(x, y)"),
    (BOW, "x", {}, {"y": 1.0}, "P(x, y)"),
    (BOW, "x", {"y": 1.0}, {}, "P(x, y)"),
    (BOW, "x", {"y": 1.0}, {"y": 2.0}, "P(x, y)"),
    (BOW, "x", SET, {}, "P(x)"),
    (BOW, "x", SHIFT, {}, "P(x)"),
    (BOW, "y", SET, {"x": 1.0}, "P(x, y)"),  # a null action
    (BOW, "y", SET, {"x": 1.0, "y": 0.0}, "P(x, y)"),
    (FRONT, "y", SET, {}, "P(x, m, y)"),
    (FRONT, "m", SET, {}, "P(x, m)"),
    (FRONT, "y", DRAW, {}, "P(x, m, y)"),
    (FRONT, "y", SHIFT, {}, "P(x, m, y)"),
    (FRONT, "y", SET, {"x": 0.0}, "P(x, m, y)"),
    (FRONT, "y", SHIFT, {"x": 0.0}, "P(x, m, y)"),
    (FRONT, "x", SHIFT, {"y": 0.0}, "P(x, m, y)"),
    (FRONT, "m", SOFT, {}, "P(x, m)"),
    (BACK, "y", SET, {}, "P(z, x, y)"),
    (BACK, "y", SHIFT, {}, "P(z, x, y)"),
    (BACK, "y", SOFT, {}, "P(z, x, y)"),
    (BACK, "y", SOFT, {"x": 0.0, "z": 0.0}, "P(z, x, y)"),
    (BACK, "y", {"x": lambda x: x + 1, "z": 0.0}, {}, "P(z, x, y)"),
    (BACK, "y", SET, {"x": 0.0, "z": 1.0}, "P(z, x, y)"),
    (CHAIN, "y", SET, {"x": 0.0}, "P(x, m, y)"),
    (NAPKIN, "y", SET, {}, "P(w, z, x, y)"),
    (CHAIN, "x", {"m": lambda m: m + 1, **SET}, {"m": 0.0}, "P(x, m)"),  # m has no say
]

UNIDENTIFIED: list[tuple[ADMG, str, Mapping[str, Any], Mapping[str, float], str]] = [
    (BOW, "y", SET, {}, "x <-> y"),
    (BOW, "y", DRAW, {}, "x <-> y"),
    (BOW, "y", SHIFT, {}, "x <-> y"),
    (BOW, "y", SOFT, {}, "x <-> y"),
    (BOW, "y", SET, {"x": 0.0}, "x <-> y"),
    (BOW, "y", SET, {"x": 0.0, "y": 0.0}, "y in two worlds at once"),
    (FRONT, "y", SOFT, {}, "x <-> y"),
    (FRONT, "y", {"m": lambda m: m + 1, **SET}, {"y": 1.0}, "m, y in two worlds at once"),
    (BOW, "y", SHIFT, {"y": 1.0}, "y in two worlds at once"),
    (FRONT, "m", SET, {"y": 0.0}, "m in two worlds at once"),
    (NAPKIN, "y", SHIFT, {}, "w <-> x, w <-> y"),
    (MEDIATED_BOW, "y", {**SHIFT, "m": 1.0}, {"x": 0.0}, "x <-> y"),
    (FRONT, "y", SET, {"x": 0.0, "y": 0.0}, "m, y in two worlds at once"),
    (BACK, "y", SET, {"y": 0.0}, "y in two worlds at once"),
    (CHAIN, "y", SET, {"m": 0.0}, "m in two worlds at once"),
]


@pytest.mark.parametrize("source", ["given", "program"])
@pytest.mark.parametrize(("graph", "of", "action", "given", "data"), IDENTIFIED)
def test_identified(
    graph: ADMG,
    of: str,
    action: Mapping[str, Any],
    given: Mapping[str, float],
    data: str,
    source: str,
) -> None:
    result = query(
        program_of(graph),
        of,
        do=action,
        given=given,
        graph=graph if source == "given" else "program",
    )
    assert (result.identified, result.grounds) == (True, data)
    assert f"  identified  yes, from {data}\n" in repr(result)


@pytest.mark.parametrize("source", ["given", "program"])
@pytest.mark.parametrize(("graph", "of", "action", "given", "obstacle"), UNIDENTIFIED)
def test_unidentified(
    graph: ADMG,
    of: str,
    action: Mapping[str, Any],
    given: Mapping[str, float],
    obstacle: str,
    source: str,
) -> None:
    model = program_of(graph)
    chosen: Any = graph if source == "given" else "program"
    message = rf"At site '{of}', .* cannot be identified: .*{obstacle}. .*allow_unidentified=True"
    with pytest.raises(Unidentifiable, match=message) as caught:
        query(model, of, do=action, given=given, graph=chosen)
    assert caught.value.query.startswith(f"P({of} | do(")
    result = query(model, of, do=action, given=given, graph=chosen, allow_unidentified=True)
    assert (result.identified, result.grounds) == (False, obstacle)
    label = f"  identified  no: {obstacle}; the value rests on the program's mechanisms\n"
    assert label in repr(result)


def test_an_action_is_null_if_it_changes_no_unit() -> None:
    def program() -> None:
        with pyro.plate("units", 2):
            program_of(BOW)()

    options: dict[str, Any] = {"given": {"x": tensor([1.0, 2.0])}, "graph": BOW}
    assert query(program, "y", do={"x": tensor([1.0, 2.0])}, **options).identified
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(program, "y", do={"x": 1.0}, **options)


def test_a_hedge_comes_with_the_error() -> None:
    with pytest.raises(Unidentifiable, match="P\\(x, y\\) answers, but a hidden path") as caught:
        query(program_of(BOW), "y", do=SET, graph=BOW)
    assert caught.value.hedge is not None
    assert caught.value.hedge.hidden == ("x <-> y",)


def test_without_a_graph_nothing_is_claimed() -> None:
    result = query(program_of(BOW), "y", do=SET, allow_unidentified=True)
    assert result.identified is None
    assert "identified" not in repr(result)


# What the verdict means


def twins(a: float, c: float, scale: float) -> Callable[[], None]:
    """Front doors of one law of (x, m, y), whatever share of the spread of x is u's."""

    def program() -> None:
        u = normal("u", infer=HIDDEN)
        x = normal("x", a * u, math.sqrt(2 - a**2))
        m = normal("m", x)
        normal("y", m + c * u, scale)

    return program


TWINS = [
    twins(1.0, 1.0, 1.0),
    twins(math.sqrt(1.5), math.sqrt(1 / 1.5), math.sqrt(1.5 - 1 / 6)),
]


@pytest.mark.parametrize(
    ("action", "given"),
    [({}, {}), (SET, {}), (DRAW, {}), (SHIFT, {}), (SET, {"x": 0.0}), ({}, {"x": 1.0, "m": 2.0})],
)
def test_programs_that_agree_on_the_data_agree_where_it_is_identified(
    action: Mapping[str, Any], given: Mapping[str, float]
) -> None:
    first, second = (
        query(twin, "y", do=action, given=given, graph="program", num_samples=NUMBER)
        for twin in TWINS
    )
    assert abs(first.mean - second.mean) < 0.08
    assert abs(first.std - second.std) < 0.08


def test_and_may_differ_where_it_is_not() -> None:
    """A surrogate that keeps the share of u in x: the variance of y is larger by 1 / 2."""
    action = {"x": soft(lambda d: dist.Normal(d.loc, 2.0))}
    first, second = (query(twin, "y", do=action, num_samples=NUMBER) for twin in TWINS)
    assert second.std**2 - first.std**2 > 0.2
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(TWINS[0], "y", do=action, graph="program")


# The graph of the program


def observing(y: Tensor | None = None) -> None:
    """A confounder of the units, a weight that they share, and a covariate nobody records."""
    weight = normal("weight")
    with pyro.plate("units", 3):
        u, c = normal("u"), normal("c")
        x = normal("x", c, obs=None if y is None else torch.zeros(3))
        normal("y", weight * x + u + c, obs=y)


def test_what_the_program_does_not_observe_is_hidden() -> None:
    data = (torch.ones(3),)
    with pytest.raises(Unidentifiable, match="y in two worlds at once"):
        query(observing, "y", do={"x": 1.0}, args=data, graph="program")
    result = query(observing, "y", do={"x": 0.0}, args=data, graph="program")
    assert result.grounds == "P(x, y)"


def test_parameters_do_not_confound() -> None:
    def program(hidden: Mapping[str, Any]) -> None:
        weight = normal("weight", infer=HIDDEN)
        with pyro.plate("units", 3):
            c = normal("c", infer=dict(hidden))
            x = normal("x", weight * c)
            normal("y", weight * x + c)

    result = query(program, "y", do={"x": 1.0}, args=({},), graph="program")
    assert result.grounds == "P(c, x, y)"
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(program, "y", do={"x": 1.0}, args=(HIDDEN,), graph="program")


def confounded() -> None:
    u = normal("u")
    x = normal("x", u)
    normal("y", x + u)


def test_sites_that_samples_or_a_guide_stand_for_are_hidden() -> None:
    assert query(confounded, "y", do=SET, graph="program").grounds == "P(u, x, y)"
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(confounded, "y", do=SET, graph="program", posterior_samples={"u": torch.zeros(4)})
    guide = autoguide.AutoNormal(poutine.block(confounded, expose=["u"]))
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(confounded, "y", do=SET, graph="program", guide=guide)
    asked = query(confounded, "u", do=SET, graph="program", guide=guide)
    assert asked.grounds == "P(u, x)"  # what is asked about counts as observed


def test_deterministic_sites() -> None:
    def program() -> None:
        u = normal("u", infer=HIDDEN)
        x = normal("x", u)
        d = pyro.deterministic("d", 2 * x)
        e = pyro.deterministic("e", d + 1)
        pyro.deterministic("y", normal("noise", e, infer=HIDDEN) + u)

    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(program, "y", do={"x": 1.0}, graph="program")
    assert query(program, "y", do={"d": 1.0}, graph="program").grounds == "P(x, d, y)"
    assert query(program, "e", do={"x": 1.0}, graph="program").grounds == "P(x, e)"


def test_discrete_noise_is_a_convention() -> None:
    def program() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        x = pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * z))
        normal("y", x + z)

    action = {"x": soft(lambda d: dist.Bernoulli(0.5 * d.probs))}
    assert query(program, "y", do=action, graph="program").identified
    given = {"x": 1.0, "z": 0.0}
    with pytest.raises(Unidentifiable, match="it takes the noise of x, which is discrete"):
        query(program, "y", do=action, given=given, graph="program")


def test_clamped_coordinates_are_surrogates() -> None:
    def program() -> None:
        z = normal("z")
        x = pyro.sample("x", dist.Normal(z + torch.zeros(2), 1.0).to_event(1))
        normal("y", x.sum() + z)

    assert query(program, "y", do={"x": {0: 1.0}}, graph="program").grounds == "P(z, x, y)"
    hidden = ADMG([("x", "y")], [("x", "y")])
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(program, "y", do={"x": {0: 1.0}}, graph=hidden)


# What stays the same, and what is refused


@pytest.mark.parametrize("guided", [False, True])
def test_a_graph_does_not_change_the_answer(guided: bool) -> None:
    guide = autoguide.AutoNormal(poutine.block(confounded, expose=["u"])) if guided else None
    if guide is not None:
        guide()  # sets itself up
    answers = []
    for graph in (None, "program"):
        pyro.set_rng_seed(0)
        options: dict[str, Any] = {"graph": graph, "allow_unidentified": True, "guide": guide}
        answers.append(query(confounded, "y", do=SET, num_samples=10, **options).draws)
    assert torch.equal(*answers)


def test_it_is_refused_before_any_sampling() -> None:
    runs = []

    def program() -> None:
        runs.append(1)
        confounded()

    with pytest.raises(Unidentifiable):
        query(program, "y", do=SET, graph=BOW)
    assert len(runs) == 2  # one to check the query, one to read the program


def test_sites_that_are_no_nodes() -> None:
    model = program_of(FRONT)
    with pytest.raises(ValueError, match="At node 'm', in `of`: expected one of the nodes x, y"):
        query(model, "m", do=SET, graph=BOW)
    with pytest.raises(ValueError, match="At node 'm', in `do`"):
        query(model, "y", do={"m": 1.0}, graph=BOW)
    with pytest.raises(ValueError, match="At node 'm', in `given`"):
        query(model, "y", given={"m": 1.0}, graph=BOW)
    observed = poutine.condition(model, {"m": tensor(1.0)})
    with pytest.raises(ValueError, match="At node 'm', in `given`"):
        query(observed, "y", graph=BOW)


@pytest.mark.parametrize("graph", ["program", BOW])
def test_a_program_that_is_intervened_on(graph: Any) -> None:
    with pytest.raises(ValueError, match="At site 'x', the program is intervened on: .* as do="):
        query(do(confounded, SET), "y", graph=graph)


@pytest.mark.parametrize("graph", ["programme", [("x", "y")]])
def test_no_graph(graph: Any) -> None:
    with pytest.raises(TypeError, match="`graph`: expected an ADMG or 'program'.*causal_graph"):
        query(confounded, "y", graph=graph)


def test_control_flow_matters_only_to_the_graph_of_the_program() -> None:
    def program() -> None:
        x = normal("x")
        normal("y", 1.0 if x > 0 else 0.0)

    assert query(program, "y", do=SET, graph=ADMG([("x", "y")]), parallel=False).identified
    with pytest.warns(UserWarning, match="At site 'x', Python looks at the value"):
        query(program, "y", do=SET, graph="program", parallel=False)
