import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import ndimage
from skimage.draw import circle_perimeter, disk

from skanomaly.segmentation import connected_regions, regions, residual_mask


def test_a_closed_ring_becomes_a_disc():
    ring, disc = np.zeros((1, 21, 21)), np.zeros((1, 21, 21), bool)
    ring[0][circle_perimeter(10, 10, 6)] = 1
    disc[0][disk((10, 10), 6)] = True
    filled = residual_mask(ring, 0.5)
    assert filled[0, 10, 10]
    assert (filled >= disc).all()
    assert np.array_equal(residual_mask(ring, 0.5, fill_holes=False), ring > 0.5)


def test_nothing_leaks_from_image_to_image():
    """An open ring is open, whatever its neighbours in the stack look like."""
    maps = np.zeros((3, 9, 9))
    maps[0] = maps[2] = 1
    maps[1, 2:7, 2:7] = 1
    maps[1, 3:6, 3:6] = 0
    maps[1, 2, 4] = 0
    assert not residual_mask(maps, 0.5)[1, 4, 4]
    labels, n = connected_regions(maps > 0.5)
    assert n == 3
    assert [len(np.unique(label[label > 0])) for label in labels] == [1, 1, 1]


@given(st.integers(0, 10_000), st.floats(0.3, 0.9), st.integers(0, 6))
def test_every_image_by_itself(seed, threshold, min_size):
    maps = ndimage.gaussian_filter(np.random.default_rng(seed).random((4, 15, 12)), (0, 1, 1))
    maps = (maps - maps.min()) / np.ptp(maps)
    options = {"threshold": threshold, "min_size": min_size, "median_size": 3}
    together = residual_mask(maps, **options)
    assert np.array_equal(together, np.concatenate([residual_mask(image[None], **options) for image in maps]))
    sizes = np.bincount(connected_regions(together)[0].ravel())[1:]
    assert (sizes >= max(min_size, 1)).all()


def test_thresholds_nest_before_filling():
    maps = np.random.default_rng(0).random((2, 10, 10))
    low, high = (residual_mask(maps, t, fill_holes=False) for t in (0.3, 0.6))
    assert (high <= low).all()
    assert not residual_mask(np.zeros((2, 5, 5)), 0.0).any()


def test_shape():
    with pytest.raises(ValueError, match=r"maps must have shape \(n, H, W\), got \(5, 5\)"):
        residual_mask(np.zeros((5, 5)), 1)


def test_regions_say_where_how_big_and_how_bad():
    maps = np.zeros((3, 10, 12), "float32")
    maps[0, 1:4, 2:7] = np.arange(15).reshape(3, 5) + 1
    maps[2, 0, 0], maps[2, 8:, 10:] = 3, 5
    maps[2, 7, 9] = 4  # touches by a corner
    table = regions(maps > 0, maps)
    rows = np.column_stack(list(table.values()))
    assert list(table) == "image area centroid_row centroid_column top left bottom right mean max".split()
    assert_allclose(rows[0], [0, 15, 2, 4, 1, 2, 4, 7, 8, 15])
    assert_allclose(rows[1], [2, 1, 0, 0, 0, 0, 1, 1, 3, 3])
    assert_allclose(rows[2], [2, 5, (8.5 * 4 + 7) / 5, (10.5 * 4 + 9) / 5, 7, 9, 10, 12, 24 / 5, 5])
    assert len(rows) == 3


def test_regions_of_one_image_and_of_none():
    one = regions(np.eye(4) > 0, np.eye(4))
    assert one["area"].tolist() == [4]
    assert one["image"].tolist() == [0]
    assert {len(column) for column in regions(np.zeros((2, 4, 4)), np.zeros((2, 4, 4))).values()} == {0}
    with pytest.raises(ValueError, match=r"masks and maps .*got \(2, 4, 4\) and \(2, 4, 5\)"):
        regions(np.zeros((2, 4, 4)), np.zeros((2, 4, 5)))


def test_soft_and_masked_masks_have_no_regions():
    maps = np.full((1, 4, 4), 0.5)
    for find in connected_regions, lambda masks: regions(masks, maps):
        with pytest.raises(ValueError, match="masks must hold booleans, or 0 and 1, .* masks > 0.5"):
            find(maps)
        with pytest.raises(TypeError, match="masks must be a plain array"):
            find(np.ma.array(maps > 0))
    with pytest.raises(TypeError, match="maps must be a plain array"):
        regions(maps > 0, np.ma.array(maps))
