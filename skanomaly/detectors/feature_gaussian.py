"""FeatureGaussian: distance of an image's features from those of normal images."""

from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .. import _backbone
from .._inference import collect
from ..base import FeatureDetector, Judgement
from ..networks.density import (
    LEAST_SHRINKAGE,
    PositionGaussians,
    ShrunkGaussian,
    enlarged,
    fine,
    joined,
    smallest,
    total,
)
from ..networks.unlabelled import excess

#: Principal components at each position of the map.
N_COMPONENTS = 64
#: What is added to the variances at each position.
REGULARIZATION = 0.01


class FeatureGaussian(FeatureDetector):
    """One Gaussian of the features of a frozen network: the detector to begin with.

    Feature maps are averaged over the cells of a grid and joined to one vector for an image. The score is its
    squared Mahalanobis distance from the vectors of normal images. Nothing is trained.

    Images that nobody has labelled (y = 0) give a second Gaussian: an image that is near to them, and not to
    the normal ones, is suspicious.

    Parameters
    ----------
    {backbone}
    shrinkage : {"oas", "ledoit_wolf"} or float, default="oas"
        Shrinkage of the covariance towards a multiple of the identity: a number from 0.001 to 1, or a method
        that finds one.
    neighbors : int, default=None
        Number of nearest training images. None scores by the Gaussian; a number by the mean distance to so
        many of them, of features whitened by half.
    unlabelled_weight : float or "auto", default="auto"
        Weight of the distance from unlabelled images, which is subtracted from the score if there are any.
        "auto" estimates it, from 0 to 1: 0 if the unlabelled images look as normal as normal images that the
        Gaussian has not seen.
    blur : float, default=0.03
        Deviation of the Gaussian filter of maps, as a share of each side.
    {parameters}

    Attributes
    ----------
    n_unlabelled_ : int
        Number of unlabelled training images.
    unlabelled_weight_ : float
        Weight that was estimated or given; 0 with fewer than two unlabelled images.
    {attributes}

    See Also
    --------
    PaDiM : The same for each position: its score comes from its map.

    Notes
    -----
    :Family: features
    :Trained on: normal images, and unlabelled ones if there are any; nothing but means and covariances of
        features is learned
    :Score: squared Mahalanobis distance of the features of the image, less a share of that from unlabelled
        images
    :Map: Mahalanobis distance of the features at each position
    :Departures: [1]_ fit one Gaussian for each stage to features averaged over the whole image, and add the
        distances; here there is one for all stages and 2 x 2 cells, with OAS for Ledoit-Wolf shrinkage.
        Unlabelled images are ours

    The estimate of `unlabelled_weight` is how far the AUROC that tells unlabelled images from normal ones of
    other folds exceeds that of chance, by more than its standard error, doubled. Images that are alike are in
    one fold, as those of one patient should be.

    `fit` keeps features up to 1 GB, those of about 5,000 images by "imagenet". Those of more images are
    computed a second time.

    With fewer images than features, training images are near to their own mean by construction. They are
    recognised, since they alone lie in the span of the training images, and judged by the others; so that the
    threshold of `fit` suits new images, too. With `neighbors` it flags more of them than `contamination`
    says, until `calibrate` is called.

    References
    ----------
    .. [1] Rippel, O., Mertens, P., Merhof, D. (2021). "Modeling the distribution of normal data in
       pre-trained deep features for anomaly detection". ICPR.
       `arXiv:2005.14140 <https://arxiv.org/abs/2005.14140>`_

    Examples
    --------
    >>> from skanomaly import FeatureGaussian
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images
    >>> detector = FeatureGaussian(backbone="filters").fit(X[:64])
    >>> detector.score_samples(X).shape, detector.anomaly_map(X).shape == X.shape
    ((935,), True)
    """

    _parameter_constraints = {
        "shrinkage": [StrOptions({"oas", "ledoit_wolf"}), Interval(Real, LEAST_SHRINKAGE, 1, closed="both")],
        "neighbors": [Interval(Integral, 1, None, closed="left"), None],
        "unlabelled_weight": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "blur": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        *,
        backbone="imagenet",
        layers=None,
        input_size=None,
        grid="auto",
        shrinkage="oas",
        neighbors=None,
        unlabelled_weight="auto",
        blur=0.03,
        keep_sums=False,
        device="auto",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self.shrinkage = shrinkage
        self.neighbors = neighbors
        self.unlabelled_weight = unlabelled_weight
        self.blur = blur
        self._assign_shared(locals())

    _tells_unlabelled = True

    def _prepare(self, images):
        super()._prepare(images)
        self.n_unlabelled_ = 0 if images.y is None else int((images.y == 0).sum())
        self.n_images_ -= self.n_unlabelled_
        if self.n_images_ < 2:
            raise ValueError(
                "FeatureGaussian learns from normal images and, beside them, unlabelled ones; y has "
                f"{self.n_images_} normal (1) and {self.n_unlabelled_} unlabelled (0): give 2 normal ones at "
                "least, or no y"
            )

    def _check_sums(self, y):
        wrong = {
            "shrinkage='ledoit_wolf', which needs every image": self.shrinkage == "ledoit_wolf",
            "neighbors, which remembers every image": self.neighbors is not None,
            "unlabelled images, whose sums are not kept": y is not None and (y == 0).any(),
        }
        for what, is_there in wrong.items():
            if is_there:
                raise ValueError(
                    f"keep_sums=True excludes {what}; set keep_sums=False, or shrinkage='oas', "
                    "neighbors=None and no y with 0"
                )

    def _cells(self):
        """Height and width of the grid."""
        return _backbone.grid_cells(self.grid, self.backbone_)

    def _fine(self):
        return fine(self.feature_shapes_, self.backbone_["input_size"])

    def _new_density(self, shapes):
        height, width = self._cells()
        n_features = sum(shape[0] for shape in shapes) * height * width
        density, of_map = nn.Module(), [shapes[k] for k in self._fine()]
        new = partial(ShrunkGaussian, n_features, remembers=self.neighbors is not None)
        density.image = new(self.n_images_, keeps=self.keep_sums)
        # The Gaussian of one image would be a point.
        density.unlabelled = new(self.n_unlabelled_) if self.n_unlabelled_ > 1 else None
        n_channels = sum(shape[0] for shape in of_map)
        size = smallest(of_map)
        density.places = PositionGaussians(n_channels, N_COMPONENTS, size, keeps=self.keep_sums)
        return density

    def _describe(self, network, maps):
        vectors = _backbone.vectors(network.backbone, maps, self._cells())
        return vectors, joined([maps[k] for k in self._fine()], network.backbone.pooled)

    def _measure(self, network, images):
        density, self.unlabelled_weight_ = network.density, 0.0
        normals = self._normals(images)
        described = self._replay(network, normals)
        self._learn_density(network, described)
        if density.unlabelled is not None:
            unlabelled = images.subset(np.flatnonzero(images.y == 0))
            rows = collect(lambda x: self._features(network, x)[0], network, unlabelled, self.device_)
            rows = torch.from_numpy(rows).to(self.device_)
            density.unlabelled.fit_rows(rows, self.shrinkage)
            self.unlabelled_weight_ = self.unlabelled_weight
            if self.unlabelled_weight == "auto":
                of_normals = torch.cat([vectors[:n] for n, (vectors, _) in described])
                self.unlabelled_weight_ = excess(of_normals, rows, self.shrinkage)
        return described.map(lambda *batch: self._judge_own(network, *batch)[:2])

    def _learn_density(self, network, described, parts=()):
        image, rows, moments = network.density.image, [], None
        if self.keep_sums:
            moments = total([part.image for part in parts], 1, len(image.mean), self.device_)

        def maps():  # in one pass: features of many images would have to be computed again
            for n, (vectors, of_map) in described:
                if moments is None:
                    rows.append(vectors[:n])
                else:
                    moments.add(vectors[:n, None])
                yield of_map[:n]

        network.density.places.fit(maps(), "pca", REGULARIZATION, [part.places for part in parts])
        if moments is None:
            image.fit_rows(torch.cat(rows), self.shrinkage)
        else:
            image.fit_moments(moments, self.shrinkage)

    def _judge_features(self, network, vectors, maps):
        unlabelled = network.density.unlabelled
        score = self._distance(network.density.image, vectors)
        maps = enlarged(network.density.places(maps), self.image_shape_[1:], self.blur)
        components = {"distance": score}
        if unlabelled is not None:
            components["unlabelled"] = self._distance(unlabelled, vectors)
            score = score - self.unlabelled_weight_ * components["unlabelled"]
        return Judgement(score, maps, components)

    def _distance(self, gaussian, vectors):
        return gaussian(vectors) if self.neighbors is None else gaussian.nearest(vectors, self.neighbors)

    def _check_own_attributes(self, attributes):
        super()._check_own_attributes(attributes)
        weight = attributes.get("unlabelled_weight_")
        if not isinstance(weight, Real) or not 0 <= weight < np.inf:
            raise ValueError(f"unlabelled_weight_ cannot be {weight!r}")
