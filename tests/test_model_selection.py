import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skanomaly import AutoEncoder
from skanomaly.metrics import auroc
from skanomaly.model_selection import (
    AnomalyScorer,
    NormalOnlyGroupKFold,
    NormalOnlyKFold,
    NormalOnlyShuffleSplit,
)
from skanomaly.testing import all_detectors, make_images, tiny

Y = np.array([1] * 20 + [-1] * 8 + [0] * 4)
SPLITTERS = [
    NormalOnlyKFold(3, random_state=0),
    NormalOnlyKFold(4, shuffle=False),
    NormalOnlyGroupKFold(3, random_state=0),
    NormalOnlyShuffleSplit(5, test_size=0.3, random_state=0),
]


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
@given(order=st.permutations(range(len(Y))))
def test_folds(splitter, order):
    y = Y[order]
    groups = np.arange(len(y)) // 2 if isinstance(splitter, NormalOnlyGroupKFold) else None
    for train, test in splitter.split(y, y, groups):
        assert not np.isin(y[train], -1).any()
        assert set(y[test]) == {-1, 1}
        assert not set(train) & set(test)
        if groups is not None:
            assert not set(groups[train]) & set(groups[test])


def test_other_labels():
    y = np.array([0] * 10 + [1] * 5)
    for train, test in NormalOnlyKFold(2, random_state=0, anomaly_label=1).split(y, y):
        assert set(y[train]) == {0}
        assert set(y[test]) == {0, 1}


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_labels_that_cannot_be(splitter):
    with pytest.raises(ValueError, match="needs y"):
        next(splitter.split(Y))
    with pytest.raises(ValueError, match=r"anomaly_label=-1 never occurs in y, whose values are \[0, 1\]"):
        next(splitter.split(Y, abs(Y)))


def test_too_few_anomalies():
    y = np.array([1] * 20 + [-1] * 2)
    with (
        pytest.raises(ValueError, match="one class only|n_splits=3"),
        pytest.warns(UserWarning, match="least populated"),
    ):
        list(NormalOnlyKFold(3, random_state=0).split(y, y))


class Constant:
    def score_samples(self, X):
        return -np.asarray(X, float)[:, 0]


def test_scorers():
    X, y = np.arange(6.0)[:, None], np.array([1, 1, -1, 1, -1, -1])
    assert AnomalyScorer()(Constant(), X, y) == auroc(y, X[:, 0])
    assert AnomalyScorer(anomaly_label=1)(Constant(), X, (y == -1).astype(int)) == auroc(y, X[:, 0])
    assert AnomalyScorer("average_precision")(Constant(), X, y) > 0.5
    assert AnomalyScorer(lambda y, score, anomaly_label: score[0])(Constant(), X, y) == 0
    assert repr(pickle.loads(pickle.dumps(AnomalyScorer()))) == "AnomalyScorer('auroc', anomaly_label=-1)"
    for metric in "auc", "pixel_auroc", "np", None, 1:
        with pytest.raises(
            ValueError, match="metric must be 'auroc', 'average_precision' or a function, got"
        ):
            AnomalyScorer(metric)


def test_scikit_learns_own_scorer_agrees_for_our_labels():
    X, y = make_images((20, 8, 8)), np.r_[np.ones(12), -np.ones(8)].astype(int)
    detector, cv = tiny(AutoEncoder), NormalOnlyKFold(2, random_state=0)
    ours = cross_val_score(clone(detector), X, y, cv=cv, scoring=AnomalyScorer())
    np.testing.assert_allclose(ours, cross_val_score(clone(detector), X, y, cv=cv, scoring="roc_auc"))


@pytest.mark.parametrize(("name", "detector"), all_detectors())
def test_a_parallel_search_is_the_serial_one(name, detector):
    """To the bit: the suite has one torch thread, and so have the workers."""
    X, y = make_images((24, 16, 16)), np.r_[np.ones(14), -np.ones(10)].astype(int)
    pipeline = make_pipeline(FunctionTransformer(), tiny(detector))
    grid = {f"{name.lower()}__random_state": [0, 1]}
    searches = [
        GridSearchCV(pipeline, grid, cv=NormalOnlyKFold(2, random_state=0), scoring=AnomalyScorer(), n_jobs=n)
        for n in (1, 2)
    ]
    serial, parallel = (search.fit(X, y) for search in searches)
    np.testing.assert_array_equal(
        serial.cv_results_["mean_test_score"], parallel.cv_results_["mean_test_score"]
    )
    np.testing.assert_array_equal(serial.predict(X), parallel.predict(X))
