"""Uninformed students and rivals: how well maps tell anomalous regions, the table of Bergmann et al. 2020.

    python benchmarks/studies/students.py [--sets NAME ...] [--methods NAME ...] [--data DIR] [--size 256]
                                          [--seeds 1] [--epochs N] [--limit 0] [--threads 2]
                                          [--results DIR] [--adopt [CLASS ...]]

PRO up to a false alarm rate of 30 %, and beside it AUROC and average precision of pixels and AUROC of images.
"students" fits UninformedStudents once, and gives the rows of p = 17, 33 and 65 and of all three. 1-NN,
OC-SVM and k-means judge the descriptors of a teacher of p = 65; "dictionary" judges features of patches of 16
pixels by the distance to words. As that of the students, their score of an image is the mean of the map.

Trained on `train`, judged on `test`. A set is DigitAnatomy, a file with masks as for accuracy.py, or, with
--data, a category of a folder laid out as MVTec AD: CATEGORY/train/good, CATEGORY/test/DEFECT and
CATEGORY/ground_truth/DEFECT/NAME_mask.png. All categories in it are sets then, unless --sets says. Their
images are brought to --size pixels a side, 256 in the paper.

Cells are kept in students/cells.jsonl of --results and are not run again; tables go to table.md beside it.
Results of N epochs go to a folder of their own. A cell does not see that images of a category have changed.
"""

import re
import time
from copy import copy
from functools import partial

import numpy as np
from _patch_heads import PatchHead, backbone_head, teacher_head
from sklearn.utils import Bunch

from skanomaly import UninformedStudents, _comparison, metrics
from skanomaly._comparison import CELLS, compare, make, mean, parse, select, table, with_epochs
from skanomaly.datasets import make_digit_anatomy
from skanomaly.detectors.uninformed_students import StudentNetwork
from skanomaly.io import ImageFiles

DIGITS = "DigitAnatomy"
SETS = DIGITS, "brain_mri_64"
N_GRIDS = 200  # and as many to be judged
KINDS = "normal", "missing", "misordered", "flipped", "zero"
#: Functions of `random_state`.
METHODS = {
    "students": partial(make, "UninformedStudents"),
    **{name: partial(teacher_head, name) for name in ("1-NN", "OC-SVM", "k-means")},
    "l2-AE": partial(make, "AutoEncoder"),
    "VAE": partial(make, "VAE"),
    "SSIM-AE": partial(make, "AutoEncoder:loss=ssim"),
    "AnoGAN": partial(make, "AnoGAN"),
    "dictionary": partial(backbone_head, "dictionary"),
}
ALL = "all p"
#: Columns of the tables, in the order of the paper's.
ROWS = "p = 17", "p = 33", "p = 65", ALL, *list(METHODS)[1:]
METRICS = {
    "pro": "PRO up to a false alarm rate of 30 %:",
    "pixel_auroc": "AUROC of pixels:",
    "pixel_ap": "Average precision of pixels:",
    "auroc": "AUROC of images:",
}


# Data.


def title(name, options):
    """Name of a set in the tables, which says all that decides its images."""
    if name == DIGITS:
        return f"{name}, {N_GRIDS} grids"
    return f"{name}, {options.size} pixels" if (options.data / name / "train").is_dir() else name


def load(name, folder):
    """Images by split for a title, and a place for descriptors of them, which is kept for the last set."""
    parts = last.get(name) or made(name, folder) | {"described": {}}
    last.clear()
    last[name] = parts
    return parts


last: dict = {}


def made(name, folder):
    stem, *number = re.split(r", (?=\d+ )", name)
    if not number:
        return _comparison.load(name, folder)
    number = int(number[0].split()[0])
    if stem == DIGITS:
        return {
            "train": make_digit_anatomy(number, random_state=0),
            "test": make_digit_anatomy(number, kinds=KINDS, subset="test", random_state=1),
        }
    return read_category(folder / stem, (number, number))


def read_category(folder, size):
    """Images "train" and "test" of a category of MVTec AD, and the masks of the latter."""
    train, test = (sorted(folder.glob(f"{pattern}/*.png")) for pattern in ("train/good", "test/*"))
    images = np.asarray(ImageFiles(test, size=size))
    masks = np.zeros(images.shape[:3], bool)
    kinds = np.array([path.parent.name for path in test])
    anomalous = np.flatnonzero(kinds != "good")
    files = [folder / "ground_truth" / kinds[i] / f"{test[i].stem}_mask.png" for i in anomalous]
    # A pixel is anomalous if most of what it was made of is.
    masks[anomalous] = np.asarray(ImageFiles(files, size=size, channels=1)) > 127
    return {
        "train": Bunch(images=np.asarray(ImageFiles(train, size=size))),
        "test": Bunch(images=images, masks=masks, target=np.where(kinds == "good", 1, -1)),
    }


# Judging.


def figures(test, maps, scores):
    return {
        "pro": metrics.pro(test.masks, maps),
        "pixel_auroc": metrics.pixel_auroc(test.masks, maps),
        "pixel_ap": metrics.pixel_average_precision(test.masks, maps),
        "auroc": metrics.auroc(test.target, scores),
    }


def scale_maps(detector, images):
    """Maps of each patch size of a fitted UninformedStudents, by the name of the row."""
    maps = {}
    for p, scale in detector.network_.scales.items():
        single = copy(detector)
        single.network_ = StudentNetwork({p: scale})
        maps[f"p = {p}"] = single.anomaly_map(images)
    return maps


def judged(head, parts):
    """Maps of the test images by a head. Consecutive heads of the same descriptors share these."""
    images, kept = parts["test"].images, parts["described"]
    key = repr(type(head)) + repr({**head.get_params(deep=False), "head": None})
    if kept.get("key") != key:
        head.fit(parts["train"].images)
        rows = head.sample(parts["train"].images)
        kept |= {"key": key, "rows": rows, "test": list(head.descriptors(images))}
    head.learn(kept["rows"])
    return np.concatenate([head.maps(described, images.shape[1:3]) for described in kept["test"]])


def evaluate(detector, parts, *, label):
    """Figures by row of the table, and the seconds for all of it."""
    start, test = time.perf_counter(), parts["test"]
    if isinstance(detector, PatchHead):
        maps = judged(detector, parts)
        found = {label: (maps, maps.mean((1, 2)))}
    else:
        detector.fit(parts["train"].images)
        if isinstance(detector, UninformedStudents):
            maps = scale_maps(detector, test.images)
            maps[ALL] = np.mean(list(maps.values()), axis=0)  # standardised, so they are averaged
            found = {row: (of, of.mean((1, 2))) for row, of in maps.items()}
        else:
            _, scores, maps = zip(*detector.iter_batches(test.images))
            found = {label: (np.concatenate(maps), -np.concatenate(scores))}
    seconds = time.perf_counter() - start
    return {"rows": {row: figures(test, *of) for row, of in found.items()}, "seconds": seconds}


# Tables.


def report(cells, sets):
    """For each metric a line of each set, and of their mean if there are more."""
    by_row = {
        (data, row): [
            {"stale": cell["stale"]} | cell["rows"][row] | {"seconds": cell["seconds"]}
            for cell in select(cells, data=data)
            if row in cell["rows"]
        ]
        for data in sets
        for row in ROWS
    }

    def over_sets(row, key):
        """One cell with the mean of all sets, if these have results."""
        same = [by_row[data, row] for data in sets]
        value = np.mean([np.mean([cell[key] for cell in of]) for of in same]) if all(same) else 0
        stale = any(cell["stale"] for of in same for cell in of)
        return [{key: value, "stale": stale}] if all(same) else []

    parts = [
        "Made by `python benchmarks/studies/students.py`. Test split; mean of the seeds (standard "
        "deviation), one seed if no deviation is given.\n"
    ]
    for key, heading in METRICS.items():
        lines = [[data, *(mean(by_row[data, row], key) for row in ROWS)] for data in sets]
        if len(sets) > 1:
            lines.append(["mean", *(mean(over_sets(row, key), key) for row in ROWS)])
        parts.append(f"{heading}\n\n" + table(("set", *ROWS), lines))
    return "\n".join(parts)


def main():
    own = {
        "sets": {"nargs": "+", "default": None},
        "methods": {"nargs": "+", "choices": list(METHODS), "default": list(METHODS)},
        "size": {"type": int, "default": 256, "help": "pixels a side of the images of a category"},
        "limit": {"default": 0},
    }
    options = parse(__doc__, __file__, CELLS, **own)
    categories = [folder.parents[1].name for folder in sorted(options.data.glob("*/train/good"))]
    sets = {name: title(name, options) for name in options.sets or categories or SETS}

    def cells():
        for seed in range(options.seeds):
            for data in sets.values():
                for method in options.methods:
                    detector = with_epochs(METHODS[method](random_state=seed), options.epochs)
                    yield data, method, detector, partial(evaluate, label=method)

    compare(options, cells(), partial(report, sets=list(sets.values())), load=load)


if __name__ == "__main__":
    main()
