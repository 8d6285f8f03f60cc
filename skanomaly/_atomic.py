"""Fits that leave an estimator as it was if they fail."""

import functools


def all_or_nothing(fit):
    """A `fit` that, if it fails, leaves the estimator as it was."""

    @functools.wraps(fit)
    def fit_or_restore(self, *args, **kwargs):
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return fit_or_restore
