"""Graphs from and to other packages: networkx, and the text format of DAGitty."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import networkx as nx

from pyro_causal.graph.admg import ADMG

__all__ = ["from_dagitty", "from_networkx", "to_dagitty", "to_networkx"]


def from_networkx(directed: nx.DiGraph[str], bidirected: nx.Graph[str] | None = None) -> ADMG:
    """Read a graph of causes, and one of hidden common causes.

    The names are those of the nodes; attributes of nodes and edges are ignored. A graph that has
    its hidden causes as nodes becomes an ADMG by :meth:`ADMG.latent_projection`.

    **Raises** ``TypeError``: a graph of causes whose edges have no direction, or a name that is no
    string. ``ValueError``: as :class:`ADMG`.

    **Example**

    >>> import networkx as nx
    >>> from pyro_causal.graph import from_networkx
    >>> from_networkx(nx.DiGraph([("x", "m"), ("m", "y")]), nx.Graph([("x", "y")]))
    ADMG('x -> m; m -> y; x <-> y')
    >>> from_networkx(nx.DiGraph([("u", "x"), ("u", "y")])).latent_projection("u")
    ADMG('x <-> y')
    """
    if not directed.is_directed():
        raise TypeError(
            f"`directed`: expected a networkx.DiGraph, got a {type(directed).__name__}. Do direct "
            "its edges from cause to effect."
        )
    arcs = nx.Graph() if bidirected is None else bidirected
    if arcs.is_directed():
        raise TypeError(
            f"`bidirected`: expected a networkx.Graph, got a {type(arcs).__name__}. Do call its "
            "to_undirected()."
        )
    return ADMG(directed.edges(), arcs.edges(), dict.fromkeys([*directed, *arcs]))


def to_networkx(g: ADMG) -> tuple[nx.DiGraph[str], nx.Graph[str]]:
    """The graph of causes, and that of hidden common causes; both have all nodes.

    ``from_networkx(*to_networkx(g)) == g``.

    **Example**

    >>> from pyro_causal.graph import ADMG, to_networkx
    >>> directed, bidirected = to_networkx(ADMG([("x", "y")], [("x", "y")], nodes=["z"]))
    >>> list(directed.edges), list(bidirected.edges), list(bidirected)
    ([('x', 'y')], [('x', 'y')], ['z', 'x', 'y'])
    """
    directed: nx.DiGraph[str] = nx.DiGraph()
    bidirected: nx.Graph[str] = nx.Graph()
    for graph, edges in ((directed, g.directed), (bidirected, g.bidirected)):
        graph.add_nodes_from(g.nodes)
        graph.add_edges_from(edges)
    return directed, bidirected


def from_dagitty(text: str) -> ADMG:
    """Read a graph in the text format of DAGitty.

    Edges are ``->``, ``<-`` and ``<->``. They form chains, ``a -> b <- c``, and braces group nodes,
    ``{a b} -> c``. Blanks, line breaks, semicolons and commas separate; names with other signs than
    letters, digits, dots and underscores are put in quotes. The frame ``dag { ... }`` may be left
    out. Nodes that are marked ``[latent]`` are projected out, other marks are ignored.

    **Raises** ``ValueError``: text of another form, with the piece that does not fit; edges without
    a direction; selected nodes, which an ADMG cannot express; and as :class:`ADMG`.

    **References** Textor, van der Zander, Gilthorpe, Liśkiewicz & Ellison 2016, Robust causal
    inference using directed acyclic graphs: the R package dagitty.

    **Example**

    >>> from pyro_causal.graph import from_dagitty
    >>> from_dagitty("dag { x [exposure]; x -> m -> y; u [latent]; u -> {x y} }")
    ADMG('x -> m; m -> y; x <-> y')
    """
    reader = _Reader(text)
    reader.graph()
    return ADMG(reader.arrows, reader.arcs, reader.nodes).latent_projection(reader.latents)


def to_dagitty(g: ADMG) -> str:
    """Write a graph in the text format of DAGitty, the nodes first.

    ``from_dagitty(to_dagitty(g)) == g``.

    **Raises** ``ValueError``: a name with a quotation mark, for which the format has no way.

    **Example**

    >>> from pyro_causal.graph import ADMG, to_dagitty
    >>> print(to_dagitty(ADMG([("x", "y")], [("x", "y")])))
    dag {
      x
      y
      x -> y
      x <-> y
    }
    """
    name = {node: _quoted(node) for node in g.nodes}
    lines = list(name.values())
    lines += [f"{name[a]} -> {name[b]}" for a, b in g.directed]
    lines += [f"{name[a]} <-> {name[b]}" for a, b in g.bidirected]
    return "\n".join(["dag {", *(f"  {line}" for line in lines), "}"])


def _quoted(name: str) -> str:
    if '"' in name:
        raise ValueError(
            f"At node '{name}': expected a name without quotation marks, which DAGitty cannot "
            "write. Do rename it."
        )
    return name if re.fullmatch(r"[\w.]+", name) else f'"{name}"'


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


_FRAMES = ("dag", "mg", "admg", "digraph")
_OTHER_FRAMES = ("mag", "pag", "pdag", "graph")
_TOKENS = re.compile(
    r"""(?P<blank>\s+|;|,|//[^\n]*|\#[^\n]*|/\*.*?\*/)
      | (?P<edge><->|->|<-)
      | (?P<marks>\[(?:[^\]"]|"[^"]*")*\])
      | (?P<setting>\w+\s*=\s*"[^"]*")
      | (?P<name>"[^"]*"|[\w.]+)
      | (?P<brace>[{}])
      | (?P<unknown>[-<>@=]+|.)""",
    re.VERBOSE | re.DOTALL,
)


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKENS.finditer(text):
        kind = str(match.lastgroup)
        if kind not in ("blank", "setting"):
            yield _Token(kind, match.group(), text.count("\n", 0, match.start()) + 1)


class _Reader:
    """Reads statements one after the other; edges and nodes are kept once."""

    def __init__(self, text: str) -> None:
        self.tokens = [*_tokens(text), _Token("end", "the end", text.count("\n") + 1)]
        self.place = 0
        self.nodes: dict[str, None] = {}
        self.arrows: dict[tuple[str, str], None] = {}
        self.arcs: dict[tuple[str, str], None] = {}
        self.latents: dict[str, None] = {}

    @property
    def next(self) -> _Token:
        return self.tokens[self.place]

    def take(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def graph(self) -> None:
        """A frame with statements in it, or statements alone."""
        brace = next((i for i, token in enumerate(self.tokens) if token.text == "{"), 0)
        words = [token.text.lower() for token in self.tokens[:brace]]
        if words and words[0] == "strict":
            words = words[1:]
        frames = _FRAMES + _OTHER_FRAMES
        framed = len(words) in (1, 2) and words[0] in frames  # a word, and maybe a title
        if framed and words[0] in _OTHER_FRAMES:
            raise self.wrong(self.next, "a graph of type dag", "orient it and write dag { ... }")
        self.place = brace + 1 if framed else 0
        self.statements()
        if framed:
            self.close()
        if self.next.kind != "end":
            raise self.wrong(self.next, "nothing after the last brace", "drop it")

    def statements(self) -> list[str]:
        """Statements up to a closing brace or the end, and the nodes that they mention."""
        mentioned: dict[str, None] = {}
        while self.next.kind in ("name", "brace") and self.next.text != "}":
            mentioned |= dict.fromkeys(self.statement())
        if self.next.kind not in ("end", "brace"):
            raise self.wrong(self.next, "a node or an edge ->, <- or <->", "mend or drop it")
        return list(mentioned)

    def statement(self) -> list[str]:
        """A chain of nodes or groups."""
        left = self.operand()
        mentioned = list(left)
        chained = False
        while self.next.kind == "edge":
            edge = self.take()
            right = self.operand()
            for a in left:
                for b in right:
                    self.connect(a, edge.text, b)
            mentioned += right
            left, chained = right, True
        if self.next.kind == "marks":
            self.mark(self.take(), mentioned, chained)
        return mentioned

    def operand(self) -> list[str]:
        """A node, or a group of them in braces."""
        token = self.take()
        if token.kind == "name":
            name = token.text.strip('"')
            self.nodes[name] = None
            return [name]
        if token.text != "{":
            raise self.wrong(token, "a node after the edge", "complete or drop the edge")
        group = self.statements()
        self.close()
        return group

    def close(self) -> None:
        if self.next.text != "}":
            raise self.wrong(self.next, "a closing brace", "add }")
        self.take()

    def connect(self, a: str, edge: str, b: str) -> None:
        if edge == "<->":
            if (b, a) not in self.arcs:
                self.arcs[a, b] = None
        else:
            self.arrows[(a, b) if edge == "->" else (b, a)] = None

    def mark(self, token: _Token, nodes: list[str], chained: bool) -> None:
        """Note latent nodes."""
        marks = {mark.strip().lower() for mark in token.text[1:-1].split(",")}
        if "selected" in marks:
            raise self.wrong(token, "no selected nodes", "drop the mark, and condition on the node")
        if "latent" in marks:
            if chained:
                raise self.wrong(token, "marks of one node", "write them in a line of their own")
            self.latents |= dict.fromkeys(nodes)

    def wrong(self, token: _Token, expected: str, remedy: str) -> ValueError:
        place = next(i for i, other in enumerate(self.tokens) if other is token)
        before = " ".join(other.text for other in self.tokens[max(0, place - 3) : place])
        after = f" after '{before}'" if before else ""
        return ValueError(
            f"At '{token.text}'{after}, line {token.line} of the graph: expected {expected}. "
            f"Do {remedy}."
        )
