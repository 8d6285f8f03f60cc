"""Masks and maps in the size and geometry of their files."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from skimage.transform import resize
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline

import skanomaly
from skanomaly import FeatureGaussian
from skanomaly.datasets import load_chest_xray
from skanomaly.io import ImageFiles, read_folder, write_maps, write_masks
from skanomaly.preprocessing import CropToForeground, Resize

BRAIN = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
GREY = load_chest_xray().images[:4]
PLANES = "axial", "coronal", "sagittal"


@pytest.fixture
def folder(tmp_path):
    """Folder with pictures in two sizes, one of them in a subfolder."""
    (tmp_path / "in" / "new scans").mkdir(parents=True)
    for i, image in enumerate(GREY):
        size = (100, 80) if i % 2 else (64, 64)
        Image.fromarray(image).resize(size).save(tmp_path / "in" / ("new scans" if i else "") / f"ä {i}.png")
    return tmp_path / "in"


def some_masks(shape, seed=0):
    return np.random.default_rng(seed).random(shape) > 0.7


def test_masks_have_the_original_size_and_place(folder, tmp_path):
    files = read_folder(folder, size=(32, 32))
    masks = np.zeros(files.shape, bool)
    masks[:, 8:16, 4:20] = True
    paths = write_masks(tmp_path / "out", masks, files)
    names = ["new scans/ä 1", "new scans/ä 2", "new scans/ä 3", "ä 0"]
    assert paths == [tmp_path / "out" / f"{name}_mask.png" for name in names]
    assert [path.relative_to(folder).as_posix() for path in files.paths] == [f"{name}.png" for name in names]
    for path, (height, width) in zip(paths, files.sizes):
        written = np.asarray(Image.open(path))
        expected = np.zeros((height, width), np.uint8)
        expected[height // 4 : height // 2, width // 8 : width * 5 // 8] = 255
        assert written.shape == (height, width)
        # The nearest place: a border between two pixels may fall to either.
        assert (written != expected).mean() < 0.03
        assert set(np.unique(written)) == {0, 255}


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 99))
def test_masks_of_any_size_are_the_nearest_pixels(tmp_path_factory, size, seed):
    folder = tmp_path_factory.getbasetemp() / "nearest"
    folder.mkdir(exist_ok=True)
    Image.fromarray(GREY[0, :20, :30]).save(folder / "a.png")
    files = ImageFiles(folder / "a.png", size=size)
    masks = some_masks(files.shape, seed)
    (path,) = write_masks(folder / "out", masks, files)
    rows, columns = (np.arange(20) + 0.5) * size[0] / 20, (np.arange(30) + 0.5) * size[1] / 30
    # The middle of a pixel may fall on the border of two.
    clear = np.ix_(*(np.abs(places - np.rint(places)) > 1e-6 for places in (rows, columns)))
    expected = masks[0][np.ix_(rows.astype(int), columns.astype(int))]
    assert_array_equal((np.asarray(Image.open(path)) == 255)[clear], expected[clear])


def test_masks_of_the_size_of_the_files_come_back_as_they_are(folder, tmp_path):
    files = read_folder(folder / "new scans", "*[13].png")
    masks = some_masks(files.shape)
    paths = write_masks(tmp_path / "out", masks, files)
    assert_array_equal(np.stack([np.asarray(Image.open(path)) == 255 for path in paths]), masks)
    assert_array_equal(write_masks(tmp_path / "out", masks.astype(int).tolist(), files), paths)


def test_maps_are_16_bits_on_one_scale(folder, tmp_path):
    files = read_folder(folder, size=(32, 32))
    maps = np.random.default_rng(0).normal(size=files.shape)
    maps[0] *= 1e-3
    paths = write_maps(tmp_path / "out", maps, files)
    assert [path.name for path in paths] == ["ä 1_map.tif", "ä 2_map.tif", "ä 3_map.tif", "ä 0_map.tif"]
    for path, raw, size in zip(paths, maps, files.sizes):
        with tifffile.TiffFile(path) as file:
            stored, limits = file.asarray(), json.loads(file.pages[0].description)
        assert (stored.dtype, stored.shape) == (np.uint16, tuple(size))
        assert limits == {"low": maps.min(), "high": maps.max()}
        values = limits["low"] + stored / 65535 * (limits["high"] - limits["low"])
        assert_allclose(values, resize(raw, size, order=1, mode="edge"), atol=2e-3)


def test_limits_of_maps_can_be_given(folder, tmp_path):
    files = read_folder(folder / "new scans", "*[13].png")
    maps = np.linspace(0, 4, np.prod(files.shape)).reshape(files.shape)
    maps[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="limits must be finite numbers"):
        write_maps(tmp_path / "out", maps, files)
    paths = write_maps(tmp_path / "out", maps, files, limits=(1, 3))
    expected = np.rint(np.clip((maps.astype(np.float32) - 1) / 2, 0, 1) * 65535)
    assert_allclose(np.stack([tifffile.imread(path) for path in paths]), expected, atol=1)
    # Read again, they are images like others.
    assert_allclose(ImageFiles(paths), expected, atol=1)


def test_maps_of_one_value_can_be_written(folder, tmp_path):
    files = read_folder(folder / "new scans", "*1.png")
    (path,) = write_maps(tmp_path / "out", np.full(files.shape, 3.0), files)
    assert not tifffile.imread(path).any()


def test_overlays_show_the_image_and_what_was_found(folder, tmp_path):
    files = read_folder(folder / "new scans", "*[13].png")
    masks = np.zeros(files.shape, bool)
    masks[:, 10:20, 30:50] = True
    mask, overlay = write_masks(tmp_path / "out", masks, files, overlay=True)[:2]
    assert (mask.name, overlay.name) == ("ä 1_mask.png", "ä 1_mask_overlay.png")
    picture = np.asarray(Image.open(overlay)).astype(int)
    outline = np.zeros((80, 100), bool)
    outline[10:20, 30:50] = True
    outline[11:19, 31:49] = False
    assert_array_equal(picture[~outline], np.repeat(files[0][~outline][:, None], 3, axis=1))
    assert (picture[outline][:, 0] > picture[outline][:, 1] + 60).all()
    maps = np.zeros(files.shape)
    maps[1, 40:, 50:] = 2
    paths = write_maps(tmp_path / "out", maps, files, overlay=True)
    assert paths[3].name == "ä 3_map_overlay.png"
    picture = np.asarray(Image.open(paths[3])).astype(int)
    assert_array_equal(picture[:40], np.repeat(files[1][:40, :, None], 3, axis=2))
    assert (picture[40:, 50:, 0] > picture[40:, 50:, 1]).all()


def test_overlays_have_the_original_size(folder, tmp_path):
    files = read_folder(folder / "new scans", "*[13].png", size=(16, 16))
    masks = np.zeros(files.shape, bool)
    masks[:, 12:, 12:] = True  # in the corner, where its outline is closed, too
    for path, image in zip(write_masks(tmp_path, masks, files, overlay=True)[1::2], [GREY[1], GREY[3]]):
        picture = np.asarray(Image.open(path)).astype(int)
        assert_array_equal(picture[:50, :, 0], np.asarray(Image.fromarray(image).resize((100, 80)))[:50])
        assert (picture[-1, -20:, 0] > picture[-1, -20:, 1] + 60).all()


@pytest.mark.parametrize("kind", ["u2", "f4", "f4 of a window"])
def test_overlays_of_other_depths_are_neither_black_nor_white(tmp_path, kind):
    wide = 128 + GREY.astype("u2") * 8
    np.save(tmp_path / "a.npy", wide if kind == "u2" else wide / np.float32(3000))
    files = ImageFiles(tmp_path / "a.npy", window=(0.4, 0.6) if "window" in kind else None)
    paths = write_masks(tmp_path, np.zeros(files.shape, bool), files, overlay=True)
    assert paths[-1].name == "a_0003_mask_overlay.png"
    picture = np.asarray(Image.open(paths[-1]))
    assert 60 < picture.mean() < 200
    assert picture.std() > 30


def test_files_that_differ_in_their_endings_have_their_own(tmp_path):
    for name in "a.png", "a.tif", "b.png", "b.c.png":
        Image.fromarray(GREY[0]).save(tmp_path / name)
    files = read_folder(tmp_path)
    names = [path.name for path in write_masks(tmp_path, np.zeros(files.shape, bool), files)]
    assert names == ["a_png_mask.png", "a_tif_mask.png", "b.c_mask.png", "b_mask.png"]
    assert_array_equal(ImageFiles(tmp_path / "a.png")[0], GREY[0])


@pytest.mark.parametrize("names", [("a.png", "a.tif", "a_png.png"), ("a.png", "a.png")])
def test_no_file_takes_the_place_of_another(tmp_path, names):
    for name in names:
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / name)
    files = ImageFiles([tmp_path / name for name in names])
    with pytest.raises(ValueError, match="files must have names of their own"):
        write_masks(tmp_path / "out", np.zeros((len(names), 8, 8), bool), files)
    assert not (tmp_path / "out").exists()


def test_pages_have_numbers(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="minisblack")
    files = ImageFiles(tmp_path / "a.tif").take([3, 1])
    masks = some_masks(files.shape)
    paths = write_masks(tmp_path / "out", masks, files)
    assert [path.name for path in paths] == ["a_0003_mask.png", "a_0001_mask.png"]
    assert_array_equal([np.asarray(Image.open(path)) == 255 for path in paths], masks)


@pytest.mark.parametrize(
    ("write", "values", "error", "message"),
    [
        (
            write_masks,
            np.zeros((4, 32, 31), bool),
            ValueError,
            r"masks must have the shape of files, \(4, 32, 32\)",
        ),
        (write_masks, np.zeros((3, 32, 32), bool), ValueError, r"got \(3, 32, 32\)"),
        (write_masks, np.full((4, 32, 32), 0.5), ValueError, "masks must hold booleans"),
        (write_maps, np.zeros((32, 32)), ValueError, "maps must have the shape"),
        (write_maps, np.full((4, 32, 32), np.nan), ValueError, "limits must be finite"),
    ],
)
def test_wrong_masks_and_maps(folder, tmp_path, write, values, error, message):
    with pytest.raises(error, match=message):
        write(tmp_path / "out", values, read_folder(folder, size=(32, 32)))


# Volumes.


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_volumes_come_back_in_their_geometry(tmp_path, plane, ending):
    source = nibabel.load(BRAIN)
    nibabel.save(source, tmp_path / f"scan{ending}")
    files = ImageFiles(tmp_path / f"scan{ending}", plane=plane)
    (path,) = write_maps(tmp_path / "out", np.asarray(files), files)
    assert path == tmp_path / "out" / f"scan_map{ending}"
    maps = nibabel.load(path)
    assert_array_equal(maps.affine, source.affine)
    assert_array_equal(maps.get_fdata(), source.get_fdata())
    assert maps.header["sform_code"] == source.header["sform_code"]
    masks = some_masks(files.shape)
    some = files.take(slice(3, 9))
    (path,) = write_masks(tmp_path / "out", masks[3:9], some)
    mask = nibabel.load(path)
    assert (mask.get_data_dtype(), mask.shape) == (np.uint8, source.shape)
    assert_array_equal(mask.affine, source.affine)
    assert_array_equal(ImageFiles(path, plane=plane)[3:9], masks[3:9])
    assert np.asarray(mask.dataobj).sum() == masks[3:9].sum()


def test_masks_have_the_axes_of_their_source(tmp_path):
    """A time axis of length 1, and one single slice, which is a volume all the same."""
    for shape in ((20, 24, 9, 1), (20, 24, 1)):
        volume = nibabel.Nifti1Image(np.ones(shape, np.float32), np.diag([1, 2, 3, 1]))
        nibabel.save(volume, tmp_path / "a.nii")
        files = ImageFiles(tmp_path / "a.nii")
        assert set(files.groups) == {str(tmp_path / "a.nii")}
        (path,) = write_masks(tmp_path / "out", np.ones(files.shape, bool), files)
        mask = nibabel.load(path)
        assert mask.shape == shape
        assert np.asarray(mask.dataobj).all()


def test_a_compressed_volume_is_read_once_for_its_overlays(tmp_path, monkeypatch):
    nibabel.save(nibabel.load(BRAIN), tmp_path / "a.nii.gz")
    files, load, loads = ImageFiles(tmp_path / "a.nii.gz"), nibabel.load, []
    monkeypatch.setattr(nibabel, "load", lambda path: loads.append(path) or load(path))
    paths = write_masks(tmp_path / "out", np.zeros(files.shape, bool), files, overlay=True)
    assert [path.name for path in paths[:2]] == ["a_mask.nii.gz", "a_0000_mask_overlay.png"]
    assert len(paths) == 1 + 25
    assert len(loads) == 2  # its header, and its slices


def test_a_scaled_volume_lends_no_slope(tmp_path):
    image = nibabel.Nifti1Image(np.random.default_rng(0).random((5, 6, 7)), np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii")
    files = ImageFiles(tmp_path / "a.nii")
    masks, maps = some_masks(files.shape), np.asarray(files) * 1e5
    (path,) = write_masks(tmp_path, masks, files)
    assert_array_equal(ImageFiles(path), masks)
    (path,) = write_maps(tmp_path, maps, files)
    assert_array_equal(ImageFiles(path), maps)


class Brightness(BaseEstimator):
    """A detector whose map is the image."""

    def fit(self, X, y=None):
        return self

    def anomaly_map(self, X):
        return np.asarray(X)


STEPS = [], [CropToForeground(), Resize((48, 40))]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(("size", "steps"), [(None, STEPS[0]), ((48, 40), STEPS[0]), (None, STEPS[1])])
def test_a_planted_lesion_is_found_at_its_place_in_the_world(tmp_path, plane, size, steps):
    """From an oblique volume to a mask in its geometry: slices of another size, steps, and a detector."""
    source = nibabel.load(BRAIN)
    turn = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.2, 0.1, 0.3), [5, -7, 11])
    affine, volume = turn @ source.affine, np.asarray(source.dataobj).astype(np.float32)
    volume[[0, 1, 2, -3, -2, -1]] = volume[:, [0, 1, -2, -1]] = 0  # a dark frame, to be cut off
    lesion = 20, 25, 12
    ball = ((np.indices(volume.shape) - np.reshape(lesion, (3, 1, 1, 1))) ** 2).sum(axis=0) < 9
    for name, values in {"normal": volume, "new": np.where(ball, 2 * volume.max(), volume)}.items():
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    normal, new = (ImageFiles(tmp_path / f"{n}.nii.gz", plane=plane, size=size) for n in ("normal", "new"))
    # In voxels; the features of a FeatureGaussian are of cells of several pixels.
    for detector, tolerance in (Brightness(), 0.75), (FeatureGaussian(backbone="filters", random_state=0), 5):
        made = make_pipeline(*steps, detector).fit(normal)
        maps = skanomaly.anomaly_map(made, new)
        (path,) = write_masks(tmp_path / "out", maps > maps.max() * 0.8, new)
        mask = nibabel.load(path)
        assert_array_equal(mask.affine, nibabel.load(tmp_path / "new.nii.gz").affine)
        assert mask.shape == volume.shape
        centre = np.argwhere(np.asarray(mask.dataobj)).mean(axis=0)
        found, place = (nibabel.affines.apply_affine(affine, voxel) for voxel in (centre, lesion))
        assert np.linalg.norm(found - place) < tolerance * np.linalg.norm(affine[:3, :3], axis=0).max()
