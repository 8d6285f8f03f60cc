"""Confounds: numbers of an image that no illness needs, and that may tell the ill from the normal."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

#: Width of the border, as a share of the image's shorter side.
BORDER = 1 / 16
#: Mask of Immerkær (1996): the difference of two Laplacians, which cancels constants, slopes and edges.
NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])


def confounds(
    X: ArrayLike, *, channel_axis: Any = "auto", image_shape: tuple[int, ...] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Sharpness, brightness, contrast, border and noise of each image.

    None of them shows an illness. If one tells anomalous images from normal ones, it is a shortcut: a
    detector may have found no more than that. `stratified_auroc` says what a detector finds among images that
    are alike in a confound.

    Parameters
    ----------
    X : array-like of shape (n, H, W), (n, H, W, C), (n, C, H, W) or (n, d)
        Images, or rows: whatever `fit` of a detector takes. They are read in blocks.
    channel_axis : int, None or "auto", default="auto"
        Axis of X that holds the channels, as in a detector.
    image_shape : tuple (H, W) or (C, H, W), default=None
        Shape of an image, if X has rows.

    Returns
    -------
    confounds : dict of str to (n,) float64 ndarray
        Values by name, in the units of X. Channels are averaged first.

        * "sharpness": mean absolute difference between neighbouring pixels, along columns or along rows,
          whichever is smaller: motion blurs one direction;
        * "brightness": mean;
        * "contrast": standard deviation;
        * "border": mean of a frame, whose width is 1/16 of the shorter side and at least one pixel: it shows
          padding, collimators and captions;
        * "noise": standard deviation of the noise of pixels, as Immerkær estimates it [1]_.

    Raises
    ------
    ValueError
        If X holds NaN or infinity, or its shape is ambiguous or impossible.
    TypeError
        If X holds paths, masked values or no real numbers, or if a lazy X reads as several dtypes.

    See Also
    --------
    stratified_auroc : AUROC among images that are alike in a confound.

    Notes
    -----
    Nobody knows beforehand whether more of a confound is worse: judge one by the larger of its `auroc` and
    1 - `auroc`.

    Mirrored and transposed images have the same confounds. Other units, a X + b with a > 0, change brightness
    and border alike, and multiply the other three by a, so that the order of the images stays. Sharpness and
    noise depend on the size of the images; compare images of one size. A difference that an image of one row
    or one column does not have is 0.

    References
    ----------
    .. [1] J. Immerkær, "Fast noise variance estimation", Computer Vision and Image Understanding 64 (1996),
       300-302. <https://doi.org/10.1006/cviu.1996.0060>

    Examples
    --------
    Less sharp radiographs are the ill ones here, in nine pairs of ten:

    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.metrics import auroc, confounds
    >>> test = load_chest_xray(subset="test")
    >>> alone = {name: auroc(test.target, values) for name, values in confounds(test.images).items()}
    >>> {name: round(max(value, 1 - value), 2) for name, value in alone.items()}
    {'sharpness': 0.91, 'brightness': 0.55, 'contrast': 0.65, 'border': 0.56, 'noise': 0.87}
    """
    # Here and not above: metrics of scores need no torch, which the readers of images do.
    from ._format import iter_images

    rows = [_measured(image.mean(0)) for image in iter_images(X, channel_axis, image_shape)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _measured(image):
    """Confounds of an image (H, W)."""
    width = max(1, round(BORDER * min(image.shape)))
    border = np.ones(image.shape, dtype=bool)
    border[width:-width, width:-width] = False
    # Mirrored at the edge, so that the smallest images have an estimate, too.
    noise = np.abs(ndimage.convolve(image, NOISE, mode="mirror")).mean() * np.sqrt(np.pi / 2) / 6
    steps = (np.abs(np.diff(image, axis=axis)) for axis in (0, 1))
    return {
        "sharpness": min(step.mean() if step.size else 0.0 for step in steps),
        "brightness": image.mean(),
        "contrast": image.std(),
        "border": image[border].mean(),
        "noise": noise,
    }
