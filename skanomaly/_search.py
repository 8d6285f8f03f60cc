"""Search for the code whose generated image is most like a given one, by gradient descent on the code."""

import torch


@torch.no_grad()
def search_codes(generator, loss, starts, n_images, *, n_search, lr, bound=None):
    """Codes (n_images, latent_size) whose generated images have the smallest losses found.

    Parameters
    ----------
    generator : callable (codes) -> images
        Generator, which is not changed.
    loss : callable (images) -> (n_images,)
        Loss of each generated image.
    starts : (n_restarts, latent_size) tensor
        Codes from which every image is searched for. The best result is kept.
    n_search : int
        Number of steps from each start.
    lr : float
        Learning rate of Adam.
    bound : float or None
        Bound of the codes, which are clamped to [-bound, bound] after each step.
    """
    best = best_loss = None
    for start in starts:
        # One start for all images: with a start each, a score would depend on the image's place in the batch.
        z = start.expand(n_images, -1).clone()
        optimizer = torch.optim.Adam([z], lr)
        for _ in range(n_search):
            with torch.enable_grad():
                # By the sum of the losses Adam moves each code as if it were alone; by the mean, 8e-4 off.
                (z.grad,) = torch.autograd.grad(loss(generator(z.requires_grad_())).sum(), z)
            optimizer.step()
            if bound is not None:
                z.clamp_(-bound, bound)
        z = z.detach()
        value = loss(generator(z))
        if best is None:
            best, best_loss = z, value
        else:
            better = value < best_loss
            best, best_loss = torch.where(better[:, None], z, best), torch.where(better, value, best_loss)
    return best


def search_images(x, generator, features, starts, *, discrimination_weight, **options):
    """AnoGAN's search for the codes of images (n, c, h, w).

    Parameters
    ----------
    features : callable (images) -> (n, n_features)
        Features that the discriminator computes.
    discrimination_weight : float
        Weight lambda in the loss (1 - lambda) R + lambda D.
    **options
        Parameters of `search_codes`.

    Returns
    -------
    codes : (n, latent_size) tensor
    images : (n, c, h, w) tensor
        Images generated from the codes.
    residual : (n,) tensor
        Sum R of absolute differences over the pixels.
    discrimination : (n,) tensor
        Sum D of absolute differences over the features.
    """
    wanted = features(x)

    def parts(y):
        return (x - y).abs().sum((1, 2, 3)), (wanted - features(y)).abs().sum(1)

    def loss(y):
        residual, discrimination = parts(y)
        return (1 - discrimination_weight) * residual + discrimination_weight * discrimination

    codes = search_codes(generator, loss, starts, len(x), **options)
    y = generator(codes)
    return codes, y, *parts(y)
