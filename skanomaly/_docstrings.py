"""What every detector's page says of the parameters and attributes all detectors share."""

import inspect

from ._size import SIZE_PARAMETERS

COMMON_PARAMETERS = """
    batch_size : int
        Images per training step, at least 2. Scores do not depend on it.
    lr : float
        Learning rate of the (first) training stage.
    validation_fraction : float, default=0.0
        Part of the training images, of unlabelled ones the same part, held out of training, on which
        reconstruction and encoder stages record ``valid_loss`` (skorch's ``EarlyStopping`` wants it).
    checkpoint_dir : str or Path, default=None
        Folder in which `fit` keeps its state after each epoch. Called again with the same parameters
        and data, `fit` goes on from there, to the same bits; a folder of another fit is refused.
    callbacks : list or dict, default=None
        skorch callbacks for every stage, or a dict from stage to list. Each stage gets copies.
    device : str, default="auto"
        A torch device; "auto" is "cuda" where there is one, else "cpu".
    contamination : float, default=0.1
        Share of the training images to flag, in (0, 0.5]: sets ``offset_``. It says little about
        new images; see `calibrate`.
    pixel_contamination : float, default=0.01
        Share of the training pixels to flag, in (0, 0.5]: sets ``pixel_offset_``.
    intensity_range : "auto" or (low, high), default="auto"
        Intensities scaled to the network's range. "auto": (0, 255) for uint8, the minimum and
        maximum of the training images for any other dtype. Scores do not clip.
    channel_axis : "auto", int or None, default="auto"
        Axis of X that holds the channels, None for grey images. "auto" finds 1 to 4 channels on
        the second or last axis and raises where both could be meant.
    image_shape : tuple, default=None
        (H, W) or (C, H, W) of the images when X is given as rows (n, d); by default a row is an
        image of 1 x d pixels.
    verbose : int, default=0
        1 prints a line per epoch.
    random_state : int, RandomState or None, default=None
        Decides everything random in `fit`. An int makes it repeatable to the bit at a fixed number
        of torch threads. None draws a fresh seed; numpy's and torch's global generators are
        neither used nor changed.
"""

COMMON_ATTRIBUTES = """
    network_ : nn.Module
        All parts, and as buffers everything else that was learned.
    history_ : dict of str to skorch.history.History
        What each training stage recorded per epoch.
    n_iter_ : int
        Epochs of all stages together.
    offset_ : float
        Threshold of `score_samples`: below it, `predict` gives -1.
    pixel_offset_ : float
        Threshold of `anomaly_map`: pixels above it are flagged. nan for a method without a map.
    map_range_ : tuple (low, high)
        1 % and 99.9 % quantile of normal map pixels: a colour scale for every image.
    image_shape_ : tuple (C, H, W)
    intensity_range_ : tuple (low, high)
    device_ : str
    n_features_in_ : int
        Length of the second axis of X.
    feature_names_in_ : ndarray of str
        Only where X was a DataFrame.
"""


def fill_docstring(doc):
    """A class docstring with ``{size}``, ``{parameters}`` and ``{attributes}`` replaced by what is shared."""
    if doc is None:
        return None
    # Python 3.13 strips the indentation of docstrings itself; before, it is stripped here.
    doc = inspect.cleandoc(doc)
    shared = {"size": SIZE_PARAMETERS, "parameters": COMMON_PARAMETERS, "attributes": COMMON_ATTRIBUTES}
    for name, text in shared.items():
        doc = doc.replace(f"{{{name}}}", inspect.cleandoc(text))
    return doc
