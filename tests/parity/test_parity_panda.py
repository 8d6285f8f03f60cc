"""Compactness, elastic weights, and the score by one to three neighbours."""

import pytest
import torch

from skanomaly.detectors.panda import compactness, elastic_loss
from skanomaly.networks.bank import FeatureBank


@pytest.fixture
def numbers(parity):
    return parity("panda")


def test_losses(numbers):
    features, centre = numbers.input("features"), numbers.input("centre")
    numbers.agrees("compactness_loss", compactness(features, centre).mean())
    now, first, importance = (
        [numbers.tensor(f"{prefix}/{name}") for name in numbers["order/ewc_now"]]
        for prefix in ("w/ewc_now", "w/ewc_frozen", "in/ewc/fisher")
    )
    numbers.agrees("ewc_loss", numbers.config["lambda_ewc"] * elastic_loss(now, first, importance))


@pytest.mark.parametrize("n_neighbors", [1, 2, 3])
def test_scores(numbers, n_neighbors):
    train = numbers.input("training_features")
    bank = FeatureBank(*train.shape).double()
    bank.features.copy_(train)
    with torch.no_grad():
        distances, _ = bank.nearest(numbers.input("features"), n_neighbors)
    numbers.agrees(f"score_{n_neighbors}_neighbours", distances.square().sum(1))
