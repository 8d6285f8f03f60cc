import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from sklearn.base import clone

from skanomaly import AutoEncoder
from skanomaly._losses import ssim_error
from skanomaly.testing import make_images, tiny


def test_the_score_is_the_mean_squared_error_of_what_it_reconstructs():
    X = make_images((5, 20, 14))
    detector = tiny(AutoEncoder).fit(X)
    error = ((detector.reconstruct(X) - X) / 255 * 2) ** 2
    assert_allclose(detector.anomaly_map(X), error, rtol=1e-3, atol=1e-6)
    assert_allclose(-detector.score_samples(X), error.mean((1, 2)), rtol=1e-4)
    assert_allclose(detector.score_components(X)["residual"], -detector.score_samples(X))


def test_the_other_losses():
    X = make_images((5, 20, 14))
    detector = tiny(AutoEncoder, loss="l1").fit(X)
    expected = np.abs(detector.reconstruct(X) - X) / 255 * 2
    assert_allclose(detector.anomaly_map(X), expected, rtol=1e-3, atol=1e-5)
    detector = tiny(AutoEncoder, loss="ssim").fit(X)
    x, y = (torch.from_numpy(images / 255).float()[:, None] for images in (X, detector.reconstruct(X)))
    assert_allclose(detector.anomaly_map(X), ssim_error(y, x), rtol=1e-3, atol=1e-4)


def test_one_epoch_moves_encoder_and_decoder_to_their_last_layer():
    X = make_images()
    one, two = (tiny(AutoEncoder, max_epochs=epochs).fit(X).network_ for epochs in (1, 2))
    for (name, a), b in zip(one.named_parameters(), two.parameters()):
        assert not torch.equal(a, b), name


def test_colour_reconstructions_have_the_layout_and_units_of_the_images():
    X = make_images((40, 16, 16, 3)) // 2 + 60
    detector = tiny(AutoEncoder, max_epochs=60, width=8, latent_size=8, lr=0.01).fit(X)
    first = clone(detector).set_params(channel_axis=1).fit(np.moveaxis(X, -1, 1))
    y = detector.reconstruct(X)
    assert_allclose(np.moveaxis(first.reconstruct(np.moveaxis(X, -1, 1)), 1, -1), y, atol=1e-3)
    assert np.abs(y - X).mean() < np.abs(X - X.mean()).mean()


@pytest.mark.parametrize("parameters", [{"bottleneck": "spatial"}, {"loss": "l1"}, {"loss": "ssim"}])
def test_options_learn(parameters):
    X = make_images((32, 16, 16))
    detector = tiny(AutoEncoder, max_epochs=30, width=8, latent_size=8, lr=0.01, **parameters).fit(X)
    losses = detector.history_["reconstruction"][:, "train_loss"]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "l3"}, "'loss' parameter of AutoEncoder must be a str among"),
        ({"bottleneck": "wide"}, "'bottleneck' parameter of AutoEncoder"),
        ({"n_levels": 5}, "at most 4 for images of 16 x 16.*got 5; lower n_levels"),
        ({"batch_size": 1}, "'batch_size' parameter of AutoEncoder"),
        ({"contamination": 0.0}, "'contamination' parameter of AutoEncoder"),
        ({"device": "cuda"}, "device='cuda' was asked for, but torch finds none here"),
        ({"device": "toaster"}, "device must be 'auto' or a torch device"),
    ],
)
def test_bad_parameters(parameters, message):
    if parameters.get("device") == "cuda" and torch.cuda.is_available():
        parameters, message = {"device": "cuda:99"}, "device='cuda:99'"
    with pytest.raises(ValueError, match=message):
        tiny(AutoEncoder, **parameters).fit(make_images())


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    small = {"hidden_size": 128, "width": 8, "batch_size": 16, "random_state": 0}
    check_learns(AutoEncoder(max_epochs=25, **small), beats_the_mean=True)
