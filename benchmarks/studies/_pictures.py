"""Pictures of images side by side."""

import matplotlib.pyplot as plt


def save_grid(path, lines, titles, *, masks=None, size=1.6):
    """A line of images for each (label, images, colour map, darkest, brightest); masks are outlined."""
    shape = len(lines), len(titles)
    options = {"figsize": (size * shape[1], 1.07 * size * shape[0]), "layout": "compressed"}
    figure, axes = plt.subplots(*shape, squeeze=False, **options)
    for (label, images, cmap, low, high), line in zip(lines, axes):
        for k, (image, axis) in enumerate(zip(images, line)):
            axis.imshow(image, cmap=cmap, vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[])
            if masks is not None and masks[k].any():
                axis.contour(masks[k], levels=[0.5], colors="lime", linewidths=0.8)
        line[0].set_ylabel(label, fontsize=8)
    for title, axis in zip(titles, axes[0]):
        axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=70)
    plt.close(figure)
