"""What the parts of SSL-AnoVAE are worth: one factor varied at a time, beside the other detectors.

    python benchmarks/ssl_anovae.py [--sets NAME ...] [--seeds 3] [--epochs 30] [--threads 2] [--results DIR]

The transforms of the views (none, of places and blur, of colours, both, the preset for the kind of image),
how the second encoder is trained (with the rest, before it, not at all), and how the codes come together. On
photographs of the retina, chest X-rays and synthetic tomography (`make_oct`, written beside the results), all
at 64 px. Every stage has 30 epochs, so that it all takes no more than 90 minutes on two cores.

Cells are as those of accuracy.py, and resume; they go to ssl_anovae.jsonl in --results, the table to
ssl_anovae.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from _data import FOLDER
from _detectors import make, with_epochs
from accuracy import mean, read, run, table

from skanomaly.datasets import make_oct

SETS = "fundus_dr_64", "cxr_nih_64", "phantom_oct_64"
VARIANTS = {
    "as it is": "SSLAnoVAE",
    "transforms: none": "SSLAnoVAE:transforms=None",
    "transforms: places, blur": "SSLAnoVAE:transforms=color",
    "transforms: colours": "SSLAnoVAE:transforms=structure",
    "transforms: both": "SSLAnoVAE:transforms=cfp",
    "transforms: BYOL": "SSLAnoVAE:transforms=byol",
    "second encoder trained before": "SSLAnoVAE:ssl_training=pretrain",
    "second encoder without views": "SSLAnoVAE:ssl_weight=0.0",
    "codes added": "SSLAnoVAE:fusion=sum",
    "one code of both features": "SSLAnoVAE:fusion=features",
}
OTHERS = {name: name for name in ("AutoEncoder", "AdversarialAutoEncoder", "FAnoGAN", "ALI")}
OTHERS |= {"MemAE": "MemAE:similarity=dot"}
N_SCANS = {"train": 200, "val": 60, "test": 200}


def write_phantom(path):
    """Synthetic scans as a file like those of the other sets; half of `val` and `test` have a lesion."""
    kinds = "normal", "intraretinal fluid", "normal", "subretinal fluid", "normal", "drusen"
    parts = [
        make_oct(n, kinds=kinds[:1] if split == "train" else kinds, size=64, random_state=seed)
        for seed, (split, n) in enumerate(N_SCANS.items())
    ]
    np.savez(
        path,
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.target == -1 for part in parts]).astype(int),
        split=np.repeat(list(N_SCANS), list(N_SCANS.values())),
    )


def report(cells, rows):
    latest = {cell["key"]: cell for cell in cells if "error" not in cell}.values()
    lines = []
    for data in sorted({cell["data"] for cell in latest}):
        for name, variant in rows.items():
            same = [cell for cell in latest if (cell["data"], cell["detector"]) == (data, variant)]
            if same:
                figures = [mean(same, key) for key in ("val_auroc", "auroc", "ap")]
                lines.append([data, name, len(same), *figures])
    return (
        "Made by `python benchmarks/ssl_anovae.py`, 30 epochs. Test split but for the first AUROC; mean of "
        'seeds (standard deviation) and 95 % bootstrap interval over patients. "As it is" has the preset '
        "for the kind of image: for photographs (fundus_dr) that is the one with both.\n\n"
        + table(("data", "SSLAnoVAE, or another detector", "seeds", "AUROC on val", "AUROC", "AP"), lines)
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30, help="of every stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    rows, path = VARIANTS | OTHERS, arguments.results / "ssl_anovae.jsonl"
    for seed in range(arguments.seeds):
        for data in arguments.sets:
            folder = FOLDER
            if data == "phantom_oct_64":
                folder = arguments.results
                if not (folder / f"{data}.npz").exists():
                    write_phantom(folder / f"{data}.npz")
            cells = [
                (data, variant, with_epochs(make(variant, random_state=seed), arguments.epochs))
                for variant in rows.values()
            ]
            run(cells, path, folder)
            (arguments.results / "ssl_anovae.md").write_text(report(read(path), rows))
    print((arguments.results / "ssl_anovae.md").read_text())


if __name__ == "__main__":
    main()
