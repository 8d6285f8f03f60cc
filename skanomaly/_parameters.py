"""Parameters and attributes that detectors share: words, constraints, and how a network gets them."""

import inspect
import re
from numbers import Integral, Real
from os import PathLike

from sklearn.utils._param_validation import Interval, StrOptions

#: Parameters of the process, not of what is learned: `save` leaves them out.
PROCESS_PARAMETERS = {"callbacks", "checkpoint_dir", "device", "verbose"}

#: Entries of a class docstring, in the order of signatures; a class gets those it has.
PARAMETERS = """
    batch_size : int
        Images per training step, at least 2. Scores do not depend on it.
    lr : float
        Learning rate of the (first) training stage.
    validation_fraction : float, default=0.0
        Part of the training images, of unlabelled ones the same part, held out of training. Reconstruction
        and encoder stages record ``valid_loss`` on it, which skorch's ``EarlyStopping`` needs.
    checkpoint_dir : str or Path, default=None
        Folder in which `fit` keeps its state after each epoch. Called again with the same parameters
        and data, `fit` goes on from there, to the same bits; a folder of another fit is refused.
    callbacks : list or dict, default=None
        skorch callbacks for every stage, or a dict from stage to list. Each stage gets copies.
    device : str, default="auto"
        A torch device; "auto" is "cuda" if there is one, else "cpu".
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
        the second or last axis and raises if both could be meant.
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

#: Parameters of the networks in `networks.autoencoder`.
SIZE_PARAMETERS = """
    latent_size : int, default=16
        Numbers in a code; channels of it for the spatial bottleneck.
    hidden_size : int, default=2048
        Width of the dense layers on either side of the code.
    width : int, default=16
        Channels of the first level; 2 and 4 times as many follow.
    n_levels : int, default=None
        Times the image is halved. None brings the longer side to about 4 pixels (4 at 64 x 64).
    bottleneck : {"dense", "spatial"}, default="dense"
        One code for the image, or one at every place of the last level (1 x 1 convolutions).
"""

ATTRIBUTES = """
    network_ : nn.Module
        All parts, and as buffers everything else that was learned.
    history_ : dict of str to skorch.history.History
        Losses of each epoch, for each training stage.
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
        Present if X was a DataFrame.
"""

#: Attributes that only detectors trained in epochs have.
TRAINED_ATTRIBUTES = {"history_", "n_iter_"}

_whole = [Interval(Integral, 1, None, closed="left")]

#: Constraints of parameters that detectors with the same base share.
COMMON = {
    "device": [str],
    "contamination": [Interval(Real, 0, 0.5, closed="right")],
    "pixel_contamination": [Interval(Real, 0, 0.5, closed="right")],
    "intensity_range": [StrOptions({"auto"}), tuple, list],
    "channel_axis": [StrOptions({"auto"}), Integral, None],
    "image_shape": [tuple, list, None],
    "random_state": ["random_state"],
}
TRAINING = {
    "max_epochs": _whole,
    "batch_size": [Interval(Integral, 2, None, closed="left")],
    "lr": [Interval(Real, 0, None, closed="neither")],
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "checkpoint_dir": [str, PathLike, None],
    "callbacks": [list, dict, None],
    "verbose": ["verbose"],
}
AUTOENCODER = {
    "latent_size": _whole,
    "hidden_size": _whole,
    "width": _whole,
    "n_levels": [*_whole, None],
    "bottleneck": [StrOptions({"dense", "spatial"})],
}
CONSTRAINTS = COMMON | TRAINING | AUTOENCODER

#: Parameters that the base assigns.
SHARED = set(COMMON | TRAINING)


#: Constraints of parameters whose names end so.
ENDINGS = {"_weight": [Interval(Real, 0, None, closed="left")], "_epochs": _whole}


def constraints_of(names, own):
    """Constraints of a class: the shared ones of its parameters, and its own."""
    shared = {name: rule for name in names for ending, rule in ENDINGS.items() if name.endswith(ending)}
    return shared | {name: CONSTRAINTS[name] for name in names if name in CONSTRAINTS} | own


def fill_docstring(doc, names, *, trained):
    """Docstring of a class with ``{size}``, ``{parameters}`` and ``{attributes}`` replaced.

    Parameters
    ----------
    doc : str or None
    names : sequence of str
        Parameters of the class; those that `doc` does not describe replace ``{parameters}``.
    trained : bool
        Whether the class has the attributes of a training.
    """
    if doc is None:
        return None
    # Python 3.13 strips the indentation of docstrings itself; before, it is stripped here.
    doc = inspect.cleandoc(doc).replace("{size}", inspect.cleandoc(SIZE_PARAMETERS))
    described = re.findall(r"^(\w+) : ", doc.partition("\nAttributes\n")[0], flags=re.MULTILINE)
    parameters = _entries(PARAMETERS, lambda name: name in names and name not in described)
    attributes = _entries(ATTRIBUTES, lambda name: trained or name not in TRAINED_ATTRIBUTES)
    return doc.replace("{parameters}", parameters).replace("{attributes}", attributes)


def _entries(text, wanted):
    entries = re.split(r"\n(?=\w)", inspect.cleandoc(text))
    return "\n".join(entry for entry in entries if wanted(entry.partition(" : ")[0]))


def network_size(detector):
    """Size that a detector with these parameters asks of the networks in `networks.autoencoder`."""
    return {
        "latent_size": detector.latent_size,
        "hidden_size": detector.hidden_size if detector.bottleneck == "dense" else None,
        "width": detector.width,
        "n_levels": detector.n_levels,
    }
