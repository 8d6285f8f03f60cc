"""AnatPaste: pieces of an image, pasted elsewhere within an organ."""

import math

import torch

from .draws import (
    box_of,
    boxes_around,
    check_range,
    check_share,
    differ,
    labelled,
    partners,
    rolled,
    uniform,
)

__all__ = ["anat_paste", "dark_cavities"]


def dark_cavities(images):
    """Dark pixels (n, 1, h, w) with bright ones in all four directions, as lungs in a chest X-ray.

    A pixel is dark if it is below the mean of its image.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].

    Returns
    -------
    cavities : bool tensor of shape (n, 1, h, w)

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import dark_cavities
    >>> image = torch.ones(1, 1, 5, 5)
    >>> image[..., 2, 2] = image[..., 0, :] = 0.0
    >>> dark_cavities(image)[0, 0].nonzero().tolist()
    [[2, 2]]
    """
    grey = images.mean(1, keepdim=True)
    bright = grey >= grey.mean((2, 3), keepdim=True)
    seen = bright.int()
    around = [
        part
        for axis in (2, 3)
        for part in (seen.cummax(axis).values, seen.flip(axis).cummax(axis).values.flip(axis))
    ]
    return ~bright & torch.stack(around).all(0)


def anat_paste(
    images,
    sources,
    generator=None,
    *,
    mask=dark_cavities,
    area=(0.02, 0.15),
    aspect=(0.3, 3.3),
    jitter=0.1,
    tolerance=1e-3,
):
    """AnatPaste: a piece of the same image, pasted elsewhere within an organ.

    A box of the image, of random area and aspect and slightly changed in brightness and contrast, is pasted
    around a random pixel of the organ. Only pixels of the organ are changed; an image without any stays as it
    is. The label is 1.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    sources : tensor of shape (m, c, h, w)
        Not used but for its shape: pieces come from the image itself.
    generator : torch.Generator, default=None
        Generator of the CPU for all random numbers; None is torch's own.
    mask : callable (images) -> bool tensor of shape (n, 1, h, w), default=dark_cavities
        Function that finds the organ.
    area : tuple (low, high), default=(0.02, 0.15)
        Range of the area of a piece, as a share of the image's.
    aspect : tuple (low, high), default=(0.3, 3.3)
        Range of the ratio of its height and width, uniform in its logarithm.
    jitter : float, default=0.1
        Largest change of brightness and of contrast; 1 at most.
    tolerance : float, default=1e-3
        Largest change of a pixel whose label is 0.

    Returns
    -------
    images, masks, labels : tensors
        Changed images, masks and labels, as from `fpi`.

    References
    ----------
    .. [1] Sato, J., Suzuki, Y., Wataya, T., et al. (2023). "Anatomy-aware self-supervised learning for
       anomaly detection in chest radiographs". iScience. `arXiv:2205.04282
       <https://arxiv.org/abs/2205.04282>`_

    Examples
    --------
    >>> import torch
    >>> from functools import partial
    >>> from skanomaly.synthesis import anat_paste, foreground
    >>> images = torch.rand(4, 1, 32, 32)
    >>> images[..., :16] = 0.0
    >>> made, masks, _ = anat_paste(images, images, torch.Generator().manual_seed(0), mask=foreground)
    >>> bool(masks[..., :16].any())
    False
    """
    check_range("area", area)
    check_range("aspect", aspect, "numbers above 0", most=math.inf, above=True)
    check_share("jitter", jitter)
    partners(images, sources)
    n, _, *sides = images.shape
    extent = torch.tensor(sides)
    organ = mask(images)
    share, log_aspect = torch.rand(2, n, generator=generator)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = torch.exp((low + (high - low) * log_aspect) / 2)
    side = (area[0] + (area[1] - area[0]) * share).sqrt()
    halves = torch.stack([side * ratio, side / ratio], 1).clamp(max=1) * extent / 2
    # The largest of random numbers at the organ's pixels lies at each of them with the same probability.
    draws = torch.rand(n, math.prod(sides), generator=generator)
    chosen = (draws * organ.flatten(1).cpu()).argmax(1)
    target = torch.stack([chosen // sides[1], chosen % sides[1]], 1)
    start = halves + torch.rand(n, 2, generator=generator) * (extent - 2 * halves).clamp(min=0)
    piece = rolled(images, (target - start.floor()) / extent)
    contrast, shift = (uniform(n, (-jitter, jitter), generator, images) for _ in range(2))
    mean = piece.mean((1, 2, 3), keepdim=True)
    piece = (piece + contrast * (piece - mean) + shift).clamp(0, 1)
    box, _, _ = box_of(*boxes_around(target.float(), halves.clamp(min=0.5), sides), images)
    made = torch.where(box & organ, piece, images)
    return labelled(made, differ(made, images, tolerance), torch.ones_like(images[:, :1]))
