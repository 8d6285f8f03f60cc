"""Parts of SSL-AnoVAE and their worth: one factor varied at a time, beside the other detectors.

    python benchmarks/studies/ssl_anovae.py [--sets NAME ...] [--data DIR] [--seeds 1] [--limit 150]
                                            [--threads 2] [--results DIR] [--adopt [CLASS ...]]

The transforms of the views (none, of places and blur, of colours, both, the preset for the kind of image),
how the second encoder is trained (with the rest, before it, not at all), and how the codes come together. On
photographs of the retina, chest X-rays and synthetic tomography (`make_oct`), all at 64 px. Every stage has
30 epochs, so that three seeds of it take no more than 90 minutes on two cores.

Cells are kept in ssl_anovae/cells.jsonl of --results, the table in table.md.
"""

from sklearn.utils import Bunch

from skanomaly import _comparison
from skanomaly._comparison import CELLS, compare, make, mean, parse, select, table, with_epochs
from skanomaly.datasets import make_oct

N_EPOCHS = 30
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
OTHERS |= {"MemAE": "MemAE:similarity=dot,shrinkage_threshold=0.0025"}
N_SCANS = {"train": 200, "val": 60, "test": 200}


def load(name, folder):
    """Images by split; half of the synthetic ones of `val` and `test` have a lesion."""
    if name != SETS[-1]:
        return _comparison.load(name, folder)
    kinds = "normal", "intraretinal fluid", "normal", "subretinal fluid", "normal", "drusen"
    parts = {}
    for seed, (split, n) in enumerate(N_SCANS.items()):
        scans = make_oct(n, kinds=kinds[:1] if split == "train" else kinds, size=64, random_state=seed)
        parts[split] = Bunch(images=scans.images, target=scans.target, groups=None, masks=None)
    return parts


def report(cells, rows):
    lines = []
    for data in SETS:
        for name, variant in rows.items():
            same = select(cells, data=data, detector=variant)
            figures = [mean(same, key) for key in ("val_auroc", "auroc", "ap")]
            lines.append([data, name, len(same), *figures])
    return (
        "**Too short to tell the parts apart:** 30 epochs are 60 steps a stage on fundus_dr, 90 on cxr_nih "
        "and 120 on the phantom; the default is 2,000.\n\n"
        "Made by `python benchmarks/studies/ssl_anovae.py`, 30 epochs. Test split but for the "
        "first AUROC; mean of seeds (standard deviation) and 95 % bootstrap interval over patients. The "
        'transforms of "as it is" are those for the kind of image: both, for photographs (fundus_dr).\n\n'
        + table(("data", "SSLAnoVAE, or another detector", "seeds", "AUROC on val", "AUROC", "AP"), lines)
    )


def main():
    options = parse(__doc__, __file__, CELLS, sets={"default": SETS})
    rows = VARIANTS | OTHERS
    cells = (
        (data, variant, with_epochs(make(variant, random_state=seed), options.epochs or N_EPOCHS))
        for seed in range(options.seeds)
        for data in options.sets
        for variant in rows.values()
    )
    compare(options, cells, lambda cells: report(cells, rows), load=load)


if __name__ == "__main__":
    main()
