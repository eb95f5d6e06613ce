"""Methods from papers: each a model, a guide and a loss."""

from pyro_causal.methods.deep_scm import DeepSCM
from pyro_causal.methods.latent_interventions import LatentInterventions

__all__ = ["DeepSCM", "LatentInterventions"]
