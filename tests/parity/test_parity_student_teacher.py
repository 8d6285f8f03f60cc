"""Descriptors of patches and at each pixel, loss, compactness, and the map of three students.

The authors' compactness correlates samples; ours, like the paper's, correlates dimensions, and is compared
with a number that is not theirs. Their sum is over pairs i < j, ours over i != j. Their networks end in a
dense layer and a leaky ReLU, which are put behind ours here.
"""

import pytest
import torch
from torch.nn import functional as F

from skanomaly.detectors.uninformed_students import error_and_variance
from skanomaly.networks.patch_descriptors import SLOPE, PatchNetwork
from skanomaly.training import compactness_loss


@pytest.fixture
def numbers(parity):
    return parity("student_teacher")


def network(numbers, name, patch_size):
    """A function from descriptors of a `PatchNetwork` to those of the authors, and that network."""
    ours, dense = PatchNetwork(3, patch_size, 8, 8), torch.nn.Linear(8, 32)
    numbers.put(name, ours, dense)

    def ended(x):
        with torch.no_grad():
            return F.leaky_relu(dense(F.leaky_relu(x, SLOPE).movedim(1, -1)), SLOPE)

    return ours, ended


@pytest.mark.parametrize("patch_size", [17, 33, 65])
def test_descriptors(numbers, patch_size):
    name = f"net_{patch_size}"
    ours, ended = network(numbers, name, patch_size)
    patches = numbers.input(f"patches_{patch_size}")
    numbers.agrees(f"{name}/descriptor", ended(ours(patches)).flatten(1))
    dense = ended(ours.at_each_pixel(numbers.input("image")))
    numbers.agrees(f"{name}/dense", dense)
    numbers.agrees(f"{name}/dense_patch_by_patch", dense)


def test_compactness(numbers):
    loss = compactness_loss(numbers.input("descriptors")) / 2
    numbers.agrees("compactness_loss_between_dimensions_upper_triangle", loss)


def test_map(numbers):
    """Error and variance in deviations from their mean over three other images."""
    teacher, *students = (
        network(numbers, name, 17) for name in ("teacher", "student_0", "student_1", "student_2")
    )

    def described(part, images):
        ours, ended = part
        return ended(ours.at_each_pixel(images)).movedim(-1, 1)

    normal, test = numbers.input("calibration_images"), numbers.input("test_images")
    targets = described(teacher, normal)
    mean, variance = targets.mean((0, 2, 3)), targets.var((0, 2, 3), correction=0)
    numbers.agrees("calibration/teacher_mean", mean)
    numbers.agrees("calibration/teacher_variance", variance)

    def regressed(images):
        targets = (described(teacher, images) - mean[:, None, None]) / variance.sqrt()[:, None, None]
        return error_and_variance(torch.stack([described(s, images) for s in students]), targets)

    moments = []
    for name, values in zip(("err", "var"), regressed(normal)):
        moments.append((values.mean(), values.var(correction=0)))
        numbers.agrees(f"calibration/{name}_mu", moments[-1][0])
        numbers.agrees(f"calibration/{name}_var", moments[-1][1])
        numbers.agrees(f"calibration/{name}_max", values.max())
    error, spread = regressed(test)
    numbers.agrees("error_map_of_the_first", error[:1])
    numbers.agrees("variance_map_of_the_first", spread[:1])
    parts = [(v - m) / s.sqrt() for v, (m, s) in zip((error, spread), moments)]
    numbers.agrees("score_map", sum(parts))
