"""The parameters `backbone`, `layers` and `input_size`, and the module that they become."""

import copy
import sys
import traceback
import warnings
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional as F

from ._parameters import pair
from ._random import draw_seed, seeded
from .networks.backbone import (
    STAGES,
    WEIGHTS_SHA256,
    DerivativeFilters,
    ImageNetBackbone,
    ModuleBackbone,
    recorded,
    resize,
    sides,
    weights_digest,
)

#: Cells on each side of an image over which maps are averaged, by the name of the backbone; else 2.
GRIDS = {"filters": 8}

#: Backbones by name: class, side of the input by default, number of layers, and SHA-256 of the weights.
NAMED = {
    "imagenet": (ImageNetBackbone, 224, len(STAGES), WEIGHTS_SHA256),
    "filters": (DerivativeFilters, 64, len(DerivativeFilters.SCALES), ""),
}


class _Scaled:
    """Images in [0, 1] as a lazy X, float32 and channels first, for a detector that becomes a backbone."""

    def __init__(self, images):
        self._images = images
        self.shape, self.dtype = (len(images), *images.layout.image_shape), np.dtype(np.float32)

    def __getitem__(self, rows):
        return self._images[rows].numpy()


def grid_cells(grid, description):
    """Height and width of a grid, of the parameter `grid` and the description of a backbone."""
    if isinstance(grid, str):  # "auto"
        grid = GRIDS.get(description["name"], 2)
    return pair(grid, "grid")


def vectors(network, maps, cells):
    """Vector (n, d) of each image: feature maps of a backbone, averaged over cells and joined.

    Its values are in the order of layers, then channels, then rows of cells.
    """
    pooled = [F.adaptive_avg_pool2d(m, cells).flatten(1) for m in maps]
    return network.pooled(torch.cat(pooled, dim=1))


def learns(backbone):
    """Whether a backbone is a detector that is fitted to the training images."""
    return hasattr(backbone, "fit") and not isinstance(backbone, FrozenEstimator)


def fit_inner(backbone, images, random_state):
    """Fitted detector that is the backbone, or None for any other backbone.

    Parameters
    ----------
    backbone : object
        Parameter of this name.
    images : Images
        Images in [0, 1], to which an unfitted detector is fitted.
    random_state : int, RandomState or None
        Source of the detector's seed; None leaves the detector its own.
    """
    if isinstance(backbone, FrozenEstimator):
        inner = backbone.estimator
        if not hasattr(type(inner), "image_shape_"):
            raise TypeError(f"backbone must be a fitted detector or encoder where it is frozen, got {inner}")
        check_is_fitted(inner)
        return inner
    if not learns(backbone):
        return None
    options = {"channel_axis": 1, "image_shape": None, "intensity_range": (0.0, 1.0)}
    if not isinstance(backbone, BaseEstimator) or options.keys() - backbone.get_params():
        raise TypeError(f"backbone must be a detector or encoder of whole images, got {backbone}")
    if random_state is not None:
        options["random_state"] = draw_seed(random_state)
    return clone(backbone).set_params(**options).fit(_Scaled(images))


@contextmanager
def explained(backbone, image_shape):
    """Context in which an error of torch becomes one that names the backbone and the shape of an image."""
    try:
        yield
    except RuntimeError as error:
        name = getattr(backbone, "__name__", type(backbone).__name__)
        raise ValueError(
            f"backbone={name} cannot make maps of images of shape {image_shape}: {error}; give a network "
            "that can, or another input_size"
        ) from error


def describe(backbone, inner, layers, input_size, images, default_layers):
    """Description of a backbone: a dict of its name, weights, layers and input size, in plain values.

    Parameters
    ----------
    backbone, layers, input_size
        Parameters of these names.
    inner : detector or None
        Result of `fit_inner`.
    images : Images
    default_layers : dict of str to sequence of int
        Layers that None stands for, by the name of the backbone.
    """
    image_shape = images.layout.image_shape
    size = _size(backbone, inner, input_size, image_shape)
    if isinstance(backbone, str):
        _, _, n_layers, digest = NAMED[backbone]
        layers = default_layers[backbone] if layers is None else layers
        numbers = [k for k in layers if isinstance(k, Integral) and not isinstance(k, bool)]
        if len(set(numbers)) != len(layers) or not numbers or min(numbers) < 0 or max(numbers) >= n_layers:
            raise ValueError(
                f"layers must be one or more different numbers from 0 to {n_layers - 1} for "
                f"backbone={backbone!r}, got {layers!r}"
            )
        return _description(backbone, digest, map(int, layers), size)
    if inner is not None:
        network = inner.network_
        if layers is None:
            layers = _activations(network, resize(images[:1], size).to(inner.device_), inner)
        return _description(type(inner).__name__, weights_digest(network), layers, size)
    network = _user_module(backbone, image_shape, warn=True)
    return _description(type(network).__name__, weights_digest(network), layers or (), size)


def _size(backbone, inner, input_size, image_shape):
    """Height and width of the input of a backbone."""
    if input_size is None and isinstance(backbone, str):
        input_size = NAMED[backbone][1]
    elif input_size is None and inner is not None:
        input_size = inner.image_shape_[1:]
    return sides(image_shape, input_size)


def _description(name, digest, layers, size):
    return {"name": name, "sha256": digest, "layers": list(layers), "input_size": list(size)}


def build(backbone, inner, description, layers, input_size, image_shape, image_range):
    """Module from images (n, c, h, w) in [0, 1] to feature maps.

    `image_range` is the range of intensities that the network of `inner` expects.

    Raises
    ------
    ValueError
        If the parameters are not those of the description, or the weights are others.
    """
    size, named = _size(backbone, inner, input_size, image_shape), isinstance(backbone, str)
    if (
        description["input_size"] != list(size)
        or layers is not None
        and description["layers"] != list(layers)
    ):
        raise ValueError("layers or input_size are not those that the detector was fitted with")
    if named:
        cls, _, n_layers, digest = NAMED[backbone]
        if not all(isinstance(k, int) and 0 <= k < n_layers for k in description["layers"]):
            raise ValueError(f"{description['layers']} are no layers of {backbone!r}")
        network = cls(description["layers"], size)
    else:
        held = _user_module(backbone, image_shape) if inner is None else inner.network_
        digest = weights_digest(held)
        network = ModuleBackbone(held, description["layers"], size, image_range)
    if digest != description["sha256"]:
        raise ValueError("backbone has other weights than the one that the detector was fitted with")
    return network


def _user_module(backbone, image_shape, *, warn=False):
    """Frozen copy of a module, or the module that a function makes."""
    if isinstance(backbone, nn.Module):
        return copy.deepcopy(backbone).eval().requires_grad_(False)
    # On the CPU also where `save` compares networks without tensors, on the meta device: these have weights.
    with seeded(0), torch.device("cpu"):
        network = backbone(image_shape)
    if not isinstance(network, nn.Module):
        raise TypeError(f"backbone must make an nn.Module of an image shape, got {type(network).__name__}")
    if warn:
        with seeded(1), torch.device("cpu"):
            other = backbone(image_shape)
        if weights_digest(other) != weights_digest(network):
            warnings.warn(
                "backbone makes a network with random weights, which tell little of disease; load learned "
                "weights in that function, or take backbone='imagenet'",
                stacklevel=_outside(),
            )
    return network.eval().requires_grad_(False)


def _outside():
    """Stacklevel, for the caller of this function, of the code that called scikit-learn or this package."""
    # Counted, since it differs between detectors.
    frames = enumerate(traceback.walk_stack(sys._getframe(1)), 1)
    names = ((k, frame.f_globals["__name__"].partition(".")[0]) for k, (frame, _) in frames)
    return next((k for k, name in names if name not in ("skanomaly", "sklearn")), 1)


def _activations(network, x, inner):
    """Names of the activations in the part `encoder` of a network whose outputs are maps."""
    names = [
        name
        for name, module in network.named_modules()
        if any(part.endswith("encoder") for part in name.split("."))
        and type(module).__module__ == nn.ReLU.__module__
    ]
    if names:
        with torch.no_grad(), recorded(network.eval(), names) as found:
            network(x)
        names = [name for name, output in found.items() if output.ndim == 4]
    if not names:
        raise ValueError(
            f"backbone={type(inner).__name__} trains no encoder with maps; give a detector that does, as "
            "AutoEncoder, or name modules of its network_ in layers"
        )
    return names
