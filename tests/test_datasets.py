from typing import get_args

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skanomaly.datasets import (
    load_chest_xray,
    load_mnist_digits,
    load_oct,
    make_digit_anatomy,
    make_fundus,
    make_oct,
)
from skanomaly.datasets._digits import FLIPS
from skanomaly.datasets._phantoms import OCT_LAYERS, OCTKind

OCT_KINDS = get_args(OCTKind)


def test_chest_xray():
    data = load_chest_xray()
    assert data.images.shape == (935, 64, 64)
    assert data.images.dtype == np.uint8
    counts = {
        s: [int(np.sum(data.target[data.split == s] == t)) for t in (1, -1)] for s in np.unique(data.split)
    }
    assert counts == {"train": [433, 0], "val": [77, 90], "test": [155, 180]}
    normal = data.class_names[data.class_index] == "normal"
    assert np.array_equal(normal, data.target == 1)
    assert "CC BY 4.0" in data.DESCR
    assert "Kermany" in data.DESCR


def test_no_patient_is_in_two_splits():
    for data in load_chest_xray(), load_oct():
        groups = [set(data.groups[data.split == split]) for split in ("train", "val", "test")]
        assert len(set.union(*groups)) == sum(map(len, groups))


def test_oct():
    data = load_oct()
    assert data.images.shape == (17, 128, 128)
    assert set(data.class_names) == {"normal", "CNV", "DME", "drusen"}
    assert "CC BY 4.0" in data.DESCR


def test_subsets():
    X, y = load_chest_xray(subset="test", return_X_y=True)
    assert (X.shape, y.shape) == ((335, 64, 64), (335,))
    with pytest.raises(ValueError, match="got 'training'"):
        load_chest_xray(subset="training")


def test_shipped_images_are_those_of_the_benchmarks(benchmark_data):
    for name, data in (("cxr_pneumonia_64", load_chest_xray()), ("oct_tiny_128", load_oct())):
        original = benchmark_data(name)
        assert np.array_equal(original["images"], data.images)
        assert np.array_equal(original["labels"] == 1, data.target == -1)
    digits, original = load_mnist_digits(), benchmark_data("mnist_28")
    rows = {name: row for row, name in enumerate(original["group_ids"])}
    rows = [rows[name] for name in digits.groups]
    assert np.array_equal(original["images"][rows], digits.images)
    assert np.array_equal(original["class_index"][rows], digits.class_index)
    assert np.array_equal(digits.class_index == 0, digits.target == -1)


@pytest.mark.parametrize("make", [make_oct, make_fundus, make_digit_anatomy])
def test_a_seed_makes_the_same_bytes(make):
    first, again, other = (make(3, random_state=seed).images for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_phantom_of_oct():
    data = make_oct(40, kinds=OCT_KINDS, random_state=0)
    assert data.images.shape == data.masks.shape == data.layers.shape == (40, 128, 128)
    assert (np.diff(data.boundaries, axis=1) > 0).all(), "layers do not cross"
    assert np.array_equal(data.target == -1, data.masks.any((1, 2)))
    assert np.array_equal(data.severity == 0, data.kind == "normal")
    assert set(np.unique(data.layers)) == set(range(len(OCT_LAYERS) + 2))
    assert (np.diff(data.layers.astype(int), axis=1)[data.target == 1] >= 0).all(), "labels go by depth"
    rows = np.arange(128)[:, None] + 0.5
    labels = (rows >= data.boundaries[:, :, None]).sum(1)
    assert np.array_equal(labels[~data.masks], data.layers[~data.masks])


def test_what_the_phantom_of_oct_is_made_of():
    """Contrast of neighbours, thickness, speckle and shadows are those documented."""
    reflectivity = np.array([r for _, _, r in OCT_LAYERS])
    assert np.abs(np.diff(reflectivity)).min() >= 0.08
    data = make_oct(20, n_looks=np.inf, noise=0.0, random_state=0)
    thickness = np.diff(data.boundaries, axis=1)[:, 3:]
    expected = np.array([t for _, t, _ in OCT_LAYERS])[3:, None]
    assert 0.08 < np.abs(thickness / expected - 1).max() <= 0.1 + 1e-4
    for label in range(1, len(OCT_LAYERS) + 1):
        values = data.images[data.layers == label]
        assert np.median(values) == pytest.approx(255 * reflectivity[label - 1], abs=12)
    deep = np.array([image[labels == 5].min() for image, labels in zip(data.images, data.layers)])
    assert (deep < 0.6 * 255 * reflectivity[4]).all(), "a shadow in every scan"
    below = np.median(data.images[:, 100:], axis=1) / np.median(data.images[:, 100:], axis=(1, 2))[:, None]
    starts = (np.diff((below < 0.8).astype(int), axis=1) == 1).sum()
    assert 2.2 < starts / len(below) <= 4, "four to a scan, of which some overlap"
    grainy = make_oct(20, noise=0.0, random_state=0)
    bright = data.images[data.layers == 5].astype(float)
    ratio = (grainy.images[grainy.layers == 5] + 0.5).std() / bright.mean()
    assert 0.2 < ratio < 0.4, "of an amplitude of 4 looks 0.25, and the shadows"


@pytest.mark.parametrize("kind", OCT_KINDS[1:])
def test_lesions_grow_with_severity(kind):
    mild, severe = (
        make_oct(20, kinds=(kind,), severity=severity, random_state=0).masks.sum() for severity in (0.1, 1.0)
    )
    assert severe > 1.5 * mild > 0


def test_phantom_of_fundus():
    data = make_fundus(25, grades=(0, 1, 2, 3, 4), random_state=0)
    assert data.images.shape == (25, 128, 128, 3)
    areas = [data.masks[data.grade == grade].sum() for grade in range(5)]
    assert areas[0] == 0
    assert (np.diff(areas) > 0).all()
    assert np.array_equal(data.target == -1, data.grade > 0)
    assert (data.images[:, 0, 0] == 0).all(), "around the field it is dark"
    assert make_fundus(2, size=32).images.shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_oct(2, kinds=("tumour",)), "kinds must be some of 'normal', 'intraretinal fluid'"),
        (lambda: make_oct(2, kinds=()), "kinds must be some of"),
        (lambda: make_oct(2, severity=0), "severity must lie in"),
        (lambda: make_oct(2, severity=(0.5, 0.2)), "severity must lie in"),
        (lambda: make_oct(1, layers=OCT_LAYERS[:3]), "layers must be five at least"),
        (lambda: make_oct(1, n_looks=0), "n_looks must be above 0, .* got 0"),
        (lambda: make_oct(1, thickness_variation=1.5), "thickness_variation must lie in .0, 1., got 1.5"),
        (lambda: make_oct(0), "n_samples must be a whole number of at least 1, got 0"),
        (lambda: make_oct(1, size=8), "size must be a whole number of at least 32, got 8"),
        (lambda: make_fundus(1, grades=(5,)), "grades must be whole numbers from 0 to 4"),
        (lambda: make_digit_anatomy(1, kinds=("odd",)), "kinds must be some of 'normal', 'missing'"),
        (lambda: make_digit_anatomy(1, size=97), "size must be a multiple of 3, .* got 97"),
        (lambda: make_digit_anatomy(1, n_anomalous_cells=8), "n_anomalous_cells must be 7 at most, got 8"),
        (lambda: make_digit_anatomy(1, kinds={"zero"}), "kinds must be some of"),
        (
            lambda: make_digit_anatomy(1, scale=(1.0, 1.2)),
            "scale must be .* low below 1 for",
        ),
        (lambda: make_digit_anatomy(1, scale=(0.5, np.inf)), "scale must be .low, high., .* got .0.5, inf"),
        (lambda: make_digit_anatomy(1, scale=(1e-9, 1)), "low at least 0.001, got"),
        (lambda: make_digit_anatomy(1, scale=0.5), "scale must be .low, high., .* got 0.5"),
        (lambda: make_digit_anatomy(1, crop_policy="pad"), "crop_policy must be 'reject' or 'resize'"),
        (lambda: make_digit_anatomy(1, subset="all"), "subset must be 'train', 'val' or 'test'"),
        (
            lambda: make_digit_anatomy(1, kinds=("zero",)),
            "subset='train' of the digits must hold each of the digits to draw, but there is no 0; zeros",
        ),
        (
            lambda: make_digit_anatomy(1, digits=(np.zeros((3, 28, 28), np.uint8), [1, 2, 3])),
            "digits must hold each of the digits to draw, but there is no 4",
        ),
        (
            lambda: make_digit_anatomy(1, digits=(np.zeros((3, 28, 28)), [1, 2, 3])),
            "digits must hold two",
        ),
        (lambda: make_digit_anatomy(1, digits=np.zeros((3, 28, 28))), "digits must hold two .* got ndarray"),
        (
            lambda: make_digit_anatomy(1, digits=(np.zeros((9, 0, 28), np.uint8), range(9))),
            "of 4 pixels at",
        ),
    ],
)
def test_bad_phantoms(make, message):
    with pytest.raises(ValueError, match=message):
        make()


GRIDS = "missing", "misordered", "flipped", "zero"


def cells_of(grids):
    """(n, 9, 32, 32)."""
    n, side, _ = grids.shape
    return grids.reshape(n, 3, side // 3, 3, side // 3).swapaxes(2, 3).reshape(n, 9, side // 3, side // 3)


def test_grids_of_digits_are_what_they_say():
    data = make_digit_anatomy(60, kinds=("normal", *GRIDS), subset="test", random_state=0)
    bank = load_mnist_digits(subset="test")
    assert (bank.class_index[data.digit_index] == np.arange(1, 10)).all(), "digit 3 r + c + 1 in its cell"
    images, normal, masks = map(cells_of, (data.images, data.normal, data.masks))
    assert_array_equal(masks.all((2, 3)), data.cells)
    assert_array_equal(masks.any((2, 3)), data.cells)
    assert_array_equal(images[~data.cells], normal[~data.cells])
    assert_array_equal(data.target, np.where(data.kind == "normal", 1, -1))
    n_cells = data.cells.sum(1)
    for kind, expected in zip(("normal", *GRIDS), (0, 1, 2, 1, 1)):
        assert (n_cells[data.kind == kind] == expected).all()
    assert not images[data.cells & (data.kind == "missing")[:, None]].any()
    for k in np.flatnonzero(data.kind == "misordered"):
        first, second = np.flatnonzero(data.cells[k])
        assert_array_equal(images[k, [first, second]], normal[k, [second, first]])
    for k in np.flatnonzero(data.kind == "flipped"):
        (cell,) = np.flatnonzero(data.cells[k])
        flips = [np.flip(normal[k, cell], axes) for axes in (0, 1, (0, 1))]
        assert cell + 1 not in (1, 8)
        assert any((images[k, cell] == flipped).all() for flipped in flips)
    for k in np.flatnonzero(data.kind == "zero"):
        assert (images[k, data.cells[k]] != normal[k, data.cells[k]]).any()


def test_cells_are_random_squares_of_digits():
    """A gradient as a digit: the square's side and place can be read from it."""
    bank = np.repeat(np.add.outer(3 * np.arange(28), 5 * np.arange(28))[None].astype(np.uint8), 9, axis=0)
    data = make_digit_anatomy(300, digits=(bank, np.arange(1, 10)), random_state=0)
    cells = cells_of(data.images).astype(float)
    side = (cells[:, :, 24, 16] - cells[:, :, 8, 16]) / 16 * 32 / 3
    assert side.min() > 28 * np.sqrt(0.6) - 1.5
    assert side.max() < 28.5
    assert abs(np.mean(side**2) / 784 - 0.818) < 0.02, "areas from 0.6 to 1.036"
    assert cells.min() >= 0
    shrunk = make_digit_anatomy(
        50, digits=(bank, np.arange(1, 10)), scale=(1.2, 1.3), crop_policy="resize", random_state=0
    )
    assert ((cells_of(shrunk.images)[:, :, [0, -1]] == 0).all(3).any(2)).mean() > 0.9, "black around"
    whole = make_digit_anatomy(1, size=84, scale=(0.999, 0.9999), digits=(bank, np.arange(1, 10)))
    assert_array_equal(cells_of(whole.images)[0], bank)


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_grids_hold_the_digits_of_their_subset(subset):
    """Uncropped, pixel by pixel, before and after the anomaly."""
    kinds = ("normal", *(kind for kind in GRIDS if subset != "train" or kind != "zero"))
    options = {"kinds": kinds, "size": 84, "scale": (0.999, 0.9999), "subset": subset, "random_state": 0}
    bank = load_mnist_digits(subset=subset)
    data = make_digit_anatomy(200, n_anomalous_cells=3, **options)

    def cells(grids):
        return grids.reshape(-1, 3, 28, 3, 28).swapaxes(2, 3).reshape(-1, 9, 28, 28)

    normal, images = cells(data.normal), cells(data.images)
    assert_array_equal(normal, bank.images[data.digit_index])
    assert all(len(np.unique(data.digit_index[:, cell])) > 40 for cell in range(9))
    zeros = {image.tobytes() for image in bank.images[bank.class_index == 0]}
    planted, flips = set(), {digit: set() for digit in range(1, 10)}
    for k in np.flatnonzero(data.kind != "normal"):
        changed = np.flatnonzero(data.cells[k])
        before = [normal[k, cell].tobytes() for cell in changed]
        after = [images[k, cell].tobytes() for cell in changed]
        if data.kind[k] == "misordered":
            assert sorted(before) == sorted(after)
            assert all(a != b for a, b in zip(before, after)), "none stays in its place"
        elif data.kind[k] == "zero":
            planted |= set(after)
        elif data.kind[k] == "flipped":
            for cell in changed:
                before, after = normal[k, cell], images[k, cell]
                axes = {"left-right": 1, "up-down": 0, "both": (0, 1)}
                same = [name for name, axis in axes.items() if (np.flip(before, axis) == after).all()]
                flips[cell + 1].add(same[0] if same else "another's")
    assert planted <= zeros
    assert len(planted) > 30 or subset == "train"
    assert {digit: found for digit, found in flips.items() if found} == {k: set(v) for k, v in FLIPS.items()}
    assert len(np.unique(np.nonzero(data.cells)[1])) == 9, "any cell"


def test_no_digit_is_in_two_subsets():
    names = [set(load_mnist_digits(subset=subset).groups) for subset in ("train", "val", "test")]
    assert sum(map(len, names)) == len(set.union(*names)) == 6100
    drawn = [make_digit_anatomy(5, subset=subset, random_state=0) for subset in ("train", "val", "test")]
    assert not (drawn[0].images == drawn[1].images).all()
    several = make_digit_anatomy(20, kinds=GRIDS, n_anomalous_cells=3, subset="val", random_state=0)
    assert (several.cells.sum(1) == 3).all()
