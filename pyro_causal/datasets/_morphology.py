"""Thickness and intensity of handwritten strokes, one image at a time and in numpy.

An image is enlarged sixteen times and cut at the middle of its range. The mask is measured, or
changed and reduced again. Grey levels are truncated to whole numbers wherever the published images
were truncated, and ties have a fixed rule, so that equal images always give equal results.

**References** Castro et al. 2019, *Morpho-MNIST: quantitative assessment and diagnostics for
representation learning*, https://arxiv.org/abs/1809.10780: the operations. Pawlowski, Castro &
Glocker 2020, *Deep structural causal models for tractable counterfactual inference*,
https://arxiv.org/abs/2006.06485, section 4: what they were used for. Comments here state what
neither says and the published images depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "SIZE",
    "change_thickness",
    "mean_thickness",
    "median_level",
    "scale_to_level",
    "stroke_mask",
    "whole_steps",
]

Array = NDArray[Any]
SIZE = 28  # pixels, rows and columns
SCALE = 16  # of a mask to an image
SIGMA = SCALE / 3  # of the smoothing after enlarging and before reducing, in pixels of the mask
REACH = 21  # of that smoothing: 4 SIGMA
# What the weights of the smoothing add up to. A patch of full grey, 255, is truncated to 254.
JUST_UNDER_ONE = 1 - 1e-7


def stroke_mask(image: Array) -> Array:
    """Mark the pixels of the enlarged image at or above the middle of its range.

    **Shapes** grey levels ``[28, 28]``; mask ``[448, 448]``, without a stroke if all levels agree.
    """
    enlarged = (_enlarging() @ image @ _enlarging().T).clip(image.min(), image.max())
    levels = np.floor(JUST_UNDER_ONE * ndimage.gaussian_filter(enlarged, SIGMA))
    low, high = levels.min(), levels.max()
    return levels >= (low + high) / 2 if low < high else np.zeros(levels.shape, bool)


def mean_thickness(masks: Sequence[Array]) -> Array:
    """Twice the mean distance from a stroke's skeleton to its edge, in pixels of the image.

    The skeleton is the medial axis. A mask without a stroke has thickness zero.

    **Shapes** N masks ``[448, 448]``; result ``[N]``.
    """
    boxes = [_box(mask) for mask in masks]
    # A stroke has no edge where it leaves the image, so such masks get no border from a neighbour.
    cut = [bool(m[[0, -1]].any() or m[:, [0, -1]].any()) for m in masks]
    batches = [[k for k, c in enumerate(cut) if not c], *([k] for k, c in enumerate(cut) if c)]
    result = np.zeros(len(masks))
    for batch in filter(None, batches):
        result[batch] = _stacked_thickness([boxes[k] for k in batch])
    return result


def whole_steps(thickness: float) -> int:
    """Express a difference of thickness in steps of an eighth of a pixel, towards zero."""
    return int(SCALE * thickness / 2)


def change_thickness(mask: Array, steps: int) -> Array:
    """Widen or (negative) narrow a stroke by a pixel of the mask on all sides in each step.

    **Shapes** mask ``[448, 448]``; grey levels ``[28, 28]``.
    """
    if steps:
        mask = _dilate(mask, steps) if steps > 0 else ~_dilate(~mask, -steps)
    reduced = _reducing() @ mask.astype(float) @ _reducing().T
    return np.floor(255 * JUST_UNDER_ONE * reduced.clip(0, 1))


def median_level(image: Array) -> float:
    """The median grey level of the pixels at or above the middle of the image's range."""
    return float(np.median(image[image >= (image.min() + image.max()) / 2]))


def scale_to_level(image: Array, median: float, level: float) -> Array:
    """Scale an image from one median grey level to another. A black one remains black."""
    return np.floor((image / median * level).clip(0, 255)) if median > 0 else np.zeros_like(image)


class _Ties(np.random.Generator):
    """The order in which the medial axis visits pixels that are alike: a fixed one in each mask.

    The published images were made with the permutation that scikit-image then had built in.
    """

    def __new__(cls, sizes: Sequence[int]) -> Self:
        return super().__new__(cls)

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(np.random.PCG64(0))
        self.sizes = sizes

    def permutation(self, x: Any, axis: int = 0) -> Array:
        return np.concatenate([np.random.RandomState(0).permutation(n) for n in self.sizes])


def _box(mask: Array) -> Array:
    """The part of a mask that holds its stroke, with a border of one pixel within the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask[:1, :1]
    return mask[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2]


def _stacked_thickness(boxes: Sequence[Array]) -> Array:
    """The thickness of each box, from one medial axis of all, which costs less than one of each."""
    try:
        from skimage.morphology import medial_axis
    except ImportError as error:
        raise ImportError(
            "Thickness needs scikit-image. Do install it: pip install pyro_causal[datasets]"
        ) from error

    width = max(box.shape[1] for box in boxes)
    stack = np.concatenate([np.pad(box, ((0, 0), (0, width - box.shape[1]))) for box in boxes])
    ties = _Ties([int(box.sum()) for box in boxes])
    axis, distance = medial_axis(stack, return_distance=True, rng=ties)
    owner = np.repeat(np.arange(len(boxes)), [len(box) for box in boxes])[np.nonzero(axis)[0]]
    count = np.bincount(owner, minlength=len(boxes))
    total = np.bincount(owner, weights=distance[axis], minlength=len(boxes))
    return 2 / SCALE * total / count.clip(min=1)


def _dilate(mask: Array, radius: int) -> Array:
    """Dilate a mask by one row of the footprint after the other, each an interval of columns."""
    size, result = len(mask), np.zeros_like(mask)
    before = np.pad(mask.cumsum(1, dtype=np.int16), ((0, 0), (radius + 1, radius)), "edge")
    before[:, : radius + 1] = 0  # how many pixels of the row lie left of this one
    reached: dict[tuple[int, int], Array] = {}
    for row, (first, last) in enumerate(_footprint(radius), start=-radius):
        if (first, last) not in reached:
            start, stop = radius + first, radius + last + 1
            reached[first, last] = before[:, stop:][:, :size] != before[:, start:][:, :size]
        source = reached[first, last][max(row, 0) : max(size + row, 0)]
        result[max(-row, 0) : max(size - row, 0)] |= source
    return result


@cache
def _footprint(radius: int) -> tuple[tuple[int, int], ...]:
    """First and last column of each row of the footprint, counted from its middle.

    The published footprint is a disk of SCALE * radius that was smoothed and reduced, of which all
    counts that is not zero: those pixels whose window of the smoothing meets the disk. So it is a
    square at radius 1 to 4, and wider than a disk by about a pixel at any radius.
    """
    large, side = SCALE * radius, 2 * radius + 1
    middles = (2 * large + 1) / side * (np.arange(side) + 0.5) - 0.5 - large

    def distance(positions: Array) -> Array:
        first = np.floor(positions) - REACH  # of the window, which ends at first + 2 * REACH + 1
        return np.maximum(first, -(first + 2 * REACH + 1)).clip(min=0)

    # Between two pixels both count. On a pixel (below radius 40 only at 19) rounding has added the
    # one above, or on the right.
    rows, columns = distance(middles - 1e-9), distance(middles + 1e-9)
    met = rows[:, None] ** 2 + columns**2 <= large**2
    first, last = met.argmax(1) - radius, radius - met[:, ::-1].argmax(1)
    return tuple(zip(first.tolist(), last.tolist(), strict=True))


@cache
def _enlarging() -> Array:
    """Cubic convolution from 28 to 448 pixels, as a matrix."""
    return _cubic_convolution((np.arange(SCALE * SIZE) + 0.5) / SCALE - 0.5, SIZE)


@cache
def _reducing() -> Array:
    """Smoothing and cubic convolution from 448 to 28 pixels, as a matrix."""
    weights = _cubic_convolution((np.arange(SIZE) + 0.5) * SCALE - 0.5, SCALE * SIZE)
    return ndimage.gaussian_filter1d(weights, SIGMA, axis=1)


def _cubic_convolution(positions: Array, size: int) -> Array:
    """The weights of ``size`` pixels at positions between them.

    **References** Keys 1981, Cubic convolution interpolation for digital image processing; here
    with the image mirrored about its outermost pixels.
    """
    weights = np.zeros((len(positions), size))
    for shift in range(-1, 3):
        pixel = np.floor(positions).astype(int) + shift
        d = np.abs(positions - pixel)
        near, far = (1.5 * d - 2.5) * d**2 + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
        mirrored = np.minimum(np.abs(pixel), 2 * size - 2 - pixel)
        np.add.at(weights, (np.arange(len(d)), mirrored), np.where(d <= 1, near, far))
    return weights
