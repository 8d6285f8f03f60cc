"""NIfTI volumes as slices, and volumes of slices in the geometry of a file."""

import numpy as np

from ._source import Source, import_medical

#: Axis across each plane in a volume whose axes run left, to the back and up, as those of DICOM.
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}


class Nifti(Source):
    """NIfTI volume, whose slices are images as a radiologist sees them, whatever the order of its axes.

    The patient's right is on the left of axial and coronal slices, the front on the left of sagittal ones.
    The front is at the top of axial slices, the head at the top of the others.
    """

    channels, dtype = 1, np.dtype(np.float32)

    def __init__(self, path, plane):
        self.axis, self.patient = PLANES[plane], str(path)
        self.is_whole = path.suffix == ".gz"
        super().__init__(path)

    def open(self):
        nibabel = import_medical("nibabel")
        image = nibabel.load(self.path)
        # Trailing axes of length 1 are common.
        shape = image.shape[:3]
        if len(shape) < 3 or np.prod(image.shape[3:]) != 1 or 0 in shape:
            raise ValueError(f"a volume must have 3 axes, got {image.shape}; save its volumes one by one")
        orientations = nibabel.orientations
        self.turn = orientations.ornt_transform(
            orientations.io_orientation(image.affine), orientations.axcodes2ornt("LPS")
        )
        turned = [shape[int(axis)] for axis in np.argsort(self.turn[:, 0])]
        self.volume_affine = image.affine @ orientations.inv_ornt_aff(self.turn, shape)
        self.n_images = turned[self.axis]
        self.turned_shape = tuple(turned)
        columns, rows = (axis for axis in range(3) if axis != self.axis)
        self.size = turned[rows], turned[columns]
        zooms = np.linalg.norm(self.volume_affine[:3, :3], axis=0)
        self.spacing = float(zooms[rows]), float(zooms[columns])
        # The header no longer has its slope once it is read.
        scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
        is_byte = image.get_data_dtype() == np.uint8 and not scaled
        self.unit = "volume of 8 bits" if is_byte else "volume"

    def images(self, indices):
        nibabel = import_medical("nibabel")
        data = nibabel.load(self.path).dataobj
        across, direction = next((axis, step) for axis, (to, step) in enumerate(self.turn) if to == self.axis)
        whole = np.asarray(data, dtype=np.float32) if self.is_whole else None
        for index in indices:
            where = [slice(None)] * 3 + [0] * (data.ndim - 3)
            start = index if direction > 0 else self.n_images - 1 - index
            where[across] = slice(start, start + 1)
            part = np.asarray((data if whole is None else whole)[tuple(where)], dtype=np.float32)
            (plane,) = np.moveaxis(nibabel.apply_orientation(part, self.turn), self.axis, 0)
            yield np.ascontiguousarray(plane.T if self.axis == 2 else plane.T[::-1])

    def values(self, index):
        return next(self.images([index]))

    def volume(self, images, dtype):
        """nibabel image of this file's geometry that holds images by index; other slices are 0.

        Parameters
        ----------
        images : iterable of (index, (H, W) array)
        dtype : dtype
        """
        nibabel = import_medical("nibabel")
        turned = np.zeros(self.turned_shape, dtype)
        planes = np.moveaxis(turned, self.axis, 0)
        for index, image in images:
            planes[index] = image.T if self.axis == 2 else image[::-1].T
        orientations = nibabel.orientations
        source = nibabel.load(self.path)
        back = orientations.ornt_transform(
            orientations.axcodes2ornt("LPS"), orientations.io_orientation(source.affine)
        )
        header = source.header.copy()
        header.set_data_dtype(dtype)
        data = nibabel.apply_orientation(turned, back).reshape(source.shape)
        return type(source)(data, source.affine, header)

    def affine(self, index):
        columns, rows = (axis for axis in range(3) if axis != self.axis)
        to_voxel = np.zeros((4, 4))
        to_voxel[rows, 0], to_voxel[columns, 1], to_voxel[self.axis, 2] = 1, 1, 1
        to_voxel[self.axis, 3], to_voxel[3, 3] = index, 1
        if self.axis != 2:
            to_voxel[rows, 0], to_voxel[rows, 3] = -1, self.size[0] - 1
        return self.volume_affine @ to_voxel
