"""ImageEstimator: base of what applies a network to images, detectors and transformers."""

import copy
import inspect
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from .. import _inference
from .._finite import check_tensors
from .._format import InputFormat
from .._parameters import SHARED, constraints_of, fill_docstring
from .._random import default_modes


class ImageEstimator(BaseEstimator):
    """Base of estimators that apply a network to images: shared parameters, format of X, device, pickling.

    A subclass writes `fit`, which sets ``_format``, ``device_`` and ``network_``. If it learns a network, it
    also writes `_build`. Its constraints and its docstring are completed as `BaseDetector` describes.
    """

    #: Range of intensities that the network expects.
    _image_range = (0.0, 1.0)

    #: Training steps that None stands for, by the name of the parameter. Only a `TrainedDetector` has any.
    _steps: dict = {}

    #: Layers that None stands for, by the name of the backbone. Only with a backbone there are any.
    _layers: dict = {}

    #: Version of saved files. Raise it when the network changes so that older files do not fit it.
    _file_version = 1

    #: Class that learns the format of X in `fit`, and later opens images in that format.
    _format_class = InputFormat

    _parameter_constraints: dict = {}

    # Set by `_assign_shared`.
    device: str
    intensity_range: Any
    channel_axis: Any
    image_shape: Any
    random_state: Any

    network_: torch.nn.Module
    device_: str
    n_features_in_: int

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        cls._parameter_constraints = constraints_of(names, cls._parameter_constraints)
        # PatchDetector has no parameters of training, but it has the history of the detector inside.
        trained = "max_epochs" in names or hasattr(cls, "history_")
        judges = hasattr(cls, "score_samples")
        given = {"judges": judges, "trained": trained, "steps": cls._steps, "layers": cls._layers}
        cls.__doc__ = fill_docstring(cls.__doc__, names, **given)

    def _assign_shared(self, parameters):
        """Assign the shared parameters of a constructor; `parameters` is its `locals()`."""
        for name in SHARED.keys() & parameters.keys():
            setattr(self, name, parameters[name])

    @property
    def image_shape_(self) -> tuple[int, int, int]:
        return self._learned("image_shape")

    @property
    def intensity_range_(self) -> tuple[float, float]:
        return self._learned("intensity_range")

    def _learned(self, name):
        if "_format" not in vars(self):
            raise AttributeError(f"{name}_ is there once {type(self).__name__} is fitted")
        return getattr(self._format, name)

    def _build(self, image_shape):
        """Untrained network for images of shape (C, H, W): one nn.Module that holds all parts."""
        raise NotImplementedError

    def _check_own_attributes(self, attributes):
        """Raise a ValueError if fitted attributes that only this class has, by name, cannot be right."""

    def _check_process(self):
        """Raise an error if this process cannot run the fit, before X is read. Set ``device_``."""
        self.device_ = _inference.resolve_device(self.device)

    def _new_network(self):
        return self._place(self._build(self.image_shape_))

    def _settle(self, network):
        """Network as it is kept, after a check of its weights and of the statistics that were measured."""
        check_tensors(network.state_dict())
        return network.eval()

    def _open(self, X):
        """Images of X, after checks that the detector is fitted and that X fits it."""
        check_is_fitted(self)
        return self._format.open(X, self)

    def _run(self, function, images):
        try:
            yield from _inference.run(function, self.network_, images, self.device_)
        except (AttributeError, RuntimeError, TypeError):
            from ._state import state_of  # here, since that module imports this one

            state_of(self)  # says so if parameters were changed after fit
            raise

    def _place(self, network):
        # In the memory format channels_last, convolutions are faster on CPUs and on GPUs.
        return network.to(self.device_, memory_format=torch.channels_last)

    def __getstate__(self):
        """State for pickling. The network is on the CPU, since another machine may have no accelerator."""
        state = dict(super().__getstate__())  # a copy, since __getstate__ returns the __dict__ itself
        if "network_" in state and self.device_ != "cpu":
            state["network_"] = copy.deepcopy(state["network_"]).cpu()
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "network_" in state:
            try:
                self.device_ = _inference.resolve_device(self.device)
            except ValueError:  # this machine may lack the device
                self.device_ = "cpu"
            with default_modes():
                network = self.network_
                # Tensors that were unpickled in inference mode could never have a gradient.
                if any(tensor.is_inference() for tensor in network.state_dict().values()):
                    network = copy.deepcopy(network)
                self.network_ = self._place(network)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        # two_d_array stays True: without it scikit-learn silently leaves out 45 of its 46 checks.
        tags.input_tags.three_d_array = True
        return tags


def gather(parts, shape, dtype, out):
    """Array of this shape made of parts (rows, array), or, if `shape` is None, a list of arrays."""
    if shape is None:
        if out is not None:
            raise ValueError("out is for images in one array; those of a list come back as a list")
        return [part[0] for _, part in parts]
    if out is None:
        out = np.empty(shape, dtype)
    else:
        _check_out(out, tuple(shape), np.dtype(dtype))
    for rows, part in parts:
        out[rows] = part
    return out


def _check_out(out, shape, dtype):
    """Raise an error if `out` cannot hold results of this shape and dtype."""
    if not hasattr(out, "shape"):
        raise TypeError(f"out must be an array to write to, got {type(out).__name__}")
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, got {tuple(out.shape)}")
    if isinstance(out, torch.Tensor):
        raise TypeError("out must be a numpy array, or write like one, got a tensor; give tensor.numpy()")
    # uint8, the default of a memmap, would cut maps to whole numbers; float16 makes 65,520 infinite.
    held = np.dtype(getattr(out, "dtype", dtype))
    if held.kind not in "biufcO" or not np.can_cast(dtype, held, "safe"):
        raise TypeError(f"out must hold {dtype}, got dtype {held}")
    if not getattr(getattr(out, "flags", None), "writeable", True):
        raise ValueError("out must be writable, got a read-only array")
