"""Windows of images: where they lie, how they are read, and how their maps are put together."""

import numpy as np

from ._format import Layout, find_intensity_range


class ImageStack:
    """Images of one size or of several, read one at a time with channels first.

    Parameters
    ----------
    X : array, lazy object, or list of arrays
    channel_axis, image_shape
        As of a detector.
    rows : (n,) int array, default=None
        Rows of X to use; None means all.
    y : (n,) array, default=None
        Codes of those rows.
    """

    def __init__(self, X, channel_axis, image_shape, rows=None, y=None):
        self.y = y
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
        """Layout of all images, if they are in one array."""
        if self.is_list:
            raise ValueError("images must be in one array to be drawn side by side, got a list")
        return self.layouts[0]

    @property
    def shape(self):
        return (len(self),)

    @property
    def map_shape(self):
        """Shape (n, H, W) of the maps of all images, None if they are a list."""
        return None if self.is_list else (len(self), *self.layout.image_shape[1:])

    def raw(self):
        """All images as they are in X, channels first: (n, C, H, W)."""
        return self.layout.to_network(np.asarray(self.X[0 : len(self)]))

    def subset(self, index):
        y = None if self.y is None else self.y[index]
        return ImageStack(self.X, *self.options, self.rows[index], y)

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
                [a.ravel() for a in np.meshgrid(i, *map(starts, sides, size, stride), indexing="ij")], axis=1
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


def starts(length, size, stride):
    """Where windows begin on a side; the last ends at the border."""
    return np.unique(np.r_[0 : length - size + 1 : stride, length - size])


def profile(size):
    """Weights of a window along a side: most in the middle, least at its ends, never zero."""
    return np.minimum(np.arange(size) + 1, np.arange(size)[::-1] + 1).astype(float)


def cover(length, starts, weights):
    """Sum of the weights that fall on each place of a side."""
    total = np.zeros(length)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
