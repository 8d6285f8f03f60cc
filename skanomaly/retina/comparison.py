"""Layers as grey values, compared. Arrays in, arrays out."""

import numpy as np

#: Label of retina that belongs to no layer, such as fluid.
NO_LAYER = -1
#: Grey codes of that and of the background; those of layers are in [0, 1]. They are far enough apart that a
#: difference shows which two of layer, gap and background differ.
GAP, BACKGROUND = 3.0, 7.0


def layer_codes(layers, n_layers):
    """Layers as grey values: equally spaced in [0, 1] by depth; a gap is 3, the background 7.

    Parameters
    ----------
    layers : int array
        Labels: 0 above the retina, 1 to `n_layers` in it, a larger number behind it, and -1 in a gap, which
        is retina without a layer.
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
    """Mask of pixels whose layer the reconstruction changes: v_low < difference of codes < v_high.

    Parameters
    ----------
    layers : (n, H, W) int array
        Labels of the images, as a layer extractor gives them.
    reconstructed : (n, H, W) int array
        Labels of their reconstructions.
    n_layers : int
        Number of layers, L.
    v_low : float, default=None
        Lower threshold. None is 1.5 times the difference of neighbouring layers, because neighbouring layers
        are exchanged wherever a boundary is a little off.
    v_high : float, default=None
        Upper threshold. None lets all differences within the retina pass, and no difference between retina
        and background.

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
    """Thresholds of `layerwise_mask`; None becomes a default.

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
    # Half-way between the largest difference within the retina and the smallest to the background.
    v_high = 0.5 * (GAP + (BACKGROUND - GAP)) if v_high is None else v_high
    if not v_low < v_high:
        raise ValueError(f"v_low must be below v_high, got v_low={v_low} and v_high={v_high}")
    return v_low, v_high


def check_depth_order(layers):
    """Refuse labels that do not, on average, go up with depth in a column: their differences mean nothing.

    Parameters
    ----------
    layers : (n, H, W) int array
        Labels, as a layer extractor gives them.

    Raises
    ------
    ValueError
        If two labels are out of order; the message names the first two.
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
            # Labels that a poor extractor scatters anywhere lie about equally deep.
            if lower < -0.01 * len(rows):
                raise ValueError(
                    f"layers must be numbered by depth, but layer {label} lies {-lower:.1f} rows above layer "
                    f"{above[0]} in a column, on average; renumber them from above"
                )
        above = label, depth
