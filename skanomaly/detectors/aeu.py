"""AEU: an autoencoder that predicts how uncertain each pixel is."""

import torch

from .._losses import likelihood_error, over_channels, squared_error
from ..base import Judgement, TrainedDetector
from ..networks.autoencoder import UncertainAutoEncoder
from ..training import Reconstruction


class AEU(TrainedDetector):
    """Autoencoder with uncertainty prediction (AE-U).

    Some parts of normal images, such as edges, are hard to reconstruct. This autoencoder therefore predicts
    two numbers for every pixel: its value and a variance. The map is the squared error of each pixel divided
    by the predicted variance, so that an error counts less where errors are usual. The score is the mean of
    the map.

    Parameters
    ----------
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AutoEncoder : The same network without variances: the errors of all pixels count the same.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: mean over pixels of squared error / predicted variance
    :Map: squared error / predicted variance of each pixel
    :Departures: log-variances are clamped to [-10, 10]; otherwise pixels that never change, as in a black
        border, would get variances near 0 and dominate the score; {max_epochs steps} training steps, 15,250
        in MedIAnomaly on RSNA

    The components of `score_components` are "weighted" (the score), "residual" (the mean squared error, as in
    AutoEncoder) and "log_variance" (the mean of the predicted log-variances).

    The predicted variance is itself large where an image is unusual. The division then removes what tells
    images apart: on chests of the NIH set "log_variance" alone is the better score.

    References
    ----------
    .. [1] Mao, Y., Xue, F.-F., Wang, R., Zhang, J., Zheng, W.-S., Liu, H. (2020). "Abnormality detection in
       chest X-ray images using uncertainty prediction autoencoders". MICCAI.
       `doi:10.1007/978-3-030-59725-2_51 <https://doi.org/10.1007/978-3-030-59725-2_51>`_
    .. [2] Cai, Y., Zhang, W., Chen, H., Cheng, K.-T. (2025). "MedIAnomaly: A comparative study of anomaly
       detection in medical images". Medical Image Analysis. `arXiv:2404.04518
       <https://arxiv.org/abs/2404.04518>`_

    Examples
    --------
    >>> from skanomaly import AEU
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = AEU(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> sorted(detector.score_components(X[:2]))
    ['log_variance', 'residual', 'weighted']
    """

    _image_range = (-1.0, 1.0)

    def __init__(
        self,
        *,
        latent_size=16,
        hidden_size=2048,
        width=16,
        n_levels=None,
        bottleneck="dense",
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
        self._assign_shared(locals())

    def _build(self, image_shape):
        return UncertainAutoEncoder(image_shape, **self._network_size())

    def _train(self, run, network, images):
        # Calling the network returns reconstructions alone; the likelihood also needs their log-variances.
        options = {"error": likelihood_error, "predict_images": UncertainAutoEncoder.predict}
        run("reconstruction", Reconstruction, network, images, **options)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        mean, log_variance = network.predict(x)
        maps = over_channels((x - mean).square() * torch.exp(-log_variance))
        score = maps.mean((1, 2))
        components = {
            "weighted": score,
            "residual": lambda: squared_error(mean, x).mean((1, 2)),
            "log_variance": lambda: log_variance.flatten(1).mean(1),
        }
        return Judgement(score, maps, components)
