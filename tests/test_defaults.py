"""Settings that are published are the defaults, and sizes are checked."""

import pytest

import skanomaly
from skanomaly._discovery import all_detectors
from skanomaly.testing import make_images, tiny

MEDIANOMALY = {"lr": 1e-3, "batch_size": 64, "latent_size": 16}
PUBLISHED = {
    "AutoEncoder": MEDIANOMALY | {"loss": "l2"},
    "VAE": MEDIANOMALY | {"kl_weight": 0.005, "loss": "l2"},
    "AEU": MEDIANOMALY,
    "ContextAE": MEDIANOMALY | {"erased_area": 0.024},
    "ConstrainedAE": MEDIANOMALY | {"constraint_weight": 1.0},
    "DenoisingAutoEncoder": {"noise_deviation": 0.2, "noise_size": 16, "batch_size": 16},
    "GANomaly": {
        "lr": 2e-4,
        "batch_size": 64,
        "reconstruction_weight": 50.0,
        "code_weight": 1.0,
        "adversarial_weight": 1.0,
    },
    "MemAE": {"n_slots": 25, "shrinkage_threshold": None, "entropy_weight": 2e-4, "similarity": "cosine"},
    "DDAD": {
        "lr": 5e-4,
        "batch_size": 64,
        "latent_size": 16,
        "n_members": 3,
        "ddof": 1,
        "refinement_width": 128,
    },
}
SIZED = [cls for _, cls in all_detectors() if "bottleneck" in cls._parameter_constraints]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_the_defaults(name):
    found = getattr(skanomaly, name)().get_params()
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("cls", SIZED, ids=lambda cls: cls.__name__)
def test_impossible_sizes(cls):
    for name, value in {
        "latent_size": 0,
        "hidden_size": 0,
        "width": 0,
        "n_levels": 0,
        "bottleneck": "none",
    }.items():
        with pytest.raises(ValueError, match=f"'{name}' parameter of {cls.__name__} must be"):
            tiny(cls).set_params(**{name: value}).fit(make_images())
