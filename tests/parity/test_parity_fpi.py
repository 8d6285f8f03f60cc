"""Images mixed with others within a box.

The label of a pixel is the share of the other image. The authors' code labels only those pixels of a box that
differ between both images; ours gives box and share, and the test joins them.
"""

import pytest
import torch

from skanomaly.transforms.defects import foreign_patches

SIDE = 20


@pytest.mark.parametrize("other", [False, True])
def test_mixed_images(parity, draws, other):
    numbers = parity("fpi")
    x, y = (numbers.input(name).movedim(3, 1) for name in ("images", "other_images"))
    half, share = numbers.input("half_widths"), 1 - numbers.input("interpolation")
    sizes = (half / SIDE - 0.05) / 0.15
    places = [((at + 0.5) / SIDE - 0.1) / 0.8 for at in numbers.input("centres").T]
    found = []
    for i in range(len(x)):
        pair = torch.stack([y[i], x[i]] if other else [x[i], y[i]])
        of = (sizes[i], places[0][i], sizes[i], places[1][i], 0 * share[i], share[i])
        draws("rand", *(torch.stack([u, u]) for u in of))
        images, masks, factors = foreign_patches(pair)
        # Where both images agree in the box, the authors' label is 0.
        differ = (pair[0, 0] - pair[1, 0]).abs() >= numbers.config["tolerance"]
        found.append((images[0], masks[0] * factors[0] * differ))
    mixed, labels = map(torch.stack, zip(*found))
    ending = "_other" * other
    numbers.agrees(f"mixed{ending}", mixed.movedim(1, 3))
    numbers.agrees(f"label{ending}", labels[..., None])
