"""BaseDetector: everything a detector does apart from its three or four verbs."""

import copy
import math
import warnings
from numbers import Integral, Real
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin, _fit_context
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from . import _inference, segmentation
from ._docstrings import fill_docstring
from ._images import Images, Layout, find_intensity_range, fingerprint, is_lazy, kind, usable_rows
from ._random import draw_seed, seeded
from ._version import __version__
from .training._checkpoint import Checkpoint, describe
from .training._progress import EpochContext
from .training._training import check_early_stopping, fresh_callbacks

#: At most so many pixels of normal maps decide `pixel_offset_`.
N_PIXELS = 10**7

#: Parameters that are about this process, not about what is learned.
PROCESS_PARAMETERS = {"callbacks", "checkpoint_dir", "device", "verbose"}


class Judgement(NamedTuple):
    """What a detector thinks of a batch; tensors, higher is worse.

    ``components`` maps a name to scores (n,) or to a function without arguments that computes
    them, which is called only when they are asked for.
    """

    score: torch.Tensor
    map: torch.Tensor | None
    components: dict = {}


class BaseDetector(CallbackSupportMixin, OutlierMixin, BaseEstimator):
    """Base of all detectors: a detector adds `_build`, `_train` and `_judge`, and `_reconstruct`.

    In a subclass's docstring ``{parameters}`` and ``{attributes}`` stand for what all share.
    """

    #: What the network expects the intensity range to be scaled to.
    _image_range = (0.0, 1.0)

    #: Whether unlabelled images (y = 0) are told from normal ones; else they are taken for normal.
    _tells_unlabelled = False

    #: Set during a `fit` with `checkpoint_dir`.
    _checkpoint = None

    _parameter_constraints = {
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "checkpoint_dir": [str, PathLike, None],
        "callbacks": [list, dict, None],
        "device": [str],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "pixel_contamination": [Interval(Real, 0, 0.5, closed="right")],
        "intensity_range": [StrOptions({"auto"}), tuple, list],
        "channel_axis": [StrOptions({"auto"}), Integral, None],
        "image_shape": [tuple, list, None],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__doc__ = fill_docstring(cls.__doc__)

    # The verbs of a method.

    def _build(self, image_shape):
        """The untrained network, one nn.Module holding all parts, for images (C, H, W)."""
        raise NotImplementedError

    def _train(self, network, images, y):
        """Train in place by one or more `_run`; returns a dict stage -> History.

        `y` holds the codes of the images, 1 normal or 0 unlabelled, or None.
        """
        raise NotImplementedError

    def _prepare(self, y):
        """Set, from the codes of the images, fitted attributes that `_build` depends on."""

    def _normals(self, images, y):
        """Those of the training images that are normal; thresholds are from their scores."""
        return images.subset(np.flatnonzero(y != 0)) if self._tells_unlabelled and y is not None else images

    def _judge(self, network, x):
        """Judgement of a batch of images (n, c, h, w), in eval mode without gradients."""
        raise NotImplementedError

    def _reconstruct(self, network, x):
        """Images (n, c, h, w); only where the method reconstructs."""
        raise NotImplementedError

    def _run(self, stage, training, network, images, **options):
        """Run one training stage with this detector's settings; returns {stage: History}."""
        options = {"max_epochs": self.max_epochs, "lr": self.lr, "batch_size": self.batch_size} | options
        progress = EpochContext(self, self._callback_fit_ctx, stage)
        history = training(
            network,
            stage=stage,
            checkpoint=self._checkpoint,
            callbacks=[*fresh_callbacks(self.callbacks, stage), progress],
            device=self.device_,
            verbose=self.verbose,
            **options,
        ).run(images)
        return {stage: history}

    # Fitting.

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Learn what is normal.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C), (n, C, H, W) or (n, d)
            Images, or rows. numpy arrays, memmaps, CPU tensors, DataFrames of rows, or any object
            with ``shape``, ``dtype`` and ``X[a:b]``.
        y : array-like of shape (n,), default=None
            1 normal, 0 unlabelled, -1 known anomaly. Rows with -1 are left out; any other code is
            ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For NaN or infinity, ambiguous or impossible shapes, fewer than two usable images, or
            parameters out of range. A fit that fails leaves the detector as it was.
        FloatingPointError
            When a loss stops being finite; the message names the stage and the epoch.

        Notes
        -----
        With `checkpoint_dir`, a `fit` that was killed is continued by the same call: same parameters,
        same data. It ends with the same bits as one that was not.
        """
        context = self._init_callback_context(max_subtasks=None)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        before = dict(vars(self))
        try:
            self._fit(X, y)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        context.call_on_fit_task_end(estimator=self, X=X, y=y)
        return self

    def _fit(self, X, y):
        check_early_stopping(self.callbacks, self.validation_fraction)
        X = self._check_X(X, fitting=True)
        layout = Layout.of(X.shape, self.channel_axis, self.image_shape)
        used, codes = usable_rows(X, y)
        self.device_ = _inference.resolve_device(self.device)
        self.intensity_range_ = find_intensity_range(X, self.intensity_range, used)
        self.image_shape_ = layout.image_shape
        self._layout, self._kind = layout, kind(X.dtype)
        images = self._images(X, layout, None if used.all() else np.flatnonzero(used), codes)
        self._prepare(images.y)
        seed = draw_seed(self.random_state)
        if self.checkpoint_dir is not None:
            self._checkpoint = Checkpoint(self.checkpoint_dir, self._describe_fit(X, y), seed)
            seed = self._checkpoint.seed
        with seeded(seed, self.device_):
            network = self._place(self._build(self.image_shape_))
            train = images.split(self.validation_fraction)
            self.history_ = self._train(network, train, train.y)
        vars(self).pop("_checkpoint", None)
        if isinstance(self.callbacks, dict) and (unknown := set(self.callbacks) - set(self.history_)):
            warnings.warn(
                f"callbacks names stages that {type(self).__name__} has not: {sorted(unknown)}; "
                f"its stages are {sorted(self.history_)}",
                stacklevel=4,
            )
        self.network_ = network.eval()
        self.n_iter_ = sum(len(history) for history in self.history_.values())
        scores, pixels = self._score_normals(self._normals(images, images.y))
        if not np.isfinite(scores).all():
            stage, history = list(self.history_.items())[-1]
            raise FloatingPointError(
                f"scores of the training images are not finite after stage {stage!r}, epoch "
                f"{len(history)}: training diverged; lower its lr"
            )
        self.offset_ = float(np.percentile(scores, 100 * self.contamination))
        self._set_pixel_threshold(pixels, self.pixel_contamination)

    def _describe_fit(self, X, y):
        """What decides the result of a fit, in words: two fits with equal ones are the same."""
        parameters = self.get_params(deep=False)
        # Arrays are drawn from row by row, other sequences in runs of rows.
        X_kind = "array" if isinstance(X, np.ndarray) else "sequence"
        return {
            "detector": type(self).__name__,
            "skanomaly": __version__,
            "device": self.device_,
            "X": f"{X_kind} {tuple(X.shape)} {np.dtype(X.dtype)} with SHA-256 {fingerprint(X)}",
            "y": "None" if y is None else f"labels with SHA-256 {fingerprint(np.asarray(y).astype(str))}",
            **{
                name: describe(value)
                for name, value in parameters.items()
                if name not in PROCESS_PARAMETERS - {"callbacks"}
            },
        }

    def calibrate(self, X_normal, *, false_alarm_rate=0.05, pixel_false_alarm_rate=0.01):
        """Reset both thresholds from normal images the detector was not trained on.

        A detector knows its training images too well: thresholds from them flag many more new
        normal images than they promise. ``map_range_``, the colour scale, is reset with them.

        Parameters
        ----------
        X_normal : array-like
            Normal images, as for `fit`. Not labelled anomalies, and not training images.
        false_alarm_rate : float, default=0.05
            Expected share of new normal images that `predict` will flag. With few images the
            share itself varies: for 77 and 0.05, between 0.01 and 0.13 in 99 % of draws.
        pixel_false_alarm_rate : float, default=0.01
            Share of these images' pixels above ``pixel_offset_``.

        Returns
        -------
        self
        """
        images = self._check_images(X_normal)
        rates = {"false_alarm_rate": false_alarm_rate, "pixel_false_alarm_rate": pixel_false_alarm_rate}
        for name, rate in rates.items():
            if not 0 < rate < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {rate}")
        scores, pixels = self._score_normals(images)
        n_needed = math.ceil(1 / false_alarm_rate) - 1
        if len(scores) < n_needed:
            warnings.warn(
                f"{len(scores)} images cannot show a false alarm rate of {false_alarm_rate}: the "
                f"threshold is the worst of them; give at least {n_needed}",
                stacklevel=2,
            )
        # The one quantile that a new score falls below with this probability, whatever the distribution.
        self.offset_ = float(np.quantile(scores, false_alarm_rate, method="weibull"))
        self._set_pixel_threshold(pixels, pixel_false_alarm_rate)
        return self

    def _score_normals(self, images):
        """score_samples of normal images, and a sample of their map pixels or None."""
        per_image = max(1, N_PIXELS // len(images))
        rng = np.random.default_rng(0)
        scores, pixels = [], []
        for _, (score, maps) in self._infer(images, lambda judgement: judgement[:2]):
            scores.append(-score.astype(np.float64))
            if maps is not None:
                maps = maps.reshape(len(maps), -1)
                if maps.shape[1] > per_image:
                    maps = maps[:, rng.choice(maps.shape[1], per_image, replace=False)]
                pixels.append(maps.ravel())
        return np.concatenate(scores), np.concatenate(pixels) if pixels else None

    def _set_pixel_threshold(self, pixels, rate):
        quantiles = (math.nan,) * 3 if pixels is None else np.quantile(pixels, [1 - rate, 0.01, 0.999])
        self.pixel_offset_, *self.map_range_ = map(float, quantiles)
        self.map_range_ = tuple(self.map_range_)

    # Judging.

    def score_samples(self, X):
        """How normal each image is.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        scores : (n,) float64 ndarray
            Higher is more normal: the method's anomaly score, negated.
        """
        parts = self._infer(self._check_images(X), lambda judgement: judgement.score)
        return -np.concatenate([score.astype(np.float64) for _, score in parts])

    def decision_function(self, X):
        """`score_samples` - ``offset_``.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        decision : (n,) float64 ndarray
            Negative for what `predict` flags.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """Which images are normal.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        labels : (n,) int ndarray
            1 for normal images, -1 for anomalous ones.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def score_components(self, X):
        """The parts a score is made of, and other scores of the method.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Returns
        -------
        components : dict of str to (n,) float64 ndarray
            Higher is worse.
        """

        def components(judgement):
            return {k: v() if callable(v) else v for k, v in judgement.components.items()}

        parts = [part for _, part in self._infer(self._check_images(X), components)]
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in parts[0]}

    def anomaly_map(self, X, *, out=None):
        """How anomalous each pixel is.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        out : array-like of shape (n, H, W), default=None
            Where to write the maps, for example a writable memmap.

        Returns
        -------
        maps : (n, H, W) float32 ndarray, or `out`
            Higher is more anomalous; raw, on one scale for all images.
        """
        images = self._check_images(X)
        return self._collect(self._maps(images), self._map_shape(images), np.float32, out)

    def segment(self, X, *, median_size=None, fill_holes=True, min_size=0, out=None):
        """Mask of the anomalous pixels: `anomaly_map` above ``pixel_offset_``, cleaned.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        median_size : int, default=None
            Side of a median filter on the maps before the threshold.
        fill_holes : bool, default=True
            Also flag what flagged pixels enclose.
        min_size : int, default=0
            Drop regions of fewer pixels.
        out : array-like of shape (n, H, W), default=None
            Where to write the masks.

        Returns
        -------
        masks : (n, H, W) bool ndarray, or `out`
        """
        images = self._check_images(X)
        options = {"median_size": median_size, "fill_holes": fill_holes, "min_size": min_size}
        masks = (
            (rows, segmentation.residual_mask(maps, self.pixel_offset_, **options))
            for rows, maps in self._maps(images)
        )
        return self._collect(masks, self._map_shape(images), bool, out)

    def iter_batches(self, X):
        """Scores and maps of X from one forward pass, a batch at a time.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.

        Yields
        ------
        rows : slice
        scores : (b,) float64 ndarray
            As `score_samples`.
        maps : (b, H, W) float32 ndarray, or None for a method without a map
        """
        for rows, (score, maps) in self._infer(self._check_images(X), lambda judgement: judgement[:2]):
            yield rows, -score.astype(np.float64), maps

    def _reconstructs(self):
        return type(self)._reconstruct is not BaseDetector._reconstruct

    @available_if(_reconstructs)
    def reconstruct(self, X, *, out=None):
        """What the detector makes of each image.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape.
        out : array-like of X's shape, default=None
            Where to write the images.

        Returns
        -------
        images : float32 ndarray in X's layout and units, or `out`
        """
        images = self._check_images(X)
        parts = _inference.run(
            lambda x: self._reconstruct(self.network_, x), self.network_, images, self.device_
        )
        parts = ((rows, images.from_network(part)) for rows, part in parts)
        return self._collect(parts, images.X.shape, np.float32, out)

    def _infer(self, images, pick):
        return _inference.run(
            lambda x: pick(self._judge(self.network_, x)), self.network_, images, self.device_
        )

    def _maps(self, images):
        for rows, maps in self._infer(images, lambda judgement: judgement.map):
            if maps is None:
                raise TypeError(
                    f"{type(self).__name__} judges whole images and has no anomaly map or mask; "
                    "use score_samples, or a detector that reconstructs"
                )
            yield rows, maps

    def _map_shape(self, images):
        return len(images), *self.image_shape_[1:]

    @staticmethod
    def _collect(parts, shape, dtype, out):
        if out is None:
            out = np.empty(shape, dtype)
        elif tuple(out.shape) != tuple(shape):
            raise ValueError(f"out must have shape {tuple(shape)}, got {tuple(out.shape)}")
        for rows, part in parts:
            out[rows] = part
        return out

    # Where a network is.

    def _place(self, network):
        # Convolutions are faster so, on both kinds of device.
        return network.to(self.device_, memory_format=torch.channels_last)

    def __getstate__(self):
        """Networks are pickled on the CPU, for machines without an accelerator."""
        state = dict(super().__getstate__())  # not the live one
        if "network_" in state and self.device_ != "cpu":
            state["network_"] = copy.deepcopy(state["network_"]).cpu()
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "network_" in state:
            try:
                self.device_ = _inference.resolve_device(self.device)
            except ValueError:
                self.device_ = "cpu"
            self.network_ = self._place(self.network_)

    # Input.

    def _check_images(self, X):
        """Images over X, after the checks of every method that wants a fitted detector."""
        check_is_fitted(self)
        X = self._check_X(X, fitting=False)
        layout = Layout.of(X.shape, self.channel_axis, self.image_shape)
        if layout.image_shape != self.image_shape_:
            raise ValueError(
                f"X must hold images of the fitted shape (C, H, W) = {self.image_shape_}, got "
                f"{layout.image_shape}; resize them, or fit a detector for this shape"
            )
        self._check_kind(X.dtype, self.intensity_range)
        return self._images(X, layout)

    def _check_kind(self, dtype, intensity_range):
        if isinstance(intensity_range, str) and kind(dtype) != self._kind:
            raise ValueError(
                f"X has dtype {dtype} ({kind(dtype)}), but the detector was fitted to {self._kind} "
                "intensities; convert X, or set intensity_range=(low, high) and fit again"
            )

    def _images(self, X, layout, rows=None, y=None):
        return Images(X, layout, self.intensity_range_, self._image_range, rows, y)

    def _check_X(self, X, *, fitting):
        """numpy array, or the lazy object itself; nothing is copied or converted to float."""
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu().numpy()
        min_samples = 2 if fitting else 1
        if is_lazy(X):
            if X.shape[0] < min_samples:
                raise ValueError(
                    f"Found array with {X.shape[0]} sample(s) while a minimum of {min_samples} is required."
                )
            if np.dtype(X.dtype).kind not in "biuf":
                raise TypeError(f"X must hold real numbers, got dtype {X.dtype}")
        else:
            options = {
                "dtype": "numeric",
                "allow_nd": True,
                "ensure_all_finite": False,
                "ensure_min_samples": min_samples,
            }
            frame = X if hasattr(X, "columns") else None
            X = check_array(X, **options, estimator=self, input_name="X")
            if X.ndim == 2:
                # Names and number of columns; the array itself is checked already.
                validate_data(self, X if frame is None else frame, reset=fitting, skip_check_array=True)
                return X
        if fitting:
            self.n_features_in_ = X.shape[1]
            vars(self).pop("feature_names_in_", None)
        return X

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
