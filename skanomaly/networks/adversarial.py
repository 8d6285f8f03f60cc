"""Networks of GANs: f-AnoGAN's generator, critic and encoder, and DCGAN's generator and discriminator."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import choose_strides, crop_to, kernel_size, last_size, level_widths, pad_to, padded_size

#: Layer normalisation over (C, H, W) with one scale and offset per channel, as in the reference code;
#: nn.LayerNorm has a scale and an offset for each value.
ChannelLayerNorm = partial(nn.GroupNorm, 1)


def _smear(weight, stride):
    """Kernel of a 3 x 3 convolution joined with a resampling by `stride`: 4 x 4 if the stride is (2, 2).

    The kernel is the sum of shifted copies of the 3 x 3 kernel. With it, a convolution followed by mean
    pooling is one convolution of stride 2, and nearest upsampling followed by a convolution is one transposed
    convolution: the same results for 4/9 of the work.
    """
    bottom, right = (step - 1 for step in stride)
    return sum(
        F.pad(weight, (i, right - i, j, bottom - j)) for i in range(right + 1) for j in range(bottom + 1)
    )


class DownConv(nn.Conv2d):
    """3 x 3 convolution followed by mean pooling by `factor`, the level's stride."""

    def __init__(self, n_in, n_out, factor):
        super().__init__(n_in, n_out, 3, padding=1)
        self.factor = factor

    def forward(self, x):
        weight = _smear(self.weight, self.factor) / math.prod(self.factor)
        return F.conv2d(x, weight, self.bias, stride=self.factor, padding=1)


class UpConv(nn.Conv2d):
    """Nearest upsampling by `factor`, the level's stride, followed by a 3 x 3 convolution without bias."""

    def __init__(self, n_in, n_out, factor):
        super().__init__(n_in, n_out, 3, padding=1, bias=False)
        self.factor = factor

    def forward(self, x):
        # conv_transpose2d mirrors its kernel and expects its input channels first; this line undoes both.
        weight = _smear(self.weight, self.factor).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, weight, stride=self.factor, padding=1)


class DownBlock(nn.Module):
    """Pre-activation residual block that divides the sides by `factor`; `conv1` keeps the channels."""

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
    """Pre-activation residual block that multiplies the sides by `factor`."""

    def __init__(self, n_in, n_out, factor, norm):
        super().__init__()
        self.factor = factor
        self.norm1, self.conv1 = norm(n_in), UpConv(n_in, n_out, factor)
        self.norm2, self.conv2 = norm(n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x):
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        # The shortcut's 1 x 1 convolution comes before the upsampling: the same result for less work.
        return h + F.interpolate(self.shortcut(x), scale_factor=self.factor)


class ResidualTrunk(nn.Module):
    """Images (n, C, H, W) to flat features (n, n_features): one convolution, then a DownBlock per level."""

    def __init__(self, image_shape, *, width, n_levels=None, norm):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        self.size = padded_size(image_shape, strides)
        widths = level_widths(width, len(strides) + 1, 8)
        self.blocks = nn.Sequential(
            nn.Conv2d(image_shape[0], width, 3, padding=1),
            *(DownBlock(a, b, stride, norm) for a, b, stride in zip(widths, widths[1:], strides)),
            nn.Flatten(),
        )
        self.n_features = widths[-1] * math.prod(last_size(image_shape, strides))

    def forward(self, x):
        return self.blocks(pad_to(x, self.size))


class ResidualCritic(nn.Module):
    """Critic of WGAN-GP: images to values (n,), by a linear layer over `features` (n, n_features)."""

    def __init__(self, image_shape, *, width, n_levels=None):
        super().__init__()
        # Not BatchNorm: the penalised gradient of an image would depend on the other images of the batch.
        self.features = ResidualTrunk(image_shape, width=width, n_levels=n_levels, norm=ChannelLayerNorm)
        self.value = nn.Linear(self.features.n_features, 1)

    def forward(self, x):
        return self.value(self.features(x))[:, 0]


class ResidualEncoder(nn.Module):
    """Images to codes (n, latent_size): the layers of the critic, but with BatchNorm.

    Parameters
    ----------
    output : {"tanh", "clip", "linear"}
        Bound of a code: bound * tanh, a clip to [-bound, bound], or none.
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
        strides = choose_strides(image_shape, n_levels)[::-1]
        widths = level_widths(width, len(strides) + 1, 8)[::-1]
        base = widths[0], *last_size(image_shape, strides)
        self.image_size = image_shape[1:]
        self.blocks = nn.Sequential(
            nn.Linear(latent_size, math.prod(base)),
            nn.Unflatten(1, base),
            *(UpBlock(a, b, stride, nn.BatchNorm2d) for a, b, stride in zip(widths, widths[1:], strides)),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, image_shape[0], 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z):
        return crop_to(self.blocks(z), self.image_size)


class ConvGenerator(nn.Module):
    """DCGAN's generator: codes (n, latent_size) to images (n, C, H, W) in [-1, 1]."""

    def __init__(self, image_shape, latent_size, *, width, n_levels=None):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        widths = level_widths(width, len(strides), 8)[::-1]
        base = widths[0], *last_size(image_shape, strides)
        self.image_size = image_shape[1:]
        blocks = [nn.Linear(latent_size, math.prod(base), bias=False), nn.Unflatten(1, base)]
        for n_in, n_out, stride in zip(widths, [*widths[1:], image_shape[0]], strides[::-1]):
            blocks += [nn.BatchNorm2d(n_in), nn.ReLU()]
            blocks += [nn.ConvTranspose2d(n_in, n_out, kernel_size(stride), stride, padding=1)]
        self.blocks = nn.Sequential(*blocks, nn.Tanh()).apply(_init_dcgan)

    def forward(self, z):
        return crop_to(self.blocks(z), self.image_size)


class ConvDiscriminator(nn.Module):
    """DCGAN's discriminator: images to logits (n,), by a linear layer over `features` (n, n_features)."""

    def __init__(self, image_shape, *, width, n_levels=None):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        self.size = padded_size(image_shape, strides)
        widths = [image_shape[0], *level_widths(width, len(strides), 8)]
        blocks = []
        for level, (n_in, n_out, stride) in enumerate(zip(widths, widths[1:], strides)):
            blocks += [nn.Conv2d(n_in, n_out, kernel_size(stride), stride, padding=1)]
            # No BatchNorm in the first level, as in DCGAN, whose training oscillated with it.
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
    """DCGAN's random weights: N(0, 0.02^2), and N(1, 0.02^2) for the scales of BatchNorm."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
