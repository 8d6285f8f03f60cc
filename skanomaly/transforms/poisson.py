"""Poisson blending: an image whose gradients in a box are those of others, and whose border stays."""

import math

import torch


def _sines(inside, dtype):
    """Sine transform of one axis of each box, (n, k, side), and its eigenvalues (n, k).

    `inside` (n, side) is True in one run for each image. Row k of the transform is 0 outside that run, and 0
    altogether if the run has fewer than k pixels; so boxes of all sizes are one batch.
    """
    length = inside.sum(1)[:, None]
    place = torch.arange(inside.shape[1], device=inside.device) - inside.int().argmax(1)[:, None] + 1
    k = torch.arange(1, int(length.max()) + 1, device=inside.device)
    # Modulo a period, in integers: float32 would lose digits in the sine of a large number.
    phase = (k[:, None] * place[:, None]) % (2 * (length + 1))[:, :, None]
    step = math.pi / (length + 1).to(dtype)  # an int divided by an int would be float32
    used = (k <= length)[:, :, None] & inside[:, None]
    sines = torch.sin(phase * step[:, :, None]) * (2 / math.pi * step).sqrt()[:, :, None]
    # Any positive value for rows that are 0, which must not be divided by 0.
    eigenvalues = torch.where(k <= length, 2 - 2 * torch.cos(k * step), 1.0)
    return torch.where(used, sines, 0), eigenvalues


def solve_poisson(right, rows, columns):
    """Solution of 4 u_p - sum u_q = right_p over the four neighbours q, in a box of each image.

    The solution is 0 outside the box (Dirichlet border). A sine transform diagonalises the equations, so that
    the solution is exact and all images are solved at once.

    Parameters
    ----------
    right : tensor of shape (n, c, h, w)
        Right side; values outside the boxes have no effect.
    rows : bool tensor of shape (n, h)
        Rows of each box, in one run. A box may be empty.
    columns : bool tensor of shape (n, w)
        Columns of each box, in one run.

    Returns
    -------
    solution : tensor of shape (n, c, h, w)
    """
    (down, vertical), (across, horizontal) = (_sines(inside, right.dtype) for inside in (rows, columns))
    down, across = down[:, None], across[:, None]
    waves = down @ right @ across.mT / (vertical[:, None, :, None] + horizontal[:, None, None, :])
    return down.mT @ waves @ across


def blend(images, sources, rows, columns, *, own, foreign, inside=None):
    """Images, in a box of which gradients of the sources take the place of the images' own.

    Between two neighbours, the gradient is the stronger one of `own` times that of the image and `foreign`
    times that of the source. The result is the least-squares fit to these gradients that agrees with the
    image around the box (Perez et al. 2003; PII, equation 4). No box reaches the border of the image: its
    outermost pixels there are left as they are.

    Parameters
    ----------
    images, sources : tensors of shape (n, c, h, w)
    rows : bool tensor of shape (n, h)
        Rows of each box, in one run.
    columns : bool tensor of shape (n, w)
        Columns of each box, in one run.
    own, foreign : float or tensor of shape (n, 1, 1, 1)
        Factors of the gradients. 1 - alpha and alpha is PII; 0 and 1 is seamless cloning; 1 and 1 is its
        mixed form.
    inside : bool tensor of shape (n, 1, h, w), default=None
        Pixels whose gradients may be replaced. None means the whole box.

    Returns
    -------
    blended : tensor of shape (n, c, h, w)
        Images that are not clipped: they may leave the range of the images.
    """
    rows, columns = (_without_ends(axis) for axis in (rows, columns))
    box = rows[:, None, :, None] & columns[:, None, None, :]
    inside = box if inside is None else box & inside
    right = torch.zeros_like(images)
    for axis in (2, 3):
        d, s = -images.diff(dim=axis), -sources.diff(dim=axis)
        wanted = torch.where((own * d).abs() > (foreign * s).abs(), own * d, foreign * s)
        n = inside.shape[axis] - 1
        replaced = inside.narrow(axis, 0, n) | inside.narrow(axis, 1, n)
        # Only the difference to the image is solved for, so that its border values are 0.
        extra = torch.where(replaced, wanted - d, 0)
        right.narrow(axis, 0, n).add_(extra)
        right.narrow(axis, 1, n).sub_(extra)
    return images + solve_poisson(right, rows, columns)


def _without_ends(inside):
    """A run of pixels (n, side) without the first and the last pixel of the side."""
    inside = inside.clone()
    inside[:, 0] = inside[:, -1] = False
    return inside
