"""Confounds of images, and AUROC within strata of one, against brute force, identities and simulations."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image
from scipy.special import expit
from sklearn.exceptions import UndefinedMetricWarning

from skanomaly.metrics import auroc, bootstrap_interval, confounds, stratified_auroc
from skanomaly.testing import SliceOnly, make_images

NAMES = ["sharpness", "brightness", "contrast", "border", "noise"]


def by_hand(image):
    """Confounds of a grey image, pixel by pixel."""
    (height, width), x = image.shape, image.astype(float)
    down = [abs(x[i + 1, j] - x[i, j]) for i in range(height - 1) for j in range(width)]
    right = [abs(x[i, j + 1] - x[i, j]) for i in range(height) for j in range(width - 1)]
    k = max(1, round(min(height, width) / 16))
    frame = [
        x[i, j]
        for i in range(height)
        for j in range(width)
        if i < k or j < k or i >= height - k or j >= width - k
    ]
    # Second difference along one axis of the second difference along the other, mirrored at the edges.
    second = np.diff(np.diff(np.pad(x, 1, mode="reflect"), n=2, axis=0), n=2, axis=1)
    return {
        "sharpness": min(np.mean(down), np.mean(right)),
        "brightness": x.sum() / x.size,
        "contrast": np.sqrt(((x - x.mean()) ** 2).mean()),
        "border": np.mean(frame),
        "noise": np.sqrt(np.pi / 2) * np.abs(second).mean() / 6,
    }


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 40, 9), (2, 33, 64)])
def test_confounds_by_hand(shape):
    X = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    found, expected = confounds(X), [by_hand(image) for image in X]
    assert list(found) == NAMES
    for name, values in found.items():
        assert values.dtype == np.float64
        assert_allclose(values, [image[name] for image in expected], rtol=1e-12)


def test_confounds_of_any_layout():
    X = make_images((4, 12, 10, 3))
    expected = confounds(X.mean(3))
    first = X.transpose(0, 3, 1, 2)
    rows = first.reshape(4, -1)
    layouts = [
        (X, {}),
        (first, {"channel_axis": 1}),
        (torch.from_numpy(first.copy()), {}),
        (rows, {"image_shape": (3, 12, 10)}),
        (pd.DataFrame(rows), {"image_shape": (3, 12, 10)}),
        (list(X), {}),
        ([Image.fromarray(image) for image in X], {}),
        (SliceOnly(X), {}),
    ]
    for given_X, options in layouts:
        for name, values in confounds(given_X, **options).items():
            assert_allclose(values, expected[name], rtol=1e-12)
    assert_allclose(confounds(X[:1])["noise"], expected["noise"][:1])


@given(st.floats(0.1, 50), st.floats(-100, 100))
def test_confounds_of_changed_images(scale, shift):
    X = np.random.default_rng(0).normal(size=(3, 12, 9))
    before, after = confounds(X), confounds(scale * X + shift)
    for name in NAMES:
        moved = shift if name in ("brightness", "border") else 0
        assert_allclose(after[name], scale * before[name] + moved, rtol=1e-9, atol=1e-9)
    for turned in X[:, ::-1], X[:, :, ::-1], X.transpose(0, 2, 1):
        for name, values in confounds(turned).items():
            assert_allclose(values, before[name], rtol=1e-9)


def test_what_each_confound_measures():
    rng = np.random.default_rng(0)
    flat = np.full((1, 200, 200), 100.0)
    assert_allclose([confounds(flat)[name] for name in NAMES], [[0], [100], [0], [100], [0]])
    slope = flat + np.arange(200) + 3 * np.arange(200)[:, None]
    assert confounds(slope)["sharpness"] == pytest.approx(1), "the smoother direction"
    assert confounds(slope)["noise"] < 0.1, "a slope is no noise, but at the edges"
    assert_allclose(confounds(slope + rng.normal(0, 5, slope.shape))["noise"], 5, rtol=0.05)
    framed = np.zeros((1, 32, 32))
    framed[:, 2:-2, 2:-2] = 1
    assert confounds(framed)["border"] == 0
    for tiny in (1, 1, 1), (1, 1, 7), (1, 2, 2):
        assert all(np.isfinite(values).all() for values in confounds(np.ones(tiny)).values())


@pytest.mark.parametrize("size", [64, 128])
def test_the_known_shortcuts_are_found(benchmark_data, size):
    for name, confound, expected in ("cxr_pneumonia", "sharpness", 0.90), ("brain_mri", "brightness", 0.80):
        arrays = benchmark_data(f"{name}_{size}")
        test = arrays["split"] == "test"
        y = np.where(arrays["labels"][test] == 1, -1, 1)
        found = {key: auroc(y, values) for key, values in confounds(arrays["images"][test]).items()}
        best = max(found, key=lambda key: max(found[key], 1 - found[key]))
        assert best == confound
        assert max(found[best], 1 - found[best]) > expected


@pytest.mark.parametrize(
    ("X", "error", "words"),
    [
        (np.full((2, 8, 8), np.nan), ValueError, "X contains NaN"),
        (np.zeros((8, 8, 8, 8)), ValueError, "channel_axis='auto' cannot tell the channels of X"),
        (np.zeros((2, 3, 8, 8)), ValueError, "images of 3 channels, or volumes of 3 slices"),
        (np.zeros(8), ValueError, "Expected 2D array, got 1D array"),
        (np.zeros((0, 8, 8)), ValueError, "minimum of 1 is required"),
        ([Path("a.png")], TypeError, "X must hold images, got the path 'a.png'"),
        ([np.zeros((8, 8)), np.zeros((9, 8))], ValueError, "images in a list must have one shape"),
        (np.ma.array(np.zeros((2, 8, 8)), mask=True), TypeError, "X has masked values"),
    ],
)
def test_images_that_confounds_refuses(X, error, words):
    with pytest.raises(error, match=re.escape(words)):
        confounds(X)


# AUROC within strata.


@st.composite
def cases(draw):
    """Labels, scores and confounds with ties, groups and a number of strata."""
    n = draw(st.integers(2, 25))
    y, score, confound, groups = (
        np.array(draw(st.lists(values, min_size=n, max_size=n)))
        for values in (
            st.sampled_from([1, -1]),
            st.integers(0, 6),
            st.sampled_from([-np.inf, -1, 0, 0.5, 2, 3, 8, np.inf]),
            st.integers(0, 8),
        )
    )
    y[:2] = 1, -1
    return y, score, confound, groups, draw(st.integers(1, 6))


def by_pairs(y, score, confound, groups, n_strata):
    """Value by a loop over all pairs; nan without any."""
    below = np.array([np.mean(confound < c) + np.mean(confound == c) / 2 for c in confound])
    stratum = [int(n_strata * b + 1e-9) for b in below]
    won = weight = 0
    for s in set(stratum):
        wins = {"less": [], "same": [], "more": []}
        for i in np.flatnonzero(y == -1):
            for j in np.flatnonzero(y == 1):
                if stratum[i] == stratum[j] == s and groups[i] != groups[j]:
                    more, less = confound[i] > confound[j], confound[i] < confound[j]
                    win = 1 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0
                    wins["more" if more else "less" if less else "same"].append(win)
        balanced = min(len(wins["less"]), len(wins["more"]))
        if balanced:
            won += balanced * (np.mean(wins["less"]) + np.mean(wins["more"]))
        won += sum(wins["same"])
        weight += 2 * balanced + len(wins["same"])
    return won / weight if weight else np.nan


@given(cases())
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_pairs_are_counted_within_strata(case):
    y, score, confound, groups, n_strata = case
    found = stratified_auroc(y, score, confound, groups=groups, n_strata=n_strata)
    assert_allclose(found, by_pairs(*case))
    alone = stratified_auroc(y, score, confound, n_strata=n_strata)
    assert_allclose(alone, by_pairs(y, score, confound, np.arange(len(y)), n_strata))


@given(cases())
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_only_the_order_counts(case):
    y, score, confound, _, n_strata = case
    value = stratified_auroc(y, score, confound, n_strata=n_strata)
    for changed in np.exp(score) - 3, 2.0**score, np.where(score == score.max(), np.inf, score):
        for same in np.arctan(confound), np.unique(confound, return_inverse=True)[1] * 7.0:
            assert_allclose(stratified_auroc(y, changed, same, n_strata=n_strata), value)
    assert_allclose(stratified_auroc(y, -score, confound, n_strata=n_strata), 1 - value)
    if not np.isnan(value):
        assert_allclose(stratified_auroc(y, np.arctan(confound), confound, n_strata=n_strata), 0.5)
    # A confound that all images share hides nothing.
    assert_allclose(stratified_auroc(y, score, np.ones(len(y)), n_strata=n_strata), auroc(y, score))


def simulated(seed, n=2000, slope=3.0):
    """Labels that depend on a confound alone, whose AUROC is 0.92, and the confound."""
    rng = np.random.default_rng(seed)
    confound = rng.normal(size=n)
    return np.where(rng.random(n) < expit(slope * confound), -1, 1), confound, rng


@pytest.mark.parametrize("seed", range(5))
def test_a_score_that_is_the_confound_is_chance(seed):
    y, confound, rng = simulated(seed)
    assert auroc(y, confound) > 0.9
    for score in confound, -confound, np.exp(confound):
        assert_allclose(stratified_auroc(y, score, confound), 0.5, atol=0.02)
    # Not by a finer cut alone: whatever the strata.
    assert_allclose(stratified_auroc(y, confound, confound, n_strata=1), 0.5, atol=0.02)


def test_scores_that_follow_the_confound_are_chance_on_average():
    found = {"noise": [], "fine noise": [], "bent": []}
    for seed in range(10):
        y, confound, rng = simulated(seed)
        noisy = confound + rng.normal(0, 0.3, len(y))
        found["noise"].append(stratified_auroc(y, noisy, confound))
        found["fine noise"].append(stratified_auroc(y, noisy, confound, n_strata=20))
        found["bent"].append(stratified_auroc(y, confound**2, confound))
    means = {name: np.mean(values) for name, values in found.items()}
    assert_allclose([means["fine noise"], means["bent"]], 0.5, atol=0.02)
    assert_allclose(means["noise"], 0.52, atol=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_a_signal_beyond_the_confound_stays(seed):
    """The score has a signal of AUROC 0.76 besides the confound, or alone."""
    y, confound, rng = simulated(seed)
    signal = 1.0 * (y == -1) + rng.normal(size=len(y))
    assert_allclose(stratified_auroc(y, signal, confound), auroc(y, signal), atol=0.05)
    both = signal + confound
    assert auroc(y, both) > 0.89
    assert_allclose(stratified_auroc(y, both, confound), 0.76, atol=0.05)


def test_labels_of_pairs():
    y, confound, rng = simulated(0, n=200)
    score = rng.normal(size=200) + (y == -1)
    expected = stratified_auroc(y, score, confound)
    words = np.where(y == -1, "ill", "well")
    assert stratified_auroc(words, score, confound, anomaly_label="ill") == expected
    # Unlabelled rows move no stratum.
    more = np.r_[y, np.zeros(50, int)], np.r_[score, np.full(50, 9.0)], np.r_[confound, np.full(50, -9.0)]
    assert stratified_auroc(*more) == expected


def test_each_class_may_be_a_stratum():
    """With as many strata as images, only images with the same value are compared."""
    y, _, rng = simulated(0, n=300, slope=0)
    scanner = rng.choice([2, 3, 5, 7], p=[0.1, 0.2, 0.2, 0.5], size=300)
    score = rng.normal(size=300) + (y == -1) + 9 * (scanner == 3)
    parts = [scanner == each for each in np.unique(scanner)]
    n_pairs = [(y[part] == 1).sum() * (y[part] == -1).sum() for part in parts]
    expected = np.average([auroc(y[part], score[part]) for part in parts], weights=n_pairs)
    assert_allclose(stratified_auroc(y, score, scanner, n_strata=300), expected)


def test_many_pairs_are_compared_in_parts(monkeypatch):
    y, confound, rng = simulated(0, n=200)
    score = rng.normal(size=200) + (y == -1)
    expected = stratified_auroc(y, score, confound)
    monkeypatch.setattr("skanomaly.metrics.N_PAIRS", 7)
    assert_allclose(stratified_auroc(y, score, confound), expected)


def test_intervals_leave_out_pairs_of_one_patient():
    """As the estimate does: each patient has an ill image, and a normal one that scores lower."""
    rng = np.random.default_rng(0)
    groups, y = np.repeat(np.arange(40), 2), np.tile([1, -1], 40)
    of_patient = np.repeat(rng.normal(size=40), 2)
    score, confound = of_patient + 0.05 * (y == -1), np.repeat(np.arange(40.0), 2)
    estimate = stratified_auroc(y, score, confound, n_strata=20, groups=groups)
    options = {"n_strata": 20, "groups": groups, "n_resamples": 100, "random_state": 0}
    low, high = bootstrap_interval(stratified_auroc, y, score, confound=confound, **options)
    assert low <= estimate <= high


def test_intervals_within_strata():
    y, confound, rng = simulated(0, n=300, slope=1)
    score = rng.normal(size=300) + (y == -1)
    options = {"random_state": 0, "n_resamples": 100}
    low, high = bootstrap_interval(stratified_auroc, y, score, confound=confound, **options)
    assert low < stratified_auroc(y, score, confound) < high
    assert high - low < 0.2
    # The confound is drawn with the scores: in each draw the score is still the confound.
    ends = bootstrap_interval(stratified_auroc, y, confound, confound=confound, **options)
    assert_allclose(ends, 0.5, atol=0.02)
    # Every image five times, in groups: no more patients than before.
    copies = np.repeat(np.arange(300), 5)
    repeated = y[copies], score[copies]
    grouped, single = (
        bootstrap_interval(stratified_auroc, *repeated, confound=confound[copies], groups=groups, **options)
        for groups in (copies, None)
    )
    assert_allclose(np.ptp(grouped), high - low, rtol=0.25)
    assert np.ptp(single) < 0.6 * np.ptp(grouped)
    # Rows without a label are left out of the confound, too.
    more = np.r_[0, y], np.r_[9.0, score]
    again = bootstrap_interval(stratified_auroc, *more, confound=np.r_[9.0, confound], **options)
    assert again == (low, high)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        bootstrap_interval(stratified_auroc, y, score, confound=confound[1:])
    for wrong, error in (np.ma.array(confound), TypeError), (np.where(y == 1, np.nan, confound), ValueError):
        with pytest.raises(error, match="confound must"):
            bootstrap_interval(stratified_auroc, y, score, confound=wrong)


def test_draws_without_pairs_are_left_out():
    y, confound = [1, 1, -1, -1, 1, -1], [1, 2, 1.5, 2.5, 3, 0.5]
    low, high = bootstrap_interval(
        stratified_auroc, y, [0, 1, 2, 3, 4, 5], confound=confound, n_strata=1, random_state=0
    )
    assert 0 <= low <= high <= 1
    told_apart = [1, 2, 8, 9, 3, 7]
    ends = bootstrap_interval(stratified_auroc, y, y, confound=told_apart, n_resamples=5)
    assert np.isnan(ends).all()


def test_nothing_to_compare_is_undefined():
    with pytest.warns(UndefinedMetricWarning, match="without pairs to compare") as caught:
        assert np.isnan(stratified_auroc([1, 1, -1, -1], [0, 1, 2, 3], [0, 1, 2, 3]))
    assert caught[0].filename == __file__
    with pytest.warns(UndefinedMetricWarning, match="without pairs to compare"):
        assert np.isnan(stratified_auroc([-1, -1], [0, 1], [0, 0]))
    with pytest.warns(UndefinedMetricWarning, match="without pairs to compare"):
        assert np.isnan(stratified_auroc([1, -1], [0, 1], [0, 0], groups=["a", "a"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_strata": 0}, "n_strata must be a whole number of strata above 0, got 0; 5 is usual"),
        ({"n_strata": 2.5}, "n_strata must be a whole number of strata above 0, got 2.5"),
        ({"n_strata": "quintiles"}, "n_strata must be a whole number of strata above 0, got 'quintiles'"),
        ({"confound": [0, np.nan, 1, 2]}, "confound must hold numbers, got nan in 1 of 4 places"),
        ({"confound": [0, 1, 2]}, "inconsistent numbers of samples"),
        ({"confound": np.zeros((4, 2))}, "y should be a 1d array"),
        ({"groups": [0, 1, 2]}, "inconsistent numbers of samples"),
        ({"anomaly_score": [0, np.nan, 1, 2]}, "anomaly_score must hold numbers"),
        ({"y": [0, 1, 0, 1]}, "anomaly_label=-1 never occurs in y"),
    ],
)
def test_what_stratified_auroc_refuses(change, words):
    arguments = {"y": [1, -1, 1, -1], "anomaly_score": [0, 1, 2, 3], "confound": [0, 1, 0, 1]} | change
    with pytest.raises(ValueError, match=re.escape(words)):
        stratified_auroc(**arguments)
