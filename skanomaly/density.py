"""Outlier detectors for rows of numbers that scikit-learn lacks; behind ImageFeatures they judge images."""

import math
import warnings
from numbers import Integral, Real
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svd
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ._atomic import atomic_fit
from ._finite import check_learned
from ._parameters import COMMON
from .labels import training_rows, warn_without_anomalies

__all__ = ["CBLOF", "PrincipalComponentClassifier", "RobustKernelDensity"]

#: Quantiles of the distances to the estimate with the loss "absolute", in %: a, b and c of the other losses.
LOSS_QUANTILES = 50, 75, 95

#: Rows that are scored at a time: their distances to all training rows are in memory.
BATCH = 512

_whole = [Interval(Integral, 1, None, closed="left")]
_share = Interval(Real, 0, 1, closed="both")


class RowDetector(OutlierMixin, BaseEstimator):
    """Outlier detector of rows: a subclass has `_learn` and `_anomaly`, which is higher for worse rows."""

    # Of float32, the precision says which directions of the rows are no more than rounding.
    _dtypes = [np.float64, np.float32]

    contamination: float
    offset_: float

    @atomic_fit(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn what normal rows look like, and set ``offset_``.

        Parameters
        ----------
        X : (n, d) array-like
            Rows, at least two.
        y : (n,) array-like, default=None
            Labels: 1 normal, 0 unlabelled, -1 known anomaly. Rows with -1 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X holds NaN or infinity, fewer than two rows are usable, all rows are equal, or a parameter is
            out of range or does not suit the number of rows. A fit that fails leaves the estimator as it was.

        Warns
        -----
        LabelWarning
            If y holds anything but the number 1, and no -1.
        """
        given = validate_data(self, X, dtype=self._dtypes, ensure_min_samples=2)
        used, _ = training_rows(y, len(given))
        warn_without_anomalies(y, "all rows, labelled {labels}, are learned as normal")
        rows = given[used].astype(np.float64)
        self._learn(rows, np.finfo(given.dtype).eps)
        offset = np.percentile(-self._anomaly(rows), 100 * self.contamination)
        check_learned(offset_=offset)
        self.offset_ = float(offset)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score of each row; higher is more normal.

        Parameters
        ----------
        X : (n, d) array-like

        Returns
        -------
        scores : (n,) float64 ndarray
        """
        return -self._anomaly(self._open(X))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """`score_samples` - ``offset_``.

        Parameters
        ----------
        X : (n, d) array-like

        Returns
        -------
        decision : (n,) float64 ndarray
            Values that are negative where `predict` flags a row.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.intp]:
        """Label of each row.

        Parameters
        ----------
        X : (n, d) array-like

        Returns
        -------
        labels : (n,) int ndarray
            1 for normal rows, -1 for anomalous ones.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def _open(self, X):
        check_is_fitted(self)
        return validate_data(self, X, dtype=self._dtypes, reset=False).astype(np.float64)


class RobustKernelDensity(RowDetector):
    """Kernel density in which training rows that lie apart have little or no weight.

    A kernel density is the mean of one kernel for each training row. The robust one is their weighted mean,
    an M-estimate of the kernels' centre, so that anomalies among the training rows count little.

    Parameters
    ----------
    bandwidth : float or "auto", default="auto"
        Standard deviation h of the Gaussian kernel, in units of X. "auto" is the median, over the training
        rows, of the distance to the nearest different row.
    loss : {"hampel", "huber", "absolute"}, default="hampel"
        Loss of the distance of a row's kernel to the centre. "hampel" leaves the farthest rows out, "huber"
        and "absolute" only weigh them less.
    tol : float, default=1e-5
        Sum of the absolute changes of the weights, in [0, 2], below which the iterations end.
    max_iter : int, default=100
        Largest number of iterations. A loss other than "absolute" starts from the weights of "absolute", for
        which there are as many.
    contamination : float, default=0.1
        Share of the training rows that `predict` flags, in (0, 0.5]; it sets ``offset_``.

    Attributes
    ----------
    weights_ : (n,) float64 ndarray
        Weight of each training row; they sum to 1.
    rows_ : (n, d) float64 ndarray
        Training rows.
    bandwidth_ : float
        Standard deviation of the kernel.
    n_iter_ : int
        Number of iterations with the given loss.
    offset_ : float
        Threshold of scores. `predict` returns -1 where `score_samples` is below it.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame.

    See Also
    --------
    sklearn.neighbors.KernelDensity : Density with equal weights, and without a threshold.

    Notes
    -----
    The score is the logarithm of the density, log sum_i w_i N(x; x_i, h^2 I).

    Weights come from the kernelised iteratively re-weighted least squares of [1]_: the weight of a row is
    proportional to psi(r) / r, where r is the distance of its kernel to the present weighted mean, and psi
    the derivative of the loss. psi(r) is 1 for "absolute"; for "huber" it is r up to a, and a beyond; for
    "hampel" it also falls from b to c in a line, and is 0 beyond c. The constants a, b and c are the
    quantiles .5, .75 and .95 of the distances to the estimate with the loss "absolute".

    A fit has the kernels of all pairs of training rows in memory, n^2 numbers.

    References
    ----------
    .. [1] Kim, J., Scott, C. D. (2012). "Robust kernel density estimation". JMLR 13, 2529-2565.
       `jmlr.org/papers/v13/kim12b.html <https://www.jmlr.org/papers/v13/kim12b.html>`_

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.density import RobustKernelDensity
    >>> X = np.append(np.linspace(0, 1, 20), 9)[:, None]
    >>> RobustKernelDensity().fit(X).weights_[-1]
    np.float64(0.0)
    """

    _parameter_constraints = {
        "bandwidth": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "loss": [StrOptions({"hampel", "huber", "absolute"})],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": _whole,
        "contamination": COMMON["contamination"],
    }

    bandwidth_: float
    n_iter_: int
    rows_: NDArray[np.float64]
    weights_: NDArray[np.float64]

    def __init__(self, *, bandwidth="auto", loss="hampel", tol=1e-5, max_iter=100, contamination=0.1):
        self.bandwidth = bandwidth
        self.loss = loss
        self.tol = tol
        self.max_iter = max_iter
        self.contamination = contamination

    def _learn(self, rows, eps):
        squares = cdist(rows, rows, "sqeuclidean")
        check_learned(bandwidth_=squares.max())
        self.rows_ = rows
        self.bandwidth_ = nearest(squares) if self.bandwidth == "auto" else float(self.bandwidth)
        # Without the kernel's norm, which in many dimensions leaves float64. Weights do not depend on it.
        kernels = np.exp(-squares / (2 * self.bandwidth_**2))
        weights = np.full(len(rows), 1 / len(rows))
        weights, self.n_iter_ = self._reweigh(kernels, weights, lambda r: 1 / r)
        if self.loss != "absolute":
            # A little more, or rounding decides which of rows that are equally far out lie beyond c.
            a, b, c = np.percentile(distances_to_mean(kernels, weights), LOSS_QUANTILES) * (1 + 1e-7)
            if self.loss == "huber":
                b = c = math.inf
            weights, self.n_iter_ = self._reweigh(kernels, weights, lambda r: hampel(r, a, b, c))
        self.weights_ = weights

    def _reweigh(self, kernels, weights, weigh):
        """Weights at the end of the iterations, and their number."""
        for n_iter in range(1, self.max_iter + 1):
            before = weights
            weights = weigh(distances_to_mean(kernels, before))
            # Of rows that are equal but for rounding, all can lie beyond c.
            weights = weights / weights.sum() if weights.any() else before
            if np.abs(weights - before).sum() <= self.tol:
                return weights, n_iter
        message = f"weights still change after {self.max_iter} iterations; raise max_iter or tol"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return weights, n_iter

    def _anomaly(self, rows):
        h, counts = self.bandwidth_, self.weights_ > 0
        centres, weights = self.rows_[counts], np.log(self.weights_[counts])
        log_norm = rows.shape[1] / 2 * math.log(2 * math.pi * h**2)
        parts = [
            logsumexp(weights - cdist(rows[part], centres, "sqeuclidean") / (2 * h**2), axis=1)
            for part in gen_batches(len(rows), BATCH)
        ]
        return log_norm - np.concatenate(parts)


def nearest(squares):
    """Median distance of rows to their nearest different row, from the squared distances of all pairs."""
    apart = np.where(squares > 0, squares, np.inf).min(1)
    if np.isinf(apart).any():
        raise ValueError('all rows are equal, and bandwidth="auto" is a distance between rows; give a number')
    return float(np.median(np.sqrt(apart)))


def distances_to_mean(kernels, weights):
    """Distance of the kernel of each row to the weighted mean of all kernels, in their Hilbert space."""
    means = kernels @ weights
    # Rounding leaves a little below or above 0 of a kernel that is the mean, and 1 / 0 is no weight.
    least = np.finfo(np.float64).eps
    return np.sqrt(np.maximum(kernels.diagonal() - 2 * means + weights @ means, least))


def hampel(r, a, b, c):
    """psi(r) / r of Hampel's loss."""
    falling = (c - r) / (c - b) if math.isfinite(c) and c > b else np.where(r <= c, 1.0, 0.0)
    return np.minimum(1, a / r) * np.clip(falling, 0, 1)


class CBLOF(RowDetector):
    """Cluster-based local outlier factor: distance to the nearest large cluster.

    Rows are clustered, and the clusters that hold most rows are the large ones. A small cluster may be a
    group of anomalies, so that its rows are compared with the large clusters, too.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters, at most the number of training rows.
    alpha : float, default=0.9
        Share of the training rows that large clusters hold, in (0, 1].
    beta : float, default=5.0
        Ratio of the sizes of two consecutive clusters, by size, from which on the smaller one is no longer
        large, at least 1.
    use_weights : bool, default=False
        Whether the distance is multiplied by the number of training rows in the row's own cluster, as in the
        paper.
    contamination : float, default=0.1
        Share of the training rows that `predict` flags, in (0, 0.5]; it sets ``offset_``.
    random_state : int, RandomState or None, default=None
        Source of the first centres of k-means.

    Attributes
    ----------
    cluster_centers_ : (k, d) float64 ndarray
        Centres of the clusters, the largest cluster first. Clusters that no row is in are left out.
    cluster_sizes_ : (k,) int ndarray
        Number of training rows in each cluster.
    n_large_ : int
        Number of large clusters.
    offset_ : float
        Threshold of scores. `predict` returns -1 where `score_samples` is below it.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame.

    See Also
    --------
    sklearn.neighbors.LocalOutlierFactor : Factor from densities of neighbours.

    Notes
    -----
    The score is the factor of [1]_, multiplied by -1. A row is in the cluster with the nearest
    centre. Clusters are large from the largest on, until they hold the share `alpha` of the rows, or until
    the next one is smaller by the factor `beta`. The distance of a row in a large cluster is that to
    its centre, and of a row in a small one that to the nearest centre of a large cluster.

    The paper clusters categorical data by Squeezer; here it is k-means, with Euclidean distances. With
    `use_weights`, rows near a small cluster have a low factor, and are overlooked; [2]_ found the factor
    without weights better.

    References
    ----------
    .. [1] He, Z., Xu, X., Deng, S. (2003). "Discovering cluster-based local outliers". Pattern Recognition
       Letters 24(9-10), 1641-1650. `doi:10.1016/S0167-8655(03)00003-5
       <https://doi.org/10.1016/S0167-8655(03)00003-5>`_
    .. [2] Goldstein, M., Uchida, S. (2016). "A comparative evaluation of unsupervised anomaly detection
       algorithms for multivariate data". PLoS ONE 11(4). `doi:10.1371/journal.pone.0152173
       <https://doi.org/10.1371/journal.pone.0152173>`_

    Examples
    --------
    >>> from skanomaly.density import CBLOF
    >>> X = [[0], [1], [0], [1], [0], [1], [9]]
    >>> CBLOF(n_clusters=2, alpha=0.8, random_state=0).fit(X).score_samples(X)
    array([-0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -8.5])
    """

    _parameter_constraints = {
        "n_clusters": _whole,
        "alpha": [Interval(Real, 0, 1, closed="right")],
        "beta": [Interval(Real, 1, None, closed="left")],
        "use_weights": ["boolean"],
        "contamination": COMMON["contamination"],
        "random_state": ["random_state"],
    }

    cluster_centers_: NDArray[np.float64]
    cluster_sizes_: NDArray[np.intp]
    n_large_: int

    def __init__(
        self,
        *,
        n_clusters=8,
        alpha=0.9,
        beta=5.0,
        use_weights=False,
        contamination=0.1,
        random_state=None,
    ):
        self.n_clusters = n_clusters
        self.alpha = alpha
        self.beta = beta
        self.use_weights = use_weights
        self.contamination = contamination
        self.random_state = random_state

    def _learn(self, rows, eps):
        if len(rows) < self.n_clusters:
            raise ValueError(
                f"n_clusters={self.n_clusters} needs as many training rows, and there are {len(rows)}; give "
                "more rows or fewer clusters"
            )
        means = KMeans(self.n_clusters, n_init=10, random_state=self.random_state).fit(rows)
        centres = means.cluster_centers_
        # Not its labels_: a row on the border would be in one cluster now, and in another when it is scored.
        sizes = np.bincount(cdist(rows, centres).argmin(1), minlength=len(centres))
        order = [i for i in np.argsort(-sizes, kind="stable") if sizes[i]]
        self.cluster_centers_, self.cluster_sizes_ = centres[order], sizes[order]
        self.n_large_ = n_large(self.cluster_sizes_, self.alpha, self.beta)

    def _anomaly(self, rows):
        distances = cdist(rows, self.cluster_centers_)
        own = distances.argmin(1)
        nearest_large = distances[:, : self.n_large_].min(1)
        return nearest_large * self.cluster_sizes_[own] if self.use_weights else nearest_large


def n_large(sizes, alpha, beta):
    """Number of large clusters, of sizes in descending order."""
    enough = np.cumsum(sizes) >= alpha * sizes.sum()
    gap = sizes >= beta * np.append(sizes[1:], 0)
    return int(np.argmax(enough | gap)) + 1


class PrincipalComponentClassifier(RowDetector):
    """Distances along the first and the last principal components, each with a threshold.

    The major components have most of the variance: rows far out along them are extreme in many features. The
    minor ones have little: rows far out along these do not keep to the correlations of the features.

    Parameters
    ----------
    major : float, default=0.5
        Share of the total variance that the major components have, in [0, 1]. 0 uses none of them.
    minor : float, default=0.2
        Variance, as a share of the mean variance of the components, below which components are minor, 0 or
        more. 0 uses none of them.
    trim : float, default=0.005
        Share of the training rows, those farthest out, that is left out before the components are learned, in
        [0, 0.5]. Rows are not left out if no more than the number of features would remain.
    contamination : float, default=0.1
        Share of the training rows that `predict` flags, in (0, 0.5]; it sets ``offset_`` and
        ``thresholds_``.

    Attributes
    ----------
    mean_, scale_ : (d,) float64 ndarray
        Mean and standard deviation of each feature. The deviation of a constant feature is 1.
    components_ : (k, d) float64 ndarray
        Principal components of the standardised features, the one with the largest variance first.
    variances_ : (k,) float64 ndarray
        Variance along each component. Directions without any variance are left out.
    n_major_, n_minor_ : int
        Number of major components, which are the first, and of minor ones, the last.
    thresholds_ : (2,) float64 ndarray
        Thresholds c1 and c2 of the sums over major and minor components.
    offset_ : float
        Threshold of scores. `predict` returns -1 where `score_samples` is below it.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame.

    See Also
    --------
    sklearn.decomposition.PCA : Density with all components as its score.

    Notes
    -----
    The paper flags a row if the sum of y_i^2 / lambda_i over the major components is above c1, or that over
    the minor ones above c2 [1]_, where y_i is the row along component i, and lambda_i the variance
    there. The score is the larger of the two sums, each divided by its threshold, multiplied by -1. c1 and c2
    are quantiles of the training rows, which each flag 1 - sqrt(1 - `contamination`) of them: together they
    flag `contamination` if they are independent. They are not quite, which ``offset_`` sets right: it is
    about -1.

    Features are standardised, so that the mean variance of the components is 1, and `minor` is the limit of
    the paper. With fewer rows than features there are fewer components, and their mean variance is higher.
    What has no variance in training has no component: a deviation there is not seen.

    Thresholds are set by the rows from which the components were learned. With about as many features as
    rows, these lie nearer than new ones, and most new rows are flagged. With far more features, it may be
    hardly any: most of what sets new rows apart has no component. In both cases set the threshold on rows
    that were not used in `fit`.

    References
    ----------
    .. [1] Shyu, M.-L., Chen, S.-C., Sarinnapakorn, K., Chang, L. (2003). "A novel anomaly detection scheme
       based on principal component classifier". IEEE Foundations and New Directions of Data Mining Workshop,
       172-179. `dtic.mil ADA465712 <https://apps.dtic.mil/sti/citations/ADA465712>`_

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.density import PrincipalComponentClassifier
    >>> x = np.linspace(-1, 1, 50)
    >>> X = np.stack([x, x + 0.01 * np.sin(9 * x)], axis=1)
    >>> PrincipalComponentClassifier().fit(X).predict([[0.5, 0.5], [0.5, -0.5]])
    array([ 1, -1])
    """

    _parameter_constraints = {
        "major": [_share],
        "minor": [Interval(Real, 0, None, closed="left")],
        "trim": [Interval(Real, 0, 0.5, closed="both")],
        "contamination": COMMON["contamination"],
    }

    components_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    n_major_: int
    n_minor_: int
    scale_: NDArray[np.float64]
    thresholds_: NDArray[np.float64]
    variances_: NDArray[np.float64]

    def __init__(self, *, major=0.5, minor=0.2, trim=0.005, contamination=0.1):
        self.major = major
        self.minor = minor
        self.trim = trim
        self.contamination = contamination

    def _learn(self, rows, eps):
        self._decompose(rows, eps)
        n_kept = len(rows) - int(self.trim * len(rows))
        # With as many features as rows, all training rows are equally far out.
        if rows.shape[1] < n_kept < len(rows):
            farthest = np.argsort(np.square(self._along(rows)).sum(1), kind="stable")
            self._decompose(rows[farthest[:n_kept]], eps)
        so_far = np.cumsum(self.variances_)
        # Not a share of variances_.sum(), which is rounded otherwise and might not be reached.
        self.n_major_ = int(np.searchsorted(so_far, self.major * so_far[-1])) + 1 if self.major else 0
        least = self.minor * self.variances_.mean()
        self.n_minor_ = int((self.variances_[self.n_major_ :] < least).sum())
        if not self.n_major_ + self.n_minor_:
            raise ValueError(
                f"no component is left: major={self.major}, and no variance is below minor={self.minor}"
            )
        sums = np.stack(self._sums(rows), axis=1)
        thresholds = np.quantile(sums, math.sqrt(1 - self.contamination), axis=0)
        # If nearly all rows are the mean itself, their quantile is 0, and no number to divide by.
        self.thresholds_ = np.maximum(thresholds, eps)

    def _decompose(self, rows, eps):
        """Set the components and the variances along them."""
        self.mean_ = rows.mean(0)
        centred = rows - self.mean_
        deviations = np.sqrt(np.square(centred).sum(0) / (len(rows) - 1))
        check_learned(scale_=deviations)
        # The mean of a constant feature is rounded, and the difference would be blown up to variance 1.
        constant = deviations <= 10 * eps * np.abs(rows).max(0)
        if constant.all():
            raise ValueError("all rows are equal: they have no components")
        self.scale_ = np.where(constant, 1.0, deviations)
        _, values, components = svd(centred / self.scale_, full_matrices=False)
        n = int((values > values[0] * max(rows.shape) * eps).sum())
        self.components_, self.variances_ = components[:n], values[:n] ** 2 / (len(rows) - 1)

    def _along(self, rows):
        """Place of each row along each component, in units of the standard deviation there."""
        return (rows - self.mean_) / self.scale_ @ self.components_.T / np.sqrt(self.variances_)

    def _sums(self, rows):
        """Squared distance of each row along the major components, and along the minor ones."""
        squares = np.square(self._along(rows))
        first_minor = len(self.variances_) - self.n_minor_
        return squares[:, : self.n_major_].sum(1), squares[:, first_minor:].sum(1)

    def _anomaly(self, rows):
        return np.max(np.transpose(self._sums(rows)) / self.thresholds_, axis=1)

    def score_components(self, X: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Both distances of each row; higher is worse.

        Parameters
        ----------
        X : (n, d) array-like

        Returns
        -------
        components : dict of str to (n,) float64 ndarray
            Sums of y_i^2 / lambda_i by name: "major" and "minor". They are 0 where there are no such
            components.
        """
        return dict(zip(("major", "minor"), self._sums(self._open(X))))
