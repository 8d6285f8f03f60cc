"""Numbers of the authors' code, and what compares them with ours.

The files lie in SKANOMALY_PARITY, by default the folder "parity" beside that of the benchmark data; a README
there says how they were made. `w/<module>/<name>` are weights, `in/<name>` inputs and draws, `out/<name>`
what that code gives. A module of tests is named test_parity_<method>.py. Its docstring goes on the page of
results: it names the authors' mistakes that ours leaves out.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SKANOMALY_DATA", ROOT.parent / "shared" / "data"))
FOLDER = Path(os.environ.get("SKANOMALY_PARITY", DATA.parent / "parity"))
#: What is compared and how far it is apart, a file for each method; made by benchmarks/parity.py.
RESULTS = ROOT / "benchmarks" / "results" / "parity"
REMEDY = "run `python benchmarks/parity.py`"


class Reference(dict):
    """Arrays of one file by key, in float64, and the differences between ours and these.

    Parameters
    ----------
    name : str
        Name of the file, without its suffix.

    Attributes
    ----------
    config : dict
        Sizes and constants with which the numbers were made.
    differences : dict of str to float
        Largest difference of each comparison, as a share of the largest of the authors' numbers.
    """

    def __init__(self, name):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
            super().__init__(arrays)
        self.name, self.config, self.differences = name, json.loads(str(self["config"])), {}

    def __repr__(self):
        return f"Reference({self.name!r})"  # not all numbers, where a test fails

    def tensor(self, key):
        """An array as a tensor, in float64 where it holds fractions."""
        value = torch.from_numpy(self[key])
        return value.double() if value.is_floating_point() else value

    def input(self, name):
        return self.tensor(f"in/{name}")

    def agrees(self, name, ours, *, within=1e-9):
        """Compare a tensor, array or number with `out/<name>`; a difference above `within` is an error.

        The difference is the largest one, divided by the largest absolute value of the authors' numbers.
        """
        theirs = np.asarray(self[f"out/{name}"], dtype=float)
        ours = np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours, dtype=float)
        assert ours.shape == theirs.shape, f"{name}: ours has the shape {ours.shape}, theirs {theirs.shape}"
        difference = np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1)
        self.differences[name] = float(difference)
        assert difference <= within, f"{name}: {difference:.1e} apart, more than {within:.0e}"

    def put(self, name, *parts):
        """Put the weights `w/<name>/...` into modules, which hold them in that order, and turn to eval mode.

        A bias of a convolution whose counterpart has none, because a batch norm follows, is subtracted from
        that norm's running mean: the same function in eval mode, and in training mode.
        """
        ours = [entry for part in parts for entry in part.double().eval().state_dict().items()]
        bias = previous = None
        for key in self[f"order/{name}"]:
            theirs = self.tensor(f"w/{name}/{key}")
            if key.endswith(".bias") and previous.ndim > 2 and not (ours and ours[0][0].endswith("bias")):
                bias = theirs
                continue
            assert ours, f"there is no place for {name}/{key}"
            own, value = ours.pop(0)
            assert value.shape == theirs.shape, f"{own} is {value.shape}, {name}/{key} is {theirs.shape}"
            if bias is not None and key.endswith(".running_mean"):
                theirs, bias = theirs - bias, None
            value.copy_(theirs)
            previous = theirs
        assert not ours, f"{name} has nothing for {[own for own, _ in ours]}"
        assert bias is None, f"{name}: a bias without a batch norm behind it"


@pytest.fixture
def parity(request):
    """A `Reference` by name; skips where the file is absent.

    What a test compares must stand in the results, unless these are being made.
    """
    references = []

    def load(name):
        if not (FOLDER / f"{name}.npz").exists():
            pytest.skip(f"{name}.npz is not in {FOLDER}; SKANOMALY_PARITY names the folder of parity numbers")
        references.append(Reference(name))
        return references[-1]

    yield load
    if hasattr(request.config, "parity_references"):
        request.config.parity_references += [(request.module.__doc__, one) for one in references]
        return
    for reference in references:
        path = RESULTS / f"{reference.name}.md"
        page = path.read_text() if path.exists() else ""
        missing = [name for name in reference.differences if f"| `{name}` |" not in page]
        assert not missing, f"{path} does not name {', '.join(missing)}; {REMEDY}"


@pytest.fixture
def draws(monkeypatch):
    """A function that makes torch.<name> return the given tensors, one a call, whatever it is asked for."""

    def set_draws(name, *values):
        left = iter(values)
        monkeypatch.setattr(torch, name, lambda *args, **options: next(left))

    return set_draws
