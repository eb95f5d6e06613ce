"""Sets to adjust for: the back-door and the front-door criterion, and the search for such sets.

:func:`pyro_causal.graph.identify` decides every query; these sets are for estimators that adjust.
"""

from __future__ import annotations

from pyro_causal.graph._bits import Bits, elements
from pyro_causal.graph.admg import ADMG, Names

__all__ = ["backdoor_set", "frontdoor_set", "is_backdoor_set", "is_frontdoor_set"]


def is_backdoor_set(g: ADMG, treatment: Names, outcome: Names, adjustment: Names) -> bool:
    r"""Whether a set meets the back-door criterion.

    It contains no descendant of the treatment, and blocks all paths from treatment to outcome that
    start with an arrowhead at the treatment. Then, for all of x, y and z may be sets,

    .. math:: P(y \mid do(x)) = \sum_z P(y \mid x, z) \, P(z).

    **Raises** ``ValueError``: unknown nodes, sets that overlap, no treatment or no outcome.

    **References** Pearl 2009, Causality, definition 3.3.1 and theorem 3.3.2. For several treatments
    he asks for each pair of a treatment and an outcome alone; we leave out the paths that go on
    along an edge out of another treatment, since setting that one blocks them (rule 2 of the
    do-calculus).

    **Example**

    >>> from pyro_causal.graph import ADMG, is_backdoor_set
    >>> g = ADMG([("z", "x"), ("z", "y"), ("x", "y"), ("x", "w")])
    >>> [is_backdoor_set(g, "x", "y", names) for names in ((), "z", ["z", "w"])]
    [False, True, False]
    """
    x, y, z = _masks(g, treatment, outcome, adjustment)
    return not z & g.bits.descendants(x) and not g.bits.cut(outgoing=x).connected(x, z) & y


def backdoor_set(g: ADMG, treatment: Names, outcome: Names) -> frozenset[str] | None:
    r"""Find a set that meets the back-door criterion, and of which no smaller part does.

    None if there is no such set. (Where there is none, the effect may be identifiable all the same,
    see :func:`pyro_causal.graph.identify`.) For one treatment that is a cause of the outcome, there
    is one whenever adjustment for any set of nodes is right in all models of the graph.

    **Raises** ``ValueError``: as :func:`is_backdoor_set`.

    **References**

    - van der Zander, Liśkiewicz & Textor 2019, Separators and adjustment sets in causal graphs:
      complete criteria and an algorithmic framework: if some of the allowed nodes separate, those
      among them that are ancestors do.
    - Tian, Paz & Pearl 1998, Finding minimal d-separators: dropping one node at a time is enough.

    **Example**

    >>> from pyro_causal.graph import ADMG, backdoor_set
    >>> g = ADMG([("a", "z"), ("z", "x"), ("z", "y"), ("x", "y")])
    >>> backdoor_set(g, "x", "y")
    frozenset({'z'})
    >>> backdoor_set(ADMG([("x", "y")], [("x", "y")]), "x", "y") is None
    True
    """
    x, y, _ = _masks(g, treatment, outcome)
    bits = g.bits.cut(outgoing=x)
    z = bits.ancestors(x | y) & ~x & ~y & ~g.bits.descendants(x)
    if bits.connected(x, z) & y:
        return None
    for node in elements(z):
        if not bits.connected(x, z & ~(1 << node)) & y:
            z &= ~(1 << node)
    return frozenset(g.names(z))


def is_frontdoor_set(g: ADMG, treatment: Names, outcome: Names, adjustment: Names) -> bool:
    r"""Whether a set meets the front-door criterion.

    It intercepts all directed paths from treatment to outcome; no path with an arrowhead at the
    treatment connects the two; and the treatment blocks all paths from the set to the outcome that
    start with an arrowhead at the set. Then, for all of x, y and z may be sets,

    .. math:: P(y \mid do(x)) = \sum_z P(z \mid x) \sum_{x'} P(y \mid x', z) \, P(x').

    **Raises** ``ValueError``: as :func:`is_backdoor_set`.

    **References** Pearl 2009, Causality, definition 3.3.3 and theorem 3.3.4; for sets in the form
    of Jeong, Tian & Bareinboim 2022, Finding and listing front-door adjustment sets, where the
    edges out of all nodes of the set are cut at once.

    **Example**

    >>> from pyro_causal.graph import ADMG, is_frontdoor_set
    >>> g = ADMG([("x", "m"), ("m", "y")], [("x", "y")])
    >>> is_frontdoor_set(g, "x", "y", "m"), is_frontdoor_set(g, "x", "y", ())
    (True, False)
    """
    x, y, z = _masks(g, treatment, outcome, adjustment)
    return (
        _intercepts(g.bits, x, y, z)
        and not g.bits.cut(outgoing=x).connected(x, 0) & z
        and _unconfounded(g.bits, x, y, z) == z
    )


def frontdoor_set(g: ADMG, treatment: Names, outcome: Names) -> frozenset[str] | None:
    """Find a set that meets the front-door criterion, and of which no smaller part does.

    None if there is no such set.

    **Raises** ``ValueError``: as :func:`is_backdoor_set`.

    **References** Jeong, Tian & Bareinboim 2022, Finding and listing front-door adjustment sets:
    there is a largest set that meets the last two conditions, and it decides. Unlike them, we
    find it by dropping what violates the last condition until nothing does, and shrink it
    afterwards.

    **Example**

    >>> from pyro_causal.graph import ADMG, frontdoor_set
    >>> frontdoor_set(ADMG([("x", "m"), ("m", "n"), ("n", "y")], [("x", "y")]), "x", "y")
    frozenset({'n'})
    """
    x, y, _ = _masks(g, treatment, outcome)
    bits = g.bits
    z = _unconfounded(bits, x, y, bits.all & ~x & ~y & ~bits.cut(outgoing=x).connected(x, 0))
    if not _intercepts(bits, x, y, z):
        return None
    for node in elements(z):
        smaller = _unconfounded(bits, x, y, z & ~(1 << node))
        if _intercepts(bits, x, y, smaller):
            z = smaller
    return frozenset(g.names(z))


def _intercepts(bits: Bits, x: int, y: int, z: int) -> bool:
    """Whether every directed path from x to y goes through z."""
    return not bits.descendants(x, ~z) & y


def _unconfounded(bits: Bits, x: int, y: int, z: int) -> int:
    """The largest part of z whose paths to y with an arrowhead at the part are blocked by x.

    What is connected to y stays so when other nodes leave z, since that gives them edges back.
    """
    while confounded := bits.cut(outgoing=z).connected(y, x) & z:
        z &= ~confounded
    return z


def _masks(
    g: ADMG, treatment: Names, outcome: Names, adjustment: Names = ()
) -> tuple[int, int, int]:
    x, y, z = g.masks(treatment=treatment, outcome=outcome, adjustment=adjustment)
    for role, mask in (("treatment", x), ("outcome", y)):
        if not mask:
            raise ValueError(f"`{role}`: expected at least one node, got none. Do name one.")
    return x, y, z
