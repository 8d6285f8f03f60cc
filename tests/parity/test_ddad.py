"""DDAD: members, discrepancies, refinement, and the images on which it learns."""

import pytest

from skanomaly._losses import squared_error
from skanomaly.detectors.ddad import DDADNetwork
from skanomaly.networks.autoencoder import ConvAutoEncoder

SIZE = {"hidden_size": 2048, "width": 4, "n_levels": 4}
SHAPE = (1, 16, 16)


@pytest.fixture
def numbers(parity):
    return parity("ddad")


def ensembles(numbers, kind, member, predict):
    """Our network with the members of both ensembles of the authors' code."""
    make = lambda: member(SHAPE, 4, **SIZE)  # noqa: E731
    network = DDADNetwork(make, predict, n_members=3, dual=True, refinement_width=8, ddof=1)
    for name in "ndm", "udm":
        for i, one in enumerate(getattr(network, name)):
            numbers.put(f"{kind}/{name}_{i}", one)
    return network


def test_autoencoder(numbers):
    network = ensembles(numbers, "ae", ConvAutoEncoder, lambda member, x: (member(x), None))
    x, member = numbers.input("images"), network.ndm[0]
    numbers.agrees("ae/ndm_0/code", member.encoder(x))
    numbers.agrees("ae/ndm_0/reconstruction", member(x))
    numbers.agrees("ae/ndm_0/score", squared_error(member(x), x).mean((1, 2)))
    numbers.agrees("ae/ndm_0/loss", squared_error(member(x), x).mean())
    for name, maps in network.discrepancies(x).items():
        numbers.agrees(f"ae/A_{name}", maps)
    x = numbers.input("training_images")
    numbers.agrees("ae/ndm_0/loss_in_training_mode", squared_error(member.train()(x), x).mean())
