"""Both ensembles with each backbone, their discrepancies, ASR-Net, its loss and the images it learns from.

Left out: the smoothing of the focal loss, which moves it by 1e-5. Standard deviations have K - 1, as in the
code; the paper has K. Compared are boxes of one size; ours draws height and width separately.
"""

from functools import partial

import pytest
import torch

from skanomaly._losses import focal_loss, likelihood_error, squared_error
from skanomaly.detectors.ddad import BACKBONES, INPUTS, DDADNetwork, RefinementNetwork
from skanomaly.networks.autoencoder import MemoryAutoEncoder
from skanomaly.training._memory import entropy
from skanomaly.transforms.defects import foreign_patches

SHAPE = 1, 16, 16
SIZE = {"hidden_size": 2048, "width": 4, "n_levels": 4}


@pytest.fixture
def numbers(parity):
    return parity("ddad")


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def ensembles(numbers, kind):
    """Our network with the members of the authors' ensembles, and with their refinements."""
    make = partial(BACKBONES[kind].build, SHAPE, 4, **SIZE)
    network = DDADNetwork(
        make, BACKBONES[kind].predict, n_members=3, dual=True, refinement_width=8, ddof=1
    ).double()
    for name in "ndm", "udm":
        for i, member in enumerate(getattr(network, name)):
            numbers.put(f"{kind}/{name}_{i}", member)
    for name, refinement in network.refinements.items():
        numbers.put(f"refinement_{name}", refinement)
    return network


def test_autoencoder(numbers):
    network = ensembles(numbers, "ae")
    x, member = numbers.input("images"), network.ndm[0]
    numbers.agrees("ae/ndm_0/code", member.encoder(x))
    numbers.agrees("ae/ndm_0/reconstruction", member(x))
    numbers.agrees("ae/ndm_0/score", squared_error(member(x), x).mean((1, 2)))
    numbers.agrees("ae/ndm_0/loss", squared_error(member(x), x).mean())
    for name, maps in network.discrepancies(x).items():
        numbers.agrees(f"ae/A_{name}", maps)
    x = numbers.input("training_images")
    numbers.agrees("ae/ndm_0/loss_in_training_mode", squared_error(member.train()(x), x).mean())


def test_uncertain_autoencoder_and_refinement(numbers):
    network = ensembles(numbers, "aeu")
    x, member = numbers.input("images"), network.ndm[0]
    mean, log_variance = member.predict(x)
    numbers.agrees("aeu/ndm_0/code", member.encoder(x))
    numbers.agrees("aeu/ndm_0/mean", mean)
    numbers.agrees("aeu/ndm_0/log_variance", log_variance)
    error = (mean - x).square() * torch.exp(-log_variance)
    numbers.agrees("aeu/ndm_0/score", error.mean((1, 2, 3)))
    numbers.agrees("aeu/ndm_0/loss_error_term", error.mean())
    numbers.agrees("aeu/ndm_0/loss_variance_term", log_variance.mean())
    numbers.agrees("aeu/ndm_0/loss", likelihood_error((mean, log_variance), x).mean())
    maps = network.discrepancies(x)
    for name, of in maps.items():
        numbers.agrees(f"aeu/A_{name}", of)
    masks = numbers.input("refinement_mask")
    for name in "dual", "intra":
        logits = network.logits(name, maps)
        numbers.agrees(f"refinement_{name}/logits", logits)
        probability = network.refine(name, maps)
        numbers.agrees(f"refinement_{name}/probability", probability)
        numbers.agrees(f"refinement_{name}/score", probability.mean((1, 2)))
        numbers.agrees(f"refinement_{name}/focal_loss_without_smoothing", focal_loss(logits, masks))
    x = numbers.input("training_images")
    member.train()
    numbers.agrees("aeu/ndm_0/loss_in_training_mode", likelihood_error(member.predict(x), x).mean())


def test_memory_autoencoder(numbers):
    member = MemoryAutoEncoder(SHAPE, 4, n_slots=6, threshold=0.17, cosine=False, **SIZE)
    numbers.put("memae/ndm_0", member)
    x, weight = numbers.input("images"), numbers.config["entropy_weight"]

    def loss(y, addresses):
        return squared_error(y, x).mean() + weight * entropy(addresses)

    code = member.encoder(x)
    retrieved, addresses = member.memory(code)
    y = member(x)
    numbers.agrees("memae/ndm_0/code", code)
    numbers.agrees("memae/ndm_0/retrieved", retrieved)
    numbers.agrees("memae/ndm_0/addresses", addresses)
    numbers.agrees("memae/ndm_0/reconstruction", y)
    numbers.agrees("memae/ndm_0/score", squared_error(y, x).mean((1, 2)))
    numbers.agrees("memae/ndm_0/entropy", entropy(addresses))
    numbers.agrees("memae/ndm_0/loss", loss(y, addresses))
    member.memory.threshold = 0.0
    y, addresses = member.recall(x)
    numbers.agrees("memae/ndm_0/without_shrinkage/addresses", addresses)
    numbers.agrees("memae/ndm_0/without_shrinkage/reconstruction", y)
    member.memory.threshold, x = 0.17, numbers.input("training_images")
    numbers.agrees("memae/ndm_0/loss_in_training_mode", loss(*member.train().recall(x)))


@pytest.mark.parametrize("j", [0, 1])
def test_images_of_the_refinement(numbers, draws, j):
    *centre, half, alpha = numbers.input(f"anomaly/{j}/centre_half_width_alpha")
    size = (half / 40 - 0.05) / 0.15
    places = [((at + 0.5) / 40 - 0.1) / 0.8 for at in centre]
    draws("rand", *(torch.stack([u, u]) for u in (size, places[0], size, places[1], 0 * half, alpha)))
    images, masks, _ = foreign_patches(numbers.input("anomaly/images"))
    numbers.agrees(f"anomaly/{j}/image", images[0])
    numbers.agrees(f"anomaly/{j}/mask", masks[0])


def test_sizes(numbers):
    size = {"hidden_size": 2048, "width": 16}
    for kind, backbone in BACKBONES.items():
        numbers.agrees(f"parameter_count/{kind}", n_parameters(backbone.build((1, 64, 64), 16, **size)))
    for name, inputs in INPUTS.items():
        numbers.agrees(
            f"parameter_count/refinement_{name}", n_parameters(RefinementNetwork(len(inputs), width=128))
        )
