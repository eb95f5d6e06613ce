r"""A brain-like phantom: images of a head with ventricles whose every cause is known.

The graph is that of the brain example of *Deep structural causal models*: sex :math:`s` (1: male)
and age :math:`a` in years cause the brain volume :math:`b`; age and brain volume cause the volume
of the ventricles :math:`v`; the two volumes, in ml, and nothing else shape the image :math:`x`.

.. math::

    s &\sim \mathrm{Bernoulli}(0.48), \qquad
    a = 45 + 35 \, \sigma(0.1 + 0.9 \, \epsilon_a) \\
    b &= 1110 \exp(0.115 (s - 0.48) - 0.0032 (a - 62) + 0.075 \, \epsilon_b) \\
    v &= 30 \exp(0.030 (a - 62) + 0.9 \log(b / 1110) + 0.38 \, \epsilon_v)

with standard normal noise. Men have larger brains, and larger brains larger ventricles; ten years
widen the ventricles by 35 % directly and take 2.8 % away again by shrinking the brain.

No model can have a higher mean log-density than these mechanisms themselves, in nats -0.6923 (s),
-3.2945 (a), -5.8368 (b given s and a) and -3.8863 (v given a and b).

**References** *Deep structural causal models for tractable counterfactual inference*,
https://arxiv.org/abs/2006.06485, for the graph and the signs of the effects. The
equations are ours, and stand in for the UK Biobank images, which are not public.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "BrainNoise",
    "brain_image",
    "brain_phantom",
    "draw_brain_noise",
    "measure_brain_volumes",
    "sample_brain_phantom",
]

SIZE = 64  # pixels, height and width of the image
WAVES = 10  # of the texture
BRAIN, VENTRICLES = 1110.0, 30.0  # ml, of the reference subject
RIM, CORE, FLUID = 110.0, 170.0, 35.0  # grey levels
CHUNK = 32  # images at a time; the allocator returns larger pieces to the system after each use

# Measured areas, in pixels per ml and at 0 ml: least squares on 20,000 subjects. The ellipses of
# the equations have 1.2906 and 2.0000 pixels per ml.
HEAD_AREA, DARK_AREA = (1.2889, 0.75), (1.9935, 0.22)


class BrainNoise(NamedTuple):
    """Exogenous noise of the images of N subjects: all about them but the two volumes.

    Lengths are in pixels, angles in radians. :func:`draw_brain_noise` draws it.
    """

    rotation: Tensor
    """``[N]``: of the head, clockwise."""
    shift_x: Tensor
    """``[N]``: of the head, to the right."""
    shift_y: Tensor
    """``[N]``: of the head, downwards."""
    elongation: Tensor
    """``[N]``: logarithm of a factor on the head's width, its height being divided by it."""
    asymmetry: Tensor
    """``[N]``: excess of the right ventricle's area over the mean of both, relative to it."""
    gain: Tensor
    """``[N]``: factor on the grey levels."""
    frequency: Tensor
    """``[N, 10]``: of the waves of the texture, in radians per radius of the head."""
    direction: Tensor
    """``[N, 10]``: of the waves, from the head's horizontal axis clockwise."""
    phase: Tensor
    """``[N, 10]``: of the waves."""
    pixel: Tensor
    """``[N, 64, 64]``: of the detector, for rows and columns."""

    def select(self, subjects: Tensor | slice) -> BrainNoise:
        """The noise of some of the subjects, by an index.

        **Example**

        >>> draw_brain_noise(5).select(slice(2, 4)).phase.shape
        torch.Size([2, 10])
        """
        return BrainNoise(*(noise[subjects] for noise in self))


def draw_brain_noise(
    subjects: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> BrainNoise:
    r"""Draw the exogenous noise of images.

    Independently, with lengths in pixels,

    .. math::

        \theta &\sim N(0, 4°), & c_x, c_y &\sim N(0, 1), & e &\sim N(0, 0.04), \\
        \delta &\sim N(0, 0.10), & g &\sim N(1, 0.05), & n_{XY} &\sim N(0, 1), \\
        k_m &\sim U(4, 9), & \phi_m, \psi_m &\sim U(0, 2 \pi), & m &= 1, \ldots, 10.

    **Shapes** rotation :math:`\theta`, shifts :math:`c_x` and :math:`c_y`, elongation :math:`e`,
    asymmetry :math:`\delta` and gain :math:`g` ``[N]``; frequency :math:`k`, direction
    :math:`\phi` and phase :math:`\psi` ``[N, 10]``; pixel :math:`n` ``[N, 64, 64]``.

    **Arguments**

    - ``subjects``: N.
    - ``dtype``, ``device``: as in ``torch.randn``.

    **Example**

    >>> noise = draw_brain_noise(3, dtype=torch.float64)
    >>> noise.gain.shape, noise.pixel.shape, noise.pixel.dtype
    (torch.Size([3]), torch.Size([3, 64, 64]), torch.float64)
    """

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(subjects, *shape, dtype=dtype, device=device)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(subjects, WAVES, dtype=dtype, device=device)

    return BrainNoise(
        rotation=normal(math.radians(4.0)),
        shift_x=normal(1.0),
        shift_y=normal(1.0),
        elongation=normal(0.04),
        asymmetry=normal(0.10),
        gain=1 + normal(0.05),
        frequency=uniform(4.0, 9.0),
        direction=uniform(0.0, 2 * math.pi),
        phase=uniform(0.0, 2 * math.pi),
        pixel=normal(1.0, SIZE, SIZE),
    )


@torch.no_grad()
def brain_image(b: Tensor, v: Tensor, noise: BrainNoise) -> Tensor:
    r"""The mechanism of the image: a head with a rim, two ventricles, a texture and pixel noise.

    In coordinates :math:`p, q` about the centre of the head, turned with it by :math:`\theta`,

    .. math::

        x = \lfloor g \, ((1 - f) \, h \, (110 + 60 \, c + 10 \, t) + 35 f) + 3 n h \rfloor,

    clipped to 0 to 255. The shares of head :math:`h` and core :math:`c` in a pixel fall smoothly
    from one to zero at :math:`\rho = 1` and :math:`\rho = 0.85`,

    .. math::

        \rho^2 = (p / R_x)^2 + (q / R_y)^2, \qquad R_x = 19 \sqrt{b / 1110} \, e^{e}, \qquad
        R_y = 24 \sqrt{b / 1110} \, e^{-e}.

    That of fluid :math:`f` does at the edge of two ellipses with the semi-axes :math:`a_x = 2.2 r`
    and :math:`a_y = 4.34 r`, :math:`r^2 = (1 \pm \delta) \, v / 30`, which lie 0.8 pixels off the
    midline, tilted by 12° so that they part upwards. The texture :math:`t`, a sum of ten waves of
    variance one, stretches with the head.

    **Shapes** ``b`` and ``v`` ``[*batch, N]`` for noise of N subjects, where leading axes are
    worlds, say; result ``[*batch, N, 1, 64, 64]``, rows before columns. They broadcast.

    **Arguments**

    - ``b``, ``v``: volumes of brain and ventricles, in ml, positive.
    - ``noise``: of :func:`draw_brain_noise`.

    The grey levels are whole numbers, so no gradient is recorded.

    **Raises** ``ValueError``: the shapes do not broadcast.

    **Example** One subject with a brain of three sizes.

    >>> b, v = torch.tensor([800.0, 1100.0, 1600.0]), torch.tensor(30.0)
    >>> brain_image(b[:, None], v, draw_brain_noise(1)).shape
    torch.Size([3, 1, 1, 64, 64])
    """
    subject = torch.arange(len(noise.gain), device=noise.gain.device)
    try:
        b, v, subject = torch.broadcast_tensors(b, v, subject)
    except RuntimeError:
        raise ValueError(
            f"brain_image: expected volumes of shape [*batch, {len(subject)}] for the noise of "
            f"{len(subject)} subjects, got b of shape {list(b.shape)} and v of shape "
            f"{list(v.shape)}. Do put subjects last, or select their noise by noise.select."
        ) from None
    chunks = zip(*(u.reshape(-1).split(CHUNK) for u in (b, v, subject)), strict=True)
    images = torch.cat([_image(b, v, noise.select(i)) for b, v, i in chunks])
    return images.reshape(*subject.shape, 1, SIZE, SIZE)


def _image(b: Tensor, v: Tensor, noise: BrainNoise) -> Tensor:
    """Images ``[N, 64, 64]`` of volumes ``[N]``."""
    b, v, rotation, shift_x, shift_y, elongation, asymmetry, gain = (
        u[:, None, None] for u in (b, v, *noise[:6])
    )
    centred = torch.arange(SIZE, dtype=gain.dtype, device=gain.device) - (SIZE - 1) / 2
    p, q = _turn(centred - shift_x, centred[:, None] - shift_y, rotation)
    r_x = 19 * (b / BRAIN).sqrt() * elongation.exp()
    r_y = 24 * (b / BRAIN).sqrt() / elongation.exp()
    rho, radius = torch.hypot(p / r_x, q / r_y), (r_x * r_y).sqrt()
    head = ((1 - rho) * radius / 0.5).sigmoid()
    core = ((0.85 - rho) * radius / 0.5).sigmoid()
    tissue = head * (RIM + (CORE - RIM) * core + 10 * _texture(p / r_x, q / r_y, noise))
    fluid = torch.maximum(*(_depth(p, q, v, asymmetry, side) for side in (-1, 1))).sigmoid()
    level = gain * (tissue * (1 - fluid) + FLUID * fluid) + 3 * noise.pixel * head
    return level.clamp(0, 255).floor()


def _turn(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along axes that are turned by the angle, from x towards y."""
    return angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x


def _texture(p: Tensor, q: Tensor, noise: BrainNoise) -> Tensor:
    """The sum of waves at ``[N, 64, 64]`` positions, one wave at a time to bound the memory."""
    total = torch.zeros_like(p)
    waves = (u[..., None, None].unbind(1) for u in (noise.frequency, noise.direction, noise.phase))
    for frequency, direction, phase in zip(*waves, strict=True):
        total += (frequency * (p * direction.cos() + q * direction.sin()) + phase).cos()
    return math.sqrt(2 / WAVES) * total


def _depth(p: Tensor, q: Tensor, v: Tensor, asymmetry: Tensor, side: int) -> Tensor:
    """Depth below the edge of the left (-1) or right (1) ventricle."""
    size = ((1 + side * asymmetry) * v / VENTRICLES).sqrt()
    a_x, a_y = 2.2 * size, 4.34 * size
    tilt = p.new_tensor(side * math.radians(12.0))
    u, w = _turn(p - side * (a_x + 0.8), q + 1, tilt)
    return (1 - torch.hypot(u / a_x, w / a_y)) * (a_x * a_y).sqrt() / 0.4


def brain_phantom(noise: BrainNoise) -> dict[str, Tensor]:
    r"""The causal model, as a Pyro program; its equations are at the top of this module.

    The image is computed from the two volumes and the noise, which is an argument and so the same
    in all worlds: ``do`` and ``worlds`` give true counterfactual images. Observe s, a, b and v by
    ``poutine.condition``; the image of these subjects follows.

    **Shapes** sites ``s``, ``a``, ``b`` and ``v`` ``[N]`` in the plate ``subjects``, ``x``
    ``[N, 1, 64, 64]``; returns their values.

    **Arguments** ``noise``: of :func:`draw_brain_noise`, whose dtype and device the sites follow.

    **Example** What would these two look like with large ventricles, or at the age of eighty?

    >>> import pyro_causal
    >>> noise = draw_brain_noise(2)
    >>> seen = brain_phantom(noise)
    >>> evidence = {name: seen[name] for name in "sabv"}
    >>> program = pyro_causal.worlds(brain_phantom, [{"v": 110.0}, {"a": 80.0}])
    >>> imagined = pyro.poutine.condition(program, evidence)(noise)
    >>> imagined["x"].shape, bool((imagined["x"][0] == seen["x"]).all())
    (torch.Size([3, 2, 1, 64, 64]), True)
    """
    like = noise.gain
    to_years = [transforms.SigmoidTransform(), transforms.AffineTransform(45.0, 35.0)]
    logit_age = dist.Normal(like.new_tensor(0.1), 0.9)
    with pyro.plate("subjects", len(like)):
        s = pyro.sample("s", dist.Bernoulli(like.new_tensor(0.48)))
        a = pyro.sample("a", dist.TransformedDistribution(logit_age, to_years))
        log_b = math.log(BRAIN) + 0.115 * (s - 0.48) - 0.0032 * (a - 62)
        b = pyro.sample("b", dist.LogNormal(log_b, 0.075))
        log_v = math.log(VENTRICLES) + 0.030 * (a - 62) + 0.9 * (b / BRAIN).log()
        v = pyro.sample("v", dist.LogNormal(log_v, 0.38))
        x = pyro.deterministic("x", brain_image(b, v, noise), event_dim=3)
    return {"s": s, "a": a, "b": b, "v": v, "x": x}


def sample_brain_phantom(
    subjects: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> tuple[dict[str, Tensor], BrainNoise]:
    """Draw a table of subjects, and the noise of their images for later counterfactuals.

    **Shapes** columns ``s``, ``a``, ``b`` and ``v`` ``[N]``, ``x`` ``[N, 1, 64, 64]``.

    **Arguments** as in :func:`draw_brain_noise`.

    **Example**

    >>> table, noise = sample_brain_phantom(5)
    >>> {name: tuple(column.shape) for name, column in table.items()}
    {'s': (5,), 'a': (5,), 'b': (5,), 'v': (5,), 'x': (5, 1, 64, 64)}
    """
    noise = draw_brain_noise(subjects, dtype=dtype, device=device)
    return brain_phantom(noise), noise


def measure_brain_volumes(x: Tensor) -> dict[str, Tensor]:
    """Read the volumes off images, which need not be exact: an oracle for counterfactuals.

    The brain is what is brighter than half the rim and whatever it encloses; the ventricles are
    what is darker than halfway between fluid and core, at least five pixels inside. The levels are
    scaled by the image's own gain, the median of its core. Of the phantom's own images this reads
    the brain volume to 4 ml (standard deviation; r = 0.9993) and that of the ventricles to 1.3 ml
    (r = 0.996). Grey-level noise of standard deviation 5 does not change this; blur by a Gaussian
    of 0.7 pixels lowers the ventricles by 1.5 ml.

    **Shapes** ``x`` ``[*batch, 1, 64, 64]``; the results ``b`` and ``v`` ``[*batch]``, in ml.

    **Raises** ``ValueError``: images of another shape.

    **Example**

    >>> table, _ = sample_brain_phantom(3)
    >>> measured = measure_brain_volumes(table["x"])
    >>> bool(((measured["b"] - table["b"]).abs() < 30).all())
    True
    """
    if x.shape[-3:] != (1, SIZE, SIZE):
        raise ValueError(
            f"measure_brain_volumes: expected images [*batch, 1, {SIZE}, {SIZE}], got shape "
            f"{list(x.shape)}. Do add the channel by x.unsqueeze(-3), or resize the images."
        )
    grey = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    areas = torch.cat([_areas(part) for part in grey.reshape(-1, SIZE, SIZE).split(CHUNK)])
    head, dark = areas.to(grey.dtype).reshape(*x.shape[:-3], 2).unbind(-1)
    return {
        "b": (head - HEAD_AREA[1]) / HEAD_AREA[0],
        "v": (dark - DARK_AREA[1]) / DARK_AREA[0],
    }


def _areas(x: Tensor) -> Tensor:
    """Pixels of head and ventricles ``[N, 2]`` in images ``[N, 64, 64]``."""
    halfway = (CORE + FLUID) / 2
    core = _erode(_fill(x > RIM / 2)) & (x > halfway)
    median = x.masked_fill(~core, math.nan).flatten(1).nanmedian(1).values
    gain = (median / CORE)[:, None, None]  # NaN where there is no core: nothing is measured then
    head = _fill(x > gain * RIM / 2)
    dark = _erode(head) & (x < gain * halfway)
    return torch.stack([head.sum((1, 2)), dark.sum((1, 2))], -1)


def _fill(mask: Tensor) -> Tensor:
    """Add what lies between pixels of the mask both in its row and in its column."""
    begun = (mask.cumsum(dim) > 0 for dim in (1, 2))
    to_come = (mask.flip(dim).cumsum(dim).flip(dim) > 0 for dim in (1, 2))
    return torch.stack([*begun, *to_come]).all(0)


def _erode(mask: Tensor, radius: int = 5) -> Tensor:
    """Keep what has no pixel outside of the mask within the radius."""
    offset = torch.arange(-radius, radius + 1, device=mask.device)
    disk = (torch.hypot(offset[:, None].float(), offset.float()) <= radius).float()
    return F.conv2d((~mask)[:, None].float(), disk[None, None], padding=radius)[:, 0] == 0
