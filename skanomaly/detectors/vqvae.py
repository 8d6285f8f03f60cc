"""VQVAE: images are reconstructed from codes that all come from two codebooks."""

from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, StrOptions

from .._losses import squared_error
from ..base import Judgement, TrainedDetector
from ..networks.quantiser import TwoLevelAutoEncoder
from ..training import Training


def commitment(levels):
    """Mean squared difference of features from their codes, added up over the two levels."""
    return sum(difference.mean() for _, difference, _ in levels)


class QuantisedTraining(Training):
    """Minimise the squared error and the commitment; the codebooks follow the features by moving averages.

    Parameters
    ----------
    network : TwoLevelAutoEncoder
    commitment_weight : float
    """

    moves = {
        "optimizer": [
            "bottom_encoder",
            "top_encoder",
            "top_features",
            "top_decoder",
            "bottom_features",
            "enlarge",
            "decoder",
        ]
    }
    losses = "reconstruction_loss", "commitment_loss", "train_loss"
    validates = True

    def __init__(self, network, *, commitment_weight, **options):
        self.commitment_weight = commitment_weight
        super().__init__(network, **options)

    def step(self, network, x):
        y, levels = network.quantise(x)
        error, distance = squared_error(y, x).mean(), commitment(levels)
        self.record(reconstruction_loss=error, commitment_loss=distance)
        self.move("optimizer", train_loss=error + self.commitment_weight * distance)
        for codes, (z, _, index) in zip((network.top_codes, network.bottom_codes), levels):
            codes.update(z, index)

    def validate(self, network, x):
        y, levels = network.quantise(x)
        return squared_error(y, x).mean() + self.commitment_weight * commitment(levels)


class VQVAE(TrainedDetector):
    """Vector-quantised autoencoder of two levels (VQ-VAE-2).

    The features of an encoder are replaced by the nearest codes of a codebook, and a decoder sees nothing but
    codes. Codes at an eighth of the image's height and width stand for its global structure. Codes at a
    quarter, which depend on the former, stand for details. The score is the squared error averaged over
    pixels; the map is the squared error of each pixel.

    Parameters
    ----------
    n_codes : int, default=512
        Number of codes in each of the two codebooks.
    latent_size : int, default=16
        Length of a code.
    width : int, default=16
        Number of channels after the image's sides are halved for the first time. All further layers have 2
        times as many; a residual block has half as many inside.
    commitment_weight : float, default=0.25
        Weight of the commitment, the squared distance of features from their codes, beta in the paper.
    decay : float, default=0.99
        Share that a step keeps of the moving averages of which the codes are made, in [0, 1); gamma in the
        paper.
    score_component : {"residual", "commitment"}, default="residual"
        Component that is the score. "residual" is the squared error of the pixels, "commitment" the squared
        distance of features from their codes: what no code stands for is anomalous. The map is its map.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    MemAE : Autoencoder whose codes are combinations of a few learned items.
    AutoEncoder : Autoencoder with one code for the image, which may be any.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: mean squared error of the pixels, or ``score_component``
    :Map: squared error of each pixel, or the distances of the codes that stand for it
    :Departures: no prior of the codes, which the paper needs to generate images; codes that are hardly chosen
        are replaced by features of the batch; a side that is too short is halved less often; the network is
        smaller; {max_epochs steps} training steps
    :Variants:
        * VQ-VAE-2 of the published size: ``VQVAE(width=64, latent_size=64)``

    The components of `score_components` are "residual" and "commitment" (the mean squared distance of
    features from their codes, added up over both levels). Only the first one is a published score.

    A code at a quarter of the sides stands for only 4 x 4 pixels. Lesions can be composed of such codes, and
    are then reconstructed well. Smooth images are easier than sharp ones: on chest X-rays of children with
    pneumonia, which are less sharp than healthy ones, the score is below chance.

    The decoder's gradient is handed to the encoder as if there were no quantiser (straight-through). Codes
    have no gradient: they are moving averages of the features that chose them.

    References
    ----------
    .. [1] Razavi, A., van den Oord, A., Vinyals, O. (2019). "Generating diverse high-fidelity images with
       VQ-VAE-2". NeurIPS. `arXiv:1906.00446 <https://arxiv.org/abs/1906.00446>`_
    .. [2] van den Oord, A., Vinyals, O., Kavukcuoglu, K. (2017). "Neural discrete representation learning".
       NIPS. `arXiv:1711.00937 <https://arxiv.org/abs/1711.00937>`_

    Examples
    --------
    >>> from skanomaly import VQVAE
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = VQVAE(width=4, max_epochs=1, random_state=0).fit(X)
    >>> detector.network_.top_codes.codes.shape
    torch.Size([512, 16])
    """

    _image_range = (-1.0, 1.0)
    _steps = {"max_epochs": 250}

    _parameter_constraints = {
        "n_codes": [Interval(Integral, 1, None, closed="left")],
        "decay": [Interval(Real, 0, 1, closed="left")],
        "score_component": [StrOptions({"residual", "commitment"})],
    }

    def __init__(
        self,
        *,
        n_codes=512,
        latent_size=16,
        width=16,
        commitment_weight=0.25,
        decay=0.99,
        score_component="residual",
        max_epochs=None,
        batch_size=64,
        lr=3e-4,
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
        self.n_codes = n_codes
        self.commitment_weight = commitment_weight
        self.decay = decay
        self.score_component = score_component
        self._assign_shared(locals())

    def _build(self, image_shape):
        options = {"n_codes": self.n_codes, "decay": self.decay, "hidden_size": max(1, self.width // 2)}
        return TwoLevelAutoEncoder(image_shape, **options, **self._network_size())

    def _train(self, run, network, images):
        run("reconstruction", QuantisedTraining, network, images, commitment_weight=self.commitment_weight)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        y, levels = network.quantise(x)
        maps = {"residual": squared_error(y, x), "commitment": network.distance_map(levels)}
        components = {name: map.mean((1, 2)) for name, map in maps.items()}
        return Judgement(components[self.score_component], maps[self.score_component], components)
