"""The convolutional autoencoder of DDAD and MedIAnomaly."""

import math

from torch import nn

from .blocks import choose_strides, crop_to, last_size, pad_to, padded_size
from .memory import MemoryMatrix

#: Beyond these an exponential explodes.
LOG_VARIANCES = -10.0, 10.0


def _widths(width, n_levels):
    """Channels after each level: width x 1, 2, 4, 4, ..."""
    return [width * min(4, 2**level) for level in range(n_levels)]


def _resize(layer, n_in, n_out, stride):
    """A 4 x 4 (transposed) convolution of stride 2; 3 wide along a side that keeps its size."""
    kernel_size = tuple(2 + step for step in stride)
    return layer(n_in, n_out, kernel_size, stride=stride, padding=1, bias=False)


class ConvEncoder(nn.Module):
    """Images to codes: strided convolutions, then a bottleneck.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    latent_size : int
    hidden_size : int or None
        Width of the dense layer before the code (n, latent_size); None keeps the code spatial,
        (n, latent_size, h, w), by a 1 x 1 convolution.
    width, n_levels : int
    """

    def __init__(self, image_shape, latent_size, *, hidden_size, width, n_levels=None):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        self.size = padded_size(image_shape, strides)
        widths = [image_shape[0], *_widths(width, len(strides))]
        down = []
        for a, b, stride in zip(widths, widths[1:], strides):
            down += [_resize(nn.Conv2d, a, b, stride), nn.BatchNorm2d(b), nn.ReLU()]
        self.down = nn.Sequential(*down)
        n_flat = widths[-1] * math.prod(last_size(image_shape, strides))
        self.code = (
            nn.Conv2d(widths[-1], latent_size, 1)
            if hidden_size is None
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
    """The mirror of `ConvEncoder`; its output is linear."""

    def __init__(self, image_shape, latent_size, *, hidden_size, width, n_levels=None):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        widths = _widths(width, len(strides))[::-1]
        base = widths[0], *last_size(image_shape, strides)
        self.image_size = image_shape[1:]
        self.features = (
            nn.Conv2d(latent_size, widths[0], 1)
            if hidden_size is None
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
        last = _resize(nn.ConvTranspose2d, widths[-1], image_shape[0], strides[0])
        self.up = nn.Sequential(*up, last)

    def forward(self, z):
        return crop_to(self.up(self.features(z)), self.image_size)


class ConvAutoEncoder(nn.Module):
    """Parts `encoder` and `decoder`."""

    def __init__(self, image_shape, latent_size, **options):
        super().__init__()
        self.encoder = ConvEncoder(image_shape, latent_size, **options)
        self.decoder = ConvDecoder(image_shape, latent_size, **options)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class UncertainAutoEncoder(ConvAutoEncoder):
    """Parts `encoder` and `decoder`, which gives each pixel a mean and a log-variance."""

    def __init__(self, image_shape, latent_size, **options):
        super().__init__(image_shape, latent_size, **options)
        n_channels, *sides = image_shape
        self.decoder = ConvDecoder((2 * n_channels, *sides), latent_size, **options)

    def predict(self, x):
        """Means and log-variances (n, c, h, w), the latter within `LOG_VARIANCES`."""
        mean, log_variance = self.decoder(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def forward(self, x):
        """Means alone."""
        return self.predict(x)[0]


class MemoryAutoEncoder(nn.Module):
    """Parts `encoder`, `memory` and `decoder`."""

    def __init__(self, image_shape, latent_size, *, n_slots, threshold, cosine, **size):
        super().__init__()
        self.encoder = ConvEncoder(image_shape, latent_size, **size)
        self.memory = MemoryMatrix(n_slots, latent_size, threshold=threshold, cosine=cosine)
        self.decoder = ConvDecoder(image_shape, latent_size, **size)

    def recall(self, x):
        """Reconstructions, and the weights of the items (n, ..., n_slots)."""
        z, weights = self.memory(self.encoder(x))
        return self.decoder(z), weights

    def forward(self, x):
        """Reconstructions alone."""
        return self.recall(x)[0]


class VariationalAutoEncoder(nn.Module):
    """Parts `encoder`, to mean and log-variance of a code, and `decoder`."""

    def __init__(self, image_shape, latent_size, **options):
        super().__init__()
        self.encoder = ConvEncoder(image_shape, 2 * latent_size, **options)
        self.decoder = ConvDecoder(image_shape, latent_size, **options)

    def posterior(self, x):
        """Mean and log-variance of the codes, the latter within `LOG_VARIANCES`."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def forward(self, x):
        """Reconstructions from the mean codes."""
        return self.decoder(self.posterior(x)[0])
