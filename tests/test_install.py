"""What an installation brings."""

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile

import torch
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]

FIRST_STEPS = """
import os, sys
import skanomaly
assert skanomaly.__file__.startswith(os.getcwd()), skanomaly.__file__
assert "numpy" not in sys.modules
X, y = skanomaly.datasets.load_chest_xray(return_X_y=True)
assert skanomaly.metrics.auroc(y, X.mean((1, 2))) > 0
assert {"AEU", "datasets", "__version__"} <= set(dir(skanomaly)) == set(skanomaly.__all__)
assert "torch" not in sys.modules

for name in [name for name in sys.modules if name.split(".")[0] == "skanomaly"]:
    del sys.modules[name]
os.environ["EAGER_IMPORT"] = "1"
import skanomaly
assert "torch" in sys.modules
"""


def test_a_cpu_build_brings_nothing_of_cuda():
    names = {distribution.metadata["Name"].lower() for distribution in distributions()}
    assert "torchvision" not in names
    if torch.version.cuda is None:
        assert not [name for name in names if name.startswith(("nvidia", "triton"))]


def test_a_wheel_imports_at_first_use_what_it_lists_in_a_stub(tmp_path):
    for name in "skanomaly", "pyproject.toml", "README.md", "LICENSE":
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dist/*.whl")
    installed = tmp_path / "installed"
    with ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert (installed / "skanomaly" / "py.typed").exists()
    ran = subprocess.run([sys.executable, "-c", FIRST_STEPS], cwd=installed, stderr=subprocess.PIPE)
    assert ran.returncode == 0, ran.stderr.decode()


def test_the_oldest_versions_tested_are_the_floors_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = map(Requirement, project["dependencies"] + extras["plot"] + extras["dask"] + extras["test"])
    tested = [line for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if line[0] != "#"]
    floors, pins = (
        {each.name: Version(next(iter(each.specifier)).version) for each in requirements}
        for requirements in (promised, map(Requirement, tested))
    )
    assert floors | {"torch": pins["torch"]} == pins
