"""Deep anomaly detection and segmentation in medical images, for scikit-learn."""

import lazy_loader

# Names are listed in __init__.pyi and imported at first use: torch takes seconds, and data sets and
# metrics do without it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
