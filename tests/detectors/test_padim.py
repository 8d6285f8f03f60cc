import numpy as np
import pytest
from foreign import check_tells
from frozen import check_modes, check_option, check_passes, energies, enlarged_maps, logarithm, near_means
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import OAS

from skanomaly import PaDiM
from skanomaly.testing import check_images, make_images, tiny

X, NEW = make_images((30, 32, 24)), make_images((6, 32, 24), seed=1)


def features(images):
    """Features (n, 4, 3, 12) of images at an input size of (16, 12)."""
    return logarithm(near_means(energies(images, (16, 12)))).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("regularization", [0.01, 0.5, "oas"])
def test_the_map_is_the_mahalanobis_distance_at_each_position(regularization):
    """Of all components, so that a rotation to the principal ones changes nothing."""
    detector = PaDiM(backbone="filters", input_size=(16, 12), regularization=regularization).fit(X)
    train, new = features(X), features(NEW)
    mean, deviation = train.mean((0, 1, 2)), train.std((0, 1, 2))
    train, new = ((rows - mean) / deviation for rows in (train, new))
    distances = np.empty(new.shape[:3])
    for n, i, j in np.ndindex(distances.shape):
        here = train[:, i, j]
        if regularization == "oas":
            covariance = OAS().fit(here).covariance_
        else:
            covariance = np.cov(here.T, bias=True) + regularization * np.eye(12)
        distances[n, i, j] = mahalanobis(new[n, i, j], here.mean(0), np.linalg.inv(covariance))
    expected = enlarged_maps(distances, (32, 24), 0.03)
    assert_allclose(detector.anomaly_map(NEW), expected, rtol=2e-3)
    assert_allclose(-detector.score_samples(NEW), expected.mean((1, 2)), rtol=2e-3)


@pytest.mark.parametrize("pooling", ["mean", "max", "top"])
def test_the_score_pools_the_map(pooling):
    detector = tiny(PaDiM, pooling=pooling, top_fraction=0.1).fit(X)
    flat = np.sort(detector.anomaly_map(NEW).reshape(len(NEW), -1), axis=1)
    expected = {"mean": flat.mean(1), "max": flat[:, -1], "top": flat[:, -77:].mean(1)}
    components = detector.score_components(NEW)
    assert components.keys() == expected.keys()
    for name, values in components.items():
        assert_allclose(values, expected[name], rtol=1e-5)
    assert_array_equal(-detector.score_samples(NEW), components[pooling])


def test_random_features_are_drawn_by_the_seed():
    first, again, other = (
        tiny(PaDiM, reduction="random", n_components=3, random_state=seed).fit(X).network_.density.projection
        for seed in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert ((first != 0).sum(0) == 1).all()
    assert not np.array_equal(first != 0, other != 0)


def test_an_empty_channel_changes_nothing():
    """Its features vary by rounding only."""
    maps = [
        tiny(PaDiM, channel_axis=3).fit(images(X)).anomaly_map(images(NEW))
        for images in (lambda x: x[..., None], lambda x: np.stack([x, np.full_like(x, 99)], 3))
    ]
    assert_allclose(maps[1], maps[0], rtol=0.01)


@pytest.mark.parametrize(
    "parameters",
    [
        {"backbone": "imagenet", "input_size": 32},
        {"layers": (2,)},
        {"reduction": "random", "n_components": 5},
        {"n_components": 1},
        {"n_components": 10_000},
        {"regularization": 1e-6},
        {"regularization": 100},
        {"regularization": "oas"},
        {"blur": 0.0},
        {"blur": 1},
        {"pooling": "max"},
        {"pooling": "top"},
        {"pooling": "top", "top_fraction": 1e-9},
        {"pooling": "top", "top_fraction": 1.0},
        {"reduction": "random", "n_components": 100, "pooling": "max"},
    ],
    ids=str,
)
def test_options(parameters, tmp_path):
    check_option(tiny(PaDiM, **parameters), tmp_path)


@pytest.mark.parametrize(
    "parameters", [{"n_components": 2}, {"regularization": 1.0}, {"blur": 0.2}, {"layers": (0,)}], ids=str
)
def test_options_are_heard(parameters):
    plain, other = (tiny(PaDiM, **options).fit(X).anomaly_map(NEW) for options in ({}, parameters))
    assert not np.allclose(plain, other, rtol=0.02)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reduction": "nmf"}, "'reduction' parameter of PaDiM must be a str among"),
        ({"n_components": 0}, "'n_components' parameter of PaDiM must be an int in the range"),
        ({"regularization": 0.0}, "'regularization' parameter of PaDiM must be a float in the range"),
        ({"blur": -0.1}, "'blur' parameter of PaDiM must be a float in the range"),
        ({"pooling": "min"}, "'pooling' parameter of PaDiM must be a str among"),
        ({"top_fraction": 0.0}, "'top_fraction' parameter of PaDiM must be a float in the range"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(PaDiM, **parameters).fit(X)


def test_features_are_computed_once(monkeypatch):
    check_passes(tiny(PaDiM), 2, monkeypatch)


def test_modes_of_torch():
    check_modes(PaDiM(input_size=32, random_state=0))


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 5, 90, 2), (3, 40, 7, 3), (3, 2, 2, 4)])
def test_any_size_and_channels(shape):
    check_images(PaDiM(input_size=16, random_state=0), shape, channel_axis=3)


@pytest.mark.learning
def test_tells_foreign_patches():
    check_tells(PaDiM(input_size=96, random_state=0), at_least=0.8, gain=0.07, map_ratio=1.2)
