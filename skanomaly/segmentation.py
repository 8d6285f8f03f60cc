"""Anomaly maps to masks. Arrays in, arrays out; every image by itself."""

import numpy as np
from scipy import ndimage

#: Neighbours within an image of a stack (n, H, W), none across images.
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = True
_IN_PLANE_CROSS = ndimage.generate_binary_structure(3, 1) & _IN_PLANE


def residual_mask(maps, threshold, *, median_size=None, fill_holes=True, min_size=0):
    """Threshold maps, fill holes and drop small regions.

    Parameters
    ----------
    maps : (n, H, W) array
        Higher is more anomalous.
    threshold : float
        Pixels above it are flagged.
    median_size : int, default=None
        Side of a median filter on the maps before the threshold.
    fill_holes : bool, default=True
        Also flag what flagged pixels (8-connected) enclose.
    min_size : int, default=0
        Drop 8-connected regions of fewer pixels.

    Returns
    -------
    masks : (n, H, W) bool ndarray
        True where anomalous.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3:
        raise ValueError(f"maps must have shape (n, H, W), got {maps.shape}")
    if median_size is not None:
        maps = ndimage.median_filter(maps, size=(1, median_size, median_size))
    masks = maps > threshold
    if fill_holes:
        masks = ndimage.binary_fill_holes(masks, structure=_IN_PLANE_CROSS)
    if min_size > 1:
        labels, _ = connected_regions(masks)
        small = np.bincount(labels.ravel()) < min_size
        small[0] = False
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
        0 outside; regions of different images have different numbers.
    n_regions : int
        How many there are.
    """
    return ndimage.label(masks, structure=_IN_PLANE)


def regions(masks, maps):
    """Where the anomalies are, how big and how bad: one row for each 8-connected region.

    Parameters
    ----------
    masks : (n, H, W) or (H, W) bool array
        As `segment` gives.
    maps : array of the shape of `masks`
        As `anomaly_map` gives.

    Returns
    -------
    table : dict of str to ndarray
        Columns of equal length, for ``pandas.DataFrame(table)`` for example, by image and then from top
        to bottom: ``image`` (index), ``area`` (pixels), ``centroid_row``, ``centroid_column``, ``top``,
        ``left``, ``bottom`` and ``right`` (bounding box, its ends left out), ``mean`` and ``max`` (of the
        map inside).

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

    masks, maps = np.asarray(masks, dtype=bool), np.asarray(maps)
    if masks.shape != maps.shape or masks.ndim not in (2, 3):
        raise ValueError(
            f"masks and maps must both have shape (n, H, W) or (H, W), got {masks.shape} and {maps.shape}"
        )
    if masks.ndim == 2:
        masks, maps = masks[None], maps[None]
    labels, _ = connected_regions(masks)
    found = regionprops_table(
        labels, maps, properties=("bbox", "area", "centroid", "intensity_mean", "intensity_max")
    )
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
    """Means of square blocks; those at the lower and right border may be smaller.

    Parameters
    ----------
    images : (..., H, W) array
        Maps or images.
    block_size : int
        Side of a block.

    Returns
    -------
    means : (..., h, w) ndarray
        One for each block.
    """
    for axis in (-2, -1):
        starts = np.arange(0, images.shape[axis], block_size)
        sizes = np.diff(np.append(starts, images.shape[axis]))
        sums = np.add.reduceat(images, starts, axis=axis)
        images = sums / (sizes[:, None] if axis == -2 else sizes)
    return images


def block_means(maps, block_size):
    """Maps, each pixel the mean of its block.

    Parameters
    ----------
    maps : (n, H, W) array
        As `anomaly_map` gives.
    block_size : int
        Side of a block.

    Returns
    -------
    maps : (n, H, W) ndarray
        Constant within each block.
    """
    means = pool_blocks(maps, block_size)
    height, width = maps.shape[1:]
    return means.repeat(block_size, axis=1).repeat(block_size, axis=2)[:, :height, :width]


#: Label of retina that belongs to no layer, such as fluid.
NO_LAYER = -1
#: Grey codes of that and of what is not retina; those of layers are in [0, 1]. So far apart that it can be
#: told from a difference between which of the three it is.
GAP, BACKGROUND = 3.0, 7.0


def layer_codes(layers, n_layers):
    """Layers as grey values: equally spaced in [0, 1] by depth; no layer is 3, what is not retina 7.

    Parameters
    ----------
    layers : int array
        0 above the retina, 1 to `n_layers`, and from there on behind it; -1 for retina without a layer.
    n_layers : int
        L.

    Returns
    -------
    codes : float64 ndarray
        Of the shape of `layers`.
    """
    layers = np.asarray(layers)
    codes = (layers - 1) / max(1, n_layers - 1)
    codes = np.where((layers < 1) | (layers > n_layers), BACKGROUND, codes)
    return np.where(layers == NO_LAYER, GAP, codes)


def layerwise_mask(layers, reconstructed, n_layers, *, v_low=None, v_high=None):
    """Where the layers of an image and of its reconstruction differ: v_low < difference of codes < v_high.

    Parameters
    ----------
    layers : (n, H, W) int array
        Of the images, as a layer extractor gives.
    reconstructed : (n, H, W) int array
        Of their reconstructions.
    n_layers : int
        L.
    v_low : float, default=None
        None is 1.5 times the difference of neighbouring layers: where only these two are exchanged, a
        boundary is a little off.
    v_high : float, default=None
        None lets all differences within the retina pass, and none from what is not retina.

    Returns
    -------
    masks : (n, H, W) bool ndarray
        True where the layers differ.

    Notes
    -----
    Layer-wise grey-level comparison of Li et al. 2023 (SSL-AnoVAE), whose two thresholds are not in the text.
    """
    v_low, v_high = layer_thresholds(n_layers, v_low, v_high)
    difference = np.abs(layer_codes(layers, n_layers) - layer_codes(reconstructed, n_layers))
    return (v_low < difference) & (difference < v_high)


def layer_thresholds(n_layers, v_low=None, v_high=None):
    """The two thresholds of `layerwise_mask`, derived where None.

    Parameters
    ----------
    n_layers : int
        L.
    v_low : float, default=None
        Lower one.
    v_high : float, default=None
        Upper one.

    Returns
    -------
    v_low, v_high : float
        Lower and upper threshold.
    """
    v_low = 1.5 / max(1, n_layers - 1) if v_low is None else v_low
    # Half-way between the largest difference within the retina and the smallest to what is not.
    v_high = 0.5 * (GAP + BACKGROUND - GAP) if v_high is None else v_high
    if not v_low < v_high:
        raise ValueError(f"v_low must be below v_high, got v_low={v_low} and v_high={v_high}")
    return v_low, v_high


def check_depth_order(layers):
    """Refuse labels that do not go up with depth within a column, on average: their differences mean nothing.

    Parameters
    ----------
    layers : (n, H, W) int array
        As a layer extractor gives.

    Raises
    ------
    ValueError
        Names the first two labels that are out of order.
    """
    layers = np.asarray(layers)
    rows = np.arange(layers.shape[1])
    above = None
    for label in np.unique(layers[layers != NO_LAYER]):
        found = layers == label
        with np.errstate(invalid="ignore"):  # nan where a column does not have it
            depth = np.einsum("nhw,h->nw", found, rows) / found.sum(1)
        if above is not None:
            difference = depth - above[1]
            both = np.isfinite(difference)
            lower = difference[both].mean() if both.any() else 0.0
            # Labels that a poor extractor scatters anywhere lie about equally deep.
            if lower < -0.01 * len(rows):
                raise ValueError(
                    f"layers must be numbered by depth, but layer {label} lies {-lower:.1f} rows above layer "
                    f"{above[0]} in a column, on average; renumber them from above"
                )
        above = label, depth
