"""Stages of training that several methods share."""

from ._adversarial import Adversarial
from ._reconstruction import Reconstruction
from ._training import Training
from ._variational import Variational
from ._wasserstein import Wasserstein

__all__ = ["Adversarial", "Reconstruction", "Training", "Variational", "Wasserstein"]
