"""
Find what is not normal
=======================

A detector is fitted to healthy chest X-rays of children, its threshold is set on other healthy ones, and
unseen images are judged. All of this takes seconds, because the images are first shrunk to 16 x 16 pixels.
"""

import numpy as np

from skanomaly import AutoEncoder
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import auroc
from skanomaly.plotting import AnomalyMapDisplay, ScoreHistogramDisplay

train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))


def shrink(images):
    """Images of 16 x 16 pixels, each the mean of 4 x 4 pixels."""
    return images.reshape(-1, 16, 4, 16, 4).mean((2, 4)).astype("uint8")


X = shrink(train.images)
print(X.shape, X.dtype)

# sphinx_gallery_thumbnail_number = 2

# %%
# All training images are normal, so that ``fit`` needs no labels.

detector = AutoEncoder(hidden_size=128, loss="l1", max_epochs=40, random_state=0).fit(X)

# %%
# Scores are higher for normal images, as elsewhere in scikit-learn. Metrics take anomaly scores, which are
# higher for worse images. An AUROC of 0.5 is chance, and 1 is perfect.

X_test = shrink(test.images)
score = -detector.score_samples(X_test)
print(f"AUROC {auroc(test.target, score):.2f}")

# %%
# A threshold turns scores into decisions. ``calibrate`` sets it from normal images that were not trained
# on, so that about the given share of normal images is flagged by mistake. If few normal images are flagged,
# most of the ill are not flagged either:

for rate in (0.2, 0.05):
    detector.calibrate(shrink(val.images), val.target, false_alarm_rate=rate)
    flagged = detector.predict(X_test) == -1
    for name, label in (("normal", 1), ("pneumonia", -1)):
        print(f"asked for {rate}: {flagged[test.target == label].mean():.2f} of {name} flagged")

# %%
# The scores of the two classes overlap: this autoencoder tells them apart only poorly.

_ = ScoreHistogramDisplay.from_estimator(detector, X_test, test.target)

# %%
# The map is the error of each pixel, on one colour scale for all images. In the first image it shows a
# bright mark in the corner more than the lung: a detector flags whatever its training images did not show.

some = np.concatenate([np.flatnonzero(test.target == label)[:2] for label in (-1, 1)])
titles = ["pneumonia"] * 2 + ["normal"] * 2
_ = AnomalyMapDisplay.from_estimator(detector, X_test[some], titles=titles, min_size=2)
