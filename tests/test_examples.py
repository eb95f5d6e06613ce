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
from pyro_causal.datasets import (
    draw_interventional_scm,
    load_morphomnist,
    sample_interventional_table,
)

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
    "latent_interventions": {"graph.png", "regimes.png"},
}
KILOBYTES = {"deep_scm": 500}  # of a picture: those of heads are large
OTHER_FLAGS = {
    "deep_scm": {"experiment": "morphomnist", "model": "full", "data": None},
    "latent_interventions": {
        "experiment": None,
        "variant": "latent",
        "density": None,
        "intervention": None,
        "edges_per_node": None,
        "nodes": None,
        "regimes": None,
        "targets_per_regime": 1,
        "labelled": None,
        "kappa": None,
        "truncation": None,
        "edge_price": None,
        "reps": None,
        "data": None,
    },
}
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


# --------------------------------------------------------------------------- latent_interventions


def latent(out, *words):
    """What the script returns, without what it prints."""
    script = load("latent_interventions")
    with contextlib.redirect_stdout(io.StringIO()):
        return script.main(script.parse(["--preset", "smoke", "--out", str(out), *words]))


def findings(out):
    """The arrays that it writes, checked for what is true of all."""
    with np.load(out / "graph.npz") as file:
        found = {name: file[name] for name in file.files}
    assert {*found} == {"edge_probability", "adjacency", "regime", "targets"}
    d = len(found["adjacency"])
    assert found["edge_probability"].shape == found["adjacency"].shape == (d, d)
    assert found["edge_probability"].dtype == np.float32
    assert all(found[name].dtype == np.int64 for name in ("adjacency", "regime", "targets"))
    assert (found["edge_probability"] >= 0).all() and (found["edge_probability"] <= 1).all()
    for name in ("adjacency", "targets"):
        assert np.isin(found[name], (0, 1)).all()
    assert not np.linalg.matrix_power(found["adjacency"], d).any()  # no path is that long
    assert found["targets"].shape[1] == d and not found["targets"][0].any()
    assert found["regime"].min() >= -1 and found["regime"].max() < len(found["targets"])
    return found


@pytest.fixture
def quick(monkeypatch):
    """Few rows of three variables, few steps."""
    script = load("latent_interventions")
    preset = script.Preset(nodes=3, rows=400, laws=2, end=1)
    monkeypatch.setitem(script.PRESETS, "smoke", preset)


@pytest.fixture
def table(quick):
    """Rows with their truth, as arrays."""
    torch.manual_seed(1)
    drawn = sample_interventional_table(draw_interventional_scm(3), 400)
    return {name: drawn[name].numpy() for name in ("x", "z", "targets")}


def test_the_graph_of_a_mixture_is_found(run):
    done = run("latent_interventions")
    table = done.results["graph"]
    assert table["true"]["edges"] == table["without edges"]["HD"] > 3
    assert table["true"]["HD"] == 0 == table["without edges"]["F1"]
    assert table["found"]["HD"] <= 1
    assert done.results["regimes"]["found"]["ARI"] > 0.5
    found = findings(done.out)
    assert found["adjacency"].sum() == table["found"]["edges"]
    assert found["regime"].shape == (load("latent_interventions").PRESETS["smoke"].rows,)
    sizes = np.bincount(found["regime"], minlength=len(found["targets"]))
    assert (sizes[1:] > 0).all()  # components without rows are left out


def test_the_trained_mixture_is_saved(run):
    from pyro_causal.methods import LatentInterventions

    done = run("latent_interventions")
    method = LatentInterventions.load(done.out / "latent_interventions.pt")
    assert np.array_equal(method.adjacency, findings(done.out)["adjacency"])


def test_a_finished_search_is_not_repeated(run, monkeypatch):
    done = run("latent_interventions")
    monkeypatch.setattr(load("latent_interventions"), "discover", None)
    assert latent(done.out) == done.results


def test_mechanisms_are_trained_in_the_regimes_of_the_search_first(quick, monkeypatch, tmp_path):
    script, phases = load("latent_interventions"), []

    def seen(model, guide, *, loss, data, epochs, optim, checkpoint, **_):
        assert not guide.factors["graph"].logits.requires_grad  # as the search has found it
        assert not hasattr(loss, "constraint")
        soft = "z" in data and data["z"].is_floating_point()
        phases.append((checkpoint.stem, soft, epochs))
        return optim.keywords["lr"]

    rates = []
    monkeypatch.setattr(script, "fit", lambda *a, **k: rates.append(seen(*a, **k)))
    preset = script.PRESETS["smoke"]._replace(laws=3, end=2)
    monkeypatch.setitem(script.PRESETS, "smoke", preset)
    latent(tmp_path)
    passes = phases[0][-1] // 3
    assert phases == [
        ("laws", True, 3 * passes),
        ("end", False, 2 * passes),
    ]
    assert rates[0] == pytest.approx(10 * rates[1])


@pytest.mark.parametrize("other", [["--seed", "1"], ["--variant", "known"], ["--density", "flow"]])
def test_a_folder_of_another_search(run, other):
    with pytest.raises(ValueError, match=r"holds another run: .* Give another --out"):
        latent(run("latent_interventions").out, *other)


@pytest.mark.parametrize("variant", ["latent", "unknown", "known", "observational", "semi"])
def test_variants_of_what_is_seen(variant, quick, tmp_path):
    latent(tmp_path / "simulated", "--variant", variant)
    found = findings(tmp_path / "simulated")
    assert found["regime"].shape == (400,)
    if variant == "observational":
        assert found["targets"].shape == (1, 3) and (found["regime"] == 0).all()


@pytest.mark.parametrize("variant", ["latent", "unknown", "known", "semi"])
@pytest.mark.parametrize("known", [0, 1])
def test_labels_of_hardly_any_rows(variant, known, table, tmp_path):
    """Targets that are given keep their order, though no row tells which is which."""
    z = np.full(len(table["x"]), -1)
    z[:known] = table["z"][:known]
    np.savez(tmp_path / "file.npz", **(table | {"z": z}))
    latent(tmp_path / "out", "--data", str(tmp_path / "file.npz"), "--variant", variant)
    found = findings(tmp_path / "out")
    if variant == "known":
        assert np.array_equal(found["targets"], table["targets"])
        assert (found["regime"] == table["z"]).mean() > 0.7  # mechanisms are hardly trained here


def test_a_regime_of_which_no_row_has_its_label(table, tmp_path):
    z = np.where((table["z"] == 1) | (np.arange(len(table["z"])) % 3 > 0), -1, table["z"])
    assert sorted({*z.tolist()}) == [-1, 0, 2, 3]
    np.savez(tmp_path / "file.npz", x=table["x"], z=z)
    latent(tmp_path / "out", "--data", str(tmp_path / "file.npz"), "--variant", "semi")
    found = findings(tmp_path / "out")
    assert np.array_equal(found["regime"][z >= 0], z[z >= 0]) and not found["targets"][0].any()


def test_what_a_label_counts_for(table, tmp_path, monkeypatch):
    weights, script = [], load("latent_interventions")
    own = script.LatentInterventions.loss

    def loss(self, **options):
        weights.append(options["kappa"])
        return own(self, **options)

    monkeypatch.setattr(script.LatentInterventions, "loss", loss)
    np.savez(tmp_path / "file.npz", **table)
    flags = "--data", str(tmp_path / "file.npz"), "--variant", "semi"
    latent(tmp_path / "out", *flags, "--kappa", "0.1")
    latent(tmp_path / "other", *flags)
    assert weights == [0.1, 0.1, 1.0, 1.0]


@pytest.mark.parametrize("variant", ["latent", "semi"])
def test_how_many_regimes_there_may_be(variant, table):
    script = load("latent_interventions")
    rows = {name: torch.from_numpy(array) for name, array in table.items()}
    for flags, most in (("", 16), (" --truncation 20", 20)):
        seen = script.observe(rows, script.parse(f"--variant {variant}{flags}".split()))
        assert seen.components == most
    few = script.parse(["--variant", "semi", "--truncation", "2"])
    assert script.observe(rows, few).components == 4  # labels tell of as many


def test_labels_and_targets_keep_their_numbers(table, tmp_path):
    np.savez(tmp_path / "file.npz", **table)
    flags = "--data", str(tmp_path / "file.npz"), "--variant"
    assert set(latent(tmp_path / "known", *flags, "known")["graph"]) == {"found", "without edges"}
    found = findings(tmp_path / "known")
    assert np.array_equal(found["regime"], table["z"])
    assert np.array_equal(found["targets"], table["targets"])
    latent(tmp_path / "unknown", *flags, "unknown")
    assert np.array_equal(findings(tmp_path / "unknown")["regime"], table["z"])
    latent(tmp_path / "observational", *flags, "observational")
    found = findings(tmp_path / "observational")
    assert np.array_equal(found["regime"], np.where(table["z"] == 0, 0, -1))
    some = latent(tmp_path / "semi", *flags, "semi", "--labelled", "0.5")
    assert "ARI" in some["regimes"]["found"]  # of the rows whose label was hidden


@pytest.mark.parametrize("variant", ["unknown", "known"])
def test_rows_of_one_regime(variant, table, tmp_path):
    one = table["z"] == 0
    arrays = {"x": np.tile(table["x"][one], (3, 1)), "z": np.zeros(3 * one.sum(), dtype=int)}
    arrays["x"] += 0.01 * np.random.default_rng(0).normal(size=arrays["x"].shape)
    np.savez(tmp_path / "file.npz", **arrays, targets=np.zeros((1, 3), dtype=int))
    latent(tmp_path / "out", "--data", str(tmp_path / "file.npz"), "--variant", variant)
    found = findings(tmp_path / "out")
    assert (found["regime"] == 0).all() and found["targets"].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("z", "targets", "expected", "numbers"),
    [
        # Without a label they are numbered as if there were none to be had.
        ([-1] * 5, [[1, 0], [0, 0], [0, 1]], [[0, 0], [1, 0]], [1, 0, 1, 1, 0]),
        # No row is labelled 0, and what has that number is no observational regime.
        (
            [1, -1, -1, -1, 1],
            [[1, 0], [0, 1], [1, 1]],
            [[0, 0], [0, 1], [0, 0], [1, 0]],
            [3, 1, 3, 3, 1],
        ),
        # A label of 0 is; nobody has component 2.
        ([0, 1, 0, 0, 1], [[0, 0], [0, 1], [1, 1]], [[0, 0], [0, 1]], [0, 1, 0, 0, 1]),
    ],
)
def test_numbers_when_some_labels_are_seen(z, targets, expected, numbers):
    script = load("latent_interventions")
    found = torch.tensor([0, 1, 0, 0, 1])

    class Method:
        rows, edge_probability, adjacency = torch.tensor(5), torch.zeros(2, 2), torch.zeros(2, 2)

        def __init__(self):
            self.targets = torch.tensor(targets)

        def responsibilities(self, x, z):
            return torch.nn.functional.one_hot(found, 3)

    seen = script.Seen(torch.zeros(5, 2), torch.tensor(z), None, torch.ones(5).bool(), 3)
    kept = script.findings(Method(), seen)
    assert kept["regime"].tolist() == numbers
    assert kept["targets"].tolist() == expected


def test_a_given_share_of_labels_is_seen():
    script = load("latent_interventions")
    rows = {"x": torch.randn(200, 3), "z": torch.arange(200) % 4}
    args = script.parse(["--variant", "semi", "--labelled", "0.25"])
    seen = script.observe(rows, args)
    assert (seen.z >= 0).sum() == 50 and seen.components == script.TRUNCATION
    assert ((seen.z == -1) | (seen.z == rows["z"])).all()
    rows["z"] = rows["z"].where(torch.arange(200) < 150, -1)
    args = script.parse(["--variant", "semi"])
    assert torch.equal(script.observe(rows, args).z, rows["z"])  # some are hidden already


@pytest.mark.parametrize(
    "targets, regime, expected, numbers",
    [
        # The larger of two components without targets comes first; one has no rows.
        ([[1, 0], [0, 0], [0, 0], [1, 1]], [0, 0, 0, 1, 2, 2], [[0, 0], [1, 0], [0, 0]], (1, 2, 0)),
        # No component is observational: there is a row for that, but rows there are none.
        ([[1, 1], [1, 0], [0, 1]], [0, 0, 0, 1, 1, 2], [[0, 0], [1, 0], [1, 1], [0, 1]], (2, 1, 3)),
    ],
)
def test_components_are_numbered_by_their_targets(targets, regime, expected, numbers):
    script = load("latent_interventions")
    found, kept = script.number(torch.tensor(regime), torch.tensor(targets))
    assert kept.tolist() == expected
    assert found.tolist() == [numbers[k] for k in regime]


@pytest.mark.parametrize(
    "variant, arrays, words",
    [
        ("unknown", ["x"], "--variant unknown with .*: expected an array z, got x. Add it"),
        ("known", ["x", "z"], "expected an array targets, got x, z. Add it, or choose another"),
        ("observational", ["x", "targets"], "expected an array z, got x, targets"),
        ("semi", ["x"], "expected an array z, got x"),
    ],
)
def test_a_variant_without_what_it_needs(variant, arrays, words, table, tmp_path):
    np.savez(tmp_path / "file.npz", **{name: table[name] for name in arrays})
    with pytest.raises(ValueError, match=words):
        latent(tmp_path / "out", "--data", str(tmp_path / "file.npz"), "--variant", variant)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "z, flags, words",
    [
        (
            [1, 2],
            "--variant observational",
            r"rows of regime 0 than variables, got 0, of the regimes \[1, 2\]. Give obs",
        ),
        ([0, -1], "--variant semi --labelled 0.5", "regimes of all rows, .* got 200 unknown ones"),
    ],
)
def test_labels_that_do_not_suit_the_variant(z, flags, words, table, tmp_path):
    np.savez(tmp_path / "file.npz", x=table["x"], z=np.tile(z, 200))
    with pytest.raises(ValueError, match=words):
        latent(tmp_path / "out", "--data", str(tmp_path / "file.npz"), *flags.split())
    assert not (tmp_path / "out").exists()


def test_a_file_that_has_changed_is_another_run(table, tmp_path):
    flags = tmp_path / "out", "--data", str(tmp_path / "file.npz")
    np.savez(tmp_path / "file.npz", x=table["x"])
    done = latent(*flags)
    assert latent(*flags) == done
    np.savez(tmp_path / "file.npz", x=table["x"][:, :2])
    with pytest.raises(ValueError, match="holds another run"):
        latent(*flags)


def test_bad_rows_are_refused_before_any_work(table, tmp_path):
    table["x"][3, 1] = np.nan
    np.savez(tmp_path / "file.npz", **table)
    with pytest.raises(ValueError, match=r"file.npz, x: expected finite .* columns \[1\]"):
        latent(tmp_path / "out", "--data", str(tmp_path / "file.npz"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--reps 2", "--reps: expected it with --experiment only, got 2. Change or leave"),
        ("--experiment pairs --reps 0", "--reps: expected a number from 1, got 0"),
        ("--variant semi --labelled 1.5", "--labelled: expected a fraction from 0 to 1, got 1.5"),
        ("--labelled 0.5", "--labelled: expected it with --variant semi only, got 0.5"),
        ("--variant semi --kappa 2", "--kappa: expected a fraction from 0 to 1, got 2.0"),
        ("--kappa 0.5", "--kappa: expected it with --variant semi only, got 0.5"),
        ("--truncation 1", "--truncation: expected a number from 2, got 1"),
        ("--variant known --truncation 9", "--truncation: .* latent or semi only, got 9"),
        ("--experiment table1 --data x.npz", "--data: expected none, as table1 is simulated"),
        ("--experiment pairs --edges-per-node 2", "--edges-per-node: .* simulated .* got 2.0"),
        ("--data x.npz --edges-per-node 2", "--edges-per-node: expected it with simulated data"),
        ("--experiment misfit --data x.npz", "--data: expected none, as misfit is simulated"),
        ("--edge-price nan", "--edge-price: expected a number from 0, got nan"),
        ("--edge-price -1", "--edge-price: expected a number from 0, got -1.0"),
        ("--experiment sachs --nodes 12", "--nodes: expected it with simulated data .* got 12"),
        ("--experiment pairs --regimes 3", "--regimes: expected it with simulated data"),
        ("--data x.npz --targets-per-regime 2", "--targets-per-regime: expected it with simul"),
        ("--nodes 1", "expected two variables or more, got d=1"),
        ("--experiment table1 --nodes 0", "expected two variables or more, got d=0"),
        ("--experiment table1 --targets-per-regime 5", "targets_per_regime from 1 to 4, got 5"),
    ],
)
def test_flags_without_effect_or_out_of_range_are_refused(flags, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        latent(tmp_path / "out", *flags.split())
    assert not (tmp_path / "out").exists()


def test_how_much_is_simulated(quick):
    script = load("latent_interventions")
    flags = "--preset smoke --nodes 6 --regimes 2 --targets-per-regime 3"
    rows = script.simulate(script.Cell("linear", "stochastic", 1.0), script.parse(flags.split()))
    assert rows["x"].shape == (400, 6) and rows["z"].unique().tolist() == [0, 1, 2]
    assert rows["targets"].sum(1).tolist() == [0, 3, 3]


def test_an_experiment_goes_on_after_its_last_repetition(quick, tmp_path, monkeypatch):
    script = load("latent_interventions")
    flags = "--experiment", "table1", "--density", "linear", "--edges-per-node", "1", "--reps"
    names = ["linear stochastic e=1", "linear imperfect e=1"]
    whole = latent(tmp_path / "whole", *flags, "2")
    assert [*whole["repetitions"]] == [f"{name} #{r}" for r in range(2) for name in names]
    assert [*whole["table1"]] == names
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text()) == whole
    assert (tmp_path / "whole" / "table1.png").exists()

    repeat, calls = script.repeat, []

    def until_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return repeat(*arguments)

    monkeypatch.setattr(script, "repeat", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        latent(tmp_path / "part", *flags, "2")
    kept = json.loads((tmp_path / "part" / "metrics.json").read_text())["repetitions"]
    assert [*kept] == [f"{name} #0" for name in names]
    again = latent(tmp_path / "part", *flags, "2")
    assert len(calls) == 5  # two done, one interrupted, two more
    for key, run in whole["repetitions"].items():
        other = again["repetitions"][key]
        assert {**run, "CPU s": 0} == {**other, "CPU s": 0}
    with pytest.raises(ValueError, match="holds another run"):
        latent(tmp_path / "part", *flags, "2", "--seed", "1")


def test_the_seed_of_a_repetition_does_not_depend_on_what_else_is_run():
    script = load("latent_interventions")
    cells = script.cells(script.parse(["--experiment", "table1"]))
    assert len(cells) == 12
    some = script.cells(script.parse(["--experiment", "table1", "--density", "flow"]))
    assert some.items() <= cells.items() and len(some) == 4
    seeds = {script.seed_of(s, "table1", c, r) for s in (0, 1) for c in cells for r in range(10)}
    assert len(seeds) == 240
    assert script.seed_of(0, "table1", "flow imperfect e=4", 9) == 3577714130


def test_the_direction_of_pairs(quick, tmp_path):
    flags = "--experiment", "pairs", "--density", "linear", "--intervention", "stochastic"
    results = latent(tmp_path, *flags, "--reps", "2")
    assert results["pairs"]["linear stochastic"]["of"] == 2
    for pair in results["repetitions"].values():
        assert pair["empty"] == 1  # a cause and an effect


def test_a_price_of_edges_for_rows_that_no_family_fits(quick, tmp_path, monkeypatch):
    script = load("latent_interventions")
    for name, number in (("SACHS_NODES", 4), ("SACHS_EDGES", 5), ("HIDDEN", 1), ("REGIMES", 3)):
        monkeypatch.setattr(script, name, number)
    flags = "--experiment", "misfit", "--density", "linear", "--reps", "1", "--edge-price"
    cheap = latent(tmp_path / "cheap", *flags, "0.01")
    (run,) = cheap["repetitions"].values()
    row = cheap["misfit"]["linear imperfect"]
    assert row["empty"] == run["empty"] == row["tp"] + row["fn"] and run["edges"] > 0
    dear = latent(tmp_path / "dear", *flags, "100")
    (other,) = dear["repetitions"].values()
    assert other["edges"] == 0 and other["HD"] == other["empty"] == run["empty"]


def test_the_paper_s_numbers_stand_beside_cells_of_its_size():
    script = load("latent_interventions")
    args = script.parse(["--experiment", "table1"])
    assert script.paper_of(args, "flow imperfect e=4") == {"paper": 30.4}
    assert script.paper_of(args, "flow imperfect e=2") == {}
    assert script.paper_of(script.parse(["--variant", "semi"]), "flow imperfect e=4") == {}
    for words in ("--preset smoke", "--nodes 20", "--regimes 3", "--targets-per-regime 2"):
        assert script.paper_of(script.parse(words.split()), "flow imperfect e=4") == {}


def test_proteins_beside_the_paper(table, tmp_path, monkeypatch):
    script = load("latent_interventions")
    cells = {name: torch.as_tensor(value) for name, value in table.items()}
    cells["adjacency"] = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]])  # with a cycle
    monkeypatch.setattr(script.data, "load_sachs", lambda **_: cells)
    flags = "--experiment", "sachs", "--density", "linear", "--variant", "known", "--reps", "1"
    results = latent(tmp_path, *flags)
    assert [*results["sachs"]] == ["linear imperfect", "without edges", "paper's best"]
    row, found = results["sachs"]["linear imperfect"], results["reversals apart"]
    assert row["tp"] + row["fn"] == 3 and row["HD"] == row["fn"] + row["fp"]
    found = found["linear imperfect"]
    assert found["SHD"] == found["fn"] + found["fp"] + found["rev"] and found["paper"] == 30
    assert results["sachs"]["without edges"] == {"HD": 3, "fn": 3}
