"""DenoisingAutoEncoder: a network that removes coarse noise removes anomalies, too."""

from functools import partial
from numbers import Integral, Real

from sklearn.utils._param_validation import Interval

from .._losses import squared_error
from ..base import Judgement, TrainedDetector
from ..networks.unet import DenoisingUNet
from ..training import Reconstruction
from ..transforms.corruptions import add_coarse_noise


class DenoisingAutoEncoder(TrainedDetector):
    """Denoising autoencoder with coarse noise.

    A U-Net learns to remove noise whose grains are about as large as lesions. In new images it removes
    lesions as if they were noise. Its skip connections keep fine detail, so that reconstructions are sharp.
    The score is the squared error averaged over pixels; the map is the squared error of each pixel.

    Parameters
    ----------
    noise_deviation : float, default=0.2
        Standard deviation of the noise, for images in [0, 1].
    noise_size : int, default=16
        Number of noise values along each side. They are enlarged to the size of the image and shifted at
        random; what leaves the image on one side enters on the other.
    foreground : bool, default=False
        Whether noise is left out where an image has its lowest value, as in the black around a brain.
    width : int, default=16
        Channels of the first level. Each further level has twice as many. The public code's width is 64.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    ContextAE : Autoencoder that fills in what was erased.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: mean squared error of the pixels
    :Map: squared error of each pixel
    :Departures: noise is added to the background, too, unless told otherwise; MedIAnomaly's code subtracts 1
        from every image along with the noise, a slip that is left out; {max_epochs steps} training steps,
        15,250 in MedIAnomaly on RSNA
    :Variants:
        * DAE for brains: ``DenoisingAutoEncoder(foreground=True)``

    References
    ----------
    .. [1] Kascenas, A., Pugeault, N., O'Neil, A. Q. (2022). "Denoising autoencoders for unsupervised anomaly
       detection in brain MRI". MIDL. `<https://proceedings.mlr.press/v172/kascenas22a.html>`_

    Examples
    --------
    >>> from skanomaly import DenoisingAutoEncoder
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = DenoisingAutoEncoder(width=2, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _file_version = 2  # a U-Net of its own, with group normalisation
    _steps = {"max_epochs": 1000}

    # `noise_deviation` is the paper's on this scale; in [-1, 1] the same noise has twice the deviation.
    _parameter_constraints = {
        "noise_deviation": [Interval(Real, 0, None, closed="neither")],
        "noise_size": [Interval(Integral, 1, None, closed="left")],
        "foreground": ["boolean"],
    }

    def __init__(
        self,
        *,
        noise_deviation=0.2,
        noise_size=16,
        foreground=False,
        width=16,
        max_epochs=None,
        batch_size=16,
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
        self.noise_deviation = noise_deviation
        self.noise_size = noise_size
        self.foreground = foreground
        self._assign_shared(locals())

    def _build(self, image_shape):
        return DenoisingUNet(image_shape, width=self.width)

    def _train(self, run, network, images):
        noise = {"deviation": self.noise_deviation, "size": self.noise_size, "foreground": self.foreground}
        # None moves all parts: a U-Net has none named `encoder` and `decoder`, the default.
        run(
            "reconstruction",
            Reconstruction,
            network,
            images,
            corrupt=partial(add_coarse_noise, **noise),
            parts=None,
        )

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        return Judgement.of_map(squared_error(network(x), x))
