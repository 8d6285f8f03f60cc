"""Anomalies of DRAEM: textures blended into images where Perlin noise is strong."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from .draws import check_range, partners, uniform

__all__ = ["perlin"]

#: Least side of a cell of the noise in pixels: that of the paper's finest noise, 32 cells on 256 pixels.
LEAST_CELL = 8
#: Photometric and geometric changes of a texture, of which each texture undergoes a few.
CHANGES = "gamma", "gain", "contrast", "solarize", "invert", "posterize", "sharpen", "flip", "displace"


def perlin(
    images,
    sources,
    generator=None,
    *,
    threshold=0.5,
    n_scales=6,
    beta=(0.0, 0.8),
    degrees=90.0,
    texture="sources",
    n_changes=3,
):
    """Textures blended into images where Perlin noise exceeds a threshold (DRAEM).

    The image is (1 - beta) t + beta x in the mask, for an image x and a texture t. The label is 1 there.

    Parameters
    ----------
    images : tensor of shape (n, c, h, w)
        Images in [0, 1].
    sources : tensor of shape (m, c, h, w)
        Images from which textures are made: the i-th for the i-th image, from the first again if there are
        fewer.
    generator : torch.Generator, default=None
        Generator of the CPU for all random numbers; None is torch's own.
    threshold : float, default=0.5
        Value of the noise, from -1 to 1, above which a pixel lies in the mask.
    n_scales : int, default=6
        Number of scales of the noise. The number of its cells along a side is 1, 2, 4 and so on, drawn for
        each side. A cell has at least 8 pixels, unless a side has fewer than 16.
    beta : tuple (low, high), default=(0.0, 0.8)
        Range of the share of the image itself in the mask.
    degrees : float, default=90.0
        Largest angle by which the noise is turned about the middle of the image, in either direction.
    texture : {"sources", "noise"} or array of shape (m, H, W) or (m, H, W, C), default="sources"
        Textures: sources after changes of their grey values and places; noise; or images of an array, or of a
        lazy sequence such as `skanomaly.io.read_folder` gives, drawn at random and changed in the same ways.
        Sources are used for "sources" only. The array holds uint8, uint16 or floats in [0, 1]. Its images are
        resized; with C = 3 they become grey where `images` are, and grey ones are repeated.
    n_changes : int, default=3
        Number of changes that each source or image of the array undergoes, of nine.

    Returns
    -------
    images : tensor of shape (n, c, h, w)
        Changed images.
    masks : bool tensor of shape (n, 1, h, w)
        Pixels that were changed. Masks of a few images may be empty.
    labels : tensor of shape (n, 1, h, w)
        The masks as numbers, 0 and 1.

    Raises
    ------
    ValueError
        If a parameter is out of range, sources have another shape than images, or the array of textures has a
        shape or values that do not fit.

    References
    ----------
    .. [1] Zavrtanik, V., Kristan, M., Skočaj, D. (2021). "DRAEM - a discriminatively trained reconstruction
       embedding for surface anomaly detection". ICCV. `arXiv:2108.07610 <https://arxiv.org/abs/2108.07610>`_
    .. [2] Perlin, K. (1985). "An image synthesizer". SIGGRAPH. `doi:10.1145/325334.325247
       <https://doi.org/10.1145/325334.325247>`_

    Examples
    --------
    >>> import torch
    >>> from skanomaly.synthesis import perlin
    >>> images = torch.rand(4, 1, 32, 32)
    >>> made, masks, labels = perlin(images, images.roll(1, 0), torch.Generator().manual_seed(0))
    >>> bool((masks == (labels > 0)).all()), bool((made == images)[~masks].all())
    (True, True)

    DRAEM takes its textures from photographs of materials. For a folder of photographs, the array is
    ``read_folder("textures", size=(64, 64), channels=1)``.

    >>> from functools import partial
    >>> import numpy as np
    >>> from skimage import data
    >>> from skanomaly import DRAEM
    >>> photographs = np.stack([data.brick(), data.grass(), data.gravel()])
    >>> detector = DRAEM(synthesis=partial(perlin, texture=photographs))
    """
    check_range("beta", beta)
    if n_scales < 1:
        raise ValueError(f"n_scales must be at least 1, got {n_scales}")
    n, _, *sides = images.shape
    masks = _masks(n, sides, generator, threshold=threshold, n_scales=n_scales, degrees=degrees)
    masks = masks.to(images.device)
    if not isinstance(texture, str):
        textures = changed_textures(_drawn_textures(texture, images, generator), generator, n_changes)
    elif texture == "sources":
        textures = changed_textures(partners(images, sources), generator, n_changes)
    elif texture == "noise":
        textures = _noise_textures(images, generator, n_scales)
    else:
        raise ValueError(f"texture must be 'sources', 'noise' or an array of images, got {texture!r}")
    share = uniform(n, beta, generator, images)
    return blend(images, textures, masks, share), masks, masks.to(images)


def blend(images, textures, masks, share):
    """Images (n, c, h, w) with (1 - share) of a texture in masks (n, 1, h, w)."""
    return torch.where(masks, (1 - share) * textures + share * images, images)


def perlin_noise(turns, cells, places):
    """Perlin noise (n, h, w): about -1 to 1, and 0 in the corners of cells.

    Parameters
    ----------
    turns : tensor of shape (n, a, b)
        Directions of the gradients in the corners of the cells, as shares of a full turn. There must be one
        corner more than cells along each side, at least.
    cells : int tensor of shape (n, 2)
        Number of cells along the height and the width.
    places : tensor of shape (2, n, h, w) or (2, 1, h, w)
        Places of pixels from the top and from the left, as shares of the height and width of all cells.
    """
    cells = cells.mT[:, :, None, None].to(places)
    at = places * cells
    corner = torch.minimum(at.floor(), cells - 1).clamp(min=0)
    row, column = at - corner
    # 6 t^5 - 15 t^4 + 10 t^3 has no slope and no curvature at 0 and at 1, so that cells join smoothly.
    weights = [torch.stack([1 - f, f]) for f in (t**3 * (t * (6 * t - 15) + 10) for t in (row, column))]
    corner, angle, total = corner.long(), 2 * math.pi * turns, 0.0
    down, right = angle.cos().flatten(1), angle.sin().flatten(1)
    for i in range(2):
        for j in range(2):
            index = ((corner[0] + i) * turns.shape[2] + corner[1] + j).flatten(1)
            slopes = [gradient.gather(1, index).view_as(row) for gradient in (down, right)]
            total = total + weights[0][i] * weights[1][j] * (slopes[0] * (row - i) + slopes[1] * (column - j))
    return math.sqrt(2) * total


def pixel_places(sides, angle=None, dtype=torch.float32):
    """Places (2, n, h, w) of pixels as shares of height and width, turned about the middle by angles (n,)."""
    size = torch.tensor(sides, dtype=dtype)[:, None, None, None]
    at = torch.stack(torch.meshgrid(*map(torch.arange, sides), indexing="ij"))[:, None].to(dtype)
    if angle is not None:
        middle = (size - 1) / 2
        row, column = at - middle
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        at = torch.stack([cos * row - sin * column, sin * row + cos * column]) + middle
    return at / size


def _draw_cells(n, sides, generator, n_scales):
    """Random numbers of cells (n, 2), powers of two."""
    cells = 2 ** torch.randint(n_scales, (n, 2), generator=generator)
    # In smaller cells the masks would be dust: in a cell of one pixel, its corner, the noise is always 0.
    return torch.minimum(cells, torch.tensor([max(1, side // LEAST_CELL) for side in sides]))


def _draw_turns(n, cells, generator):
    corners = (int(most) + 1 for most in cells.amax(0))
    return torch.rand(n, *corners, generator=generator)


def _masks(n, sides, generator, *, threshold, n_scales, degrees):
    """Masks (n, 1, h, w): where noise that was turned exceeds the threshold."""
    cells = _draw_cells(n, sides, generator, n_scales)
    turns = _draw_turns(n, cells, generator)
    angle = math.radians(degrees) * (2 * torch.rand(n, generator=generator) - 1)
    places = pixel_places(sides, angle)
    # Turning moves places out of the cells, where there is no noise.
    inside = ((places >= 0) & (places < 1)).all(0)
    return ((perlin_noise(turns, cells, places) > threshold) & inside)[:, None]


def _noise_textures(images, generator, n_scales):
    """Textures of the shape of images: a level, Perlin noise and white noise for each channel by itself."""
    n, c, *sides = images.shape
    cells = _draw_cells(n * c, sides, generator, n_scales)
    smooth = perlin_noise(_draw_turns(n * c, cells, generator), cells, pixel_places(sides))
    level, strength, deviation = torch.rand(3, n, c, 1, 1, generator=generator)
    white = torch.randn(images.shape, generator=generator)
    return (level + strength * smooth.view(n, c, *sides) + 0.2 * deviation * white).clamp(0, 1).to(images)


def _drawn_textures(texture, images, generator):
    """Textures of the shape of images, each a random image of an array (m, H, W) or (m, H, W, C)."""
    shape, (n, c, *sides) = tuple(getattr(texture, "shape", ())), images.shape
    channels = {1, 3, c} if c == 1 else {1, c}
    if len(shape) not in (3, 4) or 0 in shape or not {*shape[3:]} <= channels:
        found = f"an array of shape {shape}" if shape else type(texture).__name__
        raise ValueError(
            "texture must be 'sources', 'noise' or an array of images, of shape (m, H, W) or (m, H, W, C) "
            f"with C among {sorted(channels)} for images of {c} channels, got {found}"
        )
    rows = torch.randint(shape[0], (n,), generator=generator).tolist()
    # Slices, since a lazy sequence may know nothing else; only what was drawn is read.
    drawn = np.concatenate([np.asarray(texture[k : k + 1]) for k in rows])
    if drawn.dtype in (np.uint8, np.uint16):
        drawn = drawn / np.iinfo(drawn.dtype).max
    elif drawn.dtype.kind != "f" or not (0 <= drawn.min() <= drawn.max() <= 1):  # nan is refused, too
        raise ValueError(
            f"texture must hold uint8, uint16 or floats in [0, 1], got {drawn.dtype} from {drawn.min()} to "
            f"{drawn.max()}"
        )
    drawn = torch.from_numpy(drawn.astype("float32")).reshape(n, *shape[1:3], -1).movedim(3, 1)
    if c == 1:
        drawn = drawn.mean(1, keepdim=True)
    if shape[1:3] != tuple(sides):
        drawn = F.interpolate(drawn, sides, mode="bilinear", antialias=True, align_corners=False)
    return drawn.expand(images.shape).to(images)


def changed_textures(x, generator, n_changes):
    """Images (n, c, h, w), each after `n_changes` of the `CHANGES`, drawn for it; they lie in [0, 1]."""
    if not 0 <= n_changes <= len(CHANGES):
        raise ValueError(f"n_changes must lie between 0 and {len(CHANGES)}, got {n_changes}")
    n, _, *sides = x.shape
    rank = torch.rand(n, len(CHANGES), generator=generator).argsort(1).argsort(1)
    undergoes = (rank < n_changes).mT[:, :, None, None, None].to(x.device)
    for name, rows in zip(CHANGES, undergoes):
        x = torch.where(rows, _changed(name, x, n, sides, generator), x).clamp(0, 1)
    return x


def _changed(name, x, n, sides, generator):
    def between(low, high):
        return uniform(n, (low, high), generator, x)

    if name == "gamma":
        return x.clamp(min=0) ** between(0.5, 2.0)
    if name == "gain":
        return x * between(0.8, 1.2) + between(-0.1, 0.1)
    if name == "contrast":
        return torch.lerp(x.mean((2, 3), keepdim=True), x, between(0.5, 2.0))
    if name == "solarize":
        return torch.where(x < between(0.3, 0.7), x, 1 - x)
    if name == "invert":
        return 1 - x
    if name == "posterize":
        steps = between(2, 16).floor()
        return (x * steps).round() / steps
    if name == "sharpen":
        blurred = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return x + between(0.5, 2.0) * (x - blurred)
    # Flips and shifts: each row and column of the result has a place in the image, and none is interpolated.
    draws = torch.rand(2, n, 1, generator=generator)
    index = []
    for side, draw in zip(sides, draws):
        at = torch.arange(side)
        moved = (at + (side * draw).long()) % side
        index.append(
            (moved if name == "displace" else torch.where(draw < 0.5, at, side - 1 - at)).to(x.device)
        )
    image = torch.arange(n, device=x.device)[:, None, None]
    return x.movedim(1, 3)[image, index[0][:, :, None], index[1][:, None]].movedim(3, 1)
