"""Discovery of detectors, and checks that every detector must pass, also a detector of your own.

Run `check_estimator` of scikit-learn first. The checks here test what it does not know: images, maps, masks,
thresholds and reproducibility. Each check takes an unfitted detector that trains in well under a second, such
as `tiny` makes, and raises an error if something is wrong.
"""

import copy
import inspect
import pickle
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.callbacks import Callback

from . import _unwrap, persistence
from ._discovery import all_detectors as all_detectors
from .labels import LabelWarning
from .model_selection import NormalOnlyKFold

#: Fields at the head of a detector's Notes, of which the table of methods is made.
METHOD_FIELDS = "Family", "Trained on", "Score", "Map", "Departures"

DTYPES = "uint8", "uint16", "int16", "int64", "float16", "float32", "float64"


def tiny(detector_class, **parameters):
    """Small detector of a class, for tests: a single epoch for each stage, and few units and channels.

    Parameters
    ----------
    detector_class : type
        A public detector.
    **parameters : dict
        Parameters that get these values instead of small ones.

    Returns
    -------
    detector : BaseDetector
        Detector that is not fitted.
    """
    names = inspect.signature(detector_class).parameters
    small = {
        "width": 2,
        "hidden_size": 16,  # below 16, the last bit of a score depends on the order of rows
        "latent_size": 2,
        "n_slots": 8,
        "n_codes": 8,
        "input_size": 16,
        "bank_size": 40,
        "batch_size": 8,
        "n_critic": 1,
        "n_search": 3,
        "n_members": 2,
        "refinement_width": 8,
        "patch_sizes": (17,),
        "n_features": 4,
        "random_state": 0,
    }
    small |= {name: 1 for name in names if name.endswith("_epochs")}
    if "input_size" in names:  # the backbones of DDAD have other names
        small["backbone"] = "filters"
    if "network" in names:
        small["network"] = "unet"
    if "detector" in names:
        small |= {"detector": tiny(dict(all_detectors())["AutoEncoder"]), "n_patches": 2}
    if "detectors" in names:
        known = dict(all_detectors())
        small |= {"detectors": [(name.lower(), tiny(known[name])) for name in ("AutoEncoder", "VAE")]}
    return detector_class(**{k: v for k, v in (small | parameters).items() if k in names or k in parameters})


def _set(detector, **parameters):
    """Set parameters of the detector, or of each detector inside it."""
    for name, value in parameters.items():
        detector.set_params(**dict.fromkeys(_full_names(detector, name), value))
    return detector


def _get(detector, name):
    return detector.get_params()[_full_names(detector, name)[0]]


def _full_names(detector, name):
    """Name of a parameter of the detector, or its names as a parameter of each detector inside it."""
    names = detector.get_params()
    return [name] if name in names else [full for full in names if full.endswith(f"__{name}")]


def _trains(detector):
    """Whether the detector, or one that it holds, is trained epoch by epoch."""
    return any(name.rpartition("__")[2] == "max_epochs" for name in detector.get_params())


def detector_checks(detector=None):
    """List of the checks in this module.

    Parameters
    ----------
    detector : BaseDetector, default=None
        Unfitted detector. If it is not trained in epochs, the checks of training are left out. None lists all
        checks.

    Returns
    -------
    checks : list of (name, function)
        Each function takes an unfitted detector.
    """
    checks = [(name, value) for name, value in globals().items() if name.startswith("check_")]
    every = detector is None or _trains(detector)
    return [(name, check) for name, check in checks if every or check not in _TRAINING_CHECKS]


_FITS = {}


def _fit(detector, X):
    """Fitted clone of a detector. A fit that is asked for again is not repeated: each caller gets a copy."""
    try:
        key = type(detector), pickle.dumps(detector), X.dtype, X.shape, X.tobytes()
    except (pickle.PicklingError, AttributeError, TypeError):
        return clone(detector).fit(X)
    if key not in _FITS:
        if any(other[:2] != key[:2] for other in _FITS):
            _FITS.clear()
        _FITS[key] = clone(detector).fit(X)
    return copy.deepcopy(_FITS[key])


def make_images(shape=(12, 16, 16), dtype="uint8", seed=0):
    """Smooth random images of any shape and dtype: floats in [0, 1], uint8, or other integers up to 4095.

    Parameters
    ----------
    shape : tuple, default=(12, 16, 16)
        Shape of the images; the first axis counts them.
    dtype : str, default="uint8"
        Type of the pixels.
    seed : int, default=0
        Seed of the images.

    Returns
    -------
    images : ndarray
        Images of this shape and dtype.
    """
    rng = np.random.default_rng(seed)
    images = rng.random(shape)
    for axis in range(1, len(shape)):
        images = images + np.roll(images, 1, axis)
    images = (images - images.min()) / (np.ptp(images) or 1.0)
    if np.dtype(dtype).kind == "f":
        return images.astype(dtype)
    return (images * (255 if dtype == "uint8" else 4095)).astype(dtype)


class SliceOnly:
    """Lazy X with no more than a detector needs: `shape`, `dtype` (here a class) and `X[a:b]`."""

    def __init__(self, X):
        self._X = X
        self.shape, self.dtype = X.shape, X.dtype.type

    def __getitem__(self, rows):
        if not isinstance(rows, slice):
            raise TypeError("only slices")
        return self._X[rows]


def _has_map(detector):
    return not np.isnan(detector.pixel_offset_)


def _states_equal(a, b):
    a, b = a.network_.state_dict(), b.network_.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _assert_raises(error, words, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except error as raised:
        missing = [word for word in words if word not in str(raised)]
        assert not missing, f"{missing} missing in the message: {raised}"
    else:
        raise AssertionError(f"{error.__name__} was not raised")


def check_images(detector, shape=(9, 13, 17), dtype="uint8", channel_axis="auto"):
    """Methods return arrays of the right shapes and dtypes that agree, for one layout and dtype of X."""
    X = make_images(shape, dtype)
    detector = clone(detector).set_params(channel_axis=channel_axis).fit(X)
    n = len(X)
    if len(shape) == 4:
        axis = {"auto": 3 if shape[3] <= 4 else 1}.get(channel_axis, channel_axis) % 4
        size = tuple(s for i, s in enumerate(shape) if i not in (0, axis))
        assert detector.image_shape_ == (shape[axis], *size)
    else:
        size = shape[1:] if len(shape) == 3 else (1, shape[1])
        assert detector.image_shape_ == (1, *size)
    scores = detector.score_samples(X)
    assert scores.shape == (n,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert_array_equal(detector.decision_function(X), scores - detector.offset_)
    predicted = detector.predict(X)
    assert predicted.dtype.kind == "i"
    assert_array_equal(predicted, np.where(scores >= detector.offset_, 1, -1))
    for name, component in detector.score_components(X).items():
        assert isinstance(name, str)
        assert component.shape == (n,)
        assert component.dtype == np.float64
    if _has_map(detector):
        maps, masks = detector.anomaly_map(X), detector.segment(X)
        assert maps.shape == masks.shape == (n, *size)
        assert maps.dtype == np.float32
        assert masks.dtype == bool
        assert_array_equal(detector.segment(X, fill_holes=False), maps > detector.pixel_offset_)
    if hasattr(detector, "reconstruct"):
        images = detector.reconstruct(X)
        assert images.shape == X.shape
        assert images.dtype == np.float32


def check_containers(detector):
    """Tensors, memmaps and Fortran order give the bits of an array; lists and lazy objects are taken, too."""
    X = make_images()
    expected = _fit(detector, X)
    scores = expected.score_samples(X)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "X.npy", X)
        same = {
            "Fortran order": np.asfortranarray(X),
            "read-only memmap": np.load(Path(folder) / "X.npy", mmap_mode="r"),
            "tensor": torch.from_numpy(X.copy()),
            "big-endian float": X.astype(">f4"),
        }
        for name, other in same.items():
            if name != "big-endian float":
                fitted = clone(detector).fit(other)
                assert _states_equal(fitted, expected), name
                assert_array_equal(fitted.score_samples(other), scores, err_msg=name)
        clone(detector).fit(same["big-endian float"]).score_samples(same["big-endian float"])
    clone(detector).fit(X.tolist()).predict(X.tolist())
    lazy = clone(detector).fit(SliceOnly(X), np.r_[np.ones(len(X) - 1), -1])
    assert_array_equal(lazy.score_samples(SliceOnly(X)), lazy.score_samples(X))


def check_constant_images(detector):
    """Images without contrast get finite scores, after a warning."""
    for dtype in ("uint8", "float32"):
        X = np.full((6, 16, 16), 7, dtype)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            fitted = clone(detector).fit(X)
        assert any("training images are equal" in str(warning.message) for warning in warned)
        assert np.isfinite(fitted.score_samples(X)).all()


def check_few_images(detector):
    """Two images are enough to fit, and one image is enough to score."""
    for n in (2, 5):
        X = make_images((n, 16, 16))
        assert np.isfinite(clone(detector).fit(X).score_samples(X[:1])).all()


def check_training(detector):
    """More epochs give other weights, and are counted. One image more than a batch can be trained on."""
    X = make_images((_get(detector, "batch_size") + 1, 16, 16))
    epochs = [name for name in detector.get_params() if name.endswith("_epochs")]
    shorter, longer = (clone(detector).set_params(**dict.fromkeys(epochs, n)).fit(X) for n in (1, 2))
    for fitted in (shorter, longer):
        assert fitted.n_iter_ == sum(map(len, fitted.history_.values())) > 0
        assert np.isfinite(fitted.score_samples(X)).all()
    before, after = (dict(fitted.network_.named_parameters()) for fitted in (shorter, longer))
    assert {name: value.shape for name, value in before.items()} == {
        name: value.shape for name, value in after.items()
    }
    assert any(not torch.equal(before[name], after[name]) for name in before)


def check_reproducibility(detector):
    """Equal seeds give equal bits, another seed gives others, and the caller's generators do not change."""
    X = make_images()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = _fit(detector, X), clone(detector)
    second.fit(X).score_samples(X)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert_array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(1), np.random.seed(1)
    again = second.fit(X)
    torch.set_rng_state(torch_state)
    assert _states_equal(first, again)
    assert_array_equal(first.score_samples(X), again.score_samples(X))
    assert_array_equal([first.offset_, first.pixel_offset_], [again.offset_, again.pixel_offset_])
    if _trains(detector):
        assert not _states_equal(first, clone(detector).set_params(random_state=1).fit(X))


def check_score_invariance(detector):
    """Scores have equal bits in any order, subset, batch size and random state, and maps in any order."""
    X = make_images((70, 16, 16))
    fitted = _fit(detector, X[:20])
    scores = fitted.score_samples(X)
    order = np.random.default_rng(0).permutation(len(X))
    assert_array_equal(fitted.score_samples(X[order]), scores[order])
    assert_array_equal(fitted.score_samples(X[3:5]), scores[3:5])
    assert_array_equal(np.concatenate([fitted.score_samples(x[None]) for x in X[:4]]), scores[:4])
    fitted.network_.train()
    assert_array_equal(fitted.score_samples(X), scores)
    torch.rand(3)
    _set(fitted, random_state=5, **{"batch_size": 3} if _trains(detector) else {})
    assert_array_equal(fitted.score_samples(X), scores)
    if _has_map(fitted):
        assert_array_equal(fitted.anomaly_map(X[order]), fitted.anomaly_map(X)[order])


def check_outputs(detector):
    """Calls with `out`, and `iter_batches`, return the same values as plain calls."""
    X = make_images((70, 16, 16))
    fitted = _fit(detector, X[:20])
    assert not fitted.network_.training
    rows, scores, maps = zip(*fitted.iter_batches(X))
    assert_array_equal(np.concatenate([np.arange(70)[part] for part in rows]), np.arange(70))
    assert_array_equal(np.concatenate(scores), fitted.score_samples(X))
    assert len(set(np.concatenate(scores))) > 1
    if not _has_map(fitted):
        assert maps == (None,) * len(maps)
        for method in (fitted.anomaly_map, fitted.segment):
            _assert_raises(TypeError, [type(detector).__name__, "map"], method, X)
        return
    assert_array_equal(np.concatenate(maps), fitted.anomaly_map(X))
    with tempfile.TemporaryDirectory() as folder:
        out = np.lib.format.open_memmap(Path(folder) / "out.npy", "w+", np.float32, (70, 16, 16))
        assert fitted.anomaly_map(X, out=out) is out
        assert_array_equal(out, fitted.anomaly_map(X))
        del out
    _assert_raises(TypeError, ["out", "uint8"], fitted.anomaly_map, X, out=np.empty_like(X))
    out = np.empty((70, 16, 16), bool)
    assert fitted.segment(X, out=out, min_size=3) is out
    assert_array_equal(out, fitted.segment(X, min_size=3))
    _assert_raises(ValueError, ["out", "(70, 16, 16)"], fitted.anomaly_map, X, out=out[:3])


def check_thresholds(detector):
    """`contamination` and `pixel_contamination` are the shares flagged; `calibrate` resets the thresholds."""
    X = make_images((30, 16, 16))
    fitted = clone(detector).set_params(contamination=0.2, pixel_contamination=0.05).fit(X)
    assert np.mean(fitted.predict(X) == -1) == 0.2
    before = fitted.offset_, fitted.pixel_offset_
    if _has_map(fitted):
        _assert_share_above(fitted.anomaly_map(X), fitted.pixel_offset_, 0.05, 1e-3)
        assert fitted.map_range_[0] < fitted.map_range_[1]
    new = make_images((79, 16, 16), seed=1)
    assert fitted.calibrate(new, false_alarm_rate=0.1, pixel_false_alarm_rate=0.02) is fitted
    assert np.sum(fitted.predict(new) == -1) == 7  # floor(80 * 0.1) - 1
    if _has_map(fitted):
        _assert_share_above(fitted.anomaly_map(new), fitted.pixel_offset_, 0.02, 1e-3)
    assert before != (fitted.offset_, fitted.pixel_offset_)
    _assert_raises(ValueError, ["false_alarm_rate", "2"], fitted.calibrate, new, false_alarm_rate=2)


def _assert_share_above(maps, threshold, share, tolerance):
    """Assert that a share of the pixels lies above the threshold; pixels equal to it may count or not.

    Many pixels may equal the threshold, because a network may map several intensities to the same value.
    """
    assert np.mean(maps > threshold) <= share + tolerance
    assert np.mean(maps >= threshold) >= share - tolerance


def check_p_values(detector):
    """`p_value` is the rank among the images of `calibrate`, which `drift` compares with others."""
    X, new = make_images((30, 16, 16)), make_images((39, 16, 16), seed=1)
    fitted = _fit(detector, X)
    for method in fitted.p_value, fitted.drift:
        _assert_raises(NotFittedError, ["calibrate"], method, new)
    fitted.calibrate(new, false_alarm_rate=0.1)
    known, scores = -fitted.score_samples(new), -fitted.score_samples(X)
    p = (1 + (known >= scores[:, None]).sum(1)) / 40
    assert_array_equal(fitted.p_value(X), p)
    assert_array_equal(fitted.predict(X, false_alarm_rate=0.3), np.where(p <= 0.3, -1, 1))
    assert_array_equal(fitted.predict(new, false_alarm_rate=0.1), np.where(fitted.p_value(new) <= 0.1, -1, 1))
    assert fitted.drift(new) == (0, 1)
    _assert_raises(ValueError, ["false_alarm_rate", "1.5"], fitted.predict, X, false_alarm_rate=1.5)
    assert not hasattr(fitted.fit(X), "calibration_scores_")


def check_labels(detector):
    """Rows with -1 are not trained on; labels other than -1 and 0 change nothing, but some of them warn."""
    X = make_images((24, 16, 16))
    y = np.ones(24, int)
    y[::4] = -1
    expected = clone(detector).fit(X[y == 1])
    without = clone(detector).fit(X, y)
    assert _states_equal(without, expected)
    assert without.offset_ == expected.offset_
    plain = clone(detector).fit(X)
    for other in (np.ones(24), np.arange(24) % 3 + 1, np.array(["a", "b"] * 12)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", LabelWarning)
            assert _states_equal(clone(detector).fit(X, other), plain)
        silent = np.array_equal(other, np.ones(24))
        assert [warning.category for warning in caught] == ([] if silent else [LabelWarning])
    _assert_raises(ValueError, ["-1", "2"], clone(detector).fit, X, -np.ones(24))
    _assert_raises(ValueError, ["missing", "row 0"], clone(detector).fit, X, np.where(y == 1, 1.0, np.nan))


def check_calibration_labels(detector):
    """`calibrate` uses the rows with label 1, and sets the thresholds that these rows alone would set."""
    X, y = make_images((40, 16, 16), seed=1), np.resize([1, 1, 1, -1, 0], 40)
    fitted, alone = (_fit(detector, make_images()) for _ in range(2))
    alone.calibrate(X[y == 1], false_alarm_rate=0.1)
    for images in (X, SliceOnly(X)):
        fitted.calibrate(images, y, false_alarm_rate=0.1)
        for name in ("offset_", "pixel_offset_", "map_range_"):
            assert_array_equal(getattr(fitted, name), getattr(alone, name), err_msg=name)
    _assert_raises(ValueError, ["1", "from_anomalies"], fitted.calibrate, X, np.zeros(40, int))


def check_intensities(detector):
    """The range is that of uint8 or of the data, scoring does not clip, `reconstruct` has the units of X."""
    X = make_images(dtype="uint16") * 7 + 1000
    fitted = clone(detector).fit(X)
    assert fitted.intensity_range_ == (X.min(), X.max())
    assert _fit(detector, make_images()).intensity_range_ == (0, 255)
    given = _set(clone(detector), intensity_range=(0, 65535)).fit(X)
    assert given.intensity_range_ == (0, 65535)
    # The same images in another unit, with values twice as large, have the same scores to the last bit.
    expected = fitted.score_samples(X)
    assert_array_equal(clone(detector).fit(X * 2).score_samples(X * 2), expected)
    # Wider integers are scaled in float64. A score may be near 0: the tolerance then comes from the spread.
    wide = fitted.score_samples(X.astype(np.int64))
    assert_allclose(wide, expected, rtol=1e-3, atol=1e-3 * expected.std())
    assert len(set(fitted.score_samples(np.stack([X[0], X[0] * 2])))) == 2
    if hasattr(fitted, "reconstruct"):
        # The mean: single pixels of a network that has hardly learned may lie far outside.
        assert abs(fitted.reconstruct(X).astype(float).mean() - X.mean()) < np.ptp(X)


def check_bad_input(detector):
    """Invalid input raises an error that names what is wrong, and the detector stays as it was."""
    X = make_images(dtype="float32")
    name = type(detector).__name__
    _assert_raises(NotFittedError, [name], clone(detector).score_samples, X)
    fitted = clone(detector).fit(X)
    scores, attributes = fitted.score_samples(X), set(vars(fitted))
    bad = X.copy()
    bad[3, 2, 1] = np.nan
    for value, word in ((np.nan, "NaN"), (np.inf, "infinity")):
        bad[3, 2, 1] = value
        _assert_raises(ValueError, [word], fitted.score_samples, bad)
        _assert_raises(ValueError, [word], fitted.fit, bad)
        _assert_raises(ValueError, [word], fitted.fit, SliceOnly(bad))
    _assert_raises(ValueError, ["(1, 16, 16)", "(1, 16, 12)"], fitted.score_samples, X[:, :, :12])
    colour = np.stack([X] * 3, -1)
    _assert_raises(ValueError, ["(1, 16, 16)", "(3, 16, 16)"], fitted.score_samples, colour)
    _assert_raises(ValueError, ["uint8", "float", "intensity_range"], fitted.score_samples, make_images())
    _assert_raises(ValueError, ["0 sample"], fitted.score_samples, X[:0])
    _assert_raises(ValueError, ["0 sample"], fitted.fit, X[:0])
    _assert_raises(ValueError, ["1 sample"], fitted.fit, X[:1])
    _assert_raises(ValueError, ["channel_axis"], fitted.fit, X.reshape(48, 4, 4, 4))
    _assert_raises(ValueError, ["channel_axis"], fitted.fit, X[:, None].repeat(9, 1))
    _assert_raises(ValueError, ["5 axes"], fitted.fit, X[:, None, None])
    impossible = {"contamination": 0.6, "device": "cuda:99", "intensity_range": (3, 1)}
    for name, value in (
        impossible | {"validation_fraction": 0.01} if _trains(detector) else impossible
    ).items():
        word = value if name == "device" else name
        _assert_raises(ValueError, [word], _set(fitted, **{name: value}).fit, X)
        _set(fitted, **{name: _get(detector, name)})
    assert set(vars(fitted)) == attributes
    assert_array_equal(fitted.score_samples(X), scores)


def check_interruption(detector):
    """`fit` passes KeyboardInterrupt on, and a fit that fails leaves the fitted detector as it was."""

    class Interrupt(Callback):
        def on_epoch_begin(self, net, **kwargs):
            raise KeyboardInterrupt

    X = make_images()
    fitted = _fit(detector, X)
    scores = fitted.score_samples(X)
    _assert_raises(KeyboardInterrupt, [], _set(fitted, callbacks=[Interrupt()]).fit, X)
    assert_array_equal(fitted.score_samples(X), scores)


def check_divergence(detector):
    """A loss that is not finite stops the fit, with an error that names stage and epoch."""

    class Poison(Callback):
        def on_batch_begin(self, net, **kwargs):
            with torch.no_grad():
                for parameter in net.module_.parameters():
                    parameter.fill_(np.nan)

    broken = _set(clone(detector), callbacks=[Poison()])
    _assert_raises(FloatingPointError, ["stage", "epoch 1", "nan"], broken.fit, make_images())


def check_nesting(detector):
    """Pipelines, searches, FrozenEstimator and pickle take the detector, and return its maps."""
    X = make_images((20, 16, 16), "float32")
    y = np.r_[np.ones(14), -np.ones(6)].astype(int)
    fitted = clone(detector).fit(X, y)
    pipeline = make_pipeline(FunctionTransformer(), clone(detector)).fit(X, y)
    search = GridSearchCV(
        clone(detector), {"random_state": [4]}, scoring="roc_auc", cv=NormalOnlyKFold(2, random_state=0)
    ).fit(X, y)
    assert np.isfinite(search.best_score_)
    same = pipeline, FrozenEstimator(fitted), pickle.loads(pickle.dumps(fitted))
    for other in same:
        assert_array_equal(other.predict(X), fitted.predict(X))
    if _has_map(fitted):
        maps = fitted.anomaly_map(X)
        for other in same:
            assert_array_equal(_unwrap.anomaly_map(other, X), maps)
            assert_array_equal(_unwrap.segment(other, X), fitted.segment(X))
        assert _unwrap.anomaly_map(search, X).shape == maps.shape


def check_persistence(detector):
    """`save` and `load` restore a detector to the bit, fitted or not, together with a detector inside."""
    X = make_images()
    types = [type(part) for part in (detector, *detector.get_params().values()) if hasattr(part, "fit")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.skanomaly"
        persistence.save(detector, path)
        unfitted = persistence.load(path, types=types)
        assert repr(unfitted) == repr(clone(detector))
        fitted = _fit(detector, X).calibrate(make_images((30, 16, 16), seed=1))
        persistence.save(fitted, path)
        loaded = persistence.load(path, types=types)
    assert repr(loaded) == repr(fitted)
    assert _states_equal(loaded, fitted)
    assert {k: repr(v) for k, v in vars(loaded).items()} == {k: repr(v) for k, v in vars(fitted).items()}
    assert_array_equal(loaded.score_samples(X), fitted.score_samples(X))
    if _has_map(fitted):
        assert_array_equal(loaded.segment(X), fitted.segment(X))
    assert _states_equal(loaded.fit(X), fitted)


def check_resume(detector):
    """A fit that was killed in any epoch continues from that epoch, and ends with the same bits."""

    class Kill(Callback):
        epochs = killed_in = 0

        def on_batch_begin(self, net, **kwargs):
            if Kill.epochs == Kill.killed_in:
                raise KeyboardInterrupt

        def on_epoch_begin(self, net, **kwargs):
            Kill.epochs += 1

    X = make_images()
    epochs = [name for name in detector.get_params() if name.endswith("_epochs")]
    detector = _set(clone(detector), callbacks=[Kill()]).set_params(**dict.fromkeys(epochs, 2))
    whole = clone(detector).fit(X)
    n_epochs = Kill.epochs
    assert n_epochs == whole.n_iter_
    for killed_in in np.unique(np.linspace(1, n_epochs, 4).round().astype(int)):
        with tempfile.TemporaryDirectory() as folder:
            names = _full_names(detector, "checkpoint_dir")
            part = clone(detector).set_params(**{name: Path(folder) / name for name in names})
            Kill.epochs, Kill.killed_in = 0, killed_in
            _assert_raises(KeyboardInterrupt, [], part.fit, X)
            Kill.epochs, Kill.killed_in = 0, -1
            assert _states_equal(part.fit(X), whole)
            assert Kill.epochs == n_epochs - killed_in + 1, "epochs were trained again"
            assert (part.offset_, part.pixel_offset_) == (whole.offset_, whole.pixel_offset_)
            assert part.n_iter_ == whole.n_iter_
            batch_size = _get(detector, "batch_size")
            other = _set(clone(part), batch_size=batch_size + 1)
            words = ["another fit", f"batch_size was {batch_size} and is {batch_size + 1}"]
            _assert_raises(ValueError, words, other.fit, X)
            _assert_raises(ValueError, ["another fit", "X was"], part.fit, X[:-1])


def check_threads_of_scoring(detector):
    """A fitted detector may score in several threads at once."""
    X = make_images((70, 16, 16))
    fitted = _fit(detector, X[:20])
    expected, results = fitted.score_samples(X), []
    threads = [threading.Thread(target=lambda: results.append(fitted.score_samples(X))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 4
    for result in results:
        assert_array_equal(result, expected)


def check_docstring(detector):
    """Every parameter is documented, in the order of the signature, and Notes have all `METHOD_FIELDS`."""
    doc = inspect.getdoc(type(detector)) or ""
    assert "{parameters}" not in doc
    section = doc.split("Parameters\n----------\n")[1].split("\n\nAttributes\n")[0]
    named = [line.split(" : ")[0] for line in section.splitlines() if line[:1].strip() and " : " in line]
    assert named == list(inspect.signature(type(detector)).parameters)
    for field in METHOD_FIELDS:
        assert f":{field}: " in doc, f"Notes do not say :{field}:"


_TRAINING_CHECKS = check_training, check_interruption, check_divergence, check_resume
