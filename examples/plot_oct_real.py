"""
Segment real tomography of the retina
=====================================

The package holds 17 real OCT B-scans, four of them normal. They are too few to measure anything, but enough
to see what each step does. Scans are flattened first, so that there is less to learn. Randomly changed
copies of the normal scans are added to them for training.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage.exposure import rescale_intensity
from sklearn.frozen import FrozenEstimator

from skanomaly import AutoEncoder
from skanomaly.datasets import load_oct
from skanomaly.layers import GraphLayerExtractor
from skanomaly.segmenters import LayerwiseSegmenter, ResidualSegmenter
from skanomaly.transforms import ColorJitter, Compose, Crop, Flip

data = load_oct()
extractor = GraphLayerExtractor(thickness=(24, 16, 12), polarity=(1, -1, 1, -1)).fit(data.images)
scans = extractor.flatten(data.images)[:, 36:100]
scans = np.array([rescale_intensity(scan, tuple(np.percentile(scan, (1, 99.5)))) for scan in scans])

# %%
# Three layers are found in the scans: the inner retina, the outer nuclear layer, and the photoreceptors
# together with the pigment epithelium. The white margins, which come from the registration of the scans, do
# not disturb this.

figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), layout="constrained")
boundaries = extractor.boundaries(data.images)
for ax, k in zip(axes.flat, (2, 10, 3, 4, 5, 13, 7, 15)):
    ax.imshow(data.images[k], cmap="gray")
    ax.plot(boundaries[k].T, linewidth=1)
    ax.set_title(data.class_names[data.class_index[k]], fontsize=9)
    ax.set(xticks=[], yticks=[])

# %%
# An autoencoder learns from the normal scans. Thresholds are set on the same scans, for lack of others.

torch.manual_seed(0)
views = Compose((Crop(area=(0.8, 1.0)), Flip(), ColorJitter()))
normal = scans[data.target == 1]
many = views(torch.from_numpy(np.repeat(normal, 20, axis=0)).float()[:, None])[:, 0]
normal = np.concatenate([normal, many.round().clamp(0, 255).byte().numpy()])
detector = FrozenEstimator(AutoEncoder(hidden_size=256, loss="l1", max_epochs=60, random_state=0).fit(normal))
segmenters = {
    "residual mask": ResidualSegmenter(detector, median_size=3, min_size=20),
    "layer mask": LayerwiseSegmenter(detector, extractor, min_size=20),
}

# %%
# Fluid is dark and belongs to no layer. The layer mask shows it in the second and third scan, but does not
# show the small cysts of the fourth. It shows little of drusen and new vessels (CNV), which bend layers more
# than they break them. The residual mask shows where a retina is brighter or thicker than the normal ones,
# be it ill or not.

# sphinx_gallery_thumbnail_number = 2

chosen = np.array([4, 12, 13, 14, 9, 15])
masks = {name: one.fit(normal).predict(scans[chosen]) for name, one in segmenters.items()}
layers, made = segmenters["layer mask"].layers(scans[chosen])
columns = {
    "scan": scans[chosen],
    "reconstruction": detector.reconstruct(scans[chosen]),
    "layers": layers,
    "of reconstruction": made,
} | masks
figure, axes = plt.subplots(len(chosen), len(columns), figsize=(11, 6.6), layout="constrained")
for column, (name, images) in zip(axes.T, columns.items()):
    column[0].set_title(name, fontsize=9)
    for ax, image, scan, k in zip(column, images, scans[chosen], chosen):
        if "mask" in name:
            ax.imshow(scan, cmap="gray")
            ax.contour(image, [0.5], colors="red", linewidths=0.9)
        elif name in ("layers", "of reconstruction"):
            ax.imshow(image, cmap="viridis", vmin=-1, vmax=4)
        else:
            ax.imshow(image, cmap="gray")
        if name == "scan":
            ax.set_ylabel(data.class_names[data.class_index[k]], fontsize=9)
        ax.set(xticks=[], yticks=[])
