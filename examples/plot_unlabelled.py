"""
What unlabelled images add
==========================

Every hospital has images that nobody has read for research: most are normal, some are not. DDAD trains
one ensemble of autoencoders on normal images, and another on these and the unlabelled ones. What only the
second has seen, it reconstructs otherwise: where the ensembles differ, something is there that is not
normal.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from skanomaly import DDAD
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import auroc
from skanomaly.plotting import ScoreHistogramDisplay

torch.set_num_threads(1)
normal = load_chest_xray(subset="train").images
unlabelled = load_chest_xray(subset="val").images  # half of them show pneumonia; which ones is not told
test = load_chest_xray(subset="test")

# %%
# ``y`` says which is which: 1 is normal, 0 unlabelled. Members are small here, and train for a short
# time.

X = np.concatenate([normal, unlabelled])
y = np.repeat([1, 0], [len(normal), len(unlabelled)])
size = {"hidden_size": 256, "width": 8, "max_epochs": 40, "refinement_width": 16, "refinement_epochs": 5}
detector = DDAD(n_members=2, random_state=0, **size).fit(X, y)
print(f"{detector.n_unlabelled_} of {len(X)} images are unlabelled")

# %%
# There are five scores: the paper's A are discrepancies as they are, its R refined by a small network
# that has seen, in normal images, where pieces of others were mixed into them.

names = {"rec": "A_rec", "intra": "A_intra", "refined_intra": "R_intra"}
names |= {"inter": "A_inter", "refined_dual": "R_dual"}
components = detector.score_components(test.images)
figure, axes = plt.subplots(1, 5, figsize=(15, 2.8), layout="compressed")
for (name, label), ax in zip(names.items(), axes):
    ScoreHistogramDisplay.from_predictions(test.target, components[name], ax=ax)
    ax.set_title(f"{label}: AUROC {auroc(test.target, components[name]):.2f}")
plt.show()

# %%
# The difference between the ensembles tells most. What is to be said of the refinement, and of other
# shares of anomalous images, is on the page of results. ``refine=False`` makes A_inter the score.
