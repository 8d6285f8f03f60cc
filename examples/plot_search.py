"""
Search parameters without fooling oneself
=========================================

Folds train on normal images only, the scorer knows which label is anomalous, parameters are chosen on
training and validation images, and the result is measured on test images.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import skanomaly
from skanomaly import AutoEncoder
from skanomaly.datasets import load_chest_xray
from skanomaly.metrics import auroc, bootstrap_interval
from skanomaly.model_selection import AnomalyScorer, NormalOnlyKFold


def quarter(X):
    """Images of 16 x 16 pixels, to save time."""
    return X.reshape(-1, 16, 4, 16, 4).mean((2, 4)).astype("uint8")


train, val, test = (load_chest_xray(subset=subset) for subset in ("train", "val", "test"))
X, y = np.concatenate([train.images, val.images]), np.concatenate([train.target, val.target])
pipeline = Pipeline(
    [
        ("shrink", FunctionTransformer(quarter)),
        ("detector", AutoEncoder(hidden_size=128, max_epochs=10, random_state=0)),
    ]
)
search = GridSearchCV(
    pipeline,
    {"detector__latent_size": [2, 8, 32], "detector__loss": ["l1", "l2"]},
    cv=NormalOnlyKFold(3, random_state=0),
    scoring=AnomalyScorer("auroc"),
).fit(X, y)

# %%
# The figure shows means and standard deviations over the folds:

figure, ax = plt.subplots(layout="constrained")
results = search.cv_results_
for loss in ("l1", "l2"):
    rows = results["param_detector__loss"] == loss
    sizes = results["param_detector__latent_size"][rows].astype(str)
    mean, spread = results["mean_test_score"][rows], results["std_test_score"][rows]
    ax.errorbar(sizes, mean, spread, marker="o", capsize=3, label=loss)
ax.set(xlabel="latent_size", ylabel="AUROC, mean and s.d. of 3 folds")
_ = ax.legend(title="loss")

# %%
# The best candidate was fitted again to all normal images of the search. It is now measured on images that
# took no part in the choice:

score = -search.score_samples(test.images)
low, high = bootstrap_interval(auroc, test.target, score, groups=test.groups, random_state=0)
print(search.best_params_)
print(f"AUROC on test {auroc(test.target, score):.3f}, 95 % interval {low:.3f} to {high:.3f}")

# %%
# ``skanomaly.anomaly_map`` calls the detector inside the Pipeline inside the search. Maps have the size of
# the images that this detector saw:

print(skanomaly.anomaly_map(search, test.images[:5]).shape)
