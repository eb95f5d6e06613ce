"""The guide of a Dirichlet-process mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_sample
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_causal._pyro import register
from pyro_causal._recipe import NamedModules
from pyro_causal.infer._branches import Branches, site_of
from pyro_causal.infer._factors import factor_of
from pyro_causal.infer._mixture_elbo import DPMixtureELBO
from pyro_causal.infer._sticks import StickBreaking

__all__ = ["DPMixtureGuide"]

PARTICLES = 10  # enough for responsibilities whose error is below that of the factors


class DPMixtureGuide(PyroModule):
    r"""A mean field for a mixture of an unknown number of components, with conjugate weights.

    .. math:: q(w) \prod_j q(\theta_j) \; \Bigl[\prod_n q(z_n \mid x_n)\Bigr], \qquad
        q(w) = \mathrm{break}\Bigl(\mathrm{Beta}\bigl(a_k + N_k,
        b_k + \textstyle\sum_{l > k} N_l\bigr)\Bigr)

    It is made for any model with ``weights`` from ``StickBreaking.gem(alpha, truncation=K)`` and an
    ``assignment`` of each row, and trained with :class:`~pyro_causal.infer.elbo.DPMixtureELBO`,
    which sums assignments out. The counts :math:`N_k` of rows in each component are buffers and
    have no gradient: after each step they become the sums of responsibilities, the best choice, or
    for batches a running mean of those, scaled to all rows (a natural-gradient step). Other
    latents, regime embeddings or targets say, get independent factors on the first call:
    :class:`RealFactor`, also by a change of variables, :class:`BinaryFactor` and
    :class:`GraphFactor`.

    Rows must not have latents of their own beside the assignment, unless ``rest`` draws them.

    **Arguments**

    - ``model``: it runs once, on the first call, as for Pyro's automatic guides.
    - ``weights``, ``assignment``: the names of the two sites.
    - ``network``: an amortised :math:`q(z_n \mid x_n)`, a module from the model's arguments to
      logits ``[*rows, K]``. It learns the exact responsibilities and takes no part in the bound.
      With it the guide draws assignments too.
    - ``rest``: a guide of some of the sites, called with the model's arguments.
    - ``expected``: :math:`E_q \log p(x_n \mid z_n = k, \theta)` in closed form, or an estimate of
      it from a draw of some factors, with a gradient; a function ``(factor, *args, **kwargs)`` to
      ``[*rows, K]``, where ``factor(name)`` is the factor of a site. It takes the place of all that
      the model observes in the rows, and is called once for each particle.
    - ``memory``: over how many passes of the data the counts are averaged.
    - ``init_loc_fn``, ``init_scale``: where factors start, as in Pyro's ``AutoNormal``. Components
      that start alike stay alike.

    **Shapes**: :attr:`weights` ``[K]``, responsibilities ``[*rows, K]``.

    **Raises**: ``ValueError`` for sites that have no factor here, and results of the wrong shape.

    **References**: *Variational inference for Dirichlet process mixtures*,
    https://doi.org/10.1214/06-BA104, section 3; *Stochastic variational
    inference*, https://arxiv.org/abs/1206.7055, section 2.4, there with steps that
    shrink; *Differentiable causal discovery under latent interventions*,
    https://arxiv.org/abs/2203.02336, appendix A, there with gradients for the sticks.

    **Example**::

        >>> from pyro.infer.autoguide import init_to_value
        >>> from pyro_causal.infer import DPMixtureELBO, fit
        >>> def model(x):
        ...     w = pyro.sample("weights", StickBreaking.gem(1.0, truncation=6))
        ...     with pyro.plate("components", 6):
        ...         loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(w))
        ...         pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
        >>> x = torch.cat([torch.randn(50) - 8, torch.randn(50) + 8])
        >>> start = init_to_value(values={"loc": torch.linspace(-10, 90, 6)})
        >>> guide = DPMixtureGuide(model, init_loc_fn=start)
        >>> history = fit(model, guide, loss=DPMixtureELBO(), data=x, epochs=200, lr=0.1)
        >>> guide.used(), guide.assign(x)[:50].unique().numel()
        (2, 1)
    """

    counts: Tensor
    prior1: Tensor
    prior0: Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        weights: str = "weights",
        assignment: str = "z",
        network: nn.Module | None = None,
        rest: Callable[..., Any] | None = None,
        expected: Callable[..., Tensor] | None = None,
        memory: float = 1.0,
        init_loc_fn: Callable[[Any], Tensor] = init_to_sample,
        init_scale: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("memory", memory), ("init_scale", init_scale)):
            if not value > 0:
                raise ValueError(
                    f"DPMixtureGuide: expected a positive {name}, got {value}. Change it."
                )
        self._model = (model,)  # no part of the guide
        self._weights, self._assignment = weights, assignment
        self.network, self.rest = network, rest
        self.expected = expected
        self.memory = memory
        self.init_loc_fn, self.init_scale = init_loc_fn, init_scale
        self.factors = NamedModules({})
        self.frames: dict[str, Any] = {}  # the plates of each site, in the model's order
        self.rows: Any = ()  # those of the assignment

    @property
    def model(self) -> Callable[..., Any]:
        """The model that the guide was made for."""
        return self._model[0]

    @property
    def sticks(self) -> StickBreaking:
        """The factor of the weights."""
        self._require_ready()
        return StickBreaking(self.prior1, self.prior0).updated(self.counts)

    @property
    def weights(self) -> Tensor:
        """The expected weights, ``[K]``."""
        return self.sticks.mean

    def factor(self, name: str) -> Any:
        """The factor of a site."""
        sticks = self.sticks
        if name == self._weights:
            return sticks
        factors: Any = self._modules["factors"]  # without telling Pyro again, or of frozen ones
        if _key(name) not in factors:
            names = [n.replace("/", ".") for n in factors]
            raise ValueError(
                f"No factor of '{name}': expected one of {', '.join([self._weights, *names])}. "
                "Ask for one of them."
            )
        return factors[_key(name)]()

    def used(self, *, share: float = 0.01) -> int:
        """How many components have more than a share of the rows."""
        self._require_ready()
        return int((self.counts > share * self.counts.sum()).sum())

    def responsibilities(self, *args: Any, **kwargs: Any) -> Tensor:
        """The probability of each component for each row, new rows included, ``[*rows, K]``.

        They are exact but for a mean over ten draws of the factors, or none where ``expected`` is
        in closed form; :meth:`~pyro_causal.infer.elbo.DPMixtureELBO.responsibilities` takes any
        number of draws.
        """
        self._require_ready()
        loss = DPMixtureELBO(
            weights=self._weights,
            assignment=self._assignment,
            num_particles=PARTICLES,
            max_plate_nesting=self._nesting,
        )
        return loss.responsibilities(self.model, self, *args, **kwargs)

    def assign(self, *args: Any, **kwargs: Any) -> Tensor:
        """The most probable component of each row, ``[*rows]``."""
        return self.responsibilities(*args, **kwargs).argmax(-1)

    @torch.no_grad()
    def set_responsibilities(self, responsibilities: Tensor, *, sort: bool = True) -> Tensor:
        """Set the counts from initial responsibilities, and return them, larger components first.

        What is returned, ``[N, K]``, fits as labels: train on them first, so that the other factors
        follow, then without. The order is the one that the prior of the weights likes best; without
        ``sort``, components keep theirs.

        **Shapes**: ``[N, k]``, with K components or fewer; each row sums to one.
        """
        self._require_ready()
        given, K = responsibilities.to(self.counts), len(self.counts)
        if given.dim() != 2 or given.shape[-1] > K or not _sums_to_one(given):
            raise ValueError(
                f"DPMixtureGuide: expected responsibilities [N, k] of up to {K} components which "
                f"sum to one in each row, got shape {tuple(given.shape)}. Give probabilities; of "
                "labels, one_hot."
            )
        if sort:
            given = given[:, given.sum(0).argsort(descending=True, stable=True)]
        given = nn.functional.pad(given, (0, K - given.shape[-1]))
        self.counts.copy_(given.sum(0))
        return given

    @torch.no_grad()
    def update(self, prior: StickBreaking, counts: Tensor, *, share: float) -> None:
        """Take a natural-gradient step in the factor of the weights; the loss calls it.

        **Arguments**: the model's prior; ``counts`` of rows in each component, scaled to all rows;
        the ``share`` of all rows that they come from.
        """
        if self.training and counts.isfinite().all():  # the loss tells of what is not
            rate = min(1.0, share / self.memory)
            self.counts.lerp_(counts.to(self.counts), rate)
            self.prior1.lerp_(prior.concentration1.reshape(-1, len(self.prior1))[0], rate)
            self.prior0.lerp_(prior.concentration0.reshape(-1, len(self.prior0))[0], rate)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Draw from the guide; it takes the model's arguments."""
        if not self._ready:
            self.set_up(*args, **kwargs)
        register(self, "factors")
        result: dict[str, Any] = {}
        for name, frames in self.frames.items():
            with _plates(frames, [frame.size for frame in frames]):
                infer: Any = {"mixture": self}  # how the loss knows the guide, handled or not
                result[name] = pyro.sample(name, self.factor(name), infer=infer)
        if self.rest is not None:
            self.rest(*args, **kwargs)
        network = self._modules.get("network")
        if network is not None:
            register(self, "network")
            result[self._assignment] = self._recognised(network(*args, **kwargs))
        return result

    def _recognised(self, logits: Tensor) -> Tensor:
        """Draw assignments from the network's distribution."""
        K, plates = len(self.counts), self.rows
        if logits.shape[-1:] != (K,) or logits.dim() <= max(-f.dim for f in plates):
            raise ValueError(
                f"At site '{self._assignment}', the network returns shape {tuple(logits.shape)}: "
                f"expected logits [*rows, {K}]. Change its last layer."
            )
        with _plates(plates, [logits.shape[frame.dim - 1] for frame in plates]):
            draw: Tensor = pyro.sample(self._assignment, dist.Categorical(logits=logits))
        return draw

    @property
    def _ready(self) -> bool:
        return "counts" in self._buffers

    def _require_ready(self) -> None:
        if not self._ready:
            raise ValueError(
                "DPMixtureGuide: it has not seen the model yet: expected one call before. Call it "
                "with the model's arguments."
            )

    @torch.no_grad()
    def set_up(self, *args: Any, **kwargs: Any) -> None:
        """Look at the model's sites, and make a factor for each, as the first call does."""
        with poutine.block():
            rest = poutine.trace(self.rest).get_trace(*args, **kwargs) if self.rest else ()
            model = InitMessenger(self.init_loc_fn)(Branches(self._assignment)(self.model))
            trace = prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))
        prior = site_of(trace, self._weights, "weights")["fn"]
        if not isinstance(prior, StickBreaking):
            raise ValueError(
                f"At site '{self._weights}', the weights: expected a StickBreaking, got "
                f"{type(prior).__name__}. Give StickBreaking.gem(concentration, truncation=K)."
            )
        self.rows = site_of(trace, self._assignment, "assignment")["cond_indep_stack"]
        stacks: list[Any] = [
            s["cond_indep_stack"] for s in trace.nodes.values() if s["type"] == "sample"
        ]
        self._nesting = max(-f.dim for stack in stacks for f in stack)
        for name, site in trace.nodes.items():
            latent = site["type"] == "sample" and not site["is_observed"]
            if not latent or name == self._assignment or name in getattr(rest, "nodes", ()):
                continue
            self.frames[name] = site["cond_indep_stack"]
            if name != self._weights:
                self._require_global(name)
                self.factors.add_module(_key(name), factor_of(name, site, scale=self.init_scale))
        self.register_buffer("prior1", prior.concentration1.clone())
        self.register_buffer("prior0", prior.concentration0.clone())
        self.register_buffer("counts", torch.zeros_like(prior.mean))

    def _require_global(self, name: str) -> None:
        local = {f.name for f in self.rows} & {f.name for f in self.frames[name]}
        if local:
            raise ValueError(
                f"At site '{name}', a latent for each of '{min(local)}': expected latents of all "
                "rows together, beside the assignment. Give a guide of this site as rest."
            )


@contextmanager
def _plates(frames: Iterable[Any], sizes: Iterable[int]) -> Iterator[None]:
    """Plates like the model's, which leave the draw of rows to the model."""
    with ExitStack() as stack:
        for frame, size in zip(frames, sizes, strict=True):
            with poutine.block():
                plate = pyro.plate(frame.name, size, dim=frame.dim)
            stack.enter_context(plate)
        yield


def _key(name: str) -> str:
    """A name that a module may have."""
    return name.replace(".", "/")


def _sums_to_one(rows: Tensor) -> bool:
    return bool((rows >= 0).all()) and torch.allclose(rows.sum(-1), rows.new_ones(()), atol=1e-4)
