import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from skanomaly._random import seeded
from skanomaly.synthesis import interpolate_foreign_patches
from skanomaly.testing import make_images
from skanomaly.transforms.defects import foreign_patches


def test_boxes_by_hand():
    x = torch.rand(200, 2, 40, 60).double()
    with seeded(0):
        y, masks, factors = foreign_patches(x)
    other = torch.cat([x[1:], x[:1]])
    share = torch.where(masks, factors[:, None, None].double(), 0.0)[:, None]
    assert_close(y, (1 - share) * x + share * other)
    assert torch.equal(y[~masks[:, None].expand_as(y)], x[~masks[:, None].expand_as(x)]), "untouched outside"
    rows, columns = masks.any(2), masks.any(1)
    assert torch.equal(masks, rows[:, :, None] & columns[:, None]), "boxes"
    for side, inside in ((40, rows), (60, columns)):
        first, last = inside.int().argmax(1), side - 1 - inside.flip(1).int().argmax(1)
        assert torch.equal(inside.sum(1), last - first + 1), "in one piece"
        whole = (first > 0) & (last < side - 1)
        width = (last - first + 1)[whole]
        assert width.min() >= 2 * round(0.05 * side)
        assert width.max() <= 2 * round(0.2 * side)
        centre = (first + last + 1)[whole] / 2
        assert centre.min() >= 0.1 * side - 1
        assert centre.max() <= 0.9 * side
    assert 0 <= factors.min() < 0.05 < 0.95 < factors.max() <= 1
    assert len(rows.int().argmax(1).unique()) > 10, "each image its own"


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.45])
def test_centres_keep_away_from_the_border(margin):
    with seeded(0):
        _, masks, _ = foreign_patches(torch.rand(500, 1, 100, 100), half_width=(0.02, 0.02), margin=margin)
    for inside in (masks.any(1), masks.any(2)):
        first, last = inside.int().argmax(1), 99 - inside.flip(1).int().argmax(1)
        centre = ((first + last + 1) / 2)[(first > 0) & (last < 99)]
        assert centre.min() == max(3, 100 * margin)
        assert centre.max() >= 100 * (1 - margin) - 3
        assert centre.max() <= 100 * (1 - margin)


def test_one_image_alone_has_no_other():
    x = torch.rand(1, 1, 20, 20)
    y, masks, _ = foreign_patches(x)
    assert torch.equal(x, y)
    assert not masks.any()


def test_every_box_has_a_pixel_at_least():
    with seeded(0):
        _, masks, _ = foreign_patches(torch.rand(50, 1, 1, 6))
    assert masks.any((1, 2)).all()


def test_integers_are_rounded():
    X = np.tile([0, 10], 8)[:, None, None] * np.ones((16, 40, 40), "uint8")
    made = interpolate_foreign_patches(X, random_state=0)
    for image, mask, factor in list(zip(made.images, made.masks, made.factors))[::2]:
        assert set(image[mask]) == {round(10 * factor)}


def test_a_share_of_the_images():
    x = torch.rand(400, 1, 20, 20)
    with seeded(0):
        y, masks, _ = foreign_patches(x, probability=0.25)
    changed = masks.any((1, 2))
    assert 60 < changed.sum() < 140
    assert torch.equal(y[~changed], x[~changed])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 16, 20), (6, 16, 20, 3)])
def test_of_arrays(dtype, shape):
    X = make_images(shape).astype(dtype)
    made = interpolate_foreign_patches(X, random_state=3)
    again = interpolate_foreign_patches(X, random_state=3)
    assert made.images.dtype == dtype
    assert made.images.shape == shape
    assert np.array_equal(made.images, again.images)
    assert not np.array_equal(made.images, interpolate_foreign_patches(X, random_state=4).images)
    assert made.masks.shape == (6, 16, 20)
    differs = (made.images != X).reshape(6, 16, 20, -1).any(-1)
    assert not (differs & ~made.masks).any()
    assert differs.any()
    if len(shape) == 4:
        first = interpolate_foreign_patches(X.transpose(0, 3, 1, 2), channel_axis=1, random_state=3)
        assert np.array_equal(first.images.transpose(0, 2, 3, 1), made.images)
        assert np.array_equal(first.masks, made.masks)
    alone = interpolate_foreign_patches(np.stack([X[0]] * 4), random_state=0)
    assert_allclose(alone.images, np.stack([X[0]] * 4), rtol=1e-6, err_msg="mixed with itself")


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (np.zeros((1, 8, 8)), {}, "1 sample"),
        (np.zeros((4, 8)), {}, r"X must be \(n, H, W\), .*, got an array of shape \(4, 8\)"),
        (np.zeros((4, 3, 8, 3)), {}, "set channel_axis=1 or channel_axis=-1"),
        (np.zeros((4, 8, 8)), {"half_width": 0.1}, "half_width must hold shares of a side"),
        (np.full((4, 8, 8), np.nan), {}, "NaN"),
        (np.zeros((4, 8, 8)), {"half_width": (0.3, 0.2)}, "half_width must hold shares of a side"),
        (np.zeros((4, 8, 8)), {"margin": 0.5}, "margin must be at least 0 and below 0.5, got 0.5"),
        (np.zeros((4, 8, 8)), {"probability": 1.5}, "probability must lie between 0 and 1, got 1.5"),
    ],
)
def test_bad_input(X, options, message):
    with pytest.raises(ValueError, match=message):
        interpolate_foreign_patches(X, **options)
