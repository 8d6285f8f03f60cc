"""State of a fit in a folder, written after each epoch, so that a killed fit can be continued."""

import warnings
from functools import partial
from pathlib import Path
from types import MethodType

import numpy as np
import torch

from .. import _storage
from .._images import fingerprint

SUFFIX = ".safetensors"


class Checkpoint:
    """Folder with the state of a fit, in one file per stage.

    Parameters
    ----------
    folder : str or Path
        Path of the folder, which is made if it is absent.
    fit : dict of str to str
        Descriptions of everything that decides the result: parameters and data. A fit is continued only if
        its descriptions equal those in the folder.
    seed : int
        Seed of a new fit. If the folder already holds a fit, the attribute `seed` is the seed of that fit.

    Raises
    ------
    ValueError
        If the folder holds another fit. The message says what differs.
    """

    def __init__(self, folder, fit, seed):
        self.folder, self.fit, self.seed = Path(folder).expanduser(), fit, seed
        self.rounding = {"torch": torch.__version__, "torch threads": str(torch.get_num_threads())}
        self.stages = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*" + _storage.UNFINISHED):
            path.unlink()  # left by a process that was killed while it wrote
        for path in sorted(self.folder.glob("*" + SUFFIX)):
            content = self._read(path)
            self.seed = content["seed"]
            # A warning, not an error: only the last bits of the result can differ.
            if changed := _changes(content["rounding"], self.rounding):
                warnings.warn(
                    f"the fit in {str(self.folder)!r} goes on, and will round otherwise: {changed}",
                    stacklevel=7,
                )

    def read(self, stage):
        """State of a stage, or None if none was written yet."""
        if stage in self.stages:
            raise ValueError(f"two stages are named {stage!r}; their states would be one file")
        self.stages.add(stage)
        path = self.folder / (stage + SUFFIX)
        return self._read(path)["state"] if path.exists() else None

    def write(self, stage, state):
        """Write the state of a stage over its last state."""
        content = {"fit": self.fit, "rounding": self.rounding, "seed": self.seed, "state": state}
        _storage.write(self.folder / (stage + SUFFIX), "checkpoint", content)

    def _read(self, path):
        content = _storage.read(path, "checkpoint")
        if changed := _changes(content["fit"], self.fit):
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} holds another fit: {changed}. Give another folder, or "
                "the parameters and data of that fit"
            )
        return content


def _changes(then, now):
    return "; ".join(
        f"{key} was {then.get(key, 'absent')} and is {now.get(key, 'absent')}"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    )


def describe(value):
    """Text that describes a parameter: equal for parameters of the same effect, also in two processes."""
    # Not repr, which shortens arrays and shows the addresses of functions and objects.
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{describe(k)}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(describe, value)))}}}"
    if isinstance(value, np.random.RandomState):
        return f"RandomState{describe(value.get_state()[1:3])}"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"array {value.shape} {value.dtype} with SHA-256 {fingerprint(value)}"
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.item()
    if isinstance(value, partial):
        return f"partial{describe([value.func, value.args, value.keywords])}"
    if isinstance(value, MethodType):
        return f"{value.__name__} of {describe(value.__self__)}"
    if hasattr(value, "__qualname__"):
        name = _name(value)
        if "<" in name:
            raise ValueError(
                f"with checkpoint_dir, functions are told apart by their names, and {name} may be another "
                "next time; define it at the top of a module, with functools.partial for its options"
            )
        return name
    if hasattr(value, "get_params"):
        parts = value.get_params(deep=False)
    elif hasattr(value, "__dict__"):
        parts = vars(value)
    else:
        return repr(value)
    return f"{_name(type(value))}({', '.join(f'{key}={describe(part)}' for key, part in parts.items())})"


def _name(thing):
    return f"{thing.__module__}.{thing.__qualname__}"


def state_of(training):
    """State that decides how a training goes on, as values that `_storage` can write."""
    generators = {"cpu": torch.get_rng_state()}
    if training.device != "cpu":
        generators["device"] = torch.get_device_module(training.device).get_rng_state(training.device)
    return {
        "network": dict(training.module_.state_dict()),
        "frozen": [name for name, p in training.module_.named_parameters() if not p.requires_grad],
        "optimizers": {name: getattr(training, name + "_").state_dict() for name in training.moves},
        "generators": generators,
        "n_steps": training.n_steps,
        "stop": training.stop_,
        "history": list(training.history),
        "callbacks": {name: _callback_state(callback) for name, callback in training.callbacks_},
    }


def restore(training, state):
    """Put a training back into a state that `state_of` returned."""
    restore_network(training, state)
    for name, saved in state["optimizers"].items():
        _restore_optimizer(getattr(training, name + "_"), saved)
    training.n_steps, training.stop_ = state["n_steps"], state["stop"]
    training.history.extend(state["history"])
    for name, callback in training.callbacks_:
        for attribute, value in state["callbacks"].get(name, {}).items():
            current = getattr(callback, attribute, None)
            if hasattr(current, "load_state_dict"):
                current.load_state_dict(value)
            else:
                setattr(callback, attribute, value)


def restore_network(training, state):
    """Restore weights, buffers and random generators: all that a complete stage leaves to the next."""
    training.module_.load_state_dict(state["network"])
    # A step may have frozen parameters, which a state_dict does not record.
    for name, parameter in training.module_.named_parameters():
        parameter.requires_grad_(name not in state["frozen"])
    torch.set_rng_state(state["generators"]["cpu"])
    if training.device != "cpu":
        module = torch.get_device_module(training.device)
        module.set_rng_state(state["generators"]["device"], training.device)


def _restore_optimizer(optimizer, saved):
    optimizer.load_state_dict(saved)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # Copied into the memory format of the parameter: a file has contiguous tensors, for which
                # kernels round differently.
                values[name] = torch.empty_like(parameter).copy_(value)


def _callback_state(callback):
    """State of a callback: those attributes that end in "_" and that can be written."""
    state, lost = {}, []
    for name, value in vars(callback).items():
        if name.endswith("_") and not isinstance(value, type):
            value = value.state_dict() if hasattr(value, "state_dict") else value
            if _storage.packable(value):
                state[name] = value
            else:
                lost.append(name)
    if lost and type(callback).__module__.split(".")[0] not in ("skorch", "skanomaly"):
        warnings.warn(
            f"{type(callback).__name__} keeps {', '.join(lost)}, which a resumed fit would lose: only "
            "numbers, strings, tensors, lists, dicts and what has a state_dict are kept",
            stacklevel=2,
        )
    return state
