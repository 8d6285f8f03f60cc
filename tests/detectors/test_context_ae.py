from functools import partial

import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from torch import nn

from skanomaly import AutoEncoder, ContextAE
from skanomaly._losses import squared_error
from skanomaly._random import seeded
from skanomaly.detectors import context_ae
from skanomaly.testing import make_images, tiny
from skanomaly.training import Reconstruction
from skanomaly.transforms.corruptions import add_coarse_noise, erase_squares


def test_each_image_loses_a_square_of_its_own():
    x = torch.rand(50, 3, 64, 64)
    with seeded(0):
        y = erase_squares(x, area=0.024, value=-1.0)
    gone = y == -1
    assert (gone[:, 0].sum((1, 2)) == 100).all(), "10 x 10 pixels of 64 x 64"
    assert (gone[:, 0] == gone[:, 2]).all()
    assert torch.equal(y[~gone], x[~gone])
    rows, columns = gone[:, 0].any(2), gone[:, 0].any(1)
    assert (rows.sum(1) == 10).all()
    assert (columns.sum(1) == 10).all()
    starts = rows.int().argmax(1)
    assert len(starts.unique()) > 20, "not one for the batch"
    assert (starts.min(), starts.max()) == (0, 54), "and anywhere"


@pytest.mark.parametrize("shape", [(3, 1, 1, 40), (3, 1, 2, 2), (3, 2, 5, 30)])
def test_squares_fit_any_image(shape):
    gone = erase_squares(torch.ones(shape), area=0.5, value=0.0) == 0
    assert gone.any((1, 2, 3)).all()
    assert not gone.all((1, 2, 3)).any() or shape[2:] == (1, 1)


def test_coarse_noise():
    x = torch.zeros(400, 1, 32, 32)
    with seeded(0):
        y = add_coarse_noise(x, deviation=0.2, size=8)
    assert_allclose(y.mean(), 0, atol=0.01)
    assert 0.05 < y.std() < 0.2, "enlarged by interpolation, which smooths"
    near = (y[..., 1:] - y[..., :-1]).square().mean().sqrt()
    far = (y[..., 8:] - y[..., :-8]).square().mean().sqrt()
    assert near < 0.4 * far, "neighbours are alike"
    bends = torch.zeros(30)
    for seed in range(60):
        with seeded(seed):
            y = add_coarse_noise(x[:4], deviation=0.2, size=4)
        bends += (y[..., 2:] - 2 * y[..., 1:-1] + y[..., :-2]).square().mean((0, 1, 2))
    assert bends.min() > 0.05 * bends.max(), "rolled: it bends anywhere, not at fixed places"
    assert_allclose(add_coarse_noise(x + 3, deviation=0.0, size=8), 3, atol=1e-6)


class Constant(nn.Module):
    """The same image for every input, which it keeps."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.ParameterDict({"image": torch.full((1, 1, 8, 8), value)})
        self.given = []

    def forward(self, x):
        self.given.append(x)
        return self.value["image"].expand_as(x)


def test_what_is_erased_is_asked_for():
    net, x = Constant(0.5), torch.ones(4, 1, 8, 8)
    erase = partial(erase_squares, area=0.25, value=-1.0)
    training = Reconstruction(net, stage="s", error=squared_error, corrupt=erase, parts=None)
    training.initialize()
    training.totals_, training.batch_size_ = {}, 4
    training.step(net, x)
    assert (net.given[0] == -1).sum() == 4 * 16
    (total, count) = training.totals_["train_loss"]
    assert_allclose(total / count, 0.25, err_msg="the target is the clean image")
    training.validate(net, x)
    assert torch.equal(net.given[1], x), "held-out images stay whole"


def test_the_area_is_heard(monkeypatch):
    asked = []

    def erase(x, *, area, value):
        asked.append((area, value))
        return x

    monkeypatch.setattr(context_ae, "erase_squares", erase)
    tiny(ContextAE, erased_area=0.3).fit(make_images())
    assert set(asked) == {(0.3, -1.0)}


def test_images_are_judged_whole():
    X = make_images((5, 20, 14))
    detector = tiny(ContextAE).fit(X)
    error = ((detector.reconstruct(X) - X) / 255 * 2) ** 2
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-6)
    assert_allclose(-detector.score_samples(X), error.mean((1, 2)), rtol=1e-4)


def test_it_fills_in_what_an_autoencoder_does_not():
    X = make_images((64, 16, 16))
    options = {"max_epochs": 60, "width": 8, "latent_size": 8, "lr": 0.01}
    context = tiny(ContextAE, erased_area=0.1, **options).fit(X)
    plain = tiny(AutoEncoder, **options).fit(X)
    x = torch.from_numpy(X[:, None] / 255).float() * 2 - 1
    with seeded(0):
        holed = erase_squares(x, area=0.1, value=-1.0)
    hole = holed != x
    with torch.no_grad():
        errors = [(detector.network_(holed) - x)[hole].square().mean() for detector in (context, plain)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("area", [0.0, 1.0])
def test_bad_parameters(area):
    with pytest.raises(ValueError, match="'erased_area' parameter of ContextAE must be a float in the range"):
        tiny(ContextAE, erased_area=area).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    check_learns(ContextAE(hidden_size=128, width=8, batch_size=16, max_epochs=25, random_state=0))
