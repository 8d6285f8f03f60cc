"""Segmenters: the residual's threshold, and the comparison of layers, exactly."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly import AutoEncoder, PatchDetector, metrics
from skanomaly.datasets import make_oct
from skanomaly.io import ImageFiles, read_folder
from skanomaly.layers import GraphLayerExtractor, UNetLayerExtractor
from skanomaly.retina.comparison import GAP
from skanomaly.segmentation import (
    NO_LAYER,
    block_means,
    check_depth_order,
    layer_codes,
    layer_thresholds,
    layerwise_mask,
    residual_mask,
)
from skanomaly.segmenters import LayerwiseSegmenter, ResidualSegmenter
from skanomaly.testing import make_images, tiny


def inner(**parameters):
    return tiny(AutoEncoder, **parameters)


@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@parametrize_with_checks(
    [ResidualSegmenter(inner()), ResidualSegmenter(inner(), level="block"), LayerwiseSegmenter(inner())]
)
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def scans():
    return make_oct(12, kinds=("normal", "subretinal fluid"), size=48, random_state=0)


def test_the_threshold_is_a_quantile_of_normal_maps(scans):
    segmenter = ResidualSegmenter(inner(), quantile=0.9, fill_holes=False).fit(scans.images, scans.target)
    normal = scans.images[scans.target == 1]
    maps = segmenter.detector_.anomaly_map(normal)
    assert segmenter.threshold_ == pytest.approx(np.quantile(maps, 0.9))
    assert segmenter.predict(normal).mean() == pytest.approx(0.1, abs=1e-3)
    only = ResidualSegmenter(inner(), quantile=0.9, fill_holes=False).fit(normal)
    assert_array_equal(only.predict(scans.images), segmenter.predict(scans.images))


def test_files_of_normal_images_are_not_all_in_memory(scans, tmp_path, monkeypatch):
    for i, scan in enumerate(scans.images):
        Image.fromarray(scan).save(tmp_path / f"{i:02}.png")
    expected = ResidualSegmenter(inner()).fit(scans.images, scans.target)
    monkeypatch.setattr(ImageFiles, "__array__", None)
    found = ResidualSegmenter(inner()).fit(read_folder(tmp_path), scans.target)
    assert found.threshold_ == expected.threshold_


def test_blocks(scans):
    segmenter = ResidualSegmenter(inner(), level="block", block_size=8, fill_holes=False).fit(scans.images)
    blocks = segmenter.predict(scans.images).reshape(12, 6, 8, 6, 8)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    maps = np.random.default_rng(0).uniform(size=(2, 7, 5))
    means = block_means(maps, 3)
    assert_allclose(means[0, :3, 3:], maps[0, :3, 3:].mean())
    assert_allclose(means[1, 6:, :3], maps[1, 6:, :3].mean())
    assert_allclose(block_means(maps, 1), maps)


@pytest.mark.parametrize("n_layers", [2, 7, 9])
def test_a_planted_block_is_found_exactly(n_layers):
    """Layers c1 where the reconstruction has c2: the difference is (c1 - c2) / (L - 1)."""
    plain = np.repeat(np.arange(n_layers + 2), 3)[None, :, None].repeat(8, 2)
    assert not layerwise_mask(plain, plain, n_layers).any(), "equal layers"
    for c1, c2 in ((1, n_layers), (2, 1), (NO_LAYER, 1), (n_layers, NO_LAYER)):
        layers, made = plain.copy(), plain.copy()
        layers[0, 4:7, 2:5], made[0, 4:7, 2:5] = c1, c2
        block = np.zeros(plain.shape, bool)
        block[0, 4:7, 2:5] = True
        difference = abs(c1 - c2) / (n_layers - 1)
        if NO_LAYER in (c1, c2):
            difference = GAP - (max(c1, c2) - 1) / (n_layers - 1)
        codes = layer_codes(layers, n_layers) - layer_codes(made, n_layers)
        assert_allclose(np.abs(codes[block]), difference)
        neighbours = NO_LAYER not in (c1, c2) and abs(c1 - c2) == 1
        found = layerwise_mask(layers, made, n_layers)
        assert_array_equal(found, block & (not neighbours), "neighbours exchanged are noise")
        for low, high, found in (
            (difference, 3.5, False),
            (difference - 1e-9, difference, False),
            (difference - 1e-9, difference + 1e-9, True),
        ):
            mask = layerwise_mask(layers, made, n_layers, v_low=low, v_high=high)
            assert mask.any() == found, "strict on both sides"
    assert layerwise_mask(plain, plain, n_layers, v_low=-1, v_high=np.inf).all()


@pytest.mark.parametrize("n_layers", [1, 2, 7])
def test_the_background_is_left_out(n_layers):
    every = np.arange(n_layers + 2)[None, :, None]
    for background in (0, n_layers + 1):
        mask = layerwise_mask(every, np.full_like(every, background), n_layers)
        assert not mask.any()
    low, high = layer_thresholds(n_layers)
    codes = layer_codes([NO_LAYER, *range(1, n_layers + 1)], n_layers)
    assert low < np.abs(codes[1:] - codes[0]).min(), "a gap is never noise"
    assert np.abs(codes[:, None] - codes).max() < high < np.abs(codes - layer_codes(0, n_layers)).min()


def test_depth_order_is_that_within_columns():
    """Not that of all pixels: layer 2 lies below layer 1 wherever both are, though mostly high up."""
    high, low = [0, 1, 2, 2, 2, 3, 3, 3], [0, 0, 0, 1, 1, 1, 2, 3]
    layers = np.array([[high, high, low]]).swapaxes(1, 2)
    check_depth_order(np.repeat(layers, 4, axis=1))
    check_depth_order(np.where(layers == 3, NO_LAYER, layers))
    check_depth_order(np.array([[[1, 2]]]))  # never in one column


class Columns(BaseEstimator):
    """An extractor for tests: bright pixels are layer 1, brighter ones layer 2."""

    n_layers_ = 2

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def predict(self, X):
        return np.digitize(np.asarray(X), [50, 100, 200])


def test_layers_of_scans_and_reconstructions_are_compared(scans):
    segmenter = LayerwiseSegmenter(inner(), Columns(), fill_holes=False)
    rows = np.repeat([0, 70, 120, 230], 12)[None, :, None].repeat(48, 2).repeat(8, 0).astype(np.uint8)
    rows[0, 0, 0] = 1  # equal training images warn
    segmenter.fit(rows)
    layers, made = segmenter.layers(rows)
    assert_array_equal(layers, Columns().predict(rows))
    assert_array_equal(made, Columns().predict(segmenter.detector_.reconstruct(rows)))
    assert_array_equal(segmenter.predict(rows), layerwise_mask(layers, made, 2))
    copy = pickle.loads(pickle.dumps(segmenter))
    assert_array_equal(copy.predict(rows), segmenter.predict(rows))


def test_sizes_of_masks(scans):
    detector = FrozenEstimator(inner().fit(scans.images))
    maps = detector.estimator.anomaly_map(scans.images)
    for options in {"min_size": 12}, {"median_size": 5}, {"fill_holes": False}:
        segmenter = ResidualSegmenter(detector, quantile=0.95, **options).fit(scans.images)
        expected = residual_mask(maps, segmenter.threshold_, **options)
        assert_array_equal(segmenter.predict(scans.images), expected)
        assert not np.array_equal(expected, residual_mask(maps, segmenter.threshold_)), "it matters"
    layers = LayerwiseSegmenter(detector, v_low=-1, v_high=0.1, min_size=40, fill_holes=False)
    layers.fit(scans.images)
    whole = layerwise_mask(*layers.layers(scans.images), 7, v_low=-1, v_high=0.1)
    expected = residual_mask(whole.astype(float), 0.5, fill_holes=False, min_size=40)
    assert_array_equal(layers.predict(scans.images), expected)
    assert not np.array_equal(expected, whole)


class Odd(Columns):
    """Numbers layers in no order."""

    def predict(self, X):
        return np.array([0, 2, 1, 3])[super().predict(X)]


class Nameless(Odd):
    n_layers_ = property()


def test_normal_rows_only_reach_the_extractor():
    seen = []

    class Spy(Columns):
        def fit(self, X, y=None):
            seen.append(len(X))
            return super().fit(X)

    rows = np.repeat([0, 70, 120, 230], 4)[None, :, None].repeat(9, 2).repeat(9, 0).astype(np.uint8)
    rows[0, 0, 0] = 1
    LayerwiseSegmenter(inner(), Spy()).fit(rows, np.repeat([1, -1], (6, 3)))
    assert seen == [6]


def test_thresholds_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(AutoEncoder, "_fit", lambda self, X, y: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match="v_low must be below v_high"):
        LayerwiseSegmenter(inner(), v_low=0.5, v_high=0.5).fit(make_images((6, 16, 16)))


def test_any_extractor_and_frozen_ones(scans):
    unet = UNetLayerExtractor(width=2, max_epochs=3, random_state=0).fit(scans.images, scans.layers)
    detector = inner().fit(scans.images)
    segmenter = LayerwiseSegmenter(FrozenEstimator(detector), FrozenEstimator(unet))
    segmenter.fit(scans.images)
    assert segmenter.predict(scans.images).shape == scans.masks.shape
    assert segmenter.detector_.estimator is detector
    assert isinstance(LayerwiseSegmenter(inner()).fit(scans.images).layer_extractor_, GraphLayerExtractor)


@pytest.mark.filterwarnings("ignore:y has no -1:skanomaly.labels.LabelWarning")  # y are numbers of rows here
def test_a_search_over_thresholds(scans):
    detector = inner().fit(scans.images)

    def dice(segmenter, X, rows):
        return metrics.dice(scans.masks[rows], segmenter.predict(X))

    search = GridSearchCV(
        ResidualSegmenter(FrozenEstimator(detector)), {"quantile": [0.9, 0.99]}, cv=2, scoring=dice
    ).fit(scans.images, np.arange(12))
    halves = np.arange(6), np.arange(6, 12)
    expected = {
        quantile: np.mean(
            [
                dice(
                    ResidualSegmenter(FrozenEstimator(detector), quantile=quantile).fit(scans.images[train]),
                    scans.images[test],
                    test,
                )
                for test, train in (halves, halves[::-1])
            ]
        )
        for quantile in (0.9, 0.99)
    }
    assert search.best_score_ == pytest.approx(max(expected.values()))
    assert search.best_params_["quantile"] == max(expected, key=expected.get)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda X: LayerwiseSegmenter(inner(), v_low=0.5, v_high=0.5).fit(X),
            ValueError,
            "v_low must be below v_high, got v_low=0.5 and v_high=0.5",
        ),
        (lambda X: ResidualSegmenter(inner(), quantile=1.0).fit(X), ValueError, "'quantile' parameter"),
        (lambda X: ResidualSegmenter(inner(), level="row").fit(X), ValueError, "'level' parameter"),
        (lambda X: ResidualSegmenter(inner()).predict(X), NotFittedError, "not fitted yet"),
        (
            lambda X: LayerwiseSegmenter(inner()).fit(np.stack([X] * 3, -1)),
            ValueError,
            "layers are those of grey scans, got images of 3 channels",
        ),
        (
            lambda X: LayerwiseSegmenter(tiny(PatchDetector, patch_size=8)).fit(X),
            TypeError,
            "compared with a reconstruction, which PatchDetector has not",
        ),
        (
            lambda X: ResidualSegmenter(FrozenEstimator(inner().fit(X))).fit(X, [1, 1]),
            ValueError,
            "inconsistent numbers of samples",
        ),
        (
            lambda X: ResidualSegmenter(FrozenEstimator(inner().fit(X))).fit(X, [-1] * 6),
            ValueError,
            "y leaves no normal images",
        ),
        (lambda X: LayerwiseSegmenter(inner()).predict(X), NotFittedError, "not fitted yet"),
        (
            lambda X: LayerwiseSegmenter(inner(), UNetLayerExtractor()).fit(X),
            TypeError,
            "UNetLayerExtractor learns from labelled layers, which are not given here; fit it before",
        ),
        (
            lambda X: LayerwiseSegmenter(inner(), Odd()).fit(
                X[:, :1, :9] // 20 + np.repeat([0, 70, 120, 230], 4).astype(np.uint8)[:, None]
            ),
            ValueError,
            "layers must be numbered by depth, but layer 2 lies 4.0 rows above layer 1",
        ),
        (
            lambda X: LayerwiseSegmenter(inner(), Nameless()).fit(X),
            TypeError,
            "layer_extractor must have n_layers_ once fitted",
        ),
        (
            lambda X: check_depth_order(np.repeat([0, 2, 1], 4)[None, :, None]),
            ValueError,
            "layer 2 lies 4.0 rows above layer 1 in a column, on average; renumber them",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make(make_images((6, 16, 16)))
