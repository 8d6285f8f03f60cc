"""Detectors x data sets x seeds: how well images and pixels are told apart, and false alarms.

    python benchmarks/accuracy.py [--detectors NAME[:parameter=value,...] ...] [--sets NAME ...]
                                  [--data DIR] [--seeds 3] [--epochs N] [--threads 2] [--results DIR]

Trained on `train` (normal images), calibrated on the normal rows of `val` to a false alarm rate of 0.05,
reported on `test`. AUROC on `val` stands beside it: choices are made on that one. A data set is an npz file
in DIR with the arrays `images`, `labels` (0 normal, 1 anomalous) and `split` ("train", "val", "test"), and if
there are any `group_ids` (patients) and `mask`.

Results are appended to accuracy.jsonl in --results; cells that are there already are not run again, unless
they failed. The tables go to accuracy.md beside it.
"""

import argparse
import hashlib
import json
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _data import FOLDER, load
from _detectors import describe, make, names, with_epochs
from scipy.stats import binom

from skanomaly import metrics
from skanomaly.segmentation import residual_mask

FALSE_ALARM_RATE = 0.05
SETS = ["cxr_pneumonia_64", "cxr_nih_64", "brain_mri_64"]
N_PIXEL_RESAMPLES = 50  # of a million pixels each
AT_THRESHOLD = "accuracy", "sensitivity", "specificity", "f1"


def at_threshold(key, threshold):
    def metric(y, score, *, anomaly_label):
        options = {"threshold": threshold, "anomaly_label": anomaly_label}
        return metrics.classification_metrics(y, score, **options)[key]

    return metric


def of_rows(metric, masks, maps, y, rows, *, anomaly_label):
    rows = rows.astype(int)
    return metric(masks[rows], maps[rows])


def evaluate(detector, splits):
    """Each image is judged as seldom as can be: some detectors take a second for one."""
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
    result["val_auroc"] = np.nan
    if (val.target == -1).any():
        result["val_auroc"] = metrics.auroc(val.target, -detector.score_samples(val.images))
    threshold = np.nextafter(-detector.offset_, np.inf)  # `predict` calls a score equal to offset_ normal
    functions = {"auroc": metrics.auroc, "ap": metrics.average_precision}
    functions |= {key: at_threshold(key, threshold) for key in AT_THRESHOLD}
    for key, metric in functions.items():
        interval = metrics.bootstrap_interval(metric, test.target, score, groups=test.groups, random_state=0)
        result[key] = [metric(test.target, score, anomaly_label=-1), *interval]
    components = detector.score_components(test.images)
    result["components"] = {name: metrics.auroc(test.target, value) for name, value in components.items()}
    if test.masks is not None and maps[0] is not None:
        maps = np.concatenate(maps)
        functions = {
            "pixel_auroc": metrics.pixel_auroc,
            "pixel_ap": metrics.pixel_average_precision,
            "pro": metrics.pro,
            "dice": lambda masks, maps: metrics.dice(masks, residual_mask(maps, detector.pixel_offset_)),
            "best_dice": lambda masks, maps: metrics.best_dice(masks, maps)[0],
        }
        for key, metric in functions.items():
            options = {"groups": test.groups, "random_state": 0, "n_resamples": N_PIXEL_RESAMPLES}
            # What is drawn are rows; a "score" is the number of one.
            drawn = partial(of_rows, metric, test.masks, maps)
            interval = metrics.bootstrap_interval(drawn, test.target, np.arange(len(score)), **options)
            result[key] = [metric(test.masks, maps), *interval]
    return result


def read(path):
    """The cells; a line that a killed run left unfinished is passed over."""
    cells = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            cells.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"passing over an unfinished line of {path}")
    return cells


def run(cells, path, folder, *, load=load, evaluate=evaluate):
    """Run the cells that have no result yet, and append theirs.

    A cell is (name of a data set, name of a detector, the detector); what `load` gives for the first is given
    to `evaluate`, with the detector before it.
    """
    done = {cell["key"] for cell in read(path) if "error" not in cell}
    for name, variant, detector in cells:
        file = folder / f"{name.partition(', ')[0]}.npz"  # the rest says what is made of it
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else None
        key = json.dumps([name, digest, describe(detector), detector.random_state], sort_keys=True)
        if key in done:
            continue
        cell = {"key": key, "data": name, "detector": variant, "seed": detector.random_state}
        try:
            cell |= evaluate(detector, load(name, folder))
        except Exception as error:  # one cell must not take the others with it
            traceback.print_exc()
            cell["error"] = f"{type(error).__name__}: {error}"
        with path.open("a+b") as file:
            # On a line of its own, also after an unfinished one.
            file.seek(max(0, file.tell() - 1))
            newline = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(newline + json.dumps(cell).encode() + b"\n")
        print({name: value for name, value in cell.items() if name != "key"}, flush=True)


def mean(cells, key):
    """Mean and standard deviation over the seeds; with an interval, the mean of its ends too."""
    values = np.array([cell[key] for cell in cells], dtype=float)
    of, *interval = values.T if values.ndim == 2 else (values,)
    text = f"{of.mean():.3f} ({of.std(ddof=1) if len(of) > 1 else 0:.3f})"
    return text + " [{:.3f}, {:.3f}]".format(*np.mean(interval, axis=1)) if interval else text


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def report(cells):
    latest = {cell["key"]: cell for cell in cells}.values()  # a later run of a cell replaces it
    failed = [cell for cell in latest if "error" in cell]
    kinds = {}
    for cell in sorted(latest, key=lambda cell: (cell["data"], cell["detector"], cell["seed"])):
        if "error" not in cell:
            kinds.setdefault((cell["data"], cell["detector"]), []).append(cell)
    ranking, components, threshold, alarms, pixels = [], [], [], [], []
    for kind, same in kinds.items():
        seconds, speed = (
            np.mean([cell[key] for cell in same]) for key in ("fit_seconds", "images_per_second")
        )
        figures = [mean(same, key) for key in ("auroc", "ap", "val_auroc")]
        ranking.append([*kind, len(same), *figures, f"{seconds:.0f}", f"{speed:.0f}"])
        parts = {name: [cell["components"][name] for cell in same] for name in same[0]["components"]}
        components.append([*kind, ", ".join(f"{name} {np.mean(part):.3f}" for name, part in parts.items())])
        threshold.append([*kind, *(mean(same, key) for key in AT_THRESHOLD)])
        n = same[0]["n_val_normal"]
        low, high = binom.ppf([0.005, 0.995], n, FALSE_ALARM_RATE) / n
        after = ", ".join(f"{cell['false_alarms_after']:.3f}" for cell in same)
        interval = f"{low:.3f} - {high:.3f} ({n} images)"
        alarms.append([*kind, mean(same, "false_alarms_before"), after, interval])
        if "pro" in same[0]:
            keys = "pixel_auroc", "pixel_ap", "pro", "dice", "best_dice"
            pixels.append([*kind, *(mean(same, key) for key in keys)])
    kind = "data", "detector"
    parts = [
        "Made by `python benchmarks/accuracy.py --threads 1`. Test split; mean of the seeds (standard "
        "deviation) and, in brackets, 95 % bootstrap interval over patients, its ends averaged over the "
        "seeds. Seconds are of two cores that did other things too.\n",
        table([*kind, "seeds", "AUROC", "AP", "AUROC on val", "fit, s", "images/s"], ranking),
        "AUROC of the components of the score:\n",
        table([*kind, "components"], components),
        f"At the threshold from `calibrate` with a false alarm rate of {FALSE_ALARM_RATE}:\n",
        table([*kind, "accuracy", "sensitivity", "specificity", "F1"], threshold),
        "False alarm rate on normal test images, with the threshold from training (contamination 0.1) and "
        f"from `calibrate` ({FALSE_ALARM_RATE}):\n",
        table([*kind, "before", "after, each seed", f"99 % interval around {FALSE_ALARM_RATE}"], alarms),
    ]
    if pixels:
        parts += [
            "Pixels of all test images; Dice at the calibrated pixel threshold, and at the best one, which "
            "is chosen on the true masks:\n",
            table([*kind, "pixel AUROC", "pixel AP", "PRO", "Dice", "best Dice"], pixels),
        ]
    if failed:
        parts += [
            "Failed:\n",
            table(
                [*kind, "seed", "error"], [[c["data"], c["detector"], c["seed"], c["error"]] for c in failed]
            ),
        ]
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", default=names())
    parser.add_argument("--data", type=Path, help="folder of npz files; all of them, unless --sets says")
    parser.add_argument("--sets", nargs="+", help=f"names of npz files; default {' '.join(SETS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, help="of every stage, and a tenth of the steps of a search; for a short run"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    label = f" ({arguments.epochs} epochs)" if arguments.epochs else ""
    found = sorted(path.stem for path in arguments.data.glob("*.npz")) if arguments.data else SETS
    cells = [
        (name, variant + label, with_epochs(make(variant, random_state=seed), arguments.epochs))
        for name in arguments.sets or found
        for variant in arguments.detectors
        for seed in range(arguments.seeds)
    ]
    path = arguments.results / "accuracy.jsonl"
    run(cells, path, arguments.data or FOLDER)
    text = report(read(path))
    (arguments.results / "accuracy.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
