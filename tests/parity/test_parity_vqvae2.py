"""VQ-VAE-2: the quantiser, its steps, and the network with its losses and scores.

Their codebook has codes in columns, and replaces none that are not chosen.
"""

import pytest
import torch

from skanomaly import VQVAE
from skanomaly._losses import squared_error
from skanomaly.detectors.vqvae import commitment
from skanomaly.networks.quantiser import Quantiser, TwoLevelAutoEncoder


@pytest.fixture
def numbers(parity):
    return parity("vqvae2")


@pytest.fixture
def quantiser(numbers):
    quantiser = Quantiser(6, 4, decay=numbers.config["quantiser_decay"], least_use=0.0).double()
    quantiser.codes.copy_(numbers.input("quantiser/embed").T)
    quantiser.sums.copy_(quantiser.codes)
    return quantiser


def features(numbers, name):
    """Features with the channel on the second axis; theirs have it last."""
    return numbers.input(f"quantiser/{name}").movedim(-1, 1)


def last(features):
    return features.movedim(1, -1)


def test_quantiser(numbers, quantiser):
    z = features(numbers, "features").requires_grad_()
    quantised, difference, index = quantiser(z)
    numbers.agrees("quantiser/quantised", last(quantised))
    numbers.agrees("quantiser/loss", difference.mean())
    numbers.agrees("quantiser/index", index)
    upstream = features(numbers, "upstream_gradient")
    (gradient,) = torch.autograd.grad(quantised, z, upstream, retain_graph=True)
    numbers.agrees("quantiser/gradient_of_quantised", last(gradient))
    (gradient,) = torch.autograd.grad(difference.mean(), z)
    numbers.agrees("quantiser/gradient_of_loss", last(gradient))


def test_steps(numbers, quantiser):
    for step in range(3):
        z = features(numbers, f"training_features_{step}")
        quantised, difference, index = quantiser(z)
        quantiser.update(z, index)
        name = f"quantiser/step_{step}"
        numbers.agrees(f"{name}/quantised", last(quantised))
        numbers.agrees(f"{name}/loss", difference.mean())
        numbers.agrees(f"{name}/index", index)
        numbers.agrees(f"{name}/cluster_size", quantiser.counts)
        numbers.agrees(f"{name}/embed_avg", quantiser.sums.T)
        numbers.agrees(f"{name}/embed", quantiser.codes.T)


def test_network(numbers):
    for level in "tb":
        for buffer in "embed", "embed_avg":
            key = f"w/vqvae/quantize_{level}.{buffer}"
            numbers[key] = numbers[key].T
    config = numbers.config
    size = {"n_codes": config["n_embed"], "width": config["channel"] // 2}
    size |= {"hidden_size": config["n_res_channel"], "n_blocks": config["n_res_block"]}
    network = TwoLevelAutoEncoder((1, 32, 32), config["embed_dim"], **size)
    numbers.put("vqvae", network)
    x = numbers.input("images")
    y, levels = network.quantise(x)
    for name, (z, _, index) in zip(("top", "bottom"), levels):
        codes = network.get_submodule(f"{name}_codes")
        numbers.agrees(f"{name}/quantised", codes(z)[0])
        numbers.agrees(f"{name}/index", index)
    numbers.agrees("reconstruction", y)
    numbers.agrees("latent_loss", commitment(levels)[None])
    error = squared_error(y, x).mean()
    numbers.agrees("loss_reconstruction", error)
    numbers.agrees("loss", error + config["commitment_weight"] * commitment(levels))
    numbers.agrees("score", VQVAE()._judge(network, x).score)
