"""The axiomatic metrics against counterfactual functions whose value is known in closed form."""

import math

import pytest
import torch

from pyro_causal.metrics import (
    absolute_error,
    composition,
    effectiveness,
    reversibility,
    zero_one_error,
)

TEMPLATE = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
SCALE = 1.5


def structural_equations(noise, action):
    """Evaluate a -> b, a -> y <- b and an image that shows a on its diagonal."""
    a = action.get("a", noise["a"])
    b = action.get("b", 0.7 * a + noise["b"])
    y = action.get("y", 2.0 * a - b + noise["y"])
    image = action.get("image", a[:, None, None] * TEMPLATE + noise["image"])
    return {"a": a, "b": b, "y": y, "image": image}


def abduct(evidence):
    a, b = evidence["a"], evidence["b"]
    return {
        "a": a,
        "b": b - 0.7 * a,
        "y": evidence["y"] - 2.0 * a + b,
        "image": evidence["image"] - a[:, None, None] * TEMPLATE,
    }


def exact(evidence, action):
    return structural_equations(abduct(evidence), action)


def draw_noise(units):
    image = torch.randn(units, 2, 2, dtype=torch.float64) * (1.0 - TEMPLATE)  # keeps a readable
    scalars = {name: SCALE * torch.randn(units, dtype=torch.float64) for name in "aby"}
    return {**scalars, "image": image}


def observe(units):
    noise = draw_noise(units)
    return noise, structural_equations(noise, {})


def shrinks(rate):
    """Make a counterfactual function that loses a part of y's noise, as a lossy encoder does."""

    def counterfactual(evidence, action):
        noise = abduct(evidence)
        return structural_equations({**noise, "y": rate * noise["y"]}, action)

    return counterfactual


def forgets(evidence, action):
    """Draw y's noise afresh: an intervention sold as a counterfactual."""
    fresh = SCALE * torch.randn_like(evidence["y"])
    return structural_equations({**abduct(evidence), "y": fresh}, action)


def adds_noise(evidence, action):
    world = exact(evidence, action)
    return {**world, "y": world["y"] + SCALE * torch.randn_like(world["y"])}


def identity(evidence, action):
    return evidence


def read_diagonal(world):
    return torch.diagonal(world["image"], dim1=-2, dim2=-1).mean(-1)


def test_exact_model_is_sound():
    _, evidence = observe(50)
    action = {"a": evidence["a"].flip(0)}
    for distances in (
        composition(exact, evidence, targets=["a"], cycles=3),
        composition(exact, evidence, targets=[], cycles=3),
        composition(exact, evidence, targets=["a", "b"], of=["a", "b", "y", "image"], cycles=3),
        reversibility(exact, evidence, action=action, of=["a", "b", "y", "image"], cycles=3),
        reversibility(exact, evidence, action={"a": 1.0, "y": 2.0}, of=["b", "image"], cycles=3),
    ):
        for name, distance in distances.items():
            assert distance.shape == (3, 50)
            assert distance.max() < 1e-12, name
    oracles = {"a": read_diagonal, "b": lambda world: 2.0 * read_diagonal(world) - world["y"]}
    _, noiseless = observe(50)
    noiseless["y"] = 2.0 * noiseless["a"] - noiseless["b"]
    reading = effectiveness(exact, noiseless, action=action, oracles=oracles)
    assert {name: value.shape for name, value in reading.items()} == {"a": (50,), "b": (50,)}
    assert all(value.max() < 1e-12 for value in reading.values())


def test_lossy_abduction_loses_a_known_share_of_the_noise():
    noise, evidence = observe(20)
    rate, cycles = 0.6, 4
    steps = torch.arange(1, cycles + 1, dtype=torch.float64)[:, None]
    null = composition(shrinks(rate), evidence, targets=["a"], cycles=cycles)
    torch.testing.assert_close(null["y"], (1.0 - rate**steps) * noise["y"].abs())
    assert null["b"].max() < 1e-12
    back = reversibility(shrinks(rate), evidence, action={"a": 0.3}, cycles=cycles)
    torch.testing.assert_close(back["y"], (1.0 - rate ** (2 * steps)) * noise["y"].abs())


def test_forgotten_abduction_costs_two_independent_noises():
    _, evidence = observe(40_000)
    expected = 2.0 * SCALE / math.sqrt(math.pi)  # E|u - u'| of two draws of Normal(0, SCALE)
    null = composition(forgets, evidence, targets=["a"], cycles=2)["y"]
    back = reversibility(forgets, evidence, action={"a": 0.0}, cycles=2)["y"]
    for distance in (*null, *back):
        assert distance.mean().item() == pytest.approx(expected, rel=0.02)


def test_added_noise_grows_with_the_root_of_the_steps():
    _, evidence = observe(40_000)
    half_normal = SCALE * math.sqrt(2.0 / math.pi)
    null = composition(adds_noise, evidence, targets=["a"], cycles=3)["y"]
    back = reversibility(adds_noise, evidence, action={"a": 0.0}, cycles=3)["y"]
    for m in (1, 2, 3):
        assert null[m - 1].mean().item() == pytest.approx(half_normal * math.sqrt(m), rel=0.02)
        assert back[m - 1].mean().item() == pytest.approx(half_normal * math.sqrt(2 * m), rel=0.02)
    spread = SCALE * math.sqrt(1.0 - 2.0 / math.pi)  # standard deviation of a half-normal
    assert null[0].std().item() == pytest.approx(spread, rel=0.03)


def test_identity_is_sound_but_ineffective():
    _, evidence = observe(10)
    action = {"a": torch.full((10,), 2.5, dtype=torch.float64)}
    assert composition(identity, evidence, targets=["a"], cycles=2)["y"].max() == 0.0
    assert reversibility(identity, evidence, action=action, cycles=2)["y"].max() == 0.0
    result = effectiveness(identity, evidence, action=action, oracles={"a": read_diagonal})["a"]
    torch.testing.assert_close(result, (evidence["a"] - 2.5).abs())


def test_effectiveness_compares_other_variables_with_their_counterfactual_values():
    _, evidence = observe(10)
    action = {"a": torch.full((10,), 2.5, dtype=torch.float64)}
    wanted = exact(evidence, action)["b"]
    result = effectiveness(exact, evidence, action=action, oracles={"b": lambda world: wanted + 3})
    torch.testing.assert_close(result["b"], torch.full((10,), 3.0, dtype=torch.float64))
    assert not torch.allclose(wanted, evidence["b"])


def test_a_target_is_not_measured_unless_asked():
    _, evidence = observe(3)
    assert set(composition(exact, evidence, targets=["a", "b"])) == {"y", "image"}
    assert set(reversibility(exact, evidence, action={"b": 0.0}, of=["b"])) == {"b"}


def test_latent_sites_of_a_world_are_no_evidence_for_the_next():
    _, evidence = observe(3)
    seen = []

    def counterfactual(evidence, action):
        seen.append(set(evidence))
        return {**exact(evidence, action), "z": torch.zeros(3)}

    reversibility(counterfactual, evidence, action={"a": 0.0})
    assert seen == [{"a", "b", "y", "image"}] * 2


def test_distances_are_means_over_event_dims_and_pluggable():
    _, evidence = observe(20)

    def brighter(evidence, action):
        world = exact(evidence, action)
        return {**world, "image": world["image"] + torch.tensor([[1.0, -2.0], [3.0, 0.0]])}

    null = composition(brighter, evidence, targets=["a"], of=["image"])["image"]
    torch.testing.assert_close(null, torch.full((1, 20), 1.5, dtype=torch.float64))
    largest = composition(
        brighter,
        evidence,
        targets=["a"],
        of=["image"],
        distance=lambda x, y: (x - y).abs().amax((-2, -1)),
    )
    torch.testing.assert_close(largest["image"], torch.full((1, 20), 3.0, dtype=torch.float64))


def test_zero_one_error_counts_a_classifiers_mistakes():
    labels = torch.tensor([0, 1, 2, 3])
    evidence = {"digit": labels, "image": labels.double()}

    def counterfactual(evidence, action):
        return {"digit": action["digit"], "image": action["digit"].clamp(max=2).double()}

    result = effectiveness(
        counterfactual,
        evidence,
        action={"digit": labels.flip(0)},
        oracles={"digit": lambda world: world["image"].long()},
        distance=zero_one_error,
    )
    assert result["digit"].tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.float64])
def test_errors_follow_floating_dtypes_and_promote_others(dtype):
    x, y = torch.tensor([0, 1], dtype=dtype), torch.tensor([1, 1], dtype=dtype)
    expected = dtype if dtype.is_floating_point else torch.get_default_dtype()
    assert absolute_error(x, y).dtype == expected
    assert absolute_error(x, y).tolist() == [1.0, 0.0]
    assert zero_one_error(x, y).tolist() == [1.0, 0.0]
    assert zero_one_error(torch.stack([x, y]), torch.stack([y, y])).tolist() == [1.0, 0.0]


def test_a_number_as_action_takes_the_shape_and_precision_of_the_evidence():
    _, evidence = observe(3)
    seen = []

    def counterfactual(evidence, action):
        seen.append(action["a"])
        return exact(evidence, action)

    reversibility(counterfactual, evidence, action={"a": 0.1})
    assert torch.equal(seen[0], torch.full((3,), 0.1, dtype=torch.float64))
    assert torch.equal(seen[1], evidence["a"])


def test_gradients_flow_through_the_metrics():
    noise, evidence = observe(20)
    rate = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    composition(shrinks(rate), evidence, targets=["a"])["y"].mean().backward()
    torch.testing.assert_close(rate.grad, -noise["y"].abs().mean())


def test_misspelt_names_are_refused():
    _, evidence = observe(3)
    with pytest.raises(ValueError, match=r"At site 'A', name: expected one of \['a', 'b', 'image'"):
        composition(exact, evidence, targets=["A"])
    with pytest.raises(ValueError, match="At site 'Y', name"):
        composition(exact, evidence, targets=["a"], of=["Y"])
    with pytest.raises(ValueError, match="At site 'A', name"):
        reversibility(exact, evidence, action={"A": 0.0})
    with pytest.raises(ValueError, match="At site 'z', name"):
        effectiveness(exact, evidence, action={"a": 0.0}, oracles={"z": read_diagonal})


def test_cycles_must_be_positive():
    _, evidence = observe(3)
    with pytest.raises(ValueError, match="`cycles`: expected at least 1, got 0"):
        composition(exact, evidence, targets=["a"], cycles=0)


def test_counterfactual_function_must_return_every_variable_in_its_shape():
    _, evidence = observe(3)

    def partial(evidence, action):
        return {"a": evidence["a"]}

    def stacked(evidence, action):
        return {name: value[None] for name, value in exact(evidence, action).items()}

    with pytest.raises(
        ValueError, match=r"At site 'b', counterfactual value: .* Do return 'b' too"
    ):
        composition(partial, evidence, targets=["a"])
    with pytest.raises(ValueError, match=r"At site 'a', .* the shape \(3,\) .* got \(1, 3\)"):
        reversibility(stacked, evidence, action={"a": 0.0})


def test_action_must_broadcast_to_the_evidence():
    _, evidence = observe(3)
    with pytest.raises(ValueError, match=r"At site 'a', value of the action: .*\(3,\), got \(2,\)"):
        reversibility(exact, evidence, action={"a": torch.zeros(2)})


def test_distance_must_be_one_number_per_unit():
    _, evidence = observe(3)
    with pytest.raises(ValueError, match=r"At site 'y', distance: .* shape \(3,\), got \(\)"):
        composition(
            exact, evidence, targets=["a"], of=["y"], distance=lambda x, y: (x - y).abs().mean()
        )
    with pytest.raises(ValueError, match=r"At site 'a', distance: .*\(3, 1\) and \(3,\)"):
        effectiveness(
            exact,
            evidence,
            action={"a": 0.0},
            oracles={"a": lambda world: read_diagonal(world)[:, None]},
        )
