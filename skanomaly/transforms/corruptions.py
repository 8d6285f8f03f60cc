"""Corruptions of images, which a network learns to undo.

All random numbers come from torch's CPU generator, so that a seed leads to the same corruptions on
every device.
"""

import math

import torch
from torch.nn import functional as F


def erase_squares(x, *, area, value):
    """Images (n, c, h, w), in each of which a random square, `area` of the image, is set to `value`."""
    n, _, height, width = x.shape
    side = max(1, round(math.sqrt(area * height * width)))
    inside = [
        (places >= start[:, None]) & (places < start[:, None] + side)
        for places, start in (
            (torch.arange(size), torch.randint(max(1, size - side + 1), (n,))) for size in (height, width)
        )
    ]
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(square.to(x.device), value)


def add_coarse_noise(x, *, deviation, size, foreground=False):
    """Images (n, c, h, w) plus Gaussian noise: `size` x `size` values, enlarged and rolled at random.

    With `foreground` a pixel stays as it is where all channels have the lowest value of their image.
    """
    noise = deviation * torch.randn(*x.shape[:2], size, size)
    noise = F.interpolate(noise, x.shape[2:], mode="bilinear", align_corners=True)
    # Rolled, or the few places of the coarse values would be the same in every batch.
    shifts = [int(torch.randint(side, ())) for side in x.shape[2:]]
    noise = noise.roll(shifts, (2, 3)).to(x)
    if foreground:
        noise = noise * (x > x.amin((1, 2, 3), keepdim=True)).any(1, keepdim=True)
    return x + noise
