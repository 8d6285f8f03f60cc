"""Foreign patches: an anomaly that brightness cannot give away."""

import numpy as np
import skimage.data
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch import nn

from skanomaly._random import seeded
from skanomaly.datasets import load_chest_xray
from skanomaly.networks.backbone import EfficientNetLite0


def paste_foreign_patches(images, seed=0, share=3 / 8):
    """Images with a square of a photograph pasted in, of the mean and contrast of what it covers.

    Parameters
    ----------
    images : (n, H, W) uint8 ndarray
    seed : int
    share : float
        Side of the square, of the images'.

    Returns
    -------
    images : (n, H, W) uint8 ndarray
    masks : (n, H, W) bool ndarray
    """
    rng = np.random.default_rng(seed)
    photograph = skimage.data.camera().astype(float)
    pasted, masks = images.astype(float), np.zeros(images.shape, bool)
    height, width = images.shape[1:]
    side = round(share * min(height, width))
    margin = height // 8
    for image, mask in zip(pasted, masks):
        top = rng.integers(margin, height - side - margin + 1)
        left = rng.integers(margin, width - side - margin + 1)
        i, j = (rng.integers(0, size - side) for size in photograph.shape)
        patch, place = photograph[i : i + side, j : j + side], image[top : top + side, left : left + side]
        place[:] = (patch - patch.mean()) / (patch.std() + 1e-3) * place.std() + place.mean()
        mask[top : top + side, left : left + side] = True
    return np.clip(pasted, 0, 255).astype(np.uint8), masks


def chests(side, n, n_new, share):
    """Healthy chests of side x side pixels to learn from, new ones, and these with foreign patches.

    Returns
    -------
    train, normal, foreign, masks : ndarray
    """
    train, test = (load_chest_xray(subset=subset) for subset in ("train", "test"))
    train, normal = (
        images.reshape(-1, side, 64 // side, side, 64 // side).mean((2, 4)).astype(np.uint8)
        for images in (train.images[:n], test.images[test.target == 1][:n_new])
    )
    return train, normal, *paste_foreign_patches(normal, share=share)


def auroc(fitted, normal, foreign, component=None):
    images, truth = np.concatenate([normal, foreign]), np.repeat([0, 1], len(normal))
    found = fitted.score_components(images)[component] if component else -fitted.score_samples(images)
    return roc_auc_score(truth, found)


def map_ratio_of(fitted, foreign, masks):
    """Ratio of the map's mean in patches to that elsewhere."""
    maps = fitted.anomaly_map(foreign)
    return maps[masks].mean() / maps[~masks].mean()


def check_learns(
    detector, *, component=None, share=3 / 8, at_least=0.70, gain=0.10, map_ratio=1.5, beats_the_mean=False
):
    """Trained on healthy chests, a detector tells foreign patches apart and maps them; untrained it cannot.

    Parameters
    ----------
    detector : BaseDetector
        For 150 chests of 16 x 16 pixels, on which a few seconds teach as much as minutes do on larger ones.
    component : str or None
        Score component that has to tell them apart; None for the score itself.
    share : float
        Side of a patch, of the images'.
    at_least, gain : float
        Least AUROC of the trained detector, and by how much it is above that of the untrained one.
    map_ratio : float
        Least ratio of the map's mean in patches to that elsewhere.
    beats_the_mean : bool
        Whether reconstructions of new normal images are closer to them than the mean training image.

    Returns
    -------
    trained, untrained : BaseDetector
    foreign, masks : ndarray
        Images with patches, and where these are.
    """
    train, normal, foreign, masks = chests(16, 150, 60, share)
    epochs = {name: 1 for name in detector.get_params() if name.endswith("_epochs")}
    rates = {name: 1e-12 for name in detector.get_params() if name in ("lr", "encoder_lr")}
    untrained = clone(detector).set_params(**epochs, **rates).fit(train)
    trained = clone(detector).fit(train)
    before, after = (auroc(fitted, normal, foreign, component) for fitted in (untrained, trained))
    ratio = map_ratio_of(trained, foreign, masks)
    assert after >= max(at_least, before + gain), (before, after)
    assert ratio > map_ratio, ratio
    if beats_the_mean:
        error = ((trained.reconstruct(normal) - normal) ** 2).mean()
        assert error < ((train.mean(0) - normal) ** 2).mean()
    return trained, untrained, foreign, masks


class RandomNetwork(nn.Module):
    """The network from ImageNet with random weights, for images of one channel."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        with seeded(0):
            self.network = EfficientNetLite0().fold()

    def forward(self, x):
        maps = self.network((2 * x - 1).expand(-1, 3, -1, -1), max(self.layers))
        return [maps[k] for k in self.layers]


def check_tells(detector, *, at_least, gain, map_ratio):
    """A detector with features from ImageNet tells foreign patches apart; with random ones it does so worse.

    Parameters
    ----------
    detector : FeatureDetector
        For 60 chests of 64 x 64 pixels.
    at_least, gain : float
        Least AUROC of the detector, and by how much it is above that with random features.
    map_ratio : float
        Least ratio of the map's mean in patches to that elsewhere; it must also be above the random one's.
    """
    train, normal, foreign, masks = chests(64, 60, 30, 1 / 4)
    random = clone(detector).set_params(backbone=RandomNetwork(type(detector)._layers["imagenet"])).fit(train)
    learned = clone(detector).fit(train)
    before, after = (auroc(fitted, normal, foreign) for fitted in (random, learned))
    assert after >= max(at_least, before + gain), (before, after)
    before, after = (map_ratio_of(fitted, foreign, masks) for fitted in (random, learned))
    assert after > max(map_ratio, before), (before, after)
