"""Displays of maps, scores and stages. matplotlib is imported when a display is drawn."""

import numpy as np

from ._arrays import check_masks
from ._finite import check_learned
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

    All maps share one colour scale, `map_range`. If each map had a scale of its own, every normal image would
    look ill.

    Parameters
    ----------
    images : (n, H, W) or (n, H, W, C) ndarray
        Images that were judged.
    maps : (n, H, W) ndarray
        Anomaly maps; higher is more anomalous.
    masks : (n, H, W) bool ndarray
        Pixels that were flagged. The last column shows the images with the outlines of these pixels.
    map_range : (low, high)
        Ends of the colour scale, for example ``detector.map_range_``.
    reconstructions : ndarray of images' shape, default=None
        Reconstructions of the images.
    true_masks : (n, H, W) bool ndarray, default=None
        Pixels that are truly anomalous. The last column shows their outlines in another colour.
    intensity_range : (low, high), default=None
        Intensities that are drawn in black and in white. None takes the minimum and maximum of `images`.
    titles : list of n str, default=None
        Titles of the rows, written to the left of them.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure that `plot` has drawn into.
    axes_ : (n, 3 or 4) ndarray of matplotlib axes
        Axes that `plot` has drawn into.
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
        """Draw images and a fitted detector's maps and masks of them.

        Parameters
        ----------
        estimator : fitted detector
            Detector, or a Pipeline, search or FrozenEstimator that holds one.
        X : array-like
            A few images, as the estimator takes them.
        true_masks : (n, H, W) bool array-like, default=None
            Pixels that are truly anomalous. The last column shows their outlines in another colour.
        titles : list of n str, default=None
            Titles of the rows. None writes "normal" or "anomalous", and the anomaly score minus threshold.
        axes : (n, 4) or (n, 3) array of matplotlib axes, default=None
            Axes to draw into: 4 columns if the detector reconstructs, else 3. None makes a figure.
        **segment_options : dict
            Options of the detector's `segment`.

        Returns
        -------
        display : AnomalyMapDisplay
            The display, already drawn.
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
        """Draw into `axes`, or into a new figure.

        Parameters
        ----------
        axes : (n, 4) or (n, 3) array of matplotlib axes, default=None
            Axes to draw into: 4 columns if there are `reconstructions`, else 3. None makes a figure.
        cmap : str, default="inferno"
            Name of matplotlib's colour map for the anomaly maps.

        Returns
        -------
        display : AnomalyMapDisplay
            This display.
        """
        masks = check_masks(self.masks)
        true_masks = None if self.true_masks is None else check_masks(self.true_masks, "true_masks")
        plt = _pyplot()
        columns = {"image": self.images, "reconstruction": self.reconstructions}
        columns |= {"anomaly map": self.maps, "mask": self.images}
        columns = {name: values for name, values in columns.items() if values is not None}
        n_rows, n_columns = shape = len(self.images), len(columns)
        if axes is None:
            size = 1.9 * n_columns + 0.6, 1.9 * n_rows + 0.4
            _, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
        axes = np.asarray(axes).reshape(shape)
        low, high = self.intensity_range or (np.min(self.images), np.max(self.images))
        check_learned(map_range=self.map_range, intensity_range=(low, high))
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
            for outlined, colour in ((true_masks, "deepskyblue"), (masks, "orangered")):
                # Contours need an edge (else matplotlib warns) and sides of two pixels, which 1 x d lacks.
                if outlined is not None and 0 < outlined[row].mean() < 1 and min(outlined[row].shape) > 1:
                    row_axes[-1].contour(outlined[row], [0.5], colors=colour, linewidths=0.9)
            if self.titles is not None:
                row_axes[0].set_ylabel(self.titles[row], fontsize=8)
        self.figure_, self.axes_ = axes[0, 0].figure, axes
        # A single colour bar, made of the last map, because all maps have the same scale.
        map_axes = axes[:, list(columns).index("anomaly map")]
        bar = self.figure_.colorbar(drawn, ax=map_axes, shrink=0.8, location="bottom", aspect=12)
        bar.ax.tick_params(labelsize=7)
        return self


def _channels_last(images):
    return images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)


def _displayed(image, low, high):
    """Image in [0, 1] with 1, 3 or 4 channels, in which `low` is black and `high` is white."""
    # `or 1` keeps a constant image from division by zero.
    image = np.clip((image.astype(float) - low) / ((high - low) or 1), 0, 1)
    # matplotlib draws 1, 3 or 4 channels; the mean stands for any other number of them.
    return image.mean(-1) if image.ndim == 3 and image.shape[-1] not in (3, 4) else image


class ScoreHistogramDisplay:
    """Histograms of the anomaly scores of normal and anomalous images, and the threshold.

    Parameters
    ----------
    anomaly_score : (n,) ndarray
        Anomaly score of each image; higher is worse. Infinite scores are drawn in the bars at the ends.
    anomalous : (n,) bool ndarray
        True for anomalous images.
    threshold : float, default=None
        Threshold of the scores. Images with a score above it are flagged. None draws no threshold.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure that `plot` has drawn into.
    ax_ : matplotlib axes
        Axes that `plot` has drawn into.
    """

    def __init__(self, anomaly_score, anomalous, *, threshold=None):
        self.anomaly_score = anomaly_score
        self.anomalous = anomalous
        self.threshold = threshold

    @classmethod
    def from_estimator(cls, estimator, X, y, *, anomaly_label=-1, ax=None):
        """Draw the scores that a fitted detector gives to images, and its threshold.

        Parameters
        ----------
        estimator : fitted detector
            Detector, or a Pipeline, search or FrozenEstimator that holds one.
        X : array-like
            Images, as the estimator takes them.
        y : (n,) array-like
            Labels; rows with 0 are left out if `anomaly_label` is -1.
        anomaly_label : object, default=-1
            Label of anomalous images.
        ax : matplotlib axes, default=None
            Axes to draw into; None makes a figure.

        Returns
        -------
        display : ScoreHistogramDisplay
            The display, already drawn.
        """
        detector, seen = unwrap(estimator, X)
        score, threshold = -detector.score_samples(seen), -detector.offset_
        return cls.from_predictions(y, score, threshold=threshold, anomaly_label=anomaly_label, ax=ax)

    @classmethod
    def from_predictions(cls, y, anomaly_score, *, threshold=None, anomaly_label=-1, ax=None):
        """Draw given scores.

        Parameters
        ----------
        y : (n,) array-like
            Labels; rows with 0 are left out if `anomaly_label` is -1.
        anomaly_score : (n,) array-like
            Anomaly score of each image; higher is worse.
        threshold : float, default=None
            Threshold of the scores. Images with a score above it are flagged. None draws no threshold.
        anomaly_label : object, default=-1
            Label of anomalous images.
        ax : matplotlib axes, default=None
            Axes to draw into; None makes a figure.

        Returns
        -------
        display : ScoreHistogramDisplay
            The display, already drawn.
        """
        anomalous, score, _ = labelled(y, anomaly_score, anomaly_label)
        return cls(score, anomalous, threshold=threshold).plot(ax=ax)

    def plot(self, *, ax=None, bins=40):
        """Draw into `ax`, or into a new figure.

        Parameters
        ----------
        ax : matplotlib axes, default=None
            Axes to draw into; None makes a figure.
        bins : int, default=40
            Number of bins, the same bins for both classes.

        Returns
        -------
        display : ScoreHistogramDisplay
            This display.
        """
        if ax is None:
            _, ax = _pyplot().subplots(figsize=(4, 3), layout="constrained")
        # Common edges and unit areas: the classes are compared by shape, however many images each has.
        finite = np.isfinite(self.anomaly_score)
        edges = np.histogram_bin_edges(self.anomaly_score[finite], bins)
        score = np.clip(self.anomaly_score, edges[0], edges[-1])
        classes = {"normal": ~self.anomalous, "anomalous": self.anomalous}
        for (name, rows), colour in zip(classes.items(), ("tab:blue", "tab:red")):
            if rows.any():
                label = f"{name} ({rows.sum()})"
                ax.hist(score[rows], edges, density=True, alpha=0.55, color=colour, label=label)
        if self.threshold is not None:
            ax.axvline(self.threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        ax.set(xlabel="anomaly score", ylabel="density")
        ax.legend(fontsize=8)
        self.ax_, self.figure_ = ax, ax.figure
        return self


class StageDisplay:
    """Stages of anomalous images: mean residuals, images in order of severity, and a histogram of severities.

    Parameters
    ----------
    images : (n, H, W) or (n, H, W, C) ndarray
        Images that were staged.
    residuals : (n, H, W) ndarray
        Anomaly maps of the same images. Their mean over each stage is drawn.
    stages : (n,) int ndarray
        Stage of each image. Images of stage 0, the normal ones, are not drawn.
    severity : (n,) ndarray
        Severity of each image; higher is worse.
    intensity_range : (low, high), default=None
        Intensities that are drawn in black and in white. None takes the minimum and maximum of `images`.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure that `plot` has drawn.
    axes_ : ndarray of matplotlib axes
        Axes that `plot` has drawn into: those of the first stage, of the next, and last of the histogram.
    """

    def __init__(self, images, residuals, stages, severity, *, intensity_range=None):
        self.images = images
        self.residuals = residuals
        self.stages = stages
        self.severity = severity
        self.intensity_range = intensity_range

    @classmethod
    def from_estimator(cls, stager, X, *, n_images=6):
        """Draw the stages that a fitted `AnomalyStager` finds in X.

        Parameters
        ----------
        stager : AnomalyStager
            Fitted stager.
        X : array-like
            Images, as the stager takes them.
        n_images : int, default=6
            Largest number of images drawn for a stage. If a stage has more, images are picked evenly from the
            least severe to the most severe.

        Returns
        -------
        display : StageDisplay
            The display, already drawn.
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
            Largest number of images drawn for a stage. If a stage has more, images are picked evenly from the
            least severe to the most severe.
        cmap : str, default="inferno"
            Name of matplotlib's colour map for the residuals.

        Returns
        -------
        display : StageDisplay
            This display.
        """
        found = [stage for stage in np.unique(self.stages) if stage]
        if not found:
            raise ValueError("no image has a stage: the detector calls all of them normal")
        size = 1.5 * (n_images + 1), 1.6 * len(found) + 2.2
        figure = _pyplot().figure(figsize=size, layout="constrained")
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
                    # One colour scale for all stages, or a mild stage would look as bad as the worst.
                    ax.imshow(mean, cmap=cmap, vmin=0, vmax=np.max(means))
                    ax.set_ylabel(f"stage {stage} ({len(rows)})", fontsize=8)
                elif j <= len(shown):
                    ax.imshow(_displayed(self.images[shown[j - 1]], low, high), cmap="gray", vmin=0, vmax=1)
                    ax.set_title(f"{self.severity[shown[j - 1]]:.2f}", fontsize=8)
                else:
                    # Hidden, not left out: every entry of axes_ is an axes.
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
