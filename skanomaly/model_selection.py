"""Splitters that train on normal images only, and scorers that know which label is anomalous.

Labels are 1 (normal), -1 (anomalous) and 0 (unlabelled: trained on, never tested on); or name the
anomalous one by `anomaly_label`, then every other value is normal.
"""

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit
from sklearn.utils import column_or_1d

from . import metrics

__all__ = [
    "AnomalyScorer",
    "NormalOnlyGroupKFold",
    "NormalOnlyKFold",
    "NormalOnlyShuffleSplit",
]


class _NormalOnlySplit:
    """Drops anomalies from the training side of a stratified splitter, unlabelled rows from the test side."""

    def split(self, X, y=None, groups=None):
        """Yield (train, test) row indices: normal rows only, and rows of both classes.

        Parameters
        ----------
        X : array-like of length n
            Not looked at.
        y : (n,) array-like
            Labels.
        groups : (n,) array-like, default=None
            For the grouped splitter: rows that stay together.

        Yields
        ------
        train : int ndarray
            Normal and unlabelled rows.
        test : int ndarray
            Normal and anomalous rows.
        """
        if y is None:
            raise ValueError(f"{type(self).__name__} needs y: it keeps anomalies out of the training folds")
        y = column_or_1d(y)
        anomalous = y == self.anomaly_label
        if not anomalous.any():
            raise ValueError(
                f"anomaly_label={self.anomaly_label!r} never occurs in y, whose values are "
                f"{np.unique(y).tolist()}; set anomaly_label to the label of anomalous images"
            )
        unlabelled = y == 0 if self.anomaly_label == -1 else np.zeros(len(y), dtype=bool)
        for train, test in super().split(np.empty(len(y)), anomalous, groups):
            train, test = train[~anomalous[train]], test[~unlabelled[test]]
            if len(set(anomalous[test])) < 2:
                raise ValueError(
                    f"{type(self).__name__} made a test fold with one class only: {anomalous.sum()} "
                    f"anomalous of {len(y)} rows are too few, or their groups too large; lower n_splits"
                )
            yield train, test


class NormalOnlyKFold(_NormalOnlySplit, StratifiedKFold):
    """Folds with normal training rows and test rows of both classes.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds.
    shuffle : bool, default=True
        Whether rows are drawn at random.
    random_state : int, RandomState or None, default=None
        Decides the draw.
    anomaly_label : object, default=-1
        Label of anomalous images.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.model_selection import NormalOnlyKFold
    >>> y = np.array([1, 1, 1, 1, -1, -1])
    >>> [y[train].tolist() for train, _ in NormalOnlyKFold(2, random_state=0).split(y, y)]
    [[1, 1], [1, 1]]
    """

    def __init__(self, n_splits=5, *, shuffle=True, random_state=None, anomaly_label=-1):
        super().__init__(n_splits, shuffle=shuffle, random_state=random_state if shuffle else None)
        self.anomaly_label = anomaly_label


class NormalOnlyGroupKFold(_NormalOnlySplit, StratifiedGroupKFold):
    """As `NormalOnlyKFold`, with the rows of one group (a patient) in one fold.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds.
    shuffle : bool, default=True
        Whether rows are drawn at random.
    random_state : int, RandomState or None, default=None
        Decides the draw.
    anomaly_label : object, default=-1
        Label of anomalous images.
    """

    def __init__(self, n_splits=5, *, shuffle=True, random_state=None, anomaly_label=-1):
        super().__init__(n_splits, shuffle=shuffle, random_state=random_state if shuffle else None)
        self.anomaly_label = anomaly_label


class NormalOnlyShuffleSplit(_NormalOnlySplit, StratifiedShuffleSplit):
    """Random splits with normal training rows and test rows of both classes.

    Parameters
    ----------
    n_splits : int, default=10
        Number of splits.
    test_size : float, int or None, default=None
        As in scikit-learn's StratifiedShuffleSplit.
    train_size : float, int or None, default=None
        As in scikit-learn's StratifiedShuffleSplit, before anomalies are dropped.
    random_state : int, RandomState or None, default=None
        Decides the draws.
    anomaly_label : object, default=-1
        Label of anomalous images.
    """

    def __init__(self, n_splits=10, *, test_size=None, train_size=None, random_state=None, anomaly_label=-1):
        super().__init__(n_splits, test_size=test_size, train_size=train_size, random_state=random_state)
        self.anomaly_label = anomaly_label


class AnomalyScorer:
    """A scorer for `cross_validate` and searches, from a metric of `skanomaly.metrics`.

    scikit-learn's own "roc_auc" scores a detector rightly only where 1 is normal: with 1 for anomalies
    it returns 1 - AUROC without a word. This one is told.

    Parameters
    ----------
    metric : str or callable, default="auroc"
        "auroc", "average_precision", or (y, anomaly_score, anomaly_label=) -> float.
    anomaly_label : object, default=-1
        Label of anomalous images.

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

    def __init__(self, metric="auroc", *, anomaly_label=-1):
        self.metric = metric
        self.anomaly_label = anomaly_label

    def __call__(self, estimator, X, y):
        """The metric of a fitted estimator on X and y."""
        metric = getattr(metrics, self.metric, None) if isinstance(self.metric, str) else self.metric
        if metric is None:
            raise ValueError(f"metric must be callable or a name in skanomaly.metrics, got {self.metric!r}")
        return metric(y, -estimator.score_samples(X), anomaly_label=self.anomaly_label)

    def __repr__(self):
        return f"AnomalyScorer({self.metric!r}, anomaly_label={self.anomaly_label!r})"
