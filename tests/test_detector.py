"""What the contract says of processes, memory and real data."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV

import skanomaly
from skanomaly import AutoEncoder, FAnoGAN
from skanomaly.model_selection import NormalOnlyKFold
from skanomaly.testing import all_detectors, make_images, tiny


def scores_of_all_detectors():
    torch.set_num_threads(1)
    X = make_images()
    return {name: tiny(cls).fit(X).score_samples(X).tolist() for name, cls in all_detectors()}


def test_two_processes_agree_to_the_bit():
    code = "import json, test_detector as t; print(json.dumps(t.scores_of_all_detectors()))"
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=True, text=True
    )
    assert json.loads(other.stdout) == scores_of_all_detectors()


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="private memory is read from Linux's /proc"
)
def test_scoring_a_memmap_takes_the_memory_of_a_batch(tmp_path):
    n = 30_000
    X = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.uint8, (n, 32, 32))
    X[:] = make_images((50, 32, 32)).repeat(n // 50, 0)
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    detector = tiny(AutoEncoder).fit(X[::600])
    maps = np.lib.format.open_memmap(tmp_path / "maps.npy", "w+", np.float32, (n, 32, 32))

    def private():
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

    class Watched:
        """Looks at the memory while maps are written: after the call a copy would be gone."""

        shape, peak = maps.shape, 0.0

        def __setitem__(self, rows, values):
            maps[rows] = values
            self.peak = max(self.peak, private())

    detector.score_samples(X[:100])
    before, out = private(), Watched()
    detector.anomaly_map(X, out=out)
    assert out.peak - before < 20
    assert np.array_equal(maps[-1], detector.anomaly_map(X[-1:])[0])


def test_a_data_frame_of_rows_keeps_its_names():
    X = pd.DataFrame(make_images((12, 20), "float32"), columns=[f"pixel{i}" for i in range(20)])
    detector = tiny(AutoEncoder, image_shape=(4, 5)).fit(X)
    assert detector.image_shape_ == (1, 4, 5)
    assert detector.feature_names_in_[3] == "pixel3"
    assert detector.n_features_in_ == 20
    assert detector.anomaly_map(X).shape == (12, 4, 5)
    assert detector.reconstruct(X).shape == (12, 20)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.predict(X[X.columns[::-1]])
    # The same images, with their shape.
    images = X.to_numpy().reshape(12, 4, 5)
    detector.fit(X.to_numpy())
    assert not hasattr(detector, "feature_names_in_")
    np.testing.assert_array_equal(detector.score_samples(images), detector.score_samples(X.to_numpy()))


def test_calibration_with_too_few_images_warns():
    detector = tiny(AutoEncoder).fit(make_images())
    new = make_images((10, 16, 16), seed=1)
    with pytest.warns(UserWarning, match=r"10 images cannot show a false alarm rate of 0.05: .* at least 19"):
        detector.calibrate(new)
    assert (detector.predict(new) == 1).all()
    with pytest.raises(NotFittedError):
        tiny(AutoEncoder).calibrate(new)


def test_calibration_is_exact_on_average():
    """Over many draws of calibration images the false alarm rate is the one asked for."""
    X = np.random.default_rng(0).integers(0, 255, (4000, 2, 8), dtype=np.uint8)
    detector = tiny(AutoEncoder).fit(X[:20])
    score, rates = detector.score_samples(X), []
    for part in np.split(np.arange(4000), 80):
        detector.calibrate(X[part], false_alarm_rate=0.1)
        rates.append(np.mean(np.delete(score, part) < detector.offset_))
    assert abs(np.mean(rates) - 0.1) < 3 * np.std(rates) / np.sqrt(80)


@pytest.mark.parametrize("name", ["cxr_pneumonia_64", "brain_mri_64"])
def test_calibrated_false_alarms_on_real_images(benchmark_data, name):
    data = benchmark_data(name)
    X, normal, split = data["images"], data["labels"] == 0, data["split"]
    calibration = X[normal & (split == "val")]
    detector = AutoEncoder(hidden_size=128, width=8, max_epochs=10, random_state=0)
    detector.fit(X[split == "train"]).calibrate(calibration)
    rate = np.mean(detector.predict(X[normal & (split == "test")]) == -1)
    low, high = binom.ppf([0.005, 0.995], len(calibration), 0.05) / len(calibration)
    assert low <= rate <= high


def test_unwrapping_what_holds_no_detector():
    X, y = make_images((20, 8, 8)), np.r_[np.ones(14), -np.ones(6)]
    search = GridSearchCV(
        tiny(AutoEncoder),
        {"lr": [0.1]},
        cv=NormalOnlyKFold(2, random_state=0),
        scoring="roc_auc",
        refit=False,
    )
    with pytest.raises(NotFittedError):
        skanomaly.anomaly_map(search, X)
    search.fit(X, y)
    with pytest.raises(ValueError, match="refit=False; set refit=True"):
        skanomaly.anomaly_map(search, X)
    with pytest.raises(TypeError, match="str has no segment"):
        skanomaly.segment("detector", X)
    frozen = FrozenEstimator(tiny(FAnoGAN).fit(X))
    assert skanomaly.reconstruct(frozen, X).shape == X.shape


def test_parameters_set_after_a_fit_do_not_reach_its_network():
    X = make_images()
    detector = tiny(FAnoGAN).fit(X).set_params(latent_size=5)
    assert detector.sample(2).shape == (2, 16, 16)
    with pytest.raises(ValueError, match=r"\(n, latent_size=2\), got \(0, 2\)"):
        detector.sample(0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"intensity_range": (1, 2, 3)}, r"two numbers \(low, high\) .*got \(1, 2, 3\)"),
        ({"intensity_range": (None, 1)}, r"two numbers \(low, high\) .*got \(None, 1\)"),
        ({"image_shape": (4.0, 4.0)}, r"whole numbers .*got \(4.0, 4.0\)"),
        ({"image_shape": (-4, -4)}, r"whole numbers .*got \(-4, -4\)"),
    ],
)
def test_malformed_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(AutoEncoder, **parameters).fit(make_images((5, 16)))


def test_values_too_large_for_float32():
    X = make_images(dtype="float64")
    detector = tiny(AutoEncoder).fit(X)
    with pytest.raises(ValueError, match="too large for float32"):
        detector.predict(X * 1e300)
