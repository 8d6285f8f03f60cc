"""Layers as grey values, compared. Arrays in, arrays out."""

import numpy as np

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
