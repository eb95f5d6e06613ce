"""`do` and `soft`: what an intervention is, and that it composes as a poutine should."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.reparam import LocScaleReparam
from torch.testing import assert_close

from pyro_causal.handlers import do, soft, worlds

N = 6
ROWS = torch.arange(float(N))


def model(x=None, y=None):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N):
        x = pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        h = pyro.deterministic("h", 2 * x)
        k = pyro.sample("k", dist.Poisson(torch.tensor(3.0)))
        v = pyro.sample("v", dist.Normal(h.unsqueeze(-1), torch.ones(2)).to_event(1))
        return pyro.sample("y", dist.Normal(h + v.sum(-1) + k, 1.0), obs=y)


def run(program, *args, seed=0):
    pyro.set_rng_seed(seed)
    return poutine.trace(program).get_trace(*args)


def values(trace):
    return {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample"}


def assert_same(a, b):
    assert values(a).keys() == values(b).keys()
    for name, value in values(a).items():
        assert torch.equal(value, values(b)[name]), name


@pytest.mark.parametrize(
    "action", [1.5, 2, torch.tensor(1.5), ROWS], ids=["float", "int", "scalar", "per row"]
)
def test_hard_value_is_seen_and_reported(action):
    trace = run(do(model, {"x": action}))
    expected = torch.as_tensor(action, dtype=torch.float32).expand(N)
    assert torch.equal(trace.nodes["x"]["value"], expected)
    assert torch.equal(trace.nodes["h"]["value"], 2 * expected)
    assert trace.nodes["x"]["value"].dtype == torch.float32


def test_four_spellings_agree():
    @do(data={"x": 1.0})
    def decorated():
        return model()

    def with_positional():
        with do({"x": 1.0}):
            return model()

    def with_keyword():
        with do(data={"x": 1.0}):
            return model()

    reference = run(do(model, {"x": 1.0}))
    for program in (decorated, with_positional, with_keyword, do(model, data={"x": 1.0})):
        assert_same(run(program), reference)


def test_untouched_sites_draw_the_same_numbers_as_without():
    plain, intervened = run(model), run(do(model, {"x": 1.0}))
    assert torch.equal(intervened.nodes["loc"]["value"], plain.nodes["loc"]["value"])
    assert torch.equal(intervened.nodes["k"]["value"], plain.nodes["k"]["value"])


def test_hard_target_loses_its_log_density_and_others_keep_theirs():
    trace = run(do(model, {"x": ROWS}))
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob_sum"] == 0
    expected = dist.Normal(0.0, 1.0).log_prob(trace.nodes["loc"]["value"])
    assert_close(trace.nodes["loc"]["log_prob_sum"], expected)


def test_stochastic_target_is_scored_by_the_new_mechanism():
    policy = dist.Normal(10.0, 0.1)
    trace = run(do(model, {"x": policy}))
    trace.compute_log_prob()
    x = trace.nodes["x"]["value"]
    assert x.shape == (N,) and (x - 10).abs().max() < 1 and x.unique().numel() == N
    assert_close(trace.nodes["x"]["log_prob"], policy.log_prob(x))
    assert not trace.nodes["x"]["is_observed"]


def test_function_of_the_natural_value_is_scored_at_the_natural_value():
    plain, shifted = run(model), run(do(model, {"x": lambda x: x + 3}))
    natural = plain.nodes["x"]["value"]
    assert torch.equal(shifted.nodes["x"]["value"], natural + 3)
    plain.compute_log_prob(), shifted.compute_log_prob()
    assert torch.equal(shifted.nodes["x"]["log_prob"], plain.nodes["x"]["log_prob"])


def test_policy_may_return_a_number():
    assert torch.equal(run(do(model, {"x": lambda x: 1})).nodes["x"]["value"], torch.ones(N))


def test_soft_shares_the_noise():
    plain = run(model)
    surrogate = soft(lambda d: dist.Normal(d.loc + 1, 2 * d.scale))
    trace = run(do(model, {"x": surrogate}))
    eps = plain.nodes["x"]["value"] - plain.nodes["loc"]["value"]
    assert_close(trace.nodes["x"]["value"], plain.nodes["loc"]["value"] + 1 + 2 * eps)


def test_identical_surrogate_changes_nothing():
    plain, same = run(model), run(do(model, {"x": soft(lambda d: d)}))
    assert_close(same.nodes["y"]["value"], plain.nodes["y"]["value"])
    assert "soft" in repr(soft(lambda d: d))


def test_deterministic_site_can_be_set():
    trace = run(do(model, {"h": 7}))
    assert torch.equal(trace.nodes["h"]["value"], torch.full((N,), 7.0))
    assert (trace.nodes["v"]["fn"].base_dist.loc == 7).all()
    shifted = run(do(model, {"h": lambda h: h - 1}))
    assert_close(shifted.nodes["h"]["value"], 2 * shifted.nodes["x"]["value"] - 1)


def test_one_coordinate_of_a_vector_site():
    plain, trace = run(model), run(do(model, {"v": {0: 5.0}}))
    assert (trace.nodes["v"]["value"][:, 0] == 5).all()
    assert torch.equal(trace.nodes["v"]["value"][:, 1], plain.nodes["v"]["value"][:, 1])
    per_row = run(do(model, {"v": {1: ROWS}}))
    assert torch.equal(per_row.nodes["v"]["value"][:, 1], ROWS)


def test_coordinate_of_a_distribution_that_has_no_answer():
    def correlated():
        return pyro.sample("v", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))

    with pytest.raises(TypeError, match="At site 'v'.*MultivariateNormal"):
        do(correlated, {"v": {0: 1.0}})()


@pytest.mark.parametrize(
    "action",
    [1.0, dist.Normal(0.0, 1.0), lambda x: x + 1, soft(lambda d: dist.Normal(d.loc, 3.0))],
    ids=["hard", "stochastic", "function", "soft"],
)
@pytest.mark.parametrize("evidence", ["y", "x"])
def test_commutes_with_condition(action, evidence):
    data = {evidence: ROWS / 2}
    inside = run(poutine.condition(do(model, {"x": action}), data))
    outside = run(do(poutine.condition(model, data), {"x": action}))
    assert_same(inside, outside)
    assert_close(inside.log_prob_sum(), outside.log_prob_sum())


@pytest.mark.parametrize("action", [1.0, dist.Normal(0.0, 1.0)], ids=["hard", "stochastic"])
def test_evidence_on_a_replaced_mechanism_is_not_seen(action):
    trace = run(do(model, {"x": action}), torch.full((N,), 100.0))
    assert trace.nodes["x"]["value"].max() < 50


def test_function_sees_the_evidence():
    trace = run(do(model, {"x": lambda x: x + 1}), ROWS)
    assert torch.equal(trace.nodes["x"]["value"], ROWS + 1)


@pytest.mark.parametrize("action", [1.0, ROWS, torch.tensor(2.0)])
def test_idempotent(action):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = run(do(do(model, {"x": action}), {"x": action}))
    once = run(do(model, {"x": action}))
    assert_same(once, twice)
    assert_close(once.log_prob_sum(), twice.log_prob_sum())


def test_nested_on_different_sites_is_the_joint_intervention():
    assert_same(
        run(do(do(model, {"x": 1.0}), {"k": 2})),
        run(do(model, {"x": 1.0, "k": 2})),
    )


def test_outer_wins_and_warns():
    with pytest.warns(UserWarning, match="At site 'x', 2 nested interventions"):
        trace = run(do(do(model, {"x": 1.0}), {"x": 2.0}))
    assert (trace.nodes["x"]["value"] == 2).all()
    with pytest.warns(UserWarning, match="outermost wins"):
        trace = run(do(do(model, {"x": 1.0}), {"x": lambda x: x + 1}))
    assert (trace.nodes["x"]["value"] == 2).all()
    with pytest.warns(UserWarning, match="outermost wins"):
        trace = run(do(do(model, {"x": lambda x: x + 1}), {"x": dist.Normal(9.0, 0.1)}))
    assert (trace.nodes["x"]["value"] > 5).all()


SURROGATE = soft(lambda d: dist.Normal(d.loc + 1, 2 * d.scale))
KINDS = {
    "hard": 1.0,
    "stochastic": dist.Normal(9.0, 0.1),
    "function": lambda x: x - 5,
    "soft": SURROGATE,
}


@pytest.mark.filterwarnings("ignore:At site 'x', 2 nested interventions")
@pytest.mark.parametrize("outer", ["hard", "stochastic"])
@pytest.mark.parametrize("inner", KINDS)
def test_nothing_is_left_of_what_is_inside_a_fresh_value(inner, outer):
    once = do(model, {"x": KINDS[outer]})
    twice = do(do(model, {"x": KINDS[inner]}), {"x": KINDS[outer]})
    decentred = LocScaleReparam(0.5)
    assert_same(*(run(poutine.reparam(p, {"x": decentred})) for p in (once, twice)))
    once, twice = run(once), run(twice)
    assert_same(once, twice)
    assert_close(once.log_prob_sum(), twice.log_prob_sum())
    assert once.nodes["x"]["is_observed"] == twice.nodes["x"]["is_observed"]


def test_support_of_an_outer_value():
    with pytest.raises(ValueError, match="At site 'k'.*outside the support"):
        do(do(model, {"k": 1}), {"k": -1})()


@pytest.mark.filterwarnings("ignore:At site 'x', 2 nested interventions")
@pytest.mark.parametrize("outer", [do, worlds])
def test_soft_around_a_value_has_no_noise_to_share(outer):
    with pytest.raises(TypeError, match="At site 'x', a soft intervention around one that sets"):
        outer(do(model, {"x": 1.0}), {"x": SURROGATE})()
    policy = outer(do(model, {"x": dist.Normal(9.0, 0.1)}), {"x": SURROGATE})()
    assert policy.shape[-1:] == (N,)


def test_replay_of_its_own_trace_reproduces_it():
    actions = {"x": lambda x: x + 1, "k": 3}
    trace = run(do(model, actions))
    again = run(poutine.replay(do(model, actions), trace=trace), seed=1)
    assert_same(trace, again)


def test_restores_on_exception_and_raises_the_program_s_own_error():
    def broken():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        do(broken, {"z": 1.0})()
    assert torch.equal(run(model).nodes["x"]["value"], run(model).nodes["x"]["value"])
    assert not (run(model).nodes["x"]["value"] == 1).any()


def test_enumerated_target_is_not_summed_over():
    def mixture():
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.2))

    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=0)
    expected = -dist.Normal(1.0, 1.0).log_prob(torch.tensor(0.2)).item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is left to enumerate
        for program in (do(mixture, {"z": 1}), pyro.infer.config_enumerate(do(mixture, {"z": 1}))):
            assert elbo.loss(program, lambda: None) == pytest.approx(expected)


def test_gradient_reaches_the_action():
    t = torch.tensor(2.0, requires_grad=True)
    y = run(do(model, {"x": t})).nodes["h"]["value"]
    y.sum().backward()
    assert t.grad == 2 * N


def test_inside_subsampled_plates():
    def subsampled():
        with pyro.plate("rows", N, subsample_size=3) as index:
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            return index, pyro.deterministic("h", x + 1)

    index, h = do(subsampled, {"x": 1.0})()
    assert index.shape == (3,) and torch.equal(h, torch.full((3,), 2.0))


@pytest.mark.parametrize("parallel", [False, True])
def test_under_predictive(parallel):
    samples = Predictive(do(model, {"x": ROWS}), num_samples=5, parallel=parallel)()
    assert torch.equal(samples["x"].reshape(5, N), ROWS.expand(5, N))
    assert samples["y"].shape == (5, N)


def test_block_hides_inner_sites_from_do():
    hidden = poutine.block(model, hide=["x"])
    with pytest.raises(ValueError, match="No site is named 'x'"):
        do(hidden, {"x": 1.0})()
    assert "x" not in values(run(poutine.block(do(model, {"x": 1.0}), hide=["x"])))


ERRORS = {
    "misspelt": ({"hh": 1.0}, ValueError, r"No site is named 'hh'.*'loc'.*Did you mean 'h'"),
    "shape": ({"x": torch.zeros(N, 1)}, ValueError, r"At site 'x'.*\(6, 1\).*\(6,\)"),
    "too long": ({"loc": torch.zeros(2)}, ValueError, r"At site 'loc'.*\(2,\).*\(\)"),
    "NaN": ({"x": float("nan")}, ValueError, "At site 'x', the action is NaN"),
    "complex": ({"x": torch.tensor(1j)}, ValueError, "At site 'x', the action is complex"),
    "support": ({"k": -1}, ValueError, "At site 'k'.*outside the support"),
    "kind": ({"x": "1"}, TypeError, "At site 'x', an action of type str"),
    "list": ({"x": [1.0, 2.0]}, TypeError, "torch.as_tensor"),
    "torch": (
        {"x": torch.distributions.Normal(0.0, 1.0)},
        TypeError,
        "At site 'x', expected a distribution from pyro.distributions",
    ),
    "event": (
        {"v": dist.Normal(0.0, 1.0)},
        ValueError,
        r"At site 'v'.*event shape \(\): expected \(2,\)",
    ),
    "batch": (
        {"x": dist.Normal(torch.zeros(4), 1.0)},
        ValueError,
        r"At site 'x'.*batch shape \(4,\)",
    ),
    "returned": ({"x": lambda x: "no"}, TypeError, "At site 'x', the action returned str"),
    "coordinate": ({"v": {"a": 1.0}}, TypeError, "At site 'v', a coordinate is an int"),
    "soft": (
        {"x": soft(lambda d: dist.Dirichlet(torch.ones(2)))},
        TypeError,
        "At site 'x', the noise of Normal follows another law than that of Dirichlet",
    ),
    "name": ({1: 1.0}, TypeError, "expected a str, got 1"),
    "mapping": ([("x", 1.0)], TypeError, "expected a dict, got list"),
    "nothing": (None, TypeError, "expected a dict, got function"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_site_fact_and_remedy(case):
    data, error, match = ERRORS[case]
    with pytest.raises(error, match=match):
        do(model, data=data)()


def test_reals_at_a_site_of_integers():
    def categorical():
        return pyro.sample("c", dist.Categorical(torch.ones(3)))

    with pytest.raises(TypeError, match="At site 'c'.*float32: expected torch.int64"):
        do(categorical, {"c": 1.0})()
    assert do(categorical, {"c": 2})().item() == 2


def test_value_outside_the_support_is_possible_on_purpose():
    assert (run(do(model, {"k": lambda k: -1})).nodes["k"]["value"] == -1).all()


def test_soft_expects_a_function():
    with pytest.raises(TypeError, match="soft expects a function"):
        soft(3.0)


def test_commutes_with_reparam():
    config = {"x": LocScaleReparam(0.0)}
    for action in (1.0, lambda x: x + 1):
        inside = values(run(poutine.reparam(do(model, {"x": action}), config)))
        outside = values(run(do(poutine.reparam(model, config), {"x": action})))
        for name in ("loc", "x", "h", "k", "v", "y"):
            assert torch.equal(inside[name], outside[name])


def test_deterministic_site_can_be_drawn():
    trace = run(do(model, {"h": dist.Normal(100.0, 1.0)}))
    assert (trace.nodes["h"]["value"] > 90).all() and trace.nodes["h"]["value"].shape == (N,)


def test_guides_laid_out_under_do_leave_hard_targets_out():
    guide = pyro.infer.autoguide.AutoNormal(poutine.block(do(model, {"x": 1.0}), hide=["k"]))
    guide()
    assert set(guide.median()) == {"loc", "v", "y"}


def test_do_around_worlds_reaches_every_world():
    trace = run(do(worlds(model, [{"k": 5}]), {"x": 1.0}))
    assert (trace.nodes["x"]["value"] == 1).all()
    assert (trace.nodes["k"]["value"][1] == 5).all()


def test_plates_and_factors_are_no_variables():
    def program():
        with pyro.plate("rows", N):
            pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", torch.tensor(1.0))

    for name in ("rows", "penalty"):
        with pytest.raises(ValueError, match=f"No site is named '{name}'.*'x'"):
            do(program, {name: 3.0})()
        with pytest.raises(ValueError, match=f"No site is named '{name}'.*'x'"):
            worlds(program, {name: 3.0})()


def test_improper_priors_can_be_set():
    def program():
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        return pyro.sample("x", flat)

    assert do(program, {"x": 2.0})() == 2


def test_result_of_a_program_that_fails_names_its_own_error_only():
    def broken():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as error:
        do(broken, {"absent": 1.0})()
    assert "absent" not in str(error.value)


@pytest.mark.parametrize("other", [dist.Exponential(1.0), dist.Uniform(0.0, 1.0)])
def test_surrogate_of_another_noise(other):
    with pytest.raises(TypeError, match="At site 'x', the noise of Normal follows another law"):
        do(model, {"x": soft(lambda d: other.expand(d.batch_shape))})()


def test_surrogate_of_another_family_with_the_same_noise_follows_its_distribution():
    def program():
        return pyro.sample("x", dist.Normal(0.0, 1.0).expand((20000,)))

    x = do(program, {"x": soft(lambda d: dist.Gamma(2.0, 1.0))})()
    assert (x > 0).all() and abs(x.mean() - 2) < 0.05 and abs(x.var() - 2) < 0.15
