"""The sample statements of a program, each with the sites whose values flow into it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from pyro_causal._actions import Action, draws_afresh, is_hard, soft
from pyro_causal._factual import is_world_frame
from pyro_causal._messengers import DoMessenger
from pyro_causal._provenance import Names, Provenance
from pyro_causal._pyro import unshared
from pyro_causal._site import as_delta

__all__ = ["Statement", "random_state_kept", "read_statements"]

Message = Any  # as in _messengers, with a key `_statement` of our own


@dataclass(frozen=True)
class Statement:
    """What a graph needs to know of a site.

    **Arguments**

    - ``parents``: the sites whose values flow directly into its distribution or its value.
    - ``in_plates``: whether it stands in any, sequential ones included.
    - ``observed``: the program says what its value is, or ``poutine.condition`` does.
    - ``target``: an intervention sets it.
    - ``computed``: it is a `pyro.deterministic`, or works like one.
    - ``auxiliary``: it has the ``infer`` option ``is_auxiliary``.
    - ``factor``: it is a `pyro.factor`.
    """

    parents: Names
    in_plates: bool
    observed: bool
    target: bool
    computed: bool
    auxiliary: bool
    factor: bool


def read_statements(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    quiet: bool = False,
) -> dict[str, Statement]:
    """Run a program once, without effect on random state and parameters, and read its sites.

    **Raises** ``ValueError``: `pyro.poutine.do`; two sites of one name.

    **Warns** ``UserWarning``: Python code looks at the value of a site, unless ``quiet``.
    """
    store = pyro.get_param_store()
    with torch.no_grad(), random_state_kept(), unshared(model), _unvalidated():
        with store.scope(store.get_state()), poutine.block(), Provenance() as provenance:
            with _Reader(provenance) as reader:
                model(*args, **kwargs)
    if reader.looked_at and not quiet:
        names = ", ".join(f"'{name}'" for name in reader.statements if name in reader.looked_at)
        warnings.warn(
            f"At site {names}, Python looks at the value (if, int(), .item(), .numpy() ...) and "
            "loses its trace: every later site counts as depending on it, and only the branch "
            "taken in this run is in the graph. Do stay with tensors (torch.where, indexing by "
            "tensors) for the exact graph.",
            stacklevel=3,
        )
    return reader.statements


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random state as it was, on the CPU and on the current GPU."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield


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
        if value is not None and not site_is_factor(msg):  # evidence on it depends on as much
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
            in_plates=not all(map(is_world_frame, msg["cond_indep_stack"])),
            observed=begun.observed,
            target=bool(begun.actions),
            computed=begun.computed,
            auxiliary=bool(msg["infer"].get("is_auxiliary")),
            factor=site_is_factor(msg),
        )
        if begun.computed:
            statement = self._without_halves(name, statement)
        self.looked_at = self.provenance.read_outside
        self.statements[name] = statement
        if isinstance(msg["value"], Tensor):
            msg["value"] = self.provenance.mark(msg["value"], {name})

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
            names |= self.provenance.of(msg["args"], msg["kwargs"], msg["mask"], msg["scale"])
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
        if is_hard(action):
            return flows
        if draws_afresh(action):
            return begun.mechanism | flows
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
        seen, unseen = (self.statements.pop(half) for half in halves)
        parents = statement.parents - set(halves)
        if parents != statement.parents:
            parents |= seen.parents | unseen.parents
        return replace(statement, parents=parents, observed=seen.observed, computed=False)


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
