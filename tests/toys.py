"""Toy detectors: the least that a detector of each kind is."""

from numbers import Integral

import torch
from sklearn.utils._param_validation import Interval
from torch import nn

from skanomaly._inference import collect
from skanomaly._losses import absolute_error, squared_error
from skanomaly.base import BaseDetector, Judgement, TrainedDetector
from skanomaly.training import Reconstruction


class LinearNetwork(nn.Module):
    def __init__(self, image_shape, latent_size):
        super().__init__()
        n_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(n_pixels, latent_size))
        self.decoder = nn.Sequential(nn.Linear(latent_size, n_pixels), nn.Unflatten(1, image_shape))

    def forward(self, x):
        return self.decoder(self.encoder(x))


class LinearAutoEncoder(TrainedDetector):
    """Nearly PCA.

    Parameters
    ----------
    latent_size : int, default=2
        Numbers in a code.
    max_epochs : int, default=1
        Passes over the images.
    {parameters}

    Attributes
    ----------
    {attributes}

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: mean absolute error
    :Map: absolute error of each pixel
    :Departures: no paper
    """

    def __init__(
        self,
        *,
        latent_size=2,
        max_epochs=1,
        batch_size=8,
        lr=1e-3,
        validation_fraction=0.0,
        checkpoint_dir=None,
        callbacks=None,
        device="auto",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        verbose=0,
        random_state=None,
    ):
        self.latent_size = latent_size
        self._assign_shared(locals())

    def _build(self, image_shape):
        return LinearNetwork(image_shape, self.latent_size)

    def _train(self, run, network, images):
        run("reconstruction", Reconstruction, network, images, error=absolute_error)

    def _judge(self, network, x):
        maps = absolute_error(network(x), x)
        return Judgement(maps.mean((1, 2)), maps)


class MaplessAutoEncoder(LinearAutoEncoder):
    __doc__ = LinearAutoEncoder.__doc__

    def _judge(self, network, x):
        return super()._judge(network, x)._replace(map=None)


class NearestImages(BaseDetector):
    """Distance to the nearest training images.

    Parameters
    ----------
    n_neighbors : int, default=2
        Nearest images that count.
    {parameters}

    Attributes
    ----------
    n_images_ : int
        Images that are remembered.
    {attributes}

    Notes
    -----
    :Family: neighbours
    :Trained on: normal images
    :Score: mean over the nearest images of the mean squared difference
    :Map: squared difference from the mean of the nearest images
    :Departures: no paper
    """

    _parameter_constraints = {"n_neighbors": [Interval(Integral, 1, None, closed="left")]}

    def __init__(
        self,
        *,
        n_neighbors=2,
        device="auto",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self.n_neighbors = n_neighbors
        self._assign_shared(locals())

    def _prepare(self, images):
        self.n_images_ = len(images)

    def _build(self, image_shape):
        network = nn.Module()
        network.register_buffer("bank", torch.zeros(self.n_images_, *image_shape))
        return network

    def _measure(self, network, images):
        network.bank.copy_(torch.from_numpy(collect(nn.Identity(), network, images, self.device_)))

    def _judge(self, network, x):
        distances = (x[:, None] - network.bank).square().flatten(2).mean(2)
        nearest = distances.topk(min(self.n_neighbors, self.n_images_), largest=False)
        maps = squared_error(x, network.bank[nearest.indices].mean(1))
        return Judgement(nearest.values.mean(1), maps)
