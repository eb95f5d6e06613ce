"""The benchmark of deep models at toy size: its numbers are all there. No test looks at a time."""

import json

import pytest

pytest.importorskip("matplotlib")


def test_every_number_is_there(load_benchmark, tmp_path):
    bench = load_benchmark("counterfactual_images")
    flags = ["--batch", "8", "--units", "2", "--preset", "smoke", "--rounds", "1"]
    results = bench.main(bench.parse([*flags, "--out", str(tmp_path / "bench.json")]))
    assert results["steps to one particle"]["1 particle"] == 1.0
    assert set(results["seconds of a step"]) == {
        "1 particle",
        "4 particles",
        "4 particles, one after the other",
    }
    assert all(value > 0 for table in results.values() for value in table.values())
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert {name: saved[name] for name in results} == results
