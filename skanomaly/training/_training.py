"""Training: base class of the stages of a fit, built on skorch's NeuralNet."""

import copy
import math
import warnings
from functools import partial

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, EpochTimer, PrintLog
from skorch.history import History

from . import _checkpoint


class Training(NeuralNet):
    """Base of the stages of a fit: which optimiser trains which parts of the network, and one training step.

    A subclass sets `moves` (the names of the parts that each optimiser trains) and `losses` (the names of the
    losses) and writes `step`. If a loss can be measured on held-out images, the subclass also sets
    `validates` and writes `validate`. A part that no optimiser trains is frozen: it is in eval mode and has
    no gradient.

    Parameters
    ----------
    network : nn.Module
        Network with all parts of the method, trained in place.
    stage : str
        Name of the stage in `history_` and in messages.
    checkpoint : Checkpoint, default=None
        Storage of the stage's state after each epoch, from which a killed fit goes on. A `step` may change
        the network's parameters and buffers and the optimisers; a subclass's own attributes are not stored.
    optimizer : callable (parameters, lr) -> torch Optimizer, default=None
        Function that makes an optimiser. None makes Adam with the class's `betas`.
    lr, max_epochs, batch_size, callbacks, device, verbose
        Parameters of skorch's NeuralNet. `optimizer_<part>__lr` is the learning rate of the optimiser called
        `optimizer_<part>`.
    """

    #: Names of the parts that each optimiser trains. The main optimiser must be called `optimizer`, because
    #: skorch's schedulers know no other name. Further optimisers are called `optimizer_<part>`.
    moves = {}
    #: Betas of Adam, the decay rates of its two moments.
    betas = 0.9, 0.999
    #: Names of the values that `step` records, in the order in which they are printed.
    losses = ()
    #: Whether there is a validation loss. EarlyStopping needs this loss to end the stage.
    validates = False
    #: Fewest images that a validation loss can be of.
    least_held_out = 1

    def __init__(self, network, *, stage, checkpoint=None, optimizer=None, **options):
        self.stage, self.checkpoint = stage, checkpoint
        #: Number of batches so far, the current one included.
        self.n_steps = 0
        optimizer = optimizer or partial(torch.optim.Adam, betas=self.betas)
        # skorch insists on a criterion; here `step` computes the losses.
        super().__init__(network, criterion=torch.nn.Identity, optimizer=optimizer, **options)

    def step(self, network, x):
        """Compute the losses of a batch of images (n, c, h, w), and update the parts by calls of `move`."""
        raise NotImplementedError

    def validate(self, network, x):
        """Loss of a batch of held-out images, as a scalar tensor; used where `validates` is True."""
        raise NotImplementedError

    def move(self, optimizer, **loss):
        """Take one step of the optimiser called `optimizer` to lower the loss, and record the loss.

        The loss is the only keyword argument; the keyword is the name under which it is recorded.
        """
        ((_, value),) = loss.items()
        moved, optimizer = self.moved_[optimizer], getattr(self, optimizer + "_")
        optimizer.zero_grad(set_to_none=True)
        # Without inputs=, gradients of the other parts would be computed as well, and add up.
        value.backward(inputs=[parameter for _, parameter in moved if parameter.requires_grad])
        self.notify("on_grad_computed", named_parameters=moved)
        optimizer.step()
        self.record(**loss)

    def record(self, **values):
        """Add values of this batch, scalar tensors by name, to the means of the epoch."""
        for name, value in values.items():
            total, count = self.totals_.get(name, (0.0, 0))
            # No .item(), which would wait for the device in every step. Sums are read once, after the epoch.
            self.totals_[name] = total + value.detach() * self.batch_size_, count + self.batch_size_

    def run(self, images):
        """Train on images, validate on `images.held_out` unless it is None, and return the History."""
        if not self.validates and list(early_stopping_monitors(self.callbacks or [])):
            raise ValueError(
                f"EarlyStopping needs a validation loss, and stage {self.stage!r} has none; give callbacks "
                "as a dict of the stages to stop, for example {'encoder': [EarlyStopping()]}"
            )
        if self.validates and images.held_out is not None and len(images.held_out) < self.least_held_out:
            raise ValueError(
                f"stage {self.stage!r} needs {self.least_held_out} normal images to validate, and "
                f"validation_fraction leaves {len(images.held_out)}; give more images or change it"
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
        # The last gradients take as much memory as the weights.
        self.module_.zero_grad(set_to_none=True)
        self._save(complete=True)
        for name in self.losses:
            if all(math.isnan(value) for value in self.history[:, name]):
                warnings.warn(
                    f"stage {self.stage!r} ended before the first step with a {name}: too few batches "
                    "for its parameters; give more epochs or images, or smaller batches",
                    stacklevel=2,
                )
        return self.history

    # Methods that replace skorch's, which know one optimiser and one loss.

    @property
    def _default_callbacks(self):
        return [("epoch_timer", EpochTimer()), ("print_log", PrintLog())]

    def initialize_optimizer(self):
        self.moved_, module = {}, self.module_.get_submodule
        for name, parts in self.moves.items():
            self.moved_[name] = [pair for part in parts for pair in module(part).named_parameters(part)]
            args, options = self.get_params_for_optimizer(name, self.moved_[name])
            setattr(self, name + "_", self.optimizer(*args, **options))
        return self

    def partial_fit(self, images, saved=None):
        # skorch's method swallows KeyboardInterrupt: after Ctrl-C a half-trained network would seem fitted.
        self.stop_ = False
        self.notify("on_train_begin", X=images, y=None)
        if saved:
            # After on_train_begin, in which callbacks reset their state.
            _checkpoint.restore(self, saved)
        if self.verbose:
            print(f"stage: {self.stage}" + (f", from epoch {len(self.history) + 1}" if saved else ""))
        try:
            self.fit_loop(images)
        finally:
            self.notify("on_train_end", X=images, y=None)
        return self

    def fit_loop(self, images):
        # No DataLoader, unlike skorch: collating image by image costs more than a small network's step.
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
                # EarlyStopping raises it to end a skorch fit. From elsewhere it is Ctrl-C, and is passed on.
                if not (isinstance(callback, EarlyStopping) and callback.misses_ >= callback.patience):
                    raise
                self.stop_ = True

    def _train_epoch(self, images):
        network = self.module_
        network.train()
        # In train mode the BatchNorm statistics of a frozen part would change, even without a gradient.
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
            # In an epoch with fewer batches than n_critic, a generator may take no step: its loss is nan.
            total, count = self.totals_.get(name, (math.nan, 1))
            self._record_epoch(name, float(total) / count, measured=name in self.totals_)

    def _validate_epoch(self, images):
        self.module_.eval()
        total = 0.0
        with torch.no_grad():
            # Batches as in training: a last one of one image would have no other as its source.
            for index in np.array_split(np.arange(len(images)), images.n_batches(self.batch_size)):
                x = images[index].to(self.device)
                total += self.validate(self.module_, x) * len(x)
        self._record_epoch("valid_loss", float(total) / len(images))
        best = min(self.history[:, "valid_loss"])
        self.history.record("valid_loss_best", self.history[-1, "valid_loss"] == best)

    def _record_epoch(self, name, value, measured=True):
        # A nan loss stops neither torch nor skorch: all later epochs would be wasted.
        if measured and not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} in stage {self.stage!r}, epoch {len(self.history)}: training "
                "diverged; lower its lr, or check the scale of X and intensity_range"
            )
        self.history.record(name, value)

    def _frozen(self):
        """Parts of the network that no optimiser trains."""
        moved = [name for parts in self.moves.values() for name in parts]
        return [part for name, part in self.module_.named_children() if name not in moved]


def fresh_callbacks(callbacks, stage):
    """Copies of the callbacks of one stage, so that a callback's state does not pass to another stage.

    Parameters
    ----------
    callbacks : None, list, or dict stage -> list
    """
    if isinstance(callbacks, dict):
        callbacks = callbacks.get(stage)
    return copy.deepcopy(list(callbacks or []))


def early_stopping_monitors(callbacks):
    """Yield the name of the loss that each EarlyStopping in a list of callbacks watches.

    Items of the list may be callbacks, pairs (name, callback) or classes of callbacks.
    """
    for callback in callbacks:
        callback = callback[1] if isinstance(callback, tuple) else callback
        if isinstance(callback, EarlyStopping):
            yield callback.monitor
        elif callback is EarlyStopping:
            yield "valid_loss"


def check_early_stopping(callbacks, validation_fraction):
    """Raise an error if EarlyStopping watches ``valid_loss`` and no images are held out to measure it."""
    lists = callbacks.values() if isinstance(callbacks, dict) else [callbacks or []]
    monitors = {monitor for each in lists for monitor in early_stopping_monitors(each)}
    if not validation_fraction and "valid_loss" in monitors:
        raise ValueError(
            "EarlyStopping monitors valid_loss, and validation_fraction=0 holds out no images to measure "
            "it on; set validation_fraction, for example to 0.1"
        )
