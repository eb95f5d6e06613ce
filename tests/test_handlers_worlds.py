"""`worlds` and `world`: what a world is, who gains the axis, and what is shared between worlds."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch.testing import assert_close

from pyro_causal import noise
from pyro_causal.handlers import do, soft, world, worlds
from tests.families import CONTINUOUS, FAMILIES

# Not Pyro distributions, or ones that no plate can expand: noise has them, programs do not.
UNUSABLE = {"torch_normal", "zuko_flow", "zuko_to_pyro", "soft_asymmetric_laplace"}
USABLE = [case for case in FAMILIES if case.name not in UNUSABLE]
# Their parameters, or what of them the value shows, are the same in all worlds of the test.
SAME_IN_ALL_WORLDS = {"relaxed_one_hot_categorical", "expanded_normal"}

N = 6
ROWS = torch.arange(float(N))
ACTIONS = [{"h": 2.0}, {"x": ROWS, "h": lambda h: h + 1}]


def model(y=None):
    """Root s, then x -> h, (x, h) -> v (a vector) and y; k stands apart."""
    s = pyro.sample("s", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N):
        k = pyro.sample("k", dist.Normal(s, 1.0))
        x = pyro.sample("x", dist.Normal(s, 1.0))
        h = pyro.sample("h", dist.Normal(0.5 * x, 1.0))
        d = pyro.deterministic("d", h + k)
        both = torch.stack(torch.broadcast_tensors(x, h), -1)
        pyro.sample("v", dist.Normal(both, 2.0).to_event(1))
        return pyro.sample("y", dist.Normal(0.7 * x + 0.4 * h + d, 1.0), obs=y)


def run(program, *args, seed=0):
    pyro.set_rng_seed(seed)
    return poutine.trace(program).get_trace(*args)


def sites(trace):
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def value(trace, name):
    return trace.nodes[name]["value"]


def test_targets_and_descendants_gain_the_axis_and_nobody_else():
    trace = run(worlds(model, ACTIONS))
    shapes = {name: tuple(site["value"].shape) for name, site in sites(trace).items()}
    assert shapes == {
        "s": (),
        "k": (N,),
        "x": (3, N),
        "h": (3, N),
        "d": (3, N),
        "v": (3, N, 2),
        "y": (3, N),
    }


def test_values_are_those_of_the_structural_equations():
    trace = run(worlds(model, ACTIONS))
    s, k = value(trace, "s"), value(trace, "k")
    x, h, v, y = (value(trace, name) for name in "xhvy")
    assert torch.equal(x, torch.stack([x[0], x[0], ROWS]))
    e_h, e_v = h[0] - 0.5 * x[0], v[0] - torch.stack([x[0], h[0]], -1)
    natural_h = 0.5 * ROWS + e_h
    assert_close(h, torch.stack([h[0], torch.full((N,), 2.0), natural_h + 1]))
    assert_close(value(trace, "d"), h + k)
    assert_close(v, torch.stack([x, h], -1) + e_v)
    e_y = y[0] - 0.7 * x[0] - 0.4 * h[0] - h[0] - k
    assert_close(y, 0.7 * x + 0.4 * h + h + k + e_y)
    assert torch.isfinite(s)


def test_world_zero_is_the_factual_one_bit_for_bit():
    data = torch.randn(N)
    trace = run(worlds(model, ACTIONS), data)
    assert torch.equal(value(trace, "y")[0], data)
    for name in "xhv":
        replayed = poutine.replay(worlds(model, ACTIONS), trace=world(trace, 0))
        assert torch.equal(value(run(replayed, data, seed=1), name), value(trace, name))


def test_log_density_and_gradients_are_those_of_the_factual_trace():
    loc = torch.tensor(0.3, requires_grad=True)

    def parametrised(y):
        with poutine.reparam(config={}):
            with pyro.plate("rows", N):
                x = pyro.sample("x", dist.Normal(loc, 1.0))
                pyro.sample("y", dist.Gamma(x.exp(), loc.exp()), obs=y)

    y = torch.rand(N) + 0.1
    in_worlds = run(worlds(parametrised, [{"x": 1.0}, {"x": ROWS}]), y)
    plain = run(poutine.replay(parametrised, trace=world(in_worlds, 0)), y)
    assert_close(in_worlds.log_prob_sum(), plain.log_prob_sum(), rtol=1e-6, atol=0)
    in_worlds.compute_log_prob(), plain.compute_log_prob()
    for a, b in zip(sites(in_worlds).values(), sites(plain).values(), strict=True):
        assert_close(a["log_prob"].reshape(N), b["log_prob"], rtol=1e-6, atol=0)
    (expected,) = torch.autograd.grad(plain.log_prob_sum(), loc)
    (got,) = torch.autograd.grad(in_worlds.log_prob_sum(), loc)
    assert_close(got, expected, rtol=1e-6, atol=0)


def test_impossible_values_of_other_worlds_do_not_spoil_gradients():
    """In the second world x = 3 lies outside of the support: it is not asked for there."""
    width = torch.tensor(4.0, requires_grad=True)

    def program():
        t = pyro.sample("t", dist.Normal(1.0, 1.0), obs=torch.tensor(1.0))
        x = pyro.sample("x", dist.Uniform(0.0, width * t), obs=torch.tensor(3.0))
        p = torch.stack([t - 1, 2 - t, 1 + 0 * t], -1).clamp(0, 1)
        c = pyro.sample("c", dist.Categorical(p), obs=torch.tensor(1))
        return pyro.sample("y", dist.Normal(x + c, 1.0), obs=torch.tensor(0.0))

    trace = run(worlds(program, {"t": 0.5}), seed=1)
    (got,) = torch.autograd.grad(trace.log_prob_sum() + value(trace, "y")[1], width)
    assert_close(got, -1 / width.detach())  # x in the second world is 1.5, whatever the width
    assert_close(value(trace, "x"), torch.tensor([3.0, 1.5]))


def family_model(case, dtype, size):
    """`t` moves all parameters of a site of the family: worlds of `t` have their own."""

    def program(x=None, x2=None):
        with pyro.plate("rows", N):
            t = pyro.sample("t", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
            x = pyro.sample("x", case(tuple(t.shape), dtype), obs=x)
            return x

    return worlds(program, [{"t": float(k)} for k in range(1, size)])


@pytest.mark.parametrize("observed", [True, False], ids=["observed", "latent"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("case", [c for c in USABLE if c in CONTINUOUS], ids=lambda c: c.name)
def test_noise_is_shared_exactly(case, dtype, tolerance, observed):
    over_worlds = case((3, N), dtype)
    data = over_worlds.sample()[0] if observed else None
    trace = run(family_model(case, dtype, 3), data)
    x = value(trace, "x")
    assert x.shape == over_worlds.shape() and x.dtype == dtype
    if observed:
        assert torch.equal(x[0], data)
    back = noise.predict(over_worlds, noise.abduct(over_worlds, x).roll(1, 0))[0]
    scale = x[0].abs().clamp(min=1)  # the noise of world 2 gives back the value in world 0
    assert ((back - x[0]).abs() / scale).max() < tolerance
    assert torch.allclose(x[0], x[1]) == (case.name in SAME_IN_ALL_WORLDS)


@pytest.mark.parametrize("case", USABLE, ids=lambda c: c.name)
def test_null_intervention_reproduces_every_site(case):
    def program(x):
        with pyro.plate("rows", N):
            t = pyro.sample("t", dist.Normal(0.0, 1.0), obs=ROWS)
            batch = t.shape
            return pyro.sample("x", case((N,)).expand(batch), obs=x)

    data = case((N,)).sample()
    x = run(worlds(program, [{"t": ROWS}, {"t": ROWS}]), data).nodes["x"]["value"]
    assert torch.equal(x[0], data)
    assert_close(x, data.expand(x.shape), atol=1e-4, rtol=1e-4, equal_nan=True)


def test_null_intervention_on_an_observed_target():
    data = torch.randn(N)
    trace = run(worlds(poutine.condition(model, {"x": ROWS}), [{"x": ROWS}]), data)
    for name in ("x", "h", "v", "y"):
        assert_close(value(trace, name)[1], value(trace, name)[0])


def test_agrees_with_do_under_the_same_noise():
    trace = run(worlds(model, [{"x": ROWS}]))
    s, k, x = value(trace, "s"), value(trace, "k"), value(trace, "x")
    e_h = value(trace, "h")[0] - 0.5 * x[0]
    evidence = {"s": s, "k": k, "h": 0.5 * ROWS + e_h}
    direct = run(do(poutine.condition(model, evidence), {"x": ROWS}))
    assert_close(value(direct, "d"), value(trace, "d")[1])


def test_per_row_values_and_scalars_mix():
    actions = [{"x": ROWS}, {"x": 1.0}, {"x": torch.tensor(2.0)}, {}]
    x = value(run(worlds(model, actions)), "x")
    assert torch.equal(x[1], ROWS) and (x[2] == 1).all() and (x[3] == 2).all()
    assert torch.equal(x[4], x[0])


def test_one_action_need_not_be_a_list():
    assert_close(
        value(run(worlds(model, {"x": 1.0})), "y"), value(run(worlds(model, [{"x": 1.0}])), "y")
    )


def test_no_action_is_the_program_itself():
    assert value(run(worlds(model, [])), "y").shape == (N,)
    assert_close(run(worlds(model, [])).log_prob_sum(), run(model).log_prob_sum())


def test_every_kind_of_action():
    actions = [
        {"h": dist.Normal(100.0, 1.0)},
        {"h": lambda h: -h},
        {"h": soft(lambda d: dist.Normal(d.loc + 10, 2 * d.scale))},
        {"v": {0: 5.0}},
        {"x": 1.0, "h": soft(lambda d: dist.Normal(d.loc + 10, 2 * d.scale))},
        {"x": 1.0, "v": {1: ROWS}},
    ]
    trace = run(worlds(model, actions))
    x, h, v = (value(trace, name) for name in "xhv")
    e_h, e_v = h[0] - 0.5 * x[0], v[0] - torch.stack([x[0], h[0]], -1)
    assert (h[1] > 90).all() and h[1].unique().numel() == N
    assert torch.equal(h[2], -h[0])
    assert_close(h[3], 0.5 * x[0] + 10 + 2 * e_h)
    assert (v[4][:, 0] == 5).all() and torch.equal(v[4][:, 1], v[0][:, 1])
    assert_close(h[5], 0.5 + 10 + 2 * e_h)
    assert torch.equal(v[6][:, 1], ROWS)
    assert_close(v[6][:, 0], 1.0 + e_v[:, 0])


def test_actions_on_an_observed_target_under_particles():
    """The observed value has no particle axis; what takes its place may have one."""

    def program():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", N):
            return pyro.sample("x", dist.Normal(0.0, scale), obs=ROWS)

    actions = [{"x": dist.Normal(0.0, 1.0)}, {"x": soft(lambda d: dist.Normal(1.0, d.scale**2))}]
    with pyro.plate("particles", 4, dim=-2):
        trace = run(worlds(program, [*actions, {"x": 2.0}]))
    x, scale = value(trace, "x"), value(trace, "scale")
    assert x.shape == (4, 4, N) and x[1].unique().numel() == 4 * N
    assert_close(x[2], 1 + scale**2 * (ROWS / scale))
    assert (x[3] == 2).all() and torch.equal(x[0], ROWS.expand(4, N))


def test_deterministic_target():
    trace = run(worlds(model, [{"d": 1.0}, {"x": 1.0, "d": lambda d: d + 1}]))
    d, h, y = (value(trace, name) for name in "dhy")
    k = value(trace, "k")
    assert (d[1] == 1).all() and torch.equal(h[1], h[0])
    assert_close(d[2], h[2] + k + 1)
    assert_close(y[1] - y[0], d[1] - d[0])


def test_global_target_and_event_dims():
    def program():
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", N):
            return pyro.sample("y", dist.Normal((ROWS[:, None] * w).sum(-1), 1.0))

    trace = run(worlds(program, [{"w": torch.ones(3)}, {"w": 2.0}]))
    w, y = value(trace, "w"), value(trace, "y")
    assert w.shape == (3, 1, 3) and y.shape == (3, N)
    e = y[0] - ROWS * w[0].sum()
    assert_close(y[1], 3 * ROWS + e)


@pytest.mark.parametrize("declared", [True, False])
def test_deterministic_vectors(declared):
    def program():
        with pyro.plate("rows", N):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            dims = {"event_dim": 1} if declared else {}
            v = pyro.deterministic("v", torch.stack([x, 2 * x, 3 * x], -1), **dims)
            pyro.deterministic("apart", torch.stack([z, z, z], -1), **dims)
            return pyro.sample("y", dist.Normal(v.sum(-1), 1.0))

    trace = run(worlds(program, [{"x": 1.0}, {"v": torch.tensor([1.0, 2.0, 4.0])}]))
    assert value(trace, "v").shape == (3, N, 3) and value(trace, "apart").shape == (N, 3)
    assert torch.equal(world(trace, 2).nodes["v"]["value"][0], torch.tensor([1.0, 2.0, 4.0]))
    assert torch.equal(world(trace, 2).nodes["apart"]["value"], value(trace, "apart"))
    assert_close(value(trace, "y")[2] - value(trace, "y")[1], torch.ones(N))


def test_nested_plates():
    def program():
        rows = pyro.plate("rows", N, dim=-1)
        with pyro.plate("groups", 3, dim=-2):
            g = pyro.sample("g", dist.Normal(0.0, 1.0))
            with rows:
                x = pyro.sample("x", dist.Normal(g, 1.0))
        with rows:
            return pyro.sample("y", dist.Normal(x.sum(-2, keepdim=True), 1.0))

    trace = run(worlds(program, [{"g": torch.tensor([[1.0], [2.0], [3.0]])}]))
    g, x, y = value(trace, "g"), value(trace, "x"), value(trace, "y")
    assert g.shape == (2, 3, 1) and x.shape == (2, 3, N) and y.shape == (2, 1, N)
    assert_close(y[1] - y[0], (x[1] - x[0]).sum(-2, keepdim=True))
    assert_close(x[1] - g[1], x[0] - g[0])


def test_subsampled_plates_keep_their_scale():
    def program(data):
        with pyro.plate("rows", N, subsample_size=2, dim=-1) as index:
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(x, 1.0), obs=data[index])

    trace = run(worlds(program, [{"x": 1.0}]), ROWS)
    plain = run(poutine.replay(program, trace=world(trace, 0)), ROWS)
    assert trace.nodes["y"]["scale"] == N / 2
    assert_close(trace.log_prob_sum(), plain.log_prob_sum())
    assert value(trace, "y").shape == (2, 2)


def test_mask_and_scale_that_depend_on_the_target():
    def program():
        with pyro.plate("rows", N):
            x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=ROWS)
            with poutine.mask(mask=x > 2), poutine.scale(scale=x + 1):
                pyro.sample("z", dist.Normal(0.0, 1.0), obs=ROWS)
                pyro.sample("y", dist.Normal(x, 1.0), obs=ROWS)
            pyro.factor("f", -x)

    trace = run(worlds(program, [{"x": 5.0}, {"x": 0.0}]))
    assert_close(trace.log_prob_sum(), run(program).log_prob_sum())


def test_value_masked_by_the_distribution():
    def program():
        with pyro.plate("rows", N):
            x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=ROWS)
            return pyro.sample("y", dist.Normal(x, 1.0).mask(x > 2), obs=ROWS + 1)

    trace = run(worlds(program, [{"x": ROWS + 3}]))
    assert_close(trace.log_prob_sum(), run(program).log_prob_sum())
    assert_close(value(trace, "y")[1], ROWS + 4)


def test_partly_observed_sites():
    seen = ROWS > 2

    def program():
        with pyro.plate("rows", N):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(x, 1.0), obs=ROWS, obs_mask=seen)

    trace = run(worlds(program, [{"x": 1.0}]))
    x, y = value(trace, "x"), value(trace, "y")
    assert torch.equal(y[0][seen], ROWS[seen])
    assert_close(y[1] - y[0], 1 - x[0])


def test_enumerated_site_beside_and_as_target():
    def program(y):
        with pyro.plate("rows", N):
            x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=ROWS)
            z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(x + 3 * z, 1.0), obs=y)

    elbo = pyro.infer.TraceEnum_ELBO()
    expected = elbo.loss(program, lambda y: None, ROWS)
    for actions in ([{"x": 1.0}], [{"z": 1.0}], [{"x": 1.0, "z": 0.0}, {"x": 2.0}]):
        got = pyro.infer.TraceEnum_ELBO().loss(worlds(program, actions), lambda y: None, ROWS)
        assert got == pytest.approx(expected, rel=1e-6)


def test_counterfactual_of_an_enumerated_site_is_an_error():
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Bernoulli(logits=x), infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match="At site 'z', an enumerated site has no counterfactual"):
        pyro.infer.TraceEnum_ELBO().loss(
            worlds(program, {"x": 1.0}), lambda: pyro.sample("x", dist.Normal(0.0, 1.0))
        )


def test_enumeration_without_room_for_the_worlds_is_an_error():
    def program():
        pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=0)
    with pytest.raises(ValueError, match="max_plate_nesting=1"):
        elbo.loss(worlds(program, {"x": 1.0}), lambda: None)


def test_nested_worlds_are_all_combinations():
    nested = worlds(worlds(model, [{"x": 1.0}]), [{"h": 2.0}, {"k": 0.0}])
    trace = run(nested)
    y, h, x = value(trace, "y"), value(trace, "h"), value(trace, "x")
    assert y.shape == (3, 2, N)
    joint = poutine.replay(
        worlds(model, [{"x": 1.0}, {"h": 2.0}, {"x": 1.0, "h": 2.0}, {"x": 1.0, "k": 0.0}]),
        trace=world(world(trace, 0), 0),
    )
    expected = value(run(joint, seed=1), "y")
    for got, k in [(y[0, 0], 0), (y[0, 1], 1), (y[1, 0], 2), (y[1, 1], 3), (y[2, 1], 4)]:
        assert_close(got, expected[k])
    assert x.shape[-2:] == (2, N) and h.shape == (3, 2, N)
    plain = run(poutine.replay(model, trace=world(world(trace, 0), 0)))
    assert_close(trace.log_prob_sum() - 0, plain.log_prob_sum())


def test_do_inside_holds_in_every_world():
    trace = run(worlds(do(model, {"k": 3.0}), [{"x": 1.0}]))
    assert value(trace, "k").shape == (N,) and (value(trace, "k") == 3).all()


def test_do_inside_on_the_same_site_gives_way_with_a_warning():
    with pytest.warns(UserWarning, match="At site 'x'"):
        trace = run(worlds(do(model, {"x": 5.0}), [{"x": 1.0}]))
    assert (value(trace, "x")[0] == 5).all() and (value(trace, "x")[1] == 1).all()


def test_do_outside_on_the_same_site_wins_with_a_warning():
    with pytest.warns(UserWarning, match="At site 'x'"):
        trace = run(do(worlds(model, [{"x": 1.0}]), {"x": 5.0}))
    assert (value(trace, "x") == 5).all()


def test_commutes_with_condition():
    data = {"y": ROWS, "h": ROWS / 2}
    inside = run(poutine.condition(worlds(model, ACTIONS), data))
    outside = run(worlds(poutine.condition(model, data), ACTIONS))
    for name in sites(inside):
        assert torch.equal(value(inside, name), value(outside, name))


def test_replay_of_its_own_trace_reproduces_it():
    trace = run(worlds(model, ACTIONS))
    again = run(poutine.replay(worlds(model, ACTIONS), trace=trace), seed=1)
    for name in "skxhv":
        assert torch.equal(value(trace, name), value(again, name)), name


def test_uncondition_draws_the_factual_value_anew():
    program = poutine.uncondition(worlds(model, [{"x": 1.0}]))
    y = value(run(program, ROWS), "y")
    assert y.shape == (2, N) and not torch.equal(y[0], ROWS)


def test_block_outside_hides_from_the_trace_only():
    trace = run(poutine.block(worlds(model, [{"x": 1.0}]), hide=["h"]))
    assert "h" not in trace.nodes and value(trace, "y").shape == (2, N)


def test_lift_inside_gives_parameters_a_place_among_the_targets():
    def program():
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("rows", N):
            return pyro.sample("y", dist.Normal(a, 1.0))

    lifted = poutine.lift(program, prior={"a": dist.Normal(0.0, 1.0)})
    trace = run(worlds(lifted, [{"a": 5.0}]))
    a, y = value(trace, "a"), value(trace, "y")
    assert_close(y[1] - y[0], 5 - a[0].expand(N))
    outside = run(poutine.lift(worlds(program, {"y": 1.0}), prior={"a": dist.Normal(0.0, 1.0)}))
    assert value(outside, "a").shape == ()


@pytest.mark.parametrize("centered", [0.0, 0.5])
def test_reparam_on_either_side_gives_the_same_counterfactuals(centered):
    from pyro.infer.reparam import LocScaleReparam

    config = {"h": LocScaleReparam(centered), "x": LocScaleReparam(centered)}
    for program in (
        worlds(poutine.reparam(model, config), [{"x": 1.0}]),
        poutine.reparam(worlds(model, [{"x": 1.0}]), config),
    ):
        trace = run(program)
        x, h = value(trace, "x"), value(trace, "h")
        assert x.shape == h.shape == (2, N)
        assert_close(h[1] - h[0], 0.5 * (1 - x[0]))


def test_context_manager_needs_a_dim():
    with worlds(actions=[{"x": 1.0}], dim=-2):
        assert model().shape == (2, N)
    with worlds([{"x": 1.0}], dim=-3):
        assert model().shape == (2, 1, N)
    with pytest.raises(ValueError, match="expected a negative int, got None"):
        worlds(actions=[{"x": 1.0}])
    with pytest.raises(ValueError, match="got 0"):
        worlds(model, [{"x": 1.0}], dim=0)


def test_clash_with_a_plate_names_it():
    with pytest.raises(ValueError, match="At site 'k', the plate 'rows' has the dim -1.*dim=-2"):
        worlds(model, [{"x": 1.0}], dim=-1)()


def test_clash_with_an_undeclared_batch_names_the_site():
    def program():
        pyro.sample("y", dist.Normal(torch.zeros(4), 1.0))
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    with (
        pytest.raises(ValueError, match="At site 'y', the batch has size 4 at the dim -1"),
        worlds([{"x": 1.0}], dim=-1),
    ):
        program()
    assert run(worlds(program, [{"y": 1.0}])).nodes["y"]["value"].shape == (2, 4)


class Unheard(dist.TorchDistribution):
    """A family without noise."""

    arg_constraints = {}
    support = dist.constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape)

    def sample(self, sample_shape=()):
        return self.loc.expand((*sample_shape, *self.loc.shape))

    def log_prob(self, value):
        return -((value - self.loc) ** 2)


def test_unsupported_family_names_the_site():
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        return pyro.sample("w", Unheard(x))

    for actions in ([{"x": 1.0}], [{"x": 1.0, "w": 3.0}, {"x": 2.0}]):
        with pytest.raises(TypeError, match="At site 'w'.*Unheard"):
            worlds(program, actions)()
    replaced = run(worlds(program, {"x": 1.0, "w": 3.0}))
    assert value(replaced, "w")[1] == 3
    assert_close(replaced.log_prob_sum(), run(program).log_prob_sum())


@pytest.mark.parametrize(
    "actions, error, match",
    [
        ([{"xx": 1.0}], ValueError, "No site is named 'xx'.*Did you mean 'x'"),
        ([{"x": torch.zeros(N, 1)}], ValueError, r"At site 'x'.*\(6, 1\)"),
        ([{"x": float("nan")}], ValueError, "At site 'x', the action is NaN"),
        ("x", TypeError, "expected a dict"),
        (None, TypeError, "worlds expects joint interventions.*got function"),
    ],
)
def test_errors(actions, error, match):
    with pytest.raises(error, match=match):
        worlds(model, actions)()


def test_finding_the_dim_leaves_no_trace():
    pyro.set_rng_seed(3)
    first = torch.randn(2)
    pyro.set_rng_seed(3)
    with poutine.trace() as outer:
        from pyro_causal.handlers import _layout

        assert _layout(model).nesting == 1
    assert torch.equal(torch.randn(2), first) and not outer.trace.nodes


def test_world_of_values_dicts_and_traces():
    trace = run(worlds(model, ACTIONS))
    y = value(trace, "y")
    assert torch.equal(world(y, 2), y[2])
    assert torch.equal(world({"y": y}, 1)["y"], y[1])
    second = world(trace, 2)
    assert torch.equal(second.nodes["y"]["value"], y[2])
    assert torch.equal(second.nodes["k"]["value"], value(trace, "k"))
    assert_close(world(trace, 0).log_prob_sum(), trace.log_prob_sum())
    for x in (trace, y):
        with pytest.raises(ValueError, match="There is no world 3: expected 0 to 2"):
            world(x, 3)


def test_memory_and_work_grow_linearly():
    sizes = []
    for count in (1, 10, 20):
        trace = run(worlds(model, [{"x": float(k)} for k in range(count)]))
        sizes.append(sum(site["value"].numel() for site in sites(trace).values()))
    assert sizes[2] - sizes[1] == pytest.approx((sizes[1] - sizes[0]) * 10 / 9)


def test_restores_the_stack_on_exception():
    def broken():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), warnings.catch_warnings():
        worlds(broken, {"x": 1.0})()
    assert value(run(model), "x").shape == (N,)


# --- what a careful reader would try --------------------------------------------------------------


def test_observation_computed_by_the_program_is_scored_in_world_zero():
    def program():
        with pyro.plate("rows", N):
            t = pyro.sample("t", dist.Normal(0.0, 1.0))
            pyro.sample("residual", dist.Normal(0.0, 1.0), obs=4.0 - t)

    trace = run(worlds(program, [{"t": lambda t: t + 1}] * 3))
    plain = run(poutine.replay(program, trace=world(trace, 0)))
    assert_close(trace.log_prob_sum(), plain.log_prob_sum())
    assert value(trace, "residual").shape == (4, N)


@pytest.mark.parametrize("vector", [False, True])
def test_support_is_that_of_world_zero(vector):
    def program():
        t = pyro.sample("t", dist.Normal(3.0, 1.0), obs=torch.tensor(2.0))
        d = dist.Uniform(t.unsqueeze(-1).expand(*t.shape, 2) * 0, t.unsqueeze(-1))
        return pyro.sample("x", d.to_event(1) if vector else dist.Uniform(0.0, t))

    fn = run(worlds(program, [{"t": 5.0}, {"t": 7.0}])).nodes["x"]["fn"]
    bound = fn.support.base_constraint.upper_bound if vector else fn.support.upper_bound
    assert (bound == 2).all() and bound.dim() <= 1


def test_discrete_noise_is_one_draw_for_all_soft_actions():
    more = soft(lambda d: dist.Poisson(2 * d.rate))
    evenmore = soft(lambda d: dist.Poisson(2.2 * d.rate))

    def program():
        with pyro.plate("rows", 1000):
            return pyro.sample("k", dist.Poisson(3.0))

    k = value(run(worlds(program, [{"k": more}, {"k": more}, {"k": evenmore}])), "k")
    assert torch.equal(k[1], k[2]) and (k[3] >= k[1]).all() and (k[3] > k[1]).any()


def test_discrete_noise_is_shared_across_nested_worlds():
    def program():
        with pyro.plate("rows", 1000):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            return pyro.sample("c", dist.Poisson((0.3 * (a + b)).exp()))

    c = value(run(worlds(worlds(program, [{"b": lambda b: b}]), [{"a": 1.0}])), "c")
    assert c.shape == (2, 2, 1000)
    assert torch.equal(c[0, 0], c[0, 1]) and torch.equal(c[1, 0], c[1, 1])


def test_evidence_in_the_place_of_the_worlds_is_refused():
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(2 * x, 1.0))

    data = {"x": torch.tensor([1.0, 2.0, 3.0]), "y": torch.tensor([5.0, 6.0, 7.0])}
    with pytest.raises(ValueError, match=r"At site 'x', the value given has shape \(3,\)"):
        poutine.condition(worlds(program, {"x": 3.0}), data)()
    inside = worlds(poutine.condition(program, data), {"x": 3.0})()
    assert torch.equal(inside, torch.tensor([[5.0, 6.0, 7.0], [9.0, 8.0, 7.0]]))


def test_layout_follows_the_arguments():
    def program(x):
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape), obs=x)
        return pyro.sample("y", dist.Normal(x, 1.0), obs=x + 1)

    both = worlds(program, {"x": 6.0})
    assert torch.equal(both(torch.tensor(1.0)), torch.tensor([2.0, 7.0]))
    assert torch.equal(both(torch.tensor([1.0, 2.0])), torch.tensor([[2.0, 3.0], [7.0, 7.0]]))


def test_layout_tells_true_from_one():
    def program(wide):
        with pyro.plate("rows", 2) if wide is True else pyro.poutine.scale(scale=1.0):
            return pyro.sample("x", dist.Normal(0.0, 1.0))

    both = worlds(program, {"x": 6.0})
    assert both(1).shape == (2,) and both(True).shape == (2, 2)


def test_whole_numbers_as_evidence_on_real_sites():
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(2 * x, 1.0))

    data = {"x": torch.tensor(1), "y": torch.tensor(5)}
    assert_close(poutine.condition(worlds(program, {"x": 3.3}), data)(), torch.tensor([5.0, 9.6]))


def test_axis_gone_astray_is_an_error():
    def event():
        with pyro.plate("rows", 1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(a * torch.ones(3), 1.0).to_event())

    with pytest.raises(ValueError, match="At site 'y', the axis of the 2 worlds has gone astray"):
        worlds(event, {"a": 1.0})()


def test_random_attributes_of_a_module_survive_the_search_for_a_dim():
    class Module(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.w = pyro.nn.PyroSample(dist.Normal(0.0, 1.0))

        def inner(self):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(self.w * x, 1.0))

        def forward(self):
            return worlds(self.inner, [{"x": 1.0}])()

    assert "w" in run(Module()).nodes


def test_replayed_values_that_were_changed_are_taken():
    trace = run(worlds(model, [{"x": lambda x: x + 100}]))
    trace.nodes["x"]["value"] = torch.full((N,), 50.0)
    again = run(poutine.replay(worlds(model, [{"x": lambda x: x + 100}]), trace=trace))
    assert torch.equal(value(again, "x"), torch.tensor([[50.0], [150.0]]).expand(2, N))


def test_detached_traces_are_scored_alike():
    for program in (do(model, {"x": lambda x: x + 100}), worlds(model, [{"x": 100.0}])):
        trace = run(program)
        expected = trace.log_prob_sum()
        detached = run(program)
        detached.detach_()
        assert_close(detached.log_prob_sum(), expected)


@pytest.mark.parametrize("action", [2.5, 2.9, 4.0])  # at the edge, and beyond
def test_gradients_where_other_worlds_cannot_have_the_value(action):
    shift = torch.tensor(0.5, requires_grad=True)
    transforms = [dist.transforms.ExpTransform(), dist.transforms.AffineTransform(0.0, 1.0)]

    def program():
        t = pyro.sample("t", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))
        moved = [*transforms, dist.transforms.AffineTransform(t + shift, 1.0)]
        return pyro.sample(
            "x", dist.TransformedDistribution(dist.Normal(0.0, 1.0), moved), obs=torch.tensor(3.0)
        )

    trace = run(worlds(program, {"t": action}))
    (got,) = torch.autograd.grad(trace.log_prob_sum(), shift)
    (expected,) = torch.autograd.grad(run(program).log_prob_sum(), shift)
    assert got.isfinite() and torch.equal(got, expected)
    (through,) = torch.autograd.grad(
        run(worlds(program, {"t": action})).nodes["x"]["value"][1], shift
    )
    assert_close(through, torch.tensor(0.0))  # x - t - shift is the noise: it does not move


def test_functions_see_the_shape_that_they_see_without_worlds():
    seen = []

    def flip(x):
        seen.append(x.shape)
        return x.flip(0)

    trace = run(worlds(model, [{"x": flip}, {"h": flip, "x": 1.0}]))
    assert seen == [(N,), (N,)]
    assert torch.equal(value(trace, "x")[1], value(trace, "x")[0].flip(0))


def test_surrogates_must_fit_the_site():
    def program():
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    for causal in (worlds, do):
        with pytest.raises(ValueError, match=r"At site 'x', the action has shape \(7,\)"):
            causal(program, {"x": soft(lambda d: dist.Normal(torch.zeros(7), 1.0))})()


def test_other_worlds_of_a_trace_have_no_density_and_no_return_value():
    trace = run(worlds(model, ACTIONS))
    assert world(trace, 1).log_prob_sum() == 0
    assert "_RETURN" not in world(trace, 0).nodes


def test_support_is_checked_in_the_world_of_the_action():
    def program():
        t = pyro.sample("t", dist.LogNormal(0.0, 1.0))
        return pyro.sample("g", dist.Uniform(0.0, t))

    with pytest.raises(ValueError, match="At site 'g'.*outside the support"):
        worlds(program, [{"t": 1.0, "g": 2.0}])()
    assert worlds(program, [{"t": 3.0, "g": 2.0}])()[1] == 2


def test_what_do_cuts_off_is_no_descendant():
    trace = run(worlds(do(model, {"h": 1.0, "y": 0.0}), [{"x": ROWS}]))
    assert value(trace, "h").shape == (N,) and value(trace, "d").shape == (N,)


def test_point_masses_as_guides_of_bounded_sites():
    def program():
        t = pyro.sample("t", dist.Normal(0.0, 1.0), obs=torch.tensor(4.0))
        x = pyro.sample("x", dist.Uniform(0.0, t))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))

    def guide():
        pyro.sample("x", dist.Delta(torch.tensor(3.0)))

    elbo = pyro.infer.TraceMeanField_ELBO()
    assert elbo.loss(worlds(program, {"t": 1.0}), guide) == pytest.approx(elbo.loss(program, guide))


def test_deterministic_vectors_without_plates_or_layout():
    def program():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        both = torch.stack(torch.broadcast_tensors(a, b), -1)
        v = pyro.deterministic("v", both, event_dim=1)
        return pyro.sample("y", dist.Normal(v.sum(-1), 1.0))

    trace = run(worlds(program, [{"a": 1.0}, {"v": torch.tensor([5.0, 6.0])}]))
    v = value(trace, "v")
    assert v.shape == (3, 2) and torch.equal(v[2], torch.tensor([5.0, 6.0]))
    assert world(trace, 1).nodes["v"]["value"][0] == 1
    with worlds([{"a": 1.0}, {"a": 2.0}], dim=-1), poutine.trace() as tracer:
        program()
    assert value(tracer.trace, "v").shape == (3, 2)


def test_undeclared_deterministic_beside_the_worlds_is_left_alone():
    """Its length is the number of worlds, and no action reaches it."""

    def program():
        pyro.deterministic("table", torch.arange(2.0))
        pyro.deterministic("square", torch.eye(2))
        with pyro.plate("rows", 2):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * x)
            pyro.deterministic("pair", torch.stack([x, x], -1))

    trace = run(worlds(program, [{"x": 1.0}]))
    other = world(trace, 1).nodes
    assert torch.equal(other["table"]["value"], torch.arange(2.0))
    assert torch.equal(other["square"]["value"], torch.eye(2))
    assert torch.equal(other["twice"]["value"], torch.full((2,), 2.0))
    assert torch.equal(other["pair"]["value"], torch.ones(2, 2))


def test_stochastic_do_around_worlds_draws_once_for_all_of_them():
    trace = run(do(worlds(model, [{"x": 1.0}, {"x": 2.0}]), {"h": dist.Normal(0.0, 1.0)}))
    h, d = value(trace, "h"), value(trace, "d")
    assert h.unique().numel() == N
    assert torch.equal(h.expand(3, N), h[0].expand(3, N))
    assert torch.equal(d.expand(3, N), d[0].expand(3, N))
