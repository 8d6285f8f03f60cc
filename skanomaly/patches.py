"""Any detector on images larger than it can take: trained on crops, slid over the image, stitched."""

import math
from numbers import Integral, Real

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ._detector import BaseDetector, Judgement
from ._images import Layout, find_intensity_range, kind, usable_rows
from ._random import draw_seed
from .detectors.autoencoder import AutoEncoder

__all__ = ["PatchDetector", "extract_patches"]

#: Of so many windows the places are kept at a time, or of one image where it has more.
N_WINDOWS = 4096


class PatchDetector(BaseDetector):
    """A detector for images larger than it can take.

    The detector learns from random crops of the normal images. To judge an image it slides over it: maps
    of the windows are blended where they overlap, and the image's score is pooled from those of its
    windows. Images may be of any size, and of different sizes when given as a list.

    Parameters
    ----------
    detector : BaseDetector, default=None
        What judges a window; None is ``AutoEncoder()``. Its parameters are set by their nested names,
        ``detector__max_epochs`` for example, those of training and device among them.
    patch_size : int or tuple (h, w), default=None
        Of a window, c in the f-AnoGAN paper. None is 64, or the smallest side of the training images
        where that is less.
    stride : int or tuple (h, w), default=None
        From one window to the next, at most `patch_size`. None is half a window.
    n_patches : int, default=16
        Random crops of each normal image, K in the paper.
    pooling : {"max", "mean", "top"}, default="max"
        Score of an image: of its worst window, the mean of all, or the mean of the worst `top_fraction`.
    top_fraction : float, default=0.1
        Share of the windows that count, for "top"; at least one.
    contamination : float, default=0.1
        Share of the training images to flag, in (0, 0.5]: sets ``offset_``. It says little about
        new images; see `calibrate`.
    pixel_contamination : float, default=0.01
        Share of the training pixels to flag, in (0, 0.5]: sets ``pixel_offset_``.
    channel_axis : "auto", int or None, default="auto"
        Axis of X that holds the channels, None for grey images. "auto" finds 1 to 4 channels on
        the second or last axis and raises where both could be meant. In a list of images the axes of an
        image are counted as those of X: the first is the number of images.
    image_shape : tuple, default=None
        (H, W) or (C, H, W) of the images when X is given as rows (n, d); by default a row is an
        image of 1 x d pixels.
    random_state : int, RandomState or None, default=None
        Decides the crops and, unless None, the detector's own ``random_state``.

    Attributes
    ----------
    detector_ : BaseDetector
        Fitted to crops.
    patch_size_ : tuple (h, w)
        Of a window.
    stride_ : tuple (h, w)
        From one window to the next.
    {attributes}

    See Also
    --------
    extract_patches : Labelled crops, to test a detector of patches by itself.

    Notes
    -----
    :Trained on: random crops of normal images
    :Score: the worst score of a window, or a mean
    :Map: the detector's maps, blended where windows overlap; its score, where it has no map
    :Departures: the papers judge single crops, and do not say how maps of a whole image are put together

    Windows lie on a grid from the upper left corner; the last of a row or column ends at the border.
    Weights fall linearly from the middle of a window to its edges, where they are not zero. Memory is that
    of a batch of windows and the map of one image.

    `score_components` are those of the detector, pooled. ``image_shape_`` is that of the smallest training
    image where these differ in size.

    References
    ----------
    .. [1] Schlegl, T., Seeböck, P., Waldstein, S. M., Langs, G., Schmidt-Erfurth, U. (2019).
       "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks".
       Medical Image Analysis 54, 30-44. `doi:10.1016/j.media.2019.01.010
       <https://doi.org/10.1016/j.media.2019.01.010>`_

    Examples
    --------
    >>> from skanomaly import AutoEncoder, PatchDetector
    >>> from skanomaly.datasets import load_oct
    >>> scans = load_oct().images[:4]
    >>> inner = AutoEncoder(hidden_size=64, max_epochs=1)
    >>> detector = PatchDetector(inner, patch_size=32, random_state=0).fit(scans)
    >>> detector.score_samples(scans).shape, detector.anomaly_map(scans).shape == scans.shape
    ((4,), True)
    """

    _parameter_constraints = {
        "detector": [HasMethods(["fit", "iter_batches"]), None],
        "patch_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "stride": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "n_patches": [Interval(Integral, 1, None, closed="left")],
        "pooling": [StrOptions({"max", "mean", "top"})],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
        **{
            name: BaseDetector._parameter_constraints[name]
            for name in (
                "contamination",
                "pixel_contamination",
                "channel_axis",
                "image_shape",
                "random_state",
            )
        },
    }

    def __init__(
        self,
        detector=None,
        *,
        patch_size=None,
        stride=None,
        n_patches=16,
        pooling="max",
        top_fraction=0.1,
        contamination=0.1,
        pixel_contamination=0.01,
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self.detector = detector
        self.patch_size = patch_size
        self.stride = stride
        self.n_patches = n_patches
        self.pooling = pooling
        self.top_fraction = top_fraction
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination
        self.channel_axis = channel_axis
        self.image_shape = image_shape
        self.random_state = random_state

    # What the fitted detector knows.

    network_ = property(lambda self: self.detector_.network_)
    history_ = property(lambda self: self.detector_.history_)
    n_iter_ = property(lambda self: self.detector_.n_iter_)
    intensity_range_ = property(lambda self: self.detector_.intensity_range_)
    device_ = property(lambda self: self.detector_.device_)

    def _fit(self, X, y):
        images = ImageStack(self._check_X(X, fitting=True), self.channel_axis, self.image_shape)
        used, codes = usable_rows(images, y)
        normal = images.subset(np.flatnonzero(used))
        self.patch_size_ = _find_patch_size(self.patch_size, normal.sizes)
        self.stride_ = _find_stride(self.stride, self.patch_size_)
        smallest = normal.sizes[normal.sizes.prod(1).argmin()]
        self.image_shape_ = images.channels, *map(int, smallest)
        self._layout, self._kind = images.layouts[0], kind(images.dtype)
        rng = np.random.default_rng(draw_seed(self.random_state))
        detector = AutoEncoder() if self.detector is None else clone(self.detector)
        detector.set_params(channel_axis=1, image_shape=None)
        if self.random_state is not None:
            detector.set_params(random_state=int(rng.integers(2**31)))
        low, high = images.find_intensity_range(detector.intensity_range, used)
        if low < high:  # of whole images, where crops might miss an end
            detector.set_params(intensity_range=(low, high))
        windows = normal.random_windows(self.patch_size_, self.n_patches, rng)
        y_windows = None if y is None else np.asarray(y)[used][windows.table[:, 0]]
        self.detector_ = detector.fit(windows, y_windows)
        scores, pixels = self._score_normals(detector._normals(normal, codes))
        self.offset_ = float(np.percentile(scores, 100 * self.contamination))
        self._set_pixel_threshold(pixels, self.pixel_contamination)

    def _build(self, image_shape):
        return self.detector_._build(self.detector_.image_shape_)

    def score_components(self, X):
        """The components of the detector's scores, pooled over the windows of each image.

        Parameters
        ----------
        X : array-like, or list of arrays of different sizes
            Images no smaller than a window.

        Returns
        -------
        components : dict of str to (n,) float64 ndarray
            Higher is worse.
        """
        parts = []
        for _, windows in self._grids(self._check_images(X)):
            ends = np.flatnonzero(np.diff(windows.table[:, 0])) + 1
            components = self.detector_.score_components(windows)
            parts.append(
                {
                    name: [self._pool(part) for part in np.split(values, ends)]
                    for name, values in components.items()
                }
            )
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _pool(self, scores):
        if self.pooling == "max":
            return scores.max()
        if self.pooling == "top":
            scores = np.sort(scores)[-max(1, math.ceil(self.top_fraction * len(scores))) :]
        return scores.mean()

    def _infer(self, images, pick):
        """As the base has it, an image at a time: (slice, what was picked of its Judgement)."""
        for chunk, windows in self._grids(images):
            for i, judgement in self._stitch(images.sizes[chunk], windows):
                yield slice(chunk.start + i, chunk.start + i + 1), pick(judgement)

    def _grids(self, images):
        """Windows of some images at a time: those of all of them would fill the memory."""
        per_image = [
            math.prod(len(_starts(*side)) for side in zip(size, self.patch_size_, self.stride_))
            for size in images.sizes
        ]
        ends = np.flatnonzero(np.diff(np.cumsum(per_image) // N_WINDOWS, append=-1)) + 1
        for start, end in zip([0, *ends], ends):
            chunk = slice(start, end)
            yield chunk, images.subset(chunk).grid(self.patch_size_, self.stride_)

    def _stitch(self, sizes, windows):
        """Number and Judgement of each image, from those of its windows."""
        weights = [_profile(side) for side in self.patch_size_]
        current, total, scores = None, None, []

        def finished():
            tops, lefts = (np.unique(windows.table[windows.of(current), axis]) for axis in (1, 2))
            covered = np.outer(*(_cover(*a) for a in zip(sizes[current], (tops, lefts), weights)))
            maps = (total / covered).astype(np.float32)[None]
            return current, Judgement(np.array([self._pool(np.array(scores))]), maps)

        weight = np.outer(*weights)
        for rows, score, maps in self.detector_.iter_batches(windows):
            for k, (image, top, left) in enumerate(windows.table[rows]):
                if image != current:
                    if current is not None:
                        yield finished()
                    current, total, scores = image, np.zeros(sizes[image]), []
                scores.append(-score[k])
                part = -score[k] if maps is None else maps[k]
                total[top : top + weight.shape[0], left : left + weight.shape[1]] += weight * part
        yield finished()

    def _map_shape(self, images):
        same = (images.sizes == images.sizes[0]).all()
        return (len(images), *map(int, images.sizes[0])) if same and not images.is_list else None

    @staticmethod
    def _collect(parts, shape, dtype, out):
        if shape is not None:
            return BaseDetector._collect(parts, shape, dtype, out)
        if out is not None:
            raise ValueError("out is for images in one array; those of a list come back as a list")
        return [part[0] for _, part in parts]

    def _check_images(self, X):
        check_is_fitted(self)
        images = ImageStack(self._check_X(X, fitting=False), self.channel_axis, self.image_shape)
        for size in images.sizes.tolist():
            if images.channels != self.image_shape_[0] or any(np.less(size, self.patch_size_)):
                raise ValueError(
                    f"X must hold images of {self.image_shape_[0]} channels no smaller than a window, "
                    f"(C, h, w) = {(self.image_shape_[0], *self.patch_size_)}, got {(images.channels, *size)}"
                )
        given = "auto" if self.detector is None else self.detector.intensity_range
        self._check_kind(images.dtype, given)
        return images

    def _check_X(self, X, *, fitting):
        if not _is_list_of_images(X):
            return super()._check_X(X, fitting=fitting)
        if len({image.dtype for image in X}) > 1:
            raise ValueError(
                f"images in a list must have one dtype, got {sorted({str(image.dtype) for image in X})}"
            )
        if X[0].dtype.kind not in "biuf":
            raise TypeError(f"X must hold real numbers, got dtype {X[0].dtype}")
        if fitting:
            self.n_features_in_ = min(len(image) for image in X)
            vars(self).pop("feature_names_in_", None)
        return X


def _is_list_of_images(X):
    return (
        isinstance(X, (list, tuple))
        and all(isinstance(image, np.ndarray) and image.ndim in (2, 3) for image in X)
        and len({image.shape for image in X}) > 1
    )


class ImageStack:
    """Images of one size or of several, read one at a time with channels first.

    Parameters
    ----------
    X : array, lazy object, or list of arrays
    channel_axis, image_shape
        As of a detector.
    rows : (n,) int array, default=None
        Those of X that are meant.
    """

    def __init__(self, X, channel_axis, image_shape, rows=None):
        self.X, self.is_list, self.dtype = X, isinstance(X, (list, tuple)), np.dtype(_dtype_of(X))
        n = len(X) if self.is_list else X.shape[0]
        self.rows = np.arange(n) if rows is None else rows
        shapes = [(1, *image.shape) for image in X] if self.is_list else [X.shape]
        self.layouts = [Layout.of(shape, channel_axis, image_shape) for shape in shapes]
        channels = {layout.image_shape[0] for layout in self.layouts}
        if len(channels) > 1:
            raise ValueError(f"images in a list must have equally many channels, got {sorted(channels)}")
        self.channels = channels.pop()
        sizes = np.array([layout.image_shape[1:] for layout in self.layouts])
        self.sizes = sizes[self.rows] if self.is_list else np.tile(sizes, (len(self.rows), 1))
        self.options = channel_axis, image_shape
        self._last = None, None

    def __len__(self):
        return len(self.rows)

    @property
    def layout(self):
        """That of all images, where they are in one array."""
        if self.is_list:
            raise ValueError("images must be in one array to be drawn side by side, got a list")
        return self.layouts[0]

    @property
    def shape(self):
        return (len(self),)

    def subset(self, index):
        return ImageStack(self.X, *self.options, rows=self.rows[index])

    def __getitem__(self, i):
        """(C, H, W), a view where X is an array."""
        if self._last[0] != i:
            row = self.rows[i]
            one = self.X[row][None] if self.is_list else np.asarray(self.X[row : row + 1])
            self._last = i, self.layouts[row if self.is_list else 0].to_network(one)[0]
        return self._last[1]

    def find_intensity_range(self, intensity_range, used):
        if not self.is_list:
            return find_intensity_range(self.X, intensity_range, used)
        ranges = [
            find_intensity_range(image[None], intensity_range, used[i : i + 1])
            for i, image in enumerate(self.X)
        ]
        lows, highs = zip(*ranges)
        return min(lows), max(highs)

    def grid(self, size, stride):
        """Windows that cover every image, in order."""
        tables = [
            np.stack(
                [a.ravel() for a in np.meshgrid(i, *map(_starts, sides, size, stride), indexing="ij")], axis=1
            )
            for i, sides in enumerate(self.sizes)
        ]
        return Windows(self, np.concatenate(tables), size)

    def random_windows(self, size, n_patches, rng):
        """`n_patches` windows anywhere in each image, in random order."""
        image = np.repeat(np.arange(len(self)), n_patches)
        corners = rng.integers(0, self.sizes[image] - size + 1)
        return Windows(self, rng.permutation(np.column_stack([image, corners])), size)


class Windows:
    """A lazy X of the windows at (image, top, left), the rows of `table`."""

    def __init__(self, images, table, size):
        self.images, self.table, self.size = images, table, size
        self.shape, self.dtype = (len(table), images.channels, *size), images.dtype

    def __getitem__(self, rows):
        height, width = self.size
        return np.stack(
            [self.images[i][:, top : top + height, left : left + width] for i, top, left in self.table[rows]]
        )

    def of(self, image):
        """Rows of one image, in a table in order."""
        return slice(*np.searchsorted(self.table[:, 0], [image, image + 1]))


def _dtype_of(X):
    return X[0].dtype if isinstance(X, (list, tuple)) else X.dtype


def _starts(length, size, stride):
    """Where windows begin on a side; the last ends at the border."""
    return np.unique(np.r_[0 : length - size + 1 : stride, length - size])


def _profile(size):
    """Weights of a window along a side: most in the middle, least at its ends, never zero."""
    return np.minimum(np.arange(size) + 1, np.arange(size)[::-1] + 1).astype(float)


def _cover(length, starts, weights):
    """Sum of the weights that fall on each place of a side."""
    total = np.zeros(length)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total


def _pair(value, name):
    pair = (value, value) if isinstance(value, Integral) else tuple(value)
    if len(pair) != 2 or not all(isinstance(side, Integral) and side > 0 for side in pair):
        raise ValueError(f"{name} must be a whole number or two, (h, w), got {value}")
    return tuple(map(int, pair))


def _find_patch_size(patch_size, sizes):
    smallest = sizes.min(0)
    if patch_size is None:
        # A row is an image of height 1: its side is its length.
        side = min([64, *(side for side in smallest if side > 1)])
        return tuple(int(min(side, limit)) for limit in smallest)
    patch_size = _pair(patch_size, "patch_size")
    if (patch_size > smallest).any():
        raise ValueError(
            f"patch_size must fit into every training image, got {patch_size} for an image of "
            f"{tuple(map(int, smallest))} at the smallest sides; lower it, or leave it None"
        )
    return patch_size


def _find_stride(stride, patch_size):
    if stride is None:
        return tuple(max(1, side // 2) for side in patch_size)
    stride = _pair(stride, "stride")
    if any(step > side for step, side in zip(stride, patch_size)):
        raise ValueError(
            f"stride must be at most patch_size={patch_size}, or parts of an image would not be seen, "
            f"got {stride}"
        )
    return stride


def extract_patches(
    images, masks=None, *, patch_size=64, n_patches=16, channel_axis="auto", random_state=None
):
    """Random crops with their masks and labels, to test a detector of patches by itself.

    Parameters
    ----------
    images : array of images, or list of arrays of different sizes
        As for `PatchDetector`.
    masks : (n, H, W) bool array or list of (H, W) arrays, default=None
        Where the images are anomalous; None means nowhere.
    patch_size : int or tuple (h, w), default=64
        Of a crop, c in the f-AnoGAN paper.
    n_patches : int, default=16
        Crops of each image, K in the paper.
    channel_axis : "auto", int or None, default="auto"
        As for `PatchDetector`.
    random_state : int, RandomState or None, default=None
        Decides the crops.

    Returns
    -------
    patches : Bunch
        ``images`` (m, h, w) or (m, C, h, w); ``masks`` (m, h, w) bool; ``target`` (m,): -1 where the mask
        is not empty, else 1; ``groups`` (m,): which image a crop is from.
    """
    stack = ImageStack(images if _is_list_of_images(images) else np.asarray(images), channel_axis, None)
    size = _find_patch_size(patch_size, stack.sizes)
    if masks is not None:
        shapes = [tuple(np.shape(mask)) for mask in masks]
        if shapes != [tuple(side) for side in stack.sizes.tolist()]:
            raise ValueError("masks must have the height and width of their images, one for each")
    windows = stack.random_windows(size, n_patches, np.random.default_rng(draw_seed(random_state)))
    crops = windows[:]
    found = np.zeros((len(crops), *size), bool)
    if masks is not None:
        for k, (i, top, left) in enumerate(windows.table):
            found[k] = masks[i][top : top + size[0], left : left + size[1]]
    return Bunch(
        images=crops[:, 0] if stack.channels == 1 else crops,
        masks=found,
        target=np.where(found.any((1, 2)), -1, 1),
        groups=windows.table[:, 0],
    )
