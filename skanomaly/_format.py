"""Format of the images of a fit: layout, kind and range of intensities. All checks of X are here."""

import warnings
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from ._containers import Lazy, holds_tensors, is_lazy, read_container
from ._images import Images, blocks, refuse_non_finite
from .labels import training_rows

#: Lengths of an axis that may be that of the channels, if the user does not name it.
CHANNELS = range(1, 5)

#: Number of values of the training images that tell whether a few of them set the range.
N_SAMPLED = 10**5


@dataclass(frozen=True)
class Layout:
    """Layout of X: the shape of an image, and the axis of the channels.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    channel_axis : int, default=None
        Axis of X that holds the channels; None for grey images and rows.
    rows : bool, default=False
        Whether X has rows (n, d) instead of images.
    """

    image_shape: tuple
    channel_axis: int | None = None
    rows: bool = False

    @classmethod
    def of(cls, shape, channel_axis="auto", image_shape=None, *, known=False, tensor=False):
        """Layout of an X of this shape, by the parameters of a detector.

        Parameters
        ----------
        shape : tuple
        channel_axis, image_shape
            Parameters of a detector.
        known : bool, default=False
            Whether the result will be compared with the shape of known images, so that doubts need no answer.
        tensor : bool, default=False
            Whether X is made of torch tensors, whose channels come first.

        Raises
        ------
        ValueError
            If the shape is ambiguous, or does not fit `channel_axis` or `image_shape`.
        """
        if len(shape) == 2:
            found = (1, 1, shape[1]) if image_shape is None else _full_shape(image_shape)
            if not known and image_shape is not None and found[2] in CHANNELS and found[0] not in CHANNELS:
                raise ValueError(
                    f"image_shape is (C, H, W), and {tuple(image_shape)} seems to be (H, W, C); give images "
                    f"instead of rows, X.reshape(-1, {', '.join(map(str, found))})"
                )
            if int(np.prod(found)) != shape[1]:
                raise ValueError(
                    "image_shape must have as many values as X has columns: "
                    f"got image_shape={tuple(image_shape)} for {shape[1]} columns"
                )
            return cls(found, rows=True)
        if len(shape) not in (3, 4):
            raise ValueError(
                "X must be rows (n, d) or images (n, H, W), (n, H, W, C) or (n, C, H, W), "
                f"got {len(shape)} axes: {tuple(shape)}"
            )
        axis = _find_channel_axis(shape, channel_axis)
        sides = [int(side) for i, side in enumerate(shape) if i not in (0, axis)]
        found = (1 if axis is None else int(shape[axis]), *sides)
        if not all(found):
            raise ValueError(f"images in X must have pixels and channels, got shape {tuple(shape)}")
        if channel_axis == "auto" and image_shape is None and not known:
            _refuse_doubts(shape, axis, tensor)
        if image_shape is not None and _full_shape(image_shape) != found:
            raise ValueError(
                f"image_shape={tuple(image_shape)} is for X given as rows, and must be left None or agree "
                f"with images in X, of shape (C, H, W) = {found}"
            )
        return cls(found, axis)

    def to_network(self, batch):
        """View (n, C, H, W) of a batch of X."""
        if self.rows or self.channel_axis is None:
            return batch.reshape(len(batch), *self.image_shape)
        return np.moveaxis(batch, self.channel_axis, 1)

    def from_network(self, batch):
        """Undo `to_network`."""
        if self.rows:
            return batch.reshape(len(batch), -1)
        return batch[:, 0] if self.channel_axis is None else np.moveaxis(batch, 1, self.channel_axis)


def _full_shape(image_shape):
    """Shape (C, H, W) for an `image_shape`, which may be (H, W)."""
    shape = (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(side, Integral) and side > 0 for side in shape):
        raise ValueError(f"image_shape must be whole numbers (H, W) or (C, H, W), got {tuple(image_shape)}")
    return shape


def _find_channel_axis(shape, channel_axis):
    """Axis of the channels in an X of this shape, None for grey images."""
    if len(shape) == 3:
        if channel_axis in ("auto", None):
            return None
        raise ValueError(
            f"channel_axis={channel_axis} needs X with 4 axes, got shape {tuple(shape)}; "
            "leave channel_axis='auto' for grey images (n, H, W)"
        )
    if channel_axis is None:
        raise ValueError(
            f"channel_axis=None means grey images (n, H, W), got shape {tuple(shape)}; "
            "set channel_axis=1 or channel_axis=-1"
        )
    if channel_axis != "auto":
        axis = channel_axis % 4 if -4 <= channel_axis < 4 else 0
        if axis == 0:
            raise ValueError(f"channel_axis must be one of 1, 2, 3, -1, -2, -3, got {channel_axis}")
        return axis
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        which = "both axes" if first else "no axis"
        raise ValueError(
            f"channel_axis='auto' cannot tell the channels of X with shape {tuple(shape)}: "
            f"{which} could hold 1 to 4 of them; set channel_axis=1 or channel_axis=-1"
        )
    return 1 if first else 3


def _refuse_doubts(shape, axis, tensor):
    """Raise an error if a short axis that was found for the channels may be another."""
    n, height, width = (side for i, side in enumerate(shape) if i != axis)
    if axis == 1 and shape[1] > 1 and not tensor:
        raise ValueError(
            f"X of shape {tuple(shape)} may hold images of {shape[1]} channels, or volumes of {shape[1]} "
            f"slices; set channel_axis=1 for channels, or give slices: X.reshape(-1, {height}, {width})"
        )
    if axis == 3 and shape[3] == 4:
        raise ValueError(
            f"X of shape {tuple(shape)} has 4 channels, the last of which may be the alpha of RGBA; leave it "
            "out, X[..., :3], or set channel_axis=-1 for four channels"
        )


def kind(dtype):
    """Kind of intensities that a dtype holds: 'uint8', other 'integer', or 'float'."""
    dtype = np.dtype(dtype)  # a lazy X may name its dtype by a class or a string
    if dtype == np.uint8:
        return "uint8"
    return "float" if dtype.kind == "f" else "integer"


def find_intensity_range(X, intensity_range, used):
    """Range (low, high) of intensities, found or given, as floats. NaN and infinity in X are refused.

    Parameters
    ----------
    X : object with `shape`, `dtype` and slicing, or list of arrays of one dtype
    intensity_range : "auto" or (low, high)
    used : (n,) bool array
        Rows that count for the minimum and maximum.

    Warns
    -----
    UserWarning
        If "auto" finds a range that is set by a few values.
    """
    dtype = (X[0] if isinstance(X, list) else X).dtype
    given = not isinstance(intensity_range, str)
    if given:
        are_two = len(intensity_range) == 2 and all(isinstance(end, Real) for end in intensity_range)
        if not are_two or not -np.inf < intensity_range[0] < intensity_range[1] < np.inf:
            raise ValueError(
                "intensity_range must be 'auto' or two numbers (low, high) with low < high, "
                f"got {intensity_range}"
            )
        low, high = map(float, intensity_range)
    elif kind(dtype) == "uint8":
        low, high = 0.0, 255.0
    else:
        low, high = np.inf, -np.inf
    # Floats are read even if the range is known: they may hold NaN.
    if kind(dtype) != "float" and low <= high:
        return low, high
    sample, rng = [], np.random.default_rng(0)
    share = min(1.0, N_SAMPLED / (sum(x.size for x in X) if isinstance(X, list) else np.prod(X.shape)))
    for values, counts in _read_all(X, used):
        refuse_non_finite(values)
        values = values[counts]
        if not given and values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            values = values.reshape(-1)
            # At random: every k-th value of an image might be those of one column.
            some = rng.integers(values.size, size=int(share * values.size) + 1) if share < 1 else slice(None)
            sample.append(values[some])
    if sample and low < high:
        _warn_of_extremes(np.sort(np.concatenate(sample)), low, high)
    return low, high


def _read_all(X, used):
    """Yield parts of X, or of a list of images, and which of their rows are used."""
    if isinstance(X, list):
        yield from ((x[None], u) for x, u in zip(X, used[:, None]))
    else:
        yield from ((np.asarray(X[block]), used[block]) for block in blocks(X))


def _warn_of_extremes(values, low, high):
    """Warn if 999 of 1000 values, which are sorted, lie within a tenth of the range."""
    values = values.astype(np.float64)
    n = -(-999 * len(values) // 1000)
    widths = values[n - 1 :] - values[: len(values) - n + 1]
    narrowest = widths.argmin()
    if widths[narrowest] <= (high - low) / 10:
        start, end = values[narrowest], values[narrowest + n - 1]
        warnings.warn(
            f"99.9 % of the values of X lie within ({start:g}, {end:g}), and intensity_range='auto' is "
            f"({low:g}, {high:g}): a few pixels, hot ones or padding, leave the others next to no contrast; "
            "set intensity_range=(low, high)",
            stacklevel=8,
        )


def warn_of_constants(X, used):
    """Warn if the used images, of an X or a list, are all equal, or each of one intensity."""
    first, equal, flat = None, True, True
    for row in np.flatnonzero(used):
        image = X[row] if isinstance(X, list) else np.asarray(X[row : row + 1])
        first = image if first is None else first
        equal = equal and np.array_equal(image, first)
        flat = flat and image.size > 1 and bool((image == image.flat[0]).all())
        # Images as they should be end this at the second.
        if not equal and not flat:
            return
    what = "equal" if equal else "constant, each of one intensity"
    warnings.warn(
        f"all {used.sum()} training images are {what}: they teach nothing; were they read right?",
        stacklevel=7,
    )


def check_X(X, estimator, *, fitting):
    """X, as `read_container` gives it, as a numpy array or a `Lazy`; nothing is copied or converted to float.

    ``n_features_in_`` and ``feature_names_in_`` of the estimator are set if fitting, else compared with X.
    The estimator may be None, if X is looked at for its own sake.
    """
    min_samples = 2 if fitting else 1
    if is_lazy(X):
        if not all(isinstance(side, Integral) for side in X.shape):
            raise ValueError(
                f"X must know its shape, got {tuple(X.shape)}; X.compute_chunk_sizes() finds that of dask"
            )
        if X.shape[0] < min_samples:
            raise ValueError(
                f"Found array with {X.shape[0]} sample(s) while a minimum of {min_samples} is required."
            )
        X = Lazy(X)
        if X.dtype.kind not in "biuf":
            raise TypeError(f"X must hold real numbers, got dtype {X.dtype}")
    else:
        if isinstance(X, list) and all(isinstance(image, np.ndarray) and image.ndim > 1 for image in X) and X:
            shapes = sorted({image.shape for image in X})
            raise ValueError(
                f"images in a list must have one shape, got {str(shapes[:3])[1:-1]}; resize them, or take a "
                "PatchDetector, which takes images of any size"
            )
        given = X
        # NaN is looked for when X is read in blocks; here that would be one more pass over X.
        options = {"allow_nd": True, "ensure_all_finite": False, "ensure_min_samples": min_samples}
        X = check_array(X, **options, estimator=estimator, input_name="X")
        if X.ndim == 2 and estimator is not None:
            # Columns are compared by their names, too, which an array made of a DataFrame has lost.
            named = given if hasattr(given, "columns") else X
            validate_data(estimator, named, reset=fitting, skip_check_array=True)
            return X
    if fitting:
        note_features(estimator, X.shape[1])
    return X


def iter_images(X, channel_axis="auto", image_shape=None):
    """Yield the images of X, of any layout, as float64 arrays (C, H, W) in the units of X.

    Parameters
    ----------
    X : array-like
        Images or rows, as `fit` of a detector takes them; one image is enough.
    channel_axis, image_shape
        Parameters of a detector.

    Raises
    ------
    ValueError
        If X holds NaN or infinity, or its shape is ambiguous or impossible.
    TypeError
        If X holds paths, masked values or no real numbers, or if a lazy X reads as several dtypes.
    """
    tensor = holds_tensors(X)
    X = check_X(read_container(X), None, fitting=False)
    layout = Layout.of(X.shape, channel_axis, image_shape, tensor=tensor)
    for block in blocks(X):
        values = np.asarray(X[block])
        refuse_non_finite(values)
        yield from (image.astype(np.float64) for image in layout.to_network(values))


def refuse_one_image(shape, layout):
    """Raise an error if X has the shape of one image of the layout, and not that of a batch."""
    channels, *size = layout.image_shape
    shapes = [[channels, *size], [*size, channels], *([size] if channels == 1 else [])]
    is_batch = list(shape[1:]) == size if len(shape) == 3 and channels == 1 else False
    is_row = len(shape) == 2 and shape[1] == np.prod(layout.image_shape)
    if list(shape) in shapes and not is_batch and not is_row and not layout.rows:
        raise ValueError(f"X must be a batch, got one image of shape {tuple(shape)}; give X[None]")


def note_features(estimator, n_features):
    """Set ``n_features_in_`` for an X whose columns have no names."""
    estimator.n_features_in_ = n_features
    vars(estimator).pop("feature_names_in_", None)


def check_kind(dtype, fitted, intensity_range):
    """Raise an error if X has another kind of intensities than the X whose range was learned."""
    if isinstance(intensity_range, str) and kind(dtype) != fitted:
        raise ValueError(
            f"X has dtype {dtype} ({kind(dtype)}), but the detector was fitted to {fitted} "
            "intensities; convert X, or set intensity_range=(low, high) and fit again"
        )


@dataclass(frozen=True)
class InputFormat:
    """Format of the images to which a detector was fitted. New images are read in this format.

    Parameters
    ----------
    layout : Layout
    kind : {"uint8", "integer", "float"}
        Kind of intensities.
    intensity_range : (low, high)
        Intensities that become the ends of `image_range`.
    image_range : (low, high)
        Intensities for which the network was built.
    """

    layout: Layout
    kind: str
    intensity_range: tuple
    image_range: tuple = (0.0, 1.0)

    @property
    def image_shape(self):
        return self.layout.image_shape

    @classmethod
    def learn(cls, X, y, detector, image_range):
        """Format of X, and Images of the rows of X that are no known anomalies."""
        tensor = holds_tensors(X)
        X = check_X(read_container(X), detector, fitting=True)
        layout = Layout.of(X.shape, detector.channel_axis, detector.image_shape, tensor=tensor)
        used, codes = training_rows(y, X.shape[0])
        intensity_range = find_intensity_range(X, detector.intensity_range, used)
        warn_of_constants(X, used)
        learned = cls(layout, kind(X.dtype), intensity_range, image_range)
        return learned, learned._images(X, layout, None if used.all() else np.flatnonzero(used), codes)

    def open(self, X, detector):
        """Images of X after all checks but one: NaN and infinity are found when X is read.

        Raises
        ------
        ValueError
            If the images have another shape or kind than those of the fit.
        """
        X = read_container(X)
        refuse_one_image(getattr(X, "shape", ()), self.layout)
        X = check_X(X, detector, fitting=False)
        layout = Layout.of(X.shape, detector.channel_axis, detector.image_shape, known=True)
        # scikit-learn compares n_features_in_ only, the length of one axis.
        if layout.image_shape != self.image_shape:
            raise ValueError(
                f"X must hold images of the fitted shape (C, H, W) = {self.image_shape}, got "
                f"{layout.image_shape}; resize them, or fit a detector for this shape"
            )
        check_kind(X.dtype, self.kind, detector.intensity_range)
        return self._images(X, layout)

    def restore(self, images):
        """Images in the layout and units of the fitted X, from network images (n, C, H, W)."""
        return self._images(None, self.layout).from_network(images)

    def _images(self, X, layout, rows=None, y=None):
        return Images(X, layout, self.intensity_range, self.image_range, rows, y)
