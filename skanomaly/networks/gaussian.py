"""Gaussian codes: random draws from them, and their divergence from the prior N(0, I)."""

import torch


def draw(mean, log_variance):
    """Codes drawn from N(mean, exp(log_variance)), differentiable in both arguments (reparameterisation)."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def kl_divergence(mean, log_variance):
    """KL(N(mean, exp(log_variance)) || N(0, I)) of each code, divided by the length of a code; shape (n,)."""
    # A mean, as in MedIAnomaly, although the formula has a sum: errors are means over pixels, too.
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).mean(1)
