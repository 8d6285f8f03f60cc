"""IGD: an autoencoder whose codes lie close to a centre, as do those between images."""

import math
from functools import partial
from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn
from torch.nn import functional as F

from .._inference import collect
from .._losses import SSIM_SIGMA, SSIM_WINDOW, absolute_error, ssim_error
from ..base import Judgement, TrainedDetector
from ..networks.adversarial import ResidualCritic, ResidualEncoder, ResidualGenerator
from ..networks.blocks import crop_to, pad_to
from ..training import Training

#: Weights of the scales of MS-SSIM (Wang et al. 2003).
SCALES = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333
#: Share of 1 - MS-SSIM in the error of a reconstruction. The rest is the absolute error.
SSIM_SHARE = 0.85
#: Least distance of the centre from 0 in each coordinate: near 0, an encoder could give all images one code.
LEAST_CENTRE = 0.1
#: Share of the descriptor in the score of a patch.
LOCAL_DESCRIPTOR = 0.1
#: Epochs after which centre and spread are computed again.
REFRESH = 10


def _windows(side, like):
    """Matrix of SSIM's Gaussian windows inside a side, one in each row; not larger than the side."""
    n = min(SSIM_WINDOW, side)
    offsets = torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2
    kernel = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    padded = F.pad(kernel / kernel.sum(), (side - n, side - n))
    return padded.unfold(0, side, 1).flip(0)


def _window_mean(x):
    """Means (m, h, w) over the windows of images (m, H, W)."""
    # Products of matrices, because convolutions of one channel take six times as long.
    return _windows(x.shape[1], x) @ x @ _windows(x.shape[2], x).mT


def _similarities(x, y):
    """SSIM, and its factor without the brightness, (n, c) each, of images (n, c, h, w) in [0, 1]."""
    shape = x.shape[:2]
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    mx, my, xx, yy, xy = _window_mean(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    # clamp, because rounding can make E[x^2] - E[x]^2 negative far outside [0, 1].
    variances = (xx - mx * mx).clamp(min=0) + (yy - my * my).clamp(min=0)
    structure = (2 * (xy - mx * my) + c2) / (variances + c2)
    ssim = structure * (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return (values.mean((1, 2)).view(shape) for values in (ssim, structure))


def ms_ssim(x, y):
    """Multi-scale structural similarity (n,) of images (n, c, h, w) in [0, 1] (Wang et al. 2003).

    There are five scales if the shorter side has 176 pixels, and fewer in smaller images: a window of SSIM
    must fit into each.
    """
    n_scales = min(len(SCALES), max(1, int(math.log2(max(1, min(x.shape[2:]) / SSIM_WINDOW))) + 1))
    total, product = sum(SCALES[:n_scales]), 1.0
    for k, weight in enumerate(SCALES[:n_scales]):
        if k:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        ssim, structure = _similarities(x, y)
        # Not 0, where the root has no derivative.
        product = product * (ssim if k == n_scales - 1 else structure).clamp(min=1e-6) ** (weight / total)
    return product.mean(1)


def reconstruction_error(y, x):
    """Error (n,) of reconstructions y of images x in [0, 1]: of structure and of pixels."""
    pixels = (x - y).abs().mean((1, 2, 3))
    return SSIM_SHARE * (1 - ms_ssim(x, y)) + (1 - SSIM_SHARE) * pixels


class IGDNetwork(nn.Module):
    """Parts `encoder`, `decoder` and `critic`, and the descriptor of codes: `centre` and `spread`."""

    def __init__(self, image_shape, latent_size, *, width, n_levels):
        super().__init__()
        size = {"width": width, "n_levels": n_levels}
        self.encoder = ResidualEncoder(image_shape, latent_size, output="linear", bound=1.0, **size)
        self.decoder = ResidualGenerator(image_shape, latent_size, **size)
        self.decoder.blocks = self.decoder.blocks[:-1]  # no tanh: images are in [0, 1]
        self.critic = ResidualCritic(image_shape, **size)
        self.register_buffer("centre", torch.zeros(latent_size))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def descriptor(self, z):
        """Distance 1 - exp(-|z - c|^2 / sigma), (n,), of codes: 0 at the centre, nowhere above 1."""
        return -torch.expm1(-(z - self.centre).square().sum(1) / self.spread)

    def describe(self, z):
        """Set the centre and the spread by codes (n, latent_size) of normal images."""
        centre = z.double().mean(0)
        pushed = torch.full_like(centre, LEAST_CENTRE).copysign(centre)
        centre = torch.where(centre.abs() < LEAST_CENTRE, pushed, centre)
        self.centre.copy_(centre)
        self.spread.copy_((z - centre).square().sum(1).mean().clamp(min=1))


def interpolated(z, share):
    """Codes between those of a batch and the same in reverse order; `share` (n, 1) is that of the former."""
    return share * z + (1 - share) * z.flip(0)


class Interpolation(Training):
    """An autoencoder learns to reconstruct, to gather codes, and to make images of codes between two.

    A critic estimates the share of the lesser image in these; the decoder learns to make it 0. The order of
    the steps is that of the paper: autoencoder, then critic.

    Parameters
    ----------
    network : IGDNetwork
    cut : callable (images) -> images
        Function that makes patches of images, or nothing.
    interpolation_weight : float
        Weight of the critic's judgement in the loss of the autoencoder.
    """

    moves = {"optimizer": ["encoder", "decoder"], "optimizer_critic": ["critic"]}
    losses = "train_loss", "reconstruction_loss", "descriptor_loss", "interpolation_loss", "critic_loss"
    betas = 0.0, 0.9
    validates = True

    def __init__(self, network, *, cut, interpolation_weight, **options):
        self.cut, self.interpolation_weight = cut, interpolation_weight
        super().__init__(network, **options)

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        super().on_epoch_begin(net, dataset_train=dataset_train, dataset_valid=dataset_valid, **kwargs)
        epoch = len(self.history) - 1
        for name in self.moves:
            for group in getattr(self, f"{name}_").param_groups:
                group["lr"] = self.lr * (1 - epoch / self.max_epochs) ** 0.9
        # Also after the first epoch: before it, batch normalisation has no statistics, and later codes lie so
        # far outside the spread that the descriptor has no slope.
        if epoch % REFRESH == 0 or epoch == 1:
            describe(self.module_, self.cut, dataset_train, self.device)

    def step(self, network, x):
        x = self.cut(x)
        z = network.encoder(x)
        y = network.decoder(z)
        reconstruction = reconstruction_error(y, x).mean()
        descriptor = network.descriptor(z).mean()
        share = torch.rand(len(z), 1, device=z.device) / 2
        mixed = network.decoder(interpolated(z, share))
        judged = network.critic(mixed).square().mean()
        self.record(reconstruction_loss=reconstruction, descriptor_loss=descriptor, interpolation_loss=judged)
        loss = reconstruction + descriptor + self.interpolation_weight * judged
        self.move("optimizer", train_loss=loss)
        # A reconstruction with a fifth of its image, whose share is 0: the critic learns what is real of it.
        real = y + 0.2 * (x - y)
        off = network.critic(mixed.detach()) - share[:, 0]
        critic_loss = off.square().mean() + network.critic(real.detach()).square().mean()
        self.move("optimizer_critic", critic_loss=critic_loss)

    def validate(self, network, x):
        x = self.cut(x)
        z = network.encoder(x)
        return (reconstruction_error(network.decoder(z), x) + network.descriptor(z)).mean()


def describe(network, cut, images, device):
    """Set the Gaussian descriptor of a network by its codes of images, or of their patches."""

    def codes(x):
        return network.encoder(cut(x)).unflatten(0, (len(x), -1))

    found = torch.from_numpy(collect(codes, network, images, device))
    network.describe(found.flatten(0, 1).to(device))


def patches(x, size):
    """Patches (n * k, c, *size) that tile images (n, c, h, w); their last row and column fill the last."""
    (height, width), sides = size, x.shape[2:]
    x = pad_to(x, tuple(math.ceil(side / of) * of for side, of in zip(sides, size)))
    tiles = x.unfold(2, height, height).unfold(3, width, width)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def joined(tiles, image_size):
    """Images (n, c, h, w) that `patches` tiles, of the patches (n * k, c, height, width)."""
    rows, columns = (math.ceil(side / of) for side, of in zip(image_size, tiles.shape[2:]))
    grid = tiles.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return crop_to(grid.flatten(4, 5).flatten(2, 3), image_size)


class IGD(TrainedDetector):
    """Error of a reconstruction, and distance of its code from those of normal images (IGD).

    An autoencoder learns to reconstruct normal images and to give them codes close to a centre. Images made
    of codes between those of two images have to look real to a critic, so that codes around the centre stand
    for normal images. The score adds the error of the reconstruction and the distance of the code.

    Parameters
    ----------
    scales : {"single", "multi"}, default="single"
        Parts of an image that are judged. "single": the image as a whole. "multi": also patches, by a second
        network; the worst patch counts as much as the whole.
    patch_size : int, default=None
        Side of a patch. None is a quarter of the shorter side, but 8 at least.
    latent_size : int, default=128
        Length of a code, the latent vector of an image.
    width : int, default=8
        Channels of the first level. The next levels have 2, 4 and 8 times as many.
    n_levels : int, default=None
        Number of times each side is halved. None halves sides to about 4 pixels (4 times at 64 x 64).
    descriptor_weight : float, default=0.5
        Weight of the distance of the code in the score, from 0 to 1; the rest is the weight of the error.
    interpolation_weight : float, default=0.1
        Weight of the critic's judgement in the loss of the autoencoder.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    AdversarialAutoEncoder : Autoencoder whose codes or reconstructions an opponent judges.

    Notes
    -----
    :Family: adversarial
    :Trained on: normal images
    :Score: error of the reconstruction and distance of the code from the centre, a Gaussian between 0 and 1,
        half each; with patches, half of this and half of the worst patch's
    :Map: 0.85 (1 - SSIM) and 0.15 absolute error of each pixel; with patches, the mean of both networks'
    :Departures: the paper [1]_ has a frozen ResNet-18 from ImageNet before the layer of codes; here an
        encoder is trained from scratch, as the networks of f-AnoGAN. MS-SSIM has five scales only in images
        of 176 pixels and more. Patches of the paper have 32 of 256 pixels, ours a quarter of the side. The
        spread is the mean over images, where the public code averages over batches; centre and spread are
        also computed after the last epoch. The learning rate is 1e-3, 1e-4 in the paper
    :Variants:
        * IGD with one scale: ``IGD()``
        * IGD with patches: ``IGD(scales="multi")``

    Centre and spread are computed every ten epochs, and after the first. The learning rate falls to 0 by the
    power 0.9 of what is left. `score_components` gives "reconstruction" and "descriptor", and "local" with
    patches.

    References
    ----------
    .. [1] Chen, Y., Tian, Y., Pang, G., Carneiro, G. (2022). "Deep one-class classification via interpolated
       Gaussian descriptor". AAAI. `arXiv:2101.10043 <https://arxiv.org/abs/2101.10043>`_
    .. [2] Wang, Z., Simoncelli, E. P., Bovik, A. C. (2003). "Multiscale structural similarity for image
       quality assessment". Asilomar Conference on Signals, Systems and Computers.
       `doi:10.1109/ACSSC.2003.1292216 <https://doi.org/10.1109/ACSSC.2003.1292216>`_

    Examples
    --------
    >>> from skanomaly import IGD
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> detector = IGD(width=4, max_epochs=1, random_state=0).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _steps = {"max_epochs": 500}

    _parameter_constraints = {
        "scales": [StrOptions({"single", "multi"})],
        "patch_size": [Interval(Integral, 1, None, closed="left"), None],
        "descriptor_weight": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        *,
        scales="single",
        patch_size=None,
        latent_size=128,
        width=8,
        n_levels=None,
        descriptor_weight=0.5,
        interpolation_weight=0.1,
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
        self.scales = scales
        self.patch_size = patch_size
        self.descriptor_weight = descriptor_weight
        self.interpolation_weight = interpolation_weight
        self._assign_shared(locals())

    def _patch(self, image_shape):
        """Height and width of a patch."""
        sides = image_shape[1:]
        side = max(8, min(sides) // 4) if self.patch_size is None else self.patch_size
        return tuple(min(side, whole) for whole in sides)

    def _build(self, image_shape):
        size = self._network_size()
        network = nn.Module()
        network.whole = IGDNetwork(image_shape, **size)
        if self.scales == "multi":
            network.local = IGDNetwork((image_shape[0], *self._patch(image_shape)), **size)
        return network

    def _parts(self, network):
        """Name, network and function that cuts images for it, of each scale."""
        yield "whole", network.whole, nn.Identity()
        if self.scales == "multi":
            yield "local", network.local, partial(patches, size=self._patch(self.image_shape_))

    def _train(self, run, network, images):
        options = {"interpolation_weight": self.interpolation_weight, "optimizer__weight_decay": 1e-6}
        for stage, part, cut in self._parts(network):
            run(stage, Interpolation, part, images, cut=cut, **options)

    def _measure(self, network, images):
        for _, part, cut in self._parts(network):
            describe(part, cut, images, self.device_)

    def _reconstruct(self, network, x):
        return network.whole(x)

    def _judge(self, network, x):
        components, maps, share = {}, [], self.descriptor_weight
        for name, part, cut in self._parts(network):
            tiles = cut(x)
            z = part.encoder(tiles)
            y = part.decoder(z)
            error, distance = reconstruction_error(y, tiles), part.descriptor(z)
            if name == "local":
                local = (1 - LOCAL_DESCRIPTOR) * error + LOCAL_DESCRIPTOR * distance
                components["local"] = local.view(len(x), -1).amax(1)
                y = joined(y, x.shape[2:])
            else:
                components |= {"reconstruction": error, "descriptor": distance}
                score = (1 - share) * error + share * distance
            maps.append(SSIM_SHARE * ssim_error(y, x) + (1 - SSIM_SHARE) * absolute_error(y, x))
        if "local" in components:
            score = (score + components["local"]) / 2
        return Judgement(score, sum(maps) / len(maps), components)
