"""The brain-like phantom: its equations, its pictures, and what is read off them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pyro import poutine
from scipy import ndimage
from torch import Tensor
from torch.testing import assert_close

from pyro_causal import causal_graph, do, worlds
from pyro_causal.datasets import brain
from pyro_causal.datasets.brain import (
    BrainNoise,
    brain_image,
    brain_phantom,
    draw_brain_noise,
    measure_brain_volumes,
    sample_brain_phantom,
)
from pyro_causal.graph import ADMG
from pyro_causal.metrics import composition
from pyro_causal.noise import abduct
from pyro_causal.queries import counterfactual_function

# Mean change of b and v (ml), from 4 million draws of the equations in numpy, and mean absolute
# change of a pixel, from 4,000 subjects.
EFFECTS: list[tuple[dict[str, float], tuple[float, float, float]]] = [
    ({"a": 80.0}, (-58.24, 18.70, 4.09)),
    ({"a": 45.0}, (66.50, -13.63, 4.19)),
    ({"b": 1600.0}, (489.25, 13.44, 25.02)),
    ({"b": 800.0}, (-310.75, -8.60, 15.88)),
    ({"v": 110.0}, (0.0, 75.96, 5.01)),
    ({"v": 10.0}, (0.0, -24.04, 1.58)),
    ({"s": 0.0}, (-61.36, -1.69, 3.20)),
    ({"s": 1.0}, (66.53, 1.83, 3.36)),
]
ACTIONS = [action for action, _ in EFFECTS]
TABLE = ["s", "a", "b", "v"]


def still(subjects: int = 1, dtype: torch.dtype = torch.float64, **changed: float) -> BrainNoise:
    """No noise, but for what is named: upright, symmetric, without texture."""
    noise = draw_brain_noise(subjects, dtype=dtype)
    quiet = {name: torch.zeros_like(value) for name, value in noise._asdict().items()}
    quiet["gain"] += 1
    quiet["phase"] += math.pi / 2
    return BrainNoise(**{name: u + changed.get(name, 0.0) for name, u in quiet.items()})


def picture(b: float = 1110.0, v: float = 30.0, **changed: float) -> Tensor:
    """The image [64, 64] of one subject without noise, but for what is named."""
    volumes = torch.tensor([[b], [v]], dtype=torch.float64)
    return brain_image(*volumes, still(**changed))[0, 0]


def by_the_formula(b: float, v: float, noise: BrainNoise, subject: int) -> Tensor:
    """The image [64, 64], pixel by pixel."""

    def logistic(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    def turned(angle: float, x: float, y: float) -> tuple[float, float]:
        cos, sin = math.cos(angle), math.sin(angle)
        return cos * x + sin * y, -sin * x + cos * y

    th, cx, cy, ec, asym, gain = (u[subject].item() for u in noise[:6])
    waves = list(zip(*(u[subject].tolist() for u in noise[6:9]), strict=True))
    g = math.sqrt(b / 1110)
    r_x, r_y = 19 * g * math.exp(ec), 24 * g * math.exp(-ec)
    r = math.sqrt(r_x * r_y)
    image = torch.empty(64, 64, dtype=torch.float64)
    for row in range(64):
        for column in range(64):
            p, q = turned(th, column - 31.5 - cx, row - 31.5 - cy)
            P, Q = p / r_x, q / r_y
            rho = math.sqrt(P**2 + Q**2)
            inside, core = logistic((1 - rho) * r / 0.5), logistic((0.85 - rho) * r / 0.5)
            angles = [k * (P * math.cos(phi) + Q * math.sin(phi)) + psi for k, phi, psi in waves]
            tex = math.sqrt(2 / 10) * sum(map(math.cos, angles))
            base = inside * (110 + 60 * core + 10 * tex)
            m = []
            for side in (-1, 1):
                h = math.sqrt(v / 30) * math.sqrt(1 + side * asym)
                ax, ay = 2.2 * h, 4.34 * h
                u, w = turned(side * math.radians(12), p - side * (ax + 0.8), q + 1)
                edge = (1 - math.sqrt((u / ax) ** 2 + (w / ay) ** 2)) * math.sqrt(ax * ay)
                m.append(logistic(edge / 0.4))
            level = gain * (base * (1 - max(m)) + 35 * max(m))
            level += 3 * noise.pixel[subject, row, column].item() * inside
            image[row, column] = math.floor(min(max(level, 0), 255))
    return image


def imagine(actions: Sequence[dict[str, float]], noise: BrainNoise, seen: Any) -> dict[str, Tensor]:
    """All worlds of subjects who are seen in the factual one."""
    evidence = {name: seen[name] for name in TABLE}
    return poutine.condition(worlds(brain_phantom, actions), evidence)(noise)


@pytest.fixture
def without_images(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], BrainNoise]:
    """Makes the images of many subjects cheap: black, of noise that takes no memory."""
    monkeypatch.setattr(brain, "brain_image", lambda b, v, noise: (0 * (b + v))[..., *[None] * 3])
    one = still(dtype=torch.float64)
    return lambda n: BrainNoise(*(u.expand(n, *u.shape[1:]) for u in one))


# The program


def test_a_population_is_as_described(without_images: Callable[[int], BrainNoise]) -> None:
    table = brain_phantom(without_images(200_000))
    s, a, b, v = (table[name] for name in TABLE)
    assert s.mean().item() == pytest.approx(0.48, abs=5e-3)
    assert (a.mean().item(), a.std().item()) == pytest.approx((63.24, 6.73), abs=0.06)
    assert (b.mean().item(), b.std().item()) == pytest.approx((1110.7, 107.9), abs=1)
    assert (b[s == 0].mean().item(), b[s == 1].mean().item()) == pytest.approx(
        (1049.4, 1177.2), abs=1.2
    )
    quantiles = [v.quantile(level).item() for level in (0.01, 0.5, 0.99)]
    assert quantiles == pytest.approx([11.43, 31.05, 84.0], rel=0.015)
    correlation = torch.corrcoef(torch.stack([s, a, b, v.log()]))
    found = [correlation[i, j].item() for i, j in ((1, 2), (1, 3), (2, 3), (0, 2))]
    assert found == pytest.approx([-0.22, 0.42, 0.10, 0.59], abs=0.01)


def test_mean_log_densities_are_the_limits(without_images: Callable[[int], BrainNoise]) -> None:
    trace = poutine.trace(brain_phantom).get_trace(without_images(200_000))
    trace.compute_log_prob()
    found = [trace.nodes[name]["log_prob"].mean().item() for name in TABLE]
    assert found == pytest.approx([-0.6923, -3.2945, -5.8368, -3.8863], abs=8e-3)


def test_effects_on_the_volumes(without_images: Callable[[int], BrainNoise]) -> None:
    seen = worlds(brain_phantom, ACTIONS)(without_images(50_000))
    for k, (action, expected) in enumerate(EFFECTS, 1):
        for name, mean in zip("bv", expected[:2], strict=True):
            require_mean(seen[name][k] - seen[name][0], mean, what=f"{name} under {action}")


def test_effects_on_the_image() -> None:
    seen = worlds(brain_phantom, ACTIONS)(draw_brain_noise(150))
    for k, (action, (*_, mean)) in enumerate(EFFECTS, 1):
        change = (seen["x"][k] - seen["x"][0]).abs().mean((1, 2, 3))
        require_mean(change, mean, what=f"x under {action}")


def require_mean(draws: Tensor, expected: float, *, what: str) -> None:
    """Within four standard errors, and the rounding of what is expected."""
    margin = 4 * draws.std().item() / len(draws) ** 0.5 + 0.01
    assert draws.mean().item() == pytest.approx(expected, abs=margin), what


def test_sites_have_their_shapes() -> None:
    trace = poutine.trace(brain_phantom).get_trace(draw_brain_noise(3))
    for name in [*TABLE, "x"]:
        fn = trace.nodes[name]["fn"]
        assert (fn.batch_shape, fn.event_shape) == ((3,), (1, 64, 64) if name == "x" else ())
        assert [frame.name for frame in trace.nodes[name]["cond_indep_stack"]] == ["subjects"]


def test_noise_is_abducted_exactly() -> None:
    trace = poutine.trace(brain_phantom).get_trace(draw_brain_noise(50, dtype=torch.float64))
    s, a, b, v = (trace.nodes[name]["value"] for name in TABLE)
    e_b = (b / 1110).log() - 0.115 * (s - 0.48) + 0.0032 * (a - 62)
    e_v = (v / 30).log() - 0.030 * (a - 62) - 0.9 * (b / 1110).log()
    e_a = (((a - 45) / 35).logit() - 0.1) / 0.9
    for name, expected in {"a": e_a, "b": e_b / 0.075, "v": e_v / 0.38}.items():
        assert_close(abduct(trace.nodes[name]["fn"], trace.nodes[name]["value"]), expected)


def test_worlds_are_interventions_one_by_one() -> None:
    seen, noise = sample_brain_phantom(8)
    together = imagine(ACTIONS, noise, seen)
    for k, action in enumerate(ACTIONS, 1):
        alone = imagine([action], noise, seen)
        for name, value in alone.items():
            everywhere = together[name].expand(9, *seen[name].shape)
            assert torch.equal(value.expand(2, *seen[name].shape)[1], everywhere[k])
        assert torch.equal(alone["x"][0], seen["x"])
    for k, volumes in enumerate(zip(together["b"], together["v"], strict=True)):
        assert torch.equal(together["x"][k], brain_image(*volumes, noise))
    intervened = do(brain_phantom, {"b": 800.0, "v": 20.0})(noise)
    volumes = torch.full((8,), 800.0), torch.full((8,), 20.0)
    assert torch.equal(intervened["x"], brain_image(*volumes, noise))


def test_nothing_but_descendants_changes() -> None:
    seen, noise = sample_brain_phantom(4)
    for target, reached in {"v": "vx", "b": "bvx", "a": "abvx", "s": "sbvx"}.items():
        found = imagine(
            [{target: seen[target] + 1 if target != "s" else 1 - seen["s"]}], noise, seen
        )
        for name, value in found.items():
            if name in reached:
                assert not torch.equal(value[1], seen[name]), (target, name)
            else:
                assert torch.equal(value, seen[name]), (target, name)


def test_a_null_intervention_changes_nothing() -> None:
    seen, noise = sample_brain_phantom(4)
    function = counterfactual_function(brain_phantom, arguments=lambda evidence: (noise,))
    evidence = {name: seen[name] for name in TABLE}
    assert torch.equal(function(evidence, {"b": seen["b"]})["x"], seen["x"])
    for distance in composition(function, evidence, targets=["a"]).values():
        assert distance.max() < 1e-4


def test_the_graph_is_that_of_the_paper() -> None:
    edges = [("s", "b"), ("a", "b"), ("a", "v"), ("b", "v"), ("b", "x"), ("v", "x")]
    found = causal_graph(brain_phantom, draw_brain_noise(2), keep_deterministic=True)
    assert found == ADMG(directed=edges)


# The image


def test_the_image_is_the_formula_pixel_by_pixel() -> None:
    noise = draw_brain_noise(3, dtype=torch.float64)
    noise = noise._replace(rotation=5 * noise.rotation, asymmetry=2 * noise.asymmetry)
    b, v = torch.tensor([[1500.0, 1000.0, 850.0], [12.0, 40.0, 110.0]], dtype=torch.float64)
    x = brain_image(b, v, noise)
    for n in range(3):
        assert torch.equal(x[n, 0], by_the_formula(b[n].item(), v[n].item(), noise, n))


def test_most_pixels_are_zero_and_none_is_clipped_above() -> None:
    seen, _ = sample_brain_phantom(300)
    assert (seen["x"] == 0).float().mean().item() == pytest.approx(0.57, abs=0.015)
    assert torch.equal(seen["x"], seen["x"].floor())
    assert 180 < seen["x"].max() < 255


def test_columns_go_right_and_rows_go_down() -> None:
    assert torch.equal(picture(shift_x=3.0), picture().roll(3, 1))
    assert torch.equal(picture(shift_y=3.0), picture().roll(3, 0))
    assert torch.equal(picture(), picture().flip(1))
    assert (picture(elongation=0.1) > 0).any(0).sum() > (picture() > 0).any(0).sum()
    assert (picture(elongation=0.1) > 0).any(1).sum() < (picture() > 0).any(1).sum()
    assert picture(gain=0.1)[32, 50] == pytest.approx(1.1 * picture()[32, 50], abs=1)


def test_the_head_turns_clockwise() -> None:
    turned = picture(rotation=math.radians(30), v=1e-6)
    columns = torch.arange(64.0, dtype=torch.float64) - 31.5
    top = turned[:20]
    assert ((top * columns).sum() / top.sum()).item() > 2
    rotated = ndimage.rotate(picture(v=1e-6).numpy(), -30, reshape=False, order=1)
    assert (turned - torch.from_numpy(rotated)).abs().mean() < 1


def test_ventricles_part_upwards_and_the_right_one_grows_with_asymmetry() -> None:
    dark = picture(v=80.0)[20:44, 20:44] < 100
    rows, columns = dark.nonzero().double().unbind(1)
    off_midline = (columns - 11.5).abs()
    assert off_midline[rows < 8].mean() > off_midline[rows > 13].mean() + 1
    dark = picture(v=80.0, asymmetry=0.3)[20:44, 20:44] < 100
    assert dark[:, 12:].sum() > 1.5 * dark[:, :12].sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_follow_the_factory_or_the_default(dtype: torch.dtype) -> None:
    seen, noise = sample_brain_phantom(3, dtype=dtype)
    assert {u.dtype for u in (*seen.values(), *noise)} == {dtype}
    assert {u.dtype for u in measure_brain_volumes(seen["x"]).values()} == {dtype}
    torch.set_default_dtype(dtype)
    assert draw_brain_noise(1).pixel.dtype == dtype


def test_single_precision_hardly_matters() -> None:
    seen, noise = sample_brain_phantom(20, dtype=torch.float64)
    single = brain_image(
        seen["b"].float(), seen["v"].float(), BrainNoise(*(u.float() for u in noise))
    )
    wrong = (single - seen["x"]).abs()
    assert wrong.max() <= 1
    assert wrong.mean() < 1e-4


def test_leading_axes_are_worlds_and_the_chunks_do_not_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = draw_brain_noise(5)
    b, v = 800 + 800 * torch.rand(2, 3, 5), 10 + 90 * torch.rand(3, 1)
    x = brain_image(b, v, noise)
    assert x.shape == (2, 3, 5, 1, 64, 64)
    assert torch.equal(x[1, 2], brain_image(b[1, 2], v[2].expand(5), noise))
    one = noise.select(torch.tensor([4]))
    assert torch.equal(x[..., 4:, :, :, :], brain_image(b[..., 4:], v, one))
    monkeypatch.setattr(brain, "CHUNK", 7)
    assert torch.equal(x, brain_image(b, v, noise))


def test_noise_has_its_law() -> None:
    noise = draw_brain_noise(4000)
    scales = [math.radians(4), 1, 1, 0.04, 0.10, 0.05]
    for u, scale in zip(noise[:6], scales, strict=True):
        assert u.std().item() == pytest.approx(scale, rel=0.05)
    assert noise.gain.mean().item() == pytest.approx(1, abs=0.005)
    assert noise.pixel.std().item() == pytest.approx(1, abs=0.005)
    for u, (low, high) in zip(
        noise[6:9], [(4, 9), (0, 2 * math.pi), (0, 2 * math.pi)], strict=True
    ):
        assert u.shape == (4000, 10)
        assert low <= u.min() < low + 0.01 < high - 0.01 < u.max() <= high


def test_no_gradient_is_recorded() -> None:
    b = torch.tensor([1110.0], requires_grad=True)
    assert not brain_image(b, torch.tensor([30.0]), draw_brain_noise(1)).requires_grad


def test_volumes_that_do_not_fit_the_noise() -> None:
    with pytest.raises(
        ValueError, match=r"\[\*batch, 4\] for the noise of 4 subjects.*noise.select"
    ):
        brain_image(torch.ones(3), torch.ones(3), draw_brain_noise(4))


# The oracle


def errors(x: Tensor, seen: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    found = measure_brain_volumes(x)
    return found["b"] - seen["b"], found["v"] - seen["v"]


def test_volumes_are_read_off_images() -> None:
    seen, _ = sample_brain_phantom(400)
    for error, truth, spread, r in zip(
        errors(seen["x"], seen), (seen["b"], seen["v"]), (4.0, 1.35), (0.999, 0.994), strict=True
    ):
        assert abs(error.mean().item()) < 0.2 * spread
        assert error.std().item() == pytest.approx(spread, rel=0.15)
        assert torch.corrcoef(torch.stack([truth, truth + error]))[0, 1] > r


def test_volumes_are_read_off_images_of_all_worlds() -> None:
    seen = worlds(brain_phantom, ACTIONS)(draw_brain_noise(60))
    found = measure_brain_volumes(seen["x"])
    for name, bias, spread in (("b", 2.0, 6.0), ("v", 0.8, 2.3)):
        assert found[name].shape == (9, 60)
        error = found[name] - seen[name]
        assert error.mean(1).abs().max() < bias
        assert error.std(1).max() < spread


def test_grey_level_noise_and_blur_are_borne() -> None:
    seen, _ = sample_brain_phantom(200)
    noisy = (seen["x"] + 5 * torch.randn_like(seen["x"])).clamp(0, 255)
    on_b, on_v = errors(noisy, seen)
    for error, bias, spread in ((on_b, 1.5, 5.0), (on_v, 0.4, 1.6)):
        assert error.mean().abs() < bias
        assert error.std() < spread
    blurred = ndimage.gaussian_filter(noisy.numpy(), 0.7, axes=(-2, -1))
    on_b, on_v = errors(torch.from_numpy(blurred), seen)
    assert on_b.mean().abs() < 2
    assert on_v.mean().item() == pytest.approx(-1.5, abs=0.4)


def test_the_gain_does_not_matter() -> None:
    for gain in (-0.15, 0.0, 0.15):
        found = measure_brain_volumes(picture(gain=gain)[None])
        assert found["b"].item() == pytest.approx(1110, abs=8)
        assert found["v"].item() == pytest.approx(30, abs=2.5)


def test_whole_numbers_and_black_images_are_measured() -> None:
    x = picture()[None]
    assert_close(measure_brain_volumes(x.byte())["b"].double(), measure_brain_volumes(x)["b"])
    nothing = measure_brain_volumes(torch.zeros(2, 3, 1, 64, 64))
    assert nothing["b"].shape == (2, 3)
    assert max(nothing["b"].abs().max(), nothing["v"].abs().max()) < 1


@pytest.mark.parametrize("shape", [(64, 64), (5, 64, 64), (5, 3, 64, 64), (5, 1, 32, 32)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \[\*batch, 1, 64, 64\].*unsqueeze"):
        measure_brain_volumes(torch.zeros(shape))
