"""Completion: what its heads see, for every pattern, batch and kind of variable; its training."""

import copy
from collections.abc import Mapping
from itertools import combinations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_causal import fit
from pyro_causal.infer.guides import Completion
from pyro_causal.mechanisms import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalGaussian,
    Recorded,
)

EVENT = (1, 2, 3)
SIZES = {"a": 1, "b": 1, "c": 3, "x": 2, "s": 1}


class Seen(Recorded):
    """A head that keeps the features it gets, and any module that is asked for its constants."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.seen: list[Tensor] = []

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        self.seen.append(features)
        return dist.Normal(self.linear(features).squeeze(-1), 1.0)

    def set_normalisation(self, data: Tensor, features: Tensor) -> "Seen":
        self.constants = data, features
        return self


def picture() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 2))


def build(*names: str) -> Completion:
    heads = {name: Seen(Completion.width(name, SIZES)) for name in names or ("a", "b")}
    return Completion(heads, sizes=SIZES, networks={"x": (picture(), EVENT)})


def rows(*batch: int) -> dict[str, Tensor]:
    return {
        "a": torch.randn(batch),
        "b": 5 + 2 * torch.randn(batch),
        "c": torch.randint(3, batch),
        "x": torch.randn(*batch, *EVENT),
        "s": torch.randint(2, batch).float(),
    }


def expected(completion: Completion, name: str, known: Mapping[str, Tensor]) -> Tensor:
    """The features of a head, written out."""
    columns = []
    batch = torch.broadcast_shapes(
        *(x.shape[: x.dim() - (3 if n == "x" else 0)] for n, x in known.items())
    )
    for k, (other, size) in enumerate(SIZES.items()):
        if other == name:
            continue
        if other not in known:
            columns.append(torch.zeros(*batch, size + 1))
            continue
        value = known[other]
        if other == "x":
            network = completion.networks["x"]
            value = network(value.reshape(-1, *EVENT)).reshape(*value.shape[:-3], 2)
        elif other == "c":
            value = nn.functional.one_hot(value, 3).float()
        else:
            value = ((value - completion.loc[k]) / completion.scale[k])[..., None]
        columns.append(value.expand(*batch, size))
        columns.append(torch.ones(*batch, 1))
    return torch.cat(columns, -1)


def test_width() -> None:
    assert Completion.width("a", SIZES) == 2 + 4 + 3 + 2
    assert Completion.width("c", SIZES) == 2 + 2 + 3 + 2
    assert Completion.width("a", {"a": 1}) == 0


PATTERNS = [p for n in range(1, 5) for p in combinations(["b", "c", "x", "s"], n)]


@pytest.mark.parametrize("pattern", PATTERNS, ids="".join)
@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
def test_features_of_every_pattern(pattern: tuple[str, ...], batch: tuple[int, ...]) -> None:
    completion = build().set_normalisation(rows(50))
    known = {name: value for name, value in rows(*batch).items() if name in pattern}
    d = completion("a", known)
    assert d.batch_shape == batch
    (seen,) = completion.heads["a"].seen
    torch.testing.assert_close(seen, expected(completion, "a", known))


def test_nothing_is_known() -> None:
    completion = build()
    assert completion("a", {}).batch_shape == ()
    assert torch.equal(completion.heads["a"].seen[0], torch.zeros(11))


def test_batches_broadcast() -> None:
    """A variable that was completed has an axis of draws which observations lack."""
    completion, data = build(), rows(4)
    known = {"b": torch.randn(7, 1, 4), "x": data["x"], "c": torch.tensor(2), "s": torch.zeros(4)}
    assert completion("a", known).batch_shape == (7, 1, 4)
    torch.testing.assert_close(completion.heads["a"].seen[0], expected(completion, "a", known))


def test_its_own_value_and_the_order_of_the_others_do_not_matter() -> None:
    completion, data = build(), rows(4)
    whole = completion("a", data).mean
    data["a"] += 1
    torch.testing.assert_close(completion("a", dict(reversed(data.items()))).mean, whole)


def test_a_network_sees_rows_once() -> None:
    completion, calls = build(), []
    completion.networks["x"].register_forward_hook(lambda m, x, y: calls.append(x[0].shape))
    completion("a", {"x": torch.randn(3, 4, *EVENT)})
    assert calls == [(12, *EVENT)]
    completion.model(rows(5))  # two heads share one call
    assert calls[1:] == [(5, *EVENT)]


def test_normalisation() -> None:
    completion, data = build(), rows(200)
    data["s"] = torch.ones(200)
    assert completion.set_normalisation(data) is completion
    for k, name in ((0, "a"), (1, "b")):
        torch.testing.assert_close(completion.loc[k], data[name].mean())
        torch.testing.assert_close(completion.scale[k], data[name].std(correction=0))
    assert (completion.loc[4], completion.scale[4]) == (1, 1)  # does not vary
    assert completion.loc[2:4].tolist() == [0, 0] and completion.scale[2:4].tolist() == [1, 1]
    for name, head in completion.heads.items():
        own, features = head.constants
        assert own is data[name]
        assert features.shape == (2, 11)
        assert (features.mean(0), features.std(0, correction=0)) == (
            pytest.approx(torch.zeros(11)),
            pytest.approx(torch.ones(11)),
        )
    assert {"loc", "scale"} <= completion.state_dict().keys()


def test_a_mechanism_as_a_head_keeps_standardised_features() -> None:
    head = ConditionalGaussian([(11,)], hidden=(4,))
    completion = Completion({"a": head}, sizes=SIZES, networks={"x": (picture(), EVENT)})
    data = rows(50)
    completion.set_normalisation(data)
    torch.testing.assert_close(head.context_loc, torch.zeros(11))
    torch.testing.assert_close(head.context_scale, torch.ones(11))
    torch.testing.assert_close(head.loc, data["a"].mean())


@pytest.mark.parametrize("hide", [0.0, 0.3, 1.0])
def test_training_hides_variables_row_by_row(hide: float) -> None:
    completion = build()
    completion.hide = hide
    data = rows(2000)
    data["a"] += 100.0  # cannot be zero by chance
    completion.model(data)
    (seen,) = completion.heads["b"].seen
    full = expected(completion, "b", data)
    flags = []
    for start, flag in ((0, 1), (2, 5), (6, 8), (9, 10)):  # values and flags of a, c, x, s
        known = seen[:, flag]
        assert set(known.tolist()) <= {0.0, 1.0}
        assert 1 - known.mean().item() == pytest.approx(hide, abs=0.05)
        torch.testing.assert_close(seen[:, start:flag], full[:, start:flag] * known[:, None])
        flags.append(known)
    if hide == 0.3:
        assert torch.stack(flags).corrcoef().fill_diagonal_(0).abs().max() < 0.1
        others = completion.heads["a"].seen[0][:, 10]
        assert torch.stack([others, flags[3]]).corrcoef()[0, 1].abs() < 0.1  # each head its own


def test_the_program_scores_every_head() -> None:
    completion, data = build(), rows(6)
    completion.hide = 0.0
    trace = poutine.trace(completion.model).get_trace(data)
    expect = sum(
        completion(n, {k: v for k, v in data.items() if k != n}).log_prob(data[n]).sum()
        for n in ("a", "b")
    )
    torch.testing.assert_close(trace.log_prob_sum(), expect)
    assert not poutine.trace(completion.guide).get_trace(data).stochastic_nodes
    assert {*trace.observation_nodes} == {"a", "b"}


def test_every_parameter_trains() -> None:
    completion, data = build(), rows(60)
    before = {n: p.detach().clone() for n, p in completion.named_parameters()}
    fit(completion.model, completion.guide, loss=Trace_ELBO(), data={"data": data}, epochs=3,
        batch_size=20, optim=pyro.optim.Adam({"lr": 0.01}))  # fmt: skip
    for name, parameter in completion.named_parameters():
        assert (parameter != before[name]).any(), name


def test_two_completions_train_in_turn() -> None:
    data = rows(60)
    one, two = build(), build()
    for completion in (one, two, one):
        before = {n: p.detach().clone() for n, p in completion.named_parameters()}
        fit(completion.model, completion.guide, loss=Trace_ELBO(), data={"data": data}, epochs=2,
            optim=pyro.optim.Adam({"lr": 0.01}))  # fmt: skip
        for name, parameter in completion.named_parameters():
            assert (parameter != before[name]).any(), name


def test_which_variables_may_be_missing() -> None:
    assert "a" in build() and "c" not in build()


def test_names_of_attributes() -> None:
    sizes = {"type": 1, "values": 1, "keys": 2}
    completion = Completion(
        {"type": Seen(5), "values": Seen(5)},
        sizes=sizes,
        networks={"keys": (nn.Linear(3, 2), (3,))},
    )
    data = {"type": torch.randn(4), "values": torch.randn(4), "keys": torch.randn(4, 3)}
    completion.set_normalisation(data).model(data)
    assert completion("type", data).batch_shape == (4,)
    with pytest.raises(ValueError, match="At site 'a.b', the name of the variable"):
        Completion({"a.b": Seen(5)}, sizes={"a.b": 1})


def test_heads_of_every_kind() -> None:
    sizes = {"a": 1, "c": 3, "s": 1}
    completion = Completion(
        {
            "a": ConditionalGaussian([(Completion.width("a", sizes),)]),
            "c": ConditionalCategorical(3, [(Completion.width("c", sizes),)]),
            "s": ConditionalBernoulli([(Completion.width("s", sizes),)]),
        },
        sizes=sizes,
    )
    data = {name: value for name, value in rows(30).items() if name in sizes}
    completion.set_normalisation(data)
    losses = fit(completion.model, completion.guide, loss=Trace_ELBO(), data={"data": data},
                 epochs=2, optim=pyro.optim.Adam({"lr": 0.01}))  # fmt: skip
    assert losses is not None
    assert isinstance(completion("c", {"a": data["a"]}), dist.Categorical)
    assert completion("s", {"c": data["c"], "a": data["a"]}).sample().shape == (30,)


def test_deepcopy_and_double_precision() -> None:
    completion = copy.deepcopy(build()).to(torch.float64)
    data = {n: x.double() if x.is_floating_point() else x for n, x in rows(4).items()}
    assert completion("a", data).mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": {"b": 1}}, r"Completion: sizes lack \['a'\]: expected the number of features"),
        ({"sizes": {"a": 1}, "networks": {"x": (nn.Flatten(), EVENT)}}, r"sizes lack \['x'\]"),
    ],
)
def test_sizes_of_all_variables(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Completion({"a": Seen(2)}, **arguments)


def test_a_network_of_the_wrong_size() -> None:
    completion = Completion(
        {"a": Seen(4)}, sizes={"a": 1, "x": 3}, networks={"x": (picture(), EVENT)}
    )
    message = r"Completion: the network of 'x' returns \(5, 2\): expected \(5, 3\)"
    with pytest.raises(ValueError, match=message):
        completion("a", {"x": torch.zeros(5, *EVENT)})


def test_a_vector_needs_a_network() -> None:
    completion = Completion({"a": Seen(4)}, sizes={"a": 1, "v": 3})
    for values in ([0.5, 1.0], [1.0, 3.0], [-1.0, 0.0]):
        message = "the values of 'v' are no categories below 3: expected whole numbers.*Give one"
        with pytest.raises(ValueError, match=f"Completion: {message}"):
            completion("a", {"v": torch.tensor(values)})


def test_incomplete_rows_are_no_training_data() -> None:
    data = rows(4)
    del data["c"]
    with pytest.raises(
        ValueError, match=r"Completion: \['c'\] are missing: expected complete rows"
    ):
        build().model(data)
    with pytest.raises(ValueError, match=r"\['c'\] are missing"):
        build().set_normalisation(data)
    for call in (build().model, build().set_normalisation):
        with pytest.raises(ValueError, match=r"Completion: \['a', 'b', .* have no rows: expected"):
            call(rows(0))
