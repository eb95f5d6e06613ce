"""Identification of counterfactuals: probabilities of events in several worlds at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pyro_causal.graph._hedge import Unidentifiable
from pyro_causal.graph._terms import datasets_of
from pyro_causal.graph._worlds import (
    Event,
    Impossible,
    Instance,
    Worlds,
    components,
    prune,
    settings,
)
from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.estimand import Estimand
from pyro_causal.graph.expression import (
    ONE,
    ZERO,
    Dataset,
    Expression,
    Probability,
    Var,
    fraction,
    product,
    substitute,
    total,
)
from pyro_causal.graph.identify import identify

__all__ = ["Event", "identify_counterfactual", "path_specific", "recanting_witnesses"]

Regime = Literal["experiments", "observational"]


def identify_counterfactual(
    g: ADMG,
    event: Event | Iterable[Event],
    given: Event | Iterable[Event] = (),
    regime: Regime = "experiments",
) -> Estimand:
    r"""Express the probability of a counterfactual event in the distributions at hand.

    Covers the effect on the treated, natural and path-specific effects, the probabilities of
    necessity and sufficiency, and whatever else events in any number of worlds can say. The values
    of the events stay in the formula. What holds for any number of levels counts as identifiable;
    binary variables allow a few questions more (the effect on the treated from experiments,
    for one, by subtraction).

    **Arguments**

    - ``event``, ``given``: what shall hold together, and what is known to hold.
    - ``regime``: ``"experiments"`` if every :math:`P_x(v)` is at hand, as in ID* and IDC*;
      ``"observational"`` if :math:`P(v)` is all.

    **Raises** ``Unidentifiable``: no formula exists. ``ValueError``: unknown nodes, no event,
    events without a value, a condition that contradicts itself. ``TypeError``: no events.

    **References**

    - Shpitser & Pearl 2007, What counterfactuals can be tested (ID*, IDC*).
    - Correa, Lee & Bareinboim 2021, Nested counterfactual identification from arbitrary surrogate
      experiments. We condition by the quotient of joint and marginal, each identified by itself;
      that finds P(X = x | Y_x), too, where X and Y have a hidden cause in common.

    **Example** The effect on the treated through a back door.

    >>> from pyro_causal.graph import ADMG, Event, identify_counterfactual
    >>> g = ADMG([("z", "x"), ("z", "y"), ("x", "y")])
    >>> event, given = Event("y", 1, do={"x": 1}), Event("x", 0)
    >>> identify_counterfactual(g, [event], [given], regime="observational")
    P(y_{x=1}=1 | x=0) = Σ_{z} P(y=1 | x=1, z) P(z | x=0)
    """
    asked, known = _check(event, given, regime)
    query = f"P({', '.join(map(repr, asked))}"
    query += f" | {', '.join(map(repr, known))})" if known else ")"
    try:
        Worlds(g, known)
    except Impossible:
        raise ValueError(
            f"`given`: {query} conditions on what cannot happen in any model of the graph: "
            "expected events that can hold together. Do drop one of them."
        ) from None
    found = _Counterfactual(g, query, regime).run(asked, known)
    datasets = tuple(dict.fromkeys(datasets_of(found))) or (Dataset(),)
    return Estimand(query, (), (), (), frozenset(), found, g, datasets)


def _check(
    event: Event | Iterable[Event], given: Event | Iterable[Event], regime: str
) -> tuple[list[Event], list[Event]]:
    sides: list[list[Event]] = []
    for role, events in (("event", event), ("given", given)):
        side = [events] if isinstance(events, Event) else list(events)
        seen: set[Event] = set()
        for one in side:
            if not isinstance(one, Event):
                raise TypeError(
                    f"`{role}`: expected Events, got {one!r}. Do write Event('{one}', 1)."
                )
            if one.value is None:
                raise ValueError(
                    f"At node '{one.variable}', in `{role}`: expected a value, got {one} without. "
                    f"Do write Event('{one.variable}', 1, ...)."
                )
            _check_nested(one, seen)
        sides.append(side)
    if not sides[0]:
        raise ValueError("`event`: expected at least one Event, got none. Do name one.")
    if regime not in ("experiments", "observational"):
        raise ValueError(
            f"`regime`: expected 'experiments' or 'observational', got {regime!r}. Do pick one."
        )
    return sides[0], sides[1]


def _check_nested(event: Event, seen: set[Event]) -> None:
    seen.add(event)
    for name, setting in event.do.items():
        if isinstance(setting, Event) and setting not in seen:
            if setting.variable != name or setting.value is not None:
                raise ValueError(
                    f"At node '{name}', in the world of {event}: expected a value, or an Event of "
                    f"'{name}' without one, got {setting}. Do write Event('{name}', do=...)."
                )
            _check_nested(setting, seen)


class _Counterfactual:
    """One question, and the way to its formula."""

    def __init__(self, g: ADMG, query: str, regime: Regime) -> None:
        self.g, self.query, self.regime = g, query, regime

    def run(self, asked: Sequence[Event], known: Sequence[Event]) -> Expression:
        """The formula: of the joint, over that of the condition, without what they share."""
        try:
            joint = Worlds(self.g, [*known, *asked])
        except Impossible:
            return ZERO
        if not known:
            return self._express(joint.instances.values())
        blank = [Event(event.variable, None, event.do) for event in asked]
        marginal = Worlds(self.g, [*known, *blank])
        stated = [marginal.instances[key] for key in marginal.stated[len(known) :] if key]
        wanted = {instance for instance in stated if instance.value.level is None}  # else: certain
        shared: set[Instance] = set()
        for part in components(self.g, marginal.instances.values()):
            if wanted.isdisjoint(part):
                shared |= part
        kept = [key for key, instance in marginal.instances.items() if instance not in shared]
        above = self._express([joint.instances[key] for key in kept])
        return fraction(above, self._express([marginal.instances[key] for key in kept]))

    def _express(self, instances: Iterable[Instance]) -> Expression:
        """Multiply what single interventions bring about, and sum over the symbols."""
        kept = prune(instances)
        groups = self._groups(kept)
        factors: list[Expression] = []
        open_symbols: set[Var] = set()
        for group in groups:
            used = {v for i in kept if i not in group for v in i.symbols()}
            inside = {i.value for i in group if i.value.level is None} - used
            factors.append(self._factor(group, inside))
            open_symbols |= {v for i in group for v in i.symbols()} - inside
        return total(open_symbols, product(factors))

    def _groups(self, instances: list[Instance]) -> list[list[Instance]]:
        """The districts, joined as far as one intervention brings them about together."""
        within = sum({1 << i.node for i in instances})
        joined: list[tuple[list[Instance], dict[int, Var]]] = []
        for district in self.g.bits.districts(within):
            group = [i for i in instances if district >> i.node & 1]
            values = settings(group)
            if values is None:
                raise self._conflict(group)
            for members, others in joined:
                if all(others.get(node, value) == value for node, value in values.items()):
                    members += group
                    others |= values
                    break
            else:
                joined.append((group, values))
        return [members for members, _ in joined]

    def _factor(self, group: list[Instance], inside: set[Var]) -> Expression:
        """What one intervention on the parents of a group brings about."""
        nodes = self.g.nodes
        values = {i.node: i.value for i in group}
        outcome = [nodes[i.node] for i in group if i.value not in inside]
        outside = {p: v for i in group for p, v in i.parents if p not in values}
        if not outcome:
            return ONE
        do = [nodes[p] for p in outside]
        terms = {Var(nodes[p]): v for p, v in (values | outside).items() if v not in inside}
        if self.regime == "experiments":
            found: Expression = Probability(
                frozenset(map(Var, outcome)),
                do=frozenset(map(Var, do)),
                dataset=Dataset(frozenset(do)),
            )
        else:
            try:
                found = identify(self.g, outcome, do=do).expression
            except Unidentifiable as error:
                raise Unidentifiable(
                    f"{self.query} cannot be identified from P(v), since it takes more: {error}",
                    query=self.query,
                    hedge=error.hedge,
                    hedges=error.hedges,
                ) from None
        return substitute(found, terms)

    def _conflict(self, group: Sequence[Instance]) -> Unidentifiable:
        """Variables with a hidden cause in common are asked for in more than one world."""
        shown = ", ".join(self._show(instance) for instance in group)
        names = ", ".join(dict.fromkeys(self.g.nodes[i.node] for i in group))
        return Unidentifiable(
            f"{self.query} cannot be identified from any experiment: it takes the joint "
            f"distribution of {shown}. They belong to different worlds and share the hidden causes "
            f"of {names}, of which every unit shows one world only. Do ask about one world, state "
            "the event with equal values, or bound the answer.",
            query=self.query,
        )

    def _show(self, instance: Instance) -> str:
        def value(v: Var) -> str:
            return str(v) if v.level is not None else v.name + "'" * (v.primes - 1)

        world = ", ".join(value(v) for _, v in instance.parents)
        return f"{self.g.nodes[instance.node]}{f'_{{{world}}}' if world else ''}"


def path_specific(
    g: ADMG,
    treatment: str,
    outcome: str,
    edges: Iterable[tuple[str, str]],
    *,
    active: int | str = 1,
    baseline: int | str = 0,
    value: int | str = 1,
) -> Event:
    """The outcome, had the treatment been `active` along some paths and `baseline` along the rest.

    The active paths are those that run through ``edges`` only. With the edge from treatment to
    outcome alone, this is the event of the natural direct effect.

    **Raises** ``ValueError``: unknown nodes, edges that are not in the graph.

    **References** Avin, Shpitser & Pearl 2005, Identifiability of path-specific effects.

    **Example**

    >>> from pyro_causal.graph import ADMG, path_specific
    >>> g = ADMG([("x", "m"), ("m", "y"), ("x", "y")])
    >>> path_specific(g, "x", "y", [("x", "y")])
    y_{x=1, m_{x=0}}=1
    """
    chosen = _check_edges(g, treatment, outcome, edges)
    moved = g.descendants(treatment)

    seen: dict[str, Event] = {}
    for name in g.topological_order():  # what it is under the active paths
        if name not in moved or name == treatment:
            continue
        do: dict[str, int | str | Event] = {}
        for parent in g.names(g.bits.parents_of(g.mask(name))):
            on = (parent, name) in chosen
            if parent == treatment:
                do[parent] = active if on else baseline
            elif parent in moved:
                do[parent] = seen[parent] if on else Event(parent, do={treatment: baseline})
        seen[name] = Event(name, do=do)
    return Event(outcome, value, seen[outcome].do if outcome in seen else {})


def recanting_witnesses(
    g: ADMG, treatment: str, outcome: str, edges: Iterable[tuple[str, str]]
) -> frozenset[str]:
    """The nodes that would have to see the treatment both active and at its baseline.

    Such a node is on an active path, and from it another path leads to the outcome that is not
    active. With one of them, a path-specific effect is not identifiable. Without, hidden causes may
    still forbid it.

    **Raises** ``ValueError``: unknown nodes, edges that are not in the graph.

    **References** Avin, Shpitser & Pearl 2005, Identifiability of path-specific effects.

    **Example**

    >>> from pyro_causal.graph import ADMG, recanting_witnesses
    >>> g = ADMG([("x", "w"), ("w", "y"), ("w", "m"), ("m", "y")])
    >>> recanting_witnesses(g, "x", "y", [("x", "w"), ("w", "y")])
    frozenset({'w'})
    """
    chosen = _check_edges(g, treatment, outcome, edges)
    along = ADMG(chosen, nodes=g.nodes)
    passing = along.descendants(treatment) & along.ancestors(outcome) - {treatment, outcome}
    causes = g.ancestors(outcome)
    leaving = {a for a, b in g.directed if (a, b) not in chosen and b in causes}
    return frozenset(name for name in passing if g.descendants(name) & leaving)


def _check_edges(
    g: ADMG, treatment: str, outcome: str, edges: Iterable[tuple[str, str]]
) -> set[tuple[str, str]]:
    g.masks(treatment=treatment, outcome=outcome)
    chosen = set(edges)
    if unknown := chosen.difference(g.directed):
        raise ValueError(
            f"`edges`: expected directed edges of the graph, got {min(unknown)!r}. Do name pairs "
            "(cause, effect)."
        )
    return chosen
