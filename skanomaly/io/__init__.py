"""Files of images: PNG, JPEG, TIFF, DICOM, NIfTI and numpy files in, masks and maps of their size out."""

from ._files import ImageFiles, read_folder
from ._writers import overlaid as overlaid
from ._writers import write_maps, write_masks

__all__ = ["ImageFiles", "read_folder", "write_maps", "write_masks"]
