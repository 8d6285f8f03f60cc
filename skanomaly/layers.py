"""Layers of a retina in OCT B-scans: from images to integer labels in depth order."""

from .retina.graph import GraphLayerExtractor
from .retina.unet import UNetLayerExtractor

__all__ = ["GraphLayerExtractor", "UNetLayerExtractor"]
