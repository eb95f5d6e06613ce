"""Evidence lower bounds: Pyro's, with what methods need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import ELBO, Trace_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.util import MultiFrameTensor, torch_item
from pyro.util import warn_if_nan
from torch import Tensor, nn

from pyro_causal.infer._mixture_elbo import DPMixtureELBO
from pyro_causal.infer._terms import closed_divergence, with_owners
from pyro_causal.infer.acyclicity import is_dag

__all__ = ["AugmentedLagrangianELBO", "DPMixtureELBO", "MeanFieldELBO"]


class MeanFieldELBO(Trace_ELBO):
    r"""The evidence lower bound with the divergence of latent sites weighed by a factor.

    .. math:: E_q \log p(x \mid z) - \beta \, \mathrm{KL}(q(z) \,\|\, p(z))

    The divergence of a site is in closed form where torch knows one and the guide draws all latent
    sites before it that the model has before it, as in a mean field; else it is estimated from the
    draws. Discrete latent sites are fine, too: their gradients are those of ``Trace_ELBO``.

    A larger :math:`\beta` makes latents dearer, so that they leave to the parents of a variable
    what the parents can tell. As a module, ``loss(model, guide)`` holds the parameters of the
    modules that a bound ``model`` and ``guide`` belong to, for torch optimisers and distributed
    training.

    **Arguments**: ``beta``, in training; a loss that is only evaluated (``loss.loss(...)``) is the
    bound itself. Others as ``Trace_ELBO``.

    **Raises**: ``ValueError`` if ``beta`` is not positive.

    **References**: *beta-VAE: learning basic visual concepts with a constrained variational
    framework*, https://openreview.net/forum?id=Sy2fzU9gl, equation 4; for the closed form, *Auto-
    encoding variational Bayes*, https://arxiv.org/abs/1312.6114, equation 7.
    """

    def __init__(self, *, beta: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if not beta > 0:
            raise ValueError(
                f"MeanFieldELBO: expected a positive beta, got {beta}. Give 1 or more."
            )
        self.beta = beta

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> ELBOModule:
        """Bind the loss to a model and a guide."""
        module = super().__call__(model, guide)  # type: ignore[arg-type]
        return with_owners(module, method=model, guide_method=guide)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Estimate the negative bound, whatever beta is."""
        loss = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            particle, _ = _losses(model_trace, guide_trace, beta=1.0)
            loss += particle / self.num_particles
        warn_if_nan(loss, "loss")  # type: ignore[call-overload]  # floats are fine
        return loss

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        return _losses(model_trace, guide_trace, beta=self.beta)


class AugmentedLagrangianELBO(ELBO, nn.Module):
    r"""Any evidence lower bound under a constraint, by the method of multipliers.

    .. math:: L(\theta) + \lambda h(A_\theta) + \tfrac c2 h(A_\theta)^2

    is minimised in rounds, where L is the negative bound and h the constraint, say an acyclicity.
    After each round the multiplier :math:`\lambda` grows by :math:`c h`, and c by a factor
    if h has not fallen enough. What is sought is a graph and not a zero: :attr:`converged` is true,
    and :func:`~pyro_causal.infer.training.fit` ends, when a number of rounds in a row have left the
    same acyclic edges above a threshold (not while the matrix is held, without a gradient).

    It is a module, whose state (``state_dict()``) is all that the rounds know; a checkpoint of
    ``fit`` and the state of ``loss(model, guide)`` hold it. The latter also holds the parameters of
    the modules that a bound ``model``, ``guide`` and ``matrix`` belong to.

    As for other losses here, one that is only evaluated (``loss.loss(...)``) is that of the wrapped
    bound. It does not tell when to stop, since early graphs have cycles and fit better: give
    ``fit`` no ``validation``.

    **Arguments**

    - ``elbo``: the bound. The penalty is added to its loss as it is, so scale a loss that is a sum
      over many rows to their mean (``poutine.scale``), or give a larger ``penalty``.
    - ``constraint``: a function from the matrix to a scalar that shall be zero, see
      :mod:`~pyro_causal.infer.acyclicity`.
    - ``matrix``: a function without arguments to :math:`A_\theta`, ``[d, d]``.
    - ``steps``: gradient steps in a round, enough to come near to a minimum; the empty graph that
      one starts from is stable, too. After so many evaluations with a gradient, the next one calls
      :meth:`update` first. By default only you call it, at the end of each round.
    - ``penalty``, ``growth``, ``max_penalty``: c at the start, its factor, and where that ends.
    - ``reduction``: c grows if :math:`|h|` is above this fraction of what it was a round ago,
      and above ``tolerance``.
    - ``threshold``: what an entry must exceed to count as an edge.
    - ``tolerance``: a graph counts as found only if :math:`|h|` is not above this, so that what is
      below the threshold hardly matters.
    - ``rounds``: how many in a row must agree.

    **Raises**: ``ValueError`` for arguments out of range, a constraint that is no scalar, and a
    torch optimiser with a bound that has no differentiable form.

    **References**: *DAGs with NO TEARS*, https://arxiv.org/abs/1803.01422, section 4; *Numerical
    optimization*, https://doi.org/10.1007/978-0-387-40065-5, framework 17.3. Both stop at a small
    :math:`h`, for which c has to grow without bound, because no sigmoid is ever zero.

    **Example**::

        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_causal.infer.acyclicity import trace_exponential
        >>> logits = nn.Parameter(torch.zeros(4, 4))
        >>> loss = AugmentedLagrangianELBO(
        ...     Trace_ELBO(), trace_exponential, matrix=lambda: logits.sigmoid()
        ... )
        >>> loss.update()
        False
        >>> loss.multiplier
        tensor(0.0230)
    """

    matrix: Callable[[], Tensor]
    multiplier: Tensor
    penalty: Tensor
    violation: Tensor
    done: Tensor
    agreed: Tensor
    graph: Tensor

    def __init__(
        self,
        elbo: ELBO,
        constraint: Callable[[Tensor], Tensor],
        *,
        matrix: Callable[[], Tensor],
        steps: int | None = None,
        penalty: float = 1e-2,
        growth: float = 10.0,
        max_penalty: float = 1e6,
        reduction: float = 0.25,
        threshold: float = 0.5,
        tolerance: float = 0.01,
        rounds: int = 3,
    ) -> None:
        nn.Module.__init__(self)
        ELBO.__init__(self, num_particles=elbo.num_particles)
        for name, value, fits, expected in (
            ("steps", steps, steps is None or steps >= 1, "None or a number from 1"),
            ("penalty", penalty, 0 < penalty <= max_penalty, "more than 0, max_penalty at most"),
            ("growth", growth, growth > 1, "more than 1"),
            ("reduction", reduction, 0 < reduction < 1, "a fraction between 0 and 1"),
            ("rounds", rounds, rounds >= 1, "a number from 1"),
        ):
            if not fits:
                raise ValueError(
                    f"AugmentedLagrangianELBO: expected {name} to be {expected}, got {value}. "
                    "Change it."
                )
        self.elbo = elbo
        self.constraint = constraint
        self.__dict__["matrix"] = matrix  # no part of the state, even if it is a module
        self.steps, self.growth, self.max_penalty = steps, growth, max_penalty
        self.reduction, self.threshold, self.tolerance = reduction, threshold, tolerance
        self.rounds = rounds
        self.register_buffer("multiplier", torch.tensor(0.0))
        self.register_buffer("penalty", torch.tensor(penalty))
        self.register_buffer("violation", torch.tensor(float("inf")))  # h at the last update
        self.register_buffer("done", torch.tensor(0))  # steps of this round
        self.register_buffer("agreed", torch.tensor(0))  # rounds in a row with this graph
        self.register_buffer("graph", torch.zeros(0, 0, dtype=torch.bool))

    @property
    def converged(self) -> bool:
        """Whether the last rounds agreed on an acyclic ``graph``."""
        return int(self.agreed) >= self.rounds

    @torch.no_grad()
    def update(self) -> bool:
        """End a round: update multiplier, penalty and graph, and return :attr:`converged`."""
        with torch.enable_grad():
            matrix = self._matrix()
        h = self._value(matrix)
        self.multiplier += self.penalty * h.to(self.multiplier)
        if h.abs() > max(self.tolerance, self.reduction * float(self.violation)):
            self.penalty.mul_(self.growth).clamp_(max=self.max_penalty)
        self.violation.copy_(h.abs())
        edges = matrix > self.threshold
        edges.fill_diagonal_(False)
        found = matrix.requires_grad and bool(is_dag(edges)) and bool(h.abs() <= self.tolerance)
        same = torch.equal(edges, self.graph)
        self.agreed.copy_(found * (same * self.agreed + 1))
        self.graph.copy_(edges)
        self.done.zero_()
        return self.converged

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """Estimate the negative bound, without the constraint."""
        return self.elbo.loss(model, guide, *args, **kwargs)  # type: ignore[attr-defined]

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Estimate what is minimised, with its gradient."""
        self._count()
        inner: Any = self.elbo
        loss: Tensor = inner.differentiable_loss(model, guide, *args, **kwargs)
        return loss + self._price()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Estimate what is minimised, and add its gradient to the parameters."""
        self._count()
        inner: Any = self.elbo
        loss: float = inner.loss_and_grads(model, guide, *args, **kwargs)
        price = self._price()
        if price.requires_grad:
            price.backward()
        return loss + price.item()

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> ELBOModule:
        """Bind the loss to a model and a guide."""
        if not hasattr(self.elbo, "differentiable_loss"):
            raise ValueError(
                f"AugmentedLagrangianELBO: {type(self.elbo).__name__} has no differentiable form: "
                "expected a loss with differentiable_loss for a torch optimiser. Wrap another, or "
                "give an optimiser of pyro.optim."
            )
        module = self.elbo(model, guide)  # type: ignore[arg-type]
        module.elbo = self
        return with_owners(module, method=model, guide_method=guide, matrix_method=self.matrix)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(model, guide, args, kwargs)

    def _count(self) -> None:
        """Count a step, after the update that ends the round before it."""
        if self.steps is not None and torch.is_grad_enabled():
            if int(self.done) >= self.steps:
                self.update()
            self.done += 1

    def _price(self) -> Tensor:
        h = self._value(self._matrix())
        multiplier, penalty = self.multiplier.clone().to(h), self.penalty.clone().to(h)
        return multiplier * h + penalty / 2 * h.square()

    def _matrix(self) -> Tensor:
        matrix: Tensor = self.matrix()
        if not self.graph.numel():
            self.graph = torch.zeros_like(matrix, dtype=torch.bool)
        return matrix

    def _value(self, matrix: Tensor) -> Tensor:
        h = self.constraint(matrix)
        if h.dim():
            raise ValueError(
                f"AugmentedLagrangianELBO: expected a constraint that is a scalar, got shape "
                f"{tuple(h.shape)}. Give one matrix [d, d], or sum over the batch."
            )
        return h

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        graph = state.get(f"{prefix}graph", self.graph)
        if graph.shape != self.graph.shape:  # the first step would have sized it
            self.graph = self.graph.new_zeros(graph.shape)
        super()._load_from_state_dict(state, prefix, *args)


def _losses(model_trace: Any, guide_trace: Any, *, beta: float) -> tuple[float, Any]:
    """The loss, and what has its gradient."""
    order = {name: k for k, name in enumerate(guide_trace.nodes)}
    terms = []
    latest = 0
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample":
            continue
        term = site["log_prob"]
        if not site["is_observed"]:
            closed = order[name] > latest
            latest = max(latest, order[name])
            guide_site = guide_trace.nodes[name]
            term = -beta * _divergence(guide_site, site, closed=closed)
            site = guide_site
        terms.append((site["cond_indep_stack"], term))
    drawn = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
    for site in drawn:
        if site["name"] not in model_trace.nodes:  # auxiliary
            terms.append((site["cond_indep_stack"], -beta * _log_density(site)))
    bound = surrogate = sum(term.sum() for _, term in terms)
    for site in drawn:
        score = site["score_parts"].score_function
        if not is_identically_zero(score):
            gains = MultiFrameTensor(*((frames, term.detach()) for frames, term in terms))
            surrogate = surrogate + (gains.sum_to(site["cond_indep_stack"]) * score).sum()
    return -torch_item(bound), -surrogate


def _divergence(guide_site: Any, model_site: Any, *, closed: bool) -> Tensor:
    """The divergence of a latent site, in closed form or at the draw, for each row."""
    if closed and (kl := closed_divergence(guide_site, model_site)) is not None:
        return kl
    density: Tensor = _log_density(guide_site) - model_site["log_prob"]
    return density


def _log_density(guide_site: Any) -> Tensor:
    """That of a draw of the guide, without a gradient where its expectation is zero."""
    density: Tensor = guide_site["log_prob"]
    reparametrised = not is_identically_zero(guide_site["score_parts"].entropy_term)
    return density if reparametrised else density.detach()
