"""Mechanisms: modules that map the parents of a variable to its distribution."""

from pyro_causal.mechanisms.base import ContextNetwork, Mechanism
from pyro_causal.mechanisms.discrete import ConditionalBernoulli, ConditionalCategorical
from pyro_causal.mechanisms.flows import ConditionalAffine, ConditionalSpline, interval_around
from pyro_causal.mechanisms.gaussian import ConditionalGaussian

__all__ = [
    "ConditionalAffine",
    "ConditionalBernoulli",
    "ConditionalCategorical",
    "ConditionalGaussian",
    "ConditionalSpline",
    "ContextNetwork",
    "Mechanism",
    "interval_around",
]
