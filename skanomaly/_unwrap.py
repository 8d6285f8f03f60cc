"""Access to the detector inside a Pipeline, a search or a FrozenEstimator, and to maps of that detector."""

from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from .base import gather


def unwrap(estimator, X):
    """The detector inside `estimator`, and X as that detector sees it."""
    return _walk(estimator, X)[:2]


def _walk(estimator, X):
    """The detector inside `estimator`, X as that detector sees it, and the (step, X before it) on the way."""
    way = []
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            for step in _steps(estimator[:-1]) if len(estimator) > 1 else ():
                way.append((step, X))
                X = step.transform(X)
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
            return estimator, X, way


def _steps(pipeline):
    """Steps of a Pipeline and of Pipelines in it, but for those that pass everything through."""
    for _, step in pipeline.steps:
        if isinstance(step, Pipeline):
            yield from _steps(step)
        elif step is not None and step != "passthrough":
            yield step


def _call(method, detector, X, **options):
    if not hasattr(detector, method):
        raise TypeError(f"{type(detector).__name__} has no {method}: give a detector, or what holds one")
    return getattr(detector, method)(X, **options)


def call_inside(method, estimator, X, **options):
    """Result of a method of the detector inside `estimator`, called with X as that detector sees it."""
    return _call(method, *unwrap(estimator, X), **options)


def _call_and_restore(method, estimator, X, out=None, **options):
    """Maps or masks of the detector inside `estimator`, in the frame of X."""
    detector, seen, way = _walk(estimator, X)
    moved = [(step, before) for step, before in way if hasattr(step, "restore_maps")]
    if not moved:
        # A detector of the user's own may have no `out`.
        return _call(method, detector, seen, **options, **({} if out is None else {"out": out}))
    maps = _call(method, detector, seen, **options)
    for step, before in reversed(moved):
        maps = step.restore_maps(maps, before)
    return gather([(slice(None), maps)], maps.shape, maps.dtype, out)


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
        Maps of the detector; higher is more anomalous. They are in the frame of X if the steps before the
        detector crop or resize by `skanomaly.preprocessing`.
    """
    return _call_and_restore("anomaly_map", estimator, X, out=out)


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
        Masks of the detector: True where a pixel is flagged. They are in the frame of X, as the maps of
        `anomaly_map` are.
    """
    return _call_and_restore("segment", estimator, X, **options)


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
