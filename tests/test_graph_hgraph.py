"""Training plans against the do-calculus, brute force, and enumerated models."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import networkx
import pytest
import torch
from graph_library import ASIA, SACHS, parse
from graph_models import DiscreteModel, random_admg
from torch import Tensor

from pyro_causal.graph.admg import ADMG, do_calculus
from pyro_causal.graph.hgraph import TrainingStep, h_graph, training_plan

Nodes = frozenset[str]
Dataset = Nodes | tuple[Nodes, Nodes]
OBSERVATIONAL: Nodes = frozenset()


def shown(plan: Iterable[TrainingStep]) -> list[str]:
    return [str(step) for step in plan]


def edges(graph: "networkx.DiGraph[Nodes]") -> set[tuple[str, str]]:
    return {(" ".join(sorted(a)), " ".join(sorted(b))) for a, b in graph.edges}


# --- graphs with names ----------------------------------------------------------------------------


def test_what_lies_in_a_front_door_comes_first():
    first, second = training_plan(parse("digit -> image, image -> color, digit <-> color"))
    assert first == (frozenset({"image"}), frozenset(), frozenset({"digit"}), frozenset())
    assert second.module == {"digit", "color"}
    assert second.ancestors == {"image"}
    assert second.parents == frozenset()
    assert second.matched == {"digit", "image", "color"}


def test_all_mediators_are_ancestors_not_the_parents_alone():
    g = parse("x -> a, a -> b, b -> y, x <-> y")
    assert edges(h_graph(g)) == {("a", "x y"), ("b", "x y")}
    assert training_plan(g)[-1] == ({"x", "y"}, {"a", "b"}, set(), frozenset())


def test_a_back_door_into_one_parent_is_no_reason_to_wait():
    """Rule 2 fails for glasses alone, and holds for all parents of image at once."""
    g = parse("sex -> glasses, sex -> image, glasses -> image, sex <-> glasses")
    assert not do_calculus(g, 2, "image", z="glasses")
    assert not edges(h_graph(g))
    assert shown(training_plan(g)) == [
        "{glasses, sex}: P(glasses, sex)",
        "{image}: P(image | glasses, sex)",
    ]


def test_asia_without_smoke_and_bronchitis():
    g = ASIA.latent_projection(["smoke", "bronc"])
    alone = {frozenset({name}) for name in ("asia", "tub", "either", "xray")}
    assert set(h_graph(g)) == {frozenset({"lung", "dysp"}), *alone}
    assert edges(h_graph(g)) == {("either", "dysp lung")}
    (step,) = (step for step in training_plan(g) if "lung" in step.module)
    assert step == ({"lung", "dysp"}, {"either"}, {"tub"}, frozenset())
    # Data without the two say the same of the whole graph, and join what is behind lung and dysp.
    (step,) = (s for s in training_plan(ASIA, [((), g.nodes)]) if "lung" in s.module)
    assert step[:3] == ({"lung", "dysp", "smoke", "bronc"}, {"either"}, {"tub"})
    assert step.matched == {"lung", "dysp", "either"}


def test_sachs_has_no_order():
    assert not do_calculus(SACHS, 2, "Akt", z="Erk")  # for PKA acts on both
    graph = h_graph(SACHS)
    assert set(graph) == {frozenset({name}) for name in SACHS.nodes}
    assert not graph.edges
    assert "{Akt}: P(Akt | Erk, PKA)" in shown(training_plan(SACHS))


def test_sachs_with_a_hidden_cause_and_an_experiment():
    g = ADMG(SACHS.directed, [("Mek", "Akt")])
    plan = training_plan(g, [OBSERVATIONAL, {"Mek"}])
    assert shown(step for step in plan if "Mek" in step.module) == [
        "{Akt, Mek}: P_{Mek}(Akt | Erk, PKA)",
        "{Akt, Mek}: P(Akt, Erk, Mek | PKA, PKC, Raf)",
    ]


# a <-> b and c <-> d <-> e wait for each other. Together they reach p by e, and wait for p, too.
TWICE = parse("e -> b, b -> c, c -> a, e -> p, p -> a, a -> q, a <-> b, c <-> d, d <-> e, p <-> q")


def test_merging_once_can_leave_a_cycle():
    once = merged(TWICE, TWICE.districts())
    assert set(once) == {frozenset("abcde"), frozenset("pq")}
    assert not networkx.is_directed_acyclic_graph(precedence(TWICE, once))
    assert shown(training_plan(TWICE)) == ["{a, b, c, d, e, p, q}: P(a, b, c, d, e, p, q)"]


# --- several datasets -----------------------------------------------------------------------------

BOW = parse("x -> y, x <-> y")


def test_an_edge_that_every_dataset_cuts_joins_nothing():
    assert shown(training_plan(BOW, [{"x"}])) == ["{y}: P_{x}(y)"]
    g = parse("a -> b, b -> c, a <-> b, b <-> c")
    assert shown(training_plan(g, ["b"])) == ["{a}: P_{b}(a)", "{c}: P_{b}(c)"]
    assert shown(training_plan(g, ["b", "a"])) == [
        "{a}: P_{b}(a)",
        "{b, c}: P_{b}(c)",
        "{b, c}: P_{a}(b, c)",
    ]


def test_steps_of_one_module_add_up():
    first, second = training_plan(BOW, [{"x"}, OBSERVATIONAL])
    assert first.module == second.module == {"x", "y"}
    assert (first.dataset, first.matched, first.parents) == (set(), {"x", "y"}, set())
    assert (second.dataset, second.matched, second.parents) == ({"x"}, {"y"}, {"x"})


def test_each_factor_is_learned_where_it_is_cheapest():
    g = parse("x -> m, m -> y, x <-> y")
    assert [step.ancestors for step in training_plan(g)] == [set(), {"m"}]
    # Under an experiment on m there is the same factor of x and y, and nothing to freeze.
    plan = training_plan(g, [OBSERVATIONAL, "m"])
    assert shown(plan) == ["{x, y}: P_{m}(x, y)", "{m}: P(m | x)"]
    # With equally many ancestors, that of b is learned where there are fewer parents, not with a.
    g = parse("u -> a, v -> a, a -> b, a <-> m, m <-> b")
    plan = training_plan(g, ["m", {"a", "m"}, "a", "b"])
    assert [str(step) for step in plan if "b" in step.module] == [
        "{a, b, m}: P_{a, m}(b)",
        "{a, b, m}: P_{a}(b, m)",
        "{a, b, m}: P_{m}(a, b | u, v)",
        "{a, b, m}: P_{b}(a, m | u, v)",
    ]
    # With equally many parents, too, the first dataset counts.
    for datasets in ([{"x"}, {"u"}], [{"u"}, {"x"}]):
        plan = training_plan(parse("u -> x, x -> y"), datasets)
        assert [step.dataset for step in plan if "y" in step.module] == datasets[:1]


def test_hidden_causes_of_what_is_seen_are_trained_with_it():
    g = parse("h -> x, h -> y, x -> y")
    (step,) = training_plan(g, [(OBSERVATIONAL, {"x", "y"})])
    assert step == ({"h", "x", "y"}, set(), set(), (set(), {"x", "y"}))
    assert str(step) == "{h, x, y}: P(x, y)"
    # An experiment that shows only y is one more average over h.
    both = training_plan(g, [((), ["x", "y"]), (["x"], ["y"])])
    assert shown(both) == ["{h, x, y}: P(x, y)", "{h, x, y}: P_{x}(y)"]


def test_an_average_over_known_factors_adds_nothing():
    g = parse("h -> x, h -> y, x -> y, y -> leaf, y <-> leaf")
    full = training_plan(g)
    assert training_plan(g, [OBSERVATIONAL, (OBSERVATIONAL, {"x", "y"})]) == full
    assert [step.module for step in full] == [{"h"}, {"x"}, {"y", "leaf"}]
    # Datasets that show one factor each are as good as one that shows them all.
    parts = [({"h"}, {"x"}), ({"h", "x"}, {"y"}), ({"x"}, {"h"})]
    g = parse("h -> x, h -> y, x -> y")
    assert shown(training_plan(g, [*parts, ((), {"x", "y"})])) == [
        "{h}: P_{x}(h)",
        "{x}: P_{h}(x)",
        "{y}: P_{h, x}(y)",
    ]


def test_an_average_trains_only_what_is_not_known():
    g = parse("h -> x, h -> y, x -> y")
    plan = training_plan(g, [({"x"}, {"h"}), ((), {"x", "y"})])
    assert plan[0] == ({"h"}, set(), set(), ({"x"}, {"h"}))
    assert plan[1] == ({"x", "y"}, {"h"}, set(), (set(), {"x", "y"}))
    assert plan[1].matched == {"x", "y"}
    # Also where what is known is among the observed: here x, which is needed to match x and y.
    plan = training_plan(g, [({"y"}, {"x", "h"}), ((), {"x", "y"})])
    assert shown(plan) == ["{h}: P_{y}(h)", "{x}: P_{y}(x | h)", "{y}: P(x, y)"]
    assert plan[2].ancestors == {"h", "x"}


def test_what_every_dataset_sets_has_no_mechanism():
    g = parse("z -> x, x -> y, z -> y")
    plan = training_plan(g, [{"z"}, {"z", "x"}])
    assert [step.module for step in plan] == [{"x"}, {"y"}]
    assert not training_plan(g, [g.nodes])
    assert not training_plan(ADMG())
    assert not h_graph(g, [g.nodes])


def test_names_and_datasets_come_as_any_iterables():
    expected = training_plan(BOW, [frozenset({"x"}), (frozenset(), frozenset({"x"}))])
    given = iter(["x", (iter(()), ["x"])])
    assert training_plan(BOW, given) == expected
    assert {step.dataset for step in expected} == {
        frozenset({"x"}),
        (frozenset(), frozenset({"x"})),
    }


@pytest.mark.parametrize("function", [training_plan, h_graph])
def test_errors(function):
    with pytest.raises(ValueError, match=r"node 'q', in the datasets: expected one of.*x, y"):
        function(BOW, [{"q"}])
    with pytest.raises(ValueError, match=r"node 'x', in `observed`: expected disjoint sets"):
        function(BOW, [({"x"}, {"x", "y"})])
    with pytest.raises(
        ValueError, match=r"`datasets`: expected .*at least one.*Do pass \[frozense"
    ):
        function(BOW, [])
    with pytest.raises(ValueError, match=r"`datasets`: expected a collection.*got 'x'"):
        function(BOW, "x")
    with pytest.raises(ValueError, match=r"node 'y', in `datasets`: expected a dataset that shows"):
        function(BOW, [((), {"x"})])
    chain = parse("x -> y, y -> z")
    with pytest.raises(ValueError, match=r"node 'x'.*intervenes on it, or hides.*Do add one"):
        function(chain, ["x", ({"y"}, {"z"})])  # where z is seen, x acts on nothing that is


# --- brute force, by the do-calculus alone --------------------------------------------------------


@cache
def smallest(g: ADMG, module: Nodes) -> Nodes:
    """The intersection of all sets of ancestors that satisfy rule 2; it does so itself."""
    rest = sorted(frozenset(g.nodes) - module)
    subsets = (itertools.combinations(rest, size) for size in range(len(rest) + 1))
    valid = []
    for ancestors in map(frozenset, itertools.chain.from_iterable(subsets)):
        matched = module | ancestors
        if do_calculus(g, 2, matched, z=g.parents(matched) - matched):
            valid.append(ancestors)
    found = frozenset.intersection(*valid)
    assert found in valid
    return found


def precedence(g: ADMG, modules: Iterable[Nodes]) -> "networkx.DiGraph[Nodes]":
    graph: networkx.DiGraph[Nodes] = networkx.DiGraph()
    graph.add_nodes_from(modules)
    for module in modules:
        ancestors = smallest(g, module)
        graph.add_edges_from((other, module) for other in modules if other & ancestors)
    return graph


def merged(g: ADMG, modules: Iterable[Nodes]) -> list[Nodes]:
    cycles = networkx.strongly_connected_components(precedence(g, modules))
    return [frozenset().union(*cycle) for cycle in cycles]


def partitions(parts: Sequence[Nodes]) -> Iterator[list[Nodes]]:
    """All ways to merge."""
    if not parts:
        yield []
        return
    for rest in partitions(parts[1:]):
        yield [parts[0], *rest]
        for i, part in enumerate(rest):
            yield [*rest[:i], part | parts[0], *rest[i + 1 :]]


def some_graph(rng: random.Random, sizes: Sequence[int]) -> ADMG:
    n, directed, bidirected = rng.choice(sizes), rng.uniform(0.2, 0.9), rng.uniform(0.0, 0.3)
    return random_admg(rng, n, directed=directed, bidirected=bidirected)


def test_the_ancestors_are_the_smallest_and_the_modules_the_finest():
    rng = random.Random(0)
    merges = 0
    for _ in range(400):
        g = some_graph(rng, [4, 5, 6])
        graph, districts = h_graph(g), g.districts()
        assert set(graph.edges) == set(precedence(g, graph).edges)
        assert networkx.is_directed_acyclic_graph(graph)
        for step in training_plan(g):
            assert step.ancestors == smallest(g, step.module)
        for coarse in partitions(districts):
            if networkx.is_directed_acyclic_graph(precedence(g, coarse)):
                assert all(any(module <= part for part in coarse) for module in graph)
        merges += len(graph) < len(districts)
    assert merges > 5


# --- random datasets ------------------------------------------------------------------------------


def some_dataset(rng: random.Random, g: ADMG, hiding: float) -> Dataset:
    intervened = frozenset(name for name in g.nodes if rng.random() < 0.25)
    rest = frozenset(g.nodes) - intervened
    observed = frozenset(name for name in sorted(rest) if rng.random() < 0.75)
    return (intervened, observed) if rng.random() < hiding and observed != rest else intervened


def cases(
    number: int, sizes: Sequence[int], hiding: float
) -> Iterator[tuple[ADMG, list[Dataset], tuple[TrainingStep, ...]]]:
    """Plans for one to three datasets, of those that show all mechanisms."""
    rng = random.Random(number)
    while number:
        g = some_graph(rng, sizes)
        datasets = [some_dataset(rng, g, hiding) for _ in range(rng.randint(1, 3))]
        try:
            plan = training_plan(g, datasets)
        except ValueError:
            continue
        number -= 1
        yield g, datasets, plan


def roles(g: ADMG, dataset: Dataset) -> tuple[Nodes, Nodes, Nodes]:
    """What a dataset intervenes on, observes and hides."""
    everything = frozenset(g.nodes)
    pair = dataset if isinstance(dataset, tuple) else (dataset, everything - dataset)
    return *pair, everything - pair[0] - pair[1]


def projected(g: ADMG, dataset: Dataset) -> ADMG:
    intervened, _, hidden = roles(g, dataset)
    return g.intervene(intervened).latent_projection(hidden)


def behind(g: ADMG, dataset: Dataset, nodes: Nodes) -> Nodes:
    """The nodes, and what the dataset hides that acts on them through hidden nodes."""
    return g.subgraph(nodes | roles(g, dataset)[2]).ancestors(nodes)


@pytest.mark.parametrize("hiding", [0.0, 0.6])
def test_every_step_satisfies_rule_2_and_waits_for_its_ancestors(hiding):
    for g, datasets, plan in cases(250, [4, 5, 6, 7, 8], hiding):
        trained: Nodes = frozenset()
        for module, steps in itertools.groupby(plan, lambda step: step.module):
            assert not module & trained  # the steps of a module follow each other
            for step in steps:
                intervened, observed, _ = roles(g, step.dataset)
                assert step.dataset in datasets
                assert step.ancestors <= trained
                assert step.matched == (module | step.ancestors) & observed
                assert behind(g, step.dataset, step.matched) <= module | step.ancestors
                parents = projected(g, step.dataset).parents(step.matched) - step.matched
                assert step.parents == parents
                assert do_calculus(g, 2, step.matched, x=intervened, z=parents - intervened)
            trained |= module
        given = frozenset.intersection(*(roles(g, dataset)[0] for dataset in datasets))
        assert trained == frozenset(g.nodes) - given


def test_the_plan_is_an_order_of_the_graph():
    for g, datasets, plan in cases(60, [5, 6, 7], 0.3):
        place = {step.module: i for i, step in enumerate(plan)}
        graph = h_graph(g, datasets)
        assert set(graph) == set(place)
        assert set(graph.edges) == {
            (before, step.module) for step in plan for before in place if before & step.ancestors
        }
        assert all(place[before] < place[after] for before, after in graph.edges)


# --- enumerated models: tables have one axis per node, in the order of g.nodes --------------------


def total(g: ADMG, table: Tensor, over: Iterable[str]) -> Tensor:
    for name in over:
        table = table.sum(g.nodes.index(name), keepdim=True)
    return table


def factor(model: DiscreteModel, nodes: Nodes) -> Tensor:
    """The distribution of nodes when all others are set, at all values of these."""
    axes = [*sorted(nodes), *sorted(frozenset(model.g.nodes) - nodes)]
    table = model.effect(axes[: len(nodes)], do=axes[len(nodes) :])
    return table.permute([axes.index(name) for name in model.g.nodes])


def data(model: DiscreteModel, dataset: Dataset) -> Tensor:
    _, observed, hidden = roles(model.g, dataset)
    return total(model.g, factor(model, observed | hidden), hidden)


def conditional(model: DiscreteModel, step: TrainingStep) -> Tensor:
    """What a step matches: P(matched | parents) in its dataset, at any value of other actions."""
    g, table = model.g, data(model, step.dataset)
    intervened, observed, _ = roles(g, step.dataset)
    for name in intervened - step.parents:
        table = table.narrow(g.nodes.index(name), 0, 1)
    joint = total(g, table, observed - step.matched - step.parents)
    return joint / total(g, joint, step.matched)


def district_factor(g: ADMG, table: Tensor, within: Nodes, district: Nodes) -> Tensor:
    """The factor of a district from the factor of a set (Tian & Pearl 2002, lemma 4)."""
    result, rest = torch.ones((), dtype=table.dtype), set(within)
    for name in [name for name in g.topological_order() if name in within]:
        below = total(g, table, rest)
        rest.discard(name)
        if name in district:
            result = result * total(g, table, rest) / below
    return result


Learned = dict[tuple[Nodes, Nodes], Tensor]  # by the district and the mechanisms behind it


def learned(model: DiscreteModel, plan: Iterable[TrainingStep]) -> Learned:
    """All factors in what the steps match."""
    g, found = model.g, {}
    for step in plan:
        table = conditional(model, step)
        for district in projected(g, step.dataset).subgraph(step.matched).districts():
            key = district, behind(g, step.dataset, district)
            found[key] = district_factor(g, table, step.matched, district)
    return found


def descended(g: ADMG, known: Learned, wanted: Nodes) -> Tensor:
    """A factor that is identified by a learned one (Tian & Pearl 2003)."""
    for (within, mechanisms), table in known.items():
        last = None
        while wanted <= within == mechanisms != last:
            if within == wanted:
                return table
            last, ancestors = within, g.subgraph(within).ancestors(wanted)
            mechanisms = within = g.subgraph(ancestors).district(wanted)
            table = district_factor(g, total(g, table, last - ancestors), ancestors, within)
    raise AssertionError(f"{set(wanted)} is not identified")


@pytest.mark.parametrize("hiding", [0.0, 0.6])
def test_each_step_is_interventional_and_together_they_give_every_dataset(hiding):
    rng = random.Random(1)
    averaged = 0
    for g, datasets, plan in cases(100, [4, 5, 6], hiding):
        model = DiscreteModel.random(g, rng)
        for step in plan:
            hidden = roles(g, step.dataset)[2]
            truth = total(g, factor(model, step.matched | hidden), hidden)
            found = conditional(model, step).expand_as(truth)
            torch.testing.assert_close(found, truth, rtol=1e-9, atol=0)
        known = learned(model, plan)
        for dataset in datasets:
            expected, product = data(model, dataset), torch.ones([1] * len(g.nodes)).double()
            _, observed, hidden = roles(g, dataset)
            for district in projected(g, dataset).subgraph(observed).districts():
                mechanisms = behind(g, dataset, district)
                if (district, mechanisms) not in known:
                    averaged += 1
                    parts = g.subgraph(mechanisms).districts()
                    whole = math.prod(descended(g, known, part) for part in parts)
                    known[district, mechanisms] = total(g, whole, mechanisms - district)
                product = product * known[district, mechanisms]
            for name in hidden:  # no factor depends on it
                product = product.narrow(g.nodes.index(name), 0, 1)
            torch.testing.assert_close(product.expand_as(expected), expected, rtol=1e-8, atol=0)
    assert (averaged > 0) == (hiding > 0)


def test_large_graphs_are_arranged_without_search():
    rng = random.Random(2)
    for _ in range(3):
        names = [f"v{i}" for i in range(200)]
        pairs = list(itertools.combinations(names, 2))
        plan = training_plan(ADMG(rng.sample(pairs, 400), rng.sample(pairs, 60), names))
        assert sum(len(step.module) for step in plan) == 200
