"""The components of a mixture, which may die out or become one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Components"]


class Components(NamedTuple):
    """Responsibilities, which components a row may have, and which keep their numbers.

    Those that do come first.

    **Shapes**: ``q [N, K]``, ``allowed [N, K]`` booleans, ``named [K]`` booleans.
    """

    q: Tensor
    allowed: Tensor
    named: Tensor

    def keep(self, which: Tensor) -> Components:
        """Leave out all others, booleans ``[K]``, but for those with a name."""
        which = which | self.named
        if which.all():
            return self
        q = self.q[:, which]
        q = q / q.sum(1, keepdim=True).clamp(min=1e-12)
        return Components(q, self.allowed[:, which], self.named[which])

    def join(self, one: int, other: int) -> Components:
        """Make the second, which has no name, part of the first."""
        rest = torch.arange(self.q.shape[1], device=self.q.device) != other
        q = self.q.clone()
        q[:, one] += q[:, other]
        return Components(q[:, rest], self.allowed[:, rest], self.named[rest])
