import numpy as np
import pytest
import torch
from foreign import check_learns
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch.testing import assert_close

from skanomaly import DenoisingAutoEncoder
from skanomaly._random import seeded
from skanomaly.testing import make_images, tiny
from skanomaly.transforms.corruptions import add_coarse_noise

image_shapes = st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(4, 24))


def test_it_removes_coarse_noise():
    X = make_images((64, 16, 16))
    detector = tiny(DenoisingAutoEncoder, max_epochs=20, width=6, noise_size=4, lr=0.01).fit(X)
    x = torch.from_numpy(X[:, None] / 255).float()
    with seeded(0), torch.no_grad():
        noisy = add_coarse_noise(x, deviation=0.2, size=4)
        left = (detector.network_(noisy) - x).square().mean()
    assert left < 0.5 * (noisy - x).square().mean()


@given(image_shapes, st.integers(0, 2**31))
def test_images_are_judged_by_themselves(shape, seed):
    """No statistics of noisy training images, nor of the other images of a batch."""
    with seeded(seed):
        network, x = DenoisingAutoEncoder(width=2)._build(shape), torch.rand(3, *shape)
    with torch.no_grad():
        y = network.train()(x)
        assert_close(network.eval()(x), y)
        assert_close(network(x[:1]), y[:1])
    assert y.shape == x.shape


def test_noise_lies_anywhere_along_either_side():
    """Enlarged, it has its extremes at fixed places; rolled, not."""
    with seeded(0):
        noise = [add_coarse_noise(torch.zeros(1, 1, 16, 24), deviation=1.0, size=2)[0, 0] for _ in range(60)]
    for axis, side in enumerate((16, 24)):
        assert len({int(image.amax(1 - axis).argmax()) for image in noise}) > side // 2


@given(image_shapes, st.floats(-3, 3), st.integers(0, 2**31))
def test_noise_of_the_foreground(shape, low, seed):
    """The same noise, but where all channels have the lowest value of their image."""
    noisy = []
    for foreground in False, True:
        with seeded(seed):
            x = (torch.rand(3, *shape) + low).clamp(min=low + 0.4)
            noisy.append(add_coarse_noise(x, deviation=0.2, size=4, foreground=foreground))
    background = (x == x.amin((1, 2, 3), keepdim=True)).all(1, keepdim=True)
    assert_close(noisy[1], torch.where(background, x, noisy[0]))


def test_noise_has_its_draws_at_even_places(monkeypatch):
    """From border to border, as in the public code, where it is not rolled."""
    with seeded(3):
        draws = 0.2 * torch.randn(2, 1, 4, 4)
    monkeypatch.setattr(torch, "randint", lambda *args: torch.zeros((), dtype=torch.long))
    with seeded(3):
        noise = add_coarse_noise(torch.zeros(2, 1, 28, 28), deviation=0.2, size=4)
    assert_close(noise[..., ::9, ::9], draws)


def test_the_score_is_the_mean_squared_error():
    X = make_images((5, 20, 14))
    detector = tiny(DenoisingAutoEncoder).fit(X)
    error = ((detector.reconstruct(X) - X) / 255) ** 2
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-6)
    assert_allclose(-detector.score_samples(X), error.mean((1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    "parameters", [{"noise_deviation": 0.5}, {"noise_size": 2}, {"foreground": True}], ids=str
)
def test_options_are_heard(parameters):
    X = make_images()
    plain, other = (tiny(DenoisingAutoEncoder, **o).fit(X).score_samples(X) for o in ({}, parameters))
    assert not np.array_equal(plain, other)


def test_bad_parameters():
    with pytest.raises(
        ValueError, match="'noise_deviation' parameter of DenoisingAutoEncoder must be a float"
    ):
        tiny(DenoisingAutoEncoder, noise_deviation=0.0).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(DenoisingAutoEncoder(width=4, noise_size=4, max_epochs=25, lr=3e-3, random_state=0))
