from functools import partial

import numpy as np
import pytest
import torch
from foreign import check_tells
from frozen import check_modes, check_option, check_passes, energies, logarithm
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import fractional_matrix_power
from scipy.spatial.distance import cdist
from sklearn.covariance import OAS
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly import FeatureGaussian, PaDiM
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import auroc
from skanomaly.networks.backbone import ImageNetBackbone
from skanomaly.testing import check_images, detector_checks, make_images, tiny

X, NEW = make_images((30, 32, 32)), make_images((6, 32, 32), seed=1)


def whitened(vectors, train):
    """Standardised vectors of `vectors` and `train`, and the shrunk covariance, by scikit-learn."""
    mean, deviation = train.mean(0), train.std(0)
    z, train = (vectors - mean) / deviation, (train - mean) / deviation
    return z, train, OAS().fit(train).covariance_


@pytest.mark.parametrize(("grid", "cells"), [("auto", (8, 8)), (2, (2, 2)), ((4, 1), (4, 1))])
def test_the_score_is_the_mahalanobis_distance_of_pooled_features(grid, cells):
    detector = FeatureGaussian(backbone="filters", grid=grid).fit(X)

    def vectors(images):
        height, width = cells
        maps = energies(images, (64, 64)).reshape(len(images), 12, height, 16 // height, width, 16 // width)
        return logarithm(maps.mean((3, 5))).reshape(len(images), -1)

    z, _, covariance = whitened(vectors(NEW), vectors(X))
    expected = (z * np.linalg.solve(covariance, z.T).T).sum(1)
    assert_allclose(-detector.score_samples(NEW), expected, rtol=1e-3)
    assert_array_equal(detector.score_components(NEW)["distance"], -detector.score_samples(NEW))


def test_the_grid_of_a_network_is_2_x_2():
    detector = FeatureGaussian(input_size=32, layers=(1, 3)).fit(X)
    assert len(detector.network_.density.image.mean) == (24 + 80) * 2 * 2

    def vectors(images):
        with torch.no_grad():
            maps = ImageNetBackbone([1, 3], (32, 32))(torch.from_numpy(images[:, None] / np.float32(255)))
        pooled = [m.unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean((3, 5)).flatten(1) for m in maps]
        return torch.cat(pooled, 1).double().numpy()

    z, _, covariance = whitened(vectors(NEW), vectors(X))
    expected = (z * np.linalg.solve(covariance, z.T).T).sum(1)
    assert_allclose(-detector.score_samples(NEW), expected, rtol=2e-3)


def test_neighbours_are_the_nearest_training_images():
    """Of features whitened by half. In the fit, an image is no neighbour of itself."""
    detector = FeatureGaussian(backbone="filters", grid=1, neighbors=3, contamination=0.2).fit(X)
    vectors = [logarithm(energies(images, (64, 64)).mean((2, 3))) for images in (NEW, X)]
    z, train, covariance = whitened(*vectors)
    half = fractional_matrix_power(covariance, -0.25)
    distances = np.sort(cdist(z @ half, train @ half), axis=1)
    assert_allclose(-detector.score_samples(NEW), distances[:, :3].mean(1), rtol=1e-3)
    own = np.sort(cdist(train @ half, train @ half), axis=1)[:, 1:4].mean(1)
    assert_allclose(-detector.offset_, np.percentile(own, 80), rtol=1e-3)


@pytest.mark.parametrize("parameters", [{}, {"blur": 0.0}, {"layers": (2, 0)}, {"input_size": (20, 12)}])
def test_the_map_is_that_of_padim(parameters):
    """Where both take the same layers: their score differs."""
    options = {"backbone": "filters", "random_state": 0} | parameters
    ours, theirs = (cls(**options).fit(X) for cls in (FeatureGaussian, PaDiM))
    assert_array_equal(ours.anomaly_map(NEW), theirs.anomaly_map(NEW))
    assert ours.pixel_offset_ == theirs.pixel_offset_


def test_the_map_leaves_out_coarse_layers():
    """Stages 5 and 6 have a stride of 32; their places would be as large as what is looked for."""
    detector = FeatureGaussian(input_size=64, layers=(2, 3, 6)).fit(X)
    assert [shape[1] for shape in detector.feature_shapes_] == [8, 4, 2]
    assert detector.network_.density.places.size == (4, 4)
    assert len(detector.network_.density.places.chosen) == 40 + 80


@pytest.mark.parametrize(
    "parameters",
    [
        {"backbone": "imagenet", "input_size": (9, 20), "layers": [3, 1]},
        {"layers": (1,)},
        {"grid": 3},
        {"grid": [2, 5], "layers": (2, 0)},
        {"shrinkage": "ledoit_wolf"},
        {"shrinkage": 1e-3},
        {"shrinkage": 1.0},
        {"neighbors": 1},
        {"neighbors": 1000},
        {"blur": 0},
        {"blur": 1.0},
    ],
    ids=str,
)
def test_options(parameters, tmp_path):
    if isinstance(parameters.get("grid"), list):
        parameters = parameters | {"grid": tuple(parameters["grid"])}
    check_option(tiny(FeatureGaussian, **parameters), tmp_path)


@pytest.mark.parametrize("parameters", [{"grid": 2}, {"shrinkage": 0.9}, {"neighbors": 2}, {"layers": (1,)}])
def test_options_are_heard(parameters):
    plain, other = (tiny(FeatureGaussian, **options).fit(X) for options in ({}, parameters))
    assert not np.allclose(plain.score_samples(NEW), other.score_samples(NEW), rtol=1e-2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"shrinkage": 0.0}, "'shrinkage' parameter of FeatureGaussian must be"),
        ({"shrinkage": "mcd"}, "'shrinkage' parameter of FeatureGaussian must be"),
        ({"neighbors": 0}, "'neighbors' parameter of FeatureGaussian must be"),
        ({"blur": 1.1}, "'blur' parameter of FeatureGaussian must be a float in the range"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(FeatureGaussian, **parameters).fit(X)


def test_features_are_computed_once(monkeypatch):
    check_passes(tiny(FeatureGaussian), 2, monkeypatch)


def test_modes_of_torch():
    check_modes(FeatureGaussian(input_size=32, random_state=0))


# A first stage, since all take several times as long.
FROM_IMAGENET = FeatureGaussian(backbone="imagenet", input_size=32, layers=(1,), random_state=0)


@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@parametrize_with_checks([FROM_IMAGENET])
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=name) for name, check in detector_checks(FROM_IMAGENET)]
)
def test_contract(check):
    check(FROM_IMAGENET)


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 5, 60, 2), (3, 40, 7, 3), (3, 2, 2, 4)])
def test_any_size_and_channels(shape):
    check_images(FeatureGaussian(input_size=8, random_state=0), shape, channel_axis=3)


@pytest.mark.learning
def test_tells_foreign_patches():
    check_tells(FeatureGaussian(input_size=96, random_state=0), at_least=0.85, gain=0.1, map_ratio=1.25)


@pytest.mark.parametrize("neighbors", [None, 2])
def test_distance_from_unlabelled_images_is_subtracted(neighbors):
    unlabelled = make_images((12, 32, 32), seed=2)
    both, y = np.concatenate([X, unlabelled]), np.repeat([1, 0], [30, 12])
    new = partial(FeatureGaussian, backbone="filters", neighbors=neighbors)
    fitted = new(unlabelled_weight=0.25).fit(both, y)
    assert (fitted.n_images_, fitted.n_unlabelled_, fitted.unlabelled_weight_) == (30, 12, 0.25)
    normal, of_unlabelled = (-new().fit(images).score_samples(NEW) for images in (X, unlabelled))
    components = fitted.score_components(NEW)
    assert_allclose(components["distance"], normal, rtol=1e-5)
    assert_allclose(components["unlabelled"], of_unlabelled, rtol=1e-5)
    assert_allclose(-fitted.score_samples(NEW), normal - 0.25 * of_unlabelled, rtol=1e-4)
    alone = new(unlabelled_weight=0).fit(both, y)
    assert_array_equal(-alone.score_samples(NEW), alone.score_components(NEW)["distance"])
    # Maps are those of the normal images.
    assert_array_equal(fitted.anomaly_map(NEW), new().fit(X).anomaly_map(NEW))


def test_thresholds_are_those_of_the_normal_images():
    both, y = np.concatenate([X, make_images((12, 32, 32), seed=2)]), np.repeat([1, 0], [30, 12])
    fitted = FeatureGaussian(backbone="filters", unlabelled_weight=0.25).fit(both, y)
    assert np.mean(fitted.predict(X) == -1) == 0.1


@pytest.mark.learning
def test_unlabelled_images_bring_what_is_like_them_to_light():
    """Half of them ill: other ill images are told apart better. None ill: they change nothing."""
    train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
    ill, normal = (val.images[val.target == label][:70] for label in (-1, 1))

    def fitted(unlabelled):
        y = np.repeat([1, 0], [len(train.images), len(unlabelled)])
        return FeatureGaussian(backbone="filters").fit(np.concatenate([train.images, unlabelled]), y)

    assert fitted(normal).unlabelled_weight_ == 0
    half = fitted(np.concatenate([ill[:35], normal[:35]]))
    assert half.unlabelled_weight_ > 0.1
    alone = half.score_components(test.images)["distance"]
    assert auroc(test.target, -half.score_samples(test.images)) > auroc(test.target, alone) + 0.01


@pytest.mark.parametrize(
    ("y", "message"), [([0] * 30, "0 normal .* 30 unlabelled"), ([1] + [0] * 29, "1 norm")]
)
def test_unlabelled_images_need_normal_ones(y, message):
    with pytest.raises(ValueError, match=message):
        FeatureGaussian(backbone="filters").fit(X, y)


def test_one_unlabelled_image_is_too_few():
    fitted = FeatureGaussian(backbone="filters").fit(X, [1] * 29 + [0])
    assert_array_equal(
        fitted.score_samples(NEW), FeatureGaussian(backbone="filters").fit(X[:29]).score_samples(NEW)
    )
