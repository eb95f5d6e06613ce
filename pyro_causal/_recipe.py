"""Modules as plain values, so that a file of tensors and plain values can hold a whole model.

A recipe names a class and the arguments that make an instance. Where they come from: what
:class:`Recorded` has kept; of torch's containers, their children; of other modules of torch and of
constraints, the attributes that bear the names of the constructor's arguments.
Reading a recipe executes no code from the file: it calls classes of torch, Pyro and this package,
and those that the reader hands over.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

__all__ = ["NamedModules", "Recorded", "build", "describe", "require_recipe_of"]

TRUSTED = ("pyro_causal.", "pyro.distributions.", "torch.distributions.", "torch.nn.")
PLAIN = (bool, int, float, str, Tensor, type(None))


class Recorded(nn.Module):
    """A module that keeps the arguments it was made with.

    **Example**::

        >>> class Scale(Recorded):
        ...     def __init__(self, factor, *, shift=0.0):
        ...         super().__init__()
        ...         self.total = factor + shift
        >>> copy = build(describe(Scale(2.0, shift=1.0)), classes=[Scale])
        >>> copy.total
        3.0
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, and their containers as they are now."""
        self = super().__new__(cls)
        recorded = [_kept(arg) for arg in args], {name: _kept(arg) for name, arg in kwargs.items()}
        self.__dict__["_arguments"] = recorded  # nn.Module cannot set attributes yet
        return self


class NamedModules(nn.ModuleDict):
    """Modules by the name of a variable, which may be that of an attribute, such as `type`.

    **Raises**: ``ValueError`` for a name that cannot be a part of a parameter's name.

    **Example**::

        >>> list(NamedModules({"type": nn.Linear(2, 1)}).state_dict())
        ['type.weight', 'type.bias']
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module."""
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(
                f"At site {name!r}, the name of the variable: expected a string of one character "
                f"or more without a dot, got {name!r}. Rename the variable."
            )
        self._modules[name] = module  # type: ignore[assignment]  # None as in torch


def _kept(argument: Any) -> Any:
    return copy.copy(argument) if isinstance(argument, list | dict) else argument


def describe(value: Any) -> Any:
    """Turn a module, a constraint or a collection of them into plain values.

    **Raises**: ``ValueError`` for an object whose arguments cannot be told, by name.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list):
        return [describe(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(describe(entry) for entry in value)
    if isinstance(value, Mapping):
        return {"mapping": [[name, describe(entry)] for name, entry in value.items()]}
    if not isinstance(value, nn.Module | Constraint):
        raise ValueError(
            f"A {type(value).__name__} cannot be saved: expected modules, constraints, "
            "numbers, strings and collections of them as arguments. Give a function as a module."
        )
    args, kwargs = _arguments(value)
    return {"class": _path(type(value)), "args": describe(args), "kwargs": describe(kwargs)}


def build(recipe: Any, *, classes: Iterable[type] = ()) -> Any:
    """Make what `describe` described.

    **Arguments**: ``classes``, those outside of torch, Pyro and this package that the recipe may
    call. One that has moved to another module since is told by its name.

    **Raises**: ``ValueError`` for any other class, for one that no longer exists, and for a recipe
    that is damaged.
    """
    try:
        return _build(recipe, {_path(cls): cls for cls in classes})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            "An object cannot be made from the file: expected a class and its arguments as this "
            f"package writes them, got other ones ({type(error).__name__}: {error}). Load it with "
            "the versions that wrote it, or restore a copy."
        ) from error


def require_recipe_of(module: nn.Module, recipe: Any) -> None:
    """Check that a module is what its recipe describes, but for the values of its tensors.

    A recipe holds the arguments of constructors, and does not know what has been replaced since.

    **Raises**: ``ValueError`` if the state does not fit, or a module without state has another
    class.
    """
    made = build(recipe, classes=_classes(module))
    fault = ""
    try:
        made.load_state_dict(module.state_dict(), assign=True)
    except (KeyError, RuntimeError, TypeError) as error:
        fault = str(error)
    expected, found = _stateless(made), _stateless(module)
    differ = [name for name in found if expected.get(name) != found[name]]
    if fault or differ:
        raise ValueError(
            f"{type(module).__name__}: parts have been replaced since it was made: expected those "
            f"of its constructor's arguments, got others ({fault or ', '.join(differ)}). Make a "
            "model with the new parts as arguments, copy the state with load_state_dict, and save "
            "that."
        )


def _stateless(root: nn.Module) -> dict[str, str]:
    """The class of each module that has no tensors of its own, by name."""
    modules = root.named_modules(remove_duplicate=False)
    return {n: _path(type(m)) for n, m in modules if not (m._parameters or m._buffers)}


def _classes(value: Any) -> Iterator[type]:
    """The classes that the recipe of a value calls."""
    if isinstance(value, nn.Module | Constraint):
        yield type(value)
        value = _arguments(value)
    if isinstance(value, Mapping):
        value = [*value.values()]
    for entry in value if isinstance(value, list | tuple) else ():
        yield from _classes(entry)


def _build(recipe: Any, known: Mapping[str, type]) -> Any:
    if isinstance(recipe, list | tuple):
        return type(recipe)(_build(entry, known) for entry in recipe)
    if not isinstance(recipe, dict):
        return recipe
    if "mapping" in recipe:  # ordered, as nn.Sequential wants its children
        return OrderedDict((name, _build(entry, known)) for name, entry in recipe["mapping"])
    cls = _find(recipe["class"], known)
    return cls(*_build(recipe["args"], known), **_build(recipe["kwargs"], known))


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _arguments(value: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that make an equal object (of a module: but for its parameters)."""
    if isinstance(value, Recorded):
        recorded: tuple[list[Any], dict[str, Any]] = value.__dict__["_arguments"]
        return recorded
    if type(value) in (nn.Sequential, nn.ModuleDict, NamedModules):
        return [OrderedDict(value._modules)], {}  # one that occurs twice included
    if type(value) is nn.ModuleList:
        return [[*value]], {}
    ours = isinstance(value, Constraint) or _trusted(_path(type(value))) is type(value)
    arguments = {}
    for name, parameter in inspect.signature(type(value).__init__).parameters.items():
        if name in ("self", "device", "dtype"):
            continue
        found = getattr(value, name, getattr(value, f"_{name}", inspect.Parameter.empty))
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            if isinstance(value, Constraint) or not value.state_dict():
                continue  # torch's activations take any, and ignore them
            found = inspect.Parameter.empty
        if not ours or found is inspect.Parameter.empty:
            raise ValueError(
                f"A {type(value).__name__} cannot be saved: expected a module that keeps the "
                f"arguments of its constructor, and cannot tell '{name}'. Derive its class from "
                "pyro_causal.mechanisms.Recorded."
            )
        arguments[name] = found is not None if name == "bias" else found
    return [], arguments


def _find(path: str, known: Mapping[str, type]) -> type:
    """The class of that path, if it is one that may be called."""
    if path in known:
        return known[path]
    module, _, name = path.partition(":")
    if not f"{module}.".startswith(TRUSTED):
        for cls in known.values():
            if cls.__qualname__ == name:
                return cls
        raise ValueError(
            f"The file holds an object of the class '{path}': expected one of torch, Pyro or "
            f"pyro_causal, or of {sorted(known)}. If you trust the file, hand over the class: "
            f"load(path, classes=[{name}])."
        )
    found = _trusted(path)
    if found is None:
        raise ValueError(
            f"The file holds an object of the class '{path}', which does not exist: expected one "
            f"of torch {torch.__version__} and this version of pyro_causal. Load it with the "
            "versions that wrote it."
        )
    return found


def _trusted(path: str) -> type | None:
    """The module or constraint of that path, if torch, Pyro or this package define it."""
    module, _, name = path.partition(":")
    if not f"{module}.".startswith(TRUSTED):
        return None
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module | Constraint)):
        return None
    return found if f"{found.__module__}.".startswith(TRUSTED) else None
