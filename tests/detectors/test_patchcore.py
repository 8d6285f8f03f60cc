import numpy as np
import pytest
import torch
from foreign import check_tells
from frozen import check_modes, check_option, check_passes, energies, enlarged_maps, logarithm, near_means
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

from skanomaly import PatchCore
from skanomaly.detectors import patchcore
from skanomaly.networks import bank
from skanomaly.testing import check_images, make_images, tiny

X, NEW = make_images((20, 32, 24)), make_images((6, 32, 24), seed=1)
SIZE = {"backbone": "filters", "input_size": (16, 12), "random_state": 0}


def features(images):
    """Features (n * 12, 12) of images at an input size of (16, 12), where maps are 4 x 3."""
    return logarithm(near_means(energies(images, (16, 12)))).transpose(0, 2, 3, 1).reshape(-1, 12)


def scaled():
    """Features of the training images and of new ones, in units of the deviations of the former."""
    train, new = features(X), features(NEW)
    return train / train.std(0), new / train.std(0)


def places(n):
    return np.tile(np.stack(np.mgrid[:4, :3], axis=2).reshape(12, 2), (n, 1))


@pytest.mark.parametrize("n_neighbors", [1, 3])
@pytest.mark.parametrize("neighborhood", [None, 0, 1])
def test_the_map_is_the_distance_to_the_nearest_features(n_neighbors, neighborhood):
    train, new = scaled()
    detector = PatchCore(bank="all", n_neighbors=n_neighbors, neighborhood=neighborhood, **SIZE).fit(X)
    distances = cdist(new, train)
    if neighborhood is not None:
        apart = abs(places(6)[:, None] - places(20)).max(2)
        distances[apart > neighborhood] = np.inf
    nearest = np.sort(distances, axis=1)[:, :n_neighbors].mean(1).reshape(6, 4, 3)
    expected = enlarged_maps(nearest, (32, 24), 0.03)
    assert_allclose(detector.anomaly_map(NEW), expected, rtol=1e-3)
    assert_allclose(-detector.score_samples(NEW), expected.mean((1, 2)), rtol=1e-3)


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("neighborhood", [None, 1])
def test_thresholds_leave_out_the_own_features_of_an_image(neighborhood, chunk, monkeypatch):
    """In a full bank every training image would be at a distance of 0."""
    monkeypatch.setattr(bank, "CHUNK", chunk)
    detector = PatchCore(bank="all", neighborhood=neighborhood, contamination=0.2, blur=0, **SIZE).fit(X)
    train, _ = scaled()
    image = np.repeat(np.arange(20), 12)
    distances = cdist(train, train)
    distances[image[:, None] == image] = np.inf
    if neighborhood is not None:
        distances[abs(places(20)[:, None] - places(20)).max(2) > neighborhood] = np.inf
    maps = enlarged_maps(distances.min(1).reshape(20, 4, 3), (32, 24), 0)
    assert_allclose(-detector.offset_, np.percentile(maps.mean((1, 2)), 80), rtol=1e-3)
    assert_allclose(detector.pixel_offset_, np.quantile(maps, 0.99), rtol=1e-3)
    assert_array_equal(detector.score_samples(X), 0)


@pytest.mark.parametrize("n_neighbors", [1, 12])
def test_reweighted_score(n_neighbors):
    """Equation 7 of the paper: 1 - exp(d) / sum of exp(d_m) over the 9 features around the nearest."""
    detector = PatchCore(bank_size=50, pooling="reweighted", n_neighbors=n_neighbors, **SIZE).fit(X)
    _, new = scaled()
    train = detector.network_.density
    remembered = (train.features * train.deviation + train.mean).numpy() / features(X).std(0)
    distances = cdist(new, remembered)
    means = np.sort(distances, axis=1)[:, :n_neighbors].mean(1).reshape(6, 12)
    expected = []
    for k, worst in enumerate(means.argmax(1)):
        from_worst = distances[12 * k + worst]
        nearest = from_worst.argmin()
        around = np.argsort(cdist(remembered[[nearest]], remembered)[0])[:9]
        weight = 1 - np.exp(from_worst[nearest]) / np.exp(from_worst[around]).sum()
        expected.append(weight * means[k, worst])
    assert (np.array(expected) > 0).all()
    assert_allclose(-detector.score_samples(NEW), expected, rtol=2e-3)


def test_a_weight_does_not_overflow():
    """exp of a distance above 88 is infinite in float32."""
    detector = PatchCore(bank_size=50, pooling="reweighted", intensity_range=(0.0, 1.0), **SIZE).fit(
        X / 255.0
    )
    scores = -detector.score_samples(NEW * 1e20)
    assert (scores > 88).all()
    assert (scores < 1e6).all()


@pytest.mark.parametrize("pooling", ["mean", "max", "top"])
def test_the_score_pools_the_map(pooling):
    detector = tiny(PatchCore, pooling=pooling, top_fraction=0.1).fit(X)
    flat = np.sort(detector.anomaly_map(NEW).reshape(len(NEW), -1), axis=1)
    expected = {"mean": flat.mean(1), "max": flat[:, -1], "top": flat[:, -77:].mean(1)}
    assert_allclose(-detector.score_samples(NEW), expected[pooling], rtol=1e-5)
    assert detector.score_components(NEW).keys() == {"mean", "max", "top", "reweighted"}


class TestBank:
    def test_a_coreset_is_some_of_the_features_with_their_places(self):
        detector = PatchCore(bank_size=30, **SIZE).fit(X)
        found, train = detector.network_.density, features(X)
        remembered = (found.features * found.deviation + found.mean).numpy()
        distances = cdist(remembered / train.std(0), train / train.std(0))
        rows = distances.argmin(1)
        assert len(set(rows)) == 30
        assert distances.min(1).max() < 1e-3
        assert_array_equal(found.places, places(20)[rows])
        assert_array_equal(found.images, rows // 12)

    def test_a_coreset_covers_the_features_better_than_others_of_its_size(self):
        radius = {}
        train, _ = scaled()
        for size in (30, 60):
            found = PatchCore(bank_size=size, **SIZE).fit(X).network_.density
            remembered = (found.features * found.deviation + found.mean).numpy() / features(X).std(0)
            radius[size] = cdist(train, remembered).min(1).max()
        random = train[np.random.default_rng(0).choice(len(train), 30, replace=False)]
        assert radius[60] < radius[30] < cdist(train, random).min(1).max()

    def test_one_centre_is_the_mean(self):
        detector = PatchCore(bank="centres", bank_size=1, blur=0, **SIZE).fit(X)
        train, new = scaled()
        distances = cdist(new, train.mean(0, keepdims=True)).reshape(6, 4, 3)
        assert_allclose(detector.anomaly_map(NEW), enlarged_maps(distances, (32, 24), 0), rtol=0.1)

    def test_centres_are_those_of_clusters(self):
        """Each is close to the mean of the features that are nearest to it."""
        found = PatchCore(bank="centres", bank_size=4, **SIZE).fit(X).network_.density
        train = (features(X) - found.mean.numpy()) / found.deviation.numpy()
        nearest = cdist(train, found.features).argmin(1)
        for k, centre in enumerate(found.features.numpy()):
            assert np.linalg.norm(train[nearest == k].mean(0) - centre) < 0.5
            assert (nearest == k).any()

    def test_a_bank_larger_than_the_features_holds_all(self):
        every, core = (PatchCore(bank=name, bank_size=10_000, **SIZE).fit(X) for name in ("all", "coreset"))
        assert len(core.network_.density.features) == 240
        assert_allclose(core.score_samples(NEW), every.score_samples(NEW), rtol=1e-4)

    @pytest.mark.parametrize("name", ["coreset", "centres", "all"])
    def test_candidates_are_drawn_of_very_many(self, name, monkeypatch):
        """Also where the bank is to be larger than the number of candidates. A full bank stays full."""
        monkeypatch.setattr(patchcore, "MOST_CANDIDATES", 25)
        found, other = (
            PatchCore(bank=name, bank_size=100, **SIZE | {"random_state": seed}).fit(X).network_.density
            for seed in (0, 1)
        )
        assert len(found.features) == (240 if name == "all" else 25)
        assert torch.equal(found.features, other.features) == (name == "all")
        if name == "coreset":
            assert len(np.unique(found.features.numpy(), axis=0)) == 25
            assert len(found.images.unique()) > 10

    def test_places_of_a_neighborhood_without_features_count_all(self):
        """A bank of two features has none near most places."""
        near, anywhere = (
            PatchCore(bank_size=2, neighborhood=neighborhood, blur=0, **SIZE).fit(X)
            for neighborhood in (0, None)
        )
        maps = near.anomaly_map(NEW), anywhere.anomaly_map(NEW)
        assert (maps[0] >= maps[1] - 1e-5).all()
        assert np.mean(np.isclose(*maps)) > 0.3

    def test_centres_have_no_place(self):
        near, anywhere = (
            PatchCore(bank="centres", bank_size=9, neighborhood=neighborhood, **SIZE).fit(X)
            for neighborhood in (0, None)
        )
        assert_array_equal(near.anomaly_map(NEW), anywhere.anomaly_map(NEW))


def test_an_empty_channel_changes_nothing():
    """Its features vary by rounding only."""
    maps = [
        tiny(PatchCore, channel_axis=3, bank="all").fit(images(X)).anomaly_map(images(NEW))
        for images in (lambda x: x[..., None], lambda x: np.stack([x, np.full_like(x, 99)], 3))
    ]
    assert_allclose(maps[1], maps[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["coreset", "all", "centres"])
@pytest.mark.filterwarnings("ignore:all 6 training images are equal")
def test_equal_images(name):
    same = np.full((6, 16, 16), 7, np.uint8)
    detector = tiny(PatchCore, bank=name).fit(same)
    assert_allclose(detector.score_samples(same), 0, atol=1e-4)
    assert (detector.score_samples(make_images()) < -0.1).all()


@pytest.mark.parametrize(
    "parameters",
    [
        {"backbone": "imagenet", "input_size": 32},
        {"layers": (2,)},
        {"bank": "all"},
        {"bank": "all", "neighborhood": 0, "n_neighbors": 30},
        {"bank": "centres"},
        {"bank": "centres", "bank_size": 1},
        {"bank_size": 1},
        {"n_neighbors": 3},
        {"n_neighbors": 1000},
        {"neighborhood": 0},
        {"neighborhood": 1000},
        {"blur": 0},
        {"blur": 1.0},
        {"pooling": "max"},
        {"pooling": "top", "top_fraction": 1.0},
        {"pooling": "reweighted"},
        {"pooling": "reweighted", "n_neighbors": 20},
    ],
    ids=str,
)
def test_options(parameters, tmp_path):
    check_option(tiny(PatchCore, **parameters), tmp_path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bank": "some"}, "'bank' parameter of PatchCore must be a str among"),
        ({"bank_size": 0}, "'bank_size' parameter of PatchCore must be an int in the range"),
        ({"n_neighbors": 0}, "'n_neighbors' parameter of PatchCore must be an int in the range"),
        ({"neighborhood": -1}, "'neighborhood' parameter of PatchCore must be"),
        ({"blur": 1.1}, "'blur' parameter of PatchCore must be a float in the range"),
        ({"pooling": "min"}, "'pooling' parameter of PatchCore must be a str among"),
        ({"top_fraction": 1.1}, "'top_fraction' parameter of PatchCore must be a float in the range"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(PatchCore, **parameters).fit(X)


@pytest.mark.parametrize("name", ["coreset", "all", "centres"])
def test_features_are_computed_once(name, monkeypatch):
    check_passes(tiny(PatchCore, bank=name), 2, monkeypatch)


def test_modes_of_torch():
    check_modes(PatchCore(input_size=32, bank_size=20, random_state=0))


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 5, 90, 2), (3, 40, 7, 3), (3, 2, 2, 4)])
def test_any_size_and_channels(shape):
    check_images(PatchCore(input_size=16, bank_size=20, random_state=0), shape, channel_axis=3)


@pytest.mark.learning
def test_tells_foreign_patches():
    detector = PatchCore(input_size=96, bank_size=300, random_state=0)
    check_tells(detector, at_least=0.75, gain=0.07, map_ratio=1.04)
