"""The picture of a causal graph: layers of causes, arcs around obstacles, crossed-out edges."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import networkx
import numpy as np

from pyro_causal._figures import BLUE, DASHED, FADED, GREY, INK, ORANGE
from pyro_causal.graph import ADMG

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

__all__ = ["Edges", "draw_graph"]

Edges: TypeAlias = "ADMG | networkx.DiGraph[Any] | Iterable[tuple[Hashable, Hashable]]"

# One unit of the axes is one inch.
HEIGHT, LETTER, LAYER_GAP, NODE_GAP, CLEARANCE, MARGIN = 0.5, 0.11, 0.9, 0.55, 0.1, 0.25

# How far an arc leaves the straight line, as a share of its length, in order of preference.
BENDS = (0.0, 0.12, -0.12, 0.25, -0.25, 0.4, -0.4, 0.6, -0.6)
BOWED = (0.3, -0.3, 0.5, -0.5, 0.7, -0.7)  # beside a possible straight edge


class Node(NamedTuple):
    """Centre and width of a node."""

    x: float
    y: float
    width: float


class Edge(NamedTuple):
    """An arc between two nodes, with points ``[P, 2]`` along it."""

    source: Hashable
    target: Hashable
    bend: float
    points: np.ndarray


def draw_graph(
    figure: Figure,
    graph: Edges,
    bidirected: Iterable[Iterable[Hashable]],
    roles: Mapping[str, set[Hashable]],
    *,
    keep_cut: bool,
    title: str | None,
) -> None:
    """Fill ``figure`` with an acyclic graph, its hidden common causes and an intervention.

    ``roles`` has the nodes of the "intervention", and other "marks".
    """
    directed, hidden = read_graph(graph, bidirected)
    for role, names in roles.items():
        if unknown := names - set(directed):
            raise ValueError(
                f"At site '{min(map(str, unknown))}', {role}: expected one of {list(directed)}. "
                "Do check its spelling."
            )
    targets = roles["intervention"]
    fills = {**dict.fromkeys(roles["marks"], BLUE), **dict.fromkeys(targets, ORANGE)}
    nodes = place_nodes(directed)
    axes = figure.add_axes((0, 0, 1, 1))
    boxes = {name: _draw_node(axes, name, node, fills.get(name)) for name, node in nodes.items()}
    edges = [route(nodes, a, b, BENDS) for a, b in directed.edges]
    arcs = [route(nodes, a, b, BOWED) for a, b in hidden]
    for edge in edges:
        if keep_cut or edge.target not in targets:
            _draw_edge(axes, boxes, edge, cut=edge.target in targets)
    for arc in arcs:
        cut = not targets.isdisjoint((arc.source, arc.target))
        if keep_cut or not cut:
            _draw_edge(axes, boxes, arc, cut=cut, hidden=True)
    _fit(figure, axes, nodes, [*edges, *arcs], title)


def read_graph(
    graph: Edges, bidirected: Iterable[Iterable[Hashable]]
) -> tuple[networkx.DiGraph[Any], list[tuple[Hashable, Hashable]]]:
    """The graph of causes, checked to be acyclic, and the pairs with a hidden common cause."""
    pairs: list[Iterable[Hashable]] = [*bidirected]
    directed: networkx.DiGraph[Any] = networkx.DiGraph()
    if isinstance(graph, ADMG):
        pairs = [*graph.bidirected, *pairs]
        directed.add_nodes_from(graph.nodes)
        directed.add_edges_from(graph.directed)
    else:
        directed = networkx.DiGraph(graph)
    hidden = [(a, b) for a, b in (sorted(pair, key=str) for pair in pairs)]
    directed.add_nodes_from(name for pair in hidden for name in pair)
    if not networkx.is_directed_acyclic_graph(directed):
        cycle = [str(edge[0]) for edge in networkx.find_cycle(directed)]
        raise ValueError(
            f"At site '{cycle[0]}', causal graph: expected no directed cycle, got "
            f"{' -> '.join([*cycle, cycle[0]])}. Do unroll feedback over time, or drop an edge."
        )
    return directed, hidden


def place_nodes(graph: networkx.DiGraph) -> dict[Hashable, Node]:
    """Place the nodes in layers from left to right, every effect right of all its causes.

    Within a layer, nodes stand in the order of the mean height of their parents, which keeps the
    crossings few (the barycentre heuristic).
    """
    nodes: dict[Hashable, Node] = {}
    left = 0.0
    for layer in networkx.topological_generations(graph):
        widths = {name: max(HEIGHT, LETTER * len(str(name)) + 0.25) for name in layer}
        heights = {
            name: sum(nodes[parent].y for parent in graph.pred[name]) / (len(graph.pred[name]) or 1)
            for name in layer
        }
        x = left + max(widths.values()) / 2
        for row, name in enumerate(sorted(layer, key=heights.__getitem__, reverse=True)):
            y = ((len(layer) - 1) / 2 - row) * (HEIGHT + NODE_GAP)
            nodes[name] = Node(x, y, widths[name])
        left += max(widths.values()) + LAYER_GAP
    return nodes


def route(
    nodes: Mapping[Hashable, Node], source: Hashable, target: Hashable, bends: Sequence[float]
) -> Edge:
    """The first arc among ``bends`` that runs through no other node, or through the fewest."""
    others = [node for name, node in nodes.items() if name not in (source, target)]
    edges = [Edge(source, target, bend, _arc(nodes[source], nodes[target], bend)) for bend in bends]
    return min(edges, key=lambda edge: sum(_crosses(edge.points, node) for node in others))


def _arc(start: Node, end: Node, bend: float) -> np.ndarray:
    """Points of the quadratic Bezier curve that matplotlib's ``arc3`` draws."""
    a, b = np.array(start[:2]), np.array(end[:2])
    dx, dy = b - a
    control = (a + b) / 2 + bend * np.array([dy, -dx])
    t = np.linspace(0.0, 1.0, 33)[:, None]
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * control + t**2 * b


def _crosses(points: np.ndarray, node: Node) -> bool:
    reach = np.array([node.width / 2 + CLEARANCE, HEIGHT / 2 + CLEARANCE])
    return bool((np.abs(points - np.array(node[:2])) < reach).all(-1).any())


def _draw_node(axes: Axes, name: Hashable, node: Node, fill: str | None) -> Patch:
    from matplotlib.patches import FancyBboxPatch

    box = FancyBboxPatch(
        (node.x - node.width / 2, node.y - HEIGHT / 2),
        node.width,
        HEIGHT,
        boxstyle=f"round,pad=0,rounding_size={HEIGHT / 2}",
        facecolor=fill or "white",
        edgecolor=INK,
        linewidth=1.5,
        gid=f"node:{name}",
    )
    axes.text(
        node.x,
        node.y,
        str(name),
        color="white" if fill else INK,
        fontsize=12,
        fontweight="bold" if fill else "normal",
        horizontalalignment="center",
        verticalalignment="center_baseline",
    )
    return axes.add_patch(box)


def _draw_edge(
    axes: Axes, boxes: Mapping[Hashable, Patch], edge: Edge, *, cut: bool, hidden: bool = False
) -> None:
    from matplotlib.patches import FancyArrowPatch

    arrow = "<->" if hidden else "->"
    axes.add_patch(
        FancyArrowPatch(
            edge.points[0],
            edge.points[-1],
            connectionstyle=f"arc3,rad={edge.bend}",
            patchA=boxes[edge.source],
            patchB=boxes[edge.target],
            shrinkA=2,
            shrinkB=2,
            arrowstyle="<|-|>" if hidden else "-|>",
            mutation_scale=13,
            color=FADED if cut else GREY if hidden else INK,
            linestyle=DASHED if hidden else "solid",
            linewidth=1.5,
            zorder=0,
            gid=f"{'cut' if cut else 'edge'}:{edge.source}{arrow}{edge.target}",
        )
    )
    if cut:
        axes.plot(
            *edge.points[len(edge.points) // 2],
            "x",
            color=ORANGE,
            markersize=9,
            markeredgewidth=2.2,
        )


def _fit(
    figure: Figure,
    axes: Axes,
    nodes: Mapping[Hashable, Node],
    edges: Sequence[Edge],
    title: str | None,
) -> None:
    """Fit the figure to its content, one inch per unit."""
    corners = [
        (node.x + side * node.width / 2, node.y + side * HEIGHT / 2)
        for node in nodes.values()
        for side in (-1, 1)
    ]
    points = np.concatenate([corners, *(edge.points for edge in edges)])
    left, bottom = points.min(0) - MARGIN
    right, top = points.max(0) + MARGIN
    if title is not None:
        axes.text(left + MARGIN, top, title, color=INK, fontsize=12, verticalalignment="center")
        right = max(right, left + 2 * MARGIN + LETTER * len(title))
        top += MARGIN
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    figure.set_size_inches(right - left, top - bottom)
