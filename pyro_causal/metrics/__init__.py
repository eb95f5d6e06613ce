"""Metrics of what a causal model learned."""

from pyro_causal.metrics.counterfactual import (
    absolute_error,
    composition,
    effectiveness,
    reversibility,
    zero_one_error,
)
from pyro_causal.metrics.structure import (
    EdgeCounts,
    adjusted_rand_index,
    edge_counts,
    hamming_distance,
    match_regimes,
    structural_hamming_distance,
    structural_intervention_distance,
    target_f1,
)

__all__ = [
    "EdgeCounts",
    "absolute_error",
    "adjusted_rand_index",
    "composition",
    "edge_counts",
    "effectiveness",
    "hamming_distance",
    "match_regimes",
    "reversibility",
    "structural_hamming_distance",
    "structural_intervention_distance",
    "target_f1",
    "zero_one_error",
]
