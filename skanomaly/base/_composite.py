"""CompositeDetector: a detector that holds others."""

from ._detector import BaseDetector


class CompositeDetector(BaseDetector):
    """Base of detectors that hold detectors with formats of their own.

    A subclass has no network. It writes `_learn`, which fits what it holds; `_judgements`, which scores X
    batch by batch; and `_components`. Its `_format_class` reads X.
    """

    def _learn(self, images):
        """Fit the detectors; returns None, or judgements as `_measure` does."""
        raise NotImplementedError

    def _judgements(self, images, pick):
        raise NotImplementedError

    def _components(self, images):
        """Yield dicts of components (b,), batch by batch."""
        raise NotImplementedError
