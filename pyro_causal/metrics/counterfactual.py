"""Soundness of a counterfactual function: composition, reversibility, effectiveness.

Pearl's axioms hold for every structural causal model, so they can be measured without knowing the
true counterfactuals. The model enters as a *counterfactual function*::

    counterfactual(evidence, action) -> world

where ``evidence`` maps names to the observed values of N units, each ``[N, *event]``, ``action``
maps the intervened names to their values, and ``world`` maps at least the names of ``evidence`` to
their values in the counterfactual world, ``[N, *event]`` again. Every metric returns one distance
per unit, so that both the mean and the spread can be reported.

**References** *Measuring axiomatic soundness of counterfactual image models*, Section 3,
https://arxiv.org/abs/2303.01274. The paper states the metrics for an image given its parents; here
they are stated for any set of variables. A variable that the action leaves alone (a descendant of
the target, say) is then no argument of the function but one of its results, and effectiveness
compares the oracle's reading with that result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

__all__ = [
    "absolute_error",
    "composition",
    "effectiveness",
    "reversibility",
    "zero_one_error",
]

Values = Mapping[str, Tensor]
Action = Mapping[str, Tensor | float]
Distance = Callable[[Tensor, Tensor], Tensor]
CounterfactualFunction = Callable[[Values, Values], Values]


def absolute_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference over the event dimensions.

    **Shapes** ``x`` and ``y`` ``[N, *event]``; result ``[N]``.

    **Raises** ``ValueError`` where the shapes differ (they are not broadcast).

    **Example**

    >>> import torch
    >>> from pyro_causal.metrics import absolute_error
    >>> absolute_error(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]]))
    tensor([2., 1.])
    """
    _require_same_shape(x, y)
    dtype = torch.promote_types(x.dtype, y.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return (x.to(dtype) - y.to(dtype)).abs().reshape(len(x), -1).mean(1)


def zero_one_error(x: Tensor, y: Tensor) -> Tensor:
    """One where any element of the event differs, else zero; its mean is one minus the accuracy.

    **Shapes** ``x`` and ``y`` ``[N, *event]``; result ``[N]``, of the default dtype.

    **Raises** ``ValueError`` where the shapes differ (they are not broadcast).

    **Example**

    >>> import torch
    >>> from pyro_causal.metrics import zero_one_error
    >>> zero_one_error(torch.tensor([3, 1, 4]), torch.tensor([3, 1, 5]))
    tensor([0., 0., 1.])
    """
    _require_same_shape(x, y)
    return (x != y).reshape(len(x), -1).any(1).to(torch.get_default_dtype())


def composition(
    counterfactual: CounterfactualFunction,
    evidence: Values,
    *,
    targets: Iterable[str],
    of: Iterable[str] | None = None,
    cycles: int = 1,
    distance: Distance = absolute_error,
) -> dict[str, Tensor]:
    r"""Distance from the evidence after null interventions; zero for a sound model.

    Setting a variable to the value that it has anyway must change nothing. With
    :math:`f_\emptyset` the null intervention on ``targets``, the metric of variable x after m
    cycles is :math:`d(x, f_\emptyset^{(m)}(x))`, each cycle taking the result of the last as its
    evidence. It measures what abduction loses.

    **Shapes** every value of ``evidence`` ``[N, *event]``; every value of the result
    ``[cycles, N]``, whose row m - 1 is the distance after m null interventions.

    **Arguments** ``targets`` names the variables that are set to their own values; ``of`` names
    the variables measured, by default all of ``evidence`` but the targets; ``distance`` maps two
    tensors ``[N, *event]`` to ``[N]``.

    **Raises** ``ValueError`` for a name that ``evidence`` lacks, and for a counterfactual
    function or a distance that returns the wrong names or shapes.

    **Example** A model that keeps half of the noise.

    >>> import torch
    >>> from pyro_causal.metrics import composition
    >>> def lossy(evidence, action):
    ...     return {"x": action["x"], "y": action["x"] + 0.5 * (evidence["y"] - evidence["x"])}
    >>> evidence = {"x": torch.zeros(2), "y": torch.tensor([1.0, -4.0])}
    >>> composition(lossy, evidence, targets=["x"], cycles=2)["y"]
    tensor([[0.5000, 2.0000],
            [0.7500, 3.0000]])
    """
    null = {name: evidence[name] for name in _known(targets, evidence)}
    return _drift(counterfactual, evidence, [null], of=of, cycles=cycles, distance=distance)


def reversibility(
    counterfactual: CounterfactualFunction,
    evidence: Values,
    *,
    action: Action,
    of: Iterable[str] | None = None,
    cycles: int = 1,
    distance: Distance = absolute_error,
) -> dict[str, Tensor]:
    r"""Distance from the evidence after going to another world and back; zero for a sound model.

    One cycle performs ``action`` and then sets its targets back to their observed values, each
    time taking the result as the new evidence. With :math:`p` that cycle, the metric of variable
    x after m cycles is :math:`d(x, p^{(m)}(x))`.

    **Shapes** every value of ``evidence`` ``[N, *event]``; every value of the result
    ``[cycles, N]``, whose row m - 1 is the distance after m cycles.

    **Arguments** ``action`` maps the intervened names to values, ``[N, *event]`` or a
    number; ``of``, ``cycles`` and ``distance`` as in :func:`composition`.

    **Raises** as :func:`composition`.

    **Example**

    >>> import torch
    >>> from pyro_causal.metrics import reversibility
    >>> def exact(evidence, action):
    ...     return {"x": action["x"], "y": action["x"] + (evidence["y"] - evidence["x"])}
    >>> evidence = {"x": torch.zeros(2), "y": torch.tensor([1.0, -4.0])}
    >>> reversibility(exact, evidence, action={"x": torch.ones(2)})["y"]
    tensor([[0., 0.]])
    """
    there = _broadcast(action, evidence)
    back = {name: evidence[name] for name in there}
    return _drift(counterfactual, evidence, [there, back], of=of, cycles=cycles, distance=distance)


def effectiveness(
    counterfactual: CounterfactualFunction,
    evidence: Values,
    *,
    action: Action,
    oracles: Mapping[str, Callable[[Values], Tensor]],
    distance: Distance = absolute_error,
) -> dict[str, Tensor]:
    r"""Distance between what an intervention asked for and what an oracle reads off its result.

    An oracle :math:`o_k` recovers variable k from the other variables of a world: a measuring
    function (the stroke width of an image), or a classifier. The metric is
    :math:`d(o_k(w), t_k)` in the counterfactual world w, where the wanted value :math:`t_k` is
    ``action[k]`` for an intervened k, and w's own value for any other. With an imperfect oracle,
    compare with the oracle's own error on data.

    **Shapes** every value of ``evidence`` ``[N, *event]``; a reading is whatever ``distance``
    compares with the wanted value, usually ``[N, *event]``; every value of the result ``[N]``.

    **Arguments** ``action`` maps the intervened names to values, ``[N, *event]`` or a number;
    ``oracles`` maps variables to functions of the counterfactual world; ``distance`` is called
    with the reading and the wanted value. (For a classifier that returns labels, choose
    :func:`zero_one_error`.)

    **Raises** ``ValueError`` for an oracle of a variable that is neither in ``action`` nor in the
    counterfactual world, and as :func:`composition`.

    **Example** A model that goes half of the way.

    >>> import torch
    >>> from pyro_causal.metrics import effectiveness
    >>> def timid(evidence, action):
    ...     return {"x": action["x"], "image": evidence["image"] + 0.5 * action["x"]}
    >>> evidence = {"x": torch.zeros(2), "image": torch.zeros(2)}
    >>> action = {"x": torch.tensor([1.0, 2.0])}
    >>> oracles = {"x": lambda world: world["image"]}
    >>> effectiveness(timid, evidence, action=action, oracles=oracles)
    {'x': tensor([0.5000, 1.0000])}
    """
    target = _broadcast(action, evidence)
    world = _step(counterfactual, evidence, target)
    wanted = {**world, **target}
    return {
        name: _measure(name, distance, oracles[name](world), wanted[name])
        for name in _known(oracles, wanted)
    }


def _drift(
    counterfactual: CounterfactualFunction,
    evidence: Values,
    actions: list[Values],
    *,
    of: Iterable[str] | None,
    cycles: int,
    distance: Distance,
) -> dict[str, Tensor]:
    """Distance ``[cycles, N]`` of each variable from the evidence, ``actions`` making one cycle."""
    if cycles < 1:
        raise ValueError(f"`cycles`: expected at least 1, got {cycles}.")
    unset = [name for name in evidence if name not in actions[0]]
    distances: dict[str, list[Tensor]] = {
        name: [] for name in _known(unset if of is None else of, evidence)
    }
    state = evidence
    for _ in range(cycles):
        for action in actions:
            world = _step(counterfactual, state, action)
            # Only what was observed is evidence for the next step: latent sites are abducted anew.
            state = {name: world[name] for name in evidence}
        for name, column in distances.items():
            column.append(_measure(name, distance, state[name], evidence[name]))
    return {name: torch.stack(column) for name, column in distances.items()}


def _step(counterfactual: CounterfactualFunction, evidence: Values, action: Values) -> Values:
    """The counterfactual world, checked to hold every observed variable in its observed shape."""
    world = counterfactual(evidence, action)
    for name, value in evidence.items():
        if name not in world:
            raise ValueError(
                f"At site '{name}', counterfactual value: expected one for every variable of the "
                f"evidence, got only {sorted(world)}. Do return '{name}' too."
            )
        if world[name].shape != value.shape:
            raise ValueError(
                f"At site '{name}', counterfactual value: expected the shape {tuple(value.shape)} "
                f"of the evidence, got {tuple(world[name].shape)}. Do return one value per unit."
            )
    return world


def _measure(name: str, distance: Distance, x: Tensor, y: Tensor) -> Tensor:
    """The distance of variable ``name``, checked to be one number per unit."""
    try:
        result = distance(x, y)
    except ValueError as error:
        raise ValueError(f"At site '{name}', {error}") from error
    if result.shape != y.shape[:1]:
        raise ValueError(
            f"At site '{name}', distance: expected one number per unit, shape "
            f"{tuple(y.shape[:1])}, got {tuple(result.shape)}. Do reduce over the event dims only."
        )
    return result


def _broadcast(action: Action, evidence: Values) -> dict[str, Tensor]:
    """``action`` with every value expanded to the shape of the observed one."""
    expanded = {}
    for name in _known(action, evidence):
        observed = evidence[name]
        dtype = torch.result_type(observed, action[name])
        value = torch.as_tensor(action[name], dtype=dtype, device=observed.device)
        try:
            expanded[name] = value.expand(observed.shape)
        except RuntimeError as error:
            raise ValueError(
                f"At site '{name}', value of the action: expected a shape that broadcasts to "
                f"{tuple(observed.shape)}, got {tuple(value.shape)}. "
                "Do give a number or one value per unit."
            ) from error
    return expanded


def _known(names: Iterable[str], values: Values) -> list[str]:
    """``names`` as a list, checked to be keys of ``values``."""
    names = list(names)
    for name in names:
        if name not in values:
            raise ValueError(
                f"At site '{name}', name: expected one of {sorted(values)}, got '{name}'. "
                "Do check its spelling, or add the variable to the evidence."
            )
    return names


def _require_same_shape(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.dim() == 0:
        raise ValueError(
            "distance: expected two tensors of one shape [N, *event], got "
            f"{tuple(x.shape)} and {tuple(y.shape)}. Do give both one value per unit."
        )
