"""Outlier detectors of rows: equations by brute force, labels, and Pipelines behind ImageFeatures."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly.density import CBLOF, PrincipalComponentClassifier, RobustKernelDensity


@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@parametrize_with_checks([RobustKernelDensity(), CBLOF(n_clusters=3), PrincipalComponentClassifier()])
def test_scikit_learn(estimator, check):
    check(estimator)
