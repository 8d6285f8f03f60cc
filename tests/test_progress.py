"""scikit-learn's callbacks, where it has them and where it has not."""

import runpy
import sys

import pytest

from skanomaly import AutoEncoder
from skanomaly.testing import make_images, tiny
from skanomaly.training import _progress


def test_a_fit_without_callbacks_in_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    support = runpy.run_path(_progress.__file__)["CallbackSupport"]()
    with support._fit_task(None, None):
        assert support._stage_callbacks("gan") == []
    assert not hasattr(support, "set_callbacks")


def test_a_fit_that_fails_tears_callbacks_down():
    pytest.importorskip("sklearn.callback")
    told = []

    class Log:
        def setup(self, estimator, context):
            told.append("setup")

        def teardown(self, estimator, context):
            told.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            told.append(context.task_name)

        def on_fit_task_end(self, estimator, context):
            told.append(f"end of {context.task_name}")

    detector = tiny(AutoEncoder, lr=1e20, batch_size=4, max_epochs=5).set_callbacks(Log())
    before = dict(vars(detector))
    with pytest.raises(FloatingPointError, match="training diverged"):
        detector.fit(make_images())
    assert told == ["setup", "fit", "reconstruction", "epoch", "end of reconstruction", "teardown"]
    assert vars(detector) == before
