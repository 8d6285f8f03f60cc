"""U-Net, in the sizes of P-Net."""

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import choose_strides, conv_layers, crop_to, pad_to, padded_size

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
