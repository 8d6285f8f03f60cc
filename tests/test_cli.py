"""The command line: folders to a detector, and to tables, masks and maps; errors and interruptions."""

import csv
import sys

import nibabel
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from typer.testing import CliRunner

from skanomaly import _cli as cli
from skanomaly import persistence
from skanomaly.__main__ import main
from skanomaly._discovery import all_detectors
from skanomaly.io import read_folder
from skanomaly.testing import make_images

FILTERS = "--set", "backbone=filters", "--set", "input_size=16"
TINY = [f"--set={name}={value}" for name, value in {"hidden_size": 8, "width": 2, "latent_size": 2}.items()]


def run(*arguments, status=0):
    """Standard output and error of a command that ends with this status."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


def write(folder, images, name="image {} ä.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(number))
    return folder


@pytest.fixture
def folders(tmp_path):
    normal = write(tmp_path / "normal", make_images((40, 16, 16)))
    more = write(tmp_path / "more", make_images((30, 16, 16), seed=1))
    new = write(tmp_path / "new", make_images((12, 16, 16), seed=2))
    return normal, more, new


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_folders_become_a_detector_and_tables(folders, tmp_path):
    normal, more, new = folders
    file, out = tmp_path / "det.skanomaly", tmp_path / "out"
    said, _ = run("fit", normal, "-o", file, *FILTERS, "--calibrate", more, "--false-alarm-rate", "0.1")
    assert "FeatureGaussian learned 40 images, is calibrated on 30" in said
    said, _ = run("predict", file, new, "-o", out)
    detector, files = persistence.load(file), read_folder(new)
    scores, p, maps = -detector.score_samples(files), detector.p_value(files), detector.anomaly_map(files)
    table = rows_of(out / "scores.csv")
    assert [row["file"] for row in table] == [str(path) for path in files.paths]
    assert_allclose([float(row["score"]) for row in table], scores)
    assert_allclose([float(row["p_value"]) for row in table], p)
    labels = np.where(detector.predict(files) == -1, "anomalous", "normal")
    assert [row["label"] for row in table] == list(labels)
    assert f"{(labels == 'anomalous').sum()} of 12 images are anomalous" in said
    assert files.paths[scores.argmax()].name in said.splitlines()[4]
    masks = detector.segment(files)
    for number, mask in enumerate(masks):
        written = np.asarray(Image.open(out / "masks" / f"image {number} ä_mask.png"))
        assert_array_equal(written > 0, mask)
        assert (out / "maps" / f"image {number} ä_map.tif").exists()
    areas = np.zeros(12)
    for row in rows_of(out / "regions.csv"):
        areas[[str(path) for path in files.paths].index(row["file"])] += float(row["area"])
    assert_array_equal(areas, masks.sum((1, 2)))
    assert maps.shape == (12, 16, 16)
    assert sorted(path.name for path in out.iterdir()) == [
        "maps",
        "masks",
        "regions.csv",
        "report.html",
        "scores.csv",
    ]
    run("predict", file, new, "-o", tmp_path / "bare", "--no-pictures")
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [
        "regions.csv",
        "report.html",
        "scores.csv",
    ]


def test_what_fit_noted_is_used_and_shown(folders, tmp_path):
    normal, _, new = folders
    file = tmp_path / "det.skanomaly"
    run("fit", normal, "-o", file, *FILTERS, "--size", "12", "--window", "100, 120", "--seed", "3")
    card = persistence.load(file).card_
    assert card["reading"]["size"] == (12, 12)
    assert card["reading"]["window"] == (100, 120)
    assert (card["n_train"], card["n_calibration"]) == (32, 8)
    run("predict", file, new, "-o", tmp_path / "out")
    said, _ = run("info", file)
    for words in "FeatureGaussian", "(1, 12, 12)", "random_state=3", "scikit-learn", card["fingerprint"]:
        assert words in said


def test_thumbnails_are_kept_only_if_asked_for(folders, tmp_path):
    normal, more, new = folders
    file, out = tmp_path / "det.skanomaly", tmp_path / "out"
    fit = (
        "fit",
        normal,
        "-o",
        file,
        "--calibrate",
        more,
        "--detector",
        "AutoEncoder",
        *TINY,
        "--set=max_epochs=1",
    )
    run(*fit)
    assert not hasattr(persistence.load(file), "thumbnails_")
    run("predict", file, new, "-o", out)
    page = (out / "report.html").read_text()
    assert page.count("<figcaption>reconstruction") == 12
    assert "Normal images most like it" not in page
    run(*fit, "--keep-thumbnails")
    assert len(persistence.load(file).thumbnails_) == 40
    assert "thumbnails" in run("info", file)[0]
    run("predict", file, new, "-o", out)
    assert (out / "report.html").read_text().count("Normal images most like it") == 12


def test_masks_are_those_of_segment(folders, tmp_path, monkeypatch):
    """A ring in the map is flagged with its hole, in masks, regions and report alike."""
    normal, more, new = folders
    file, out = tmp_path / "det.skanomaly", tmp_path / "out"
    run("fit", normal, "-o", file, *FILTERS, "--calibrate", more)
    ring = np.zeros((12, 16, 16), np.float32)
    ring[:, 3:10, 3:10], ring[:, 5:8, 5:8] = 1e6, 0
    judged = [(slice(0, 12), np.zeros(12), ring)]
    monkeypatch.setattr("skanomaly.FeatureGaussian.iter_batches", lambda self, X: iter(judged))
    run("predict", file, new, "-o", out)
    assert {float(row["area"]) for row in rows_of(out / "regions.csv")} == {49}
    assert (np.asarray(Image.open(out / "masks" / "image 0 ä_mask.png")) > 0).sum() == 49
    assert "49 px at row 6" in (out / "report.html").read_text()


def test_maps_are_not_clipped(folders, tmp_path, monkeypatch):
    """The brightest of all maps is the upper limit, however far above the calibration it lies."""
    normal, more, new = folders
    file, out = tmp_path / "det.skanomaly", tmp_path / "out"
    run("fit", normal, "-o", file, *FILTERS, "--calibrate", more)
    maps = np.linspace(0, 1e6, 12 * 256, dtype=np.float32).reshape(12, 16, 16)
    judged = [(slice(0, 12), np.zeros(12), maps)]
    monkeypatch.setattr("skanomaly.FeatureGaussian.iter_batches", lambda self, X: iter(judged))
    run("predict", file, new, "-o", out)
    written = np.asarray(Image.open(out / "maps" / "image 11 ä_map.tif")).astype(int)
    assert (written == 65535).sum() == 1


def test_names_of_files_are_text(tmp_path):
    """Neither markup of the screen, nor necessarily UTF-8."""
    images = make_images((12, 16, 16))
    normal = write(tmp_path / "normal", images)
    new = write(tmp_path / "new", images[:1], "[left] {}.png")
    (new / "[left] 0.png").rename(new / "[left] \udcff.png")
    run("fit", normal, "-o", tmp_path / "det.skanomaly", *FILTERS)
    said, _ = run("predict", tmp_path / "det.skanomaly", new, "-o", tmp_path / "out")
    assert "[left] ?.png" in said
    assert b"[left] \xff.png" in (tmp_path / "out" / "scores.csv").read_bytes()


def test_new_files_may_be_named_otherwise(folders, tmp_path):
    normal, _, new = folders
    file = tmp_path / "det.skanomaly"
    run("fit", normal, "-o", file, *FILTERS, "--pattern", "image*.png", "--groups", r"image (\d+)")
    for path in list(new.iterdir()):
        path.rename(new / f"P{path.name.split()[1]}.png")
    _, error = run("predict", file, new, "-o", tmp_path / "out", status=1)
    assert "matches nothing" in error
    run("predict", file, new, "-o", tmp_path / "out", "--groups", r"P\d+", "--pattern", "P1*.png")
    assert [row["patient"] for row in rows_of(tmp_path / "out" / "scores.csv")] == ["P1", "P10", "P11"]
    run("predict", file, new, "-o", tmp_path / "out", "--groups", "")
    assert {row["patient"] for row in rows_of(tmp_path / "out" / "scores.csv")} == {""}


def test_broken_and_coloured_files_need_not_stop_a_fit(folders, tmp_path):
    normal, _, _ = folders
    (normal / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(normal / "colour.png")
    _, error = run("fit", normal, "-o", tmp_path / "det.skanomaly", *FILTERS, "--skip", "--channels", "1")
    assert "skipped: " in error
    assert "broken.png" in error


def test_what_is_written_where_is_asked_before_the_work(folders, tmp_path):
    normal, _, new = folders
    _, error = run("fit", normal, "-o", tmp_path, *FILTERS, status=1)
    assert "--output must be a file, got the folder" in error
    run("fit", normal, "-o", tmp_path / "later" / "det.skanomaly", *FILTERS)
    _, error = run("predict", tmp_path / "later" / "det.skanomaly", new, "-o", new / "results", status=1)
    assert "--output must not lie in" in error
    assert not (new / "results").exists()
    _, error = run("fit", normal, "-o", tmp_path / "a", "--calibrate", normal, *FILTERS, status=1)
    assert "--calibrate must be a folder of other images" in error


def test_without_its_packages_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skanomaly._cli", None)
    with pytest.raises(SystemExit, match=r'pip install "skanomaly\[cli\]"'):
        main()


def test_a_patient_is_on_one_side(tmp_path):
    folder = write(tmp_path / "normal", make_images((40, 16, 16)), "p{}.png")
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"patient {int(path.stem[1:]) // 4} {path.name}")
    files = read_folder(folder, groups=r"patient (\d+)")
    train, held_out = cli.split(files, 0)
    assert len(train) + len(held_out) == 40
    assert not set(train.groups) & set(held_out.groups)
    assert len(held_out) == 8


def test_a_broken_file(folders, tmp_path):
    normal, _, new = folders
    file = tmp_path / "det.skanomaly"
    run("fit", normal, "-o", file, *FILTERS)
    (new / "broken.png").write_bytes(b"no picture")
    _, error = run("predict", file, new, "-o", tmp_path / "out", status=1)
    assert "broken.png" in error
    assert len(error.strip().splitlines()) == 1
    _, error = run("predict", file, new, "-o", tmp_path / "out", "--skip")
    assert "skipped: " in error
    assert "broken.png" in error
    assert len(rows_of(tmp_path / "out" / "scores.csv")) == 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--detector", "Nope"], "there is no detector 'Nope'; there are AEU"),
        (["--set", "nope=3"], "Invalid parameter 'nope'"),
        (["--set", "backbone"], "--set needs KEY=VALUE, got 'backbone'"),
        ([*FILTERS, "--false-alarm-rate", "2"], "false_alarm_rate must lie between 0 and 1"),
        ([*FILTERS, "--calibrate", "nowhere"], "nowhere is no folder"),
        (["--window", "skin"], "window must be"),
        (["--window", "40"], "window must be (centre, width)"),
        (["--groups", "("], "missing ), unterminated subpattern"),
        (["--pattern", "/nowhere/*.png"], "Non-relative patterns are unsupported"),
        (["--channels", "2"], "channels must be 'auto', 1 or 3, got 2"),
    ],
)
def test_errors_are_one_line_and_write_nothing(options, words, folders, tmp_path):
    normal, *_ = folders
    _, error = run("fit", normal, "-o", tmp_path / "det.skanomaly", *options, status=1)
    assert error.strip().startswith("error: ")
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("det*"))


def test_wrong_usage_has_a_status_of_its_own(folders):
    run("fit", folders[0], status=2)


def test_files_of_others(folders, tmp_path):
    detector = dict(all_detectors())["FeatureGaussian"](backbone="filters").fit(make_images())
    persistence.save(detector, tmp_path / "other.skanomaly")
    _, error = run("predict", tmp_path / "other.skanomaly", folders[2], "-o", tmp_path / "out", status=1)
    assert "was not written by `skanomaly fit`" in error
    said, _ = run("info", tmp_path / "other.skanomaly")
    assert "FeatureGaussian" in said


def test_an_interrupted_fit_goes_on(folders, tmp_path, monkeypatch):
    normal, *_ = folders
    command = ["fit", normal, "--detector", "AutoEncoder", *TINY, "--set", "max_epochs=4"]
    run(*command, "-o", tmp_path / "whole")
    on_epoch_end = cli.Bars.on_epoch_end

    def interrupt(self, net, **kwargs):
        on_epoch_end(self, net, **kwargs)
        if len(net.history) == 3:
            raise KeyboardInterrupt

    file = tmp_path / "part"
    with monkeypatch.context() as patch:
        patch.setattr(cli.Bars, "on_epoch_end", interrupt)
        _, error = run(*command, "-o", file, status=130)
    assert "stopped; the same command goes on where it was" in error
    assert not file.exists()
    epochs = []

    def count(self, net, **kwargs):
        epochs.append(len(net.history))
        on_epoch_end(self, net, **kwargs)

    monkeypatch.setattr(cli.Bars, "on_epoch_end", count)
    run(*command, "-o", file)
    assert epochs == [3, 4]
    whole, part = (persistence.load(path) for path in (tmp_path / "whole", file))
    X = make_images((5, 16, 16), seed=4)
    assert_array_equal(part.score_samples(X), whole.score_samples(X))
    assert not file.with_name("part.checkpoint").exists()


def test_the_list_of_detectors():
    said, _ = run("detectors")
    for name, _cls in all_detectors():
        assert name in said


def test_volumes_of_nifti(tmp_path):
    affine = np.diag([2.0, 2, 3, 1])
    for k in range(4):
        folder = tmp_path / ("normal" if k < 3 else "new")
        folder.mkdir(exist_ok=True)
        volume = make_images((8, 16, 16), seed=k).transpose(1, 2, 0)
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / f"scan{k}.nii.gz")
    run("fit", tmp_path / "normal", "-o", tmp_path / "det", *FILTERS)
    run("predict", tmp_path / "det", tmp_path / "new", "-o", tmp_path / "out")
    mask = nibabel.load(tmp_path / "out" / "masks" / "scan3_mask.nii.gz")
    assert mask.shape == (16, 16, 8)
    assert_array_equal(mask.affine, affine)
    assert [row["image"] for row in rows_of(tmp_path / "out" / "scores.csv")] == [str(k) for k in range(8)]
