"""Access to the detector inside a Pipeline, a search or a FrozenEstimator, and to maps of that detector."""

from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted


def unwrap(estimator, X):
    """The detector inside `estimator`, and X as that detector sees it."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            # A slice without steps would be a Pipeline that cannot transform.
            if len(estimator) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        elif hasattr(estimator, "refit"):
            # First, because an unfitted search has no best_estimator_ either but needs another message.
            check_is_fitted(estimator)
            if not hasattr(estimator, "best_estimator_"):
                raise ValueError(
                    f"{type(estimator).__name__} keeps no fitted detector with refit=False; set refit=True"
                )
            estimator = estimator.best_estimator_
        else:
            return estimator, X


def call_inside(method, estimator, X, **options):
    """Result of a method of the detector inside `estimator`, called with X as that detector sees it."""
    detector, X = unwrap(estimator, X)
    if not hasattr(detector, method):
        raise TypeError(f"{type(detector).__name__} has no {method}: give a detector, or what holds one")
    return getattr(detector, method)(X, **options)


def anomaly_map(estimator, X, *, out=None):
    """`anomaly_map` of the detector inside a Pipeline, a search or a FrozenEstimator.

    Parameters
    ----------
    estimator : fitted detector
        Detector, or a Pipeline, search or FrozenEstimator that holds one.
    X : array-like
        Images, as the estimator takes them.
    out : array-like of shape (n, H, W), default=None
        Array to write the maps into.

    Returns
    -------
    maps : (n, H, W) float32 ndarray, or `out`
        Maps of the detector; higher is more anomalous.
    """
    return call_inside("anomaly_map", estimator, X, out=out)


def segment(estimator, X, **options):
    """`segment` of the detector inside a Pipeline, a search or a FrozenEstimator.

    Parameters
    ----------
    estimator : fitted detector
        Detector, or a Pipeline, search or FrozenEstimator that holds one.
    X : array-like
        Images, as the estimator takes them.
    **options : dict
        Options of the detector's `segment`.

    Returns
    -------
    masks : (n, H, W) bool ndarray, or `out`
        Masks of the detector: True where a pixel is flagged.
    """
    return call_inside("segment", estimator, X, **options)


def reconstruct(estimator, X, *, out=None):
    """`reconstruct` of the detector inside a Pipeline, a search or a FrozenEstimator.

    Parameters
    ----------
    estimator : fitted detector
        Detector, or a Pipeline, search or FrozenEstimator that holds one.
    X : array-like
        Images, as the estimator takes them.
    out : array-like, default=None
        Array to write the images into.

    Returns
    -------
    images : float32 ndarray, or `out`
        Images in the layout and units of the X that the detector gets from the steps before it.
    """
    return call_inside("reconstruct", estimator, X, out=out)


def p_value(estimator, X):
    """`p_value` of the detector inside a Pipeline, a search or a FrozenEstimator.

    Parameters
    ----------
    estimator : fitted detector
        Calibrated detector, or a Pipeline, search or FrozenEstimator that holds one.
    X : array-like
        Images, as the estimator takes them.

    Returns
    -------
    p : (n,) float64 ndarray
        p-values in (0, 1], lower is more anomalous.
    """
    return call_inside("p_value", estimator, X)
