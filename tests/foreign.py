"""Foreign patches: an anomaly that brightness cannot give away."""

import numpy as np
import skimage.data
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


def check_learns(make, *, max_epochs=25, at_least=0.70, map_ratio=1.5):
    """Trained on healthy chests, a detector tells foreign patches apart and maps them; untrained it cannot.

    Parameters
    ----------
    make : callable (max_epochs, random_state, ...) -> detector
    """
    train, test = (load_chest_xray(subset=subset) for subset in ("train", "test"))
    train, normal = train.images[:, ::2, ::2], test.images[test.target == 1][:60, ::2, ::2]
    ill, masks = paste_foreign_patches(normal)
    truth = np.repeat([0, 1], len(normal))
    untrained = make(max_epochs=1, lr=1e-12, random_state=0).fit(train)
    trained = make(max_epochs=max_epochs, random_state=0).fit(train)
    before, after = (
        roc_auc_score(truth, -detector.score_samples(np.concatenate([normal, ill])))
        for detector in (untrained, trained)
    )
    assert after >= max(at_least, before + 0.10), (before, after)
    maps = trained.anomaly_map(ill)
    assert maps[masks].mean() > map_ratio * maps[~masks].mean()
