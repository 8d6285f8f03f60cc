"""CompositeDetector: base of detectors that hold other detectors."""

from ._detector import BaseDetector


class CompositeDetector(BaseDetector):
    """Base of detectors that hold other detectors, each with an input format of its own.

    A subclass writes `_learn`, which fits the detectors it holds; `_judgements`, which judges images batch by
    batch by means of them; and `_components`. Its `_format_class` reads X. Its ``network_`` is a property,
    all their networks in one module. It does not reconstruct.
    """

    def _check_process(self):
        """Leave the device to the detectors held."""

    def _learn(self, images):
        """Fit the detectors held; return None, or judgements as `_measure` does."""
        raise NotImplementedError

    def _judgements(self, images, pick):
        """Yield (slice, part) batch by batch, where `pick` takes the part from a Judgement."""
        raise NotImplementedError

    def _components(self, images):
        """Yield a dict of components (b,) for each batch."""
        raise NotImplementedError
