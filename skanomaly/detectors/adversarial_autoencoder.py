"""AdversarialAutoEncoder: an autoencoder with an opponent, which judges its codes or its images."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .._losses import gradient_penalty, squared_error
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ConvDiscriminator
from ..networks.autoencoder import ConvAutoEncoder
from ..training import Training, discriminator_loss, generator_loss

#: Default weight of each opponent's judgement, chosen on validation images of chests.
ADVERSARIAL_WEIGHTS = {"latent": 0.01, "image": 0.001}


class AdversarialAutoEncoderNetwork(ConvAutoEncoder):
    """Parts `encoder`, `decoder` and `opponent`, which is a critic of codes or a discriminator of images."""

    def __init__(self, image_shape, latent_size, *, adversary, hidden_size, width, n_levels):
        size = {"width": width, "n_levels": n_levels}
        super().__init__(image_shape, latent_size, hidden_size=hidden_size, **size)
        if adversary == "image":
            self.opponent = ConvDiscriminator(image_shape, **size)
        else:
            # No BatchNorm: the penalty is on the gradient by each code alone, and batches would mix codes.
            layers = [nn.Linear(latent_size, 50), nn.LeakyReLU(0.2), nn.Linear(50, 50), nn.LeakyReLU(0.2)]
            self.opponent = nn.Sequential(*layers, nn.Linear(50, 1), nn.Flatten(0))


def reconstruction_loss(network, x, constraint_weight):
    """Reconstructions, codes and loss of images; the loss compares pixels and, if constrained, codes."""
    z = network.encoder(x)
    y = network.decoder(z)
    loss = squared_error(y, x).mean()
    # With a weight of 0 the second pass would still change the running statistics of BatchNorm.
    if constraint_weight:
        loss = loss + constraint_weight * (z - network.encoder(y)).square().mean()
    return y, z, loss


class LatentAdversarial(Training):
    """A WGAN-GP critic pulls the codes towards a normal distribution.

    The idea is from Makhzani et al. 2015, and the critic from Baur et al. 2021. Each batch trains the critic
    `n_critic` times, then encoder and decoder by the reconstruction loss plus the critic's judgement.

    Parameters
    ----------
    network : AdversarialAutoEncoderNetwork
    adversarial_weight, penalty_weight, constraint_weight : float
    n_critic : int
    """

    moves = {"optimizer": ["encoder", "decoder"], "optimizer_opponent": ["opponent"]}
    losses = "critic_loss", "encoder_loss", "train_loss"
    betas = 0.5, 0.9

    def __init__(
        self, network, *, adversarial_weight, penalty_weight, constraint_weight, n_critic, **options
    ):
        self.adversarial_weight, self.penalty_weight = adversarial_weight, penalty_weight
        self.constraint_weight, self.n_critic = constraint_weight, n_critic
        super().__init__(network, **options)

    def step(self, network, x):
        critic = network.opponent
        _, z, loss = reconstruction_loss(network, x, self.constraint_weight)
        codes = z.detach()  # only the critic learns from these
        for _ in range(self.n_critic):
            prior = torch.randn_like(codes)
            gap = critic(codes).mean() - critic(prior).mean()
            penalty = gradient_penalty(critic, prior, codes)
            self.move("optimizer_opponent", critic_loss=gap + self.penalty_weight * penalty)
        adversarial = -critic(z).mean()
        self.record(encoder_loss=adversarial)
        # One loss, not a second Adam for the encoder: Adam ignores the scale of a loss, and so the weight.
        self.move("optimizer", train_loss=loss + self.adversarial_weight * adversarial)


class ImageAdversarial(Training):
    """A discriminator judges reconstructions beside real images.

    Parameters
    ----------
    network : AdversarialAutoEncoderNetwork
    adversarial_weight, constraint_weight : float
    """

    moves = {"optimizer": ["encoder", "decoder"], "optimizer_opponent": ["opponent"]}
    losses = "discriminator_loss", "train_loss", "generator_loss"
    betas = 0.5, 0.9

    def __init__(self, network, *, adversarial_weight, constraint_weight, **options):
        self.adversarial_weight, self.constraint_weight = adversarial_weight, constraint_weight
        super().__init__(network, **options)

    def step(self, network, x):
        discriminator = network.opponent
        y, _, loss = reconstruction_loss(network, x, self.constraint_weight)
        told_apart = discriminator_loss(discriminator(x), discriminator(y.detach()))
        self.move("optimizer_opponent", discriminator_loss=told_apart)
        # Judged once more: the discriminator has just moved.
        adversarial = generator_loss(discriminator(y))
        self.record(generator_loss=adversarial)
        self.move("optimizer", train_loss=loss + self.adversarial_weight * adversarial)


class AdversarialAutoEncoder(TrainedDetector):
    """Autoencoder with an adversary, which judges its codes (AAE) or its images (AdvAE).

    The autoencoder learns to reconstruct normal images. At the same time an opponent learns to tell codes
    from draws of a normal distribution, or reconstructions from real images, and the autoencoder learns to
    deceive it. The score is the squared error averaged over pixels; the map is the squared error of each
    pixel.

    Parameters
    ----------
    adversary : {"latent", "image"}, default="latent"
        Input of the opponent: codes, or images.
    latent_size : int, default=16
        Length of a code, the latent vector of an image.
    hidden_size : int, default=2048
        Width of the dense layers on either side of the code.
    width : int, default=16
        Channels of the first level. The next levels have 2 and 4 times as many.
    n_levels : int, default=None
        Number of times each side is halved. None halves sides to about 4 pixels (4 times at 64 x 64).
    adversarial_weight : float, default=None
        Weight of the opponent's judgement beside the mean squared error, in the loss of encoder and decoder.
        A judgement of codes has no gradient in the decoder. None is 0.01 for "latent" and 0.001 for "image".
    penalty_weight : float, default=10.0
        Weight of the gradient penalty of the critic, for "latent".
    n_critic : int, default=5
        Number of critic steps for each batch, for "latent".
    constrained : bool, default=False
        Whether a reconstruction is also trained to have the same code as its image (constrained AAE).
    constraint_weight : float, default=1.0
        Weight of that constraint in the loss, rho in the paper.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AutoEncoder : The same network without an opponent.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: mean squared error of the pixels
    :Map: squared error of each pixel
    :Departures: encoder and decoder are those of AutoEncoder; the critic of codes is that of Baur et al.
        [2]_, with layers of 50, 50 and 1 units, but takes `n_critic` steps a batch instead of 20; its
        gradient penalty is taken between codes and draws, where the public code takes it beyond the codes;
        its judgement is part of one loss, where the public code has a step of its own for the encoder, by
        Adam, which ignores the weight of a loss
    :Variants:
        * AAE: ``AdversarialAutoEncoder()``
        * constrained AAE: ``AdversarialAutoEncoder(constrained=True)``
        * AdvAE: ``AdversarialAutoEncoder(adversary="image")``

    AdvAE, whose reconstructions are judged by a discriminator, is one of the methods with which the paper on
    f-AnoGAN compares its own.

    With ``constrained=True`` the running statistics of the encoder's batch normalisation are those of images
    and reconstructions, about half each, although images alone are judged with them.

    References
    ----------
    .. [1] Makhzani, A., Shlens, J., Jaitly, N., Goodfellow, I., Frey, B. (2015). "Adversarial
       autoencoders". `arXiv:1511.05644 <https://arxiv.org/abs/1511.05644>`_
    .. [2] Baur, C., Denner, S., Wiestler, B., Navab, N., Albarqouni, S. (2021). "Autoencoders for
       unsupervised anomaly segmentation in brain MR images: A comparative study". Medical Image
       Analysis 69. `arXiv:2004.03271 <https://arxiv.org/abs/2004.03271>`_
    .. [3] Chen, X., Konukoglu, E. (2018). "Unsupervised detection of lesions in brain MRI using
       constrained adversarial auto-encoders". MIDL. `arXiv:1806.04972 <https://arxiv.org/abs/1806.04972>`_

    Examples
    --------
    >>> from skanomaly import AdversarialAutoEncoder
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = AdversarialAutoEncoder(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    _parameter_constraints = {
        "adversary": [StrOptions(set(ADVERSARIAL_WEIGHTS))],
        "adversarial_weight": [Interval(Real, 0, None, closed="left"), None],
        "n_critic": [Interval(Integral, 1, None, closed="left")],
        "constrained": ["boolean"],
    }

    def __init__(
        self,
        *,
        adversary="latent",
        latent_size=16,
        hidden_size=2048,
        width=16,
        n_levels=None,
        adversarial_weight=None,
        penalty_weight=10.0,
        n_critic=5,
        constrained=False,
        constraint_weight=1.0,
        max_epochs=None,
        batch_size=64,
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
        self.adversary = adversary
        self.adversarial_weight = adversarial_weight
        self.penalty_weight = penalty_weight
        self.n_critic = n_critic
        self.constrained = constrained
        self.constraint_weight = constraint_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        return AdversarialAutoEncoderNetwork(image_shape, adversary=self.adversary, **self._network_size())

    def _train(self, run, network, images):
        constraint_weight = self.constraint_weight if self.constrained else 0.0
        weight = self.adversarial_weight
        weight = ADVERSARIAL_WEIGHTS[self.adversary] if weight is None else weight
        options = {"adversarial_weight": weight, "constraint_weight": constraint_weight}
        training = ImageAdversarial
        if self.adversary == "latent":
            training = LatentAdversarial
            options |= {"penalty_weight": self.penalty_weight, "n_critic": self.n_critic}
        run("adversarial", training, network, images, **options)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        return Judgement.of_map(squared_error(network(x), x))
