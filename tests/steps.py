"""One step of a training, by itself."""

import copy

import torch
from numpy.testing import assert_allclose

from skanomaly._random import seeded
from skanomaly.training._training import Training


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


def assert_descends(training, network, x, loss, parts, **options):
    """A step moves these parts down the gradient of `loss(network, x)`, which is computed by hand."""
    by_hand = copy.deepcopy(network).train()
    run_step(training, network, x, lr=0.1, **options)
    with seeded(0):
        value = loss(by_hand, x)
    names = [name for name, _ in by_hand.named_parameters() if name.split(".")[0] in parts]
    before = dict(by_hand.named_parameters())
    gradients = torch.autograd.grad(value, [before[name] for name in names])
    after = dict(network.named_parameters())
    for name, gradient in zip(names, gradients):
        expected = (before[name] - 0.1 * gradient).detach()
        assert_allclose(after[name].detach(), expected, rtol=1e-4, atol=1e-6, err_msg=name)


def watch_stages(monkeypatch, detector_class, look):
    """Call look(stage, training, network, images, **options) before each stage of the class's fits."""
    train = detector_class._train

    def watched_train(self, run, network, images):
        def watched_run(stage, training, network, images, **options):
            look(stage, training, network, images, **options)
            return run(stage, training, network, images, **options)

        train(self, watched_run, network, images)

    monkeypatch.setattr(detector_class, "_train", watched_train)


def first_settings(monkeypatch, detector, X):
    """Settings of each optimiser at its first step in a fit, by name of stage and of optimiser."""
    settings, move = {}, Training.move

    def watched_move(self, optimizer, **loss):
        (group,) = getattr(self, f"{optimizer}_").param_groups
        settings.setdefault(
            (self.stage, optimizer), {name: group[name] for name in group if name != "params"}
        )
        move(self, optimizer, **loss)

    monkeypatch.setattr(Training, "move", watched_move)
    detector.fit(X)
    return settings
