"""Networks of BYOL: an encoder that is followed by perceptrons, and a slow copy of it, the target."""

import copy

from torch import nn

from .autoencoder import ConvEncoder

#: Hidden and output width of projector and predictor; 4096 and 256 in BYOL, for ImageNet.
PROJECTION = 512, 128


def feature_encoder(image_shape, hidden_size, **size):
    """Encoder that gives the hidden layer before its code, (n, hidden_size)."""
    # The size of the code is a placeholder: the layer that makes it is replaced.
    encoder = ConvEncoder(image_shape, 1, hidden_size=hidden_size, **size)
    encoder.code[-1] = nn.Identity()
    return encoder


def perceptron(n_in):
    """Projector or predictor: two dense layers."""
    n_hidden, n_out = PROJECTION
    return nn.Sequential(
        nn.Linear(n_in, n_hidden), nn.BatchNorm1d(n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_out)
    )


def slow_copy(encoder, projector):
    """Target: a copy of both, one after the other, that no optimiser moves."""
    return copy.deepcopy(nn.Sequential(encoder, projector)).requires_grad_(False)


class BYOLNetwork(nn.Module):
    """Parts `ssl_encoder`, `projector`, `predictor` and `target`; images to features (n, hidden_size)."""

    def __init__(self, image_shape, *, hidden_size, width, n_levels):
        super().__init__()
        self.ssl_encoder = feature_encoder(image_shape, hidden_size, width=width, n_levels=n_levels)
        self.projector, self.predictor = perceptron(hidden_size), perceptron(PROJECTION[1])
        self.target = slow_copy(self.ssl_encoder, self.projector)

    def forward(self, x):
        return self.ssl_encoder(x)
