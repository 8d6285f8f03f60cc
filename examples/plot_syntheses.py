"""
Anomalies made to order
=======================

A synthesis works something foreign into normal images and says where. Detectors that are trained on such
images, :class:`~skanomaly.SyntheticAnomalies` and :class:`~skanomaly.DRAEM`, take a synthesis by its name.
Each row shows one, with its labels in red: the stronger the colour, the nearer the label is to 1.
"""

import matplotlib.pyplot as plt

from skanomaly.datasets import load_chest_xray
from skanomaly.synthesis import SYNTHESES, synthesize

chests = load_chest_xray().images[:8]

fig, axes = plt.subplots(len(SYNTHESES), len(chests), figsize=(8, len(SYNTHESES)), layout="constrained")
for row, (name, synthesis) in zip(axes, SYNTHESES.items()):
    made = synthesize(chests, synthesis, random_state=1)
    row[0].set_ylabel(name.replace("_", "\n"))
    for ax, image, label in zip(row, made.images, made.labels):
        ax.imshow(image, cmap="gray")
        ax.imshow(label, cmap="Reds", alpha=0.6 * label, vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
plt.show()

# %%
# FPI mixes a box of another chest in; PII mixes gradients instead, so that no edge shows. NSA resizes and
# displaces its pieces, CutPaste takes them from the image itself, AnatPaste pastes them into lungs, and
# displaced pieces differ in brightness. Perlin noise gives textures ragged outlines. The mixture has blobs of
# six kinds: foreign, of another detail, blurred, brighter or darker, noisy, and sharpened.
