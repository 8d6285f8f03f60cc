"""Labels of NSA, given images before and after and the pixels inside patches.

The authors clone by OpenCV, which places a patch up to a pixel off its box; the test compares what is a
function of the images.
"""

import pytest

from skanomaly.transforms.nsa import nsa_labels

MODES = {"binary": "binary", "intensity": "intensity", "logistic": "logistic-intensity"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["normal_clone", "mixed_clone", "swap", "uniform"])
def test_labels(parity, mode, name):
    numbers = parity("nsa")

    def images(key):
        return numbers.tensor(key).double().movedim(2, 0)[None] / 255

    inside = images(f"out/{name}/patch_mask") > 0
    found = nsa_labels(
        images("in/destination"),
        images(f"out/{name}/image"),
        inside,
        mode=mode,
        k=numbers.config["k"],
        x0=numbers.config["x0"],
        tolerance=numbers.config["tol"] + 1e-6,
        radii=(2, 5),
    )
    found = found * 255 if mode == "intensity" else found
    key = f"{name}/label_{MODES[mode]}"
    numbers.agrees(key, found[0].movedim(0, 2))
