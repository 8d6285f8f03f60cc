"""
A large image, patch by patch
=============================

Networks for whole images take images of a few hundred pixels a side. A PatchDetector slides any detector
over larger images, window by window, and joins the maps of the windows. The regions that it finds are listed
in a table.
"""

import matplotlib.pyplot as plt
import numpy as np
import skimage.data

from skanomaly import AutoEncoder, PatchDetector
from skanomaly.datasets import load_chest_xray
from skanomaly.segmentation import regions


def sheets(images, n):
    """Contact sheets of n x n images each."""
    height, width = images.shape[1:]
    images = images[: len(images) // n**2 * n**2].reshape(-1, n, n, height, width)
    return np.moveaxis(images, 2, 3).reshape(len(images), n * height, n * width)


train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
X = sheets(train.images, 8)
print(X.shape)

# %%
# The detector learns from random crops of the size of a window. Small windows are quickly learned, and make
# detailed maps.

inner = AutoEncoder(latent_size=32, hidden_size=256, max_epochs=30)
detector = PatchDetector(inner, patch_size=16, n_patches=300, random_state=0).fit(X)

# %%
# Three squares of a photograph of grass are put into a sheet of X-rays of other patients. They have the mean
# and contrast of the pixels that they cover, so that brightness does not give them away.

image = sheets(test.images[test.target == 1], 8)[0]
grass = skimage.data.grass().astype(float)
planted = image.astype(float)
for top, left in [(60, 100), (200, 380), (400, 230)]:
    place = planted[top : top + 56, left : left + 56]
    patch = grass[top : top + 56, left : left + 56]
    place[:] = (patch - patch.mean()) / patch.std() * place.std() + place.mean()
planted = planted.clip(0, 255).astype(np.uint8)

# %%
# The threshold of pixels is set on a sheet of normal images that were not trained on, of which it flags one
# pixel in ten. A median filter and a least size of regions remove such speckle.

normal = sheets(val.images[val.target == 1], 8)
detector.calibrate(normal, pixel_false_alarm_rate=0.1, false_alarm_rate=0.5)
maps = detector.anomaly_map(planted[None])
masks = detector.segment(planted[None], median_size=9, min_size=100)
low, high = detector.map_range_
figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
axes[0].imshow(planted, cmap="gray")
axes[1].imshow(maps[0], cmap="inferno", vmin=low, vmax=high)
axes[2].imshow(masks[0], cmap="gray")
for ax, title in zip(axes, ("image", "anomaly map", "mask")):
    ax.set(title=title, xticks=[], yticks=[])

# %%
# These are the regions of the mask, the largest first:

table = regions(masks, maps)
for row in np.argsort(-table["area"])[:5]:
    print({name: np.round(column[row], 2).tolist() for name, column in table.items()})
