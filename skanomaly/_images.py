"""Any layout of images to float32 batches (n, c, h, w), lazily, and back."""

import hashlib
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d, gen_batches
from sklearn.utils._missing import is_pandas_na, is_scalar_nan

#: Sizes that are read as a channel axis when the user does not name one.
CHANNELS = range(1, 5)

#: Bytes read at once where all of X is passed through.
BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class Layout:
    """Where the channels of X are, and the shape (C, H, W) of one image."""

    image_shape: tuple
    channel_axis: int | None = None
    rows: bool = False

    @classmethod
    def of(cls, shape, channel_axis="auto", image_shape=None):
        """Read the layout off the shape of X.

        Raises
        ------
        ValueError
            Where the shape is ambiguous or does not fit `channel_axis` or `image_shape`.
        """
        if len(shape) == 2:
            return cls(_row_shape(shape[1], image_shape), rows=True)
        if len(shape) not in (3, 4):
            raise ValueError(
                "X must be rows (n, d) or images (n, H, W), (n, H, W, C) or (n, C, H, W), "
                f"got {len(shape)} axes: {tuple(shape)}"
            )
        axis = _find_channel_axis(shape, channel_axis)
        sides = [side for i, side in enumerate(shape) if i not in (0, axis)]
        found = (1 if axis is None else shape[axis], *sides)
        if not all(found):
            raise ValueError(f"images in X must have pixels and channels, got shape {tuple(shape)}")
        found = tuple(int(side) for side in found)
        if image_shape is not None and _full_shape(image_shape) != found:
            raise ValueError(
                f"image_shape={tuple(image_shape)} is for X given as rows, and must be left None or agree "
                f"with images in X, of shape (C, H, W) = {found}"
            )
        return cls(found, axis)

    def to_network(self, batch):
        """A view (n, C, H, W) of a batch of X."""
        if self.rows or self.channel_axis is None:
            return batch.reshape(len(batch), *self.image_shape)
        return np.moveaxis(batch, self.channel_axis, 1)

    def from_network(self, batch):
        """Undo `to_network`."""
        if self.rows:
            return batch.reshape(len(batch), -1)
        return batch[:, 0] if self.channel_axis is None else np.moveaxis(batch, 1, self.channel_axis)


def _row_shape(n_features, image_shape):
    if image_shape is None:
        return 1, 1, n_features
    shape = _full_shape(image_shape)
    if int(np.prod(shape)) != n_features:
        raise ValueError(
            "image_shape must have as many values as X has columns: "
            f"got image_shape={tuple(image_shape)} for {n_features} columns"
        )
    return shape


def _full_shape(image_shape):
    """(C, H, W) for (H, W)."""
    shape = (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(side, Integral) and side > 0 for side in shape):
        raise ValueError(f"image_shape must be whole numbers (H, W) or (C, H, W), got {tuple(image_shape)}")
    return shape


def _find_channel_axis(shape, channel_axis):
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


def kind(dtype):
    """Dtypes of one kind share their intensities: 'uint8', other 'integer', or 'float'."""
    dtype = np.dtype(dtype)  # a lazy X may name its dtype by a class or a string
    if dtype == np.uint8:
        return "uint8"
    return "float" if dtype.kind == "f" else "integer"


class Images:
    """A lazy sequence of network images over X.

    Parameters
    ----------
    X : object with `shape`, `dtype` and slicing
        numpy arrays, memmaps included, are also read by index.
    layout : Layout
    intensity_range : (low, high)
        Intensities of X that become the ends of `image_range`; nothing is clipped.
    image_range : (low, high)
        What the network was built for, [0, 1] or [-1, 1].
    rows : (n,) int array or None
        Rows of X to use; None means all.
    y : (n,) array or None
        The codes of those rows.

    Attributes
    ----------
    held_out : Images or None
        Images kept from training, for `valid_loss`.
    """

    def __init__(self, X, layout, intensity_range, image_range=(0.0, 1.0), rows=None, y=None):
        self.X, self.layout, self.rows, self.y = X, layout, rows, y
        self.intensity_range, self.image_range = intensity_range, image_range
        self.by_index = isinstance(X, np.ndarray)
        self.held_out = None

    def __len__(self):
        return self.X.shape[0] if self.rows is None else len(self.rows)

    def __getitem__(self, index):
        """float32 tensor (len(index), C, H, W) for a slice or an int array."""
        if self.rows is not None:
            index = self.rows[index]
        return self.to_network(_read(self.X, index, self.by_index))

    def to_network(self, batch):
        """Rows of X, as they are, to a float32 tensor of network images."""
        (low, high), (bottom, top) = self.intensity_range, self.image_range
        # float32 holds no 32-bit integer exactly; float64 also keeps a large offset apart.
        wide = batch.dtype.itemsize > 4 or batch.dtype.kind in "iu" and batch.dtype.itemsize == 4
        with np.errstate(over="ignore", invalid="ignore"):
            values = batch.astype(np.float64 if wide else np.float32)
            values -= low
            values *= (top - bottom) / ((high - low) or 1.0)
            values += bottom
            values = self.layout.to_network(values).astype(np.float32, copy=False)
        if batch.dtype.kind == "f" and not np.isfinite(values).all():
            assert_all_finite(batch, input_name="X")
            raise ValueError(
                "X has values too large for float32 once scaled by "
                f"intensity_range={self.intensity_range}; set intensity_range to the values you expect"
            )
        return torch.from_numpy(np.ascontiguousarray(values))

    def from_network(self, images):
        """Undo `to_network`: float32 in the layout and units of X."""
        (low, high), (bottom, top) = self.intensity_range, self.image_range
        values = self.layout.from_network(np.asarray(images, dtype=np.float64))
        values = (values - bottom) * (((high - low) or 1.0) / (top - bottom)) + low
        return values.astype(np.float32)

    def order(self, batch_size):
        """A random order of rows; in short runs where X can only be sliced."""
        n = len(self)
        if self.by_index:
            return torch.randperm(n).numpy()
        run = max(1, batch_size // 8)
        runs = np.split(np.arange(n), np.arange(run, n, run))
        return np.concatenate([runs[i] for i in torch.randperm(len(runs))])

    def epoch(self, batch_size):
        """One pass in random order, in batches of equal size (within one), never a single row."""
        n = len(self)
        n_batches = max(1, min(-(-n // batch_size), n // 2))
        for index in np.array_split(self.order(batch_size), n_batches):
            yield self[index]

    def subset(self, index):
        """Images of some of the rows, in X's order."""
        index = np.sort(index)
        rows = index if self.rows is None else self.rows[index]
        y = None if self.y is None else self.y[index]
        return Images(self.X, self.layout, self.intensity_range, self.image_range, rows, y)

    def split(self, fraction):
        """Training images, with a random `fraction` as their `held_out`."""
        if not fraction:
            return self
        n_held_out = round(fraction * len(self))
        if not 0 < n_held_out <= len(self) - 2:
            raise ValueError(
                f"validation_fraction={fraction} of {len(self)} images leaves {n_held_out} to "
                f"validate and {len(self) - n_held_out} to train on; give more images or change it"
            )
        order = torch.randperm(len(self)).numpy()
        unlabelled = np.zeros(len(self), bool) if self.y is None else (self.y == 0)[order]
        n_unlabelled = round(fraction * unlabelled.sum())  # as large a part of either
        held_out = np.zeros(len(self), bool)
        held_out[np.flatnonzero(unlabelled)[:n_unlabelled]] = True
        held_out[np.flatnonzero(~unlabelled)[: n_held_out - n_unlabelled]] = True
        train = self.subset(order[~held_out])
        train.held_out = self.subset(order[held_out])
        return train


def _read(X, index, by_index):
    if by_index or isinstance(index, slice):
        return np.asarray(X[index])
    # Only slices can be relied on: one for each run of consecutive rows.
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
    return np.concatenate([np.asarray(X[int(run[0]) : int(run[-1]) + 1]) for run in runs])


def find_intensity_range(X, intensity_range, used):
    """(low, high) as floats; one streaming pass that also refuses NaN and infinity.

    Parameters
    ----------
    X : object with `shape`, `dtype` and slicing
    intensity_range : "auto" or (low, high)
    used : (n,) bool array
        Rows that count for the minimum and maximum.
    """
    given = None if isinstance(intensity_range, str) else intensity_range
    if given is not None:
        if len(given) != 2 or not all(isinstance(end, Real) for end in given):
            given = None
        if given is None or not -np.inf < given[0] < given[1] < np.inf:
            raise ValueError(
                "intensity_range must be 'auto' or two numbers (low, high) with low < high, "
                f"got {intensity_range}"
            )
        low, high = map(float, given)
    elif kind(X.dtype) == "uint8":
        low, high = 0.0, 255.0
    else:
        low, high = np.inf, -np.inf
    if kind(X.dtype) != "float" and low <= high:
        return low, high
    for block in _blocks(X):
        values = np.asarray(X[block])
        assert_all_finite(values, input_name="X")
        values = values[used[block]]
        if given is None and values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high


def fingerprint(X):
    """First half of the SHA-256 of the values of X, read a block at a time."""
    digest = hashlib.sha256()
    for block in _blocks(X):
        digest.update(np.asarray(X[block]).tobytes())
    return digest.hexdigest()[:32]


def _blocks(X):
    """Slices of X of about BLOCK_BYTES."""
    row_bytes = int(np.prod(X.shape[1:])) * np.dtype(X.dtype).itemsize
    return gen_batches(X.shape[0], max(1, BLOCK_BYTES // max(1, row_bytes)))


def is_lazy(X):
    """Whether X is neither an array nor something scikit-learn turns into one."""
    eager = isinstance(X, np.ndarray) or sparse.issparse(X) or hasattr(X, "iloc")
    return (
        not eager and all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__")) and len(X.shape) > 1
    )


def _is_missing(code):
    return code is None or is_scalar_nan(code) or is_pandas_na(code)


def usable_rows(X, y):
    """Bool array of the rows to train on, and their y."""
    used = np.ones(X.shape[0], dtype=bool)
    if y is None:
        return used, None
    y = column_or_1d(y)
    check_consistent_length(np.empty(X.shape[0]), y)
    if y.dtype.kind == "f" and np.isnan(y).any() or y.dtype == object and any(map(_is_missing, y)):
        raise ValueError("y holds missing values; images without a label are marked with 0")
    used = y != -1
    if used.sum() < 2:
        raise ValueError(
            f"y leaves {used.sum()} of {len(used)} images to train on: -1 marks known anomalies, "
            "which no detector trains on; at least 2 must be 1 (normal) or 0 (unlabelled)"
        )
    return used, y[used]
