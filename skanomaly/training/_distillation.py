"""Distillation: students learn to give the features of a frozen teacher."""

import numpy as np
import torch
from torch.nn import functional as F

from .._random import seeded
from ..networks.patch_descriptors import padded
from ._training import Training

#: Margin of the triplet loss, delta in the paper.
MARGIN = 1.0
#: Most descriptors of an image, on each side, that students learn at a step.
N_PLACES = 16


def direction_error(f, g):
    """1 - cos of each pair of flattened feature maps (n, c, h, w), (n,): 0 for a map and its multiples."""
    return 1 - F.cosine_similarity(f.flatten(1), g.flatten(1), dim=1)


def magnitude_error(f, g):
    """Mean squared difference of each pair of feature maps (n, c, h, w), (n,)."""
    return (f - g).square().flatten(1).mean(1)


def distillation_error(maps, targets, magnitude_weight):
    """Error of lists of feature maps, added up over layers, (n,).

    Parameters
    ----------
    maps, targets : sequence of (n, c, h, w) tensor
        Feature maps of the student and of the teacher.
    magnitude_weight : float
        Weight of the squared difference beside 1 - cos.
    """
    return sum(
        direction_error(f, g) + magnitude_weight * magnitude_error(f, g) for f, g in zip(maps, targets)
    )


class Described:
    """A batch of images with the feature maps of the teacher."""

    def __init__(self, x, targets):
        self.x, self.targets = x, targets

    def __len__(self):
        return len(self.x)

    def to(self, device):
        return Described(self.x.to(device), [target.to(device) for target in self.targets])


class DescribedImages:
    """Images to train on, with feature maps that were computed before: the teacher runs once for each image.

    Parameters
    ----------
    images : Images
    targets : sequence of (n, c, h, w) tensor
        Feature maps of all images.
    """

    def __init__(self, images, targets):
        self.images, self.targets, self.held_out = images, targets, images.held_out

    def __len__(self):
        return len(self.images)

    def n_batches(self, batch_size):
        return self.images.n_batches(batch_size)

    def epoch(self, batch_size):
        """Yield batches as `Images.epoch` does, each with its feature maps."""
        for rows in np.array_split(self.images.order(batch_size), self.n_batches(batch_size)):
            yield Described(self.images[rows], [target[rows] for target in self.targets])


class Distillation(Training):
    """The part `cloner` learns to give the feature maps of the frozen part `source`.

    It is trained on `Images`, or on `DescribedImages`.

    Parameters
    ----------
    network : nn.Module
        Network with these parts and a method `source_maps`.
    magnitude_weight : float
    """

    moves = {"optimizer": ["cloner"]}
    losses = ("train_loss",)
    validates = True

    def __init__(self, network, *, magnitude_weight, **options):
        self.magnitude_weight = magnitude_weight
        super().__init__(network, **options)

    def loss(self, network, x, targets):
        return distillation_error(network.cloner(x), targets, self.magnitude_weight).mean()

    def step(self, network, x):
        x, targets = (x.x, x.targets) if isinstance(x, Described) else (x, network.source_maps(x))
        self.move("optimizer", train_loss=self.loss(network, x, targets))

    def validate(self, network, x):
        return self.loss(network, x, network.source_maps(x))


def compactness_loss(x):
    """Sum of the squared correlations between the dimensions of descriptors (n, d), over pairs i != j."""
    # Between dimensions: each then says something that the others do not (public code takes samples).
    z = x - x.mean(0)
    z = z / z.square().sum(0).clamp(min=1e-12).sqrt()
    correlations = z.mT @ z
    return correlations.square().sum() - correlations.diagonal().square().sum()


def triplet_loss(x, near, far):
    """Loss max(0, delta + d+ - d-) of descriptors (n, d), averaged (Bergmann et al. 2020, equation 3).

    d+ is the squared distance of `x` and `near`, and d- the smaller one of those from either to `far`.
    """
    apart = torch.minimum((x - far).square().sum(1), (near - far).square().sum(1))
    return F.relu(MARGIN + (x - near).square().sum(1) - apart).mean()


def patches_at(x, patch_size, rows, columns):
    """Patch of each image, with zeros beyond its border, around the pixel of its row and column.

    Parameters
    ----------
    x : (n, c, h, w) tensor
    patch_size : int
    rows, columns : (n,) int64 tensor

    Returns
    -------
    patches : (n, c, patch_size, patch_size) tensor
    """
    x = padded(x, patch_size)
    steps = torch.arange(patch_size, device=x.device)
    rows, columns = (at[:, None] + steps for at in (rows, columns))
    return x[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


class TeacherTraining(Training):
    """The part `teacher` learns to describe patches, at random places of images of random contrast.

    Parameters
    ----------
    network : nn.Module
        Network with the parts `teacher` and `decoder`, from descriptors to the features of `describe`.
    describe : callable (patches) -> (n, n_features) tensor, or None
        Features of patches by the network that is distilled. None needs a `distillation_weight` of 0.
    n_patches : int
        Least number of patches in a step. A small batch gives several of each image.
    distillation_weight, metric_weight, compactness_weight : float
        Weights of the losses, lambda_k, lambda_m and lambda_c in the paper.
    """

    moves = {"optimizer": ["teacher", "decoder"]}

    def __init__(
        self,
        network,
        *,
        describe,
        n_patches,
        distillation_weight,
        metric_weight,
        compactness_weight,
        **options,
    ):
        self.describe, self.n_patches = describe, n_patches
        self.weights = {
            "distillation": distillation_weight,
            "metric": metric_weight,
            "compactness": compactness_weight,
        }
        named = [f"{name}_loss" for name, weight in self.weights.items() if weight]
        self.losses = *named, "train_loss"
        super().__init__(network, **options)

    def terms(self, network, x):
        """Losses by name, those without a weight left out."""
        x = x.repeat(-(-self.n_patches // len(x)), 1, 1, 1)
        patch_size, places = network.teacher.patch_size, places_in(x)
        patches = recoloured(patches_at(x, patch_size, *places))
        described, terms = network.teacher(patches).flatten(1), {}
        if self.weights["distillation"]:
            with torch.no_grad():
                # Standardised: the features of some backbones are thousands, of others hundredths. Those that
                # vary by less than .003, the root of eps, count for less, and constant ones for nothing.
                targets = F.batch_norm(self.describe(patches), None, None, training=True)
            errors = (network.decoder(described) - targets).square().sum(1)
            terms["distillation"] = errors.mean()
        if self.weights["metric"]:
            near = recoloured(patches_at(x, patch_size, *moved(places, x, patch_size // 16)))
            near = network.teacher(near + 0.02 * torch.randn_like(near)).flatten(1)
            # The patch before it in the batch comes from another image.
            terms["metric"] = triplet_loss(described, near, described.roll(1, 0))
        if self.weights["compactness"]:
            terms["compactness"] = compactness_loss(described)
        return terms

    def step(self, network, x):
        terms = self.terms(network, x)
        self.record(**{f"{name}_loss": term for name, term in terms.items()})
        self.move("optimizer", train_loss=sum(self.weights[name] * term for name, term in terms.items()))


def places_in(x):
    """Random row and column in each of the images (n, c, h, w), two (n,) tensors."""
    return tuple(torch.randint(side, (len(x),), device=x.device) for side in x.shape[2:])


def moved(places, x, most):
    """Rows and columns `most` pixels away or less, within the images."""
    shifts = (torch.randint(-most, most + 1, (len(x),), device=x.device) for _ in places)
    return [(at + shift).clamp(0, side - 1) for at, shift, side in zip(places, shifts, x.shape[2:])]


def recoloured(x):
    """Images (n, c, h, w) of another contrast and brightness each."""
    gain, shift = torch.rand(2, len(x), 1, 1, 1, device=x.device)
    return x * (0.7 + 0.6 * gain) + 0.2 * (shift - 0.5)


class Students(Training):
    """The part `students` learns the standardised descriptors of the frozen part `teacher`, each by itself.

    Each step takes a window at a random place and describes every `stride`-th patch in it. On average over
    steps that is the mean loss of all pixels, in a fraction of the time.

    Parameters
    ----------
    network : nn.Module
        Network with these parts and a method `targets`.
    """

    moves = {"optimizer": ["students"]}
    losses = ("train_loss",)
    validates = True

    def loss(self, network, x):
        x, n_patches = window(x, network.teacher.patch_size, network.teacher.stride)
        with torch.no_grad():
            targets = network.targets(network.teacher(x))
        # The sum trains each student as if alone: they share no weights, and Adam scales each by itself.
        total = sum((student(x) - targets).square().sum(1).sum() for student in network.students)
        return total / (len(x) * n_patches)

    def step(self, network, x):
        self.move("optimizer", train_loss=self.loss(network, x))

    def validate(self, network, x):
        # The same window in each epoch, so that early stopping compares networks and not windows.
        with seeded(0, x.device):
            return self.loss(network, x)


def window(x, patch_size, stride):
    """Part of the images, padded with zeros, at a random place, and the mean number of patches in such parts.

    It has a patch around every `stride`-th pixel, up to `N_PLACES` on each side. Each pixel of an image is as
    often in it: it may begin before the image and end after it, and what lies beyond is left out.
    """
    parts, n_patches = [], 1.0
    for side in x.shape[2:]:
        # Without those that begin before the image, pixels of the border would be in few windows.
        whole = side <= N_PLACES * stride
        firsts = range(min(stride, side)) if whole else range(-stride * (N_PLACES - 1), side)
        first = firsts[int(torch.randint(len(firsts), ()))]
        places = [place for place in range(first, side, stride)[:N_PLACES] if place >= 0]
        parts.append(slice(places[0], places[-1] + patch_size))
        n_patches *= side * (1 if whole else N_PLACES) / len(firsts)
    return padded(x, patch_size)[:, :, parts[0], parts[1]], n_patches
