"""The pictures: what they draw, on which scales, and what they refuse."""

import sys

import networkx
import numpy as np
import pytest
import torch

from pyro_causal.graph import ADMG, Hedge
from pyro_causal.plots import (
    plot_dose_curve,
    plot_found_graph,
    plot_graph,
    plot_hedge,
    plot_image_grid,
    plot_regimes,
    plot_rungs,
)

pytest.importorskip("matplotlib")

FRONT_DOOR = [("x", "m"), ("m", "y"), ("z", "x"), ("x", "w")]
SACHS = """
    PKC-PKA PKC-Jnk PKC-P38 PKC-Raf PKC-Mek PKA-Raf PKA-Mek PKA-Erk PKA-Akt PKA-Jnk PKA-P38
    Raf-Mek Mek-Erk Erk-Akt Plcg-PIP3 Plcg-PIP2 PIP3-PIP2
"""
BOW = Hedge(ADMG([("x", "y")], [("x", "y")]), ADMG(nodes=["y"]), frozenset("y"))
IMAGES = torch.linspace(0.0, 1.0, 2 * 4 * 5).reshape(2, 4, 5)


def gids(figure):
    return {patch.get_gid() for patch in figure.axes[0].patches}


def patch(figure, gid):
    (found,) = (patch for patch in figure.axes[0].patches if patch.get_gid() == gid)
    return found


def crosses(figure):
    return [line for line in figure.axes[0].lines if line.get_marker() == "x"]


def captions(figure):
    return [axes.texts[0].get_text() for axes in figure.axes]


def pictures(figure):
    """Map the cells of an image grid, as (row, column), to their images."""
    cells = {}
    for axes in figure.axes:
        if axes.images and axes.get_label() != "<colorbar>":
            place = axes.get_subplotspec()
            cells[place.rowspan.start, place.colspan.start] = axes.images[0]
    return cells


def test_graph_draws_every_node_and_edge():
    figure = plot_graph(FRONT_DOOR, bidirected=[("y", "x")], title="front door")
    assert gids(figure) == {
        *(f"node:{name}" for name in "xmyzw"),
        *(f"edge:{a}->{b}" for a, b in FRONT_DOOR),
        "edge:x<->y",
    }
    assert {text.get_text() for text in figure.axes[0].texts} == {*"xmyzw", "front door"}
    assert not crosses(figure)


def test_graph_accepts_networkx_and_isolated_nodes():
    graph = networkx.DiGraph([("a", "b")])
    graph.add_node("c")
    assert gids(plot_graph(graph)) == {"node:a", "node:b", "node:c", "edge:a->b"}
    assert gids(plot_graph([], bidirected=[{"a", "b"}])) == {"node:a", "node:b", "edge:a<->b"}


def test_graph_accepts_an_admg_with_its_hidden_causes():
    g = ADMG(FRONT_DOOR, [("y", "x"), ("z", "w")], nodes=["lone"])
    expected = plot_graph(FRONT_DOOR, bidirected=g.bidirected)
    assert gids(plot_graph(g)) == gids(expected) | {"node:lone"}
    assert "cut:x<->y" in gids(plot_graph(g, intervened=["y"]))
    more = gids(plot_graph(g, bidirected=[("m", "w")]))
    assert {"edge:m<->w", "edge:w<->z"} <= more


def test_marked_nodes_have_a_colour_of_their_own():
    figure = plot_graph(FRONT_DOOR, intervened=["x"], marked=["m", "y"])
    fills = {name: patch(figure, f"node:{name}").get_facecolor() for name in "xmyzw"}
    assert fills["m"] == fills["y"] and fills["z"] == fills["w"]
    assert len({fills["m"], fills["x"], fills["z"]}) == 3


def test_a_hedge_shows_its_smaller_forest():
    forest = ADMG([("x", "z")], [("x", "y"), ("y", "z")])
    hedge = Hedge(forest, ADMG([], [("y", "z")]), frozenset("yz"))
    figure = plot_hedge(hedge)
    assert gids(figure) == gids(plot_graph(forest))
    fills = {name: patch(figure, f"node:{name}").get_facecolor() for name in "xyz"}
    assert fills["y"] == fills["z"] != fills["x"]
    title = "x on y, z: blurred by x <-> y"
    assert title in {text.get_text() for text in figure.axes[0].texts}


def test_intervention_cuts_the_edges_into_its_target():
    bidirected = [("x", "y"), ("z", "y")]
    figure = plot_graph(FRONT_DOOR, bidirected=bidirected, intervened=["x"])
    drawn = gids(figure)
    assert {"cut:z->x", "cut:x<->y"} <= drawn
    assert {"edge:x->m", "edge:m->y", "edge:x->w", "edge:y<->z"} <= drawn
    assert len(crosses(figure)) == 2
    kept = patch(figure, "edge:x->m").get_edgecolor()
    assert patch(figure, "cut:z->x").get_edgecolor() != kept
    fills = {name: patch(figure, f"node:{name}").get_facecolor() for name in "xmyzw"}
    assert [name for name in fills if fills[name] != fills["m"]] == ["x"]


def test_cut_edges_may_be_left_out():
    options = {"bidirected": [("x", "y")], "intervened": ["x"]}
    figure = plot_graph(FRONT_DOOR, **options, cut="remove")
    faded = gids(plot_graph(FRONT_DOOR, **options))
    assert faded - gids(figure) == {"cut:z->x", "cut:x<->y"}
    assert not crosses(figure)


def test_effects_stand_to_the_right_of_their_causes():
    edges = [tuple(pair.split("-")) for pair in SACHS.split()]
    figure = plot_graph(edges)
    left = {name: patch(figure, f"node:{name}").get_x() for edge in edges for name in edge}
    assert all(left[cause] < left[effect] for cause, effect in edges)


@pytest.mark.parametrize("bidirected", [[], [("PKC", "Akt"), ("Raf", "P38")]])
def test_edges_run_around_nodes_and_nodes_lie_inside_the_figure(bidirected):
    edges = [tuple(pair.split("-")) for pair in SACHS.split()]
    figure = plot_graph(edges, bidirected=bidirected)
    axes = figure.axes[0]
    figure.canvas.draw()
    frame = axes.get_window_extent()
    boxes = {p.get_gid()[5:]: p for p in axes.patches if p.get_gid().startswith("node:")}
    for name, box in boxes.items():
        extent = box.get_window_extent()
        assert frame.x0 < extent.x0 < extent.x1 < frame.x1, name
        assert frame.y0 < extent.y0 < extent.y1 < frame.y1, name
    arrows = [p for p in axes.patches if p.get_gid().startswith("edge:")]
    assert len(arrows) == len(edges) + len(bidirected)
    for arrow in arrows:
        ends = arrow.get_gid()[5:].replace("<->", "->").split("->")
        outline = arrow.get_path().transformed(arrow.get_transform())
        points = np.concatenate([_dense(line) for line in outline.to_polygons(closed_only=False)])
        for name, box in boxes.items():
            extent = box.get_window_extent()
            inside = ((points > extent.min) & (points < extent.max)).all(1).any()
            assert name in ends or not inside, (ends, name)


def _dense(line):
    """Points every fiftieth of the way along each segment of a line ``[P, 2]``."""
    steps = np.linspace(0.0, 1.0, 51)[:, None, None]
    return (line[:-1] + steps * (line[1:] - line[:-1])).reshape(-1, 2)


def test_figure_is_as_wide_as_long_names_need():
    short, long = plot_graph([("a", "b")]), plot_graph([("a" * 30, "b" * 30)])
    assert long.get_figwidth() > short.get_figwidth() + 4
    for figure in (short, long):
        figure.canvas.draw()
        for text in figure.axes[0].texts:
            box = patch(figure, f"node:{text.get_text()}").get_window_extent()
            assert text.get_window_extent().width < box.width


def test_cyclic_graph_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no directed cycle, got (b -> c -> b|c -> b -> c)\. Do"):
        plot_graph([("a", "b"), ("b", "c"), ("c", "b")])


def test_unknown_target_and_style_are_refused():
    with pytest.raises(
        ValueError, match=r"At site 'X', intervention: expected one of \['x', 'y'\]"
    ):
        plot_graph([("x", "y")], intervened=["X"])
    with pytest.raises(ValueError, match="At site 'Y', marks: expected one of .* Do check its sp"):
        plot_graph(ADMG([("x", "y")]), marked=["x", "Y"])
    with pytest.raises(ValueError, match="`cut`: expected 'fade' or 'remove', got 'hide'"):
        plot_graph([("x", "y")], cut="hide")


def test_rungs_stand_side_by_side_on_one_scale():
    samples = {
        "association": torch.randn(5000),
        "intervention": torch.randn(5000) + 3.0,
        "counterfactual": torch.full((100,), 1.9),
    }
    figure = plot_rungs(samples, variable="blood pressure", truth={"counterfactual": 1.9})
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(samples)
    assert {axes.get_xlabel() for axes in figure.axes} == {"blood pressure"}
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    truths = [[line for line in axes.lines if line.get_gid() == "truth"] for axes in figure.axes]
    assert [len(lines) for lines in truths] == [0, 0, 1]
    assert truths[2][0].get_xdata() == pytest.approx([1.9, 1.9])
    assert captions(figure)[2] == "all at 1.9\ntruth 1.9 (dashed)"


def test_a_density_is_that_of_the_samples():
    values = torch.randn(200_000, dtype=torch.float64) * 2.0 + 1.0
    (axes,) = plot_rungs({"association": values}).axes
    grid, density = axes.lines[0].get_data()
    expected = np.exp(-0.5 * ((grid - 1.0) / 2.0) ** 2) / (2.0 * np.sqrt(2.0 * np.pi))
    assert np.abs(density - expected).max() < 0.005
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=0.02)
    dark = axes.collections[1].get_paths()[0].vertices[:, 0]
    assert (dark.min(), dark.max()) == pytest.approx((1 - 2 * 1.645, 1 + 2 * 1.645), abs=0.06)
    assert axes.texts[0].get_text().startswith(f"mean {values.mean():.3g},  90% in [-2.")


def test_one_outlier_does_not_squeeze_a_density():
    values = torch.cat([torch.randn(1000), torch.tensor([1e4])])
    (axes,) = plot_rungs({"association": values}).axes
    assert axes.get_xlim()[1] < 10.0


def test_few_integers_become_probabilities():
    figure = plot_rungs({"intervention": torch.tensor([[0, 1, 1], [1, 3, 3]])})
    levels, shares = figure.axes[0].lines[0].get_data()
    assert levels.tolist() == [0, 1, 3]
    assert shares.tolist() == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    assert captions(figure) == ["mean 1.5"]


def test_samples_that_agree_up_to_rounding_are_a_point():
    figure = plot_rungs({"counterfactual": 1.9 + 1e-6 * torch.rand(50)})
    assert captions(figure) == ["all at 1.9"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [1.0]


def test_a_rung_keeps_its_colour():
    def colours(*titles):
        figure = plot_rungs({title: torch.randn(20) for title in titles})
        return [axes.lines[0].get_color() for axes in figure.axes]

    rungs = colours("association", "intervention", "counterfactual", "other")
    assert len(set(rungs)) == 4
    assert colours("counterfactual: E[y]", "association") == [rungs[2], rungs[0]]


def test_bad_rungs_are_refused():
    with pytest.raises(ValueError, match="Nothing to draw"):
        plot_rungs({})
    with pytest.raises(ValueError, match="At site 'association', values: .* got 1 NaN or infinite"):
        plot_rungs({"association": torch.tensor([0.0, float("nan")])})
    with pytest.raises(ValueError, match="At site 'association', values"):
        plot_rungs({"association": torch.zeros(0)})
    with pytest.raises(ValueError, match="`truth`: .* found 'intervention'"):
        plot_rungs({"association": torch.zeros(3)}, truth={"intervention": 1.0})


def test_dose_curve_draws_mean_interval_and_truth():
    dose = torch.tensor([2.0, 0.0, 1.0])
    samples = dose**2 + torch.linspace(-1.0, 1.0, 101)[:, None]
    figure = plot_dose_curve(
        dose, samples, level=0.8, truth=dose**2 + 0.5, treatment="drug", outcome="recovery"
    )
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("do(drug)", "recovery")
    mean, truth = axes.lines
    assert mean.get_xdata().tolist() == [0.0, 1.0, 2.0]
    assert mean.get_ydata().tolist() == pytest.approx([0.0, 1.0, 4.0], abs=1e-6)
    assert truth.get_ydata().tolist() == [0.5, 1.5, 4.5]
    band = axes.collections[0].get_paths()[0].vertices
    at_two = band[band[:, 0] == 2.0][:, 1]
    assert (at_two.min(), at_two.max()) == pytest.approx((3.2, 4.8), abs=1e-5)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["80% interval", "mean", "truth"]


def test_dose_curve_without_truth():
    figure = plot_dose_curve(torch.arange(3), torch.zeros(5, 3))
    assert len(figure.axes[0].lines) == 1


@pytest.mark.parametrize(
    ("dose", "samples", "truth"),
    [
        (torch.zeros(3), torch.zeros(3, 5), None),
        (torch.zeros(3), torch.zeros(5, 2, 3), None),
        (torch.zeros(3, 1), torch.zeros(5, 3, 1), None),
        (torch.zeros(3), torch.zeros(5, 3), torch.zeros(4)),
    ],
)
def test_dose_curve_refuses_shapes_that_do_not_fit(dose, samples, truth):
    with pytest.raises(ValueError, match=r"At site 'y', dose curve: expected doses \[D\]"):
        plot_dose_curve(dose, samples, truth=truth)


def test_image_grid_shows_worlds_and_symmetric_differences():
    worlds = {"do(t=1)": IMAGES + 0.5, "do(t=2)": IMAGES.flip(0) - 0.25}
    figure = plot_image_grid(IMAGES, worlds, units=["ann", "bob"])
    cells = pictures(figure)
    assert set(cells) == {(row, column) for row in range(2) for column in range(5)}
    for row in range(2):
        shown = [np.asarray(cells[row, column].get_array()).squeeze() for column in range(5)]
        changes = [(world - IMAGES)[row] for world in worlds.values()]
        for array, expected in zip(
            shown, [IMAGES[row], *(world[row] for world in worlds.values()), *changes], strict=True
        ):
            assert np.allclose(array, expected.numpy(), atol=1e-6)
    largest = max((world - IMAGES).abs().max().item() for world in worlds.values())
    scales = {cells[row, column].get_clim() for row in range(2) for column in (3, 4)}
    assert scales == {(-scale, scale) for _, scale in scales}
    assert next(iter(scales))[1] == pytest.approx(largest)
    greys = {cells[row, column].get_clim() for row in range(2) for column in (0, 1, 2)}
    assert len(greys) == 1
    assert next(iter(greys)) == pytest.approx((-0.25, 1.5))
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles == ["factual", *worlds, "do(t=1)\n− factual", "do(t=2)\n− factual"]
    assert [figure.axes[k].get_ylabel() for k in (0, 5)] == ["ann", "bob"]


def test_image_grid_sets_the_truth_below_the_model():
    worlds = {"do(t=1)": IMAGES + 0.5, "do(t=2)": IMAGES}
    truth = {"do(t=2)": IMAGES + 2.0, "do(t=1)": IMAGES + 0.75}
    cells = pictures(plot_image_grid(IMAGES[:, None], worlds, truth=truth))
    assert {row for row, column in cells if column == 0} == {0, 2}
    assert {row for row, column in cells if column == 1} == {0, 1, 2, 3}
    assert np.allclose(np.asarray(cells[1, 1].get_array()).squeeze(), IMAGES[0] + 0.75)
    assert np.allclose(np.asarray(cells[3, 4].get_array()), 2.0)
    assert cells[0, 3].get_clim() == pytest.approx((-2.0, 2.0))


def test_unchanged_images_have_a_neutral_difference():
    cells = pictures(plot_image_grid(IMAGES, {"do()": IMAGES}))
    assert cells[0, 2].get_clim() == (-1.0, 1.0)
    assert not np.asarray(cells[0, 2].get_array()).any()


def test_colour_images_differ_by_the_mean_of_their_channels():
    before, after = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    after[:, 0] = 0.6
    cells = pictures(plot_image_grid(before, {"do(x=1)": after}))
    assert cells[0, 1].get_array().shape == (4, 4, 3)
    assert np.allclose(np.asarray(cells[0, 2].get_array()), 0.2)


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match=r"At site 'factual', images: .* got \(4, 5\)"):
        plot_image_grid(IMAGES[0], {"do()": IMAGES})
    with pytest.raises(ValueError, match=r"At site 'do\(\)', images: .* as in the factual world"):
        plot_image_grid(IMAGES, {"do()": IMAGES[:1]})
    with pytest.raises(ValueError, match="`units`: expected 2 labels, got 1"):
        plot_image_grid(IMAGES, {"do()": IMAGES}, units=["ann"])
    with pytest.raises(ValueError, match="Nothing to draw"):
        plot_image_grid(IMAGES, {})
    with pytest.raises(ValueError, match=r"`truth`: .* found 'do\(x\)'"):
        plot_image_grid(IMAGES, {"do()": IMAGES}, truth={"do()": IMAGES, "do(x)": IMAGES})
    with pytest.raises(ValueError, match=r"`truth`: .* found 'do\(x\)'"):
        plot_image_grid(IMAGES, {"do()": IMAGES, "do(x)": IMAGES}, truth={"do()": IMAGES})


PICTURES = {
    "graph": lambda path: plot_graph([("x", "y")], intervened=["y"], path=path),
    "hedge": lambda path: plot_hedge(BOW, path=path),
    "rungs": lambda path: plot_rungs({"association": torch.randn(9).requires_grad_()}, path=path),
    "dose": lambda path: plot_dose_curve(torch.arange(3), torch.randn(9, 3), path=path),
    "images": lambda path: plot_image_grid(IMAGES, {"do()": IMAGES}, path=path),
    "found": lambda path: plot_found_graph(torch.eye(3).roll(1, 1).triu(), path=path),
    "regimes": lambda path: plot_regimes(torch.eye(2), torch.arange(2), path=path),
}


@pytest.mark.parametrize("name", PICTURES)
def test_files_are_written_without_windows_or_settings(name, tmp_path):
    import matplotlib

    settings = dict(matplotlib.rcParams)
    figure = PICTURES[name](tmp_path / "picture.png")
    PICTURES[name](str(tmp_path / "picture.svg"))
    assert isinstance(figure, matplotlib.figure.Figure)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    assert dict(matplotlib.rcParams) == settings
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("name", PICTURES)
def test_missing_matplotlib_is_named_with_its_remedy(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install pyro_causal\[plot\]"):
        PICTURES[name](None)


def edges(figure):
    return {gid for gid in gids(figure) if not gid.startswith("node")}


def test_found_edges_are_told_from_wrong_ones():
    true = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    figure = plot_found_graph(found, truth=true, probability=0.9 * found, names=[*"abcd"])
    assert edges(figure) == {"right:a->b", "turned:c->b", "wrong:a->d", "missing:a->c"}
    circle, matrix, _ = figure.axes
    legend = [text.get_text() for text in circle.get_legend().get_texts()]
    assert legend == ["right: 1", "turned: 1", "wrong: 1", "missing: 1"]
    assert np.allclose(matrix.images[0].get_array(), 0.9 * found)
    rings = {(int(y), int(x)) for x, y in matrix.collections[0].get_offsets()}
    assert rings == {(0, 1), (0, 2), (1, 2)}
    heights = {text.get_text(): text.get_position()[1] for text in circle.texts}
    assert max(heights, key=heights.get) == "a"  # causes first, from the top


def test_a_found_graph_without_a_truth():
    figure = plot_found_graph(np.array([[0, 0], [1, 0]]))
    assert edges(figure) == {"edge:x1->x0"} and len(figure.axes) == 1


def test_bad_found_graphs_are_refused():
    graph = torch.tensor([[0, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"`truth`: expected shape \(2, 2\), got \(3, 3\)"):
        plot_found_graph(graph, truth=torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"`adjacency`: expected shape \(1, 1\), got \(2, 2\)"):
        plot_found_graph(graph, names=["x"])
    with pytest.raises(ValueError, match=r"expected an acyclic graph, got a cycle\. Do"):
        plot_found_graph(graph + graph.T)


def test_regimes_beside_the_true_ones():
    true_targets = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 1]])
    targets = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 1, 0]])
    true, regime = torch.tensor([0, 0, 1, 1, 2, -1]), torch.tensor([0, 2, 2, 2, 1, -1])
    figure = plot_regimes(targets, regime, true_targets=true_targets, true_regime=true)
    marks, sizes, shares = figure.axes
    assert (np.asarray(marks.images[0].get_array()) > 0.5).tolist() == targets.bool().tolist()
    rings = {(int(y), int(x)) for x, y in marks.collections[0].get_offsets()}
    assert rings == {(2, 0), (1, 2)}  # of the true regimes 1 and 2
    assert [patch.get_width() for patch in sizes.patches] == [1, 1, 3]
    assert [text.get_text() for text in shares.get_xticklabels()] == ["0", "2", "1"]
    expected = [[0.5, 0, 0], [0, 1, 0], [0.5, 0, 1]]
    assert np.allclose(shares.images[0].get_array(), expected)
    assert len(shares.patches) == 3


@pytest.mark.parametrize("known", [0, 1])
def test_true_regimes_of_hardly_any_rows_are_left_out(known):
    true = torch.tensor([-1, 1, -1]) if known else torch.full((3,), -1)
    figure = plot_regimes(
        torch.tensor([[0, 1]]),
        torch.zeros(3, dtype=torch.long),
        true_regime=true,
        true_targets=torch.tensor([[0, 0], [0, 1]]),
    )
    assert [axes.get_title() for axes in figure.axes] == ["targets", "rows"]
    assert not figure.axes[0].collections


def test_regimes_without_a_truth():
    figure = plot_regimes(
        torch.tensor([[0, 1]]), torch.zeros(4, dtype=torch.long), names=["a", "b"]
    )
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", "b"]
    assert not figure.axes[0].collections
