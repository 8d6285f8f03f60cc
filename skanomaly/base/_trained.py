"""TrainedDetector: base of detectors that are trained in epochs; encoders share its mixin."""

import math
import warnings
from typing import Any

import numpy as np
from skorch.history import History

from .._images import fingerprint
from .._parameters import PROCESS_PARAMETERS
from .._random import draw_seed, seeded
from .._version import __version__
from ..training._checkpoint import Checkpoint, describe
from ..training._training import check_early_stopping, fresh_callbacks
from ._detector import BaseDetector


class TrainsInEpochs:
    """Mixin of estimators whose network is trained in epochs, in one or more stages.

    A subclass writes `_build`, `_train` and `_measure`. Its constructor also has the parameters `max_epochs`,
    `batch_size`, `lr`, `validation_fraction`, `checkpoint_dir`, `callbacks` and `verbose`.
    """

    #: Training steps of a stage whose number of epochs is None, by the parameter that gives the number.
    _steps = {"max_epochs": 2000}

    max_epochs: int | None
    batch_size: int
    lr: float
    validation_fraction: float
    checkpoint_dir: Any
    callbacks: Any
    verbose: int
    # Sizes of the network: only some constructors have these parameters.
    latent_size: int
    hidden_size: int
    width: int
    n_levels: int | None
    bottleneck: str

    history_: dict[str, History]
    n_iter_: int

    def _train(self, run, network, images):
        """Train the network in place.

        Parameters
        ----------
        run : callable (stage, training, network, images, *, epochs="max_epochs", **options) -> History
            Function that runs the stage named `stage`. `training` is a subclass of `Training`, `epochs` the
            name of the parameter with the number of epochs, and `options` are arguments of the constructor of
            `training`. Without the options `max_epochs`, `lr` and `batch_size`, this detector's parameters
            are used.
        network : nn.Module
            Network that `_build` made.
        images : Images
            Images to train on. ``images.held_out`` are the images for validation, or None.
        """
        raise NotImplementedError

    def _network_size(self):
        """Sizes of a network by name, from the parameters `latent_size` to `bottleneck` of the detector."""
        names = "latent_size", "hidden_size", "width", "n_levels"
        size = {name: getattr(self, name) for name in names if hasattr(self, name)}
        if getattr(self, "bottleneck", "dense") == "spatial":
            size["spatial"] = True
        return size

    def _check_process(self):
        check_early_stopping(self.callbacks, self.validation_fraction)
        super()._check_process()

    def _learn(self, images):
        seed, checkpoint = draw_seed(self.random_state), None
        if self.checkpoint_dir is not None:
            checkpoint = Checkpoint(self.checkpoint_dir, self._describe_fit(images), seed)
            # With random_state=None each call draws another seed; a resumed fit needs the one it began with.
            seed = checkpoint.seed
        with seeded(seed, self.device_):
            network = self._new_network()
            train = images.split(self.validation_fraction)
            self.history_ = self._run_stages(network, train, checkpoint)
            judged = self._measure(network, train)
        self.network_ = self._settle(network)
        self.n_iter_ = sum(len(history) for history in self.history_.values())
        if isinstance(self.callbacks, dict) and (unknown := set(self.callbacks) - set(self.history_)):
            warnings.warn(
                f"callbacks names stages that {type(self).__name__} has not: {sorted(unknown)}; "
                f"its stages are {sorted(self.history_)}",
                stacklevel=6,
            )
        return judged

    def _run_stages(self, network, images, checkpoint):
        histories = {}

        def run(stage, training, network, images, *, epochs="max_epochs", **options):
            if stage in histories:
                raise ValueError(f"two stages are named {stage!r}; their histories would be one")
            options = {
                "lr": self.lr,
                "batch_size": self.batch_size,
                "max_epochs": getattr(self, epochs),
            } | options
            if options["max_epochs"] is None:
                n_batches = images.n_batches(options["batch_size"])
                options["max_epochs"] = math.ceil(self._steps[epochs] / n_batches)
            histories[stage] = training(
                network,
                stage=stage,
                checkpoint=checkpoint,
                callbacks=[*fresh_callbacks(self.callbacks, stage), *self._stage_callbacks(stage)],
                device=self.device_,
                verbose=self.verbose,
                **options,
            ).run(images)
            return histories[stage]

        self._train(run, network, images)
        if not histories:
            raise ValueError(f"{type(self).__name__}._train ran no stage; a BaseDetector needs none")
        return histories

    def _last_step(self):
        stage, history = list(self.history_.items())[-1]
        return f" after stage {stage!r}, epoch {len(history)}: training diverged; lower its lr"

    def _describe_fit(self, images):
        """Descriptions of everything that decides the result of a fit: equal descriptions mean equal fits."""
        X, rows, y = images.X, images.rows, images.y
        # Not y itself: all that counts is which rows there are, and which of them are unlabelled.
        labels = [] if y is None else [y == 0, np.arange(len(y)) if rows is None else rows]
        # Rows of an array are drawn one by one, those of other sequences in runs: other batches, another fit.
        X_kind = "array" if isinstance(X, np.ndarray) else "sequence"
        return {
            "detector": type(self).__name__,
            "skanomaly": __version__,
            "device": self.device_,
            "X": f"{X_kind} {tuple(X.shape)} {np.dtype(X.dtype)} with SHA-256 {fingerprint(X)}",
            "y": f"labels with SHA-256 {fingerprint(np.concatenate(labels))}" if labels else "None",
            **{
                name: describe(value)
                for name, value in self.get_params(deep=False).items()
                if name not in PROCESS_PARAMETERS - {"callbacks"}
            },
        }


class TrainedDetector(TrainsInEpochs, BaseDetector):
    """Base of detectors that are trained in epochs, in one or more stages.

    A subclass writes `_train`, and the methods that `BaseDetector` asks for. Its constructor also has the
    parameters `max_epochs`, `batch_size`, `lr`, `validation_fraction`, `checkpoint_dir`, `callbacks` and
    `verbose`.
    """
