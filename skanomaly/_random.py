"""Random numbers from one seed, and torch's default modes, with the caller's own left as they were."""

import threading
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from sklearn.utils import check_random_state

#: Lock of torch's CPU generator. A process has only one, so fits in threads wait for one another.
_ONE_AT_A_TIME = threading.RLock()

#: Lock of `_entered` and `_callers_dtype`: the default dtype, too, is one for all threads.
_COUNTING = threading.Lock()
_entered = 0
_callers_dtype = torch.float32


def draw_seed(random_state):
    """Seed for `seeded`, an int."""
    if random_state is None:
        # Not check_random_state(None): it would draw from numpy's global generator.
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(2**31 - 1))


@contextmanager
def default_modes():
    """Context in which torch makes float32 tensors and computes gradients, whatever the caller has set.

    Grad mode, inference mode, default dtype, autocast and default device of the caller are restored at its
    end. A generator must not yield inside it.
    """
    # Both modes: in inference mode, grad mode has no effect.
    with _float32(), torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(device, enabled=False))
        # Only if need be: this context slows every call of torch a little.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _float32():
    """Context in which torch's default dtype is float32."""
    global _entered, _callers_dtype
    with _COUNTING:
        # The first to enter changes the dtype, and the last to leave restores it, or threads would undo it.
        if not _entered:
            _callers_dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _entered += 1
    try:
        yield
    finally:
        with _COUNTING:
            _entered -= 1
            if not _entered and _callers_dtype is not torch.float32:
                torch.set_default_dtype(_callers_dtype)


@contextmanager
def seeded(seed, device="cpu"):
    """Context with seeded torch generators that draw float32; the caller's are restored at its end."""
    device, cuda = torch.device(device), []
    if device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    # Not default_modes: a validation loss is drawn without gradients.
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=cuda), _float32():
        # Not torch.manual_seed: it seeds every accelerator of the process, also those not restored.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
