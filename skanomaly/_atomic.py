"""Fits that succeed or leave no trace."""

import functools


def all_or_nothing(fit):
    """A `fit` that leaves the estimator as it was when it fails."""

    @functools.wraps(fit)
    def fit_or_restore(self, *args, **kwargs):
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        # Not Exception: a fit that is interrupted from the keyboard is undone, too.
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return fit_or_restore
