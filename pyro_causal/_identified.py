"""Whether the data that a program is about can answer a query, by its causal graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from pyro_causal._actions import Action, draws_afresh, is_hard, soft
from pyro_causal._particles import Model, Particles, Sites
from pyro_causal._statements import Statement, read_statements
from pyro_causal.graph import ADMG, Event, Unidentifiable, identify, identify_counterfactual
from pyro_causal.program import graph_of, look_through

__all__ = ["Question", "Verdict", "is_discrete", "judge"]


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
        return g.ancestors({self.of, *self.do, *self.given})

    def is_null(self, target: str) -> bool:
        """Whether the action sets a site to the value that it is known to have."""
        action = self.do[target]
        if target not in self.given or not is_hard(action):
            return False
        return bool((self.sites[target]["value"] == torch.as_tensor(action)).all())


class Verdict(NamedTuple):
    """Whether a question is identified, and from what distribution, or what stands in the way."""

    identified: bool
    grounds: str


def judge(
    graph: ADMG | str,
    question: Question,
    model: Model,
    particles: Particles,
    drawn: Collection[str],
    *,
    lenient: bool,
) -> Verdict:
    """Decide whether the distribution of what is observed determines the answer.

    **Arguments** ``graph``: that of the observed sites, or "program"; ``drawn``: sites that a guide
    or posterior samples stand for; ``lenient``: to return a negative verdict, too.

    **Raises** ``Unidentifiable``: it does not. ``ValueError``: sites that are no nodes; a program
    that is intervened on. ``TypeError``: no graph.
    """
    if not (isinstance(graph, ADMG) or graph == "program"):
        raise TypeError(
            f"`graph`: expected an ADMG or 'program', got {graph!r}. Do build one with "
            "pyro_causal.graph.ADMG or pyro_causal.causal_graph."
        )
    from_program = not isinstance(graph, ADMG)
    statements = read_statements(model, particles.args, particles.kwargs, quiet=not from_program)
    _refuse_interventions(statements, question)
    observed = [name for name, site in statements.items() if site.observed]
    question = replace(question, given=list(dict.fromkeys([*observed, *question.given])))
    g = graph if isinstance(graph, ADMG) else _observable(statements, question, drawn)
    for role, names in {"of": [question.of], "do": question.do, "given": question.given}.items():
        g.mask(names, f"`{role}`")
    involved = question.involved(g)
    data = f"P({', '.join(name for name in g.nodes if name in involved)})"
    obstacle, cause = _obstacle(g, question)
    if not obstacle:
        return Verdict(True, data)
    if lenient:
        return Verdict(False, obstacle)
    hidden = "a hidden path stands in the way: " if "<->" in obstacle else "it takes "
    raise Unidentifiable(
        f"At site '{question.of}', {question} cannot be identified: expected a question that "
        f"{data} answers, but {hidden}{obstacle}. Do observe more, experiment, or pass "
        "allow_unidentified=True to have the answer rest on the program's mechanisms.",
        query=str(question),
        hedge=cause.hedge if cause else None,
        hedges=cause.hedges if cause else None,
    ) from cause


def _refuse_interventions(statements: Mapping[str, Statement], question: Question) -> None:
    for name, site in statements.items():
        if site.target:
            raise ValueError(
                f"At site '{name}', the program is intervened on: with `graph`, expected the "
                "program that the data comes from. Do pass the action as do=, or ask "
                f"pyro_causal.graph.identify(graph, '{question.of}', do='{name}', given=[...])."
            )


def _observable(
    statements: Mapping[str, Statement], question: Question, drawn: Collection[str]
) -> ADMG:
    """The graph of what data on the program shows: what it observes, or else all that it can."""
    asked = {question.of, *question.do, *question.given}
    computed = {name for name, site in statements.items() if site.computed}
    sites = look_through(statements, computed - asked)
    known = {name for name, site in sites.items() if site.observed}
    if not known:
        known = {name for name, site in sites.items() if not site.auxiliary}.difference(drawn)
    hidden = [n for n, site in sites.items() if not (n in known | asked or site.factor)]
    return graph_of(sites, hidden)


def _obstacle(g: ADMG, question: Question) -> tuple[str, Unidentifiable | None]:
    """What keeps the distribution of the nodes from determining the answer, "" if nothing does."""
    fresh = [name for name, action in question.do.items() if draws_afresh(action)]
    reaching = g.intervene(fresh).ancestors(question.of)
    question = replace(question, do={n: a for n, a in question.do.items() if n in reaching})
    for name, action in question.do.items():
        if isinstance(action, soft | Mapping) and (obstacle := _unknown_noise(g, question, name)):
            return obstacle, None
    events, known = _events(g, question) if question.do else ([], [])
    try:
        if events and not known and all(map(draws_afresh, question.do.values())):
            identify(g, question.of, do=question.do)
        elif events:
            identify_counterfactual(g, events, known, regime="observational")
    except Unidentifiable as error:
        if error.hedge is not None:
            return ", ".join(error.hedge.hidden), error
        return _in_several_worlds(g, question), error
    return "", None


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
        same = name in question.given and not do
        return Event(name, name if same else f"{name}''", do)

    wanted = dict.fromkeys([] if question.of in question.do else [question.of])
    wanted |= {name: None for name, action in question.do.items() if not draws_afresh(action)}
    return [event for event in map(natural, wanted) if event not in known], known


def _unknown_noise(g: ADMG, question: Question, target: str) -> str:
    """What keeps value and parents of a site from telling its noise, which a surrogate shares."""
    hidden = g.siblings(target) & question.involved(g)
    if hidden:
        return ", ".join(f"{target} <-> {name}" for name in g.nodes if name in hidden)
    if question.given and is_discrete(question.sites[target]["fn"]):
        return f"the noise of {target}, which is discrete"
    return ""


def _in_several_worlds(g: ADMG, question: Question) -> str:
    """What is asked in two worlds: between action and evidence, or else along hidden paths."""
    told = g.ancestors(question.given) & g.ancestors({question.of, *question.do})
    moved = [n for n in g.nodes if n in told and g.ancestors(n) & set(question.do) - {n}]
    moved = [n for n in moved if not draws_afresh(question.do.get(n))]
    if moved:
        return f"{', '.join(moved)} in two worlds at once"
    g = g.subgraph(question.involved(g))
    ends = g.district({question.of, *question.do})
    paths = [f"{a} <-> {b}" for a, b in g.bidirected if {a, b} <= ends]
    return ", ".join(paths) or "several worlds at once"


def is_discrete(fn: Any) -> bool:
    """Whether a distribution is over discrete values, as far as it tells."""
    try:
        return bool(fn.support.is_discrete)
    except NotImplementedError:
        return False
