"""Values that were wrong once: each test names the report of a fault that it stands for."""

import copy
from contextlib import contextmanager
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from toys import LinearAutoEncoder, MaplessAutoEncoder, NearestImages

from skanomaly import AutoEncoder, PatchDetector, persistence
from skanomaly.segmenters import ResidualSegmenter
from skanomaly.staging import CentroidStager
from skanomaly.testing import all_detectors, make_images, tiny

#: netCDF's default fill value.
FILL = 9.96921e36

X = np.random.default_rng(0).random((60, 16, 16)).astype("f4") * 4095


def small(**parameters):
    options = {"hidden_size": 8, "width": 2, "max_epochs": 1, "random_state": 0, "device": "cpu"}
    return AutoEncoder(**options | parameters)


# Thresholds that stop being numbers.


@pytest.fixture(scope="module")
def fitted():
    return small(intensity_range=(0, 4095)).fit(X[:30])


@pytest.mark.parametrize("n", [12, 30])
def test_a_fill_value_among_the_images_to_calibrate_on_is_refused_by_name(fitted, n):
    """Fault 1: offset_ became nan (all flagged) or -inf (none flagged)."""
    detector, Y = copy.deepcopy(fitted), X[30 : 30 + n].copy()
    Y[7, 0, 0] = FILL
    before = detector.offset_, detector.pixel_offset_, detector.map_range_
    with pytest.raises(ValueError, match="image 7 of X is not finite"):
        detector.calibrate(Y)
    assert (detector.offset_, detector.pixel_offset_, detector.map_range_) == before


def test_an_image_beyond_float32_is_the_worst(fitted):
    """Fault 1: its score was -inf, which metrics refuse."""
    Y = X[:3].copy()
    Y[1, 2, 3] = FILL
    scores, worst = fitted.score_samples(Y), -float(np.finfo(np.float32).max)
    assert scores[1] == worst
    assert scores[[0, 2]].tolist() == fitted.score_samples(X[[0, 2]]).tolist()
    assert fitted.predict(Y)[1] == -1
    assert np.isfinite(fitted.anomaly_map(Y)).all()
    assert fitted.segment(Y, fill_holes=False)[1, 2, 3]
    assert [part[1][1] for part in fitted.iter_batches(Y)] == [worst]
    assert np.isfinite(fitted.score_components(Y)["residual"]).all()


@pytest.mark.parametrize("pooling", ["max", "mean", "top"])
def test_a_fill_value_ends_the_fit_of_a_patch_detector(pooling):
    """Fault 2: offset_ and pixel_offset_ became nan."""
    Y = make_images((10, 32, 32), "float32") * 4095
    Y[4, 0, 0] = FILL
    inner = small(intensity_range=(0, 4095))
    detector = PatchDetector(inner, patch_size=8, n_patches=1, random_state=1, pooling=pooling)
    with pytest.raises(ValueError, match="image 4 of X"):
        detector.fit(Y)
    assert not hasattr(detector, "offset_")
    detector.fit(Y[:4])
    with pytest.raises(ValueError, match="image 1 of X"):
        detector.calibrate(Y[3:])
    worst = -float(np.finfo(np.float32).max)
    assert (detector.score_samples(Y) == worst).tolist() == (np.arange(10) == 4).tolist()
    assert np.isfinite(detector.anomaly_map(Y)).all()
    assert detector.score_components(Y)["residual"][4] == -worst


def test_the_row_named_is_that_of_X():
    """Fault 1: known anomalies do not count, but keep their place."""
    Y = X[:12].copy()
    Y[9, 0, 0] = FILL
    with pytest.raises(FloatingPointError, match="image 9 of X"):
        NearestImages(intensity_range=(0, 4095)).fit(Y, np.r_[-np.ones(5), np.ones(7)])


def test_a_threshold_of_maps_is_a_number(fitted):
    """Fault 1, of ResidualSegmenter."""
    Y = X[:4].copy()
    Y[:, :8] = FILL
    segmenter = ResidualSegmenter(FrozenEstimator(fitted))
    with pytest.raises(ValueError, match="threshold_ would not be a finite number"):
        segmenter.fit(Y)
    assert not hasattr(segmenter, "threshold_")


@pytest.mark.filterwarnings("ignore")  # of KMeans, on the way to the error
def test_stages_are_of_finite_residuals():
    """Fault 1, of stagers: the distances overflow."""
    residuals = np.random.default_rng(0).random((8, 5), np.float32)
    residuals[3, 2] = 3e38
    with pytest.raises(ValueError, match="severity_|distances"):
        CentroidStager(random_state=0).fit(residuals)


class Measured(LinearAutoEncoder):
    """Its network has a statistic that is not finite."""

    def _build(self, image_shape):
        network = super()._build(image_shape)
        network.register_buffer("spread", torch.ones(2))
        return network

    def _measure(self, network, images):
        network.spread[1] = torch.inf


def test_a_statistic_that_is_not_finite_ends_the_fit():
    """Fault 1: of what is measured."""
    with pytest.raises(FloatingPointError, match="spread would not be a finite number"):
        Measured(random_state=0).fit(X)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset_", np.nan),
        ("offset_", -np.inf),
        ("pixel_offset_", np.inf),
        ("map_range_", (0.0, np.inf)),
        ("map_range_", (np.nan, 1.0)),
    ],
)
def test_save_refuses_what_load_would_refuse(fitted, tmp_path, name, value):
    """Fault 1: the file could not be read again."""
    detector = copy.deepcopy(fitted)
    setattr(detector, name, value)
    with pytest.raises(ValueError, match=f"{name} cannot be"):
        persistence.save(detector, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_detector_without_maps_is_saved(tmp_path):
    """Fault 1: pixel_offset_ of nan stays legal where there is no map."""
    detector = MaplessAutoEncoder(random_state=0).fit(X)
    persistence.save(detector, tmp_path / "file")
    loaded = persistence.load(tmp_path / "file", types=[MaplessAutoEncoder])
    assert np.isnan([loaded.pixel_offset_, *loaded.map_range_]).all()


@given(
    power=st.floats(-30, 38.5),
    sign=st.sampled_from([-1, 1]),
    row=st.integers(0, 11),
    unit=st.floats(-3, 30),
)
def test_thresholds_are_finite_whatever_the_images_hold(power, sign, row, unit):
    """Fault 1: a fit or a calibration gives finite thresholds, or fails and changes nothing."""
    Y = X[:12].copy()
    Y[row, 3, 5] = sign * 10**power
    detector = NearestImages(intensity_range=(-(10**unit), 10**unit))
    for judge in (detector.fit, detector.calibrate):
        before = dict(vars(detector))
        try:
            judge(Y, **{} if judge == detector.fit else {"false_alarm_rate": 0.2})
        except ValueError:
            assert vars(detector) == before
        else:
            assert np.isfinite([detector.offset_, detector.pixel_offset_, *detector.map_range_]).all()
            assert np.isfinite(detector.score_samples(X[:3])).all()
        if not hasattr(detector, "offset_"):
            return


# Outputs.


def test_out_must_hold_the_result(fitted, tmp_path):
    """Fault 7: maps up to 1.41 were cut to 0 and 1 in a memmap of numpy's default dtype, uint8."""
    disk = np.memmap(tmp_path / "maps", mode="w+", shape=(9, 16, 16))
    patches = PatchDetector(small(), patch_size=8, random_state=0).fit(X[:4])
    for fill in (fitted.anomaly_map, patches.anomaly_map, fitted.reconstruct):
        with pytest.raises(TypeError, match="out must .* float32, got dtype uint8"):
            fill(X[:9], out=disk)
    assert not disk.any(), "written to"
    for wrong, error in (([], TypeError), (torch.empty(9, 16, 16), TypeError), (disk[:8], ValueError)):
        with pytest.raises(error, match="^out must"):
            fitted.anomaly_map(X[:9], out=wrong)
    still = np.empty((9, 16, 16), "f4")
    still.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable"):
        fitted.segment(X[:9], out=still)


@given(dtype=st.sampled_from([*"?bBhHiIlLqQefdgFDSUOMm"]))
def test_out_is_right_or_refused(fitted, dtype):
    """Fault 7: maps that are written are those that are returned."""
    out = np.zeros((3, 16, 16), dtype)
    maps = fitted.anomaly_map(X[:3])
    try:
        fitted.anomaly_map(X[:3], out=out)
    except TypeError:
        assert (out == np.zeros((3, 16, 16), dtype)).all()
    else:
        assert_allclose(out.astype(complex), maps, rtol=2e-3, atol=1e-4)


# The modes of torch.


@contextmanager
def double_precision():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() is torch.float64, "not restored"
    finally:
        torch.set_default_dtype(torch.float32)


MODES = double_precision, torch.no_grad, torch.inference_mode


@pytest.mark.parametrize("cls", [cls for _, cls in all_detectors()])
def test_the_modes_of_torch_change_nothing(cls, tmp_path):
    """Faults 8 and 9: fit, score, save and load failed, or said what was not so."""
    images = make_images()
    detector = tiny(cls)
    fitted, file = clone(detector).fit(images), tmp_path / "file"
    scores, components = fitted.score_samples(images), fitted.score_components(images)
    for mode in MODES:
        with mode():
            again = clone(detector).fit(images)
            assert_array_equal(again.score_samples(images), scores)
            for name, values in fitted.score_components(images).items():
                assert_array_equal(values, components[name])
            assert_array_equal(again.anomaly_map(images), fitted.anomaly_map(images))
            persistence.save(again, file)
            loaded = persistence.load(file)
            assert_array_equal(loaded.score_samples(images), scores)
        assert_array_equal(loaded.score_samples(images), scores)
        assert_array_equal(again.score_samples(images), scores)
        assert all(parameter.grad is None for parameter in again.network_.parameters())


def test_batches_leave_the_modes_of_torch_alone(fitted):
    """Fault 8: between batches, and after an error, the caller has its own modes."""
    with double_precision(), torch.no_grad():
        batches = fitted.iter_batches(np.concatenate([X, X]))
        next(batches)
        assert torch.get_default_dtype() is torch.float64
        assert not torch.is_grad_enabled()
        batches.close()
        with pytest.raises(ValueError, match="NaN"):
            fitted.score_samples(X * np.float32("nan"))
        with pytest.raises(ValueError, match="NaN"):
            small().fit(X * np.float32("nan"))
        assert torch.get_default_dtype() is torch.float64
        assert not torch.is_grad_enabled()


def test_threads_leave_the_default_type_alone(fitted):
    """Fault 8: the default type is one for all threads."""
    expected, found = fitted.score_samples(X), []
    with double_precision():
        threads = [Thread(target=lambda: found.append(fitted.score_samples(X))) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert len(found) == 8
    assert all((scores == expected).all() for scores in found)


def test_gradients_are_freed():
    """Fault 16: those of the last step took as much memory as the weights."""
    detector = LinearAutoEncoder(random_state=0).fit(X)
    assert all(parameter.grad is None for parameter in detector.network_.parameters())
