"""What every network shares: how often an image is halved, and fitting any size to that."""

import math

from torch.nn import functional as F


def choose_strides(image_shape, n_levels=None):
    """How each level of a network shrinks the image.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    n_levels : int or None
        None brings each side to about 4 pixels by itself (4 levels at 64 x 64; a row of 1 x d keeps
        its height). An integer halves both sides so often, and raises where one is too short.

    Returns
    -------
    list of (int, int)
        Strides 1 or 2 of height and width, one pair a level, at least one level.
    """
    _, *sides = image_shape
    if n_levels is None:
        halvings = [max(0, round(math.log2(side / 4))) for side in sides]
        return [tuple(1 + (level < n) for n in halvings) for level in range(max(1, *halvings))]
    most = min(sides).bit_length() - 1
    if n_levels > most:
        raise ValueError(
            f"n_levels must be at most {most} for images of {sides[0]} x {sides[1]}, whose sides it halves, "
            f"got {n_levels}; lower n_levels or leave it None"
        )
    return [(2, 2)] * n_levels


def padded_size(image_shape, strides):
    """Height and width rounded up to what the strides divide."""
    products = (math.prod(axis) for axis in zip(*strides))
    return tuple(math.ceil(side / product) * product for side, product in zip(image_shape[1:], products))


def last_size(image_shape, strides):
    """Height and width after the last level."""
    return tuple(
        side // math.prod(axis) for side, axis in zip(padded_size(image_shape, strides), zip(*strides))
    )


def pad_to(x, size):
    """Repeat the last row and column of images (n, c, h, w) until they have `size`."""
    bottom, right = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def crop_to(x, size):
    """Undo `pad_to`."""
    return x[..., : size[0], : size[1]]
