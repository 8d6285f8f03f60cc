"""Comparison of the layers of two scans, by codes. Functions take and return arrays."""

import numpy as np

#: Label of retina that belongs to no layer, such as fluid.
NO_LAYER = -1
#: Codes of a gap (retina without a layer) and of the background; codes of layers are in [0, 1]. They are so
#: far apart that the difference of two codes shows which two of layer, gap and background were compared.
GAP, BACKGROUND = 3.0, 7.0


def layer_codes(layers, n_layers):
    """Codes of layers: equally spaced in [0, 1] by depth; a gap has code 3, the background 7.

    Parameters
    ----------
    layers : int array
        Labels: 0 above the retina, 1 to `n_layers` in its layers, a larger number behind it, and -1 in a gap,
        which is retina without a layer.
    n_layers : int
        Number of layers, L.

    Returns
    -------
    codes : float64 ndarray
        Codes, in the shape of `layers`.
    """
    layers = np.asarray(layers)
    codes = (layers - 1) / max(1, n_layers - 1)
    codes = np.where((layers < 1) | (layers > n_layers), BACKGROUND, codes)
    return np.where(layers == NO_LAYER, GAP, codes)


def layerwise_mask(layers, reconstructed, n_layers, *, v_low=None, v_high=None):
    """Masks of pixels whose layers differ in image and reconstruction: v_low < difference of codes < v_high.

    Parameters
    ----------
    layers : (n, H, W) int array
        Labels of the images, as `predict` of a layer extractor returns them.
    reconstructed : (n, H, W) int array
        Labels of the reconstructions of these images.
    n_layers : int
        Number of layers, L.
    v_low : float, default=None
        Lower threshold. None is 1.5 times the difference between neighbouring layers, because neighbouring
        layers are exchanged wherever a boundary is a little off.
    v_high : float, default=None
        Upper threshold. None is above all differences within the retina, and below all differences between
        retina and background.

    Returns
    -------
    masks : (n, H, W) bool ndarray
        True where the layers differ.

    Notes
    -----
    The method is the layer-wise grey-level comparison of Li et al. 2023 (SSL-AnoVAE), who do not give the two
    thresholds.
    """
    v_low, v_high = layer_thresholds(n_layers, v_low, v_high)
    difference = np.abs(layer_codes(layers, n_layers) - layer_codes(reconstructed, n_layers))
    return (v_low < difference) & (difference < v_high)


def layer_thresholds(n_layers, v_low=None, v_high=None):
    """Thresholds of `layerwise_mask`, with its defaults in place of None.

    Parameters
    ----------
    n_layers : int
        Number of layers, L.
    v_low : float, default=None
        Lower threshold.
    v_high : float, default=None
        Upper threshold.

    Returns
    -------
    v_low, v_high : float
        Lower and upper threshold.
    """
    v_low = 1.5 / max(1, n_layers - 1) if v_low is None else v_low
    # Half-way between the largest difference within the retina and the smallest of retina and background.
    v_high = 0.5 * (GAP + (BACKGROUND - GAP)) if v_high is None else v_high
    if not v_low < v_high:
        raise ValueError(f"v_low must be below v_high, got v_low={v_low} and v_high={v_high}")
    return v_low, v_high


def check_depth_order(layers):
    """Raise an error if labels do not go up with depth, on average: their differences would mean nothing.

    Parameters
    ----------
    layers : (n, H, W) int array
        Labels, as `predict` of a layer extractor returns them.

    Raises
    ------
    ValueError
        If two labels are out of order. The message names the first two.
    """
    layers = np.asarray(layers)
    rows = np.arange(layers.shape[1])
    above = None
    for label in np.unique(layers[layers != NO_LAYER]):
        found = layers == label
        with np.errstate(invalid="ignore"):  # nan in columns without the label
            depth = np.einsum("nhw,h->nw", found, rows) / found.sum(1)
        if above is not None:
            difference = depth - above[1]
            both = np.isfinite(difference)
            lower = difference[both].mean() if both.any() else 0.0
            # Not 0: labels that a poor extractor scatters everywhere lie about equally deep.
            if lower < -0.01 * len(rows):
                raise ValueError(
                    f"layers must be numbered by depth, but layer {label} lies {-lower:.1f} rows above layer "
                    f"{above[0]} in a column, on average; renumber them from above"
                )
        above = label, depth
