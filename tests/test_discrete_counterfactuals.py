"""Gumbel-max inside models: laws on random logits, and counterfactuals known by integration."""

from collections.abc import Sequence

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_causal import CounterfactualPredictive
from pyro_causal.infer.guides import Completion
from pyro_causal.mechanisms import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalGaussian,
    Mechanism,
)
from pyro_causal.methods import DeepSCM

N = 20_000


class Logits(nn.Module):
    """A table of logits, one row for each value of a one-hot parent."""

    def __init__(self, table: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.table = torch.tensor(table)

    def forward(self, one_hot: Tensor) -> Tensor:
        return one_hot @ self.table


def categorical(table: Sequence[Sequence[float]]) -> ConditionalCategorical:
    """A category whose parent is a category."""
    return ConditionalCategorical(len(table[0]), [(len(table),)], hidden=Logits(table))


def root(logits: Sequence[float]) -> ConditionalCategorical:
    mechanism = ConditionalCategorical(len(logits))
    with torch.no_grad():
        mechanism.network.bias.copy_(torch.tensor(logits))
    return mechanism


class Vector(Mechanism):
    """A root whose values the tests choose."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.event_shape = (size,)

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros(self.event_shape), 1.0).to_event(1)


def of_vector(mechanism: Mechanism, size: int) -> DeepSCM:
    return DeepSCM(mechanisms={"w": (Vector(size), ()), "y": (mechanism, ("w",))})


def counterfactuals(scm: DeepSCM, data: dict[str, Tensor], *actions: dict) -> dict[str, Tensor]:
    """One draw of every row in every world, ``[1 + actions, N]``."""
    found = CounterfactualPredictive(scm.model, actions, guide=scm.guide)(data)
    return {name: value[0] for name, value in found.items()}


def joint(a: Tensor, b: Tensor) -> Tensor:
    r"""P(y = k, y' = j) for logits a and b with the same Gumbels, by integration.

    Let d be the noise of j less that of k. Integrated over the latter,
    :math:`\int_{b_k - b_j}^{a_k - a_j} e^{-d} Z(d)^{-2} \, dd` with :math:`Z = 1 + e^{-d} +
    \sum_i e^{-\min(a_k - a_i, \, d + b_j - b_i)}` over the other categories.
    """
    a, b, size = a.double(), b.double(), len(a)
    result = torch.zeros(size, size, dtype=torch.float64)
    for k in range(size):
        for j in range(size):
            low, high = b[k] - b[j], a[k] - a[j]
            if j == k or low >= high:
                continue
            d = torch.linspace(low.item(), high.item(), 20_001, dtype=torch.float64)
            z = 1 + (-d).exp()
            for i in {*range(size)} - {j, k}:
                z = z + (-torch.minimum(a[k] - a[i], d + b[j] - b[i])).exp()
            result[k, j] = torch.trapezoid((-d).exp() / z**2, d)
    return result + torch.diag(a.softmax(0) - result.sum(1))


def frequencies(y: Tensor, size: int) -> Tensor:
    return torch.bincount(y.long(), minlength=size).double() / len(y)


def assert_frequencies(y: Tensor, probs: Tensor) -> None:
    """Within four standard errors, and never what has no probability."""
    error = (probs * (1 - probs) / len(y)).clamp_min(0).sqrt()
    assert ((frequencies(y, len(probs)) - probs).abs() <= 4 * error + 1e-9).all()


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_a_category_whose_odds_do_not_fall_never_loses(size: int, spread: float) -> None:
    """If p'_y / p_y >= p'_j / p_j then j is not the counterfactual, on random logits."""
    scm = of_vector(ConditionalCategorical(size, [(size,)], hidden=nn.Identity()), size)
    logits, other = spread * torch.randn(2, N, size)
    y = torch.distributions.Categorical(logits=logits).sample()
    found = counterfactuals(scm, {"w": logits, "y": y}, {"w": other})["y"][1]
    rise = other.log_softmax(-1) - logits.log_softmax(-1)
    own, new = (rise.gather(-1, v[:, None]).squeeze(-1) for v in (y, found))
    moved = found != y
    assert 0.05 < moved.float().mean() < 0.95
    assert (new[moved] > own[moved]).all()
    best = rise.argmax(-1) == y
    assert best.any() and not moved[best].any()


def test_a_binary_variable_moves_with_its_logit() -> None:
    scm = of_vector(ConditionalBernoulli([(1,)], hidden=nn.Identity()), 1)
    logits, other = 2 * torch.randn(2, N, 1)
    y = torch.bernoulli(logits[:, 0].sigmoid())
    up, down = counterfactuals(
        scm, {"w": logits, "y": y}, {"w": torch.maximum(logits, other)},
        {"w": torch.minimum(logits, other)},
    )["y"][1:]  # fmt: skip
    assert (up >= y).all() and (down <= y).all()
    assert (up > y).any() and (down < y).any()


@pytest.mark.parametrize("size", [2, 4])
def test_labels_mean_nothing(size: int) -> None:
    """With categories renamed, counterfactuals are renamed, for each observed category."""
    torch.manual_seed(5)
    a, b = 1.5 * torch.randn(2, size)
    order = torch.randperm(size).roll(1)
    plain = categorical(torch.stack([a, b]).tolist())
    renamed = categorical(torch.stack([a[order], b[order]]).tolist())
    moves = []
    for mechanism, names in ((plain, torch.arange(size)), (renamed, order)):
        scm = DeepSCM(mechanisms={"x": (root([0.0, 0.0]), ()), "y": (mechanism, ("x",))})
        y = names.argsort().repeat_interleave(N // size)  # the same categories by other names
        x = torch.zeros_like(y)
        found = counterfactuals(scm, {"x": x, "y": y}, {"x": 1})["y"][1]
        moves.append(frequencies(size * names[y] + names[found], size**2))
    torch.testing.assert_close(moves[0], moves[1], atol=0.015, rtol=0)
    expected = joint(a, b) / a.double().softmax(0)[:, None] / size
    torch.testing.assert_close(moves[0].view(size, size), expected, atol=0.012, rtol=0)


TABLE = [[0.3, -1.0, 0.8], [-0.9, 0.4, 0.5], [0.0, 0.0, 1.5]]
BINARY = [[-0.4, 0.4], [0.9, -0.3]]


@pytest.mark.parametrize("table", [TABLE, BINARY], ids=["3", "2"])
def test_counterfactuals_average_to_interventions(table: list[list[float]]) -> None:
    """Over what is observed, P(y_x) = p(y | do(x)), and one by one they need not be."""
    scm = DeepSCM(
        mechanisms={
            "x": (root([0.2, -0.5, 0.1][: len(table)]), ()),
            "y": (categorical(table), ("x",)),
        }
    )
    x = scm.mechanisms["x"]().sample((N,))
    y = scm.mechanisms["y"](nn.functional.one_hot(x, len(table)).float()).sample()
    actions = [{"x": level} for level in range(len(table))]
    found = counterfactuals(scm, {"x": x, "y": y}, *actions)["y"]
    assert torch.equal(found[0], y)
    for level, row in enumerate(table):
        assert_frequencies(found[1 + level], torch.tensor(row).double().softmax(0))
        same = x == level
        assert torch.equal(found[1 + level][same], y[same])


def test_binary_counterfactuals_average_to_interventions() -> None:
    mechanism = ConditionalBernoulli(1, hidden=nn.Linear(1, 1))
    scm = DeepSCM(mechanisms={"x": (ConditionalGaussian(), ()), "y": (mechanism, ("x",))})
    x = torch.randn(N)
    y = mechanism(x).sample()
    found = counterfactuals(scm, {"x": x, "y": y}, {"x": 1.5}, {"x": lambda x: x + 1})["y"]
    p = mechanism(torch.tensor(1.5)).probs.double().detach()
    assert_frequencies(found[1], torch.stack([1 - p, p]))
    p = mechanism(x + 1).probs.double().detach()
    error = (p * (1 - p)).sum().sqrt() / N
    assert (found[2].double().mean() - p.mean()).abs() < 4 * error


# --- against enumeration --------------------------------------------------------------------------


def test_the_integral_is_what_explicit_noise_gives() -> None:
    """Rejection: Gumbels of which the observed category comes, kept for the other mechanism."""
    a, b = torch.tensor(TABLE[:2])
    gumbels = torch.distributions.Gumbel(0.0, 1.0).sample((400_000, 3))
    y, other = (a + gumbels).argmax(-1), (b + gumbels).argmax(-1)
    exact = joint(a, b)
    torch.testing.assert_close(frequencies(3 * y + other, 9).view(3, 3), exact, atol=0.004, rtol=0)
    torch.testing.assert_close(exact.sum(0), b.double().softmax(0), atol=1e-6, rtol=0)
    two = joint(torch.tensor([0.0, 0.8]), torch.tensor([0.0, -0.5]))  # monotone: min(p, p')
    p, q = torch.tensor([0.8, -0.5]).double().sigmoid()
    expected = torch.tensor([[1 - p, 0.0], [p - q, q]]).double()
    torch.testing.assert_close(two, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("table", [TABLE, BINARY], ids=["3", "2"])
def test_two_variables(table: list[list[float]]) -> None:
    """P(y_x' = j | x, y = k) for every x, y, x', against the integral."""
    levels, size = len(table), len(table[0])
    scm = DeepSCM(mechanisms={"x": (root([0.0] * levels), ()), "y": (categorical(table), ("x",))})
    cells = torch.cartesian_prod(torch.arange(levels), torch.arange(size))
    x, y = cells.repeat_interleave(4000, 0).unbind(-1)
    actions = [{"x": level} for level in range(levels)]
    found = counterfactuals(scm, {"x": x, "y": y}, *actions)["y"]
    logits = torch.tensor(table)
    for level in range(levels):
        for own in range(levels):
            together = joint(logits[own], logits[level])
            for k in range(size):
                rows = (x == own) & (y == k)
                assert_frequencies(found[1 + level][rows], together[k] / together[k].sum())


def test_a_binary_variable() -> None:
    """P(y_x' = 1 | x, y = 1) = min(1, p' / p)."""
    mechanism = ConditionalBernoulli(1, hidden=())
    with torch.no_grad():
        mechanism.network.net[0].weight.fill_(1.3)
        mechanism.network.net[0].bias.fill_(-0.4)
    scm = DeepSCM(mechanisms={"x": (ConditionalBernoulli(), ()), "y": (mechanism, ("x",))})
    p = torch.tensor([-0.4, 0.9]).double().sigmoid()
    y = torch.arange(N).remainder(2).float()
    for own in (0, 1):
        x = torch.full((N,), float(own))
        found = counterfactuals(scm, {"x": x, "y": y}, {"x": 1.0 - own})["y"][1]
        q, r = p[own], p[1 - own]
        ones = torch.minimum(torch.ones(()).double(), r / q)
        zeros = torch.minimum(torch.ones(()).double(), (1 - r) / (1 - q))
        assert_frequencies(found[y == 1], torch.stack([1 - ones, ones]))
        assert_frequencies(found[y == 0], torch.stack([zeros, 1 - zeros]))


def chain() -> tuple[DeepSCM, Tensor, Tensor]:
    """x -> y -> w: a category between two others."""
    below = [[0.5, -0.5], [-1.0, 0.7], [0.1, 0.2]]
    scm = DeepSCM(
        mechanisms={
            "x": (root([0.0, 0.4, -0.3]), ()),
            "y": (categorical(TABLE), ("x",)),
            "w": (categorical(below), ("y",)),
        }
    )
    return scm, torch.tensor(TABLE), torch.tensor(below)


def test_a_category_between_two_others() -> None:
    """The noise of both is kept: P(w') = sum over y' of P(y' | y) P(w' | w, y, y')."""
    scm, middle, below = chain()
    for x, y, w, action in ((0, 0, 0, 1), (0, 2, 1, 1), (1, 1, 1, 0), (2, 2, 0, 0)):
        data = {"x": x, "y": y, "w": w}
        found = counterfactuals(
            scm, {n: torch.full((N,), v) for n, v in data.items()}, {"x": action}
        )
        moves = joint(middle[x], middle[action])[y]
        moves = moves / moves.sum()
        expected = torch.zeros(3, 2).double()
        for new in range(3):
            kept = joint(below[y], below[new])[w]
            expected[new] = moves[new] * kept / kept.sum()
        assert_frequencies(2 * found["y"][1] + found["w"][1], expected.flatten())


def test_a_missing_category() -> None:
    """With `x` missing, P(y_x') is the mean over its posterior p(x | y), which a head knows."""
    table, prior = torch.tensor(TABLE), torch.tensor([0.0, 0.4, -0.3])
    posterior = (table.log_softmax(-1) + prior[:, None]).T  # of x, a row for each y
    head = nn.Linear(4, 3)  # features: one-hot y, and that it is known
    with torch.no_grad():
        head.weight.copy_(torch.cat([posterior.T, torch.zeros(3, 1)], 1))
        head.bias.zero_()
    sizes = {"x": 3, "y": 3}
    scm = DeepSCM(
        mechanisms={"x": (root(prior.tolist()), ()), "y": (categorical(TABLE), ("x",))},
        completion=Completion({"x": ConditionalCategorical(3, [(4,)], hidden=head)}, sizes=sizes),
    )
    for y in range(3):
        found = counterfactuals(scm, {"y": torch.full((N,), y)}, {"x": 1}, {"x": 2})
        assert_frequencies(found["x"][0], posterior[y].double().softmax(0))
        for k, action in ((1, 1), (2, 2)):
            moves = torch.stack([joint(row, table[action])[y] for row in table])
            moves = moves / moves.sum(1, keepdim=True)
            expected = posterior[y].double().softmax(0) @ moves
            assert_frequencies(found["y"][k], expected)
            pairs = posterior[y].double().softmax(0)[:, None] * moves
            assert_frequencies(3 * found["x"][0] + found["y"][k], pairs.flatten())


def test_a_category_below_a_continuous_parent() -> None:
    """The noise is abducted given each row's own parent."""
    mechanism = ConditionalCategorical(3, 1, hidden=nn.Linear(1, 3))
    scm = DeepSCM(mechanisms={"t": (ConditionalGaussian(), ()), "y": (mechanism, ("t",))})
    t = torch.tensor([-1.0, 0.0, 2.0]).repeat_interleave(N // 2)
    y = torch.ones_like(t).long()
    found = counterfactuals(scm, {"t": t, "y": y}, {"t": 0.7})["y"][1]
    logits = mechanism.network(torch.tensor([[-1.0], [0.0], [2.0], [0.7]])).detach()
    for k, own in enumerate((-1.0, 0.0, 2.0)):
        moves = joint(logits[k], logits[3])[1]
        assert_frequencies(found[t == own], moves / moves.sum())
