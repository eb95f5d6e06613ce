"""The sample statements of a program, each with the sites whose values flow into it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from pyro_causal._actions import Action, draws_afresh, soft
from pyro_causal._factual import is_world_frame
from pyro_causal._messengers import DoMessenger
from pyro_causal._provenance import Names, Provenance
from pyro_causal._pyro import unshared
from pyro_causal._site import as_delta

__all__ = ["Extent", "Statement", "read_statements", "undisturbed"]

Message = Any  # as in _messengers, with a key `_statement` of our own


class Extent(NamedTuple):
    """The plates that a site stands in, with their sizes, and the sizes of its other dims."""

    plates: Mapping[str, Collection[int | None]]
    sizes: frozenset[int]

    @classmethod
    def of(cls, msg: Message) -> Extent:
        """That of a message, or of a site of a trace."""
        frames = msg["cond_indep_stack"]
        plates = {f.name: {f.size, f.full_size} for f in frames if not is_world_frame(f)}
        shape = getattr(msg["value"], "shape", ())
        events = getattr(msg["fn"], "event_dim", 0)
        taken = {frame.dim - events for frame in frames if frame.dim}
        sizes = (size for dim, size in enumerate(shape, -len(shape)) if dim not in taken)
        return cls(plates, frozenset(sizes))

    def is_shared_by(self, *sites: Extent) -> bool:
        """Whether a site has one value for all units of others: it is a parameter of theirs."""
        plates = [site.plates for site in sites]
        sizes = (size for site in plates for pair in site.values() for size in pair)
        together = not plates or set(plates[0]).intersection(*plates[1:])
        return not self.plates and bool(together) and self.sizes.isdisjoint(sizes)


@dataclass(frozen=True)
class Statement:
    """What a graph needs to know of a site.

    **Arguments**

    - ``parents``: the sites whose values flow directly into its distribution or its value.
    - ``extent``: where it stands, sequential plates included.
    - ``observed``: the program says what its value is, or ``poutine.condition`` does.
    - ``target``: an intervention sets it.
    - ``computed``: it is a `pyro.deterministic`, or works like one.
    - ``point``: its distribution is a point.
    - ``auxiliary``: it has the ``infer`` option ``is_auxiliary``.
    - ``factor``: it is a `pyro.factor`.
    """

    parents: Names
    extent: Extent
    observed: bool
    target: bool
    computed: bool
    point: bool
    auxiliary: bool
    factor: bool


def read_statements(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, stacklevel: int
) -> dict[str, Statement]:
    """Run a program once, without effect on anything but itself, and read its sites.

    **Arguments** ``stacklevel``: whom a warning points at, counted from the caller.

    **Raises** ``ValueError``: `pyro.poutine.do`; two sites of one name.

    **Warns** ``UserWarning``: Python code looks at the value of a site.
    """
    with torch.no_grad(), undisturbed(model), _unvalidated():
        with poutine.block(), Provenance() as provenance, _Reader(provenance) as reader:
            model(*args, **kwargs)
    if reader.looked_at:
        names = ", ".join(f"'{name}'" for name in reader.statements if name in reader.looked_at)
        warnings.warn(
            f"At site {names}, Python looks at the value (if, int(), .item(), .numpy(), a shape "
            "that depends on it ...) and loses its trace: every later site counts as depending on "
            "it, and only the branch taken in this run is in the graph. Do stay with tensors "
            "(torch.where, indexing by tensors) for the exact graph.",
            stacklevel=stacklevel + 1,
        )
    return reader.statements


@contextmanager
def undisturbed(program: Any) -> Iterator[None]:
    """Leave parameters, random state (of a GPU, the current one) and a module's state alone."""
    store = pyro.get_param_store()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices), unshared(program), _buffers_kept(program):
            with store.scope(store.get_state()):
                yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@contextmanager
def _buffers_kept(program: Any) -> Iterator[None]:
    """Give a module, or the module of a bound method, its buffers back: running means, say."""
    module = getattr(program, "__self__", program)
    modules = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    kept = [
        (part, name, b, b.clone())
        for part in modules
        for name, b in part._buffers.items()
        if b is not None
    ]
    try:
        yield
    finally:
        for part, name, buffer, value in kept:
            with torch.no_grad():
                part._buffers[name] = buffer.copy_(value)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Switch off checks of values: they look at them, without a say in what the program does."""
    default = Distribution._validate_args  # zuko or the user may have it differ from Pyro's
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        Distribution.set_default_validate_args(default)


class _Open(NamedTuple):
    """What is known of a statement on the way out through the handlers."""

    fn: Any
    mechanism: Names
    computed: bool
    observed: bool
    actions: list[Action]
    block: AbstractContextManager[set[str]]
    read: set[str]


class _Reader(Messenger):
    """Note what flows into each site, whose value then bears its name and no other.

    It is the outermost handler: the last to see a message on the way out, the first on the way
    back.
    """

    def __init__(self, provenance: Provenance) -> None:
        super().__init__()
        self.provenance = provenance
        self.statements: dict[str, Statement] = {}
        self.looked_at: Names = frozenset()

    def _pyro_sample(self, msg: Message) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if site_is_subsample(msg):
            return
        if msg.get("_intervener_id") is not None:
            raise ValueError(
                f"At site '{name}', pyro.poutine.do splits the site in two and hides the one that "
                "is set: expected a site that stays one. Do use pyro_causal.do."
            )
        computed, mechanism = self._is_computed(msg), self._flowing_into(fn, msg)
        known = isinstance(value, Tensor | Number | np.ndarray) and not site_is_factor(msg)
        if known:  # evidence on it depends on as much
            given = mechanism | self.provenance.of(value)
            msg["value"] = self.provenance.mark(torch.as_tensor(value), given)
        targeted = [
            handler.targets[name]
            for handler in msg.get("_causal", ())  # innermost first
            if isinstance(handler, DoMessenger) and name in handler.targets
        ]
        observed = msg["is_observed"] and not (computed or targeted)
        block = self.provenance.reading()
        msg["_statement"] = _Open(
            fn, mechanism, computed, observed, targeted, block, block.__enter__()
        )

    def _pyro_post_sample(self, msg: Message) -> None:
        if site_is_subsample(msg):
            return
        name, begun = msg["name"], msg.pop("_statement")
        begun.block.__exit__(None, None, None)
        if name in self.statements:
            raise ValueError(
                f"At site '{name}', a second site of this name: expected one. Do rename it."
            )
        statement = Statement(
            parents=self._parents(begun, msg),
            extent=Extent.of(msg),
            observed=begun.observed,
            target=bool(begun.actions),
            computed=begun.computed,
            point=as_delta(begun.fn) is not None,
            auxiliary=bool(msg["infer"].get("is_auxiliary")),
            factor=site_is_factor(msg),
        )
        if begun.computed:
            statement = self._without_halves(name, statement)
        self.looked_at = self.provenance.read_outside
        self.statements[name] = statement
        if isinstance(msg["value"], Tensor):
            msg["value"] = self.provenance.mark(msg["value"], {name})
        else:  # a string, an array: no trace to follow
            self.provenance.read({name})

    def _is_computed(self, msg: Message) -> bool:
        """Whether the value of a site is a function of others, as reparametrised ones are, too."""
        if msg["infer"].get("_deterministic"):
            return True
        flows = msg["is_observed"] and as_delta(msg["fn"]) is not None
        return flows and bool(self.provenance.of(msg["value"]))

    def _flowing_into(self, fn: Any, msg: Message) -> Names:
        """What a distribution depends on: all that a draw, or its density at the draw, is made of.

        The density alone would miss what a mask hides and laws without density, the draw alone
        would miss weights. Where no draw is to be had, all that the distribution holds counts.
        """
        with self.provenance.reading() as names:
            names |= self.provenance.of(msg["mask"], msg["scale"])
            value = msg["value"]
            try:
                value = fn(*msg["args"], **msg["kwargs"])
            except Exception:  # observed sites need no sampler, nor parameters that suit it
                names |= self.provenance.of(*_held_by(fn, set()))
            with suppress(Exception):
                names |= self.provenance.of(fn.log_prob(value))
            names |= self.provenance.of(value)
        return frozenset(names)

    def _parents(self, begun: _Open, msg: Message) -> Names:
        """What flows into the value that the program sees, interventions included."""
        flows = self.provenance.of(msg["value"])
        if not begun.actions:
            return begun.mechanism | flows | begun.read | self.provenance.read_outside
        action = begun.actions[-1]  # the outermost
        if draws_afresh(action):
            return flows
        read = begun.read
        if isinstance(action, soft):  # its value is made of noise, which parents have been used for
            with self.provenance.reading() as read:
                flows = self._flowing_into(action.mechanism(begun.fn), msg)
        return flows | read | self.provenance.read_outside

    def _without_halves(self, name: str, statement: Statement) -> Statement:
        """Put a site with ``obs_mask``, which Pyro splits in two and computes, together again."""
        halves = [f"{name}_observed", f"{name}_unobserved"]
        if list(self.statements)[-2:] != halves:
            return statement
        seen, _ = (self.statements.pop(half) for half in halves)
        parents = statement.parents - set(halves)
        if parents != statement.parents:
            parents |= seen.parents
        return replace(
            statement, parents=parents, observed=seen.observed, computed=False, point=False
        )


def _held_by(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """The tensors inside a distribution, its transforms, its support and its modules."""
    if isinstance(thing, Tensor):
        yield thing
    if id(thing) in seen:
        return
    seen.add(id(thing))
    parts: Iterable[object] = ()
    if isinstance(thing, Distribution | Transform | constraints.Constraint | torch.nn.Module):
        parts = vars(thing).values()
    elif isinstance(thing, dict):
        parts = thing.values()
    elif isinstance(thing, list | tuple):
        parts = thing
    for part in parts:
        yield from _held_by(part, seen)
