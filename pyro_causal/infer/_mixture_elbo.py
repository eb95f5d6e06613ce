"""The evidence lower bound of a mixture, with its assignments summed out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Size, Tensor, nn

from pyro_causal.infer._branches import PARTICLES, Branches, Particle
from pyro_causal.infer._terms import with_owners

__all__ = ["DPMixtureELBO"]


class DPMixtureELBO(ELBO, nn.Module):
    r"""The evidence lower bound of a mixture of any components, at the best assignments.

    The model draws ``weights`` from a :class:`~pyro_causal.infer.priors.StickBreaking`, an
    ``assignment`` of each row from ``Categorical(weights)``, and the rest as it likes, from global
    latents :math:`\theta`. Under :math:`q(w) q(\theta) \prod_n q(z_n)` the evidence is at least

    .. math:: \sum_n E_{q(z_n)} \bigl[\ell_{n z_n} - \log q(z_n)\bigr]
        - \mathrm{KL}(q(w) \| p(w)) - \mathrm{KL}(q(\theta) \| p(\theta)), \qquad
        \ell_{nk} = E \log w_k + E_{q(\theta)} \log p(x_n \mid z_n = k, \theta)

    Each row's term is largest, namely :math:`\log \sum_k e^{\ell_{nk}}`, at the responsibilities
    :math:`r_{nk} = e^{\ell_{nk}} / \sum_l e^{\ell_{nl}}`. So the loss is

    .. math:: - \sum_n s_n \log \sum_k e^{\ell_{nk}} + \mathrm{KL}(q(w) \| p(w))
        + \mathrm{KL}(q(\theta) \| p(\theta))

    in which no assignment is drawn, each divergence enters once, and :math:`s_n` are the scales of
    the rows, all rows over those of the batch, so that batches are unbiased. Its gradient is that
    of the bound with r held fixed. The expectation :math:`E \log w` is in closed form, and so are
    divergences where torch knows one. That of the likelihood is the guide's closed form, or a mean
    over particles. The mean is taken before the sum over k; as the logarithm of that sum is convex,
    the expected loss rises with the number of particles to the one above. With one particle it is
    minus the tighter bound for assignments that know :math:`\theta`.

    After an evaluation with a gradient (and not in eval mode), a
    :class:`~pyro_causal.infer.guides.DPMixtureGuide` takes over the counts
    :math:`\sum_n s_n r_{nk}`; any other guide of the weights that is a ``StickBreaking`` is trained
    by its gradient. Assignments that a guide draws are left out of the bound, but trained towards
    the responsibilities, :math:`\sum_n s_n \mathrm{KL}(r_n \| q(z_n \mid x_n))`.

    Labels are observations of the assignment: ``[*rows]``, where -1 is unknown, or probabilities
    ``[*rows, K]``, which take the place of the responsibilities. Scales and masks act as in Pyro: a
    row whose assignment is masked does not count at all, one whose other sites are masked has
    only its weights.

    **Arguments**

    - ``weights``, ``assignment``: the names of the two sites.
    - ``temperature``: what the logarithm of the likelihood of a row is divided by in training, a
      number or a function of the steps done so far (whose number is state, for checkpoints). Above
      1 it blurs the responsibilities; scales that are learned widen, too, and components that have
      merged so do not part again. A loss that is only evaluated (``loss.loss(...)``) is the
      bound itself, at temperature 1.
    - ``label_weight``: :math:`\kappa` from 0 to 1, what the label of a row counts for in training.
      A row with the label :math:`c` has the term :math:`\log \sum_k e^{\ell_{nk}} + \kappa \log
      r_{nc}`, which is that of an unknown one at 0, and the joint one of row and label at 1.
      Probabilities as labels always count in full.
    - ``per_row``: divide by the number of all rows, so that learning rates suit any number.
    - others as ``Trace_ELBO``. With ``vectorize_particles`` the model has to broadcast: draw what
      components have as one event, say ``Normal(0, 1).expand([K]).to_event(1)`` and not in a plate,
      and take ``Vindex(loc)[..., z]`` instead of ``loc[z]``.

    **Shapes**: of :meth:`responsibilities` ``[*rows, K]``.

    **Raises**: ``ValueError`` for sites that are missing or are no mixture, labels out of range, a
    temperature that is not positive, and a guide with draws that cannot be differentiated.

    **References**: *Variational inference for Dirichlet process mixtures*,
    https://doi.org/10.1214/06-BA104, section 3; there the responsibilities are factors that are
    updated in turn. *Differentiable causal discovery under latent interventions*,
    https://arxiv.org/abs/2203.02336, equations 9 to 12: there global divergences are
    counted for each row, and those of the weights are missing below equation 12; here each enters
    once.

    **Example**::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_causal.infer.guides import DPMixtureGuide
        >>> from pyro_causal.infer.priors import StickBreaking
        >>> def model(x):
        ...     w = pyro.sample("weights", StickBreaking.gem(1.0, truncation=2))
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(w))
        ...         pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[z], 1.0), obs=x)
        >>> loss = DPMixtureELBO(max_plate_nesting=1)
        >>> loss.responsibilities(model, DPMixtureGuide(model), torch.tensor([0.0, 0.5]))
        tensor([[0.5000, 0.5000],
                [0.2689, 0.7311]])
    """

    steps: Tensor

    def __init__(
        self,
        *,
        weights: str = "weights",
        assignment: str = "z",
        temperature: float | Callable[[int], float] = 1.0,
        label_weight: float = 1.0,
        per_row: bool = False,
        **options: Any,
    ) -> None:
        nn.Module.__init__(self)
        ELBO.__init__(self, **options)
        if not 0 <= label_weight <= 1:
            raise ValueError(
                f"DPMixtureELBO: expected a label_weight from 0 to 1, got {label_weight}. Give 1, "
                "or less where labels may be wrong."
            )
        self.weights, self.assignment = weights, assignment
        self.temperature, self.per_row = temperature, per_row
        self.label_weight = label_weight
        self.register_buffer("steps", torch.tensor(0))
        self._temperature()

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> ELBOModule:
        """Bind the loss to a model and a guide."""
        module = super().__call__(model, guide)  # type: ignore[arg-type]
        return with_owners(module, method=model, guide_method=guide)

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Estimate the negative bound, whatever the temperature."""
        bound = self._bound(model, guide, args, kwargs)
        loss: float = torch_item(self._per_row(-bound.value, bound))
        warn_if_nan(loss, "loss")  # type: ignore[call-overload]  # floats are fine
        return loss

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Estimate what is minimised, with its gradient."""
        options = {"temperature": self._temperature(), "label_weight": self.label_weight}
        bound = self._bound(model, guide, args, kwargs, **options)
        if torch.is_grad_enabled():
            self.steps += 1
            bound.teach()
        loss = self._per_row(bound.gap - bound.value, bound)
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Estimate what is minimised, and add its gradient to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    @torch.no_grad()
    def responsibilities(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The probability of each component for each row, ``[*rows, K]``."""
        bound = self._bound(model, guide, args, kwargs)
        return bound.responsibilities.movedim(0, -1).reshape(*bound.shape, -1)

    def _bound(self, model: Any, guide: Any, args: Any, kwargs: Any, **options: float) -> _Bound:
        if self.max_plate_nesting == float("inf"):
            whole = Branches(self.assignment)(model)
            self._guess_max_plate_nesting(whole, guide, args, kwargs)
        particles: list[Particle] = []
        if self.vectorize_particles:
            model, guide = (self._vectorized_num_particles(fn) for fn in (model, guide))
        for _ in range(1 if self.vectorize_particles else self.num_particles):
            particles.append(self._particle(model, guide, args, kwargs, particles[:1]))
        likelihood: Tensor | float = 0.0
        others: Tensor | float = 0.0
        for particle in particles:
            branched, fixed = particle.terms()
            likelihood = sum(branched, likelihood)
            others = sum((term.sum() for term in fixed), others)
        if particles[0].closed:  # or at a draw of the guide's, hence once for each particle
            closed = [particles[0].expected(*args, **kwargs) for _ in range(self.num_particles)]
            vectorised = self.vectorize_particles and self.num_particles > 1
            likelihood = likelihood + (torch.cat(closed, 1) if vectorised else sum(closed))
        return _Bound(
            particles[0],
            likelihood / self.num_particles,
            others=others / self.num_particles,
            **options,
        )

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        particle = self._particle(model, guide, args, kwargs, [])
        return particle.model, particle.guide

    def _particle(
        self, model: Any, guide: Any, args: Any, kwargs: Any, before: list[Particle]
    ) -> Particle:
        """Run once more, on the rows of the first run."""
        return Particle(
            model,
            guide,
            args,
            kwargs,
            weights=self.weights,
            assignment=self.assignment,
            nesting=self.max_plate_nesting,
            kept=before[0].subsamples() if before else poutine.Trace(),
        )

    def _temperature(self) -> float:
        now = self.temperature
        value = now(int(self.steps)) if callable(now) else now
        if not value > 0:
            raise ValueError(
                f"DPMixtureELBO: expected a temperature above zero, got {value} at step "
                f"{int(self.steps)}. Give 1, or more to blur the assignments."
            )
        return value

    def _per_row(self, loss: Tensor, bound: _Bound) -> Tensor:
        return loss / bound.rows if self.per_row else loss


class _Bound:
    """The bound at the present factors, and what the next step learns from it.

    **Arguments**: ``likelihood``, the terms that vary over components, ``[K, *plates]``, where
    vectorised particles are yet to be summed; ``others``, the sum of all other terms.
    """

    def __init__(
        self,
        particle: Particle,
        likelihood: Tensor | float,
        *,
        others: Tensor | float,
        temperature: float = 1.0,
        label_weight: float = 1.0,
    ) -> None:
        self.particle, self.others, self.label_weight = particle, others, label_weight
        batch = particle.z["fn"].batch_shape
        self.vectorised = any(f.name == PARTICLES for f in particle.z["cond_indep_stack"])
        self.shape = batch[1:] if self.vectorised else batch
        self.plates = Size([*[1] * (particle.nesting - len(self.shape)), *self.shape])
        self.scale, self.mask = particle.z["scale"], particle.z["mask"]
        weights = particle.posterior.expected_log_weights
        weights = weights.reshape(-1, weights.shape[-1])[0].reshape(-1, *[1] * len(self.plates))
        if isinstance(likelihood, Tensor):
            relative: Tensor = likelihood / self.scale  # scales within a row, to its own
            likelihood = relative.sum(1, keepdim=True) if self.vectorised else relative
        self.logits = (weights + likelihood / temperature).expand(-1, *self.plates)
        self.energy, self.responsibilities = self._settled(particle.labels)
        self.value = self._total(self.energy).sum() + others

    @property
    def rows(self) -> Tensor:
        """The number of all rows, in the units of the bound."""
        return torch.as_tensor(self.scale).to(self.logits).expand(self.plates).sum()

    @property
    def gap(self) -> Tensor | float:
        """The divergence of the guide's own assignments, if it has any, from the exact ones."""
        site = self.particle.guide.nodes.get(self.particle.assignment)
        if site is None:
            return 0.0
        fn: Any = site["fn"]
        log_q = self.particle.aligned(fn.logits)
        if self.vectorised:
            log_q = log_q[:, :1]
        r = self.responsibilities.detach()
        if log_q.shape != r.shape:
            raise ValueError(
                f"At site '{self.particle.assignment}', the guide's assignments: expected shape "
                f"{(*self.shape, len(r))} as in the model, got {tuple(fn.logits.shape)}. Give the "
                "network the rows of the batch, as arguments of the model."
            )
        return self._total((torch.xlogy(r, r) - r * log_q).sum(0)).sum()

    @torch.no_grad()
    def teach(self) -> None:
        """Hand the counts to the guide, if it takes any."""
        if self.particle.mixture is not None:
            prior = self.particle.prior
            counts = self._total(self.responsibilities).flatten(1).sum(1) / prior["scale"]
            frames = self.particle.z["cond_indep_stack"]
            share = math.prod(f.size / (f.full_size or f.size) for f in frames)
            self.particle.mixture.update(prior["fn"], counts, share=share)

    def _total(self, values: Tensor) -> Tensor:
        """What values of the batch's rows stand for."""
        total: Tensor = scale_and_mask(values, self.scale, self.mask)
        return total

    def _settled(self, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The term of each row, and its responsibilities: the best, or those that labels say."""
        logits = self.logits
        if labels is None:
            return logits.logsumexp(0), logits.softmax(0)
        if labels.is_floating_point():
            q = self.particle.aligned(labels).expand_as(logits)
            return (q * logits - torch.xlogy(q, q)).sum(0), q
        index = torch.arange(len(logits), device=labels.device).reshape(-1, *[1] * labels.dim())
        known = logits.masked_fill((labels >= 0) & (labels != index), -torch.inf)
        kappa = self.label_weight
        return (
            torch.lerp(logits.logsumexp(0), known.logsumexp(0), kappa),
            torch.lerp(logits.softmax(0), known.softmax(0), kappa),
        )
