"""Save a fitted detector to one file of JSON and tensors, and load it without running code from it.

A pickle runs whatever code its writer put in, so it can be loaded only from those one trusts. Here a file
holds parameters, weights and thresholds alone; the network is built by the installed package, and
nothing is taken from a file that does not fit it to the last tensor.
"""

import inspect
import math
import threading

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch.history import History
from torch.nn.modules.module import register_module_parameter_registration_hook

from . import _inference, _storage
from ._detector import PROCESS_PARAMETERS, BaseDetector
from ._discovery import all_detectors
from ._images import Layout
from ._random import seeded

__all__ = ["load", "save"]

#: Attributes of a fitted detector that `load` asks for, and what they must be.
FITTED = {
    "offset_": lambda v: isinstance(v, float) and math.isfinite(v),
    "pixel_offset_": lambda v: isinstance(v, float),
    "map_range_": lambda v: _are(v, float, 2),
    "intensity_range_": lambda v: _are(v, float, 2) and v[0] <= v[1],
    "image_shape_": lambda v: _are(v, int, 3) and min(v) > 0,
    "n_features_in_": lambda v: isinstance(v, int) and v > 0,
    "n_iter_": lambda v: isinstance(v, int) and v > 0,
    "history_": lambda v: isinstance(v, dict) and all(_is_history(stage) for stage in v.values()),
    "_layout": lambda v: isinstance(v, Layout) and v.channel_axis in (None, 1, 2, 3) and type(v.rows) is bool,
    "_kind": lambda v: v in ("uint8", "integer", "float"),
}


def _are(value, kind, length):
    return isinstance(value, tuple) and len(value) == length and all(isinstance(part, kind) for part in value)


def _is_history(value):
    return isinstance(value, History) and all(isinstance(row, dict) for row in value)


def save(detector, path, *, leave_out=()):
    """Write a detector, fitted or not, to one file.

    Parameters
    ----------
    detector : BaseDetector
        Its parameters may be numbers, strings, None, lists and tuples of these, and detectors.
        ``callbacks``, ``checkpoint_dir``, ``device``, ``verbose`` and RandomState objects are not saved:
        `load` gives their defaults.
    path : str or Path
        The file, replaced as a whole: an interrupted `save` leaves the old one.
    leave_out : sequence of str, default=()
        Parameters holding anything else (a module, a function), to be given to `load` again; of a
        nested detector as ``detector__encoder``.

    Raises
    ------
    TypeError
        For a parameter that cannot be saved, and for estimators that are not detectors.
    ValueError
        If parameters were changed after `fit`, so that they no longer describe the network.

    See Also
    --------
    load : Read it again.

    Examples
    --------
    >>> import tempfile
    >>> from skanomaly import AutoEncoder
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.persistence import load, save
    >>> X = load_chest_xray().images[:64]
    >>> detector = AutoEncoder(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(detector, f"{folder}/chest.skanomaly")
    ...     loaded = load(f"{folder}/chest.skanomaly")
    >>> (loaded.score_samples(X) == detector.score_samples(X)).all()
    np.True_
    """
    _check_detector(detector)
    leave_out = [leave_out] if isinstance(leave_out, str) else leave_out
    unknown = set(leave_out) - set(detector.get_params())
    if unknown:
        raise ValueError(
            f"leave_out names parameters that {type(detector).__name__} has not: {sorted(unknown)}"
        )
    _storage.write(path, "detector", _describe(detector, "", leave_out), encode=_encode)


def load(path, *, types=(), **parameters):
    """Read a detector that `save` wrote; no code in the file is run.

    Parameters
    ----------
    path : str or Path
        The file.
    types : sequence of type, default=()
        Detector classes from outside skanomaly that the file may use.
    **parameters : dict
        Parameters that were left out or are never saved, such as ``device``; of a nested detector as
        ``detector__device``.

    Returns
    -------
    detector : BaseDetector
        With the weights, thresholds and history that were saved, to the bit, on ``device``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For a file that is damaged, of a later format, or does not fit the installed package.
    TypeError
        For a parameter that is missing, or is in the file already.

    See Also
    --------
    save : Write such a file.
    """
    if not isinstance(types, (list, tuple)) or not all(isinstance(cls, type) for cls in types):
        raise TypeError(f"types must be a list of detector classes, got {types!r}")
    known = {f"skanomaly.{name}": detector for name, detector in all_detectors()}
    known |= {detector.__name__: detector for detector in types}
    try:
        content = _storage.read(path, "detector", decode=_decode)
        loader = _Loader(known, parameters)
        detector = loader.detector(content)
    except (_GivenError, ValueError):
        raise
    except (*_storage.MALFORMED, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} does not describe a detector: {error!r}") from error
    if unknown := set(parameters) - loader.used:
        raise TypeError(f"{type(detector).__name__} has no parameters {sorted(unknown)}")
    return detector


class _GivenError(TypeError):
    """What the caller of `load` gave is wrong, not the file."""


def _encode(value):
    """Types of attributes that the storage does not know."""
    if isinstance(value, Layout):
        return "layout", (value.image_shape, value.channel_axis, value.rows)
    raise TypeError(
        f"the fitted detector holds a {type(value).__name__}, which cannot be saved without code; "
        "joblib.dump can"
    )


def _decode(tag, content):
    if tag == "layout":
        return Layout(*content)
    raise TypeError(f"no value is written as {tag!r}")


def _check_detector(value, name="detector"):
    if not isinstance(value, BaseDetector):
        hint = "; a scikit-learn estimator, or what holds one, is saved by joblib.dump"
        raise TypeError(
            f"{name} must be a detector of skanomaly, got {type(value).__name__}"
            + (hint if isinstance(value, BaseEstimator) else "")
        )


# Both ways, side by side: a detector is a dict of class, parameters, fitted attributes and network.


def _describe(detector, prefix, leave_out):
    parameters, left_out = {}, []
    for name, value in detector.get_params(deep=False).items():
        if prefix + name in leave_out:
            left_out.append(name)
        elif name not in PROCESS_PARAMETERS and not isinstance(value, np.random.RandomState):
            parameters[name] = _describe_parameter(value, prefix + name, leave_out)
    cls = type(detector)
    ours = dict(all_detectors()).get(cls.__name__) is cls
    description = {
        "class": f"skanomaly.{cls.__name__}" if ours else cls.__name__,
        "parameters": parameters,
        "left_out": left_out,
    }
    if not hasattr(detector, "network_"):
        return description
    # A detector around another has no network but that one's.
    state = dict(detector.network_.state_dict()) if "network_" in vars(detector) else None
    if state is not None and (problem := _misfit(detector, state)):
        raise ValueError(
            f"the parameters of {cls.__name__} no longer describe its network ({problem}): they were changed "
            "after fit; set them back, or fit again"
        )
    fitted = {
        name: _describe_value(value, f"attribute {name}", _prefix_of(name, prefix), leave_out)
        for name, value in vars(detector).items()
        if name in FITTED or _is_fitted_name(name) and name not in ("network_", "device_")
    }
    return description | {"fitted": fitted, "network": state}


def _describe_value(value, what, prefix, leave_out):
    """The value, with the detectors in it described."""
    if isinstance(value, BaseEstimator):
        _check_detector(value, what)
        return {"nested": _describe(value, prefix, leave_out)}
    if type(value) in (tuple, list):
        return type(value)(_describe_value(part, what, prefix, leave_out) for part in value)
    return value


def _describe_parameter(value, name, leave_out):
    described = _describe_value(value, f"parameter {name}", f"{name}__", leave_out)
    if isinstance(value, (dict, set, np.ndarray, torch.Tensor)) or not _storage.packable(described):
        raise TypeError(
            f"parameter {name} is of type {type(value).__name__}, which cannot be saved without code; pass "
            f"leave_out=[{name!r}], and {name}=... to load"
        )
    return described


class _Loader:
    """Detectors from their descriptions.

    Parameters
    ----------
    known : dict of name to class
    given : dict
        Parameters from the caller; `used` are the names of those that found their place.
    """

    def __init__(self, known, given):
        self.known, self.given, self.used = known, given, set()

    def detector(self, description, prefix=""):
        name = description["class"]
        if name not in self.known:
            raise ValueError(
                f"the file holds a {name}, which is not in this skanomaly; give its class as types=[...]"
            )
        cls = self.known[name]
        names = set(inspect.signature(cls).parameters)
        saved, left_out = description["parameters"], set(description["left_out"])
        if unknown := set(saved) - names:
            raise ValueError(f"the file has parameters that {name} here has not: {sorted(unknown)}")
        parameters = {key: self.value(value, f"{prefix}{key}__") for key, value in saved.items()}
        for key in names:
            full = prefix + key
            if full in self.given and key in saved:
                raise _GivenError(f"parameter {full} is in the file; only those left out can be given")
            if full in self.given:
                parameters[key] = self.given[full]
                self.used.add(full)
            elif key in left_out:
                raise _GivenError(f"parameter {full} was left out of the file; give it to load")
        detector = cls(**parameters)
        detector._validate_params()
        if "fitted" in description:
            self.fill(detector, description["fitted"], description["network"], prefix)
        return detector

    def value(self, value, prefix):
        """Undo `_describe_value`."""
        if isinstance(value, dict) and set(value) == {"nested"}:
            return self.detector(value["nested"], prefix)
        if isinstance(value, (tuple, list)):
            return type(value)(self.value(part, prefix) for part in value)
        return value

    def fill(self, detector, fitted, state, prefix):
        if "history_" in fitted:
            fitted = fitted | {"history_": {k: History(rows) for k, rows in fitted["history_"].items()}}
        for name, value in fitted.items():
            if name not in FITTED and not _is_fitted_name(name):
                raise ValueError(f"{name!r} is not an attribute of a fitted detector")
            setattr(detector, name, self.value(value, _prefix_of(name, prefix)))
        for name, fits in FITTED.items():
            if not fits(value := getattr(detector, name)):
                raise ValueError(f"{name} cannot be {value!r}")
        if detector._layout.image_shape != detector.image_shape_:
            raise ValueError("two shapes of images do not agree")
        if state is None:
            return
        if problem := _misfit(detector, state):
            raise ValueError(f"the network in the file is not the one its parameters describe: {problem}")
        with seeded(0):
            network = detector._build(detector.image_shape_)
        network.load_state_dict(state)
        detector.device_ = _inference.resolve_device(detector.device)
        detector.network_ = detector._place(network).eval()


def _is_fitted_name(name):
    return name.isidentifier() and name.endswith("_") and not name.startswith("_")


def _prefix_of(attribute, prefix):
    """`detector_` is the fitted `detector`: the same parameters were left out of both."""
    return f"{prefix}{attribute.rstrip('_')}__"


def _misfit(detector, state):
    """How the network that the parameters describe differs from tensors, or "".

    It is built without memory, on torch's meta device, and no further than to as many parameters as
    there are tensors: whatever a file declares, it allocates nothing.
    """
    n_parameters, thread = 0, threading.get_ident()

    def count(module, name, parameter):
        nonlocal n_parameters
        if threading.get_ident() != thread:  # the hook is torch's, and sees all threads
            return
        n_parameters += parameter is not None
        if n_parameters > len(state):
            raise ValueError(f"it has more than the {len(state)} tensors there are")

    hook = register_module_parameter_registration_hook(count)
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
        hook.remove()
    expected = {key: (tuple(value.shape), value.dtype) for key, value in expected.items()}
    found = {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    differ = sorted(key for key in {**expected, **found} if expected.get(key) != found.get(key))
    if not differ:
        return ""
    key = differ[0]
    return f"{key} is {found.get(key, 'absent')} and should be {expected.get(key, 'absent')}"


def _first_line(error):
    """torch appends its own stack."""
    return str(error).partition("\n")[0]
