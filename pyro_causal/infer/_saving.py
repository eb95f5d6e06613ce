"""Whole models in files of tensors and plain values."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Self

from pyro_causal._recipe import Recorded, build, describe, require_recipe_of
from pyro_causal.infer import checkpoint

__all__ = ["Saved"]


class Saved(Recorded):
    """A module that can be written to a file, and made again from it."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole model, networks included, as tensors and plain values.

        **Raises**: ``ValueError`` for a network whose constructor's arguments cannot be told:
        derive it from :class:`pyro_causal.mechanisms.Recorded`; for a model with parts that have
        been replaced since it was made.
        """
        recipe = describe(self)
        with checkpoint.rng_scope():  # to make a model takes random numbers
            require_recipe_of(self, recipe)
        checkpoint.save(path, {"recipe": recipe, "state": self.state_dict()})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, classes: Iterable[type] = ()) -> Self:
        """Read what :meth:`save` wrote, in evaluation mode, on the CPU.

        **Arguments**: ``classes``, of networks that are not from torch or this package.

        **Raises**: ``ValueError`` if the file cannot be read, or holds another class.
        """
        content = checkpoint.load(path)
        model = build(content.get("recipe"), classes=[cls, *classes])
        if not isinstance(model, cls):
            raise ValueError(
                f"'{path}' holds no {cls.__name__}: expected a file that its save wrote, got "
                f"{'a ' + type(model).__name__ if 'recipe' in content else sorted(content)}. What "
                "fit wrote is read by fit and restore."
            )
        try:
            model.load_state_dict(content["state"], assign=True)  # in the precision that was saved
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"'{path}' holds a state that does not fit its model: {error}. Load it with the "
                "versions that wrote it, or restore a copy."
            ) from error
        return model.eval()
