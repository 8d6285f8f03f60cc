"""Base classes of detectors, for users who write a detector of their own."""

from .._parameters import PROCESS_PARAMETERS as PROCESS_PARAMETERS
from ._composite import CompositeDetector
from ._detector import BaseDetector, Judgement
from ._detector import Drift as Drift
from ._detector import calibration_scores as calibration_scores
from ._detector import check_rate as check_rate
from ._detector import conformal_p as conformal_p
from ._detector import open_images as open_images
from ._detector import rank_threshold as rank_threshold
from ._detector import tells_unlabelled as tells_unlabelled
from ._detector import two_samples as two_samples
from ._estimator import ImageEstimator as ImageEstimator
from ._estimator import gather as gather
from ._features import FeatureDetector
from ._features import HoldsBackbone as HoldsBackbone
from ._features import check_sums as check_sums
from ._features import merged as merged
from ._state import restore as restore
from ._state import state_of as state_of
from ._trained import TrainedDetector
from ._trained import TrainsInEpochs as TrainsInEpochs

# What is not in this list is for other rooms of the package, which may not use private names of a detector.
__all__ = ["BaseDetector", "CompositeDetector", "FeatureDetector", "Judgement", "TrainedDetector"]
