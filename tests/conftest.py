"""Isolation between tests, the development data, and the machine's limits."""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pyro
import pytest
import torch

SEED = 20201206


def pytest_configure() -> None:
    """Use one thread per process: the suite runs one process per core."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def isolate() -> Iterator[None]:
    """Start each test with the same seed and no parameters, and leave the default dtype alone."""
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(SEED)
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[[str], ModuleType]:
    """Import a script of the benchmarks by name, with its neighbours in reach as when it is run."""

    def load(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
            return importlib.import_module(name)

    return load


@pytest.fixture
def data_path() -> Callable[[str], Path]:
    """Give the path of a development data file below $PYRO_CAUSAL_DATA, or skip without it."""

    def find(name: str) -> Path:
        root = os.environ.get("PYRO_CAUSAL_DATA")
        if root is None:
            pytest.skip("needs development data: set PYRO_CAUSAL_DATA to its folder")
        path = Path(root) / name
        if not path.exists():
            pytest.skip(f"needs development data: no {name} in $PYRO_CAUSAL_DATA ({root})")
        return path

    return find
