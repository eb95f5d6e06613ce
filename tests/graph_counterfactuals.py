"""Counterfactuals by brute force, written without the theory of identification.

A :class:`Functional` is a random discrete model of an ADMG. Every node is a function, a random
table, of its parents, of a private noise and of one latent per bidirected edge; these exogenous
variables are independent and have few states. A state of all of them settles every variable in
every world, nested worlds included, so that the probability of a conjunction of counterfactual
events is a sum over states.

:func:`identified` decides identification by the rank of a Jacobian. A model moves along its tangent
when an exogenous variable gains a state, of infinitesimal probability, with functions of its own.
If the query is a function of the data, then its gradient lies in the span of the data's gradients;
a query that moves where the data stay put is none. That it does is a proof, up to rounding. That it
does not holds at these models, and to the extent that states are many and generic: it needs a true
formula beside it, and more states where the two disagree.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_causal.graph.admg import ADMG
from pyro_causal.graph.counterfactual import Event

__all__ = ["Functional", "identified", "levels_of", "random_event", "random_graph", "truth"]

Key = tuple[str, ...]  # a node for its private noise, the two ends of an edge for its latent
World = Mapping[str, "int | Tensor | Event"]


@dataclass(frozen=True)
class Functional:
    """A discrete structural causal model with tables for functions.

    ``noise`` has the probabilities of each exogenous variable. ``functions`` has the values of a
    node, with an axis for each of its exogenous variables (:meth:`keys`) and for each parent.
    """

    g: ADMG
    levels: Mapping[str, int]
    noise: Mapping[Key, Tensor]
    functions: Mapping[str, Tensor]

    @classmethod
    def random(
        cls, g: ADMG, levels: Mapping[str, int], latent_states: int, rng: torch.Generator
    ) -> Functional:
        """Every value of a node is possible whatever its parents and latents are."""
        sizes: dict[Key, int] = {(name,): levels[name] + 1 for name in g.nodes}
        sizes |= dict.fromkeys(g.bidirected, latent_states)
        noise = {}
        for key, size in sizes.items():
            weights = 0.2 + torch.rand(size, generator=rng, dtype=torch.float64)
            noise[key] = weights / weights.sum()
        model = cls(g, levels, noise, {})
        functions = {}
        for name in g.nodes:  # onto in the private noise, whose axis is the first
            order = torch.rand(model._shape(name), generator=rng).argsort(0)
            functions[name] = order % levels[name]
        return replace(model, functions=functions)

    def _shape(self, name: str) -> list[int]:
        shape = [len(self.noise[key]) for key in self.keys([name])]
        return shape + [self.levels[parent] for parent in self.parents(name)]

    def parents(self, name: str) -> tuple[str, ...]:
        return self.g.names(self.g.mask(self.g.parents(name)))

    def keys(self, names: Sequence[str]) -> list[Key]:
        """The exogenous variables that the nodes read."""
        return [key for key in self.noise if any(name in key for name in names)]

    def perturbed(self, key: Key, number: int, rng: torch.Generator) -> Functional:
        """The model in which an exogenous variable has new states only, with new functions."""
        noise = {**self.noise, key: torch.ones(number, dtype=torch.float64)}
        model, functions = replace(self, noise=noise), dict(self.functions)
        for name in key:
            functions[name] = torch.randint(self.levels[name], model._shape(name), generator=rng)
        return replace(model, functions=functions)

    def states(self, keys: Sequence[Key]) -> dict[Key, Tensor]:
        """All joint states of some exogenous variables, as one column each."""
        grid = torch.cartesian_prod(*(torch.arange(len(self.noise[key])) for key in keys))
        return dict(zip(keys, grid.reshape(-1, len(keys)).unbind(-1), strict=True))

    def weights(self, states: Mapping[Key, Tensor]) -> Tensor:
        """The probabilities of such states."""
        factors = [self.noise[key][state] for key, state in states.items()]
        return torch.stack(factors).prod(0)

    def solve(self, name: str, do: World, states: Mapping[Key, Tensor]) -> Tensor:
        """The values of a node in a world, one per state."""
        values: dict[str, Tensor] = {}
        number = len(next(iter(states.values())))
        for target, setting in do.items():
            if isinstance(setting, Event):
                values[target] = self.solve(setting.variable, setting.do, states)
            else:
                values[target] = torch.as_tensor(setting).expand(number)
        ancestors = self.g.intervene(do).ancestors(name)
        for node in self.g.topological_order():
            if node in ancestors and node not in values:
                index = [states[key] for key in self.keys([node])]
                index += [values[parent] for parent in self.parents(node)]
                values[node] = self.functions[node][tuple(index)]
        return values[name]

    def probability(self, events: Sequence[Event], *, each: Key | None = None) -> Tensor:
        """The probability of a conjunction, or that given each state of an exogenous variable."""
        keys = self.keys(sorted({name for event in events for name in _read(self.g, event)}))
        keys = [*([] if each is None or each in keys else [each]), *keys] or list(self.noise)[:1]
        states = self.states(keys)
        holds = torch.ones(len(states[keys[0]]), dtype=torch.bool)
        for event in events:
            holds &= self.solve(event.variable, event.do, states) == event.value
        mass = self.weights(states) * holds
        if each is None:
            return mass.sum()
        return torch.bincount(states[each], mass, minlength=len(self.noise[each]))

    def kernel(self, names: Sequence[str], fixed: Sequence[str], each: Key | None = None) -> Tensor:
        """The joint law of nodes under all interventions on others, all further ones set to 0.

        Axes: the states of `each`, if given; the fixed nodes; the nodes.
        """
        rest = set(self.g.nodes) - {*names, *fixed}
        states = self.states(self.keys(names))
        weights = self.weights(states)
        shape = [self.levels[name] for name in names]
        tables = []
        for setting in itertools.product(*(range(self.levels[name]) for name in fixed)):
            do = {**dict.fromkeys(rest, 0), **dict(zip(fixed, setting, strict=True))}
            cell = torch.zeros_like(states[(names[0],)]) if each is None else states[each]
            for name in names:
                cell = cell * self.levels[name] + self.solve(name, do, states)
            number = 1 if each is None else len(self.noise[each])
            table = torch.bincount(cell, weights, minlength=number * math.prod(shape))
            tables.append(table.reshape(number, *shape))
        stacked = torch.stack(tables, 1)
        outer = [] if each is None else [stacked.shape[0]]
        return stacked.reshape(*outer, *(self.levels[name] for name in fixed), *shape)

    def table(self, do: frozenset[str] = frozenset()) -> Tensor:
        """The law under interventions, in the format that `Estimand.evaluate` reads."""
        rest = [name for name in self.g.nodes if name not in do]
        if not rest:
            return torch.ones([self.levels[name] for name in sorted(do)], dtype=torch.float64)
        return self.kernel(rest, sorted(do))


def truth(model: Functional, event: Sequence[Event], given: Sequence[Event] = ()) -> Tensor:
    """The probability of a conjunction given another."""
    both = model.probability([*event, *given])
    return both / model.probability(given) if given else both


def levels_of(g: ADMG, events: Sequence[Event]) -> dict[str, int]:
    """Three levels for what the events mention, two for the rest.

    With a level that no event mentions, probabilities that add up to one give nothing away.
    """
    mentioned = {name for event in events for name in _mentioned(event)}
    return {name: 3 if name in mentioned else 2 for name in g.nodes}


def identified(
    g: ADMG,
    event: Sequence[Event],
    given: Sequence[Event] = (),
    *,
    regime: str,
    latent_states: int = 5,
    models: int = 3,
) -> bool:
    """Whether the query is a function of the data near each of a few random models."""
    levels, left = levels_of(g, [*event, *given]), models
    for seed in range(20 * models):
        rng = torch.Generator().manual_seed(seed)
        model = Functional.random(g, levels, latent_states, rng)
        if model.probability(given) > 0:  # few states may rule out what is possible in general
            left -= 1
            if not all(_settled(model, event, given, d, regime, rng) for d in g.districts()):
                return False
        if not left:
            return True
    raise ValueError(f"{given} never holds together: expected a possible condition. Do change it.")


def _settled(
    model: Functional,
    event: Sequence[Event],
    given: Sequence[Event],
    district: frozenset[str],
    regime: str,
    rng: torch.Generator,
) -> bool:
    """Whether the query stays put where the data do, as the hidden side of a district changes."""
    both, condition = model.probability([*event, *given]), model.probability(given)
    kernels = list(_kernels(model.g, district, regime))
    entries = sum(math.prod(model.levels[n] for n in names + fixed) for names, fixed in kernels)
    keys = model.keys(sorted(district))
    data, query = [], []
    for key in keys:
        fresh = model.perturbed(key, 40 + entries // len(keys), rng)
        joint = fresh.probability([*event, *given], each=key)
        query.append(joint * condition - both * fresh.probability(given, each=key))
        data.append(_moves(model, fresh, key, kernels))
    return _in_row_space(torch.cat(data, 1), torch.cat(query))


def _moves(
    model: Functional, fresh: Functional, key: Key, kernels: Sequence[tuple[list[str], list[str]]]
) -> Tensor:
    """How the data move towards each new state, `[entries, states]`."""
    moves = []
    for names, fixed in kernels:
        at = model.kernel(names, fixed).flatten()[:, None]
        if set(names) & set(key):
            moves.append(fresh.kernel(names, fixed, each=key).flatten(1).T - at)
        else:
            moves.append(torch.zeros_like(at).expand(-1, len(fresh.noise[key])))
    return torch.cat(moves)


def _kernels(
    g: ADMG, district: frozenset[str], regime: str
) -> Iterator[tuple[list[str], list[str]]]:
    """What the data tell about a district: nodes, and the parents that their law depends on.

    A law of experiments is a product of those of the connected parts of the districts, all other
    nodes being set; P(V) is a product of those of the districts and has them (Tian & Pearl 2002,
    On the identification of causal effects, lemma 1).
    """
    members = sorted(district)
    for size in range(1, len(members) + 1):
        for names in itertools.combinations(members, size):
            connected = len(g.subgraph(names).districts()) == 1
            if size == len(members) or (regime == "experiments" and connected):
                yield list(names), sorted(g.parents(names) - set(names))


def _in_row_space(matrix: Tensor, row: Tensor, tolerance: float = 1e-7) -> bool:
    size = row.norm()
    if size < 1e-13:
        return True
    target = (row / size)[:, None]
    fit = torch.linalg.lstsq(matrix.T, target, rcond=1e-11, driver="gelsd").solution
    return bool((matrix.T @ fit - target).norm() < tolerance)


def _read(g: ADMG, event: Event) -> frozenset[str]:
    """The nodes whose functions an event may depend on."""
    nested = [setting for setting in event.do.values() if isinstance(setting, Event)]
    return g.ancestors(event.variable).union(*(_read(g, setting) for setting in nested))


def _mentioned(event: Event) -> Iterator[str]:
    yield event.variable
    yield from event.do
    for setting in event.do.values():
        if isinstance(setting, Event):
            yield from _mentioned(setting)


def random_graph(rng: random.Random, number: int, arcs: int = 3) -> ADMG:
    """At most so many bidirected edges; the order of the nodes is not that of the arrows."""
    names = rng.sample("abcdefgh"[:number], number)
    pairs = list(itertools.combinations(names, 2))
    directed = [pair for pair in pairs if rng.random() < 0.6]
    bidirected = rng.sample(pairs, rng.randint(0, min(arcs, len(pairs))))
    return ADMG(directed, bidirected, nodes=sorted(names))


def random_event(
    rng: random.Random, g: ADMG, *, factual: float = 0.2, nested: float = 0.25
) -> Event:
    """An event about one node in some world, where few settings have no bearing on it."""
    name = rng.choice(g.nodes)
    world = {} if rng.random() < factual else _random_world(rng, g, name, nested)
    return Event(name, rng.randrange(2), world)


def _random_world(rng: random.Random, g: ADMG, name: str, nested: float) -> dict[str, int | Event]:
    do: dict[str, int | Event] = {}
    causes = g.ancestors(name)
    for other in g.nodes:
        if other != name and rng.random() < (0.5 if other in causes else 0.1):
            inner = _random_world(rng, g, other, 0.0) if rng.random() < nested else {}
            do[other] = Event(other, None, inner) if inner else rng.randrange(2)
    return do
