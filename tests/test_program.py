"""Graphs of programs: every edge that is there, and none that is not."""

import copy
import itertools
import random
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import families
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from pyro.ops.indexing import Vindex
from torch import Tensor, nn, tensor
from torch.nn import functional as F

from pyro_causal import do, soft, worlds
from pyro_causal import mechanisms as M
from pyro_causal._provenance import Provenance
from pyro_causal._pyro import FlowDistribution, zuko
from pyro_causal.graph import ADMG
from pyro_causal.program import causal_graph

Program = Callable[..., Any]


def normal(name: str, loc: Any = 0.0, **options: Any) -> Tensor:
    return pyro.sample(name, dist.Normal(loc, 1.0), **options)


def front_door() -> Tensor:
    u = normal("u")
    x = normal("x", u)
    m = normal("m", 2 * x)
    return normal("y", m + u)


FRONT_DOOR = ADMG([("x", "m"), ("m", "y")], [("x", "y")])


def edges(program: Program, *args: Any, **options: Any) -> str:
    """The graph as text, which also tells the order of the nodes."""
    return repr(causal_graph(program, *args, **options))[6:-2]


# Edges


def test_front_door() -> None:
    assert causal_graph(front_door, latent={"u"}) == FRONT_DOOR
    assert causal_graph(front_door).nodes == ("u", "x", "m", "y")
    assert edges(front_door) == "u -> x; u -> y; x -> m; m -> y"
    assert edges(front_door, latent="u") == edges(front_door, latent=["u"])


def test_random_programs() -> None:
    """The graph of a program that was written from a graph is that graph, projections too."""
    generator = random.Random(7)
    for _ in range(20):
        names = [f"v{i}" for i in range(8)]
        graph = ADMG([e for e in itertools.combinations(names, 2) if generator.random() < 0.4])
        graph = ADMG(graph.directed, nodes=names)

        def program(graph: ADMG = graph) -> None:
            values: dict[str, Tensor] = {}
            for name in graph.nodes:
                values[name] = normal(name, sum(values[p] for p in graph.parents(name)))

        hidden = set(generator.sample(names, 3))
        assert causal_graph(program) == graph
        assert causal_graph(program, latent=hidden) == graph.latent_projection(hidden)


@pytest.mark.parametrize(
    "case",
    families.CONTINUOUS + families.DISCRETE + families.COUNTS + families.DEGENERATE[:2],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("how", ["drawn", "observed", "unscored", "in a plate"])
def test_every_parameter_of_every_family(
    case: families.Case, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = families.grid
    parents: list[str] = []

    def grid(*args: Any) -> Tensor:
        parents.append(f"p{len(parents)}")
        return plain(*args) + 0 * normal(parents[-1])

    monkeypatch.setattr(families, "grid", grid)
    value = families.draw(case())

    def program() -> None:
        parents.clear()
        normal("unrelated")
        fn = case()
        if how == "unscored":
            pyro.sample("x", fn.mask(False))
        elif how == "in a plate":
            with pyro.plate("plate", 2):
                pyro.sample("x", fn)
        else:
            pyro.sample("x", fn, obs=value if how == "observed" else None)

    try:
        poutine.trace(program).get_trace()
    except (AttributeError, NotImplementedError, TypeError):
        pytest.skip("beyond Pyro")
    assert causal_graph(program, latent=()).parents("x") == set(parents)


def net(*features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features[0], 4), nn.Tanh(), nn.Linear(4, features[1]))


def _write(x: Tensor, y: Tensor) -> Tensor:
    buffer = torch.zeros(3, 2)
    buffer[..., 0] = x
    buffer.t()[1].copy_(y)
    return buffer


def _write_out(x: Tensor, y: Tensor) -> Tensor:
    buffer = torch.zeros(3)
    torch.add(x, y, out=buffer)
    return buffer


def _foreach(x: Tensor, y: Tensor) -> Tensor:
    buffers = [torch.zeros(3), torch.zeros(3)]
    torch._foreach_add_(buffers, [x, y])
    return torch.stack(buffers)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x * y


BOTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": lambda x, y: 2 * x - y,
    "cat": lambda x, y: torch.cat([x, y]),
    "stack": lambda x, y: torch.stack([x, y]),
    "where": lambda x, y: torch.where(x > 0, y, 1.0),
    "einsum": lambda x, y: torch.einsum("i,j->ij", x, y),
    "matmul": lambda x, y: torch.outer(x, torch.ones(2)) @ torch.ones(2, 3) * y.sum(),
    "network": lambda x, y: net(6, 2)(torch.cat([x, y])),
    "normalisation": lambda x, y: nn.LayerNorm(3)(x) + nn.BatchNorm1d(3)(torch.stack([x, y]))[0],
    "recurrent": lambda x, y: nn.GRU(3, 4)(torch.stack([x, y]))[1],
    "attention": lambda x, y: F.scaled_dot_product_attention(x[None], y[None], x[None]),
    "writes": _write,
    "write into out": _write_out,
    "write of lists": _foreach,
    "masked write": lambda x, y: torch.zeros(3).masked_scatter(y > 0, x),
    "index put": lambda x, y: torch.zeros(3).index_put((tensor([0]),), x[:1]) * y,
    "scatter": lambda x, y: torch.zeros(3).scatter(0, tensor([0, 1, 2]), x) + y.detach(),
    "autograd function": _Product.apply,
    "vmap": lambda x, y: torch.func.vmap(lambda a, b: a * b)(x, y),
    "gradient": lambda x, y: torch.func.grad(lambda a: (a**2 * y).sum())(x),
    "tensor of tensors": lambda x, y: torch.tensor([x[0], y[0]]),
    "array of tensors": lambda x, y: torch.asarray([x[0], y[0]]),
    "tensor as tensor": lambda x, y: torch.as_tensor([x[0], y[0]]),
    "new tensor": lambda x, y: torch.tensor([x[0], y[0]]) + x.new_tensor([y[0], 0.0]),
    "Vindex": lambda x, y: Vindex(torch.ones(4, 4))[x.long() % 4, y.long() % 4],
    "sum of a list": lambda x, y: sum([x, y]),  # type: ignore[arg-type, return-value]
    "copies": lambda x, y: copy.deepcopy(x) + y.data.clone(),
    "choice": lambda x, y: x[(y[0] > 0).long()],
    "sparse": lambda x, y: torch.diag(x).to_sparse() @ y,
    "ones like a selection": lambda x, y: torch.ones_like(x[(x + y) > 0]).sum(),
    "a selection's sum": lambda x, y: x[y > 0].sum(),
    "a selection, written": lambda x, y: torch.zeros(3).index_put((y > 0,), 2 * x[y > 0]),
}


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
def test_values_flow_through(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    def program() -> None:
        with torch.enable_grad():
            x, y = (pyro.sample(n, dist.Normal(torch.ones(3), 1.0).to_event(1)) for n in "xy")
        unrelated = normal("unrelated")
        loc = function(x, y)
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(loc.dim()))
        normal("other", unrelated)

    assert edges(program) == "x -> z; y -> z; unrelated -> other"


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "indexing": lambda k: torch.arange(3.0)[k],
    "one_hot": lambda k: F.one_hot(k, 3).float().sum(),
    "gather": lambda k: torch.arange(3.0).gather(0, k[None])[0],
    "index_select": lambda k: torch.arange(3.0).index_select(0, k),
    "embedding": lambda k: nn.Embedding(3, 1)(k)[0],
    "full": lambda k: torch.full((), k).float(),
    "slice": lambda k: torch.arange(3.0)[k:].sum(),
    "Vindex": lambda k: Vindex(torch.zeros(2, 3))[..., k].sum(),
}


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_indices_flow_into_what_they_choose(choose: Callable[[Tensor], Tensor]) -> None:
    """And nowhere else: torch looks at k, not the program."""

    def program() -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        y = normal("y", choose(k))
        normal("z", y)

    assert edges(program) == "k -> y; y -> z"


def test_a_chosen_view_does_not_give_its_names_to_the_whole() -> None:
    def program() -> None:
        locs = torch.zeros(3)
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        normal("y", locs[k])
        normal("z", locs[0])
        locs[k] = 1.0
        normal("w", locs[0])

    assert edges(program) == "k -> y; k -> w; z"


def test_sparse_tensors_are_told_apart() -> None:
    def program() -> None:
        x, y = (pyro.sample(n, dist.Normal(torch.ones(3), 1.0).to_event(1)) for n in "xy")
        a, b = (torch.diag(value).to_sparse() for value in (x, y))
        normal("z", (a @ torch.ones(3)).sum())
        normal("w", (b @ torch.ones(3)).sum())

    assert edges(program) == "x -> z; y -> w"


NOTHING: dict[str, Callable[[Tensor], Any]] = {
    "zeros_like": torch.zeros_like,
    "new_ones": lambda x: x.new_ones(3),
    "full_like": lambda x: torch.full_like(x, 2.0),
    "shape": lambda x: torch.zeros(x.shape) + len(x),
    "expand_as": lambda x: torch.zeros(()).expand_as(x),
    "broadcast": lambda x: torch.broadcast_tensors(torch.zeros(()), x)[0],
    "dtype": lambda x: torch.zeros(3).type_as(x).to(x),
    "printing": lambda x: float(len(repr(x)) > 0),
    "no data of the site": lambda x: DATA + 0,
}
DATA = torch.zeros(3)


@pytest.mark.parametrize("function", NOTHING.values(), ids=NOTHING)
def test_what_does_not_use_the_value_is_no_edge(function: Callable[[Tensor], Any]) -> None:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=DATA)
        pyro.sample("y", dist.Normal(function(x) * torch.ones(3), 1.0).to_event(1), obs=DATA)

    assert edges(program) == "x; y"


def test_mechanisms() -> None:
    """The context of a flow enters through a network."""
    spline, affine = M.ConditionalSpline(2), M.ConditionalAffine([(), (3,)])
    category, linear = M.ConditionalCategorical(3, 1), M.ConditionalGaussian(1)
    image_flow = zuko.flows.MAF(features=3, context=2, hidden_features=(8,))

    def program() -> None:
        with pyro.plate("units", 5):
            a = pyro.sample("a", M.ConditionalAffine()())
            k = pyro.sample("k", category(a))
            b = pyro.sample("b", linear(a))
            c = pyro.sample("c", spline(a, F.one_hot(k, 3)[..., 0].float()))
            d = pyro.sample("d", affine(c, F.one_hot(k, 3).float()))
            pyro.sample("e", FlowDistribution(image_flow(torch.stack([b, d], -1))))

    assert causal_graph(program) == ADMG(
        [
            *(("a", "k"), ("a", "b"), ("a", "c"), ("k", "c"), ("c", "d"), ("k", "d")),
            *(("b", "e"), ("d", "e")),
        ]
    )


def test_sampled_parameters_of_a_module() -> None:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](1, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            weight = self.linear.weight
            with pyro.plate("units", len(x)):
                x = normal("x", torch.zeros(len(x)), obs=x)
                loc = F.linear(x[:, None], weight)[:, 0]
                return normal("y", loc, obs=y)

    model, data = Regression(), torch.ones(2)
    assert edges(model, data, data) == "x -> y"  # without the weight, a parameter
    assert edges(model, data, data, latent=()) == "linear.weight -> y; x -> y"
    assert edges(model.forward, data, y=data) == "x -> y"


def test_a_module_may_read_its_own_graph() -> None:
    """And samples its parameters afterwards, as if nothing had happened."""

    class Module(PyroModule):
        @PyroSample
        def weight(self) -> dist.Normal:
            return dist.Normal(0.0, 1.0)

        def forward(self, read: bool = True) -> Tensor:
            if read:
                assert edges(self, read=False, latent=()) == "weight -> y"
            return normal("y", self.weight)

    assert "weight" in poutine.trace(Module()).get_trace().nodes


def test_markov() -> None:
    def program() -> None:
        z = tensor(0.0)
        for t in pyro.markov(range(3)):
            z = normal(f"z{t}", z)
            normal(f"x{t}", z)

    assert edges(program) == "z0 -> x0; z0 -> z1; z1 -> x1; z1 -> z2; z2 -> x2"
    assert edges(program, latent=["z0", "z1", "z2"]) == "x0 <-> x1; x0 <-> x2; x1 <-> x2"


def test_a_distribution_without_density_or_without_sampler() -> None:
    class Implicit(dist.TorchDistribution):
        arg_constraints = {}
        support = dist.constraints.real

        def __init__(self, loc: Tensor) -> None:
            self.loc = loc
            super().__init__()

        def rsample(self, sample_shape: Any = ()) -> Tensor:
            return torch.sinh(self.loc + torch.randn(()))

    class Unsampled(Implicit):
        def rsample(self, sample_shape: Any = ()) -> Tensor:
            raise NotImplementedError

        def log_prob(self, value: Tensor) -> Tensor:
            return -(self.loc - value).abs()

    class Neither(Unsampled):
        def log_prob(self, value: Tensor) -> Tensor:
            raise NotImplementedError

    def program(make: Callable[[Tensor], dist.TorchDistribution]) -> None:
        x = normal("x")
        normal("unrelated")
        pyro.sample("y", make(x), obs=tensor(9.0))

    def improper(x: Tensor) -> dist.TorchDistribution:
        return dist.ImproperUniform(dist.constraints.greater_than(x), (), ())

    for make in (Implicit, Unsampled, Neither, improper):
        assert edges(program, make, latent=()) == "x -> y; unrelated"


def test_masks_and_scales_flow() -> None:
    def program() -> None:
        x, z = normal("x"), normal("z")
        with poutine.mask(mask=x > 0), poutine.scale(scale=z.exp()):
            normal("y")
        pyro.sample("w", dist.Normal(0.0, 1.0).mask(x > 0))

    assert edges(program) == "x -> y; x -> w; z -> y"


def test_a_computed_observation_depends_on_what_it_is_computed_from() -> None:
    def program() -> None:
        x = normal("x")
        normal("y", obs=2 * x)

    assert edges(program, latent=()) == "x -> y"


# Kinds of sites


def chain() -> None:
    x = normal("x")
    d = pyro.deterministic("d", 2 * x)
    e = pyro.deterministic("e", d + 1)
    normal("y", e)


def test_deterministic_sites() -> None:
    assert edges(chain) == "x -> y"
    assert edges(chain, keep_deterministic=True) == "x -> d; d -> e; e -> y"
    assert edges(chain, keep_deterministic={"e"}) == "x -> e; e -> y"
    assert edges(chain, keep_deterministic=["d"], latent={"d"}) == "x -> y"
    data = {"x": tensor(1.0), "e": tensor(3.0)}
    assert edges(poutine.condition(chain, data), keep_deterministic=["e"]) == "x -> e"
    assert edges(poutine.condition(chain, data), latent=()) == "x -> y"
    with pytest.raises(ValueError, match="No site is named 'x'.*`keep_deterministic` names it"):
        causal_graph(chain, keep_deterministic=["x"])


def test_points_are_sites() -> None:
    def program() -> None:
        x = normal("x")
        d = pyro.sample("d", dist.Delta(2 * x))
        normal("y", d)

    assert edges(program) == "x -> d; d -> y"


def test_subsamples_are_no_sites() -> None:
    def program() -> None:
        with pyro.plate("units", 10, subsample_size=5) as index:
            x = normal("x", torch.arange(10.0)[index])
            normal("y", x)

    assert edges(program) == "x -> y"


@pytest.mark.parametrize("obs", [None, torch.ones(2)])
def test_masked_observations_are_one_site(obs: Tensor | None) -> None:
    def program() -> None:
        with pyro.plate("units", 2):
            x = normal("x", torch.zeros(2), obs=obs)
            y = normal("y", x, obs=obs, obs_mask=tensor([True, False]))
            normal("z", y, obs=obs)

    assert edges(program) == "x -> y; y -> z"
    assert edges(do(program, {"y": 1.0})) == "y -> z; x"


def test_reparametrised_sites_are_deterministic() -> None:
    program = poutine.reparam(front_door, {"m": LocScaleReparam(0.5)})
    assert edges(program, latent={"u"}) == "x -> m_decentered; x -> y; m_decentered -> y; x <-> y"
    kept = edges(program, latent={"u"}, keep_deterministic=True)
    assert kept == "x -> m_decentered; x -> m; m_decentered -> m; m -> y; x <-> y"


def test_hidden_sites_are_computation() -> None:
    def program() -> None:
        x = normal("x")
        with poutine.block():
            h = normal("h", x)
        normal("y", h)

    assert edges(program) == "x -> y"


def test_two_sites_of_one_name() -> None:
    def program() -> None:
        normal("x")
        normal("x")

    with pytest.raises(ValueError, match="At site 'x', a second site of this name: .* rename"):
        causal_graph(program)


# Factors


def test_factors() -> None:
    def selected() -> None:
        u = normal("u")
        with pyro.plate("units", 2):
            x = normal("x", u * torch.ones(2))
            d = pyro.deterministic("d", x**2)
        pyro.factor("constant", tensor(1.0))
        pyro.factor("weight_decay", -(u**2))
        pyro.factor("selection", -d.sum())

    def regularised() -> None:
        u = normal("u")
        pyro.factor("weight_decay", -(u**2))
        with pyro.plate("units", 2):
            normal("x", u * torch.ones(2))

    assert edges(regularised, latent={"u"}) == "x"
    with pytest.raises(ValueError, match="At site 'weight_decay', a pyro.factor that depends on"):
        causal_graph(regularised)
    with pytest.raises(ValueError, match="At site 'selection', .*'x': it selects .* by hand"):
        causal_graph(selected, latent={"u"})


# Latent sites


def test_default_latent_sites() -> None:
    """Those that the program does not observe, if it observes any."""
    data = {"x": tensor(0.0), "m": tensor(0.0), "y": tensor(0.0)}
    assert causal_graph(poutine.condition(front_door, data)) == FRONT_DOOR
    assert edges(poutine.condition(chain, {"y": tensor(0.0)})) == "y"
    assert edges(poutine.condition(chain, {"y": tensor(0.0)}), keep_deterministic=True) == (
        "d -> e; e -> y"
    )
    assert causal_graph(poutine.condition(front_door, data), latent=()) == causal_graph(front_door)


def test_unknown_latent_site() -> None:
    with pytest.raises(ValueError, match="'mm' in the program, but `latent` names it.*mean 'm'"):
        causal_graph(front_door, latent={"mm"})
    with pytest.raises(ValueError, match="No site is named 'd'"):
        causal_graph(chain, latent={"d"})


def units(latent: str, first: str, second: str) -> Program:
    """A latent u that acts on a and b, each in the plates that the letters name."""
    plates = {"g": ("groups", 2, -2), "r": ("rows", 3, -1), "s": ("others", 4, -1)}

    def inside(name: str, letters: str, loc: Tensor) -> Tensor:
        with ExitStack() as stack:
            for label, size, dim in (plates[letter] for letter in letters):
                stack.enter_context(pyro.plate(label, size, dim=dim))
            return normal(name, loc)

    def program() -> None:
        u = inside("u", latent, torch.zeros(()))
        for name, letters in {"a": first, "b": second}.items():
            inside(name, letters, u if set(letters) >= set(latent) else u.sum())

    return program


@pytest.mark.parametrize(
    ("latent", "first", "second", "confounds"),
    [
        ("", "", "", True),  # one unit
        ("", "r", "r", False),  # a parameter
        ("r", "r", "r", True),
        ("g", "gr", "gr", True),  # rows of a group share it
        ("", "gr", "gr", False),
        ("gr", "gr", "gr", True),
        ("g", "g", "gr", True),
        ("", "g", "gr", False),
        ("", "", "r", True),  # one group, and its rows
        ("", "r", "s", True),  # no unit in common that it could be a parameter of
        ("g", "r", "r", True),  # groups of rows, by way of an index
        ("r", "r", "s", True),
    ],
)
def test_plates_tell_confounders_from_parameters(
    latent: str, first: str, second: str, confounds: bool
) -> None:
    program = units(latent, first, second)
    assert edges(program, latent={"u"}) == ("a <-> b" if confounds else "a; b")


@pytest.mark.parametrize(
    ("sizes", "confounds"), [([], False), ([3], False), ([4], True), ([2, 4], True), ([10], True)]
)
def test_a_latent_vector_may_hold_a_value_for_each_unit(sizes: list[int], confounds: bool) -> None:
    """Four units, a sample of ten: then it is no parameter, wherever it stands."""

    def program() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0).expand(sizes).to_event(len(sizes)))
        with pyro.plate("rows", 10, subsample_size=4):
            normal("a", u.sum() * torch.ones(4))
            normal("b", u.sum() * torch.ones(4))

    assert edges(program, latent={"u"}) == ("a <-> b" if confounds else "a; b")


def test_a_batch_that_no_plate_declares_may_hold_a_value_for_each_unit() -> None:
    def program() -> None:
        u = normal("u", torch.zeros(4))
        with pyro.plate("rows", 4):
            normal("a", u)
            normal("b", u)

    with pyro.validation_enabled(False):
        assert edges(program, latent={"u"}) == "a <-> b"


def test_worlds_are_no_units() -> None:
    def program() -> None:
        u = normal("u")
        with pyro.plate("rows", 3):
            normal("a", u + torch.zeros(3))
            normal("b", u + torch.zeros(3))

    assert edges(worlds(program, [{"u": 1.0}, {"u": 2.0}]), latent={"u"}) == "a; b"


def test_a_parameter_is_told_pair_by_pair() -> None:
    """What two sites in a plate share as a parameter confounds either with a site outside."""

    def program() -> None:
        u = normal("u")
        with pyro.plate("rows", 4):
            normal("a", u * torch.ones(4))
            normal("b", u * torch.ones(4))
        normal("c", u)

    assert edges(program, latent={"u"}) == "a <-> c; b <-> c"


def test_sequential_plates() -> None:
    def program() -> None:
        w = normal("w")
        for i in pyro.plate("rows", 2):
            u = normal(f"u{i}")
            x = normal(f"x{i}", w + u)
            normal(f"y{i}", w * x + u)

    graph = causal_graph(program, latent={"w", "u0", "u1"})
    assert graph == ADMG([("x0", "y0"), ("x1", "y1")], [("x0", "y0"), ("x1", "y1")])


def test_a_parameter_is_told_through_other_latent_sites() -> None:
    """A hyperparameter of weights is one, and a mediator of the units is none."""

    def program() -> None:
        mean, scale = normal("mean"), normal("scale")
        w = normal("w", mean)
        with pyro.plate("rows", 3):
            x = normal("x", w * torch.ones(3))
            h = normal("h", x * scale)
            normal("y", h + w)
            normal("z", h)

    assert edges(program, latent={"mean", "scale", "w"}) == "x -> h; h -> y; h -> z"
    assert edges(program, latent={"mean", "scale", "w", "h"}) == "x -> y; x -> z; y <-> z"


# Interventions


@pytest.mark.parametrize(
    ("action", "parents"),
    [
        (1.0, ""),
        (tensor(1.0), ""),
        (dist.Normal(0.0, 1.0), ""),
        (lambda x: x + 1, "u"),
        (lambda x: torch.zeros_like(x), ""),
        (lambda x: tensor(1.0) if x > 0 else tensor(0.0), "u"),
        (soft(lambda d: dist.Normal(d.loc + 1, 2.0)), "u"),
        (soft(lambda d: dist.Normal(1.0, d.scale)), ""),
        (soft(lambda d: dist.Normal(1.0 if d.loc > 0 else 0.0, 1.0)), "u"),
    ],
)
@pytest.mark.parametrize("conditioned", [False, True])
def test_interventions(action: Any, parents: str, conditioned: bool) -> None:
    data = {name: tensor(0.5) for name in "xmy"}
    program = do(poutine.condition(front_door, data) if conditioned else front_door, {"x": action})
    graph = causal_graph(program, latent={"u"})
    assert graph == (FRONT_DOOR if parents else ADMG([("x", "m"), ("m", "y")]))
    assert causal_graph(program, latent=()).parents("x") == set(parents)


def test_targets_are_not_latent() -> None:
    data = {"m": tensor(0.0), "y": tensor(0.0)}
    program = poutine.condition(front_door, data)
    assert edges(program) == "m -> y; m <-> y"
    for action in (1.0, dist.Normal(0.0, 1.0), lambda x: x + 1):
        assert "x -> m" in edges(do(program, {"x": action}))
    assert edges(do(front_door, {"x": 1.0})) == "u -> y; x -> m; m -> y"  # nothing is observed


def test_intervention_on_a_deterministic_site() -> None:
    assert edges(do(chain, {"d": 1.0})) == "x; y"
    assert edges(do(chain, {"d": 1.0}), keep_deterministic=True) == "d -> e; e -> y; x"
    assert edges(do(chain, {"d": lambda d: d + 1})) == "x -> y"


def test_the_outermost_intervention_counts() -> None:
    with pytest.warns(UserWarning, match="the outermost wins"):
        graph = causal_graph(do(do(front_door, {"x": lambda x: x + 1}), {"x": 1.0}))
    assert graph.parents("x") == set()
    with pytest.warns(UserWarning, match="the outermost wins"):
        graph = causal_graph(do(do(front_door, {"x": dist.Normal(0.0, 1.0)}), {"x": lambda x: x}))
    assert graph.parents("x") == set()
    inner = do(front_door, {"x": soft(lambda d: dist.Normal(d.loc, 2.0))})
    with pytest.warns(UserWarning, match="the outermost wins"):
        graph = causal_graph(do(inner, {"x": soft(lambda d: dist.Normal(0.0, 2.0))}))
    assert graph.parents("x") == set()


def test_an_action_that_the_program_computes() -> None:
    def program() -> None:
        z = normal("z")
        with do({"x": z + 1}):
            front_door()

    with pytest.warns(UserWarning, match="'z'"):  # the check of the action looks at it
        assert causal_graph(program).parents("x") == {"z"}


def test_worlds_have_the_graph_of_the_factual_world() -> None:
    for actions in ([{"x": 1.0}], [{"x": lambda x: x + 1}, {"m": dist.Normal(0.0, 1.0)}]):
        assert causal_graph(worlds(front_door, actions), latent={"u"}) == FRONT_DOOR
    both = worlds(do(front_door, {"x": 2.0}), [{"m": 1.0}])
    assert edges(both, latent={"u"}) == "x -> m; m -> y"


def test_the_do_of_pyro_is_refused() -> None:
    with pytest.raises(ValueError, match="At site 'x', pyro.poutine.do splits .*pyro_causal.do"):
        causal_graph(poutine.do(front_door, {"x": tensor(1.0)}))


# Python control flow


def _chosen_by_bytes(x: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but it works
        return float(len(x.expand(3)[(x.expand(3) > 0).byte()]))


LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "if": lambda x: 1.0 if x > 0 else 0.0,
    "int": int,
    "float": float,
    "item": lambda x: x.item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
    "asarray": lambda x: float(np.asarray(x)),
    "range": lambda x: float(len(range(x.long().abs()))),
    "max": lambda x: max(x, tensor(0.0)),
    "equal": lambda x: float(torch.equal(x, x)),
    "allclose": lambda x: float(torch.allclose(x, x)),
    "legacy constructor": lambda x: torch.Tensor([x])[0],
    "format": lambda x: float(f"{x:.3f}"),
    "shape": lambda x: float(x.expand(3)[x.expand(3) > 0].shape[0]),
    "shape of what follows": lambda x: float((2 * (x.expand(3) > 0).nonzero()).T.shape[1]),
    "shape of like": lambda x: float(torch.zeros_like(x.expand(3)[x.expand(3) > 0]).size(0)),
    "len": lambda x: float(len(x.expand(3).masked_select(x > 0))),
    "numel": lambda x: float(torch.unique(x.expand(3)).numel()),
    "size": lambda x: float(torch.bincount(x.abs().long().expand(3)).size(0)),
    "len of what bytes choose": _chosen_by_bytes,
    "iteration": lambda x: float(sum(1 for _ in x.expand(3)[x.expand(3) > 0])),
    "repeats": lambda x: torch.zeros(torch.ones(1).repeat_interleave(x.abs().long()[None]).shape),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_python_control_flow_is_told_and_makes_later_sites_dependent(
    look: Callable[[Tensor], Any],
) -> None:
    def program() -> None:
        x, before = normal("x"), normal("before")
        loc = torch.as_tensor(look(x)).float().sum()
        y = normal("y", loc)
        normal("z", y + before)

    with pytest.warns(UserWarning, match="At site 'x', Python looks at the value .*torch.where"):
        graph = causal_graph(program)
    assert graph == ADMG(
        [("x", "y"), ("x", "z"), ("y", "z"), ("before", "z")], nodes=["x", "before", "y", "z"]
    )


def test_control_flow_of_two_sites_and_of_modules() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(()) if x.mean() > 0 else torch.ones(())

    def program() -> None:
        x, z = normal("x"), normal("z")
        normal("y", Branch()(x) + (1.0 if z > 0 else 0.0))

    with pytest.warns(UserWarning, match="At site 'x', 'z', Python looks"):
        assert edges(program) == "x -> y; z -> y"


def test_harmless_looks_do_not_warn() -> None:
    """After the last site, inside of a distribution, at what is printed, at sizes."""

    class Rejection(dist.Normal):
        def sample(self, sample_shape: Any = ()) -> Tensor:
            while (value := super().sample(sample_shape)) < self.loc - 1:
                pass
            return value

        has_rsample = False

    def program() -> float:
        x = pyro.sample("x", Rejection(0.0, 1.0))
        y = pyro.sample("y", Rejection(x, 1.0, validate_args=False))
        str(y), len(y.shape), y.numel()
        z = normal("z", y)
        return float(z)

    assert edges(program) == "x -> y; y -> z"


def test_looks_in_an_action_are_those_of_its_target() -> None:
    graph = causal_graph(do(front_door, {"x": lambda x: 1.0 if x > 0 else 0.0}))
    assert graph.parents("x") == {"u"}
    assert graph.parents("y") == {"m", "u"}


@pytest.mark.parametrize(
    ("action", "parents"),
    [
        (1.0, ""),
        (dist.Normal(0.0, 1.0), ""),
        (lambda x: x + 1, "z"),
        (soft(lambda d: dist.Normal(d.loc, 2.0)), "z"),
    ],
)
def test_targets_and_control_flow(action: Any, parents: str) -> None:
    def program() -> None:
        z = normal("z")
        x = normal("x", 1.0 if z > 0 else 0.0)
        normal("y", x)

    with pytest.warns(UserWarning, match="'z'"):
        graph = causal_graph(do(program, {"x": action}))
    assert graph.parents("x") == set(parents)
    assert graph.parents("y") == {"x", "z"}


class Word(dist.TorchDistribution):
    """Values that are no tensors."""

    arg_constraints = {}

    def __init__(self, loc: Tensor, make: Callable[[Tensor], Any]) -> None:
        self.loc, self.make = loc, make
        super().__init__()

    def sample(self, sample_shape: Any = ()) -> Any:
        return self.make(self.loc)

    def log_prob(self, value: Any) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (lambda x: "a" if x > 0 else "b", {"a": 0.0, "b": 1.0}.__getitem__),
        (lambda x: x.detach().numpy(), torch.as_tensor),
        (lambda x: [x.item()], lambda values: values[0]),
    ],
    ids=["text", "array", "list"],
)
def test_values_that_are_no_tensors(
    make: Callable[[Tensor], Any], use: Callable[[Any], Tensor]
) -> None:
    def program() -> None:
        x = normal("x")
        normal("y", use(pyro.sample("w", Word(x, make))))
        normal("z")

    with pytest.warns(UserWarning, match="At site 'w', Python looks at the value"):
        assert edges(program) == "x -> w; w -> y; w -> z"


def test_observations_that_are_no_tensors() -> None:
    def program() -> None:
        x = normal("x")
        pyro.sample("w", Word(x, lambda x: "a" if x > 0 else "b"), obs="a")
        normal("y", x)

    with pytest.warns(UserWarning, match="At site 'w', Python looks at the value"):
        assert edges(program, latent=()) == "x -> w; x -> y; w -> y"


@pytest.mark.parametrize("value", [1.0, np.array(1.0, dtype=np.float32)], ids=["number", "array"])
def test_observations_that_are_numbers(value: Any) -> None:
    def program() -> None:
        x = torch.as_tensor(normal("x", obs=value))
        normal("y", x)

    assert edges(program, latent=()) == "x -> y"


def test_the_size_of_a_site_is_a_matter_of_its_parents() -> None:
    """No `do` on y can change its size, so z, which looks at that, depends on x alone."""

    def program() -> None:
        loc = torch.tensor([1.0, 1.0, -1.0])
        x = pyro.sample("x", dist.Normal(loc, 0.01).to_event(1))
        y = pyro.sample("y", dist.Normal(x[x > 0], 1.0).to_event(1))
        normal("z", float(len(y)))

    with pytest.warns(UserWarning, match="At site 'x', Python looks at the value"):
        assert edges(program) == "x -> y; x -> z"
    do(program, {"y": torch.zeros(2)})()
    with pytest.raises(ValueError, match="At site 'y'"):
        do(program, {"y": torch.zeros(3)})()


def test_sizes_of_what_indices_choose_are_known() -> None:
    """So are those of what a selection is written into, or summed to."""

    def program() -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(3)).expand([2]).to_event(1))
        loc = torch.arange(3.0)[k]
        with pyro.plate("rows", loc.shape[0]):
            x = normal("x", loc)
        rest = torch.zeros(2)
        rest[x > 0] = 2 * x[x > 0] + 1
        rest = rest.index_put((x < 0,), x[x < 0])
        with pyro.plate("others", len(rest)):
            y = normal("y", rest + x[x > 0].sum())
        normal("z", y[0])

    assert edges(program) == "k -> x; x -> y; y -> z"


def test_control_flow_points_at_the_caller() -> None:
    def program() -> None:
        normal("y", float(normal("x")))

    with pytest.warns(UserWarning, match="At site 'x'") as caught:
        causal_graph(program)
    assert caught[0].filename == __file__


# No side effects


def test_numbers_from_elsewhere_and_buffers_are_left_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self) -> None:
            with pyro.plate("units", 4):
                x = pyro.sample("x", dist.Normal(torch.ones(2), 1.0).to_event(1))
                normal("y", self.norm(x).sum(-1) + random.random() + np.random.rand())

    noisy = Noisy()
    mean, steps = noisy.norm.running_mean, noisy.norm.num_batches_tracked
    before = random.getstate(), np.random.get_state()[1:3]
    for program in (noisy, noisy.forward):
        assert edges(program) == "x -> y"
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1][0])
    assert np.random.get_state()[2] == before[1][1]
    assert noisy.norm.running_mean is mean
    assert not mean.any()
    assert steps == 0


def test_what_is_gone_is_forgotten() -> None:
    with Provenance() as provenance:
        x = provenance.mark(torch.zeros(3), {"x"})
        view = x[1:]
        for _ in range(50):
            x = x + 1
        assert len(provenance._entries) < 5
        del x
        assert provenance.of(view) == {"x"}


def test_nothing_else_changes() -> None:
    net = nn.Linear(1, 1)
    seen = []

    def program() -> None:
        pyro.module("net", net)
        scale = pyro.param("scale", tensor(2.0), constraint=dist.constraints.positive)
        seen.append(scale.item())
        pyro.param("new", lambda: torch.randn(()))
        normal("x", scale * net(torch.ones(1))[0])

    pyro.param("scale", tensor(3.0), constraint=dist.constraints.positive)
    kept = pyro.get_param_store().get_state()
    before = torch.random.get_rng_state(), torch.distributions.Distribution._validate_args
    with poutine.trace() as tracer:
        assert edges(program) == "x"
    assert not [n for n in tracer.trace.nodes if n == "x"]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.distributions.Distribution._validate_args is before[1]
    assert dist.is_validation_enabled()
    assert list(pyro.get_param_store()) == ["scale"]
    assert pyro.get_param_store().get_state()["params"]["scale"] is kept["params"]["scale"]
    assert [pyro.param("scale").item(), *seen] == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize("flag", [True, False])
def test_validation_is_left_as_it_was_after_an_error(flag: bool) -> None:
    def broken() -> None:
        normal("x")
        raise KeyError("broken")

    default = torch.distributions.Distribution._validate_args
    try:
        torch.distributions.Distribution.set_default_validate_args(flag)
        with pytest.raises(KeyError, match="broken"):
            causal_graph(broken)
        assert torch.distributions.Distribution._validate_args is flag
    finally:
        torch.distributions.Distribution.set_default_validate_args(default)
    assert type(torch.zeros(1) + 1) is Tensor
