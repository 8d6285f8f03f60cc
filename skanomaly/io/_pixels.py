"""Channels, windows and sizes of single images."""

import numpy as np

#: Weights of red, green and blue in grey (ITU-R 601), as Pillow has them.
LUMINANCE = np.array([0.299, 0.587, 0.114])


def to_channels(image, channels):
    if channels == 3 and image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=-1)
    if channels == 1 and image.ndim == 3:
        grey = image @ LUMINANCE
        return (np.rint(grey) if image.dtype.kind in "iu" else grey).astype(image.dtype)
    return image


def clipped(image, low, high):
    return np.clip((image - low) / max(high - low, np.finfo(float).tiny), 0, 1)


def resize(image, size):
    """Image of another size, by linear interpolation whose support grows as the image shrinks."""
    from PIL import Image

    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    shape = width, height
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))
    planes = np.moveaxis(image, -1, 0) if image.ndim == 3 else image[None]
    resized = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(shape, Image.Resampling.BILINEAR))
        for plane in planes
    ]
    values = np.stack(resized, axis=-1) if image.ndim == 3 else resized[0]
    return np.rint(values).astype(image.dtype) if image.dtype.kind in "iu" else values


def nearest(mask, size):
    """Mask of another size: each pixel is that of the nearest place."""
    from PIL import Image

    height, width = map(int, size)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
