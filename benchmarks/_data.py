"""Benchmark images: npz files in the folder SKANOMALY_DATA, by default ../shared/data."""

import os
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

FOLDER = Path(os.environ.get("SKANOMALY_DATA", Path(__file__).parents[2] / "shared" / "data"))


def load(name, folder=FOLDER):
    """Images and labels (1 normal, -1 anomalous) of one file, by split.

    The file holds `images`, `labels` (0 normal, 1 anomalous) and `split` ("train", "val", "test"), and may
    hold `group_ids` (patients), `mask`, and `class_names` with the `class_index` of each image.

    Returns
    -------
    dict of "train", "val" and "test" to Bunch with images, target, and groups, masks and kinds or None
    """
    with np.load(Path(folder) / f"{name}.npz") as arrays:
        arrays = dict(arrays)

    def part(split):
        rows = arrays["split"] == split
        return Bunch(
            images=arrays["images"][rows],
            target=np.where(arrays["labels"] == 1, -1, 1)[rows],
            groups=arrays["group_ids"][rows] if "group_ids" in arrays else None,
            masks=arrays["mask"][rows].astype(bool) if "mask" in arrays else None,
            kinds=arrays["class_names"][arrays["class_index"][rows]] if "class_names" in arrays else None,
        )

    return {split: part(split) for split in ("train", "val", "test")}
