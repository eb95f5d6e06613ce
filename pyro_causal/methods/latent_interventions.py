"""Causal discovery from a mixture of unknown interventions: model, guide and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_sample
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_causal._pyro import register
from pyro_causal.infer.acyclicity import trace_exponential
from pyro_causal.infer.elbo import AugmentedLagrangianELBO, DPMixtureELBO
from pyro_causal.infer.guides import DPMixtureGuide
from pyro_causal.infer.priors import BernoulliGraph, StickBreaking
from pyro_causal.infer.structural_em import structural_em
from pyro_causal.mechanisms import FlowSEM, LinearSEM, NonlinearSEM
from pyro_causal.mechanisms.sem import StructuralEquations, sample_adjacency
from pyro_causal.mechanisms.sem_mixture import IntervenedRows
from pyro_causal.methods._found_interventions import FoundInterventions
from pyro_causal.methods._interventions_input import (
    require_labels,
    require_names,
    require_numbers,
    require_one_of,
    require_options,
    require_precision,
    require_rows,
    require_shapes,
    require_variation,
)

__all__ = ["LatentInterventions"]

Density = Literal["linear", "nonlinear", "flow"]
Intervention = Literal["stochastic", "imperfect"]
PRICES = {  # of an edge and a target
    "linear": (0.003, 0.003),
    "nonlinear": (0.01, 0.01),
    "flow": (0.004, 0.01),
}
UNITS = 100  # random features of the search, where it is not linear
SURE = 6.0  # the logit of what a search has found
WRONG = 0.2  # edges in a draw of a graph that it has found, at most
STEPS = 100  # in a round of multipliers
LEAST = 0.1  # the log odds of an edge found at least, and less those of one not found at most


class LatentInterventions(FoundInterventions):
    r"""A mixture, of an unknown number of components, of interventions on one unknown graph.

    .. math::

        w &\sim \mathrm{GEM}(\alpha), \qquad G_{ij} \sim \mathrm{Bern}(p_{ij}), \qquad
        r_{kj} \sim \mathrm{Bern}(\rho), \qquad u_0, \ldots, u_K \sim N(0, 1), \\
        z_n &\sim w, \qquad x_{nj} \mid z_n = k \;\sim\;
        p_j(x_{nj} \mid x_{n, \mathrm{pa}(j)}; u_0)^{1 - r_{kj}} \,
        p_j(x_{nj} \mid x_{n, \mathrm{pa}_k(j)}; u_k)^{r_{kj}}

    Component k targets the nodes with :math:`r_{kj} = 1`, which follow a mechanism of its own. A
    stochastic intervention cuts their parents, :math:`\mathrm{pa}_k(j) = \emptyset`; one that may
    be imperfect draws for each target whether they are cut.

    The guide is a mean field, :class:`~pyro_causal.infer.guides.DPMixtureGuide`: assignments are
    summed out, weights are conjugate, divergences are in closed form and enter once, and graphs are
    drawn edge by edge with a straight-through gradient. What is observed decides what is learnt:
    labels ``z`` of some rows or all are an argument of model and guide, targets one of the
    constructor, and both may be missing.

    Gradients alone end in poor optima. :meth:`initialise` takes graph, regimes and targets from
    :func:`~pyro_causal.infer.structural_em.structural_em`. The mechanisms are trained under these,
    first in the regimes of the search, then, at a smaller rate, in those of the model::

        method = LatentInterventions(nodes=10)
        train = partial(fit, method.model, method.guide, loss=method.loss(constraint=None), ...)
        q = method.initialise(x)
        train(data={"x": x, "z": q}, epochs=60, optim=partial(Adam, lr=0.03))
        train(data={"x": x}, epochs=20, optim=partial(Adam, lr=0.003))

    Without a search, or after :meth:`learn_structure_`, :meth:`loss` trains graph and targets as
    well and keeps the graph acyclic. From the graph of a search it seldom gets anywhere: a parent
    that is never drawn has no trained mechanism that speaks for it.

    **Arguments**

    - ``nodes``: the number d of variables.
    - ``density``: of a node given its parents: ``linear`` or ``nonlinear`` (networks) with Gaussian
      noise, or a sigmoidal ``flow``.
    - ``intervention``: ``stochastic``, or ``imperfect``, which may keep parents.
    - ``truncation``: the number K of components at most, from 2. For rows of one regime give
      labels that are all 0.
    - ``targets``: zeros and ones, of the components, where known; there are then as many as these.
    - ``edges``: prior probabilities of edges, such as ``graph_prior(...).probs``; zeros and ones
      are certain.
    - ``edge``, ``target``: penalties on each edge and each target beyond that, in nats for each
      row. Families are never quite right, and in many rows a superfluous edge makes up for some of
      that. By default 0.003 for linear families and 0.01 for others, but 0.004 for an edge of
      flows.
    - ``concentration``: :math:`\alpha`.
    - ``names``: of the variables, for programs and graphs; by default x0, x1 and so on.
    - ``context``, ``hidden``: of the networks, as for
      :class:`~pyro_causal.mechanisms.sem_neural.NonlinearSEM`; ``units``: of each layer of a flow,
      as for :class:`~pyro_causal.mechanisms.sem_neural.FlowSEM`; ``min_scale``: the floor of
      spreads, where variables have variance one over all regimes. Take a lower one for values
      that are set far beyond the others.
    - ``network``: an amortised :math:`q(z \mid x)`, as for the guide: a module that is called with
      rows and labels, ``(x, z=None)``, and returns logits ``[N, K]``.

    **Shapes**: model and guide take rows ``x [N, d]`` and labels ``z [N]``, integers with -1 for
    unknown ones, or probabilities ``[N, K]``. Batches are scaled to the rows that
    :meth:`set_normalisation` or :meth:`initialise` have seen. ``targets [K, d]``, ``edges [d, d]``.
    Without rows the model draws some, ``size`` or one for each label, if its graph has no cycle.

    **Raises**: ``ValueError`` for arguments of another kind or shape, ``TypeError`` for what should
    be a tensor, and whatever :func:`~pyro_causal.infer.structural_em.structural_em` raises for bad
    data.

    **References**: *Differentiable causal discovery under latent interventions*,
    https://arxiv.org/abs/2203.02336. There, global divergences are counted for each row, those of
    the weights and the prior of graphs enter with the wrong sign (equation 10, section 3.8),
    assignments are drawn, and perfect interventions are no case of equation 8.

    **Example**::

        >>> method = LatentInterventions(nodes=3, truncation=4)
        >>> method.loss().loss(method.model, method.guide, torch.randn(50, 3)) > 0
        True
        >>> method.edge_probability.shape, method.targets.shape
        (torch.Size([3, 3]), torch.Size([4, 3]))
    """

    rows: Tensor
    structure_held: Tensor
    known_targets: Tensor | None
    prior_logits: Tensor

    def __init__(
        self,
        *,
        nodes: int,
        density: Density = "linear",
        intervention: Intervention = "stochastic",
        truncation: int = 16,
        targets: Tensor | None = None,
        edges: Tensor | None = None,
        edge: float | None = None,
        target: float | None = None,
        concentration: float = 1.0,
        names: Sequence[str] | None = None,
        context: int = 8,
        hidden: Sequence[int] = (16,),
        units: Sequence[int] = (4,),
        min_scale: float = 1e-3,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        require_one_of("density", density, get_args(Density))
        require_one_of("intervention", intervention, get_args(Intervention))
        self.names = tuple(f"x{j}" for j in range(nodes)) if names is None else tuple(names)
        require_names(self.names, nodes)
        require_shapes(nodes, targets, edges)
        self.density, self.intervention = density, intervention
        self.truncation = truncation if targets is None else len(targets)
        prices = PRICES[density]
        self.edge = prices[0] if edge is None else edge
        self.target = prices[1] if target is None else target
        self.concentration = concentration
        require_numbers(nodes, self.truncation, self.edge, self.target, concentration)
        regimes = 1 + self.truncation
        self.equations: StructuralEquations
        common: Any = {"regimes": regimes, "min_scale": min_scale}
        networks = common | {"context": context, "hidden": hidden}
        if density == "linear":
            self.equations = LinearSEM(nodes, **common)
        elif density == "nonlinear":
            self.equations = NonlinearSEM(nodes, **networks)
        else:
            self.equations = FlowSEM(nodes, **networks, units=units)
        start = self.equations.context
        del self.equations.context  # here it is a latent
        self.equations.register_buffer("context", start.detach())
        self.register_buffer("rows", torch.tensor(0))
        self.register_buffer("edge_log_odds", start.new_zeros(nodes, nodes))
        self.register_buffer("structure_held", torch.tensor(False))
        self.register_load_state_dict_post_hook(_hold_as_loaded)
        self.register_buffer("known_targets", None if targets is None else targets.bool())
        prior = torch.full((nodes, nodes), 0.5) if edges is None else edges
        self.register_buffer("prior_logits", BernoulliGraph(prior.to(start)).logits.detach())
        self.guide = DPMixtureGuide(
            self.model,
            expected=self._expected,
            network=network,
            init_loc_fn=self._start,
            init_scale=0.01,
        )
        with pyro.get_param_store().scope():  # factors are made for what the model draws
            self.guide.set_up(torch.zeros(1, nodes))

    @property
    def graph_prior(self) -> BernoulliGraph:
        """The prior of edges, with their price."""
        certain = BernoulliGraph(logits=self.prior_logits).certain
        price = self.edge * self.rows
        return BernoulliGraph(logits=self.prior_logits - price.masked_fill(certain, 0.0))

    @pyro_method
    def model(self, x: Tensor | None = None, z: Tensor | None = None, *, size: int = 1) -> Tensor:
        """Rows of a mixture of interventions; it takes what is observed."""
        register(self, "equations")
        K, d, like = self.truncation, len(self.names), self.prior_logits
        size = next((len(given) for given in (x, z) if given is not None), size)
        require_precision(x, self.prior_logits.dtype)
        weights = pyro.sample(
            "weights", StickBreaking.gem(like.new_tensor(self.concentration), truncation=K)
        )
        graph = pyro.sample("graph", self.graph_prior)
        odds = -self.target * self.rows.to(like).expand(K, d)
        known = None if self.known_targets is None else self.known_targets.to(like)
        targets = pyro.sample("targets", dist.Bernoulli(logits=odds).to_event(2), obs=known)
        cut = None
        if self.intervention == "imperfect":
            cut = pyro.sample("cut", dist.Bernoulli(torch.full_like(odds, 0.5)).to_event(2))
        shape = self._equations.context.shape
        contexts = pyro.sample("contexts", dist.Normal(like.new_zeros(shape), 1.0).to_event())
        with pyro.plate("rows", max(int(self.rows), size), subsample_size=size):
            z = pyro.sample("z", dist.Categorical(weights), obs=z)
            rows = IntervenedRows(
                self._equations, graph, context=contexts, targets=targets, cut=cut, z=z
            )
            return pyro.sample("x", rows, obs=x)

    def loss(
        self,
        *,
        constraint: Callable[[Tensor], Tensor] | None = trace_exponential,
        temperature: float | Callable[[int], float] = 1.0,
        kappa: float = 1.0,
        num_particles: int = 1,
        **multipliers: Any,
    ) -> AugmentedLagrangianELBO | DPMixtureELBO:
        r"""The negative evidence lower bound for each row, under acyclicity of the graph.

        While structure is held, see :meth:`learn_structure_`, it is up to a constant that of a
        guide which is certain of graph and targets.

        **Arguments**

        - ``constraint``: one of :mod:`~pyro_causal.infer.acyclicity`, or None for the bound alone.
        - ``temperature``, ``kappa``: as ``temperature`` and ``label_weight`` of
          :class:`~pyro_causal.infer.elbo.DPMixtureELBO`. A temperature that falls to 1 is for
          training without a search, whose regimes need none. With some labels in doubt take a
          :math:`\kappa` below 1.
        - ``num_particles``: draws of graph and contexts.
        - others as :class:`~pyro_causal.infer.elbo.AugmentedLagrangianELBO`, but that a round has
          100 steps unless you give others.

        **Raises**: ``ValueError`` for such others without a constraint.
        """
        if constraint is None and multipliers:
            raise ValueError(
                f"LatentInterventions: expected no {', '.join(multipliers)} without a constraint, "
                "since they are for its multipliers. Give a constraint, or leave them out."
            )
        elbo = DPMixtureELBO(
            temperature=temperature,
            label_weight=kappa,
            num_particles=num_particles,
            per_row=True,
            max_plate_nesting=1,
        )
        if constraint is None:
            return elbo
        multipliers = {"steps": STEPS, **multipliers}
        return AugmentedLagrangianELBO(
            elbo, constraint, matrix=lambda: self.guide.factor("graph").probs, **multipliers
        )

    def initialise(self, x: Tensor, z: Tensor | None = None, **search: Any) -> Tensor:
        r"""Start from a search for graph, regimes and targets; return the responsibilities.

        These serve as labels ``z`` while the mechanisms are trained. Graph and targets are held
        as they were found, see :meth:`learn_structure_`. Components come in the order of their
        size, unless labels or targets name them. The search takes labels for certain, whatever the
        :math:`\kappa` of a loss, and weights to be GEM(1).

        The guide is nearly certain of what was found, whether or not it was a narrow choice: a
        direction that data leave open is taken one way, since from both ways at once, training
        without cycles would end at neither. How open it is, :attr:`edge_probability` tells.

        **Arguments**: rows, labels of which 0 is the observational regime, whose component has no
        targets (unless those are given), and of the options of
        :func:`~pyro_causal.infer.structural_em.structural_em` those that are no matter of the
        method: ``rounds``, ``steps``, ``starts``, ``runs``, ``max_parents``, ``resolution``.

        **Shapes**: ``x [N, d]``, ``z [N]``; result ``[N, K]``.
        """
        require_options(search)
        require_rows(x, len(self.names), self.prior_logits.dtype)
        require_variation(x)
        require_labels(z, len(x), self.truncation)
        natural = self.known_targets is None and z is not None and bool((z == 0).any())
        found = structural_em(
            x,
            truncation=self.truncation,
            units=0 if self.density == "linear" else UNITS,
            imperfect=self.intervention == "imperfect",
            varying=self.density == "flow",
            labels=z,
            targets=self.known_targets,
            observational=natural,
            prior=BernoulliGraph(logits=self.prior_logits),
            edge=self.edge,
            target=self.target,
            **search,
        )
        self.set_normalisation(x)
        named = z is not None or self.known_targets is not None
        sizes = found.responsibilities.sum(0)
        order = torch.arange(len(sizes)) if named else sizes.argsort(descending=True)
        targets, factors = found.targets[order], self._factors
        with torch.no_grad():
            graph, odds = found.adjacency.bool(), found.edge_log_odds
            odds = torch.where(graph, odds.clamp(min=LEAST), odds.clamp(max=-LEAST))
            self.edge_log_odds.copy_(odds.clamp(-SURE, SURE))
            pairs = len(graph) * (len(graph) - 1)
            sure = max(SURE, math.log(max(1, pairs) / WRONG))
            factors["graph"].logits.copy_(sure * (2 * found.adjacency - 1))
            if "targets" in factors:
                factors["targets"].logits.fill_(-SURE)
                factors["targets"].logits[: len(targets)] = SURE * (2 * targets.to(x) - 1)
            if "cut" in factors:  # of targets alone, as the search knows nothing of others
                cut = SURE * (2 * found.cut[order].to(x) - 1)
                factors["cut"].logits.zero_()
                factors["cut"].logits[: len(targets)] = cut.where(targets, 0)
        self.learn_structure_(False)
        return self.guide.set_responsibilities(found.responsibilities[:, order], sort=False)

    def set_normalisation(self, x: Tensor) -> None:
        """Fix by which constants values are standardised, and how many rows there are.

        **Raises**: ``ValueError`` for NaN or infinity, and for a variable that does not vary.
        """
        require_rows(x, len(self.names), self.prior_logits.dtype)
        require_variation(x)
        self._equations.set_normalisation(x)
        self.rows.fill_(len(x))

    def learn_structure_(self, learn: bool = True) -> None:
        """Whether training moves graph and targets, or only mechanisms, weights and what is cut.

        While it does not, mechanisms are trained under :attr:`adjacency` and :attr:`targets` as
        they are, without draws of the graph. It does until a search has found them.
        """
        self.structure_held.fill_(not learn)
        for name in ("graph", "targets"):
            if name in self._factors:
                self._factors[name].requires_grad_(learn)

    def _expected(self, factor: Any, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The expected log-density of rows in all components at a draw of graph and contexts."""
        logits = factor("graph").logits
        learn = self._factors["graph"].logits.requires_grad
        targets = self.targets.to(x)
        if learn and self.known_targets is None:
            targets = factor("targets").mean
        return self._by_component(
            x,
            sample_adjacency(logits) if learn else self.adjacency,
            context=factor("contexts").rsample(),
            targets=targets,
            cut=factor("cut").mean if self.intervention == "imperfect" else None,
        )

    def _start(self, site: Any) -> Tensor:
        """Contexts start at standard normals, those of networks apart from each other."""
        if site["name"] == "contexts" and self.density == "linear":
            return torch.zeros_like(site["fn"].mean)
        value: Tensor = init_to_sample(site)
        return value


def _hold_as_loaded(method: LatentInterventions, _: Any) -> None:
    """Parameters do not keep in a state whether they are trained."""
    method.learn_structure_(not method.structure_held)
