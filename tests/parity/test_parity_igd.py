"""Losses, the Gaussian descriptor, interpolated codes, the score, and single residual blocks.

The authors average the spread over batches, whatever their size; ours is the mean over images, and their
spread is put into ours to compare scores.
"""

import pytest
import torch
from torch import nn

from skanomaly.detectors.igd import IGDNetwork, interpolated, ms_ssim, reconstruction_error
from skanomaly.networks.adversarial import DownBlock, UpBlock


@pytest.fixture
def numbers(parity):
    return parity("igd")


def images(numbers):
    """Images and reconstructions, in the range that ours expects."""
    return (numbers.input(name) / numbers.config["data_range"] for name in ("images", "reconstructions"))


def described(numbers, scale):
    """Network whose descriptor is of the codes, by the authors' spread, and the codes."""
    codes = numbers.input("codes") * scale
    network = IGDNetwork((1, 8, 8), codes.shape[1], width=2, n_levels=None).double()
    network.describe(codes)
    network.spread.copy_(numbers.tensor(f"out/codes_times_{scale}/sigma_batches_of_3_and_2"))
    return network, codes


def test_reconstruction(numbers):
    x, y = images(numbers)
    numbers.agrees("ms_ssim_each", ms_ssim(y, x), within=1e-5)
    numbers.agrees("loss_ms_ssim", 1 - ms_ssim(y, x).mean(), within=1e-4)
    numbers.agrees("loss_l1", (x - y).abs().mean(), within=1e-5)
    numbers.agrees("loss_reconstruction", reconstruction_error(y, x).mean(), within=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_descriptor(numbers, scale):
    network, codes = described(numbers, scale)
    name = f"codes_times_{scale}"
    numbers.agrees(f"{name}/centre", network.centre[None])
    numbers.agrees(f"{name}/descriptor_score", network.descriptor(codes), within=1e-5)
    numbers.agrees(f"{name}/loss_descriptor", network.descriptor(codes).mean(), within=1e-5)


def test_score(numbers):
    (x, y), (network, codes) = images(numbers), described(numbers, 1.0)
    score = 0.5 * reconstruction_error(y, x) + 0.5 * network.descriptor(codes[:2])
    numbers.agrees("score", score, within=1e-5)


def test_interpolation(numbers):
    code = interpolated(numbers.input("codes"), numbers.input("interpolation/alpha"))
    numbers.agrees("interpolation/code", code)


def test_blocks(numbers):
    """The critic's block is left out: its norm has a scale at each place, ours one for each channel."""
    blocks = {
        "block_up": ("block_up", UpBlock(6, 4, (2, 2), nn.BatchNorm2d)),
        "block_down_encoder": ("block_down", DownBlock(4, 6, (2, 2), nn.BatchNorm2d)),
    }
    for name, (given, block) in blocks.items():
        with torch.no_grad():
            numbers.put(name, block.norm1, block.norm2, block.shortcut, block.conv1, block.conv2)
            numbers.agrees(f"{name}/output", block(numbers.input(f"{given}/input")))
