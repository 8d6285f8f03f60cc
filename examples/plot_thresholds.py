"""
Why thresholds need calibration
===============================

A detector knows its training images too well. A threshold that flags a tenth of them flags about
half of all new normal images; one from normal images it has not seen keeps what it promises.
"""

import matplotlib.pyplot as plt
import numpy as np

from skanomaly import AutoEncoder
from skanomaly.datasets import load_chest_xray

train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
normal_val, normal_test = (part.images[part.target == 1] for part in (val, test))
detector = AutoEncoder(max_epochs=40, contamination=0.1, random_state=0).fit(train.images)

# %%
# The same kind of image, seen and unseen: the scores of the unseen ones are worse.

from_training = detector.offset_
scores = {"training": train.images, "validation, normal": normal_val, "test, normal": normal_test}
scores = {name: detector.score_samples(images) for name, images in scores.items()}
bins = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins=40)
figure, ax = plt.subplots(layout="constrained")
for name, values in scores.items():
    ax.hist(values, bins, density=True, alpha=0.5, label=name)
detector.calibrate(normal_val, false_alarm_rate=0.05)
ax.axvline(from_training, color="black", linestyle=":", label="threshold from training")
ax.axvline(detector.offset_, color="black", label="threshold from calibration")
ax.set(xlabel="score (higher is more normal)", ylabel="density")
_ = ax.legend()

# %%
# False alarms on normal test images:

for name, threshold in (("training", from_training), ("calibration", detector.offset_)):
    rate = np.mean(scores["test, normal"] < threshold)
    print(f"threshold from {name}: {rate:.3f}")
