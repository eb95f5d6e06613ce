"""Causal graphs: what can be answered from which data, and how."""

from pyro_causal.graph.admg import ADMG, do_calculus
from pyro_causal.graph.estimand import Estimand, PositivityError
from pyro_causal.graph.identify import Hedge, Unidentifiable, c_factor, identify, is_identifiable

__all__ = [
    "ADMG",
    "Estimand",
    "Hedge",
    "PositivityError",
    "Unidentifiable",
    "c_factor",
    "do_calculus",
    "identify",
    "is_identifiable",
]
