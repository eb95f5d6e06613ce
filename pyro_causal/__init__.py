"""Causal handlers, queries and mechanisms for ordinary Pyro programs."""

from pyro_causal.effects import (
    average_effect,
    conditional_average_effect,
    effect_on_treated,
    mediation_actions,
    natural_direct_effect,
    natural_indirect_effect,
    probability_of_necessity,
    probability_of_necessity_and_sufficiency,
    probability_of_sufficiency,
)
from pyro_causal.handlers import do, soft, world, worlds
from pyro_causal.infer import fit
from pyro_causal.program import causal_graph
from pyro_causal.queries import (
    CounterfactualPredictive,
    QueryResult,
    counterfactual_function,
    query,
)

__all__ = [
    "CounterfactualPredictive",
    "QueryResult",
    "__version__",
    "average_effect",
    "causal_graph",
    "conditional_average_effect",
    "counterfactual_function",
    "do",
    "effect_on_treated",
    "fit",
    "mediation_actions",
    "natural_direct_effect",
    "natural_indirect_effect",
    "probability_of_necessity",
    "probability_of_necessity_and_sufficiency",
    "probability_of_sufficiency",
    "query",
    "soft",
    "world",
    "worlds",
]

__version__ = "0.1.0"
