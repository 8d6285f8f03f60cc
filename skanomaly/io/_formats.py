"""Formats of files by their endings, and what must be equal in all files of a set."""

import re
from typing import Any

import numpy as np

from ._dicom import Dicom
from ._nifti import PLANES, Nifti
from ._pictures import Numpy, Picture, Tiff

FORMATS: dict[str, Any] = dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp"), Picture)
FORMATS |= {".tif": Tiff, ".tiff": Tiff, ".npy": Numpy, ".npz": Numpy, ".nii": Nifti, ".nii.gz": Nifti}
FORMATS |= dict.fromkeys((".dcm", ".dicom", ".ima"), Dicom)
ENDINGS = ", ".join(sorted(FORMATS))
#: Windows of CT by name: centre and width in Hounsfield units.
WINDOWS = {
    "bone": (400, 1800),
    "brain": (40, 80),
    "liver": (30, 150),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft tissue": (50, 400),
}


def natural_order(path):
    parts = re.split(r"(\d+)", path.as_posix())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def format_of(path):
    """Class of the sources of a file's format, None if there is none."""
    name = path.name.lower()
    ending = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    if ending in FORMATS:
        return FORMATS[ending]
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return Dicom if file.read(132)[128:] == b"DICM" else None


def open_source(path, plane):
    if path.is_dir():
        raise IsADirectoryError("it is a folder; read it by skanomaly.io.read_folder")
    if not path.exists():
        raise FileNotFoundError("there is no such file")
    found = format_of(path)
    if found is None:
        raise ValueError(f"its format is none of those that are read: {ENDINGS}, or DICOM without an ending")
    return found(path, plane) if found is Nifti else found(path)


def check_options(size, channels, window, plane, on_error):
    if size is not None and (np.shape(size) != (2,) or min(size) < 1):
        raise ValueError(f"size must be (height, width) in pixels, got {size}")
    if channels not in ("auto", 1, 3):
        raise ValueError(f"channels must be 'auto', 1 or 3, got {channels!r}")
    names = [*WINDOWS, "file", "percentiles"]
    if isinstance(window, str) and window not in names:
        raise ValueError(f"window must be (centre, width) or one of {names}, got {window!r}")
    if window is not None and not isinstance(window, str) and (np.shape(window) != (2,) or not window[1] > 0):
        raise ValueError(f"window must be (centre, width) with a width above 0, got {window}")
    if plane not in PLANES:
        raise ValueError(f"plane must be one of {sorted(PLANES)}, got {plane!r}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")


def refuse_differences(sources, size, channels, window):
    """Raise an error that names the first two files that differ in what must be equal."""
    if window in WINDOWS if isinstance(window, str) else False:
        for source in sources:
            if source.unit not in ("HU", "volume"):
                raise ValueError(
                    f"window={window!r} is in Hounsfield units, not {source.unit} as in {source.path}"
                )
    facts, first = {}, sources[0] if sources else None
    if channels == "auto":
        facts["channels"] = lambda source: source.channels, "set channels=1 or channels=3"
    if window not in ("file", "percentiles"):
        facts["values"] = lambda source: source.unit, "convert them, or read them one kind at a time"
    if size is None:
        facts["size"] = lambda source: source.size, "set size=(height, width)"
    for name, (fact, remedy) in facts.items():
        other = next((source for source in sources if fact(source) != fact(first)), None)
        if other is not None:
            raise ValueError(
                f"files must have one kind of {name}: {first.path} has {fact(first)}, {other.path} has "
                f"{fact(other)}; {remedy}"
            )


def find_group(source, pattern):
    if pattern is None:
        return source.patient
    found = re.search(pattern, source.path.as_posix())
    if not found:
        raise ValueError(f"groups={pattern!r} matches nothing in {source.path}")
    return found[1] if found.re.groups else found[0]
