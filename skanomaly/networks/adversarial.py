"""Generators and their opponents: residual ones of WGAN-GP and f-AnoGAN, convolutional ones of DCGAN."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import choose_strides, crop_to, last_size, pad_to, padded_size

#: LayerNorm over (C, H, W) with one scale and offset per channel, as in the reference code.
ChannelLayerNorm = partial(nn.GroupNorm, 1)


def _smear(weight, stride):
    """Sum of a 3 x 3 kernel's shifts along the sides that halve, 4 x 4 for both.

    With it `avg_pool(conv3(x))` is one convolution of stride 2, and `conv3(upsample(x))` one
    transposed convolution: the same function for 4/9 of the work.
    """
    bottom, right = (step - 1 for step in stride)
    return sum(
        F.pad(weight, (i, right - i, j, bottom - j)) for i in range(right + 1) for j in range(bottom + 1)
    )


class DownConv(nn.Conv2d):
    """3 x 3 convolution followed by mean pooling by `factor`, (2, 2) but for narrow images."""

    def __init__(self, n_in, n_out, factor):
        super().__init__(n_in, n_out, 3, padding=1)
        self.factor = factor

    def forward(self, x):
        weight = _smear(self.weight, self.factor) / math.prod(self.factor)
        return F.conv2d(x, weight, self.bias, stride=self.factor, padding=1)


class UpConv(nn.Conv2d):
    """Nearest upsampling by `factor` followed by a 3 x 3 convolution without bias."""

    def __init__(self, n_in, n_out, factor):
        super().__init__(n_in, n_out, 3, padding=1, bias=False)
        self.factor = factor

    def forward(self, x):
        # A transposed convolution slides the mirrored kernel.
        weight = _smear(self.weight, self.factor).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, weight, stride=self.factor, padding=1)


class DownBlock(nn.Module):
    """Pre-activation residual block that halves the image; its first convolution keeps the width."""

    def __init__(self, n_in, n_out, factor, norm):
        super().__init__()
        self.factor = factor
        self.norm1, self.conv1 = norm(n_in), nn.Conv2d(n_in, n_in, 3, padding=1, bias=False)
        self.norm2, self.conv2 = norm(n_in), DownConv(n_in, n_out, factor)
        self.shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x):
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        return h + self.shortcut(F.avg_pool2d(x, self.factor))


class UpBlock(nn.Module):
    """Pre-activation residual block that doubles the image."""

    def __init__(self, n_in, n_out, factor, norm):
        super().__init__()
        self.factor = tuple(map(float, factor))
        self.norm1, self.conv1 = norm(n_in), UpConv(n_in, n_out, factor)
        self.norm2, self.conv2 = norm(n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x):
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        # A 1 x 1 convolution commutes with nearest upsampling, and is cheaper before it.
        return h + F.interpolate(self.shortcut(x), scale_factor=self.factor)


def _widths(width, n_levels):
    """Channels after the stem and after each level: width x 1, 2, 4, 8, 8, ..."""
    return [width * min(8, 2**level) for level in range(n_levels + 1)]


class ResidualTrunk(nn.Module):
    """Images (n, C, H, W) to flat features (n, n_features): stem and one DownBlock per level."""

    def __init__(self, image_shape, *, width, n_levels=None, norm):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        self.size = padded_size(image_shape, strides)
        widths = _widths(width, len(strides))
        self.blocks = nn.Sequential(
            nn.Conv2d(image_shape[0], width, 3, padding=1),
            *(DownBlock(a, b, stride, norm) for a, b, stride in zip(widths, widths[1:], strides)),
            nn.Flatten(),
        )
        self.n_features = widths[-1] * math.prod(last_size(image_shape, strides))

    def forward(self, x):
        return self.blocks(pad_to(x, self.size))


class ResidualCritic(nn.Module):
    """WGAN-GP critic: `features` (n, n_features) before the last linear layer, value (n,)."""

    def __init__(self, image_shape, *, width, n_levels=None):
        super().__init__()
        self.features = ResidualTrunk(image_shape, width=width, n_levels=n_levels, norm=ChannelLayerNorm)
        self.value = nn.Linear(self.features.n_features, 1)

    def forward(self, x):
        return self.value(self.features(x))[:, 0]


class ResidualEncoder(nn.Module):
    """The critic's trunk with BatchNorm, to codes (n, latent_size).

    Parameters
    ----------
    output : {"tanh", "clip", "linear"}
        What bounds a code: bound * tanh, a hard clip to [-bound, bound], or nothing.
    """

    def __init__(self, image_shape, latent_size, *, width, n_levels=None, output, bound):
        super().__init__()
        self.features = ResidualTrunk(image_shape, width=width, n_levels=n_levels, norm=nn.BatchNorm2d)
        self.code = nn.Linear(self.features.n_features, latent_size)
        self.output, self.bound = output, bound

    def forward(self, x):
        z = self.code(self.features(x))
        if self.output == "tanh":
            return self.bound * torch.tanh(z)
        return z.clamp(-self.bound, self.bound) if self.output == "clip" else z


class ResidualGenerator(nn.Module):
    """Codes (n, latent_size) to images (n, C, H, W) in [-1, 1]."""

    def __init__(self, image_shape, latent_size, *, width, n_levels=None):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        widths = _widths(width, len(strides))[::-1]
        base = widths[0], *last_size(image_shape, strides)
        self.image_size = image_shape[1:]
        self.blocks = nn.Sequential(
            nn.Linear(latent_size, math.prod(base)),
            nn.Unflatten(1, base),
            *(
                UpBlock(a, b, stride, nn.BatchNorm2d)
                for a, b, stride in zip(widths, widths[1:], strides[::-1])
            ),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, image_shape[0], 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z):
        return crop_to(self.blocks(z), self.image_size)


def _kernel(stride):
    """Of a (transposed) convolution with padding 1 that changes each side by its stride."""
    return tuple(step + 2 for step in stride)


class ConvGenerator(nn.Module):
    """DCGAN's generator: codes (n, latent_size) to images (n, C, H, W) in [-1, 1]."""

    def __init__(self, image_shape, latent_size, *, width, n_levels=None):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        widths = _widths(width, len(strides) - 1)[::-1]
        base = widths[0], *last_size(image_shape, strides)
        self.image_size = image_shape[1:]
        blocks = [nn.Linear(latent_size, math.prod(base), bias=False), nn.Unflatten(1, base)]
        for n_in, n_out, stride in zip(widths, [*widths[1:], image_shape[0]], strides[::-1]):
            blocks += [nn.BatchNorm2d(n_in), nn.ReLU()]
            blocks += [nn.ConvTranspose2d(n_in, n_out, _kernel(stride), stride, padding=1)]
        self.blocks = nn.Sequential(*blocks, nn.Tanh()).apply(_init_dcgan)

    def forward(self, z):
        return crop_to(self.blocks(z), self.image_size)


class ConvDiscriminator(nn.Module):
    """DCGAN's discriminator: `features` (n, n_features) before the last linear layer, logit (n,)."""

    def __init__(self, image_shape, *, width, n_levels=None):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        self.size = padded_size(image_shape, strides)
        widths = [image_shape[0], *_widths(width, len(strides) - 1)]
        blocks = []
        for level, (n_in, n_out, stride) in enumerate(zip(widths, widths[1:], strides)):
            blocks += [nn.Conv2d(n_in, n_out, _kernel(stride), stride, padding=1)]
            blocks += [nn.BatchNorm2d(n_out)] if level else []
            blocks += [nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*blocks, nn.Flatten())
        self.value = nn.Linear(widths[-1] * math.prod(last_size(image_shape, strides)), 1)
        self.apply(_init_dcgan)

    def features(self, x):
        return self.blocks(pad_to(x, self.size))

    def forward(self, x):
        return self.value(self.features(x))[:, 0]


def _init_dcgan(module):
    """Normal weights of standard deviation 0.02; scales around 1."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
