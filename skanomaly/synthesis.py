"""Anomalies made from normal images, with their masks."""

from .transforms.anat_paste import anat_paste, dark_cavities
from .transforms.cutpaste import cutpaste
from .transforms.defects import fpi, interpolate_foreign_patches, pii, shifted_pieces, synthesize
from .transforms.mixture import mixture
from .transforms.nsa import foreground, nsa
from .transforms.perlin import perlin

__all__ = [
    "SYNTHESES",
    "anat_paste",
    "cutpaste",
    "dark_cavities",
    "foreground",
    "fpi",
    "interpolate_foreign_patches",
    "mixture",
    "nsa",
    "perlin",
    "pii",
    "shifted_pieces",
    "synthesize",
]

#: Syntheses by name: functions (images, sources, generator) -> (images, masks, labels).
#:
#: :meta hide-value:
SYNTHESES = {
    "anat_paste": anat_paste,
    "cutpaste": cutpaste,
    "fpi": fpi,
    "mixture": mixture,
    "nsa": nsa,
    "perlin": perlin,
    "pii": pii,
    "shifted_pieces": shifted_pieces,
}
