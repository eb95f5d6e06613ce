"""Sphinx configuration; build with ``make docs``."""

import re
import sys

from docutils.nodes import Element
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import pyro_causal
import pyro_causal.graph

# The function of this name hides the module, whose page is wanted.
pyro_causal.graph.identify = sys.modules["pyro_causal.graph.identify"]

project = "pyro_causal"
author = "The pyro_causal authors"
copyright = f"2026, {author}"
release = version = pyro_causal.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"pyro_causal {release}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Tutorials are notebooks, which the build runs; an error in one of them is an error of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_output_stderr = "remove"  # progress bars and their warnings

default_role = "code"
add_module_names = False
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "extra_repr"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    "Action": "Action",
    "Member": "Member",
    "Model": "Model",
    "Names": "Names",
    "Network": "Network",
    "Samples": "Samples",
    "Score": "Score",
    "Values": "Values",
    "Variables": "Variables",
}
python_use_unqualified_type_names = True

# Annotations name classes of other projects, whose pages are not linked, and private ones.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(arviz|collections|datetime|matplotlib|networkx|numpy|nx|os|pathlib|pyro|torch|typing|xarray|"
        r"zuko)\..*|Axes|Figure|PathLike|Tensor|Action|Edges|Key|Member|Model|Names|Network|Quantity|Regime|"
        r"Samples|Score|Values|Variables",
    ),
    ("py:.*", r"pyro_causal\.(.*\.)?(_.*|F|Levels)"),
]


def resolve_reexport(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element
) -> Element | None:
    """Link a re-exported name to the one page that describes it."""
    name = node.get("reftarget", "").rpartition(".")[2]
    domain = env.get_domain("py")
    public = (full for full in domain.objects if "._" not in full)
    found = [full for full in public if full.rpartition(".")[2] == name]
    if len(found) != 1:
        return None
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], found[0], node, contnode
    )


def keep_first_signature(app: Sphinx, domain: str, objtype: str, content: Element) -> None:
    """Show a function that dispatches on a type once, not once for each type."""
    first, *others = (node for node in content.parent if isinstance(node, desc_signature))
    described = getattr(sys.modules.get(first.get("module")), first.get("fullname", ""), None)
    if hasattr(described, "registry"):
        for signature in others:
            content.parent.remove(signature)


def name_aliases(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, ...] | None:
    """Write a type alias inside another type by its name, too."""
    if not signature:
        return None
    texts = signature, returns
    return tuple(re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text or "") for text in texts)


def setup(app: Sphinx) -> None:
    """Register them all."""
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("missing-reference", resolve_reexport)
    app.connect("object-description-transform", keep_first_signature)
