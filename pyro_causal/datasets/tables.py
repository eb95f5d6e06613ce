"""Tables of your own, for discovery from a mixture of interventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_causal.datasets._files import Folder

__all__ = ["load_interventional_table"]

Array = NDArray[Any]
SMALLEST, LARGEST = 1e-15, 1e15  # standard deviations of which single precision has the squares
KINDS = {"x": ("fiu", "numbers"), "z": ("iu", "integers"), "targets": ("biuf", "zeros and ones")}


def load_interventional_table(path: Folder) -> dict[str, Tensor]:
    """Load rows, and what is known of interventions on them, and standardise each variable.

    **Shapes** of the arrays in the file, which NumPy's ``savez`` writes: ``x [n, d]``; where they
    are known, the regimes ``z [n]`` of the rows, integers with -1 for unknown ones and 0 for the
    observational one; and the targets of each regime, ``targets [K + 1, d]`` of zeros and ones
    whose first row is 0. Of the result: the same, as
    :func:`~pyro_causal.datasets.interventions.sample_interventional_table`, with ``mean`` and
    ``std [d]``, by which ``x * std + mean`` are the values given.

    **Raises** ``FileNotFoundError``: there is no such file. ``ValueError``: it is not of this kind;
    rows with NaN or infinity, or not more than variables; a variable that does not vary, or whose
    standard deviation is not from 1e-15 to 1e15; a label below -1, or of a regime without
    targets, or of one without rows where all labels are known.

    **Example**

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/file.npz", x=np.array([[1.0, 0], [2, 5], [3, 1]]), z=[0, 1, -1])
    ...     table = load_interventional_table(f"{folder}/file.npz")
    >>> table["x"].mean(0), table["z"]
    (tensor([0., 0.]), tensor([ 0,  1, -1]))
    """
    arrays = _read(Path(path))
    _check_rows(path, arrays["x"])
    n, d = arrays["x"].shape
    if (z := arrays.get("z")) is not None and z.shape != (n,):
        _refuse(path, "z", f"one label for each of {n} rows", f"shape {z.shape}", "Give all")
    if (targets := arrays.get("targets")) is not None:
        _check_targets(path, targets, d)
    if z is not None:
        _check_labels(path, z, None if targets is None else len(targets))
    x = torch.as_tensor(arrays["x"].astype(np.float64))
    mean, std = x.mean(0), x.std(0, correction=0)
    fits = (std >= SMALLEST) & (std <= LARGEST)
    if not fits.all():
        expected = f"standard deviations from {SMALLEST:g} to {LARGEST:g}"
        got = f"{std[~fits].tolist()} in the columns {(~fits).nonzero().flatten().tolist()}"
        _refuse(path, "x", expected, got, "Take other units")
    table = {"x": (x - mean) / std, "mean": mean, "std": std}
    others = {
        name: torch.as_tensor(a.astype(np.int64)) for name, a in arrays.items() if name != "x"
    }
    return {name: value.to(torch.get_default_dtype()) for name, value in table.items()} | others


def _read(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an .npz file, found none. Give the path of one.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # of whatever the file is instead
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path}: expected an .npz file of plain arrays, got {what}. Write one with "
            "numpy.savez, of numbers."
        ) from error
    if "x" not in arrays or not {*arrays} <= {*KINDS}:
        names = ", ".join(sorted(arrays)) or "none"
        _refuse(path, "names", "x and perhaps z and targets", names, "Leave out or rename others")
    for name, array in arrays.items():
        kinds, expected = KINDS[name]
        if array.dtype.kind not in kinds:
            _refuse(path, name, expected, f"{array.dtype}", "Convert them")
    return arrays


def _check_rows(path: Folder, x: Array) -> None:
    if x.ndim != 2 or not len(x) > x.shape[1] > 1:
        remedy = "Give more rows than variables, and two of these or more; or transpose"
        _refuse(path, "x", "rows [n, d] with n > d > 1", f"shape {x.shape}", remedy)
    finite = np.isfinite(x).all(0)
    if not finite.all():
        got = f"NaN or infinity in the columns {np.flatnonzero(~finite).tolist()}"
        _refuse(path, "x", "finite numbers", got, "Drop such rows, or columns")
    varies = (x != x[:1]).any(0)
    if not varies.all():
        got = f"one value only in the columns {np.flatnonzero(~varies).tolist()}"
        _refuse(path, "x", "variables that vary", got, "Drop the columns")


def _check_targets(path: Folder, targets: Array, d: int) -> None:
    if targets.ndim != 2 or targets.shape[1] != d or not len(targets):
        remedy = "Give a row for each regime and a column for each variable"
        _refuse(path, "targets", f"shape [K + 1, {d}]", f"shape {targets.shape}", remedy)
    if not np.isin(targets, (0, 1)).all():
        got = f"values from {targets.min():g} to {targets.max():g}"
        _refuse(path, "targets", "zeros and ones", got, "Mark each target by a 1")
    if targets[0].any():
        got = f"{targets[0].astype(int).tolist()}"
        _refuse(path, "targets", "zeros in row 0, the observational regime", got, "Add such a row")


def _check_labels(path: Folder, z: Array, regimes: int | None) -> None:
    """Labels count from 0 to the number of regimes, or where all are known without a gap."""
    if z.min() < -1:
        _refuse(path, "z", "labels from -1, unknown", f"{z.min()}", "Count regimes from 0")
    if regimes is not None and z.max() >= regimes:
        remedy = "Give the targets of every regime"
        _refuse(path, "z", f"labels below {regimes}, the rows of targets", f"{z.max()}", remedy)
    seen = np.unique(z[z > 0])
    if regimes is None and z.min() >= 0 and len(seen) and seen[-1] != len(seen):
        missing = 1 + int(np.flatnonzero(seen != np.arange(1, len(seen) + 1))[0])
        remedy = "Number regimes without gaps, or give targets"
        _refuse(path, "z", f"rows of all regimes up to {seen[-1]}", f"none of {missing}", remedy)


def _refuse(path: Folder, array: str, expected: str, got: str, remedy: str) -> NoReturn:
    raise ValueError(f"{path}, {array}: expected {expected}, got {got}. {remedy}.")
