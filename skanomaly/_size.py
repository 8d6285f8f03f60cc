"""The size of a convolutional autoencoder: parameters that ten detectors share."""

from numbers import Integral

from sklearn.utils._param_validation import Interval, StrOptions

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
        A code for the image, or one at every place of the last level (1 x 1 convolutions).
"""

SIZE_CONSTRAINTS = {
    "latent_size": [Interval(Integral, 1, None, closed="left")],
    "hidden_size": [Interval(Integral, 1, None, closed="left")],
    "width": [Interval(Integral, 1, None, closed="left")],
    "n_levels": [Interval(Integral, 1, None, closed="left"), None],
    "bottleneck": [StrOptions({"dense", "spatial"})],
}


def size_options(detector):
    """What a detector with these parameters asks of the networks in `networks.autoencoder`."""
    return {
        "latent_size": detector.latent_size,
        "hidden_size": detector.hidden_size if detector.bottleneck == "dense" else None,
        "width": detector.width,
        "n_levels": detector.n_levels,
    }
