"""Random views: what each does, that every image gets its own, and who decides."""

import colorsys
import pickle

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter
from skimage.feature import canny

from skanomaly._random import seeded
from skanomaly.datasets import load_chest_xray
from skanomaly.transforms import (
    PRESETS,
    Affine,
    Canny,
    ColorDrop,
    ColorJitter,
    Compose,
    Crop,
    Flip,
    GaussianBlur,
    Rotation,
    Solarize,
    preset,
)

ALL = [
    Crop(),
    Flip(),
    Rotation(),
    Affine(),
    ColorJitter(),
    ColorDrop(),
    Solarize(),
    GaussianBlur(),
    Canny(p=0.5),
    *(preset(name)[0] for name in PRESETS),
]


def xrays(n=6):
    return torch.from_numpy(load_chest_xray().images[:n, None] / 255).float()


def colours(n=6):
    photograph = skimage.data.astronaut()[::8, ::8] / 255
    return torch.from_numpy(photograph).float().permute(2, 0, 1)[None].repeat(n, 1, 1, 1)


def views(transform, x, seed=0):
    with seeded(seed):
        return transform(x)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
@given(
    n=st.integers(1, 4), channels=st.sampled_from([1, 3]), height=st.integers(1, 20), width=st.integers(1, 20)
)
def test_any_size(transform, n, channels, height, width):
    x = torch.rand(n, channels, height, width)
    before = x.clone()
    y = views(transform, x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.isfinite(y).all()
    assert -1e-6 <= y.min()
    assert y.max() <= 1 + 1e-6
    assert torch.equal(x, before), "the images themselves are left alone"


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_a_seed_decides(transform):
    x = colours(12)
    assert torch.equal(views(transform, x), views(transform, x))
    assert not torch.equal(views(transform, x), views(transform, x, seed=1)) or isinstance(
        transform, (ColorDrop, Canny, Solarize)
    )
    torch.manual_seed(0)
    state = torch.get_rng_state()
    views(transform, x)
    assert torch.equal(state, torch.get_rng_state())
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize(
    "transform", [Crop(), Rotation(), ColorJitter(p=1), GaussianBlur()], ids=lambda t: type(t).__name__
)
def test_every_image_gets_its_own(transform):
    y = views(transform, colours(5))
    assert all(not torch.equal(y[i], y[j]) for i in range(5) for j in range(i))


@pytest.mark.parametrize("kind", [Flip, ColorDrop, Solarize, GaussianBlur, Canny, ColorJitter])
def test_p_is_a_share_of_the_images(kind):
    x = colours(1).repeat(400, 1, 1, 1)[..., ::4, ::4]
    changed = (views(kind(p=0.3), x) - x).abs().amax((1, 2, 3)) > 1e-4
    assert 0.2 < changed.float().mean() < 0.4
    assert torch.equal(kind(p=0.0)(x), x) or kind is Flip


def test_geometry():
    x = xrays()
    assert_allclose(views(Flip(p=1.0), x), x.flip(3), atol=1e-5)
    assert_allclose(views(Rotation(0.0), x), x, atol=1e-5)
    assert_allclose(views(Crop(area=(1.0, 1.0), ratio=(1.0, 1.0)), x), x, atol=1e-5)
    # A quarter of a turn, also where the sides differ: a bright bar stands up.
    bar = torch.zeros(1, 1, 21, 41)
    bar[..., 9:12, 13:28] = 1

    class Quarter(Rotation):
        def _matrix(self, n, size):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("skanomaly.transforms.views._uniform", lambda n, *_: torch.full((n,), 90.0))
                return super()._matrix(n, size)

    turned = Quarter()(bar)
    rows, columns = (turned[0, 0, :, 10:31] > 0.5).nonzero().T  # beyond, borders are mirrored
    assert (rows.min(), rows.max()) == (3, 17)
    assert (columns.min(), columns.max()) == (9, 11)


def test_affine_shifts_and_scales():
    """Where a ramp from -1 to 1 is seen, and how steep."""
    ramp = ((torch.arange(64) + 0.5) / 32 - 1).expand(200, 1, 64, 64)
    seen = views(Affine(translation=0.1, scale=(0.8, 1.25)), ramp)[:, 0, 32]
    slope = (seen[:, 40] - seen[:, 24]) / 16 * 32
    assert 0.79 < slope.min() < 0.82
    assert 1.22 < slope.max() < 1.26
    middle = seen[:, 31:33].mean(1)
    assert 0.18 < middle.abs().max() < 0.21, "a tenth of the side is 0.2"
    assert_allclose(views(Affine(translation=0.0, scale=(1.0, 1.0)), xrays()), xrays(), atol=1e-5)


def test_a_crop_has_its_area():
    """A ramp from 0 to 1 shows how much of the width is seen, and where."""
    ramp = (torch.arange(64) + 0.5).div(64).expand(300, 1, 64, 64)
    both = torch.cat([ramp, ramp.transpose(2, 3)], dim=1)
    y = views(Crop(area=(0.25, 0.5)), both)
    width, height = ((y[:, i].amax((1, 2)) - y[:, i].amin((1, 2))) * 64 / 63 for i in range(2))
    area, ratio = (width * height).numpy(), (width / height).numpy()
    assert 0.24 < area.min() < 0.27
    assert 0.47 < area.max() < 0.51
    assert 0.74 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.35
    assert y.min() > 0
    assert y.max() < 1, "within the image"


def test_geometry_is_carried_out_at_once():
    """One interpolation instead of three, at the same places."""
    x = xrays()
    parts = Crop(area=(0.5, 1.0)), Flip(), Rotation(20.0)
    smooth = torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, 3, 3)))
    together = views(Compose(parts), smooth)[..., 12:-12, 12:-12]
    with seeded(0):
        one_by_one = smooth
        for part in parts:
            one_by_one = part(one_by_one)
    assert_allclose(together, one_by_one[..., 12:-12, 12:-12], atol=0.03)


def test_blur_is_that_of_scipy():
    x = xrays()
    y = views(GaussianBlur(sigma=(1.3, 1.3)), x)
    assert_allclose(
        y, gaussian_filter(x.numpy(), (0, 0, 1.3, 1.3), radius=(0, 0, 4, 4), mode="nearest"), atol=2e-5
    )


def test_no_blur_leaves_the_image():
    assert_allclose(views(GaussianBlur(sigma=(0.0, 0.0), p=1.0), xrays()), xrays(), atol=1e-6)


def test_edges_are_those_of_skimage():
    x = xrays(20)
    found = views(Canny(p=1.0), x)[:, 0].numpy() > 0
    expected = np.stack([canny(image, 1.0, 0.1, 0.2, mode="nearest") for image in x[:, 0].numpy()])
    inside = np.s_[:, 2:-2, 2:-2]
    found, expected = found[inside], expected[inside]
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9
    assert torch.equal(views(Canny(p=1.0), torch.full((2, 3, 9, 9), 0.4)), torch.zeros(2, 3, 9, 9))
    assert views(Canny(sigma=0.0, p=1.0), x).any()
    # A weak edge is carried on from a strong one.
    fading = torch.zeros(1, 1, 24, 24)
    fading[..., 12:, :] = torch.linspace(0.5, 0.0, 24)
    carried, strong = (views(Canny(p=1.0, low=low, high=0.5), fading).sum() for low in (0.1, 0.5))
    assert carried > strong + 4 > 4


def test_solarize_and_drop():
    x = colours(2)
    assert_allclose(views(Solarize(p=1.0), x), np.where(x < 0.5, x, 1 - x))
    grey = views(ColorDrop(p=1.0), x)
    assert_allclose(grey[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2], atol=1e-6)
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert torch.equal(views(ColorDrop(p=1.0), xrays()), xrays())


def test_jitter():
    nothing = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "p": 1.0}
    x = colours(30)
    assert_allclose(views(ColorJitter(**nothing), x), x, atol=1e-5)
    dark = x * 0.5
    brighter = views(ColorJitter(**nothing | {"brightness": 0.4}), dark).mean((1, 2, 3)) / dark.mean(
        (1, 2, 3)
    )
    assert 0.6 <= brighter.min() < 0.7
    assert 1.3 < brighter.max() <= 1.4
    soft = 0.4 + 0.2 * x
    spread = views(ColorJitter(**nothing | {"contrast": 0.4}), soft).std((1, 2, 3)) / soft.std((1, 2, 3))
    assert 0.6 < spread.min() < 0.7
    assert 1.3 < spread.max() < 1.4
    grey = views(ColorJitter(**nothing | {"saturation": 1.0, "hue": 0.5}), xrays())
    assert_allclose(grey, xrays(), atol=1e-6)


def test_hue_turns_and_keeps_the_luma():
    x = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1).repeat(200, 1, 2, 2)
    y = views(ColorJitter(brightness=0, contrast=0, saturation=0, hue=0.1, p=1.0), x)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    assert_allclose((y * luma).sum(1), (x * luma).sum(1), atol=1e-4)
    hues = [(colorsys.rgb_to_hsv(*colour)[0] + 0.5) % 1 - 0.5 for colour in y[:, :, 0, 0].tolist()]
    assert -0.16 < min(hues) < -0.07
    assert 0.07 < max(hues) < 0.16


@pytest.mark.parametrize("transform", [ColorJitter(p=1.0), ColorDrop(p=1.0)])
@pytest.mark.parametrize("channels", [2, 4])
def test_colours_need_one_or_three_channels(transform, channels):
    with pytest.raises(ValueError, match=f"needs images of 1 or 3 channels, grey or RGB, got {channels}"):
        transform(torch.rand(2, channels, 4, 4))


def test_presets():
    with pytest.raises(ValueError, match="there is no preset 'retina'; there are 'byol'"):
        preset("retina")
    first, second = preset("byol")
    assert [first.transforms[-2].p, second.transforms[-2].p] == [1.0, 0.1]
    assert [first.transforms[-1].p, second.transforms[-1].p] == [0.0, 0.2]
    x = colours(40)
    assert_allclose(views(preset("color")[0], x[:, :1].repeat(1, 3, 1, 1)).std(1).max(), 0, atol=1e-5)
    moved = views(preset("structure")[0], x)
    edges = torch.stack([(image - image.roll(1, -1)).abs().mean(0).flatten() for image in moved])
    assert (torch.corrcoef(edges)[0] > 0.3).all(), "structure stays where it is"
