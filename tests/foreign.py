"""Foreign patches: an anomaly that brightness cannot give away."""

import numpy as np
import skimage.data
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from skanomaly.datasets import load_chest_xray


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
    train, test = (load_chest_xray(subset=subset) for subset in ("train", "test"))
    train, normal = (
        images.reshape(-1, 16, 4, 16, 4).mean((2, 4)).astype(np.uint8)
        for images in (train.images[:150], test.images[test.target == 1][:60])
    )
    foreign, masks = paste_foreign_patches(normal, share=share)
    epochs = {name: 1 for name in detector.get_params() if name.endswith("_epochs")}
    rates = {name: 1e-12 for name in detector.get_params() if name in ("lr", "encoder_lr")}
    untrained = clone(detector).set_params(**epochs, **rates).fit(train)
    trained = clone(detector).fit(train)

    def auroc(fitted):
        images, truth = np.concatenate([normal, foreign]), np.repeat([0, 1], len(normal))
        found = fitted.score_components(images)[component] if component else -fitted.score_samples(images)
        return roc_auc_score(truth, found)

    before, after = auroc(untrained), auroc(trained)
    maps = trained.anomaly_map(foreign)
    ratio = maps[masks].mean() / maps[~masks].mean()
    assert after >= max(at_least, before + gain), (before, after)
    assert ratio > map_ratio, ratio
    if beats_the_mean:
        error = ((trained.reconstruct(normal) - normal) ** 2).mean()
        assert error < ((train.mean(0) - normal) ** 2).mean()
    return trained, untrained, foreign, masks
