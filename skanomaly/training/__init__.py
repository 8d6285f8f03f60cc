"""Training of networks on skorch: the base of all stages, stages that several methods share, and losses."""

from ._adversarial import Adversarial, discriminator_loss, generator_loss
from ._byol import SelfSupervised, byol_loss, follow, running_statistics_kept, view_pair
from ._distillation import (
    DescribedImages,
    Distillation,
    Students,
    TeacherTraining,
    compactness_loss,
    direction_error,
    distillation_error,
    magnitude_error,
    triplet_loss,
)
from ._memory import MemoryTraining
from ._progress import CallbackSupport
from ._reconstruction import Reconstruction
from ._synthetic import SyntheticAnomalyTraining
from ._training import Training
from ._variational import Variational, negative_elbo
from ._wasserstein import Wasserstein

__all__ = [
    "Adversarial",
    "CallbackSupport",
    "DescribedImages",
    "Distillation",
    "MemoryTraining",
    "Reconstruction",
    "SelfSupervised",
    "Students",
    "TeacherTraining",
    "SyntheticAnomalyTraining",
    "Training",
    "Variational",
    "Wasserstein",
    "byol_loss",
    "compactness_loss",
    "direction_error",
    "discriminator_loss",
    "distillation_error",
    "follow",
    "generator_loss",
    "magnitude_error",
    "negative_elbo",
    "running_statistics_kept",
    "triplet_loss",
    "view_pair",
]
