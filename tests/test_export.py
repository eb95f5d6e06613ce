"""Worlds and samples as ArviZ InferenceData, on every supported ArviZ."""

import warnings

import pyro.distributions as dist
import pytest
import torch

from pyro_causal.export import to_inference_data, world_names

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 once a day
    arviz = pytest.importorskip("arviz")

ACTIONS = [{"x": 0.0}, {"x": 1.0, "z": 2}]


def shift(value):
    return value + 1


def test_worlds_are_named_by_their_actions():
    names = world_names(
        [
            {"x": True, "y": -1},
            {"x": 0.123456789, "z": torch.tensor([2.0])},
            {"x": torch.zeros(6, 1)},
            {"x": dist.Normal(0.0, 1.0)},
            {"x": shift},
            {"x": torch.nn.Linear(1, 1)},
            {"x": {0: 1.5, 3: shift}},
            {},
        ]
    )
    assert names == [
        "factual",
        "do(x=1, y=-1)",
        "do(x=0.123457, z=2)",
        "do(x=tensor[6, 1])",
        "do(x~Normal)",
        "do(x=shift)",
        "do(x=Linear)",
        "do(x[0]=1.5, x[3]=shift)",
        "do()",
    ]
    assert world_names({"x": 1}) == ["factual", "do(x=1)"]


def test_world_names_are_unique():
    actions = [{"x": torch.zeros(6)}, {"x": torch.ones(6)}, {"y": 1}, {"x": torch.ones(6)}]
    assert world_names(actions) == [
        "factual",
        "do(x=tensor[6])",
        "do(x=tensor[6]) #2",
        "do(y=1)",
        "do(x=tensor[6]) #3",
    ]


def test_worlds_are_selected_by_name():
    y = torch.randn(12, 3, 4)
    data = to_inference_data(worlds={"y": y}, actions=ACTIONS)
    worlds = data.posterior_predictive
    assert worlds["world"].values.tolist() == ["factual", "do(x=0)", "do(x=1, z=2)"]
    assert dict(worlds["y"].sizes) == {"chain": 1, "draw": 12, "world": 3, "y_dim_0": 4}
    for k, name in enumerate(["factual", "do(x=0)", "do(x=1, z=2)"]):
        assert (worlds["y"].sel(world=name, chain=0).values == y[:, k].numpy()).all()


def test_one_action_may_be_a_dict():
    data = to_inference_data(worlds={"y": torch.zeros(5, 2)}, actions={"x": 1})
    assert data.posterior_predictive["world"].values.tolist() == ["factual", "do(x=1)"]


def test_samples_and_data_have_their_groups():
    samples = {"rate": torch.rand(10), "weight": torch.randn(10, 2, 3)}
    data = to_inference_data(samples, observed={"y": torch.tensor([1, 2, 3])})
    assert not hasattr(data, "posterior_predictive")
    assert dict(data.posterior["rate"].sizes) == {"chain": 1, "draw": 10}
    assert data.posterior["weight"].dims == ("chain", "draw", "weight_dim_0", "weight_dim_1")
    assert data.observed_data["y"].dims == ("y_dim_0",)
    assert data.observed_data["y"].values.tolist() == [1, 2, 3]
    assert data.posterior.attrs["creation_library"] == "pyro_causal"


def test_chains_follow_one_another():
    samples = {"rate": torch.arange(6.0)}
    data = to_inference_data(
        samples, worlds={"y": torch.zeros(6, 3)}, actions=ACTIONS, num_chains=2
    )
    assert data.posterior["rate"].values.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert data.posterior["rate"].sel(chain=1, draw=0).item() == 3.0
    assert dict(data.posterior_predictive["y"].sizes) == {"chain": 2, "draw": 3, "world": 3}


def test_named_dimensions_are_shared_and_labelled():
    data = to_inference_data(
        worlds={"y": torch.zeros(4, 3, 2), "image": torch.zeros(4, 3, 2, 5, 5)},
        actions=ACTIONS,
        observed={"y": torch.zeros(2)},
        dims={"y": ["unit"], "image": ["unit", "row", "column"]},
        coords={"unit": ["ann", "bob"]},
    )
    worlds = data.posterior_predictive
    assert worlds["image"].dims == ("chain", "draw", "world", "unit", "row", "column")
    assert worlds["unit"].values.tolist() == ["ann", "bob"]
    assert worlds["row"].values.tolist() == [0, 1, 2, 3, 4]
    assert data.observed_data["y"].sel(unit="bob").item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_dtypes_are_kept_and_gradients_dropped(dtype):
    value = torch.ones(4, dtype=dtype, requires_grad=dtype.is_floating_point)
    exported = to_inference_data({"y": value}).posterior["y"]
    assert str(exported.dtype) == str(dtype).removeprefix("torch.")


def test_arviz_summarises_each_world():
    y = torch.randn(500, 3) + torch.tensor([0.0, 10.0, 20.0])
    data = to_inference_data(worlds={"y": y}, actions=ACTIONS)
    table = arviz.summary(data, group="posterior_predictive", round_to="none")
    assert list(table.index) == ["y[factual]", "y[do(x=0)]", "y[do(x=1, z=2)]"]
    assert table["mean"].astype(float).tolist() == pytest.approx(y.mean(0).tolist(), abs=1e-4)


def test_file_round_trip(tmp_path):
    pytest.importorskip("h5netcdf")
    samples, worlds = (
        {"rate": torch.rand(6)},
        {"y": torch.randn(6, 3, 2), "n": torch.ones(6, 3).long()},
    )
    data = to_inference_data(samples, worlds=worlds, actions=ACTIONS, num_chains=2)
    data.to_netcdf(str(tmp_path / "data.nc"), engine="h5netcdf")
    read = arviz.from_netcdf(str(tmp_path / "data.nc"), engine="h5netcdf")
    for group in ("posterior", "posterior_predictive"):
        assert read[group].identical(data[group])
    assert read.posterior_predictive["world"].values.tolist() == world_names(ACTIONS)


def test_arviz_one_gets_a_data_tree(monkeypatch):
    xarray = pytest.importorskip("xarray", minversion="2024.10")
    y = torch.randn(6, 3)
    expected = to_inference_data(worlds={"y": y}, actions=ACTIONS).posterior_predictive
    monkeypatch.setattr(arviz, "__version__", "1.3.0")
    data = to_inference_data({"rate": torch.rand(6)}, worlds={"y": y}, actions=ACTIONS)
    assert isinstance(data, xarray.DataTree)
    assert set(data.children) == {"posterior", "posterior_predictive"}
    assert data.posterior_predictive["y"].identical(expected["y"])


def test_container_is_that_of_the_installed_arviz():
    data = to_inference_data({"rate": torch.rand(6)})
    expected = "InferenceData" if arviz.__version__.startswith("0.") else "DataTree"
    assert type(data).__name__ == expected


def test_world_axis_must_fit_the_actions():
    with pytest.raises(ValueError, match=r"At site 'y', world axis: .* 3, .* got \[6, 2, 4\]"):
        to_inference_data(worlds={"y": torch.zeros(6, 2, 4)}, actions=ACTIONS)
    with pytest.raises(ValueError, match=r"At site 'y', world axis: .* got \[6\]"):
        to_inference_data(worlds={"y": torch.zeros(6)}, actions=ACTIONS)


def test_sites_must_have_one_length():
    with pytest.raises(
        ValueError, match="At site 'b', number of samples: expected 5 as at site 'a'"
    ):
        to_inference_data({"a": torch.zeros(5), "b": torch.zeros(4)})


@pytest.mark.parametrize("num_chains", [0, 2])
def test_chains_must_divide_the_samples(num_chains):
    with pytest.raises(ValueError, match="At site 'a', `num_chains`: expected a divisor of the 5"):
        to_inference_data({"a": torch.zeros(5)}, num_chains=num_chains)


def test_dims_must_fit_the_shape_and_be_known():
    with pytest.raises(ValueError, match=r"At site 'a', `dims`: expected 1 names .* \(3,\)"):
        to_inference_data({"a": torch.zeros(5, 3)}, dims={"a": ["row", "column"]})
    with pytest.raises(ValueError, match=r"`dims`: expected names among \['a'\], got 'A'"):
        to_inference_data({"a": torch.zeros(5, 3)}, dims={"A": ["row"]})
    with pytest.raises(ValueError, match=r"`coords`: .*, got 'rows'"):
        to_inference_data({"a": torch.zeros(5, 3)}, dims={"a": ["row"]}, coords={"rows": [1, 2, 3]})


def test_a_site_may_not_be_named_like_a_dimension():
    with pytest.raises(ValueError, match="At site 'draw', name: expected none of the dimensions"):
        to_inference_data({"draw": torch.zeros(5)})
    with pytest.raises(ValueError, match="At site 'unit', name"):
        to_inference_data({"unit": torch.zeros(5, 2)}, dims={"unit": ["unit"]})
