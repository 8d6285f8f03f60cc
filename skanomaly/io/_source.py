"""Source: what is known of a file of images before its pixels are read."""

import importlib

import numpy as np

#: Percentiles of the values of a file that become 0 and 1 with ``window="percentiles"``.
PERCENTILES = 1, 99


class Source:
    """A file that holds one image or several of one size. Classes of formats fill it in and read its images.

    Attributes
    ----------
    path : Path
    size : (height, width)
        Original size of its images, in pixels.
    n_images : int
    channels : {1, 3}
    dtype : dtype
        Type of the values that are read.
    unit : str
        Meaning of the values. Values of two files can be compared if this is equal.
    inverse : bool
        Whether a low value is bright, as in MONOCHROME1.
    has_alpha : bool
        Whether alpha is dropped.
    is_whole : bool
        Whether reading one image takes as long as reading all, as in a compressed volume.
    patient : str or None
        Patient or study that the file names; the path of the file if it holds several images.
    spacing : (float, float)
        Distance of rows and of columns in mm, nan if unknown.
    """

    inverse = has_alpha = is_whole = False
    patient = None
    spacing = np.nan, np.nan
    _limits = None

    def __init__(self, path):
        self.path = path
        self.open()
        if not min(self.size) or not self.n_images:
            raise ValueError(f"it holds {self.n_images} images of {self.size} pixels")
        refuse_bomb(self.size)
        if self.patient is None and self.n_images > 1:
            self.patient = str(path)

    def open(self):
        """Set the attributes, from the header of the file."""
        raise NotImplementedError

    def values(self, index):
        """Array (H, W) or (H, W, 3) of an image, as it is stored."""
        raise NotImplementedError

    def images(self, indices):
        """Yield `values` of several images."""
        yield from map(self.values, indices)

    def upright(self, values, index):
        """Values as they are without a window: a high value is bright."""
        return values

    def windowed_by_file(self, values, index):
        """Values in [0, 1] by the window that the file names."""
        raise ValueError("window='file' needs DICOM files; give window=(centre, width) or 'percentiles'")

    def affine(self, index):
        """Array (4, 4) that maps (row, column, 0, 1) to mm (right, anterior, superior), or None."""
        return None

    def limits(self):
        """PERCENTILES of all values of the file."""
        if self._limits is None:
            everything = range(self.n_images)
            images = zip(everything, self.images(everything))
            values = [self.upright(image, index).reshape(-1) for index, image in images]
            self._limits = np.percentile(np.concatenate(values), PERCENTILES)
        return self._limits


def refuse_bomb(size):
    """Hold files of all formats to Pillow's limit of pixels, as Pillow holds its own."""
    from PIL import Image

    pixels, limit = int(np.prod(size)), Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > 2 * limit:
        raise Image.DecompressionBombError(
            f"image of {pixels} pixels exceeds limit of {2 * limit} pixels, could be a decompression bomb; "
            "set PIL.Image.MAX_IMAGE_PIXELS if it is none"
        )


def import_medical(name):
    """Module of a package that the extra `medical` installs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f'{package} is needed for such files: pip install "skanomaly[medical]"') from error
