"""Poisson equations in boxes, and blending by them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.sparse import lil_array
from scipy.sparse.linalg import spsolve
from torch.testing import assert_close

from skanomaly.transforms.poisson import blend, solve_poisson

NEIGHBOURS = (-1, 0), (1, 0), (0, -1), (0, 1)


def runs(n, side, seed):
    """A run of pixels (n, side) for each image, of at least one pixel and away from both ends."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(1, side - 1, (n, 2)), 1)
    at = torch.arange(side)
    return (at >= torch.from_numpy(ends[:, :1])) & (at <= torch.from_numpy(ends[:, 1:]))


def images(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


def solve_sparse(right, box, border):
    """4 f_p - sum of the four f_q = right_p in the box, f = border outside, by scipy's sparse solver."""
    places = np.argwhere(box)
    number = {tuple(place): k for k, place in enumerate(places)}
    matrix, known = lil_array((len(places), len(places))), np.zeros(len(places))
    for k, (i, j) in enumerate(places):
        matrix[k, k], known[k] = 4, right[i, j]
        for di, dj in NEIGHBOURS:
            q = i + di, j + dj
            if q in number:
                matrix[k, number[q]] = -1
            else:
                known[k] += border[q]
    solution = border.copy()
    solution[box] = np.atleast_1d(spsolve(matrix.tocsc(), known))
    return solution


def blend_sparse(d, s, box, own, foreign):
    """Blending of one channel, written out pixel by pixel."""
    right = np.zeros_like(d)
    for i, j in np.argwhere(box):
        for di, dj in NEIGHBOURS:
            a, b = own * (d[i, j] - d[i + di, j + dj]), foreign * (s[i, j] - s[i + di, j + dj])
            right[i, j] += a if abs(a) > abs(b) else b
    return solve_sparse(right, box, d)


@pytest.mark.parametrize(("dtype", "within"), [("float64", 1e-12), ("float32", 1e-6)])
def test_the_solver_agrees_with_a_sparse_one(dtype, within):
    n, (h, w) = 6, (24, 31)
    rows, columns, right = runs(n, h, 0), runs(n, w, 1), images((n, 2, h, w)) - 0.5
    found = solve_poisson(right.to(getattr(torch, dtype)), rows, columns)
    assert found.dtype == getattr(torch, dtype)
    for i in range(n):
        box = (rows[i][:, None] & columns[i]).numpy()
        for channel in range(2):
            expected = solve_sparse(right[i, channel].numpy(), box, np.zeros((h, w)))
            assert_allclose(found[i, channel], expected, atol=within * np.abs(expected).max())


@pytest.mark.parametrize(("own", "foreign"), [(0.7, 0.3), (0.05, 0.95), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)])
def test_blending_agrees_with_a_sparse_solver(own, foreign):
    d, s = images((3, 1, 18, 22), 0), images((3, 1, 18, 22), 1)
    rows, columns = runs(3, 18, 2), runs(3, 22, 3)
    found = blend(d, s, rows, columns, own=own, foreign=foreign)
    for i in range(3):
        box = (rows[i][:, None] & columns[i]).numpy()
        expected = blend_sparse(d[i, 0].numpy(), s[i, 0].numpy(), box, own, foreign)
        assert_allclose(found[i, 0], expected, atol=1e-12)


def test_each_image_has_factors_of_its_own():
    d, s = images((2, 3, 12, 12), 0), images((2, 3, 12, 12), 1)
    rows, columns = runs(2, 12, 2), runs(2, 12, 3)
    share = torch.tensor([0.2, 0.9]).double()
    together = blend(
        d, s, rows, columns, own=(1 - share)[:, None, None, None], foreign=share[:, None, None, None]
    )
    for i in range(2):
        one = slice(i, i + 1)
        alone = blend(
            d[one], s[one], rows[one], columns[one], own=1 - float(share[i]), foreign=float(share[i])
        )
        assert_close(together[one], alone)


@given(st.integers(3, 30), st.integers(3, 30), st.integers(0, 99), st.floats(-2, 2), st.floats(0, 1))
def test_identities_of_poisson_blending(height, width, seed, offset, alpha):
    n = 3
    d, s = images((n, 2, height, width), seed), images((n, 2, height, width), seed + 1)
    rows, columns = runs(n, height, seed), runs(n, width, seed + 1)
    pii = {"own": 1 - alpha, "foreign": alpha}
    shifted = blend(d, d + offset, rows, columns, own=0.0, foreign=1.0)
    assert_close(shifted, d, msg="a shifted source gives the image itself")
    assert_close(blend(d, s, rows, columns, own=1.0, foreign=0.0), d, msg="alpha 0 is the image")
    one = blend(d, s, rows, columns, **pii)
    assert_close(blend(d, s + offset, rows, columns, **pii), one, msg="only gradients of the source count")
    box = rows[:, None, :, None] & columns[:, None, None, :]
    assert torch.equal(torch.where(box, d, one), d), "outside the box nothing changes"


@given(st.integers(3, 25), st.integers(3, 25), st.integers(0, 99))
def test_an_affine_source_gives_the_harmonic_extension(height, width, seed):
    """Its Laplacian is 0, so that the result has the mean of the neighbours in each pixel of the box."""
    d, rows, columns = images((2, 1, height, width), seed), runs(2, height, seed), runs(2, width, seed + 1)
    down, across = (torch.arange(side).double() for side in (height, width))
    ramp = (0.3 * down[:, None] - 0.2 * across).expand_as(d)
    found = blend(d, ramp, rows, columns, own=0.0, foreign=1.0)
    mean = sum(found.roll(shift, (2, 3)) for shift in NEIGHBOURS) / 4
    box = rows[:, None, :, None] & columns[:, None, None, :]
    assert_close(found[box], mean[box])
    for i in range(2):
        around = box[i, 0].numpy()
        ring = sum(np.roll(around, shift, (0, 1)) for shift in NEIGHBOURS).astype(bool) & ~around
        border, inner = d[i, 0][ring], found[i, 0][around]
        assert border.min() - 1e-9 <= inner.min()
        assert inner.max() <= border.max() + 1e-9
    # The popular statement that such a source gives back the image holds where the image is affine, too.
    assert_close(blend(2 * ramp + 1, ramp, rows, columns, own=0.0, foreign=1.0), 2 * ramp + 1)


def test_halved_gradients_of_the_same_image_do_not_give_it_back():
    d, box = images((1, 1, 16, 16)), torch.arange(16)[None] // 4 == 1
    found = blend(d, d, box, box, own=0.5, foreign=0.5)
    assert (found - d).abs().max() > 0.1


def test_only_gradients_inside_are_replaced():
    """Pixels with one neighbour inside are solved for, but keep the gradients among themselves."""
    d, s = images((1, 1, 16, 16), 0), images((1, 1, 16, 16), 1)
    box = (torch.arange(16)[None] >= 2) & (torch.arange(16)[None] < 14)
    inside = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    nothing = blend(d, s, box, box, own=0.0, foreign=1.0, inside=inside)
    assert_close(nothing, d)
    inside[..., 6:9, 5:8] = True
    found = blend(d, s, box, box, own=0.0, foreign=1.0, inside=inside)

    def laplacian(x):
        return 4 * x - sum(x.roll(shift, (2, 3)) for shift in NEIGHBOURS)

    assert_close(laplacian(found)[inside], laplacian(s)[inside])
    far = torch.zeros_like(inside)
    far[..., 3:13, 3:13], far[..., 5:10, 4:9] = True, False
    assert_close(laplacian(found)[far], laplacian(d)[far])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 3)])
def test_the_border_of_an_image_stays(shape):
    """Boxes over the whole image; images of a single row or column have nothing but a border."""
    d, s = images((2, 1, *shape), 0).float(), images((2, 1, *shape), 1).float()
    whole = [torch.ones(2, side, dtype=torch.bool) for side in shape]
    found = blend(d, s, *whole, own=0.0, foreign=1.0)
    assert torch.isfinite(found).all()
    inner = torch.zeros(shape, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    assert_close(found[..., ~inner], d[..., ~inner], rtol=0, atol=0)
    if inner.any():
        assert (found[..., inner] != d[..., inner]).any()
