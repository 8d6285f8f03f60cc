"""Benchmark images: npz files in the folder SKANOMALY_DATA, by default ../shared/data."""

import os
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

FOLDER = Path(os.environ.get("SKANOMALY_DATA", Path(__file__).parents[2] / "shared" / "data"))


def load(name, size=64):
    """Images and labels (1 normal, -1 anomalous) of one set, by split.

    Returns
    -------
    dict of "train", "val" and "test" to Bunch with images, target, groups, and masks or None
    """
    with np.load(FOLDER / f"{name}_{size}.npz") as arrays:
        arrays = dict(arrays)
    return {
        split: Bunch(
            images=arrays["images"][arrays["split"] == split],
            target=np.where(arrays["labels"] == 1, -1, 1)[arrays["split"] == split],
            groups=arrays["group_ids"][arrays["split"] == split],
            masks=arrays["mask"][arrays["split"] == split].astype(bool) if "mask" in arrays else None,
        )
        for split in ("train", "val", "test")
    }
