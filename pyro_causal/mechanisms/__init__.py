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
from pyro_causal.mechanisms.sem import LinearSEM, StructuralEquations, sample_adjacency
from pyro_causal.mechanisms.sem_mixture import IntervenedRows
from pyro_causal.mechanisms.sem_neural import FlowSEM, NonlinearSEM
from pyro_causal.mechanisms.sem_program import StructuralModel

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
    "FlowSEM",
    "HierarchicalNormal",
    "IntervenedRows",
    "LinearSEM",
    "Mechanism",
    "NonlinearSEM",
    "Recorded",
    "SoftLogitTransform",
    "StructuralEquations",
    "StructuralModel",
    "interval_around",
    "sample_adjacency",
]
