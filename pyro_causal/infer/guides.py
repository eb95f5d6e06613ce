"""Guides: posteriors that work with anybody's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import pyro
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_causal._pyro import register
from pyro_causal._recipe import NamedModules, Recorded
from pyro_causal.infer._factors import BinaryFactor, GraphFactor, RealFactor
from pyro_causal.infer._mixture_guide import DPMixtureGuide

__all__ = ["BinaryFactor", "Completion", "DPMixtureGuide", "GraphFactor", "RealFactor"]


class Completion(Recorded, PyroModule):
    r"""The distribution of missing variables given observed ones, for any pattern of missingness.

    .. math:: q(x_M \mid x_O) = \prod_{v \in M} q_v(x_v \mid x_O, x_w : w \in M, w < v)

    Every factor is a head, a module from features to a distribution. The features say of every
    other variable whether it is known, and if so what its value is. A head is trained on complete
    rows, whose variables are hidden from it at random, by maximum likelihood: this minimises
    :math:`E \, \mathrm{KL}(p(x_v \mid \cdot) \,\|\, q_v)` over the patterns, where :math:`p` is the
    distribution of the data. So the answers are calibrated if the heads are, even where the model's
    likelihood of an image is too sharp to be weighed by.

    **Arguments**

    - ``heads``: for each variable that may be missing, a mechanism with one parent of event shape
      ``(width,)``, see :meth:`width`. Names are as for
      :class:`~pyro_causal.methods.deep_scm.DeepSCM`, without a dot.
    - ``sizes``: for each variable of the model, the number of its features.
    - ``networks``: for variables that are not scalars, a network from values ``[B, *event]`` to
      features ``[B, size]``, and the event shape.
    - ``hide``: the probability with which a known variable is hidden in training.

    **Shapes**: see :meth:`forward`.

    **Raises**: ``ValueError`` for rows that are not complete in training, a network that returns
    another shape, and a variable without network that is neither a scalar nor a category.

    **References**: *Variational autoencoder with arbitrary conditioning*,
    https://arxiv.org/abs/1806.02382 (random masks); *Inference compilation and universal
    probabilistic programming*, https://arxiv.org/abs/1610.09900 (this divergence, there under draws
    from the model instead of data).

    **Example**::

        >>> from pyro_causal.mechanisms import ConditionalGaussian
        >>> sizes = {"x": 1, "y": 1}
        >>> head = ConditionalGaussian([(Completion.width("x", sizes),)])
        >>> completion = Completion({"x": head}, sizes=sizes)
        >>> completion("x", {"y": torch.zeros(5)}).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        heads: Mapping[str, nn.Module],
        *,
        sizes: Mapping[str, int],
        networks: Mapping[str, tuple[nn.Module, Sequence[int]]] | None = None,
        hide: float = 0.5,
    ) -> None:
        super().__init__()
        self.heads = NamedModules(heads)
        self.sizes = dict(sizes)
        self.networks = NamedModules({n: net for n, (net, _) in (networks or {}).items()})
        self.event_dims = {n: len(shape) for n, (_, shape) in (networks or {}).items()}
        self.hide = hide
        if unknown := sorted({*self.heads, *self.networks} - {*self.sizes}):
            raise ValueError(
                f"Completion: sizes lack {unknown}: expected the number of features of every "
                "variable of the model. Add them."
            )
        self.register_buffer("loc", torch.zeros(len(self.sizes)))
        self.register_buffer("scale", torch.ones(len(self.sizes)))

    def __contains__(self, name: str) -> bool:
        """Whether a variable may be missing."""
        return name in self._parts("heads")

    @staticmethod
    def width(name: str, sizes: Mapping[str, int]) -> int:
        """Count the features that a head gets: those of all other variables, and a flag each."""
        return sum(size + 1 for other, size in sizes.items() if other != name)

    def forward(self, name: str, known: Mapping[str, Tensor]) -> TorchDistribution:
        """The distribution of a variable given the values of others.

        **Shapes**: values ``(*batch, *event)``, whose batches broadcast; so is the batch shape of
        the result.
        """
        self._register()
        features = {n: self._features(n, x) for n, x in known.items() if n in self.sizes}
        return self._head(name, features, {})

    @pyro_method
    def model(self, data: Mapping[str, Tensor]) -> None:
        """Score every variable given random others; ``data`` are complete rows ``[N, *event]``."""
        self._register()
        self._require_complete(data)
        features = {name: self._features(name, data[name]) for name in self.sizes}
        rows = len(next(iter(data.values())))
        with pyro.plate("rows", rows, dim=-1):
            for name in self._parts("heads"):
                flags = {
                    n: (torch.rand_like(f[:, 0]) >= self.hide).to(f) for n, f in features.items()
                }
                pyro.sample(name, self._head(name, features, flags), obs=data[name])

    def guide(self, data: Mapping[str, Tensor]) -> None:
        """Nothing is latent in :meth:`model`."""

    def set_normalisation(self, data: Mapping[str, Tensor]) -> Self:
        """Fix the constants of features and heads from complete rows."""
        self._require_complete(data)
        for k, (name, size) in enumerate(self.sizes.items()):
            if size == 1 and name not in self.networks:
                scale, loc = torch.std_mean(data[name].to(self.loc), correction=0)
                self.loc[k], self.scale[k] = loc, scale if scale > 0 else 1.0
        head: Any
        for name, head in self.heads.items():
            # The features are standardised already: hand over some of mean 0 and deviation 1.
            width = self.width(name, self.sizes)
            head.set_normalisation(
                data[name], self.loc.new_tensor([[-1.0], [1.0]]).expand(2, width)
            )
        return self

    def _register(self) -> None:
        for part in ("heads", "networks"):
            register(self, part)

    def _parts(self, name: str) -> Any:
        """Heads or networks, without telling Pyro again, which takes a while."""
        return self._modules[name]

    def _require_complete(self, data: Mapping[str, Tensor]) -> None:
        if missing := sorted({*self.sizes} - {*data}):
            raise ValueError(
                f"Completion: {missing} are missing: expected complete rows. Train it on rows that "
                "hold every variable in sizes."
            )
        if empty := [name for name in self.sizes if not len(data[name])]:
            raise ValueError(
                f"Completion: {empty} have no rows: expected one or more. Give it data to train on."
            )

    def _features(self, name: str, value: Tensor) -> Tensor:
        """The features of a variable, ``(*batch, size)``."""
        size = self.sizes[name]
        if name in self._parts("networks"):
            batch = value.shape[: value.dim() - self.event_dims[name]]
            rows = value.reshape(batch.numel(), *value.shape[len(batch) :])
            features: Tensor = self._parts("networks")[name](rows)
            if features.shape != (expected := (len(rows), size)):
                raise ValueError(
                    f"Completion: the network of '{name}' returns {tuple(features.shape)}: "
                    f"expected {expected}. Change its last layer, or the size in sizes."
                )
            return features.reshape(*batch, size)
        if size > 1:
            category = value.long()
            if not ((category == value) & (category >= 0) & (category < size)).all():
                raise ValueError(
                    f"Completion: the values of '{name}' are no categories below {size}: expected "
                    "whole numbers, since it has no network. Give one, or another size."
                )
            return F.one_hot(category, size).to(self.loc)
        k = list(self.sizes).index(name)
        return ((value - self.loc[k]) / self.scale[k]).unsqueeze(-1)

    def _head(
        self, name: str, features: Mapping[str, Tensor], flags: Mapping[str, Tensor]
    ) -> TorchDistribution:
        """The head of a variable on what is known of the others."""
        columns = []
        for other, size in self.sizes.items():
            if other == name:
                continue
            if other in features:
                known = features[other]
                flag = flags[other] if flags else torch.ones_like(known[..., 0])
            else:
                known, flag = self.loc.new_zeros(size), self.loc.new_zeros(())
            columns += [known * flag.unsqueeze(-1), flag.unsqueeze(-1)]
        batch = torch.broadcast_shapes(*(c.shape[:-1] for c in columns))
        rows = torch.cat([c.expand(*batch, -1) for c in columns], -1)
        result: TorchDistribution = self._parts("heads")[name](rows)
        return result
