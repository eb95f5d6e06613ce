"""What installing and importing the package promises."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from _sources import ROOT, modules

import pyro_causal

PYPROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
DISTRIBUTIONS = {"pyro": "pyro-ppl", "skimage": "scikit-image", "sklearn": "scikit-learn"}


def run(code: str) -> str:
    """Run code in a fresh interpreter and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_is_stated_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pyro_causal.__version__)
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"].endswith("__version__")
    heading = re.search(r"^## (\S+)", (ROOT.parent / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] in {"Unreleased", pyro_causal.__version__}


def test_types_are_shipped() -> None:
    assert (ROOT / "py.typed").exists()
    assert PYPROJECT["tool"]["setuptools"]["package-data"] == {"pyro_causal": ["py.typed"]}


def test_import_is_light() -> None:
    heavy = {"arviz", "matplotlib", "sklearn", "pandas", "xarray"}
    loaded = run("import sys, pyro_causal; print(*sys.modules)").split()
    assert heavy.isdisjoint(loaded)


def test_import_changes_nothing() -> None:
    code = """
import pyro, torch
def state():
    return (
        torch.distributions.Distribution._validate_args,
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.random.get_rng_state().tolist(),
        dict(pyro.get_param_store().items()),
    )
before = state()
import pyro_causal
print(state() == before)
"""
    assert run(code) == "True\n"


def test_top_level_is_small() -> None:
    assert len(pyro_causal.__all__) <= 25
    assert len(set(pyro_causal.__all__)) == len(pyro_causal.__all__)


@pytest.mark.parametrize("name", modules())
def test_public_names_exist_and_are_described(name: str) -> None:
    module = importlib.import_module(f"pyro_causal.{name}".rstrip("."))
    assert module.__doc__, f"{module.__name__} lacks a docstring"
    assert isinstance(module.__all__, list), f"{module.__name__} lacks __all__"
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert value.__doc__, f"{module.__name__}.{public} lacks a docstring"


def test_dependencies_are_those_that_are_imported() -> None:
    packages = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for alias in node.names
    }
    imported = packages - sys.stdlib_module_names - {"pyro_causal"}
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["plot"], *extras["metrics"], *extras["datasets"]]
    declared = {re.match(r"[A-Za-z0-9_-]+", line)[0] for line in required}
    assert {DISTRIBUTIONS.get(name, name) for name in imported} == declared


def test_every_extra_of_the_makefile_exists() -> None:
    makefile = (Path(ROOT).parent / "Makefile").read_text()
    used = set(re.findall(r"\.installed-(\w+)", makefile))
    assert used <= set(PYPROJECT["project"]["optional-dependencies"])
