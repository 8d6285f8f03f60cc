"""SQUID: each part of an image is painted anew from remembered normal parts; the result should look real."""

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
    """In-painting network, with mean and deviation of reconstructed normal images' logits as buffers."""

    def __init__(self, image_shape, n_windows, **options):
        super().__init__(image_shape, n_windows, **options)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))


class SpaceAwareMemory(MemoryQueue):
    """Memory with a queue for each location, or a single queue for all locations if not `space_aware`."""

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
    """Train two decoders and a discriminator.

    The teacher decodes the encoder's features, and the student decodes them after in-painting. The
    discriminator judges the student's images.

    Parameters
    ----------
    network : SQUIDNetwork
    augmentation : callable on images (n, c, h, w), or None
    n_critic : int
        Number of discriminator steps for each step of the other parts.
    weights : dict of str to float
        "teacher", "student", "distillation", "adversarial" and "discriminator".
    detach_teacher : bool
        Whether the teacher's error does not train the encoder. The distillation, to which the student's side
        belongs, does.
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
        # A loss that no step records would be a column of nan, with a warning.
        without = {f"{name}_loss" for name in ("adversarial", "discriminator") if not weights[name]}
        self.losses = tuple(name for name in self.losses if name not in without)
        super().__init__(network, **options)

    def step(self, network, x):
        if self.augmentation is not None:
            x = changed(self.augmentation, x)
        self._cool_down()
        # One forward pass serves both steps; where only the discriminator moves, a graph would be wasted.
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
            # Neither side is detached, as in the public code: the teacher also moves towards the student.
            "distillation": sum(mse_loss(s, t) for s, t in zip(student, teacher)),
        }
        if self.weights["adversarial"]:
            terms["adversarial"] = generator_loss(network.discriminator(y))
        self.record(**{f"{name}_loss": term for name, term in terms.items()})
        self.move("optimizer", train_loss=sum(self.weights[name] * term for name, term in terms.items()))
        # After the backward pass: torch raises an error if a tensor that it still needs is changed in place.
        network.inpainting.memory.write(vectors.detach())

    def _cool_down(self):
        """The learning rate of all parts but the discriminator falls along a cosine, towards a quarter."""
        # Computed from the epoch: a scheduler has a state, which a resumed fit would not find. The cosine is
        # 1.5 times as long as the training, as in the public code (300 for 200 epochs).
        share = 0.5 * (1 + math.cos(math.pi * (len(self.history) - 1) / (1.5 * self.max_epochs)))
        for group in self.optimizer_.param_groups:
            group["lr"] = self.lr * share


class SQUID(TrainedDetector):
    """Space-aware memory queues for in-painting and detecting (SQUID).

    The method is for images in which everything has its place, such as radiographs. An image is cut into
    windows, and each window is encoded as a feature. The feature is replaced by a combination of the most
    similar features that training images had at that place. Attention then lets each window use its
    neighbours, and a decoder, the student, turns the result into an image. Normal windows look real in it,
    anomalous ones look spoilt. The score of the paper is how unreal the image looks to a discriminator. Here
    the score is how far the features of windows are from those that replace them, which tells more. The map
    is the absolute error of each pixel. In training a second decoder, the teacher, reconstructs images from
    the features themselves, and the student also learns to imitate it.

    Parameters
    ----------
    n_windows : int, default=2
        Number of windows along each side, N in the paper; 3 for `make_digit_anatomy`. Images are padded at
        the bottom and the right until windows can be halved `n_levels` times. If cells of digits have a size
        such as 16 or 32 pixels, nothing is padded and each cell is a window.
    n_slots : int, default=200
        Number of features that each place remembers.
    k : int, default=5
        Number of remembered features that are combined to replace a window.
    rho : float, default=0.95
        Share of the places within a window's feature that are painted anew in training. The other places keep
        the encoder's output, so that the decoder can learn.
    memory : {"queue", "matrix"}, default="queue"
        Content of the memory. "queue": the latest features of training images, first in first out. "matrix":
        learned items.
    space_aware : bool, default=True
        Whether each place has its own memory.
    shrinkage : {"gumbel", "hard"}, default="gumbel"
        Selection of remembered features. "gumbel": the k most similar, with the gradient of all. "hard":
        those whose weight is above 1 / n_slots.
    similarity : {"cosine", "dot"}, default="cosine"
        Similarity of a feature and a remembered one: the cosine of the angle between them, or their dot
        product, as in the public code. With dot products only few features, the longest, are ever retrieved.
    neighbours : {"existing", "padded"}, default="existing"
        Neighbours that a window at the border attends to. "existing": windows of the image alone. "padded":
        also zeros in place of windows beyond the border, as in the public code.
    skips : tuple of {"concatenation", "sum", "none"}, default=()
        Skip connections from the encoder to the levels of the decoders, from the smallest level on. Levels
        without an entry have none. What a skip brings in has passed no memory, unless the level ends in one
        (`n_memories`). The public code has ``("concatenation", "concatenation")`` with two memories.
    stitch_level : int, default=2
        First level of the decoders, counted from the smallest, that works on whole images instead of windows.
    n_memories : int, default=0
        Number of levels of the student, from the smallest on, that end in a memory of learned items. A
        level's map, of a window or from `stitch_level` on of the whole image, is cut into as many parts as an
        image into windows, and each part is replaced by a combination of `k` of the `n_slots` items of its
        place. In training a share 1 - `rho` of the pixels of the map stays as it is.
    encoder : callable, default=None
        Function from the shape (C, h, w) of a window to a torch module. The module returns a list of
        features: the first has the size of the window, each other half the size of the one before. None: an
        encoder of `width` and `n_levels`.
    width : int, default=16
        Channels of the first level. The next levels have 2, 4, 8 and 16 times as many. The paper has 32.
    n_levels : int, default=None
        Number of times a window is halved. None halves its sides to about 4 pixels.
    augmentation : callable, default=None
        Function that changes images (n, C, H, W) in [0, 1] for training, ``transforms.Affine()`` for example,
        as in the paper.
    detach_teacher : bool, default=True
        Whether the teacher's squared error does not train the encoder, as in the public code.
    teacher_weight : float, default=0.01
        Weight of the teacher's squared error.
    student_weight : float, default=10.0
        Weight of the student's squared error.
    distillation_weight : float, default=1e-3
        Weight of the squared difference between the features of student and teacher at all levels.
    adversarial_weight : float, default=5e-3
        Weight of the discriminator's judgement of the student; 0 leaves it out.
    discriminator_weight : float, default=5e-3
        Weight of the discriminator's own loss. With 0 the discriminator keeps its random weights. All values
        above 0 give nearly the same training, because the discriminator has an optimiser of its own, Adam,
        which ignores the scale of a loss.
    score_component : {"feature", "discriminator", "residual"}, default="feature"
        Component that is the score: "discriminator" is the paper's, and the Notes describe all three.
        Calibrate again after changing it.
    n_critic : int, default=1
        Number of discriminator steps for each step of the other parts; the public code has 1 for digits and 2
        for chest X-rays.
    {parameters}

    Attributes
    ----------
    {attributes}

    See Also
    --------
    MemAE : Autoencoder with one learned memory for whole images.
    skanomaly.datasets.make_digit_anatomy : Images by which the method can be understood.

    Notes
    -----
    :Family: memory
    :Trained on: normal images
    :Score: mean squared difference between the features of windows and what the memory holds for them
    :Map: absolute error of each pixel
    :Departures: the score is not the discriminator's; unlike in the public code, k features are kept instead
        of k - 1; similarity is a cosine instead of a dot product; windows at the border attend to existing
        neighbours alone instead of zeros as well; the last epoch is kept instead of the best on labelled
        images; by default decoders have neither the skips nor the memories of the public code's two smallest
        levels; the learning rate is larger, the width 16 instead of 32; {max_epochs steps} training steps,
        where the public code takes 8,400 of the generator and 16,800 of the discriminator
    :Variants:
        * SQUID with the public code's decoder:
          ``SQUID(skips=("concatenation", "concatenation"), n_memories=2)``
        * SQUID by its discriminator, as published: ``SQUID(score_component="discriminator")``
        * SQUID by its residual: ``SQUID(score_component="residual")``
        * SQUID with a memory matrix: ``SQUID(memory="matrix")``
        * SQUID with one memory for all places: ``SQUID(space_aware=False)``
        * SQUID with hard shrinkage: ``SQUID(shrinkage="hard")``

    `score_components` gives four components. "feature" is the score. "discriminator" is how far the
    discriminator's logit of a reconstruction lies below the mean logit of reconstructed normal images, in
    their standard deviations; each image is normalised by its own statistics. "probability" is the paper's
    sigmoid of it, which saturates, so that many images tie. "residual" is the mean absolute error.

    The discriminator only notices what looks spoilt. After short trainings all reconstructions look spoilt,
    and an anomaly that is painted over well does not. On chest X-rays of pneumonia "discriminator" has a mean
    AUROC of .81 and "feature" of .85 (``python benchmarks/studies/squid.py --parts default --seeds 3``); on
    grids of digits "discriminator" is chance.

    The public code's setting for chest X-rays of 128 x 128 pixels is ``SQUID(width=32,
    skips=("concatenation", "concatenation"), n_memories=2, similarity="dot", neighbours="padded", n_critic=2,
    lr=1e-4, augmentation=transforms.Affine(), max_epochs=200)``, for 1,349 images.

    A cosine lies between -1 and 1, so that all `k` remembered features get nearly the same weights. The
    learning rate of all parts but the discriminator falls along a cosine, whatever schedulers are among the
    `callbacks`. As its authors say, the method is not made to find the pixels of an anomaly: reconstructions
    differ from images in detail everywhere, and maps show these differences, too.

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

    #: 500 and 250 steps were compared on `val` of cxr_pneumonia_64, three seeds.
    _steps = {"max_epochs": 500}

    # Files of the first version hold a block that added before its norms.
    _file_version = 2

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
        score_component="feature",
        n_critic=1,
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
            # A hair below 1 / n_slots: the weight of a single slot is 1, and 1 must lie above it.
            else partial(hard_shrinkage, threshold=(1 - 1e-6) / self.n_slots)
        )
        # A row of pixels (h = 1) cannot be cut along its height.
        n_locations = math.prod(1 if side == 1 else self.n_windows for side in image_shape[1:])

        make_memory = partial(
            SpaceAwareMemory,
            n_locations,
            self.n_slots,
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
            skips=self.skips,
            stitch_level=self.stitch_level,
            n_memories=self.n_memories,
            **self._network_size(),
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
            # The public code's values for all parts but the discriminator.
            optimizer__eps=1e-7,
            optimizer__weight_decay=1e-5,
        )

    def _measure(self, network, images):
        # Reconstructions, not images: the discriminator will judge reconstructions.
        logits = collect(lambda x: network.discriminator(network(x)), network, images, self.device_)
        network.mean.fill_(logits.astype(np.float64).mean())
        # Equal images have a deviation of 0, by which nothing can be divided.
        network.deviation.fill_(logits.astype(np.float64).std() or 1.0)

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        painted, vectors, retrieved = network.paint(network.encode(x))
        y, _ = network.decode(network.student, painted)
        # Logits are high for real images. The paper's formula has the other sign, its code has this one.
        unreal = (network.mean - network.discriminator(y)) / network.deviation
        maps = absolute_error(y, x)
        components = {
            "discriminator": unreal,
            "probability": torch.sigmoid(unreal),
            "residual": maps.mean((1, 2)),
            "feature": (vectors - retrieved).square().mean((1, 2)),
        }
        return Judgement(components[self.score_component], maps, components)
