"""Comparison of detectors on data sets: stored results (cells), tables of them, and the command line.

A cell is the result of one detector that was fitted to one data set and judged on it. A cell is identified by
the data, the detector's class and parameters, and the seed. A cell also stores a digest of the code that
computed it. If this code has changed, the tables mark the cell, and the next run computes it again. After a
change that was shown to leave scores bit-equal, --adopt stores the digest of the present code instead.

The defaults of the command line are for tables made on two cores: one seed, three data sets and at most 150 s
a cell. A missing cell is shown as "-". Figures that a claim depends on have three seeds.
"""

import argparse
import ast
import hashlib
import importlib
import inspect
import json
import math
import os
import re
import signal
import time
import traceback
import warnings
from contextlib import contextmanager
from functools import cache, partial, reduce
from operator import getitem
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils import Bunch

from . import metrics
from ._discovery import all_detectors
from .base import PROCESS_PARAMETERS, CompositeDetector
from .ensemble import ScoreEnsemble
from .segmentation import residual_mask

FOLDER = Path(os.environ.get("SKANOMALY_DATA", Path(__file__).parents[2] / "shared" / "data"))
SETS = "cxr_pneumonia_64", "cxr_nih_64", "brain_mri_64"
#: Beginnings of the names of data sets whose images may be published.
MAY_SHIP = "cxr_pneumonia", "cxr_nih", "oct_tiny", "mnist"
#: Modules and folders whose code decides what a detector learns and how it scores.
ROOMS = {"detectors", "networks", "training", "transforms", "synthesis", "patches", "ensemble"}
ROOMS |= {"density", "features", "_backbone", "_confounds", "_losses", "_search", "_windows"}
KEY = "data", "file", "classes", "parameters", "seed"
FALSE_ALARM_RATE = 0.05
N_PIXEL_RESAMPLES = 50  # few, because each has about a million pixels
AT_THRESHOLD = "accuracy", "sensitivity", "specificity", "f1"
STALE = "†"
#: Classes by name that are compared like detectors, and are no public ones; scripts add theirs.
OTHERS: dict = {}


# Data sets and detectors by name.


def load(name, folder=FOLDER):
    """Images and labels (1 normal, -1 anomalous) of one npz file, by split.

    The file holds `images`, `labels` (0 normal, 1 anomalous) and `split` ("train", "val", "test"), and may
    hold `group_ids` (patients), `mask`, and `class_names` with the `class_index` of each image.

    Returns
    -------
    dict of "train", "val" and "test" to Bunch with images, target, and groups, masks and kinds or None
    """
    with np.load(Path(folder) / f"{name}.npz") as file:
        arrays = dict(file)
    parts = {
        "images": arrays["images"],
        "target": np.where(arrays["labels"] == 1, -1, 1),
        "groups": arrays.get("group_ids"),
        "masks": arrays["mask"].astype(bool) if "mask" in arrays else None,
        "kinds": arrays["class_names"][arrays["class_index"]] if "class_names" in arrays else None,
    }
    return {
        split: Bunch(**{key: of if of is None else of[arrays["split"] == split] for key, of in parts.items()})
        for split in ("train", "val", "test")
    }


def names():
    """Names of the detectors that are compared by default: all that do not hold another detector."""
    return [name for name, cls in all_detectors() if not issubclass(cls, CompositeDetector)]


def make(variant, **parameters):
    """Detector of a variant such as "FAnoGAN" or "FAnoGAN:encoder_training=izi,lr=1e-3".

    "PaDiM + DRAEM" is a ScoreEnsemble of these two.
    """
    if " + " in variant:
        members = [(member.partition(":")[0].lower(), make(member)) for member in variant.split(" + ")]
        return ScoreEnsemble(members, **parameters)
    name, _, settings = variant.partition(":")
    known = dict(all_detectors())
    if name not in known:
        raise SystemExit(f"there is no detector {name!r}; there are {', '.join(known)}")
    for setting in filter(None, re.split(r",(?![^()]*\))", settings)):  # no split within parentheses
        parameter, _, value = setting.partition("=")
        try:
            parameters[parameter] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[parameter] = value
    return known[name](**parameters)


def with_epochs(detector, n_epochs):
    """Set `n_epochs` epochs a stage and ten times as many search steps, unless None; return the detector."""
    if n_epochs:
        for name in detector.get_params():
            if name == "max_epochs" or name.endswith("_epochs"):
                detector.set_params(**{name: n_epochs})
            elif name == "n_search":
                detector.set_params(n_search=10 * n_epochs)
    return detector


# The code that a score depends on.


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _form(node):
    """Syntax tree as plain values, without docstrings and annotations, equal in all versions of Python."""
    if isinstance(node, list):
        return [_form(item) for item in node if not _is_docstring(item)]
    if not isinstance(node, ast.AST):
        return node
    # Newer versions of Python have more fields. Fields without a value are left out.
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    return type(node).__name__, {
        name: _form(value) for name, value in fields.items() if name not in ("annotation", "returns")
    }


@cache
def _module(name):
    """Code of a module as text, and the modules of ROOMS from which it imports."""
    module = importlib.import_module(name)
    tree, origins = ast.parse(inspect.getsource(module)), set()
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.__package__)
        for alias in node.names if base.split(".")[0] == __package__ else ():
            value = getattr(importlib.import_module(base), alias.name, None)  # None for "*"
            # A package re-exports names of its modules: what counts is the module that defines the name.
            defined = inspect.isclass(value) or inspect.isfunction(value)
            origins.add(value.__module__ if defined else getattr(value, "__name__", base))
    return repr(_form(tree)), {origin for origin in origins if ROOMS & {*origin.split(".")[1:2]}}


@cache
def code_digest(*classes):
    """Digest of the code that decides the scores of the detectors with these class names.

    Comments, docstrings and annotations do not count, nor does code outside of `ROOMS`.
    """
    found = dict(all_detectors()) | OTHERS
    texts, todo = {}, {found[name].__module__ for name in classes if name in found}
    while todo:
        name = todo.pop()
        texts[name], origins = _module(name)
        todo |= origins - set(texts)
    return hashlib.sha256("\n".join(sorted(texts.values())).encode()).hexdigest()[:16]


# Cells.


def identity(data, file, detector):
    """Fields that identify a cell, and the digest of its code."""
    held = (type(part).__name__ for part in detector.get_params().values() if hasattr(part, "get_params"))
    classes = sorted({type(detector).__name__, *held})
    parameters = {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
        for name, value in detector.get_params(deep=False).items()
        if name not in PROCESS_PARAMETERS | {"random_state"}
    }
    values = data, file, classes, parameters, detector.random_state
    return dict(zip(KEY, values)) | {"code": code_digest(*classes)}


def _key(cell):
    return json.dumps([cell[name] for name in KEY], sort_keys=True)


@contextmanager
def time_limit(seconds):
    """Context that raises TimeoutError after `seconds`, by the system's alarm signal; 0 means no limit."""

    def stop(signum, frame):
        raise TimeoutError(f"more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Cells:
    """Cells stored in a file, one cell a line."""

    def __init__(self, path):
        self.path = Path(path)

    def read(self):
        """Cells of all lines. A line that a killed run left unfinished is skipped."""
        cells = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                cells.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"passing over an unfinished line of {self.path}")
        return cells

    def results(self):
        """Results to show: of the present code, where a data set and label have any; else the stale ones."""
        latest = self._latest()
        # Stale ones may have other defaults under the same label, and would be averaged with the others.
        fresh = {(cell["data"], cell["detector"]) for cell in latest if not cell["stale"]}
        return [cell for cell in latest if not cell["stale"] or (cell["data"], cell["detector"]) not in fresh]

    def _latest(self):
        """Last result of each cell, sorted; "stale" tells whether the code of the detector has changed."""
        cells = [cell for cell in self.read() if "error" not in cell]
        for cell in cells:
            cell["stale"] = cell["code"] != code_digest(*cell["classes"])
        # The last result of a cell stays: one of the present code, if there is any.
        latest = {_key(cell): cell for cell in sorted(cells, key=lambda cell: not cell["stale"])}.values()
        return sorted(latest, key=lambda cell: (cell["data"], cell["detector"], cell["seed"]))

    def failed(self):
        """Cells whose last line is an error."""
        return [cell for cell in {_key(cell): cell for cell in self.read()}.values() if "error" in cell]

    def adopt(self, classes):
        """Mark the results of these classes (all, if none is given) as results of the present code."""
        cells = [*self._latest(), *self.failed()]
        for cell in cells:
            cell.pop("stale", None)
            if not classes or set(classes) & set(cell["classes"]):
                cell["code"] = code_digest(*cell["classes"])
        self.path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))

    def run(self, name, label, detector, evaluate, load, folder, limit):
        """Append the result of evaluate(detector, load(name, folder)) and return True.

        If the file has the result already, return False. A cell that ended in an error is tried again; a cell
        that ran out of time, only if the limit is higher now.
        """
        file = folder / f"{name.partition(', ')[0]}.npz"  # after the comma: what is made of the file
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else None
        cell = identity(name, digest, detector)
        for old in self.read():
            same = _key(old) == _key(cell) and old["code"] == cell["code"]
            if same and ("error" not in old or old.get("limit", 0) >= (limit or math.inf)):
                return False
        cell["detector"] = label
        try:
            with time_limit(limit):
                cell |= evaluate(detector, load(name, folder))
        except Exception as error:  # an error in one cell must not end the run
            traceback.print_exc()
            cell["error"] = f"{type(error).__name__}: {error}"
            if isinstance(error, TimeoutError):
                cell["limit"] = limit
        with self.path.open("a+b") as file:
            # A new line, also after an unfinished line.
            file.seek(max(0, file.tell() - 1))
            newline = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(newline + json.dumps(cell).encode() + b"\n")
        print({name: value for name, value in cell.items() if name not in KEY}, flush=True)
        return True


def compare(options, cells, report, *, load=load):
    """Run the cells that have no result of the present code, and write report(results) after each.

    Parameters
    ----------
    options : Namespace
        Result of `parse`. Cells are stored in ``cells.jsonl`` of its folder, the tables in ``table.md``.
    cells : iterable of (data, label, detector) or (data, label, detector, evaluate)
    report : callable
        Function of a list of cells that returns a text with tables.
    load : callable
        Function load(data, folder). Its result is the second argument of `evaluate`.

    Returns
    -------
    results : list of cells
    """
    store = Cells(options.folder / "cells.jsonl")

    def write():
        text = report(store.results())
        text += f"\n{STALE} Measured with earlier code of this detector.\n" * (STALE in text)
        if failed := store.failed():
            rows = [[cell[name] for name in ("data", "detector", "seed", "error")] for cell in failed]
            text += "\nWithout a result:\n\n" + table(("data", "detector", "seed", "error"), rows)
        (options.folder / "table.md").write_text(text)
        return text

    if options.adopt is not None:
        store.adopt(options.adopt)
        cells = ()
    for data, label, detector, *rest in cells:
        if store.run(data, label, detector, *(rest or [evaluate]), load, options.data, options.limit):
            write()
    print(write())
    return store.results()


# Tables.


def select(cells, **wanted):
    """Cells whose fields have the wanted values."""
    return [cell for cell in cells if all(cell[name] == value for name, value in wanted.items())]


def mean(cells, *path):
    """Mean, as text, of the values cell[path[0]][path[1]]... of cells; "-" if there are no cells.

    With more than one cell, the standard deviation follows. If values have intervals, the means of the two
    ends follow.
    """
    if not cells:
        return "-"
    values = np.array([reduce(getitem, path, cell) for cell in cells], dtype=float)
    of, *interval = values.T if values.ndim == 2 else (values,)
    text = f"{of.mean():.3f}" + (f" ({of.std(ddof=1):.3f})" if len(of) > 1 else "")
    text += " [{:.3f}, {:.3f}]".format(*np.mean(interval, axis=1)) if interval else ""
    return text + f" {STALE}" * any(cell["stale"] for cell in cells)


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


# The usual evaluation.


def with_interval(metric, test, score, *, confound=None, **options):
    """Value of a metric, and the ends of its 95 % bootstrap interval, which draws whole patients."""
    options |= {"groups": test.groups, "random_state": 0}
    given = {} if confound is None else {"confound": confound}
    interval = metrics.bootstrap_interval(metric, test.target, score, **given, **options)
    return metric(test.target, score, anomaly_label=-1, **given), *interval


def audit(detector, test, score):
    """Confound that alone tells the test images best apart, its AUROC, and the score's within its strata."""
    layout = {name: getattr(detector, name) for name in ("channel_axis", "image_shape")}
    alone = metrics.confounds(test.images, **layout)
    aurocs = {name: metrics.auroc(test.target, values) for name, values in alone.items()}
    best = max(aurocs, key=lambda name: abs(aurocs[name] - 0.5))
    # Whether more is worse is not known: the larger of AUROC and 1 - AUROC counts.
    values = alone[best] if aurocs[best] >= 0.5 else -alone[best]
    with warnings.catch_warnings():  # a confound that tells all images apart leaves no pairs, which is nan
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        within = with_interval(metrics.stratified_auroc, test, score, confound=values)
    alone = with_interval(metrics.auroc, test, values)
    return {"confound": best, "confound_auroc": alone, "stratified_auroc": within}


def evaluate(detector, splits):
    """Results of a detector trained on "train", calibrated on normal images of "val" and judged on "test".

    Each image is judged as seldom as possible, because some detectors take a second for an image.
    """
    train, val, test = splits["train"], splits["val"], splits["test"]
    start = time.perf_counter()
    detector.fit(train.images)
    result = {"fit_seconds": time.perf_counter() - start, "n_val_normal": int((val.target == 1).sum())}
    start = time.perf_counter()
    _, scores, maps = zip(*detector.iter_batches(test.images))
    score = -np.concatenate(scores)
    result["images_per_second"] = len(score) / (time.perf_counter() - start)
    normal = score[test.target == 1]
    result["false_alarms_before"] = float(np.mean(normal > -detector.offset_))
    detector.calibrate(val.images[val.target == 1], false_alarm_rate=FALSE_ALARM_RATE)
    result["false_alarms_after"] = float(np.mean(normal > -detector.offset_))
    anomalous = (val.target == -1).any()
    val_score = -detector.score_samples(val.images) if anomalous else None
    result["val_auroc"] = metrics.auroc(val.target, val_score) if anomalous else np.nan

    def decided(key, y, score, **options):
        # `predict` takes an image whose score equals offset_ for normal.
        options["threshold"] = np.nextafter(-detector.offset_, np.inf)
        return metrics.classification_metrics(y, score, **options)[key]

    functions = {"auroc": metrics.auroc, "ap": metrics.average_precision}
    functions |= {key: partial(decided, key) for key in AT_THRESHOLD}
    result |= {key: with_interval(metric, test, score) for key, metric in functions.items()}
    result |= audit(detector, test, score)
    components = detector.score_components(test.images)
    result["components"] = {name: metrics.auroc(test.target, value) for name, value in components.items()}
    if test.masks is not None and maps[0] is not None:
        maps = np.concatenate(maps)

        def of_rows(metric, y, rows, *, anomaly_label):
            return metric(test.masks[rows.astype(int)], maps[rows.astype(int)])

        functions = {
            "pixel_auroc": metrics.pixel_auroc,
            "pixel_ap": metrics.pixel_average_precision,
            "pro": metrics.pro,
            "dice": lambda masks, maps: metrics.dice(masks, residual_mask(maps, detector.pixel_offset_)),
            "best_dice": lambda masks, maps: metrics.best_dice(masks, maps)[0],
        }
        # Rows are drawn: the numbers of rows are passed as scores.
        rows, few = np.arange(len(score)), {"n_resamples": N_PIXEL_RESAMPLES}
        for key, metric in functions.items():
            result[key] = with_interval(partial(of_rows, metric), test, rows, **few)
    return result


# The command line.

OPTIONS = {
    "sets": {"nargs": "+", "default": SETS, "help": "names of npz files"},
    "parts": {"nargs": "+"},
    "full": {"action": "store_true", "help": "the size of the paper, for a GPU"},
    "data": {"type": Path, "default": FOLDER, "help": "folder of the npz files"},
    "seeds": {"type": int, "default": 1, "help": "how many; with 0 tables are written and nothing is run"},
    "epochs": {"type": int, "help": "of every stage, and a tenth of the steps of a search; for a short run"},
    "limit": {"type": float, "default": 150, "help": "seconds that a cell may take; 0 is no limit"},
    "adopt": {"nargs": "*", "help": "after a change that was shown to leave scores bit-equal: keep results"},
    "threads": {"type": int, "default": 2, "help": "of torch"},
    "results": {"type": Path, "help": "folder that gets a folder for each command"},
}
#: Options of commands that run cells, and of commands that make their tables without cells.
CELLS, TABLES = "data seeds epochs limit adopt threads results", "data seeds epochs threads results"


def parse(doc, file, common, **own):
    """Options from the command line. Short runs and runs at full size have folders of their own.

    Parameters
    ----------
    doc, file : str
        Docstring and path of the script, which lies in a folder "benchmarks".
    common : str
        Names of entries of `OPTIONS`, separated by spaces.
    **own : dict
        Arguments of ``add_argument`` by option: for an option of its own, or in place of those in `OPTIONS`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in dict.fromkeys([*own, *common.split()]):
        parser.add_argument(f"--{name.replace('_', '-')}", **OPTIONS.get(name, {}) | own.get(name, {}))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if "results" in options:
        file = Path(file).resolve()
        home = next(folder for folder in file.parents if folder.name == "benchmarks")
        study = file.stem + "_full" * getattr(options, "full", False)
        study += f"_{options.epochs}_epochs" if options.epochs else ""
        options.folder = (options.results or home / "results") / study
        options.folder.mkdir(parents=True, exist_ok=True)
    return options


def may_draw(name, folder):
    """Whether pictures of a data set may be written to a folder; outside the repository, all may."""
    repository = Path(__file__).resolve().parents[1]
    return name.startswith(MAY_SHIP) or not Path(folder).resolve().is_relative_to(repository)
