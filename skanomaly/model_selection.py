"""Splitters with no anomalous images in training folds, and scorers that know which label is anomalous.

Labels are 1 (normal), -1 (anomalous) and 0 (unlabelled: in training folds only). If `anomaly_label` is not
-1, that label is anomalous and every other value is normal.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

from . import metrics
from .labels import check_groups, check_labels, truth_of

__all__ = ["AnomalyScorer", "NormalOnlyGroupKFold", "NormalOnlyKFold", "NormalOnlyShuffleSplit"]

Seed = int | np.random.RandomState | None


class _NormalOnlySplit:
    """Stratified splitter with no anomalous rows in training folds, and no unlabelled rows in test folds."""

    anomaly_label: Any

    def split(
        self, X: object, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield row indices (train, test): train has no anomalous rows, test has rows of both classes.

        Parameters
        ----------
        X : array-like of length n
            Images. They are not read.
        y : (n,) array-like
            Labels.
        groups : (n,) array-like, default=None
            Group of each row, for `NormalOnlyGroupKFold`: all rows of a group are in one fold.

        Yields
        ------
        train : int ndarray
            Normal and unlabelled rows.
        test : int ndarray
            Normal and anomalous rows.
        """
        if y is None:
            raise ValueError(f"{type(self).__name__} needs y: it keeps anomalies out of the training folds")
        anomalous, known = truth_of(y, self.anomaly_label)
        if groups is not None:
            groups = check_groups(groups)
        # Only the number of rows matters, so X may be anything, None too.
        for train, test in super().split(np.empty(len(anomalous)), anomalous, groups):
            train, test = train[~anomalous[train]], test[known[test]]
            if len(set(anomalous[test])) < 2:
                raise ValueError(
                    f"{type(self).__name__} made a test fold with one class only: {anomalous.sum()} "
                    f"anomalous of {len(known)} rows are too few, or their groups too large; lower n_splits"
                )
            yield train, test


class _NormalOnlyFolds(_NormalOnlySplit):
    """Splitter into folds, with the constructor of both public ones."""

    def __init__(
        self, n_splits: int = 5, *, shuffle: bool = True, random_state: Seed = None, anomaly_label: Any = -1
    ):
        # scikit-learn refuses a random_state that has no effect; here it is allowed, and ignored.
        super().__init__(n_splits, shuffle=shuffle, random_state=random_state if shuffle else None)
        self.anomaly_label = anomaly_label


class NormalOnlyKFold(_NormalOnlyFolds, StratifiedKFold):
    """Folds with normal and unlabelled rows to train on, and rows of both classes to test on.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds.
    shuffle : bool, default=True
        Whether rows are shuffled first.
    random_state : int, RandomState or None, default=None
        Seed or generator of the shuffling.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.model_selection import NormalOnlyKFold
    >>> y = np.array([1, 1, 1, 1, -1, -1])
    >>> [y[train].tolist() for train, _ in NormalOnlyKFold(2, random_state=0).split(y, y)]
    [[1, 1], [1, 1]]
    """


class NormalOnlyGroupKFold(_NormalOnlyFolds, StratifiedGroupKFold):
    """Folds as in `NormalOnlyKFold` that never divide a group, for example the images of a patient.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds.
    shuffle : bool, default=True
        Whether groups are shuffled first.
    random_state : int, RandomState or None, default=None
        Seed or generator of the shuffling.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.
    """


class NormalOnlyShuffleSplit(_NormalOnlySplit, StratifiedShuffleSplit):
    """Random splits with normal and unlabelled rows to train on, and rows of both classes to test on.

    Parameters
    ----------
    n_splits : int, default=10
        Number of splits.
    test_size : float, int or None, default=None
        Share or number of test rows before unlabelled rows are dropped, as in scikit-learn's
        StratifiedShuffleSplit.
    train_size : float, int or None, default=None
        Share or number of training rows before anomalous rows are dropped.
    random_state : int, RandomState or None, default=None
        Seed or generator of the draws.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.
    """

    def __init__(
        self,
        n_splits: int = 10,
        *,
        test_size: float | None = None,
        train_size: float | None = None,
        random_state: Seed = None,
        anomaly_label: Any = -1,
    ):
        super().__init__(n_splits, test_size=test_size, train_size=train_size, random_state=random_state)
        self.anomaly_label = anomaly_label


class AnomalyScorer:
    """Scorer for `cross_validate` and searches, made of a metric.

    scikit-learn's own scorer "roc_auc" is right for a detector only if 1 is the label of normal images. If 1
    is the label of anomalous images, it silently returns 1 - AUROC. The scorer here has the parameter
    `anomaly_label`, which says what the label of anomalous images is.

    Parameters
    ----------
    metric : "auroc", "average_precision" or callable, default="auroc"
        Name of a metric in `skanomaly.metrics`, or a function (y, anomaly_score, anomaly_label=) -> float.
    anomaly_label : object, default=-1
        Label of anomalous images. If it is not -1, all other values are normal.

    Raises
    ------
    ValueError
        If `metric` is another string, or no function.

    Examples
    --------
    >>> from sklearn.neighbors import KernelDensity
    >>> from sklearn.model_selection import cross_val_score
    >>> from skanomaly.model_selection import AnomalyScorer, NormalOnlyKFold
    >>> X, y = [[0.0], [0.1], [0.2], [0.3], [9.0], [8.0]], [0, 0, 0, 0, 1, 1]
    >>> cv = NormalOnlyKFold(2, random_state=0, anomaly_label=1)
    >>> scorer = AnomalyScorer("auroc", anomaly_label=1)
    >>> cross_val_score(KernelDensity(), X, y, cv=cv, scoring=scorer).tolist()
    [1.0, 1.0]
    """

    def __init__(self, metric: str | Callable[..., float] = "auroc", *, anomaly_label: Any = -1):
        if not callable(metric) and metric not in ("auroc", "average_precision"):
            raise ValueError(f"metric must be 'auroc', 'average_precision' or a function, got {metric!r}")
        self.metric = metric
        self.anomaly_label = anomaly_label

    def __call__(self, estimator: Any, X: Any, y: ArrayLike) -> float:
        """Metric of the scores that a fitted estimator gives to X, with labels y."""
        metric = getattr(metrics, self.metric) if isinstance(self.metric, str) else self.metric
        return metric(check_labels(y), -estimator.score_samples(X), anomaly_label=self.anomaly_label)

    def __repr__(self) -> str:
        return f"AnomalyScorer({self.metric!r}, anomaly_label={self.anomaly_label!r})"
