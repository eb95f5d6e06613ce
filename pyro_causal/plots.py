"""Pictures of causal graphs, given or found, rungs, dose curves and counterfactual images.

Every function returns a ``matplotlib.figure.Figure`` and saves it when ``path`` is given. The
figures belong to no window and to no ``pyplot`` state, and no global setting is changed. The
colours stay apart under the common forms of colour blindness.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_causal._figures import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    clean,
    make_figure,
    save,
)
from pyro_causal._graph_picture import Edges, draw_graph
from pyro_causal._structure_picture import plot_found_graph, plot_regimes
from pyro_causal.graph import Hedge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_dose_curve",
    "plot_found_graph",
    "plot_graph",
    "plot_hedge",
    "plot_image_grid",
    "plot_regimes",
    "plot_rungs",
]

RUNG_COLOURS = {"association": BLUE, "intervention": ORANGE, "counterfactual": GREEN}


def plot_graph(
    graph: Edges,
    *,
    bidirected: Iterable[Iterable[Hashable]] = (),
    intervened: Iterable[Hashable] = (),
    marked: Iterable[Hashable] = (),
    cut: str = "fade",
    title: str | None = None,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw a causal graph from causes (left) to effects (right), with interventions.

    An intervention cuts every edge into its target, from parents and from hidden common causes.

    **Arguments**

    - ``graph``: an :class:`pyro_causal.graph.ADMG`, a directed acyclic graph, or the edges of one
      (cause, effect).
    - ``bidirected``: pairs with a hidden common cause, drawn as dashed arcs with two heads; those
      of an ADMG are drawn anyway.
    - ``intervened``: the targets of an intervention, drawn in orange.
    - ``marked``: other nodes to point out, drawn in blue.
    - ``cut``: ``"fade"`` draws the cut edges pale and crossed out; ``"remove"`` leaves them out.

    **Raises** ``ValueError`` for a directed cycle, naming it, for an unknown node, and for another
    ``cut``. ``ImportError`` without matplotlib.

    **Example**

    >>> from pyro_causal.plots import plot_graph
    >>> figure = plot_graph([("x", "h"), ("h", "y"), ("x", "y")], intervened=["h"])
    >>> [patch.get_gid() for patch in figure.axes[0].patches]
    ['node:x', 'node:h', 'node:y', 'cut:x->h', 'edge:x->y', 'edge:h->y']
    """
    if cut not in ("fade", "remove"):
        raise ValueError(f"`cut`: expected 'fade' or 'remove', got '{cut}'.")
    figure = make_figure(1.0, 1.0, constrained=False)
    drawn = {"intervention": set(intervened), "marks": set(marked)}
    draw_graph(figure, graph, bidirected, drawn, keep_cut=cut == "fade", title=title)
    return save(figure, path)


def plot_hedge(hedge: Hedge, *, path: str | PathLike[str] | None = None) -> Figure:
    """Draw why an effect cannot be identified: a hedge, its smaller forest in blue.

    Hidden causes tie the other nodes to the blue ones, and blur how those act on these.

    **Raises** ``ImportError`` without matplotlib.

    **Example**

    >>> from pyro_causal.graph import ADMG, Unidentifiable, identify
    >>> from pyro_causal.plots import plot_hedge
    >>> try:
    ...     identify(ADMG([("x", "y")], [("x", "y")]), "y", do="x")
    ... except Unidentifiable as why:
    ...     figure = plot_hedge(why.hedge)
    >>> [patch.get_gid() for patch in figure.axes[0].patches]
    ['node:x', 'node:y', 'edge:x->y', 'edge:x<->y']
    """
    inner = hedge.subforest.nodes
    outer = (name for name in hedge.forest.nodes if name not in inner)
    title = f"{', '.join(outer)} on {', '.join(inner)}: blurred by {', '.join(hedge.hidden)}"
    return plot_graph(hedge.forest, marked=inner, title=title, path=path)


def plot_rungs(
    samples: Mapping[str, Any],
    *,
    variable: str = "value",
    truth: Mapping[str, float] | None = None,
    level: float = 0.9,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the distributions of one variable on several rungs side by side, on one scale.

    Continuous samples become a density whose dark part is the central interval; samples with few
    values, all integers or all equal, become a probability for each value.

    **Shapes** Every value of ``samples`` is a tensor of any shape, all of whose elements count.

    **Arguments**

    - ``samples``: maps the titles of the panels ("association", "intervention",
      "counterfactual") to samples.
    - ``truth``: maps some of these titles to a true value, drawn as a dashed line.
    - ``level``: the probability of the central interval.

    **Raises** ``ValueError`` for no samples, for samples that are not finite, and for a truth
    without a panel. ``ImportError`` without matplotlib.

    **Example**

    >>> import torch
    >>> from pyro_causal.plots import plot_rungs
    >>> rungs = {"intervention": torch.randn(100), "counterfactual": torch.full((100,), 1.9)}
    >>> figure = plot_rungs(rungs, variable="y", truth={"counterfactual": 1.9})
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['intervention', 'counterfactual']
    """
    truth = {title: float(value) for title, value in (truth or {}).items()}
    _check_titles(truth, samples)
    values = {title: _finite(value, title).flatten() for title, value in samples.items()}
    figure = make_figure(3.3 * len(values), 3.2)
    panels = figure.subplots(1, len(values), sharex=True, squeeze=False)[0]
    room = 30 if truth else 18  # points above each panel for its caption
    for axes, title in zip(panels, values, strict=True):
        rung = next((name for name in RUNG_COLOURS if title.startswith(name)), "")
        colour = RUNG_COLOURS.get(rung, PURPLE)
        caption = _draw_distribution(axes, values[title], level, colour)
        if title in truth:
            axes.axvline(truth[title], color=INK, linestyle=DASHED, linewidth=1.4, gid="truth")
            caption += f"\ntruth {truth[title]:.3g} (dashed)"
        axes.set_title(title, loc="left", color=colour, fontweight="bold", pad=room)
        above = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(caption, (0, 1), (0, room - 6), va="top", color=INK, fontsize=9, **above)
        axes.set_xlabel(variable)
        axes.set_ylim(bottom=0.0)
        axes.set_yticks([])
        clean(axes, "top", "right", "left")
    return save(figure, path)


def plot_dose_curve(
    dose: Any,
    samples: Any,
    *,
    level: float = 0.9,
    truth: Any = None,
    treatment: str = "t",
    outcome: str = "y",
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the effect of ``do(treatment)`` over a grid of doses: the mean and a central interval.

    **Shapes** ``dose`` ``[D]``, in any order; ``samples`` ``[num_samples, D]``; ``truth`` ``[D]``.

    **Arguments**

    - ``samples``: draws of the outcome (a predictive interval) or of its mean (a credible one).
    - ``level``: the probability of the interval.
    - ``truth``: the true curve, drawn dashed.
    - ``treatment``, ``outcome``: names for the labels.

    **Raises** ``ValueError`` for shapes that do not fit and for values that are not finite.
    ``ImportError`` without matplotlib.

    **Example**

    >>> import torch
    >>> from pyro_causal.plots import plot_dose_curve
    >>> dose = torch.linspace(0.0, 1.0, 5)
    >>> figure = plot_dose_curve(dose, dose**2 + 0.1 * torch.randn(50, 5), truth=dose**2)
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('do(t)', 'y')
    """
    doses, draws = _finite(dose, treatment), _finite(samples, outcome)
    curve = doses if truth is None else _finite(truth, outcome)
    if doses.ndim != 1 or draws.shape[1:] != doses.shape or curve.shape != doses.shape:
        raise ValueError(
            f"At site '{outcome}', dose curve: expected doses [D], samples [num_samples, D] and "
            f"truth [D], got {doses.shape}, {draws.shape} and {curve.shape}. "
            "Do give one column of samples for each dose."
        )
    order = doses.argsort()
    doses, draws, curve = doses[order], draws[:, order], curve[order]
    low, high = _interval(draws, level)
    figure = make_figure(5.2, 3.4)
    axes = figure.add_subplot()
    axes.fill_between(doses, low, high, color=BLUE, alpha=0.2, lw=0, label=f"{level:.0%} interval")
    axes.plot(doses, draws.mean(0), color=BLUE, linewidth=2.2, label="mean")
    if truth is not None:
        axes.plot(doses, curve, color=INK, linestyle=DASHED, linewidth=1.4, label="truth")
    axes.set(xlabel=f"do({treatment})", ylabel=outcome)
    axes.margins(x=0)
    axes.grid(axis="y", color=PALE)
    axes.legend(frameon=False, fontsize=9)
    clean(axes, "top", "right")
    return save(figure, path)


def plot_image_grid(
    factual: Any,
    counterfactuals: Mapping[str, Any],
    *,
    truth: Mapping[str, Any] | None = None,
    units: Sequence[str] | None = None,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw units (rows) in the factual and the counterfactual worlds, and what changed.

    All images share one grey scale; all differences (counterfactual minus factual) share one
    diverging scale, symmetric around zero, whose white means "unchanged".

    **Shapes** ``factual``, and every value of ``counterfactuals`` and ``truth``: ``[N, H, W]``,
    ``[N, 1, H, W]``, or ``[N, 3, H, W]`` with colours in [0, 1].

    **Arguments**

    - ``counterfactuals``: maps the titles of the columns ("do(t=2)") to images.
    - ``truth``: maps the same titles to the true images, drawn in a second row for each unit.
    - ``units``: a label for each of the N units.

    **Raises** ``ValueError`` for shapes that do not fit, values that are not finite, and a
    ``truth`` or ``units`` that does not match the images. ``ImportError`` without matplotlib.

    **Example**

    >>> import torch
    >>> from pyro_causal.plots import plot_image_grid
    >>> images = torch.rand(2, 8, 8)
    >>> figure = plot_image_grid(images, {"do(t=1)": images + 0.5, "do(t=2)": images.flip(-1)})
    >>> sum(len(axes.images) for axes in figure.axes if axes.get_label() != "<colorbar>")
    10
    """
    _check_titles(truth or {}, counterfactuals)
    titles = list(counterfactuals)
    before = _images(factual, "factual")
    rows = {"model": [_images(counterfactuals[title], title, before) for title in titles]}
    if truth is not None:
        _check_titles(counterfactuals, truth)
        rows["truth"] = [_images(truth[title], title, before) for title in titles]
    if units is not None and len(units) != len(before):
        raise ValueError(f"`units`: expected {len(before)} labels, got {len(units)}.")
    figure = make_figure(1.2 * (1 + 2 * len(titles)) + 1.2, 1.2 * len(before) * len(rows) + 0.6)
    cells = figure.subplots(len(before) * len(rows), 1 + 2 * len(titles), squeeze=False)
    for axes in cells.flat:
        axes.set(xticks=[], yticks=[])
        clean(axes, "top", "right", "bottom", "left")
    cells[0, 0].set_title("factual", fontsize=10)
    for k, title in enumerate(titles, start=1):
        cells[0, k].set_title(title, fontsize=10)
        cells[0, k + len(titles)].set_title(f"{title}\n− factual", fontsize=10)
    for i, label in enumerate(units or []):
        cells[i * len(rows), 0].set_ylabel(label, fontsize=10)
    _draw_images(figure, cells, before, rows)
    return save(figure, path)


def _draw_images(
    figure: Figure, cells: Any, before: np.ndarray, rows: Mapping[str, list[np.ndarray]]
) -> None:
    """Fill the cells of an image grid; its images are ``[N, H, W, C]``."""
    shown = np.stack([before, *(images for worlds in rows.values() for images in worlds)])
    limit = np.abs((shown[1:] - before).mean(-1)).max() or 1.0
    grey = {"cmap": "gray", "vmin": shown.min(), "vmax": shown.max()}
    for i, unit in enumerate(before):
        for j, (row, worlds) in enumerate(rows.items()):
            line = cells[i * len(rows) + j]
            if j == 0:
                line[0].imshow(unit, **grey)
            if len(rows) > 1:
                line[1].set_ylabel(row, fontsize=9, color=GREY)
            for k, images in enumerate(worlds, start=1):
                line[k].imshow(images[i], **grey)
                change = (images[i] - unit).mean(-1)
                scale = line[k + len(worlds)].imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = figure.colorbar(scale, ax=cells[:, 1 + len(worlds) :], shrink=0.8, aspect=25)
    bar.outline.set_visible(False)


def _images(value: Any, name: str, like: np.ndarray | None = None) -> np.ndarray:
    """``value`` as ``[N, H, W, C]`` with C = 1 or 3, of the shape ``like``."""
    images = _finite(value, name)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"At site '{name}', images: expected shape [N, H, W], [N, 1, H, W] or [N, 3, H, W], "
            f"got {images.shape}. Do add or move the missing dimension."
        )
    images = np.moveaxis(images.clip(0, 1) if images.shape[1] == 3 else images, 1, -1)
    if like is not None and images.shape != like.shape:
        raise ValueError(
            f"At site '{name}', images: expected {like.shape} (N, H, W, channels) as in the "
            f"factual world, got {images.shape}. Do pass the same units in every world."
        )
    return images


def _draw_distribution(axes: Axes, values: np.ndarray, level: float, colour: str) -> str:
    """Draw samples ``[S]`` and describe them in a line."""
    levels, counts = np.unique(values, return_counts=True)
    if np.ptp(values) <= 1e-5 * np.abs(values).max():  # one value, up to rounding
        levels, counts = values[:1], np.array([len(values)])
    if len(levels) == 1 or (len(levels) <= 12 and (levels == levels.round()).all()):
        shares = counts / len(values)
        axes.vlines(levels, 0, shares, color=colour, linewidth=5, alpha=0.35)
        axes.plot(levels, shares, "o", color=colour, markersize=7)
        axes.margins(x=0.15)
        return f"{'all at' if len(levels) == 1 else 'mean'} {values.mean():.3g}"
    low, high = _interval(values, level)
    grid, density = _density(values)
    axes.fill_between(grid, density, color=colour, alpha=0.18, linewidth=0)
    inside = (grid >= low) & (grid <= high)
    axes.fill_between(grid[inside], density[inside], color=colour, alpha=0.35, linewidth=0)
    axes.plot(grid, density, color=colour, linewidth=2)
    return f"mean {values.mean():.3g},  {level:.0%} in [{low:.3g}, {high:.3g}]"


def _density(values: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian kernel density estimate from binned samples (Silverman's bandwidth).

    The grid leaves out the outermost samples, at most one in a hundred, so that one outlier does
    not squeeze the picture.
    """
    low, high = _interval(values, 0.5)
    width = 0.9 * (min(values.std(), (high - low) / 1.34) or values.std()) * len(values) ** -0.2
    low, high = _interval(values, 0.99)
    counts, edges = np.histogram(values, points, (low - 3 * width, high + 3 * width))
    grid = (edges[:-1] + edges[1:]) / 2
    kernel = np.exp(-0.5 * ((grid[:, None] - grid) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return grid, kernel @ counts / len(values)


def _check_titles(titles: Mapping[str, Any], panels: Mapping[str, Any]) -> None:
    """Check that every one of ``titles`` is a panel, and that there is one."""
    if not panels:
        raise ValueError("Nothing to draw: expected at least one panel, got an empty dict.")
    for title in titles:
        if title not in panels:
            raise ValueError(
                f"`truth`: expected the titles of the panels, found '{title}' among "
                f"{list(titles)} but not among {list(panels)}. Do use the same titles."
            )


def _finite(value: Any, name: str) -> np.ndarray:
    """``value`` as a float64 array, checked to be finite and not empty."""
    array = torch.as_tensor(value).detach().cpu().double().numpy()
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"At site '{name}', values: expected finite numbers, got "
            f"{(~np.isfinite(array)).sum()} NaN or infinite among {array.size}. "
            "Do drop them, or look for where they arise."
        )
    return array


def _interval(draws: np.ndarray, level: float) -> np.ndarray:
    """The central interval of draws ``[S, ...]``, stacked to ``[2, ...]``."""
    return np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
