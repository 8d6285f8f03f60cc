"""Images: float32 batches (n, c, h, w) for networks, read lazily from an X of any layout."""

import hashlib

import numpy as np
import torch
from sklearn import config_context
from sklearn.utils import assert_all_finite, gen_batches

#: Number of bytes that are read at once in a pass over all of X.
BLOCK_BYTES = 2**24


def refuse_non_finite(values):
    """Raise an error if values hold NaN or infinity, even if scikit-learn is set to assume_finite."""
    with config_context(assume_finite=False):
        assert_all_finite(values, input_name="X")


class Images:
    """Images of X as networks take them, in a sequence that reads X when it is indexed.

    Parameters
    ----------
    X : object with `shape`, `dtype` and slicing
        Images or rows. numpy arrays, memmaps included, are also read by index arrays.
    layout : Layout
    intensity_range : (low, high)
        Intensities of X that become the ends of `image_range`; nothing is clipped.
    image_range : (low, high)
        Intensities for which the network was built, (0, 1) or (-1, 1).
    rows : (n,) int array or None
        Rows of X to use; None means all.
    y : (n,) array or None
        Codes of those rows: 1 normal, 0 unlabelled.

    Attributes
    ----------
    held_out : Images or None
        Images that are held out of training, for ``valid_loss``.
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
        return self.to_network(self._read(index))

    def _read(self, index):
        """Images as they are in X."""
        if self.rows is not None:
            index = self.rows[index]
        if self.by_index or isinstance(index, slice):
            return np.asarray(self.X[index])
        # Any lazy object takes slices, few take index arrays: one slice for each run of consecutive rows.
        runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
        return np.concatenate([np.asarray(self.X[int(run[0]) : int(run[-1]) + 1]) for run in runs])

    @property
    def map_shape(self):
        """Shape (n, H, W) of the maps of all images."""
        return len(self), *self.layout.image_shape[1:]

    def raw(self):
        """All images as they are in X, channels first: (n, C, H, W)."""
        return self.layout.to_network(self._read(slice(0, len(self))))

    def to_network(self, batch):
        """Images as networks take them, a float32 tensor, made of rows of X."""
        (low, high), (bottom, top) = self.intensity_range, self.image_range
        # float32 cannot hold 32-bit integers, nor small differences of float64 values with a large offset.
        wide = batch.dtype.itemsize > 4 or batch.dtype.kind in "iu" and batch.dtype.itemsize == 4
        with np.errstate(over="ignore", invalid="ignore"):
            values = batch.astype(np.float64 if wide else np.float32)
            values -= low
            values *= (top - bottom) / ((high - low) or 1.0)
            values += bottom
            values = self.layout.to_network(values).astype(np.float32, copy=False)
        if batch.dtype.kind == "f" and not np.isfinite(values).all():
            refuse_non_finite(batch)
            raise ValueError(
                "X has values too large for float32 once scaled by "
                f"intensity_range={self.intensity_range}; set intensity_range to the values you expect"
            )
        return torch.from_numpy(np.ascontiguousarray(values))

    def from_network(self, images):
        """Undo `to_network`: float32 images in the layout and units of X."""
        (low, high), (bottom, top) = self.intensity_range, self.image_range
        values = self.layout.from_network(np.asarray(images, dtype=np.float64))
        values = (values - bottom) * (((high - low) or 1.0) / (top - bottom)) + low
        return values.astype(np.float32)

    def order(self, batch_size):
        """Random order of the rows, an int array."""
        n = len(self)
        if self.by_index:
            return torch.randperm(n).numpy()
        # Short runs where X can only be sliced: a slice for each row would be slow.
        run = max(1, batch_size // 8)
        runs = np.split(np.arange(n), np.arange(run, n, run))
        return np.concatenate([runs[i] for i in torch.randperm(len(runs))])

    def epoch(self, batch_size):
        """Yield all images in random order, in batches whose sizes differ by at most one."""
        for index in np.array_split(self.order(batch_size), self.n_batches(batch_size)):
            yield self[index]

    def n_batches(self, batch_size):
        """Number of batches of an epoch."""
        # drop_last would train nothing on fewer images than a batch; a last batch of one breaks BatchNorm.
        return max(1, min(-(-len(self) // batch_size), len(self) // 2))

    def subset(self, index):
        """Images of some of the rows, in the order of X."""
        index = np.sort(index)
        rows = index if self.rows is None else self.rows[index]
        y = None if self.y is None else self.y[index]
        return Images(self.X, self.layout, self.intensity_range, self.image_range, rows, y)

    def split(self, fraction):
        """Hold out a random `fraction` of the images.

        The result has the others, to train on, and those held out as its attribute `held_out`.
        """
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
        # The same share of the unlabelled images: valid_loss is of the mixture that is trained on.
        n_unlabelled = round(fraction * unlabelled.sum())
        held_out = np.zeros(len(self), bool)
        held_out[np.flatnonzero(unlabelled)[:n_unlabelled]] = True
        held_out[np.flatnonzero(~unlabelled)[: n_held_out - n_unlabelled]] = True
        train = self.subset(order[~held_out])
        train.held_out = self.subset(order[held_out])
        return train


def fingerprint(X):
    """First half of the SHA-256 of the values of X, read a block at a time."""
    digest = hashlib.sha256()
    for block in blocks(X):
        digest.update(np.asarray(X[block]).tobytes())
    return digest.hexdigest()[:32]


def blocks(X):
    """Slices of X that take about BLOCK_BYTES each."""
    row_bytes = int(np.prod(X.shape[1:])) * np.dtype(X.dtype).itemsize
    return gen_batches(X.shape[0], max(1, BLOCK_BYTES // max(1, row_bytes)))
