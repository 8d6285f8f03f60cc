"""State of a fitted detector, as plain values and tensors, and how a detector is restored from it."""

import math
import threading
from collections import Counter
from functools import partial

import numpy as np
import torch
from skorch.history import History
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from .. import _inference
from .._finite import check_tensors
from .._format import Layout
from .._random import seeded
from ..networks.backbone import imagenet
from ._composite import CompositeDetector
from ._detector import BaseDetector
from ._trained import TrainsInEpochs

#: Attributes of a fitted estimator, and a test of each value, for `save` and for `load`. A file may be
#: forged: wrong values must fail here, not later in a score.
FITTED = {
    "intensity_range_": lambda v: _are(v, float, 2) and all(map(_is_finite, v)) and v[0] <= v[1],
    "image_shape_": lambda v: _are(v, int, 3) and min(v) > 0,
    "n_features_in_": lambda v: isinstance(v, int) and v > 0,
    "_layout": lambda v: isinstance(v, Layout) and v.channel_axis in (None, 1, 2, 3) and type(v.rows) is bool,
    "_kind": lambda v: v in ("uint8", "integer", "float"),
}
#: Attributes that only detectors have, and those of estimators that are trained in epochs.
JUDGES = {
    "offset_": lambda v: _is_finite(v),
    # nan: a method without a map.
    "pixel_offset_": lambda v: _is_finite(v) or _is_nan(v),
    "map_range_": lambda v: _are(v, float, 2) and (all(map(_is_finite, v)) or all(map(_is_nan, v))),
}
#: Attributes that are there after a calibration only.
CALIBRATED = {"calibration_scores_": lambda v: _is_sorted(v)}
TRAINED = {
    "n_iter_": lambda v: isinstance(v, int) and v > 0,
    "history_": lambda v: isinstance(v, dict) and all(_is_history(stage) for stage in v.values()),
}


def _is_finite(value):
    return isinstance(value, float) and math.isfinite(value)


def _is_nan(value):
    return isinstance(value, float) and math.isnan(value)


def _are(value, kind, length):
    return isinstance(value, tuple) and len(value) == length and all(isinstance(part, kind) for part in value)


def _is_sorted(value):
    is_array = (
        isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 1 and len(value) > 0
    )
    return is_array and np.isfinite(value).all() and (np.diff(value) >= 0).all()


def _is_history(value):
    return isinstance(value, History) and all(isinstance(row, dict) for row in value)


def _check_attributes(detector, attributes):
    """Raise an error if attributes cannot be those of a fit."""
    rules = FITTED.copy()
    for kind, more in (BaseDetector, JUDGES), (TrainsInEpochs, TRAINED):
        rules |= more if isinstance(detector, kind) else {}
    rules |= {name: rule for name, rule in CALIBRATED.items() if name in attributes}
    for name, fits in rules.items():
        if name not in attributes or not fits(attributes[name]):
            raise ValueError(f"{name} cannot be {attributes.get(name, 'absent')!r}")
    detector._check_own_attributes(attributes)


def state_of(detector):
    """Attributes of a fitted detector, and the tensors of its network (None without a network of its own).

    Both are None if the detector is not fitted.

    Raises
    ------
    ValueError
        If a parameter is out of range, if parameters were changed after `fit`, so that they no longer
        describe the network, or if attributes cannot be those of a fit, such as a threshold of nan.
        If a weight or a statistic of the network is not finite.
    """
    detector._validate_params()
    if "_format" not in vars(detector):
        return None, None
    # vars, not hasattr: PatchDetector's network is that of the detector inside, and is saved with it.
    tensors = dict(detector.network_.state_dict()) if "network_" in vars(detector) else None
    if tensors is not None and (problem := _misfit(detector, tensors)):
        raise ValueError(
            f"the parameters of {type(detector).__name__} no longer describe its network ({problem}): they "
            "were changed after fit; set them back, or fit again"
        )
    check_tensors(tensors or {})
    learned = detector._format
    attributes = {
        "image_shape_": learned.image_shape,
        "intensity_range_": learned.intensity_range,
        "_layout": learned.layout,
        "_kind": learned.kind,
    }
    for name, value in vars(detector).items():
        if _is_fitted_name(name) and name not in ("network_", "device_"):
            attributes[name] = value
    _check_attributes(detector, attributes)
    return attributes, tensors


def restore(detector, attributes, tensors):
    """Undo `state_of`, in a detector with the same parameters. With `attributes=None` it stays unfitted.

    Raises
    ------
    ValueError
        If the attributes cannot be those of a fit, or the tensors do not fit the network that the parameters
        describe, or are not finite.
    """
    detector._validate_params()
    if attributes is None:
        return
    attributes = dict(attributes)
    if "history_" in attributes:
        attributes["history_"] = {k: History(rows) for k, rows in attributes["history_"].items()}
    # In older files of PatchDetector, only the detector inside has an intensity range.
    if "detector_" in attributes:
        attributes.setdefault("intensity_range_", attributes["detector_"].intensity_range_)
    _check_attributes(detector, attributes)
    layout, image_shape = attributes.pop("_layout"), attributes.pop("image_shape_")
    # Not compared without tensors: older files of PatchDetector have the layout of the first image instead.
    if layout.image_shape != image_shape and tensors is not None:
        raise ValueError("two shapes of images do not agree")
    layout = Layout(image_shape, layout.channel_axis, layout.rows)
    kind, intensity_range = attributes.pop("_kind"), attributes.pop("intensity_range_")
    detector._format = detector._format_class(layout, kind, intensity_range, detector._image_range)
    for name, value in attributes.items():
        if not _is_fitted_name(name):
            raise ValueError(f"{name!r} is not an attribute of a fitted detector")
        setattr(detector, name, value)
    if tensors is None and isinstance(detector, CompositeDetector):
        return
    if problem := _misfit(detector, tensors or {}):
        raise ValueError(f"the network in the file is not the one its parameters describe: {problem}")
    check_tensors(tensors or {})
    detector.device_ = _inference.resolve_device(detector.device)
    with seeded(0):
        network = detector._new_network()
        network.load_state_dict(tensors)
    detector.network_ = network.eval()


def _is_fitted_name(name):
    return name.isidentifier() and name.endswith("_") and not name.startswith("_")


def _misfit(detector, state):
    """Difference between the tensors `state` and the network that the parameters describe, in words.

    The difference is "" if there is none. The network is built on torch's meta device, which allocates
    nothing. Building stops once the network has too many parameters or buffers for these tensors, so that no
    file can exhaust memory or time.
    """
    counts, thread = Counter(), threading.get_ident()

    def count(kind, limit, module, name, tensor):
        if threading.get_ident() != thread:  # torch also calls the hook for networks of other threads
            return
        # A frozen backbone has weights, and is no part of the file.
        counts[kind] += tensor is not None and tensor.is_meta
        if counts[kind] > limit:
            raise ValueError(f"it has more than the {len(state)} tensors there are")

    # Loaded before the count: it is not of the file, but its weights begin on the meta device, too.
    if isinstance(detector, TrainsInEpochs) and getattr(detector, "backbone", None) == "imagenet":
        imagenet("cpu")
    hooks = [
        register_module_parameter_registration_hook(partial(count, "parameter", len(state))),
        # More buffers than tensors are allowed: buffers that are not persistent are not in a state_dict.
        register_module_buffer_registration_hook(partial(count, "buffer", 2 * len(state) + 100)),
    ]
    try:
        with seeded(0), torch.device("meta"):
            expected = detector._build(detector.image_shape_).state_dict()
    except NotImplementedError as error:
        raise ValueError(
            f"{type(detector).__name__}._build cannot run on torch's meta device, on which networks are "
            f"checked before they take memory: {_first_line(error)}"
        ) from error
    except (ValueError, RuntimeError, OverflowError, TypeError) as error:
        return _first_line(error)
    finally:
        for hook in hooks:
            hook.remove()
    expected = {key: (tuple(value.shape), value.dtype) for key, value in expected.items()}
    found = {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    differ = sorted(key for key in {**expected, **found} if expected.get(key) != found.get(key))
    if not differ:
        return ""
    key = differ[0]
    return f"{key} is {found.get(key, 'absent')} and should be {expected.get(key, 'absent')}"


def _first_line(error):
    """First line of an error message, without the stack that torch appends to the message."""
    return str(error).partition("\n")[0]
