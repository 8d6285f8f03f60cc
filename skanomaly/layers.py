"""Extractors of the layers of a retina, from OCT B-scans to integer labels in depth order."""

from .retina.graph import GraphLayerExtractor
from .retina.unet import UNetLayerExtractor

__all__ = ["GraphLayerExtractor", "UNetLayerExtractor"]
