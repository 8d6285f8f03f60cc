"""The two tables and the figures of the f-AnoGAN paper (Schlegl et al. 2019), on images of your own.

    python benchmarks/studies/fanogan.py [--sets NAME ...] [--data DIR] [--seeds 1] [--epochs N] [--threads 2]
                                         [--results DIR] [--full]

One WGAN for each seed. On it: the three trainings of the encoder (ziz, izi, izi_f), the critic alone (A_D)
and AnoGAN's search in the place of the encoder (iterative). Beside it: AE, AdvAE and ALI, and AnoGAN with a
GAN of its own (first seed only). Trained on `train` (normal images); the cut-off of each method is Youden's
on `val`, all figures are of `test`. The searches run on 64 images of each, half of them anomalous and the
same for all seeds; the other methods are judged on these too. A set is a file as for accuracy.py.

The tables go to fanogan/table.md in --results, pictures that may be published beside it; those of --full and
of N epochs to folders of their own. What is trained and scored is kept in build/fanogan, and a run that was
stopped goes on from there.

--full is the paper's size, for a GPU: width 64, 100,000 and 50,000 steps, searches on all images.
"""

import hashlib
import math
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from _pictures import save_grid
from joblib import Memory
from sklearn.metrics import roc_curve
from sklearn.utils import Bunch

from skanomaly import FAnoGAN, _comparison, metrics
from skanomaly._comparison import make, table, with_epochs, with_interval
from skanomaly.plotting import ScoreHistogramDisplay

SETS = "cxr_pneumonia_64", "brain_mri_64"
CACHE = Path("build/fanogan")
#: A linear encoder reaches all codes of a normal prior; a tanh one, the paper's, does not.
ENCODERS = {"ziz": {"encoder_output": "linear"}, "izi": {}, "izi_f": {}}
OTHERS = {"AE": "AutoEncoder", "AdvAE": "AdversarialAutoEncoder:adversary=image", "ALI": "ALI"}
#: The paper's orders by AUC, best first.
ORDERS = ["izi_f", "ziz", "izi"], ["f-AnoGAN", "iterative", "AE", "AdvAE", "ALI", "A_D"]
SEARCHED = "iterative", "AnoGAN"
N_SEARCHED = 64
N_BETWEEN = 13  # points on a line between codes
N_SHOWN = 2  # images with maps, of each class
FULL_WIDTH = 64, ("FAnoGAN", "AnoGAN", "ALI")


class OnGAN(FAnoGAN):
    """An FAnoGAN that takes the GAN of `gan`, a fitted one, and trains its encoder only."""

    gan = None

    def _train(self, run, network, images):
        def run_encoder(stage, *args, **options):
            if stage == "encoder":
                return run(stage, *args, **options)
            for part in ("generator", "critic"):
                getattr(network, part).load_state_dict(getattr(self.gan.network_, part).state_dict())

        super()._train(run_encoder, network, images)


class Models:
    """Fitted detectors and scores of one set of images; each is made once and then read from the cache."""

    def __init__(self, name, folder, memory, *, epochs, full):
        self.name, self.full, self.epochs = name, full, epochs
        self.splits = _comparison.load(name, folder)
        for split in ("val", "test"):
            if len(np.unique(self.splits[split].target)) < 2:
                raise SystemExit(f"{name}: split {split!r} must hold normal and anomalous images")
        digest = hashlib.sha256((folder / f"{name}.npz").read_bytes()).hexdigest()[:16]
        code = _comparison.code_digest("FAnoGAN", "AnoGAN", "ALI", "AutoEncoder", "AdversarialAutoEncoder")
        self.key = name, digest, code, epochs, full
        self._fit = memory.cache(self._fit, ignore=["self"])
        self._score = memory.cache(self._score, ignore=["self"])
        self.searched = {split: self._pick(self.splits[split].target) for split in ("val", "test")}

    def _pick(self, target):
        """Rows for the searches: as many of each class, the same in every run."""
        if self.full:
            return np.arange(len(target))
        rows = [np.flatnonzero(target == label) for label in (-1, 1)]
        n = min(N_SEARCHED // 2, *map(len, rows))
        # Evenly spread over the file, so that what lies together in it is represented.
        return np.sort(np.concatenate([of[np.linspace(0, len(of) - 1, n).astype(int)] for of in rows]))

    def fit(self, method, seed):
        return self._fit(self.key, method, seed)

    def score(self, method, seed):
        """Scores of "val" and "test", higher is worse, and "seconds" for an image."""
        return self._score(self.key, method, seed)

    def _fit(self, key, method, seed):
        train = self.splits["train"].images
        if method in OTHERS or method == "AnoGAN":
            detector = self._sized(make(OTHERS.get(method, method), random_state=seed), len(train))
        elif method == "izi_f":
            detector = self._sized(FAnoGAN(random_state=seed), len(train))
        else:
            detector = self._sized(OnGAN(random_state=seed), len(train))
            detector.set_params(encoder_training=method, **ENCODERS[method])
            detector.gan = self.fit("izi_f", seed)
        start = time.perf_counter()
        detector.fit(train)
        print(
            f"{self.name}, seed {seed}: {method} trained in {time.perf_counter() - start:.0f} s", flush=True
        )
        return detector

    def _sized(self, detector, n_images):
        width, names = FULL_WIDTH
        if self.full and isinstance(detector, FAnoGAN):
            epochs = math.ceil(100_000 * 64 / n_images)
            detector.set_params(batch_size=64, lr=1e-4, encoder_lr=5e-5)
            detector.set_params(max_epochs=epochs, encoder_epochs=epochs // 2)
        if self.full and any(cls.__name__ in names for cls in type(detector).__mro__):
            detector.set_params(width=width)
        return with_epochs(detector, self.epochs)

    def _score(self, key, method, seed):
        of_gan = method in ("A_D", "iterative")
        detector = self.fit("izi_f" if of_gan else method, seed)

        def judge(images):
            if method == "A_D":
                return detector.score_components(images)["critic"]
            if method == "iterative":
                n_search = {"n_search": 10 * self.epochs} if self.epochs else {}
                return -detector.iterative(images, random_state=seed, **n_search).scores
            return -detector.score_samples(images)

        scores = {}
        for split in ("val", "test"):
            images = self.splits[split].images
            if method in SEARCHED:
                images = images[self.searched[split]]
            start = time.perf_counter()
            scores[split] = judge(images)
            scores["seconds"] = (time.perf_counter() - start) / len(images)
        return scores


def mean_auroc(scores, y, rows, *, anomaly_label):
    """AUROC of the rows, averaged over the seeds' scores."""
    rows = rows.astype(int)
    return np.mean([metrics.auroc(y, score[rows], anomaly_label=anomaly_label) for score in scores])


class Comparison:
    """The methods on the images of one set, or on those of them that were searched.

    Attributes
    ----------
    scores : dict of method to list over seeds of {"val": scores, "test": scores, "seconds": of an image}
    val, test : Bunch of target and groups
    """

    def __init__(self, models, methods, n_seeds, *, searched):
        self.name = models.name
        rows = models.searched if searched else dict.fromkeys(("val", "test"), slice(None))
        self.val, self.test = (
            Bunch(
                target=part.target[rows[split]],
                groups=None if part.groups is None else part.groups[rows[split]],
            )
            for split, part in models.splits.items()
            if split != "train"
        )
        self.scores = {}
        for method in methods:
            seeds = range(1 if method == "AnoGAN" else n_seeds)
            self.scores[method] = [models.score(method, seed) for seed in seeds]
            if method not in SEARCHED:  # those have no other scores
                self.scores[method] = [
                    score | {split: score[split][rows[split]] for split in rows}
                    for score in self.scores[method]
                ]

    def auroc(self, method):
        scores = [score["test"] for score in self.scores[method]]
        return with_interval(partial(mean_auroc, scores), self.test, np.arange(len(self.test.target)))

    def difference(self, better, worse):
        pairs = [[score["test"] for score in self.scores[method]] for method in (better, worse)]

        def difference(y, rows, *, anomaly_label):
            first, second = (mean_auroc(scores, y, rows, anomaly_label=anomaly_label) for scores in pairs)
            return first - second

        return with_interval(difference, self.test, np.arange(len(self.test.target)))

    def row(self, method):
        at_youden = [
            metrics.classification_metrics(
                self.test.target,
                score["test"],
                threshold=metrics.youden_threshold(self.val.target, score["val"]),
            )
            for score in self.scores[method]
        ]
        keys = "precision", "sensitivity", "specificity", "f1"
        figures = [f"{np.mean([one[key] for one in at_youden]):.3f}" for key in keys]
        # A_D alone is not timed: it is computed together with the other components.
        seconds = np.mean([score["seconds"] for score in self.scores[method]]) if method != "A_D" else np.nan
        auroc = "{:.3f} [{:.3f}, {:.3f}]".format(*self.auroc(method))
        return [self.name, method, len(at_youden), *figures, auroc, f"{seconds:.2g}".replace("nan", "")]


HEAD = "data", "method", "seeds", "precision", "sensitivity", "specificity", "F1", "AUC", "s / image"


def orderings(whole, searched):
    """Does each method beat the next one of the paper's order? Searches are compared on their images."""
    rows = []
    for order in ORDERS:
        for pair in pairwise(order):
            on = searched if set(pair) & set(SEARCHED) else whole
            difference, low, high = on.difference(*pair)
            verdict = "holds" if low > 0 else "reversed" if high < 0 else "undecided"
            text = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            rows.append([on.name, " > ".join(pair), len(on.test.target), text, verdict])
    return rows


def draw_curves(models, comparison, path):
    """ROC curves, and the two parts of f-AnoGAN's score."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for method, scores in comparison.scores.items():
        grid = np.linspace(0, 1, 201)
        hits = []
        for score in scores:
            rates = roc_curve(comparison.test.target == -1, score["test"])[:2]
            hits.append(np.interp(grid, *rates))
        axes[0].plot(grid, np.mean(hits, 0), label=f"{method} ({comparison.auroc(method)[0]:.2f})")
    axes[0].plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes[0].set(xlabel="false alarm rate", ylabel="sensitivity", title="ROC, mean of the seeds (AUC)")
    axes[0].legend(fontsize=7)
    test = models.splits["test"]
    components = models.fit("izi_f", 0).score_components(test.images)
    for ax, (key, name) in zip(axes[1:], {"residual": "A_R, pixels", "feature": "A_D, features"}.items()):
        ScoreHistogramDisplay.from_predictions(test.target, components[key], ax=ax)
        ax.set(title=name, xlabel="part of the score, izi_f")
    figure.savefig(path, dpi=65)
    plt.close(figure)


def draw_lines(models, path):
    """Images along the line between two codes: drawn from the prior, and of two normal images."""
    detector = models.fit("izi_f", 0)
    normal = models.splits["test"].images[models.splits["test"].target == 1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codes = detector.network_.draw_codes(6).cpu().numpy()
    ends = [*zip(codes[::2], codes[1::2]), *zip(normal[:6:2], normal[1:6:2])]
    labels = ["random codes"] * 3 + ["test images"] * 3
    lines = [
        (label, detector.interpolate(*line, n=N_BETWEEN), "gray", *detector.intensity_range_)
        for label, line in zip(labels, ends)
    ]
    save_grid(path, lines, [""] * N_BETWEEN, size=0.85)


def draw_maps(models, path):
    """The same images, reconstructed and compared by each method; each map on the scale of normal images."""
    n_search = {"n_search": 10 * models.epochs} if models.epochs else {}
    rows, target = models.searched["test"], models.splits["test"].target
    shown = np.concatenate([rows[target[rows] == label][:N_SHOWN] for label in (-1, 1)])
    images = models.splits["test"].images[shown]
    made = {}
    for method in ("ziz", "izi", "izi_f", "AnoGAN"):
        detector = models.fit(method, 0)
        made[method] = detector.reconstruct(images), detector.anomaly_map(images), detector.map_range_
    detector = models.fit("izi_f", 0)
    val = models.splits["val"]
    normal = val.images[val.target == 1][: len(images)]
    found = detector.iterative(np.concatenate([images, normal]), random_state=0, **n_search)
    scale = np.quantile(found.maps[len(images) :], [0.01, 0.999])
    made["iterative"] = detector.decode(found.codes[: len(images)]), found.maps[: len(images)], scale
    gray = "gray", *detector.intensity_range_
    lines = [("input", images, *gray)]
    for method, (reconstructions, maps, scale) in made.items():
        lines += [(method, reconstructions, *gray), ("map", maps, "inferno", *scale)]
    save_grid(path, lines, ["anomalous" if target[row] == -1 else "normal" for row in shown], size=0.85)


def main():
    options = _comparison.parse(__doc__, __file__, f"{_comparison.TABLES} full", sets={"default": SETS})
    memory = Memory(CACHE, verbose=0)
    start = time.perf_counter()
    encoders, others, orders, figures = [], [], [], []
    on_searched = []
    for name in options.sets:
        models = Models(name, options.data, memory, epochs=options.epochs, full=options.full)
        methods = [*ENCODERS, *OTHERS, "A_D"]
        whole = Comparison(models, methods, options.seeds, searched=False)
        searched = Comparison(models, [*methods, *SEARCHED], options.seeds, searched=True)
        if _comparison.may_draw(name, options.folder):
            paths = [options.folder / f"{name}_{kind}.png" for kind in ("curves", "lines", "maps")]
            draw_curves(models, whole, paths[0])
            draw_lines(models, paths[1])
            draw_maps(models, paths[2])
            figures += [f"![{path.stem.replace('_', ' ')}]({path.name})\n" for path in paths]
        for comparison in (whole, searched):
            comparison.scores["f-AnoGAN"] = comparison.scores["izi_f"]
        encoders += [whole.row(method) for method in ENCODERS]
        others += [whole.row(method) for method in [*OTHERS, "A_D", "f-AnoGAN"]]
        on_searched += [
            searched.row(method) for method in ["ziz", "izi", *OTHERS, "A_D", *SEARCHED, "f-AnoGAN"]
        ]
        orders += orderings(whole, searched)
    text = "\n".join(
        [
            f"Made by `python benchmarks/studies/fanogan.py --seeds {options.seeds}`. Mean of the seeds, "
            "test split; 95 % bootstrap intervals of the AUC draw patients, not trainings. The cut-off is "
            "Youden's on the validation split; nan where a cut-off flags nothing.\n",
            "How the encoder is trained, on one WGAN for each seed. For ziz its output is linear, for the "
            "others tanh: a tanh does not reach most codes of the normal prior, and ziz learns from them.\n",
            table(HEAD, encoders),
            "f-AnoGAN (izi_f) and other models; A_D is the critic of the same WGAN:\n",
            table(HEAD, others),
            "The images that were searched, in the same WGAN (iterative) and in a DCGAN of its own (AnoGAN). "
            "Beside them the other methods, cut-offs from as many validation images:\n",
            table(HEAD, on_searched),
            "Does each method beat the next of the paper's order? Difference of the AUC:\n",
            table(("data", "order in the paper", "images", "difference", "here"), orders),
            *figures,
        ]
    )
    (options.folder / "table.md").write_text(text)
    print(text, f"Took {time.perf_counter() - start:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
