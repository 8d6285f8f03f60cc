"""Inference: a network is applied to images in eval mode, in padded batches of one fixed size."""

import numpy as np
import torch
from sklearn.utils import gen_batches

from ._random import default_modes

#: Number of images in every batch. float32 results depend on the size of a batch. The size is fixed, and is
#: not the user's `batch_size`, so that a score depends neither on the other images nor on their order. (The
#: last bit of a score still can, if a dense layer has fewer than 16 outputs and a number of inputs that is
#: not a multiple of 4.)
BATCH = 32

#: Most bytes of results that a `Replay` keeps.
CACHE_BYTES = 2**30


def run(function, network, images, device):
    """Apply a function to images batch by batch.

    Parameters
    ----------
    function : callable (tensor) -> tensor, or tuple or dict of tensors, or None
        Function of a batch (BATCH, c, h, w).
    network : nn.Module
        Network that the function uses; the network is put in eval mode.
    images : Images
    device : str

    Yields
    ------
    rows : slice
    result : numpy array, or tuple or dict of arrays, or None
        Result for these rows of the images, without the rows of the padding.
    """
    batches = _batches(function, network, images, device)
    for rows, (n, result) in zip(gen_batches(len(images), BATCH), batches):
        yield rows, _to_numpy(result, n)


def _batches(function, network, images, device):
    """Yield (number of images, result) for each batch; the result has rows of padding, too."""
    network.eval()
    for rows in gen_batches(len(images), BATCH):
        # Modes inside the loop: around a yield they would stay on in the caller.
        with default_modes(), torch.no_grad():
            x = images[rows]
            n = len(x)
            if n < BATCH:
                x = torch.cat([x, x[-1:].expand(BATCH - n, *x.shape[1:])])
            result = function(x.to(device))
        yield n, result


class Replay:
    """Results of a function of images, which can be gone through more than once.

    They are kept if they fit into `CACHE_BYTES`; otherwise each pass computes them again.

    Parameters
    ----------
    function : callable (tensor) -> tuple of tensors
        Function of a batch (BATCH, c, h, w).
    network, images, device
        Arguments of `run` with these names.
    """

    def __init__(self, function, network, images, device):
        self.function, self.network, self.images, self.device = function, network, images, device
        self.kept = []

    def __iter__(self):
        """Yield (number of images, results) for each batch; the results have rows of padding, too."""
        if self.kept:
            yield from self.kept
            return
        kept, n_bytes = [], 0
        for n, results in _batches(self.function, self.network, self.images, self.device):
            n_bytes += sum(result.nbytes for result in results)
            kept = [*kept, (n, results)] if n_bytes <= CACHE_BYTES else None
            yield n, results
        self.kept = kept or []

    def map(self, function):
        """Yield results of function(rows, *results) for each batch, as numpy arrays without the padding."""
        for rows, (n, results) in zip(gen_batches(len(self.images), BATCH), self):
            with default_modes(), torch.no_grad():
                result = function(rows, *results)
            yield _to_numpy(result, n)


def collect(function, network, images, device):
    """Results of `run` for all images in one array, or in a tuple of arrays."""
    parts = [part for _, part in run(function, network, images, device)]
    if isinstance(parts[0], tuple):
        return tuple(map(np.concatenate, zip(*parts)))
    return np.concatenate(parts)


def _to_numpy(result, n):
    if result is None:
        return None
    if isinstance(result, torch.Tensor):
        return result[:n].cpu().numpy()
    if isinstance(result, dict):
        return {name: _to_numpy(value, n) for name, value in result.items()}
    return tuple(_to_numpy(value, n) for value in result)


def resolve_device(device):
    """Name of an available device: "cuda" or "cpu" for "auto", else the given name.

    Raises
    ------
    ValueError
        If torch does not know the name, or the accelerator is absent.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0', got {device!r}"
        ) from error
    backend = getattr(torch, asked.type, None)
    count = backend.device_count() if hasattr(backend, "device_count") else 0
    if asked.type != "cpu" and (asked.index or 0) >= count:
        raise ValueError(
            f"device={device!r} was asked for, but torch finds none here; set device='auto' or 'cpu'"
        )
    return device
