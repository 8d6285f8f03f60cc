"""One class, three verbs, nothing registered: the price of a new detector."""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator
from toys import LinearAutoEncoder, MaplessAutoEncoder, NearestImages

from skanomaly import detectors
from skanomaly.testing import DTYPES, all_detectors, check_images, detector_checks

TOYS = [LinearAutoEncoder, MaplessAutoEncoder, NearestImages]


@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@pytest.mark.parametrize(
    ("detector", "check"),
    [(toy, check) for toy in TOYS for _, check in estimator_checks_generator(toy())],
)
def test_scikit_learn(detector, check):
    check(detector(random_state=0))


@pytest.mark.parametrize(
    ("detector", "check"),
    [
        pytest.param(toy, check, id=f"{name}-{toy.__name__}")
        for toy in TOYS
        for name, check in detector_checks(toy())
    ],
)
def test_contract(detector, check):
    check(detector(random_state=0))


@pytest.mark.parametrize("detector", TOYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "channel_axis"), [((3, 7), "auto"), ((3, 19, 9), None), ((3, 2, 9, 5), 1), ((3, 9, 5, 4), -1)]
)
def test_layouts_and_dtypes(detector, shape, channel_axis, dtype):
    check_images(detector(random_state=0), shape, dtype, channel_axis)


def test_a_detector_that_does_not_reconstruct_has_no_such_method():
    assert not hasattr(LinearAutoEncoder(), "reconstruct")


def test_a_new_file_is_found(tmp_path, monkeypatch):
    known = [name for name, _ in all_detectors()]
    (tmp_path / "fresh.py").write_text(
        "from skanomaly.base import BaseDetector\n\n\nclass Fresh(BaseDetector):\n    pass\n"
    )
    monkeypatch.setattr(detectors, "__path__", [*detectors.__path__, str(tmp_path)])
    assert [name for name, _ in all_detectors()] == sorted([*known, "Fresh"])
