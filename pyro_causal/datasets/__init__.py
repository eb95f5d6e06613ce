"""Data sets whose structural causal model is known, and loaders of published data."""

from pyro_causal.datasets.brain import (
    BrainNoise,
    brain_image,
    brain_phantom,
    draw_brain_noise,
    measure_brain_volumes,
    sample_brain_phantom,
)
from pyro_causal.datasets.digits import (
    load_morphomnist,
    load_morphomnist_covariates,
    measure_intensity,
    measure_thickness,
    morphomnist,
    morphomnist_covariates,
    set_intensity,
    set_thickness,
)
from pyro_causal.datasets.interventions import (
    InterventionalSCM,
    draw_interventional_scm,
    sample_interventional_table,
)
from pyro_causal.datasets.sachs import (
    SACHS_VARIABLES,
    load_sachs,
    load_sachs_levels,
    load_sachs_reagents,
)
from pyro_causal.datasets.tables import load_interventional_table

__all__ = [
    "SACHS_VARIABLES",
    "BrainNoise",
    "InterventionalSCM",
    "brain_image",
    "brain_phantom",
    "draw_brain_noise",
    "draw_interventional_scm",
    "load_interventional_table",
    "load_morphomnist",
    "load_morphomnist_covariates",
    "load_sachs",
    "load_sachs_levels",
    "load_sachs_reagents",
    "measure_brain_volumes",
    "measure_intensity",
    "measure_thickness",
    "morphomnist",
    "morphomnist_covariates",
    "sample_brain_phantom",
    "sample_interventional_table",
    "set_intensity",
    "set_thickness",
]
