"""From a Pyro program to its causal graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from pyro_causal._actions import require_sites
from pyro_causal._statements import Statement, read_statements
from pyro_causal.graph.admg import ADMG

__all__ = ["causal_graph", "graph_of", "hidden_causes", "look_through"]


def causal_graph(
    model: Callable[..., Any],
    *args: Any,
    latent: Collection[str] | None = None,
    keep_deterministic: bool | Collection[str] = False,
    **kwargs: Any,
) -> ADMG:
    r"""The causal graph of a Pyro program, read off one run.

    The program runs once with ``args`` and ``kwargs``, and every tensor remembers the sites whose
    values it was computed from. An edge :math:`x \to y` says that the value of x flows into the
    distribution of y otherwise than through other sites.

    - **Nodes** are the sample sites, in the order of the program.
    - **Deterministic** sites are looked through; or kept, as ``keep_deterministic`` says.
    - **Latent** sites are projected out, and leave bidirected edges between those that they act on.
    - **Plates** tell confounders from parameters. A latent site outside of all plates has one value
      for all units: it is a parameter (a regression weight, say) of two sites that share a plate,
      and does not confound them. It does if it may hold a value for each unit (one of its dims has
      the size of a plate of theirs), if it stands in a plate, and where sites share no plate.
    - **Interventions** by :func:`pyro_causal.do` around the program are respected: a hard or
      stochastic target has no parents, a function of the natural value keeps them if it uses that
      value, and under :class:`pyro_causal.soft` the target has the parents of the surrogate. Under
      :func:`pyro_causal.worlds` the graph is that of the factual world.
    - **Python control flow** on values (``if x > 0``, ``int(x)``, ``x.numpy()``, ``len(x[x > 0])``)
      hides where a value goes, and so does a value that is no tensor: every later site counts as
      depending on x, and a warning says so. One run shows one branch; a program whose sites change
      from run to run has no single graph.

    Flow is what counts, not size: ``0 * x`` flows. It is followed by whole tensors, so who reads
    one column of a matrix depends on all that was written into it. Under ``poutine.reparam`` the
    auxiliary sites are nodes, and those that they replace are deterministic. Sites that a
    ``poutine.block`` hides are not followed.

    What is seen is what goes from ``pyro.sample`` through tensors. So use the value that
    ``pyro.sample`` returns, not the data that it was given as ``obs``. Randomness outside of sites
    (``torch.randn``, dropout) is no hidden cause of the sites that share it, and pickles, DLPack
    capsules and threads lose the trace without a word. Parameters, random state and the buffers of
    a module (if it, or a method of it, is the program) are as before afterwards.

    **Arguments**

    - ``latent``: names of the sites that are not observed. By default, if the program observes
      any site (by ``obs=`` or ``poutine.condition``), those that it does not observe or intervene
      on; else none.
    - ``keep_deterministic``: true to make all `pyro.deterministic` sites nodes, or the names of
      those to keep.

    **Raises** ``ValueError``: a `pyro.factor` of sites that are not parameters, which selects units
    and has no place in a graph; a name that no site bears; `pyro.poutine.do`.

    **Warns** ``UserWarning``: Python control flow on values.

    **References** Wingate et al. 2011, Nonstandard interpretations of probabilistic programs
    (provenance). Verma & Pearl 1990, Equivalence and synthesis of causal models (projection).

    **Example** A front door, with its hidden confounder.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> from pyro_causal import causal_graph, do
    >>> def model():
    ...     u = pyro.sample("u", dist.Normal(0.0, 1.0))
    ...     x = pyro.sample("x", dist.Normal(u, 1.0))
    ...     m = pyro.sample("m", dist.Normal(2 * x, 1.0))
    ...     pyro.sample("y", dist.Normal(m + u, 1.0))
    >>> causal_graph(model, latent={"u"})
    ADMG('x -> m; m -> y; x <-> y')
    >>> causal_graph(do(model, {"x": 1.0}), latent={"u"})
    ADMG('x -> m; m -> y')
    """
    statements = read_statements(model, args, kwargs, stacklevel=2)
    computed = [name for name, site in statements.items() if site.computed]
    if isinstance(keep_deterministic, bool):
        keep_deterministic = computed if keep_deterministic else ()
    require_sites(keep_deterministic, computed, "`keep_deterministic`")
    statements = look_through(statements, set(computed) - set(keep_deterministic))
    return graph_of(statements, _unobserved(statements) if latent is None else latent)


def _unobserved(statements: Mapping[str, Statement]) -> set[str]:
    """What the program leaves open beside what it observes, if it observes anything."""
    variables = {name: site for name, site in statements.items() if not site.factor}
    if not any(site.observed for site in variables.values()):
        return set()
    return {n for n, s in variables.items() if not (s.observed or s.target or s.computed)}


def look_through(
    statements: Mapping[str, Statement], names: Collection[str]
) -> dict[str, Statement]:
    """Leave out some sites: what reads them depends on what they depend on."""
    seen: dict[str, Statement] = {}
    for name, site in statements.items():
        beyond = (seen[parent].parents for parent in site.parents if parent in names)
        parents = site.parents.difference(names).union(*beyond)
        seen[name] = replace(site, parents=parents)
    return {name: site for name, site in seen.items() if name not in names}


def graph_of(statements: Mapping[str, Statement], latent: Collection[str]) -> ADMG:
    """The graph of the sites that are not latent.

    **Raises** ``ValueError``: a latent name that no site bears; a factor that selects.
    """
    sites = {name: site for name, site in statements.items() if not site.factor}
    require_sites([latent] if isinstance(latent, str) else latent, sites, "`latent`")
    full = _full_graph(sites)
    reached = _reached(full, latent)
    _refuse_selection(statements, reached)
    confounded = {
        frozenset(pair)
        for name, children in reached.items()
        for pair in combinations(children, 2)
        if not sites[name].extent.is_shared_by(*(sites[child].extent for child in pair))
    }
    projected = full.latent_projection(latent)
    arcs = [arc for arc in projected.bidirected if frozenset(arc) in confounded]
    return ADMG(projected.directed, arcs, projected.nodes)


def hidden_causes(
    statements: Mapping[str, Statement], latent: Collection[str], target: str
) -> list[str]:
    """The latent sites that act on a site, directly or through latent ones; not its parameters."""
    sites = {name: site for name, site in statements.items() if not site.factor}
    return [
        name
        for name, children in _reached(_full_graph(sites), latent).items()
        if target in children and not sites[name].extent.is_shared_by(sites[target].extent)
    ]


def _full_graph(sites: Mapping[str, Statement]) -> ADMG:
    return ADMG(
        [(a, b) for b, site in sites.items() for a in sites if a in site.parents], nodes=sites
    )


def _reached(full: ADMG, latent: Collection[str]) -> dict[str, tuple[str, ...]]:
    """For each latent site the others that it acts on, directly or through latent ones alone."""
    hidden = full.mask(latent, "`latent`")
    open_paths = full.bits.cut(outgoing=full.bits.all & ~hidden)
    return {
        name: full.names(open_paths.descendants(full.mask(name)) & ~hidden)
        for name in full.names(hidden)
    }


def _refuse_selection(
    statements: Mapping[str, Statement], reached: Mapping[str, tuple[str, ...]]
) -> None:
    """Raise for a factor that depends on more than parameters."""
    for name, factor in statements.items():
        for parent in factor.parents if factor.factor else ():
            children = [statements[child].extent for child in reached.get(parent, ())]
            if parent not in reached or not statements[parent].extent.is_shared_by(*children):
                raise ValueError(
                    f"At site '{name}', a pyro.factor that depends on '{parent}': it selects "
                    "units by their values, which directed and bidirected edges cannot express. "
                    "Do write the graph by hand, or the factor as the likelihood of a site."
                )
