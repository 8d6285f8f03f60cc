"""Scores of images and of pixels.

Anomaly scores are higher for worse images. Labels follow the package, 1 normal and -1 anomalous, with
0 (unlabelled) left out; or name your own by `anomaly_label`, then every other value is normal.
"""

import warnings

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d

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


def auroc(y, anomaly_score, *, anomaly_label=-1):
    """Area under the ROC curve: how often an anomalous image scores above a normal one.

    Parameters
    ----------
    y : (n,) array-like
        Labels.
    anomaly_score : (n,) array-like
        Higher is worse: ``-detector.score_samples(X)``.
    anomaly_label : object, default=-1
        Label of anomalous images.

    Returns
    -------
    float
        nan, with a warning, where there are no normal images.

    Raises
    ------
    ValueError
        Where `anomaly_label` never occurs in `y`.

    Examples
    --------
    >>> from skanomaly.metrics import auroc
    >>> auroc([1, 1, -1, -1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    return _ranked(roc_auc_score, *labelled(y, anomaly_score, anomaly_label)[:2])


def average_precision(y, anomaly_score, *, anomaly_label=-1):
    """Average precision: the sum of precision times gain in recall, without interpolation.

    Parameters
    ----------
    y : (n,) array-like
        Labels.
    anomaly_score : (n,) array-like
        Higher is worse.
    anomaly_label : object, default=-1
        Label of anomalous images.

    Returns
    -------
    float
        nan, with a warning, where there are no normal images.
    """
    return _ranked(average_precision_score, *labelled(y, anomaly_score, anomaly_label)[:2])


def youden_threshold(y, anomaly_score, *, anomaly_label=-1):
    """The threshold with the largest sensitivity + specificity - 1.

    It is chosen on labels: choose it on other images than you report on.

    Parameters
    ----------
    y : (n,) array-like
        Labels.
    anomaly_score : (n,) array-like
        Higher is worse.
    anomaly_label : object, default=-1
        Label of anomalous images.

    Returns
    -------
    float
        Images with a score of at least this are flagged.
    """
    truth, score, _ = _both_classes(y, anomaly_score, anomaly_label)
    false_alarms, hits, thresholds = roc_curve(truth, score)
    return float(thresholds[np.argmax(hits - false_alarms)])


def best_f1_threshold(y, anomaly_score, *, anomaly_label=-1):
    """The threshold with the largest F1.

    It is chosen on labels: choose it on other images than you report on.

    Parameters
    ----------
    y : (n,) array-like
        Labels.
    anomaly_score : (n,) array-like
        Higher is worse.
    anomaly_label : object, default=-1
        Label of anomalous images.

    Returns
    -------
    float
        Images with a score of at least this are flagged.
    """
    return _best_f1(*_both_classes(y, anomaly_score, anomaly_label)[:2])[1]


def classification_metrics(y, anomaly_score, *, threshold="youden", anomaly_label=-1):
    """What a threshold makes of the scores.

    Parameters
    ----------
    y : (n,) array-like
        Labels.
    anomaly_score : (n,) array-like
        Higher is worse.
    threshold : float or "youden", default="youden"
        Images with a score of at least this are flagged. A detector's own is
        ``np.nextafter(-detector.offset_, np.inf)``, as `predict` calls a score equal to ``offset_``
        normal. "youden" chooses it on these labels, which flatters the result.
    anomaly_label : object, default=-1
        Label of anomalous images.

    Returns
    -------
    dict of str to float
        ``threshold``, ``accuracy``, ``precision``, ``recall`` (= ``sensitivity``), ``specificity``,
        ``false_alarm_rate`` (1 - specificity) and ``f1``; nan where a class or a flag is missing.
    """
    truth, score, _ = labelled(y, anomaly_score, anomaly_label)
    if isinstance(threshold, str):
        if threshold != "youden":
            raise ValueError(f"threshold must be a number or 'youden', got {threshold!r}")
        threshold = youden_threshold(truth, score, anomaly_label=True)
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
    metric, y, anomaly_score, *, groups=None, level=0.95, n_resamples=1000, random_state=None, **options
):
    """Percentile bootstrap interval of a metric, drawing whole groups.

    Images of one patient are not independent: give the patients as `groups`.

    Parameters
    ----------
    metric : callable
        Of this module, or your own: ``metric(y, anomaly_score, anomaly_label=..., **options)``, a float.
    y : (n,) array-like
        Labels.
    anomaly_score : (n,) array-like
        Higher is worse.
    groups : (n,) array-like, default=None
        Images that are drawn together; None draws single images.
    level : float, default=0.95
        Share of the draws inside the interval.
    n_resamples : int, default=1000
        Draws without both classes are drawn again.
    random_state : int, RandomState or None, default=None
        Decides the draws.
    **options : dict
        For the metric, `anomaly_label` among them.

    Returns
    -------
    low, high : float
        Ends of the interval.
    """
    truth, score, rows = _both_classes(y, anomaly_score, options.pop("anomaly_label", -1))
    if groups is not None:
        groups = column_or_1d(groups)
        check_consistent_length(y, groups)
        groups = groups[rows]
    else:
        groups = np.arange(len(truth))
    rng = check_random_state(random_state)
    names, members = np.unique(groups, return_inverse=True)
    order = np.argsort(members, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(members))[:-1])
    values = []
    while len(values) < n_resamples:
        rows = np.concatenate([rows_of[i] for i in rng.randint(len(names), size=len(names))])
        if 0 < truth[rows].sum() < len(rows):
            values.append(metric(truth[rows], score[rows], anomaly_label=True, **options))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pixel_auroc(masks, maps):
    """Area under the ROC curve of all pixels of all images together.

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        True where anomalous; all False for normal images.
    maps : (n, H, W) array-like
        Anomaly maps.

    Returns
    -------
    float
    """
    return _ranked(roc_auc_score, *_pixels(masks, maps))


def pixel_average_precision(masks, maps):
    """Average precision of all pixels of all images together.

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        True where anomalous; all False for normal images.
    maps : (n, H, W) array-like
        Anomaly maps.

    Returns
    -------
    float
    """
    return _ranked(average_precision_score, *_pixels(masks, maps))


def dice(masks, predicted, *, average="pooled"):
    """Dice coefficient of masks, twice their overlap over the sum of their areas.

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        True masks.
    predicted : (n, H, W) bool array-like
        Masks to judge.
    average : {"pooled", "per_image"}, default="pooled"
        Over all pixels together, or the mean over images, where two empty masks count 1.

    Returns
    -------
    float
        nan where all masks are empty and `average` is "pooled".
    """
    masks, predicted = _stacks(masks, predicted)
    predicted = predicted.astype(bool)
    axes = {"pooled": None, "per_image": (1, 2)}
    if average not in axes:
        raise ValueError(f"average must be 'pooled' or 'per_image', got {average!r}")
    common = (masks & predicted).sum(axis=axes[average])
    total = masks.sum(axis=axes[average]) + predicted.sum(axis=axes[average])
    if average == "pooled":
        return _ratio(2 * common, total)
    return float(np.where(total == 0, 1.0, 2 * common / np.maximum(total, 1)).mean())


def best_dice(masks, maps):
    """The largest pooled Dice any threshold on the maps reaches, and that threshold.

    It is chosen on the true masks: an upper bound for a method, not a result.

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        True where anomalous; all False for normal images.
    maps : (n, H, W) array-like
        Anomaly maps.

    Returns
    -------
    dice : float
        The largest Dice.
    threshold : float
        Pixels of at least this are flagged.
    """
    return _best_f1(*_pixels(masks, maps))


def pro(masks, maps, *, max_false_alarm_rate=0.3):
    """Area under the per-region overlap curve up to a false alarm rate, divided by that rate.

    The overlap is the share of a true region (8-connected) that is flagged, averaged over regions,
    so that small lesions count as much as large ones (Bergmann et al. 2020, "Uninformed students").

    Parameters
    ----------
    masks : (n, H, W) bool array-like
        True where anomalous; all False for normal images.
    maps : (n, H, W) array-like
        Anomaly maps.
    max_false_alarm_rate : float, default=0.3
        Share of normal pixels flagged at which the area ends.

    Returns
    -------
    float
        1 for perfect maps; max_false_alarm_rate / 2 for maps that know nothing.
    """
    masks, maps = _stacks(masks, maps)
    truth, score = _pixels(masks, maps)
    labels, _ = connected_regions(masks)
    # Overlap averaged over regions is a ROC curve in which each region weighs the same.
    sizes = np.bincount(labels.ravel())
    weight = np.where(labels > 0, 1.0 / np.maximum(sizes, 1)[labels], 1.0).ravel()
    false_alarms, overlap, _ = roc_curve(truth, score, sample_weight=weight)
    end = np.interp(max_false_alarm_rate, false_alarms, overlap)
    inside = false_alarms < max_false_alarm_rate
    area = np.trapezoid(np.r_[overlap[inside], end], np.r_[false_alarms[inside], max_false_alarm_rate])
    return float(area / max_false_alarm_rate)


def labelled(y, anomaly_score, anomaly_label):
    """Truth (True = anomalous) and score of the labelled rows, and which rows those are."""
    y, score = column_or_1d(y), column_or_1d(anomaly_score)
    check_consistent_length(y, score)
    truth = y == anomaly_label
    if not np.any(truth):
        raise ValueError(
            f"anomaly_label={anomaly_label!r} never occurs in y, whose values are "
            f"{np.unique(y).tolist()}; set anomaly_label to the label of anomalous images"
        )
    # Only in the package's own labels does 0 mean unlabelled.
    rows = y != 0 if anomaly_label == -1 else np.ones(len(y), dtype=bool)
    return truth[rows], score[rows], rows


def _both_classes(y, anomaly_score, anomaly_label):
    truth, score, rows = labelled(y, anomaly_score, anomaly_label)
    if truth.all():
        raise ValueError("y holds no normal images; a threshold or an interval needs both classes")
    return truth, score, rows


def _ranked(metric, truth, score):
    if truth.all() or not truth.any():
        warnings.warn(
            f"{metric.__name__} is not defined with one class only; returning nan",
            UndefinedMetricWarning,
            stacklevel=3,
        )
        return float("nan")
    return float(metric(truth, score))


def _best_f1(truth, score):
    """The largest F1 (of pixels: Dice), and its threshold."""
    precision, recall, thresholds = precision_recall_curve(truth, score)
    total = np.maximum(precision + recall, np.finfo(float).tiny)
    f1 = (2 * precision * recall / total)[:-1]
    best = np.argmax(f1)
    return float(f1[best]), float(thresholds[best])


def _ratio(part, whole):
    return float(part / whole) if whole else float("nan")


def _stacks(masks, maps):
    masks, maps = np.asarray(masks), np.asarray(maps)
    if masks.ndim != 3 or masks.shape != maps.shape:
        raise ValueError(f"masks and maps must both have shape (n, H, W), got {masks.shape} and {maps.shape}")
    return masks.astype(bool), maps


def _pixels(masks, maps):
    masks, maps = _stacks(masks, maps)
    if not masks.any():
        raise ValueError("masks hold no anomalous pixel; give masks of anomalous images too")
    return masks.ravel(), maps.ravel()
