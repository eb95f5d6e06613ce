"""Mechanisms: modules that map the parents of a variable to its distribution."""

from pyro_causal.mechanisms.base import ContextNetwork, Mechanism, Recorded
from pyro_causal.mechanisms.discrete import ConditionalBernoulli, ConditionalCategorical
from pyro_causal.mechanisms.flows import ConditionalAffine, ConditionalSpline, interval_around
from pyro_causal.mechanisms.gaussian import ConditionalGaussian
from pyro_causal.mechanisms.geometry import ConditionalWarp, ConditionalZoom
from pyro_causal.mechanisms.hierarchical import HierarchicalNormal
from pyro_causal.mechanisms.low_level import ConditionalScale, SoftLogitTransform
from pyro_causal.mechanisms.networks import ConvDecoder, ConvEncoder, ConvPrior
from pyro_causal.mechanisms.neural import (
    AmortisedExplicit,
    AmortisedImplicit,
    AmortisedMechanism,
)

__all__ = [
    "AmortisedExplicit",
    "AmortisedImplicit",
    "AmortisedMechanism",
    "ConditionalAffine",
    "ConditionalBernoulli",
    "ConditionalCategorical",
    "ConditionalGaussian",
    "ConditionalScale",
    "ConditionalSpline",
    "ConditionalWarp",
    "ConditionalZoom",
    "ContextNetwork",
    "ConvDecoder",
    "ConvEncoder",
    "ConvPrior",
    "HierarchicalNormal",
    "Mechanism",
    "Recorded",
    "SoftLogitTransform",
    "interval_around",
]
