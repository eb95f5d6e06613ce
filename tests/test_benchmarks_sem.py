"""The benchmark of structural equations at toy size: it compares the same function."""

import json

import pytest
import torch

from pyro_causal.mechanisms import NonlinearSEM


@pytest.fixture(scope="module")
def bench(load_benchmark):
    return load_benchmark("structural_equations")


def test_the_loop_is_the_same_function(bench):
    equations = NonlinearSEM(3, regimes=2, hidden=(4, 5))
    for parameter in equations.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    x, adjacency = torch.randn(6, 3), torch.rand(3, 3)
    expected = equations.log_prob(x, adjacency)
    torch.testing.assert_close(bench.loop(equations, x, adjacency), expected)


def test_every_number_is_there(bench, tmp_path, capsys):
    sizes = ["--nodes", "2", "3", "--regimes", "1", "2", "--rows", "5", "--rounds", "1"]
    results = bench.main(bench.parse([*sizes, "--out", str(tmp_path / "bench.json")]))
    names = {
        f"{name}, {nodes} nodes, {regimes} regimes"
        for name in ("linear", "nonlinear", "flow", bench.LOOP)
        for nodes in (2, 3)
        for regimes in (1, 2)
    }
    assert all(set(table) == names for table in results.values())
    assert all(value > 0 for table in results.values() for value in table.values())
    assert results[f"ratios to {bench.LOOP}"][f"{bench.LOOP}, 3 nodes, 2 regimes"] == 1.0
    assert "ratios" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text()) == results
