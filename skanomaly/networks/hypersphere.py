"""Network of Deep SVDD: an encoder that cannot ignore its images, a decoder to pre-train it, and a sphere."""

import math

import torch
from torch import nn

from .blocks import choose_strides, crop_to, last_size, level_widths, pad_to, padded_size

#: Least distance of a coordinate of the centre from 0, as in the public code.
LEAST_COORDINATE = 0.1


def _convolution(n_in, n_out):
    # No bias: with one, an encoder could return the centre whatever the image is.
    return nn.Conv2d(n_in, n_out, 5, padding=2, bias=False)


def _activation(n_channels):
    """BatchNorm without scale and offset, which would be a bias, then a ReLU that has no upper bound."""
    # The public code's eps.
    return [nn.BatchNorm2d(n_channels, eps=1e-4, affine=False), nn.LeakyReLU()]


class PooledEncoder(nn.Module):
    """Images to codes (n, latent_size), without any bias: a 5 x 5 convolution and max pooling for each level.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    latent_size : int
    widths : sequence of int
        Channels of each level.
    strides : sequence of (int, int)
        Factors by which each level divides height and width.
    """

    def __init__(self, image_shape, latent_size, widths, strides):
        super().__init__()
        self.size = padded_size(image_shape, strides)
        layers = []
        for a, b, stride in zip([image_shape[0], *widths], widths, strides):
            layers += [_convolution(a, b), *_activation(b), nn.MaxPool2d(stride)]
        self.down = nn.Sequential(*layers, nn.Flatten())
        n_flat = widths[-1] * math.prod(last_size(image_shape, strides))
        self.code = nn.Linear(n_flat, latent_size, bias=False)

    def forward(self, x):
        return self.code(self.down(pad_to(x, self.size)))


class PooledDecoder(nn.Module):
    """Codes to images in [0, 1]: the levels of `PooledEncoder` in reverse, with repetition for pooling."""

    def __init__(self, image_shape, latent_size, widths, strides):
        super().__init__()
        self.image_size = image_shape[1:]
        base = widths[-1], *last_size(image_shape, strides)
        layers = [nn.Linear(latent_size, math.prod(base), bias=False), nn.Unflatten(1, base), nn.LeakyReLU()]
        widths = [widths[0], *widths]
        for level in range(len(strides), 0, -1):
            # Before the sides grow, not afterwards as in the public code: a quarter of the work.
            layers += [_convolution(widths[level], widths[level - 1]), *_activation(widths[level - 1])]
            layers += [nn.Upsample(scale_factor=tuple(map(float, strides[level - 1])))]
        # The sigmoid bounds images, not codes: it is of no use to a collapse.
        self.up = nn.Sequential(*layers, _convolution(widths[0], image_shape[0]), nn.Sigmoid())

    def forward(self, z):
        return crop_to(self.up(z), self.image_size)


class Hypersphere(nn.Module):
    """Parts `encoder` and `decoder`, and the sphere around codes of normal images.

    Its `centre` and `boundary`, the squared radius, are buffers. No optimiser moves them: a centre that gives
    way comes to meet the codes, and the sphere collapses.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    latent_size : int
    width : int
        Channels of the first level. The second has 2 times as many, all others 4 times.
    n_levels : int or None
        Number of levels, as in `choose_strides`.
    """

    def __init__(self, image_shape, latent_size, *, width, n_levels=None):
        super().__init__()
        strides = choose_strides(image_shape, n_levels)
        size = image_shape, latent_size, level_widths(width, len(strides), 4), strides
        self.encoder, self.decoder = PooledEncoder(*size), PooledDecoder(*size)
        self.register_buffer("centre", torch.zeros(latent_size))
        self.register_buffer("boundary", torch.zeros(()))

    def forward(self, x):
        """Reconstructions, which only pre-training compares with the images."""
        return self.decoder(self.encoder(x))

    def distance(self, x):
        """Squared distances (n,) of the codes of images from the centre."""
        return (self.encoder(x) - self.centre).square().sum(1)


def centre_of(codes):
    """Mean (d,) of codes (n, d), of which coordinates near 0 are moved to the nearer of ±`LEAST_COORDINATE`.

    Weights of 0, which give every image the code 0, would otherwise fit such a coordinate perfectly.
    """
    centre = codes.mean(0)
    # The public code leaves a coordinate of exactly 0 where it is.
    least = torch.full_like(centre, LEAST_COORDINATE).copysign(centre)
    return torch.where(centre.abs() < LEAST_COORDINATE, least, centre)


def soft_boundary(distance, boundary, nu):
    """Loss R^2 + mean(max(0, d - R^2)) / nu, of squared distances d (n,) and the squared radius R^2."""
    return boundary + (distance - boundary).clamp(min=0).mean() / nu


def boundary_of(distance, nu):
    """Squared radius outside which a share `nu` of images lies, by their squared distances (n,)."""
    # A quantile of distances, as in the public code: one of squared distances is interpolated otherwise.
    return torch.quantile(distance.detach().sqrt(), 1 - nu).square()
