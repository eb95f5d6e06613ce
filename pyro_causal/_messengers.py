"""The messengers behind the causal handlers.

A sample message meets them in three steps. `_pyro_sample` decides whether the site concerns them
(`replace` does away with the mechanism of a target, if that is what the action means);
`settle` completes the factual value to all worlds; `intervene` sets what the program sees. They
run after every other handler has proposed a value and before any has recorded it (see
:func:`pyro_causal._pyro.dispatch`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_causal import noise
from pyro_causal._actions import (
    Action,
    apply_action,
    as_delta,
    at_site,
    check_actions,
    coerce,
    draws_afresh,
    is_hard,
    require_sites,
    stochastic,
)
from pyro_causal._factual import Factual, narrow, spans, strip, world_frame
from pyro_causal._pyro import dispatch

__all__ = ["CausalMessenger", "DoMessenger", "WorldsMessenger"]

F = TypeVar("F", bound=Callable[..., Any])
Message = Any  # a pyro.poutine.runtime.Message, with a key of our own while it is being settled


class CausalMessenger(Messenger):
    """Base of the causal handlers: they rewrite values once all other handlers had their say."""

    dim: int | None = None
    targets: Mapping[str, object]

    def __enter__(self) -> CausalMessenger:
        self._seen: dict[str, None] = {}
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        if exc[0] is None:
            require_sites(self.targets, self._seen, "an intervention")

    def replace(self, msg: Message) -> None:
        """Replace the mechanism of a target, if the action does."""

    def settle(self, msg: Message) -> None:
        """Complete the factual value to the natural value in every world."""

    def intervene(self, msg: Message) -> None:
        """Replace the natural value of a target by what the rest of the program sees."""
        raise NotImplementedError


def _replace(handlers: Sequence[CausalMessenger], msg: Message) -> None:
    """Replay from a trace of ours, and mechanisms that give way, innermost first."""
    if "_natural" in msg["infer"]:
        msg["value"] = msg["infer"]["_natural"]
    for handler in handlers:
        if msg["name"] in handler.targets:
            handler.replace(msg)


def _rewrite(handlers: Sequence[CausalMessenger], msg: Message) -> None:
    """Settle, intervene (innermost first, so that the outermost wins), tell the truth about it."""
    for handler in handlers:
        handler.settle(msg)
    natural = msg["natural"] = msg["value"]
    targeted = [h for h in handlers if msg["name"] in h.targets]
    if len(targeted) > 1:
        warnings.warn(
            f"At site '{msg['name']}', {len(targeted)} nested interventions meet: the outermost "
            "wins where both set a value. Drop the others if that is not meant.",
            stacklevel=2,
        )
    for handler in targeted:
        handler.intervene(msg)
    value, fn = msg["value"], msg["fn"]
    del msg["natural"]
    event_dim = getattr(fn, "event_dim", 0)
    dims = tuple(h.dim for h in handlers if h.dim and spans(value.shape, h.dim - event_dim))
    if value is not natural:
        msg["infer"] = {**msg["infer"], "_natural": natural}
    if dims or value is not natural:
        msg["fn"] = Factual(fn, dims, natural=natural, recorded=value)
    msg["cond_indep_stack"] += tuple(world_frame(dim) for dim in dims)


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

    def _pyro_sample(self, msg: Message) -> None:
        name, fn = msg["name"], msg["fn"]
        self._seen[name] = None
        action = self.targets.get(name)
        if action is None or site_is_subsample(msg):
            return
        if isinstance(action, TorchDistributionMixin):
            shape = fn.shape() if msg["value"] is None else msg["value"].shape
            msg["fn"] = stochastic(action, name, fn, shape)
            msg["value"], msg["is_observed"], msg["done"] = None, False, False
        elif is_hard(action):
            msg["is_observed"] = msg["_fixed"] = True
        dispatch(self, msg, _replace, _rewrite, _factual)

    def replace(self, msg: Message) -> None:
        """Put a new mechanism in the place of the old one, whose value nobody sees from now on."""
        name, fn, natural = msg["name"], msg["fn"], msg["value"]
        action = self.targets[name]
        if isinstance(action, TorchDistributionMixin):
            if msg["is_observed"]:
                msg["value"], msg["is_observed"] = fn(), False
        elif is_hard(action):
            natural = fn() if natural is None else natural  # for the shape, and the same numbers
            msg["value"] = apply_action(action, name, fn, natural)
            msg["fn"] = dist.Delta(msg["value"], event_dim=fn.event_dim).mask(False)
            msg["infer"] = {**msg["infer"], "_deterministic": True}
            msg["is_observed"] = True

    def intervene(self, msg: Message) -> None:
        """A replaced mechanism keeps its value; other actions are functions of it."""
        action = self.targets[msg["name"]]
        if draws_afresh(action):
            msg["value"] = msg["natural"]
        else:
            msg["value"] = apply_action(action, msg["name"], msg["fn"], msg["value"])


class WorldsMessenger(CausalMessenger):
    """The handler behind :func:`worlds`, on a given batch dim."""

    dim: int

    def __init__(
        self,
        actions: Sequence[Mapping[str, Action]],
        dim: int,
        shapes: Mapping[str, torch.Size] | None = None,
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
        self.shapes = shapes or {}

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        self._seen[name] = None
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
        if msg["infer"].get("_deterministic"):
            self._place_events(msg)
        if name in self.targets or self._differs(name, msg["fn"]):
            dispatch(self, msg, _replace, _rewrite, _factual)

    def _place_events(self, msg: Message) -> None:
        """Tell batch from event at a `pyro.deterministic` that declares no event_dim."""
        value = msg["value"]
        if value is None or value.dim() != msg["fn"].event_dim:
            return
        room = -self.dim - 1
        if msg["name"] in self.shapes:
            length = len(self.shapes[msg["name"]])
            plates = max((-f.dim for f in msg["cond_indep_stack"] if f.dim), default=0)
            candidates = [max(0, length - plates), max(0, length - room)]
        else:
            candidates = [max(0, value.dim() - room - 1)]
        fits = [e for e in candidates if value.shape[self.dim - e :][:1] == (self.size,)]
        event_dim = (fits or candidates[-1:])[0]
        if fits or msg["name"] in self.targets:
            msg["fn"] = dist.Delta(value, event_dim=event_dim).mask(False)

    def _differs(self, name: str, fn: Any) -> bool:
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

    def settle(self, msg: Message) -> None:
        """`x[w] = predict(fn[w], abduct(fn, x[0])[0])`, wherever the mechanism differs."""
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        event_dim = getattr(fn, "event_dim", 0)
        axis = self.dim - event_dim
        computed = site_is_factor(msg) or as_delta(fn) is not None
        if computed and spans(value.shape, axis):
            return
        factual = narrow(value, axis)
        if not self._differs(name, fn):
            msg["value"] = factual
            return
        if "_enumerate_dim" in msg["infer"]:
            raise ValueError(
                f"At site '{name}', an enumerated site has no counterfactual value: its mechanism "
                "depends on an intervention. Sample it in the guide, or enumerate it in the guide "
                "only by infer={'enumerate': 'sequential'}."
            )
        natural = self._transport(name, fn, factual)
        shape = list(natural.shape)
        shape[axis] = 1
        others = natural.narrow(axis, 1, self.size - 1).to(factual.dtype)
        msg["value"] = torch.cat([factual.expand(shape), others], axis)

    def _transport(self, name: str, fn: TorchDistribution, factual: Tensor) -> Tensor:
        """Push the noise of world 0 through the mechanisms of all worlds."""
        try:
            u = noise.abduct(fn, factual)
            axis = max(len(fn.batch_shape), factual.dim() - fn.event_dim) + self.dim
            return noise.predict(fn, u.narrow(axis, 0, 1))
        except TypeError as error:
            if all(draws_afresh(action.get(name)) for action in self.actions):
                return factual.expand(fn.shape())
            raise at_site(name, error) from error

    def intervene(self, msg: Message) -> None:
        """Give each world the value of its action."""
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        event_dim = getattr(fn, "event_dim", 0)
        axis = self.dim - event_dim
        value = value.reshape((1,) * (-axis - value.dim()) + value.shape)
        mechanism_differs = self._differs(name, fn)

        def column(tensor: Tensor, k: int) -> Tensor:
            return tensor.narrow(axis, k, 1) if spans(tensor.shape, axis) else tensor

        columns = [column(value, 0)]
        for k, actions in enumerate(self.actions, start=1):
            action = actions.get(name)
            if action is None:
                columns.append(column(value, k))
            elif is_hard(action) and mechanism_differs:
                columns.append(coerce(action, name, column(value, k)))
            elif is_hard(action) or callable(action):
                like = column(value, k)
                if isinstance(action, TorchDistributionMixin):  # one draw per particle
                    like = column(like.expand(torch.broadcast_shapes(like.shape, fn.shape())), 0)
                columns.append(apply_action(action, name, fn, like))
            else:
                columns.append(column(apply_action(action, name, fn, value), k))
        msg["value"] = torch.cat(torch.broadcast_tensors(*columns), axis)
