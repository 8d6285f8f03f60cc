"""Moments of the features at each position, distances from them, and their enlargement.

The authors' numbers are in float32. Left out: how layers are joined, which theirs enlarge to the size of the
first one and ours average to that of the last; the divisor n - 1 of covariances, n in ours; the filter of
maps, which repeats borders in ours and mirrors them in theirs; maps scaled to the range of the test set.
Ours scales features by their deviations before 0.01 is added to covariances; compared is without.
"""

import pytest
import torch

from skanomaly.networks.density import Moments, PositionGaussians, enlarged

#: In shares of the largest value, for numbers in float32.
WITHIN = 1e-6
SIDE = 4


def embedding(numbers, split):
    """Layers at the size of the first one, and of their features those that the authors' code has drawn."""
    layers = [numbers.input(f"{split}/layer_{i}") for i in (1, 2, 3)]
    for axis in 2, 3:
        layers = [layer.repeat_interleave(SIDE // layer.shape[axis], axis) for layer in layers]
    return torch.cat(layers, dim=1)[:, numbers.input("columns")]


@pytest.fixture
def numbers(parity):
    return parity("padim")


def test_distances(numbers):
    train, test = (embedding(numbers, split) for split in ("train", "test"))
    assert torch.equal(test, numbers.tensor("out/embedding_of_test_images"))
    n, n_features = train.shape[:2]
    moments, identity = Moments(SIDE**2, n_features), torch.eye(n_features).double()
    moments.add(train.flatten(2).mT)
    covariance = n / (n - 1) * moments.covariance() + numbers.config["regularisation"] * identity
    numbers.agrees("mean", moments.mean().T, within=WITHIN)
    numbers.agrees("covariance_at_the_first_place", covariance[0], within=WITHIN)
    numbers.agrees("covariance_diagonal", covariance.diagonal(dim1=1, dim2=2), within=WITHIN)
    gaussians = PositionGaussians(n_features, n_features, (SIDE, SIDE)).double()
    gaussians.projection.copy_(identity)
    gaussians.mean.copy_(moments.mean())
    gaussians.whitening.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance)))
    distances = gaussians(test)
    numbers.agrees("distance", distances, within=WITHIN)
    size = (numbers.config["image"],) * 2
    numbers.agrees("map_before_smoothing", enlarged(distances, size, 0), within=WITHIN)
