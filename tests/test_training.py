"""Stages: what a step moves, what an epoch records, and how a fit ends early."""

import io
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from rich.console import Console
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    GradientNormClipping,
    LRScheduler,
    ProgressBar,
)
from torch import nn

from skanomaly import AutoEncoder, FAnoGAN
from skanomaly._format import Layout
from skanomaly._images import Images
from skanomaly._losses import squared_error
from skanomaly._random import seeded
from skanomaly.model_selection import NormalOnlyKFold
from skanomaly.testing import make_images, tiny
from skanomaly.training import Reconstruction, Training


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.rest = nn.Linear(6, 2), nn.Linear(2, 6), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.decoder(self.encoder(x.flatten(1))).view_as(x)


def images(n=10, d=6):
    X = np.random.default_rng(0).normal(size=(n, d)).astype("float32")
    return Images(X, Layout.of(X.shape), (0.0, 1.0))


def run(training, network, data=None, **options):
    options = {"stage": "test", "max_epochs": 1, "batch_size": 4, "lr": 0.01, "verbose": 0} | options
    with seeded(0):
        return training(network, **options).run(data or images())


def test_a_step_moves_its_parts_and_freezes_the_others():
    network = Parts()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = {}

    class Look(Callback):
        def on_batch_begin(self, net, **kwargs):
            modes.update({name: part.training for name, part in net.module_.named_children()})
            modes["gradients"] = any(p.requires_grad for p in net.module_.rest.parameters())

    run(Reconstruction, network, error=squared_error, callbacks=[Look()])
    moved = {
        name.split(".")[0]
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"encoder", "decoder"}
    assert modes == {"encoder": True, "decoder": True, "rest": False, "gradients": False}
    assert all(p.requires_grad for p in network.parameters())


def test_move_leaves_no_stray_gradients():
    class Half(Training):
        moves = {"optimizer": ["encoder"], "optimizer_decoder": ["decoder"]}
        losses = ("train_loss",)

        def step(self, network, x):
            self.move("optimizer", train_loss=network(x).square().mean())
            assert all(p.grad is None for p in network.decoder.parameters())

    run(Half, Parts())


def test_other_optimizers_take_their_own_rate():
    class Two(Training):
        moves = {"optimizer": ["encoder"], "optimizer_decoder": ["decoder"]}

        def step(self, network, x):
            rates = self.optimizer_.param_groups[0]["lr"], self.optimizer_decoder_.param_groups[0]["lr"]
            assert rates == (0.01, 0.5)

    run(Two, Parts(), optimizer_decoder__lr=0.5)


def test_recorded_losses_are_means_over_images():
    class Sizes(Training):
        moves = {"optimizer": ["encoder"]}
        losses = "size", "sometimes", "never"

        def step(self, network, x):
            self.record(size=torch.tensor(float(len(x))))
            if len(x) == 3:
                self.record(sometimes=torch.tensor(7.0))

    with pytest.warns(UserWarning, match="stage 'test' ended before the first step with a never: too few"):
        history = run(Sizes, Parts(), images(n=10))
    assert history[:, "size"] == [pytest.approx((4 * 4 + 3 * 3 + 3 * 3) / 10)]
    assert history[:, "sometimes"] == [7.0]
    assert np.isnan(history[0]["never"])


def test_validation_loss_is_of_the_held_out_images_in_eval_mode():
    network, data = Parts(), images(20)
    with seeded(0):
        data = data.split(0.25)
    history = run(Reconstruction, network, data, error=squared_error, max_epochs=3)
    with torch.no_grad():
        expected = squared_error(network(data.held_out[:]), data.held_out[:]).mean()
    assert_allclose(history[-1]["valid_loss"], expected, rtol=1e-5)
    assert history[0]["valid_loss_best"] is True


def test_no_batch_to_validate_is_of_one_image():
    class Sizes(Training):
        moves = {"optimizer": ["encoder"]}
        validates = True
        least_held_out = 2

        def step(self, network, x):
            pass

        def validate(self, network, x):
            return torch.tensor(float(len(x)))

    data = images(18)
    with seeded(0):
        data = data.split(0.5)
    history = run(Sizes, Parts(), data, batch_size=4)
    assert history[-1]["valid_loss"] == 3, "three batches of three, not 4, 4 and 1"
    with seeded(0):
        data = images(10).split(0.1)
    with pytest.raises(ValueError, match="stage 'test' needs 2 normal images to validate, .* leaves 1;"):
        run(Sizes, Parts(), data)


def test_a_linear_autoencoder_reaches_pca():
    """Its error is the sum of the discarded eigenvalues, over the number of pixels."""
    X = np.random.default_rng(0).normal(size=(200, 6)) @ np.diag([3, 2, 1, 0.5, 0.3, 0.1])
    X = (X - X.mean(0)).astype("float32")
    data = Images(X, Layout.of(X.shape), (0.0, 1.0))
    network = Parts()
    history = run(Reconstruction, network, data, error=squared_error, max_epochs=400, batch_size=200, lr=0.02)
    discarded = PCA().fit(X).explained_variance_[2:].sum() * (len(X) - 1) / len(X)
    assert_allclose(history[-1]["train_loss"], discarded / 6, rtol=0.02)


def test_learning_rate_schedules_reach_the_main_optimizer():
    rates = []

    class Watch(Callback):
        def on_epoch_begin(self, net, **kwargs):
            rates.append(net.optimizer_.param_groups[0]["lr"])

    schedule = LRScheduler("StepLR", step_size=1, gamma=0.1)
    run(Reconstruction, Parts(), error=squared_error, max_epochs=3, callbacks=[schedule, Watch()])
    assert_allclose(rates, [0.01, 0.001, 0.0001])


def test_early_stopping_stops_and_returns_to_the_best():
    X = make_images((30, 16, 16))
    stop = EarlyStopping(patience=2, threshold=0.9, load_best=True)
    detector = tiny(AutoEncoder, max_epochs=50, validation_fraction=0.3, callbacks=[stop]).fit(X)
    # No loss halves ten times over: the first epoch stays the best, and the fit returns to it.
    assert detector.n_iter_ == 3
    assert stop.misses_ == 0  # the stage had a copy
    again = tiny(AutoEncoder, max_epochs=1, validation_fraction=0.3).fit(X)
    assert_allclose(detector.score_samples(X), again.score_samples(X))


def test_early_stopping_of_one_stage_by_name():
    X = make_images((30, 16, 16))
    callbacks = {"encoder": [("stop", EarlyStopping(patience=1, threshold=0.99))]}
    detector = tiny(
        FAnoGAN, max_epochs=2, encoder_epochs=9, validation_fraction=0.3, callbacks=callbacks
    ).fit(X)
    assert len(detector.history_["gan"]) == 2
    assert len(detector.history_["encoder"]) < 9


def test_early_stopping_where_there_is_nothing_to_measure():
    X = make_images()
    with pytest.raises(ValueError, match=r"stage 'gan' has none; give callbacks as a dict"):
        tiny(FAnoGAN, callbacks=[EarlyStopping()], validation_fraction=0.3).fit(X)
    for stop in EarlyStopping, EarlyStopping(), ("stop", EarlyStopping()):
        with pytest.raises(ValueError, match=r"valid_loss, and validation_fraction=0"):
            tiny(AutoEncoder, callbacks=[stop]).fit(X)
    tiny(AutoEncoder, callbacks=[EarlyStopping(monitor="train_loss")]).fit(X)
    # Known before the first stage, not after it.
    with pytest.raises(ValueError, match=r"valid_loss, and validation_fraction=0"):
        tiny(FAnoGAN, max_epochs=10**9, callbacks={"encoder": [EarlyStopping()]}).fit(X)


def test_callbacks_of_a_stage_that_is_not_there():
    with pytest.warns(
        UserWarning, match=r"FAnoGAN has not: \['encodr'\]; its stages are \['encoder', 'gan'\]"
    ):
        tiny(FAnoGAN, callbacks={"encodr": []}).fit(make_images())


def test_skorch_callbacks_serve(tmp_path):
    """Those that hook into epochs, batches and gradients."""
    network, norms = Parts(), []

    class Norms(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            norms.append(torch.cat([p.grad.flatten() for _, p in named_parameters]).norm().item())

    with seeded(0):
        data = images(20).split(0.25)
    callbacks = [
        GradientNormClipping(1e-3),
        Norms(),
        ProgressBar(),
        LRScheduler("CyclicLR", base_lr=1e-3, max_lr=1e-2, cycle_momentum=False, step_every="batch"),
        Checkpoint(dirname=tmp_path),
    ]
    run(Reconstruction, network, data, error=squared_error, max_epochs=2, callbacks=callbacks)
    assert max(norms) <= 1.001e-3
    assert (tmp_path / "params.pt").exists()


def test_a_fit_without_a_generator_step_says_so():
    with pytest.warns(UserWarning, match="stage 'gan' ended before the first step with a generator_loss"):
        tiny(FAnoGAN, n_critic=50).fit(make_images())


def test_fits_in_threads_wait_for_one_another():
    X, state = make_images(), torch.get_rng_state()
    expected, scores = tiny(AutoEncoder, max_epochs=5).fit(X).score_samples(X), []
    jobs = [
        threading.Thread(
            target=lambda: scores.append(tiny(AutoEncoder, max_epochs=5).fit(X).score_samples(X))
        )
        for _ in range(3)
    ]
    [job.start() for job in jobs]
    [job.join() for job in jobs]
    assert [np.array_equal(expected, score) for score in scores] == [True] * 3
    assert torch.equal(torch.get_rng_state(), state)


def test_divergence_in_the_last_step():
    with pytest.raises(FloatingPointError, match="'reconstruction', epoch 1: training diverged"):
        tiny(AutoEncoder, lr=1e20, batch_size=64).fit(make_images())


def test_history_and_verbose(capsys):
    detector = tiny(FAnoGAN, max_epochs=2, encoder_epochs=3, verbose=1).fit(make_images())
    assert list(detector.history_) == ["gan", "encoder"]
    assert detector.n_iter_ == 5
    assert {"critic_loss", "generator_loss", "wasserstein_distance", "epoch", "dur"} <= set(
        detector.history_["gan"][0]
    )
    printed = capsys.readouterr().out
    for word in "stage: gan", "stage: encoder", "critic_loss", "train_loss":
        assert word in printed


def test_a_silent_fit_prints_nothing(capsys):
    tiny(FAnoGAN).fit(make_images())
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:The estimator FunctionTransformer does not support callbacks")
def test_scikit_learn_progress_bars_nest(monkeypatch):
    callback = pytest.importorskip("sklearn.callback")  # from scikit-learn 1.9 on
    screen = io.StringIO()
    console = Console(file=screen, width=150, height=60, force_terminal=True)
    monkeypatch.setattr("rich.progress.get_console", lambda: console)
    X, y = make_images((20, 16, 16)), np.r_[np.ones(14), -np.ones(6)]
    pipeline = make_pipeline(FunctionTransformer(), tiny(FAnoGAN, max_epochs=2))
    search = GridSearchCV(
        pipeline,
        {"fanogan__width": [1, 2]},
        cv=NormalOnlyKFold(2, random_state=0),
        scoring="roc_auc",
        n_jobs=2,
    )
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=None)).fit(X, y)
    for words in "GridSearchCV", "FAnoGAN", "gan", "encoder":
        assert words in screen.getvalue()


def test_a_scikit_learn_callback_can_stop_a_stage():
    pytest.importorskip("sklearn.callback")

    class Stop:
        def setup(self, estimator, context): ...

        def teardown(self, estimator, context): ...

        def on_fit_task_begin(self, estimator, context): ...

        def on_fit_task_end(self, estimator, context):
            return context.task_name == "epoch" and context.task_id == 2

    detector = tiny(AutoEncoder, max_epochs=50).set_callbacks(Stop()).fit(make_images())
    assert detector.n_iter_ == 3
