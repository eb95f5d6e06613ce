"""The benchmark at toy size: its programs compute the same things, and its numbers are all there.

No test looks at a time.
"""

import importlib.util
import json
import math
from types import ModuleType

import pytest
import torch
from pyro import poutine

SITES, ROWS = 12, 40


@pytest.fixture(scope="module")
def bench(load_benchmark) -> ModuleType:
    return load_benchmark("handlers")


@pytest.fixture
def data(bench):
    return bench.linear_gaussian(SITES, ROWS)()


@pytest.fixture
def plain(bench, data):
    return poutine.condition(bench.linear_gaussian(SITES, ROWS), data)


def log_density(program):
    return poutine.trace(program).get_trace().log_prob_sum()


def would_be(bench, data, action):
    """Counterfactual values in closed form: how far each site moves with its parents."""
    values, moves = {}, []
    for name, value in data.items():
        parents = zip(bench.WEIGHTS, reversed(moves[-3:]), strict=False)
        move = sum((w * m for w, m in parents), torch.zeros(ROWS))
        move = action[name] - value if name in action else move
        values[name] = value + move
        moves.append(move)
    return values


def test_worlds_are_the_counterfactuals_in_closed_form(bench, data, plain):
    for program, actions in (
        (bench.doses(plain, 3), [{"x0": 0.0}, {"x0": 1.0}, {"x0": 2.0}]),
        (bench.one_by_one(plain, 3), [{"x0": 1.0}, {"x1": 1.0}, {"x2": 1.0}]),
    ):
        values = program()
        for k, action in enumerate([{}, *actions]):
            for name, expected in would_be(bench, data, action).items():
                torch.testing.assert_close(values[name].expand(4, ROWS)[k], expected)


def test_all_programs_have_the_same_log_density(bench, data, plain):
    longer = poutine.condition(bench.linear_gaussian(SITES, ROWS, bench.transformed), data)
    expected = log_density(plain)
    for program in (plain, longer):
        torch.testing.assert_close(log_density(program), expected)
        torch.testing.assert_close(log_density(bench.doses(program, 10)), expected)
        torch.testing.assert_close(log_density(bench.one_by_one(program, 10)), expected)


def test_ways_run_what_they_say(bench, plain):
    assert bench.WAYS["values"](plain).keys() == plain().keys()
    torch.testing.assert_close(bench.WAYS["density"](plain), log_density(plain))


def test_only_equals_are_timed(bench, data, plain):
    factual, first, second = (
        torch.stack(list(would_be(bench, data, action).values()))
        for action in ({}, {"x0": 1.0}, {"x1": 1.0})
    )
    both = torch.full_like(factual, math.nan)  # the world that only one of the two has

    def theirs(shift):
        grid = torch.stack([factual, first, second + shift, both]).reshape(2, 2, SITES, ROWS)
        return dict(zip(data, grid.unbind(2), strict=True))

    ours = bench.one_by_one(plain, 2)
    bench.check(ours, lambda: theirs(0.0), 2)
    for shift in (0.01, math.nan):
        with pytest.raises(RuntimeError, match="ChiRho's counterfactual values differ from ours"):
            bench.check(ours, lambda shift=shift: theirs(shift), 2)


def test_chirho_answers_the_same_questions(bench, data, plain):
    pytest.importorskip("chirho", reason="needs the bench extra")
    for count in (1, 2, 3):
        theirs = bench.subsets(SITES, ROWS, data, count)
        bench.check(bench.one_by_one(plain, count), theirs, count)
        assert theirs()[f"x{SITES - 1}"].numel() == 2**count * ROWS


def test_medians_of_rounds_after_the_first(load_benchmark, monkeypatch):
    timing, now, order = load_benchmark("timing"), [0.0], []
    taken = {"slow": iter([100.0, 3.0, 1.0, 9.0]), "quick": iter([50.0, 2.0, 2.0, 0.5])}

    def run(name):
        order.append(name)
        now[0] += next(taken[name])

    monkeypatch.setattr(timing.time, "process_time", lambda: now[0])
    runs = {name: lambda name=name: run(name) for name in taken}
    assert timing.medians(runs, 3) == {"slow": 3.0, "quick": 2.0}
    assert order == ["slow", "quick"] * 4


def test_memory_is_linear_in_the_worlds(bench, plain):
    one, ten, twenty = (bench.megabytes(bench.doses(plain, k)) for k in (1, 10, 20))
    assert ten > one > bench.megabytes(plain)
    assert (twenty - ten) / 10 == pytest.approx((ten - one) / 9, rel=0.01)


def numbers(results):
    """All numbers of nested results."""
    for entry in results.values():
        yield from numbers(entry) if isinstance(entry, dict) else [entry]


@pytest.mark.parametrize("chirho", [False, True])
def test_benchmark(bench, chirho, tmp_path, capsys, monkeypatch):
    if chirho:
        pytest.importorskip("chirho", reason="needs the bench extra")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "bench.json"
    sizes = ["--sites", str(SITES), "--rows", str(ROWS), "--rounds", "2"]
    results = bench.main(bench.parse([*sizes, "--out", str(out)]))
    assert all(math.isfinite(number) and number > 0 for number in numbers(results))
    assert bool(results["doubling"]) == chirho
    printed = capsys.readouterr().out
    for table in ("milliseconds", "ratios"):
        assert all(name in printed for name in results[table])
        assert any("ChiRho" in name for name in results[table]) == chirho
    assert all(f"{top} / {bottom}" in results["ratios"] for top, bottom in bench.TARGETS)
    record = json.loads(out.read_text())
    assert (record["sites"], record["rows"]) == (SITES, ROWS)
    assert record["ratios"] == results["ratios"]
    assert record["versions"]["torch"] == torch.__version__


def test_scores_of_a_class_of_graphs_are_means(load_benchmark):
    pytest.importorskip("gies", reason="needs the bench extra")
    truth = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0]])
    right, wrong = truth.numpy(), truth.mT.numpy()
    assert load_benchmark("proteins").score([right, wrong], truth) == {
        "HD": 2, "SHD": 1, "tp": 1, "fn": 1, "fp": 1, "rev": 1, "F1": 0.5,
        "fn apart": 0, "fp apart": 0, "F1 apart": 1,  # nothing is missing or superfluous then
    }  # fmt: skip


def test_gies_knows_the_targets_and_ges_does_not(load_benchmark, monkeypatch, tmp_path):
    pytest.importorskip("gies", reason="needs the bench extra")
    proteins = load_benchmark("proteins")
    cause = torch.randn(2000, 1)
    effect = cause + torch.randn(2000, 1)
    effect[1000:] = 3 + torch.randn(1000, 1)  # set
    rows = {
        "x": torch.cat([effect, cause], 1),
        "z": (torch.arange(2000) >= 1000).long(),
        "targets": torch.tensor([[0, 0], [1, 0]]),
        "adjacency": torch.tensor([[0, 0], [1, 0]]),
    }
    monkeypatch.setattr(proteins, "load_sachs", lambda **_: rows)
    results = proteins.main(proteins.parse(["--out", str(tmp_path / "scores.json")]))
    assert [results[name]["HD"] for name in ("without edges", "GES", "GIES")] == [1, 1, 0]
    assert json.loads((tmp_path / "scores.json").read_text()) == results
