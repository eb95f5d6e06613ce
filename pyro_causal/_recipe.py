"""Modules as plain values, so that a file of tensors and plain values can hold a whole model.

A recipe names a class and the arguments that make an instance. Where they come from, in this order:
what :class:`Recorded` has kept; the children of a ``torch.nn.Sequential``; else the attributes that
bear the names of the constructor's arguments, as those of ``torch.nn`` and of constraints do.
Reading a recipe executes no code from the file: it calls classes of torch, Pyro and this package,
and those that the reader hands over.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

__all__ = ["Recorded", "build", "describe"]

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
        """Bind the arguments to their names."""
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        arguments = {name: bound.arguments[name] for name in [*bound.arguments][1:]}
        self.__dict__["_arguments"] = arguments  # nn.Module cannot set attributes yet
        return self


def describe(value: Any) -> Any:
    """Turn a module, a constraint or a collection of them into plain values.

    **Raises**: ``ValueError`` for an object whose arguments cannot be told, by name.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [describe(entry) for entry in value]
    if isinstance(value, Mapping):
        return {"mapping": [[name, describe(entry)] for name, entry in value.items()]}
    if not isinstance(value, nn.Module | Constraint):
        raise ValueError(
            f"A {type(value).__name__} cannot be saved: expected modules, constraints, "
            "numbers, strings and collections of them as arguments. Give a function as a module."
        )
    return {"class": _path(type(value)), "arguments": describe(_arguments(value))}


def build(recipe: Any, *, classes: Iterable[type] = ()) -> Any:
    """Make what `describe` described.

    Tuples come back as lists. **Arguments**: ``classes``, those outside of torch, Pyro and this
    package that the recipe may call.

    **Raises**: ``ValueError`` for any other class, and for one that no longer exists.
    """
    known = {_path(cls): cls for cls in classes}
    return _build(recipe, known)


def _build(recipe: Any, known: Mapping[str, type]) -> Any:
    if isinstance(recipe, list):
        return [_build(entry, known) for entry in recipe]
    if not isinstance(recipe, dict):
        return recipe
    if "mapping" in recipe:
        return {name: _build(entry, known) for name, entry in recipe["mapping"]}
    cls = _find(recipe["class"], known)
    arguments = _build(recipe["arguments"], known)
    if isinstance(arguments, list):
        return cls(*arguments)
    return cls(**arguments)


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _arguments(value: Any) -> dict[str, Any] | list[Any]:
    """The arguments that make an equal object (of a module: but for its parameters)."""
    if isinstance(value, Recorded):
        recorded: dict[str, Any] = value.__dict__["_arguments"]
        return recorded
    if isinstance(value, nn.Sequential):
        return list(value)
    arguments = {}
    for name, parameter in inspect.signature(type(value).__init__).parameters.items():
        if name in ("self", "device", "dtype"):
            continue
        found = getattr(value, name, getattr(value, f"_{name}", inspect.Parameter.empty))
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if found is inspect.Parameter.empty:
            raise ValueError(
                f"A {type(value).__name__} cannot be saved: expected an attribute for each "
                f"argument of its constructor, found none for '{name}'. Keep the argument as "
                f"self.{name}, or derive the class from pyro_causal.mechanisms.Recorded."
            )
        arguments[name] = found is not None if name == "bias" else found
    return arguments


def _find(path: str, known: Mapping[str, type]) -> type:
    """The class of that path, if it is one that may be called."""
    if path in known:
        return known[path]
    module, _, name = path.partition(":")
    if not f"{module}.".startswith(TRUSTED):
        raise ValueError(
            f"The file holds an object of the class '{path}': expected one of torch, Pyro or "
            f"pyro_causal, or of {sorted(known)}. If you trust the file, hand over the class: "
            f"load(path, classes=[{name}])."
        )
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module | Constraint)):
        raise ValueError(
            f"The file holds an object of the class '{path}', which does not exist: expected one "
            f"of torch {torch.__version__} and this version of pyro_causal. Load it with the "
            "versions that wrote it."
        )
    return found
