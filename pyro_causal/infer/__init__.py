"""Inference: training, checkpoints, and what methods add to Pyro's losses and guides."""

from pyro_causal.infer.training import History, TrainingInterrupted, fit, restore

__all__ = ["History", "TrainingInterrupted", "fit", "restore"]
