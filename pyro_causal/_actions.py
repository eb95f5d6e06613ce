"""What an intervention may set a site to, and how each kind of action becomes a value."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from numbers import Number
from typing import Any, TypeAlias, cast

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.util import is_validation_enabled
from pyro.util import ignore_jit_warnings
from torch import Tensor

from pyro_causal import noise
from pyro_causal._site import Site, as_delta, at_site

__all__ = [
    "Action",
    "apply_action",
    "check_actions",
    "check_support",
    "coerce",
    "draws_afresh",
    "is_hard",
    "require_sites",
    "soft",
    "stochastic",
]


class soft:
    """A surrogate mechanism that shares the noise of the mechanism it replaces.

    .. math:: x' = f_{d'}(f_d^{-1}(x)), \\qquad d' = \\text{mechanism}(d)

    **Arguments**

    - ``mechanism``: maps the site's own distribution to another of the same shape.

    **References** Soft (parametric, mechanism) interventions: Eberhardt & Scheines 2007,
    "Interventions and causal inference".

    **Example**

    >>> import torch, pyro.distributions as dist
    >>> from pyro_causal import do, soft
    >>> import pyro
    >>> def model():
    ...     return pyro.sample("x", dist.Normal(1.0, 2.0), obs=torch.tensor(3.0))
    >>> do(model, {"x": soft(lambda d: dist.Normal(d.loc + 10, 3 * d.scale))})().item()
    17.0
    """

    def __init__(self, mechanism: Callable[[TorchDistribution], TorchDistribution]) -> None:
        if not callable(mechanism):
            raise TypeError(
                "soft expects a function from the site's distribution to another, "
                f"got {type(mechanism).__name__}. Write soft(lambda d: ...)."
            )
        self.mechanism = mechanism

    def __repr__(self) -> str:
        return f"soft({getattr(self.mechanism, '__name__', self.mechanism)})"


Action: TypeAlias = (
    float | Tensor | TorchDistribution | Callable[[Tensor], Any] | soft | Mapping[int, Any]
)


def is_hard(action: object) -> bool:
    """Whether the action sets the site to given numbers."""
    return isinstance(action, Number | Tensor)


def draws_afresh(action: object) -> bool:
    """Whether the action's value owes nothing to the natural value of the site."""
    return is_hard(action) or isinstance(action, torch.distributions.Distribution)


def check_actions(actions: object) -> dict[str, Action]:
    """Return a joint intervention as a dict, or say what is wrong with it."""
    if not isinstance(actions, Mapping):
        raise TypeError(
            "An intervention is a mapping from site names to actions: expected a dict, "
            f"got {type(actions).__name__}. Write {{'x': 1.0}}."
        )
    for name, action in actions.items():
        if not isinstance(name, str):
            raise TypeError(
                f"An intervention names sites: expected a str, got {name!r} "
                f"({type(name).__name__}). Use the name given to pyro.sample."
            )
        _check_action(name, action)
    return dict(actions)


@ignore_jit_warnings()
def _check_action(name: str, action: object) -> None:
    if isinstance(action, Mapping):
        for index, value in action.items():
            if not isinstance(index, int):
                raise TypeError(
                    f"At site '{name}', a coordinate is an int: got {index!r}. "
                    "Write {site: {0: value}} to clamp coordinate 0 of a vector site."
                )
            _check_action(name, value)
    elif isinstance(action, torch.distributions.Distribution):
        if not isinstance(action, TorchDistributionMixin):
            raise TypeError(
                f"At site '{name}', expected a distribution from pyro.distributions, "
                f"got {type(action).__name__} from {type(action).__module__}."
            )
    elif is_hard(action):
        value = torch.as_tensor(action)
        if value.is_complex() or (value.is_floating_point() and bool(value.isnan().any())):
            raise ValueError(
                f"At site '{name}', the action is {'complex' if value.is_complex() else 'NaN'}: "
                "expected real numbers. Drop the affected rows before asking."
            )
    elif not (callable(action) or isinstance(action, soft)):
        raise TypeError(
            f"At site '{name}', an action of type {type(action).__name__} means nothing: expected "
            "a number, a tensor, a distribution, a function of the natural value, soft(...) or "
            "{coordinate: value}. Wrap arrays and lists in torch.as_tensor."
        )


def apply_action(
    action: Action, name: str, fn: TorchDistribution, natural: Tensor, site: Site | None = None
) -> Tensor:
    """The value that `action` gives to a site; `site` has its noise, for a `soft` action.

    **Shapes** `natural` is the site's own value, batch + event; so is the result.

    **Raises** ``ValueError``, ``TypeError``: the action does not fit the site.
    """
    if isinstance(action, soft):
        site = site or Site(name, fn, natural, (), (), natural)
        return _surrogate(action, site, natural)
    if isinstance(action, Mapping):
        values = {i: torch.as_tensor(v, dtype=natural.dtype) for i, v in action.items()}
        try:
            return noise.intervene(fn, natural, values)
        except TypeError as error:
            raise at_site(name, error) from error
    if isinstance(action, TorchDistributionMixin):
        drawn: Tensor = stochastic(action, name, fn, natural.shape)()
        return coerce(drawn, name, natural)
    if is_hard(action):
        value = coerce(action, name, natural)
        check_support(value, name, fn)
        return value
    return coerce(cast("Callable[[Tensor], Tensor]", action)(natural), name, natural)


def _surrogate(action: soft, site: Site, natural: Tensor) -> Tensor:
    """Push the noise of a site through another mechanism."""
    surrogate = action.mechanism(site.fn)
    if noise.law(surrogate) != noise.law(site.fn):
        raise TypeError(
            f"At site '{site.name}', the noise of {type(site.fn).__name__} follows another law "
            f"than that of {type(surrogate).__name__}: expected a surrogate of the same noise. "
            "Stay within the family, or transform it: TransformedDistribution(d, ...)."
        )
    try:
        value = noise.predict(surrogate, site.noise)
    except TypeError as error:
        raise at_site(site.name, error) from error
    shape = torch.broadcast_shapes(natural.shape, site.fn.shape())  # wherever the mechanism varies
    return coerce(value, site.name, natural.expand(shape))


def stochastic(
    action: TorchDistribution, name: str, fn: TorchDistribution, shape: torch.Size
) -> TorchDistribution:
    """Expand a stochastic action over the batch of a site whose value has `shape`."""
    length = len(shape) - action.event_dim
    event_dim = action.event_dim if as_delta(fn) is not None else fn.event_dim
    if action.event_shape != shape[length:] or action.event_dim != event_dim:
        raise ValueError(
            f"At site '{name}', the stochastic action has event shape {tuple(action.event_shape)}: "
            f"expected {tuple(fn.event_shape)}. Use .to_event or .expand on it."
        )
    batch = shape[:length]
    if not _broadcasts(action.batch_shape, batch):
        raise ValueError(
            f"At site '{name}', the stochastic action has batch shape {tuple(action.batch_shape)}: "
            f"expected one that broadcasts to {tuple(batch)}."
        )
    return action.expand(batch)


def coerce(value: object, name: str, like: Tensor) -> Tensor:
    """Give `value` the shape, the dtype and the device of the site's value `like`.

    **Raises** ``TypeError`` (dtype, kind), ``ValueError`` (shape, device).
    """
    if not isinstance(value, Number | Tensor):
        raise TypeError(
            f"At site '{name}', the action returned {type(value).__name__}: expected a tensor."
        )
    if isinstance(value, Tensor):
        if value.device != like.device:
            raise ValueError(
                f"At site '{name}', the action is on {value.device}: expected {like.device}. "
                f"Move it with .to('{like.device}')."
            )
        tensor = value
    else:
        tensor = torch.as_tensor(value, device=like.device)
    if tensor.is_floating_point() and not like.is_floating_point():
        raise TypeError(
            f"At site '{name}', the action has dtype {tensor.dtype}: expected {like.dtype}. "
            "Pass integers to a site of integers."
        )
    if not _broadcasts(tensor.shape, like.shape):
        raise ValueError(
            f"At site '{name}', the action has shape {tuple(tensor.shape)}: expected a shape that "
            f"broadcasts to {tuple(like.shape)}. Reshape it to the site's batch and event."
        )
    return tensor.to(like.dtype).expand(like.shape)


@ignore_jit_warnings()
def check_support(
    value: Tensor,
    name: str,
    fn: TorchDistribution,
    among: Callable[[Tensor], Tensor] = lambda inside: inside,
) -> None:
    """Raise a `ValueError` for values outside the support, where Pyro's validation is on.

    **Arguments** ``among``: picks from the truth values over the batch those that matter.
    """
    if not is_validation_enabled() or as_delta(fn) is not None:
        return
    try:
        support = fn.support
    except NotImplementedError:
        return
    if support is not None and not bool(among(support.check(value)).all()):
        raise ValueError(
            f"At site '{name}', the action has a value outside the support {support}: "
            "expected values that the mechanism could produce. Pass a function "
            "(lambda x: value) to set the site to any value all the same."
        )


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    """Whether a tensor of `shape` broadcasts to `target` without enlarging it."""
    if len(shape) > len(target):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def require_sites(names: Iterable[str], seen: Iterable[str], what: str) -> None:
    """Raise a `ValueError` with the nearest name if any of `names` is not among `seen`."""
    known = list(seen)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                f"No site is named '{name}' in the program, but {what} names it: "
                f"its sites are {', '.join(map(repr, known)) or 'none'}.{hint}"
            )
