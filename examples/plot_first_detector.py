"""
Find what is not normal
=======================

Fit a detector to healthy chest X-rays of children, set its threshold on further healthy ones, and
look at what it says of unseen images.
"""

import numpy as np

from skanomaly import AutoEncoder
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import auroc, classification_metrics
from skanomaly.plotting import AnomalyMapDisplay, ScoreHistogramDisplay

train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
print(train.images.shape, train.images.dtype)

# sphinx_gallery_thumbnail_number = 2

# %%
# Training images are all normal, so there are no labels to give. The default is 100 epochs; a third
# of them will do to see how it works.

detector = AutoEncoder(max_epochs=30, random_state=0).fit(train.images)

# %%
# Thresholds from training flag many more new images than they promise. Normal images that were not
# trained on set them right.

detector.calibrate(val.images[val.target == 1], false_alarm_rate=0.05)

# %%
# Scores are higher for normal images, as scikit-learn has it; metrics take anomaly scores, where
# higher is worse.

score = -detector.score_samples(test.images)
print(f"AUROC {auroc(test.target, score):.3f}")
threshold = np.nextafter(-detector.offset_, np.inf)  # a score equal to it is normal
at_threshold = classification_metrics(test.target, score, threshold=threshold)
for name in ("false_alarm_rate", "sensitivity", "precision"):
    print(f"{name} {at_threshold[name]:.3f}")

# %%
# An autoencoder sees pneumonia only dimly: the two classes overlap, and at a threshold with few
# false alarms it finds few of the ill.

_ = ScoreHistogramDisplay.from_estimator(detector, test.images, test.target)

# %%
# The map is the error of each pixel, on one colour scale for all images.

some = np.concatenate([np.flatnonzero(test.target == label)[:2] for label in (-1, 1)])
titles = ["pneumonia"] * 2 + ["normal"] * 2
_ = AnomalyMapDisplay.from_estimator(detector, test.images[some], titles=titles, min_size=8)
