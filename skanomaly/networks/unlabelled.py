"""How much unlabelled feature vectors differ from normal ones."""

import math

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import mannwhitneyu

from .density import ShrunkGaussian, deviations

N_FOLDS = 5
#: Mean number of normal vectors in a cluster.
PER_CLUSTER = 3
#: Most vectors of a kind that are compared: clustering takes time and memory with their square.
MOST = 2000


def excess(normal, unlabelled, shrinkage):
    """Part of unlabelled vectors that is less normal than held-out normal vectors, from 0 to 1.

    It is 2 (A - s) - 1. A is the AUROC with which the distance from normal vectors tells unlabelled ones from
    other normal ones, and s the standard error of A if they do not differ. Where the result would be
    negative, it is 0.

    Distances are those from the Gaussian of four fifths of the normal vectors. Vectors that are alike, such
    as those of two images of one patient, are held out together. Apart, they would be near to each other, and
    new patients would look anomalous.

    Parameters
    ----------
    normal, unlabelled : tensor (n, d)
    shrinkage : {"oas", "ledoit_wolf"} or float
        Argument of `ShrunkGaussian.fit_rows`.
    """
    normal, unlabelled = _thinned(normal), _thinned(unlabelled)
    n, m = len(normal), len(unlabelled)
    if n < N_FOLDS * PER_CLUSTER:
        return 0.0
    # Neighbouring clusters have neighbouring numbers: folds of every fifth one are alike.
    fold = _clusters(normal) % N_FOLDS
    if np.bincount(fold).max() > n / 2:  # most of them are equal
        return 0.0
    area = 0.0
    for k in np.unique(fold):
        others, held_out = normal[fold != k], normal[fold == k]
        gaussian = ShrunkGaussian(normal.shape[1], len(others)).to(normal.device)
        gaussian.fit_rows(others, shrinkage)
        distances = (gaussian(rows).cpu().numpy() for rows in (unlabelled, held_out))
        area += mannwhitneyu(*distances, method="asymptotic").statistic / (n * m)
    error = math.sqrt((n + m + 1) / (12 * n * m))
    return max(0.0, 2 * (float(area) - error) - 1)


def _thinned(rows):
    """At most `MOST` rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int)]


def _clusters(rows):
    """Numbers of clusters (n,) of vectors that are alike."""
    rows = rows.double()
    mean = rows.mean(0)
    standardised = (rows - mean) / deviations(rows.var(0, correction=0), mean)
    return fcluster(linkage(standardised.cpu().numpy(), "ward"), len(rows) // PER_CLUSTER, "maxclust")
