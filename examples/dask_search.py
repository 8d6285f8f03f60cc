"""
Search on a dask cluster
========================

The fits of a grid search are spread over the workers of a dask cluster::

    python examples/dask_search.py [--workers 2] [--scheduler tcp://host:8786] [--epochs 20]

Without ``--scheduler`` the cluster is a LocalCluster: processes of this machine with one thread each, because
torch has one random generator per process. Progress bars are shown (with scikit-learn 1.9 or later). With
``--scheduler`` the workers are those of the scheduler at that address, each started by ``dask worker
--nthreads 1 tcp://host:8786`` in an environment in which skanomaly is installed.
"""

import argparse
import contextlib

import joblib
import numpy as np
from dask.distributed import Client, LocalCluster
from sklearn.model_selection import GridSearchCV

from skanomaly import AutoEncoder
from skanomaly.datasets import load_chest_xray
from skanomaly.model_selection import AnomalyScorer, NormalOnlyKFold

try:
    from sklearn.callback import ProgressBar
except ImportError:  # before scikit-learn 1.9
    ProgressBar = None


def make_search(n_epochs):
    detector = AutoEncoder(hidden_size=128, max_epochs=n_epochs, device="cpu", random_state=0)
    return GridSearchCV(
        detector,
        {"latent_size": [2, 8, 16], "loss": ["l1", "l2"]},
        cv=NormalOnlyKFold(3, random_state=0),
        scoring=AnomalyScorer("auroc"),
    )


def load_images():
    parts = [load_chest_xray(subset=subset) for subset in ("train", "val")]
    images = np.concatenate([part.images for part in parts])[:, ::4, ::4]
    return images, np.concatenate([part.target for part in parts])


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of the local cluster")
    parser.add_argument("--scheduler", help="address of a running scheduler")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args(arguments)
    X, y = load_images()
    search = make_search(arguments.epochs)
    if ProgressBar and not arguments.scheduler:  # progress reaches us from workers on this machine only
        search.set_callbacks(ProgressBar(max_propagation_depth=None))
    local = {"n_workers": arguments.workers, "threads_per_worker": 1, "dashboard_address": None}
    with contextlib.ExitStack() as stack:
        cluster = arguments.scheduler or stack.enter_context(LocalCluster(**local))
        stack.enter_context(Client(cluster))
        with joblib.parallel_config(backend="dask"):
            search.fit(X, y)
    for score, parameters in sorted(
        zip(search.cv_results_["mean_test_score"], search.cv_results_["params"]), key=lambda pair: -pair[0]
    ):
        print(f"AUROC {score:.3f}  {parameters}")
    return search


if __name__ == "__main__":  # worker processes import this file
    main()
