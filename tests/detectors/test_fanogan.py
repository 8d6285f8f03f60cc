import warnings

import numpy as np
import pytest
import torch
from foreign import check_learns
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback

from skanomaly import FAnoGAN
from skanomaly._losses import gradient_penalty
from skanomaly._random import seeded
from skanomaly.detectors.fanogan import FAnoGANNetwork, Inversion
from skanomaly.testing import make_images, tiny
from skanomaly.training import Wasserstein

PARTS = "generator", "critic", "encoder"


def network(latent_size=6, output="tanh", prior="normal", bound=1.0):
    with seeded(0):
        return FAnoGANNetwork(
            (1, 16, 16), latent_size, width=2, n_levels=None, prior=prior, output=output, bound=bound
        )


def snapshot(network):
    return {part: [v.clone() for v in getattr(network, part).parameters()] for part in PARTS}


def moved(network, before):
    after = snapshot(network)
    return {p for p in PARTS if any(not torch.equal(a, b) for a, b in zip(before[p], after[p]))}


def stage(training, network, **options):
    options = {"lr": 1e-3, "max_epochs": 1, "batch_size": 8, "verbose": 0, "stage": "test"} | options
    training = training(network, **options)
    training.initialize()
    training.totals_, training.batch_size_ = {}, 8
    return training


def test_who_moves_in_the_gan():
    net, x = network(), torch.rand(8, 1, 16, 16)
    training = stage(Wasserstein, net, n_critic=3)
    for step in range(1, 7):
        before, training.n_steps = snapshot(net), step
        training.step(net, x)
        assert moved(net, before) == ({"critic", "generator"} if step % 3 == 0 else {"critic"})
    assert all(p.grad is None for p in net.encoder.parameters())


def test_critic_and_generator_losses():
    """Recomputed from the same draws, before any step."""
    net, x = network(), torch.rand(8, 1, 16, 16)
    training = stage(Wasserstein, net, n_critic=1, penalty_weight=3.0, lr=1e-12)
    with seeded(4):
        training.step(net, x)
    losses = {name: float(total) / count for name, (total, count) in training.totals_.items()}
    with seeded(4):
        fake = net.generator(net.draw_codes(8)).detach()
        penalty = gradient_penalty(net.critic, x, fake)
        again = net.generator(net.draw_codes(8))
    gap = net.critic(fake).mean() - net.critic(x).mean()
    assert_allclose(losses["wasserstein_distance"], -gap.detach(), rtol=1e-4)
    assert_allclose(losses["critic_loss"], (gap + 3 * penalty).detach(), rtol=1e-4)
    assert_allclose(losses["generator_loss"], -net.critic(again).mean().detach(), rtol=1e-4)


@pytest.mark.parametrize("kind", ["izi_f", "izi", "ziz"])
def test_only_the_encoder_learns_to_invert(kind):
    X = make_images()

    class Look(Callback):
        def on_train_begin(self, net, **kwargs):
            self.before = {k: v.clone() for k, v in net.module_.state_dict().items()}

        def on_epoch_end(self, net, **kwargs):
            after = net.module_.state_dict()
            changed = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, self.before[k])}
            # Buffers too: a generator in train mode would move its statistics.
            assert changed == {"encoder"}
            assert not net.module_.generator.training
            assert net.module_.encoder.training

    tiny(FAnoGAN, encoder_training=kind, encoder_output="linear", callbacks={"encoder": [Look()]}).fit(X)


def test_inversion_losses():
    net, x = network().eval(), torch.rand(8, 1, 16, 16)
    y = net.generator(net.encoder(x))
    pixels = ((y - x) ** 2).mean()
    features = ((net.critic.features(y) - net.critic.features(x)) ** 2).mean()
    loss = {
        (kind, weight): Inversion(net, stage="test", kind=kind, feature_weight=weight).validate(net, x).item()
        for kind, weight in [("izi", 1.0), ("izi_f", 0.0), ("izi_f", 2.5)]
    }
    assert loss["izi", 1.0] == loss["izi_f", 0.0]
    assert_allclose(loss["izi", 1.0], pixels.item(), rtol=1e-5)
    assert_allclose(loss["izi_f", 2.5], (pixels + 2.5 * features).item(), rtol=1e-5)
    with seeded(1):
        ziz = Inversion(net, stage="test", kind="ziz", feature_weight=1.0).loss(net, x).item()
    with seeded(1):
        z = net.draw_codes(8)
    assert_allclose(ziz, ((net.encoder(net.generator(z)) - z) ** 2).mean().item(), rtol=1e-5)


@given(st.lists(st.integers(0, 2**31), min_size=2, max_size=2))
def test_held_out_images_meet_the_same_codes_each_epoch(seeds):
    """Early stopping by ziz compares encoders, not draws; the draws of training go on as before."""
    net, x, found = network().eval(), torch.rand(8, 1, 16, 16), []
    inversion = Inversion(net, stage="test", kind="ziz", feature_weight=1.0)
    for seed in seeds:
        with seeded(seed):
            found.append((inversion.validate(net, x).item(), torch.rand(1).item()))
        with seeded(seed):
            assert torch.rand(1).item() == found[-1][1]
    assert found[0][0] == found[1][0]


def test_floor_of_ziz_with_a_tanh_encoder():
    """The best code in [-1, 1] for z is its clip: E(|z| - 1)_+^2 = 2 (2 Q(1) - phi(1)) = 0.15068."""
    net = network(latent_size=200_000)
    net.encoder.forward = lambda x: net.codes.clamp(-1, 1)
    net.generator.forward = lambda z: setattr(net, "codes", z)
    with seeded(0):
        loss = Inversion(net, stage="test", kind="ziz", feature_weight=1.0).validate(net, torch.zeros(8, 1))
    assert_allclose(loss, 0.15068, atol=1e-3)


def test_the_score_from_its_parts():
    X = make_images((9, 16, 16))
    for kind, weight in (("izi_f", 2.5), ("izi", 2.5), ("ziz", 2.5)):
        detector = tiny(FAnoGAN, encoder_training=kind, encoder_output="linear", feature_weight=weight).fit(X)
        parts = detector.score_components(X)
        assert set(parts) == {"residual", "feature", "latent", "critic"}
        expected = parts["residual"] + (weight * parts["feature"] if kind == "izi_f" else 0)
        assert_allclose(-detector.score_samples(X), expected, rtol=1e-5)
        residual = ((detector.reconstruct(X) - X) / 255 * 2) ** 2
        assert_allclose(detector.anomaly_map(X), residual, rtol=1e-3, atol=1e-6)
        assert_allclose(parts["residual"], residual.mean((1, 2)), rtol=1e-4)
        x, net = torch.from_numpy(X / 127.5 - 1).float()[:, None], detector.network_
        with torch.no_grad():
            y = net.generator(net.encoder(x))
            feature = ((net.critic.features(x) - net.critic.features(y)) ** 2).mean(1)
            latent = ((net.encoder(x) - net.encoder(y)) ** 2).mean(1)
            value = net.critic(x)
        assert_allclose(parts["feature"], feature, rtol=1e-4)
        assert_allclose(parts["latent"], latent, rtol=1e-3)
        # The critic score is -D(x) but for one constant, the mean over the training images.
        assert_allclose(parts["critic"] + value.numpy(), value.mean(), rtol=1e-3)


def test_a_tanh_encoder_for_ziz_warns():
    X = make_images()
    with pytest.warns(UserWarning, match="encoder_output='linear' or prior='uniform'"):
        tiny(FAnoGAN, encoder_training="ziz").fit(X)
    with pytest.warns(UserWarning, match="encoder_output='clip' cannot reach"):
        tiny(FAnoGAN, encoder_training="ziz", encoder_output="clip").fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(FAnoGAN, encoder_training="ziz", prior="uniform").fit(X)
        tiny(FAnoGAN, encoder_training="ziz", encoder_output="linear").fit(X)


def test_priors():
    with seeded(0):
        normal, uniform = network(1000).draw_codes(50), network(1000, prior="uniform").draw_codes(50)
    assert_allclose([normal.mean(), normal.std(), normal.abs().max() > 3], [0, 1, 1], atol=0.02)
    assert_allclose([uniform.mean(), uniform.var()], [0, 1 / 3], atol=0.02)
    assert uniform.abs().max() <= 1


def test_codes_images_and_the_line_between():
    X = make_images((6, 16, 12, 3)) // 2 + 40
    detector = tiny(FAnoGAN, latent_size=5).fit(X)
    codes = detector.encode(X)
    assert codes.shape == (6, 5)
    assert np.abs(codes).max() <= 1
    assert_allclose(detector.decode(codes), detector.reconstruct(X), rtol=1e-4, atol=1e-3)
    assert detector.sample(40).shape == (40, 16, 12, 3)
    assert_array_equal(detector.sample(3, random_state=1), detector.sample(3, random_state=1))
    assert not np.array_equal(detector.sample(3, random_state=1), detector.sample(3, random_state=2))
    line = detector.interpolate(X[0], X[1], 5)
    assert line.shape == (5, 16, 12, 3)
    assert_allclose(line[[0, -1]], detector.reconstruct(X[:2]), rtol=1e-4, atol=1e-3)
    middle = detector.decode((codes[:1] + codes[1:2]) / 2)
    assert_allclose(line[2:3], middle, rtol=1e-4, atol=1e-3)
    assert_allclose(detector.interpolate(codes[0], codes[1], 5), line, rtol=1e-4, atol=1e-3)
    assert 0 <= line.min() <= line.max() <= 255
    with pytest.raises(ValueError, match=r"\(n, latent_size=5\), got \(2, 4\)"):
        detector.decode(np.zeros((2, 4)))


def test_the_encoder_stays_in_its_bounds():
    X = make_images()
    for output in "tanh", "clip":
        codes = tiny(FAnoGAN, encoder_output=output, encoder_bound=0.01).fit(X).encode(X)
        assert np.abs(codes).max() <= 0.01
    free = tiny(FAnoGAN, encoder_output="linear").fit(X)
    assert np.abs(free.encode(X)).max() > 0.01


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prior": "cauchy"}, "'prior' parameter of FAnoGAN"),
        ({"encoder_training": "zizi"}, "'encoder_training' parameter of FAnoGAN"),
        ({"n_critic": 0}, "'n_critic' parameter of FAnoGAN"),
        ({"n_levels": 5}, "at most 4 for images of 16 x 16.*got 5; lower n_levels"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(FAnoGAN, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    small = {"width": 8, "latent_size": 64, "n_levels": 2, "n_critic": 1, "random_state": 0}
    check_learns(
        FAnoGAN(max_epochs=5, encoder_epochs=8, lr=2e-3, encoder_lr=2e-3, **small), beats_the_mean=True
    )


def test_the_iterative_search_shares_the_network_and_leaves_it():
    X = make_images((20, 16, 16))
    detector = tiny(FAnoGAN).fit(X)
    before = {key: value.clone() for key, value in detector.network_.state_dict().items()}
    few = detector.iterative(X, n_search=3, random_state=0)
    many = detector.iterative(X, n_search=30, n_restarts=2, search_lr=0.1, random_state=0)
    assert all(torch.equal(before[key], value) for key, value in detector.network_.state_dict().items())
    assert many.scores.mean() > few.scores.mean(), "more steps leave less"
    assert many.codes.shape == (20, 2)
    assert_allclose(many.scores, -0.9 * many.residual - 0.1 * many.discrimination)
    assert_allclose(many.maps.sum((1, 2)), many.residual, rtol=1e-4)
    scaled, found = (images.astype(float) / 127.5 - 1 for images in (X, detector.decode(many.codes)))
    assert_allclose(many.maps, np.abs(scaled - found), atol=1e-3)
    # Each image for itself, to the bit.
    alone = detector.iterative(X[5:6], n_search=3, random_state=0)
    assert_array_equal(alone.scores, few.scores[5:6])
    uniform = tiny(FAnoGAN, prior="uniform").fit(X).iterative(X, n_search=5, search_lr=1.0)
    assert np.abs(uniform.codes).max() == 1


def test_bad_searches():
    X = make_images()
    with pytest.raises(NotFittedError):
        tiny(FAnoGAN).iterative(X)
    detector = tiny(FAnoGAN).fit(X)
    for options, message in (
        ({"n_search": 0}, "n_search must be a whole number of at least 1, got 0"),
        ({"n_search": 2.5}, "n_search must be a whole number of at least 1, got 2.5"),
        ({"n_restarts": 0}, "n_restarts must be a whole number of at least 1, got 0"),
        ({"search_lr": 0}, "search_lr must be above 0, got 0"),
        ({"discrimination_weight": 2}, r"discrimination_weight must lie in \[0, 1\], got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.iterative(X, **options)
