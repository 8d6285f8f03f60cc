"""DICOM files: rescale, window of the file, MONOCHROME1, frames, place in the patient."""

import numpy as np

from ._source import Source, import_medical


class Dicom(Source):
    """DICOM file, each of whose frames is an image; grey values are float32 after the rescale."""

    def open(self):
        header = self.header()
        photometric = header.get("PhotometricInterpretation")
        if photometric is None or "Rows" not in header:
            raise ValueError(f"DICOM file of modality {header.get('Modality')} has no images")
        self.size = header.Rows, header.Columns
        self.n_images = int(header.get("NumberOfFrames") or 1)
        self.is_palette = photometric == "PALETTE COLOR"
        self.channels = 1 if photometric.startswith("MONOCHROME") else 3
        self.inverse = photometric == "MONOCHROME1"
        bits = header.BitsStored
        if self.channels == 1:
            self.dtype = np.dtype(np.float32)
            # CT is in Hounsfield units, however many bits its values are stored in.
            self.unit = "HU" if header.get("Modality") == "CT" else f"grey of {bits} bits"
        else:
            self.dtype = np.dtype(np.uint8 if self.is_palette else f"uint{header.BitsAllocated}")
            self.unit = f"colours of {8 if self.is_palette else bits} bits"
        self.patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or "") or None
        measures = section(header, 0, "PixelMeasuresSequence", "PixelSpacing")
        spacing = measures.get("PixelSpacing") or header.get("ImagerPixelSpacing")
        if spacing:
            self.spacing = tuple(map(float, spacing))

    def header(self):
        return import_medical("pydicom").dcmread(self.path, stop_before_pixels=True)

    def values(self, index):
        pydicom, pixels = import_medical("pydicom"), import_medical("pydicom.pixels")
        if self.n_images > 1:
            header = self.header()
            stored = pixels.pixel_array(self.path, index=index)
        else:  # from a path, pydicom reads no deflated file
            header = pydicom.dcmread(self.path)
            stored = pixels.pixel_array(header)
        if self.is_palette:
            coloured = pixels.apply_color_lut(stored, header)
            return (coloured >> 8).astype(np.uint8) if coloured.itemsize == 2 else coloured
        return stored if self.channels == 3 else self.rescaled(stored, header, index)

    def rescaled(self, stored, header, index):
        modality = section(header, index, "PixelValueTransformationSequence", "RescaleSlope")
        return import_medical("pydicom.pixels").apply_modality_lut(stored, modality).astype(np.float32)

    def upright(self, values, index):
        if not self.inverse:
            return values
        # The ends are those of the stored bits, not of this image: one rule for all files.
        header = self.header()
        signed, n_values = header.PixelRepresentation, 2**header.BitsStored
        lowest = -n_values // 2 if signed else 0
        ends = self.rescaled(np.array([lowest, lowest + n_values - 1]), header, index)
        return ends.sum() - values

    def windowed_by_file(self, values, index):
        pydicom, pixels = import_medical("pydicom"), import_medical("pydicom.pixels")
        if self.channels != 1:
            raise ValueError("window='file' needs grey images, got colours")
        header = self.header()
        table = section(header, index, "FrameVOILUTSequence", "VOILUTSequence")
        if table.get("VOILUTSequence"):
            bits = table.VOILUTSequence[0].LUTDescriptor[2]
            return pixels.apply_voi(np.rint(values).astype(int), table) / (2**bits - 1)
        window = section(header, index, "FrameVOILUTSequence", "WindowCenter")
        if not window.get("WindowWidth"):
            raise ValueError("window='file', and the file has none; give window=(centre, width)")
        # pydicom spreads a window over the range of the stored bits, here of 16, without a rescale.
        bare = pydicom.Dataset()
        bare.PhotometricInterpretation, bare.BitsStored, bare.PixelRepresentation = "MONOCHROME2", 16, 0
        for name in "WindowCenter", "WindowWidth", "VOILUTFunction":
            if name in window:
                setattr(bare, name, window[name].value)
        return pixels.apply_windowing(values, bare) / (2**16 - 1)

    def affine(self, index):
        header = self.header()
        position = section(header, index, "PlanePositionSequence", "ImagePositionPatient")
        orientation = section(header, index, "PlaneOrientationSequence", "ImageOrientationPatient")
        known = position.get("ImagePositionPatient"), orientation.get("ImageOrientationPatient")
        if not all(known) or not np.isfinite(self.spacing).all():
            return None
        along_row, along_column = np.reshape(orientation.ImageOrientationPatient, (2, 3)).astype(float)
        columns = [
            along_column * self.spacing[0],
            along_row * self.spacing[1],
            np.cross(along_row, along_column),
            position.ImagePositionPatient,
        ]
        affine = np.eye(4)
        affine[:3] = np.transpose(columns).astype(float)
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM points left and to the back


def section(header, index, macro, name):
    """Part of the header that holds an attribute of a frame: of this frame, of all, or the header itself."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*per_frame[index : index + 1], *(header.get("SharedFunctionalGroupsSequence") or [])]:
        for item in group.get(macro) or []:
            if name in item:
                return item
    return header
