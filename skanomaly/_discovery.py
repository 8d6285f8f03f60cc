"""Discovery of the public detectors: they are found in the package and need not be listed."""

import importlib
import inspect
import pkgutil

from . import detectors, ensemble, patches
from .base import BaseDetector


def all_detectors():
    """All public detectors.

    Returns
    -------
    detectors : list of (name, class)
        Sorted by name.
    """
    found = {}
    modules = [module.name for module in pkgutil.iter_modules(detectors.__path__, f"{detectors.__name__}.")]
    for module in [*modules, ensemble.__name__, patches.__name__]:
        for name, value in vars(importlib.import_module(module)).items():
            is_class = inspect.isclass(value) and value.__module__ == module
            if is_class and issubclass(value, BaseDetector) and not name.startswith("_"):
                found[name] = value
    return sorted(found.items())
