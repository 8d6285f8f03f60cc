"""SQUID: who moves and when the memory is written, its losses and its score, and that it learns."""

import numpy as np
import pytest
import torch
from foreign import paste_foreign_patches
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score
from torch.nn.functional import softplus

from skanomaly import SQUID
from skanomaly._random import seeded
from skanomaly.datasets import load_chest_xray
from skanomaly.detectors.squid import InPaintingTraining, SpaceAwareMemory
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
    with torch.no_grad(), seeded(0):
        other.train()
        _, vectors, _ = other.paint(other.encode(images()))
    assert net.inpainting.memory.pointer == 0, "8 images, 8 slots"
    assert_allclose(net.inpainting.memory.items, vectors.transpose(0, 1), atol=1e-6)
    net = network()
    step(net, n_critic=2)
    assert torch.equal(net.inpainting.memory.items, start), "not where only the discriminator moved"
    assert "inpainting.memory.items" in net.state_dict()
    assert "inpainting.memory.pointer" in net.state_dict()


def test_the_losses():
    net = network()
    losses, _ = step(network(), weights={"student": 3.0, "distillation": 0.5})
    with torch.no_grad(), seeded(0):
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
    with torch.no_grad(), seeded(0):
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
    score = components["discriminator"]
    assert_allclose(-detector.score_samples(X), score)
    assert_allclose([score.mean(), score.std()], [0, 1], atol=1e-4)
    assert_allclose(np.log(components["probability"] / (1 - components["probability"])), score, atol=1e-4)
    net = detector.network_.eval()
    with torch.no_grad():
        logit = net.discriminator(net(torch.from_numpy(X[:, None] / 255).float()))
    assert np.corrcoef(logit, score)[0, 1] < -0.999, "what looks real is normal"
    maps = np.abs(detector.reconstruct(X) - X) / 255
    assert_allclose(detector.anomaly_map(X), maps, atol=1e-5)
    assert_allclose(components["residual"], maps.mean((1, 2)), atol=1e-5)
    assert (components["feature"] >= 0).all()
    for name in "discriminator", "residual", "feature":
        assert_allclose(
            detector.set_params(score_component=name).score_samples(X), -components[name], atol=1e-6
        )


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
        {"memory": "matrix"},
        {"space_aware": False},
        {"shrinkage": "hard"},
        {"similarity": "dot"},
        {"neighbours": "padded"},
        {"skips": ("concatenation", "sum"), "n_memories": 2, "stitch_level": 0},
        {"n_windows": 1},
        {"n_windows": 3},
        {"adversarial_weight": 0.0, "discriminator_weight": 0.0},
        {"detach_teacher": False},
        {"augmentation": Affine()},
    ],
    ids=str,
)
def test_options_learn(parameters):
    X = make_images((32, 18, 18))
    detector = tiny(SQUID, max_epochs=8, width=4, lr=0.005, **parameters).fit(X)
    losses = detector.history_["inpainting"][:, "student_loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert np.isfinite(detector.score_samples(X)).all()


def test_the_rate_falls_along_a_cosine():
    rates = []

    class Spy(torch.optim.Adam):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InPaintingTraining.__init__, "__kwdefaults__", {"optimizer": Spy})
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


def test_learns_what_a_chest_looks_like():
    half = [load_chest_xray(subset=subset).images[:, ::2, ::2] for subset in ("train", "test")]
    train, normal = half[0], half[1][load_chest_xray(subset="test").target == 1][:60]
    foreign, masks = paste_foreign_patches(normal)
    both, y = np.concatenate([normal, foreign]), np.repeat([0, 1], len(normal))
    small = {"width": 8, "n_slots": 100, "random_state": 0}
    trained = SQUID(max_epochs=20, **small).fit(train)
    untrained = SQUID(max_epochs=1, lr=1e-12, **small).fit(train)
    # Of the residual; what the discriminator says of foreign patches after so short a training is chance.
    auroc, before = (
        roc_auc_score(y, detector.score_components(both)["residual"]) for detector in (trained, untrained)
    )
    assert auroc > 0.75
    assert auroc > before + 0.2
    maps = trained.anomaly_map(foreign)
    assert maps[masks].mean() > 1.5 * maps[~masks].mean()
