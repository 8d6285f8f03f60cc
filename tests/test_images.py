import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from skanomaly._format import Layout, find_intensity_range
from skanomaly._images import Images
from skanomaly._random import draw_seed, seeded
from skanomaly.testing import SliceOnly, make_images


@pytest.mark.parametrize(
    ("shape", "channel_axis", "image_shape", "expected"),
    [
        ((5, 12), "auto", None, Layout((1, 1, 12), None, True)),
        ((5, 12), "auto", (3, 4), Layout((1, 3, 4), None, True)),
        ((5, 12), "auto", (3, 2, 2), Layout((3, 2, 2), None, True)),
        ((5, 8, 9), "auto", None, Layout((1, 8, 9))),
        ((5, 8, 9), None, None, Layout((1, 8, 9))),
        ((5, 8, 9, 3), "auto", None, Layout((3, 8, 9), 3)),
        ((5, 1, 8, 9), "auto", None, Layout((1, 8, 9), 1)),
        ((5, 3, 8, 9), "auto", (3, 8, 9), Layout((3, 8, 9), 1)),
        ((5, 8, 9, 4), "auto", (4, 8, 9), Layout((4, 8, 9), 3)),
        ((5, 8, 9, 7), -1, None, Layout((7, 8, 9), 3)),
        ((5, 8, 7, 9), 2, None, Layout((7, 8, 9), 2)),
        ((5, 3, 3, 3), 1, None, Layout((3, 3, 3), 1)),
    ],
)
def test_layout(shape, channel_axis, image_shape, expected):
    assert Layout.of(shape, channel_axis, image_shape) == expected


@pytest.mark.parametrize(
    ("shape", "channel_axis", "image_shape", "words"),
    [
        ((5, 3, 8, 3), "auto", None, ["both axes", "channel_axis=1 or channel_axis=-1"]),
        ((5, 3, 8, 9), "auto", None, ["3 channels, or volumes of 3 slices", "channel_axis=1"]),
        ((5, 8, 9, 4), "auto", None, ["alpha", "X[..., :3]", "channel_axis=-1"]),
        ((5, 2304), "auto", (32, 24, 3), ["(C, H, W)", "X.reshape(-1, 32, 24, 3)"]),
        ((5, 768), "auto", (32, 24, 1), ["(C, H, W)", "X.reshape(-1, 32, 24, 1)"]),
        ((5, 9, 8, 7), "auto", None, ["no axis", "channel_axis=1 or channel_axis=-1"]),
        ((5, 9, 8, 7), 0, None, ["channel_axis must be one of", "got 0"]),
        ((5, 9, 8, 7), 4, None, ["channel_axis must be one of", "got 4"]),
        ((5, 9, 8, 3), None, None, ["channel_axis=None"]),
        ((5, 9, 8), 1, None, ["4 axes", "(5, 9, 8)"]),
        ((5, 12), "auto", (5, 2), ["image_shape", "12 columns"]),
        ((5, 12), "auto", (12,), ["image_shape", "(12,)"]),
        ((5, 8, 9), "auto", (9, 8), ["image_shape=(9, 8)", "(1, 8, 9)"]),
        ((5, 0, 8), "auto", None, ["(5, 0, 8)"]),
        ((5, 1, 2, 3, 4), "auto", None, ["5 axes"]),
    ],
)
def test_layout_errors(shape, channel_axis, image_shape, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        Layout.of(shape, channel_axis, image_shape)
    assert all(word in str(raised.value) for word in words)


@given(
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int64", "float32", "float64"]),
    shape=st.sampled_from([(4, 6), (4, 5, 6), (4, 5, 6, 3), (4, 2, 5, 6)]),
    low=st.integers(-1000, 1000),
    span=st.integers(1, 5000),
)
def test_there_and_back(dtype, shape, low, span):
    """to_network is the affine map of the range, and from_network undoes it."""
    layout = Layout.of(shape, 1 if shape == (4, 2, 5, 6) else "auto")
    X = make_images(shape, dtype)
    images = Images(X, layout, (low, low + span), (-1.0, 1.0))
    x = images[:]
    assert x.dtype == torch.float32
    assert tuple(x.shape) == (4, *layout.image_shape)
    expected = layout.to_network((X.astype(float) - low) / span * 2 - 1)
    assert_allclose(x, expected, rtol=1e-4, atol=1e-5)
    assert_allclose(images.from_network(x.numpy()), X, rtol=1e-4, atol=1e-3 * span)


def test_large_offsets_keep_their_detail():
    X = (np.arange(12).reshape(3, 4) + 10**9).astype(np.int64)
    x = Images(X, Layout.of(X.shape), (10**9, 10**9 + 11))[:]
    assert_allclose(x.numpy().ravel(), np.arange(12) / 11, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 3, 7, 64])
@pytest.mark.parametrize("n", [2, 3, 5, 13])
def test_an_epoch_holds_every_row_once_and_never_a_single_one(n, batch_size):
    X = np.arange(n, dtype="float32")[:, None]
    for source in X, SliceOnly(X):
        images = Images(source, Layout.of(X.shape), (0, 1))
        with seeded(0):
            batches = [batch.numpy().ravel() for batch in images.epoch(batch_size)]
        assert_array_equal(np.sort(np.concatenate(batches)), np.arange(n))
        sizes = [len(batch) for batch in batches]
        assert min(sizes) >= 2
        assert max(sizes) <= batch_size + 1
        assert max(sizes) - min(sizes) <= 1


def test_a_sliced_source_is_shuffled_and_read_in_runs():
    reads = []

    class Counting(SliceOnly):
        def __getitem__(self, rows):
            reads.append(rows)
            return super().__getitem__(rows)

    X = np.arange(256, dtype="float32")[:, None]
    images = Images(Counting(X), Layout.of(X.shape), (0, 1))
    with seeded(0):
        first = next(images.epoch(64)).numpy().ravel()
    assert len(reads) <= 8
    assert len(set(first // 64)) > 1


def test_held_out_images_are_apart():
    X = np.arange(20, dtype="float32")[:, None]
    with seeded(0):
        images = Images(X, Layout.of(X.shape), (0, 1), rows=np.arange(10)).split(0.3)
    train, held_out = images[:].ravel().tolist(), images.held_out[:].ravel().tolist()
    assert len(held_out) == 3
    assert sorted(train + held_out) == list(range(10))


def test_range_of_used_rows_only():
    X = np.array([[1.0, 2.0], [5.0, 6.0], [900.0, 0.0]])
    used = np.array([True, True, False])
    assert find_intensity_range(X, "auto", used) == (1.0, 6.0)
    assert find_intensity_range(X.astype("uint8"), "auto", used) == (0.0, 255.0)
    assert find_intensity_range(X, (0, 10), used) == (0.0, 10.0)


def test_twelve_bits_in_sixteen_fill_the_range():
    X = make_images((6, 8, 8), "uint16")
    x = Images(X, Layout.of(X.shape), find_intensity_range(X, "auto", np.full(6, True)))[:]
    assert (x.min(), x.max()) == (0, 1)


def test_seeded_leaves_the_caller_alone():
    state = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(3):
        assert torch.equal(torch.rand(4), first)
    numpy_state = np.random.get_state()[1].copy()
    assert draw_seed(None) != draw_seed(None)
    assert draw_seed(5) == draw_seed(5)
    assert_array_equal(np.random.get_state()[1], numpy_state)


@given(n_normal=st.integers(2, 12), n_unlabelled=st.integers(0, 12), fraction=st.floats(0.1, 0.9))
def test_as_many_are_held_out_as_asked_and_of_either_kind(n_normal, n_unlabelled, fraction):
    y = np.repeat([1, 0], [n_normal, n_unlabelled])
    n = len(y)
    images = Images(np.zeros((n, 2, 2)), Layout((1, 2, 2)), (0.0, 1.0), rows=np.arange(n), y=y)
    if not 0 < round(fraction * n) <= n - 2:
        with pytest.raises(ValueError, match="validation_fraction"):
            images.split(fraction)
        return
    train = images.split(fraction)
    assert sorted([*train.rows, *train.held_out.rows]) == list(range(n))
    assert len(train.held_out) == round(fraction * n)
    assert (train.held_out.y == 0).sum() == round(fraction * n_unlabelled)
