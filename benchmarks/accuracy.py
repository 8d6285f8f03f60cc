"""Detectors x data sets x seeds: AUROC and AP on test, and false alarms before and after calibration.

    python benchmarks/accuracy.py [--detectors NAME ...] [--data NAME ...] [--seeds 3] [--threads 2]

Trained on `train` (normal images), calibrated on the normal rows of `val`, reported on `test`. AUROC on `val`
stands beside it: choices are made on that one. Results are appended to benchmarks/results/accuracy.jsonl;
cells that are there already are not run again. The tables go to benchmarks/results/accuracy.md.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from _data import load
from scipy.stats import binom

from skanomaly import AutoEncoder, FAnoGAN
from skanomaly.metrics import auroc, average_precision, best_dice, pixel_auroc, pixel_average_precision, pro

RESULTS = Path(__file__).parent / "results"
FALSE_ALARM_RATE = 0.05

DETECTORS = {
    "AutoEncoder": AutoEncoder(),
    "FAnoGAN izi_f": FAnoGAN(),
    "FAnoGAN izi": FAnoGAN(encoder_training="izi"),
    "FAnoGAN ziz": FAnoGAN(encoder_training="ziz", encoder_output="linear"),
}
DATA = ["cxr_pneumonia", "cxr_nih", "brain_mri"]


def evaluate(detector, splits):
    train, val, test = splits["train"], splits["val"], splits["test"]
    normal = test.images[test.target == 1]
    start = time.perf_counter()
    detector.fit(train.images)
    result = {"fit_seconds": time.perf_counter() - start, "n_val_normal": int((val.target == 1).sum())}
    result["n_test_normal"] = len(normal)
    result["false_alarms_before"] = float(np.mean(detector.predict(normal) == -1))
    detector.calibrate(val.images[val.target == 1], false_alarm_rate=FALSE_ALARM_RATE)
    result["false_alarms_after"] = float(np.mean(detector.predict(normal) == -1))
    result["val_auroc"] = auroc(val.target, -detector.score_samples(val.images))
    score = -detector.score_samples(test.images)
    result["auroc"], result["ap"] = auroc(test.target, score), average_precision(test.target, score)
    components = detector.score_components(test.images)
    result["components"] = {name: auroc(test.target, value) for name, value in components.items()}
    if test.masks is not None:
        maps = detector.anomaly_map(test.images)
        result["pixel_auroc"] = pixel_auroc(test.masks, maps)
        result["pixel_ap"] = pixel_average_precision(test.masks, maps)
        result["pro"] = pro(test.masks, maps)
        result["best_dice"], _ = best_dice(test.masks, maps)
    return result


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spread(cells, key):
    values = [cell[key] for cell in cells]
    return f"{np.mean(values):.3f} ({np.std(values, ddof=1) if len(values) > 1 else 0:.3f})"


def tables(cells):
    kinds = list(dict.fromkeys((cell["data"], cell["detector"]) for cell in cells))
    lines = ["| data | detector | seeds | AUROC | AP | AUROC on val | AUROC of the components | fit, s |"]
    lines.append("| --- " * 8 + "|")
    alarms = [
        "| data | detector | before | after, each seed | 99 % interval around 0.05 |",
        "| --- " * 5 + "|",
    ]
    pixels = ["| data | detector | pixel AUROC | pixel AP | PRO | best Dice |", "| --- " * 6 + "|"]
    for data, name in kinds:
        same = [cell for cell in cells if (cell["data"], cell["detector"]) == (data, name)]
        parts = ", ".join(
            f"{part} {np.mean([cell['components'][part] for cell in same]):.3f}"
            for part in same[0]["components"]
        )
        lines.append(
            f"| {data} | {name} | {len(same)} | {spread(same, 'auroc')} | {spread(same, 'ap')} | "
            f"{spread(same, 'val_auroc')} | {parts} | {np.mean([c['fit_seconds'] for c in same]):.0f} |"
        )
        n = same[0]["n_val_normal"]
        low, high = binom.ppf([0.005, 0.995], n, FALSE_ALARM_RATE) / n
        after = ", ".join(f"{cell['false_alarms_after']:.3f}" for cell in same)
        alarms.append(
            f"| {data} | {name} | {spread(same, 'false_alarms_before')} | {after} | "
            f"{low:.3f} - {high:.3f} ({n} images) |"
        )
        if "pro" in same[0]:
            keys = "pixel_auroc", "pixel_ap", "pro", "best_dice"
            pixels.append(f"| {data} | {name} | " + " | ".join(spread(same, key) for key in keys) + " |")
    thresholds = "thresholds from training (0.1) and from `calibrate` (0.05)"
    return "\n".join(
        ["Test split, mean of the seeds (standard deviation).", "", *lines, ""]
        + [f"False alarm rate on normal test images, {thresholds}.", ""]
        + [*alarms, "", "Pixels of all test images; best Dice is chosen on the true masks.", "", *pixels, ""]
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--data", nargs="+", default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "accuracy.jsonl"
    for data in arguments.data:
        splits = load(data)
        for name in arguments.detectors:
            for seed in range(arguments.seeds):
                parameters = DETECTORS[name].set_params(random_state=seed).get_params()
                key = {"data": data, "detector": name, "seed": seed, "parameters": parameters}
                if any(key.items() <= cell.items() for cell in read(path)):
                    continue
                cell = key | evaluate(DETECTORS[name], splits)
                with path.open("a") as file:
                    file.write(json.dumps(cell) + "\n")
                print(cell, flush=True)
    report = tables(sorted(read(path), key=lambda cell: (cell["data"], cell["detector"], cell["seed"])))
    (RESULTS / "accuracy.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
