"""Convolutional autoencoder of DDAD and MedIAnomaly, and variants with memory, variances or random codes."""

import math

from torch import nn

from .blocks import (
    choose_strides,
    conv_layers,
    crop_to,
    kernel_size,
    last_size,
    level_widths,
    pad_to,
    padded_size,
)
from .memory import MemoryMatrix

#: Bounds of log-variances, which the published methods do not have. Without bounds AE-U drives log-variances
#: to minus infinity where it reconstructs a background perfectly, and exp(-log_variance) overflows.
LOG_VARIANCES = -10.0, 10.0


def _resize(layer, n_in, n_out, stride):
    """Convolution that divides the sides by `stride`, or transposed convolution that multiplies them."""
    return layer(n_in, n_out, kernel_size(stride), stride=stride, padding=1, bias=False)


def _spatial(n_in, hidden_size, n_out):
    """Two 1 x 1 convolutions, which treat each place by itself."""
    # No bias in the last one either, although no BatchNorm follows it: MedIAnomaly's has none.
    return nn.Sequential(*conv_layers(n_in, hidden_size, 1), nn.Conv2d(hidden_size, n_out, 1, bias=False))


class ConvEncoder(nn.Module):
    """Images to codes: one strided convolution a level, then a bottleneck.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    latent_size : int
    hidden_size : int
        Units of the dense layer before a code (n, latent_size), or channels before a spatial code.
    spatial : bool, default=False
        Whether the code keeps height and width, (n, latent_size, h, w). It is then computed by two 1 x 1
        convolutions instead of two dense layers.
    width : int
        Channels of the first level. The second has 2 times as many, all others 4 times.
    n_levels : int or None
        Number of levels, as in `choose_strides`.
    """

    def __init__(self, image_shape, latent_size, *, hidden_size, width, n_levels=None, spatial=False):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        self.size = padded_size(image_shape, strides)
        widths = [image_shape[0], *level_widths(width, len(strides), 4)]
        down = []
        for a, b, stride in zip(widths, widths[1:], strides):
            down += [_resize(nn.Conv2d, a, b, stride), nn.BatchNorm2d(b), nn.ReLU()]
        self.down = nn.Sequential(*down)
        n_flat = widths[-1] * math.prod(last_size(image_shape, strides))
        self.code = (
            _spatial(widths[-1], hidden_size, latent_size)
            if spatial
            else nn.Sequential(
                nn.Flatten(),
                nn.Linear(n_flat, hidden_size),
                nn.BatchNorm1d(hidden_size),
                nn.ReLU(),
                nn.Linear(hidden_size, latent_size),
            )
        )

    def forward(self, x):
        return self.code(self.down(pad_to(x, self.size)))


class ConvDecoder(nn.Module):
    """Codes to images: the layers of `ConvEncoder` in reverse. No activation bounds the images."""

    def __init__(self, image_shape, latent_size, *, hidden_size, width, n_levels=None, spatial=False):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        widths = level_widths(width, len(strides), 4)[::-1]
        base = widths[0], *last_size(image_shape, strides)
        self.image_size = image_shape[1:]
        self.features = (
            _spatial(latent_size, hidden_size, widths[0])
            if spatial
            else nn.Sequential(
                nn.Linear(latent_size, hidden_size),
                nn.BatchNorm1d(hidden_size),
                nn.ReLU(),
                nn.Linear(hidden_size, math.prod(base)),
                nn.Unflatten(1, base),
            )
        )
        up = []
        for a, b, stride in zip(widths, widths[1:], strides[:0:-1]):
            up += [_resize(nn.ConvTranspose2d, a, b, stride), nn.BatchNorm2d(b), nn.ReLU()]
        # The last layer has no bias either, as in DDAD's code, although no BatchNorm follows it.
        last = _resize(nn.ConvTranspose2d, widths[-1], image_shape[0], strides[0])
        self.up = nn.Sequential(*up, last)

    def forward(self, z):
        return crop_to(self.up(self.features(z)), self.image_size)


class ConvAutoEncoder(nn.Module):
    """Autoencoder with the parts `encoder` and `decoder`."""

    def __init__(self, image_shape, latent_size, **options):
        super().__init__()
        self.encoder = ConvEncoder(image_shape, latent_size, **options)
        self.decoder = ConvDecoder(image_shape, latent_size, **options)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class UncertainAutoEncoder(ConvAutoEncoder):
    """Autoencoder of AE-U: its `decoder` predicts a mean and a log-variance of each pixel."""

    def __init__(self, image_shape, latent_size, **options):
        super().__init__(image_shape, latent_size, **options)
        n_channels, *sides = image_shape
        self.decoder = ConvDecoder((2 * n_channels, *sides), latent_size, **options)

    def predict(self, x):
        """Means and log-variances, both (n, c, h, w). Log-variances are clamped to `LOG_VARIANCES`."""
        mean, log_variance = self.decoder(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def forward(self, x):
        """Reconstructions, which are the means."""
        return self.predict(x)[0]


class MemoryAutoEncoder(nn.Module):
    """Autoencoder of MemAE: a `memory` between `encoder` and `decoder`."""

    def __init__(self, image_shape, latent_size, *, n_slots, threshold, cosine, **size):
        super().__init__()
        self.encoder = ConvEncoder(image_shape, latent_size, **size)
        self.memory = MemoryMatrix(n_slots, latent_size, threshold=threshold, cosine=cosine)
        self.decoder = ConvDecoder(image_shape, latent_size, **size)

    def recall(self, x):
        """Reconstructions, and the weights of the memory's items (n, ..., n_slots)."""
        z, weights = self.memory(self.encoder(x))
        return self.decoder(z), weights

    def forward(self, x):
        """Reconstructions, without the weights."""
        return self.recall(x)[0]


class VariationalAutoEncoder(nn.Module):
    """Autoencoder of a VAE: its `encoder` predicts the mean and the log-variance of a code."""

    def __init__(self, image_shape, latent_size, **options):
        super().__init__()
        self.encoder = ConvEncoder(image_shape, 2 * latent_size, **options)
        self.decoder = ConvDecoder(image_shape, latent_size, **options)

    def posterior(self, x):
        """Means and log-variances of codes. Log-variances are clamped to `LOG_VARIANCES`."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def forward(self, x):
        """Reconstructions from the mean codes."""
        return self.decoder(self.posterior(x)[0])
