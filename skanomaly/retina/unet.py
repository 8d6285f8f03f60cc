"""The structure extractor of P-Net: a U-Net that learns layers from labelled scans."""

import numpy as np
import torch
from sklearn.utils import check_array, gen_batches
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from .._arrays import refuse_masked
from .._atomic import atomic_fit
from .._inference import collect, resolve_device
from .._parameters import constraints_of
from .._random import default_modes, draw_seed, seeded
from ..networks.blocks import choose_strides, kernel_size, pad_to, padded_size
from ..networks.unet import UNet
from ..training import Training
from ..training._adversarial import discriminator_loss, generator_loss
from .comparison import NO_LAYER, check_depth_order
from .extractor import LayerExtractor


class PatchDiscriminator(nn.Module):
    """Discriminator of patches: maps (n, n_classes, H, W), real or predicted, to logits (n, h, w)."""

    def __init__(self, image_shape, *, width):
        super().__init__()
        strides = choose_strides(image_shape)[-3:]
        self.size = padded_size(image_shape, strides)
        widths = [image_shape[0], *(width * 2**level for level in range(len(strides)))]
        layers = []
        for a, b, stride in zip(widths, widths[1:], strides):
            conv = nn.Conv2d(a, b, kernel_size(stride), stride, padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 1)))

    def forward(self, maps):
        return self.layers(pad_to(maps, self.size))[:, 0]


class _Labelled:
    """Training images: scans, with their labels as a second channel."""

    held_out = None  # `Training` asks for it

    def __init__(self, scans, labels):
        self.both = torch.stack([scans, labels], dim=1)

    def __len__(self):
        return len(self.both)

    def epoch(self, batch_size):
        order = torch.randperm(len(self))
        # BatchNorm may refuse a batch of one scan: a single scan at the end joins the batch before.
        for rows in gen_batches(len(order), batch_size, min_batch_size=2):
            yield self.both[order[rows]]


class LayerTraining(Training):
    """Training of the U-Net on labels and, with target scans, against a discriminator of its maps (P-Net).

    Parameters
    ----------
    network : nn.Module
        Module with the parts `unet` and `discriminator`.
    target : (n, H, W) tensor, or None
        Unlabelled scans of another device. The U-Net learns to make maps of them that look like labels.
    adversarial_weight : float
        Weight of the discriminator's judgement of these maps.
    """

    moves = {"optimizer": ["unet"], "optimizer_discriminator": ["discriminator"]}
    losses = "label_loss", "discriminator_loss", "adversarial_loss", "train_loss"

    def __init__(self, network, *, target, adversarial_weight, **options):
        self.target, self.adversarial_weight = target, adversarial_weight
        if target is None:
            self.moves, self.losses = {"optimizer": ["unet"]}, ("train_loss",)
        super().__init__(network, **options)

    def step(self, network, x):
        scans, labels = x[:, :1], x[:, 1].long()
        loss = F.cross_entropy(network.unet(scans), labels)
        if self.target is None:
            self.move("optimizer", train_loss=loss)
            return
        rows = torch.randint(len(self.target), (len(x),))
        # Probabilities, not the likeliest labels: no gradient comes back through argmax.
        maps = network.unet(self.target[rows][:, None].to(x)).softmax(1)
        real = F.one_hot(labels, maps.shape[1]).movedim(3, 1).to(x)
        told_apart = discriminator_loss(network.discriminator(real), network.discriminator(maps.detach()))
        self.move("optimizer_discriminator", discriminator_loss=told_apart)
        # After the move: the U-Net learns from the discriminator as it is now.
        adversarial = generator_loss(network.discriminator(maps))
        self.record(label_loss=loss, adversarial_loss=adversarial)
        self.move("optimizer", train_loss=loss + self.adversarial_weight * adversarial)


class UNetLayerExtractor(LayerExtractor):
    """Layers by a U-Net that learns from labelled scans, and can adapt to unlabelled ones of another device.

    Parameters
    ----------
    width : int, default=8
        Channels of the first level. The next levels have 2, 4, 8 and 8 times as many. The paper's width is
        64.
    adversarial_weight : float, default=0.01
        Weight of the adversarial loss, the discriminator's judgement of maps of the target scans.
    max_epochs : int, default=30
        Passes over the labelled scans.
    batch_size : int, default=8
        Scans per training step.
    lr : float, default=1e-3
        Learning rate.
    device : str, default="auto"
        Name of a torch device. "auto" is "cuda" if torch finds a GPU, else "cpu".
    random_state : int, RandomState or None, default=None
        Seed of the weights and of the order of scans.

    Attributes
    ----------
    network_ : nn.Module
        The U-Net.
    n_layers_ : int
        Number of layers, L: the largest label is L + 1.
    history_ : dict of str to History
        Losses of each epoch, under the key "layers".
    n_features_in_ : int
        Height of the scans, or number of pixels of a scan that is given as a row.
    feature_names_in_ : ndarray of str
        Names of the columns, if X was a DataFrame of rows.

    See Also
    --------
    GraphLayerExtractor : Extractor that needs no labels.

    Notes
    -----
    The network is the structure extractor of P-Net [1]_, which the SSL-AnoVAE paper uses, too. The public
    code passes the likeliest label of each pixel to the discriminator. No gradient flows back through this
    choice, so that the U-Net of the public code does not adapt to the target scans at all. Here the
    discriminator gets the probabilities of all labels. Adam has its usual momentum (0.1 and 0.9 in the public
    code). With `X_target`, the running statistics of batch normalisation come from labelled and target scans,
    about half each. `predict` uses these statistics for scans of either device.

    References
    ----------
    .. [1] Zhou, K. et al. (2020). "Encoding structure-texture relation with P-Net for anomaly detection in
       retinal images". ECCV. `arXiv:2008.03632 <https://arxiv.org/abs/2008.03632>`_

    Examples
    --------
    >>> from skanomaly.datasets import make_oct
    >>> from skanomaly.layers import UNetLayerExtractor
    >>> scans = make_oct(8, size=32, random_state=0)
    >>> extractor = UNetLayerExtractor(width=2, max_epochs=1, random_state=0)
    >>> extractor.fit(scans.images, scans.layers).predict(scans.images).shape
    (8, 32, 32)
    """

    _parameter_constraints = constraints_of(
        ["width", "adversarial_weight", "max_epochs", "batch_size", "lr", "device", "random_state"], {}
    )

    def __init__(
        self,
        *,
        width=8,
        adversarial_weight=0.01,
        max_epochs=30,
        batch_size=8,
        lr=1e-3,
        device="auto",
        random_state=None,
    ):
        self.width = width
        self.adversarial_weight = adversarial_weight
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state

    @atomic_fit(prefer_skip_nested_validation=True)
    def fit(self, X, y, *, X_target=None):
        """Learn layers.

        Parameters
        ----------
        X : (n, H, W) array-like
            Scans; or rows, each a scan of one pixel's width.
        y : (n, H, W) int array-like
            Layer of each pixel, in depth order from 0 above the retina to L + 1 behind it, and -1 in a gap,
            such as fluid. An array (n,) gives all pixels of a scan the same layer.
        X_target : (m, H, W) array-like, default=None
            Unlabelled scans to adapt to, in the units of X.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If labels are not whole numbers from -1, or do not go up with depth.
        """
        if y is None:
            # The first words are those that scikit-learn's check of required targets looks for.
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None; it learns from "
                "labelled layers: take GraphLayerExtractor where there are none"
            )
        scans = self._check(X, reset=True)
        labels = self._check_labels(y, scans)
        self.n_layers_ = max(1, int(labels.max()) - 1)
        self._first = min(0, int(labels.min()))
        labels -= self._first
        self._range, self._size = (float(scans.min()), float(scans.max())), scans.shape[1:]
        device = resolve_device(self.device)
        with default_modes(), seeded(draw_seed(self.random_state), device):
            target = None if X_target is None else self._tensor(X_target, "X_target")
            network, n_classes = nn.Module(), int(labels.max()) + 1
            network.unet = UNet((1, *self._size), n_classes, width=self.width)
            network.discriminator = PatchDiscriminator((n_classes, *self._size), width=self.width)
            training = LayerTraining(
                network.to(device),
                target=target,
                adversarial_weight=self.adversarial_weight,
                stage="layers",
                max_epochs=self.max_epochs,
                batch_size=self.batch_size,
                lr=self.lr,
                device=device,
                verbose=0,
            )
            history = training.run(_Labelled(self._tensor(X), torch.from_numpy(labels)))
        self.history_, self.network_ = {"layers": history}, network.unet.eval()
        return self

    def _check_labels(self, y, scans):
        refuse_masked(y, "y")
        labels = check_array(y, ensure_2d=False, allow_nd=True, dtype=np.float32, input_name="y")
        check_consistent_length(scans, labels)
        if labels.ndim == 1:
            labels = labels[:, None, None]
        if labels.ndim != 3 or not all(a in (1, b) for a, b in zip(labels.shape[1:], scans.shape[1:])):
            raise ValueError(f"y must have the shape of the scans, {scans.shape}, got {np.shape(y)}")
        if (labels < NO_LAYER).any() or (labels != labels.round()).any():
            raise ValueError(
                f"y must hold whole numbers, the layers in depth order from 0, and {NO_LAYER} in gaps"
            )
        # A copy: the labels will be shifted in place, and a broadcast array cannot be written to.
        labels = np.broadcast_to(labels, scans.shape).copy()
        check_depth_order(labels)
        return labels

    def _tensor(self, X, name="X"):
        """Scans of the fitted size as a tensor, scaled like the fitted scans, which were scaled to [0, 1]."""
        scans = self._check(X, reset=False, name=name)
        if scans.shape[1:] != self._size:
            raise ValueError(f"{name} must hold scans of the fitted size {self._size}, got {scans.shape[1:]}")
        low, high = self._range
        return torch.from_numpy((scans - low) / ((high - low) or 1)).float()

    def predict(self, X):
        """Layer of each pixel.

        Parameters
        ----------
        X : (n, H, W) array-like
            Scans.

        Returns
        -------
        layers : (n, H, W) int64 ndarray
            Labels in depth order: 0 above the retina, 1 to L in its layers, L + 1 behind it; -1 in a gap, if
            labels in `fit` had gaps.
        """
        check_is_fitted(self)
        scans = self._tensor(X)
        # Not self.device: an extractor may have been unpickled on another machine.
        network, device = self.network_, next(self.network_.parameters()).device
        return collect(lambda x: network(x).argmax(1) + self._first, network, scans[:, None], device)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
