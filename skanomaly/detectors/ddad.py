"""DDAD: anomalies are found where two ensembles disagree; one also learns from unlabelled images."""

import warnings
from functools import cache, partial
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .. import _inference
from .._losses import focal_loss, likelihood_error, over_channels, squared_error
from .._random import seeded
from ..base import Judgement, TrainedDetector
from ..networks.autoencoder import ConvAutoEncoder, MemoryAutoEncoder, UncertainAutoEncoder
from ..synthesis import SYNTHESES
from ..training import MemoryTraining, Reconstruction, Training
from ..transforms.defects import apply_to_some, foreign_patches, foreign_to

#: Batch size of the refinement stage, as in the public code.
REFINEMENT_BATCH = 8
#: Learning rate of the refinement stage, as in the public code.
REFINEMENT_LR = 1e-4
#: Probability that the refinement stage changes an image, as in the public code.
PROBABILITY = 0.5


#: Discrepancy maps that each refinement network takes as input.
INPUTS = {"intra": ("intra",), "dual": ("inter", "intra")}
#: Discrepancy that each refinement network should be better than.
RAW = {"intra": "intra", "dual": "inter"}


class Backbone(NamedTuple):
    """Kind of member: functions that build it, train it and predict (images, log-variances or None)."""

    build: callable
    training: callable
    predict: callable


def _certain(member, x):
    return member(x), None


BACKBONES = {
    # parts=None trains all parts: a user's own module, also trained this way, has no encoder and decoder.
    "ae": Backbone(ConvAutoEncoder, partial(Reconstruction, error=squared_error, parts=None), _certain),
    "memae": Backbone(
        partial(MemoryAutoEncoder, n_slots=25, threshold=0.0, cosine=False),
        partial(MemoryTraining, entropy_weight=2e-4),
        _certain,
    ),
    "aeu": Backbone(
        UncertainAutoEncoder,
        partial(Reconstruction, error=likelihood_error, predict_images=UncertainAutoEncoder.predict),
        UncertainAutoEncoder.predict,
    ),
}


class RefinementNetwork(nn.Sequential):
    """ASR-Net: discrepancy maps (n, c, h, w) to logits (n, 2, h, w) of the classes normal and anomalous."""

    def __init__(self, n_maps, *, width):
        layers = []
        for n_in in (n_maps, width):
            layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, 2, 3, padding=1))


class DDADNetwork(nn.Module):
    """Network of two ensembles of autoencoders and of the refinement networks.

    The ensemble `ndm` learns from normal images, the ensemble `udm` from normal and unlabelled ones. The part
    `refinements` holds the refinement networks by name.

    Parameters
    ----------
    make : callable () -> nn.Module
        Function that makes a new member.
    predict : callable (member, x) -> reconstructions, log-variances or None
    n_members : int
        Number of members of each ensemble.
    dual : bool
        Whether there is an ensemble `udm`.
    refinement_width : int or None
        Channels of each refinement network. None leaves these networks out.
    ddof : int
        Number subtracted from `n_members` in the divisor of the standard deviation.
    """

    def __init__(self, make, predict, *, n_members, dual, refinement_width, ddof):
        super().__init__()
        self.predict, self.ddof = predict, ddof
        self.ndm = nn.ModuleList(make() for _ in range(n_members))
        self.udm = nn.ModuleList(make() for _ in range(n_members)) if dual else None
        names = () if refinement_width is None else ("intra", "dual") if dual else ("intra",)
        self.refinements = nn.ModuleDict(
            {name: RefinementNetwork(len(INPUTS[name]), width=refinement_width) for name in names}
        )

    def _predict(self, ensemble, x):
        """Reconstructions by all members (n_members, n, c, h, w), and their log-variances or None."""
        images, log_variances = zip(*(self.predict(member, x) for member in ensemble))
        return torch.stack(images), None if log_variances[0] is None else torch.stack(log_variances)

    def forward(self, x):
        """Mean of the reconstructions of `ndm`."""
        return self._predict(self.ndm, x)[0].mean(0)

    def discrepancies(self, x):
        """Maps (n, h, w) by name.

        "rec" is always among them. "intra" needs more than max(1, `ddof`) members, "inter" needs a `udm`.
        """
        images, log_variances = self._predict(self.ndm, x)
        mean, deviation = images.mean(0), 1.0
        if log_variances is not None:
            # As in the public code, all maps, "inter" too, are divided by the deviation that `ndm` predicts.
            deviation = log_variances.exp().mean(0).sqrt()
        maps = {"rec": over_channels(((x - mean) / deviation).square())}
        # The deviation of one member is 0, and with `ddof` members or fewer the divisor is 0.
        if len(self.ndm) > max(1, self.ddof):
            maps["intra"] = over_channels(images.std(0, correction=self.ddof) / deviation)
        if self.udm is not None:
            maps["inter"] = over_channels((self._predict(self.udm, x)[0].mean(0) - mean).abs() / deviation)
        return maps

    def logits(self, name, maps):
        """Logits (n, 2, h, w) that the refinement network `name` computes from discrepancy maps."""
        return self.refinements[name](torch.stack([maps[of] for of in INPUTS[name]], dim=1))

    def refine(self, name, maps):
        """Refined discrepancy (n, h, w): the probability of each pixel to be anomalous."""
        return self.logits(name, maps).softmax(1)[:, 1]


class Refinement(Training):
    """Train the refinement networks to find synthetic anomalies.

    The networks take discrepancy maps of the changed images as input. All networks learn from the same
    images, each by a loss of its own.

    Parameters
    ----------
    network : DDADNetwork
    synthesis : callable (images, sources, generator) -> (images, masks, labels), default=None
        None mixes another image into boxes, as the public code does.
    """

    moves = {"optimizer": ["refinements"]}
    losses = ("refinement_loss",)
    betas = 0.5, 0.999
    validates = True
    least_held_out = 2  # as each is the source of another

    def __init__(self, network, *, synthesis=None, **options):
        self.synthesis = synthesis
        super().__init__(network, **options)

    def make(self, x):
        """Images, half of them with an anomaly, and its masks (n, h, w)."""
        if self.synthesis is None:
            return foreign_patches(x, probability=PROBABILITY)[:2]
        # A synthesis takes images in [0, 1], and the members take them in [-1, 1].
        x = (x + 1) / 2
        generator = torch.default_generator
        foreign = foreign_to(x, x.roll(-1, 0), self.synthesis)
        images, masks, _ = apply_to_some(self.synthesis, x, foreign, generator, PROBABILITY)
        return 2 * images - 1, masks[:, 0]

    def loss(self, network, x):
        images, masks = self.make(x)
        # no_grad, because the ensembles are frozen: a graph through all members would only take memory.
        with torch.no_grad():
            maps = network.discrepancies(images)
        # The sum trains each network as if alone: they share no weights, and Adam scales each by itself.
        return sum(focal_loss(network.logits(name, maps), masks) for name in network.refinements)

    def step(self, network, x):
        self.move("optimizer", refinement_loss=self.loss(network, x))

    def validate(self, network, x):
        # The same anomalies in each epoch, so that early stopping compares networks and not draws.
        with seeded(0, x.device):
            return self.loss(network, x)


class DDAD(TrainedDetector):
    """Dual-distribution discrepancy for anomaly detection (DDAD).

    Two ensembles of autoencoders are trained. The normative ensemble (NDM) learns from normal images alone.
    The unknown ensemble (UDM) also learns from unlabelled images, some of which may be anomalous. Two maps
    show anomalies: the intra-discrepancy is the difference between the members of the NDM, and the
    inter-discrepancy is the difference between the two ensembles. A small network, ASR-Net, refines these
    maps. ASR-Net is trained to find pieces of other images that were mixed into normal images.

    Without unlabelled images there are only the NDM and its intra-discrepancy.

    Parameters
    ----------
    backbone : {"ae", "memae", "aeu"} or callable, default="aeu"
        Network of a member. "ae", "memae" and "aeu" are the networks of AutoEncoder, MemAE (with dot products
        and without a threshold) and AEU. With "aeu" discrepancies are divided by the predicted standard
        deviation, and squared errors by the predicted variance. A callable takes an image shape (C, H, W) and
        returns a new torch module that maps images, scaled to [-1, 1], to reconstructions. Such a module is
        trained to minimise the squared error; it does not use the parameters `latent_size`, `hidden_size`,
        `width`, `n_levels` and `bottleneck`.
    n_members : int, default=3
        Number of members in each ensemble, K in the paper: at least 2, and more than `ddof`. One member is
        enough with ``score_component="rec"`` and ``refine=False``.
    refine : bool, default=False
        Whether ASR-Net is trained; the paper does. It is left out by default, see Notes.
    score_component : {"dual", "intra", "inter", "rec"}, default=None
        Discrepancy that the map shows; the score is the mean of the map. "dual": both discrepancies, refined
        (R_dual). "intra": the discrepancy within the NDM (R_intra, or A_intra with ``refine=False``).
        "inter": the discrepancy between the ensembles (A_inter). "rec": the squared error of the NDM (A_rec).
        None: the first available of R_dual, A_inter, R_intra and A_intra, without a refined one that points
        the wrong way.
    ddof : int, default=1
        Number subtracted from `n_members` in the divisor of standard deviations: 1 in the public code, 0 in
        the paper.
    {size}
    max_epochs : int, default=None
        Number of passes of each member over its training images. None makes {max_epochs steps} training
        steps in the NDM, whatever the number of images, and as many passes in the UDM.
    refinement_epochs : int, default=None
        Number of passes of ASR-Net over the normal images. None makes {refinement_epochs steps} steps.
    refinement_width : int, default=128
        Channels of ASR-Net.
    refinement_synthesis : str or callable, default=None
        Function that makes the anomalies on which ASR-Net is trained, each from an image and another one of
        its batch. None mixes the other image in within a rectangle, as the paper does. A name is that of a
        function of `skanomaly.synthesis`: "anat_paste", "cutpaste", "fpi", "mixture", "nsa", "perlin", "pii"
        or "shifted_pieces". A callable is as for `SyntheticAnomalies`. Half of the images are changed.
    {parameters}

    Attributes
    ----------
    n_unlabelled_ : int
        Number of unlabelled images in training.
    refinement_direction_ : dict of str to float
        Rank correlation of R_dual ("dual") with A_inter, and of R_intra ("intra") with A_intra, over the
        training images. A negative one means that ASR-Net points the wrong way. Empty with ``refine=False``.
    {attributes}

    See Also
    --------
    AEU : Detector that is a single network of the default backbone.

    Notes
    -----
    :Family: ensemble
    :Trained on: normal images (y = 1), and unlabelled ones (y = 0) if there are any
    :Score: mean over pixels of the discrepancy; with ``refine=True``, of the refined one, a probability
    :Map: discrepancy of each pixel, or refined discrepancy
    :Departures: to train ASR-Net, another image of the same batch is mixed into an image within a rectangle,
        whereas the public code uses squares; labels are not smoothed (by 1e-5 in the public code); ASR-Net is
        left out by default; the public code trains each member for 15,000 steps and ASR-Net for 48,100
    :Variants:
        * DDAD with AE: ``DDAD(backbone="ae")``
        * DDAD with MemAE: ``DDAD(backbone="memae")``
        * DDAD with AE-U: ``DDAD(backbone="aeu")``
        * DDAD with refinement: ``DDAD(refine=True)``

    DDAD distinguishes normal images (y = 1) from unlabelled images (y = 0), whereas other detectors treat
    both as normal. Thresholds come from the normal images. If y is None or holds no 0, all training images
    count as normal.

    Training has one stage for each member: "ndm_0", "ndm_1" and so on, then "udm_0" and so on. The last stage
    is "refinement". These are the names in ``history_`` and in `callbacks`. `lr` and `batch_size` apply to
    the members. The stage "refinement" has a learning rate of 1e-4 and batches of 8, as in the public code.

    The paper's score is R_dual, by ``refine=True``. Pieces of other images that are mixed in hardly change
    the discrepancies, so ASR-Net has little to learn from, and R_dual may be higher for normal images than
    for anomalous ones: the study benchmarks/studies/ddad.py has an AUROC of .31 for R_dual and of .88 for
    A_inter on one data set. Therefore `fit` compares two orders of the training images: by the refined score,
    and by the discrepancy itself. If they are opposed, `fit` warns, and the default score is not refined;
    ``score_component="dual"`` is R_dual all the same. With `refinement_synthesis` ASR-Net learns from
    other anomalies: those of "shifted_pieces", for example, come from elsewhere in the other image, and are
    brighter or darker than there.

    The components of `score_components` are the discrepancies "rec", "intra" and "inter" (A_rec, A_intra and
    A_inter in the paper), and the refined discrepancies "refined_intra" and "refined_dual" (R_intra and
    R_dual). Those for which the detector lacks members, unlabelled images or ASR-Net are absent.

    References
    ----------
    .. [1] Cai, Y., Chen, H., Yang, X., Zhou, Y., Cheng, K.-T. (2023). "Dual-distribution discrepancy with
       self-supervised refinement for anomaly detection in medical images". Medical Image Analysis.
       `arXiv:2210.04227 <https://arxiv.org/abs/2210.04227>`_

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import DDAD
    >>> from skanomaly.datasets import load_chest_xray
    >>> X = load_chest_xray().images[:64]
    >>> y = np.repeat([1, 0], 32)
    >>> small = {"hidden_size": 64, "max_epochs": 1}
    >>> detector = DDAD(n_members=2, random_state=0, **small).fit(X, y)
    >>> sorted(detector.score_components(X[:2]))
    ['inter', 'intra', 'rec']
    """

    _image_range = (-1.0, 1.0)
    _steps = {"max_epochs": 1000, "refinement_epochs": 1000}
    _tells_unlabelled = True

    _parameter_constraints = {
        "backbone": [StrOptions(set(BACKBONES)), callable],
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "refine": ["boolean"],
        "score_component": [StrOptions({"dual", "intra", "inter", "rec"}), None],
        "ddof": [Interval(Integral, 0, None, closed="left")],
        "refinement_width": [Interval(Integral, 1, None, closed="left")],
        "refinement_synthesis": [StrOptions(set(SYNTHESES)), callable, None],
    }

    def __init__(
        self,
        *,
        backbone="aeu",
        n_members=3,
        refine=False,
        score_component=None,
        ddof=1,
        latent_size=16,
        hidden_size=2048,
        width=16,
        n_levels=None,
        bottleneck="dense",
        max_epochs=None,
        refinement_epochs=None,
        refinement_width=128,
        refinement_synthesis=None,
        batch_size=64,
        lr=0.0005,
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
        self.backbone = backbone
        self.n_members = n_members
        self.refine = refine
        self.score_component = score_component
        self.ddof = ddof
        self.refinement_epochs = refinement_epochs
        self.refinement_width = refinement_width
        self.refinement_synthesis = refinement_synthesis
        self._assign_shared(locals())

    def _prepare(self, images):
        y = images.y
        self.n_unlabelled_ = 0 if y is None else int((y == 0).sum())
        n_normal = 2 if y is None else len(y) - self.n_unlabelled_
        if self.n_unlabelled_ and not (y == 1).any():
            n_normal = 0  # y has zeros and no 1: its other codes mean nothing here
        if n_normal < 2:
            raise ValueError(
                f"DDAD learns from normal images and, beside them, unlabelled ones; y has {n_normal} normal "
                f"(1) and {self.n_unlabelled_} unlabelled (0): give 2 normal ones at least, or no y"
            )
        # Number of normal images that `split` will hold out: all images held out minus the unlabelled ones.
        n_held_out = round(self.validation_fraction * (n_normal + self.n_unlabelled_))
        n_held_out -= round(self.validation_fraction * self.n_unlabelled_)
        if y is not None and self.validation_fraction and not 0 < n_held_out <= n_normal - 2:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of {n_normal} normal images leaves "
                f"{n_held_out} to validate and {n_normal - n_held_out} to train on; give more or change it"
            )
        asked = self._component()
        n_needed = 1 if asked == "rec" and not self.refine else 1 + max(1, self.ddof)
        if self.n_members < n_needed:
            raise ValueError(
                f"n_members must be at least {n_needed} for members to disagree, got {self.n_members}; one "
                "is enough for score_component='rec' with refine=False"
            )

    def _component(self):
        """Name of the component that is the score."""
        dual, asked = self.n_unlabelled_ > 0, self.score_component
        if asked is None:
            asked = ("dual" if self.refine else "inter") if dual else "intra"
        if asked in ("dual", "inter") and not dual:
            raise ValueError(f"score_component={asked!r} needs unlabelled images (y = 0), and y has none")
        if asked == "dual" and not self.refine:
            raise ValueError("score_component='dual' is a refined score; set refine=True")
        if not self.refine or asked not in INPUTS:
            return asked
        # Files of older versions have no direction, and keep their score.
        wrong = getattr(self, "refinement_direction_", {}).get(asked, 0) < 0
        return RAW[asked] if wrong and self.score_component is None else f"refined_{asked}"

    def _backbone(self):
        if not callable(self.backbone):
            return BACKBONES[self.backbone]

        def build(image_shape, latent_size, **size):
            # Wrapped, because `Reconstruction` trains the parts of a network, and a module may have none.
            return nn.Sequential(self._own_member(image_shape))

        return BACKBONES["ae"]._replace(build=build)

    def _own_member(self, image_shape):
        member = None if isinstance(self.backbone, nn.Module) else self.backbone(image_shape)
        if not isinstance(member, nn.Module):
            raise TypeError(
                "backbone must be a function that makes a new torch module for images of a shape (C, H, W), "
                f"got {self.backbone!r}"
            )
        if not any(parameter.requires_grad for parameter in member.parameters()):
            raise ValueError(f"backbone must make modules with parameters to train, made {member!r}")
        images = torch.zeros(2, *image_shape)
        # Eval mode, because zeros must not enter the running statistics of BatchNorm.
        with torch.no_grad():
            found = getattr(member.eval()(images), "shape", None)
        if found != images.shape:
            raise ValueError(
                "backbone must make modules that give images of the shape of theirs, "
                f"{tuple(images.shape)}, this one gives {found and tuple(found)}"
            )
        return member.train()

    def _build(self, image_shape):
        backbone = self._backbone()
        make = partial(backbone.build, image_shape, **self._network_size())
        network = DDADNetwork(
            make,
            backbone.predict,
            n_members=self.n_members,
            dual=self.n_unlabelled_ > 0,
            refinement_width=self.refinement_width if self.refine else None,
            ddof=self.ddof,
        )
        # Members that share weights could never disagree.
        trained = [
            id(parameter)
            for member in (*network.ndm, *(network.udm or ()))
            for parameter in member.parameters()
            if parameter.requires_grad
        ]
        if len(set(trained)) < len(trained):
            raise ValueError("backbone must make new modules each time; two members share what is trained")
        return network

    def _train(self, run, network, images):
        # The public code trains members, like ASR-Net, with betas that are not Adam's defaults.
        training = partial(self._backbone().training, optimizer__betas=Refinement.betas)
        normals = self._normals(images)
        if images.held_out is not None:
            normals.held_out = self._normals(images.held_out)
        for k, member in enumerate(network.ndm):
            n_epochs = len(run(f"ndm_{k}", training, member, normals))
        for k, member in enumerate(network.udm or ()):
            # Not as many steps: it has more images, and would know each of them less than the others do.
            options = {"max_epochs": n_epochs} if self.max_epochs is None else {}
            run(f"udm_{k}", training, member, images, **options)
        if self.refine:
            options = {"epochs": "refinement_epochs", "lr": REFINEMENT_LR}
            options |= {"batch_size": REFINEMENT_BATCH, "optimizer__weight_decay": 1e-4}
            synthesis = self.refinement_synthesis
            options["synthesis"] = synthesis if callable(synthesis) else SYNTHESES.get(synthesis)
            run("refinement", Refinement, network, normals, **options)

    def _measure(self, network, images):
        """Compare the order of the images by refined scores with their order by what was refined."""
        self.refinement_direction_ = {}
        if not self.refine:
            return

        def scores(x):
            maps = network.discrepancies(x)
            pairs = [(network.refine(name, maps), maps[RAW[name]]) for name in network.refinements]
            return torch.stack([torch.stack(pair, 1).mean((2, 3)) for pair in pairs], 1)

        found = _inference.collect(scores, network, images, self.device_)
        for name, (refined, raw) in zip(network.refinements, found.transpose(1, 2, 0)):
            constant = np.ptp(refined) == 0 or np.ptp(raw) == 0  # no order, so none that is wrong
            self.refinement_direction_[name] = 0.0 if constant else float(spearmanr(refined, raw).statistic)
        asked = self.score_component or ("dual" if self.n_unlabelled_ else "intra")
        direction = self.refinement_direction_.get(asked, 0.0)
        if direction < 0:
            warnings.warn(
                f"ASR-Net points the wrong way: R_{asked} puts the training images in an order opposed to "
                f"that of A_{RAW[asked]} (rank correlation {direction:.2f}); it is the score only if "
                "score_component asks for it. Raise refinement_epochs, or set refine=False",
                stacklevel=7,
            )

    def _reconstruct(self, network, x):
        return network(x)

    def _judge(self, network, x):
        maps = network.discrepancies(x)

        # Cached, because a component and the map may both need it.
        @cache
        def refined(name):
            return network.refine(name, maps)

        components = {name: map.mean((1, 2)) for name, map in maps.items()}
        for name in network.refinements if self.refine else ():
            components[f"refined_{name}"] = lambda name=name: refined(name).mean((1, 2))
        asked = self._component()
        # Parameters may have been changed after `fit`.
        if asked not in components:
            raise ValueError(
                f"there is no {asked!r} in what was fitted, {sorted(components)}; fit again for it"
            )
        shown = maps[asked] if asked in maps else refined(asked.removeprefix("refined_"))
        return Judgement(shown.mean((1, 2)), shown, components)
