"""Metrics of anomaly scores, of anomaly maps and of masks; and confounds, which may explain good figures.

Anomaly scores are higher for worse images; infinite ones are ranked with the others, nan is refused. Labels
are 1 (normal), -1 (anomalous) and 0 (unlabelled: left out). If `anomaly_label` is not -1, that label is
anomalous and every other value is normal. Masks are bool, or hold 0 and 1: soft masks are refused.
"""

import inspect
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d, gen_batches

from ._arrays import check_masks, check_scores
from ._confounds import confounds
from .labels import check_groups, truth_of
from .segmentation import connected_regions

__all__ = [
    "auroc",
    "average_precision",
    "best_dice",
    "best_f1_threshold",
    "bootstrap_interval",
    "classification_metrics",
    "confounds",
    "dice",
    "pixel_auroc",
    "pixel_average_precision",
    "pro",
    "stratified_auroc",
    "youden_threshold",
]

#: Number of pairs of images that are compared at once.
N_PAIRS = 10**6


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


def stratified_auroc(
    y: ArrayLike,
    anomaly_score: ArrayLike,
    confound: ArrayLike,
    *,
    n_strata: int = 5,
    groups: ArrayLike | None = None,
    anomaly_label: object = -1,
) -> float:
    """AUROC among images that are alike in a confound: what a detector finds beyond a shortcut.

    Parameters
    ----------
    y : (n,) array-like
        Labels: 1 normal, -1 anomalous, 0 left out, unless `anomaly_label` says otherwise.
    anomaly_score : (n,) array-like
        Scores, higher is worse: ``-detector.score_samples(X)``.
    confound : (n,) array-like
        Confound of each image, such as ``confounds(X)["sharpness"]``, or the age. Only its order counts.
    n_strata : int, default=5
        Number of strata, as equal in size as ties allow; 5 makes quintiles. With more strata images are more
        alike, and fewer are compared.
    groups : (n,) array-like, default=None
        Group of each image, usually its patient; two images of one group are not compared. None compares all.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.

    Returns
    -------
    float
        Value in [0, 1]; nan, with a warning, if there is nothing to compare, as where the confound alone
        tells all anomalous images from all normal ones.

    Raises
    ------
    ValueError
        If `anomaly_label` never occurs in `y`, a score or confound is nan, lengths differ, or `n_strata` is
        no whole number above 0.

    See Also
    --------
    confounds : Sharpness, brightness, contrast, border and noise of images.
    bootstrap_interval : Interval of this value; it takes `confound`, too.

    Notes
    -----
    Pairs of an anomalous and a normal image of one stratum are compared. A pair is won if the anomalous image
    has the higher score; a tie is half won.

    Even within a stratum, anomalous images may have more of the confound than normal ones, and a score could
    win by that. So pairs are balanced. In a stratum let p be the pairs whose anomalous image has more of the
    confound, q those whose normal image has more, and t those with equal values. The first two kinds get the
    same weight::

        won      = min(p, q) * (share won of the p + share won of the q) + t * (share won of the t)
        compared = 2 * min(p, q) + t

    and the result is the sum of "won" over the strata, divided by the sum of "compared". A score that rises
    or falls with the confound, and knows nothing else, wins all pairs of one kind and none of the other: it
    has 0.5 exactly. A score that follows the confound with noise may keep a little more than 0.5, which finer
    strata take away.

    Examples
    --------
    >>> from skanomaly.metrics import stratified_auroc
    >>> y, blur = [1, 1, 1, -1, -1, -1], [1, 2, 4, 3, 5, 6]
    >>> stratified_auroc(y, blur, blur, n_strata=1)
    0.5
    >>> stratified_auroc(y, [1, 0, 0, 1, 2, 2], blur, n_strata=1)
    0.96875
    """
    if not isinstance(n_strata, Integral) or n_strata < 1:
        raise ValueError(f"n_strata must be a whole number of strata above 0, got {n_strata!r}; 5 is usual")
    truth, score, rows = labelled(y, anomaly_score, anomaly_label)
    check_consistent_length(y, confound, groups)
    confound = _checked_confound(confound)[rows]
    group = np.arange(len(truth)) if groups is None else column_or_1d(check_groups(groups))[rows]
    confound, score = rankdata(confound), rankdata(score)
    strata = np.floor((confound - 0.5) * n_strata / len(confound))
    won = compared = 0.0
    for stratum in np.unique(strata):
        ill, normal = (np.flatnonzero((strata == stratum) & kind) for kind in (truth, ~truth))
        n_pairs, n_won = _compare(confound, score, group, ill, normal)
        weights = np.minimum(n_pairs, n_pairs[::-1])
        won += weights @ (n_won / np.maximum(n_pairs, 1))
        compared += weights.sum()
    if not compared:
        return _undefined("stratified_auroc", "without pairs to compare", stacklevel=3)
    return float(won / compared)


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
    if np.isnan(threshold):
        raise ValueError("threshold must be a number or 'youden', got nan, which no score reaches")
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
    confound: ArrayLike | None = None,
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
    confound : (n,) array-like, default=None
        Confound of each image, for `stratified_auroc`, or a metric of yours that takes one.
    groups : (n,) array-like, default=None
        Group of each image; images of one group are drawn together. None draws single images. A metric with
        an argument of this name, such as `stratified_auroc`, gets those of the images drawn.
    level : float, default=0.95
        Share of the draws inside the interval.
    n_resamples : int, default=1000
        Number of draws. A draw without both classes is drawn again. One on which the metric is nan is left
        out.
    random_state : int, RandomState or None, default=None
        Seed or generator of the draws.
    **options : dict
        Options of the metric, `anomaly_label` among them.

    Returns
    -------
    low, high : float
        Lower and upper end of the interval; nan if the metric is nan on all draws.
    """
    truth, score, rows = _both_classes(y, anomaly_score, options.pop("anomaly_label", -1))
    check_consistent_length(y, groups, confound)
    per_image = {} if confound is None else {"confound": _checked_confound(confound)[rows]}
    group_of = np.arange(len(truth)) if groups is None else column_or_1d(check_groups(groups))[rows]
    if groups is not None and "groups" in inspect.signature(metric).parameters:
        per_image["groups"] = group_of
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
            options |= {name: of[rows] for name, of in per_image.items()}
            values.append(_quietly(metric, truth[rows], score[rows], anomaly_label=True, **options))
    defined = [value for value in values if not np.isnan(value)] or [np.nan]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
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


def _undefined(name, where="with one class only", stacklevel=4):
    """The value nan, with a warning."""
    message = f"{name} is not defined {where}; returning nan"
    warnings.warn(message, UndefinedMetricWarning, stacklevel=stacklevel)
    return float("nan")


def _quietly(metric, *arguments, **options):
    """Value of a metric, without the warning that it is undefined: of 1000 draws, a few are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        return metric(*arguments, **options)


def _both_classes(y, anomaly_score, anomaly_label):
    truth, score, rows = labelled(y, anomaly_score, anomaly_label)
    if truth.all():
        raise ValueError("y holds no normal images; a threshold or an interval needs both classes")
    return truth, score, rows


def _ranked(metric, truth, score):
    if truth.all() or not truth.any():
        return _undefined(metric.__name__)
    return float(metric(truth.ravel(), _ranks(score.ravel())[0]))


def _checked_confound(confound):
    return column_or_1d(check_scores(confound, "confound"))


def _compare(confound, score, group, ill, normal):
    """Numbers of pairs, and of those won, whose anomalous image has less, as much, more of a confound."""
    n_pairs, n_won = np.zeros((2, 3))
    # All pairs of a large stratum at once may not fit into memory.
    for part in gen_batches(len(ill), max(1, N_PAIRS // len(normal))) if len(ill) and len(normal) else ():
        counted = np.not_equal.outer(group[ill[part]], group[normal])
        order, win = (
            np.sign(np.subtract.outer(of[ill[part]], of[normal]))[counted] for of in (confound, score)
        )
        kinds = (order + 1).astype(int)
        n_pairs += np.bincount(kinds, minlength=3)
        n_won += np.bincount(kinds, (win + 1) / 2, minlength=3)
    return n_pairs, n_won


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
