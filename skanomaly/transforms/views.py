"""Random views of images."""

import math
from dataclasses import dataclass
from functools import reduce
from itertools import groupby

import torch
from torch.nn import functional as F

__all__ = [
    "Affine",
    "Canny",
    "ColorDrop",
    "ColorJitter",
    "Compose",
    "Crop",
    "Flip",
    "GaussianBlur",
    "PRESETS",
    "Rotation",
    "Solarize",
    "preset",
]

#: Weights of red, green and blue in a grey value (luma, ITU-R 601).
LUMA = 0.299, 0.587, 0.114
#: Matrix from RGB to luma and two axes of colour. The hue is the angle in the plane of these two axes.
YIQ = (LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
#: Number of passes, each of which extends strong edges by one pixel along weak edges.
N_HYSTERESIS = 16


def changed(transform, x):
    """Images transform(x), checked for their shape. The transform gets a copy of x, which it may change.

    Raises
    ------
    ValueError
        If the transform does not return a tensor of the shape of x.
    """
    y = transform(x.clone())
    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(
            "a transform must give a tensor of as many images as it takes, of their shape "
            f"{tuple(x.shape)}, got {got}"
        )
    return y


class _Geometric:
    """Random affine map of the places in an image. `Compose` joins consecutive maps into a single one.

    A subclass writes `_matrix(n, size)`, which returns matrices (n, 3, 3) that map places in the view to
    places in the image. Coordinates of places run from -1 to 1.
    """

    def __call__(self, x):
        return _warp(x, self._matrix(len(x), x.shape[2:]))


def _warp(x, matrix):
    grid = F.affine_grid(matrix[:, :2].to(x), x.shape, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _uniform(n, low, high):
    return low + (high - low) * torch.rand(n)


def _affine(n, **entries):
    """Identity matrices (n, 3, 3) with some entries replaced: `_affine(n, xx=scale)`."""
    matrix = torch.eye(3).repeat(n, 1, 1)
    for name, values in entries.items():
        row, column = ("xy1".index(letter) for letter in name)
        matrix[:, row, column] = values
    return matrix


@dataclass(frozen=True)
class Crop(_Geometric):
    """A random part of the image, enlarged to the size of the image.

    Parameters
    ----------
    area : tuple (low, high), default=(0.08, 1.0)
        Range of the area of the part, as a share of the image's area.
    ratio : tuple (low, high), default=(3 / 4, 4 / 3)
        Range of the ratio of width to height of the part, each as a share of the image's side.
    """

    area: tuple = (0.08, 1.0)
    ratio: tuple = (3 / 4, 4 / 3)

    def _matrix(self, n, size):
        area = _uniform(n, *self.area)
        ratio = torch.exp(_uniform(n, *map(math.log, self.ratio)))
        width, height = ((area * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
        x, y = ((1 - side) * _uniform(n, -1, 1) for side in (width, height))
        return _affine(n, xx=width, yy=height, x1=x, y1=y)


@dataclass(frozen=True)
class Flip(_Geometric):
    """Mirror image, left to right.

    Parameters
    ----------
    p : float, default=0.5
        Probability that an image is changed.
    """

    p: float = 0.5

    def _matrix(self, n, size):
        return _affine(n, xx=torch.where(torch.rand(n) < self.p, -1.0, 1.0))


@dataclass(frozen=True)
class Rotation(_Geometric):
    """Turn about the middle of the image.

    Parameters
    ----------
    degrees : float, default=10.0
        Largest angle, in either direction.
    """

    degrees: float = 10.0

    def _matrix(self, n, size):
        height, width = size
        angle = torch.deg2rad(_uniform(n, -self.degrees, self.degrees))
        cos, sin = angle.cos(), angle.sin()
        # Not a plain rotation: coordinates run from -1 to 1 along each side, whatever its length.
        return _affine(n, xx=cos, xy=-sin * height / width, yx=sin * width / height, yy=cos)


@dataclass(frozen=True)
class Affine(_Geometric):
    """Random shift and change of size.

    Parameters
    ----------
    translation : float, default=0.05
        Largest shift along a side, as a share of that side.
    scale : tuple (low, high), default=(0.95, 1.05)
        Range of the factor of both sides. A factor above 1 enlarges.
    """

    translation: float = 0.05
    scale: tuple = (0.95, 1.05)

    def _matrix(self, n, size):
        # Coordinates span two units along a side.
        x, y = (2 * self.translation * _uniform(n, -1, 1) for _ in range(2))
        scale = 1 / _uniform(n, *self.scale)
        return _affine(n, xx=scale, yy=scale, x1=x, y1=y)


class _Appearance:
    """Change of pixel values, which each image undergoes with probability `p`.

    A subclass writes `_change(x)`, which returns changed images. `x` holds only the images to be changed.
    """

    def __call__(self, x):
        rows = (torch.rand(len(x)) < self.p).nonzero()[:, 0]
        if not len(rows):
            return x
        if len(rows) == len(x):
            return self._change(x)
        rows = rows.to(x.device, non_blocking=True)
        return x.index_copy(0, rows, self._change(x[rows]))


def _each(values, x):
    """One number for each image, as a tensor (n, 1, 1, 1) that broadcasts against images."""
    return values.to(x).view(-1, 1, 1, 1)


def _grey(x, name):
    """Grey images (n, 1, h, w)."""
    if x.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} needs images of 1 or 3 channels, grey or RGB, got {x.shape[1]}; leave it out, or take "
            "transforms='color', which leaves colours as they are"
        )
    return x if x.shape[1] == 1 else torch.einsum("nchw,c->nhw", x, x.new_tensor(LUMA))[:, None]


@dataclass(frozen=True)
class ColorJitter(_Appearance):
    """Random change of brightness, contrast, saturation and hue, in this order.

    Saturation and hue of grey images do not change.

    Parameters
    ----------
    brightness, contrast, saturation : float
        Largest change c of each quantity, whose factor is drawn between 1 - c and 1 + c.
    hue : float, default=0.1
        Largest turn of the hue, as a share of the circle.
    p : float, default=0.8
        Probability that an image is changed.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    p: float = 0.8

    def _change(self, x):
        n = len(x)
        x = x * _each(_uniform(n, 1 - self.brightness, 1 + self.brightness), x)
        mean = _grey(x, "ColorJitter").mean((2, 3), keepdim=True)
        x = torch.lerp(mean, x, _each(_uniform(n, 1 - self.contrast, 1 + self.contrast), x))
        if x.shape[1] == 3:
            yiq = torch.tensor(YIQ)
            # Saturation scales the two axes of colour, and hue turns them; the luma stays.
            angle = 2 * math.pi * _uniform(n, -self.hue, self.hue)
            scale = _uniform(n, 1 - self.saturation, 1 + self.saturation)
            turn = torch.eye(3).repeat(n, 1, 1)
            turn[:, 1, 1] = turn[:, 2, 2] = scale * angle.cos()
            turn[:, 2, 1] = scale * angle.sin()
            turn[:, 1, 2] = -turn[:, 2, 1]
            x = torch.einsum("nij,njhw->nihw", (torch.linalg.inv(yiq) @ turn @ yiq).to(x), x)
        return x.clamp(0, 1)


@dataclass(frozen=True)
class ColorDrop(_Appearance):
    """Grey instead of RGB; grey images stay as they are.

    Parameters
    ----------
    p : float, default=0.2
        Probability that an image is changed.
    """

    p: float = 0.2

    def _change(self, x):
        return _grey(x, "ColorDrop").expand_as(x)


@dataclass(frozen=True)
class Solarize(_Appearance):
    """Inversion of bright values.

    Parameters
    ----------
    threshold : float, default=0.5
        Least value v that is inverted, to 1 - v.
    p : float, default=0.2
        Probability that an image is changed.
    """

    threshold: float = 0.5
    p: float = 0.2

    def _change(self, x):
        return torch.where(x < self.threshold, x, 1 - x)


@dataclass(frozen=True)
class GaussianBlur(_Appearance):
    """Gaussian blur, whose width is drawn for each image.

    Parameters
    ----------
    sigma : tuple (low, high), default=(0.1, 2.0)
        Range of the standard deviation, in pixels.
    p : float, default=1.0
        Probability that an image is changed.
    """

    sigma: tuple = (0.1, 2.0)
    p: float = 1.0

    def _change(self, x):
        return _blur(x, _uniform(len(x), *self.sigma), math.ceil(3 * self.sigma[1]))


def _blur(x, sigma, radius):
    """Images (n, c, h, w), each convolved with a Gaussian of its own `sigma`; borders are replicated."""
    n, channels, height, width = x.shape
    offsets = torch.arange(-radius, radius + 1)
    sigma = sigma[:, None].clamp(min=1e-3)  # with a sigma of 0 the result is the image, not nan
    kernel = torch.softmax(-offsets.square() / (2 * sigma.square()), dim=1).to(x)
    # A matrix product along each side is faster than a convolution of each image by itself.
    for side, axis in ((height, "nab,ncbw->ncaw"), (width, "nab,nchb->ncha")):
        reached = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1).to(x.device)
        matrix = x.new_zeros(n, side, side)
        matrix.scatter_add_(2, reached.expand(n, -1, -1), kernel[:, None].expand(-1, side, -1))
        x = torch.einsum(axis, matrix, x)
    return x


@dataclass(frozen=True)
class Canny(_Appearance):
    """Edges of the image (Canny 1986): 1 on an edge and 0 elsewhere, the same in all channels.

    Parameters
    ----------
    sigma : float, default=1.0
        Standard deviation, in pixels, of the Gaussian blur that comes first.
    low, high : float
        Limits of the strength of an edge, the magnitude of the Sobel gradient for values in [0, 1]. A pixel
        of an edge is kept if its strength is above `high`, or if at most 16 steps along edge pixels above
        `low` lead from it to a pixel above `high`.
    p : float, default=0.2
        Probability that an image is changed.
    """

    sigma: float = 1.0
    low: float = 0.1
    high: float = 0.2
    p: float = 0.2

    def _change(self, x):
        grey = x.mean(1, keepdim=True)
        grey = _blur(grey, torch.full((len(x),), float(self.sigma)), math.ceil(3 * self.sigma))
        smooth, slope = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([-1.0, 0.0, 1.0])
        kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
        gradient = F.conv2d(F.pad(grey, (1,) * 4, mode="replicate"), kernels)
        strength = gradient.square().sum(1, keepdim=True).sqrt()
        ridge = strength >= self._across(strength, gradient)
        weak, strong = (ridge & (strength > limit) for limit in (self.low, self.high))
        for _ in range(N_HYSTERESIS):
            strong = weak & (F.max_pool2d(strong.to(x), 3, stride=1, padding=1) > 0)
        return strong.to(x).expand_as(x)

    @staticmethod
    def _across(strength, gradient):
        """Strength (n, 1, h, w) of the stronger of a pixel's two neighbours across the edge, interpolated."""
        _, _, height, width = strength.shape
        direction = gradient / gradient.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        unit = torch.eye(2, 3).to(strength)[None].expand(len(strength), -1, -1)
        here = F.affine_grid(unit, strength.shape, align_corners=False)
        step = direction.movedim(1, 3) * 2 / strength.new_tensor([width, height])
        options = {"padding_mode": "zeros", "align_corners": False}
        return torch.maximum(*(F.grid_sample(strength, here + sign * step, **options) for sign in (1, -1)))


@dataclass(frozen=True)
class Compose:
    """One transform after another.

    Parameters
    ----------
    transforms : tuple of callables
        Transforms, in the order in which they are applied.
    """

    transforms: tuple = ()

    def __call__(self, x):
        for geometric, group in groupby(self.transforms, lambda one: isinstance(one, _Geometric)):
            if geometric:
                # One interpolation for the whole group, because each interpolation blurs a little.
                x = _warp(x, reduce(torch.matmul, [one._matrix(len(x), x.shape[2:]) for one in group]))
            else:
                for transform in group:
                    x = transform(x)
        return x


def _byol(blur, solarize):
    return Compose((Crop(), Flip(), ColorJitter(), ColorDrop(), GaussianBlur(p=blur), Solarize(p=solarize)))


def _both(*transforms):
    return (Compose(transforms),) * 2


_GEOMETRIC = Crop(area=(0.4, 1.0)), Flip(), Rotation()
_COLOURS = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2), ColorDrop()

PRESETS = {
    "byol": (_byol(1.0, 0.0), _byol(0.1, 0.2)),
    "structure": _both(*_COLOURS, Solarize()),
    "color": _both(*_GEOMETRIC, GaussianBlur(p=0.5)),
    "oct": _both(
        Crop(area=(0.7, 1.0)), Flip(), Rotation(5.0), ColorJitter(), GaussianBlur(p=0.5), Canny(p=0.1)
    ),
    "cfp": _both(*_GEOMETRIC, *_COLOURS, GaussianBlur(p=0.5), Canny(p=0.1)),
}


def preset(name):
    """The two transforms of a preset.

    Parameters
    ----------
    name : {"byol", "structure", "color", "oct", "cfp"}
        "byol" is the preset of Grill et al. 2020; its crops may be as small as a twelfth of the image.
        "structure" changes colours and grey values only, "color" place, size and sharpness only. "oct" is for
        tomography of the retina and "cfp" for colour photographs of it, the two kinds of images in the
        SSL-AnoVAE paper. The table of transforms of that paper is not public; these two are chosen here.

    Returns
    -------
    first, second : Compose
        Transforms of the first and the second view.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(map(repr, PRESETS))}")
    return PRESETS[name]
