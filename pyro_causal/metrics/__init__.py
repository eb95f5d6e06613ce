"""Metrics of what a causal model learned."""

from pyro_causal.metrics.counterfactual import (
    absolute_error,
    composition,
    effectiveness,
    reversibility,
    zero_one_error,
)

__all__ = [
    "absolute_error",
    "composition",
    "effectiveness",
    "reversibility",
    "zero_one_error",
]
