"""Networks that say of each pixel whether something foreign is there: images to logits (n, 1, H, W)."""

import torch
from torch import nn
from torch.nn import functional as F

from .backbone import ImageNetBackbone, sides
from .blocks import choose_strides, crop_to, pad_to, padded_size
from .unet import DenoisingUNet

#: Stages of EfficientNet-Lite0 that the decoder takes: those before the next halving of the sides.
STAGES = 1, 2, 4, 6
#: Side of the square with as many pixels as an image that goes into EfficientNet-Lite0.
INPUT_SIZE = 128
#: Channels of those stages, shallowest first.
STAGE_CHANNELS = 24, 40, 112, 320


class PreActivated(nn.Module):
    """Residual block of pre-activated convolutions (He et al. 2016): norm, ReLU, convolution, twice."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.norm = nn.BatchNorm2d(n_in)
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
        )
        self.stride = stride if isinstance(stride, tuple) else (stride, stride)
        same = n_in == n_out and self.stride == (1, 1)
        self.shortcut = None if same else nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x):
        y = F.relu(self.norm(x))
        # As in wide residual networks: where sides change, the shortcut branches off after the activation.
        if self.shortcut is not None:
            # Not a convolution with a stride: torch's derivative of one of 8 channels overruns its memory.
            x = self.shortcut(y[..., :: self.stride[0], :: self.stride[1]])
        return x + self.body(y)


class WideResidualNetwork(nn.Module):
    """Wide residual encoder and decoder without skips between them, the network of FPI and PII.

    The encoder has a convolution and up to five stages of two blocks, of which all but the first halve the
    sides, until these have about 16 pixels. The decoder doubles them again, with a block before each
    doubling.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    width : int
        Channels of the first stage, 64 in the public code; the next have 2, 4, 4 and 4 times as many.
    """

    def __init__(self, image_shape, *, width):
        super().__init__()
        # The paper's coarsest maps have 16 pixels a side. From 4, boxes of a few pixels are not learned.
        self.strides = choose_strides(image_shape)[2:][-4:] or [(1, 1)]
        self.size, self.image_size = padded_size(image_shape, self.strides), image_shape[1:]
        first = max(1, width // 4)
        widths = [width * factor for factor in (1, 2, 4, 4, 4)[: len(self.strides) + 1]]
        self.stem = nn.Conv2d(image_shape[0], first, 3, padding=1, bias=False)
        stages = zip([first, *widths], widths, [1, *self.strides])
        self.down = nn.ModuleList(
            nn.Sequential(PreActivated(a, b, stride), PreActivated(b, b)) for a, b, stride in stages
        )
        outs = [*widths[-3::-1], first]
        self.up = nn.ModuleList(PreActivated(a, b) for a, b in zip([widths[-1], *outs], outs))
        self.value = nn.Sequential(nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, 1, 3, padding=1))

    def forward(self, x):
        x = self.stem(pad_to(x, self.size))
        for stage in self.down:
            x = stage(x)
        for block, stride in zip(self.up, self.strides[::-1]):
            x = F.interpolate(block(x), scale_factor=stride, mode="nearest")
        return crop_to(self.value(x), self.image_size)


class FeatureSegmenter(nn.Module):
    """Decoder on frozen features of EfficientNet-Lite0 with the weights from ImageNet.

    The decoder starts from the deepest features and adds the others, one level after the other, and at last
    the image. Only the decoder is trained and saved.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    width : int
        Channels of the decoder's last levels; deeper ones have up to 8 times as many.
    """

    def __init__(self, image_shape, *, width):
        super().__init__()
        self.image_size = image_shape[1:]
        self.backbone = ImageNetBackbone(STAGES, sides(image_shape, INPUT_SIZE))
        widths = width, 2 * width, 4 * width, 8 * width
        self.enter = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(STAGE_CHANNELS, widths))
        self.join = nn.ModuleList(PreActivated(a + b, a) for a, b in zip(widths, widths[1:]))
        self.last = nn.Sequential(
            PreActivated(width + image_shape[0], width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, x):
        maps = [enter(m) for enter, m in zip(self.enter, self.backbone(x))]
        y = maps.pop()
        for join in reversed(self.join):
            skip = maps.pop()
            y = join(torch.cat([skip, _enlarged(y, skip.shape[2:])], 1))
        return self.last(torch.cat([_enlarged(y, self.image_size), x], 1))


def _enlarged(x, size):
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class SegmentingUNet(DenoisingUNet):
    """U-Net with group normalisation: statistics of images with anomalies would not fit other images.

    A 1 x 1 convolution of the image is added: the normalisation of few pixels forgets how bright they are.
    """

    def __init__(self, image_shape, *, width):
        super().__init__(image_shape, width=width)
        self.direct = nn.Conv2d(image_shape[0], 1, 1)

    def forward(self, x):
        # The mean of the channels that a denoising network has is one more linear layer.
        return super().forward(x).mean(1, keepdim=True) + self.direct(x)


#: Networks by name: functions (image_shape, *, width) -> module.
NETWORKS = {"wide_residual": WideResidualNetwork, "unet": SegmentingUNet, "efficientnet": FeatureSegmenter}
