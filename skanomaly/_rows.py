"""Rows of X in any container: given rows, and all rows that are not known anomalies."""

import numpy as np
import torch

from . import labels
from ._containers import unmasked
from .io import ImageFiles


def take_rows(X, rows):
    """Some rows of X, in any container that a detector takes."""
    if hasattr(X, "iloc"):
        return X.iloc[rows]
    if isinstance(X, ImageFiles):
        return X.take(rows)
    if isinstance(X, (list, tuple)):
        return [X[i] for i in rows]
    # Tensors stay tensors: their channels come first, and numpy has no bfloat16.
    if isinstance(X, torch.Tensor):
        return X[rows]
    if hasattr(X, "__array__"):
        return unmasked(X)[rows]
    # Lazy containers need to support slices only, not index arrays.
    return np.concatenate([unmasked(X[i : i + 1]) for i in rows])


def normal_rows(X, y):
    """X without known anomalies (y == -1)."""
    if y is None or not (anomalous := labels.is_anomalous(y)).any():
        return X
    if anomalous.all():
        raise ValueError("y leaves no normal images: all are -1; give some with 1 (normal)")
    return take_rows(X, np.flatnonzero(~anomalous))
