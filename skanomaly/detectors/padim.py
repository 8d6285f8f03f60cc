"""PaDiM: a Gaussian of the features at each position of an image."""

from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, StrOptions

from ..base import FeatureDetector, Judgement
from ..networks.density import PositionGaussians, enlarged, joined, map_scores, smallest


class PaDiM(FeatureDetector):
    """Patch distribution modeling: a Gaussian of the features of a frozen network at each position.

    The images must be aligned: a position must show the same anatomy in all of them. The map is the
    Mahalanobis distance of the features at each position. Nothing is trained.

    Parameters
    ----------
    {backbone}
    reduction : {"pca", "random"}, default="pca"
        Reduction of the features at a position: to the principal components of all positions, or to features
        drawn at random, as in the paper.
    n_components : int, default=64
        Number of features after the reduction, at most.
    regularization : float or "oas", default=0.01
        Multiple of the identity that is added to each covariance, as in the paper, at least 1e-6; "oas"
        shrinks each covariance instead.
    blur : float, default=0.03
        Deviation of the Gaussian filter of maps, as a share of each side.
    pooling : {"mean", "max", "top"}, default="mean"
        Pooling of the map to the score: its mean, its maximum, as in the paper, or the mean of its largest
        `top_fraction`.
    top_fraction : float, default=0.05
        Share of the pixels that count for "top".
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    FeatureGaussian : One Gaussian for the whole image, which finds more images, and the same map.

    Notes
    -----
    :Family: features
    :Trained on: normal images; nothing is trained but the mean and covariance of features
    :Score: mean of the map
    :Map: Mahalanobis distance of the features at each position
    :Departures: the paper [1]_ takes three stages of a ResNet, 100 of its features drawn at random, and the
        maximum of the map; here there are four stages of EfficientNet-Lite0, scaled by their deviations,
        averaged over 3 x 3 positions and reduced by principal components, and the mean of the map. Stages are
        averaged to the size of the last one; in the paper the last ones are enlarged to that of the first
    :Variants:
        * PaDiM as published: ``PaDiM(reduction="random", n_components=100, pooling="max")``

    The threshold of `fit` comes from the training images, which are nearer to their own mean than new ones
    are: of new normal images `predict` flags far more than `contamination` says. Call `calibrate` with normal
    images that were not trained on.

    References
    ----------
    .. [1] Defard, T., Setkov, A., Loesch, A., Audigier, R. (2021). "PaDiM: a patch distribution modeling
       framework for anomaly detection and localization". ICPR workshops.
       `arXiv:2011.08785 <https://arxiv.org/abs/2011.08785>`_

    Examples
    --------
    >>> from skanomaly import PaDiM
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images
    >>> detector = PaDiM(backbone="filters").fit(X[:64])
    >>> detector.anomaly_map(X).shape == X.shape
    True
    """

    _layers = {"imagenet": (1, 2, 3, 4), "filters": (0, 1, 2)}

    _parameter_constraints = {
        "reduction": [StrOptions({"pca", "random"})],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "regularization": [Interval(Real, 1e-6, None, closed="left"), StrOptions({"oas"})],
        "blur": [Interval(Real, 0, 1, closed="both")],
        "pooling": [StrOptions({"mean", "max", "top"})],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(
        self,
        *,
        backbone="imagenet",
        layers=None,
        input_size=None,
        reduction="pca",
        n_components=64,
        regularization=0.01,
        blur=0.03,
        pooling="mean",
        top_fraction=0.05,
        keep_sums=False,
        device="auto",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self.reduction = reduction
        self.n_components = n_components
        self.regularization = regularization
        self.blur = blur
        self.pooling = pooling
        self.top_fraction = top_fraction
        self._assign_shared(locals())

    def _new_density(self, shapes):
        n_features = sum(shape[0] for shape in shapes)
        return PositionGaussians(n_features, self.n_components, smallest(shapes), keeps=self.keep_sums)

    def _describe(self, network, maps):
        return (joined(maps, network.backbone.pooled),)

    def _learn_density(self, network, described, parts=()):
        batches = (maps[:n] for n, (maps,) in described)
        network.density.fit(batches, self.reduction, self.regularization, parts)

    def _judge_features(self, network, maps):
        maps = enlarged(network.density(maps), self.image_shape_[1:], self.blur)
        components = map_scores(maps, self.top_fraction)
        return Judgement(components[self.pooling], maps, components)
