"""Every public verb, used as a person would: test_typing has it checked by mypy, and runs it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import skanomaly
from skanomaly import (
    AutoEncoder,
    FAnoGAN,
    FeatureGaussian,
    datasets,
    merge,
    metrics,
    model_selection,
    persistence,
)
from skanomaly.io import ImageFiles, read_folder, write_maps, write_masks
from skanomaly.plotting import AnomalyMapDisplay, ScoreHistogramDisplay
from skanomaly.preprocessing import CropToForeground, Resize
from skanomaly.segmenters import ResidualSegmenter
from skanomaly.staging import CentroidStager, ResidualTransformer, severity


def use(folder: Path) -> None:
    chest = datasets.load_chest_xray(subset="train")
    X, y = datasets.load_chest_xray(subset="val", return_X_y=True)
    X, y = X[::10, ::4, ::4], y[::10]
    scans = datasets.make_oct(4, kinds=("normal", "drusen"), size=32, random_state=0)
    datasets.make_fundus(2, grades=(0, 2), size=32)
    datasets.make_digit_anatomy(2, size=48, digits=None, random_state=np.random.RandomState(0))

    detector = FAnoGAN(width=2, max_epochs=1, encoder_epochs=1, n_critic=1, random_state=0)
    detector = detector.fit(chest.images[:20, ::4, ::4]).calibrate(X[y == 1], false_alarm_rate=0.2)
    scores: NDArray[np.float64] = detector.score_samples(X)
    labels: NDArray[np.intp] = detector.predict(X)
    maps: NDArray[np.float32] = detector.anomaly_map(X)
    masks: NDArray[np.bool_] = detector.segment(X, median_size=3, min_size=2)
    np.save(folder / "images.npy", X)
    files: ImageFiles = read_folder(folder, "*.npy", size=(16, 16), on_error="skip")
    written: list[Path] = write_masks(folder / "masks", masks, files, overlay=True)
    written += write_maps(folder / "masks", maps, files.take(slice(None)), limits=(0, 1))
    assert files.groups is not None
    assert len(written) == 3 * len(files)
    cut: NDArray = CropToForeground((8, 8)).fit(X).restore_maps(Resize(8).fit(X).transform(X), X)
    assert cut.shape == maps.shape
    parts: dict[str, NDArray[np.float64]] = detector.score_components(X)
    images: NDArray[np.float32] = detector.reconstruct(X)
    rows: list[slice] = [rows for rows, _, _ in detector.iter_batches(X)]
    above: NDArray[np.float64] = detector.decision_function(X)
    thresholds: tuple[float, float] = (detector.offset_, detector.pixel_offset_)
    found: NDArray[np.float32] = skanomaly.anomaly_map(detector, X)
    p: NDArray[np.float64] = skanomaly.p_value(detector, X)
    assert (detector.predict(X, false_alarm_rate=0.5) == np.where(p <= 0.5, -1, 1)).all()
    same: float = detector.drift(X[y == 1]).pvalue
    assert same == 1
    dtypes = [array.dtype for array in (scores, labels, maps, masks, parts["residual"], images, above, found)]
    assert dtypes == ["f8", "i8", "f4", "?", "f8", "f4", "f8", "f4"]
    assert rows == [slice(0, len(X))]
    assert thresholds[1] > 0

    persistence.save(detector, folder / "detector.skanomaly")
    again = persistence.load(folder / "detector.skanomaly", device="cpu")
    assert (again.score_samples(X) == scores).all()

    sites = [FeatureGaussian(backbone="filters", grid=1, keep_sums=True).fit(X[k::2]) for k in (0, 1)]
    whole: FeatureGaussian = merge(sites, force=True)
    assert whole.n_images_ == len(X)

    auroc: float = metrics.auroc(y, -scores)
    low, high = metrics.bootstrap_interval(metrics.auroc, y, -scores, n_resamples=10, random_state=0)
    assert low <= auroc <= high
    sharpness: NDArray[np.float64] = metrics.confounds(X)["sharpness"]
    within: float = metrics.stratified_auroc(y, -scores, sharpness, n_strata=3)
    ends: tuple[float, float] = metrics.bootstrap_interval(
        metrics.stratified_auroc, y, -scores, confound=sharpness, n_strata=3, n_resamples=10
    )
    assert 0 <= within <= 1
    assert ends[0] <= ends[1]
    f1: float = metrics.classification_metrics(y, -scores, threshold="youden")["f1"]
    dice, threshold = metrics.best_dice(masks | (maps > 0), maps)
    assert f1 + dice <= 2
    assert threshold >= 0

    cv = model_selection.NormalOnlyKFold(2, random_state=0)
    scorer = model_selection.AnomalyScorer("auroc")
    values: list[float] = [scorer(detector, X[test], y[test]) for _, test in cv.split(X, y)]
    assert len(values) == 2

    AnomalyMapDisplay.from_estimator(detector, X[:2])
    ScoreHistogramDisplay.from_predictions(y, -scores)
    segmenter = ResidualSegmenter(AutoEncoder(width=2, max_epochs=1)).fit(scans.images)
    regions: NDArray[np.bool_] = segmenter.predict(scans.images)
    differences = ResidualTransformer(detector).fit_transform(X, y)
    stager = CentroidStager().fit(differences, y)
    stages: NDArray[np.intp] = stager.predict(differences)
    assert regions.dtype == bool
    assert len(stages) == len(severity(stager, differences))
