"""Command line: a folder of normal images becomes a detector, which judges folders of new ones."""

import ast
import csv
import inspect
import platform
import re
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit
from skorch.callbacks import Callback

from . import persistence
from ._discovery import all_detectors
from ._images import fingerprint
from ._report import common_folder, name_of, printable, thumbnails, write_report
from ._version import __version__
from .base import conformal_p
from .io import read_folder, write_maps, write_masks
from .segmentation import regions, residual_mask

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find what is not normal in medical images, learned from normal images alone.",
)
screen, errors = Console(), Console(stderr=True)
#: Share of the images that `fit` keeps for the calibration if there is no folder for it.
HELD_OUT = 0.2
#: Exit status of a command that failed, and of one that was interrupted. That of a wrong usage is 2.
FAILED, INTERRUPTED = 1, 130
EXPECTED = ValueError, TypeError, OSError, FloatingPointError, ImportError, NotImplementedError, re.error
LABELS = "normal", "anomalous"
N_SHOWN = 5  # of the most suspicious images


def say(text, console=screen, **style):
    """Print a line as it is: file names are no markup."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True, **style)


class Bars(Callback):
    """skorch callback that shows the epochs of a stage. The bar is an attribute of the class, since a fit
    copies its callbacks.
    """

    progress: Progress

    def on_train_begin(self, net, **kwargs):
        self.task_ = Bars.progress.add_task(f"training, {net.stage}", total=net.max_epochs)
        Bars.progress.update(self.task_, completed=len(net.history))

    def on_epoch_end(self, net, **kwargs):
        Bars.progress.update(self.task_, completed=len(net.history))


class Watched:
    """Files as they are, with a bar of how many were read. Each time they are read from the first it is full
    again: no detector says how often it reads.
    """

    def __init__(self, files, progress, what):
        self.files, self.progress = files, progress
        self.shape, self.dtype, self.groups = files.shape, files.dtype, files.groups
        self.task = progress.add_task(what, total=len(files))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        images = self.files[index]
        self.progress.update(self.task, completed=int(np.max(np.arange(len(self))[index], initial=0)) + 1)
        return images


def read(folder, how):
    """Images of a folder. What was left out is said."""
    files = read_folder(folder, **how)
    for path, message in files.errors_.items():
        say(f"skipped: {path}: {message}", errors)
    return files


@contextmanager
def bars():
    """Progress on the error stream, with an estimate of what is left, so that output can be piped."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=errors, transient=True) as progress:
        yield progress


@contextmanager
def one_line():
    """Errors of one line, with an exit status, in place of a traceback; warnings of one line."""

    def show(message, category, filename, lineno, file=None, line=None):
        say(f"warning: {message}", errors, style="yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("default")
        try:
            yield
        except EXPECTED as error:
            say(f"error: {' '.join(str(error).split())}", errors, style="red")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def build(name, settings):
    """Detector of this name, with parameters of texts such as "max_epochs=20"."""
    known = dict(all_detectors())
    if name not in known:
        raise ValueError(f"there is no detector {name!r}; there are {', '.join(known)}")
    detector = known[name]()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set needs KEY=VALUE, got {setting!r}")
        detector.set_params(**{key: parsed(value)})
    return detector


def parsed(text):
    """Value of a text such as "20" or "40, 80"; any other text, such as imagenet, is itself."""
    try:
        return text if text is None else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def split(files, seed):
    """Files to learn from and files to calibrate on; a patient is on one side only, if patients are known."""
    if files.groups is not None and len(set(files.groups)) > 1:
        kind = GroupShuffleSplit
    else:
        kind = ShuffleSplit
    rows = next(kind(1, test_size=HELD_OUT, random_state=seed).split(files.paths, groups=files.groups))
    return [files.take(np.sort(of)) for of in rows]


def option(kind, text, *names):
    """Type of a parameter that is an option of a command, with its help."""
    return Annotated[kind, typer.Option(*names, help=text)]


@app.command()
def fit(
    normal: Annotated[Path, typer.Argument(help="Folder of normal images to learn from.")],
    output: option(Path, "File for the detector.", "--output", "-o"),
    detector: option(str, "Name of the detector, see `skanomaly detectors`.") = "FeatureGaussian",
    set_: option(list[str] | None, "Parameter of the detector, KEY=VALUE.", "--set") = None,
    calibrate: option(Path | None, "Folder of other normal images. Default: a fifth of the first.") = None,
    false_alarm_rate: option(float, "Share of new normal images that may be flagged.") = 0.05,
    size: option(int | None, "Side that images are brought to, needed if their sizes differ.") = None,
    window: option(str | None, "Window of intensities: its name, or CENTRE,WIDTH.") = None,
    plane: option(str, "Plane of the slices of NIfTI volumes.") = "axial",
    drop_empty: option(bool, "Leave out images of one single value.") = False,
    groups: option(str | None, "Regular expression that finds the patient in a path.") = None,
    pattern: option(str | None, "Glob pattern of the files in a folder. Default: all.") = None,
    channels: option(str, "Channels of the images: auto, 1 (grey) or 3.") = "auto",
    skip: option(bool, "Leave out files that cannot be read, and list them.") = False,
    keep_thumbnails: option(bool, "Keep small pictures of the images, to show them in reports.") = False,
    seed: option(int, "Seed of everything random.") = 0,
):
    """Learn what is normal from a folder of images, and write a detector."""
    with one_line():
        reading = {
            "size": None if size is None else (size, size),
            "window": parsed(window),
            "plane": plane,
            "drop_empty": drop_empty,
            "channels": parsed(channels),
            "groups": groups,
        }
        if output.is_dir():
            raise ValueError(f"--output must be a file, got the folder {output}")
        if calibrate is not None and calibrate.resolve() == normal.resolve():
            raise ValueError("--calibrate must be a folder of other images than those to learn from")
        output.parent.mkdir(parents=True, exist_ok=True)
        how = reading | {"pattern": pattern, "on_error": "skip" if skip else "raise"}
        model, files = build(detector, set_ or []), read(normal, how)
        train, held_out = split(files, seed) if calibrate is None else (files, read(calibrate, how))
        parameters, folder = model.get_params(), output.with_name(output.name + ".checkpoint")
        known = {"random_state": seed, "checkpoint_dir": folder, "callbacks": [Bars()]}
        # A parameter that was set stays as it is.
        model.set_params(
            **{key: value for key, value in known.items() if key in parameters and parameters[key] is None}
        )
        resumable = "checkpoint_dir" in parameters
        with bars() as Bars.progress:
            try:
                model.fit(train if resumable else Watched(train, Bars.progress, "learning"))
            except KeyboardInterrupt:
                words = "the same command goes on where it was" if resumable else "nothing was written"
                say(f"stopped; {words}", errors)
                raise
            watched = Watched(held_out, Bars.progress, "calibrating")
            model.calibrate(watched, false_alarm_rate=false_alarm_rate)
        model.card_ = {
            "reading": reading,
            "n_train": len(train),
            "n_calibration": len(held_out),
            "false_alarm_rate": false_alarm_rate,
            "fingerprint": fingerprint(train),
            "versions": {"python": platform.python_version(), "skanomaly": __version__}
            | {name: version(name) for name in ("numpy", "torch", "scikit-learn")},
        }
        if keep_thumbnails:
            model.thumbnails_ = thumbnails(train)
        persistence.save(model, output)
        if resumable:
            shutil.rmtree(folder, ignore_errors=True)
        say(f"{detector} learned {len(train)} images, is calibrated on {len(held_out)}, and is in {output}")


@app.command()
def predict(
    detector: Annotated[Path, typer.Argument(help="File that `skanomaly fit` wrote.")],
    new: Annotated[Path, typer.Argument(help="Folder of images to judge.")],
    output: option(Path, "Folder for tables, masks and maps.", "--output", "-o"),
    groups: option(str | None, "Regular expression that finds the patient. Default: that of `fit`.") = None,
    pattern: option(str | None, "Glob pattern of the files in the folder. Default: all.") = None,
    pictures: option(bool, "Write masks and maps, with overlays.") = True,
    skip: option(bool, "Leave out files that cannot be read, and list them.") = False,
):
    """Judge a folder of images: report.html, scores.csv, regions.csv, masks and heat maps."""
    with one_line():
        model = persistence.load(detector)
        if not hasattr(model, "card_"):
            raise ValueError(f"{detector} was not written by `skanomaly fit`, which notes how files are read")
        if output.resolve().is_relative_to(new.resolve()):
            raise ValueError(
                f"--output must not lie in {new}, where its pictures would be read the next time"
            )
        how = model.card_["reading"] | {"pattern": pattern, "on_error": "skip" if skip else "raise"}
        files = read(new, how if groups is None else how | {"groups": groups or None})
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output) as folder, bars() as progress:
            scores, maps, masks = judge(model, files, Path(folder), progress)
            p = conformal_p(model.calibration_scores_, scores)
            anomalous = -scores < model.offset_
            write_scores(output / "scores.csv", files, scores, p, anomalous)
            if maps is not None:
                write_regions(output / "regions.csv", files, maps, masks)
            if maps is not None and pictures:
                write_masks(output / "masks", masks, files, overlay=True)
                write_maps(output / "maps", maps, files, overlay=True)
            card = [("detector", repr(model)), *model.card_.items()]
            options = {"maps": maps, "masks": masks, "limits": model.map_range_, "card": card}
            options["known"] = getattr(model, "thumbnails_", ())
            options["reconstruct"] = getattr(model, "reconstruct", None)
            labels = [LABELS[int(ill)] for ill in anomalous]
            write_report(output / "report.html", files, scores, p, labels, **options)
            del maps, masks, options  # Windows cannot remove a file that is mapped
        table = Table("file", "score", "p-value", "label", title="The most suspicious images")
        above = common_folder(files.paths)
        for row in np.argsort(-scores, kind="stable")[:N_SHOWN]:
            label = LABELS[int(anomalous[row])]
            name = escape(name_of(files, row, above))
            table.add_row(name, f"{scores[row]:.4g}", f"{p[row]:.3g}", label)
        screen.print(table)
        say(f"{anomalous.sum()} of {len(files)} images are anomalous; tables are in {output}")


def judge(model, files, folder, progress):
    """Anomaly scores (n,) of files, and maps and masks on disk, or None: all may not fit into memory."""
    scores, maps, masks = np.empty(len(files)), None, None
    task = progress.add_task("judging", total=len(files))
    for rows, score, part in model.iter_batches(files):
        scores[rows] = -score
        if part is not None:
            if maps is None:
                new = partial(np.lib.format.open_memmap, mode="w+", shape=(len(files), *part.shape[1:]))
                maps, masks = (
                    new(folder / "maps.npy", dtype=np.float32),
                    new(folder / "masks.npy", dtype=bool),
                )
            maps[rows], masks[rows] = part, residual_mask(part, model.pixel_offset_)
        progress.update(task, completed=rows.stop)
    return scores, maps, masks


@contextmanager
def csv_writer(path):
    # Names of files need not be UTF-8: these bytes are written as they are.
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield csv.writer(file)


def write_scores(path, files, scores, p, anomalous):
    patients = [""] * len(files) if files.groups is None else files.groups
    with csv_writer(path) as writer:
        writer.writerow(["file", "image", "patient", "score", "p_value", "label"])
        rows = zip(files.paths, files.frames, patients, scores, p, anomalous)
        writer.writerows([*of, float(score), float(one), LABELS[int(ill)]] for *of, score, one, ill in rows)


def write_regions(path, files, maps, masks):
    """One row for each region, with sides and places in pixels of what the detector saw."""
    with csv_writer(path) as writer:
        for row, of in enumerate(zip(files.paths, files.frames)):
            table = regions(masks[row], maps[row])
            del table["image"]
            if row == 0:
                writer.writerow(["file", "image", *table])
            writer.writerows([*of, *map(float, values)] for values in zip(*table.values()))


@app.command()
def detectors():
    """List the detectors, with a sentence on each."""
    with one_line():
        table = Table("detector", "what it does")
        for name, cls in all_detectors():
            table.add_row(name, inspect.getdoc(cls).partition("\n")[0])
        screen.print(table)


@app.command()
def info(detector: Annotated[Path, typer.Argument(help="File of a detector.")]):
    """Show what a detector is, what it has learned from, and how it is calibrated."""
    with one_line():
        model = persistence.load(detector)
        table = Table(type(model).__name__, "", show_lines=False)
        for name in "image_shape_", "intensity_range_", "offset_", "pixel_offset_":
            table.add_row(name, escape(str(getattr(model, name, "absent"))))
        for name, value in getattr(model, "card_", {}).items():
            table.add_row(name.replace("_", " "), escape(str(value)))
        table.add_row("thumbnails", str(len(getattr(model, "thumbnails_", ()))))
        table.add_row("detector", escape(repr(model)))
        screen.print(table)
