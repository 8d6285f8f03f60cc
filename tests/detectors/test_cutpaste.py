"""CutPaste: its classes, its network and its two Gaussians by hand, and that it learns."""

import math

import numpy as np
import pytest
import torch
from foreign import check_learns
from frozen import enlarged_maps, near_means
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.covariance import LedoitWolf
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from steps import assert_descends, run_step
from torch import nn
from torch.nn import functional as F

from skanomaly import CutPaste, FeatureGaussian, PaDiM
from skanomaly._random import seeded
from skanomaly.detectors.cutpaste import KINDS, Classification, CutPasteNetwork, Encoder
from skanomaly.persistence import load, save
from skanomaly.synthesis import cutpaste
from skanomaly.testing import make_images, tiny


def network(n_classes=3, shape=(1, 16, 16)):
    with seeded(0):
        encoder = Encoder(shape, width=2)
        return CutPasteNetwork(shape, n_classes, 10, encoder, hidden_size=8, n_layers=1)


def known_weights(image_shape):
    """A network whose weights were learned elsewhere."""
    with seeded(7):
        return nn.Sequential(nn.Conv2d(image_shape[0], 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU())


@pytest.mark.parametrize("patches", sorted(KINDS))
def test_a_step_is_that_of_the_cross_entropy(patches):
    x, kinds = torch.rand(6, 1, 16, 16), KINDS[patches]
    n_classes = 1 + len(kinds)

    def loss(net, x):
        images = [x] + [cutpaste(x, None, None, kind=kind)[0] for kind in kinds]
        logits = net.logits(net.encoder(torch.cat(images))[-1].mean((2, 3)))
        p = logits.softmax(1).view(n_classes, len(x), n_classes)
        return -torch.stack([p[k, :, k] for k in range(n_classes)]).log().mean()

    parts = "encoder", "head", "classifier"
    assert_descends(Classification, network(n_classes), x, loss, parts, kinds=kinds)
    losses, moved = run_step(Classification, network(n_classes), x, kinds=kinds)
    assert moved == set(parts)
    assert losses["train_loss"] > 0


def test_three_classes_for_three_ways():
    found = {name: tiny(CutPaste, patches=name).fit(make_images()).network_.classifier for name in KINDS}
    assert {name: layer.out_features for name, layer in found.items()} == {
        "normal": 2,
        "scar": 2,
        "union": 2,
        "3-way": 3,
    }


@given(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)), st.integers(0, 99))
def test_network_takes_images_of_any_size(shape, seed):
    net, x = network(shape=shape).eval(), torch.rand(3, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        features, maps = net(x)
        assert features.shape == (3, net.density.image.mean.numel())
        assert maps.shape[2:] == net.density.places.size
        pooled = net.encoder(x)[-1].numpy().mean((2, 3))
        assert_allclose(features, pooled, rtol=1e-4, atol=1e-5, err_msg="as in training")
        for own, whole in zip(net(x[:1]), (features, maps)):
            assert_allclose(own, whole[:1], rtol=1e-3, atol=1e-4, err_msg="each image by itself")
        assert net.logits(features).shape == (3, 3)


def test_gaussian_of_features_against_scikit_learn():
    X, new = make_images((60, 16, 16)), make_images((9, 16, 16), seed=1)
    detector = tiny(CutPaste, width=4).fit(X)

    def features(images):
        with torch.no_grad():
            return detector.network_(torch.from_numpy(images / 255).float()[:, None])[0].double().numpy()

    known = features(X)
    # Units that are dead have no deviation.
    deviation = np.where(known.std(0) > 0, known.std(0), 1)
    gaussian = LedoitWolf().fit(known / deviation)
    expected = gaussian.mahalanobis(features(new) / deviation)
    assert_allclose(-detector.score_samples(new), expected, rtol=2e-3)
    components = detector.score_components(new)
    assert_allclose(components["distance"], -detector.score_samples(new), rtol=1e-6)
    with torch.no_grad():
        logits = detector.network_.logits(torch.from_numpy(features(new)).float()).numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert_allclose(components["probability"], 1 - p[:, 0], rtol=1e-4)


def test_map_by_hand():
    X, new = make_images((60, 16, 16)), make_images((9, 16, 16), seed=1)
    detector = tiny(CutPaste, width=4).fit(X)

    def vectors(images):
        with torch.no_grad():
            first, second = detector.network_.encoder(torch.from_numpy(images / 255).float()[:, None])
        joint = torch.cat([F.avg_pool2d(first, 2), second], 1).double().numpy()
        return near_means(joint).transpose(0, 2, 3, 1).reshape(len(images), 16, -1)

    known, asked = vectors(X), vectors(new)
    deviation = known.reshape(-1, known.shape[2]).std(0)
    live = deviation > 0
    known, asked = known[..., live] / deviation[live], asked[..., live] / deviation[live]
    maps = np.empty((9, 16))
    for k in range(16):
        # A turn to principal components changes no distance, as long as all of them are kept.
        covariance = np.cov(known[:, k].T, bias=True) + 0.01 * np.eye(live.sum())
        difference = asked[:, k] - known[:, k].mean(0)
        maps[:, k] = np.sqrt(np.einsum("ni,ij,nj->n", difference, np.linalg.inv(covariance), difference))
    expected = enlarged_maps(maps.reshape(9, 4, 4), (16, 16), 0.03)
    assert_allclose(detector.anomaly_map(new), expected, rtol=5e-3)


def test_learning_rate_falls_along_a_cosine():
    rates = []
    net = network()
    training = Classification(
        net, stage="test", batch_size=4, verbose=0, kinds=("normal", "scar"), max_epochs=10, lr=0.5
    )
    nothing = {"train_loss": torch.zeros(())}
    training.step = lambda net, x: (
        rates.append(training.optimizer_.param_groups[0]["lr"]),
        training.record(**nothing),
    )

    class Batches:
        held_out = None

        def epoch(self, batch_size):
            yield torch.zeros(4, 1, 16, 16)

    training.run(Batches())
    assert_allclose(rates, [0.25 * (1 + math.cos(math.pi * k / 10)) for k in range(10)])


def test_gradient_descent_of_the_paper():
    kept = []

    class Look(Callback):
        def on_train_begin(self, net, **options):
            kept.append(net.optimizer_)

    tiny(CutPaste, callbacks=[Look()]).fit(make_images())
    group = kept[0].param_groups[0]
    assert isinstance(kept[0], torch.optim.SGD)
    assert (group["momentum"], group["weight_decay"]) == (0.9, 3e-5)


def test_validation_has_the_same_patches_each_time():
    training = Classification(network(), stage="test", kinds=("normal",), max_epochs=1)
    net, x = network(2).eval(), torch.rand(8, 1, 16, 16)
    with seeded(1), torch.no_grad():
        assert training.validate(net, x) == training.validate(net, x)
        assert training.loss(net, x) != training.loss(net, x)


def test_the_gaussian_is_of_the_images_that_were_trained_on():
    detector = tiny(CutPaste, validation_fraction=0.25).fit(make_images((20, 16, 16)))
    assert detector.n_images_ == detector.network_.density.image.n_images == 15
    assert "valid_loss" in detector.history_["classification"][0]


def test_a_backbone_is_trained_on(tmp_path):
    X = make_images()
    options = {"backbone": known_weights, "random_state": 3}
    same, trained = (tiny(CutPaste, lr=lr, **options).fit(X) for lr in (1e-12, 0.01))
    known = known_weights((1, 16, 16))[0].weight
    assert torch.equal(same.network_.encoder.module[0].weight, known)
    moved = trained.network_.encoder.module[0].weight
    assert not torch.equal(moved, known)
    assert_allclose(moved.detach(), known.detach(), atol=0.2, err_msg="from where it was")
    assert trained.network_.density.image.mean.shape == (5,)
    assert trained.anomaly_map(X).shape == X.shape
    save(trained, tmp_path / "detector.skanomaly", leave_out=["backbone"])
    loaded = load(tmp_path / "detector.skanomaly", backbone=known_weights)
    assert np.array_equal(loaded.score_samples(X), trained.score_samples(X))


def test_its_features_serve_other_detectors():
    """A fitted one is a backbone of FeatureGaussian and PaDiM."""
    X = make_images((30, 16, 16))
    fitted = FrozenEstimator(tiny(CutPaste).fit(X))
    for other in (FeatureGaussian, PaDiM):
        detector = other(backbone=fitted).fit(X)
        assert len(set(detector.score_samples(X))) == 30
        assert detector.backbone_["name"] == "CutPaste"


@pytest.mark.parametrize(
    ("backbone", "error", "message"),
    [
        (lambda shape: "resnet", TypeError, "backbone must be a function that makes a new torch module"),
        (
            nn.Conv2d(1, 4, 3),
            TypeError,
            r"backbone must be a function that makes a new torch module .*, got Conv2d\(1, 4",
        ),
        (
            lambda shape: nn.Flatten(),
            ValueError,
            r"backbone must give maps \(n, c, h, w\), got \[\(1, 256\)\]",
        ),
    ],
)
def test_bad_backbones(backbone, error, message):
    with pytest.raises(error, match=message):
        tiny(CutPaste, backbone=backbone).fit(make_images())


@pytest.mark.parametrize("parameters", [{"patches": "scar"}, {"n_layers": 3}, {"hidden_size": 8}], ids=str)
def test_options_are_heard(parameters):
    X = make_images()
    plain, other = (tiny(CutPaste, **o).fit(X).score_samples(X) for o in ({}, parameters))
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"patches": "2-way"}, "'patches' parameter of CutPaste must be a str among"),
        ({"n_layers": 0}, "'n_layers' parameter of CutPaste must be an int in the range"),
        ({"width": 0}, "'width' parameter of CutPaste"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(CutPaste, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(CutPaste(width=4, hidden_size=32, max_epochs=20, random_state=0), map_ratio=1.1)
