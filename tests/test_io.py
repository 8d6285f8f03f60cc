"""ImageFiles on pictures and arrays: what is read, what is refused, and how a sequence is read."""

import pickle
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.model_selection import GroupKFold, cross_validate
from spoilt import check_spoilt

import skanomaly.io._files as module
from skanomaly import AutoEncoder, FeatureGaussian
from skanomaly.datasets import load_chest_xray
from skanomaly.features import ImageFeatures
from skanomaly.io import ImageFiles, read_folder
from skanomaly.io._formats import open_source
from skanomaly.io._pictures import Picture

GREY = load_chest_xray().images[:8]
WIDE = 128 + GREY.astype(np.uint16) * 8  # values of a CT, 128 to 2168
COLOUR = np.stack([GREY, np.roll(GREY, 5, axis=1), 255 - GREY], axis=-1)


@pytest.fixture
def folder(tmp_path):
    """Folder of eight grey PNG files."""
    for i, image in enumerate(GREY):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return tmp_path


def png(path, values):
    """PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def with_alpha(image):
    image = image.copy()
    image.putalpha(Image.fromarray(GREY[1]))
    return image


grey, colour, wide = Image.fromarray(GREY[0]), Image.fromarray(COLOUR[0]), Image.fromarray(WIDE[0])
# ADAPTIVE would be another choice of colours; a palette of 256 greys is exact.
PICTURES = {
    "grey": (grey, GREY[0], ("png", "tif", "bmp")),
    "16 bits": (wide, WIDE[0], ("png", "tif")),
    "colour": (colour, COLOUR[0], ("png", "tif", "bmp")),
    "palette of grey": (grey.convert("P"), GREY[0], ("png", "bmp")),
    "two values": (grey.point(lambda v: 255 * (v > 99), "1"), 255 * (GREY[0] > 99), ("png", "tif", "bmp")),
}


@pytest.mark.parametrize(("name", "ending"), [(name, e) for name, (_, _, es) in PICTURES.items() for e in es])
def test_pictures_are_read_as_they_are(tmp_path, name, ending):
    image, expected, _ = PICTURES[name]
    image.save(tmp_path / f"scan.{ending}")
    (read,) = ImageFiles(tmp_path / f"scan.{ending}")
    assert_array_equal(read, expected)
    assert read.dtype == (np.uint16 if name == "16 bits" else np.uint8)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_palette_of_colours_is_looked_up(tmp_path, ending):
    image = colour.quantize(16)
    image.save(tmp_path / f"scan.{ending}")
    assert_array_equal(ImageFiles(tmp_path / f"scan.{ending}")[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize(("image", "expected"), [(grey, GREY[0]), (colour, COLOUR[0])], ids=["LA", "RGBA"])
def test_alpha_is_dropped_with_a_warning(tmp_path, image, expected, ending):
    with_alpha(image).save(tmp_path / f"scan.{ending}")
    with pytest.warns(UserWarning, match=rf"alpha was dropped from 1 files, the first .*scan\.{ending}"):
        files = ImageFiles(tmp_path / f"scan.{ending}")
    assert_array_equal(files[0], expected)


def test_a_transparent_palette_is_alpha_too(tmp_path):
    grey.convert("P").save(tmp_path / "scan.png", transparency=bytes(range(256)))
    with pytest.warns(UserWarning, match="alpha was dropped"):
        files = ImageFiles(tmp_path / "scan.png")
    assert_array_equal(files[0], GREY[0])


def test_jpeg_is_read_in_the_orientation_of_its_camera(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    grey.crop((0, 0, 64, 40)).save(tmp_path / "scan.jpg", exif=tags, quality=95)
    files = ImageFiles(tmp_path / "scan.jpg")
    assert files.shape == (1, 64, 40)
    assert_array_equal(files.sizes, [[64, 40]])
    assert_allclose(files[0].astype(int), np.rot90(GREY[0][:40], -1), atol=25)


@pytest.mark.parametrize("values", [COLOUR[0], np.dstack([GREY[0]] * 2)], ids=["RGB", "LA"])
def test_pngs_that_pillow_would_spoil_are_refused(tmp_path, values):
    png(tmp_path / "deep.png", values.astype(np.uint16) * 200)
    with pytest.raises(ValueError, match=r"deep\.png.*8 of the 16 bits.*TIFF"):
        ImageFiles(tmp_path / "deep.png")


FLOATS = np.linspace(-1, 2, GREY[0].size).reshape(GREY[0].shape)
PAGES = {"photometric": "minisblack"}
TIFFS = {
    "16 bits": (WIDE[0], {}),
    "signed": (WIDE[0].astype(np.int16) - 1000, {}),
    "colours of 16 bits": (COLOUR[0].astype(np.uint16) * 200, {"photometric": "rgb"}),
    "planes": (np.moveaxis(COLOUR[0], -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
    "float32": (FLOATS.astype(np.float32), {}),
    "float64": (FLOATS, {}),
    "big endian": (WIDE[0], {"byteorder": ">"}),
    "deflate": (WIDE[0], {"compression": "zlib", "predictor": True}),
    "tiles": (WIDE[0], {"tile": (32, 32)}),
}


@pytest.mark.parametrize("name", TIFFS)
def test_tiffs_keep_their_values(tmp_path, name):
    values, options = TIFFS[name]
    tifffile.imwrite(tmp_path / "scan.tif", values, **options)
    (read,) = ImageFiles(tmp_path / "scan.tif")
    expected = np.moveaxis(values, 0, -1) if name == "planes" else values
    assert_array_equal(read, expected.astype(np.float32) if name == "float64" else expected)
    assert read.dtype == (np.float32 if name == "float64" else values.dtype)
    assert read.dtype.isnative


def test_no_image_of_a_tiff_is_lost(tmp_path):
    with tifffile.TiffWriter(tmp_path / "kinds.tif") as file:
        for image in GREY[0], GREY[1], GREY[0][:3, :3]:
            file.write(image, contiguous=False)
    tifffile.imwrite(tmp_path / "stack.tif", GREY, truncate=True)
    for name, message in {
        "kinds": "pages must be of one size",
        "stack": f"{len(GREY)} images are in 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            ImageFiles(tmp_path / f"{name}.tif")
    with tifffile.TiffWriter(tmp_path / "preview.tif") as file:
        file.write(GREY[0])
        file.write(GREY[0][::2, ::2], subfiletype=1)
    assert_array_equal(ImageFiles(tmp_path / "preview.tif")[:], GREY[:1])


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_low_whites_of_pillow_are_turned_round(tmp_path, compression):
    Image.fromarray(GREY[0] > 99).save(tmp_path / "a.tif", compression=compression, tiffinfo={262: 0})
    expected = np.asarray(Image.open(tmp_path / "a.tif")) * 255
    assert_array_equal(ImageFiles(tmp_path / "a.tif")[0], expected)


def test_tiffs_whose_white_is_low_are_turned_round(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 65535 - WIDE[0], photometric="miniswhite")
    assert_array_equal(ImageFiles(tmp_path / "a.tif")[0], WIDE[0])
    assert_allclose(ImageFiles(tmp_path / "a.tif", window=(1128, 2000))[0], (WIDE[0] - 128.0) / 2000)


@pytest.mark.parametrize("name", ["grey", "16 bits", "colour"])
@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_compressions_are_read_by_tifffile_or_pillow(tmp_path, name, compression):
    image, expected, _ = PICTURES[name]
    image.save(tmp_path / "scan.tif", compression=compression)
    assert_array_equal(ImageFiles(tmp_path / "scan.tif")[0], expected)


def test_a_compression_of_pillow_alone_has_pages_and_a_low_white(tmp_path):
    first, *others = map(Image.fromarray, 65535 - WIDE)
    options = {"compression": "tiff_lzw", "save_all": True, "append_images": others}
    first.save(tmp_path / "stack.tif", tiffinfo={262: 0}, **options)
    with tifffile.TiffFile(tmp_path / "stack.tif") as file:
        assert {page.photometric.name for page in file.pages} == {"MINISWHITE"}
    assert_array_equal(ImageFiles(tmp_path / "stack.tif"), WIDE)


def test_pages_of_a_tiff_are_images(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", WIDE, **PAGES)
    files = ImageFiles(tmp_path / "stack.tif")
    assert_array_equal(files, WIDE)
    assert_array_equal(files.frames, range(8))
    assert set(files.groups) == {str(tmp_path / "stack.tif")}


ARRAYS = {"grey": GREY[0], "stack": WIDE, "colour": COLOUR[0], "colours": COLOUR, "float64": FLOATS}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed], ids=["npy", "npz", "small npz"])
def test_arrays_of_numpy(tmp_path, save, name):
    array = ARRAYS[name]
    save(tmp_path / "images", array)
    files = read_folder(tmp_path)
    expected = array if name in ("stack", "colours") else array[None]
    assert_array_equal(files, expected.astype(files.dtype))
    assert files.dtype == (np.float32 if name == "float64" else array.dtype)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": GREY[0], "b": GREY[1]}, r"must hold one array, got \['a.npy', 'b.npy'\]"),
        ({"a": COLOUR[None]}, r"must be \(H, W\)"),
        ({"a": np.array([["x"]])}, "must be real numbers, got dtype <U1"),
        ({"a": GREY[0] * 1j}, "must be real numbers"),
        ({"a": GREY[:0]}, r"it holds 0 images of \(64, 64\) pixels"),
        ({"a": GREY[:, :0]}, r"it holds 8 images of \(0, 64\) pixels"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ImageFiles(tmp_path / "a.npz")


# The sequence.


def test_detectors_take_files_as_they_take_the_array(folder):
    files = read_folder(folder)
    assert (files.shape, files.ndim, files.dtype, len(files)) == ((8, 64, 64), 3, np.uint8, 8)
    detector = FeatureGaussian(backbone="filters", random_state=0).fit(files)
    array = FeatureGaussian(backbone="filters", random_state=0).fit(GREY)
    assert_array_equal(detector.score_samples(files), array.score_samples(GREY))
    assert_array_equal(detector.anomaly_map(files), array.anomaly_map(GREY))
    trained = AutoEncoder(hidden_size=4, max_epochs=1, random_state=0).fit(files)
    assert_array_equal(trained.score_samples(files), trained.score_samples(GREY))


def test_scikit_learn_takes_files(folder):
    files = read_folder(folder, groups=r"(\d)\.png")
    rows = ImageFeatures(backbone="filters", input_size=16)
    assert_array_equal(rows.fit_transform(files), rows.fit_transform(GREY))
    scores = cross_validate(
        FeatureGaussian(backbone="filters", random_state=0),
        files,
        groups=files.groups,
        cv=GroupKFold(2),
        scoring=lambda detector, X, y=None: detector.score_samples(X).mean(),
    )
    assert np.isfinite(scores["test_score"]).all()


def test_a_sequence_can_be_sent_to_another_process(folder):
    files = read_folder(folder)
    files[0:4]
    sent = pickle.loads(pickle.dumps(files))
    assert_array_equal(sent, GREY)
    assert sent.paths == files.paths


INDICES = st.one_of(
    st.slices(8),
    st.integers(-8, 7),
    st.lists(st.integers(-8, 7), max_size=20).map(lambda rows: np.array(rows, int)),
    st.lists(st.booleans(), min_size=8, max_size=8).map(np.array),
)


@given(indices=st.lists(INDICES, max_size=5), room=st.integers(2, 9))
def test_any_index_reads_what_an_array_gives(tmp_path_factory, indices, room):
    path = tmp_path_factory.getbasetemp() / "stack.npz"
    if not path.exists():
        np.savez(path, WIDE)
    for images in ImageFiles(path), ImageFiles([path]).take(np.arange(7, -1, -1)):
        array = np.asarray(images)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "KEPT_BYTES", room * WIDE[0].nbytes)
            for index in indices:
                assert_array_equal(images[index], array[index])


def test_an_index_beyond_the_end_is_an_error(folder):
    with pytest.raises(IndexError):
        read_folder(folder)[8]


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded."""
    names, values = [], Picture.values

    def noted(self, index):
        names.append(self.path.name)
        return values(self, index)

    monkeypatch.setattr(Picture, "values", noted)
    return names


def test_hidden_folders_and_folders_like_files_are_not_read(folder):
    (folder / ".cache").mkdir()
    (folder / "0.png").rename(folder / ".cache" / "0.png")
    (folder / "scan.nii").mkdir()
    assert [path.name for path in read_folder(folder).paths] == [f"{i}.png" for i in range(1, 8)]


def test_an_error_ends_what_was_begun(folder, monkeypatch):
    """Else a process would read all files to the end before it ends."""
    (folder / "0.png").write_bytes(b"broken")
    opened = []

    def slow(path, plane):
        opened.append(path)
        time.sleep(0.05)
        return open_source(path, plane)

    monkeypatch.setattr(module, "open_source", slow)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 0)
    with pytest.raises(ValueError, match=r"0\.png cannot be read"):
        read_folder(folder)
    time.sleep(0.2)
    assert len(opened) <= 4


@pytest.mark.parametrize("value", [64, (64,), (0, 3), "64"])
def test_a_size_is_a_pair(folder, value):
    with pytest.raises(ValueError, match=r"size must be \(height, width\)"):
        ImageFiles(folder / "1.png", size=value)


def test_images_are_decoded_once_and_ahead(folder, decoded):
    files = read_folder(folder)
    assert not decoded
    for start in range(0, 8, 2):
        assert_array_equal(files[start : start + 2], GREY[start : start + 2])
        files._pool[1].submit(int).result()
        expected = range(min(start + 4, 8))
        assert set(decoded) >= {f"{i}.png" for i in range(start + 2)}
        assert set(decoded) <= {f"{i}.png" for i in expected}
    assert len(decoded) == 8
    assert not files._pending


def test_decoding_goes_on_in_other_threads(folder, monkeypatch):
    """The next images are there before they are asked for."""
    files = read_folder(folder)
    files[0:4]
    files._pool[1].shutdown(wait=True)
    assert all(files._pending[row][1].done() for row in range(4, 8))
    assert {thread.name.split("_")[0] for thread in threading.enumerate()} >= {"MainThread"}


def test_threads_are_kept_and_replaced_after_a_fork(folder, monkeypatch):
    files = read_folder(folder)
    pool = files._pool
    assert_array_equal(files[0:2], GREY[:2])
    assert files._pool is pool
    files._pending[5] = [5], Future()  # what a thread of the parent was at
    monkeypatch.setattr(module.os, "getpid", lambda: -1)
    assert_array_equal(files[:], GREY)
    assert files._pool is not pool


def test_memory_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 3 * GREY[0].nbytes)
    files, waiting, take = read_folder(folder), [], ImageFiles._take

    def noted(self, row):
        waiting.append(len(self._pending))
        return take(self, row)

    monkeypatch.setattr(ImageFiles, "_take", noted)
    for _ in range(2):
        assert_array_equal(files[:], GREY)
        assert len(files._kept) <= 3
    assert max(waiting) <= 3


def test_files_that_were_taken_are_a_sequence_of_their_own(folder):
    files = read_folder(folder, groups=r"\d")
    files[:]
    for index in slice(1, 8, 2), np.array([5, 0, 5]), files.groups == "3":
        taken = files.take(index)
        assert_array_equal(taken, GREY[index])
        assert taken.paths == [files.paths[i] for i in np.arange(8)[index]]
        assert_array_equal(taken.groups, files.groups[index])


# One rule for all files.


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (Image.fromarray(WIDE[0]), {}, r"one kind of values: .*0\.png has uint8, .*odd\.png has uint16"),
        (colour, {}, r"one kind of channels: .*0\.png has 1, .*odd\.png has 3; set channels=1 or channels=3"),
        (
            grey.resize((64, 32)),
            {},
            r"one kind of size: .*0\.png has \(64, 64\), .*odd\.png has \(32, 64\); set",
        ),
        (wide.resize((9, 9)), {"size": (64, 64)}, "one kind of values"),
        (wide, {"window": (100, 200)}, "one kind of values"),
    ],
)
def test_files_of_two_kinds_are_refused_by_name(folder, other, options, message):
    other.save(folder / "odd.png")
    with pytest.raises(ValueError, match=message):
        read_folder(folder, **options)


def test_files_that_are_scaled_one_by_one_may_differ_in_depth(folder):
    wide.save(folder / "odd.png")
    files = read_folder(folder, window="percentiles")
    assert_allclose(files[0], files[8], atol=1e-6)
    assert (files[0].min(), files[0].max()) == (0, 1)


def test_sizes_and_channels_are_made_equal(folder):
    colour.resize((100, 80)).save(folder / "odd.png")
    files = read_folder(folder, channels=1, size=(32, 48))
    assert files.shape == (9, 32, 48)
    assert files.sizes.tolist() == 8 * [[64, 64]] + [[80, 100]]
    expected = np.asarray(colour.resize((100, 80)).convert("L")).astype(int)
    assert_allclose(files.original(8), expected, atol=1)
    files = read_folder(folder, channels=3, size=(32, 48))
    assert files.shape == (9, 32, 48, 3)
    assert_array_equal(files[0], np.repeat(files[0][..., :1], 3, axis=-1))


@pytest.mark.parametrize("size", [(32, 32), (17, 80), (128, 64)])
def test_resized_images_keep_type_and_mean_in_every_type(tmp_path, size):
    """The bytes of Pillow are the measure: types of other widths go through float32."""
    for name, values in {"u1": GREY, "u2": GREY * np.uint16(256), "f4": GREY / np.float32(255)}.items():
        np.save(tmp_path / f"{name}.npy", values)
    u1, u2, f4 = (ImageFiles(tmp_path / f"{name}.npy", size=size) for name in ("u1", "u2", "f4"))
    assert [x.dtype for x in (u1, u2, f4)] == [np.uint8, np.uint16, np.float32]
    assert_allclose(u2[:] / 256, u1, atol=1)
    assert_allclose(f4[:] * 255, u1, atol=1)
    np.save(tmp_path / "f8.npy", GREY * 256.0)
    assert_array_equal(u2, np.rint(ImageFiles(tmp_path / "f8.npy", size=size)))
    assert_allclose(f4[:].mean((1, 2)) * 255, GREY.mean((1, 2)), atol=1)


def test_a_window_is_one_rule_for_all(folder):
    files = read_folder(folder, window=(100, 50))
    assert_allclose(files, np.clip((GREY - 75.0) / 50, 0, 1), atol=1e-6)
    assert files.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "lungs"}, "window must be .* got 'lungs'"),
        ({"window": (3, 0)}, "with a width above 0"),
        ({"window": "lung"}, r"in Hounsfield units, not uint8 as in .*0\.png"),
        ({"size": (0, 3)}, "size must be"),
        ({"size": (3,)}, "size must be"),
        ({"channels": 2}, "channels must be"),
        ({"plane": "z"}, "plane must be"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"groups": "x.png"}, r"matches nothing in .*0\.png"),
        ({"pattern": "*.dcm"}, "has no images that match"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        read_folder(folder, **options)


def test_the_window_of_a_file_is_one_of_dicom(folder):
    with pytest.raises(ValueError, match="needs DICOM files"):
        read_folder(folder, window="file")[0]


# Broken files.


@pytest.fixture
def broken(folder):
    """Folder of eight files, and four that cannot be read."""
    whole = (folder / "0.png").read_bytes()
    (folder / "8 cut.png").write_bytes(whole[:-600])
    (folder / "8 empty.png").write_bytes(b"")
    (folder / "8 text.tif").write_text("no image")
    np.save(folder / "8 nan.npy", np.full((64, 64), np.nan))
    return folder


def test_a_broken_file_is_named(broken):
    for path in broken.glob("8*"):
        with pytest.raises(ValueError, match=f"{path.name} cannot be read: .*on_error='skip'"):
            ImageFiles(path)[:]


def test_broken_files_are_left_out_and_listed(broken):
    (broken / "8 nan.npy").unlink()
    files = read_folder(broken, on_error="skip")
    assert_array_equal(files, GREY)
    assert sorted(Path(path).name for path in files.errors_) == ["8 cut.png", "8 empty.png", "8 text.tif"]
    assert "truncated" in files.errors_[str(broken / "8 cut.png")]
    with pytest.raises(ValueError, match="no file could be read; 1 times UnidentifiedImageError"):
        ImageFiles(broken / "8 empty.png", on_error="skip")


def test_empty_images_are_left_out_on_request(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY[0] * 0, GREY[1], GREY[0] * 0 + 9, GREY[3]]), **PAGES)
    files = ImageFiles(tmp_path / "a.tif", drop_empty=True)
    assert_array_equal(files, GREY[[1, 3]])
    assert_array_equal(files.frames, [1, 3])


@pytest.mark.parametrize("ending", ["png", "tif", "npy"])
def test_the_limit_of_pillow_holds_for_all_formats(tmp_path, monkeypatch, ending):
    path = tmp_path / f"bomb.{ending}"
    np.save(path, GREY[0]) if ending == "npy" else grey.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(ValueError, match="bomb.*DecompressionBombError.*exceeds limit of 4094 pixels"):
        ImageFiles(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert_array_equal(ImageFiles(path)[0], GREY[0])


def test_a_decompression_bomb_is_refused_before_it_is_read(tmp_path):
    Image.new("1", (13500, 13500)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 50_000
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read: DecompressionBombError"):
        read_folder(tmp_path)
    grey.save(tmp_path / "scan.png")
    files = read_folder(tmp_path, on_error="skip")
    assert_array_equal(files, GREY[:1])
    assert "DecompressionBombError" in files.errors_[str(tmp_path / "bomb.png")]


@given(data=st.data(), ending=st.sampled_from(["png", "tif", "bmp", "npy", "npz", "jpg"]))
@pytest.mark.filterwarnings("ignore")
def test_spoilt_bytes_are_an_error_with_the_name(tmp_path_factory, data, ending):
    path = tmp_path_factory.getbasetemp() / f"spoilt.{ending}"
    if ending[:2] == "np":
        np.savez(path, GREY[0, :8, :8]) if ending == "npz" else np.save(path, GREY[0, :8, :8])
    else:
        Image.fromarray(GREY[0, :8, :8]).save(path)
    check_spoilt(path, data)


# Folders and names.


def test_names_with_spaces_and_other_letters_in_natural_order(tmp_path):
    names = ["Ödem 9.png", "Ödem 10.png", "läsion nº 2/a b.png", "肺/1.png"]
    for name, image in zip(names, GREY):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    for name in "notes.txt", "._1.png", "Thumbs.db", "LIESMICH":
        (tmp_path / name).write_text("no image")
    files = read_folder(str(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in files.paths] == [
        names[2],
        names[0],
        names[1],
        names[3],
    ]
    assert_array_equal(files, GREY[[2, 0, 1, 3]])
    assert len(read_folder(tmp_path, "Ö*")) == 2


def test_a_pattern_finds_patients_in_names(folder):
    assert read_folder(folder).groups is None
    assert read_folder(folder, groups=r"(\d)\.png").groups.tolist() == list("01234567")
    assert read_folder(folder, groups=r"\d\.p").groups.tolist() == [f"{i}.p" for i in range(8)]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "it is a folder; read it by skanomaly.io.read_folder"),
        ("none.png", "there is no such file"),
        ("notes.txt", "its format is none of those that are read: .bmp, .dcm"),
    ],
)
def test_paths_that_are_no_images(tmp_path, path, message):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=message):
        ImageFiles(tmp_path / path)


def test_there_must_be_files(tmp_path):
    with pytest.raises(NotADirectoryError, match="none is no folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no images; endings that are read: .bmp"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match=r"has no images that match '\*.png'; endings that are read: .bmp"):
        read_folder(tmp_path, "*.png")
    with pytest.raises(ValueError, match="no file"):
        ImageFiles([])


@pytest.mark.parametrize(("name", "ending"), [("pydicom", "dcm"), ("nibabel", "nii")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name, ending):
    (tmp_path / f"scan.{ending}").write_bytes(b"")
    monkeypatch.setitem(sys.modules, name, None)
    for on_error in "raise", "skip":
        with pytest.raises(ImportError, match=rf'{name} is needed.*pip install "skanomaly\[medical\]"'):
            read_folder(tmp_path, on_error=on_error)
