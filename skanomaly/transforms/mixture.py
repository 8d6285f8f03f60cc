"""Mixture of local defects: six things that happen in soft blobs of an image."""

import math
import operator

import torch

from .draws import check_range, differ, labelled, partners, rolled, uniform

__all__ = ["mixture"]


def _blurred(x, sigmas):
    """Images after Gaussian filters, each of its own deviation, (n, 1, 1, 1) in pixels.

    Beyond the border there is nothing: weights of the pixels inside are scaled to a sum of 1.
    """
    weights = []
    for side in x.shape[2:]:
        at = torch.arange(side, device=x.device)
        kernel = torch.exp(-0.5 * ((at[:, None] - at) / sigmas) ** 2)
        weights.append(kernel / kernel.sum(-1, keepdim=True))
    return weights[0] @ x @ weights[1].mT


def _blobs(n, sides, generator, *, size, like):
    """Soft blobs (n, 1, h, w), one for each image: turned ellipses and boxes, from 1 inside to 0 outside."""
    draws = torch.rand(7, n, 1, 1, generator=generator).to(like)
    place, extent, (angle, softness, shape) = draws[:2], draws[2:4], draws[4:]
    offsets, halves = [], []
    for axis, side in enumerate(sides):
        at = torch.arange(side, device=like.device) + 0.5
        offsets.append((at[:, None] if axis == 0 else at) - side * place[axis])
        low, high = (side * share / 2 for share in size)
        halves.append((low + (high - low) * extent[axis]).clamp(min=1))
    angle = math.pi * angle
    along = (offsets[0] * angle.cos() + offsets[1] * angle.sin()) / halves[0]
    across = (offsets[1] * angle.cos() - offsets[0] * angle.sin()) / halves[1]
    distance = torch.where(shape < 0.5, torch.hypot(along, across), torch.maximum(along.abs(), across.abs()))
    # 1 in the middle: the edge takes at least a tenth of the radius, and at most all of it.
    return ((1 - distance) / (0.1 + 0.9 * softness)).clamp(0, 1)[:, None]


def _scale(x):
    """Factor of lengths that are given in pixels of an image with sides of 64; at least 1."""
    return max(1.0, min(x.shape[2:]) / 64)


def _foreign(x, sources, generator):
    shift = 0.6 * (torch.rand(len(x), 2, generator=generator) - 0.5)
    shift = shift * (torch.rand(len(x), 1, generator=generator) < 0.6)
    return x + uniform(len(x), (0.3, 1.0), generator, x) * (rolled(sources, shift) - x)


def _detail(x, sources, generator):
    gain, shift = (uniform(len(x), of, generator, x) for of in ((0.3, 1.5), (-0.15, 0.15)))
    sigma = torch.full_like(gain, 3 * _scale(x))
    return _blurred(x, sigma) + gain * (sources - _blurred(sources, sigma)) + shift


def _blur(x, sources, generator):
    return _blurred(x, _scale(x) * uniform(len(x), (0.7, 3.0), generator, x))


def _brightness(x, sources, generator):
    return x + uniform(len(x), (-0.4, 0.4), generator, x)


def _noise(x, sources, generator):
    deviation = uniform(len(x), (0.03, 0.2), generator, x)
    return x + deviation * torch.randn(x.shape, generator=generator).to(x)


def _sharpen(x, sources, generator):
    blurred = _blurred(x, torch.full_like(x[:, :1, :1, :1], _scale(x)))
    return x + uniform(len(x), (1.0, 4.0), generator, x) * (x - blurred)


#: Defects in a blob of `mixture`, by name: functions (images, sources, generator) -> images.
KINDS = {
    "foreign": _foreign,
    "detail": _detail,
    "blur": _blur,
    "brightness": _brightness,
    "noise": _noise,
    "sharpen": _sharpen,
}


def mixture(
    images,
    sources,
    generator=None,
    *,
    kinds=("foreign", "detail", "blur", "brightness", "noise", "sharpen"),
    n_blobs=(1, 3),
    size=(0.12, 0.55),
    tolerance=0.01,
):
    """Mixture of local defects: in a few soft blobs of each image, one of six things happens.

    A blob is an ellipse or a box, turned and with a soft edge. In it, one of these takes the image's place:
    "foreign", the image mixed with its source, which is displaced in six of ten cases; "detail", the source's
    fine structure on the image's coarse one; "blur"; "brightness", another one; "noise"; "sharpen". The label
    is the largest weight of a blob, and 0 where the image changed by no more than `tolerance`.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    sources : tensor of shape (m, c, h, w)
        Images from which something foreign is taken, as in `fpi`.
    generator : torch.Generator, default=None
        Generator of the CPU for all random numbers; None is torch's own.
    kinds : sequence of str, default=("foreign", "detail", "blur", "brightness", "noise", "sharpen")
        Defects, one of which happens in each blob.
    n_blobs : tuple (low, high), default=(1, 3)
        Least and largest number of blobs in an image.
    size : tuple (low, high), default=(0.12, 0.55)
        Range of the height and width of a blob, as shares of the image's.
    tolerance : float, default=0.01
        Largest change of a pixel whose label is 0.

    Returns
    -------
    images, masks, labels : tensors
        Changed images, masks and labels, as from `fpi`.

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import mixture
    >>> images = torch.rand(4, 1, 32, 32)
    >>> made, masks, labels = mixture(images, images.roll(1, 0), torch.Generator().manual_seed(0))
    >>> bool((masks == (labels > 0)).all())
    True
    """
    if unknown := sorted(set(kinds) - set(KINDS)) or not kinds:
        raise ValueError(f"kinds must be some of {sorted(KINDS)}, got {unknown if kinds else kinds}")
    check_range("n_blobs", n_blobs, "whole numbers from 1", least=1, most=math.inf, number=operator.index)
    check_range("size", size)
    low, high = n_blobs
    sources, (n, _, *sides) = partners(images, sources), images.shape
    numbers = torch.randint(low, high + 1, (n,), generator=generator)
    made, strengths = images, torch.zeros_like(images[:, :1])
    for blob in range(high):
        kind = torch.randint(len(kinds), (n,), generator=generator)
        blobs = _blobs(n, sides, generator, size=size, like=images)
        blobs = blobs * (blob < numbers).to(images)[:, None, None, None]
        content = torch.empty_like(images)
        for k, name in enumerate(kinds):
            chosen = torch.nonzero(kind == k)[:, 0].to(images.device)
            content[chosen] = KINDS[name](made[chosen], sources[chosen], generator)
        # Clipped before it is blended: what lies outside the blobs stays, whatever its range.
        made = made + blobs * (content.clamp(0, 1) - made)
        strengths = torch.maximum(strengths, blobs)
    # In floating point a + 0 * (b - a) is a: pixels outside all blobs are untouched.
    return labelled(made, differ(made, images, tolerance) & (strengths > 0), strengths)
