"""Estimators that label each pixel of an OCT B-scan with its layer of the retina, numbered from the top."""

from .retina.graph import GraphLayerExtractor
from .retina.unet import UNetLayerExtractor

__all__ = ["GraphLayerExtractor", "UNetLayerExtractor"]
