"""Reports of every epoch to scikit-learn's callbacks (experimental, since 1.9). No other file uses them."""

from contextlib import contextmanager, nullcontext

from skorch.callbacks import Callback

# Methods of the detector, not functions: scikit-learn keeps a fit's context in private attributes of it.
try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupport:
        """No callbacks: scikit-learn before 1.9 has none to tell."""

        def _fit_task(self, X, y):
            return nullcontext()

        def _stage_callbacks(self, stage):
            return []

else:

    class CallbackSupport(CallbackSupportMixin):
        """Tells scikit-learn's callbacks of a fit and its stages; `_fit_context` tears them down."""

        @contextmanager
        def _fit_task(self, X, y):
            """Context of a whole fit, to be entered before attributes are kept for a fit that fails."""
            context = self._init_callback_context(max_subtasks=None)
            context.call_on_fit_task_begin(estimator=self, X=X, y=y)
            yield
            # No finally: scikit-learn's own estimators do not report a failed fit as ended.
            context.call_on_fit_task_end(estimator=self, X=X, y=y)

        def _stage_callbacks(self, stage):
            """skorch callbacks that report one stage of the fit in progress."""
            return [EpochContext(self, self._callback_fit_ctx, stage)]


class EpochContext(Callback):
    """Opens one scikit-learn callback context per stage, and in it one per epoch."""

    def __init__(self, detector, fit_context, stage):
        self.detector, self.fit_context, self.stage = detector, fit_context, stage

    def on_train_begin(self, net, **kwargs):
        self.stage_context_ = self.fit_context.subcontext(
            task_name=self.stage, max_subtasks=net.max_epochs
        ).call_on_fit_task_begin(estimator=self.detector)

    def on_epoch_begin(self, net, **kwargs):
        self.epoch_context_ = self.stage_context_.subcontext(task_name="epoch").call_on_fit_task_begin(
            estimator=self.detector
        )

    def on_epoch_end(self, net, **kwargs):
        if self.epoch_context_.call_on_fit_task_end(estimator=self.detector):
            net.stop_ = True

    def on_train_end(self, net, **kwargs):
        self.stage_context_.call_on_fit_task_end(estimator=self.detector)
