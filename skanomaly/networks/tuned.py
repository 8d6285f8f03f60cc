"""Backbones whose last stages are copies that can be trained, so that no network that others use is moved."""

import copy
from numbers import Integral

from torch import nn

from .backbone import ImageNetBackbone, ModuleBackbone, imagenet


class TunedStages(nn.Module):
    """Copy of the last stages of the network from ImageNet: maps of the stage before them to their outputs.

    Parameters
    ----------
    stages : sequence of int
        Numbers of the stages that can be trained. The copy begins at the first of them.
    layers : sequence of int
        Numbers of the stages whose outputs are wanted. The copy ends at the last of them.
    """

    pooled = staticmethod(ImageNetBackbone.pooled)

    def __init__(self, stages, layers):
        super().__init__()
        shared = imagenet("cpu")
        begins = [0, *(end + 1 for end in shared.ends)]
        start = begins[min(stages)]
        self.blocks = copy.deepcopy(shared._blocks[start : begins[max(layers) + 1]])
        self.ends = [shared.ends[layer] - start for layer in layers]
        for stage in stages:
            self.blocks[begins[stage] - start : begins[stage + 1] - start].requires_grad_(True)

    def forward(self, x):
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return [outputs[end] for end in self.ends]


class TunedModule(ModuleBackbone):
    """Copy of the network of a `ModuleBackbone`, a part of this module, which can be trained.

    It stays in eval mode: statistics of batch normalisation do not move.

    Parameters
    ----------
    backbone : ModuleBackbone
    names : sequence of str or None
        Names of the modules that can be trained; None stands for all.
    """

    def __init__(self, backbone, names):
        network = copy.deepcopy(backbone._held[0]).requires_grad_(names is None)
        super().__init__(network, backbone.layers, backbone.size, backbone.image_range)
        known = dict(network.named_modules())
        for name in names or ():
            if name not in known:
                raise ValueError(
                    f"tuned must name modules of the backbone, got {name!r}; there are {sorted(known)[1:]}"
                )
            known[name].requires_grad_(True)
        if not any(weight.requires_grad for weight in network.parameters()):
            raise ValueError(f"tuned must name modules with weights, got {names!r}")
        self.network = network


def split(backbone, tuned):
    """Frozen part of a backbone, and a copy of the other part, which can be trained.

    Parameters
    ----------
    backbone : ImageNetBackbone, ModuleBackbone or DerivativeFilters
    tuned : sequence of int or str, or None
        Stages or modules that can be trained. None stands for the last two stages, and for all of a module.

    Returns
    -------
    frozen : nn.Module
        Module from images to a list of one tensor, or the whole backbone if it has no weights.
    trainable : nn.Module or None
        Module from that tensor to feature maps; None for a backbone without weights.
    """
    if isinstance(backbone, ImageNetBackbone):
        stages = _stages(tuned, backbone.layers)
        return ImageNetBackbone([min(stages) - 1], backbone.size), TunedStages(stages, backbone.layers)
    if isinstance(backbone, ModuleBackbone) and any(True for _ in backbone._held[0].parameters()):
        return Alone(), TunedModule(backbone, tuned)
    if tuned is not None:
        raise ValueError(f"tuned must be None for a backbone without weights, got {tuned!r}")
    return backbone, None


class Alone(nn.Module):
    """Frozen part without layers: images, in a list."""

    def forward(self, x):
        return [x]


def _stages(tuned, layers):
    """Numbers of the stages that can be trained."""
    first, last = min(layers), max(layers)
    if not first:
        raise ValueError(
            f"layers must begin with stage 1 or later, since stage 0 stays as it is, got {layers}"
        )
    if tuned is None:
        return range(max(1, min(first, last - 1)), last + 1)
    if not (
        len(tuned) and all(isinstance(k, Integral) and 1 <= k <= last for k in tuned) and min(tuned) <= first
    ):
        raise ValueError(
            f"tuned must be numbers from 1 to {last}, the last of layers, and one of them not above "
            f"{first}, the first of layers; got {tuned!r}"
        )
    return sorted(tuned)
