"""Deep SVDD: the encoder for MNIST, its centre, radius, losses and scores.

Left out: a coordinate of the centre that is exactly 0 and stays there, so that weights of 0 fit it; ours is
0.1. The decoder that pre-trains the encoder is not compared: ours is the encoder in reverse and convolves
before it enlarges, theirs begins with a code cut into 4 x 4 places.
"""

import pytest
import torch

from skanomaly.detectors.deep_svdd import DeepSVDD
from skanomaly.networks.hypersphere import (
    Hypersphere,
    PooledEncoder,
    boundary_of,
    centre_of,
    soft_boundary,
)


@pytest.fixture
def numbers(parity):
    return parity("deep_svdd")


@pytest.fixture
def network(numbers):
    """Theirs has fewer channels in its second level than in the first one, which ours takes as widths."""
    network = Hypersphere((1, 28, 28), 32, width=1, n_levels=2)
    network.encoder = PooledEncoder((1, 28, 28), 32, [8, 4], [(2, 2)] * 2)
    numbers.put("mnist", network.encoder)
    network.centre = numbers.tensor("out/mnist/centre")
    return network


def test_encoder(numbers, network):
    x = numbers.input("images")
    numbers.agrees("mnist/code", network.encoder(x))
    numbers.agrees("mnist/code_in_training_mode", network.encoder.train()(x))


def test_centre(numbers, network):
    centre = centre_of(numbers.input("centre/codes"))
    theirs = numbers.tensor("out/centre")
    assert theirs[3] == 0
    assert centre[3] == 0.1
    numbers.agrees("centre", torch.where(theirs == 0, theirs, centre))
    numbers.agrees("centre/mean", numbers.input("centre/codes").mean(0))
    numbers.agrees("mnist/centre", centre_of(network.encoder(numbers.input("images"))))


def test_losses_and_scores(numbers, network):
    x, nu = numbers.input("images"), numbers.config["nu"]
    distance = network.distance(x)
    numbers.agrees("mnist/loss_one_class", distance.mean())
    numbers.agrees("mnist/score_one_class", DeepSVDD()._judge(network, x).score)
    network.boundary = boundary_of(distance, nu)
    numbers.agrees("mnist/radius_nu_0.3", network.boundary.sqrt())
    numbers.agrees("mnist/loss_soft_boundary_nu_0.3", soft_boundary(distance, network.boundary, nu))
    numbers.agrees("mnist/score_soft_boundary", DeepSVDD()._judge(network, x).score)
