"""SyntheticAnomalies: a network that was trained to find what was worked into normal images."""

from numbers import Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from ..base import Judgement, TrainedDetector
from ..networks.segmenting import NETWORKS
from ..synthesis import SYNTHESES
from ..training import SyntheticAnomalyTraining
from ..training._synthetic import LOSSES


def top_quartile(maps):
    """Mean (n,) of the pixels of each map that lie above its third quartile; of a constant map its value."""
    pixels = maps.flatten(1)
    quartile = torch.quantile(pixels, 0.75, dim=1, keepdim=True)
    above = pixels > quartile
    n_above = above.sum(1)
    return torch.where(n_above > 0, (pixels * above).sum(1) / n_above.clamp(min=1), quartile[:, 0])


#: Scores (n,) of maps (n, h, w), by name.
POOLINGS = {
    "mean": lambda maps: maps.mean((1, 2)),
    "top_quartile": top_quartile,
    "max": lambda maps: maps.amax((1, 2)),
}


class SyntheticAnomalies(TrainedDetector):
    """Network that learns to find synthetic anomalies (FPI, PII, NSA and relatives).

    Something foreign is worked into normal images: pieces of other images, for example. A network learns to
    tell in which pixels, and how strongly. In new images, it responds to real anomalies, too, if they look
    foreign in the same ways. What the network takes for foreign is decided by the synthesis.

    Parameters
    ----------
    synthesis : str or callable, default="mixture"
        Function of `skanomaly.synthesis` that makes the anomalies, by its name there: "anat_paste",
        "cutpaste", "fpi", "mixture", "nsa", "perlin", "pii" or "shifted_pieces". A callable takes images
        (n, c, h, w) in [0, 1], sources of what is foreign to them (n, c, h, w) and a torch generator, and
        returns changed images, bool masks and labels from 0 to 1, both (n, 1, h, w); `functools.partial` sets
        options of the functions there.
    network : {"efficientnet", "unet", "wide_residual"} or callable, default="efficientnet"
        Network that finds the anomalies. "efficientnet" is a decoder on features of EfficientNet-Lite0, which
        has its weights from ImageNet and stays as it is; "unet" learns all; "wide_residual" is the network of
        FPI and PII, without skips between encoder and decoder. A callable takes an image shape (C, H, W) and
        returns a new torch module that maps images to logits (n, 1, H, W).
    loss : {"bce", "mse", "focal"}, default="bce"
        Loss of each pixel between the probability p and the soft label y: binary cross-entropy, squared
        difference, or cross-entropy times (p - y)^2.
    pooling : {"mean", "top_quartile", "max"}, default="mean"
        Score of an image: the mean of its map, the mean of the pixels above the map's third quartile, or the
        largest pixel.
    probability : float, default=1.0
        Probability that a training image is changed.
    weight_decay : float, default=5e-4
        Weight decay of Adam.
    width : int, default=8
        Channels of the first level. The public code of FPI has 64.
    {parameters}

    Attributes
    ----------
    n_unlabelled_ : int
        Number of unlabelled images in training.
    {attributes}

    See Also
    --------
    DDAD : Detector whose optional last stage finds foreign patches in maps of discrepancies.

    Notes
    -----
    :Family: synthetic anomalies
    :Trained on: normal images (y = 1); unlabelled ones (y = 0), if there are any, are sources of what is
        foreign
    :Score: mean over pixels of the probability of something foreign; or of its top quartile, or its maximum
    :Map: probability of something foreign in each pixel
    :Departures: images are scaled by the range of X instead of each to mean 0 and variance 1; networks are
        narrower than the public ones, and a frozen EfficientNet-Lite0 with a decoder takes the place of a
        ResNet-18 in NSA and CutPaste; FPI's network halves small images less often, and its decoder has one
        block more; NSA blends by a Poisson equation of its own instead of OpenCV's, takes pieces of the
        background, too, and its learning rate does not fall; AnatPaste finds pixels, as the others do;
        {max_epochs steps} training steps
    :Variants:
        * FPI: ``SyntheticAnomalies(synthesis="fpi", network="wide_residual")``
        * PII: ``SyntheticAnomalies(synthesis="pii", network="wide_residual")``
        * CutPaste end-to-end: ``SyntheticAnomalies(synthesis="cutpaste")``
        * NSA: ``SyntheticAnomalies(synthesis="nsa")``
        * AnatPaste: ``SyntheticAnomalies(synthesis="anat_paste")``

    Rows with y = 0 are never trained on as normal images. If there are any, each training image gets one of
    them as its source of what is foreign. The comparison in [4]_ marks this with a star: FPI*, PII*, NSA*,
    CutPaste*. Without them, the source is another image of the same batch, and for CutPaste the image itself.
    "anat_paste" changes an image by itself, and so takes nothing from them.

    The default network was chosen on `val` of brain MRI and chest X-rays. On `test` of brain MRI it has an
    AUROC of .86 (three seeds), the U-Net of .61 (one seed;
    ``python benchmarks/accuracy.py --limit 0 --seeds 3 --sets brain_mri_64 --detectors SyntheticAnomalies``,
    and ``SyntheticAnomalies:network=unet`` with ``--seeds 1``).

    ``valid_loss`` is the loss of images held out, with the same synthetic anomalies in each epoch.

    The components of `score_components` are the scores by the three values of `pooling`.

    References
    ----------
    .. [1] Tan, J., Hou, B., Batten, J., Qiu, H., Kainz, B. (2022). "Detecting outliers with foreign patch
       interpolation". Machine Learning for Biomedical Imaging. `arXiv:2011.04197
       <https://arxiv.org/abs/2011.04197>`_
    .. [2] Tan, J., Hou, B., Day, T., Simpson, J., Rueckert, D., Kainz, B. (2021). "Detecting outliers with
       Poisson image interpolation". MICCAI. `arXiv:2107.02622 <https://arxiv.org/abs/2107.02622>`_
    .. [3] Schlueter, H. M., Tan, J., Hou, B., Kainz, B. (2022). "Natural synthetic anomalies for
       self-supervised anomaly detection and localization". ECCV. `arXiv:2109.15222
       <https://arxiv.org/abs/2109.15222>`_
    .. [4] Cai, Y., Chen, H., Yang, X., Zhou, Y., Cheng, K.-T. (2023). "Dual-distribution discrepancy with
       self-supervised refinement for anomaly detection in medical images". Medical Image Analysis.
       `arXiv:2210.04227 <https://arxiv.org/abs/2210.04227>`_

    Examples
    --------
    >>> from skanomaly import SyntheticAnomalies
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = SyntheticAnomalies(network="unet", width=2, max_epochs=1, random_state=0).fit(X)
    >>> sorted(detector.score_components(X[:2]))
    ['max', 'mean', 'top_quartile']
    """

    _steps = {"max_epochs": 1000}
    _tells_unlabelled = True

    _parameter_constraints = {
        "synthesis": [StrOptions(set(SYNTHESES)), callable],
        "network": [StrOptions(set(NETWORKS)), callable],
        "loss": [StrOptions(set(LOSSES))],
        "pooling": [StrOptions(set(POOLINGS))],
        "probability": [Interval(Real, 0, 1, closed="right")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        *,
        synthesis="mixture",
        network="efficientnet",
        loss="bce",
        pooling="mean",
        probability=1.0,
        weight_decay=5e-4,
        width=8,
        max_epochs=None,
        batch_size=16,
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
        self.synthesis = synthesis
        self.network = network
        self.loss = loss
        self.pooling = pooling
        self.probability = probability
        self.weight_decay = weight_decay
        self._assign_shared(locals())

    def _prepare(self, images):
        y = images.y
        self.n_unlabelled_ = 0 if y is None else int((y == 0).sum())
        n_normal = len(images) - self.n_unlabelled_
        if self.n_unlabelled_ and not (y == 1).any():
            n_normal = 0  # y has zeros and no 1: its other codes mean nothing here
        if n_normal < 2:
            raise ValueError(
                f"SyntheticAnomalies works anomalies into normal images; y has {n_normal} normal (1) and "
                f"{self.n_unlabelled_} unlabelled (0): give 2 normal ones at least, or no y"
            )

    def _build(self, image_shape):
        if not callable(self.network):
            return NETWORKS[self.network](image_shape, width=self.width)
        network = None if isinstance(self.network, nn.Module) else self.network(image_shape)
        if not isinstance(network, nn.Module):
            raise TypeError(
                "network must be a function that makes a new torch module for images of a shape (C, H, W), "
                f"got {self.network!r}"
            )
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError(f"network must make modules with parameters to train, made {network!r}")
        # Eval mode, because zeros must not enter the running statistics of BatchNorm.
        with torch.no_grad():
            found = getattr(network.eval()(torch.zeros(2, *image_shape)), "shape", None)
        if found != (expected := (2, 1, *image_shape[1:])):
            raise ValueError(
                f"network must make modules that give logits (n, 1, H, W), {expected} here, this one gives "
                f"{found and tuple(found)}"
            )
        # Wrapped, because a training moves the parts of a network, and a module may have none.
        return nn.Sequential(network.train())

    def _train(self, run, network, images):
        normals, sources = self._normals(images), None
        if self.n_unlabelled_:
            sources = images.subset(np.flatnonzero(images.y == 0))
        if images.held_out is not None:
            normals.held_out = self._normals(images.held_out)
            if min(len(normals) - 1, len(normals.held_out)) < 1:
                raise ValueError(
                    f"validation_fraction={self.validation_fraction} leaves {len(normals)} normal images to "
                    f"train on and {len(normals.held_out)} to validate; give more or change it"
                )
        run(
            "segmentation",
            SyntheticAnomalyTraining,
            network,
            normals,
            synthesis=self.synthesis if callable(self.synthesis) else SYNTHESES[self.synthesis],
            loss=LOSSES[self.loss],
            sources=sources,
            probability=self.probability,
            optimizer__weight_decay=self.weight_decay,
        )

    def _judge(self, network, x):
        maps = network(x).sigmoid()[:, 0]
        components = {name: pool(maps) for name, pool in POOLINGS.items()}
        return Judgement(components[self.pooling], maps, components)
