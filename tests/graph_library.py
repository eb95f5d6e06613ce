"""Graphs of the literature, with queries and whether they are identifiable.

A verdict is the source's own, unless the source is "constructed". All are confirmed in
`test_graph_identify.py` by the independent decisions of `graph_models.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from pyro_causal.graph.admg import ADMG

__all__ = ["ASIA", "CASES", "GRAPHS", "SACHS", "Case"]


def parse(text: str) -> ADMG:
    """Read edges such as ``x -> y, x <-> y``, lone nodes in between."""
    arrows, arcs, nodes = [], [], []
    for part in text.split(","):
        ends = part.split()
        if len(ends) == 1:
            nodes.append(ends[0])
        else:
            (arcs if ends[1] == "<->" else arrows).append((ends[0], ends[2]))
    return ADMG(arrows, arcs, nodes)


ASIA = parse(
    "asia -> tub, smoke -> lung, smoke -> bronc, tub -> either, lung -> either, either -> xray,"
    "either -> dysp, bronc -> dysp"
)
SACHS = parse(
    "PKC -> PKA, PKC -> Jnk, PKC -> P38, PKC -> Raf, PKC -> Mek, PKA -> Raf, PKA -> Mek,"
    "PKA -> Erk, PKA -> Akt, PKA -> Jnk, PKA -> P38, Raf -> Mek, Mek -> Erk, Erk -> Akt,"
    "Plcg -> PIP3, Plcg -> PIP2, PIP3 -> PIP2"
)

PEARL = "Pearl 2009, Causality"
TIAN = "Tian 2002, Studies in causal reasoning and learning"
HIERARCHY = "Shpitser & Pearl 2008, Complete identification methods for the causal hierarchy"

GRAPHS: dict[str, tuple[ADMG, str]] = {
    "cause": (parse("x -> y"), f"{PEARL}, figure 3.8(a)"),
    "confounded mediator": (parse("x -> y, x -> z, z -> y, z <-> y"), f"{PEARL}, figure 3.8(b)"),
    "back door": (parse("z -> x, z -> y, x -> y"), f"{PEARL}, section 3.3.1"),
    "back door with hidden cause": (
        parse("z -> x, z -> y, x -> y, x <-> z"),
        f"{PEARL}, figure 3.8(d)",
    ),
    "front door": (parse("x -> z, z -> y, x <-> y"), f"{PEARL}, figure 3.5"),
    "3.8(f)": (
        parse("x -> y, x -> z1, z1 -> z2, z1 -> y, z2 -> y, x <-> z2, z1 <-> y"),
        f"{PEARL}, figure 3.8(f)",
    ),
    "3.8(g)": (
        parse(
            "z2 -> x, z2 -> z1, z2 -> z3, x -> z1, z3 -> y, z1 -> y,"
            "x <-> z2, y <-> z2, x <-> z3, x <-> y"
        ),
        f"{PEARL}, figure 3.8(g)",
    ),
    "bow": (parse("x -> y, x <-> y"), f"{PEARL}, figure 3.9(a)"),
    "instrument": (parse("z -> x, x -> y, x <-> y"), f"{PEARL}, section 8.2"),
    "plan": (
        parse("x1 -> z, x1 -> y, x1 -> x2, z -> x2, x2 -> y, x1 <-> z, z <-> y"),
        f"{PEARL}, figure 4.4",
    ),
    "napkin": (
        parse("w -> z, z -> x, x -> y, w <-> x, w <-> y"),
        "Pearl & Mackenzie 2018, The book of why, page 240",
    ),
    "M": (
        parse("x -> y, x <-> m, m <-> y"),
        "Greenland, Pearl & Robins 1999, Causal diagrams for epidemiologic research",
    ),
    "Verma": (
        parse("v1 -> v2, v2 -> v3, v3 -> v4, v2 <-> v4"),
        "Verma & Pearl 1990, Equivalence and synthesis of causal models",
    ),
    "Tian, page 70": (
        parse("v1 -> v2, v2 -> v3, v3 -> v4, v4 -> v5, v1 <-> v3, v2 <-> v4, v3 <-> v5"),
        TIAN,
    ),
    "Tian, page 90": (
        parse(
            "w1 -> w2, w3 -> w4, w2 -> x, w4 -> x, x -> y,"
            "w1 <-> x, w1 <-> y, w1 <-> w3, w3 <-> w2, w3 <-> w5, w5 <-> w4"
        ),
        TIAN,
    ),
    "conditional": (parse("x -> z, z -> y, x <-> z"), f"{HIERARCHY}, figure 6(a)"),
    "two outcomes": (
        parse("x -> y1, w1 -> x, w2 -> y2, w1 <-> y1, w1 <-> w2, w2 <-> x, w1 <-> y2"),
        f"{HIERARCHY}, figure 3",
    ),
    "surrogate": (
        parse("z -> x, x -> y, z <-> x, z <-> y"),
        "Bareinboim & Pearl 2012, Causal inference by surrogate experiments, figure 1",
    ),
    "surrogate, confounded": (
        parse("z -> x, x -> y, x <-> y, z <-> y"),
        "Bareinboim & Pearl 2012, Causal inference by surrogate experiments, figure 1",
    ),
    "long front door": (parse("x -> m1, m1 -> m2, m2 -> y, x <-> y"), "constructed"),
    "bow on the way": (parse("x -> z, z -> y, x <-> z, x -> y"), "constructed"),
    "bow through a cause": (parse("x -> y, z -> y, x <-> z, z <-> y"), "constructed"),
    "broken front door": (parse("x -> z, z -> y, x <-> y, z <-> y"), "constructed"),
    "lone node": (parse("x -> y, w"), "constructed"),
    "instrument and more": (parse("z -> x, x -> y, y <-> v"), "constructed"),
    "two bows": (parse("x1 -> y1, x1 <-> y1, x2 -> y2, x2 <-> y2, y1 -> y2"), "constructed"),
    "ASIA": (
        ASIA.latent_projection(["smoke", "bronc"]),
        "Lauritzen & Spiegelhalter 1988, Local computations with probabilities (two hidden)",
    ),
    "Sachs": (
        SACHS.latent_projection(["PKC", "Plcg"]),
        "Sachs et al. 2005, Causal protein-signaling networks (PKC, Plcg hidden)",
    ),
}


class Case(NamedTuple):
    """A query, and whether the datasets determine it."""

    graph: str
    outcome: str  # names, as all below, with blanks in between
    do: str
    given: str
    identifiable: bool
    experiments: tuple[str, ...] = ("",)

    @property
    def g(self) -> ADMG:
        return GRAPHS[self.graph][0]

    @property
    def query(self) -> tuple[list[str], list[str], list[str]]:
        return self.outcome.split(), self.do.split(), self.given.split()

    @property
    def available(self) -> list[frozenset[str]]:
        return [frozenset(names.split()) for names in self.experiments]

    def __str__(self) -> str:
        data = "" if self.experiments == ("",) else f" from {self.experiments}"
        return f"{self.graph}: P({self.outcome} | do({self.do}), {self.given}){data}"


CASES: tuple[Case, ...] = (
    Case("cause", "y", "x", "", True),
    Case("confounded mediator", "y", "x", "", True),
    Case("confounded mediator", "y", "x", "z", True),
    Case("confounded mediator", "y", "z", "", False),
    Case("confounded mediator", "y", "x z", "", False),
    Case("back door", "y", "x", "", True),
    Case("back door", "y", "x", "z", True),
    Case("back door with hidden cause", "y", "x", "", True),
    Case("front door", "y", "x", "", True),
    Case("front door", "y", "z", "", True),
    Case("front door", "y z", "x", "", True),
    Case("front door", "y", "x", "z", True),
    Case("3.8(f)", "y", "x", "", True),
    Case("3.8(g)", "y", "x", "", True),
    Case("bow", "y", "x", "", False),
    Case("bow", "x", "y", "", True),
    Case("bow", "y", "", "x", True),
    Case("bow", "y", "x", "", True, ("x",)),
    Case("instrument", "y", "x", "", False),
    Case("instrument", "y", "z", "", True),
    Case("instrument", "y", "x", "z", False),
    Case("instrument", "y", "x", "", False, ("", "z")),
    Case("instrument", "y", "z x", "", True, ("x",)),
    Case("plan", "y", "x1 x2", "", True),
    Case("plan", "y", "x2", "", True),
    Case("plan", "y", "x1", "", False),
    Case("napkin", "y", "x", "", True),
    Case("napkin", "y", "z x", "", True),
    Case("napkin", "y", "x", "w", False),
    Case("M", "y", "x", "", True),
    Case("M", "y", "x", "m", False),
    Case("Verma", "v4", "v3", "", True),
    Case("Verma", "v4", "v2", "", True),
    Case("Verma", "v4", "v1", "", True),
    Case("Verma", "v2 v4", "v1 v3", "", True),
    Case("Tian, page 70", "v5", "v1", "", True),
    Case("Tian, page 90", "y", "x", "", True),
    Case("Tian, page 90", "y", "w2 x", "", True),
    Case("conditional", "y", "x", "z", True),
    Case("conditional", "y", "x", "", False),
    Case("two outcomes", "y1 y2", "x", "", True),
    Case("two outcomes", "y1", "x", "", True),
    Case("surrogate", "y", "x", "", False),
    Case("surrogate", "y", "x", "", True, ("z",)),
    Case("surrogate", "y", "x", "", True, ("", "z")),
    Case("surrogate, confounded", "y", "x", "", False, ("", "z")),
    Case("long front door", "y", "x", "", True),
    Case("long front door", "y", "m1", "", True),
    Case("long front door", "y m2", "m1", "", True),
    Case("bow on the way", "y", "x", "", False),
    Case("bow on the way", "y", "x", "z", True),
    Case("bow through a cause", "y", "x", "", False),
    Case("bow through a cause", "y", "x", "z", False),
    Case("bow through a cause", "y", "z", "x", False),
    Case("broken front door", "y", "x", "", False),
    Case("broken front door", "y", "x", "", False, ("", "z")),
    Case("broken front door", "y", "x", "", True, ("", "x")),
    Case("lone node", "y w", "x", "", True),
    Case("lone node", "y", "x", "w", True),
    Case("lone node", "y", "w", "x", True),
    Case("instrument and more", "y", "x", "v", True),
    Case("instrument and more", "y", "z", "v x", True),
    Case("two bows", "y2", "x1 x2", "", False),
    Case("two bows", "y2", "x1 x2", "", False, ("x1",)),
    Case("two bows", "y2", "x1 x2", "", True, ("x1", "x2")),
    Case("two bows", "y1 y2", "x1 x2", "", True, ("x1", "x2 y1")),
    Case("ASIA", "dysp", "lung", "", True),
    Case("ASIA", "dysp", "either", "", True),
    Case("ASIA", "dysp", "either", "tub", True),
    Case("ASIA", "dysp xray", "lung tub", "asia", True),
    Case("Sachs", "Akt", "Erk", "", True),
    Case("Sachs", "Erk", "Mek", "", True),
    Case("Sachs", "Erk", "PKA", "", False),
    Case("Sachs", "PIP2", "PIP3", "", False),
)
