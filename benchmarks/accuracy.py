"""Detectors x data sets x seeds: how well images and pixels are told apart, and false alarms.

    python benchmarks/accuracy.py [--detectors NAME[:parameter=value,...] ...] [--sets NAME ...]
                                  [--data DIR] [--seeds 1] [--epochs N] [--limit 150] [--threads 2]
                                  [--results DIR] [--adopt [CLASS ...]]

Trained on `train` (normal images), calibrated on the normal rows of `val` to a false alarm rate of 0.05,
reported on `test`. AUROC on `val` stands beside it: choices are made on that one. A data set is an npz file
in DIR with the arrays `images`, `labels` (0 normal, 1 anomalous) and `split` ("train", "val", "test"), and if
there are any `group_ids` (patients) and `mask`. Of another DIR all files are taken, unless --sets says.

Cells are kept in accuracy/cells.jsonl of --results and are not run again, unless they failed or the code of
their detector has changed; --adopt takes them for cells of the present code, after a change that was shown to
leave scores bit-equal. The tables go to table.md beside it, the AUROCs in short to summary.md.
"""

from functools import partial
from itertools import product

import numpy as np
from scipy.stats import binom

from skanomaly import _comparison
from skanomaly._comparison import AT_THRESHOLD, FALSE_ALARM_RATE, mean, select, table

KIND = "data", "detector"
N_BEST = 8  # in the summary
PIXELS = {"pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pro": "PRO", "dice": "Dice"}
PIXELS |= {"best_dice": "best Dice"}


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
            return 0, *"-----"
        times = (np.mean([cell[key] for cell in same]) for key in ("fit_seconds", "images_per_second"))
        figures = (mean(same, key) for key in ("auroc", "ap", "val_auroc"))
        return len(same), *figures, *(f"{time:.0f}" for time in times)

    def components(same):
        names = same[0]["components"]
        return (", ".join(f"{name} {np.mean([c['components'][name] for c in same]):.3f}" for name in names),)

    parts = [
        part(
            "Made by `python benchmarks/accuracy.py --seeds 3 --limit 0 --threads 1`. Test split; mean of "
            "the seeds (standard deviation) and, in brackets, 95 % bootstrap interval over patients, its "
            "ends averaged over the seeds. Seconds are of two cores that did other things too.",
            ("seeds", "AUROC", "AP", "AUROC on val", "fit, s", "images/s"),
            ranking,
            every,
        ),
        part("AUROC of the components of the score:", ["components"], components),
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
    """AUROC of the best detectors on each set, the best mean first; what lacks a set comes last."""
    rows = {}
    for label in labels:
        found = (select(cells, data=data, detector=label) for data in sets)
        rows[label] = np.array([np.mean([c["auroc"] for c in of], 0) if of else [np.nan] * 3 for of in found])
    means = {label: np.nanmean(row[:, 0]) for label, row in rows.items() if not np.isnan(row).all()}
    best = np.nanmax([rows[label][:, 0] for label in means], axis=0) if means else ()

    def shown(figure, best):
        value, low, high = figure
        text = f"**{value:.3f}**" if value == best else f"{value:.3f}"
        return "-" if np.isnan(value) else f"{text} (chance)" if low <= 0.5 <= high else text

    ranked = sorted(means, key=lambda label: (np.isnan(rows[label]).any(), -means[label]))
    lines = [
        [label, *map(shown, rows[label], best), "-" if np.isnan(rows[label]).any() else f"{means[label]:.3f}"]
        for rank, label in enumerate(ranked)
        if rank < N_BEST or (rows[label][:, 0] == best).any()
    ]
    text = "```{table}\n:class: table-sm\n\n" + table(["detector", *sets, "mean"], lines) + "```\n"
    earlier = ", some with earlier code or defaults" * any(cell["stale"] for cell in cells)
    return (
        text
        + f"\n{len(means)} of {len(rows)} detectors have been measured{earlier}; shown are {len(lines)}.\n"
    )


def main():
    names = _comparison.names()
    own = {"sets": {"default": None}, "detectors": {"nargs": "+", "default": names}}
    options = _comparison.parse(__doc__, __file__, _comparison.CELLS, **own)
    sets = _comparison.SETS
    if options.data != _comparison.FOLDER:
        sets = options.sets or sorted(path.stem for path in options.data.glob("*.npz"))
    cells = [
        (data, label, _comparison.with_epochs(_comparison.make(label, random_state=seed), options.epochs))
        for data in options.sets or sets
        for label in options.detectors
        for seed in range(options.seeds)
    ]
    tables = partial(report, expected=list(product(sets, names)))
    results = _comparison.compare(options, cells, tables)
    labels = dict.fromkeys([*names, *options.detectors])
    (options.folder / "summary.md").write_text(summary(results, sets, labels))


if __name__ == "__main__":
    main()
