"""ScoreEnsemble: detectors whose scores and maps are brought to one scale, and averaged."""

import math
from numbers import Real
from typing import Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch, gen_batches
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import _BaseComposition
from torch import nn

from ._finite import WORST, unlimited
from ._inference import BATCH
from ._random import draw_seed
from .base import CompositeDetector, Judgement, tells_unlabelled
from .detectors.feature_gaussian import FeatureGaussian
from .detectors.padim import PaDiM

__all__ = ["ScoreEnsemble"]

#: Number of normal images from which on some are held out.
N_HOLDOUT = 20

#: Smallest normal float32. Logarithms are not taken of less, nor is there a spread below it.
TINY = float(np.finfo(np.float32).tiny)


def default_detectors():
    """Members that ``detectors=None`` stands for, a new list at each call."""
    return [("gaussian", FeatureGaussian()), ("padim", PaDiM())]


class ScoreEnsemble(CompositeDetector, _BaseComposition):
    """Mean of the standardised scores, and of the standardised maps, of several detectors.

    Each member learns from the same images. Images that are held out of their training set the scale of each
    member's scores and maps, so that members whose scores differ in unit and shape count equally.

    Parameters
    ----------
    detectors : list of (str, BaseDetector), default=None
        Members by name; None is ``[("gaussian", FeatureGaussian()), ("padim", PaDiM())]``. Parameters of a
        member have nested names such as ``padim__layers``, and a member is replaced by its name, as in
        ``set_params(padim=PatchCore())``.
    holdout : float, default=0.2
        Share of the normal training images that set the scales, and that no member learns from, in [0, 1).
        With 0, or fewer than 20 normal images, the members learn from all images, and all normal ones set the
        scales.
    weights : list of float, default=None
        Weight of each member in the means, 0 or more; None weighs all members equally. A member with weight 0
        counts in `score_components` only.
    {parameters}
    random_state : int, RandomState or None, default=None
        Source of the choice of the images held out and, unless None, of each member's own ``random_state``.

    Attributes
    ----------
    detectors_ : list of (str, BaseDetector)
        Fitted members by name.
    named_detectors_ : Bunch
        Fitted members, as attributes and items.
    scales_ : dict of str to (scale, scale or None)
        Scales of the scores and of the maps of each member, None for a member without maps. A scale is a
        tuple (floor, median, spread) as in the notes below; floor is None if no logarithm is taken.
    weights_ : dict of str to float
        Weight of each member; the largest is 1.
    {attributes}

    See Also
    --------
    PatchDetector : Composite for large images, which may be a member, or hold an ensemble.

    Notes
    -----
    :Family: composite
    :Trained on: normal images, some of which are held out
    :Score: weighted mean of the members' standardised scores
    :Map: weighted mean of the members' standardised maps, without the members that have none
    :Departures: scales are medians and interquartile ranges, of logarithms where possible, of images held
        out, and not means and deviations of the images that are judged

    A score s of a member becomes (t(s) - median) / spread. t(s) is log(s) if all scores of the images held
    out are positive, else s; median and spread are the median and the interquartile range of t over these
    images. Pixels of maps are standardised in the same way, by up to ten million pixels of the images held
    out. Below the floor, a thousandth of the smallest score held out, the logarithm is continued by its
    tangent, log(floor) + (s - floor) / floor. The order of images is thus that of their scores, whatever
    their sign.

    Members get X in the layout in which `fit` got it, and `channel_axis` and `image_shape` of the ensemble in
    place of their own. A member whose `intensity_range` is "auto" has the range of the ensemble, which
    includes the images held out. A FrozenEstimator of a fitted detector is used as it is.

    `score_components` has the standardised score of each member by its name. Unlabelled images (y = 0) are
    told from normal ones if a member tells them; other members learn them as normal. A batch of images and
    the members' maps of it are in memory at a time.

    ``history_`` has stages named as in ``vae__reconstruction``, and ``device_`` is that of the first member.

    References
    ----------
    .. [1] Aggarwal, C. C., Sathe, S. (2015). "Theoretical foundations and algorithms for outlier ensembles".
       ACM SIGKDD Explorations 17(1), 24-47. `doi:10.1145/2830544.2830549
       <https://doi.org/10.1145/2830544.2830549>`_

    Examples
    --------
    >>> from skanomaly import VAE, AutoEncoder, ScoreEnsemble
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> small = dict(hidden_size=64, max_epochs=1)
    >>> members = [("autoencoder", AutoEncoder(**small)), ("vae", VAE(**small))]
    >>> detector = ScoreEnsemble(members, random_state=0).set_params(vae__latent_size=4).fit(X)
    >>> sorted(detector.score_components(X[:3]))
    ['autoencoder', 'vae']
    """

    _parameter_constraints = {
        "detectors": [list, None],
        "holdout": [Interval(Real, 0, 1, closed="left")],
        "weights": [list, tuple, None],
    }

    def __init__(
        self,
        detectors=None,
        *,
        holdout=0.2,
        weights=None,
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self.detectors = detectors
        self.holdout = holdout
        self.weights = weights
        self._assign_shared(locals())

    network_ = property(lambda self: nn.ModuleList(member.network_ for _, member in self.detectors_).eval())
    device_ = property(lambda self: self.detectors_[0][1].device_)
    n_iter_ = property(lambda self: sum(map(len, self.history_.values())))

    @property
    def history_(self):
        return {
            f"{name}__{stage}": history
            for name, member in self.detectors_
            for stage, history in getattr(member, "history_", {}).items()
        }

    @property
    def named_detectors_(self):
        return Bunch(**dict(self.detectors_))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the ensemble, its members by name, and their parameters.

        Parameters
        ----------
        deep : bool, default=True
            Whether the members and their parameters are included.

        Returns
        -------
        params : dict
            Values by name.
        """
        return self._get_params("detectors", deep=deep)

    def set_params(self, **params: Any) -> Self:
        """Set parameters, replace members by name, or set parameters of members.

        Parameters
        ----------
        **params : dict
            Values by name, such as ``holdout``, ``vae`` or ``vae__latent_size``.

        Returns
        -------
        self
        """
        named = {key.partition("__")[0] for key in params}
        if self.detectors is None and named & {name for name, _ in default_detectors()}:
            self.detectors = default_detectors()
        self._set_params("detectors", **params)
        return self

    def _check_process(self):
        names = self._check_members()
        self.weights_ = dict(zip(names, _check_weights(self.weights, len(names))))

    def _check_members(self):
        """Names of the members, after a check of `detectors`."""
        members = self._members
        if not members or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in members):
            raise ValueError(f"detectors must be a list of one or more pairs (name, detector), got {members}")
        for name, detector in members:
            if not isinstance(name, str):
                raise TypeError(f"detectors must have names of type str, got {name!r}")
            if isinstance(detector, type) or not all(hasattr(detector, m) for m in ("fit", "iter_batches")):
                raise TypeError(f"detectors must hold detectors such as AutoEncoder(), got {name}={detector}")
        names = [name for name, _ in members]
        self._validate_names(names)
        return names

    @property
    def _members(self):
        return default_detectors() if self.detectors is None else self.detectors

    @property
    def _tells_unlabelled(self):
        return any(tells_unlabelled(detector) for _, detector in self._members)

    def _learn(self, images):
        rng = np.random.default_rng(draw_seed(self.random_state))
        rows = np.arange(len(images)) if images.rows is None else images.rows
        codes = np.ones(len(images), int)
        if self._tells_unlabelled and images.y is not None:
            codes[images.y == 0] = 0
        normal, n_held_out = np.flatnonzero(codes), self._n_held_out(codes.sum())
        held_out = rng.permutation(normal)[:n_held_out]
        # Members get X itself and leave out rows by -1: a copy of the others might not fit into memory.
        y = np.full(images.X.shape[0], -1)
        y[rows] = codes
        y[rows[held_out]] = -1
        scaling = images.subset(held_out if n_held_out else normal)
        self.detectors_, self.scales_ = [], {}
        for name, detector in self._members:
            member = self._prepared(detector, rng)
            member.fit(images.X, y if tells_unlabelled(member) else np.where(y == 0, 1, y))
            self.detectors_.append((name, member))
            judged = (_anomalies(member, X) for _, X in self._batches(scaling))
            of_scores, of_maps = self._sample(scaling, judged)
            self.scales_[name] = (
                _scale(of_scores, f"scores of {name!r}", images),
                None if of_maps is None else _scale(of_maps, f"maps of {name!r}", images),
            )

    def _n_held_out(self, n_normal):
        """Number of normal images that are held out of training, 0 if all of them are learned from."""
        if n_normal < N_HOLDOUT or not self.holdout:
            return 0
        n_held_out = round(self.holdout * n_normal)
        if not 2 <= n_held_out <= n_normal - 2:
            raise ValueError(
                f"holdout={self.holdout} of {n_normal} normal images leaves {n_held_out} to set the scales "
                f"and {n_normal - n_held_out} to learn from; give more images or change it"
            )
        return n_held_out

    def _prepared(self, detector, rng):
        """Unfitted clone of a member, with the parameters that it has from the ensemble."""
        own, layout = detector.get_params(deep=False), self._format.layout
        # What fit found, not the parameters: an array made of a tensor could be in doubt for "auto".
        given = {
            "channel_axis": layout.channel_axis,
            "image_shape": layout.image_shape if layout.rows else None,
        }
        low, high = self.intensity_range_
        if isinstance(own.get("intensity_range"), str) and low < high:
            given["intensity_range"] = low, high
        if self.random_state is not None:
            given["random_state"] = int(rng.integers(2**31))
        member = clone(detector)
        # Not in one line: set_params of a FrozenEstimator returns None.
        member.set_params(**{name: given[name] for name in given if name in own})
        return member

    def _check_own_attributes(self, attributes):
        scales, weights = attributes["scales_"], attributes["weights_"]
        names = [name for name, _ in attributes["detectors_"]]
        if not names == [name for name, _ in self._members] == list(scales) == list(weights):
            raise ValueError("detectors, detectors_, scales_ and weights_ must have the same names")
        _check_weights(list(weights.values()), len(names))
        for of_scores, of_maps in scales.values():
            for floor, median, spread in [of_scores, of_maps] if of_maps is not None else [of_scores]:
                if not math.isfinite(median) or not all(TINY <= v < math.inf for v in (floor or 1.0, spread)):
                    raise ValueError(f"scales_ cannot be {scales}")

    def _batches(self, images):
        """Yield (slice, rows of X in the layout of the fit) for each batch."""
        # Read here once, and not by each member: a lazy X may be slow.
        for rows in gen_batches(len(images), BATCH):
            batch = images.subset(np.arange(rows.start, rows.stop)).raw()
            yield rows, self._format.layout.from_network(batch)

    def _judgements(self, images, pick):
        for rows, X in self._batches(images):
            scores, maps = {}, {}
            for name, member in self.detectors_:
                of_scores, of_maps = self.scales_[name]
                score, parts = _anomalies(member, X)
                scores[name] = _standardise(score, of_scores)
                if parts is not None:
                    maps[name] = _standardise(parts, of_maps)
            score, mean_map = self._mean(scores), self._mean(maps)
            mean_map = None if mean_map is None else mean_map.astype(np.float32)
            yield rows, pick(Judgement(score, mean_map, scores))

    def _components(self, images):
        return (part for _, part in self._judgements(images, lambda judgement: judgement.components))

    def _mean(self, parts):
        """Weighted mean of arrays by member, within float32 or infinite; None if no part has a weight."""
        # Without weights of zero, whose product with an infinite score would be nan.
        weights = {name: self.weights_[name] for name in parts if self.weights_[name]}
        if not weights:
            return None
        total = sum(weight * parts[name] for name, weight in weights.items())
        return unlimited(np.maximum(total / sum(weights.values()), -WORST))


def _check_weights(weights, n):
    """Weights as a list of n floats of which the largest is 1."""
    if weights is None:
        return [1.0] * n
    are_numbers = all(isinstance(weight, Real) and 0 <= weight < math.inf for weight in weights)
    if len(weights) != n or not are_numbers or not any(weights):
        raise ValueError(
            f"weights must be numbers of 0 or more, not all 0, one for each of {n} detectors, got {weights}"
        )
    return [float(weight / max(weights)) for weight in weights]


def _anomalies(member, X):
    """Anomaly scores (b,), and maps (b, H, W) or None, of a member; infinite where they leave float32."""
    _, scores, maps = zip(*member.iter_batches(X))
    scores = unlimited(-np.concatenate(scores))
    return scores, None if maps[0] is None else unlimited(np.concatenate(maps))


def _scale(values, what, images):
    """Scale (floor, median, spread) of values of images held out; `images` are all that are learned from."""
    floor = max(float(values.min()) / 1000, TINY) if (values > 0).all() else None
    low, median, high = np.quantile(_transformed(values, floor), [0.25, 0.5, 0.75]).tolist()
    spread = high - low
    if spread < TINY:
        # Of equal images, fit has warned: they are learned, and judged, like any others.
        if not _are_equal(images):
            raise ValueError(
                f"the {what} have no spread: the middle half of {len(values)} values on normal images is "
                f"{low:g}, before the logarithm if all are positive, so that they cannot be brought to one "
                "scale with others; leave this detector out, or change its parameters"
            )
        spread = 1.0
    return floor, median, spread


def _are_equal(images):
    first = images.subset([0]).raw()
    return all(np.array_equal(images.subset([i]).raw(), first) for i in range(len(images)))


def _transformed(values, floor):
    """Values as float64 or, unless floor is None, their logarithms, continued by the tangent at the floor."""
    values = values.astype(np.float64)
    if floor is None:
        return values
    return np.log(np.maximum(values, floor)) + np.minimum(values - floor, 0) / floor


def _standardise(values, scale):
    floor, median, spread = scale
    return (_transformed(values, floor) - median) / spread
