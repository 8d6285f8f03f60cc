"""Patches that are cut and pasted: their sizes, places and pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch.testing import assert_close

from skanomaly.synthesis import cutpaste
from skanomaly.transforms.cutpaste import _jittered, _places

kinds = st.sampled_from(["normal", "scar", "union"])
shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40))
plain = {"jitter": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(n, height, width):
    """Images of which each pixel has a value of its own."""
    return torch.arange(float(n * height * width)).view(n, 1, height, width)


def box_of(mask):
    """Rows and columns of the box around a mask, as slices."""
    return tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero().T)


@given(shapes, kinds, st.integers(0, 2**31))
def test_masks_are_what_changed(shape, kind, seed):
    images = torch.rand(shape, generator=generator(seed))
    made, masks, labels = cutpaste(images, None, generator(seed), kind=kind)
    assert made.shape == images.shape
    assert (made.dtype, masks.dtype, labels.dtype) == (torch.float32, torch.bool, torch.float32)
    assert masks.shape == labels.shape == (shape[0], 1, *shape[2:])
    assert torch.equal(labels, masks.float())
    assert masks.any((1, 2, 3)).all()
    outside = ~masks.expand_as(images)
    assert torch.equal(made[outside], images[outside]), "no more pixels than the patch has"
    assert 0 <= made.min() <= made.max() <= 1
    again = cutpaste(images, None, generator(seed), kind=kind)
    assert all(torch.equal(a, b) for a, b in zip((made, masks, labels), again))


def test_area_and_ratio_of_normal_patches():
    images = numbered(400, 50, 80)
    _, masks, _ = cutpaste(images, None, generator(), kind="normal", **plain)
    boxes = [box_of(mask[0]) for mask in masks]
    height, width = (np.array([box[axis].stop - box[axis].start for box in boxes]) for axis in (0, 1))
    assert_allclose(masks.sum((1, 2, 3)), height * width, err_msg="upright rectangles")
    area = height * width / (50 * 80)
    # Sides are whole pixels.
    assert 0.018 < area.min() < 0.03 < 0.13 < area.max() < 0.16
    ratio = (height / 50) / (width / 80)
    assert 0.25 < ratio.min() < 0.4 < 2.5 < ratio.max() < 4
    assert abs(np.log(ratio).mean()) < 0.15, "neither upright nor lying patches prevail"
    _, masks, _ = cutpaste(images, None, generator(), kind="normal", area=(0.5, 0.5), ratio=(1, 1), **plain)
    assert_allclose(masks.float().mean((1, 2, 3)), 0.5, atol=0.01)


def test_patches_lie_anywhere():
    _, masks, _ = cutpaste(numbered(800, 12, 10), None, generator(), kind="normal", **plain)
    assert masks.any(0).all()
    share = masks.float().mean(0)[0]
    assert share[5, 5] > share[0, 0], "but inside the image"


def test_normal_patches_are_shifted_pieces():
    images = numbered(60, 30, 40)
    made, masks, _ = cutpaste(images, None, generator(), kind="normal", **plain)
    places = set()
    for image, changed, mask in zip(images[:, 0], made[:, 0], masks[:, 0]):
        rows, columns = box_of(mask)
        patch = changed[rows, columns]
        at = (image == patch[0, 0]).nonzero()[0].tolist()
        height, width = patch.shape
        assert torch.equal(patch, image[at[0] : at[0] + height, at[1] : at[1] + width])
        places.add(tuple(at))
    assert len(places) > 50


def test_a_patch_in_its_own_place_changes_nothing():
    images = torch.rand(20, 2, 24, 24)
    made, masks, _ = cutpaste(images, None, generator(), area=(1, 1), ratio=(1, 1), kind="normal", **plain)
    assert torch.equal(made, images)
    assert masks.all()
    jittered, _, _ = cutpaste(images, None, generator(), area=(1, 1), ratio=(1, 1), kind="normal")
    assert not torch.allclose(jittered, images, atol=0.01)


def test_foreign_patches():
    images, sources = (
        torch.zeros(6, 1, 16, 16),
        torch.tensor([0.25, 0.75])[:, None, None, None].expand(2, 1, 16, 16),
    )
    for kind in ("normal", "scar"):
        made, masks, _ = cutpaste(images, sources, generator(), kind=kind, **plain)
        assert_close(made, torch.where(masks, sources.repeat(3, 1, 1, 1), images))


@pytest.mark.parametrize("degrees", [0.0, 45.0, -30.0, 90.0])
def test_a_turned_patch_by_hand(degrees):
    """Each pixel of the mask has the value of the place that turning back leads to."""
    height, width, sides = 6.0, 3.0, (21, 19)
    patch, angle = torch.tensor([[height], [width]]), torch.tensor([math.radians(degrees)])
    draws = torch.rand(2, 2, 1, generator=generator(4)).numpy()[..., 0]
    masks, index = _places(1, sides, patch, angle, generator(4))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    box = [
        round(float(np.float32(v)), 4)
        for v in (height * abs(cos) + width * abs(sin), height * abs(sin) + width * abs(cos))
    ]
    centre = [math.floor(draws[0, k] * (sides[k] - round(box[k]) + 1)) + round(box[k]) / 2 for k in (0, 1)]
    start = [math.floor(draws[1, k] * (sides[k] - (height, width)[k] + 1)) for k in (0, 1)]
    n_inside = 0
    for i, j in np.ndindex(*sides):
        row, column = i + 0.5 - centre[0], j + 0.5 - centre[1]
        along, across = cos * row + sin * column, cos * column - sin * row
        if abs(abs(along) - height / 2) < 1e-4 or abs(abs(across) - width / 2) < 1e-4:
            continue  # on the edge rounding decides
        inside = abs(along) < height / 2 and abs(across) < width / 2
        assert bool(masks[0, 0, i, j]) == inside
        if inside:
            expected = [math.floor(start[0] + height / 2 + along), math.floor(start[1] + width / 2 + across)]
            assert divmod(int(index[0, i * sides[1] + j]), sides[1]) == tuple(expected)
            n_inside += 1
    assert abs(n_inside - height * width) < 6


def test_sizes_of_scars():
    for sides in ((256, 256), (64, 128), (128, 64), (64, 64)):
        side, images = min(sides), torch.rand(200, 1, *sides)
        _, masks, _ = cutpaste(images, None, generator(), kind="scar", degrees=0.0)
        boxes = [box_of(mask[0]) for mask in masks]
        height, width = (
            np.array([b[axis].stop - b[axis].start for b in boxes]) * 256 / side for axis in (0, 1)
        )
        pixel = 256 / side
        assert 10 - pixel < height.min() <= 12 < 23 < height.max() < 25 + pixel
        assert 2 - pixel < width.min() < 5 < 13 < width.max() < 16 + pixel
    turned = cutpaste(images, None, generator(), kind="scar")[1]
    assert not torch.equal(turned, masks)
    assert turned.flatten(1).sum(1).max() < 60


def test_union_is_of_both_kinds():
    images = torch.rand(300, 1, 64, 64)
    _, masks, _ = cutpaste(images, None, generator())
    large = masks.float().mean((1, 2, 3)) > 0.015
    assert 0.4 < large.float().mean() < 0.6


def test_jitter_by_hand():
    x = torch.rand(3, 3, 6, 6).double()
    masks = torch.zeros(3, 1, 6, 6, dtype=torch.bool)
    masks[:, :, 1:4, 2:5] = True
    y = _jittered(0.3 + 0.4 * x, masks, 0.1, generator(2))
    draws = [torch.rand(3, generator=(g := generator(2)))] + [torch.rand(3, generator=g) for _ in range(3)]
    brightness, contrast, saturation = (0.9 + 0.2 * d.double().numpy() for d in draws[:3])
    hue = 2 * np.pi * (-0.1 + 0.2 * draws[3].double().numpy())
    for k in range(3):
        image = (0.3 + 0.4 * x[k].numpy()) * brightness[k]
        mean = image[:, 1:4, 2:5].mean()
        image = mean + contrast[k] * (image - mean)
        # Rodrigues' formula, about the axis of grey values.
        axis = np.ones(3) / np.sqrt(3)
        grey = image.mean(0)
        color = saturation[k] * (image - grey).reshape(3, -1)
        turned = np.cos(hue[k]) * color + np.sin(hue[k]) * np.cross(axis, color.T).T
        assert_allclose(y[k], (grey + turned.reshape(3, 6, 6)).clip(0, 1), rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_jitter_of_channels_that_are_no_colors(channels):
    """Brightness and contrast only: an affine change of all channels alike."""
    x, masks = 0.3 + 0.4 * torch.rand(5, channels, 6, 6).double(), torch.ones(5, 1, 6, 6, dtype=torch.bool)
    y = _jittered(x, masks, 0.1, generator())
    for before, after in zip(x.flatten(1), y.flatten(1)):
        assert np.corrcoef(before, after)[0, 1] > 1 - 1e-9
        assert not torch.allclose(before, after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "3-way"}, "kind must be 'normal', 'scar' or 'union', got '3-way'"),
        ({"area": (0.0, 0.1)}, "area must hold shares of the image"),
        ({"area": (0.5, 0.1)}, "area must hold shares of the image"),
        ({"ratio": (0.0, 1.0)}, "ratio must hold numbers above 0"),
        ({"scar_width": (3, 1)}, "scar_width must hold numbers above 0"),
        ({"scar_length": (-3, 1)}, "scar_length must hold numbers above 0"),
        ({"scar_length": 20}, "scar_length must hold numbers above 0, low before high, got 20"),
        ({"jitter": 5}, "jitter must lie between 0 and 1, got 5"),
        ({"jitter": -0.1}, "jitter must lie between 0 and 1, got -0.1"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        cutpaste(torch.rand(2, 1, 8, 8), **options)
