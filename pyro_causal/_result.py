"""The answer to a query: weighted draws that read like a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from pyro_causal._actions import Action

__all__ = ["QueryResult"]


@dataclass(frozen=True, eq=False, repr=False)
class QueryResult:
    """What :func:`pyro_causal.query` found: a number, or one per unit, with its uncertainty.

    Statistics use the weighted draws. ``samples`` are the same draws with equal weights
    (systematically resampled, each unit apart), for plots and for code that knows no weights.

    **Attributes**

    - ``of``: the site asked about; ``rung``: ``"association"``, ``"intervention"`` or
      ``"counterfactual"``; ``do`` and ``given``: action and evidence.
    - ``draws``: ``[num_samples, *plates, *event]``; ``weights`` broadcast against them and
      sum to one over the draws (axes of size one where units are weighed together).
    - ``source``: where the draws come from.
    - ``conventions``: how the noise of each discrete site that the action reaches is drawn given
      its value. Data cannot tell conventions apart, and the answer may depend on them.
    - ``seed``: ``torch.initial_seed()`` at the query; ``versions``: of the packages involved.
    - ``identified``: whether what is observed determines the answer, by the graph that the query
      was given; None without one. ``grounds``: the distribution that does, or what stands in the
      way: then the answer rests on the mechanisms that the program assumes.

    **Example**

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_causal.queries import query
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     return pyro.sample("y", dist.Normal(2 * x, 1.0))
    >>> answer = query(model, "y", do={"x": 3.0}, given={"x": 1.0, "y": 5.0})
    >>> float(answer), answer.rung, answer.prob(lambda y: y > 8.5)
    (9.0, 'counterfactual', tensor(1.))
    """

    of: str
    rung: str
    do: Mapping[str, Action]
    given: Mapping[str, Tensor]
    draws: Tensor
    weights: Tensor
    source: str
    conventions: Mapping[str, str]
    seed: int
    versions: Mapping[str, str]
    identified: bool | None = None
    grounds: str = ""

    def __float__(self) -> float:
        if self.mean.numel() != 1:
            raise TypeError(
                f"At site '{self.of}', the answer has shape {tuple(self.mean.shape)}: expected a "
                "single number. Do use .mean, or ask about one unit."
            )
        return float(self.mean)

    @property
    def mean(self) -> Tensor:
        """The expected value, ``[*plates, *event]``; of a binary site, the probability of one."""
        return self._average(self.draws)

    @property
    def std(self) -> Tensor:
        """The standard deviation, ``[*plates, *event]``."""
        return self._average((self.draws.to(self.mean) - self.mean).square()).sqrt()

    def _average(self, values: Tensor) -> Tensor:
        """Weighted mean over the draws; their rounding errors do not add up."""
        weights = self.weights.double().reshape(self.weights.shape[: values.dim()])
        return ((weights * values).sum(0) / weights.sum(0)).to(self.weights.dtype)

    @property
    def ess(self) -> float:
        """The effective sample size, of the unit where it is smallest."""
        return float((1 / self.weights.square().sum(0)).min())

    @property
    def samples(self) -> Tensor:
        """Draws of equal weight, ``[num_samples, *plates, *event]``."""
        number = len(self.draws)
        if bool((self.weights == self.weights[:1]).all()):
            return self.draws
        shares = self.weights.double().cumsum(0).movedim(0, -1).contiguous()
        steps = (torch.arange(number, device=shares.device, dtype=shares.dtype) + 0.5) / number
        index = torch.searchsorted(shares, steps.expand(shares.shape).contiguous())
        return self.draws.take_along_dim(index.clamp(max=number - 1).movedim(-1, 0), 0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The central interval of probability ``level``: two bounds, each ``[*plates, *event]``.

        **Raises** ``ValueError``: the level is no probability.
        """
        if not 0 < level < 1:
            raise ValueError(f"`level`: expected a probability between 0 and 1, got {level}.")
        values, order = self.draws.sort(0)
        shares = self.weights.double().expand(values.shape).take_along_dim(order, 0).cumsum(0)

        def quantile(q: float) -> Tensor:
            below = (shares < q - 1e-9).sum(0, keepdim=True).clamp(max=len(values) - 1)
            return values.take_along_dim(below, 0).squeeze(0)

        return quantile((1 - level) / 2), quantile((1 + level) / 2)

    def prob(self, event: Callable[[Tensor], Tensor]) -> Tensor:
        """The probability of an event, a function of the draws to booleans.

        **Shapes** ``event`` maps ``[num_samples, *plates, *event]`` to ``[num_samples, *plates,
        ...]``; the result has the shape of that without the first axis.

        **Raises** ``ValueError``: the event does not give one truth value per draw.
        """
        hits = event(self.draws)
        shape = self.weights.shape
        if (
            not isinstance(hits, Tensor)
            or hits.shape[:1] != shape[:1]
            or shape[hits.dim() :].numel() != 1
        ):
            got = tuple(hits.shape) if isinstance(hits, Tensor) else type(hits).__name__
            raise ValueError(
                f"At site '{self.of}', event: expected a truth value for each draw of "
                f"{tuple(self.draws.shape)}, got {got}. Do reduce over the event dims at most."
            )
        return self._average(hits)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draw the distribution of the answer: a matplotlib figure, saved to ``path`` if given."""
        from pyro_causal.plots import plot_rungs

        return plot_rungs({self.rung: self.samples}, variable=self.of, path=path)

    def to_arviz(self) -> Any:
        """The samples as ArviZ InferenceData, with the evidence as observed data."""
        from pyro_causal.export import to_inference_data

        return to_inference_data({self.of: self.samples}, observed=self.given)

    def __repr__(self) -> str:
        from pyro_causal.export import world_names

        number, mean = len(self.draws), _short(self.mean)
        rows = {
            "do": world_names(self.do)[1][3:-1] if self.do else "",
            "given": ", ".join(f"{name}={_short(value)}" for name, value in self.given.items()),
            "value": mean,
        }
        if number > 1:
            if self.mean.dim() == 0:
                mean += f" ± {float(self.std) / self.ess**0.5:.1g}"
            low, high = self.interval(0.9)
            rows["value"] = f"mean {mean}, 90% in {_short(low)} to {_short(high)}"
        effective = f", {self.ess:.0f} effective" if self.ess < number - 0.5 else ""
        rows |= {
            "draws": f"{number} ({self.source}){effective}",
            "noise": ", ".join(f"{site}: {how}" for site, how in self.conventions.items()),
            "identified": self._identified(),
            "seed": str(self.seed),
            "versions": ", ".join(f"{name} {number}" for name, number in self.versions.items()),
        }
        rows = {key: text for key, text in rows.items() if text}
        width = max(map(len, rows))
        lines = [f"  {key:<{width}}  {text}" for key, text in rows.items()]
        return "\n".join([f"{self.of} ({self.rung})", *lines])

    def _identified(self) -> str:
        if self.identified is None:
            return ""
        if self.identified:
            return f"yes, from {self.grounds}"
        return f"no: {self.grounds}; the value rests on the program's mechanisms"


def _short(value: Tensor) -> str:
    """A tensor in few characters."""
    shown = ", ".join(f"{x:.4g}" for x in value.flatten()[:4].tolist())
    if value.dim() == 0:
        return shown
    return f"[{shown}{', ...' if value.numel() > 4 else ''}] {tuple(value.shape)}"
