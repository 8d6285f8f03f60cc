"""ContextAE: an autoencoder that fills in an erased square."""

from functools import partial
from numbers import Real

from sklearn.utils._param_validation import Interval

from .._losses import squared_error
from ..base import Judgement, TrainedDetector
from ..networks.autoencoder import ConvAutoEncoder
from ..training import Reconstruction
from ..transforms.corruptions import erase_squares


class ContextAE(TrainedDetector):
    """Context autoencoder.

    A square is erased from each training image, and the network learns to reconstruct the whole image. To
    fill in the square, it has to learn which structures belong at which place. Nothing is erased from the
    images to be judged. The score is the squared error averaged over pixels; the map is the squared error of
    each pixel.

    Parameters
    ----------
    erased_area : float, default=0.024
        Area of the erased square, as a share of the image's area, in (0, 1). The default is 10 x 10 pixels of
        64 x 64. The square lies at a random place, and its pixels get the lowest intensity. If an image is
        narrower than the square, the part that fits is erased.
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AutoEncoder : The same network, trained on whole images.
    ContextVAE : Variational form, whose map is the error times a derivative.

    Notes
    -----
    :Family: reconstruction
    :Trained on: normal images
    :Score: mean squared error of the pixels
    :Map: squared error of each pixel
    :Departures: a square is drawn for each image, whereas the public code of Baur et al. (2021) draws one for
        a whole batch; {max_epochs steps} training steps, 15,250 in MedIAnomaly on RSNA

    The network is that of AutoEncoder. Size and intensity of the square are those of MedIAnomaly [2]_.

    References
    ----------
    .. [1] Pathak, D., Krahenbuhl, P., Donahue, J., Darrell, T., Efros, A. A. (2016). "Context encoders:
       Feature learning by inpainting". CVPR. `arXiv:1604.07379 <https://arxiv.org/abs/1604.07379>`_
    .. [2] Cai, Y., Zhang, W., Chen, H., Cheng, K.-T. (2025). "MedIAnomaly: A comparative study of anomaly
       detection in medical images". Medical Image Analysis. `arXiv:2404.04518
       <https://arxiv.org/abs/2404.04518>`_

    Examples
    --------
    >>> from skanomaly import ContextAE
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = ContextAE(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _image_range = (-1.0, 1.0)

    _parameter_constraints = {"erased_area": [Interval(Real, 0, 1, closed="neither")]}

    def __init__(
        self,
        *,
        erased_area=0.024,
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
        self.erased_area = erased_area
        self._assign_shared(locals())

    def _build(self, image_shape):
        return ConvAutoEncoder(image_shape, **self._network_size())

    def _train(self, run, network, images):
        # The lowest intensity is black on the network's scale; 0 would be mid-grey.
        erase = partial(erase_squares, area=self.erased_area, value=self._image_range[0])
        run("reconstruction", Reconstruction, network, images, corrupt=erase)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        return Judgement.of_map(squared_error(network(x), x))
