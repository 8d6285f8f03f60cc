"""What every network shares: how many levels an image allows, and fitting any size to a stride."""

import math

from torch.nn import functional as F


def choose_n_levels(image_shape, n_levels=None):
    """Number of times a network halves the image.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    n_levels : int or None
        None brings the longer side to about 4 pixels (4 levels at 64 x 64). An integer is
        taken as it is, and raises where the shorter side cannot be halved that often.

    Returns
    -------
    int
    """
    _, height, width = image_shape
    if n_levels is None:
        return max(1, round(math.log2(max(height, width) / 4)))
    smallest = 2**n_levels
    if min(height, width) < smallest:
        raise ValueError(
            f"images must be at least {smallest} x {smallest} for n_levels={n_levels}, "
            f"got {height} x {width}; lower n_levels or leave it None"
        )
    return n_levels


def padded_size(image_shape, n_levels):
    """Height and width rounded up to what `n_levels` halvings divide."""
    stride = 2**n_levels
    return tuple(math.ceil(side / stride) * stride for side in image_shape[1:])


def pad_to(x, size):
    """Repeat the last row and column of images (n, c, h, w) until they have `size`."""
    bottom, right = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def crop_to(x, size):
    """Undo `pad_to`."""
    return x[..., : size[0], : size[1]]
