"""Deep SVDD: normal images are encoded into a small sphere, and anomalies fall far from its centre."""

from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from .._inference import collect
from ..base import Judgement, TrainedDetector
from ..networks.hypersphere import Hypersphere, boundary_of, centre_of, soft_boundary
from ..training import Reconstruction, Training

#: Share of the epochs before the soft boundary has a radius: 10 of 150 in the public code.
WARM_UP = 10 / 150


class SphereTraining(Training):
    """Draw the codes of images to the fixed centre, or inside a radius around it.

    Parameters
    ----------
    network : Hypersphere
    nu : float or None
        Share of the images that may lie outside the radius; None draws all images to the centre.
    """

    moves = {"optimizer": ["encoder"]}
    losses = ("train_loss",)
    validates = True

    def __init__(self, network, *, nu, **options):
        self.nu = nu
        super().__init__(network, **options)

    def step(self, network, x):
        distance = network.distance(x)
        self.move("optimizer", train_loss=self.loss(network, distance))
        if self.nu is not None and len(self.history) > WARM_UP * self.max_epochs:
            network.boundary.copy_(boundary_of(distance, self.nu))

    def validate(self, network, x):
        return self.loss(network, network.distance(x))

    def loss(self, network, distance):
        if self.nu is None:
            return distance.mean()
        return soft_boundary(distance, network.boundary, self.nu)


class DeepSVDD(TrainedDetector):
    """Deep support vector data description (Deep SVDD).

    An encoder is first trained as part of an autoencoder. The mean code of the normal images becomes the
    centre of a sphere and stays where it is. Then the encoder alone is trained to map normal images close to
    the centre. The score is the squared distance of an image's code from the centre. There is no map.

    Parameters
    ----------
    objective : {"one_class", "soft_boundary"}, default="one_class"
        Loss of the second training. "one_class": the mean squared distance from the centre, for training
        images that are all normal. "soft_boundary": the squared radius of the sphere, and the distances of
        images outside, so that a share `nu` of the images may lie outside.
    nu : float, default=0.1
        Upper bound of the share of training images outside the soft boundary, in (0, 1]. "one_class" does not
        use it.
    latent_size : int, default=32
        Length of a code.
    width : int, default=8
        Number of channels of the network's first level. The second level has 2 times as many channels as the
        first, all further levels have 4 times as many.
    n_levels : int, default=None
        Number of levels, each of which halves both sides of its input. None halves each side to about 4
        pixels, which takes 4 levels at 64 x 64.
    weight_decay : float, default=5e-7
        Weight of the squared weights of the network in both losses, lambda in the paper.
    pretraining_epochs : int, default=None
        Number of passes over the training images to train the autoencoder; 0 leaves it out, and the encoder
        starts from random weights. None makes {pretraining_epochs steps} training steps.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AutoEncoder : Detector that judges images by an autoencoder's reconstructions, and has maps.
    FeatureGaussian : Distance from the mean of features that are not trained, by their covariance.

    Notes
    -----
    :Family: one-class
    :Trained on: normal images
    :Score: squared distance of the code from the centre; of the soft boundary, minus the squared radius
    :Map: none
    :Departures: layers and channels follow from the size of the images; the paper has two or three levels;
        the learning rate stays constant, where the public code divides it by 10 after 50 of 150 epochs; a
        coordinate of the centre that is exactly 0 is moved, too; the final radius is that of all training
        images, not of the last batch; {pretraining_epochs steps} and {max_epochs steps} training steps,
        about 4,500 of each in the public code on MNIST
    :Variants:
        * soft-boundary Deep SVDD: ``DeepSVDD(objective="soft_boundary")``
        * Deep SVDD with the network for CIFAR-10: ``DeepSVDD(width=32, latent_size=128, n_levels=3)``

    The component of `score_components` is "distance", the squared distance from the centre.

    An encoder that returned the centre for every image would have the lowest loss. It cannot: no layer has a
    bias or a bounded activation, batch normalisation has no offset, the centre is not trained, and each of
    its coordinates is at least 0.1 from 0.

    ``network_.boundary``, the squared radius, is 0 for "one_class". For "soft_boundary" it is the smallest
    one outside which at most a share `nu` of the training images lies. Images outside have scores above 0.

    References
    ----------
    .. [1] Ruff, L., Vandermeulen, R., Görnitz, N., Deecke, L., Siddiqui, S. A., Binder, A., Müller, E.,
       Kloft, M. (2018). "Deep one-class classification". ICML.
       `PMLR 80:4393-4402 <https://proceedings.mlr.press/v80/ruff18a.html>`_

    Examples
    --------
    >>> from skanomaly import DeepSVDD
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = DeepSVDD(pretraining_epochs=1, max_epochs=1, random_state=0).fit(X)
    >>> detector.network_.centre.shape
    torch.Size([32])
    """

    _steps = {"pretraining_epochs": 250, "max_epochs": 250}

    _parameter_constraints = {
        "objective": [StrOptions({"one_class", "soft_boundary"})],
        "nu": [Interval(Real, 0, 1, closed="right")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "pretraining_epochs": [Interval(Integral, 0, None, closed="left"), None],
    }

    def __init__(
        self,
        *,
        objective="one_class",
        nu=0.1,
        latent_size=32,
        width=8,
        n_levels=None,
        weight_decay=5e-7,
        pretraining_epochs=None,
        max_epochs=None,
        batch_size=64,
        lr=1e-4,
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
        self.objective = objective
        self.nu = nu
        self.weight_decay = weight_decay
        self.pretraining_epochs = pretraining_epochs
        self._assign_shared(locals())

    def _build(self, image_shape):
        return Hypersphere(image_shape, **self._network_size())

    def _train(self, run, network, images):
        optimizer = partial(torch.optim.Adam, weight_decay=self.weight_decay)
        if self.pretraining_epochs != 0:
            options = {"epochs": "pretraining_epochs", "optimizer": optimizer}
            run("pretraining", Reconstruction, network, images, **options)
        codes = collect(network.encoder, network, images, self.device_)
        network.centre.copy_(centre_of(torch.from_numpy(codes)))
        nu = self.nu if self.objective == "soft_boundary" else None
        run("sphere", SphereTraining, network, images, nu=nu, optimizer=optimizer)

    def _measure(self, network, images):
        if self.objective == "soft_boundary":
            distance = collect(network.distance, network, images, self.device_)
            # inverted_cdf, not a value between two distances: at most a share nu is outside, exactly.
            network.boundary.fill_(float(np.quantile(distance, 1 - self.nu, method="inverted_cdf")))

    def _judge(self, network, x):
        distance = network.distance(x)
        return Judgement(distance - network.boundary, None, {"distance": distance})
