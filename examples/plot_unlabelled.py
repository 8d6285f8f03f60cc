"""
What unlabelled images add
==========================

Every hospital has images that nobody has read for research: most are normal, some are not. DDAD trains
one ensemble of autoencoders on normal images, and another on these and the unlabelled ones. Where the two
reconstruct an image differently, it shows something that only the second has seen.
"""

import matplotlib.pyplot as plt
import numpy as np

from skanomaly import DDAD
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import auroc
from skanomaly.plotting import ScoreHistogramDisplay


def half(images):
    """Half the size, for the sake of time."""
    return images.reshape(-1, 32, 2, 32, 2).mean((2, 4)).astype("uint8")


normal = half(load_chest_xray(subset="train").images)
unlabelled = half(load_chest_xray(subset="val").images)  # half of them show pneumonia; y does not tell which
test = load_chest_xray(subset="test")

# %%
# ``y`` is 1 for normal and 0 for unlabelled images. Ensembles have two members here, plain autoencoders
# that are small and trained for a short time.

X = np.concatenate([normal, unlabelled])
y = np.repeat([1, 0], [len(normal), len(unlabelled)])
small = {"backbone": "ae", "hidden_size": 256, "width": 8, "max_epochs": 40, "lr": 1e-3}
detector = DDAD(n_members=2, refine=False, random_state=0, **small).fit(X, y)
print(f"{detector.n_unlabelled_} of {len(X)} images are unlabelled")

# %%
# Three scores can be compared: A_rec, the error of the normal ensemble; A_intra, how much its members
# differ; and A_inter, how much the ensembles differ. The last one alone makes use of unlabelled images.

components = detector.score_components(half(test.images))
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="compressed")
for name, ax in zip(("rec", "intra", "inter"), axes):
    ScoreHistogramDisplay.from_predictions(test.target, components[name], ax=ax)
    ax.set_title(f"A_{name}: AUROC {auroc(test.target, components[name]):.2f}")
plt.show()

# %%
# ``refine=False`` leaves out the paper's last step, a network that refines the maps of both differences.
# It needs more images than there are here: the page of results says what it does with these, and with
# other shares of anomalous images.
