"""Search, by gradient descent, for the code whose generated image is most like a given image."""

import torch


@torch.no_grad()
def search_codes(generator, loss, starts, n_images, *, n_search, lr, bound=None):
    """Codes (n_images, latent_size) whose generated images have the smallest losses found.

    Parameters
    ----------
    generator : callable (codes) -> images
        Function that generates images. Its weights do not change.
    loss : callable (images) -> (n_images,)
        Loss of each generated image.
    starts : (n_restarts, latent_size) tensor
        Codes at which the searches begin, the same for every image. The best code of each image is kept.
    n_search : int
        Number of steps of each search.
    lr : float
        Learning rate of Adam.
    bound : float or None
        Limit of codes, which are clamped to [-bound, bound] after each step. None leaves them unclamped.
    """
    best = best_loss = None
    for start in starts:
        # One start for all images: with others, a score would depend on the image's place in the batch.
        z = start.expand(n_images, -1).clone()
        optimizer = torch.optim.Adam([z], lr)
        for _ in range(n_search):
            with torch.enable_grad():
                # With the sum of the losses, Adam moves each code as if it were alone. With the mean, codes
                # were 8e-4 off.
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
        Function that computes the discriminator's features.
    discrimination_weight : float
        Weight lambda in the loss (1 - lambda) R + lambda D, for the sums R and D that are returned.
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
