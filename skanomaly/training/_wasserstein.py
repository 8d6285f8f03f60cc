"""Wasserstein: training of a Wasserstein GAN with gradient penalty (WGAN-GP)."""

import torch

from .._losses import gradient_penalty
from ._training import Training


class Wasserstein(Training):
    """WGAN-GP of Gulrajani et al. 2017: every batch trains the critic, every `n_critic`-th the generator too.

    Parameters
    ----------
    network : nn.Module
        Module with the parts `generator` and `critic`, and a method `draw_codes(n)` that returns n random
        codes.
    n_critic : int
    penalty_weight : float
        Weight of the gradient penalty, lambda in the paper.
    """

    moves = {"optimizer": ["generator"], "optimizer_critic": ["critic"]}
    losses = "critic_loss", "wasserstein_distance", "generator_loss"
    betas = 0.0, 0.9

    def __init__(self, network, *, n_critic=5, penalty_weight=10.0, **options):
        self.n_critic, self.penalty_weight = n_critic, penalty_weight
        super().__init__(network, **options)

    def step(self, network, x):
        generator, critic = network.generator, network.critic
        with torch.no_grad():
            fake = generator(network.draw_codes(len(x)))
        gap = critic(fake).mean() - critic(x).mean()
        penalty = gradient_penalty(critic, x, fake)
        self.move("optimizer_critic", critic_loss=gap + self.penalty_weight * penalty)
        self.record(wasserstein_distance=-gap)
        # n_steps counts on from epoch to epoch: an epoch of few images has fewer batches than n_critic.
        if self.n_steps % self.n_critic == 0:
            fake = generator(network.draw_codes(len(x)))
            self.move("optimizer", generator_loss=-critic(fake).mean())
