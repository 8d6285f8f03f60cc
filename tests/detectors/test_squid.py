"""SQUID: who moves and when the memory is written, its losses and its score, and that it learns."""

import copy

import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from torch.nn.functional import softplus

from skanomaly import SQUID
from skanomaly._random import seeded
from skanomaly.detectors.squid import InPaintingTraining, SpaceAwareMemory
from skanomaly.networks.inpainting import WindowEncoder
from skanomaly.testing import make_images, tiny
from skanomaly.transforms import Affine

WEIGHTS = {"teacher": 1.0, "student": 1.0, "distillation": 1.0, "adversarial": 1.0, "discriminator": 1.0}
PARTS = "encoder", "inpainting", "student", "teacher", "discriminator"


def plain(weights):
    return weights


def network(**parameters):
    with seeded(0):
        return tiny(SQUID, n_windows=2, **parameters)._build((1, 16, 16))


def images(n=8):
    with seeded(1):
        return torch.rand(n, 1, 16, 16)


def step(net, *, weights=WEIGHTS, n_critic=1, detach_teacher=True, n_steps=1, augmentation=None):
    """Steps of plain gradient descent; what was recorded, and which parts moved."""
    training = InPaintingTraining(
        net,
        augmentation=augmentation,
        n_critic=n_critic,
        weights=WEIGHTS | weights,
        detach_teacher=detach_teacher,
        optimizer=torch.optim.SGD,
        stage="test",
        max_epochs=1,
        batch_size=8,
        lr=1e-2,
        verbose=0,
    )
    training.initialize()
    training.history.new_epoch()
    training.totals_, training.batch_size_ = {}, 8
    before = {part: [value.clone() for value in getattr(net, part).parameters()] for part in PARTS}
    net.train()
    with seeded(0):
        for _ in range(n_steps):
            training.n_steps += 1
            training.step(net, images())
    moved = {
        part
        for part in PARTS
        if any(not torch.equal(a, b) for a, b in zip(before[part], getattr(net, part).parameters()))
    }
    return {name: float(total / n) for name, (total, n) in training.totals_.items()}, moved


def test_who_moves():
    assert step(network())[1] == set(PARTS)
    only = dict.fromkeys(WEIGHTS, 0.0)
    assert step(network(), weights=only | {"discriminator": 1.0})[1] == {"discriminator"}
    assert step(network(), weights=only | {"teacher": 1.0})[1] == {"teacher"}
    assert step(network(), weights=only | {"teacher": 1.0}, detach_teacher=False)[1] == {"teacher", "encoder"}
    adversarial = step(network(), weights=only | {"adversarial": 1.0})[1]
    assert adversarial == {"encoder", "inpainting", "student"}, "the teacher has no opponent"
    assert step(network(), n_critic=2)[1] == {"discriminator"}
    assert step(network(), n_critic=2, n_steps=2)[1] == set(PARTS)


def test_the_memory_is_written_after_the_step_with_what_was_asked_for():
    net, other = network(), network()
    start = net.inpainting.memory.items.clone()
    step(net)
    with seeded(0), torch.no_grad():
        other.train()
        _, vectors, _ = other.paint(other.encode(images()))
    assert net.inpainting.memory.pointer == 0, "8 images, 8 slots"
    assert_allclose(net.inpainting.memory.items, vectors.transpose(0, 1), atol=1e-6)
    net = network()
    step(net, n_critic=2)
    assert torch.equal(net.inpainting.memory.items, start), "not where only the discriminator moved"
    assert "inpainting.memory.items" in net.state_dict()
    assert "inpainting.memory.pointer" in net.state_dict()


def test_students_learn_from_teachers_at_every_level_and_teachers_from_students():
    with seeded(0):
        net = tiny(SQUID, n_windows=2, width=2)._build((1, 32, 32))
    assert len(net.student.units) == 2
    found = {}

    class Spy(InPaintingTraining):
        def move(self, optimizer, **loss):
            (value,) = loss.values()
            if optimizer == "optimizer":
                units = [*net.student.units, *net.teacher.units]
                weights = [unit.first[0].weight for unit in units]
                found["gradients"] = torch.autograd.grad(value, weights, retain_graph=True)

    only = dict.fromkeys(WEIGHTS, 0.0) | {"distillation": 1.0}
    options = {"augmentation": None, "n_critic": 1, "weights": only, "detach_teacher": True}
    same = copy.deepcopy(net).train()  # a step writes the memory
    with seeded(0), torch.no_grad():
        levels = same.encode(torch.rand(4, 1, 32, 32))
        _, student = same.decode(same.student, same.paint(levels)[0])
        _, teacher = same.decode(same.teacher, levels)
    training = Spy(net, stage="test", batch_size=4, lr=1e-2, verbose=0, max_epochs=1, **options)
    training.initialize()
    training.history.new_epoch()
    training.totals_, training.batch_size_, training.n_steps = {}, 4, 1
    with seeded(0):
        training.step(net.train(), torch.rand(4, 1, 32, 32))
    assert all(gradient.abs().sum() > 0 for gradient in found["gradients"])
    expected = sum(((s - t) ** 2).mean() for s, t in zip(student, teacher))
    total, count = training.totals_["distillation_loss"]
    assert_allclose(total / count, expected, rtol=1e-4)


def test_the_weight_of_the_discriminator():
    moved = []
    for weight in (1.0, 3.0):
        net = network()
        before = net.discriminator.value.weight.clone()
        step(net, weights=dict.fromkeys(WEIGHTS, 0.0) | {"discriminator": weight})
        moved.append(net.discriminator.value.weight - before)
    assert_allclose(moved[1].detach(), 3 * moved[0].detach(), rtol=1e-3, atol=1e-7)


def test_the_losses():
    net = network()
    losses, _ = step(network(), weights={"student": 3.0, "distillation": 0.5})
    with seeded(0), torch.no_grad():
        net.train()
        x = images()
        levels = net.encode(x)
        painted, _, _ = net.paint(levels)
        y, student = net.decode(net.student, painted)
        real, fake = net.discriminator(x), net.discriminator(y)
        z, teacher = net.decode(net.teacher, levels)
        expected = {
            "student_loss": ((y - x) ** 2).mean(),
            "teacher_loss": ((z - x) ** 2).mean(),
            "distillation_loss": sum(((s - t) ** 2).mean() for s, t in zip(student, teacher)),
            "discriminator_loss": -torch.log(real.sigmoid() * (1 - fake.sigmoid())).mean(),
        }
    for name, value in expected.items():
        assert_allclose(losses[name], value, rtol=1e-4, err_msg=name)
    total = losses["teacher_loss"] + 3 * losses["student_loss"] + 0.5 * losses["distillation_loss"]
    assert_allclose(losses["train_loss"], total + losses["adversarial_loss"], rtol=1e-5)
    with seeded(0), torch.no_grad():
        net.discriminator.load_state_dict(_after_discriminator(net, x, y))
        assert_allclose(losses["adversarial_loss"], softplus(-net.discriminator(y)).mean(), rtol=1e-3)


def _after_discriminator(net, x, y):
    """Its state after a step of plain descent."""
    with torch.enable_grad():
        loss = softplus(-net.discriminator(x)).mean() + softplus(net.discriminator(y)).mean()
        gradients = torch.autograd.grad(loss, list(net.discriminator.parameters()))
    state = net.discriminator.state_dict()
    for (name, value), gradient in zip(net.discriminator.named_parameters(), gradients):
        state[name] = value - 1e-2 * gradient
    return state


def test_the_score_is_standardised_on_the_training_images():
    X = make_images((40, 16, 16))
    detector = tiny(SQUID, max_epochs=3).fit(X)
    components = detector.score_components(X)
    assert_allclose(-detector.score_samples(X), components["feature"])
    score = components["discriminator"]
    assert_allclose([score.mean(), score.std()], [0, 1], atol=1e-4)
    assert_allclose(np.log(components["probability"] / (1 - components["probability"])), score, atol=1e-4)
    net = detector.network_.eval()
    with torch.no_grad():
        logit = net.discriminator(net(torch.from_numpy(X[:, None] / 255).float()))
    assert np.corrcoef(logit, score)[0, 1] < -0.999, "what looks real is normal"
    maps = np.abs(detector.reconstruct(X) - X) / 255
    assert_allclose(detector.anomaly_map(X), maps, atol=1e-5)
    assert_allclose(components["residual"], maps.mean((1, 2)), atol=1e-5)
    with torch.no_grad():
        _, vectors, retrieved = net.paint(net.encode(torch.from_numpy(X[:, None] / 255).float()))
    assert_allclose(components["feature"], ((vectors - retrieved) ** 2).mean((1, 2)), rtol=1e-4)
    for name in "discriminator", "residual", "feature":
        assert_allclose(
            detector.set_params(score_component=name).score_samples(X), -components[name], atol=1e-6
        )


def test_the_discriminator_judges_each_image_by_its_own_statistics():
    """Its logits are those of train mode for a single image, in the score and in its mean and deviation."""
    X = make_images((12, 16, 16))
    detector = tiny(SQUID, max_epochs=4, lr=0.02).fit(X)
    net, score = detector.network_.eval(), detector.score_components(X)["discriminator"]
    with torch.no_grad():
        y = net(torch.from_numpy(X[:, None] / 255).float())
        net.discriminator.train()
        logits = torch.cat([net.discriminator(image[None]) for image in y]).double()
    assert_allclose(net.mean, logits.mean(), rtol=1e-4)
    assert_allclose(net.deviation, logits.std(correction=0), rtol=1e-3)
    assert_allclose(score, (logits.mean() - logits) / logits.std(correction=0), atol=1e-2)
    assert not [name for name, _ in net.discriminator.named_buffers()], "no statistics of training"


def test_the_published_decoder_trains():
    """That of chest X-rays of 128 x 128: two skips, each followed by a memory. Its width is 32, here 2."""
    X = make_images((4, 128, 128))
    detector = tiny(
        SQUID,
        skips=("concatenation", "concatenation"),
        n_memories=2,
        similarity="dot",
        neighbours="padded",
        n_slots=20,
        n_critic=2,
        batch_size=2,
        max_epochs=10,
        lr=0.01,
    ).fit(X)
    losses = detector.history_["inpainting"][:, "student_loss"]
    assert losses[-1] < 0.9 * losses[0]
    memories = [memory.memory.items for memory in detector.network_.student.memories[:2]]
    assert [tuple(items.shape) for items in memories] == [(4, 20, 256), (4, 20, 512)]
    assert all(items.requires_grad for items in memories)
    assert np.isfinite(detector.score_samples(X)).all()


def test_one_memory_for_all_places():
    own, shared = (SpaceAwareMemory(4, 6, 8, space_aware=aware, shrink=plain) for aware in (True, False))
    features = torch.randn(3, 4, 8)
    own.write(features), shared.write(features)
    assert (own.pointer, shared.pointer) == (3, 0)
    assert torch.equal(own.items[2, :3], features[:, 2])
    assert torch.equal(shared.items[0], features.reshape(12, 8)[-6:])
    alone = shared(features[1:2, 2:3].expand(1, 4, 8))
    assert torch.allclose(shared(features)[1, 2], alone[0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "parameters",
    [
        {"memory": "matrix", "neighbours": "padded"},
        {"space_aware": False, "detach_teacher": False},
        {"shrinkage": "hard", "augmentation": Affine()},
        {"similarity": "dot", "n_windows": 1},
        {"skips": ("concatenation", "sum"), "n_memories": 2, "stitch_level": 0},
        {"n_windows": 3, "adversarial_weight": 0.0, "discriminator_weight": 0.0},
    ],
    ids=str,
)
def test_options_learn(parameters):
    X = make_images((16, 18, 18))
    detector = tiny(SQUID, max_epochs=6, lr=0.02, **parameters).fit(X)
    losses = detector.history_["inpainting"][:, "student_loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert np.isfinite(detector.score_samples(X)).all()


def reconstruct(**parameters):
    """Reconstructions after two steps."""
    X, weights = make_images((8, 16, 16)), {"teacher_weight": 1.0, "distillation_weight": 1.0}
    return tiny(SQUID, **{"max_epochs": 2} | weights | parameters).fit(X).reconstruct(X)


@pytest.fixture(scope="module")
def by_default():
    return reconstruct()


@pytest.mark.parametrize(
    "parameters",
    [
        {"n_slots": 6},
        {"k": 1},
        {"rho": 0.5},
        {"memory": "matrix"},
        {"space_aware": False},
        {"shrinkage": "hard"},
        {"similarity": "dot"},
        {"neighbours": "padded"},
        {"skips": ("concatenation",)},
        {"stitch_level": 0},
        {"n_memories": 1},
        {"encoder": lambda window: WindowEncoder(window, width=3, strides=[(2, 2)])},
        {"n_levels": 2},
        {"augmentation": Affine()},
        {"detach_teacher": False},
        {"teacher_weight": 5.0},
        {"student_weight": 5.0},
        {"distillation_weight": 5.0},
        {"adversarial_weight": 5.0},
        {"n_critic": 2},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_options_are_heard(parameters, by_default):
    assert not np.array_equal(reconstruct(**parameters), by_default)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_k_features_are_combined(k):
    with seeded(0):
        memory = tiny(SQUID, n_windows=2, k=k)._build((1, 16, 16)).inpainting.memory
        weights = memory.weights(torch.randn(5, *memory.items.shape[::2]))
    assert ((weights > 0).sum(-1) == k).all()


def test_one_slot_is_kept_by_hard_shrinkage():
    with seeded(0):
        memory = tiny(SQUID, n_windows=2, n_slots=1, shrinkage="hard")._build((1, 16, 16)).inpainting.memory
        query = torch.randn(5, *memory.items.shape[::2])
    assert_allclose(memory(query), memory.items.transpose(0, 1).expand(5, -1, -1), rtol=1e-5)


def test_places_are_kept_one_by_one():
    """The masked shortcut is drawn for each place of a feature, and only in training."""
    with seeded(0):
        net = tiny(SQUID, n_windows=2, rho=0.5)._build((1, 16, 16)).train()
        levels = net.encode(images())
        painted, _, _ = net.paint(levels)
    kept = painted[-1] == levels[-1]
    assert torch.equal(kept.all(1), kept.any(1) & kept.all(1))
    of_windows = kept.all(1).flatten(1).float().mean(1)
    assert ((of_windows > 0) & (of_windows < 1)).float().mean() > 0.8
    again, _, _ = net.eval().paint(levels)
    assert not (again[-1] == levels[-1]).all(1).float().mean() > 0.2


def test_the_optimisers_are_those_of_the_public_code():
    made = []

    class Spy(torch.optim.Adam):
        def __init__(self, parameters, **options):
            super().__init__(parameters, **options)
            made.append(self.defaults)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Spy)
        tiny(SQUID).fit(make_images())
    main, discriminator = made
    assert (main["betas"], main["eps"], main["weight_decay"]) == ((0.5, 0.999), 1e-7, 1e-5)
    assert (discriminator["betas"], discriminator["eps"], discriminator["weight_decay"]) == (
        (0.5, 0.999),
        1e-8,
        0,
    )


def bare(*levels):
    """A factory of encoders that give features of these shapes, whatever the image."""

    class Levels(torch.nn.Module):
        def forward(self, x):
            return [x.new_zeros(len(x), *shape) for shape in levels]

    return lambda window: Levels()


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda window: None, "encoder must make a torch module of a shape, and made a NoneType"),
        (lambda window: torch.nn.Identity(), "encoder must make .* it gave a Tensor"),
        (
            bare((2, 8, 8)),
            r"a list of two features .* it gave .* the shapes \[\(1, 2, 8, 8\)\]",
        ),
        (bare((2, 4, 4), (4, 2, 2)), r"the first of the size of the window, 8 x 8.* it gave"),
        (bare((2, 8, 8), (4, 9, 9)), "none larger than the one before; it gave"),
    ],
)
def test_bad_encoders(encoder, message):
    with pytest.raises(ValueError, match=message):
        tiny(SQUID, encoder=encoder).fit(make_images())


def test_the_rate_falls_along_a_cosine():
    rates = []

    class Spy(torch.optim.Adam):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Spy)
        tiny(SQUID, max_epochs=3, lr=0.5).fit(make_images((8, 16, 16)))
    expected = [0.25 * (1 + np.cos(np.pi * epoch / 4.5)) for epoch in range(3)]
    assert_allclose(rates[1::2], expected)
    assert_allclose(rates[::2], 0.5, err_msg="not the discriminator's")


def test_an_augmentation_must_keep_the_shape():
    with pytest.raises(ValueError, match=r"of their shape \(\d, 1, 16, 16\), got \(\d, 1, 8, 8\)"):
        tiny(SQUID, augmentation=lambda x: x[..., ::2, ::2]).fit(make_images())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_windows": 17}, "n_windows must be at most the shorter side of the images, 16 x 16 .* got 17"),
        ({"k": 9}, "k must be at most n_slots, .* got k=9 and n_slots=8"),
        ({"skips": ("add",)}, "skips must hold 'concatenation', 'sum' and 'none' only"),
        ({"rho": 1.5}, "'rho' parameter of SQUID"),
        ({"memory": "list"}, "'memory' parameter of SQUID"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(SQUID, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    """Its residual; what the discriminator says of foreign patches after so short a training is chance."""
    detector = SQUID(width=8, n_slots=50, max_epochs=4, batch_size=10, lr=5e-3, random_state=0)
    check_learns(detector, component="residual", at_least=0.75, gain=0.20)
