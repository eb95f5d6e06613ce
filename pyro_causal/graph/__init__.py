"""Causal graphs: what can be answered from which data, and how."""

from pyro_causal.graph.adjustment import (
    backdoor_set,
    frontdoor_set,
    is_backdoor_set,
    is_frontdoor_set,
)
from pyro_causal.graph.admg import ADMG, do_calculus
from pyro_causal.graph.bounds import Bounds, probability_bounds
from pyro_causal.graph.convert import from_dagitty, from_networkx, to_dagitty, to_networkx
from pyro_causal.graph.counterfactual import (
    Event,
    identify_counterfactual,
    path_specific,
    recanting_witnesses,
)
from pyro_causal.graph.estimand import Estimand, PositivityError
from pyro_causal.graph.hgraph import TrainingStep, h_graph, training_plan
from pyro_causal.graph.identify import Hedge, Unidentifiable, c_factor, identify, is_identifiable

__all__ = [
    "ADMG",
    "Bounds",
    "Estimand",
    "Event",
    "Hedge",
    "PositivityError",
    "TrainingStep",
    "Unidentifiable",
    "backdoor_set",
    "c_factor",
    "do_calculus",
    "from_dagitty",
    "from_networkx",
    "frontdoor_set",
    "h_graph",
    "identify",
    "identify_counterfactual",
    "is_backdoor_set",
    "is_frontdoor_set",
    "is_identifiable",
    "path_specific",
    "probability_bounds",
    "recanting_witnesses",
    "to_dagitty",
    "to_networkx",
    "training_plan",
]
