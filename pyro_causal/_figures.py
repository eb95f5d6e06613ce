"""Figures that belong to no window, and the colours of all pictures."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "DASHED",
    "FADED",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PALE",
    "PURPLE",
    "clean",
    "make_figure",
    "save",
]

INK, GREY, FADED, PALE = "#1F2933", "#7B8794", "#CBD2D9", "#E6EBF0"
ORANGE, BLUE, GREEN, PURPLE = "#D55E00", "#0072B2", "#009E73", "#AA4499"
DASHED = (0, (4, 3))


def make_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """A figure, in inches, that no window shows and that `pyplot` does not know."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib. Do install it: pip install pyro_causal[plot]"
        ) from error
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.04) if constrained else None
    return Figure(figsize=(width, height), facecolor="white", layout=layout)


def clean(axes: Axes, *spines: str) -> None:
    """Take off some of the spines."""
    axes.spines[list(spines)].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def save(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    """Write a figure to a file, if there is one."""
    if path is not None:
        figure.savefig(path, dpi=200)
    return figure
