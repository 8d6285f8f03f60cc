"""Layouts and sizes of the networks, against the published ones and against plain layers."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F

from skanomaly.networks.adversarial import (
    ChannelLayerNorm,
    DownBlock,
    DownConv,
    ResidualCritic,
    ResidualEncoder,
    ResidualGenerator,
    UpBlock,
    UpConv,
)
from skanomaly.networks.autoencoder import ConvAutoEncoder
from skanomaly.networks.blocks import choose_strides, crop_to, last_size, pad_to, padded_size
from skanomaly.networks.unet import DenoisingUNet

SHAPE = (1, 64, 64)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_parameter_counts():
    assert count(ConvAutoEncoder(SHAPE, 16, hidden_size=2048, width=16)) == 4_487_248
    assert count(ConvAutoEncoder(SHAPE, 16, hidden_size=1024, width=16, spatial=True)) == 382_016
    assert count(DenoisingUNet(SHAPE, width=64)) == 31_042_369
    assert count(ResidualGenerator(SHAPE, 128, width=64)) == 8_539_329
    assert count(ResidualCritic(SHAPE, width=64)) == 7_490_689
    assert count(ResidualEncoder(SHAPE, 128, width=64, output="tanh", bound=1.0)) == 8_531_200
    assert ResidualCritic(SHAPE, width=64).features.n_features == 8192


@pytest.mark.parametrize("factor", [(2, 2), (1, 2), (2, 1), (1, 1)])
def test_fused_convolutions_are_the_plain_ones(factor):
    x = torch.randn(2, 3, 8, 10)
    down, up = DownConv(3, 5, factor), UpConv(3, 5, factor)
    pooled = F.avg_pool2d(F.conv2d(x, down.weight, down.bias, padding=1), factor)
    assert_allclose(down(x).detach(), pooled.detach(), atol=1e-5)
    enlarged = F.interpolate(x, scale_factor=tuple(map(float, factor)))
    enlarged = F.conv2d(enlarged, up.weight, padding=1)
    assert_allclose(up(x).detach(), enlarged.detach(), atol=1e-5)


def test_residual_blocks_against_plain_layers():
    x = torch.randn(2, 3, 8, 8)
    down, up = DownBlock(3, 5, (2, 2), ChannelLayerNorm), UpBlock(3, 5, (2, 2), ChannelLayerNorm)
    h = F.conv2d(down.norm1(x).relu(), down.conv1.weight, padding=1)
    h = F.conv2d(down.norm2(h).relu(), down.conv2.weight, down.conv2.bias, padding=1)
    expected = F.avg_pool2d(h, 2) + down.shortcut(F.avg_pool2d(x, 2))
    assert_allclose(down(x).detach(), expected.detach(), atol=1e-5)
    h = F.conv2d(F.interpolate(up.norm1(x).relu(), scale_factor=2), up.conv1.weight, padding=1)
    h = F.conv2d(up.norm2(h).relu(), up.conv2.weight, up.conv2.bias, padding=1)
    expected = h + up.shortcut(F.interpolate(x, scale_factor=2))
    assert_allclose(up(x).detach(), expected.detach(), atol=1e-5)


def test_critic_norm_is_layer_norm_with_a_scale_per_channel():
    norm = ChannelLayerNorm(3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 4, 5)
    plain = F.layer_norm(x, (3, 4, 5), eps=1e-5)
    assert_allclose(
        norm(x).detach(), (plain * norm.weight.view(3, 1, 1) + norm.bias.view(3, 1, 1)).detach(), atol=1e-5
    )


def test_features_are_what_the_last_layer_sees():
    critic, x = ResidualCritic(SHAPE, width=2), torch.randn(2, *SHAPE)
    assert_allclose(critic(x).detach(), critic.value(critic.features(x))[:, 0].detach())


@pytest.mark.parametrize("output", ["tanh", "clip", "linear"])
def test_encoder_outputs(output):
    encoder, x = ResidualEncoder(SHAPE, 7, width=2, output=output, bound=0.5), torch.randn(4, *SHAPE)
    raw = encoder.code(encoder.eval().features(x)) * 10
    encoder.code.weight.data *= 10
    encoder.code.bias.data *= 10
    expected = {"tanh": 0.5 * raw.tanh(), "clip": raw.clip(-0.5, 0.5), "linear": raw}[output]
    assert_allclose(encoder(x).detach(), expected.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 20), (1, 300, 2), (2, 33, 17), (1, 128, 128), (4, 9, 64)]
)
def test_any_size_comes_back(shape):
    x = torch.randn(2, *shape)
    for spatial in False, True:
        network = ConvAutoEncoder(shape, 2, hidden_size=4, width=1, spatial=spatial)
        assert network(x).shape == x.shape
    generator = ResidualGenerator(shape, 3, width=1)
    assert generator(torch.randn(2, 3)).shape == x.shape
    assert ResidualCritic(shape, width=1)(x).shape == (2,)


def test_levels():
    levels = {side: len(choose_strides((1, side, side))) for side in (1, 8, 16, 28, 32, 64, 128, 256)}
    assert levels == {1: 1, 8: 1, 16: 2, 28: 3, 32: 3, 64: 4, 128: 5, 256: 6}
    assert choose_strides((1, 64, 64)) == choose_strides((1, 64, 64), 4) == [(2, 2)] * 4


@pytest.mark.parametrize(
    ("shape", "last"),
    [((1, 1, 10_000), (1, 5)), ((1, 1, 784), (1, 4)), ((3, 64, 1024), (4, 4)), ((1, 1, 3), (1, 3))],
)
def test_long_images_are_not_padded_to_squares(shape, last):
    strides = choose_strides(shape)
    assert last_size(shape, strides) == last
    padded = padded_size(shape, strides)
    assert padded[0] == shape[1]
    assert padded[1] < 1.4 * shape[2] + 1


def test_levels_that_cannot_be():
    with pytest.raises(ValueError, match=r"at most 4 for images of 64 x 20.*got 5; lower n_levels"):
        choose_strides((1, 64, 20), 5)


def test_padding_repeats_the_border():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    size = padded_size((1, 2, 3), [(2, 2)] * 2)
    padded = pad_to(x, size)
    assert size == (4, 4)
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert torch.equal(crop_to(padded, (2, 3)), x)
