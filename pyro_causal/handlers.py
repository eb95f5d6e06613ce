"""Causal effect handlers: `do` and `worlds`, and `world` to look at one world.

They are Pyro handlers like those of `pyro.poutine` and compose with them. Interventions act on what
the program sees. Evidence (``obs=``, ``poutine.condition``), guides (``poutine.replay``) and
log-densities belong to the factual world, whichever side of the causal handlers they stand on.

Sites hidden by an inner ``poutine.block`` are hidden from the causal handlers too: they neither
keep their noise nor can they be intervened on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_causal._actions import Action, check_actions, soft
from pyro_causal._factual import Factual, is_world_frame, strip
from pyro_causal._messengers import DoMessenger, WorldsMessenger
from pyro_causal._pyro import free_dim, unshared
from pyro_causal._site import Layout

__all__ = ["do", "soft", "world", "worlds"]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def do(fn: F, data: Mapping[str, Action]) -> F: ...
@overload
def do(fn: Mapping[str, Action]) -> DoMessenger: ...
@overload
def do(*, data: Mapping[str, Action]) -> DoMessenger: ...
def do(fn: Any = None, data: Any = None) -> Any:
    r"""Intervene on sites of a program.

    ``do(model, {"x": 1.0})`` is the program in which `x` is set to one, whatever its own
    mechanism says. Usable like any poutine: ``do(model, data={...})``, ``do(model, {...})``,
    ``with do({...}):``, ``with do(data={...}):``, and as a decorator.

    **Arguments**

    - ``fn``: a program (any callable with Pyro sites), or nothing for a handler.
    - ``data``: for each site to intervene on, one of

      - a number or tensor (hard): broadcasts to the site's batch and event, so one value a row
        is possible; integers are fine at a site of reals;
      - a distribution (stochastic): the value is drawn from it;
      - a function of the natural value (shift, truncation, policy): ``lambda x: x + 1``;
      - :class:`soft`: a surrogate mechanism that shares the noise of the site's own;
      - ``{coordinate: value}``: clamps coordinates of a vector site whose distribution says what
        that means for the others (:func:`pyro_causal.noise.intervene`).

    The trace reports the value that the rest of the program saw. A hard or stochastic target
    adds no log-density of its old mechanism; the natural value under a function, a `soft`
    mechanism or a clamped coordinate is still scored. Evidence on a hard or stochastic target is
    evidence on a value that nobody sees: it is ignored, on whichever side `condition` stands.
    Nested interventions on one site warn, and the outermost wins; if it is a function, it is given
    what those inside it made of the value. `pyro.deterministic` sites can be set too.

    **Raises**

    - ``ValueError``: no site bears the name (raised when the program has run; lists the sites);
      the value does not fit the shape, has NaN, or lies outside of the support.
    - ``TypeError``: reals for a site of integers; no such kind of action; a `soft` one around one
      that sets a value.

    **References** Pearl 2009, Causality, sections 1.3.1 and 3.2; Eberhardt & Scheines 2007 (soft).

    **Example**

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> def model():
    ...     with pyro.plate("rows", 3):
    ...         x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...         return pyro.deterministic("y", 2 * x)
    >>> do(model, {"x": 1})()
    tensor([2., 2., 2.])
    >>> with do({"x": torch.tensor([1.0, 2.0, 3.0])}):
    ...     model()
    tensor([2., 4., 6.])
    """
    if data is None:
        fn, data = None, fn
    handler = DoMessenger(data)
    return handler if fn is None else functools.update_wrapper(handler(fn), fn, updated=())


@overload
def worlds(fn: F, actions: Any, *, dim: int | None = None) -> F: ...
@overload
def worlds(*, actions: Any, dim: int) -> WorldsMessenger: ...
def worlds(fn: Any = None, actions: Any = None, *, dim: int | None = None) -> Any:
    r"""Run a program in the factual world and under interventions, the noise shared at every site.

    The program runs once. Targets of the interventions and their descendants get one more batch
    axis, left of all plates: index 0 is the factual world, index `k` the `k`-th action. With
    :math:`f` the mechanism of a site in each world,

    .. math:: x_w = f_w(u), \qquad u = f_0^{-1}(x_0).

    Only world 0 is scored: the log-density and its gradients are those of the program
    itself, and training under `worlds` finds the same parameters.

    **Arguments**

    - ``fn``: a program, or nothing for a context manager (then ``dim`` must be given).
    - ``actions``: a list of joint interventions as in :func:`do`, or a single one. K of them cost
      K + 1 worlds.
    - ``dim``: the batch dim of the worlds, counted from the right. With ``fn`` it is found by
      running the program once, its random state kept: the first dim left of its plates which no
      plate outside uses.

    **Shapes** A site of shape ``[*plates, *event]`` that an action can reach becomes
    ``[1 + len(actions), *plates, *event]`` (with ones for plates that it is not in); others keep
    theirs, so the program must broadcast, as under Pyro's vectorised particles. Reductions over
    all elements would mix worlds: name the dims.

    Evidence comes from ``obs=`` or ``poutine.condition``, latent sites from a guide through
    ``poutine.replay``, and both are factual values. A `pyro.deterministic` of vectors
    should declare its ``event_dim``.

    **Raises**

    - ``ValueError``: as :func:`do`; the dim is a plate's or lies among those of enumeration; the
      counterfactual of an enumerated site is asked for.
    - ``TypeError``: as :func:`do`; a reached site's distribution has no noise defined
      (:mod:`pyro_causal.noise` tells how to define it).

    **References** Pearl 2009, Causality, theorem 7.1.7 (abduction, action, prediction); Balke &
    Pearl 1994 (twin networks).

    **Example** A unit with x = 1 and y = 5: what would y have been at x = 3?

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     return pyro.sample("y", dist.Normal(2 * x, 1.0))
    >>> unit = {"x": torch.tensor(1.0), "y": torch.tensor(5.0)}
    >>> pyro.poutine.condition(worlds(model, {"x": 3.0}), unit)()
    tensor([5., 9.])
    """
    if actions is None:
        fn, actions = None, fn
    if not isinstance(actions, Mapping | Sequence):
        raise TypeError(
            "worlds expects joint interventions: a list of dicts from site names to actions, "
            f"got {type(actions).__name__}. Write worlds(model, [{{'x': 1.0}}])."
        )
    joint = [check_actions(a) for a in ([actions] if isinstance(actions, Mapping) else actions)]
    if fn is None or dim is not None:
        handler = WorldsMessenger(joint, dim)  # type: ignore[arg-type]
        return handler if fn is None else functools.update_wrapper(handler(fn), fn, updated=())
    layouts: dict[tuple[object, ...], Layout] = {}

    @functools.wraps(fn, updated=())
    def in_worlds(*args: Any, **kwargs: Any) -> Any:
        key = tuple(_kind(a) for a in (*args, *kwargs.keys(), *kwargs.values()))
        if key not in layouts:
            layouts[key] = _layout(fn, *args, **kwargs)
        layout = layouts[key]
        with WorldsMessenger(joint, free_dim(layout.nesting), layout):
            return fn(*args, **kwargs)

    return in_worlds


def _kind(argument: object) -> object:
    """What of an argument may change the shapes of a program."""
    if isinstance(argument, Tensor):
        return argument.shape
    return type(argument), argument if isinstance(argument, int | str) else None  # True is not 1


def _layout(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Layout:
    """Run a program once, hidden from handlers and without effect on the random state."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.no_grad(), torch.random.fork_rng(devices), unshared(fn), poutine.block():
        trace = poutine.trace(fn).get_trace(*args, **kwargs)
    nesting = 0
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    lengths: dict[str, int] = {}
    sites: dict[str, Any] = dict(trace.nodes)
    for name, site in sites.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if site["infer"].get("_deterministic"):
            lengths[name] = site["value"].dim()
        elif isinstance(site["fn"], TorchDistributionMixin):
            batch = list(site["fn"].batch_shape)
            for dim in _world_dims(site):
                batch[dim] = 0  # of worlds inside: any size
            shapes[name] = torch.Size(batch), site["fn"].event_shape
            nesting = max(nesting, len(site["fn"].batch_shape))
        nesting = max([nesting, *(-frame.dim for frame in site["cond_indep_stack"] if frame.dim)])
    return Layout(nesting, shapes, lengths)


@overload
def world(x: Tensor, k: int) -> Tensor: ...
@overload
def world(x: Trace, k: int) -> Trace: ...
@overload
def world(x: Mapping[str, Tensor], k: int) -> dict[str, Tensor]: ...
def world(x: Any, k: int) -> Any:
    """Select world `k` (0: factual) from a value, a dict of values or a trace.

    Of a tensor, the left-most axis is that of the worlds. A trace knows which of its sites have the
    axis, and leaves the others alone; of nested worlds, the outermost is selected. The trace of
    world 0 is scored as ever, those of other worlds have no density. The values of a dict
    must all have the axis.

    **Raises** ``ValueError``: there is no world `k`.

    **Example**

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> world(torch.tensor([5.0, 9.0]), 1)
    tensor(9.)
    >>> model = lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(5.0))
    >>> trace = pyro.poutine.trace(worlds(model, {"x": 3.0})).get_trace()
    >>> world(trace, 1).nodes["x"]["value"]
    tensor(3.)
    """
    if isinstance(x, Mapping):
        return {name: world(value, k) for name, value in x.items()}
    if isinstance(x, Trace):
        dims = [dim for node in x.nodes.values() for dim in _world_dims(node)]
        selected = x.copy()
        nodes: dict[str, Any] = dict(x.nodes)
        for name, node in nodes.items():
            if dims and min(dims) in _world_dims(node):
                selected.nodes[name] = _select(node, k, min(dims))
            elif k and dims and node["type"] == "sample" and not site_is_subsample(node):
                selected.nodes[name] = _unscored(node, node["value"])
        selected.nodes.pop("_RETURN", None)
        return selected
    if not -1 < k < x.shape[0]:
        raise ValueError(f"There is no world {k}: expected 0 to {x.shape[0] - 1}.")
    return x.select(0, k)


def _world_dims(node: Any) -> list[int]:
    """The dims of the worlds that the value of a trace's node has."""
    frames = node.get("cond_indep_stack", ())
    return [f.dim for f in frames if is_world_frame(f)]


def _select(node: Any, k: int, dim: int) -> Any:
    """World `k` of one node of a trace."""
    fn, value = node["fn"], node["value"]
    axis = dim - fn.event_dim
    if not -1 < k < value.shape[axis]:
        raise ValueError(f"There is no world {k}: expected 0 to {value.shape[axis] - 1}.")
    frames = tuple(f for f in node["cond_indep_stack"] if f.dim != dim)
    value = strip(value.narrow(axis, k, 1), frames, fn.event_dim)
    node = {**node, "value": value, "cond_indep_stack": frames}
    if k:
        return _unscored(node, value)
    return {**node, "fn": Factual(fn.base, fn.dims, natural=fn.natural, recorded=value)}


def _unscored(node: Any, value: Tensor) -> Any:
    """A node of a trace as a value without density."""
    event_dim = getattr(node["fn"], "event_dim", 0)
    node = {key: entry for key, entry in node.items() if "log_prob" not in key}
    return {**node, "fn": dist.Delta(value, event_dim=event_dim).mask(False)}
