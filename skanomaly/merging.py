"""Detectors of several hospitals become one, without an image that moves.

A detector with ``keep_sums=True`` keeps the number, the sums and the sums of products of the features of its
training images. These add up: the sums of several detectors are those of all their images.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import TypeVar

import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from .base import PROCESS_PARAMETERS, FeatureDetector, check_sums, merged
from .networks.density import KeptMoments

__all__ = ["merge"]

Detector = TypeVar("Detector", bound=FeatureDetector)

#: Least number of images of a detector that is merged without `force`.
LEAST_IMAGES = 50

#: Parameters that may differ: how a fit runs, thresholds, draws and reading, whose results are compared.
MAY_DIFFER = PROCESS_PARAMETERS | {
    "backbone",
    "layers",
    "input_size",
    "contamination",
    "pixel_contamination",
    "random_state",
    "channel_axis",
    "image_shape",
    "intensity_range",
}

#: Attributes that must be equal, and what helps where they are not.
LEARNED = {
    "image_shape_": "resize the images to one shape, and fit again",
    "intensity_range_": "set intensity_range=(low, high) for all of them, and fit again",
    "backbone_": "give all of them the same frozen network, layers and input_size, and fit again",
}


def merge(detectors: Sequence[Detector], *, force: bool = False) -> Detector:
    """Detector whose scores and maps are those of one fit to the training images of all detectors.

    No image is needed, only the sums that the detectors keep. Up to rounding, their order does not matter.

    Parameters
    ----------
    detectors : sequence of FeatureGaussian or PaDiM
        Fitted detectors of one class with ``keep_sums=True`` and equal parameters. They stay as they are.
    force : bool, default=False
        Whether detectors of fewer than 50 images are merged, too. Sums of few images tell much of each.

    Returns
    -------
    detector
        New detector with the parameters of the first, which reads X as the first does and can be merged
        again. Its thresholds are the means of those of the detectors, weighted by their numbers of images:
        `calibrate` it on normal images of the place where it is used.

    Raises
    ------
    TypeError
        If the detectors are not of one class, or their class keeps no sums.
    ValueError
        If a detector keeps no sums or was fitted to fewer than 50 images; if parameters, the image shape, the
        range of intensities, the backbone or features drawn at random differ; if two detectors have the same
        sums, those of the same images; or if parameters were changed after `fit`, so that they no longer
        describe the network.
    NotFittedError
        If a detector is not fitted.

    See Also
    --------
    skanomaly.FeatureGaussian.partial_fit : Learn from more images.

    Examples
    --------
    >>> from skanomaly import FeatureGaussian, merge
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray(subset="train").images
    >>> sites = [FeatureGaussian(backbone="filters", keep_sums=True).fit(part) for part in (X[:99], X[99:])]
    >>> merge(sites).n_images_ == len(X)
    True
    """
    if isinstance(detectors, BaseEstimator):
        raise TypeError(
            f"detectors must be a list of fitted detectors, got one {type(detectors).__name__}; give "
            "merge([a, b]), or learn from more images by partial_fit"
        )
    detectors = [] if detectors is None else list(detectors)
    if not detectors:
        raise ValueError("detectors must hold at least one fitted detector, got none")
    for k, detector in enumerate(detectors):
        _check(f"detectors[{k}]", detector, force)
        _compare(f"detectors[{k}]", detector, detectors[0])
    for (k, one), (j, other) in combinations(enumerate(detectors), 2):
        if all(map(torch.equal, _sums(one), _sums(other))):
            raise ValueError(
                f"detectors must be of different images, got the same sums in detectors[{k}] and "
                f"detectors[{j}]; list each site once"
            )
    return merged(detectors)


def _sums(detector):
    """Sums of the features that a detector keeps, on the CPU."""
    return [module.sums.cpu() for module in detector.network_.modules() if isinstance(module, KeptMoments)]


def _check(name, detector, force):
    """Raise an error if a detector cannot be merged with any."""
    if not isinstance(detector, FeatureDetector) or "keep_sums" not in detector.get_params(deep=False):
        raise TypeError(
            f"{name} must be a detector with the parameter keep_sums, such as FeatureGaussian or PaDiM, got "
            f"{type(detector).__name__}"
        )
    check_is_fitted(detector, msg=f"{name}, a %(name)s, is not fitted; merge takes fitted detectors")
    if not detector.keep_sums:
        raise ValueError(f"{name} must keep its sums, got keep_sums=False; fit it again with keep_sums=True")
    check_sums(detector)
    if detector.n_images_ < LEAST_IMAGES and not force:
        raise ValueError(
            f"{name} must be fitted to {LEAST_IMAGES} images at least, got {detector.n_images_}: sums of few "
            "images tell much of each; fit it to more, or set force=True if all who get the result may know"
        )


def _compare(name, detector, first):
    """Raise an error if a detector cannot be merged with the first."""
    if type(detector) is not type(first):
        raise TypeError(
            f"{name} must be of the class of detectors[0], {type(first).__name__}, got "
            f"{type(detector).__name__}; merge those of each class by themselves"
        )
    expected = first.get_params(deep=False)
    for key, value in detector.get_params(deep=False).items():
        if key not in MAY_DIFFER and value != expected[key]:
            raise ValueError(
                f"{name} must have the parameters of detectors[0], got {key}={value!r} and not "
                f"{expected[key]!r}; fit all of them with the same"
            )
    for key, remedy in LEARNED.items():
        if (value := getattr(detector, key)) != getattr(first, key):
            raise ValueError(
                f"{name} must have the {key} of detectors[0], got {value} and not {getattr(first, key)}; "
                f"{remedy}"
            )
