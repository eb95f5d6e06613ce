"""Whether the data that a program is about can answer a query, by its causal graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.poutine.util import site_is_factor

from pyro_causal._actions import Action, draws_afresh, is_hard, soft
from pyro_causal._particles import Model, Particles, Site, Sites, deterministic
from pyro_causal._site import as_delta
from pyro_causal._statements import Extent, Statement, read_statements
from pyro_causal.graph import ADMG, Event, Unidentifiable, identify, identify_counterfactual
from pyro_causal.program import graph_of, hidden_causes, look_through

__all__ = ["Question", "Verdict", "is_discrete", "judge"]

_PATH = "a hidden path stands in the way: "


@dataclass(frozen=True)
class Question:
    """What is asked: one site, under an action, given evidence on some.

    **Arguments** ``sites``: those of a plain run under the evidence.
    """

    of: str
    do: Mapping[str, Action]
    given: Sequence[str]
    sites: Sites

    def __str__(self) -> str:
        action = [f"do({', '.join(self.do)})"] if self.do else []
        condition = ", ".join([*action, *self.given])
        return f"P({self.of}{' | ' if condition else ''}{condition})"

    def involved(self, g: ADMG) -> frozenset[str]:
        """The nodes that have to do with the answer."""
        return g.ancestors({self.of, *self.do, *self.given}.intersection(g.nodes))

    def is_null(self, target: str) -> bool:
        """Whether the action sets a site to the value that it is known to have."""
        action = self.do[target]
        if target not in self.given or not is_hard(action):
            return False
        value = self.sites[target]["value"]
        return bool((value == torch.as_tensor(action).to(value)).all())


class Verdict(NamedTuple):
    """Whether a question is identified, and from what distribution, or what stands in the way."""

    identified: bool | None  # None: nobody asked
    grounds: str


class Obstacle(NamedTuple):
    """What stands in the way of a question, with the words that lead up to it."""

    what: str
    how: str = "it takes "
    cause: Unidentifiable | None = None


@dataclass(frozen=True)
class Record:
    """What the data on a program holds.

    **Arguments**

    - ``graph``: of the sites that are recorded.
    - ``functions``: those of them that the program computes from others.
    - ``missing``: sites that the question names, but are not recorded.
    - ``causes``: the hidden sites that may act on a site; not its parameters.
    - ``hide``: the graph when some more sites are not recorded.
    """

    graph: ADMG
    functions: frozenset[str]
    missing: Collection[str]
    causes: Callable[[str], Sequence[str]]
    hide: Callable[[Collection[str]], ADMG]

    def behind(self, target: str) -> frozenset[str]:
        """A site, and all that it is computed from, step by step back to sites with noise."""
        found, new = frozenset({target}), frozenset({target})
        while new := self.graph.parents(new & self.functions) - found:
            found |= new
        return found

    def entangled(self, a: str, b: str) -> bool:
        """Whether what one function is computed from may have a say in another site."""
        first, second = self.behind(a), self.behind(b)
        shared = self.graph.siblings(first & self.functions) & second & self.functions
        return bool(first & second or shared)


def judge(
    graph: ADMG | str | None,
    question: Question,
    model: Model,
    particles: Particles,
    drawn: Callable[[], Collection[str]],
    *,
    lenient: bool,
) -> Verdict:
    """Decide whether the distribution of what is recorded determines the answer.

    **Arguments** ``graph``: that of the recorded sites, or "program"; ``drawn``: finds the sites
    that a guide or posterior samples stand for; ``lenient``: to return a negative verdict, too.

    **Raises** ``Unidentifiable``: it does not. ``ValueError``: sites that are no nodes, or nodes
    that are no sites; a program that is intervened on. ``TypeError``: no graph.
    """
    if graph is None:
        return Verdict(None, "")
    if isinstance(graph, ADMG):
        question, record = _given(graph, question)
    elif graph == "program":
        statements = read_statements(model, particles.args, particles.kwargs, stacklevel=3)
        question, record = _recorded(statements, question, drawn())
    else:
        raise TypeError(
            f"`graph`: expected an ADMG or 'program', got {graph!r}. Do build one with "
            "pyro_causal.graph.ADMG or pyro_causal.causal_graph."
        )
    g, obstacle = _obstacle(record, question)
    involved = question.involved(g)
    data = f"P({', '.join(name for name in g.nodes if name in involved)})"
    if obstacle is None:
        return Verdict(True, data)
    if lenient:
        return Verdict(False, obstacle.what)
    cause = obstacle.cause
    raise Unidentifiable(
        f"At site '{question.of}', {question} cannot be identified: expected a question that "
        f"{data} answers, but {obstacle.how}{obstacle.what}. Do observe more, experiment, or pass "
        "allow_unidentified=True to have the answer rest on the program's mechanisms.",
        query=str(question),
        hedge=cause.hedge if cause else None,
        hedges=cause.hedges if cause else None,
    ) from cause


def _with_evidence(question: Question, observed: Sequence[str], targets: Sequence[str]) -> Question:
    """The question, with what the program observes as evidence.

    **Raises** ``ValueError``: the program is intervened on.
    """
    if targets:
        raise ValueError(
            f"At site '{targets[0]}', the program is intervened on: with `graph`, expected the "
            "program that the data comes from. Do pass the action as do=, or ask "
            f"pyro_causal.graph.identify(graph, '{question.of}', do='{targets[0]}', given=[...])."
        )
    return replace(question, given=list(dict.fromkeys([*observed, *question.given])))


def _recorded(
    statements: Mapping[str, Statement], question: Question, drawn: Collection[str]
) -> tuple[Question, Record]:
    """What data on the program records: what it observes, or else all that it can."""
    known = [name for name, site in statements.items() if site.observed and not site.factor]
    targets = [name for name, site in statements.items() if site.target]
    question = _with_evidence(question, known, targets)
    asked = {question.of, *question.do, *question.given}
    functions = {name for name, site in statements.items() if site.computed or site.point}
    sites = look_through(statements, functions - asked)
    never = {n for n, s in sites.items() if s.auxiliary or n in drawn}.difference(known)
    seen = (asked if known else set(sites)) - never
    hidden = [name for name, site in sites.items() if not (name in seen or site.factor)]
    return question, Record(
        graph=graph_of(sites, hidden),
        functions=frozenset(functions & seen),
        missing=[name for name in sites if name in never & asked],
        causes=partial(hidden_causes, sites, hidden),
        hide=lambda more: graph_of(sites, {*hidden, *more}),
    )


def _given(g: ADMG, question: Question) -> tuple[Question, Record]:
    """What is recorded by a graph at its word, with what a plain trace tells about its sites."""
    halves = {f"{name}_{half}": name for name in g.nodes for half in ("observed", "unobserved")}
    sites = {n: s for n, s in question.sites.items() if not site_is_factor(s)}
    masked = {name for half, name in halves.items() if half in sites}  # by obs_mask
    sites = {name: site for name, site in sites.items() if halves.get(name) not in masked}
    functions = {n for n, s in sites.items() if as_delta(s["fn"]) is not None} - masked
    observed = [n for n, s in sites.items() if n in masked or (s["is_observed"] and not _is_set(s))]
    marks = "_target", "_intervener_id"  # of our `do`, and of Pyro's
    targets = [name for name, site in sites.items() if any(map(site.get, marks))]
    question = _with_evidence(question, observed, targets)
    strange = [name for name in g.nodes if name not in sites]
    if strange:
        raise ValueError(
            f"At node '{strange[0]}', in `graph`: expected sites of the program, one of "
            f"{', '.join(sites)}. Do project it out: graph.latent_projection({strange})."
        )
    asked = {"of": [question.of], "do": question.do, "given": question.given}
    for role, names in asked.items():
        g.mask(names, f"`{role}`")
    computed = [n for n in g.nodes if n in functions and (g.parents(n) | g.siblings(n))]
    g = g.latent_projection(set(computed).difference(*asked.values()))
    hidden = [name for name in sites if name not in functions.union(g.nodes)]
    return question, Record(
        graph=g,
        functions=frozenset(functions.intersection(g.nodes)),
        missing=(),
        causes=partial(_hidden_before, sites, hidden),
        hide=g.latent_projection,
    )


def _is_set(site: Site) -> bool:
    """Whether the program computes the value of a site, which is then no evidence."""
    point = as_delta(site["fn"])
    return deterministic(site) or (point is not None and bool((point.v == site["value"]).all()))


def _hidden_before(sites: Sites, hidden: Sequence[str], target: str) -> list[str]:
    """The hidden sites before a site, parameters excepted: any of them may act on it."""
    before = list(sites)[: list(sites).index(target)]
    own = Extent.of(sites[target])
    return [n for n in hidden if n in before and not Extent.of(sites[n]).is_shared_by(own)]


def _obstacle(record: Record, question: Question) -> tuple[ADMG, Obstacle | None]:
    """What keeps a record from determining the answer, if anything does, and the graph of it."""
    if record.missing:
        are = "are" if len(record.missing) > 1 else "is"
        return record.graph, Obstacle(f"{', '.join(record.missing)} {are} not recorded", "")
    fresh = [name for name, action in question.do.items() if draws_afresh(action)]
    reaching = record.graph.intervene(fresh).ancestors(question.of)
    question = replace(question, do={n: a for n, a in question.do.items() if n in reaching})
    behind: set[str] = set()
    for target in [name for name in question.do if name in record.functions]:
        for name in dict.fromkeys([*question.given, *question.do]):
            if name != target and record.entangled(target, name):
                return record.graph, Obstacle(f"values of {target} that {name} rules out")
        behind |= record.behind(target) - {target}
    g = record.hide(behind) if behind else record.graph
    for target, action in question.do.items():
        if isinstance(action, soft) and (obstacle := _unknown_noise(g, record, question, target)):
            return g, obstacle
    return g, _unidentifiable(g, question)


def _unidentifiable(g: ADMG, question: Question) -> Obstacle | None:
    """What keeps the distribution of the nodes from determining the probability of the events."""
    events, known = _events(g, question) if question.do else ([], [])
    try:
        if events and not known and all(map(draws_afresh, question.do.values())):
            identify(g, question.of, do=question.do)
        elif events:
            identify_counterfactual(g, events, known, regime="observational")
    except Unidentifiable as error:
        if error.hedge is not None:
            return Obstacle(", ".join(error.hedge.hidden), _PATH, error)
        return _in_several_worlds(g, question)._replace(cause=error)
    return None


def _events(g: ADMG, question: Question) -> tuple[list[Event], list[Event]]:
    """The events whose probability, given others, the answer is made of.

    A function of the natural value takes the outcome jointly with that value, and so does a
    surrogate mechanism, whose noise value and parents tell. Values are symbols, different ones
    where they may differ.
    """
    setting = {name: name if question.is_null(name) else f"{name}'" for name in question.do}
    known = [Event(name, name) for name in question.given]

    def natural(name: str) -> Event:
        """The value of a site in the world of the action, before an action on itself."""
        do = {t: v for t, v in setting.items() if t != name and name in g.descendants(t)}
        return Event(name, name if name in question.given else f"{name}''", do)

    wanted = dict.fromkeys([] if question.of in question.do else [question.of])
    wanted |= {name: None for name, action in question.do.items() if not draws_afresh(action)}
    return [event for event in map(natural, wanted) if event not in known], known


def _unknown_noise(g: ADMG, record: Record, question: Question, target: str) -> Obstacle | None:
    """What keeps value and parents of a site from telling its noise, which a surrogate shares."""
    if siblings := g.siblings(target):
        return Obstacle(", ".join(f"{target} <-> {n}" for n in g.nodes if n in siblings), _PATH)
    if causes := record.causes(target):
        return Obstacle(f"the share of {', '.join(causes)} in {target}")
    fn = question.sites[target]["fn"]
    if g.descendants(target).isdisjoint(question.given):
        return None
    if is_discrete(fn) or fn.event_dim:
        what = "discrete" if is_discrete(fn) else "a vector"
        return Obstacle(f"the noise of {target}, which is {what}")
    return None


def _in_several_worlds(g: ADMG, question: Question) -> Obstacle:
    """What is asked in two worlds: between action and evidence, or else along hidden paths."""
    told = g.ancestors(question.given) & g.ancestors({question.of, *question.do})
    moved = [n for n in g.nodes if n in told and g.ancestors(n) & set(question.do) - {n}]
    moved = [n for n in moved if not draws_afresh(question.do.get(n))]
    if moved:
        return Obstacle(f"{', '.join(moved)} in two worlds at once")
    g = g.subgraph(question.involved(g))
    ends = g.district({question.of, *question.do})
    paths = [f"{a} <-> {b}" for a, b in g.bidirected if {a, b} <= ends]
    return Obstacle(", ".join(paths), _PATH) if paths else Obstacle("several worlds at once")


def is_discrete(fn: Any) -> bool:
    """Whether a distribution is over discrete values, as far as it tells."""
    try:
        return bool(fn.support.is_discrete)
    except NotImplementedError:
        return False
