"""What unlabelled images add to FeatureGaussian, by the share of them that is anomalous.

    python benchmarks/studies/unlabelled.py [--sets NAME ...] [--seeds 1] [--limit 0] [--threads 2]
                                            [--results DIR] [--adopt [CLASS ...]]

The normal images are `train`. The unlabelled ones come from `val`, as many as it has normal images, drawn
anew for each seed; nothing else is random. For the rows "test" they come from all of `val`, and `test` is
judged. For the rows "val" they come from half of it, and the other half is judged.

Cells are kept in unlabelled/cells.jsonl of --results, the table in table.md.
"""

from functools import partial
from itertools import product

import numpy as np

from skanomaly import _comparison
from skanomaly._comparison import CELLS, compare, make, mean, parse, select, table
from skanomaly.metrics import auroc, confounds, stratified_auroc

SETS = "cxr_pneumonia_128", "cxr_nih_128", "brain_mri_128", "fundus_dr_128"
#: The set that is told apart by its sharpness.
SHARP = "cxr_pneumonia"
SHARES = "0 %", "10 %", "25 %", "50 %"
#: Weights with which the AUROC within strata of sharpness is computed.
WITHIN = "0.0", "estimated"
WEIGHTS = 0.0, 0.25, 0.5, 0.75, 1.0


def load(name, folder):
    """Splits of a set, without the share in a name as "cxr_nih_128, 10 %"."""
    return _comparison.load(name.partition(", ")[0], folder)


def drawn(target, share, draw):
    """Rows of unlabelled images, of which this share is anomalous, out of rows with labels."""
    normal, anomalous = (draw.permutation(np.flatnonzero(target == label)) for label in (1, -1))
    n = len(normal)
    anomalous = anomalous[: round(n * share)]
    return np.concatenate([normal[: n - len(anomalous)], anomalous])


def aurocs(detector, normal, unlabelled, judged):
    """The weight that is estimated, and the AUROC with it and with each of WEIGHTS."""
    y = np.repeat([1, 0], [len(normal), len(unlabelled)])
    detector.fit(np.concatenate([normal, unlabelled]), y)
    components, estimate = detector.score_components(judged.images), detector.unlabelled_weight_
    weights = {"estimated": estimate} | {str(w): w for w in WEIGHTS}
    scores = {name: components["distance"] - w * components["unlabelled"] for name, w in weights.items()}
    found = {"weight": estimate} | {name: auroc(judged.target, score) for name, score in scores.items()}
    confound = confounds(judged.images)["sharpness"]
    within = {name: stratified_auroc(judged.target, scores[name], confound) for name in WITHIN}
    return found | {f"within {name}": value for name, value in within.items()}


def evaluate(detector, parts, *, share):
    normal, val, draw = parts["train"].images, parts["val"], np.random.default_rng(detector.random_state)
    whole = val.images[drawn(val.target, share, draw)]
    found = {"test": aurocs(detector, normal, whole, parts["test"])}
    order = draw.permutation(len(val.target))
    half, rest = np.array_split(order, 2)
    judged = type(val)(images=val.images[rest], target=val.target[rest])
    unlabelled = val.images[half[drawn(val.target[half], share, draw)]]
    return found | {"val": aurocs(detector, normal, unlabelled, judged)}


def report(cells):
    lines, within = [], []
    for data in dict.fromkeys(f"{name}, {share}" for name in SETS for share in SHARES):
        same = select(cells, data=data)
        for split in "val", "test":
            figures = [mean(same, split, name) for name in ("weight", "estimated", *map(str, WEIGHTS))]
            lines.append([*data.split(", "), split, len(same), *figures])
        if data.startswith(SHARP) and same:
            names = [name for w in WITHIN for name in (w, f"within {w}")]
            within.append([*data.split(", "), len(same), *(mean(same, "test", name) for name in names)])
    columns = "data", "anomalous", "split", "draws", "weight estimated", "with it"
    columns += tuple(f"weight {w:g}" for w in WEIGHTS)
    strata = "data", "anomalous", "draws", "alone", "alone, within", "with the estimate", "the same, within"
    return (
        "Made by `python benchmarks/studies/unlabelled.py --seeds 3`. The weight of unlabelled images that "
        "FeatureGaussian estimates, and its AUROC with it and with others, of which 0 is that of the normal "
        "images alone; mean of the draws (standard deviation).\n\n"
        + table(columns, lines)
        + "\nWithin strata of sharpness, by which alone pneumonia is told; `test`:\n\n"
        + table(strata, within)
    )


def main():
    options = parse(__doc__, __file__, CELLS, sets={"nargs": "+", "default": SETS}, limit={"default": 0})

    def cells():
        for seed in range(options.seeds):
            for name, share in product(options.sets, SHARES):
                judge = partial(evaluate, share=int(share.removesuffix(" %")) / 100)
                detector = make("FeatureGaussian", random_state=seed)
                yield f"{name}, {share}", "FeatureGaussian", detector, judge

    compare(options, cells(), report, load=load)


if __name__ == "__main__":
    main()
