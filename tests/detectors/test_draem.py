"""DRAEM: its networks, losses and score by hand, what it learns from, and that it learns."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from foreign import check_learns
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import ndimage
from skorch.callbacks import EarlyStopping
from steps import assert_descends, run_step

from skanomaly import DRAEM
from skanomaly._losses import focal_loss, squared_error, ssim_error
from skanomaly._random import seeded
from skanomaly.detectors.draem import (
    DRAEMNetwork,
    Joint,
    ReconstructionNetwork,
    SegmentationNetwork,
    pooled_maximum,
)
from skanomaly.synthesis import SYNTHESES
from skanomaly.testing import make_images, tiny

OPTIONS = {"probability": 0.5, "reconstruction_weight": 1.0, "ssim_weight": 1.0}


def brighten(images, sources, generator):
    """A synthesis without draws: the upper half is 0.5 brighter."""
    masks = torch.zeros_like(images[:, :1], dtype=torch.bool)
    masks[:, :, : images.shape[2] // 2] = True
    return images + 0.5 * masks, masks, masks.float()


def network(**options):
    with seeded(0):
        return DRAEMNetwork((1, 16, 16), **{"width": 2, "reconstruction_width": 3} | options)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)), st.integers(1, 3), st.integers(1, 3)
)
def test_networks_take_images_of_any_size(shape, width, reconstruction_width):
    net = DRAEMNetwork(shape, width=width, reconstruction_width=reconstruction_width).eval()
    x = torch.rand(3, *shape)
    with torch.no_grad():
        y, logits = net(x)
        assert y.shape == x.shape
        assert logits.shape == (3, 2, *shape[1:])
        for ours, whole in zip(net(x[:1]), (y, logits)):
            assert_allclose(ours, whole[:1], rtol=1e-3, atol=1e-4, err_msg="each image by itself")


def test_widths_are_those_of_the_paper():
    """At 256 pixels: 128 channels and four halvings; 64 and five."""
    with torch.device("meta"):
        first = ReconstructionNetwork((3, 256, 256), width=128)
        second = SegmentationNetwork((3, 256, 256), width=64)
    widths = [[block[3].out_channels for block in net.encoder] for net in (first, second)]
    assert widths == [[128, 256, 512, 1024, 1024], [64, 128, 256, 512, 512, 512]]
    ups = [
        [(stage.block[0].in_channels, stage.block[3].out_channels) for stage in net.decoder]
        for net in (first, second)
    ]
    assert ups[0] == [(1024, 512), (512, 256), (256, 128), (128, 128)]
    assert ups[1] == [(1024, 512), (768, 256), (384, 128), (192, 64), (128, 64)]


def test_only_the_second_network_has_skips():
    """All that the first network knows of an image has passed its coarsest level."""
    net, x = network().eval(), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        y, logits = net(x)
        for part in (net.reconstruction, net.segmentation):
            part.encoder[-1].register_forward_hook(lambda module, inputs, output: output * 0)
        blind = net.reconstruction(x)
        assert_allclose(blind[0], blind[1], atol=1e-6)
        assert not torch.equal(y[0], y[1])
        seen = net.segmentation(y, x)
    assert not torch.allclose(seen[0], seen[1])


def test_focal_loss_by_hand():
    with seeded(0):
        logits, masks = torch.randn(3, 2, 4, 5).double(), torch.rand(3, 1, 4, 5) > 0.3
    p = logits.softmax(1).numpy()
    terms = []
    for i, j, k in np.ndindex(3, 4, 5):
        true = p[i, int(masks[i, 0, j, k]), j, k]
        terms.append(-((1 - true) ** 2) * math.log(true))
    assert_allclose(focal_loss(logits, masks[:, 0]), np.mean(terms), rtol=1e-12)
    assert_allclose(focal_loss(torch.zeros(1, 2, 3, 3), masks[:1, 0, :3, :3]), 0.25 * math.log(2), rtol=1e-6)


@given(st.sampled_from([1, 3, 21]), st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_pooled_maximum_against_scipy(window, height, width, seed):
    maps = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed)).double()
    means = [ndimage.uniform_filter(m, window, mode="constant") for m in maps.numpy()]
    assert_allclose(pooled_maximum(maps, window), [m.max() for m in means], rtol=1e-9)


def test_judgement_by_hand():
    X = make_images((5, 20, 14))
    detector = tiny(DRAEM, window=5).fit(X)
    x = torch.from_numpy(X / 255).float()[:, None]
    with torch.no_grad():
        y, logits = detector.network_(x)
    p = torch.sigmoid(logits[:, 1] - logits[:, 0]).numpy()
    maps, components = detector.anomaly_map(X), detector.score_components(X)
    assert_allclose(maps, p, rtol=1e-4)
    means = [ndimage.uniform_filter(m.astype(float), 5, mode="constant").max() for m in p]
    assert_allclose(-detector.score_samples(X), means, rtol=1e-4)
    assert_allclose(components["maximum"], means, rtol=1e-4)
    assert_allclose(components["mean"], p.mean((1, 2)), rtol=1e-4)
    assert_allclose(components["residual"], ((y - x) ** 2).mean((1, 2, 3)), rtol=1e-4)
    assert_allclose(detector.reconstruct(X) / 255, y[:, 0], rtol=1e-3, atol=1e-5)


def test_a_step_is_that_of_the_three_losses():
    x = torch.rand(6, 1, 16, 16)

    def loss(net, x):
        changed = brighten(x, None, None)
        chosen = (torch.rand(6) < 0.5)[:, None, None, None]
        made, masks = torch.where(chosen, changed[0], x), changed[1] & chosen
        y = net.reconstruction(made)
        logits = net.segmentation(y, made)
        # The clean image is what is to be reconstructed; the map is of the image with its anomaly.
        return 2 * squared_error(y, x).mean() + 3 * ssim_error(y, x).mean() + focal_loss(logits, masks[:, 0])

    weights = {"reconstruction_weight": 2.0, "ssim_weight": 3.0, "synthesis": brighten, "probability": 0.5}
    assert_descends(Joint, network(), x, loss, ("reconstruction", "segmentation"), **weights)
    losses, moved = run_step(Joint, network(), x, **weights)
    assert moved == {"reconstruction", "segmentation"}
    total = 2 * losses["reconstruction_loss"] + 3 * losses["ssim_loss"] + losses["focal_loss"]
    assert_allclose(losses["train_loss"], total, rtol=1e-5)


def test_without_its_weight_the_structural_error_is_not_computed():
    losses, _ = run_step(
        Joint, network(), torch.rand(6, 1, 16, 16), **OPTIONS | {"synthesis": brighten, "ssim_weight": 0.0}
    )
    assert set(losses) == {"reconstruction_loss", "focal_loss", "train_loss"}


def test_the_first_network_learns_from_the_second():
    """As in the public code: the focal loss alone moves both."""
    x = torch.rand(6, 1, 16, 16)
    weights = {"reconstruction_weight": 0.0, "ssim_weight": 0.0, "synthesis": brighten, "probability": 0.5}
    _, moved = run_step(Joint, network(), x, **weights)
    assert moved == {"reconstruction", "segmentation"}


def training(**options):
    options = OPTIONS | {"synthesis": brighten, "max_epochs": 1} | options
    return Joint(network(), stage="test", batch_size=8, verbose=0, **options)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_share_of_clean_images(probability):
    x = torch.rand(400, 1, 4, 4)
    with seeded(0):
        made, masks = training(probability=probability).make(x)
    changed = masks.any((1, 2, 3))
    assert abs(changed.float().mean() - probability) < 0.07
    assert torch.equal(made[~changed], x[~changed])
    assert_allclose(made[changed] - x[changed], 0.5 * masks[changed].float(), atol=1e-6)


def test_sources_are_other_images_of_the_batch():
    seen = []

    def look(images, sources, generator):
        seen.extend([images, sources])
        return brighten(images, sources, generator)

    training(synthesis=look).make(torch.arange(5.0)[:, None, None, None].expand(5, 1, 4, 4))
    assert seen[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert seen[1][:, 0, 0, 0].tolist() == [4, 0, 1, 2, 3]


def test_validation_has_the_same_anomalies_each_time():
    joint, x = training(synthesis=SYNTHESES["perlin"]), torch.rand(8, 1, 16, 16)
    net = network().eval()
    with seeded(1), torch.no_grad():
        first, second = joint.validate(net, x), joint.validate(net, x)
        terms = [joint.total(joint.terms(net, x)) for _ in range(2)]
    assert first == second
    assert terms[0] != terms[1]


@pytest.mark.parametrize(
    ("max_epochs", "expected"), [(20, [0.5] * 16 + [0.1] * 2 + [0.02] * 2), (1, [0.5])], ids=["20", "1"]
)
def test_learning_rate_falls_twice(max_epochs, expected):
    rates = []
    joint = training(max_epochs=max_epochs, lr=0.5, optimizer=torch.optim.SGD)
    joint.step = lambda net, x: (
        rates.append(joint.optimizer_.param_groups[0]["lr"]),
        joint.record(**dict.fromkeys(joint.losses, torch.zeros(()))),
    )
    images = torch.zeros(4, 1, 16, 16)

    class Batches:
        held_out = None

        def epoch(self, batch_size):
            yield images

    joint.run(Batches())
    assert_allclose(rates, expected)


def test_running_statistics_are_means_of_the_first_batches():
    """After few steps they are those of what was seen, not of where they began."""
    X, batches = make_images((24, 16, 16)), []

    def look(images, sources, generator):
        batches.append(images)
        return brighten(images, sources, generator)

    detector = tiny(DRAEM, synthesis=look, probability=0.0, lr=1e-12).fit(X)
    first = detector.network_.reconstruction.encoder[0][:2]
    with torch.no_grad():
        values = [first[0](x) for x in batches]
    assert len(values) == 3
    assert_allclose(first[1].running_mean, np.mean([v.mean((0, 2, 3)) for v in values], 0), rtol=1e-4)
    assert_allclose(first[1].running_var, np.mean([v.var((0, 2, 3)) for v in values], 0), rtol=1e-4)
    joint = training()
    joint.initialize()
    for n_steps, momentum in ((1, 1.0), (4, 0.25), (10, 0.1), (50, 0.1)):
        joint.n_steps, joint.totals_, joint.batch_size_ = n_steps, {}, 8
        joint.step(joint.module_, torch.rand(8, 1, 16, 16))
        assert joint.module_.segmentation.encoder[0][1].momentum == momentum


@pytest.mark.parametrize(
    "parameters",
    [
        {"synthesis": brighten},
        {"synthesis": partial(SYNTHESES["perlin"], texture="noise")},
        {"probability": 0.5},
        {"reconstruction_weight": 5.0},
        {"ssim_weight": 1.0},
        {"window": 3},
        {"reconstruction_width": 4},
    ],
    ids=" ".join,  # of the names only: functions would show their addresses
)
def test_options_are_heard(parameters):
    X = make_images()
    plain, other = (tiny(DRAEM, **o).fit(X).score_samples(X) for o in ({}, parameters))
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize("name", sorted(SYNTHESES))
def test_every_synthesis_by_name(name):
    X = make_images((12, 18, 14))
    by_name, function = (tiny(DRAEM, synthesis=s).fit(X).score_samples(X) for s in (name, SYNTHESES[name]))
    assert np.array_equal(by_name, function)


def test_early_stopping():
    options = {"max_epochs": 8, "validation_fraction": 0.25, "lr": 1e-12}
    detector = tiny(DRAEM, callbacks=[EarlyStopping(patience=2)], **options).fit(make_images((20, 16, 16)))
    assert detector.n_iter_ < 8


def flat_masks(images, sources, generator):
    generator.get_state()
    return images, images[:, 0] > 0, images


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"synthesis": "photographs"}, "'synthesis' parameter of DRAEM must be a str among"),
        ({"synthesis": flat_masks}, r"synthesis must return masks of the shape \(6, 1, 16, 16\)"),
        ({"validation_fraction": 0.1}, "needs 2 normal images to validate, .* leaves 1"),
        ({"probability": 1.1}, "'probability' parameter of DRAEM must be a float in the range"),
        ({"window": 4}, "window must be odd, so that it has a pixel in its middle, got 4"),
        ({"window": 0}, "'window' parameter of DRAEM"),
        ({"ssim_weight": -1.0}, "'ssim_weight' parameter of DRAEM"),
        ({"reconstruction_width": 0}, "'reconstruction_width' parameter of DRAEM"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(DRAEM, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(DRAEM(width=4, window=5, max_epochs=20, lr=5e-3, random_state=0), map_ratio=1.15)
