"""Training of networks on skorch: the base of all stages, stages that several methods share, and losses."""

from ._adversarial import Adversarial, discriminator_loss, generator_loss
from ._byol import SelfSupervised, byol_loss, follow, running_statistics_kept, view_pair
from ._memory import MemoryTraining
from ._progress import CallbackSupport
from ._reconstruction import Reconstruction
from ._training import Training
from ._variational import Variational, negative_elbo
from ._wasserstein import Wasserstein

__all__ = [
    "Adversarial",
    "CallbackSupport",
    "MemoryTraining",
    "Reconstruction",
    "SelfSupervised",
    "Training",
    "Variational",
    "Wasserstein",
    "byol_loss",
    "discriminator_loss",
    "follow",
    "generator_loss",
    "negative_elbo",
    "running_statistics_kept",
    "view_pair",
]
