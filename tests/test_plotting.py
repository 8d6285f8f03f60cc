import numpy as np
import pytest
from matplotlib import pyplot as plt
from numpy.testing import assert_allclose
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skanomaly import AutoEncoder
from skanomaly.plotting import AnomalyMapDisplay, ScoreHistogramDisplay
from skanomaly.testing import SliceOnly, make_images, tiny


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def fitted(shape=(12, 16, 16)):
    channel_axis = 1 if shape[1] == 2 else "auto"
    return tiny(AutoEncoder, channel_axis=channel_axis).fit(make_images(shape))


def test_maps_share_the_scale_of_training():
    detector = fitted()
    X = make_images((3, 16, 16), seed=1)
    display = AnomalyMapDisplay.from_estimator(detector, X, true_masks=X > 128)
    assert display.axes_.shape == (3, 4)
    for row, image in zip(display.axes_, X):
        drawn = [ax.get_images()[0] for ax in row]
        assert drawn[2].get_clim() == detector.map_range_
        assert_allclose(drawn[0].get_array(), image / 255)
        assert {d.get_clim() for d in drawn[:2]} == {(0, 1)}
    assert [ax.get_title() for ax in display.axes_[0]] == ["image", "reconstruction", "anomaly map", "mask"]
    alone = AnomalyMapDisplay.from_estimator(detector, X[:1])
    assert alone.axes_[0, 2].get_images()[0].get_clim() == detector.map_range_


@pytest.mark.parametrize("shape", [(12, 16, 16, 3), (12, 2, 16, 16), (12, 40)])
def test_layouts(shape):
    X = make_images(shape)
    display = AnomalyMapDisplay.from_estimator(fitted(shape), X[:2], titles=["a", "b"])
    assert display.axes_[1, 0].get_ylabel() == "b"


def test_pipelines_and_given_axes():
    pipeline = make_pipeline(FunctionTransformer(), tiny(AutoEncoder)).fit(make_images())
    _, axes = plt.subplots(2, 4)
    display = AnomalyMapDisplay.from_estimator(pipeline, make_images()[:2], axes=axes, min_size=3)
    assert display.figure_ is axes[0, 0].figure


def test_lazy_images():
    X = SliceOnly(make_images((2, 16, 16)))
    assert AnomalyMapDisplay.from_estimator(fitted(), X).axes_.shape == (2, 4)


def test_arrays_alone():
    X = make_images((2, 8, 8))
    display = AnomalyMapDisplay(X, X / 255, X > 200, map_range=(0, 1)).plot()
    assert display.axes_.shape == (2, 3)


def test_soft_and_masked_masks():
    X = make_images((2, 8, 8))
    kinds = {
        "soft": (ValueError, X / 255, "masks must hold booleans"),
        "masked": (TypeError, np.ma.array(X > 200), "masks must be a plain array"),
    }
    for error, bad, words in kinds.values():
        with pytest.raises(error, match=f"^{words}"):
            AnomalyMapDisplay(X, X / 255, bad, map_range=(0, 1)).plot()
        with pytest.raises(error, match=f"^true_{words}"):
            AnomalyMapDisplay(X, X / 255, X > 200, true_masks=bad, map_range=(0, 1)).plot()
    AnomalyMapDisplay(X, X / 255, (X > 200).astype(float), true_masks=X > 99, map_range=(0, 1)).plot()


def test_infinite_scores_are_drawn_at_the_ends():
    y, score = [1, 1, -1, -1], np.array([0.0, -np.inf, 1.0, np.inf])
    drawn = ScoreHistogramDisplay.from_predictions(y, score)
    expected = ScoreHistogramDisplay.from_predictions(y, np.clip(score, 0, 1))
    heights = [[bar.get_height() for bar in display.ax_.patches] for display in (drawn, expected)]
    assert heights[0] == heights[1]
    ScoreHistogramDisplay.from_predictions([1, -1], [np.inf, np.inf])
    with pytest.raises(ValueError, match="anomaly_score must hold numbers, got nan in 1 of 4 places"):
        ScoreHistogramDisplay.from_predictions(y, [0.0, np.nan, 1.0, 2.0])


def test_histograms():
    detector, X = fitted(), make_images((30, 16, 16), seed=1)
    y = np.r_[np.ones(15), -np.ones(10), np.zeros(5)]
    display = ScoreHistogramDisplay.from_estimator(detector, X, y)
    assert display.ax_.lines[0].get_xdata()[0] == -detector.offset_
    assert [t.get_text() for t in display.ax_.get_legend().get_texts()] == [
        "normal (15)",
        "anomalous (10)",
        "threshold",
    ]
    areas = [sum(bar.get_width() * bar.get_height() for bar in bars) for bars in display.ax_.containers]
    assert_allclose(areas, 1)
    assert len(ScoreHistogramDisplay.from_predictions([-1, -1], [0.2, 0.4]).ax_.containers) == 1
    with pytest.raises(ValueError, match="anomaly_label=-1 never occurs"):
        ScoreHistogramDisplay.from_predictions([1, 0], [0.2, 0.4])
    _, ax = plt.subplots()
    assert ScoreHistogramDisplay.from_predictions([0, 1], [0.2, 0.4], anomaly_label=1, ax=ax).ax_ is ax
