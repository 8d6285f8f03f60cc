"""Labels: the one rule for y, wherever it is read.

y has one label for each image: 1 normal, -1 anomalous, 0 unlabelled. Labels of your own are turned into these
by `from_anomalies`, once, before anything else. A missing label (nan, None, pd.NA, NaT) is an error
everywhere; unlabelled images are marked with 0.
"""

import sys
import warnings
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils._missing import is_pandas_na

from ._arrays import refuse_masked

__all__ = ["LabelWarning", "from_anomalies"]

#: Packages between the user's line and the place where y is read.
_MACHINERY = {"joblib", "skanomaly", "sklearn"}
#: Labels that a conversion of -1 leaves: to strings, to unsigned integers.
_MINUS_ONE = "-1", "-1.0", 2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1


class LabelWarning(UserWarning):
    """Warning about labels without -1, which may hide anomalous images among those learned as normal.

    See Also
    --------
    from_anomalies : Remedy.
    """


def from_anomalies(y: ArrayLike, anomaly_label: object = 1) -> NDArray[np.int_]:
    """Labels 1 (normal) and -1 (anomalous), from labels of any kind.

    Convert y once, before it is split or given to a Pipeline or a search.

    Parameters
    ----------
    y : (n,) array-like
        Labels of any kind, none of them missing.
    anomaly_label : object, default=1
        Label of anomalous images; every other one is normal.

    Returns
    -------
    labels : (n,) int ndarray
        -1 where y is `anomaly_label`, 1 elsewhere.

    Raises
    ------
    ValueError
        If a label is missing, `anomaly_label` never occurs, or y is not one-dimensional.
    TypeError
        If y is a masked array.

    Warns
    -----
    LabelWarning
        If 1 is to be anomalous where y has the labels 1 and -1 of this package already.

    Examples
    --------
    >>> from skanomaly.labels import from_anomalies
    >>> from_anomalies([0, 0, 1])
    array([ 1,  1, -1])
    >>> from_anomalies(["healthy", "ill", "healthy"], anomaly_label="ill")
    array([ 1, -1,  1])
    """
    y = check_labels(y)
    anomalous = _equal(y, anomaly_label)
    _check_occurs(anomalous, y, anomaly_label)
    if anomaly_label == 1 and _equal(y, -1).any():
        _warn(
            "y holds -1, which marks anomalous images already, and anomaly_label=1 makes them normal. Labels "
            "1 and -1 need no conversion; if -1 is normal in y and 1 is not, all is well"
        )
    return np.where(anomalous, -1, 1)


def check_labels(y, n=None):
    """Labels as a plain array (n,), none of them missing.

    Parameters
    ----------
    y : (n,) array-like
    n : int, default=None
        Number of images, if it is known.
    """
    refuse_masked(y, "y")
    # A list becomes objects first: numpy would make the string "nan" of nan between strings.
    y = np.asarray(y, dtype=object if isinstance(y, (list, tuple)) else None)
    if y.ndim != 1:
        raise ValueError(
            f"y must have one label for each image, shape (n,), got shape {y.shape}; give y.ravel() if it is "
            "a column, or masks.any((1, 2)) if it holds masks"
        )
    if y.dtype.kind not in "biufcmMSU":
        y = y.astype(object)
    missing = _missing(y)
    if missing.any():
        raise ValueError(
            f"y must have a label for each image, but {missing.sum()} of {len(y)} are missing, the first in "
            f"row {missing.argmax()}; leave these images out, or mark them with 0 (unlabelled)"
        )
    if n is not None:
        check_consistent_length(range(n), y)
    if y.dtype == object:
        for kind in (Real, np.bool_), str:
            if all(isinstance(label, kind) for label in y):
                return np.array(y.tolist())
    return y


def check_groups(groups):
    """Group of each row as a list, none of them missing."""
    refuse_masked(groups, "groups")
    groups = list(groups if getattr(groups, "ndim", 1) < 2 else column_or_1d(groups))
    missing = [row for row, group in enumerate(groups) if _is_missing(group)]
    if missing:
        raise ValueError(
            f"groups is missing for row {missing[0]}: each row must be of a group, a patient or a volume, of "
            "its own if it is like no other"
        )
    return groups


def truth_of(y, anomaly_label=-1):
    """Bool arrays (n,): True for anomalous images, and True for images that have a label."""
    y = check_labels(y)
    truth = _equal(y, anomaly_label)
    _check_occurs(truth, y, anomaly_label)
    # With labels of one's own, 0 is often the normal class: only among the package's is it "unlabelled".
    return truth, ~_equal(y, 0) if anomaly_label == -1 else np.ones(len(y), dtype=bool)


def is_anomalous(y, n=None):
    """Bool array (n,), True where y is -1."""
    return _equal(check_labels(y, n), -1)


def training_rows(y, n, *, least=2):
    """Bool array (n,) of the rows to train on, and the labels of these rows, or None without y.

    An error says so if they are fewer than `least`.
    """
    if y is None:
        return np.ones(n, dtype=bool), None
    y = check_labels(y, n)
    # Dropped, not refused: a grid search refits on all its rows, known anomalies among them.
    used = ~_equal(y, -1)
    if used.sum() < least:
        raise ValueError(
            f"y leaves {used.sum()} of {n} images to train on: -1 marks known anomalies, "
            f"which no detector trains on; at least {least} must be 1 (normal) or 0 (unlabelled)"
        )
    return used, y[used]


def normal_rows(y, n):
    """Numbers of the rows with label 1."""
    y = check_labels(y, n)
    rows = np.flatnonzero(_equal(y, 1))
    if not len(rows):
        raise ValueError(
            f"y must mark normal images with 1, got {_listed(y)}; labels of your own are converted by "
            "skanomaly.labels.from_anomalies(y, anomaly_label=...)"
        )
    return rows


def warn_without_anomalies(y, consequence, *, tells_unlabelled=False):
    """Warn if y may have another label for anomalous images: it has no -1, and more than the number 1.

    Parameters
    ----------
    y : (n,) array-like or None
    consequence : str
        Sentence about what happened to the rows, in which ``{labels}`` stands for the labels in y.
    tells_unlabelled : bool, default=False
        Whether 0 has a meaning of its own beside 1, so that these two numbers are no reason to warn.
    """
    if y is None:
        return
    y = check_labels(y)
    meant = _equal(y, 1) | (_equal(y, 0) & tells_unlabelled)
    if _equal(y, -1).any() or y.dtype.kind != "b" and meant.all():
        return
    labels = set(y.tolist())
    if labels == {0, 1}:
        arguments = "y"
    else:
        made_of_minus_one = [label for label in _MINUS_ONE if label in labels and len(labels) > 1]
        arguments = (
            f"y, anomaly_label={made_of_minus_one[0]!r}" if made_of_minus_one else "y, anomaly_label=..."
        )
    _warn(
        f"y has no -1, the label of anomalous images: {consequence.format(labels=_listed(y))}. If y marks "
        "anomalous images in another way, convert it before anything else: y = skanomaly.labels."
        f"from_anomalies({arguments}); if all images are normal, leave y out"
    )


def _missing(y):
    """Bool array (n,), True for labels that are missing."""
    if y.dtype == object:
        return np.array([_is_missing(code) for code in y], dtype=bool)
    return np.isnat(y) if y.dtype.kind in "mM" else y != y


def _is_missing(code):
    # NaN and NaT differ from themselves; so does pd.NA, but its answer is no bool.
    return code is None or is_pandas_na(code) or code != code


def _equal(y, label):
    """Bool array (n,), True where y is the label."""
    return np.broadcast_to(np.asarray(y == label, dtype=bool), y.shape)


def _check_occurs(anomalous, y, anomaly_label):
    if not anomalous.any():
        raise ValueError(
            f"anomaly_label={anomaly_label!r} never occurs in y, whose values are {_listed(y)}; set "
            "anomaly_label to the label of anomalous images"
        )


def _listed(y, most=8):
    """Labels that occur in y, as text."""
    # Labels of several types cannot be compared with each other.
    labels = sorted(set(y.tolist()), key=str if y.dtype == object else None)
    shown = ", ".join(map(repr, labels[:most]))
    return f"[{shown}{', ...' if len(labels) > most else ''}]"


def _warn(message):
    """Issue a `LabelWarning` for the nearest calling line outside of skanomaly, scikit-learn and joblib."""
    frame, level = sys._getframe(), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in _MACHINERY:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, LabelWarning, stacklevel=level)
