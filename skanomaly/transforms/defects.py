"""Anomalies made from normal images.

A synthesis is a function (images, sources, generator) -> (images, masks, labels): of images (n, c, h, w) in
[0, 1] and sources of what is foreign to them, it makes changed images, bool masks (n, 1, h, w) of what was
changed, and labels (n, 1, h, w), from 0 to 1, how strongly. All random numbers come from one generator of the
CPU, so that a seed leads to the same anomalies on every device.
"""

import numpy as np
import torch
from sklearn.utils import Bunch, check_array

from .._format import Layout, find_intensity_range
from .._random import draw_seed, seeded
from .cutpaste import cutpaste
from .draws import (
    box_of,
    check_range,
    check_share,
    differ,
    draw_boxes,
    labelled,
    partners,
    rolled,
    uniform,
    within_range,
)
from .poisson import blend

__all__ = ["fpi", "interpolate_foreign_patches", "pii", "shifted_pieces", "synthesize"]


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
    check_share("probability", probability)
    rows, columns = draw_boxes(n, sides, None, half_width=half_width, margin=margin, square=False)
    mixed = (torch.rand(n) < probability) & (n > 1)  # a single image has no next one
    masks = rows[:, :, None] & columns[:, None, :] & mixed[:, None, None]
    factors = torch.rand(n)
    shares = (masks * factors[:, None, None])[:, None].to(x)
    return x + shares * (x.roll(-1, 0) - x), masks.to(x.device), factors


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
        Pixels of the box in which both images differ.
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
    check_range("alpha", alpha)
    sources, (n, _, *sides) = partners(images, sources), images.shape
    boxes = draw_boxes(n, sides, generator, half_width=half_width, margin=margin, square=square)
    box, _, _ = box_of(*boxes, images)
    share = uniform(n, alpha, generator, images)
    made = torch.where(box, images + share * (sources - images), images)
    return labelled(made, box & differ(images, sources, tolerance), share)


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
    check_range("alpha", alpha)
    sources, (n, _, *sides) = partners(images, sources), images.shape
    boxes = draw_boxes(n, sides, generator, half_width=half_width, margin=margin, square=square)
    _, rows, columns = box_of(*boxes, images)
    share = uniform(n, alpha, generator, images)
    made = within_range(blend(images, sources, rows, columns, own=1 - share, foreign=share), images)
    return labelled(made, differ(made, images, tolerance), share)


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
        Largest shift of the source's intensities, up or down; 1 at most.
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
    check_share("shift", shift)
    sources, n = partners(images, sources), len(images)
    moved = rolled(sources, torch.rand(n, 2, generator=generator))
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
        at random. None takes another image of X for each; `cutpaste` then takes the image itself.
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
    if not callable(synthesis):
        raise TypeError(f"synthesis must be a function, as skanomaly.synthesis.pii, got {synthesis!r}")
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
            foreign = foreign_to(x, x[index], synthesis)
        else:
            foreign = scaled(*_image_array(sources, channel_axis, 1))
            foreign = foreign[torch.randint(len(foreign), (len(x),))]
        made, masks, labels = apply_to_some(synthesis, x, foreign, generator, probability)
    check_labels(labels)
    images = layout.from_network(made.numpy().astype("float64") * (high - low) + low)
    if X.dtype.kind in "iu":
        info = np.iinfo(X.dtype)
        images = images.round().clip(info.min, info.max)
    images = images.astype(X.dtype)
    # Taken from X, since scaling and back may change the last digit of a pixel.
    touched = layout.from_network((made != x).numpy())
    masks, labels = (part[:, 0].numpy() for part in (masks, labels))
    return Bunch(images=np.where(touched, images, X), masks=masks, labels=labels)


def foreign_to(images, others, synthesis):
    """Sources of what is foreign to images where the user gives none: other images of theirs.

    Patches of CutPaste come from the image itself, as in the paper.
    """
    return images if getattr(synthesis, "func", synthesis) is cutpaste else others


def apply_to_some(synthesis, images, sources, generator, probability):
    """Images, masks and labels of a synthesis, each image changed with a given probability."""
    check_share("probability", probability)
    changed = (torch.rand(len(images), generator=generator) < probability).to(images.device)
    made, masks, labels = apply_to_all(synthesis, images, sources, generator)
    changed = changed[:, None, None, None]
    return torch.where(changed, made, images), masks & changed, labels * changed


def apply_to_all(synthesis, images, sources, generator):
    """Images, masks and labels of a synthesis, refused where they are no such tensors."""
    n, _, *sides = images.shape
    # A copy, because a function of the user may write into it.
    made = synthesis(images.clone(), sources, generator)
    if not (isinstance(made, tuple) and len(made) == 3 and all(map(torch.is_tensor, made))):
        got = [type(part).__name__ for part in made] if isinstance(made, tuple) else type(made).__name__
        raise TypeError(f"synthesis must return a tuple of three tensors, (images, masks, labels), got {got}")
    for name, part, shape, dtype in (
        ("images", made[0], images.shape, images.dtype),
        ("masks", made[1], (n, 1, *sides), torch.bool),
        ("labels", made[2], (n, 1, *sides), images.dtype),
    ):
        if (part.shape, part.dtype) != (shape, dtype):
            raise ValueError(
                f"synthesis must return {name} of the shape {tuple(shape)} and of {dtype}, got "
                f"{tuple(part.shape)} and {part.dtype}"
            )
    return made


def check_labels(labels):
    """Refuse labels outside of [0, 1]; not done in each step, since it waits for the device."""
    if not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError(
            f"synthesis must return labels from 0 to 1, got some from {labels.min():g} to {labels.max():g}"
        )


def _image_array(X, channel_axis, n_least):
    """Array of images, and its Layout."""
    X = check_array(X, allow_nd=True, ensure_min_samples=n_least, dtype="numeric")
    if X.ndim not in (3, 4):
        raise ValueError(
            f"X must be (n, H, W), (n, H, W, C) or (n, C, H, W), got an array of shape {X.shape}"
        )
    return X, Layout.of(X.shape, channel_axis)
