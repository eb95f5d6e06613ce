"""Conversion from and to networkx and DAGitty."""

import itertools
import random

import networkx as nx
import pytest
from graph_library import ASIA, GRAPHS, parse
from graph_models import random_admg

from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.convert import from_dagitty, from_networkx, to_dagitty, to_networkx

MANY = [random_admg(random.Random(seed), seed, directed=0.4) for seed in range(12)]


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("g", [*(g for g, _ in GRAPHS.values()), *MANY], ids=repr)
def test_round_trips(g):
    for again in (from_networkx(*to_networkx(g)), from_dagitty(to_dagitty(g))):
        assert again == g and again.nodes == g.nodes


def test_any_name_survives_but_one_with_quotation_marks():
    names = ["two words", "x[1]", "a->b", "{", "dag", "größe", "semi;colon", "#", "", "1.5"]
    g = ADMG(itertools.pairwise(names), [(names[0], names[-1])], nodes=names)
    assert from_dagitty(to_dagitty(g)) == g
    with pytest.raises(ValueError, match="At node 'a\"b': expected a name without quotation marks"):
        to_dagitty(ADMG(nodes=['a"b']))


# --- networkx -------------------------------------------------------------------------------------


def test_networkx_graphs_have_all_nodes_and_the_edges_of_their_kind():
    directed, bidirected = to_networkx(ADMG([("x", "y")], [("y", "z")], nodes=["w"]))
    assert type(directed) is nx.DiGraph and type(bidirected) is nx.Graph
    assert list(directed) == list(bidirected) == ["w", "x", "y", "z"]
    assert list(directed.edges) == [("x", "y")] and list(bidirected.edges) == [("y", "z")]


def test_networkx_graphs_keep_the_order_of_their_nodes():
    directed = nx.DiGraph()
    directed.add_nodes_from("cab")
    directed.add_edge("b", "d", weight=2.0)
    assert from_networkx(directed).nodes == ("c", "a", "b", "d")
    assert from_networkx(directed, nx.Graph([("e", "a")])).nodes == ("c", "a", "b", "d", "e")


def test_hidden_nodes_of_a_networkx_graph_can_be_projected_out():
    directed = nx.DiGraph([("u", "x"), ("u", "y"), ("x", "y")])
    assert from_networkx(directed).latent_projection("u") == ADMG([("x", "y")], [("x", "y")])


@pytest.mark.parametrize(
    ("graphs", "error", "message"),
    [
        (
            [nx.Graph()],
            TypeError,
            "`directed`: expected a networkx.DiGraph, got a Graph. Do direct",
        ),
        (
            [nx.DiGraph(), nx.DiGraph()],
            TypeError,
            r"`bidirected`: expected a networkx.Graph, got a DiGraph. Do call its to_undirected",
        ),
        ([nx.DiGraph([(0, 1)])], TypeError, "At node 0: expected a name, got int"),
        (
            [nx.DiGraph([("a", "b"), ("b", "a")])],
            ValueError,
            "form a cycle, (a -> b -> a|b -> a -> b)",
        ),
        ([nx.DiGraph([("a", "a")])], ValueError, "At node 'a', the edge a -> a"),
        ([nx.MultiDiGraph([("a", "b")] * 2)], ValueError, "The edge a -> b is given twice"),
    ],
)
def test_bad_networkx_graphs_are_refused(graphs, error, message):
    with pytest.raises(error, match=message):
        from_networkx(*graphs)


# --- DAGitty --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "graph"),
    [
        ("", ""),
        ("dag {}", ""),
        ("mg{ x <-> y }", "x <-> y"),
        ("dag { x -> y; x <-> y; z }", "x -> y, x <-> y, z"),
        ("x->y<-z<->w", "x -> y, z -> y, z <-> w"),
        ("x -> y -> z\ny -> z", "x -> y, y -> z"),
        ("x <-> y <-> x", "x <-> y"),
        ("a b\nc,d;e", "a, b, c, d, e"),
        ("{a b} -> c", "a -> c, b -> c"),
        ("a -> {b c} <-> {d}", "a -> b, a -> c, b <-> d, c <-> d"),
        ("{a -> b} -> c", "a -> b, a -> c, b -> c"),
        ("DiGraph { a -> b } // done", "a -> b"),
        ("x -> y # a remark -> z\n/* x\n-> w */", "x -> y"),
        ('dag { bb="-1,0,2,3" x [pos="0,1",exposure] y [outcome] x -> y [beta=0.5] }', "x -> y"),
        ('x [adjusted, pos="1,2]"]', "x"),
        ("dag -> x", "dag -> x"),
        ("x_1 -> y.2", "x_1 -> y.2"),
        ("u [latent] u -> {x y}", "x <-> y"),
        ('"u" [pos="0,0", Latent]\nx -> u -> y', "x -> y"),
        ("{u v} [latent] u -> x <- v", "x"),
    ],
)
def test_dagitty_text(text, graph):
    assert from_dagitty(text) == (parse(graph) if graph else ADMG())


def test_names_in_quotes():
    assert from_dagitty('"my node" -> "x->y"') == ADMG([("my node", "x->y")])


def test_latent_nodes_are_projected_out():
    text = to_dagitty(ASIA)
    for name in ("smoke", "bronc"):
        text = text.replace(f"  {name}\n", f"  {name} [latent]\n")
    g = from_dagitty(text)
    assert g == ASIA.latent_projection(["smoke", "bronc"]) and ("lung", "dysp") in g.bidirected


def test_a_repr_can_be_read():
    for g in MANY:
        assert from_dagitty(repr(g)[6:-2]) == g


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x -- y",
            "At '--' after 'x', line 1 .*: expected a node or an edge ->, <- or <->. Do mend",
        ),
        ("x\n@-> y", "At '@->' after 'x', line 2"),
        (
            "x ->",
            "At 'the end' after 'x ->', line 1 .*: expected a node after the edge. Do complete",
        ),
        ("x -> -> y", "expected a node after the edge"),
        ("-> y", "At '->', line 1 .*: expected a node or an edge"),
        ("dag { x -> y", "At 'the end' after 'x -> y', .*: expected a closing brace. Do add }"),
        ("x -> {a b", "At 'the end' after .*: expected a closing brace"),
        ("x }", "At '}' after 'x', line 1 .*: expected nothing after the last brace. Do drop it"),
        ("dag { x } y", "At 'y' after '{ x }', .*: expected nothing after the last brace"),
        (
            "pag { x }",
            "At 'pag', line 1 .*: expected a graph of type dag. Do orient it and write dag",
        ),
        ("x = y", "At '=' after 'x', line 1"),
        ("x -> y [latent", r"At '\[' after 'x -> y'"),
        (
            "x -> u [latent]",
            r"At '\[latent\]' after 'x -> u', .*: expected marks of one node. Do wr",
        ),
        (
            "s [selected]",
            r"At '\[selected\]' after 's', .*: expected no selected nodes. Do drop the",
        ),
        ("x -> y -> x", "form a cycle"),
        ("x -> x", "At node 'x', the edge x -> x: expected two different nodes"),
    ],
)
def test_bad_dagitty_text_is_refused_by_its_piece(text, message):
    with pytest.raises(ValueError, match=message):
        from_dagitty(text)


@pytest.mark.parametrize(
    "frame", ["dag", "digraph G", 'dag "My title"', "strict digraph", 'strict digraph "G"', "DAG x"]
)
def test_frames_may_have_titles(frame):
    assert from_dagitty(f"{frame} {{ a -> b; c }}") == ADMG([("a", "b")], nodes=["c"])
    with pytest.raises(
        ValueError, match="At 'pdag': expected a graph|line 1 of the graph: expected"
    ):
        from_dagitty("pdag G { a -> b }")
