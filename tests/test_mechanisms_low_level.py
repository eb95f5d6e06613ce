"""The invertible part below a decoder: inverses, slopes, tails, and what a scale depends on."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import TransformedDistribution
from torch.distributions.transforms import IndependentTransform

from pyro_causal.mechanisms import (
    ConditionalScale,
    SoftLogitTransform,
)
from pyro_causal.mechanisms.low_level import SpreadTransform

SOFTNESS = [0.003, 0.03, 0.3, 3.0]
every_softness = pytest.mark.parametrize("softness", SOFTNESS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
GRID = torch.linspace(-10, 10, 4001, dtype=torch.float64)
TAILS = torch.tensor([1e2, 1e4, 1e8, 1e15, 1e30], dtype=torch.float64)
TAILS = torch.cat([-TAILS.flip(0), TAILS])


# --- SoftLogitTransform ---------------------------------------------------------------------------


@every_softness
def test_the_formula(softness: float) -> None:
    y = torch.tensor([-3.0, 0.0, 0.2, 0.5, 1.0, 40.0], dtype=torch.float64)
    expected = [
        (math.asinh(v / softness) - math.asinh((1 - v) / softness)) / math.asinh(1 / softness)
        for v in y.tolist()
    ]
    w = SoftLogitTransform(softness)(y)
    torch.testing.assert_close(w, torch.tensor(expected, dtype=torch.float64))
    assert w[[1, 3, 4]].tolist() == pytest.approx([-1, 0, 1], abs=1e-12)


@every_softness
def test_inverse(softness: float) -> None:
    t = SoftLogitTransform(softness)
    torch.testing.assert_close(t.inv(t(GRID)), GRID, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(t(t.inv(GRID)), GRID, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(t.inv(t(TAILS)), TAILS, rtol=1e-9, atol=0)


@every_softness
def test_inverse_in_single_precision(softness: float) -> None:
    t, y = SoftLogitTransform(softness), GRID.float()
    near = (y > -1) & (y < 2)
    torch.testing.assert_close(t.inv(t(y[near])), y[near], rtol=0, atol=2e-6)
    torch.testing.assert_close(t.inv(t(y)), y, rtol=3e-6, atol=2e-6)
    torch.testing.assert_close(t.inv(t(TAILS.float())), TAILS.float(), rtol=1e-4, atol=0)


@every_softness
def test_slope(softness: float) -> None:
    t = SoftLogitTransform(softness)
    y = torch.cat([GRID, TAILS]).requires_grad_()
    w = t(y)
    (slope,) = torch.autograd.grad(w.sum(), y)
    torch.testing.assert_close(t.log_abs_det_jacobian(y, w), slope.log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(t.inv.log_abs_det_jacobian(w, y), -slope.log())


@every_softness
@both_dtypes
def test_it_increases(softness: float, dtype: torch.dtype) -> None:
    y = torch.cat([TAILS[:5], GRID[::10], TAILS[5:]]).to(dtype)
    assert (SoftLogitTransform(softness)(y).diff() > 0).all()
    assert (SoftLogitTransform(softness).inv(GRID[::10].to(dtype)).diff() > 0).all()
    assert SoftLogitTransform(softness).sign == 1


def test_it_is_odd_about_the_middle() -> None:
    t = SoftLogitTransform(0.1)
    torch.testing.assert_close(t(1 - GRID), -t(GRID))


def test_it_becomes_the_logit() -> None:
    y = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for softness in (1e-4, 1e-6):
        w = SoftLogitTransform(softness)(y) * math.asinh(1 / softness)
        torch.testing.assert_close(w, y.logit(), atol=softness**2 * 3e4, rtol=0)


@every_softness
def test_single_precision_is_finite(softness: float) -> None:
    t = SoftLogitTransform(softness)
    y = torch.cat([GRID.float(), TAILS.float(), -GRID.float() * 1e-30]).requires_grad_()
    w = t(y)
    slope = t.log_abs_det_jacobian(y, w)
    (gradient,) = torch.autograd.grad((w + slope).sum(), y)
    for result in (w, slope, gradient):
        assert result.isfinite().all()
    near = (y > -10) & (y < 10)
    exact = SoftLogitTransform(softness).log_abs_det_jacobian(y.double(), w.double())
    torch.testing.assert_close(slope[near], exact[near].float(), rtol=1e-5, atol=1e-5)
    v = torch.linspace(-15, 15, 301).requires_grad_()
    (gradient,) = torch.autograd.grad(t.inv(v).sum(), v)
    assert t.inv(v).isfinite().all()
    assert gradient.isfinite().all()


def test_as_a_part_of_a_density() -> None:
    d = TransformedDistribution(
        dist.Normal(torch.tensor(0.3, dtype=torch.float64), 0.5), [SoftLogitTransform(0.1).inv]
    )
    y = torch.linspace(-6, 7, 20_001, dtype=torch.float64)
    assert torch.trapezoid(d.log_prob(y).exp(), y).item() == pytest.approx(1, abs=1e-4)


def test_cache() -> None:
    t = SoftLogitTransform(0.1).with_cache()
    y = torch.rand(3)
    assert t.inv(t(y)) is y
    assert t.with_cache(0).inv(t(y)) is not y
    assert (t.softness, t) == (0.1, SoftLogitTransform(0.1))


def test_equality() -> None:
    one, same, other = SoftLogitTransform(0.1), SoftLogitTransform(0.1), SoftLogitTransform(0.2)
    assert one == same
    assert one != other
    assert one != 0.1
    assert len({one, same, other}) == 2
    assert one.inv.inv == same
    assert copy.deepcopy(one) == one


@pytest.mark.parametrize("softness", [0.0, -1.0, math.nan])
def test_wrong_softness(softness: float) -> None:
    with pytest.raises(ValueError, match=f"a positive softness, got {softness}. Give a part of"):
        SoftLogitTransform(softness)


# --- SpreadTransform ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2, 3), (4, 1, 1), (5, 4, 2, 3)], ids=str)
def test_spread(shape: tuple[int, ...]) -> None:
    t, x = SpreadTransform(shape), torch.randn(4, 2, 3)
    y = t(x)
    assert y.shape == torch.broadcast_shapes(shape, x.shape)
    assert torch.equal(y, x.expand(y.shape))
    assert t.inv(y) is y
    assert torch.equal(t.log_abs_det_jacobian(x, y), torch.zeros(y.shape))
    assert t.sign == 1 and t.with_cache(0).shape == shape
    cached = t.with_cache()
    assert cached(x) is cached(x)


# --- ConditionalScale -----------------------------------------------------------------------------


def log_scale(context: Tensor) -> Tensor:
    return 0.3 * context[..., 0] - 0.2 * context[..., 1]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, context: Tensor) -> Tensor:
        self.calls += 1
        return log_scale(context).unsqueeze(-1)


def scale(event_dim: int = 3, softness: float | None = None) -> ConditionalScale:
    return ConditionalScale(2, event_dim=event_dim, hidden=Linear(), softness=softness)


@pytest.mark.parametrize("batch", [(), (5,), (3, 5), (4, 1, 5)])
@pytest.mark.parametrize("softness", [None, 0.1])
def test_shapes_and_values(batch: tuple[int, ...], softness: float | None) -> None:
    context, x = torch.randn(*batch, 2), torch.rand(*batch, 1, 4, 6)
    low_level = scale(softness=softness)
    t = low_level(context)
    w = t(x)
    ratio = x / log_scale(context).exp()[..., None, None, None]
    expected = ratio if softness is None else SoftLogitTransform(softness)(ratio)
    torch.testing.assert_close(w, expected)
    torch.testing.assert_close(t.inv(w), x)
    assert low_level.network.net.calls == 1


@pytest.mark.parametrize("softness", [None, 0.1])
def test_slopes(softness: float | None) -> None:
    t = scale(softness=softness)(torch.randn(3, 5, 2, dtype=torch.float64))
    x = torch.rand(3, 5, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(t(x).sum(), x)
    torch.testing.assert_close(t.log_abs_det_jacobian(x, t(x)), slope.log())
    whole = IndependentTransform(t, 3)
    torch.testing.assert_close(whole.log_abs_det_jacobian(x, t(x)), slope.log().sum((-1, -2, -3)))


@pytest.mark.parametrize("softness", [None, 0.1])
def test_values_that_the_worlds_or_particles_share(softness: float | None) -> None:
    """Contexts `[3, 5]` over values `[5]`, and the other way round."""
    low_level = scale(softness=softness)
    context, x = torch.randn(3, 5, 2), torch.rand(5, 1, 2, 2)
    for c, v in ((context, x), (context[0], x.expand(3, -1, -1, -1, -1)), (context[0, 0], x)):
        t = IndependentTransform(low_level(c), 3)
        w = t(v)
        whole = torch.broadcast_shapes(c.shape[:-1], v.shape[:-3])
        full = IndependentTransform(low_level(c.expand(*whole, 2)), 3)
        expected = full.log_abs_det_jacobian(v.expand(w.shape), w)
        assert w.shape == (*whole, 1, 2, 2)
        torch.testing.assert_close(t.log_abs_det_jacobian(v, w), expected)
        torch.testing.assert_close(t.inv.log_abs_det_jacobian(w, t.inv(w)), -expected)


def test_it_starts_at_the_data() -> None:
    data = torch.rand(50, 1, 4, 4)
    low_level = ConditionalScale(2, event_dim=3, softness=None)
    assert low_level.set_normalisation(data) is low_level
    peak = data.abs().amax((1, 2, 3)).mean()
    t = low_level(torch.randn(3, 2))
    torch.testing.assert_close(t(torch.ones(3, 1, 4, 4)), torch.ones(3, 1, 4, 4) / peak)
    assert "log_scale" in low_level.state_dict()
    assert "log_scale" not in dict(low_level.named_parameters())
    batched = ConditionalScale(2, event_dim=3).set_normalisation(data.reshape(5, 10, 1, 4, 4))
    torch.testing.assert_close(batched.log_scale, low_level.log_scale)


def test_signed_data() -> None:
    data = -torch.rand(50, 7)
    low_level = ConditionalScale(0, event_dim=1).set_normalisation(data)
    torch.testing.assert_close(low_level.log_scale.exp(), -data.amin(1).mean())


def test_data_without_a_scale() -> None:
    with pytest.raises(ValueError, match="ConditionalScale: all data are zero: expected"):
        ConditionalScale(0, event_dim=1).set_normalisation(torch.zeros(3, 4))


def test_a_root_has_one_factor() -> None:
    low_level = ConditionalScale(0, event_dim=1, softness=None)
    with torch.no_grad():
        low_level.network.bias += math.log(2)
    t = low_level(torch.zeros(0))
    torch.testing.assert_close(t(torch.ones(5, 3)), torch.full((5, 3), 0.5))


def test_every_parameter_gets_a_gradient() -> None:
    low_level = ConditionalScale(2, event_dim=1, hidden=(4,))
    with torch.no_grad():
        for parameter in low_level.parameters():
            parameter += 0.1
    t = low_level(torch.randn(5, 2))
    x = torch.rand(5, 3)
    t.log_abs_det_jacobian(x, t(x)).sum().backward()
    for name, parameter in low_level.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_double_precision() -> None:
    low_level = ConditionalScale(2, event_dim=1).to(torch.float64)
    context, x = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    t = low_level.set_normalisation(x)(context)
    assert t(x).dtype == torch.float64
    torch.testing.assert_close(t.inv(t(x)), x, rtol=1e-13, atol=1e-13)
