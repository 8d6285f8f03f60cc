"""Loss of training, over four layers, and score of each image, over the last three."""

import pytest

from skanomaly.training import distillation_error


@pytest.fixture
def numbers(parity):
    return parity("mkd")


def maps(numbers, of):
    return [numbers.input(f"{of}/{layer}") for layer in numbers.config["layers"]]


@pytest.mark.parametrize(("weight", "name"), [(None, ""), (0.0, "_direction_only")])
def test_loss_and_score(numbers, weight, name):
    weight = numbers.config["lamda"] if weight is None else weight
    cloner, source = maps(numbers, "cloner"), maps(numbers, "source")
    numbers.agrees(f"loss{name}", distillation_error(cloner, source, weight).mean())
    numbers.agrees(f"score{name}", distillation_error(cloner[1:], source[1:], weight))


def test_loss_of_equal_maps(numbers):
    source = maps(numbers, "source")
    numbers.agrees("loss_identical", distillation_error(source, source, 0.5).mean())
