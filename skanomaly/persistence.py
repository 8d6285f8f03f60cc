"""Save a detector to one file of JSON and tensors, and load it without running code from the file.

A pickle runs whatever code its writer put into it, so that only pickles of trusted people can be loaded. The
files of `save` hold no code, only parameters, fitted attributes (thresholds and training history among them)
and the tensors of the network. `load` builds the network with the installed package, and refuses a file whose
tensors do not fit that network.
"""

import inspect
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

from . import _storage
from ._discovery import all_detectors
from ._format import Layout
from ._random import default_modes
from .base import PROCESS_PARAMETERS, BaseDetector, restore, state_of
from .encoders import SelfSupervisedEncoder

__all__ = ["load", "save"]


def save(detector: BaseDetector, path: str | PathLike, *, leave_out: Sequence[str] = ()) -> None:
    """Write a detector, fitted or not, to one file.

    Parameters
    ----------
    detector : BaseDetector
        Detector whose parameters are numbers, strings, None, detectors, or lists and tuples of these.
        ``callbacks``, ``checkpoint_dir``, ``device``, ``verbose`` and RandomState objects are not saved; the
        loaded detector has the defaults of these parameters.
    path : str or Path
        File to write. It is replaced as a whole: an interrupted `save` leaves the old file. A leading "~" is
        the home folder.
    leave_out : sequence of str, default=()
        Names of parameters that cannot be saved, because they hold a module or a function, for example. Their
        values must be passed to `load`. Parameters of a nested detector have names like
        ``detector__encoder``, those of a member of a `ScoreEnsemble` begin with its name.

    Raises
    ------
    TypeError
        If a parameter or an attribute cannot be saved, which the message names, or the estimator is not a
        detector.
    ValueError
        If parameters were changed after `fit`, so that they no longer describe the network, or if `load`
        would refuse a parameter or an attribute, such as a threshold of nan.

    See Also
    --------
    load : Read such a file.

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
    if unknown := set(leave_out) - set(detector.get_params()):
        raise ValueError(
            f"leave_out names parameters that {type(detector).__name__} has not: {sorted(unknown)}"
        )
    with default_modes():
        _storage.write(path, "detector", _describe(detector, "", leave_out), encode=_encode)


def load(path: str | PathLike, *, types: Sequence[type] = (), **parameters: Any) -> BaseDetector:
    """Read a detector that `save` wrote, without running code from the file.

    Parameters
    ----------
    path : str or Path
        File to read.
    types : sequence of type, default=()
        Detector classes from outside skanomaly that the file may use.
    **parameters : dict
        Parameters that were left out or are never saved, such as ``device``. Parameters of a nested detector
        have names like ``detector__device``.

    Returns
    -------
    detector : BaseDetector
        Detector with the weights, thresholds and history that were saved, to the bit, on ``device``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of a later format, or does not fit the installed package.
    TypeError
        If a parameter is missing, or given although it is in the file.

    See Also
    --------
    save : Write such a file.
    """
    if not isinstance(types, (list, tuple)) or not all(isinstance(cls, type) for cls in types):
        raise TypeError(f"types must be a list of detector classes, got {types!r}")
    known = {f"skanomaly.{name}": cls for name, cls in _ours().items()}
    known |= {detector.__name__: detector for detector in types}
    try:
        loader = _Loader(known, parameters)
        with default_modes():
            detector = loader.detector(_storage.read(path, "detector", decode=_decode))
    except (_GivenError, ValueError):
        raise
    except (*_storage.MALFORMED, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} does not describe a detector: {error!r}") from error
    if unknown := set(parameters) - loader.used:
        raise TypeError(f"{type(detector).__name__} has no parameters {sorted(unknown)}")
    return detector


class _GivenError(TypeError):
    """Error in what the caller of `load` passed, not in the file."""


def _encode(value):
    """Tag and content of an attribute whose type the storage does not know."""
    if isinstance(value, Layout):
        return "layout", (value.image_shape, value.channel_axis, value.rows)
    return None


def _decode(tag, content):
    if tag == "layout":
        return Layout(*content)
    raise TypeError(f"no value is written as {tag!r}")


def _ours():
    """Classes of this package that a file may hold, by name."""
    return dict(all_detectors()) | {SelfSupervisedEncoder.__name__: SelfSupervisedEncoder}


def _check_detector(value, name="detector"):
    if not isinstance(value, (BaseDetector, SelfSupervisedEncoder)):
        hint = "; a scikit-learn estimator, or what holds one, is saved by joblib.dump"
        hint = hint if isinstance(value, BaseEstimator) else ""
        raise TypeError(f"{name} must be a detector of skanomaly, got {type(value).__name__}{hint}")


# A detector in a file is a dict of class, parameters, fitted attributes and network.


def _describe(detector, prefix, leave_out):
    parameters, left_out = {}, []
    for name, value in detector.get_params(deep=False).items():
        if prefix + name in leave_out:
            left_out.append(name)
        elif name not in PROCESS_PARAMETERS and not isinstance(value, np.random.RandomState):
            parameters[name] = _describe_parameter(value, prefix + name, leave_out)
    cls = type(detector)
    # A class of the same name from outside the package must not be loaded as ours.
    ours = _ours().get(cls.__name__) is cls
    description = {
        "class": f"skanomaly.{cls.__name__}" if ours else cls.__name__,
        "parameters": parameters,
        "left_out": left_out,
        "version": cls._file_version,
    }
    attributes, tensors = state_of(detector)
    if attributes is None:
        return description
    fitted = {
        name: _describe_value(value, f"attribute {name}", _prefix_of(name, prefix), leave_out)
        for name, value in attributes.items()
    }
    return description | {"fitted": fitted, "network": tensors}


def _describe_value(value, what, prefix, leave_out):
    """Value in which each detector is replaced by its description."""
    if isinstance(value, FrozenEstimator):
        return {"frozen": _describe_value(value.estimator, what, f"{prefix}estimator__", leave_out)}
    if isinstance(value, BaseEstimator):
        _check_detector(value, what)
        return {"nested": _describe(value, prefix, leave_out)}
    if _is_member(value, BaseEstimator):
        name, detector = value
        return name, _describe_value(detector, f"{what} {name}", _prefix_of_member(name, prefix), leave_out)
    if type(value) in (tuple, list):
        return type(value)(_describe_value(part, what, prefix, leave_out) for part in value)
    return value


def _describe_parameter(value, name, leave_out):
    described = _describe_value(value, f"parameter {name}", f"{name}__", leave_out)
    if isinstance(value, (dict, set, np.ndarray, torch.Tensor)) or not _storage.packable(described, _encode):
        raise TypeError(
            f"parameter {name} is of type {type(value).__name__}, which cannot be saved without code; pass "
            f"leave_out=[{name!r}], and {name}=... to load"
        )
    return described


class _Loader:
    """Maker of detectors from their descriptions.

    Parameters
    ----------
    known : dict of str to type
        Classes that a description may have, by name.
    given : dict of str to object
        Detector parameters that the caller passed to `load`, by full name, such as ``detector__device``. The
        attribute `used` holds the names of those that a detector was given.
    """

    def __init__(self, known, given):
        self.known, self.given, self.used = known, given, set()

    def detector(self, description, prefix=""):
        """Undo `_describe`."""
        name = description["class"]
        if name not in self.known:
            raise ValueError(
                f"the file holds a {name}, which is not in this skanomaly; give its class as types=[...]"
            )
        cls = self.known[name]
        # Files from before there were versions do not say one.
        if (version := description.get("version", 1)) != cls._file_version:
            raise ValueError(
                f"the file holds a {name} of file version {version}, and the network here is of version "
                f"{cls._file_version}; fit it again, or load it with the skanomaly that wrote it"
            )
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
        attributes = None
        if "fitted" in description:
            fitted = description["fitted"].items()
            attributes = {key: self.value(value, _prefix_of(key, prefix)) for key, value in fitted}
        restore(detector, attributes, description.get("network"))
        return detector

    def value(self, value, prefix):
        """Undo `_describe_value`."""
        if isinstance(value, dict) and set(value) == {"frozen"}:
            return FrozenEstimator(self.value(value["frozen"], f"{prefix}estimator__"))
        if isinstance(value, dict) and set(value) == {"nested"}:
            return self.detector(value["nested"], prefix)
        if _is_member(value, dict):
            name, description = value
            return name, self.value(description, _prefix_of_member(name, prefix))
        if isinstance(value, (tuple, list)):
            return type(value)(self.value(part, prefix) for part in value)
        return value


def _is_member(value, kind):
    """Whether a value is a pair (name, detector) of a composition, where detectors are of type `kind`."""
    is_pair = type(value) is tuple and len(value) == 2
    return is_pair and isinstance(value[0], str) and isinstance(value[1], kind)


def _prefix_of_member(name, prefix):
    """Prefix of the parameters of a member: its name stands in place of that of the list it is in."""
    outer, separator, _ = prefix.removesuffix("__").rpartition("__")
    return f"{outer}{separator}{name}__"


def _prefix_of(attribute, prefix):
    """Prefix of the parameters of a nested detector: the same for `detector` and the fitted `detector_`."""
    return f"{prefix}{attribute.rstrip('_')}__"
