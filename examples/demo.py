"""
The main job
============

Two detectors look for pneumonia in chest X-rays, after they have been fitted to healthy ones only.
``make demo`` runs this script. The first table comes within a minute, the rest takes minutes::

    python examples/demo.py [--folder demo]

FeatureGaussian, the detector to begin with, and FAnoGAN, the classic, are fitted to 433 normal chest X-rays
of children. Their thresholds are set on 77 other normal X-rays. The report is on 335 unseen X-rays, 180 of
them with pneumonia, and compares the detectors with scores that need no network. Since the ill are X-rayed
less sharply here, it also says how well each score tells apart images that are alike in sharpness. The report
(chest_xray.md), two pictures (chest_xray.png and overview.png) and the fitted FeatureGaussian are written to
the folder.
"""

# sphinx_gallery_thumbnail_path = '_static/chest_xray.png'

import argparse
import time
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import RocCurveDisplay
from sklearn.neighbors import NearestNeighbors

from skanomaly import FAnoGAN, FeatureGaussian
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import (
    auroc,
    average_precision,
    bootstrap_interval,
    classification_metrics,
    confounds,
    stratified_auroc,
)
from skanomaly.persistence import save
from skanomaly.plotting import AnomalyMapDisplay, ScoreHistogramDisplay

SEED = 0
FALSE_ALARM_RATE = 0.05
THRESHOLDS = (
    "| threshold | false alarm rate | sensitivity | specificity | precision | F1 |",
    "| --- " * 6 + "|",
)


def trivial_scores(train, images):
    """Anomaly scores without a network; an image with more of what the name says is more anomalous."""
    rows, flat = train.reshape(len(train), -1) / 255, images.reshape(len(images), -1) / 255
    pca = PCA(30, random_state=SEED).fit(rows)
    rebuilt = pca.inverse_transform(pca.transform(flat))
    return {
        "PCA-30 reconstruction error": ((rebuilt - flat) ** 2).mean(1),
        "nearest training image, L2": NearestNeighbors(n_neighbors=1).fit(rows).kneighbors(flat)[0][:, 0],
        "mean intensity": flat.mean(1),
        "lack of sharpness": -confounds(images)["sharpness"],
    }


def ranking_table(scores, test):
    head = "score", "AUROC [95 %]", "AP [95 %]", "AUROC, images alike in sharpness"
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    sharpness = confounds(test.images)["sharpness"]
    for name, score in scores.items():
        cells = []
        for metric in auroc, average_precision:
            low, high = bootstrap_interval(metric, test.target, score, groups=test.groups, random_state=SEED)
            cells.append(f"{metric(test.target, score):.3f} [{low:.3f}, {high:.3f}]")
        cells.append(f"{stratified_auroc(test.target, score, sharpness):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def threshold_rows(name, detector, test):
    keys = "false_alarm_rate", "sensitivity", "specificity", "precision", "f1"
    score = -detector.decision_function(test.images)
    # Above 0 by one step: `predict` calls an image normal if its score equals the threshold.
    values = classification_metrics(test.target, score, threshold=np.nextafter(0, 1))
    return f"| {name} | " + " | ".join(f"{values[key]:.3f}" for key in keys) + " |"


def choose(suspicion, target):
    """For each class, the most suspicious image, and those a third and two thirds down the list."""
    chosen, titles = [], []
    for label, name in ((-1, "pneumonia"), (1, "normal")):
        ranked = np.flatnonzero(target == label)
        ranked = ranked[np.argsort(-suspicion[ranked])]
        chosen += [ranked[0], ranked[len(ranked) // 3], ranked[2 * len(ranked) // 3]]
        titles += [name] * 3
    return chosen, titles


def overview(detector, suspicion, test):
    """Images with outlines of the flagged pixels, above their maps."""
    chosen, titles = choose(suspicion, test.target)
    images = test.images[chosen]
    maps, masks = detector.anomaly_map(images), detector.segment(images, median_size=3, min_size=8)
    low, high = detector.map_range_
    figure, axes = plt.subplots(2, len(chosen), figsize=(10, 3.4), layout="constrained")
    for column, title, image, heat, mask in zip(axes.T, titles, images, maps, masks):
        column[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        if mask.any():
            column[0].contour(mask, [0.5], colors="red", linewidths=1)
        shown = column[1].imshow(heat, cmap="inferno", vmin=low, vmax=high)
        column[0].set_title(title, fontsize=10)
    for ax in axes.flat:
        ax.set_axis_off()
    figure.colorbar(shown, ax=axes, ticks=[], aspect=40).set_label("anomaly map", fontsize=9)
    return figure


def picture(detector, scores, test):
    """Figure of images with reconstructions, maps and outlines; of ROC curves; and of a histogram."""
    chosen, titles = choose(scores["FeatureGaussian"], test.target)
    figure = plt.figure(figsize=(12, 10.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    verdicts = np.where(detector.predict(test.images[chosen]) == -1, "flagged", "passed")
    AnomalyMapDisplay.from_estimator(
        detector,
        test.images[chosen],
        titles=[f"{title}\n{verdict}" for title, verdict in zip(titles, verdicts)],
        axes=left.subplots(len(chosen), 3),
        min_size=8,
    )
    left.suptitle("FeatureGaussian, fitted to normal chest X-rays only")
    roc, histogram = right.subplots(2, 1)
    for name in ("FeatureGaussian", "FAnoGAN", "lack of sharpness"):
        RocCurveDisplay.from_predictions(test.target == -1, scores[name], name=name, ax=roc)
    roc.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    roc.set(xlabel="false alarm rate", ylabel="sensitivity", title="ROC on the test images")
    ScoreHistogramDisplay.from_estimator(detector, test.images, test.target, ax=histogram)
    histogram.set_title("FeatureGaussian: scores of the test images")
    return figure


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("demo"))
    folder = parser.parse_args().folder
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
    detectors = {"FeatureGaussian": FeatureGaussian(), "FAnoGAN": FAnoGAN(random_state=SEED, verbose=1)}
    scores, rows = {}, []
    for name, detector in detectors.items():
        print(f"{name}: fitting {len(train.images)} normal X-rays", flush=True)
        detector.fit(train.images)
        rows.append(threshold_rows(f"{name}, from training (contamination 0.1)", detector, test))
        detector.calibrate(val.images, val.target, false_alarm_rate=FALSE_ALARM_RATE)
        rows.append(
            threshold_rows(f"{name}, calibrated (false alarm rate {FALSE_ALARM_RATE})", detector, test)
        )
        scores[name] = -detector.score_samples(test.images)
        first = "\n".join(["", *ranking_table({name: scores[name]}, test), "", *THRESHOLDS, *rows[-2:], ""])
        print(first, flush=True)
    scores |= trivial_scores(train.images, test.images)

    n_ill = (test.target == -1).sum()
    report = [
        f"{len(test.target)} unseen X-rays, {n_ill} with pneumonia; 95 % bootstrap intervals over patients.",
        "",
        *ranking_table(scores, test),
        "",
        "At the detector's own threshold, set before and after `calibrate` on 77 normal X-rays:",
        "",
        *THRESHOLDS,
        *rows,
        "",
    ]
    (folder / "chest_xray.md").write_text("\n".join(report), encoding="utf-8")
    detector = detectors["FeatureGaussian"]
    picture(detector, scores, test).savefig(folder / "chest_xray.png", dpi=110)
    overview(detector, scores["FeatureGaussian"], test).savefig(folder / "overview.png", dpi=120)
    save(detector, folder / "gaussian.skanomaly")
    files = "chest_xray.md, chest_xray.png, overview.png and gaussian.skanomaly"
    print("\n".join(["", *report, f"Wrote {files} to {folder}"]))
    print(f"Took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
