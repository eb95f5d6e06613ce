"""Pictures of what a search has found, the graph and the regimes, beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import networkx
import numpy as np
import torch

from pyro_causal._figures import (
    BLUE,
    DASHED,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    clean,
    make_figure,
    save,
)
from pyro_causal.metrics import match_regimes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_found_graph", "plot_regimes"]

RADIUS = 0.11  # of a node at most, where the circle of nodes has radius 1


def plot_found_graph(
    adjacency: Any,
    *,
    truth: Any = None,
    probability: Any = None,
    names: Sequence[str] | None = None,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw a graph that was found, its edges coloured by whether they are true.

    Nodes stand on a circle, clockwise from the top, in the order in which causes come first in the
    graph found. The probabilities of edges, from row to column, are drawn beside it, with rings
    around those of the truth.

    **Shapes** ``adjacency``, ``truth`` and ``probability`` ``[d, d]``, (i, j) for an edge i -> j.

    **Raises** ``ValueError`` for matrices of another shape, and for a directed cycle.
    ``ImportError`` without matplotlib.

    **Example**

    >>> import torch
    >>> from pyro_causal.plots import plot_found_graph
    >>> found = torch.tensor([[0, 1], [0, 0]])
    >>> figure = plot_found_graph(found, truth=found.T)
    >>> [patch.get_gid() for patch in figure.axes[0].patches]
    ['turned:x0->x1', 'node:x0', 'node:x1']
    """
    found = _matrix(adjacency).astype(bool)
    names = [f"x{j}" for j in range(len(found))] if names is None else list(names)
    true = None if truth is None else _matrix(truth).astype(bool)
    weights = None if probability is None else _matrix(probability)
    for name, matrix in (("adjacency", found), ("truth", true), ("probability", weights)):
        if matrix is not None and matrix.shape != (len(names),) * 2:
            raise ValueError(
                f"`{name}`: expected shape {(len(names),) * 2}, got {matrix.shape}. Do give a row "
                "and a column for each variable."
            )
    if not networkx.is_directed_acyclic_graph(networkx.DiGraph(found)):
        raise ValueError("`adjacency`: expected an acyclic graph, got a cycle. Do drop an edge.")
    figure = make_figure(4.6 if weights is None else 9.4, 4.8)
    panels = figure.subplots(1, 1 if weights is None else 2, squeeze=False)[0]
    _draw_circle(panels[0], found, true, names)
    if weights is not None:
        image = panels[1].imshow(weights, cmap="Greys", vmin=0, vmax=1)
        if true is not None:
            rings: Any = {"s": 3200 / len(names), "facecolors": "none", "edgecolors": BLUE}
            panels[1].scatter(*true.nonzero()[::-1], linewidths=1.8, **rings)
        _label(panels[1], names, names)
        panels[1].set(
            ylabel="cause", xlabel="effect" + (" (rings: true edges)" * (true is not None))
        )
        panels[1].set_title("probability of edges", fontsize=10, color=INK)
        figure.colorbar(image, ax=panels[1], shrink=0.7, aspect=25).outline.set_visible(False)
    return save(figure, path)


def _draw_circle(
    axes: Axes, found: np.ndarray, true: np.ndarray | None, names: Sequence[str]
) -> None:
    """The graph, with a legend that counts edges of each kind."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, FancyArrowPatch

    d = len(names)
    size = min(1.0, 22 / d)  # of nodes, so that they do not touch
    graph: networkx.DiGraph[int] = networkx.DiGraph(found)
    order = list(networkx.lexicographical_topological_sort(graph))
    angles = {j: math.pi / 2 - 2 * math.pi * k / d for k, j in enumerate(order)}
    places = {j: (math.cos(angle), math.sin(angle)) for j, angle in angles.items()}
    kinds: dict[str, tuple[np.ndarray, str, Any]] = {"edge": (found, INK, "solid")}
    if true is not None:
        kinds = {
            "right": (found & true, INK, "solid"),
            "turned": (found & ~true & true.T, PURPLE, "solid"),
            "wrong": (found & ~true & ~true.T, ORANGE, "solid"),
            "missing": (true & ~found & ~found.T, BLUE, DASHED),
        }
    for kind, (edges, colour, style) in kinds.items():
        for i, j in np.argwhere(edges):
            arrow = FancyArrowPatch(
                places[i],
                places[j],
                connectionstyle="arc3,rad=0.08",
                arrowstyle="-|>",
                mutation_scale=12 * size,
                shrinkA=12 * size,
                shrinkB=12 * size,
                color=colour,
                linestyle=style,
                linewidth=1.4,
                gid=f"{kind}:{names[i]}->{names[j]}",
            )
            axes.add_patch(arrow)
    for j, place in places.items():
        axes.add_patch(
            Circle(place, size * RADIUS, fc="white", ec=INK, lw=1.3, gid=f"node:{names[j]}")
        )
        axes.text(
            *place, names[j], ha="center", va="center_baseline", color=INK, fontsize=8.5 * size
        )
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    axes.set_axis_off()
    labels = [f"{kind}: {int(edges.sum())}" for kind, (edges, _, _) in kinds.items()]
    lines = [Line2D([], [], color=colour, linestyle=s) for _, colour, s in kinds.values()]
    legend: Any = {
        "loc": "lower center",
        "bbox_to_anchor": (0.5, -0.09),
        "ncols": 4,
        "frameon": False,
    }
    axes.legend(lines, labels, fontsize=9, handlelength=1.6, columnspacing=1.2, **legend)


def plot_regimes(
    targets: Any,
    regime: Any,
    *,
    true_targets: Any = None,
    true_regime: Any = None,
    names: Sequence[str] | None = None,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the targets of the regimes found, and their rows, beside the truth.

    Found targets are filled squares, true ones of the regime that shares most rows are rings. The
    second panel counts the rows of each regime found; the third has the share of the rows of each
    true regime that is there, and frames around regimes that share most. Where the true
    regime of fewer than two rows is known, it is left out.

    **Shapes** ``targets [K + 1, d]``, ``regime [n]`` (rows with -1 do not count), and those of the
    truth, which may have another K.

    **Raises** ``ImportError`` without matplotlib.

    **Example**

    >>> import torch
    >>> from pyro_causal.plots import plot_regimes
    >>> targets, regime = torch.tensor([[0, 0], [0, 1]]), torch.tensor([0, 1, 1, 1])
    >>> figure = plot_regimes(targets, regime)
    >>> [axes.get_title() for axes in figure.axes]
    ['targets', 'rows']
    """
    z, found = torch.as_tensor(regime).cpu(), _matrix(targets).astype(bool)
    names = [f"x{j}" for j in range(found.shape[1])] if names is None else list(names)
    true = None if true_regime is None else torch.as_tensor(true_regime).cpu()
    if true is not None and ((z >= 0) & (true >= 0)).sum() < 2:
        true = None
    labels = [f"{k}" for k in range(len(found))]
    ratios = [len(names) + 2, 6] + ([] if true is None else [int(true.max()) + 3])
    figure = make_figure(0.28 * sum(ratios) + 1.6, 0.28 * len(found) + 1.8)
    panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    panels[0].imshow(np.where(found, 0.75, 0.04), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    _label(panels[0], names, labels)
    panels[0].set(ylabel="regime found")
    sizes = z[z >= 0].bincount(minlength=len(found)).numpy()
    panels[1].barh(range(len(found)), sizes, color=GREY, height=0.7)
    panels[1].set(yticks=range(len(found)), ylim=(len(found) - 0.5, -0.5), yticklabels=[])
    panels[1].locator_params(axis="x", nbins=3)
    clean(panels[1], "top", "right")
    if true is not None:
        seen = (z >= 0) & (true >= 0)
        partner = match_regimes(z[seen], true[seen])
        _draw_shared(panels[2], z[seen], true[seen], partner, len(found))
        if true_targets is not None:
            marks = _matrix(true_targets).astype(bool)
            _draw_rings(panels[0], marks, partner)
    for axes, title in zip(panels, ("targets", "rows", "share of true regimes"), strict=False):
        axes.set_title(title, fontsize=10, color=INK)
    return save(figure, path)


def _draw_rings(axes: Axes, true: np.ndarray, partner: dict[int, int]) -> None:
    """Rings at the targets of the true regimes that have a partner."""
    rings = [(j, partner[int(k)]) for k, j in np.argwhere(true) if int(k) in partner]
    if rings:
        style: Any = {"s": 70, "facecolors": "none", "edgecolors": BLUE, "linewidths": 1.8}
        axes.scatter(*zip(*rings, strict=True), **style)
    axes.set_xlabel("rings: true targets")


def _draw_shared(
    axes: Axes, z: torch.Tensor, true: torch.Tensor, partner: dict[int, int], K: int
) -> None:
    """How many rows of each true regime are in each one found; partners are framed."""
    from matplotlib.patches import Rectangle

    count = int(true.max()) + 1
    shared = torch.bincount(z * count + true, minlength=K * count).reshape(K, count).float()
    order = sorted(range(count), key=lambda k: partner.get(k, K))
    shares = (shared / shared.sum(0).clamp(min=1))[:, order]
    axes.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    _label(axes, [f"{k}" for k in order], [""] * K)
    for column, k in enumerate(order):
        if k in partner:
            corner = column - 0.5, partner[k] - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=BLUE, lw=1.5, zorder=3))
    axes.set_xlabel("true regime")


def _label(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Name columns and rows of a matrix."""
    axes.set_xticks(range(len(columns)), columns, rotation=90 if len(columns) > 12 else 0)
    axes.set_yticks(range(len(rows)), rows)
    for k in range(1, max(len(columns), len(rows))):
        if k < len(columns):
            axes.axvline(k - 0.5, color=PALE, linewidth=0.8)
        if k < len(rows):
            axes.axhline(k - 0.5, color=PALE, linewidth=0.8)
    clean(axes, "top", "right", "bottom", "left")
    axes.tick_params(length=0)


def _matrix(value: Any) -> np.ndarray:
    return torch.as_tensor(value).detach().cpu().numpy()
