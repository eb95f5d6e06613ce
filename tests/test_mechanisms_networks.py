"""Convolutional networks: shapes, order of the latent, what parents and places reach, the prior."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pyro_causal.mechanisms import AmortisedExplicit, ConvDecoder, ConvEncoder, ConvPrior

SHAPES = {
    "digits": {"event_shape": (1, 28, 28), "stages": 2, "local": 0},
    "with a map": {"event_shape": (1, 28, 28), "stages": 2, "local": 2},
    "colour, oblong": {"event_shape": (3, 8, 16), "stages": 3, "local": 1},
    "one stage": {"event_shape": (2, 4, 2), "stages": 1, "local": 3},
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def options(name: str, **others: Any) -> dict[str, Any]:
    return {"channels": 8, **SHAPES[name], **others}


def perturb(module: torch.nn.Module, by: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * torch.randn_like(parameter)


@every_shape
@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("outputs", [1, 3])
def test_shapes(name: str, features: int, outputs: int) -> None:
    encoder = ConvEncoder(5, features, **options(name))
    decoder = ConvDecoder(5, features, outputs=outputs, **options(name))
    (c, h, w), context = SHAPES[name]["event_shape"], torch.randn(6, features)
    places = h * w // 4 ** SHAPES[name]["stages"]
    assert encoder.size == decoder.size == 5 + SHAPES[name]["local"] * places
    assert encoder(torch.randn(6, c, h, w), context).shape == (6, 2 * encoder.size)
    assert decoder(torch.randn(6, decoder.size), context).shape == (6, outputs * c, h, w)


@every_shape
@pytest.mark.parametrize("blocks", [0, 2])
def test_every_parameter_gets_a_gradient(name: str, blocks: int) -> None:
    encoder = ConvEncoder(5, 2, blocks=blocks, **options(name))
    decoder = ConvDecoder(5, 2, blocks=blocks, bounded=True, **options(name))
    perturb(encoder), perturb(decoder)
    context, x = torch.randn(6, 2), torch.randn(6, *SHAPES[name]["event_shape"])
    loc, scale = encoder(x, context).chunk(2, 1)
    decoder(loc + scale, context).square().sum().backward()
    for module in (encoder, decoder):
        for label, parameter in module.named_parameters():
            assert parameter.grad is not None, label
            assert parameter.grad.abs().sum() > 0, label


@every_shape
def test_rows_are_independent(name: str) -> None:
    encoder, decoder = ConvEncoder(5, 2, **options(name)), ConvDecoder(5, 2, **options(name))
    perturb(decoder)
    context, x = torch.randn(6, 2), torch.randn(6, *SHAPES[name]["event_shape"])
    z = torch.randn(6, decoder.size)
    torch.testing.assert_close(encoder(x, context)[2:3], encoder(x[2:3], context[2:3]))
    torch.testing.assert_close(decoder(z, context)[2:3], decoder(z[2:3], context[2:3]))


def test_the_latent_is_location_then_scale_and_whole_then_map() -> None:
    encoder = ConvEncoder(2, 0, event_shape=(1, 4, 4), local=1, channels=4, stages=1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.whole[-1].bias += torch.tensor([1.0, 2.0, 5.0, 6.0])
        encoder.map.bias += torch.tensor([3.0, 7.0])
    expected = [1, 2, 3, 3, 3, 3, 5, 6, 7, 7, 7, 7]
    assert encoder(torch.zeros(1, 1, 4, 4), torch.zeros(1, 0))[0].tolist() == expected


def test_places_of_the_map_are_places_of_the_image() -> None:
    decoder = ConvDecoder(2, 0, event_shape=(1, 24, 32), local=2, channels=8, blocks=0, whole=False)
    encoder = ConvEncoder(2, 0, event_shape=(1, 24, 32), local=2, channels=8, blocks=0)
    z, context = torch.randn(1, decoder.size), torch.zeros(1, 0)
    other = z.clone()
    other[0, 2:].view(2, 6, 8)[:, 1, 6] += 1.0
    moved = (decoder(other, context) - decoder(z, context))[0, 0].abs() > 1e-6
    rows, columns = moved.any(1).nonzero(), moved.any(0).nonzero()
    assert moved[4:8, 24:28].any()
    assert rows.max() < 4 * (1 + 2 + 1)  # two convolutions reach two places further
    assert columns.min() >= 4 * (6 - 2)
    x = torch.randn(1, 1, 24, 32)
    y = x.clone()
    y[0, 0, 5, 25] += 1.0
    loc = [encoder(v, context).chunk(2, 1)[0][0, 2:].view(2, 6, 8) for v in (x, y)]
    near = (loc[0] - loc[1]).abs().amax(0) > 1e-6
    assert near[1, 6]
    assert not near[4:].any() and not near[:, :4].any()


def test_the_decoder_does_without_the_whole() -> None:
    decoder = ConvDecoder(3, 1, whole=False, **options("with a map"))
    z, context = torch.randn(2, decoder.size), torch.randn(2, 1)
    other = torch.cat([torch.randn(2, 3), z[:, 3:]], 1)
    torch.testing.assert_close(decoder(z, context), decoder(other, context))
    seeing = ConvDecoder(3, 1, **options("with a map"))
    assert (seeing(z, context) - seeing(other, context)).abs().amax() > 1e-3


def test_parents_start_without_effect_on_the_decoder() -> None:
    decoder = ConvDecoder(3, 2, **options("digits"))
    z = torch.randn(4, 3)
    start = decoder(z, torch.zeros(4, 2))
    torch.testing.assert_close(decoder(z, torch.randn(4, 2)), start)
    perturb(decoder)
    effect = decoder(z, torch.ones(4, 2)) - decoder(z, torch.zeros(4, 2))
    assert effect.abs().amax() > 1e-3


def test_parents_reach_the_encoder() -> None:
    encoder, x = ConvEncoder(3, 2, **options("digits")), torch.randn(4, 1, 28, 28)
    assert (encoder(x, torch.ones(4, 2)) - encoder(x, torch.zeros(4, 2))).abs().amax() > 1e-3


def test_a_bounded_location() -> None:
    shape = options("with a map")
    decoder = ConvDecoder(3, 0, outputs=2, bounded=True, **shape)
    plain = ConvDecoder(3, 0, outputs=2, **shape)
    state = decoder.state_dict()
    state.pop("gain")
    plain.load_state_dict(state)
    with torch.no_grad():
        decoder.gain.fill_(3.0)
    z, context = 5 * torch.randn(4, plain.size), torch.zeros(4, 0)
    loc, rest = plain(z, context).split(1, 1)
    torch.testing.assert_close(
        decoder(z, context), torch.cat([3 * torch.sigmoid(loc), rest], 1), rtol=1e-5, atol=1e-5
    )


def test_double_precision() -> None:
    shape = options("with a map")
    parts = [
        m.to(torch.float64)
        for m in (ConvEncoder(3, 1, **shape), ConvDecoder(3, 1, **shape), ConvPrior(3, **shape))
    ]
    encoder, decoder, prior = parts
    z = prior().sample((4,))
    x = decoder(z, torch.zeros(4, 1, dtype=torch.float64))
    assert z.dtype == x.dtype == torch.float64
    assert encoder(x, torch.zeros(4, 1, dtype=torch.float64)).dtype == torch.float64


def test_as_the_networks_of_a_mechanism() -> None:
    shape = options("one stage")
    encoder = ConvEncoder(3, 2, **shape)
    image = AmortisedExplicit(
        encoder,
        ConvDecoder(3, 2, outputs=4, whole=False, **shape),
        latent=encoder.size,
        event_shape=(2, 4, 2),
        parents=2,
        latent_prior=ConvPrior(3, **shape),
        scale="network",
        rank=2,
    )
    t, z = torch.randn(3, 5), image.prior().sample((5,))
    x = image(z, t, torch.zeros(())).sample()
    assert x.shape == (3, 5, 2, 4, 2)
    q = image.posterior(x, t, torch.zeros(()))
    assert kl_divergence(q, image.prior().expand(q.batch_shape)).shape == (3, 5)


@pytest.mark.parametrize("network", [ConvEncoder, ConvDecoder, ConvPrior])
@pytest.mark.parametrize("event", [(1, 28, 30), (1, 26, 28), (28, 28), (1, 1, 28, 28)])
def test_wrong_events(network: Any, event: tuple[int, ...]) -> None:
    features = () if network is ConvPrior else (0,)
    message = rf"{network.__name__}: expected an event of shape \(C, H, W\) with H and W divisible"
    with pytest.raises(ValueError, match=rf"{message} by 4, got \({event[0]}, .*Pad the images"):
        network(3, *features, event_shape=event, local=1)


def test_a_decoder_must_see_something() -> None:
    with pytest.raises(ValueError, match="ConvDecoder: expected whole=True or a map, got neither"):
        ConvDecoder(3, 0, whole=False, local=0)


# --- ConvPrior ------------------------------------------------------------------------------------


def prior() -> ConvPrior:
    module = ConvPrior(2, event_shape=(1, 4, 4), local=1, channels=4, stages=1).to(torch.float64)
    perturb(module, 0.3)
    return module


def test_draws_and_density_of_the_prior() -> None:
    module = prior()
    d = module()
    assert (d.batch_shape, d.event_shape) == ((), (6,))
    z = d.expand((5,)).sample((3,))
    assert z.shape == (3, 5, 6)
    loc, scale = module._rest(z[0, :, :2])
    expected = Normal(0.0, 1.0).log_prob(z[0, :, :2]).sum(1)
    expected = expected + Normal(loc, scale).log_prob(z[0, :, 2:]).sum(1)
    torch.testing.assert_close(d.log_prob(z)[0], expected)
    assert d.log_prob(z).shape == (3, 5)


def test_draws_follow_the_density() -> None:
    """E log p(z) over draws is minus the entropy, which is Gaussian given the first part."""
    d = prior()()
    z = d.sample((20_000,))
    rest = d.rest(z[:, :2])
    entropy = Normal(0.0, 1.0).entropy() * 2 + rest.entropy().sum(1).mean()
    assert d.log_prob(z).mean().item() == pytest.approx(-entropy.item(), abs=0.03)
    standardised = (z[:, 2:] - rest.loc) / rest.scale
    torch.testing.assert_close(standardised.T.cov(), torch.eye(4).to(z), atol=0.05, rtol=0)


def test_the_divergence_is_that_of_the_densities() -> None:
    d = prior()()
    loc, scale = torch.randn(3, 6).to(torch.float64), torch.rand(3, 6).to(torch.float64) + 0.3
    q = Normal(loc, scale)
    z = q.sample((40_000,))
    expected = (q.log_prob(z).sum(-1) - d.log_prob(z)).mean(0)
    independent = torch.distributions.Independent(q, 1)
    found = torch.stack([kl_divergence(independent, d) for _ in range(4000)])
    error = (found.std(0) ** 2 / 4000).sqrt() + 0.02
    assert ((found.mean(0) - expected).abs() < 4 * error).all()


def test_particles_share_a_draw() -> None:
    """Copies of a row, which expanding made, go through the network once."""
    module, seen = prior(), []
    module.block.register_forward_hook(lambda m, inputs, output: seen.append(len(output)))
    loc = torch.randn(3, 6).to(torch.float64)
    q = torch.distributions.Independent(Normal(loc, 1.0), 1).expand((7, 1, 3))
    kl = kl_divergence(q, module())
    assert kl.shape == (7, 1, 3)
    assert seen == [3]
    assert torch.equal(kl[0], kl[6])


def gradient_of(module: ConvPrior) -> list[Tensor]:
    return [p.grad for p in module.parameters()]


def test_every_parameter_of_the_prior_gets_a_gradient() -> None:
    module = prior()
    q = Normal(torch.zeros(3, 6).to(torch.float64), 1.0)
    kl_divergence(torch.distributions.Independent(q, 1), module()).sum().backward()
    assert all(g is not None and g.abs().sum() > 0 for g in gradient_of(module))
