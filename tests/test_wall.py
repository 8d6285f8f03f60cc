"""What every detector passes, found by discovery."""

import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.utils.estimator_checks import parametrize_with_checks
from toys import LinearAutoEncoder

import skanomaly
from skanomaly.testing import DTYPES, all_detectors, check_images, detector_checks, make_images, tiny

DETECTORS = [detector for _, detector in all_detectors()]
IDS = [name for name, _ in all_detectors()]


def in_large_batches(detector):
    """A tiny detector for scikit-learn's checks, whose 300 rows are 38 batches of 8."""
    detector = tiny(detector)
    return detector.set_params(**{name: 64 for name in detector.get_params() if name.endswith("batch_size")})


@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@parametrize_with_checks([in_large_batches(detector) for detector in DETECTORS])
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("detector", "check"),
    [
        pytest.param(detector, check, id=f"{name}-{detector.__name__}")
        for detector in DETECTORS
        for name, check in detector_checks(tiny(detector))
    ],
)
def test_contract(detector, check):
    check(tiny(detector))


@pytest.mark.parametrize("detector", DETECTORS, ids=IDS)
@pytest.mark.parametrize(
    ("shape", "dtype", "channel_axis"),
    [
        ((3, 7), "int64", "auto"),
        ((3, 33, 1), "float16", "auto"),
        ((3, 1, 1, 1), "uint16", 1),
        ((3, 18, 11, 3), "uint8", "auto"),
        ((3, 4, 19, 9), "float64", 1),
    ],
)
def test_layouts(detector, shape, dtype, channel_axis):
    check_images(tiny(detector), shape, dtype, channel_axis)


class Echo(LinearAutoEncoder):
    """A toy that gives images back: dtypes and layouts end before the network, so one detector shows all."""

    def _reconstruct(self, network, x):
        return x


INTEGERS = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767), "int64": (-(10**12), 10**12)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "channel_axis"),
    [
        ((3, 7), "auto"),
        ((3, 19, 9), "auto"),
        ((3, 19, 9), None),
        *(((3, channels, 9, 5), axis) for channels in (1, 2, 3, 4) for axis in (1, -3)),
        *(((3, 9, 5, channels), axis) for channels in (1, 2, 3, 4) for axis in (3, -1)),
        ((3, 1, 9, 5), "auto"),
        *(((3, 9, 5, channels), "auto") for channels in (1, 2, 3)),
    ],
)
def test_every_layout_in_every_dtype(shape, channel_axis, dtype):
    detector = Echo(channel_axis=channel_axis, random_state=0)
    check_images(detector, shape, dtype, channel_axis)
    low, high = (-1000, 1000) if dtype.startswith("float") else INTEGERS[dtype]
    X = (low + make_images(shape, "float64") * (high - low)).astype(dtype)
    assert_allclose(detector.fit(X).reconstruct(X), X.astype(float), rtol=1e-5, atol=1e-6 * (high - low))


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


@pytest.mark.filterwarnings("ignore:all . training images are")  # of one pixel
@given(layout=layouts(), dtype=st.sampled_from(DTYPES))
def test_any_layout(layout, dtype):
    shape, channel_axis = layout
    check_images(Echo(random_state=0), shape, dtype, channel_axis)


def test_public_names_are_the_detectors_what_unwraps_them_and_the_public_modules():
    functions = {"anomaly_map", "merge", "p_value", "reconstruct", "segment", "__version__"}
    rooms = {module.name for module in pkgutil.iter_modules(skanomaly.__path__)}
    rooms = {name for name in rooms if not name.startswith("_")} - {"detectors", "networks", "training"}
    assert set(skanomaly.__all__) == set(IDS) | functions | rooms
    assert all(getattr(skanomaly, name) is detector for name, detector in all_detectors())


def test_detectors_are_final():
    bases = [getattr(skanomaly.base, name) for name in skanomaly.base.__all__ if name != "Judgement"]
    for detector in DETECTORS:
        # A mixin of scikit-learn may stand beside the base.
        assert [base for base in detector.__bases__ if issubclass(base, skanomaly.base.BaseDetector)] in [
            [one] for one in bases
        ]
