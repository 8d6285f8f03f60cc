"""Networks that find what is foreign, pixel by pixel, and the losses that train them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit, xlogy
from torch.nn import functional as F
from torch.testing import assert_close

from skanomaly._random import seeded
from skanomaly.networks.segmenting import NETWORKS, PreActivated, WideResidualNetwork
from skanomaly.training._synthetic import LOSSES


@pytest.mark.parametrize("name", NETWORKS)
@given(st.integers(1, 4), st.integers(4, 40), st.integers(4, 40))
def test_any_size(name, channels, height, width):
    shape = channels, height, width
    with seeded(0):
        network, x = NETWORKS[name](shape, width=2), torch.rand(3, *shape)
    with torch.no_grad():
        assert network.train()(x).shape == (3, 1, height, width)
        y = network.eval()(x)
        assert_close(network(x[:1]), y[:1], msg="images are judged by themselves")


def test_published_widths():
    """64, 128, 256, 256 and 256 channels, a block, and back by 128, 64 and 16 (PII, its public code)."""
    network = WideResidualNetwork((1, 256, 256), width=64)
    assert network.stem.out_channels == 16
    assert [stage[1].body[3].out_channels for stage in network.down] == [64, 128, 256, 256, 256]
    assert [stage[0].body[0].stride[0] for stage in network.down] == [1, 2, 2, 2, 2]
    assert [block.body[3].out_channels for block in network.up] == [256, 128, 64, 16]
    assert network.value[2].out_channels == 1


@pytest.mark.parametrize(
    ("sides", "coarsest"),
    [
        ((256, 256), (16, 16)),
        ((64, 64), (16, 16)),
        ((32, 200), (16, 13)),
        ((9, 20), (9, 20)),
        ((1, 64), (1, 16)),
    ],
)
def test_coarsest_maps_have_as_many_pixels_as_the_papers(sides, coarsest):
    network = WideResidualNetwork((1, *sides), width=4).eval()
    found = []
    network.down[-1].register_forward_hook(lambda module, inputs, output: found.append(output.shape[2:]))
    with torch.no_grad():
        assert network(torch.rand(1, 1, *sides)).shape[2:] == sides
    assert found == [coarsest]


def test_a_residual_block_by_hand():
    with seeded(0):
        block, x = PreActivated(3, 5, 2).eval(), torch.randn(2, 3, 8, 8)
    scale = (1 + 1e-5) ** -0.5
    with torch.no_grad():
        y = F.relu(x * scale)
        inner = F.relu(F.conv2d(y, block.body[0].weight, stride=2, padding=1) * scale)
        expected = F.conv2d(inner, block.body[3].weight, padding=1)
        assert_close(block(x), expected + F.conv2d(y, block.shortcut.weight, stride=2))
        same = PreActivated(3, 3).eval()
        same.body[3].weight.zero_()
        assert_close(same(x), x)


def test_features_from_imagenet_are_not_trained():
    network = NETWORKS["efficientnet"]((1, 32, 32), width=4)
    assert sum(p.numel() for p in network.backbone.parameters()) == 0
    network(torch.rand(2, 1, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@given(st.floats(-8, 8), st.floats(0, 1))
def test_losses_by_hand(logit, label):
    p = expit(logit)
    entropy = -xlogy(label, p) - xlogy(1 - label, 1 - p)
    expected = {"bce": entropy, "mse": (p - label) ** 2, "focal": (p - label) ** 2 * entropy}
    for name, loss in LOSSES.items():
        found = loss(*(torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (logit, label)))
        assert found.shape == (1, 1, 1, 1)
        assert_allclose(found.item(), expected[name], rtol=1e-6, atol=1e-12)


def test_the_least_cross_entropy_is_the_entropy_of_the_label():
    """It is not 0 for soft labels, and lies where the probability is the label."""
    p = np.linspace(0.01, 0.99, 99)
    logits = torch.from_numpy(np.log(p / (1 - p)))[:, None, None, None]
    losses = LOSSES["bce"](logits, torch.full_like(logits, 0.3))[:, 0, 0, 0].numpy()
    assert p[losses.argmin()] == pytest.approx(0.3)
    assert losses.min() == pytest.approx(-0.3 * np.log(0.3) - 0.7 * np.log(0.7))
    assert LOSSES["focal"](torch.zeros(1), torch.ones(1)).item() == pytest.approx(0.25 * np.log(2))


@pytest.mark.parametrize("width", [2, 4, 8])
def test_narrow_networks_have_derivatives(width):
    """Derivatives of strided convolutions of 8 channels in channels_last overran memory."""
    network = WideResidualNetwork((1, 32, 32), width=width).to(memory_format=torch.channels_last)
    network(torch.rand(4, 1, 32, 32)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
