"""Tables of one's own: what comes back, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_causal.datasets import load_interventional_table

N, D = 30, 3


def file(folder: Path, **arrays: Any) -> Path:
    """A file of good rows, but for what is given."""
    x = 1e6 + np.random.default_rng(0).normal(size=(N, D))
    np.savez(folder / "file.npz", **{"x": x, **arrays})
    return folder / "file.npz"


def test_what_was_given_comes_back(tmp_path: Path) -> None:
    z = np.arange(N, dtype=np.int16) % 4 - 1
    targets = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1]], dtype=bool)
    table = load_interventional_table(file(tmp_path, z=z, targets=targets))
    assert {*table} == {"x", "z", "targets", "mean", "std"}
    assert table["z"].tolist() == z.tolist() and table["z"].dtype == torch.long
    assert table["targets"].tolist() == targets.astype(int).tolist()
    assert table["x"].dtype == torch.float32
    torch.testing.assert_close(table["x"].mean(0), torch.zeros(D), atol=1e-6, rtol=0)
    torch.testing.assert_close(table["x"].std(0, correction=0), torch.ones(D))
    with np.load(tmp_path / "file.npz") as given:  # digits are lost after standardising, not before
        x = (given["x"] - given["x"].mean(0)) / given["x"].std(0)
    torch.testing.assert_close(table["x"], torch.tensor(x, dtype=torch.float32))


def test_rows_alone_will_do(tmp_path: Path) -> None:
    x = np.arange(10).reshape(5, 2) ** 2  # whole numbers
    assert {*load_interventional_table(file(tmp_path, x=x))} == {"x", "mean", "std"}


def changed(position: Any, value: float) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(N, D))
    x[position] = value
    return x


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x": np.zeros((2, 3))}, r"rows \[n, d\] with n > d > 1, got shape \(2, 3\)\. Give more"),
        ({"x": np.zeros((0, 3))}, r"got shape \(0, 3\)"),
        ({"x": np.zeros(9)}, r"got shape \(9,\)"),
        ({"x": np.zeros((9, 1))}, r"got shape \(9, 1\)"),
        ({"x": changed((4, 1), np.nan)}, r"x: expected finite .* in the columns \[1\]\. Drop"),
        ({"x": changed((4, 2), np.inf)}, r"infinity in the columns \[2\]"),
        ({"x": changed((slice(None), 0), 0.1)}, r"that vary, got one value .* \[0\]\. Drop"),
        ({"x": 1e200 * changed((0, 0), 1.0)}, r"from 1e-15 to 1e\+15, got .* \[0, 1, 2\]\. Take"),
        ({"x": 1e-17 * changed((0, 0), 1.0)}, r"standard deviations from .* other units"),
        ({"x": np.full((N, D), "a")}, r"x: expected numbers, got <U1\. Convert"),
        ({"x": np.full((N, D), 1j)}, "x: expected numbers, got complex"),
        (
            {"x": np.full((N, D), None)},
            "got ValueError: Object arrays .* numpy.savez",
        ),
        ({"z": np.zeros(N)}, "z: expected integers, got float64"),
        ({"z": np.zeros(N - 1, int)}, r"one label for each of 30 rows, got shape \(29,\)"),
        ({"z": np.full(N, -2)}, "labels from -1, unknown, got -2. Count"),
        ({"z": np.array([0, 1, 2, 5] + [4] * 26)}, "rows of all regimes up to 5, got none of 3"),
        (
            {"z": np.full(N, 2), "targets": np.zeros((2, D))},
            "labels below 2, the rows of targets, got 2. Give the targets",
        ),
        ({"targets": np.zeros((2, D + 1))}, r"shape \[K \+ 1, 3\], got shape \(2, 4\)"),
        ({"targets": np.zeros((0, D))}, r"got shape \(0, 3\)"),
        ({"targets": np.full((2, D), 0.5)}, "zeros and ones, got values from 0.5 to 0.5. Mark"),
        ({"targets": np.ones((2, D))}, r"zeros in row 0, .*, got \[1, 1, 1\]\. Add"),
        ({"y": np.zeros(N)}, "names: expected x and perhaps z and targets, got x, y. Leave"),
    ],
)
def test_what_is_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        load_interventional_table(file(tmp_path, **arrays))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("1, 2, 3")
    with pytest.raises(ValueError, match="expected an .npz file of plain arrays, got"):
        load_interventional_table(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", np.zeros((N, D)))
    with pytest.raises(ValueError, match="expected an .npz file of plain arrays"):
        load_interventional_table(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError, match=r"expected an .npz file, found none\. Give"):
        load_interventional_table(tmp_path / "none.npz")


def test_no_gap_before_regime_1(tmp_path: Path) -> None:
    z = np.full(N, -1)
    z[:3] = 1, 2, 2
    assert load_interventional_table(file(tmp_path, z=z))["z"].max() == 2
    z[:3] = 0, 2, 2  # rows of regime 1 may be among the unknown
    assert load_interventional_table(file(tmp_path, z=z))["z"].max() == 2
