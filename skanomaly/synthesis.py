"""Anomalies made from normal images, with their masks."""

from .transforms.cutpaste import cutpaste
from .transforms.defects import interpolate_foreign_patches
from .transforms.perlin import perlin

__all__ = ["SYNTHESES", "cutpaste", "interpolate_foreign_patches", "perlin"]

#: Syntheses by name: functions (images, sources, generator) -> (images, masks, labels).
#:
#: :meta hide-value:
SYNTHESES = {"cutpaste": cutpaste, "perlin": perlin}
