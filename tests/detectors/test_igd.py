"""IGD: errors, descriptor, interpolation, who moves, patches, and that it learns."""

import numpy as np
import pytest
import torch
from foreign import check_learns
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from skimage.metrics import structural_similarity
from steps import first_settings, watch_stages
from torch import nn

from skanomaly import IGD
from skanomaly._losses import absolute_error, ssim_error
from skanomaly._random import seeded
from skanomaly.detectors.igd import (
    SCALES,
    IGDNetwork,
    Interpolation,
    describe,
    interpolated,
    joined,
    ms_ssim,
    patches,
    reconstruction_error,
)
from skanomaly.persistence import load, save
from skanomaly.testing import make_images, tiny

X, NEW = make_images((20, 16, 16)), make_images((6, 16, 16), seed=1)
STEP = {"stage": "test", "max_epochs": 1, "batch_size": 8, "verbose": 0, "optimizer": torch.optim.SGD}
OWN = {"cut": nn.Identity(), "interpolation_weight": 0.1}


def made(image_shape=(1, 16, 16), latent_size=16):
    with seeded(0):
        return IGDNetwork(image_shape, latent_size, width=2, n_levels=None)


def pairs(*shape, dtype=torch.float64):
    """Images and noisy copies of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=dtype)
    return x, (x + 0.2 * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1)


class TestErrors:
    def test_one_scale_is_ssim(self):
        """Of scikit-image, without the border in which its windows leave the image."""
        x, y = pairs(2, 2, 20, 21)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        for k in range(2):
            maps = [
                structural_similarity(a, b, full=True, **options)[1][5:-5, 5:-5]
                for a, b in zip(x[k].numpy(), y[k].numpy())
            ]
            assert_allclose(ms_ssim(x, y)[k], np.mean(maps), rtol=1e-5)

    @pytest.mark.parametrize(("side", "n_scales"), [(8, 1), (21, 1), (22, 2), (44, 3), (175, 4), (176, 5)])
    def test_number_of_scales(self, side, n_scales, monkeypatch):
        """Contrast that vanishes by halving counts for less where there are more scales."""
        calls = []
        monkeypatch.setattr(
            "torch.nn.functional.avg_pool2d", lambda x, k: calls.append(1) or x[..., ::k, ::k]
        )
        x, y = pairs(1, 1, side, side + 3)
        assert 0 < ms_ssim(x, y) < 1
        assert len(calls) == 2 * (n_scales - 1)

    def test_two_scales_by_hand(self):
        """Constants differ in brightness alone, which only the last scale compares."""
        a, b, c = 0.2, 0.7, 0.01**2
        x, y = torch.full((1, 1, 30, 30), a).double(), torch.full((1, 1, 30, 30), b).double()
        share = SCALES[1] / (SCALES[0] + SCALES[1])
        expected = ((2 * a * b + c) / (a * a + b * b + c)) ** share
        assert_allclose(ms_ssim(x, y), [expected], rtol=1e-6)
        expected = 0.85 * (1 - expected) + 0.15 * 0.5
        assert_allclose(reconstruction_error(y, x), [expected], rtol=1e-6)

    def test_bounds(self):
        x, y = pairs(3, 1, 40, 40)
        assert_allclose(reconstruction_error(x, x), np.zeros(3), atol=1e-9)
        opposite = (0.5 + (0.5 - x)).requires_grad_()
        error = reconstruction_error(opposite, x)
        assert (error > 0.8).all()
        error.sum().backward()
        assert opposite.grad.isfinite().all()

    def test_descriptor(self):
        network = made(latent_size=3).double()
        network.centre.copy_(torch.tensor([1.0, 2.0, 3.0]))
        network.spread.fill_(4.0)
        z = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 5.0], [1e6, 0.0, 0.0]]).double()
        assert_allclose(network.descriptor(z), [0, 1 - np.exp(-1), 1], atol=1e-12)


class TestDescription:
    def test_centre_and_spread(self):
        network = made(latent_size=4)
        z = np.random.default_rng(0).normal(0, 3, (50, 4)) + [2.0, -2.0, 0.0, 0.0]
        z[:, 2:] += [0.05, -0.05] - z[:, 2:].mean(0)
        network.describe(torch.from_numpy(z))
        centre = np.r_[z[:, :2].mean(0), 0.1, -0.1]
        assert_allclose(network.centre, centre, rtol=1e-6)
        assert_allclose(network.spread, ((z - centre) ** 2).sum(1).mean(), rtol=1e-6)
        network.describe(torch.from_numpy(z / 100))
        assert_array_equal(network.spread, 1)

    def test_is_of_the_last_encoder(self):
        detector = tiny(IGD, latent_size=16, max_epochs=2).fit(X)
        network = detector.network_.whole
        with torch.no_grad():
            z = network.encoder(torch.from_numpy(X[:, None] / 255).float())
        before = network.centre.clone(), network.spread.clone()
        network.describe(z)
        assert_allclose(before[0], network.centre, rtol=1e-4, atol=1e-6)
        assert_allclose(before[1], network.spread, rtol=1e-4)

    def test_is_refreshed_after_the_first_epoch_and_every_ten(self, monkeypatch):
        steps, described = [], []

        def step(self, network, x):
            steps.append(x)
            self.record(**dict.fromkeys(self.losses, torch.zeros(())))

        monkeypatch.setattr(Interpolation, "step", step)
        monkeypatch.setattr("skanomaly.detectors.igd.describe", lambda *args: described.append(len(steps)))
        tiny(IGD, max_epochs=21).fit(X)
        assert described == [0, 3, 30, 60, 63], "three steps an epoch, and once more in the end"


def one_step(network, x, **options):
    training = Interpolation(network, **OWN | STEP | {"lr": 1e-3} | options)
    training.initialize()
    training.totals_, training.batch_size_ = {}, len(x)
    found, move = [], training.move

    def spied(optimizer, **loss):
        before = {name: value.clone() for name, value in network.named_parameters()}
        move(optimizer, **loss)
        after = dict(network.named_parameters())
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        found.append((optimizer, moved))

    training.move = spied
    network.train()
    with seeded(1):
        training.step(network, x)
    return {name: float(total / n) for name, (total, n) in training.totals_.items()}, found


class TestSteps:
    def test_who_moves(self):
        network = made()
        _, found = one_step(network, torch.rand(8, 1, 16, 16))
        assert found == [
            ("optimizer", {"encoder", "decoder"}),
            ("optimizer_critic", {"critic"}),
        ]
        assert_array_equal(network.centre, 0)

    def test_losses_by_hand(self):
        """With a rate of 0, so that the networks stay as they are between the two steps."""
        network, x = made(), torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        network.centre += 0.3
        losses, _ = one_step(network, x, lr=1e-30, interpolation_weight=3.0)
        with seeded(1), torch.no_grad():
            share = torch.rand(8, 1) / 2
            z = network.encoder(x)
            y = network.decoder(z)
            mixed = network.decoder(share * z + (1 - share) * z[[7, 6, 5, 4, 3, 2, 1, 0]])
            error, apart = reconstruction_error(y, x).mean(), network.descriptor(z).mean()
            judged = network.critic(mixed)
            nearly = network.critic(0.8 * y + 0.2 * x)
        assert_allclose(losses["reconstruction_loss"], error, rtol=1e-4)
        assert_allclose(losses["descriptor_loss"], apart, rtol=1e-4)
        assert_allclose(losses["interpolation_loss"], (judged**2).mean(), rtol=1e-3)
        assert_allclose(losses["train_loss"], error + apart + 3 * (judged**2).mean(), rtol=1e-4)
        expected = ((judged - share[:, 0]) ** 2).mean() + (nearly**2).mean()
        assert_allclose(losses["critic_loss"], expected, rtol=1e-3)

    def test_validation_by_hand(self):
        network, x = made().eval(), torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        network.centre += 0.3
        with torch.no_grad():
            found = Interpolation(network, **OWN | STEP).validate(network, x)
            z = network.encoder(x)
            error, apart = reconstruction_error(network.decoder(z), x).mean(), network.descriptor(z).mean()
        assert apart > 0.1
        assert_allclose(found, error + apart, rtol=1e-5)

    def test_settings_of_adam(self, monkeypatch):
        settings = first_settings(monkeypatch, tiny(IGD, scales="multi"), X)
        found = {
            name: (group["lr"], group["betas"], group["weight_decay"]) for name, group in settings.items()
        }
        autoencoder, critic = (1e-3, (0.0, 0.9), 1e-6), (1e-3, (0.0, 0.9), 0)
        assert found == {
            ("whole", "optimizer"): autoencoder,
            ("whole", "optimizer_critic"): critic,
            ("local", "optimizer"): autoencoder,
            ("local", "optimizer_critic"): critic,
        }

    def test_interpolation(self):
        z = torch.tensor([[0.0, 4.0], [1.0, 2.0], [8.0, 0.0]])
        share = torch.tensor([[0.25], [0.5], [0.0]])
        assert_array_equal(interpolated(z, share), [[6, 1], [1, 2], [0, 4]])

    def test_the_rate_falls_by_a_power(self):
        rates = []

        class Spy(Interpolation):
            def step(self, network, x):
                rates.append([getattr(self, f"{name}_").param_groups[0]["lr"] for name in self.moves])
                self.record(**dict.fromkeys(self.losses, torch.zeros(())))

        class All(list):
            held_out = None

            def epoch(self, batch_size):
                yield torch.zeros(2, 1, 16, 16)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("skanomaly.detectors.igd.describe", lambda *args: None)
            Spy(made(), **OWN | STEP | {"max_epochs": 4, "lr": 2.0}).run(All())
        assert_allclose(rates, [[2 * left**0.9] * 2 for left in (1, 0.75, 0.5, 0.25)])


class TestPatches:
    @given(
        sides=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    )
    def test_are_joined_again(self, sides, size):
        x = torch.rand(3, 2, *sides)
        tiles = patches(x, size)
        assert tiles.shape[1:] == (2, *size)
        assert_array_equal(joined(tiles, sides), x)

    def test_lie_in_rows(self):
        x = torch.arange(2 * 4 * 6).view(2, 1, 4, 6).float()
        tiles = patches(x, (2, 3))
        assert len(tiles) == 8
        assert_array_equal(tiles[1], x[0, :, :2, 3:])
        assert_array_equal(tiles[2], x[0, :, 2:, :3])
        assert_array_equal(tiles[4], x[1, :, :2, :3])

    @pytest.mark.parametrize(
        ("sides", "patch_size", "expected"),
        [
            ((64, 80), None, (16, 16)),
            ((16, 9), None, (8, 8)),
            ((1, 50), None, (1, 8)),
            ((40, 40), 50, (40, 40)),
        ],
    )
    def test_size(self, sides, patch_size, expected):
        assert IGD(patch_size=patch_size)._patch((1, *sides)) == expected


@pytest.fixture(scope="module")
def fitted():
    return tiny(IGD, scales="multi", latent_size=16, descriptor_weight=0.3, max_epochs=2).fit(X)


class TestScores:
    def test_by_hand(self, fitted):
        x = torch.from_numpy(NEW[:, None] / 255).float()
        whole, local = fitted.network_.whole, fitted.network_.local
        with torch.no_grad():
            z = whole.encoder(x)
            y = whole.decoder(z)
            error, apart = reconstruction_error(y, x), whole.descriptor(z)
            worst, found = torch.zeros(6), torch.zeros(6, 1, 16, 16)
            for i in range(0, 16, 8):
                for j in range(0, 16, 8):
                    tile = x[:, :, i : i + 8, j : j + 8]
                    code = local.encoder(tile)
                    found[:, :, i : i + 8, j : j + 8] = local.decoder(code)
                    made_again = found[:, :, i : i + 8, j : j + 8]
                    score = 0.9 * reconstruction_error(made_again, tile) + 0.1 * local.descriptor(code)
                    worst = torch.maximum(worst, score)
        components = fitted.score_components(NEW)
        assert_allclose(components["reconstruction"], error, rtol=1e-4)
        assert_allclose(components["descriptor"], apart, rtol=1e-4, atol=1e-6)
        assert_allclose(components["local"], worst, rtol=1e-4)
        expected = (0.7 * error + 0.3 * apart + worst) / 2
        assert_allclose(-fitted.score_samples(NEW), expected, rtol=1e-4)
        maps = [0.85 * ssim_error(part, x) + 0.15 * absolute_error(part, x) for part in (y, found)]
        assert_allclose(fitted.anomaly_map(NEW), sum(maps) / 2, rtol=1e-3, atol=1e-5)
        assert_allclose(fitted.reconstruct(NEW), 255 * y[:, 0], rtol=1e-3, atol=0.1)

    def test_scales_are_trained_one_after_the_other(self, monkeypatch):
        networks, whole = [], []

        def look(stage, training, network, images, **options):
            networks.append(network)
            whole.append([weight.detach().clone() for weight in networks[0].parameters()])

        watch_stages(monkeypatch, IGD, look)
        found = tiny(IGD, scales="multi").fit(X).network_
        assert networks == [found.whole, found.local]
        after = list(found.whole.parameters())
        assert not all(torch.equal(a, b) for a, b in zip(whole[0], after)), "not trained"
        assert all(torch.equal(a, b) for a, b in zip(whole[1], after)), "moved by the second stage"

    def test_files_hold_both_scales(self, fitted, tmp_path):
        save(fitted, tmp_path / "igd")
        assert_array_equal(load(tmp_path / "igd").score_samples(NEW), fitted.score_samples(NEW))

    def test_validation(self):
        history = tiny(IGD, validation_fraction=0.2, scales="multi").fit(X).history_
        assert all(stage[-1]["valid_loss"] > 0 for stage in history.values())


def test_patches_are_described_together():
    network, images = made((1, 8, 8)), tiny(IGD).fit(X)._open(X)
    describe(network, lambda x: patches(x, (8, 8)), images, "cpu")
    with torch.no_grad():
        z = network.encoder(patches(torch.from_numpy(X[:, None] / 255).float(), (8, 8))).double()
    centre = z.mean(0)
    centre = torch.where(centre.abs() < 0.1, 0.1 * torch.where(centre < 0, -1.0, 1.0), centre)
    assert_allclose(network.centre, centre, rtol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"scales": "three"}, "'scales' parameter of IGD must be a str among"),
        ({"patch_size": 0}, "'patch_size' parameter of IGD must be"),
        ({"descriptor_weight": 1.5}, "'descriptor_weight' parameter of IGD must be"),
        ({"interpolation_weight": -1}, "'interpolation_weight' parameter of IGD must be"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(IGD, **parameters).fit(X)


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    # Maps are of contrast as much as of structure: at 16 pixels they show less than scores tell.
    check_learns(IGD(latent_size=32, width=4, max_epochs=6, random_state=0), gain=0.4, map_ratio=1.0)
