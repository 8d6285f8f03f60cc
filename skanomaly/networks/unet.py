"""U-Nets: that of P-Net, which labels layers, and that of the denoising autoencoder."""

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import choose_strides, conv_layers, crop_to, last_size, pad_to, padded_size

#: Most times an image is halved.
N_LEVELS = 4


def _block(n_in, n_out):
    return nn.Sequential(*conv_layers(n_in, n_out), *conv_layers(n_out, n_out))


class UNet(nn.Module):
    """Values (logits) of each class in each pixel, (n, n_classes, H, W).

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    n_classes, width : int
        Number of classes, and channels of the first level. The next levels have 2, 4, 8 and 8 times as many.
        The paper's width is 64.
    """

    def __init__(self, image_shape, n_classes, *, width):
        super().__init__()
        self.strides = choose_strides(image_shape)[-N_LEVELS:]
        self.size, self.image_size = padded_size(image_shape, self.strides), image_shape[1:]
        widths = [width * min(8, 2**level) for level in range(len(self.strides) + 1)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([image_shape[0], *widths], widths))
        ups = list(zip(widths[:0:-1], widths[-2::-1]))  # what comes up, and the skip
        outs = [*(skip // 2 for _, skip in ups[:-1]), width]
        ins = [widths[-1], *outs]
        self.up = nn.ModuleList(_block(a + skip, b) for a, (_, skip), b in zip(ins, ups, outs))
        self.value = nn.Conv2d(width, n_classes, 1)

    def forward(self, x):
        x = pad_to(x, self.size)
        skips = [self.down[0](x)]
        for block, stride in zip(self.down[1:], self.strides):
            skips.append(block(F.max_pool2d(skips[-1], stride)))
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=True)
            x = block(torch.cat([x, skip], dim=1))
        return crop_to(self.value(x), self.image_size)


class StandardConv(nn.Conv2d):
    """Convolution whose weights of each output channel have mean 0 and deviation 1 (Qiao et al. 2019)."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        # The constant is the public code's, for a channel whose weights are all the same.
        weight = weight / (weight.flatten(1).std(1) + 1e-5)[:, None, None, None]
        return self._conv_forward(x, weight, self.bias)


class Swish(nn.SiLU):
    """x sigmoid(x), which is 0 to rounding for large negative x."""

    def forward(self, x):
        # Standardised weights give values below -88, for which the result is subnormal: on a CPU
        # training would take twice as long.
        return super().forward(x.clamp(min=-40))


def n_groups(n_channels):
    """Number of groups of a GroupNorm: the middle divisor of its channels, as in the public code."""
    divisors = [n for n in range(1, n_channels + 1) if n_channels % n == 0]
    return divisors[len(divisors) // 2]


class _UpBlock(nn.Module):
    """Features from below, enlarged and joined with the skip, then two convolutions."""

    def __init__(self, n_in, n_out, stride, block):
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(n_in, n_out, stride, stride)
        self.block = block(2 * n_out, n_out)

    def forward(self, x, skip):
        return self.block(torch.cat([self.enlarge(x), skip], dim=1))


class DenoisingUNet(nn.Module):
    """Images (n, C, H, W) to images, by the U-Net of Kascenas et al. 2022.

    It has group normalisation, so that images are judged by themselves, whatever noise was in training.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    width : int
        Channels of the first level; each further level has twice as many. The public code's width is 64.
    """

    def __init__(self, image_shape, *, width):
        super().__init__()
        self.strides = choose_strides(image_shape)[-N_LEVELS:]
        self.size, self.image_size = padded_size(image_shape, self.strides), image_shape[1:]
        # A side of one pixel has no neighbour to be reflected.
        padding = "reflect" if min(last_size(image_shape, self.strides)) > 1 else "replicate"

        def block(n_in, n_out):
            layers = []
            for n in n_in, n_out:
                layers += [StandardConv(n, n_out, 3, padding=1, padding_mode=padding), Swish()]
                layers += [nn.GroupNorm(n_groups(n_out), n_out)]
            return nn.Sequential(*layers)

        widths = [width * 2**level for level in range(len(self.strides) + 1)]
        self.down = nn.ModuleList(block(a, b) for a, b in zip([image_shape[0], *widths], widths))
        ups = zip(widths[:0:-1], widths[-2::-1], self.strides[::-1])
        self.up = nn.ModuleList(_UpBlock(a, b, stride, block) for a, b, stride in ups)
        self.value = nn.Conv2d(width, image_shape[0], 1)

    def forward(self, x):
        x = self.down[0](pad_to(x, self.size))
        skips = []
        for block, stride in zip(self.down[1:], self.strides):
            skips.append(x)
            x = block(F.avg_pool2d(x, stride))
        for block in self.up:
            x = block(x, skips.pop())
        return crop_to(self.value(x), self.image_size)
