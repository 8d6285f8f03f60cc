"""Checks of arrays that users give."""

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
