"""SSL-AnoVAE: a variational autoencoder with a second encoder that learns from views of the images."""

from functools import partial
from numbers import Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .._losses import absolute_error
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ConvDiscriminator
from ..networks.autoencoder import LOG_VARIANCES, ConvDecoder
from ..networks.byol import PROJECTION, feature_encoder, perceptron, slow_copy
from ..networks.gaussian import draw, kl_divergence
from ..training import (
    SelfSupervised,
    Training,
    byol_loss,
    discriminator_loss,
    follow,
    generator_loss,
    running_statistics_kept,
    view_pair,
)
from ..transforms import PRESETS, changed


class SSLAnoVAENetwork(nn.Module):
    """Encoders `image_encoder` (E_I) and `ssl_encoder` (E_S), and a `decoder` of the codes of both.

    `image_code` and `ssl_code` make mean and log-variance from features. `projector` and `predictor` follow
    E_S when it sees views; `target` is a slow copy of E_S and projector. `discriminator` judges images.
    """

    def __init__(self, image_shape, latent_size, *, fusion, predictor, hidden_size, width, n_levels):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.fusion = fusion
        self.image_encoder = feature_encoder(image_shape, hidden_size, **size)
        self.ssl_encoder = feature_encoder(image_shape, hidden_size, **size)
        # One code of both features is as long as two codes; with mean and log-variance that is four.
        if fusion == "features":
            self.image_code = nn.Linear(2 * hidden_size, 4 * latent_size)
        else:
            self.image_code = nn.Linear(hidden_size, 2 * latent_size)
            self.ssl_code = nn.Linear(hidden_size, 2 * latent_size)
        self.projector = perceptron(hidden_size)
        self.predictor = perceptron(PROJECTION[1]) if predictor else nn.Identity()
        self.target = slow_copy(self.ssl_encoder, self.projector)
        n_codes = latent_size if fusion == "sum" else 2 * latent_size
        self.decoder = ConvDecoder(image_shape, n_codes, hidden_size=hidden_size, **size)
        self.discriminator = ConvDiscriminator(image_shape, **size)

    def posteriors(self, x):
        """Mean and log-variance of each code: z_I and z_S, or a single code for fusion="features"."""
        features = self.image_encoder(x), self.ssl_encoder(x)
        if self.fusion == "features":
            parts = [self.image_code(torch.cat(features, dim=1))]
        else:
            parts = [self.image_code(features[0]), self.ssl_code(features[1])]
        halves = (part.chunk(2, dim=1) for part in parts)
        return [(mean, log_variance.clamp(*LOG_VARIANCES)) for mean, log_variance in halves]

    def decode(self, codes):
        return self.decoder(sum(codes) if self.fusion == "sum" else torch.cat(codes, dim=1))

    def forward(self, x):
        """Reconstruction from the mean codes."""
        return self.decode([mean for mean, _ in self.posteriors(x)])


class EndToEnd(Training):
    """All parts learn at once: from views, reconstruction, prior and discriminator.

    Parameters
    ----------
    network : SSLAnoVAENetwork
    views : pair of transforms, or None
        None keeps the features of E_S as they are, because E_S has been trained before.
    momentum : float
    weights : dict of str to float
        "ssl", "reconstruction", "prior" and "adversarial": lambda_1 to lambda_4. With 0 for "ssl" no views
        are made.
    prior_weights : tuple of float
        lambda_I and lambda_S.
    """

    losses = (
        "discriminator_loss",
        "ssl_loss",
        "reconstruction_loss",
        "prior_loss",
        "adversarial_loss",
        "train_loss",
    )
    betas = 0.5, 0.9

    def __init__(self, network, *, views, momentum, weights, prior_weights, **options):
        self.views, self.momentum = views, momentum
        self.weights, self.prior_weights = weights, prior_weights
        # Without its weight the loss of the views is left out, so that E_S sees nothing but images.
        self.learns_from_views = bool(views and weights["ssl"])
        # Parts not named are frozen, in eval mode: E_S too, if it has been trained before.
        online = ["image_encoder", "image_code", "decoder"]
        online += ["ssl_code"] if hasattr(network, "ssl_code") else []
        online += ["ssl_encoder"] if views else []
        online += ["projector", "predictor"] if self.learns_from_views else []
        self.moves = {"optimizer": online, "optimizer_discriminator": ["discriminator"]}
        if not self.learns_from_views:
            self.losses = tuple(name for name in self.losses if name != "ssl_loss")
        super().__init__(network, **options)

    def step(self, network, x):
        posteriors = network.posteriors(x)
        y = network.decode([draw(*posterior) for posterior in posteriors])
        discriminator = network.discriminator
        loss = discriminator_loss(discriminator(x), discriminator(y.detach()))
        self.move("optimizer_discriminator", discriminator_loss=loss)
        terms = {
            "reconstruction": (x - y).abs().mean(),
            "prior": sum(w * kl_divergence(*p).mean() for w, p in zip(self.prior_weights, posteriors)),
            # Judged once more: the discriminator has just moved.
            "adversarial": generator_loss(discriminator(y)),
        }
        if self.learns_from_views:
            network.target.train()
            # Images alone are judged: crops and colours of views would shift the statistics away from theirs.
            with running_statistics_kept(network.ssl_encoder):
                terms["ssl"] = byol_loss(network, *(changed(view, x) for view in self.views))
        self.record(**{f"{name}_loss": term for name, term in terms.items()})
        self.move("optimizer", train_loss=sum(self.weights[name] * term for name, term in terms.items()))
        if self.learns_from_views:
            follow(network, self.momentum)


class SSLAnoVAE(TrainedDetector):
    """Variational autoencoder with a self-supervised second encoder (SSL-AnoVAE).

    One encoder learns to describe normal images for their reconstruction. A second encoder learns at the same
    time to give two random views of an image similar features. Its code therefore holds what the transforms
    of the views do not change: structure, if they change colours; colours, if they change places. As in BYOL,
    the features of one view are compared with those that a slow copy of the encoder, the target, gives for
    the other. One decoder makes the reconstruction from both codes, and a discriminator teaches the networks
    to make it sharp. The score is the absolute error averaged over pixels; the map is the absolute error of
    each pixel.

    Parameters
    ----------
    transforms : str, callable, tuple of two callables or None, default="auto"
        Transforms that make the views: the name of a preset of `skanomaly.transforms`, one transform for both
        views, or one for each. "auto" is the preset "oct" for grey images, "cfp" for images with three
        channels, and "color" for others. None leaves the views unchanged.
    latent_size : int, default=32
        Length of each of the two codes (latent vectors), z_I and z_S.
    hidden_size : int, default=512
        Width of the dense layers on either side of the codes.
    width : int, default=16
        Channels of the first level. The next levels have 2 and 4 times as many.
    n_levels : int, default=None
        Number of times each side is halved. None halves sides to about 4 pixels (4 times at 64 x 64).
    fusion : {"concatenation", "sum", "features"}, default="concatenation"
        Combination of the two encoders. "concatenation": both codes one after the other. "sum": their sum.
        "features": a joint code, made of the features of both.
    ssl_training : {"end_to_end", "pretrain"}, default="end_to_end"
        Order of learning. "end_to_end": the second encoder learns together with the other parts. "pretrain":
        the second encoder learns before them. Afterwards its features no longer change, but the layer that
        makes its code of them still learns.
    predictor : bool, default=True
        Whether the second encoder is followed by a predictor, layers that the target does not have, as in
        BYOL.
    momentum : float, default=0.99
        Share of its weights that the target keeps at each step, tau in the paper.
    ssl_weight : float, default=0.1
        Weight of the difference between the features of two views in the loss, lambda_1 in the paper. With 0
        no views are made, and the second encoder learns from the reconstruction alone.
    reconstruction_weight : float, default=10.0
        Weight of the mean absolute error, lambda_2 in the paper.
    prior_weight : float, default=0.01
        Weight of the Kullback-Leibler (KL) divergence of the codes from N(0, I), lambda_3 in the paper.
    adversarial_weight : float, default=0.01
        Weight of the discriminator's judgement, lambda_4 in the paper.
    image_prior_weight : float, default=1.0
        Weight of the first encoder's code within that divergence, lambda_I in the paper. For
        ``fusion="features"`` it is the weight of the joint code.
    ssl_prior_weight : float, default=1.0
        Weight of the second encoder's code within that divergence, lambda_S in the paper.
    max_epochs : int, default=None
        Number of passes over the normal images. None makes {max_epochs steps} training steps, whatever the
        number of images.
    ssl_epochs : int, default=None
        Number of passes in which the second encoder is trained alone, for "pretrain". None makes
        {ssl_epochs steps} steps.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    skanomaly.transforms : Transforms and presets for the views.
    AnoVAEGAN : Detector with one encoder and without views.

    Notes
    -----
    :Family: self-supervised
    :Trained on: normal images
    :Score: mean absolute error of the pixels
    :Map: absolute error of each pixel
    :Departures: networks, latent sizes, weights and momentum are not in the published text; here the networks
        are those of AutoEncoder, and the numbers were chosen on validation images; images are judged by the
        means of their code distributions
    :Variants:
        * SSL-AnoVAE trained end to end: ``SSLAnoVAE()``
        * SSL-AnoVAE with a second encoder trained first: ``SSLAnoVAE(ssl_training="pretrain")``
        * SSL-AnoVAE with the sum of the codes: ``SSLAnoVAE(fusion="sum")``
        * SSL-AnoVAE with a joint code made of both features: ``SSLAnoVAE(fusion="features")``

    In the loss the absolute error is averaged over pixels, the divergence over the numbers of a code. The
    target follows the weights of the second encoder and has its own statistics of batch normalisation. The
    second encoder has those of images alone, or of views if it is trained first. Each loss is a column of
    ``history_``. `score_components` gives "residual" and the divergences of the two codes, "image_divergence"
    and "ssl_divergence".

    References
    ----------
    .. [1] Li, Y., Lao, Q., Kang, Q., Jiang, Z., Du, S., Zhang, S., Li, K. (2023). "Self-supervised anomaly
       detection, staging and segmentation for retinal images". Medical Image Analysis 87, 102805.
       `doi:10.1016/j.media.2023.102805 <https://doi.org/10.1016/j.media.2023.102805>`_
    .. [2] Grill, J.-B. et al. (2020). "Bootstrap your own latent: A new approach to self-supervised
       learning". NeurIPS. `arXiv:2006.07733 <https://arxiv.org/abs/2006.07733>`_
    .. [3] Baur, C., Wiestler, B., Albarqouni, S., Navab, N. (2018). "Deep autoencoding models for
       unsupervised anomaly segmentation in brain MR images". `arXiv:1804.04488 <https://arxiv.org/abs/1804.04488>`_

    Examples
    --------
    >>> from skanomaly import SSLAnoVAE
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = SSLAnoVAE(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _steps = {"max_epochs": 2000, "ssl_epochs": 2000}

    _parameter_constraints = {
        "transforms": [StrOptions({"auto", *PRESETS}), callable, tuple, None],
        "fusion": [StrOptions({"concatenation", "sum", "features"})],
        "ssl_training": [StrOptions({"end_to_end", "pretrain"})],
        "predictor": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        *,
        transforms="auto",
        latent_size=32,
        hidden_size=512,
        width=16,
        n_levels=None,
        fusion="concatenation",
        ssl_training="end_to_end",
        predictor=True,
        momentum=0.99,
        ssl_weight=0.1,
        reconstruction_weight=10.0,
        prior_weight=0.01,
        adversarial_weight=0.01,
        image_prior_weight=1.0,
        ssl_prior_weight=1.0,
        max_epochs=None,
        ssl_epochs=None,
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
        self.transforms = transforms
        self.fusion = fusion
        self.ssl_training = ssl_training
        self.predictor = predictor
        self.momentum = momentum
        self.ssl_weight = ssl_weight
        self.reconstruction_weight = reconstruction_weight
        self.prior_weight = prior_weight
        self.adversarial_weight = adversarial_weight
        self.image_prior_weight = image_prior_weight
        self.ssl_prior_weight = ssl_prior_weight
        self.ssl_epochs = ssl_epochs
        self._assign_shared(locals())

    def _build(self, image_shape):
        options = {"fusion": self.fusion, "predictor": self.predictor}
        return SSLAnoVAENetwork(image_shape, **options, **self._network_size())

    def _train(self, run, network, images):
        ssl = {"views": view_pair(self.transforms, self.image_shape_[0]), "momentum": self.momentum}
        options = {
            "weights": {
                "ssl": self.ssl_weight,
                "reconstruction": self.reconstruction_weight,
                "prior": self.prior_weight,
                "adversarial": self.adversarial_weight,
            },
            "prior_weights": (self.image_prior_weight, self.ssl_prior_weight),
        }
        if self.ssl_training == "end_to_end":
            run("end_to_end", EndToEnd, network, images, **ssl, **options)
        else:
            run("ssl", SelfSupervised, network, images, epochs="ssl_epochs", **ssl)
            run("reconstruction", EndToEnd, network, images, **ssl | {"views": None}, **options)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        posteriors = network.posteriors(x)
        maps = absolute_error(network.decode([mean for mean, _ in posteriors]), x)
        names = "image_divergence", "ssl_divergence"
        divergences = {name: partial(kl_divergence, *p) for name, p in zip(names, posteriors)}
        return Judgement.of_map(maps, **divergences)
