"""The package's modules as syntax trees, for the tests that read the sources."""

import ast
from functools import cache
from pathlib import Path

import pyro_causal

ROOT = Path(pyro_causal.__file__).parent


@cache
def modules() -> dict[str, ast.Module]:
    """Map dotted names below `pyro_causal` ("" is the package itself) to syntax trees."""
    trees = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(), filename=str(path))
    return trees


def source_path(name: str) -> Path:
    """Give the file of a module named as in `modules`."""
    path = ROOT.joinpath(*name.split(".")) if name else ROOT
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
