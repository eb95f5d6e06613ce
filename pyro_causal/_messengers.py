"""The messengers behind the causal handlers.

A sample message meets them in three steps. `_pyro_sample` decides whether the site concerns them.
`replace` does away with the mechanism of a target, if that is what the action means. Then the
factual value is completed to all worlds, and `intervene` sets what the program sees. The
last two run after every other handler has proposed a value and before any has recorded it (see
:func:`pyro_causal._pyro.dispatch`).

While it is settled, a message has keys of our own: `_causal` (the handlers that wait for it),
`_fixed` (a hard target), `_drawn` (nobody proposed a value), `_computed` (the program computed an
observation), and `site`. What stays in a trace is ``infer["_natural"]``, the pair of the
value without interventions and the recorded one, so that a replay of the trace reproduces it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_causal._actions import (
    Action,
    apply_action,
    check_actions,
    check_support,
    coerce,
    draws_afresh,
    is_hard,
    require_sites,
    soft,
    stochastic,
)
from pyro_causal._factual import Factual, narrow, same, spans, strip, world_frame
from pyro_causal._pyro import dispatch
from pyro_causal._site import Layout, Site, as_delta

__all__ = ["CausalMessenger", "DoMessenger", "WorldsMessenger"]

Message = Any  # a pyro.poutine.runtime.Message with the keys above


class CausalMessenger(Messenger):
    """Base of the causal handlers: they rewrite values once all other handlers had their say."""

    dim: int | None = None
    targets: Mapping[str, object]
    actions: Sequence[Mapping[str, Action]]

    def __enter__(self) -> CausalMessenger:
        self._seen: dict[str, None] = {}
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        if exc[0] is None:
            require_sites(self.targets, self._seen, "an intervention")

    def replace(self, msg: Message, dims: Sequence[int]) -> None:
        """Replace the mechanism of a target, if the action does; `dims` are those of worlds."""

    def intervene(self, msg: Message) -> None:
        """Replace the natural value of a target by what the rest of the program sees."""
        raise NotImplementedError


def _replace(handlers: Sequence[CausalMessenger], msg: Message) -> None:
    """Find the factual value; replace mechanisms that give way, innermost first."""
    fn, value = msg["fn"], msg["value"]
    event_dim = getattr(fn, "event_dim", 0)
    dims = [h.dim for h in handlers if h.dim]
    natural, recorded = msg["infer"].get("_natural", (None, None))
    ours = natural is not None and same(value, recorded)
    if ours:
        value = natural
        for dim in dims:
            value = narrow(value, dim, event_dim)
    if value is not None and not value.is_floating_point() and not _is_discrete(fn):
        value = value.to(torch.get_default_dtype())  # whole numbers as evidence on a real site
    msg["value"] = value
    given = value is not None and not (msg.pop("_drawn", False) or ours)
    for dim in dims if given else ():
        if spans(value.shape, dim - event_dim) and not _is_computed(msg):
            raise ValueError(
                f"At site '{msg['name']}', the value given has shape {tuple(value.shape)}, which "
                f"takes the dim {dim} of the worlds: expected a factual value. Put the evidence "
                "inside, worlds(condition(model, data), ...), or declare its batch with pyro.plate."
            )
    for handler in _in_force(handlers, msg["name"]):
        handler.replace(msg, dims)


def _in_force(handlers: Sequence[CausalMessenger], name: str) -> list[CausalMessenger]:
    """The handlers that act on a site, without those inside of one that sets its value afresh."""
    acting: list[CausalMessenger] = []
    for handler in handlers:
        if name not in handler.targets:
            continue
        if isinstance(handler, DoMessenger) and draws_afresh(handler.targets[name]):
            acting.clear()
        acting.append(handler)
    softs = any(isinstance(a.get(name), soft) for h in acting[1:] for a in h.actions)
    if softs and is_hard(acting[0].targets[name]):
        raise TypeError(
            f"At site '{name}', a soft intervention around one that sets a value: expected a "
            "mechanism, whose noise it would share, got a number, which has none. Drop one of the "
            "two, or pass a function of the value."
        )
    return acting


def _is_computed(msg: Message) -> bool:
    """Whether the program has computed the value, worlds and all."""
    return bool(msg.get("_computed") or site_is_factor(msg) or as_delta(msg["fn"]) is not None)


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):
        return as_delta(fn) is not None  # takes whatever value it has


def _rewrite(handlers: Sequence[CausalMessenger], msg: Message) -> None:
    """Settle, intervene (innermost first, so that the outermost wins), tell the truth about it."""
    targeted = [h for h in handlers if msg["name"] in h.targets]
    _settle([h for h in handlers if isinstance(h, WorldsMessenger)], msg, bool(targeted))
    natural = msg["site"].natural = msg["value"]
    if len(targeted) > 1:
        warnings.warn(
            f"At site '{msg['name']}', {len(targeted)} nested interventions meet: the outermost "
            "wins where both set a value. Drop the others if that is not meant.",
            stacklevel=2,
        )
    for handler in _in_force(handlers, msg["name"]):
        handler.intervene(msg)
    value, fn, site = msg["value"], msg["fn"], msg.pop("site")
    dims = tuple(h.dim for h in handlers if h.dim and spans(value.shape, h.dim - site.event_dim))
    if dims or value is not natural:
        msg["infer"] = {**msg["infer"], "_natural": (natural, value)}
        msg["fn"] = Factual(fn, dims, natural=natural, recorded=value)
    msg["cond_indep_stack"] += tuple(world_frame(dim) for dim in dims)


def _settle(worlds: Sequence[WorldsMessenger], msg: Message, targeted: bool) -> None:
    """Complete the factual value to the natural value in every world."""
    name, fn, value = msg["name"], msg["fn"], msg["value"]
    event_dim = getattr(fn, "event_dim", 0)
    differing = tuple(h.dim for h in worlds if h.differs(name, fn))
    factual = value
    for handler in worlds:
        factual = narrow(factual, handler.dim, event_dim)
    site = msg["site"] = Site(name, fn, factual, differing, msg["cond_indep_stack"], value)
    observed = msg.pop("_computed", False)
    if factual is not value and ((observed and not targeted) or _is_computed(msg)):
        return
    msg["value"] = factual
    if not differing:
        return
    if "_enumerate_dim" in msg["infer"]:
        raise ValueError(
            f"At site '{name}', an enumerated site has no counterfactual value: its mechanism "
            "depends on an intervention. Sample it in the guide, or enumerate it in the guide "
            "only by infer={'enumerate': 'sequential'}."
        )
    actions = [action.get(name) for h in worlds for action in h.actions]
    msg["value"] = site.in_all_worlds(lambda: not all(map(draws_afresh, actions)))


def _factual(handlers: Sequence[CausalMessenger], msg: Message) -> Message:
    """The message as it would be without worlds, for who asks about the random variable itself."""
    fn, value = msg["fn"], msg["value"]
    dims = tuple(h.dim for h in handlers if h.dim)
    for dim in dims:
        value = narrow(value, dim, fn.event_dim)
    msg["value"] = strip(value, msg["cond_indep_stack"], fn.event_dim)
    return {**msg, "fn": Factual(fn, dims)}


class DoMessenger(CausalMessenger):
    """The handler behind :func:`do`."""

    def __init__(self, data: Mapping[str, Action]) -> None:
        super().__init__()
        self.targets: dict[str, Action] = check_actions(data)
        self.actions = [self.targets]

    def _pyro_sample(self, msg: Message) -> None:
        name, fn = msg["name"], msg["fn"]
        if site_is_subsample(msg) or site_is_factor(msg):
            return
        self._seen[name] = None
        action = self.targets.get(name)
        if action is None:
            return
        msg["_target"] = True  # so that a trace tells
        if isinstance(action, TorchDistributionMixin):
            shape = fn.shape() if msg["value"] is None else msg["value"].shape
            msg["fn"] = stochastic(action, name, fn, shape)
            msg["value"], msg["is_observed"], msg["done"] = None, False, False
            msg["_fixed"] = False  # even if an intervention inside has set the value
        elif is_hard(action):
            msg["is_observed"] = msg["_fixed"] = True
        dispatch(self, msg, _replace, _rewrite, _factual)

    def replace(self, msg: Message, dims: Sequence[int]) -> None:
        """Put a new mechanism in the place of the old one, whose value nobody sees from now on."""
        name, fn = msg["name"], msg["fn"]
        action = self.targets[name]
        if isinstance(action, TorchDistributionMixin):
            if msg["is_observed"]:
                msg["value"], msg["is_observed"] = fn(), False
        elif is_hard(action):
            like = _blank(fn) if msg["value"] is None else msg["value"]
            for dim in dims:  # the same in all worlds, whatever the old mechanism depended on
                like = narrow(like, dim, fn.event_dim)
            like = strip(like, msg["cond_indep_stack"], fn.event_dim)
            msg["value"] = apply_action(action, name, fn, like)
            msg["fn"] = dist.Delta(msg["value"], event_dim=fn.event_dim).mask(False)
            msg["infer"] = {**msg["infer"], "_deterministic": True}
            msg["is_observed"] = True

    def intervene(self, msg: Message) -> None:
        """A replaced mechanism keeps its value; other actions are functions of it."""
        action, site = self.targets[msg["name"]], msg["site"]
        if draws_afresh(action):
            msg["value"] = site.natural
        else:
            msg["value"] = apply_action(action, site.name, site.fn, msg["value"], site)


def _blank(fn: Any) -> Tensor:
    """A value of the site's shape and dtype; a draw, so that others get the same numbers."""
    try:
        value: Tensor = fn()
    except NotImplementedError:  # improper priors
        return torch.zeros(fn.shape())
    return value


class WorldsMessenger(CausalMessenger):
    """The handler behind :func:`worlds`, on a given batch dim."""

    dim: int

    def __init__(
        self,
        actions: Sequence[Mapping[str, Action]],
        dim: int,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        if not (isinstance(dim, int) and dim < 0):
            raise ValueError(
                "The worlds need a batch dim, counted from the right: expected a negative int, "
                f"got {dim!r}. Pass worlds(fn, actions), which finds one, or dim=-2 for a program "
                "with one plate."
            )
        self.actions = actions
        self.size = 1 + len(actions)
        self.targets = dict.fromkeys(name for action in actions for name in action)
        self.dim = dim
        self.layout = layout or Layout()

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.dim == self.dim:
                raise ValueError(
                    f"At site '{name}', the plate '{frame.name}' has the dim {self.dim} of the "
                    f"worlds: expected a dim that no plate uses. Pass worlds(..., dim=...) left "
                    f"of all plates, such as dim={self.dim - 1}."
                )
        for key in ("mask", "scale"):  # of the worlds, only the factual one is scored
            if isinstance(msg[key], Tensor):
                msg[key] = narrow(msg[key], self.dim)
        fn, value, factor = msg["fn"], msg["value"], site_is_factor(msg)
        if msg["infer"].get("_deterministic"):
            self._place_events(msg)
        else:
            self.layout.check(name, fn, self.size)
            if msg["is_observed"] and value is not None and not factor:
                msg["_computed"] = self._is_spread(value, fn)
        if not factor:
            self._seen[name] = None
        targeted = name in self.targets and not factor
        if targeted or msg.get("_computed") or self.differs(name, msg["fn"]):
            dispatch(self, msg, _replace, _rewrite, _factual)

    def _is_spread(self, value: Tensor, fn: Any) -> bool:
        axis = self.dim - getattr(fn, "event_dim", 0)
        return spans(value.shape, axis) and value.shape[axis] == self.size

    def _place_events(self, msg: Message) -> None:
        """Tell batch from event at a `pyro.deterministic` that declares no event_dim.

        Events are what the plain value has left of the site's plates, or else of all plates,
        whichever finds the worlds in the value; nothing is known of the plain value without layout.
        """
        value = msg["value"]
        if value is None or value.dim() != msg["fn"].event_dim:
            return
        room = -self.dim - 1
        length = self.layout.lengths.get(msg["name"], value.dim() - 1)
        plates = max((-f.dim for f in msg["cond_indep_stack"] if f.dim), default=0)
        candidates = [max(0, length - plates), max(0, length - room)]
        if msg["name"] not in self.layout.lengths:
            candidates = candidates[1:]
        for event_dim in candidates:
            axis = self.dim - event_dim
            if value.dim() >= -axis and value.shape[axis] == self.size:
                break
        else:
            event_dim = candidates[-1]
            if msg["name"] not in self.targets:
                return
        msg["fn"] = dist.Delta(value, event_dim=event_dim).mask(False)

    def differs(self, name: str, fn: Any) -> bool:
        """Whether the mechanism of a site differs between the worlds."""
        shape = getattr(fn, "batch_shape", ())
        if not spans(shape, self.dim):
            return False
        if shape[self.dim] != self.size:
            raise ValueError(
                f"At site '{name}', the batch has size {shape[self.dim]} at the dim {self.dim} of "
                f"the worlds: expected 1 or the number of worlds, {self.size}. Declare the batch "
                "with pyro.plate or .to_event, or pass worlds(..., dim=...) left of it."
            )
        return True

    def intervene(self, msg: Message) -> None:
        """Give each world the value of its action."""
        site, value = msg["site"], msg["value"]
        axis = self.dim - site.event_dim
        value = value.reshape((1,) * (-axis - value.dim()) + value.shape)
        columns = [_column(value, axis, 0)]
        for k, actions in enumerate(self.actions, start=1):
            action = actions.get(site.name)
            natural = _column(value, axis, k)
            if action is None:
                columns.append(natural)
            elif isinstance(action, soft | Mapping):
                everywhere = apply_action(action, site.name, site.fn, value, site)
                columns.append(_column(everywhere, axis, k))
            else:
                columns.append(self._set(action, site, natural, k))
        msg["value"] = torch.cat(torch.broadcast_tensors(*columns), axis)

    def _set(self, action: Action, site: Site, natural: Tensor, k: int) -> Tensor:
        """The value in world `k`, an axis of size one among those of the natural value there."""
        axis = self.dim - site.event_dim
        if is_hard(action):
            value = coerce(action, site.name, natural)
            check_support(value, site.name, site.fn, lambda ok: _column(ok, self.dim, k))
            return value
        if isinstance(action, TorchDistributionMixin):  # one draw per particle
            shape = torch.broadcast_shapes(natural.shape, site.fn.shape())
            return apply_action(action, site.name, site.fn, _column(natural.expand(shape), axis, 0))
        plain = strip(natural, site.frames, site.event_dim)  # as the function sees it without us
        return apply_action(action, site.name, site.fn, plain).reshape(natural.shape)


def _column(tensor: Tensor, axis: int, k: int) -> Tensor:
    """World `k` of a tensor, as an axis of size one; a tensor without the axis is left alone."""
    return tensor.narrow(axis, k, 1) if spans(tensor.shape, axis) else tensor
