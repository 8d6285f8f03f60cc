"""Anomalies made from normal images.

A defect is a function that takes a batch of images (n, c, h, w) and returns changed images, masks (n, h, w)
of the anomalies and factors (n,), their strengths. All random numbers come from torch's CPU generator,
so that a seed leads to the same defects on every device.
"""

import numpy as np
import torch
from sklearn.utils import Bunch, check_array

from .._format import Layout
from .._random import draw_seed, seeded

__all__ = ["interpolate_foreign_patches"]


def interpolate_foreign_patches(
    X, *, half_width=(0.05, 0.2), margin=0.1, probability=1.0, channel_axis="auto", random_state=None
):
    """Images, each mixed with another image within a box (foreign patch interpolation, FPI).

    Parameters
    ----------
    X : array-like of shape (n, H, W), (n, H, W, C) or (n, C, H, W)
        Normal images, at least two.
    half_width : tuple (low, high), default=(0.05, 0.2)
        Range of half the height of a box, as a share of the image's height, and of half its width, as a share
        of the image's width. Height and width are drawn separately.
    margin : float, default=0.1
        Least distance of the box's centre from the border, as a share of the side.
    probability : float, default=1.0
        Probability that an image gets a box. Images without a box stay as they are.
    channel_axis : "auto", int or None, default="auto"
        Axis of X that holds the channels, as for a detector.
    random_state : int, RandomState or None, default=None
        Seed. The same int makes the same images.

    Returns
    -------
    data : sklearn.utils.Bunch
        ``images`` have the shape and dtype of X. ``masks`` (n, H, W) bool are True in the boxes. ``factors``
        (n,) are the shares alpha of the other image in the boxes; without a box they have no meaning.

    References
    ----------
    .. [1] Tan, J., Hou, B., Batten, J., Qiu, H., Kainz, B. (2022). "Detecting outliers with foreign patch
       interpolation". Machine Learning for Biomedical Imaging. `arXiv:2011.04197
       <https://arxiv.org/abs/2011.04197>`_

    Examples
    --------
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.synthesis import interpolate_foreign_patches
    >>> made = interpolate_foreign_patches(load_chest_xray().images[:8], random_state=0)
    >>> made.images.shape, made.masks.shape
    ((8, 64, 64), (8, 64, 64))
    """
    X = check_array(X, allow_nd=True, ensure_min_samples=2, dtype="numeric")
    if X.ndim not in (3, 4):
        raise ValueError(
            f"X must be (n, H, W), (n, H, W, C) or (n, C, H, W), got an array of shape {X.shape}"
        )
    layout = Layout.of(X.shape, channel_axis)
    # float64 holds every integer of 32 bits.
    x = torch.from_numpy(np.ascontiguousarray(layout.to_network(X), dtype="float64"))
    with seeded(draw_seed(random_state)):
        images, masks, factors = foreign_patches(
            x, half_width=half_width, margin=margin, probability=probability
        )
    images = layout.from_network(images.numpy())
    images = images.round() if X.dtype.kind in "iu" else images
    return Bunch(images=images.astype(X.dtype), masks=masks.numpy(), factors=factors.numpy())


def foreign_patches(x, *, half_width=(0.05, 0.2), margin=0.1, probability=1.0):
    """Foreign patch interpolation of a batch (n, c, h, w): images, masks (n, h, w) and factors (n,).

    Within a random box, an image is mixed with the next image of the batch. The mask is True in the box, and
    the factor is the share of the next image there. The options are those of `interpolate_foreign_patches`.
    """
    n, _, *sides = x.shape
    low, high = half_width if np.shape(half_width) == (2,) else (1, 0)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"half_width must hold shares of a side, low before high, got {half_width!r}")
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin must be at least 0 and below 0.5, got {margin}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")
    inside = []
    for side in sides:
        half = torch.round(side * (low + (high - low) * torch.rand(n))).clamp(min=1)
        centre = torch.floor(side * (margin + (1 - 2 * margin) * torch.rand(n)))
        # Half-open, from centre - half to centre + half, as in the public code.
        inside.append((torch.arange(side) + 0.5 - centre[:, None]).abs() < half[:, None])
    mixed = (torch.rand(n) < probability) & (n > 1)  # a single image has no next one
    masks = inside[0][:, :, None] & inside[1][:, None, :] & mixed[:, None, None]
    factors = torch.rand(n)
    shares = (masks * factors[:, None, None])[:, None].to(x)
    return x + shares * (x.roll(-1, 0) - x), masks.to(x.device), factors
