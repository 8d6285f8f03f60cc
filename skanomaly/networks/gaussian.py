"""Gaussian codes: drawn by reparameterisation, drawn to the prior by their divergence."""

import torch


def draw(mean, log_variance):
    """A code from N(mean, exp(log_variance)), differentiable in both."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def kl_divergence(mean, log_variance):
    """KL(N(mean, exp(log_variance)) || N(0, I)), the mean over the numbers of a code, (n,)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).flatten(1).mean(1)
