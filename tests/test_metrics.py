"""Metrics against brute force and identities."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_equal
from scipy import ndimage
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import roc_curve

from skanomaly import metrics
from skanomaly.metrics import (
    auroc,
    average_precision,
    best_dice,
    best_f1_threshold,
    bootstrap_interval,
    classification_metrics,
    dice,
    pixel_auroc,
    pixel_average_precision,
    pro,
    youden_threshold,
)

Y = np.array([1, 1, 1, -1, -1, 1, -1, 0])
SCORE = np.array([0.1, 0.4, 0.4, 0.35, 0.8, 0.7, 0.9, 5.0])


@st.composite
def scored(draw):
    n = draw(st.integers(4, 30))
    y = np.array(draw(st.lists(st.sampled_from([1, -1]), min_size=n, max_size=n)))
    y[:2] = 1, -1
    score = np.array(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), float)
    return y, score


@given(scored())
def test_auroc_counts_pairs(case):
    y, score = case
    normal, anomalous = score[y == 1], score[y == -1]
    pairs = (anomalous[:, None] > normal) + 0.5 * (anomalous[:, None] == normal)
    assert_allclose(auroc(y, score), pairs.mean())


@given(scored())
def test_average_precision_sums_steps(case):
    y, score = case
    total, recall = 0.0, 0.0
    for threshold in np.unique(score)[::-1]:
        flagged = score >= threshold
        precision, reached = (y[flagged] == -1).mean(), (flagged & (y == -1)).sum() / (y == -1).sum()
        total, recall = total + precision * (reached - recall), reached
    assert_allclose(average_precision(y, score), total)


@given(scored())
def test_chosen_thresholds_are_the_best(case):
    y, score = case

    def at(threshold):
        return classification_metrics(y, score, threshold=threshold)

    candidates = [at(threshold) for threshold in [*np.unique(score), np.inf]]
    youden = at(youden_threshold(y, score))
    assert_allclose(
        youden["sensitivity"] + youden["specificity"],
        max(values["sensitivity"] + values["specificity"] for values in candidates),
    )
    assert_equal(classification_metrics(y, score), youden)
    assert_allclose(at(best_f1_threshold(y, score))["f1"], np.nanmax([values["f1"] for values in candidates]))


def test_classification_metrics_by_hand():
    values = classification_metrics(Y, SCORE, threshold=0.4)
    assert values == {
        "threshold": 0.4,
        "accuracy": pytest.approx(3 / 7),
        "precision": pytest.approx(2 / 5),
        "recall": pytest.approx(2 / 3),
        "sensitivity": pytest.approx(2 / 3),
        "specificity": pytest.approx(1 / 4),
        "false_alarm_rate": pytest.approx(3 / 4),
        "f1": pytest.approx(0.5),
    }
    assert np.isnan(classification_metrics(Y, SCORE, threshold=99)["precision"])
    with pytest.raises(ValueError, match="threshold must be a number or 'youden', got 'best'"):
        classification_metrics(Y, SCORE, threshold="best")


@pytest.mark.parametrize("metric", [auroc, average_precision, youden_threshold, best_f1_threshold])
def test_labels(metric):
    labelled = Y != 0
    expected = metric(Y[labelled], SCORE[labelled])
    assert metric(Y, SCORE) == expected
    ill = np.where(Y[labelled] == -1, 1, 0)
    assert metric(ill, SCORE[labelled], anomaly_label=1) == expected
    words = np.where(ill, "ill", "fine")
    assert metric(words, SCORE[labelled], anomaly_label="ill") == expected
    with pytest.raises(ValueError, match=r"anomaly_label=-1 never occurs in y, whose values are \[0, 1\]"):
        metric(ill, SCORE[labelled])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        metric(Y, SCORE[:3])


def test_one_class_is_undefined():
    for metric in auroc, average_precision:
        with pytest.warns(UndefinedMetricWarning, match="one class only"):
            assert np.isnan(metric([-1, -1], [0.0, 1.0]))
    for metric in youden_threshold, best_f1_threshold:
        with pytest.raises(ValueError, match="no normal images"):
            metric([-1, -1], [0.0, 1.0])


def test_bootstrap_draws_groups():
    rng = np.random.default_rng(0)
    y = np.where(rng.random(200) < 0.4, -1, 1)
    score = rng.normal(size=200) + (y == -1)
    low, high = bootstrap_interval(auroc, y, score, random_state=0, n_resamples=200)
    assert low < auroc(y, score) < high
    assert (low, high) == bootstrap_interval(auroc, y, score, random_state=0, n_resamples=200)
    # Every image five times, in groups: the interval knows there are no more patients than before.
    copies = np.repeat(np.arange(200), 5)
    grouped = bootstrap_interval(
        auroc, y[copies], score[copies], groups=copies, random_state=0, n_resamples=200
    )
    single = bootstrap_interval(auroc, y[copies], score[copies], random_state=0, n_resamples=200)
    assert_allclose(np.ptp(grouped), high - low, rtol=0.15)
    assert np.ptp(single) < 0.6 * np.ptp(grouped)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        bootstrap_interval(auroc, y, score, groups=copies)
    ill = (y == -1).astype(int)
    assert bootstrap_interval(auroc, ill, score, anomaly_label=1, random_state=0, n_resamples=200) == (
        low,
        high,
    )


@pytest.fixture
def lesions():
    masks = np.zeros((3, 40, 40), bool)
    masks[0, 2:6, 2:6] = masks[0, 20:38, 10:30] = masks[1, 5:9, 5:30] = True
    return masks, np.random.default_rng(0).random(masks.shape)


def test_perfect_maps(lesions):
    masks, _ = lesions
    for metric in pixel_auroc, pixel_average_precision, pro, dice:
        assert metric(masks, masks.astype(float)) == 1
    assert best_dice(masks, masks.astype(float))[0] == 1


def test_pro_of_ignorance_is_half_the_rate(lesions):
    masks = np.tile(lesions[0], (30, 1, 1))
    ignorant = np.random.default_rng(0).random(masks.shape)
    assert_allclose(pro(masks, ignorant), 0.15, atol=0.01)
    assert_allclose(pro(masks, ignorant, max_false_alarm_rate=0.1), 0.05, atol=0.01)
    assert_allclose(pro(masks, np.zeros(masks.shape)), 0.15)


def test_pro_against_a_loop(lesions):
    masks, maps = lesions
    maps = np.round(maps + 0.3 * masks, 2)
    labels = [ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        flagged = maps >= threshold
        overlaps = [f[r == i].mean() for f, r in zip(flagged, labels) for i in range(1, r.max() + 1)]
        points.append((flagged[~masks].mean(), np.mean(overlaps)))
    x, y = np.array(points).T
    grid = np.unique(np.r_[x[x < 0.3], 0.3])
    assert_allclose(pro(masks, maps), np.trapezoid(np.interp(grid, x, y), grid) / 0.3, rtol=1e-2)


def test_pro_of_one_region_is_its_sensitivity(lesions):
    masks, maps = lesions
    one = masks.copy()
    one[0] = False
    maps = maps + 0.5 * one
    false_alarms, hits, _ = roc_curve(one.ravel(), maps.ravel())
    grid = np.linspace(0, 0.3, 20_001)
    area = np.trapezoid(np.interp(grid, false_alarms, hits), grid) / 0.3
    assert_allclose(pro(one, maps), area, rtol=1e-3)


def exact_pro(masks, maps, limit):
    """In fractions: points of all thresholds, straight lines between them, cut at the limit."""
    labels = [ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks]
    regions = [values[r == i] for values, r in zip(maps, labels) for i in range(1, r.max() + 1)]
    normal = maps[~masks]
    points = [(Fraction(0), Fraction(0))]
    for threshold in np.unique(maps)[::-1]:
        overlaps = [Fraction(int((region >= threshold).sum()), region.size) for region in regions]
        false_alarms = Fraction(int((normal >= threshold).sum()), normal.size)
        points.append((false_alarms, sum(overlaps) / len(overlaps)))
    area, limit = Fraction(0), Fraction(limit)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x0 < x1:
            end = min(x1, limit)
            area += (end - x0) * (2 * y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return float(area / limit)


@st.composite
def masks_and_maps(draw):
    """Small masks with normal and anomalous pixels, and maps with ties, some of them infinite."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(2, 5)))
    masks = draw(arrays(bool, shape))
    masks.flat[:2] = True, False
    values = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, np.inf])
    return masks, draw(arrays(float, shape, elements=values))


@settings(max_examples=200)
@given(masks_and_maps(), st.data())
def test_pro_is_the_exact_area(case, data):
    masks, maps = case
    normal = maps[~masks]
    # Limits of any size, and those of the points of the curve, where it may rise.
    on_the_curve = [(normal >= value).mean() for value in np.unique(normal)]
    limit = data.draw(st.sampled_from(on_the_curve) | st.floats(0.01, 1))
    exact = exact_pro(masks, maps, float(limit))
    assert_allclose(pro(masks, maps, max_false_alarm_rate=limit), exact, atol=1e-12)
    assert_allclose(pro(masks, maps, max_false_alarm_rate=limit * (1 - 1e-9)), exact, atol=1e-7)
    # Any scale that keeps the order.
    assert_allclose(pro(masks, np.unique(maps, return_inverse=True)[1].reshape(maps.shape)), pro(masks, maps))


def test_pro_where_the_curve_rises_at_the_limit():
    masks, maps = np.zeros((1, 20, 20), bool), np.zeros((1, 20, 20))
    masks[0, 0, :10] = True
    maps.ravel()[np.flatnonzero(~masks.ravel())[-117:]] = 255  # 117 of 390 normal pixels: 0.3
    maps[masks] = 100
    for limit in 0.3 - 1e-9, 0.3, 0.3 + 1e-9:
        assert pro(masks, maps, max_false_alarm_rate=limit) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("limit", [0, -0.1, 1.1, 30, np.nan, np.inf, "0.3", None])
def test_limits_of_pro(lesions, limit):
    with pytest.raises(ValueError, match="max_false_alarm_rate must be a share of the normal pixels"):
        pro(*lesions, max_false_alarm_rate=limit)


def test_without_normal_pixels_pixel_metrics_are_undefined():
    masks, maps = np.ones((1, 4, 4), bool), np.random.default_rng(0).random((1, 4, 4))
    for metric in pixel_auroc, pixel_average_precision, pro:
        with pytest.warns(UndefinedMetricWarning, match="one class only") as caught:
            assert np.isnan(metric(masks, maps))
        assert caught[0].filename == __file__


@given(scored(), st.integers(0, 9), st.integers(0, 9))
def test_infinite_scores_are_ranked(case, lowest, highest):
    y, finite = case
    score = np.where(finite >= highest, np.inf, np.where(finite <= lowest, -np.inf, finite))
    finite = np.where(finite >= highest, 10, np.where(finite <= lowest, -1, finite))
    masks, maps = (y == -1).reshape(1, 1, -1), score.reshape(1, 1, -1)
    for metric, pixels in (auroc, pixel_auroc), (average_precision, pixel_average_precision):
        assert_allclose([metric(y, score), pixels(masks, maps)], metric(y, finite))
    best, threshold = best_dice(masks, maps)
    assert_allclose([best, dice(masks, maps >= threshold)], best_dice(masks, finite.reshape(1, 1, -1))[0])
    assert best_f1_threshold(y, score) == threshold
    assert pro(masks, maps) == pro(masks, finite.reshape(1, 1, -1))
    found, expected = classification_metrics(y, score), classification_metrics(y, finite)
    for values in found, expected:
        values["gain"] = values["sensitivity"] + values["specificity"]
    assert_allclose(found["gain"], expected["gain"])
    low, high = bootstrap_interval(auroc, y, score, n_resamples=3, random_state=0)
    assert 0 <= low <= high <= 1


def test_nan_is_refused(lesions):
    masks, maps = lesions
    for metric in auroc, average_precision, youden_threshold, best_f1_threshold, classification_metrics:
        with pytest.raises(ValueError, match="anomaly_score must hold numbers, got nan in 1 of 8 places"):
            metric(Y, np.where(SCORE == 0.8, np.nan, SCORE))
    for metric in PIXEL_METRICS:
        with pytest.raises(ValueError, match="maps must hold numbers, got nan in 3 of 4800 places"):
            metric(masks, np.where(np.arange(4800).reshape(masks.shape) < 3, np.nan, maps))


PIXEL_METRICS = pixel_auroc, pixel_average_precision, best_dice, pro


def test_soft_masks_are_refused(lesions):
    masks, maps = lesions
    soft = ndimage.zoom(masks.astype(float), (1, 2, 2), order=1)
    for metric in PIXEL_METRICS:
        with pytest.raises(ValueError, match="masks must hold booleans, or 0 and 1, .* masks > 0.5"):
            metric(soft, np.zeros(soft.shape))
        kinds = [metric(masks.astype(dtype), maps) for dtype in (bool, "u1", "f4")] + [
            metric(masks * 255, maps)
        ]
        assert kinds == [kinds[0]] * 4
    with pytest.raises(ValueError, match="predicted must hold booleans, .* predicted > 0.5"):
        dice(masks, maps)
    for bad in np.where(masks, np.nan, 0.0), np.where(masks, 2.0, 0.0):
        with pytest.raises(ValueError, match="masks must hold booleans"):
            dice(bad, masks)
    with pytest.raises(TypeError, match="masks must hold booleans, or 0 and 1, got dtype <U"):
        dice(np.where(masks, "ill", "well"), masks)


def test_masked_arrays_are_refused(lesions):
    masks, maps = lesions
    brain = np.ones_like(masks)
    for metric in (*PIXEL_METRICS, dice):
        for name, arguments in {
            "masks": (np.ma.array(masks, mask=~brain), masks),
            "maps|predicted": (masks, np.ma.array(masks, mask=~brain)),
        }.items():
            with pytest.raises(TypeError, match=f"({name}) must be a plain array, got a masked one"):
                metric(*arguments)
    with pytest.raises(TypeError, match="masks must be a plain array"):
        dice(list(np.ma.array(masks)), masks)
    with pytest.raises(TypeError, match="anomaly_score must be a plain array"):
        auroc(Y, np.ma.array(SCORE))


def test_dice(lesions):
    masks, _ = lesions
    shifted = np.roll(masks, 1, axis=2)
    common, total = (masks & shifted).sum(), masks.sum() + shifted.sum()
    assert_allclose(dice(masks, shifted), 2 * common / total)
    each = [2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() else 1.0 for a, b in zip(masks, shifted)]
    assert_allclose(dice(masks, shifted, average="per_image"), np.mean(each))
    assert np.isnan(dice(np.zeros((1, 2, 2)), np.zeros((1, 2, 2))))


def test_best_dice_is_the_best(lesions):
    masks, maps = lesions
    maps = maps + 0.4 * masks
    value, threshold = best_dice(masks, maps)
    assert_allclose(value, dice(masks, maps >= threshold))
    assert value >= max(dice(masks, maps >= t) for t in np.linspace(0, 1.4, 57)) - 1e-12


def test_bad_maps(lesions):
    masks, maps = lesions
    for metric in pixel_auroc, pixel_average_precision, pro, dice, best_dice:
        with pytest.raises(ValueError, match=r"\(n, H, W\), got \(3, 40, 40\) and \(2, 40, 40\)"):
            metric(masks, maps[:2])
    with pytest.raises(ValueError, match="no anomalous pixel"):
        pro(np.zeros_like(masks), maps)
    with pytest.raises(ValueError, match="average must be"):
        dice(masks, masks, average="mean")


def test_all_names_are_there():
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
