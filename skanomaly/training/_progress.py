"""Reports of every epoch to scikit-learn's callbacks, which are experimental and exist since version 1.9.

No other file uses these callbacks.
"""

from contextlib import contextmanager, nullcontext

from skorch.callbacks import Callback

# Methods, not functions: scikit-learn keeps the context of a fit in private attributes of the detector.
try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupport:
        """Mixin without effect: scikit-learn before 1.9 has no callbacks to report to."""

        def _fit_task(self, X, y):
            return nullcontext()

        def _stage_callbacks(self, stage):
            return []

else:

    class CallbackSupport(CallbackSupportMixin):
        """Mixin that reports a fit and its stages to scikit-learn's callbacks.

        scikit-learn's `_fit_context` tears the callbacks down.
        """

        @contextmanager
        def _fit_task(self, X, y):
            """Context of a whole fit. It must be entered before `all_or_nothing` copies the attributes."""
            context = self._init_callback_context(max_subtasks=None)
            context.call_on_fit_task_begin(estimator=self, X=X, y=y)
            yield
            # No finally: a failed fit is not reported as ended, as in scikit-learn's own estimators.
            context.call_on_fit_task_end(estimator=self, X=X, y=y)

        def _stage_callbacks(self, stage):
            """skorch callbacks that report one stage of the fit in progress."""
            return [EpochContext(self, self._callback_fit_ctx, stage)]


class EpochContext(Callback):
    """skorch callback that opens a scikit-learn callback context for its stage, and one for each epoch."""

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
