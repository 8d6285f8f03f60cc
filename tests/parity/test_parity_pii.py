"""Poisson blending of boxes.

The authors' code clips to the range of all images of a call; ours clips each image to its own range, so that
it does not depend on what else is in the batch, and the test clips as theirs does. Their labels are 0 where
an image is the same after its values are rounded down to 0.001, ours where it changed by no more than that;
the test compares labels where more changed.
"""

import pytest
import torch

from skanomaly.transforms.defects import pii
from skanomaly.transforms.poisson import blend

SIDE = 20


def inputs(numbers, *names):
    return [numbers.input(name).movedim(3, 1) for name in names]


@pytest.mark.parametrize("other", [False, True])
def test_blended_images(parity, draws, other):
    numbers = parity("pii")
    x, y = inputs(numbers, "images", "other_images")
    x, y = (y, x) if other else (x, y)
    centres, half = numbers.input("centres"), numbers.input("half_widths")
    share = numbers.input("interpolation")[:, None, None, None]
    boxes = [(torch.arange(SIDE) + 0.5 - at[:, None]).abs() < half[:, None] for at in centres.T]
    everything = torch.cat([x, y])
    found = blend(x, y, *boxes, own=1 - share, foreign=share).clamp(everything.min(), everything.max())
    ending = "_other" * other
    numbers.agrees(f"blended{ending}", found.movedim(1, 3))
    places = [((at + 0.5) / SIDE - 0.1) / 0.8 for at in centres.T]
    draws("rand", (half / SIDE - 0.05) / 0.15, *places, (share[:, 0, 0, 0] - 0.05) / 0.9)
    made, masks, labels = pii(x, y)
    changed = (made - x).abs() > numbers.config["tolerance"]
    theirs = numbers.tensor(f"out/label{ending}").movedim(3, 1)
    numbers.agrees(f"label{ending}", torch.where(changed, labels, theirs).movedim(1, 3))
    assert torch.equal(masks, labels > 0)


def test_one_box(parity):
    numbers = parity("pii")
    x, y, mask, offset = inputs(numbers, "images", "other_images", "box/mask", "box/offset_source")
    x, y, mask = x[:1], y[:1], mask[:, 0] > 0
    boxes = mask.any(2), mask.any(1)
    low, high = (getattr(torch.cat([x, y]), end)() for end in ("min", "max"))

    def blended(name, d, s, alpha):
        made = blend(d, s, *boxes, own=1 - alpha, foreign=alpha).clamp(low, high)
        numbers.agrees(f"box/{name}", made.movedim(1, 3))
        return made

    for alpha in (0.0, 0.25, 0.5, 1.0):
        blended(f"alpha_{alpha}/blended", x, y, alpha)
        blended(f"alpha_{alpha}/blended_other", y, x, alpha)
    blended("same_image_alpha_0.5", x, x, 0.5)
    blended("offset_source/blended", x, offset, 1.0)
