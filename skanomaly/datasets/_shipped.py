"""Small image sets that come with the package."""

from importlib import resources

import numpy as np
from sklearn.utils import Bunch

SUBSETS = "train", "val", "test"


def load_chest_xray(*, subset="all", return_X_y=False):
    """Chest X-rays of children, normal and with pneumonia: 935 grey images of 64 x 64 (CC BY 4.0).

    433 normal images to train on; 77 normal, 45 bacterial and 45 viral to choose on ("val"); 155,
    90 and 90 to report on ("test"). No patient is in two of them.

    Parameters
    ----------
    subset : {"all", "train", "val", "test"}, default="all"
        Which images.
    return_X_y : bool, default=False
        Return ``(images, target)`` only.

    Returns
    -------
    data : sklearn.utils.Bunch
        ``images`` (n, 64, 64) uint8; ``target`` (n,) int, 1 normal and -1 anomalous; ``split``
        (n,) str; ``groups`` (n,) str, the patient; ``class_names`` and ``class_index``, the finer
        classes; ``DESCR``.

    Examples
    --------
    >>> from skanomaly.datasets import load_chest_xray
    >>> X, y = load_chest_xray(subset="train", return_X_y=True)
    >>> X.shape, set(y.tolist())
    ((433, 64, 64), {1})
    """
    return _load("chest_xray", subset, return_X_y)


def load_oct(*, subset="all", return_X_y=False):
    """Retinal OCT B-scans, normal and diseased: 17 grey images of 128 x 128 (CC BY 4.0).

    A toy: 3 normal images to train on. For first steps and figures; it measures nothing.

    Parameters
    ----------
    subset : {"all", "train", "val", "test"}, default="all"
        Which images.
    return_X_y : bool, default=False
        Return ``(images, target)`` only.

    Returns
    -------
    data : sklearn.utils.Bunch
        As of `load_chest_xray`, with ``images`` (n, 128, 128).

    Examples
    --------
    >>> from skanomaly.datasets import load_oct
    >>> load_oct().images.shape
    (17, 128, 128)
    """
    return _load("oct", subset, return_X_y)


def load_mnist_digits(*, subset="all", return_X_y=False):
    """Handwritten digits of the MNIST database: 6100 grey images of 28 x 28 (CC BY-SA 3.0).

    What `make_digit_anatomy` is made of. Digit 0 is the anomalous one, and not among those to train on.

    Parameters
    ----------
    subset : {"all", "train", "val", "test"}, default="all"
        Which images.
    return_X_y : bool, default=False
        Return ``(images, target)`` only.

    Returns
    -------
    data : sklearn.utils.Bunch
        As of `load_chest_xray`, with ``images`` (n, 28, 28); ``class_index`` is the digit.

    Examples
    --------
    >>> from skanomaly.datasets import load_mnist_digits
    >>> load_mnist_digits(subset="train").images.shape
    (3600, 28, 28)
    """
    return _load("mnist_digits", subset, return_X_y)


def _load(name, subset, return_X_y):
    if subset not in ("all", *SUBSETS):
        raise ValueError(f"subset must be 'all', 'train', 'val' or 'test', got {subset!r}")
    folder = resources.files(__package__)
    with (folder / "data" / f"{name}.npz").open("rb") as file, np.load(file) as arrays:
        arrays = dict(arrays)
    rows = slice(None) if subset == "all" else arrays["split"] == subset
    data = Bunch(
        images=arrays["images"][rows],
        target=np.where(arrays["anomalous"], -1, 1)[rows],
        split=arrays["split"][rows],
        groups=arrays["groups"][rows],
        class_names=arrays["class_names"],
        class_index=arrays["class_index"][rows],
        DESCR=(folder / "descr" / f"{name}.rst").read_text(encoding="utf-8"),
    )
    return (data.images, data.target) if return_X_y else data
