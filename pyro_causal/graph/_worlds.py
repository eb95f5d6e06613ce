"""Counterfactual events as mechanisms: which variables take part, in which worlds.

An event about several worlds comes down to its instances: a variable, the values of its parents,
and its own value. Instances with equal parents are the same random variable. The probability of the
event is the sum, over the values that are neither asked nor known, of products over districts
(Correa, Lee & Bareinboim 2021, Nested counterfactual identification from arbitrary surrogate
experiments).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple

import networkx

from pyro_causal.graph._bits import elements
from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.expression import Var

__all__ = ["Event", "Impossible", "Instance", "Worlds", "components", "prune", "settings"]


class Impossible(Exception):  # noqa: N818 (an outcome, not an error)
    """The event contradicts itself in every model of the graph."""


@dataclass(frozen=True)
class Event:
    r"""A variable has this value, had others been set.

    **Arguments**

    - ``value``: an integer level, or a symbol such as ``"y"`` for a formula that is only read.
      Different symbols are different values, and none is an integer level.
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
        if not isinstance(self.do, Mapping):
            raise TypeError(
                f"At node '{self.variable}', in an Event: expected `do` to map names to values, "
                f"got {self.do!r}. Do write {{'x': 1}}."
            )
        if not isinstance(self.value, NoneType | str):
            object.__setattr__(self, "value", _level(self.variable, self.value))
        settings = {
            name: setting if isinstance(setting, str | Event) else _level(name, setting)
            for name, setting in self.do.items()
        }
        object.__setattr__(self, "do", MappingProxyType(settings))

    @cached_property
    def _hash(self) -> int:
        return hash((self.variable, self.value, frozenset(self.do.items())))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        return Event, (self.variable, self.value, dict(self.do))

    def __repr__(self) -> str:
        return self._show(4)

    def _show(self, depth: int) -> str:
        """The event in short, worlds within worlds down to some depth."""
        settings = [
            setting._show(depth - 1) if isinstance(setting, Event) else f"{name}={setting}"
            for name, setting in self.do.items()
            if depth
        ] or ["..."] * bool(self.do)
        world = f"_{{{', '.join(settings)}}}" if settings else ""
        return f"{self.variable}{world}" + ("" if self.value is None else f"={self.value}")


def _level(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"At node '{name}', in an Event: expected an integer level or a symbol, got {value!r}. "
            f"Do number the levels, or nest an Event('{name}', do=...)."
        ) from None


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
    of an event sets it to a level.
    """

    def __init__(self, g: ADMG, events: Iterable[Event]) -> None:
        self.g = g
        self._noted: dict[Event, tuple[Key | None, Var]] = {}
        self._values: dict[Key, Var] = {}
        self._copies: Counter[int] = Counter()
        self._equal: dict[Var, Var] = {}
        self.stated = [self._state(event)[0] for event in events]
        self.instances = self._merge()

    def _state(self, event: Event) -> tuple[Key | None, Var]:
        """Note an event: which variable it is about, and its value or a symbol for it."""
        if event not in self._noted:
            self._noted[event] = self._note(event)
        return self._noted[event]

    def _note(self, event: Event) -> tuple[Key | None, Var]:
        node = self.g.mask(event.variable, "an event").bit_length() - 1
        keys: dict[int, Key | None] = {}
        world: dict[int, Var] = {}
        for name, setting in event.do.items():
            target = self.g.mask(name, f"the world of {event}").bit_length() - 1
            if isinstance(setting, Event):
                keys[target], world[target] = self._state(setting)
            else:
                keys[target], world[target] = None, Var(name, 0, setting)
        value = self._value(node, world)
        if event.value is not None:
            self._equate(value, Var(event.variable, 0, event.value))
        return keys[node] if node in world else self._key(node, world), value

    def _value(self, node: int, world: Mapping[int, Var]) -> Var:
        """The value of a variable in a world, with a symbol for it and for each of its causes."""
        if node in world:
            return world[node]
        key = self._key(node, world)
        if key not in self._values:
            free = self.g.bits.all & ~sum(1 << target for target in world)
            causes = self.g.bits.ancestors(1 << node, free)
            for cause in self.g.bits.order:
                if causes >> cause & 1 and (known := self._key(cause, world)) not in self._values:
                    self._copies[cause] += 1
                    self._values[known] = Var(self.g.nodes[cause], self._copies[cause])
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
        copies: dict[int, list[Key]] = {}
        for key in self._values:
            copies.setdefault(key[0], []).append(key)
        for node in self.g.bits.order:
            groups: dict[tuple[tuple[int, Var], ...], list[Key]] = {}
            for key in copies.get(node, ()):
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


def settings(group: Sequence[Instance]) -> dict[int, Var] | None:
    """The one value of each variable and parent, if a single intervention brings all about."""
    values = {instance.node: instance.value for instance in group}
    if len(values) < len(group):
        return None
    for instance in group:
        for parent, value in instance.parents:
            if values.setdefault(parent, value) != value:
                return None
    return values


def components(g: ADMG, instances: Collection[Instance]) -> list[set[Instance]]:
    """The parts that neither share a symbol nor a hidden cause."""
    graph: networkx.Graph[Any] = networkx.Graph()
    within = sum({1 << instance.node for instance in instances})
    for instance in instances:
        district = g.bits.district(1 << instance.node, within)
        networkx.add_star(graph, [instance, district, *instance.symbols()])
    parts = networkx.connected_components(graph)
    return [{thing for thing in part if isinstance(thing, Instance)} for part in parts]
