"""Levels of a network: their strides, channels and kernels, and the padding of images to fit the strides.

A level of an encoder, critic or discriminator divides the sides of its input by the stride of the level. A
level of a decoder or generator multiplies them by the stride.
"""

import math

from torch import nn
from torch.nn import functional as F


def choose_strides(image_shape, n_levels=None):
    """Strides of a network's levels.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    n_levels : int or None
        Number of levels, each of which halves both sides. An error is raised if a side is too short for that.
        None halves each side until it has about 4 pixels (4 levels at 64 x 64; a row of 1 x d keeps its
        height).

    Returns
    -------
    strides : list of (int, int)
        Strides of height and width, 1 or 2: one pair for each level, and at least one level.
    """
    _, *sides = image_shape
    if n_levels is None:
        # Each side by itself: if both were halved as often, a row of 1 x d would be padded to many rows.
        halvings = [max(0, round(math.log2(side / 4))) for side in sides]
        return [tuple(1 + (level < n) for n in halvings) for level in range(max(1, *halvings))]
    # Not 2**n_levels, which would fill the memory if a forged file had a huge n_levels.
    most = min(sides).bit_length() - 1
    if n_levels > most:
        raise ValueError(
            f"n_levels must be at most {most} for images of {sides[0]} x {sides[1]}, whose sides it halves, "
            f"got {n_levels}; lower n_levels or leave it None"
        )
    return [(2, 2)] * n_levels


def level_widths(width, n_levels, most):
    """Channels of each level: `width` times 1, 2, 4 and so on, but not more than `most` times."""
    return [width * min(most, 2**level) for level in range(n_levels)]


def kernel_size(stride):
    """Sides of the kernel of a level: 4 where the stride is 2, 3 where it is 1.

    With padding 1, a convolution then divides each side exactly by the stride, and a transposed convolution
    multiplies each side by the stride.
    """
    return tuple(2 + step for step in stride)


def padded_size(image_shape, strides):
    """Height and width of images, rounded up to multiples of the product of the strides."""
    products = (math.prod(axis) for axis in zip(*strides))
    return tuple(math.ceil(side / product) * product for side, product in zip(image_shape[1:], products))


def last_size(image_shape, strides):
    """Height and width of padded images after the last level."""
    products = (math.prod(axis) for axis in zip(*strides))
    return tuple(math.ceil(side / product) for side, product in zip(image_shape[1:], products))


def pad_to(x, size):
    """Images (n, c, h, w) padded to `size` by repeating their last row and column."""
    bottom, right = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def crop_to(x, size):
    """Images (n, c, h, w) without the rows and columns that `pad_to` added."""
    return x[..., : size[0], : size[1]]


def conv_layers(n_in, n_out, size=3, stride=1):
    """Layers convolution, BatchNorm and ReLU. With stride 1 and odd `size` they keep the sides."""
    # No bias, because BatchNorm adds one.
    conv = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(n_out), nn.ReLU()]
