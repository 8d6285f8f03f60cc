"""VQ-VAE-2: a quantiser, which replaces features by the nearest entry of a codebook, and its network."""

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import crop_to, kernel_size, pad_to, padded_size

#: Constant that keeps the size of an unused code from being 0 (Laplace smoothing), as in the public code.
SMOOTHING = 1e-5
#: Places whose distances to all codes are held in memory at a time.
CHUNK = 2**15


class Quantiser(nn.Module):
    """Codebook that is learned as an exponential moving average of the features that chose each code.

    Parameters
    ----------
    n_codes : int
        Number of codes.
    size : int
        Length of a code, and of a feature.
    decay : float, default=0.99
        Share of the last average that is kept in a step, in [0, 1).
    least_use : float, default=0.5
        Number of features a step, on average, below which a code is replaced by one of the features; 0
        replaces none.
    """

    def __init__(self, n_codes, size, *, decay=0.99, least_use=0.5):
        super().__init__()
        self.register_buffer("codes", torch.randn(n_codes, size))
        # 0, unlike in the public code: nothing stays of the random codes, which may be far from all features.
        self.register_buffer("counts", torch.zeros(n_codes))
        self.register_buffer("sums", torch.zeros(n_codes, size))
        self.decay, self.least_use = decay, least_use

    def nearest(self, z):
        """Numbers (n, h, w) of the codes that are nearest to features (n, size, h, w)."""
        places = z.movedim(1, -1).flatten(0, 2)
        # |z - code|^2 without |z|^2, which is the same for all codes.
        offset = self.codes.square().sum(1)
        parts = (torch.addmm(offset, part, self.codes.T, alpha=-2) for part in places.split(CHUNK))
        return torch.cat([part.argmin(1) for part in parts]).view(len(z), *z.shape[2:])

    def forward(self, z):
        """Quantised features (n, size, h, w), their squared differences from `z`, and the codes' numbers.

        The gradient of the quantised features goes straight through to `z`. That of the differences draws
        `z` to its codes, not the codes to `z`.
        """
        with torch.no_grad():
            index = self.nearest(z)
            chosen = self.codes[index].movedim(-1, 1)
        return z + (chosen - z).detach(), (chosen - z).square(), index

    @torch.no_grad()
    def update(self, z, index):
        """Move codes to the mean of the features (n, size, h, w) that chose them; replace unused codes."""
        n_codes, places = len(self.codes), z.movedim(1, -1).flatten(0, 2)
        index = index.flatten()
        self.counts.lerp_(torch.bincount(index, minlength=n_codes).to(z.dtype), 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, index, places), 1 - self.decay)
        unused = self.counts < self.least_use
        drawn = torch.randint(len(places), (n_codes,), device=z.device)
        # A replaced code counts as chosen once, so that it is not replaced again at once.
        self.counts.copy_(torch.where(unused, 1.0, self.counts))
        self.sums.copy_(torch.where(unused[:, None], places[drawn], self.sums))
        total = self.counts.sum()
        smooth = (self.counts + SMOOTHING) / (total + n_codes * SMOOTHING) * total
        self.codes.copy_(self.sums / smooth[:, None])


class ResidualBlock(nn.Module):
    """ReLU, 3 x 3 convolution to `hidden_size` channels, ReLU, 1 x 1 convolution; added to the input."""

    def __init__(self, n_channels, hidden_size):
        super().__init__()
        inner = nn.Conv2d(n_channels, hidden_size, 3, padding=1)
        self.layers = nn.Sequential(nn.ReLU(), inner, nn.ReLU(), nn.Conv2d(hidden_size, n_channels, 1))

    def forward(self, x):
        return x + self.layers(x)


def _blocks(width, hidden_size, n_blocks):
    return [*(ResidualBlock(2 * width, hidden_size) for _ in range(n_blocks)), nn.ReLU()]


def _up(n_in, n_out, stride):
    return nn.ConvTranspose2d(n_in, n_out, kernel_size(stride), stride, padding=1)


def _encoder(n_in, strides, *, width, **blocks):
    """Module from `n_in` to 2 `width` channels: strided convolutions, a 3 x 3 one, and residual blocks."""
    widths = [n_in, width, 2 * width][: len(strides) + 1]
    layers = []
    for a, b, stride in zip(widths, widths[1:], strides):
        layers += [nn.Conv2d(a, b, kernel_size(stride), stride, padding=1), nn.ReLU()]
    last = nn.Conv2d(widths[-1], 2 * width, 3, padding=1)
    return nn.Sequential(*layers, last, *_blocks(width, **blocks))


def _decoder(n_in, n_out, strides, *, width, **blocks):
    """Module from `n_in` to `n_out` channels: the layers of `_encoder` in reverse."""
    layers = [nn.Conv2d(n_in, 2 * width, 3, padding=1), *_blocks(width, **blocks)]
    widths = [2 * width, width][: len(strides)] + [n_out]
    for a, b, stride in zip(widths, widths[1:], strides[::-1]):
        layers += [_up(a, b, stride), nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # no ReLU at the end


class TwoLevelAutoEncoder(nn.Module):
    """Network of VQ-VAE-2: codes at an eighth of the sides of an image and, given these, at a quarter.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
        Shape of the images. A side is halved up to three times while it has two pixels or more, so that rows
        of 1 x d keep their height.
    latent_size : int
        Length of a code.
    n_codes : int
        Number of codes in each of the two codebooks.
    width : int
        Channels after the first of the halvings; all others have 2 times as many.
    hidden_size : int
        Channels inside a residual block.
    n_blocks : int, default=2
        Number of residual blocks in each encoder and decoder.
    decay, least_use : float
        Parameters of `Quantiser`.
    """

    def __init__(self, image_shape, latent_size, *, n_codes, width, hidden_size, n_blocks=2, **codebook):
        super().__init__()
        n_channels, *sides = image_shape
        halvings = [min(3, side.bit_length() - 1) for side in sides]
        strides = [tuple(1 + (level < n) for n in halvings) for level in range(3)]
        self.size, self.image_size = padded_size(image_shape, strides), tuple(sides)
        inner = {"width": width, "hidden_size": hidden_size, "n_blocks": n_blocks}
        bottom, top = strides[:2], strides[2:]
        self.bottom_encoder = _encoder(n_channels, bottom, **inner)
        self.top_encoder = _encoder(2 * width, top, **inner)
        self.top_features = nn.Conv2d(2 * width, latent_size, 1)
        self.top_codes = Quantiser(n_codes, latent_size, **codebook)
        self.top_decoder = _decoder(latent_size, latent_size, top, **inner)
        self.bottom_features = nn.Conv2d(latent_size + 2 * width, latent_size, 1)
        self.bottom_codes = Quantiser(n_codes, latent_size, **codebook)
        self.enlarge = _up(latent_size, latent_size, top[0])
        self.decoder = _decoder(2 * latent_size, n_channels, bottom, **inner)

    def quantise(self, x):
        """Reconstructions, and for top and bottom the features, their squared differences and their codes."""
        bottom = self.bottom_encoder(pad_to(x, self.size))
        z = self.top_features(self.top_encoder(bottom))
        top_quantised, *found = self.top_codes(z)
        levels = [(z, *found)]
        z = self.bottom_features(torch.cat([self.top_decoder(top_quantised), bottom], 1))
        bottom_quantised, *found = self.bottom_codes(z)
        levels.append((z, *found))
        y = self.decoder(torch.cat([self.enlarge(top_quantised), bottom_quantised], 1))
        return crop_to(y, self.image_size), levels

    def distance_map(self, levels):
        """Mean squared difference of features from their codes (n, h, w), the sum of both levels."""
        # Nearest, the default, repeats each place over the pixels that it stands for.
        maps = (F.interpolate(difference.mean(1, keepdim=True), self.size) for _, difference, _ in levels)
        return crop_to(sum(maps), self.image_size)[:, 0]

    def forward(self, x):
        """Reconstructions, without the codes."""
        return self.quantise(x)[0]
