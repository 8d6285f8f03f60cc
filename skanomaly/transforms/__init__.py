"""Random views of images, for self-supervised training: each image of a batch is changed in its own way.

A transform takes images in [0, 1], a float tensor (n, c, h, w), and returns changed images of the same shape.
All random numbers come from torch's CPU generator, so that a seed leads to the same views on every
device. A function that does the same may be used in place of a transform.
"""

from . import views
from .views import *  # noqa: F403
from .views import __all__ as __all__
from .views import changed as changed

# Assigned again, because Sphinx finds the description of a constant only next to its assignment.
#: Pairs of transforms by name, one transform for each of two views. A code that becomes invariant to
#: colour tends to describe structure; one that becomes invariant to place and sharpness, colour.
#:
#: :meta hide-value:
PRESETS = views.PRESETS
