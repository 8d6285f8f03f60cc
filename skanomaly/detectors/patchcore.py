"""PatchCore: distance of the features at each position from remembered ones."""

from numbers import Integral, Real

import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.utils._param_validation import Interval, StrOptions

from ..base import FeatureDetector, Judgement
from ..networks.bank import FeatureBank, coreset
from ..networks.density import deviations, enlarged, joined, map_scores, smallest

#: Most features among which a bank is selected; of more, so many are drawn at random.
MOST_CANDIDATES = 200_000


class PatchCore(FeatureDetector):
    """Nearest remembered features of normal images, at each position.

    The features of a frozen network at every position of the training images make a bank, of which a few are
    kept. The map is the distance of each position to the nearest of them.

    Parameters
    ----------
    {backbone}
    bank : {"coreset", "all", "centres"}, default="coreset"
        Features that are remembered: a greedy selection that covers them all; every one; or the centres of
        k-means clusters.
    bank_size : int, default=2000
        Number of features that are kept, unless `bank` is "all", which takes 4 bytes for each feature of each
        position of each training image. The others choose among at most 200,000 positions, drawn at random,
        so that their memory does not grow with the number of images.
    n_neighbors : int, default=1
        Number of nearest features to which distances are averaged.
    neighborhood : int, default=None
        Number of positions in each direction from which remembered features count. None counts those from
        anywhere, and so do "centres", which have no position.
    blur : float, default=0.03
        Deviation of the Gaussian filter of maps, as a share of each side.
    pooling : {"mean", "max", "top", "reweighted"}, default="mean"
        Pooling of the map to the score: its mean, its maximum, the mean of its largest `top_fraction`, or the
        largest distance of a position with the weight of the paper (eq. 7).
    top_fraction : float, default=0.05
        Share of the pixels that count for "top".
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    PaDiM : A Gaussian at each position.

    Notes
    -----
    :Family: features
    :Trained on: normal images; nothing is trained, features are remembered
    :Score: mean of the map
    :Map: distance of the features at each position to the nearest remembered ones
    :Departures: the paper [1]_ takes two stages of a WideResNet at the size of the first one, a tenth of the
        features, and the reweighted maximum; here there are three stages of EfficientNet-Lite0 at the size of
        the last, scaled by their deviations, 2,000 features, and the mean
    :Variants:
        * PatchCore as published: ``PatchCore(layers=(2, 3), pooling="reweighted")``
        * patch 1-NN: ``PatchCore(bank="all")``
        * k-means of patches: ``PatchCore(bank="centres", bank_size=100)``
        * CNN feature dictionary: ``PatchCore(bank="centres", bank_size=10)``

    The threshold of `fit` comes from the training images, whose own features are in the bank: of new normal
    images `predict` flags far more than `contamination` says. Call `calibrate` with normal images that were
    not trained on. With a full bank each training image is judged by the features of the others, and
    `predict` flags fewer of them than `contamination` says.

    References
    ----------
    .. [1] Roth, K. et al. (2022). "Towards total recall in industrial anomaly detection". CVPR.
       `arXiv:2106.08265 <https://arxiv.org/abs/2106.08265>`_
    .. [2] Napoletano, P., Piccoli, F., Schettini, R. (2018). "Anomaly detection in nanofibrous materials by
       CNN-based self-similarity". Sensors 18, 209. `doi:10.3390/s18010209
       <https://doi.org/10.3390/s18010209>`_

    Examples
    --------
    >>> from skanomaly import PatchCore
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images
    >>> detector = PatchCore(backbone="filters", bank_size=50).fit(X[:64])
    >>> detector.anomaly_map(X).shape == X.shape
    True
    """

    _layers = {"imagenet": (2, 3, 4), "filters": (0, 1, 2)}

    _parameter_constraints = {
        "bank": [StrOptions({"coreset", "all", "centres"})],
        "bank_size": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "neighborhood": [Interval(Integral, 0, None, closed="left"), None],
        "blur": [Interval(Real, 0, 1, closed="both")],
        "pooling": [StrOptions({"mean", "max", "top", "reweighted"})],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
    }

    #: Features around the nearest one that the weight of the score takes into account, b in the paper.
    _n_around = 9

    def __init__(
        self,
        *,
        backbone="imagenet",
        layers=None,
        input_size=None,
        bank="coreset",
        bank_size=2000,
        n_neighbors=1,
        neighborhood=None,
        blur=0.03,
        pooling="mean",
        top_fraction=0.05,
        device="auto",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self.bank = bank
        self.bank_size = bank_size
        self.n_neighbors = n_neighbors
        self.neighborhood = neighborhood
        self.blur = blur
        self.pooling = pooling
        self.top_fraction = top_fraction
        self._assign_shared(locals())

    def _new_density(self, shapes):
        height, width = smallest(shapes)
        n = self.n_images_ * height * width
        n = n if self.bank == "all" else min(n, self.bank_size, MOST_CANDIDATES)
        return FeatureBank(n, sum(shape[0] for shape in shapes))

    def _describe(self, network, maps):
        return (joined(maps, network.backbone.pooled),)

    def _learn_density(self, network, described):
        bank = network.density
        height, width = smallest(self.feature_shapes_)
        n_places = height * width
        rows = torch.arange(self.n_images_ * n_places)
        if self.bank != "all" and len(rows) > MOST_CANDIDATES:
            rows = torch.randperm(len(rows))[:MOST_CANDIDATES].sort().values
        parts, start = [], 0
        for n, (maps,) in described:
            features = maps[:n].movedim(1, 3).flatten(0, 2)
            parts.append(features[rows[(rows >= start) & (rows < start + len(features))] - start])
            start += len(features)
        # Part by part: all features in float64 might not fit into memory.
        mean = sum(x.double().sum(0) for x in parts) / len(rows)
        variance = sum((x.double() - mean).square().sum(0) for x in parts) / len(rows)
        bank.mean.copy_(mean)
        bank.deviation.copy_(deviations(variance, mean))
        features = torch.cat([bank.scaled(x) for x in parts])
        if self.bank == "coreset":
            chosen = coreset(features, len(bank.features)).cpu()
            features, rows = features[chosen], rows[chosen]
        elif self.bank == "centres":
            seed, x = int(torch.randint(2**31 - 1, ())), features.cpu().numpy()
            means = MiniBatchKMeans(len(bank.features), random_state=seed, n_init=3).fit(x)
            bank.features.copy_(torch.from_numpy(means.cluster_centers_))
            return
        bank.features.copy_(features)
        place = rows % n_places
        bank.places.copy_(torch.stack([place // width, place % width], dim=1))
        bank.images.copy_(rows // n_places)

    def _judge_own(self, network, rows, maps):
        # In a full bank a training image would find itself, at a distance of 0.
        own = torch.arange(rows.start, rows.start + len(maps)) if self.bank == "all" else None
        return self._judge_features(network, maps, own=own)

    def _judge_features(self, network, maps, *, own=None):
        bank, (n, _, height, width) = network.density, maps.shape
        x = bank.scaled(maps.movedim(1, 3).flatten(0, 2))
        counts = self._counts(bank, n, height, width, own)
        nearest, rows = bank.nearest(x, self.n_neighbors, counts)
        distances = nearest.mean(1)
        grid = distances.view(n, height, width)
        maps = enlarged(grid, self.image_shape_[1:], self.blur)
        components = map_scores(maps, self.top_fraction)
        worst = grid.flatten(1).argmax(1) + torch.arange(n, device=x.device) * height * width
        weights = self._weights(bank, x[worst], nearest[worst, 0], rows[worst, 0])
        components["reweighted"] = weights * distances[worst]
        return Judgement(components[self.pooling], maps, components)

    def _counts(self, bank, n, height, width, own):
        """Function that says which features count for each position of n images, or None if all do."""
        near = self.neighborhood is not None and self.bank != "centres"
        if not near and own is None:
            return None
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(bank.places)

        def counts(part):
            found = torch.ones((), dtype=torch.bool, device=bank.features.device)
            if near:
                found = (places[:, None] - bank.places[part]).abs().amax(2) <= self.neighborhood
            if own is not None:
                found = found & (bank.images[part] != own[:, None].to(bank.images))[:, None]
            return found.expand(n, height * width, -1).flatten(0, 1)

        return counts

    def _weights(self, bank, x, distance, row):
        """Weights by eq. 7 of the paper, for the worst features of images and the nearest of the bank."""
        _, around = bank.nearest(bank.features[row], self._n_around)
        # Shifted by the largest, as any softmax: exp would overflow.
        apart = (x[:, None] - bank.features[around]).square().sum(2).sqrt()
        top = torch.maximum(apart.amax(1), distance)
        share = (distance - top).exp() / (apart - top[:, None]).exp().sum(1)
        return (1 - share).clamp(min=0)
