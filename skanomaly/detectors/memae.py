"""MemAE: an autoencoder whose codes are combinations of a few learned items."""

from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, StrOptions

from .._losses import squared_error
from ..base import Judgement, TrainedDetector
from ..networks.autoencoder import MemoryAutoEncoder
from ..training import MemoryTraining


class MemAE(TrainedDetector):
    """Memory-augmented autoencoder.

    An ordinary autoencoder may reconstruct anomalies too well. Here the decoder never receives the code of an
    image. It receives a weighted mean of memory items that were learned from normal images; items similar to
    the code have large weights. The score is the squared error averaged over pixels; the map is the squared
    error of each pixel.

    Parameters
    ----------
    n_slots : int, default=25
        Number of items in the memory, M in the paper.
    shrinkage_threshold : float, default=None
        Threshold on the weights of the items, lambda in the paper. Weights up to the threshold become 0, and
        the others are scaled to sum to 1. If no weight is left, the decoder receives 0. A threshold of 0
        keeps all weights. None is 1 / n_slots, the mean of the weights: some become 0 for every image.
    similarity : {"cosine", "dot"}, default="cosine"
        Similarity of a code and an item: the cosine of the angle between them, as in the paper, or their dot
        product, as in the public code.
    entropy_weight : float, default=2e-4
        Weight of the entropy of the items' weights in the loss, alpha in the paper. A larger value favours
        combinations of fewer items.
    {size}
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AutoEncoder : The same network without a memory.
    SQUID : Detector with a memory for each place, which stores features of training images.

    Notes
    -----
    :Family: memory
    :Trained on: normal images
    :Score: mean squared error of the pixels
    :Map: squared error of each pixel
    :Departures: the network is that of AutoEncoder and has few items, as in DDAD and MedIAnomaly; the paper's
        network, for videos, has 2000 items; {max_epochs steps} training steps, 15,250 in MedIAnomaly on RSNA
    :Variants:
        * MemAE with a code at every place: ``MemAE(bottleneck="spatial")``
        * MemAE as in the code of MedIAnomaly: ``MemAE(similarity="dot", shrinkage_threshold=0.0025)``
        * MemAE as in the code of DDAD: ``MemAE(similarity="dot", shrinkage_threshold=0.0)``

    With ``bottleneck="spatial"`` every place of the last level has a code, and the memory replaces each of
    these codes separately, as in the paper.

    Threshold and similarity belong together. The paper compares by cosine and has a threshold between 1 and 3
    times 1 / n_slots. The public codes compare by dot products, whose weights differ more, and have lower
    thresholds: with 25 items compared by cosine no weight can fall below 0.0056, so that theirs would drop
    nothing.

    References
    ----------
    .. [1] Gong, D., Liu, L., Le, V., Saha, B., Mansour, M. R., Venkatesh, S., van den Hengel, A. (2019).
       "Memorizing normality to detect anomaly: Memory-augmented deep autoencoder for unsupervised anomaly
       detection". ICCV. `arXiv:1904.02639 <https://arxiv.org/abs/1904.02639>`_
    .. [2] Cai, Y., Zhang, W., Chen, H., Cheng, K.-T. (2025). "MedIAnomaly: A comparative study of anomaly
       detection in medical images". Medical Image Analysis. `arXiv:2404.04518
       <https://arxiv.org/abs/2404.04518>`_

    Examples
    --------
    >>> from skanomaly import MemAE
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = MemAE(hidden_size=64, max_epochs=1, random_state=0).fit(X)
    >>> detector.network_.memory.items.shape
    torch.Size([25, 16])
    """

    _image_range = (-1.0, 1.0)
    _steps = {"max_epochs": 500}

    _parameter_constraints = {
        "n_slots": [Interval(Integral, 1, None, closed="left")],
        # Weights sum to 1: a threshold of 1 would leave none.
        "shrinkage_threshold": [Interval(Real, 0, 1, closed="left"), None],
        "similarity": [StrOptions({"dot", "cosine"})],
    }

    def __init__(
        self,
        *,
        n_slots=25,
        shrinkage_threshold=None,
        similarity="cosine",
        entropy_weight=2e-4,
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
        self.n_slots = n_slots
        self.shrinkage_threshold = shrinkage_threshold
        self.similarity = similarity
        self.entropy_weight = entropy_weight
        self._assign_shared(locals())

    def _build(self, image_shape):
        threshold = 1 / self.n_slots if self.shrinkage_threshold is None else self.shrinkage_threshold
        return MemoryAutoEncoder(
            image_shape,
            n_slots=self.n_slots,
            threshold=threshold,
            cosine=self.similarity == "cosine",
            **self._network_size(),
        )

    def _train(self, run, network, images):
        run("reconstruction", MemoryTraining, network, images, entropy_weight=self.entropy_weight)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        return Judgement.of_map(squared_error(network(x), x))
