"""The one rule for y: what every reader of labels does with missing ones, and with labels of other kinds."""

import contextlib
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import RocCurveDisplay
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from toys import LinearAutoEncoder, NearestImages

from skanomaly import DDAD, AutoEncoder, FeatureGaussian, PatchDetector, metrics
from skanomaly.datasets import load_chest_xray
from skanomaly.labels import LabelWarning, from_anomalies
from skanomaly.model_selection import (
    AnomalyScorer,
    NormalOnlyGroupKFold,
    NormalOnlyKFold,
    NormalOnlyShuffleSplit,
)
from skanomaly.plotting import ScoreHistogramDisplay
from skanomaly.segmenters import LayerwiseSegmenter, ResidualSegmenter
from skanomaly.staging import AnomalyStager, CentroidScorer, CentroidStager, ResidualTransformer
from skanomaly.testing import SliceOnly, make_images, tiny
from skanomaly.volumes import VolumeDetector

X = make_images((12, 8, 8))
FITTED = NearestImages().fit(X)
ROWS = X.reshape(12, -1).astype(float)
SCORE = np.arange(12.0)


def split(splitter):
    return lambda y: list(splitter.split(X, y, groups=np.arange(12)))


#: Everything that reads y of twelve images.
READERS = {
    "from_anomalies": from_anomalies,
    "fit": lambda y: NearestImages().fit(X, y),
    "fit of patches": lambda y: PatchDetector(NearestImages(), patch_size=4).fit(X, y),
    "fit of a list": lambda y: PatchDetector(NearestImages()).fit([X[0, :7], *X[1:]], y),
    "fit of DDAD": lambda y: tiny(DDAD).fit(X, y),
    "calibrate": lambda y: FITTED.calibrate(X, y, false_alarm_rate=0.5),
    "segmenter": lambda y: ResidualSegmenter(FrozenEstimator(FITTED)).fit(X, y),
    "layers": lambda y: LayerwiseSegmenter(NearestImages()).fit(X, y),
    "residuals": lambda y: ResidualTransformer(FrozenEstimator(FITTED)).fit(X, y),
    "stager": lambda y: AnomalyStager(FrozenEstimator(FITTED)).fit(X, y),
    "centroids": lambda y: CentroidStager().fit(ROWS, y),
    "order": lambda y: CentroidScorer().fit(ROWS[:, :2], y),
    "score of stages": lambda y: CentroidStager(random_state=0).fit(ROWS).score(ROWS, y),
    **{
        metric.__name__: lambda y, metric=metric: metric(y, SCORE)
        for metric in (
            metrics.auroc,
            metrics.average_precision,
            metrics.youden_threshold,
            metrics.best_f1_threshold,
            metrics.classification_metrics,
        )
    },
    "bootstrap": lambda y: metrics.bootstrap_interval(metrics.auroc, y, SCORE, n_resamples=1),
    "scorer": lambda y: AnomalyScorer()(FITTED, X, y),
    "scorer of one's own": lambda y: AnomalyScorer(lambda *args, anomaly_label: 0.0)(FITTED, X, y),
    "folds": split(NormalOnlyKFold(2)),
    "grouped folds": split(NormalOnlyGroupKFold(2)),
    "shuffled folds": split(NormalOnlyShuffleSplit(2)),
    "histogram": lambda y: ScoreHistogramDisplay.from_predictions(y, SCORE),
    "histogram of an estimator": lambda y: ScoreHistogramDisplay.from_estimator(FITTED, X, y),
}
readers = pytest.mark.parametrize("read", READERS.values(), ids=READERS)
GOOD = [1, -1] * 6
NAN = float("nan")
MISSING = {
    "nan": [*GOOD[:11], NAN],
    "floats": np.array([*GOOD[:11], NAN]),
    "objects": np.array([*GOOD[:11], None], dtype=object),
    "nan among objects": np.array([*GOOD[:11], NAN], dtype=object),
    "strings and None": ["1", "-1"] * 5 + ["1", None],
    "strings and nan": ["1", "-1"] * 5 + ["1", NAN],
    "array of strings and nan": np.array(["1", "-1"] * 5 + ["1", NAN], dtype=object),
    "Series": pd.Series([*GOOD[:11], None]),
    "Series of strings": pd.Series(["ill", "well"] * 5 + ["ill", None]),
    "nullable": pd.array([*GOOD[:11], pd.NA], dtype="Int64"),
    "nullable Series": pd.Series([True] * 11 + [pd.NA], dtype="boolean"),
    "list with NA": [*GOOD[:11], pd.NA],
    "NaT": [*GOOD[:11], pd.NaT],
    "times": pd.Series(pd.to_datetime(["2020-01-01"] * 11 + [None])),
    "categories": pd.Categorical(["ill", "well"] * 5 + ["ill", None]),
}


@readers
@pytest.mark.parametrize("y", MISSING.values(), ids=MISSING)
def test_a_missing_label_is_refused_by_all(read, y):
    with pytest.raises(ValueError, match="1 of 12 are missing, the first in row 11; .* mark them with 0"):
        read(y)


@readers
def test_masked_and_flat_labels(read):
    with pytest.raises(TypeError, match="y must be a plain array, got a masked one"):
        read(np.ma.masked_equal(GOOD, 1))
    for y in (np.array(GOOD)[:, None], np.ones((12, 8, 8), bool)):
        with pytest.raises(
            ValueError, match=r"y must have one label for each image, shape \(n,\), got shape"
        ):
            read(y)


#: Readers of y alone: splitters take their number of rows from y.
ALONE = {"from_anomalies", "scorer of one's own", "folds", "shuffled folds"}


@pytest.mark.parametrize(
    "read",
    [
        lambda y, groups: list(NormalOnlyGroupKFold(2).split(X, y, groups)),
        lambda y, groups: metrics.bootstrap_interval(metrics.auroc, y, SCORE, groups=groups),
        lambda y, groups: metrics.stratified_auroc(y, SCORE, SCORE[::-1], groups=groups),
        lambda y, groups: VolumeDetector(NearestImages()).fit(X, groups=groups),
    ],
    ids=["folds", "bootstrap", "strata", "volumes"],
)
def test_a_missing_group_is_refused_by_all(read):
    """All images without a patient became those of one, or an error of a comparison."""
    y, groups = np.tile([1, -1], 6), np.arange(12.0)
    read(y, groups)
    groups[3] = np.nan
    for gap in (
        groups,
        groups.tolist(),
        [None if g != g else g for g in groups],
        pd.Series(groups).convert_dtypes(),
    ):
        with pytest.raises(ValueError, match="groups is missing for row 3"):
            read(y, gap)
    with pytest.raises(TypeError, match="groups must be a plain array"):
        read(y, np.ma.masked_invalid(groups))


@pytest.mark.parametrize("name", sorted(READERS.keys() - ALONE))
def test_the_number_of_labels_is_checked(name):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        READERS[name](GOOD[:11])


CODES = st.sampled_from([1, -1, 0, 2, 255, 1.0, -1.0, 0.5, True, False, "1", "-1", "ill", ""])
GAPS = st.sampled_from([None, NAN, np.nan, pd.NA, pd.NaT, np.datetime64("NaT")])
CONTAINERS = st.sampled_from(
    [
        list,
        tuple,
        pd.Series,
        lambda y: pd.Series(y, dtype=object),
        lambda y: np.array([*y, None], dtype=object)[:-1],
    ]
)


@given(codes=st.lists(CODES, min_size=1, max_size=9), label=CODES, container=CONTAINERS)
def test_labels_of_any_kind(codes, label, container):
    y = container(codes)
    expected = [-1 if code == label else 1 for code in codes]
    if -1 not in expected:
        with pytest.raises(ValueError, match="never occurs in y, whose values are"):
            from_anomalies(y, anomaly_label=label)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelWarning)
        labels = from_anomalies(y, anomaly_label=label)
    assert labels.dtype.kind == "i"
    assert labels.tolist() == expected


@given(codes=st.lists(CODES, max_size=9), gap=GAPS, label=CODES, container=CONTAINERS, data=st.data())
def test_gaps_among_labels_of_any_kind(codes, gap, label, container, data):
    where = data.draw(st.integers(0, len(codes)))
    y = container([*codes[:where], gap, *codes[where:]])
    with pytest.raises(ValueError, match=f"1 of {len(codes) + 1} are missing, the first in row {where};"):
        from_anomalies(y, anomaly_label=label)


def test_labels_of_ones_own_say_what_they_are():
    with pytest.raises(ValueError, match=r"anomaly_label=1 never occurs in y, whose values are \['a', 'b'\]"):
        from_anomalies(["b", "a"])
    with pytest.raises(ValueError, match=r"values are \[0, 2, 4, 6, 8, 10, 12, 14, \.\.\.\]"):
        from_anomalies(2 * np.arange(12))
    with pytest.raises(ValueError, match=r"values are \['a', 2\]|values are \[2, 'a'\]"):
        from_anomalies(np.array([2, "a"], dtype=object))
    # Twice, it would turn all labels round.
    with pytest.warns(LabelWarning, match="marks anomalous images already"):
        assert from_anomalies(from_anomalies([0, 1])).tolist() == [-1, 1]


SILENT = {
    "none": None,
    "ones": np.ones(12),
    "ours": [1, -1] * 6,
    "unlabelled": [1, 0, -1] * 4,
    "unlabelled or anomalous": [0, 0, -1] * 4,
    "floats": np.tile([1.0, 0.0, -1.0], 4),
    "nullable": pd.array([1, -1] * 6, dtype="Int64"),
}
WARNS = {
    "0 and 1": ([0, 1] * 6, r"all rows, labelled \[0, 1\], .* = skanomaly.labels.from_anomalies\(y\);"),
    "zeros": ([0] * 12, r"labelled \[0\], .*from_anomalies\(y, anomaly_label=\.\.\.\)"),
    "floats": (np.tile([0.0, 1.0], 6), r"from_anomalies\(y\);"),
    "bool": (np.tile([False, True], 6), r"labelled \[False, True\], .*from_anomalies\(y\);"),
    "all True": ([True] * 12, r"anomaly_label=\.\.\."),
    "strings": (["1", "-1"] * 6, r"labelled \['-1', '1'\], .*from_anomalies\(y, anomaly_label='-1'\)"),
    "words": (["ill", "well"] * 6, r"labelled \['ill', 'well'\], .*anomaly_label=\.\.\."),
    "unsigned": (np.array([1, -1] * 6).astype("u1"), r"labelled \[1, 255\], .*y, anomaly_label=255\)"),
    "classes": ([1, 2, 3] * 4, r"labelled \[1, 2, 3\], .*anomaly_label=\.\.\."),
    "objects": (np.array([0, 1] * 6, dtype=object), r"from_anomalies\(y\);"),
    "nullable": (pd.array([0, 1] * 6, dtype="Int64"), r"from_anomalies\(y\);"),
}


@pytest.mark.parametrize("y", SILENT.values(), ids=SILENT)
def test_fit_is_silent_about_our_labels(y):
    NearestImages().fit(X, y)  # warnings are errors


@pytest.mark.parametrize(("y", "words"), WARNS.values(), ids=WARNS)
def test_fit_warns_of_other_labels(y, words):
    with pytest.warns(LabelWarning, match=words):
        detector = NearestImages().fit(X, y)
    assert detector.offset_ == FITTED.offset_
    tiny(DDAD).fit(X, np.repeat([0, 1], 6))  # 0 is unlabelled, and not learned as normal


#: Fits that warn once, at the line of the user.
FITS = {
    "detector": lambda y: LinearAutoEncoder().fit(X, y),
    "pipeline": lambda y: make_pipeline(FunctionTransformer(), LinearAutoEncoder()).fit(X, y),
    "patches": lambda y: PatchDetector(LinearAutoEncoder(), patch_size=4).fit(X, y),
    "residuals": lambda y: ResidualTransformer(LinearAutoEncoder()).fit(X, y),
    "frozen": lambda y: ResidualSegmenter(FrozenEstimator(FITTED)).fit(X, y),
    "stager": lambda y: CentroidStager(random_state=0).fit(ROWS, y),
    "order": lambda y: CentroidScorer().fit(ROWS[:, :2] + np.eye(2)[np.arange(12) % 2], y),
    "calibrate": lambda y: NearestImages().fit(X).calibrate(X, y, false_alarm_rate=0.2),
    "scikit-learn": lambda y: cross_val_predict(
        LinearAutoEncoder(), X, y, cv=[(np.arange(12), np.arange(12))]
    ),
}


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_the_warning_points_at_the_users_line(fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(np.repeat([0, 1], 6))
    assert [warning.category for warning in caught] == [LabelWarning]
    assert caught[0].filename == __file__
    assert caught[0].lineno == fit.__code__.co_firstlineno


@pytest.mark.parametrize("y", [np.arange(12) % 4 == 0, np.array(["ill", "fine"] * 6), np.arange(12) % 3])
def test_detectors_that_learn_from_unlabelled_images_hear_other_labels(y):
    """0 and 1 are theirs; booleans, strings and 2 have no meaning beside these."""
    detector = tiny(FeatureGaussian).fit(make_images())
    for fit in tiny(FeatureGaussian).fit, tiny(FeatureGaussian, keep_sums=True).partial_fit:
        with pytest.warns(LabelWarning, match="those labelled 0 or False count as unlabelled"):
            with contextlib.suppress(ValueError):  # sums of unlabelled images are not kept
                fit(make_images(), y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(FeatureGaussian).fit(make_images(), np.arange(12) % 2)
        detector.calibrate(make_images(), np.arange(12) % 2, false_alarm_rate=0.5)


def same(detector, other, images):
    weights, expected = (network.state_dict() for network in (detector.network_, other.network_))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert_array_equal(weight, expected[name])
    assert_array_equal(detector.score_samples(images), other.score_samples(images))
    assert (detector.offset_, detector.pixel_offset_) == (other.offset_, other.pixel_offset_)


def shrink(images):
    return images[:, ::8, ::8]


def test_converted_labels_of_chest_x_rays_train_on_normal_images_alone():
    val = load_chest_xray(subset="val")
    images, ill = val.images, (val.target == -1).astype(int)
    detector = tiny(AutoEncoder, batch_size=64)
    alone = clone(detector).fit(shrink(images[ill == 0]))
    with pytest.warns(LabelWarning, match=r"labelled \[0, 1\], are learned as normal"):
        misled = clone(detector).fit(shrink(images), ill)
    assert misled.offset_ != alone.offset_
    y = from_anomalies(ill)
    same(clone(detector).fit(shrink(images), y), alone, shrink(images))
    pipeline = make_pipeline(FunctionTransformer(shrink), clone(detector))
    same(clone(pipeline).fit(images, y)[-1], alone, shrink(images))
    search = GridSearchCV(
        pipeline,
        {"autoencoder__latent_size": [2, 3]},
        cv=NormalOnlyKFold(2, random_state=0),
        scoring=AnomalyScorer(),
    ).fit(images, y)
    best = clone(detector).set_params(latent_size=search.best_params_["autoencoder__latent_size"])
    same(search.best_estimator_[-1], best.fit(shrink(images[ill == 0])), shrink(images))


Y = np.resize([1, 1, -1, 0], 40)
NEW = make_images((40, 8, 8), seed=1)


@pytest.mark.parametrize("container", [np.asarray, SliceOnly, list, lambda X: [X[0], X[1][:7], *X[2:]]])
def test_calibrate_takes_the_rows_with_label_1(container):
    fitted, alone = (PatchDetector(NearestImages(), patch_size=4, random_state=0).fit(X) for _ in range(2))
    images = container(NEW)
    normal = NEW[Y == 1] if not isinstance(images, list) else [images[i] for i in np.flatnonzero(Y == 1)]
    fitted.calibrate(images, Y, false_alarm_rate=0.1)
    alone.calibrate(normal, false_alarm_rate=0.1)
    for name in ("offset_", "pixel_offset_", "map_range_"):
        assert getattr(fitted, name) == getattr(alone, name)


def test_the_former_name_of_the_images_to_calibrate_with():
    old, new = NearestImages().fit(X), NearestImages().fit(X).calibrate(NEW)
    with pytest.warns(FutureWarning, match="X_normal is deprecated: give the images as X") as caught:
        old.calibrate(X_normal=NEW)
    assert caught[0].filename == __file__
    assert (old.offset_, old.map_range_) == (new.offset_, new.map_range_)
    for images in ({}, {"X": NEW, "X_normal": NEW}):
        with pytest.raises(TypeError, match="calibrate needs images X"):
            old.calibrate(**images)


def test_calibrate_warns_of_other_labels():
    detector = NearestImages().fit(X)
    for y in (np.repeat([0, 1], 20), np.arange(40) % 2 == 0):
        with pytest.warns(LabelWarning, match=r"only those with 1 were taken .*from_anomalies\(y\)"):
            detector.calibrate(NEW, y)
    with pytest.raises(
        ValueError, match=r"mark normal images with 1, got \['ill', 'well'\]; .*from_anomalies"
    ):
        detector.calibrate(NEW, ["ill", "well"] * 20)
    tiny(DDAD).fit(X, np.repeat([0, 1], 6)).calibrate(NEW, np.repeat([0, 1], 20))


def test_the_tools_of_scikit_learn_that_the_guide_names():
    assert cross_val_predict(LinearAutoEncoder(), X, cv=KFold(3), method="decision_function").shape == (12,)
    y = np.resize([1, -1], 12)
    drawn = RocCurveDisplay.from_predictions(y == -1, -FITTED.score_samples(X))
    assert drawn.roc_auc == pytest.approx(metrics.auroc(y, -FITTED.score_samples(X)))


def test_a_checkpoint_is_of_what_labels_mean(tmp_path):
    """Whole numbers or floats: the same fit. Another row without a label: another one."""
    y = np.resize([1, 0, -1], 12)
    small = {"n_members": 2, "refine": False, "checkpoint_dir": tmp_path}
    first = tiny(DDAD, **small).fit(X, y)
    for other in (y.astype(float), y.tolist(), pd.Series(y, dtype="Int64"), y.astype(object)):
        same(tiny(DDAD, **small).fit(X, other), first, X)
    with pytest.raises(ValueError, match="holds another fit: y was"):
        tiny(DDAD, **small).fit(X, y[::-1])
