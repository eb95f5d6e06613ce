"""Morpho-MNIST: its operations on drawn strokes, the true model, and the published images."""

import gzip
import hashlib
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import ndimage, stats
from skimage.morphology import disk, medial_axis
from torch import Tensor

from pyro_causal import causal_graph, do, worlds
from pyro_causal.datasets import _morphology as morphology
from pyro_causal.datasets import (
    load_morphomnist,
    load_morphomnist_covariates,
    measure_intensity,
    measure_thickness,
    morphomnist,
    set_intensity,
    set_thickness,
)

MODULE = importlib.import_module("pyro_causal.datasets.digits")
ROW, COLUMN = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
WIDTHS = torch.tensor([2.0, 3.0, 4.0])


def ring(width: Tensor | float, *, radius: float = 8.0, level: float = 255.0) -> Tensor:
    """Circles of a stroke of this width, ``[*width, 1, 28, 28]``. They have no ends and no ties."""
    edge = (torch.hypot(ROW - 13.4, COLUMN - 13.7) - radius).abs()
    width = torch.as_tensor(width)[..., None, None, None]
    return (level * (width / 2 + 0.5 - edge).clamp(0, 1)).round()


def bar(*, left: int = 12, right: int = 15) -> Tensor:
    image = torch.zeros(1, 28, 28)
    image[:, 5:23, left:right] = 255.0
    return image


def cross() -> Tensor:
    return torch.maximum(bar(), bar(left=11, right=13).mT)


def mask(image: Tensor) -> np.ndarray:
    return morphology.stroke_mask(image[0].double().numpy())


# --- measuring ------------------------------------------------------------------------------------


def test_a_stroke_is_as_thick_as_it_was_drawn() -> None:
    torch.testing.assert_close(measure_thickness(ring(WIDTHS)), WIDTHS, atol=0.05, rtol=0)


def test_thickness_is_of_the_shape_not_of_the_light() -> None:
    bright, dim = measure_thickness(torch.stack([ring(3.0), ring(3.0, level=90.0)]))
    torch.testing.assert_close(dim, bright, atol=0.02, rtol=0)


def test_intensity_is_the_median_of_the_brighter_half() -> None:
    image = torch.zeros(1, 28, 28)
    image[0, 3, :5] = torch.tensor([99.0, 101.0, 150.0, 180.0, 200.0])
    assert measure_intensity(image) == 165.0


def test_a_blank_image_has_no_thickness() -> None:
    images = torch.stack([torch.zeros(1, 28, 28), ring(3.0), torch.full((1, 28, 28), 7.0)])
    assert measure_thickness(images)[[0, 2]].tolist() == [0.0, 0.0]
    assert measure_intensity(images).tolist() == [0.0, 255.0, 7.0]
    assert measure_thickness(images[:1]).tolist() == [0.0]


@pytest.mark.parametrize("measure", [measure_thickness, measure_intensity])
def test_measures_have_the_shape_and_type_of_the_batch(measure: Callable) -> None:
    images = ring(WIDTHS)
    expected = measure(images)
    for dtype, found in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.uint8, torch.float32),
    ]:
        torch.testing.assert_close(measure(images.to(dtype)), expected.to(found))
    assert measure(images[0]).shape == ()
    assert measure(images[:0]).shape == (0,)
    assert measure(images.expand(2, 3, 1, 28, 28)).tolist() == [expected.tolist()] * 2


def test_batches_do_not_matter() -> None:
    """Ties are broken in each image alone, at the edge of the image as within."""
    images = torch.stack([bar(), cross(), bar(left=0, right=3), ring(3.0), bar(left=10, right=28)])
    together = measure_thickness(images)
    assert together.tolist() == [measure_thickness(image).item() for image in images]
    assert measure_thickness(images.flip(0)).tolist() == together.flip(0).tolist()


def test_the_skeleton_is_the_medial_axis_of_the_whole_mask() -> None:
    for image in [cross(), bar(left=0, right=3), ring(2.5)]:
        whole = mask(image)
        skeleton, distance = medial_axis(
            whole, return_distance=True, rng=morphology._Ties([whole.sum()])
        )
        expected = 2 * distance[skeleton].mean() / 16
        assert morphology.mean_thickness([whole])[0] == pytest.approx(expected, abs=1e-12)


def test_a_stroke_has_no_edge_at_the_edge_of_the_image() -> None:
    inside, cut = measure_thickness(
        torch.stack([bar(left=12, right=15), bar(left=0, right=3)])
    ).tolist()
    assert cut > 1.5 * inside


# --- enlarging and reducing -----------------------------------------------------------------------


def test_enlarging_keeps_polynomials_and_mirrors_the_edge() -> None:
    matrix = morphology._enlarging()
    positions = (np.arange(448) + 0.5) / 16 - 0.5
    inside = slice(24, 424)
    for power in (0, 1, 2):
        found = matrix @ np.arange(28.0) ** power
        np.testing.assert_allclose(found[inside], positions[inside] ** power, atol=1e-9)
    mirrored = (np.arange(28) == 1).astype(float)  # seen from -0.47 on the other side, too
    assert (matrix @ mirrored)[0] == pytest.approx((matrix @ mirrored)[15], abs=1e-12)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)


def test_reducing_averages_and_truncates_full_grey() -> None:
    np.testing.assert_allclose(morphology._reducing().sum(1), 1.0)
    full = morphology.change_thickness(np.ones((448, 448), bool), 0)
    assert np.unique(full).tolist() == [254.0]
    half = morphology.change_thickness(np.arange(448)[None].repeat(448, 0) < 224, 0)
    assert half[5, 13] + half[5, 14] == 254.0
    assert half[5, 13] > 2 * half[5, 14]


# --- changing thickness ---------------------------------------------------------------------------


def brute_footprint(radius: int) -> np.ndarray:
    """Smooth a large disk, take one value of sixteen by linear interpolation, ask if it is zero."""
    smooth = ndimage.gaussian_filter(disk(16 * radius, dtype=np.float64), 16 / 3)
    side = 2 * radius + 1
    middles = (np.arange(side) + 0.5) * len(smooth) / side - 0.5
    grid = np.meshgrid(middles, middles, indexing="ij")
    return ndimage.map_coordinates(smooth, grid, order=1, mode="nearest") != 0


@pytest.mark.parametrize("radius", [1, 2, 4, 5, 9, 14, 18, 23])
def test_the_footprint_is_what_is_not_zero_of_a_smooth_disk(radius: int) -> None:
    found = np.zeros((2 * radius + 1,) * 2, bool)
    for row, (first, last) in enumerate(morphology._footprint(radius)):
        found[row, first + radius : last + radius + 1] = True
    assert (found == brute_footprint(radius)).all()


def test_the_footprint_of_radius_19_leans_down_and_left() -> None:
    """It alone of the radii below 40 has pixels where rounding decides."""
    for radius in range(1, 40):
        rows = dict(enumerate(morphology._footprint(radius), start=-radius))
        leaning_down = [r for r in range(radius) if rows[r] != rows[-r]]
        leaning_left = [r for r, (first, last) in rows.items() if -first > last]
        assert not any(-first < last for first, last in rows.values())
        assert (leaning_down, leaning_left) == (([13], [-17, 17]) if radius == 19 else ([], []))


@pytest.mark.parametrize("radius", [1, 6, 19, 30])
def test_dilation_is_that_of_the_footprint(radius: int) -> None:
    """On points near every edge and inside, so that each pixel of the footprint shows."""
    points = np.zeros((448, 448), bool)
    points[[0, 3, 200, 447, 440], [5, 440, 220, 447, 0]] = True
    footprint = np.zeros((2 * radius + 1,) * 2, bool)
    for row, (first, last) in enumerate(morphology._footprint(radius)):
        footprint[row, first + radius : last + radius + 1] = True
    expected = ndimage.grey_erosion(~points, footprint=footprint)
    assert (morphology._dilate(points, radius) == ~expected).all()


def test_a_radius_beyond_the_image_fills_it() -> None:
    points = np.zeros((448, 448), bool)
    points[0, 0] = True
    assert morphology._dilate(points, 900).all()
    assert not morphology._dilate(~np.ones((448, 448), bool), 900).any()


@pytest.mark.parametrize(("start", "t"), [(3.0, 2.0), (3.0, 5.0), (4.0, 1.5)])
def test_strokes_get_the_thickness_they_are_given(start: float, t: float) -> None:
    """Up to a step of 1/8 pixel, and the pixel by which the footprint is wider than a disk."""
    found = measure_thickness(set_thickness(ring(start), t)).item()
    assert found == pytest.approx(t, abs=0.25)


def test_steps_are_rounded_towards_the_original() -> None:
    image = ring(3.0)
    own = measure_thickness(image).item()
    unchanged = set_thickness(image, own)
    for change, same in [(0.12, True), (-0.12, True), (0.13, False), (-0.13, False)]:
        assert torch.equal(set_thickness(image, own + change), unchanged) is same
    assert (unchanged - image).abs().mean() < 2.5


def test_what_is_thinner_than_the_part_taken_vanishes() -> None:
    image = torch.maximum(bar(left=4, right=6), bar(left=14, right=22))
    thinner = set_thickness(image, measure_thickness(image) - 2.5)
    assert not thinner[..., :11].any()
    assert thinner[..., 17].any()


def test_images_are_whole_grey_levels_of_the_given_type() -> None:
    for dtype in (torch.float64, torch.float32, torch.uint8):
        for image in (
            set_thickness(ring(3.0).to(dtype), 3.5),
            set_intensity(cross().to(dtype), 99),
        ):
            assert image.dtype == dtype
            assert torch.equal(image, image.floor())
    assert set_thickness(ring(3.0), 3.5).max() == 254.0


# --- changing intensity ---------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1.0, 64.0, 101.0, 255.0])
def test_strokes_get_the_intensity_they_are_given(level: float) -> None:
    assert measure_intensity(set_intensity(bar() * 0.7, level)) == level


def test_black_remains_black() -> None:
    assert not set_intensity(torch.zeros(1, 28, 28), 200.0).any()


def test_levels_are_scaled_truncated_and_clipped() -> None:
    image = torch.zeros(1, 28, 28)
    image[0, 3, :5] = torch.tensor([10.0, 120.0, 150.0, 150.0, 200.0])
    found = set_intensity(image, torch.tensor([100.0, 225.0]))
    assert found[0, 0, 3, :5].tolist() == [6.0, 80.0, 100.0, 100.0, 133.0]
    assert found[1, 0, 3, :5].tolist() == [15.0, 180.0, 225.0, 225.0, 255.0]


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [set_thickness, set_intensity])
def test_values_broadcast_with_the_batch(operation: Callable) -> None:
    images = ring(torch.linspace(2, 4, 18))  # more than a chunk
    values = torch.tensor([[3.0], [2.5]]) + torch.linspace(0, 1, 18)
    found = operation(images, values)
    assert found.shape == (2, 18, 1, 28, 28)
    for w, n in [(0, 0), (1, 3), (0, 16), (1, 17)]:
        assert torch.equal(found[w, n], operation(images[n], values[w, n]))
    assert operation(images[:2].expand(3, 2, 1, 28, 28), 3.0).shape == (3, 2, 1, 28, 28)
    assert operation(images[:0], values[:, :0]).shape == (2, 0, 1, 28, 28)


def test_no_random_state_is_read_or_changed() -> None:
    np_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = set_thickness(cross(), 3.3)
    assert (np.random.get_state()[1] == np_state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.random.random()
    assert torch.equal(set_thickness(cross(), 3.3), first)


def test_gradients_end_here() -> None:
    images = ring(WIDTHS).requires_grad_()
    t = torch.tensor(3.0, requires_grad=True)
    assert not set_thickness(images, t).requires_grad
    assert not measure_intensity(images).requires_grad


@pytest.mark.parametrize(
    "function", [measure_thickness, measure_intensity, lambda x: set_thickness(x, 3.0)]
)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(5, 28, 28), r"expected the shape \[\*batch, 1, 28, 28\], got \[5, 28, 28\]"),
        (torch.zeros(28, 28), r"got \[28, 28\]"),
        (ring(3.0) * math.nan, "images: expected finite grey levels, got NaN"),
        (ring(3.0) / 255, "from 0 to 255, got at most 1. Do multiply by 255"),
    ],
)
def test_other_images_are_an_error(function: Callable, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(images)


def test_images_with_next_to_no_light_are_no_error() -> None:
    faint = torch.zeros(1, 28, 28)
    faint[0, 3, 3] = 1.0
    assert measure_intensity(faint) == 1.0
    assert measure_thickness(faint) == 0.0


@pytest.mark.parametrize(
    ("operation", "value", "message"),
    [
        (set_thickness, -0.1, "t: expected finite numbers from 0 to 28, got -0.1 to -0.1"),
        (set_thickness, torch.tensor([3.0, 29.0]), "t: expected .* from 0 to 28, got 3 to 29"),
        (set_thickness, math.nan, "t: expected finite numbers"),
        (set_intensity, math.inf, "i: expected finite numbers from 0"),
        (set_intensity, -1.0, "i: expected finite numbers from 0"),
        (
            set_intensity,
            torch.ones(2),
            r"i: expected a shape that broadcasts with \[3\].*got \[2\]",
        ),
    ],
)
def test_other_values_are_an_error(
    operation: Callable, value: Tensor | float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operation(ring(WIDTHS), value)


def test_thickness_without_scikit_image_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    with pytest.raises(ImportError, match=r"pip install pyro_causal\[datasets\]"):
        measure_thickness(ring(3.0))


# --- the program ----------------------------------------------------------------------------------

THICKNESS = torch.tensor([2.0, 2.6, 3.4])
INTENSITY = torch.tensor([90.0, 120.0, 250.0])


def observed(strokes: Tensor) -> Callable:
    return poutine.condition(morphomnist, {"t": THICKNESS.to(strokes), "i": INTENSITY.to(strokes)})


def values(program: Callable, strokes: Tensor) -> dict[str, Tensor]:
    nodes = poutine.trace(program).get_trace(strokes).nodes
    return {name: nodes[name]["value"] for name in ("t", "i", "x")}


def test_the_program_has_the_density_of_the_equations() -> None:
    trace = poutine.trace(observed(ring(WIDTHS).double())).get_trace(ring(WIDTHS).double())
    trace.compute_log_prob()
    expected_t = stats.gamma(10, scale=1 / 5).logpdf(THICKNESS.double() - 0.5)
    share = (INTENSITY.double() - 64) / 191
    noise = (torch.special.logit(share) - 2 * THICKNESS.double() + 5) / 0.5
    slope = 191 * share * (1 - share) * 0.5
    expected_i = stats.norm.logpdf(noise) - slope.log().numpy()
    np.testing.assert_allclose(trace.nodes["t"]["log_prob"], expected_t, atol=1e-6)
    np.testing.assert_allclose(trace.nodes["i"]["log_prob"], expected_i, atol=1e-6)
    assert trace.nodes["x"]["fn"].event_dim == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_the_program_follows_its_strokes(dtype: torch.dtype) -> None:
    drawn = values(morphomnist, ring(WIDTHS).to(dtype))
    real = torch.float32 if dtype == torch.uint8 else dtype
    assert (drawn["t"].dtype, drawn["i"].dtype, drawn["x"].dtype) == (real, real, dtype)
    assert drawn["t"].shape == drawn["i"].shape == (3,)
    assert drawn["x"].shape == (3, 1, 28, 28)


def test_the_program_nests_in_a_plate() -> None:
    with pyro.plate("draws", 2, dim=-2):
        assert morphomnist(ring(WIDTHS)).shape == (2, 3, 1, 28, 28)


def test_noise_of_the_intensity_is_abducted() -> None:
    found = values(worlds(observed(ring(WIDTHS)), [{"t": lambda t: t - 0.5}]), ring(WIDTHS))
    expected = 64 + 191 * (((INTENSITY - 64) / 191).logit() - 1).sigmoid()
    torch.testing.assert_close(found["i"], torch.stack([INTENSITY, expected]))


def test_worlds_are_the_true_counterfactual_images() -> None:
    strokes = ring(WIDTHS)
    actions = [{"t": lambda t: t + 1.0}, {"i": 180.0}, {"t": 2.5, "i": 200.0}]
    found = values(worlds(observed(strokes), actions), strokes)
    for w in range(4):
        expected = set_intensity(set_thickness(strokes, found["t"][w]), found["i"][w])
        assert torch.equal(found["x"][w], expected)
    assert torch.equal(found["x"][0], values(observed(strokes), strokes)["x"])
    assert found["t"][3].tolist() == [2.5] * 3
    assert found["i"][2].tolist() == [180.0] * 3


def test_intensity_leaves_the_shape_and_shares_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("stroke_mask", "change_thickness"):
        original = getattr(MODULE, name)
        monkeypatch.setattr(
            MODULE, name, lambda *args, f=original, n=name: calls.append(n) or f(*args)
        )
    strokes = ring(WIDTHS)
    found = values(worlds(observed(strokes), [{"i": 80.0}, {"i": 180.0}], dim=-2), strokes)
    assert found["t"].shape == (3,)
    assert sorted(calls) == ["change_thickness"] * 3 + ["stroke_mask"] * 3
    shape = measure_thickness(found["x"])
    torch.testing.assert_close(shape, shape[:1].expand(3, 3), atol=0.05, rtol=0)


def test_worlds_of_one_thickness_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = morphology.change_thickness
    monkeypatch.setattr(
        MODULE, "change_thickness", lambda m, steps: calls.append(steps) or original(m, steps)
    )
    set_thickness(ring(3.0)[None], torch.tensor([[2.05], [4.05], [2.05], [4.06]]))
    assert len(calls) == 2


def test_the_program_is_a_causal_graph() -> None:
    with pytest.warns(UserWarning, match="Python looks at the value"):
        graph = causal_graph(morphomnist, ring(WIDTHS), keep_deterministic=True)
    assert set(graph.directed) == {("t", "i"), ("t", "x"), ("i", "x")}


def test_an_intervention_reaches_the_image() -> None:
    changed = do(observed(ring(WIDTHS)), {"t": 4.0})
    torch.testing.assert_close(
        measure_thickness(values(changed, ring(WIDTHS))["x"]),
        torch.full((3,), 4.0),
        atol=0.2,
        rtol=0,
    )


# --- files ----------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the published formats, in which each row can be told."""
    path = tmp_path_factory.mktemp("data")
    (path / "morphomnist").mkdir()
    (path / "mnist").mkdir()
    rows = np.arange(10_000)
    images = np.zeros((10_000, 28, 28))
    images[:, 2, 3] = rows % 251
    (path / "mnist/t10k-images-idx3-ubyte.gz").write_bytes(idx(images))
    images[:, 2, 3] = rows % 249
    (path / "morphomnist/t10k-images-idx3-ubyte.gz").write_bytes(idx(images))
    (path / "morphomnist/t10k-labels-idx1-ubyte.gz").write_bytes(idx(rows % 10))
    for name, number in [("t10k", 10_000), ("train", 60_000)]:
        lines = "".join(f"{n},{n}.5,{2 * n}\n" for n in range(number))
        (path / f"morphomnist/{name}-morpho.csv").write_text("index,thickness,intensity\n" + lines)
    return path


@pytest.mark.parametrize(
    ("split", "first", "number"),
    [("train", 0, 8000), ("validation", 8000, 1000), ("test", 9000, 1000), ("all", 0, 10_000)],
)
def test_a_split_is_a_part_of_the_rows(folder: Path, split: str, first: int, number: int) -> None:
    data = load_morphomnist(split, path=folder)
    rows = torch.arange(first, first + number)
    assert torch.equal(data["t"], rows + 0.5)
    assert torch.equal(data["i"], 2.0 * rows)
    assert torch.equal(data["digit"], rows % 10)
    assert torch.equal(data["x"][:, 0, 2, 3], (rows % 249).float())
    assert torch.equal(data["strokes"][:, 0, 2, 3], (rows % 251).float())
    assert data["x"].shape == data["strokes"].shape == (number, 1, 28, 28)


def test_covariates_are_those_of_the_training_digits(folder: Path) -> None:
    data = load_morphomnist_covariates(path=folder)
    assert torch.equal(data["t"], torch.arange(60_000) + 0.5)
    assert torch.equal(data["i"], 2.0 * torch.arange(60_000))


def test_another_split_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="a split of train, validation, test, all, got 'val'"):
        load_morphomnist("val", path=folder)


def test_files_have_an_origin_and_a_checksum() -> None:
    for file in (MODULE.IMAGES, MODULE.LABELS, MODULE.TABLE, MODULE.TRAINING_TABLE, MODULE.STROKES):
        assert file.url.startswith("https://raw.githubusercontent.com/")
        assert file.url.endswith(file.name.removeprefix("mnist/"))
        assert len(bytes.fromhex(file.sha256)) == 32


# --- the published images -------------------------------------------------------------------------


@pytest.fixture
def digits(data_path: Callable[[str], Path]) -> dict[str, Tensor]:
    return load_morphomnist("validation", path=data_path("morphomnist").parent)


def test_published_files_have_their_checksums(data_path: Callable[[str], Path]) -> None:
    for file in (MODULE.IMAGES, MODULE.LABELS, MODULE.TABLE, MODULE.TRAINING_TABLE, MODULE.STROKES):
        assert hashlib.sha256(data_path(file.name).read_bytes()).hexdigest() == file.sha256


def reproduce(digits: dict[str, Tensor], number: int) -> None:
    """World 0 of the true model is the published image: to the digit, but for one in 800."""
    part = {name: value[:number] for name, value in digits.items()}
    model = poutine.condition(morphomnist, {"t": part["t"], "i": part["i"]})
    images = values(worlds(model, [{"i": 100.0}], dim=-2), part["strokes"])["x"]
    error = (images[0] - part["x"]).abs()
    assert (error.flatten(1).amax(1) > 0).sum() <= 1 + number / 400
    assert error.max() <= 1.0
    assert error.mean() < 1e-3


def test_the_true_model_reproduces_published_images(digits: dict[str, Tensor]) -> None:
    reproduce(digits, 60)


@pytest.mark.slow
def test_the_true_model_reproduces_all_published_images(digits: dict[str, Tensor]) -> None:
    reproduce(digits, 1000)


def test_published_images_measure_what_was_drawn(digits: dict[str, Tensor]) -> None:
    """To half a grey level for the truncation, and to a step of thickness."""
    t, i, x = (digits[name][:100] for name in ("t", "i", "x"))
    assert (measure_thickness(x) - t).abs().mean() < 0.15
    difference = measure_intensity(x) - i
    assert -0.55 < difference.mean() < -0.3
    assert difference.abs().max() < 3.5
