"""f-AnoGAN: a generator that learns normal images only, and an encoder that inverts the generator."""

import warnings
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._inference import collect
from .._losses import absolute_error, feature_error, squared_error
from .._random import draw_seed, seeded
from .._search import search_images
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ResidualCritic, ResidualEncoder, ResidualGenerator
from ..training import Training, Wasserstein

#: Largest number of training images in m_x, the mean of the critic; the paper takes as many test images.
N_CRITIC_MEAN = 32_000


class FAnoGANNetwork(nn.Module):
    """Network of `generator`, `critic`, `encoder` and the buffer `critic_mean`, m_x in the paper."""

    def __init__(self, image_shape, latent_size, *, width, n_levels, prior, output, bound):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.generator = ResidualGenerator(image_shape, latent_size, **size)
        self.critic = ResidualCritic(image_shape, **size)
        self.encoder = ResidualEncoder(image_shape, latent_size, output=output, bound=bound, **size)
        self.register_buffer("critic_mean", torch.zeros(()))
        self.latent_size, self.prior = latent_size, prior

    def draw_codes(self, n):
        """Codes (n, latent_size) from the prior, drawn by torch's global random number generator."""
        z = torch.empty(n, self.latent_size, device=self.critic_mean.device)
        return z.normal_() if self.prior == "normal" else z.uniform_(-1, 1)

    def forward(self, x):
        return self.generator(self.encoder(x))

    def feature_error(self, x, y):
        return feature_error(self.critic.features(x), self.critic.features(y))


class Inversion(Training):
    """Train the encoder to invert the frozen generator.

    The loss of `kind` "izi" compares the pixels of an image and of its reconstruction, "izi_f" also compares
    their critic features. "ziz" compares a random code with the code of the image generated from it.

    Parameters
    ----------
    network : FAnoGANNetwork
    kind : {"izi_f", "izi", "ziz"}
    feature_weight : float
    """

    # No optimiser trains generator and critic, so they are in eval mode, as in scoring.
    moves = {"optimizer": ["encoder"]}
    losses = ("train_loss",)
    validates = True

    def __init__(self, network, *, kind, feature_weight, **options):
        self.kind, self.feature_weight = kind, feature_weight
        super().__init__(network, **options)

    def step(self, network, x):
        self.move("optimizer", train_loss=self.loss(network, x))

    def validate(self, network, x):
        # The same codes each epoch, so that early stopping compares encoders and not draws.
        with seeded(0, x.device):
            return self.loss(network, x)

    def loss(self, network, x):
        if self.kind == "ziz":
            z = network.draw_codes(len(x))
            return (network.encoder(network.generator(z)) - z).square().mean()
        y = network(x)
        loss = squared_error(y, x).mean()
        if self.kind == "izi_f":
            loss = loss + self.feature_weight * network.feature_error(y, x).mean()
        return loss


class FAnoGAN(TrainedDetector):
    """Fast anomaly detection with a generative adversarial network (f-AnoGAN).

    A Wasserstein GAN with gradient penalty (WGAN-GP) learns to make normal images from codes. Then
    generator and critic are frozen, and an encoder learns to find the code of an image. The image
    generated from this code, the reconstruction, is compared with the image itself, in pixels (A_R)
    and in the features of the critic (A_D). The score is A_R + `feature_weight` * A_D. If
    `encoder_training` is "izi" or "ziz", the score is A_R alone. The map is the squared difference of
    each pixel.

    Parameters
    ----------
    latent_size : int, default=128
        Length of a code, the latent vector of an image; d in the paper.
    width : int, default=8
        Channels before the first of the `n_levels` levels. The first level has 2 times as many, the
        second 4 times and all others 8 times. The paper's network has a width of 64, which is slow
        without a GPU. With the default, a few hundred images of 64 x 64 are learned in minutes on two
        CPU cores.
    n_levels : int, default=None
        Number of levels, each of which halves both sides of its input. None halves each side to about
        4 pixels (4 levels at 64 x 64).
    prior : {"normal", "uniform"}, default="normal"
        Distribution of the codes in training: standard normal, or uniform in [-1, 1].
    encoder_training : {"izi_f", "izi", "ziz"}, default="izi_f"
        Loss of the encoder. "izi": difference between an image and its reconstruction in pixels.
        "izi_f": the same, plus the difference in the critic's features. "ziz": difference between a
        code drawn from the prior and the code of the image generated from it.
    encoder_output : {"tanh", "clip", "linear"}, default="tanh"
        Last operation of the encoder: `encoder_bound` * tanh, clipping to ± `encoder_bound`, or none.
    encoder_bound : float, default=1.0
        Largest absolute value of a coordinate of a code, if `encoder_output` is "tanh" or "clip".
    feature_weight : float, default=1.0
        Weight of the critic's features in the encoder's loss and in the score, kappa in the paper. It
        is used only if `encoder_training` is "izi_f".
    penalty_weight : float, default=10.0
        Weight of the gradient penalty in the critic's loss.
    n_critic : int, default=5
        Number of critic steps for each generator step.
    max_epochs : int, default=None
        Number of passes over the normal images in the training of the GAN. Each batch is one critic step.
        None makes {max_epochs steps} steps, whatever the number of images.
    encoder_epochs : int, default=None
        Number of passes in the training of the encoder. None makes {encoder_epochs steps} steps.
    encoder_lr : float, default=1e-3
        Learning rate of the encoder.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AutoEncoder : Detector without a GAN, which trains faster.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: A_R + kappa A_D: mean squared error of the pixels, and of the critic's features
    :Map: squared error of each pixel
    :Departures: learning rates are larger and batches smaller than in the public code, which has 1e-4 for the
        GAN, 5e-5 for the encoder and batches of 64; images are not flipped at random, since a mirrored chest
        is not normal; momentum and eps of batch normalisation, and the first weights, are torch's; m_x, the
        zero of the critic score, is the mean over up to 32,000 training images, whereas the paper takes test
        images; {max_epochs steps} critic steps and {encoder_epochs steps} steps of the encoder, for which the
        public code takes 50,000
    :Variants:
        * f-AnoGAN with the izi_f encoder: ``FAnoGAN()``
        * f-AnoGAN with the izi encoder: ``FAnoGAN(encoder_training="izi")``
        * f-AnoGAN with the ziz encoder: ``FAnoGAN(encoder_training="ziz", encoder_output="linear")``
        * AnoGAN's search in the WGAN: ``FAnoGAN().iterative``

    Networks and losses follow the authors' code [2]_: pre-activation residual blocks, per-channel
    layer normalisation in the critic, one gradient penalty per image, Adam with betas (0, 0.9) for
    the GAN and RMSprop for the encoder.

    By default, the encoder's codes lie between -1 and 1 (tanh), and most codes of the standard normal
    prior do not. The loss "ziz", a mean over coordinates, can therefore not fall below 0.151. Set
    ``encoder_output="linear"`` or ``prior="uniform"`` along with ``encoder_training="ziz"``.

    The components of `score_components` are "residual" (A_R), "feature" (A_D), "latent" and "critic".
    "latent" is the mean squared difference between the codes of image and reconstruction. "critic" is
    m_x - D(x), where D(x) is the critic's value for the image and m_x its mean over training images.

    References
    ----------
    .. [1] Schlegl, T., Seeböck, P., Waldstein, S. M., Langs, G., Schmidt-Erfurth, U. (2019).
       "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks".
       Medical Image Analysis 54, 30-44. `doi:10.1016/j.media.2019.01.010
       <https://doi.org/10.1016/j.media.2019.01.010>`_
    .. [2] https://github.com/tSchlegl/f-AnoGAN
    .. [3] Gulrajani, I., Ahmed, F., Arjovsky, M., Dumoulin, V., Courville, A. (2017). "Improved
       training of Wasserstein GANs". NeurIPS. `arXiv:1704.00028 <https://arxiv.org/abs/1704.00028>`_

    Examples
    --------
    >>> from skanomaly import FAnoGAN
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = FAnoGAN(width=2, max_epochs=2, encoder_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.sample(3).shape
    ((2,), (3, 64, 64))
    """

    _image_range = (-1.0, 1.0)
    _steps = {"max_epochs": 1000, "encoder_epochs": 500}

    _parameter_constraints = {
        "prior": [StrOptions({"normal", "uniform"})],
        "encoder_training": [StrOptions({"izi_f", "izi", "ziz"})],
        "encoder_output": [StrOptions({"tanh", "clip", "linear"})],
        "encoder_bound": [Interval(Real, 0, None, closed="neither")],
        "n_critic": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        *,
        latent_size=128,
        width=8,
        n_levels=None,
        prior="normal",
        encoder_training="izi_f",
        encoder_output="tanh",
        encoder_bound=1.0,
        feature_weight=1.0,
        penalty_weight=10.0,
        n_critic=5,
        max_epochs=None,
        encoder_epochs=None,
        encoder_lr=1e-3,
        batch_size=16,
        lr=5e-4,
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
        self.prior = prior
        self.encoder_training = encoder_training
        self.encoder_output = encoder_output
        self.encoder_bound = encoder_bound
        self.feature_weight = feature_weight
        self.penalty_weight = penalty_weight
        self.n_critic = n_critic
        self.encoder_epochs = encoder_epochs
        self.encoder_lr = encoder_lr
        self._assign_shared(locals())

    def _build(self, image_shape):
        encoder = {"output": self.encoder_output, "bound": self.encoder_bound}
        return FAnoGANNetwork(image_shape, prior=self.prior, **encoder, **self._network_size())

    def _train(self, run, network, images):
        bounded = self.encoder_output != "linear" and (self.prior == "normal" or self.encoder_bound < 1)
        # A warning, not an error: the public code combines a tanh encoder with a normal prior, too.
        if self.encoder_training == "ziz" and bounded:
            warnings.warn(
                f"encoder_training='ziz' with encoder_output={self.encoder_output!r} cannot reach codes "
                "beyond encoder_bound; set encoder_output='linear' or prior='uniform'",
                stacklevel=2,
            )
        run("gan", Wasserstein, network, images, n_critic=self.n_critic, penalty_weight=self.penalty_weight)
        # alpha and eps are TensorFlow's defaults, which the public code uses; torch has others.
        optimizer = partial(torch.optim.RMSprop, alpha=0.9, eps=1e-10)
        options = {"kind": self.encoder_training, "feature_weight": self.feature_weight}
        options |= {"optimizer": optimizer, "lr": self.encoder_lr, "epochs": "encoder_epochs"}
        run("encoder", Inversion, network, images, **options)

    def _measure(self, network, images):
        # A sample is enough: m_x only shifts the critic score, and no ranking depends on it.
        some = images.subset(torch.randperm(len(images))[:N_CRITIC_MEAN].numpy())
        network.critic_mean.fill_(float(collect(network.critic, network, some, self.device_).mean()))

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        y = network(x)
        features = network.critic.features(x)
        maps = squared_error(y, x)
        residual = maps.mean((1, 2))
        feature = feature_error(network.critic.features(y), features)
        # As in the paper, features count only for an encoder that was trained with them.
        score = residual + self.feature_weight * feature if self.encoder_training == "izi_f" else residual
        components = {
            "residual": residual,
            "feature": feature,
            "latent": lambda: (network.encoder(x) - network.encoder(y)).square().mean(1),
            "critic": lambda: network.critic_mean - network.critic.value(features)[:, 0],
        }
        return Judgement(score, maps, components)

    def encode(self, X):
        """Codes of images.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        codes : (n, latent_size) float32 ndarray
            Output of the encoder, one row for each image.
        """
        return collect(self.network_.encoder, self.network_, self._open(X), self.device_)

    def decode(self, codes):
        """Images that the generator makes from codes.

        Parameters
        ----------
        codes : (n, latent_size) array-like
            Output of `encode`, or draws from the prior.

        Returns
        -------
        images : (n, ...) float32 ndarray
            Images in the layout and units of the X given to `fit`.
        """
        check_is_fitted(self)
        codes = np.asarray(codes, dtype=np.float32)
        latent_size = self.network_.latent_size
        if codes.ndim != 2 or codes.shape[1] != latent_size or not len(codes):
            raise ValueError(f"codes must have shape (n, latent_size={latent_size}), got {codes.shape}")
        codes = torch.from_numpy(codes)
        return self._format.restore(collect(self.network_.generator, self.network_, codes, self.device_))

    def iterative(
        self, X, *, n_search=500, n_restarts=1, search_lr=0.01, discrimination_weight=0.1, random_state=None
    ):
        """Scores by AnoGAN's search, in place of the encoder: the baseline "iterative" of the f-AnoGAN paper.

        Gradient descent searches for the code whose generated image is most similar to an image. For each
        image, the search takes `n_search` * `n_restarts` forward and backward passes through generator and
        critic. With the defaults it takes several hundred times as long as `score_samples`.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        n_search : int, default=500
            Number of steps of a search, Gamma in the paper.
        n_restarts : int, default=1
            Number of searches for each image, each from another random code. The best result is kept.
        search_lr : float, default=0.01
            Learning rate of the search, which uses Adam.
        discrimination_weight : float, default=0.1
            Weight of D, the difference in the critic's features, in [0, 1]; lambda in the paper.
        random_state : int, RandomState or None, default=None
            Seed of the codes at which the searches begin. They are the same for all images.

        Returns
        -------
        found : Bunch
            ``codes`` (n, latent_size) are the codes found. ``residual`` (n,) is R, the sum of the absolute
            differences over pixels. ``discrimination`` (n,) is D, the sum of the absolute differences over
            the critic's features. ``scores`` (n,) are -(1 - lambda) R - lambda D: higher is more normal.
            ``maps`` (n, H, W) are the absolute differences of each pixel.

        Raises
        ------
        ValueError
            If `n_search` or `n_restarts` is not a whole number of at least 1, if `search_lr` is not above 0,
            or if `discrimination_weight` is not in [0, 1].
        """
        images = self._open(X)
        for name, value in (("n_search", n_search), ("n_restarts", n_restarts)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
        if not search_lr > 0:
            raise ValueError(f"search_lr must be above 0, got {search_lr}")
        if not 0 <= discrimination_weight <= 1:
            raise ValueError(f"discrimination_weight must lie in [0, 1], got {discrimination_weight}")
        network = self.network_
        with seeded(draw_seed(random_state), self.device_):
            starts = network.draw_codes(n_restarts)

        options = {"discrimination_weight": discrimination_weight, "n_search": n_search, "lr": search_lr}
        # A normal prior has no bound that codes could be clamped to.
        options["bound"] = 1.0 if network.prior == "uniform" else None

        def search(x):
            codes, y, *parts = search_images(x, network.generator, network.critic.features, starts, **options)
            return codes, absolute_error(y, x), *parts

        codes, maps, residual, discrimination = collect(search, network, images, self.device_)
        # float64, like the scores of all detectors.
        residual, discrimination = residual.astype(np.float64), discrimination.astype(np.float64)
        return Bunch(
            codes=codes,
            scores=-(1 - discrimination_weight) * residual - discrimination_weight * discrimination,
            maps=maps,
            residual=residual,
            discrimination=discrimination,
        )

    def sample(self, n=1, *, random_state=None):
        """Images generated from codes that are drawn from the prior.

        Parameters
        ----------
        n : int, default=1
            Number of images.
        random_state : int, RandomState or None, default=None
            Seed of the codes; None draws other codes each time.

        Returns
        -------
        images : (n, ...) float32 ndarray
            Images in the layout and units of the X given to `fit`.
        """
        check_is_fitted(self)
        with seeded(draw_seed(random_state), self.device_):
            codes = self.network_.draw_codes(n)
        return self.decode(codes.cpu())

    def interpolate(self, a, b, n=13):
        """Images generated along the straight line between two codes.

        If the generator has learned well, these images change smoothly along the line.

        Parameters
        ----------
        a : array-like
            First end of the line: a code, or one image of the fitted shape, which is then encoded. An
            array of shape (latent_size,) is taken for a code.
        b : array-like
            Second end of the line, a code or an image like `a`.
        n : int, default=13
            Number of images, those of both ends included.

        Returns
        -------
        images : (n, ...) float32 ndarray
            Images in the layout and units of the X given to `fit`.
        """
        check_is_fitted(self)
        a, b = (self._as_code(end) for end in (a, b))
        return self.decode(np.linspace(a, b, n))

    def _as_code(self, end):
        end = np.asarray(end)
        return end if end.shape == (self.network_.latent_size,) else self.encode(end[None])[0]
