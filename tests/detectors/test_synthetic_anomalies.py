from functools import partial

import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from skorch.callbacks import Callback
from steps import run_step, watch_stages
from torch import nn
from torch.testing import assert_close

from skanomaly import SyntheticAnomalies
from skanomaly._random import seeded
from skanomaly.detectors.synthetic_anomalies import POOLINGS
from skanomaly.metrics import pixel_auroc
from skanomaly.synthesis import SYNTHESES, fpi
from skanomaly.testing import make_images, tiny
from skanomaly.training import SyntheticAnomalyTraining
from skanomaly.training._synthetic import LOSSES

OPTIONS = {"synthesis": fpi, "loss": LOSSES["bce"]}


def small_network(shape=(1, 16, 16)):
    with seeded(0):
        return tiny(SyntheticAnomalies)._build(shape), torch.rand(6, *shape)


def assert_steps(expected, x, **options):
    """The recorded loss of a step is the one that is computed by hand from the same draws."""
    network, _ = small_network()
    found, moved = run_step(SyntheticAnomalyTraining, network, x, **OPTIONS | options)
    twin, _ = small_network()
    with seeded(0):
        by_hand = expected(twin.train())
    assert found == pytest.approx({"train_loss": by_hand.item()}, rel=1e-5)
    assert moved == {name for name, _ in network.named_children()}, "all parts move"


def test_a_step_by_hand():
    """The next image of the batch is the source of what is foreign."""
    _, x = small_network()

    def loss(network):
        torch.rand(6)  # which images are changed: with probability 1 all
        made, _, labels = fpi(x, torch.cat([x[1:], x[:1]]))
        p = network(made).sigmoid()
        return -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()

    assert_steps(loss, x)


def test_a_step_with_sources():
    """Each image gets one of the sources at random, and no other image of the batch."""
    _, x = small_network()
    sources = torch.rand(4, 1, 16, 16)

    class Rows:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            assert isinstance(index, np.ndarray)
            return sources[index]

    def loss(network):
        index = torch.randint(4, (6,))
        torch.rand(6)
        made, _, labels = fpi(x, sources[index])
        return ((network(made).sigmoid() - labels) ** 2).mean()

    assert_steps(loss, x, sources=Rows(), loss=LOSSES["mse"])


def test_losses_by_hand():
    logits, labels = torch.linspace(-3, 3, 20).double(), torch.tensor([0, 0.2, 0.7, 1]).repeat(5).double()
    p, y = 1 / (1 + np.exp(-logits.numpy())), labels.numpy()
    entropy = -y * np.log(p) - (1 - y) * np.log(1 - p)
    expected = {"bce": entropy, "mse": (p - y) ** 2, "focal": (p - y) ** 2 * entropy}
    assert LOSSES.keys() == expected.keys()
    for name, loss in LOSSES.items():
        assert_allclose(loss(logits, labels), expected[name], err_msg=name)


def test_a_share_of_the_images_is_changed():
    _, x = small_network()

    def loss(network):
        changed = (torch.rand(6) < 0.5)[:, None, None, None]
        made, _, labels = fpi(x, x.roll(-1, 0))
        made, labels = torch.where(changed, made, x), labels * changed
        return nn.functional.binary_cross_entropy_with_logits(network(made), labels)

    assert_steps(loss, x, probability=0.5)


def test_the_validation_loss_is_of_the_same_images_each_time():
    network, x = small_network()
    training = SyntheticAnomalyTraining(network, stage="test", lr=0.1, max_epochs=1, batch_size=6, **OPTIONS)
    state = torch.get_rng_state()
    first = training.validate(network.eval(), x)
    assert torch.equal(torch.get_rng_state(), state), "training draws on as if there were no validation"
    torch.rand(1)
    assert training.validate(network, x) == first
    with seeded(0):
        torch.rand(6)
        made, _, labels = fpi(x, x.roll(-1, 0))
        expected = nn.functional.binary_cross_entropy_with_logits(network(made), labels)
    assert_close(first, expected)


@pytest.mark.parametrize("validation_fraction", [0.0, 0.5])
def test_unlabelled_images_are_sources_only(monkeypatch, validation_fraction):
    seen = {}

    def look(stage, training, network, images, *, sources, **options):
        seen.update(images=images, held_out=images.held_out, sources=sources)

    watch_stages(monkeypatch, SyntheticAnomalies, look)
    X, y = make_images((12, 8, 8)), np.repeat([1, 0], [8, 4])
    detector = tiny(SyntheticAnomalies, validation_fraction=validation_fraction)
    detector.fit(X, y)
    assert detector.n_unlabelled_ == 4
    known = {tuple(image.ravel()): k for k, image in enumerate(X)}

    def rows(images):
        return {known[tuple(image.ravel())] for image in images.raw()}

    train, sources = rows(seen["images"]), rows(seen["sources"])
    assert sources <= set(range(8, 12))
    if validation_fraction:
        assert len(sources) == 2
        assert train | rows(seen["held_out"]) == set(range(8))
        assert len(train) == 4
    else:
        assert (train, sources) == (set(range(8)), set(range(8, 12)))
    detector.fit(X[:8])
    assert (detector.n_unlabelled_, seen["sources"]) == (0, None)
    other = tiny(SyntheticAnomalies, validation_fraction=validation_fraction)
    assert not np.array_equal(other.fit(X, y).score_samples(X), detector.score_samples(X))


def test_scores_of_maps():
    maps = torch.from_numpy(np.random.default_rng(0).random((5, 7, 9)))
    assert_close(POOLINGS["mean"](maps), maps.mean((1, 2)))
    assert_close(POOLINGS["max"](maps), maps.amax((1, 2)))
    for found, m in zip(POOLINGS["top_quartile"](maps), maps.numpy()):
        assert_allclose(found, m[m > np.percentile(m, 75)].mean())
    constant = torch.full((2, 4, 4), 0.25)
    assert_close(POOLINGS["top_quartile"](constant), torch.tensor([0.25, 0.25]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_score_is_pooled_from_the_map(pooling):
    X = make_images((5, 20, 14))
    detector = tiny(SyntheticAnomalies, pooling=pooling).fit(X)
    maps, components = detector.anomaly_map(X), detector.score_components(X)
    assert 0 <= maps.min()
    assert maps.max() <= 1
    expected = {name: pool(torch.from_numpy(maps)) for name, pool in POOLINGS.items()}
    assert components.keys() == expected.keys()
    for name, values in expected.items():
        assert_allclose(components[name], values, rtol=1e-5)
    assert_allclose(-detector.score_samples(X), components[pooling], rtol=1e-6)


@pytest.mark.parametrize(
    "parameters",
    [
        *({"synthesis": name} for name in SYNTHESES if name != "mixture"),
        {"synthesis": partial(fpi, alpha=(1, 1))},
        {"network": "wide_residual"},
        {"network": "efficientnet"},
        {"loss": "mse"},
        {"loss": "focal"},
        {"probability": 0.5},
        {"weight_decay": 0.5},
    ],
    ids=" ".join,  # of the names only: functions would show their addresses
)
def test_options_are_heard(parameters):
    X = make_images((8, 12, 12))
    plain, other = (tiny(SyntheticAnomalies, **o).fit(X).score_samples(X) for o in ({}, parameters))
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize(("parameters", "expected"), [({}, 5e-4), ({"weight_decay": 0.25}, 0.25)])
def test_the_weight_decay_is_that_of_adam(parameters, expected):
    kept = []

    class Look(Callback):
        def on_train_begin(self, net, **options):
            kept.append(net.optimizer_)

    tiny(SyntheticAnomalies, callbacks=[Look()], **parameters).fit(make_images((8, 12, 12)))
    assert type(kept[0]) is torch.optim.Adam
    assert [group["weight_decay"] for group in kept[0].param_groups] == [expected]


def test_a_callable_is_the_function_of_that_name():
    X = make_images((8, 12, 12))
    named, given = (tiny(SyntheticAnomalies, synthesis=of).fit(X).score_samples(X) for of in ("fpi", fpi))
    assert np.array_equal(named, given)


def test_a_network_of_ones_own():
    def make(image_shape):
        return nn.Conv2d(image_shape[0], 1, 3, padding=1)

    X = make_images((8, 12, 10))
    detector = tiny(SyntheticAnomalies, network=make).fit(X)
    assert detector.anomaly_map(X).shape == (8, 12, 10)
    for network, error, message in (
        (make((1, 12, 10)), TypeError, "network must be a function that makes a new torch module"),
        (lambda shape: None, TypeError, "network must be a function that makes a new torch module"),
        (
            lambda shape: nn.Conv2d(1, 2, 1),
            ValueError,
            r"give logits .*\(2, 1, 12, 10\) here.*\(2, 2, 12, 10",
        ),
        (
            lambda shape: make(shape).requires_grad_(False),
            ValueError,
            r"network must make modules with parameters to train, made Conv2d\(1, 1",
        ),
    ):
        with pytest.raises(error, match=message):
            tiny(SyntheticAnomalies, network=network).fit(X)


def wrong_labels(images, sources, generator):
    return images, images > 0, images[:, 0]


def too_strong(images, sources, generator):
    return images, images > 0, 2 * torch.ones_like(images)


@pytest.mark.parametrize(
    ("parameters", "y", "message"),
    [
        ({"synthesis": "magic"}, None, "'synthesis' parameter of SyntheticAnomalies must be"),
        ({"synthesis": wrong_labels}, None, "synthesis must return labels of the shape"),
        ({"network": "resnet"}, None, "'network' parameter of SyntheticAnomalies must be"),
        ({"pooling": "median"}, None, "'pooling' parameter of SyntheticAnomalies must be"),
        ({"probability": 0.0}, None, "'probability' parameter of SyntheticAnomalies must be"),
        ({"synthesis": too_strong}, None, "synthesis must return labels from 0 to 1, got .* to 2"),
        ({"validation_fraction": 0.1}, None, "stage 'segmentation' needs 2 normal images to .* leaves 1"),
        ({}, [1] + [0] * 11, "y has 1 normal .* and 11 unlabelled"),
        ({}, [0] * 12, "y has 0 normal .* and 12 unlabelled"),
        ({"validation_fraction": 0.8}, [1] * 3 + [0] * 9, "leaves 0 normal images to train on and 3 to"),
    ],
)
def test_bad_parameters(parameters, y, message):
    with pytest.raises(ValueError, match=message):
        tiny(SyntheticAnomalies, **parameters).fit(make_images(), y)


@pytest.mark.learning
def test_learns_what_does_not_belong_into_a_chest():
    check_learns(
        SyntheticAnomalies(network="unet", width=4, max_epochs=12, lr=3e-3, random_state=0),
        at_least=0.9,
        map_ratio=1.8,
    )


def gratings(n, seed):
    """Waves of random direction, phase and length: all that is normal is smooth, so that seconds teach it."""
    rng = np.random.default_rng(seed)
    angle, phase, frequency = rng.uniform((0, 0, 1.5), (np.pi, 2 * np.pi, 3), (n, 3)).T[..., None, None]
    y, x = np.mgrid[:16, :16] / 16
    wave = np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return (0.5 + 0.4 * wave).astype("float32")


@pytest.mark.learning
@pytest.mark.parametrize(
    ("synthesis", "options"),
    [("cutpaste", {"max_epochs": 24, "lr": 1e-2}), ("mixture", {"max_epochs": 24, "lr": 5e-3})],
)
def test_finds_new_anomalies_of_its_kind_and_of_others(synthesis, options):
    fixed = {"network": "unet", "width": 4, "intensity_range": (0.0, 1.0), "random_state": 0}
    detector = SyntheticAnomalies(synthesis=synthesis, **options, **fixed).fit(gratings(150, 0))
    new = torch.from_numpy(gratings(60, 1))[:, None]
    found = {}
    for kind in ("mixture", "cutpaste", "fpi", "perlin", "shifted_pieces"):
        made, masks, _ = SYNTHESES[kind](new, new.roll(1, 0), torch.Generator().manual_seed(7))
        found[kind] = pixel_auroc(masks[:, 0].numpy(), detector.anomaly_map(made[:, 0].numpy()))
    assert found.pop(synthesis) >= 0.9
    assert min(found.values()) >= 0.6, found
