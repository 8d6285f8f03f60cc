"""Windows over large images: where they lie, what is stitched, and that it finds things."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.testing import assert_allclose, assert_array_equal
from toys import LinearAutoEncoder, MaplessAutoEncoder

from skanomaly import DDAD, AutoEncoder, PatchDetector, _unwrap
from skanomaly.base import Judgement
from skanomaly.datasets import load_chest_xray
from skanomaly.patches import ImageStack, extract_patches
from skanomaly.testing import SliceOnly, make_images, tiny


class Identity(LinearAutoEncoder):
    """Its map is the image itself: what is stitched must be the image again."""

    __doc__ = LinearAutoEncoder.__doc__
    _image_range = (0.0, 255.0)

    def _judge(self, network, x):
        return Judgement(x.mean((1, 2, 3)), x.mean(1), {"largest": x.amax((1, 2, 3))})


class Constant(LinearAutoEncoder):
    __doc__ = LinearAutoEncoder.__doc__

    def _judge(self, network, x):
        return Judgement(x.new_full((len(x),), 0.3), x.new_full((len(x), *x.shape[2:]), 0.7))


@pytest.mark.parametrize("shape", [(64, 64), (50, 33), (17, 90)])
@pytest.mark.parametrize(("patch_size", "stride"), [(16, 8), ((16, 9), (16, 9)), (17, 5), (1, 1), (16, 1)])
def test_what_is_stitched_is_the_image(shape, patch_size, stride):
    X = make_images((3, *shape))
    detector = PatchDetector(Identity(), patch_size=patch_size, stride=stride, random_state=0).fit(X)
    assert_allclose(detector.anomaly_map(X), X, rtol=1e-6)
    parts = detector.score_components(X)["largest"]
    assert_allclose(parts, X.max((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (65, 97)])
def test_a_constant_map_is_constant_to_the_borders(shape):
    X = make_images((2, *shape))
    detector = PatchDetector(Constant(), patch_size=32, stride=20, random_state=0).fit(X)
    assert_array_equal(detector.anomaly_map(X), np.full(X.shape, np.float32(0.7)))
    assert_array_equal(detector.score_samples(X), np.full(2, -np.float32(0.3)))


def test_pooling():
    X = make_images((4, 40, 40))
    scores = {}
    for pooling in "max", "mean", "top":
        options = {"patch_size": 20, "stride": 20, "top_fraction": 0.5, "random_state": 0}
        scores[pooling] = -PatchDetector(Identity(), pooling=pooling, **options).fit(X).score_samples(X)
    quarters = X.reshape(4, 2, 20, 2, 20).mean((2, 4)).reshape(4, 4)
    assert_allclose(scores["max"], quarters.max(1), rtol=1e-6)
    assert_allclose(scores["mean"], quarters.mean(1), rtol=1e-6)
    assert_allclose(scores["top"], np.sort(quarters)[:, 2:].mean(1), rtol=1e-6)


def test_a_detector_without_a_map_paints_its_scores():
    X = make_images((4, 40, 40))
    detector = PatchDetector(MaplessAutoEncoder(), patch_size=20, stride=20, random_state=0).fit(X)
    maps = detector.anomaly_map(X)
    assert len(np.unique(maps[0])) == 4
    assert_allclose(maps.max((1, 2)), -detector.score_samples(X), rtol=1e-6)


def test_images_of_different_sizes():
    images = [make_images((1, *shape))[0] for shape in [(40, 52), (64, 33), (35, 35), (40, 52)]]
    detector = tiny(PatchDetector, patch_size=(24, 16)).fit(images, [1, 1, 1, -1])
    scores, maps, masks = (
        f(images) for f in (detector.score_samples, detector.anomaly_map, detector.segment)
    )
    assert [m.shape for m in maps] == [m.shape for m in masks] == [image.shape for image in images]
    assert masks[0].dtype == bool
    assert detector.image_shape_ == (1, 35, 35)
    for i, image in enumerate(images):
        assert detector.score_samples(image[None])[0] == scores[i]
        assert_array_equal(detector.anomaly_map(image[None])[0], maps[i])
    assert_array_equal(detector.calibrate(images * 5).predict(images), detector.predict(images))
    assert_array_equal(_unwrap.anomaly_map(detector, images)[2], maps[2])
    rows, _, parts = zip(*detector.iter_batches(images))
    assert rows == tuple(slice(i, i + 1) for i in range(4))
    assert_array_equal(parts[1][0], maps[1])
    colour = [np.stack([image] * 3, -1) for image in images]
    assert tiny(PatchDetector).fit(colour).anomaly_map(colour)[1].shape == (64, 33)


def test_a_list_of_one_shape_is_an_array():
    X = make_images((6, 20, 20))
    detector = tiny(PatchDetector).fit(list(X))
    assert_array_equal(detector.anomaly_map(list(X)), detector.anomaly_map(X))
    assert isinstance(detector.anomaly_map(list(X)), np.ndarray)


def test_defaults():
    def fitted(shape, **parameters):
        detector = tiny(PatchDetector, **parameters).fit(make_images(shape))
        return detector.patch_size_, detector.stride_

    assert fitted((3, 200, 100)) == ((64, 64), (32, 32))
    assert fitted((3, 50, 90)) == ((50, 50), (25, 25))
    assert fitted((3, 120)) == ((1, 64), (1, 32))
    assert fitted((3, 50, 90), patch_size=(10, 30), stride=7) == ((10, 30), (7, 7))
    assert PatchDetector().get_params()["detector"] is None


@pytest.mark.filterwarnings(
    "ignore:y has no -1:skanomaly.labels.LabelWarning"
)  # 0 means nothing to AutoEncoder
def test_thresholds_are_from_normal_images():
    """As those of the detector: DDAD tells unlabelled images from normal ones, others do not."""
    X = make_images((20, 24, 24))
    X[12:] = 255 - X[12:]
    y = np.repeat([1, 0], (12, 8))
    for make, n in ((partial(tiny, DDAD, score_component="rec"), 12), (partial(tiny, AutoEncoder), 20)):
        detector = tiny(PatchDetector, detector=make(), patch_size=16, contamination=0.3).fit(X, y)
        assert detector.offset_ == np.percentile(detector.score_samples(X)[:n], 30)
        assert detector.offset_ != np.percentile(detector.score_samples(X)[: 32 - n], 30)


@pytest.mark.filterwarnings("ignore:all .* training images are constant")
def test_the_detector_learns_from_crops_of_normal_images(monkeypatch):
    X = np.arange(6, dtype="uint8")[:, None, None] * np.ones((6, 30, 30), "uint8")
    seen = []

    class Look(LinearAutoEncoder):
        __doc__ = LinearAutoEncoder.__doc__
        _tells_unlabelled = True  # others get no y, which would mean nothing to them

        def fit(self, X, y=None):
            seen.append((X[: X.shape[0]], y, self.random_state))
            return super().fit(X, y)

    options = {"patch_size": 10, "n_patches": 7}
    PatchDetector(Look(), **options, random_state=0).fit(X, [1, 0, -1, 1, 0, -1])
    PatchDetector(Look(), **options, random_state=0).fit(SliceOnly(X), [1, 0, -1, 1, 0, -1])
    (crops, y, seed), (again, *_) = seen
    assert crops.shape == (28, 1, 10, 10)
    assert_array_equal(crops, again)
    which = crops[:, 0, 0, 0]
    assert sorted(which) == [0] * 7 + [1] * 7 + [3] * 7 + [4] * 7
    assert (np.diff(which.astype(int)) != 0).sum() > 10, "in random order"
    assert_array_equal(y, np.where(np.isin(which, [1, 4]), 0, 1))
    assert seed is not None
    PatchDetector(Look(random_state=3), **options).fit(X)
    assert seen[-1][2] == 3


def test_crops_reach_every_place():
    stack = ImageStack(np.zeros((1, 12, 9)), "auto", None)
    windows = stack.random_windows((5, 4), 2000, np.random.default_rng(0))
    _, tops, lefts = windows.table.T
    assert (set(tops), set(lefts)) == (set(range(8)), set(range(6)))


def test_labelled_crops():
    images, masks = make_images((5, 40, 40, 3)), np.zeros((5, 40, 40), bool)
    masks[1, 10:20, 30:] = True
    crops = extract_patches(images, masks, patch_size=8, n_patches=200, random_state=0)
    assert crops.images.shape == (1000, 3, 8, 8)
    assert crops.masks.shape == (1000, 8, 8)
    assert set(crops.groups[crops.target == -1]) == {1}
    assert_array_equal(crops.target == -1, crops.masks.any((1, 2)))
    share = np.mean(crops.target[crops.groups == 1] == -1)
    assert 0.1 < share < 0.5  # (17 x 10) of 33 x 33 places
    assert (extract_patches(images[..., 0], patch_size=8).target == 1).all()
    with pytest.raises(ValueError, match="masks must have the height and width of their images"):
        extract_patches(images, masks[:, 1:], patch_size=8)


@pytest.mark.parametrize("container", [np.asanyarray, list])
def test_soft_and_masked_masks_of_crops(container):
    images, masks = make_images((2, 12, 12)), np.zeros((2, 12, 12))
    assert (extract_patches(images, container(masks), patch_size=8).target == 1).all()
    masks[1, 4, 4] = 0.2
    with pytest.raises(ValueError, match="masks must hold booleans, or 0 and 1, got floats such as 0.2"):
        extract_patches(images, container(masks), patch_size=8)
    with pytest.raises(TypeError, match="masks must be a plain array, got a masked one"):
        extract_patches(images, container(np.ma.array(masks > 0, mask=masks > 0)), patch_size=8)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"patch_size": 33},
            r"must fit into every training image, got \(33, 33\) for .*\(32, 40\)",
        ),
        ({"patch_size": (8, 41)}, "patch_size must fit into every training image"),
        ({"patch_size": (8, 8, 8)}, r"patch_size must be a whole number or two, \(h, w\), got \(8, 8, 8\)"),
        ({"patch_size": 8, "stride": 9}, r"stride must be at most patch_size=\(8, 8\).*got \(9, 9\)"),
        ({"stride": 0}, "'stride' parameter of PatchDetector"),
        ({"n_patches": 0}, "'n_patches' parameter of PatchDetector"),
        ({"pooling": "median"}, "'pooling' parameter of PatchDetector"),
        ({"top_fraction": 0.0}, "'top_fraction' parameter of PatchDetector"),
        ({"detector": "AutoEncoder"}, "'detector' parameter of PatchDetector"),
        ({"detector": AutoEncoder(latent_size=0)}, "'latent_size' parameter of AutoEncoder"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(PatchDetector, **parameters).fit(make_images((5, 32, 40)))


def test_bad_images():
    X = make_images((5, 32, 40))
    detector = tiny(PatchDetector, patch_size=20).fit(X)
    assert detector.anomaly_map(make_images((2, 20, 70))).shape == (2, 20, 70)
    with pytest.raises(ValueError, match=r"no smaller than a window, .*\(1, 20, 20\), got \(1, 19, 40\)"):
        detector.predict(X[:, :19])
    with pytest.raises(ValueError, match=r"of 1 channels .*got \(3, 32, 40\)"):
        detector.predict(np.stack([X] * 3, -1))
    with pytest.raises(ValueError, match="equally many channels, got"):
        detector.fit([X[0], np.stack([X[1]] * 3, -1)])
    with pytest.raises(ValueError, match="one dtype, got"):
        detector.fit([X[0], X[1, 1:].astype(float)])
    with pytest.raises(ValueError, match="out is for images in one array"):
        detector.anomaly_map([X[0], X[1, 1:]], out=np.empty(3))
    bad = [X[0].astype(float), np.full((33, 40), np.nan)]
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(bad)


def test_places_of_windows_are_kept_for_some_images_at_a_time(monkeypatch):
    X = make_images((7, 40, 40))
    detector = tiny(PatchDetector, patch_size=16, stride=8).fit(X)
    maps, scores, components = (
        getattr(detector, m)(X) for m in ("anomaly_map", "score_samples", "score_components")
    )
    sizes = []
    grid = ImageStack.grid
    monkeypatch.setattr("skanomaly.patches.N_WINDOWS", 40)
    monkeypatch.setattr(
        ImageStack, "grid", lambda *a: (windows := grid(*a), sizes.append(len(windows.table)))[0]
    )
    assert_array_equal(detector.anomaly_map(X), maps)
    assert max(sizes) <= 40 + 16
    assert len(sizes) > 2
    assert_array_equal(detector.score_samples(X), scores)
    assert_array_equal(detector.score_components(X)["residual"], components["residual"])


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="private memory is read from Linux's /proc"
)
def test_memory_is_that_of_the_map_of_one_image(tmp_path):
    def grew(side):
        X = np.lib.format.open_memmap(tmp_path / f"{side}.npy", "w+", np.uint8, (3, side, side))
        X[:] = 100
        X = np.load(tmp_path / f"{side}.npy", mmap_mode="r")
        before, peak = private(), 0
        for _ in detector.iter_batches(X):
            peak = max(peak, private())
        return peak - before - 4 * side**2 * 4 / 2**20  # the map, two sums and a quotient of one image

    def private():
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    detector = tiny(PatchDetector, patch_size=64, stride=64).fit(make_images((4, 128, 128)))
    grew(256)
    assert grew(2048) < 24


@pytest.mark.learning
def test_a_planted_patch_is_found():
    """A contact sheet of 64 X-rays, 512 x 512, with a square of grass of their mean and contrast in it."""
    train, test = (load_chest_xray(subset=subset) for subset in ("train", "test"))
    train, test = contact_sheets(train.images[:128]), contact_sheets(test.images[test.target == 1][:64])
    grass, side, stride = skimage.data.grass().astype(float), 96, 16
    rng = np.random.default_rng(0)
    corners = np.vstack(
        [
            rng.integers(0, 512 - side, (2, 2)),
            stride * rng.integers(0, (512 - side) // stride, (2, 2)),
            [[0, 0], [512 - side] * 2],
        ]
    )

    def found(max_epochs, lr):
        network = AutoEncoder(latent_size=32, hidden_size=128, width=8, max_epochs=max_epochs, lr=lr)
        detector = PatchDetector(network, patch_size=16, stride=stride, n_patches=300, random_state=0)
        detector.fit(train)
        return sum(peaks_inside(detector, corner) for corner in corners)

    def peaks_inside(detector, corner):
        image = test[0].astype(float)
        inside = tuple(slice(start, start + side) for start in corner)
        top, left = rng.integers(0, 512 - side, 2)
        patch, place = grass[top : top + side, left : left + side], image[inside]
        image[inside] = (patch - patch.mean()) / patch.std() * place.std() + place.mean()
        map_ = detector.anomaly_map(image.clip(0, 255).astype(np.uint8)[None])[0]
        peak = np.unravel_index(map_.argmax(), map_.shape)
        return all(start <= at < start + side for at, start in zip(peak, corner))

    assert found(15, 2e-3) >= 5
    assert found(1, 1e-12) <= 2, "an untrained network"


def contact_sheets(images):
    """Images (64 n, 64, 64) as n of 512 x 512."""
    return np.moveaxis(images.reshape(-1, 8, 8, 64, 64), 2, 3).reshape(-1, 512, 512)
