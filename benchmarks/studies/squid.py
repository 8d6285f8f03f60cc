"""SQUID on DigitAnatomy and chest X-rays: which anomalies it finds, by which of its parts, and when it fails.

    python benchmarks/studies/squid.py [--parts NAME ...] [--full] [--seeds 1] [--epochs N] [--limit 150]
                                       [--threads 2] [--results DIR] [--adopt [CLASS ...]]

headline: on grids of digits, AUROC of each kind of anomaly, and whether reconstructions show the digit that
belongs where another or none is; beside AutoEncoder and MemAE, as long as these train by default, and FAnoGAN
of 10 + 10 epochs, which take as long as SQUID's 25.
components: SQUID without each of its parts. robustness: other numbers of windows, slots and so on.
contamination: 75 % and 50 % of the training grids normal, the others with an anomaly of any kind but "zero".
chest: cxr_pneumonia_128 at the threshold from the normal images of `val`. default: cxr_pneumonia_64 likewise,
by SQUID as it is by default.

On two cores all of it takes no more than 2 hours, a cell up to 20 minutes (--limit 0): width 8, 400 grids, 25
epochs, and one seed but for headline and chest. --full is the size of the paper, width 32, 1600 grids and 200
epochs, for a GPU.

Cells are kept in squid/cells.jsonl of --results, the tables in table.md, and of seed 0 of the headline
pictures; those of --full and of N epochs go to folders of their own, squid_full and squid_N_epochs.
"""

import re
import time
from functools import cache, partial

import numpy as np
from _pictures import save_grid
from sklearn.svm import SVC

from skanomaly import _comparison, metrics
from skanomaly._comparison import AT_THRESHOLD, CELLS, compare, make, mean, parse, select, table, with_epochs
from skanomaly.datasets import make_digit_anatomy

KINDS = "missing", "misordered", "flipped", "zero"
RESTORED = "missing", "zero"
N_TEST = {"val": 250, "test": 500}
N_RECOGNISED = 200  # grids whose digits the support vector machine learns
#: Grids, epochs and width.
SMALL, FULL = (400, 25, 8), (1600, 200, 32)
RIVALS = {
    "AutoEncoder": "AutoEncoder",
    "MemAE": "MemAE:similarity=dot,shrinkage_threshold=0.0025",
    "FAnoGAN": "FAnoGAN:max_epochs=10,encoder_epochs=10",
}
CHESTS = "cxr_pneumonia_128", "cxr_pneumonia_64"
COMPONENTS = {
    "no space-awareness": "space_aware=False",
    "no queue: learned items": "memory=matrix",
    "hard shrinkage": "shrinkage=hard",
    "no masked shortcut": "rho=1.0",
    "no distillation": "distillation_weight=0.0",
    "no discriminator": "adversarial_weight=0.0,discriminator_weight=0.0",
}
OTHERS = "similarity=dot", "n_windows=2", "k=1", "n_slots=50", "rho=0.5"
PARTS = "headline", "components", "robustness", "contamination", "chest", "default"


@cache
def load(name, folder):
    """Images by split, of a file or for a name as "400 grids, 75 % normal"."""
    if "grids" not in name:
        return _comparison.load(name, folder)
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
    parts = load(name, None)
    test, (average, recogniser) = parts["test"], known(parts["train"])
    shown = {
        "(the grid before the anomaly)": test.normal,
        "(the input itself)": test.images,
        "(the mean of the training grids)": np.broadcast_to(average, test.images.shape),
    }
    return [
        {"detector": label, "restoration": restoration(test, images, average, recogniser), "stale": False}
        for label, images in shown.items()
    ]


def evaluate(detector, splits, *, path):
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
    if path is not None:
        draw(detector, test.images[:5], test.kind[:5], path)
    return result


def draw(detector, images, kinds, path):
    maps = detector.anomaly_map(images)
    lines = [
        ("input", images, "gray", 0, 255),
        ("reconstruction", detector.reconstruct(images), "gray", 0, 255),
        ("map", maps, "magma", 0, np.quantile(maps, 0.99)),
    ]
    save_grid(path, lines, kinds, size=2)


def auroc_table(cells, rows):
    """AUROC of the score, and of the components where there is more than one."""
    lines = []
    for label in rows:
        same = select(cells, detector=label)
        figures = [mean(same, "auroc", kind) for kind in (*KINDS, "mean")]
        seconds = f"{np.mean([cell['fit_seconds'] for cell in same]):.0f}" if same else "-"
        lines.append([label, "score", len(same), *figures, mean(same, "val_auroc"), seconds])
        known = "discriminator", "residual", "feature"
        names = [name for name in known if same and name in same[0]["components"]]
        for name in names if len(names) > 1 else ():
            figures = [mean(same, "components", name, kind) for kind in (*KINDS, "mean")]
            lines.append([label, name, len(same), *figures, "", ""])
    return table(("detector", "", "seeds", *KINDS, "mean", "mean on val", "fit, s"), lines)


def restoration_table(cells, rows):
    keys = "nearer than input", "nearer than mean", "both", "grid nearer than mean", "recognised"
    lines = [
        [label, kind, *(mean(select(cells, detector=label), "restoration", kind, key) for key in keys)]
        for label in rows
        for kind in RESTORED
    ]
    titles = "nearer to the truth than to the input", "than the mean image is", "both"
    return table(("detector", "cell", *titles, "whole grid than the mean image is", "recognised"), lines)


def report(cells, parts):
    text = [
        "Made by `python benchmarks/studies/squid.py --limit 0`, cxr_pneumonia_64 by `--parts default "
        "--seeds 3`. Test split; mean of the seeds (standard deviation). On 400 grids SQUID is trained for "
        "25 epochs, 625 steps, and FAnoGAN for 10 + 10, 500 steps: too few to say how they compare after the "
        "200 epochs on 1,600 grids of --full.\n"
    ]
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
            of = select(cells, data=name)
            if part != "headline":
                of = [cell for cell in of if cell["seed"] < max(1, n_seeds)]
            text += [f"{title} {name}.\n", auroc_table(of, rows)]
            if part == "headline":
                of += references(name)
                rows = [*rows, *(cell["detector"] for cell in references(name))]
            if part in ("headline", "components"):
                text += [restoration_table(of, rows)]
    chests = {name: select(cells, data=name) for name in CHESTS}
    rows, components = [], {}
    for name, of in chests.items():
        figures = [mean(of, key) for key in ("auroc", "ap", *AT_THRESHOLD, "val_auroc")]
        seconds = f"{np.mean([cell['fit_seconds'] for cell in of]):.0f}" if of else "-"
        rows.append([name, len(of), *figures, seconds])
        for component in of[0]["components"] if of else ():
            components.setdefault(component, {})[name] = mean(of, "components", component)
    if components:
        head = "data", "seeds", "AUROC", "AP", *AT_THRESHOLD, "AUROC on val", "fit, s"
        text += ["Chest X-rays, at the threshold from the normal images of `val` (false alarm rate 0.05):\n"]
        text += [table(head, rows)]
        lines = [[component, *(of.get(name, "-") for name in CHESTS)] for component, of in components.items()]
        text += ["AUROC of the components:\n", table(("component", *CHESTS), lines)]
    return "\n".join(text)


def main():
    options = parse(__doc__, __file__, f"{CELLS} full", parts={"default": PARTS, "choices": PARTS})
    n, epochs, width = FULL if options.full else SMALL
    squid = f"SQUID:max_epochs={epochs},width={width}"
    shares = [f"{n} grids, {share} % normal" for share in (100, 75, 50)]
    digits = f"{squid},n_windows=3,stitch_level=1"
    rivals = {name: name if options.full else variant for name, variant in RIVALS.items()}
    without = {name: f"{digits},{part}" for name, part in COMPONENTS.items()}
    others = {part: f"{digits},{part}" for part in OTHERS}
    n_seeds = options.seeds if options.full else 1
    parts = {
        "headline": (shares[:1], {"SQUID": digits} | rivals, options.seeds),
        "components": (shares[:1], {"SQUID": digits} | without, n_seeds),
        "robustness": (shares[:1], {"SQUID": digits} | others, n_seeds),
        "contamination": (shares, {"SQUID": digits} | rivals, n_seeds),
        "chest": (CHESTS[:1], {"SQUID": squid}, options.seeds),
        "default": (CHESTS[1:], {"SQUID": "SQUID"}, options.seeds),
    }

    def cells():
        for seed in range(options.seeds):
            for data, rows, n_seeds in (parts[part] for part in options.parts):
                for name in data if seed < n_seeds else ():
                    for label, variant in rows.items():
                        shown = seed == 0 and name == shares[0] and label in parts["headline"][1]
                        path = options.folder / f"{label}.png" if shown else None
                        judge = _comparison.evaluate if name in CHESTS else partial(evaluate, path=path)
                        detector = with_epochs(make(variant, random_state=seed), options.epochs)
                        yield name, label, detector, judge

    compare(options, cells(), partial(report, parts=parts), load=load)


if __name__ == "__main__":
    main()
