"""Training: one stage of a fit, on skorch."""

import copy
import math
import warnings
from functools import partial

import torch
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, EpochTimer, PrintLog
from skorch.history import History

from . import _checkpoint


class Training(NeuralNet):
    """One stage of a fit: which optimiser moves which parts, and one step written out in full.

    A subclass sets `moves` and `losses` and writes `step`; one that can be validated also writes
    `validate`. A part that no optimiser moves is frozen for the stage: eval mode, no gradient.

    Parameters
    ----------
    network : nn.Module
        All parts of the method. It is trained in place.
    stage : str
        Name of the stage in `history_` and in messages.
    checkpoint : Checkpoint, default=None
        Where the stage is kept after each epoch, and taken up again. Everything that changes while
        training must be in the network (as parameter or buffer), in an optimiser, or be `n_steps`.
    optimizer : callable (parameters, lr) -> torch Optimizer, default=None
        None is Adam with the class's `betas`.
    lr, max_epochs, batch_size, callbacks, device, verbose
        As in skorch. `optimizer_<part>__lr` sets another optimiser's own rate.
    """

    #: optimiser -> names of the parts it moves. The main one is `optimizer` (schedulers find it),
    #: others are `optimizer_<part>`.
    moves = {}
    #: Decay rates of Adam's two moments.
    betas = 0.9, 0.999
    #: Names of the values that `step` records, in the order of the table.
    losses = ()
    #: Whether the stage has a validation loss that can stop it early.
    validates = False

    def __init__(self, network, *, stage, checkpoint=None, optimizer=None, **options):
        self.stage, self.checkpoint = stage, checkpoint
        #: Batches so far, this one included.
        self.n_steps = 0
        optimizer = optimizer or partial(torch.optim.Adam, betas=self.betas)
        # Steps are written out, so there is no criterion; skorch insists on one.
        super().__init__(network, criterion=torch.nn.Identity, optimizer=optimizer, **options)

    def step(self, network, x):
        """One batch of images (n, c, h, w): compute losses and `move` parts."""
        raise NotImplementedError

    def validate(self, network, x):
        """Loss of held-out images, a scalar tensor; only where `validates`."""
        raise NotImplementedError

    def move(self, optimizer, **loss):
        """One step of `optimizer` down the one loss given, which is recorded under its name."""
        ((_, value),) = loss.items()
        moved, optimizer = self.moved_[optimizer], getattr(self, optimizer + "_")
        optimizer.zero_grad(set_to_none=True)
        # Only its own parameters: no stray gradients on other parts, nor the work for them.
        value.backward(inputs=[parameter for _, parameter in moved if parameter.requires_grad])
        self.notify("on_grad_computed", named_parameters=moved)
        optimizer.step()
        self.record(**loss)

    def record(self, **values):
        """Add scalar tensors to the epoch's means; they stay on the device until its end."""
        for name, value in values.items():
            total, count = self.totals_.get(name, (0.0, 0))
            size = self.batch_size_
            self.totals_[name] = total + value.detach() * size, count + size

    def run(self, images):
        """Train on images (and validate on `images.held_out`); returns the History."""
        if not self.validates and list(early_stopping_monitors(self.callbacks or [])):
            raise ValueError(
                f"EarlyStopping needs a validation loss, and stage {self.stage!r} has none; give callbacks "
                "as a dict of the stages to stop, for example {'encoder': [EarlyStopping()]}"
            )
        self.initialize()
        saved = self.checkpoint and self.checkpoint.read(self.stage)
        if saved and saved["complete"]:
            _checkpoint.restore_network(self, saved)
            return History(saved["history"])
        frozen = [p for part in self._frozen() for p in part.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            self.partial_fit(images, saved)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        self._save(complete=True)
        for name in self.losses:
            if all(math.isnan(value) for value in self.history[:, name]):
                warnings.warn(
                    f"stage {self.stage!r} ended before the first step with a {name}: too few batches "
                    "for its parameters; give more epochs or images, or smaller batches",
                    stacklevel=2,
                )
        return self.history

    # What skorch does, for our parts, batches and losses.

    @property
    def _default_callbacks(self):
        return [("epoch_timer", EpochTimer()), ("print_log", PrintLog())]

    def initialize_optimizer(self):
        self.moved_ = {
            name: [
                (f"{part}.{key}", value)
                for part in parts
                for key, value in self.module_.get_submodule(part).named_parameters()
            ]
            for name, parts in self.moves.items()
        }
        for name, parameters in self.moved_.items():
            args, options = self.get_params_for_optimizer(name, parameters)
            setattr(self, name + "_", self.optimizer(*args, **options))
        return self

    def partial_fit(self, images, saved=None):
        self.stop_ = False
        self.notify("on_train_begin", X=images, y=None)
        if saved:
            _checkpoint.restore(self, saved)
        if self.verbose:
            print(f"stage: {self.stage}" + (f", from epoch {len(self.history) + 1}" if saved else ""))
        try:
            self.fit_loop(images)
        finally:
            self.notify("on_train_end", X=images, y=None)
        return self

    def fit_loop(self, images):
        while len(self.history) < self.max_epochs and not self.stop_:
            self.notify("on_epoch_begin", dataset_train=images, dataset_valid=images.held_out)
            self._train_epoch(images)
            if images.held_out is not None and self.validates:
                self._validate_epoch(images.held_out)
            self.notify("on_epoch_end", dataset_train=images, dataset_valid=images.held_out)
            self._save(complete=False)

    def _save(self, complete):
        if self.checkpoint:
            self.checkpoint.write(self.stage, _checkpoint.state_of(self) | {"complete": complete})

    def notify(self, method_name, **kwargs):
        getattr(self, method_name)(self, **kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **kwargs)
            except KeyboardInterrupt:
                # skorch's way to stop early; any other is a person's Ctrl-C and goes on up.
                if not (isinstance(callback, EarlyStopping) and callback.misses_ >= callback.patience):
                    raise
                self.stop_ = True

    def _train_epoch(self, images):
        network = self.module_
        network.train()
        for part in self._frozen():
            part.eval()
        self.totals_ = {}
        for batch in images.epoch(self.batch_size):
            x = batch.to(self.device)
            self.batch_size_ = len(x)
            self.n_steps += 1
            self.notify("on_batch_begin", batch=x, training=True)
            self.step(network, x)
            self.notify("on_batch_end", batch=x, training=True)
        for name in self.losses:
            # A part that moves every few steps may rest for a whole epoch.
            total, count = self.totals_.get(name, (math.nan, 1))
            self._record_epoch(name, float(total) / count, measured=name in self.totals_)

    def _validate_epoch(self, images):
        self.module_.eval()
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(images), self.batch_size):
                x = images[start : start + self.batch_size].to(self.device)
                total += self.validate(self.module_, x) * len(x)
        self._record_epoch("valid_loss", float(total) / len(images))
        best = min(self.history[:, "valid_loss"])
        self.history.record("valid_loss_best", self.history[-1, "valid_loss"] == best)

    def _record_epoch(self, name, value, measured=True):
        if measured and not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} in stage {self.stage!r}, epoch {len(self.history)}: training "
                "diverged; lower its lr, or check the scale of X and intensity_range"
            )
        self.history.record(name, value)

    def _frozen(self):
        """The largest submodules no optimiser moves."""
        moved = [name for parts in self.moves.values() for name in parts]
        return [part for name, part in self.module_.named_children() if name not in moved]


def fresh_callbacks(callbacks, stage):
    """The callbacks of one stage, copied: a stage must not see another's state.

    Parameters
    ----------
    callbacks : None, list, or dict stage -> list
    """
    if isinstance(callbacks, dict):
        callbacks = callbacks.get(stage)
    return copy.deepcopy(list(callbacks or []))


def early_stopping_monitors(callbacks):
    """What each EarlyStopping in a list of callbacks, (name, callback) pairs or classes watches."""
    for callback in callbacks:
        callback = callback[1] if isinstance(callback, tuple) else callback
        if isinstance(callback, EarlyStopping):
            yield callback.monitor
        elif callback is EarlyStopping:
            yield "valid_loss"


def check_early_stopping(callbacks, validation_fraction):
    """Refuse, before anything is trained, to stop on a loss that nobody will measure."""
    lists = callbacks.values() if isinstance(callbacks, dict) else [callbacks or []]
    if not validation_fraction and "valid_loss" in {
        m for each in lists for m in early_stopping_monitors(each)
    }:
        raise ValueError(
            "EarlyStopping monitors valid_loss, and validation_fraction=0 holds out no images to measure "
            "it on; set validation_fraction, for example to 0.1"
        )
