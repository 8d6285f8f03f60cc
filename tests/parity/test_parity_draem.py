"""Both networks, their score and losses, Perlin noise and what is blended in where it is strong.

Left out: the zeros around images in SSIM, which darken its border; for this comparison images have a border
of zeros of their own. Constants of SSIM are those of images in [0, 1]; the authors' grow where a
reconstruction falls below -0.5, as it does in training mode, which is not compared. The smoothing of the
labels by 1e-5, which moves the focal loss by less than a thousandth, is left out, too.
"""

import pytest
import torch
from torch.nn import functional as F

from skanomaly._losses import focal_loss, squared_error, ssim_error
from skanomaly.detectors.draem import (
    ReconstructionNetwork,
    SegmentationNetwork,
    pooled_maximum,
)
from skanomaly.transforms.perlin import blend, perlin_noise, pixel_places

SHAPE = 3, 32, 32
#: Half the side of SSIM's window, whose weights the authors round to float32.
BORDER, ROUNDED = 5, 1e-7


@pytest.fixture
def numbers(parity):
    return parity("draem")


def padded_ssim_error(x, y):
    """Structural error with zeros around both images."""
    x, y = (F.pad(images, (BORDER,) * 4) for images in (x, y))
    return F.pad(ssim_error(x, y), (-BORDER,) * 4)


def test_networks_and_losses(numbers):
    reconstruction = ReconstructionNetwork(SHAPE, width=2, strides=[(2, 2)] * 4)
    segmentation = SegmentationNetwork(SHAPE, width=2, strides=[(2, 2)] * 5)
    numbers.put("reconstructive", reconstruction)
    numbers.put("discriminative", segmentation)
    x, clean = numbers.input("images"), numbers.input("clean")
    masks = numbers.input("mask") > 0.5

    def losses(ending=""):
        y = reconstruction(x)
        logits = segmentation(y, x)
        terms = {
            "l2": squared_error(y, clean).mean(),
            "ssim": padded_ssim_error(y, clean).mean(),
            "focal": focal_loss(logits, masks[:, 0]),
        }
        if ending:
            del terms["ssim"]
        for name, term in terms.items():
            # The smoothing of the labels moves the focal loss.
            within = {"ssim": ROUNDED, "focal": 1e-3}.get(name, 1e-9)
            numbers.agrees(f"{ending}loss_{name}", term, within=within)
        return y, logits, sum(terms.values())

    y, logits, total = losses()
    numbers.agrees("reconstructive/code", reconstruction.encoder(x)[-1])
    numbers.agrees("reconstruction", y)
    numbers.agrees("logits", logits)
    maps = logits.softmax(1)[:, 1]
    numbers.agrees("probability", maps)
    numbers.agrees("pooled_map", F.avg_pool2d(maps[:, None], 21, 1, 10)[:, 0])
    numbers.agrees("score", pooled_maximum(maps, 21))
    numbers.agrees("loss", total, within=1e-3)
    reconstruction.train(), segmentation.train()
    losses("training_mode/")


def test_ssim(numbers):
    x, y = (numbers.input(f"ssim/{name}").flatten(0, 1)[:, None] for name in "xy")
    error = padded_ssim_error(x, y)
    numbers.agrees("ssim/map", (1 - error).unflatten(0, (2, 3)), within=ROUNDED)
    numbers.agrees("ssim/loss", error.mean(), within=ROUNDED)


@pytest.mark.parametrize("j", range(4))
def test_perlin_noise(numbers, j):
    height, width, *cells = numbers.input(f"perlin/{j}/shape_and_cells").tolist()
    places = pixel_places((height, width), dtype=torch.float64)
    noise = perlin_noise(numbers.input(f"perlin/{j}/turns")[None], torch.tensor([cells]), places)[0]
    # The authors' noise was stored in float32.
    numbers.agrees(f"perlin/{j}/noise", noise, within=1e-7)
    numbers.agrees(f"perlin/{j}/mask_above_0.5", noise > 0.5)


def test_blending(numbers):
    x, texture, mask = (
        numbers.input(f"blend/{name}").movedim(2, 0)[None] for name in ("image", "texture", "mask")
    )
    mixed = blend(x, texture, mask > 0.5, numbers.input("blend/beta"))
    numbers.agrees("blend/mixed", mixed[0].movedim(0, 2))
