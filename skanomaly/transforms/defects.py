"""Anomalies made from normal images.

A synthesis is a function (images, sources, generator) -> (images, masks, labels): of images (n, c, h, w) in
[0, 1] and sources of what is foreign to them, it makes changed images, bool masks (n, 1, h, w) of what was
changed, and labels (n, 1, h, w), from 0 to 1, how strongly. All random numbers come from one generator of the
CPU, so that a seed leads to the same anomalies on every device.
"""

import math

import numpy as np
import torch
from sklearn.utils import Bunch, check_array
from torch.nn import functional as F

from .._format import Layout, find_intensity_range
from .._random import draw_seed, seeded
from .perlin import partners, uniform
from .poisson import blend

__all__ = [
    "anat_paste",
    "dark_cavities",
    "foreground",
    "fpi",
    "interpolate_foreign_patches",
    "mixture",
    "nsa",
    "pii",
    "shifted_pieces",
    "synthesize",
]


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
    X, layout = _image_array(X, channel_axis, 2)
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
    _check_probability(probability)
    rows, columns = _draw_boxes(n, sides, None, half_width=half_width, margin=margin, square=False)
    mixed = (torch.rand(n) < probability) & (n > 1)  # a single image has no next one
    masks = rows[:, :, None] & columns[:, None, :] & mixed[:, None, None]
    factors = torch.rand(n)
    shares = (masks * factors[:, None, None])[:, None].to(x)
    return x + shares * (x.roll(-1, 0) - x), masks.to(x.device), factors


def _draw_boxes(n, sides, generator, *, half_width, margin, square=True):
    """Rows (n, h) and columns (n, w) of random boxes, bool tensors; each box has a pixel at least.

    With `square`, half the height and half the width of a box are the same share of the image's.
    """
    low, high = half_width if np.shape(half_width) == (2,) else (1, 0)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"half_width must hold shares of a side, low before high, got {half_width!r}")
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin must be at least 0 and below 0.5, got {margin}")
    inside, size = [], None
    for side in sides:
        if size is None or not square:
            size = torch.rand(n, generator=generator)
        half = torch.round(side * (low + (high - low) * size)).clamp(min=1)
        centre = torch.floor(side * (margin + (1 - 2 * margin) * torch.rand(n, generator=generator)))
        # Half-open, from centre - half to centre + half, as in the public code.
        inside.append((torch.arange(side) + 0.5 - centre[:, None]).abs() < half[:, None])
    return inside


def _differ(a, b, tolerance):
    """Pixels (n, 1, h, w) in which images differ by more than `tolerance` in a channel."""
    return ((a - b).abs() > tolerance).any(1, keepdim=True)


def _labelled(images, masks, strengths):
    """Images, masks and labels, which are `strengths` in the masks and 0 elsewhere."""
    return images, masks, torch.where(masks, strengths.to(images), 0)


def _box_of(rows, columns, like):
    """Pixels (n, 1, h, w) of boxes, and their rows and columns, on the device of a tensor."""
    rows, columns = rows.to(like.device), columns.to(like.device)
    return rows[:, None, :, None] & columns[:, None, None, :], rows, columns


def fpi(
    images,
    sources,
    generator=None,
    *,
    half_width=(0.05, 0.2),
    margin=0.1,
    alpha=(0.05, 0.95),
    square=True,
    tolerance=1e-3,
):
    """Foreign patch interpolation (FPI): a box of each image is mixed with that of another.

    The image is (1 - alpha) x + alpha s in the box, for an image x and its source s. The label is alpha in
    the box, and 0 where x and s differ by no more than `tolerance`.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    sources : tensor of shape (m, c, h, w)
        Images from which something foreign is taken: the i-th for the i-th image, from the first again if
        there are fewer.
    generator : torch.Generator, default=None
        Generator of the CPU for all random numbers; None is torch's own.
    half_width : tuple (low, high), default=(0.05, 0.2)
        Range of half a side of a box, as a share of the image's side.
    margin : float, default=0.1
        Least distance of the box's centre from the border, as a share of the side.
    alpha : tuple (low, high), default=(0.05, 0.95)
        Range of the share of the source.
    square : bool, default=True
        Whether both sides of a box are the same share of the image's.
    tolerance : float, default=1e-3
        Largest difference of both images in a pixel whose label is 0.

    Returns
    -------
    images : tensor of shape (n, c, h, w)
        Changed images.
    masks : bool tensor of shape (n, 1, h, w)
        Pixels with a label above 0.
    labels : tensor of shape (n, 1, h, w)
        Labels in [0, 1], 0 where nothing was changed.

    References
    ----------
    .. [1] Tan, J., Hou, B., Batten, J., Qiu, H., Kainz, B. (2022). "Detecting outliers with foreign patch
       interpolation". Machine Learning for Biomedical Imaging. `arXiv:2011.04197
       <https://arxiv.org/abs/2011.04197>`_

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import fpi
    >>> images = torch.rand(4, 1, 32, 32)
    >>> made, masks, labels = fpi(images, images.roll(1, 0), torch.Generator().manual_seed(0))
    >>> made.shape, masks.shape, labels.shape
    (torch.Size([4, 1, 32, 32]), torch.Size([4, 1, 32, 32]), torch.Size([4, 1, 32, 32]))
    """
    sources, (n, _, *sides) = partners(images, sources), images.shape
    boxes = _draw_boxes(n, sides, generator, half_width=half_width, margin=margin, square=square)
    box, _, _ = _box_of(*boxes, images)
    share = uniform(n, alpha, generator, images)
    made = torch.where(box, images + share * (sources - images), images)
    return _labelled(made, box & _differ(images, sources, tolerance), share)


def pii(
    images,
    sources,
    generator=None,
    *,
    half_width=(0.05, 0.2),
    margin=0.1,
    alpha=(0.05, 0.95),
    square=True,
    tolerance=1e-3,
):
    """Poisson image interpolation (PII): gradients of each image are mixed with those of another in a box.

    Between two neighbouring pixels the stronger of both gradients counts, after those of the image are
    multiplied by 1 - alpha and those of the source by alpha. A Poisson equation gives the image of these
    gradients that agrees with the old one around the box, so that no edge shows where the box ends. The
    result is clipped to the range of the image. The label is alpha where the image changed by more than
    `tolerance`.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    sources : tensor of shape (m, c, h, w)
        Images from which something foreign is taken, as in `fpi`.
    generator : torch.Generator, default=None
        Generator of the CPU for all random numbers; None is torch's own.
    half_width : tuple (low, high), default=(0.05, 0.2)
        Range of half a side of a box, as a share of the image's side. The outermost pixels of an image are
        not changed.
    margin : float, default=0.1
        Least distance of the box's centre from the border, as a share of the side.
    alpha : tuple (low, high), default=(0.05, 0.95)
        Range of alpha.
    square : bool, default=True
        Whether both sides of a box are the same share of the image's.
    tolerance : float, default=1e-3
        Largest change of a pixel whose label is 0.

    Returns
    -------
    images, masks, labels : tensors
        Changed images, masks and labels, as from `fpi`.

    References
    ----------
    .. [1] Tan, J., Hou, B., Day, T., Simpson, J., Rueckert, D., Kainz, B. (2021). "Detecting outliers with
       Poisson image interpolation". MICCAI. `arXiv:2107.02622 <https://arxiv.org/abs/2107.02622>`_

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import pii
    >>> images = torch.rand(4, 1, 32, 32)
    >>> made, masks, labels = pii(images, images.roll(1, 0), torch.Generator().manual_seed(0))
    >>> bool((made[~masks] - images[~masks]).abs().max() <= 1e-3)
    True
    """
    sources, (n, _, *sides) = partners(images, sources), images.shape
    boxes = _draw_boxes(n, sides, generator, half_width=half_width, margin=margin, square=square)
    _, rows, columns = _box_of(*boxes, images)
    share = uniform(n, alpha, generator, images)
    made = _within_range(blend(images, sources, rows, columns, own=1 - share, foreign=share), images)
    return _labelled(made, _differ(made, images, tolerance), share)


def _within_range(made, images):
    """Images, each clipped to the range of values of the image that it was made of."""
    return made.clamp(images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True))


def _rolled(x, shares):
    """Images, each rolled by its own shares (n, 2) of height and width."""
    n, _, *sides = x.shape
    at = []
    for side, share in zip(sides, shares.T):
        shift = torch.round(share * side).long()
        at.append(((torch.arange(side) - shift[:, None]) % side).to(x.device))
    image = torch.arange(n, device=x.device)[:, None, None]
    # Channels last: three index tensors that broadcast take the place of the three axes.
    return x.permute(0, 2, 3, 1)[image, at[0][:, :, None], at[1][:, None]].permute(0, 3, 1, 2)


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
    return x + uniform(len(x), (0.3, 1.0), generator, x) * (_rolled(sources, shift) - x)


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
    low, high = n_blobs
    if not 1 <= low <= high:
        raise ValueError(f"n_blobs must be whole numbers from 1, low before high, got {n_blobs}")
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
    return _labelled(made, _differ(made, images, tolerance) & (strengths > 0), strengths)


def _resampled(x, shift, factor, mode="bilinear"):
    """Images, magnified by `factor` (n, 2) after a shift (n, 2), so that pixel p shows what was at a place.

    That place is p / factor - shift, in pixels from the upper left corner; beyond the border the last pixels
    are repeated.
    """
    places = []
    for axis, side in enumerate(x.shape[2:]):
        at = (torch.arange(side, device=x.device) + 0.5) / factor[:, axis, None].to(x)
        places.append(2 * (at - shift[:, axis, None].to(x)) / side - 1)
    down, across = places[0][:, :, None], places[1][:, None, :]
    grid = torch.stack(torch.broadcast_tensors(across, down), -1)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def _boxes_around(centres, halves, sides):
    """Rows (n, h) and columns (n, w) within half a side of each centre, half-open."""
    return [
        (torch.arange(side) + 0.5 - torch.floor(centres[:, axis, None])).abs() < halves[:, axis, None]
        for axis, side in enumerate(sides)
    ]


def median_filtered(x, radius):
    """Images after a median filter over a disk of a radius in pixels; edges are repeated."""
    if radius < 1:
        return x
    at = torch.arange(-radius, radius + 1)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).flatten()
    size, (n, c, h, w) = 2 * radius + 1, x.shape
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    windows = F.unfold(padded.reshape(n * c, 1, *padded.shape[2:]), size)[:, disk.to(x.device)]
    return windows.median(1).values.reshape(n, c, h, w)


def nsa_labels(images, made, inside, *, mode, k, x0, tolerance, radii):
    """Labels (n, 1, h, w) of NSA, of images before and after, and of the pixels inside patches.

    The change of a pixel is the mean over the channels, in grey levels of 255. Labels are 0 unless a channel
    changed by more than `tolerance` levels in most pixels of a square around, of `radii[0]` pixels to each
    side. Changes are filtered by a median over a disk of `radii[1]` pixels.
    """
    change, side = 255 * (made - images).abs(), 2 * radii[0] + 1
    changed = (inside & (change > tolerance).any(1, keepdim=True)).to(images)
    cleaned = inside & (F.avg_pool2d(changed, side, 1, radii[0]) > 0.5)
    if mode == "binary":
        return cleaned.to(images)
    change = median_filtered(torch.where(cleaned, change.mean(1, keepdim=True), 0), radii[1])
    if mode == "intensity":
        return torch.where(inside, (change / 255).clamp(max=1), 0)
    return torch.where(cleaned, torch.sigmoid(k * (change - x0)), 0)


def nsa(
    images,
    sources,
    generator=None,
    *,
    n_patches=3,
    lower=0.05,
    scale=0.03,
    bounds=(0.03, 0.4),
    resize=(0.7, 1.3),
    objects=None,
    least_object=0.7,
    clone="mixed",
    label="logistic",
    k=0.5,
    x0=4.0,
    tolerance=1.0,
):
    """Natural synthetic anomalies (NSA): resized pieces of another image, cloned seamlessly at random places.

    A piece has a random size, comes from a random place of the source, is resized and blended into the image
    at another place by a Poisson equation. After the first one, each further piece has a probability of 1/2.
    The defaults are those for chest X-rays.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    sources : tensor of shape (m, c, h, w)
        Images from which something foreign is taken, as in `fpi`.
    generator : torch.Generator, default=None
        Generator of the CPU for all random numbers; None is torch's own.
    n_patches : int, default=3
        Largest number of pieces in an image.
    lower, scale : float, default=0.05 and 0.03
        Half a side of a piece is `lower` plus a number from the Gamma distribution of shape 2 and this scale,
        as a share of the image's side.
    bounds : tuple (low, high), default=(0.03, 0.4)
        Bounds of these shares.
    resize : tuple (low, high), default=(0.7, 1.3)
        Bounds of the factor by which a piece is resized, a normal number of mean 1 and deviation 0.5.
    objects : callable (images) -> bool tensor of shape (n, 1, h, w), default=None
        Function that finds what is no background. With it, only pixels of objects in the source take the
        place of objects in the image. None takes all pixels. `foreground` is such a function.
    least_object : float, default=0.7
        Least share of a piece that lies on an object, in the source and in the image. A piece for which no
        such place is found in 20 tries is left out.
    clone : {"mixed", "normal"}, default="mixed"
        Gradients of a piece: the stronger of both images', or those of the source.
    label : {"logistic", "intensity", "binary"}, default="logistic"
        Label of a pixel, given its change in grey levels of 255: 1 / (1 + exp(-k (change - x0))), the change
        as a share of 255, or 1.
    k, x0 : float, default=0.5 and 4.0
        Steepness and middle of the logistic label.
    tolerance : float, default=1.0
        Largest change, in grey levels, of a pixel that counts as unchanged.

    Returns
    -------
    images, masks, labels : tensors
        Changed images, masks and labels, as from `fpi`.

    References
    ----------
    .. [1] Schlueter, H. M., Tan, J., Hou, B., Kainz, B. (2022). "Natural synthetic anomalies for
       self-supervised anomaly detection and localization". ECCV. `arXiv:2109.15222
       <https://arxiv.org/abs/2109.15222>`_

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import nsa
    >>> images = torch.rand(4, 1, 32, 32)
    >>> made, masks, labels = nsa(images, images.roll(1, 0), torch.Generator().manual_seed(0))
    >>> bool((labels[~masks] == 0).all())
    True
    """
    if n_patches < 1:
        raise ValueError(f"n_patches must be at least 1, got {n_patches}")
    for name, value, known in (("clone", clone, CLONES), ("label", label, LABELS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {sorted(known)}, got {value!r}")
    sources, (n, _, *sides) = partners(images, sources), images.shape
    whole = [torch.ones_like(batch[:, :1], dtype=torch.bool) for batch in (images, sources)]
    on_image, on_source = whole if objects is None else (objects(batch) for batch in (images, sources))
    own, made, touched = float(clone == "mixed"), images, torch.zeros_like(whole[0])
    for patch in range(n_patches):
        wanted = torch.ones(n, dtype=torch.bool) if patch == 0 else torch.rand(n, generator=generator) < 0.5
        halves = _draw_halves(n, generator, lower=lower, scale=scale, bounds=bounds)
        factor = (1 + 0.5 * torch.randn(n, 1, generator=generator)).clamp(*resize).expand(n, 2)
        box, piece, inside = _place(
            halves, factor, sides, on_source, on_image, sources, generator, wanted, least_object, objects
        )
        made = blend(made, piece, *box, own=own, foreign=1.0, inside=inside)
        made = _within_range(made, images)
        touched |= inside
    # 2 and 5 pixels in the public code, for images of 256 x 256.
    radii = [round(radius * min(sides) / 256) for radius in (2, 5)]
    labels = nsa_labels(images, made, touched, mode=label, k=k, x0=x0, tolerance=tolerance, radii=radii)
    return _labelled(made, labels > 0, labels)


def _draw_halves(n, generator, *, lower, scale, bounds):
    """Half the height and half the width (n, 2) of pieces of NSA, as shares of the sides."""
    uniform = torch.rand(2, 2, n, generator=generator).clamp(min=1e-12)
    # The sum of two exponential numbers has the Gamma distribution of shape 2.
    return (lower - scale * uniform.log().sum(0)).clamp(*bounds).T


#: Values of `clone` and `label` of `nsa`.
CLONES, LABELS = {"mixed", "normal"}, {"logistic", "intensity", "binary"}
#: Number of places that are tried for a piece of `nsa`, if objects must be met.
N_TRIES = 20


def _place(halves, factor, sides, on_source, on_image, sources, generator, wanted, least, objects):
    """Boxes of pieces, the resized sources that lie in them, and which pixels of them are pasted."""
    n, extent = len(halves), torch.tensor(sides)
    found = ~wanted
    source_at, target_at = torch.zeros(n, 2), torch.zeros(n, 2)
    for _ in range(1 if objects is None else N_TRIES):
        draws = torch.rand(2, n, 2, generator=generator)
        # A piece lies in the source, and the middle of what it becomes lies anywhere in the image.
        half = halves * extent
        tried_source = half + draws[0] * (extent - 2 * half).clamp(min=0)
        tried_target = draws[1] * extent
        source_at = torch.where(found[:, None], source_at, tried_source)
        target_at = torch.where(found[:, None], target_at, tried_target)
        if objects is None:
            break
        rows, columns, inside = _pasted(target_at, source_at, half, factor, sides, on_source, on_image)
        source_box, _, _ = _box_of(*_boxes_around(source_at, half.clamp(min=0.5), sides), on_source)
        shares = [
            (pixels & box).sum((1, 2, 3)) / box.sum((1, 2, 3)).clamp(min=1)
            for pixels, box in ((on_source, source_box), (inside, _box_of(rows, columns, inside)[0]))
        ]
        found |= (torch.minimum(*shares) >= least).cpu()
        if found.all():
            break
    else:
        wanted = wanted & found
    half = halves * extent
    rows, columns, inside = _pasted(target_at, source_at, half, factor, sides, on_source, on_image)
    wanted = wanted.to(rows.device)[:, None]
    shift = target_at / factor - source_at
    piece = _resampled(sources, shift, factor)
    return (rows & wanted, columns & wanted), piece, inside & wanted[:, :, None, None]


def _pasted(target_at, source_at, half, factor, sides, on_source, on_image):
    """Rows and columns of pieces in the image, and their pixels (n, 1, h, w) of objects in both images."""
    boxes = _boxes_around(target_at, (half * factor).clamp(min=1), sides)
    box, rows, columns = _box_of(*boxes, on_image)
    shift = target_at / factor - source_at
    moved = _resampled(on_source.float(), shift, factor, mode="nearest") > 0.5
    return rows, columns, box & moved & on_image


def foreground(images, *, background=0.0, threshold=20 / 255):
    """Pixels (n, 1, h, w) whose mean over the channels is further than `threshold` from `background`.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    background : float, default=0.0
        Intensity of the background.
    threshold : float, default=20 / 255
        Largest difference of a background pixel.

    Returns
    -------
    foreground : bool tensor of shape (n, 1, h, w)

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import foreground
    >>> foreground(torch.tensor([[[[0.0, 0.05, 0.5]]]])).tolist()
    [[[[False, False, True]]]]
    """
    return (images.mean(1, keepdim=True) - background).abs() > threshold


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
        Largest change of brightness and of contrast.
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
    piece = _rolled(images, (target - start.floor()) / extent)
    contrast, shift = (uniform(n, (-jitter, jitter), generator, images) for _ in range(2))
    mean = piece.mean((1, 2, 3), keepdim=True)
    piece = (piece + contrast * (piece - mean) + shift).clamp(0, 1)
    box, _, _ = _box_of(*_boxes_around(target.float(), halves.clamp(min=0.5), sides), images)
    made = torch.where(box & organ, piece, images)
    return _labelled(made, _differ(made, images, tolerance), torch.ones_like(images[:, :1]))


def shifted_pieces(
    images,
    sources,
    generator=None,
    *,
    half_width=(0.05, 0.2),
    margin=0.1,
    alpha=(0.05, 0.95),
    shift=0.3,
    tolerance=1e-3,
):
    """Pieces of other images from elsewhere, brighter or darker than there.

    In a box, the image is mixed with its source, which is displaced by a random way, any up to the whole
    image, and shifted in intensity. The label is the share of the source. Anatomy at the same place and of
    the same brightness, as in `fpi`, may be hard to tell from the image's own.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    sources : tensor of shape (m, c, h, w)
        Images from which something foreign is taken, as in `fpi`.
    generator : torch.Generator, default=None
        Generator of the CPU for all random numbers; None is torch's own.
    half_width : tuple (low, high), default=(0.05, 0.2)
        Range of half the height and half the width of a box, as shares of the image's.
    margin : float, default=0.1
        Least distance of the box's centre from the border, as a share of the side.
    alpha : tuple (low, high), default=(0.05, 0.95)
        Range of the share of the source.
    shift : float, default=0.3
        Largest shift of the source's intensities, up or down.
    tolerance : float, default=1e-3
        Largest difference, in a pixel whose label is 0, between the image and what is mixed in.

    Returns
    -------
    images, masks, labels : tensors
        Changed images, masks and labels, as from `fpi`.

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import shifted_pieces
    >>> images = torch.rand(4, 1, 32, 32)
    >>> made, masks, labels = shifted_pieces(images, images.roll(1, 0), torch.Generator().manual_seed(0))
    >>> float(labels.max()) <= 0.95
    True
    """
    sources, n = partners(images, sources), len(images)
    moved = _rolled(sources, torch.rand(n, 2, generator=generator))
    moved = (moved + uniform(n, (-shift, shift), generator, images)).clamp(0, 1)
    options = {"half_width": half_width, "margin": margin, "alpha": alpha, "tolerance": tolerance}
    return fpi(images, moved, generator, square=False, **options)


def synthesize(
    X,
    synthesis=fpi,
    *,
    sources=None,
    probability=1.0,
    intensity_range="auto",
    channel_axis="auto",
    random_state=None,
):
    """Images with synthetic anomalies, made from an array of normal images.

    Parameters
    ----------
    X : array-like of shape (n, H, W), (n, H, W, C) or (n, C, H, W)
        Normal images; at least two without `sources`.
    synthesis : callable (images, sources, generator) -> (images, masks, labels), default=fpi
        Function of this module, or one like it; `functools.partial` gives it options.
    sources : array-like, default=None
        Images from which something foreign is taken, as X; for example unlabelled ones. Each image gets one
        at random. None takes another image of X for each.
    probability : float, default=1.0
        Probability that an image is changed.
    intensity_range : "auto" or tuple (low, high), default="auto"
        Intensities that become 0 and 1 for `synthesis`, as for a detector.
    channel_axis : "auto", int or None, default="auto"
        Axis of X that holds the channels, as for a detector.
    random_state : int, RandomState or None, default=None
        Seed. The same int makes the same images.

    Returns
    -------
    data : sklearn.utils.Bunch
        ``images`` have the shape and dtype of X. ``masks`` (n, H, W) bool are True where something was
        changed. ``labels`` (n, H, W) float32 are soft labels in [0, 1].

    Examples
    --------
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.synthesis import pii, synthesize
    >>> made = synthesize(load_chest_xray().images[:8], pii, random_state=0)
    >>> made.images.shape, made.masks.shape, made.labels.shape
    ((8, 64, 64), (8, 64, 64), (8, 64, 64))
    """
    X, layout = _image_array(X, channel_axis, 2 if sources is None else 1)
    low, high = find_intensity_range(X, intensity_range, np.ones(len(X), bool))

    def scaled(X, layout):
        values = (layout.to_network(X).astype("float64") - low) / ((high - low) or 1.0)
        return torch.from_numpy(np.ascontiguousarray(values, dtype="float32"))

    x = scaled(X, layout)
    with seeded(draw_seed(random_state)):
        generator = torch.default_generator
        if sources is None:
            # By 1 to n - 1 places: any other image, never the image itself.
            index = (torch.arange(len(x)) + torch.randint(1, len(x), (len(x),))) % len(x)
            foreign = x[index]
        else:
            foreign = scaled(*_image_array(sources, channel_axis, 1))
            foreign = foreign[torch.randint(len(foreign), (len(x),))]
        made, masks, labels = apply_to_some(synthesis, x, foreign, generator, probability)
    images = layout.from_network(made.numpy().astype("float64") * (high - low) + low)
    if X.dtype.kind in "iu":
        info = np.iinfo(X.dtype)
        images = images.round().clip(info.min, info.max)
    images = images.astype(X.dtype)
    # Taken from X, since scaling and back may change the last digit of a pixel.
    touched = layout.from_network((made != x).numpy())
    masks, labels = (part[:, 0].numpy() for part in (masks, labels))
    return Bunch(images=np.where(touched, images, X), masks=masks, labels=labels)


def apply_to_some(synthesis, images, sources, generator, probability):
    """Images, masks and labels of a synthesis, each image changed with a given probability."""
    _check_probability(probability)
    n, _, *sides = images.shape
    changed = (torch.rand(n, generator=generator) < probability).to(images.device)[:, None, None, None]
    made, masks, labels = synthesis(images, sources, generator)
    for name, part, shape in (
        ("images", made, images.shape),
        ("masks", masks, (n, 1, *sides)),
        ("labels", labels, (n, 1, *sides)),
    ):
        if part.shape != shape:
            raise ValueError(
                f"synthesis must return {name} of the shape {tuple(shape)}, got {tuple(part.shape)}"
            )
    return torch.where(changed, made, images), masks & changed, labels * changed


def _check_probability(probability):
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")


def _image_array(X, channel_axis, n_least):
    """Array of images, and its Layout."""
    X = check_array(X, allow_nd=True, ensure_min_samples=n_least, dtype="numeric")
    if X.ndim not in (3, 4):
        raise ValueError(
            f"X must be (n, H, W), (n, H, W, C) or (n, C, H, W), got an array of shape {X.shape}"
        )
    return X, Layout.of(X.shape, channel_axis)
