"""Layer extractors."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy.ndimage import binary_dilation
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly._random import seeded
from skanomaly.datasets import load_oct, make_oct
from skanomaly.layers import GraphLayerExtractor, UNetLayerExtractor
from skanomaly.metrics import dice
from skanomaly.networks.unet import UNet
from skanomaly.retina.comparison import NO_LAYER
from skanomaly.retina.unet import LayerTraining, PatchDiscriminator
from skanomaly.training._adversarial import generator_loss

KINDS = "normal", "intraretinal fluid", "subretinal fluid", "drusen"


def small(**parameters):
    return UNetLayerExtractor(**{"width": 2, "max_epochs": 1, "random_state": 0} | parameters)


@parametrize_with_checks([GraphLayerExtractor(), small()])
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", KINDS)
def test_boundaries_of_the_phantom(kind):
    """Within 2 pixels on normal scans, and within 4 beside lesions, for seeds 0 to 19."""
    errors = []
    for seed in range(20):
        scan = make_oct(1, kinds=(kind,), random_state=seed)
        found = GraphLayerExtractor().fit(scan.images).boundaries(scan.images)
        free = ~binary_dilation(scan.masks.any(1)[0], iterations=3)
        errors.append(np.abs(found - scan.boundaries)[:, :, free].mean())
    assert np.mean(errors) < 1
    assert np.max(errors) < (2 if kind == "normal" else 4)


@pytest.mark.parametrize("black_level", [0, 10, 20])
def test_a_black_vitreous_is_no_margin(black_level):
    scans = make_oct(12, kinds=KINDS[1:3], random_state=0)
    clipped = np.clip(scans.images.astype(int) - black_level, 0, None)
    extractor = GraphLayerExtractor().fit(clipped)
    assert dice(scans.masks, extractor.predict(clipped) == NO_LAYER) > 0.75


def test_grey_values_may_be_anywhere():
    scans = make_oct(3, random_state=0)
    for moved in scans.images + 1000.0, scans.images / 127.5 - 1:
        found = GraphLayerExtractor().fit(moved).boundaries(moved)
        assert np.abs(found - scans.boundaries).mean() < 0.7


def test_scans_are_flattened():
    scans = make_oct(4, random_state=0)
    extractor = GraphLayerExtractor().fit(scans.images)
    flat = extractor.flatten(scans.images)
    assert (flat.shape, flat.dtype) == (scans.images.shape, np.uint8)
    band = scans.boundaries[:, -2:].mean(1)
    moved = (128 * 5 / 8 + 0.5) - band
    rows = np.arange(128)[:, None]
    for k in range(4):
        back = np.take_along_axis(flat[k], (rows + moved[k].round().astype(int)).clip(0, 127), axis=0)
        assert np.abs(back[30:90].astype(float) - scans.images[k, 30:90]).mean() < 25, "the same scan, moved"
    after = extractor.boundaries(flat)[:, -2:].mean(1)
    assert after.std() < 1 < band.std()


def test_wrong_expectations_are_forgiven():
    scans = make_oct(5, random_state=0)
    found = GraphLayerExtractor(thickness=(5,) * 7).fit(scans.images).boundaries(scans.images)
    assert np.abs(found - scans.boundaries).mean() < 2


def test_layers_do_not_cross_and_agree_with_their_boundaries():
    scans = make_oct(6, kinds=KINDS, random_state=3)
    extractor = GraphLayerExtractor().fit(scans.images)
    boundaries, layers = extractor.boundaries(scans.images), extractor.predict(scans.images)
    assert (np.diff(boundaries, axis=1) >= 0).all()
    whole = GraphLayerExtractor(gaps=False).fit(scans.images).predict(scans.images)
    assert (np.diff(whole, axis=1) >= 0).all(), "in depth order"
    assert_array_equal(layers[layers >= 0], whole[layers >= 0])
    assert layers.max() == extractor.n_layers_ + 1 == 8
    assert (layers == scans.layers)[~scans.masks].mean() > 0.95


def test_fluid_is_a_gap_in_the_layers_and_shadows_are_not():
    scans = make_oct(20, kinds=("normal", *KINDS), random_state=4)
    gaps = GraphLayerExtractor().fit(scans.images).predict(scans.images) == NO_LAYER
    fluid = np.isin(scans.kind, ("intraretinal fluid", "subretinal fluid"))
    assert dice(scans.masks[fluid], gaps[fluid]) > 0.7
    assert gaps[~fluid].mean() < 0.001, "of normal scans and drusen"


def test_real_scans_in_three_layers():
    """Margins of registered scans and a thinner retina do not lead astray, nor does disease."""
    scans = load_oct().images
    extractor = GraphLayerExtractor(thickness=(24, 16, 12), polarity=(1, -1, 1, -1), gaps=False).fit(scans)
    boundaries, layers = extractor.boundaries(scans), extractor.predict(scans)
    assert (np.diff(boundaries, axis=1).mean(2) > 2).all()
    contrast = []
    for scan, found in zip(scans, layers):
        vitreous, inner, nuclear, outer = (
            np.median(scan[(found == layer) & (scan < 250)]) for layer in range(4)
        )
        assert vitreous < min(inner, nuclear)
        contrast.append(outer / max(inner, nuclear))
    assert min(contrast) > 1
    assert np.median(contrast) > 1.3


def test_margins_are_left_out():
    scans = make_oct(3, random_state=0)
    registered = scans.images.copy()
    for k in range(registered.shape[2]):
        registered[:, : k // 16, k] = 255
        registered[:, 122 - k // 10 :, k] = 255
    registered[:, 125:] = 0
    found = GraphLayerExtractor().fit(registered).boundaries(registered)
    assert np.abs(found - scans.boundaries).mean() < 1


def test_scans_are_judged_each_by_itself_and_in_parallel():
    scans = make_oct(3, random_state=0).images
    extractor = GraphLayerExtractor().fit(scans)
    whole = extractor.predict(scans)
    assert_array_equal(whole[1:2], extractor.predict(scans[1:2]))
    assert_array_equal(whole, extractor.set_params(n_jobs=2).predict(scans))
    assert_array_equal(whole, GraphLayerExtractor().fit(scans).predict(scans / 1000.0), "of any unit")


@pytest.mark.parametrize("shape", [(2, 20, 30), (2, 7, 1), (2, 1, 9), (3, 40)])
def test_odd_shapes(shape):
    X = np.random.default_rng(0).uniform(size=shape)
    layers = GraphLayerExtractor().fit(X).predict(X)
    assert layers.shape == (*shape, 1)[: max(3, len(shape))]


@pytest.mark.learning
def test_the_unet_learns_layers():
    train, test = make_oct(16, size=64, random_state=0), make_oct(10, size=64, random_state=1)
    trained, untrained = (
        UNetLayerExtractor(max_epochs=n, batch_size=4, lr=lr, random_state=0).fit(train.images, train.layers)
        for n, lr in ((16, 1e-2), (1, 1e-12))
    )
    right, before = ((one.predict(test.images) == test.layers).mean() for one in (trained, untrained))
    assert right > 0.8
    assert before < 0.5
    assert trained.n_layers_ == 7


def test_equal_seeds_give_equal_unets():
    scans = make_oct(12, size=32, random_state=0)
    first, again, other = (
        small(max_epochs=2, random_state=seed).fit(scans.images, scans.layers).network_.state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["value.weight"], other["value.weight"])


@pytest.mark.learning
def test_the_unet_learns_gaps():
    scans = make_oct(16, kinds=KINDS[2:3], size=64, severity=1.0, random_state=0)
    labels = np.where(scans.masks, NO_LAYER, scans.layers.astype(int))
    extractor = UNetLayerExtractor(max_epochs=20, batch_size=4, lr=1e-2, random_state=0)
    extractor.fit(scans.images, labels)
    found = extractor.predict(scans.images)
    assert extractor.n_layers_ == 7
    assert (found.min(), found.max()) == (-1, 8)
    assert dice(scans.masks, found == NO_LAYER) > 0.7


def test_adaptation_reaches_the_extractor():
    """The maps go to the discriminator as probabilities, through which a gradient comes back."""
    scans = make_oct(8, size=32, random_state=0)
    target = np.clip(scans.images.astype(float) * 0.5 + 60, 0, 255)
    plain = small().fit(scans.images, scans.layers)
    adapted = small(adversarial_weight=10.0).fit(scans.images, scans.layers, X_target=target)
    assert set(plain.history_["layers"][-1]) & set(LayerTraining.losses) == {"train_loss"}
    assert set(adapted.history_["layers"][-1]) >= set(LayerTraining.losses)
    assert not torch.equal(plain.network_.value.weight, adapted.network_.value.weight)
    with seeded(0):
        unet, discriminator = UNet((1, 32, 32), 9, width=2), PatchDiscriminator((9, 32, 32), width=2)
    generator_loss(discriminator(unet(torch.rand(2, 1, 32, 32)).softmax(1))).backward()
    assert all(part.grad is not None for part in unet.parameters())
    assert unet.value.weight.grad.abs().sum() > 0


def test_the_unet_is_that_of_pnet():
    with seeded(0):
        net = UNet((1, 224, 224), 12, width=64)
    downs = [block[0].out_channels for block in net.down]
    assert downs == [64, 128, 256, 512, 512]
    assert [(block[0].in_channels, block[0].out_channels) for block in net.up] == [
        (1024, 256),
        (512, 128),
        (256, 64),
        (128, 64),
    ]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda X, y: GraphLayerExtractor(polarity=(1, -1)).fit(X), ValueError, "one sign more"),
        (lambda X, y: GraphLayerExtractor(polarity=(2,) * 8).fit(X), ValueError, "1 and -1 only"),
        (lambda X, y: GraphLayerExtractor(sigma=(1,)).fit(X), ValueError, "sigma must hold two numbers"),
        (lambda X, y: GraphLayerExtractor(thickness=(), polarity=(1,)).fit(X), ValueError, "one sign more"),
        (lambda X, y: GraphLayerExtractor(median_size=0).fit(X), ValueError, "'median_size' parameter"),
        (lambda X, y: GraphLayerExtractor().fit(X[..., None]), ValueError, "X must hold grey scans"),
        (lambda X, y: GraphLayerExtractor().predict(X), NotFittedError, "not fitted yet"),
        (lambda X, y: small().fit(X, None), ValueError, "take GraphLayerExtractor where there are none"),
        (lambda X, y: small().fit(X, y[:, :5]), ValueError, "y must have the shape of the scans"),
        (
            lambda X, y: small().fit(X, y + 0.5),
            ValueError,
            "whole numbers, .* from 0, and -1 in gaps",
        ),
        (lambda X, y: small().fit(X, 8 - y), ValueError, "layers must be numbered by depth, but layer 1"),
        (lambda X, y: small().fit(X, y).predict(X[:, :, :9]), ValueError, "scans of the fitted size"),
        (
            lambda X, y: small().fit(X, y, X_target=X[:, :, :9]),
            ValueError,
            "X_target .* scans of the fitted size",
        ),
    ],
)
def test_bad_input(make, error, message):
    scans = make_oct(3, size=32, random_state=0)
    with pytest.raises(error, match=message):
        make(scans.images, scans.layers.astype(float))
