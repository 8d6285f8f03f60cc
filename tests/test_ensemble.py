"""Ensembles: the scale of each member, the means, what members see, and their parameters by name."""

import json
import math

import numpy as np
import pytest
from foreign import check_learns
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from test_persistence import forged, other_network
from torch import from_numpy
from toys import LinearAutoEncoder, MaplessAutoEncoder, NearestImages

from skanomaly import DDAD, VAE, AutoEncoder, PatchDetector, ScoreEnsemble
from skanomaly._finite import WORST
from skanomaly.base import Judgement, tells_unlabelled
from skanomaly.ensemble import default_detectors
from skanomaly.model_selection import NormalOnlyKFold
from skanomaly.persistence import load, save
from skanomaly.testing import SliceOnly, make_images, tiny

X = make_images((60, 16, 16))


class Brightness(LinearAutoEncoder):
    """Its score is the mean intensity minus `shift`, and its map the image minus `shift`."""

    __doc__ = LinearAutoEncoder.__doc__
    _image_range = (0.0, 255.0)

    def __init__(self, *, shift=0.0, intensity_range="auto", channel_axis="auto", image_shape=None):
        super().__init__(intensity_range=intensity_range, channel_axis=channel_axis, image_shape=image_shape)
        self.shift = shift

    def _judge(self, network, x):
        maps = x.mean(1) - self.shift
        return Judgement(maps.mean((1, 2)), maps)


class Square(Brightness):
    """Its map is the square of the intensity, and its score the largest of it."""

    __doc__ = LinearAutoEncoder.__doc__

    def _judge(self, network, x):
        maps = x.mean(1).square()
        return Judgement(maps.amax((1, 2)), maps)


class Constant(Brightness):
    """Scores, or pixels, that are always the same, by `shift`: scores if it is 0."""

    __doc__ = LinearAutoEncoder.__doc__

    def _judge(self, network, x):
        score, maps = super()._judge(network, x)[:2]
        return Judgement(score, maps * 0 + 1) if self.shift else Judgement(score * 0 + 1, maps)


def ensemble(*detectors, **parameters):
    """Ensemble of detectors named a, b, c, ..."""
    return ScoreEnsemble(list(zip("abcde", detectors)), **{"random_state": 0, **parameters})


def held_out(fitted, X):
    """Images that set the scales: those of which the first member's fit was not told."""
    rng = np.random.default_rng(np.random.RandomState(0).randint(2**31 - 1))
    return X[np.sort(rng.permutation(len(X))[: round(fitted.holdout * len(X))])]


def standardised(values, reference, log):
    if log:
        values, reference = np.log(values), np.log(reference)
    low, median, high = np.percentile(reference, [25, 50, 75])
    return (values - median) / (high - low)


def test_scores_and_maps_are_standardised_by_images_held_out():
    """Logarithms for a member whose scores, or pixels, are all positive; plain differences for another."""
    members = tiny(AutoEncoder), Brightness(shift=128.0), NearestImages(n_neighbors=1)
    fitted = ensemble(*members, weights=[1, 2, 0.5]).fit(X)
    new, reference = make_images((9, 16, 16), seed=3), held_out(fitted, X)
    scores, maps, weights = [], [], np.array([1, 2, 0.5]) / 3.5
    for name, member in fitted.detectors_:
        known, known_maps = -member.score_samples(reference), member.anomaly_map(reference)
        log = name != "b"
        assert (known.min() > 0) == log
        scores.append(standardised(-member.score_samples(new), known, log))
        pixels, log = known_maps.astype(float), known_maps.min() > 0
        maps.append(standardised(member.anomaly_map(new).astype(float), pixels, log))
    found = fitted.score_components(new)
    assert list(found) == ["a", "b", "c"]
    assert_allclose([found[name] for name in "abc"], scores, rtol=1e-9, atol=1e-9)
    assert_allclose(-fitted.score_samples(new), weights @ scores, rtol=1e-9, atol=1e-9)
    assert_allclose(fitted.anomaly_map(new), np.tensordot(weights, maps, 1), rtol=1e-5, atol=1e-5)


def test_members_learn_from_the_other_images():
    fitted = ensemble(NearestImages(n_neighbors=1), holdout=0.25).fit(X)
    (_, member), distances = fitted.detectors_[0], -fitted.named_detectors_.a.score_samples(X)
    assert member.n_images_ == 45
    assert (distances == 0).sum() == 45
    assert_array_equal(X[distances > 0], held_out(fitted, X))
    other = ensemble(NearestImages(), random_state=1, holdout=0.25).fit(X).named_detectors_.a
    assert not np.array_equal(other.score_samples(X) == 0, distances == 0)


@pytest.mark.parametrize(("n", "holdout"), [(19, 0.2), (60, 0)])
def test_all_images_serve_both_ends(n, holdout):
    fitted = ensemble(NearestImages(n_neighbors=2), Brightness(), holdout=holdout).fit(X[:n])
    assert fitted.named_detectors_.a.n_images_ == n
    _, median, spread = fitted.scales_["b"][0]
    logs = np.log(X[:n].mean((1, 2)))
    assert_allclose(
        [median, spread], [np.median(logs), np.subtract(*np.percentile(logs, [75, 25]))], rtol=1e-6
    )


def test_some_are_held_out_of_twenty():
    assert ensemble(NearestImages()).fit(X[:20]).named_detectors_.a.n_images_ == 16


@pytest.fixture(scope="module")
def logarithmic():
    """Ensemble of one member, whose scores and pixels are positive where it was fitted."""
    return ensemble(Brightness(), intensity_range=(0, 255), holdout=0).fit(X[:5].astype(float) + 1)


@given(below=st.floats(-1e25, 1.0), step=st.floats(1e-3, 1e3))
def test_scores_below_those_held_out_stay_in_order(logarithmic, below, step):
    """In the logarithm's case any score is finite, and a larger one larger, be it negative or zero."""
    detector, (floor, median, spread) = logarithmic, logarithmic.scales_["a"][0]
    assert_allclose(floor, X[:5].mean((1, 2)).min() / 1000 + 1e-3, rtol=1e-6)
    values = np.float32([below, below + max(step, abs(below) / 100), 2.0, 3.0])
    images = np.broadcast_to(values.astype(float)[:, None, None], (4, 16, 16))
    scores, maps = -detector.score_samples(images), detector.anomaly_map(images)
    assert np.isfinite(scores).all()
    assert np.isfinite(maps).all()
    assert (np.diff(scores[:2]) > 0).all()
    assert (np.diff(maps[:2, 0, 0]) > 0).all()
    assert_allclose(scores[2:], (np.log([2, 3]) - median) / spread, rtol=1e-5)


def test_the_logarithm_goes_on_as_its_tangent(logarithmic):
    for (floor, median, spread), judged in zip(
        logarithmic.scales_["a"],
        (lambda images: -logarithmic.score_samples(images), lambda x: logarithmic.anomaly_map(x)[:, 3, 4]),
    ):
        values = np.array([-3.0, 0.0, floor / 2, floor])
        images = np.broadcast_to(values[:, None, None], (4, 16, 16))
        expected = (math.log(floor) + values / floor - 1 - median) / spread
        assert_allclose(judged(images), expected, rtol=1e-5)


def test_the_order_of_one_member_is_its_own():
    member = tiny(AutoEncoder)
    fitted = ensemble(member).fit(X)
    new = make_images((30, 16, 16), seed=1)
    assert_array_equal(
        np.argsort(fitted.score_samples(new)), np.argsort(fitted.named_detectors_.a.score_samples(new))
    )


@pytest.fixture(scope="module")
def of_three():
    """Ensemble of three members, the second without a map."""
    return ensemble(Brightness(), MaplessAutoEncoder(random_state=0), Brightness(shift=300.0)).fit(X[:8])


@given(
    weights=st.lists(st.floats(0, 1.7e308), min_size=3, max_size=3).filter(any),
    factor=st.sampled_from([1e-3, 0.5]),
)
def test_means_are_weighted(of_three, weights, factor):
    """Also by weights whose sum is beyond floats; a common factor changes nothing."""
    fitted = clone(of_three)
    vars(fitted).update(vars(of_three))
    fitted.set_params(weights=weights)._check_process()
    parts, shares = of_three.score_components(X[8:20]), np.array(weights) / max(weights)
    scores, (*_, maps) = -fitted.score_samples(X[8:20]), next(fitted.iter_batches(X[8:20]))
    assert_allclose(scores, np.average([parts[name] for name in "abc"], axis=0, weights=shares), rtol=1e-9)
    if shares[0] + shares[2]:
        alone = []
        for only in ([1, 0, 0], [0, 0, 1]):
            alone.append(fitted.set_params(weights=only)._check_process() or fitted.anomaly_map(X[8:20]))
        assert_allclose(maps, np.average(alone, axis=0, weights=shares[[0, 2]]), rtol=1e-4, atol=1e-4)
    else:
        assert maps is None
    fitted.set_params(weights=[factor * weight for weight in weights])._check_process()
    assert_allclose(-fitted.score_samples(X[8:20]), scores, rtol=1e-9)


def test_members_without_a_map_do_not_count_in_the_map():
    both = ensemble(MaplessAutoEncoder(), Brightness(), weights=[3, 1]).fit(X)
    alone = ensemble(Brightness(), random_state=0).fit(X)
    assert both.scales_["a"][1] is None
    assert_array_equal(both.anomaly_map(X), alone.anomaly_map(X))
    assert not np.array_equal(both.score_samples(X), alone.score_samples(X))
    none = ensemble(MaplessAutoEncoder()).fit(X)
    assert math.isnan(none.pixel_offset_)
    with pytest.raises(TypeError, match="ScoreEnsemble judges whole images"):
        none.anomaly_map(X)


def test_an_infinite_score_of_a_member_is_the_worst_unless_its_weight_is_0():
    images = X.astype(float)
    bad = np.full((1, 16, 16), 1e38)
    members = [NearestImages(), Brightness(shift=1.0)]  # the square of the first leaves float32
    fitted = ensemble(*members, intensity_range=(0, 255)).fit(images)
    assert fitted.score_samples(bad)[0] == -WORST
    assert (fitted.anomaly_map(bad) == WORST).all()
    assert fitted.score_components(bad)["a"][0] == WORST
    with pytest.raises(FloatingPointError, match="image 3 of X is not finite"):
        fitted.calibrate(np.concatenate([images[:3], bad, images]))
    # Infinity has no finite logarithm, which the largest float32 would have.
    squares = ensemble(Square(), intensity_range=(0, 255)).fit(images + 1)
    assert squares.scales_["a"][1][0] is not None
    assert (squares.anomaly_map(bad) == WORST).all()
    assert squares.score_samples(bad)[0] == -WORST
    fitted.set_params(weights=[0, 1]).fit(images)
    assert_array_equal(fitted.score_samples(bad), -fitted.score_components(bad)["b"])


@pytest.mark.parametrize(("shift", "value", "expected"), [(0.0, -1e37, -WORST), (1.001, 1e37, WORST)])
def test_a_pixel_beyond_float32_is_the_lowest_or_the_worst(shift, value, expected):
    """Once it is divided by a small spread, or by a small floor of a logarithm."""
    images = X / 1e4 + 1
    fitted = ensemble(Brightness(shift=shift), intensity_range=(0, 255)).fit(images)
    extreme = images[:1].copy()
    extreme[0, 3, 4] = value
    maps = fitted.anomaly_map(np.repeat(extreme, 2, 0))
    assert_array_equal(maps[:, 3, 4], np.float32(expected))
    assert np.isfinite(maps).all()


@pytest.mark.parametrize(("shift", "what"), [(0.0, "scores of 'b'"), (1.0, "maps of 'b'")])
def test_a_member_without_spread_is_named(shift, what):
    detector = ensemble(Brightness(), Constant(shift=shift))
    with pytest.raises(ValueError, match=f"the {what} have no spread"):
        detector.fit(X)
    assert not hasattr(detector, "detectors_")


def test_members_see_any_layout():
    colour = make_images((24, 12, 10, 3))
    fitted = ensemble(tiny(AutoEncoder), NearestImages()).fit(colour)
    scores = fitted.score_samples(colour)
    assert_array_equal(fitted.score_samples(from_numpy(np.moveaxis(colour, 3, 1).copy())), scores)
    assert_array_equal(fitted.score_samples(SliceOnly(colour)), scores)
    first = ensemble(tiny(AutoEncoder), NearestImages()).fit(from_numpy(np.moveaxis(colour, 3, 1).copy()))
    assert_array_equal(first.score_samples(colour), scores)
    assert_array_equal(first.anomaly_map(colour), fitted.anomaly_map(colour))
    rows = ensemble(tiny(AutoEncoder), NearestImages(), image_shape=(16, 16)).fit(X.reshape(60, -1))
    assert_array_equal(rows.anomaly_map(X[:, None]), rows.anomaly_map(X.reshape(60, -1)))
    assert rows.anomaly_map(X).shape == (60, 16, 16)
    member = fitted.named_detectors_.b
    assert_array_equal(member.score_samples(colour[:4]), member.score_samples(SliceOnly(colour[:4])))


def test_layout_and_range_of_members():
    """The layout is that of the ensemble, and so is the range of a member that gives none."""
    members = tiny(AutoEncoder, channel_axis=1, image_shape=(4, 4)), NearestImages(intensity_range=(0, 9))
    fitted = ensemble(*members).fit(X.astype(float))
    a, b = (member for _, member in fitted.detectors_)
    assert a.intensity_range_ == fitted.intensity_range_ == (X.min(), X.max())
    assert b.intensity_range_ == (0, 9)
    given = clone(fitted).set_params(intensity_range=(0, 300)).fit(X.astype(float))
    assert [member.intensity_range_ for _, member in given.detectors_] == [(0, 300), (0, 9)]
    assert members[0].channel_axis == 1, "members that were given are left as they were"
    patches = ensemble(tiny(PatchDetector), ScoreEnsemble([("inner", tiny(VAE))])).fit(X)
    assert patches.anomaly_map(X).shape == X.shape


def test_each_image_is_read_once_and_a_batch_is_in_memory():
    reads = []

    class Noting(SliceOnly):
        def __getitem__(self, rows):
            reads.append(rows)
            return super().__getitem__(rows)

    images = make_images((70, 16, 16), seed=2)
    fitted = ensemble(NearestImages(), Brightness()).fit(X)
    rows, _, _ = zip(*fitted.iter_batches(Noting(images)))
    assert [len(range(70)[part]) for part in rows] == [32, 32, 6]
    first, *others = [range(70)[part] for part in reads]
    assert first == range(1), "a look at its dtype"
    assert [i for part in others for i in part] == list(range(70))


def test_random_states():
    seeds = [ensemble(tiny(AutoEncoder), tiny(AutoEncoder), random_state=n).fit(X) for n in (0, 1)]
    drawn = [member.random_state for fitted in seeds for _, member in fitted.detectors_]
    assert len(set(drawn)) == 4
    kept = ensemble(tiny(AutoEncoder, random_state=7), Brightness(), random_state=None).fit(X)
    assert kept.named_detectors_.a.random_state == 7


def test_unlabelled_images():
    """A member that tells them learns them as such, others as normal. They set no scale and no threshold."""
    images, y = X.copy(), np.repeat([1, 0, -1], (40, 15, 5))
    images[40:] = 255 - images[40:]
    inner = tiny(DDAD, score_component="rec")
    fitted = ensemble(inner, NearestImages(n_neighbors=1)).fit(images, y)
    assert tells_unlabelled(fitted)
    near = fitted.named_detectors_.b
    assert near.n_images_ == 47  # all but 8 of 40 normal ones, and 5 known anomalies
    assert (near.score_samples(images[40:55]) == 0).all()
    assert fitted.offset_ == np.percentile(fitted.score_samples(images[:40]), 10)
    reference = images[:40][near.score_samples(images[:40]) < 0]
    assert len(reference) == 8
    scores = np.log(-near.score_samples(reference))
    assert_allclose(fitted.scales_["b"][0][1], np.median(scores), rtol=1e-9)
    expected = clone(fitted.named_detectors_.a)
    learned = np.where(near.score_samples(images) < 0, -1, y)
    assert_array_equal(
        expected.fit(images, learned).score_samples(X), fitted.named_detectors_.a.score_samples(X)
    )
    # No member warns that y has no -1, as NearestImages would by itself.
    ensemble(inner, NearestImages(), holdout=0).fit(images[:55], y[:55])
    with pytest.warns(UserWarning, match="y has no -1") as warned:
        ensemble(NearestImages(), Brightness()).fit(X, np.repeat([1, 0], 30))
    assert len(warned) == 1


def test_parameters_by_name():
    detector = tiny(ScoreEnsemble)
    assert detector.get_params()["vae__latent_size"] == 2
    assert "vae" not in detector.get_params(deep=False)
    detector.set_params(vae__latent_size=3, holdout=0.3)
    assert detector.detectors[1][1].latent_size == 3
    replaced = clone(detector).set_params(vae=NearestImages(), vae__n_neighbors=4)
    assert repr(replaced.detectors[1]) == "('vae', NearestImages(n_neighbors=4))"
    assert isinstance(detector.detectors[1][1], VAE), "the clone has members of its own"
    assert clone(detector).get_params().keys() == detector.get_params().keys()
    with pytest.raises(ValueError, match="Invalid parameter 'other'"):
        detector.set_params(other__latent_size=3)
    default = ScoreEnsemble().set_params(padim__blur=0.1)
    assert [(name, member.blur) for name, member in default.detectors] == [("gaussian", 0.03), ("padim", 0.1)]
    assert ScoreEnsemble().set_params(padim=NearestImages()).detectors[1][1].n_neighbors == 2
    assert ScoreEnsemble().set_params(holdout=0.3).detectors is None
    with pytest.raises(ValueError, match="Invalid parameter 'latent'"):
        detector.set_params(vae__latent=3)
    y = np.repeat([1, -1], (50, 10))
    cv = NormalOnlyKFold(2, random_state=0)
    grid = {"vae__latent_size": [1, 4], "autoencoder": [tiny(AutoEncoder), NearestImages()]}
    search = GridSearchCV(detector, grid, cv=cv, scoring="roc_auc").fit(X, y)
    assert len(set(search.cv_results_["mean_test_score"])) == 4
    best = search.best_estimator_
    assert best.named_detectors_.vae.latent_size == search.best_params_["vae__latent_size"]


def test_none_is_the_default_members():
    names = [name for name, _ in default_detectors()]
    detector = ScoreEnsemble()
    assert detector.get_params()["detectors"] is None
    small = [(name, tiny(type(member))) for name, member in default_detectors()]
    assert list(detector.set_params(detectors=small).fit(X).named_detectors_) == names
    assert default_detectors()[0][1] is not default_detectors()[0][1]


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"detectors": []}, ValueError, r"one or more pairs \(name, detector\), got \[\]"),
        ({"detectors": [tiny(VAE)]}, ValueError, r"one or more pairs \(name, detector\), got \[VAE"),
        ({"detectors": (("a", tiny(VAE)),)}, ValueError, "'detectors' parameter of ScoreEnsemble"),
        ({"detectors": [("a", VAE)]}, TypeError, r"detectors such as AutoEncoder\(\), got a=<class"),
        ({"detectors": [("a", None)]}, TypeError, r"detectors such as AutoEncoder\(\), got a=None"),
        ({"detectors": [(1, tiny(VAE))]}, TypeError, "names of type str, got 1"),
        ({"detectors": [("a", tiny(VAE))] * 2}, ValueError, r"not unique: \['a', 'a'\]"),
        ({"detectors": [("a__b", tiny(VAE))]}, ValueError, r"must not contain __: got \['a__b'\]"),
        ({"detectors": [("weights", tiny(VAE))]}, ValueError, r"constructor arguments: \['weights'\]"),
        ({"vae__latent_size": 0}, ValueError, "'latent_size' parameter of VAE"),
        ({"holdout": 1.0}, ValueError, "'holdout' parameter of ScoreEnsemble"),
        ({"holdout": 0.02}, ValueError, "holdout=0.02 of 60 normal images leaves 1 to set the scales and 59"),
        ({"holdout": 0.99}, ValueError, "leaves 59 to set the scales and 1 to learn from"),
        ({"weights": 2.0}, ValueError, "'weights' parameter of ScoreEnsemble"),
        ({"weights": [1.0]}, ValueError, r"one for each of 2 detectors, got \[1.0\]"),
        ({"weights": [1.0, -1.0]}, ValueError, r"weights must be numbers of 0 or more.*got \[1.0, -1.0\]"),
        ({"weights": [1.0, math.nan]}, ValueError, r"weights must be numbers of 0 or more"),
        ({"weights": [1.0, math.inf]}, ValueError, r"weights must be numbers of 0 or more"),
        ({"weights": ["1", "2"]}, ValueError, r"weights must be numbers of 0 or more"),
    ],
)
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        tiny(ScoreEnsemble).set_params(**parameters).fit(X)


def test_a_frozen_member_is_used_as_it_is():
    fitted = NearestImages().fit(X[:30])
    detector = ensemble(FrozenEstimator(fitted), Brightness(), holdout=0).fit(X[30:])
    known = np.log(-fitted.score_samples(X[30:]))
    assert_allclose(detector.scales_["a"][0][1], np.median(known))


def test_members_are_saved_under_their_names(tmp_path):
    """Also what was left out, in the fitted member, too, and in a member of a member."""
    types = [Custom, ScoreEnsemble]
    inner = ScoreEnsemble([("custom", Custom(factory=other_network)), ("vae", tiny(VAE))])
    detector = ensemble(Custom(factory=other_network), inner).fit(X)
    with pytest.raises(TypeError, match="parameter a__factory is of type function"):
        save(detector, tmp_path / "a", leave_out=["b__custom__factory"])
    with pytest.raises(ValueError, match="leave_out names parameters that ScoreEnsemble has not"):
        save(detector, tmp_path / "a", leave_out=["detectors__factory"])
    left_out = ["a__factory", "b__custom__factory"]
    save(detector, tmp_path / "a", leave_out=left_out)
    with pytest.raises(TypeError, match="parameter b__custom__factory was left out"):
        load(tmp_path / "a", types=types, a__factory=other_network)
    loaded = load(tmp_path / "a", types=types, **dict.fromkeys(left_out, other_network), b__vae__verbose=1)
    assert loaded.named_detectors_.b.named_detectors_.vae.verbose == 1
    assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
    assert_array_equal(loaded.anomaly_map(X), detector.anomaly_map(X))
    assert (loaded.scales_, loaded.weights_) == (detector.scales_, detector.weights_)


class Custom(LinearAutoEncoder):
    """Its network is made by a function, which no file can hold."""

    __doc__ = LinearAutoEncoder.__doc__

    def __init__(self, *, factory=None, channel_axis="auto", image_shape=None, random_state=None):
        super().__init__(channel_axis=channel_axis, image_shape=image_shape, random_state=random_state)
        self.factory = factory

    def _build(self, image_shape):
        return self.factory(image_shape, self.latent_size)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"weights_": {"dict": {"vae": 1.0', '"weights_": {"dict": {"vae": -1.0', "weights must be numbers"),
        ('"weights_": {"dict": {"vae"', '"weights_": {"dict": {"b"', "must have the same names"),
        ('"scales_": {"dict": {"vae"', '"scales_": {"dict": {"b"', "must have the same names"),
        ("SPREAD", "0.0", "scales_ cannot be"),
        ("SPREAD", "NaN", "scales_ cannot be"),
        ("SPREAD", "Infinity", "scales_ cannot be"),
        ("SPREAD", '"1"', "does not describe a detector"),
        ("MEDIAN", "NaN", "scales_ cannot be"),
        ("FLOOR", "-1.0", "scales_ cannot be"),
    ],
)
def test_forged_scales_and_weights_are_refused(old, new, message, tmp_path):
    detector = ScoreEnsemble([("vae", tiny(VAE))], random_state=0).fit(X)
    save(detector, tmp_path / "a")
    scale = dict(zip(("FLOOR", "MEDIAN", "SPREAD"), detector.scales_["vae"][0]))

    def change(document, tensors):
        text = json.dumps(document)
        before = repr(scale[old]) if old in scale else old
        assert text.count(before) == 1
        return json.loads(text.replace(before, new))

    (tmp_path / "b").write_bytes(forged(tmp_path / "a", change))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "b")


def test_members_that_were_renamed_after_the_fit_are_not_saved(tmp_path):
    detector = tiny(ScoreEnsemble).fit(X)
    detector.set_params(detectors=[("a", tiny(AutoEncoder)), ("vae", tiny(VAE))])
    with pytest.raises(ValueError, match="must have the same names"):
        save(detector, tmp_path / "a")


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    small = {"hidden_size": 128, "width": 8, "batch_size": 16, "max_epochs": 25}
    members = [("autoencoder", AutoEncoder(**small)), ("vae", VAE(**small))]
    # Not by a ratio of maps, whose mean over normal pixels is near 0.
    trained, untrained, foreign, masks = check_learns(
        ScoreEnsemble(members, random_state=0), map_ratio=-math.inf
    )
    before, after = (
        roc_auc_score(masks.ravel(), fitted.anomaly_map(foreign).ravel()) for fitted in (untrained, trained)
    )
    assert after > max(0.6, before + 0.1)
