"""ImageFiles on DICOM and NIfTI: pydicom's and nibabel's own files, and files made from them."""

import itertools
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from spoilt import check_spoilt

from skanomaly import FeatureGaussian
from skanomaly.io import ImageFiles, read_folder

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIFTI = Path(nibabel.__file__).parent / "tests" / "data"
CT, MR = DICOM / "CT_small.dcm", DICOM / "MR_small.dcm"
BRAIN = NIFTI / "anatomical.nii"


def change(path, source=CT, **elements):
    """Copy of a DICOM file with other elements; None leaves one out."""
    dataset = pydicom.dcmread(source)
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path


# DICOM.


def test_ct_is_in_hounsfield_units():
    files = ImageFiles(CT)
    dataset = pydicom.dcmread(CT)
    assert_array_equal(files[0], dataset.pixel_array * 1.0 - 1024)
    assert (files.dtype, files.shape) == (np.float32, (1, 128, 128))
    assert files.groups.tolist() == [dataset.PatientID] == ["1CT1"]
    assert_array_equal(files.spacings, [dataset.PixelSpacing])


@pytest.mark.filterwarnings("ignore:The pixel data is")
@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "padded", "jp2klossless"])
def test_one_image_in_many_encodings(name):
    assert_array_equal(ImageFiles(DICOM / f"MR_small_{name}.dcm"), ImageFiles(MR))


def test_detectors_take_dicom_without_endings(tmp_path):
    """Such names are usual: 1.2.840.113619."""
    for i in range(6):
        dataset = pydicom.dcmread(MR)
        dataset.PixelData = np.roll(dataset.pixel_array, i, axis=0).tobytes()
        dataset.PatientID = f"P{i // 2}"
        dataset.save_as(tmp_path / (f"1.2.840.{i}" if i else "IM"))
    (tmp_path / "DATA").write_text("none of DICOM")
    files = read_folder(tmp_path)
    assert files.groups.tolist() == ["P0", "P1", "P1", "P2", "P2", "P0"]  # IM comes last
    detector = FeatureGaussian(backbone="filters", random_state=0).fit(files)
    array = FeatureGaussian(backbone="filters", random_state=0).fit(np.asarray(files))
    assert_array_equal(detector.score_samples(files), array.score_samples(np.asarray(files)))


@pytest.mark.filterwarnings("ignore")
def test_every_file_of_pydicom_is_read_or_listed():
    """What pydicom decodes with Pillow is read, with its values; the rest is told why."""
    read = {}
    for path in sorted(DICOM.glob("*.dcm")):
        try:
            read[path.name] = ImageFiles(path)[:]
        except ValueError as error:
            refused = str(error)
            assert f"{path} cannot be read" in refused  # noqa: PT017
    assert len(read) >= 40
    assert "image_dfl.dcm" in read  # deflated as a whole
    for name, images in read.items():
        dataset = pydicom.dcmread(DICOM / name)
        stored = pixel_array(dataset)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset) >> 8
        elif dataset.SamplesPerPixel == 1:
            stored = apply_modality_lut(stored, dataset)
        assert_allclose(images.reshape(np.shape(stored)), stored, rtol=1e-6)


def test_frames_are_images():
    files = ImageFiles(DICOM / "examples_ybr_color.dcm")
    assert files.shape == (30, 240, 320, 3)
    assert files.dtype == np.uint8
    assert_array_equal(files.frames, range(30))
    assert set(files.groups) == {"204"}
    assert_array_equal(files[[0, 29]], pixel_array(DICOM / "examples_ybr_color.dcm")[[0, 29]])


def test_windows_by_pair_by_name_and_by_file(tmp_path):
    hounsfield = ImageFiles(CT)[0]
    lung = ImageFiles(CT, window="lung")
    assert_allclose(lung[0], np.clip((hounsfield + 600 + 750) / 1500, 0, 1), atol=1e-6)
    assert_array_equal(lung, ImageFiles(CT, window=(-600, 1500)))
    assert (lung.dtype, lung[0].min() >= 0, lung[0].max()) == (np.float32, True, 1)

    path = change(tmp_path / "a.dcm", WindowCenter=[100, 0], WindowWidth=[400, 1])
    dataset = pydicom.dcmread(path)
    expected = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = (slope - 1024 for slope in (-32768, 32767))  # the stored bits, after the rescale
    assert_allclose(ImageFiles(path, window="file")[0], (expected - low) / (high - low), atol=1e-6)
    assert_allclose(ImageFiles(path, window="file"), ImageFiles(path, window=(99.5, 399)), atol=1e-6)

    path = change(tmp_path / "b.dcm", WindowCenter=100, WindowWidth=400, VOILUTFunction="SIGMOID")
    expected = 1 / (1 + np.exp(-4 * (hounsfield - 100) / 400))
    assert_allclose(ImageFiles(path, window="file")[0], expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"CT_small\.dcm .*the file has none; give window="):
        ImageFiles(CT, window="file")[:]


def test_a_table_of_the_file_is_a_window_too(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [1000, -500, 12], [i * 4 for i in range(1000)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    table["LUTDescriptor"].VR = "SS"
    path = change(tmp_path / "a.dcm", VOILUTSequence=[table])
    expected = 4 * np.clip(ImageFiles(CT)[0] + 500, 0, 999) / 4095
    assert_allclose(ImageFiles(path, window="file")[0], expected, atol=1e-6)


def test_monochrome1_is_turned_round_by_the_stored_bits(tmp_path):
    path = change(tmp_path / "a.dcm", MR, PhotometricInterpretation="MONOCHROME1")
    plain = ImageFiles(MR)[0]
    assert_array_equal(ImageFiles(path)[0], -1 - plain)  # signed, 16 bits, no rescale
    assert_allclose(ImageFiles(path, window=(900, 600))[0], 1 - ImageFiles(MR, window=(900, 600))[0])
    expected = 1 - ImageFiles(MR, window="file")[0]
    assert_allclose(ImageFiles(path, window="file")[0], expected, atol=1e-6)
    assert_allclose(
        ImageFiles(path, window="percentiles")[0], 1 - ImageFiles(MR, window="percentiles")[0], atol=1e-6
    )
    # Both kinds in one set: after that they are comparable.
    assert ImageFiles([path, MR]).shape == (2, 64, 64)
    ends = {"PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11}
    path = change(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, **ends)
    assert_array_equal(ImageFiles(path)[0], 2 * (4095 - pydicom.dcmread(path).pixel_array) - 1024.0)


def test_a_rescale_of_each_frame_counts(tmp_path):
    """In an enhanced file rescale, window and place may be those of a frame, or shared."""
    dataset = pydicom.dcmread(CT)
    stored = dataset.pixel_array
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelSpacing, dataset.ImagePositionPatient
    dataset.NumberOfFrames, dataset.PixelData = 2, np.stack([stored, stored]).tobytes()
    frames = []
    for i in range(2):
        frame, rescale, window, place = Dataset(), Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = 1 + i, -1000
        window.WindowCenter, window.WindowWidth = 100 * i, 401
        place.ImagePositionPatient = [1, 2, 3 + i]
        frame.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [rescale], [window]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.25]
    shared.PixelMeasuresSequence = [measures]
    dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence = frames, [shared]
    dataset.save_as(tmp_path / "enhanced.dcm")
    files = ImageFiles(tmp_path / "enhanced.dcm")
    assert_array_equal(files, np.stack([stored - 1000.0, stored * 2.0 - 1000]))
    windowed = ImageFiles(tmp_path / "enhanced.dcm", window="file")
    assert_allclose(windowed[1], np.clip((files[1] - 99.5) / 400 + 0.5, 0, 1), atol=1e-6)
    assert_array_equal(files.spacings, 2 * [[0.5, 0.25]])
    assert_array_equal([files.affine(i)[:3, 3] for i in range(2)], [[-1, -2, 3], [-1, -2, 4]])


def test_the_place_of_a_pixel_of_dicom(tmp_path):
    """Formula C.7.6.2.1-1 of the standard, in axes that point right and to the front."""
    dataset, affine = pydicom.dcmread(MR), ImageFiles(MR).affine(0)
    along_row, along_column = np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float)
    between_rows, between_columns = dataset.PixelSpacing
    row, column = 5, 7
    place = np.array(dataset.ImagePositionPatient, float)
    place += along_row * between_columns * column + along_column * between_rows * row
    assert_allclose((affine @ [row, column, 0, 1])[:3], place * [-1, -1, 1])
    assert ImageFiles(DICOM / "examples_rgb_color.dcm").affine(0) is None
    del dataset.PixelSpacing
    dataset.save_as(tmp_path / "no_spacing.dcm")
    assert ImageFiles(tmp_path / "no_spacing.dcm").affine(0) is None


def test_depths_differ_by_bits_but_not_in_ct(tmp_path):
    bits = {"BitsStored": 12, "HighBit": 11}
    a, b = change(tmp_path / "a.dcm", MR, **bits), change(tmp_path / "b.dcm", CT, **bits)
    with pytest.raises(ValueError, match=r"MR_small.dcm has grey of 16 bits, .*a.dcm has grey of 12 bits"):
        ImageFiles([MR, MR, a])
    with pytest.raises(ValueError, match=r"MR_small.dcm has grey of 16 bits, .*CT_small.dcm has HU"):
        ImageFiles([MR, CT], size=(64, 64))
    assert ImageFiles([CT, b], size=(64, 64)).shape == (2, 64, 64)
    with pytest.raises(ValueError, match="window='lung' is in Hounsfield units, not grey of 16 bits as in"):
        ImageFiles(MR, window="lung")


def test_groups_without_a_patient_are_studies(tmp_path):
    path = change(tmp_path / "a.dcm", PatientID="")
    assert ImageFiles(path).groups.tolist() == [str(pydicom.dcmread(CT).StudyInstanceUID)]
    assert ImageFiles(path, groups=r"(\w)\.dcm").groups.tolist() == ["a"]
    path = change(tmp_path / "b.dcm", PatientID=None, StudyInstanceUID=None)
    assert ImageFiles([CT, path]).groups is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MR_truncated", "cannot be read"),
        ("test-SR", "DICOM file of modality SR has no images"),
        ("no_meta", "InvalidDicomError"),
        ("MR_small_jpeg_ls_lossless", "missing dependencies"),
    ],
)
@pytest.mark.filterwarnings("ignore:The pixel data length")
def test_broken_dicom_is_named(tmp_path, name, message):
    with pytest.raises(ValueError, match=f"{name}.dcm cannot be read: .*{message}|{message}"):
        ImageFiles(DICOM / f"{name}.dcm")[:]
    for source in CT, DICOM / f"{name}.dcm":
        shutil.copy(source, tmp_path)
    files = read_folder(tmp_path, on_error="skip")
    assert [path.name for path in files.paths] == ["CT_small.dcm"]
    assert list(files.errors_) == [str(tmp_path / f"{name}.dcm")]


@given(data=st.data(), name=st.sampled_from(["a.dcm", "b.dcm", "a.nii", "a.nii.gz"]))
@pytest.mark.filterwarnings("ignore")
def test_spoilt_bytes_are_an_error_with_the_name(tmp_path_factory, data, name):
    path = tmp_path_factory.getbasetemp() / f"spoilt {name}"
    if "nii" in name:
        nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), path)
    else:
        shutil.copy(MR if name == "a.dcm" else DICOM / "SC_rgb_small_odd.dcm", path)
    check_spoilt(path, data)


def test_bombs_of_dicom_and_nifti_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for path in CT, BRAIN:
        with pytest.raises(ValueError, match="DecompressionBombError"):
            ImageFiles(path)


# NIfTI.

PLANES = "axial", "coronal", "sagittal"


def turned(codes):
    """The brain with its axes in another order."""
    image = nibabel.load(BRAIN)
    orientation = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
    )
    return image.as_reoriented(orientation)


ORDERS = [codes for axes in itertools.permutations(("LR", "PA", "SI")) for codes in itertools.product(*axes)]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slices_are_upright_whatever_the_order_of_axes(tmp_path, plane, ending):
    assert len(ORDERS) == 48
    expected, affine = ImageFiles(BRAIN, plane=plane), ImageFiles(BRAIN, plane=plane).affine(3)
    for codes in ORDERS:
        path = tmp_path / f"{''.join(codes)}{ending}"
        nibabel.save(turned(codes), path)
        files = ImageFiles(path, plane=plane)
        assert nibabel.aff2axcodes(nibabel.load(path).affine) == codes
        assert_array_equal(files, expected)
        assert_array_equal(files[3], expected[3])
        assert_allclose(files.affine(3), affine, atol=1e-5)


@pytest.mark.parametrize("plane", PLANES)
def test_the_right_is_left_and_the_head_is_up(tmp_path, plane):
    """A bright voxel near the patient's right, front and top."""
    volume = np.zeros((20, 24, 28), np.float32)
    volume[16, 20, 25] = 1
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 2, 3, 1])), tmp_path / "a.nii")
    files = ImageFiles(tmp_path / "a.nii", plane=plane)
    index, row, column = np.argwhere(np.asarray(files))[0]
    height, width = files.shape[1:]
    assert (row < height / 2, column < width / 2) == (True, True)
    assert_allclose(files.affine(index) @ [row, column, 0, 1], [16, 40, 75, 1])
    expected = {"axial": (2, 1), "coronal": (3, 1), "sagittal": (3, 2)}[plane]
    assert_allclose(files.spacings[0], expected)


def test_slices_of_oblique_volumes_have_their_place(tmp_path):
    image = nibabel.load(BRAIN)
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = np.asarray(image.dataobj)
    nibabel.save(nibabel.Nifti1Image(volume, turn @ image.affine), tmp_path / "a.nii")
    oblique = nibabel.load(tmp_path / "a.nii")
    for plane in PLANES:
        files = ImageFiles(tmp_path / "a.nii", plane=plane)
        for index, row, column in [(0, 0, 0), (3, 5, 7)]:
            world = files.affine(index) @ [row, column, 0, 1]
            voxel = np.linalg.inv(oblique.affine) @ world
            assert_allclose(voxel, np.rint(voxel), atol=1e-4)
            assert files[index][row, column] == volume[tuple(np.rint(voxel[:3]).astype(int))]


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
def test_stored_values_are_scaled(tmp_path, kind):
    """A file of bytes with a slope holds the same values as one of floats."""
    volume = np.random.default_rng(0).random((9, 8, 7))
    image = nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1]))
    image.set_data_dtype(kind)
    nibabel.save(image, tmp_path / "a.nii.gz")
    files = ImageFiles(tmp_path / "a.nii.gz")
    assert_allclose(np.asarray(files), volume.transpose(2, 1, 0), atol=0.004)
    assert files.dtype == np.float32


def test_a_volume_of_8_bits_is_another_depth(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"anatomical.nii has volume, .*a.nii has volume of 8 bits"):
        ImageFiles([BRAIN, tmp_path / "a.nii"], size=(8, 8))
    scaled = nibabel.Nifti1Image(np.linspace(0, 900, 64).reshape(4, 4, 4), np.eye(4))
    scaled.set_data_dtype(np.uint8)
    nibabel.save(scaled, tmp_path / "b.nii")
    assert ImageFiles([BRAIN, tmp_path / "b.nii"], size=(8, 8)).shape == (29, 8, 8)


def test_axes_of_time_are_refused_unless_of_one(tmp_path):
    with pytest.raises(ValueError, match=r"functional.nii .*must have 3 axes, got \(17, 21, 3, 20\)"):
        ImageFiles(NIFTI / "functional.nii")
    image = nibabel.load(BRAIN)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine), tmp_path / "a.nii")
    assert_array_equal(ImageFiles(tmp_path / "a.nii"), ImageFiles(BRAIN))


def test_empty_slices_are_left_out_and_percentiles_are_of_a_volume(tmp_path):
    volume = np.asarray(nibabel.load(BRAIN).dataobj).copy()
    volume[..., :4] = volume[..., 20:] = 0
    nibabel.save(nibabel.Nifti1Image(volume, nibabel.load(BRAIN).affine), tmp_path / "a.nii.gz")
    files = ImageFiles(tmp_path / "a.nii.gz", drop_empty=True)
    assert_array_equal(files.frames, range(4, 20))
    assert_array_equal(files, ImageFiles(tmp_path / "a.nii.gz")[4:20])
    assert set(files.groups) == {str(tmp_path / "a.nii.gz")}
    low, high = np.percentile(volume, (1, 99))
    scaled = ImageFiles(tmp_path / "a.nii.gz", drop_empty=True, window="percentiles")
    assert_allclose(scaled, np.clip((np.asarray(files) - low) / (high - low), 0, 1), atol=1e-6)


def test_a_compressed_volume_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.load(BRAIN), path)
    files, loads, load = ImageFiles([path, BRAIN]), [], nibabel.load
    monkeypatch.setattr(nibabel, "load", lambda path: loads.append(path) or load(path))
    monkeypatch.setattr("skanomaly.io._files.KEPT_BYTES", 1)
    for i in range(25):
        files[i]
    assert loads.count(path) == 1
