"""Reconstruction methods: networks, losses, scores, maps, and what corrupts images.

Left out: a code that is drawn when the VAE judges an image, which makes its score random (compared without
noise); gradients of the mean over a batch, which shrink with its size (compared one image at a time); the -1
that is added to every image along with the noise of the denoising autoencoder. Their SSIM is of clipped
reconstructions, and made without borders and then enlarged; compared are such reconstructions, without the
border. Ours has neither two convolutions a level nor GANomaly's networks: of the latter the formulas are
compared.
"""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from skanomaly import AEU, VAE, DenoisingAutoEncoder
from skanomaly._losses import (
    absolute_error,
    feature_error,
    gradient_map,
    likelihood_error,
    squared_error,
    ssim_error,
)
from skanomaly.detectors.constrained_ae import Constrained
from skanomaly.networks.autoencoder import (
    ConvAutoEncoder,
    MemoryAutoEncoder,
    UncertainAutoEncoder,
    VariationalAutoEncoder,
)
from skanomaly.networks.gaussian import draw, kl_divergence
from skanomaly.networks.unet import DenoisingUNet
from skanomaly.training import negative_elbo
from skanomaly.training._memory import entropy
from skanomaly.transforms.corruptions import add_coarse_noise, erase_squares

SHAPE = 1, 16, 16
SIZE = {"hidden_size": 24, "width": 4, "n_levels": 4}
MEMORY = {"threshold": 0.15, "cosine": False, "n_slots": 7}
PUBLISHED = {"hidden_size": 1024, "width": 16}


@pytest.fixture
def numbers(parity):
    return parity("medianomaly")


def image_means(maps):
    return maps.mean((1, 2))


@pytest.mark.parametrize("name", ["ae", "ae_spatial"])
def test_autoencoder(numbers, name):
    network = ConvAutoEncoder(SHAPE, 5, spatial=name == "ae_spatial", **SIZE)
    numbers.put(name, network)
    x = numbers.input("images")
    y = network(x)
    error = squared_error(y, x)
    numbers.agrees(f"{name}/code", network.encoder(x))
    numbers.agrees(f"{name}/reconstruction", y)
    numbers.agrees(f"{name}/loss", error.mean())
    numbers.agrees(f"{name}/map", error[:, None])
    numbers.agrees(f"{name}/score", image_means(error))
    numbers.agrees(f"{name}/l1_score", image_means(absolute_error(y, x)))


def test_gradient_map(numbers):
    network = ConvAutoEncoder(SHAPE, 5, **SIZE)
    numbers.put("ae", network)
    x = numbers.input("images")
    gradient = gradient_map(lambda x: image_means(squared_error(network(x), x)), x)
    numbers.agrees("ae/gradient_map_one_image_at_a_time", gradient[:, None])


def test_context_autoencoder(numbers, draws):
    network = ConvAutoEncoder(SHAPE, 5, **SIZE)
    numbers.put("ae", network)
    x = numbers.input("images")
    draws("randint", *numbers.input("ceae/places_of_the_squares").T)
    erased = erase_squares(x, area=0.024, value=-1.0)
    assert torch.equal(erased, numbers.input("ceae/erased"))
    numbers.agrees("ceae/reconstruction", network(erased))
    numbers.agrees("ceae/loss", squared_error(network(erased), x).mean())


def test_sides_of_the_squares(numbers):
    law = numbers["out/ceae/law_image_height_width_square_height_width"]
    found = []
    for height, width, *_ in law:
        gone = erase_squares(torch.ones(1, 1, height, width), area=0.024, value=0.0)[0, 0] == 0
        found.append([height, width, int(gone.any(1).sum()), int(gone.any(0).sum())])
    numbers.agrees("ceae/law_image_height_width_square_height_width", found)


def test_uncertain_autoencoder(numbers):
    network = UncertainAutoEncoder(SHAPE, 5, **SIZE)
    numbers.put("aeu", network)
    x = numbers.input("images")
    mean, log_variance = network.predict(x)
    judgement = AEU()._judge(network, x)
    numbers.agrees("aeu/mean", mean)
    numbers.agrees("aeu/log_variance", log_variance)
    numbers.agrees("aeu/loss", likelihood_error((mean, log_variance), x).mean())
    numbers.agrees("aeu/map", judgement.map[:, None])
    numbers.agrees("aeu/score", judgement.score)


def test_memory_autoencoder(numbers):
    network = MemoryAutoEncoder(SHAPE, 5, **MEMORY, **SIZE)
    parts = network.encoder, network.decoder.features, network.memory, network.decoder.up
    numbers.put("memae", *parts)
    x = numbers.input("images")
    y, addresses = network.recall(x)
    numbers.agrees("memae/code", network.encoder(x))
    numbers.agrees("memae/retrieved", network.memory(network.encoder(x))[0])
    numbers.agrees("memae/addresses", addresses)
    numbers.agrees("memae/reconstruction", y)
    numbers.agrees("memae/entropy", entropy(addresses))
    weight = numbers.config["memae"]["entropy_weight"]
    numbers.agrees("memae/loss", squared_error(y, x).mean() + weight * entropy(addresses))
    numbers.agrees("memae/score", image_means(squared_error(y, x)))


def test_variational_autoencoder(numbers, draws):
    network = VariationalAutoEncoder(SHAPE, 5, **SIZE)
    numbers.put("vae", network)
    x = numbers.input("images")
    weight = numbers.config["vae_kl_weight"]
    mean, log_variance = network.posterior(x)
    numbers.agrees("vae/mean", mean)
    numbers.agrees("vae/log_variance", log_variance)
    numbers.agrees("vae/loss_kl", kl_divergence(mean, log_variance).mean())
    draws("randn_like", numbers.input("vae/noise"))
    y = network.decoder(draw(mean, log_variance))
    error = squared_error(y, x).mean()
    numbers.agrees("vae/reconstruction", y)
    numbers.agrees("vae/loss_reconstruction", error)
    numbers.agrees("vae/loss", error + weight * kl_divergence(mean, log_variance).mean())
    numbers.agrees("vae/without_noise/reconstruction", network(x))
    bound = partial(negative_elbo, network, error=squared_error, kl_weight=weight)
    numbers.agrees("vae/without_noise/loss", bound(x).mean())
    numbers.agrees("vae/without_noise/score", VAE()._judge(network, x).score)
    shown = {"elbo": "elbo_gradient", "rec": "residual_gradient", "kl": "kl_gradient", "combi": "combination"}
    for name, component in shown.items():
        maps = VAE(score_component=component)._judge(network, x).map
        numbers.agrees(f"vae/without_noise/gradient_map_{name}_one_image_at_a_time", maps[:, None])


def test_constrained_autoencoder(numbers):
    network = ConvAutoEncoder(SHAPE, 5, **SIZE)
    numbers.put("constrained_ae", network)
    x = numbers.input("images")
    error, constraint = Constrained.terms(None, network, x)
    numbers.agrees("constrained_ae/code", network.encoder(x))
    numbers.agrees("constrained_ae/code_of_reconstruction", network.encoder(network(x)))
    numbers.agrees("constrained_ae/loss_reconstruction", error)
    numbers.agrees("constrained_ae/loss_code", constraint)
    numbers.agrees("constrained_ae/loss", error + constraint)


def test_formulas_of_ganomaly(numbers):
    z, again, real, fake = (
        numbers.tensor(f"out/ganomaly/{name}") for name in ("z", "z_hat", "feat_real", "feat_fake")
    )
    numbers.agrees("ganomaly/loss_adversarial", feature_error(real, fake).mean())
    numbers.agrees("ganomaly/loss_code", feature_error(z, again).mean())


def test_denoising_autoencoder(numbers):
    network = DenoisingUNet(SHAPE, width=4)
    numbers.put("dae", network)
    numbers.agrees("dae/reconstruction", network(numbers.input("dae/images")))


@pytest.mark.parametrize("name", ["masked", "unmasked"])
def test_noise(numbers, draws, name):
    draws("randn", numbers.input("dae/noise/draws"))
    draws("randint", *numbers.input("dae/noise/rolls"))
    x = numbers.input("dae/noise/images")
    noise = add_coarse_noise(x, deviation=1.0, size=16, foreground=name == "masked") - x
    numbers.agrees(f"dae/noise/{name}/added", 2 * noise - 1)
    numbers.agrees(f"dae/noise/{name}/noisy", x + 2 * noise - 1)


def test_ssim(numbers):
    x, y = ((numbers.input(f"ssim/{name}") + 1) / 2 for name in ("images", "reconstructions"))
    # Their window of Gaussian weights is float32, and reconstructions are clipped to the range of images.
    y = y.clamp(0, 1)
    numbers.agrees("ssim/map_valid", F.pad(ssim_error(x, y), (-5,) * 4)[:, None], within=1e-6)


def test_sizes(numbers):
    shape, memory = (1, 64, 64), {"n_slots": 25, "threshold": 0.0025, "cosine": False}
    networks = {
        "ae": ConvAutoEncoder(shape, 16, **PUBLISHED),
        "ae_spatial": ConvAutoEncoder(shape, 16, spatial=True, **PUBLISHED),
        "vae": VariationalAutoEncoder(shape, 16, **PUBLISHED),
        "aeu": UncertainAutoEncoder(shape, 16, **PUBLISHED),
        "memae": MemoryAutoEncoder(shape, 16, **memory, **PUBLISHED),
        "constrained_ae": ConvAutoEncoder(shape, 16, **PUBLISHED),
        "dae": DenoisingAutoEncoder(width=64)._build(shape),
    }
    for name, network in networks.items():
        numbers.agrees(f"parameter_count/{name}", sum(p.numel() for p in network.parameters()))
