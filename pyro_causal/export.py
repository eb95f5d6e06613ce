"""Samples and worlds as ArviZ InferenceData, with the worlds named by their actions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["to_inference_data", "world_names"]

WORLD = "world"


def to_inference_data(
    samples: Mapping[str, Tensor] | None = None,
    *,
    worlds: Mapping[str, Tensor] | None = None,
    actions: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    observed: Mapping[str, Tensor] | None = None,
    num_chains: int = 1,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Put samples, worlds and data into one object that ArviZ summarises, plots and saves.

    Plain samples form the group ``posterior``, worlds ``posterior_predictive`` and data
    ``observed_data``. Worlds get a dimension ``world`` whose coordinates are the names of
    :func:`world_names`, so that ``data.posterior_predictive.sel(world="do(x=1)")`` is the world
    of that action and ``sel(world="factual")`` the factual one.

    **Shapes** Every value of ``samples`` is ``[num_samples, *plates, *event]``, of ``worlds``
    ``[num_samples, 1 + len(actions), *plates, *event]`` with world 0 factual (as
    :class:`pyro_causal.queries.CounterfactualPredictive` returns them), of ``observed``
    ``[*plates, *event]``.

    **Arguments**

    - ``actions``: the actions of the worlds, one dict or a list of dicts, in their order.
    - ``num_chains``: how many chains of equal length ``num_samples`` holds, one after the other.
    - ``dims``: names of the dimensions ``[*plates, *event]`` of a site; by default
      ``{site}_dim_0`` and so on, as in ArviZ. Sites that share a name share the dimension.
    - ``coords``: the labels along a dimension, by its name; by default 0, 1, ...

    **Returns** ``arviz.InferenceData``; with ArviZ 1.0 or later, the ``xarray.DataTree`` that
    replaced it. Both give a group as an attribute.

    **Raises** ``ValueError`` for sites of unlike length, a world axis or ``dims`` that do not fit
    the shapes, samples that ``num_chains`` does not divide, a site named like a dimension, and a
    name in ``dims`` or ``coords`` that nothing bears.

    **Example**

    >>> import torch
    >>> from pyro_causal.export import to_inference_data
    >>> data = to_inference_data(
    ...     worlds={"y": torch.zeros(100, 3, 5)},
    ...     actions=[{"x": 0.0}, {"x": 1.0}],
    ...     dims={"y": ["unit"]},
    ... )
    >>> dict(data.posterior_predictive["y"].sizes)
    {'chain': 1, 'draw': 100, 'world': 3, 'unit': 5}
    >>> data.posterior_predictive["world"].values.tolist()
    ['factual', 'do(x=0)', 'do(x=1)']
    """
    names = world_names(actions)
    values = {
        "posterior": _split_chains(samples or {}, num_chains),
        "posterior_predictive": _split_chains(worlds or {}, num_chains),
        "observed_data": dict(observed or {}),
    }
    axes = {
        "posterior": ("chain", "draw"),
        "posterior_predictive": ("chain", "draw", WORLD),
        "observed_data": (),
    }
    coords = {**(coords or {}), WORLD: names}
    groups = {
        group: _dataset(sites, axes[group], dims or {}, coords)
        for group, sites in values.items()
        if sites
    }
    _require_used("dims", dims or {}, {site for group in groups.values() for site in group})
    _require_used("coords", coords, {WORLD, *(name for g in groups.values() for name in g.dims)})
    return _wrap(groups)


def world_names(actions: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the factual world and the world of each action, uniquely.

    **Example**

    >>> import pyro.distributions as dist, torch
    >>> from pyro_causal.export import world_names
    >>> world_names([{"x": 1, "z": 0.5}, {"x": dist.Normal(0.0, 1.0)}, {"x": torch.zeros(5)}])
    ['factual', 'do(x=1, z=0.5)', 'do(x~Normal)', 'do(x=tensor[5])']
    """
    if isinstance(actions, Mapping):
        actions = [actions]
    names = ["factual"]
    for action in actions:
        name = f"do({', '.join(_assignment(site, value) for site, value in action.items())})"
        repeats = sum(other == name or other.startswith(f"{name} #") for other in names)
        names.append(f"{name} #{repeats + 1}" if repeats else name)
    return names


def _assignment(site: str, value: Any) -> str:
    if isinstance(value, Distribution):
        return f"{site}~{type(value).__name__}"
    if isinstance(value, Mapping):
        return ", ".join(_assignment(f"{site}[{index}]", part) for index, part in value.items())
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"{site}=tensor{list(value.shape)}"
    if isinstance(value, int | float | Tensor):
        return f"{site}={float(value):g}"
    if isinstance(value, torch.nn.Module):  # whose repr is long
        return f"{site}={type(value).__name__}"
    return f"{site}={getattr(value, '__name__', repr(value))}"


def _split_chains(samples: Mapping[str, Tensor], num_chains: int) -> dict[str, Tensor]:
    """Reshape ``[num_samples, ...]`` to ``[num_chains, num_draws, ...]``."""
    split = {}
    num_samples = None
    for site, value in samples.items():
        num_samples = len(value) if num_samples is None else num_samples
        if len(value) != num_samples:
            raise ValueError(
                f"At site '{site}', number of samples: expected {num_samples} as at site "
                f"'{next(iter(samples))}', got {len(value)}. Do export them separately."
            )
        if num_chains < 1 or num_samples % num_chains:
            raise ValueError(
                f"At site '{site}', `num_chains`: expected a divisor of the {num_samples} samples, "
                f"got {num_chains}. Do pass the number of chains that were run."
            )
        split[site] = value.reshape(num_chains, -1, *value.shape[1:])
    return split


def _dataset(
    sites: Mapping[str, Tensor],
    axes: tuple[str, ...],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]],
) -> Any:
    """An ``xarray.Dataset`` of sites whose leading dimensions are ``axes``."""
    import xarray

    variables = {}
    labels: dict[str, list[Any]] = {}
    for site, value in sites.items():
        if WORLD in axes:
            _check_world_axis(site, value, len(coords[WORLD]))
        names = _dimensions(site, value, axes, dims)
        variables[site] = (names, value.detach().cpu().numpy())
        labels |= {
            name: list(coords.get(name, range(size)))
            for name, size in zip(names, value.shape, strict=True)
        }
    attributes = {
        "creation_library": "pyro_causal",
        "inference_library": "pyro-ppl",
        "inference_library_version": pyro.__version__,
    }
    return xarray.Dataset(variables, labels, attributes)


def _dimensions(
    site: str, value: Tensor, axes: tuple[str, ...], dims: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The name of every dimension of a site's value."""
    shape = tuple(value.shape[len(axes) :])
    own = tuple(dims.get(site, [f"{site}_dim_{i}" for i in range(len(shape))]))
    if len(own) != len(shape):
        raise ValueError(
            f"At site '{site}', `dims`: expected {len(shape)} names for the shape {shape}, got "
            f"{list(own)}. Do name the plates and then the event dims."
        )
    if site in (*axes, *own):
        raise ValueError(
            f"At site '{site}', name: expected none of the dimensions {[*axes, *own]}. "
            "Do rename the site in the exported dict."
        )
    return (*axes, *own)


def _check_world_axis(site: str, value: Tensor, num_worlds: int) -> None:
    if value.shape[2:3] != (num_worlds,):
        shape = [value.shape[0] * value.shape[1], *value.shape[2:]]
        raise ValueError(
            f"At site '{site}', world axis: expected shape [num_samples, {num_worlds}, ...] for "
            f"the factual world and {num_worlds - 1} actions, got {shape}. "
            "Do pass the actions that made these worlds."
        )


def _require_used(argument: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"`{argument}`: expected names among {sorted(known)}, got '{name}'. "
                "Do check its spelling."
            )


def _wrap(groups: dict[str, Any]) -> Any:
    """The container of the installed ArviZ."""
    with warnings.catch_warnings():
        # The once-a-day notice of ArviZ 0.23 about 1.0, which is supported below.
        warnings.filterwarnings("ignore", "\nArviZ is undergoing", FutureWarning)
        import arviz

    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**groups)
    import xarray

    return xarray.DataTree.from_dict(groups)
