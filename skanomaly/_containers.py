"""Containers of images: what X may be, and the values that are read from it."""

from os import PathLike

import numpy as np
import torch
from scipy import sparse


def holds_tensors(X):
    """Whether X is a torch tensor, or a list of tensors."""
    X = _listed(X)
    return isinstance(next(iter(X), None) if isinstance(X, (list, tuple)) else X, torch.Tensor)


def _listed(X):
    """X, as a list if it is an array of images."""
    return list(X) if isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1 else X


def read_container(X):
    """X, or one array of the images of a list, which stay a list if they differ in shape.

    Raises
    ------
    TypeError
        If X holds the paths of files, or masked values.
    ValueError
        If images in a list differ in dtype, or hold the indices of a palette.
    """
    X = _listed(X)
    _refuse_paths(X)
    if not isinstance(X, (list, tuple)):
        return _read_image(X) if _is_image(X) else X
    if not X or not all(hasattr(x, "__array__") or _is_image(x) for x in X):
        return X
    images = [_read_image(image) for image in X]
    if not all(image.ndim in (2, 3) for image in images):
        return images
    if len(dtypes := {image.dtype for image in images}) > 1:
        raise ValueError(f"images in a list must have one dtype, got {sorted(map(str, dtypes))}")
    return np.stack(images) if len({image.shape for image in images}) == 1 else images


def _is_image(X):
    """Whether X is an array, a tensor or a PIL image, and no lazy object."""
    is_picture = hasattr(X, "__array_interface__") and not hasattr(X, "shape")
    return isinstance(X, (np.ndarray, torch.Tensor)) or is_picture


def _read_image(X):
    """Array of an array, a tensor or a PIL image."""
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        # numpy has neither bfloat16 nor types of 8 bits; float32 holds all of their values.
        narrow = X.is_floating_point() and X.dtype not in (torch.float16, torch.float32, torch.float64)
        return (X.float() if narrow else X).numpy()
    if getattr(X, "mode", None) in ("P", "PA", "LA", "La"):
        raise ValueError(
            f"X has images of mode {X.mode!r}, whose values are indices of a palette, or alpha, and not "
            "intensities; convert them, image.convert('RGB') or image.convert('L')"
        )
    return unmasked(X)


def _refuse_paths(X):
    is_row = isinstance(X, (list, tuple)) or getattr(X, "ndim", 0) == 1 and hasattr(X, "__iter__")
    first = next(iter(X), None) if is_row else X
    if isinstance(first, (str, bytes, PathLike)):
        read = "ImageFiles(X)" if is_row else "read_folder(X)"
        raise TypeError(f"X must hold images, got the path {str(first)!r}; give skanomaly.io.{read}")


def is_lazy(X):
    """Whether X can only be read in slices: no array, and nothing that scikit-learn makes an array of."""
    if isinstance(X, np.ndarray) or sparse.issparse(X) or hasattr(X, "iloc"):
        return False
    return all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__")) and len(X.shape) > 1


class Lazy:
    """Lazy X with the dtype of the values that are read from it, to which each block is held.

    Its own `dtype` may be that of a file: a scaled NIfTI image of nibabel says uint8, and reads as float64.

    Parameters
    ----------
    X : object with `shape` and ``X[a:b]``
        Images or rows, one at least.

    Raises
    ------
    TypeError
        If blocks differ in dtype, or hold masked values.
    """

    def __init__(self, X):
        self._X, self.shape = X, tuple(X.shape)
        self.dtype = unmasked(X[0:1]).dtype

    def __getitem__(self, rows):
        block = unmasked(self._X[rows])
        if block.dtype != self.dtype:
            raise TypeError(
                f"X must read as one dtype, got {self.dtype} for X[0:1] and {block.dtype} for "
                f"X[{rows.start}:{rows.stop}]; convert it where it is read"
            )
        return block


def unmasked(values):
    """Array of the values, which may be a container of any kind; masked values are refused."""
    # Not by numpy: dask makes a plain array of masked blocks for it.
    values = np.asanyarray(values.compute() if hasattr(values, "compute") else values)
    if np.ma.is_masked(values):
        raise TypeError(
            "X has masked values, which would be read like any others; fill them, X.filled(value), or leave "
            "those images out"
        )
    return np.asarray(values)
