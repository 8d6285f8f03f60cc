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
    threshold=np.inf,
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
    threshold : float, default=inf
        Threshold of maps, above which pixels are outlined.
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
    shown = files.take(order)
    alike = most_alike(known, thumbnails(shown)) if len(known) > 1 else [()] * len(order)
    reconstructed = [None] * len(order) if reconstruct is None else reconstruct(shown)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    page = environment.get_template("report.html").stream(
        title=f"Anomalies in {above}",
        n=len(files),
        n_shown=len(order),
        n_anomalous=sum(label == "anomalous" for label in labels),
        rows=(
            {
                "name": name_of(files, k, above),
                "patient": "" if files.groups is None else files.groups[k],
                "score": float(scores[k]),
                "p": float(p_values[k]),
                "label": labels[k],
                "alike": [known[of] for of in alike[j]],
                **_pictures(
                    files.original(k), None if maps is None else maps[k], threshold, limits, reconstructed[j]
                ),
            }
            for j, k in enumerate(order)
        ),
        card=[(name, str(value)) for name, value in card],
    )
    # A stream: the pictures of all rows at once might not fit into memory.
    page.dump(str(path), encoding="utf-8")


def common_folder(paths):
    """The folder that holds all files, in it or below."""
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def name_of(files, k, above):
    """Name of an image: its file below a folder, and its number if the file holds several."""
    path = files.paths[k]
    name = path.absolute().relative_to(above).as_posix()
    return name if files.paths.count(path) == 1 else f"{name}, {files.frames[k]}"


def thumbnails(files):
    """Small pictures of images: a list of texts, each a PNG in base64."""
    return [encoded(picture(files.original(k)), SMALL) for k in range(len(files))]


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


def _pictures(image, values, threshold, limits, reconstruction):
    """Pictures and regions of an image."""
    size = image.shape[:2]
    shares, found, n_more = {"image": np.zeros(size)}, [], 0
    if values is not None:
        values, (low, high) = np.asarray(values, dtype=float), limits
        inside = values > threshold
        shares["map"] = enlarged(((values - low) / max(high - low, TINY)).clip(0, 1), size)
        shares["outline"] = outline(enlarged(inside, size) > 0.5)
        found, n_more = _regions(values, inside)
    made = {name: overlaid(image, share) for name, share in shares.items()}
    if reconstruction is not None:
        made["reconstruction"] = picture(reconstruction)
    made = [{"name": name, "data": encoded(of, SIDE)} for name, of in made.items()]
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


def encoded(picture, side):
    """PNG of a picture (h, w, 3), of at most `side` pixels each way, as text."""
    image, file = Image.fromarray(picture), BytesIO()
    image.thumbnail((side, side))
    image.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
