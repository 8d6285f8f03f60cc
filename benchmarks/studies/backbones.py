"""Backbones, and heads on them: backbone x head, with layers and input size varied one at a time.

    python benchmarks/studies/backbones.py [--sets NAME ...] [--settings NAME ...] [--heads NAME ...]
                                           [--data DIR] [--seeds 1] [--limit 150] [--threads 2]
                                           [--results DIR] [--adopt [CLASS ...]]

Heads are the detectors FeatureGaussian, PaDiM and PatchCore, and outlier detectors of rows behind
ImageFeatures, as in the guide's "Classical detectors are Pipelines". Layers and input size vary around the
defaults of a backbone. The last backbones are detectors that learn from the same images. Trained on `train`,
judged on `val` and `test` at the level of images.

Rows of a setting are made once for all heads of rows. Cells are kept in backbones/cells.jsonl of --results,
the table in table.md.
"""

import time

import numpy as np
from _heads import HEADS, RowHead

from skanomaly import DRAEM, AutoEncoder, CutPaste, _comparison
from skanomaly._comparison import CELLS, SETS, compare, make, mean, parse, select, table
from skanomaly.metrics import auroc

#: Row heads first: those of one setting share its rows.
ALL = *HEADS, "FeatureGaussian", "PaDiM", "PatchCore"
#: Parameters of a backbone by the name of the setting; the first of each backbone is its default.
SETTINGS = {
    "imagenet": {},
    "imagenet, 64 px": {"input_size": 64},
    "imagenet, 128 px": {"input_size": 128},
    "imagenet, stage 1": {"layers": (1,)},
    "imagenet, stage 2": {"layers": (2,)},
    "imagenet, stage 4": {"layers": (4,)},
    "imagenet, stage 6": {"layers": (6,)},
    "filters": {"backbone": "filters"},
    "filters, 32 px": {"backbone": "filters", "input_size": 32},
    "filters, finest scale": {"backbone": "filters", "layers": (0,)},
    "filters, coarsest scale": {"backbone": "filters", "layers": (2,)},
    "AutoEncoder": {"backbone": AutoEncoder()},
    "CutPaste": {"backbone": CutPaste()},
    "DRAEM": {"backbone": DRAEM()},
}


def load(name, folder):
    """Images by split, and a place for the rows that were made of them last."""
    parts = last.get(name) or _comparison.load(name, folder) | {"rows": {}}
    last.clear()
    last[name] = parts
    return parts


last: dict = {}


def judged(head, parts):
    """Scores of `val` and `test`, higher is worse, and the seconds for fit and for a transform of all images.

    Rows are made once for consecutive heads of the same features.
    """
    features = head.features()
    kept, key = parts["rows"], str(features)
    if kept.get("key") != key:
        start = time.perf_counter()
        features.fit(parts["train"].images)
        rows = {split: features.transform(parts[split].images) for split in ("train", "val", "test")}
        kept |= {"key": key, "rows": rows, "seconds": time.perf_counter() - start}
    start = time.perf_counter()
    made = head.made().fit(kept["rows"]["train"])
    scores = [-made.score_samples(kept["rows"][split]) for split in ("val", "test")]
    return *scores, kept["seconds"] + time.perf_counter() - start


def evaluate(head, parts):
    if isinstance(head, RowHead):
        val, test, seconds = judged(head, parts)
    else:
        start = time.perf_counter()
        head.fit(parts["train"].images)
        val, test = (-head.score_samples(parts[split].images) for split in ("val", "test"))
        seconds = time.perf_counter() - start
    aurocs = (auroc(parts[split].target, scores) for split, scores in (("val", val), ("test", test)))
    return dict(zip(("val_auroc", "auroc"), aurocs)) | {"seconds": seconds}


def label(head, setting):
    return f"{head} on {setting}"


def report(cells, sets=SETS):
    """AUROC of each setting and head: mean of the sets, then each set, then the seconds."""
    found = {
        (setting, head): [select(cells, data=data, detector=label(head, setting)) for data in sets]
        for setting in SETTINGS
        for head in ALL
    }

    def over_sets(same, key):
        return f"{np.mean([np.mean([cell[key] for cell in of]) for of in same]):.3f}" if all(same) else "-"

    def part(title, cell):
        lines = [[setting, *(cell(found[setting, head]) for head in ALL)] for setting in SETTINGS]
        return f"{title}\n\n" + table(("backbone", *ALL), lines)

    parts = [
        part(
            "Made by `python benchmarks/studies/backbones.py`. AUROC on test, mean of the sets, one seed if "
            "nothing else is said. The 95 % interval of one figure of one set is up to .09 to either side.",
            lambda same: over_sets(same, "auroc"),
        ),
        part("AUROC on val, by which a setting is chosen:", lambda same: over_sets(same, "val_auroc")),
    ]
    for i, data in enumerate(sets):
        parts.append(part(f"{data}, AUROC on test:", lambda same, i=i: mean(same[i], "auroc")))
    parts.append(
        part("Seconds for fit, val and test, mean of the sets:", lambda of: over_sets(of, "seconds"))
    )
    return "\n".join(parts)


def main():
    own = {
        "sets": {},
        "settings": {"nargs": "+", "choices": [*SETTINGS], "default": [*SETTINGS]},
        "heads": {"nargs": "+", "default": ALL},
    }
    options = parse(__doc__, __file__, CELLS, **own)

    def cells():
        for seed in range(options.seeds):
            for data in options.sets:
                for setting in options.settings:
                    for head in options.heads:
                        parameters = SETTINGS[setting] | {"random_state": seed}
                        made = RowHead(head, **parameters) if head in HEADS else make(head, **parameters)
                        yield data, label(head, setting), made, evaluate

    compare(options, cells(), lambda found: report(found, options.sets), load=load)


if __name__ == "__main__":
    main()
