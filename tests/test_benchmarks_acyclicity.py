"""The benchmark of constraints at toy size: its numbers are all there. No test looks at a time."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def bench(load_benchmark):
    return load_benchmark("acyclicity")


def test_the_usual_form_is_the_same_function(bench):
    matrix = torch.rand(5, 5, dtype=torch.float64).fill_diagonal_(0.0)
    expected = bench.CONSTRAINTS["trace_exponential"](matrix)
    torch.testing.assert_close(bench.usual(matrix), expected)


def test_every_number_is_there(bench, tmp_path, capsys):
    flags = ["--nodes", "3", "5", "--rounds", "1", "--out", str(tmp_path / "bench.json")]
    results = bench.main(bench.parse(flags))
    names = {f"{name}, {nodes} nodes" for name in bench.CONSTRAINTS for nodes in (3, 5)}
    assert all(set(table) == names for table in results.values())
    assert all(value > 0 for table in results.values() for value in table.values())
    assert results["ratios to torch.matrix_exp"]["torch.matrix_exp, 5 nodes"] == 1.0
    assert all(name in capsys.readouterr().out for name in ["ratios"])
    assert json.loads((tmp_path / "bench.json").read_text()) == results
