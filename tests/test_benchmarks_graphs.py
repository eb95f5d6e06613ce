"""The benchmark at toy size: its checks can fail, and its numbers are all there.

No test looks at a time.
"""

import importlib
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.expression import Dataset, Fraction, Probability, Product, Sum, Var
from pyro_causal.graph.hgraph import training_plan
from pyro_causal.graph.identify import identify

NODES, GRAPHS = 12, 3
FRONT_DOOR = ADMG([("x", "m"), ("m", "y")], [("x", "y")])
NAPKIN = ADMG([("w", "z"), ("z", "x"), ("x", "y")], [("w", "x"), ("w", "y")])


@pytest.fixture(scope="module", autouse=True)
def path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield
        for name in ("graphs", "linear_gaussian", "y0_engine"):
            sys.modules.pop(name, None)


@pytest.fixture
def bench(path):
    return importlib.import_module("graphs")


@pytest.fixture
def gauss(path):
    return importlib.import_module("linear_gaussian")


@pytest.fixture
def y0_engine(path):
    pytest.importorskip("y0", reason="needs the bench extra")
    return importlib.import_module("y0_engine")


def variables(names):
    return frozenset(Var(name.rstrip("'"), name.count("'")) for name in names.split())


def p(of, given=""):
    return Probability(variables(of), variables(given))


# --- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "arcs"), [("sparse", 18), ("dense", 48)])
def test_graphs_have_the_edges_of_their_family(bench, family, arcs):
    graphs = [bench.random_graph(family, NODES, seed) for seed in range(4)]
    assert {(len(g.nodes), len(g.directed), len(g.bidirected)) for g in graphs} == {
        (NODES, arcs, NODES // 3)
    }
    assert len(set(graphs)) == 4
    assert graphs[0] == bench.random_graph(family, NODES, 0)
    assert any(g.nodes.index(a) > g.nodes.index(b) for g in graphs for a, b in g.directed)


@pytest.mark.parametrize("kind", ["single", "joint"])
def test_queries_are_about_ancestors(bench, kind):
    g = bench.random_graph("sparse", NODES, 0)
    queries = bench.random_queries(g, kind, 0)
    assert len(queries) == bench.QUERIES and len(set(queries)) > 1
    for query in queries:
        assert (len(query.outcome), len(query.do)) == bench.KINDS[kind]
        assert not set(query.outcome) & set(query.do)
        assert set(query.do) <= g.ancestors(query.outcome)


# --- the truth ------------------------------------------------------------------------------------


def test_truth_is_what_the_equations_give(gauss):
    """Through the front door: y = b (a x + noise) + noise, with a hidden cause in the latter."""
    model = gauss.Model(FRONT_DOOR, 0)
    x, m, y = (model.index[name] for name in ("x", "m", "y"))
    a, b = -model.equations[m, x], -model.equations[y, m]
    variance = b**2 * model.noise[m, m] + model.noise[y, y]
    form = model.truth("y", "x")
    assert form.variables == (Var("x"), Var("y"))
    expected = np.array([[(a * b) ** 2, -a * b], [-a * b, 1.0]]) / variance
    np.testing.assert_allclose(form.matrix, expected, atol=1e-12)
    assert model.noise[x, y] != 0


def test_covariance_is_that_of_samples(gauss):
    model = gauss.Model(NAPKIN, 1)
    noise = np.random.default_rng(0).multivariate_normal(np.zeros(4), model.noise, 100_000)
    samples = np.linalg.solve(model.equations, noise.T)
    np.testing.assert_allclose(np.cov(samples), model.covariance, atol=0.05)


def test_right_formulas_agree_and_wrong_ones_do_not(gauss):
    model = gauss.Model(FRONT_DOOR, 0)
    adjusted = Sum(variables("x"), Product((p("y", "m x"), p("x"))))
    right = Sum(variables("m"), Product((p("m", "x"), adjusted)))
    assert model.agrees(right, "y", "x")
    assert not model.agrees(p("y", "x"), "y", "x")
    assert not model.agrees(p("y", "x m"), "y", "x")

    model = gauss.Model(NAPKIN, 0)
    assert model.agrees(identify(NAPKIN, "y", do="x").expression, "y", "x")
    assert not model.agrees(p("y", "x"), "y", "x")


def test_infinite_sums_do_not_agree(gauss):
    g = ADMG([("x", "y")], nodes=["w"])
    model = gauss.Model(g, 0)
    assert model.agrees(p("y", "x"), "y", "x")
    assert not model.agrees(Sum(variables("w"), p("y", "x")), "y", "x")
    flat = Product((p("y", "x"), Fraction(p("w"), p("w"))))
    assert model.agrees(flat, "y", "x")
    assert not model.agrees(Sum(variables("w"), flat), "y", "x")


def test_a_fraction_is_a_conditional(gauss):
    model = gauss.Model(FRONT_DOOR, 0)
    gap = gauss.add(
        [(1.0, model.value(Fraction(p("y m"), p("m")))), (-1.0, model.value(p("y", "m")))]
    )
    np.testing.assert_allclose(gap.matrix, 0.0, atol=1e-12)


def test_primes_tell_bound_variables_apart(gauss):
    model = gauss.Model(FRONT_DOOR, 0)
    term = Product((p("m", "x"), p("y", "m x'"), p("x'")))
    assert model.agrees(Sum(variables("m x'"), term), "y", "x")
    assert not model.agrees(
        Sum(variables("m x"), Product((p("m", "x"), p("y", "m x"), p("x")))), "y", "x"
    )


def test_only_observational_terms_have_a_value(gauss):
    model = gauss.Model(FRONT_DOOR, 0)
    experiment = Probability(variables("y"), dataset=Dataset(frozenset("x")))
    for term in (experiment, Probability(variables("y"), do=variables("x"))):
        with pytest.raises(ValueError, match="Not a term of observational data"):
            model.agrees(term, "y", "x")
    with pytest.raises(ValueError, match="Not a formula that is ever right"):
        model.value(None)


def test_wrong_answers_are_not_timed(bench, gauss, monkeypatch):
    model, query = gauss.Model(FRONT_DOOR, 0), bench.Query(FRONT_DOOR, ("y",), ("x",))
    assert bench.checked(query, model) == identify(FRONT_DOOR, "y", do="x").expression
    bow = ADMG([("x", "y")], [("x", "y")])
    assert bench.checked(bench.Query(bow, ("y",), ("x",)), gauss.Model(bow, 0)) is None
    with monkeypatch.context() as patch:
        patch.setattr(bench, "is_identifiable", lambda *query: False)
        with pytest.raises(RuntimeError, match="is_identifiable and identify differ on"):
            bench.checked(query, model)
    with monkeypatch.context() as patch:
        wrong = identify(ADMG([("x", "y")]), "y", do="x")
        patch.setattr(bench, "identify", lambda *query: wrong)
        with pytest.raises(RuntimeError, match=r"P\(y \| x\) is not the answer to"):
            bench.checked(query, model)


# --- y0 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("g", "outcome", "identifiable", "fault"),
    [
        (FRONT_DOOR, "y", True, None),
        (ADMG([("x", "y")], [("x", "y")]), "y", False, None),
        (FRONT_DOOR, "y", False, "verdict"),  # as if we said so
        (NAPKIN, "y", True, "formula"),
        (ADMG([("x", "y")], nodes=["w"]), "yw", True, "crash"),
        (ADMG([("x", "y")], nodes=["w"]), "w", True, None),
    ],
)
def test_faults_of_y0(y0_engine, gauss, g, outcome, identifiable, fault):
    model = gauss.Model(g, 0)
    found = y0_engine.reply(g, outcome, "x", identifiable=identifiable, model=model)
    assert found.fault == fault
    assert (found.characters > 0) == (identifiable and fault != "crash")


def test_formulas_of_y0_are_taken_as_they_are(y0_engine):
    from y0 import dsl

    x, y, z = map(dsl.Variable, "xyz")
    formula = dsl.Sum(dsl.Fraction(dsl.P(y | (x, z)) * dsl.P(z), dsl.One()), frozenset([z]))
    expected = Sum(variables("z"), Fraction(Product((p("y", "x z"), p("z"))), Product(())))
    assert y0_engine.translated(formula) == expected
    with pytest.raises(TypeError, match="Not a part of a formula that is known: Zero"):
        y0_engine.translated(dsl.Zero())


# --- the whole ------------------------------------------------------------------------------------


def numbers(results):
    """All numbers of nested results."""
    for entry in results.values():
        if isinstance(entry, dict):
            yield from numbers(entry)
        else:
            yield from entry if isinstance(entry, list) else [entry]


@pytest.mark.parametrize("y0", [False, True])
def test_benchmark(bench, y0, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    if y0:
        pytest.importorskip("y0", reason="needs the bench extra")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out, picture = tmp_path / "graphs.json", tmp_path / "modules.png"
    sizes = ["--nodes", str(NODES), "--graphs", str(GRAPHS), "--rounds", "1"]
    results = bench.main(bench.parse([*sizes, "--out", str(out), "--plot", str(picture)]))
    faults = [row.pop("faults") for row in results["y0"].values()]  # these may be zero
    assert all(math.isfinite(number) and number > 0 for number in numbers(results))
    cells = [f"{family}, {kind}" for family in bench.FAMILIES for kind in bench.KINDS]
    assert list(results["verdict"]) == list(results["estimand"]) == cells
    assert list(results["y0"]) == (cells if y0 else [])
    assert all(set(row) == {"crash", "verdict", "formula"} for row in faults)
    assert list(results["plan"]) == list(results["modules"]) == list(bench.FAMILIES)
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*cells, *bench.TARGETS])
    assert all(f"{family}, matched" in printed for family in bench.FAMILIES)
    assert ("wrong formulas" in printed) == y0
    record = json.loads(out.read_text())
    assert (record["nodes"], record["graphs"]) == (NODES, GRAPHS)
    assert record["estimand"] == results["estimand"]
    assert ("y0" in record["versions"]) == y0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_lengths_are_compared_where_y0_is_right(bench):
    reply = importlib.import_module("y0_engine").Reply
    first = [reply(None, 4), reply("formula", 99), reply(None)], [2, 2, None]
    second = [reply(None, 9), reply(None, 40), reply("crash")], [3, 4, 5]
    found = [
        bench.Answers([], lengths, replies, None, None) for replies, lengths in (first, second)
    ]
    assert bench.compared(found) == {
        "queries": 3,
        "ours": 3,
        "y0": 9,
        "ratio of medians": 3.0,
        "median of ratios": 3.0,
    }


def test_modules_are_counted(bench):
    plans = [training_plan(bench.random_graph("dense", NODES, seed)) for seed in range(GRAPHS)]
    found = bench.modules("dense", NODES, GRAPHS)
    assert found["module"]["all"] == [max(len(s.module) for s in plan) for plan in plans]
    largest = [max(len(s.module | s.ancestors) for s in plan) for plan in plans]
    assert found["matched"] == {"mean": sum(largest) / GRAPHS, "all": largest}
    assert found["matched"]["mean"] > found["module"]["mean"]
