"""UninformedStudents: students learn a teacher's descriptors of normal patches, and disagree on others."""

import math
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .. import _backbone, _inference
from ..base import HoldsBackbone, Judgement, TrainedDetector
from ..networks.density import map_scores
from ..networks.patch_descriptors import LAYERS, PatchNetwork
from ..training import Students, TeacherTraining

#: Patches in a step of the teacher's training, at least, as in the paper.
N_PATCHES = 64
#: Least deviation of a descriptor's dimension, as a share of the largest one.
LEAST_DEVIATION = 1e-3
#: Most pixels of images that are described at a time; all images of a batch might fill the memory.
N_PIXELS = 2**18
#: Weight decay of all networks, as in the paper.
DECAY = 1e-5


def error_and_variance(predictions, targets):
    """Error and variance of students at each pixel, two tensors (n, h, w).

    The error e is the squared distance of the mean prediction from the target. The variance v is the mean
    squared distance of the predictions from their mean (Bergmann et al. 2020, equations 8 and 9).

    Parameters
    ----------
    predictions : (m, n, d, h, w) tensor
        Descriptors by each student.
    targets : (n, d, h, w) tensor
    """
    mean = predictions.mean(0)
    # Not the mean of squares less the square of the mean, whose difference is lost to rounding.
    return (mean - targets).square().sum(1), (predictions - mean).square().sum(2).mean(0)


def in_parts(function, x):
    """Result of a function of images (n, c, h, w), for as many of them at a time as have `N_PIXELS`."""
    n = max(1, N_PIXELS // x[0, 0].numel())
    # A power of two, as the size of a batch is: results in float32 depend on how many images there are.
    parts = [function(part) for part in x.split(2 ** (n.bit_length() - 1))]
    return tuple(map(torch.cat, zip(*parts)))


class ScaleNetwork(nn.Module):
    """Teacher and students for patches of one size.

    `decoder` makes features of the backbone of the teacher's descriptors, in its training only. `mean` and
    `deviation` are those of each dimension of its descriptors; `centre` and `spread` are the mean and
    deviation of error and variance, over all pixels of normal images.
    """

    def __init__(self, n_channels, patch_size, width, n_features, n_students, n_described):
        super().__init__()
        size = n_channels, patch_size, width, n_features
        self.teacher = PatchNetwork(*size)
        self.decoder = nn.Linear(n_features, n_described) if n_described else nn.Identity()
        # Made one after the other, of different random numbers.
        self.students = nn.ModuleList(PatchNetwork(*size) for _ in range(n_students))
        for name, shape in (("mean", n_features), ("centre", 2)):
            self.register_buffer(name, torch.zeros(shape))
        for name, shape in (("deviation", n_features), ("spread", 2)):
            self.register_buffer(name, torch.ones(shape))

    def targets(self, described):
        """Standardised descriptors (n, d, h, w) of the teacher's."""
        return (described - self.mean[:, None, None]) / self.deviation[:, None, None]

    def regress(self, x):
        """Error and variance at each pixel, (n, 2, h, w)."""

        def regress(x):
            predictions = torch.stack([student.at_each_pixel(x) for student in self.students])
            return error_and_variance(predictions, self.targets(self.teacher.at_each_pixel(x)))

        return torch.stack(in_parts(regress, x), dim=1)

    def standardise(self, values):
        """Error and variance (n, 2, h, w) in deviations from the mean of normal images."""
        return (values - self.centre[:, None, None]) / self.spread[:, None, None]


class StudentNetwork(nn.Module):
    """Networks of all patch sizes, in `scales`."""

    def __init__(self, scales):
        super().__init__()
        self.scales = nn.ModuleDict(scales)

    def regress(self, x):
        """Error and variance at each pixel, (n, 2, h, w) for each patch size, a tuple."""
        return tuple(scale.regress(x) for scale in self.scales.values())

    def standardise(self, *values):
        """Results of `regress`, standardised and averaged over patch sizes, (n, 2, h, w)."""
        parts = [scale.standardise(part) for scale, part in zip(self.scales.values(), values)]
        return torch.stack(parts).mean(0)


def sums(values):
    """Mean (n, d) and mean square (n, d) of values (n, d, h, w) over pixels, in float64."""
    values = values.double()
    return values.mean((2, 3)), values.square().mean((2, 3))


def moments(mean, square):
    """Mean and deviation (d,) over all images, of the two results of `sums` (n, d)."""
    mean, square = mean.mean(0), square.mean(0)
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def positive(deviation):
    """Deviations of which none is much smaller than the largest, so that each can be a divisor."""
    return np.maximum(deviation, LEAST_DEVIATION * deviation.max()) if deviation.max() > 0 else deviation + 1


class UninformedStudents(HoldsBackbone, TrainedDetector):
    """Uninformed students: an ensemble learns a teacher's descriptors of the patches of normal images.

    A teacher describes the patch around each pixel by a vector. Several students, which start from different
    random weights, learn these vectors on normal images. Where a patch is like none of these images, the
    students are wrong, and each in another way. The map is the error of their mean plus their variance, both
    standardised on normal images, and averaged over patch sizes.

    The teacher learns first: to give the features of a network that is distilled, or, without one, to give
    a patch and its neighbour similar descriptors, and patches of other images different ones.

    Parameters
    ----------
    patch_sizes : tuple of {17, 33, 65}, default=(17, 33, 65)
        Sides of the patches in pixels, p in the paper. Each size has a teacher and students of its own.
    n_students : int, default=3
        Number of students of each patch size, M in the paper.
    width : int, default=16
        Channels of the first layer of teachers and students, 128 in the paper; later ones have up to twice as
        many.
    n_features : int, default=32
        Length of a descriptor, 128 in the paper.
    distillation_weight : float, default=1.0
        Weight of the squared error with which a linear map of the teacher's descriptor gives the backbone's
        features of the patch, lambda_k in the paper. With 0 the backbone is not used, nor needed.
    metric_weight : float, default=0.0
        Weight of the triplet loss, which needs no backbone, lambda_m in the paper.
    compactness_weight : float, default=1.0
        Weight of the squared correlations between dimensions of descriptors, lambda_c in the paper.
    {backbone}
    input_size : int or tuple (h, w), default=32
        Size to which patches are enlarged for the backbone. An int is the side of a square. None is 224 for
        "imagenet", 64 for "filters", and else the square with as many pixels as the images.
    pooling : {"mean", "max", "top"}, default="mean"
        Pooling of the map to the score: its mean, its maximum, or the mean of its largest `top_fraction`.
    top_fraction : float, default=0.05
        Share of the pixels that count for "top".
    teacher_epochs : int, default=None
        Number of passes of each teacher over the normal images. None makes {teacher_epochs steps} training
        steps.
    teacher_lr : float, default=0.001
        Learning rate of the teachers.
    max_epochs : int, default=None
        Number of passes of the students of each patch size over the normal images. None makes
        {max_epochs steps} training steps, whatever the number of images.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    KnowledgeDistillation : One student, which learns feature maps of whole images.
    DDAD : Ensembles that disagree in their reconstructions.

    Notes
    -----
    :Family: distillation
    :Trained on: normal images
    :Score: mean of the map
    :Map: squared error of the students' mean plus their variance, each standardised on normal images and
        averaged over patch sizes
    :Departures: the paper's teacher learns from ImageNet, here from patches of the normal images, of random
        contrast and brightness; what is distilled is EfficientNet-Lite0 (a ResNet-18 in the paper), its
        features standardised in each batch; networks are 8 times as narrow, and learn for fewer steps, in
        batches of 8 and not of 1, at other learning rates (2e-4 of the teacher and 1e-4 of students in the
        paper); students learn the patches in a window at a random place, of p = 33 every fourth and of p = 65
        every eighth, which is the paper's loss on average; the paper has no score of images
    :Variants:
        * Uninformed students, p = 17: ``UninformedStudents(patch_sizes=(17,))``
        * Uninformed students, p = 33: ``UninformedStudents(patch_sizes=(33,))``
        * Uninformed students, p = 65: ``UninformedStudents(patch_sizes=(65,))``
        * Uninformed students, teacher by metric learning:
          ``UninformedStudents(distillation_weight=0, metric_weight=1)``

    Training has two stages for each patch size, "teacher_17" and "students_17" and so on. Beyond the border
    of an image patches hold zeros. Error and variance are standardised on the images that
    `validation_fraction` holds out, if there are any, else on the training images, whose errors are smaller
    than those of new normal images.

    References
    ----------
    .. [1] Bergmann, P., Fauser, M., Sattlegger, D., Steger, C. (2020). "Uninformed students: Student-teacher
       anomaly detection with discriminative latent embeddings". CVPR.
       `arXiv:1911.02357 <https://arxiv.org/abs/1911.02357>`_

    Examples
    --------
    >>> from skanomaly import UninformedStudents
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:8]
    >>> small = {"width": 2, "teacher_epochs": 1, "max_epochs": 1, "random_state": 0}
    >>> detector = UninformedStudents(patch_sizes=(17,), backbone="filters", **small).fit(X)
    >>> detector.score_samples(X[:2]).shape, detector.anomaly_map(X[:2]).shape
    ((2,), (2, 64, 64))
    """

    _layers = {"imagenet": (3, 4), "filters": (0, 1, 2)}
    _steps = {"max_epochs": 1100, "teacher_epochs": 1100}

    _parameter_constraints = {
        "patch_sizes": [tuple, list],
        "n_students": [Interval(Integral, 2, None, closed="left")],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "pooling": [StrOptions({"mean", "max", "top"})],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(
        self,
        *,
        patch_sizes=(17, 33, 65),
        n_students=3,
        width=16,
        n_features=32,
        distillation_weight=1.0,
        metric_weight=0.0,
        compactness_weight=1.0,
        backbone="imagenet",
        layers=None,
        input_size=32,
        pooling="mean",
        top_fraction=0.05,
        teacher_epochs=None,
        teacher_lr=1e-3,
        max_epochs=None,
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
        self.patch_sizes = patch_sizes
        self.n_students = n_students
        self.n_features = n_features
        self.distillation_weight = distillation_weight
        self.metric_weight = metric_weight
        self.compactness_weight = compactness_weight
        self.pooling = pooling
        self.top_fraction = top_fraction
        self.teacher_epochs = teacher_epochs
        self.teacher_lr = teacher_lr
        self._assign_shared(locals())

    def _check_process(self):
        super()._check_process()
        if not self.distillation_weight and not self.metric_weight:
            raise ValueError(
                "the teacher learns by distillation or by metric learning; set distillation_weight or "
                "metric_weight above 0"
            )

    def _prepare(self, images):
        if self.distillation_weight:
            super()._prepare(images)
        else:
            self.n_images_, self.feature_shapes_ = len(images), ()
            self.backbone_ = self.backbone_detector_ = None

    def _check_own_attributes(self, attributes):
        if attributes["backbone_"] is not None:
            super()._check_own_attributes(attributes)
        elif attributes["feature_shapes_"] != ():
            raise ValueError(f"feature_shapes_ cannot be {attributes['feature_shapes_']!r}")

    def _build(self, image_shape):
        sizes = self.patch_sizes
        known = all(isinstance(p, Integral) and p in LAYERS for p in sizes)
        if not sizes or not known or len(set(sizes)) < len(sizes):
            raise ValueError(f"patch_sizes must hold each of {tuple(LAYERS)} once at most, got {sizes!r}")
        n_described = sum(shape[0] for shape in self.feature_shapes_)
        options = self.width, self.n_features, self.n_students, n_described
        return StudentNetwork({str(p): ScaleNetwork(image_shape[0], p, *options) for p in sizes})

    def _train(self, run, network, images):
        describe = None
        if self.distillation_weight:
            # No part of the network: once the teachers have learned, nothing needs it.
            backbone = self._place(self._new_backbone(self.image_shape_)).eval()
            if not isinstance(self.input_size, tuple):
                # It was built for images; patches are square, whatever the images are.
                backbone.size = (round(math.sqrt(math.prod(backbone.size))),) * 2

            def describe(patches):
                return _backbone.vectors(backbone, backbone(patches), (1, 1))

        weights = {
            "distillation_weight": self.distillation_weight,
            "metric_weight": self.metric_weight,
            "compactness_weight": self.compactness_weight,
        }
        teaching = {"epochs": "teacher_epochs", "lr": self.teacher_lr, "optimizer__weight_decay": DECAY}
        for name, scale in network.scales.items():
            options = {"describe": describe, "n_patches": N_PATCHES} | teaching | weights
            run(f"teacher_{name}", TeacherTraining, scale, images, **options)
            describe_all = partial(in_parts, lambda x, of=scale: sums(of.teacher.at_each_pixel(x)))
            mean, deviation = moments(*_inference.collect(describe_all, scale, images, self.device_))
            scale.mean.copy_(torch.from_numpy(mean))
            scale.deviation.copy_(torch.from_numpy(positive(deviation)))
            run(f"students_{name}", Students, scale, images, optimizer__weight_decay=DECAY)

    def _measure(self, network, images):
        normal = images if images.held_out is None else images.held_out
        regressed = _inference.Replay(network.regress, network, normal, self.device_)
        found = [[sums(part[:n]) for part in values] for n, values in regressed]
        for scale, parts in zip(network.scales.values(), zip(*found)):
            mean, deviation = moments(*(torch.cat(part).cpu().numpy() for part in zip(*parts)))
            scale.centre.copy_(torch.from_numpy(mean))
            scale.spread.copy_(torch.from_numpy(np.where(deviation > 0, deviation, 1)))
        if images.held_out is None:
            return regressed.map(lambda rows, *values: self._judge_regressed(network, *values)[:2])

    def _judge(self, network, x):
        return self._judge_regressed(network, *network.regress(x))

    def _judge_regressed(self, network, *values):
        error, variance = network.standardise(*values).unbind(1)
        maps = error + variance
        scores = map_scores(maps, self.top_fraction)
        parts = {"error": error.mean((1, 2)), "variance": variance.mean((1, 2))}
        return Judgement(scores[self.pooling], maps, scores | parts)
