"""Inference: training, checkpoints, and what methods add to Pyro's losses and guides."""

from pyro_causal.infer.elbo import DPMixtureELBO
from pyro_causal.infer.guides import DPMixtureGuide
from pyro_causal.infer.training import History, TrainingInterrupted, fit, restore

__all__ = ["DPMixtureELBO", "DPMixtureGuide", "History", "TrainingInterrupted", "fit", "restore"]
