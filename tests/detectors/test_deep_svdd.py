from functools import partial

import numpy as np
import pytest
import torch
from foreign import auroc, chests
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar
from sklearn.base import clone
from steps import assert_descends, run_step, watch_stages
from torch import nn

from skanomaly import DeepSVDD
from skanomaly._random import seeded
from skanomaly.detectors.deep_svdd import WARM_UP, SphereTraining
from skanomaly.networks.hypersphere import Hypersphere, boundary_of, centre_of, soft_boundary
from skanomaly.testing import make_images, tiny

SOFT = {"objective": "soft_boundary"}


def codes_of(detector, X):
    with torch.no_grad():
        return detector.network_.encoder(detector._open(X)[:]).numpy()


def sphere(shape=(1, 16, 16), n=12):
    """Network with a centre and images, the same each time."""
    with seeded(0):
        network, x = Hypersphere(shape, 3, width=2), torch.rand(n, *shape)
        network.centre.copy_(torch.tensor([0.3, -0.2, 0.1]))
    return network, x


@pytest.mark.parametrize("options", [{}, SOFT], ids=str)
def test_the_score_is_the_squared_distance_from_the_centre_minus_the_squared_radius(options):
    X = make_images((20, 20, 14))
    detector = tiny(DeepSVDD, **options).fit(X)
    distance = ((codes_of(detector, X) - detector.network_.centre.numpy()) ** 2).sum(1)
    boundary = float(detector.network_.boundary)
    assert (boundary > 0) == bool(options)
    assert_allclose(detector.score_components(X)["distance"], distance, rtol=1e-4)
    assert_allclose(-detector.score_samples(X), distance - boundary, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("nu", [0.05, 0.3, 0.51, 1.0])
@pytest.mark.parametrize("n", [7, 20])
def test_at_most_a_share_nu_of_the_training_images_is_outside(nu, n):
    """The property of nu, and that no smaller radius has it."""
    X = make_images((n, 16, 16))
    detector = tiny(DeepSVDD, objective="soft_boundary", nu=nu).fit(X)
    scores = -detector.score_samples(X)
    assert (scores > 0).mean() <= nu
    assert (scores >= 0).mean() > nu or nu == 1


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_the_best_boundary_is_a_quantile(distance, nu):
    """The loss by its boundary is least where the radius after training is put."""
    distance = torch.tensor(distance, dtype=torch.float64)
    loss = partial(soft_boundary, distance, nu=nu)
    chosen = np.quantile(distance.numpy(), 1 - nu, method="inverted_cdf")
    least = minimize_scalar(lambda b: float(loss(boundary=b)), bounds=(0, 101), method="bounded").fun
    assert float(loss(boundary=chosen)) <= least + 1e-6 * (1 + least)


def test_the_soft_boundary_by_hand():
    distance = torch.tensor([0.5, 2.0, 5.0])
    assert_allclose(soft_boundary(distance, 1.5, 0.25), 1.5 + (0.5 + 3.5) / 3 / 0.25)
    assert_allclose(soft_boundary(distance, 0.0, 1.0), distance.mean())
    assert_allclose(boundary_of(distance, 0.25), np.quantile(np.sqrt([0.5, 2, 5]), 0.75) ** 2, rtol=1e-6)


def test_the_centre_is_a_mean_that_keeps_away_from_zero():
    codes = torch.tensor([[1.0, 0.05, -0.2, 0.0, -0.3], [3.0, 0.05, 0.1, 0.0, -0.1]])
    assert_allclose(centre_of(codes), [2.0, 0.1, -0.1, 0.1, -0.2])


def test_the_centre_is_that_of_the_pretrained_codes_and_stays():
    X, found = make_images((20, 16, 16)), {}

    def look(stage, training, network, images, **options):
        codes = network.eval().encoder(images[:]).detach()
        found[stage] = centre_of(codes), network.centre.clone()

    with pytest.MonkeyPatch.context() as monkeypatch:
        watch_stages(monkeypatch, DeepSVDD, look)
        detector = tiny(DeepSVDD, max_epochs=5, latent_size=16, width=8, lr=0.01).fit(X)
    expected, set_before = found["sphere"]
    assert_allclose(set_before, expected, rtol=1e-4, atol=1e-6)
    assert_array_equal(detector.network_.centre, set_before)
    assert not np.allclose(found["pretraining"][0], expected)


def test_no_layer_can_ignore_an_image():
    """No bias, no offset, no bounded activation, no trained centre: the sphere cannot collapse."""
    network, x = sphere()
    assert not [name for name, _ in network.named_parameters() if "bias" in name or "centre" in name]
    bounded = nn.Sigmoid, nn.Tanh, nn.ReLU6, nn.Hardtanh, nn.Softsign, nn.Hardsigmoid
    encoder = list(network.encoder.modules())
    assert not [module for module in encoder if isinstance(module, bounded)]
    assert not [module for module in encoder if getattr(module, "affine", False)]
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.zero_()
        # Weights of 0 give the code 0, which lies at a distance from any centre.
        network.centre.copy_(centre_of(network.encoder(x)))
        assert (network.distance(x) >= 0.01 * len(network.centre) * 0.999).all()


@pytest.mark.parametrize("nu", [None, 0.3])
def test_a_step_moves_the_encoder_down_the_loss(nu):
    network, x = sphere()
    network.boundary.fill_(0.2)

    def loss(network, x):
        distance = (network.encoder(x) - torch.tensor([0.3, -0.2, 0.1])).square().sum(1)
        outside = torch.relu(distance - 0.2)
        return distance.mean() if nu is None else 0.2 + outside.mean() / 0.3

    centre = network.centre.clone()
    assert_descends(SphereTraining, network, x, loss, ["encoder"], nu=nu)
    assert torch.equal(network.centre, centre)
    _, moved = run_step(SphereTraining, network, x, nu=nu)
    assert moved == {"encoder"}


def test_the_radius_waits_for_the_warm_up_and_then_follows_the_batches(monkeypatch):
    seen = []

    class Watched(SphereTraining):
        def step(self, network, x):
            super().step(network, x)
            seen.append((len(self.history), float(network.boundary)))

    monkeypatch.setattr("skanomaly.detectors.deep_svdd.SphereTraining", Watched)
    tiny(DeepSVDD, max_epochs=30, **SOFT).fit(make_images((16, 16, 16)))
    waited = [boundary for epoch, boundary in seen if epoch <= WARM_UP * 30]
    after = [boundary for epoch, boundary in seen if epoch > WARM_UP * 30]
    assert waited == [0.0] * 4  # two epochs of two batches
    assert min(after) > 0
    assert len(set(after)) > 1


def test_pretraining_trains_the_decoder_and_may_be_left_out():
    X = make_images()
    with seeded(0):
        untrained = tiny(DeepSVDD)._build((1, 16, 16))
    fitted = {epochs: tiny(DeepSVDD, pretraining_epochs=epochs).fit(X) for epochs in (0, 1)}
    assert list(fitted[0].history_) == ["sphere"]
    assert list(fitted[1].history_) == ["pretraining", "sphere"]
    for epochs, detector in fitted.items():
        same = detector.network_.decoder.state_dict()
        shapes = {name: value.shape for name, value in untrained.decoder.state_dict().items()}
        assert shapes == {name: value.shape for name, value in same.items()}
        running = [value for name, value in same.items() if name.endswith("num_batches_tracked")]
        assert all((value > 0) == bool(epochs) for value in running)


def test_weight_decay_shrinks_the_weights():
    X = make_images()
    options = {"max_epochs": 30, "lr": 0.01, "pretraining_epochs": 0}
    free, decayed = (
        sum(float(p.detach().square().sum()) for p in fitted.network_.encoder.parameters())
        for fitted in (tiny(DeepSVDD, weight_decay=weight, **options).fit(X) for weight in (0.0, 1.0))
    )
    assert decayed < 0.9 * free


@given(
    height=st.integers(1, 40), width=st.integers(8, 40), n_channels=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_images_of_any_size_are_encoded_and_decoded(height, width, n_channels, seed):
    shape = n_channels, height, width
    with seeded(seed), torch.no_grad():
        network, x = Hypersphere(shape, 5, width=2).eval(), torch.rand(3, *shape)
        assert network.encoder(x).shape == (3, 5)
        assert network(x).shape == x.shape


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"objective": "hard"}, "'objective' parameter of DeepSVDD must be a str among"),
        ({"nu": 0.0}, "'nu' parameter of DeepSVDD must be a float"),
        ({"nu": 1.5}, "'nu' parameter of DeepSVDD must be a float"),
        ({"weight_decay": -1.0}, "'weight_decay' parameter of DeepSVDD must be a float"),
        ({"pretraining_epochs": -1}, "'pretraining_epochs' parameter of DeepSVDD must be an int"),
        ({"n_levels": 5}, "at most 4 for images of 16 x 16.*got 5; lower n_levels"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(DeepSVDD, **parameters).fit(make_images())


def test_there_is_no_map_and_no_reconstruction():
    detector = tiny(DeepSVDD).fit(make_images())
    with pytest.raises(TypeError, match="DeepSVDD judges whole images and has no anomaly map"):
        detector.anomaly_map(make_images())
    assert not hasattr(detector, "reconstruct")  # its encoder has left the decoder behind


@pytest.mark.learning
@pytest.mark.parametrize("objective", ["one_class", "soft_boundary"])
def test_learns_what_a_chest_looks_like(objective):
    train, normal, foreign, _ = chests(16, 150, 60, 3 / 8)
    detector = DeepSVDD(objective=objective, batch_size=16, lr=1e-3, max_epochs=20, random_state=0)
    detector.set_params(pretraining_epochs=20)
    untrained = clone(detector).set_params(pretraining_epochs=0, max_epochs=1, lr=1e-12).fit(train)
    before, after = (auroc(fitted, normal, foreign) for fitted in (untrained, detector.fit(train)))
    assert after >= max(0.70, before + 0.10), (before, after)
