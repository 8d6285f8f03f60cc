"""What detectors with a frozen backbone have in common: features by numpy, options, passes over images."""

import numpy as np
import torch
from numpy.testing import assert_array_equal
from scipy import ndimage
from sklearn.base import clone

from skanomaly import _inference
from skanomaly.networks import backbone
from skanomaly.networks.backbone import DerivativeFilters
from skanomaly.persistence import load, save
from skanomaly.testing import make_images


def energies(X, size):
    """Derivative energies (n, 12, h, w) of uint8 images, in float64, before the logarithm."""
    x = torch.from_numpy(X[:, None] / 255)
    return np.concatenate([m.numpy() for m in DerivativeFilters([0, 1, 2], size)(x)], axis=1)


def logarithm(x):
    return np.log(np.maximum(x, 0) + 0.001)


def near_means(maps):
    """Means of maps (n, c, h, w) over the 3 x 3 positions around each, or as many as there are."""
    height, width = maps.shape[2:]
    found = np.empty_like(maps)
    for i, j in np.ndindex(height, width):
        found[:, :, i, j] = maps[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
    return found


def enlarged_maps(maps, size, share):
    """Maps (n, h, w) enlarged to a size by scikit-image's rule, and blurred."""
    for axis, n in zip((1, 2), size):
        at = (np.arange(n) + 0.5) * maps.shape[axis] / n - 0.5
        maps = ndimage.map_coordinates(
            maps,
            np.meshgrid(*(at if k == axis else np.arange(maps.shape[k]) for k in range(3)), indexing="ij"),
            order=1,
            mode="nearest",
        )
    return ndimage.gaussian_filter(maps, (0, *(share * side for side in size)), mode="nearest")


def check_option(detector, tmp_path):
    """A detector fits, scores other images differently, and is saved and loaded to the bit."""
    X, new = make_images((20, 16, 16)), make_images((9, 16, 16), seed=1)
    fitted = clone(detector).fit(X)
    scores, maps = fitted.score_samples(new), fitted.anomaly_map(new)
    assert np.isfinite(scores).all()
    assert np.isfinite(maps).all()
    assert len(set(scores)) > 1
    save(fitted, tmp_path / "detector.skanomaly")
    loaded = load(tmp_path / "detector.skanomaly")
    assert_array_equal(loaded.score_samples(new), scores)
    assert_array_equal(loaded.anomaly_map(new), maps)
    assert loaded.offset_ == fitted.offset_
    again = clone(detector).fit(X)
    assert_array_equal(again.score_samples(new), scores)


def check_passes(detector, n_passes, monkeypatch):
    """Features that can be kept are computed once in a fit, others in each of `n_passes`, to equal bits."""
    X, calls, forward = make_images((70, 16, 16)), [], DerivativeFilters.forward
    monkeypatch.setattr(
        DerivativeFilters, "forward", lambda self, x: calls.append(len(x)) or forward(self, x)
    )
    kept = clone(detector).fit(X)
    assert calls == [1, 32, 32, 32]
    # All, none, or the first batch only: a part of them is of no use.
    for n_bytes in (0, 40_000):
        calls.clear()
        monkeypatch.setattr(_inference, "CACHE_BYTES", n_bytes)
        again = clone(detector).fit(X)
        assert calls == [1] + 3 * n_passes * [32]
        state = again.network_.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in kept.network_.state_dict().items())
        assert (again.offset_, again.pixel_offset_) == (kept.offset_, kept.pixel_offset_)
        assert_array_equal(again.score_samples(X), kept.score_samples(X))


def check_modes(detector):
    """Torch's modes and default dtype matter to neither fit nor scores, also if weights are loaded there."""
    X = make_images()
    expected = clone(detector).fit(X).score_samples(X)
    backbone.imagenet.cache_clear()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.inference_mode():
            fitted = clone(detector).fit(X)
            assert_array_equal(fitted.score_samples(X), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_array_equal(fitted.score_samples(X), expected)
    assert all(tensor.dtype != torch.float64 for tensor in fitted.network_.state_dict().values())
