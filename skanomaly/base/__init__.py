"""Base classes of detectors, for writing one's own."""

from .._parameters import PROCESS_PARAMETERS
from ._composite import CompositeDetector
from ._detector import BaseDetector, Judgement, open_images, tells_unlabelled
from ._state import restore, state_of
from ._trained import TrainedDetector

__all__ = [
    "PROCESS_PARAMETERS",
    "BaseDetector",
    "CompositeDetector",
    "Judgement",
    "TrainedDetector",
    "open_images",
    "restore",
    "state_of",
    "tells_unlabelled",
]
