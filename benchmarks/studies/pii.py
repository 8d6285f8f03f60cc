"""Training on synthetic anomalies: the table of PII, DDAD's comparison, anomalies by kind, and a picture.

    python benchmarks/studies/pii.py [--parts NAME ...] [--sets NAME ...] [--data DIR] [--seeds 1]
                                     [--epochs N] [--limit 0] [--threads 2] [--results DIR]
                                     [--adopt [CLASS ...]]

lecture: image-level average precision, and AUROC, of Deep SVDD, VQ-VAE-2, FPI and PII (Tan et al. 2021).
unlabelled: CutPaste, FPI, PII and NSA, where what is foreign comes from other normal images, and where it
comes from unlabelled ones (rows with a star; Cai et al. 2022). Unlabelled are the images of `val` without
their labels, so that nothing was chosen on them.
kinds: AUROC of pixels in normal images of `test` into which anomalies of each kind of skanomaly.synthesis
were worked, for every method with maps: does it find new anomalies of its own kind, and those of others?

Trained on `train`, judged on `test`. A set is a file as for accuracy.py. --data takes a folder of others, as
chest X-rays of men and of women or views of fetal ultrasound; then all files in it, unless --sets says.

Cells are kept in pii/cells.jsonl of --results and are not run again; the tables go to table.md beside it, and
for each set that has masks or may be published a picture of images, maps and true outlines. Pictures and
results of N epochs go to a folder of their own.
"""

from functools import partial

import numpy as np
from _pictures import save_grid

from skanomaly import _comparison, metrics
from skanomaly._comparison import (
    CELLS,
    SETS,
    compare,
    make,
    may_draw,
    mean,
    parse,
    select,
    table,
    with_epochs,
)
from skanomaly.synthesis import SYNTHESES, synthesize

LECTURE = {
    "Deep SVDD": "DeepSVDD",
    "VQ-VAE-2": "VQVAE",
    "FPI": "SyntheticAnomalies:synthesis=fpi,network=wide_residual",
    "PII": "SyntheticAnomalies:synthesis=pii,network=wide_residual",
}
SOURCES = {
    "CutPaste": "CutPaste",
    "CutPaste e2e": "SyntheticAnomalies:synthesis=cutpaste",
    **dict(list(LECTURE.items())[2:]),
    "NSA": "SyntheticAnomalies:synthesis=nsa",
}
MADE = {
    **SOURCES,
    "AnatPaste": "SyntheticAnomalies:synthesis=anat_paste",
    "mixture": "SyntheticAnomalies",
    "DRAEM": "DRAEM",
}
#: Methods that take what is foreign from an image itself.
OWN = ("CutPaste",)
PARTS = {"lecture": LECTURE, "unlabelled": SOURCES, "kinds": MADE}
METRICS = {"ap": metrics.average_precision, "auroc": metrics.auroc}
#: End of the name of a set with unlabelled images.
UNLABELLED = ", unlabelled"
N_SHOWN = 4  # anomalous images in a picture


def evaluate(detector, splits, *, unlabelled, path):
    """Average precision and AUROC on "test", and AUROC by kind; the maps of some images go to a file."""
    normal, test = splits["train"].images, splits["test"]
    if unlabelled:
        y = np.repeat([1, 0], [len(normal), len(splits["val"].images)])
        detector.fit(np.concatenate([normal, splits["val"].images]), y)
    else:
        detector.fit(normal)
    score = -detector.score_samples(test.images)
    found = {key: metric(test.target, score) for key, metric in METRICS.items()}
    if np.isfinite(detector.pixel_offset_):  # else it has no maps
        found |= by_kind(detector, test.images[test.target == 1])
        if path is not None:
            np.save(path, detector.anomaly_map(test.images[shown(test)]))
    return found


def by_kind(detector, images):
    """AUROC of pixels in `images` with synthetic anomalies, by their kind."""
    found = {}
    for kind, synthesis in SYNTHESES.items():
        made = synthesize(images, synthesis, intensity_range=detector.intensity_range_, random_state=0)
        found[kind] = metrics.pixel_auroc(made.masks, detector.anomaly_map(made.images))
    return found


def shown(test):
    """Rows of the images in a picture."""
    return np.flatnonzero(test.target == -1)[:N_SHOWN]


def stem(folder, data, label):
    return folder / f"{data}_{label}.npy".replace(" ", "_").replace(",", "")


def draw(folder, data, test):
    """Picture of anomalous images, one a column, and of the maps of each method of the lecture."""
    rows = shown(test)
    lines = [("image", test.images[rows], "gray", None, None)]
    for label in LECTURE:
        if (path := stem(folder, data, label)).exists():
            maps = np.load(path)
            lines.append((label, maps, "magma", maps.min(), np.quantile(maps, 0.995)))
    masks = None if test.masks is None else test.masks[rows]
    save_grid(folder / f"{data}.png", lines, [""] * len(rows), masks=masks)


def report(cells, sets):
    def rows(methods, stars):
        for label, star in ((label, star) for label in methods for star in stars):
            same = [
                select(cells, data=data + UNLABELLED * bool(star), detector=label + star) for data in sets
            ]
            figures = [mean(of, key) for of in same for key in METRICS]
            if any(same):
                yield [label + star, "/".join(str(len(of)) for of in same), *figures]

    head = ["method", "seeds", *(f"{data} {key}" for data in sets for key in ("AP", "AUROC"))]
    sections = {"The table of PII:": table(head, rows(LECTURE, [""]))}
    if any(cell["data"].endswith(UNLABELLED) for cell in cells):
        heading = "What is foreign comes from other normal images, or from unlabelled ones (with a star):"
        sections[heading] = table(head, rows(SOURCES, ["", "*"]))
    for data in sets:
        lines = [(label, select(cells, data=data, detector=label)) for label in MADE]
        lines = [[label, *(mean(of, kind) for kind in SYNTHESES)] for label, of in lines if of]
        heading = f"AUROC of pixels in normal images of {data} with anomalies of each kind:"
        sections |= {heading: table(("method", *SYNTHESES), lines)} if lines else {}
    about = (
        "Made by `python benchmarks/studies/pii.py`. Test split; mean of the seeds (standard deviation).\n"
    )
    return "\n".join([about, *(f"{heading}\n\n{made}" for heading, made in sections.items())])


def main():
    parts = {"nargs": "+", "default": list(PARTS), "choices": list(PARTS)}
    options = parse(__doc__, __file__, CELLS, sets={"nargs": "+"}, parts=parts, limit={"default": 0})
    of_folder = [file.stem for file in sorted(options.data.glob("*.npz"))]
    sets = options.sets or (SETS if options.data == _comparison.FOLDER else of_folder)

    def cells():
        for seed in range(options.seeds):
            methods = {label: method for part in options.parts for label, method in PARTS[part].items()}
            for data, (label, method) in ((data, item) for data in sets for item in methods.items()):
                for star in ("", "*") if "unlabelled" in options.parts and label in SOURCES else ("",):
                    if star and label in OWN:
                        continue
                    drawn = not (seed or star) and label in LECTURE and may_draw(data, options.folder)
                    judge = partial(
                        evaluate,
                        unlabelled=bool(star),
                        path=stem(options.folder, data, label) if drawn else None,
                    )
                    detector = with_epochs(make(method, random_state=seed), options.epochs)
                    yield data + UNLABELLED * bool(star), label + star, detector, judge

    compare(options, cells(), partial(report, sets=sets), load=load)
    for data in sets:
        if "lecture" in options.parts and may_draw(data, options.folder):
            draw(options.folder, data, _comparison.load(data, options.data)["test"])


def load(name, folder):
    """Splits of a set, for a name as "cxr_nih_64" or "cxr_nih_64, unlabelled"."""
    return _comparison.load(name.partition(", ")[0], folder)


if __name__ == "__main__":
    main()
