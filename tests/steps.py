"""One step of a training, by itself."""

import torch

from skanomaly._random import seeded


def run_step(training, network, x, **options):
    """What a step of plain gradient descent records, and the parts that it moves."""
    options = {"optimizer": torch.optim.SGD, "lr": 1e-2, "max_epochs": 1} | options
    training = training(network, stage="test", batch_size=len(x), verbose=0, **options)
    training.initialize()
    training.totals_, training.batch_size_ = {}, len(x)
    before = {name: value.clone() for name, value in network.named_parameters()}
    network.train()
    with seeded(0):
        training.step(network, x)
    moved = {
        name.split(".")[0]
        for name, value in network.named_parameters()
        if not torch.equal(value, before[name])
    }
    return {name: float(total / count) for name, (total, count) in training.totals_.items()}, moved
