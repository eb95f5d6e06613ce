"""Modules as plain values: what comes back, what is refused, what a file cannot make us call."""

import io
from collections import OrderedDict

import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_causal._recipe import NamedModules, Recorded, build, describe, require_recipe_of
from pyro_causal.mechanisms import (
    AmortisedExplicit,
    ConditionalAffine,
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalGaussian,
    ConditionalScale,
    ConditionalSpline,
    ContextNetwork,
    ConvDecoder,
    ConvEncoder,
    ConvPrior,
    interval_around,
)

GREY = constraints.interval(64.0, 255.0)
ACTIVATION = nn.Tanh()


def stored(recipe: object) -> object:
    """A recipe as it comes back from a file that executes nothing."""
    file = io.BytesIO()
    torch.save(recipe, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copied(module: nn.Module, *classes: type) -> nn.Module:
    """Another module from the recipe and the state of this one."""
    other = build(stored(describe(module)), classes=classes)
    other.load_state_dict(module.state_dict())
    return other.train(module.training)


class Positional(Recorded):
    def __init__(self, first, /, second=2, *rest, last=4, **others):
        super().__init__()
        self.got = (first, second, rest, last, others)


class Inner(Recorded):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()


class Outer(Recorded):
    def __init__(self, parts: dict[str, nn.Module], *, order: list[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.parts[name](x)
        return x


class Chain(Recorded):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Derived(Inner):
    def __init__(self) -> None:
        super().__init__(3)


class Renamed(nn.Module):
    """Keeps something else under the name of its argument, as many a module does."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = 2 * scale


class Even(constraints.Constraint):
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def check(self, value: Tensor) -> Tensor:
        return (value % 2 == 0) & (value < self.limit)


NETWORKS = {
    "linear": (nn.Linear(4, 3), (4,)),
    "no bias": (nn.Linear(4, 3, bias=False), (4,)),
    "bilinear layers": (nn.Sequential(nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 2)), (4,)),
    "named layers": (
        nn.Sequential(OrderedDict([("one", nn.Linear(4, 3)), ("two", nn.PReLU())])),
        (4,),
    ),
    "nested": (nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Identity()), (4,)),
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding="valid", padding_mode="zeros"),
            nn.BatchNorm2d(4, affine=False),
            nn.LeakyReLU(0.3),
            nn.MaxPool2d(2),
            nn.Upsample(scale_factor=2),
            nn.ConvTranspose2d(4, 2, 2, bias=False),
            nn.GroupNorm(2, 2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Unflatten(1, (2, 4)),
            nn.LayerNorm(4, elementwise_affine=False),
            nn.Dropout(0.0),
            nn.Softplus(2.0),
        ),
        (2, 12, 12),
    ),
    "a layer twice": (nn.Sequential(ACTIVATION, nn.Linear(4, 4), ACTIVATION), (4,)),
    "named": (Outer(NamedModules({"b": nn.Linear(4, 4)}), order=["b"]), (4,)),
    "list of layers": (Chain(nn.ModuleList([nn.Linear(4, 2), nn.Tanh()])), (4,)),
    "dict of layers": (Outer(nn.ModuleDict({"b": nn.Linear(4, 4)}), order=["b"]), (4,)),
    "recorded": (Outer({"a": Inner(4), "b": nn.Tanh()}, order=["b", "a", "a"]), (4,)),
    "encoder": (ConvEncoder(2, 0, event_shape=(1, 4, 4), local=1, channels=4), None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_come_back(name: str) -> None:
    network, shape = NETWORKS[name]
    other = copied(network, Chain, Inner, Outer)
    assert repr(other) == repr(network)
    inputs = [torch.randn(5, *shape)] if shape else [torch.randn(5, 1, 4, 4), torch.zeros(5, 0)]
    torch.testing.assert_close(other(*inputs), network(*inputs), rtol=0, atol=0)


MECHANISMS = {
    "Gaussian": ConditionalGaussian(1, hidden=(3,), heteroscedastic=True),
    "affine": ConditionalAffine(1, support=GREY, hidden=nn.Linear(1, 2)),
    "spline": ConditionalSpline([()], support=constraints.positive, bins=4, bound=3.0),
    "around": ConditionalSpline(1, support=interval_around(torch.tensor([0.0, 1.0]))),
    "greater": ConditionalAffine(1, support=constraints.greater_than(2.0)),
    "categorical": ConditionalCategorical(3, 1),
    "Bernoulli": ConditionalBernoulli(1, hidden=()),
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_mechanisms_come_back(name: str) -> None:
    mechanism = MECHANISMS[name]
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    other, parent = copied(mechanism), torch.randn(5)
    assert repr(other) == repr(mechanism)
    x = mechanism(parent).sample()
    expected = mechanism(parent).log_prob(x)
    torch.testing.assert_close(other(parent).log_prob(x), expected, rtol=0, atol=0)


def test_a_mechanism_for_images_comes_back() -> None:
    shape = {"event_shape": (1, 4, 4), "local": 1, "channels": 4, "stages": 1}
    encoder = ConvEncoder(2, 1, **shape)
    image = AmortisedExplicit(
        encoder,
        ConvDecoder(2, 1, whole=False, bounded=True, outputs=3, **shape),
        latent=encoder.size,
        event_shape=torch.Size([1, 4, 4]),
        parents=1,
        parent_supports=[constraints.positive],
        latent_prior=ConvPrior(2, **shape),
        scale="network",
        rank=1,
        support=constraints.interval(-1.0, 256.0),
        low_level=ConditionalScale(1, event_dim=3, hidden=(4,), softness=0.1),
        quantum=1.0,
    ).eval()
    other, x, t = copied(image), 200 * torch.rand(5, 1, 4, 4), torch.rand(5) + 1
    z = image.posterior(x, t).mean
    torch.testing.assert_close(other.posterior(x, t).mean, z, rtol=0, atol=0)
    expected = image(z, t).log_prob(x)
    torch.testing.assert_close(other(z, t).log_prob(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(other.prior().log_prob(z), image.prior().log_prob(z))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_recipe_that_describes_it(name: str) -> None:
    network, _ = NETWORKS[name]
    require_recipe_of(network, describe(network))


def replaced(layer: nn.Module) -> nn.Module:
    """A network whose second layer is no longer the one that it was made with."""
    network = Outer({"a": Inner(4), "b": nn.Tanh()}, order=["a", "b"])
    network.parts["b"] = layer
    return network


@pytest.mark.parametrize(
    ("network", "fault"),
    [
        (replaced(nn.ReLU()), "parts.b"),
        (replaced(nn.Linear(4, 4)), ".*Unexpected key.*parts.b.weight"),
        (replaced(nn.Sequential()), "parts.b"),
    ],
)
def test_replaced_parts_are_noticed(network: nn.Module, fault: str) -> None:
    with pytest.raises(
        ValueError, match=rf"(?s)Outer: parts have been replaced.*\({fault}.*load_state_dict"
    ):
        require_recipe_of(network, describe(network))


def test_lazy_layers_are_what_they_become() -> None:
    class Lazy(Recorded):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(2)

    network = Lazy()
    network.layer(torch.zeros(1, 3))
    require_recipe_of(network, describe(network))


NAMES = ["type", "values", "keys", "train", "training", "forward", "_modules", "x y"]


@pytest.mark.parametrize("name", NAMES)
def test_modules_may_be_called_like_attributes(name: str) -> None:
    modules = NamedModules({name: nn.Linear(2, 1), "x": nn.Linear(1, 1)})
    assert [*modules] == [name, "x"]
    assert isinstance(modules[name], nn.Linear) and modules.training is True
    plain = nn.ModuleDict({"x": nn.Linear(1, 1)})
    assert {*plain.state_dict()} < {*modules.state_dict()}
    other = NamedModules({name: nn.Linear(2, 1), "x": nn.Linear(1, 1)})
    other.load_state_dict(modules.state_dict())
    assert torch.equal(other.double()[name].weight, modules[name].weight.double())


@pytest.mark.parametrize("name", ["a.b", ".", "", 3])
def test_names_that_are_no_part_of_a_parameters_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"At site {name!r}, the name of.*without a dot.*Rename"):
        NamedModules({name: nn.Linear(1, 1)})


def test_arguments_of_every_kind() -> None:
    for made in (Positional(1), Positional(1, 5, 6, 7, last=8, more=[9]), Positional(1, second=3)):
        again = build(stored(describe(made)), classes=[Positional])
        assert again.got == made.got


def test_a_derived_class_is_made_with_its_own_arguments() -> None:
    assert isinstance(build(describe(Derived()), classes=[Derived]), Derived)


def test_wrong_arguments_raise_as_they_would_anyway() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        Inner(3, colour=1)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Inner()


def test_later_changes_of_a_container_do_not_enter() -> None:
    order, parts = ["a"], {"a": Inner(2)}
    outer = Outer(parts, order=order)
    order.append("b")
    parts["b"] = Inner(2)
    other = build(describe(outer), classes=[Inner, Outer])
    assert list(other.parts) == other.order == ["a"]


@pytest.mark.parametrize(
    "value",
    [
        1,
        True,
        2.5,
        "x",
        None,
        [1, [2.0, "y"]],
        {"a": 1, "b": [None]},
        {2: 3},
        {"class": "os:system"},
    ],
    ids=repr,
)
def test_plain_values_come_back(value: object) -> None:
    assert build(stored(describe(value))) == value


def test_tuples_stay_tuples() -> None:
    value = {"a": (1, (2,)), "b": torch.Size([3])}
    assert build(stored(describe(value))) == {"a": (1, (2,)), "b": (3,)}


def test_tensors_come_back() -> None:
    assert torch.equal(build(stored(describe([torch.arange(3.0)])))[0], torch.arange(3.0))


@pytest.mark.parametrize(
    "constraint",
    [constraints.real, constraints.positive, constraints.unit_interval, constraints.boolean,
     GREY, constraints.greater_than(1.5), constraints.integer_interval(0, 3),
     constraints.independent(constraints.positive, 2)],
    ids=repr,
)  # fmt: skip
def test_constraints_come_back(constraint: constraints.Constraint) -> None:
    other, x = build(stored(describe(constraint))), torch.tensor([[-1.0, 0.0], [1.0, 100.0]])
    assert type(other) is type(constraint)
    assert torch.equal(other.check(x), constraint.check(x))
    assert str(other) == str(constraint)


def test_a_constraint_of_your_own() -> None:
    other = build(stored(describe(Even(6))), classes=[Even])
    assert other.check(torch.tensor([3, 4, 8])).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.relu, "A builtin_function_or_method cannot be saved.*Give a function as a module"),
        (nn.SiLU, "A type cannot be saved"),
        (Inner, "A type cannot be saved"),
        ({"a": {1, 2}}, "A set cannot be saved: expected modules, constraints, numbers"),
        (nn.Linear(1, 1).weight.dtype, "A dtype cannot be saved"),
    ],
)
def test_what_cannot_be_described(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe(value)


def test_a_module_that_does_not_tell_its_arguments_is_refused() -> None:
    """The attribute of the argument's name holds something else: guessing would be wrong."""
    with pytest.raises(ValueError, match="cannot tell 'scale'. Derive its class from pyro_causal"):
        describe(Renamed(2.0))
    for module in (Renamed(2.0), nn.LSTM(2, 3), nn.ParameterList([])):
        with pytest.raises(ValueError, match=rf"A {type(module).__name__} cannot be saved"):
            describe(nn.Sequential(module))


def test_a_parametrised_layer_is_refused() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="A ParametrizedLinear cannot be saved"):
        describe(layer)


def test_a_context_network_can_be_a_network_of_your_own() -> None:
    other = copied(ConditionalGaussian(2, hidden=ContextNetwork(2, 1, hidden=(3,))))
    assert other(torch.ones(5), torch.ones(5)).batch_shape == (5,)


# --- files that others wrote ----------------------------------------------------------------------

CALLED: list[str] = []


class Spy(nn.Module):
    def __init__(self, *args: object) -> None:
        super().__init__()
        CALLED.append("Spy")


UNTRUSTED = [
    "os:system",
    "builtins:eval",
    "builtins:exec",
    "subprocess:Popen",
    "torch:load",
    "torch.hub:load",
    "torch.jit:ScriptModule",
    "torch.fx:GraphModule",
    "torch.nnx:Linear",
    "torch.nn:../x",
    "torch.nn.:Linear",
    "../torch.nn:Linear",
    "pyro_causalx:Spy",
    f"{__name__}:Spy",
    "",
    ":",
    "torch.nn",
    "torch.nn:",
]
MISSING = [
    "torch.nn:NoSuchLayer",
    "torch.nn.nothing:Linear",
    "torch.nn:init.normal_",
    "torch.nn:functional.relu",
    "torch.nn:Module.forward",
    "torch.nn.modules.module:torch.jit.ScriptModule",
    "torch.nn.parameter:Parameter",
    "torch.nn.modules.linear:Linear.__init__",
    "pyro_causal._recipe:build",
    "pyro_causal.handlers:do",
    "torch.distributions.normal:Normal",
]


@pytest.mark.parametrize("path", [*UNTRUSTED, *MISSING])
def test_a_file_calls_no_other_class(path: str) -> None:
    CALLED.clear()
    for recipe in (
        {"class": path, "args": [], "kwargs": {"mapping": []}},
        {"class": path, "args": ["echo"], "kwargs": {"mapping": []}},
    ):
        with pytest.raises(ValueError, match="The file holds an object of the class"):
            build([recipe])
    assert not CALLED


def test_another_class_must_be_handed_over() -> None:
    recipe = describe(Inner(2))
    path = f"{__name__}:Inner"
    message = rf"class '{path}': expected one of torch, Pyro or.*load\(path, classes=\[Inner\]\)"
    with pytest.raises(ValueError, match=message):
        build(recipe)
    with pytest.raises(ValueError, match=rf"or of \['{__name__}:Outer'\]"):
        build(recipe, classes=[Outer])


def test_a_class_that_has_moved_can_be_handed_over() -> None:
    """A script trains under the name `__main__`; who imports the script loads the file."""
    recipe = describe(Inner(2))
    recipe["class"] = "__main__:Inner"
    assert isinstance(build(recipe, classes=[Inner]), Inner)


def test_a_class_that_is_gone() -> None:
    recipe = {"class": "pyro_causal.mechanisms.flows:ConditionalTeapot", "args": []}
    with pytest.raises(ValueError, match="does not exist.*Load it with the versions that wrote it"):
        build(recipe)


LINEAR = {"class": "torch.nn.modules.linear:Linear", "args": [1, 2], "kwargs": {"mapping": []}}


def test_a_class_that_torch_has_moved_is_found_where_it_was() -> None:
    assert isinstance(build({**LINEAR, "class": "torch.nn:Linear"}), nn.Linear)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"mapping": 3},
        {"mapping": [[[1], 2]]},
        {**LINEAR, "class": 3},
        {**LINEAR, "args": 3},
        {**LINEAR, "args": [1]},
        {**LINEAR, "kwargs": {"mapping": [["colour", 3]]}},
        {"class": LINEAR["class"]},
    ],
    ids=str,
)
def test_a_damaged_recipe(recipe: object) -> None:
    with pytest.raises(ValueError, match="cannot be made from the file"):
        build(recipe)
