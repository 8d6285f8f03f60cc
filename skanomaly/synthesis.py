"""Anomalies made from normal images, with their masks."""

from .transforms.defects import interpolate_foreign_patches

__all__ = ["interpolate_foreign_patches"]
