"""What the parents move in an image: zooms, flows, and the mechanism that draws through them."""

import math

import pytest
import torch
from torch import Tensor, nn

from pyro_causal._recipe import build, describe
from pyro_causal.mechanisms import AmortisedExplicit, ConditionalWarp, ConditionalZoom
from pyro_causal.noise import abduct, predict


def zoom_by(factor: float) -> ConditionalZoom:
    """A zoom by `factor` for each unit of its one feature."""
    zoom = ConditionalZoom(1)
    with torch.no_grad():
        zoom.network.net[0].weight.fill_(math.log(factor))
    return zoom


def disks(radius: Tensor) -> Tensor:
    """Smooth disks ``[B, 1, 64, 64]``."""
    axis = torch.arange(64.0) - 31.5
    distance = torch.hypot(axis[:, None], axis)
    return torch.sigmoid(radius[:, None, None, None] - distance)


def test_a_zoom_multiplies_lengths_by_its_factor() -> None:
    context = torch.tensor([[0.0], [1.0], [2.0], [-1.0]])
    zoomed = zoom_by(1.25)(disks(torch.full((4,), 12.0)), context)
    area = zoomed.sum((1, 2, 3))
    assert torch.allclose(area / area[0], 1.25 ** (2 * context[:, 0]), rtol=0.02)


def test_a_zoom_can_be_undone() -> None:
    zoom, context = zoom_by(1.2), torch.tensor([[1.0], [-1.0]])
    images = disks(torch.tensor([10.0, 14.0]))
    error = (zoom.undo(zoom(images, context), context) - images).abs()
    assert error.mean() < 0.01
    assert error.mean() < 0.2 * (zoom(images, context) - images).abs().mean()


def test_what_a_zoom_brings_in_from_outside_is_dark() -> None:
    shrunk = zoom_by(0.5)(torch.ones(1, 2, 8, 8), torch.ones(1, 1))
    assert torch.equal(shrunk[..., 0, :], torch.zeros(1, 2, 8))
    assert torch.allclose(shrunk[..., 3:5, 3:5], torch.ones(1, 2, 2, 2))


@pytest.mark.parametrize("kind", [ConditionalZoom, ConditionalWarp])
def test_a_fine_canvas_is_read_at_the_pixels_of_the_image(kind: type[ConditionalZoom]) -> None:
    canvas, still = torch.rand(2, 1, 12, 16), torch.zeros(2, 1)
    image = kind(1, fineness=2)(canvas, still)
    torch.testing.assert_close(image, nn.functional.avg_pool2d(canvas, 2), atol=1e-5, rtol=0)
    assert kind(1, fineness=2).undo(image, still).shape == image.shape


def test_what_is_enlarged_on_a_fine_canvas_stays_sharp() -> None:
    axis = torch.arange(128.0) - 63.5
    distance = torch.hypot(axis[:, None], axis)[None, None]
    fine, zoom = torch.sigmoid(2 * (8.0 - distance)), zoom_by(2.0)
    blurred = zoom(nn.functional.avg_pool2d(fine, 2), torch.ones(1, 1))
    zoom.fineness = 2
    sharp = zoom(fine, torch.ones(1, 1))
    slope = [(image[..., 1:] - image[..., :-1]).abs().max() for image in (sharp, blurred)]
    assert slope[0] > 1.2 * slope[1]
    assert torch.allclose(sharp.sum(), blurred.sum(), rtol=0.02)


@pytest.mark.parametrize("kind", [ConditionalZoom, ConditionalWarp])
def test_no_finer_canvas(kind: type[ConditionalZoom]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}: expected a fineness of 1 or more, go"):
        kind(1, fineness=0)
    with pytest.raises(ValueError, match=r"expected a canvas of 2 times the size .* got 7 x 8\. D"):
        kind(1, fineness=2)(torch.zeros(1, 1, 7, 8), torch.zeros(1, 1))


# --- a warp ---------------------------------------------------------------------------------------


def linear_warp(*rates: float) -> ConditionalWarp:
    """A warp whose fields grow linearly from the middle; a spline's knots reproduce a line."""
    warp = ConditionalWarp(len(rates))
    knots = (torch.arange(10) - 4.5) * 2 / 7
    with torch.no_grad():
        for velocity, rate in zip(warp.velocity, rates, strict=True):
            velocity[0] = rate * knots
            velocity[1] = rate * knots[:, None]
    return warp


def bump_warp() -> ConditionalWarp:
    """A warp with smooth fields of no particular form."""
    warp = ConditionalWarp(2)
    torch.manual_seed(0)
    with torch.no_grad():
        warp.velocity.normal_(0.0, 0.05)
    return warp


def test_a_linear_field_stretches_exponentially() -> None:
    context = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [2.0, 1.0]])
    area = linear_warp(0.2, 0.1)(disks(torch.full((4,), 12.0)), context).sum((1, 2, 3))
    rate = context @ torch.tensor([0.2, 0.1])
    torch.testing.assert_close(area / area[0], (2 * rate).exp(), rtol=0.03, atol=0)


def test_parts_move_by_themselves() -> None:
    warp, images = ConditionalWarp(1), disks(torch.tensor([4.0])).roll((-16, -16), (2, 3))
    images = images + disks(torch.tensor([4.0])).roll((16, 16), (2, 3))
    with torch.no_grad():
        warp.velocity[0, 0, :5, :6] = 0.2  # to the right, in the upper left
    moved = warp(images, torch.ones(1, 1))
    columns = torch.arange(64.0)
    for corner, shift in ((slice(0, 32), 6.4), (slice(32, 64), 0.0)):
        before, after = (x[0, 0, corner, corner].sum(0) for x in (images, moved))
        middles = [(x * columns[corner]).sum() / x.sum() for x in (before, after)]
        assert (middles[1] - middles[0]).item() == pytest.approx(shift, abs=0.2)


def test_a_warp_can_be_undone() -> None:
    warp, images = bump_warp(), disks(torch.tensor([10.0, 14.0]))
    context = torch.tensor([[1.0, -1.0], [-1.0, 2.0]])
    with torch.no_grad():
        warp.network.net[0].weight.fill_(math.log(1.1))
        back = warp.undo(warp(images, context), context)
        assert (back - images).abs().mean() < 0.1 * (warp(images, context) - images).abs().mean()


def test_twice_as_far_is_the_same_way_twice() -> None:
    warp, image = bump_warp(), disks(torch.tensor([14.0]))
    once = torch.tensor([[0.7, -0.5]])
    with torch.no_grad():
        far, twice = warp(image, 2 * once), warp(warp(image, once), once)
        assert (far - twice).abs().mean() < 0.1 * (far - image).abs().mean()


def test_images_need_not_be_square() -> None:
    image = torch.rand(3, 2, 16, 24)
    assert linear_warp(0.1)(image, torch.ones(3, 1)).shape == image.shape


def test_every_parameter_of_a_warp_gets_a_gradient() -> None:
    warp, image = ConditionalWarp(2), disks(torch.tensor([10.0, 14.0]))
    (warp(image, torch.randn(2, 2)) - image.roll(2, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in warp.parameters())


def test_a_warp_in_double_precision_and_from_its_recipe() -> None:
    warp = ConditionalWarp(2, knots=6).double()
    again = build(describe(warp), classes=[]).double()
    again.load_state_dict(warp.state_dict())
    image, context = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.ones(2, 2).double()
    moved = again(image, context)
    assert moved.dtype == torch.float64
    torch.testing.assert_close(moved, warp(image, context), rtol=0, atol=0)


def test_too_few_knots() -> None:
    with pytest.raises(ValueError, match="expected four knots or more, got 3"):
        ConditionalWarp(1, knots=3)


# --- in a mechanism -------------------------------------------------------------------------------


def test_a_mechanism_draws_what_its_geometry_places() -> None:
    class Seen(nn.Module):
        """An encoder that keeps what it is shown."""

        def forward(self, y: Tensor, context: Tensor) -> Tensor:
            self.y = y
            return torch.zeros(len(y), 2)

    class Disk(nn.Module):
        """A decoder that always draws the same."""

        def forward(self, z: Tensor, context: Tensor) -> Tensor:
            return disks(torch.full((len(z),), 12.0))

    image = AmortisedExplicit(
        Seen(),
        Disk(),
        latent=1,
        event_shape=(1, 64, 64),
        parents=1,
        scale=0.1,
        geometry=zoom_by(1.25),
    )
    parent, z = torch.tensor([0.0, 1.0]), torch.zeros(2, 1)
    loc = image(z, parent).base_dist.base_dist.loc
    area = loc.sum((1, 2, 3))
    assert (area[1] / area[0]).item() == pytest.approx(1.25**2, rel=0.02)
    image.posterior(loc, parent)
    seen = image.encoder.y.sum((1, 2, 3))
    assert (seen[1] / seen[0]).item() == pytest.approx(1.0, rel=0.02)
    noisy = loc[:1] + 0.1 * torch.randn(1, 1, 64, 64)  # the residual stays where it is
    there = predict(image(z[:1], parent[1:]), abduct(image(z[:1], parent[:1]), noisy))
    torch.testing.assert_close(there - loc[1:], noisy - loc[:1], atol=1e-5, rtol=0)


def test_a_decoder_must_draw_as_finely_as_its_geometry_reads() -> None:
    class Small(nn.Module):
        """A decoder that knows of no canvas."""

        def forward(self, z: Tensor, context: Tensor) -> Tensor:
            return z.new_zeros(len(z), 1, 8, 8)

    geometry = ConditionalZoom(1, fineness=2)
    image = AmortisedExplicit(
        nn.Identity(), Small(), latent=1, event_shape=(1, 8, 8), parents=1, geometry=geometry
    )
    with pytest.raises(ValueError, match=r"Small returns \(3, 1, 8, 8\): expected \(3, 1, 16, 16"):
        image(torch.zeros(3, 1), torch.zeros(3))
