"""Displays: what a detector sees, and how it separates. matplotlib is imported when one is drawn."""

import numpy as np

from ._unwrap import unwrap
from .base import open_images
from .metrics import labelled

__all__ = ["AnomalyMapDisplay", "ScoreHistogramDisplay", "StageDisplay"]


def _pyplot():
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install skanomaly[plot]") from error
    return plt


class AnomalyMapDisplay:
    """Images beside their reconstructions, anomaly maps and masks, one image a row.

    All maps share one colour scale, taken from normal images when the detector was fitted or
    calibrated: a scale of its own would make every normal image look ill.

    Parameters
    ----------
    images : (n, H, W) or (n, H, W, C) ndarray
        What was judged.
    maps : (n, H, W) ndarray
        Higher is more anomalous.
    masks : (n, H, W) bool ndarray
        Drawn as outlines on the images.
    map_range : (low, high)
        Ends of the colour scale: ``detector.map_range_``.
    reconstructions : ndarray of images' shape, default=None
        What the detector made of them.
    true_masks : (n, H, W) bool ndarray, default=None
        Drawn as outlines too.
    intensity_range : (low, high), default=None
        Black and white of the images; None takes those of `images`.
    titles : list of n str, default=None
        Written beside the rows.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Set by `plot`.
    axes_ : ndarray of matplotlib axes
        Set by `plot`.
    """

    def __init__(
        self,
        images,
        maps,
        masks,
        *,
        map_range,
        reconstructions=None,
        true_masks=None,
        intensity_range=None,
        titles=None,
    ):
        self.images = images
        self.maps = maps
        self.masks = masks
        self.reconstructions = reconstructions
        self.true_masks = true_masks
        self.map_range = map_range
        self.intensity_range = intensity_range
        self.titles = titles

    @classmethod
    def from_estimator(cls, estimator, X, *, true_masks=None, titles=None, axes=None, **segment_options):
        """Draw what a fitted detector makes of X.

        Parameters
        ----------
        estimator : fitted detector
            Or a Pipeline, search or FrozenEstimator that holds one.
        X : array-like
            A few images, as the estimator takes them.
        true_masks : (n, H, W) bool array-like, default=None
            Drawn too.
        titles : list of n str, default=None
            By default what the estimator predicts.
        axes : (n, 3 or 4) array of matplotlib axes, default=None
            Where to draw; None makes a figure.
        **segment_options : dict
            As of the detector's `segment`.

        Returns
        -------
        display : AnomalyMapDisplay
            Drawn.
        """
        detector, seen = unwrap(estimator, X)
        images = open_images(detector, seen)
        if titles is None:
            scores = -detector.decision_function(seen)
            titles = [f"{'anomalous' if s > 0 else 'normal'} ({s:+.2g})" for s in scores]
        made = None
        if hasattr(detector, "reconstruct"):
            made = _channels_last(images.layout.to_network(detector.reconstruct(seen)))
        display = cls(
            _channels_last(images.raw()),
            detector.anomaly_map(seen),
            detector.segment(seen, **segment_options),
            reconstructions=made,
            true_masks=true_masks,
            map_range=detector.map_range_,
            intensity_range=detector.intensity_range_,
            titles=titles,
        )
        return display.plot(axes=axes)

    def plot(self, *, axes=None, cmap="inferno"):
        """Draw into `axes`, or a new figure.

        Parameters
        ----------
        axes : (n, 3 or 4) array of matplotlib axes, default=None
            Where to draw; None makes a figure.
        cmap : str, default="inferno"
            Colours of the maps.

        Returns
        -------
        display : AnomalyMapDisplay
            Drawn.
        """
        plt = _pyplot()
        columns = {"image": self.images, "reconstruction": self.reconstructions, "anomaly map": self.maps}
        columns = {name: values for name, values in columns.items() if values is not None} | {
            "mask": self.images
        }
        shape = len(self.images), len(columns)
        if axes is None:
            _, axes = plt.subplots(
                *shape,
                figsize=(1.9 * shape[1] + 0.6, 1.9 * shape[0] + 0.4),
                squeeze=False,
                layout="constrained",
            )
        axes = np.asarray(axes).reshape(shape)
        low, high = self.intensity_range or (np.min(self.images), np.max(self.images))
        map_low, map_high = self.map_range
        for row, row_axes in enumerate(axes):
            for ax, (name, values) in zip(row_axes, columns.items()):
                if name == "anomaly map":
                    drawn = ax.imshow(values[row], cmap=cmap, vmin=map_low, vmax=map_high)
                else:
                    ax.imshow(_displayed(values[row], low, high), cmap="gray", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                if row == 0:
                    ax.set_title(name, fontsize=9)
            for masks, colour in ((self.true_masks, "deepskyblue"), (self.masks, "orangered")):
                # Rows, images of 1 x d pixels, have no outlines.
                if masks is not None and 0 < masks[row].mean() < 1 and min(masks[row].shape) > 1:
                    row_axes[-1].contour(masks[row], [0.5], colors=colour, linewidths=0.9)
            if self.titles is not None:
                row_axes[0].set_ylabel(self.titles[row], fontsize=8)
        self.figure_ = axes[0, 0].figure
        self.axes_ = axes
        self.figure_.colorbar(
            drawn, ax=axes[:, list(columns).index("anomaly map")], shrink=0.8, location="bottom", aspect=12
        ).ax.tick_params(labelsize=7)
        return self


def _channels_last(images):
    return images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)


def _displayed(image, low, high):
    """An image in [0, 1], with 1 or 3 channels."""
    image = np.clip((image.astype(float) - low) / ((high - low) or 1), 0, 1)
    return image.mean(-1) if image.ndim == 3 and image.shape[-1] not in (3, 4) else image


class ScoreHistogramDisplay:
    """Histograms of the anomaly scores of normal and anomalous images, and the threshold.

    Parameters
    ----------
    anomaly_score : (n,) ndarray
        Higher is worse.
    anomalous : (n,) bool ndarray
        Which images are anomalous.
    threshold : float, default=None
        Scores above it are flagged.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Set by `plot`.
    ax_ : matplotlib axes
        Set by `plot`.
    """

    def __init__(self, anomaly_score, anomalous, *, threshold=None):
        self.anomaly_score = anomaly_score
        self.anomalous = anomalous
        self.threshold = threshold

    @classmethod
    def from_estimator(cls, estimator, X, y, *, anomaly_label=-1, ax=None):
        """Draw the scores of a fitted detector, with its threshold.

        Parameters
        ----------
        estimator : fitted detector
            Or a Pipeline, search or FrozenEstimator that holds one.
        X : array-like
            Images, as the estimator takes them.
        y : (n,) array-like
            Labels; rows with 0 are left out where `anomaly_label` is -1.
        anomaly_label : object, default=-1
            Label of anomalous images.
        ax : matplotlib axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : ScoreHistogramDisplay
            Drawn.
        """
        detector, seen = unwrap(estimator, X)
        return cls.from_predictions(
            y,
            -detector.score_samples(seen),
            threshold=-detector.offset_,
            anomaly_label=anomaly_label,
            ax=ax,
        )

    @classmethod
    def from_predictions(cls, y, anomaly_score, *, threshold=None, anomaly_label=-1, ax=None):
        """Draw given scores.

        Parameters
        ----------
        y : (n,) array-like
            Labels.
        anomaly_score : (n,) array-like
            Higher is worse.
        threshold : float, default=None
            Scores above it are flagged.
        anomaly_label : object, default=-1
            Label of anomalous images.
        ax : matplotlib axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : ScoreHistogramDisplay
            Drawn.
        """
        anomalous, score, _ = labelled(y, anomaly_score, anomaly_label)
        return cls(score, anomalous, threshold=threshold).plot(ax=ax)

    def plot(self, *, ax=None, bins=40):
        """Draw into `ax`, or a new figure.

        Parameters
        ----------
        ax : matplotlib axes, default=None
            Where to draw; None makes a figure.
        bins : int, default=40
            Number of bars of each class.

        Returns
        -------
        display : ScoreHistogramDisplay
            Drawn.
        """
        if ax is None:
            _, ax = _pyplot().subplots(figsize=(4, 3), layout="constrained")
        edges = np.histogram_bin_edges(self.anomaly_score, bins)
        for name, rows, colour in (
            ("normal", ~self.anomalous, "tab:blue"),
            ("anomalous", self.anomalous, "tab:red"),
        ):
            if rows.any():
                ax.hist(
                    self.anomaly_score[rows],
                    edges,
                    density=True,
                    alpha=0.55,
                    color=colour,
                    label=f"{name} ({rows.sum()})",
                )
        if self.threshold is not None:
            ax.axvline(self.threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        ax.set(xlabel="anomaly score", ylabel="density")
        ax.legend(fontsize=8)
        self.ax_, self.figure_ = ax, ax.figure
        return self


class StageDisplay:
    """What the stages of anomalous images look like: mean residual, images in order of severity, histogram.

    Parameters
    ----------
    images : (n, H, W) or (n, H, W, C) ndarray
        What was staged.
    residuals : (n, H, W) ndarray
        Maps of the same images.
    stages : (n,) int ndarray
        Images of stage 0, normal ones, are not drawn.
    severity : (n,) ndarray
        Higher is worse.
    intensity_range : (low, high), default=None
        Black and white of the images; None takes those of `images`.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Set by `plot`.
    axes_ : ndarray of matplotlib axes
        Set by `plot`: a row for each stage, the histogram in the last one.
    """

    def __init__(self, images, residuals, stages, severity, *, intensity_range=None):
        self.images = images
        self.residuals = residuals
        self.stages = stages
        self.severity = severity
        self.intensity_range = intensity_range

    @classmethod
    def from_estimator(cls, stager, X, *, n_images=6):
        """Draw what a fitted `AnomalyStager` makes of X.

        Parameters
        ----------
        stager : AnomalyStager
            Fitted.
        X : array-like
            Images, as the stager takes them.
        n_images : int, default=6
            Of each stage, from the least to the most severe.

        Returns
        -------
        display : StageDisplay
            Drawn.
        """
        detector, seen = unwrap(stager.detector_, X)
        display = cls(
            _channels_last(open_images(detector, seen).raw()),
            detector.anomaly_map(seen),
            stager.predict(X),
            stager.severity(X),
            intensity_range=detector.intensity_range_,
        )
        return display.plot(n_images=n_images)

    def plot(self, *, n_images=6, cmap="inferno"):
        """Draw into a new figure.

        Parameters
        ----------
        n_images : int, default=6
            Of each stage.
        cmap : str, default="inferno"
            Colours of the residuals.

        Returns
        -------
        display : StageDisplay
            Drawn.
        """
        plt = _pyplot()
        found = [stage for stage in np.unique(self.stages) if stage]
        if not found:
            raise ValueError("no image has a stage: the detector calls all of them normal")
        figure = plt.figure(figsize=(1.5 * (n_images + 1), 1.6 * len(found) + 2.2), layout="constrained")
        grid = figure.add_gridspec(len(found) + 1, n_images + 1, height_ratios=[1.0] * len(found) + [1.2])
        low, high = self.intensity_range or (np.min(self.images), np.max(self.images))
        means = [self.residuals[self.stages == stage].mean(0) for stage in found]
        axes = np.empty((len(found), n_images + 1), dtype=object)
        for k, (stage, mean) in enumerate(zip(found, means)):
            rows = np.flatnonzero(self.stages == stage)
            rows = rows[np.argsort(self.severity[rows], kind="stable")]
            shown = rows[np.linspace(0, len(rows) - 1, min(n_images, len(rows))).round().astype(int)]
            for j in range(n_images + 1):
                ax = axes[k, j] = figure.add_subplot(grid[k, j])
                ax.set(xticks=[], yticks=[])
                if j == 0:
                    ax.imshow(mean, cmap=cmap, vmin=0, vmax=np.max(means))
                    ax.set_ylabel(f"stage {stage} ({len(rows)})", fontsize=8)
                elif j <= len(shown):
                    ax.imshow(_displayed(self.images[shown[j - 1]], low, high), cmap="gray", vmin=0, vmax=1)
                    ax.set_title(f"{self.severity[shown[j - 1]]:.2f}", fontsize=8)
                else:
                    ax.set_axis_off()
        axes[0, 0].set_title("mean residual", fontsize=8)
        histogram = figure.add_subplot(grid[-1, :])
        bins = np.histogram_bin_edges(self.severity[self.stages > 0], 30)
        for stage in found:
            histogram.hist(self.severity[self.stages == stage], bins, alpha=0.6, label=f"stage {stage}")
        histogram.set(xlabel="severity", ylabel="images")
        histogram.legend(fontsize=8)
        self.figure_, self.axes_ = figure, np.append(axes.ravel(), histogram)
        return self
