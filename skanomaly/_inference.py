"""Eval mode, padded batches of one fixed size, device, no_grad, and back to numpy."""

import numpy as np
import torch
from sklearn.utils import gen_batches

#: Rows of every scoring batch. float32 results depend on the size of a batch, so it is never the
#: user's: then scores depend neither on the other rows nor on their order. (Within a batch the last bit can,
#: after dense layers of fewer than 16 outputs whose inputs are not a multiple of 4.)
BATCH = 32


def run(function, network, images, device):
    """Yield (slice, result) over images, results cut to the slice's rows.

    Parameters
    ----------
    function : callable (BATCH, c, h, w) tensor -> tensor, or tuple or dict of them, or None
    network : nn.Module, put in eval mode
    images : Images
    device : str
    """
    network.eval()
    for rows in gen_batches(len(images), BATCH):
        # no_grad inside the loop: around a yield it would stay on in the caller.
        with torch.no_grad():
            x = images[rows]
            n = len(x)
            if n < BATCH:
                x = torch.cat([x, x[-1:].expand(BATCH - n, *x.shape[1:])])
            result = function(x.to(device))
        yield rows, _to_numpy(result, n)


def collect(function, network, images, device):
    """Results of `run` for all images at once: an array, or a tuple of them."""
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
    """'auto' to 'cuda' or 'cpu'; any other name is checked.

    Raises
    ------
    ValueError
        For a name torch does not know, and for an accelerator that is absent.
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
