"""Search for the code whose image is most like a given one, by gradient descent on the code alone."""

import torch


@torch.no_grad()
def search_codes(generator, loss, starts, n_images, *, n_search, lr, bound=None):
    """Codes (n_images, latent_size) with the smallest loss found, each image for itself.

    All images begin at the same codes, and the loss is summed over them: then Adam moves each as if it were
    alone, and batches of one size give each the same bits.

    Parameters
    ----------
    generator : callable (codes) -> images
    loss : callable (images) -> (n_images,)
    starts : (n_restarts, latent_size) tensor
        Codes to begin with; the best end is kept.
    n_search : int
        Steps.
    lr : float
    bound : float or None
        Codes are clamped to [-bound, bound] after each step.
    """
    best = best_loss = None
    for start in starts:
        z = start.expand(n_images, -1).clone()
        optimizer = torch.optim.Adam([z], lr)
        for _ in range(n_search):
            with torch.enable_grad():
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
    """AnoGAN's mapping of images (n, c, h, w) to a generator's.

    Parameters
    ----------
    features : callable (images) -> (n, n_features)
        Of the discriminator.
    discrimination_weight : float
        lambda in (1 - lambda) R + lambda D.
    **options
        Of `search_codes`.

    Returns
    -------
    codes, images, residual, discrimination
        The last two, R and D, are sums of absolute differences, over pixels and over features.
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
