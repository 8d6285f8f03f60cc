"""Anomalies of CutPaste: patches of images, pasted elsewhere."""

import math

import torch

from .draws import between, check_range, check_share, partners, uniform

__all__ = ["cutpaste"]

#: Side of the images for which the paper gives scars in pixels.
SIDE = 256


def cutpaste(
    images,
    sources=None,
    generator=None,
    *,
    kind="union",
    area=(0.02, 0.15),
    ratio=(0.3, 1 / 0.3),
    scar_width=(2, 16),
    scar_length=(10, 25),
    degrees=45.0,
    jitter=0.1,
):
    """Patches of images, pasted elsewhere (CutPaste).

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    sources : tensor of shape (m, c, h, w), default=None
        Images from which patches are cut: the i-th for the i-th image, from the first again if there are
        fewer. None cuts from the image itself, as in the paper.
    generator : torch.Generator, default=None
        Generator of the CPU for all random numbers; None is torch's own.
    kind : {"normal", "scar", "union"}, default="union"
        Kind of patch. "normal": upright rectangle. "scar": thin rectangle that is turned. "union": one of
        both for each image, at equal odds.
    area : tuple (low, high), default=(0.02, 0.15)
        Range of the area of a normal patch, as a share of the image's.
    ratio : tuple (low, high), default=(0.3, 1 / 0.3)
        Range of the ratio of height to width of a normal patch, as shares of the image's sides. Its logarithm
        is drawn evenly.
    scar_width, scar_length : tuple (low, high), default=(2, 16) and (10, 25)
        Ranges of the sides of a scar, in pixels of an image of 256 x 256; for other sizes in proportion to
        the shorter side.
    degrees : float, default=45.0
        Largest angle by which a scar is turned, in either direction.
    jitter : float, default=0.1
        Largest change of a patch in brightness and contrast, as a share; for images with three channels also
        in saturation, and in hue as a share of the circle. 1 at most.

    Returns
    -------
    images : tensor of shape (n, c, h, w)
        Changed images.
    masks : bool tensor of shape (n, 1, h, w)
        Pixels on which a patch was pasted; one at least.
    labels : tensor of shape (n, 1, h, w)
        The masks as numbers, 0 and 1.

    Raises
    ------
    ValueError
        If a parameter is out of range, or sources have another shape than images.

    References
    ----------
    .. [1] Li, C.-L., Sohn, K., Yoon, J., Pfister, T. (2021). "CutPaste: self-supervised learning for anomaly
       detection and localization". CVPR. `arXiv:2104.04015 <https://arxiv.org/abs/2104.04015>`_

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import cutpaste
    >>> images = torch.rand(4, 1, 32, 32)
    >>> made, masks, labels = cutpaste(images, None, torch.Generator().manual_seed(0), kind="normal")
    >>> bool((made == images)[~masks].all())
    True
    """
    if kind not in ("normal", "scar", "union"):
        raise ValueError(f"kind must be 'normal', 'scar' or 'union', got {kind!r}")
    check_range("area", area, "shares of the image above 0", above=True)
    for name, bounds in (("ratio", ratio), ("scar_width", scar_width), ("scar_length", scar_length)):
        check_range(name, bounds, "numbers above 0", most=math.inf, above=True)
    check_share("jitter", jitter)
    n, _, *sides = images.shape
    foreign = images if sources is None else partners(images, sources)
    patch, angle = _draw_normal(n, sides, generator, area, ratio), torch.zeros(n)
    if kind != "normal":
        is_scar = torch.rand(n, generator=generator) < (1.0 if kind == "scar" else 0.5)
        scar = _draw_scar(n, sides, generator, scar_width, scar_length)
        patch = torch.where(is_scar, scar, patch)
        turn = math.radians(degrees) * (2 * torch.rand(n, generator=generator) - 1)
        angle = torch.where(is_scar, turn, angle)
    masks, index = _places(n, sides, patch, angle, generator)
    masks, index = masks.to(images.device), index.to(images.device)
    pasted = foreign.flatten(2).gather(2, index[:, None].expand(-1, images.shape[1], -1)).view_as(images)
    if jitter:
        pasted = _jittered(pasted, masks, jitter, generator)
    return torch.where(masks, pasted, images), masks, masks.to(images)


def _draw_normal(n, sides, generator, area, ratio):
    """Heights and widths (2, n) in whole pixels of upright patches."""
    share = between(n, area, generator)
    ratio = between(n, [math.log(value) for value in ratio], generator).exp()
    shares = torch.stack([share * ratio, share / ratio]).sqrt().clamp(max=1)
    # Not rounded for themselves: the area, not each side, is to be that which was drawn.
    height = torch.round(sides[0] * shares[0]).clamp(1, sides[0])
    width = torch.round(share * sides[0] * sides[1] / height).clamp(1, sides[1])
    return torch.stack([height, width])


def _draw_scar(n, sides, generator, width, length):
    """Heights and widths (2, n) in pixels of scars before they are turned."""
    scale = min(sides) / SIDE
    drawn = torch.stack([between(n, bounds, generator) for bounds in (length, width)])
    return torch.round(scale * drawn).clamp(min=1)


def _places(n, sides, patch, angle, generator):
    """Masks (n, 1, h, w) of patches in new places, and places (n, h * w) from which pixels are copied.

    A pixel of the mask is copied from the same place in the patch, which is turned after it was cut.
    """
    cos, sin = angle.cos(), angle.sin()
    # The box around the turned patch lies within the image, as long as there is room for it.
    box = torch.stack(
        [patch[0] * cos.abs() + patch[1] * sin.abs(), patch[0] * sin.abs() + patch[1] * cos.abs()]
    )
    places = torch.rand(2, 2, n, generator=generator)
    tops, starts = [], []
    for axis, side in enumerate(sides):
        around = box[axis].round().clamp(max=side)
        # Whole pixels: an upright patch then covers as many pixels as it has.
        tops.append((places[0, axis] * (side - around + 1)).floor() + around / 2)
        own = patch[axis].clamp(max=side)
        starts.append((places[1, axis] * (side - own + 1)).floor() + own / 2)
    row, column = (torch.arange(side) + 0.5 for side in sides)
    row = row[:, None] - tops[0][:, None, None]
    column = column - tops[1][:, None, None]
    cos, sin = cos[:, None, None], sin[:, None, None]
    inside, index = True, 0
    for axis, at in enumerate((cos * row + sin * column, cos * column - sin * row)):
        inside = inside & (at.abs() < patch[axis][:, None, None] / 2)
        found = (at + starts[axis][:, None, None]).floor().long().clamp(0, sides[axis] - 1)
        index = index * sides[axis] + found
    # A thin scar may slip between all pixel centres: the nearest one is covered then.
    nearest = (row.square() + column.square()).flatten(1).argmin(1)
    inside.flatten(1)[torch.arange(n), nearest] = True
    return inside[:, None], index.flatten(1)


def _jittered(x, masks, strength, generator):
    """Images whose pixels in masks (n, 1, h, w) are changed in brightness, contrast, saturation and hue."""
    n, c = x.shape[:2]

    def factor():
        return uniform(n, (1 - strength, 1 + strength), generator, x)

    x = x * factor()
    # The mean of the patch alone: what lies around it is not there yet when it is changed.
    mean = (x * masks).sum((1, 2, 3), keepdim=True) / (c * masks.sum((1, 2, 3), keepdim=True))
    x = torch.lerp(mean, x, factor())
    if c == 3:
        grey = x.mean(1, keepdim=True)
        color = factor() * (x - grey)
        angle = 2 * math.pi * uniform(n, (-strength, strength), generator, x)
        # A turn about the axis of grey values: colors stay in the plane that is square to it.
        across = (color.roll(1, 1) - color.roll(-1, 1)) / math.sqrt(3)
        x = grey + angle.cos() * color + angle.sin() * across
    return x.clamp(0, 1)
