"""scikit-learn's callbacks (experimental in 1.9) told of every epoch: the only file that knows them."""

from skorch.callbacks import Callback


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
