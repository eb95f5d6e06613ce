"""The example scripts at smoke size: their numbers beside the truth, and the files they write."""

import contextlib
import importlib.util
import io
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_causal import CounterfactualPredictive
from pyro_causal.datasets import load_morphomnist

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = {
    "quickstart": {"textbook.png", "graph.png", "dose.png", "quickstart.png"},
    "custom_guide": {"dose.png"},
    "deep_scm": {
        "counterfactuals.png",
        "densities.png",
        "rungs.png",
        "seen_and_set.png",
        "trajectory_b.png",
        "trajectory_v.png",
    },
}
KILOBYTES = {"deep_scm": 500}  # of a picture: those of heads are large
OTHER_FLAGS = {"deep_scm": {"experiment": "morphomnist", "model": "full", "data": None}}
NO_DATA = {"deep_scm": ["--experiment", "brain"]}  # what a script does without data files
every_script = pytest.mark.parametrize("name", sorted(PICTURES))


@cache
def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Run:
    """What a script returned, printed and wrote."""

    results: dict[str, dict[str, dict[str, float]]]
    printed: str
    out: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    @cache
    def once(name: str) -> Run:
        script, out = load(name), tmp_path_factory.mktemp(name) / "new" / "folder"
        flags = ["--preset", "smoke", "--seed", "0", "--out", str(out), *NO_DATA.get(name, [])]
        arguments = script.parse(flags)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            results = script.main(arguments)
        return Run(results, printed.getvalue(), out)

    return once


def test_every_script_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PICTURES)


@every_script
def test_a_script_has_the_flags_of_all_scripts(name):
    arguments = load(name).parse([])
    assert vars(arguments) == {
        "preset": "cpu",
        "seed": 0,
        "device": "cpu",
        "out": Path("out") / name,
        **OTHER_FLAGS.get(name, {}),
    }
    assert set(load(name).PRESETS) == {"smoke", "cpu", "paper"}


@every_script
def test_a_script_writes_what_it_returns_and_its_pictures(name, run):
    done = run(name)
    assert json.loads((done.out / "metrics.json").read_text()) == done.results
    assert {path.name for path in done.out.glob("*.png")} == PICTURES[name]
    for picture in done.out.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 1000 * KILOBYTES.get(name, 150)


@every_script
def test_a_script_prints_every_number_that_it_returns(name, run):
    done = run(name)
    for table in done.results.values():
        for row, columns in table.items():
            lines = [line for line in done.printed.splitlines() if line.startswith(f"  {row} ")]
            numbers = [f"{value:.3f}" for value in columns.values()]
            assert numbers in [line.split()[-len(columns) :] for line in lines]


# ------------------------------------------------------------------------------------- quickstart


def test_the_textbook_answers_on_three_rungs(run):
    answers = {rung: row["answer"] for rung, row in run("quickstart").results["textbook"].items()}
    assert answers["counterfactual"] == pytest.approx(1.90, abs=1e-4)
    # Encouragement given homework 2 is 0.5 * 2 / 1.25 = 0.8 on average.
    assert answers["association"] == pytest.approx(0.7 * 0.8 + 0.4 * 2, abs=0.05)
    assert answers["intervention"] == pytest.approx(0.4 * 2, abs=0.05)


def test_the_flows_learn_thickness_and_intensity(run):
    table = run("quickstart").results["scalars"]
    for name in ("E log p(t)", "E log p(i | t)"):
        assert table[name]["learned"] == pytest.approx(table[name]["truth"], abs=0.03)
    assert table["E log p(t)"]["truth"] == pytest.approx(
        -dist.Gamma(6.0, 4.0).entropy().item(), abs=0.15
    )
    assert table["E[i | do(t = 3)]"]["learned"] == pytest.approx(201.6, abs=4)
    assert table["E[t | do(i = 100)]"]["learned"] == pytest.approx(2.5, abs=0.1)
    assert table["E[t | i = 100]"]["learned"] == pytest.approx(1.9, abs=0.1)


def test_counterfactual_images_beat_the_cheap_answers(run):
    table = run("quickstart").results["images"]
    assert table["mean"]["learned"] < table["mean"]["rescaled"] < table["mean"]["unchanged"]
    for question in ("do(t + 1)", "do(t = 1.5)", "do(t = 4)"):
        assert table[question]["learned"] < 0.5 * table[question]["unchanged"]
    for question in ("do(t + 1)", "do(t = 4)"):
        assert table[question]["learned"] < 0.8 * table[question]["rescaled"]
    for question in ("do(i = 100)", "do(i = 220)"):
        assert table[question]["learned"] < 0.7 * table[question]["unchanged"]
        assert table[question]["rescaled"] < 1e-3  # which is the true mechanism


def test_counterfactual_images_show_what_was_done(run):
    table = run("quickstart").results["images"]
    assert table["mean"]["t floor"] < 0.2
    assert table["mean"]["i floor"] < 5
    assert table["mean"]["t off by"] < 0.5
    assert table["mean"]["i off by"] < 35


def test_doing_nothing_changes_nothing_and_there_is_a_way_back(run):
    table = run("quickstart").results["soundness"]
    assert table["composition"]["learned"] < 1e-3
    assert 0 < table["reversibility of do(t + 1)"]["learned"] < 2


@pytest.fixture(scope="module")
def paths():
    from sklearn.datasets import load_digits

    return load("quickstart").pen_paths(load_digits().images[:50])


def test_the_true_worlds_share_the_path_of_the_pen(paths):
    script = load("quickstart")
    rows = script.sample_digits(script.truth, paths)
    seen = poutine.condition(script.truth, {"t": rows["t"], "i": rows["i"]})
    actions = [{"t": rows["t"]}, {"i": 2.0 * rows["i"]}, {"t": rows["t"] + 1.0}]
    draws = CounterfactualPredictive(seen, actions)(paths)
    same, brighter, thicker = draws["x"][0, 1:]
    torch.testing.assert_close(draws["x"][0, 0], rows["x"])
    torch.testing.assert_close(same, rows["x"])
    torch.testing.assert_close(brighter, 2.0 * rows["x"])
    assert (thicker > rows["x"]).all()
    noise = ((draws["i"] - 64) / 191).logit() - 2 * draws["t"]
    torch.testing.assert_close(noise[0, 3], noise[0, 0], atol=1e-3, rtol=0)


def test_the_gauge_reads_true_images(paths):
    script = load("quickstart")
    gauge = script.Gauge(paths.repeat(10, 1, 1))
    rows = script.sample_digits(script.truth, paths)
    reading = gauge(rows["x"])
    assert (reading["t"] - rows["t"]).abs().mean() < 0.2
    assert (reading["i"] - rows["i"]).abs().mean() < 4


def test_thinning_keeps_the_shape():
    y, x = np.mgrid[:40, :40] - 20
    radius = np.hypot(y, x)
    line = np.zeros((40, 40), dtype=bool)
    line[20, 5:35] = True
    ring, kept = load("quickstart").thin(np.stack([(radius > 6) & (radius < 14), line]))
    assert np.abs(radius[ring] - 10).max() < 1.5
    assert 50 < ring.sum() < 80
    assert (kept == line).all()


def test_a_pen_path_passes_through_the_ink(paths):
    from sklearn.datasets import load_digits

    assert paths.shape == (50, 28, 28)
    assert paths.flatten(1).amin(1).max() < 0.5
    ink = torch.as_tensor(load_digits().images[:50], dtype=torch.float32) / 16
    ink = torch.nn.functional.pad(torch.nn.functional.interpolate(ink[:, None], (20, 20)), [4] * 4)
    assert ink[:, 0][paths < 0.5].mean() > 0.8


# ----------------------------------------------------------------------------------- custom_guide


def test_the_guide_answers_for_one_patient(run):
    table = run("custom_guide").results["one"]
    assert table["guide"]["truth"] == pytest.approx(2 / 3)
    for source, tolerance in (("guide", 0.1), ("importance weighting", 0.03)):
        row = table[source]
        assert row["mean"] == pytest.approx(row["truth"], abs=tolerance)
        assert row["sd"] == pytest.approx(row["true sd"], abs=tolerance / 2)


def test_the_guide_answers_for_all_patients(run):
    table = {name: row["answer"] for name, row in run("custom_guide").results["all"].items()}
    assert table["average effect of one more"] == pytest.approx(-1.0, abs=0.1)
    assert table["slope of y on x"] == pytest.approx(0.5, abs=0.2)
    assert table["error of each mean"] < 0.12
    assert table["error of each sd"] < 0.06


@pytest.mark.parametrize("x, y", [(-1.0, 2.0), (0.3, 0.0), (2.0, -1.0)])
def test_the_closed_form_is_that_of_the_model(x, y):
    script = load("custom_guide")
    z = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)  # every frailty there might be
    patient = torch.full_like(z, x), torch.full_like(z, y)
    model = poutine.condition(script.model, {"z": z})
    trace = poutine.trace(model).get_trace(*patient)
    trace.compute_log_prob()
    weights = sum(trace.nodes[name]["log_prob"] for name in "zxy").softmax(0)
    there = CounterfactualPredictive(model, [{"x": 1.5}])(*patient)["y"][0, 1]
    mean = (weights * there).sum()
    expected = script.closed_form(torch.tensor(x), torch.tensor(y), 1.5)
    assert mean.item() == pytest.approx(expected[0].item(), abs=1e-5)
    sd = (weights * (there - mean) ** 2).sum().sqrt()
    assert sd.item() == pytest.approx(expected[1].item(), abs=1e-5)


# --------------------------------------------------------------------------------------- deep_scm


def test_the_head_is_scored_beside_the_truth(run):
    results = run("deep_scm").results
    assert {name: set(row) for name, row in results["scalars"].items()} == {
        f"log p({name}|.)": {"model", "truth"} for name in "sabv"
    }
    limits = {"s": -0.6923, "a": -3.2945, "b": -5.8368, "v": -3.8863}
    for name, limit in limits.items():
        assert results["scalars"][f"log p({name}|.)"]["truth"] == pytest.approx(limit, abs=0.5)
    table = results["counterfactuals"]
    assert len(table) == 9  # eight questions and their mean
    assert results["composition"]["null intervention"]["error"] < 1e-2
    assert table["do(b = 1600)"]["unchanged"] > 3 * table["do(a = 45)"]["unchanged"]
    assert table["mean"]["b floor"] < 8
    assert table["mean"]["v floor"] < 3
    for row in results["missing"].values():
        assert 0 <= row["coverage"] <= 1 and row["width"] > 0


def score_true_images(monkeypatch, shift):
    """What the script would report of the true images, or of those of the wrong worlds."""
    script = load("deep_scm")
    experiment, preset = script.Brain(), script.PRESETS["smoke"]
    rows = experiment.load(preset, None)
    scm = experiment.build("full", preset, rows["train"]).eval()
    units = {name: value[: preset.units] for name, value in rows["test"].items()}
    questions = [*experiment.queries(units).values()]
    drawn = CounterfactualPredictive(experiment.truth(units), questions)()
    wrong = {name: value.roll(shift, 1) for name, value in drawn.items()}
    monkeypatch.setattr(script, "answer", lambda *_: wrong)
    true = {name: value[0] for name, value in drawn.items()}
    with torch.no_grad():
        return script.evaluate_counterfactuals(experiment, scm, units, true, 1)


def test_true_images_would_have_no_error(monkeypatch):
    results = score_true_images(monkeypatch, 0)
    assert len(results["counterfactuals"]) == 9  # eight questions and their mean
    for row in results["counterfactuals"].values():
        assert row["error"] == 0 < row["unchanged"]
        assert row["v off by"] == row["v floor"] and row["b off by"] == row["b floor"]
    changes = results["changes"]
    for row in changes.values():
        assert row["v"] == row["v truly"] and row["b"] == row["b truly"]
    assert changes["do(v = 110)"]["v truly"] > 40 > 10 > abs(changes["do(v = 110)"]["b truly"])
    assert changes["do(b = 800)"]["b truly"] < -150


def test_images_of_other_worlds_would_have_an_error(monkeypatch):
    table = score_true_images(monkeypatch, 1)["counterfactuals"]
    assert all(row["error"] > 0.5 for row in table.values())


def test_rare_parents_are_seen_more_often():
    script = load("deep_scm")
    torch.manual_seed(0)
    z = torch.special.ndtri((torch.arange(100_000.0) + 0.5) / 100_000)  # symmetric
    rows = {"v": (3.4 + 0.4 * z).exp(), "name": torch.arange(100_000)}
    batches = script.SpreadOut(rows, ["v"], 1024)
    once, again = ([batch["data"] for batch in batches] for _ in range(2))
    assert [len(batch["v"]) for batch in once] == [1024] * 97 + [672]
    assert len(batches) == len(once) == 98
    assert not torch.equal(once[0]["name"], again[0]["name"])  # each pass draws anew
    drawn = {name: torch.cat([batch[name] for batch in once]) for name in rows}
    assert torch.equal(drawn["v"], rows["v"][drawn["name"]])  # rows stay together
    weights = (script.SPREAD / 2 * z.square()).softmax(0)
    assert drawn["v"].log().mean().item() == pytest.approx(3.4, abs=0.02)
    spread = (weights * z.square()).sum().sqrt().item()
    assert spread > 1.6
    assert (drawn["v"].log().std() / 0.4).item() == pytest.approx(spread, rel=0.02)


def test_only_the_image_is_trained_on_them(monkeypatch, tmp_path):
    script = load("deep_scm")
    experiment, preset = script.Brain(), script.PRESETS["smoke"]
    rows = experiment.load(preset, None)
    scm = experiment.build("full", preset, rows["train"])
    seen = {}
    monkeypatch.setattr(
        script, "fit_program", lambda name, program, **o: seen.update({name: (program, o)})
    )
    script.train(experiment, scm, rows, preset, tmp_path)
    for name, (_, options) in seen.items():
        of_the_image = name in ("parents", "image")
        if of_the_image:
            assert isinstance(options["data"], script.SpreadOut)
        else:
            assert torch.equal(options["data"]["data"]["v"], rows["train"]["v"])
        if name != "scalars":
            assert torch.equal(options["validation"]["data"]["v"], rows["validation"]["v"])
        assert options.get("hide", ()) == (experiment.scalars if of_the_image else ())
    assert [*seen] == ["scalars", "parents", "image", "completion"]
    assert seen["parents"][1]["loss"].beta > 10 * seen["image"][1]["loss"].beta
    lasts = seen["parents"][1]["epochs"] + seen["image"][1]["epochs"]
    assert lasts == round(experiment.longer * preset.epochs)
    scalars = seen["scalars"][0]
    assert all(scalars.mechanisms[n] is scm.mechanisms[n] for n in experiment.scalars)


@pytest.mark.parametrize("other", [{"seed": "1"}, {"preset": "cpu"}, {"model": "independent"}])
def test_a_folder_of_another_run(run, other):
    script = load("deep_scm")
    flags = {"preset": "smoke", "seed": "0", "out": str(run("deep_scm").out)} | other
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    with pytest.raises(ValueError, match=r"holds another run: .* Give another --out"):
        script.main(script.parse([*words, *NO_DATA["deep_scm"]]))


def test_the_saved_model_is_taken_up_again(run):
    from pyro_causal.methods import DeepSCM

    done = run("deep_scm")
    scm = DeepSCM.load(done.out / "deep_scm.pt")
    assert scm.order == ("a", "s", "b", "v", "x")
    assert not scm.training
    script = load("deep_scm")
    flags = ["--preset", "smoke", "--seed", "0", "--out", str(done.out), *NO_DATA["deep_scm"]]
    before = (done.out / "deep_scm.pt").stat().st_mtime_ns
    with contextlib.redirect_stdout(io.StringIO()):
        again = script.main(script.parse(flags))
    assert (done.out / "deep_scm.pt").stat().st_mtime_ns == before
    assert again == done.results


@pytest.mark.parametrize(
    "model, edges",
    [
        ("independent", {}),
        ("conditional", {"x": ("t", "i")}),
        ("full", {"i": ("t",), "x": ("t", "i")}),
    ],
)
def test_the_three_models_differ_in_their_edges(model, edges):
    script = load("deep_scm")
    rows = {"t": 1 + 3 * torch.rand(20), "i": 80 + 160 * torch.rand(20)}
    rows["x"] = torch.randint(0, 256, (20, 1, 28, 28)).float()
    scm = script.MorphoMNIST().build(model, script.PRESETS["smoke"], rows)
    assert {name: p for name, p in scm.parents.items() if p} == edges


def test_digits_are_scored_beside_the_truth(data_path, tmp_path):
    script = load("deep_scm")
    data = data_path("morphomnist/t10k-morpho.csv").parents[1]
    flags = ["--preset", "smoke", "--out", str(tmp_path), "--data", str(data)]
    with contextlib.redirect_stdout(io.StringIO()):
        results = script.main(script.parse(flags))
    tested = load_morphomnist("test", path=data)["t"][: script.PRESETS["smoke"].tested]
    expected = dist.Gamma(10.0, 5.0).log_prob(tested - 0.5).mean().item()
    assert results["scalars"]["log p(t|.)"]["truth"] == pytest.approx(expected, abs=1e-4)
    assert results["scalars"]["log p(i|.)"]["truth"] == pytest.approx(-4.1928, abs=0.2)
    table = results["counterfactuals"]
    assert results["composition"]["null intervention"]["error"] < 1e-2
    assert table["do(i = 100)"]["rescaled"] < 1 < table["do(i = 100)"]["unchanged"]
    assert table["do(t = 4)"]["rescaled"] > 10
    assert (tmp_path / "deep_scm.pt").exists()
