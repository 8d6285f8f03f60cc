"""Detectors of several sites become one, from the sums that they keep."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from safetensors.numpy import load_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from test_density import SIZES, covariance_of, features, maps_of
from torch import nn

from skanomaly import AutoEncoder, FeatureGaussian, PaDiM, PatchCore, merge
from skanomaly.datasets import load_chest_xray
from skanomaly.labels import LabelWarning
from skanomaly.networks import density
from skanomaly.networks.density import KeptMoments, Moments, PositionGaussians, ShrunkGaussian, total
from skanomaly.persistence import load, save
from skanomaly.testing import make_images, tiny

X, NEW = make_images((60, 16, 16)), make_images((6, 16, 16), seed=1)
#: More features than images, 108, fewer, 12, and both reductions.
DETECTORS = [
    FeatureGaussian(backbone="filters", input_size=16, grid=3, keep_sums=True),
    FeatureGaussian(backbone="filters", input_size=16, grid=1, shrinkage=0.01, keep_sums=True),
    PaDiM(backbone="filters", input_size=16, n_components=5, keep_sums=True),
    PaDiM(
        backbone="filters",
        input_size=16,
        reduction="random",
        n_components=5,
        regularization="oas",
        keep_sums=True,
        random_state=0,
    ),
]
IDS = ["wide", "narrow", "pca", "random"]


def fitted(detector, *parts):
    return [clone(detector).fit(part) for part in parts]


def check_equal(found, expected, new=NEW):
    """Scores and maps of new images to 1e-5, and the number of images."""
    assert found.n_images_ == expected.n_images_
    assert_allclose(found.score_samples(new), expected.score_samples(new), rtol=1e-5)
    assert_allclose(found.anomaly_map(new), expected.anomaly_map(new), rtol=1e-5)


def check_bits(found, expected):
    state, other = found.network_.state_dict(), expected.network_.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    assert found.n_images_ == expected.n_images_
    # A weighted mean of one number may differ from it in the last bit.
    for name in "offset_", "pixel_offset_", "map_range_":
        assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-14)


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
def test_the_merged_detector_is_that_of_all_images(detector):
    whole = clone(detector).set_params(keep_sums=False).fit(X)
    parts = fitted(detector, *np.split(X, [7, 25]))
    for order in itertools.permutations(parts):
        check_equal(merge(order, force=True), whole)
    a, b, c = parts
    check_equal(merge([merge([c, a], force=True), b], force=True), whole)
    check_equal(merge([a, merge([b, c], force=True)], force=True), whole)
    if isinstance(detector, FeatureGaussian):
        shrinkage = [float(d.network_.density.image.shrinkage) for d in (merge(parts, force=True), whole)]
        assert_allclose(*shrinkage, rtol=1e-6)


@pytest.mark.parametrize("detector", [FeatureGaussian, PaDiM])
def test_chest_x_rays_of_three_sites(detector):
    train, new = load_chest_xray(subset="train").images, load_chest_xray(subset="test").images[:20]
    options = {"backbone": "filters", "input_size": 32}
    parts = fitted(detector(keep_sums=True, **options), *np.split(train, [60, 200]))
    for order in parts, parts[::-1]:
        check_equal(merge(order), detector(**options).fit(train), new)


@pytest.mark.parametrize("name", ["cxr_pneumonia_64", "cxr_nih_64", "brain_mri_64", "fundus_dr_64"])
@pytest.mark.parametrize("detector", [FeatureGaussian, PaDiM])
def test_three_parts_of_every_set(detector, name, benchmark_data):
    data = benchmark_data(name)
    train, new = data["images"][data["split"] == "train"], data["images"][data["split"] == "test"][:30]
    options = {"backbone": "filters", "input_size": 32, "intensity_range": (0, 255)}
    if detector is FeatureGaussian:
        options["grid"] = 3  # of 8 x 8 cells in colour, moments would take ten seconds
    parts = fitted(detector(keep_sums=True, **options), *np.array_split(train, 3))
    for order in parts, [parts[2], parts[0], parts[1]]:
        check_equal(merge(order, force=True), detector(**options).fit(train), new)


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
def test_sums_change_no_score(detector):
    plain = clone(detector).set_params(keep_sums=False).fit(X)
    (keeps,) = fitted(detector, X)
    check_equal(keeps, plain)
    assert_allclose(keeps.offset_, plain.offset_, rtol=1e-5)


@settings(max_examples=8)
@given(st.lists(st.integers(2, 58), max_size=4, unique=True), st.sampled_from(DETECTORS))
def test_any_split_and_any_chunks(cuts, detector):
    cuts = sorted(cuts)
    cuts = [cut for cut, last in zip(cuts, [0, *cuts]) if cut - last > 1]
    parts = np.split(X, [cut for cut in cuts if cut < 59])
    (whole,) = fitted(detector, X)
    check_equal(merge(fitted(detector, *parts), force=True), whole)
    by_chunks = clone(detector)
    for part in parts:
        by_chunks.partial_fit(part)
    check_equal(by_chunks, whole)


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
def test_parts_stay_and_thresholds_are_their_weighted_means(detector):
    parts = fitted(clone(detector).set_params(contamination=0.2), X[:50], X[50:])
    states = [{name: value.clone() for name, value in p.network_.state_dict().items()} for p in parts]
    before = [dict(vars(part)) for part in parts]
    found = merge(parts, force=True)
    for part, attributes, state in zip(parts, before, states):
        assert vars(part) == attributes
        assert all(torch.equal(value, state[name]) for name, value in part.network_.state_dict().items())
    for name in "offset_", "pixel_offset_", "map_range_":
        values = [np.array(getattr(part, name)) for part in parts]
        assert_allclose(getattr(found, name), (5 * values[0] + values[1]) / 6)
    assert found.contamination == 0.2
    assert found.calibrate(NEW, false_alarm_rate=0.2).offset_ != before[0]["offset_"]


def test_one_detector_is_merged_to_an_equal_one():
    (part,) = fitted(DETECTORS[0], X)
    check_bits(merge([part]), part)


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
def test_files_of_three_sites(detector, tmp_path):
    """They hold no row of any image: neither features of an image, nor those at one of its positions."""
    parts = fitted(detector, *np.split(X, [20, 35]))
    for k, part in enumerate(parts):
        save(part, tmp_path / f"{k}.skanomaly")
    loaded = [load(tmp_path / f"{k}.skanomaly") for k in range(3)]
    found = merge(loaded, force=True)
    check_bits(found, merge(parts, force=True))
    save(found, tmp_path / "merged.skanomaly")
    check_bits(load(tmp_path / "merged.skanomaly"), found)

    with torch.no_grad():
        described = parts[0]._features(parts[0].network_, torch.from_numpy(X[:, None] / np.float32(255)))
    rows = [t.flatten(2).mT.flatten(0, 1) if t.ndim == 4 else t for t in described]
    rows = [row for of_kind in rows for row in of_kind.double().numpy()] + list(X.reshape(60, -1) / 255)
    for path in tmp_path.glob("[0m]*"):
        arrays = load_file(path)
        assert any("sums.products" in name for name in arrays)
        assert not [name for name, array in arrays.items() for row in rows if holds(array, row)]
    assert holds(np.stack([rows[0], rows[1] + 1]), rows[1] - rows[1].mean())


def holds(array, row):
    """Whether a row occurs in an array of numbers as it is, centred, or beside others."""
    array = array.astype(float).reshape(-1, array.shape[-1] if array.ndim else 1)
    if array.shape[1] < len(row):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(array, len(row), axis=1)
    # Three values first: few places pass.
    differ = windows[..., :3] - row[:3]
    windows = windows[np.ptp(differ, axis=-1) < 1e-4]
    return bool((np.ptp(windows - row, axis=-1) < 1e-4).any())


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
def test_the_shapes_of_sums_do_not_follow_from_the_number_of_images(detector):
    parts = [fitted(detector, X[:n])[0].network_.state_dict() for n in (20, 60)]
    shapes = [{name: v.shape for name, v in part.items() if ".sums." in f".{name}"} for part in parts]
    assert shapes[0] == shapes[1] != {}


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
def test_partial_fit_counts_new_images(detector):
    """One image will do, and known anomalies are left out."""
    (whole,), found = fitted(detector, X[:33]), clone(detector)
    assert found.partial_fit(X[:20]) is found
    check_bits(found, fitted(detector, X[:20])[0])
    first = found.offset_, found.pixel_offset_
    labelled = clone(detector).partial_fit(X[:21], np.repeat([1, -1], [20, 1]))
    check_bits(labelled, found)
    found.partial_fit(X[20:30]).partial_fit(X[30:31])
    found.partial_fit(X[[0, 31, 32, 1]], [-1, 1, 1, -1])
    check_equal(found, whole)
    assert (found.offset_, found.pixel_offset_) != first
    before, once = fitted(detector, X[:20])[0], fitted(detector, X[:20])[0].partial_fit(X[20:30])
    new = np.percentile(once.score_samples(X[20:30]), 10)
    assert_allclose(once.offset_, (2 * before.offset_ + new) / 3, rtol=1e-6)


def test_partial_fit_is_there_with_sums_only():
    for detector in DETECTORS:
        assert hasattr(detector, "partial_fit")
        assert not hasattr(clone(detector).set_params(keep_sums=False), "partial_fit")
    assert not hasattr(PatchCore(), "partial_fit")
    with pytest.raises(AttributeError, match="partial_fit"):
        FeatureGaussian().partial_fit(X)


def test_partial_fit_keeps_what_the_first_fit_learned():
    """Range, draws without a seed, and a backbone that was fitted."""
    images = X.astype(float)
    drawn = clone(DETECTORS[3]).set_params(random_state=None, intensity_range="auto").fit(images[:40])
    projection = drawn.network_.density.projection != 0
    found = drawn.intensity_range_
    drawn.partial_fit(images[40:] / 2)
    assert drawn.intensity_range_ == found
    assert torch.equal(drawn.network_.density.projection != 0, projection)
    inner = AutoEncoder(width=2, hidden_size=8, max_epochs=1, random_state=0)
    learned = PaDiM(backbone=inner, keep_sums=True, random_state=0).fit(X[:40])
    frozen = learned.backbone_detector_
    check_equal(learned.partial_fit(X[40:]), PaDiM(backbone=FrozenEstimator(frozen), random_state=0).fit(X))


@pytest.mark.parametrize(
    ("images", "y", "message"),
    [
        (X[:, :8], None, "fitted shape"),
        (X.astype(float), None, "was fitted to uint8"),
        (X[:3], [1, 0, 1], "excludes unlabelled images"),
        (X[:3], [-1, -1, -1], "leaves 0 of 3 .* at least 1"),
        (X[:3], [1, 1], "inconsistent numbers"),
    ],
)
def test_a_partial_fit_that_fails_changes_nothing(images, y, message):
    (detector,) = fitted(DETECTORS[0], X)
    before = dict(vars(detector))
    with pytest.raises(ValueError, match=message):
        detector.partial_fit(images, y)
    assert vars(detector) == before
    check_bits(detector, fitted(DETECTORS[0], X)[0])


def test_a_partial_fit_that_is_interrupted_changes_nothing(monkeypatch):
    (detector,) = fitted(DETECTORS[0], X)
    before = dict(vars(detector))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureGaussian, "_set_thresholds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detector.partial_fit(X[:5])
    assert vars(detector) == before


def test_labels_that_may_be_anomalous():
    padim = fitted(DETECTORS[2], X)[0]
    with pytest.warns(LabelWarning, match="are learned as normal"):
        padim.partial_fit(X[:4], [0, 1, 1, 0])
    assert padim.n_images_ == 64


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
def test_no_images_count_twice(detector):
    a, b = fitted(detector, X, X[:55])
    with pytest.raises(
        ValueError, match=r"same sums in detectors\[0\] and detectors\[2\]; list each site once"
    ):
        merge([a, b, clone(detector).fit(X)])


def test_parameters_that_were_changed_after_fit():
    for detector, change in (DETECTORS[0], {"grid": 2}), (DETECTORS[2], {"n_components": 3}):
        (part,) = fitted(detector, X)
        part.set_params(**change)
        for learn in (lambda part=part: part.partial_fit(X[:5]), lambda part=part: merge([part])):
            with pytest.raises(ValueError, match="changed after fit"):
                learn()
    (part,) = fitted(DETECTORS[0], X)
    with pytest.raises(ValueError, match="keep_sums=True excludes shrinkage='ledoit_wolf'"):
        merge([part.set_params(shrinkage="ledoit_wolf")])
    late = clone(DETECTORS[0]).set_params(keep_sums=False).fit(X).set_params(keep_sums=True)
    with pytest.raises(ValueError, match="changed after fit"):
        merge([late])


@pytest.mark.parametrize(
    ("parameters", "y", "message"),
    [
        ({"shrinkage": "ledoit_wolf"}, None, "excludes shrinkage='ledoit_wolf'"),
        ({"neighbors": 3}, None, "excludes neighbors"),
        ({}, [1] * 50 + [0] * 10, "excludes unlabelled images"),
        ({"keep_sums": 1.5}, None, "'keep_sums' parameter of FeatureGaussian must be"),
    ],
)
def test_what_sums_cannot_do(parameters, y, message):
    with pytest.raises(ValueError, match=message):
        clone(DETECTORS[0]).set_params(**parameters).fit(X, y)


class Pool(nn.Module):
    """A backbone with a weight."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.full((), weight))

    def forward(self, x):
        return nn.functional.avg_pool2d(x * self.weight, 4)


def part(cls=FeatureGaussian, images=X, **parameters):
    backbone = {} if "backbone" in parameters else {"backbone": "filters", "input_size": 16}
    return cls(**backbone, keep_sums=True, **parameters).fit(images)


RANDOM = {"reduction": "random", "n_components": 5}


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (lambda: part(grid=1), TypeError, "must be a list of fitted detectors, got one FeatureGaussian"),
        (lambda: [], ValueError, "at least one fitted detector, got none"),
        (lambda: [part(grid=1), PatchCore()], TypeError, r"detectors\[1\] must .* keep_sums.* got PatchCore"),
        (lambda: ["a"], TypeError, r"detectors\[0\] must .* got str"),
        (lambda: [part(grid=1), FeatureGaussian()], NotFittedError, r"detectors\[1\], a .* is not fitted"),
        (
            lambda: [FeatureGaussian(backbone="filters", grid=1).fit(X)],
            ValueError,
            r"detectors\[0\] must keep its sums, .* keep_sums=True",
        ),
        (
            lambda: [part(grid=1), part(grid=1, images=X[:49])],
            ValueError,
            r"detectors\[1\] must be fitted to 50 images at least, got 49: .* force=True",
        ),
        (lambda: [part(grid=1), part(PaDiM)], TypeError, r"detectors\[1\] must be of the class .* got PaDiM"),
        (
            lambda: [part(grid=1), part(grid=2)],
            ValueError,
            r"detectors\[1\] .* got grid=2 and not 1; fit",
        ),
        (lambda: [part(shrinkage=0.1), part()], ValueError, "got shrinkage='oas' and not 0.1"),
        (lambda: [part(PaDiM), part(PaDiM, pooling="max")], ValueError, "got pooling='max' and not 'mean'"),
        (
            lambda: [part(grid=1), part(grid=1, images=X[:, :8])],
            ValueError,
            r"detectors\[1\] .* image_shape_ .* \(1, 8, 16\) and not \(1, 16, 16\); resize",
        ),
        (
            lambda: [part(grid=1), part(grid=1, images=X / 255)],
            ValueError,
            r"detectors\[1\] .* intensity_range_ .*; set intensity_range=\(low, high\)",
        ),
        (
            lambda: [part(grid=1, layers=(0,)), part(grid=1, layers=(1,))],
            ValueError,
            r"detectors\[1\] .* backbone_ .*; give all of them the same frozen network",
        ),
        (
            lambda: [part(backbone=Pool(1.0)), part(backbone=Pool(2.0))],
            ValueError,
            r"detectors\[1\] .* backbone_ .*; give all of them the same frozen network",
        ),
        (
            lambda: [part(PaDiM, random_state=seed, images=X[seed:], **RANDOM) for seed in (0, 1)],
            ValueError,
            r"detectors\[1\] drew other features at random than detectors\[0\]; .* same random_state",
        ),
    ],
)
def test_detectors_that_cannot_be_merged(parts, error, message):
    with pytest.raises(error, match=message):
        merge(parts())


def test_what_may_differ():
    """Seeds where nothing was drawn, shares of flagged images, and how a range was found."""
    a = part(grid=1, random_state=0, images=X[:30])
    b = part(grid=1, random_state=1, contamination=0.3, pixel_contamination=0.2, images=X[30:])
    check_equal(merge([a, b], force=True), part(grid=1))
    given = part(grid=1, intensity_range=(0, 255), images=X[30:].astype(float))
    check_equal(merge([a, given], force=True), part(grid=1))
    modules = [part(backbone=Pool(1.0), images=images) for images in (X[:30], X[30:])]
    check_equal(merge(modules, force=True), part(backbone=Pool(1.0)))


def test_channels_that_were_drawn(monkeypatch):
    monkeypatch.setattr(density, "MOST_CHANNELS", 5)
    whole, *parts = [part(random_state=0, grid=1, images=images) for images in (X, X[:30], X[30:])]
    check_equal(merge(parts, force=True), whole)
    drawn = part(random_state=np.random.RandomState(7), grid=1, images=X[:30])
    chosen = drawn.network_.density.places.chosen
    drawn.partial_fit(X[30:])
    assert torch.equal(drawn.network_.density.places.chosen, chosen)
    other = part(random_state=1, grid=1)
    with pytest.raises(ValueError, match="drew other features"):
        merge([other, whole])


@pytest.mark.parametrize(("n", "d"), [size for size in SIZES if size[0] > 3])
@pytest.mark.parametrize("shrinkage", ["oas", 0.3, 1e-3])
def test_the_gaussian_of_moments(n, d, shrinkage):
    """Against scikit-learn in float64, from moments of two parts."""
    x, new = np.split(features(n + 6, d), [n])
    moments = Moments(1, d)
    for rows in x[:2], x[2:]:
        other = Moments(1, d)
        other.add(torch.from_numpy(rows)[:, None])
        moments.merge(other)
    gaussian = ShrunkGaussian(d, n, keeps=True)
    gaussian.fit_moments(moments, shrinkage)
    mean, deviation, covariance = covariance_of(x, shrinkage)
    z = (new - mean) / deviation
    expected = (z * np.linalg.solve(covariance, z.T).T).sum(1)
    assert_allclose(gaussian(torch.from_numpy(new)), expected, rtol=1e-3, atol=1e-4)
    assert_allclose(total([gaussian], 1, d, "cpu").covariance(), moments.covariance())


def test_moments_keep_the_digits_of_features_that_hardly_vary():
    x = 1e4 + 1e-3 * np.random.default_rng(0).normal(size=(40, 1, 3))
    parts = [Moments(1, 3), Moments(1, 3)]
    for moments, rows in zip(parts, np.split(x, [15])):
        for batch in np.split(rows, [4, 5]):
            moments.add(torch.from_numpy(batch))
    parts[0].merge(parts[1])
    assert_allclose(parts[0].covariance()[0], np.cov(x[:, 0].T, bias=True), rtol=1e-6)


def test_kept_moments_are_those_that_were_kept():
    moments, kept = Moments(4, 3), KeptMoments(4, 3)
    moments.add(torch.from_numpy(features(9 * 4, 3)).reshape(9, 4, 3))
    kept.keep(moments)
    found = kept.moments()
    assert found.count == 9
    assert torch.equal(found.sums, moments.sums)
    assert_allclose(found.products, moments.products, rtol=1e-14)
    assert kept.products.shape == (4, 6)


@pytest.mark.parametrize("reduction", ["pca", "random"])
def test_positions_of_parts_and_new_maps(reduction):
    maps, new = np.split(torch.from_numpy(maps_of(33, 6, 2, 3)), [30])
    modules = [PositionGaussians(6, 4, (2, 3), keeps=True) for _ in range(3)]
    whole, first, both = modules
    torch.manual_seed(0)
    first.fit([maps[:12]], reduction, 0.01)
    torch.manual_seed(0)
    whole.fit([maps], reduction, 0.01)
    both.fit(maps[12:].split(5), reduction, 0.01, [first])
    assert_allclose(both(new), whole(new), rtol=1e-5)


@pytest.mark.parametrize("cls", [FeatureGaussian, PaDiM])
def test_sums_of_a_tiny_detector_in_colour(cls):
    images = make_images((20, 12, 9, 3))
    detector = tiny(cls, keep_sums=True, layers=(0,))
    check_equal(merge(fitted(detector, images[:8], images[8:]), force=True), detector.fit(images), images)
