"""A convolutional encoder and decoder for images, as a start: any networks of your own will do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_causal.mechanisms.base import ContextNetwork, Recorded
from pyro_causal.mechanisms.hierarchical import HierarchicalNormal

__all__ = ["ConvDecoder", "ConvEncoder", "ConvPrior"]

MIN_SCALE = 1e-2  # of the map given the whole


class _ConvNetwork(Recorded):
    """The sizes that encoder and decoder share: a grid of ``channels`` features below the image."""

    def __init__(
        self,
        latent: int,
        features: int,
        *,
        event_shape: Sequence[int],
        local: int,
        channels: int,
        stages: int,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        side = 2**stages
        if len(event_shape) != 3 or any(size % side for size in event_shape[1:]):
            raise ValueError(
                f"{type(self).__name__}: expected an event of shape (C, H, W) with H and W "
                f"divisible by {side}, got {tuple(event_shape)}. Pad the images, or give fewer "
                "stages."
            )
        self.latent = latent
        self.features = features
        self.local = local
        self.channels = channels
        self.grid = torch.Size(size // side for size in event_shape[1:])

    @property
    def size(self) -> int:
        """The size of z: ``latent`` numbers, then ``local`` for each place of the grid."""
        return self.latent + self.local * self.grid.numel()


class ConvEncoder(_ConvNetwork):
    r"""An image and its parents to the location and raw scale of :math:`z`.

    :math:`z` has a part that tells of the whole image, and a map, whose places tell of what is
    near them.

    **Arguments**

    - ``latent``: size of the part that tells of the whole image.
    - ``features``: number of features of the parents, which enter as constant channels.
    - ``event_shape``: shape of an image, ``(C, H, W)``.
    - ``local``: channels of the map; 0 for none.
    - ``channels``: width of the hidden layers.
    - ``stages``: how often the resolution is halved.
    - ``blocks``: residual layers at the lowest resolution.

    **Shapes**: image ``[B, C, H, W]``, parents ``[B, features]``; result ``[B, 2 * size]`` with
    ``size`` :math:`= \mathrm{latent} + \mathrm{local} \cdot H W / 4^{\mathrm{stages}}`.

    **Raises**: ``ValueError`` if H or W is not divisible by :math:`2^{\mathrm{stages}}`.

    **Example**::

        >>> encoder = ConvEncoder(32, 2, local=4)
        >>> encoder(torch.zeros(5, 1, 28, 28), torch.zeros(5, 2)).shape
        torch.Size([5, 456])
    """

    def __init__(
        self,
        latent: int,
        features: int,
        *,
        event_shape: Sequence[int] = (1, 28, 28),
        local: int = 0,
        channels: int = 64,
        stages: int = 2,
        blocks: int = 2,
    ) -> None:
        super().__init__(
            latent,
            features,
            event_shape=event_shape,
            local=local,
            channels=channels,
            stages=stages,
        )
        widths = [event_shape[0] + features, *[channels // 2] * (stages - 1), channels]
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.blocks = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks)
        )
        self.squeeze = nn.Conv2d(channels, 16, 1)
        self.whole = nn.Sequential(
            nn.Linear(16 * self.grid.numel(), 128), nn.SiLU(), nn.Linear(128, 2 * latent)
        )
        self.map = nn.Conv2d(channels, 2 * local, 1) if local else None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, y: Tensor, context: Tensor) -> Tensor:
        """Compute the location and the raw scale."""
        h = torch.cat([y, context[..., None, None].expand(-1, -1, *y.shape[2:])], 1)
        h = h.contiguous(memory_format=torch.channels_last)
        for layer in self.down:
            h = F.silu(layer(h))
        for layer in self.blocks:
            h = h + F.silu(layer(h))
        parts = [self.whole(self.squeeze(h).flatten(1))]
        if self.map is not None:
            parts.append(self.map(h).flatten(1))
        # Location and scale of the whole, then of the map: sort by location and scale.
        halves = [part.chunk(2, 1) for part in parts]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves], 1)


class ConvDecoder(_ConvNetwork):
    r""":math:`z` and the parents to an image: parents turn the gain and shift of every layer.

    **Arguments**: as :class:`ConvEncoder`; ``outputs``, how many numbers for each element (see
    :attr:`~pyro_causal.mechanisms.neural.AmortisedExplicit.outputs`); ``whole``, whether it sees
    the part of :math:`z` that tells of the whole image (with a :class:`ConvPrior` it need not);
    ``bounded``, send the first of the outputs, the location, through a sigmoid with a learnt gain.

    **Shapes**: z ``[B, size]``, parents ``[B, features]``; result ``[B, outputs * C, H, W]``.

    **Raises**: as :class:`ConvEncoder`, and for a decoder that would see nothing of :math:`z`.

    **References**: *FiLM: visual reasoning with a general conditioning layer*,
    https://arxiv.org/abs/1709.07871, equation 2; *Real-time single image and video super-resolution
    using an efficient sub-pixel convolutional neural network*, https://arxiv.org/abs/1609.05158
    (the last layer).

    **Example**::

        >>> decoder = ConvDecoder(32, 2, local=4)
        >>> decoder(torch.zeros(5, decoder.size), torch.zeros(5, 2)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        latent: int,
        features: int,
        *,
        event_shape: Sequence[int] = (1, 28, 28),
        local: int = 0,
        channels: int = 64,
        stages: int = 2,
        blocks: int = 1,
        outputs: int = 1,
        whole: bool = True,
        bounded: bool = False,
    ) -> None:
        super().__init__(
            latent,
            features,
            event_shape=event_shape,
            local=local,
            channels=channels,
            stages=stages,
        )
        if not (whole or local):
            raise ValueError(
                "ConvDecoder: expected whole=True or a map, got neither: it would see nothing of "
                "z. Give whole=True, or local=1 or more."
            )
        self.stages = stages
        self.whole = nn.Linear(latent, channels * self.grid.numel()) if whole else None
        self.map = nn.Conv2d(local, channels, 3, padding=1) if local else None
        self.blocks = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks)
        )
        self.films = nn.ModuleList(_Film(channels, features) for _ in range(blocks + 1))
        self.last = nn.Conv2d(channels, 4**stages * outputs * event_shape[0], 3, padding=1)
        self.gain = nn.Parameter(torch.ones(())) if bounded else None
        if bounded:  # start dark: from grey, the first steps go to black, and the sigmoid saturates
            assert self.last.bias is not None
            nn.init.constant_(self.last.bias[: 4**stages * event_shape[0]], -2.0)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        """Compute the image."""
        whole, local = z.split([self.latent, self.size - self.latent], 1)
        h = z.new_zeros(())
        if self.map is not None:
            h = self.map(_grid(local, (self.local, *self.grid)))
        if self.whole is not None:
            h = h + _grid(self.whole(whole), (self.channels, *self.grid))
        h = F.silu(self.films[0](h, context))
        for layer, film in zip(self.blocks, self.films[1:], strict=True):
            h = h + F.silu(film(layer(h), context))
        out = F.pixel_shuffle(self.last(h), 2**self.stages)
        if self.gain is None:
            return out
        c = self.event_shape[0]
        return torch.cat([self.gain * torch.sigmoid(out[:, :c]), out[:, c:]], 1)


class ConvPrior(_ConvNetwork):
    r"""A prior of :math:`z` for which its map is normal given the part that tells of the whole.

    With a standard normal prior the places of a map are independent, and draws of it make no
    picture; nor do they need the part that tells of the whole.

    **Arguments**: as :class:`ConvEncoder`, without parents.

    **Shapes**: the distribution has batch shape ``()`` and event shape ``(size,)``.

    **Raises**: as :class:`ConvEncoder`.

    **Example**::

        >>> prior = ConvPrior(32, local=4)
        >>> prior().sample((5,)).shape
        torch.Size([5, 228])
    """

    def __init__(
        self,
        latent: int,
        *,
        event_shape: Sequence[int] = (1, 28, 28),
        local: int,
        channels: int = 64,
        stages: int = 2,
    ) -> None:
        super().__init__(
            latent, 0, event_shape=event_shape, local=local, channels=channels, stages=stages
        )
        self.whole = nn.Sequential(
            nn.Linear(latent, 256), nn.SiLU(), nn.Linear(256, channels * self.grid.numel())
        )
        self.block = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 2 * local, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self) -> HierarchicalNormal:
        """Give the distribution of z."""
        return HierarchicalNormal(
            self._rest, first=self.latent, size=self.size, like=self.last.weight
        )

    def _rest(self, first: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(_grid(self.whole(first), (self.channels, *self.grid)))
        h = h + F.silu(self.block(h))
        loc, scale = self.last(h).flatten(1).chunk(2, 1)
        return loc, F.softplus(scale + 0.5) + MIN_SCALE


def _grid(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows as maps, in the layout that convolutions are fast in."""
    return x.unflatten(1, tuple(shape)).contiguous(memory_format=torch.channels_last)


class _Film(nn.Module):
    """A gain and a shift for each channel, from the parents; it starts without effect."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.network = ContextNetwork(features, 2 * channels, hidden=(32,))

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        gain, shift = self.network(context)[..., None, None].chunk(2, -3)
        return h * (1 + gain) + shift
