"""Parameters and attributes that detectors share: their entries in docstrings, and their constraints."""

import inspect
import re
from numbers import Integral, Real
from os import PathLike

from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

#: Parameters that say how a fit runs, not what it learns. `save` leaves them out.
PROCESS_PARAMETERS = {"callbacks", "checkpoint_dir", "device", "verbose"}

#: Entries of class docstrings, in the order of signatures. A class gets the entries of the parameters it has.
PARAMETERS = """
    keep_sums : bool, default=False
        Whether the network keeps what `partial_fit` and `skanomaly.merge` need: the number, the sums and the
        sums of products of the features of its training images, and no features of any single image.
    max_epochs : int, default=None
        Number of passes over the training images. None makes {max_epochs steps} training steps, whatever the
        number of images.
    batch_size : int
        Number of images per training step, at least 2. Scoring does not use it.
    lr : float
        Learning rate of training, except in stages for which another one is stated.
    validation_fraction : float, default=0.0
        Share of the training images that is held out, the same share of normal and of unlabelled ones. Stages
        that train a reconstruction or an encoder compute ``valid_loss`` on the images held out; skorch's
        ``EarlyStopping`` needs this loss.
    checkpoint_dir : str or Path, default=None
        Folder in which `fit` saves its state after each epoch; None saves nothing. If `fit` was killed, call
        it again with the same parameters and data: it continues, and ends with the same bits. A folder with
        the state of another fit is refused.
    callbacks : list or dict, default=None
        skorch callbacks for every training stage, or a dict from the name of a stage to a list of callbacks.
        Each stage gets copies of its own.
    device : str, default="auto"
        Name of a torch device. "auto" is "cuda" if torch finds a GPU, else "cpu".
    contamination : float, default=0.1
        Share of the training images that `predict` flags, in (0, 0.5]; it sets ``offset_``. New normal
        images are usually flagged more often; see `calibrate`.
    pixel_contamination : float, default=0.01
        Share of the pixels in maps of the training images that `segment` flags, in (0, 0.5]; it sets
        ``pixel_offset_``.
    intensity_range : "auto" or (low, high), default="auto"
        Intensities in X that become the ends of the range that the network expects, [0, 1] or [-1, 1].
        Intensities beyond are not clipped. "auto" is (0, 255) for uint8, and the minimum and maximum of the
        training images for any other dtype; `fit` warns if a few pixels set them.
    channel_axis : "auto", int or None, default="auto"
        Axis of X that holds the channels. None is for grey images (n, H, W). "auto" takes an X with three
        axes for grey images. If X has four axes, "auto" finds 1 to 3 channels on the last axis, 1 channel on
        the second axis, or 1 to 4 channels on the second axis of a torch tensor. In any other case, and if
        both axes are possible, `fit` raises an error that says what to set.
    image_shape : tuple, default=None
        Shape (H, W) or (C, H, W) of the images if X has rows (n, d). With None, a row is an image of 1 x d
        pixels. A shape (H, W, C) is refused.
    verbose : int, default=0
        Verbosity: 1 prints a line per epoch.
    random_state : int, RandomState or None, default=None
        Source of everything random in `fit`. With an int, `fit` gives the same bits each time if the number
        of torch threads stays the same. None takes a new seed from the operating system. The global
        generators of numpy and torch are neither used nor changed.
"""

#: Parameters of the networks in `networks.autoencoder`.
SIZE_PARAMETERS = """
    latent_size : int, default=16
        Length of a code, or number of channels of a spatial code.
    hidden_size : int, default=2048
        Number of units in the dense layers on either side of the code, or of channels on either side of a
        spatial code.
    width : int, default=16
        Number of channels of the network's first level. Each level halves the sides of the image. The second
        level has 2 times as many channels as the first, all further levels have 4 times as many.
    n_levels : int, default=None
        Number of levels. None halves each side to about 4 pixels, which takes 4 levels at 64 x 64.
    bottleneck : {"dense", "spatial"}, default="dense"
        Kind of code. "dense": a single code for the image. "spatial": a code for each place of the last
        level, by two 1 x 1 convolutions on either side.
"""

#: Parameters of estimators with a backbone. A class gets the entries of the parameters that it has.
BACKBONE_PARAMETERS = """
    backbone : str, detector, nn.Module or callable, default="imagenet"
        Frozen network whose feature maps describe an image. "imagenet" is EfficientNet-Lite0 with the weights
        from ImageNet. "filters" are derivatives at three scales, without weights. A detector is cloned and
        fitted to the training images; a fitted one in a ``FrozenEstimator`` is taken as it is. A module, or a
        function from the image shape (C, H, W) to a module, gets images in [0, 1].
    layers : sequence of int or str, default=None
        Feature maps that are used: numbers of the stages of "imagenet" (0 to 6) or of the scales of "filters"
        (0 to 2), or names of modules inside the network of a detector or module. None is {layers};
        of a detector the activations of its encoder, and of a module what it returns.
    input_size : int or tuple (h, w), default=None
        Size to which images are resized for the backbone. An int is the side of a square of equal area, so
        that proportions stay. None is 224 for "imagenet", 64 for "filters", else the size of the images.
    grid : "auto", int or tuple (h, w), default="auto"
        Cells over which each feature map is averaged; an int is for both sides. "auto" is 8 for "filters" and
        2 for any other backbone.
"""

#: Entries of class docstrings on fitted attributes.
ATTRIBUTES = """
    network_ : nn.Module
        Network with all parts of the method. Statistics that were learned are buffers of it.
    backbone_ : dict
        Description of the backbone: its name, the SHA-256 of its weights, its layers and its input size.
    backbone_detector_ : BaseDetector or None
        Fitted detector whose network is the backbone, if it is one.
    feature_shapes_ : tuple
        Shape (c, h, w) of each feature map.
    n_images_ : int
        Number of training images.
    history_ : dict of str to skorch.history.History
        History of each training stage by its name: the losses of each epoch.
    n_iter_ : int
        Number of epochs, added up over all training stages.
    offset_ : float
        Threshold of scores. `predict` returns -1 where `score_samples` is below it.
    pixel_offset_ : float
        Threshold of maps. `segment` flags pixels whose map is above it. It is nan if there are no maps.
    calibration_scores_ : (n,) ndarray
        Anomaly scores of the images of the last `calibrate`, ascending. Without a calibration it is absent.
    map_range_ : tuple (low, high)
        Colour scale for maps: the quantiles 1 % and 99.9 % of the pixels in maps of normal images.
    image_shape_ : tuple (C, H, W)
        Shape of an image, channels first.
    intensity_range_ : tuple (low, high)
        Intensities in X that become the ends of the range that the network expects.
    device_ : str
        Name of the torch device in use.
    n_features_in_ : int
        Length of the second axis of X.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame.
"""

#: Names of the attributes that only detectors trained in epochs have.
TRAINED_ATTRIBUTES = {"history_", "n_iter_"}
#: Names of the attributes that only detectors have.
DETECTOR_ATTRIBUTES = {"offset_", "pixel_offset_", "calibration_scores_", "map_range_"}
#: Names of the attributes that only estimators with a backbone have.
BACKBONE_ATTRIBUTES = {"backbone_", "backbone_detector_", "feature_shapes_", "n_images_"}

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

#: Constraints of the parameters of estimators with a backbone.
BACKBONE = {
    "backbone": [StrOptions({"imagenet", "filters"}), HasMethods(["fit"]), callable],
    "layers": [tuple, list, None],
    "input_size": [*_whole, tuple, None],
    "grid": [StrOptions({"auto"}), *_whole, tuple],
    "keep_sums": ["boolean"],
}

#: Constraints of all shared parameters. The base assigns these parameters.
SHARED = COMMON | TRAINING | AUTOENCODER | BACKBONE

#: Constraints of all parameters whose names have these endings.
ENDINGS = {"_weight": [Interval(Real, 0, None, closed="left")], "_epochs": [*_whole, None], "_lr": _positive}


def pair(value, name):
    """Height and width (h, w), of the parameter `name`, whose value is a number or two."""
    two = (value, value) if isinstance(value, Integral) else tuple(value)
    if len(two) != 2 or not all(isinstance(side, Integral) and side > 0 for side in two):
        raise ValueError(f"{name} must be a whole number or two, (h, w), got {value}")
    return tuple(map(int, two))


def constraints_of(names, own):
    """Constraints of a class with the parameters `names`: by endings, of shared parameters, and its `own`."""
    by_ending = {name: rule for name in names for ending, rule in ENDINGS.items() if name.endswith(ending)}
    return by_ending | {name: SHARED[name] for name in names if name in SHARED} | own


def fill_docstring(doc, names, *, judges, trained, steps, layers):
    """Docstring of a class with ``{size}``, ``{backbone}``, ``{parameters}`` and ``{attributes}`` replaced.

    ``{max_epochs steps}`` becomes the number of training steps that ``max_epochs=None`` stands for. The same
    holds for other parameters in `steps`. ``{layers}`` becomes the layers that ``layers=None`` stands for.

    Parameters
    ----------
    doc : str or None
    names : sequence of str
        Parameters of the class. ``{backbone}`` and ``{parameters}`` become the entries of those that `doc`
        does not describe.
    judges : bool
        Whether the class has `DETECTOR_ATTRIBUTES`.
    trained : bool
        Whether the class has `TRAINED_ATTRIBUTES`.
    steps : dict of str to int
        Number of training steps that None stands for, by the name of the parameter.
    layers : dict of str to sequence of int
        Layers that None stands for, by the name of the backbone.
    """
    if doc is None:
        return None
    # cleandoc strips the indentation, which Python 3.13 has done already and older ones have not.
    doc = inspect.cleandoc(doc).replace("{size}", inspect.cleandoc(SIZE_PARAMETERS))
    described = re.findall(r"^(\w+) : ", doc.partition("\nAttributes\n")[0], flags=re.MULTILINE)
    doc = doc.replace(
        "{backbone}", _entries(BACKBONE_PARAMETERS, lambda name: name in names and name not in described)
    )
    described += re.findall(r"^(\w+) : ", doc.partition("\nAttributes\n")[0], flags=re.MULTILINE)
    parameters = _entries(PARAMETERS, lambda name: name in names and name not in described)
    groups = (judges, DETECTOR_ATTRIBUTES), (trained, TRAINED_ATTRIBUTES), (layers, BACKBONE_ATTRIBUTES)
    absent = set().union(*(group for has, group in groups if not has))
    attributes = _entries(ATTRIBUTES, lambda name: name not in absent)
    doc = doc.replace("{parameters}", parameters).replace("{attributes}", attributes)
    doc = doc.replace("{layers}", ", ".join(f'{of} of "{name}"' for name, of in layers.items()))
    for name, n_steps in steps.items():
        doc = doc.replace(f"{{{name} steps}}", f"{n_steps:,}")
    return doc


def _entries(text, wanted):
    """Entries of a text whose names `wanted` accepts."""
    entries = re.split(r"\n(?=\w)", inspect.cleandoc(text))
    return "\n".join(entry for entry in entries if wanted(entry.partition(" : ")[0]))
