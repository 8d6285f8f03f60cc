"""Outlier detectors of rows by name, each behind the rows of a backbone that they share."""

from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skanomaly import _comparison
from skanomaly.density import CBLOF, PrincipalComponentClassifier, RobustKernelDensity
from skanomaly.features import ImageFeatures

#: Functions of a seed.
HEADS = {
    "OC-SVM": lambda seed: make_pipeline(StandardScaler(), OneClassSVM()),
    "forest": lambda seed: IsolationForest(random_state=seed),
    "LOF": lambda seed: LocalOutlierFactor(novelty=True),
    "KDE": lambda seed: make_pipeline(StandardScaler(), PCA(16, random_state=seed), KernelDensity()),
    "robust KDE": lambda seed: make_pipeline(StandardScaler(), RobustKernelDensity()),
    "CBLOF": lambda seed: make_pipeline(StandardScaler(), CBLOF(random_state=seed)),
    "PCC": lambda seed: PrincipalComponentClassifier(),
}


class RowHead(BaseEstimator):
    """Head of `HEADS` on the rows of `ImageFeatures`.

    Parameters
    ----------
    head : str
        Key of `HEADS`.
    backbone, layers, input_size, random_state
        Those of `ImageFeatures`.
    """

    def __init__(self, head, *, backbone="imagenet", layers=None, input_size=None, random_state=None):
        self.head = head
        self.backbone = backbone
        self.layers = layers
        self.input_size = input_size
        self.random_state = random_state

    def features(self):
        given = {name: value for name, value in self.get_params(deep=False).items() if name != "head"}
        return ImageFeatures(**given)

    def made(self):
        return HEADS[self.head](self.random_state)


_comparison.OTHERS["RowHead"] = RowHead
