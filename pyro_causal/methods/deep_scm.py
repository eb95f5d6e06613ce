"""Deep structural causal models: a mechanism for each variable, and one guide for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import networkx as nx
import pyro
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule, pyro_method
from pyro.util import ignore_jit_warnings
from torch import Tensor

from pyro_causal._pyro import register
from pyro_causal._recipe import NamedModules
from pyro_causal.infer._saving import Saved
from pyro_causal.infer.elbo import MeanFieldELBO
from pyro_causal.infer.guides import Completion
from pyro_causal.mechanisms import AmortisedMechanism, ConditionalCategorical, Mechanism

__all__ = ["DeepSCM"]

Values = Mapping[str, Tensor | None]


class DeepSCM(Saved, PyroModule):
    r"""A deep structural causal model, with amortised abduction.

    .. math:: x_v = f_v(u_v; x_{\mathrm{pa}(v)}), \qquad v = 1, \ldots, V

    Every variable is a site of :attr:`model`, in a plate of rows. An amortised mechanism has a
    latent site besides, called `z` (or ``z_<variable>``, where there are several), which
    :attr:`guide` draws from the mechanism's encoder. All other noise is abducted exactly, so
    ``worlds``, ``query`` and ``CounterfactualPredictive`` answer from all three rungs. Evidence is
    the argument of model and guide: the encoder has to see it.

    Any variable may be missing from the evidence. What is missing without observed descendants
    follows its own mechanism; the rest is drawn by ``completion``.

    **Arguments**

    - ``mechanisms``: for each variable its mechanism and the names of its parents, in the order in
      which the mechanism declares them. Categorical parents are handed over one-hot.
    - ``completion``: the distribution of missing variables given observed ones. It is trained by
      itself, on complete rows: see :class:`~pyro_causal.infer.guides.Completion`.

    **Shapes**: :attr:`model` and :attr:`guide` take a dict of observed tensors ``[N, *event]``;
    without any they run on one row. Batches are complete data: nothing is rescaled. The argument is
    called ``data``, so train by ``fit(scm.model, scm.guide, loss=scm.loss(), data={"data": rows},
    epochs=10)``.

    **Raises**: ``ValueError`` for unknown parents, cycles, a mechanism that declares other parents,
    a variable that bears the name of a latent or of the plate `rows` or one with a dot, or a
    completion for other variables; for data that are no rows of tensors, or no categories.

    **References**: *Deep structural causal models for tractable counterfactual inference*,
    https://arxiv.org/abs/2006.06485, section 3. There, evidence must hold every variable.

    **Example**::

        >>> from pyro.distributions import constraints
        >>> from pyro_causal import CounterfactualPredictive, query
        >>> from pyro_causal.mechanisms import ConditionalAffine
        >>> scm = DeepSCM(
        ...     mechanisms={
        ...         "t": (ConditionalAffine(support=constraints.positive), ()),
        ...         "i": (ConditionalAffine(1, support=constraints.interval(64.0, 255.0)), ("t",)),
        ...     }
        ... )
        >>> rows = {"t": torch.tensor([1.0, 2.0]), "i": torch.tensor([100.0, 200.0])}
        >>> worlds = CounterfactualPredictive(scm.model, [{"t": 3.0}], guide=scm.guide)(rows)
        >>> worlds["i"].shape
        torch.Size([1, 2, 2])
        >>> answer = query(scm.model, "i", do={"t": 3.0}, guide=scm.guide, args=(rows,))
        >>> answer.rung, answer.mean.shape
        ('counterfactual', torch.Size([2]))
    """

    def __init__(
        self,
        *,
        mechanisms: Mapping[str, tuple[Mechanism, Sequence[str]]],
        completion: Completion | None = None,
    ) -> None:
        super().__init__()
        self.parents = {name: tuple(parents) for name, (_, parents) in mechanisms.items()}
        self.mechanisms = NamedModules({name: m for name, (m, _) in mechanisms.items()})
        self.completion = completion
        self.graph = _graph(self.parents)
        self.order = tuple(nx.lexicographical_topological_sort(self.graph))
        amortised = [n for n in self.order if isinstance(self._mechanism(n), AmortisedMechanism)]
        self.latents = {n: "z" if len(amortised) == 1 else f"z_{n}" for n in amortised}
        self._check_names()
        self._check_mechanisms()

    @pyro_method
    def model(self, data: Values | None = None) -> dict[str, Tensor]:
        """Sample every variable given its parents; return the values by name."""
        self._register()
        observed = self._observed(data)
        values: dict[str, Tensor] = {}
        with self._rows(observed):
            for name in self.order:
                values[name] = self._sample(name, values, observed.get(name))
        return values

    @pyro_method
    def guide(self, data: Values | None = None) -> dict[str, Tensor]:
        """Sample what the data leave open: missing variables, and latents."""
        self._register()
        observed = self._observed(data)
        values = dict(observed)
        with self._rows(observed):
            for name in self.order:
                if name not in observed:
                    if nx.descendants(self.graph, name).isdisjoint(observed):
                        values[name] = self._sample(name, values)
                        continue
                    values[name] = pyro.sample(name, self._complete(name, values))
                if name in self.latents:
                    mechanism, parents = self._mechanism(name), self._parents(name, values)
                    pyro.sample(self.latents[name], mechanism.posterior(values[name], *parents))
        return values

    def loss(self, *, num_particles: int = 1, beta: float = 1.0) -> MeanFieldELBO:
        r"""The negative evidence lower bound, with the divergence of latents in closed form.

        A latent that costs :math:`\beta > 1` times its divergence leaves to the parents of an image
        what the parents can tell, so that an intervention on them shows.

        Particles are vectorised: encoders run once for all of them, and decoders once, on all of
        them as one batch, so that a batch normalisation takes its statistics once.
        """
        return MeanFieldELBO(
            beta=beta,
            num_particles=num_particles,
            vectorize_particles=num_particles > 1,
            max_plate_nesting=2,  # the rows, and worlds
        )

    def set_normalisation(self, data: Mapping[str, Tensor]) -> Self:
        """Fix the constants of all mechanisms, and of the completion, from complete data.

        **Raises**: ``ValueError`` if a variable is missing, and whatever the mechanisms raise.
        """
        if missing := sorted({*self.order} - {*self._observed(data)}):
            raise ValueError(
                f"At site '{missing[0]}', no data: expected values of all of {sorted(self.order)}, "
                f"{missing} are missing. Give complete rows."
            )
        for name in self.order:
            self._mechanism(name).set_normalisation(data[name], *self._parents(name, data))
        if self.completion is not None:
            self.completion.set_normalisation(data)
        return self

    def _sample(
        self, name: str, values: Mapping[str, Tensor], observed: Tensor | None = None
    ) -> Tensor:
        """One site, after its latent if it has one."""
        mechanism, parents = self._mechanism(name), self._parents(name, values)
        if isinstance(mechanism, AmortisedMechanism):
            z = pyro.sample(self.latents[name], mechanism.prior())
            return pyro.sample(name, mechanism(z, *parents), obs=mechanism.dequantise(observed))
        return pyro.sample(name, mechanism(*parents), obs=observed)

    def _parents(self, name: str, values: Mapping[str, Tensor]) -> list[Tensor]:
        """The values of a variable's parents, categories one-hot."""
        dtype = self._mechanism(name).context_loc.dtype
        parents = []
        for parent in self.parents[name]:
            mechanism, value = self._mechanism(parent), values[parent]
            if isinstance(mechanism, ConditionalCategorical):
                value = F.one_hot(value.long(), mechanism.categories).to(dtype)
            parents.append(value)
        return parents

    def _complete(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        if self.completion is None or name not in self.completion:
            below = sorted(nx.descendants(self.graph, name) & set(values))
            raise ValueError(
                f"At site '{name}', the value is missing and {below} are observed, which depend on "
                f"it: expected a completion for '{name}'. Observe it, or give "
                "DeepSCM(..., completion=Completion(...)) and train it."
            )
        return self.completion(name, values)

    def _rows(self, observed: Mapping[str, Tensor]) -> Any:
        sizes = {len(value) for value in observed.values()}
        return pyro.plate("rows", sizes.pop() if sizes else 1, dim=-1)

    def _observed(self, data: Values | None) -> dict[str, Tensor]:
        """What is there of the data, checked."""
        observed = {name: value for name, value in (data or {}).items() if value is not None}
        for name, value in observed.items():
            self._require_rows(name, value)
            self._require_values(name, value)
        if len({len(value) for value in observed.values()}) > 1:
            counts = ", ".join(f"'{name}' has {len(value)}" for name, value in observed.items())
            raise ValueError(f"Rows do not match: expected equally many, but {counts}. Align them.")
        return observed

    def _require_rows(self, name: str, value: Any) -> None:
        if name not in self.parents:
            raise ValueError(
                f"At site '{name}', there is no such variable: expected some of "
                f"{sorted(self.parents)}. Check the spelling, or leave it out."
            )
        if not isinstance(value, Tensor):
            raise TypeError(
                f"At site '{name}', the value is no tensor: expected one row per unit, got "
                f"{type(value).__name__}. Convert it with torch.as_tensor."
            )
        event = getattr(self._mechanism(name), "event_shape", ())
        if value.dim() == 0 or value.shape[1:] != torch.Size(event):
            shape = ", ".join(["N", *map(str, event)])
            raise ValueError(
                f"At site '{name}', wrong shape: expected [{shape}], got {tuple(value.shape)}. "
                "Give one row per unit."
            )
        if not len(value):
            raise ValueError(
                f"At site '{name}', no rows: expected one or more, got none. Leave a variable out "
                "if it is missing."
            )

    @ignore_jit_warnings()  # the data are constants of a trace
    def _require_values(self, name: str, value: Tensor) -> None:
        mechanism = self._mechanism(name)
        dtype = mechanism.context_loc.dtype
        if isinstance(mechanism, AmortisedMechanism) and value.dtype != dtype:
            raise TypeError(
                f"At site '{name}', wrong dtype: expected {dtype}, got {value.dtype}. Convert the "
                f"values with .to({dtype})."
            )
        if isinstance(mechanism, ConditionalCategorical):
            last = mechanism.categories - 1
            if not ((value == value.long()) & (value >= 0) & (value <= last)).all():
                raise ValueError(
                    f"At site '{name}', no category: expected whole numbers from 0 to {last}, got "
                    f"values from {value.min():g} to {value.max():g}. Number the categories from 0."
                )

    def _check_names(self) -> None:
        if taken := sorted({"rows", *self.latents.values()} & {*self.parents}):
            raise ValueError(
                f"At site '{taken[0]}', two things of that name: expected no variables "
                f"{sorted({'rows', *self.latents.values()})}, which are the plate and the latents. "
                "Rename the variable."
            )
        if self.completion is not None and {*self.completion.sizes} != {*self.parents}:
            raise ValueError(
                f"The completion has sizes for {sorted(self.completion.sizes)}: expected "
                f"{sorted(self.parents)}, so that it sees all evidence. Add what lacks."
            )

    def _check_mechanisms(self) -> None:
        for name, parents in self.parents.items():
            mechanism = self._mechanism(name)
            expected = [self._event_shape(parent) for parent in parents]
            if list(mechanism.parent_shapes) != expected:
                raise ValueError(
                    f"At site '{name}', the mechanism declares parents of event shapes "
                    f"{[tuple(s) for s in mechanism.parent_shapes]}: expected those of {parents}, "
                    f"{[tuple(s) for s in expected]}. Declare them with parents={expected}."
                )

    def _register(self) -> None:
        """Tell Pyro of the parameters."""
        register(self, "mechanisms")

    def _mechanism(self, name: str) -> Any:
        """Without telling Pyro again, which takes a while."""
        modules: Any = self._modules["mechanisms"]
        return modules[name]

    def _event_shape(self, name: str) -> torch.Size:
        """Of a variable as a parent: a category is one-hot."""
        mechanism = self._mechanism(name)
        if isinstance(mechanism, ConditionalCategorical):
            return torch.Size([mechanism.categories])
        return torch.Size(getattr(mechanism, "event_shape", ()))


def _graph(parents: Mapping[str, Sequence[str]]) -> nx.DiGraph:
    """The causal graph, checked."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(parents)
    for name, above in parents.items():
        for parent in above:
            if parent not in parents:
                raise ValueError(
                    f"At site '{name}', there is no mechanism for the parent '{parent}': expected "
                    f"some of {sorted(parents)}. Add one, or check the spelling."
                )
            graph.add_edge(parent, name)
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [a for a, _ in nx.find_cycle(graph)]
        raise ValueError(
            f"The variables {cycle} are each other's ancestors: expected no cycle. Take away one "
            "of these parents."
        )
    return graph
