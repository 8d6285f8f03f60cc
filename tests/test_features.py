"""Features of images: equations, names, what a row depends on, layouts, Pipelines and searches."""

import pickle
from collections import Counter

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import (
    check_set_output_transform_pandas,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    parametrize_with_checks,
)
from test_wall import layouts
from torch import nn

from skanomaly import AutoEncoder, FeatureGaussian, PatchDetector
from skanomaly.datasets import load_chest_xray
from skanomaly.features import ImageFeatures
from skanomaly.labels import LabelWarning
from skanomaly.model_selection import AnomalyScorer, NormalOnlyKFold
from skanomaly.networks.backbone import DerivativeFilters, ImageNetBackbone
from skanomaly.testing import DTYPES, SliceOnly, make_images, tiny

X = make_images((70, 16, 16))


def filters(**parameters):
    return ImageFeatures(backbone="filters", **{"input_size": 16, **parameters})


@parametrize_with_checks([filters()])
def test_scikit_learn(estimator, check):
    check(estimator)


# scikit-learn's own runs of this check do not mind warnings.
@pytest.mark.filterwarnings("ignore:X .*feature names")
@pytest.mark.parametrize(
    "check",
    [
        check_transformer_get_feature_names_out,
        check_transformer_get_feature_names_out_pandas,
        check_set_output_transform_pandas,
    ],
)
def test_scikit_learn_on_names(check):
    check("ImageFeatures", filters())


# Equations.


def pooled_by_hand(maps, cells):
    """Means over cells, written out; the sides of maps are multiples of the cells."""
    rows = []
    for image in range(len(maps[0])):
        row = []
        for m in maps:
            blocks = [np.split(part, cells[1], axis=2) for part in np.split(m[image], cells[0], axis=1)]
            row += [
                blocks[i][j][channel].mean()
                for channel in range(m.shape[1])
                for i in range(cells[0])
                for j in range(cells[1])
            ]
        rows.append(row)
    return np.array(rows)


def scaled(X):
    return torch.from_numpy(X[:, None].astype(np.float32) / 255)


@pytest.mark.parametrize(("grid", "cells"), [("auto", (8, 8)), (4, (4, 4)), ((2, 8), (2, 8))])
def test_rows_of_filters_are_logarithms_of_means_over_cells(grid, cells):
    X = make_images((3, 32, 32))
    maps = [m.numpy() for m in DerivativeFilters((0, 2), (32, 32))(scaled(X))]
    features = filters(layers=(0, 2), input_size=32, grid=grid).fit(X)
    assert features.grid_ == cells
    rows = features.transform(X)
    assert rows.dtype == np.float32
    assert_allclose(rows, np.log(pooled_by_hand(maps, cells) + 1e-3), rtol=1e-4, atol=1e-5)


def test_rows_of_imagenet_are_means_over_cells():
    X = make_images((2, 64, 64))
    with torch.no_grad():
        maps = [m.numpy() for m in ImageNetBackbone((1, 3), (64, 64))(scaled(X))]
    rows = ImageFeatures(layers=(1, 3), input_size=64).fit(X).transform(X)
    assert rows.shape == (2, (24 + 80) * 4)
    assert_allclose(rows, pooled_by_hand(maps, (2, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["filters", "imagenet"])
def test_a_gaussian_of_the_rows_is_feature_gaussian(backbone):
    X, new = make_images((12, 16, 16)), make_images((5, 16, 16), seed=1)
    parameters = {"backbone": backbone, "input_size": 32, "grid": 1}
    detector = FeatureGaussian(**parameters, shrinkage=1.0).fit(X)
    # Shrunk in full, it is the distance from the mean, in units of deviations.
    features = ImageFeatures(**parameters).fit(X)
    scaler = StandardScaler().fit(features.transform(X).astype(float))
    rows = scaler.transform(features.transform(new).astype(float))
    assert_allclose(-detector.score_samples(new), (rows**2).sum(1), rtol=0.02)


# Names.


def test_names_are_those_of_the_columns():
    X = make_images((3, 16, 16))
    features = filters(layers=(0, 2), grid=(1, 2)).fit(X)
    names = features.get_feature_names_out()
    assert names[:4].tolist() == ["scale0_0_0_0", "scale0_0_0_1", "scale0_1_0_0", "scale0_1_0_1"]
    assert names[-1] == "scale2_3_0_1"
    assert len(names) == len(set(names)) == features.transform(X).shape[1]
    # Bright on the left and dark on the right: channel 3, the image itself, says so.
    X = np.where(np.arange(16) < 8, 255, 0).astype("uint8") + np.zeros((3, 16, 1), "uint8")
    X[0] = 3
    table = features.set_output(transform="pandas").fit(X).transform(X)
    assert table.columns.tolist() == names.tolist()
    left, right = (table[f"scale0_3_0_{column}"].to_numpy() for column in (0, 1))
    assert_allclose(left[1:], np.log(1), atol=0.1)
    assert (right[1:] < -2).all()


def test_names_of_stages_modules_and_maps():
    X = make_images((3, 16, 16))

    def first(backbone, **parameters):
        fitted = ImageFeatures(backbone=backbone, input_size=16, grid=1, **parameters).fit(X)
        names = fitted.get_feature_names_out()
        assert len(names) == fitted.transform(X).shape[1]
        return names[0], names[-1]

    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))
    assert first("imagenet", layers=(0, 1)) == ("stage0_0_0_0", "stage1_23_0_0")
    assert first(net) == ("map0_0_0_0", "map0_2_0_0")
    assert first(net, layers=["1", "2"]) == ("1_0_0_0", "2_2_0_0")
    assert first(tiny(AutoEncoder))[0].startswith("encoder.")


# What a row depends on.


@pytest.mark.parametrize("backbone", ["filters", "imagenet", tiny(AutoEncoder)])
def test_rows_depend_on_their_image_only(backbone):
    features = ImageFeatures(backbone=backbone, input_size=16, random_state=0).fit(X[:9])
    rows, order = features.transform(X), np.random.default_rng(0).permutation(len(X))
    assert len(np.unique(rows, axis=0)) == len(X)
    assert_array_equal(features.transform(X[order]), rows[order])
    assert_array_equal(features.transform(X[31:34]), rows[31:34])
    assert_array_equal(features.transform(X[40:41]), rows[40:41])
    assert_array_equal(clone(features).fit_transform(X[:9]), rows[:9])


@pytest.mark.parametrize("backbone", ["filters", tiny(AutoEncoder)])
def test_copies_give_the_same_rows(backbone, tmp_path):
    features = ImageFeatures(backbone=backbone, input_size=16, random_state=0).fit(X)
    joblib.dump(features, tmp_path / "features.joblib")
    expected = features.transform(X)
    for copy in (pickle.loads(pickle.dumps(features)), joblib.load(tmp_path / "features.joblib")):
        assert_array_equal(copy.transform(X), expected)
        assert copy.get_feature_names_out().tolist() == features.get_feature_names_out().tolist()
    # Parameters that are set later do not change what was fitted.
    features.set_params(grid=1, layers=[0], input_size=8)
    assert_array_equal(features.transform(X), expected)


@given(layout=layouts(), dtype=st.sampled_from(DTYPES))
@pytest.mark.filterwarnings("ignore:all . training images are")  # of one pixel
def test_any_layout(layout, dtype):
    shape, channel_axis = layout
    X = make_images(shape, dtype)
    features = filters(grid=2, channel_axis=channel_axis).fit(X)
    rows, shape = features.transform(X), features.image_shape_
    assert rows.shape == (len(X), 3 * 4 * shape[0] * 4) == (len(X), len(features.get_feature_names_out()))
    assert np.isfinite(rows).all()
    assert features.n_features_in_ == X.shape[1]
    # The same images, channels first, have the same rows to the bit.
    first = X if channel_axis == 1 else X.reshape(len(X), *shape) if channel_axis == "auto" else None
    first = np.moveaxis(X, -1, 1) if first is None else first
    assert_array_equal(clone(features).set_params(channel_axis=1).fit_transform(first), rows)


class Recorder:
    """Lazy X that notes which rows are read."""

    def __init__(self, X):
        self.X, self.shape, self.dtype = X, X.shape, X.dtype
        self.read, self.longest = Counter(), 0

    def __getitem__(self, rows):
        self.read.update(range(*rows.indices(len(self.X))))
        self.longest = max(self.longest, rows.stop - rows.start)
        return self.X[rows]


def test_lazy_images_are_read_once_and_in_batches():
    features, lazy = filters().fit(SliceOnly(X)), Recorder(X)
    out = np.empty((70, 768), np.float32)
    assert features.transform(lazy, out=out) is out
    assert lazy.read == Counter(range(70)) + Counter([0])  # its first row shows its type
    assert lazy.longest == 32
    assert_array_equal(out, filters().fit(X).transform(X))


def test_containers():
    expected = filters().fit_transform(X)
    for other in (torch.from_numpy(X.copy()), list(X), np.asfortranarray(X)):
        assert_array_equal(filters().fit_transform(other), expected)
    frame = pd.DataFrame(X.reshape(70, -1)).add_prefix("pixel")
    features = filters(image_shape=(16, 16)).fit(frame)
    assert features.feature_names_in_.tolist() == frame.columns.tolist()
    assert features.n_features_in_ == 256
    assert_array_equal(features.transform(frame), expected)
    table = features.set_output(transform="pandas").transform(frame.set_axis(range(9, 79)))
    assert table.index.tolist() == list(range(9, 79))


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (np.empty((3, 768), np.uint8), TypeError, "out must hold float32, got dtype uint8"),
        (np.empty((3, 9), np.float32), ValueError, r"out must have shape \(3, 768\), got \(3, 9\)"),
        (torch.empty(3, 768), TypeError, "tensor.numpy"),
        ([], TypeError, "out must be an array"),
    ],
)
def test_out_must_be_able_to_hold_the_rows(out, error, words):
    with pytest.raises(error, match=words):
        filters().fit(X).transform(X[:3], out=out)


# Labels.


def test_known_anomalies_teach_nothing():
    y = np.r_[np.ones(60), -np.ones(10)].astype(int)
    images = X.astype("float32")
    images[60:] *= 9
    for backbone in ("filters", tiny(AutoEncoder)):
        features = ImageFeatures(backbone=backbone, input_size=16, random_state=0)
        with_them, without = clone(features).fit(images, y), clone(features).fit(images[:60])
        assert with_them.intensity_range_ == without.intensity_range_
        assert with_them.n_images_ == 60
        assert_array_equal(with_them.transform(images), without.transform(images))
        assert clone(features).fit_transform(images, y).shape[0] == 70  # they have rows


def test_labels_that_may_hide_anomalies_warn_if_a_detector_learns():
    y = np.resize([0, 1], 70)
    with pytest.warns(LabelWarning, match="the backbone learned all rows, labelled \\[0, 1\\]"):
        ImageFeatures(backbone=tiny(AutoEncoder)).fit(X, y)
    frozen = FrozenEstimator(tiny(AutoEncoder).fit(X))
    for backbone in ("filters", frozen):  # without a warning: nothing is learned
        fitted = make_pipeline(ImageFeatures(backbone=backbone), StandardScaler(), LogisticRegression())
        assert fitted.fit(X, y).predict(X).shape == (70,)


def test_backbones_that_are_detectors_are_fitted_or_taken_as_they_are():
    detector = tiny(AutoEncoder, random_state=3)
    features = ImageFeatures(backbone=detector, random_state=0).fit(X)
    assert not hasattr(detector, "network_")
    inner = features.backbone_detector_
    frozen = ImageFeatures(backbone=FrozenEstimator(inner)).fit(X[:5])
    assert frozen.backbone_detector_ is inner
    assert frozen.backbone_["sha256"] == features.backbone_["sha256"]
    assert_array_equal(frozen.transform(X), features.transform(X))


# Pipelines and searches.


class Counting(nn.Module):
    """Backbone that counts the images it has seen, in all of its copies."""

    n_images = 0

    def forward(self, x):
        Counting.n_images += len(x)
        return x


def test_a_pipeline_with_memory_computes_features_of_a_fit_once(tmp_path):
    def counted(memory, **parameters):
        features = ImageFeatures(backbone=Counting(), input_size=8, grid=4)
        pipeline = make_pipeline(features, OneClassSVM(**parameters), memory=memory)
        Counting.n_images = 0
        fitted = pipeline.fit(X)
        return Counting.n_images, fitted.score_samples(X)

    n_images, scores = counted(str(tmp_path))
    assert n_images == 1 + 96  # the shapes of maps, and three batches
    again, same = counted(str(tmp_path))
    assert again == 0
    assert_array_equal(same, scores)
    again, other = counted(str(tmp_path), nu=0.1)
    assert again == 0
    assert (other != scores).any()
    assert counted(None)[0] == 97


def test_out_is_no_metadata():
    """scikit-learn would offer set_transform_request(out=...), as for any keyword of transform."""
    assert not hasattr(filters(), "set_transform_request")


def test_searches(tmp_path):
    y = np.r_[np.ones(55), -np.ones(15)].astype(int)
    options = {"cv": NormalOnlyKFold(2, random_state=0), "scoring": AnomalyScorer("auroc")}
    pipeline = make_pipeline(filters(), PCA(3), KernelDensity(), memory=str(tmp_path))
    search = GridSearchCV(pipeline, {"imagefeatures__grid": [1, (2, 4)]}, **options).fit(X, y)
    assert search.best_estimator_[0].grid_ in [(1, 1), (2, 4)]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    pipeline = make_pipeline(ImageFeatures(backbone=tiny(AutoEncoder), random_state=0), OneClassSVM())
    epochs = {"imagefeatures__backbone__max_epochs": [1, 2]}
    search = GridSearchCV(pipeline, epochs, scoring="roc_auc", cv=options["cv"]).fit(X, y)
    inner = search.best_estimator_[0].backbone_detector_
    assert inner.n_iter_ == search.best_params_["imagefeatures__backbone__max_epochs"]


@pytest.mark.learning
def test_classical_detectors_tell_pneumonia_by_features():
    train, val = (load_chest_xray(subset=subset) for subset in ("train", "val"))
    normal, y = train.images[train.target == 1], val.target
    pixels = make_pipeline(StandardScaler(), OneClassSVM()).fit(normal.reshape(len(normal), -1))
    by_pixels = roc_auc_score(y, pixels.score_samples(val.images.reshape(len(y), -1)))
    pipeline = make_pipeline(ImageFeatures(backbone="filters"), StandardScaler(), OneClassSVM())
    by_features = roc_auc_score(y, pipeline.fit(normal).score_samples(val.images))
    print(by_pixels, by_features)
    assert by_features > 0.8 > by_pixels


# Errors.


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        (
            {"backbone": "resnet"},
            ValueError,
            "'backbone' .* ImageFeatures .*'imagenet'.* Got 'resnet'",
        ),
        (
            {"backbone": PCA()},
            TypeError,
            "backbone must be a detector or encoder of whole images, got PCA",
        ),
        ({"backbone": PatchDetector()}, TypeError, "got PatchDetector"),
        ({"backbone": FrozenEstimator(AutoEncoder())}, NotFittedError, "AutoEncoder"),
        (
            {"layers": (0, 3)},
            ValueError,
            r"layers must be one or more different numbers .*'filters', got \(0, 3\)",
        ),
        ({"layers": ()}, ValueError, r"layers must be one or more different numbers"),
        ({"backbone": nn.Conv2d(1, 2, 3), "layers": ["x"]}, ValueError, r"must name modules .*\['x'\]"),
        ({"backbone": nn.Flatten()}, ValueError, r"must give maps \(n, c, h, w\), got \(1, 256\); name"),
        ({"grid": 0}, ValueError, "'grid' parameter of ImageFeatures .* Got 0"),
        ({"grid": (2, 0)}, ValueError, r"grid must be a whole number or two, \(h, w\), got \(2, 0\)"),
        ({"grid": (2, 2, 2)}, ValueError, "grid must be a whole number or two"),
        ({"input_size": (16, 2.5)}, ValueError, r"input_size must be .* got \(16, 2.5\)"),
        ({"intensity_range": (3, 1)}, ValueError, r"intensity_range must be .* got \(3, 1\)"),
        ({"device": "cuda:99"}, ValueError, "cuda:99"),
        ({"channel_axis": 1}, ValueError, "channel_axis=1 needs X with 4 axes"),
    ],
)
def test_wrong_parameters_are_named_and_change_nothing(parameters, error, words):
    fitted = filters().fit(X)
    before = fitted.transform(X)
    with pytest.raises(error, match=words):
        fitted.set_params(**parameters).fit(X)
    fitted.set_params(**filters().get_params())
    assert_array_equal(fitted.transform(X), before)


def test_whole_numbers_of_numpy_are_taken():
    images = X[:, :8]  # not square: one side of the input is not the other
    rows = filters(input_size=np.int64(16), grid=np.int64(2), layers=list(np.arange(2)))
    assert_array_equal(rows.fit_transform(images), filters(grid=2, layers=(0, 1)).fit_transform(images))


def test_wrong_images_are_named():
    images = make_images((5, 16, 16), "float32")
    fitted = filters().fit(images)
    with pytest.raises(NotFittedError, match="ImageFeatures"):
        filters().transform(images)
    with pytest.raises(NotFittedError, match="ImageFeatures"):
        filters().get_feature_names_out()
    wrong = {
        r"\(1, 16, 16\), got \(1, 16, 12\)": images[:, :, :12],
        "uint8.*float.*intensity_range": make_images((5, 16, 16)),
        "0 sample": images[:0],
        "got one image": make_images((3, 16, 16), "float32")[0],
        "NaN": np.where(images == images.max(), np.nan, images),
    }
    for words, bad in wrong.items():
        with pytest.raises(ValueError, match=words):
            fitted.transform(bad)
    extreme = make_images((40, 16, 16), "float32")
    extreme[35, 3, 3] = 1e38
    with pytest.raises(ValueError, match="a feature of image 35 of X is not finite .* fill value"):
        ImageFeatures(input_size=16, intensity_range=(0, 1)).fit(images).transform(extreme)
