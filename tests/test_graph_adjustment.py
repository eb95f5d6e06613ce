"""Back-door and front-door sets against their definitions, over all sets, and against numbers."""

import itertools
import random

import networkx as nx
import pytest
import torch
from graph_library import GRAPHS, parse
from graph_models import DiscreteModel, m_separated_by_paths, random_admg

from pyro_causal.graph import ADMG
from pyro_causal.graph.adjustment import (
    backdoor_set,
    frontdoor_set,
    is_backdoor_set,
    is_frontdoor_set,
)

EXACT = 1e-9


def subsets(names):
    return (
        frozenset(part) for k in range(len(names) + 1) for part in itertools.combinations(names, k)
    )


def others(g, *used):
    """The rest of the nodes, sorted."""
    return sorted(set(g.nodes).difference(*used))


def without_tails(g, nodes):
    return ADMG([edge for edge in g.directed if edge[0] not in nodes], g.bidirected, g.nodes)


def descendants(g, nodes):
    directed = nx.DiGraph(g.directed)
    directed.add_nodes_from(g.nodes)
    return set(nodes).union(*(nx.descendants(directed, node) for node in nodes))


def meets_backdoor(g, x, y, z):
    """Definition 3.3.1 of Pearl 2009; edges out of several treatments are cut first."""
    graph = g if len(x) == 1 else without_tails(g, x)
    return not z & descendants(g, x) and m_separated_by_paths(graph, x, y, z, backdoor=True)


def meets_frontdoor(g, x, y, z):
    """Definition 3.3.3 of Pearl 2009; edges out of several nodes of the set are cut first."""
    directed = nx.DiGraph(g.directed)
    directed.add_nodes_from(g.nodes)
    paths = (p for a in x for b in y for p in nx.all_simple_paths(directed, a, b))
    graph_x = g if len(x) == 1 else without_tails(g, x)
    graph_z = g if len(z) == 1 else without_tails(g, z)
    return (
        all(z.intersection(path) for path in paths)
        and m_separated_by_paths(graph_x, x, z, backdoor=True)
        and m_separated_by_paths(graph_z, z, y, x, backdoor=True)
    )


def graphs(seed, number, *, treatments=1, outcomes=1):
    rng = random.Random(seed)
    for _ in range(number):
        densities = {"directed": rng.uniform(0.2, 0.5), "bidirected": rng.uniform(0.0, 0.3)}
        g = random_admg(rng, rng.randint(4, 6), **densities)
        x = rng.sample(g.nodes, treatments)
        yield g, x, rng.sample(others(g, x), outcomes)


SIZES = [(1, 1), (2, 1), (1, 2), (2, 2)]


def adjusted(model, x, y, z):
    r"""`[y, x]`: :math:`\sum_z P(y \mid x, z) P(z)`."""
    return torch.tensordot(model.effect(y, given=[*x, *z]), model.effect(z), len(z))


def through(model, x, y, z):
    r"""`[y, x]`: :math:`\sum_z P(z \mid x) \sum_{x'} P(y \mid x', z) P(x')`."""
    inner = model.effect(y, given=[*z, *x])  # [y, z, x']
    acted = torch.tensordot(inner, model.effect(x), len(x))
    return torch.tensordot(acted, model.effect(z, given=x), len(z))


# --- definitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("treatments", "outcomes"), SIZES)
def test_backdoor_sets_against_the_definition(treatments, outcomes):
    answers = []
    for g, x, y in graphs(1, 300, treatments=treatments, outcomes=outcomes):
        good = {z for z in subsets(others(g, x, y)) if meets_backdoor(g, x, y, z)}
        for z in subsets(others(g, x, y)):
            answers.append(is_backdoor_set(g, x, y, z))
            assert answers[-1] is (z in good), (g, x, y, z)
        check_least(backdoor_set(g, x, y), good, g)
    assert min(answers.count(True), answers.count(False)) > 100


@pytest.mark.parametrize(("treatments", "outcomes"), SIZES)
def test_frontdoor_sets_against_the_definition(treatments, outcomes):
    answers = []
    for g, x, y in graphs(1, 300, treatments=treatments, outcomes=outcomes):
        good = {z for z in subsets(others(g, x, y)) if meets_frontdoor(g, x, y, z)}
        for z in subsets(others(g, x, y)):
            answers.append(is_frontdoor_set(g, x, y, z))
            assert answers[-1] is (z in good), (g, x, y, z)
        check_least(frontdoor_set(g, x, y), good, g)
    assert min(answers.count(True), answers.count(False)) > 100


def check_least(found, good, g):
    """The set is a good one without a smaller part that is, and none is found if there is none."""
    if found is None:
        assert not good, g
    else:
        assert found in good and not any(z < found for z in good), (g, found)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "formula"), [(backdoor_set, adjusted), (frontdoor_set, through)]
)
@pytest.mark.parametrize(("treatments", "outcomes"), SIZES)
def test_the_formula_holds(search, formula, treatments, outcomes):
    rng = random.Random(1)
    checked = 0
    for g, x, y in graphs(2, 500, treatments=treatments, outcomes=outcomes):
        z = search(g, x, y)
        if z is None:
            continue
        model = DiscreteModel.random(g, rng, levels={name: rng.choice([2, 3]) for name in g.nodes})
        value = formula(model, x, y, sorted(z))
        assert torch.allclose(value, model.effect(y, x), atol=EXACT, rtol=0), (g, x, y, z)
        checked += bool(z)
    assert checked >= 3


def test_a_backdoor_set_exists_whenever_adjustment_works():
    """For one treatment and one outcome that it affects, adjustment for anything included."""
    rng = random.Random(2)
    works = 0
    for g, x, y in graphs(3, 150):
        if y[0] not in descendants(g, x):
            continue
        model = DiscreteModel.random(g, rng, levels=3)
        truth = model.effect(y, x)
        right = any(
            torch.allclose(adjusted(model, x, y, sorted(z)), truth, atol=EXACT, rtol=0)
            for z in subsets(others(g, x, y))
        )
        assert right is (backdoor_set(g, x, y) is not None), (g, x, y)
        works += right
    assert works > 15


# --- in print -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x", "y", "back", "front"),
    [
        ("cause", "x", "y", "", None),
        ("back door", "x", "y", "z", None),
        ("back door with hidden cause", "x", "y", "z", None),
        ("front door", "x", "y", None, "z"),
        ("front door", "z", "y", "x", None),
        ("bow", "x", "y", None, None),
        ("M", "x", "y", "", None),
        ("napkin", "x", "y", None, None),
        ("Verma", "v2", "v4", None, "v3"),
        ("Verma", "v1", "v3", "", "v2"),
        ("long front door", "x", "y", None, "m2"),
        ("long front door", "x", "m1 y", None, None),
        ("plan", "x2", "y", "z x1", None),
        ("ASIA", "lung", "dysp", None, "either"),
        ("ASIA", "either", "dysp", "lung", None),
        ("two bows", "x1 x2", "y2", None, None),
    ],
)
def test_sets_of_the_literature(name, x, y, back, front):
    g = GRAPHS[name][0]
    expected = [None if names is None else frozenset(names.split()) for names in (back, front)]
    assert [
        backdoor_set(g, x.split(), y.split()),
        frontdoor_set(g, x.split(), y.split()),
    ] == expected


def test_the_figure_of_the_backdoor_criterion():
    """Pearl 2009, figure 3.4: {x3, x4} and {x4, x5} do, {x4} and {x6} do not."""
    g = parse(
        "x1 -> x3, x1 -> x4, x2 -> x4, x2 -> x5, x3 -> xi, x4 -> xi, x4 -> xj, x5 -> xj,"
        "xi -> x6, x6 -> xj"
    )
    for names, good in (("x3 x4", True), ("x4 x5", True), ("x4", False), ("x3 x4 x6", False)):
        assert is_backdoor_set(g, "xi", "xj", names.split()) is good
    assert backdoor_set(g, "xi", "xj") in (frozenset({"x3", "x4"}), frozenset({"x4", "x5"}))


def test_a_descendant_is_no_backdoor_set():
    g = parse("x -> y, x -> w")
    assert is_backdoor_set(g, "x", "y", ()) and not is_backdoor_set(g, "x", "y", "w")


def test_treatments_block_paths_for_each_other():
    g = parse("x2 -> x1, x2 -> y, x1 -> y")
    assert backdoor_set(g, ["x1", "x2"], "y") == frozenset()


def test_no_effect_needs_no_mediator():
    g = parse("y -> x, x <-> y")
    assert frontdoor_set(g, "x", "y") == frozenset() and backdoor_set(g, "x", "y") is None


def test_large_graphs_are_quick():
    """Two hundred nodes, where the sets cannot be listed."""
    rng = random.Random(3)
    names = [f"v{i}" for i in range(200)]
    pairs = list(itertools.combinations(names, 2))
    g = ADMG(rng.sample(pairs, 400), rng.sample(pairs, 20), names)
    found = [backdoor_set(g, x, "v199") for x in names[100:199]]
    assert sum(z is not None for z in found) > 20
    for x, z in zip(names[100:199], found, strict=True):
        assert z is None or is_backdoor_set(g, x, "v199", z)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [backdoor_set, frontdoor_set])
@pytest.mark.parametrize("check", [is_backdoor_set, is_frontdoor_set])
def test_bad_sets_are_refused(search, check):
    g = GRAPHS["front door"][0]
    with pytest.raises(ValueError, match="At node 'q', in `treatment`: .* Do add it to the graph"):
        search(g, "q", "y")
    with pytest.raises(ValueError, match="At node 'x', in `outcome`: .* in `treatment`, too. Do"):
        search(g, "x", ["x", "y"])
    with pytest.raises(ValueError, match="At node 'y', in `adjustment`: .* in `outcome`, too"):
        check(g, "x", "y", ["y"])
    with pytest.raises(ValueError, match="`treatment`: expected at least one node, got none. Do"):
        search(g, (), "y")
    with pytest.raises(ValueError, match="`outcome`: expected at least one node"):
        check(g, "x", (), "z")
