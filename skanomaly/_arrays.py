"""Checks of arrays that users give: masked arrays, masks and scores."""

import numpy as np


def refuse_masked(values, name):
    """Raise an error if `values` is a masked array, or a list of some.

    numpy drops the mask when such an array is converted, and what lies under it would count.
    """
    parts = values if isinstance(values, (list, tuple)) else [values]
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise TypeError(
            f"{name} must be a plain array, got a masked one (numpy.ma), whose mask would be lost; give "
            f"np.ma.filled({name}, value), or leave the masked values out ({name}.compressed())"
        )


def check_masks(masks, name="masks"):
    """Masks as a bool array of the same shape: floats must be 0 or 1, whole numbers are True unless 0."""
    refuse_masked(masks, name)
    masks = np.asarray(masks)
    if masks.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold booleans, or 0 and 1, got dtype {masks.dtype}")
    if masks.dtype.kind == "f":
        binary = masks == 1
        # Not astype(bool): a mask that was resized by interpolation would grow, and a map would be all True.
        soft = ~binary & (masks != 0)
        if soft.any():
            raise ValueError(
                f"{name} must hold booleans, or 0 and 1, got floats such as {masks[soft].flat[0]:.3g}; give "
                f"{name} > 0.5, or whatever threshold is right"
            )
        return binary
    return masks.astype(bool, copy=False)


def check_scores(scores, name):
    """Scores or maps as an array of numbers, infinite ones among them, but no nan."""
    refuse_masked(scores, name)
    scores = np.asarray(scores)
    if scores.dtype.kind not in "biuf":
        scores = scores.astype(float)
    if scores.dtype.kind == "f" and (missing := np.isnan(scores)).any():
        raise ValueError(
            f"{name} must hold numbers, got nan in {missing.sum()} of {scores.size} places; leave these out, "
            "or set them to np.inf to rank them worst"
        )
    return scores
