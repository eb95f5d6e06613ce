r"""Data from a mixture of interventions on one graph, and the program that they come from.

A graph over :math:`d` variables, and :math:`K + 1` regimes. Regime 0 is observational; each other
one intervenes on some variables, its targets, and leaves all other mechanisms alone. In an order
that is drawn too, each forward pair is an edge with probability :math:`2 e / (d - 1)`, so that
:math:`e d` edges are expected. With noise :math:`\epsilon = 0.4 \, a \, u + b` of each variable,

.. math::

    a &\sim U(1, 2.4), \qquad b \sim N(0, 0.3^2), \qquad u \sim N(0, 1), \\
    x_j &= \epsilon_j \text{ without parents, else } f_j(x_{pa(j)}) + 0.2 \, \epsilon_j
    \text{ (linear, nonlinear) or } f_j(x_{pa(j)}, \epsilon_j) \text{ (flow)}.

Linear :math:`f_j` have weights of magnitude :math:`U(0.25, 1.25)` and either sign. The others are
networks with two hidden layers of eight rectified units, whose weights are :math:`N(0, 1)`, whose
biases have magnitude :math:`U(0.05, 1.55)` and whose output weights are as the linear ones. On a
target,

- a **stochastic** (perfect) intervention cuts the parents: :math:`x_j \sim N(c, 0.2^2)`, with
  :math:`c` of magnitude :math:`U(4, 8)`;
- an **atomic** one sets :math:`x_j = c`;
- an **imperfect** one changes the weight of one parent, or one output weight of the network, to
  :math:`2.5 \, U(0.25, 1.25) \, s` with :math:`s` 1 or -4, and the noise to one with :math:`2.5 a`
  and :math:`2.5 b` drawn anew. A target without parents gets the stochastic one.

**References** Faria, Martins & Figueiredo 2022, *Differentiable causal discovery under latent
interventions*, https://arxiv.org/abs/2203.02336, section 4, does not state its data. The equations
are those of the authors' published generator, with the lopsided signs of its imperfect
interventions. Its "normalizing flow" is no flow: the noise enters a network that need not be
monotone. Ours to decide were the changed weight (any, with equal probability), the
noise of imperfect interventions under ``flow`` (drawn anew as elsewhere), and the sizes of regimes
(equal up to one row).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Density",
    "Intervention",
    "InterventionalSCM",
    "draw_interventional_scm",
    "sample_interventional_table",
]

Density = Literal["linear", "nonlinear", "flow"]
Intervention = Literal["stochastic", "imperfect", "atomic"]

HIDDEN = 8  # units in each hidden layer
DAMPING = 0.2  # of the noise of variables with parents
STRENGTH = 2.5  # of what imperfect interventions draw anew
SPREAD = 0.2  # standard deviation of stochastic interventions


@dataclass(frozen=True, eq=False)
class InterventionalSCM:
    r"""A structural causal model under K + 1 regimes, as a Pyro program of the rows' regimes.

    Call it with the regimes ``z [n]`` of n rows. Its sites in the plate ``rows`` are ``z``
    (deterministic, so that ``do`` can move rows to other regimes) and the variables ``x0``, ``x1``,
    ..., all ``[n]`` and not standardised. It returns the variables as ``[n, d]``, and under
    :func:`pyro_causal.worlds` as ``[W, n, d]`` once any of them spans worlds.

    Linear and nonlinear variables are Gaussian sites, unless interventions are atomic: condition on
    them to abduct their noise. All others are deterministic given the sites ``x0_noise``, ...,
    standard Gaussian; condition on those to keep the noise.

    **Arguments** :func:`draw_interventional_scm` draws them. H is d (linear) or 8.

    - ``density``: how noise and parents combine.
    - ``adjacency``: ``[d, d]``, (i, j) is 1 for an edge i -> j.
    - ``targets``: ``[K + 1, d]``, 1 for the targets of each regime.
    - ``order``: variables, causes first.
    - ``location``, ``scale``: ``[K + 1, d]``, of the noise, damping included.
    - ``driven``: ``[K + 1, d]``, whether parents act on a variable.
    - ``weight``: ``[K + 1, d, H]``, of the parents or the last hidden units in each variable.
    - ``layers``: weights and biases of hidden layers, ``[d, H, d + 1]`` (parents, then noise) and
      ``[d, H, H]``, each with ``[d, H]``; none for linear ones.

    **Example** Had these rows not been intervened on, what would they have been?

    >>> from pyro_causal import world, worlds
    >>> scm = draw_interventional_scm(3, dtype=torch.float64)
    >>> z = torch.tensor([0, 1, 2, 3])
    >>> seen = pyro.poutine.trace(scm).get_trace(z)
    >>> unit = {name: seen.nodes[name]["value"] for name in ("x0", "x1", "x2")}
    >>> x = pyro.poutine.condition(worlds(scm, [{"z": 0}]), unit)(z)
    >>> x.shape, bool((world(x, 0) == world(x, 1)).all(-1)[0])
    (torch.Size([2, 4, 3]), True)
    """

    density: Density
    adjacency: Tensor
    targets: Tensor
    order: tuple[int, ...]
    location: Tensor
    scale: Tensor
    driven: Tensor
    weight: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        """Run the program."""
        x: dict[int, Tensor] = {}
        gaussian = self.density != "flow" and bool((self.scale > 0).all())
        with pyro.plate("rows", len(z), dim=-1):
            z = pyro.deterministic("z", z).long()  # an action may be a real
            for j in self.order:
                parents = [x[i] for i in self._parents(j)]
                x[j] = self._site(j, z, parents) if gaussian else self._value(j, z, parents)
        return torch.stack(torch.broadcast_tensors(*(x[j] for j in range(len(x)))), -1)

    def _parents(self, j: int) -> list[int]:
        return self.adjacency[:, j].nonzero()[:, 0].tolist()

    def _site(self, j: int, z: Tensor, parents: Sequence[Tensor]) -> Tensor:
        """A variable with a density given its parents."""
        location = self.location[z, j] + self._effect(j, z, parents)
        return pyro.sample(f"x{j}", dist.Normal(location, self.scale[z, j]))

    def _value(self, j: int, z: Tensor, parents: Sequence[Tensor]) -> Tensor:
        """A variable without, by its noise."""
        u = pyro.sample(f"x{j}_noise", dist.Normal(self.location.new_zeros(()), 1.0))
        noise = self.location[z, j] + self.scale[z, j] * u
        if self.density == "flow" and parents:
            value = torch.where(self.driven[z, j], self._effect(j, z, [*parents, noise]), noise)
        else:
            value = self._effect(j, z, parents) + noise
        return pyro.deterministic(f"x{j}", value)

    def _effect(self, j: int, z: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """What the parents, and the noise if it is an input, do: zero where they are cut off."""
        if not inputs:
            return torch.zeros_like(self.location[z, j])
        h = torch.stack(torch.broadcast_tensors(*inputs), -1)
        columns = [*self._parents(j), len(self.order)][: h.shape[-1]]
        weight = self.weight[z, j]
        if not self.layers:
            weight = weight[..., columns]
        for k, (matrix, bias) in enumerate(self.layers):
            kept = matrix[j] if k else matrix[j][:, columns]
            h = F.relu(h @ kept.T + bias[j])
        return torch.where(self.driven[z, j], (weight * h).sum(-1), 0.0)


def draw_interventional_scm(
    d: int,
    *,
    density: Density = "linear",
    intervention: Intervention = "stochastic",
    edges_per_node: float = 1.0,
    regimes: int | None = None,
    targets_per_regime: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> InterventionalSCM:
    """Draw a graph, its mechanisms, and interventions on it; equations at the top of this module.

    No variable is a target again before all have been one, as far as the numbers divide. With
    ``edges_per_node`` from 1/2, two variables are always a cause and an effect.

    **Arguments**

    - ``d``: number of variables.
    - ``edges_per_node``: e, up to ``(d - 1) / 2``, where the graph is full; more adds nothing.
    - ``regimes``: K, besides the observational one; by default d.
    - ``targets_per_regime``: number of variables that each of them intervenes on.
    - ``dtype``, ``device``: of the parameters and the variables. Networks amplify along the graph:
      take double precision to abduct noise in large dense ones.

    **Raises** ``ValueError``: fewer than two variables, no such density or intervention, numbers
    out of range.

    **Example**

    >>> scm = draw_interventional_scm(6, density="flow", intervention="imperfect", regimes=4)
    >>> scm.targets.shape, scm.targets.sum(-1)
    (torch.Size([5, 6]), tensor([0, 1, 1, 1, 1]))
    """
    regimes = d if regimes is None else regimes
    _check("density", density, get_args(Density))
    _check("intervention", intervention, get_args(Intervention))
    _check_numbers(d, edges_per_node, regimes, targets_per_regime)
    like = torch.empty(0, dtype=dtype, device=device)
    order = torch.randperm(d, device=like.device)
    forward = like.new_empty(d, d).uniform_() < 2 * edges_per_node / (d - 1)
    adjacency = torch.zeros(d, d, dtype=torch.long, device=like.device)
    adjacency[order[:, None], order] = forward.triu(1).long()
    targets = _draw_targets(d, regimes, targets_per_regime, device=like.device)
    driven = adjacency.any(0).expand(len(targets), d)
    cut = targets.bool() & ~driven if intervention == "imperfect" else targets.bool()
    changed = targets.bool() & ~cut
    damping = 1.0 if density == "flow" else torch.where(driven, DAMPING, 1.0).to(like)
    spread = 0.0 if intervention == "atomic" else SPREAD
    drawn = STRENGTH * _noise(like, *targets.shape)
    location, scale = damping * torch.where(changed, drawn, _noise(like, 1, d))
    return InterventionalSCM(
        density=density,
        adjacency=adjacency,
        targets=targets,
        order=tuple(order.tolist()),
        location=torch.where(cut, _signed(like, 4.0, 8.0, *cut.shape), location),
        scale=torch.where(cut, spread, scale),
        driven=driven & ~cut,
        weight=_draw_weights(like, adjacency.T.bool() if density == "linear" else None, changed),
        layers=() if density == "linear" else (_layer(like, d, d + 1), _layer(like, d, HIDDEN)),
    )


def sample_interventional_table(scm: InterventionalSCM, n: int) -> dict[str, Tensor]:
    """Draw n rows from all regimes, and standardise each variable over all of them.

    Regimes have equal numbers of rows, up to one, in a random order.

    **Shapes** ``x`` ``[n, d]``, of mean 0 and variance 1; ``z`` ``[n]``, the regimes, 0 for the
    observational one; ``targets`` ``[K + 1, d]`` and ``adjacency`` ``[d, d]`` of the model, 0 or 1;
    ``mean`` and ``std`` ``[d]``, by which ``x * std + mean`` are values of the program.

    **Raises** ``ValueError``: fewer rows than two in each regime; a variable that is constant, or
    beyond the floating-point range.

    **Example**

    >>> table = sample_interventional_table(draw_interventional_scm(4), 100)
    >>> table["x"].shape, table["z"].bincount()
    (torch.Size([100, 4]), tensor([20, 20, 20, 20, 20]))
    """
    regimes = len(scm.targets)
    if n < 2 * regimes:
        raise ValueError(
            f"sample_interventional_table: expected at least {2 * regimes} rows for {regimes} "
            f"regimes, got n={n}. Do ask for two rows in each regime."
        )
    device = scm.location.device
    z = torch.randperm(n, device=device) % regimes
    x = scm(z)
    mean, std = x.mean(0), x.std(0, correction=0)
    if bad := [f"x{j}: {s:g}" for j, s in enumerate(std.tolist()) if not 0 < s < float("inf")]:
        raise ValueError(
            "sample_interventional_table: expected positive and finite standard deviations, got "
            f"{', '.join(bad)}. Do draw another model, of dtype=torch.float64 or with fewer edges."
        )
    table = {"x": (x - mean) / std, "z": z, "targets": scm.targets, "adjacency": scm.adjacency}
    return {**table, "mean": mean, "std": std}


def _noise(like: Tensor, *shape: int) -> Tensor:
    """Location and scale of noise, ``[2, *shape]``."""
    location = 0.3 * like.new_empty(shape).normal_()
    return torch.stack([location, 0.4 * like.new_empty(shape).uniform_(1.0, 2.4)])


def _signed(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    """Numbers of uniform magnitude and either sign."""
    sign = 1 - 2 * like.new_empty(shape).bernoulli_(0.5)
    return sign * like.new_empty(shape).uniform_(low, high)


def _layer(like: Tensor, d: int, inputs: int) -> tuple[Tensor, Tensor]:
    """A hidden layer of each variable's network."""
    weight = like.new_empty(d, HIDDEN, inputs).normal_()
    return weight, _signed(like, 0.05, 1.55, d, HIDDEN)


def _draw_weights(like: Tensor, parents: Tensor | None, changed: Tensor) -> Tensor:
    """Output weights ``[K + 1, d, H]``: regime 0's, and one other for each changed variable."""
    regimes, d = changed.shape
    allowed = changed.new_ones(d, HIDDEN) if parents is None else parents
    base = _signed(like, 0.25, 1.25, *allowed.shape) * allowed
    lottery = like.new_empty(regimes, *allowed.shape).uniform_().masked_fill(~allowed, -1.0)
    which = F.one_hot(lottery.argmax(-1), allowed.shape[-1]).bool() & changed[..., None]
    factor = STRENGTH * (1 - 5 * like.new_empty(which.shape).bernoulli_(0.5))  # 1 or -4
    return torch.where(which, factor * torch.empty_like(factor).uniform_(0.25, 1.25), base)


def _draw_targets(d: int, regimes: int, size: int, *, device: torch.device) -> Tensor:
    """Targets ``[K + 1, d]``, dealt from one shuffle of the variables after the other."""
    hands = d // size
    shuffles = torch.rand(-(-regimes // hands), d, device=device).argsort(-1)
    dealt = shuffles[:, : hands * size].reshape(-1, size)[:regimes]
    targets = torch.zeros(regimes + 1, d, dtype=torch.long, device=device)
    targets[1:].scatter_(-1, dealt, 1)
    return targets


def _check(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ValueError(
            f"draw_interventional_scm: expected {name} to be one of {', '.join(options)}, got "
            f"{value!r}. Do pick one of them."
        )


def _check_numbers(d: int, edges_per_node: float, regimes: int, size: int) -> None:
    if d < 2:
        raise ValueError(f"draw_interventional_scm: expected two variables or more, got d={d}.")
    for name, number, least, most in (
        ("edges_per_node", edges_per_node, 0, float("inf")),
        ("regimes", regimes, 0, float("inf")),
        ("targets_per_regime", size, 1, d),
    ):
        if not least <= number <= most:
            raise ValueError(
                f"draw_interventional_scm: expected {name} from {least} to {most}, got {number}. "
                "Do choose a number in that range."
            )
