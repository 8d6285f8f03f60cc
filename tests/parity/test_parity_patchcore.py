"""Distances to a bank, and the score of the worst place by its weight.

Left out: how layers are joined, which theirs enlarge to the size of the first one and ours average to that
of the last, and the filter of maps, which repeats borders in ours and mirrors them in theirs.
"""

from types import SimpleNamespace

import pytest

from skanomaly import PatchCore
from skanomaly.networks.bank import FeatureBank


class OnGrid(PatchCore):
    """Judges maps of features at the size of the grid, without a fit."""

    image_shape_ = 1, 4, 4


@pytest.fixture
def numbers(parity):
    return parity("patchcore")


@pytest.fixture
def network(numbers):
    items = numbers.input("memory_bank")
    bank = FeatureBank(*items.shape).double()
    bank.features.copy_(items)
    return SimpleNamespace(density=bank)


def test_patches(numbers, network):
    patches = numbers.tensor("out/embedding").movedim(1, 3).flatten(0, 2)
    distances, rows = network.density.nearest(patches, 1)
    numbers.agrees("patch_scores", distances.view(3, 16))
    numbers.agrees("nearest", rows.view(3, 16))


@pytest.mark.parametrize("n_around", [3, 9, 30])
def test_score(numbers, network, n_around):
    detector = OnGrid(pooling="reweighted", blur=0.0)
    detector._n_around = n_around
    judgement = detector._judge_features(network, numbers.tensor("out/embedding"))
    numbers.agrees(f"score_{n_around}_neighbours", judgement.score)
    # Without a weight, as in the other public code.
    largest = judgement.components["max"]
    numbers.agrees("score_1_neighbours", largest)
    numbers.agrees("amazon/score_largest_patch", largest)
