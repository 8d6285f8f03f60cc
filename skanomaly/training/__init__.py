"""Stages of training that several methods share."""

from ._adversarial import Adversarial
from ._memory import MemoryTraining
from ._reconstruction import Reconstruction
from ._training import Training
from ._variational import Variational
from ._wasserstein import Wasserstein

__all__ = ["Adversarial", "MemoryTraining", "Reconstruction", "Training", "Variational", "Wasserstein"]
