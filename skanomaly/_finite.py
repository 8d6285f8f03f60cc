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


def refuse_not_finite(what, values, first=0, rows=None):
    """Raise an error that names the first image with a value that is not finite.

    Parameters
    ----------
    what : str
        Name of the values, with an article.
    values : (n,) or (n, d) float ndarray
        Values of each image.
    first : int, default=0
        Number of the first image.
    rows : (n,) int ndarray or None
        Numbers of the images in X; None counts from `first`.
    """
    wrong = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(wrong):
        row = first + wrong[0] if rows is None else rows[wrong[0]]
        raise NotFiniteError(
            f"{what} of image {row} of X is not finite in float32: look for a fill value or another extreme "
            "among its pixels, and mend it or leave the image out"
        )


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


def check_tensors(tensors):
    """`check_learned` for the weights and statistics of a network, by name."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            check_learned(**{name: float(tensor.abs().max())})
