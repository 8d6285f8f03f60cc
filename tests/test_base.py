"""Bases: what a detector may leave out, and what it gets for nothing."""

import ast
import inspect
import textwrap

import numpy as np
import pytest
import torch
import toys
from numpy.testing import assert_array_equal
from torch import nn
from toys import LinearAutoEncoder, NearestImages

from skanomaly import AutoEncoder, PatchDetector
from skanomaly._inference import run
from skanomaly.base import CompositeDetector, FeatureDetector, Judgement, TrainedDetector
from skanomaly.persistence import load, save
from skanomaly.testing import all_detectors, make_images, tiny
from skanomaly.training import Reconstruction

X = make_images()


def test_a_plain_detector_takes_fifteen_lines():
    """All of the class but its docstring and its constructor."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(NearestImages)))
    left_out = {
        line
        for node in tree.body[0].body
        if isinstance(node, ast.Expr) or getattr(node, "name", "") == "__init__"
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = textwrap.dedent(inspect.getsource(NearestImages)).splitlines()
    code = [i for i, line in enumerate(lines, 1) if line.strip() and i not in left_out]
    assert len(code) <= 15


def test_a_plain_detector_has_nothing_of_a_training():
    detector = NearestImages(random_state=0).fit(X)
    assert not {"max_epochs", "batch_size", "checkpoint_dir"} & set(detector.get_params())
    assert not hasattr(detector, "history_")
    assert not hasattr(detector, "n_iter_")
    for text in ("history_", "batch_size", "verbose"):
        assert text not in NearestImages.__doc__
    assert "offset_ : float" in NearestImages.__doc__
    assert "history_ : dict" in LinearAutoEncoder.__doc__


def test_a_bank_that_depends_on_the_data_is_saved(tmp_path):
    detector = NearestImages(random_state=0).fit(X[:7])
    save(detector, tmp_path / "bank")
    loaded = load(tmp_path / "bank", types=[NearestImages])
    assert loaded.n_images_ == 7
    assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
    detector.n_images_ = 8
    with pytest.raises(ValueError, match="no longer describe its network"):
        save(detector, tmp_path / "bank")


class Counting(NearestImages):
    """Judges while it measures, and counts."""

    n_judged = 0

    def _measure(self, network, images):
        super()._measure(network, images)
        # The verb, not the counter: these judgements save those for the thresholds.
        judge = super()._judge
        parts = run(lambda x: judge(network, x)[:2], network, images, self.device_)
        return [part for _, part in parts]

    def _judge(self, network, x):
        Counting.n_judged += len(x)
        return super()._judge(network, x)


def test_judgements_that_were_measured_set_the_thresholds():
    plain, counting = NearestImages().fit(X), Counting().fit(X)
    assert Counting.n_judged == 0
    assert (counting.offset_, counting.pixel_offset_) == (plain.offset_, plain.pixel_offset_)
    assert counting.map_range_ == plain.map_range_


def test_of_many_pixels_a_sample_sets_the_threshold(monkeypatch):
    whole, kept = NearestImages().fit(X), []
    monkeypatch.setattr("skanomaly.base._detector.N_PIXELS", 1200)
    keep = NearestImages._set_thresholds

    def watch(self, offset, pixels, rate):
        kept.append(pixels.size)
        keep(self, offset, pixels, rate)

    monkeypatch.setattr(NearestImages, "_set_thresholds", watch)
    sampled = NearestImages().fit(X)
    assert kept == [1200]
    assert sampled.pixel_offset_ != whole.pixel_offset_
    assert sampled.pixel_offset_ == pytest.approx(whole.pixel_offset_, rel=0.2)


class Infinite(NearestImages):
    """Scores that are not numbers."""

    def _judge(self, network, x):
        return Judgement(torch.full((len(x),), torch.nan), None)


def test_scores_that_are_not_finite_end_a_fit():
    detector = Infinite()
    with pytest.raises(FloatingPointError, match="image 0 of X is not finite"):
        detector.fit(X)
    assert not hasattr(detector, "network_")


class Apart(NearestImages):
    """Tells unlabelled images from normal ones."""

    _tells_unlabelled = True

    def _measure(self, network, images):
        Apart.codes = images.y
        super()._measure(network, images)


def test_unlabelled_images_set_no_thresholds():
    y = np.array([1] * 6 + [0] * 4 + [-1] * 2)
    detector = Apart().fit(X, y)
    assert Apart.codes.tolist() == [1] * 6 + [0] * 4
    assert detector.n_images_ == 10
    assert detector.offset_ == np.percentile(detector.score_samples(X[:6]), 10)
    assert NearestImages().fit(X, y).offset_ != detector.offset_


class Stages(LinearAutoEncoder):
    """Two stages, the second shorter."""

    def _train(self, run, network, images):
        first = run("first", Reconstruction, network, images, error=toys.absolute_error)
        assert len(first) == self.max_epochs
        run("second", Reconstruction, network, images, error=toys.absolute_error, max_epochs=1)


def test_the_run_that_is_handed_in_collects_histories():
    detector = Stages(max_epochs=3, random_state=0).fit(X)
    assert {name: len(history) for name, history in detector.history_.items()} == {"first": 3, "second": 1}
    assert detector.n_iter_ == 4


def test_a_training_may_be_run_by_another_run():
    ran = []
    detector = LinearAutoEncoder()
    detector._train(lambda stage, *args, **options: ran.append(stage), nn.Identity(), X)
    assert ran == ["reconstruction"]


class Shared(LinearAutoEncoder):
    """Constraints by name, and two of its own, one for a shared parameter."""

    _parameter_constraints = {"code_weight": [str], "latent_size": [None, list]}

    def __init__(self, *, width=1, extra_weight=1.0, code_weight="a", warm_epochs=1, latent_size=None):
        self.width, self.extra_weight, self.code_weight = width, extra_weight, code_weight
        self.warm_epochs, self.latent_size = warm_epochs, latent_size


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 0), ("extra_weight", -1), ("code_weight", 1), ("warm_epochs", 0), ("latent_size", 2)],
)
def test_constraints_of_shared_names(name, value):
    Shared()._validate_params()
    with pytest.raises(ValueError, match=f"'{name}' parameter of Shared must be"):
        Shared(**{name: value})._validate_params()


def test_kinds_of_detectors():
    composites = [name for name, cls in all_detectors() if issubclass(cls, CompositeDetector)]
    assert composites == ["PatchDetector", "ScoreEnsemble"]
    for _, cls in all_detectors():
        kinds = TrainedDetector, FeatureDetector, CompositeDetector
        assert sum(issubclass(cls, kind) for kind in kinds) == 1
    fitted = PatchDetector(tiny(AutoEncoder), n_patches=2, random_state=0).fit(X)
    assert fitted.intensity_range_ == fitted.detector_.intensity_range_


class Few(NearestImages):
    """Judges fewer images than there are."""

    def _measure(self, network, images):
        super()._measure(network, images)
        return [(np.zeros(3), None)]


def test_too_few_judgements_are_refused():
    with pytest.raises(ValueError, match="3 judgements for 12 normal images"):
        Few().fit(X)


class Watching(LinearAutoEncoder):
    """Notes which images it was given."""

    def _prepare(self, images):
        self.raw_ = images.raw()

    def _measure(self, network, images):
        self.n_measured_ = len(images)


def test_statistics_are_of_the_images_that_were_trained_on():
    assert Watching(validation_fraction=0.25, random_state=0).fit(X).n_measured_ == 9


def test_raw_images_are_those_in_use():
    y = np.r_[-1, -1, -1, np.ones(9)]
    assert_array_equal(Watching(random_state=0).fit(X, y).raw_[:, 0], X[3:])


def test_an_unfitted_detector_names_what_it_lacks():
    with pytest.raises(AttributeError, match="image_shape_ is there once NearestImages is fitted"):
        NearestImages().image_shape_  # noqa: B018
    assert not hasattr(NearestImages(), "intensity_range_")


@pytest.mark.parametrize("toy", [NearestImages, LinearAutoEncoder])
def test_what_the_process_cannot_do_is_refused_before_images_are_read(toy):
    with pytest.raises(ValueError, match="cuda:99"):
        toy(device="cuda:99").fit(np.full((4, 8, 8), np.nan))


def test_callbacks_of_unknown_stages_warn_where_fit_was_called():
    with pytest.warns(UserWarning, match="stages that LinearAutoEncoder has not: .'encoder'") as warned:
        LinearAutoEncoder(callbacks={"encoder": []}).fit(X)
    assert {warning.filename for warning in warned} == {__file__}


class Repeating(LinearAutoEncoder):
    """Runs its stage a number of times."""

    n_runs = 2

    def _train(self, run, network, images):
        for _ in range(self.n_runs):
            super()._train(run, network, images)


def test_stages_are_there_and_have_names_of_their_own(monkeypatch):
    with pytest.raises(ValueError, match="two stages are named 'reconstruction'"):
        Repeating().fit(X)
    monkeypatch.setattr(Repeating, "n_runs", 0)
    with pytest.raises(ValueError, match="ran no stage"):
        Repeating().fit(X)


class Pair(CompositeDetector):
    """Mean of two nearest-image detectors."""

    def __init__(
        self,
        *,
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self._assign_shared(locals())

    network_ = property(lambda self: nn.ModuleList(member.network_ for member in self.members_))

    def _learn(self, images):
        self.members_ = [NearestImages(n_neighbors=k).fit(images.raw()[:, 0]) for k in (1, 3)]

    def _judgements(self, images, pick):
        raw = images.raw()[:, 0]
        for parts in zip(*(member.iter_batches(raw) for member in self.members_)):
            score, maps = (np.mean([part[k] for part in parts], axis=0) for k in (1, 2))
            yield parts[0][0], pick(Judgement(-score, maps))

    def _components(self, images):
        yield {"mean": np.concatenate([score for _, score in self._judgements(images, lambda j: j.score)])}


def test_a_composite_is_saved_with_what_it_holds(tmp_path):
    detector = Pair().fit(X)
    save(detector, tmp_path / "pair")
    loaded = load(tmp_path / "pair", types=[Pair, NearestImages])
    assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
    assert_array_equal(loaded.anomaly_map(X), detector.anomaly_map(X))
    assert_array_equal(detector.score_components(X)["mean"], -detector.score_samples(X))
    assert not hasattr(detector, "reconstruct")


class Stepping(LinearAutoEncoder):
    """Two stages, whose numbers of epochs are parameters."""

    _steps = {"max_epochs": 10, "late_epochs": 5}

    def __init__(self, *, max_epochs=None, late_epochs=None, batch_size=8, random_state=None):
        super().__init__(max_epochs=max_epochs, batch_size=batch_size, random_state=random_state)
        self.late_epochs = late_epochs

    def _train(self, run, network, images):
        super()._train(run, network, images)
        run("late", Reconstruction, network, images, error=toys.absolute_error, epochs="late_epochs")


@pytest.mark.parametrize(
    ("n", "parameters", "expected"),
    [
        (12, {}, (5, 3)),  # of 2 batches
        (24, {}, (4, 2)),
        (100, {}, (1, 1)),
        (12, {"batch_size": 4}, (4, 2)),
        (12, {"late_epochs": 7}, (5, 7)),
        (12, {"max_epochs": 1}, (1, 3)),
    ],
)
def test_none_is_a_number_of_steps(n, parameters, expected):
    history = Stepping(random_state=0, **parameters).fit(make_images((n, 8, 8))).history_
    assert (len(history["reconstruction"]), len(history["late"])) == expected


def test_pages_name_the_number_of_steps():
    for name, cls in all_detectors():
        assert " steps}" not in cls.__doc__
        assert ("max_epochs" in inspect.signature(cls).parameters) == ("max_epochs" in cls._steps)
        for parameter, n_steps in cls._steps.items():
            assert f"{n_steps:,}" in cls.__doc__.partition(f"{parameter} : int, default=None")[2][:200], name
