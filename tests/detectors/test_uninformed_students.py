import copy
import math
from itertools import product

import numpy as np
import pytest
import torch
from foreign import auroc, chests
from frozen import check_option
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from steps import assert_descends, first_settings, run_step
from torch import nn
from torch.nn import functional as F

from skanomaly import UninformedStudents, _backbone, _inference
from skanomaly._random import seeded
from skanomaly.detectors import uninformed_students
from skanomaly.detectors.uninformed_students import ScaleNetwork, error_and_variance, positive
from skanomaly.networks.patch_descriptors import PatchNetwork
from skanomaly.testing import make_images, tiny
from skanomaly.training import Students, TeacherTraining, _distillation, compactness_loss, triplet_loss
from skanomaly.training._distillation import moved, patches_at, window

X, NEW = make_images((20, 16, 16)), make_images((5, 16, 16), seed=1)
RNG = np.random.default_rng(0)


def reference(network, patch):
    """Descriptor of one patch by the layers of the paper, one after the other."""
    pools = {17: (), 33: (0, 1), 65: (0, 1, 2)}[network.patch_size]
    for k, conv in enumerate(network.convs):
        patch = F.conv2d(patch, conv.weight, conv.bias)
        if k < len(network.convs) - 1:
            patch = F.leaky_relu(patch, 5e-3)
        if k in pools:
            patch = F.max_pool2d(patch, 2)
    assert patch.shape[2:] == (1, 1)
    return patch.flatten(1)


@pytest.mark.parametrize("patch_size", [17, 33, 65])
@pytest.mark.parametrize("shape", [(1, 1), (5, 9)])
def test_each_pixel_is_described_as_the_patch_around_it(patch_size, shape):
    torch.manual_seed(0)
    network, x = PatchNetwork(2, patch_size, 3, 4).double(), torch.randn(2, 2, *shape).double()
    dense, border = network.at_each_pixel(x), patch_size // 2
    assert dense.shape == (2, 4, *shape)
    padded = F.pad(x, [border] * 4)
    for i, j in np.ndindex(shape):
        patch = padded[:, :, i : i + patch_size, j : j + patch_size]
        assert_allclose(dense[:, :, i, j].detach(), reference(network, patch).detach(), atol=1e-12)


@pytest.mark.parametrize(("patch_size", "stride"), [(17, 1), (33, 4), (65, 8)])
def test_other_descriptors_are_those_a_stride_apart(patch_size, stride):
    torch.manual_seed(0)
    network = PatchNetwork(1, patch_size, 2, 3).double()
    assert network.stride == stride
    x = torch.randn(1, 1, patch_size + 2 * stride, patch_size + 2 * stride - 1).double()
    coarse, dense = network(x).detach(), network(x, dense=True).detach()
    # Pooling leaves out the last column of a patch of 33, but where it is missing there is no patch.
    assert coarse.shape == (1, 3, 3, 2)
    assert dense.shape == (1, 3, 2 * stride + 1, 2 * stride)
    assert_allclose(coarse, dense[:, :, ::stride, ::stride], atol=1e-12)


@given(st.integers(2, 5), st.integers(1, 6), st.integers(0, 99))
def test_variance_is_the_mean_of_squares_less_the_square_of_the_mean(m, d, seed):
    rng = np.random.default_rng(seed)
    predictions, targets = rng.normal(3, 2, (m, 2, d, 3, 4)), rng.normal(size=(2, d, 3, 4))
    error, variance = error_and_variance(*map(torch.from_numpy, (predictions, targets)))
    mean = predictions.mean(0)
    assert_allclose(error, ((mean - targets) ** 2).sum(1))
    expected = (predictions**2).sum(2).mean(0) - (mean**2).sum(1)
    assert_allclose(variance, expected, atol=1e-9)


def test_students_like_the_teacher_have_neither_error_nor_variance():
    network = ScaleNetwork(1, 17, 2, 3, 3, 0)
    for student in network.students:
        student.load_state_dict(network.teacher.state_dict())
    assert_allclose(network.regress(torch.rand(2, 1, 4, 5)).detach(), 0, atol=1e-12)


def test_compactness_is_of_dimensions():
    x = RNG.normal(size=(9, 4))
    correlations = np.corrcoef(x, rowvar=False)
    expected = (correlations**2).sum() - 4
    assert_allclose(compactness_loss(torch.from_numpy(x)), expected)
    # Dimensions that say different things, whatever their scale; those that repeat one another.
    assert_allclose(compactness_loss(torch.diag(torch.ones(4)).repeat(2, 1)[:, :1]), 0, atol=1e-6)
    apart = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * torch.tensor([1, 100]) + 7
    assert_allclose(compactness_loss(apart), 0, atol=1e-6)
    assert_allclose(compactness_loss(torch.randn(6, 1).expand(-1, 3)), 6, rtol=1e-4)
    constant = torch.ones(5, 3, requires_grad=True)
    compactness_loss(constant).backward()
    assert constant.grad.isfinite().all()


def test_triplets():
    x, near, far = RNG.normal(size=(3, 6, 4))
    d = ((x - near) ** 2).sum(1), ((x - far) ** 2).sum(1), ((near - far) ** 2).sum(1)
    expected = np.maximum(0, 1 + d[0] - np.minimum(d[1], d[2])).mean()
    assert_allclose(triplet_loss(*map(torch.from_numpy, (x, near, far))), expected)


def test_patches_lie_around_their_pixels():
    x = torch.arange(60.0).reshape(2, 1, 5, 6).repeat(1, 2, 1, 1) + 1
    rows, columns = torch.tensor([0, 4]), torch.tensor([3, 5])
    patches = patches_at(x, 17, rows, columns)
    padded = F.pad(x, [8] * 4)
    for k, (i, j) in enumerate([(0, 3), (4, 5)]):
        assert_array_equal(patches[k], padded[k, :, i : i + 17, j : j + 17])
        assert_array_equal(patches[k, :, 8, 8], x[k, :, i, j])


def test_patches_move_by_a_few_pixels_within_the_image():
    x, places = torch.zeros(500, 1, 20, 3), (torch.full((500,), 10), torch.ones(500, dtype=int))
    rows, columns = moved(places, x, 2)
    assert set(rows.tolist()) == {8, 9, 10, 11, 12}
    assert set(columns.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("sides", [(40, 1), (64, 1), (17, 3), (1, 100), (140, 1), (3, 3)])
@pytest.mark.parametrize(("patch_size", "stride"), [(17, 1), (33, 4), (65, 8)])
def test_each_pixel_is_in_as_many_windows(sides, patch_size, stride, monkeypatch):
    """Of all windows, one after the other, and with as many patches in the mean as is said."""
    numbers = torch.arange(1.0, 1 + math.prod(sides)).reshape(1, 1, *sides)
    places, seen, sizes, half = [], np.zeros(math.prod(sides), int), [], patch_size // 2
    of_the_first = []

    def next_place(high, shape):
        places.append(high)
        return torch.tensor(of_the_first.pop())

    monkeypatch.setattr(torch, "randint", next_place)
    of_the_first += [0, 0]
    window(numbers, patch_size, stride)
    for of_the_first[:] in product(*map(range, places[1::-1])):
        part, n_patches = window(numbers, patch_size, stride)
        centres = part[0, 0, half : part.shape[2] - half : stride, half : part.shape[3] - half : stride]
        assert max(centres.shape) <= 16
        found = centres.flatten().int().numpy() - 1
        assert (found >= 0).all(), "no patch around a pixel beyond the border"
        seen[found] += 1
        sizes.append(len(found))
    assert len(set(seen)) == 1, "each pixel is seen as often"
    assert_allclose(np.mean(sizes), n_patches)


def scale(n_described=0, seed=0):
    torch.manual_seed(seed)
    network = ScaleNetwork(1, 17, 2, 3, 3, n_described)
    network.mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
    network.deviation.copy_(torch.tensor([0.5, 0.1, 2.0]))
    return network


def test_a_step_moves_each_student_down_its_own_loss_and_nothing_else():
    x = torch.rand(4, 1, 5, 6)

    def loss(network, x):
        # The window has the height and width of images this small.
        padded = F.pad(x, [8] * 4)
        targets = (network.teacher(padded) - network.mean[:, None, None]) / network.deviation[:, None, None]
        errors = [((student(padded) - targets.detach()) ** 2).sum(1).mean() for student in network.students]
        return errors[0] + errors[1] + errors[2]

    network, before = scale(), copy.deepcopy(scale().teacher.state_dict())
    assert_descends(Students, network, x, loss, ["students"])
    assert all(torch.equal(value, before[name]) for name, value in network.teacher.state_dict().items())
    losses, moved = run_step(Students, scale(), x)
    assert moved == {"students"}
    assert_allclose(losses["train_loss"], loss(scale(), x).detach(), rtol=1e-5)


def test_students_are_validated_on_the_same_window():
    network, x = scale(), torch.rand(2, 1, 40, 40)
    training = Students(network, stage="test")
    with torch.no_grad():
        assert training.validate(network, x) == training.validate(network, x)
        assert training.loss(network, x) != training.loss(network, x), "windows differ in training"


def test_settings_of_the_trainings(monkeypatch):
    patches, metric_loss = [], _distillation.triplet_loss
    monkeypatch.setattr(
        _distillation, "triplet_loss", lambda *args: patches.append(len(args[0])) or metric_loss(*args)
    )
    detector = tiny(UninformedStudents, metric_weight=1.0, teacher_lr=0.02, lr=0.003)
    settings = first_settings(monkeypatch, detector, X)
    assert {stage: (group["lr"], group["weight_decay"]) for (stage, _), group in settings.items()} == {
        "teacher_17": (0.02, 1e-5),
        "students_17": (0.003, 1e-5),
    }
    assert min(patches) >= 64, "patches in a step, as in the paper"
    assert UninformedStudents().input_size == 32


WEIGHTS = {"distillation_weight": 0.0, "metric_weight": 0.0, "compactness_weight": 0.0}


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({"distillation_weight": 2.0}, ["decoder", "teacher"]),
        ({"metric_weight": 3.0}, ["teacher"]),
        ({"compactness_weight": 0.5}, ["teacher"]),
        (
            {"distillation_weight": 2.0, "metric_weight": 3.0, "compactness_weight": 0.5},
            ["decoder", "teacher"],
        ),
    ],
    ids=str,
)
def test_a_step_moves_the_teacher_by_the_weighted_losses(weights, parts):
    def describe(patches):
        return patches.flatten(1)[:, :7] * 1000

    options = {"describe": describe, "n_patches": 10} | WEIGHTS | weights
    losses, moved = run_step(TeacherTraining, scale(7), torch.rand(4, 1, 20, 20), **options)
    assert sorted(moved) == parts
    names = {f"{name.removesuffix('_weight')}_loss" for name in weights}
    assert losses.keys() == names | {"train_loss"}
    expected = sum(weight * losses[name.replace("weight", "loss")] for name, weight in weights.items())
    assert_allclose(losses["train_loss"], expected, rtol=1e-5)


def test_distillation_is_of_standardised_features():
    """A decoder that gives nothing has an error of 1 for each feature, whatever its unit."""
    network = scale(7)
    torch.nn.init.zeros_(network.decoder.weight), torch.nn.init.zeros_(network.decoder.bias)
    options = {"describe": lambda patches: patches.flatten(1)[:, 140:147] * 1000 - 5, "n_patches": 64}
    options |= WEIGHTS | {"distillation_weight": 1.0}
    losses, _ = run_step(TeacherTraining, network, torch.rand(4, 1, 40, 40), **options)
    assert_allclose(losses["distillation_loss"], 7, rtol=1e-3)


class Pixels(nn.Module):
    """Teacher that describes a patch by its pixels."""

    patch_size = 33

    def forward(self, patches):
        return patches


def test_triplets_are_a_patch_one_nearby_and_one_of_another_image(monkeypatch):
    """Each of another contrast, by which the place of a patch can be told, and with noise if it is nearby."""
    spied = []
    monkeypatch.setattr(_distillation, "triplet_loss", lambda *args: spied.append(args))
    network, x = nn.Module(), torch.rand(4, 1, 20, 20, generator=torch.Generator().manual_seed(0)).double()
    network.teacher = Pixels()
    options = {"describe": None, "n_patches": 64, "stage": "test"} | WEIGHTS | {"metric_weight": 1.0}
    with seeded(0):
        TeacherTraining(network, **options).terms(network, x)
    windows = F.pad(x, [16] * 4).unfold(2, 33, 1).unfold(3, 33, 1).reshape(4 * 400, -1)
    places, fits = [], []
    for patches in spied[0]:
        assert patches.shape == (64, 33 * 33)
        found = np.corrcoef(patches, windows)[:64, 64:].argmax(1)
        places.append(np.stack(np.unravel_index(found, (4, 20, 20))))
        lines = [np.polyfit(a, b, 1, full=True)[:2] for a, b in zip(windows[found].numpy(), patches.numpy())]
        fits.append(np.array([(*line, np.sqrt(residual.sum() / 33**2)) for line, residual in lines]).T)
    (image, *place), (image_near, *place_near), (image_far, *_) = places
    assert_array_equal(image_near, image)
    assert (image_far != image).all()
    for a, b in zip(place, place_near):
        assert set(b - a) == {-2, -1, 0, 1, 2}, "33 // 16 pixels at most"
    for (gain, shift, noise), deviation in zip(fits, (0, 0.02, 0)):
        assert_allclose([gain.min(), gain.max(), shift.min(), shift.max()], [0.7, 1.3, -0.1, 0.1], atol=0.05)
        assert_allclose(noise, deviation, atol=0.003)
    assert abs(np.corrcoef(fits[0][:2], fits[1][:2])[:2, 2:]).max() < 0.4, "each of its own"


def fitted(**parameters):
    return tiny(UninformedStudents, **parameters).fit(X)


def by_hand(scale, images):
    """Error and variance at each pixel of uint8 images, patch by patch, in float64."""
    scale = copy.deepcopy(scale).double()
    x = F.pad(torch.from_numpy(images[:, None] / 255), [scale.teacher.patch_size // 2] * 4)
    size = scale.teacher.patch_size
    patches = x.unfold(2, size, 1).unfold(3, size, 1).flatten(0, 3)[:, None]
    with torch.no_grad():
        teacher, *students = (reference(part, patches).numpy() for part in (scale.teacher, *scale.students))
    y = (teacher - scale.mean.numpy()) / scale.deviation.numpy()
    mean = np.mean(students, 0)
    variance = np.mean([(student - mean) ** 2 for student in students], 0).sum(1)
    return (part.reshape(images.shape) for part in (((mean - y) ** 2).sum(1), variance))


def test_the_map_is_standardised_error_plus_variance_patch_by_patch():
    """Of two patch sizes the mean. Its largest pixels are the score, if they are asked for."""
    detector = fitted(patch_sizes=(17, 33), pooling="top", top_fraction=0.1, max_epochs=2)
    parts = []
    for scale in detector.network_.scales.values():
        for k, values in enumerate(by_hand(scale, NEW[:2])):
            parts.append((values - float(scale.centre[k])) / float(scale.spread[k]))
    expected = sum(parts) / 2
    assert_allclose(detector.anomaly_map(NEW[:2]), expected, rtol=1e-3, atol=1e-3)
    pixels = np.sort(expected.reshape(2, -1), axis=1)
    assert_allclose(-detector.score_samples(NEW[:2]), pixels[:, -26:].mean(1), rtol=1e-3)
    found = detector.score_components(NEW[:2])
    assert_allclose(found["max"], pixels[:, -1], rtol=1e-3)
    assert_allclose(found["mean"], pixels.mean(1), rtol=1e-3, atol=1e-3)
    assert_allclose(found["error"] + found["variance"], found["mean"], rtol=1e-3, atol=1e-4)


def test_error_and_variance_are_standardised_on_normal_images():
    detector = fitted()
    with torch.no_grad():
        values = detector.network_.regress(torch.from_numpy(X[:, None] / np.float32(255)))
        values = detector.network_.standardise(*values).numpy()
    assert_allclose(values.mean((0, 2, 3)), 0, atol=1e-3)
    assert_allclose(values.std((0, 2, 3)), 1, rtol=1e-3)


def test_images_held_out_standardise_where_there_are_any(monkeypatch):
    used, replay = [], _inference.Replay
    monkeypatch.setattr(_inference, "Replay", lambda *args: used.append(len(args[2])) or replay(*args))
    fitted(validation_fraction=0.3)
    assert used == [6]


def test_targets_are_standardised_on_training_images():
    (scale,) = fitted().network_.scales.values()
    with torch.no_grad():
        described = scale.teacher.at_each_pixel(torch.from_numpy(X[:, None] / np.float32(255)))
        targets = scale.targets(described).double()
    assert_allclose(targets.mean((0, 2, 3)), 0, atol=1e-3)
    assert_allclose(targets.std((0, 2, 3)), 1, rtol=1e-3)


def test_large_images_are_described_a_few_at_a_time(monkeypatch):
    detector, calls = fitted(), []
    expected = detector.anomaly_map(NEW)
    at_each_pixel = PatchNetwork.at_each_pixel
    monkeypatch.setattr(
        PatchNetwork, "at_each_pixel", lambda self, x: calls.append(len(x)) or at_each_pixel(self, x)
    )
    monkeypatch.setattr(uninformed_students, "N_PIXELS", 7 * 16 * 16)
    assert_allclose(detector.anomaly_map(NEW), expected, rtol=1e-4, atol=1e-4)
    assert set(calls) == {4}


def test_a_dimension_that_never_changes_is_no_divisor():
    assert_allclose(positive(np.array([0, 1e-9, 2.0])), [0.002, 0.002, 2])
    assert_array_equal(positive(np.zeros(2)), 1)


def test_students_start_from_different_weights():
    network = ScaleNetwork(1, 17, 2, 3, 3, 0)
    first = [part.convs[0].weight.detach().numpy().tobytes() for part in (network.teacher, *network.students)]
    assert len(set(first)) == 4


@pytest.mark.parametrize(("input_size", "size"), [(32, (32, 32)), (None, (64, 64)), ((9, 20), (9, 20))])
def test_patches_are_square_whatever_the_images_are(input_size, size, monkeypatch):
    seen = set()

    def look(backbone, *args, of=_backbone.vectors):
        seen.add(tuple(backbone.size))
        return of(backbone, *args)

    monkeypatch.setattr(_backbone, "vectors", look)
    options = {"backbone": "filters", "patch_sizes": (17,), "input_size": input_size}
    tiny(UninformedStudents, **options).fit(make_images((4, 9, 40)))
    assert seen == {size}


def test_metric_learning_needs_no_backbone(monkeypatch):
    detector = UninformedStudents(
        patch_sizes=(17,), distillation_weight=0, metric_weight=1, width=2, max_epochs=1, teacher_epochs=1
    )
    monkeypatch.setattr("skanomaly._backbone.describe", None)
    detector.fit(X)
    assert detector.backbone_ is None
    assert list(detector.history_) == ["teacher_17", "students_17"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"backbone": "imagenet", "layers": [3, 1]},
        {"distillation_weight": 0, "metric_weight": 1.0},
        {"patch_sizes": [33, 17], "n_students": 2, "n_features": 1, "pooling": "max"},
        {"validation_fraction": 0.2, "pooling": "top", "compactness_weight": 0.0},
    ],
    ids=str,
)
def test_options(parameters, tmp_path):
    check_option(tiny(UninformedStudents, **parameters), tmp_path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"patch_sizes": (17, 18)}, "patch_sizes must hold each of .*, got .17, 18."),
        ({"patch_sizes": ()}, "patch_sizes must hold"),
        ({"patch_sizes": (17, 17)}, "patch_sizes must hold"),
        ({"patch_sizes": (17.0,)}, "patch_sizes must hold"),
        ({"patch_sizes": ([17],)}, "patch_sizes must hold"),
        ({"distillation_weight": 0}, "set distillation_weight or metric_weight above 0"),
        ({"n_students": 1}, "'n_students' parameter of UninformedStudents must be"),
        ({"top_fraction": 0.0}, "'top_fraction' parameter of UninformedStudents must be"),
        ({"teacher_lr": 0.0}, "'teacher_lr' parameter of UninformedStudents must be"),
        ({"layers": (7,)}, "layers must be one or more different numbers from 0 to 2"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(UninformedStudents, **parameters).fit(X)


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    train, normal, foreign, masks = chests(16, 60, 40, 3 / 8)
    options = {"patch_sizes": (17,), "distillation_weight": 0, "metric_weight": 1, "random_state": 0}
    options |= {"width": 8, "n_features": 8, "teacher_epochs": 4}
    trained = UninformedStudents(max_epochs=10, lr=3e-3, **options).fit(train)
    untrained = UninformedStudents(max_epochs=1, lr=1e-12, **options).fit(train)
    before, after = (auroc(fitted, normal, foreign) for fitted in (untrained, trained))
    assert after >= max(0.7, before + 0.2), (before, after)
    # The mean of a map over all pixels of normal images is 0.
    before, after = (
        fitted.anomaly_map(foreign)[masks].mean() - fitted.anomaly_map(foreign)[~masks].mean()
        for fitted in (untrained, trained)
    )
    assert after >= max(0.5, before + 0.5), (before, after)
