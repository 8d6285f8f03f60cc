"""Metrics against brute force and identities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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
