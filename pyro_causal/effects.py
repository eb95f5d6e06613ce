"""Causal effects as functions of draws from all worlds.

The draws are those of :class:`pyro_causal.queries.CounterfactualPredictive`: a mapping from sites
to ``[num_samples, 1 + len(actions), *plates, *event]``. World 0 is factual; by default world 1 sets
the treatment to its control value and world 2 to the treated one, as in ``actions=[{"x": 0.0},
{"x": 1.0}]``. Every function averages over draws and plates alike, so that each draw of each unit
counts once. An outcome that is a vector per unit declares ``event_dim``, and the result has its
shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyro_causal._actions import Action, require_sites

__all__ = [
    "average_effect",
    "conditional_average_effect",
    "effect_on_treated",
    "mediation_actions",
    "natural_direct_effect",
    "natural_indirect_effect",
    "probability_of_necessity",
    "probability_of_necessity_and_sufficiency",
    "probability_of_sufficiency",
]

Samples = Mapping[str, Tensor]


def average_effect(
    samples: Samples, outcome: str, *, treated: int = 2, control: int = 1, event_dim: int = 0
) -> Tensor:
    r"""Average treatment effect :math:`E[Y_{x_1} - Y_{x_0}]`.

    **Shapes** the outcome ``[num_samples, worlds, *plates, *event]``; result ``[*event]``.

    **Arguments** ``treated`` and ``control``: the worlds to compare (0 is the factual one).

    **Raises** ``ValueError``: there is no such site or world.

    **References** Pearl 2009, Causality, section 3.2.1.

    **Example**

    >>> import torch
    >>> from pyro_causal.effects import average_effect
    >>> average_effect({"y": torch.tensor([[1.0, 1.0, 3.0], [0.0, 2.0, 5.0]])}, "y")
    tensor(2.5000)
    """
    difference = _outcome(samples, outcome, treated) - _outcome(samples, outcome, control)
    return _mean(difference, torch.ones((), dtype=torch.bool), event_dim)


def conditional_average_effect(
    samples: Samples,
    outcome: str,
    *,
    where: Callable[[Samples], Tensor],
    treated: int = 2,
    control: int = 1,
    event_dim: int = 0,
) -> Tensor:
    r"""Average effect in a subgroup, :math:`E[Y_{x_1} - Y_{x_0} \mid W]`.

    **Shapes** ``where`` maps the factual world ``{site: [num_samples, *plates, *event]}`` to truth
    values ``[num_samples, *plates]``; result ``[*event]``.

    **Arguments** ``where``: tells who belongs to the subgroup by what is factual about them (for a
    subgroup by pre-treatment covariates, this is the usual conditional effect). Others as in
    :func:`average_effect`.

    **Raises** ``ValueError``: nobody belongs to the subgroup; the truth values have another shape;
    as :func:`average_effect`.

    **Example**

    >>> import torch
    >>> from pyro_causal.effects import conditional_average_effect
    >>> samples = {
    ...     "z": torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    ...     "y": torch.tensor([[1.0, 1.0, 3.0], [0.0, 2.0, 5.0]]),
    ... }
    >>> conditional_average_effect(samples, "y", where=lambda world: world["z"] > 0)
    tensor(3.)
    """
    difference = _outcome(samples, outcome, treated) - _outcome(samples, outcome, control)
    return _mean(difference, where({n: v[:, 0] for n, v in samples.items()}), event_dim)


def effect_on_treated(
    samples: Samples,
    outcome: str,
    *,
    treatment: str,
    value: float = 1,
    treated: int = 2,
    control: int = 1,
    event_dim: int = 0,
) -> Tensor:
    r"""Effect of treatment on the treated, :math:`E[Y_{x_1} - Y_{x_0} \mid X = x_1]`.

    **Arguments** ``treatment``: the treatment's site; ``value``: its value among the treated (that
    of the control group asks for the effect on the untreated). Others as in
    :func:`average_effect`.

    **Raises** ``ValueError``: nobody is treated; as :func:`average_effect`.

    **References** Pearl 2009, Causality, section 8.2.5.

    **Example**

    >>> import torch
    >>> from pyro_causal.effects import effect_on_treated
    >>> samples = {
    ...     "x": torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]),
    ...     "y": torch.tensor([[1.0, 1.0, 3.0], [5.0, 2.0, 5.0]]),
    ... }
    >>> effect_on_treated(samples, "y", treatment="x")
    tensor(3.)
    """
    difference = _outcome(samples, outcome, treated) - _outcome(samples, outcome, control)
    return _mean(difference, _outcome(samples, treatment, 0) == value, event_dim)


def mediation_actions(
    treatment: str, mediators: Sequence[str], *, treated: Action = 1.0, control: Action = 0.0
) -> list[dict[str, Action]]:
    r"""The four actions of mediation analysis, nested counterfactuals included.

    =====  ==========================  ===================
    world  action                      the outcome there
    =====  ==========================  ===================
    1      :math:`x_0`                 :math:`Y_{x_0}`
    2      :math:`x_1`                 :math:`Y_{x_1}`
    3      :math:`x_1, m := M_{x_0}`   :math:`Y_{x_1, M_{x_0}}`
    4      :math:`x_0, m := M_{x_1}`   :math:`Y_{x_0, M_{x_1}}`
    =====  ==========================  ===================

    All worlds belong to one run, so the nested ones see the very mediators of worlds 1 and 2, and
    the noise of every other site is theirs as well. Worlds 1 and 2 take note of their mediators
    without changing them; since worlds are settled in order, 3 and 4 can refer to the notes.

    **Arguments** ``mediators``: the sites that are held to their value in another world;
    ``treated`` and ``control``: :math:`x_1` and :math:`x_0`.

    **References** Pearl, Direct and indirect effects, https://arxiv.org/abs/1301.2300.

    **Example**

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_causal.effects import mediation_actions, natural_direct_effect
    >>> from pyro_causal.queries import CounterfactualPredictive
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     m = pyro.sample("m", dist.Normal(2 * x, 1.0))
    ...     return pyro.sample("y", dist.Normal(m + 3 * x + m * x, 1.0))
    >>> unit = {"x": torch.tensor(1.0), "m": torch.tensor(3.0), "y": torch.tensor(9.0)}
    >>> observed = pyro.poutine.condition(model, unit)
    >>> samples = CounterfactualPredictive(observed, mediation_actions("x", ["m"]))()
    >>> samples["m"], samples["y"]
    (tensor([[3., 1., 3., 1., 3.]]), tensor([[9., 1., 9., 5., 3.]]))
    >>> natural_direct_effect(samples, "y")
    tensor(4.)
    """
    low = {name: _Note() for name in mediators}
    high = {name: _Note() for name in mediators}
    return [
        {treatment: control, **{name: note.take for name, note in low.items()}},
        {treatment: treated, **{name: note.take for name, note in high.items()}},
        {treatment: treated, **{name: note.recall for name, note in low.items()}},
        {treatment: control, **{name: note.recall for name, note in high.items()}},
    ]


class _Note:
    """A natural value in one world, for a later world of the same run."""

    value: Tensor

    def take(self, natural: Tensor) -> Tensor:
        self.value = natural
        return natural

    def recall(self, natural: Tensor) -> Tensor:
        return self.value


def natural_direct_effect(
    samples: Samples, outcome: str, *, nested: int = 3, control: int = 1, event_dim: int = 0
) -> Tensor:
    r"""Natural direct effect :math:`E[Y_{x_1, M_{x_0}} - Y_{x_0}]`.

    **Arguments** The worlds default to those of :func:`mediation_actions`: ``nested`` treats but
    holds the mediators to their value in world ``control``.

    **Raises** ``ValueError``: as :func:`average_effect`.

    **References** Pearl, Direct and indirect effects, https://arxiv.org/abs/1301.2300.

    **Example** See :func:`mediation_actions`.
    """
    return average_effect(samples, outcome, treated=nested, control=control, event_dim=event_dim)


def natural_indirect_effect(
    samples: Samples, outcome: str, *, nested: int = 4, control: int = 1, event_dim: int = 0
) -> Tensor:
    r"""Natural indirect effect :math:`E[Y_{x_0, M_{x_1}} - Y_{x_0}]`.

    The total effect is the direct effect minus the indirect effect of the reverse transition,
    which is :math:`E[Y_{x_1, M_{x_0}} - Y_{x_1}]`, that is ``nested=3, control=2``.

    **Arguments** The worlds default to those of :func:`mediation_actions`: ``nested`` does not
    treat but gives the mediators the value that they take under treatment.

    **Raises** ``ValueError``: as :func:`average_effect`.

    **References** Pearl, Direct and indirect effects, https://arxiv.org/abs/1301.2300.

    **Example**

    >>> import torch
    >>> from pyro_causal.effects import natural_indirect_effect
    >>> natural_indirect_effect({"y": torch.tensor([[9.0, 1.0, 9.0, 5.0, 3.0]])}, "y")
    tensor(2.)
    """
    return average_effect(samples, outcome, treated=nested, control=control, event_dim=event_dim)


def probability_of_necessity(
    samples: Samples, outcome: str, *, treatment: str, control: int = 1
) -> Tensor:
    r"""Probability of necessity :math:`P(Y_{x_0} = 0 \mid X = 1, Y = 1)` of a binary treatment.

    Would the outcome not have come about but for the treatment?

    **Raises** ``ValueError``: the sites are not binary; the condition holds in no draw; as
    :func:`average_effect`.

    **References** Pearl 2009, Causality, definition 9.2.1; Tian & Pearl 2000, Probabilities of
    causation: bounds and identification, https://arxiv.org/abs/1301.3898.

    **Example**

    >>> import torch
    >>> from pyro_causal.effects import probability_of_necessity
    >>> x = torch.tensor([[1, 0], [1, 0], [0, 0]])
    >>> samples = {"x": x, "y": torch.tensor([[1, 0], [1, 1], [0, 0]])}
    >>> probability_of_necessity(samples, "y", treatment="x")
    tensor(0.5000)
    """
    x, y = _binary(samples, treatment, 0), _binary(samples, outcome, 0)
    return _mean(~_binary(samples, outcome, control), x & y)


def probability_of_sufficiency(
    samples: Samples, outcome: str, *, treatment: str, treated: int = 2
) -> Tensor:
    r"""Probability of sufficiency :math:`P(Y_{x_1} = 1 \mid X = 0, Y = 0)` of a binary treatment.

    Would the treatment have brought about the outcome, where there was neither?

    **Raises** ``ValueError``: as :func:`probability_of_necessity`.

    **References** Pearl 2009, Causality, definition 9.2.2.

    **Example**

    >>> import torch
    >>> from pyro_causal.effects import probability_of_sufficiency
    >>> samples = {"x": torch.tensor([[0, 1], [1, 1]]), "y": torch.tensor([[0, 1], [0, 0]])}
    >>> probability_of_sufficiency(samples, "y", treatment="x", treated=1)
    tensor(1.)
    """
    x, y = _binary(samples, treatment, 0), _binary(samples, outcome, 0)
    return _mean(_binary(samples, outcome, treated), ~x & ~y)


def probability_of_necessity_and_sufficiency(
    samples: Samples, outcome: str, *, treated: int = 2, control: int = 1
) -> Tensor:
    r"""Probability of necessity and sufficiency :math:`P(Y_{x_1} = 1, Y_{x_0} = 0)`.

    Does the outcome respond to the treatment both ways?

    **Raises** ``ValueError``: as :func:`probability_of_necessity`.

    **References** Pearl 2009, Causality, definition 9.2.3.

    **Example**

    >>> import torch
    >>> from pyro_causal.effects import probability_of_necessity_and_sufficiency
    >>> samples = {"y": torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 0, 1]])}
    >>> probability_of_necessity_and_sufficiency(samples, "y")
    tensor(0.5000)
    """
    responds = _binary(samples, outcome, treated) & ~_binary(samples, outcome, control)
    return _mean(responds, torch.ones((), dtype=torch.bool))


def _outcome(samples: Samples, name: str, world: int) -> Tensor:
    """The values `[num_samples, *plates, *event]` of a site in one world."""
    require_sites([name], samples, "an effect")
    number = samples[name].shape[1]
    if not -1 < world < number:
        raise ValueError(
            f"At site '{name}', world {world}: expected one of the worlds 0 to {number - 1} of the "
            "draws. Do name the worlds (control=, treated=, nested=) by their place in actions."
        )
    return samples[name][:, world]


def _binary(samples: Samples, name: str, world: int) -> Tensor:
    value = _outcome(samples, name, world)
    if not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(
            f"At site '{name}', a probability of causation: expected the values 0 and 1, got "
            "others. Do add a binary site: pyro.deterministic(name, (y > threshold).float())."
        )
    return value == 1


def _mean(values: Tensor, where: Tensor, event_dim: int = 0) -> Tensor:
    """Mean of `[num_samples, *plates, *event]` where `[num_samples, *plates]` holds."""
    if not values.is_floating_point():
        values = values.to(torch.get_default_dtype())
    batch = values.shape[: values.dim() - event_dim]
    if where.dtype != torch.bool or where.shape not in (batch, ()):
        raise ValueError(
            f"A subgroup is told by truth values of shape {tuple(batch)}, [num_samples, *plates]: "
            f"got {where.dtype} of shape {tuple(where.shape)}. Do reduce over the event dims, and "
            "declare those of the outcome with event_dim."
        )
    chosen = values[where.expand(batch)]
    if not len(chosen):
        raise ValueError(
            "No draw belongs to the subgroup: expected at least one. Do draw more samples, or ask "
            "about a subgroup that the model makes possible."
        )
    return chosen.mean(0)
