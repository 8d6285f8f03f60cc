"""Detectors x data sets x seeds: how well images and pixels are told apart, and false alarms.

    python benchmarks/accuracy.py [--detectors NAME[:parameter=value,...] ...] [--baselines]
                                  [--sets NAME ...] [--data DIR] [--seeds 1] [--epochs N] [--limit 150]
                                  [--threads 2] [--results DIR] [--adopt [CLASS ...]]

Trained on `train` (normal images), calibrated on the normal rows of `val` to a false alarm rate of 0.05,
reported on `test`. AUROC on `val` stands beside it: choices are made on that one. "PaDiM + DRAEM" is a
ScoreEnsemble of the two. A data set is an npz file in DIR with the arrays `images`, `labels` (0 normal, 1
anomalous) and `split` ("train", "val", "test"), and if there are any `group_ids` (patients) and `mask`. Of
another DIR all files are taken, unless --sets says.

Baselines without a network take seconds and are run first, or alone with --baselines. Each set has a best
confound: the number, such as sharpness, that alone tells its test images best apart. The AUROC within its
strata says what a detector finds among images that are alike in it.

Cells are kept in accuracy/cells.jsonl of --results and are not run again, unless they failed or the code of
their detector has changed; --adopt takes them for cells of the present code, after a change that was shown to
leave scores bit-equal. The tables go to table.md beside it, the AUROCs in short to summary.md.
"""

from functools import partial
from itertools import product

import _baselines
import numpy as np
from scipy.stats import binom

from skanomaly import _comparison
from skanomaly._comparison import AT_THRESHOLD, FALSE_ALARM_RATE, mean, select, table

KIND = "data", "detector"
N_BEST = 10  # in the summary
PIXELS = {"pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pro": "PRO", "dice": "Dice"}
PIXELS |= {"best_dice": "best Dice"}


def within_strata(same):
    """AUROC within strata, as text; "-" for cells that were measured before they had one."""
    return mean(same if all("stratified_auroc" in cell for cell in same) else [], "stratified_auroc")


def audited(cells):
    """Cell of each set that knows the set's best confound, which does not depend on the detector."""
    return {cell["data"]: cell | {"stale": False} for cell in cells if "confound" in cell}


def confounds(cells):
    """Table of the best confound of each set."""
    found = sorted(audited(cells).items())
    rows = [[data, cell["confound"], mean([cell], "confound_auroc")] for data, cell in found]
    return table(["data", "best confound", "AUROC alone"], rows)


def false_alarms(same):
    n = same[0]["n_val_normal"]
    low, high = binom.ppf([0.005, 0.995], n, FALSE_ALARM_RATE) / n
    after = ", ".join(f"{cell['false_alarms_after']:.3f}" for cell in same)
    return mean(same, "false_alarms_before"), after, f"{low:.3f} - {high:.3f} ({n} images)"


def report(cells, expected=()):
    """Tables of the cells, and a row of "-" for each pair (data, detector) of `expected` that has none."""
    kinds = sorted({*expected, *((cell["data"], cell["detector"]) for cell in cells)})
    every = {kind: select(cells, **dict(zip(KIND, kind))) for kind in kinds}
    kinds = {kind: same for kind, same in every.items() if same}

    def part(title, head, row, kinds=kinds):
        return f"{title}\n\n" + table([*KIND, *head], [[*kind, *row(same)] for kind, same in kinds.items()])

    def ranking(same):
        if not same:
            return 0, *"------"
        times = (np.mean([cell[key] for cell in same]) for key in ("fit_seconds", "images_per_second"))
        auroc, *others = (mean(same, key) for key in ("auroc", "ap", "val_auroc"))
        return len(same), auroc, within_strata(same), *others, *(f"{time:.0f}" for time in times)

    def components(same):
        names = same[0]["components"]
        return (", ".join(f"{name} {np.mean([c['components'][name] for c in same]):.3f}" for name in names),)

    composed = {kind: same for kind, same in kinds.items() if same[0]["components"]}
    parts = [
        part(
            "Made by `python benchmarks/accuracy.py --seeds 3 --limit 0 --threads 1`. Test split; mean of "
            "the seeds (standard deviation) and, in brackets, 95 % bootstrap interval over patients, its "
            "ends averaged over the seeds. The AUROC within strata compares images that are alike in the "
            "best confound of the set (next table). Seconds are of two cores that did other things too.",
            ("seeds", "AUROC", "AUROC within strata", "AP", "AUROC on val", "fit, s", "images/s"),
            ranking,
            every,
        ),
        "Best confound of each set: the number that alone tells its test images best apart, and the larger "
        "of its AUROC and 1 - AUROC. A baseline of one number has its direction from val.\n\n"
        + confounds(cells),
        part("AUROC of the components of the score:", ["components"], components, composed),
        part(
            f"At the threshold from `calibrate` with a false alarm rate of {FALSE_ALARM_RATE}:",
            ("accuracy", "sensitivity", "specificity", "F1"),
            lambda same: [mean(same, key) for key in AT_THRESHOLD],
        ),
        part(
            "False alarm rate on normal test images, with the threshold from training (contamination 0.1) "
            f"and from `calibrate` ({FALSE_ALARM_RATE}):",
            ("before", "after, each seed", f"99 % interval around {FALSE_ALARM_RATE}"),
            false_alarms,
        ),
    ]
    if masked := {kind: same for kind, same in kinds.items() if "pro" in same[0]}:
        title = (
            "Pixels of all test images; Dice at the calibrated pixel threshold, and at the best one, which "
        )
        title += "is chosen on the true masks:"
        parts.append(part(title, PIXELS.values(), lambda same: [mean(same, key) for key in PIXELS], masked))
    return "\n".join(parts)


def summary(cells, sets, labels):
    """AUROC of the best on each set, and within strata; the best mean first, what lacks a set last."""
    rows = {label: [select(cells, data=data, detector=label) for data in sets] for label in labels}
    figures = {
        label: np.array([np.mean([c["auroc"] for c in of], 0) if of else [np.nan] * 3 for of in row])
        for label, row in rows.items()
        if any(row)
    }
    means = {label: np.nanmean(figure[:, 0]) for label, figure in figures.items()}
    best = np.nanmax([figure[:, 0] for figure in figures.values()], axis=0) if figures else ()

    def shown(same, figure, best):
        value, low, high = figure
        text = f"**{value:.3f}**" if value == best else f"{value:.3f}"
        text += " (chance)" if low <= 0.5 <= high else ""
        return f"{text} / {within_strata(same).split(' ')[0]}" if same else "-"

    ranked = sorted(means, key=lambda label: (np.isnan(figures[label]).any(), -means[label]))
    lines = [
        [label, *map(shown, rows[label], figures[label], best)]
        + ["-" if np.isnan(figures[label]).any() else f"{means[label]:.3f}"]
        for rank, label in enumerate(ranked)
        if rank < N_BEST or (figures[label][:, 0] == best).any()
    ]
    found = [audited(cells).get(data) for data in sets]
    alone = [f"{cell['confound_auroc'][0]:.3f} {cell['confound']}" if cell else "-" for cell in found]
    lines.append(["(best confound alone)", *alone, "-"])
    text = "```{table}\n:class: table-sm\n\n" + table(["detector", *sets, "mean"], lines) + "```\n"
    earlier = ", some with earlier code or defaults" * any(cell["stale"] for cell in cells)
    n_baselines = sum(label.startswith(_baselines.PREFIX) for label in means)
    n, n_all = len(means) - n_baselines, sum(not label.startswith(_baselines.PREFIX) for label in labels)
    return text + (
        f"\n{n} of {n_all} detectors and {n_baselines} baselines have been measured{earlier}; "
        f"shown are {len(lines) - 1}.\n"
    )


def main():
    names = _comparison.names()
    own = {"sets": {"default": None}, "detectors": {"nargs": "+", "default": names}}
    own["baselines"] = {"action": "store_true", "help": "baselines only"}
    options = _comparison.parse(__doc__, __file__, _comparison.CELLS, **own)
    sets = _comparison.SETS
    if options.data != _comparison.FOLDER:
        sets = options.sets or sorted(path.stem for path in options.data.glob("*.npz"))
    wanted = options.sets or sets
    cells = _baselines.cells(wanted, options.seeds)
    cells += [
        (data, label, _comparison.with_epochs(_comparison.make(label, random_state=seed), options.epochs))
        for data in wanted
        for label in ([] if options.baselines else options.detectors)
        for seed in range(options.seeds)
    ]
    tables = partial(report, expected=list(product(sets, names)))
    results = _comparison.compare(options, cells, tables)
    # Those of one number are left out: the best of them has a line of its own.
    baselines = [
        f"{_baselines.PREFIX}{kind}" for kind in _baselines.KINDS if kind not in _baselines.CONFOUNDS
    ]
    labels = dict.fromkeys([*names, *options.detectors, *baselines])
    (options.folder / "summary.md").write_text(summary(results, sets, labels))


if __name__ == "__main__":
    main()
