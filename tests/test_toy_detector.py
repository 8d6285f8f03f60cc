"""One class, three verbs, nothing registered: the price of a new detector."""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

from skanomaly import detectors
from skanomaly._detector import BaseDetector, Judgement
from skanomaly._losses import absolute_error
from skanomaly.testing import DTYPES, all_detectors, check_images, detector_checks
from skanomaly.training import Reconstruction


class LinearNetwork(nn.Module):
    def __init__(self, image_shape, latent_size):
        super().__init__()
        n_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(n_pixels, latent_size))
        self.decoder = nn.Sequential(nn.Linear(latent_size, n_pixels), nn.Unflatten(1, image_shape))

    def forward(self, x):
        return self.decoder(self.encoder(x))


class LinearAutoEncoder(BaseDetector):
    """Nearly PCA.

    Parameters
    ----------
    latent_size : int, default=2
        Numbers in a code.
    max_epochs : int, default=1
        Passes over the images.
    {parameters}

    Attributes
    ----------
    {attributes}
    """

    def __init__(
        self,
        *,
        latent_size=2,
        max_epochs=1,
        batch_size=8,
        lr=1e-3,
        validation_fraction=0.0,
        checkpoint_dir=None,
        callbacks=None,
        device="auto",
        contamination=0.1,
        pixel_contamination=0.01,
        intensity_range="auto",
        channel_axis="auto",
        image_shape=None,
        verbose=0,
        random_state=None,
    ):
        self.latent_size = latent_size
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.validation_fraction = validation_fraction
        self.checkpoint_dir = checkpoint_dir
        self.callbacks = callbacks
        self.device = device
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination
        self.intensity_range = intensity_range
        self.channel_axis = channel_axis
        self.image_shape = image_shape
        self.verbose = verbose
        self.random_state = random_state

    def _build(self, image_shape):
        return LinearNetwork(image_shape, self.latent_size)

    def _train(self, network, images, y):
        return self._run("reconstruction", Reconstruction, network, images, error=absolute_error)

    def _judge(self, network, x):
        maps = absolute_error(network(x), x)
        return Judgement(maps.mean((1, 2)), maps)


class MaplessAutoEncoder(LinearAutoEncoder):
    __doc__ = LinearAutoEncoder.__doc__

    def _judge(self, network, x):
        return super()._judge(network, x)._replace(map=None)


TOYS = [LinearAutoEncoder, MaplessAutoEncoder]


@pytest.mark.parametrize(
    ("detector", "check"),
    [(toy, check) for toy in TOYS for _, check in estimator_checks_generator(toy())],
)
def test_scikit_learn(detector, check):
    check(detector(random_state=0))


@pytest.mark.parametrize("detector", TOYS)
@pytest.mark.parametrize(("name", "check"), detector_checks(), ids=[name for name, _ in detector_checks()])
def test_contract(detector, name, check):
    check(detector(random_state=0))


@pytest.mark.parametrize("detector", TOYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "channel_axis"), [((3, 7), "auto"), ((3, 19, 9), None), ((3, 2, 9, 5), 1), ((3, 9, 5, 4), -1)]
)
def test_layouts_and_dtypes(detector, shape, channel_axis, dtype):
    check_images(detector(random_state=0), shape, dtype, channel_axis)


def test_a_detector_that_does_not_reconstruct_has_no_such_method():
    assert not hasattr(LinearAutoEncoder(), "reconstruct")


def test_a_new_file_is_found(tmp_path, monkeypatch):
    known = [name for name, _ in all_detectors()]
    (tmp_path / "fresh.py").write_text(
        "from skanomaly._detector import BaseDetector\n\n\nclass Fresh(BaseDetector):\n    pass\n"
    )
    monkeypatch.setattr(detectors, "__path__", [*detectors.__path__, str(tmp_path)])
    assert [name for name, _ in all_detectors()] == sorted([*known, "Fresh"])
