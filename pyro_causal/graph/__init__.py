"""Causal graphs: what can be answered from which data, and how."""

from pyro_causal.graph.admg import ADMG, do_calculus
from pyro_causal.graph.counterfactual import (
    Event,
    identify_counterfactual,
    path_specific,
    recanting_witnesses,
)
from pyro_causal.graph.estimand import Estimand, PositivityError
from pyro_causal.graph.identify import Hedge, Unidentifiable, c_factor, identify, is_identifiable

__all__ = [
    "ADMG",
    "Estimand",
    "Event",
    "Hedge",
    "PositivityError",
    "Unidentifiable",
    "c_factor",
    "do_calculus",
    "identify",
    "identify_counterfactual",
    "is_identifiable",
    "path_specific",
    "recanting_witnesses",
]
