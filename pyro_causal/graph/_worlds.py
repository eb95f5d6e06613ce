"""Counterfactual events as mechanisms: which variables take part, in which worlds.

An event about several worlds comes down to its instances: a variable, the values of its parents,
and its own value. Instances with equal parents are the same random variable. The probability of the
event is the sum, over the values that are neither asked nor known, of products over districts
(Correa, Lee & Bareinboim 2021, Nested counterfactual identification from arbitrary surrogate
experiments, theorems 1 to 3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import networkx

from pyro_causal.graph._bits import elements
from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.expression import Var

__all__ = ["Event", "Impossible", "Instance", "Worlds", "components", "consistent", "prune"]


class Impossible(Exception):  # noqa: N818 (an outcome, not an error)
    """The event contradicts itself in every model of the graph."""


@dataclass(frozen=True)
class Event:
    r"""A variable has this value, had others been set.

    **Arguments**

    - ``value``: an integer level, or a symbol such as ``"y"`` for a formula that is only read;
      different symbols are different values.
    - ``do``: a value for each variable that is set. It may be what a variable would have been in
      yet another world: an ``Event`` of that variable, without a value.

    **Example** The outcome had x been 1, and m as it would have been at x = 0.

    >>> from pyro_causal.graph import Event
    >>> Event("y", 1, do={"x": 1, "m": Event("m", do={"x": 0})})
    y_{x=1, m_{x=0}}=1
    """

    variable: str
    value: int | str | None = None
    do: Mapping[str, int | str | Event] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "do", MappingProxyType(dict(self.do)))

    def __hash__(self) -> int:
        return hash((self.variable, self.value, frozenset(self.do.items())))

    def __reduce__(self) -> tuple[object, ...]:
        return Event, (self.variable, self.value, dict(self.do))

    def __repr__(self) -> str:
        settings = [
            repr(value) if isinstance(value, Event) else f"{name}={value}"
            for name, value in self.do.items()
        ]
        world = f"_{{{', '.join(settings)}}}" if settings else ""
        return f"{self.variable}{world}" + ("" if self.value is None else f"={self.value}")


class Instance(NamedTuple):
    """A variable in one world: the values of its parents there, and its own."""

    node: int
    parents: tuple[tuple[int, Var], ...]
    value: Var

    def symbols(self) -> set[Var]:
        """The values that are summed over."""
        return {v for v in (self.value, *(v for _, v in self.parents)) if v.level is None}


World = frozenset[tuple[int, Var]]
Key = tuple[int, World]


class Worlds:
    """The worlds that some events speak of, laid out and merged.

    ``instances`` maps each variable of a world to its instance; several have the same one if they
    are the same random variable. ``stated`` has the variables of the events, None where the world
    of an event sets it.
    """

    def __init__(self, g: ADMG, events: Iterable[Event]) -> None:
        self.g = g
        self._values: dict[Key, Var] = {}
        self._equal: dict[Var, Var] = {}
        self.stated = [self._state(event)[0] for event in events]
        self.instances = self._merge()

    def _state(self, event: Event) -> tuple[Key | None, Var]:
        """Note an event: which variable it is about, and its value or a symbol for it."""
        node = self.g.mask(event.variable, "an event").bit_length() - 1
        world = {}
        for name, setting in event.do.items():
            target = self.g.mask(name, f"the world of {event}").bit_length() - 1
            if isinstance(setting, Event):
                world[target] = self._state(setting)[1]
            else:
                world[target] = Var(name, 0, setting)
        value = self._value(node, world)
        if event.value is not None:
            self._equate(value, Var(event.variable, 0, event.value))
        return None if node in world else self._key(node, world), value

    def _value(self, node: int, world: Mapping[int, Var]) -> Var:
        """The value of a variable in a world, with a symbol for it and for each of its causes."""
        if node in world:
            return world[node]
        key = self._key(node, world)
        if key not in self._values:
            for parent in elements(self.g.bits.parents[node]):
                self._value(parent, world)
            name = self.g.nodes[node]
            self._values[key] = Var(name, 1 + sum(v.name == name for v in self._values.values()))
        return self._values[key]

    def _key(self, node: int, world: Mapping[int, Var]) -> Key:
        """A variable and what of a world bears on it."""
        free = self.g.bits.all & ~sum(1 << target for target in world)
        causes = self.g.bits.ancestors(1 << node, free)
        near = self.g.bits.parents_of(causes)
        return node, frozenset((t, v) for t, v in world.items() if near >> t & 1)

    def settled(self, value: Var) -> Var:
        """What a symbol was found to be equal to."""
        while value in self._equal:
            value = self._equal[value]
        return value

    def _equate(self, a: Var, b: Var) -> None:
        a, b = self.settled(a), self.settled(b)
        if a == b:
            return
        if a.level is not None and b.level is not None:
            raise Impossible
        symbol, other = (a, b) if a.level is None else (b, a)
        self._equal[symbol] = other

    def _merge(self) -> dict[Key, Instance]:
        """Find variables with equal parents, causes first, and equate their values."""
        merged: dict[Key, Instance] = {}
        for node in self.g.bits.order:
            groups: dict[tuple[tuple[int, Var], ...], list[Key]] = {}
            for key in self._values:
                if key[0] == node:
                    world = dict(key[1])
                    parents = tuple(
                        (p, self.settled(self._value(p, world)))
                        for p in elements(self.g.bits.parents[node])
                    )
                    groups.setdefault(parents, []).append(key)
            for parents, keys in groups.items():
                for key in keys[1:]:
                    self._equate(self._values[keys[0]], self._values[key])
                value = self.settled(self._values[keys[0]])
                merged |= {key: Instance(node, parents, value) for key in keys}
        return merged


def prune(instances: Iterable[Instance]) -> list[Instance]:
    """Drop the instances whose value is summed over and used by nobody else."""
    kept = list(dict.fromkeys(instances))
    while True:
        used = {v for instance in kept for _, v in instance.parents}
        fewer = [i for i in kept if i.value.level is not None or i.value in used]
        if len(fewer) == len(kept):
            return kept
        kept = fewer


def consistent(group: Sequence[Instance]) -> bool:
    """Whether one intervention brings all of it about: each variable and parent has one value."""
    values = {instance.node: instance.value for instance in group}
    if len(values) < len(group):
        return False
    for instance in group:
        for parent, value in instance.parents:
            if values.setdefault(parent, value) != value:
                return False
    return True


def components(g: ADMG, instances: Collection[Instance]) -> list[set[Instance]]:
    """The parts that neither share a symbol nor a hidden cause."""
    graph: networkx.Graph[Any] = networkx.Graph()
    within = sum({1 << instance.node for instance in instances})
    for instance in instances:
        district = g.bits.district(1 << instance.node, within)
        networkx.add_star(graph, [instance, district, *instance.symbols()])
    parts = networkx.connected_components(graph)
    return [{thing for thing in part if isinstance(thing, Instance)} for part in parts]
