"""SQUID on DigitAnatomy and chest X-rays: which anomalies it finds, by which of its parts, and when it fails.

    python benchmarks/squid.py [--parts NAME ...] [--full] [--seeds 3] [--epochs N] [--threads 2]
                               [--results DIR]

headline: on grids of digits, AUROC of each kind of anomaly, and whether reconstructions show the digit that
belongs where another or none is; beside AutoEncoder and MemAE, as long as these train by default, and FAnoGAN
of 10 + 10 epochs, which take as long as SQUID's 25.
components: SQUID without each of its parts. robustness: other numbers of windows, slots and so on.
contamination: 75 % and 50 % of the training grids normal, the others with an anomaly of any kind but "zero".
chest: cxr_pneumonia_128 at the threshold from the normal images of `val`.

On two cores all of it takes no more than 2 hours: width 8, 400 grids, 25 epochs, and one seed but for
headline and chest. --full is the size of the paper, width 32, 1600 grids and 200 epochs, for a GPU.

Cells resume; they go to squid.jsonl in --results, the tables to squid.md, and of seed 0 of the headline the
pictures to squid_*.png; those of --full to squid_full*, those of N epochs to squid_N_epochs*.
"""

import argparse
import re
import time
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from _data import FOLDER
from _detectors import make, with_epochs
from accuracy import AT_THRESHOLD, mean, read, run, table
from sklearn.svm import SVC

from skanomaly import metrics
from skanomaly.datasets import make_digit_anatomy

KINDS = "missing", "misordered", "flipped", "zero"
RESTORED = "missing", "zero"
N_TEST = {"val": 250, "test": 500}
N_RECOGNISED = 200  # grids whose digits the support vector machine learns
#: Grids, epochs and width.
SMALL, FULL = (400, 25, 8), (1600, 200, 32)
RIVALS = {
    "AutoEncoder": "AutoEncoder",
    "MemAE": "MemAE:similarity=dot",
    "FAnoGAN": "FAnoGAN:max_epochs=10,encoder_epochs=10",
}
CHEST = "cxr_pneumonia_128"
COMPONENTS = {
    "no space-awareness": "space_aware=False",
    "no queue: learned items": "memory=matrix",
    "hard shrinkage": "shrinkage=hard",
    "no masked shortcut": "rho=1.0",
    "no distillation": "distillation_weight=0.0",
    "no discriminator": "adversarial_weight=0.0,discriminator_weight=0.0",
}
OTHERS = "similarity=dot", "n_windows=2", "k=1", "n_slots=50", "rho=0.5"
PARTS = "headline", "components", "robustness", "contamination", "chest"


def make_digits(name, folder):
    """Grids by split, for a name as "400 grids, 75 % normal"."""
    n, share = map(int, re.findall(r"\d+", name))
    parts = {"train": make_digit_anatomy(n, random_state=0)}
    spoilt = make_digit_anatomy(n, kinds=KINDS[:-1], random_state=1).images
    among = np.random.default_rng(0).permutation(n) < n * (100 - share) // 100
    parts["train"].images[among], parts["train"].target[among] = spoilt[among], -1
    for seed, (subset, n) in enumerate(N_TEST.items(), start=2):
        kinds = "normal", *KINDS
        parts[subset] = make_digit_anatomy(n, kinds=kinds, subset=subset, random_state=seed)
    return parts


def by_kind(grids, score):
    """AUROC of each kind of anomaly against the normal grids."""
    auroc = {}
    for kind in KINDS:
        rows = np.isin(grids.kind, ["normal", kind])
        auroc[kind] = metrics.auroc(grids.target[rows], score[rows])
    return auroc | {"mean": np.mean(list(auroc.values()))}


def to_cells(images):
    """(n, 96, 96) in 0..255 to (n, 9, 32 * 32) in 0..1."""
    n, side = len(images), images.shape[1] // 3
    cells = np.reshape(images, (n, 3, side, 3, side)).swapaxes(2, 3)
    return cells.reshape(n, 9, side * side) / 255


def restoration(grids, shown, average, recogniser):
    """Whether cells show what belongs there: nearer to it than to the input, than the mean image is."""
    truth, given = to_cells(grids.normal), to_cells(grids.images)
    shown, average = to_cells(shown), to_cells(average[None])

    def error(a, b, axes):
        return np.square(a - b).sum(axes)

    shares = {}
    for kind in RESTORED:
        rows = grids.kind == kind
        where = np.nonzero(grids.cells & rows[:, None])
        a, b, c, d = shown[where], truth[where], given[where], np.broadcast_to(average, truth.shape)[where]
        tests = {
            "nearer than input": error(a, b, 1) < error(a, c, 1),
            "nearer than mean": error(a, b, 1) < error(d, b, 1),
            "recognised": recogniser.predict(a) == where[1],
        }
        both = tests["nearer than input"] & tests["nearer than mean"]
        grid = error(shown[rows], truth[rows], (1, 2)) < error(average, truth[rows], (1, 2))
        shares[kind] = {name: np.mean(test) for name, test in tests.items()}
        shares[kind] |= {"both": both.mean(), "grid nearer than mean": grid.mean()}
    return shares


def known(train):
    """The mean of the normal grids, and what recognises their digits."""
    normal = train.images[train.target == 1]
    digits = to_cells(normal[:N_RECOGNISED])
    return normal.mean(0), SVC().fit(np.concatenate(digits), np.tile(range(9), len(digits)))


@cache
def references(name):
    """The restoration of those that know all, nothing, and the mean alone."""
    parts = make_digits(name, None)
    test, (average, recogniser) = parts["test"], known(parts["train"])
    shown = {
        "(the grid before the anomaly)": test.normal,
        "(the input itself)": test.images,
        "(the mean of the training grids)": np.broadcast_to(average, test.images.shape),
    }
    return [
        {"detector": label, "restoration": restoration(test, images, average, recogniser)}
        for label, images in shown.items()
    ]


def evaluate_digits(detector, splits, *, path):
    train, val, test = splits["train"], splits["val"], splits["test"]
    start = time.perf_counter()
    detector.fit(train.images)
    result = {"fit_seconds": time.perf_counter() - start}
    start = time.perf_counter()
    result["auroc"] = by_kind(test, -detector.score_samples(test.images))
    result["images_per_second"] = len(test.images) / (time.perf_counter() - start)
    result["val_auroc"] = by_kind(val, -detector.score_samples(val.images))["mean"]
    components = detector.score_components(test.images)
    result["components"] = {name: by_kind(test, value) for name, value in components.items()}
    average, recogniser = known(train)
    result["restoration"] = restoration(test, detector.reconstruct(test.images), average, recogniser)
    if path is not None and detector.random_state == 0:
        draw(detector, test.images[:5], test.kind[:5], path)
    return result


def draw(detector, images, kinds, path):
    """Input, reconstruction and map, a column for each image."""
    lines = images, detector.reconstruct(images), detector.anomaly_map(images)
    figure, axes = plt.subplots(3, len(images), figsize=(2 * len(images), 6.2), layout="compressed")
    ranges = (0, 255), (0, 255), (0, np.quantile(lines[2], 0.99))
    for label, line, row, (low, high) in zip(("input", "reconstruction", "map"), lines, axes, ranges):
        for image, kind, axis in zip(line, kinds, row):
            axis.imshow(image, cmap="magma" if label == "map" else "gray", vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[], title=kind if label == "input" else None)
        row[0].set_ylabel(label)
    figure.suptitle(type(detector).__name__)
    figure.savefig(path, dpi=60)
    plt.close(figure)


def auroc_table(cells, rows):
    """Of the score, and of the components where there is more than one."""
    lines = []
    for label in rows:
        same = [cell for cell in cells if cell["detector"] == label]
        if same:
            figures = [mean([cell["auroc"] for cell in same], kind) for kind in (*KINDS, "mean")]
            seconds = np.mean([cell["fit_seconds"] for cell in same])
            lines.append([label, "score", len(same), *figures, mean(same, "val_auroc"), f"{seconds:.0f}"])
            names = {"residual", "feature"} & set(same[0]["components"])
            for name in sorted(names, reverse=True) if len(names) > 1 else ():
                of = [cell["components"][name] for cell in same]
                lines.append([label, name, len(same), *(mean(of, kind) for kind in (*KINDS, "mean")), "", ""])
    return table(("detector", "", "seeds", *KINDS, "mean", "mean on val", "fit, s"), lines)


def restoration_table(cells, rows):
    keys = "nearer than input", "nearer than mean", "both", "grid nearer than mean", "recognised"
    lines = []
    for label in rows:
        for kind in RESTORED:
            same = [cell["restoration"][kind] for cell in cells if cell["detector"] == label]
            if same:
                lines.append([label, kind, *(mean(same, key) for key in keys)])
    titles = "nearer to the truth than to the input", "than the mean image is", "both"
    return table(("detector", "cell", *titles, "whole grid than the mean image is", "recognised"), lines)


def report(cells, parts):
    latest = list({cell["key"]: cell for cell in cells if "error" not in cell}.values())
    text = ["Made by `python benchmarks/squid.py`. Test split; mean of the seeds (standard deviation).\n"]
    titles = {
        "headline": "Grids of digits: AUROC of each kind of anomaly, and the share of missing and zero "
        "cells that the reconstruction shows as they should be: nearer to the true digit than to the input, "
        "than the mean image is; over the whole grid; and as recognised by a support vector machine.",
        "components": "Without each of its parts:",
        "robustness": "Other settings:",
        "contamination": "Share of normal grids in training:",
    }
    for part, title in titles.items():
        data, rows, n_seeds = parts[part]
        for name in data:
            of = [cell for cell in latest if cell["data"] == name and cell["seed"] < n_seeds]
            if any(cell["detector"] in rows for cell in of):
                text += [f"{title} {name}.\n", auroc_table(of, rows)]
                if part == "headline":
                    of += references(name)
                    rows = [*rows, *(cell["detector"] for cell in references(name))]
                if part in ("headline", "components"):
                    text += [restoration_table(of, rows)]
    chest = [cell for cell in latest if cell["data"] == CHEST]
    if chest:
        figures = [mean(chest, key) for key in ("auroc", "ap", *AT_THRESHOLD, "val_auroc")]
        seconds = np.mean([cell["fit_seconds"] for cell in chest])
        head = "data", "seeds", "AUROC", "AP", *AT_THRESHOLD, "AUROC on val", "fit, s"
        text += ["Chest X-rays, at the threshold from the normal images of `val` (false alarm rate 0.05):\n"]
        text += [table(head, [[CHEST, len(chest), *figures, f"{seconds:.0f}"]])]
        names = chest[0]["components"]
        values = (f"{name} {np.mean([c['components'][name] for c in chest]):.3f}" for name in names)
        text += [f"AUROC of the components: {', '.join(values)}.\n"]
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of everything, for a short run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    n, epochs, width = FULL if arguments.full else SMALL
    stem = "squid" + "_full" * arguments.full
    stem += f"_{arguments.epochs}_epochs" if arguments.epochs else ""  # never mixed with whole runs
    squid = f"SQUID:max_epochs={epochs},width={width}"
    shares = [f"{n} grids, {share} % normal" for share in (100, 75, 50)]
    digits = f"{squid},n_windows=3,stitch_level=1"
    rivals = {name: name if arguments.full else variant for name, variant in RIVALS.items()}
    without = {name: f"{digits},{part}" for name, part in COMPONENTS.items()}
    others = {part: f"{digits},{part}" for part in OTHERS}
    n_seeds = arguments.seeds if arguments.full else 1
    parts = {
        "headline": (shares[:1], {"SQUID": digits} | rivals, arguments.seeds),
        "components": (shares[:1], {"SQUID": digits} | without, n_seeds),
        "robustness": (shares[:1], {"SQUID": digits} | others, n_seeds),
        "contamination": (shares, {"SQUID": digits} | rivals, n_seeds),
        "chest": ([CHEST], {"SQUID": squid}, arguments.seeds),
    }
    path = arguments.results / f"{stem}.jsonl"
    for seed in range(arguments.seeds):
        for part in arguments.parts:
            data, rows, n_seeds = parts[part]
            for name in data if seed < n_seeds else ():
                for label, variant in rows.items():
                    detector = with_epochs(make(variant, random_state=seed), arguments.epochs)
                    options = {}
                    if name != CHEST:
                        shown = name == shares[0] and label in parts["headline"][1]
                        picture = arguments.results / f"{stem}_{label}.png" if shown else None
                        options = {"load": make_digits, "evaluate": partial(evaluate_digits, path=picture)}
                    run([(name, label, detector)], path, FOLDER, **options)
                    (arguments.results / f"{stem}.md").write_text(report(read(path), parts))
    print((arguments.results / f"{stem}.md").read_text())


if __name__ == "__main__":
    main()
