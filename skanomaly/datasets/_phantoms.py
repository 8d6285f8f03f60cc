"""Synthetic images of the retina with known layers and lesions. They resemble real images only roughly."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, get_args

import numpy as np
from scipy import ndimage
from scipy.special import expit
from sklearn.utils import Bunch, check_random_state

#: Layers of the retina from the vitreous inwards: name, thickness in 1/128 of the height, reflectivity.
OCT_LAYERS = (
    ("nerve fibres", 8, 0.70),
    ("ganglion cells and inner plexiform", 14, 0.48),
    ("inner nuclear", 8, 0.30),
    ("outer plexiform", 6, 0.46),
    ("outer nuclear", 16, 0.20),
    ("photoreceptor segments", 6, 0.62),
    ("pigment epithelium", 6, 0.90),
)
OCTKind = Literal["normal", "intraretinal fluid", "subretinal fluid", "drusen"]
VITREOUS, CHOROID, FLUID, DRUSE = 0.04, 0.40, 0.06, 0.60
#: Number of columns for each vessel. A vessel casts a shadow on the layers behind it.
SHADOW_EVERY = 32


def make_oct(
    n_samples: int = 100,
    *,
    kinds: Sequence[OCTKind] = ("normal",),
    severity: float | tuple[float, float] = (0.2, 1.0),
    size: int = 128,
    layers: Sequence[tuple[str, float, float]] = OCT_LAYERS,
    thickness_variation: float = 0.1,
    n_looks: float = 4,
    noise: float = 0.02,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Synthetic OCT B-scans of a curved, layered retina with speckle, shadows of vessels, and lesions.

    Parameters
    ----------
    n_samples : int, default=100
        Number of images.
    kinds : sequence of {"normal", "intraretinal fluid", "subretinal fluid", "drusen"}, default=("normal",)
        Kinds of the images, taken in turn: with two kinds, every second image has the second kind.
    severity : float or tuple (low, high), default=(0.2, 1.0)
        Severity of the lesions in (0, 1], or a range to draw it from. It sets the size of lesions, and the
        number of cysts and drusen.
    size : int, default=128
        Height and width in pixels.
    layers : sequence of (name, thickness, reflectivity)
        Layers from the vitreous inwards, seven by default; thickness in 1/128 of the height, reflectivity in
        [0, 1].
    thickness_variation : float, default=0.1
        Largest share by which a layer is thicker or thinner somewhere along the scan.
    n_looks : float, default=4
        Number of independent exposures (looks) whose intensities are averaged: fewer make stronger speckle,
        ``inf`` makes none.
    noise : float, default=0.02
        Standard deviation of the noise that the camera adds, for reflectivities in [0, 1].
    random_state : int, RandomState or None, default=None
        Seed or generator of everything that is drawn; the same int gives the same bytes.

    Returns
    -------
    data : sklearn.utils.Bunch
        ``images`` (n, size, size) uint8; ``target`` (n,), 1 normal and -1 anomalous; ``masks`` (n, size,
        size) bool, True in lesions; ``layers`` (n, size, size) uint8, labels in depth order: 0 vitreous, 1 to
        L the layers, L + 1 behind them (intraretinal fluid has the labels of the layers that it lies in,
        subretinal fluid L - 1, drusen L + 1); ``boundaries`` (n, L + 1, size) float, row of the upper end of
        layers 1 to L + 1 in each column; ``kind`` and ``severity`` (n,), with severity 0 for normal images;
        ``layer_names``, list of L names.

    Examples
    --------
    >>> from skanomaly.datasets import make_oct
    >>> scans = make_oct(4, kinds=("normal", "drusen"), random_state=0)
    >>> scans.images.shape, scans.target.tolist(), scans.masks.any((1, 2)).tolist()
    ((4, 128, 128), [1, -1, 1, -1], [False, True, False, True])
    """
    unknown = [kind for kind in kinds if kind not in get_args(OCTKind)]
    if unknown or not len(kinds):
        raise ValueError(f"kinds must be some of {', '.join(map(repr, get_args(OCTKind)))}, got {kinds!r}")
    check_whole("n_samples", n_samples, 1)
    check_whole("size", size, 32)
    if len(layers) < 5:
        raise ValueError(f"layers must be five at least, for lesions to lie between them, got {len(layers)}")
    if not n_looks > 0:
        raise ValueError(f"n_looks must be above 0, and inf leaves speckle out, got {n_looks!r}")
    if not 0 <= thickness_variation < 1:
        raise ValueError(f"thickness_variation must lie in [0, 1), got {thickness_variation!r}")
    low, high = np.broadcast_to(severity, 2)
    if not 0 < low <= high <= 1:
        raise ValueError(f"severity must lie in (0, 1], low before high, got {severity!r}")
    rng = check_random_state(random_state)
    found = []
    for i in range(n_samples):
        one = kinds[i % len(kinds)]
        worst = 0.0 if one == "normal" else rng.uniform(low, high)
        found.append((one, worst, *_oct(one, worst, size, layers, thickness_variation, n_looks, noise, rng)))
    kind, worst, images, masks, labels, boundaries = map(np.array, zip(*found))
    return Bunch(
        images=images,
        target=np.where(kind == "normal", 1, -1),
        masks=masks,
        layers=labels,
        boundaries=boundaries,
        kind=kind,
        severity=worst,
        layer_names=[name for name, _, _ in layers],
    )


def check_whole(name, value, least):
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _smooth(rng, n, length):
    """Values of a smooth random function at n places, in [-1, 1]."""
    # The ends are cut off: there the filter mirrors its input, which flattens the function.
    values = ndimage.gaussian_filter1d(rng.normal(size=n + 8 * length), length)[4 * length : 4 * length + n]
    return values / np.abs(values).max()


def _oct(kind, severity, size, layers, thickness_variation, n_looks, noise, rng):
    scale, x = size / 128, np.linspace(-1, 1, size)
    thickness = np.array([t for _, t, _ in layers], dtype=float)[:, None] * scale
    variation = np.array([_smooth(rng, size, size // 6) for _ in layers])
    thickness = thickness * (1 + thickness_variation * variation)
    # The fovea, a pit that thins the inner layers only.
    pit = 0.75 * np.exp(-(((x - rng.uniform(-0.3, 0.3)) / 0.22) ** 2))
    inner = len(layers) // 2
    thickness[:inner] *= 1 - pit
    bottom = scale * (rng.uniform(88, 98) + rng.uniform(-5, 5) * x - rng.uniform(2, 9) * x**2)
    tops = bottom - np.cumsum(thickness[::-1], axis=0)[::-1]
    boundaries = np.concatenate([tops, bottom[None]])
    columns = np.arange(size) + 0.5
    rows = columns[:, None]
    # A lesion between layers: the boundary below it, its height, its label, and its reflectivity.
    floor, lift, label, value = bottom, np.zeros(size), 0, FLUID
    if kind == "subretinal fluid":
        floor, label = boundaries[-2].copy(), len(layers) - 1
        lift = _bump(x, rng.uniform(-0.4, 0.4), 0.25 + 0.2 * severity) * scale * (5 + 17 * severity)
        boundaries[:-2] -= lift
    elif kind == "drusen":
        label, value = len(layers) + 1, DRUSE
        for _ in range(1 + int(4 * severity)):
            height = scale * rng.uniform(3, 4 + 6 * severity)
            lift = np.maximum(lift, height * _bump(x, rng.uniform(-0.8, 0.8), rng.uniform(0.08, 0.16)))
        boundaries[-2:] -= lift
        # The next boundary is lifted less, and those beyond stay: a druse compresses the two layers above it.
        boundaries[-3] -= lift * 0.8
    mask = (rows >= floor - lift) & (rows < floor)
    labels = np.where(mask, label, (rows[None] >= boundaries[:, None]).sum(0))
    # Cysts come after the labels, which they do not change; the other lesions move the boundaries.
    if kind == "intraretinal fluid":
        for _ in range(1 + int(5 * severity)):
            height, width = (scale * rng.uniform(low, low + (0.3 + 0.7 * severity) * low) for low in (4, 6))
            column = rng.uniform(0.15, 0.85) * size
            middle = np.interp(column, columns - 0.5, boundaries[2] + boundaries[5]) / 2
            middle += rng.uniform(-3, 3) * scale
            mask |= ((rows - middle) / height) ** 2 + ((columns - column) / width) ** 2 < 1
        mask &= (labels > 0) & (labels < len(layers))
    reflectivity = np.array([VITREOUS, *(r for _, _, r in layers), CHOROID])[labels]
    behind = np.clip(rows - boundaries[-1], 0, None)
    reflectivity = np.where(labels > len(layers), reflectivity * np.exp(-behind / (30 * scale)), reflectivity)
    reflectivity = np.where(mask, value, reflectivity)
    for _ in range(max(1, round(size / SHADOW_EVERY))):
        place, width = rng.uniform(0, size), scale * rng.uniform(1, 2.5)
        shadow = 1 - 0.5 * np.exp(-(((columns - place) / width) ** 2))
        reflectivity = np.where(labels > 1, reflectivity * shadow, reflectivity)
    # Speckle multiplies intensities by a gamma distributed mean over looks; the image shows their roots.
    if np.isfinite(n_looks):
        reflectivity = reflectivity * np.sqrt(rng.gamma(n_looks, 1 / n_looks, reflectivity.shape))
    image = reflectivity + rng.normal(0, noise, reflectivity.shape)
    image = (255 * np.clip(image, 0, 1)).round().astype(np.uint8)
    return image, mask, labels.astype(np.uint8), boundaries.astype(np.float32)


def _bump(x, place, width):
    """Values at `x` of a hill of height 1 around a place; they are 0 beyond its width."""
    t = np.clip(np.abs(x - place) / width, 0, 1)
    return (1 - t**2) ** 2


#: Numbers of red dots (microaneurysms, haemorrhages), exudates and new vessels at each grade.
FUNDUS_GRADES = (0, 0, 0), (4, 0, 0), (9, 4, 0), (18, 9, 0), (20, 9, 2)


def make_fundus(
    n_samples: int = 100,
    *,
    grades: Sequence[int] = (0,),
    size: int = 128,
    noise: float = 0.02,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Synthetic colour photographs of the retina: disc, macula and vessels, and lesions by grade.

    Parameters
    ----------
    n_samples : int, default=100
        Number of images.
    grades : sequence of int, default=(0,)
        Grades of the images, taken in turn: 0 none, 1 mild (some red dots), 2 moderate (more of them, and
        exudates), 3 severe, 4 proliferative (new vessels too).
    size : int, default=128
        Height and width in pixels.
    noise : float, default=0.02
        Standard deviation of the noise that the camera adds, for intensities in [0, 1].
    random_state : int, RandomState or None, default=None
        Seed or generator of everything that is drawn; the same int gives the same bytes.

    Returns
    -------
    data : sklearn.utils.Bunch
        ``images`` (n, size, size, 3) uint8; ``target`` (n,), 1 for grade 0 and -1 for other grades; ``masks``
        (n, size, size) bool, True in lesions; ``grade`` (n,) int.

    Examples
    --------
    >>> from skanomaly.datasets import make_fundus
    >>> eyes = make_fundus(3, grades=(0, 2, 4), random_state=0)
    >>> eyes.images.shape, eyes.target.tolist(), eyes.masks.any((1, 2)).tolist()
    ((3, 128, 128, 3), [1, -1, -1], [False, True, True])
    """
    unknown = [grade for grade in grades if grade not in range(len(FUNDUS_GRADES))]
    if unknown or not len(grades):
        raise ValueError(f"grades must be whole numbers from 0 to {len(FUNDUS_GRADES) - 1}, got {grades!r}")
    check_whole("n_samples", n_samples, 1)
    check_whole("size", size, 32)
    rng = check_random_state(random_state)
    grade = np.resize(np.asarray(grades, dtype=int), n_samples)
    images, masks = zip(*(_fundus(one, size, noise, rng) for one in grade))
    return Bunch(
        images=np.array(images), target=np.where(grade == 0, 1, -1), masks=np.array(masks), grade=grade
    )


def _fundus(grade, size, noise, rng):
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    radius = np.hypot(x, y)
    side = rng.choice([-1, 1])
    disc = np.array([side * rng.uniform(0.45, 0.55), rng.uniform(-0.08, 0.08)])
    macula = np.array([-side * rng.uniform(0.05, 0.12), rng.uniform(-0.05, 0.08)])
    colour = np.array([0.72, 0.36, 0.17]) * rng.uniform(0.9, 1.1, 3)
    image = colour * (1 - 0.35 * radius**2)[..., None]
    image *= (1 - 0.35 * np.exp(-((x - macula[0]) ** 2 + (y - macula[1]) ** 2) / 0.03))[..., None]
    glow = expit(30 * (0.14 - np.hypot(x - disc[0], (y - disc[1]) / 1.1)))
    image += (np.array([0.98, 0.85, 0.55]) - image) * glow[..., None]
    vessels = np.zeros((size, size))
    for up in (-1, 1):
        for reach, bend, width in ((1.4, 0.55, 0.016), (0.9, 0.9, 0.012), (1.2, 0.25, 0.009)):
            for outward in (-side, side * 0.4):
                t = np.linspace(0, 1, 4 * size)
                px = disc[0] + outward * reach * t + 0.02 * np.sin(9 * t + rng.uniform(0, 6))
                py = disc[1] + up * bend * np.sqrt(t) * rng.uniform(0.85, 1.15)
                py += 0.02 * np.sin(7 * t + rng.uniform(0, 6))
                vessels = np.maximum(vessels, _line(px, py, width * (1 - 0.5 * t), size))
    image *= 1 - vessels[..., None] * np.array([0.35, 0.6, 0.55])
    mask = np.zeros((size, size), dtype=bool)
    n_red, n_bright, n_new = FUNDUS_GRADES[grade]
    for count, tint, sizes in (
        (n_red, (0.38, 0.06, 0.05), (0.016, 0.045)),
        (n_bright, (0.95, 0.85, 0.45), (0.02, 0.05)),
    ):
        for _ in range(count):
            spot = _spot(x, y, rng, sizes)
            image += (np.array(tint) - image) * spot[..., None]
            mask |= spot > 0.5
    for _ in range(n_new):
        start = rng.uniform(-0.45, 0.45, 2)
        for _ in range(9):
            steps = rng.normal(0, 0.009, (2, 200)).cumsum(1)
            thread = _line(start[0] + steps[0], start[1] + steps[1], np.full(200, 0.008), size)
            image *= 1 - thread[..., None] * np.array([0.3, 0.75, 0.75])
            mask |= thread > 0.5
    image = ndimage.gaussian_filter(image, (0.5, 0.5, 0)) + rng.normal(0, noise, image.shape)
    image = np.where((radius < 0.97)[..., None], image, 0)
    return (255 * np.clip(image, 0, 1)).round().astype(np.uint8), mask & (radius < 0.97)


def _line(px, py, width, size):
    """Share of each pixel that a line through places in [-1, 1] covers."""
    at = [np.clip(((p + 1) / 2 * size).astype(int), -1, size) for p in (py, px)]
    inside = np.all([(0 <= p) & (p < size) for p in at], axis=0)
    reach = np.zeros((size, size))
    np.maximum.at(reach, (at[0][inside], at[1][inside]), width[inside] * size / 2)
    # One transform has the distances to all places on the line; each pixel takes the nearest place's width.
    distance, (row, column) = ndimage.distance_transform_edt(reach == 0, return_indices=True)
    return np.clip(reach[row, column] + 0.5 - distance, 0, 1)


def _spot(x, y, rng, sizes):
    """Opacity of a spot at a random place well inside the picture, in [0, 1]."""
    place, axes = rng.uniform(-0.6, 0.6, 2), rng.uniform(*sizes, 2)
    distance = np.hypot((x - place[0]) / axes[0], (y - place[1]) / axes[1])
    return expit(8 * (1 - distance))
