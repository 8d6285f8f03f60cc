"""Cloner: a small network that makes feature maps of the same shapes as those of a larger one."""

import math

import torch
from torch import nn

from .backbone import resize
from .blocks import conv_layers


class GuidedReLU(torch.autograd.Function):
    """ReLU that passes no negative gradient on, either (Springenberg et al. 2015)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient.relu() * (x > 0)


class Cloner(nn.Module):
    """Feature maps of given shapes, each made of the one before by convolutions of few channels.

    Parameters
    ----------
    n_channels : int
        Channels of the images.
    size : tuple (h, w)
        Size to which images are resized first.
    shapes : sequence of tuple (c, h, w)
        Shapes of the maps, in any order; the network makes large ones first.
    width : int
        Channels between two maps.
    """

    def __init__(self, n_channels, size, shapes, width):
        super().__init__()
        self.size, self.levels = tuple(size), nn.ModuleList()
        self.order = sorted(range(len(shapes)), key=lambda k: -math.prod(shapes[k][1:]))
        n_in = n_channels
        for n_out, *target in (shapes[k] for k in self.order):
            level = nn.ModuleList()
            while not level or any(side >= 2 * wanted for side, wanted in zip(size, target)):
                stride = tuple(1 + (side >= 2 * wanted) for side, wanted in zip(size, target))
                level.append(nn.Sequential(*conv_layers(n_in, width, stride=stride)[:-1]))
                size, n_in = tuple(-(-side // step) for side, step in zip(size, stride)), width
            # The maps of a backbone may have any size: 9 pixels are halved to 5, and may have to be 4.
            resized = [nn.AdaptiveAvgPool2d(target)] if size != tuple(target) else []
            level.append(nn.Sequential(*resized, nn.Conv2d(width, n_out, 3, padding=1)))
            self.levels.append(level)
            size, n_in = tuple(target), n_out

    def forward(self, x, activate=torch.relu):
        """List of maps (n, c, h, w) of images (n, c, h, w); `activate` is the function between convolutions.

        A map itself is linear, because the maps of a backbone may be negative.
        """
        x, maps = resize(x, self.size), {}
        for k, (*blocks, head) in zip(self.order, self.levels):
            for block in blocks:
                x = activate(block(x))
            maps[k] = head(x)
            x = activate(maps[k])
        return [maps[k] for k in range(len(maps))]
