"""Detect, stage and segment: grades of real fundus photographs, fluid and layers in synthetic OCT.

    python benchmarks/studies/retina.py [--parts NAME ...] [--data DIR] [--seeds 1] [--epochs N] [--threads 2]
                                        [--results DIR]

Staging: SSLAnoVAE is trained on `train` of fundus_dr_128 (no retinopathy), its threshold calibrated on the
normal images of `val`, two stages found among the graded ones of `val`, whose grades are not shown; all
figures are of `test`, with 95 % bootstrap intervals over patients. The rival puts the images in order by
their score alone, which is the mean residual. Features is the same with FeatureGaussian, whose maps take the
place of residuals; nothing is random there but the start of k-means.

Preprocessing is detection by FeatureGaussian after steps of skanomaly.preprocessing, on the same splits.
Brightness is what the mean of an image, as the detector sees it, tells by itself in the better direction.

Segmentation: an AutoEncoder is trained on 200 normal scans of `make_oct`, thresholds found on 50 more, Dice
measured on 80 with fluid, 4 of each of the seeds 0 to 19. "Oracle" is the best threshold for the residual, of
pixels or of blocks, chosen on the true masks. The U-Net learns the layers of the normal scans, or of 200 with
fluid, labelled too.

Adaptation is the setting of the SSL-AnoVAE paper. Layers are labelled on scans of one device (200 of
`make_oct` with fluid, 64 px). They are wanted on those of another one, which have less contrast, stronger
speckle and more noise; 200 normal ones without labels are there, and SSLAnoVAE learns them. The U-Net learns
from the first device alone, adapts to the second one by `X_target`, or learns from labels of the second one,
which no one has. Layers are judged on 100 other normal scans of the second device, fluid on 100 with fluid.

Each table goes to a file of its own in retina of --results.
"""

import time
import warnings
from functools import partial

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, adjusted_rand_score, cohen_kappa_score, f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import Bunch

from skanomaly import AutoEncoder, FeatureGaussian, SSLAnoVAE, metrics
from skanomaly._comparison import TABLES, parse, table
from skanomaly.datasets import make_oct
from skanomaly.datasets._phantoms import OCT_LAYERS
from skanomaly.layers import GraphLayerExtractor, UNetLayerExtractor
from skanomaly.preprocessing import CropToForeground, LocalContrast, MatchHistogram
from skanomaly.segmentation import NO_LAYER, block_means, residual_mask
from skanomaly.segmenters import LayerwiseSegmenter, ResidualSegmenter
from skanomaly.staging import AnomalyStager, CentroidStager

N_SCANS = {"train": 200, "val": 50, "test": 100}
TEST = 20, 4  # seeds, and scans of each
N_DRAWS = 500  # of patients, for intervals
MIN_SIZE = 20  # pixels of a region
FLUID = "intraretinal fluid", "subretinal fluid"
OTHER_DEVICE = {
    "layers": [(name, thickness, 0.15 + 0.55 * value) for name, thickness, value in OCT_LAYERS],
    "n_looks": 1.5,
    "noise": 0.08,
}


def merged(grade):
    """None; mild or moderate; severe or worse."""
    return np.select([grade == 0, grade <= 2], [0, 1], 2)


def mean_with_interval(metric, seeds, groups):
    """Mean over seeds of metric(rows, seed's values), and the interval of that mean over patients."""
    rng = np.random.default_rng(0)
    names, member = np.unique(groups, return_inverse=True)
    of = [np.flatnonzero(member == k) for k in range(len(names))]
    draws = [np.concatenate([of[k] for k in rng.integers(0, len(of), len(of))]) for _ in range(N_DRAWS)]
    with warnings.catch_warnings():
        # A draw of one class only says nothing, and is left out as nan.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        draws = [np.mean([metric(rows, values) for values in seeds]) for rows in draws]
    whole = np.mean([metric(np.arange(len(groups)), values) for values in seeds])
    return "{:.3f} [{:.3f}, {:.3f}]".format(whole, *np.nanquantile(draws, [0.025, 0.975]))


def auroc(key, truth, rows, values):
    rows = rows[truth[rows] >= 0]
    return roc_auc_score(truth[rows] == 1, values[key][rows])


def staging_rows(folder, n_seeds, epochs, *, new=None):
    new = new or partial(SSLAnoVAE, **epochs)
    with np.load(folder / "fundus_dr_128.npz") as arrays:
        images, grade, split, groups = (arrays[key] for key in ("images", "grade", "split", "group_ids"))
    train, val, test = (split == name for name in ("train", "val", "test"))
    found = []
    for seed in range(n_seeds):
        detector = new(random_state=seed).fit(images[train])
        detector.calibrate(images[val & (grade == 0)])
        stager = AnomalyStager(FrozenEstimator(detector), random_state=seed)
        stager.fit(images[val], np.where(grade[val] > 0, -1, 1))
        score = -detector.score_samples(images[test])
        ill = -detector.score_samples(images[val & (grade > 0)])
        rival = CentroidStager(KMeans(n_init=20, random_state=seed)).fit(ill[:, None])
        found.append(
            {
                "score": score,
                "severity": stager.severity(images[test]),
                "stage": stager.predict(images[test]),
                "stage if ill": stager.pipeline_.predict(images[test]),
                "rival": rival.predict(score[:, None]),
            }
        )
    grade, groups = grade[test], groups[test]
    interval = partial(mean_with_interval, seeds=found, groups=groups)
    rows = [
        [
            f"detection, {name} against none",
            interval(partial(auroc, "score", np.select([grade == 0, wanted], [0, 1], -1))),
            "",
        ]
        for name, wanted in (
            ("mild", grade == 1),
            ("moderate", grade == 2),
            ("severe or worse", grade >= 3),
            ("any grade", grade > 0),
        )
    ]
    advanced = np.select([grade == 0, grade >= 3], [-1, 1], 0)
    rows.append(
        ["AUROC of severity, severe or worse against milder"]
        + [interval(partial(auroc, key, advanced)) for key in ("severity", "score")]
    )

    def kappa(key, rows, values):
        predicted = np.where(values["stage"] == 0, 0, values[key])[rows]
        return cohen_kappa_score(merged(grade[rows]), predicted, weights="quadratic")

    def of_ill(metric, key, rows, values):
        rows = rows[grade[rows] > 0]
        return metric(grade[rows] >= 4, values[key][rows] == 2)

    rows.append(
        ["weighted kappa, none / mild, moderate / worse"]
        + [interval(partial(kappa, key)) for key in ("stage", "rival")]
    )
    for name, metric in (
        ("accuracy", accuracy_score),
        ("F1", f1_score),
        ("adjusted Rand index", adjusted_rand_score),
    ):
        rows.append(
            [f"proliferative or advanced against the rest of the ill: {name}"]
            + [interval(partial(of_ill, metric, key)) for key in ("stage if ill", "rival")]
        )
    return rows


GRADES = {"mild": (1, 1), "moderate": (2, 2), "severe or worse": (3, 5), "any grade": (1, 5)}
STEPS = {
    "none": [],
    "crop": [CropToForeground()],
    "local contrast": [LocalContrast()],
    "histogram": [MatchHistogram()],
    "crop, local contrast": [CropToForeground(), LocalContrast()],
    "crop, histogram": [CropToForeground(), MatchHistogram()],
}


def preprocessing_rows(folder, n_seeds, epochs):
    with np.load(folder / "fundus_dr_128.npz") as arrays:
        images, grade, split, groups = (arrays[key] for key in ("images", "grade", "split", "group_ids"))
    train, test = split == "train", split == "test"
    rows = []
    for name, steps in STEPS.items():
        changed = make_pipeline("passthrough", *steps).fit(images[train])
        detector = FeatureGaussian(random_state=0).fit(changed.transform(images[train]))
        seen = changed.transform(images[test])
        values = {"score": -detector.score_samples(seen), "brightness": seen.mean((1, 2, 3))}
        row = [name]
        for low, high in GRADES.values():
            truth = np.select([grade[test] == 0, (low <= grade[test]) & (grade[test] <= high)], [0, 1], -1)
            row.append(mean_with_interval(partial(auroc, "score", truth), [values], groups[test]))
            if low == high == 1:
                alone = auroc("brightness", truth, np.arange(len(truth)), values)
                row.append(f"{max(alone, 1 - alone):.3f}")
        rows.append(row)
    return rows


def segmentation_rows(folder, n_seeds, epochs):
    dice = {}
    tests = [make_oct(TEST[1], kinds=FLUID, random_state=seed) for seed in range(TEST[0])]
    test = Bunch(**{key: np.concatenate([one[key] for one in tests]) for key in ("images", "masks", "kind")})
    for seed in range(n_seeds):
        train, val = (
            make_oct(N_SCANS[split], random_state=100 + 10 * seed + k)
            for k, split in enumerate(("train", "val"))
        )
        taught = make_oct(N_SCANS["train"], kinds=FLUID, random_state=102 + 10 * seed)
        labels = np.where(taught.masks, NO_LAYER, taught.layers.astype(int))
        detector = FrozenEstimator(AutoEncoder(random_state=seed, **epochs).fit(train.images))
        unet, unet_of_fluid = (
            FrozenEstimator(UNetLayerExtractor(random_state=seed).fit(scans, layers))
            for scans, layers in ((train.images, train.layers), (taught.images, labels))
        )
        maps = detector.estimator.anomaly_map(test.images)
        masks = {}
        for name, values in (("residual", maps), ("residual, blocks of 4", block_means(maps, 4))):
            oracle = np.nextafter(metrics.best_dice(test.masks, values)[1], 0)
            masks[f"{name}, oracle"] = residual_mask(values, oracle, min_size=MIN_SIZE)
        segmenters = {
            "residual": ResidualSegmenter(detector, min_size=MIN_SIZE),
            "residual, blocks of 4": ResidualSegmenter(
                detector, level="block", block_size=4, min_size=MIN_SIZE
            ),
            "layers, graph": LayerwiseSegmenter(detector, GraphLayerExtractor(), min_size=MIN_SIZE),
            "layers, U-Net": LayerwiseSegmenter(detector, unet, min_size=MIN_SIZE),
            "layers, U-Net shown fluid": LayerwiseSegmenter(detector, unet_of_fluid, min_size=MIN_SIZE),
        }
        masks |= {name: one.fit(val.images).predict(test.images) for name, one in segmenters.items()}
        for name, mask in masks.items():
            of = [metrics.dice(test.masks, mask)]
            of += [metrics.dice(test.masks[test.kind == kind], mask[test.kind == kind]) for kind in FLUID]
            dice.setdefault(name, []).append(of)
    return [
        [name, *(f"{mean:.3f} ({sd:.3f})" for mean, sd in zip(np.mean(of, 0), np.std(of, 0)))]
        for name, of in dice.items()
    ]


def adaptation_rows(folder, n_seeds, epochs):
    found, other = {}, OTHER_DEVICE
    for seed in range(n_seeds):

        def scans(k, n, seed=seed, **options):
            return make_oct(n, size=64, random_state=200 + 10 * seed + k, **options)

        source, labelled = (scans(k, N_SCANS["train"], kinds=FLUID, **of) for k, of in ((0, {}), (1, other)))
        train, val, test_normal = (
            scans(k, N_SCANS[split], **other) for k, split in ((2, "train"), (3, "val"), (4, "test"))
        )
        test = scans(5, N_SCANS["test"], kinds=FLUID, **other)
        detector = FrozenEstimator(SSLAnoVAE(random_state=seed, **epochs).fit(train.images))

        def unet(of, seed=seed, **options):
            labels = np.where(of.masks, NO_LAYER, of.layers.astype(int))
            return FrozenEstimator(UNetLayerExtractor(random_state=seed).fit(of.images, labels, **options))

        extractors = {
            "graph, no labels": GraphLayerExtractor(),
            "U-Net, not adapted": unet(source),
            "U-Net, adapted": unet(source, X_target=train.images),
            "U-Net, labels of the second device": unet(labelled),
        }
        for name, extractor in extractors.items():
            segmenter = LayerwiseSegmenter(detector, extractor, min_size=MIN_SIZE // 4).fit(val.images)
            layers = segmenter.layer_extractor_.predict(test_normal.images)
            dice = metrics.dice(test.masks, segmenter.predict(test.images))
            found.setdefault(name, []).append([np.mean(layers == test_normal.layers), dice])
    return [
        [name, *(f"{mean:.3f} ({sd:.3f})" for mean, sd in zip(np.mean(of, 0), np.std(of, 0)))]
        for name, of in found.items()
    ]


STAGES = (
    "Stages of diabetic retinopathy (fundus_dr, 128 px, test split; 95 % bootstrap intervals over patients), "
    "found without grades."
)
#: Heading, columns and rows of each table.
PARTS = {
    "staging": (
        f"{STAGES} The rival knows the mean residual only:",
        ("figure", "SSLAnoVAE, stages by residuals", "rival"),
        staging_rows,
    ),
    "features": (
        f"{STAGES} The rival knows the score only:",
        ("figure", "FeatureGaussian, stages by maps", "rival"),
        partial(staging_rows, new=FeatureGaussian),
    ),
    "preprocessing": (
        "Diabetic retinopathy (fundus_dr, 128 px, test split) by FeatureGaussian after steps: AUROC against "
        "no retinopathy, 95 % bootstrap intervals over patients; brightness is that of mild by the mean of "
        "an image alone:",
        ("steps", "mild", "mild by brightness", "moderate", "severe or worse", "any grade"),
        preprocessing_rows,
    ),
    "segmentation": (
        "Fluid in synthetic OCT (128 px): Dice at thresholds found without labels, mean of the seeds "
        "(standard deviation):",
        ("segmenter", "all", *FLUID),
        segmentation_rows,
    ),
    "adaptation": (
        "Layers and fluid in synthetic OCT of another device (64 px) by SSLAnoVAE and an extractor of "
        "layers, mean of the seeds (standard deviation):",
        ("extractor", "right layer, share of pixels", "Dice of fluid"),
        adaptation_rows,
    ),
}


def main():
    options = parse(__doc__, __file__, TABLES, parts={"choices": PARTS, "default": list(PARTS)})
    epochs = {"max_epochs": options.epochs} if options.epochs else {}
    for part in options.parts:
        start = time.perf_counter()
        heading, columns, rows = PARTS[part]
        made = table(columns, rows(options.data, options.seeds, epochs))
        command = f"python benchmarks/studies/retina.py --parts {part} --seeds {options.seeds}"
        text = f"Made by `{command}`.\n\n{heading}\n\n{made}"
        (options.folder / f"{part}.md").write_text(text)
        print(f"{text}\nTook {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
