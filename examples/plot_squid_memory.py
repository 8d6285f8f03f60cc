"""
What SQUID remembers
====================

SQUID stores features of training images, the last 200 for each place. It replaces the feature of every
window of an image by a combination of the most similar features stored for its place. Grids of digits show
what this means: in the place of the 5, only features of fives are retrieved, whatever the image shows there.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from skanomaly import SQUID
from skanomaly.datasets import make_digit_anatomy

kinds = "missing", "misordered", "flipped", "zero"
train = make_digit_anatomy(300, size=48, random_state=0)
test = make_digit_anatomy(4, kinds=kinds, size=48, subset="test", random_state=8)
detector = SQUID(n_windows=3, width=6, max_epochs=15, random_state=0).fit(train.images)

# %%
# A memory holds features, not pictures. Each feature is shown here as a picture: the window with the most
# similar feature, among all windows of training images in the same place.


def features(images):
    """Features of each window (n, 9, size), in the form in which they are compared with the memory."""
    network = detector.network_.eval()
    with torch.no_grad():
        x = torch.from_numpy(images)[:, None].float() / 255
        return network.paint(network.encode(x))[1]


def windows(images):
    """Images (n, 48, 48) to windows (n, 9, 16, 16)."""
    return images.reshape(-1, 3, 16, 3, 16).swapaxes(2, 3).reshape(-1, 9, 16, 16)


def grid(cells):
    """Undo `windows`, for one image."""
    return cells.reshape(3, 3, 16, 16).swapaxes(1, 2).reshape(48, 48)


memory = detector.network_.inpainting.memory
weights = memory.weights(features(test.images)).transpose(0, 1)  # (images, 9, stored patterns)
items = torch.nn.functional.normalize(memory.items, dim=-1)
known = torch.nn.functional.normalize(features(train.images), dim=-1).transpose(0, 1)
alike = (items @ known.transpose(1, 2)).argmax(-1).numpy()  # (9, stored patterns): a training image each
order = weights.argsort(dim=-1, descending=True).numpy()
pictures, places = windows(train.images), np.arange(9)

# %%
# The columns "first pattern", "second" and "third" show the stored features with the three largest weights
# for each place. They show the digits that belong there, in similar handwriting. The reconstruction is made
# of these three and of two more (``k=5``), and of the features retrieved for neighbouring windows.

titles = "input", "first pattern", "second", "third", "reconstruction", "map"
shown, maps = detector.reconstruct(test.images), detector.anomaly_map(test.images)
figure, axes = plt.subplots(4, 6, figsize=(11, 7.6), layout="compressed")
for k, row in enumerate(axes):
    nearest = [grid(pictures[alike[places, order[k, :, rank]], places]) for rank in range(3)]
    for ax, image, title in zip(row, (test.images[k], *nearest, shown[k], maps[k]), titles):
        ax.imshow(image, cmap="magma" if title == "map" else "gray")
        ax.set(xticks=[], yticks=[], title=title if k == 0 else None)
    row[0].set_ylabel(kinds[k])
plt.show()

# %%
# The component "feature", the distance between features and those retrieved for them, is larger for every
# kind of anomaly than for normal grids. The residual is hardly larger, least of all for missing digits: an
# empty cell has no detail that could be wrong.

grids = make_digit_anatomy(100, kinds=("normal", *kinds), size=48, subset="test", random_state=9)
components = detector.score_components(grids.images)
for kind in ("normal", *kinds):
    rows = grids.kind == kind
    values = (f"{name} {components[name][rows].mean():.3f}" for name in ("feature", "residual"))
    print(f"{kind:10}", *values)
