"""Quickstart: what is, what would be if, and what would have been.

**Claim.** Part 1 answers a textbook question in ten lines. Part 2 trains a deep structural causal
model by SVI on handwritten digits and asks it the same kinds of question. Every answer stands next
to the truth: the 1797 digits are real (they come with scikit-learn), but what makes them look as
they do is simulated. A pen of thickness `t` retraces the path of each digit; thick pens write
brightly; both show in the image `x`::

    t = 1 + e_t,                         e_t ~ Gamma(6, 4)   thickness in pixels
    i = 64 + 191 sigmoid(2 t - 5 + e_i), e_i ~ N(0, 0.5²)    intensity in grey levels
    x = i * stroke(path, t)                                  28 x 28 pixels

Each training digit is written with ten pens. The model learns from the rows `t`, `i`, `x` alone, is
not told which of them share a path, and is asked about digits that it has never seen.

**References.** Pearl, Glymour & Jewell 2016, *Causal inference in statistics: a primer*, section
4.2; Pawlowski, Castro & Glocker 2020, *Deep structural causal models for tractable counterfactual
inference*, https://arxiv.org/abs/2006.06485 (thickness and intensity after its section 4); Monteiro
et al. 2023, *Measuring axiomatic soundness of counterfactual image models*,
https://arxiv.org/abs/2303.01274.

**Expected.** `--preset cpu` takes a minute and a half on one core, `smoke` ten seconds. With seeds
0, 1 and 2, mean (range), errors of images in grey levels::

    textbook, counterfactual               1.90   (exact)
    E log p(t), truth minus learned        0.001  (0.001 to 0.002)
    E log p(i | t), truth minus learned    0.000  (-0.001 to 0.000)
    error of counterfactual images         2.62   (2.54 to 2.69)
        of the images unchanged           12.98   (12.90 to 13.08)
        of the images rescaled             6.05   (6.03 to 6.06)
    composition                            0.00   (below 1e-5)
    reversibility of do(t + 1)             0.78   (0.73 to 0.83)

Rescaled: grey levels changed by the true mechanism of `i`, the shape left alone. For do(i) that is
the truth, and the model, which has to learn it, is worse; it wins where the shape changes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import AffineTransform, ComposeTransform, SigmoidTransform
from pyro.infer import Predictive, TraceMeanField_ELBO
from pyro.nn import PyroModule
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_causal import CounterfactualPredictive, counterfactual_function, do, fit, query, world
from pyro_causal.mechanisms import ConditionalAffine, ConditionalSpline
from pyro_causal.metrics import composition, effectiveness, reversibility
from pyro_causal.plots import plot_dose_curve, plot_graph, plot_image_grid, plot_rungs

Rows = Mapping[str, Tensor]  # a column for each variable of the digits
Action = Mapping[str, Tensor | float]
Model = Callable[..., None]
Table = dict[str, dict[str, float]]


def show(title: str, table: Table) -> None:
    """Print a table of named rows and columns."""
    columns = next(iter(table.values()))
    print(f"\n{title}\n{'':28}" + "".join(f"{column:>11}" for column in columns))
    for name, row in table.items():
        print(f"  {name:<26}" + "".join(f"{value:>11.3f}" for value in row.values()))


# --------------------------------------------------------------------------- 1. a textbook question


def student() -> None:
    """Encouragement, homework and exam score of a student, in standard deviations."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    h = pyro.sample("h", dist.Normal(0.5 * x, 1.0))
    pyro.sample("y", dist.Normal(0.7 * x + 0.4 * h, 1.0))


def textbook(out: Path) -> Table:
    """Ask for the score at homework 2: seen, prescribed to all, and for one particular student."""
    joe = {"x": 0.5, "h": 1.0, "y": 1.5}
    answers = {
        "association": query(student, "y", given={"h": 2.0}, num_samples=50_000),
        "intervention": query(student, "y", do={"h": 2.0}, num_samples=50_000),
        "counterfactual": query(student, "y", do={"h": 2.0}, given=joe),
    }
    truth = {"association": 1.36, "intervention": 0.8, "counterfactual": 1.9}
    samples = {rung: answer.samples for rung, answer in answers.items()}
    plot_rungs(samples, variable="score y", truth=truth, path=out / "textbook.png")
    return {rung: {"answer": float(answers[rung]), "truth": truth[rung]} for rung in answers}


class Preset(NamedTuple):
    """How much to train, and on what."""

    digits: int
    pens: int
    hidden: int
    latent: int
    epochs: int  # twice


PRESETS = {
    "smoke": Preset(digits=600, pens=4, hidden=128, latent=16, epochs=12),
    "cpu": Preset(digits=1797, pens=10, hidden=256, latent=24, epochs=22),
    "paper": Preset(digits=1797, pens=50, hidden=1024, latent=32, epochs=100),
}

# --------------------------------------------------------------------- 2. digits with a known cause


def truth(paths: Tensor) -> None:
    """The true model of digits with these paths ``[N, 28, 28]``, which are the noise of `x`."""
    with pyro.plate("digits", len(paths)):
        above_one, bounded = AffineTransform(1, 1), [SigmoidTransform(), AffineTransform(64, 191)]
        gamma = dist.Gamma(paths.new_tensor(6.0), 4.0)
        t = pyro.sample("t", dist.TransformedDistribution(gamma, above_one))
        i = pyro.sample("i", dist.TransformedDistribution(dist.Normal(2 * t - 5, 0.5), bounded))
        t, i = t[..., None, None], i[..., None, None]
        pyro.deterministic("x", i * torch.sigmoid((t / 2 - paths) / 0.25), event_dim=2)


def pen_paths(images: np.ndarray) -> Tensor:
    """Distance of each pixel ``[N, 28, 28]`` to the path of the pen that wrote ``[N, 8, 8]``."""
    grey = F.interpolate(torch.as_tensor(images)[:, None] / 16, size=(40, 40), mode="bicubic")
    page = F.pad(grey, [8] * 4)[:, 0].numpy()
    fine, coarse = (ndimage.gaussian_filter(page, (0, width, width)) for width in (1.5, 5))
    lines = thin((fine > coarse + 0.04) & (fine > 0.3))
    distances = np.stack([ndimage.distance_transform_edt(~line) for line in lines])
    return F.avg_pool2d(torch.as_tensor(distances, dtype=torch.float32) / 2, 2)


def thin(ink: np.ndarray) -> np.ndarray:
    """Thin strokes ``[N, H, W]`` to lines (Zhang & Suen 1984)."""
    clockwise = [(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)]
    before = ink.sum() + 1
    while before > ink.sum():
        before = ink.sum()
        for side in (0, 1):
            ring = np.stack([np.roll(ink, shift, (1, 2)) for shift in clockwise])
            north, east, south, west = ring[::2]
            inner = (west & north & (east | south)) if side else (east & south & (north | west))
            pieces = (~ring & np.roll(ring, -1, 0)).sum(0)
            ink = ink & ((ring.sum(0) < 2) | (ring.sum(0) > 6) | (pieces != 1) | inner)
    return ink


def sample_digits(model: Model, paths: Tensor) -> Rows:
    """Write these digits once: `t`, `i` and `x`."""
    draws = Predictive(model, num_samples=1, return_sites=("t", "i", "x"))(paths)
    return {name: value[0] for name, value in draws.items()}


class Gauge:
    """Reads thickness and intensity off images; its error on true images is the floor for others.

    A stroke of thickness `t` has an area of `t l` and a perimeter of `2 l`, and its brightest
    pixels tell the intensity. A cubic polynomial, fitted to true images, corrects for soft edges.
    """

    def __init__(self, paths: Tensor) -> None:
        low, high = paths.new_tensor([[1.2, 64.0], [5.5, 255.0]])
        any_pen = {"t": dist.Uniform(low[0], high[0]), "i": dist.Uniform(low[1], high[1])}
        rows = sample_digits(do(truth, any_pen), paths)
        powers, peak = self._measure(rows["x"])
        targets = torch.stack([rows["t"], rows["i"] / peak], -1)
        self.coefficients = torch.linalg.lstsq(powers, targets).solution

    def __call__(self, x: Tensor) -> Rows:
        """Thickness and intensity ``[N]`` of images ``[N, 28, 28]``."""
        powers, peak = self._measure(x)
        thickness, factor = (powers @ self.coefficients).unbind(-1)
        return {"t": thickness, "i": factor * peak}

    @staticmethod
    def _measure(x: Tensor) -> tuple[Tensor, Tensor]:
        peak = x.flatten(1).topk(12).values.mean(-1)
        ink = F.pad((x / peak[:, None, None]).clamp(0, 1), [1] * 4)
        across, down = ink[:, 1:, 1:] - ink[:, 1:, :-1], ink[:, 1:, 1:] - ink[:, :-1, 1:]
        ratio = 2 * ink.sum((1, 2)) / torch.hypot(across, down).sum((1, 2))
        return torch.stack([ratio**k for k in range(4)], -1), peak


# ------------------------------------------------------------------------------------ 3. a deep SCM

# From the reals to a bit more than 0 to 255, so that neither black nor white lies at infinity.
GREY_LEVELS = ComposeTransform(
    [AffineTransform(0.0, 10.0), SigmoidTransform(), AffineTransform(-2.0, 260.0)]
)


class DigitSCM(PyroModule):
    """Flows for thickness and intensity; a small variational autoencoder for the image."""

    def __init__(self, rows: Rows, *, hidden: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.kl_weight = 1.0
        self.thickness = ConditionalSpline(support=constraints.positive)
        self.thickness.set_normalisation(rows["t"])
        self.intensity = ConditionalAffine(1, support=constraints.interval(64.0, 255.0))
        self.intensity.set_normalisation(rows["i"], rows["t"])
        self.decoder = Decoder(latent, hidden)
        self.encoder = nn.Sequential(
            nn.Linear(28 * 28 + 2, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * latent),
        )

    def model(
        self, t: Tensor | None = None, i: Tensor | None = None, x: Tensor | None = None
    ) -> None:
        """A mechanism for each site; the noise of the image is `z` and whatever `z` cannot tell."""
        with pyro.plate("digits", 1 if t is None else len(t)):
            t = pyro.sample("t", self.thickness(), obs=t)
            i = pyro.sample("i", self.intensity(t), obs=i)
            with poutine.scale(scale=self.kl_weight):
                z = pyro.sample("z", dist.Normal(t.new_zeros(self.latent), 1.0).to_event(1))
            # With a smaller scale `z` learns to carry the thickness, which an action cannot change.
            pixels = dist.Normal(self.decoder(z, standardise(t, i)), 0.15).to_event(2)
            pyro.sample("x", dist.TransformedDistribution(pixels, GREY_LEVELS), obs=x)

    def guide(self, t: Tensor, i: Tensor, x: Tensor) -> None:
        """Abduct `z` from an image and its parents."""
        features = torch.cat([GREY_LEVELS.inv(x).flatten(-2), standardise(t, i)], -1)
        loc, scale = self.encoder(features).chunk(2, -1)
        with pyro.plate("digits", len(t)), poutine.scale(scale=self.kl_weight):
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 1e-3).to_event(1))


def standardise(t: Tensor, i: Tensor) -> Tensor:
    """The parents of an image, ``[..., 2]``, with mean about 0 and standard deviation about 1."""
    return torch.stack(torch.broadcast_tensors((t - 2.5) / 0.6, (i - 160) / 60), -1)


class Decoder(nn.Module):
    """From `z` to an image; thickness and intensity turn the gains and shifts of its units."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 28 * 28)
        self.film = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 4 * hidden))

    def forward(self, z: Tensor, parents: Tensor) -> Tensor:
        """Map ``[..., latent]`` and ``[..., 2]`` to ``[..., 28, 28]``."""
        gain1, shift1, gain2, shift2 = self.film(parents).chunk(4, -1)
        h = F.silu(self.first(z) * (1 + gain1) + shift1)
        h = F.silu(self.second(h) * (1 + gain2) + shift2)
        return self.last(h).unflatten(-1, (28, 28))


def train(data: Rows, validation: Rows, preset: Preset) -> DigitSCM:
    """Train by SVI; at first with little weight on the prior of `z`, so that `z` gets used."""
    scm = DigitSCM(data, hidden=preset.hidden, latent=preset.latent).to(data["x"].device)
    for weight in (0.1, 1.0):
        scm.kl_weight = weight
        fit(
            scm.model,
            scm.guide,
            loss=TraceMeanField_ELBO(),
            data=data,
            validation=validation,
            epochs=preset.epochs,
            batch_size=128,
            lr=4e-3,
            scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=preset.epochs),
        )
    return scm


# -------------------------------------------------------------------------- 4. learned against true


def likelihoods(model: Model, rows: Rows, *arguments: Tensor) -> dict[str, float]:
    """Mean log-densities of thickness and intensity."""
    seen = poutine.condition(model, {"t": rows["t"], "i": rows["i"]})
    sites: dict[str, Any] = poutine.trace(seen).get_trace(*arguments).nodes
    return {
        "E log p(t)": sites["t"]["fn"].log_prob(rows["t"]).mean().item(),
        "E log p(i | t)": sites["i"]["fn"].log_prob(rows["i"]).mean().item(),
    }


def answers(model: Model, *arguments: Tensor) -> dict[str, float]:
    """A thick pen writes brightly; a pale digit tells of a thin pen; bleaching changes no pen."""
    ask = partial(query, model, num_samples=4000, args=arguments)
    return {
        "E[i | do(t = 3)]": float(ask("i", do={"t": 3.0})),
        "E[t | i = 100]": float(ask("t", given={"i": 100.0})),
        "E[t | do(i = 100)]": float(ask("t", do={"i": 100.0})),
    }


def beside(learned: dict[str, float], true: dict[str, float]) -> Table:
    """Two columns of numbers as a table."""
    return {name: {"learned": learned[name], "truth": true[name]} for name in true}


def questions(rows: Rows) -> dict[str, Action]:
    """What would these digits have looked like?"""
    return {
        "do(t + 1)": {"t": rows["t"] + 1.0},
        "do(t = 1.5)": {"t": 1.5},
        "do(t = 4)": {"t": 4.0},
        "do(i = 100)": {"i": 100.0},
        "do(i = 220)": {"i": 220.0},
        "do(t = 2, i = 200)": {"t": 2.0, "i": 200.0},
    }


def imagine(
    scm: DigitSCM, paths: Tensor, rows: Rows, actions: Sequence[Action]
) -> tuple[Rows, Rows]:
    """All worlds ``[worlds, N, ...]``, world 0 factual: as the model sees them, and as they are."""
    seen = poutine.condition(truth, {"t": rows["t"], "i": rows["i"]})
    learned = CounterfactualPredictive(scm.model, actions, guide=scm.guide)(**rows)
    true = CounterfactualPredictive(seen, actions)(paths)
    return {n: v[0] for n, v in learned.items()}, {n: v[0] for n, v in true.items()}


def evaluate_images(rows: Rows, learned: Rows, true: Rows, gauge: Gauge) -> Table:
    """Errors of counterfactual images.

    The mean absolute error, in grey levels, stands beside those of two cheap answers. Then
    effectiveness: how far the image is off what it should show, and how far the true image is.
    """
    oracles = {"t": lambda w: gauge(w["x"])["t"], "i": lambda w: gauge(w["x"])["i"]}
    table: Table = {}
    for k, (question, action) in enumerate(questions(rows).items(), start=1):
        answer, target = world(learned, k), world(true, k)
        rescaled = rows["x"] * (target["i"] / rows["i"])[:, None, None]
        guesses = {"learned": answer["x"], "unchanged": rows["x"], "rescaled": rescaled}
        row = {name: (x - target["x"]).abs().mean().item() for name, x in guesses.items()}
        for column, images in {"off by": answer, "floor": target}.items():
            errors = effectiveness(always(images), rows, action=action, oracles=oracles)
            row |= {f"{name} {column}": error.mean().item() for name, error in errors.items()}
        table[question] = row
    table["mean"] = {c: sum(r[c] for r in table.values()) / len(table) for c in row}
    return table


def always(answer: Rows) -> Callable[[Rows, Rows], Rows]:
    """A counterfactual function whose answer is known already."""
    return lambda evidence, action: answer


def evaluate_soundness(scm: DigitSCM, rows: Rows) -> dict[str, float]:
    """Change of the image, in grey levels, by doing nothing and by going there and back."""
    model = counterfactual_function(scm.model, guide=scm.guide, arguments=lambda e: [*e.values()])
    null = composition(model, rows, targets=["t", "i"])["x"]
    back = reversibility(model, rows, action={"t": rows["t"] + 1.0})["x"]
    return {
        "composition": null.mean().item(),
        "reversibility of do(t + 1)": back.mean().item(),
    }


def draw_pictures(scm: DigitSCM, paths: Tensor, rows: Rows, out: Path) -> None:
    """The graph, a dose curve, and digits that never were."""
    edges = [("thickness", "intensity"), ("thickness", "image"), ("intensity", "image")]
    plot_graph(edges, intervened=["intensity"], title="do(i)", path=out / "graph.png")

    doses = torch.linspace(1.5, 4.5, 13)
    curves = imagine(scm, paths, rows, [{"t": dose.item()} for dose in doses])
    learned, true = (worlds["x"][1:].mean((-1, -2)).T for worlds in curves)
    outcome = "mean grey level of an image"
    plot_dose_curve(
        doses, learned, truth=true.mean(0), treatment="t", outcome=outcome, path=out / "dose.png"
    )

    shown = [0, 3, 14]
    few = {name: value[shown] for name, value in rows.items()}
    asked = {name: questions(few)[name] for name in ("do(t = 1.5)", "do(t = 4)", "do(i = 220)")}
    worlds = imagine(scm, paths[shown], few, list(asked.values()))
    panels = [{name: w["x"][k] for k, name in enumerate(asked, start=1)} for w in worlds]
    plot_image_grid(few["x"], panels[0], truth=panels[1], path=out / "quickstart.png")


def evaluate(scm: DigitSCM, test: Tensor, gauge: Gauge, out: Path) -> dict[str, Table]:
    """All tables and pictures, on digits that the model has not seen, each written four times."""
    paths = test.repeat(4, 1, 1)
    rows = sample_digits(truth, paths)
    learned, true = imagine(scm, paths, rows, [*questions(rows).values()])
    draw_pictures(scm, test, {name: value[: len(test)] for name, value in rows.items()}, out)
    soundness = evaluate_soundness(scm, rows)
    return {
        "scalars": beside(
            likelihoods(scm.model, rows, *rows.values()) | answers(scm.model),
            likelihoods(truth, rows, paths) | answers(truth, paths[:1]),
        ),
        "images": evaluate_images(rows, learned, true, gauge),
        "soundness": beside(soundness, dict.fromkeys(soundness, 0.0)),
    }


def main(args: argparse.Namespace) -> dict[str, Table]:
    """Run both parts; print, save and return the tables, and save the pictures."""
    pyro.set_rng_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    preset = PRESETS[args.preset]
    results = {"textbook": textbook(args.out)}
    show("Score y of a student at homework h = 2", results["textbook"])

    paths = pen_paths(load_digits().images[: preset.digits]).to(args.device)
    paths = paths[torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))]
    test, validation, training = paths.tensor_split([len(paths) // 6, len(paths) // 4])
    data = sample_digits(truth, training.repeat(preset.pens, 1, 1))
    held_out = sample_digits(truth, validation.repeat(2, 1, 1))
    scm = train(data, held_out, preset)

    with torch.no_grad():
        results |= evaluate(scm, test, Gauge(training), args.out)
    show("Thickness and intensity", results["scalars"])
    show("Counterfactual images of unseen digits", results["images"])
    show("Soundness", results["soundness"])
    (args.out / "metrics.json").write_text(json.dumps(results, indent=2))
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/quickstart"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the matrices are small: a second thread would mostly wait
    main(parse())
