"""Image sets labelled 1 (normal) and -1 (anomalous): real (`load_` functions) and synthetic (`make_`)."""

from ._digits import make_digit_anatomy
from ._phantoms import make_fundus, make_oct
from ._shipped import load_chest_xray, load_mnist_digits, load_oct

__all__ = [
    "load_chest_xray",
    "load_mnist_digits",
    "load_oct",
    "make_digit_anatomy",
    "make_fundus",
    "make_oct",
]
