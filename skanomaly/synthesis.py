"""Anomalies made from normal images, with their masks."""

from .transforms.defects import interpolate_foreign_patches
from .transforms.perlin import perlin

__all__ = ["SYNTHESES", "interpolate_foreign_patches", "perlin"]

#: Syntheses by name: functions (images, sources, generator) -> (images, masks, labels).
#:
#: :meta hide-value:
SYNTHESES = {"perlin": perlin}
