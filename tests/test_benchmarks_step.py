"""The benchmark of a gradient step at toy size: what it times is a step, at the sizes it names."""

import json

import pytest
import torch

from pyro_causal.methods import LatentInterventions


@pytest.fixture(scope="module")
def bench(load_benchmark):
    return load_benchmark("gradient_step")


@pytest.fixture
def made(bench, monkeypatch):
    """The methods of which steps are made."""
    found: list[LatentInterventions] = []
    monkeypatch.setattr(
        bench,
        "LatentInterventions",
        lambda **options: found.append(LatentInterventions(**options)) or found[-1],
    )
    return found


def test_a_step_is_the_gradient_at_the_size_it_names(bench, made):
    bench.curve(9, [3, 4], [5, 2], "linear")["linear, imperfect, 4 nodes, 5 components"]()
    sizes = [(len(m.names), m.truncation, m.density, m.intervention) for m in made]
    assert sizes == [(d, k, "linear", "imperfect") for d, k in ((3, 2), (3, 5), (4, 5))]
    stepped = [all(p.grad is not None for p in m.guide.parameters()) for m in made]
    assert stepped == [False, False, True]
    assert all(torch.isfinite(p.grad).all() for p in made[-1].guide.parameters())


def test_a_step_after_a_search_holds_what_was_found(bench, made):
    bench.step(9, 3, 5, "flow", "imperfect", found=True)()
    (method,) = made
    assert torch.equal(method.adjacency, torch.ones(3, 3).long().triu(1))
    assert torch.equal(method.targets, torch.eye(3).bool()[[0, 1, 2, 0, 1]])
    moved = {name for name, p in method.named_parameters() if p.grad is not None}
    assert not any("graph" in name or "targets" in name for name in moved)
    assert any("contexts" in name for name in moved)


def test_every_number_is_there(bench, tmp_path, capsys):
    sizes = ["--nodes", "2", "3", "--components", "2", "4", "--rows", "5", "--rounds", "1"]
    results = bench.main(bench.parse([*sizes, "--out", str(tmp_path / "bench.json")]))
    names = {
        f"{density}, {intervention}{after}"
        for density in ("linear", "nonlinear", "flow")
        for intervention in ("stochastic", "imperfect")
        for after in ("", ", after a search")
    } | {
        f"{density}, imperfect, {nodes} nodes, {components} components"
        for density in ("linear", "flow")
        for nodes, components in ((2, 2), (3, 2), (2, 4))
    }
    assert all(set(table) == names for table in results.values())
    assert all(value > 0 for table in results.values() for value in table.values())
    assert results["ratios"]["linear, stochastic"] == 1.0
    assert results["ratios"]["flow, imperfect, 2 nodes, 2 components"] == 1.0
    assert "ratios" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text()) == results
