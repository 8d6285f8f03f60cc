"""Real images to start with, labelled 1 (normal) and -1 (anomalous)."""

from ._shipped import load_chest_xray, load_oct

__all__ = ["load_chest_xray", "load_oct"]
