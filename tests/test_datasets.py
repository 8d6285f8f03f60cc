import numpy as np
import pytest

from skanomaly.datasets import load_chest_xray, load_oct


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
