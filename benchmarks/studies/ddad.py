"""DDAD: what ensembles, their refinement and images that nobody has labelled add to an autoencoder.

    python benchmarks/studies/ddad.py [--parts NAME ...] [--sets NAME ...] [--full] [--seeds 1] [--epochs N]
                                      [--limit 150] [--threads 2] [--results DIR] [--adopt [CLASS ...]]

D_n is `train`; D_u is `val` without its labels, so nothing was chosen on it; D_t is `test`. The ensembles of
headline and tried have 100 epochs, ASR-Net 20; those of ratio and pathologies have the default steps.

headline: AUROC and AP of every score of DDAD on three sets, with the backbones alone, by their own defaults,
beside it. All seeds with AE-U, one with AE and MemAE.
ratio: the share of anomalous images in D_u, whose size stays, on two sets. pathologies: D_u without anomalies
and with those of one kind; that kind and one that D_u never has, each against as many normal images of
`test`, on chest X-rays. Both with one seed and without refinement. tried: other refinements, on cxr_nih, with
one seed.

--full is that at 128 pixels with all seeds, 250 and 100 epochs, and refinement everywhere, for a GPU.

Cells are kept in ddad/cells.jsonl of --results, the tables in table.md, and of seed 0 of the headline with
AE-U histograms of the scores and maps, where such pictures may be published. Those of --full and of N epochs
go to folders of their own, ddad_full and ddad_N_epochs. Ensembles take more than 150 s: --limit 0.
"""

import copy
import time
from functools import partial
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from _pictures import save_grid
from sklearn.utils import Bunch

from skanomaly import DDAD, _comparison, metrics
from skanomaly._comparison import CELLS, compare, make, may_draw, mean, parse, select, table, with_epochs
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
METRICS = {"auroc": metrics.auroc, "ap": metrics.average_precision}
ONE_CLASS = list(SCORES)[:3]
STUDY = "DDAD (AEU)"
RATIOS = "0 %", "25 %", "50 %", "75 %", "100 %"
RATIO_SETS = SETS[:2]
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
    splits = _comparison.load(name, folder)
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
            name: {key: metric(target[rows], score[rows]) for key, metric in METRICS.items()}
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
    lines = [("image", test.images[rows], "gray", None, None)]
    for name, score in MAPS.items():
        maps = copy.copy(detector).set_params(**score).anomaly_map(test.images[rows])
        lines.append((name, maps, "magma", 0, np.quantile(maps, 0.995)))
    masks = None if test.masks is None else test.masks[rows]
    save_grid(path, lines, ["normal"] * n + ["anomalous"] * n, masks=masks)


def figures(cells, data, detector, scores, tests=("test",)):
    """Number of seeds, and AUROC and AP of each score on each test."""
    same = select(cells, data=data, detector=detector)
    wanted = product(scores, tests, METRICS)
    return [len(same), *(mean(same, "tests", test, score, key) for score, test, key in wanted)]


def pairs(names):
    return [f"{name} {figure}" for name in names for figure in ("AUROC", "AP")]


def headline(cells, sets, rows):
    lines = []
    for label, detector, component in rows:
        n_seeds, *found = zip(*(figures(cells, data, detector, [component]) for data in sets))
        n_seeds = "/".join(map(str, n_seeds if len(set(n_seeds)) > 1 else n_seeds[:1]))
        lines.append([label, n_seeds, *np.transpose(found).ravel()])
    return section(["score", "seeds", *pairs(sets)], lines)


def section(columns, lines):
    """Table, or nothing if no seed of any line has been run."""
    seeds = columns.index("seeds")
    return table(columns, lines) if any(str(line[seeds]) != "0" for line in lines) else ""


def report(cells, size, refined, epochs):
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
    scores = list(SCORES) if refined else ["rec", "intra", "inter"]
    ratios = [
        [f"{name}_{size}", ratio, *figures(cells, f"{name}_{size}, {ratio}", STUDY, scores)]
        for name in RATIO_SETS
        for ratio in RATIOS
    ]
    kinds = [
        [SCORES[score], shown, *figures(cells, f"{studied}, {of}", STUDY, [score], (SEEN, UNSEEN))]
        for score, shown, of in (
            ("rec", "", RATIOS[0]),
            ("inter", "normal", RATIOS[0]),
            ("inter", f"normal and {SEEN}", SEEN),
        )
    ]
    tried = [[label, *figures(cells, sets[1], f"{STUDY}, {label}", SCORES)] for label in TRIED]
    command = f"--parts ratio pathologies --epochs {epochs} --limit 0" if epochs else "--seeds 3 --limit 0"
    n = epochs or 100
    about = (
        f"Made by `python benchmarks/studies/ddad.py {command}`. Test split; mean of the seeds (standard "
        f"deviation). {n} epochs are {7 * n} steps of a member of the first ensemble on cxr_pneumonia and "
        f"{3 * n} on the others; the default is 1,000.\n"
    )
    sections = {
        "From normal images alone:": headline(cells, sets, alone + one_class),
        "With unlabelled images:": headline(cells, sets, dual),
        f"{STUDY}, by the anomalous share of D_u:": section(
            ["data", "D_u", "seeds", *pairs(SCORES[score] for score in scores)], ratios
        ),
        f"{studied}, {STUDY}, tests with one kind of anomaly and as many normal images:": section(
            ["score", "D_u", "seeds", *pairs((SEEN, UNSEEN))], kinds
        ),
        f"{sets[1]}, {STUDY}, other refinements:": section(
            ["refinement", "seeds", *pairs(SCORES.values())], tried
        ),
    }
    return "\n".join([about, *(f"{heading}\n\n{made}" for heading, made in sections.items() if made)])


def main():
    sets, parts = ({"default": names, "choices": names} for names in (SETS, PARTS))
    options = parse(__doc__, __file__, f"{CELLS} full", sets=sets, parts=parts)
    size, epochs = (128, (250, 100)) if options.full else (64, (100, 20))
    epochs = "max_epochs={},refinement_epochs={}".format(*epochs)
    refined = f"{epochs},refine=True"
    cells = []
    for seed in range(options.seeds):
        for backbone, (name, _) in BACKBONES.items() if "headline" in options.parts else ():
            if seed == 0 or backbone == "aeu" or options.full:
                detectors = {name: name, f"DDAD ({name})": f"DDAD:backbone={backbone},{refined}"}
                cells += [
                    (f"{data}_{size}", label, variant, seed)
                    for data in options.sets
                    for label, variant in detectors.items()
                ]
        if seed == 0 or options.full:
            shown = {
                "ratio": [(name, ratio) for name in RATIO_SETS for ratio in RATIOS],
                "pathologies": [(STUDIED, RATIOS[0]), (STUDIED, SEEN)],
            }
            unlabelled = dict.fromkeys(of for part in options.parts for of in shown.get(part, ()))
            variant = f"DDAD:backbone=aeu,{refined}" if options.full else "DDAD:backbone=aeu"
            cells += [(f"{name}_{size}, {of}", STUDY, variant, seed) for name, of in unlabelled]
            for label, settings in TRIED.items() if "tried" in options.parts else ():
                variant = f"DDAD:backbone=aeu,{refined},{settings}"
                cells.append((f"{SETS[1]}_{size}", f"{STUDY}, {label}", variant, seed))

    def prepared(data, label, variant, seed):
        shown = seed == 0 and label == STUDY and "," not in data and may_draw(data, options.folder)
        stem = options.folder / data if shown else None
        detector = with_epochs(make(variant, random_state=seed), options.epochs)
        return data, label, detector, partial(evaluate, stem=stem)

    text = partial(report, size=size, refined=options.full, epochs=options.epochs)
    compare(options, (prepared(*cell) for cell in cells), text, load=load)


if __name__ == "__main__":
    main()
