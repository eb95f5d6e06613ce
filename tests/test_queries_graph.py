"""Queries that ask the graph first whether the data can answer."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor, tensor

from pyro_causal import causal_graph, do, soft
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
    (FRONT, "m", SOFT, {}, "x <-> y"),  # the share of the hidden cause in x
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


class Linear:
    """A random linear program: sites with noise (n), hidden ones (h), computed ones (d, D)."""

    def __init__(self, generator: random.Random) -> None:
        choose = generator.choice
        self.size = choose([3, 4, 5])
        pairs = itertools.combinations(range(self.size), 2)
        self.edges = [pair for pair in pairs if generator.random() < 0.55]
        children = {b for _, b in self.edges}
        self.kinds = [choose("nnhdD" if j in children else "nh") for j in range(self.size)]
        self.kinds[-1] = "n" if self.kinds[-1] == "h" else self.kinds[-1]
        numbers = [choose([-1, 1]) * generator.uniform(0.5, 1.5) for _ in self.edges]
        scales = [generator.uniform(0.5, 1.5) for _ in range(self.size)]
        self.theta = tensor(numbers + scales, dtype=torch.float64)

    def __call__(self) -> None:
        values: list[Tensor] = []
        numbers, scales = self.theta[: len(self.edges)], self.theta[len(self.edges) :]
        for j, kind in enumerate(self.kinds):
            loc = torch.zeros((), dtype=torch.float64)
            for number, (a, b) in zip(numbers, self.edges, strict=True):
                loc = loc + number * values[a] if b == j else loc
            if kind == "d":
                values.append(pyro.deterministic(f"v{j}", loc))
            elif kind == "D":
                values.append(pyro.sample(f"v{j}", dist.Delta(loc)))
            else:
                infer = {"is_auxiliary": kind == "h"}
                values.append(pyro.sample(f"v{j}", dist.Normal(loc, scales[j]), infer=infer))

    def moments(self, theta: Tensor, targets: Sequence[int] = (), how: str = "") -> Any:
        """Mean of each site, and its loadings on the noises, after an action."""
        numbers, scales = theta[: len(self.edges)], theta[len(self.edges) :]
        means, loadings = [], []
        for j, kind in enumerate(self.kinds):
            mean, loading = theta.new_zeros(()), theta.new_zeros(self.size)
            for number, (a, b) in zip(numbers, self.edges, strict=True):
                if b == j:
                    mean, loading = mean + number * means[a], loading + number * loadings[a]
            if kind in "nh":
                wider = 2 if how == "soft" and j in targets else 1
                loading = loading + wider * scales[j] * torch.eye(self.size, dtype=theta.dtype)[j]
            if j in targets and how == "set":
                mean, loading = theta.new_ones(()) * (j + 1), theta.new_zeros(self.size)
            means.append(mean + 1 if j in targets and how == "shift" else mean)
            loadings.append(loading)
        return torch.stack(means), torch.stack(loadings)

    def determines(self, targets: Sequence[int], how: str) -> bool:
        """Whether the law of what is recorded tells the effect on the last site, nearby at least.

        If so, no direction in which the numbers may change without it changes the effect.
        """
        seen = [j for j, kind in enumerate(self.kinds) if kind != "h"]

        def law(theta: Tensor) -> Tensor:
            loadings = self.moments(theta)[1][seen]
            return (loadings @ loadings.T).flatten()

        def effect(theta: Tensor) -> Tensor:
            means, loadings = self.moments(theta, targets, how)
            return torch.stack([means[-1], (loadings[-1] ** 2).sum()])

        of_law = torch.autograd.functional.jacobian(law, self.theta).T
        of_effect = torch.autograd.functional.jacobian(effect, self.theta).T
        best = torch.linalg.lstsq(of_law, of_effect, driver="gelsd").solution
        return bool((of_law @ best - of_effect).abs().max() < 1e-7)


LINEAR: dict[str, Callable[[int], Any]] = {
    "set": lambda j: j + 1.0,
    "shift": lambda j: lambda x: x + 1,
    "soft": lambda j: soft(lambda d: dist.Normal(d.loc, 2 * d.scale)),
}


@pytest.mark.parametrize("how", LINEAR)
def test_what_is_identified_is_determined_by_the_law_of_random_linear_programs(how: str) -> None:
    generator = random.Random(0)
    verdicts = Counter[bool | None]()
    for _ in range(60):
        program = Linear(generator)
        kinds = "n" if how == "soft" else "ndD"
        open_to = [j for j, kind in enumerate(program.kinds[:-1]) if kind in kinds]
        targets = generator.sample(open_to, min(len(open_to), generator.choice([1, 1, 2])))
        hidden = [f"v{j}" for j, kind in enumerate(program.kinds) if kind == "h"]
        action = {f"v{j}": LINEAR[how](j) for j in targets}
        for graph in ("program", causal_graph(program, latent=hidden, keep_deterministic=True)):
            options: dict[str, Any] = {"graph": graph, "num_samples": 2}
            last = f"v{program.size - 1}"
            result = query(program, last, do=action, allow_unidentified=True, **options)
            assert program.determines(targets, how) or not result.identified
            verdicts[result.identified] += 1
    assert min(verdicts[True], verdicts[False]) > 10


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
    with pytest.raises(Unidentifiable, match="P\\(x\\) answers, but u is not recorded. Do observe"):
        query(confounded, "u", do=SET, graph="program", guide=guide)


@pytest.mark.parametrize(
    "options", [{"of": "u"}, {"of": "y", "do": {"u": 1.0}}, {"of": "y", "given": {"u": 1.0}}]
)
def test_a_hidden_site_stays_hidden_when_it_is_named(options: dict[str, Any]) -> None:
    """Any scale of u fits the same data."""
    with pytest.raises(Unidentifiable, match="but u is not recorded"):
        query(TWINS[0], graph="program", **options)
    result = query(TWINS[0], graph="program", allow_unidentified=True, **options)
    assert (result.identified, result.grounds) == (False, "u is not recorded")
    observed = poutine.condition(TWINS[0], {"u": tensor(1.0)})
    assert query(observed, "y", graph="program").identified


def test_several_hidden_sites() -> None:
    samples = {"u": torch.zeros(4), "x": torch.zeros(4)}
    with pytest.raises(Unidentifiable, match="but u, x are not recorded"):
        query(confounded, "y", do={"u": 0.0, **SET}, graph="program", posterior_samples=samples)


def test_an_open_site_that_is_named_counts_as_recorded() -> None:
    data = (torch.ones(3),)
    result = query(observing, "c", args=data, graph="program")
    assert result.grounds == "P(c, x, y)"


def test_deterministic_sites() -> None:
    def program() -> None:
        u = normal("u", infer=HIDDEN)
        x = normal("x", u)
        d = pyro.deterministic("d", 2 * x)
        e = pyro.deterministic("e", d + 1)
        pyro.deterministic("y", normal("noise", e, infer=HIDDEN) + u)

    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(program, "y", do={"x": 1.0}, graph="program")
    with pytest.raises(Unidentifiable, match="d <-> y"):
        query(program, "y", do={"d": 1.0}, graph="program")
    assert query(program, "e", do={"x": 1.0}, graph="program").grounds == "P(x, e)"
    assert query(program, "e", do={"d": 1.0}, graph="program").grounds == "P(d, e)"


Twin = Callable[[float], Callable[[], None]]  # programs of one law, whatever the number


def _noises(a: float) -> Callable[[], None]:
    def program() -> None:
        ux, uy = normal("ux"), normal("uy")
        x = pyro.deterministic("x", ux)
        pyro.deterministic("y", a * x + (3 - a) * ux + uy)

    return program


def _chain_of_functions(a: float) -> Callable[[], None]:
    def program() -> None:
        z = normal("z")
        d = pyro.deterministic("d", 2 * z)
        x = pyro.sample("x", dist.Delta(d + 1))
        normal("y", a * x + (3 - a) * (2 * z + 1))

    return program


def _hidden_noises(a: float) -> Callable[[], None]:
    def program() -> None:
        u = normal("u", infer=HIDDEN)
        z = normal("z", u)
        x = pyro.deterministic("x", z)
        normal("y", a * x + (1 - a) * z)

    return program


def _mediator(a: float) -> Callable[[], None]:
    def program() -> None:
        u = normal("u", infer=HIDDEN)
        x = normal("x", u)
        m = pyro.sample("m", dist.Delta(2 * x))
        normal("y", a * m + (1 - a) * 2 * x + u)

    return program


def _two_functions(a: float) -> Callable[[], None]:
    def program() -> None:
        u = normal("u", infer=HIDDEN)
        x = pyro.deterministic("x", 2 * u)
        z = pyro.sample("z", dist.Delta(3 * u))
        normal("y", a * x + (1 - a) * z / 1.5)

    return program


@pytest.mark.parametrize("twin", [_noises, _chain_of_functions, _hidden_noises, _two_functions])
@pytest.mark.parametrize("action", [2.0, dist.Normal(2.0, 1.0), lambda x: x + 1])
def test_what_is_computed_is_confounded_by_its_causes(twin: Twin, action: Any) -> None:
    """No data has a value that its causes rule out: twins of one law answer otherwise."""
    means = []
    for a in (0.5, 1.0):
        with pytest.raises(Unidentifiable, match="x <-> y"):
            query(twin(a), "y", do={"x": action}, graph="program")
        pyro.set_rng_seed(0)
        means.append(query(twin(a), "y", do={"x": action}, num_samples=NUMBER).mean)
    assert abs(means[0] - means[1]) > 0.2


def test_a_computed_site_without_other_ways_from_its_causes() -> None:
    result = query(_noises(3.0), "y", do=SET, graph=ADMG([("x", "y")]), num_samples=NUMBER)
    assert (result.identified, result.grounds) == (True, "P(x, y)")
    assert abs(result.mean - 3) < 0.1

    def program() -> None:
        z = normal("z")
        x = pyro.deterministic("x", 2 * z)
        normal("y", x)

    assert query(program, "y", do=SET, graph="program").grounds == "P(x, y)"
    assert query(program, "z", do=SET, graph="program").grounds == "P(z, x)"  # x has no say
    assert query(program, "z", do=SET, given={"y": 1.0}, graph="program").grounds == "P(z, x, y)"


@pytest.mark.parametrize(
    ("twin", "action", "given", "what"),
    [
        (_hidden_noises, SET, {"z": 0.0}, "values of x that z rules out"),
        (_hidden_noises, {"x": 1.0, "z": 0.0}, {}, "values of x that z rules out"),
        (_chain_of_functions, {"x": 1.0, "z": 0.0}, {}, "values of x that z rules out"),
        (_chain_of_functions, SET, {"z": 0.0}, "values of x that z rules out"),
        (_two_functions, SET, {"z": 0.0}, "values of x that z rules out"),
        (_two_functions, {"x": 1.0, "z": 0.0}, {}, "values of [xz] that [xz] rules out"),
    ],
)
def test_values_that_others_rule_out(
    twin: Twin, action: Mapping[str, Any], given: Mapping[str, float], what: str
) -> None:
    with pytest.raises(Unidentifiable, match=f"but it takes {what}"):
        query(twin(0.5), "y", do=action, given=given, graph="program")


def test_a_computed_mediator_has_no_noise_to_tell_it_apart() -> None:
    for graph in ("program", FRONT):
        chosen: Any = graph
        with pytest.raises(Unidentifiable, match="x <-> y"):
            query(_mediator(1.0), "y", do=SET, graph=chosen)
    assert query(program_of(FRONT), "y", do=SET, graph=FRONT).identified


def test_computed_sites_in_a_given_graph() -> None:
    graph = ADMG([("z", "x"), ("z", "y"), ("x", "y")])
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(_hidden_noises(0.5), "y", do=SET, graph=graph)
    with pytest.raises(Unidentifiable, match="values of x that z rules out"):
        query(_hidden_noises(0.5), "y", do=SET, given={"z": 1.0}, graph=graph)
    siblings = ADMG([("z", "y"), ("x", "y")], [("x", "z")], ["x", "z", "y"])
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(_two_functions(0.5), "y", do=SET, graph=siblings)
    with pytest.raises(Unidentifiable, match="values of x that z rules out"):
        query(_two_functions(0.5), "y", do=SET, given={"z": 1.0}, graph=siblings)

    def program() -> None:
        z = pyro.deterministic("z", normal("z_noise", infer=HIDDEN))
        normal("y", normal("x", z) + z)

    assert query(program, "y", do=SET, graph=graph).grounds == "P(z, x, y)"  # z is noise enough


# Surrogates


def share(a: float) -> Callable[[], None]:
    """A hidden cause of x alone, which has a larger or smaller share in it."""

    def program() -> None:
        u = normal("u", infer=HIDDEN)
        h = normal("h", a * u, 0.0001, infer=HIDDEN)
        x = normal("x", h, math.sqrt(2 - a**2))
        normal("y", x)

    return program


@pytest.mark.parametrize("given", [{}, {"x": 2.0}])
@pytest.mark.parametrize("graph", ["program", ADMG([("x", "y")])])
def test_a_surrogate_takes_the_share_of_hidden_causes(
    graph: Any, given: Mapping[str, float]
) -> None:
    location = (lambda d: 0.0) if given else (lambda d: d.loc)
    action = {"x": soft(lambda d: dist.Normal(location(d), 2.0))}
    answers = []
    for a in (0.2, 1.35):
        with pytest.raises(Unidentifiable, match="it takes the share of u, h in x"):
            query(share(a), "y", do=action, given=given, graph=graph)
        answers.append(query(share(a), "y", do=action, given=given, num_samples=NUMBER))
    spreads = [float(answer.mean if given else answer.std**2) for answer in answers]
    assert abs(spreads[0] - spreads[1]) > 0.5


def test_a_surrogate_may_have_parameters() -> None:
    def program() -> None:
        weight = normal("weight", infer=HIDDEN)
        with pyro.plate("units", 3):
            x = normal("x", weight * torch.ones(3))
            u = normal("u", infer=HIDDEN)
            normal("y", x + u)

    for graph in ("program", ADMG([("x", "y")])):
        chosen: Any = graph
        assert query(program, "y", do=SOFT, graph=chosen).grounds == "P(x, y)"


def test_a_surrogate_of_a_vector_has_no_noise_that_data_tells() -> None:
    def program() -> None:
        z = normal("z")
        loc = z.unsqueeze(-1) + torch.zeros(2)
        x = pyro.sample("x", dist.Normal(loc, 1.0).to_event(1))
        normal("y", x[..., 1])

    action = {"x": soft(lambda d: dist.Normal(torch.zeros(2), 1.0).to_event(1))}
    options: dict[str, Any] = {"do": action, "graph": "program"}
    assert query(program, "y", **options).identified
    assert query(program, "y", given={"z": 1.0}, **options).identified
    for given in ({"x": torch.ones(2)}, {"y": 1.0, "z": 0.0}):
        with pytest.raises(Unidentifiable, match="it takes the noise of x, which is a vector"):
            query(program, "y", given=given, **options)


def test_discrete_noise_is_a_convention() -> None:
    def program() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        x = pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * z))
        normal("y", x + z)

    action = {"x": soft(lambda d: dist.Bernoulli(0.5 * d.probs))}
    assert query(program, "y", do=action, graph="program").identified
    assert query(program, "y", do=action, given={"z": 0.0}, graph="program").identified
    given = {"x": 1.0, "z": 0.0}
    with pytest.raises(Unidentifiable, match="it takes the noise of x, which is discrete"):
        query(program, "y", do=action, given=given, graph="program")


def test_clamped_coordinates_are_functions_of_the_value() -> None:
    def program() -> None:
        z = normal("z")
        x = pyro.sample("x", dist.Normal(z + torch.zeros(2), 1.0).to_event(1))
        normal("y", x.sum() + z)

    def front() -> None:
        u = normal("u", infer=HIDDEN)
        loc = u.unsqueeze(-1) + torch.zeros(2)
        x = pyro.sample("x", dist.Normal(loc, 1.0).to_event(1))
        normal("y", normal("m", x.sum(-1)) + u)

    assert query(program, "y", do={"x": {0: 1.0}}, graph="program").grounds == "P(z, x, y)"
    assert query(front, "y", do={"x": {0: 1.0}}, graph="program").grounds == "P(x, m, y)"
    given = {"x": torch.ones(2)}
    assert query(front, "m", do={"x": {0: 1.0}}, given=given, graph="program").identified
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
        query(program, "y", do=SET, graph=BOW, guide=lambda: runs.append(2))
    assert runs == [1]  # to check the query
    options: dict[str, Any] = {"posterior_samples": {"u": torch.zeros(4)}}
    with pytest.raises(Unidentifiable):
        query(program, "y", do=SET, graph="program", **options)
    assert len(runs) == 3  # and to read the program


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


def test_nodes_that_are_no_sites() -> None:
    graph = ADMG([("z", "x"), ("z", "y"), ("x", "y")])
    message = r"At node 'z', in `graph`: .* of u0, x, y. Do .* graph.latent_projection\(\['z'\]\)"
    with pytest.raises(ValueError, match=message):
        query(program_of(BOW), "y", do=SET, graph=graph)
    with pytest.raises(Unidentifiable, match="x <-> y"):
        query(program_of(BOW), "y", do=SET, graph=graph.latent_projection("z"))


@pytest.mark.parametrize("graph", ["program", BOW])
@pytest.mark.parametrize("action", [1.0, dist.Normal(0.0, 1.0), lambda x: x + 1, SOFT["x"]])
def test_a_program_that_is_intervened_on(graph: Any, action: Any) -> None:
    with pytest.raises(ValueError, match="At site 'x', the program is intervened on: .* as do="):
        query(do(confounded, {"x": action}), "y", graph=graph)


@pytest.mark.parametrize("graph", ["program", BOW])
def test_the_do_of_pyro(graph: Any) -> None:
    with pytest.raises(ValueError, match="At site 'x', "):
        query(poutine.do(confounded, {"x": tensor(1.0)}), "y", graph=graph)


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


def test_control_flow_points_at_the_caller_of_query() -> None:
    def program() -> None:
        normal("y", float(normal("x")))

    with pytest.warns(UserWarning, match="At site 'x', Python looks") as caught:
        query(program, "y", graph="program", parallel=False, num_samples=2)
    assert caught[0].filename == __file__


def test_a_given_graph_asks_no_more_of_the_program_than_to_run() -> None:
    def program() -> None:
        x = normal("x")
        branches = (lambda x: 2 * x), (lambda x: 3 * x)
        normal("y", torch.cond(x > 0, *branches, (x,)))

    options: dict[str, Any] = {"do": SET, "parallel": False, "num_samples": 2}
    assert query(program, "y", graph=ADMG([("x", "y")]), **options).identified


@pytest.mark.parametrize("graph", ["program", BACK])
def test_masked_observations_are_evidence_on_one_site(graph: Any) -> None:
    def program(masked: str) -> None:
        def site(name: str, loc: Tensor) -> Tensor:
            mask = {"obs": torch.ones(2), "obs_mask": tensor([True, False])}
            return normal(name, loc, **(mask if name == masked else {}))

        with pyro.plate("units", 2):
            z = normal("z", torch.zeros(2), obs=torch.ones(2))
            site("y", site("x", z) + z)

    assert query(program, "y", do=SET, args=("x",), graph=graph).grounds == "P(z, x, y)"
    with pytest.raises(Unidentifiable, match="y in two worlds"):
        query(program, "y", do=SET, args=("y",), graph=graph)


def test_reparametrised_sites_are_no_evidence() -> None:
    program = poutine.reparam(program_of(CHAIN), {"m": LocScaleReparam(0.5)})
    assert query(program, "y", do=SET, given={"x": 0.0}, graph=CHAIN).grounds == "P(x, y)"


def test_observed_points_are_evidence() -> None:
    """And what a point is computed to be is none."""

    def program() -> None:
        x = normal("x")
        pyro.sample("d", dist.Delta(torch.zeros(()), log_density=torch.zeros(())))
        normal("y", x)

    graph = ADMG([("x", "y"), ("x", "d")])
    observed = poutine.condition(program, {"d": tensor(1)})
    with pytest.raises(Unidentifiable, match=r"P\(y \| do\(x\), d, y\)"):
        query(poutine.condition(observed, {"y": tensor(1.0)}), "y", do=SET, graph=graph)


def test_factors() -> None:
    """A constant is harmless, weight decay too; a selection is for a graph by hand to tell."""

    def program(decay: bool, selected: bool) -> None:
        weight = normal("weight", infer=HIDDEN)
        pyro.factor("constant", tensor(1.0))
        if decay:
            pyro.factor("decay", -(weight**2))
        with pyro.plate("units", 3):
            c = normal("c")
            x = normal("x", c)
            if selected:
                pyro.factor("selection", -(x**2))
            normal("y", weight * x + c)

    graph = ADMG([("c", "x"), ("c", "y"), ("x", "y")])
    options: dict[str, Any] = {"do": SET, "num_samples": 100}
    for args in ((False, False), (True, False)):
        for chosen in ("program", graph):
            result = query(program, "y", args=args, graph=chosen, **options)
            assert result.grounds == "P(c, x, y)"
    with pytest.raises(ValueError, match="At site 'selection', .* selects units"):
        query(program, "y", args=(False, True), graph="program", **options)
    assert query(program, "y", args=(False, True), graph=graph, **options).identified


@pytest.mark.parametrize("value", [1, tensor(1), tensor(1.0, dtype=torch.float64), 0.1])
def test_null_actions_across_types(value: Any) -> None:
    given = {"x": float(value)}
    exact: Any = tensor(0.1, dtype=torch.float64) if value == 0.1 else value
    assert query(program_of(BOW), "y", do={"x": exact}, given=given, graph=BOW).identified


def test_targets_drawn_afresh_are_not_in_two_worlds() -> None:
    """What z was, and y is, has to do with x, m; the action draws m anew, whatever it was."""
    graph = ADMG([("x", "m"), ("m", "z"), ("x", "y"), ("m", "y")], [("z", "y")])
    with pytest.raises(Unidentifiable) as caught:
        query(
            program_of(graph),
            "y",
            do={**SHIFT, "m": 1.0},
            given={"z": 0.0},
            graph=graph,
        )
    assert "m in two worlds" not in str(caught.value)


def test_a_guide_that_is_not_set_up_has_the_same_parameters_with_a_graph() -> None:
    def guide() -> None:
        normal("u", pyro.param("loc", lambda: torch.randn(())))

    answers = []
    for graph in (None, "program"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        options: dict[str, Any] = {"graph": graph, "allow_unidentified": True, "guide": guide}
        answers.append(query(confounded, "y", do=SET, num_samples=10, **options).draws)
    assert torch.equal(*answers)
