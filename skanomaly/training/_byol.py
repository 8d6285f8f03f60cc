"""BYOL (Grill et al. 2020): an encoder learns to give two views of an image the same features."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from ..transforms import changed, preset
from ._training import Training


def view_pair(transforms, n_channels):
    """The two transforms that the parameter `transforms` of an estimator stands for.

    Parameters
    ----------
    transforms : str, callable, tuple of two callables or None
        Name of a preset, one transform for both views, or one for each. "auto" is the preset "oct" for one
        channel, "cfp" for three and "color" for others. None leaves the views unchanged.
    n_channels : int
    """
    if transforms is None:
        return nn.Identity(), nn.Identity()
    if isinstance(transforms, str):
        if transforms == "auto":
            transforms = {1: "oct", 3: "cfp"}.get(n_channels, "color")
        return preset(transforms)
    if callable(transforms):
        return transforms, transforms
    if len(transforms) != 2 or not all(map(callable, transforms)):
        raise ValueError(
            "transforms must be a preset's name, one callable or a tuple of two, one for each view, "
            f"got {transforms!r}"
        )
    return transforms


@contextmanager
def running_statistics_kept(part):
    """Batch normalisation as in training, by the batch, but without a trace in the running statistics."""
    norms = [module for module in part.modules() if getattr(module, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def byol_loss(network, first, second):
    """2 - 2 cos(prediction from one view, target's projection of the other), summed over the two orders."""
    predicted = [network.predictor(network.projector(network.ssl_encoder(v))) for v in (first, second)]
    # Stop-gradient, as in BYOL: a target that learned could agree with the other branch on a constant.
    with torch.no_grad():
        projected = [network.target(v) for v in (second, first)]
    return sum((2 - 2 * F.cosine_similarity(p, t, dim=1)).mean() for p, t in zip(predicted, projected))


@torch.no_grad()
def follow(network, momentum):
    """target <- momentum * target + (1 - momentum) * online, for weights but not for running statistics."""
    online = [*network.ssl_encoder.parameters(), *network.projector.parameters()]
    torch._foreach_lerp_(list(network.target.parameters()), online, 1 - momentum)


class SelfSupervised(Training):
    """The part `ssl_encoder` learns from views alone.

    Parameters
    ----------
    network : nn.Module
        Network with the parts of `networks.byol.BYOLNetwork`.
    views : pair of transforms
    momentum : float
        Share of its weights that the target keeps at each step.
    """

    moves = {"optimizer": ["ssl_encoder", "projector", "predictor"]}
    losses = ("ssl_loss",)
    betas = 0.5, 0.9

    def __init__(self, network, *, views, momentum, **options):
        self.views, self.momentum = views, momentum
        super().__init__(network, **options)

    def step(self, network, x):
        # No optimiser moves the target, so it is in eval mode; in BYOL it normalises by the batch.
        network.target.train()
        loss = byol_loss(network, *(changed(view, x) for view in self.views))
        self.move("optimizer", ssl_loss=loss)
        # After the optimiser's step, as in BYOL.
        follow(network, self.momentum)
