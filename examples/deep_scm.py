"""Deep structural causal models on images whose true counterfactuals are known.

**Claim.** One model, one guide and one loss answer questions of all three rungs about images, and
their counterfactual images are close to the true ones. Two experiments::

    --experiment morphomnist   t -> i, (t, i) -> x   handwritten digits; thickness in pixels,
                                                     intensity in grey levels, 28 x 28 pixels
    --experiment brain         (s, a) -> b, (a, b) -> v, (b, v) -> x
                                                     phantom of a head; sex, age in years, volumes
                                                     of brain and ventricles in ml, 64 x 64 pixels

and three models: ``independent`` has no edges, ``conditional`` has those into the image, ``full``
has all. An image is made by a variational autoencoder with an exact residual. These make
interventions act: a low-level part that divides the image by a factor which the parents set; a
latent that is dear (its divergence counts `beta` times in training), so that it leaves to the
parents what they can tell; and for heads, whose parents set sizes, a warp that the parents drive,
training that starts with the parents alone, and rows in which rare volumes are not rare.

**References.** Pawlowski, Castro & Glocker 2020, *Deep structural causal models for tractable
counterfactual inference*, https://arxiv.org/abs/2006.06485, section 4 and appendix A.

**Data.** Morpho-MNIST is looked for in ``--data``, ``$PYRO_CAUSAL_DATA`` and the user's cache, and
else downloaded; 8,000 of the authors' 10,000 test images train. The phantom is simulated.

**Expected.** ``--preset cpu`` takes six minutes on two cores for the digits. On unseen digits,
mean (range) of seeds 0, 1 and 2, errors in grey levels::

    log p(t), truth minus learned               0.001 (0.001 to 0.001)
    log p(i | t), truth minus learned           0.004 (0.003 to 0.005)
    error of counterfactual images              2.59 (2.46 to 2.77)
        of the images unchanged                14.49
        of the images rescaled                  6.48
    thickness off by (true images: 0.17)        0.19 (0.18 to 0.21) pixels
    intensity off by (true images: 0.44)        4.41 (4.29 to 4.55)
    there and back                              1.39 (1.35 to 1.43)

Rescaled: by the true mechanism of intensity, the shape left alone. For heads (twelve minutes
on two cores), means of seeds 3, 4 and 5: every volume changes by what it should to 10 % or 2 ml,
and counterfactual images are 2.4 grey levels off, 7.8 if left unchanged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Predictive, Trace_ELBO
from torch import Tensor, nn

from pyro_causal import CounterfactualPredictive, counterfactual_function, do, fit, world
from pyro_causal import datasets as data
from pyro_causal.infer.guides import Completion
from pyro_causal.mechanisms import (
    AmortisedExplicit,
    ConditionalAffine,
    ConditionalBernoulli,
    ConditionalScale,
    ConditionalSpline,
    ConditionalWarp,
    ConvDecoder,
    ConvEncoder,
    ConvPrior,
)
from pyro_causal.methods import DeepSCM
from pyro_causal.metrics import composition, reversibility
from pyro_causal.plots import plot_image_grid, plot_rungs

Rows = Mapping[str, Tensor]
Action = Mapping[str, Tensor | float]
Table = dict[str, dict[str, float]]


class Preset(NamedTuple):
    """How much to train, and how much to ask."""

    rows: int  # to train on; an eighth of it to validate
    epochs: int
    completion_epochs: int
    channels: int
    tested: int  # test rows
    units: int  # those of counterfactual images
    samples: int  # of what evidence leaves open


PRESETS = {
    "smoke": Preset(
        rows=400, epochs=2, completion_epochs=2, channels=16, tested=60, units=4, samples=2
    ),
    "cpu": Preset(
        rows=8000, epochs=45, completion_epochs=20, channels=64, tested=1000, units=100, samples=32
    ),
    "paper": Preset(
        rows=8000,
        epochs=120,
        completion_epochs=30,
        channels=128,
        tested=1000,
        units=100,
        samples=32,
    ),
}
LATENT, LOCAL, KNOTS = 32, 4, 10
DEAR = 1000.0  # so that the latent tells nothing
SPREAD = 0.75  # from 0, rows as they are, to 1, parents almost evenly spread over their range


def show(title: str, table: Table) -> None:
    """Print a table of named rows and columns."""
    columns = next(iter(table.values()))
    print(f"\n{title}\n{'':26}" + "".join(f"{column:>13}" for column in columns))
    for name, row in table.items():
        print(f"  {name:<24}" + "".join(f"{value:>13.3f}" for value in row.values()))


# ------------------------------------------------------------------------------- the models


def image(
    channels: int,
    *,
    event_shape: tuple[int, int, int],
    stages: int,
    supports: Sequence[constraints.Constraint],
    warp: bool,
) -> AmortisedExplicit:
    """A variational autoencoder for images in grey levels 0 to 255, with these parents.

    With a warp it draws twice as finely as the image, so that what the warp enlarges stays sharp,
    and sees all of the latent, so that what is not worth a place in the map finds one.
    """
    features, doublings = len(supports), int(warp)
    c, height, width = event_shape
    shape: dict[str, Any] = {"event_shape": event_shape, "local": LOCAL, "stages": stages}
    canvas = c, height << doublings, width << doublings
    drawn = shape | {"event_shape": canvas, "stages": stages + doublings, "channels": channels}
    encoder = ConvEncoder(LATENT, features, channels=channels, **shape)
    return AmortisedExplicit(
        encoder,
        ConvDecoder(LATENT, features, whole=warp, bounded=True, **drawn),
        latent=encoder.size,
        event_shape=event_shape,
        parents=features,
        parent_supports=supports,
        latent_prior=ConvPrior(LATENT, channels=channels, **shape),
        low_level=ConditionalScale(features, event_dim=3, softness=None),
        geometry=ConditionalWarp(features, knots=KNOTS, fineness=2) if warp else None,
        min_scale=0.02,
        quantum=1.0,
    )


def features_of(channels: int, size: int) -> nn.Module:
    """A network from grey images to features, from which to complete what is missing."""
    return nn.Sequential(
        nn.BatchNorm2d(1),  # standardises the grey levels
        nn.Conv2d(1, channels, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * channels, size),
    )


class Experiment:
    """What the two experiments have in common; all rows are dicts of columns."""

    scalars: ClassVar[tuple[str, ...]]
    parents: ClassVar[Mapping[str, tuple[str, ...]]]  # of the full model
    supports: ClassVar[Mapping[str, constraints.Constraint]]
    enter: ClassVar[Mapping[str, constraints.Constraint]]  # how scalars see their parents
    hidden: ClassVar[tuple[int, ...]]  # layers of the networks of scalars
    event_shape: ClassVar[tuple[int, int, int]]
    stages: ClassVar[int]
    warp: ClassVar[bool]  # whether parents set the size of what an image shows
    beta: ClassVar[float]  # more makes interventions act, less makes the way back shorter
    batch: ClassVar[int]
    longer: ClassVar[float]  # how many times the epochs of the preset
    spread: ClassVar[tuple[str, ...]]  # parents whose rare values are to be seen more often
    # What is missing, what is done, what is asked.
    gaps: ClassVar[Sequence[tuple[str, Action, str]]]
    pair: ClassVar[tuple[str, str]]  # of scalars whose densities are drawn
    shifts: ClassVar[Mapping[str, Any]]  # interventions on them, by title
    seen: ClassVar[tuple[str, str, float]]  # a cause, its effect, and the value of the effect
    drawn: ClassVar[Sequence[str]]  # the questions whose images are drawn
    paths: ClassVar[Mapping[str, Sequence[float]]]  # of interventions

    def edges(self, model: str) -> Mapping[str, tuple[str, ...]]:
        """The parents of each variable in one of the three models."""
        kept = {"independent": (), "conditional": ("x",), "full": tuple(self.parents)}[model]
        return {name: parents if name in kept else () for name, parents in self.parents.items()}

    def build(self, model: str, preset: Preset, training: Rows) -> DeepSCM:
        """The model before training."""
        edges = self.edges(model)
        mechanisms: dict[str, Any] = {}
        for name in self.scalars:
            mechanisms[name] = self.scalar(name, edges[name]), edges[name]
        mechanisms["x"] = (
            image(
                preset.channels,
                event_shape=self.event_shape,
                stages=self.stages,
                supports=[self.supports[p] for p in edges["x"]],
                warp=self.warp,
            ),
            edges["x"],
        )
        scm = DeepSCM(mechanisms=mechanisms, completion=self.completion(preset))
        return scm.set_normalisation(observed(scm, training)).to(training["x"].device)

    def scalar(self, name: str, parents: Sequence[str]) -> Any:
        """The mechanism of a scalar."""
        support = self.supports[name]
        if support is constraints.boolean:
            return ConditionalBernoulli(len(parents))
        if not parents:
            return ConditionalSpline(support=support)
        enter = [self.enter.get(parent, constraints.real) for parent in parents]
        return ConditionalAffine(
            len(parents), parent_supports=enter, support=support, hidden=self.hidden
        )

    def completion(self, preset: Preset) -> Completion:
        """The distribution of any scalar given any other variables."""
        sizes = {**dict.fromkeys(self.scalars, 1), "x": 64}
        heads: dict[str, Any] = {}
        for name in self.scalars:
            width, support = Completion.width(name, sizes), self.supports[name]
            hidden = (64, 64)
            if support is constraints.boolean:
                heads[name] = ConditionalBernoulli([(width,)], hidden=hidden)
            else:
                heads[name] = ConditionalAffine([(width,)], support=support, hidden=hidden)
        network = features_of(preset.channels // 2, sizes["x"])
        return Completion(heads, sizes=sizes, networks={"x": (network, self.event_shape)})

    def load(self, preset: Preset, path: Path | None) -> dict[str, Rows]:
        """Rows by the names of the split: train, validation, test."""
        raise NotImplementedError

    def queries(self, rows: Rows) -> dict[str, Action]:
        """What would have been, had these variables had these values?"""
        raise NotImplementedError

    def truth(self, rows: Rows) -> Callable[..., Any]:
        """The true model of these units, their noise included, as a program without arguments."""
        raise NotImplementedError

    def scalar_truth(self, rows: Rows) -> Callable[..., Any]:
        """The true model as far as scalars go."""
        return self.truth(rows)

    def measure(self, x: Tensor) -> Rows:
        """Read off images what the parents set."""
        raise NotImplementedError

    def rescale(self, rows: Rows, target: Rows) -> Tensor:
        """The factual images with the grey levels of the target, but not its shapes."""
        raise NotImplementedError


class MorphoMNIST(Experiment):
    """Digits: thickness and intensity."""

    scalars: ClassVar = ("t", "i")
    parents: ClassVar = {"t": (), "i": ("t",), "x": ("t", "i")}
    supports: ClassVar = {"t": constraints.positive, "i": constraints.interval(60.0, 260.0)}
    enter: ClassVar = {}
    hidden = (16,)
    event_shape, stages, warp = (1, 28, 28), 2, False
    beta, batch, longer = 3.0, 128, 1.0
    spread = ()
    gaps: ClassVar = (
        ("t", {"t": 1.5}, "i"),
        ("t", {"t": 4.0}, "i"),
        ("t", {"i": 100.0}, "t"),
        ("i", {"t": 1.5}, "i"),
        ("i", {"t": 4.0}, "i"),
    )
    pair: ClassVar = ("t", "i")
    shifts: ClassVar = {
        "do(t + 0.5)": {"t": lambda t: t + 0.5},
        "do(t ~ U)": {"t": dist.Uniform(1.0, 4.5)},
        "do(i - 30)": {"i": lambda i: (i - 30).clamp(min=65.0)},
    }
    seen = ("t", "i", 100.0)
    drawn = ("do(t + 1)", "do(t = 1.5)", "do(i = 100)", "do(i = 220)")
    paths: ClassVar = {"t": (1.5, 2.5, 3.5, 4.5), "i": (80.0, 130.0, 180.0, 230.0)}

    def load(self, preset: Preset, path: Path | None) -> dict[str, Rows]:
        """The fixed split of the authors' test images."""
        rows = {
            name: data.load_morphomnist(name, path=path) for name in ("train", "validation", "test")
        }
        return {
            "train": {name: value[: preset.rows] for name, value in rows["train"].items()},
            "validation": {n: v[: preset.rows // 8] for n, v in rows["validation"].items()},
            "test": {name: value[: preset.tested] for name, value in rows["test"].items()},
        }

    def queries(self, rows: Rows) -> dict[str, Action]:
        """Eight interventions, on thickness, on intensity and on both."""
        draws = torch.Generator().manual_seed(0)
        t, i, both = torch.rand(3, len(rows["t"]), generator=draws).to(rows["t"])
        return {
            "do(t + 1)": {"t": rows["t"] + 1.0},
            "do(t - 0.5)": {"t": rows["t"] - 0.5},
            "do(t = 1.5)": {"t": 1.5},
            "do(t = 4)": {"t": 4.0},
            "do(i = 100)": {"i": 100.0},
            "do(i = 220)": {"i": 220.0},
            "do(i ~ U)": {"i": 80 + 160 * i},
            "do(t ~ U, i ~ U)": {"t": 1 + 4 * t, "i": 80 + 160 * both},
        }

    def truth(self, rows: Rows) -> Callable[..., Any]:
        """The Morpho-MNIST operations on the strokes of MNIST."""
        seen = poutine.condition(data.morphomnist, {"t": rows["t"], "i": rows["i"]})
        return partial(seen, rows["strokes"])

    def scalar_truth(self, rows: Rows) -> Callable[..., Any]:
        """The true model without images."""
        seen = {"t": rows["t"], "i": rows["i"]}
        return partial(poutine.condition(data.morphomnist_covariates, seen), rows["t"])

    def rescale(self, rows: Rows, target: Rows) -> Tensor:
        """What the true intensity makes of the image."""
        return rows["x"] * (target["i"] / rows["i"])[:, None, None, None]

    def measure(self, x: Tensor) -> Rows:
        """Thickness and intensity."""
        levels = x.clamp(0, 255).round()
        return {"t": data.measure_thickness(levels), "i": data.measure_intensity(levels)}


class Brain(Experiment):
    """A phantom: sex, age, and volumes of brain and ventricles."""

    scalars: ClassVar = ("s", "a", "b", "v")
    parents: ClassVar = {"s": (), "a": (), "b": ("s", "a"), "v": ("a", "b"), "x": ("b", "v")}
    supports: ClassVar = {
        "s": constraints.boolean,
        "a": constraints.interval(45.0, 80.0),
        "b": constraints.positive,
        "v": constraints.positive,
    }
    enter: ClassVar = {"b": constraints.positive}
    hidden = ()
    event_shape, stages, warp = (1, 64, 64), 3, True
    beta, batch, longer = 20.0, 64, 4 / 3
    spread = ("b", "v")
    gaps: ClassVar = (
        ("a", {"b": 1300.0}, "a"),
        ("b", {"a": 75.0}, "b"),
        ("v", {"a": 75.0}, "v"),
    )
    pair: ClassVar = ("b", "v")
    shifts: ClassVar = {
        "do(a = 75)": {"a": 75.0},
        "do(s = 1)": {"s": 1.0},
        "do(b = 1000)": {"b": 1000.0},
    }
    seen = ("a", "v", 70.0)
    drawn = ("do(a = 80)", "do(b = 1600)", "do(b = 800)", "do(v = 110)")
    paths: ClassVar = {"b": (850.0, 1100.0, 1350.0, 1600.0), "v": (10.0, 40.0, 75.0, 110.0)}

    def load(self, preset: Preset, path: Path | None) -> dict[str, Rows]:
        """Simulated subjects; the noise of their images is kept beside."""
        rows: dict[str, Rows] = {}
        for name, size in {
            "train": preset.rows // 2,
            "validation": preset.rows // 16,
            "test": min(preset.rows // 16, preset.tested),
        }.items():
            columns, noise = data.sample_brain_phantom(size)
            rows[name] = {**columns, **{f"noise_{n}": v for n, v in noise._asdict().items()}}
        return rows

    def queries(self, rows: Rows) -> dict[str, Action]:
        """Eight interventions, on every variable."""
        return {
            "do(a = 80)": {"a": 80.0},
            "do(a = 45)": {"a": 45.0},
            "do(b = 1600)": {"b": 1600.0},
            "do(b = 800)": {"b": 800.0},
            "do(v = 110)": {"v": 110.0},
            "do(v = 10)": {"v": 10.0},
            "do(s = 0)": {"s": 0.0},
            "do(s = 1)": {"s": 1.0},
        }

    def truth(self, rows: Rows) -> Callable[..., Any]:
        """The equations of the phantom with the noise of these subjects."""
        noise = data.BrainNoise(*(rows[f"noise_{name}"] for name in data.BrainNoise._fields))
        seen = {name: rows[name] for name in self.scalars}
        return partial(poutine.condition(data.brain_phantom, seen), noise)

    def rescale(self, rows: Rows, target: Rows) -> Tensor:
        """Volumes change no grey levels."""
        return rows["x"]

    def measure(self, x: Tensor) -> Rows:
        """The two volumes."""
        return data.measure_brain_volumes(x)


EXPERIMENTS = {"morphomnist": MorphoMNIST, "brain": Brain}

# ---------------------------------------------------------------------------------- training


def part_of(scm: DeepSCM, names: Sequence[str]) -> DeepSCM:
    """The model of some variables, none of whose parents are left out; it shares mechanisms."""
    parts: Any = {name: (scm.mechanisms[name], scm.parents[name]) for name in names}
    return DeepSCM(mechanisms=parts)


def observed(scm: DeepSCM, rows: Rows) -> dict[str, Tensor]:
    """The columns that are variables of the model."""
    return {name: rows[name] for name in scm.order}


class SpreadOut:
    """Rows in batches, drawn so that rare values of some positive variables are not rare.

    Interventions ask for such values. Which parents are frequent is no part of an image's
    mechanism, so that it may be trained on these rows; those of the parents may not. Each pass
    draws as many rows as there are, with replacement, from torch's global generator.
    """

    def __init__(self, rows: Rows, names: Sequence[str], batch_size: int) -> None:
        logs = torch.stack([rows[name].log() for name in names], 1)
        scores = (logs - logs.mean(0)) / logs.std(0)
        self.rows, self.batch_size = rows, batch_size
        self.weights = (SPREAD / 2 * scores.square().sum(1)).exp()

    def __len__(self) -> int:
        return -(-len(self.weights) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Rows]]:
        drawn = torch.multinomial(self.weights, len(self.weights), replacement=True)
        for part in drawn.split(self.batch_size):
            yield {"data": {name: value[part] for name, value in self.rows.items()}}


def train(
    experiment: Experiment, scm: DeepSCM, rows: Mapping[str, Rows], preset: Preset, out: Path
) -> None:
    """Train by SVI, then the completion by maximum likelihood; go on from checkpoints in `out`."""
    data, validation = (observed(scm, rows[name]) for name in ("train", "validation"))
    epochs, completion = round(experiment.longer * preset.epochs), scm.completion
    assert completion is not None
    loss, batch = scm.loss(beta=experiment.beta), experiment.batch
    fit_to = partial(fit_program, out=out, validation={"data": validation})
    in_batches: dict[str, Any] = {"data": {"data": data}, "batch_size": batch}
    if names := experiment.spread and experiment.scalars:
        scalars = part_of(scm, names)
        few = {"data": {name: data[name] for name in names}}
        whole: dict[str, Any] = {"data": few, "validation": None, "epochs": 10 * epochs, "lr": 3e-2}
        fit_to("scalars", scalars, loss=scalars.loss(), **whole)
        often = SpreadOut(data, experiment.spread, batch)
        image: dict[str, Any] = {"hide": names, "data": often, "lr": 2e-3}
        alone = -(-epochs // 8)  # parents first: a latent that tells sizes leaves nothing to learn
        fit_to("parents", scm, loss=scm.loss(beta=DEAR), epochs=alone, **image)
        fit_to("image", scm, loss=loss, epochs=epochs - alone, **image)
    else:
        fit_to("scm", scm, loss=loss, epochs=epochs, lr=2e-3, **in_batches)
    epochs = preset.completion_epochs
    fit_to("completion", completion, loss=Trace_ELBO(), epochs=epochs, lr=1e-3, **in_batches)


def fit_program(
    name: str,
    program: Any,
    *,
    epochs: int,
    out: Path,
    hide: Sequence[str] = (),
    **options: Any,
) -> None:
    """Train a model and its guide, but for the sites to hide."""
    fit(
        poutine.block(program.model, hide=[*hide]) if hide else program.model,
        program.guide,
        epochs=epochs,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        checkpoint=out / f"{name}.ckpt",
        resume=True,
        **options,
    )


# -------------------------------------------------------------------------------- evaluation


def log_densities(model: Callable[..., Any], names: Sequence[str], rows: Rows) -> dict[str, float]:
    """Mean log-density of each scalar given its parents, in nats per row."""
    seen = poutine.condition(model, {name: rows[name] for name in names})
    nodes: dict[str, Any] = poutine.trace(seen).get_trace().nodes
    return {name: nodes[name]["fn"].log_prob(rows[name]).mean().item() for name in names}


def table_1(experiment: Experiment, scm: DeepSCM, rows: Rows, samples: int) -> dict[str, Table]:
    """Log-densities of unseen rows, those of the true model, and the error of reconstructions.

    The density of an image is that of its whole grey levels on a scale from 0 to 255. A
    reconstruction is the mean of draws with the latent from the guide, pixel noise included.
    """
    columns = observed(scm, rows)
    joint = -scm.loss(num_particles=4).loss(scm.model, scm.guide, columns) / len(columns["x"])
    learned = log_densities(partial(scm.model, columns), experiment.scalars, rows)
    true = log_densities(experiment.scalar_truth(rows), experiment.scalars, rows)
    others = {name: value for name, value in columns.items() if name != "x"}
    mean = torch.zeros_like(rows["x"])
    for _ in range(samples):
        latents = poutine.trace(scm.guide).get_trace(columns)
        mean += poutine.replay(scm.model, trace=latents)(others)["x"] / samples
    image = joint - sum(learned.values())
    scalars = {f"log p({n}|.)": {"model": learned[n], "truth": true[n]} for n in learned}
    images = {
        "log p(all) at least": {"model": joint},
        "log p(x|.) at least": {"model": image},
        "MAE of reconstruction": {"model": error(mean, rows["x"])},
    }
    return {"scalars": scalars, "image": images}


def answer(scm: DeepSCM, evidence: Rows, actions: Sequence[Action], samples: int) -> Rows:
    """Draws of all variables in all worlds, ``[samples, worlds, N, ...]``, world 0 factual."""
    ask = CounterfactualPredictive(
        scm.model, list(actions), guide=scm.guide, num_samples=samples, return_sites=scm.order
    )
    return ask(evidence)


def evaluate_counterfactuals(
    experiment: Experiment, scm: DeepSCM, rows: Rows, true: Rows, samples: int
) -> dict[str, Table]:
    """Counterfactual images beside the true ones, and beside two cheap answers.

    Errors are mean absolute differences in grey levels. `off by`: how far what the image measures
    is off what it should be; the floor is that of the true image. `back`: the error after going
    there and back. The second table has the mean change of what the images measure, the third the
    error after setting all parents to the values that they have.
    """
    evidence, asked = observed(scm, rows), experiment.queries(rows)
    learned = {n: v.mean(0) for n, v in answer(scm, evidence, [*asked.values()], samples).items()}
    soundness = counterfactual_function(scm.model, guide=scm.guide, arguments=lambda e: (e,))
    before = experiment.measure(rows["x"])
    table: Table = {}
    changes: Table = {}
    for k, (question, action) in enumerate(asked.items(), start=1):
        guess, target = world(learned, k), world(true, k)
        row = {"error": error(guess["x"], target["x"]), "unchanged": error(rows["x"], target["x"])}
        row["rescaled"] = error(experiment.rescale(rows, target), target["x"])
        readings, floor = experiment.measure(guess["x"]), experiment.measure(target["x"])
        changes[question] = {}
        for name in readings:
            for label, reading in ((name, readings), (f"{name} truly", floor)):
                changes[question][label] = (reading[name] - before[name]).mean().item()
            row[f"{name} off by"] = error(readings[name], target[name])
            row[f"{name} floor"] = error(floor[name], target[name])
        row["back"] = reversibility(soundness, evidence, action=action, of=["x"])["x"].mean().item()
        table[question] = row
    table["mean"] = {c: sum(r[c] for r in table.values()) / len(table) for c in row}
    null = composition(soundness, evidence, targets=experiment.scalars, of=["x"])["x"]
    unmoved: Table = {"null intervention": {"error": null.mean().item()}}
    return {"counterfactuals": table, "changes": changes, "composition": unmoved}


def error(x: Tensor, y: Tensor) -> float:
    """Mean absolute difference."""
    return (x - y).abs().mean().item()


def evaluate_missing(experiment: Experiment, scm: DeepSCM, rows: Rows) -> Table:
    """Coverage of 90 % intervals of counterfactual scalars, a variable missing from the evidence.

    The truth is the counterfactual of the true model with all variables observed. An interval
    reaches from the 5th to the 95th of 99 draws, between which the truth lies with a probability of
    exactly 90 % if it is drawn alike. The image is evidence, but none is drawn.
    """
    table: Table = {}
    evidence, names = observed(scm, rows), experiment.scalars
    scalars, guide = part_of(scm, names), poutine.block(scm.guide, hide=[*scm.latents.values()])

    def model(rows: Rows) -> Rows:
        return scalars.model({name: rows[name] for name in names if name in rows})

    for missing in dict.fromkeys(gap[0] for gap in experiment.gaps):
        gaps = [(action, name) for other, action, name in experiment.gaps if other == missing]
        actions = [action for action, _ in gaps]
        known = {n: value for n, value in evidence.items() if n != missing}
        ask = CounterfactualPredictive(
            model, actions, guide=guide, num_samples=99, return_sites=names
        )
        parts = [ask(part) for part in cut(known)]
        true = CounterfactualPredictive(experiment.scalar_truth(rows), actions)()
        for k, (action, name) in enumerate(gaps, start=1):
            draws = torch.cat([part[name][:, k] for part in parts], 1).sort(0).values
            low, high, target = draws[4], draws[94], true[name][0, k]
            done = ", ".join(f"{n} = {value:g}" for n, value in action.items())
            table[f"{name}, no {missing}, do({done})"] = {
                "coverage": ((low <= target) & (target <= high)).float().mean().item(),
                "width": (high - low).mean().item(),
            }
    return table


def cut(rows: Rows, size: int = 50) -> list[dict[str, Tensor]]:
    """Rows in portions, for questions with many draws."""
    count = len(next(iter(rows.values())))
    return [{n: v[k : k + size] for n, v in rows.items()} for k in range(0, count, size)]


# ---------------------------------------------------------------------------------- pictures


def sample(model: Callable[..., Any], *arguments: Any, names: Sequence[str], size: int) -> Rows:
    """Draws ``[size, ...]`` of a program of one row."""
    draws = Predictive(model, num_samples=size, return_sites=names, parallel=True)(*arguments)
    return {name: value.squeeze(1) for name, value in draws.items()}


def draw_densities(experiment: Experiment, scm: DeepSCM, rows: Rows, out: Path) -> None:
    """Two scalars as they are and under interventions: the model in blue, the truth in grey."""
    first, second = experiment.pair
    actions: dict[str, Any] = {"as it is": {}, **experiment.shifts}
    figure = Figure(figsize=(3.2 * len(actions), 3.2), layout="constrained")
    panels = figure.subplots(1, len(actions), sharex=True, sharey=True)
    truth = experiment.scalar_truth(rows)
    for axes, (title, action) in zip(panels, actions.items(), strict=True):
        free = poutine.uncondition(do(truth, action))
        drawn: dict[str, Any] = poutine.trace(free).get_trace().nodes
        learned = sample(do(scm.model, action), names=experiment.pair, size=len(rows["x"]))
        axes.plot(
            drawn[first]["value"], drawn[second]["value"], ".", ms=3, color="0.7", label="truth"
        )
        axes.plot(
            learned[first], learned[second], ".", ms=3, alpha=0.4, color="tab:blue", label="model"
        )
        axes.set(title=title, xlabel=first)
    panels[0].set_ylabel(second)
    panels[0].legend(loc="lower right")
    figure.savefig(out / "densities.png")


def draw_rungs(experiment: Experiment, scm: DeepSCM, out: Path) -> None:
    """Seeing a value tells of its causes, setting it does not: a scalar, and draws of images."""
    cause, effect, value = experiment.seen
    seen = torch.full((1,), value)
    guided = partial(Predictive, guide=scm.guide, parallel=True, return_sites=[cause, "x"])
    given = guided(scm.model, num_samples=1000)({effect: seen})
    names = (cause, "x")
    done = sample(do(scm.model, {effect: value}), names=names, size=1000)
    labels = {f"association\n{effect} = {value:g}": given[cause].flatten()}
    labels[f"intervention\ndo({effect} = {value:g})"] = done[cause]
    plot_rungs(labels, variable=cause, path=out / "rungs.png")
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    images = {"seen": given["x"].squeeze(1), "set": done["x"]}
    for line, (label, draws) in zip(figure.subplots(2, 12), images.items(), strict=True):
        for axes, picture in zip(line, draws, strict=False):
            axes.imshow(picture[0].cpu().numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{effect} = {value:g}\n{label}")
    figure.savefig(out / "seen_and_set.png")


def draw_counterfactuals(
    experiment: Experiment, scm: DeepSCM, rows: Rows, out: Path, samples: int
) -> None:
    """Units in other worlds beside the truth, and one of them along paths of interventions."""
    few = {name: value[:3] for name, value in rows.items()}
    asked = experiment.queries(few)
    grids = {"counterfactuals": (few, {title: asked[title] for title in experiment.drawn})}
    for name, values in experiment.paths.items():
        path: dict[str, Action] = {f"do({name} = {value:g})": {name: value} for value in values}
        grids[f"trajectory_{name}"] = {n: v[:1] for n, v in few.items()}, path
    for name, (units, actions) in grids.items():
        learned = answer(scm, observed(scm, units), [*actions.values()], samples)["x"].mean(0)
        true = CounterfactualPredictive(experiment.truth(units), [*actions.values()])()["x"][0]
        panels = [
            {title: images[k] for k, title in enumerate(actions, start=1)}
            for images in (learned, true)
        ]
        plot_image_grid(units["x"], panels[0], truth=panels[1], path=out / f"{name}.png")


# ----------------------------------------------------------------------------------- the script


def claim(out: Path, args: argparse.Namespace) -> None:
    """Note in the folder what it holds, so that nothing else is taken for it later."""
    run = {name: getattr(args, name) for name in ("experiment", "model", "preset", "seed")}
    note = out / "run.json"
    if note.exists() and (found := json.loads(note.read_text())) != run:
        raise ValueError(
            f"{out} holds another run: expected {run}, got {found}. Give another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(run))


def restore_or_train(
    experiment: Experiment, args: argparse.Namespace, rows: Mapping[str, Rows]
) -> DeepSCM:
    """The model that an earlier run has left in the folder, or a new one, trained."""
    saved = args.out / "deep_scm.pt"
    preset = PRESETS[args.preset]
    if saved.exists():
        scm: DeepSCM = DeepSCM.load(saved).to(args.device)
        return scm
    scm = experiment.build(args.model, preset, rows["train"])
    train(experiment, scm, rows, preset, args.out)
    scm.save(saved)
    return scm.eval()


def main(args: argparse.Namespace) -> dict[str, Table]:
    """Train or restore; print, save and return the tables, and save the pictures."""
    pyro.set_rng_seed(args.seed)
    claim(args.out, args)
    experiment, preset = EXPERIMENTS[args.experiment](), PRESETS[args.preset]
    loaded = experiment.load(preset, args.data)
    rows = {
        name: {column: value.to(args.device) for column, value in part.items()}
        for name, part in loaded.items()
    }
    scm = restore_or_train(experiment, args, rows)
    pyro.set_rng_seed(args.seed)
    test, units = rows["test"], {n: v[: preset.units] for n, v in rows["test"].items()}
    with torch.no_grad():
        actions = [*experiment.queries(units).values()]
        true = CounterfactualPredictive(experiment.truth(units), actions)()
        true = {name: value[0] for name, value in true.items()}
        results = table_1(experiment, scm, test, preset.samples)
        results |= evaluate_counterfactuals(experiment, scm, units, true, preset.samples)
        results["missing"] = evaluate_missing(experiment, scm, test)
        scm.cpu()
        draw_densities(experiment, scm, loaded["test"], args.out)
        draw_rungs(experiment, scm, args.out)
        draw_counterfactuals(experiment, scm, loaded["test"], args.out, preset.samples)
    show("Nats per unseen row", results["scalars"])
    show("Images, in nats and grey levels", results["image"])
    show("Counterfactual images of unseen units", results["counterfactuals"])
    show("Mean change of what they measure", results["changes"])
    show("Composition", results["composition"])
    show("Intervals of 90 % without one variable", results["missing"])
    (args.out / "metrics.json").write_text(json.dumps(results, indent=2))
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", choices=EXPERIMENTS, default="morphomnist")
    parser.add_argument("--model", choices=("independent", "conditional", "full"), default="full")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/deep_scm"))
    parser.add_argument("--data", type=Path, help="folder with morphomnist/ and mnist/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse())
