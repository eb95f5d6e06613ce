"""Methods from papers: each a model, a guide and a loss."""

from pyro_causal.methods.deep_scm import DeepSCM

__all__ = ["DeepSCM"]
