"""Anomalies made from normal images, with their masks."""

from .transforms.cutpaste import cutpaste
from .transforms.defects import fpi, interpolate_foreign_patches, mixture, pii, synthesize
from .transforms.perlin import perlin

__all__ = [
    "SYNTHESES",
    "cutpaste",
    "fpi",
    "interpolate_foreign_patches",
    "mixture",
    "perlin",
    "pii",
    "synthesize",
]

#: Syntheses by name: functions (images, sources, generator) -> (images, masks, labels).
#:
#: :meta hide-value:
SYNTHESES = {"cutpaste": cutpaste, "fpi": fpi, "mixture": mixture, "perlin": perlin, "pii": pii}
