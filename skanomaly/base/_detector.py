"""BaseDetector: everything that detectors have in common, and the methods that each detector must add."""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ks_2samp
from sklearn.base import OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from .. import labels, segmentation
from .._atomic import all_or_nothing, checked_fit
from .._finite import NotFiniteError, check_learned, limited, refuse_not_finite
from .._random import default_modes, draw_seed, seeded
from ..training._progress import CallbackSupport
from ._estimator import ImageEstimator, gather

#: Largest number of map pixels that are kept to set `pixel_offset_`; all of them might not fit into memory.
N_PIXELS = 10**7


class Drift(NamedTuple):
    """Result of `drift`: a two-sample Kolmogorov-Smirnov test.

    Parameters
    ----------
    statistic : float
        Largest difference between the shares of new and of calibration images whose score is below any value,
        from 0 (no difference) to 1.
    pvalue : float
        Probability of such a difference, or a larger one, if new images are like those of the calibration.
    """

    statistic: float
    pvalue: float


class Judgement(NamedTuple):
    """Judgement of a batch of images, as tensors in which higher is more anomalous.

    Parameters
    ----------
    score : (n,) tensor
        Anomaly score of each image.
    map : (n, H, W) tensor or None
        Anomaly map of each image; None for a method without maps.
    components : dict of str to (n,) tensor or callable
        Parts of the score, and other scores. A costly component may be a function without arguments that
        returns the tensor; only `score_components` calls it.
    """

    score: torch.Tensor
    map: torch.Tensor | None
    components: dict = {}

    @classmethod
    def of_map(cls, maps, **components):
        """Judgement whose score, and component "residual", is the mean of the map.

        Parameters
        ----------
        maps : (n, H, W) tensor
            Anomaly map of each image.
        **components
            Other components.
        """
        score = maps.mean((1, 2))
        return cls(score, maps, {"residual": score} | components)


class BaseDetector(CallbackSupport, OutlierMixin, ImageEstimator):
    """Base of all detectors. Its subclass `TrainedDetector` is the base of those trained in epochs.

    A subclass writes `_build` and `_judge`. It also writes `_measure` if it learns statistics of normal
    images, `_prepare` if sizes of its network depend on the data, and `_reconstruct` if it reconstructs.

    Shared parameters have constraints already; a subclass lists the constraints of its other parameters in
    ``_parameter_constraints``. In its docstring, ``parameters`` and ``attributes`` in braces are replaced by
    the entries that detectors share.
    """

    #: Whether the method learns something else from unlabelled images (y = 0) than from normal ones.
    _tells_unlabelled = False

    # Set by `_assign_shared`.
    contamination: float
    pixel_contamination: float

    offset_: float
    pixel_offset_: float
    calibration_scores_: NDArray[np.float64]
    map_range_: tuple[float, float]

    # Methods for subclasses to write.

    def _prepare(self, images):
        """Set fitted attributes on which `_build` depends.

        Parameters
        ----------
        images : Images
            Images to learn from. ``images.y`` holds their labels (1 normal, 0 unlabelled), or is None.
        """

    def _measure(self, network, images):
        """Fill the network's buffers with statistics of the training images.

        Returns
        -------
        judged : None, or sequence of (score (b,), map (b, H, W) or None)
            Anomaly scores and maps of the normal images, batch by batch in order, as numpy arrays. They set
            the thresholds. If it is None, the images are judged in a second pass.
        """

    def _judge(self, network, x):
        """Judgement of a batch of images (n, c, h, w). It is called in eval mode and without gradients."""
        raise NotImplementedError

    def _reconstruct(self, network, x):
        """Reconstructions of images (n, c, h, w). Only detectors that reconstruct have this method."""
        raise NotImplementedError

    # Fitting.

    # Nested validation is not skipped: users set parameters of the detectors in a composite, too.
    @checked_fit(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn what is normal.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C), (n, C, H, W) or (n, d)
            Images, or rows: a numpy array, memmap, CPU tensor, DataFrame of rows, list of arrays, tensors or
            PIL images, or any object with ``shape``, ``dtype`` and ``X[a:b]``.
        y : array-like of shape (n,), default=None
            Labels: 1 normal, 0 unlabelled, -1 known anomaly. Rows with -1 are left out; rows with any other
            label count as normal. `skanomaly.labels.from_anomalies` makes such labels from labels of yours.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X holds NaN or infinity, its shape is ambiguous or impossible, a label is missing, fewer than
            two images are usable, or a parameter is out of range. A fit that fails leaves the detector as it
            was.
        TypeError
            If X holds paths, masked values or no real numbers, or if a lazy X reads as several dtypes.
        FloatingPointError
            If a loss, a score or a learned statistic is not finite. The message names the stage and the
            epoch, or the image.

        Warns
        -----
        LabelWarning
            If y holds anything but the number 1, and no -1: labels 0 and 1, booleans or strings may mark
            anomalous images, which are learned as normal. A detector that learns something else from
            unlabelled images than from normal ones does not warn of the numbers 0 and 1.

        Notes
        -----
        With `checkpoint_dir`, a `fit` that was killed continues when it is called again with the same
        parameters and data. It ends with the same bits as a `fit` that was not killed.
        """
        with self._fit_task(X, y), default_modes():
            self._fit(X, y)
        return self

    # `_fit`, not `fit`: after a failed fit, scikit-learn closes its callbacks by attributes of `_fit_task`.
    @all_or_nothing
    def _fit(self, X, y):
        self._check_process()
        vars(self).pop("calibration_scores_", None)  # of the last fit
        self._format, images = self._format_class.learn(X, y, self, self._image_range)
        self._warn_of_labels(y, "all rows, labelled {labels}, are learned as normal")
        self._prepare(images)
        judged = self._learn(images)
        scores, pixels = self._sample(self._normals(images), judged, self._last_step())
        # A quantile, not the worst score: scikit-learn expects this share of training images to be flagged.
        offset = np.percentile(-scores, 100 * self.contamination)
        self._set_thresholds(offset, pixels, self.pixel_contamination)

    def _warn_of_labels(self, y, consequence):
        if self._tells_unlabelled:
            consequence += "; those labelled 0 or False count as unlabelled"
        labels.warn_without_anomalies(y, consequence, tells_unlabelled=self._tells_unlabelled)

    def _learn(self, images):
        """Make ``network_`` from the images; return what `_measure` returns."""
        with seeded(draw_seed(self.random_state), self.device_):
            network = self._new_network()
            judged = self._measure(network, images)
        self.network_ = self._settle(network)
        return judged

    def _last_step(self):
        """Description of the last stage of a fit, for an error message."""
        return ""

    def _normals(self, images):
        """Training images that set the thresholds: all, or only the normal ones if `_tells_unlabelled`."""
        told = self._tells_unlabelled and images.y is not None
        return images.subset(np.flatnonzero(images.y != 0)) if told else images

    def calibrate(
        self,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        *,
        false_alarm_rate: float = 0.05,
        pixel_false_alarm_rate: float = 0.01,
        X_normal: ArrayLike | None = None,
    ) -> Self:
        """Reset both thresholds from normal images that the detector was not trained on.

        A detector has learned its training images. Thresholds from them usually flag a larger share of new
        normal images than of the training images. ``map_range_``, the colour scale, is reset, too. The scores
        of the images are kept for `p_value` and `drift`.

        Parameters
        ----------
        X : array-like
            Images that were not used in `fit`. Without y all of them must be normal.
        y : array-like of shape (n,), default=None
            Labels of the images. Only those with 1 (normal) are used: -1 (anomalous) and 0 (unlabelled) are
            left out.
        false_alarm_rate : float, default=0.05
            Expected share of new normal images that `predict` will flag, in (0, 1). The share of one detector
            varies around it: with 77 images and a rate of 0.05, it is between 0.01 and 0.13 in 99 % of cases.
        pixel_false_alarm_rate : float, default=0.01
            Share of the pixels in maps of these images that lie above ``pixel_offset_``, in (0, 1).
        X_normal : array-like, default=None
            Former name of X, deprecated.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a score or a pixel of a map is not finite, as with a fill value in an image; the message names
            the image. A calibration that fails leaves the thresholds as they were.
            If y marks no image with 1, a label is missing, or a rate is not between 0 and 1.

        Warns
        -----
        LabelWarning
            If y may mark anomalous images by another label than -1, as `fit` does.
        """
        if (X is None) == (X_normal is None):
            raise TypeError("calibrate needs images X, with labels y or without; X_normal is their old name")
        if X is None:
            warnings.warn(
                "X_normal is deprecated: give the images as X, with their labels y if not all are normal",
                FutureWarning,
                stacklevel=2,
            )
            X = X_normal
        images = self._open_normal(X, y)
        rates = {"false_alarm_rate": false_alarm_rate, "pixel_false_alarm_rate": pixel_false_alarm_rate}
        for name, rate in rates.items():
            check_rate(name, rate)
        scores, pixels = self._sample(images)
        offset = rank_threshold(scores, false_alarm_rate, "images")
        self._set_thresholds(offset, pixels, pixel_false_alarm_rate)
        self.calibration_scores_ = np.sort(scores)
        return self

    def _open_normal(self, X, y):
        """Images of X, or, if there are labels, those with 1."""
        images = self._open(X)
        if y is None:
            return images
        images = images.subset(labels.normal_rows(y, len(images)))
        done = "of the rows, labelled {labels}, only those with 1 were taken for normal"
        labels.warn_without_anomalies(y, done, tells_unlabelled=self._tells_unlabelled)
        return images

    def drift(self, X: ArrayLike, y: ArrayLike | None = None) -> Drift:
        """Whether new normal images, of another scanner or month, are still like those of the calibration.

        The scores of the new images are compared with those of the calibration, by a two-sample
        Kolmogorov-Smirnov test: it notices better, worse and more scattered scores, whatever their
        distribution, and is exact. If it rejects, p-values and false alarm rates no longer hold for such
        images: `calibrate` again.

        Parameters
        ----------
        X : array-like
            Normal images, neither of the training nor of the calibration. Without y all must be normal.
        y : array-like of shape (n,), default=None
            Labels of the images. Only those with 1 (normal) are used.

        Returns
        -------
        drift : Drift
            Named tuple of ``statistic`` and ``pvalue``.

        Raises
        ------
        NotFittedError
            If the detector is not calibrated.
        ValueError
            If X does not fit the images of `fit`, or y marks no image with 1.
        """
        known = calibration_scores(self, "drift", "images")
        scores, _ = self._sample(self._open_normal(X, y))
        return two_samples(scores, known)

    def _sample(self, images, judged=None, last_step=""):
        """Anomaly scores (n,) of images, and a sample of the pixels of their maps (None without maps)."""
        if judged is None:
            judged = (part for _, part in self._judgements(images, lambda judgement: judgement[:2]))
        per_image = max(1, N_PIXELS // len(images))
        # A fixed seed: the same images give the same threshold whenever the detector is calibrated.
        rng = np.random.default_rng(0)
        scores, pixels = [], []
        for score, maps in judged:
            score = score.astype(np.float64)
            scores.append(score)
            if maps is not None:
                maps = maps.reshape(len(maps), -1)
                score[~np.isfinite(maps).all(1)] = np.inf
                if maps.shape[1] > per_image:
                    maps = maps[:, rng.choice(maps.shape[1], per_image, replace=False)]
                pixels.append(maps.ravel())
        scores = np.concatenate(scores)
        if len(scores) != len(images):
            raise ValueError(
                f"{type(self).__name__}._measure returned {len(scores)} judgements for {len(images)} normal "
                "images; return those of all of them, or None"
            )
        if last_step and not np.isfinite(scores).any():
            raise NotFiniteError(f"scores of the training images are not finite{last_step}")
        refuse_not_finite("the score, or the map,", scores, rows=images.rows)
        return scores, np.concatenate(pixels) if pixels else None

    def _set_thresholds(self, offset, pixels, rate):
        learned = {"offset_": offset}
        if pixels is not None:
            quantiles = np.quantile(pixels, [1 - rate, 0.01, 0.999])
            learned |= {"pixel_offset_": quantiles[0], "map_range_": quantiles[1:]}
        check_learned(**learned)
        self.offset_ = float(offset)
        self.pixel_offset_ = float(learned.get("pixel_offset_", math.nan))
        self.map_range_ = tuple(map(float, learned.get("map_range_", (math.nan, math.nan))))

    # Judging.

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Normality of each image.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        scores : (n,) float64 ndarray
            Anomaly scores of the method, multiplied by -1: higher is more normal. An image whose score is
            beyond float32 gets the lowest finite float32.
        """
        parts = self._limited_judgements(self._open(X), lambda judgement: judgement.score)
        return -np.concatenate([score.astype(np.float64) for _, score in parts])

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """`score_samples` - ``offset_``.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        decision : (n,) float64 ndarray
            Values that are negative where `predict` flags an image.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike, *, false_alarm_rate: float | None = None) -> NDArray[np.intp]:
        """Label of each image.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        false_alarm_rate : float, default=None
            Share of new normal images that may be flagged, in (0, 1): images whose `p_value` is not above it
            are. None flags images whose score is below ``offset_``.

        Returns
        -------
        labels : (n,) int ndarray
            1 for normal images, -1 for anomalous ones.

        Raises
        ------
        NotFittedError
            If `false_alarm_rate` is given and the detector is not calibrated.
        """
        if false_alarm_rate is None:
            return np.where(self.decision_function(X) >= 0, 1, -1)
        check_rate("false_alarm_rate", false_alarm_rate)
        return np.where(self.p_value(X) <= false_alarm_rate, -1, 1)

    def p_value(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probability that a normal image looks at least as anomalous: a conformal p-value.

        It is (1 + number of calibration images with a score at least as bad) / (n + 1). For a new normal
        image that is exchangeable with the n images of the calibration it is at most p with probability p,
        whatever the distribution of the scores [1]_. It is never below 1 / (n + 1): of 77 images none can be
        below .013.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        p : (n,) float64 ndarray
            p-values in (0, 1], lower is more anomalous. Those of several images depend on one another,
            because all are compared with the same calibration images, but positively, so that the false
            discovery rate of Benjamini and Hochberg holds [1]_.

        Raises
        ------
        NotFittedError
            If the detector is not calibrated.

        References
        ----------
        .. [1] Bates, S., Candès, E., Lei, L., Romano, Y., Sesia, M. (2023). "Testing for outliers with
           conformal p-values". Annals of Statistics 51. `arXiv:2104.08279
           <https://arxiv.org/abs/2104.08279>`_
        """
        return conformal_p(calibration_scores(self, "p_value", "images"), -self.score_samples(X))

    def score_components(self, X: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Components of the score: its parts, and other scores of the method.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        components : dict of str to (n,) float64 ndarray
            Values of each component by its name; higher is more anomalous.
        """
        parts = list(self._components(self._open(X)))
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: limited(values.astype(np.float64)) for name, values in whole.items()}

    def _components(self, images):
        """Iterator over dicts of components (b,), one dict for each batch."""

        def components(judgement):
            return {k: v() if callable(v) else v for k, v in judgement.components.items()}

        return (part for _, part in self._judgements(images, components))

    def anomaly_map(self, X: ArrayLike, *, out: Any = None) -> NDArray[np.float32]:
        """Map of each image: how anomalous each pixel is.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        out : array-like of shape (n, H, W), default=None
            Array into which the maps are written, for example a writable memmap. A dtype that cannot hold
            float32 is refused.

        Returns
        -------
        maps : (n, H, W) float32 ndarray, or `out`
            Maps on one scale for all images; higher is more anomalous.
        """
        images = self._open(X)
        return gather(self._maps(images), images.map_shape, np.float32, out)

    def segment(
        self,
        X: ArrayLike,
        *,
        median_size: int | None = None,
        fill_holes: bool = True,
        min_size: int = 0,
        out: Any = None,
    ) -> NDArray[np.bool_]:
        """Mask of each image: the pixels whose `anomaly_map` is above ``pixel_offset_``, cleaned.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        median_size : int, default=None
            Side, in pixels, of a median filter that is applied to the maps before the threshold.
        fill_holes : bool, default=True
            Whether pixels that are enclosed by flagged ones are flagged, too.
        min_size : int, default=0
            Least number of pixels in a flagged region; smaller regions are dropped.
        out : array-like of shape (n, H, W), default=None
            Array into which the masks are written.

        Returns
        -------
        masks : (n, H, W) bool ndarray, or `out`
            True where a pixel is flagged.
        """
        images = self._open(X)
        options = {"median_size": median_size, "fill_holes": fill_holes, "min_size": min_size}
        masks = (
            (rows, segmentation.residual_mask(maps, self.pixel_offset_, **options))
            for rows, maps in self._maps(images)
        )
        return gather(masks, images.map_shape, bool, out)

    def iter_batches(
        self, X: ArrayLike
    ) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float32] | None]]:
        """Scores and maps of X from one forward pass, a batch at a time.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Yields
        ------
        rows : slice
            Rows of X in this batch.
        scores : (b,) float64 ndarray
            Scores of `score_samples`.
        maps : (b, H, W) float32 ndarray or None
            Maps of `anomaly_map`; None for a method without maps.
        """
        for rows, (score, maps) in self._limited_judgements(self._open(X), lambda judgement: judgement[:2]):
            yield rows, -score.astype(np.float64), maps

    def _reconstructs(self):
        return type(self)._reconstruct is not BaseDetector._reconstruct

    @available_if(_reconstructs)
    def reconstruct(self, X: ArrayLike, *, out: Any = None) -> NDArray[np.float32]:
        """Reconstruction of each image, which at best shows the image without its anomalies.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        out : array-like of the shape of X, default=None
            Array into which the reconstructions are written.

        Returns
        -------
        images : float32 ndarray, or `out`
            Reconstructions in the layout and units of X.
        """
        images = self._open(X)
        parts = self._run(lambda x: self._reconstruct(self.network_, x), images)
        parts = ((rows, images.from_network(part)) for rows, part in parts)
        return gather(parts, images.X.shape, np.float32, out)

    def _judgements(self, images, pick):
        """Yield (slice, part) for each batch: numpy arrays of the part that `pick` takes from a Judgement."""
        return self._run(lambda x: pick(self._judge(self.network_, x)), images)

    def _limited_judgements(self, images, pick):
        """`_judgements` as users see them: whatever leaves float32 is the worst finite number."""
        return ((rows, limited(part)) for rows, part in self._judgements(images, pick))

    def _maps(self, images):
        """Yield (slice, maps) for each batch."""
        for rows, maps in self._limited_judgements(images, lambda judgement: judgement.map):
            if maps is None:
                raise TypeError(
                    f"{type(self).__name__} judges whole images and has no anomaly map or mask; "
                    "use score_samples, or a detector that reconstructs"
                )
            yield rows, maps


def calibration_scores(detector, method, what):
    """Anomaly scores that `calibrate` kept. `method` asks for them, `what` names what was scored."""
    check_is_fitted(detector)
    if not hasattr(detector, "calibration_scores_"):
        raise NotFittedError(
            f"{method} compares {what} with those of a calibration: call calibrate with normal {what} that "
            "the detector was not trained on"
        )
    return detector.calibration_scores_


def conformal_p(known, scores):
    """p-values of anomaly scores, by the ascending anomaly scores `known` of normal images."""
    # Equal scores count as at least as bad: fewer images are flagged, never more.
    at_least = len(known) - np.searchsorted(known, scores, side="left")
    return (1 + at_least) / (len(known) + 1)


def rank_threshold(scores, rate, what):
    """Threshold of scores below which a new normal one falls with this probability, by anomaly scores.

    `what` names what was scored, in a warning that there are too few.
    """
    n_needed = math.ceil(1 / rate) - 1
    if len(scores) < n_needed:
        warnings.warn(
            f"{len(scores)} {what} cannot show a false alarm rate of {rate}: the threshold is the worst of "
            f"them; give at least {n_needed}",
            stacklevel=3,
        )
    # weibull: the probability is the rate, whatever the distribution, if rate * (n + 1) is a whole number.
    # Else it lies between those of the two nearest ranks.
    return float(np.quantile(-scores, rate, method="weibull"))


def two_samples(scores, known):
    """`Drift` of anomaly scores from the known ones."""
    found = ks_2samp(scores, known)
    return Drift(float(found.statistic), float(found.pvalue))


def check_rate(name, rate):
    if not 0 < rate < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {rate}")


def open_images(detector, X):
    """Images of X in the format of a fitted detector, after the detector's checks of X."""
    return detector._open(X)


def tells_unlabelled(detector):
    """Whether a detector learns something else from unlabelled images (y = 0) than from normal ones."""
    return getattr(detector, "_tells_unlabelled", False)
