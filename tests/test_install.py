"""What an installation brings."""

from importlib.metadata import distributions

import torch


def test_a_cpu_build_brings_nothing_of_cuda():
    names = {distribution.metadata["Name"].lower() for distribution in distributions()}
    assert "torchvision" not in names
    if torch.version.cuda is None:
        assert not [name for name in names if name.startswith(("nvidia", "triton"))]
