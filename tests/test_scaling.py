"""Many processes give what one gives."""

import importlib.util
import io
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_array_equal
from rich.console import Console

EXAMPLE = Path(__file__).parents[1] / "examples" / "dask_search.py"


@pytest.fixture
def example():
    pytest.importorskip("sklearn.callback")  # the example shows its progress bars
    spec = importlib.util.spec_from_file_location("dask_search", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_search_on_dask_is_the_serial_one(example, monkeypatch, capsys):
    """Processes with one thread each; scores and the refitted network agree to the bit."""
    screen = io.StringIO()
    console = Console(file=screen, width=150, height=60, force_terminal=True)
    monkeypatch.setattr("rich.progress.get_console", lambda: console)
    assert torch.get_num_threads() == 1
    spread = example.main(["--epochs", "1"])
    serial = example.make_search(1).fit(*example.load_images())
    for key, values in serial.cv_results_.items():
        if key.endswith("_test_score"):
            assert_array_equal(spread.cv_results_[key], values)
    assert spread.best_params_ == serial.best_params_
    states = [search.best_estimator_.network_.state_dict() for search in (spread, serial)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    for words in "GridSearchCV", "AutoEncoder", "reconstruction":
        assert words in screen.getvalue(), "progress comes from the workers"
    assert capsys.readouterr().out.count("AUROC") == 6
