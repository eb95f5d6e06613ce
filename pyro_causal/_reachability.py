"""Reachability in directed graphs, in a batch."""

from __future__ import annotations

from torch import Tensor

__all__ = ["reached"]


def reached(edges: Tensor) -> Tensor:
    """Which nodes there is a path to, of one edge or more.

    Each pass doubles the length of the paths, and no path or cycle need be longer than d edges.

    **Shapes** booleans ``[*batch, d, d]``, (i, j) for an edge i -> j; result the same, (i, j) for a
    path, so that a node on a cycle reaches itself.
    """
    for _ in range((edges.shape[-1] - 1).bit_length()):
        paths = edges.float()
        edges = edges | (paths @ paths > 0)
    return edges
