"""DRAEM: one network removes made anomalies, and a second one finds what the first has changed."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn
from torch.nn import functional as F

from .._losses import focal_loss, squared_error, ssim_error
from .._random import seeded
from ..base import Judgement, TrainedDetector
from ..networks.blocks import choose_strides, conv_layers, crop_to, pad_to, padded_size
from ..synthesis import SYNTHESES
from ..training import Training
from ..transforms.defects import apply_to_all, foreign_to

#: Most times that each network halves an image.
RECONSTRUCTION_LEVELS, SEGMENTATION_LEVELS = 4, 5
#: Shares of the epochs after which the learning rate falls, and the factor by which it does.
MILESTONES, DECAY = (0.8, 0.9), 0.2
#: Least share of a batch in the running statistics of batch normalisation, torch's default.
MOMENTUM = 0.1


def _widths(width, n_levels):
    """Channels of the levels from the finest to the coarsest, and of the stages back up from the coarsest."""
    widths = [width * min(8, 2**level) for level in range(n_levels + 1)]
    return widths, [widths[max(0, level - 2)] for level in range(n_levels, 0, -1)]


def _block(n_in, n_middle, n_out):
    return nn.Sequential(*conv_layers(n_in, n_middle), *conv_layers(n_middle, n_out))


def _enlarge(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class _Encoder(nn.ModuleList):
    """Features of each level, from the finest to the coarsest."""

    def __init__(self, n_channels, widths, strides):
        super().__init__(_block(a, b, b) for a, b in zip([n_channels, *widths], widths))
        self.strides = strides

    def forward(self, x):
        features = []
        for block, stride in zip(self, [None, *self.strides]):
            features.append(block(F.max_pool2d(features[-1], stride) if features else x))
        return features


class _UpStage(nn.Module):
    """Features enlarged to the next finer level, and joined with the skip if there is one."""

    def __init__(self, n_in, n_up, n_skip, n_middle, n_out):
        super().__init__()
        self.enlarged = nn.Sequential(*conv_layers(n_in, n_up))
        self.block = _block(n_up + n_skip, n_middle, n_out)

    def forward(self, x, size, skip=None):
        x = self.enlarged(_enlarge(x, size))
        return self.block(x if skip is None else torch.cat([x, skip], dim=1))


class ReconstructionNetwork(nn.Module):
    """Autoencoder without skips: images (n, C, H, W) to images without anomalies.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    width : int
        Channels of the first level. The next levels have 2, 4, 8 and 8 times as many. The paper's is 128.
    strides : list of (int, int), default=None
        Strides of the levels. None halves each side until it has about 4 pixels, at most four times.
    """

    def __init__(self, image_shape, *, width, strides=None):
        super().__init__()
        strides = strides or choose_strides(image_shape)[-RECONSTRUCTION_LEVELS:]
        self.size, self.image_size = padded_size(image_shape, strides), image_shape[1:]
        widths, outs = _widths(width, len(strides))
        self.encoder = _Encoder(image_shape[0], widths, strides)
        ins = [widths[-1], *outs]
        self.decoder = nn.ModuleList(_UpStage(a, a, 0, a, b) for a, b in zip(ins, outs))
        self.value = nn.Conv2d(width, image_shape[0], 3, padding=1)

    def forward(self, x):
        *finer, x = self.encoder(pad_to(x, self.size))
        for stage in self.decoder:
            x = stage(x, finer.pop().shape[2:])
        return crop_to(self.value(x), self.image_size)


class SegmentationNetwork(nn.Module):
    """U-Net: reconstructions and images to logits (n, 2, H, W) of the classes normal and anomalous.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    width : int
        Channels of the first level. The next levels have 2, 4, 8, 8 and 8 times as many. The paper's is 64.
    strides : list of (int, int), default=None
        Strides of the levels. None halves each side until it has about 4 pixels, at most five times.
    """

    def __init__(self, image_shape, *, width, strides=None):
        super().__init__()
        strides = strides or choose_strides(image_shape)[-SEGMENTATION_LEVELS:]
        self.size, self.image_size = padded_size(image_shape, strides), image_shape[1:]
        widths, outs = _widths(width, len(strides))
        self.encoder = _Encoder(2 * image_shape[0], widths, strides)
        ins, skips = [widths[-1], *outs], widths[-2::-1]
        self.decoder = nn.ModuleList(_UpStage(a, b, skip, b, b) for a, b, skip in zip(ins, outs, skips))
        self.value = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, reconstruction, x):
        *finer, x = self.encoder(pad_to(torch.cat([reconstruction, x], dim=1), self.size))
        for stage in self.decoder:
            skip = finer.pop()
            x = stage(x, skip.shape[2:], skip)
        return crop_to(self.value(x), self.image_size)


class DRAEMNetwork(nn.Module):
    """Parts `reconstruction`, which removes anomalies, and `segmentation`, which finds them."""

    def __init__(self, image_shape, *, reconstruction_width, width):
        super().__init__()
        self.reconstruction = ReconstructionNetwork(image_shape, width=reconstruction_width)
        self.segmentation = SegmentationNetwork(image_shape, width=width)

    def forward(self, x):
        """Reconstructions, and logits of the classes."""
        y = self.reconstruction(x)
        return y, self.segmentation(y, x)


def pooled_maximum(maps, window):
    """Largest mean (n,) of maps (n, h, w) in square windows of this side, with zeros beyond borders."""
    return F.avg_pool2d(maps[:, None], window, 1, window // 2).amax((1, 2, 3))


class Joint(Training):
    """Both networks learn from images into which anomalies were worked: to remove and to find them.

    Parameters
    ----------
    network : DRAEMNetwork
    synthesis : callable (images, sources, generator) -> images, masks, labels
        Function that makes anomalies. The sources of a batch are its images, each for the next, and for
        CutPaste each for itself.
    probability : float
        Probability that an image gets an anomaly.
    reconstruction_weight, ssim_weight : float
        Weights of the squared and of the structural error.
    """

    moves = {"optimizer": ["reconstruction", "segmentation"]}
    losses = "reconstruction_loss", "ssim_loss", "focal_loss", "train_loss"
    validates = True
    least_held_out = 2  # as each is the source of another

    def __init__(self, network, *, synthesis, probability, reconstruction_weight, ssim_weight, **options):
        self.synthesis, self.probability = synthesis, probability
        self.reconstruction_weight, self.ssim_weight = reconstruction_weight, ssim_weight
        if not ssim_weight:  # then it is not computed: it takes a fifth of a step
            self.losses = tuple(name for name in self.losses if name != "ssim_loss")
        super().__init__(network, **options)

    def make(self, x):
        """Images with anomalies in some of them, and masks (n, 1, h, w)."""
        foreign = foreign_to(x, x.roll(1, 0), self.synthesis)
        made, masks, _ = apply_to_all(self.synthesis, x, foreign, torch.default_generator)
        chosen = (torch.rand(len(x)) < self.probability).to(x.device)[:, None, None, None]
        return torch.where(chosen, made, x), masks & chosen

    def terms(self, network, x):
        """Losses by name."""
        made, masks = self.make(x)
        y, logits = network(made)
        terms = {"reconstruction_loss": squared_error(y, x).mean()}
        if self.ssim_weight:
            terms["ssim_loss"] = ssim_error(y, x).mean()
        return terms | {"focal_loss": focal_loss(logits, masks[:, 0])}

    def total(self, terms):
        weights = {"reconstruction_loss": self.reconstruction_weight, "ssim_loss": self.ssim_weight}
        return sum(weights.get(name, 1.0) * value for name, value in terms.items())

    def step(self, network, x):
        # Running statistics start at the first batches', not at 0 and 1: after few steps units would be dead.
        self.weigh_batches(network, max(MOMENTUM, 1 / max(1, self.n_steps)))
        terms = self.terms(network, x)
        self.record(**terms)
        self.move("optimizer", train_loss=self.total(terms))

    @staticmethod
    def weigh_batches(network, momentum):
        """Set the share of the next batch in all running statistics."""
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum

    def on_train_end(self, net, **options):
        super().on_train_end(net, **options)
        self.weigh_batches(self.module_, MOMENTUM)

    def validate(self, network, x):
        # The same anomalies in each epoch, so that early stopping compares networks and not draws.
        with seeded(0, x.device):
            return self.total(self.terms(network, x))

    def on_epoch_begin(self, net, **options):
        super().on_epoch_begin(net, **options)
        n_before = len(self.history) - 1
        # Multiplied, not set: the rate may be a user's scheduler's, and a resumed fit has the stored one.
        for milestone in MILESTONES:
            if n_before and n_before == int(milestone * self.max_epochs):
                for group in self.optimizer_.param_groups:
                    group["lr"] *= DECAY


class DRAEM(TrainedDetector):
    """Discriminatively trained reconstruction embedding (DRAEM).

    Anomalies are worked into normal images. A first network learns to reconstruct the images as they were
    before. A second one gets image and reconstruction, and learns to mark the pixels in which something was
    worked in. The map is the probability that it gives; the score is the largest mean of the map in a window.

    Parameters
    ----------
    synthesis : str or callable, default="mixture"
        Synthesis of the anomalies: the name of one in `skanomaly.synthesis`, or a function (images, sources,
        generator) that returns images, masks and labels, as those do. Sources are other images of the batch.
        "perlin" is the paper's, with changed images in place of photographs of textures.
    probability : float, default=1.0
        Probability that an image of a training batch gets an anomaly. The paper's is 0.5.
    reconstruction_weight : float, default=10.0
        Weight of the squared error of the reconstruction in the loss. The paper's is 1.
    ssim_weight : float, default=0.0
        Weight of its structural error, 1 - SSIM, in the loss. The paper's is 1.
    window : int, default=21
        Side of the windows in which the map is averaged for the score, in pixels, an odd number. Beyond the
        border the map counts as 0.
    width : int, default=12
        Channels of the first level of the second network. The next levels have 2, 4 and 8 times as many. The
        paper's is 64.
    reconstruction_width : int, default=None
        Channels of the first level of the first network. None is `width`. The paper's is 128.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    DenoisingAutoEncoder : Network that removes noise, without a second one.
    skanomaly.synthesis : Syntheses, with their parameters.

    Notes
    -----
    :Family: synthetic anomalies
    :Trained on: normal images, into which anomalies are worked
    :Score: maximum of the map after averaging in windows of 21 x 21 pixels
    :Map: probability of each pixel to be anomalous
    :Departures: textures are other training images or noise, and no photographs of textures [2]_; training
        images are not turned; cells of Perlin noise are at least 8 pixels wide; SSIM repeats borders, where
        the public code pads with zeros; labels of the focal loss are not smoothed (by 1e-5 in the public
        code); weights begin as torch draws them, and statistics of batch normalisation with those of the
        first batches; smaller networks; {max_epochs steps} steps
    :Variants:
        * DRAEM with the paper's synthesis and losses:
          ``DRAEM(synthesis="perlin", probability=0.5, reconstruction_weight=1, ssim_weight=1)``

    The paper's sizes are ``width=64, reconstruction_width=128, batch_size=8, lr=1e-4``.

    The defaults were chosen on `val` of brain MRI. On its `test`, they have an AUROC of .88 (three seeds),
    and the paper's synthesis and losses .68 (one seed;
    ``python benchmarks/accuracy.py --seeds 3 --limit 0 --sets brain_mri_64 --detectors DRAEM``, and
    ``--seeds 1`` with ``DRAEM:synthesis=perlin,probability=0.5,reconstruction_weight=1.0,ssim_weight=1.0``).

    The learning rate falls to a fifth after 80 % of the epochs, and again after 90 %. With
    ``validation_fraction`` the validation loss is that of images with the same anomalies in each epoch.
    `score_components` gives "maximum", which is the score, "mean", the mean of the map, and "residual", the
    mean squared error of the reconstruction.

    References
    ----------
    .. [1] Zavrtanik, V., Kristan, M., Skočaj, D. (2021). "DRAEM - a discriminatively trained reconstruction
       embedding for surface anomaly detection". ICCV. `arXiv:2108.07610 <https://arxiv.org/abs/2108.07610>`_
    .. [2] Cimpoi, M., Maji, S., Kokkinos, I., Mohamed, S., Vedaldi, A. (2014). "Describing textures in the
       wild". CVPR. `arXiv:1311.3618 <https://arxiv.org/abs/1311.3618>`_

    Examples
    --------
    >>> from skanomaly import DRAEM
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = DRAEM(width=2, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _steps = {"max_epochs": 1200}

    _parameter_constraints = {
        "synthesis": [StrOptions(set(SYNTHESES)), callable],
        "probability": [Interval(Real, 0, 1, closed="both")],
        "window": [Interval(Integral, 1, None, closed="left")],
        "reconstruction_width": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self,
        *,
        synthesis="mixture",
        probability=1.0,
        reconstruction_weight=10.0,
        ssim_weight=0.0,
        window=21,
        width=12,
        reconstruction_width=None,
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
        self.probability = probability
        self.reconstruction_weight = reconstruction_weight
        self.ssim_weight = ssim_weight
        self.window = window
        self.reconstruction_width = reconstruction_width
        self._assign_shared(locals())

    def _prepare(self, images):
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, so that it has a pixel in its middle, got {self.window}")

    def _build(self, image_shape):
        width = self.width if self.reconstruction_width is None else self.reconstruction_width
        return DRAEMNetwork(image_shape, reconstruction_width=width, width=self.width)

    def _train(self, run, network, images):
        synthesis = self.synthesis if callable(self.synthesis) else SYNTHESES[self.synthesis]
        run(
            "joint",
            Joint,
            network,
            images,
            synthesis=synthesis,
            probability=self.probability,
            reconstruction_weight=self.reconstruction_weight,
            ssim_weight=self.ssim_weight,
        )

    def _reconstruct(self, network, x):
        return network.reconstruction(x)

    def _judge(self, network, x):
        y, logits = network(x)
        maps = logits.softmax(1)[:, 1]
        maximum = pooled_maximum(maps, self.window)
        components = {
            "maximum": maximum,
            "mean": maps.mean((1, 2)),
            "residual": squared_error(y, x).mean((1, 2)),
        }
        return Judgement(maximum, maps, components)
