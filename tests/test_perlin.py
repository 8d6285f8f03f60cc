"""Perlin noise, and the textures that are blended in where it is strong."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from skanomaly import DRAEM
from skanomaly.io import read_folder
from skanomaly.synthesis import SYNTHESES, perlin
from skanomaly.testing import make_images, tiny
from skanomaly.transforms.perlin import CHANGES, changed_textures, perlin_noise, pixel_places

shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_by_hand(turns, cells, height, width):
    """Perlin noise pixel by pixel."""
    noise = np.empty((height, width))
    for i, j in np.ndindex(height, width):
        at = i * cells[0] / height, j * cells[1] / width
        row, column = map(int, at)
        f, g = at[0] - row, at[1] - column
        fade = [6 * t**5 - 15 * t**4 + 10 * t**3 for t in (f, g)]
        corners = np.empty((2, 2))
        for a, b in np.ndindex(2, 2):
            angle = 2 * math.pi * turns[row + a, column + b]
            corners[a, b] = math.cos(angle) * (f - a) + math.sin(angle) * (g - b)
        left, right = corners[0] + fade[0] * (corners[1] - corners[0])
        noise[i, j] = math.sqrt(2) * (left + fade[1] * (right - left))
    return noise


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_noise_by_hand(height, width, down, right, seed):
    turns = torch.rand(3, 5, 5, generator=generator(seed)).double()
    cells = torch.tensor([[1, 1], [down, right], [right, down]])
    noise = perlin_noise(turns, cells, pixel_places((height, width), dtype=torch.float64))
    expected = [noise_by_hand(t.numpy(), c.tolist(), height, width) for t, c in zip(turns, cells)]
    assert_allclose(noise, expected, atol=1e-12)


def test_noise_turns_with_the_image():
    turns, cells = torch.rand(1, 5, 5, generator=generator()), torch.tensor([[4, 4]])
    upright, quarter = (
        perlin_noise(turns, cells, pixel_places((32, 32), torch.tensor([angle])))
        for angle in (0.0, math.pi / 2)
    )
    assert_close(quarter[0], upright[0].rot90(-1), atol=1e-5, rtol=0)


@given(shapes, st.sampled_from(["sources", "noise"]), st.integers(0, 2**31))
def test_masks_are_what_changed(shape, texture, seed):
    images = torch.rand(shape, generator=generator(seed))
    sources = torch.rand(2, *shape[1:], generator=generator(seed + 1))
    made, masks, labels = perlin(images, sources, generator(seed), texture=texture)
    assert made.shape == images.shape
    assert (made.dtype, masks.dtype, labels.dtype) == (torch.float32, torch.bool, torch.float32)
    assert masks.shape == labels.shape == (shape[0], 1, *shape[2:])
    assert torch.equal(labels, masks.float()), "the label is the mask"
    outside = ~masks.expand_as(images)
    assert torch.equal(made[outside], images[outside]), "untouched elsewhere"
    assert 0 <= made.min() <= made.max() <= 1
    again = perlin(images, sources, generator(seed), texture=texture)
    assert all(torch.equal(a, b) for a, b in zip((made, masks, labels), again))


def test_share_of_the_image():
    """With a share of 0 there is nothing but texture in a mask, with 1 nothing but the image."""
    images, sources = torch.rand(2, 40, 3, 32, 32)
    plain = {"n_changes": 0}
    texture, masks, _ = perlin(images, sources, generator(), beta=(0, 0), **plain)
    assert torch.equal(texture, torch.where(masks, sources, images))
    made, _, _ = perlin(images, sources, generator(), beta=(1, 1), **plain)
    assert_close(made, images)
    made, masks, _ = perlin(images, sources, generator(), beta=(0.2, 0.4), **plain)
    inside = masks.any((1, 2, 3))
    shares = [
        ((made - s) / (x - s))[m].mean()
        for made, x, s, m in zip(made, images, sources, masks.expand_as(images))
    ]
    assert inside.float().mean() > 0.8
    shares = torch.stack(shares)[inside]
    assert 0.19 < shares.min() < 0.25 < 0.35 < shares.max() < 0.41


def test_each_image_has_a_mask_of_its_own():
    images = torch.rand(60, 1, 64, 64)
    # Not turned: turns alone would make masks differ.
    _, masks, _ = perlin(images, images, generator(), degrees=0.0)
    assert len({mask.numpy().tobytes() for mask in masks}) > 50
    assert 0.02 < masks.float().mean() < 0.15


def test_cells_are_powers_of_two_and_not_too_small(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "skanomaly.transforms.perlin.perlin_noise",
        lambda turns, cells, places: seen.append(cells) or torch.zeros(len(cells), 256, 64),
    )
    perlin(torch.rand(300, 1, 256, 64), torch.rand(1, 1, 256, 64), generator())
    assert [sorted(set(axis.tolist())) for axis in seen[0].T] == [[1, 2, 4, 8, 16, 32], [1, 2, 4, 8]]
    perlin(torch.rand(300, 1, 256, 64), torch.rand(1, 1, 256, 64), generator(), n_scales=2)
    assert seen[1].unique().tolist() == [1, 2]


def test_threshold_and_turns():
    images = torch.zeros(50, 1, 32, 32)
    shares = [perlin(images, images, generator(), threshold=t)[1].float().mean() for t in (0.2, 0.5, 0.8)]
    assert shares[0] > shares[1] > shares[2]
    upright = perlin(images, images, generator(), degrees=0.0)[1]
    assert not torch.equal(upright, perlin(images, images, generator())[1])
    # What the turn brings in from outside of the cells has no noise, even where the threshold is below 0.
    everywhere = [perlin(images, images, generator(), threshold=-2.0, degrees=d)[1] for d in (0.0, 90.0)]
    assert everywhere[0].all()
    assert not everywhere[1].all((1, 2, 3)).any()


def test_sources_are_taken_in_turn():
    images, sources = (
        torch.zeros(6, 1, 16, 16),
        torch.tensor([0.25, 0.75])[:, None, None, None].expand(2, 1, 16, 16),
    )
    made, masks, _ = perlin(images, sources, generator(), beta=(0, 0), n_changes=0, threshold=0.0)
    assert_close(made, torch.where(masks, sources.repeat(3, 1, 1, 1), images))
    assert masks.any((1, 2, 3)).all()


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_changes_textures(name, monkeypatch):
    monkeypatch.setattr("skanomaly.transforms.perlin.CHANGES", (name,))
    x = torch.rand(8, 2, 12, 10)
    y = changed_textures(x, generator(), 1)
    assert y.shape == x.shape
    assert 0 <= y.min() <= y.max() <= 1
    assert not torch.equal(y[:1], x[:1]) or not torch.equal(y[1:], x[1:])
    if name in ("flip", "displace"):
        assert_close(y.flatten(2).sort().values, x.flatten(2).sort().values, msg="the same pixels elsewhere")
    assert torch.equal(changed_textures(x, generator(), 0), x)


def test_a_sharper_texture_is_further_from_means_around(monkeypatch):
    monkeypatch.setattr("skanomaly.transforms.perlin.CHANGES", ("sharpen",))
    x = 0.45 + 0.1 * torch.rand(60, 1, 9, 9, generator=generator()).double()
    y, mean = changed_textures(x, generator(), 1), x.unfold(2, 3, 1).unfold(3, 3, 1).mean((4, 5))
    factors = ((y - x)[..., 1:-1, 1:-1] / (x[..., 1:-1, 1:-1] - mean)).flatten(1)
    assert_close(factors, factors[:, :1].expand_as(factors))
    assert 0.5 <= factors.min() < 0.6 < 1.9 < factors.max() <= 2


def test_as_many_changes_as_asked_for(monkeypatch):
    """Each change adds its own number, so that the sum tells which of them took place."""
    monkeypatch.setattr(
        "skanomaly.transforms.perlin._changed",
        lambda name, x, *rest: x + 2.0 ** (CHANGES.index(name) - 10),
    )
    y = changed_textures(torch.zeros(200, 1, 2, 2), generator(), 3)[:, 0, 0, 0]
    made = {f"{int(value * 2**10):b}".count("1") for value in y}
    assert made == {3}
    assert len(y.unique()) > 40


def test_noise_textures_need_no_sources():
    images = torch.rand(20, 3, 32, 32)
    made, masks, _ = perlin(images, None, generator(), texture="noise", beta=(0, 0), threshold=0.0)
    values = [made[i].movedim(0, 2)[masks[i, 0]] for i in range(20)]
    levels = torch.stack([v.mean(0) for v in values])
    assert levels.std(0).min() > 0.1, "levels of their own"
    assert min(v.std() for v in values) > 0.01


def pure(images, texture, seed=0, **options):
    """Textures without changes and without a share of the image, as drawn, in the masks."""
    made, masks, _ = perlin(
        images, None, generator(seed), texture=texture, n_changes=0, beta=(0, 0), threshold=-0.2, **options
    )
    return made, masks


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "tensor", "files"])
def test_textures_of_a_user(dtype, tmp_path):
    """Each image gets one of the textures as it is, whatever holds them."""
    images = torch.zeros(40, 1, 8, 8)
    wanted = np.random.default_rng(0).integers(1, 256, (3, 8, 8)).astype("uint8")
    if dtype == "files":
        for k, texture in enumerate(wanted):
            Image.fromarray(texture).save(tmp_path / f"{k}.png")
        texture = read_folder(tmp_path)
    elif dtype == "tensor":
        texture = torch.from_numpy(wanted)
    else:
        factor = {"uint8": 1, "uint16": 257, "float32": 1 / 255}[dtype]
        texture = (wanted.astype("float64") * factor).round(12).astype(dtype)
    made, masks = pure(images, texture)
    used = set()
    for image, mask in zip(made[:, 0].numpy(), masks[:, 0].numpy()):
        if mask.sum() > 3:
            (k,) = (k for k in range(3) if np.allclose(image[mask], wanted[k][mask] / 255, atol=1e-6))
            used.add(k)
    assert used == {0, 1, 2}
    again, _ = pure(images, texture)
    assert torch.equal(made, again)
    assert not torch.equal(made, pure(images, texture, seed=1)[0])
    changed, _, _ = perlin(images, None, generator(), texture=texture, beta=(0, 0), threshold=-0.2)
    assert not torch.equal(changed, made), "changed like sources"


def test_textures_take_the_size_and_channels_of_images():
    grey = np.kron(np.random.default_rng(0).random((1, 8, 6)), np.ones((1, 4, 4)))
    colour = np.stack([grey, 0.5 * grey, 0 * grey], axis=3)
    for c, texture, factors in (
        (1, grey, [1]),
        (3, grey, [1, 1, 1]),
        (3, colour, [1, 0.5, 0]),
        (1, colour, [0.5]),
        (2, grey[..., None], [1, 1]),
    ):
        made, masks = pure(torch.zeros(4, c, 8, 6), texture)
        # With antialias the mean stays: without, three of four rows and columns would not count.
        expected = F.interpolate(
            torch.from_numpy(grey)[None], (8, 6), mode="bilinear", antialias=True, align_corners=False
        )[0, 0]
        for k, factor in enumerate(factors):
            assert_allclose(made[:, k], masks[:, 0] * factor * expected, atol=1e-6)
    assert abs(expected.mean() - grey.mean()) < 0.02


def test_textures_of_a_user_train_a_detector():
    X, texture = make_images((8, 12, 12)), np.random.default_rng(0).random((2, 20, 20))
    plain, other = (
        tiny(DRAEM, synthesis=partial(perlin, **options)).fit(X).score_samples(X)
        for options in ({}, {"texture": texture})
    )
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": (0.5, 0.2)}, "beta must hold shares from 0 to 1, low before high"),
        ({"beta": 0.5}, "beta must hold shares from 0 to 1, low before high, got 0.5"),
        ({"n_scales": 0}, "n_scales must be at least 1, got 0"),
        ({"texture": "photographs"}, "texture must be 'sources', 'noise' or an array of images, got 'ph"),
        ({"texture": 3}, "texture must be .* or an array of images, of shape .* got int"),
        ({"texture": np.zeros((4, 4))}, r"texture must be .* got an array of shape \(4, 4\)"),
        ({"texture": np.zeros((0, 4, 4))}, r"texture must be .* got an array of shape \(0, 4, 4\)"),
        (
            {"texture": np.zeros((3, 4, 4, 4))},
            r"with C among \[1, 3\] for images of 1 channels, got an array",
        ),
        ({"texture": np.full((3, 4, 4), 255)}, "texture must hold uint8, .* got int64 from 255 to 255"),
        ({"texture": np.full((3, 4, 4), 1.5)}, "or floats in .* got float64 from 1.5 to 1.5"),
        ({"texture": np.full((3, 4, 4), np.nan)}, "or floats in .* got float64 from nan to nan"),
        ({"n_changes": 10}, "n_changes must lie between 0 and 9, got 10"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        perlin(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), **options)


@pytest.mark.parametrize("shape", [(2, 1, 8, 9), (2, 3, 8, 8), (0, 1, 8, 8)])
def test_bad_sources(shape):
    for synthesis in SYNTHESES.values():
        with pytest.raises(ValueError, match="sources must"):
            synthesis(torch.rand(2, 1, 8, 8), torch.rand(shape))


def test_the_default_generator_is_torchs():
    images = torch.rand(4, 1, 16, 16)
    for synthesis in SYNTHESES.values():
        found = []
        for source in (None, generator(3)):
            with torch.random.fork_rng():
                torch.manual_seed(3)
                found.append(partial(synthesis, images, images.roll(1, 0))(source))
        assert all(torch.equal(a, b) for a, b in zip(*found))
