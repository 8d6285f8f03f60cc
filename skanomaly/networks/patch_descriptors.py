"""Patch descriptors: networks that describe a patch, or the patches around all pixels of an image."""

import torch
from torch import nn
from torch.nn import functional as F

#: Layers of the network of each patch size: kernel and width of a convolution, or None for pooling by 2 x 2.
#: Widths are multiples of the first one. The last convolution gives the descriptor.
LAYERS = {
    17: ((6, 1), (5, 2), (5, 2), (4, 1)),
    33: ((5, 1), None, (5, 2), None, (2, 2), (4, 1)),
    65: ((5, 1), None, (5, 1), None, (5, 2), None, (4, 2), (1, 1)),
}
#: Slope of leaky ReLUs where they are negative.
SLOPE = 5e-3


class PatchNetwork(nn.Module):
    """Descriptor of patches (Bergmann et al. 2020): without padding, a patch becomes one vector.

    Parameters
    ----------
    n_channels : int
    patch_size : {17, 33, 65}
        Receptive field, p in the paper.
    width : int
        Channels of the first convolution, 128 in the paper.
    n_features : int
        Length of a descriptor, 128 in the paper.
    """

    def __init__(self, n_channels, patch_size, width, n_features):
        super().__init__()
        self.patch_size, layers = patch_size, LAYERS[patch_size]
        self.pools, self.convs, n_in = [], nn.ModuleList(), n_channels
        for k, layer in enumerate(layers):
            if layer is None:
                # After so many convolutions.
                self.pools.append(len(self.convs))
                continue
            kernel, times = layer
            n_out = n_features if k == len(layers) - 1 else times * width
            self.convs.append(nn.Conv2d(n_in, n_out, kernel))
            n_in = n_out

    @property
    def stride(self):
        """Pixels between neighbouring descriptors of `forward`."""
        return 2 ** len(self.pools)

    def forward(self, x, *, dense=False):
        """Descriptors (n, n_features, h, w) of the patches of images, without padding.

        Parameters
        ----------
        x : (n, c, height, width) tensor
            Images of the patch size at least. One of that size has one descriptor.
        dense : bool, default=False
            Whether every patch is described, or every `stride`-th in each direction.
        """
        dilation, size = 1, x.shape[2:]
        for k, conv in enumerate(self.convs):
            x = F.leaky_relu(x, SLOPE) if k else x
            if k in self.pools and dense:
                x, dilation = _maximum(x, dilation), 2 * dilation
            elif k in self.pools:
                x = F.max_pool2d(x, 2)
            # Dilated by the strides that are left out: a weight meets the pixel that it meets in a patch.
            x = F.conv2d(x, conv.weight, conv.bias, dilation=dilation)
        # Pooling leaves out the last row and column of a patch of 33 or 65: one more would seem to fit.
        step = 1 if dense else self.stride
        height, width = ((side - self.patch_size) // step + 1 for side in size)
        return x[..., :height, :width]

    def at_each_pixel(self, x):
        """Descriptors (n, n_features, h, w) of the patches around all pixels of images padded with zeros."""
        return self(padded(x, self.patch_size), dense=True)


def _maximum(x, step):
    """Maxima of 2 x 2 values that are `step` pixels apart, at each pixel."""
    x = torch.maximum(x[..., :-step, :], x[..., step:, :])
    return torch.maximum(x[..., :-step], x[..., step:])


def padded(x, patch_size):
    """Images with a border of zeros in which there is a patch around each pixel."""
    return F.pad(x, [patch_size // 2] * 4)
