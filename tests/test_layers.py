"""The import rule: a module imports strictly lower layers, or earlier rows of its own folder.

`LAYERS` is the whole rule. Imports inside functions count too.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
from _sources import modules, source_path

TYPING = "if TYPE_CHECKING"
Import = tuple[str, int, tuple[str, ...]]  # dotted name, line, enclosing functions (or `TYPING`)

# A layer is made of chains, a chain of rows, lowest first, a row of modules that must not import
# each other. `folder.*` stands for every module of a folder.
LAYERS: dict[int, tuple[str, ...]] = {
    0: ("_pyro", "_reachability"),
    1: (
        "_tails < _quantile < _cdf < _gumbel < _coordinates < noise"
        " < _site < _actions < _factual < _messengers < handlers",
        "graph._bits < graph.admg < graph.convert graph.adjustment"
        " < graph._terms < graph.expression < graph._evaluate < graph.estimand"
        " < graph._hedge graph._views < graph._search < graph.identify"
        " < graph._worlds graph.bounds < graph.counterfactual < graph.hgraph < graph",
        "_recipe",
        "metrics.structure < metrics.distribution < metrics.counterfactual < metrics",
    ),
    2: (
        "mechanisms.base"
        " < mechanisms.gaussian mechanisms.flows mechanisms.discrete"
        " mechanisms.low_level mechanisms.geometry mechanisms.hierarchical < mechanisms.networks"
        " < mechanisms.neural < mechanisms.sem mechanisms._sigmoidal"
        " < mechanisms.sem_neural mechanisms.sem_program mechanisms.sem_mixture < mechanisms",
        "infer.acyclicity infer._sticks infer._terms < infer.priors infer._branches"
        " < infer._factors < infer._local_scores < infer._climber < infer.dag_search"
        " < infer._regressions infer._gaussian_start infer._components"
        " < infer._varying_scale infer._fitted_units infer._outliers"
        " < infer._node_scores infer._regime_laws < infer._given_graph"
        " < infer._merging infer._births"
        " < infer._structure_search < infer.structural_em"
        " < infer._mixture_elbo < infer._mixture_guide < infer.guides < infer.elbo"
        " < infer.adversarial < infer.checkpoint < infer._saving < infer._program < infer._batches"
        " < infer._steps < infer._faults < infer._signals < infer._loop < infer.training < infer",
    ),
    3: (
        "_particles < _evidence < _predictive < _result < effects < _provenance < _statements"
        " < program < _identified < queries < datasets._* < datasets.[!_]* < datasets",
        "program < methods._*_input < methods._* < methods.[!_]* < methods",
    ),
    4: ("export < _figures < _graph_picture _structure_picture < plots",),
}
LAZY_LAYER = 4  # may also be imported by the layer below it, inside a function
LAZY_PACKAGES = {"arviz", "matplotlib", "skimage", "sklearn"}
MAX_LINES = 400


def positions(name: str) -> list[tuple[int, int, int]]:
    """Find a module's places (layer, chain, row) in `LAYERS`."""
    return [
        (layer, number, row)
        for layer, chains in LAYERS.items()
        for number, chain in enumerate(chains)
        for row, patterns in enumerate(chain.split(" < "))
        if any(fnmatchcase(name, pattern) for pattern in patterns.split())
    ]


def may_import(importer: str, imported: str, *, lazily: bool) -> bool:
    """Decide whether one module of the package may import another."""
    if importer == "":
        return positions(imported)[0][0] < LAZY_LAYER
    if lazily and positions(imported)[0][0] == LAZY_LAYER == positions(importer)[0][0] + 1:
        return True
    if importer.startswith("graph") and not imported.startswith("graph."):
        return False
    return any(
        below < layer or ((below, other) == (layer, chain) and earlier < row)
        for layer, chain, row in positions(importer)
        for below, other, earlier in positions(imported)
    )


def imports(name: str) -> Iterator[Import]:
    """Yield every import of a module."""
    package = source_path(name).name == "__init__.py"

    def visit(node: ast.AST, functions: tuple[str, ...]) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, functions
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = ["pyro_causal", *name.split(".")] if name else ["pyro_causal"]
                parts = parts[: len(parts) - node.level + package]
                origin = ".".join([*parts, origin] if origin else parts)
            for alias in node.names:
                yield f"{origin}.{alias.name}", node.lineno, functions
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions = (*functions, node.name)
        elif isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING":
            functions = (*functions, TYPING)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, functions)

    yield from visit(modules()[name], ())


def own_imports(name: str) -> Iterator[Import]:
    """Yield the imports from the package itself, as names of modules ("" for the package)."""
    for target, line, functions in imports(name):
        head, _, rest = target.partition(".")
        if head != "pyro_causal":
            continue
        while rest not in modules():
            rest = rest.rpartition(".")[0]
        yield rest, line, functions


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_every_module_has_one_place(name: str) -> None:
    places = positions(name)
    assert len({layer for layer, _, _ in places}) == 1, (
        f"pyro_causal.{name}: expected one place in LAYERS, found {places}. "
        "Add the module to the row of tests/test_layers.py that its imports allow."
    )


@pytest.mark.parametrize("name", modules())
def test_imports_point_down(name: str) -> None:
    wrong = [
        f"{source_path(name)}:{line} imports pyro_causal.{target}"
        for target, line, functions in own_imports(name)
        if target == "" or not may_import(name, target, lazily=bool({*functions} - {TYPING}))
    ]
    assert not wrong, "Import a lower layer or an earlier row instead:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", modules())
def test_heavy_packages_are_imported_lazily(name: str) -> None:
    top_level = all(layer < LAZY_LAYER for layer, _, _ in positions(name))
    wrong = [
        f"{source_path(name)}:{line} imports {target}"
        for target, line, functions in imports(name)
        if top_level and not functions and target.split(".")[0] in LAZY_PACKAGES
    ]
    assert not wrong, "Import inside the function that needs it:\n" + "\n".join(wrong)


def test_graph_is_free_of_torch() -> None:
    wrong = [
        f"{source_path(name)}:{line} imports {target}"
        for name in modules()
        if name.split(".")[0] == "graph"
        for target, line, functions in imports(name)
        if target.split(".")[0] in {"torch", "pyro", "zuko"}
        and not {"evaluate", TYPING} & {*functions}
    ]
    assert not wrong, "Only `evaluate` may touch torch, imported inside it:\n" + "\n".join(wrong)


def dotted(node: ast.expr) -> str:
    """Write an attribute chain as source, or "" when it does not start at a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def private_names(name: str) -> Iterator[str]:
    """Yield every use of a private part of Pyro or zuko in a module."""
    bound = {}
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                bound[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    uses = [(target, line) for target, line, _ in imports(name)]
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Attribute):
            root, _, rest = dotted(node).partition(".")
            if root in bound:
                uses.append((f"{bound[root]}.{rest}", node.lineno))
    for use, line in uses:
        package, *parts = use.split(".")
        if package in {"pyro", "zuko"} and any(
            part.startswith("_") and not part.startswith("__") for part in parts
        ):
            yield f"{source_path(name)}:{line} {use}"


@pytest.mark.parametrize("name", [name for name in modules() if name != "_pyro"])
def test_private_parts_stay_in_one_module(name: str) -> None:
    assert not (found := list(private_names(name))), "Move to _pyro.py:\n" + "\n".join(found)


@pytest.mark.parametrize("name", modules())
def test_modules_never_print(name: str) -> None:
    found = [
        f"{source_path(name)}:{node.lineno}"
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Call) and dotted(node.func) == "print"
    ]
    assert not found, "Use logging:\n" + "\n".join(found)


@pytest.mark.parametrize("name", modules())
def test_modules_never_seed(name: str) -> None:
    found = [
        f"{source_path(name)}:{node.lineno}"
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Call)
        and dotted(node.func).rpartition(".")[2] in {"manual_seed", "set_rng_seed", "seed"}
    ]
    assert not found, "Leave the random state to the caller:\n" + "\n".join(found)


@pytest.mark.parametrize("name", modules())
def test_modules_stay_small(name: str) -> None:
    lines = len(source_path(name).read_text().splitlines())
    assert lines <= MAX_LINES, f"{source_path(name)} has {lines} lines: split it at a seam"


@pytest.mark.parametrize(
    ("importer", "imported", "lazily", "allowed"),
    [
        ("noise", "_quantile", False, True),
        ("noise", "handlers", False, False),
        ("metrics.counterfactual", "handlers", False, False),
        ("metrics.counterfactual", "_pyro", False, True),
        ("graph.identify", "graph.admg", False, True),
        ("graph.identify", "_pyro", False, False),
        ("mechanisms.flows", "mechanisms.discrete", False, False),
        ("mechanisms.neural", "mechanisms.flows", False, True),
        ("infer.training", "mechanisms.base", False, False),
        ("methods.activa", "methods.deep_scm", False, False),
        ("methods.activa", "datasets.sachs", False, False),
        ("methods.activa", "program", False, True),
        ("queries", "plots", True, True),
        ("queries", "plots", False, False),
        ("infer.training", "plots", True, False),
        ("plots", "queries", False, True),
    ],
)
def test_the_rule_itself(importer: str, imported: str, lazily: bool, allowed: bool) -> None:
    assert may_import(importer, imported, lazily=lazily) is allowed
