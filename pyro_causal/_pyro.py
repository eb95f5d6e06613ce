"""What the package takes from inside Pyro and zuko, in one place.

No other module imports zuko or uses a private name of either library.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints, is_validation_enabled
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR, _PYRO_STACK, default_process_message
from torch import Tensor
from torch.distributions import Distribution, ReshapeTransform, TransformedDistribution

# Importing zuko switches argument validation off for every distribution of the process. Where
# somebody has imported it before, torch's own flag is lost and Pyro's tells what the user wants.
_validate = is_validation_enabled() if "zuko" in sys.modules else Distribution._validate_args
import zuko  # noqa: E402
from zuko.distributions import NormalizingFlow  # noqa: E402

Distribution.set_default_validate_args(_validate)

__all__ = [
    "FlowDistribution",
    "NormalizingFlow",
    "dispatch",
    "free_dim",
    "register",
    "unshared",
    "zuko",
]


class FlowDistribution(TorchDistribution):
    r"""A zuko normalizing flow as a full Pyro distribution.

    .. math:: \log p(x) = \log p_b(f(x)) + \log |\det \partial f(x) / \partial x|

    with the transform :math:`f` from value to noise and the base density :math:`p_b`.

    **Arguments**

    - ``flow``: a ``zuko.distributions.NormalizingFlow``, that is ``lazy_flow(context)`` or
      ``NormalizingFlow(transform, base)``.
    - ``support``: the constraint that values satisfy, for automatic guides and validation; by
      default the domain of the transform. A constraint on single elements is spread over the event.
    - ``scalar``: read events of shape ``(1,)`` as scalars, noise included. A flow of one feature
      then gives ``(*batch,)`` where it would give ``(*batch, 1)``.

    **Shapes**: batch and event shape are those of ``flow``. Context and plates broadcast as
    everywhere in Pyro: a context ``[W, N, C]`` gives the batch shape ``[W, N]``.

    **Raises**: ``TypeError`` if ``flow`` is not a normalizing flow; ``ValueError`` if ``scalar`` is
    asked of events that are not of shape ``(1,)``.

    **References**: Normalizing flows for probabilistic modeling and inference,
    https://arxiv.org/abs/1912.02762, equation 3 (with :math:`f = T^{-1}`).

    **Example**::

        >>> spline = zuko.flows.NSF(features=3, context=2)
        >>> d = FlowDistribution(spline(torch.zeros(5, 2)))
        >>> d.batch_shape, d.event_shape, d.has_rsample
        (torch.Size([5]), torch.Size([3]), True)
        >>> d.expand((4, 5)).sample().shape
        torch.Size([4, 5, 3])
        >>> FlowDistribution(zuko.flows.NSF(features=1)(), scalar=True).event_shape
        torch.Size([])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as in torch)

    def __init__(
        self,
        flow: NormalizingFlow,
        *,
        support: constraints.Constraint | None = None,
        scalar: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(flow, NormalizingFlow):
            raise TypeError(
                "FlowDistribution: expected a zuko NormalizingFlow, got "
                f"{type(flow).__name__}. Call a lazy flow with its context first: flow(context)."
            )
        self.flow = _scalar_flow(flow) if scalar else flow
        event_shape = _event_shape(self.flow)
        self._support = _with_event_dim(support or flow.transform.domain, len(event_shape))
        super().__init__(self.flow.batch_shape, event_shape, validate_args=validate_args)

    def __repr__(self) -> str:
        return (
            f"FlowDistribution(batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)}, support={self._support})"
        )

    @property
    def transform(self) -> torch.distributions.Transform:
        """The transform from value to noise."""
        return self.flow.transform

    @property
    def base(self) -> Distribution:
        """The distribution of the noise, of this distribution's batch shape."""
        return self.flow.base

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients: as the base does."""
        return self.base.has_rsample

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The constraint that values satisfy."""
        return self._support

    def expand(
        self, batch_shape: Sequence[int], _instance: FlowDistribution | None = None
    ) -> FlowDistribution:
        """Broadcast to another batch shape, sharing the transform."""
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.flow = self.flow.expand(torch.Size(batch_shape))
        new._support = self._support
        Distribution.__init__(new, new.flow.batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw noise from the base and send it through the inverse transform."""
        return self.flow.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The density of the noise times the volume change of the transform."""
        if self._validate_args:
            self._validate_sample(value)
        return self.flow.log_prob(value)


def _event_shape(flow: NormalizingFlow) -> torch.Size:
    """The shape of an event; zuko's own counts batch dims among it if the transform has them."""
    event_dim = max(len(flow.base.event_shape), flow.transform.domain.event_dim)
    shape = flow.event_shape
    return shape[len(shape) - event_dim :]


def _with_event_dim(constraint: constraints.Constraint, event_dim: int) -> constraints.Constraint:
    """Spread a constraint over event dims, or narrow it to fewer."""
    while constraint.event_dim > event_dim and isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint.event_dim == event_dim:
        return constraint
    return constraints.independent(constraint, event_dim - constraint.event_dim)


def _scalar_flow(flow: NormalizingFlow) -> NormalizingFlow:
    """Drop the event dim of size one from the values and the noise of a flow."""
    if flow.event_shape != (1,) or flow.base.event_shape != (1,):
        raise ValueError(
            "FlowDistribution: scalar=True expects events of shape (1,), got "
            f"{tuple(flow.event_shape)}. Use a flow with features=1, or leave scalar out."
        )
    scalar, vector = torch.Size(), torch.Size([1])
    add, drop = ReshapeTransform(scalar, vector), ReshapeTransform(vector, scalar)
    return NormalizingFlow(
        zuko.transforms.ComposedTransform(add, flow.transform, drop),
        TransformedDistribution(flow.base, [drop]),
    )


Message = Any  # pyro.poutine.runtime.Message is a closed TypedDict; a message carries extra keys


def dispatch(
    handler: Messenger,
    msg: Message,
    replace: Callable[[list[Any], Message], None],
    rewrite: Callable[[list[Any], Message], None],
    factual: Callable[[list[Any], Message], Message],
) -> None:
    """Settle a sample message with the handlers outside of `handler`, rewrite it, have it recorded.

    Pyro settles a site in two passes: handlers propose on the way out (condition, replay), handlers
    record on the way back (trace). A counterfactual value stands in between: it needs what the
    outer handlers propose and must be there before they record. So the innermost causal handler
    runs both passes over the handlers outside of it and calls `rewrite` in between; causal
    handlers among those only join the list that `rewrite` receives, innermost first.

    A site whose value is `_fixed` has no mechanism left to reparametrise.

    An initialiser asks for the random variable itself, to lay out a guide or a Markov chain: then
    the outer handlers record the `factual` message, and the rewritten one goes on inwards only.
    (`Predictive` initialises too, with densities masked: it does want the values of all worlds.)
    """
    pending = msg.get("_causal")
    if pending is not None:
        pending.append(handler)
        return
    msg["_causal"] = pending = [handler]
    stack = _PYRO_STACK
    top = first = stack.index(handler)
    while first and not msg["stop"]:
        first -= 1
        if not (msg.get("_fixed") and isinstance(stack[first], ReparamMessenger)):
            stack[first]._process_message(msg)
    outer = stack[first:top]
    initialised = any(isinstance(frame, InitMessenger) for frame in outer)
    msg["_drawn"] = msg["value"] is None or initialised
    default_process_message(msg)
    del msg["_causal"]
    msg.pop("_fixed", None)
    replace(pending, msg)
    if initialised and not msg["is_observed"] and msg["mask"] is not False:
        _postprocess(outer, factual(pending, msg))
        rewrite(pending, msg)
    else:
        rewrite(pending, msg)
        _postprocess(outer, msg)
    msg["stop"] = True


def _postprocess(frames: Iterable[Messenger], msg: Message) -> None:
    for frame in frames:
        frame._postprocess_message(msg)


def free_dim(nesting: int) -> int:
    """The first batch dim left of `nesting` plates that no handler around the call has taken.

    Raises:
        ValueError: if enumeration has been given that dim.
    """
    taken = {getattr(m, "dim", None) for m in _PYRO_STACK}
    dim = -1 - nesting
    while dim in taken:
        dim -= 1
    if any(isinstance(m, EnumMessenger) for m in _PYRO_STACK):
        first = max([_ENUM_ALLOCATOR.next_available_dim, *_ENUM_ALLOCATOR.dim_to_id])
        if dim <= first:
            raise ValueError(
                f"The dim {dim} of the worlds is reserved for enumeration: expected a "
                f"max_plate_nesting of at least {-dim}, got {-1 - first}. Pass "
                f"max_plate_nesting={-dim} to the ELBO, or leave it to find out."
            )
    return dim


@contextmanager
def unshared(fn: Any) -> Iterator[None]:
    """Keep what a PyroModule behind `fn` has sampled in this call from being reused by it.

    A PyroModule draws each of its random attributes once per call; a trial run within the call
    would leave its draws behind.
    """
    while not isinstance(fn, PyroModule) and (inner := _behind(fn)) is not None:
        fn = inner
    if not isinstance(fn, PyroModule):
        yield
        return
    context = fn._pyro_context
    kept = dict(context.cache)
    try:
        yield
    finally:
        context.cache.clear()
        context.cache.update(kept)


def _behind(fn: Any) -> Any:
    """What a bound method, a partial or a handled program is about."""
    for name in ("__self__", "__wrapped__", "func"):
        if getattr(fn, name, None) is not None:
            return getattr(fn, name)
    return None


def register(module: PyroModule, name: str) -> None:
    """Have `SVI` train what a child of a module computes with, whoever had its names before.

    Pyro keeps the first tensor of each name and hands it to the optimiser; but two modules of a
    class have the same names. The last one to run is the one that is trained.
    """
    if module._pyro_context.active and not pyro.settings.get("module_local_params"):
        prefix = module._pyro_get_fullname(name)
        params = dict(module.named_children())[name].named_parameters()
        own: dict[str, Tensor] = {
            param_with_module_name(prefix, n): p for n, p in params if p.requires_grad
        }
        store = pyro.get_param_store()
        stored = dict(store.named_parameters())
        for full_name, param in own.items():
            if stored.get(full_name, param) is not param:
                del store[full_name]
        store.set_state({"params": own, "constraints": dict.fromkeys(own, constraints.real)})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* because requires_grad=False")  # frozen on purpose
        getattr(module, name)  # reading an attribute is a `pyro.module` statement
