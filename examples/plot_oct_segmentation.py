"""
Detect, stage and segment: tomography of the retina
===================================================

This example answers the questions of the SSL-AnoVAE paper, one after another: which scans are not normal,
how advanced the illness is, and where the fluid is. Each step works with any detector that reconstructs. An
AutoEncoder is used here because it is quickly trained. The scans are synthetic, so that the truth is known.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from skanomaly import AutoEncoder
from skanomaly.datasets import make_oct
from skanomaly.metrics import auroc, dice
from skanomaly.segmenters import LayerwiseSegmenter, ResidualSegmenter
from skanomaly.staging import CentroidScorer, ResidualTransformer

normal = make_oct(150, size=64, random_state=0)
new = make_oct(80, kinds=("normal", "subretinal fluid"), severity=(0.1, 1.0), size=64, random_state=1)

# %%
# Detection, the first step:

detector = AutoEncoder(hidden_size=256, loss="l1", max_epochs=40, random_state=0).fit(normal.images)
print(f"AUROC {auroc(new.target, -detector.score_samples(new.images)):.2f}")

# %%
# Staging has three steps in the paper: residuals, clusters, and their order. Distances to centroids cannot
# say which cluster is worse, but the anomaly scores of the images can. Residuals are averaged over the whole
# scan. Clusters of single pixels would tell where fluid lies, and not how much there is.

ill, severity = new.images[new.target == -1], new.severity[new.target == -1]
pipeline = Pipeline(
    [
        ("residual", ResidualTransformer(FrozenEstimator(detector), pooling=64)),
        ("kmeans", KMeans(2, n_init=20, random_state=0)),
        ("score", CentroidScorer()),
    ]
)
pipeline.fit(ill, score__anomaly_score=-detector.score_samples(ill))
stages = pipeline.predict(ill)
for stage in (1, 2):
    print(f"stage {stage}: {np.sum(stages == stage)} scans, severity {severity[stages == stage].mean():.2f}")

# %%
# Segmentation is done in two ways: by a threshold on the residual, which is set on normal scans; and by
# comparing the layers of a scan with those of its reconstruction.

known = make_oct(40, size=64, random_state=2)
segmenters = {
    "residual": ResidualSegmenter(FrozenEstimator(detector), median_size=3),
    "layers": LayerwiseSegmenter(FrozenEstimator(detector), min_size=10),
}
masks = {name: segmenter.fit(known.images).predict(ill) for name, segmenter in segmenters.items()}
for name, found in masks.items():
    print(f"{name}: Dice {dice(new.masks[new.target == -1], found):.2f}")

# %%
# The figure has the four most severe scans, one a row. From left to right: the scan, its reconstruction, the
# layers of both, and both masks with outlines of the true fluid. Fluid lifts the layers of a scan, but not
# those of its reconstruction, so that the residual shows where the lifted layers lie. The fluid itself
# belongs to no layer, and the comparison of layers shows this.

# sphinx_gallery_thumbnail_number = 1

worst = np.argsort(-severity)[:4]
layers, made = segmenters["layers"].layers(ill[worst])
columns = {
    "scan": ill[worst],
    "reconstruction": detector.reconstruct(ill[worst]),
    "layers": layers,
    "of reconstruction": made,
    "residual mask": masks["residual"][worst],
    "layer mask": masks["layers"][worst],
}
figure, axes = plt.subplots(4, len(columns), figsize=(11, 7.4), layout="constrained")
for column, (name, images) in zip(axes.T, columns.items()):
    column[0].set_title(name, fontsize=9)
    for ax, image, truth in zip(column, images, new.masks[new.target == -1][worst]):
        if name in ("layers", "of reconstruction"):
            ax.imshow(image, cmap="viridis", vmin=-1, vmax=8)
        else:
            ax.imshow(image, cmap="gray")
        if "mask" in name:
            ax.contour(truth, [0.5], colors="deepskyblue", linewidths=0.9)
        ax.set(xticks=[], yticks=[])
