"""Deep anomaly detection and segmentation in medical images, for scikit-learn."""

from ._unwrap import anomaly_map, reconstruct, segment
from ._version import __version__
from .detectors.adversarial_autoencoder import AdversarialAutoEncoder
from .detectors.aeu import AEU
from .detectors.ali import ALI
from .detectors.ano_vae_gan import AnoVAEGAN
from .detectors.anogan import AnoGAN
from .detectors.autoencoder import AutoEncoder
from .detectors.constrained_ae import ConstrainedAE
from .detectors.context_ae import ContextAE
from .detectors.context_vae import ContextVAE
from .detectors.ddad import DDAD
from .detectors.denoising_autoencoder import DenoisingAutoEncoder
from .detectors.fanogan import FAnoGAN
from .detectors.ganomaly import GANomaly
from .detectors.memae import MemAE
from .detectors.squid import SQUID
from .detectors.ssl_anovae import SSLAnoVAE
from .detectors.vae import VAE
from .patches import PatchDetector

__all__ = [
    "AEU",
    "ALI",
    "AdversarialAutoEncoder",
    "AnoGAN",
    "AnoVAEGAN",
    "AutoEncoder",
    "ConstrainedAE",
    "ContextAE",
    "ContextVAE",
    "DDAD",
    "DenoisingAutoEncoder",
    "FAnoGAN",
    "GANomaly",
    "MemAE",
    "PatchDetector",
    "SQUID",
    "SSLAnoVAE",
    "VAE",
    "__version__",
    "anomaly_map",
    "reconstruct",
    "segment",
]
