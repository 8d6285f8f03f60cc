"""A report on judged images: one HTML file that needs nothing else, for people who look at images."""

import base64
import os
from io import BytesIO
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .features import ImageFeatures
from .io import overlaid
from .segmentation import regions

__all__ = ["thumbnails", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"
N_REGIONS = 5  # that are described, the largest first
TINY = np.finfo(float).tiny
SIDE = 192  # pixels of a picture's longer side
SMALL = 96  # pixels of a thumbnail's longer side
N_ALIKE = 3  # thumbnails of training images beside an image


def write_report(
    path,
    files,
    scores,
    p_values,
    labels,
    *,
    maps=None,
    masks=None,
    limits=(0, 1),
    reconstruct=None,
    known=(),
    card=(),
    n_shown=200,
):
    """Write a self-contained HTML page with the most suspicious images first.

    Parameters
    ----------
    path : path
        File to write.
    files : ImageFiles
        Images that were judged.
    scores, p_values : (n,) float array-like
        Anomaly scores, higher is worse, and p-values.
    labels : (n,) sequence of str
        "anomalous" or "normal".
    maps : (n, H, W) array-like, default=None
        Anomaly maps; they may lie on disk. None for a method without maps.
    masks : (n, H, W) bool array-like, default=None
        Masks of the flagged pixels; needed with `maps`.
    limits : (low, high), default=(0, 1)
        Values of maps that have no and full colour.
    reconstruct : callable (ImageFiles) -> array, default=None
        Function that reconstructs images; None for a method that does not.
    known : sequence of str
        Result of `thumbnails` for the training images. Those that are most like an image are shown beside it.
    card : sequence of (name, value)
        Facts about the detector, shown below the images.
    n_shown : int, default=200
        Number of images on the page. Pages of thousands of pictures cannot be opened.
    """
    above = common_folder(files.paths)
    order = np.lexsort((-np.asarray(scores), p_values))[:n_shown]
    shown, rows = files.take(order), [{}] * len(order)
    alike = most_alike(known, thumbnails(shown)) if len(known) > 1 else [()] * len(order)
    reconstructed = [None] * len(order) if reconstruct is None else reconstruct(shown)
    in_files = np.argsort(order)
    # In the order of the files: a compressed volume is read once for all of its slices.
    for j, original in zip(in_files, files.originals(order[in_files])):
        k = order[j]
        rows[j] = {
            "name": name_of(files, k, above),
            "patient": "" if files.groups is None else files.groups[k],
            "score": float(scores[k]),
            "p": float(p_values[k]),
            "label": labels[k],
            "alike": [known[of] for of in alike[j]],
        }
        found = {} if maps is None else {"values": maps[k], "mask": masks[k], "limits": limits}
        rows[j] |= _pictures(original, reconstructed[j], **found)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    page = environment.get_template("report.html").render(
        title=f"Anomalies in {above}",
        n=len(files),
        n_shown=len(order),
        n_anomalous=sum(label == "anomalous" for label in labels),
        rows=rows,
        card=[(name, str(value)) for name, value in card],
    )
    Path(path).write_text(printable(page), encoding="utf-8")


def common_folder(paths):
    """The folder that holds all files, in it or below."""
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def name_of(files, k, above):
    """Name of an image: its file below a folder, and its number if the file holds several."""
    path = files.paths[k]
    name = path.absolute().relative_to(above).as_posix()
    return printable(name if files.paths.count(path) == 1 else f"{name}, {files.frames[k]}")


def printable(text):
    """Text with a question mark for each byte of a file's name that is no UTF-8."""
    return text.encode(errors="replace").decode()


def thumbnails(files):
    """Small pictures of images: a list of texts, each a PNG in base64."""
    return [encoded(small(picture(image), SMALL)) for image in files.originals(range(len(files)))]


def most_alike(known, new):
    """Numbers (len(new), N_ALIKE) of the thumbnails `known` that are most like each one of `new`.

    They are compared by derivative energies, whatever the detector is: its features would have to be kept,
    too, and not every detector has some.
    """
    features = make_pipeline(ImageFeatures(backbone="filters"), StandardScaler())
    rows = features.fit_transform(_pixels(known))
    nearest = NearestNeighbors(n_neighbors=min(N_ALIKE, len(known))).fit(rows)
    return nearest.kneighbors(features.transform(_pixels(new)), return_distance=False)


def _pixels(texts):
    """Images (n, SMALL, SMALL) of thumbnails."""
    images = (Image.open(BytesIO(base64.b64decode(text))) for text in texts)
    return np.stack([np.asarray(image.convert("L").resize((SMALL, SMALL))) for image in images])


def picture(image):
    """Picture (h, w, 3) of an image."""
    return overlaid(image, np.zeros(image.shape[:2]))


def _pictures(image, reconstruction, values=None, mask=None, limits=None):
    """Pictures and regions of an image. Outlines are drawn in the size shown, or they would fade."""
    shown, found, n_more = small(picture(image), SIDE), [], 0
    made, size = {"image": shown}, shown.shape[:2]
    if values is not None:
        values, (low, high) = np.asarray(values, dtype=float), limits
        share = enlarged(((values - low) / max(high - low, TINY)).clip(0, 1), size)
        made["map"] = overlaid(shown, share)
        made["outline"] = overlaid(shown, outline(enlarged(mask, size) > 0.5))
        found, n_more = _regions(values, np.asarray(mask))
    if reconstruction is not None:
        made["reconstruction"] = small(picture(reconstruction), SIDE)
    made = [{"name": name, "data": encoded(of)} for name, of in made.items()]
    return {"pictures": made, "regions": found, "n_more": n_more}


def _regions(values, inside):
    """The largest regions of a mask, each with its share of the map's sum, and the number of others."""
    table = regions(inside, values)
    largest = np.argsort(-table["area"], kind="stable")
    total = max(values.clip(min=0).sum(), TINY)
    found = [
        {
            "area": table["area"][r],
            "row": table["centroid_row"][r],
            "column": table["centroid_column"][r],
            "share": max(table["area"][r] * table["mean"][r], 0) / total,
        }
        for r in largest[:N_REGIONS]
    ]
    return found, max(0, len(largest) - N_REGIONS)


def enlarged(values, size):
    """Map of another size, between 0 and 1."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)).clip(0, 1)


def outline(mask):
    """Pixels of a mask that have a neighbour outside of it."""
    padded = np.pad(mask, 1)
    around = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return (mask & ~around).astype(float)


def small(picture, side):
    """Picture (h, w, 3) of at most `side` pixels each way."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    return np.asarray(image)


def encoded(picture):
    """PNG of a picture (h, w, 3), as text."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
