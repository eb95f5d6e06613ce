"""Your own guide under the causal handlers: a hidden confounder, abducted by amortised inference.

**Claim.** A guide written by hand and trained by SVI answers unit-level questions wherever a guide
can go: in `query`, in `CounterfactualPredictive` and in the effects computed from it. Frailty `z`
is never seen. The frail get higher doses `x`, suffer more severe symptoms `y`, and tolerate the
drug less::

    z ~ N(0, 1)    x = z + e_x,  e_x ~ N(0, 1)    y = 3 z + (z - 1) x + e_y,  e_y ~ N(0, 2²)

One unit more of the drug changes symptoms by z - 1, on average by -1; but regression of y on x says
+0.5. What the symptoms of one patient would have been at dose d depends on how frail the patient
is. Given x, all is linear in z, so with m and v the mean and the variance of z given x and y, the
answer has a closed form::

    y at dose d  ~  N(y + (d - x) (m - 1), (d - x)^2 v)

**References.** Pearl 2009, *Causality*, theorem 7.1.7 (abduction, action, prediction); Kingma &
Welling 2014, *Auto-encoding variational Bayes*, https://arxiv.org/abs/1312.6114 (amortisation).

**Expected.** `--preset cpu` takes ten seconds on one core. Over 1000 patients, the guide's means
are off the closed form by 0.04, its standard deviations by 0.02; the average effect is -1.00.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_causal import CounterfactualPredictive, average_effect, fit, query
from pyro_causal.plots import plot_dose_curve

PRESETS = {"smoke": (1000, 40), "cpu": (5000, 60), "paper": (50_000, 100)}  # patients, epochs
PATIENT = {"x": 1.0, "y": 0.0}
Rows = dict[str, Tensor]
Table = dict[str, dict[str, float]]


def model(x: Tensor, y: Tensor) -> None:
    """Patients with doses and symptoms ``[N]``."""
    with pyro.plate("patients", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        x = pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(3 * z + (z - 1) * x, 2.0), obs=y)


class Guide(PyroModule):
    """A network from dose and outcome to a Gaussian over frailty."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Draw the one site that the model leaves open, under its name."""
        loc, scale = self.net(torch.stack([x, y], -1)).unbind(-1)
        with pyro.plate("patients", len(x)):
            pyro.sample("z", dist.Normal(loc, F.softplus(scale)))


def closed_form(x: Tensor, y: Tensor, dose: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the symptoms at another dose."""
    # Three measurements of z: 0 with variance 1, x with variance 1, y + x = (3 + x) z + e_y.
    variance = 1 / (1 + 1 + (3 + x) ** 2 / 4)
    mean = variance * (x + (3 + x) * (y + x) / 4)
    return y + (dose - x) * (mean - 1), (dose - x).abs() * variance.sqrt()


def simulate(patients: int, device: str) -> Rows:
    """Doses and symptoms ``[N]`` drawn from the model."""
    shape = torch.empty(patients, device=device)
    draw = Predictive(poutine.uncondition(model), num_samples=1, return_sites=("x", "y"))
    return {name: value[0] for name, value in draw(shape, shape).items()}


def ask_about_one(guide: Guide, patient: Rows) -> Table:
    """The symptoms of one patient without the drug: by the guide, and by weighing prior draws."""
    ask = partial(query, model, "y", do={"x": 0.0}, num_samples=20_000, kwargs=patient)
    mean, sd = (number.item() for number in closed_form(**patient, dose=0.0))
    return {
        source: {"mean": answer.mean.item(), "truth": mean, "sd": answer.std.item(), "true sd": sd}
        for source, answer in {"guide": ask(guide=guide), "importance weighting": ask()}.items()
    }


def ask_about_all(guide: Guide, data: Rows) -> Table:
    """All patients at doses 0 and 1, in one run: averages, and one by one."""
    worlds = CounterfactualPredictive(model, [{"x": 0.0}, {"x": 1.0}], guide=guide, num_samples=500)
    draws = worlds(**data)
    at_dose_1 = draws["y"][:, 2]
    mean, sd = closed_form(**data, dose=1.0)
    x, y = data["x"] - data["x"].mean(), data["y"]
    rows = {
        "average effect of one more": (average_effect(draws, "y"), -1.0),
        "slope of y on x": ((x * y).sum() / (x * x).sum(), 0.5),
        "error of each mean": ((at_dose_1.mean(0) - mean).abs().mean(), 0.0),
        "error of each sd": ((at_dose_1.std(0) - sd).abs().mean(), 0.0),
    }
    return {name: {"answer": answer.item(), "truth": true} for name, (answer, true) in rows.items()}


def draw_curve(guide: Guide, patient: Rows, path: Path) -> None:
    """One patient's symptoms at all doses, beside the closed form."""
    doses = torch.linspace(-2.0, 3.0, 21)
    actions = [{"x": dose.item()} for dose in doses]
    draws = CounterfactualPredictive(model, actions, guide=guide, num_samples=4000)(**patient)
    plot_dose_curve(
        doses,
        draws["y"][:, 1:, 0],
        truth=closed_form(**patient, dose=doses.to(patient["x"]))[0],
        treatment="dose",
        outcome="symptoms of this patient",
        path=path,
    )


def show(title: str, table: Table) -> None:
    """Print a table of named rows and columns."""
    columns = next(iter(table.values()))
    print(f"\n{title}\n{'':30}" + "".join(f"{column:>9}" for column in columns))
    for name, row in table.items():
        print(f"  {name:<28}" + "".join(f"{value:>9.3f}" for value in row.values()))


def main(args: argparse.Namespace) -> dict[str, Table]:
    """Train the guide, ask, and compare with the closed form."""
    pyro.set_rng_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    patients, epochs = PRESETS[args.preset]
    data, test = simulate(patients, args.device), simulate(1000, args.device)
    guide = Guide().to(args.device)
    decay = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    fit(
        model,
        guide,
        loss=Trace_ELBO(),
        data=data,
        epochs=epochs,
        batch_size=100,
        lr=0.01,
        scheduler=decay,
    )

    patient = {name: torch.full((1,), value).to(args.device) for name, value in PATIENT.items()}
    results = {"one": ask_about_one(guide, patient), "all": ask_about_all(guide, test)}
    draw_curve(guide, patient, args.out / "dose.png")
    show("This patient's symptoms at dose 0", results["one"])
    show("All patients, at doses 0 and 1", results["all"])
    (args.out / "metrics.json").write_text(json.dumps(results, indent=2))
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/custom_guide"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse())
