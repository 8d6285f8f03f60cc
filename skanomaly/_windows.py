"""Windows of images: their places, their pixels, and the weights by which their maps are blended."""

from functools import partial
from itertools import product

import numpy as np

from ._format import Layout


class ImageStack:
    """Images of one size or of several, read one at a time with channels first.

    Parameters
    ----------
    X : array, lazy object, or list of arrays
    channel_axis, image_shape
        Parameters of a detector.
    known, tensor : bool, default=False
        Options of `Layout.of`.
    rows : (n,) int array, default=None
        Rows of X to use; None means all.
    y : (n,) array, default=None
        Codes of those rows: 1 normal, 0 unlabelled.

    Attributes
    ----------
    sizes : (n, 2) int array
        Height and width of each image.
    """

    def __init__(self, X, channel_axis, image_shape, rows=None, y=None, *, known=False, tensor=False):
        self.X, self.y, self.is_list = X, y, isinstance(X, (list, tuple))
        self.dtype = np.dtype((X[0] if self.is_list else X).dtype)
        n = len(X) if self.is_list else X.shape[0]
        self.rows = np.arange(n) if rows is None else rows
        shapes = [(1, *image.shape) for image in X] if self.is_list else [X.shape]
        doubts = {"known": known, "tensor": tensor}
        self.layouts = [Layout.of(shape, channel_axis, image_shape, **doubts) for shape in shapes]
        channels = {layout.image_shape[0] for layout in self.layouts}
        if len(channels) > 1:
            raise ValueError(f"images in a list must have equally many channels, got {sorted(channels)}")
        self.channels = channels.pop()
        sizes = np.array([layout.image_shape[1:] for layout in self.layouts])
        self.sizes = sizes[self.rows] if self.is_list else np.tile(sizes, (len(self.rows), 1))
        self.subset_of = partial(ImageStack, X, channel_axis, image_shape, **doubts)
        self._last = None, None

    def __len__(self):
        return len(self.rows)

    @property
    def layout(self):
        """Layout of all images. A list of images has none, and raises an error."""
        if self.is_list:
            raise ValueError("images must be in one array to be drawn side by side, got a list")
        return self.layouts[0]

    @property
    def map_shape(self):
        """Shape (n, H, W) of the maps of all images, None if they are a list."""
        return None if self.is_list else (len(self), *self.layout.image_shape[1:])

    def raw(self):
        """All images as they are in X, channels first: (n, C, H, W)."""
        return self.layout.to_network(np.asarray(self.X[0 : self.X.shape[0]])[self.rows])

    def subset(self, index):
        """Images of some of the rows."""
        y = None if self.y is None else self.y[index]
        return self.subset_of(self.rows[index], y)

    def __getitem__(self, i):
        """Image i, (C, H, W): a view where X is an array."""
        # The last image is kept, since its windows follow one another; a lazy X would be read for each.
        if self._last[0] != i:
            row = self.rows[i]
            one = self.X[row][None] if self.is_list else np.asarray(self.X[row : row + 1])
            self._last = i, self.layouts[row if self.is_list else 0].to_network(one)[0]
        return self._last[1]

    def grid(self, size, stride):
        """Windows that cover every image, in order."""
        table = [
            (i, top, left)
            for i, sides in enumerate(self.sizes)
            for top, left in product(*map(starts, sides, size, stride))
        ]
        return Windows(self, np.array(table), size)

    def random_windows(self, size, n_patches, rng):
        """Windows at random places, `n_patches` in each image, in random order."""
        image = np.repeat(np.arange(len(self)), n_patches)
        corners = rng.integers(0, self.sizes[image] - size + 1)
        return Windows(self, rng.permutation(np.column_stack([image, corners])), size)


class Windows:
    """Windows of images, as a lazy X for detectors.

    Parameters
    ----------
    images : ImageStack
    table : (m, 3) int array
        Number of the image, first row and first column of each window.
    size : tuple (h, w)
    """

    def __init__(self, images, table, size):
        self.images, self.table, self.size = images, table, size
        self.shape, self.dtype = (len(table), images.channels, *size), images.dtype

    def __getitem__(self, rows):
        height, width = self.size
        return np.stack(
            [self.images[i][:, top : top + height, left : left + width] for i, top, left in self.table[rows]]
        )

    def of(self, image):
        """Slice of the windows of one image; the table must be in order."""
        return slice(*np.searchsorted(self.table[:, 0], [image, image + 1]))


def starts(length, size, stride):
    """First pixels of the windows along a side; the last window ends at the border."""
    return np.unique(np.r_[0 : length - size + 1 : stride, length - size])


def profile(size):
    """Weights of a window's pixels along a side, largest in the middle and never zero."""
    return np.minimum(np.arange(size) + 1, np.arange(size)[::-1] + 1).astype(float)


def cover(length, starts, weights):
    """Sum of the weights of all windows at each pixel of a side."""
    total = np.zeros(length)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
