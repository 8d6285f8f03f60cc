"""The memory module: retrieved features, addresses, entropy, gradients.

Compared with dot products, as in the authors' code; the paper, and ours by default, has the cosine. Places of
a volume are given to ours as those of a plane.
"""

import pytest
import torch

from skanomaly.networks.memory import MemoryMatrix, hard_shrinkage
from skanomaly.training._memory import entropy


@pytest.fixture
def numbers(parity):
    return parity("memae")


def memory(numbers, threshold):
    module = MemoryMatrix(7, 5, threshold=threshold, cosine=False).double()
    with torch.no_grad():
        module.items.copy_(numbers.tensor("w/memory/weight"))
    return module


@pytest.mark.parametrize("places", ["places_2d", "places_3d"])
@pytest.mark.parametrize("threshold", [0.0, 0.0025, 0.15])
def test_memory(numbers, places, threshold):
    z = numbers.input(places)
    retrieved, addresses = memory(numbers, threshold)(z.flatten(3) if z.ndim == 5 else z)
    name = f"{places}/threshold_{threshold}"
    numbers.agrees(f"{name}/retrieved", retrieved.reshape(z.shape))
    numbers.agrees(f"{name}/entropy", entropy(addresses))
    shape = len(z), 7, *z.shape[2:]
    numbers.agrees(f"{name}/addresses", addresses.movedim(-1, 1).reshape(shape))


def test_gradients(numbers):
    z, module = numbers.input("places_2d").requires_grad_(), memory(numbers, 0.15)
    retrieved, addresses = module(z)
    (retrieved.square().sum() + entropy(addresses)).backward()
    numbers.agrees("gradient/of_features", z.grad)
    numbers.agrees("gradient/of_memory", module.items.grad)


def test_shrinkage(numbers):
    """Before the weights are scaled to sum to 1: ours does both, and is scaled back here."""
    weights = numbers.input("shrink/weights")
    for threshold in 0.1, 0.2:
        theirs = numbers.tensor(f"out/shrink/threshold_{threshold}")
        ours = hard_shrinkage(weights, threshold) * theirs.sum(-1, keepdim=True)
        numbers.agrees(f"shrink/threshold_{threshold}", ours)
