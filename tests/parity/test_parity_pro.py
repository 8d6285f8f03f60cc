"""Per-region overlap, pixel AUROC and average precision of five random cases, the last one with ties.

The numbers are no method's code, but reference values made by exact integration.
"""

import pytest

from skanomaly.metrics import pixel_auroc, pixel_average_precision, pro


@pytest.mark.parametrize("case", range(5))
def test_metrics_of_pixels(parity, case):
    reference = parity("pro")
    masks, maps = (reference[f"in/{case}/{name}"] for name in ("masks", "maps"))
    for limit in 0.3, 0.05, 1.0:
        reference.agrees(f"{case}/pro_{limit}", pro(masks, maps, max_false_alarm_rate=limit), within=1e-12)
    reference.agrees(f"{case}/pixel_auroc", pixel_auroc(masks, maps), within=1e-12)
    reference.agrees(f"{case}/pixel_average_precision", pixel_average_precision(masks, maps), within=1e-12)
