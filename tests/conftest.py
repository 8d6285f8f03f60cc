import os

# Before scipy is imported: scikit-learn's array API check runs only then.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

matplotlib.use("agg")
torch.set_num_threads(1)
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")

DATA = Path(os.environ.get("SKANOMALY_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def benchmark_data():
    """A loader of benchmark sets by name, as arrays; skips where they are absent."""

    def load(name):
        path = DATA / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"{path.name} is not in {DATA}; set SKANOMALY_DATA to the folder of benchmark images")
        with np.load(path) as arrays:
            return dict(arrays)

    return load
