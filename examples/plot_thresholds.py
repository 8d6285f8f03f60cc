"""
Why thresholds need calibration
===============================

A detector has learned its training images: a threshold that flags a tenth of them flags far more than a
tenth of new normal images. A threshold that was set on normal images the detector has not seen flags about
as many new ones as it was asked to.
"""

import matplotlib.pyplot as plt
import numpy as np

from skanomaly import AutoEncoder
from skanomaly.datasets import load_chest_xray


def shrink(images):
    """Images of 16 x 16 pixels, to save time."""
    return images.reshape(-1, 16, 4, 16, 4).mean((2, 4)).astype("uint8")


train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
X = shrink(train.images)
normal_val, normal_test = (shrink(part.images[part.target == 1]) for part in (val, test))
detector = AutoEncoder(hidden_size=256, loss="l1", max_epochs=80, contamination=0.1, random_state=0).fit(X)

# %%
# All three sets are normal X-rays of children. X-rays that were not trained on have lower scores, which
# means that they are less normal.

from_training = detector.offset_
detector.calibrate(normal_val, false_alarm_rate=0.05)
scores = {"training": X, "validation, normal": normal_val, "test, normal": normal_test}
scores = {name: detector.score_samples(images) for name, images in scores.items()}
bins = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins=40)
figure, ax = plt.subplots(layout="constrained")
for name, values in scores.items():
    ax.hist(values, bins, density=True, alpha=0.5, label=name)
ax.axvline(from_training, color="black", linestyle=":", label="threshold from training")
ax.axvline(detector.offset_, color="black", label="threshold from calibration")
ax.set(xlabel="score (higher is more normal)", ylabel="density")
_ = ax.legend()

# %%
# These are the shares of normal test images that each threshold flags:

for name, asked, threshold in (("training", 0.1, from_training), ("calibration", 0.05, detector.offset_)):
    rate = np.mean(scores["test, normal"] < threshold)
    print(f"threshold from {name}: {asked} asked for, {rate:.3f} found")
