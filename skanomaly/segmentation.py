"""Masks from anomaly maps. Functions take and return arrays, and treat each image separately."""

import numpy as np
from scipy import ndimage

from . import _arrays
from .retina.comparison import NO_LAYER as NO_LAYER
from .retina.comparison import check_depth_order as check_depth_order
from .retina.comparison import layer_codes as layer_codes
from .retina.comparison import layer_thresholds as layer_thresholds
from .retina.comparison import layerwise_mask as layerwise_mask

#: Neighbours of a pixel within its image, none in other images of the stack (n, H, W).
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = True
_IN_PLANE_CROSS = ndimage.generate_binary_structure(3, 1) & _IN_PLANE


def residual_mask(maps, threshold, *, median_size=None, fill_holes=True, min_size=0):
    """Threshold maps, fill holes and drop small regions.

    Parameters
    ----------
    maps : (n, H, W) array
        Anomaly maps; higher is more anomalous.
    threshold : float
        Threshold of the maps. Pixels above it are flagged.
    median_size : int, default=None
        Side, in pixels, of a median filter that is applied to the maps before the threshold.
    fill_holes : bool, default=True
        Whether holes are flagged, too: pixels that are enclosed by flagged pixels (8-connected).
    min_size : int, default=0
        Least number of pixels in an 8-connected region; smaller regions are dropped.

    Returns
    -------
    masks : (n, H, W) bool ndarray
        True where anomalous.
    """
    _arrays.refuse_masked(maps, "maps")
    maps = np.asarray(maps)
    if maps.ndim != 3:
        raise ValueError(f"maps must have shape (n, H, W), got {maps.shape}")
    # No pixel is above nan: all masks would be empty.
    if np.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")
    if median_size is not None:
        maps = ndimage.median_filter(maps, size=(1, median_size, median_size))
    masks = maps > threshold
    if fill_holes:
        # The outside is 4-connected, since masks are 8-connected: a diagonal border would leak otherwise.
        masks = ndimage.binary_fill_holes(masks, structure=_IN_PLANE_CROSS)
    if min_size > 1:
        labels, _ = connected_regions(masks)
        small = np.bincount(labels.ravel()) < min_size
        small[0] = False  # what is not flagged, of any size
        masks &= ~small[labels]
    return masks


def connected_regions(masks):
    """Number the 8-connected regions of a stack of masks.

    Parameters
    ----------
    masks : (n, H, W) bool array
        True inside regions.

    Returns
    -------
    labels : (n, H, W) int ndarray
        Number of the region of each pixel, 0 outside. Regions of different images have different numbers.
    n_regions : int
        Number of regions in all.
    """
    return ndimage.label(_arrays.check_masks(masks), structure=_IN_PLANE)


def regions(masks, maps):
    """Place, size and severity of the anomalies: one row for each 8-connected region.

    Parameters
    ----------
    masks : (n, H, W) or (H, W) bool array
        Masks, as `segment` returns them.
    maps : array of the shape of `masks`
        Maps, as `anomaly_map` returns them.

    Returns
    -------
    table : dict of str to ndarray
        Columns of equal length, as ``pandas.DataFrame(table)`` takes them. Regions are sorted by image and
        then from top to bottom. The columns are ``image`` (index), ``area`` (pixels), ``centroid_row``,
        ``centroid_column``, ``top``, ``left``, ``bottom`` and ``right`` (bounding box; the last two lie
        outside), and ``mean`` and ``max`` of the map in the region.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.segmentation import regions
    >>> maps = np.zeros((1, 6, 6))
    >>> maps[0, 1:3, 2:5] = 7
    >>> table = regions(maps > 5, maps)
    >>> table["area"], table["max"], table["centroid_row"], table["centroid_column"]
    (array([6.]), array([7.]), array([1.5]), array([3.]))
    """
    from skimage.measure import regionprops_table  # takes a second to import

    _arrays.refuse_masked(maps, "maps")
    masks, maps = _arrays.check_masks(masks), np.asarray(maps)
    if masks.shape != maps.shape or masks.ndim not in (2, 3):
        raise ValueError(
            f"masks and maps must both have shape (n, H, W) or (H, W), got {masks.shape} and {maps.shape}"
        )
    if masks.ndim == 2:
        masks, maps = masks[None], maps[None]
    labels, _ = connected_regions(masks)
    # The stack is one volume for scikit-image: its first axis is the number of the image.
    properties = "bbox", "area", "centroid", "intensity_mean", "intensity_max"
    found = regionprops_table(labels, maps, properties=properties)
    columns = {
        "image": "bbox-0",
        "area": "area",
        "centroid_row": "centroid-1",
        "centroid_column": "centroid-2",
        "top": "bbox-1",
        "left": "bbox-2",
        "bottom": "bbox-4",
        "right": "bbox-5",
        "mean": "intensity_mean",
        "max": "intensity_max",
    }
    return {name: found[column] for name, column in columns.items()}


def pool_blocks(images, block_size):
    """Means of square blocks. Blocks at the lower and right border may be smaller.

    Parameters
    ----------
    images : (..., H, W) array
        Maps or images.
    block_size : int
        Side of a block.

    Returns
    -------
    means : (..., h, w) ndarray
        Mean of each block.
    """
    for axis in (-2, -1):
        starts = np.arange(0, images.shape[axis], block_size)
        sizes = np.diff(np.append(starts, images.shape[axis]))
        # Not a reshape: the last block of a side may be cut off.
        sums = np.add.reduceat(images, starts, axis=axis)
        images = sums / (sizes[:, None] if axis == -2 else sizes)
    return images


def block_means(maps, block_size):
    """Maps in which each pixel has the mean of its block.

    Parameters
    ----------
    maps : (n, H, W) array
        Maps, as `anomaly_map` returns them.
    block_size : int
        Side of a block.

    Returns
    -------
    maps : (n, H, W) ndarray
        Maps that are constant within each block.
    """
    means = pool_blocks(maps, block_size)
    height, width = maps.shape[1:]
    return means.repeat(block_size, axis=1).repeat(block_size, axis=2)[:, :height, :width]
