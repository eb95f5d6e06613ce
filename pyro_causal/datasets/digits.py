r"""Morpho-MNIST: handwritten digits whose stroke thickness causes their intensity.

A digit's thickness :math:`t` in pixels and intensity :math:`i` in grey levels shape its image
:math:`x`, and so do the strokes of an MNIST digit, which are the exogenous noise of the image.

.. math::

    t &= 0.5 + \epsilon_t, & \epsilon_t &\sim \mathrm{Gamma}(10, 5), \\
    i &= 64 + 191 \, \sigma(2 t - 5 + 0.5 \, \epsilon_i), & \epsilon_i &\sim N(0, 1), \\
    x &= \mathrm{SetIntensity}(\mathrm{SetThickness}(\mathrm{strokes}, t), i)

The table of the published data holds the t and i that were drawn, not what the images measure:
thickness moves in steps of 1/8 pixel, and the truncation to whole grey levels costs half a level.
Of the first 9,000 images this module reproduces all but eleven exactly, and no pixel of those is
off by more than one grey level.

The functions on images work in numpy, on the CPU, and no gradient passes through them. Those on
thickness need scikit-image (``pip install pyro_causal[datasets]``).

**References** Castro et al. 2019, *Morpho-MNIST: quantitative assessment and diagnostics for
representation learning*, https://arxiv.org/abs/1809.10780. Pawlowski, Castro & Glocker 2020, *Deep
structural causal models for tractable counterfactual inference*,
https://arxiv.org/abs/2006.06485, section 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.distributions import transforms
from torch import Tensor

from pyro_causal.datasets._files import DataFile, Folder, find_file, read_idx, read_table
from pyro_causal.datasets._morphology import (
    SIZE,
    change_thickness,
    mean_thickness,
    median_level,
    scale_to_level,
    stroke_mask,
    whole_steps,
)

__all__ = [
    "load_morphomnist",
    "load_morphomnist_covariates",
    "measure_intensity",
    "measure_thickness",
    "morphomnist",
    "morphomnist_covariates",
    "set_intensity",
    "set_thickness",
]

CHUNK = 16  # digits whose masks are held at a time
ROWS, TRAINING_ROWS = 10_000, 60_000
SPLITS = {
    "train": slice(0, 8000),
    "validation": slice(8000, 9000),
    "test": slice(9000, ROWS),
    "all": slice(0, ROWS),
}
COLUMNS = ("index", "thickness", "intensity")

_MORPHO_MNIST = (
    "https://raw.githubusercontent.com/biomedia-mira/deepscm/"
    "2dbfcde0d1fed63553c993d4abe4a74a59dc05d0/assets/data/"
)
_MNIST = "https://raw.githubusercontent.com/fgnt/mnist/ae608a02b796c9ee908c082585a5f006fe05258e/"


def _file(name: str, sha256: str) -> DataFile:
    """A file of one of the two folders, which are those of its origin."""
    folder, _, base = name.partition("/")
    return DataFile(name, _MNIST + base if folder == "mnist" else _MORPHO_MNIST + name, sha256)


IMAGES = _file(
    "morphomnist/t10k-images-idx3-ubyte.gz",
    "13163afd89dc4073b274b037485cf583d3ef58c3dd7ff65563fd6d8c21098068",
)
LABELS = _file(
    "morphomnist/t10k-labels-idx1-ubyte.gz",
    "c3a7e01fcb887415fb67b58c21d195e212206472670865e798b7fb03d3504e2d",
)
TABLE = _file(
    "morphomnist/t10k-morpho.csv",
    "426911a6baba7f1009de28f2d76bf86c8a91815ecc9ac0f454ef52dab2f19f43",
)
TRAINING_TABLE = _file(
    "morphomnist/train-morpho.csv",
    "40176771d8f050502ffcd995247d70392f332d03b0a3dc8f99ebd35ffefb673b",
)
STROKES = _file(
    "mnist/t10k-images-idx3-ubyte.gz",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
)


def load_morphomnist(split: str, *, path: Folder | None = None) -> dict[str, Tensor]:
    """Load digits, their thickness and intensity, and the strokes that they were made from.

    The files are those of the authors' 10,000 test images (their training images are not public)
    and of the MNIST test images. They are looked for in the folder ``path``, then in
    $PYRO_CAUSAL_DATA, then in the user's cache, each with subfolders ``morphomnist`` and ``mnist``,
    and downloaded to the cache (4 MB) if they are nowhere.

    **Shapes** thickness ``t`` and intensity ``i`` ``[N]``, in pixels and grey levels as they were
    drawn; ``x`` and ``strokes`` ``[N, 1, 28, 28]``, grey levels 0 to 255 as floats; ``digit``
    ``[N]``, integers.

    **Arguments**

    - ``split``: ``"train"`` (8,000 digits), ``"validation"`` (1,000), ``"test"`` (1,000) or
      ``"all"``. The split is ours, in the order of the files.
    - ``path``: a folder with the files.

    **Raises** ``ValueError``: there is no such split, or a file is damaged. ``FileNotFoundError``:
    there is no folder ``path``, or a file cannot be had.

    **Example** ::

        digits = load_morphomnist("train")
        digits["x"].shape  # torch.Size([8000, 1, 28, 28])
    """
    if split not in SPLITS:
        raise ValueError(
            f"load_morphomnist: expected a split of {', '.join(SPLITS)}, got {split!r}."
        )
    rows = SPLITS[split]
    table = read_table(find_file(TABLE, path), COLUMNS, ROWS)[rows]
    labels = read_idx(find_file(LABELS, path), (ROWS,))[rows]
    x, strokes = (
        torch.tensor(read_idx(find_file(file, path), (ROWS, SIZE, SIZE))[rows, None]).float()
        for file in (IMAGES, STROKES)
    )
    return {
        "t": torch.tensor(table[:, 1]),
        "i": torch.tensor(table[:, 2]),
        "x": x,
        "digit": torch.tensor(labels).long(),
        "strokes": strokes,
    }


def load_morphomnist_covariates(*, path: Folder | None = None) -> dict[str, Tensor]:
    """Load thickness and intensity of the authors' 60,000 training digits, which have no images.

    **Shapes** ``t`` and ``i`` ``[60000]``.

    **Arguments** and **Raises** as :func:`load_morphomnist`.
    """
    table = read_table(find_file(TRAINING_TABLE, path), COLUMNS, TRAINING_ROWS)
    return {"t": torch.tensor(table[:, 1]), "i": torch.tensor(table[:, 2])}


def morphomnist(strokes: Tensor) -> Tensor:
    r"""The true model, a Pyro program with the sites ``t``, ``i`` and ``x`` in the plate "digits".

    Conditioned on t and i it abducts their noise, and the strokes are that of the image. So under
    :func:`pyro_causal.worlds` it gives the true counterfactual digits. Name the worlds' dim, -2,
    which otherwise takes another run of the program (20 ms per digit) to find.

    **Shapes** strokes ``[N, 1, 28, 28]``; t and i ``[N]``, x ``[N, 1, 28, 28]``, and the worlds'
    axis ``[W, N, ...]`` where a site spans worlds.

    **Arguments** ``strokes``: MNIST digits, grey levels 0 to 255.

    **Raises** as :func:`set_thickness`.

    **Example** A vertical stroke, as it is and one pixel thicker. Its noise makes it brighter.

    >>> from pyro import poutine
    >>> from pyro_causal import worlds
    >>> strokes = torch.zeros(1, 1, 28, 28)
    >>> strokes[..., 5:23, 12:15] = 255.0
    >>> observed = {"t": torch.tensor([3.0]), "i": torch.tensor([150.0])}
    >>> digit = poutine.condition(morphomnist, observed)
    >>> trace = poutine.trace(worlds(digit, [{"t": lambda t: t + 1.0}], dim=-2)).get_trace(strokes)
    >>> trace.nodes["i"]["value"]
    tensor([[150.0000],
            [227.9154]])
    >>> measure_intensity(trace.nodes["x"]["value"])
    tensor([[150.],
            [227.]])
    """
    with pyro.plate("digits", len(strokes), dim=-1):
        t, i = _covariates(strokes)
        return pyro.deterministic("x", set_intensity(set_thickness(strokes, t), i), event_dim=3)


def morphomnist_covariates(like: Tensor) -> tuple[Tensor, Tensor]:
    """The part of :func:`morphomnist` without images, which takes no time: sites ``t`` and ``i``.

    **Shapes** like ``[N, ...]``, whose rows, dtype and device count; t and i ``[N]``.

    **Example**

    >>> t, i = morphomnist_covariates(torch.empty(1000))
    >>> t.shape, bool((64 < i).all()), bool((i < 255).all())
    (torch.Size([1000]), True, True)
    """
    with pyro.plate("digits", len(like), dim=-1):
        return _covariates(like)


def _covariates(like: Tensor) -> tuple[Tensor, Tensor]:
    """Sample thickness and intensity."""
    shape, rate = (torch.tensor(a, dtype=_real(like)).to(like.device) for a in (10.0, 5.0))
    shift = transforms.AffineTransform(0.5, 1.0)
    t = pyro.sample("t", dist.TransformedDistribution(dist.Gamma(shape, rate), [shift]))
    to_grey = [transforms.SigmoidTransform(), transforms.AffineTransform(64.0, 191.0)]
    i = pyro.sample("i", dist.TransformedDistribution(dist.Normal(2 * t - 5, 0.5), to_grey))
    return t, i


def set_thickness(images: Tensor, t: Tensor | float) -> Tensor:
    """Give strokes a mean thickness, by dilation or erosion in steps of 1/8 pixel.

    Each image is enlarged and measured once, whatever the number of values of t. What is thinner
    than the part to be taken vanishes.

    **Shapes** images ``[*batch, 1, 28, 28]``, t of a shape that broadcasts with ``batch``; result
    ``[*broadcast, 1, 28, 28]``, whole grey levels 0 to 254 in the dtype of the images.

    **Arguments**

    - ``images``: grey levels 0 to 255.
    - ``t``: mean thickness in pixels, from 0 to 28.

    **Raises** ``ValueError``: images of another shape, not finite or scaled to 0 to 1; t outside
    its range or of a shape that does not fit. ``ImportError`` without scikit-image.

    **References** Castro et al. 2019, https://arxiv.org/abs/1809.10780, with the target thickness
    and the footprint of Pawlowski, Castro & Glocker 2020, https://arxiv.org/abs/2006.06485.

    **Example**

    >>> image = torch.zeros(1, 28, 28)
    >>> image[:, 5:23, 12:15] = 255.0
    >>> measure_thickness(set_thickness(image, torch.tensor([3.0, 4.0]))).round(decimals=1)
    tensor([3., 4.])
    """
    pixels = _pixels(images)
    source, targets, shape = _pairs(images, t, "t", highest=SIZE)
    result = np.empty((len(source), SIZE, SIZE))
    for first in range(0, len(pixels), CHUNK):
        masks = [stroke_mask(image) for image in pixels[first : first + CHUNK]]
        thickness = mean_thickness(masks)
        made: dict[tuple[int, int], NDArray[Any]] = {}
        for row in np.flatnonzero((first <= source) & (source < first + CHUNK)):
            k = source[row] - first
            steps = whole_steps(targets[row] - thickness[k])
            if (k, steps) not in made:
                made[k, steps] = change_thickness(masks[k], steps)
            result[row] = made[k, steps]
    return torch.from_numpy(result).to(images).reshape(*shape, 1, SIZE, SIZE)


def set_intensity(images: Tensor, i: Tensor | float) -> Tensor:
    """Give strokes a median grey level, by scaling all levels and truncating them to 0 to 255.

    **Shapes** as :func:`set_thickness`.

    **Arguments**

    - ``images``: grey levels 0 to 255. Without any light they stay as they are.
    - ``i``: intensity in grey levels, not negative.

    **Raises** ``ValueError``: as :func:`set_thickness`.

    **References** Pawlowski, Castro & Glocker 2020, https://arxiv.org/abs/2006.06485, section 4.

    **Example**

    >>> image = torch.zeros(1, 28, 28)
    >>> image[:, 5:23, 12:15] = 200.0
    >>> set_intensity(image, 120.0).unique()
    tensor([  0., 120.])
    """
    pixels = _pixels(images)
    source, targets, shape = _pairs(images, i, "i", highest=math.inf)
    medians = [median_level(image) for image in pixels]
    result = np.empty((len(source), SIZE, SIZE))
    for row, (k, level) in enumerate(zip(source, targets, strict=True)):
        result[row] = scale_to_level(pixels[k], medians[k], level)
    return torch.from_numpy(result).to(images).reshape(*shape, 1, SIZE, SIZE)


def measure_thickness(images: Tensor) -> Tensor:
    """The mean thickness of strokes in pixels: twice the mean distance from skeleton to edge.

    It is measured at 16 times the size, in the pixels above half of the image's range. An image
    without contrast has thickness 0. Digits that :func:`set_thickness` has set to t measure 0.1
    pixels more or less on average, and 0.3 to 0.8 more where t is above 3.5.

    **Shapes** images ``[*batch, 1, 28, 28]``, grey levels 0 to 255; result ``[*batch]``.

    **Raises** ``ValueError``: images of another shape, not finite or scaled to 0 to 1.
    ``ImportError`` without scikit-image.

    **References** Castro et al. 2019, https://arxiv.org/abs/1809.10780.

    **Example**

    >>> image = torch.zeros(1, 28, 28)
    >>> image[:, 5:23, 12:15] = 255.0
    >>> measure_thickness(image).round(decimals=1)
    tensor(2.9000)
    """
    pixels = _pixels(images)
    values = [
        mean_thickness([stroke_mask(image) for image in pixels[first : first + CHUNK]])
        for first in range(0, len(pixels), CHUNK)
    ]
    return _as_measured(np.concatenate([*values, []]), images)


def measure_intensity(images: Tensor) -> Tensor:
    """The median grey level of strokes, which are the pixels above half of the image's range.

    **Shapes** as :func:`measure_thickness`.

    **Raises** ``ValueError``: as :func:`measure_thickness`.

    **References** Pawlowski, Castro & Glocker 2020, https://arxiv.org/abs/2006.06485, section 4.

    **Example**

    >>> image = torch.zeros(2, 1, 28, 28)
    >>> image[..., 5:23, 12:15] = 200.0
    >>> measure_intensity(image)
    tensor([200., 200.])
    """
    return _as_measured(np.array([median_level(image) for image in _pixels(images)]), images)


def _pixels(images: Tensor) -> NDArray[Any]:
    """The images as ``[number, 28, 28]``, once their shape and grey levels are checked."""
    if images.shape[-3:] != (1, SIZE, SIZE):
        raise ValueError(
            f"images: expected the shape [*batch, 1, {SIZE}, {SIZE}], got {list(images.shape)}."
        )
    pixels = images.detach().reshape(-1, SIZE, SIZE).cpu().double().numpy()
    if not np.isfinite(pixels).all():
        raise ValueError("images: expected finite grey levels, got NaN or infinity.")
    if pixels.max(initial=0) <= 1 and ((pixels > 0) & (pixels < 1)).any():
        raise ValueError(
            f"images: expected grey levels from 0 to 255, got at most {pixels.max():g}. "
            "Do multiply by 255."
        )
    return pixels


def _pairs(
    images: Tensor, value: Tensor | float, name: str, *, highest: float
) -> tuple[NDArray[Any], NDArray[Any], torch.Size]:
    """Which image and which value each result has, and the batch shape of the results."""
    values = torch.as_tensor(value).detach().cpu().double()
    if not ((values >= 0) & (values <= highest) & values.isfinite()).all():
        raise ValueError(
            f"{name}: expected finite numbers from 0 to {highest}, got {values.min():g} to "
            f"{values.max():g}."
        )
    batch = images.shape[:-3]
    try:
        shape = torch.broadcast_shapes(batch, values.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts with {list(batch)}, the batch shape of the "
            f"images, got {list(values.shape)}."
        ) from None
    source = torch.arange(batch.numel()).reshape(batch).expand(shape)
    return source.flatten().numpy(), values.expand(shape).flatten().numpy(), shape


def _real(images: Tensor) -> torch.dtype:
    """The dtype of what is measured on images."""
    return images.dtype if images.is_floating_point() else torch.get_default_dtype()


def _as_measured(values: NDArray[Any], images: Tensor) -> Tensor:
    """One value per image as a tensor of the batch shape."""
    return torch.from_numpy(values).to(images.device, _real(images)).reshape(images.shape[:-3])
