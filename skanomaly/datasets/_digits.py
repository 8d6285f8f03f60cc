"""DigitAnatomy: grids of handwritten digits, each digit in its own cell, as organs have their places."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from sklearn.utils import Bunch, check_consistent_length, check_random_state

from ._phantoms import check_whole
from ._shipped import load_mnist_digits

DigitKind = Literal["normal", "missing", "misordered", "flipped", "zero"]
SIDE = 3
#: Flips after which a digit looks different. 1 and 8 are missing: they may look the same after any flip.
FLIPS = {
    2: ("left-right", "up-down"),
    3: ("left-right", "both"),
    4: ("left-right", "up-down", "both"),
    5: ("left-right", "up-down"),
    6: ("left-right", "up-down", "both"),
    7: ("left-right", "up-down", "both"),
    9: ("left-right", "up-down", "both"),
}
AXES: dict[str, int | tuple[int, int]] = {"left-right": 1, "up-down": 0, "both": (0, 1)}


def make_digit_anatomy(
    n_samples: int = 100,
    *,
    kinds: Sequence[DigitKind] = ("normal",),
    n_anomalous_cells: int = 1,
    size: int = 96,
    scale: tuple[float, float] = (0.6, 1.3),
    crop_policy: Literal["reject", "resize"] = "reject",
    digits: tuple[ArrayLike, ArrayLike] | None = None,
    subset: Literal["train", "val", "test"] = "train",
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Grids of 3 x 3 handwritten digits, 1 to 9 in reading order: the DigitAnatomy of the SQUID paper.

    The grids stand in for radiographs: they are alike in structure and different in detail, but no physician
    is needed to label them. In an anomalous grid some digits are missing, flipped, replaced by a zero, or
    exchanged with each other ("misordered").

    Parameters
    ----------
    n_samples : int, default=100
        Number of images.
    kinds : sequence of {"normal", "missing", "misordered", "flipped", "zero"}, default=("normal",)
        Kinds of the images, taken in turn: with two kinds, every second image has the second kind.
    n_anomalous_cells : int, default=1
        Number of changed cells in an anomalous grid, 1 to 7; a misordered grid has at least 2.
    size : int, default=96
        Height and width in pixels, a multiple of 3.
    scale : tuple (low, high), default=(0.6, 1.3)
        Range of the area of the random square that is cut from the image of a digit and resized to fill a
        cell. Areas are shares of that image.
    crop_policy : {"reject", "resize"}, default="reject"
        Treatment of a square larger than the image. "reject" draws another square, as in the public code, so
        that a cell never shows more than the image; "resize" surrounds the image with black.
    digits : tuple (images, labels), default=None
        Images of digits (m, h, w) uint8, and the digit 0 to 9 of each. None takes `load_mnist_digits`.
    subset : {"train", "val", "test"}, default="train"
        Part of `load_mnist_digits` to draw from. No image is in two parts, and "train" has no zeros.
    random_state : int, RandomState or None, default=None
        Seed or generator of everything that is drawn; the same int gives the same bytes.

    Returns
    -------
    data : sklearn.utils.Bunch
        ``images`` (n, size, size) uint8; ``target`` (n,), 1 normal and -1 anomalous; ``masks`` (n, size,
        size) bool, True in changed cells; ``kind`` (n,), the kind of each image; ``cells`` (n, 9) bool, True
        for changed cells; ``normal`` (n, size, size) uint8, the grids before the change; ``digit_index`` (n,
        9), index of the image, among those of digits, from which each cell of ``normal`` was cut.

    Notes
    -----
    The authors' choice of the cells to change, and of how to flip them, is not public. Here 1 and 8 are not
    flipped, and no digit is flipped in a way after which it looks the same.

    References
    ----------
    .. [1] Xiang, T. et al. (2023). "SQUID: Deep feature in-painting for unsupervised anomaly detection".
       CVPR. `arXiv:2111.13495 <https://arxiv.org/abs/2111.13495>`_

    Examples
    --------
    >>> from skanomaly.datasets import make_digit_anatomy
    >>> grids = make_digit_anatomy(4, kinds=("normal", "missing"), random_state=0)
    >>> grids.images.shape, grids.target.tolist(), grids.cells.sum(1).tolist()
    ((4, 96, 96), [1, -1, 1, -1], [0, 1, 0, 1])
    """
    if isinstance(kinds, (str, set)) or not len(kinds) or not set(kinds) <= set(get_args(DigitKind)):
        raise ValueError(f"kinds must be some of {', '.join(map(repr, get_args(DigitKind)))}, got {kinds!r}")
    check_whole("n_samples", n_samples, 1)
    check_whole("size", size, 3 * SIDE)
    if size % SIDE:
        raise ValueError(f"size must be a multiple of {SIDE}, for cells of equal size, got {size}")
    check_whole("n_anomalous_cells", n_anomalous_cells, 1)
    if n_anomalous_cells > len(FLIPS):
        raise ValueError(f"n_anomalous_cells must be {len(FLIPS)} at most, got {n_anomalous_cells}")
    _check_scale(scale, crop_policy)
    if crop_policy not in ("reject", "resize"):
        raise ValueError(f"crop_policy must be 'reject' or 'resize', got {crop_policy!r}")
    bank, rows_of = _bank(digits, subset, zero="zero" in kinds)
    rng = check_random_state(random_state)
    kind = np.resize(np.asarray(kinds), n_samples)
    draw = {"scale": scale, "crop_policy": crop_policy, "size": size // SIDE, "rng": rng}

    # Normal grids are drawn first and as a whole: with the same seed, kinds differ in changed cells only.
    index = np.stack([rng.choice(rows_of[digit], n_samples) for digit in range(1, SIDE**2 + 1)], axis=1)
    normal = _crops(bank, index.ravel(), **draw).reshape(n_samples, SIDE**2, size // SIDE, size // SIDE)
    cells = np.zeros((n_samples, SIDE**2), dtype=bool)
    changed = normal.copy()
    for k in np.flatnonzero(kind != "normal"):
        among = np.array(list(FLIPS)) - 1 if kind[k] == "flipped" else SIDE**2
        n_cells = max(2, n_anomalous_cells) if kind[k] == "misordered" else n_anomalous_cells
        found = rng.choice(among, n_cells, replace=False)
        cells[k, found] = True
        if kind[k] == "missing":
            changed[k, found] = 0
        elif kind[k] == "misordered":
            # A cycle, not a permutation, which could leave a digit in its place.
            changed[k, found] = normal[k, np.roll(found, 1)]
        elif kind[k] == "flipped":
            for cell in found:
                changed[k, cell] = np.flip(normal[k, cell], AXES[rng.choice(FLIPS[cell + 1])])
        else:
            changed[k, found] = _crops(bank, rng.choice(rows_of[0], n_cells), **draw)
    full = np.broadcast_to(cells[:, :, None, None], normal.shape)
    return Bunch(
        images=_stitch(changed),
        target=np.where(kind == "normal", 1, -1),
        masks=_stitch(full),
        kind=kind,
        cells=cells,
        normal=_stitch(normal),
        digit_index=index,
    )


def _check_scale(scale, crop_policy):
    rule = "scale must be (low, high), areas above 0 and at most 10, low before high"
    if not isinstance(scale, (tuple, list)) or len(scale) != 2:
        raise ValueError(f"{rule}, got {scale!r}")
    low, high = scale
    if not 0.001 <= low <= high <= 10:
        raise ValueError(f"{rule}, and low at least 0.001, got {scale!r}")
    if low >= 1 and crop_policy == "reject":
        raise ValueError(f"{rule}, and low below 1 for crop_policy='reject', got {scale!r}")


def _bank(digits, subset, zero):
    """Images of digits, and for each digit the indices of its images."""
    if digits is None:
        if subset not in ("train", "val", "test"):
            raise ValueError(f"subset must be 'train', 'val' or 'test', got {subset!r}")
        data = load_mnist_digits(subset=subset)
        images, labels = data.images, data.class_index
    else:
        rule = "digits must hold two arrays, images, (m, h, w) of uint8, and their labels (m,)"
        if not isinstance(digits, (tuple, list)) or len(digits) != 2:
            raise ValueError(f"{rule}, got {type(digits).__name__}")
        images, labels = (np.asarray(part) for part in digits)
        if images.ndim != 3 or images.dtype != np.uint8 or labels.ndim != 1:
            raise ValueError(f"{rule}, got shapes {images.shape} of {images.dtype} and {labels.shape}")
        if min(images.shape[1:]) < 4:
            raise ValueError(f"{rule}, of 4 pixels at least each way, got {images.shape}")
        check_consistent_length(images, labels)
    rows = {digit: np.flatnonzero(labels == digit) for digit in range(SIDE**2 + 1)}
    without = [digit for digit, found in rows.items() if not len(found) and (digit or zero)]
    if without:
        what = f"subset={subset!r} of the digits" if digits is None else "digits"
        hint = "; zeros are in 'val' and 'test'" if digits is None else ""
        raise ValueError(f"{what} must hold each of the digits to draw, but there is no {without[0]}{hint}")
    return images, rows


def _crops(bank, index, *, scale, crop_policy, size, rng):
    """A random square of each digit's image, enlarged or shrunk to (size, size) uint8."""
    side = min(bank.shape[1:])
    length = np.zeros(len(index), dtype=int)
    todo = np.arange(len(index))
    while len(todo):
        length[todo] = np.round(side * np.sqrt(rng.uniform(*scale, len(todo))))
        todo = todo[(length[todo] < 1) | (length[todo] > side) & (crop_policy == "reject")]
    # Between 0 and whole - length. If this is negative, the square is the larger, and the image moves in it.
    top, left = (
        np.round(rng.uniform(0, 1, len(index)) * (whole - length)).astype(int) for whole in bank.shape[1:]
    )
    place = (np.arange(size) + 0.5) * length[:, None] / size - 0.5
    # Places beyond the middle of an outer pixel take its value, not that of a pixel outside the square.
    place = place.clip(0, length[:, None] - 1)
    rows, columns = place + top[:, None], place + left[:, None]
    where = np.broadcast_arrays(index[:, None, None], rows[:, :, None], columns[:, None, :])
    cells = ndimage.map_coordinates(bank, where, order=1, mode="constant", output=np.float32)
    return cells.round().astype(np.uint8)


def _stitch(cells):
    """Cells (n, 9, h, w) to grids (n, 3 h, 3 w)."""
    n, _, height, width = cells.shape
    grid = cells.reshape(n, SIDE, SIDE, height, width).swapaxes(2, 3)
    return grid.reshape(n, SIDE * height, SIDE * width)
