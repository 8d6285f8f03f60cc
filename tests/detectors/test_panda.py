"""PANDA: distances, compactness, elastic weights, which parts move, whose network stays, and learning."""

import numpy as np
import pytest
import torch
from foreign import auroc, chests
from frozen import check_modes
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from steps import assert_descends, first_settings, run_step
from torch import nn

from skanomaly import PANDA, AutoEncoder
from skanomaly._random import seeded
from skanomaly.detectors import panda
from skanomaly.detectors.panda import Compactness, compactness, elastic_loss, fisher_information
from skanomaly.features import ImageFeatures
from skanomaly.networks.backbone import imagenet, weights_digest
from skanomaly.networks.tuned import _stages
from skanomaly.persistence import load, save
from skanomaly.testing import make_images, tiny

X, NEW = make_images((20, 16, 16)), make_images((6, 16, 16), seed=1)
IMAGENET = {"backbone": "imagenet", "input_size": 32, "random_state": 0}
STEP = {"start": nn.Identity(), "max_gradient": 1e9, "ewc_weight": 0.0, "importance": ()}


class Convolutions(nn.Module):
    """A small network with batch normalisation, whose statistics differ from those of any batch."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.first, self.norm, self.last = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
            self.norm.running_mean += 1
            self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


def features(detector, images):
    x = torch.from_numpy(images[:, None] / 255).float()
    with torch.no_grad():
        return detector._features(detector.network_, x).numpy()


@pytest.mark.parametrize("n_neighbors", [2, 50])
@pytest.mark.parametrize("backbone", ["filters", Convolutions()])
def test_the_score_is_the_sum_of_squared_distances_to_the_nearest(backbone, n_neighbors):
    detector = tiny(PANDA, backbone=backbone, n_neighbors=n_neighbors, lr=1.0).fit(X)
    train, new = features(detector, X), features(detector, NEW)
    expected = np.sort(cdist(new, train) ** 2, axis=1)[:, :n_neighbors].sum(1)
    assert_allclose(-detector.score_samples(NEW), expected, rtol=1e-3)
    # The centre is that of the features before training.
    first = tiny(PANDA, backbone=backbone, n_neighbors=n_neighbors, lr=1e-30).fit(X)
    centre = features(first, X).mean(0)
    found = detector.score_components(NEW)
    assert_allclose(found["compactness"], ((new - centre) ** 2).mean(1), rtol=1e-3)
    assert_allclose(found["neighbors"], expected, rtol=1e-3)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_before_training_features_are_those_of_the_backbone(n_channels):
    images = X if n_channels == 1 else make_images((20, 16, 16, 3))
    for options in IMAGENET, IMAGENET | {"layers": (3, 5), "grid": 1}, {"backbone": "filters"}:
        detector = tiny(PANDA, lr=1e-30, **options).fit(images)
        names = "backbone", "layers", "grid", "input_size"
        plain = {name: getattr(detector, name) for name in names}
        plain["layers"] = plain["layers"] or PANDA._layers[plain["backbone"]]
        expected = ImageFeatures(**plain).fit(images).transform(images)
        assert_allclose(detector.network_.bank.features, expected, rtol=1e-4, atol=1e-4)


def test_channels_are_averaged_before_the_tuned_stages():
    images = make_images((4, 4, 9, 17), "float32")
    detector = PANDA(max_epochs=1, lr=1e-30, channel_axis=1, layers=(2,), **IMAGENET).fit(images)
    network, x = detector.network_, torch.from_numpy(images)
    x = (x - x.min()) / (x.max() - x.min())
    alone = [network.start(channel) for channel in x.split(1, dim=1)]
    assert_allclose(network.start(x), torch.stack(alone).mean(0), rtol=1e-4, atol=1e-5)


def step_of(detector, images=X, **options):
    """What a step on the fitted network records and moves."""
    network = detector._new_network()
    x = torch.from_numpy(images[:, None] / 255).float()
    with torch.no_grad():
        network.centre += 1
    started = network.start(x)
    return network, *run_step(Compactness, network, started, **STEP | options)


class TestWhoMoves:
    @pytest.mark.parametrize("options", [IMAGENET, {"backbone": "filters"}, {"backbone": Convolutions()}])
    def test_the_tuned_part_alone(self, options):
        detector = tiny(PANDA, **options).fit(X)
        network, losses, moved = step_of(detector)
        assert moved == {"tuned"}
        assert losses.keys() == {"train_loss", "compactness_loss", "elastic_loss"}
        assert losses["elastic_loss"] == 0
        assert_array_equal(network.centre, 1)

    def moved_weights(self, **options):
        """Names of the weights inside the tuned part that a fit moves."""
        first, last = (tiny(PANDA, lr=lr, max_gradient=1e3, **options).fit(X) for lr in (1e-30, 1e-2))
        after = last.network_.tuned.state_dict()
        before = first.network_.tuned.state_dict()
        return {name for name in before if not torch.equal(before[name], after[name])}

    def test_named_stages_alone(self):
        moved = self.moved_weights(**IMAGENET | {"tuned": (6,), "layers": (6,)})
        assert moved
        assert {name.split(".")[1] for name in moved} == {"0"}  # the only block of stage 6
        moved = self.moved_weights(**IMAGENET | {"tuned": (5,), "layers": (5, 6)})
        assert {name.split(".")[1] for name in moved} == {"0", "1", "2", "3"}  # and not the fifth, of stage 6

    def test_the_last_two_stages_by_default(self):
        """Four blocks of stage 5 and one of stage 6. Wanted maps of an earlier stage make it the first."""
        blocks = {name.split(".")[1] for name in self.moved_weights(**IMAGENET)}
        assert blocks == {"0", "1", "2", "3", "4"}
        assert list(_stages(None, (6,))) == [5, 6]
        assert list(_stages(None, (4, 6))) == [4, 5, 6]
        assert list(_stages(None, (1,))) == [1], "stage 0 stays as it is"

    def test_named_modules_alone(self):
        assert self.moved_weights(backbone=Convolutions(), tuned=("last",)) == {
            "network.last.weight",
            "network.last.bias",
        }

    def test_statistics_of_batches_do_not_move(self):
        moved = self.moved_weights(backbone=Convolutions())
        assert "network.norm.weight" in moved
        assert not any("running" in name or "tracked" in name or "unused" in name for name in moved)

    def test_shared_networks_stay(self):
        given = Convolutions()
        inner = tiny(AutoEncoder).fit(X)
        shared = [imagenet("cpu"), given, inner.network_]
        before = [weights_digest(network) for network in shared]
        for options in IMAGENET, {"backbone": given}, {"backbone": FrozenEstimator(inner)}:
            detector = tiny(PANDA, lr=1e3, **options).fit(X)
            assert np.isfinite(detector.score_samples(X)).all()
        assert [weights_digest(network) for network in shared] == before
        assert not any(weight.requires_grad for weight in imagenet("cpu").parameters())
        assert all(weight.requires_grad for weight in given.parameters())


class TestSteps:
    def test_are_of_gradient_descent_with_momentum(self, monkeypatch):
        settings = first_settings(monkeypatch, tiny(PANDA), X)
        found = settings["compactness", "optimizer"]
        expected = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 5e-5}
        assert {name: found[name] for name in expected} == expected

    def test_go_down_the_gradient(self):
        network = tiny(PANDA, backbone="filters", grid=2).fit(X)._new_network()
        with torch.no_grad():
            network.centre += torch.arange(48)

        def loss(network, vectors):
            features = vectors @ network.tuned.weight.T + network.tuned.bias
            return ((features - network.centre) ** 2).sum(1).mean() / 48

        vectors = network.start(torch.from_numpy(X[:, None] / 255).float())
        assert_descends(Compactness, network, vectors, loss, ["tuned"], **STEP)

    @pytest.mark.parametrize("max_gradient", [1e-5, 1e-3])
    def test_are_no_longer_than_the_clipped_gradient(self, max_gradient):
        detector = tiny(PANDA).fit(X)
        network, _, _ = step_of(detector, max_gradient=max_gradient, lr=1.0)
        first = detector._new_network()
        moved = [a - b for a, b in zip(network.tuned.parameters(), first.tuned.parameters())]
        length = torch.cat([part.flatten() for part in moved]).double().norm()
        assert_allclose(length.item(), max_gradient, rtol=0.02, atol=1e-6)

    def test_compactness_falls_and_is_validated(self):
        detector = tiny(PANDA, lr=1.0, max_epochs=4, validation_fraction=0.2, **IMAGENET).fit(X)
        history = detector.history_["compactness"]
        for name in "compactness_loss", "valid_loss":
            values = history[:, name]
            assert values[-1] < values[0]
        assert len(detector.network_.bank.features) == 20, "those held out are remembered, too"


def test_compactness_is_zero_at_the_centre_alone():
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 6.0]])
    assert_allclose(compactness(x, x[0]), [0, 3])


class TestElasticWeights:
    def test_nothing_at_the_start_and_half_the_weighted_square_later(self):
        rng = np.random.default_rng(0)
        first, now, importance = ([torch.from_numpy(rng.random(3)), torch.from_numpy(rng.random((2, 2)))]
                                  for _ in range(3))  # fmt: skip
        assert elastic_loss(first, first, importance) == 0
        expected = sum((f * (b - a) ** 2).sum() for a, b, f in zip(first, now, importance)) / 2
        assert_allclose(elastic_loss(now, first, importance), expected)

    def test_importance_is_the_mean_square_of_derivatives(self):
        """Of a linear layer W x + b: |x|^2 of each input, spread over the features; 1 / m of each bias."""
        network = tiny(PANDA).fit(X)._new_network()
        m = len(network.centre)
        with seeded(0):
            inputs = torch.rand(64, m)
            weight, bias = fisher_information(network, torch.cat([inputs] * 2))
        squares = inputs.square().mean(0)
        assert_allclose(weight.sum(0), squares, rtol=0.1)
        assert_allclose(bias.sum(), 1, rtol=0.1)
        assert weight.std(0).max() < squares.max() / m

    def test_hold_weights_back(self):
        def change(ewc_weight):
            options = {"backbone": "filters", "max_gradient": 1e3, "lr": 0.1, "max_epochs": 5}
            detector = tiny(PANDA, ewc_weight=ewc_weight, **options).fit(X)
            history = detector.history_["compactness"]
            assert history[0]["elastic_loss"] < history[-1]["elastic_loss"] or not ewc_weight
            return (detector.network_.tuned.weight - torch.eye(len(detector.network_.centre))).norm().item()

        free, held, tight = change(0.0), change(0.1), change(3.0)
        assert tight < held < free

    def test_a_resumed_fit_has_the_same_importance(self, tmp_path):
        """It is drawn before the stage that is resumed."""
        whole = tiny(PANDA, ewc_weight=1.0, lr=1.0, max_epochs=3).fit(X)
        part = {"checkpoint_dir": tmp_path, "ewc_weight": 1.0, "lr": 1.0, "max_epochs": 3}

        class Killed(BaseException):
            pass

        validate, calls = Compactness.step, []

        def dies(self, network, x):
            calls.append(1)
            if len(calls) == 5:
                raise Killed
            validate(self, network, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Compactness, "step", dies)
            with pytest.raises(Killed):
                tiny(PANDA, **part).fit(X)
        assert_array_equal(tiny(PANDA, **part).fit(X).score_samples(NEW), whole.score_samples(NEW))


def test_the_frozen_part_is_applied_once_where_memory_allows(monkeypatch):
    calls, start = [], panda.PANDANetwork.start
    monkeypatch.setattr(
        panda.PANDANetwork, "start", lambda self, x: calls.append(torch.is_grad_enabled()) or start(self, x)
    )
    kept = tiny(PANDA, max_epochs=3).fit(X)
    n_kept = len(calls)
    monkeypatch.setattr(panda, "CACHE_BYTES", 0)
    again = tiny(PANDA, max_epochs=3).fit(X)
    assert len(calls) - n_kept > n_kept
    assert_allclose(again.score_samples(NEW), kept.score_samples(NEW), rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        IMAGENET | {"ewc_weight": 1.0},
        {"backbone": "filters"},
        {"backbone": tiny(AutoEncoder), "layers": None},
    ],
)
def test_is_saved_with_what_it_learned(options, tmp_path):
    detector = tiny(PANDA, lr=1.0, **options).fit(X)
    save(detector, tmp_path / "panda")
    assert_array_equal(load(tmp_path / "panda").score_samples(NEW), detector.score_samples(NEW))
    assert (
        detector.score_samples(NEW) != clone(detector).set_params(lr=1e-9).fit(X).score_samples(NEW)
    ).all()


def test_loads_where_the_network_of_photographs_was_not_in_memory(tmp_path):
    """As in a new process: its weights are not of the file, and do not count as such."""
    X = make_images()
    detector = PANDA(**IMAGENET, max_epochs=1).fit(X)
    save(detector, tmp_path / "file")
    imagenet.cache_clear()
    assert_array_equal(load(tmp_path / "file").score_samples(X), detector.score_samples(X))


def test_modes():
    check_modes(PANDA(max_epochs=1, **IMAGENET))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_neighbors": 0}, "'n_neighbors' parameter of PANDA must be"),
        ({"max_gradient": 0}, "'max_gradient' parameter of PANDA must be"),
        ({"ewc_weight": -1}, "'ewc_weight' parameter of PANDA must be"),
        ({"tuned": 3}, "'tuned' parameter of PANDA must be"),
        ({"tuned": (1,)}, r"tuned must be None for a backbone without weights, got \(1,\)"),
        ({"tuned": (), **IMAGENET}, r"tuned must be numbers from 1 to 6, .* got \(\)"),
        ({"tuned": (7,), **IMAGENET}, "tuned must be numbers from 1 to 6"),
        ({"tuned": (0,), **IMAGENET}, "tuned must be numbers from 1 to 6"),
        ({"tuned": ("a",), **IMAGENET}, "tuned must be numbers from 1 to 6"),
        ({"tuned": (6,), "layers": (5, 6), **IMAGENET}, "one of them not above 5, the first of layers"),
        ({"layers": (0, 6), **IMAGENET}, "layers must begin with stage 1 or later"),
        ({"tuned": (), "backbone": Convolutions()}, r"tuned must name modules with weights, got \(\)"),
        ({"tuned": ("head",), "backbone": Convolutions()}, "tuned must name modules .* got 'head'.*'first'"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(PANDA, **parameters).fit(X)


@pytest.mark.learning
def test_learns_what_varies_among_normal_images():
    """Brightness and contrast, which differ from chest to chest here, count for less than patches."""
    train, normal, foreign, _ = chests(32, 150, 60, 1 / 3)

    def varied(images, seed):
        rng = np.random.default_rng(seed)
        gain, offset = rng.uniform(0.4, 1, (len(images), 1, 1)), rng.uniform(0, 100, (len(images), 1, 1))
        return (images * gain + offset).clip(0, 255).astype(np.uint8)

    normal, foreign = varied(normal, 1), varied(foreign, 1)
    detector = PANDA(backbone="filters", grid=4, lr=10.0, max_epochs=30, random_state=0)
    trained = clone(detector).fit(varied(train, 0))
    untrained = detector.set_params(lr=1e-12, max_epochs=1).fit(varied(train, 0))
    before, after = (auroc(fitted, normal, foreign) for fitted in (untrained, trained))
    assert after > max(0.88, before + 0.03), (before, after)
