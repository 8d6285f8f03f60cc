"""Errors (per pixel or per image) and losses; reduced last.

Images are (n, c, h, w), maps (n, h, w): the mean over channels.
"""

import torch
from torch.nn import functional as F

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def squared_error(x, y):
    """(x - y)^2, (n, h, w)."""
    return over_channels((x - y).square())


def absolute_error(x, y):
    """|x - y|, (n, h, w)."""
    return over_channels((x - y).abs())


def ssim_error(x, y):
    """1 - SSIM of images in [0, 1], (n, h, w); Wang et al. 2004, Gaussian window of 11, sigma 1.5.

    Borders are replicated, so that the map has the size of the images.
    """
    n, c, h, w = x.shape
    half = SSIM_WINDOW // 2
    offsets = torch.arange(-half, half + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    kernel = kernel / kernel.sum()
    stack = torch.cat([x, y, x * x, y * y, x * y]).reshape(5 * n * c, 1, h, w)
    stack = F.pad(stack, (half,) * 4, mode="replicate")
    stack = F.conv2d(F.conv2d(stack, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    mx, my, xx, yy, xy = stack.view(5, n, c, h, w)
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    # Far out of [0, 1] rounding makes variances negative.
    variances = (xx - mx**2).clamp(min=0) + (yy - my**2).clamp(min=0)
    ssim = ssim / ((mx**2 + my**2 + c1) * (variances + c2))
    return over_channels(1 - ssim)


def likelihood_error(prediction, x):
    """exp(-s) (x - m)^2 + s of means m and log-variances s, (n, h, w).

    At a fixed error it is smallest for s = log (x - m)^2.
    """
    mean, log_variance = prediction
    return over_channels((x - mean).square() * torch.exp(-log_variance) + log_variance)


def over_channels(errors):
    """Mean over channels, (n, h, w)."""
    # A mean over one channel costs as much as over many.
    return errors[:, 0] if errors.shape[1] == 1 else errors.mean(1)


def gradient_map(loss, x):
    """|d loss / d x|, (n, h, w), where loss(x) is a number for each image, (n,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        # A sum over images, so that none of them counts less in a large batch.
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return over_channels(gradient.abs())


def feature_error(f, g):
    """Mean squared difference of flat features (n, n_features), (n,)."""
    return (f - g).square().mean(1)


def gradient_penalty(critic, x, fake):
    """Mean of (|grad critic(u)| - 1)^2 with u drawn between x and fake, one place per sample.

    Gulrajani et al. 2017, equation 3.
    """
    place = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device)
    between = (x + place * (fake - x)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # Without the constant the root has no derivative at a gradient of exactly zero.
    slope = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (slope - 1).square().mean()
