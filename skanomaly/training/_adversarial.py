"""Adversarial: training of a GAN whose discriminator computes the logit of a probability (DCGAN)."""

from torch.nn.functional import softplus

from ._training import Training


def discriminator_loss(real, fake):
    """Mean of -log D(x) - log(1 - D(G(z))), from logits of D. It is 2 log 2 if D is always 1/2."""
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake):
    """Mean of -log D(G(z)), from logits of D."""
    # Not log(1 - D(G(z))), whose gradient vanishes while D is sure of the fakes, as D is at first.
    return softplus(-fake).mean()


class Adversarial(Training):
    """GAN of Goodfellow et al. 2014: each batch trains the discriminator, then the generator.

    Parameters
    ----------
    network : nn.Module
        Module with the parts `generator` and `discriminator`, and a method `draw_codes(n)` that returns n
        random codes.
    """

    moves = {"optimizer": ["generator"], "optimizer_discriminator": ["discriminator"]}
    losses = "discriminator_loss", "generator_loss"
    betas = 0.5, 0.999

    def step(self, network, x):
        discriminator = network.discriminator
        fake = network.generator(network.draw_codes(len(x)))
        loss = discriminator_loss(discriminator(x), discriminator(fake.detach()))
        self.move("optimizer_discriminator", discriminator_loss=loss)
        self.move("optimizer", generator_loss=generator_loss(discriminator(fake)))
