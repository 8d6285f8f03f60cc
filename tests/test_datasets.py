import numpy as np
import pytest

from skanomaly.datasets import load_chest_xray, load_oct, make_fundus, make_oct
from skanomaly.datasets._phantoms import OCT_KINDS, OCT_LAYERS


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


@pytest.mark.parametrize("make", [make_oct, make_fundus])
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
        (lambda: make_oct(0), "n_samples must be a whole number of at least 1, got 0"),
        (lambda: make_oct(1, size=8), "size must be a whole number of at least 32, got 8"),
        (lambda: make_fundus(1, grades=(5,)), "grades must be whole numbers from 0 to 4"),
    ],
)
def test_bad_phantoms(make, message):
    with pytest.raises(ValueError, match=message):
        make()
