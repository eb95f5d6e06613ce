r"""Where the parents put what a decoder draws: parts of an image that grow, shrink or shift.

A network that places shapes by itself does so for the parents it has seen, and learns from
:math:`z` where they are. Here the parents move them through a few parameters, and the encoder sees
the image with the movement undone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_causal.mechanisms.base import ContextNetwork, Recorded

__all__ = ["ConditionalWarp", "ConditionalZoom"]

SQUARINGS = 5  # so that a step is a 32nd of the way
FINEST = 32  # points per axis at which a displacement is kept


class ConditionalZoom(Recorded):
    r"""Zooms images around their middle by a factor that the parents set.

    .. math:: w(p) = x\bigl(p / s(\mathrm{pa})\bigr), \qquad \log s \text{ affine in the parents}

    A volume that scales a picture then does so by construction, and beyond the data, too. Between
    pixels values are interpolated bilinearly; from outside of the image they are zero. What is
    enlarged is blurred, so that a dark spot which grows measures too small; a finer canvas to draw
    on keeps its edge.

    **Arguments**

    - ``features``: size of the context.
    - ``fineness``: how many times as many points along each axis has the canvas that is read, as
      the image that is made.
    - ``hidden``: as for :class:`~pyro_causal.mechanisms.base.ContextNetwork`, with one output,
      :math:`\log s`; by default it is affine.

    **Shapes**: images ``[B, C, H, W]``, context ``[B, features]``; forward from a canvas
    ``[B, C, fineness * H, fineness * W]``, back to an image again.

    **Raises**: ``ValueError`` for a fineness below one; in a call, for a canvas that it does not
    divide.

    **References**: *Spatial transformer networks*, https://arxiv.org/abs/1506.02025 (there the
    transformation is found by a network that sees the image).

    **Example**::

        >>> zoom = ConditionalZoom(1)
        >>> image = torch.ones(3, 1, 8, 8)
        >>> torch.equal(zoom(image, torch.zeros(3, 1)), image)  # it starts without effect
        True
    """

    def __init__(
        self, features: int, *, fineness: int = 1, hidden: Sequence[int] | nn.Module = ()
    ) -> None:
        super().__init__()
        if fineness < 1:
            raise ValueError(
                f"{type(self).__name__}: expected a fineness of 1 or more, got {fineness}. Give "
                "how many points of the canvas there are to a pixel, along each axis."
            )
        self.fineness = fineness
        self.network = ContextNetwork(features, 1, hidden=hidden)

    def forward(self, canvas: Tensor, context: Tensor) -> Tensor:
        """Enlarge by the factor."""
        return self._read(canvas, self._zoomed(self._image_pixels(canvas), context, -1.0))

    def undo(self, image: Tensor, context: Tensor) -> Tensor:
        """Reduce by the factor."""
        return self._read(image, self._zoomed(_pixels(image), context, 1.0))

    def _zoomed(self, places: Tensor, context: Tensor, sign: float) -> Tensor:
        """Places ``[B, H, W, 2]``, -1 to 1 from edge to edge, taken to others by the zoom."""
        factor = (sign * self.network(context)).exp().expand(len(places), 1)
        return factor[:, None, None] * places

    def _image_pixels(self, canvas: Tensor) -> Tensor:
        """The middles of the pixels of the image that is read from a canvas."""
        height, width = canvas.shape[-2:]
        if height % self.fineness or width % self.fineness:
            raise ValueError(
                f"{type(self).__name__}: expected a canvas of {self.fineness} times the size of an "
                f"image, got {height} x {width}. Draw on a finer one, or set fineness=1."
            )
        return _pixels(canvas[..., :: self.fineness, :: self.fineness])

    @staticmethod
    def _read(image: Tensor, places: Tensor) -> Tensor:
        return F.grid_sample(image, places, align_corners=False)


class ConditionalWarp(ConditionalZoom):
    r"""Zooms images, and moves their parts along flows that the parents drive.

    .. math:: w(p) = x\bigl(\phi_{-1}(p / s(\mathrm{pa}))\bigr), \qquad
        \dot\phi_\tau(p) = \textstyle\sum_k c_k v_k(\phi_\tau(p)), \quad \phi_0(p) = p

    with a velocity field :math:`v_k` for each feature :math:`c_k` of the parents. What is twice as
    far from the mean goes the same way twice as long, so that a part that grows does so beyond the
    data, too; :math:`\phi_1` undoes :math:`\phi_{-1}` up to interpolation. The fields are cubic
    B-splines, smooth between the knots of a grid.

    **Arguments**: those of :class:`ConditionalZoom`; ``knots``, of the splines along each axis,
    at least four. Their distance, ``2 / (knots - 3)`` of half the image, is the size of the
    smallest part that moves by itself.

    **Shapes**: as :class:`ConditionalZoom`.

    **Raises**: as :class:`ConditionalZoom`, and ``ValueError`` for fewer than four knots.

    **References**: *A log-Euclidean framework for statistics on diffeomorphisms*,
    https://doi.org/10.1007/11866565_113 (stationary velocities, scaling and squaring); *Nonrigid
    registration using free-form deformations*, https://doi.org/10.1109/42.796284 (the splines).

    **Example**::

        >>> warp = ConditionalWarp(2)
        >>> image = torch.rand(3, 1, 64, 64)
        >>> (warp(image, torch.randn(3, 2)) - image).abs().max() < 1e-4  # no effect at the start
        tensor(True)
    """

    weights: Tensor

    def __init__(
        self,
        features: int,
        *,
        knots: int = 10,
        fineness: int = 1,
        hidden: Sequence[int] | nn.Module = (),
    ) -> None:
        super().__init__(features, fineness=fineness, hidden=hidden)
        if knots < 4:
            raise ValueError(
                f"ConditionalWarp: expected four knots or more, got {knots}. Take more, or a "
                "ConditionalZoom."
            )
        self.knots = knots
        self.velocity = nn.Parameter(torch.zeros(features, 2, knots, knots))
        self.register_buffer("weights", _cubic(knots, FINEST))

    def forward(self, canvas: Tensor, context: Tensor) -> Tensor:
        """Move and enlarge as the parents say."""
        places = self._zoomed(self._image_pixels(canvas), context, -1.0)
        return self._read(canvas, self._moved(places, context, -1.0))

    def undo(self, image: Tensor, context: Tensor) -> Tensor:
        """Reduce and move back."""
        places = self._moved(_pixels(image), context, 1.0)
        return self._read(image, self._zoomed(places, context, 1.0))

    def _moved(self, places: Tensor, context: Tensor, sign: float) -> Tensor:
        """Places taken to others along the flow, for a time of one."""
        fields = torch.einsum("yi,kcij,xj->kcyx", self.weights, self.velocity, self.weights)
        step = torch.tensordot(context, fields, 1) * (sign / 2**SQUARINGS)
        start = F.affine_grid(
            torch.eye(2, 3).to(step)[None], [1, 1, FINEST, FINEST], align_corners=True
        )
        for _ in range(SQUARINGS):
            step = step + _displacement(step, start + step.movedim(1, -1)).movedim(-1, 1)
        return places + _displacement(step, places.expand(len(step), -1, -1, -1))


def _pixels(image: Tensor) -> Tensor:
    """The middles of the pixels ``[B, H, W, 2]``."""
    still = torch.eye(2, 3).to(image)[None].expand(len(image), -1, -1)
    return F.affine_grid(still, list(image.shape), align_corners=False)


def _displacement(field: Tensor, places: Tensor) -> Tensor:
    """That of places ``[B, H, W, 2]`` in a field ``[B, 2, FINEST, FINEST]`` from edge to edge."""
    there = F.grid_sample(field, places, align_corners=True, padding_mode="border")
    return there.movedim(1, -1)


def _cubic(knots: int, points: int) -> Tensor:
    """The values of the cubic B-splines at equally spaced points, ``[points, knots]``."""
    position = torch.linspace(0, knots - 3, points, dtype=torch.float64)
    first = position.floor().clamp(max=knots - 4)
    f = position - first
    parts = [(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3]
    columns = first.long()[:, None] + torch.arange(4)
    weights = torch.zeros(points, knots, dtype=torch.float64)
    return weights.scatter_(1, columns, torch.stack(parts, 1) / 6).to(torch.get_default_dtype())
