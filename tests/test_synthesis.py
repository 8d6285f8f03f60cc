import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.ndimage import map_coordinates, median_filter
from torch.testing import assert_close

from skanomaly import DDAD, DRAEM, SyntheticAnomalies
from skanomaly._random import seeded
from skanomaly.synthesis import (
    SYNTHESES,
    anat_paste,
    cutpaste,
    dark_cavities,
    foreground,
    fpi,
    interpolate_foreign_patches,
    mixture,
    nsa,
    pii,
    shifted_pieces,
    synthesize,
)
from skanomaly.testing import make_images, tiny
from skanomaly.transforms import defects, draws
from skanomaly.transforms import mixture as of_mixture
from skanomaly.transforms import nsa as of_nsa
from skanomaly.transforms.defects import foreign_patches, foreign_to
from skanomaly.transforms.poisson import blend


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed))


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


# What all syntheses have in common.

every_synthesis = pytest.mark.parametrize("synthesis", SYNTHESES.values(), ids=SYNTHESES)


@every_synthesis
@pytest.mark.parametrize("channels", [1, 3])
def test_every_synthesis_keeps_its_promises(synthesis, channels):
    x, sources = random_images(20, channels, 32, 24), random_images(7, channels, 32, 24, seed=1)
    given_x, given_sources, state = x.clone(), sources.clone(), torch.get_rng_state()
    made, masks, labels = synthesis(x, sources, generator())
    assert torch.equal(torch.get_rng_state(), state), "all draws come from the generator"
    assert torch.equal(x, given_x)
    assert torch.equal(sources, given_sources)
    assert (made.shape, made.dtype) == (x.shape, x.dtype)
    assert (masks.shape, masks.dtype) == ((20, 1, 32, 24), torch.bool)
    assert (labels.shape, labels.dtype) == ((20, 1, 32, 24), torch.float32)
    assert torch.equal(masks, labels > 0)
    assert labels.max() <= 1
    assert 0 <= made.min()
    assert made.max() <= 1
    assert not ((made - x).abs().amax(1, keepdim=True) > 0.02)[~masks].any(), "labelled where it changed"
    changed = (made != x).any(1, keepdim=True) & masks
    assert changed.any((1, 2, 3)).float().mean() > 0.7
    assert changed[masks].float().mean() > 0.9, "changed where it is labelled"
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 14, "each image its own"
    for again, part in zip(synthesis(x, sources, generator()), (made, masks, labels)):
        assert torch.equal(again, part), "the same seed makes the same images"
    assert not torch.equal(synthesis(x, sources, generator(1))[0], made)
    with seeded(0):
        assert torch.equal(synthesis(x, sources)[0], made), "without a generator torch's own draws"
    first = x[:5], sources[:5]
    assert torch.equal(
        synthesis(*first, generator())[0], synthesis(x[:5], torch.cat([first[1], x]), generator())[0]
    ), "the i-th source is for the i-th image"


@every_synthesis
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1.0, 0.0])
)
def test_every_synthesis_takes_any_size(synthesis, n, channels, height, width, contrast):
    x = random_images(n, channels, height, width) * contrast
    made, masks, labels = synthesis(x, 1 - x, generator())
    assert made.shape == x.shape
    assert masks.shape == labels.shape == (n, 1, height, width)
    assert torch.isfinite(made).all()
    assert torch.isfinite(labels).all()


@every_synthesis
def test_sources_that_do_not_fit(synthesis):
    x = random_images(2, 1, 8, 8)
    for sources in random_images(2, 1, 8, 9), x[:0]:
        message = r"sources must be images of the shape \(1, 8, 8\), one at least"
        with pytest.raises(ValueError, match=message):
            synthesis(x, sources, generator())


# Each synthesis by itself.


def test_fpi_by_hand():
    x, s = random_images(50, 2, 40, 60), random_images(50, 2, 40, 60, seed=1)
    s[:, :, :, :30] = x[:, :, :, :30] + 5e-4
    made, masks, labels = fpi(x, s, generator())
    assert not masks[..., :30].any(), "both images agree"
    assert_close(made, (1 - labels) * x + labels * s, atol=6e-4, rtol=0)
    for i in range(50):
        if (values := labels[i][masks[i]]).numel():
            assert len(values.unique()) == 1
            largest = [(a[i] - x[i]).abs()[masks[i].expand_as(x[i])].max() for a in (made, s)]
            assert_close(largest[0], values[0] * largest[1])
    values = labels[masks].unique()
    assert 0.05 <= values.min() < 0.2 < 0.8 < values.max() <= 0.95
    everything = random_images(50, 1, 40, 40)
    _, boxes, _ = fpi(everything, 1 - everything, generator(), tolerance=0)
    boxes = boxes[:, 0]
    inner = ~(boxes[:, 0].any(1) | boxes[:, -1].any(1) | boxes[:, :, 0].any(1) | boxes[:, :, -1].any(1))
    assert inner.sum() > 20
    assert torch.equal(boxes.any(2).sum(1)[inner], boxes.any(1).sum(1)[inner]), "square unless at the border"
    assert not torch.equal(*(fpi(x, s, generator(), square=square)[1] for square in (True, False)))
    one = fpi(x, s, generator(), alpha=(1, 1), tolerance=0, half_width=(1, 1), margin=0.49)[0]
    assert_close(one, s, msg="alpha 1 over the whole image is the source")


def test_pii_by_hand():
    x, s = random_images(30, 2, 24, 30), random_images(30, 2, 24, 30, seed=1)
    made, masks, labels = pii(x, s, generator())
    _, boxes, alphas = fpi(x, s, generator(), tolerance=-1)
    boxes[:, :, [0, -1]] = False
    boxes[..., [0, -1]] = False
    rows, columns, alpha = boxes.any((1, 3)), boxes.any((1, 2)), alphas.amax((1, 2, 3), keepdim=True)
    expected = blend(x, s, rows, columns, own=1 - alpha, foreign=alpha)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    clipped = torch.minimum(torch.maximum(expected, low), high)
    assert not torch.equal(clipped, expected), "there is something to clip"
    assert_close(made, clipped)
    changed = ((made - x).abs() > 1e-3).any(1, keepdim=True)
    assert torch.equal(masks, changed)
    assert_close(labels, alpha * changed)
    assert (masks & boxes).sum() == masks.sum() > 0.8 * boxes.sum()
    shifted = pii(x, x + 0.1, generator(), alpha=(1, 1))
    assert_close(shifted[0], x, msg="a shifted source leaves no trace")
    assert not shifted[1].any()


@pytest.mark.parametrize("kind", of_mixture.KINDS)
def test_one_blob_of_each_kind(kind):
    x, s = random_images(40, 2, 24, 20), random_images(40, 2, 24, 20, seed=1)
    made, masks, labels = mixture(x, s, generator(), kinds=[kind], n_blobs=(1, 1))
    # The same draws in the same order: numbers of blobs, kinds, blobs, and what happens in them.
    g = generator()
    torch.randint(1, 2, (40,), generator=g)
    torch.randint(1, (40,), generator=g)
    blobs = of_mixture._blobs(40, (24, 20), g, size=(0.12, 0.55), like=x)
    content = of_mixture.KINDS[kind](x, s, g).clamp(0, 1)
    assert_close(made, (1 - blobs) * x + blobs * content)
    changed = ((made - x).abs() > 0.01).any(1, keepdim=True)
    assert_close(labels, blobs * changed)
    assert torch.equal(masks, changed)
    assert masks.any((1, 2, 3)).float().mean() > 0.9


def contents(kind, n=200, seed=0):
    x = 0.3 + 0.4 * random_images(n, 1, 24, 24)
    s = random_images(n, 1, 24, 24, seed=1)
    return x, s, of_mixture.KINDS[kind](x, s, generator(seed))


def test_what_each_kind_does():
    x, s, made = contents("brightness")
    shift = (made - x)[:, 0, 0, 0]
    assert_close(made, x + shift[:, None, None, None])
    assert -0.4 <= shift.min() < -0.35
    assert 0.35 < shift.max() <= 0.4
    x, s, made = contents("noise")
    deviation = (made - x).flatten(1).std(1)
    assert 0.02 < deviation.min() < 0.06 < 0.17 < deviation.max() < 0.22
    assert (made - x).flatten(1).mean(1).abs().max() < 0.05
    x, s, made = contents("blur")
    assert (made.flatten(1).std(1) < 0.8 * x.flatten(1).std(1)).all()
    assert_close(made.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=0.02, rtol=0)
    x, s, made = contents("sharpen")
    ratio = made.flatten(1).std(1) / x.flatten(1).std(1)
    assert 1.5 < ratio.min() < 2.2 < 3.5 < ratio.max() < 5
    x, s, made = contents("detail")
    assert torch.corrcoef(torch.stack([made[0].flatten(), s[0].flatten()]))[0, 1] > 0.9, "fine structure"
    slopes = ((made * s).mean((1, 2, 3)) - made.mean((1, 2, 3)) * s.mean((1, 2, 3))) / s.flatten(1).var(1)
    assert 0.2 < slopes.min() < 0.5 < 1.3 < slopes.max() < 1.6, "gains"
    assert 0.1 < (made - x).mean((1, 2, 3)).abs().max() < 0.2, "shifts"
    x, s, made = contents("foreign")
    still = torch.stack(
        [(((made - x) * (s - x)).sum() / (s - x).square().sum()) for made, s, x in zip(made, s, x)]
    )
    explained = (made - x - still[:, None, None, None] * (s - x)).abs().amax((1, 2, 3)) < 1e-5
    assert 0.3 < explained.float().mean() < 0.55, "four of ten are not displaced"
    assert 0.3 <= still[explained].min() < 0.4 < 0.9 < still[explained].max() <= 1


def test_blobs():
    with seeded(0):
        like = torch.zeros(1)
        blobs = of_mixture._blobs(400, (40, 64), None, size=(0.2, 0.4), like=like)
    assert blobs.min() == 0
    assert blobs.max() == 1
    assert ((blobs > 0) & (blobs < 1)).any((1, 2, 3)).all(), "soft edges"
    inner = ~(blobs[:, 0, [0, -1]].any((1, 2)) | blobs[:, 0][:, :, [0, -1]].any((1, 2)))
    area = (blobs[inner] > 0).float().mean((1, 2, 3))
    assert 0.015 < area.min() < 0.05 < 0.12 < area.max() <= 0.17, "an ellipse of pi / 4 * .2^2, a box of .4^2"
    centre = (blobs[:, 0].sum(2) * (torch.arange(40) + 0.5)).sum(1) / blobs[:, 0].sum((1, 2))
    assert centre.min() < 5
    assert centre.max() > 35


def test_labels_of_the_mixture():
    x = random_images(60, 1, 32, 32) * 0.5
    x[:, :, :, 16:] = 0.25
    made, masks, labels = mixture(x, x, generator(), kinds=["blur"])
    assert masks[..., :14].any((1, 2, 3)).float().mean() > 0.5
    assert not masks[..., 30:].any(), "a blurred constant has no label"
    assert_close(masks, ((made - x).abs() > 0.01).any(1, keepdim=True))
    numbers = [
        int((mixture(x, 1 - x, generator(), kinds=["foreign"], n_blobs=(n, n))[1]).sum()) for n in (1, 2, 3)
    ]
    assert numbers[0] < numbers[1] < numbers[2]


def test_where_blobs_overlap_the_larger_weight_is_the_label(monkeypatch):
    blobs, draw = [], of_mixture._blobs

    def watched(*args, **options):
        blobs.append(draw(*args, **options))
        return blobs[-1]

    monkeypatch.setattr(of_mixture, "_blobs", watched)
    x = random_images(20, 1, 32, 32)
    labels = mixture(x, x.roll(1, 0), generator(), n_blobs=(3, 3), tolerance=-1)[2]
    assert (torch.stack(blobs) > 0).sum(0).max() == 3, "all overlap somewhere"
    assert torch.equal(labels, torch.stack(blobs).amax(0))


def test_rolled_and_blurred_images():
    x, shares = (
        random_images(4, 2, 12, 20).double(),
        torch.tensor([[0.25, 0], [0, -0.1], [0.5, 0.5], [-0.25, 1]]),
    )
    rolled = draws.rolled(x, shares)
    for image, before, (down, across) in zip(rolled, x, shares):
        assert_close(image, before.roll((round(12 * float(down)), round(20 * float(across))), (1, 2)))
    sigmas = torch.tensor([0.5, 1, 2, 4]).double()[:, None, None, None]
    blurred = of_mixture._blurred(x, sigmas)
    rows, columns = torch.arange(12), torch.arange(20)
    for i, (y, c, h, w) in enumerate([(0, 0, 0, 0), (1, 1, 5, 7), (2, 0, 11, 19), (3, 1, 3, 0)]):
        weight = torch.exp(-((rows[:, None] - h) ** 2 + (columns - w) ** 2) / (2 * sigmas[i] ** 2))[0]
        assert_close(blurred[y, c, h, w], (weight * x[y, c]).sum() / weight.sum())


def pasted_by_hand(x, s, **options):
    """One piece of NSA, replayed from its draws: box, resampled source, and the image by blending."""
    n, sides, g = len(x), x.shape[2:], generator()
    uniform = torch.rand(2, 2, n, generator=g)
    halves = (0.05 - 0.03 * torch.log(uniform[0] * uniform[1])).clamp(0.03, 0.4).T * torch.tensor(sides)
    factor = (1 + 0.5 * torch.randn(n, generator=g)).clamp(0.7, 1.3)
    draws = torch.rand(2, n, 2, generator=g)
    source = halves + draws[0] * (torch.tensor(sides) - 2 * halves)
    target = draws[1] * torch.tensor(sides)
    made, box = x.clone().double(), torch.zeros(n, 1, *sides, dtype=torch.bool)
    for i in range(n):
        axes = [
            (torch.arange(side) + 0.5 - target[i, k].floor()).abs() < (halves[i, k] * factor[i]).clamp(min=1)
            for k, side in enumerate(sides)
        ]
        piece = s[i].clone().double()
        # scipy's coordinates are those of pixel centres: p - 1/2.
        at = [
            (torch.arange(side) + 0.5 - target[i, k]) / factor[i] + source[i, k] - 0.5
            for k, side in enumerate(sides)
        ]
        grid = np.meshgrid(*[a.numpy() for a in at], indexing="ij")
        for channel in range(len(piece)):
            values = map_coordinates(s[i, channel].double().numpy(), grid, order=1, mode="nearest")
            piece[channel] = torch.from_numpy(values)
        whole = [axis[None] for axis in axes]
        one = blend(x[i : i + 1].double(), piece[None], *whole, own=options["own"], foreign=1.0)
        made[i] = one[0].clamp(float(x[i].min()), float(x[i].max()))
        box[i, 0] = axes[0][:, None] & axes[1]
    return made.float(), box


@pytest.mark.parametrize(("clone", "own"), [("mixed", 1.0), ("normal", 0.0)])
def test_a_piece_of_nsa_by_hand(clone, own):
    x, s = random_images(12, 2, 32, 40), random_images(12, 2, 32, 40, seed=1)
    expected, box = pasted_by_hand(x, s, own=own)
    made, masks, labels = nsa(x, s, generator(), n_patches=1, clone=clone)
    assert_close(made, expected, atol=1e-4, rtol=0)
    assert not (masks & ~box).any()
    change = 255 * (made - x).abs()
    changed = box & (change > 1).any(1, keepdim=True)
    # Images of 32 pixels: the median is over a disk of radius 1, and nothing is cleaned.
    change = torch.where(changed, change.mean(1, keepdim=True), 0)
    disk = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    change = torch.from_numpy(median_filter(change.numpy(), footprint=disk, mode="nearest"))
    assert_close(labels, changed / (1 + torch.exp(-0.5 * (change - 4))))
    intensity = nsa(x, s, generator(), n_patches=1, clone=clone, label="intensity")[2]
    assert_close(intensity, box * change / 255)
    binary = nsa(x, s, generator(), n_patches=1, clone=clone, label="binary")[2]
    assert_close(binary, changed.float())


def test_the_middle_of_logistic_labels():
    x = torch.zeros(1, 1, 40, 40)
    made = x.clone()
    made[..., 10:30, 10:30] = 4 / 255
    inside = made > 0
    options = {"mode": "logistic", "k": 0.5, "x0": 4.0, "tolerance": 1.0}
    labels = of_nsa.nsa_labels(x, made, inside, radii=(2, 5), **options)
    assert labels[0, 0, 20, 20] == pytest.approx(0.5)
    assert not labels[~inside].any()
    assert labels[0, 0, 10, 10] == 0, "three quarters of the square around a corner did not change"
    assert labels[0, 0, 10, 20] > 0


def test_sizes_and_numbers_of_nsa():
    x = torch.zeros(600, 1, 64, 64)
    x[..., ::2, ::2] = 1.0
    options = {"label": "binary", "tolerance": 0.0, "resize": (1, 1), "bounds": (0.06, 0.1), "n_patches": 1}
    halves = of_nsa._draw_halves(5000, generator(), lower=0.05, scale=0.03, bounds=(0.0, 1.0))
    assert_allclose(halves.mean(), 0.05 + 2 * 0.03, rtol=0.02)
    assert_allclose(halves.std(), 0.03 * 2**0.5, rtol=0.05)
    assert halves.min() > 0.05
    _, masks, _ = nsa(x, 1 - x, generator(), **options)
    inner = masks[:, 0, 8:-8, 8:-8]
    whole = torch.equal(masks.any(3).sum(2).clamp(max=14), masks.any(3).sum(2))
    assert whole, "no piece is larger than its bound"
    assert inner.any((1, 2)).float().mean() > 0.7
    areas = [nsa(x, 1 - x, generator(), **options | {"n_patches": k})[1].float().mean() for k in (1, 2, 3)]
    assert 1.35 < areas[1] / areas[0] < 1.6, "half of the images have a second piece"
    assert 1.8 < areas[2] / areas[0] < 2.1, "and half a third one"


def test_pieces_of_objects():
    """Pieces lie on objects mostly, in source and image; only pixels of both are pasted."""
    x, s = torch.zeros(60, 1, 40, 40), torch.zeros(60, 1, 40, 40)
    x[..., 10:35, 5:30] = 0.5 + 0.4 * random_images(60, 1, 25, 25)
    s[..., 5:30, 10:35] = 0.5 + 0.4 * random_images(60, 1, 25, 25, seed=1)
    options = {"objects": foreground, "label": "binary", "n_patches": 1}
    made, masks, _ = nsa(x, s, generator(), **options)
    assert masks.any((1, 2, 3)).float().mean() > 0.9
    assert not masks[~foreground(x)].any()
    assert ((made - x).abs() > 1e-5)[~foreground(x)].float().mean() < 0.02
    everywhere = nsa(x, s, generator(), label="binary", n_patches=1)[1]
    assert everywhere[~foreground(x)].any()
    for bad in (x * 0, s), (x, s * 0):
        made, masks, labels = nsa(*bad, generator(), **options)
        assert torch.equal(made, bad[0]), "without an object there is no piece"
        assert not masks.any()
    # A thin object: no place has 70 % of a piece on it, but 5 % is found.
    thin = torch.zeros(60, 1, 40, 40)
    thin[..., 20:22, :] = 0.5 + 0.4 * random_images(60, 1, 2, 40)
    fixed = options | {"bounds": (0.2, 0.2), "resize": (1, 1)}
    assert not nsa(thin, thin, generator(), **fixed)[1].any()
    assert nsa(thin, thin.flip(3), generator(), least_object=0.05, **fixed)[1].any()
    # An object at the source's border is half of a piece at most; the image's border may cut off the rest.
    x = 0.5 + 0.4 * random_images(60, 1, 40, 40)
    border = torch.where(torch.arange(40) < 10, x.roll(1, 0), 0)
    fixed = options | {"bounds": (0.25, 0.25), "resize": (1, 1)}
    assert not nsa(x, border, generator(), **fixed)[1].any()
    assert nsa(x, border, generator(), least_object=0.4, **fixed)[1].any()


def test_resampled_images():
    """Against scipy, whose coordinates are those of pixel centres."""
    x = random_images(3, 2, 12, 20).double()
    shift, factor = (
        torch.tensor([[2.0, -3.0], [0.3, 0.6], [0, 0]]),
        torch.tensor([[1.0, 1], [0.7, 1.3], [2, 1]]),
    )
    found = of_nsa._resampled(x, shift, factor)
    for i in range(3):
        at = [
            ((np.arange(side) + 0.5) / float(factor[i, k]) - float(shift[i, k])) - 0.5
            for k, side in enumerate((12, 20))
        ]
        expected = map_coordinates(x[i, 1].numpy(), np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
        assert_allclose(found[i, 1], expected, atol=1e-5)


def test_median_filter():
    x = random_images(2, 3, 14, 17).numpy()
    for radius in (0, 1, 3, 5):
        at = np.arange(-radius, radius + 1)
        disk = (at[:, None] ** 2 + at**2 <= radius**2)[None, None]
        expected = median_filter(x, footprint=disk, mode="nearest")
        assert_allclose(of_nsa.median_filtered(torch.from_numpy(x), radius), expected)


def test_cavities():
    """Pixels that see something bright in all four directions."""
    x = random_images(20, 2, 9, 11)
    for image, found in zip(x, dark_cavities(x)):
        bright = (image.mean(0) >= image.mean()).numpy()
        for i in range(9):
            for j in range(11):
                sides = bright[:i, j], bright[i + 1 :, j], bright[i, :j], bright[i, j + 1 :]
                assert found[0, i, j] == (not bright[i, j] and all(side.any() for side in sides))


def left_half(images):
    mask = torch.zeros_like(images[:, :1], dtype=torch.bool)
    mask[..., : images.shape[3] // 2] = True
    return mask


def test_anat_paste():
    x = random_images(300, 2, 30, 40)
    made, masks, labels = anat_paste(x, x, generator(), mask=left_half)
    assert not masks[..., 20:].any()
    assert torch.equal(made[..., 20:], x[..., 20:])
    assert labels.unique().tolist() == [0, 1]
    whole = masks[
        (~masks[:, 0, [0, -1]].any((1, 2))) & ~masks[:, 0, :, 0].any(1) & ~masks[:, 0, :, 19].any(1)
    ]
    area = whole.any(3).sum((1, 2)) * whole.any(2).sum((1, 2)) / 1200
    assert 0.015 < area.min() < 0.04
    assert area.max() < 0.17
    ratio = whole.any(3).sum((1, 2)) / whole.any(2).sum((1, 2))
    assert 0.15 < ratio.min() < 0.5 < 2 < ratio.max() < 5, "ragged where nothing changed"
    middle = torch.where(masks[:, 0], torch.arange(40), 0).sum((1, 2)) / masks.sum((1, 2, 3))
    assert middle.min() < 5, "pixels of the organ are alike"
    # Without jitter what is pasted is found in the image itself.
    plain, masks, _ = anat_paste(x, x, generator(), mask=left_half, jitter=0.0)
    for image, before, mask in list(zip(plain, x, masks))[:20]:
        assert np.isin(image[:, mask[0]].numpy(), before.numpy()).all()
    assert not torch.equal(plain, made)
    untouched = anat_paste(x, x, generator(), mask=lambda images: left_half(images) & False)
    assert torch.equal(untouched[0], x)
    assert not untouched[1].any()


def test_aspects_of_pasted_pieces():
    """Upright and lying ones are alike, though their ratios are from 1 / 9 to 9."""
    x = 0.2 + 0.8 * random_images(500, 1, 64, 64)
    _, masks, _ = anat_paste(x, x, generator(), mask=foreground, area=(0.02, 0.02), aspect=(1 / 9, 9))
    height, width = (masks[:, 0].any(axis).sum(1) for axis in (2, 1))
    inner = ~(masks[..., [0, -1], :].any((1, 2, 3)) | masks[..., [0, -1]].any((1, 2, 3)))
    ratio = (height / width)[inner].log() / math.log(9)
    assert_allclose(ratio.quantile(torch.tensor([0.25, 0.5, 0.75])), [-0.5, 0, 0.5], atol=0.15)


def test_jitter_of_pasted_pieces():
    """Contrast about the mean of the image, and brightness: each by up to `jitter`, up or down."""
    x = 0.4 + 0.2 * random_images(200, 2, 24, 24)
    options = {"mask": left_half, "area": (0.1, 0.3), "tolerance": -1}
    plain, made = (anat_paste(x, x, generator(), jitter=jitter, **options)[0] for jitter in (0.0, 0.2))
    lines = []
    for before, after, image in zip(plain, made, x):
        inside = before != image
        slope, at_zero = np.polyfit(before[inside].double(), after[inside].double(), 1)
        lines.append((slope - 1, at_zero + (slope - 1) * float(image.mean())))
        assert_allclose(after[inside], slope * before[inside] + at_zero, atol=1e-5)
    for change in np.transpose(lines):
        assert -0.2001 < change.min() < -0.18
        assert 0.18 < change.max() < 0.2001


def test_shifted_pieces():
    """The sources' pixels of other places, moved by the same amount in each piece."""
    x, s = torch.full((200, 1, 24, 24), 0.5), 0.4 + 0.2 * random_images(200, 1, 24, 24)
    made, masks, labels = shifted_pieces(x, s, generator(), alpha=(1, 1), half_width=(0.5, 0.5), margin=0.49)
    g = generator()
    shares, shift = torch.rand(200, 2, generator=g), 0.6 * torch.rand(200, generator=g) - 0.3
    for i in range(200):
        down, across = (round(24 * float(share)) for share in shares[i])
        expected = (s[i].roll((down, across), (1, 2)) + shift[i]).clamp(0, 1)
        assert_close(made[i][masks[i]], expected[masks[i]])
    assert masks.float().mean() > 0.8
    g = generator()
    _, boxes, _ = shifted_pieces(x, s + 0.4, g)
    sides = boxes.any(3).sum((1, 2)), boxes.any(2).sum((1, 2))
    assert not torch.equal(*sides), "boxes are not square"
    assert torch.equal(shifted_pieces(x, s, generator(), shift=0.0, alpha=(0, 0))[0], x)


@pytest.mark.parametrize(
    ("synthesis", "options", "message"),
    [
        (mixture, {"kinds": ["smell"]}, r"kinds must be some of .*, got \['smell'\]"),
        (mixture, {"kinds": []}, r"kinds must be some of .*, got \[\]"),
        *(
            (mixture, {"n_blobs": bad}, "n_blobs must hold whole numbers from 1, low before high, got .*[13]")
            for bad in ((3, 1), (0, 1), (1.0, 3.0), 3)
        ),
        *(
            (synthesis, {name: bad}, rf"{name} must hold shares from 0 to 1, low before high, got .*\d")
            for synthesis, name in (
                (fpi, "alpha"),
                (pii, "alpha"),
                (shifted_pieces, "alpha"),
                (nsa, "bounds"),
                (mixture, "size"),
                (anat_paste, "area"),
            )
            for bad in ((0.4, 0.03), (-1, 0.5), (0.5, 5), (0.5, float("nan")), (0.1, 0.2, 0.3), 0.5)
        ),
        *(
            (synthesis, {name: bad}, f"{name} must hold numbers above 0, low before high, got ")
            for synthesis, name in ((nsa, "resize"), (anat_paste, "aspect"))
            for bad in ((0, 0), (0, 1), (-2, -1), (2, 1), 1.0)
        ),
        *(
            (synthesis, {name: bad}, f"{name} must lie between 0 and 1, got {bad}")
            for synthesis, name in (
                (shifted_pieces, "shift"),
                (nsa, "lower"),
                (nsa, "scale"),
                (nsa, "least_object"),
                (anat_paste, "jitter"),
            )
            for bad in (2, -0.1, float("nan"), None)
        ),
        (nsa, {"n_patches": 0}, "n_patches must be at least 1, got 0"),
        (nsa, {"clone": "none"}, r"clone must be one of \['mixed', 'normal'\], got 'none'"),
        (nsa, {"label": "soft"}, "label must be one of .*, got 'soft'"),
        (fpi, {"half_width": (0.3, 0.2)}, "half_width must hold shares"),
        (pii, {"margin": -1}, "margin must be at least 0"),
    ],
)
def test_bad_options(synthesis, options, message):
    with pytest.raises(ValueError, match=message):
        synthesis(random_images(2, 1, 8, 8), random_images(2, 1, 8, 8), generator(), **options)


@pytest.mark.parametrize(
    ("synthesis", "options"),
    [
        (fpi, {"alpha": (0, 1)}),
        (nsa, {"bounds": (0, 1), "lower": 0, "scale": 0}),
        (nsa, {"objects": foreground, "least_object": 1, "resize": [1, math.inf]}),
        (mixture, {"size": np.array([0, 1]), "n_blobs": np.array([1, 1])}),
        (anat_paste, {"area": (0, 1), "aspect": (1, 1), "jitter": 1}),
        (shifted_pieces, {"shift": 1, "alpha": (0.5, 0.5)}),
    ],
)
def test_limits_of_options_are_allowed(synthesis, options):
    x, sources = random_images(9, 1, 8, 8), random_images(9, 1, 8, 8, seed=1)
    made, _, labels = synthesis(x, sources, generator(), **options)
    assert torch.isfinite(made).all()
    assert labels.any()


# Arrays.


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(8, 16, 20), (8, 16, 20, 3)])
def test_synthesis_of_arrays(dtype, shape):
    X = make_images(shape, dtype)
    made, again, other = (synthesize(X, pii, random_state=seed) for seed in (3, 3, 4))
    assert (made.images.dtype, made.images.shape) == (X.dtype, shape)
    assert (made.masks.dtype, made.masks.shape) == (bool, (8, 16, 20))
    assert (made.labels.dtype, made.labels.shape) == (np.float32, (8, 16, 20))
    assert np.array_equal(made.images, again.images)
    assert not np.array_equal(made.images, other.images)
    differs = (made.images != X).reshape(8, 16, 20, -1).any(-1)
    assert differs.any()
    assert not (made.masks & ~differs).mean() > 0.01
    assert X.min() <= made.images.min()
    assert made.images.max() <= X.max()
    if len(shape) == 4:
        first = synthesize(X.transpose(0, 3, 1, 2), pii, channel_axis=1, random_state=3)
        assert np.array_equal(first.images.transpose(0, 2, 3, 1), made.images)


def test_a_share_of_the_arrays_and_sources():
    X = np.zeros((1000, 12, 12), "uint8")
    made = synthesize(X, sources=np.full((3, 12, 12), 255, "uint8"), probability=0.3, random_state=0)
    changed = (made.images != X).any((1, 2))
    assert 250 < changed.sum() < 350
    assert np.array_equal(changed, made.masks.any((1, 2)))
    assert np.array_equal(changed, made.labels.any((1, 2)))
    inside = made.masks
    assert_allclose(made.images[inside], 255 * made.labels[inside], atol=0.5 + 1e-3)
    ramp = np.arange(50, dtype="uint8")[:, None, None] * np.ones((1, 12, 12), "uint8")
    made = synthesize(ramp, partial(fpi, alpha=(1, 1)), random_state=0)
    assert (made.images != ramp).any((1, 2)).all(), "no image is its own source"


def test_each_image_of_an_array_gets_a_source_at_random():
    X, sources = np.zeros((90, 8, 8)), np.arange(1.0, 4)[:, None, None] * np.ones((1, 8, 8))
    options = {"sources": sources, "intensity_range": (0, 3)}
    drawn = [
        synthesize(X, partial(fpi, alpha=(1, 1)), random_state=seed, **options).images.max((1, 2)).round(5)
        for seed in (0, 1)
    ]
    assert np.unique(drawn[0]).tolist() == [1, 2, 3]
    assert np.unique(drawn[0], return_counts=True)[1].min() > 15
    assert len({(a, b) for a, b in zip(*drawn)}) == 9, "drawn anew by another seed"


@pytest.mark.parametrize("synthesis", [cutpaste, partial(cutpaste, kind="normal", jitter=0.0)])
def test_patches_of_cutpaste_come_from_the_image_itself(synthesis):
    levels = np.arange(50, dtype="uint8")[:, None, None] * np.ones((1, 12, 12), "uint8")
    if synthesis is not cutpaste:  # else colours are changed
        assert np.array_equal(synthesize(levels, synthesis, random_state=0).images, levels)
    x, others = random_images(2, 4, 1, 8, 8)
    assert foreign_to(x, others, synthesis) is x
    assert foreign_to(x, others, fpi) is others


@pytest.mark.filterwarnings("ignore:ASR-Net points the wrong way")
@pytest.mark.parametrize(
    "detector",
    [
        tiny(SyntheticAnomalies, validation_fraction=0.5),
        tiny(DRAEM, validation_fraction=0.5),
        tiny(DDAD, refine=True, validation_fraction=0.5),
    ],
    ids=lambda detector: type(detector).__name__,
)
def test_detectors_cut_patches_from_the_image_itself(detector, monkeypatch):
    own = []

    def look(images, sources, generator):
        own.append(torch.equal(images, sources))
        return fpi(images, images, generator)

    name = "refinement_synthesis" if isinstance(detector, DDAD) else "synthesis"
    detector.set_params(**{name: look}).fit(make_images())
    assert not any(own)
    assert own
    own.clear()
    monkeypatch.setattr(defects, "cutpaste", look)
    detector.fit(make_images())
    assert all(own)
    assert own


def write_in_place(images, sources, generator):
    images[:, :, 0] = 1
    masks = torch.zeros_like(images, dtype=torch.bool)
    masks[:, :, 0] = True
    return images, masks, masks.float()


def test_a_synthesis_may_write_into_its_images():
    X = np.zeros((400, 8, 8), "float32")
    made = synthesize(X, write_in_place, intensity_range=(0, 1), probability=0.5, random_state=0)
    changed = made.masks.any((1, 2))
    assert 150 < changed.sum() < 250
    assert np.array_equal(made.images[changed, 0], np.ones((changed.sum(), 8)))
    assert not made.images[~changed].any()
    assert not X.any()


X, MASKS = torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ((X, MASKS), TypeError, r"must return a tuple of three tensors, \(images, masks, labels\)"),
        (None, TypeError, "must return a tuple of three tensors"),
        ((X.numpy(), MASKS, X), TypeError, "must return a tuple of three tensors"),
        ((X[:, :, 1:], MASKS, X), ValueError, r"return images of the shape \(3, 1, 8, 8\) .* \(3, 1, 7, 8\)"),
        ((X, MASKS[:, 0], X), ValueError, r"return masks of the shape \(3, 1, 8, 8\) .* \(3, 8, 8\)"),
        ((X, X, X), ValueError, "return masks .* of torch.bool, got .* torch.float32"),
        ((X, MASKS, MASKS), ValueError, "return labels .* of torch.float32, got .* torch.bool"),
        ((X.double(), MASKS, X), ValueError, "return images .* of torch.float32, got .* torch.float64"),
        ((X, MASKS, X + 1.5), ValueError, "return labels from 0 to 1, got some from 1.5 to 1.5"),
        ((X, MASKS, X * torch.nan), ValueError, "return labels from 0 to 1, got some from nan to nan"),
    ],
)
def test_what_a_synthesis_returns_is_checked(returned, error, message):
    with pytest.raises(error, match=message):
        synthesize(X[:, 0].numpy(), lambda images, sources, generator: returned)


def test_a_synthesis_of_arrays_is_a_function():
    with pytest.raises(TypeError, match="must be a function, as skanomaly.synthesis.pii, got 'pii'"):
        synthesize(X[:, 0].numpy(), "pii")


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (np.zeros((1, 8, 8)), {}, "1 sample"),
        (np.zeros((4, 8)), {}, r"X must be \(n, H, W\), .*, got an array of shape \(4, 8\)"),
        (np.zeros((4, 8, 8)), {"probability": -0.1}, "probability must lie between 0 and 1, got -0.1"),
        (np.zeros((4, 8, 8)), {"sources": np.zeros((4, 8, 9))}, "sources must be images of the shape"),
        (np.zeros((4, 8, 8)), {"intensity_range": (1, 0)}, "intensity_range must be"),
    ],
)
def test_bad_arrays(X, options, message):
    with pytest.raises(ValueError, match=message):
        synthesize(X, **options)
