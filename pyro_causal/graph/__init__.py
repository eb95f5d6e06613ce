"""Causal graphs: what can be answered from which data, and how."""

from pyro_causal.graph.admg import ADMG, do_calculus

__all__ = ["ADMG", "do_calculus"]
