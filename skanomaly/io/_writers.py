"""Masks and maps in the size and geometry of the files that they are of."""

import json
import os
from collections import Counter
from itertools import repeat
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from .._arrays import check_masks
from ._files import ImageFiles
from ._nifti import Nifti
from ._pixels import clipped, nearest, resize, to_channels
from ._source import PERCENTILES

#: Colour of overlays, and the share of it where a map is highest.
COLOUR, OPACITY = np.array([255.0, 32.0, 32.0]), 0.6


def write_masks(
    folder: PathLike | str, masks: Any, files: ImageFiles, *, overlay: bool = False
) -> list[Path]:
    """Write masks in the original size of the images that they are of.

    Masks of the slices of a NIfTI volume become one NIfTI volume of its shape and affine, NAME_mask.nii or
    .nii.gz, which is 0 in slices without a mask. Any other mask becomes NAME_mask.png, 0 and 255; masks of
    several images in one file have their number after the name. Subfolders of the files are kept.

    Parameters
    ----------
    folder : path
        Folder to write into; it is made if needed.
    masks : (n, H, W) bool array-like
        Mask of each image, of the size that a detector saw.
    files : ImageFiles
        Images that the masks are of.
    overlay : bool, default=False
        Whether NAME_mask_overlay.png is written, too: the image with the outline of its mask.

    Returns
    -------
    paths : list of Path
        Files that were written, in the order of the images.
    """
    check_shape(masks, files, "masks")

    def full(row, size):
        return nearest(check_masks(np.asarray(masks[row])), size)

    def write_picture(path, mask):
        from PIL import Image

        Image.fromarray(mask * np.uint8(255)).save(path)

    def outline(mask):
        inside = ndimage.binary_erosion(mask, structure=np.ones((3, 3)))
        return (mask & ~inside).astype(float)

    colour = outline if overlay else None
    return write_all(folder, files, "mask", ".png", np.uint8, full, write_picture, colour)


def write_maps(
    folder: PathLike | str,
    maps: Any,
    files: ImageFiles,
    *,
    limits: tuple[float, float] | None = None,
    overlay: bool = False,
) -> list[Path]:
    """Write anomaly maps in the original size of the images that they are of.

    Maps of the slices of a NIfTI volume become one NIfTI volume of its shape and affine, NAME_map.nii or
    .nii.gz, with the values as they are; it is 0 in slices without a map. Any other map becomes NAME_map.tif,
    a TIFF of 16 bits: 0 stands for the lower limit and 65535 for the upper one, and both are in its
    description as JSON. Limits are the same for all maps, since a scale for each would make every image look
    abnormal.

    Parameters
    ----------
    folder : path
        Folder to write into; it is made if needed.
    maps : (n, H, W) array-like
        Map of each image, of the size that a detector saw.
    files : ImageFiles
        Images that the maps are of.
    limits : (low, high), default=None
        Values that become 0 and 65535, and no and full colour; values outside are clipped. None: the least
        and the greatest value of all maps.
    overlay : bool, default=False
        Whether NAME_map_overlay.png is written, too: the image, redder where its map is higher.

    Returns
    -------
    paths : list of Path
        Files that were written, in the order of the images.
    """
    check_shape(maps, files, "maps")
    if limits is None:
        ends = [(np.min(maps[row]), np.max(maps[row])) for row in range(len(files))]  # maps may be on disk
        limits = np.min(ends), np.max(ends)
    low, high = map(float, limits)
    if not -np.inf < low <= high < np.inf:
        raise ValueError(
            f"limits must be finite numbers (low, high), got {limits}; infinite maps need limits"
        )

    def full(row, size):
        return resize(np.asarray(maps[row], dtype=np.float32), size)

    def scaled(one):
        return clipped(one, low, high)

    def write_picture(path, one):
        import tifffile

        values = np.rint(scaled(one) * 65535).astype(np.uint16)
        words = json.dumps({"low": low, "high": high})
        tifffile.imwrite(path, values, description=words, metadata=None, compression="zlib")

    colour = scaled if overlay else None
    return write_all(folder, files, "map", ".tif", np.float32, full, write_picture, colour)


def write_all(folder, files, what, ending, dtype, full, write_picture, colour):
    """Write a file for each image or volume, and an overlay of each image if there is a colour.

    Parameters
    ----------
    full : function of a row and a size
        Mask or map of an image in its original size.
    write_picture : function of a path and such a mask or map
    colour : function of such a mask or map, or None
        Share of COLOUR in each pixel of the overlay.
    """
    written = []
    for source, rows, frames, stem in by_file(Path(folder).expanduser(), files):
        stem.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Nifti):
            path = stem.with_name(f"{stem.name}_{what}{'.nii.gz' if source.is_whole else '.nii'}")
            source.volume(zip(frames, (full(row, source.size) for row in rows)), dtype).to_filename(path)
            written.append(path)
        # In one go, since a compressed volume is decompressed as a whole.
        originals = repeat(None) if colour is None else files._decode(source, frames)
        for row, frame, original in zip(rows, frames, originals):
            number = f"_{frame:04}" if source.n_images > 1 else ""
            if not isinstance(source, Nifti):
                written.append(stem.with_name(f"{stem.name}{number}_{what}{ending}"))
                write_picture(written[-1], full(row, source.size))
            if colour is not None:
                written.append(stem.with_name(f"{stem.name}{number}_{what}_overlay.png"))
                write_overlay(written[-1], original, colour(full(row, source.size)))
    return written


def by_file(folder, files):
    """Yield each file's source, rows, frames, and the beginning of the names of what is written of it."""
    rows, frames = {}, {}
    for row, (source, frame) in enumerate(files._rows):
        rows.setdefault(source, []).append(row)
        frames.setdefault(source, []).append(frame)
    above = os.path.commonpath([source.path.absolute().parent for source in rows])
    stems = {source: source.path.absolute().relative_to(above) for source in rows}
    stems = {source: path.with_name(path.name.removesuffix(".gz")) for source, path in stems.items()}
    # The ending stays where it tells two files apart.
    twice = Counter(path.with_suffix("") for path in stems.values())
    names = {
        source: path.with_name(path.name.replace(".", "_") if twice[path.with_suffix("")] > 1 else path.stem)
        for source, path in stems.items()
    }
    first = {name: source for source, name in reversed(names.items())}
    for source, name in names.items():
        if first[name] is not source:
            raise ValueError(
                f"files must have names of their own, got {first[name].path} and {source.path}, which would "
                f"both become {name}; write them apart"
            )
    for source, name in names.items():
        yield source, rows[source], frames[source], folder / name


def write_overlay(path, image, share):
    from PIL import Image

    Image.fromarray(overlaid(image, share)).save(path)


def overlaid(image, share):
    """Picture (h, w, 3) of an image (h, w) or (h, w, 3) with a share (h, w) of COLOUR in each pixel."""
    image = to_channels(image, 3).astype(float)
    if image.max() > 255 or image.min() < 0 or image.max() <= 1:
        image = 255 * clipped(image, *np.percentile(image, PERCENTILES))
    mixed = image + OPACITY * share[..., None] * (COLOUR - image)
    return np.rint(mixed).astype(np.uint8)


def check_shape(values, files, name):
    expected = (len(files), *files.shape[1:3])
    if np.shape(values) != expected:
        raise ValueError(f"{name} must have the shape of files, {expected}, got {np.shape(values)}")
