"""Metrics of anomaly scores, of anomaly maps and of masks.

Anomaly scores are higher for worse images; infinite ones are ranked with the others, nan is refused. Labels
are 1 (normal), -1 (anomalous) and 0 (unlabelled: left out). If `anomaly_label` is not -1, that label is
anomalous and every other value is normal. Masks are bool, or hold 0 and 1: soft masks are refused.
"""

import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d

from ._arrays import check_masks, check_scores
from .labels import truth_of
from .segmentation import connected_regions

__all__ = [
    "auroc",
    "average_precision",
    "best_dice",
    "best_f1_threshold",
    "bootstrap_interval",
    "classification_metrics",
    "dice",
    "pixel_auroc",
    "pixel_average_precision",
    "pro",
    "youden_threshold",
]


def auroc(y: ArrayLike, anomaly_score: ArrayLike, *, anomaly_label: object = -1) -> float:
    """Area under the ROC curve: how often an anomalous image scores above a normal one.

    Parameters
    ----------
    y : (n,) array-like
        Labels: 1 normal, -1 anomalous, 0 left out, unless `anomaly_label` says otherwise.
    anomaly_score : (n,) array-like
        Scores, higher is worse: ``-detector.score_samples(X)``.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.

    Returns
    -------
    float
        Value in [0, 1]; nan, with a warning, if there are no normal images.

    Raises
    ------
    ValueError
        If `anomaly_label` never occurs in `y`.

    Examples
    --------
    >>> from skanomaly.metrics import auroc
    >>> auroc([1, 1, -1, -1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    return _ranked(roc_auc_score, *labelled(y, anomaly_score, anomaly_label)[:2])


def average_precision(y: ArrayLike, anomaly_score: ArrayLike, *, anomaly_label: object = -1) -> float:
    """Average precision: the sum of precision times gain in recall, without interpolation.

    Parameters
    ----------
    y : (n,) array-like
        Labels: 1 normal, -1 anomalous, 0 left out, unless `anomaly_label` says otherwise.
    anomaly_score : (n,) array-like
        Scores, higher is worse.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.

    Returns
    -------
    float
        Value in [0, 1]; nan, with a warning, if there are no normal images.
    """
    return _ranked(average_precision_score, *labelled(y, anomaly_score, anomaly_label)[:2])


def youden_threshold(y: ArrayLike, anomaly_score: ArrayLike, *, anomaly_label: object = -1) -> float:
    """The threshold with the largest sensitivity + specificity - 1.

    The choice uses labels, so do not choose a threshold on the images that you report on.

    Parameters
    ----------
    y : (n,) array-like
        Labels: 1 normal, -1 anomalous, 0 left out, unless `anomaly_label` says otherwise.
    anomaly_score : (n,) array-like
        Scores, higher is worse.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.

    Returns
    -------
    float
        Least score of the images that are flagged.
    """
    truth, score, _ = _both_classes(y, anomaly_score, anomaly_label)
    ranks, values = _ranks(score)
    false_alarms, hits, thresholds = roc_curve(truth, ranks)
    gain = hits - false_alarms
    if values is not None:
        gain[0] = -1  # no threshold flags nothing where a score is infinite
    return _threshold(thresholds[np.argmax(gain)], values)


def best_f1_threshold(y: ArrayLike, anomaly_score: ArrayLike, *, anomaly_label: object = -1) -> float:
    """The threshold with the largest F1.

    The choice uses labels, so do not choose a threshold on the images that you report on.

    Parameters
    ----------
    y : (n,) array-like
        Labels: 1 normal, -1 anomalous, 0 left out, unless `anomaly_label` says otherwise.
    anomaly_score : (n,) array-like
        Scores, higher is worse.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.

    Returns
    -------
    float
        Least score of the images that are flagged.
    """
    return _best_f1(*_both_classes(y, anomaly_score, anomaly_label)[:2])[1]


def classification_metrics(
    y: ArrayLike,
    anomaly_score: ArrayLike,
    *,
    threshold: float | Literal["youden"] = "youden",
    anomaly_label: object = -1,
) -> dict[str, float]:
    """Accuracy, precision, recall, specificity and F1 of one threshold on the scores.

    Parameters
    ----------
    y : (n,) array-like
        Labels: 1 normal, -1 anomalous, 0 left out, unless `anomaly_label` says otherwise.
    anomaly_score : (n,) array-like
        Scores, higher is worse.
    threshold : float or "youden", default="youden"
        Least score of the images that are flagged. A detector's own is ``np.nextafter(-detector.offset_,
        np.inf)``, because `predict` calls a score equal to ``offset_`` normal. "youden" chooses the threshold
        on these labels, which flatters the result.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.

    Returns
    -------
    dict of str to float
        ``threshold``, ``accuracy``, ``precision``, ``recall`` (= ``sensitivity``), ``specificity``,
        ``false_alarm_rate`` (1 - specificity) and ``f1``; nan for a ratio whose denominator is 0.
    """
    truth, score, _ = labelled(y, anomaly_score, anomaly_label)
    if isinstance(threshold, str):
        if threshold != "youden":
            raise ValueError(f"threshold must be a number or 'youden', got {threshold!r}")
        threshold = youden_threshold(truth, score, anomaly_label=True)
    # Without labels= the matrix of a single class would be 1 x 1.
    (tn, fp), (fn, tp) = confusion_matrix(truth, score >= threshold, labels=[False, True])
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "threshold": float(threshold),
        "accuracy": _ratio(tp + tn, len(truth)),
        "precision": _ratio(tp, tp + fp),
        "recall": sensitivity,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "false_alarm_rate": 1 - specificity,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def bootstrap_interval(
    metric: Callable[..., float],
    y: ArrayLike,
    anomaly_score: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    random_state: int | np.random.RandomState | None = None,
    **options: Any,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric, drawing whole groups.

    Images of one patient are not independent: give the patients as `groups`.

    Parameters
    ----------
    metric : callable
        Metric of this module, or your own: ``metric(y, anomaly_score, anomaly_label=..., **options)``
        returns a float.
    y : (n,) array-like
        Labels: 1 normal, -1 anomalous, 0 left out, unless `anomaly_label` says otherwise.
    anomaly_score : (n,) array-like
        Scores, higher is worse.
    groups : (n,) array-like, default=None
        Group of each image; images of one group are drawn together. None draws single images.
    level : float, default=0.95
        Share of the draws inside the interval.
    n_resamples : int, default=1000
        Number of draws. A draw without both classes is drawn again.
    random_state : int, RandomState or None, default=None
        Seed or generator of the draws.
    **options : dict
        Options of the metric, `anomaly_label` among them.

    Returns
    -------
    low, high : float
        Lower and upper end of the interval.
    """
    truth, score, rows = _both_classes(y, anomaly_score, options.pop("anomaly_label", -1))
    check_consistent_length(y, groups)
    group_of = np.arange(len(truth)) if groups is None else column_or_1d(groups)[rows]
    rng = check_random_state(random_state)
    names, members = np.unique(group_of, return_inverse=True)
    # The rows of each group are found once; a mask per drawn group would read all rows each time.
    order = np.argsort(members, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(members))[:-1])
    # A draw of one class has no AUROC, and a quantile over nan is nan.
    values: list[float] = []
    while len(values) < n_resamples:
        rows = np.concatenate([rows_of[i] for i in rng.randint(len(names), size=len(names))])
        if 0 < truth[rows].sum() < len(rows):
            values.append(metric(truth[rows], score[rows], anomaly_label=True, **options))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pixel_auroc(masks: ArrayLike, maps: ArrayLike) -> float:
    """Area under the ROC curve of all pixels of all images together.

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        Masks, True where anomalous; all False for a normal image.
    maps : (n, H, W) array-like
        Anomaly maps.

    Returns
    -------
    float
        Value in [0, 1]; nan, with a warning, if all pixels are anomalous.
    """
    return _ranked(roc_auc_score, *_pixels(masks, maps))


def pixel_average_precision(masks: ArrayLike, maps: ArrayLike) -> float:
    """Average precision of all pixels of all images together.

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        Masks, True where anomalous; all False for a normal image.
    maps : (n, H, W) array-like
        Anomaly maps.

    Returns
    -------
    float
        Value in [0, 1]; nan, with a warning, if all pixels are anomalous.
    """
    return _ranked(average_precision_score, *_pixels(masks, maps))


def dice(
    masks: ArrayLike, predicted: ArrayLike, *, average: Literal["pooled", "per_image"] = "pooled"
) -> float:
    """Dice coefficient of masks: twice their overlap, divided by the sum of their areas.

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        True masks.
    predicted : (n, H, W) bool array-like
        Masks to be judged.
    average : {"pooled", "per_image"}, default="pooled"
        "pooled": Dice of all pixels together. "per_image": mean of the Dice of each image, which is 1 for two
        empty masks.

    Returns
    -------
    float
        Value in [0, 1]; nan if all masks are empty and `average` is "pooled".
    """
    _check_shapes(masks, predicted)
    truth, flagged = check_masks(masks), check_masks(predicted, "predicted")
    axes = {"pooled": None, "per_image": (1, 2)}
    if average not in axes:
        raise ValueError(f"average must be 'pooled' or 'per_image', got {average!r}")
    common = (truth & flagged).sum(axis=axes[average])
    total = truth.sum(axis=axes[average]) + flagged.sum(axis=axes[average])
    if average == "pooled":
        return _ratio(2 * common, total)
    return float(np.where(total == 0, 1.0, 2 * common / np.maximum(total, 1)).mean())


def best_dice(masks: ArrayLike, maps: ArrayLike) -> tuple[float, float]:
    """The largest pooled Dice that any threshold on the maps reaches, and that threshold.

    The choice uses the true masks: this is an upper bound for a method, not a result.

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        Masks, True where anomalous; all False for a normal image.
    maps : (n, H, W) array-like
        Anomaly maps.

    Returns
    -------
    dice : float
        Largest Dice.
    threshold : float
        Least map value of the pixels that are flagged.
    """
    truth, score = _pixels(masks, maps)
    return _best_f1(truth.ravel(), score.ravel())


def pro(masks: ArrayLike, maps: ArrayLike, *, max_false_alarm_rate: float = 0.3) -> float:
    """Area under the per-region overlap curve up to a false alarm rate, divided by that rate.

    The overlap is the share of a true region (8-connected) that is flagged, averaged over regions,
    so that small lesions count as much as large ones (Bergmann et al. 2020, "Uninformed students").

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        Masks, True where anomalous; all False for a normal image.
    maps : (n, H, W) array-like
        Anomaly maps.
    max_false_alarm_rate : float, default=0.3
        False alarm rate at which the area ends: a share of the normal pixels, above 0 and at most 1.

    Returns
    -------
    float
        Value in [0, 1]: 1 for perfect maps, max_false_alarm_rate / 2 for random ones; nan, with a warning, if
        all pixels are anomalous.

    Raises
    ------
    ValueError
        If the limit is out of range, no pixel is anomalous, masks hold other floats than 0 and 1, or maps
        hold nan.

    Notes
    -----
    The curve has a point for each value of the maps, and straight lines between them. The area under it is
    exact, also where the curve rises at the limit.
    """
    limit = max_false_alarm_rate
    if not isinstance(limit, Real) or not 0 < limit <= 1:
        raise ValueError(
            "max_false_alarm_rate must be a share of the normal pixels, above 0 and at most 1, got "
            f"{limit!r}; 0.3 is 30 %"
        )
    truth, score = _pixels(masks, maps)
    if truth.all():
        return _undefined("pro", stacklevel=3)
    labels, _ = connected_regions(truth)
    # The overlap averaged over regions is a weighted hit rate, so roc_curve computes it: all regions weigh
    # the same, whatever their size.
    weights = 1.0 / np.bincount(labels.ravel())
    weights[0] = 1.0  # normal pixels
    weight = weights[labels].ravel()
    del labels
    x, y, _ = roc_curve(truth.ravel(), _ranks(score.ravel())[0], sample_weight=weight)
    # The curve may rise at the limit itself. What lies to the left of a rise counts, so the line is cut
    # behind the last point that is not beyond the limit.
    n = np.searchsorted(x, limit, side="right")
    area = np.trapezoid(y[:n], x[:n])
    if n < len(x):
        slope = (y[n] - y[n - 1]) / (x[n] - x[n - 1])
        rest = limit - x[n - 1]
        area += rest * (y[n - 1] + slope * rest / 2)
    return float(area / limit)


def labelled(y, anomaly_score, anomaly_label):
    """Truth (True = anomalous) and score of the labelled rows, and a mask of these rows."""
    truth, rows = truth_of(y, anomaly_label)
    score = column_or_1d(check_scores(anomaly_score, "anomaly_score"))
    check_consistent_length(truth, score)
    return truth[rows], score[rows], rows


def _undefined(name, stacklevel=4):
    """The value nan, with a warning."""
    message = f"{name} is not defined with one class only; returning nan"
    warnings.warn(message, UndefinedMetricWarning, stacklevel=stacklevel)
    return float("nan")


def _both_classes(y, anomaly_score, anomaly_label):
    truth, score, rows = labelled(y, anomaly_score, anomaly_label)
    if truth.all():
        raise ValueError("y holds no normal images; a threshold or an interval needs both classes")
    return truth, score, rows


def _ranked(metric, truth, score):
    if truth.all() or not truth.any():
        return _undefined(metric.__name__)
    return float(metric(truth.ravel(), _ranks(score.ravel())[0]))


def _best_f1(truth, score):
    """Largest F1, which is Dice for pixels, and its threshold."""
    ranks, values = _ranks(score)
    precision, recall, thresholds = precision_recall_curve(truth, ranks)
    total = np.maximum(precision + recall, np.finfo(float).tiny)
    # The last point of the curve, precision 1 and recall 0, has no threshold.
    f1 = (2 * precision * recall / total)[:-1]
    best = np.argmax(f1)
    return float(f1[best]), _threshold(thresholds[best], values)


def _ranks(score):
    """Scores as scikit-learn takes them, their ranks where some are infinite; and the values behind ranks."""
    if np.isfinite(score).all():
        return score, None
    values, ranks = np.unique(score, return_inverse=True)
    return ranks.reshape(score.shape), values


def _threshold(threshold, values):
    """Threshold of the scores, from one of their ranks if `values` are given."""
    return float(threshold if values is None else values[int(threshold)])


def _ratio(part, whole):
    return float(part / whole) if whole else float("nan")


def _check_shapes(masks, maps):
    if np.ndim(masks) != 3 or np.shape(masks) != np.shape(maps):
        raise ValueError(
            f"masks and maps must both have shape (n, H, W), got {np.shape(masks)} and {np.shape(maps)}"
        )


def _pixels(masks, maps):
    """Truth and score of all pixels, (n, H, W)."""
    _check_shapes(masks, maps)
    masks, maps = check_masks(masks), check_scores(maps, "maps")
    if not masks.any():
        raise ValueError("masks hold no anomalous pixel; give masks of anomalous images too")
    return masks, maps
