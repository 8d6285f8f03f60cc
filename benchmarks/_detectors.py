"""Detectors by name, found and not listed; variants as NAME:parameter=value,parameter=value."""

import ast
import re

from skanomaly._detector import PROCESS_PARAMETERS, BaseDetector
from skanomaly.testing import all_detectors


def names():
    """Those with a training of their own; what holds another detector is asked for by name."""
    return [name for name, cls in all_detectors() if cls._train is not BaseDetector._train]


def make(variant, **parameters):
    """A detector for "FAnoGAN" or "FAnoGAN:encoder_training=izi,lr=1e-3"."""
    name, _, settings = variant.partition(":")
    known = dict(all_detectors())
    if name not in known:
        raise SystemExit(f"there is no detector {name!r}; there are {', '.join(known)}")
    for setting in filter(None, re.split(r",(?![^()]*\))", settings)):  # not within parentheses
        parameter, _, value = setting.partition("=")
        try:
            parameters[parameter] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[parameter] = value
    return known[name](**parameters)


def with_epochs(detector, n_epochs):
    """Every stage as long as this, and searches of ten times as many steps; None leaves them."""
    if n_epochs:
        for name in detector.get_params():
            if name == "max_epochs" or name.endswith("_epochs"):
                detector.set_params(**{name: n_epochs})
            elif name == "n_search":
                detector.set_params(n_search=10 * n_epochs)
    return detector


def describe(detector):
    """The parameters that decide a result, for JSON."""
    parameters = detector.get_params(deep=False)
    return {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
        for name, value in parameters.items()
        if name not in PROCESS_PARAMETERS | {"random_state"}
    }
