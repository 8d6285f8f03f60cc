"""Small image sets that come with the package."""

from importlib import resources
from typing import Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

Subset = Literal["all", "train", "val", "test"]
Arrays = tuple[NDArray[np.uint8], NDArray[np.intp]]


@overload
def load_chest_xray(*, subset: Subset = "all", return_X_y: Literal[False] = False) -> Bunch: ...
@overload
def load_chest_xray(*, subset: Subset = "all", return_X_y: Literal[True]) -> Arrays: ...
def load_chest_xray(*, subset: Subset = "all", return_X_y: bool = False) -> Bunch | Arrays:
    """Chest X-rays of children, normal and with pneumonia: 935 grey images of 64 x 64 (CC BY 4.0).

    "train" holds 433 normal images; "val", to choose parameters on, has 77 normal, 45 bacterial and 45 viral
    ones; "test", to report on, has 155, 90 and 90. No patient is in two of the three subsets.

    Parameters
    ----------
    subset : {"all", "train", "val", "test"}, default="all"
        Part of the set to load.
    return_X_y : bool, default=False
        Whether to return the pair ``(images, target)`` only.

    Returns
    -------
    data : sklearn.utils.Bunch
        ``images`` (n, 64, 64) uint8; ``target`` (n,) int, 1 normal and -1 anomalous; ``split`` (n,) str, the
        subset of each image; ``groups`` (n,) str, the patient; ``class_names``, the names of finer
        classes; ``class_index`` (n,) int, the index of each image's class in ``class_names``; ``DESCR``, a
        description.

    Examples
    --------
    >>> from skanomaly.datasets import load_chest_xray
    >>> X, y = load_chest_xray(subset="train", return_X_y=True)
    >>> X.shape, set(y.tolist())
    ((433, 64, 64), {1})
    """
    return _load("chest_xray", subset, return_X_y)


@overload
def load_oct(*, subset: Subset = "all", return_X_y: Literal[False] = False) -> Bunch: ...
@overload
def load_oct(*, subset: Subset = "all", return_X_y: Literal[True]) -> Arrays: ...
def load_oct(*, subset: Subset = "all", return_X_y: bool = False) -> Bunch | Arrays:
    """Retinal OCT B-scans, normal and diseased: 17 grey images of 128 x 128 (CC BY 4.0).

    The set is a toy with 3 normal images to train on: it is for first steps and figures, not for
    measurements.

    Parameters
    ----------
    subset : {"all", "train", "val", "test"}, default="all"
        Part of the set to load.
    return_X_y : bool, default=False
        Whether to return the pair ``(images, target)`` only.

    Returns
    -------
    data : sklearn.utils.Bunch
        Fields as in `load_chest_xray`, with ``images`` (n, 128, 128).

    Examples
    --------
    >>> from skanomaly.datasets import load_oct
    >>> load_oct().images.shape
    (17, 128, 128)
    """
    return _load("oct", subset, return_X_y)


@overload
def load_mnist_digits(*, subset: Subset = "all", return_X_y: Literal[False] = False) -> Bunch: ...
@overload
def load_mnist_digits(*, subset: Subset = "all", return_X_y: Literal[True]) -> Arrays: ...
def load_mnist_digits(*, subset: Subset = "all", return_X_y: bool = False) -> Bunch | Arrays:
    """Handwritten digits of the MNIST database: 6100 grey images of 28 x 28 (CC BY-SA 3.0).

    `make_digit_anatomy` makes its grids of these digits. Digit 0 is the anomalous one; "train" holds none.

    Parameters
    ----------
    subset : {"all", "train", "val", "test"}, default="all"
        Part of the set to load.
    return_X_y : bool, default=False
        Whether to return the pair ``(images, target)`` only.

    Returns
    -------
    data : sklearn.utils.Bunch
        Fields as in `load_chest_xray`, with ``images`` (n, 28, 28); ``class_index`` is the digit, and
        ``groups`` are names of files.

    Examples
    --------
    >>> from skanomaly.datasets import load_mnist_digits
    >>> load_mnist_digits(subset="train").images.shape
    (3600, 28, 28)
    """
    return _load("mnist_digits", subset, return_X_y)


def _load(name, subset, return_X_y):
    if subset not in get_args(Subset):
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
