"""Parameters and attributes that detectors share: their words in docstrings, and their constraints."""

import inspect
import re
from numbers import Integral, Real
from os import PathLike

from sklearn.utils._param_validation import Interval, StrOptions

#: Parameters that say how a fit runs, not what it learns. `save` leaves them out.
PROCESS_PARAMETERS = {"callbacks", "checkpoint_dir", "device", "verbose"}

#: Entries of class docstrings, in the order of signatures. A class gets those of its own parameters.
PARAMETERS = """
    max_epochs : int, default=None
        Number of passes over the training images. None makes {max_epochs steps} training steps, whatever the
        number of images.
    batch_size : int
        Number of images per training step, at least 2. Scoring does not use it.
    lr : float
        Learning rate of the first training stage.
    validation_fraction : float, default=0.0
        Share of the training images, normal and unlabelled alike, that is held out. Reconstruction and
        encoder stages measure ``valid_loss`` on the images held out; skorch's ``EarlyStopping`` needs this
        loss.
    checkpoint_dir : str or Path, default=None
        Folder in which `fit` keeps its state after each epoch. A killed `fit` that is called again with the
        same parameters and data goes on, and ends with the same bits. A folder of another fit is refused.
    callbacks : list or dict, default=None
        skorch callbacks for every stage, or a dict from the name of a stage to a list of callbacks. Each
        stage gets copies of its own.
    device : str, default="auto"
        Name of a torch device. "auto" is "cuda" if torch finds a GPU, else "cpu".
    contamination : float, default=0.1
        Share of the training images that `predict` flags, in (0, 0.5]; it sets ``offset_``. New normal
        images are usually flagged more often, see `calibrate`.
    pixel_contamination : float, default=0.01
        Share of the pixels of training images above ``pixel_offset_``, in (0, 0.5].
    intensity_range : "auto" or (low, high), default="auto"
        Intensities that are scaled to the ends of the network's range. Intensities beyond are not clipped.
        "auto" is (0, 255) for uint8, and the extremes of the training images for any other dtype.
    channel_axis : "auto", int or None, default="auto"
        Axis of X that holds the channels, None for grey images. "auto" finds 1 to 4 channels on the second
        or the last axis, and raises an error if both could be meant.
    image_shape : tuple, default=None
        Shape (H, W) or (C, H, W) of the images when X is given as rows (n, d). None takes a row for an
        image of 1 x d pixels.
    verbose : int, default=0
        Verbosity: 1 prints a line per epoch.
    random_state : int, RandomState or None, default=None
        Source of everything random in `fit`. With an int, `fit` gives the same bits each time at a fixed
        number of torch threads. None takes a new seed from the system. The global generators of numpy and
        torch are neither used nor changed.
"""

#: Parameters of the networks in `networks.autoencoder`.
SIZE_PARAMETERS = """
    latent_size : int, default=16
        Length of a code, or number of channels of a spatial code.
    hidden_size : int, default=2048
        Units of the dense layers on either side of the code.
    width : int, default=16
        Channels of the network's first level. The next has 2 times as many, all others 4 times.
    n_levels : int, default=None
        Number of times each side is halved. None halves sides to about 4 pixels (4 times at 64 x 64).
    bottleneck : {"dense", "spatial"}, default="dense"
        Kind of code. "dense": a single code for the image. "spatial": a code at every place of the last
        level, by 1 x 1 convolutions.
"""

#: Entries of class docstrings on fitted attributes.
ATTRIBUTES = """
    network_ : nn.Module
        Network with all parts of the method. Statistics that were learned are its buffers.
    history_ : dict of str to skorch.history.History
        Losses of each training stage, epoch by epoch.
    n_iter_ : int
        Number of epochs of all stages together.
    offset_ : float
        Threshold of `score_samples`. Below it, `predict` gives -1.
    pixel_offset_ : float
        Threshold of `anomaly_map`. Pixels above it are flagged. It is nan for a method without a map.
    map_range_ : tuple (low, high)
        Quantiles 1 % and 99.9 % of the map pixels of normal images, the colour scale for maps.
    image_shape_ : tuple (C, H, W)
    intensity_range_ : tuple (low, high)
    device_ : str
    n_features_in_ : int
        Length of the second axis of X.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame.
"""

#: Names of the attributes that only detectors trained in epochs have.
TRAINED_ATTRIBUTES = {"history_", "n_iter_"}

_whole = [Interval(Integral, 1, None, closed="left")]
_positive = [Interval(Real, 0, None, closed="neither")]

#: Constraints of the parameters that all detectors share.
COMMON = {
    "device": [str],
    "contamination": [Interval(Real, 0, 0.5, closed="right")],
    "pixel_contamination": [Interval(Real, 0, 0.5, closed="right")],
    "intensity_range": [StrOptions({"auto"}), tuple, list],
    "channel_axis": [StrOptions({"auto"}), Integral, None],
    "image_shape": [tuple, list, None],
    "random_state": ["random_state"],
}
#: Constraints of the parameters that all detectors trained in epochs share.
TRAINING = {
    "max_epochs": [*_whole, None],
    # BatchNorm cannot be trained on a batch of one.
    "batch_size": [Interval(Integral, 2, None, closed="left")],
    "lr": _positive,
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "checkpoint_dir": [str, PathLike, None],
    "callbacks": [list, dict, None],
    "verbose": ["verbose"],
}
#: Constraints of the parameters of the networks in `networks.autoencoder`.
AUTOENCODER = {
    "latent_size": _whole,
    "hidden_size": _whole,
    "width": _whole,
    "n_levels": [*_whole, None],
    "bottleneck": [StrOptions({"dense", "spatial"})],
}

#: Constraints of all shared parameters. The base assigns these parameters.
SHARED = COMMON | TRAINING | AUTOENCODER

#: Constraints of all parameters whose names have these endings.
ENDINGS = {"_weight": [Interval(Real, 0, None, closed="left")], "_epochs": [*_whole, None], "_lr": _positive}


def constraints_of(names, own):
    """Constraints of a class with these parameters: the shared ones among them, and its own."""
    by_ending = {name: rule for name in names for ending, rule in ENDINGS.items() if name.endswith(ending)}
    return by_ending | {name: SHARED[name] for name in names if name in SHARED} | own


def fill_docstring(doc, names, *, trained, steps):
    """Docstring of a class with ``{size}``, ``{parameters}`` and ``{attributes}`` replaced.

    ``{max_epochs steps}`` becomes the number of training steps that ``max_epochs=None`` stands for, and so on.

    Parameters
    ----------
    doc : str or None
    names : sequence of str
        Parameters of the class. Those that `doc` does not describe itself replace ``{parameters}``.
    trained : bool
        Whether the class has the attributes of a training.
    steps : dict of str to int
        Training steps, by parameters.
    """
    if doc is None:
        return None
    # cleandoc strips the indentation, which Python 3.13 has done already and older ones have not.
    doc = inspect.cleandoc(doc).replace("{size}", inspect.cleandoc(SIZE_PARAMETERS))
    described = re.findall(r"^(\w+) : ", doc.partition("\nAttributes\n")[0], flags=re.MULTILINE)
    parameters = _entries(PARAMETERS, lambda name: name in names and name not in described)
    attributes = _entries(ATTRIBUTES, lambda name: trained or name not in TRAINED_ATTRIBUTES)
    doc = doc.replace("{parameters}", parameters).replace("{attributes}", attributes)
    for name, n_steps in steps.items():
        doc = doc.replace(f"{{{name} steps}}", f"{n_steps:,}")
    return doc


def _entries(text, wanted):
    """Entries of a text whose names are wanted."""
    entries = re.split(r"\n(?=\w)", inspect.cleandoc(text))
    return "\n".join(entry for entry in entries if wanted(entry.partition(" : ")[0]))
