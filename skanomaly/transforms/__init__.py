"""Random views of images, for self-supervised training: each image of a batch is changed in its own way.

A transform takes images (n, c, h, w) in [0, 1], a float tensor, and returns changed images of the same shape.
All draws come from torch's generator on the CPU, so that one seed gives the same views on every device. Any
function that does this may be given instead.
"""

from . import views
from .views import *  # noqa: F403
from .views import __all__ as __all__
from .views import changed as changed

# Bound again because Sphinx finds the words of a constant only beside an assignment.
#: Pairs of transforms by name, for the two views. Invariance to changes of colour leaves structure in a code;
#: invariance to place, sharpness and the like leaves colour.
#:
#: :meta hide-value:
PRESETS = views.PRESETS
