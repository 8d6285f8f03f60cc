"""
What a generative detector knows
================================

f-AnoGAN learns to make normal images from codes, and then to find the code of an image. Images from random
codes show what it takes for normal. Images from codes on the line between two codes show whether it also
knows what lies between two images.
"""

import matplotlib.pyplot as plt
import numpy as np

from skanomaly import FAnoGAN
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import auroc
from skanomaly.plotting import AnomalyMapDisplay


def half(images):
    """Images of half the size, to save time."""
    return images.reshape(-1, 32, 2, 32, 2).mean((2, 4)).astype("uint8")


train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
quick = {"width": 4, "n_critic": 2, "batch_size": 32, "lr": 1e-3}
detector = FAnoGAN(**quick, max_epochs=20, encoder_epochs=6, random_state=0).fit(half(train.images))
detector.calibrate(half(val.images), val.target)

# sphinx_gallery_thumbnail_number = 2

# %%
# These are the losses of both stages. The Wasserstein distance falls as samples get better. With the default
# parameters, which take minutes, it falls further.

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].plot(detector.history_["gan"][:, "wasserstein_distance"])
axes[0].set(title="gan", xlabel="epoch", ylabel="Wasserstein distance")
axes[1].plot(detector.history_["encoder"][:, "train_loss"])
_ = axes[1].set(title="encoder", xlabel="epoch", ylabel="loss")

# %%
# Samples are images from random codes. They are blurred after so short a training:


def strip(images, title):
    figure, axes = plt.subplots(1, len(images), figsize=(10, 1.5), layout="constrained")
    for ax, image in zip(axes, images):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        ax.set_axis_off()
    figure.suptitle(title)


strip(detector.sample(9, random_state=0), "samples")

# %%
# The next images are made from codes on the line between the codes of two real images. They differ little,
# because after so short a training the encoder gives similar codes to all images.

strip(detector.interpolate(half(train.images)[0], half(train.images)[1], 9), "between two X-rays")

# %%
# ``score_components`` returns the error of the pixels ("residual"), of the critic's features ("feature") and
# of the codes ("latent"), and the critic's own judgement of the image ("critic").

images = half(test.images)
components = detector.score_components(images) | {"score": -detector.score_samples(images)}
for name, values in components.items():
    print(f"{name:10} AUROC {auroc(test.target, values):.3f}")

# %%
# This is the most anomalous image of each class:

worst = [np.flatnonzero(test.target == label) for label in (-1, 1)]
worst = [rows[np.argmax(components["score"][rows])] for rows in worst]
_ = AnomalyMapDisplay.from_estimator(detector, images[worst], titles=["pneumonia", "normal"])
