"""DDAD: what ensembles, their refinement and images that nobody has labelled add to an autoencoder.

    python benchmarks/ddad.py [--parts NAME ...] [--full] [--seeds 3] [--epochs N] [--threads 2]
                              [--results DIR]

D_n is `train`; D_u is `val` without its labels, so nothing was chosen on it: 100 epochs for the ensembles, 20
for ASR-Net; D_t is `test`.

headline: AUROC and AP of every score of DDAD on three sets, with the backbones alone, by their own defaults,
beside it. Three seeds with AE-U, one with AE and MemAE.
ratio: the share of anomalous images in D_u, whose size stays. pathologies: D_u without anomalies and with
those of one kind; that kind and one that D_u never has, each against as many normal images of `test`. Both on
chest X-rays, with one seed and without refinement. tried: other refinements, on cxr_nih, with one seed.

--full is that at 128 pixels with all seeds, 250 and 100 epochs, and refinement everywhere, for a GPU.

Cells resume; they go to ddad.jsonl in --results, the tables to ddad.md, and of seed 0 of the headline with
AE-U histograms of the scores and maps to ddad_*.png; those of --full to ddad_full*, those of N epochs to
ddad_N_epochs*.
"""

import argparse
import copy
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from _data import FOLDER
from _data import load as load_set
from _detectors import make, with_epochs
from accuracy import mean, read, run, table
from sklearn.utils import Bunch

from skanomaly import DDAD, metrics
from skanomaly.plotting import ScoreHistogramDisplay

SETS = "cxr_pneumonia", "cxr_nih", "brain_mri"
STUDIED, SEEN, UNSEEN = "cxr_pneumonia", "bacterial pneumonia", "viral pneumonia"
#: What a member is, the detector that is one alone, and its score.
BACKBONES = {"aeu": ("AEU", "weighted"), "ae": ("AutoEncoder", "residual"), "memae": ("MemAE", "residual")}
#: Component -> its name in the paper. The last two need unlabelled images.
SCORES = {
    "rec": "A_rec",
    "intra": "A_intra",
    "refined_intra": "R_intra",
    "inter": "A_inter",
    "refined_dual": "R_dual",
}
ONE_CLASS = list(SCORES)[:3]
STUDY = "DDAD (AEU)"
RATIOS = "0 %", "50 %", "100 %"
#: What might make the refinement learn; all narrow, for time.
TRIED = {
    "narrow": "refinement_width=16",
    "narrow, 100 epochs": "refinement_width=16,refinement_epochs=100",
    "narrow, spatial codes": "refinement_width=16,bottleneck=spatial",
}
PARTS = "headline", "ratio", "pathologies", "tried"
MAPS = {
    "A_rec": {"score_component": "rec"},
    "A_intra": {"score_component": "intra", "refine": False},
    "A_inter": {"score_component": "inter"},
    "R_dual": {"score_component": "dual"},
}


def load(name, folder):
    """D_n, D_u and rows of tests, for a name as "cxr_nih_64", or with what is anomalous in D_u:
    "cxr_pneumonia_64, 50 %", "cxr_pneumonia_64, viral pneumonia".
    """
    name, _, unlabelled = name.partition(", ")
    splits = load_set(name, folder)
    val, test = splits["val"], splits["test"]
    draw = np.random.default_rng(0).permutation
    normal, anomalous = (draw(np.flatnonzero(val.target == label)) for label in (1, -1))
    n = len(normal)
    if unlabelled.endswith("%"):
        anomalous = anomalous[: n * int(unlabelled.removesuffix(" %")) // 100]
        normal = normal[: n - len(anomalous)]
    elif unlabelled:
        anomalous = anomalous[val.kinds[anomalous] == unlabelled]
        normal = normal[: n - len(anomalous)]
    tests = {"test": np.arange(len(test.target))}
    for kind in (SEEN, UNSEEN) if name.startswith(STUDIED) else ():
        of = np.flatnonzero(test.kinds == kind)
        tests[kind] = np.concatenate([draw(np.flatnonzero(test.target == 1))[: len(of)], of])
    unlabelled = val.images[np.concatenate([normal, anomalous])]
    return Bunch(normal=splits["train"].images, unlabelled=unlabelled, test=test, tests=tests)


def evaluate(detector, data, *, stem):
    start = time.perf_counter()
    if isinstance(detector, DDAD):
        y = np.repeat([1, 0], [len(data.normal), len(data.unlabelled)])
        detector.fit(np.concatenate([data.normal, data.unlabelled]), y)
    else:
        detector.fit(data.normal)
    result = {"fit_seconds": time.perf_counter() - start}
    components, target = detector.score_components(data.test.images), data.test.target
    result["tests"] = {
        test: {
            name: {
                "auroc": metrics.auroc(target[rows], score[rows]),
                "ap": metrics.average_precision(target[rows], score[rows], anomaly_label=-1),
            }
            for name, score in components.items()
        }
        for test, rows in data.tests.items()
    }
    if stem is not None:
        draw_histograms(components, target, f"{stem}_histograms.png")
        draw_maps(detector, data.test, f"{stem}_maps.png")
    return result


def draw_histograms(components, target, path):
    figure, axes = plt.subplots(1, len(components), figsize=(3 * len(components), 2.6), layout="compressed")
    for (name, label), axis in zip(SCORES.items(), axes):
        ScoreHistogramDisplay.from_predictions(target, components[name], ax=axis)
        axis.set_title(label)
    figure.savefig(path, dpi=60)
    plt.close(figure)


def draw_maps(detector, test, path, *, n=3):
    """Images and their maps, one a column; normal ones, then anomalous, with true masks outlined."""
    rows = np.concatenate([np.flatnonzero(test.target == label)[:n] for label in (1, -1)])
    images = test.images[rows]
    lines = {"image": images} | {
        name: copy.copy(detector).set_params(**score).anomaly_map(images) for name, score in MAPS.items()
    }
    figure, axes = plt.subplots(
        len(lines), len(rows), figsize=(1.6 * len(rows), 1.7 * len(lines)), layout="compressed"
    )
    for (label, line), line_axes in zip(lines.items(), axes):
        for k, (shown, axis) in enumerate(zip(line, line_axes)):
            if label == "image":
                axis.imshow(shown, cmap="gray")
                axis.set_title("normal" if k < n else "anomalous", fontsize=9)
            else:
                axis.imshow(shown, cmap="magma", vmin=0, vmax=np.quantile(line, 0.995))
            axis.set(xticks=[], yticks=[])
            if test.masks is not None and test.masks[rows[k]].any():
                axis.contour(test.masks[rows[k]], levels=[0.5], colors="lime", linewidths=0.8)
        line_axes[0].set_ylabel(label)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def figures(cells, data, detector, component, test="test"):
    """AUROC and AP, and the number of seeds."""
    same = [cell for cell in cells if (cell["data"], cell["detector"]) == (data, detector)]
    same = [cell["tests"][test][component] for cell in same]
    return [mean(same, key) if same else "" for key in ("auroc", "ap")], len(same)


def headline(cells, sets, rows):
    lines = []
    for label, detector, component in rows:
        found, n_seeds = zip(*(figures(cells, data, detector, component) for data in sets))
        if any(n_seeds):
            seeds = "/".join(map(str, n_seeds if len(set(n_seeds)) > 1 else n_seeds[:1]))
            lines.append([label, seeds, *np.concatenate(found)])
    return table(
        ["score", "seeds", *(f"{data} {figure}" for data in sets for figure in ("AUROC", "AP"))], lines
    )


def report(cells, size, refined):
    latest = list({cell["key"]: cell for cell in cells if "error" not in cell}.values())
    sets, studied = [f"{name}_{size}" for name in SETS], f"{STUDIED}_{size}"
    alone = [(f"{name} alone", name, score) for name, score in BACKBONES.values()]
    one_class, dual = (
        [
            (f"DDAD ({name}), {SCORES[score]}", f"DDAD ({name})", score)
            for name, _ in BACKBONES.values()
            for score in of
        ]
        for of in (ONE_CLASS, list(SCORES)[3:])
    )
    text = [
        "Made by `python benchmarks/ddad.py`. Test split; mean of the seeds (standard deviation).\n",
        "From normal images alone:\n",
        headline(latest, sets, alone + one_class),
        "With unlabelled images:\n",
        headline(latest, sets, dual),
    ]
    scores = list(SCORES) if refined else ["rec", "intra", "inter"]
    lines = []
    for ratio in RATIOS:
        found, n_seeds = zip(*(figures(latest, f"{studied}, {ratio}", STUDY, score) for score in scores))
        if any(n_seeds):
            lines.append([ratio, n_seeds[0], *np.concatenate(found)])
    head = [f"{SCORES[score]} {figure}" for score in scores for figure in ("AUROC", "AP")]
    text += [
        f"{studied}, {STUDY}, by the anomalous share of D_u:\n",
        table(["D_u", "seeds", *head], lines),
    ]
    lines = []
    for score, unlabelled in (("rec", RATIOS[0]), ("inter", RATIOS[0]), ("inter", SEEN)):
        found, n_seeds = zip(
            *(figures(latest, f"{studied}, {unlabelled}", STUDY, score, test) for test in (SEEN, UNSEEN))
        )
        if any(n_seeds):
            shown = "" if score == "rec" else "normal" if unlabelled == RATIOS[0] else f"normal and {SEEN}"
            lines.append([SCORES[score], shown, n_seeds[0], *np.concatenate(found)])
    head = [f"{kind} {figure}" for kind in (SEEN, UNSEEN) for figure in ("AUROC", "AP")]
    text += [
        f"{studied}, {STUDY}, tests with one kind of anomaly and as many normal images:\n",
        table(["score", "D_u", "seeds", *head], lines),
    ]
    lines = []
    for label in TRIED:
        found, n_seeds = zip(*(figures(latest, sets[1], f"{STUDY}, {label}", score) for score in SCORES))
        if any(n_seeds):
            lines.append([label, n_seeds[0], *np.concatenate(found)])
    head = [f"{name} {figure}" for name in SCORES.values() for figure in ("AUROC", "AP")]
    if lines:
        text += [f"{sets[1]}, {STUDY}, other refinements:\n", table(["refinement", "seeds", *head], lines)]
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of everything, for a short run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = "ddad" + "_full" * arguments.full
    stem += f"_{arguments.epochs}_epochs" if arguments.epochs else ""  # never mixed with whole runs
    size, epochs = (128, "max_epochs=250,refinement_epochs=100") if arguments.full else (64, "max_epochs=100")
    path = arguments.results / f"{stem}.jsonl"
    cells = []
    for seed in range(arguments.seeds):
        for backbone in arguments.backbones if "headline" in arguments.parts else ():
            if seed == 0 or backbone == "aeu" or arguments.full:
                name, _ = BACKBONES[backbone]
                detectors = {name: name, f"DDAD ({name})": f"DDAD:backbone={backbone},{epochs}"}
                cells += [
                    (f"{data}_{size}", label, variant, seed)
                    for data in arguments.sets
                    for label, variant in detectors.items()
                ]
        if seed == 0 or arguments.full:
            unlabelled = dict.fromkeys(
                (
                    *(RATIOS if "ratio" in arguments.parts else ()),
                    *((RATIOS[0], SEEN) if "pathologies" in arguments.parts else ()),
                )
            )
            variant = f"DDAD:backbone=aeu,{epochs},refine={arguments.full}"
            cells += [(f"{STUDIED}_{size}, {of}", STUDY, variant, seed) for of in unlabelled]
            for label, options in TRIED.items() if "tried" in arguments.parts else ():
                variant = f"DDAD:backbone=aeu,{epochs},{options}"
                cells.append((f"{SETS[1]}_{size}", f"{STUDY}, {label}", variant, seed))
    for data, label, variant, seed in cells:
        detector = with_epochs(make(variant, random_state=seed), arguments.epochs)
        shown = seed == 0 and label == STUDY and "," not in data
        picture = arguments.results / f"{stem}_{data}" if shown else None
        run([(data, label, detector)], path, FOLDER, load=load, evaluate=partial(evaluate, stem=picture))
        text = report(read(path), size, arguments.full)
        (arguments.results / f"{stem}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
