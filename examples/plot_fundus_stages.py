"""
Detect, then stage: photographs of the retina
=============================================

A detector that was fitted to healthy eyes finds ill ones. Then its residuals of ill eyes are clustered, and
the clusters say how advanced the illness is. The photographs are synthetic, so that their grades are known.
No fit sees the grades.
"""

import numpy as np

from skanomaly import AutoEncoder
from skanomaly.datasets import make_fundus
from skanomaly.metrics import auroc
from skanomaly.plotting import AnomalyMapDisplay, StageDisplay
from skanomaly.staging import AnomalyStager

healthy = make_fundus(150, size=64, random_state=0)
clinic = make_fundus(120, grades=(0, 1, 4), size=64, random_state=1)

# %%
# Healthy and ill images are passed together; y is 1 for healthy and -1 for ill images. The detector is
# fitted to the healthy ones, and two stages are found among the ill ones. Residuals are averaged over
# squares of 8 x 8 pixels, so that it matters less where exactly a lesion is.

X = np.concatenate([healthy.images, clinic.images[clinic.target == -1]])
y = np.repeat([1, -1], [len(healthy.images), np.sum(clinic.target == -1)])
detector = AutoEncoder(hidden_size=256, loss="l1", max_epochs=40, random_state=0)
stager = AnomalyStager(detector, n_stages=2, pooling=8, random_state=0).fit(X, y)

# %%
# New images show other eyes, of grades 0, 1 and 4. The bright optic disc and the rim of the photograph are
# hard to reconstruct in every eye.

new = make_fundus(90, grades=(0, 1, 4), size=64, random_state=2)
names = [f"grade {grade}" for grade in new.grade[:3]]
display = AnomalyMapDisplay.from_estimator(stager.detector_, new.images[:3], titles=names, median_size=3)

# %%
# Eyes of grade 4 have large haemorrhages and are found. Eyes of grade 1 have some red dots of a pixel or
# two, and the detector takes most of these eyes for healthy.

score = -stager.detector_.score_samples(new.images)
for grade in (1, 4):
    rows = np.isin(new.grade, (0, grade))
    print(f"grade {grade} against 0: AUROC {auroc(new.target[rows], score[rows]):.2f}")

# %%
# Images that the detector calls normal have stage 0:

stages = stager.predict(new.images)
for grade in (0, 1, 4):
    print(f"grade {grade}: {np.bincount(stages[new.grade == grade], minlength=3)} images of stages 0, 1, 2")

# %%
# Stages are whole numbers; ``severity`` is continuous:

ill = new.grade > 0
ordered = auroc(np.where(new.grade[ill] == 4, -1, 1), stager.severity(new.images[ill]))
print(f"severity, grade 4 against grade 1: AUROC {ordered:.2f}")

# sphinx_gallery_thumbnail_number = 2

display = StageDisplay.from_estimator(stager, new.images)
