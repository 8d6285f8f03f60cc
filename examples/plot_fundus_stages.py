"""
Detect, then stage: photographs of the retina
=============================================

A detector that knows healthy eyes finds the others; what it could not reconstruct, clustered, says how
advanced they are. The photographs are synthetic, so that the grades are known; nobody is shown them here.
"""

import numpy as np

from skanomaly import SSLAnoVAE
from skanomaly.datasets import make_fundus
from skanomaly.metrics import auroc
from skanomaly.plotting import AnomalyMapDisplay, StageDisplay
from skanomaly.staging import AnomalyStager

healthy = make_fundus(150, size=64, random_state=0)
clinic = make_fundus(120, grades=(0, 1, 4), size=64, random_state=1)

# %%
# The clinician's form: healthy and ill images together, told apart by y. The detector is fitted to the
# healthy ones, two stages are found among the ill.

X = np.concatenate([healthy.images, clinic.images[clinic.target == -1]])
y = np.repeat([1, -1], [len(healthy.images), np.sum(clinic.target == -1)])
detector = SSLAnoVAE(max_epochs=40, random_state=0)
stager = AnomalyStager(detector, n_stages=2, random_state=0).fit(X, y)

# %%
# What it sees. New images, of other eyes:

new = make_fundus(90, grades=(0, 1, 4), size=64, random_state=2)
display = AnomalyMapDisplay.from_estimator(stager.detector_, new.images[:3])

# %%
# Stage 0 is what the detector calls normal. Which grades are in each stage:

detected = auroc(new.target, -stager.detector_.score_samples(new.images))
print(f"detection: AUROC {detected:.2f}")
stages = stager.predict(new.images)
for grade in (0, 1, 4):
    print(f"grade {grade}: {np.bincount(stages[new.grade == grade], minlength=3)} images of stages 0, 1, 2")

# %%
# Stages are steps; `severity` is continuous:

ill = new.grade > 0
ordered = auroc(np.where(new.grade[ill] == 4, -1, 1), stager.severity(new.images[ill]))
print(f"severity, grade 4 against grade 1: AUROC {ordered:.2f}")

# sphinx_gallery_thumbnail_number = 2

display = StageDisplay.from_estimator(stager, new.images)
