"""One seed decides a fit, and the caller's generators are left as they were."""

import threading
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import check_random_state

#: torch has one generator per process: fits in threads wait for one another.
_ONE_AT_A_TIME = threading.RLock()


def draw_seed(random_state):
    """An int for `seeded`; None gives fresh entropy and leaves numpy's global state alone."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(2**31 - 1))


@contextmanager
def seeded(seed, device="cpu"):
    """Seed torch inside, restore the caller's generators outside."""
    device, cuda = torch.device(device), []
    if device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed: it would also seed every other accelerator of the process.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
