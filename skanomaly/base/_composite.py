"""CompositeDetector: base of detectors that hold other detectors."""

from ._detector import BaseDetector


class CompositeDetector(BaseDetector):
    """Base of detectors that hold other detectors, each of which reads X in its own format.

    A subclass writes `_learn`, which fits the detectors that it holds; `_judgements`, which uses them to
    judge images batch by batch; and `_components`. Its attribute `_format_class` is the class that reads X.
    Its ``network_`` is a property that returns the networks of these detectors in one module. It does not
    reconstruct.
    """

    def _check_process(self):
        """Check nothing: the detectors that are held choose their devices."""

    def _learn(self, images):
        """Fit the detectors that are held; return None, or judgements as `_measure` does."""
        raise NotImplementedError

    def _judgements(self, images, pick):
        """Yield (slice, part) for each batch, where `pick` takes the part from a Judgement."""
        raise NotImplementedError

    def _components(self, images):
        """Yield a dict of components (b,) for each batch."""
        raise NotImplementedError
