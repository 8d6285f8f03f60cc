"""ALI: a generator and an encoder learn to make the same pairs of image and code."""

from numbers import Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn
from torch.nn.functional import softplus

from .._losses import absolute_error
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ConvDiscriminator, ConvGenerator
from ..training import Training, discriminator_loss


class PairEncoder(ConvDiscriminator):
    """Images to codes. A `stochastic` encoder draws codes in training, and gives their means in eval mode."""

    def __init__(self, image_shape, latent_size, *, stochastic, width, n_levels):
        super().__init__(image_shape, width=width, n_levels=n_levels)
        self.stochastic, self.latent_size = stochastic, latent_size
        self.value = nn.Linear(self.value.in_features, latent_size * (2 if stochastic else 1))

    def forward(self, x):
        mean, *log_variance = self.value(self.features(x)).split(self.latent_size, dim=1)
        if not (self.training and log_variance):
            return mean
        # Clamped, because the exponential of an unbounded log-variance can overflow.
        return mean + torch.exp(0.5 * log_variance[0].clamp(-10, 10)) * torch.randn_like(mean)


class PairDiscriminator(nn.Module):
    """Pairs (image, code) to logits (n,). `features` (n, n_features) are the input of the last layer."""

    def __init__(self, image_shape, latent_size, *, width, n_levels):
        super().__init__()
        self.image = ConvDiscriminator(image_shape, width=width, n_levels=n_levels)
        n_features, n_hidden = self.image.value.in_features, 16 * width
        # Only its features are used: its last layer would be saved without ever being trained.
        self.image.value = nn.Identity()
        self.code = nn.Sequential(nn.Linear(latent_size, n_hidden), nn.LeakyReLU(0.2))
        self.pair = nn.Sequential(nn.Linear(n_features + n_hidden, n_hidden), nn.LeakyReLU(0.2))
        self.value = nn.Linear(n_hidden, 1)

    def features(self, x, z):
        return self.pair(torch.cat([self.image.features(x), self.code(z)], dim=1))

    def forward(self, x, z):
        return self.value(self.features(x, z))[:, 0]


class ALINetwork(nn.Module):
    """Parts `generator`, `encoder` and `discriminator`."""

    def __init__(self, image_shape, latent_size, *, stochastic, width, n_levels):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.generator = ConvGenerator(image_shape, latent_size, **size)
        self.encoder = PairEncoder(image_shape, latent_size, stochastic=stochastic, **size)
        self.discriminator = PairDiscriminator(image_shape, latent_size, **size)
        self.latent_size = latent_size

    def forward(self, x):
        return self.generator(self.encoder(x))


class PairAdversarial(Training):
    """Each batch trains the discriminator of pairs, then generator and encoder against it.

    Parameters
    ----------
    network : ALINetwork
    """

    moves = {"optimizer": ["generator", "encoder"], "optimizer_discriminator": ["discriminator"]}
    losses = "discriminator_loss", "generator_loss"
    betas = 0.5, 0.999

    def step(self, network, x):
        discriminator = network.discriminator
        z = torch.randn(len(x), network.latent_size, device=x.device)
        y, code = network.generator(z), network.encoder(x)
        loss = discriminator_loss(discriminator(x, code.detach()), discriminator(y.detach(), z))
        self.move("optimizer_discriminator", discriminator_loss=loss)
        # Generator and encoder want each pair to get the other label: the same loss with the pairs exchanged.
        loss = discriminator_loss(discriminator(y, z), discriminator(x, code))
        self.move("optimizer", generator_loss=loss)


class ALI(TrainedDetector):
    """Adversarially learned inference (ALI, BiGAN).

    A generator makes images from codes, and an encoder makes codes from images. A discriminator sees pairs of
    image and code and learns which of the two networks made a pair; the networks learn to deceive it. The
    score has two terms: how far an image differs from the one generated from its code, and how far the
    discriminator tells the two apart. The map is the absolute difference between image and generated image in
    each pixel.

    Parameters
    ----------
    latent_size : int, default=64
        Length of a code, the latent vector of an image.
    width : int, default=16
        Channels of the first level. The next levels have 2, 4 and 8 times as many.
    n_levels : int, default=None
        Number of times each side is halved. None halves sides to about 4 pixels (4 times at 64 x 64).
    stochastic : bool, default=True
        Whether the encoder draws codes from a distribution (ALI) or computes a fixed code (BiGAN).
    discrimination : {"feature_matching", "cross_entropy"}, default="feature_matching"
        Second term of the score. "feature_matching": absolute difference between the discriminator's features
        of the image and of the reconstruction, each paired with the code. "cross_entropy": -log D, where D is
        the probability that the pair of reconstruction and code is an encoder's.
    discrimination_weight : float, default=0.1
        Weight w of the second term, in [0, 1]; the first term has 1 - w.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FAnoGAN : Detector whose encoder is trained after the GAN, to reconstruct images.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: (1 - w) times the summed absolute differences of x and G(E(x)), plus w times the
        discriminator's term
    :Map: absolute difference of each pixel
    :Departures: networks are those of DCGAN; images are judged with the last weights, where the public code
        for BiGAN [3]_ averages weights over training; codes are the encoder's means when images are judged
    :Variants:
        * ALI: ``ALI()``
        * BiGAN: ``ALI(stochastic=False)``
        * BiGAN, scored by cross-entropy: ``ALI(stochastic=False, discrimination="cross_entropy")``

    No loss compares a reconstruction G(E(x)) with x. The reconstruction is therefore similar to x, but no
    copy of it.

    `score_components` gives "residual_sum", "feature_matching" and "cross_entropy".

    References
    ----------
    .. [1] Dumoulin, V., Belghazi, I., Poole, B., Mastropietro, O., Lamb, A., Arjovsky, M., Courville, A.
       (2017). "Adversarially learned inference". ICLR. `arXiv:1606.00704 <https://arxiv.org/abs/1606.00704>`_
    .. [2] Donahue, J., Krähenbühl, P., Darrell, T. (2017). "Adversarial feature learning". ICLR.
       `arXiv:1605.09782 <https://arxiv.org/abs/1605.09782>`_
    .. [3] Zenati, H., Foo, C. S., Lecouat, B., Manek, G., Chandrasekhar, V. R. (2018). "Efficient GAN-based
       anomaly detection". `arXiv:1802.06222 <https://arxiv.org/abs/1802.06222>`_

    Examples
    --------
    >>> from skanomaly import ALI
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = ALI(width=2, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    _parameter_constraints = {
        "stochastic": ["boolean"],
        "discrimination": [StrOptions({"feature_matching", "cross_entropy"})],
        "discrimination_weight": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        *,
        latent_size=64,
        width=16,
        n_levels=None,
        stochastic=True,
        discrimination="feature_matching",
        discrimination_weight=0.1,
        max_epochs=None,
        batch_size=32,
        lr=2e-4,
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
        self.stochastic = stochastic
        self.discrimination = discrimination
        self.discrimination_weight = discrimination_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return ALINetwork(image_shape, stochastic=self.stochastic, **self._network_size())

    def _train(self, run, network, images):
        run("pairs", PairAdversarial, network, images)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        discriminator, z = network.discriminator, network.encoder(x)
        y = network.generator(z)
        features = discriminator.features(y, z)
        # Sums, as in the public code for BiGAN: means would change the balance that the weight sets.
        components = {
            "residual_sum": (x - y).abs().sum((1, 2, 3)),
            "feature_matching": (discriminator.features(x, z) - features).abs().sum(1),
            "cross_entropy": softplus(-discriminator.value(features)[:, 0]),
        }
        weight = self.discrimination_weight
        score = (1 - weight) * components["residual_sum"] + weight * components[self.discrimination]
        return Judgement(score, absolute_error(y, x), components)
