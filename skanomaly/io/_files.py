"""ImageFiles: files of images as a lazy sequence that detectors take as X."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import groupby, islice
from operator import itemgetter
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ._formats import (
    ENDINGS,
    WINDOWS,
    check_options,
    find_group,
    format_of,
    natural_order,
    open_source,
    refuse_differences,
)
from ._pixels import clipped, resize, to_channels

#: Bytes of decoded images that are kept: those read last, and those that are decoded ahead.
KEPT_BYTES = 2**26


class ImageFiles:
    """Images of files in a lazy sequence, which detectors take as X.

    Headers are read at once, pixels when the sequence is sliced: in threads, and ahead of a reader that goes
    from image to image. About 64 MB of decoded images are kept, or one compressed volume if that is more. The
    slices of a NIfTI volume, the frames of a DICOM file and the pages of a TIFF are one image each.

    All files obey one rule for intensities. Values are as they are stored, in the type of the file; DICOM
    after its rescale, and NIfTI after its slope, in float32. A low value is dark: MONOCHROME1 and MINISWHITE
    are turned round between the ends of the stored bits. `window` sets another rule.

    Parameters
    ----------
    paths : sequence of paths, or one path
        Files to read: PNG, JPEG, BMP, TIFF, DICOM, NIfTI (.nii, .nii.gz), .npy and .npz. A file with another
        ending is read if it begins like DICOM.
    size : (height, width), default=None
        Size that images are brought to, by linear interpolation after a filter against aliasing. None: all
        files must have one size.
    channels : {"auto", 1, 3}, default="auto"
        Channels of the images: 1 turns colours into grey, 3 repeats grey. "auto" leaves them, and refuses
        grey and coloured files in one set. Alpha is dropped, with a warning.
    window : (centre, width), str, default=None
        Window that becomes [0, 1] in float32; values outside are clipped. A pair is in the units of the
        values. A name is a window of CT in Hounsfield units: "bone", "brain", "liver", "lung", "mediastinum"
        or "soft tissue". Two names scale each file by itself, so that files can no longer be told apart by
        brightness: "file" takes the (first) window or table that a DICOM file names, "percentiles" the 1st to
        the 99th percentile of a file.
    plane : {"axial", "coronal", "sagittal"}, default="axial"
        Plane of the slices of a NIfTI volume. They stand upright, the patient's right on the left, whatever
        the order of the axes in the file.
    drop_empty : bool, default=False
        Whether images of one single value are left out, such as slices above the head. All files are then
        read once.
    groups : str, default=None
        Regular expression that finds the patient in a path: its first group, or all that it matches. None:
        the PatientID of DICOM files, else their study; the path of a file that holds several images.
    on_error : {"raise", "skip"}, default="raise"
        Behaviour towards a file that cannot be read. With "skip" all files are read once, and broken ones are
        left out and listed in `errors_`.

    Attributes
    ----------
    shape : tuple
        (n, H, W), or (n, H, W, 3).
    dtype : dtype
        Type of the images.
    paths : (n,) list of Path
        File of each image.
    frames : (n,) int ndarray
        Number of each image in its file: a slice, frame or page.
    groups : (n,) ndarray of str, or None
        Patient of each image. None if a file says nothing of it.
    sizes : (n, 2) int ndarray
        Original height and width of each image.
    spacings : (n, 2) ndarray
        Distance of rows and of columns of the original images in mm, nan where unknown.
    errors_ : dict
        Messages by path of the files that were left out.

    Raises
    ------
    ValueError
        If a file cannot be read, or if two files differ in size, channels, bit depth or unit; the message
        names the first two that differ.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from skanomaly import FeatureGaussian
    >>> from skanomaly.datasets import load_chest_xray
    >>> from skanomaly.io import read_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i, image in enumerate(load_chest_xray().images[:20]):
    ...         Image.fromarray(image).save(f"{folder}/{i}.png")
    ...     files = read_folder(folder)
    ...     detector = FeatureGaussian(backbone="filters", random_state=0).fit(files)
    ...     detector.anomaly_map(files).shape
    (20, 64, 64)
    """

    def __init__(
        self,
        paths: PathLike | str | Iterable[PathLike | str],
        *,
        size: tuple[int, int] | None = None,
        channels: Literal["auto", 1, 3] = "auto",
        window: tuple[float, float] | str | None = None,
        plane: Literal["axial", "coronal", "sagittal"] = "axial",
        drop_empty: bool = False,
        groups: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ):
        check_options(size, channels, window, plane, on_error)
        paths = [paths] if isinstance(paths, (str, PathLike)) else paths
        self._window = WINDOWS.get(window, window) if isinstance(window, str) else window
        self._start()
        self.errors_: dict[str, str] = {}
        skip = on_error == "skip"
        sources = self._each(lambda path: open_source(path, plane), map(Path, paths), skip)
        if not sources:
            raise ValueError(f"no file could be read{list_errors(self.errors_)}")
        self._channels = channels
        frames = {source: range(source.n_images) for source in sources}
        if skip or drop_empty:
            keep = {}
            self._each(lambda source: keep.update({source: self._filled(source, drop_empty)}), sources, skip)
            frames = {source: keep[source] for source in sources if source in keep}
        # After broken files are gone: how they differ does not matter.
        refuse_differences(list(frames), size, channels, window)
        self._rows = [(source, frame) for source, indices in frames.items() for frame in indices]
        if not self._rows:
            raise ValueError(f"no images are left of {len(sources)} files{list_errors(self.errors_)}")
        first = self._rows[0][0]
        self._size = tuple(size or first.size)
        self._channels = first.channels if channels == "auto" else channels
        self._dtype = first.dtype if window is None else np.dtype(np.float32)
        self._groups = {source: find_group(source, groups) for source in frames}
        dropped = [source.path for source in frames if source.has_alpha]
        if dropped:
            warnings.warn(
                f"alpha was dropped from {len(dropped)} files, the first {dropped[0]}; what it hid is seen",
                stacklevel=2,
            )

    def _start(self):
        """Set what is not copied to another process."""
        self._kept, self._pending, self._lock, self._pool = {}, {}, RLock(), None

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k not in ("_kept", "_pending", "_lock", "_pool")}

    def __setstate__(self, state):
        vars(self).update(state)
        self._start()

    def _submit(self, function, *values):
        if self._pool is None:
            n_threads = min(8, (os.cpu_count() or 1) + 1)
            self._pool = os.getpid(), ThreadPoolExecutor(n_threads)
        return self._pool[1].submit(function, *values)

    def _each(self, function, files, skip):
        """Results of a function of each file, without files that are broken, if these are skipped."""
        results, begun = [], [(file, self._submit(function, file)) for file in files]
        try:
            for file, future in begun:
                try:
                    results.append(future.result())
                except ImportError:
                    raise
                except Exception as error:
                    path = getattr(file, "path", file)
                    if not skip:
                        raise broken(path, error) from error
                    self.errors_[str(path)] = f"{type(error).__name__}: {error}"
        finally:
            for _, future in begun:
                future.cancel()  # else a process with an error would end after the last file
        return results

    def _filled(self, source, drop_empty):
        """Numbers of the images of a file that are used. All are read, so that a broken file is noticed."""
        images = self._decode(source, range(source.n_images))
        return [i for i, image in enumerate(images) if image.min() < image.max() or not drop_empty]

    def _decode(self, source, indices):
        """Yield images of one file, as a detector sees them but for their size."""
        for image, index in zip(source.images(indices), indices):
            yield self._finish(source, image, index)

    def _finish(self, source, image, index):
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise ValueError(f"image {index} holds NaN or infinity")
        image = to_channels(image, self._channels)
        if self._window is None:
            image = source.upright(image, index)
        elif self._window == "file":
            image = source.windowed_by_file(image, index)
            image = 1 - image if source.inverse else image
        elif self._window == "percentiles":
            low, high = source.limits()
            image = clipped(source.upright(image, index), low, high)
        else:
            centre, width = self._window
            image = clipped(image, centre - width / 2, centre + width / 2)
            image = 1 - image if source.inverse else image
        return image if self._window is None else image.astype(np.float32)

    def _resized(self, source, indices):
        return [resize(image, self._size) for image in self._decode(source, indices)]

    def _piece(self, row):
        """Rows that are decoded together: one, or all of a compressed volume."""
        source = self._rows[row][0]
        if not source.is_whole:
            return [row]
        start = stop = row
        while start > 0 and self._rows[start - 1][0] is source:
            start -= 1
        while stop < len(self) and self._rows[stop][0] is source:
            stop += 1
        return list(range(start, stop))

    def _request(self, row):
        """Begin to decode an image that is neither there nor on its way."""
        if row not in self._kept and row not in self._pending:
            piece = self._piece(row)
            source, frames = self._rows[row][0], [self._rows[one][1] for one in piece]
            future = self._submit(self._resized, source, frames)
            self._pending.update(dict.fromkeys(piece, (piece, future)))

    def _take(self, row):
        """An image, which is waited for."""
        self._request(row)
        if row in self._pending:
            piece, future = self._pending[row]
            for one in piece:
                del self._pending[one]
            try:
                self._kept.update(zip(piece, future.result()))
            except Exception as error:
                raise broken(self._rows[row][0].path, error) from error
        image = self._kept[row]
        most = max(self._room, len(self._piece(row)))
        while len(self._kept) > most:
            del self._kept[next(iter(self._kept))]  # the oldest
        return image

    def _read(self, rows):
        if self._pool is not None and self._pool[0] != os.getpid():
            self._start()  # threads do not survive a fork, and what they were decoding would never come
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        plan = iter(rows)
        if rows and rows[-1] - rows[0] == len(rows) - 1:
            # A reader that goes through the images will want as many again.
            plan = iter(range(rows[0], min(rows[-1] + 1 + len(rows), len(self))))
        with self._lock:
            for row in islice(plan, self._room // 2):
                self._request(row)
            for i, row in enumerate(rows):
                out[i] = self._take(row)
                for ahead in islice(plan, 1):
                    self._request(ahead)
        return out

    def __getitem__(self, index: Any) -> NDArray[Any]:
        rows = np.arange(len(self))[index]
        images = self._read(np.atleast_1d(rows).tolist())
        return images[0] if np.ndim(rows) == 0 else images

    def __len__(self) -> int:
        return len(self._rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __repr__(self):
        n_files = len({source.path for source, _ in self._rows})
        return f"ImageFiles of {n_files} files: shape {self.shape}, dtype {self.dtype}"

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._size, *([3] if self._channels == 3 else [])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self._dtype

    @property
    def _room(self):
        """Number of decoded images that are kept."""
        return max(2, KEPT_BYTES // (int(np.prod(self.shape[1:])) * self.dtype.itemsize))

    @property
    def paths(self) -> list[Path]:
        return [source.path for source, _ in self._rows]

    @property
    def frames(self) -> NDArray[np.int64]:
        return np.array([frame for _, frame in self._rows])

    @property
    def groups(self) -> NDArray[np.str_] | None:
        groups = [self._groups[source] for source, _ in self._rows]
        return None if None in groups else np.array(groups)

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.array([source.size for source, _ in self._rows])

    @property
    def spacings(self) -> NDArray[np.float64]:
        return np.array([source.spacing for source, _ in self._rows])

    def affine(self, row: int) -> NDArray[np.float64] | None:
        """Place of an image in the world.

        Parameters
        ----------
        row : int
            Number of the image.

        Returns
        -------
        affine : (4, 4) ndarray, or None
            Matrix that maps (row, column, 0, 1) of a pixel in the original image to its place in mm, in axes
            that point right, to the front and up. None if the file does not say.
        """
        source, frame = self._rows[row]
        return source.affine(frame)

    def original(self, row: int) -> NDArray[Any]:
        """An image in its original size, with the channels and the intensities of the others.

        Parameters
        ----------
        row : int
            Number of the image.

        Returns
        -------
        image : (h, w) or (h, w, 3) ndarray
            Image as it was before `size`.
        """
        return next(self.originals([row]))

    def originals(self, rows: Iterable[int]) -> Iterator[NDArray[Any]]:
        """Yield `original` of several images. A compressed volume is read once for all that follow in it.

        Parameters
        ----------
        rows : iterable of int
            Numbers of the images.

        Yields
        ------
        image : (h, w) or (h, w, 3) ndarray
            Image as it was before `size`.
        """
        for source, pairs in groupby((self._rows[row] for row in rows), key=itemgetter(0)):
            yield from self._decode(source, [frame for _, frame in pairs])

    def take(self, rows: Any) -> Self:
        """Some of the images, in a sequence of their own that is as lazy.

        Parameters
        ----------
        rows : slice, int array or bool array
            Images to take, as they would index an array.

        Returns
        -------
        files : ImageFiles
            Sequence of those images.
        """
        taken = copy(self)
        taken._rows = [self._rows[row] for row in np.arange(len(self))[rows].tolist()]
        return taken


def read_folder(folder: PathLike | str, pattern: str | None = None, **options: Any) -> ImageFiles:
    """Images of all files in a folder and its subfolders, in natural order: 9.png before 10.png.

    Hidden files and folders, and files of other formats are ignored.

    Parameters
    ----------
    folder : path
        Folder to search.
    pattern : str, default=None
        Glob pattern of the files, relative to the folder. ``"*.png"`` leaves out subfolders,
        ``"**/T1*.nii.gz"`` takes some files of each. None takes all.
    **options : dict
        Parameters of `ImageFiles`.

    Returns
    -------
    files : ImageFiles
        Sequence of the images.

    Raises
    ------
    ValueError
        If there are no images, and in the cases of `ImageFiles`.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    found = [
        path
        for path in folder.glob(pattern or "**/*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and format_of(path)
    ]
    if not found:
        words = "" if pattern is None else f" that match {pattern!r}"
        raise ValueError(f"{folder} has no images{words}; endings that are read: {ENDINGS}")
    return ImageFiles(sorted(found, key=natural_order), **options)


def broken(path, error):
    message = f"{path} cannot be read: {type(error).__name__}: {error}; on_error='skip' leaves such files out"
    return ValueError(message)


def list_errors(errors):
    counts = Counter(errors.values()).most_common(3)
    return "".join(f"; {n} times {message}" for message, n in counts)
