"""AutoEncoder: an image that the network reconstructs badly is anomalous."""

from sklearn.utils._param_validation import StrOptions

from .._losses import absolute_error, squared_error, ssim_error
from ..base import Judgement, TrainedDetector
from ..networks.autoencoder import ConvAutoEncoder
from ..training import Reconstruction


def _scaled_ssim_error(x, y):
    # The two constants of SSIM are meant for intensities in [0, 1]; here images lie in [-1, 1].
    return ssim_error((x + 1) / 2, (y + 1) / 2)


ERRORS = {"l2": squared_error, "l1": absolute_error, "ssim": _scaled_ssim_error}


class AutoEncoder(TrainedDetector):
    """Convolutional autoencoder with a narrow bottleneck.

    The network learns to reconstruct normal images from a code of a few numbers. Structures that do
    not occur in normal images are reconstructed worse. The score is the error averaged over pixels; the
    map is the error of each pixel.

    Parameters
    ----------
    {size}
    loss : {"l2", "l1", "ssim"}, default="l2"
        Error of a pixel, in training and in the score: squared, absolute, or 1 - SSIM (structural
        similarity, in a Gaussian window of 11 x 11 pixels).
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FAnoGAN : Detector whose reconstructions come from a generator of normal images.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: mean error over pixels
    :Map: error of each pixel
    :Departures: SSIM is computed with replicated borders, whereas the code of MedIAnomaly computes a smaller
        map and enlarges it; reconstructions are not clipped for SSIM; {max_epochs steps} training steps,
        15,250 in MedIAnomaly on RSNA
    :Variants:
        * l2-AE: ``AutoEncoder()``
        * l1-AE: ``AutoEncoder(loss="l1")``
        * SSIM-AE: ``AutoEncoder(loss="ssim")``
        * spatial AE: ``AutoEncoder(bottleneck="spatial")``

    With the defaults and grey images of 64 x 64 pixels, this is the network of DDAD [1]_ (4,487,248
    parameters). With ``hidden_size=1024`` it is that of MedIAnomaly [2]_, for both kinds of bottleneck. It is
    trained by Adam. Images are scaled to [-1, 1], and errors are measured on that scale. A side that is not a
    multiple of the network's stride is padded by repeating the border; reconstructions are cropped back.

    References
    ----------
    .. [1] Cai, Y., Chen, H., Yang, X., Zhou, Y., Cheng, K.-T. (2022). "Dual-distribution
       discrepancy for anomaly detection in chest X-rays". MICCAI. `arXiv:2206.03935
       <https://arxiv.org/abs/2206.03935>`_
    .. [2] Cai, Y., Zhang, W., Chen, H., Cheng, K.-T. (2024). "MedIAnomaly: A comparative study of
       anomaly detection in medical images". `arXiv:2404.04518 <https://arxiv.org/abs/2404.04518>`_

    Examples
    --------
    >>> from skanomaly import AutoEncoder
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = AutoEncoder(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)
    _steps = {"max_epochs": 4000}

    _parameter_constraints = {"loss": [StrOptions(set(ERRORS))]}

    def __init__(
        self,
        *,
        latent_size=16,
        hidden_size=2048,
        width=16,
        n_levels=None,
        bottleneck="dense",
        loss="l2",
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
        self.loss = loss
        self._assign_shared(locals())

    def _build(self, image_shape):
        return ConvAutoEncoder(image_shape, **self._network_size())

    def _train(self, run, network, images):
        run("reconstruction", Reconstruction, network, images, error=ERRORS[self.loss])

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        return Judgement.of_map(ERRORS[self.loss](network(x), x))
