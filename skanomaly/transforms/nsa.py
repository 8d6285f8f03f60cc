"""Natural synthetic anomalies (NSA): resized pieces of other images, cloned seamlessly."""

import math

import torch
from torch.nn import functional as F

from .draws import box_of, boxes_around, check_range, check_share, labelled, partners, within_range
from .poisson import blend

__all__ = ["foreground", "nsa"]


#: Values of `clone` and `label` of `nsa`.
CLONES, LABELS = {"mixed", "normal"}, {"logistic", "intensity", "binary"}


#: Number of places that are tried for a piece of `nsa`, if objects must be met.
N_TRIES = 20


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
    The defaults are those for chest X-rays, but that pieces may come from the background:
    ``objects=foreground`` keeps them on the body, as there.

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
    check_range("bounds", bounds)
    check_range("resize", resize, "numbers above 0", most=math.inf, above=True)
    for name, share in (("lower", lower), ("scale", scale), ("least_object", least_object)):
        check_share(name, share)
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
        made = within_range(made, images)
        touched |= inside
    # 2 and 5 pixels in the public code, for images of 256 x 256.
    radii = [round(radius * min(sides) / 256) for radius in (2, 5)]
    labels = nsa_labels(images, made, touched, mode=label, k=k, x0=x0, tolerance=tolerance, radii=radii)
    return labelled(made, labels > 0, labels)


def _draw_halves(n, generator, *, lower, scale, bounds):
    """Half the height and half the width (n, 2) of pieces of NSA, as shares of the sides."""
    uniform = torch.rand(2, 2, n, generator=generator).clamp(min=1e-12)
    # The sum of two exponential numbers has the Gamma distribution of shape 2.
    return (lower - scale * uniform.log().sum(0)).clamp(*bounds).T


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
        source_box, _, _ = box_of(*boxes_around(source_at, half.clamp(min=0.5), sides), on_source)
        shares = [
            (pixels & box).sum((1, 2, 3)) / box.sum((1, 2, 3)).clamp(min=1)
            for pixels, box in ((on_source, source_box), (inside, box_of(rows, columns, inside)[0]))
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
    boxes = boxes_around(target_at, (half * factor).clamp(min=1), sides)
    box, rows, columns = box_of(*boxes, on_image)
    shift = target_at / factor - source_at
    moved = _resampled(on_source.float(), shift, factor, mode="nearest") > 0.5
    return rows, columns, box & moved & on_image


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
