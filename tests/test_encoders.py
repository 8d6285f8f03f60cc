"""Encoders: features, what a step moves, resume, files, searches, and use as a backbone."""

import numpy as np
import pytest
import torch
from foreign import auroc, chests
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import (
    check_set_output_transform_pandas,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    parametrize_with_checks,
)
from skorch.callbacks import Callback

from skanomaly import FeatureGaussian, PaDiM, PatchCore, persistence
from skanomaly._random import seeded
from skanomaly.encoders import SelfSupervisedEncoder
from skanomaly.features import ImageFeatures
from skanomaly.labels import LabelWarning
from skanomaly.model_selection import NormalOnlyKFold
from skanomaly.networks.byol import BYOLNetwork
from skanomaly.testing import make_images
from skanomaly.training import SelfSupervised
from skanomaly.transforms import Flip, preset

X, NEW = make_images((20, 16, 16)), make_images((9, 16, 16), seed=1)
USERS = FeatureGaussian, PaDiM, PatchCore


def small(**parameters):
    return SelfSupervisedEncoder(
        **{"hidden_size": 12, "width": 2, "max_epochs": 1, "random_state": 0} | parameters
    )


# scikit-learn's checks send labels 0, 1 and 2.
@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@parametrize_with_checks([small()])
def test_scikit_learn(estimator, check):
    check(estimator)


# scikit-learn's own runs of this check do not mind warnings.
@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@pytest.mark.filterwarnings("ignore:X .*feature names")
@pytest.mark.parametrize(
    "check",
    [
        check_transformer_get_feature_names_out,
        check_transformer_get_feature_names_out_pandas,
        check_set_output_transform_pandas,
    ],
)
def test_scikit_learn_on_names(check):
    check("SelfSupervisedEncoder", small())


def test_features_are_those_of_the_network():
    encoder = small().fit(X)
    x = torch.from_numpy(NEW[:, None].astype(np.float32)) / 127.5 - 1
    with torch.no_grad():
        expected = encoder.network_.eval().ssl_encoder(x)
    features = encoder.transform(NEW)
    assert features.dtype == np.float32
    assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_who_moves():
    """One step moves what learns, and the target by (1 - momentum) of the way to it."""
    with seeded(0):
        network = BYOLNetwork((1, 16, 16), hidden_size=12, width=2, n_levels=None)
        for value in network.target.parameters():
            value.add_(torch.randn_like(value))
    training = SelfSupervised(
        network, stage="ssl", views=(Flip(), Flip()), momentum=0.75, max_epochs=1, batch_size=8, verbose=0
    )
    training.initialize()
    training.totals_, training.batch_size_ = {}, 8
    network.train()
    before = {name: value.clone() for name, value in network.named_parameters()}
    with seeded(0):
        training.step(network, torch.rand(8, 1, 16, 16) * 2 - 1)
    after = dict(network.named_parameters())
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"ssl_encoder", "projector", "predictor", "target"}
    for old, new in (("target.0.", "ssl_encoder."), ("target.1.", "projector.")):
        for name in [name for name in before if name.startswith(old)]:
            online = after[new + name.removeprefix(old)]
            assert_allclose(after[name], 0.75 * before[name] + 0.25 * online.detach(), atol=1e-6)


def test_views_are_those_of_the_parameter():
    """By default those that suit the number of channels."""
    assert_array_equal(small().fit(X).transform(NEW), small(transforms=preset("oct")).fit(X).transform(NEW))
    colour = make_images((8, 16, 16, 3))
    by_default, given_ = small().fit(colour), small(transforms="cfp").fit(colour)
    assert_array_equal(by_default.transform(colour), given_.transform(colour))
    assert (by_default.transform(colour) != small(transforms="byol").fit(colour).transform(colour)).any()


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(5, 40), st.integers(5, 40)),
    cut=st.integers(1, 8),
)
def test_rows_do_not_depend_on_the_batch(shape, cut):
    images = make_images((9, *shape), dtype="float32")
    encoder = small(channel_axis=1, intensity_range=(0, 1)).fit(images)
    whole = encoder.transform(images)
    assert whole.shape == (9, 12)
    parts = encoder.transform(images[:cut]), encoder.transform(images[cut:])
    assert_array_equal(np.concatenate(parts), whole)


def test_known_anomalies_teach_nothing():
    y = np.repeat([1, -1], [16, 4])
    assert_array_equal(small().fit(X, y).transform(NEW), small().fit(X[:16]).transform(NEW))
    with pytest.warns(LabelWarning, match="learned as normal"):
        small().fit(X, np.repeat([0, 1], 10))


def test_none_is_2000_steps():
    encoder = SelfSupervisedEncoder(hidden_size=2, width=1, n_levels=1, batch_size=20)

    class Enough(Callback):
        def on_train_begin(self, net, **kwargs):
            assert net.max_epochs == 2000
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.set_params(callbacks=[Enough()]).fit(X)
    assert not hasattr(encoder, "network_")


def test_a_killed_fit_continues_with_the_same_bits(tmp_path):
    whole = small(max_epochs=3).fit(X)

    class Kill(Callback):
        armed = True

        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2 and Kill.armed:
                Kill.armed = False
                raise KeyboardInterrupt

    part = small(max_epochs=3, checkpoint_dir=tmp_path, callbacks=[Kill()])
    with pytest.raises(KeyboardInterrupt):
        part.fit(X)
    assert_array_equal(part.fit(X).transform(NEW), whole.transform(NEW))
    assert len(part.history_["ssl"]) == part.n_iter_ == 3


def test_a_fit_that_diverges_leaves_no_trace():
    encoder = small(lr=1e30, max_epochs=3)
    with pytest.raises(FloatingPointError, match="ssl"):
        encoder.fit(X)
    with pytest.raises(NotFittedError):
        encoder.transform(X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"objective": "simclr"}, "objective"),
        ({"momentum": 2.0}, "momentum"),
        ({"transforms": "blur"}, "transforms"),
        ({"transforms": (Flip(),)}, "a tuple of two"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        small(**parameters).fit(X)


def test_a_file(tmp_path):
    encoder = small().fit(X)
    persistence.save(encoder, tmp_path / "encoder.skanomaly")
    loaded = persistence.load(tmp_path / "encoder.skanomaly")
    assert isinstance(loaded, SelfSupervisedEncoder)
    assert_array_equal(loaded.transform(NEW), encoder.transform(NEW))
    assert loaded.history_ == encoder.history_


# As a backbone.


@pytest.mark.parametrize("cls", USERS)
@pytest.mark.parametrize("kind", ["unfitted", "fitted", "frozen"])
def test_a_backbone(cls, kind, tmp_path):
    encoder = small()
    if kind != "unfitted":
        encoder.fit(X)
    backbone = FrozenEstimator(encoder) if kind == "frozen" else encoder
    detector = cls(backbone=backbone, random_state=0).fit(X)
    assert detector.backbone_["layers"] == ["ssl_encoder.down.2", "ssl_encoder.down.5"]
    assert (detector.backbone_detector_ is encoder) == (kind == "frozen")
    persistence.save(detector, tmp_path / "detector.skanomaly")
    loaded = persistence.load(tmp_path / "detector.skanomaly")
    assert_array_equal(loaded.score_samples(NEW), detector.score_samples(NEW))
    assert_array_equal(loaded.anomaly_map(NEW), detector.anomaly_map(NEW))


def test_images_of_normal_rows_train_the_backbone():
    y = np.repeat([1, 0, -1], [12, 4, 4])
    detector = FeatureGaussian(backbone=small(), random_state=0).fit(X, y)
    other = FeatureGaussian(backbone=small(), random_state=0).fit(X[:16], y[:16])
    assert detector.backbone_ == other.backbone_


def test_epochs_are_searchable():
    search = GridSearchCV(
        FeatureGaussian(backbone=small()),
        {"backbone__max_epochs": [1, 2]},
        cv=NormalOnlyKFold(2),
        scoring=lambda detector, X, y: detector.backbone_detector_.n_iter_,
    ).fit(X, np.repeat([1, -1], [16, 4]))
    assert list(search.cv_results_["mean_test_score"]) == [1, 2]
    assert search.best_params_ == {"backbone__max_epochs": 2}


def test_a_row_of_maps_and_a_row_of_features():
    assert ImageFeatures(backbone=small(), grid=1).fit(X).transform(NEW).shape == (9, 2 + 4)
    assert small().fit(X).transform(NEW).shape == (9, 12)


@pytest.mark.learning
def test_trained_features_tell_foreign_patches():
    train, normal, foreign, _ = chests(32, 150, 60, 3 / 8)
    encoder = small(hidden_size=64, width=8, transforms="structure", batch_size=32)
    trained, untrained = (
        FeatureGaussian(backbone=clone(encoder).set_params(**training), random_state=0).fit(train)
        for training in ({"max_epochs": 20}, {"lr": 1e-12})
    )
    before, after = (auroc(fitted, normal, foreign) for fitted in (untrained, trained))
    assert after >= max(0.92, before + 0.04), (before, after)
