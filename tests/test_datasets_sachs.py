"""The T cells of Sachs et al.: files in the published formats, and the published files."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_causal.datasets import (
    SACHS_VARIABLES,
    load_sachs,
    load_sachs_levels,
    load_sachs_reagents,
    sachs,
)

RAW_HEADER = "praf,pmek,plcg,PIP2,PIP3,p44/42,pakts473,PKA,PKC,P38,pjnk"
FILES = (sachs.RAW, sachs.CONDITIONS, sachs.LEVELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the published formats, in which each row and column can be told."""
    path = tmp_path_factory.mktemp("data")
    (path / "sachs").mkdir()
    rows = np.arange(7466)[:, None]
    raw = "\n".join(",".join(map(str, row)) for row in rows + 2 + np.arange(11))
    (path / sachs.RAW.name).write_text(f"{RAW_HEADER}\n{raw}\n")
    logs = np.hstack([rows + np.arange(11), np.eye(9, dtype=int)[rows[:, 0] % 9]])
    header = "raf mek plc pip2 pip3 erk akt pka pkc p38 jnk"
    header += " cd3_cd28 icam2 aktinhib g0076 psitect u0126 ly pma b2camp"
    lines = [header.split(), *logs]
    text = "\n".join("\t".join(map(str, line)) for line in lines)
    (path / sachs.CONDITIONS.name).write_text(text)
    levels = [[*SACHS_VARIABLES, "INT"], *(np.arange(5400)[:, None] % 3 + 1).repeat(12, 1)]
    text = "\r\n".join("\t".join(map(str, line)) for line in levels)
    (path / sachs.LEVELS.name).write_bytes(text.encode())
    return path


def test_cells_come_in_the_order_of_the_file(folder: Path) -> None:
    cells = load_sachs(path=folder)
    assert torch.equal(cells["x"], torch.arange(7466.0)[:, None] + 2 + torch.arange(11))
    assert cells["z"].bincount().tolist() == [853, 902, 911, 723, 810, 799, 848, 913, 707]
    assert (cells["z"].diff() >= 0).all()


def test_targets_are_those_of_the_conditions(folder: Path) -> None:
    targets = load_sachs(path=folder)["targets"]
    named = {(k, SACHS_VARIABLES[j]) for k, j in targets.nonzero().tolist()}
    assert named == {(2, "Akt"), (3, "PKC"), (4, "PIP2"), (5, "Mek"), (7, "PKC"), (8, "PKA")}
    assert targets.shape == (9, 11)
    assert torch.equal(load_sachs_levels(path=folder)["targets"], targets)


def test_the_consensus_graph_has_one_cycle(folder: Path) -> None:
    adjacency = load_sachs(path=folder)["adjacency"]
    graph = nx.relabel_nodes(nx.DiGraph(adjacency.numpy()), dict(enumerate(SACHS_VARIABLES)))
    assert graph.number_of_edges() == 18
    assert [{*cycle} for cycle in nx.simple_cycles(graph)] == [{"Plcg", "PIP2", "PIP3"}]
    assert {*graph.predecessors("Mek")} == {"Raf", "PKA", "PKC"}
    assert {*graph.successors("PKA")} == {"Raf", "Mek", "Erk", "Akt", "P38", "Jnk"}


def test_logarithms_are_standardised_on_demand(folder: Path) -> None:
    x = load_sachs(log_standardised=True, path=folder)["x"]
    torch.testing.assert_close(x.mean(0), torch.zeros(11), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.var(0, correction=0), torch.ones(11), atol=1e-3, rtol=0)
    raw = load_sachs(path=folder)["x"].log()
    slope = (x[5] - x[3]) / (raw[5] - raw[3])
    torch.testing.assert_close(slope, 1 / raw.std(0), atol=1e-2, rtol=1e-2)


def test_reagents_are_read_from_their_table(folder: Path) -> None:
    cells = load_sachs_reagents(path=folder)
    assert torch.equal(cells["x"], torch.arange(7466.0)[:, None] + torch.arange(11))
    assert torch.equal(cells["reagents"].argmax(-1), torch.arange(7466) % 9)
    assert cells["reagents"].shape == (7466, 9) and cells["reagents"].sum() == 7466


def test_levels_start_at_zero(folder: Path) -> None:
    cells = load_sachs_levels(path=folder)
    assert torch.equal(cells["x"], (torch.arange(5400) % 3)[:, None].expand(-1, 11))
    assert cells["z"].bincount().tolist() == [600] * 9
    assert cells["z"][::600].tolist() == [8, 0, 2, 3, 4, 5, 1, 7, 6]


@pytest.mark.parametrize("load", [load_sachs, load_sachs_reagents, load_sachs_levels])
def test_a_damaged_file_is_an_error(tmp_path: Path, load: Callable[..., object]) -> None:
    (tmp_path / "sachs").mkdir()
    for file in FILES:
        (tmp_path / file.name).write_text(f"{RAW_HEADER}\n1,2\n")
    with pytest.raises(ValueError, match=r"expected .* (Put|Fetch) the"):
        load(path=tmp_path)


def test_files_have_an_origin_and_a_checksum() -> None:
    for file in FILES:
        assert file.url.startswith("https://raw.githubusercontent.com/")
        assert len(bytes.fromhex(file.sha256)) == 32


# --- the published files --------------------------------------------------------------------------


def published(data_path: Callable[[str], Path], load: Callable[..., object]) -> dict[str, Tensor]:
    return load(path=data_path("sachs").parent)


def test_published_files_have_their_checksums(data_path: Callable[[str], Path]) -> None:
    for file in FILES:
        assert hashlib.sha256(data_path(file.name).read_bytes()).hexdigest() == file.sha256


def test_blocks_are_the_conditions_of_the_reagents(data_path: Callable[[str], Path]) -> None:
    cells, labelled = published(data_path, load_sachs), published(data_path, load_sachs_reagents)
    error = ((cells["x"].double() + 10).log() - labelled["x"].double()).abs()
    assert error.max() < 6e-5
    own = labelled["reagents"].clone()
    own[cells["z"] > 0, 0] = 0  # the stimulus of z = 0 is in most conditions
    assert torch.equal(own.argmax(-1), cells["z"])
    stimulated = labelled["reagents"][:, 0] == 1
    assert torch.equal(stimulated, cells["z"] < 7)


def test_levels_agree_with_the_cells(data_path: Callable[[str], Path]) -> None:
    """The condition of each block is the one whose mean logarithms are like its mean levels."""
    cells, levels = published(data_path, load_sachs), published(data_path, load_sachs_levels)
    means = [
        torch.stack([x[z == k].mean(0) for k in range(9)])
        for x, z in ((cells["x"].log(), cells["z"]), (levels["x"].float(), levels["z"]))
    ]
    logs, tiers = ((m - m.mean(0)) / m.std(0) for m in means)
    _, matched = linear_sum_assignment(torch.cdist(tiers, logs))
    assert matched.tolist() == [*range(9)]
