"""Random numbers from one seed, with the caller's own generators left as they were."""

import threading
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import check_random_state

#: Lock of torch's CPU generator. A process has only one, so fits in threads wait for one another.
_ONE_AT_A_TIME = threading.RLock()


def draw_seed(random_state):
    """Seed for `seeded`, an int."""
    if random_state is None:
        # Not check_random_state(None): it would draw from numpy's global generator.
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(2**31 - 1))


@contextmanager
def seeded(seed, device="cpu"):
    """Context with seeded torch generators; those of the caller are restored at its end."""
    device, cuda = torch.device(device), []
    if device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed: it seeds every accelerator of the process, also those not restored.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
