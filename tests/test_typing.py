"""What py.typed promises: right use passes mypy, wrong use does not."""

import re
import subprocess
import sys
from pathlib import Path

import typing_user

ROOT = Path(__file__).parents[1]

#: Lines of wrong use, and the code of mypy's error.
WRONG = [
    ("FAnoGAN(latentsize=3)", "call-arg"),
    ("skanomaly.fanogan", "attr-defined"),
    ("metrics.auroc([1, -1])", "call-arg"),
    ("metrics.auroc([1, -1], [0.1, 0.2]).shape", "attr-defined"),
    ("metrics.dice(masks, masks, average='mean')", "arg-type"),
    ("metrics.classification_metrics([1, -1], [0.1, 0.2], threshold='best')", "arg-type"),
    ("metrics.bootstrap_interval('auroc', [1, -1], [0.1, 0.2])", "arg-type"),
    ("datasets.load_chest_xray(subset='training')", "call-overload"),
    ("datasets.load_oct(return_X_y=True).images", "attr-defined"),
    ("datasets.make_oct(kinds=['normal', 'cysts'])", "list-item"),
    ("model_selection.NormalOnlyKFold(shuffle=0.5)", "arg-type"),
    ("next(model_selection.NormalOnlyKFold().split(None, [1, -1])).train", "attr-defined"),
    ("FAnoGAN().fit()", "call-arg"),
    ("FAnoGAN().fit(masks).score_samples('path').foo", "attr-defined"),
    ("FAnoGAN().fit(masks).anomaly_map(masks).score", "attr-defined"),
    ("FAnoGAN().fit(masks).segment(masks, median=3)", "call-arg"),
    ("FAnoGAN().calibrate(masks, false_alarm_rate='low')", "arg-type"),
    ("[0 for scores, maps in FAnoGAN().iter_batches(masks)]", "misc"),
    ("FAnoGAN().offset_.shape", "attr-defined"),
    ("io.ImageFiles(['a.png'], plane='z')", "arg-type"),
    ("io.write_masks('out', masks, ['a.png'])", "arg-type"),
    ("io.read_folder('scans').groups.shape", "union-attr"),
]
IMPORTS = """import numpy as np
import skanomaly
from skanomaly import FAnoGAN, datasets, io, metrics, model_selection
masks = np.zeros((2, 4, 4), dtype=bool)
"""


def test_right_use_runs(tmp_path):
    typing_user.use(tmp_path)


def test_mypy_tells_right_use_from_wrong(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(IMPORTS + "".join(f"{line}\n" for line, _ in WRONG))
    command = [sys.executable, "-m", "mypy", "--no-error-summary", typing_user.__file__, wrong]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    # File names only: a cached error has the folder of the run before.
    found = re.findall(r"^(?:.*/)?(\w+\.py):(\d+): error: .*\[([a-z-]+)\]$", output, re.MULTILINE)
    first = IMPORTS.count("\n") + 1
    expected = [(wrong.name, str(first + i), code) for i, (_, code) in enumerate(WRONG)]
    assert found == expected, output
