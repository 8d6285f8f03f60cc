"""A killed fit goes on where it was, and ends with the same bits."""

import copy
import multiprocessing
import os
import random
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from skorch.callbacks import Callback, EarlyStopping, Freezer, LRScheduler
from torch import nn
from toys import LinearAutoEncoder

from skanomaly import DDAD, AutoEncoder, FAnoGAN, _storage
from skanomaly.testing import SliceOnly, make_images, tiny
from skanomaly.training._checkpoint import describe
from skanomaly.transforms import Compose, Flip, GaussianBlur

X = make_images((40, 16, 16))

# A server that has imported all this once, and forks every process to be killed.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "skanomaly.testing"])


class Slow(Callback):
    """Writes down each epoch it begins; takes its time, to be killed in."""

    # Not parameters: they would make it another fit.
    log, pause = None, 0.0

    @classmethod
    def to(cls, log, pause=0.0):
        cls.log, cls.pause = log, pause
        return cls()

    def on_epoch_begin(self, net, **kwargs):
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{net.stage} {len(net.history)}\n")

    def on_batch_begin(self, net, **kwargs):
        time.sleep(self.pause)


def gan(**parameters):
    return tiny(FAnoGAN, max_epochs=5, encoder_epochs=4, n_critic=3, batch_size=6, **parameters)


def fit(folder, log):
    torch.set_num_threads(1)
    gan(checkpoint_dir=folder, callbacks=[Slow.to(log, pause=0.005)]).fit(X)


def begun(log):
    return log.read_text().splitlines() if log.exists() else []


def states_equal(a, b):
    a, b = a.network_.state_dict(), b.network_.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def same_fit(a, b):
    thresholds = [(d.offset_, d.pixel_offset_, d.map_range_, d.n_iter_) for d in (a, b)]
    losses = [
        {
            stage: [{k: v for k, v in row.items() if k != "dur"} for row in history]
            for stage, history in d.history_.items()
        }
        for d in (a, b)
    ]
    return states_equal(a, b) and thresholds[0] == thresholds[1] and losses[0] == losses[1]


def test_a_process_killed_at_any_moment(tmp_path):
    """Ten kills -9, spread over both stages, each at a random moment of its epoch."""
    whole = gan(callbacks=[Slow.to(None)]).fit(X)
    moments, stages = random.Random(0), set()
    for kill in range(10):
        folder, log = tmp_path / f"states{kill}", tmp_path / f"log{kill}"
        process = PROCESSES.Process(target=fit, args=(folder, log))
        process.start()
        deadline = time.monotonic() + 60
        while len(begun(log)) < 1 + kill * 9 // 10:
            assert process.is_alive(), "the fit ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        done = begun(log)
        stages.add(done[-1].split()[0])
        again = tmp_path / f"again{kill}"
        resumed = gan(checkpoint_dir=folder, callbacks=[Slow.to(again)]).fit(X)
        assert same_fit(resumed, whole), f"killed in {done[-1]!r}"
        every = [f"gan {i}" for i in range(1, 6)] + [f"encoder {i}" for i in range(1, 5)]
        assert done == every[: len(done)]
        # From the epoch it was killed in, or the next.
        assert begun(again) in (every[len(done) - 1 :], every[len(done) :])
    assert stages == {"gan", "encoder"}


class Kill(Callback):
    """Ends the fit in the epoch it is told; `seen` counts epochs over all stages."""

    at = seen = 0

    def on_epoch_begin(self, net, **kwargs):
        Kill.seen += 1
        if Kill.seen == Kill.at:
            raise KeyboardInterrupt


def killed(detector, X, at, y=None):
    """Fit until the epoch, then again to the end."""
    Kill.seen, Kill.at = 0, at
    with pytest.raises(KeyboardInterrupt):
        detector.fit(X, y)
    Kill.seen, Kill.at = 0, 0
    return detector.fit(X, y)


@pytest.mark.parametrize("at", [2, 4, 7])
def test_schedulers_and_early_stopping_go_on_too(tmp_path, at):
    def detector(**parameters):
        callbacks = [
            LRScheduler("ExponentialLR", gamma=0.8),
            EarlyStopping(patience=2, threshold=0.05, load_best=True),
            Kill(),
        ]
        return tiny(
            AutoEncoder, max_epochs=30, lr=0.02, validation_fraction=0.3, callbacks=callbacks, **parameters
        )

    Kill.at, dark = 0, X // 8
    whole = detector().fit(dark)
    assert 7 < whole.n_iter_ < 30, "it should stop early, after the last kill"
    assert same_fit(killed(detector(checkpoint_dir=tmp_path), dark, at), whole)


def test_killed_between_the_stop_and_the_end(tmp_path, monkeypatch):
    """The last state says that the stage was stopped, so no further epoch follows."""

    def detector(**parameters):
        callbacks = [EarlyStopping(patience=1, threshold=0.9, load_best=True), Kill()]
        return tiny(AutoEncoder, max_epochs=9, validation_fraction=0.3, callbacks=callbacks, **parameters)

    whole = detector().fit(X)
    part = detector(checkpoint_dir=tmp_path)

    def end(*args, **kwargs):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(EarlyStopping, "on_train_end", end)
        with pytest.raises(RuntimeError, match="killed"):
            part.fit(X)
    assert same_fit(part.fit(X), whole)


def test_lazy_images_and_labels(tmp_path):
    y = np.where(np.arange(40) % 4, 1, -1)
    whole = gan(callbacks=[Kill()]).fit(SliceOnly(X), y)
    assert same_fit(killed(gan(callbacks=[Kill()], checkpoint_dir=tmp_path), SliceOnly(X), 3, y), whole)


def test_without_a_seed_it_goes_on_with_the_seed_it_began_with(tmp_path):
    detector = gan(callbacks=[Kill()], checkpoint_dir=tmp_path).set_params(random_state=None)
    killed(detector, X, 7)
    seed = _storage.read(tmp_path / "gan.safetensors", "checkpoint")["seed"]
    assert _storage.read(tmp_path / "encoder.safetensors", "checkpoint")["seed"] == seed
    assert not states_equal(detector, gan(callbacks=[Kill()]).set_params(random_state=None).fit(X))


def test_a_complete_fit_is_taken_from_the_folder(tmp_path):
    detector = gan(callbacks=[Kill()], checkpoint_dir=tmp_path).fit(X)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.safetensors", "gan.safetensors"]
    Kill.seen = 0
    again = gan(callbacks=[Kill()], checkpoint_dir=str(tmp_path)).fit(X)
    assert Kill.seen == 0
    assert same_fit(again, detector)


def test_parts_frozen_on_the_way_stay_frozen(tmp_path):
    def detector(**parameters):
        callbacks = [Freezer("encoder*", at=2), Kill()]
        return tiny(AutoEncoder, max_epochs=6, callbacks=callbacks, **parameters)

    Kill.at = 0
    whole = detector().fit(X)
    assert same_fit(killed(detector(checkpoint_dir=tmp_path), X, 4), whole)


class Memory(Callback):
    def initialize(self):
        self.seen_ = object()


def test_a_callback_whose_state_would_be_lost_is_named(tmp_path):
    with pytest.warns(UserWarning, match="Memory keeps seen_, which a resumed fit would lose"):
        tiny(AutoEncoder, callbacks=[Memory()], checkpoint_dir=tmp_path).fit(X)


def test_another_number_of_threads_is_said(tmp_path, monkeypatch):
    gan(checkpoint_dir=tmp_path).fit(X)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    message = "goes on, and will round otherwise: torch threads was 1 and is 7"
    with pytest.warns(UserWarning, match=message) as warned:
        gan(checkpoint_dir=tmp_path).fit(X)
    assert {warning.filename for warning in warned} == {__file__}


def test_two_stages_of_one_name(tmp_path):
    class Twice(LinearAutoEncoder):
        __doc__ = LinearAutoEncoder.__doc__

        def _train(self, run, network, images):
            super()._train(run, network, images)
            super()._train(run, network, images)

    with pytest.raises(ValueError, match="two stages are named 'reconstruction'"):
        Twice(checkpoint_dir=tmp_path).fit(X)


def test_what_a_killed_write_left_is_swept_away(tmp_path):
    (tmp_path / f"gan.safetensors.1-1{_storage.UNFINISHED}").write_bytes(b"half")
    gan(checkpoint_dir=tmp_path).fit(X)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.safetensors", "gan.safetensors"]


def test_functions_are_told_apart_by_their_names(tmp_path):
    assert describe(np.sum) == "numpy.sum" != describe(np.mean)
    assert describe(partial(np.sum, axis=0)) == describe(partial(np.sum, axis=0))
    assert describe(partial(np.sum, axis=0)) != describe(partial(np.sum, axis=1)) != describe(np.sum)
    assert describe(partial(np.sum, X)) != describe(partial(np.sum, X + 1))
    detector = DDAD(backbone=lambda shape: nn.Conv2d(1, 1, 3, padding=1), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="checkpoint_dir.*test_functions_are.*<lambda> may.*top of a module"):
        detector.fit(X)
    assert not list(tmp_path.iterdir())
    assert not hasattr(detector, "network_")

    def local(shape):
        return nn.Conv2d(1, 1, 3, padding=1)

    class Local(nn.Conv2d):
        pass

    for nameless in (local, partial(local, 2), Local, [{"a": local}]):
        with pytest.raises(ValueError, match="told apart by their names, and .*locals.*top of a module"):
            describe(nameless)


class Maker:
    """Makes members of one kind."""

    def __init__(self, activation):
        self.activation = activation

    def __call__(self, shape):
        return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), self.activation(), nn.Conv2d(2, 1, 3, padding=1))

    def build(self, shape):
        return self(shape)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Maker(nn.ReLU), Maker(nn.Tanh)),
        (Maker(nn.ReLU).build, Maker(nn.Tanh).build),
        (Maker(nn.ReLU).build, Maker(nn.ReLU).__call__),
        (Compose([Flip(1.0)]), Compose([GaussianBlur()])),
        (Compose([Flip(1.0)]), Compose([Flip(0.5)])),
        (nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)),
        (nn.BatchNorm2d(1), nn.BatchNorm2d(1).eval()),
        (torch.zeros(2, requires_grad=True), torch.ones(2)),
        (torch.tensor(1.0), torch.tensor(2.0)),
        ({"a", "b"}, {"a"}),
        (torch.float32, torch.float64),
    ],
)
def test_objects_are_told_apart_by_what_they_hold(one, other):
    assert describe(one) == describe(copy.deepcopy(one)) != describe(other)
    assert " at 0x" not in describe(one)


def test_a_fit_with_another_object_is_refused(tmp_path):
    options = {"refine": False, "score_component": "rec", "checkpoint_dir": tmp_path}
    tiny(DDAD, backbone=Maker(nn.ReLU), **options).fit(X)
    with pytest.raises(ValueError, match="holds another fit: backbone was .*Maker.*ReLU.* and is .*Tanh"):
        tiny(DDAD, backbone=Maker(nn.Tanh), **options).fit(X)


def test_parameters_are_described_alike_in_every_process():
    array = np.arange(5000)
    assert describe(1e-3) == describe(np.float64(1e-3))
    assert describe((1, "a", None)) == describe([np.int64(1), "a", None])
    assert describe(array) != describe(np.where(array == 2500, 0, array))
    assert describe(np.random.RandomState(0)) == describe(np.random.RandomState(0))
    assert describe(np.random.RandomState(0)) != describe(np.random.RandomState(1))
    assert describe(tiny(FAnoGAN, lr=0.1)) != describe(tiny(FAnoGAN, lr=0.2))
    assert describe(LRScheduler(gamma=0.5)) != describe(LRScheduler(gamma=0.9))
    assert " at 0x" not in describe([Kill(), np.sum, EarlyStopping(), {"a": tiny(FAnoGAN)}])


def test_another_fit_is_refused(tmp_path):
    gan(checkpoint_dir=tmp_path).fit(X, np.ones(40))
    fitted = gan(checkpoint_dir=tmp_path, lr=0.1, encoder_training="ziz", encoder_output="linear")
    with pytest.raises(
        ValueError, match=r"holds another fit: .*encoder_output was 'tanh' and is 'linear'; .*lr was 0"
    ):
        fitted.fit(X, np.ones(40))
    assert not hasattr(fitted, "network_")
    for data, words in (
        (
            (X[::-1], np.ones(40)),
            r"fit: X was array \(40, 16, 16\) uint8 with SHA-256 \w+ and is array \(40, 16, 16\) uint8",
        ),
        ((X.astype("float32"), np.ones(40)), r"fit: X was .* uint8 .* float32"),
        ((SliceOnly(X), np.ones(40)), "fit: X was array .* and is sequence"),
        ((X, None), "fit: y was labels .* and is None"),
        ((X, np.r_[-1, np.ones(39)]), "fit: y was labels .* and is labels"),
    ):
        with pytest.raises(ValueError, match=words):
            gan(checkpoint_dir=tmp_path).fit(*data)
    with pytest.raises(ValueError, match="fit: callbacks was None and is .*Kill"):
        gan(checkpoint_dir=tmp_path, callbacks=[Kill()]).fit(X, np.ones(40))
    with pytest.raises(ValueError, match="another fit: detector was FAnoGAN and is AutoEncoder"):
        tiny(AutoEncoder, checkpoint_dir=tmp_path).fit(X)


def test_a_damaged_state_is_refused(tmp_path):
    gan(checkpoint_dir=tmp_path).fit(X)
    path = tmp_path / "gan.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        ValueError, match=r"gan.safetensors' is not a file written by skanomaly, or is damaged"
    ):
        gan(checkpoint_dir=tmp_path).fit(X)


def test_checkpoints_change_nothing(tmp_path):
    plain, kept = gan(callbacks=[Kill()]).fit(X), gan(callbacks=[Kill()], checkpoint_dir=tmp_path).fit(X)
    assert same_fit(plain, kept)
    assert_array_equal(plain.score_samples(X), kept.score_samples(X))
