"""Numbers that stay numbers: scores within float32, and learned values that are finite."""

import numpy as np

#: Largest finite float32: the anomaly of an image, or of a pixel, whose own anomaly leaves float32.
WORST = float(np.finfo(np.float32).max)


class NotFiniteError(FloatingPointError, ValueError):
    """Error of a fit or a calibration whose result is not finite, be it for the training or for the data."""


def limited(values):
    """Anomalies with `WORST` in place of nan and infinity.

    Parameters
    ----------
    values : float ndarray, tuple of these, or None
    """
    if values is None:
        return None
    if isinstance(values, tuple):
        return tuple(map(limited, values))
    finite = np.isfinite(values)
    return values if finite.all() else np.where(finite, values, values.dtype.type(WORST))


def unlimited(values):
    """Undo `limited`, so that a mean with such an anomaly in it is infinite as well."""
    return np.where(np.less(values, WORST), values, np.inf)


def check_learned(**learned):
    """Raise an error if a number that is about to be stored, or drawn by, is not finite.

    Parameters
    ----------
    **learned : dict
        Number, array or tensor of each name.
    """
    for name, value in learned.items():
        # Not isfinite: of limited maps, a quantile is finite whatever the maps were.
        if not np.all(np.abs(np.asarray(value, dtype=np.float64)) < WORST):
            raise NotFiniteError(
                f"{name} is no finite number: the images hold values far beyond others, such as a "
                "fill value, or the training diverged"
            )
