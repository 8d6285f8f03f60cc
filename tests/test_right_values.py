"""Values that were wrong once: each test names the report of a fault that it stands for."""

import copy
import pickle
import re
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import dask.array
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from toys import LinearAutoEncoder, MaplessAutoEncoder, NearestImages

from skanomaly import VAE, AutoEncoder, FeatureGaussian, PatchDetector, anomaly_map, persistence
from skanomaly._random import seeded
from skanomaly.base import Judgement
from skanomaly.layers import GraphLayerExtractor, UNetLayerExtractor
from skanomaly.metrics import classification_metrics
from skanomaly.model_selection import AnomalyScorer, NormalOnlyKFold
from skanomaly.patches import extract_patches
from skanomaly.plotting import AnomalyMapDisplay
from skanomaly.preprocessing import MatchHistogram, Resize
from skanomaly.segmentation import residual_mask
from skanomaly.segmenters import ResidualSegmenter
from skanomaly.staging import AnomalyStager, CentroidStager
from skanomaly.testing import SliceOnly, all_detectors, make_images, tiny

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


class Spoilt(NearestImages):
    """Scores are finite whatever the maps are."""

    def _judge(self, network, x):
        maps = super()._judge(network, x).map
        return Judgement(maps.clamp(max=1e9).mean((1, 2)), maps)


def test_an_image_whose_map_alone_is_not_finite_is_named():
    """Fault 1: one pixel of many leaves the quantiles of all finite."""
    detector, Y = Spoilt().fit(X[:12]), X[12:24].copy()
    Y[7, 0, 0] = FILL
    assert np.isfinite(detector.score_samples(Y)).all()
    with pytest.raises(ValueError, match="image 7 of X is not finite"):
        detector.calibrate(Y)


def test_a_threshold_of_maps_is_a_number(fitted):
    """Fault 1, of ResidualSegmenter."""
    Y = X[:4].copy()
    Y[:, :8] = FILL
    segmenter = ResidualSegmenter(FrozenEstimator(fitted))
    with pytest.raises(ValueError, match="threshold_ is no finite number"):
        segmenter.fit(Y)
    assert not hasattr(segmenter, "threshold_")


def test_a_colour_scale_is_a_number(fitted):
    """Fault 1, of displays: each map would get a scale of its own."""
    display = AnomalyMapDisplay(X[:2], X[:2], X[:2] > 9, map_range=(0.0, np.nan))
    with pytest.raises(ValueError, match="map_range is no finite number"):
        display.plot()
    display = AnomalyMapDisplay(X[:2], X[:2], X[:2] > 9, map_range=(0, 1), intensity_range=(0, np.nan))
    with pytest.raises(ValueError, match="intensity_range is no finite number"):
        display.plot()


def test_a_threshold_that_is_given_is_a_number():
    """Fault 1: nothing was above nan, so that no pixel and no image was flagged."""
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        residual_mask(X[:2], np.nan)
    with pytest.raises(ValueError, match="threshold must be a number or 'youden', got nan"):
        classification_metrics([1, -1], [0.1, 0.2], threshold=np.nan)


def test_quantiles_of_a_histogram_are_numbers():
    """Fault 1: images near the end of float64 gave quantiles that were infinite."""
    with pytest.raises(ValueError, match="quantiles_ is no finite number"):
        MatchHistogram(8).fit(np.full((4, 16, 16), 1.7e308))


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
    with pytest.raises(FloatingPointError, match="spread is no finite number"):
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


def test_save_refuses_weights_that_load_would_refuse(fitted, tmp_path):
    """Fault 1: a weight of nan gave every image the worst score there is."""
    detector = copy.deepcopy(fitted)
    name, weight = next(detector.network_.named_parameters())
    weight.data.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"{name} is no finite number"):
        persistence.save(detector, tmp_path / "file")


def test_save_refuses_parameters_that_load_would_refuse(fitted, tmp_path):
    """Fault 1: fitted or not, the file could not be read again."""
    for detector in (copy.deepcopy(fitted), small()):
        with pytest.raises(ValueError, match="'contamination' parameter of AutoEncoder"):
            persistence.save(detector.set_params(contamination=2), tmp_path / "file")


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
        with pytest.raises(TypeError, match="out must hold float32, got dtype uint8"):
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


def test_out_of_a_pipeline_is_held_to_the_same():
    """Fault 7: maps that steps brought back were cut to 0 and 1, or copied into a larger array."""
    pipeline = make_pipeline(Resize(8), small()).fit(X[:8])
    out = np.empty((8, 16, 16), "f8")
    assert anomaly_map(pipeline, X[:8], out=out) is out
    assert_array_equal(out, anomaly_map(pipeline, X[:8]))
    for wrong, error in (np.zeros(out.shape, "u1"), TypeError), (np.zeros((2, 8, 16, 16)), ValueError):
        with pytest.raises(error, match="^out must"):
            anomaly_map(pipeline, X[:8], out=wrong)
        assert not wrong.any()


def test_half_precision_cannot_hold_all_of_16_bits(fitted):
    """Fault 7: intensities beyond 65,504 became infinite in float16, without an error."""
    with pytest.raises(TypeError, match="out must hold float32, got dtype float16"):
        fitted.reconstruct(X[:3], out=np.empty((3, 16, 16), "f2"))


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
            if np.isfinite(fitted.pixel_offset_):  # else the method has no maps
                assert_array_equal(again.anomaly_map(images), fitted.anomaly_map(images))
            persistence.save(again, file)
            loaded, copied = persistence.load(file), pickle.loads(pickle.dumps(fitted))
            assert_array_equal(copied.score_samples(images), scores)
            assert_array_equal(loaded.score_samples(images), scores)
        assert_array_equal(loaded.score_samples(images), scores)
        assert_array_equal(copied.score_samples(images), scores)
        assert_array_equal(again.score_samples(images), scores)
        assert all(parameter.grad is None for parameter in again.network_.parameters())


@pytest.mark.parametrize(
    "mode",
    [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")],
    ids=["auto", "meta"],
)
@pytest.mark.parametrize("cls", [AutoEncoder, VAE, FeatureGaussian])
def test_autocast_and_the_default_device_change_nothing(cls, mode, tmp_path):
    """Fault 8: scores were those of bfloat16, and fit and load failed where the device was another."""
    images, detector = make_images(), tiny(cls)
    scores = clone(detector).fit(images).score_samples(images)
    with mode():
        again = clone(detector).fit(images)
        assert_array_equal(again.score_samples(images), scores)
        persistence.save(again, tmp_path / "file")
        assert_array_equal(persistence.load(tmp_path / "file").score_samples(images), scores)
        assert torch.is_autocast_enabled("cpu") or torch.get_default_device().type == "meta"


def test_a_seed_does_not_turn_gradients_on():
    """Fault 8: a validation loss is drawn without them."""
    with torch.no_grad(), double_precision(), seeded(0):
        assert not torch.is_grad_enabled()
        assert torch.rand(1).dtype is torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_layers_are_learned_in_any_mode(mode):
    """Fault 8, of the extractor of layers."""
    scans, layers = make_images((4, 16, 16)), np.repeat([0, 1, 2, 3], 4)[None, :, None].repeat(4, 0)
    extractor = UNetLayerExtractor(width=2, max_epochs=1, random_state=0)
    expected = extractor.fit(scans, layers, X_target=scans[:2]).predict(scans)
    with mode():
        assert_array_equal(extractor.fit(scans, layers, X_target=scans[:2]).predict(scans), expected)
    assert all(parameter.grad is None for parameter in extractor.network_.parameters())


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


# What an array says, and what it holds.


class Scaled:
    """A file of scaled integers, as nibabel reads it: it names the dtype of the file, and gives floats."""

    def __init__(self, stored):
        self.stored = stored
        self.shape, self.dtype = stored.shape, stored.dtype

    def __getitem__(self, rows):
        return self.stored[rows] / 255


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("detector", [NearestImages(), tiny(PatchDetector)])
def test_the_dtype_is_that_of_the_values(detector, dtype):
    """Fault 5: values from 0 to 1 got the range (0, 255), and the network saw a constant."""
    lazy = Scaled(make_images().astype(dtype))
    array = lazy[0:12]
    a, b = (clone(detector).fit(images) for images in (lazy, array))
    assert a.intensity_range_ == b.intensity_range_ == (array.min(), array.max())
    assert_array_equal(a.score_samples(lazy), b.score_samples(array))
    assert_array_equal(a.score_samples(array), b.score_samples(lazy))


def test_blocks_of_a_lazy_source_have_one_dtype():
    """Fault 5: a source whose dtype changes is refused, with both."""
    with pytest.raises(TypeError, match="float64 for .* and float32 for"):
        NearestImages().fit(Scaled(make_images())).score_samples(Changing(make_images()))
    with pytest.raises(TypeError, match="float64 for .* and float32 for"):
        NearestImages().fit(Changing(make_images((300, 8, 8))))


class Changing(Scaled):
    """Doubles for one row, singles for more."""

    def __getitem__(self, rows):
        block = super().__getitem__(rows)
        return block if len(block) == 1 else block.astype("f4")


class Masked(Scaled):
    """netCDF4 gives masked arrays."""

    def __getitem__(self, rows):
        return np.ma.masked_greater(super().__getitem__(rows), 0.9)


def test_masked_values_are_refused(fitted):
    """Fault 10: what lies below the mask was read."""
    images = np.ma.masked_greater(X, 4000)
    for source in (images, list(images), Masked(make_images())):
        with pytest.raises(TypeError, match=r"X has masked values.*X.filled\(value\)"):
            small().fit(source)
    with pytest.raises(TypeError, match="masked values"):
        fitted.score_samples(images)
    with pytest.raises(TypeError, match="masked values"):
        fitted.score_samples(dask.array.from_array(images, chunks=(6, 16, 16)))
    whole = np.ma.array(X, mask=np.zeros(X.shape, bool))
    assert_array_equal(fitted.score_samples(whole), fitted.score_samples(X))


@pytest.mark.parametrize("holder", [ResidualSegmenter, AnomalyStager])
def test_rows_are_taken_with_their_masks(fitted, holder):
    """Fault 10: with a frozen detector, rows were taken by y before the mask was seen."""
    y = np.where(np.arange(12) < 6, -1, 1)
    for source in np.ma.masked_greater(X[:12], 4000), Masked(X[:12]):
        with pytest.raises(TypeError, match="masked values"):
            holder(FrozenEstimator(fitted)).fit(source, y)


@pytest.mark.parametrize("kind", ["bfloat16", "gradient"])
def test_rows_are_taken_of_any_tensor(fitted, kind):
    """Rows were taken by numpy, which refuses such tensors."""
    tensor, y = torch.from_numpy(X[:12].copy()), np.where(np.arange(12) < 6, -1, 1)
    tensor = tensor.bfloat16() if kind == "bfloat16" else tensor.requires_grad_()
    segmenter = ResidualSegmenter(FrozenEstimator(fitted))
    of_rows = segmenter.fit(tensor[6:]).threshold_
    assert segmenter.fit(tensor, y).threshold_ == of_rows


def test_masked_scans_and_layers_are_refused():
    """Fault 10: layers were found in, and learned from, what lies below the mask."""
    scans, layers = X[:4], np.repeat(np.arange(16)[:, None] // 4, 16, 1)[None].repeat(4, 0)
    masked = np.ma.masked_greater(scans, 4000)
    extractor = UNetLayerExtractor(width=2, max_epochs=1)
    for name, fit in {
        "X": lambda: GraphLayerExtractor().fit(masked),
        "X ": lambda: extractor.fit(masked, layers),
        "y": lambda: extractor.fit(scans, np.ma.masked_equal(layers, 2)),
        "X_target": lambda: extractor.fit(scans, layers, X_target=masked),
    }.items():
        with pytest.raises(TypeError, match=f"^{name.strip()} must be a plain array"):
            fit()
    with pytest.raises(TypeError, match="^maps must be a plain array"):
        residual_mask(masked, 0.5)


def test_a_hot_pixel_that_sets_the_range_warns():
    """Fault 11: AUROC .75 became .27."""
    images = np.random.default_rng(0).integers(0, 4096, (30, 16, 16), dtype=np.uint16)
    NearestImages().fit(images)
    images[0, 0, 0] = 65535
    for source in (images, list(images), SliceOnly(images), images.astype("f8")):
        with pytest.warns(
            UserWarning, match=r"99.9 % .*65535\).* set intensity_range=\(low, high\)"
        ) as warned:
            NearestImages().fit(source)
        assert {warning.filename for warning in warned} == {__file__}
    several = [*images, images[0, :12]]
    with pytest.warns(UserWarning, match=r"99.9 %"):
        PatchDetector(small(), patch_size=8, random_state=0).fit(several)
    NearestImages(intensity_range=(0, 4095)).fit(images)
    NearestImages().fit(images, np.r_[-1, np.ones(29)])


@pytest.mark.parametrize("shape", [(32, 24, 3), (32, 24, 1)])
def test_an_image_shape_with_channels_last_is_refused(shape):
    """Fault 12: (32, 24, 3) was taken for 32 channels of 24 x 3 pixels."""
    rows = make_images((10, np.prod(shape)))
    with pytest.raises(ValueError, match=r"image_shape is \(C, H, W\), and .* seems to be \(H, W, C\)"):
        NearestImages(image_shape=shape).fit(rows)
    detector = NearestImages().fit(rows.reshape(-1, *shape))
    assert detector.anomaly_map(rows.reshape(-1, *shape)).shape == (10, 32, 24)


def test_one_image_is_told_to_be_a_batch():
    """Fault 15: the message was about features."""
    images = make_images((9, 22, 13))
    colour = make_images((9, 22, 13, 3))
    patches = PatchDetector(small(), patch_size=8, random_state=0).fit(images)
    for detector, one in (
        (NearestImages().fit(images), images[0]),
        (NearestImages().fit(images), torch.from_numpy(images[0])),
        (NearestImages().fit(images), Image.fromarray(images[0])),
        (NearestImages().fit(make_images()), make_images()[0]),
        (NearestImages().fit(colour), colour[0]),
        (NearestImages().fit(colour[..., :1]), colour[0, ..., :1]),
        (patches, images[0]),
        (patches, images[0].T),
    ):
        with pytest.raises(ValueError, match=r"one image of shape .* give X\[None\]"):
            detector.predict(one)
    rows = NearestImages(image_shape=(4, 4)).fit(make_images((9, 16)))
    assert rows.predict(make_images((4, 16))).shape == (4,)


BIG = [np.random.default_rng(i).random(shape).astype("f4") for i, shape in enumerate([(40, 36), (33, 50)])]


def objects(images):
    made = np.empty(len(images), object)
    made[:] = images
    return made


CONTAINERS = {
    "tuple": tuple,
    "tensors": lambda images: [torch.from_numpy(image) for image in images],
    "PIL": lambda images: [Image.fromarray(image) for image in images],
    "objects": objects,
    "tensors in objects": lambda images: objects([torch.from_numpy(image) for image in images]),
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_of_images_that_differ_in_size(container):
    """Fault 18: only lists of ndarrays were read."""
    detector = PatchDetector(small(), patch_size=16, n_patches=2, random_state=0).fit(BIG)
    expected = detector.score_samples(BIG)
    assert_array_equal(detector.score_samples(container(BIG)), expected)
    assert_array_equal(clone(detector).fit(container(BIG)).score_samples(BIG), expected)
    patches = extract_patches(container(BIG), patch_size=16, random_state=0)
    assert_array_equal(patches.images, extract_patches(BIG, patch_size=16, random_state=0).images)
    with pytest.raises(ValueError, match=r"must have one shape, got \(33, 50\), \(40, 36\).*PatchDetector"):
        small().fit(container(BIG))


@given(
    name=st.sampled_from(
        [*CONTAINERS, "array", "lazy", "Fortran", "strided", "read-only", "tensor", "nested"]
    ),
    dtype=st.sampled_from(["uint8", "int16", "int32", "float16", "float32", "float64"]),
    size=st.sampled_from([(5, 7), (1, 9), (8, 8), (6, 5, 3)]),
)
def test_containers_of_equal_values_give_equal_bits(name, dtype, size):
    """Fault 18: any container of the same values gives the same bits, or says what it lacks."""
    images = make_images((6, *size), dtype)
    given = {
        "array": np.array,
        "lazy": SliceOnly,
        "Fortran": np.asfortranarray,
        "strided": lambda images: np.repeat(images, 2, 0)[::2],
        "read-only": lambda images: np.frombuffer(images.tobytes(), images.dtype).reshape(images.shape),
        "tensor": torch.from_numpy,
        "nested": lambda images: [image.tolist() for image in images],
        **CONTAINERS,
    }[name]
    expected = NearestImages().fit(images)
    try:
        other = given(images)
    except (TypeError, ValueError):  # PIL has no such image
        return
    if name == "nested" and dtype != "float64":
        return  # lists of numbers have the types of Python
    fitted = NearestImages().fit(other)
    assert fitted.intensity_range_ == expected.intensity_range_
    if name == "PIL" and np.asarray(other[0]).dtype != images.dtype:
        return
    assert_array_equal(fitted.score_samples(other), expected.score_samples(images))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("scans", TypeError, r"got the path 'scans'; give skanomaly.io.read_folder\(X\)"),
        (Path("scans"), TypeError, r"read_folder\(X\)"),
        (
            [Path(f"scans/{i}.png") for i in range(300)],
            TypeError,
            r"got the path 'scans.0.png'.*ImageFiles\(X\)$",
        ),
        (np.array(["a.png", "b.png"]), TypeError, "got the path 'a.png'"),
        (pd.Series(["a.png", "b.png"]), TypeError, "got the path 'a.png'"),
        (
            make_images((8, 3, 16, 16)),
            ValueError,
            "images of 3 channels, or volumes of 3 slices; .*channel_axis=1",
        ),
        (make_images((8, 16, 16, 4)), ValueError, r"alpha of RGBA.*X\[..., :3\].*channel_axis=-1"),
        ([Image.new("RGBA", (9, 8))] * 3, ValueError, "alpha of RGBA"),
        ([Image.new("LA", (9, 8))] * 3, ValueError, r"mode 'LA'.*convert\('L'\)"),
        ([Image.new("P", (9, 8))] * 3, ValueError, r"mode 'P'.*convert\('RGB'\)"),
        (
            [np.zeros((4, 4), "u1"), np.zeros((4, 4), "f4")],
            ValueError,
            r"one dtype, got \['float32', 'uint8'\]",
        ),
        (dask.array.from_array(X)[dask.array.from_array(X[:, 0, 0] > 9)], ValueError, "compute_chunk_sizes"),
    ],
    # Not of X: pictures show their addresses, and workers must agree on names.
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "X"),
)
def test_X_that_needs_a_word_is_asked_for_it(given, error, words):
    """Smaller faults: folders, lists of paths, volumes, alpha, palettes, dask of unknown length."""
    with pytest.raises(error, match=words) as raised:
        NearestImages().fit(given)
    assert len(str(raised.value)) < 400


def test_what_the_user_names_is_not_asked_for():
    """Smaller faults: channel_axis, image_shape or a tensor say what the axes are, and so does the fit."""
    X = make_images((8, 3, 16, 16))
    expected = NearestImages(channel_axis=1).fit(X)
    for detector, source in (
        (NearestImages(), torch.from_numpy(X)),
        (NearestImages(), [torch.from_numpy(x) for x in X]),
        (NearestImages(image_shape=(3, 16, 16)), X),
        (NearestImages(), X.transpose(0, 2, 3, 1)),
    ):
        assert_array_equal(detector.fit(source).score_samples(X), expected.score_samples(X))
    assert NearestImages(channel_axis=-1).fit(make_images((8, 16, 16, 4))).image_shape_ == (4, 16, 16)


def test_bfloat16():
    """Smaller faults: "Got unsupported ScalarType BFloat16"."""
    tensor = torch.from_numpy(X).bfloat16()
    detector = NearestImages().fit(tensor)
    assert_array_equal(detector.score_samples(tensor), detector.score_samples(tensor.float().numpy()))


def test_nan_is_called_so_where_scikit_learn_looks_away(fitted):
    """Smaller faults: with assume_finite it was called too large for (inf, -inf)."""
    images = X[:12].copy()
    images[3, 0, 0] = np.nan
    with config_context(assume_finite=True):
        for call in (small().fit, fitted.score_samples):
            with pytest.raises(ValueError, match="X contains NaN"):
                call(images)


def test_equal_or_constant_training_images_warn():
    """Smaller faults: 32 identical images, whose errors after training are not those of training."""
    scan = make_images()[0]
    for images in ([scan] * 8, SliceOnly(np.stack([scan] * 8)), torch.from_numpy(np.stack([scan] * 8))):
        with pytest.warns(UserWarning, match="all 8 training images are equal") as warned:
            NearestImages().fit(images)
        assert {warning.filename for warning in warned} == {__file__}
    flat = np.arange(8, dtype="f4")[:, None, None] + np.zeros((8, 5, 5), "f4")
    with pytest.warns(UserWarning, match="training images are constant"):
        NearestImages().fit(flat)
    with pytest.warns(UserWarning, match="all 2 training images are equal"):
        NearestImages().fit(np.stack([scan, scan, scan + 1]), [1, 1, -1])
    NearestImages().fit(flat[:, 0, :1])  # rows of one number
    with pytest.warns(UserWarning, match="all 8 training images are equal"):
        PatchDetector(small(), patch_size=8, n_patches=1, random_state=0).fit([scan] * 8)


# Files.

A = np.random.default_rng(0).random((5, 3))


class Holder(NearestImages):
    """A detector of one's own, with a fitted attribute."""


def saved(tmp_path, value):
    detector = Holder().fit(X[:4])
    detector.components_ = value
    persistence.save(detector, tmp_path / "file")
    return persistence.load(tmp_path / "file", types=[Holder]).components_


@pytest.mark.parametrize(
    "value",
    [
        A[::-1],
        A[:, ::-1],
        A.astype(">f8"),
        (A * 9).astype(">i2")[::-2],
        np.asfortranarray(A),
        A[::2, ::2],
        A[0, 0:1].reshape(()),
        A[:0],
        np.array(["a", "bcd", "\u00e9\U0001f600"]),
        np.array([["a", "b"], ["c", ""]]).T,
        np.array("word"),
        np.array([], dtype="U3"),
        np.array(["x", "y"], dtype=object),
        np.ma.array(A),
    ],
    ids=lambda value: f"{value.dtype.str} {value.shape} {value.strides}",
)
def test_arrays_are_saved_as_they_are(tmp_path, value):
    """Fault 14: negative strides and foreign bytes were torch's own errors, and strings became objects."""
    found = saved(tmp_path, value)
    assert_array_equal(found, value)
    assert found.dtype == value.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "value",
    [
        A + 1j,
        A.astype("longdouble"),
        np.array(["2020-01-01"], "M8[D]"),
        np.ma.masked_greater(A, 0.5),
        np.array([1, None, "a"], dtype=object),
        np.zeros(2, "f4,i4"),
        torch.zeros(2, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
        {"deep": [1, A + 1j]},
        [slice(3)],
        1 + 1j,
        np.complex64(1),
        {1 + 1j, "a"},
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_what_cannot_be_saved_is_named(tmp_path, value):
    """Fault 14: the errors were raw, and a mask was lost."""
    with pytest.raises(TypeError, match="components_.*cannot be saved"):
        saved(tmp_path, value)
    assert not list(tmp_path.iterdir())


def test_a_set_of_several_types_is_saved(tmp_path):
    """Fault 14: its members were compared with each other, and the error named no attribute."""
    assert saved(tmp_path, {1, "a", None}) == {1, "a", None}


def test_a_folder_that_is_not_there(tmp_path, monkeypatch, fitted):
    """Smaller faults: the error named a file "....unfinished", and "~" was a folder."""
    with pytest.raises(FileNotFoundError, match="there is no folder .*absent' to write 'file' to$"):
        persistence.save(fitted, tmp_path / "absent" / "file")
    monkeypatch.setenv("HOME", str(tmp_path))
    persistence.save(fitted, "~/file")
    assert (tmp_path / "file").exists()
    assert_array_equal(persistence.load("~/file").score_samples(X), fitted.score_samples(X))
    LinearAutoEncoder(checkpoint_dir="~/states", random_state=0).fit(X)
    assert list((tmp_path / "states").iterdir())


# The guide.


class ZarrLike:
    """As zarr 3: rows are taken by slices, and by `oindex`."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.oindex = self

    def __getitem__(self, rows):
        if isinstance(rows, tuple):
            raise TypeError("truth value of an array")
        return self.values[rows]


def test_the_wrapper_of_the_guide_searches_over_zarr():
    """Fault 17: anything that splits failed."""
    guide = (Path(__file__).parents[1] / "doc" / "guide" / "scaling.rst").read_text()
    wrapper = re.search(r">>> class Rows:.*?(?=\n\n)", guide, re.DOTALL)[0]
    exec(re.sub(r"^(>>>|\.\.\.) ", "", wrapper, flags=re.MULTILINE), namespace := {"np": np})
    images, y = make_images((24, 8, 8)), np.repeat([1, -1], 12)
    images[12:, 2:5, 2:5] = 255
    cv, scoring = NormalOnlyKFold(2, random_state=0), AnomalyScorer()
    expected = cross_val_score(NearestImages(), images, y, cv=cv, scoring=scoring)
    source = ZarrLike(images)
    with pytest.raises(TypeError, match="truth value"):
        cross_val_score(NearestImages(), source, y, cv=cv, scoring=scoring)
    found = cross_val_score(NearestImages(), namespace["Rows"](source), y, cv=cv, scoring=scoring)
    assert_array_equal(found, expected)
