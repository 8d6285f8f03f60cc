import copy

import numpy as np
import pytest
import torch
from foreign import auroc, chests, map_ratio_of
from frozen import check_option
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from scipy.spatial.distance import cosine
from sklearn.base import clone
from steps import assert_descends, run_step
from torch import nn

from skanomaly import KnowledgeDistillation, _inference
from skanomaly.detectors.knowledge_distillation import (
    DistillationNetwork,
    opened,
    place_error,
    smooth_gradient_map,
)
from skanomaly.networks.cloner import Cloner, GuidedReLU
from skanomaly.testing import make_images, tiny
from skanomaly.training import Distillation, direction_error, distillation_error, magnitude_error

X, NEW = make_images((20, 16, 16)), make_images((5, 16, 16), seed=1)


def layers(seed=0):
    """Maps of three images at two layers."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(3, *shape))) for shape in [(4, 5, 6), (7, 2, 3)]]


def error(maps, targets, weight):
    """Error of one image, in numpy."""
    pairs = [(np.ravel(f), np.ravel(g)) for f, g in zip(maps, targets)]
    return sum(cosine(f, g) + weight * ((f - g) ** 2).mean() for f, g in pairs)


def test_the_error_is_that_of_directions_and_magnitudes():
    ours, theirs = layers(), layers(1)
    found = distillation_error(ours, theirs, 0.3)
    expected = [error([f[k] for f in ours], [g[k] for g in theirs], 0.3) for k in range(3)]
    assert_allclose(found, expected)


def test_directions_are_those_of_multiples_and_equal_maps_have_no_error():
    (f, _), (g, _) = layers(), layers(1)
    assert_allclose(direction_error(5 * f, g), direction_error(f, g), rtol=1e-12)
    assert_allclose(direction_error(5 * f, f), 0, atol=1e-12)
    assert_allclose(magnitude_error(3 * f, f), 4 * (f**2).mean((1, 2, 3)))
    assert_allclose(distillation_error(layers(), layers(), 0.5), 0, atol=1e-12)


def test_errors_at_places_are_those_of_the_vectors_there():
    (f, _), (g, _) = layers(), layers(1)
    found = place_error(f, g, 0.3)
    for k, i, j in np.ndindex(3, 5, 6):
        assert_allclose(found[k, i, j], error([f[k, :, i, j]], [g[k, :, i, j]], 0.3))


@pytest.mark.parametrize(
    ("size", "shapes"),
    [
        ((64, 64), [(3, 16, 16), (5, 8, 8), (7, 2, 2)]),
        ((17, 40), [(3, 3, 5), (5, 17, 40), (2, 4, 13), (4, 4, 13)]),
        ((1, 9), [(3, 1, 2)]),
        ((3, 3), [(3, 5, 4)]),
    ],
)
def test_a_cloner_makes_maps_of_any_shapes(size, shapes):
    cloner = Cloner(2, size, shapes, 4)
    maps = cloner(torch.randn(3, 2, 11, 20))
    assert [tuple(m.shape[1:]) for m in maps] == shapes
    assert all((m < 0).any() for m in maps)
    # Small maps are made of large ones, whatever the order in which they are asked for.
    sizes = [shapes[k][1] * shapes[k][2] for k in cloner.order]
    assert sizes == sorted(sizes, reverse=True)
    sum(m.sum() for m in maps).backward()
    assert all(parameter.grad is not None for parameter in cloner.parameters())


def test_guided_gradients_are_those_above_zero():
    x = torch.tensor([-1.0, 2.0, 3.0, -4.0], requires_grad=True)
    y = GuidedReLU.apply(x)
    assert_array_equal(y.detach(), [0, 2, 3, 0])
    y.backward(torch.tensor([5.0, 6.0, -7.0, -8.0]))
    assert_array_equal(x.grad, [0, 6, 0, 0])


def test_opening():
    maps = np.random.default_rng(0).random((2, 9, 7))
    expected = [ndimage.grey_opening(m, (3, 3), mode="nearest") for m in maps]
    assert_allclose(opened(torch.from_numpy(maps))[:, 1:-1, 1:-1], np.array(expected)[:, 1:-1, 1:-1])


def test_smooth_gradients_are_those_of_one_image_whatever_the_others():
    """The mean over noise of the gradient of x^2 / 2 is the mean of |x + noise|."""
    x = torch.rand(4, 2, 5, 6)
    found = smooth_gradient_map(lambda x: x.square().sum((1, 2, 3)) / 2, x)
    alone = smooth_gradient_map(lambda x: x.square().sum((1, 2, 3)) / 2, x[2:])
    assert_allclose(found[2:], alone, rtol=1e-5)
    assert (found - x.mean(1)).abs().mean() > 1e-3, "there is noise"
    assert_allclose(found, x.mean(1), atol=0.2)


def test_smooth_gradients_are_the_mean_over_eight_noisy_copies():
    x, copies = torch.rand(3, 2, 20, 20), []
    found = smooth_gradient_map(lambda x: copies.append(x.detach()) or x.square().sum((1, 2, 3)) / 2, x)
    noise = torch.stack(copies) - x
    assert noise.shape == (8, 3, 2, 20, 20)
    assert_allclose(noise.std((1, 2, 3, 4)), 0.1, rtol=0.1)
    assert len(set(noise[:, 0, 0, 0, 0].tolist())) == 8
    assert_allclose(found, torch.stack(copies).abs().mean((0, 2)), rtol=1e-5)


class Source(nn.Module):
    """Two layers of random convolutions, of which the second is smaller."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, 2, 1), nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x):
        first = self.first(x).relu()
        return [first, 20 * self.second(first)]

    @staticmethod
    def pooled(maps):
        return maps


def network():
    torch.manual_seed(0)
    return DistillationNetwork(Source(), Cloner(1, (8, 8), [(3, 4, 4), (4, 2, 2)], 5))


def test_a_step_moves_the_cloner_down_the_loss_and_nothing_else():
    x = torch.rand(6, 1, 8, 8)
    net = network()
    before = copy.deepcopy(net.source.state_dict())

    def loss(net, x):
        maps, targets = net.cloner(x), net.source(x)
        errors = [direction_error(f, g) + 0.2 * magnitude_error(f, g) for f, g in zip(maps, targets)]
        return (errors[0] + errors[1]).mean()

    assert_descends(Distillation, net, x, loss, ["cloner"], magnitude_weight=0.2)
    assert all(torch.equal(value, before[name]) for name, value in net.source.state_dict().items())
    losses, moved = run_step(Distillation, network(), x, magnitude_weight=0.2)
    assert moved == {"cloner"}
    assert_allclose(losses["train_loss"], loss(network(), x).detach(), rtol=1e-5)


def test_validation_is_by_scaled_maps():
    net, x = network(), torch.rand(6, 1, 8, 8)
    net.scales.copy_(torch.tensor([2.0, 30.0]))
    with torch.no_grad():
        found = Distillation(net, stage="test", magnitude_weight=0.2).validate(net, x)
        ours, (first, second) = net.cloner(x), net.source(x)
    theirs = [first / 2, second / 30]
    expected = [error([f[k] for f in ours], [g[k] for g in theirs], 0.2) for k in range(6)]
    assert_allclose(found, np.mean(expected), rtol=1e-5)


def fitted(**parameters):
    return tiny(KnowledgeDistillation, **parameters).fit(X)


def maps_of(detector, images, first=1):
    """Maps of cloner and source of uint8 images, scaled, in numpy."""
    net, x = detector.network_, torch.from_numpy(images[:, None] / np.float32(255))
    with torch.no_grad():
        ours, theirs = net.cloner(x), [net.source.pooled(m) for m in net.source(x)]
    theirs = [g / scale for g, scale in zip(theirs, net.scales)]
    return [[m.numpy() for m in maps[first:]] for maps in (ours, theirs)]


@pytest.mark.parametrize(("parameters", "first"), [({}, 1), ({"layers": (1,)}, 0)])
def test_the_score_is_the_error_of_all_layers_but_the_first(parameters, first):
    detector = fitted(max_epochs=3, magnitude_weight=0.7, **parameters)
    ours, theirs = maps_of(detector, NEW, first)
    expected = [error([f[k] for f in ours], [g[k] for g in theirs], 0.7) for k in range(len(NEW))]
    assert_allclose(-detector.score_samples(NEW), expected, rtol=1e-4)
    parts = detector.score_components(NEW)
    assert_allclose(parts["direction"] + 0.7 * parts["magnitude"], expected, rtol=1e-4)


def test_the_source_has_a_mean_square_of_1_in_training_images():
    detector = fitted(max_epochs=1)
    _, theirs = maps_of(detector, X, 0)
    assert_allclose([(g.astype(float) ** 2).mean() for g in theirs], 1, rtol=1e-5)


def test_the_map_is_the_error_at_each_place():
    detector = fitted(blur=0.0, input_size=None, max_epochs=3)
    ours, theirs = maps_of(detector, NEW)
    errors = [place_error(*map(torch.from_numpy, pair), 0.5) for pair in zip(ours, theirs)]
    # 64 x 64 pixels of the input have 16 x 16 places, as many as an image has pixels.
    assert_allclose(detector.anomaly_map(NEW), sum(errors), rtol=1e-3, atol=1e-4)
    smooth = clone(detector).set_params(blur=0.1).fit(X).anomaly_map(NEW)
    expected = ndimage.gaussian_filter(sum(errors).numpy(), (0, 1.6, 1.6), mode="nearest")
    assert_allclose(smooth, expected, rtol=1e-3, atol=1e-4)


def test_a_map_by_gradient_is_the_change_of_the_score_with_a_pixel():
    detector = fitted(attribution="gradient", blur=0.0, max_epochs=3)
    net = copy.deepcopy(detector.network_).double()

    def score(x):
        pairs = list(zip(net.cloner(x), net.source_maps(x)))[1:]
        return sum(direction_error(f, g) + 0.5 * magnitude_error(f, g) for f, g in pairs)

    x, slopes = torch.from_numpy(NEW[:1, None] / 255), np.zeros((1, 16, 16))
    with torch.no_grad():
        for i, j in np.ndindex(16, 16):
            step = torch.zeros_like(x)
            step[0, 0, i, j] = 1e-6
            slopes[0, i, j] = float(abs(score(x + step) - score(x - step))) / 2e-6
    smooth = clone(detector).set_params(blur=0.1).fit(X)
    for fit, deviation in (detector, 0), (smooth, 1.6):
        maps = ndimage.gaussian_filter(slopes, (0, deviation, deviation), mode="nearest")
        expected = opened(torch.from_numpy(maps))
        assert_allclose(fit.anomaly_map(NEW[:1]), expected, rtol=1e-2, atol=1e-3 * expected.max())


def test_features_are_computed_once_and_training_does_not_depend_on_it(monkeypatch):
    """In both cases to the same weights, but for rounding."""
    kept = fitted(max_epochs=2)
    monkeypatch.setattr(_inference, "CACHE_BYTES", 0)
    again = fitted(max_epochs=2)
    for name, value in kept.network_.state_dict().items():
        assert_allclose(again.network_.state_dict()[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "parameters",
    [
        {"backbone": "imagenet", "input_size": (9, 20), "layers": [3, 1]},
        {"layers": (2, 0)},
        {"attribution": "gradient"},
        {"attribution": "smooth_grad"},
        {"attribution": "guided"},
        {"magnitude_weight": 0.0, "blur": 1.0},
        {"validation_fraction": 0.2},
    ],
    ids=str,
)
def test_options(parameters, tmp_path):
    check_option(tiny(KnowledgeDistillation, **parameters), tmp_path)


def test_options_are_heard():
    scores, maps = zip(
        *(
            (detector.score_samples(NEW), detector.anomaly_map(NEW))
            for detector in (
                fitted(max_epochs=2, width=4, **parameters)
                for parameters in [
                    {},
                    {"attribution": "gradient"},
                    {"attribution": "smooth_grad"},
                    {"attribution": "guided"},
                ]
            )
        )
    )
    assert all(np.array_equal(scores[0], other) for other in scores[1:])
    assert len({m.tobytes() for m in maps}) == 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"attribution": "lime"}, "'attribution' parameter of KnowledgeDistillation must be"),
        ({"magnitude_weight": -1}, "'magnitude_weight' parameter of KnowledgeDistillation must be"),
        ({"blur": 1.1}, "'blur' parameter of KnowledgeDistillation must be"),
        ({"layers": (7,)}, "layers must be one or more different numbers from 0 to 2"),
        ({"backbone": "vgg"}, "'backbone' parameter of KnowledgeDistillation must be"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(KnowledgeDistillation, **parameters).fit(X)


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    train, normal, foreign, masks = chests(32, 100, 40, 1 / 4)
    options = {"input_size": 64, "layers": (1, 2, 3, 4), "batch_size": 10, "random_state": 0}
    trained = KnowledgeDistillation(width=16, max_epochs=12, lr=3e-3, **options).fit(train)
    untrained = KnowledgeDistillation(width=16, max_epochs=1, lr=1e-12, **options).fit(train)
    before, after = (auroc(fitted, normal, foreign) for fitted in (untrained, trained))
    assert after >= max(0.65, before + 0.15), (before, after)
    before, after = (map_ratio_of(fitted, foreign, masks) for fitted in (untrained, trained))
    assert after >= max(1.3, before + 0.3), (before, after)
