"""What every detector passes, found by discovery."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks

import skanomaly
from skanomaly.testing import DTYPES, all_detectors, check_images, detector_checks, tiny

DETECTORS = [detector for _, detector in all_detectors()]
IDS = [name for name, _ in all_detectors()]


@parametrize_with_checks([tiny(detector) for detector in DETECTORS])
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
@pytest.mark.parametrize(("name", "check"), detector_checks(), ids=[name for name, _ in detector_checks()])
def test_contract(detector, name, check):
    check(tiny(detector))


@st.composite
def layouts(draw):
    n = draw(st.integers(2, 5))
    size = draw(st.integers(1, 33)), draw(st.integers(1, 33))
    kind = draw(st.sampled_from(["rows", "grey", "first", "last"]))
    if kind == "rows":
        return (n, size[0] * 3), "auto"
    if kind == "grey":
        return (n, *size), "auto"
    channels = draw(st.integers(1, 4))
    return ((n, channels, *size), 1) if kind == "first" else ((n, *size, channels), -1)


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
@given(layout=layouts(), dtype=st.sampled_from(DTYPES))
def test_layouts_and_dtypes(detector, layout, dtype):
    shape, channel_axis = layout
    check_images(tiny(detector), shape, dtype, channel_axis)


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7), (3, 19, 9), (3, 2, 18, 11), (3, 18, 11, 3), (3, 11, 18, 4)])
def test_auto_layouts(detector, dtype, shape):
    check_images(tiny(detector), shape, dtype)


def test_public_names_are_the_detectors_and_what_unwraps_them():
    functions = {"anomaly_map", "reconstruct", "segment", "__version__"}
    assert set(skanomaly.__all__) == set(IDS) | functions
    assert all(getattr(skanomaly, name) is detector for name, detector in all_detectors())


def test_detectors_are_final():
    for detector in DETECTORS:
        assert detector.__bases__ == (skanomaly._detector.BaseDetector,)
