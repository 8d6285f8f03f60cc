"""SQUID: paint each part of an image anew from what is normal there, and ask whether that looks real."""

import math
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch.nn.functional import mse_loss

from .._inference import collect
from .._losses import absolute_error
from ..base import Judgement, TrainedDetector
from ..networks.inpainting import InPaintingNetwork
from ..networks.memory import MemoryQueue, gumbel_shrinkage, hard_shrinkage
from ..training import Training, discriminator_loss, generator_loss
from ..transforms import changed


class SQUIDNetwork(InPaintingNetwork):
    """And, once trained, mean and standard deviation of the discriminator's logits for normal images."""

    def __init__(self, image_shape, n_windows, **options):
        super().__init__(image_shape, n_windows, **options)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))


class SpaceAwareMemory(MemoryQueue):
    """One queue for each location, or, for `space_aware` False, one for all."""

    def __init__(self, n_locations, n_slots, size, *, space_aware, **options):
        super().__init__(n_locations if space_aware else 1, n_slots, size, **options)
        self.space_aware = space_aware

    def forward(self, query):
        if self.space_aware:
            return super().forward(query)
        return super().forward(query.reshape(-1, 1, query.shape[2])).reshape(query.shape)

    def write(self, features):
        super().write(features if self.space_aware else features.reshape(-1, 1, features.shape[2]))


class InPaintingTraining(Training):
    """Teacher and student decode, the student what was painted; the discriminator judges the student.

    Parameters
    ----------
    network : SQUIDNetwork
    augmentation : callable on images (n, c, h, w), or None
    n_critic : int
        The discriminator's steps to one of the rest.
    weights : dict of str to float
        "teacher", "student", "distillation", "adversarial" and "discriminator".
    detach_teacher : bool
        Whether the encoder learns nothing from the teacher.
    """

    moves = {
        "optimizer": ["encoder", "inpainting", "student", "teacher"],
        "optimizer_discriminator": ["discriminator"],
    }
    losses = (
        "discriminator_loss",
        "teacher_loss",
        "student_loss",
        "distillation_loss",
        "adversarial_loss",
        "train_loss",
    )
    betas = 0.5, 0.999

    def __init__(self, network, *, augmentation, n_critic, weights, detach_teacher, **options):
        self.augmentation, self.n_critic, self.weights = augmentation, n_critic, weights
        self.detach_teacher = detach_teacher
        opponents = "adversarial", "discriminator"  # computed only where they have a weight
        without = {f"{name}_loss" for name in opponents if not weights[name]}
        self.losses = tuple(name for name in self.losses if name not in without)
        super().__init__(network, **options)

    def step(self, network, x):
        if self.augmentation is not None:
            x = changed(self.augmentation, x)
        self._cool_down()
        moves_all = self.n_steps % self.n_critic == 0
        with torch.set_grad_enabled(moves_all):
            levels = network.encode(x)
            painted, vectors, _ = network.paint(levels)
            y, student = network.decode(network.student, painted)
        if self.weights["discriminator"]:
            loss = discriminator_loss(network.discriminator(x), network.discriminator(y.detach()))
            self.move("optimizer_discriminator", discriminator_loss=self.weights["discriminator"] * loss)
        if not moves_all:
            return
        taught = [level.detach() for level in levels] if self.detach_teacher else levels
        z, teacher = network.decode(network.teacher, taught)
        terms = {
            "teacher": mse_loss(z, x),
            "student": mse_loss(y, x),
            "distillation": sum(mse_loss(s, t) for s, t in zip(student, teacher)),
        }
        if self.weights["adversarial"]:
            terms["adversarial"] = generator_loss(network.discriminator(y))
        self.record(**{f"{name}_loss": term for name, term in terms.items()})
        self.move("optimizer", train_loss=sum(self.weights[name] * term for name, term in terms.items()))
        # After the backward pass, which needs the memory as it was.
        network.inpainting.memory.write(vectors.detach())

    def _cool_down(self):
        """The rate of all but the discriminator falls along a cosine, towards a quarter."""
        share = 0.5 * (1 + math.cos(math.pi * (len(self.history) - 1) / (1.5 * self.max_epochs)))
        for group in self.optimizer_.param_groups:
            group["lr"] = self.lr * share


class SQUID(TrainedDetector):
    """Space-aware memory queues for in-painting and detecting (SQUID).

    For images in which everything has its place, as in radiographs. An image is cut into windows; each is
    encoded, and replaced by what is most like it among the features that training images had in that place,
    joined by attention to its neighbours. What is decoded from that looks normal where the image was, and
    spoilt where it was not; the score is how unreal it looks to a discriminator, the map the absolute error
    of each pixel.

    Parameters
    ----------
    n_windows : int, default=2
        Windows along each side, N; 3 for `make_digit_anatomy`. Images are padded at their ends until windows
        can be halved: for the digits' cells to be windows, cells must have a size as 16 or 32 pixels.
    n_slots : int, default=200
        Features that each place remembers.
    k : int, default=5
        Of these, how many a window is replaced by a combination of.
    rho : float, default=0.95
        Share of the places of a feature that are painted anew in training; the others stay, so that the
        decoder can learn.
    memory : {"queue", "matrix"}, default="queue"
        Features of training images, first in first out, or learned items.
    space_aware : bool, default=True
        Whether each place has its own memory.
    shrinkage : {"gumbel", "hard"}, default="gumbel"
        The k nearest, with the gradient of all; or those whose weight is above 1 / n_slots.
    similarity : {"cosine", "dot"}, default="cosine"
        Of a feature and a remembered one: that of their directions, or their product, as in the public code.
        With products few features are ever retrieved, the longest.
    neighbours : {"existing", "padded"}, default="existing"
        Whether windows at the border attend to their neighbours only, or to zeros beyond it too.
    skips : tuple of {"concatenation", "sum", "none"}, default=()
        What the decoders do with the encoder's features of their size, from the smallest on; "none" beyond.
        Those pass the memory by.
    stitch_level : int, default=2
        Level of the decoders, from the smallest, before which windows become images.
    n_memories : int, default=0
        Levels of the student that end in a learned memory, from the smallest on.
    encoder : callable, default=None
        From the shape (C, h, w) of a window to a torch module, whose output is a list of features, the first
        of the window's size, the others each half the size of the one before. None builds one of `width` and
        `n_levels`.
    width : int, default=16
        Channels of the first level; 2, 4, 8 and 16 times as many follow. 32 in the paper.
    n_levels : int, default=None
        Times a window is halved. None brings its longer side to about 4 pixels.
    augmentation : callable, default=None
        Changes images (n, C, H, W) in [0, 1] for training, ``transforms.Affine()`` for example, as in the
        paper.
    detach_teacher : bool, default=True
        Whether the encoder learns nothing from the teacher, as in the public code.
    teacher_weight : float, default=0.01
        Weight of the teacher's squared error.
    student_weight : float, default=10.0
        Weight of the student's squared error.
    distillation_weight : float, default=1e-3
        Weight of the squared distance of their features, of all levels.
    adversarial_weight : float, default=5e-3
        Weight of the discriminator's judgement of the student; 0 leaves it out.
    discriminator_weight : float, default=5e-3
        Weight of the discriminator's own loss; 0 leaves it as it was drawn.
    score_component : {"discriminator", "residual", "feature"}, default="discriminator"
        What `score_samples` is of: the paper's, or another (see Notes). Calibrate anew when it is changed.
    n_critic : int, default=1
        Steps of the discriminator to one of the rest; 1 for digits and 2 for chests in the public code.
    max_epochs : int, default=100
        Passes over the normal images.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    MemAE : One memory for whole images, learned.
    skanomaly.datasets.make_digit_anatomy : Images to understand it by.

    Notes
    -----
    :Family: memory
    :Trained on: normal images
    :Score: how far the discriminator's logit lies below that of reconstructed normal images, in their
        standard deviations
    :Map: absolute error of each pixel
    :Departures: k features are kept where the public code keeps k - 1; they are those of the most similar
        direction; windows at the border attend to the neighbours they have; the discriminator judges with
        statistics of training, where the public code has those of each image; no labelled images choose the
        epoch; no skips and no memories in the decoder by default, since skips carry what is anomalous past
        the memory; learning rate
    :Variants:
        * SQUID by its residual: ``SQUID(score_component="residual")``
        * SQUID by its features: ``SQUID(score_component="feature")``
        * SQUID with a memory matrix: ``SQUID(memory="matrix")``
        * SQUID with one memory for all places: ``SQUID(space_aware=False)``
        * SQUID with hard shrinkage: ``SQUID(shrinkage="hard")``

    The paper's sigmoid of the score saturates, so that many images tie: it is the component "probability" of
    `score_components`, beside "residual", the mean absolute error, and "feature", the mean squared distance
    of the features and what was retrieved for them. The discriminator can only tell what looks spoilt: after
    short trainings all reconstructions do, and where an anomaly is painted over well, none. The other two
    then tell more. The similarity of directions lies between -1 and 1, so that the k features are kept with
    nearly the same weight. The rate of all but the discriminator falls along a cosine, whatever schedulers
    are among the `callbacks`. As its authors say, the method is not made to find the pixels of an anomaly:
    maps show what differs from the reconstruction, which differs in detail everywhere.

    References
    ----------
    .. [1] Xiang, T., Zhang, Y., Lu, Y., Yuille, A. L., Zhang, C., Cai, W., Zhou, Z. (2023). "SQUID: Deep
       feature in-painting for unsupervised anomaly detection". CVPR. `arXiv:2111.13495
       <https://arxiv.org/abs/2111.13495>`_

    Examples
    --------
    >>> from skanomaly import SQUID
    >>> from skanomaly.datasets import make_digit_anatomy
    >>> X = make_digit_anatomy(32, random_state=0).images
    >>> detector = SQUID(n_windows=3, width=2, n_slots=20, max_epochs=1, random_state=0).fit(X)
    >>> detector.network_.inpainting.memory.items.shape
    torch.Size([9, 20, 128])
    """

    _parameter_constraints = {
        "n_windows": [Interval(Integral, 1, None, closed="left")],
        "n_slots": [Interval(Integral, 1, None, closed="left")],
        "k": [Interval(Integral, 1, None, closed="left")],
        "rho": [Interval(Real, 0, 1, closed="both")],
        "memory": [StrOptions({"queue", "matrix"})],
        "space_aware": ["boolean"],
        "shrinkage": [StrOptions({"gumbel", "hard"})],
        "similarity": [StrOptions({"dot", "cosine"})],
        "neighbours": [StrOptions({"existing", "padded"})],
        "skips": [tuple, list],
        "stitch_level": [Interval(Integral, 0, None, closed="left")],
        "n_memories": [Interval(Integral, 0, None, closed="left")],
        "encoder": [callable, None],
        "augmentation": [callable, None],
        "detach_teacher": ["boolean"],
        "score_component": [StrOptions({"discriminator", "residual", "feature"})],
        "n_critic": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        *,
        n_windows=2,
        n_slots=200,
        k=5,
        rho=0.95,
        memory="queue",
        space_aware=True,
        shrinkage="gumbel",
        similarity="cosine",
        neighbours="existing",
        skips=(),
        stitch_level=2,
        n_memories=0,
        encoder=None,
        width=16,
        n_levels=None,
        augmentation=None,
        detach_teacher=True,
        teacher_weight=0.01,
        student_weight=10.0,
        distillation_weight=1e-3,
        adversarial_weight=5e-3,
        discriminator_weight=5e-3,
        score_component="discriminator",
        n_critic=1,
        max_epochs=100,
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
        self.n_windows = n_windows
        self.n_slots = n_slots
        self.k = k
        self.rho = rho
        self.memory = memory
        self.space_aware = space_aware
        self.shrinkage = shrinkage
        self.similarity = similarity
        self.neighbours = neighbours
        self.skips = skips
        self.stitch_level = stitch_level
        self.n_memories = n_memories
        self.encoder = encoder
        self.width = width
        self.n_levels = n_levels
        self.augmentation = augmentation
        self.detach_teacher = detach_teacher
        self.teacher_weight = teacher_weight
        self.student_weight = student_weight
        self.distillation_weight = distillation_weight
        self.adversarial_weight = adversarial_weight
        self.discriminator_weight = discriminator_weight
        self.score_component = score_component
        self.n_critic = n_critic
        self._assign_shared(locals())

    def _build(self, image_shape):
        if self.shrinkage == "gumbel" and self.k > self.n_slots:
            raise ValueError(
                f"k must be at most n_slots, the features there are to choose from, got k={self.k} and "
                f"n_slots={self.n_slots}"
            )
        known = "concatenation", "sum", "none"
        if not all(skip in known for skip in self.skips):
            raise ValueError(f"skips must hold 'concatenation', 'sum' and 'none' only, got {self.skips!r}")
        shrink = (
            partial(gumbel_shrinkage, k=self.k)
            if self.shrinkage == "gumbel"
            else partial(hard_shrinkage, threshold=(1 - 1e-6) / self.n_slots)  # one slot is kept, too
        )
        n_locations = math.prod(1 if side == 1 else self.n_windows for side in image_shape[1:])

        def make_memory(size):
            return SpaceAwareMemory(
                n_locations,
                self.n_slots,
                size,
                space_aware=self.space_aware,
                shrink=shrink,
                cosine=self.similarity == "cosine",
                learned=self.memory == "matrix",
            )

        return SQUIDNetwork(
            image_shape,
            self.n_windows,
            make_encoder=self.encoder,
            make_memory=make_memory,
            padded=self.neighbours == "padded",
            rho=self.rho,
            width=self.width,
            n_levels=self.n_levels,
            skips=self.skips,
            stitch_level=self.stitch_level,
            n_memories=self.n_memories,
            n_slots=self.n_slots,
        )

    def _train(self, run, network, images):
        run(
            "inpainting",
            InPaintingTraining,
            network,
            images,
            augmentation=self.augmentation,
            n_critic=self.n_critic,
            weights={
                "teacher": self.teacher_weight,
                "student": self.student_weight,
                "distillation": self.distillation_weight,
                "adversarial": self.adversarial_weight,
                "discriminator": self.discriminator_weight,
            },
            detach_teacher=self.detach_teacher,
            optimizer__eps=1e-7,
            optimizer__weight_decay=1e-5,
        )

    def _measure(self, network, images):
        logits = collect(lambda x: network.discriminator(network(x)), network, images, self.device_)
        network.mean.fill_(logits.astype(np.float64).mean())
        network.deviation.fill_(logits.astype(np.float64).std() or 1.0)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        painted, vectors, retrieved = network.paint(network.encode(x))
        y, _ = network.decode(network.student, painted)
        unreal = (network.mean - network.discriminator(y)) / network.deviation
        maps = absolute_error(y, x)
        components = {
            "discriminator": unreal,
            "probability": torch.sigmoid(unreal),
            "residual": maps.mean((1, 2)),
            "feature": (vectors - retrieved).square().mean((1, 2)),
        }
        return Judgement(components[self.score_component], maps, components)
