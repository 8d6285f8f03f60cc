"""Errors and losses of images (n, c, h, w).

The error of a pixel is a mean over the channels, so that the errors of images are maps (n, h, w).
"""

import torch
from torch.nn import functional as F

#: Side and standard deviation of the Gaussian window of SSIM, as in the paper.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def squared_error(x, y):
    """Squared error (x - y)^2 of each pixel, (n, h, w)."""
    return over_channels((x - y).square())


def absolute_error(x, y):
    """Absolute error |x - y| of each pixel, (n, h, w)."""
    return over_channels((x - y).abs())


def ssim_error(x, y):
    """Structural error 1 - SSIM (Wang et al. 2004) of each pixel, (n, h, w), for images in [0, 1].

    Borders are replicated, so that the map has the size of the images.
    """
    n, c, h, w = x.shape
    half = SSIM_WINDOW // 2
    offsets = torch.arange(-half, half + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    kernel = kernel / kernel.sum()
    stack = torch.cat([x, y, x * x, y * y, x * y]).reshape(5 * n * c, 1, h, w)
    stack = F.pad(stack, (half,) * 4, mode="replicate")
    # A Gaussian window is separable: two passes of 11 products instead of one of 121.
    stack = F.conv2d(F.conv2d(stack, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    mx, my, xx, yy, xy = stack.view(5, n, c, h, w)
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    # clamp, because rounding can make E[x^2] - E[x]^2 negative far outside [0, 1].
    variances = (xx - mx**2).clamp(min=0) + (yy - my**2).clamp(min=0)
    ssim = ssim / ((mx**2 + my**2 + c1) * (variances + c2))
    return over_channels(1 - ssim)


def likelihood_error(prediction, x):
    """Gaussian negative log-likelihood exp(-s) (x - m)^2 + s of each pixel, (n, h, w).

    `prediction` is a pair of means m and log-variances s. Constant factor and summand are left out.
    """
    mean, log_variance = prediction
    return over_channels((x - mean).square() * torch.exp(-log_variance) + log_variance)


def over_channels(errors):
    """Mean (n, h, w) over the channels of (n, c, h, w)."""
    # Indexing grey images makes a view; a mean over their one channel would copy them.
    return errors[:, 0] if errors.shape[1] == 1 else errors.mean(1)


def gradient_map(loss, x):
    """Absolute gradient |d loss / d x| of each pixel, (n, h, w). `loss(x)` is a number per image, (n,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        # The sum of the losses, because gradients of their mean would shrink with the size of the batch.
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return over_channels(gradient.abs())


def feature_error(f, g):
    """Mean squared difference (n,) between two sets of flat features (n, n_features)."""
    return (f - g).square().mean(1)


def focal_loss(logits, masks, *, gamma=2.0):
    """Mean of -(1 - p)^gamma log p, where p is the probability of a pixel's true class (Lin et al. 2017).

    `logits` (n, 2, h, w) are of the classes, and `masks` (n, h, w) are True in the second one.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, masks[:, None].long())[:, 0]
    return -((1 - log_p.exp()).pow(gamma) * log_p).mean()


def gradient_penalty(critic, x, fake):
    """Gradient penalty of WGAN-GP, the mean of (|grad critic(u)| - 1)^2 (Gulrajani et al. 2017, equation 3).

    Each u is a random point on the line between an image of `x` and an image of `fake`.
    """
    share = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device)
    between = (x + share * (fake - x)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # Without the constant, the derivative of the root would be nan at a gradient of exactly zero.
    slope = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (slope - 1).square().mean()
