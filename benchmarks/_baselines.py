"""Baselines that no detector should lose to: pixels, gradients and single numbers, without a network.

Each is fitted to normal images and calibrated as detectors are, so that its cells and rows are made by the
same code. None is public: a Pipeline of scikit-learn does as well.
"""

from functools import partial

import numpy as np
import torch
from scipy.ndimage import correlate1d, gaussian_filter
from skimage.feature import hog
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Options, StrOptions
from torch.nn import Module
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from skanomaly import _comparison
from skanomaly._inference import collect
from skanomaly.base import BaseDetector, Judgement
from skanomaly.metrics import auroc, confounds

SIDE = 64  # of the images that pixels and gradients are taken from
SCALES = 0.7, 1.4, 2.8  # of the derivatives, in pixels of such an image
GRID = 8


# Features: images (n, c, h, w) to rows.


def grey(x):
    """Images of one channel and SIDE x SIDE pixels, (n, SIDE, SIDE)."""
    return interpolate(x.mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0].numpy()


def pixels(x):
    return grey(x).reshape(len(x), -1)


def gradients(x):
    """Histograms of oriented gradients."""
    return np.stack([hog(image, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for image in grey(x)])


def energies(x):
    """Logarithms of mean absolute derivatives, and the smoothed image, on a grid, at each scale."""
    images = x.mean(1).double().numpy()
    unit = min(images.shape[1:]) / SIDE
    maps = []
    for scale in (each * unit for each in SCALES):
        smooth = gaussian_filter(images, (0, scale, scale))
        laplacian = sum(correlate1d(smooth, [1, -2, 1], axis=axis) for axis in (1, 2))
        slopes = [correlate1d(smooth, [-0.5, 0, 0.5], axis=axis) for axis in (1, 2)]
        maps += [*(abs(slope) * scale for slope in slopes), abs(laplacian) * scale**2, smooth]
    pooled = adaptive_avg_pool2d(torch.from_numpy(np.stack(maps, 1)), GRID)
    return np.log(pooled.flatten(1).numpy() + 0.001)


def confound(x, name):
    return confounds(x, channel_axis=1)[name][:, None]


# Models: rows of normal images to a function that scores rows; higher is worse.


def reconstruction(rows, n_components, seed):
    pca = PCA(min(n_components, len(rows) - 1), random_state=seed).fit(rows)
    return lambda rows: ((rows - pca.inverse_transform(pca.transform(rows))) ** 2).mean(1)


def nearest(rows, seed):
    found = NearestNeighbors().fit(rows)
    return lambda rows: found.kneighbors(rows, 1)[0][:, 0]


def forest(rows, seed):
    made = IsolationForest(random_state=seed).fit(rows)
    return lambda rows: -made.score_samples(rows)


def gaussian(rows, seed):
    """Squared Mahalanobis distance after standardisation, with Ledoit and Wolf's shrinkage."""
    scaler = StandardScaler().fit(rows)
    covariance = LedoitWolf().fit(scaler.transform(rows))
    return lambda rows: covariance.mahalanobis(scaler.transform(rows))


def itself(rows, seed):
    return lambda rows: rows[:, 0]


KINDS = {
    "pixels, PCA-30": (pixels, partial(reconstruction, n_components=30)),
    "pixels, nearest training image": (pixels, nearest),
    "pixels, isolation forest": (pixels, forest),
    "HOG, PCA-16": (gradients, partial(reconstruction, n_components=16)),
    "derivative energies, Gaussian": (energies, gaussian),
}
CONFOUNDS = "sharpness", "brightness", "contrast", "border", "noise"
KINDS |= {name: (partial(confound, name=name), itself) for name in CONFOUNDS}
#: Beginning of the labels, which are sorted behind the names of detectors by it.
PREFIX = "baseline: "
#: Kinds whose figures depend on the seed. One seed says all about the others.
DRAWN = {"pixels, isolation forest"}


class Baseline(BaseDetector):
    """Score of rows of features by a model of them.

    Parameters
    ----------
    kind : str
        Key of `KINDS`.
    sign : {-1, 1}, default=1
        Whether more is worse.
    {parameters}

    Attributes
    ----------
    {attributes}
    """

    _parameter_constraints = {"kind": [StrOptions(set(KINDS))], "sign": [Options(int, {-1, 1})]}

    def __init__(
        self,
        kind,
        *,
        sign=1,
        device="cpu",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self.kind, self.sign = kind, sign
        self._assign_shared(locals())

    def _build(self, image_shape):
        return Module()

    def _measure(self, network, images):
        features, model = KINDS[self.kind]
        rows = collect(lambda x: torch.from_numpy(features(x)), network, images, self.device_)
        network.score = model(rows, seed=self.random_state)

    def _judge(self, network, x):
        rows = KINDS[self.kind][0](x)
        return Judgement(torch.from_numpy(self.sign * network.score(rows)), None)


def evaluate(baseline, splits):
    """Usual evaluation of a baseline; whether more or less of a confound is worse is decided on `val`."""
    val = splits["val"]
    if baseline.kind in CONFOUNDS and (val.target == -1).any():
        alone = auroc(val.target, confounds(val.images)[baseline.kind])
        # After the cell has its identity, which a choice on the data must not change.
        baseline.set_params(sign=1 if alone >= 0.5 else -1)
    return _comparison.evaluate(baseline, splits)


def cells(sets, n_seeds):
    """Cells of all baselines on these sets, for `compare`."""
    return [
        (data, f"{PREFIX}{kind}", Baseline(kind, random_state=seed), evaluate)
        for data in sets
        for kind in KINDS
        for seed in range(n_seeds if kind in DRAWN else min(n_seeds, 1))
    ]


_comparison.OTHERS["Baseline"] = Baseline
