r"""Signalling proteins and lipids in single human T cells, under nine conditions.

Flow cytometry of 7,466 cells: eleven molecules, in units of fluorescence of at least 1. Each cell
was in one of nine conditions, which are blocks of rows of the published table.

===== ===== ======================= =============================================================
z     cells reagents                target
===== ===== ======================= =============================================================
0     853   anti-CD3/CD28           none: the stimulus that all but z = 7 and 8 have
1     902   \+ ICAM-2               none of the eleven: a further stimulus
2     911   \+ Akt inhibitor        Akt, inhibited
3     723   \+ G0076                PKC, inhibited
4     810   \+ psitectorigenin      PIP2, inhibited
5     799   \+ U0126                Mek, inhibited
6     848   \+ LY294002             none of the eleven: PI3K, upstream of PIP3 and Akt, is inhibited
7     913   PMA                     PKC, activated
8     707   β2cAMP                  PKA, activated
===== ===== ======================= =============================================================

The consensus graph has 18 edges and **is not acyclic**: Plcg -> PIP2 -> PIP3 -> Plcg. So no acyclic
graph comes closer to it than one missing edge. Other versions have 17 or 20 edges.

**References** Sachs, Perez, Pe'er, Lauffenburger & Nolan 2005, *Causal protein-signaling networks
derived from multiparameter single-cell data*, Science 308, 523-529,
https://doi.org/10.1126/science.1105809. The graph is the one of the Causal Discovery Toolbox,
https://github.com/FenTechSolutions/CausalDiscoveryToolbox.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_causal.datasets._files import DataFile, Folder, find_file, read_table

__all__ = ["SACHS_VARIABLES", "load_sachs", "load_sachs_levels", "load_sachs_reagents"]

SACHS_VARIABLES = ("Raf", "Mek", "Plcg", "PIP2", "PIP3", "Erk", "Akt", "PKA", "PKC", "P38", "Jnk")
"""The molecules, in the order of the columns."""

EFFECTS = {
    "Raf": ("Mek",),
    "Mek": ("Erk",),
    "Plcg": ("PIP2", "PKC"),
    "PIP2": ("PIP3", "PKC"),
    "PIP3": ("Plcg", "Akt"),
    "PKA": ("Raf", "Mek", "Erk", "Akt", "P38", "Jnk"),
    "PKC": ("Raf", "Mek", "P38", "Jnk"),
}
CELLS = (853, 902, 911, 723, 810, 799, 848, 913, 707)  # in each condition
TARGETS = (None, None, "Akt", "PKC", "PIP2", "Mek", None, "PKC", "PKA")
REAGENTS = ("cd3_cd28", "icam2", "aktinhib", "g0076", "psitect", "u0126", "ly", "pma", "b2camp")
LEVEL_CELLS = 600  # of each condition, in the table of levels
LEVEL_CONDITIONS = (8, 0, 2, 3, 4, 5, 1, 7, 6)  # their order there

_SAME = SACHS_VARIABLES[7:10]
RAW_COLUMNS = ("praf", "pmek", "plcg", "PIP2", "PIP3", "p44/42", "pakts473", *_SAME, "pjnk")
LOG_COLUMNS = ("raf", "mek", "plc", "pip2", "pip3", "erk", "akt", "pka", "pkc", "p38", "jnk")

_GITHUB = "https://raw.githubusercontent.com/"
RAW = DataFile(
    "sachs/cyto_full_data.csv",
    _GITHUB + "FenTechSolutions/CausalDiscoveryToolbox/4aa0d0df0d9cb252c2dbdd247b2a9c810e5dfeeb/"
    "cdt/data/resources/cyto_full_data.csv",
    "fc331dcd0bc1d8765986b88cd1d23dd5a3f52e4ffc299fdf96de9d522ddf01aa",
)
CONDITIONS = DataFile(
    "sachs/sachs.2005.logxplus10.conditions.txt",
    _GITHUB + "cmu-phil/example-causal-datasets/a23adc349a23fc34d258193b45c60522ca6355b4/"
    "real/sachs/data/sachs.2005.continuous.discrete.experimental.mixed.maximum.2.txt",
    "c1c4b12bdbb2c5411f7410fa65792a3191500e4b5276df2f7d1bf35a41a42c71",
)
LEVELS = DataFile(
    "sachs/sachs.interventional.txt",
    _GITHUB + "GregoryTomy/Bayesian-Networks/32a336bf64f854da97bb1b6d1c46c0639982ab13/"
    "data/sachs.interventional.txt",
    "2823492b28b53599f4a6ef55f6f41336e3891994e6b3a2e3229af5479217f91f",
)


def load_sachs(*, log_standardised: bool = False, path: Folder | None = None) -> dict[str, Tensor]:
    """Load the cells, their conditions, the targets of these and the consensus graph.

    The file is looked for in the folder ``path``, then in $PYRO_CAUSAL_DATA, then in the user's
    cache, each with a subfolder ``sachs``, and downloaded to the cache (0.4 MB) if it is nowhere.
    Conditions and graph are stated at the top of this module; columns are
    :data:`SACHS_VARIABLES`.

    **Shapes** ``x`` ``[7466, 11]``; ``z`` ``[7466]``, the conditions 0 to 8, in blocks;
    ``targets`` ``[9, 11]`` and ``adjacency`` ``[11, 11]``, 0 or 1, (i, j) for the edge i -> j,
    **with a cycle**.

    **Arguments**

    - ``log_standardised``: take logarithms, and standardise them over all cells; else ``x`` is
      fluorescence as published.
    - ``path``: a folder with the subfolder.

    **Raises** ``ValueError``: the file is damaged. ``FileNotFoundError``: there is no folder
    ``path``, or the file cannot be had.

    **Example** ::

        cells = load_sachs()
        cells["x"].shape, cells["adjacency"].sum()  # (torch.Size([7466, 11]), tensor(18))
    """
    x = torch.tensor(read_table(find_file(RAW, path), RAW_COLUMNS, sum(CELLS)))
    if log_standardised:
        x = (x.log() - x.log().mean(0)) / x.log().std(0, correction=0)
    z = torch.arange(len(CELLS)).repeat_interleave(torch.tensor(CELLS))
    adjacency = torch.zeros(len(SACHS_VARIABLES), len(SACHS_VARIABLES), dtype=torch.long)
    for cause, effects in EFFECTS.items():
        for effect in effects:
            adjacency[SACHS_VARIABLES.index(cause), SACHS_VARIABLES.index(effect)] = 1
    return {"x": x, "z": z, "targets": _targets(), "adjacency": adjacency}


def load_sachs_reagents(*, path: Folder | None = None) -> dict[str, Tensor]:
    """Load the same cells in the same order from a table that records the reagents of each.

    **Shapes** ``x`` ``[7466, 11]``, log(fluorescence + 10) to four decimals; ``reagents``
    ``[7466, 9]``, 0 or 1, in the order of the conditions.

    **Arguments** and **Raises** as :func:`load_sachs`; 0.7 MB.

    **References** https://github.com/cmu-phil/example-causal-datasets (CC0 1.0).
    """
    columns = (*LOG_COLUMNS, *REAGENTS)
    table = read_table(find_file(CONDITIONS, path), columns, sum(CELLS), separator="\t")
    x, reagents = torch.tensor(table).split([len(LOG_COLUMNS), len(REAGENTS)], -1)
    return {"x": x, "reagents": reagents.long()}


def load_sachs_levels(*, path: Folder | None = None) -> dict[str, Tensor]:
    """Load 600 cells of each condition, every molecule at one of three levels.

    **Shapes** ``x`` ``[5400, 11]``, levels 0 to 2; ``z`` ``[5400]`` and ``targets`` ``[9, 11]`` as
    :func:`load_sachs`.

    **Arguments** and **Raises** as :func:`load_sachs`; 0.1 MB.

    **References** The discretised table of Scutari & Denis, *Bayesian networks: with examples in
    R*, https://www.bnlearn.com/book-crc/, in a copy that states no licence. It labels cells by
    their target alone; its nine blocks are matched to conditions by the levels in them.
    """
    rows = LEVEL_CELLS * len(CELLS)
    table = read_table(find_file(LEVELS, path), (*SACHS_VARIABLES, "INT"), rows, separator="\t")
    z = torch.tensor(LEVEL_CONDITIONS).repeat_interleave(LEVEL_CELLS)
    return {"x": torch.tensor(table[:, :-1]).long() - 1, "z": z, "targets": _targets()}


def _targets() -> Tensor:
    """The targets of each condition, ``[9, 11]``."""
    return torch.tensor([[int(name == target) for name in SACHS_VARIABLES] for target in TARGETS])
