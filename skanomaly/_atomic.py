"""Fits that succeed or leave no trace."""

import functools
from collections.abc import Callable
from typing import TypeVar

from sklearn.base import _fit_context

Fit = TypeVar("Fit", bound=Callable)


def all_or_nothing(fit: Fit) -> Fit:
    """Decorator of a `fit`: if it fails, the estimator stays as it was before."""

    @functools.wraps(fit)
    def fit_or_restore(self, *args, **kwargs):
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        # Not only Exception: a fit that is interrupted from the keyboard is undone, too.
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return fit_or_restore


def checked_fit(*, prefer_skip_nested_validation: bool) -> Callable[[Fit], Fit]:
    """Decorator of a `fit`: parameters are validated first.

    Parameters
    ----------
    prefer_skip_nested_validation : bool
        Whether estimators that are fitted inside this `fit` do not validate their parameters.
    """
    # scikit-learn's decorator has no types, and would hide the types of `fit`.
    return _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)


def atomic_fit(*, prefer_skip_nested_validation: bool) -> Callable[[Fit], Fit]:
    """Decorator of a `fit`: parameters are validated first, and a fit that fails leaves no trace."""
    check = checked_fit(prefer_skip_nested_validation=prefer_skip_nested_validation)
    return lambda fit: check(all_or_nothing(fit))
