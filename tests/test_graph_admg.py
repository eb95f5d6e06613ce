"""ADMGs: the contract, and separation, projection and do-calculus against brute force."""

import itertools
import pickle
import random

import networkx as nx
import pytest
import torch
from graph_library import GRAPHS
from graph_models import DiscreteModel, brute_identifiable, m_separated_by_paths, random_admg

from pyro_causal.graph import ADMG, do_calculus
from pyro_causal.graph._bits import Bits, elements, mask_of

FRONT_DOOR = ADMG(directed=[("x", "m"), ("m", "y")], bidirected=[("x", "y")])
EXACT = 1e-12


def some(rng, names, most=2):
    """Up to so many of the names, in random order."""
    return rng.sample(names, rng.randint(0, min(most, len(names))))


def disjoint(rng, nodes, *, most=2):
    """Two nodes and a set of others."""
    a, b, *rest = rng.sample(nodes, len(nodes))
    return a, b, some(rng, rest, most)


def three_sets(rng, nodes):
    """Two sets that are not empty and one that may be, disjoint."""
    names = rng.sample(nodes, len(nodes))
    i = rng.randint(1, 2)
    j = i + rng.randint(1, 2)
    return names[:i], names[i:j], names[j : j + rng.randint(0, 3)]


def as_networkx(g):
    directed = nx.DiGraph(g.directed)
    bidirected = nx.Graph(g.bidirected)
    for graph in (directed, bidirected):
        graph.add_nodes_from(g.nodes)
    return directed, bidirected


# --- the contract ---------------------------------------------------------------------------------


def test_nodes_keep_the_order_in_which_they_are_named():
    g = ADMG([("b", "a"), ("c", "a")], [("d", "b")], nodes=["z", "c"])
    assert g.nodes == ("z", "c", "b", "a", "d")
    assert g.directed == (("c", "a"), ("b", "a"))
    assert g.bidirected == (("b", "d"),)
    assert ADMG().nodes == ADMG().directed == ADMG().districts() == ()


def test_names_may_be_one_or_several_and_come_back_as_frozensets():
    g = FRONT_DOOR
    assert g.parents("m") == g.parents(["m"]) == g.parents(iter(("m",))) == frozenset({"x"})
    assert g.parents({"x", "y"}) == frozenset({"m"})
    assert g.parents(()) == frozenset()
    long = ADMG([("treatment", "outcome")])
    assert long.parents("outcome") == frozenset({"treatment"})


@pytest.mark.parametrize("seed", range(40))
def test_sets_of_relatives_against_networkx(seed):
    rng = random.Random(seed)
    g = random_admg(rng, rng.randint(1, 9), directed=rng.random(), bidirected=rng.random())
    directed, bidirected = as_networkx(g)
    x = rng.sample(g.nodes, rng.randint(0, len(g.nodes)))

    def union(of):
        return frozenset().union(*(of(node) for node in x))

    assert g.parents(x) == union(directed.predecessors)
    assert g.children(x) == union(directed.successors)
    assert g.siblings(x) == union(bidirected.neighbors)
    assert g.ancestors(x) == union(lambda node: nx.ancestors(directed, node) | {node})
    assert g.descendants(x) == union(lambda node: nx.descendants(directed, node) | {node})
    assert g.district(x) == union(lambda node: nx.node_connected_component(bidirected, node))
    assert set(g.districts()) == set(map(frozenset, nx.connected_components(bidirected)))
    assert len(g.districts()) == nx.number_connected_components(bidirected)
    order = g.topological_order()
    assert sorted(order) == sorted(g.nodes)
    assert all(order.index(a) < order.index(b) for a, b in g.directed)


def test_topological_order_keeps_the_order_of_the_nodes_where_it_can():
    assert ADMG([("c", "a")], nodes=[*"abcd"]).topological_order() == ("b", "c", "a", "d")
    assert ADMG(nodes=[*"dbca"]).topological_order() == tuple("dbca")


def test_one_name_is_one_node_and_a_hidden_cause_has_no_direction():
    assert ADMG(nodes="zed").nodes == ("zed",)
    assert ADMG([], [{"a", "b"}]) == ADMG([], [("b", "a")])
    with pytest.raises(TypeError, match="In a set of nodes: expected a name, or several, got 3"):
        ADMG(nodes="a").parents(3)
    with pytest.raises(ValueError, match="At node '3', in a set of nodes: expected one of"):
        ADMG(nodes="a").parents([3])


@pytest.mark.parametrize("seed", range(20))
def test_surgery_against_its_definition(seed):
    rng = random.Random(seed)
    g = random_admg(rng, 6, directed=0.5, bidirected=0.5)
    x = frozenset(some(rng, g.nodes, 4))
    arcs = [pair for pair in g.bidirected if x.isdisjoint(pair)]
    assert g.intervene(x) == ADMG([e for e in g.directed if e[1] not in x], arcs, g.nodes)
    assert g.intervene(x).nodes == g.nodes
    kept = g.subgraph(x)
    inside = [[pair for pair in edges if x >= set(pair)] for edges in (g.directed, g.bidirected)]
    assert kept == ADMG(*inside, nodes=x)
    assert kept.nodes == tuple(name for name in g.nodes if name in x)
    assert g.intervene(()) == g == g.subgraph(g.nodes)


def test_equality_ignores_order_and_nothing_else():
    g = ADMG([("a", "b"), ("b", "c")], [("a", "c"), ("b", "c")])
    same = ADMG([("b", "c"), ("a", "b")], [("c", "b"), ("c", "a")], nodes=[*"cab"])
    assert g == same and hash(g) == hash(same) and g.nodes != same.nodes
    others = [
        ADMG([("a", "b"), ("b", "c")], [("a", "c")]),
        ADMG([("a", "b"), ("b", "c"), ("a", "c")], [("b", "c")]),
        ADMG([("b", "a"), ("b", "c")], [("a", "c"), ("b", "c")]),
        ADMG([("a", "b"), ("b", "c")], [("a", "c"), ("b", "c")], nodes=["d"]),
        "ADMG",
    ]
    assert all(g != other for other in others)
    assert len({g, same, *others}) == 6


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_survive_pickling(name):
    g = GRAPHS[name][0]
    again = pickle.loads(pickle.dumps(g))
    assert again == g and again.nodes == g.nodes and hash(again) == hash(g)


def test_repr_shows_edges_and_lone_nodes():
    g = ADMG([("x", "m"), ("m", "y")], [("y", "x")], nodes=["w"])
    assert repr(g) == "ADMG('x -> m; m -> y; x <-> y; w')"
    assert repr(ADMG()) == "ADMG('')"


def test_graphs_cannot_be_changed():
    message = "An ADMG cannot be changed: expected no assignment to 'nodes'. Do build a new one."
    with pytest.raises(AttributeError, match=message):
        FRONT_DOOR.nodes = ("a",)
    with pytest.raises(AttributeError, match="'nodes'. Do build"):
        del FRONT_DOOR.nodes
    with pytest.raises(AttributeError, match="'colour'. Do build"):
        FRONT_DOOR.colour = "red"


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ([("a", "b"), ("b", "a")], "(a -> b -> a|b -> a -> b)"),
        (
            [("r", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "s")],
            "(a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)",
        ),
    ],
)
def test_a_cycle_is_written_out(edges, cycle):
    with pytest.raises(ValueError, match=rf"form a cycle, {cycle}: .* Do drop one of its edges"):
        ADMG(edges)


def test_every_random_cycle_is_one():
    rng = random.Random(0)
    for _ in range(50):
        g = random_admg(rng, 6, directed=0.5)
        closing = [
            (b, a) for a in g.nodes for b in g.descendants(a) - {a} if (b, a) not in g.directed
        ]
        if not closing:
            continue
        edges = [*g.directed, rng.choice(closing)]
        with pytest.raises(ValueError, match="form a cycle") as caught:
            ADMG(edges)
        path = str(caught.value).split("cycle, ")[1].split(":")[0].split(" -> ")
        assert path[0] == path[-1] and len(set(path)) == len(path) - 1
        assert set(itertools.pairwise(path)) <= set(edges)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"directed": [("a", "a")]}, ValueError, "At node 'a', the edge a -> a: .* Do drop it"),
        ({"bidirected": [("a", "a")]}, ValueError, "the edge a <-> a: expected two different"),
        ({"directed": [("a", "b")] * 2}, ValueError, "The edge a -> b is given twice: .* Do drop"),
        ({"bidirected": [("b", "a"), ("a", "b")]}, ValueError, "The edge a <-> b is given twice"),
        ({"nodes": [*"aba"]}, ValueError, "The node a is given twice: expected it once"),
        ({"directed": [3]}, TypeError, "At the directed edge 3: expected a pair of names"),
        ({"directed": [{"a", "b"}]}, TypeError, "At the directed edge {.*}: expected a pair"),
        ({"directed": ["ab"]}, TypeError, r"At the directed edge 'ab': .* Do write \('a', 'b'\)"),
        ({"bidirected": [("a", "b", "c")]}, TypeError, r"At the bidirected edge \('a', 'b', 'c'\)"),
        ({"directed": [("a", 1)]}, TypeError, "At node 1: expected a name, got int. Do write a"),
        ({"nodes": [None]}, TypeError, "At node None: expected a name, got NoneType"),
    ],
)
def test_bad_graphs_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ADMG(**arguments)


@pytest.mark.parametrize(
    "ask",
    [
        FRONT_DOOR.parents,
        FRONT_DOOR.children,
        FRONT_DOOR.siblings,
        FRONT_DOOR.ancestors,
        FRONT_DOOR.descendants,
        FRONT_DOOR.district,
        FRONT_DOOR.intervene,
        FRONT_DOOR.subgraph,
        FRONT_DOOR.latent_projection,
        lambda names: FRONT_DOOR.m_separated("x", names),
        lambda names: do_calculus(FRONT_DOOR, 1, "x", z=names),
    ],
)
def test_unknown_and_repeated_names_are_refused(ask):
    with pytest.raises(ValueError, match="At node 'q', .* nodes x, m, y. Do add it to the graph"):
        ask(["m", "q"])
    with pytest.raises(ValueError, match="At node 'm', .* expected it once, got it twice. Do drop"):
        ask(["m", "m"])


def test_a_close_name_is_proposed():
    g = ADMG([("treatment", "outcome")])
    with pytest.raises(ValueError, match="At node 'outcom', .* Did you mean 'outcome'?"):
        g.parents("outcom")
    with pytest.raises(ValueError, match=r"nodes \(there are none\)"):
        ADMG().parents("x")


def test_sets_must_not_overlap():
    overlap = "At node 'm', in `given`: expected disjoint sets, but it is in `b`, too. Do drop it"
    with pytest.raises(ValueError, match=overlap):
        FRONT_DOOR.m_separated("x", ["m"], given="m")
    with pytest.raises(ValueError, match="At node 'x', in `b`: .* it is in `a`, too"):
        FRONT_DOOR.m_separated("x", "x")
    with pytest.raises(ValueError, match="At node 'y', in `w`: .* it is in `z`, too"):
        do_calculus(FRONT_DOOR, 2, "x", z="y", w="y")
    with pytest.raises(ValueError, match="`rule`: expected 1, 2 or 3, got 4. Do pick one"):
        do_calculus(FRONT_DOOR, 4, "x", z="y")


# --- bit masks ------------------------------------------------------------------------------------


def test_masks_and_their_elements():
    assert list(elements(0)) == [] and mask_of([]) == 0
    assert list(elements(0b10110)) == [1, 2, 4] and mask_of([4, 1, 2, 1]) == 0b10110
    g = ADMG(nodes=[f"v{i}" for i in range(100)])
    assert g.names(g.mask(["v99", "v3"])) == ("v3", "v99")


def test_closures_stay_within():
    bits = ADMG([("a", "b"), ("b", "c")], [("c", "d"), ("d", "e")], nodes="abcde").bits
    assert bits.ancestors(0b100, within=0b101) == 0b100
    assert bits.descendants(0b001, within=0b101) == 0b001
    assert bits.district(0b00100, within=0b10100) == 0b00100
    assert bits.districts(within=0b10101) == [0b00001, 0b00100, 0b10000]


@pytest.mark.parametrize("seed", range(20))
def test_cuts_against_their_definition(seed):
    rng = random.Random(seed)
    g = random_admg(rng, 6, directed=0.5, bidirected=0.5)
    into, out_of = frozenset(some(rng, g.nodes, 3)), frozenset(some(rng, g.nodes, 3))
    bits = g.bits.cut(g.mask(into), g.mask(out_of))
    expected = ADMG(
        [(a, b) for a, b in g.directed if b not in into and a not in out_of],
        [pair for pair in g.bidirected if into.isdisjoint(pair)],
        g.nodes,
    ).bits
    for part in ("parents", "children", "siblings", "all"):
        assert getattr(bits, part) == getattr(expected, part)
    assert sorted(bits.order) == list(range(6))


def test_the_order_of_cyclic_bits_leaves_out_what_is_stuck():
    assert Bits([0, 0b101, 0b010], [0, 0, 0]).order == (0,)


# --- separation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.2, 0.35, 0.5])
def test_separation_against_all_paths(density):
    """1,050 random graphs in all, two questions each."""
    rng = random.Random(int(100 * density))
    answers = []
    for _ in range(350):
        g = random_admg(rng, rng.randint(3, 7), directed=density, bidirected=rng.choice([0, 0.3]))
        for _ in range(2):
            a, b, given = three_sets(rng, g.nodes)
            if b:
                answers.append(m_separated_by_paths(g, a, b, given))
                assert g.m_separated(a, b, given) is answers[-1], (g, a, b, given)
    assert min(answers.count(True), answers.count(False)) > 100


def test_separation_without_hidden_causes_against_networkx():
    rng = random.Random(7)
    for _ in range(200):
        g = random_admg(rng, 7, bidirected=0.0)
        directed, _ = as_networkx(g)
        a, b, given = three_sets(rng, g.nodes)
        expected = nx.is_d_separator(directed, set(a), set(b), set(given))
        assert g.m_separated(a, b, given) is expected is g.m_separated(b, a, reversed(given))


def test_separation_in_print():
    g = ADMG([("a", "c")], [("c", "b")])
    assert g.m_separated("a", "b") and not g.m_separated("a", "b", "c")
    chain = ADMG([("c", "d")], [("a", "b"), ("b", "c")])
    assert chain.m_separated("a", "d") and not chain.m_separated("a", "d", ["b"])
    assert chain.m_separated("a", "d", ["b", "c"])
    assert chain.m_separated("a", [], "b") and chain.m_separated([], "a")


@pytest.mark.parametrize("seed", range(30))
def test_separated_nodes_are_independent_and_others_are_not(seed):
    rng = random.Random(seed)
    g = random_admg(rng, 5, directed=0.35, bidirected=0.25)
    model = DiscreteModel.random(g, rng, levels=2)
    for _ in range(6):
        a, b, given = disjoint(rng, g.nodes)
        both = model.effect([a, b], given=given)
        apart = model.effect(a, given=given)[:, None] * model.effect(b, given=given)[None]
        assert bool((both - apart).abs().max() < EXACT) is g.m_separated(a, b, given)


# --- latent projection ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_projection_keeps_separation(seed):
    rng = random.Random(seed)
    g = random_admg(rng, 7, directed=0.35, bidirected=0.2)
    hidden = rng.sample(g.nodes, rng.randint(1, 4))
    projected = g.latent_projection(hidden)
    assert projected.nodes == tuple(name for name in g.nodes if name not in hidden)
    for a, b in itertools.combinations(projected.nodes, 2):
        given = some(rng, [name for name in projected.nodes if name not in (a, b)], 3)
        assert m_separated_by_paths(projected, a, b, given) is m_separated_by_paths(g, a, b, given)


@pytest.mark.parametrize("seed", range(60))
def test_projection_against_its_definition(seed):
    """Edges stand for paths whose inner nodes are all hidden and none a collider."""
    rng = random.Random(seed)
    g = random_admg(rng, 6, directed=0.4, bidirected=0.25)
    hidden = frozenset(rng.sample(g.nodes, rng.randint(0, 4)))
    kept = [name for name in g.nodes if name not in hidden]
    directed, _ = as_networkx(g)

    def reached(start):
        """What directed paths through hidden nodes lead to."""
        inside = directed.subgraph(hidden | {start})
        behind = nx.descendants(inside, start) | {start}
        return {child for node in behind for child in directed[node]} - hidden

    tails = {source: reached(source) for source in g.nodes}
    arrows = [(a, b) for a in kept for b in tails[a]]
    ends = [({name} if name not in hidden else tails[name]) for name in g.nodes]
    shared = [tails[name] for name in hidden]
    pairs = [(tails_, tails_) for tails_ in shared]
    pairs += [(ends[g.nodes.index(a)], ends[g.nodes.index(b)]) for a, b in g.bidirected]
    arcs = {frozenset((a, b)) for left, right in pairs for a in left for b in right if a != b}
    assert g.latent_projection(hidden) == ADMG(arrows, map(tuple, arcs), kept)


def test_projection_in_any_order_is_the_same():
    rng = random.Random(3)
    for _ in range(40):
        g = random_admg(rng, 7)
        hidden = rng.sample(g.nodes, 3)
        step_by_step = g
        for name in hidden:
            step_by_step = step_by_step.latent_projection(name)
        assert step_by_step == g.latent_projection(hidden)
    assert g.latent_projection(()) == g and g.latent_projection(g.nodes) == ADMG()


@pytest.mark.parametrize("seed", range(12))
def test_projection_keeps_effects(seed):
    """Where the projection's formula holds, it gives the effect of the model with hidden nodes."""
    from pyro_causal.graph import identify

    rng = random.Random(seed)
    g = random_admg(rng, 6, directed=0.45, bidirected=0.1)
    hidden = rng.sample(g.nodes, 2)
    projected = g.latent_projection(hidden)
    model = DiscreteModel.random(g, rng)
    table = model.marginal((), projected.nodes)
    for x, y in itertools.permutations(projected.nodes, 2):
        if brute_identifiable(projected, y, x):
            value = identify(projected, y, do=x).evaluate(table, do={x: 1})
            assert torch.allclose(value, model.effect(y, x)[:, 1], atol=1e-10, rtol=0)


# --- do-calculus ----------------------------------------------------------------------------------


def sides(model, rule, y, x, z, w):
    """Both sides of a rule, `[y, x, z, w]`."""
    without = model.effect(y, x, w).unsqueeze(2)
    if rule == 1:
        return model.effect(y, x, [z, *w]), without
    acting = model.effect(y, [x, z], w)
    return acting, model.effect(y, x, [z, *w]) if rule == 2 else without


@pytest.mark.parametrize("rule", [1, 2, 3])
def test_do_calculus_against_numbers(rule):
    """Where a rule applies, both sides agree in all models; else they differ in generic ones."""
    rng = random.Random(rule)
    applied = []
    for _ in range(200):
        g = random_admg(rng, rng.randint(4, 5), directed=0.4, bidirected=0.2)
        y, x, z, *rest = rng.sample(g.nodes, len(g.nodes))
        w = some(rng, rest, 1)
        left, right = sides(DiscreteModel.random(g, rng), rule, y, x, z, w)
        applied.append(do_calculus(g, rule, y, x, z, w))
        gap = float((left - right).abs().max())
        assert gap < EXACT if applied[-1] else gap > 1e-6, (g, y, x, z, w, gap)
    assert min(applied.count(True), applied.count(False)) > 50


def test_do_calculus_in_print():
    bow = ADMG([("x", "y")], [("x", "y")])
    assert not do_calculus(bow, 2, "y", z="x") and not do_calculus(bow, 3, "y", z="x")
    assert do_calculus(bow, 3, "x", z="y") and not do_calculus(bow, 1, "x", z="y")
    assert do_calculus(FRONT_DOOR, 2, "m", z="x")
    assert do_calculus(FRONT_DOOR, 2, "y", x="x", z="m")
    assert not do_calculus(FRONT_DOOR, 2, "y", z="m")
    assert do_calculus(FRONT_DOOR, 2, "y", z="m", w="x")
    assert do_calculus(FRONT_DOOR, 3, "y", x="m", z="x")
    # rule 3 keeps the arrows into what causes w
    collider = ADMG([("z", "w")], [("z", "y")])
    assert do_calculus(collider, 3, "y", z="z")
    assert not do_calculus(collider, 3, "y", z="z", w="w")
