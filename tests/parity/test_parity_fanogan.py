"""Losses, gradient penalty and scores, with the networks of a port of the authors' code in place of ours.

The port has plain convolutions, ours the residual blocks of the authors' own code, which is for TensorFlow 1.
"""

import pytest
from torch import nn

from skanomaly._losses import gradient_penalty, squared_error
from skanomaly.detectors.fanogan import FAnoGANNetwork, Inversion


def trunk():
    """Four convolutions of stride 2, as in the port; the second argument of its norms is their eps."""
    layers, n_in = [], 1
    for n_out in 16, 32, 64, 128:
        layers += [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.LeakyReLU(0.2)]
        layers += [nn.BatchNorm2d(n_out, 0.8)] if n_in > 1 else []
        n_in = n_out
    return nn.Sequential(*layers, nn.Flatten())


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.value = trunk(), nn.Linear(128, 1)

    def forward(self, x):
        return self.value(self.features(x))[:, 0]


def generator():
    return nn.Sequential(
        nn.Linear(5, 2048),
        nn.Unflatten(1, (128, 4, 4)),
        nn.BatchNorm2d(128),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.BatchNorm2d(128, 0.8),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(128, 64, 3, padding=1),
        nn.BatchNorm2d(64, 0.8),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 1, 3, padding=1),
        nn.Tanh(),
    )


@pytest.fixture
def numbers(parity):
    return parity("fanogan")


@pytest.fixture
def network(numbers):
    options = {"width": 1, "n_levels": 2, "prior": "normal", "output": "linear", "bound": 1.0}
    network = FAnoGANNetwork((1, 16, 16), 5, **options)
    network.generator, network.critic = generator(), Critic()
    network.encoder = nn.Sequential(trunk(), nn.Linear(128, 5), nn.Tanh())
    numbers.put("generator", network.generator)
    numbers.put("discriminator", network.critic)
    numbers.put("encoder", network.encoder)
    numbers.agrees("generator/images", network.generator(numbers.input("codes")))
    return network


def test_encoder(numbers, network):
    x, z = numbers.input("images"), numbers.input("codes")
    inversion = Inversion(network, kind="izi_f", feature_weight=1.0, stage="encoder")
    numbers.agrees("encoder/code", network.encoder(x))
    numbers.agrees("reconstruction", network(x))
    numbers.agrees("izif/loss_images", squared_error(network(x), x).mean())
    numbers.agrees("izif/loss_features", network.feature_error(network(x), x).mean())
    numbers.agrees("izif/loss", inversion.validate(network, x))
    inversion.kind, network.draw_codes = "ziz", lambda n: z
    numbers.agrees("ziz/loss", inversion.validate(network, x))


def test_scores(numbers, network):
    x, y = numbers.input("images"), network(numbers.input("images"))
    residual = squared_error(y, x).mean((1, 2))
    numbers.agrees("score/image_distance", residual)
    numbers.agrees("score", residual + network.feature_error(x, y))
    numbers.agrees("score/code_distance", (network.encoder(x) - network.encoder(y)).square().mean(1))


def test_critic(numbers, network, draws):
    x, fake = numbers.input("images"), network.generator(numbers.input("codes")).detach()
    place = numbers.input("gradient_penalty/place")
    draws("rand", 1 - place, 1 - place)
    penalty = gradient_penalty(network.critic, x, fake)
    # 1e-12 under the root of ours, so that a gradient of zero has a derivative.
    numbers.agrees("gradient_penalty", penalty)
    real, made = network.critic(x).mean(), network.critic(fake).mean()
    numbers.agrees("loss_critic", made - real + 10 * penalty)
    numbers.agrees("loss_generator", -made)
    slope = numbers.input("gradient_penalty/linear_critic")
    flat = gradient_penalty(lambda u: (slope * u).flatten(1).sum(1), x, fake)
    numbers.agrees("gradient_penalty/of_the_linear_critic", flat)
