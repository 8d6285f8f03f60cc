"""How many training steps a method needs: AUROC after 250, 500, 1000, 2000 and 4000, for sets of other sizes.

    python benchmarks/studies/steps.py [--detectors NAME[:parameter=value,...] ...] [--images N ...]
                                       [--seeds 1] [--epochs N] [--limit 0] [--threads 1] [--results DIR]
                                       [--adopt [CLASS ...]]

Trained on cxr_pneumonia_64 once, judged on the way on `val` and on `test`. The default numbers of steps are
chosen on `val`. 433 images are all there are; 100 are the first of a random order, 1500 are drawn with
replacement. Detectors of two stages are judged in the second one, after a first one of their parameters.

Cells are kept in steps/cells.jsonl of --results, the table in table.md.
"""

import math
from functools import cache

import numpy as np
from skorch.callbacks import Callback

from skanomaly import _comparison
from skanomaly._comparison import CELLS, compare, make, mean, names, parse, select, table
from skanomaly.metrics import auroc

DATA = "cxr_pneumonia_64"
N_IMAGES = 100, 433, 1500
STEPS = 250, 500, 1000, 2000, 4000


@cache
def load(name, folder):
    """Images by split, for a name as "cxr_pneumonia_64, 100 images"."""
    file, _, size = name.partition(", ")
    parts, n = _comparison.load(file, folder), int(size.split()[0])
    rng = np.random.default_rng(0)
    n_all = len(parts["train"].images)
    rows = rng.permutation(n_all)[:n] if n <= n_all else rng.integers(0, n_all, n)
    parts["train"].images = parts["train"].images[rows]
    return parts


def evaluate(detector, parts):
    """AUROC on `val` and `test` after each number of steps of the last stage."""
    images = parts["train"].images
    # Its network takes the weights of the one that is in training, of which fit shows no scores.
    twin = _comparison.with_epochs(_comparison.make(type(detector).__name__), 1)
    twin.set_params(**{k: v for k, v in detector.get_params().items() if not k.endswith("_epochs")}).fit(
        images
    )
    found = {}

    class Curve(Callback):
        def on_batch_end(self, net, **kwargs):
            if net.n_steps in STEPS:
                twin.network_.load_state_dict(net.module_.state_dict())
                found.setdefault(net.stage, {})[str(net.n_steps)] = {
                    split: auroc(part.target, -twin.score_samples(part.images))
                    for split, part in parts.items()
                    if split != "train"
                }

    detector.set_params(callbacks=[Curve()]).fit(images)
    *_, last = found.values()
    return last


def report(cells):
    lines = []
    for data, label in sorted({(cell["data"], cell["detector"]) for cell in cells}):
        same = select(cells, data=data, detector=label)
        for split in "val", "test":
            figures = [mean([c for c in same if str(n) in c], str(n), split) for n in STEPS]
            lines.append([data, label, split, len(same), *figures])
    return (
        "Made by `python benchmarks/studies/steps.py`. AUROC after so many training steps; mean of "
        "the seeds (standard deviation).\n\n" + table(("data", "detector", "split", "seeds", *STEPS), lines)
    )


def main():
    own = {
        "detectors": {"nargs": "+", "default": names()},
        "images": {"nargs": "+", "type": int, "default": N_IMAGES},
        "limit": {"default": 0},
        "threads": {"default": 1},
    }
    options = parse(__doc__, __file__, CELLS, **own)

    def cells():
        for seed in range(options.seeds):
            for n in options.images:
                for label in options.detectors:
                    detector = make(label, random_state=seed)
                    epochs = math.ceil(STEPS[-1] / math.ceil(n / detector.batch_size))
                    stage = "encoder_epochs" if "encoder_epochs" in detector.get_params() else "max_epochs"
                    detector.set_params(**{stage: options.epochs or epochs})
                    yield f"{DATA}, {n} images", label, detector

    compare(options, ((*cell, evaluate) for cell in cells()), report, load=load)


if __name__ == "__main__":
    main()
