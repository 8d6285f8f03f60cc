"""
What unlabelled images add
==========================

Every hospital has images that nobody has labelled for research: most are normal, some are not. DDAD trains
one ensemble of autoencoders on normal images, and another on normal and unlabelled ones. Where the two
ensembles reconstruct an image differently, it shows something that only the second ensemble has seen.
"""

import matplotlib.pyplot as plt
import numpy as np

from skanomaly import DDAD
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import auroc
from skanomaly.plotting import ScoreHistogramDisplay


def half(images):
    """Images of half the size, to save time."""
    return images.reshape(-1, 32, 2, 32, 2).mean((2, 4)).astype("uint8")


normal = half(load_chest_xray(subset="train").images)
unlabelled = half(load_chest_xray(subset="val").images)  # half of them show pneumonia; y does not tell which
test = load_chest_xray(subset="test")

# %%
# ``y`` is 1 for normal and 0 for unlabelled images. Each ensemble has two members here, plain autoencoders
# that are small and trained for a short time.

X = np.concatenate([normal, unlabelled])
y = np.repeat([1, 0], [len(normal), len(unlabelled)])
small = {"backbone": "ae", "hidden_size": 256, "width": 8, "max_epochs": 40, "lr": 1e-3}
detector = DDAD(n_members=2, refine=False, random_state=0, **small).fit(X, y)
print(f"{detector.n_unlabelled_} of {len(X)} images are unlabelled")

# %%
# Three scores are compared: A_rec, the error of the ensemble trained on normal images; A_intra, how much the
# members of this ensemble differ; and A_inter, how much the two ensembles differ. Only A_inter makes use of
# unlabelled images.

components = detector.score_components(half(test.images))
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="compressed")
for name, ax in zip(("rec", "intra", "inter"), axes):
    ScoreHistogramDisplay.from_predictions(test.target, components[name], ax=ax)
    ax.set_title(f"A_{name}: AUROC {auroc(test.target, components[name]):.2f}")
plt.show()

# %%
# ``refine=False`` leaves out the paper's last step, networks that refine the maps of A_intra and A_inter.
# These networks need more images than there are here. The page of results shows what they do with these
# images, and what other shares of anomalous images do.
