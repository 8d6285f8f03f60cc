"""Steps before a detector, and maps in the frame of the images before them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from skimage.exposure import equalize_adapthist
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import skanomaly
from skanomaly import FeatureGaussian, preprocessing
from skanomaly.datasets import load_chest_xray
from skanomaly.labels import LabelWarning
from skanomaly.preprocessing import CropToForeground, LocalContrast, MatchHistogram, Resize
from skanomaly.testing import DTYPES, SliceOnly

X = load_chest_xray().images[:12]
STEPS = [Resize((40, 48)), CropToForeground(), LocalContrast(), MatchHistogram()]
NAMES = [type(step).__name__ for step in STEPS]


def framed(images, top=5, left=9, size=(80, 90)):
    """Images on a dark ground, with a letter in its corner."""
    ground = np.zeros((len(images), *size, *images.shape[3:]), images.dtype)
    ground[:, top : top + images.shape[1], left : left + images.shape[2]] = np.maximum(images, 60)
    ground[:, -3:, -2:] = 255
    return ground


@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@parametrize_with_checks([Resize((3, 4)), *STEPS[1:]])
def test_scikit_learn(estimator, check):
    check(estimator)


def test_all_steps_are_tested():
    assert sorted(NAMES) == preprocessing.__all__


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_layouts_come_back(step, dtype):
    """An image is changed alike in every layout and container, alone and beside others."""
    grey = framed(X).astype(dtype)
    colour = np.stack([grey, grey[:, ::-1], grey], axis=-1)
    expected = step.fit(grey).transform(grey)
    integers = isinstance(step, LocalContrast) and grey.dtype.kind != "f"
    assert expected.dtype == (np.float32 if integers else grey.dtype)
    assert_array_equal(step.transform(SliceOnly(grey)), expected)
    assert_array_equal(step.transform(grey[3:4]), expected[3:4])
    assert_array_equal(step.fit(grey[..., None]).transform(grey[..., None])[..., 0], expected)
    last = step.fit(colour).transform(colour)
    step.set_params(channel_axis=1)
    assert_array_equal(
        step.fit(np.moveaxis(colour, -1, 1)).transform(np.moveaxis(colour, -1, 1)), np.moveaxis(last, -1, 1)
    )
    step.set_params(channel_axis="auto", image_shape=grey.shape[1:])
    rows = grey.reshape(len(grey), -1)
    assert_array_equal(step.fit(rows).transform(rows), expected.reshape(len(grey), -1))
    step.set_params(image_shape=None)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_wrong_images(step):
    step.fit(X)
    with pytest.raises(ValueError, match="X must have 1 channels, as in fit, got 3"):
        step.transform(np.stack([X] * 3, axis=-1))
    with pytest.raises(ValueError, match=r"got one image of shape \(.*give X\[None\]"):
        step.transform(X[0])
    with pytest.raises(ValueError, match="NaN"):
        step.fit(np.where(X == X[0, 0, 0], np.nan, X))


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_labels_that_may_mark_the_ill_warn_where_a_step_learns(step, recwarn):
    step.fit(X, np.arange(12) % 2)
    warned = [w for w in recwarn if issubclass(w.category, LabelWarning)]
    assert len(warned) == isinstance(step, MatchHistogram)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Resize((3, 0)), "size must be a whole number or two"),
        (Resize((3, 4, 5)), "size must be a whole number or two"),
        (Resize("large"), "'size' parameter of Resize"),
        (CropToForeground(threshold=1), "'threshold' parameter of CropToForeground"),
        (CropToForeground(margin=-1), "'margin' parameter"),
        (LocalContrast(clip_limit=2), "'clip_limit' parameter"),
        (MatchHistogram(1), "'n_quantiles' parameter"),
    ],
)
def test_wrong_parameters(step, message):
    with pytest.raises(ValueError, match=message):
        step.fit_transform(X)


# What the steps do.


def test_foreground_is_cut_out_without_what_stands_beside_it():
    wide = framed(X)
    step = CropToForeground((64, 64), margin=0).fit(wide)
    assert_array_equal(step.transform(wide), np.maximum(X, 60))
    # All alike, wherever the foreground lies.
    assert_array_equal(step.transform(framed(X, top=0, left=20)), np.maximum(X, 60))
    larger = CropToForeground((70, 70), margin=0.05).fit(wide).transform(wide)  # 3 pixels on each side
    assert_array_equal(larger[:, 3:-3, 3:-3], np.maximum(X, 60))


def test_regions_that_touch_in_a_corner_are_one_foreground():
    image = np.zeros((2, 30, 40), np.uint8)
    image[:, 5:10, 5:10] = image[:, 10:20, 10:18] = 200
    step = CropToForeground(margin=0).fit(image)
    masks = step.restore_maps(np.ones(image.shape, bool), image)
    assert [(np.flatnonzero(masks[0].any(axis)).min(), masks[0].any(axis).sum()) for axis in (1, 0)] == [
        (5, 15),
        (5, 13),
    ]


def test_a_hot_pixel_does_not_move_the_foreground():
    wide = framed(X).astype(np.uint16)
    expected = CropToForeground().fit(wide).transform(wide)
    wide[:, 0, 0] = 60_000
    assert_array_equal(CropToForeground().fit(wide).transform(wide), expected)


def test_images_of_one_intensity_are_left_whole():
    flat = np.full((2, 20, 30), 7, np.uint8)
    assert_array_equal(CropToForeground().fit(flat).transform(flat), flat)
    assert_array_equal(LocalContrast().fit(flat).transform(flat), np.zeros(flat.shape))


def test_local_contrast_is_that_of_scikit_image():
    expected = [equalize_adapthist(image, kernel_size=9, clip_limit=0.02) for image in X]
    assert_allclose(LocalContrast(9, clip_limit=0.02).fit(X).transform(X), expected, atol=0.01)
    colour = np.stack([X, X // 2, 255 - X], axis=-1)
    expected = [equalize_adapthist(image / 255) for image in colour]
    assert_allclose(LocalContrast().fit(colour).transform(colour), expected, atol=1e-6)
    # Illumination from one side is evened out.
    ramp = X * np.linspace(0.3, 1, 64)
    ratio, changed = (
        images[..., :32].mean() / images[..., 32:].mean()
        for images in (ramp, LocalContrast().fit(ramp).transform(ramp))
    )
    assert ratio + 0.1 < changed < 1


def test_histograms_become_those_of_the_mean_training_image():
    step = MatchHistogram(64).fit(X[:6], [1, 1, 1, 1, 0, -1])
    at = (np.arange(64) + 0.5) / 64
    expected = np.mean([np.quantile(image, at) for image in X[:5]], axis=0)
    assert_allclose(step.quantiles_, [expected])
    changed = step.transform(X[6:].astype(float))
    assert_allclose(np.quantile(changed, at, axis=(1, 2)).T, 6 * [expected], atol=6)
    assert_array_equal(step.transform(X[6:]), np.rint(changed))
    # Brightness and contrast no longer matter.
    assert_allclose(step.transform(X[6:] * 0.4 + 30), changed, atol=1e-9)
    # The order of the intensities stays.
    order = np.argsort(X[7].ravel(), kind="stable")
    assert (np.diff(changed[1].ravel()[order]) >= 0).all()


def test_channels_are_matched_one_by_one():
    colour = np.stack([X, X // 2, 255 - X], axis=-1)
    step = MatchHistogram().fit(colour)
    for channel in range(3):
        alone = MatchHistogram().fit(colour[..., channel])
        assert_allclose(step.quantiles_[channel], alone.quantiles_[0])
        assert_array_equal(step.transform(colour)[..., channel], alone.transform(colour[..., channel]))


# Maps and masks in the original frame.


@given(
    place=st.tuples(st.integers(0, 13), st.integers(0, 20)),
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    margin=st.sampled_from([0, 0.02, 0.2]),
)
def test_maps_come_back_to_where_they_were_cut_out(place, size, margin):
    images = framed(X[:2], *place)
    step = CropToForeground(size, margin=margin).fit(images)
    ramp = np.stack(2 * [np.add.outer(np.arange(80), np.arange(90) * 1.0)])
    inner = step.transform(images)
    assert inner.shape == (2, *size)
    rows, columns = step._box(images[0][None])
    cut = np.stack([preprocessing.resize(one[rows, columns].astype("f4"), size) for one in ramp])
    back = step.restore_maps(cut, images)
    assert back.shape == images.shape
    outside = np.ones(images.shape[1:], bool)
    outside[rows, columns] = False
    assert (back[:, outside] == cut.min()).all()
    tolerance = 1.5 * max((rows.stop - rows.start) / size[0], (columns.stop - columns.start) / size[1], 1)
    middle = slice(rows.start + 8, rows.stop - 8), slice(columns.start + 8, columns.stop - 8)
    assert_allclose(back[0][middle], ramp[0][middle], atol=tolerance)
    masks = step.restore_maps(np.ones(inner.shape, bool), images)
    assert masks.dtype == bool
    assert_array_equal(masks[0], ~outside)


@pytest.mark.parametrize("hold", ["pipeline", "nested", "frozen", "search"])
def test_a_lesion_is_found_where_it_is_in_the_original(hold):
    images = framed(X)
    new = images.copy()
    new[:, 40:46, 30:36] = 255
    steps = [CropToForeground((60, 50), margin=0), "passthrough", Resize((48, 40)), MatchHistogram()]
    detector = FeatureGaussian(backbone="filters", random_state=0)
    if hold == "nested":
        made = make_pipeline(make_pipeline(*steps), detector)
    else:
        made = make_pipeline(*steps, detector)
    if hold == "search":
        made = GridSearchCV(made, {"featuregaussian__grid": [8]}, scoring=lambda *_: 0.0, cv=2)
    made.fit(images)
    if hold == "frozen":
        made = FrozenEstimator(made)
    maps = skanomaly.anomaly_map(made, new)
    assert maps.shape == new.shape
    rise = (maps - skanomaly.anomaly_map(made, images)).mean(axis=0)
    peak = np.unravel_index(rise.argmax(), rise.shape)
    assert np.linalg.norm(np.subtract(peak, (42.5, 32.5))) < 10  # a cell has 10 pixels of the original
    masks = skanomaly.segment(made, new)
    assert (masks.dtype, masks.shape) == (bool, new.shape)
    assert not masks[:, -3:, -2:].any()
    out = np.full(new.shape, np.nan, np.float32)
    assert skanomaly.anomaly_map(made, new, out=out) is out
    assert_array_equal(out, maps)


def test_steps_that_move_nothing_leave_maps_as_they_are():
    made = make_pipeline(LocalContrast(), FeatureGaussian(backbone="filters", random_state=0)).fit(X)
    assert_array_equal(skanomaly.anomaly_map(made, X), made[-1].anomaly_map(made[0].transform(X)))
